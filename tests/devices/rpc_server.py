"""The processor as a device of an RPC server: ``python tests/devices/rpc_server.py HOST:PORT``.

``GGML_BACKEND_PATH`` names the RPC backend where the installed llama.cpp was built without. It serves until killed.
"""

from __future__ import annotations

import ctypes
import sys

from runtime.llama import ggml
from runtime.llama.library import Library

_CPU = 0
_N_THREADS = 1


def main() -> int:
    """Serve."""
    Library()
    cpu = next(one for one in map(ggml.device, range(ggml.device_count())) if ggml.device_type(one) == _CPU)
    devices = (ctypes.c_void_p * 1)(cpu)
    start = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)(
        ggml.procedure(ggml.registry_by_name(b"RPC"), b"ggml_backend_rpc_start_server")
    )
    start(sys.argv[1].encode(), None, _N_THREADS, len(devices), ctypes.addressof(devices))
    return 1


if __name__ == "__main__":
    sys.exit(main())
