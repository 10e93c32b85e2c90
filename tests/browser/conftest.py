"""Fixtures of the browser tests; without the ``browser`` extra nothing of this folder is collected."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("playwright") and find_spec("axe_playwright_python"):
    from tests.browser.fixtures import browser, open_page, playground, server, unused_port  # noqa: F401
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is marked ``browser``."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
