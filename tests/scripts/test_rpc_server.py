"""What ``scripts.rpc_server`` refuses; that it serves is shown by ``scripts/test --devices``."""

from __future__ import annotations

import pytest

from runtime.llama import ggml
from scripts.rpc_server import main


@pytest.mark.parametrize("listen", ["0.0.0.0:50052", "192.0.2.12:50052", ":::50052"])
def test_other_machines_reach_it_only_where_that_is_asked_for(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address beyond loopback needs --trusted-network, and the message says why."""
    assert main(["--listen", listen]) == 2
    assert "can use and crash this machine" in capsys.readouterr().err


@pytest.mark.parametrize("listen", ["50052", "localhost:50052", "127.0.0.1:", "127.0.0.1:port", ""])
def test_an_address_is_numbers(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything but ADDRESS:PORT is refused before llama.cpp sees it."""
    assert main(["--listen", listen, "--trusted-network"]) == 2
    assert "is not ADDRESS:PORT" in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt device is refused with those there are."""
    assert main(["--device", "CUDA7"]) == 2
    assert "there is no device 'CUDA7'" in capsys.readouterr().err


@pytest.mark.skipif(bool(ggml.registry_by_name(b"RPC")), reason="this llama.cpp has RPC")
def test_a_build_without_rpc(capsys: pytest.CaptureFixture[str]) -> None:
    """Where llama.cpp has no RPC, the message says how to build it."""
    assert main(["--device", "none"]) == 2
    assert "run scripts/setup with CMAKE_ARGS=-DGGML_RPC=ON" in capsys.readouterr().err
