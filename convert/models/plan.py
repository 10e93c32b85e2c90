"""Plans a base model from a checkpoint: which metadata and which tensors, of which types, in which order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.tokenizer import read_vocabulary
from convert.folders import folder_name
from convert.gguf.header import ValueType
from convert.gguf.writer import FilePlan, KeyValue
from convert.models.mix import FileType, Mix
from convert.rules.gemma import ARCHITECTURE, DEFAULT_ROPE_THETA, TOKEN_EMBEDDING, Hyperparameters
from convert.tensors.encoder import Encoder
from convert.tensors.sources import F32Array, RowSource

QUANTIZATION_VERSION: Final = 2  # ggml.h GGML_QNT_VERSION


def plan_model(
    checkpoint: Checkpoint,
    tensors: Mapping[str, RowSource],
    file_type: FileType,
    encoder: Encoder,
    importance: Mapping[str, F32Array] | None = None,
    tokenizer: Path | None = None,
) -> FilePlan:
    """Decide everything about the result; no weight is read yet.

    Args:
        checkpoint: Gives the metadata and the vocabulary.
        tensors: The weights by GGUF name, in file order: the checkpoint's own, or with adapters merged in.
        file_type: How to store them.
        encoder: Makes the tensors' bytes.
        importance: Weight name -> (n_columns,), see `imatrix`.
        tokenizer: The folder of the tokenizer's files, if it is not the checkpoint.

    Raises:
        ConvertError: The tokenizer cannot be used.
    """
    vocabulary = read_vocabulary(tokenizer or checkpoint.directory, tensors[TOKEN_EMBEDDING].shape[0])
    mix = Mix(file_type, checkpoint.hyperparameters, has_importance=importance is not None)
    columns = importance or {}
    plans = []
    for name, source in tensors.items():
        kind = mix.type_of(name, source.shape)
        is_vector = len(source.shape) == 1  # Gemma's norms start as zeros, and so do biases
        plan = encoder.plan if is_vector else encoder.plan_weight
        plans.append(plan(name, source, kind, columns.get(name)))
    general = [
        KeyValue("general.architecture", ValueType.STRING, ARCHITECTURE),
        KeyValue("general.type", ValueType.STRING, "model"),
        KeyValue("general.name", ValueType.STRING, folder_name(checkpoint.directory)),
    ]
    closing = [
        KeyValue("general.file_type", ValueType.UINT32, file_type.number),
        KeyValue("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION),
    ]
    metadata = general + architecture_metadata(checkpoint.hyperparameters) + closing + vocabulary.metadata()
    return FilePlan(metadata, plans, checkpoint.warnings + vocabulary.warnings)


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
