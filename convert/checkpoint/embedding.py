"""The token embedding of a base, given as a GGUF or a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import RejectedModel
from convert.gguf.quantisers import Ggml
from convert.gguf.types import GgmlType
from convert.rules.gemma import TOKEN_EMBEDDING
from convert.tensors.gguf import GgufRows, OpenGguf
from convert.tensors.sources import RowSource


@contextmanager
def open_embedding(path: Path, ggml: Ggml) -> Iterator[tuple[RowSource, GgmlType]]:
    """Open the token embedding of a base, (n_vocab, n_embd), and say how it is stored.

    Raises:
        ConvertError: The file or directory cannot be read, or has no embedding.
    """
    if path.is_dir():
        with Checkpoint(path) as checkpoint:
            yield checkpoint.tensors[TOKEN_EMBEDDING], GgmlType.F32
        return
    with OpenGguf(path) as gguf:
        if TOKEN_EMBEDDING not in gguf.header.tensors:
            raise RejectedModel(f"{path}: tensor {TOKEN_EMBEDDING!r} is missing")
        yield GgufRows(gguf, TOKEN_EMBEDDING, ggml), gguf.header.tensors[TOKEN_EMBEDDING].type
