"""Runs one fuzz target for long under atheris, guided by coverage; see `tests.convert.fuzz`."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["convert"]):
    from tests.convert.fuzz import TARGETS, survive

if __name__ == "__main__":
    target, seed = TARGETS[sys.argv[1]]
    corpus = Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "seed").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda content: survive(target, content))
    atheris.Fuzz()
