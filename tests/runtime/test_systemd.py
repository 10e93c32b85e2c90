"""What systemd hears, on a socket of the test."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.systemd import Systemd


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(5)
        yield channel


def test_the_life_of_a_service(listener: socket.socket) -> None:
    """Ready with its status, reloading with the time, stopping."""
    systemd = Systemd({"NOTIFY_SOCKET": listener.getsockname()})
    systemd.ready("serving 3 adapters")
    assert listener.recv(200) == b"READY=1\nSTATUS=serving 3 adapters"
    systemd.reloading()
    assert listener.recv(200).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    systemd.stopping()
    assert listener.recv(200) == b"STOPPING=1"


async def test_the_watchdog_is_fed_twice_an_interval(listener: socket.socket) -> None:
    """The watchdog is fed as long as the event loop runs."""
    systemd = Systemd({"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "20000"})
    feeding = asyncio.create_task(systemd.keep_alive())
    for _ in range(3):
        assert await asyncio.to_thread(listener.recv, 200) == b"WATCHDOG=1"
    feeding.cancel()


async def test_without_a_socket_nothing_is_sent() -> None:
    """Without systemd, and with a watchdog that is meant for another process, nothing is sent and nothing waits."""
    systemd = Systemd({})
    systemd.ready("x")
    await systemd.keep_alive()
    assert Systemd({"WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid() + 1)}).watchdog_s == 0.0


def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    """A socket without a reader is not an error."""
    Systemd({"NOTIFY_SOCKET": str(tmp_path / "gone")}).stopping()
