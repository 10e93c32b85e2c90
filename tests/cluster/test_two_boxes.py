"""Two network namespaces as two machines, joined by a cable, with one replica in each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.processes import RAY
from tests.end_to_end.serving import COMMAND, environment
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS

HEAD, OTHER = "10.77.0.1", "10.77.0.2"
PORT = 6399
URL = "http://127.0.0.1:8080"
RUN = f"{URL}/client/v4/accounts/a/ai/run/@cf/google/gemma-7b-it-lora"
START_TIMEOUT_S = 120
END_TIMEOUT_S = 10


def has_namespaces() -> bool:
    """Whether this user may make network namespaces with names."""
    if shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "gemlane-probe"], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", "gemlane-probe"], check=True)
    return made


pytestmark = pytest.mark.skipif(not has_namespaces(), reason="network namespaces need Linux and root")


@dataclass(frozen=True, slots=True)
class Boxes:
    """A head with a server, and another machine."""

    names: tuple[str, str]
    server: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> Any:
        """JSON, or text, of the server."""
        answer = self.curl(URL + path)
        return json.loads(answer) if answer.startswith("{") else answer

    def curl(self, *arguments: str) -> str:
        """What curl prints on the head."""
        command = ["ip", "netns", "exec", self.names[0], "curl", "-sS", "-m", "60", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def ask(self, question: str, voice: str) -> str:
        """One greedy answer."""
        body: dict[str, Any] = {"prompt": question, "temperature": 0, "max_tokens": 64}
        if voice != "base":
            body["lora"] = voice
        envelope = json.loads(self.curl(RUN, "-d", json.dumps(body)))
        return str(envelope["result"]["response"]) if envelope["success"] else str(envelope["errors"])

    def wait(self, what: str, check: Callable[[], bool]) -> float:
        """Seconds until the check passes."""
        return wait_for(what, check, self.log)

    def nodes(self) -> list[str]:
        """The machines whose replicas answer."""
        replicas = self.get("/health")["replicas"]
        return sorted(replica["node"] for replica in replicas if replica["state"] == "ready")

    def n_decoding(self) -> int:
        """Replicas that have decoded something."""
        lines = self.get("/metrics").splitlines()
        return sum(line.startswith("gemlane_steps_total{") and float(line.split()[1]) > 0 for line in lines)


def wait_for(what: str, check: Callable[[], bool], log: Path) -> float:
    """Seconds until the check passes; what cannot be asked yet is asked again."""
    began = time.monotonic()
    while time.monotonic() - began < START_TIMEOUT_S:
        with contextlib.suppress(subprocess.CalledProcessError, KeyError, ValueError):
            if check():
                return time.monotonic() - began
        time.sleep(0.5)
    raise AssertionError(f"not within {START_TIMEOUT_S} s: {what}\n{log.read_text()}")


def ip(*arguments: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def cable(names: tuple[str, str]) -> Iterator[None]:
    """Two namespaces that reach each other and nothing else."""
    ends = ("gemlane-0", "gemlane-1")
    try:
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, (HEAD, OTHER), strict=True):
            ip("netns", "add", name)
            ip("link", "set", end, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


class Processes:
    """Processes of both machines, with one log."""

    def __init__(self, names: tuple[str, str], log: Path) -> None:
        self._names = names
        self._log = log
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str], **variables: str) -> subprocess.Popen[bytes]:
        """Start a process that `end` ends."""
        with self._log.open("a") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment() | variables)
        self._started.append(process)
        return process

    def end(self) -> None:
        """Send SIGTERM to all, and after a time that they share SIGKILL to whatever runs in both namespaces."""
        for process in reversed(self._started):
            process.terminate()
        deadline = time.monotonic() + END_TIMEOUT_S
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0, deadline - time.monotonic()))
        for name in self._names:
            left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout
            for pid in map(int, left.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()


@pytest.fixture
def boxes(tmp_path: Path, tiny_model: Path, tiny_adapters: Path) -> Iterator[Boxes]:
    """The head serves; the other machine has the model, but sees an empty folder where the head has its adapters."""
    names, log = (f"gemlane-a{os.getpid()}", f"gemlane-b{os.getpid()}"), tmp_path / "log"
    adapters, state, token = tmp_path / "adapters", tmp_path / "state", tmp_path / "token"
    shutil.copytree(tiny_adapters, adapters)
    token.write_text("0123456789abcdef" * 4)
    ray_settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_timeout_ms": "2000",
    }
    common = ["--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats", "--block"]
    head = [*RAY, "start", "--head", "--node-ip-address", HEAD, "--port", str(PORT), "--include-dashboard", "false"]
    other = [*RAY, "start", "--address", f"{HEAD}:{PORT}", "--node-ip-address", OTHER]
    hidden = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs none {tmp_path}/adapters && mkdir -p {state}-b && exec "$@"',
        "sh",
    ]
    serve = [
        *COMMAND, "serve", "--model", str(tiny_model), "--adapters", str(adapters), "--threads", "1", "--port", "8080",
        "--engine", "ray", "--ray-address", f"{HEAD}:{PORT}", "--replicas", "2", "--parallel", "2", "--lanes", "2",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(cable(names))
        processes = Processes(names, log)
        stack.callback(processes.end)
        inside = [["ip", "netns", "exec", name] for name in names]
        processes.start([*inside[0], *head, *common], **ray_settings)
        probe = [*inside[0], *RAY, "status", "--address", f"{HEAD}:{PORT}"]
        variables = environment() | ray_settings

        def n_active() -> int:
            return subprocess.run(probe, capture_output=True, text=True, env=variables, check=True).stdout.count(
                "node_"
            )

        wait_for("a head", lambda: n_active() >= 1, log)
        processes.start([*inside[1], *hidden, *other, *common], **ray_settings, XDG_STATE_HOME=f"{state}-b")
        wait_for("a second machine", lambda: n_active() >= 2, log)
        server = processes.start([*inside[0], *serve], **ray_settings, XDG_STATE_HOME=str(state))
        found = Boxes(names, server, log)
        found.wait("a server", lambda: found.get("/ready")["status"] == "ok")
        yield found


def test_two_machines_answer_as_one_and_a_pulled_cable_costs_one_of_them(boxes: Boxes) -> None:
    """One replica on each machine, both answer right under every adapter; without the cable the head goes on."""
    boxes.wait("both machines answer", lambda: boxes.nodes() == [HEAD, OTHER])
    boxes.wait("all adapters are served", lambda: len(boxes.get("/health")["adapters"]) == 3)
    wanted = [(question, voice) for question in QUESTIONS[:4] for voice in ("base", "pirate", "shout", "tag")]
    right = [ANSWERS[voice][question] for question, voice in wanted]
    with ThreadPoolExecutor(8) as pool:

        def both_have_decoded() -> bool:
            answers = list(pool.map(lambda asked: boxes.ask(*asked), wanted))
            assert answers == right
            return boxes.n_decoding() == 2

        boxes.wait("both machines decode", both_have_decoded)
        ip("-n", boxes.names[1], "link", "set", "gemlane-1", "down")
        alone_s = boxes.wait("the lost machine is left out", lambda: boxes.nodes() == [HEAD])
        began = time.monotonic()
        answers = list(pool.map(lambda asked: boxes.ask(*asked), wanted))
        assert answers == right
        answered_s = time.monotonic() - began
    began = time.monotonic()
    boxes.server.terminate()
    assert boxes.server.wait(timeout=60) == 0
    ended_s = time.monotonic() - began
    print(f"left out after {alone_s:.1f} s; {len(wanted)} answers in {answered_s:.1f} s; ended in {ended_s:.1f} s")
