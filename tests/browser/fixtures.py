"""A real Chromium, a real server under it, and pages that fail their test for any error or any request elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Request, sync_playwright

from tests.browser.installed import HOW_TO_GET, chromium
from tests.browser.playground import Playground
from tests.end_to_end.serving import Server, serving

FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *(("--no-sandbox",) if os.geteuid() == 0 else ()),
)
"""Chromium connects to the page's server alone; its sandbox does not start for root."""
TIMEOUT_MS = 20_000

OpenPage = Callable[..., Playground]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    program = chromium()
    if program is None:
        pytest.fail(HOW_TO_GET)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def server(tiny_model: Path, tiny_adapters: Path) -> Iterator[Server]:
    """The tiny Gemma with its three adapters, for tests that break nothing."""
    with serving(tiny_model, tiny_adapters, "--parallel", "8") as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open the playground of a server: ``open_page(url, **context options)``.

    At the end the test fails for every error on a page's console, every uncaught exception and every request to
    another host. What a test provokes it announces with ``Playground.may_log``.
    """
    contexts: list[Any] = []
    faults: list[str] = []

    def start(url: str, **options: Any) -> Playground:
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        )
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        opened = Playground(page)

        def on_console(message: ConsoleMessage) -> None:
            if message.type == "error" and not opened.is_announced(message.text):
                faults.append(f"console: {message.text}")

        def on_request(request: Request) -> None:
            if not request.url.startswith((url, "blob:" + url)):
                faults.append(f"asked elsewhere: {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: faults.append(f"exception: {error}"))
        page.on("request", on_request)
        page.goto(url + "/")
        return opened

    yield start
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture
def playground(open_page: OpenPage, server: Server) -> Playground:
    """The page of the tiny Gemma's server, with the columns of a first visit."""
    opened = open_page(server.url)
    opened.wait_for_columns(3)
    return opened


@pytest.fixture
def unused_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
