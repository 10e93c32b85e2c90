"""What ``/openapi.json`` says is what the server does, for whatever a generator can think of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import installed
from tests.clients.conftest import Command, Needs, Ran
from tests.end_to_end.serving import Server, serving

BUDGET_S = 500


@pytest.fixture
def described(tiny_model: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that may be filled with nonsense."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    with serving(tiny_model, folder) as running:
        yield running


def test_no_request_gets_an_answer_that_is_not_described(
    described: Server, command: Command, needs: Needs, ran: Ran
) -> None:
    """No 5xx, no status, content type or body beyond the description."""
    needs("newest")
    schemathesis = installed.python("newest").with_name("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = command(
        schemathesis,
        *("run", f"{described.url}/openapi.json", "--checks", checks),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "1", "--no-color"),
        *("--request-timeout", "60", "--continue-on-failure"),
        timeout_s=BUDGET_S,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    counts = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counts is not None, done.stdout
    assert int(counts[1]) == int(counts[2]) > 1000, done.stdout
    assert "mostly rejected" not in done.stdout, done.stdout
    version = re.search(r"Schemathesis v(\S+)", done.stdout)
    ran("PyPI schemathesis", version[1] if version else "?", f"{counts[2]} requests to /openapi.json's operations")
