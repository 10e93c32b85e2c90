"""The ``lora`` of a request: every form it may have, and every form it may not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.adapters.blend import MAX_TERMS, BlendTerm, blend_of, is_plain_name, parse_lora
from runtime.errors import InvalidRequest, UnknownAdapter
from runtime.generation import BASE, Blend, BlendMember

DIGESTS = {"a": "a" * 64, "b": "b" * 64, "same as a": "a" * 64}


@pytest.mark.parametrize(
    ("value", "terms"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("pirate", (BlendTerm("pirate"),)),
        ("pirate:0.7", (BlendTerm("pirate", 0.7),)),
        ("a:0.5+b:0.5", (BlendTerm("a", 0.5), BlendTerm("b", 0.5))),
        ("a+b:-.25+c:2.", (BlendTerm("a"), BlendTerm("b", -0.25), BlendTerm("c", 2.0))),
        ("a:1e-3", (BlendTerm("a", 0.001),)),
        ("a:0", (BlendTerm("a", 0.0),)),
        ("a:100+b:-100", (BlendTerm("a", 100.0), BlendTerm("b", -100.0))),
        (" my pirate ", (BlendTerm(" my pirate "),)),
        ([{"name": "a:b+c", "scale": 0.5}], (BlendTerm("a:b+c", 0.5),)),
        ([{"id": "x", "scale": 1}, {"name": "y"}], (BlendTerm("x"), BlendTerm("y"))),
        ([{"name": "x", "id": None, "scale": None}], (BlendTerm("x"),)),
    ],
    ids=str,
)
def test_every_form_is_read(value: Any, terms: tuple[BlendTerm, ...]) -> None:
    """A string with scales and plus signs, a list of objects, or nothing for the base model."""
    assert parse_lora(value) == terms


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "a string or a list"),
        (True, "a string or a list"),
        ({"name": "a"}, "a string or a list"),
        ("a+", "a name is missing"),
        ("+a", "a name is missing"),
        (":0.5", "a name is missing"),
        ("a:", "'' is not a scale"),
        ("a:b", "'b' is not a scale; a name that holds ':' or '+' needs the adapter's id, or a list"),
        ("a:nan", "'nan' is not a scale"),
        ("a:inf", "'inf' is not a scale"),
        ("a:-Infinity", "is not a scale"),
        ("a:1_0", "is not a scale"),
        ("a: 1", "is not a scale"),
        ("a:\u0661", "is not a scale"),
        ("a:0x1", "is not a scale"),
        ("a:" + "1" * 5000, "is not a scale"),
        ("a:0.5 b:0.5", "in a URL write + as %2B"),
        ("a:1e5", "between -100.0 and 100.0"),
        ("a:100.1", "between -100.0 and 100.0"),
        ("a:1e999", "between -100.0 and 100.0"),
        ("+".join("abcdefghijklmnopq"), "more than 16"),
        ([{"name": letter} for letter in "abcdefghijklmnopq"], "more than 16"),
        (["a"], "must be an object"),
        ([None], "must be an object"),
        ([{"name": "a", "weight": 1}], "must be an object"),
        ([{}], 'either a "name" or an "id"'),
        ([{"name": "a", "id": "b"}], 'either a "name" or an "id"'),
        ([{"name": 5}], 'either a "name" or an "id"'),
        ([{"id": 0}], 'either a "name" or an "id"'),
        ([{"name": ""}], 'either a "name" or an "id"'),
        ([{"name": "a", "scale": "1"}], "must be a number"),
        ([{"name": "a", "scale": True}], "must be a number"),
        ([{"name": "a", "scale": math.nan}], "between -100.0 and 100.0"),
        ([{"name": "a", "scale": math.inf}], "between -100.0 and 100.0"),
        ([{"name": "a", "scale": 10**400}], "between -100.0 and 100.0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_breaks_the_rules_is_refused_by_name(value: Any, words: str) -> None:
    """The message says what came or what is allowed, in at most a few hundred characters."""
    with pytest.raises(InvalidRequest) as caught:
        parse_lora(value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@given(st.text(max_size=300))
def test_any_text_is_terms_or_an_invalid_request(text: str) -> None:
    """No text ends in another error, and every term that is read has a name and a scale within its range."""
    try:
        terms = parse_lora(text)
    except InvalidRequest:
        return
    assert len(terms) <= MAX_TERMS
    assert all(term.adapter and -100 <= term.scale <= 100 for term in terms)


@given(st.lists(st.tuples(st.text(min_size=1).filter(is_plain_name), st.floats(-100, 100)), max_size=MAX_TERMS))
def test_a_string_and_a_list_say_the_same(terms: list[tuple[str, float]]) -> None:
    """Whatever plain names and scales a blend has, both forms are read alike."""
    text = "+".join(f"{name}:{scale:.6f}" for name, scale in terms)
    items = [{"name": name, "scale": float(f"{scale:.6f}")} for name, scale in terms]
    assert parse_lora(text) == parse_lora(items)


def digest_of(name: str) -> str:
    """The digest of a known adapter."""
    if name not in DIGESTS:
        raise UnknownAdapter("unknown", name)
    return DIGESTS[name]


def test_terms_become_a_blend_of_digests() -> None:
    """The order of terms does not matter; no term is the base model."""
    assert blend_of(parse_lora("b:0.5+a"), digest_of) == Blend((BlendMember("a" * 64), BlendMember("b" * 64, 0.5)))
    assert blend_of((), digest_of) == BASE


def test_a_scale_of_zero_is_left_out_but_its_name_is_checked() -> None:
    """A request with a scale of zero shares lanes and prefixes with those that do not name the adapter."""
    assert blend_of(parse_lora("a:0"), digest_of) == blend_of(parse_lora("a:-0.0"), digest_of) == BASE
    assert blend_of(parse_lora("a+b:0"), digest_of) == blend_of(parse_lora("a"), digest_of)
    with pytest.raises(UnknownAdapter):
        blend_of(parse_lora("nobody:0"), digest_of)


@pytest.mark.parametrize("value", ["a:0.5+a:0.5", "a+same as a", "a:0+a"])
def test_the_same_weights_twice_are_refused(value: str) -> None:
    """Equal weights are refused under one name, and under two names of equal content."""
    with pytest.raises(InvalidRequest, match="twice; add up their scales"):
        blend_of(parse_lora(value), digest_of)


def test_names_with_a_mark_are_not_plain() -> None:
    """Lists of models name an adapter by its id if its name holds a mark."""
    assert [is_plain_name(name) for name in ("a", "a b", "a:b", "a+b", "")] == [True, True, False, False, False]
