"""What is kept, who may use it, and who has to make way."""

from __future__ import annotations

import pytest

from runtime.engine.cache.prefixes import Drop, Operation, Prefixes, Share
from runtime.engine.coverage import BASE_COVERAGE, Coverage
from runtime.generation import BASE, Blend
from tests.runtime.engine.values import blend

KEPT_IDS = range(10, 13)
A = Coverage(blend("a"))


def prefixes(n_cells: int = 200) -> Prefixes:
    """Return an empty cache with room for three kept prefixes."""
    return Prefixes(n_cells, KEPT_IDS)


def run(cache: Prefixes, tokens: list[int], under: Coverage = BASE_COVERAGE, *, sequence_id: int = 0) -> int:
    """Run a sequence that computes ``tokens`` and ends; return how many of them were cached before."""
    n_cached = cache.begin(sequence_id, under, tokens, len(tokens))
    cache.grow(sequence_id, len(tokens) - n_cached)
    cache.end(sequence_id, is_kept=True)
    return n_cached


def tokens_of(n: int, *, first: int = 0) -> list[int]:
    """Return ``n`` tokens that no other prompt has."""
    return list(range(first, first + n))


def test_the_longest_prefix_is_found() -> None:
    """Of two kept prefixes the longer common one is taken, up to the token before the prompt's last."""
    cache = prefixes()
    run(cache, tokens_of(20))
    run(cache, [*tokens_of(30), 99])
    assert run(cache, [*tokens_of(30), 98]) == 30
    assert run(cache, tokens_of(20)) == 19


def test_a_second_turn_pays_for_its_new_words() -> None:
    """Prompt and answer of the first turn are a cached prefix of the second turn."""
    cache = prefixes()
    tokens = tokens_of(20)
    assert cache.begin(0, A, tokens, 30) == 0
    cache.grow(0, 20)
    tokens += [50, 51, 52]
    cache.grow(0, 2)
    cache.end(0, is_kept=True)
    assert cache.begin(0, A, [*tokens, 60, 61], 40) == 22


@pytest.mark.parametrize("other", [BASE, blend("b"), blend("a", scale=0.5), blend("a", "b")], ids=str)
def test_no_other_blend_finds_it(other: Blend) -> None:
    """The same tokens under another blend have other keys and values, so they are not shared."""
    cache = prefixes()
    run(cache, tokens_of(30), A)
    assert run(cache, tokens_of(30), Coverage(other)) == 0
    assert run(cache, tokens_of(30), A) == 29


def test_operations_come_in_order() -> None:
    """At its end a sequence is kept under another id and dropped; the next sequence shares the kept one."""
    cache = prefixes()
    run(cache, tokens_of(20))
    kept_id = KEPT_IDS[-1]
    assert cache.take_operations() == [Share(0, kept_id, 20), Drop(0)]
    cache.begin(1, BASE_COVERAGE, tokens_of(25), 25)
    expected: list[Operation] = [Share(kept_id, 1, 20)]
    assert cache.take_operations() == expected


def test_a_longer_prefix_replaces_those_it_begins_with() -> None:
    """A longer prefix replaces a shorter one, and a shorter one is not kept beside a longer one."""
    cache = prefixes()
    run(cache, tokens_of(20))
    run(cache, tokens_of(40))
    run(cache, tokens_of(18))
    assert cache.n_cells_kept == 40


def test_the_least_recently_used_makes_way() -> None:
    """The least recently used prefix is evicted first, for cells and for ids."""
    cache = prefixes(100)
    for first in (0, 1000, 2000):
        run(cache, tokens_of(30, first=first))
    run(cache, [*tokens_of(20), 7777, 7778])
    assert cache.n_cells_kept <= 100
    assert cache.begin(0, BASE_COVERAGE, tokens_of(31, first=1000), 40) == 0
    cache.end(0, is_kept=False)
    assert cache.begin(0, BASE_COVERAGE, tokens_of(31), 40) == 30


def test_kept_prefixes_never_keep_a_request_out() -> None:
    """A cache full of kept prefixes has room for every request that an empty cache has room for."""
    cache = prefixes(100)
    for first in (0, 1000, 2000):
        run(cache, tokens_of(33, first=first))
    assert cache.has_room(BASE_COVERAGE, tokens_of(50, first=5000), 100)
    assert not cache.has_room(BASE_COVERAGE, tokens_of(50, first=5000), 101)
    assert cache.begin(0, BASE_COVERAGE, tokens_of(50, first=5000), 100) == 0
    assert cache.n_cells_kept == 0


@pytest.mark.parametrize(("n_cells_max", "n_kept"), [(37, 60), (38, 0)])
def test_kept_prefixes_leave_room_for_filler(n_cells_max: int, n_kept: int) -> None:
    """Three cells stay free beside all that is reserved."""
    cache = prefixes(100)
    run(cache, tokens_of(60))
    cache.begin(0, BASE_COVERAGE, tokens_of(20, first=100), n_cells_max)
    cache.grow(0, n_cells_max)
    assert cache.n_cells_kept == n_kept
    assert cache.n_cells_free >= 3


def test_nothing_is_evicted_for_filler_alone_that_frees_no_cell() -> None:
    """A kept prefix stays whose cells a running sequence holds too, though that one reserves all others."""
    cache = prefixes(100)
    run(cache, tokens_of(60))
    cache.take_operations()
    assert cache.begin(0, BASE_COVERAGE, tokens_of(70), 100) == 60
    assert Drop(KEPT_IDS[-1]) not in cache.take_operations()


def test_a_kept_answer_makes_way_for_its_own_prompt() -> None:
    """Of a kept prefix, only the shared part counts against the request that shares it."""
    cache = prefixes(100)
    run(cache, tokens_of(90))
    assert cache.has_room(BASE_COVERAGE, tokens_of(20), 95)
    assert cache.begin(0, BASE_COVERAGE, tokens_of(20), 95) == 19
    cache.grow(0, 76)


def test_room_counts_what_is_shared_once() -> None:
    """A prompt that begins like a running one needs cells for the rest only."""
    cache = prefixes(100)
    cache.begin(0, BASE_COVERAGE, tokens_of(60), 70)
    cache.grow(0, 60)
    assert not cache.has_room(BASE_COVERAGE, tokens_of(60, first=1000), 70)
    assert cache.has_room(BASE_COVERAGE, [*tokens_of(60), 99], 90)
    assert not cache.has_room(BASE_COVERAGE, [*tokens_of(60), 99], 91)


def test_short_and_unwanted_ones_are_not_kept() -> None:
    """Prefixes below the minimum length and those of failed sequences are not kept."""
    cache = prefixes()
    run(cache, tokens_of(5))
    cache.begin(0, BASE_COVERAGE, tokens_of(30, first=50), 30)
    cache.grow(0, 30)
    cache.end(0, is_kept=False)
    assert cache.n_cells_kept == 0


def test_a_prompt_waits_for_one_that_is_coming() -> None:
    """A prompt waits for a common prefix only while a running sequence computes it."""
    cache = prefixes()
    prompt = tokens_of(150)
    cache.begin(0, A, prompt, 150)
    coming = cache.find_coming(A, [*prompt, 1])
    assert coming is not None
    assert cache.find_coming(BASE_COVERAGE, [*prompt, 1]) is None
    assert cache.find_coming(A, tokens_of(40)) is None
    cache.grow(0, 149)
    assert cache.is_coming(coming)
    cache.grow(0, 1)
    assert not cache.is_coming(coming)
    assert cache.find_coming(A, [*prompt, 1]) is None
    assert cache.begin(1, A, [*prompt, 1], 151) == 150


def test_no_prompt_waits_for_a_sequence_that_has_ended() -> None:
    """A prompt stops waiting when the sequence it waits for ends, also if another one gets its id."""
    cache = prefixes()
    prompt = tokens_of(150)
    cache.begin(0, A, prompt, 150)
    coming = cache.find_coming(A, prompt)
    assert coming is not None
    cache.end(0, is_kept=True)
    assert not cache.is_coming(coming)
    cache.begin(0, A, prompt, 150)
    assert not cache.is_coming(coming)


def test_aloras_and_the_base_share_what_stands_before_their_invocations() -> None:
    """A kept prefix serves another coverage as far as both have the same blends, whichever computed it."""
    cache = prefixes()
    run(cache, tokens_of(40), Coverage(blend("a"), 30))
    assert run(cache, tokens_of(40)) == 30
    assert run(cache, tokens_of(40), Coverage(blend("b"), 35)) == 35
    assert run(cache, tokens_of(40), Coverage(blend("b"), 20)) == 20
    assert run(cache, tokens_of(40), Coverage(blend("a"), 30)) == 39
    assert run(cache, tokens_of(40), A) == 0


def test_a_prefix_that_an_alora_computed_does_not_replace_the_bases() -> None:
    """A kept prefix is replaced only by a longer one that shares all of its tokens' blends."""
    cache = prefixes()
    run(cache, tokens_of(40))
    run(cache, tokens_of(50), Coverage(blend("a"), 30))
    assert run(cache, [*tokens_of(40), 99]) == 40
    assert run(cache, [*tokens_of(50), 99], Coverage(blend("a"), 30)) == 50


def test_a_hot_prefix_before_every_invocation_is_the_bases() -> None:
    """A saved prefix carries the blends of its own tokens only, so that every aLoRA finds it."""
    cache = Prefixes(1000, KEPT_IDS)
    context = tokens_of(100)
    run(cache, [*context, 7], Coverage(blend("a"), 100))
    run(cache, [*context, 8], Coverage(blend("b"), 100))
    assert [(hot.coverage, len(hot.tokens)) for hot in cache.hot] == [(BASE_COVERAGE, 100)]
    run(cache, [*context, 7, 8], Coverage(blend("a"), 100))
    assert (Coverage(blend("a"), 100), 101) in [(hot.coverage, len(hot.tokens)) for hot in cache.hot]


def test_a_prompt_waits_for_a_context_that_another_alora_computes() -> None:
    """A prompt waits for a running sequence as far as both have the same blends."""
    cache = prefixes()
    cache.begin(0, Coverage(blend("a"), 120), tokens_of(150), 150)
    assert cache.find_coming(Coverage(blend("b"), 100), tokens_of(150)) is not None
    assert cache.find_coming(BASE_COVERAGE, tokens_of(150)) is not None
    assert cache.find_coming(Coverage(blend("b"), 10), tokens_of(150)) is None
    coming = cache.find_coming(Coverage(blend("b"), 100), tokens_of(150))
    assert coming is not None
    assert coming.n_tokens == 100
