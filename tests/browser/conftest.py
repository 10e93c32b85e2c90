"""Fixtures of the browser tests; without the ``browser`` extra nothing of this folder is collected."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("playwright") and find_spec("axe_playwright_python"):
    from tests.browser.fixtures import browser, open_page, playground, server, unused_port  # noqa: F401
else:
    collect_ignore_glob = ["test_*.py"]
