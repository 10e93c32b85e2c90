"""What guessing ahead brings where text repeats itself, and what it costs where it does not."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np

from scripts.bench.asks import Ask, random_prompt
from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Setup, gemlane

N_PROMPT_TOKENS = 64
N_SPARE_CELLS = 8  # filler tokens take three
CHANGED_WORD = 12  # every twelfth word of the prediction is another one
OFF: Mapping[str, Any] = {"speculative.n_max": 0}
ON: Mapping[str, Any] = {"speculative.n_max": None}  # the server's own limit
WORKLOADS = ("greedy, text in circles", "greedy, a changed prediction", "drawn, nothing repeated")


async def lookup(plan: Plan) -> Result:
    """One client on the base model, with guesses and without, in turns; the answers must be the same.

    Threads share attention out by places in the cache, and read a prompt in other groups if it is kept there: that
    moves a logprob of random weights by up to 0.1, with guesses or without. So the cache has room for one request
    alone, which puts all answers to one prompt into the same places, after the same kept prompt. For comparison, the
    first answer to each prompt, which read the prompt itself, is held against the next one without guesses too.

    Random weights soon repeat themselves at temperature 0: that is the text in circles. Drawn at temperature 1 they
    never do. A prediction is what a client sends that has a text changed: the answer to be, but for some words.
    """
    decode_s: dict[tuple[str, bool], list[float]] = {}
    equal: list[bool] = []
    read_equal: list[bool] = []
    async with AsyncExitStack() as stack:
        side = await stack.enter_async_context(gemlane(_setup(plan)))
        await warm(side, [None])
        for repeat in range(plan.repeats):
            known = (await side.ask(Ask(_prompt(plan, repeat), plan.n_tokens, more=OFF))).text
            for workload, more in zip(WORKLOADS, _workloads(known, repeat), strict=True):
                texts = {}
                for is_on in (False, True) if repeat % 2 else (True, False):
                    ask = Ask(_prompt(plan, repeat), plan.n_tokens, more={**more, **(ON if is_on else OFF)})
                    answer = await side.ask(ask)
                    texts[is_on] = answer.text
                    decode_s.setdefault((workload, is_on), []).append(answer.decode_s)
                equal.append(texts[True] == texts[False])
                if not more:
                    read_equal.append(texts[False] == known)
                plain_ms, guessing_ms = (1e3 * decode_s[workload, is_on][-1] for is_on in (False, True))
                tell(f"{workload}: {plain_ms:.1f} ms a token without guesses, {guessing_ms:.1f} ms with them")
    plain = {name: _series(name, "no guesses", decode_s[name, False]) for name in WORKLOADS}
    guessing = {name: _series(name, "guesses", decode_s[name, True]) for name in WORKLOADS}
    circles, changed, drawn = WORKLOADS
    claims = (
        Claim(f"speed with guesses / without: {circles}", plain[circles].over(guessing[circles]), floor=1.5),
        Claim(f"speed with guesses / without: {changed}", plain[changed].over(guessing[changed]), floor=1.5),
        Claim(f"time with guesses / without: {drawn}", guessing[drawn].over(plain[drawn]), ceiling=1.01),
        Claim(f"of {len(equal)} answers with guesses: equal to those without", (mean(equal),), floor=1),
        Claim(f"of {len(read_equal)} without: equal to those that read the prompt", (mean(read_equal),)),
    )
    return Result("lookup", tuple(one for name in WORKLOADS for one in (plain[name], guessing[name])), claims)


def _prompt(plan: Plan, repeat: int) -> str:
    return random_prompt(np.random.default_rng(repeat), plan.n_prompt or N_PROMPT_TOKENS)


def _setup(plan: Plan) -> Setup:
    """A server with room for one request and its filler tokens."""
    n_cells = (plan.n_prompt or N_PROMPT_TOKENS) + plan.n_tokens + N_SPARE_CELLS
    return replace(plan.setup(1), n_parallel=1, n_cells=n_cells)


def _workloads(known: str, repeat: int) -> list[dict[str, Any]]:
    """What the body of each workload has beside the prompt, to which the greedy answer is known."""
    words = known.split(" ")
    words[CHANGED_WORD::CHANGED_WORD] = [
        f"{number % 90 + 10}" for number in range(len(words[CHANGED_WORD::CHANGED_WORD]))
    ]
    prediction = {"type": "content", "content": " ".join(words)}
    return [{}, {"prediction": prediction}, {"temperature": 1, "seed": repeat}]


def _series(workload: str, how: str, values: list[float]) -> Series:
    return Series(f"{workload}, {how}: decode", "ms/token", tuple(1e3 * value for value in values))
