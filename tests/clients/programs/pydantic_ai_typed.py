"""PyPI ``pydantic-ai``: a plain answer, a stream, tools that the model need not call, and typed output."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from report import LORA, QUESTION, TOKEN, error_of, report
from typed import MODEL, URL, Place

GREEDY = {"temperature": 0, "max_tokens": 64}


def model(name: str) -> OpenAIChatModel:
    """One of the server's models."""
    client = AsyncOpenAI(base_url=URL, api_key=TOKEN, max_retries=0)
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


def clock() -> str:
    """The time of day."""
    return "noon"


async def stream() -> list[str]:
    """The pieces of a streamed answer."""
    async with Agent(model(f"{MODEL}:{LORA}"), model_settings=GREEDY).run_stream(QUESTION) as result:
        return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]


async def main() -> dict[str, Any]:
    """Everything, one after the other."""
    plain = await Agent(model(MODEL), model_settings=GREEDY).run(QUESTION)
    adapted = await Agent(model(f"{MODEL}:{LORA}"), tools=[clock], model_settings=GREEDY).run(QUESTION)
    typed = Agent(model(MODEL), output_type=NativeOutput(Place), model_settings=GREEDY)
    placed = await typed.run("Describe Paris.")
    return {
        "answers": {"base": plain.output, LORA: adapted.output},
        "stream": await stream(),
        "typed": placed.output.model_dump(),
    }


if __name__ == "__main__":
    outcome = asyncio.run(main())
    unknown = error_of(lambda: asyncio.run(Agent(model(f"{MODEL}:nobody")).run("hi")))
    report("pydantic-ai-slim", **outcome, errors={"unknown_lora": unknown})
