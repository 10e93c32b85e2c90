"""A process that gives files to llama.cpp as the engine does: paths on standard input, one word each on output.

``loaded`` after a decode, ``refused`` if llama.cpp says no. A file that ends or hangs this process says nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before llama.cpp is loaded, as in the engine process.
OUTPUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from runtime.errors import DecodeError, InvalidAdapter, ModelLoadError  # noqa: E402
from runtime.generation import Prompt, Segment  # noqa: E402
from runtime.llama.adapter import NativeAdapter  # noqa: E402
from runtime.llama.context import Chunk, Context, ContextShape  # noqa: E402
from runtime.llama.library import Library  # noqa: E402
from runtime.llama.model import Model  # noqa: E402

SHAPE = ContextShape(n_kv_cells=256, n_batch=64, n_sequences=1, n_threads=1)
PROMPT = Prompt((Segment("What is the capital of \u00d6sterreich? \x01", has_control_tokens=False),))


def decode(model: Model, context: Context) -> None:
    """Tokenise a prompt with an odd character, and run it."""
    tokens = list(model.tokenize(PROMPT))
    context.decode([Chunk(0, tokens, 0, wants_logits=True)])
    for token in tokens:
        model.piece(token)
    context.remove(0)


def main(base: str | None) -> None:
    """Load each file as a model, or as an adapter of ``base``."""
    library = Library()
    base_model = Model(library, Path(base), on_progress=lambda _: True) if base else None
    base_context = Context(base_model, SHAPE) if base_model else None
    for line in sys.stdin:
        path = Path(line.strip())
        try:
            if base_model is None:
                model = Model(library, path, on_progress=lambda _: True)
                context = Context(model, SHAPE)
                decode(model, context)
                context.free()
                model.free()
            else:
                assert base_context is not None
                adapter = NativeAdapter(base_model, path)
                base_context.set_adapters([(adapter, 1.0)])
                decode(base_model, base_context)
                base_context.set_adapters([])
                adapter.free()
            word = "loaded"
        except (ModelLoadError, InvalidAdapter, DecodeError) as error:
            word = f"refused {error}"
        print(word.replace("\n", " "), file=OUTPUT, flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
