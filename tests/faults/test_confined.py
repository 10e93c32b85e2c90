"""The server with as few rights as it needs: another user's id, no capability, a root that nobody can write to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.serving import COMMAND, ask_text, environment, serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS

NOBODY = 65534
READ_ONLY_ROOT = """
set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
case "$2" in /root/*)  # an interpreter in root's home, which another user may not enter
    mount --bind "$2" /mnt
    mount -t tmpfs -o mode=755 tmpfs /root
    mkdir -p "$2"
    mount --bind /mnt "$2" ;;
esac
mount -o remount,bind,ro /
! touch /tmp/written 2>/dev/null
shift 2
exec "$@"
"""
UNPRIVILEGED = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
)


def confined(state: Path) -> tuple[str, ...]:
    """What to run a command under."""
    places = ("env", f"XDG_STATE_HOME={state}", f"HOME={state}")
    root = ("unshare", "--mount", "bash", "-c", READ_ONLY_ROOT, "bash", str(state), sys.base_prefix)
    return (*places, *root, *UNPRIVILEGED)


@pytest.fixture
def place(tiny_model: Path, tiny_adapters: Path) -> Iterator[Path]:
    """A folder that another user can read, with a model, adapters, and a state folder that is that user's."""
    if not (shutil.which("unshare") and shutil.which("setpriv")) or os.geteuid() != 0:
        pytest.skip("a mount namespace and another user's id need Linux and its root user")
    with tempfile.TemporaryDirectory(prefix="gemlane-confined-") as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(tiny_adapters, place / "adapters")
        (place / "adapters").chmod(0o755)
        shutil.copy(tiny_model, place / "base.gguf")
        (place / "state").mkdir()
        os.chown(place / "state", NOBODY, NOBODY)
        probe = (*confined(place / "state"), *COMMAND, "--version")
        done = subprocess.run(probe, capture_output=True, check=False, text=True, env=environment())
        if done.returncode != 0:
            pytest.skip(f"another user cannot run this installation: {done.stderr}")
        yield place


def status_of(pid: int) -> str:
    """What the kernel says of a process."""
    return Path(f"/proc/{pid}/status").read_text()


async def test_no_right_is_needed(place: Path) -> None:
    """Every voice answers, an adapter is uploaded and answers, and a killed engine comes back."""
    state = place / "state"
    with serving(place / "base.gguf", place / "adapters", prefix=confined(state), state=state) as server:
        status = status_of(server.process.pid)
        assert f"Uid:\t{NOBODY}\t{NOBODY}" in status
        assert "CapEff:\t0000000000000000" in status
        async with aiohttp.ClientSession() as session:
            for round_number in range(2):
                for voice in ("base", "pirate", "tag"):
                    question = QUESTIONS[round_number]
                    assert await ask_text(session, server, question, voice) == ANSWERS[voice][question]
                if round_number == 0:
                    (engine,) = server.engine_pids()
                    os.kill(engine, 9)
            weights = (place / "adapters" / "shout.gguf").read_bytes()
            async with session.put(f"{server.url}/adapters/uploaded", data=weights) as response:
                assert response.status == 201, await response.text()
            assert await ask_text(session, server, QUESTIONS[3], "uploaded") == ANSWERS["shout"][QUESTIONS[3]]
        assert server.stop() == 0
