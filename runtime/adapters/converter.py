"""A PEFT or MLX folder -> GGUF, in a process of its own, so that streams do not stutter and memory is given back.

``python -m runtime.adapters.converter FOLDER BASE DIGEST OUTPUT MAX_RANK`` prints one line of JSON: ``null``, or the
error. DIGEST is that of the base, which is read once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Final

from convert.conversion.conversion import Options, convert_adapter
from convert.errors import ConvertError, NativeFailure, OutputProblem, TensorMismatch
from convert.module import module_command, module_environment
from runtime.adapters.known import digest_of
from runtime.errors import (
    BY_CODE,
    ConversionDied,
    IncompatibleAdapter,
    InvalidAdapter,
    OutOfMemory,
    StorageError,
    from_code,
    without_folders,
)

_TYPE: Final = "f16"  # what adapters are trained in loses nothing that inference would notice
_NICENESS: Final = 10  # running answers go first

log = logging.getLogger(__name__)


class Converter:
    """Converts uploads for one base model, each in a child process."""

    def __init__(self, base: Path, max_rank: int) -> None:
        self._base = base
        self._max_rank = max_rank
        self._base_digest = ""

    async def convert(self, folder: Path, output: Path) -> None:
        """Write the adapter in ``folder`` to ``output``, whole or not at all; cancelling ends the child.

        Raises:
            IncompatibleAdapter: made for another base, or of too high a rank.
            InvalidAdapter: it breaks a rule, or holds what cannot be represented; the message names it.
            StorageError: the result cannot be written.
            OutOfMemory: the conversion needs more memory than the system gives.
            ConversionDied: the child ended without an answer, or the base model's file is gone.
        """
        if not self._base_digest:
            try:
                self._base_digest = await asyncio.to_thread(digest_of, self._base)
            except OSError as reason:
                raise ConversionDied(f"the base model cannot be read: {reason.strerror}") from reason
        arguments = (str(folder), str(self._base), self._base_digest, str(output), str(self._max_rank))
        child = await asyncio.create_subprocess_exec(
            *module_command(__spec__.name),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=module_environment(),
        )
        try:
            answer, complaint = await child.communicate()
        except asyncio.CancelledError:
            child.kill()
            await child.wait()
            raise
        if child.returncode != 0:
            log.error("the conversion of %s ended with %s: %s", folder, child.returncode, complaint[-2000:].decode())
            raise ConversionDied("the conversion ended unexpectedly; is there memory and disk left?")
        error = json.loads(answer)
        if error is not None:
            raise from_code(error["code"], error["message"])


def convert_upload(folder: Path, base: Path, base_digest: str, output: Path, max_rank: int) -> None:
    """Convert one upload; it runs in the child process.

    Raises:
        IncompatibleAdapter, InvalidAdapter, StorageError, OutOfMemory, ConversionDied: as ``Converter.convert``.
    """
    try:
        summary = convert_adapter(folder, base, output, Options(_TYPE, force=True, base_digest=base_digest))
    except TensorMismatch as error:
        raise IncompatibleAdapter(without_folders(str(error), folder, base)) from error
    except OutputProblem as error:  # the disk is full, for one: not the adapter's fault
        raise StorageError(f"the conversion cannot be written: {without_folders(str(error), output)}") from error
    except MemoryError as error:
        raise OutOfMemory("there is not enough memory to convert this adapter; try again later") from error
    except NativeFailure as error:
        raise ConversionDied(without_folders(str(error), folder, base, output)) from error
    except ConvertError as error:
        raise InvalidAdapter(without_folders(str(error), folder, base)) from error
    if summary.max_rank > max_rank:
        raise IncompatibleAdapter(
            f"its rank is {summary.max_rank}; this server has room for {max_rank} (--max-lora-rank)"
        )


def main(arguments: list[str]) -> int:
    """Convert one upload in the child process, and print its error, or ``null``, as JSON."""
    folder, base, base_digest, output, max_rank = arguments
    os.nice(_NICENESS)
    error = None
    try:
        convert_upload(Path(folder), Path(base), base_digest, Path(output), int(max_rank))
    except tuple(BY_CODE.values()) as caught:
        error = {"code": caught.code, "message": str(caught)}
    print(json.dumps(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
