"""What ``gemlane serve`` shows on a terminal: a loading bar, and a greeting with what a user needs."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from runtime.messages import Ready

_LABEL_WIDTH: Final = 12
_MIN_WIDTH: Final = 30
_N_SHOWN: Final = 12
_QUESTION: Final = "What is the capital of France?"
_RUN_PATH: Final = "/client/v4/accounts/local/ai/run/@cf/google/gemma-7b-it-lora"
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - replaced, not listened on


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that takes requests."""

    ready: Ready
    adapters: Sequence[str]
    """Names of the adapters that requests may name."""
    url: str
    """``http://``, ``https://`` or ``unix:PATH``."""
    token_file: str
    """Where accepted tokens stand, one a line; empty if none is needed."""
    certificate: str
    """The certificate file of an https address; empty without TLS."""


@contextlib.contextmanager
def loading_bar() -> Iterator[Callable[[float], None]]:
    """A progress bar for the model file; the context gives the function that moves it to a fraction, 0 to 1.

    Log lines appear above the bar. It is silent where standard error is not a terminal.
    """
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    with (
        logging_redirect_tqdm(),
        tqdm(total=100, unit="%", desc="loading", leave=False, disable=None, bar_format=form) as bar,
    ):
        yield lambda fraction: (bar.update(max(0, round(fraction * 100) - bar.n)), None)[1]


def greeting(serving: Serving, width: int) -> str:
    """Model, adapters, memory, addresses, and lines to paste; facts wrap at ``width``, lines to paste do not."""
    model, ready = serving.ready.model, serving.ready
    shown = ", ".join(serving.adapters[:_N_SHOWN]) + (", ..." if len(serving.adapters) > _N_SHOWN else "")
    facts = {
        "model": f"{model.name}, {_size(model.size_bytes)}, on {model.device}",
        "memory": f"{_size(model.size_bytes)} weights, {_size(model.cache_bytes)} cache, "
        f"{_size(model.lanes_bytes)} lanes",
        "requests": f"{model.n_parallel} at once, {model.n_ctx} tokens each, {model.n_kv_cells} together",
        "adapters": f"{len(serving.adapters)}: {shown}" if serving.adapters else "none yet",
        "batches": f"{ready.adapter_batching}: {ready.batching_reason}",
    }
    if not serving.url.startswith("unix:"):
        facts["playground"] = f"{_reachable(serving.url)}/"
    lines = [line for label, words in facts.items() for line in _fact(label, words, width)]
    paste = [curl_line(serving, lora) for lora in ("", *serving.adapters[:1])]
    return "\n".join(["", *lines, "", f"serving on {serving.url}; Ctrl-C ends it. Try:", *paste, ""])


def _fact(label: str, words: str, width: int) -> list[str]:
    head, indent = f"{label:<{_LABEL_WIDTH}}", " " * _LABEL_WIDTH
    width = max(width - 1, _MIN_WIDTH)
    return textwrap.wrap(words, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)


def curl_line(serving: Serving, lora: str) -> str:
    """A request to paste into a shell. A token is read from its file there, so that it is not shown here."""
    options = []
    url = _reachable(serving.url)
    if url.startswith("unix:"):
        options.append(f"--unix-socket {url.removeprefix('unix:')}")
        url = "http://localhost"
    if serving.certificate:
        options.append(f"--cacert {serving.certificate}")
    if serving.token_file:
        options.append(f"-H \"Authorization: Bearer $(grep -m 1 -v '^#' {serving.token_file})\"")
    chosen = f', "lora": "{lora}"' if lora else ""
    options.append(f'-d \'{{"prompt": "{_QUESTION}"{chosen}}}\'')
    return " \\\n".join([f"  curl {url}{_RUN_PATH}", *(f"    {option}" for option in options)])


def _reachable(url: str) -> str:
    """The address with a host that a client of this machine can use."""
    for listened, reachable in _ANY_ADDRESS.items():
        url = url.replace(f"//{listened}:", f"//{reachable}:")
    return url


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2f} MB"
