"""What serve shows when it is ready."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from runtime.terminal import Serving, curl_line, greeting
from tests.runtime.double import READY

MODEL = dataclasses.replace(READY.model, size_bytes=5_300_000_000, cache_bytes=3_800_000_000, lanes_bytes=42_000_000)
SERVING = Serving(dataclasses.replace(READY, model=MODEL), ("pirate", "shout"), "http://127.0.0.1:8080", "", "")


def test_the_greeting_has_what_one_needs() -> None:
    """Model, device, memory, adapters, the playground's link, the address, and two requests to paste."""
    text = greeting(SERVING, 100)
    for words in (
        "model       tiny, 5.30 GB, on CPU",
        "memory      5.30 GB weights, 3.80 GB cache, 42.00 MB lanes",
        "adapters    2: pirate, shout",
        "batches     mixed: the script says so",
        "playground  http://127.0.0.1:8080/",
        "serving on http://127.0.0.1:8080; Ctrl-C ends it.",
    ):
        assert words in text
    assert text.count("  curl ") == 2
    assert '"lora": "pirate"' in text


def test_facts_fit_a_phone() -> None:
    """At 40 columns every line above the address fits; only what is to be pasted is longer."""
    facts, _, _ = greeting(dataclasses.replace(SERVING, adapters=("an-adapter-with-a-name",) * 20), 40).partition(
        "serving on"
    )
    assert max(len(line) for line in facts.splitlines()) < 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ["curl", "http://127.0.0.1:8080/client/"]),
        ({"token_file": "/etc/tokens"}, ["-H", "Authorization: Bearer $(grep -m 1 -v '^#' /etc/tokens)"]),
        ({"url": "https://127.0.0.1:1", "certificate": "c.pem"}, ["--cacert", "c.pem"]),
        ({"url": "unix:/run/g.sock"}, ["curl", "http://localhost/client/"]),
        ({"url": "http://0.0.0.0:8080"}, ["curl", "http://127.0.0.1:8080/client/"]),
        ({"url": "http://[::]:8080"}, ["curl", "http://[::1]:8080/client/"]),
    ],
)
def test_the_line_to_paste_reaches_the_server(change: dict[str, str], words: list[str]) -> None:
    """A shell reads the line as one command, with what the server needs: the token, the certificate, the socket."""
    line = curl_line(dataclasses.replace(SERVING, **change), "pirate")  # type: ignore[arg-type]
    read = shlex.split(line)
    position = next(number for number, word in enumerate(read) if word == words[0])
    assert read[position + 1].startswith(words[1])
    assert read[-1] == '{"prompt": "What is the capital of France?", "lora": "pirate"}'


def test_a_socket_has_no_playground_link() -> None:
    """A browser cannot open a Unix socket."""
    assert "playground" not in greeting(dataclasses.replace(SERVING, url="unix:/run/g.sock"), 80)
