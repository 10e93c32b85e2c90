"""The second path to a quantised model: a whole file of floats first, then llama.cpp's own `llama_model_quantize`.

It gives the same tensors as the direct path and needs the disk for both files. It is there for the day when
llama.cpp's mix of types changes, and to check the direct path against. A `kill -9` may leave its `.part` folder.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from convert.conversion.conversion import Options, convert_model
from convert.errors import InvalidOption, OutputProblem
from convert.models.mix import MODEL_TYPES
from convert.native.child import quantize
from convert.rules.check import ModelSummary, validate_model


def convert_model_in_two_steps(directory: Path, output: Path, options: Options) -> ModelSummary:
    """Convert a checkpoint by way of an F32 file beside the result, which is removed again.

    Raises:
        ConvertError: By class; the result appears whole or not at all.
        InvalidOption: An importance matrix, which only the direct path takes.
    """
    if options.importance is not None:
        raise InvalidOption("--imatrix and --two-step do not go together; the direct path gives the same tensors")
    if output.exists() and not options.force:
        raise OutputProblem(f"{output}: exists already; choose another name or add --force")
    if not output.parent.is_dir():
        raise OutputProblem(f"{output.parent}: no such directory")
    with tempfile.TemporaryDirectory(prefix=f"{output.name}.", suffix=".part", dir=output.parent) as scratch:
        floats, quantized = Path(scratch) / directory.resolve().name, Path(scratch) / "quantized"
        convert_model(directory, floats, replace(options, type_name="f32"))
        quantize(floats, quantized, MODEL_TYPES[options.type_name].number, options.n_threads)
        summary = validate_model(quantized)
        with quantized.open("rb") as file:
            os.fsync(file.fileno())
        quantized.replace(output)
    return replace(summary, path=output)
