"""What guessing ahead brings where text repeats itself, and what it costs where it does not."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from scripts.bench.asks import Ask, random_prompt
from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Side, gemlane

N_PROMPT_TOKENS = 64
CHANGED_WORD = 12  # every twelfth word of the prediction is another one
OFF: Mapping[str, Any] = {"speculative.n_max": 0}
ON: Mapping[str, Any] = {"speculative.n_max": None}  # the server's own limit
WORKLOADS = ("greedy, text in circles", "greedy, a changed prediction", "drawn, nothing repeated")


async def lookup(plan: Plan) -> Result:
    """One client on the base model, with guesses and without, in turns.

    Guesses change no logit. Two answers to one prompt may still differ: threads share attention out by the places in
    the cache, and two requests lie in different ones. With random weights that moves a logprob by up to 0.1.

    Random weights soon repeat themselves at temperature 0: that is the text in circles. Drawn at temperature 1 they
    never do. A prediction is what a client sends that has a text changed: the answer to be, but for some words.
    """
    decode_s: dict[tuple[str, bool], list[float]] = {}
    equal: list[float] = []
    async with AsyncExitStack() as stack:
        side = await stack.enter_async_context(gemlane(plan.setup(1)))
        await warm(side, [None])
        for repeat in range(plan.repeats):
            for workload, more in zip(WORKLOADS, await _workloads(side, plan, repeat), strict=True):
                texts = set()
                for is_on in (False, True) if repeat % 2 else (True, False):
                    ask = Ask(_prompt(plan, repeat), plan.n_tokens, more={**more, **(ON if is_on else OFF)})
                    answer = await side.ask(ask)
                    texts.add(answer.text)
                    decode_s.setdefault((workload, is_on), []).append(answer.decode_s)
                equal.append(float(len(texts) == 1))
                plain_ms, guessing_ms = (1e3 * decode_s[workload, is_on][-1] for is_on in (False, True))
                tell(f"{workload}: {plain_ms:.1f} ms a token without guesses, {guessing_ms:.1f} ms with them")
    plain = {name: _series(name, "no guesses", decode_s[name, False]) for name in WORKLOADS}
    guessing = {name: _series(name, "guesses", decode_s[name, True]) for name in WORKLOADS}
    circles, changed, drawn = WORKLOADS
    claims = (
        Claim(f"speed with guesses / without: {circles}", plain[circles].over(guessing[circles]), floor=1.5),
        Claim(f"speed with guesses / without: {changed}", plain[changed].over(guessing[changed]), floor=1.5),
        Claim(f"time with guesses / without: {drawn}", guessing[drawn].over(plain[drawn]), ceiling=1.01),
        Claim("equal answers, with guesses and without", tuple(equal)),
    )
    return Result("lookup", tuple(one for name in WORKLOADS for one in (plain[name], guessing[name])), claims)


def _prompt(plan: Plan, repeat: int) -> str:
    return random_prompt(np.random.default_rng(repeat), plan.n_prompt or N_PROMPT_TOKENS)


async def _workloads(side: Side, plan: Plan, repeat: int) -> list[dict[str, Any]]:
    """What the body of each workload has beside the prompt."""
    known = await side.ask(Ask(_prompt(plan, repeat), plan.n_tokens, more=OFF))
    words = known.text.split(" ")
    words[CHANGED_WORD::CHANGED_WORD] = [
        f"{number % 90 + 10}" for number in range(len(words[CHANGED_WORD::CHANGED_WORD]))
    ]
    prediction = {"type": "content", "content": " ".join(words)}
    return [{}, {"prediction": prediction}, {"temperature": 1, "seed": repeat}]


def _series(workload: str, how: str, values: list[float]) -> Series:
    return Series(f"{workload}, {how}: decode", "ms/token", tuple(1e3 * value for value in values))
