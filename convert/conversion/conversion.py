"""The conversions from end to end: open, plan, write, check. What is written appears whole or not at all.

Each planner keeps its inputs open for as long as its block runs; `write` then turns the plan into a file, a record
beside it, and a checked summary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from convert.adapters.adapter import LoraAdapter, plan_adapter
from convert.adapters.merge import MergedAdapter, merged_tensors
from convert.adapters.open import open_adapter
from convert.checkpoint.base import promised_header, read_base
from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.embedding import open_embedding
from convert.checkpoint.tokenizer import has_tokenizer
from convert.conversion.progress import byte_progress
from convert.conversion.record import Digester, digest_file, write_record
from convert.errors import InvalidOption, OutputProblem
from convert.files import record_path
from convert.folders import model_folder, snapshot_folder
from convert.gguf.header import GgufHeader
from convert.gguf.quantisers import Ggml
from convert.gguf.writer import FilePlan, write_gguf
from convert.models.imatrix import read_importance
from convert.models.mix import MODEL_TYPES
from convert.models.plan import plan_model
from convert.rules.check import AdapterSummary, ModelSummary, validate_adapter, validate_model
from convert.tensors.encoder import Encoder

_READ_SUFFIXES: Final = (".json", ".safetensors", ".model", ".jinja")

S = TypeVar("S", AdapterSummary, ModelSummary)


@dataclass(frozen=True, slots=True)
class Options:
    """How to convert a model or an adapter.

    `type_name` is canonical (see `mix.parse_type`); `is_legacy_alpha` is for MLX adapters (see `mlx.read_mlx`);
    `importance` is an imatrix GGUF for models; `base_digest` the SHA-256 of an adapter's base, if it is known already
    (a large file takes seconds to read).
    """

    type_name: str
    n_threads: int = 1
    force: bool = False
    is_legacy_alpha: bool = False
    importance: Path | None = None
    base_digest: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n_threads <= 1024:
            raise InvalidOption(f"--threads must be from 1 to 1024, but is {self.n_threads}")


@dataclass(frozen=True, slots=True)
class Conversion:
    """A planned conversion: what to write, from which files.

    `base` is the model that the result belongs to; `scales` are those of the adapters of a merge.
    """

    command: str
    plan: FilePlan
    inputs: tuple[Path, ...]
    base: GgufHeader
    scales: tuple[float, ...] = ()


def convert_model(directory: Path, output: Path, options: Options) -> ModelSummary:
    """Convert a Hugging Face checkpoint of `GemmaForCausalLM` to a GGUF base model.

    Raises:
        ConvertError: By class; nothing is left behind.
    """
    with planned_model(directory, (), options) as conversion:
        return write(conversion, output, options, validate_model)


def convert_adapter(source: Path, base_path: Path, output: Path, options: Options) -> AdapterSummary:
    """Convert an adapter of any dialect, for the base at `base_path` (a GGUF or a checkpoint), to a GGUF adapter.

    Raises:
        ConvertError: By class; nothing is left behind.
    """
    with planned_adapter(source, base_path, options) as conversion:
        return write(conversion, output, options, lambda path: validate_adapter(path, conversion.base))


def merge(directory: Path, adapters: Sequence[tuple[Path, float]], output: Path, options: Options) -> ModelSummary:
    """Merge adapters, each with a scale, into the checkpoint in `directory`, as a GGUF base model.

    Raises:
        ConvertError: By class; nothing is left behind.
    """
    with planned_model(directory, adapters, options) as conversion:
        return write(conversion, output, options, validate_model)


@contextmanager
def planned_model(directory: Path, adapters: Sequence[tuple[Path, float]], options: Options) -> Iterator[Conversion]:
    """Plan a base model from a checkpoint, with `adapters` (path, scale) merged in.

    Raises:
        ConvertError: By class.
    """
    ggml = Ggml()
    directory = model_folder(directory)
    adapters = [(snapshot_folder(path), scale) for path, scale in adapters]
    with ExitStack() as opened:
        checkpoint = opened.enter_context(Checkpoint(directory))
        encoder = opened.enter_context(Encoder(ggml, options.n_threads))
        tensors = dict(checkpoint.tensors)
        parts = []
        base = promised_header(directory)
        for path, scale in adapters:
            adapter = open_adapter(path, base, ggml, is_legacy_alpha=options.is_legacy_alpha)
            parts.append(MergedAdapter(opened.enter_context(adapter), scale))
        merged = merged_tensors(tensors, base, parts) if parts else tensors
        importance = None
        if options.importance is not None:
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            importance = read_importance(options.importance, shapes, ggml)
        file_type, tokenizer = MODEL_TYPES[options.type_name], _trained_tokenizer(parts)
        plan = plan_model(checkpoint, merged, file_type, encoder, importance, tokenizer)
        warnings = tuple(warning for part in parts for warning in part.adapter.warnings)
        inputs = (*_files(directory), *(file for path, _ in adapters for file in _files(path)))
        yield Conversion(
            command="merge" if parts else "convert model",
            plan=FilePlan(plan.metadata, plan.tensors, plan.warnings + warnings),
            inputs=inputs if options.importance is None else (*inputs, options.importance),
            base=base,
            scales=tuple(scale for _, scale in adapters),
        )


@contextmanager
def planned_adapter(source: Path, base_path: Path, options: Options) -> Iterator[Conversion]:
    """Plan a GGUF adapter.

    Raises:
        ConvertError: By class.
    """
    ggml = Ggml()
    source, base_path = snapshot_folder(source), snapshot_folder(base_path)
    base = read_base(base_path)
    with ExitStack() as opening:
        adapter = opening.enter_context(open_adapter(source, base, ggml, is_legacy_alpha=options.is_legacy_alpha))
        adapter = _without_untouched_embedding(adapter, base_path, ggml)
        encoder = opening.enter_context(Encoder(ggml, options.n_threads))
        base_digest = options.base_digest or (digest_file(base_path) if base_path.is_file() else None)
        plan = plan_adapter(adapter, base, options.type_name, encoder, base_digest)
        yield Conversion("convert adapter", plan, _files(source), base)


def _trained_tokenizer(parts: Sequence[MergedAdapter]) -> Path | None:
    """Return the folder of the adapter that trained the embedding, if its tokenizer was saved with it."""
    for part in parts:
        folder = part.adapter.path if part.adapter.path.is_dir() else part.adapter.path.parent
        if part.adapter.embedding is not None and has_tokenizer(folder):
            return folder
    return None


def _without_untouched_embedding(adapter: LoraAdapter, base_path: Path, ggml: Ggml) -> LoraAdapter:
    """Take out an embedding that was saved beside the LoRA and is the base's own."""
    if adapter.embedding is None:
        return adapter
    with open_embedding(base_path, ggml) as (base, kind):
        is_untouched = adapter.embedding.is_untouched(base, kind, ggml)
    return replace(adapter, embedding=None) if is_untouched else adapter


def write(conversion: Conversion, output: Path, options: Options, check: Callable[[Path], S]) -> S:
    """Write a planned file and its record; return the summary that `check` makes of it.

    Raises:
        ConvertError: By class; nothing is left behind.
    """
    record = record_path(output)
    if record.exists() and not options.force:
        raise OutputProblem(f"{record}: exists already; choose another name or add --force")
    with Digester(conversion.inputs) as digester:
        with byte_progress(output.name, conversion.plan.tensor_bytes) as progress:
            digest = write_gguf(output, conversion.plan, force=options.force, progress=progress, check=check)
        summary = check(output)
        shown: dict[str, object] = {"type": options.type_name, "mlx_legacy_alpha": options.is_legacy_alpha}
        if conversion.scales:
            shown["scales"] = conversion.scales
        plan = replace(conversion.plan, warnings=_all_warnings(conversion.plan, summary))
        write_record(output, conversion.command, shown, plan, (digest, digester.digests()))
    return summary


def _all_warnings(plan: FilePlan, summary: AdapterSummary | ModelSummary) -> tuple[str, ...]:
    """Join the warnings of a plan and those that the result's own values gave, each once."""
    return tuple(dict.fromkeys((*plan.warnings, *summary.warnings)))


def _files(path: Path) -> tuple[Path, ...]:
    """Return the files of an input that can bear on the result."""
    if not path.is_dir():
        return (path,)
    return tuple(sorted(one for one in path.iterdir() if one.is_file() and one.suffix in _READ_SUFFIXES))
