"""What a start needs of the host's memory, and what is free: numbers, and files as the kernel writes them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from convert.gguf.header import GgufHeader, read_header
from convert.rules.check import validate_model
from convert.rules.model import ModelSummary
from runtime.config import EngineSettings
from runtime.engine.start.memory import FreeMemory, fit_memory, free_memory, host_need
from runtime.errors import ModelLoadError
from tests.convert.plans import write_base

GIB = 1 << 30
SETTINGS = EngineSettings(model="m.gguf")


@pytest.fixture
def model(tiny_model: Path) -> tuple[GgufHeader, ModelSummary]:
    """The tiny Gemma's header and what the rules found."""
    from_rules = validate_model(tiny_model)
    return read_header(tiny_model), from_rules


def test_enough_memory_changes_nothing(model: tuple[GgufHeader, ModelSummary]) -> None:
    """The cache keeps its size where memory is enough, and where nothing is known of the machine."""
    assert fit_memory(SETTINGS, *model, FreeMemory(GIB, "test")) is SETTINGS
    assert fit_memory(SETTINGS, *model, None) is SETTINGS


def test_the_default_cache_shrinks_aloud(
    model: tuple[GgufHeader, ModelSummary], caplog: pytest.LogCaptureFixture
) -> None:
    """The warning has the numbers and the option; the result fits."""
    need = host_need(SETTINGS, *model)
    free = FreeMemory(need.total - need.cache // 2, "the limit of its control group")
    with caplog.at_level(logging.WARNING):
        fitted = fit_memory(SETTINGS, *model, free)
    assert 0 < fitted.kv_cells < 4096
    assert host_need(fitted, *model).total <= free.n_bytes
    assert "the limit of its control group" in caplog.text
    assert "--kv-cells" in caplog.text


def test_what_was_asked_for_is_refused_rather_than_shrunk(model: tuple[GgufHeader, ModelSummary]) -> None:
    """The error has every part, what is free, and what makes it smaller."""
    settings = dataclasses.replace(SETTINGS, kv_cells=4096)
    need = host_need(settings, *model)
    with pytest.raises(ModelLoadError, match="not enough memory") as caught:
        fit_memory(settings, *model, FreeMemory(need.total - 1, "ulimit"))
    for words in ("weights", "cache", "lanes", "batches", "free (ulimit)", "--kv-type q8_0", "--lanes"):
        assert words in str(caught.value)


def test_no_cache_is_small_enough(model: tuple[GgufHeader, ModelSummary]) -> None:
    """Without room for 512 tokens the start is refused."""
    with pytest.raises(ModelLoadError, match="not enough memory"):
        fit_memory(SETTINGS, *model, FreeMemory(1 << 20, "test"))


def write(root: Path, files: dict[str, str]) -> None:
    """Files below a root, as the kernel shows them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_tightest_bound_counts(tmp_path: Path) -> None:
    """A control group's parent may be tighter than the group, and both than the machine; file pages are free."""
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "5\n",
            "sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/a/memory.stat": f"anon 1\nfile {GIB // 2}\n",
        },
    )
    assert free_memory(tmp_path) == FreeMemory(GIB + GIB // 2, "the limit of its control group")


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    """Control groups of version 1 have other files, and a huge number where there is no limit."""
    write(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 1048576 kB\n",
            "proc/self/cgroup": "7:cpu,memory:/x\n3:pids:/x\n",
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{GIB // 2}\n",
            "sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{GIB // 4}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
        },
    )
    assert free_memory(tmp_path) == FreeMemory(GIB // 4, "the limit of its control group")


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    """No such files, as on macOS: nothing is known, and nothing refused."""
    assert free_memory(tmp_path) is None


def test_weights_that_stay_in_the_mapped_file_do_not_count(tmp_path: Path) -> None:
    """The system may drop the pages of an F16 file and read them again."""
    path = write_base(tmp_path / "f16.gguf", lambda plan: plan, type_name="f16")
    assert host_need(SETTINGS, read_header(path), validate_model(path)).weights == 0
