"""The digest of a set of adapters: by it servers that should have the same adapters are compared."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from runtime.adapters.life import USABLE, AdapterState
from runtime.adapters.views import AdapterView, NewAdapter, Source, set_digest

A, B = "a" * 64, "b" * 64


def views(contents: Mapping[str, str], box: str = "first") -> list[AdapterView]:
    """Usable adapters by name and content, with the ids and dates of one server."""
    born = datetime(2026, 1, 1 + len(box), tzinfo=UTC)
    return [
        AdapterView(NewAdapter(f"{box} {name}", name, Source.FOLDER, born), AdapterState.READY, "", born, digest)
        for name, digest in contents.items()
    ]


def test_it_is_the_digest_of_a_lock_file() -> None:
    """The digest is that of lines ``SHA256  NAME`` sorted by name, so that it can be made without a server."""
    lines = f"{B}  pirate\n{A}  shout\n"
    assert set_digest(views({"shout": A, "pirate": B})) == hashlib.sha256(lines.encode()).hexdigest()


def test_servers_with_the_same_adapters_agree() -> None:
    """Order, ids, dates, uses and the way a name's accents are composed make no difference."""
    first = views({"pirate": A, "caf\u00e9": B})
    second = views({"cafe\u0301": B, "pirate": A}, "second")
    used = [replace(view, n_uses=7, is_pinned=True) for view in second]
    assert set_digest(first) == set_digest(used)


@pytest.mark.parametrize(
    "others",
    [{}, {"pirate": A}, {"pirate": B, "shout": B}, {"pirate": B, "shout": A}, {"pirate": A, "Shout": B}],
    ids=["none", "one is missing", "one is replaced", "two are exchanged", "one has another name"],
)
def test_servers_with_other_adapters_differ(others: Mapping[str, str]) -> None:
    """A missing, replaced, exchanged or renamed adapter changes the digest."""
    assert set_digest(views(others)) != set_digest(views({"pirate": A, "shout": B}))


@pytest.mark.parametrize("state", AdapterState)
def test_only_usable_adapters_count(state: AdapterState) -> None:
    """An adapter that requests cannot name is left out of the digest."""
    [pirate, shout] = views({"pirate": A, "shout": B})
    counted = [pirate, shout] if state in USABLE else [pirate]
    assert set_digest([pirate, replace(shout, state=state)]) == set_digest(counted)
