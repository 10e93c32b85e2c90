"""``python -m runtime.engine``: one JSON message a line on standard input and output, logs on standard error.

The parent handles Ctrl-C and closes our standard input (or sends SIGTERM) to end us; then the exit code is 0. It is 1
if the model cannot be loaded, after a ``LoadFailed`` event.
"""

from __future__ import annotations

import os
import sys

# Before llama.cpp is loaded: what native code writes to descriptor 1 goes to standard error.
_EVENTS = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)

from runtime.engine.process import main  # noqa: E402

if __name__ == "__main__":
    code = main(_EVENTS)
    sys.stderr.flush()
    # All output is written; native threads and the reader thread may still run.
    os._exit(code)
