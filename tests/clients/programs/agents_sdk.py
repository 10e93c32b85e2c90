"""PyPI ``openai-agents``: agents on the Responses API, which is the SDK's default."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from report import LORA, QUESTION, TOKEN, error_of, report
from typed import MODEL, URL, Place

set_tracing_disabled(disabled=True)
GREEDY = ModelSettings(temperature=0, max_tokens=64)


@function_tool
def clock() -> str:
    """The time of day."""
    return "noon"


def agent(model: str, **options: object) -> Agent:
    """An agent of a model."""
    return Agent(name="gemma", model=model, model_settings=GREEDY, **options)


async def stream() -> list[str]:
    """The pieces of a streamed answer."""
    run = Runner.run_streamed(agent(f"{MODEL}:{LORA}"), QUESTION)
    deltas = [event.data async for event in run.stream_events() if event.type == "raw_response_event"]
    return [data.delta for data in deltas if isinstance(data, ResponseTextDeltaEvent)]


def connect() -> None:
    """Let all agents ask this server, in the event loop that runs next."""
    set_default_openai_client(AsyncOpenAI(base_url=URL, api_key=TOKEN, max_retries=0), use_for_tracing=False)


async def main() -> dict[str, Any]:
    """Everything, one after the other."""
    connect()
    plain = await Runner.run(agent(MODEL), QUESTION)
    adapted = await Runner.run(agent(f"{MODEL}:{LORA}", tools=[clock]), QUESTION)
    typed = await Runner.run(agent(MODEL, output_type=Place), "Describe Paris.")
    return {
        "answers": {"base": plain.final_output, LORA: adapted.final_output},
        "stream": await stream(),
        "typed": typed.final_output.model_dump(),
        "usage": {"total_tokens": plain.context_wrapper.usage.total_tokens},
    }


async def ask_nobody() -> None:
    """Ask an adapter that is not there."""
    connect()
    await Runner.run(agent(f"{MODEL}:nobody"), "hi")


if __name__ == "__main__":
    outcome = asyncio.run(main())
    report("openai-agents", **outcome, errors={"unknown_lora": error_of(lambda: asyncio.run(ask_nobody()))})
