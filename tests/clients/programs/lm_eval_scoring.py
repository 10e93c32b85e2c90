"""PyPI ``lm-eval``: its model ``local-completions`` scores continuations through the server.

The items come as JSON from the test, and the scores go back to it; the tokenizer is the checkpoint's own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from report import LORA, TOKEN, report

URL = os.environ["GEMLANE_URL"] + "/v1/completions"
os.environ["OPENAI_API_KEY"] = TOKEN
items = json.loads(Path(os.environ["GEMLANE_ITEMS"]).read_text())


def score(model: str, batch_size: int) -> list[list[float | bool]]:
    """The sum of logprobs of each continuation, and whether it is the greedy one."""
    lm = LocalCompletionsAPI(
        model=model,
        base_url=URL,
        tokenizer=os.environ["GEMLANE_TOKENIZER"],
        tokenizer_backend="huggingface",
        max_length=512,
        batch_size=batch_size,
    )
    requests = [Instance("loglikelihood", {}, tuple(item), index) for index, item in enumerate(items)]
    return [list(pair) for pair in lm.loglikelihood(requests)]


report(
    "lm-eval",
    scores={
        "base": score("gemma-7b-it-lora", 1),
        "batched": score("gemma-7b-it-lora", 5),
        LORA: score(f"gemma-7b-it-lora:{LORA}", 1),
    },
)
