"""Lends this machine's devices to a gemlane server on another one, which names them by ``--rpc HOST:PORT``.

    CMAKE_ARGS=-DGGML_RPC=ON scripts/setup                                       once, on both machines
    python -m scripts.rpc_server --listen 192.0.2.12:50052 --trusted-network     on the one that lends
    gemlane serve --model big.gguf --rpc 192.0.2.12:50052 --gpu-layers all       on the other

llama.cpp's RPC protocol has neither authentication nor encryption, and anyone who reaches the port can crash this
process or worse (CVE-2026-34159): use it only in a network that you alone use. It serves one engine at a time, until it
is killed. Both machines need the same llama.cpp. ``GGML_BACKEND_PATH`` names the RPC backend where llama.cpp was built
without one.
"""

from __future__ import annotations

import argparse
import ctypes
import ipaddress
import os
import signal
import sys
from pathlib import Path

from runtime.errors import ConfigError
from runtime.llama import ggml
from runtime.llama.devices import choose
from runtime.llama.library import Library

_CPU = 0
"""ggml-backend.h, enum ggml_backend_dev_type."""


def main(arguments: list[str] | None = None) -> int:
    """Serve; the exit status, if that does not work."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:50052", metavar="ADDRESS:PORT", help="default: %(default)s")
    parser.add_argument("--device", default="", metavar="NAMES", help="as in gemlane serve; none: the processor")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; default: one for each core")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep weights here, so that no start sends them again"
    )
    parser.add_argument("--trusted-network", action="store_true", help="listen beyond this machine")
    asked = parser.parse_args(arguments)
    try:
        check_address(asked.listen, is_trusted=asked.trusted_network)
        serve(asked.listen, asked.device, asked.threads or os.cpu_count() or 1, asked.cache)
    except ConfigError as error:
        print(f"rpc_server: {error}", file=sys.stderr)
        return 2
    return 1


def check_address(listen: str, *, is_trusted: bool) -> None:
    """Let an address pass that may be listened on.

    Raises:
        ConfigError: it is not an ADDRESS:PORT, or other machines reach it and that was not asked for.
    """
    address, _, port = listen.rpartition(":")
    try:
        is_local = ipaddress.ip_address(address).is_loopback
    except ValueError as error:
        raise ConfigError(f"--listen {listen!r} is not ADDRESS:PORT, an address of this machine in numbers") from error
    if not port.isdecimal():
        raise ConfigError(f"--listen {listen!r} is not ADDRESS:PORT")
    if not is_local and not is_trusted:
        raise ConfigError(
            f"--listen {listen}: anyone who reaches that port can use and crash this machine; if you alone use "
            "the network, add --trusted-network"
        )


def serve(listen: str, names: str, n_threads: int, cache: Path | None) -> None:
    """Lend the named devices, or the processor if no device is named, until the process is killed.

    Raises:
        ConfigError: there is no such device, llama.cpp was built without RPC, or the address cannot be listened on.
    """
    Library()
    chosen = [device.address for device in choose(names)]
    if not chosen:
        every = [ggml.device(number) for number in range(ggml.device_count())]
        chosen = [address for address in every if ggml.device_type(address) == _CPU]
    registry = ggml.registry_by_name(b"RPC")
    if not registry:
        raise ConfigError("llama.cpp was built without RPC; run scripts/setup with CMAKE_ARGS=-DGGML_RPC=ON")
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    devices = (ctypes.c_void_p * len(chosen))(*chosen)
    start = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)(
        ggml.procedure(registry, b"ggml_backend_rpc_start_server")
    )
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would see Ctrl-C only after the native call
    folder = str(cache).encode() if cache is not None else None
    start(listen.encode(), folder, n_threads, len(devices), ctypes.addressof(devices))
    raise ConfigError(f"cannot listen on {listen}")


if __name__ == "__main__":
    sys.exit(main())
