"""Filler tokens: a batch is filled up to whole groups of tokens where that is cheaper than the tokens left over.

llama.cpp's repacked matrices take sixteen rows at a time, then four, and the remaining rows one by one (see `pace`).
Measured on two cores with 2B in Q4_0, a step of 1, 2, 3 or 4 tokens takes 136, 205, 256 or 132 ms; with 7B in Q4_K_M
380, 615, 781 or 636 ms, and 14 or 16 tokens of a prompt take 1,674 or 1,275 ms. Beside 32 more tokens of 2B, 3, 4, 7,
8, 11, 12, 15 or 16 tokens take 104, 79, 175, 154, 254, 234, 330 or 258 ms; 11, 12, 15, 16, 19 or 20 tokens of 7B take
1,247, 1,223, 1,510, 1,175, 1,612 or 1,550 ms. A filler token has a sequence of its own and is removed after the batch,
so no answer sees it.
"""

from __future__ import annotations

from statistics import median

from runtime.engine.pace import BLOCK, GROUP
from runtime.engine.scheduler import EngineLimits
from runtime.generation import Blend
from runtime.llama.context import Chunk

# The first token of every vocabulary, Gemma's <pad>.
_TOKEN = 0

# A filled step has to be this much shorter: less is within the noise of what steps cost.
_MIN_GAIN = 0.03
# Both kinds of steps are tried in turns, so that a machine that grows slower meanwhile slows both; two steps at a time,
# whose shorter one counts, since a step of another width than the one before builds a graph.
_N_TURN = 2
_N_TRIALS = 8 * _N_TURN
# Steps after which both kinds are tried again: the machine may have been busy.
_MAX_AGE = 500
# Filled steps this much longer than the plain ones before them are not tried again for now.
_MAX_LOSS = 0.1
# Widths that are tried. One token beside a group costs less than the group that it would become.
_TRIED = (1, 2, 3, 6, 7)


class _Trial:
    """The steps of one width, tried without filler and with it."""

    def __init__(self) -> None:
        self._times_ms: list[float] = []
        self._n_left = _MAX_AGE
        self._is_decided = False
        self.is_filled = False
        """Whether the next step should be filled."""

    def observe(self, elapsed_ms: float, *, is_filled: bool) -> None:
        """Learn from a step; one of the other kind than asked for tells nothing."""
        self._n_left -= 1
        if not self._n_left:
            self._times_ms, self._n_left, self._is_decided, self.is_filled = [], _MAX_AGE, False, False
        elif is_filled == self.is_filled and not self._is_decided:
            self._times_ms.append(elapsed_ms)
            n_turns = len(self._times_ms) // _N_TURN
            self._is_decided = len(self._times_ms) == _N_TRIALS or self._is_longer()
            self.is_filled = self._is_shorter() if self._is_decided else n_turns % 2 == 1

    def _turns_ms(self) -> list[float]:
        """The shortest step of each whole turn, plain and filled ones by turns."""
        n_steps = len(self._times_ms) // _N_TURN * _N_TURN
        return [min(self._times_ms[start : start + _N_TURN]) for start in range(0, n_steps, _N_TURN)]

    def _is_longer(self) -> bool:
        turns = self._turns_ms()
        return bool(turns) and len(turns) % 2 == 0 and turns[-1] > (1 + _MAX_LOSS) * turns[-2]

    def _is_shorter(self) -> bool:
        turns = self._turns_ms()
        return median(turns[1::2]) <= (1 - _MIN_GAIN) * median(turns[::2])


class Filling:
    """How many filler tokens a batch gets. Steps narrower than two groups are measured both ways."""

    def __init__(self, limits: EngineLimits, *, is_possible: bool) -> None:
        """Start without measurements.

        Args:
            limits: of the engine.
            is_possible: whether most weights are in llama.cpp's repacked form, and the context has a sequence id more
                than run at once.
        """
        self._limits = limits
        self._is_possible = is_possible
        self._trials = {n_tokens: _Trial() for n_tokens in _TRIED}
        self.sequence_id = limits.n_parallel
        """Of the filler tokens: the id after those of running sequences. The caller removes it after the batch."""

    def fill_up(self, chunks: list[tuple[Chunk, Blend]], n_cells_free: int) -> int:
        """Add filler tokens to a batch where they make it cheaper; return how many.

        They run under the last chunk's blend, so that a batch of one blend stays one.

        Args:
            chunks: of the batch; the filler is added at its end.
            n_cells_free: cells that the batch and its filler may take.
        """
        n_tokens = sum(len(chunk.tokens) for chunk, _ in chunks)
        n_outputs = sum(chunk.n_outputs for chunk, _ in chunks)
        n_filler = self._n_filler(n_tokens)
        if not n_filler or n_tokens + n_filler > min(self._limits.n_batch, n_cells_free):
            return 0
        # The last matrices are multiplied with the rows alone whose logits are wanted.
        has_room = n_outputs + n_filler <= self._limits.n_parallel + self._limits.n_scored
        wants_logits = has_room and self._n_filler(n_outputs) == n_filler
        filler = Chunk(self.sequence_id, [_TOKEN] * n_filler, 0, wants_logits, wants_all_logits=wants_logits)
        chunks.append((filler, chunks[-1][1]))
        return n_filler

    def _n_filler(self, n_rows: int) -> int:
        """Rows that make these a whole group, or whole blocks; 0 if they cost more than they save."""
        if not self._is_possible:
            return 0
        if n_rows < 2 * GROUP:
            return -n_rows % GROUP if n_rows in self._trials and self._trials[n_rows].is_filled else 0
        to_block, to_group = -n_rows % BLOCK, -n_rows % GROUP
        return to_block if to_block < GROUP else to_group if to_group == 1 else 0

    def observe(self, n_tokens: int, n_filler: int, elapsed_ms: float) -> None:
        """Learn from a batch of ``n_tokens``, all of sequences in decode, and ``n_filler`` filler tokens."""
        if self._is_possible and n_tokens in self._trials:
            self._trials[n_tokens].observe(elapsed_ms, is_filled=n_filler > 0)
