"""Sequences run in order, within the budget and with room for all; none waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.adapters.lanes import Lanes
from runtime.engine.adapters.turns import Turns
from runtime.engine.cache.prefixes import Prefixes
from runtime.engine.coverage import Coverage, cover
from runtime.engine.scheduler import MAX_OVERTAKES, BatchPart, EngineLimits, Places, Scheduler
from runtime.engine.sequence import Sequence, State
from runtime.generation import BASE
from tests.runtime.engine.simulated import LIMITS, N_LANES, Simulation
from tests.runtime.engine.values import blend, request, sequence

BLENDS = [BASE, blend("a"), blend("b"), blend("a", scale=0.5), blend("a", "b")]

prompts = st.lists(st.integers(0, 2), min_size=1, max_size=30)
starts = st.sampled_from([0, 0, 1, 3, 10, 25, 60])
requests = st.tuples(st.sampled_from(BLENDS), starts, prompts, st.integers(0, 12), st.integers(0, 3), st.booleans())


def places_of(kind: str) -> Places:
    """Return the policy of that name."""
    return Lanes(N_LANES) if kind == "mixed" else Turns()


@pytest.mark.parametrize("kind", ["mixed", "grouped"])
@settings(deadline=None)
@given(arrivals=st.lists(requests, max_size=25))
def test_every_sequence_ends_and_the_rules_hold(kind: str, arrivals: list[tuple[Any, ...]]) -> None:
    """Any arrivals of five blends over two lanes end, with shared prefixes and cancellations."""
    simulation = Simulation(places_of(kind))
    added: list[Sequence] = []
    for number, (under, start, prompt, max_tokens, n_steps, is_cancelled) in enumerate(arrivals):
        coverage = Coverage(under, start).of_first(len(prompt))
        one = Sequence(request(str(number), max_tokens=max_tokens, under=under), list(prompt), LIMITS.n_ctx, coverage)
        added.append(simulation.add(one))
        for _ in range(n_steps):
            simulation.step()
        if is_cancelled and added[number // 2].state in (State.WAITING, State.PREFILL, State.DECODE):
            simulation.cancel(added[number // 2])
    simulation.run()
    assert all(one.state in (State.FINISHED, State.CANCELLED) for one in added)
    assert simulation.prefixes.n_cells_running == 0


def simulation_of(*sequences: Sequence, limits: EngineLimits = LIMITS, places: Places | None = None) -> Simulation:
    """Return a simulation in which these sequences wait."""
    simulation = Simulation(places or Lanes(N_LANES), limits)
    for one in sequences:
        simulation.add(one)
    return simulation


def test_requests_beyond_parallel_wait_in_order() -> None:
    """Four sequences run and two wait; the first of these gets the first free id."""
    sequences = [sequence(str(n), max_tokens=2 + n) for n in range(6)]
    simulation = simulation_of(*sequences)
    simulation.step()
    assert simulation.scheduler.running == tuple(sequences[:4])
    assert simulation.scheduler.waiting == tuple(sequences[4:])
    while sequences[0].state is not State.FINISHED:
        simulation.step()
    simulation.step()
    assert sequences[4] in simulation.scheduler.running


def test_a_request_waits_until_all_its_cells_are_free() -> None:
    """100 cells hold two sequences of 40; a smaller request does not overtake the third one."""
    large = [sequence(f"large{n}", n_prompt=30, max_tokens=11) for n in range(3)]
    small = sequence("small", n_prompt=3, max_tokens=2)
    simulation = simulation_of(*large, small)
    simulation.step()
    assert simulation.scheduler.running == tuple(large[:2])
    simulation.run()


def test_answers_go_on_beside_a_long_prompt() -> None:
    """Each sequence in decode has one token in every batch, and the prompt takes the rest of the budget."""
    limits = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=4, n_batch=64, step_budget_ms=250)
    streams = [Sequence(request(str(n), max_tokens=50), [n + 1] * 3, limits.n_ctx) for n in range(3)]
    simulation = simulation_of(*streams, limits=limits)
    simulation.step()
    long = simulation.add(Sequence(request("long", max_tokens=1), [7] * 300, limits.n_ctx))
    while long.state is not State.FINISHED:
        batch = {part.sequence: part.n_tokens for part in simulation.step(n_prefill=20)}
        assert all(batch[one] == 1 for one in streams)
        assert batch[long] <= 20
    assert len(simulation.batches) == 1 + 300 / 20


def test_an_answer_is_earlier_than_the_prompts_that_come_after_its_first_tokens() -> None:
    """An answer of fewer than four tokens counts as one that came together with the prompt."""
    limits = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=4, n_batch=64, step_budget_ms=250)
    streams = [Sequence(request(str(n), max_tokens=50), [n + 1] * 3, limits.n_ctx) for n in range(2)]
    simulation = simulation_of(streams[0], limits=limits)
    for _ in range(2):
        simulation.step()
    together = simulation.add(Sequence(request("together", max_tokens=1), [7] * 100, limits.n_ctx))
    simulation.step()
    assert simulation.scheduler.n_earlier == 0
    while together.state is not State.FINISHED:
        simulation.step()
    simulation.add(streams[1])
    later = simulation.add(Sequence(request("later", max_tokens=1), [8] * 100, limits.n_ctx))
    simulation.step(n_prefill=20)
    assert later.state is State.PREFILL
    assert simulation.scheduler.n_decode == 2
    assert simulation.scheduler.n_earlier == 1
    simulation.cancel(streams[0])
    assert simulation.scheduler.n_earlier == 0


def test_an_idle_server_reads_a_prompt_in_whole_batches() -> None:
    """Without sequences in decode a prompt takes whole batches."""
    limits = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=4, n_batch=64, step_budget_ms=250)
    simulation = simulation_of(Sequence(request(max_tokens=1), [7] * 300, limits.n_ctx), limits=limits)
    simulation.run()
    assert [sum(part.n_tokens for part in batch) for batch in simulation.batches] == [64, 64, 64, 64, 44]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """The oldest prompt gets half of the budget, and the prompt nearest to its first token gets the rest."""
    limits = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=4, n_batch=16, step_budget_ms=250)
    long = Sequence(request("long", max_tokens=1), [7] * 300, limits.n_ctx)
    short = Sequence(request("short", max_tokens=1), [8] * 8, limits.n_ctx)
    simulation = simulation_of(long, short, limits=limits)
    simulation.step()
    assert short.state is State.FINISHED
    assert long.n_computed == 8


def test_a_rare_blend_is_overtaken_a_bounded_number_of_times() -> None:
    """A blend that waits for a lane is overtaken at most MAX_OVERTAKES times."""
    limits = EngineLimits(n_ctx=40, n_kv_cells=1000, n_parallel=8, n_batch=64, step_budget_ms=250)
    simulation = Simulation(Lanes(N_LANES), limits)
    common = [blend("a"), blend("b")]
    for n in range(4):
        simulation.add(sequence(f"first{n}", under=common[n % 2], max_tokens=2 + n))
    simulation.step()
    rare = simulation.add(sequence("rare", under=blend("c")))
    n_passed = 0
    while rare.state is State.WAITING:
        one = simulation.add(sequence(f"more{n_passed}", under=common[n_passed % 2], max_tokens=5))
        simulation.step()
        n_passed += one.state is not State.WAITING
        assert n_passed <= MAX_OVERTAKES
    assert n_passed > 0


def test_eight_prompts_with_one_beginning_compute_it_once() -> None:
    """Of eight prompts under one blend the first computes the common prefix; another blend computes its own."""
    limits = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=8, n_batch=128, step_budget_ms=250)
    simulation = Simulation(Lanes(N_LANES), limits)
    system = list(range(200))
    sequences = [
        Sequence(request(str(n), max_tokens=1, under=blend("a")), [*system, 1000 + n], limits.n_ctx) for n in range(8)
    ]
    other = Sequence(request("other", max_tokens=1, under=blend("b")), [*system, 2000], limits.n_ctx)
    for one in (*sequences, other):
        simulation.add(one)
    simulation.run()
    assert sum(part.n_tokens for batch in simulation.batches for part in batch) == 2 * 201 + 7
    assert [one.n_cached for one in sequences] == [0] + [200] * 7
    assert other.n_cached == 0


def test_aloras_over_one_context_compute_it_once() -> None:
    """The base model and eight aLoRAs share the tokens before the invocation; each computes its own after it."""
    limits = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=9, n_batch=128, step_budget_ms=250)
    simulation = Simulation(Lanes(8), limits)
    context, invocation = list(range(200)), [7, 8]
    prompt = [*context, *invocation, 9]
    for under in (BASE, *(blend(name) for name in "abcdef"), blend("a", "b"), blend("a", "c")):
        coverage = cover(under, () if under.is_base else invocation, prompt)
        one = Sequence(request(str(under), max_tokens=1, under=under), list(prompt), limits.n_ctx, coverage)
        simulation.add(one)
    simulation.run()
    assert sum(part.n_tokens for batch in simulation.batches for part in batch) == 203 + 8 * 3


def test_a_prompt_begins_while_the_lane_of_its_alora_is_filled() -> None:
    """The tokens before an aLoRA's invocation are computed before its lane is filled."""
    limits = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=2, n_batch=64, step_budget_ms=250)
    places = Lanes(N_LANES)
    scheduler = Scheduler(limits, places, Prefixes(limits.n_kv_cells, range(2, 4)))
    one = Sequence(request(under=blend("a")), list(range(20)), limits.n_ctx, Coverage(blend("a"), 15))
    scheduler.add(one)
    scheduler.admit()
    (part,) = scheduler.schedule(8)
    assert part == BatchPart(one, 15)
    scheduler.computed(one, part.n_tokens)
    assert scheduler.schedule(8) == []
    (fill,) = places.take_fills()
    places.filled(fill.lane_id)
    assert scheduler.schedule(8) == [BatchPart(one, 5)]
