"""HAProxy and nginx with the configurations of ``scripts/balancer``, in front of boxes on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp

from tests.end_to_end.serving import ROOT

CONFIGURATIONS = ROOT / "scripts" / "balancer"
_LISTEN = "127.0.0.1:8000"
_START_TIMEOUT_S = 10


@dataclass(frozen=True)
class Box:
    """A server behind the balancer; its number is its id there, which no other box ever gets."""

    number: int
    address: str


class Kind(Protocol):
    """One of the two programs."""

    name: str

    def configure(self, address: str, boxes: Sequence[Box], folder: Path) -> str:
        """The shipped configuration with these addresses, without what only root can do."""

    def command(self, folder: Path) -> list[str]:
        """How it is run in the foreground."""

    reload_signal: signal.Signals


class HAProxy:
    """Its boxes are called box1, box2, ..."""

    name = "haproxy"
    reload_signal = signal.SIGUSR2

    def configure(self, address: str, boxes: Sequence[Box], folder: Path) -> str:
        shipped = (CONFIGURATIONS / "haproxy.cfg").read_text()
        ours = re.sub(r"(?m)^ +(user|group|log /dev/log) .*\n", "", shipped)
        ours = replaced(ours, "/run/haproxy/admin.sock", str(folder / "admin.sock"))
        lines = "".join(f"    server box{box.number} {box.address} id {box.number}\n" for box in boxes)
        return replaced(_with_servers(ours, lines), _LISTEN, address)

    def command(self, folder: Path) -> list[str]:
        return ["haproxy", "-W", "-f", str(folder / "balancer.cfg")]


class Nginx:
    """It names a box by its address."""

    name = "nginx"
    reload_signal = signal.SIGHUP

    def configure(self, address: str, boxes: Sequence[Box], folder: Path) -> str:
        shipped = replaced((CONFIGURATIONS / "nginx.conf").read_text(), _LISTEN, address)
        options = re.findall(r"(?m)^ +server 192\.0\.2\.\d+:8080 (.*;)$", shipped)
        lines = "".join(f"    server {box.address} {options[0]}\n" for box in boxes)
        (folder / "gemlane.conf").write_text(_with_servers(shipped, lines))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
        user = "user root;\n" if os.geteuid() == 0 else ""  # its workers write into our folder
        return (
            f"daemon off;\n{user}pid {folder / 'pid'};\nerror_log {folder / 'error.log'};\nevents {{}}\n"
            f"http {{\naccess_log off;\n{places}include {folder / 'gemlane.conf'};\n}}\n"
        )

    def command(self, folder: Path) -> list[str]:
        return ["nginx", "-p", str(folder), "-c", str(folder / "balancer.cfg")]


KINDS: dict[str, Kind] = {kind.name: kind for kind in (HAProxy(), Nginx())}


@dataclass
class Balancer:
    """One running balancer."""

    kind: Kind
    folder: Path
    address: str
    boxes: list[Box] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://{self.address}"

    def write(self, boxes: Sequence[Box]) -> None:
        """Write the configuration for these boxes."""
        self.boxes = list(boxes)
        (self.folder / "balancer.cfg").write_text(self.kind.configure(self.address, boxes, self.folder))

    def reload(self, boxes: Sequence[Box]) -> None:
        """Go on with these boxes, as ``systemctl reload`` does it."""
        assert self.process is not None
        self.write(boxes)
        self.process.send_signal(self.kind.reload_signal)

    def number_of(self, response: aiohttp.ClientResponse) -> int:
        """Which box has answered; it is the last one that nginx names."""
        named = response.headers["x-served-by"].split(", ")[-1]
        return next(box.number for box in self.boxes if named in (f"box{box.number}", box.address))


@contextlib.contextmanager
def balancing(kind: Kind, folder: Path, boxes: Sequence[Box]) -> Iterator[Balancer]:
    """A balancer in front of ``boxes``, on a free port of loopback."""
    balancer = Balancer(kind, folder, f"127.0.0.1:{free_port()}")
    balancer.write(boxes)
    with (folder / "output").open("wb") as output:
        balancer.process = process = subprocess.Popen(kind.command(folder), stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for_listener(balancer)
        yield balancer
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def is_installed(kind: str) -> bool:
    """Whether the program is on this machine; ``/usr/sbin`` is not on every user's path."""
    return shutil.which(kind, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin") is not None


def free_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def replaced(text: str, old: str, new: str) -> str:
    """``text`` with the only ``old`` replaced; a configuration without it would be tested unlike it is shipped."""
    assert text.count(old) == 1, f"{old} stands {text.count(old)} times in the configuration"
    return text.replace(old, new)


def _with_servers(text: str, lines: str) -> str:
    """The configuration with these servers in place of the two examples."""
    found = re.search(r"(?m)(^ +server \S*(?: ?)192\.0\.2\.\d+:8080.*\n)+", text)
    assert found is not None, "the configuration has no example servers"
    return text[: found.start()] + lines + text[found.end() :]


def _wait_for_listener(balancer: Balancer) -> None:
    """Wait until the balancer listens."""
    host, port = balancer.address.split(":")
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        assert balancer.process is not None
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        is_coming = balancer.process.poll() is None and time.monotonic() < deadline
        assert is_coming, (balancer.folder / "output").read_text()
        time.sleep(0.02)
