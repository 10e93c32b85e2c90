"""The life of one generation of an adapter: a table of states and of the moves between them.

::

    AWAITING ──> CONVERTING ──> CHECKED <──> OFFERED <──> READY
        │             │                        ^ │
        │             │                        │ v
        └─────────────┴──────────────────────> REFUSED

Every state may go to RETIRING, which is the last. An engine that becomes ready is OFFERED everything again, what an
earlier engine REFUSED included. OFFERED falls back to CHECKED when the engine ends before it has answered.

A generation is one content under one name. An adapter that is replaced has two of them for a while.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class AdapterState(StrEnum):
    """Where a generation stands."""

    AWAITING = "awaiting"
    """Its name is known; not all of its files are there."""
    CONVERTING = "converting"
    """Its files are being read, checked and, unless they are a GGUF already, converted."""
    CHECKED = "checked"
    """Its GGUF keeps every rule; no engine knows it yet."""
    OFFERED = "offered"
    """It was sent to the engine, which has not answered yet."""
    READY = "ready"
    """The engine has taken it."""
    REFUSED = "refused"
    """A check or the engine refused it; the reason is kept."""
    RETIRING = "retiring"
    """No new request can name it; requests that run under it finish."""


MOVES: Final[dict[AdapterState, frozenset[AdapterState]]] = {
    AdapterState.AWAITING: frozenset({AdapterState.CONVERTING, AdapterState.REFUSED, AdapterState.RETIRING}),
    AdapterState.CONVERTING: frozenset({AdapterState.CHECKED, AdapterState.REFUSED, AdapterState.RETIRING}),
    AdapterState.CHECKED: frozenset({AdapterState.OFFERED, AdapterState.RETIRING}),
    AdapterState.OFFERED: frozenset(
        {AdapterState.CHECKED, AdapterState.READY, AdapterState.REFUSED, AdapterState.RETIRING}
    ),
    AdapterState.READY: frozenset({AdapterState.OFFERED, AdapterState.RETIRING}),
    AdapterState.REFUSED: frozenset({AdapterState.OFFERED, AdapterState.RETIRING}),
    AdapterState.RETIRING: frozenset(),
}

USABLE: Final = frozenset({AdapterState.CHECKED, AdapterState.OFFERED, AdapterState.READY})
"""States in which requests may name an adapter: the engine is sent the adapter before it is sent the request."""


class IllegalAdapterMoveError(Exception):
    """A generation was moved against the table: a mistake of the store's own."""


def check_move(before: AdapterState, after: AdapterState) -> None:
    """Check a move.

    Raises:
        IllegalAdapterMoveError: the table does not have the move from ``before`` to ``after``.
    """
    if after not in MOVES[before]:
        raise IllegalAdapterMoveError(f"an adapter cannot go from {before} to {after}")
