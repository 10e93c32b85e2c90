"""A server from its start: how it greets, listens, reloads, and what the environment says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.serving import ROOT, Server, environment, serving


async def status_of(server: Server, token: str) -> int:
    """The status of a request with a token."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/v1/models", headers=headers) as response:
        return response.status


async def logged(server: Server, words: str) -> str:
    """The first log line with these words, which comes within a few seconds."""
    async with asyncio.timeout(10):
        while True:
            for line in list(server.log):
                if words in line:
                    return line
            await asyncio.sleep(0.05)


async def test_hangup_reads_tokens_and_adapters_again(tiny_model: Path, tiny_adapters: Path, tmp_path: Path) -> None:
    """SIGHUP ends no server: the new token counts, the old one does not, and a new adapter is there."""
    tokens, folder = tmp_path / "tokens", tmp_path / "adapters"
    tokens.write_text("old\n")
    folder.mkdir()
    (folder / "pirate.gguf").write_bytes((tiny_adapters / "pirate.gguf").read_bytes())
    with serving(tiny_model, folder, "--token-file", str(tokens)) as server:
        assert await status_of(server, "old") == 200
        tokens.write_text("new\nother\n")
        server.process.send_signal(signal.SIGHUP)
        await logged(server, "reloading: 2 tokens")
        assert (await status_of(server, "old"), await status_of(server, "new")) == (401, 200)
        tokens.write_text("")
        server.process.send_signal(signal.SIGHUP)
        assert "holds no token" in await logged(server, "not reloaded")
        assert await status_of(server, "new") == 200


def test_the_greeting_fits_a_phone_and_can_be_pasted(tiny_model: Path, tiny_adapters: Path) -> None:
    """What the server shows has the playground's link, and its last line works in a shell."""
    with serving(tiny_model, tiny_adapters) as server:
        greeting = "\n".join(server.log)
        assert f"playground  {server.url}/" in greeting
        command = greeting[greeting.rindex("  curl ") :]
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["result"]["response"]


async def test_the_log_file_has_one_format(tiny_model: Path, tiny_adapters: Path, tmp_path: Path) -> None:
    """Every line of the log file has date, time and level, also those about an engine that was killed."""
    file = tmp_path / "log.json"
    with serving(tiny_model, tiny_adapters, "--log-file", str(file)) as server:
        for pid in server.engine_pids():
            os.kill(pid, signal.SIGKILL)
        await written(file, "signal 9")
    text = read(file)
    assert "the engine process was killed from outside (signal 9)" in text
    assert all(line.split()[2] in ("INFO", "WARNING", "ERROR") for line in text.splitlines())


async def written(file: Path, words: str) -> None:
    """Wait until a file holds these words."""
    async with asyncio.timeout(30):
        while True:
            if words in read(file):
                return
            await asyncio.sleep(0.1)


def read(file: Path) -> str:
    """What a file holds."""
    return file.read_text()


@pytest.mark.skipif((ROOT / ".venv").is_symlink(), reason="setup would take over another tree's environment")
def test_serve_script_respects_the_environment(tmp_path: Path) -> None:
    """GEMLANE_MODEL names the model that scripts/serve serves: a missing one is its error, not the tiny Gemma."""
    model = tmp_path / "mine.gguf"
    done = subprocess.run(
        ["scripts/serve", "--port", "0"],
        cwd=ROOT,
        env=environment() | {"GEMLANE_MODEL": str(model), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert str(model) in done.stderr
