"""Finds a model's or adapter's folder from the path that a user gives, and says what the path is if it is neither."""

import os
from pathlib import Path
from typing import Final

from convert.errors import ConvertError, MissingFile, UnsafeFile
from convert.files import describe_file, missing
from convert.formats import PICKLE, describe_folder

CONFIG_NAME: Final = "config.json"
ADAPTER_CONFIG_NAME: Final = "adapter_config.json"


def user_path(text: str) -> Path:
    """Return a path as a user gives it, with a leading `~` or `~user` replaced; an unknown user's stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def model_folder(path: Path) -> Path:
    """Return the folder of a checkpoint: `path`, or the one snapshot in a folder of the Hugging Face cache.

    Raises:
        MissingFile, UnsafeFile: It is not one; the message says what it is and what to do.
    """
    folder = snapshot_folder(path)
    if not folder.is_dir():
        raise _not_a_folder(folder, f"give the folder with {CONFIG_NAME} and *.safetensors")
    if (folder / CONFIG_NAME).exists():
        return folder
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise MissingFile(f"{folder}: an adapter, not a model; use `gemlane convert adapter` for it")
    raise unknown_folder(folder, f"no {CONFIG_NAME}: not the folder of a checkpoint")


def adapter_folder(path: Path) -> Path:
    """Return the folder of an adapter: `path`, or the one snapshot in a folder of the Hugging Face cache.

    Raises:
        MissingFile, UnsafeFile: It is not one; the message says what it is and what to do.
    """
    folder = snapshot_folder(path)
    if not folder.is_dir():
        raise _not_a_folder(folder, f"give the folder with {ADAPTER_CONFIG_NAME}")
    if (folder / ADAPTER_CONFIG_NAME).exists():
        return folder
    if (folder / CONFIG_NAME).exists():
        what = f"no {ADAPTER_CONFIG_NAME}: a model, not an adapter; use `gemlane convert model` for it"
        raise MissingFile(f"{folder}: {what}")
    raise unknown_folder(folder, f"no {ADAPTER_CONFIG_NAME}: not the folder of an adapter")


def unknown_folder(path: Path, otherwise: str) -> ConvertError:
    """Return the error for a folder that lacks what is needed: it says what the folder is, or `otherwise`."""
    with os.scandir(path) as entries:
        kinds = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    what = describe_folder([name for name, is_dir in kinds if not is_dir], [name for name, is_dir in kinds if is_dir])
    kind = UnsafeFile if what is not None and PICKLE in what else MissingFile
    return kind(f"{path}: {what or otherwise}")


def snapshot_folder(path: Path) -> Path:
    """Return the one snapshot in a folder of the Hugging Face cache; any other path as it is.

    Raises:
        MissingFile: There are several snapshots, or none.

    Source: huggingface_hub's cache layout (models--org--name/snapshots/<commit>).
    """
    snapshots = path / "snapshots"
    if not snapshots.is_dir() or not ((path / "refs").is_dir() or (path / "blobs").is_dir()):
        return path
    found = sorted(one for one in snapshots.iterdir() if one.is_dir())
    if len(found) == 1:
        return found[0]
    names = ", ".join(one.name for one in found) or "none"
    raise MissingFile(f"{path}: a folder of the Hugging Face cache with {len(found)} snapshots; give one: {names}")


def folder_name(path: Path) -> str:
    """Return what a folder is called; a snapshot in the Hugging Face cache is called like its model."""
    folder = path.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _not_a_folder(path: Path, remedy: str) -> ConvertError:
    if not path.exists():
        return missing(path, f"no such folder; {remedy}")
    what = describe_file(path)
    kind = UnsafeFile if what == PICKLE else MissingFile
    return kind(f"{path}: {what or 'a file, not a folder; ' + remedy}")
