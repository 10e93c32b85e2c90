"""simonw's ``llm``: the command line, with the models that its configuration names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from report import LORA, QUESTION, TOKEN, report

URL = os.environ["GEMLANE_URL"] + "/v1"
MODEL = "gemma-7b-it-lora"
folder = Path(os.environ["HOME"]) / "llm"
folder.mkdir()
models = [
    {"model_id": name, "model_name": model, "api_base": URL, "api_key_name": "gemlane", "supports_schema": True}
    for name, model in (("base", MODEL), (LORA, f"{MODEL}:{LORA}"), ("nobody", f"{MODEL}:nobody"))
]
(folder / "extra-openai-models.yaml").write_text(json.dumps(models))
(folder / "keys.json").write_text(json.dumps({"gemlane": TOKEN}))


def llm(*words: str) -> subprocess.CompletedProcess[str]:
    """One command."""
    environment = os.environ | {"LLM_USER_PATH": str(folder)}
    command = [sys.executable, "-m", "llm", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)


def answer(*words: str) -> str:
    """What a command prints; it must succeed."""
    done = llm(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", "64")
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["city", "village"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["kind", "size"],
    "additionalProperties": False,
}
unknown = llm("prompt", "-m", "nobody", "hi")
assert unknown.returncode != 0
report(
    "llm",
    answers={
        "base": answer("prompt", "-m", "base", "--no-stream", *GREEDY, QUESTION),
        LORA: answer("prompt", "-m", LORA, *GREEDY, QUESTION),
    },
    typed=json.loads(answer("prompt", "-m", "base", "--schema", json.dumps(SCHEMA), *GREEDY, QUESTION)),
    errors={"unknown_lora": {"class": "", "status": None, "text": unknown.stderr}},
)
