"""The conversions from end to end: a checkpoint to a base model, any adapter to a GGUF adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.adapter import Adapter, plan_adapter
from convert.base_model import read_base
from convert.checkpoint import Checkpoint
from convert.errors import MissingFile
from convert.ggml import Ggml
from convert.model import plan_model
from convert.peft import CONFIG_NAME, open_weights, read_peft
from convert.progress import byte_progress
from convert.quantize import MODEL_TYPES
from convert.rows import Encoder
from convert.validate import AdapterSummary, ModelSummary, validate_adapter, validate_model
from convert.writer import write_gguf


@dataclass(frozen=True, slots=True)
class Options:
    """How to convert, whatever is converted. `type_name` is canonical (see `quantize.parse_type`)."""

    type_name: str
    n_threads: int = 1
    force: bool = False


def convert_model(directory: Path, output: Path, options: Options) -> ModelSummary:
    """Convert a Hugging Face checkpoint of `GemmaForCausalLM` to a GGUF base model.

    Raises:
        ConvertError: By class; nothing is left behind.
    """
    with Checkpoint(directory) as checkpoint, Encoder(Ggml(), options.n_threads) as encoder:
        plan = plan_model(checkpoint, MODEL_TYPES[options.type_name], encoder)
        with byte_progress(output.name, plan.tensor_bytes) as progress:
            write_gguf(
                output,
                plan.metadata,
                plan.tensors,
                force=options.force,
                progress=progress,
                check=validate_model,
            )
    return validate_model(output)


def convert_adapter(directory: Path, base_path: Path, output: Path, options: Options) -> AdapterSummary:
    """Convert an adapter for the base at `base_path` (a GGUF or a checkpoint) to a GGUF adapter.

    Raises:
        ConvertError: By class; nothing is left behind.
    """
    base = read_base(base_path)
    with open_adapter(directory) as adapter, Encoder(Ggml(), options.n_threads) as encoder:
        metadata, tensors = plan_adapter(adapter, base, options.type_name, encoder)
        with byte_progress(output.name, sum(tensor.size_bytes for tensor in tensors)) as progress:
            write_gguf(
                output,
                metadata,
                tensors,
                force=options.force,
                progress=progress,
                check=lambda path: validate_adapter(path, base),
            )
    return validate_adapter(output, base)


@contextmanager
def open_adapter(path: Path) -> Iterator[Adapter]:
    """Open an adapter of whichever dialect; its weights can be read while the block runs.

    Raises:
        ConvertError: By class.
    """
    if not (path / CONFIG_NAME).exists():
        raise MissingFile(f"{path}: no {CONFIG_NAME}; give the adapter's folder")
    with open_weights(path) as file:
        yield read_peft(path, file)
