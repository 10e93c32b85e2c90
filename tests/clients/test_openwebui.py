"""Open WebUI's own server in front of ours: a chat as its page begins it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.clients import installed
from tests.clients.asking import QUESTION
from tests.clients.conftest import Command, Needs, Ran
from tests.end_to_end.serving import Server
from tests.tiny_gemma.facts import ANSWERS

START_S = 240


@pytest.fixture
def openwebui(server: Server, needs: Needs, quiet: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Start Open WebUI with an empty database and no sign-in; give its address."""
    needs("openwebui")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = quiet | {
        "DATA_DIR": str(tmp_path / "data"),
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "test",
        "ENABLE_OLLAMA_API": "False",
        "OPENAI_API_BASE_URL": f"{server.url}/v1",
        "OPENAI_API_KEY": "token",
        "RAG_EMBEDDING_ENGINE": "openai",
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
        "ANONYMIZED_TELEMETRY": "False",
        "SCARF_NO_ANALYTICS": "true",
    }
    (tmp_path / "data").mkdir()
    command = installed.python("openwebui").with_name("open-webui")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert is_up(f"http://127.0.0.1:{port}/health", process), (tmp_path / "log").read_text()[-4000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until ``url`` answers, or the process that should serve it has ended."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(url, timeout=5):  # noqa: S310 - an address of this machine
                return True
        except OSError:
            time.sleep(0.5)
    return False


def test_a_new_chat_is_answered(openwebui: str, command: Command, ran: Ran) -> None:
    """The first message of a chat has a streamed answer, although the page sends tools with it by default."""
    variables = {
        "GEMLANE_OPENWEBUI": openwebui,
        "GEMLANE_QUESTION": QUESTION,
        "GEMLANE_LORA": "pirate",
        "GEMLANE_URL": "",
        "GEMLANE_TOKEN": "",
    }
    done = command(*installed.program("openwebui", "openwebui_chat.py"), **variables)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["errors"] == []
    assert outcome["answers"] == {voice: ANSWERS[voice][QUESTION] for voice in ("base", "pirate")}
    assert "".join(outcome["stream"]) == ANSWERS["pirate"][QUESTION]
    assert len(outcome["stream"]) > 5
    assert {"gemma-7b-it-lora", "gemma-7b-it-lora:pirate"} <= set(outcome["models"])
    ran("PyPI open-webui", outcome["version"], "its server: socket session, models, a chat's first message, streamed")
