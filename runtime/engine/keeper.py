"""Carries hot prefixes between the cache and the disk, while nothing else runs."""

from __future__ import annotations

from runtime.engine.prefix_store import PrefixStore, SavedPrefix
from runtime.engine.prefixes import Hot, Prefixes
from runtime.llama.context import Context

# While no sequence runs, its id serves for going in and out: llama.cpp saves and restores only ids of batches.
_PASSAGE_ID = 0


class PrefixKeeper:
    """Restores at the start; saves one hot prefix at a time when the engine rests. One thread, the engine's."""

    def __init__(self, context: Context, prefixes: Prefixes, store: PrefixStore) -> None:
        self._context = context
        self._prefixes = prefixes
        self._store = store
        self._given_up: set[Hot] = set()

    def restore(self) -> int:
        """Fill the cache from disk as far as half of it goes; how many prefixes there are now."""
        n_restored = 0
        for saved in self._store.load():
            kept_id = self._prefixes.adopt(saved.blend, saved.tokens)
            if kept_id is None:
                break
            if self._context.load_state(_PASSAGE_ID, saved.state) == len(saved.tokens):
                self._context.share(_PASSAGE_ID, kept_id, len(saved.tokens))
                n_restored += 1
            else:
                self._prefixes.disown(kept_id)
            self._context.remove(_PASSAGE_ID)
        return n_restored

    def save_one(self) -> bool:
        """Save the hottest prefix that is not on disk yet; False if there is none."""
        for hot in self._prefixes.hot:
            if self._store.has(hot.blend, hot.tokens):
                self._store.touch(hot.blend, hot.tokens)
            elif hot not in self._given_up:
                self._save(hot)
                return True
        return False

    def _save(self, hot: Hot) -> None:
        """Save a prefix; one that the store would not take is not tried again."""
        self._context.share(hot.kept_id, _PASSAGE_ID, len(hot.tokens))
        state = self._context.save_state(_PASSAGE_ID)
        self._context.remove(_PASSAGE_ID)
        self._store.save(SavedPrefix(hot.blend, hot.tokens, state))
        if not self._store.has(hot.blend, hot.tokens):
            self._given_up.add(hot)
