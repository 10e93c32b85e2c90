"""Files appear whole or not at all, whatever stops the writing."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from convert import files
from convert.conversion.conversion import Options, convert_model
from convert.errors import BadValue, OutputProblem
from convert.files import whole_file
from convert.gguf.header import ArrayInfo, ValueType, read_header
from convert.gguf.types import GgmlType
from convert.gguf.writer import FilePlan, KeyValue, TensorPlan, write_gguf

ROOT = Path(__file__).parents[3]
ONES = np.ones(64, np.float32).view(np.uint8)
TENSOR = TensorPlan("t", GgmlType.F32, (2, 32), lambda: [ONES])
PLAN = FilePlan(
    [
        KeyValue("general.name", ValueType.STRING, "x"),
        KeyValue("numbers", ValueType.ARRAY, np.array([5, 2**32 - 1], np.uint32)),
    ],
    [TENSOR],
)


@pytest.fixture(params=["nameless", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of writing: a file without a name (Linux), and a `.part` beside the result (elsewhere)."""
    if request.param == "named":
        monkeypatch.setattr(files, "_open_nameless", lambda _: None)
    return str(request.param)


def names(directory: Path) -> list[str]:
    """The files of a directory."""
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.usefixtures("way")
def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Metadata and tensors come back; the digest is the file's."""
    path = tmp_path / "x.gguf"
    write_gguf(path, PLAN)
    header = read_header(path)
    assert header.string("general.name") == "x"
    numbers = header.metadata["numbers"]
    assert isinstance(numbers, ArrayInfo)
    assert numbers.integers == (5, 2**32 - 1)
    assert header.tensors["t"].shape == (32, 2)
    assert path.read_bytes()[header.tensors["t"].offset :] == ONES.tobytes()
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), BadValue("x")]
)
def test_a_failure_in_the_middle_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    """A full disk, Ctrl-C or a bad value: no file, the old one stays, and a rerun works."""
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")

    def chunks() -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        yield ONES[:128]
        raise error

    broken = FilePlan([], [TensorPlan("t", GgmlType.F32, (2, 32), chunks)])
    wanted = OutputProblem if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        write_gguf(path, broken, force=True)
    assert (names(tmp_path), path.read_bytes()) == (["x.gguf"], b"old")
    write_gguf(path, PLAN, force=True)
    assert names(tmp_path) == ["x.gguf"]


@pytest.mark.usefixtures("way")
def test_a_failed_check_leaves_nothing(tmp_path: Path) -> None:
    """A result that breaks a rule never gets its name."""

    def refuse(path: Path) -> None:
        assert path.stat().st_size > 0
        raise BadValue("no")

    with pytest.raises(BadValue):
        write_gguf(tmp_path / "x.gguf", PLAN, check=refuse)
    assert names(tmp_path) == []


def test_a_stale_part_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.part` file that a killed run left is gone after the next run."""
    monkeypatch.setattr(files, "_open_nameless", lambda _: None)
    (tmp_path / "x.gguf.part").write_bytes(b"left over, and longer than the result" * 1000)
    write_gguf(tmp_path / "x.gguf", PLAN)
    assert names(tmp_path) == ["x.gguf"]


def test_too_few_bytes_are_our_own_mistake(tmp_path: Path) -> None:
    """A tensor that gives another number of bytes than planned ends the writing."""
    short = FilePlan([], [TensorPlan("t", GgmlType.F32, (2, 32), lambda: [ONES[:4]])])
    with pytest.raises(OutputProblem, match="4 bytes instead of 256"):
        write_gguf(tmp_path / "x.gguf", short)
    assert names(tmp_path) == []


def test_a_full_disk_is_seen_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_dir: Path) -> None:
    """A disk that is too full is refused before the first byte is written."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(OutputProblem, match="bytes are needed and 1048576 are kept free, but only 1000000 are free"):
        convert_model(checkpoint_dir, tmp_path / "x.gguf", Options("f32"))
    assert names(tmp_path) == []


def test_a_real_full_disk(tmp_path: Path) -> None:
    """A limit on file size stops the writing as a full disk does: one line, no file."""
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from convert.commands.arguments import main\n"
        "sys.exit(main(['model', 'tests/tiny_gemma/base', '-o', sys.argv[1]]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.gguf")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "cannot be written: File too large" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert names(tmp_path) == []


def test_a_directory_that_refuses(tmp_path: Path) -> None:
    """A directory that refuses a file gives the system's reason in one line."""
    with pytest.raises(OutputProblem, match="cannot be written"), whole_file(Path("/proc/x.gguf")):
        pass
    with pytest.raises(OutputProblem, match="no such directory"):
        write_gguf(tmp_path / "none" / "x.gguf", PLAN)
