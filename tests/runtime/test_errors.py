"""Errors are distinguished by class, and cross the pipe by their code."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import errors


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every class stands in the docstring's drawing, below its parent."""
    drawn = [line.replace("│", " ").replace("├──", "   ").replace("└──", "   ") for line in errors.__doc__.splitlines()]
    depths = {line.split()[0]: len(line) - len(line.lstrip()) for line in drawn if line.strip()}
    for kind in errors.BY_CODE.values():
        assert kind.__name__ in depths
        if kind is not errors.GemlaneError:
            assert kind.__base__ is not None
            assert depths[kind.__name__] - depths[kind.__base__.__name__] == 4


def test_codes_are_unique() -> None:
    """No two classes share a code."""
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert len(errors.BY_CODE) == len(names)


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: kind.__name__)
def test_an_error_crosses_the_pipe_as_its_class(kind: type[errors.GemlaneError]) -> None:
    """Code and message give back the same class with the same message."""
    error = errors.from_code(kind.code, "what came")
    assert type(error) is kind
    assert str(error) == "what came"


def test_an_unknown_code_is_the_root() -> None:
    """A code that the server does not know becomes the root class, so that a newer engine is understood."""
    assert type(errors.from_code("from_the_future", "x")) is errors.GemlaneError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/srv/models/base.gguf: no tensors", "base.gguf: no tensors"),
        ("/srv/models/base.gguf/a.json is missing in '/srv/models/base.gguf'", "a.json is missing in 'base.gguf'"),
        ("/srv/cache and ./x. stay", "/srv/cache and ./x. stay"),
    ],
)
def test_a_message_for_clients_has_no_folders(message: str, shown: str) -> None:
    """Paths become names; a path without a name, as an empty setting gives, changes nothing."""
    assert errors.without_folders(message, Path("/srv/models/base.gguf"), Path(), Path("/")) == shown
