"""Which package may import which, checked on the imports of every file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for package in ("runtime", "convert") for path in (ROOT / package).rglob("*.py"))
NATIVE_PACKAGES = ("runtime/llama/", "convert/gguf/quantisers.py", "convert/native/llama.py")
"""May import ctypes and llama_cpp: the runtime's llama.cpp, the converter's quantisers, and its child process."""
HTTP_PACKAGES = (
    *("runtime/web/", "runtime/cloudflare/", "runtime/openai/", "runtime/admin/", "runtime/playground/"),
    *("runtime/app.py", "runtime/server.py"),
)
DIALECTS = ("cloudflare", "openai", "admin", "playground")
PURE_FILES = ("wire.py", "validator.py", "errors.py")
"""Parse and render: functions from values to values, in every dialect."""
WEB_SIDE = (*DIALECTS, "web", "chat", "observe", "adapters", "prompt", "engines", "app", "server", "cli")
ENGINE_MAY_IMPORT = ("engine", "llama", "errors", "config", "generation", "messages", "pipe")
CONVERT_GROUND = ("errors", "files", "folders", "formats", "cores", "module", "gguf", "rules")
"""The packages of the converter that the runtime may import: it reads untrusted bytes by the converter's rules."""
CONVERT_EXCEPTIONS = {
    "runtime/adapters/converter.py": ("conversion",),
    "runtime/cli.py": ("commands",),
}
"""The runtime's files that may import more of the converter."""
OPTIONAL_EXTRAS = ("ray", "torch")
MAX_LINES = 400
MAX_FUNCTION_LINES = 50


def name_of(path: Path) -> str:
    """The dotted module name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place_of(path: Path) -> str:
    """The file as it is called in messages."""
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path, tree: ast.AST | None = None) -> Iterator[str]:
    """Dotted names that a file imports; ``from a import b`` gives both ``a`` and ``a.b``."""
    for node in ast.walk(tree or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place_of(path)}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tops_of(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    return {name.partition(".")[0] for name in imports_of(path)}


def packages_of(path: Path, root: str) -> set[str]:
    """Packages and modules directly below ``root`` (``runtime`` or ``convert``) that a file imports."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith(f"{root}.")}


@pytest.mark.parametrize("path", FILES, ids=place_of)
def test_few_files_import_native_code(path: Path) -> None:
    """Only the named packages import ctypes, llama_cpp or llguidance."""
    if not place_of(path).startswith(NATIVE_PACKAGES):
        assert not tops_of(path) & {"ctypes", "llama_cpp", "llguidance"}


@pytest.mark.parametrize("path", FILES, ids=place_of)
def test_http_stays_in_the_web_packages(path: Path) -> None:
    """Only web/, the dialects and the composition root import aiohttp."""
    if path.name in PURE_FILES or not place_of(path).startswith(HTTP_PACKAGES):
        assert "aiohttp" not in tops_of(path)


@pytest.mark.parametrize("path", FILES, ids=place_of)
def test_packages_import_only_their_neighbours(path: Path) -> None:
    """The engine imports no web side, a dialect no other dialect, web no dialect, the converter no server."""
    place, packages = place_of(path), packages_of(path, "runtime")
    if place.startswith("convert/"):
        assert "runtime" not in tops_of(path)
    if place.startswith("runtime/engine/"):
        assert packages <= set(ENGINE_MAY_IMPORT)
    if place.startswith("runtime/llama/"):
        assert not packages & {*WEB_SIDE, "engine"}
    if place.startswith(("runtime/web/", "runtime/chat/")):
        assert not packages & {*DIALECTS, "app", "server"}
    for dialect in DIALECTS:
        if place.startswith(f"runtime/{dialect}/"):
            assert not packages & (set(DIALECTS) - {dialect})


@pytest.mark.parametrize("path", FILES, ids=place_of)
def test_the_runtime_imports_the_converters_ground_alone(path: Path) -> None:
    """The runtime reads files by the converter's rules; only the named files import more of the converter."""
    if place_of(path).startswith("runtime/"):
        allowed = {*CONVERT_GROUND, *CONVERT_EXCEPTIONS.get(place_of(path), ())}
        assert packages_of(path, "convert") <= allowed


def test_no_two_classes_share_a_name() -> None:
    """A class name means one thing in both packages."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(place_of(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=place_of)
def test_imports_stand_at_the_top(path: Path) -> None:
    """No function imports, save an optional extra by name."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = {name.partition(".")[0] for name in imports_of(path, function)}
            assert inner <= set(OPTIONAL_EXTRAS), f"{place_of(path)}:{function.lineno}"


@pytest.mark.parametrize("path", FILES, ids=place_of)
def test_files_and_functions_are_short(path: Path) -> None:
    """A file has at most 400 lines, a function 50."""
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{place_of(path)}:{node.lineno} {node.name} has {length} lines"


def test_imports_go_one_way() -> None:
    """No module reaches itself through what it imports."""
    modules = {name_of(path): path for path in FILES}
    graph = {
        name: sorted({target for target in imports_of(path) if target in modules}) for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                if target != name:
                    visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_only_the_standard_library_and_pinned_packages_are_imported() -> None:
    """Nothing at run time needs more than pyproject.toml installs."""
    allowed = {
        *sys.stdlib_module_names,
        "runtime",
        "convert",
        "aiohttp",
        "numpy",
        "llama_cpp",
        "tqdm",
        "prometheus_client",
        "shtab",
        "watchfiles",
        "platformdirs",
        "llguidance",
    }
    allowed.add("yarl")  # aiohttp's own type of URLs
    for path in FILES:
        assert tops_of(path) - {""} <= {*allowed, *OPTIONAL_EXTRAS}, place_of(path)
