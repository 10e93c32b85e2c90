"""Runs llama.cpp in a child process, so that its abort is an error here."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import NativeFailure
from convert.module import module_command, module_environment
from convert.tensors.sources import F32Array


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, with an adapter or without, whose logits are wanted. Both files must have passed their rules."""

    model: Path
    adapter: Path | None = None
    scale: float = 1.0

    def __str__(self) -> str:
        return str(self.model) if self.adapter is None else f"{self.model} + {self.adapter}"


def logits(
    subject: Subject, texts: Sequence[str], tokens: Sequence[Sequence[int]] | None = None, n_threads: int = 1
) -> tuple[list[list[int]], list[F32Array]]:
    """Run texts, or tokens where they are given, through a model on the CPU with an F32 cache.

    Returns:
        The tokens of each text, and for each (n_tokens, n_vocab) logits.

    Raises:
        NativeFailure: llama.cpp refused or died.
    """
    request = {
        "model": str(subject.model),
        "adapter": None if subject.adapter is None else str(subject.adapter),
        "scale": subject.scale,
        "texts": list(texts),
        "tokens": None if tokens is None else [list(one) for one in tokens],
        "n_threads": n_threads,
    }
    head, body = _ask(request, str(subject))
    values = np.frombuffer(body, np.float32).reshape(-1, head["n_vocab"])
    lengths = [len(one) for one in head["tokens"]]
    if len(values) != sum(lengths):
        raise NativeFailure(f"{subject}: llama.cpp gave {len(values)} rows of logits for {sum(lengths)} tokens")
    return head["tokens"], np.split(values, np.cumsum(lengths)[:-1])


def _ask(request: dict[str, Any], subject: str) -> tuple[dict[str, Any], bytes]:
    # GGML_NO_BACKTRACE: on an abort ggml would start a debugger, if there is one, and take seconds.
    environment = module_environment() | {"GGML_NO_BACKTRACE": "1"}
    with tempfile.TemporaryFile() as log:
        child = subprocess.run(
            module_command("convert.native.llama"),
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            check=False,
        )
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    head, newline, body = child.stdout.partition(b"\n")
    if child.returncode != 0 or not newline:
        how = f"died with signal {-child.returncode}" if child.returncode < 0 else "refused it"
        said = next((line.strip() for line in reversed(lines) if "error" in line.lower() or "fail" in line.lower()), "")
        raise NativeFailure(f"{subject}: llama.cpp {how}{': ' + said if said else ''}")
    return json.loads(head), body
