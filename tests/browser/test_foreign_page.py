"""A page of another origin asks this server, in a real Chromium."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.fixtures import FLAGS
from tests.browser.installed import chromium
from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS

QUESTION = "What is the capital of France?"
ASK = """async ([url, token, question]) => {
  const headers = {"Content-Type": "application/json", ...(token ? {Authorization: `Bearer ${token}`} : {})};
  const messages = [{role: "user", content: question}];
  const body = {model: "gemma-7b-it-lora:pirate", messages, temperature: 0, stream: true, keep_alive: 5};
  try {
    const response = await fetch(`${url}/v1/chat/completions`, {method: "POST", headers, body: JSON.stringify(body)});
    if (!response.ok) return {status: response.status, text: (await response.json()).error.message};
    const chunks = [];
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) chunks.push(chunk);
    const ignored = response.headers.get("x-gemlane-ignored");
    return {status: response.status, chunks, ignored};
  } catch (error) {
    return {status: 0, text: String(error)};
  }
}"""
READ = "url => fetch(`${url}/v1/models`).then(async response => response.text(), error => String(error))"


class EmptyPage(BaseHTTPRequestHandler):
    """Serves one page without content."""

    def do_GET(self) -> None:
        """Answer every path alike."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, *_: Any) -> None:
        """Keep standard error clean."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Serve the page of another origin; give its port's origin on loopback."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def foreign(browser: Browser, elsewhere: str) -> Iterator[Page]:
    """Open the page of another origin."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(elsewhere)
    yield page
    context.close()


@pytest.fixture(scope="module")
def guarded(tiny_model: Path, tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server that asks for the token ``secret``."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text("secret\n")
    tokens.chmod(0o600)
    with serving(tiny_model, tiny_adapters, "--token-file", str(tokens)) as running:
        yield running


def text_of(chunks: list[str]) -> str:
    """Join the text of a stream's events."""
    parts = "".join(chunks).split('"delta":{"content":"')[1:]
    return "".join(part.partition('"')[0] for part in parts)


def test_a_page_with_a_token_streams_an_answer(foreign: Page, guarded: Server) -> None:
    """The preflight passes, the answer comes in pieces, and the page can read the headers that name ignored keys."""
    outcome = foreign.evaluate(ASK, [guarded.url, "secret", QUESTION])
    assert outcome["status"] == 200, outcome
    assert text_of(outcome["chunks"]) == ANSWERS["pirate"][QUESTION]
    assert outcome["ignored"] == "keep_alive"


def test_a_page_without_a_token_reads_how_to_ask(foreign: Page, guarded: Server) -> None:
    """The refusal reaches the page, with the way out: none or a wrong token is a 401 with words."""
    missing = foreign.evaluate(ASK, [guarded.url, "", QUESTION])
    assert (missing["status"], missing["text"]) == (401, "send an Authorization header: Bearer <token>")
    wrong = foreign.evaluate(ASK, [guarded.url, "wrong", QUESTION])
    assert (wrong["status"], wrong["text"]) == (401, "the token is not in the list of this server")


def test_a_page_cannot_ask_a_server_without_tokens(foreign: Page, server: Server, elsewhere: str) -> None:
    """Chromium lets the page neither send nor read; the server's own words name the setting."""
    with foreign.expect_event("requestfailed"):
        outcome = foreign.evaluate(ASK, [server.url, "", QUESTION])
    assert outcome == {"status": 0, "text": "TypeError: Failed to fetch"}
    assert foreign.evaluate(READ, server.url) == "TypeError: Failed to fetch"
    refused = foreign.request.get(f"{server.url}/v1/models", headers={"Origin": elsewhere})
    assert refused.status == 403
    assert f"--allow-origin {elsewhere}" in refused.json()["error"]["message"]


def test_a_page_that_was_allowed_streams_an_answer(
    foreign: Page, elsewhere: str, tiny_model: Path, tiny_adapters: Path
) -> None:
    """``--allow-origin`` opens a server without tokens to that page alone."""
    with serving(tiny_model, tiny_adapters, "--allow-origin", elsewhere) as server:
        outcome = foreign.evaluate(ASK, [server.url, "", QUESTION])
    assert text_of(outcome["chunks"]) == ANSWERS["pirate"][QUESTION]


def test_a_rebound_name_reads_nothing(browser: Browser, server: Server) -> None:
    """A page whose own name points at this machine is same-origin to Chromium, and gets 403 for whatever it reads."""
    rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    misled = browser.browser_type.launch(executable_path=chromium(), args=[*FLAGS, rules])
    try:
        page = misled.new_page()
        response = page.goto(server.url.replace("127.0.0.1", "evil.example") + "/v1/models")
        assert response is not None
        assert response.status == 403
        assert "names of loopback" in response.json()["error"]["message"]
        assert "names of loopback" in page.evaluate("fetch('/openapi.json').then(response => response.text())")
    finally:
        misled.close()
