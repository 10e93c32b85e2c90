"""A Hugging Face checkpoint directory: its configuration and its tensors, under their GGUF names.

It opens safetensors only, checks every shape against the configuration, and reads rows on demand.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

from convert.checkpoint.config import read_hyperparameters
from convert.errors import (
    MalformedJson,
    MissingFile,
    QuantizedSource,
    TensorMismatch,
    UnsupportedModel,
)
from convert.files import read_json_object
from convert.folders import model_folder, unknown_folder
from convert.rules.gemma import TOKEN_EMBEDDING, gguf_name, is_norm, missing_or_unknown, plain_name
from convert.tensors.safetensors import EMPTY, FLOAT_TYPES, SafetensorsFile
from convert.tensors.sources import F32Array

MAX_INDEX_BYTES: Final = 16 << 20
_HEAD: Final = "lm_head.weight"
_CHUNK_VALUES: Final = 2 << 20
_QUANTIZED_ENDINGS: Final = (
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".qweight", ".qzeros", ".scales",
    ".g_idx", ".weight_scale", ".weight_scale_inv", ".biases",
)  # fmt: skip
_IGNORED_ENDING: Final = ".rotary_emb.inv_freq"  # recomputed everywhere


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """One tensor of a checkpoint as rows of float32; norms already as llama.cpp wants them, 1 + w.

    `shape` is that of the GGUF tensor, rows first.
    """

    file: SafetensorsFile
    hf_name: str
    name: str
    shape: tuple[int, ...]

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Read (n_rows, n_columns); raises as `SafetensorsFile.read_rows`."""
        rows = self.file.read_rows(self.hf_name, first_row, n_rows)
        # Gemma's norms multiply by 1 + w, llama.cpp's by the stored weight; the sum needs F32.
        return rows + np.float32(1.0) if is_norm(self.name) else rows


class Checkpoint:
    """An open checkpoint. `tensors` is in the order llama.cpp's converter writes: shard by shard, sorted.

    `warnings` are for the user.
    """

    def __init__(self, directory: Path) -> None:
        """Open a checkpoint and check everything but the values of its weights.

        Raises:
            ConvertError: What is wrong with it, by class.
        """
        self.directory = directory = model_folder(directory)
        self.hyperparameters = read_hyperparameters(directory)
        self.warnings: tuple[str, ...] = ()
        self._files = contextlib.ExitStack()
        try:
            self.paths = _weight_files(directory)
            self.tensors = self._collect([self._files.enter_context(SafetensorsFile(p)) for p in self.paths])
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _collect(self, files: list[SafetensorsFile]) -> dict[str, CheckpointTensor]:
        tensors: dict[str, CheckpointTensor] = {}
        head = None
        for file in files:
            for hf_name in sorted(file.tensors):
                if hf_name.endswith(_IGNORED_ENDING):
                    continue
                tensor = self._tensor(file, hf_name)
                if plain_name(hf_name) == _HEAD:
                    head = tensor
                elif tensor.name in tensors:
                    raise TensorMismatch(f"{file.path}: {hf_name!r} is there twice")
                else:
                    tensors[tensor.name] = tensor
        if head is not None and TOKEN_EMBEDDING not in tensors and self.hyperparameters.has_tied_head:
            tensors[TOKEN_EMBEDDING] = head  # safetensors.torch.save_model keeps one name of tied weights
        self._check_quantization(files)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        wrong = missing_or_unknown(shapes, self.hyperparameters.tensor_shapes())
        if wrong is not None:
            raise TensorMismatch(f"{self.directory}: {wrong}")
        if head is not None:
            _check_tied(head, tensors[TOKEN_EMBEDDING])
        return tensors

    def _check_quantization(self, files: list[SafetensorsFile]) -> None:
        """Refuse a checkpoint that its configuration calls quantised, unless every weight is a plain float."""
        method = self.hyperparameters.quantized_by
        if method is None:
            return
        stored = {tensor.dtype for file in files for tensor in file.tensors.values()}
        if not stored <= FLOAT_TYPES:
            raise QuantizedSource(
                f"{self.directory}: the weights are already quantised ({method}); convert the original BF16 checkpoint"
            )
        kinds = ", ".join(sorted(stored))
        self.warnings = (f"config.json says that the weights are quantised ({method}), but they are {kinds}",)

    def _tensor(self, file: SafetensorsFile, hf_name: str) -> CheckpointTensor:
        if hf_name.endswith(_QUANTIZED_ENDINGS) or ".quant_state." in hf_name:
            raise QuantizedSource(f"{file.path}: {hf_name!r} belongs to quantised weights; convert the BF16 checkpoint")
        plain = plain_name(hf_name)
        name = TOKEN_EMBEDDING if plain == _HEAD else gguf_name(hf_name)
        if name is None:
            raise TensorMismatch(f"{file.path}: {hf_name!r}: {_why_not(plain)}")
        if 0 in file.tensors[hf_name].shape:
            raise TensorMismatch(f"{file.path}: {hf_name!r} {EMPTY}")
        return CheckpointTensor(file, hf_name, name, file.tensors[hf_name].shape)


def _why_not(plain: str) -> str:
    """Name the reason why a tensor cannot be part of a Gemma."""
    for mark, reason in (
        (
            "lora_",
            "a model saved with its adapters beside it; merge them first (merge_and_unload), or save the adapter",
        ),
        ("base_layer", "a model saved with its adapters beside it; merge them first (merge_and_unload)"),
        ("score.", "the head of a classifier; gemlane serves models that generate text"),
        ("v_head.", "the value head of a reward model; gemlane serves models that generate text"),
        ("pre_feedforward_layernorm", "a weight of Gemma 2 or 3; only Gemma 1 is converted; llama.cpp converts others"),
        ("vision", "a weight of a model that sees; only Gemma 1 is converted"),
    ):
        if mark in plain:
            return reason
    return "not a tensor of Gemma"


def _weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted."""
    index_path = directory / "model.safetensors.index.json"
    if index_path.exists():
        weight_map = read_json_object(index_path, MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise MalformedJson(f"{index_path}: weight_map must be an object of file names")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not (directory / name).exists():
                raise MissingFile(f"{directory / name}: this shard is named in {index_path.name} but not there")
        return [directory / name for name in names]
    paths = sorted(directory.glob("model*.safetensors"))
    if not paths:
        raise unknown_folder(directory, "no model*.safetensors; the weights are missing")
    return paths


def _check_tied(head: CheckpointTensor, embedding: CheckpointTensor) -> None:
    """Refuse an output head that differs from the token embedding: arch `gemma` has no place for it."""
    same = head.shape == embedding.shape
    n_rows = max(1, _CHUNK_VALUES // embedding.shape[1])
    for first in range(0, embedding.shape[0], n_rows):
        n = min(n_rows, embedding.shape[0] - first)
        same = same and np.array_equal(head.read(first, n), embedding.read(first, n))
    if not same:
        raise UnsupportedModel(
            f"{head.file.path}: lm_head.weight differs from embed_tokens.weight; llama.cpp's gemma has one "
            "matrix for both, so this model cannot be represented"
        )
