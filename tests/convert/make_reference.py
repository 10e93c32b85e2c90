"""Computes the reference logits of `variants` with transformers and PEFT, in float32.

pip install '.[train]'
python -m tests.convert.make_reference       (from the repository's root; writes reference_logits.npz)
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor
from transformers import GemmaForCausalLM

from tests.convert.checkpoints import Array
from tests.convert.variants import ADAPTERS, MERGES, N_KEPT, NEW_TOKEN_IDS, NEW_TOKENS, with_new_tokens
from tests.tiny_gemma.files import BASE

TEXT = "<start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\nArr, the"
OUTPUT = Path(__file__).parent / "reference_logits.npz"


def load(n_vocab: int = 0) -> GemmaForCausalLM:
    """Load the tiny Gemma in float32, with `n_vocab` rows in its embedding if that is not 0."""
    model = GemmaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager").eval()
    if n_vocab:
        model.resize_token_embeddings(n_vocab, mean_resizing=False)
    return model


def run(model: torch.nn.Module, tokens: list[int]) -> Array:
    """Return the logits of the last positions, (N_KEPT, n_vocab)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -N_KEPT:]
    result: Array = logits.numpy().astype(np.float32)
    return result


def with_adapters(*parts: tuple[Path, float], n_vocab: int = 0) -> torch.nn.Module:
    """Return the tiny Gemma under adapters, each with a scale, all active at once."""
    model = None
    names = [f"part{i}" for i in range(len(parts))]
    for name, (path, _) in zip(names, parts, strict=True):
        if model is None:
            model = PeftModel.from_pretrained(load(n_vocab), path, adapter_name=name)
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


def _drop_unsaved_head(path: Path) -> None:
    """Let PEFT open what mergekit wrote: modules_to_save names a head that is not in the file."""
    config = json.loads((path / "adapter_config.json").read_text())
    with safe_open(path / "adapter_model.safetensors", "np") as file:
        is_saved = any("lm_head" in key for key in file.keys())  # noqa: SIM118 - not a mapping
    if not is_saved and config.get("modules_to_save"):
        config["modules_to_save"] = [name for name in config["modules_to_save"] if name != "lm_head"]
        (path / "adapter_config.json").write_text(json.dumps(config))


def references() -> dict[str, Array]:
    """Compute everything that the npz file holds."""
    tokens = [2, *SentencePieceProcessor(model_file=str(BASE / "tokenizer.model")).encode(TEXT)]
    results: dict[str, Array] = {"tokens": np.array(tokens, np.int32), "base": run(load(), tokens)}
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in ADAPTERS.items():
            results[name] = run(with_adapters((build(Path(scratch) / name), 1.0)), tokens)
        for name, parts in MERGES.items():
            built = [(build(Path(scratch) / f"{name}{i}"), scale) for i, (build, scale) in enumerate(parts)]
            for path, _ in built:
                _drop_unsaved_head(path)
            is_new = name in NEW_TOKENS
            model = with_adapters(*built, n_vocab=NEW_TOKEN_IDS[-1] + 1 if is_new else 0)
            results[name] = run(model, with_new_tokens(tokens) if is_new else tokens)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(OUTPUT, allow_pickle=False, **references())
