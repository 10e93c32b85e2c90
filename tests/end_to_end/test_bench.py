"""``gemlane bench`` against a running server with the tiny Gemma."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.end_to_end.serving import COMMAND, Server, environment, run_gemlane

SHORT = ("--prompt-tokens", "24", "--max-tokens", "6")


def n_in_flight(server: Server) -> int:
    """Requests that the server has now."""
    with urllib.request.urlopen(f"{server.url}/health") as response:  # noqa: S310 - our own server
        return int(json.load(response)["requests"]["in_flight"])


def test_a_closed_loop_is_measured(server: Server, tmp_path: Path) -> None:
    """Every request has exactly its tokens, prompts about theirs, and the file holds every request by adapter."""
    file = tmp_path / "load.json"
    done = run_gemlane(
        "bench", "--url", server.url, *SHORT, "--clients", "3", "--requests", "12",
        "--adapters", "all", "--json", str(file),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "12 answered" in done.stdout
    found = json.loads(file.read_text())
    assert {request["tokens"] for request in found["requests"]} == {6}
    assert all(18 <= request["prompt_tokens"] <= 32 for request in found["requests"])
    assert found["together"]["n_tokens"] == 72
    assert found["together"]["first_token_s"]["n"] == 12
    assert sum(one["n_requests"] for one in found["by_adapter"].values()) == 12
    assert set(found["by_adapter"]) <= {"pirate", "shout", "tag"}
    assert found["settings"]["clients"] == 3


def test_an_open_loop_is_measured_and_drawn(server: Server, tmp_path: Path) -> None:
    """Requests are due over the whole duration, whatever the answers take, and the plot is a document."""
    file, picture = tmp_path / "load.json", tmp_path / "load.svg"
    done = run_gemlane(
        "bench", "--url", server.url, *SHORT, "--rate", "8", "--cv", "0", "--duration", "1.5",
        "--json", str(file), "--plot", str(picture),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    requests = json.loads(file.read_text())["requests"]
    assert sorted(request["due_s"] for request in requests) == [number / 8 for number in range(12)]
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")  # noqa: S314 - our own


def test_refused_requests_are_counted_by_their_words(server: Server) -> None:
    """A prompt that is too long is an error of each request, with the server's words and exit status 1."""
    done = run_gemlane("bench", "--url", server.url, "--prompt-tokens", "9000", "--requests", "2")
    assert done.returncode == 1
    assert re.search(r"^  2 x 400: .*tokens", done.stdout, re.MULTILINE), done.stdout


def test_what_is_wrong_is_said_before_the_load(server: Server, tmp_path: Path) -> None:
    """A missing server, an unknown adapter, a bad number and a file that cannot be written: status 2, one line."""
    for words, said in (
        (("--url", "http://127.0.0.1:1"), "no server answers at http://127.0.0.1:1"),
        (("--url", server.url, "--adapters", "nobody"), "lists no adapter 'nobody'; it has: "),
        (("--url", server.url, "--rate", "0"), "argument --rate: '0' is not a number above 0"),
        (("--url", server.url, "--rate", "nan"), "argument --rate: 'nan' is not a number above 0"),
        (("--url", server.url, "--clients", "0"), "argument --clients: '0' is not a whole number"),
        (("--url", server.url, "--clients", "2", "--rate", "2"), "not allowed with argument --clients"),
        (("--url", server.url, "--json", str(tmp_path / "no" / "file")), "cannot write"),
        (("--url", server.url, "--plot", str(tmp_path)), "it is a folder"),
    ):
        done = run_gemlane("bench", *words)
        assert done.returncode == 2, words
        assert said in done.stderr
        assert done.stdout == ""


def test_ctrl_c_shows_what_was_measured(server: Server, tmp_path: Path) -> None:
    """The signal ends a load of any length: the table comes, running requests count as cancelled, status 130."""
    file = tmp_path / "load.json"
    words = ("bench", "--url", server.url, "--requests", "100000", "--max-tokens", "40", "--json", str(file))
    command = [*COMMAND, *words]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert "100000 requests" in process.stdout.readline()
        while n_in_flight(server) == 0:
            pass
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err == "stopped; this was measured until then:\n"
    assert "cancelled" in out
    found = json.loads(file.read_text())["together"]
    assert found["n_cancelled"] > 0
    assert found["n_failed"] == 0
