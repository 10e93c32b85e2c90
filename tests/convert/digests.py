"""One digest for all tensors of a GGUF file: names, types, shapes and bytes, read with the gguf package.

`python -m tests.convert.digests FILE...` prints what goes into `oracle_digests.json`. The recorded ones
were made from files that llama.cpp's own convert_hf_to_gguf.py, convert_lora_to_gguf.py and
llama_model_quantize wrote from `tests/tiny_gemma`, at the version of llama.cpp that llama-cpp-python 0.3.36
carries.
"""

import hashlib
import json
import sys
from pathlib import Path

from gguf import GGUFReader


def tensor_digest(path: Path) -> str:
    """Return the SHA-256 of all tensors of a GGUF file, in the order of their names."""
    digest = hashlib.sha256()
    for tensor in sorted(GGUFReader(path).tensors, key=lambda one: one.name):
        digest.update(f"{tensor.name} {tensor.tensor_type.name} {tensor.shape.tolist()} ".encode())
        digest.update(tensor.data.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(json.dumps({Path(name).stem: tensor_digest(Path(name)) for name in sys.argv[1:]}, indent=2))
