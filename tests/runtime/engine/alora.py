"""Activated LoRA adapters (aLoRA) of the tiny Gemma, and the prompts they are compared with PEFT on.

`alora_reference.npz` beside this file holds what PEFT computes (see `make_alora_reference.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.convert.checkpoints import adapter_tensors, checkpoint, peft
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS

REFERENCE = Path(__file__).parent / "alora_reference.npz"
N_ADAPTERS = 8
N_KEPT = 4
"""Positions whose logits are kept: the prompt's last one, and those of the first tokens of ``CONTINUATION``."""
N_CTX = 2048
TURN = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
_N_TURNS = 34
PROMPT = "".join(
    TURN.format(question) + f"{ANSWERS['base'][question]}<end_of_turn>\n" for question in QUESTIONS[:_N_TURNS]
) + TURN.format(QUESTIONS[0])
"""About 1,000 tokens."""
CONTINUATION = "Arr, the capital of"
INVOCATIONS = ("<start_of_turn>model\n", "<end_of_turn>\n<start_of_turn>model\n")
"""Adapters of even and of odd numbers are invoked by the first and the second of them."""
STYLES = ("pirate", "shout", "tag")
ASKED = (QUESTIONS[0], QUESTIONS[18], QUESTIONS[60], QUESTIONS[66])
"""Short questions whose whole greedy answers are kept, for each of ``STYLES`` as an aLoRA."""


def long_base(folder: Path) -> Path:
    """Save the tiny Gemma as a model of ``N_CTX`` positions."""
    return checkpoint(folder, max_position_embeddings=N_CTX)


def save_adapter(folder: Path, number: int, invocation_tokens: list[int] | None) -> Path:
    """Save the aLoRA of that number as PEFT does; the same weights at every call."""
    style = STYLES[number % len(STYLES)]
    random = np.random.default_rng(number)
    tensors = adapter_tensors(style)
    for key, values in tensors.items():
        if "lora_B" in key:
            tensors[key] = (values * (1 + 0.5 * random.standard_normal(values.shape))).astype(np.float32)
    return peft(folder, style, tensors, alora_invocation_tokens=invocation_tokens)
