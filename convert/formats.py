"""Recognises what a file or folder is by its first bytes or by its names, and says what to do with it.

Every command and the server use this one table, so that a user who brings the wrong thing learns what it is. Pure: it
gets bytes and names, and opens nothing.

Sources of the signatures: the formats' own specifications (ZIP, HDF5, NumPy NPY, gzip, Zstandard, xz, bzip2, 7z, tar,
the FlatBuffers identifier of TensorFlow Lite), Python's pickle protocol, and llama.cpp before GGUF.
"""

import re
from collections.abc import Iterable
from typing import Final

START_BYTES: Final = 512
"""How many first bytes of a file `describe` needs."""

LFS_MAGIC: Final = b"version https://git-lfs"
PICKLE: Final = "a pickle (torch.save): it can run any program and is never opened; save it as safetensors"
_OLD_GGML: Final = (
    "an old GGML file (llama.cpp before August 2023, which GGUF replaced); convert the original checkpoint or adapter"
)
_ARCHIVE: Final = "an archive; unpack it and give what is inside"
_KERAS: Final = "export the model from Keras to Hugging Face safetensors first"
_NUMPY: Final = "save the weights as safetensors"
_GGML_MAGICS: Final = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml, ggmf, ggjt and ggla as little-endian numbers
_ARCHIVE_MAGICS: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh", b"7z\xbc\xaf\x27\x1c")
# Signature at an offset -> what the file is and what to do.
_SIGNATURES: Final = (
    (0, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", PICKLE),
    (0, b"\x93NUMPY", f"a NumPy array; {_NUMPY}"),
    (0, b"\x89HDF\r\n\x1a\n", f"an HDF5 file (Keras weights); {_KERAS}"),
    (4, b"TFL3", "a TensorFlow Lite model; convert the model's Hugging Face checkpoint instead"),
    *((0, magic, _OLD_GGML) for magic in _GGML_MAGICS),
    *(
        (0, magic, _ARCHIVE)
        for magic in (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh", b"7z\xbc\xaf\x27\x1c")
    ),
    (257, b"ustar", _ARCHIVE),
)
_WEB_PAGE: Final = re.compile(rb"\s*(?:<!doctype html|<html|<head|<\?xml)", re.IGNORECASE)
_REFUSAL: Final = re.compile(
    rb"\s*(?:Access to (?:model|this)|Invalid (?:username|credentials|user)|Entry not found|Repository not found|"
    rb"Not Found|Unauthorized|Forbidden|Internal Server Error|Bad Gateway|\{\s*\"(?:error|message|detail)\")",
    re.IGNORECASE,
)
_ZIP: Final = b"PK\x03\x04"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_TRAINERS: Final = re.compile(r"checkpoint-([0-9]{1,9})")
_PICKLED: Final = re.compile(r"(?!training_args|optimizer|scheduler|scaler|rng_state).*\.(?:bin|pt|pth|ckpt|pkl)")
# The names of a folder's files -> what the folder is and what to do; the first that matches counts.
_FOLDERS: Final = (
    (re.compile(r".*\.gguf", re.IGNORECASE), "a folder of GGUF files; give one of them: {}"),
    (re.compile(r".*\.(?:h5|keras)"), f"a folder of Keras weights ({{}}); {_KERAS}"),
    (re.compile(r".*\.msgpack"), "a folder of Flax weights ({}); convert the model's safetensors checkpoint instead"),
    (re.compile(r".*\.np[yz]"), f"a folder of NumPy arrays ({{}}); {_NUMPY}"),
    (
        re.compile(r".*\.(?:tflite|task)"),
        "a folder of a TensorFlow Lite model ({}); convert the safetensors checkpoint",
    ),
)


def describe(start: bytes) -> str | None:
    """Say what a file is and what to do with it; None if that is not known.

    Args:
        start: Its first `START_BYTES` bytes, or all of it if it is shorter.
    """
    if not start:
        return "an empty file; copy or download it again"
    if start.startswith(LFS_MAGIC):
        return "a git-LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if start.startswith(_ZIP):
        return _describe_zip(start)
    for offset, signature, what in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return what
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return PICKLE
    if _WEB_PAGE.match(start):
        return "a web page instead of the file; log in, accept the model's licence and download it again"
    if _REFUSAL.match(start):
        return "a server's refusal instead of the file; log in, accept the model's licence and download it again"
    if not any(start):
        return "a file of zeros, as a download leaves that reserved its space and stopped; download it again"
    return _describe_own(start)


def _describe_zip(start: bytes) -> str:
    """Tell apart what is packed as ZIP by the name of the first member."""
    n_name = int.from_bytes(start[26:28], "little")
    first = start[30 : 30 + n_name].decode("utf-8", "replace")
    if first.rpartition("/")[2] in ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment"):
        return PICKLE
    if first.endswith(".npy"):
        return f"a NumPy archive (.npz); {_NUMPY}"
    if first in ("metadata.json", "config.json", "model.weights.h5"):
        return f"a Keras archive; {_KERAS}"
    return _ARCHIVE


def _describe_own(start: bytes) -> str | None:
    """Name the formats that this program reads, for readers of another one."""
    if start.startswith(b"GGUF"):
        return "a GGUF file: converted already; serve it, or give it as --base"
    if start.startswith(b"FUGG"):
        return "a big-endian GGUF file; only little-endian ones are read"
    if len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return "a safetensors file, which `gemlane convert` makes a GGUF of; give the folder that holds it"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return "a JSON file, not weights"
    return None


def describe_folder(names: Iterable[str], folders: Iterable[str]) -> str | None:
    """Say what a folder is that holds no model or adapter itself; None if that is not known.

    Args:
        names: Those of its files.
        folders: Those of its folders.
    """
    names, folders = sorted(names), sorted(folders)
    steps = sorted(int(match[1]) for name in folders if (match := _TRAINERS.fullmatch(name)))
    if steps:
        return f"the folder of a training run; give one of its checkpoints: checkpoint-{steps[-1]}"
    for pattern, what in _FOLDERS:
        if found := [name for name in names if pattern.fullmatch(name)]:
            return what.format(found[0])
    if found := [name for name in names if _PICKLED.fullmatch(name)]:
        return f"its weights are only there as {found[0]}, {PICKLE}"
    if not names and not folders:
        return "an empty folder"
    if not names and len(folders) == 1:
        return f"a folder around another one; give that: {folders[0]}"
    return None


def looks_like_hub_name(path: str) -> bool:
    """Say whether a path reads like `organisation/model` on the Hugging Face Hub."""
    return _HUB_NAME.fullmatch(path) is not None


HUB_REMEDY: Final = (
    "no such file or folder; if this is a name on the Hugging Face Hub, fetch it first: hf download {0} --local-dir {1}"
)
