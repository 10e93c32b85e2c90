"""PyPI ``langchain-openai``: invoke, stream, batch, bound tools, and ``with_structured_output``."""

from __future__ import annotations

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from report import LORA, QUESTION, TOKEN, error_of, report
from typed import MODEL, URL, Place


def chat(model: str) -> ChatOpenAI:
    """One of the server's models."""
    return ChatOpenAI(model=model, base_url=URL, api_key=TOKEN, temperature=0, max_tokens=64, max_retries=0)


@tool
def clock() -> str:
    """The time of day."""
    return "noon"


adapted = chat(f"{MODEL}:{LORA}")
report(
    "langchain-openai",
    answers={"base": chat(MODEL).invoke(QUESTION).content, LORA: adapted.bind_tools([clock]).invoke(QUESTION).content},
    stream=[str(chunk.content) for chunk in adapted.stream(QUESTION)],
    batch=[str(message.content) for message in adapted.batch([QUESTION] * 6)],
    usage=chat(MODEL).invoke(QUESTION).usage_metadata,
    typed=chat(MODEL).with_structured_output(Place).invoke("Describe Paris.").model_dump(),
    errors={"unknown_lora": error_of(lambda: chat(f"{MODEL}:nobody").invoke("hi"))},
)
