"""PyPI ``instructor`` in the mode JSON_SCHEMA, which sends ``response_format``."""

from __future__ import annotations

import instructor
from openai import OpenAI
from report import LORA, QUESTION, TOKEN, error_of, report
from typed import MODEL, URL, Place

plain = OpenAI(base_url=URL, api_key=TOKEN, max_retries=0)
client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)


def ask(model: str) -> Place:
    """A typed answer."""
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(
        model=model, response_model=Place, messages=messages, temperature=0, max_tokens=64, max_retries=0
    )


report(
    "instructor",
    typed=ask(MODEL).model_dump(),
    adapted=ask(f"{MODEL}:{LORA}").model_dump(),
    errors={"unknown_lora": error_of(lambda: ask(f"{MODEL}:nobody"))},
)
