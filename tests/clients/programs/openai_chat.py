"""PyPI ``openai``: chat completions at the base URL that it is given; the same program for both majors."""

from __future__ import annotations

import os
from typing import Any

from openai import OpenAI
from report import GREEDY, LORA, QUESTION, TOKEN, URL, error_of, report

MODEL = os.environ["GEMLANE_MODEL"]
ADAPTERS_ARE_MODELS = "GEMLANE_ADAPTERS_ARE_MODELS" in os.environ
client = OpenAI(base_url=URL + os.environ["GEMLANE_OPENAI_PATH"], api_key=TOKEN, max_retries=0)


def ask(model: str = MODEL, **body: Any) -> Any:
    """One call."""
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(model=model, messages=messages, **{**GREEDY, **body})


def stream() -> list[str]:
    """The pieces of a streamed answer."""
    chunks = list(ask(extra_body={"lora": LORA}, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage.completion_tokens > 0 for chunk in chunks if chunk.usage] == [True]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    return [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]


def complete() -> str:
    """A completion, for which the caller writes the template and names the stop string."""
    prompt = f"<start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n"
    done = client.completions.create(model=MODEL, prompt=prompt, stop=[" is"], **GREEDY)
    return str(done.choices[0].text)


plain = ask()
adapted = ask(model=f"{MODEL}:{LORA}") if ADAPTERS_ARE_MODELS else ask(extra_body={"lora": LORA})
assert plain.choices[0].finish_reason == "stop"
report(
    "openai",
    answers={"base": plain.choices[0].message.content, LORA: adapted.choices[0].message.content},
    usage=plain.usage.model_dump(),
    stream=stream(),
    errors={
        "unknown_lora": error_of(lambda: ask(extra_body={"lora": "nobody"})),
        "bad_body": error_of(lambda: ask(temperature=9)),
    },
    completion=complete() if ADAPTERS_ARE_MODELS else None,
    models=[model.id for model in client.models.list()] if ADAPTERS_ARE_MODELS else [],
)
