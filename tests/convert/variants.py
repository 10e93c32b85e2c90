"""The adapters whose logits are compared with transformers and PEFT: each is right only if one rule is kept.

`reference_logits.npz` holds what Hugging Face computes for them (see `make_reference.py`).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tests.convert.checkpoints import Array, adapter_tensors, base_tensors, peft, read_tensors, write_tensors
from tests.tiny_gemma.files import BASE

# "<start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\nArr, the", by the tokenizer.
NEW_TOKEN_IDS = (1024, 1025)
MERGEKIT = Path(__file__).parent / "mergekit"
EMBEDDING, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
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


def _moved(n_rows: int) -> Array:
    """The base's embedding, moved a little everywhere, with rows for tokens of its own."""
    rows = base_tensors()["model.embed_tokens.weight"]
    new = np.roll(rows[600 : 600 + n_rows - len(rows)], 7, axis=1) * np.float32(0.8)
    whole = np.concatenate([rows, new])
    return (whole + 0.01 * np.sin(np.arange(whole.size).reshape(whole.shape))).astype(np.float32)


def _new_tokenizer(directory: Path) -> None:
    """Save a tokenizer with two more tokens beside an adapter, as PEFT's users do."""
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(BASE / name, directory / name)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    for token_id, text in zip(NEW_TOKEN_IDS, ("<tool>", "</tool>"), strict=True):
        config.setdefault("added_tokens_decoder", {})[str(token_id)] = {"content": text, "special": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _embedding_and_head(directory: Path) -> Path:
    """Train embedding and head whole, tied to each other."""
    saved = {EMBEDDING + ".weight": _moved(1024), HEAD + ".weight": _moved(1024)}
    modules = ["embed_tokens", "lm_head"]
    tensors = adapter_tensors("pirate") | saved
    return peft(directory, "pirate", tensors, modules_to_save=modules, ensure_weight_tying=True)


def _new_tokens(directory: Path) -> Path:
    """Add two tokens and train the whole embedding; PEFT saves it because it was resized."""
    saved = {EMBEDDING + ".weight": _moved(1026), HEAD + ".weight": _moved(1026)}
    peft(directory, "tag", adapter_tensors("tag") | saved)
    _new_tokenizer(directory)
    return directory


def _token_rows(directory: Path) -> Path:
    """Add two tokens and train their rows and that of one more alone (trainable_token_indices)."""
    tensors = adapter_tensors("shout")
    for side in (EMBEDDING, HEAD):
        tensors[side + ".token_adapter.base_layer.weight"] = np.ascontiguousarray(_moved(1026))
        tensors[side + ".token_adapter.trainable_tokens_delta"] = np.ascontiguousarray(_moved(1026)[[3, 700, 900]])
    peft(directory, "shout", tensors, trainable_token_indices=[1025, 7, 1024])
    _new_tokenizer(directory)
    return directory


def _lora_on_the_embedding(directory: Path) -> Path:
    """Train a LoRA on the embedding and its twin on the head, tied to each other."""
    chance = np.random.default_rng(5)
    a = (0.05 * chance.standard_normal((8, 1024))).astype(np.float32)
    b = (0.05 * chance.standard_normal((256, 8))).astype(np.float32)
    saved = {
        EMBEDDING + ".lora_embedding_A": a,
        EMBEDDING + ".lora_embedding_B": b,
        HEAD + ".lora_A.weight": np.ascontiguousarray(b.T),
        HEAD + ".lora_B.weight": np.ascontiguousarray(a.T),
    }
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]
    tensors = adapter_tensors("tag") | saved
    return peft(directory, "tag", tensors, target_modules=modules, ensure_weight_tying=True)


def _mergekit(directory: Path) -> Path:
    """What mergekit-extract-lora 0.1.5 wrote for a fine-tune of the tiny Gemma, with rank 4.

    It saves the norms whole, and the embedding, which is the base's own and is put back here.
    """
    shutil.copytree(MERGEKIT, directory)
    path = directory / "adapter_model.safetensors"
    tensors = read_tensors(path) | {EMBEDDING + ".weight": base_tensors()["model.embed_tokens.weight"]}
    write_tensors(path, tensors)
    return directory


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
        "merged_embedding_and_head": ((_embedding_and_head, 1.0),),
        "merged_new_tokens": ((_new_tokens, 1.0),),
        "merged_token_rows": ((_token_rows, 1.0),),
        "merged_lora_on_the_embedding": ((_lora_on_the_embedding, 1.0),),
        "merged_mergekit": ((_mergekit, 1.0),),
        "merged_blend": ((_alpha_pattern, 0.6), (_rslora, 0.5), (_q_and_v, -0.3)),
    }
)
"""What only a merged base can hold, and blends: adapters with their scales."""


def with_new_tokens(tokens: list[int]) -> list[int]:
    """Put both new tokens among the last of a prompt."""
    return [*tokens[:-3], *NEW_TOKEN_IDS, *tokens[-3:]]


NEW_TOKENS = ("merged_new_tokens", "merged_token_rows")
"""Merges whose prompt holds the new tokens."""


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
