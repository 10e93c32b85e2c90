"""The engine on Ray is made late: an error names what is missing, and Ray's address is set before its import."""

from __future__ import annotations

import os
import sys

import pytest

from runtime.cluster.make import make_engine
from runtime.config import ClusterSettings, EngineSettings, ServerSettings, Settings
from runtime.errors import ConfigError

LOOPBACK, STATISTICS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED"


@pytest.mark.parametrize(("address", "listens_on_loopback"), [("", True), ("10.0.0.1:6379", False)])
def test_without_ray_the_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, address: str, *, listens_on_loopback: bool
) -> None:
    """A missing Ray is a ConfigError; a Ray of the server's own would listen on loopback and send no statistics."""
    for variable in (LOOPBACK, STATISTICS):
        monkeypatch.setenv(variable, "unset")
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray" or name == "runtime.cluster.engine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    settings = Settings(EngineSettings(), ServerSettings(), ClusterSettings("ray", ray_address=address))
    with pytest.raises(ConfigError, match=r"--engine ray: ray is not installed; pip install 'gemlane\[cluster\]'"):
        make_engine(settings, 8, lambda _fraction: None)
    assert os.environ[STATISTICS] == "0"
    assert (os.environ[LOOPBACK] == "0") is listens_on_loopback
