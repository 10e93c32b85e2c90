"""Base models and adapters as people bring them, through a whole server: right answers, or reasons by name."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import aiohttp

from tests.convert.plans import STRING, drop, put, token, token_type, write_base
from tests.end_to_end.serving import Server, ask, ask_text, serving
from tests.tiny_gemma.facts import ANSWERS

FRANCE = "What is the capital of France?"
NORMAL = 1
N_CHAT_TOKENS = 19  # of FRANCE in Gemma's template, by SentencePiece with the tiny Gemma's tokenizer.model


async def health_of(session: aiohttp.ClientSession, server: Server) -> dict[str, Any]:
    """What ``/health`` shows."""
    async with session.get(f"{server.url}/health") as response:
        return dict(await response.json())


async def refused(session: aiohttp.ClientSession, server: Server, **body: Any) -> str:
    """The answer to a request that must fail."""
    async with session.post(server.run_url, data=json.dumps(body)) as response:
        assert response.status >= 400
        return await response.text()


async def test_a_base_of_spring_2024_answers_rightly(
    session: aiohttp.ClientSession, tiny_adapters: Path, tmp_path: Path
) -> None:
    """No add_space_prefix and NORMAL turn tokens: the prompt has its 19 tokens, and /health says what is missing."""
    changes = (drop("tokenizer.ggml.add_space_prefix"), token_type(NORMAL, 106, 107))
    with serving(write_base(tmp_path / "old.gguf", *changes), tiny_adapters) as server:
        answer = await ask(session, server, prompt=FRANCE, temperature=0, max_tokens=64)
        assert answer["response"] == ANSWERS["base"][FRANCE]
        assert answer["usage"]["prompt_tokens"] == N_CHAT_TOKENS
        warnings = " ".join((await health_of(session, server))["model"]["warnings"])
        assert "add_space_prefix is missing" in warnings
        assert "does not mark <start_of_turn> as a control token" in warnings
        assert any("add_space_prefix is missing" in line for line in server.log)


async def test_a_base_without_turn_tokens_refuses_chat_by_name(
    session: aiohttp.ClientSession, tiny_adapters: Path, tmp_path: Path
) -> None:
    """Renamed turn tokens: chat is refused with the reason, raw prompts are answered, /health warns."""
    changes = (token(106, b"<|im_start|>"), token(107, b"<|im_end|>"))
    with serving(write_base(tmp_path / "renamed.gguf", *changes), tiny_adapters) as server:
        reason = await refused(session, server, prompt=FRANCE)
        assert "its vocabulary has no <start_of_turn>, <end_of_turn>; send a raw prompt" in reason
        raw = f"<|im_start|>user\n{FRANCE}<|im_end|>\n<|im_start|>model\n"
        answer = await ask(session, server, prompt=raw, raw=True, temperature=0, max_tokens=64)
        assert str(answer["response"]).startswith(ANSWERS["base"][FRANCE])
        assert "chat is refused" in " ".join((await health_of(session, server))["model"]["warnings"])


async def test_a_base_with_another_template_warns(
    session: aiohttp.ClientSession, tiny_adapters: Path, tmp_path: Path
) -> None:
    """ChatML in chat_template: chat is served in Gemma's template, and /health says so."""
    path = write_base(tmp_path / "chatml.gguf", put("tokenizer.chat_template", STRING, "<|im_start|>{{ role }}"))
    with serving(path, tiny_adapters) as server:
        assert await ask_text(session, server, FRANCE) == ANSWERS["base"][FRANCE]
        assert "chat_template is not Gemma's" in " ".join((await health_of(session, server))["model"]["warnings"])


async def test_an_adapter_overwritten_in_place_gives_no_other_voice(
    session: aiohttp.ClientSession, tiny_model: Path, tiny_adapters: Path, tmp_path: Path
) -> None:
    """After `cp` over a served file an answer is in the old voice or the new one, or an error without a path."""
    folder = tmp_path / "adapters"
    shutil.copytree(tiny_adapters, folder)
    right = {ANSWERS["pirate"][FRANCE], ANSWERS["shout"][FRANCE]}
    with serving(tiny_model, folder, "--lanes", "2") as server:
        assert await ask_text(session, server, FRANCE, "pirate") == ANSWERS["pirate"][FRANCE]
        (folder / "pirate.gguf").write_bytes((tiny_adapters / "shout.gguf").read_bytes())
        os.utime(folder / "pirate.gguf")
        answers: list[str] = []
        for voice in ("tag", "shout", "tag", "shout"):  # which take the lanes
            await ask_text(session, server, FRANCE, voice)
        async with asyncio.timeout(60):
            while not answers or answers[-1] != ANSWERS["shout"][FRANCE]:
                body = json.dumps({"prompt": FRANCE, "lora": "pirate", "temperature": 0, "max_tokens": 64})
                async with session.post(server.run_url, data=body) as response:
                    text = await response.text()
                    if response.status == 200:
                        answers.append(json.loads(text)["result"]["response"])
                        assert answers[-1] in right
                    else:
                        assert str(tmp_path) not in text
                        assert "pirate" in text
                await asyncio.sleep(0.1)
        assert answers[-1] == ANSWERS["shout"][FRANCE]
