"""Computes the logits and answers of activated LoRA adapters with transformers and PEFT, in float32.

pip install '.[train]'
python -m tests.runtime.engine.make_alora_reference       (from the repository's root; writes alora_reference.npz)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from sentencepiece import SentencePieceProcessor
from transformers import GemmaForCausalLM

from tests.convert.checkpoints import Array, peft
from tests.runtime.engine.alora import (
    ASKED,
    CONTINUATION,
    INVOCATIONS,
    N_ADAPTERS,
    N_KEPT,
    PROMPT,
    REFERENCE,
    STYLES,
    TURN,
    long_base,
    save_adapter,
)
from tests.tiny_gemma.files import BASE

_BOS = 2
_ENDS = [1, 107]
"""``<eos>`` and ``<end_of_turn>``."""
_MIN_GAP = 0.1
"""A greedy answer whose most likely tokens are closer than this is not compared."""


def load(folder: Path) -> GemmaForCausalLM:
    """Load a Gemma in float32."""
    return GemmaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logits_of(model: torch.nn.Module, tokens: list[int]) -> Array:
    """Return the logits of the last positions, (N_KEPT, n_vocab)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -N_KEPT:]
    result: Array = logits.numpy().astype(np.float32)
    return result


def answer_of(model: torch.nn.Module, tokens: list[int]) -> list[int]:
    """Return the greedy answer's tokens, without the token that ends it.

    Raises:
        ValueError: Two tokens are so close that other arithmetic may choose the other one.
    """
    with torch.no_grad():
        made = model.generate(
            input_ids=torch.tensor([tokens]),
            max_new_tokens=40,
            eos_token_id=_ENDS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ordered = torch.stack([one[0] for one in made.logits]).sort(dim=1).values
    gap = float((ordered[:, -1] - ordered[:, -2]).min())
    if gap < _MIN_GAP:
        raise ValueError(f"the most likely tokens are only {gap} apart")
    *answer, _ = made.sequences[0, len(tokens) :].tolist()
    return [int(token) for token in answer]


def references() -> dict[str, Array]:
    """Compute everything that the npz file holds."""
    tokenizer = SentencePieceProcessor(model_file=str(BASE / "tokenizer.model"))
    invocations = [tokenizer.encode(text) for text in INVOCATIONS]
    prompt, continuation = [_BOS, *tokenizer.encode(PROMPT)], tokenizer.encode(CONTINUATION)[: N_KEPT - 1]
    results: dict[str, Array] = {
        "prompt": np.array(prompt, np.int32),
        "continuation": np.array(continuation, np.int32),
        "invocation_0": np.array(invocations[0], np.int32),
        "invocation_1": np.array(invocations[1], np.int32),
    }
    with tempfile.TemporaryDirectory() as scratch:
        base = long_base(Path(scratch) / "base")
        results["base"] = logits_of(load(base), prompt + continuation)
        for number in range(N_ADAPTERS):
            folder = save_adapter(Path(scratch) / str(number), number, invocations[number % 2])
            model = PeftModel.from_pretrained(load(base), folder).eval()
            results[f"adapter_{number}"] = logits_of(model, prompt + continuation)
        for style in STYLES:
            folder = peft(Path(scratch) / style, style, alora_invocation_tokens=invocations[0])
            model = PeftModel.from_pretrained(load(BASE), folder).eval()
            answers = [answer_of(model, [_BOS, *tokenizer.encode(TURN.format(question))]) for question in ASKED]
            results[f"answers_{style}"] = np.array([tokenizer.decode(answer) for answer in answers])
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(REFERENCE, allow_pickle=False, **references())
