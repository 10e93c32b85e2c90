"""Blends and activated LoRA over HTTP: every way of naming them, and what they answer."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from yarl import URL

from convert.conversion.conversion import Options, convert_adapter, convert_model, merge
from tests.convert.checkpoints import peft
from tests.end_to_end.serving import Server, ask, serving
from tests.runtime.engine.alora import ASKED, N_ADAPTERS, PROMPT, REFERENCE, STYLES, TURN, long_base, save_adapter
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS
from tests.tiny_gemma.files import ADAPTERS, BASE

F32 = Options("f32")
EXACT = ("--lane-type", "f32", "--kv-type", "f32")
SCALES = {"pirate": 0.7, "shout": -0.4, "tag": 1.3}
TEXT = "+".join(f"{name}:{scale}" for name, scale in SCALES.items())
LIST = [{"name": name, "scale": scale} for name, scale in SCALES.items()]
WARM = {"temperature": 1.0, "max_tokens": 24}
CHAT = "/v1/chat/completions"
BASE_MODEL = "gemma-7b-it-lora"
MODEL = f"{BASE_MODEL}:{TEXT}"
# Measured: 0.0006 between a blend and its merged model, where the base is 7 off.
BLEND_TOLERANCE = 0.005
# llama.cpp's GELU is a table in F16, PEFT's is exact. Measured: 0.023 at most after 1,011 tokens.
PEFT_TOLERANCE = 0.04
ONE_ENGINE = pytest.mark.skipif(
    int(os.environ.get("GEMLANE_REPLICAS", "1")) > 1,
    reason="each replica keeps prefixes of its own, and the blends of this test go to more than one",
)


@pytest.fixture(scope="module")
def adapters(tiny_model_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three voices in F32, each as an aLoRA besides (``a-pirate``), and one whose name holds both marks."""
    folder = tmp_path_factory.mktemp("adapters")
    with np.load(REFERENCE) as file:
        invocation = file["invocation_0"].tolist()
    for style in STYLES:
        convert_adapter(ADAPTERS[style], tiny_model_f32, folder / f"{style}.gguf", F32)
        source = peft(folder / f".{style}", style, alora_invocation_tokens=invocation)
        convert_adapter(source, tiny_model_f32, folder / f"a-{style}.gguf", F32)
    convert_adapter(ADAPTERS["tag"], tiny_model_f32, folder / "odd:name+1.gguf", Options("q8_0"))
    return folder


@pytest.fixture(scope="module")
def exact_server(tiny_model_f32: Path, adapters: Path) -> Iterator[Server]:
    """The tiny Gemma, its adapters, lanes and cache in F32."""
    with serving(tiny_model_f32, adapters, *EXACT) as running:
        yield running


@pytest.fixture(scope="module")
def merged_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the merged model, without any adapter."""
    folder = tmp_path_factory.mktemp("merged")
    parts = [(ADAPTERS[name], scale) for name, scale in SCALES.items()]
    merge(BASE, parts, folder / "merged.gguf", F32)
    with serving(folder / "merged.gguf", folder, *EXACT) as running:
        yield running


async def answers(session: aiohttp.ClientSession, server: Server, bodies: list[dict[str, Any]]) -> list[str]:
    """The answers to many requests, eight at a time."""
    gate = asyncio.Semaphore(8)

    async def one(body: dict[str, Any]) -> str:
        async with gate:
            return str((await ask(session, server, **body))["response"])

    return list(await asyncio.gather(*map(one, bodies)))


async def test_a_blend_is_the_merged_model(
    exact_server: Server, merged_server: Server, session: aiohttp.ClientSession
) -> None:
    """All 93 questions greedily, and 20 sampled with their seeds: word for word what the merged model answers."""
    bodies = [{"prompt": question, "temperature": 0, "max_tokens": 48} for question in QUESTIONS]
    bodies += [{"prompt": QUESTIONS[seed], "seed": seed, **WARM} for seed in range(1, 21)]
    expected = await answers(session, merged_server, bodies)
    forms: list[Any] = [TEXT, LIST]
    found = await answers(session, exact_server, [body | {"lora": forms[n % 2]} for n, body in enumerate(bodies)])
    assert found == expected
    plain = await answers(session, exact_server, bodies)
    assert sum(one != other for one, other in zip(plain, expected, strict=True)) > 80


async def completion(session: aiohttp.ClientSession, server: Server, **body: Any) -> dict[str, Any]:
    """A plain completion that must succeed: the choice, with ``usage`` beside it."""
    async with session.post(f"{server.url}/v1/completions", json={"model": BASE_MODEL, **body}) as response:
        answer = json.loads(await response.read())
        assert response.status == 200, answer
    return {**answer["choices"][0], "usage": answer["usage"]}


async def test_the_logprobs_of_a_blend_are_the_merged_models(
    exact_server: Server, merged_server: Server, session: aiohttp.ClientSession
) -> None:
    """The five likeliest tokens at each place of ten prompts and their answers have the merged model's logprobs."""
    asked = {"temperature": 0, "max_tokens": 16, "logprobs": 5, "echo": True}
    for question in QUESTIONS[:10]:
        prompt = TURN.format(question)
        merged = await completion(session, merged_server, prompt=prompt, **asked)
        blend = await completion(session, exact_server, prompt=prompt, lora=LIST, **asked)
        base = await completion(session, exact_server, prompt=prompt, **asked)
        assert blend["text"] == merged["text"]
        assert difference(blend, merged) < BLEND_TOLERANCE
        assert difference(base, merged) > 1


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of the logprobs of two completions, as far as both have them."""
    places = zip(one["logprobs"]["top_logprobs"], other["logprobs"]["top_logprobs"], strict=False)
    both = [(mine, its) for mine, its in places if mine and its]
    differences: list[float] = [abs(mine[token] - its[token]) for mine, its in both for token in mine if token in its]
    return max(differences)


@pytest.mark.parametrize(
    "fields",
    [{"lora": TEXT}, {"lora": LIST}, {"model": MODEL}, {"model": MODEL, "lora": TEXT}],
    ids=["text", "list", "model", "both"],
)
async def test_every_openai_form_is_the_same_blend(
    exact_server: Server, session: aiohttp.ClientSession, fields: dict[str, Any]
) -> None:
    """A string, a list and the model's name give one blend, which has one prefix in the cache."""
    native = await ask(session, exact_server, prompt=QUESTIONS[1], lora=TEXT, temperature=0, max_tokens=48)
    body = {"model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": QUESTIONS[1]}], "temperature": 0}
    async with session.post(exact_server.url + CHAT, json=body | {"max_tokens": 48} | fields) as response:
        answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == native["response"]
    usage = answer["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


async def test_a_blend_in_the_url(exact_server: Server, session: aiohttp.ClientSession) -> None:
    """The plus sign is written %2B there; written as it is, it is a space, and the error says so."""
    body = {"prompt": QUESTIONS[1], "temperature": 0, "max_tokens": 48}
    native = await ask(session, exact_server, **body, lora=TEXT)
    url = f"{exact_server.run_url}?lora=".replace("@", "%40")
    async with session.post(URL(url + TEXT.replace("+", "%2B"), encoded=True), json=body) as response:
        assert (await response.json())["result"]["response"] == native["response"]
    async with session.post(URL(url + TEXT, encoded=True), json=body) as response:
        assert response.status == 400
        assert "in a URL write + as %2B" in (await response.json())["errors"][0]["message"]


async def test_a_name_with_marks_needs_its_id_or_a_list(exact_server: Server, session: aiohttp.ClientSession) -> None:
    """A name with marks in it is refused as a string, and the error names the ways that work."""
    name, question = "odd:name+1", QUESTIONS[2]
    async with session.get(exact_server.url + "/v1/models") as response:
        models = [model["id"].partition(":")[2] for model in (await response.json())["data"]]
    (adapter_id,) = [model for model in models if len(model) == 36]
    for lora in (adapter_id, [{"name": name}], [{"id": adapter_id, "scale": 1}]):
        answer = await ask(session, exact_server, prompt=question, lora=lora, temperature=0, max_tokens=64)
        assert answer["response"] == ANSWERS["tag"][question]
    async with session.post(exact_server.run_url, json={"prompt": question, "lora": name}) as response:
        assert response.status == 400
        assert "needs the adapter's id, or a list" in (await response.json())["errors"][0]["message"]


async def test_ranks_beyond_a_lane_name_the_setting(exact_server: Server, session: aiohttp.ClientSession) -> None:
    """Five adapters of rank 8 do not fit into a lane of 32, and the error says which flag makes it larger."""
    lora = [{"name": name} for name in ("pirate", "shout", "tag", "odd:name+1")]
    five = [{"name": "a-pirate"}, {"name": "a-shout"}, {"name": "a-tag"}]
    await ask(session, exact_server, prompt="hi", lora=lora, max_tokens=1)
    async with session.post(exact_server.run_url, json={"prompt": "hi", "lora": lora + five}) as response:
        assert response.status == 400
        assert "--max-lora-rank 64" in (await response.json())["errors"][0]["message"]


async def test_aloras_answer_as_peft_does_in_one_batch_with_everything_else(
    exact_server: Server, session: aiohttp.ClientSession
) -> None:
    """aLoRAs, plain LoRAs and the base at once, each with its own answer."""
    with np.load(REFERENCE) as file:
        references = {style: file[f"answers_{style}"].tolist() for style in STYLES}
    expected = {}
    for number, question in enumerate(ASKED):
        for style in STYLES:
            expected[f"a-{style}", question] = references[style][number]
            expected[style, question] = ANSWERS[style][question]
        expected["", question] = ANSWERS["base"][question]
    fixed = {"temperature": 0, "max_tokens": 64}
    bodies = [{"prompt": question, "lora": lora, **fixed} for lora, question in expected]
    assert await answers(session, exact_server, bodies * 2) == list(expected.values()) * 2


@ONE_ENGINE
async def test_aloras_share_the_context_of_the_base(exact_server: Server, session: aiohttp.ClientSession) -> None:
    """The base reads the conversation; every aLoRA then computes its own last tokens, a plain LoRA all of it."""
    context = PROMPT[:1200] + "<end_of_turn>\n<start_of_turn>model\n"
    cached = {}
    for model in ("", ":a-pirate", ":a-shout", ":a-tag", ":pirate"):
        body = {"model": "gemma-7b-it-lora" + model, "prompt": context, "max_tokens": 4, "temperature": 0}
        async with session.post(exact_server.url + "/v1/completions", data=json.dumps(body)) as response:
            usage = (await response.json())["usage"]
        cached[model] = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    assert min(cached[""], cached[":pirate"]) > 200
    assert [cached[model] for model in (":a-pirate", ":a-shout", ":a-tag")] == [5, 5, 5]


@pytest.fixture(scope="module")
def long_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny Gemma with a window of 2,048 tokens and eight aLoRAs, in F32."""
    folder = tmp_path_factory.mktemp("long")
    model = folder / "long.gguf"
    convert_model(long_base(folder / "checkpoint"), model, F32)
    (folder / "adapters").mkdir()
    with np.load(REFERENCE) as file:
        for number in range(N_ADAPTERS):
            source = save_adapter(folder / f"peft{number}", number, file[f"invocation_{number % 2}"].tolist())
            convert_adapter(source, model, folder / "adapters" / f"a{number}.gguf", F32)
    with serving(model, folder / "adapters", *EXACT, "--n-ctx", "2048", "--kv-cells", "4096") as running:
        yield running


@ONE_ENGINE
async def test_eight_aloras_over_one_context_read_it_once_and_have_pefts_logprobs(
    long_server: Server, session: aiohttp.ClientSession
) -> None:
    """Eight requests at once over 1,011 tokens: one computes all, seven their invocation, each with PEFT's logits."""
    with np.load(REFERENCE) as file:
        logits = [file[f"adapter_{number}"][0].astype(float) for number in range(N_ADAPTERS)]
    asked = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    requests = [completion(session, long_server, **asked, lora=f"a{number}") for number in range(N_ADAPTERS)]
    found = await asyncio.gather(*requests)
    usages = [one["usage"] for one in found]
    n_computed = sorted(one["prompt_tokens"] - one["prompt_tokens_details"]["cached_tokens"] for one in usages)
    assert n_computed[-1] == 1011
    assert n_computed[-2] <= 8
    for expected, one in zip(logits, found, strict=True):
        logprobs = np.sort(expected - np.log(np.exp(expected - expected.max()).sum()) - expected.max())[::-1]
        top = sorted(one["logprobs"]["top_logprobs"][0].values(), reverse=True)[:5]
        assert np.abs(np.array(top) - logprobs[: len(top)]).max() < PEFT_TOLERANCE
