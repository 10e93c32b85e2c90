"""Notices to systemd, where it asks for them: the server is ready, reloads, stops, or is alive.

Source: sd_notify(3) and sd_watchdog_enabled(3): a datagram of ``KEY=VALUE`` lines to the socket of ``NOTIFY_SOCKET``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Mapping

_MICROSECONDS = 1e6


class Systemd:
    """The service manager, if there is one: without ``NOTIFY_SOCKET`` nothing is sent."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(microseconds) / _MICROSECONDS if is_ours and microseconds.isdecimal() else 0.0
        """The longest time between two signs of life; 0 if none is asked for."""

    def ready(self, status: str) -> None:
        """Requests are answered; ``status`` is shown by ``systemctl status``."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Files are being read again; ``ready`` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(time.monotonic() * _MICROSECONDS)}")

    def stopping(self) -> None:
        """The server ends."""
        self._send("STOPPING=1")

    async def keep_alive(self) -> None:
        """Report twice in each interval, until cancelled, that the event loop runs; return at once if unwanted."""
        while self.watchdog_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(text.encode(), self._address)
