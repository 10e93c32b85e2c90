"""A server for real clients, their programs run with nothing phoning home, and the list of those that ran."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import installed
from tests.end_to_end.serving import Server, serving

PAGE_LORA = "00000000-0000-0000-0000-000000000"
"""What the model's page writes as ``lora``; one of the server's adapters has that name."""
QUIET = {
    "CI": "true",
    "CLOUDFLARE_CF_FETCH_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_COLOR": "1",
    "WRANGLER_HIDE_BANNER": "true",
    "WRANGLER_SEND_ERROR_REPORTS": "false",
    "WRANGLER_SEND_METRICS": "false",
}
"""Telemetry, update checks and downloads of the clients, all off."""

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Needs = Callable[[str], None]
Ran = Callable[[str, str, str], None]
_RAN = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which clients ran, with their versions."""
    if lines := config.stash.get(_RAN, []):
        terminalreporter.section("clients that ran")
        for line in sorted(lines):
            terminalreporter.line(line)


@pytest.fixture
def ran(pytestconfig: pytest.Config) -> Ran:
    """Note a client, its version and what it did, once it has done it."""

    def note(client: str, version: str, what: str) -> None:
        pytestconfig.stash.setdefault(_RAN, []).append(f"{client:28} {version:18} {what}")

    return note


@pytest.fixture(scope="session")
def needs() -> Needs:
    """Skip a test whose clients are not installed."""

    def check(name: str) -> None:
        if not installed.is_installed(name):
            pytest.skip(f"the clients {name!r} are not installed; scripts/test --clients installs them")

    return check


@pytest.fixture(scope="session")
def adapters(tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three adapters, and one more that is called as the model's page calls it."""
    folder = tmp_path_factory.mktemp("clients") / "adapters"
    shutil.copytree(tiny_adapters, folder)
    shutil.copy(folder / "pirate.gguf", folder / f"{PAGE_LORA}.gguf")
    return folder


@pytest.fixture(scope="session")
def server(tiny_model: Path, adapters: Path) -> Iterator[Server]:
    """The tiny Gemma, as every client here meets it."""
    with serving(tiny_model, adapters) as running:
        yield running


@pytest.fixture(scope="session")
def guarded(tiny_model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for the token ``token``."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text("token\n")
    with serving(tiny_model, adapters, "--token-file", str(tokens)) as running:
        yield running


@pytest.fixture
def quiet(tmp_path: Path) -> dict[str, str]:
    """The environment of a client: a home of its own, no proxy, no telemetry."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | QUIET | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def command(quiet: dict[str, str], tmp_path: Path) -> Command:
    """Run a command of a client to its end."""

    def run(*words: str | Path, timeout_s: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            env=quiet | variables,
            cwd=tmp_path,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run
