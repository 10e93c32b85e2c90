"""The page's files as they lie in the package: third-party code unmodified, nothing remote, all of it in the wheel."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest

from runtime.playground.files import read_page

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "runtime" / "playground" / "page"
OWN = sorted(path for path in PAGE.rglob("*") if path.is_file() and path.parent.name != "vendor")
MANIFEST = json.loads((PAGE / "vendor" / "manifest.json").read_text())
VENDORED = {file["file"]: package for package in MANIFEST["packages"] for file in package["files"]}
MAX_LINES = 400


def place_of(path: Path) -> str:
    """The file as it is called in messages."""
    return path.relative_to(PAGE).as_posix()


def test_the_manifest_lists_every_vendored_file() -> None:
    """The folder of third-party code holds the files of its manifest and no other."""
    assert {path.name for path in (PAGE / "vendor").iterdir()} == {"manifest.json", *VENDORED}


@pytest.mark.parametrize("package", MANIFEST["packages"], ids=lambda package: package["name"])
def test_vendored_files_are_unmodified(package: dict[str, object]) -> None:
    """Each file has the SHA-256 that it had in its npm package, and a licence stands beside the code."""
    files = package["files"]
    assert isinstance(files, list)
    for file in files:
        assert hashlib.sha256((PAGE / "vendor" / file["file"]).read_bytes()).hexdigest() == file["sha256"], file["file"]
    assert any(file["path_in_package"] == "LICENSE" for file in files)
    assert any(str(package["version"]) in (PAGE / "vendor" / file["file"]).read_text()[:400] for file in files)
    assert (
        str(package["source"])
        == f"https://registry.npmjs.org/{package['name']}/-/{package['name']}-{package['version']}.tgz"
    )


@pytest.mark.parametrize("path", OWN, ids=place_of)
def test_nothing_is_remote_and_nothing_is_inline(path: Path) -> None:
    """No file of ours names another host or holds an inline script, style or handler."""
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text)
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)|\son[a-z]+\s*=\s*[\"']|\sstyle\s*=", text)
    assert not re.search(r"\binnerHTML\b|\bouterHTML\b|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


@pytest.mark.parametrize("path", OWN, ids=place_of)
def test_files_are_short(path: Path) -> None:
    """A file of ours has at most 400 lines."""
    assert path.read_text(encoding="utf-8").count("\n") <= MAX_LINES


def test_every_import_and_every_link_leads_to_a_file() -> None:
    """What the page and its modules load is there."""
    page = read_page()
    for path, file in page.items():
        if path.startswith("vendor/"):
            continue
        text = file.body.decode()
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert name in page, f"{path} imports {name}"
        for name in re.findall(r'(?:src|href)="/playground/([^"#]+)', text):
            assert name in page, f"{path} links to {name}"


def test_every_icon_that_is_used_is_drawn() -> None:
    """Each name in ``icons.svg#name``, ``icon()`` and ``iconButton()`` is a symbol of icons.svg."""
    drawn = set(re.findall(r'<symbol id="([^"]+)"', (PAGE / "icons.svg").read_text()))
    used = set()
    for path in OWN:
        used |= set(re.findall(r'icons\.svg#([a-z]+)|icon(?:Button)?\("([a-z]+)"', path.read_text(encoding="utf-8")))
    assert {one or other for one, other in used} == drawn


def test_the_wheel_takes_every_file() -> None:
    """The patterns of package-data cover the whole page."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    taken = {path for pattern in patterns["runtime.playground"] for path in PAGE.parent.glob(pattern) if path.is_file()}
    assert taken == {path for path in PAGE.rglob("*") if path.is_file()}
