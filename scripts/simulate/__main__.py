"""Routing many adapters over many replicas, simulated: ``python -m scripts.simulate``.

    python -m scripts.simulate                                         1,000 replicas, 100,000 adapters: a few minutes
    python -m scripts.simulate --replicas 2 --adapters 64 --requests 4000
    python -m scripts.simulate --svg routing.svg

A replica does what `python -m scripts.bench.replica` measured on one; --figures names another file of such figures.
Load 1 is what a replica could do if it found every adapter in a lane and every preface in its cache. Numbers are those
of the second half of the requests; the first half fills lanes and caches. One seed gives one table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from scripts.simulate.picture import Curve, Panel, draw
from scripts.simulate.replica import Figures, Replica, read_figures
from scripts.simulate.routing import Bounded, Consistent, Policy, Random, Warm, Weights, rendezvous
from scripts.simulate.world import Outcome, Workload, World, outcome_of

FIGURES = Path(__file__).parent / "figures.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated."""

    figures: Figures
    workload: Workload
    n_replicas: int
    n_requests: int
    seed: int

    def simulate(self, load: float, policies: list[Policy], name: str) -> Outcome:
        """One run of a policy at a load."""
        workload = self.workload
        rate = load * self.n_replicas * workload.warm_capacity(self.figures)
        requests = workload.requests(self.n_requests, rate, self.seed)
        n_cells = workload.n_preface + workload.own_tokens[1] + workload.answer_tokens[1]
        replicas = [Replica(self.figures, workload.n_preface, n_cells) for _ in range(self.n_replicas)]
        with tqdm(total=len(requests), desc=f"{name}, load {load:g}", leave=False, disable=None) as bar:
            World(policies, replicas).run(requests, lambda n_come: bar.update(n_come - bar.n))
        return outcome_of(requests, self.n_replicas)

    def policies(self, factors: list[float], n_routers: int) -> dict[str, Callable[[], list[Policy]]]:
        """Every way of routing, by its name."""
        weights: Weights = rendezvous(self.n_replicas)

        def bounded(factor: float) -> list[Policy]:
            return [Bounded(weights, factor)]

        return {
            "random": lambda: [Random(self.n_replicas, self.seed)],
            "consistent hashing": lambda: [Consistent(weights)],
            **{f"bounded load, {factor:g}": partial(bounded, factor) for factor in factors},
            f"the same, {n_routers} balancers": lambda: [Bounded(weights, factors[-1]) for _ in range(n_routers)],
            "warm replicas first": lambda: [Warm(weights)],
        }


HEADINGS = (
    "routing",
    "load",
    "lane",
    "prefix",
    "refused",
    "first token",
    "99 of 100",
    "a token",
    "most popular",
    "busiest",
)


def row(name: str, load: float, outcome: Outcome) -> tuple[str, ...]:
    """One line of the table."""
    return (
        name,
        f"{load:g}",
        f"{outcome.lane_share:.1%}",
        f"{outcome.prefix_share:.1%}",
        f"{outcome.refused_share:.1%}",
        f"{outcome.median_first_s:.1f} s",
        f"{outcome.p99_first_s:.1f} s",
        f"{outcome.median_token_s * 1000:.0f} ms",
        str(outcome.replicas_of_most_popular),
        f"{outcome.busiest:.1f}",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under the headings, as Markdown."""
    lines = [HEADINGS, ["--"] * len(HEADINGS), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--replicas", type=int, default=1000, help="default: %(default)s")
    found.add_argument("--adapters", type=int, default=100_000, help="default: %(default)s")
    found.add_argument("--requests", type=int, default=200_000, help="default: %(default)s")
    found.add_argument("--loads", type=float, nargs="+", default=[0.2, 0.4, 0.6], help="default: 0.2 0.4 0.6")
    found.add_argument("--exponent", type=float, default=1.0, help="of the power law; default: %(default)s")
    found.add_argument(
        "--preface", type=int, default=256, help="tokens of an adapter's system message; default: %(default)s"
    )
    found.add_argument("--own", type=int, nargs=2, default=[8, 128], help="other tokens of a prompt; default: 8 128")
    found.add_argument("--answer", type=int, nargs=2, default=[8, 256], help="tokens of an answer; default: 8 256")
    found.add_argument("--factors", type=float, nargs="+", default=[1.25, 2.0], help="of bounded load; default: 1.25 2")
    found.add_argument("--balancers", type=int, default=8, help="that do not know of each other; default: %(default)s")
    found.add_argument(
        "--figures", type=Path, default=FIGURES, help="what one replica does; default: scripts/simulate's"
    )
    found.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    found.add_argument("--svg", type=Path, metavar="FILE", help="draw lanes and first tokens over the load")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    asked = parser().parse_args(arguments)
    figures = read_figures(asked.figures)
    workload = Workload(asked.adapters, asked.exponent, asked.preface, tuple(asked.own), tuple(asked.answer))
    plan = Plan(figures, workload, asked.replicas, asked.requests, asked.seed)
    print(f"{asked.replicas} replicas, {asked.adapters} adapters, {asked.requests} requests, seed {asked.seed}")
    print(f"one replica: {figures.source}")
    print(f"load 1: {workload.warm_capacity(figures):.3f} requests/s a replica, which finds everything warm")
    print(f"the best fixed placement finds {workload.best_lane_share(asked.replicas):.1%} of the requests in a lane\n")
    rows, outcomes = [], dict[str, list[Outcome]]()
    for name, make in plan.policies(asked.factors, asked.balancers).items():
        for load in asked.loads:
            outcomes.setdefault(name, []).append(plan.simulate(load, make(), name))
            rows.append(row(name, load, outcomes[name][-1]))
    print(table(rows))
    if asked.svg:
        curves = {name: list(zip(asked.loads, each, strict=True)) for name, each in outcomes.items()}
        lanes = {name: Curve([(load, one.lane_share * 100) for load, one in each]) for name, each in curves.items()}
        first = {name: Curve([(load, one.p99_first_s) for load, one in each]) for name, each in curves.items()}
        panels = (
            Panel("adapter in a lane, % of requests", lanes),
            Panel("first token, 99 of 100 within, s", first, is_logarithmic=True),
        )
        asked.svg.write_text(draw("load", panels))
    return 0


if __name__ == "__main__":
    sys.exit(main())
