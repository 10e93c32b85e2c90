"""What the documentation says works: commands run, links lead somewhere, messages and names are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cli import build_parser
from scripts import make_reference
from tests.end_to_end.serving import environment, serving
from tests.tiny_gemma.files import ADAPTERS, BASE

ROOT = Path(__file__).resolve().parent.parent
DOCS = (ROOT / "README.md", *sorted((ROOT / ".github" / "docs").glob("*.md")))
BLOCK = re.compile(r"(?:<!-- tested(?:: (?P<kind>\w+))? -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
TESTED = re.compile(r"<!-- tested(?:: (\w+))? -->\n```sh\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)?(?:#([\w-]+))?\)")


def name_of(path: Path) -> str:
    """A document as it is called in messages."""
    return path.relative_to(ROOT).as_posix()


def marked_blocks(kind: str) -> list[object]:
    """The blocks that are marked as tested in this way, each with its document."""
    return [
        pytest.param(text, id=f"{name_of(path)}-{number}")
        for path in DOCS
        for number, (found, text) in enumerate(TESTED.findall(path.read_text(encoding="utf-8")))
        if found == kind
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documentation assumes it: a checkpoint, an adapter, and ``gemlane`` on the path."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "gemma-7b-it").symlink_to(BASE)
    (folder / "my-adapter").symlink_to(ADAPTERS["pirate"])
    command = folder / "bin" / "gemlane"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m runtime.cli "$@"\n')
    command.chmod(0o755)
    return folder


def run_block(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a block as a shell does that stops at the first error."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment() | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_readmes_commands_work(workplace: Path) -> None:
    """Every block that is marked as tested runs from its first line to its last, in the order of the documents."""
    blocks = [parameter.values[0] for parameter in marked_blocks("")]  # type: ignore[attr-defined]
    assert len(blocks) >= 2
    for text in blocks:
        done = run_block(text, workplace)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_requests_of_the_documentation_are_answered(workplace: Path, tiny_model: Path, tiny_adapters: Path) -> None:
    """Every request that is marked as tested is answered by a server with the tiny Gemma, and names no error."""
    blocks = [parameter.values[0] for parameter in marked_blocks("server")]  # type: ignore[attr-defined]
    assert len(blocks) >= 3
    with serving(tiny_model, tiny_adapters) as server:
        for text in blocks:
            here = text.replace("http://127.0.0.1:8080", server.url).replace("curl -s", "curl -sf")
            done = run_block(here, workplace, GEMLANE_URL=server.url)
            assert done.returncode == 0, f"{here}\n{done.stdout}\n{done.stderr}"
            assert done.stdout.strip()
            assert '"error"' not in done.stdout


def commands() -> Iterator[object]:
    """Every line of a shell block that calls ``gemlane``, with lines that go on joined."""
    for path in DOCS:
        for match in BLOCK.finditer(path.read_text(encoding="utf-8")):
            if match["language"] == "sh":
                for line in match["text"].replace("\\\n", " ").splitlines():
                    for part in re.split(r"&&|\|", line):
                        words = shlex.split(part, comments=True)
                        if words and Path(words[0]).name == "gemlane" and "FILE" not in words and "DIR" not in words:
                            yield pytest.param(words[1:], id=f"{name_of(path)}: {' '.join(words)}"[:90])


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_is_one(words: list[str]) -> None:
    """Each ``gemlane`` line of the documentation is a command with options that exist."""
    build_parser(words[0]).parse_args(words)


def test_the_reference_is_what_the_code_declares() -> None:
    """Every option of every command, every setting and every metric stand in the reference, as the code has them."""
    written = make_reference.REFERENCE.read_text(encoding="utf-8")
    assert written == make_reference.render(), "run python -m scripts.make_reference"


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    """Each link to a file of the repository finds it, and each link to a heading finds the heading."""
    for target, heading in LINK.findall(path.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        place = (path.parent / target).resolve() if target else path
        assert place.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}, heading


def messages() -> Iterator[object]:
    """Each message of the troubleshooting tables."""
    text = (ROOT / ".github" / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        cell = line.split("|")[1] if line.startswith("| ") else ""
        found = re.search(r"`([^`]+)`", cell)
        if found and " " in found[1]:
            yield pytest.param(found[1], id=found[1][:60])


@pytest.fixture(scope="module")
def source() -> str:
    """All code of both packages in one line, with literals that go on joined."""
    texts = (
        path.read_text(encoding="utf-8")
        for package in ("runtime", "convert")
        for path in (ROOT / package).rglob("*.py")
    )
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


@pytest.mark.parametrize("message", list(messages()))
def test_messages_are_those_of_the_code(message: str, source: str) -> None:
    """Each part of a message that troubleshooting explains is written in the code, so that users find what they see."""
    for part in message.split("..."):
        assert part.strip(" ;:,?") in source, part
