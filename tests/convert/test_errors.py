"""The tree of errors is as its docstring draws it, and every message is one printable line."""

import re

from convert import errors
from convert.errors import ConvertError

CLASSES = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ConvertError)]


def test_the_docstring_draws_every_class() -> None:
    """The tree in the module's docstring shows every class, and only classes that exist."""
    drawn = set(re.findall(r"[├└]── (\w+)|^    (ConvertError)$", errors.__doc__ or "", re.MULTILINE))
    assert {"".join(pair) for pair in drawn} == {one.__name__ for one in CLASSES}


def test_codes_are_unique() -> None:
    """Each class has a code of its own."""
    assert len({one.code for one in CLASSES}) == len(CLASSES)


def test_messages_are_one_printable_line() -> None:
    """Line breaks, control characters and lone surrogates from untrusted files are escaped."""
    text = str(ConvertError("a\nb\x1b[31m\ud800 ä漢"))
    assert text == "a\\nb\\x1b[31m\\ud800 ä漢"
    assert text.encode()
