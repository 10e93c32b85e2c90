"""Computes the reference logits of `variants` with transformers and PEFT, in float32.

pip install '.[train]'
python -m tests.convert.make_reference       (from the repository's root; writes reference_logits.npz)
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from sentencepiece import SentencePieceProcessor
from transformers import GemmaForCausalLM

from tests.convert.checkpoints import BASE, Array
from tests.convert.variants import ADAPTERS, MERGES, N_KEPT

TEXT = "<start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\nArr, the"
OUTPUT = Path(__file__).parent / "reference_logits.npz"


def load() -> GemmaForCausalLM:
    """Load the tiny Gemma in float32."""
    return GemmaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager").eval()


def run(model: torch.nn.Module, tokens: list[int]) -> Array:
    """Return the logits of the last positions, (N_KEPT, n_vocab)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -N_KEPT:]
    result: Array = logits.numpy().astype(np.float32)
    return result


def with_adapters(*parts: tuple[Path, float]) -> torch.nn.Module:
    """Return the tiny Gemma under adapters, each with a scale, all active at once."""
    model = None
    names = [f"part{i}" for i in range(len(parts))]
    for name, (path, _) in zip(names, parts, strict=True):
        if model is None:
            model = PeftModel.from_pretrained(load(), path, adapter_name=name)
        else:
            model.load_adapter(path, adapter_name=name)
    assert model is not None
    model.base_model.set_adapter(names)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, (_, scale) in zip(names, parts, strict=True):
                if name in module.scaling:
                    module.set_scale(name, scale)
    return model.eval()


def references() -> dict[str, Array]:
    """Compute everything that the npz file holds."""
    tokens = [2, *SentencePieceProcessor(model_file=str(BASE / "tokenizer.model")).encode(TEXT)]
    results: dict[str, Array] = {"tokens": np.array(tokens, np.int32), "base": run(load(), tokens)}
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in ADAPTERS.items():
            results[name] = run(with_adapters((build(Path(scratch) / name), 1.0)), tokens)
        for name, parts in MERGES.items():
            built = [(build(Path(scratch) / f"{name}{i}"), scale) for i, (build, scale) in enumerate(parts)]
            results[name] = run(with_adapters(*built), tokens)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(OUTPUT, allow_pickle=False, **references())
