"""Carries hot prefixes between the cache and the disk, while nothing else runs."""

from __future__ import annotations

from runtime.engine.cache.disk import PrefixStore, SavedPrefix
from runtime.engine.cache.prefixes import Hot, Prefixes
from runtime.llama.context import Context

# llama.cpp saves and restores only ids that batches may have. Id 0 is free while no sequence runs.
_TRANSFER_ID = 0


class PrefixSaver:
    """Restores at the start; saves one hot prefix at a time when the engine rests. One thread, the engine's."""

    def __init__(self, context: Context, prefixes: Prefixes, store: PrefixStore) -> None:
        self._context = context
        self._prefixes = prefixes
        self._store = store
        self._tried: set[Hot] = set()
        """Hot prefixes that were saved or refused: a folder too small for all of them is written only once."""

    def restore(self) -> int:
        """Fill up to half of the cache from the disk; return how many prefixes were restored."""
        n_restored = 0
        for saved in self._store.load():
            kept_id = self._prefixes.adopt(saved.coverage, saved.tokens)
            if kept_id is None:
                break
            if self._context.load_state(_TRANSFER_ID, saved.state) == len(saved.tokens):
                self._context.share(_TRANSFER_ID, kept_id, len(saved.tokens))
                n_restored += 1
            else:
                self._prefixes.disown(kept_id)
            self._context.remove(_TRANSFER_ID)
        return n_restored

    def save_one(self) -> bool:
        """Save the hottest prefix that is not on disk and was not tried; return False if there is none."""
        hottest_first = self._prefixes.hot
        self._tried.intersection_update(hottest_first)
        for hot in reversed(hottest_first):
            self._store.touch(hot.coverage, hot.tokens)
        for hot in hottest_first:
            if hot not in self._tried and not self._store.has(hot.coverage, hot.tokens):
                self._save(hot)
                return True
        return False

    def _save(self, hot: Hot) -> None:
        """Save a prefix, if the store takes it."""
        self._tried.add(hot)
        self._context.share(hot.kept_id, _TRANSFER_ID, len(hot.tokens))
        state = self._context.save_state(_TRANSFER_ID)
        self._context.remove(_TRANSFER_ID)
        self._store.save(SavedPrefix(hot.coverage, hot.tokens, state))
