"""The adapters whose logits are compared with transformers and PEFT: each is right only if one rule is kept.

`reference_logits.npz` holds what Hugging Face computes for them (see `make_reference.py`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tests.convert.checkpoints import Array, adapter_tensors, base_tensors, peft, write_tensors

# "<start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\nArr, the", by the tokenizer.
N_KEPT = 6  # logits of the last positions are kept


def _kept(style: str, *words: str) -> dict[str, Array]:
    return {key: value for key, value in adapter_tensors(style).items() if any(word in key for word in words)}


def _plain(directory: Path) -> Path:
    return peft(directory, "shout")


def _rslora(directory: Path) -> Path:
    return peft(directory, "shout", use_rslora=True, lora_alpha=5)


def _alpha_pattern(directory: Path) -> Path:
    return peft(directory, "pirate", alpha_pattern={"q_proj": 8, r"layers\.1\.mlp\.down_proj": 24, "up_proj": 12})


def _rank_pattern(directory: Path) -> Path:
    tensors = adapter_tensors("tag")
    for key, values in tensors.items():
        rank = 4 if "v_proj" in key else 2 if "layers.0.mlp.up_proj" in key else 8
        tensors[key] = np.ascontiguousarray(values[:rank] if "lora_A" in key else values[:, :rank])
    return peft(directory, "tag", tensors, rank_pattern={"v_proj": 4, "model.layers.0.mlp.up_proj": 2})


def _rslora_and_rank_pattern(directory: Path) -> Path:
    path = _rank_pattern(directory)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True, "lora_alpha": 6}))
    return path


def _some_layers(directory: Path) -> Path:
    return peft(directory, "shout", _kept("shout", "layers.1."), layers_to_transform=[1])


def _q_and_v(directory: Path) -> Path:
    return peft(directory, "pirate", _kept("pirate", "q_proj", "v_proj"), target_modules=["q_proj", "v_proj"])


def _dora(directory: Path) -> Path:
    """Give each row of W + s B A a magnitude of its own."""
    tensors, base = adapter_tensors("tag"), base_tensors()
    for key in [key for key in tensors if key.endswith("lora_A.weight")]:
        module = key.removesuffix("lora_A.weight")
        weight = base[module.removeprefix("base_model.model.") + "weight"]
        changed = weight + 2.0 * tensors[module + "lora_B.weight"] @ tensors[key]
        wave = 1.0 + 0.1 * np.sin(np.arange(len(weight), dtype=np.float32))
        tensors[module + "lora_magnitude_vector"] = (np.linalg.norm(changed, axis=1) * wave).astype(np.float32)
    return peft(directory, "tag", tensors, use_dora=True)


def _norms(directory: Path) -> Path:
    """Train every norm whole beside the LoRA."""
    tensors = adapter_tensors("pirate")
    for name, values in base_tensors().items():
        if name.endswith("norm.weight"):
            wave = 0.2 * np.cos(np.arange(values.size, dtype=np.float32))
            tensors[f"base_model.model.{name}"] = (values + wave).astype(np.float32)
    return peft(directory, "pirate", tensors, modules_to_save=["norm"])  # PEFT matches the end of names


ADAPTERS: Mapping[str, Callable[[Path], Path]] = MappingProxyType(
    {
        "plain": _plain,
        "rslora": _rslora,
        "alpha_pattern": _alpha_pattern,
        "rank_pattern": _rank_pattern,
        "rslora_and_rank_pattern": _rslora_and_rank_pattern,
        "some_layers": _some_layers,
        "q_and_v": _q_and_v,
    }
)
"""What a GGUF adapter can hold."""

MERGES: Mapping[str, tuple[tuple[Callable[[Path], Path], float], ...]] = MappingProxyType(
    {
        "merged_plain": ((_plain, 1.0),),
        "merged_dora": ((_dora, 1.0),),
        "merged_norms": ((_norms, 1.0),),
        "merged_blend": ((_alpha_pattern, 0.6), (_rslora, 0.5), (_q_and_v, -0.3)),
    }
)
"""What only a merged base can hold, and blends: adapters with their scales."""


def mlx(directory: Path, style: str = "shout", scale: float = 2.0, **parameters: object) -> Path:
    """Save a tiny adapter as mlx-lm does; the scale of 2 is alpha 16 by rank 8."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, values in adapter_tensors(style).items():
        name = key.removeprefix("base_model.model.").removesuffix(".weight")
        tensors[name.replace("lora_A", "lora_a").replace("lora_B", "lora_b")] = np.ascontiguousarray(values.T)
    write_tensors(directory / "adapters.safetensors", tensors)
    config = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "model": "tiny-gemma",
        "lora_parameters": {"rank": 8, "scale": scale, "dropout": 0.0} | parameters,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory
