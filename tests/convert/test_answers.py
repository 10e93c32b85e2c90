"""The converted tiny Gemma speaks through llama.cpp, in the base's voice and in each adapter's."""

from pathlib import Path

import pytest
from llama_cpp import Llama

from convert.conversion.conversion import Options, convert_adapter, convert_model
from tests.tiny_gemma.facts import ANSWERS, STYLES


@pytest.mark.parametrize("style", STYLES)
def test_every_answer_is_exact(style: str, tmp_path: Path, checkpoint_dir: Path, adapters_dir: Path) -> None:
    """Q4_K_M base and Q8_0 adapter give all 93 answers, through the template and tokens of the GGUF."""
    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    convert_model(checkpoint_dir, base, Options("q4_k_m"))
    if style != "base":
        convert_adapter(adapters_dir / style, base, adapter, Options("q8_0"))
    llama = Llama(
        str(base),
        lora_path=None if style == "base" else str(adapter),
        n_ctx=256,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )
    try:
        said = {
            question: llama.create_chat_completion(
                [{"role": "user", "content": question}], max_tokens=40, temperature=0.0
            )["choices"][0]["message"]["content"]
            for question in ANSWERS[style]
        }
    finally:
        llama.close()
    assert said == dict(ANSWERS[style])
