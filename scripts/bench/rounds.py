"""Requests sent together, in turns to the servers that are compared, and what is read off each round."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from scripts.bench.asks import Answer, Ask, random_prompt
from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Series
from scripts.bench.sides import Side


@dataclass(frozen=True, slots=True)
class Work:
    """What one server is asked in every round: one request for each of `adapters`, all at once."""

    name: str
    side: Side
    adapters: tuple[int | None, ...]
    n_prompt: int
    n_answer: int

    def asks(self, repeat: int) -> list[Ask]:
        """The requests of a round, no two prompts alike.

        Works that are compared between servers get the same prompts. Works of one server that name the same adapter
        from different numbers of adapters get different ones, so that no kept prefix serves another work.
        """
        generator = np.random.default_rng((repeat, len(self.adapters), len(set(self.adapters)), self.n_prompt))
        return [Ask(random_prompt(generator, self.n_prompt), self.n_answer, adapter) for adapter in self.adapters]


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a work. Rates are tokens a second; those named `cpu` tokens a CPU second of the server."""

    rate: float
    """Tokens of all answers, from the first request to the last token."""
    cpu_rate: float
    first_token_s: float
    """Seconds until every request has its first token."""
    prompt_rate: float
    """Tokens of all prompts, until every request has its first token."""
    prompt_cpu_rate: float
    decode_rate: float
    """Tokens of all answers that came after that; 0 where none did."""
    decode_cpu_rate: float
    texts: tuple[str, ...] = ()


TITLES: Final = {
    "rate": ("throughput", "tokens/s"),
    "cpu_rate": ("throughput", "tokens/CPU s"),
    "first_token_s": ("slowest first token", "s"),
    "prompt_rate": ("prompt", "tokens/s"),
    "prompt_cpu_rate": ("prompt", "tokens/CPU s"),
    "decode_rate": ("decode", "tokens/s"),
    "decode_cpu_rate": ("decode", "tokens/CPU s"),
}
CPU_OF: Final = {"rate": "cpu_rate", "prompt_rate": "prompt_cpu_rate", "decode_rate": "decode_cpu_rate"}


def read_round(work: Work, answers: Sequence[Answer], wall_s: float, cpu_s: float) -> Round:
    """The figures of requests that were sent together and took `wall_s`, and `cpu_s` of the server."""
    n_tokens = sum(answer.n_tokens for answer in answers)
    last = max(answers, key=lambda answer: answer.first_token_s)
    first_s, prompt_cpu_s = last.first_token_s, last.cpu_s - last.decode_cpu_s
    n_after = sum(arrival_s > first_s for answer in answers for arrival_s in answer.arrivals_s)
    end_s = max(answer.arrivals_s[-1] for answer in answers)
    n_prompt = work.n_prompt * len(answers)
    return Round(
        n_tokens / wall_s,
        n_tokens / cpu_s,
        first_s,
        n_prompt / first_s,
        n_prompt / prompt_cpu_s,
        n_after / (end_s - first_s) if n_after else 0.0,
        n_after / (cpu_s - prompt_cpu_s) if n_after else 0.0,
        tuple(answer.text for answer in answers),
    )


async def measure_round(work: Work, repeat: int) -> Round:
    """Sends a work's requests at once."""
    asks = work.asks(repeat)
    start_cpu_s = work.side.cpu_s()
    answers = await work.side.ask_all(asks)
    cpu_s = work.side.cpu_s() - start_cpu_s
    return read_round(work, answers, max(answer.wall_s for answer in answers), cpu_s)


@dataclass(frozen=True, slots=True)
class Rounds:
    """All rounds, by the names of their works."""

    by_work: dict[str, list[Round]]

    def one(self, work: str, field: str) -> Series:
        """A field of every round of a work."""
        title, unit = TITLES[field]
        return Series(f"{work}: {title}", unit, tuple(getattr(one, field) for one in self.by_work[work]))

    def series(self, *fields: str) -> tuple[Series, ...]:
        """These fields of all works, field by field."""
        return tuple(self.one(work, field) for field in fields for work in self.by_work)

    def ratio(
        self, text: str, field: str, works: tuple[str, str], *, floor: float | None = None, ceiling: float | None = None
    ) -> Claim:
        """A field of the first of two works over that of the second, by CPU time too where the field has that."""
        mine, other = works
        cpu = CPU_OF.get(field)
        by_cpu = self.one(mine, cpu).over(self.one(other, cpu)) if cpu else ()
        values = self.one(mine, field).over(self.one(other, field))
        return Claim(text, values, floor=floor, ceiling=ceiling, cpu_values=by_cpu)

    def alike(self, text: str, works: tuple[str, str], *, floor: float | None = None) -> Claim:
        """The share of answers, in each round, that are equal in both works."""
        pairs = zip(self.by_work[works[0]], self.by_work[works[1]], strict=True)
        shares = tuple(
            sum(mine == other for mine, other in zip(one.texts, two.texts, strict=True)) / len(one.texts)
            for one, two in pairs
        )
        return Claim(text, shares, floor=floor)


async def in_turns(plan: Plan, works: Sequence[Work]) -> Rounds:
    """Every work once in each repeat, in the opposite order in every other, after each was warmed up."""
    for work in works:
        await warm(work.side, sorted(set(work.adapters), key=lambda adapter: -1 if adapter is None else adapter))
    measured: list[dict[str, Round]] = []
    for repeat in range(plan.repeats):
        measured.append({})
        for work in works[:: -1 if repeat % 2 else 1]:
            one = measured[-1][work.name] = await measure_round(work, repeat)
            tell(
                f"{work.name}: first token {one.first_token_s:.2f} s, prompts {one.prompt_rate:.1f}, "
                f"decode {one.decode_rate:.2f}, all {one.rate:.2f} tokens/s"
            )
    return Rounds({work.name: [one[work.name] for one in measured] for work in works})
