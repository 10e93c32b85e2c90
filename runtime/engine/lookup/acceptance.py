"""How often the drafts of one sequence were accepted lately, and how long a miss stops them. Pure."""

from __future__ import annotations

# Where nothing is known, every second token is expected to be accepted: as if one of two had been.
_EXPECTED_TRIED, _EXPECTED_RIGHT = 2.0, 1.0
# What is known fades by this factor a step: after some fifty steps without a draft, another one is worth a trial.
_FADING = 0.98
# Steps without a draft after one of which no token was accepted; doubled by each further one.
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 256


class Acceptance:
    """The estimate for the next draft."""

    def __init__(self) -> None:
        self._n_tried = 0.0
        self._n_accepted = 0.0
        self._pause = 0
        self._n_left = 0

    def probability(self, n_agreeing: int = 0) -> float:
        """That a drafted token is accepted if those before it are; more than 0, less than 1.

        Args:
            n_agreeing: tokens that came as the passage has them that the draft continues. As far as fewer tokens were
                drafted lately, each counts as an accepted one.
        """
        n_more = max(0.0, n_agreeing - self._n_tried)
        return (self._n_accepted + n_more + _EXPECTED_RIGHT) / (self._n_tried + n_more + _EXPECTED_TRIED)

    def step(self) -> bool:
        """Begin the next step; return whether it may have a draft."""
        self._n_tried *= _FADING
        self._n_accepted *= _FADING
        self._n_left = max(0, self._n_left - 1)
        return not self._n_left

    def refused(self) -> None:
        """Note that the step had no use for a draft; the next few steps will have none either."""
        self._n_left = _FIRST_PAUSE

    def verified(self, n_drafted: int, n_accepted: int) -> None:
        """Learn from a draft; the tokens after the first rejected one tell nothing."""
        self._n_tried += n_accepted + (n_accepted < n_drafted)
        self._n_accepted += n_accepted
        self._pause = 0 if n_accepted else min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        self._n_left = self._pause
