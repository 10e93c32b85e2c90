"""The table of an adapter's life: every pair of states is either a legal move or an error."""

from __future__ import annotations

import itertools

import pytest

from runtime.adapters.life import MOVES, USABLE, AdapterState, IllegalAdapterMoveError, check_move

LEGAL = {
    ("awaiting", "converting"),
    ("awaiting", "refused"),
    ("awaiting", "retiring"),
    ("converting", "checked"),
    ("converting", "refused"),
    ("converting", "retiring"),
    ("checked", "offered"),
    ("checked", "retiring"),
    ("offered", "checked"),
    ("offered", "ready"),
    ("offered", "refused"),
    ("offered", "retiring"),
    ("ready", "offered"),
    ("ready", "retiring"),
    ("refused", "offered"),
    ("refused", "retiring"),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(AdapterState, AdapterState)))
def test_every_pair_of_states(before: AdapterState, after: AdapterState) -> None:
    """A move is legal if it is drawn in the module's picture; any other is an error."""
    if (before.value, after.value) in LEGAL:
        check_move(before, after)
    else:
        with pytest.raises(IllegalAdapterMoveError, match=f"from {before} to {after}"):
            check_move(before, after)


def test_every_state_but_the_last_can_retire() -> None:
    """An adapter can be removed at any time, and nothing follows on retiring."""
    assert all(AdapterState.RETIRING in MOVES[state] for state in AdapterState if state is not AdapterState.RETIRING)
    assert MOVES[AdapterState.RETIRING] == frozenset()


def test_requests_may_name_what_the_engine_gets_before_them() -> None:
    """Checked, offered and ready adapters are sent to the engine before a request is."""
    assert {AdapterState.CHECKED, AdapterState.OFFERED, AdapterState.READY} == USABLE
