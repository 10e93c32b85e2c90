"""PyPI ``langchain-cloudflare``: its chat model, invoked and streamed."""

from __future__ import annotations

from typing import Any

from langchain_cloudflare import ChatCloudflareWorkersAI
from report import GREEDY, LORA, MODEL, QUESTION, TOKEN, URL, error_of, report


def chat(**options: Any) -> ChatCloudflareWorkersAI:
    """A chat model of the server's."""
    return ChatCloudflareWorkersAI(
        model=MODEL,
        cloudflare_account_id="local",
        cloudflare_api_token=TOKEN,
        cloudflare_api_base=f"{URL}/client/v4",
        max_retries=0,
        **{**GREEDY, **options},
    )


plain = chat().invoke(QUESTION)
report(
    "langchain-cloudflare",
    answers={"base": plain.content, LORA: chat(model_kwargs={"lora": LORA}).invoke(QUESTION).content},
    usage=plain.usage_metadata,
    stream=[str(chunk.content) for chunk in chat(model_kwargs={"lora": LORA}).stream(QUESTION)],
    errors={
        "unknown_lora": error_of(lambda: chat(model_kwargs={"lora": "nobody"}).invoke(QUESTION)),
        "bad_body": error_of(lambda: chat(temperature=9).invoke(QUESTION)),
    },
)
