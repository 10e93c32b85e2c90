"""llama.cpp's libraries: started once, their log kept, their devices named.

Everything native goes through the ``llama_cpp`` declarations of the C API; nothing here knows a model.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections import deque
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as native

VERSION: str = llama_cpp.__version__
"""Of llama-cpp-python, which pins llama.cpp's."""
_LOG = logging.getLogger("llama.cpp")
# ggml.h, enum ggml_log_level. Its warnings are for its own developers ("overflows" the training context, for one).
_LEVELS = {3: logging.INFO, 4: logging.ERROR}
_N_ERRORS_KEPT = 8


class Library:
    """llama.cpp, started. Make one for a process, before any model; it must outlive all of them."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_N_ERRORS_KEPT)
        # The callback object must live as long as llama.cpp may log.
        self._log_callback = native.llama_log_callback(self._log)
        native.llama_log_set(self._log_callback, None)
        native.llama_backend_init()

    def _log(self, level: int, text: bytes, _user_data: object) -> None:
        line = text.decode(errors="replace").strip()
        if not line:
            return
        if _LEVELS.get(level) == logging.ERROR:
            self._errors.append(line)
        _LOG.log(_LEVELS.get(level, logging.DEBUG), "%s", line)

    def take_errors(self) -> str:
        """The error lines llama.cpp has logged since the last call, as one line; empty if there were none."""
        text = "; ".join(self._errors)
        self._errors.clear()
        return text

    @property
    def has_gpu(self) -> bool:
        """Whether llama.cpp can put layers on a GPU here."""
        return bool(native.llama_supports_gpu_offload())


def n_physical_cores() -> int:
    """Processor cores this process may use, two threads of one core counted once."""
    allowed = os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def address(pointer: object) -> int:
    """The address a ctypes pointer holds, 0 for a null pointer."""
    return int(ctypes.cast(pointer, ctypes.c_void_p).value or 0) if pointer else 0  # type: ignore[arg-type]
