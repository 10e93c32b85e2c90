"""Adapters that are removed while they are used go with their last user."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engine.adapters.users import AdapterUsers
from runtime.errors import UnknownAdapter
from tests.runtime.engine.values import blend

A, B = "a" * 64, "b" * 64
PATH = Path("adapter.gguf")


def test_an_unknown_adapter_is_an_error_and_counts_nothing() -> None:
    """Also when it is only one of two."""
    shelf = AdapterUsers()
    shelf.put(A, PATH)
    with pytest.raises(UnknownAdapter, match="bbbbbbbbbbbb"):
        shelf.hold(blend("a", "b"))
    assert shelf.remove(A)


def test_a_used_adapter_goes_with_its_last_user() -> None:
    """No new request finds it, those that hold it keep it."""
    shelf = AdapterUsers()
    shelf.put(A, PATH)
    shelf.hold(blend("a"))
    shelf.hold(blend("a"))
    assert not shelf.remove(A)
    with pytest.raises(UnknownAdapter):
        shelf.hold(blend("a"))
    assert shelf.release(blend("a")) == []
    assert shelf.release(blend("a")) == [A]
    assert not shelf.remove(A)


def test_an_adapter_that_comes_back_stays() -> None:
    """Removed and added again while in use: its last user does not take it along."""
    shelf = AdapterUsers()
    shelf.put(A, PATH)
    shelf.hold(blend("a"))
    shelf.remove(A)
    shelf.put(A, PATH)
    assert shelf.release(blend("a")) == []
    shelf.hold(blend("a"))


def test_removing_what_is_not_there_is_nothing() -> None:
    """The parent may tell twice."""
    assert not AdapterUsers().remove(B)
