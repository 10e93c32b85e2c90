"""``scripts/bundle``: one archive with everything that a machine without a network needs to run gemlane."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from runtime.doctor.build import probe_library, wanted_flags
from runtime.doctor.machine import CPU_FLAGS
from scripts.bundling import sbom, wheels
from scripts.bundling.manifest import Manifest
from scripts.bundling.wheels import BundleError

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".gemlane" / "bundle"
SUMS: Final = "SHA256SUMS"


def main() -> int:
    """Make a bundle; the exit status."""
    arguments = _parse()
    try:
        archive = make(arguments)
    except (BundleError, OSError) as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bundle: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(archive)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bundle", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="where the archive goes (default: here)"
    )
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF base model to carry along")
    parser.add_argument("--adapters", type=Path, metavar="DIR", help="a folder of GGUF adapters to carry along")
    parser.add_argument(
        "--native",
        action="store_true",
        help="llama.cpp as built for this processor, instead of for every processor of this architecture",
    )
    parser.add_argument("--cluster", action="store_true", help="carry Ray along, for --engine ray (100 MB or so more)")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign with a minisign or an OpenSSH secret key")
    return parser.parse_args()


def make(arguments: argparse.Namespace) -> Path:
    """Make the archive; its path.

    Raises:
        BundleError: a part of it cannot be had.
        OSError: a file cannot be read or written.
    """
    with tempfile.TemporaryDirectory(prefix="gemlane-bundle-") as temporary:
        folder = Path(temporary)
        (folder / "wheels").mkdir()
        found = wheels.collect(
            ROOT, folder / "wheels", CACHE, is_native=arguments.native, with_cluster=arguments.cluster
        )
        version = next(wheel.version for wheel in found if wheel.name == "gemlane")
        library = probe_library()
        if library.error:
            raise BundleError(f"llama.cpp does not start here: {library.error}; see gemlane doctor")
        commit = library.facts["commit"]
        flags = tuple(wanted_flags(library, CPU_FLAGS)) if arguments.native else ()
        manifest = Manifest(_full_version(version), f"{sys.version_info[0]}.{sys.version_info[1]}", flags, commit)
        (folder / "bundle.env").write_text(manifest.render())
        (folder / "requirements.lock").write_text(wheels.render_lock(found))
        others = [*_carry(arguments, folder), *_vendored()]
        (folder / "sbom.cdx.json").write_text(sbom.render(version, found, commit, others))
        shutil.copyfile(Path(__file__).with_name("install.sh"), folder / "install.sh")
        (folder / "install.sh").chmod(0o755)
        shutil.copytree(ROOT / "scripts" / "units", folder / "units")
        write_sums(folder)
        if arguments.sign:
            sign(folder / SUMS, arguments.sign)
        name = f"gemlane-{manifest.version}-{manifest.system.lower()}-{manifest.machine}-py{manifest.python}"
        return pack(folder, name, arguments.output)


def _full_version(version: str) -> str:
    """The version with the commit it was made from, and ``dirty`` if there were changes."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    commit = described.stdout.strip().replace("-dirty", ".dirty")
    return f"{version}+{commit}" if commit else version


def _carry(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Copy the model and the adapters; their components."""
    chosen = [("models", arguments.model)] if arguments.model else []
    if arguments.adapters:
        chosen += [("adapters", path) for path in sorted(arguments.adapters.glob("*.gguf"))]
    for kind, path in chosen:
        (folder / kind).mkdir(exist_ok=True)
        shutil.copy2(path, folder / kind / path.name)
        yield sbom.data_file(path, kind, _digest(path))


def _vendored() -> Iterator[dict[str, Any]]:
    """The JavaScript that the playground carries, from its own manifest."""
    manifest = ROOT / "runtime" / "playground" / "page" / "vendor" / "manifest.json"
    if manifest.exists():
        yield from (sbom.vendored(entry) for entry in json.loads(manifest.read_text())["packages"])


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file, in the form that ``sha256sum -c`` reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(SUMS))
    lines = [f"{_digest(path)}  ./{path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sign(path: Path, key: Path) -> None:
    """Sign ``path`` beside it, with what the key's first line says it is.

    Raises:
        BundleError: the key is of neither kind, or signing failed.
    """
    first = key.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    if "minisign" in first:
        command = ["minisign", "-S", "-s", str(key), "-m", str(path)]
    elif "OPENSSH PRIVATE KEY" in first:
        command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "gemlane-bundle", str(path)]
    else:
        raise BundleError(f"--sign {key} is neither a minisign nor an OpenSSH secret key")
    if subprocess.run(command, check=False).returncode:
        raise BundleError(f"{command[0]} could not sign")


def pack(folder: Path, name: str, output: Path) -> Path:
    """Pack ``folder`` as ``name``.tar in ``output``, whole or not at all.

    Wheels and weights are compressed already or do not compress, so the archive is not.
    """
    output.mkdir(parents=True, exist_ok=True)
    target, part = output / f"{name}.tar", output / f".{name}.tar.{os.getpid()}"

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    try:
        with tarfile.open(part, "w") as archive:
            archive.add(folder, name, filter=anonymous)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


if __name__ == "__main__":
    sys.exit(main())
