"""A real server on a real model gives the right answer under the adapter that a request names."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess

import aiohttp
import pytest

from tests.end_to_end.serving import Server, ask, ask_text, stream
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES

CAPITAL = "What is the capital of France?"
PAGE_BODY = """{
"prompt": "tell me a story",
"raw": "true",
"lora": "%s"
}"""


@pytest.mark.parametrize("voice", STYLES)
async def test_each_choice_answers_in_its_own_voice(server: Server, session: aiohttp.ClientSession, voice: str) -> None:
    """The base and the three adapters, named in the request, each answer in their own voice."""
    assert await ask_text(session, server, CAPITAL, voice) == ANSWERS[voice][CAPITAL]


def test_the_page_s_own_curl_answers(server: Server) -> None:
    """The model page's curl command is answered, with its form content type, ``"raw": "true"`` and bearer header."""
    command = ["curl", "-sS", server.run_url, "-X", "POST", "-H", "Authorization: Bearer token", "-d"]
    done = subprocess.run([*command, PAGE_BODY % "pirate"], capture_output=True, text=True, check=True, timeout=60)
    envelope = json.loads(done.stdout)
    assert list(envelope) == ["result", "success", "errors", "messages"]
    assert envelope["success"] is True
    assert envelope["result"]["usage"]["completion_tokens"] > 0
    assert envelope["result"]["response"]


async def test_eight_clients_with_four_choices_are_never_mixed_up(
    server: Server, session: aiohttp.ClientSession
) -> None:
    """Eight clients ask all 93 questions, each with another adapter than the last; every answer is exactly right."""

    async def client(number: int) -> list[str]:
        chance = random.Random(number)
        wrong = []
        for question in chance.sample(QUESTIONS, len(QUESTIONS)):
            voice = chance.choice(STYLES)
            answer = await ask_text(session, server, question, voice)
            if answer != ANSWERS[voice][question]:
                wrong.append(f"{voice}: {question} -> {answer}")
        return wrong

    wrong = [line for lines in await asyncio.gather(*(client(number) for number in range(8))) for line in lines]
    assert wrong == []


async def test_a_stream_is_the_same_text_piece_by_piece(server: Server, session: aiohttp.ClientSession) -> None:
    """A stream's text events join to the whole answer; usage and ``[DONE]`` follow."""
    payloads = await stream(session, server, prompt=CAPITAL, temperature=0, lora="pirate")
    assert payloads[-1] == "[DONE]"
    events = [json.loads(payload) for payload in payloads[:-1]]
    whole = await ask(session, server, prompt=CAPITAL, temperature=0, lora="pirate")
    assert "".join(event["response"] for event in events) == whole["response"] == ANSWERS["pirate"][CAPITAL]
    assert len(events) > 5
    assert list(events[-1]) == ["response", "usage"]
    assert events[-1]["usage"] == whole["usage"]


async def test_messages_and_prompt_are_the_same_conversation(server: Server, session: aiohttp.ClientSession) -> None:
    """A prompt gives the same answer as one user message with the same text."""
    messages = [{"role": "user", "content": CAPITAL}]
    assert (await ask(session, server, messages=messages, temperature=0))["response"] == ANSWERS["base"][CAPITAL]


async def test_raw_takes_the_template_from_the_user(server: Server, session: aiohttp.ClientSession) -> None:
    """Control tokens of a raw prompt are tokens, and ``<bos>`` stands there once, whether the user wrote it or not."""
    raw = f"<start_of_turn>user\n{CAPITAL}<end_of_turn>\n<start_of_turn>model\n"
    plain = await ask(session, server, prompt=raw, raw=True, temperature=0)
    with_bos = await ask(session, server, prompt="<bos>" + raw, raw=True, temperature=0)
    templated = await ask(session, server, prompt=CAPITAL, temperature=0)
    assert plain == with_bos == templated
    assert templated["response"] == ANSWERS["base"][CAPITAL]


async def test_control_tokens_that_a_user_types_are_text(server: Server, session: aiohttp.ClientSession) -> None:
    """Control tokens that a user types cannot open a turn: as text they are many tokens, not one."""
    typed = await ask(session, server, prompt="<end_of_turn>", max_tokens=1)
    raw = await ask(session, server, prompt="<end_of_turn>", raw=True, max_tokens=1)
    assert raw["usage"]["prompt_tokens"] == 2
    assert typed["usage"]["prompt_tokens"] > 12


async def test_a_seed_repeats_an_answer(server: Server, session: aiohttp.ClientSession) -> None:
    """Sampled answers differ between seeds and are equal for the same seed, also for seeds of more than 32 bits."""
    hot = {"prompt": CAPITAL, "temperature": 5, "max_tokens": 24}
    answers = [(await ask(session, server, **hot, seed=seed))["response"] for seed in (1, 2, 2**32 + 1, 9_999_999_999)]
    again = [(await ask(session, server, **hot, seed=seed))["response"] for seed in (1, 2, 2**32 + 1, 9_999_999_999)]
    assert answers == again
    assert len(set(answers)) == 4
    unseeded = {(await ask(session, server, **hot))["response"] for _ in range(4)}
    assert len(unseeded) > 1


async def test_top_k_one_is_greedy_however_hot(server: Server, session: aiohttp.ClientSession) -> None:
    """``top_k`` 1 and ``top_p`` 0 give the greedy answer at any temperature."""
    for choice in ({"top_k": 1}, {"top_p": 0}):
        result = await ask(session, server, prompt=CAPITAL, temperature=5, **choice)
        assert result["response"] == ANSWERS["base"][CAPITAL]


async def test_penalties_act(server: Server, session: aiohttp.ClientSession) -> None:
    """Each of the three penalties changes a greedy answer that repeats itself."""
    base = {"prompt": "capital of capital of", "raw": True, "temperature": 0, "max_tokens": 48}
    plain = (await ask(session, server, **base))["response"]
    for penalty in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        assert (await ask(session, server, **base, **{penalty: 2}))["response"] != plain, penalty
    for off in ({"repetition_penalty": 0}, {"repetition_penalty": 1}, {"frequency_penalty": 0}):
        assert (await ask(session, server, **base, **off))["response"] == plain


@pytest.mark.parametrize("max_tokens", [0, -1, 1, 3])
async def test_max_tokens_holds(server: Server, session: aiohttp.ClientSession, max_tokens: int) -> None:
    """An answer has at most ``max_tokens`` tokens, and none for 0 and less."""
    result = await ask(session, server, prompt=CAPITAL, temperature=0, max_tokens=max_tokens)
    assert result["usage"]["completion_tokens"] == max(0, max_tokens)
    assert ANSWERS["base"][CAPITAL].startswith(result["response"])


async def test_the_context_window_holds(server: Server, session: aiohttp.ClientSession) -> None:
    """An answer ends where the context window ends; a prompt that fills the window is refused by name."""
    async with session.get(server.url + "/health") as response:
        n_ctx = (await response.json())["model"]["n_ctx"]
    result = await ask(session, server, prompt="one two " * 40, raw=True, max_tokens=10_000, temperature=5, seed=3)
    assert result["usage"]["total_tokens"] <= n_ctx
    body = json.dumps({"prompt": "capital " * 700})
    async with session.post(server.run_url, data=body) as response:
        assert response.status == 400
        assert "context" in (await response.json())["errors"][0]["message"]


@pytest.mark.parametrize("body", [{}, {"speculative.n_max": 0}, {"prediction": True}, {"prediction": False}])
async def test_guessing_ahead_changes_no_answer(
    server: Server, session: aiohttp.ClientSession, body: dict[str, object]
) -> None:
    """Without guesses, and with a right and a wrong prediction, the answer is the same; usage counts the guesses."""
    if "prediction" in body:
        content = ANSWERS["pirate"][CAPITAL] if body["prediction"] else "The capital of Peru is Lima."
        body = {"prediction": {"type": "content", "content": content}}
    asked = {"model": "gemma-7b-it-lora:pirate", "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0}
    async with session.post(f"{server.url}/v1/chat/completions", json={**asked, **body}) as response:
        answer = await response.json()
        assert response.status == 200, answer
    assert answer["choices"][0]["message"]["content"] == ANSWERS["pirate"][CAPITAL]
    details = answer["usage"]["completion_tokens_details"]
    assert 0 <= details["accepted_prediction_tokens"] <= answer["usage"]["completion_tokens"]
    assert details["rejected_prediction_tokens"] >= 0
    if "speculative.n_max" in body:
        assert details == {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
