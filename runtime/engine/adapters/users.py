"""The adapters that the engine knows, and the sequences that use each. Pure bookkeeping on digests."""

from __future__ import annotations

from collections import Counter

from runtime.errors import AdapterChanged
from runtime.generation import Blend


class AdapterUsers:
    """Adapters by digest. An adapter that is removed while in use stays until its last sequence has ended."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._removed: set[str] = set()
        self._n_users: Counter[str] = Counter()

    def __contains__(self, digest: str) -> bool:
        return digest in self._known and digest not in self._removed

    def put(self, digest: str) -> None:
        """Make an adapter known, or known again."""
        self._known.add(digest)
        self._removed.discard(digest)

    def has(self, digest: str) -> bool:
        """Whether an adapter is known, or was removed and is still used."""
        return digest in self._known

    def remove(self, digest: str) -> bool:
        """Remove an adapter; return True if no sequence uses it, so that its memory can be freed now."""
        if digest not in self._known:
            return False
        self._removed.add(digest)
        return self._drop(digest)

    def hold(self, blend: Blend) -> None:
        """Count one more sequence under ``blend``.

        Raises:
            AdapterChanged: a member is not known; nothing has been counted.
        """
        for member in blend.members:
            if member.digest not in self:
                raise AdapterChanged(
                    f"adapter {member.shown_name} was replaced or removed while the request waited; "
                    "send the request again"
                )
        self._n_users.update(member.digest for member in blend.members)

    def release(self, blend: Blend) -> list[str]:
        """Count one sequence less; return the removed adapters that no sequence uses any more."""
        self._n_users.subtract(member.digest for member in blend.members)
        return [member.digest for member in blend.members if self._drop(member.digest)]

    def _drop(self, digest: str) -> bool:
        if digest not in self._removed or self._n_users[digest] > 0:
            return False
        self._removed.discard(digest)
        self._known.discard(digest)
        del self._n_users[digest]
        return True
