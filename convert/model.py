"""Checkpoint to base model: which metadata and which tensors, of which types, in which order."""

from dataclasses import dataclass
from typing import Final

from convert.checkpoint import Checkpoint
from convert.gemma import ARCHITECTURE, DEFAULT_ROPE_THETA, Hyperparameters
from convert.gguf_header import ValueType
from convert.quantize import FileType, Mix
from convert.rows import Encoder
from convert.tokenizer import read_vocabulary
from convert.writer import KeyValue, TensorPlan

QUANTIZATION_VERSION: Final = 2  # ggml.h GGML_QNT_VERSION


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Everything about a model file but its bytes."""

    metadata: list[KeyValue]
    tensors: list[TensorPlan]

    @property
    def tensor_bytes(self) -> int:
        """The bytes of all tensors, without padding."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def plan_model(checkpoint: Checkpoint, file_type: FileType, encoder: Encoder) -> ModelPlan:
    """Decide everything about the result; no weight is read yet.

    Raises:
        ConvertError: The tokenizer cannot be used.
    """
    hyperparameters = checkpoint.hyperparameters
    vocabulary = read_vocabulary(checkpoint.directory, hyperparameters.n_vocab)
    mix = Mix(file_type, hyperparameters)
    tensors = [encoder.plan(t.name, t, mix.type_of(t.name, t.shape)) for t in checkpoint.tensors.values()]
    general = [
        KeyValue("general.architecture", ValueType.STRING, ARCHITECTURE),
        KeyValue("general.type", ValueType.STRING, "model"),
        KeyValue("general.name", ValueType.STRING, checkpoint.directory.resolve().name),
    ]
    closing = [
        KeyValue("general.file_type", ValueType.UINT32, file_type.number),
        KeyValue("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION),
    ]
    metadata = general + architecture_metadata(hyperparameters) + closing + vocabulary.metadata()
    return ModelPlan(metadata, tensors)


def architecture_metadata(h: Hyperparameters) -> list[KeyValue]:
    """Return the `gemma.*` entries, in the order llama.cpp's converter writes them.

    Rope entries are written only where they differ from llama.cpp's defaults. key_length is always written:
    llama.cpp's own default of n_embd / n_heads is wrong for the 7B.
    """
    u32, f32 = ValueType.UINT32, ValueType.FLOAT32
    entries: list[tuple[str, ValueType, int | float | str]] = [
        ("context_length", u32, h.n_ctx),
        ("embedding_length", u32, h.n_embd),
        ("block_count", u32, h.n_layers),
        ("feed_forward_length", u32, h.n_ff),
        ("attention.head_count", u32, h.n_heads),
        ("attention.head_count_kv", u32, h.n_kv_heads),
        ("attention.layer_norm_rms_epsilon", f32, h.rms_epsilon),
        ("attention.key_length", u32, h.head_dim),
        ("attention.value_length", u32, h.head_dim),
    ]
    if h.rope_theta != DEFAULT_ROPE_THETA:
        entries.append(("rope.freq_base", f32, h.rope_theta))
    if h.rope_factor is not None:
        entries.append(("rope.scaling.type", ValueType.STRING, "linear"))
        entries.append(("rope.scaling.factor", f32, h.rope_factor))
    return [KeyValue(f"{ARCHITECTURE}.{key}", kind, value) for key, kind, value in entries]
