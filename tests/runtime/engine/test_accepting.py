"""What is refused before a request waits, and that a refusal leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from runtime.engine.accepting import Accepting
from runtime.engine.adapters.protocol import Adapters
from runtime.engine.adapters.users import AdapterUsers
from runtime.engine.coverage import BASE_COVERAGE, Coverage
from runtime.errors import ContextExceeded, IncompatibleAdapter, InvalidParameter
from runtime.generation import Blend, Prompt, TokenBias
from runtime.llama.model import Model
from tests.runtime.engine.values import GREEDY, N_CTX, blend, request

A = "a" * 64


class PlainModel:
    """A vocabulary of 100 tokens; a byte is a token, and a prompt is given as token ids."""

    n_vocab = 100

    def min_tokens(self, prompt: Prompt) -> int:
        """Return the number of token ids."""
        return len(prompt.tokens)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Return the token ids, with one for ``<bos>`` in front."""
        return [2, *prompt.tokens]

    def tokenize_bytes(self, text: bytes) -> list[int]:
        """Return the bytes."""
        return list(text)


class PairlessAdapters:
    """Adapters that cannot be applied together; each is invoked by the tokens 5 and 6."""

    def check(self, under: Blend) -> tuple[int, ...]:
        """Return the invocation sequence; refuse two adapters."""
        if len(under.members) > 1:
            raise IncompatibleAdapter("not together")
        return (5, 6) if under.members else ()


@pytest.fixture
def users() -> AdapterUsers:
    """The adapters a and b are known, and have no user."""
    users = AdapterUsers()
    users.put(A)
    users.put("b" * 64)
    return users


@pytest.fixture
def accepting(users: AdapterUsers) -> Accepting:
    """What accepts requests for the plain model."""
    return Accepting(cast("Model", PlainModel()), cast("Adapters", PairlessAdapters()), users, N_CTX)


def prompt(*tokens: int) -> Prompt:
    """Return a prompt of token ids."""
    return Prompt((), tokens=tokens)


def test_the_adapters_apply_from_their_invocation_on_and_have_a_user(accepting: Accepting, users: AdapterUsers) -> None:
    """A sequence runs under its blend from the invocation sequence on, and counts as a user of the adapters."""
    sequence = accepting.accept(replace(request(under=blend("a")), prompt=prompt(1, 5, 6)))
    assert (sequence.tokens, sequence.coverage) == ([2, 1, 5, 6], Coverage(blend("a"), 2))
    assert not users.remove(A)
    assert users.release(blend("a")) == [A]


def test_adapters_that_are_refused_have_no_user(accepting: Accepting, users: AdapterUsers) -> None:
    """A request whose adapters cannot be applied together does not keep them from being removed."""
    with pytest.raises(IncompatibleAdapter, match="not together"):
        accepting.accept(request(under=blend("a", "b")))
    assert users.remove(A)


@pytest.mark.parametrize(("n_tokens", "counted"), [(N_CTX - 1, f"{N_CTX}"), (N_CTX, f"at least {N_CTX}")])
def test_a_prompt_that_leaves_no_room_is_refused(accepting: Accepting, n_tokens: int, counted: str) -> None:
    """The error for a prompt that fills the context says how many tokens it has, and how many would fit."""
    with pytest.raises(ContextExceeded, match=f"has {counted} tokens; at most {N_CTX - 1} leave room"):
        accepting.accept(replace(request(under=blend("a")), prompt=prompt(*[7] * n_tokens)))


def test_a_bias_for_a_token_outside_of_the_vocabulary_is_refused(accepting: Accepting) -> None:
    """The last token of the vocabulary may have a bias; the error for one beyond it names the range."""
    biased = [replace(request(), sampling=replace(GREEDY, biases=(TokenBias(token, 1.0),))) for token in (99, 100)]
    assert accepting.accept(biased[0]).coverage == BASE_COVERAGE
    with pytest.raises(InvalidParameter, match=r"outside of 0\.\.99"):
        accepting.accept(biased[1])


def test_a_prediction_is_read_as_far_as_the_context_could_hold_it(accepting: Accepting) -> None:
    """Eight characters of a prediction are tokenised for each token of the context, and no more."""
    sequence = accepting.accept(replace(request(), prediction="x" * 10_000))
    assert sequence.guess == (ord("x"),) * 8 * N_CTX
