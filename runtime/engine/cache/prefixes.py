"""Which prefixes are in the key-value cache, and which sequences may use them. Pure policy on integers.

A sequence that starts shares the longest prefix of its prompt that the cache holds under the same blends, from a
running sequence or a kept one; no cell is copied. When a sequence ends, its prompt and answer stay as a kept prefix
until the cells or the id are needed; then the least recently used prefix is evicted first. Cells that an admitted
sequence may still need are reserved, and kept prefixes are evicted for them.

The changes that llama.cpp has to make are returned as operations, in order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.engine.cache.cells import Cells
from runtime.engine.coverage import Coverage

# Shorter prefixes are not worth an id: every Gemma prompt begins with the same four tokens.
_MIN_KEPT = 16
# A prompt waits for a running sequence that computes the same prefix if that saves at least this many tokens.
_WORTH_WAITING = 64
# Shorter prefixes are computed faster than they are read from a disk.
_MIN_HOT = 64
# Cells that kept prefixes leave free, for the filler of a batch.
_N_SPARE = 3
_TOKEN_BYTES = array("i").itemsize


@dataclass(frozen=True, slots=True)
class Share:
    """Let sequence ``target_id`` hold the first ``n_tokens`` tokens of ``source_id`` too."""

    source_id: int
    target_id: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget all tokens of a sequence."""

    sequence_id: int


Operation = Share | Drop


@dataclass(slots=True, eq=False)
class _Holder:
    """A sequence in the cache: running, or kept for its prefix."""

    coverage: Coverage
    key: bytes
    """The tokens that others may share: the prompt of a running sequence, computed or not; all tokens of a kept one."""
    tokens: Sequence[int]
    """The prompt and the answer so far of a running sequence; all tokens of a kept one."""
    n_cells_max: int
    """The most cells it can hold."""
    used_at: int = 0
    n_hot: int = 0
    """The most tokens that another sequence has taken over from it."""


@dataclass(frozen=True, slots=True)
class Hot:
    """A kept prefix that another sequence has used."""

    kept_id: int
    coverage: Coverage
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Coming:
    """A running sequence that is computing tokens which another one waits for."""

    sequence_id: int
    holder: _Holder
    n_tokens: int


@dataclass(frozen=True, slots=True)
class _Match:
    holder_id: int
    n_tokens: int


_NOTHING = _Match(-1, 0)


class Prefixes:
    """Owns the cells. The scheduler gives running sequences their ids; kept prefixes have ids from ``kept_ids``."""

    def __init__(self, n_cells: int, kept_ids: range) -> None:
        self._cells = Cells(n_cells)
        self._running: dict[int, _Holder] = {}
        self._kept: dict[int, _Holder] = {}
        self._free_ids = list(kept_ids)
        self._operations: list[Operation] = []
        self._now = 0

    @property
    def n_cells_running(self) -> int:
        """Cells that running sequences hold."""
        return self._cells.held_by_all(self._running)

    @property
    def n_cells_kept(self) -> int:
        """Cells that only kept prefixes hold."""
        return self._cells.n_used - self.n_cells_running

    @property
    def n_cells_free(self) -> int:
        """Cells that nothing is in now; some may be reserved."""
        return self._cells.n_cells - self._cells.n_used

    def find_coming(self, coverage: Coverage, prompt: Sequence[int]) -> Coming | None:
        """A running sequence that is computing a long prefix of this prompt, or None."""
        key = _key(prompt)
        there = self._find(coverage, key).n_tokens
        for holder_id, holder in self._running.items():
            n_shared = min(coverage.n_shared(holder.coverage), len(prompt) - 1)
            if n_shared >= there + _WORTH_WAITING and self._cells.held_by(holder_id) < _n_tokens(holder.key):
                n_common = min(_n_common(key, holder.key), n_shared)
                if n_common >= there + _WORTH_WAITING:
                    return Coming(holder_id, holder, n_common)
        return None

    def is_coming(self, coming: Coming) -> bool:
        """Whether the running sequence is still computing the awaited tokens."""
        is_running = self._running.get(coming.sequence_id) is coming.holder
        return is_running and self._cells.held_by(coming.sequence_id) < coming.n_tokens

    def has_room(self, coverage: Coverage, prompt: Sequence[int], n_cells_max: int, *, is_fresh: bool = False) -> bool:
        """Whether all the cells that a sequence can need are free once kept prefixes are evicted."""
        match = _NOTHING if is_fresh else self._find(coverage, _key(prompt))
        n_held = self._cells.held_with_prefix(self._running, match.holder_id, match.n_tokens)
        return n_held + self._n_reserved + n_cells_max - match.n_tokens <= self._cells.n_cells

    @property
    def _n_reserved(self) -> int:
        """Cells that are reserved for running sequences."""
        return sum(one.n_cells_max - self._cells.held_by(holder_id) for holder_id, one in self._running.items())

    def begin(
        self, sequence_id: int, coverage: Coverage, tokens: Sequence[int], n_cells_max: int, *, is_fresh: bool = False
    ) -> int:
        """Start a sequence for which there is room; return how many tokens of its prompt are in the cache.

        Args:
            sequence_id: its id while it runs.
            coverage: which of its tokens run under which blend.
            tokens: its prompt; a list that grows with its answer.
            n_cells_max: the most cells it can hold.
            is_fresh: whether it takes nothing over, since every token of its prompt has to be computed.
        """
        key = _key(tokens)
        match = _NOTHING if is_fresh else self._find(coverage, key)
        self._running[sequence_id] = _Holder(coverage, key, tokens, n_cells_max)
        if match.n_tokens:
            self._share(match.holder_id, sequence_id, match.n_tokens)
            source = self._kept.get(match.holder_id) or self._running[match.holder_id]
            source.n_hot = max(source.n_hot, match.n_tokens)
        self._make_way()
        return match.n_tokens

    def grow(self, sequence_id: int, n_tokens: int) -> None:
        """Note that a running sequence's next tokens went into the cache."""
        self._cells.grow(sequence_id, n_tokens)

    def end(self, sequence_id: int, *, is_kept: bool) -> None:
        """End a running sequence; keep what it computed if it is long enough and ``is_kept``."""
        holder = self._running.pop(sequence_id)
        n_tokens = self._cells.held_by(sequence_id)
        if is_kept and n_tokens >= _MIN_KEPT:
            self._keep(sequence_id, holder, tuple(holder.tokens[:n_tokens]))
        self._drop(sequence_id)

    def _keep(self, sequence_id: int, holder: _Holder, tokens: tuple[int, ...]) -> None:
        """Keep the tokens under an id of their own, in place of kept prefixes that they begin with."""
        coverage, key, n_hot = holder.coverage, _key(tokens), min(holder.n_hot, len(tokens))
        for kept_id, kept in list(self._kept.items()):
            n_shared = coverage.n_shared(kept.coverage)
            if n_shared >= len(tokens) and kept.key.startswith(key):
                kept.n_hot = max(kept.n_hot, n_hot)
                self._touch(kept)
                return
            if n_shared >= len(kept.tokens) and key.startswith(kept.key):
                n_hot = max(n_hot, kept.n_hot)
                self._evict(kept_id)
        if not self._free_ids:
            if not self._kept:
                return
            self._evict(self._least_recently_used())
        kept_id = self._free_ids.pop()
        self._share(sequence_id, kept_id, len(tokens))
        self._kept[kept_id] = _Holder(coverage, key, tokens, len(tokens), n_hot=n_hot)
        self._touch(self._kept[kept_id])

    @property
    def hot(self) -> list[Hot]:
        """The kept prefixes that other sequences have used, as far as they did, most recently used first."""
        kept = sorted(self._kept.items(), key=lambda item: item[1].used_at, reverse=True)
        return [
            Hot(kept_id, holder.coverage.of_first(holder.n_hot), tuple(holder.tokens[: holder.n_hot]))
            for kept_id, holder in kept
            if holder.n_hot >= _MIN_HOT
        ]

    def adopt(self, coverage: Coverage, tokens: tuple[int, ...]) -> int | None:
        """Add a prefix that is restored at the start; return its id, or None if half of the cache is full."""
        if not self._free_ids or self._cells.n_used + len(tokens) > self._cells.n_cells // 2:
            return None
        kept_id = self._free_ids.pop()
        self._cells.grow(kept_id, len(tokens))
        self._kept[kept_id] = _Holder(coverage, _key(tokens), tokens, len(tokens), n_hot=len(tokens))
        return kept_id

    def disown(self, kept_id: int) -> None:
        """Remove an adopted prefix that could not be restored."""
        self._evict(kept_id)

    def take_operations(self) -> list[Operation]:
        """Return the operations since the last call, in order."""
        operations, self._operations = self._operations, []
        return operations

    def _find(self, coverage: Coverage, key: bytes) -> _Match:
        """The longest computed prefix of a prompt, without its last token, whose logits are needed."""
        best = _NOTHING
        for holder_id, holder in (*self._kept.items(), *self._running.items()):
            n_there = min(self._cells.held_by(holder_id), _n_tokens(key) - 1, coverage.n_shared(holder.coverage))
            if n_there > best.n_tokens:
                n_tokens = min(_n_common(key, holder.key), n_there)
                if n_tokens > best.n_tokens:
                    best = _Match(holder_id, n_tokens)
        return best

    def _share(self, source_id: int, target_id: int, n_tokens: int) -> None:
        self._cells.share(source_id, target_id, n_tokens)
        self._operations.append(Share(source_id, target_id, n_tokens))
        if source_id in self._kept:
            self._touch(self._kept[source_id])

    def _make_way(self) -> None:
        """Evict kept prefixes until every reserved cell is free, and a few more if prefixes hold any."""
        n_wanted = self._n_reserved + _N_SPARE
        while self.n_cells_kept and self._cells.n_used + n_wanted > self._cells.n_cells:
            self._evict(self._least_recently_used())

    def _least_recently_used(self) -> int:
        return min(self._kept, key=lambda kept_id: self._kept[kept_id].used_at)

    def _evict(self, kept_id: int) -> None:
        del self._kept[kept_id]
        self._free_ids.append(kept_id)
        self._drop(kept_id)

    def _drop(self, sequence_id: int) -> None:
        self._cells.release(sequence_id)
        self._operations.append(Drop(sequence_id))

    def _touch(self, holder: _Holder) -> None:
        self._now += 1
        holder.used_at = self._now


def _key(tokens: Iterable[int]) -> bytes:
    """Tokens as bytes, which are compared fast."""
    return array("i", tokens).tobytes()


def _n_tokens(key: bytes) -> int:
    return len(key) // _TOKEN_BYTES


def _n_common(one: bytes, other: bytes) -> int:
    """The number of leading tokens that two keys have in common."""
    low, high = 0, min(len(one), len(other)) // _TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[: middle * _TOKEN_BYTES]):
            low = middle
        else:
            high = middle - 1
    return low
