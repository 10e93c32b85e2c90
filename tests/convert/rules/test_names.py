"""Names of Gemmas: an adapter made for another one of the same shape is noticed, another spelling is not."""

import pytest

from convert.rules.names import names_differ

SAME = [
    ("google/gemma-7b-it", "Gemma 7b It"),
    ("google/gemma-7b-it", "gemma-7b-it-lora"),
    ("google/gemma-7b-it", "/models/gemma-7b-it-q4_k_m/"),
    ("unsloth/gemma-2b-it-bnb-4bit", "gemma-2b-it"),
    ("google/gemma-1.1-2b-it", "gemma_1.1_2b_it"),
    ("google/codegemma-7b-it", "CodeGemma 7B it"),
    ("google/gemma-2-2b", "gemma2-2b"),
    ("my-model", "gemma-7b"),
    ("gemma-7b", None),
    ("", "gemma"),
    ("google/gemma-7b-it", "tiny-gemma"),
]
OTHER = [
    ("google/codegemma-7b", "gemma-7b"),
    ("google/recurrentgemma-2b", "gemma-2b"),
    ("google/gemma-7b", "gemma-2b"),
    ("google/gemma-2b", "gemma-2-2b"),
    ("google/gemma-7b", "gemma-1.1-7b"),
    ("google/gemma-7b", "gemma-7b-it"),
    ("google/gemma-3n-2b-it", "gemma-2b-it"),
]


@pytest.mark.parametrize(("made_for", "base"), SAME)
def test_one_model_in_two_spellings(made_for: str, base: str | None) -> None:
    """Case, separators, organisations, folders and suffixes of quantisers make no other model."""
    assert not names_differ(made_for, base)


@pytest.mark.parametrize(("made_for", "base"), OTHER)
def test_two_models(made_for: str, base: str) -> None:
    """Another family, version or size, or the instructed form of the same."""
    assert names_differ(made_for, base)
    assert names_differ(base, made_for)
