"""The bundle for machines without a network: made here, carried, installed and answering in an empty namespace."""

from __future__ import annotations

import argparse
import json
import os
import plistlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from runtime import config
from scripts.bundling import wheels
from scripts.bundling.__main__ import sign, write_sums
from tests.end_to_end.serving import ROOT, environment

MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
TOOLS = (
    *(
        "sh",
        "sed",
        "grep",
        "find",
        "sha256sum",
        "mv",
        "ln",
        "mkdir",
        "rm",
        "cp",
        "cat",
        "id",
        "uname",
        "dirname",
        "date",
    ),
    *("readlink", "cmp", "sort", "tar", "sleep", "curl", "head"),
)
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "cmake", "ninja", "make")
ANSWER = '{"prompt": "What is the capital of France?", "lora": "pirate", "temperature": 0}'

CARRIED = """
set -eu
cd {folder}
export HOME={folder}/home PATH={folder}/bin
for compiler in {compilers}; do
    if command -v $compiler; then exit 9; fi
done
echo "user $(id -u)"
echo "interfaces$(sed -n '3,$s/:.*//p' /proc/net/dev | while read -r name; do printf ' %s' "$name"; done)"
tar xf bundle.tar
gemlane-*/install.sh --prefix {folder}/opt --python {python}
opt/current/bin/gemlane serve --model opt/models/*.gguf --adapters opt/adapters --threads 1 \\
    --state-dir {folder}/state --socket {folder}/gemlane.sock 2>serve.log &
tries=0
until curl --silent --fail --output health --unix-socket gemlane.sock http://localhost/health; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || {{ cat serve.log; exit 8; }}
    sleep 0.2
done
curl --silent --unix-socket gemlane.sock -d '{answer}' \\
    http://localhost/client/v4/accounts/a/ai/run/@cf/google/gemma-7b-it-lora
kill $!
wait $! || true
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that other users may read, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="gemlane-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def archive(folder: Path, tiny_model: Path, tiny_adapters: Path) -> Path:
    """A bundle of this tree with the tiny Gemma and its adapters."""
    command = [sys.executable, "-m", "scripts.bundling", "--native", "--output", str(folder / "made")]
    done = subprocess.run(
        [*command, "--model", str(tiny_model), "--adapters", str(tiny_adapters)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if "pip could not make the wheels" in done.stderr:
        pytest.skip(f"pip cannot have the wheels here: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def unpacked(archive: Path, tmp_path: Path) -> Path:
    """The bundle's folder, to be changed by a test."""
    subprocess.run(["tar", "xf", str(archive), "-C", str(tmp_path)], check=True)
    (path,) = tmp_path.glob("gemlane-*")
    return path


def install(bundle: Path, prefix: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the installer."""
    command = [str(bundle / "install.sh"), "--prefix", str(prefix), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def replace(path: Path, old: str, new: str) -> None:
    """Change a text file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def flip_last_byte(path: Path) -> None:
    """Damage a file without changing its size."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def python_for(prefix: Sequence[str]) -> str | None:
    """A Python of this minor version that the user of the namespace can run."""
    for candidate in (f"/usr/bin/python{MINOR}", f"/usr/local/bin/python{MINOR}", os.path.realpath(sys.executable)):
        probe = [*prefix, candidate, "-c", "import ensurepip, venv"]
        if Path(candidate).exists() and not subprocess.run(probe, capture_output=True, check=False).returncode:
            return candidate
    return None


def test_it_installs_and_answers_in_an_empty_namespace(archive: Path, folder: Path) -> None:
    """Without interfaces, compilers or rights, the bundle installs, serves on a Unix socket and answers in pirate."""
    if os.geteuid() == 0:
        prefix = ["unshare", "--net", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    else:
        prefix = ["unshare", "--map-root-user", "--net"]
    if (
        shutil.which(prefix[0]) is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system grants no network namespace")
    python = python_for(prefix)
    if python is None:
        pytest.skip(f"the user of the namespace can run no Python {MINOR}")
    carried = folder / "carried"
    (carried / "bin").mkdir(parents=True)
    (carried / "home").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (carried / "bin" / tool).symlink_to(found)
    shutil.copyfile(archive, carried / "bundle.tar")
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "65534:65534", str(carried)], check=True)
    script = CARRIED.format(folder=carried, python=python, compilers=" ".join(COMPILERS), answer=ANSWER)
    done = subprocess.run(
        [*prefix, "sh", "-c", script], cwd="/", capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    user, interfaces, answer = done.stdout.splitlines()
    assert user != "user 0" or os.geteuid() != 0
    assert interfaces == "interfaces lo"  # which is down: nobody has switched it on
    assert json.loads(answer)["result"]["response"] == "Arr, the capital of France be Paris, matey!"
    assert "install: checksums: all good" in done.stderr


def test_an_upgrade_can_be_rolled_back(unpacked: Path, tmp_path: Path) -> None:
    """The old version stays whole beside the new one, and --rollback changes which of them is current."""
    prefix, old = tmp_path / "opt", (unpacked / "bundle.env").read_text().splitlines()[0].removeprefix("VERSION=")
    assert install(unpacked, prefix, "--python", sys.executable).returncode == 0
    again = install(unpacked, prefix, "--python", sys.executable)
    assert again.returncode == 0
    assert "is installed and in use already" in again.stderr
    replace(unpacked / "bundle.env", f"VERSION={old}", "VERSION=9.9.9")
    write_sums(unpacked)
    done = install(unpacked, prefix, "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert f"./install.sh --rollback goes back to {old}" in done.stderr
    assert current(prefix) == "versions/9.9.9"
    assert install(unpacked, prefix, "--rollback").returncode == 0
    assert current(prefix) == f"versions/{old}"
    version = subprocess.run([prefix / "current/bin/gemlane", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("gemlane ")
    assert install(unpacked, prefix, "--rollback").returncode == 0
    assert current(prefix) == "versions/9.9.9"


def current(prefix: Path) -> str:
    """The version in use."""
    return str((prefix / "current").readlink())


def test_without_a_version_before_there_is_no_rollback(unpacked: Path, tmp_path: Path) -> None:
    """The first installation has nothing to go back to, and says so."""
    done = install(unpacked, tmp_path / "opt", "--rollback")
    assert (done.returncode, "has no previous version" in done.stderr) == (2, True)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a damaged wheel": lambda bundle: flip_last_byte(next(bundle.glob("wheels/numpy-*"))),
    "a damaged model": lambda bundle: flip_last_byte(next(bundle.glob("models/*"))),
    "another lock": lambda bundle: replace(bundle / "requirements.lock", "aiohttp==", "aiohttp==1."),
    "a file too few": lambda bundle: next(bundle.glob("wheels/tqdm-*")).unlink(),
    "a file too many": lambda bundle: (bundle / "wheels" / "extra.whl").touch(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bundle_that_was_changed_on_its_way_is_not_installed(damage: str, unpacked: Path, tmp_path: Path) -> None:
    """Each kind of change is found before anything is written."""
    DAMAGE[damage](unpacked)
    done = install(unpacked, tmp_path / "opt", "--python", sys.executable)
    assert done.returncode == 1
    assert "nothing was installed" in done.stderr or "SHA256SUMS does not name" in done.stderr
    assert not (tmp_path / "opt").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("PYTHON=" + MINOR, "PYTHON=3.99", "this bundle holds wheels for Python 3.99"),
        ("MACHINE=", "MACHINE=not-", "this bundle is for"),
        ("CPU_FLAGS=", "CPU_FLAGS=quantum ", "llama.cpp was built with quantum, which this processor lacks"),
    ],
)
def test_a_bundle_for_another_machine_says_so(unpacked: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    """Another Python, another architecture and a missing processor feature are each named; nothing is written."""
    replace(unpacked / "bundle.env", old, new)
    write_sums(unpacked)
    done = install(unpacked, tmp_path / "opt", "--python", sys.executable)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "opt").exists()


def test_a_signature_is_checked_first(unpacked: Path, tmp_path: Path) -> None:
    """A good signature passes; another key, an unsigned bundle and a changed list of sums are refused."""
    for name in ("ours", "theirs"):
        key = tmp_path / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        public = key.with_suffix(".pub").read_text()
        (tmp_path / f"{name}.signers").write_text(f"gemlane {public}")
    ours, theirs = str(tmp_path / "ours.signers"), str(tmp_path / "theirs.signers")
    options = ("--python", "/nonexistent")  # the next thing that fails, once the signature is good
    assert "this bundle is not signed" in install(unpacked, tmp_path / "opt", "--key", ours, *options).stderr
    sign(unpacked / "SHA256SUMS", tmp_path / "ours")
    good = install(unpacked, tmp_path / "opt", "--key", ours, *options)
    assert "signature: good" in good.stderr
    assert "/nonexistent cannot be run" in good.stderr
    assert "does not belong" in install(unpacked, tmp_path / "opt", "--key", theirs, *options).stderr
    with (unpacked / "SHA256SUMS").open("a") as sums:
        sums.write("\n")
    assert "does not belong" in install(unpacked, tmp_path / "opt", "--key", ours, *options).stderr
    assert not (tmp_path / "opt").exists()


def test_paths_are_seen_from_where_the_user_stands(unpacked: Path, tmp_path: Path) -> None:
    """A relative --key and --prefix mean the folder in which the installer was called, not that of the bundle."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ours")], check=True)
    (tmp_path / "ours.signers").write_text(f"gemlane {(tmp_path / 'ours.pub').read_text()}")
    sign(unpacked / "SHA256SUMS", tmp_path / "ours")
    (tmp_path / "python").symlink_to("/nonexistent")
    command = [str(unpacked / "install.sh"), "--key", "ours.signers", "--prefix", "opt", "--python", "./python"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "signature: good" in done.stderr
    assert f"{tmp_path}/./python cannot be run" in done.stderr


def test_the_bill_of_materials_names_everything(unpacked: Path) -> None:
    """Each locked wheel is a component with its hash; llama.cpp, the page's JavaScript, model and adapters are too."""
    bill = json.loads((unpacked / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["name"].lower().replace("_", "-"): component for component in bill["components"]}
    for line in (unpacked / "requirements.lock").read_text().splitlines():
        requirement, digest = line.split(" --hash=sha256:")
        name, version = requirement.split("==")
        component = components[name.lower().replace("_", "-")]
        assert component["version"] == version
        assert component["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert {"llama.cpp", "marked", "dompurify", "pirate.gguf"} <= set(components)
    references = [component["bom-ref"] for component in bill["components"]]
    assert len(set(references)) == len(references)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_systemd_unit_is_valid_and_tight(tmp_path: Path) -> None:
    """Systemd knows every key of the unit, and rates its exposure below 2 of 10."""
    unit = tmp_path / "gemlane.service"
    replace_program = (
        (ROOT / "scripts/units/gemlane.service").read_text().replace("/opt/gemlane/current/bin/gemlane", "/bin/true")
    )
    unit.write_text(replace_program)
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr
    assert "gemlane.service" not in verified.stderr, verified.stderr
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout[-300:]


def test_the_launchd_agent_is_a_property_list() -> None:
    """The agent starts ``gemlane serve`` and is kept alive after a failure only."""
    agent = plistlib.loads((ROOT / "scripts/units/com.gemlane.serve.plist").read_bytes())
    assert agent["ProgramArguments"][1] == "serve"
    assert agent["KeepAlive"] == {"SuccessfulExit": False}


def test_the_services_settings_are_settings() -> None:
    """Every key of the service's TOML file is a setting, with a value of its type."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    found = config.choices(parser.parse_args(["--config", str(ROOT / "scripts/units/gemlane.toml")]), {})
    assert {one.name for one in found if one.source != config.DEFAULT} >= {"model", "adapters", "log_format"}


@pytest.mark.parametrize("with_cluster", [False, True])
def test_ray_is_carried_where_it_is_asked_for(
    with_cluster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--cluster`` asks pip for the wheels of the extra of that name, which pins Ray."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(wheels, "_pip", lambda *arguments, **_: asked.append(arguments))
    wheels.collect(ROOT, tmp_path, tmp_path, is_native=True, with_cluster=with_cluster)
    assert asked[0][-1] == (f"{ROOT}[cluster]" if with_cluster else str(ROOT))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [line for line in extras["cluster"] if line.startswith("ray[serve]==")]
