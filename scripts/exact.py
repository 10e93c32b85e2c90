"""Thousands of random requests on the tiny Gemma at once, each answer compared with the one it gets alone.

    python -m scripts.exact                                 10,000 requests, F32 weights and lanes
    python -m scripts.exact --type q4_k_m --lane-type q8_0 --trained-only

First every question is asked alone, one after the other, and what the model was trained to say is checked. Then
the same questions come at random from many clients to a fresh engine: base, adapters, and blends with scales, more
of them than there are lanes, so that lanes are refilled under load; second turns of a chat and a long common
preface, so that prefixes are found and evicted; and one in ten is cancelled in mid-stream, having to be a
beginning of its answer. Exit code 1 if a single answer differs.

Blends and longer pasts lie outside of what the model was trained on: two tokens may be all but equally likely there.
In F32 that decides nothing; with quantised weights the last bits, which llama.cpp's kernels round differently
for different batch sizes, tip some of these answers. --trained-only leaves such questions out.
"""

import argparse
import asyncio
import hashlib
import random
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.config import EngineSettings
from runtime.engines.supervisor import ChildEngine
from runtime.generation import BASE, Blend, BlendMember, GenerationRequest, Prompt, Sampling, Usage
from runtime.messages import Finished, Text
from runtime.prompt.gemma import Message, SystemRole, render
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES
from tests.tiny_gemma.files import ADAPTERS, convert_adapter, convert_base

FOLDER = Path(".gemlane/soak")
# Beyond each adapter alone: name -> adapter -> scale. Their ranks, of 8 each, add up to 24 at most.
BLENDS = {
    "loud": {"shout": 0.6},
    "loud pirate": {"pirate": 1.0, "shout": 1.0},
    "checked pirate": {"pirate": 0.7, "tag": 1.0},
    "everything": {"pirate": 0.5, "shout": 0.5, "tag": 0.5},
}
VOICES = (*STYLES, *BLENDS)
PREFACE = " ".join(f"Rule {number}: answer in one sentence and say nothing else." for number in range(1, 9))
MAX_TOKENS = 48
N_CLIENTS = 24
CANCELLED_SHARE = 0.1
N_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Case:
    """Something to ask, in a voice; `expected` is the trained answer where there is one."""

    prompt: Prompt
    voice: str
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The text that came; `usage` is None if the request was cancelled before its end."""

    text: str
    usage: Usage | None


def main() -> int:
    """Parses the command line, prepares the model and runs the soak."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--type", default="f32", help="of the model's weights; default: %(default)s")
    parser.add_argument("--lane-type", default="f32", help="of the lanes' weights; default: %(default)s")
    parser.add_argument("--lanes", type=int, default=4, help="fewer than the 8 voices; default: %(default)s")
    parser.add_argument("--batching", default="mixed", help="mixed or grouped; default: %(default)s")
    parser.add_argument("--gpu-layers", default="auto", help="as in gemlane serve; default: %(default)s")
    parser.add_argument("--device", default="", help="as in gemlane serve")
    parser.add_argument("--rpc", default="", help="as in gemlane serve")
    parser.add_argument("--kv-type", default="f16", help="as in gemlane serve; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--trained-only", action="store_true", help="only questions with a trained answer")
    asked = parser.parse_args()
    base, adapters = prepare(asked.type)
    settings = EngineSettings(
        model=str(base),
        n_ctx=512,
        kv_cells=2048,
        threads=1,
        lanes=asked.lanes,
        lane_type=asked.lane_type,
        adapter_batching=asked.batching,
        gpu_layers=asked.gpu_layers,
        device=asked.device,
        rpc=asked.rpc,
        kv_type=asked.kv_type,
    )
    chance = random.Random(asked.seed)
    cases = [case for case in make_cases(chance) if case.expected or not asked.trained_only]
    return asyncio.run(soak(settings, adapters, cases, asked.requests, chance))


def prepare(type_name: str) -> tuple[Path, dict[str, Path]]:
    """The tiny Gemma and its adapters by name, as GGUF files, converted first where they are missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    base = FOLDER / f"base-{type_name}.gguf"
    adapters = {name: FOLDER / f"{name}.gguf" for name in ADAPTERS}
    if not base.exists():
        convert_base(base, type_name)
    for name, path in adapters.items():
        if not path.exists():
            convert_adapter(ADAPTERS[name], base, path, "f32")
    return base, adapters


async def soak(
    settings: EngineSettings,
    adapters: dict[str, Path],
    cases: list[Case],
    n_requests: int,
    chance: random.Random,
) -> int:
    """Records the answers given alone, then compares those given while others run; 0 if all is well, else 1."""
    blends = make_blends(adapters)
    async with running(settings, adapters) as engine:
        golden = [(await complete(engine, request_of(case, blends))).text for case in cases]
    wrong = [
        f"{case.voice} alone: {text!r} is not {case.expected!r}"
        for case, text in zip(cases, golden, strict=True)
        if case.expected not in (None, text)
    ]
    print(f"{len(cases)} questions asked alone; {len(wrong)} trained answers wrong", *wrong[:N_SHOWN], sep="\n  ")

    different: list[str] = []
    outcomes: list[Outcome] = []
    numbers = iter(range(n_requests))

    async def client() -> None:
        for _ in numbers:
            index = chance.randrange(len(cases))
            n_texts = chance.randint(1, 12) if chance.random() < CANCELLED_SHARE else None
            outcome = await complete(engine, request_of(cases[index], blends), n_texts)
            outcomes.append(outcome)
            if not is_right(outcome, golden[index]):
                different.append(f"{cases[index].voice}: {outcome.text!r} differs from {golden[index]!r}")

    async with running(settings, adapters) as engine:
        start_s = time.monotonic()
        await asyncio.gather(*(client() for _ in range(N_CLIENTS)))
        wall_s = time.monotonic() - start_s
    usages = [outcome.usage for outcome in outcomes if outcome.usage]
    n_prompt = sum(usage.n_prompt_tokens for usage in usages)
    n_cached = sum(usage.n_cached_tokens for usage in usages)
    print(f"{len(outcomes)} requests in {wall_s:.0f} s, {len(outcomes) - len(usages)} of them cancelled;")
    print(f"{n_cached} of {n_prompt} prompt tokens came from kept prefixes")
    print(f"{len(different)} answers differ", *different[:N_SHOWN], sep="\n  ")
    return int(bool(wrong or different))


def is_right(outcome: Outcome, golden: str) -> bool:
    """Whether a whole answer is the golden one, or a cancelled one its beginning."""
    return golden.startswith(outcome.text) if outcome.usage is None else outcome.text == golden


def make_blends(adapters: dict[str, Path]) -> dict[str, Blend]:
    """Voice -> its adapters by content, with their scales."""
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in adapters.items()}
    mixtures = {name: {name: 1.0} for name in ADAPTERS} | BLENDS
    return {"base": BASE} | {
        voice: Blend(tuple(BlendMember(digests[name], scale) for name, scale in mixture.items()))
        for voice, mixture in mixtures.items()
    }


def make_cases(chance: random.Random) -> list[Case]:
    """Every question in every trained voice, some in every blend, and some with a past or a preface."""
    cases = [Case(ask(each), style, ANSWERS[style][each]) for each in QUESTIONS for style in STYLES]
    for voice in BLENDS:
        cases += [Case(ask(question), voice) for question in chance.sample(QUESTIONS, 40)]
    for _ in range(80):
        before, question = chance.sample(QUESTIONS, 2)
        past = (Message("user", before), Message("assistant", ANSWERS["base"][before]))
        cases.append(Case(ask(question, *past), chance.choice(VOICES)))
        cases.append(Case(ask(question, Message("system", PREFACE)), chance.choice(VOICES)))
    return cases


def ask(question: str, *past: Message) -> Prompt:
    """A question in Gemma's template, after what was said before."""
    return render((*past, Message("user", question)), SystemRole.FOLD)


def request_of(case: Case, blends: dict[str, Blend]) -> GenerationRequest:
    """A greedy request with an id of its own."""
    return GenerationRequest(
        uuid.uuid4().hex,
        case.prompt,
        max_tokens=MAX_TOKENS,
        sampling=Sampling(temperature=0),
        blend=blends[case.voice],
    )


async def complete(engine: ChildEngine, request: GenerationRequest, n_texts: int | None = None) -> Outcome:
    """Asks and listens to the end, or cancels after `n_texts` pieces of text."""
    text, n_heard = "", 0
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, Text):
                text, n_heard = text + event.text, n_heard + 1
                if n_heard == n_texts:
                    return Outcome(text, None)
            elif isinstance(event, Finished):
                return Outcome(text, event.usage)
    raise AssertionError("a stream of events ended without a last one")


@asynccontextmanager
async def running(settings: EngineSettings, adapters: dict[str, Path]) -> AsyncIterator[ChildEngine]:
    """An engine with the adapters, up until the block ends."""
    engine = ChildEngine(settings, max_in_flight=N_CLIENTS)
    try:
        ready = await engine.start()
        print(f"engine ready, on {ready.model.device}, batching: {ready.adapter_batching} ({ready.batching_reason})")
        for path in adapters.values():
            await engine.add_adapter(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        yield engine
    finally:
        await engine.stop()


if __name__ == "__main__":
    sys.exit(main())
