"""Measured values, the claims made of them, and how both are printed."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from runtime.llama.library import VERSION


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity, measured once in each repeat."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    def over(self, other: "Series") -> tuple[float, ...]:
        """The ratio to another series, repeat by repeat, so that values measured close together are compared."""
        return tuple(mine / its for mine, its in zip(self.values, other.values, strict=True))


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement with its bound: at least `floor`, or at most `ceiling`; the median of `values` decides.

    `cpu_values` say the same by CPU time, which other work on the machine disturbs less.
    """

    text: str
    values: tuple[float, ...]
    floor: float | None = None
    ceiling: float | None = None
    unit: str = ""
    cpu_values: tuple[float, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether the median keeps the bound."""
        value = median(self.values)
        return (self.floor is None or value >= self.floor) and (self.ceiling is None or value <= self.ceiling)

    @property
    def bound(self) -> str:
        """The bound as it is printed; empty for a value without a bound."""
        if self.floor is not None:
            return f">= {self.floor:g}{self.unit}"
        return "" if self.ceiling is None else f"<= {self.ceiling:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found."""

    name: str
    series: tuple[Series, ...]
    claims: tuple[Claim, ...]

    def table(self) -> str:
        """Lines for a terminal: each series, then each claim."""
        lines = [f"{self.name}"]
        lines += [f"  {line.name:<58} {spread(line.values)} {line.unit}" for line in self.series]
        for claim in self.claims:
            cpu = f"; by CPU time {spread(claim.cpu_values)}{claim.unit}" if claim.cpu_values else ""
            verdict = f"  [{claim.bound}: {'met' if claim.is_met else 'NOT MET'}]" if claim.bound else ""
            lines.append(f"  {claim.text:<58} {spread(claim.values)}{claim.unit}{cpu}{verdict}")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The same as JSON, with every single value."""
        return {
            "name": self.name,
            "series": [{"name": one.name, "unit": one.unit, "values": one.values} for one in self.series],
            "claims": [
                {
                    "text": claim.text,
                    "bound": claim.bound,
                    "met": claim.is_met if claim.bound else None,
                    "unit": claim.unit,
                    "values": claim.values,
                    "cpu_values": claim.cpu_values,
                }
                for claim in self.claims
            ],
        }


def spread(values: tuple[float, ...]) -> str:
    """The median with the smallest and the largest value."""
    low, middle, high = (f"{value:.4g}" for value in (min(values), median(values), max(values)))
    return f"{middle:>7} ({low} to {high})"


def field(file: str, name: str) -> str:
    """The first value of that name in a file of /proc; empty if there is none."""
    lines = Path(file).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def machine() -> dict[str, str]:
    """What the figures depend on besides the code."""
    processor = field("/proc/cpuinfo", "model name") or platform.processor()
    return {
        "processor": processor,
        "cores": field("/proc/self/status", "Cpus_allowed_list"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "llama-cpp-python": VERSION,
    }


def save(path: Path, arguments: dict[str, Any], results: list[Result]) -> None:
    """Writes all values of a run as JSON."""
    content = {
        "machine": machine(),
        "arguments": arguments,
        "results": [result.record() for result in results],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
