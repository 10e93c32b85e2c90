"""llama.cpp's libraries: started once, their log kept.

Everything native goes through the ``llama_cpp`` declarations of the C API; nothing here knows a model.
"""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections import deque
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as native

from runtime.llama import ggml

VERSION: str = llama_cpp.__version__
"""Version of llama-cpp-python, which pins that of llama.cpp."""
COMMIT: str = ggml.commit().decode().removesuffix("-dirty")
"""Commit of llama.cpp. Every source distribution calls itself dirty, since it holds no repository."""
_LIBRARY_FOLDER = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(llama_cpp.__file__).parent / "lib")
"""Where llama-cpp-python finds its libraries."""
_LOG = logging.getLogger("llama.cpp")
# ggml.h, enum ggml_log_level. Its warnings are for its own developers ("overflows" the training context, for one).
_LEVELS = {3: logging.INFO, 4: logging.ERROR}
_N_ERRORS_KEPT = 8
# llama.cpp src/llama-model.cpp, load_tensors; its C API tells no tensor's buffer.
_BUFFER = re.compile(r"(?P<name>\S+) model buffer size = +(?P<mib>[\d.]+) MiB")


class Library:
    """llama.cpp, started. Make one for a process, before any model; it must outlive all of them."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_N_ERRORS_KEPT)
        self._buffers: list[tuple[str, float]] = []
        # The callback object must live as long as llama.cpp may log; without it llama.cpp logs to standard error again.
        self._log_callback = native.llama_log_callback(self._log)
        native.llama_log_set(self._log_callback, None)
        weakref.finalize(self, native.llama_log_set, native.llama_log_callback(), None)
        if not ggml.device_count():
            # Built with GGML_BACKEND_DL: a library for each kind of processor lies beside libllama; the best is taken.
            ggml.load_backends(str(_LIBRARY_FOLDER).encode())
        elif path := os.environ.get("GGML_BACKEND_PATH"):
            # ggml's own variable for one more backend, which it reads only where it loads them all.
            ggml.load_backend(path.encode())
        native.llama_backend_init()

    def _log(self, level: int, text: bytes, _user_data: object) -> None:
        line = text.decode(errors="replace").strip()
        if not line:
            return
        if _LEVELS.get(level) == logging.ERROR:
            self._errors.append(line)
        if match := _BUFFER.search(line):
            self._buffers.append((match["name"], float(match["mib"]) * 2**20))
        _LOG.log(_LEVELS.get(level, logging.DEBUG), "%s", line)

    def take_errors(self) -> str:
        """The error lines llama.cpp has logged since the last call, as one line; empty if there were none."""
        text = "; ".join(self._errors)
        self._errors.clear()
        return text

    def take_model_buffers(self) -> list[tuple[str, float]]:
        """The buffers of weights that llama.cpp has logged since the last call: type and bytes of each."""
        buffers, self._buffers = self._buffers, []
        return buffers


def build_of() -> str:
    """What tells one build of the loaded libraries from another: processor features, and each file's size and time."""
    paths = sorted(_LIBRARY_FOLDER.iterdir())
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return f"{native.llama_print_system_info().decode(errors='replace')} {files}"
