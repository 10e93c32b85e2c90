"""Which requests a load consists of, and when each is due. Pure: a seed gives the same load again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

BASE: Final = "base"
"""The name that stands for no adapter."""
_WORDS: Final = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work number night point home water room mother area "
    "money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city name team minute idea body"
)
"""Common English words, one token each in most vocabularies."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is sent. With ``rate`` the loop is open: requests come when they are due, whatever the server does."""

    adapters: tuple[str, ...]
    """The names to choose from, the most popular first."""
    alpha: float
    """Adapter number k, counted from 1, is chosen in proportion to 1 / k ** alpha."""
    n_requests: int | None
    """Number of requests; None: as many as go into ``duration_s``."""
    duration_s: float | None
    """Seconds after which no more requests are sent; None: all are."""
    n_clients: int
    """Clients of a closed loop; each has one request at a time."""
    rate: float | None
    """Requests a second of an open loop."""
    cv: float
    """Coefficient of variation of the time between two requests: 0 is even, 1 a Poisson process, more is bursts."""
    n_words: int
    """Words of one prompt."""
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request."""

    number: int
    due_s: float
    """Seconds from the start of the load; 0 in a closed loop, where a request is due when its client is free."""
    adapter: str
    prompt: str


def arrivals(rate: float, cv: float, generator: random.Random) -> Iterator[float]:
    """Seconds at which requests are due, from 0 on, without end: gamma-distributed gaps of mean 1 / ``rate``.

    A gamma distribution of shape 1 / cv**2 and scale cv**2 / rate has that mean, and the coefficient of variation
    ``cv``. Source: the synthetic workloads of S-LoRA (arXiv 2311.03285) and EdgeLoRA.
    """
    moment_s = 0.0
    while True:
        yield moment_s
        moment_s += generator.gammavariate(1 / cv**2, cv**2 / rate) if cv else 1 / rate


def power_law(n_adapters: int, alpha: float) -> list[float]:
    """The share of requests that each of ``n_adapters`` gets, the first the most; alpha 0 gives equal shares."""
    weights = [number**-alpha for number in range(1, n_adapters + 1)]
    return [weight / sum(weights) for weight in weights]


def choose(names: Sequence[str], alpha: float, generator: random.Random) -> Iterator[str]:
    """Names by their shares of a power law, without end."""
    limits = list(itertools.accumulate(power_law(len(names), alpha)))
    while True:
        yield generator.choices(names, cum_weights=limits)[0]


def make_prompt(n_words: int, generator: random.Random) -> str:
    """Random words; no two prompts begin alike, except by chance, so that no kept prefix serves another."""
    return " ".join(generator.choices(_WORDS.split(), k=n_words))


def planned(plan: LoadPlan) -> Iterator[PlannedRequest]:
    """The requests in order; without end where ``n_requests`` is None."""
    moments: Iterator[float] = itertools.repeat(0.0)
    if plan.rate is not None:
        moments = arrivals(plan.rate, plan.cv, random.Random(f"{plan.seed} arrivals"))  # noqa: S311 - not for secrets
    names = choose(plan.adapters, plan.alpha, random.Random(f"{plan.seed} adapters"))  # noqa: S311
    words = random.Random(f"{plan.seed} prompts")  # noqa: S311
    for number, (due_s, name) in enumerate(zip(moments, names, strict=False)):
        if number == plan.n_requests:
            return
        yield PlannedRequest(number, due_s, name, make_prompt(plan.n_words, words))
