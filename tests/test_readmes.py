"""What the READMEs say of the code is true: every function they name exists, and so does every path of their trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = ("runtime/README.md", "convert/README.md")
TREES = ("README.md", "convert/README.md")
REFERENCE = re.compile(r"`([\w/]+\.py) ([\w.]+)\(\)`")
"""A function as the READMEs name it: ``engine/engine.py step()`` or ``engine/engine.py LlamaEngine.step()``."""


def functions_of(path: Path) -> Iterator[str]:
    """Every function and class of a file, plain and with the name of its class in front."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{member.name}"


def fenced_blocks(text: str) -> Iterator[list[str]]:
    """The lines of each block between fences."""
    block: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("```"):
            if block is not None:
                yield block
            block = [] if block is None else None
        elif block is not None:
            block.append(line)


def tree_paths(readme: Path) -> Iterator[Path]:
    """Every path of the trees in a README: blocks of indented paths, each with its meaning two spaces behind it."""
    for block in fenced_blocks(readme.read_text(encoding="utf-8")):
        parents: list[tuple[int, Path]] = []
        for line in block:
            match = re.fullmatch(r"( *)([\w.]+(?:/|\.py)(?:, [\w.]+(?:/|\.py))*)(?:  .*)?", line)
            if match is None:
                break
            indent, names = len(match[1]), match[2].split(", ")
            parents = [(depth, path) for depth, path in parents if depth < indent]
            above = parents[-1][1] if parents else readme.parent
            yield from (above / name for name in names)
            parents.append((indent, above / names[0]))


@pytest.mark.parametrize("readme", READMES)
def test_every_function_of_a_readme_exists(readme: str) -> None:
    """Each `` `file.py function()` `` of a README is a function of that file."""
    references = REFERENCE.findall((ROOT / readme).read_text(encoding="utf-8"))
    assert len(references) >= 10
    package = (ROOT / readme).parent
    missing = [
        f"{file} {name}()"
        for file, name in references
        if not (package / file).is_file() or name not in set(functions_of(package / file))
    ]
    assert missing == []


@pytest.mark.parametrize("readme", TREES)
def test_every_path_of_a_tree_exists(readme: str) -> None:
    """Each path that a README's tree shows is in the repository."""
    shown = list(tree_paths(ROOT / readme))
    assert len(shown) >= 8
    assert [str(each.relative_to(ROOT)) for each in shown if not each.exists()] == []


def test_the_tree_shows_every_package_of_the_runtime() -> None:
    """No package of the runtime is missing in the README's tree."""
    shown = {path.relative_to(ROOT) for path in tree_paths(ROOT / "README.md")}
    packages = {path.parent.relative_to(ROOT) for path in (ROOT / "runtime").glob("*/__init__.py")}
    assert packages - shown == set()


def test_the_tree_shows_every_package_of_the_converter() -> None:
    """No package of the converter is missing in the tree of its README."""
    shown = {path.relative_to(ROOT) for path in tree_paths(ROOT / "convert" / "README.md")}
    packages = {path.parent.relative_to(ROOT) for path in (ROOT / "convert").glob("*/__init__.py")}
    assert packages - shown == set()
