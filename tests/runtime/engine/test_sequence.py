"""The state table is all there is: every other move is an error that changes nothing."""

from __future__ import annotations

import itertools

import pytest

from runtime.engine.sequence import MOVES, IllegalMoveError, Sequence, State
from tests.runtime.engine.values import N_CTX, request, sequence

PATHS = {
    State.WAITING: (),
    State.PREFILL: (State.PREFILL,),
    State.DECODE: (State.PREFILL, State.DECODE),
    State.FINISHED: (State.PREFILL, State.DECODE, State.FINISHED),
    State.CANCELLED: (State.CANCELLED,),
    State.FAILED: (State.FAILED,),
}


@pytest.mark.parametrize(("start", "end"), list(itertools.product(State, State)), ids=lambda state: state.name)
def test_moves_are_those_of_the_table(start: State, end: State) -> None:
    """From every state, every move that the table does not allow is an error and changes nothing."""
    one = sequence()
    for state in PATHS[start]:
        one.move(state)
    if end in MOVES[start]:
        one.move(end)
        assert one.state is end
    else:
        with pytest.raises(IllegalMoveError):
            one.move(end)
        assert one.state is start


def test_the_context_bounds_an_answer() -> None:
    """Prompt and answer together fill the context window at most."""
    assert sequence(n_prompt=N_CTX - 3, max_tokens=100).n_answer_max == 3
    assert sequence(n_prompt=8, max_tokens=100).n_answer_max == N_CTX - 8


def test_the_last_token_of_an_answer_needs_no_cell() -> None:
    """The last token of an answer is chosen and sent, and never goes through the model."""
    assert sequence(n_prompt=8, max_tokens=4).n_cells_max == 11
    assert sequence(n_prompt=8, max_tokens=0).n_cells_max == 8


@pytest.mark.parametrize("n_prompt", [0, N_CTX, N_CTX + 1])
def test_a_prompt_without_room_is_no_sequence(n_prompt: int) -> None:
    """A prompt that is empty or fills the context window is refused as a mistake of the caller."""
    with pytest.raises(ValueError, match="leaves no room"):
        Sequence(request(), list(range(n_prompt)), N_CTX)
