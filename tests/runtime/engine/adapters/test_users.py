"""Adapters that are removed while they are used go with their last user."""

from __future__ import annotations

import pytest

from runtime.engine.adapters.users import AdapterUsers
from runtime.errors import AdapterChanged
from runtime.generation import Blend, BlendMember
from tests.runtime.engine.values import blend

A, B = "a" * 64, "b" * 64


def test_an_unknown_adapter_is_an_error_and_counts_nothing() -> None:
    """A blend with an unknown adapter is an error, also beside a known one, and counts no user."""
    users = AdapterUsers()
    users.put(A)
    with pytest.raises(AdapterChanged, match="bbbbbbbbbbbb"):
        users.hold(blend("a", "b"))
    assert users.remove(A)


def test_a_used_adapter_goes_with_its_last_user() -> None:
    """A removed adapter is not found by new requests, and its memory goes when its last sequence ends."""
    users = AdapterUsers()
    users.put(A)
    users.hold(blend("a"))
    users.hold(blend("a"))
    assert not users.remove(A)
    with pytest.raises(AdapterChanged):
        users.hold(blend("a"))
    assert users.release(blend("a")) == []
    assert users.release(blend("a")) == [A]
    assert not users.remove(A)


def test_an_adapter_that_comes_back_stays() -> None:
    """An adapter that is removed and added again while in use stays when its last user ends."""
    users = AdapterUsers()
    users.put(A)
    users.hold(blend("a"))
    users.remove(A)
    users.put(A)
    assert users.release(blend("a")) == []
    users.hold(blend("a"))


def test_removing_an_unknown_adapter_does_nothing() -> None:
    """The server may remove an adapter that this engine has refused."""
    assert not AdapterUsers().remove(B)


def test_a_removed_adapter_is_there_until_its_last_user_ends() -> None:
    """The engine reports a removal when the last user has ended, and not before."""
    users = AdapterUsers()
    users.put(A)
    users.hold(blend("a"))
    users.remove(A)
    assert (users.has(A), A in users, users.has(B)) == (True, False, False)
    users.release(blend("a"))
    assert not users.has(A)


def test_an_unknown_adapter_is_called_what_the_client_called_it() -> None:
    """The client's name travels with the blend and takes no part in comparing blends."""
    member = BlendMember(A, name="pirate")
    assert member == BlendMember(A)
    with pytest.raises(AdapterChanged, match=r"^adapter pirate was replaced or removed .* send the request again$"):
        AdapterUsers().hold(Blend((member,)))
