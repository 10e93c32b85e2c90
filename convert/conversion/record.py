"""The record beside a result: what went in, what came out, with which options and versions.

JSON without a clock or a host, so the same inputs give the same record.
"""

import hashlib
import importlib.metadata
import json
import platform
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

from convert.files import open_regular, record_path, whole_file
from convert.gguf.writer import FilePlan

_CHUNK_BYTES: Final = 4 << 20
_PACKAGES: Final = ("gemlane", "llama-cpp-python", "numpy")


class Digester:
    """Computes SHA-256 digests of files on a thread of its own while the conversion runs."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Start on `paths`, in order."""
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self._digests: dict[Path, Future[str]] = {path: self._pool.submit(self._digest, path) for path in paths}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def digests(self) -> dict[Path, str]:
        """Wait for all digests, as hexadecimal text.

        Raises:
            ConvertError: A file cannot be read.
        """
        return {path: future.result() for path, future in self._digests.items()}

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        with open_regular(path) as file:
            while not self._stop.is_set() and (chunk := file.read(_CHUNK_BYTES)):
                digest.update(chunk)
        return digest.hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text; raises as `files.open_regular`."""
    with Digester([path]) as digester:
        return digester.digests()[path]


def write_record(
    output: Path,
    command: str,
    options: Mapping[str, object],
    plan: FilePlan,
    digests: tuple[str, Mapping[Path, str]],
) -> None:
    """Write the record of a conversion beside its result.

    Args:
        output: The result.
        command: What was run.
        options: Its options, as JSON can hold them.
        plan: What was written.
        digests: SHA-256 of the result, and of each input.

    Raises:
        OutputProblem: It cannot be written.
    """
    output_digest, input_digests = digests
    record = {
        "command": command,
        "options": dict(options),
        "inputs": [
            {"path": str(path), "size_bytes": path.stat().st_size, "sha256": digest}
            for path, digest in input_digests.items()
        ],
        "output": {
            "name": output.name,
            "size_bytes": output.stat().st_size,
            "sha256": output_digest,
            "tensors": dict(sorted(Counter(tensor.type.name for tensor in plan.tensors).items())),
        },
        "warnings": list(plan.warnings),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }
    with whole_file(record_path(output)) as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
