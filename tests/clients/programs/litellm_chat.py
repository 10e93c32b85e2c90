"""PyPI ``litellm`` with its ``cloudflare`` provider."""

from __future__ import annotations

from typing import Any

import litellm
from report import GREEDY, LORA, MODEL, QUESTION, TOKEN, URL, error_of, report

litellm.telemetry = False


def ask(**body: Any) -> Any:
    """One call."""
    return litellm.completion(
        model=f"cloudflare/{MODEL}",
        messages=[{"role": "user", "content": QUESTION}],
        api_base=f"{URL}/client/v4/accounts/local/ai/v1",
        api_key=TOKEN,
        num_retries=0,
        **{**GREEDY, **body},
    )


plain = ask()
report(
    "litellm",
    answers={
        "base": plain.choices[0].message.content,
        LORA: ask(extra_body={"lora": LORA}).choices[0].message.content,
    },
    usage=plain.usage.model_dump(),
    stream=[chunk.choices[0].delta.content or "" for chunk in ask(extra_body={"lora": LORA}, stream=True)],
    errors={
        "unknown_lora": error_of(lambda: ask(extra_body={"lora": "nobody"})),
        "bad_body": error_of(lambda: ask(temperature=9)),
    },
)
