"""llama.cpp: the only package that imports ``llama_cpp`` or ``ctypes``. It knows no request, no queue and no pipe."""

import os

# ggml reads it when it is loaded: without it, it forks a debugger for a backtrace at every abort (ggml.c).
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
