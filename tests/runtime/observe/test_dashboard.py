"""The Grafana dashboard: it asks for metrics that exist, and a running Prometheus fills every panel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runtime.observe import table
from tests.end_to_end.serving import ROOT, serving

DASHBOARD: dict[str, Any] = json.loads((ROOT / "scripts/grafana/dashboard.json").read_text())
EXPRESSIONS = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
SUFFIXES = re.compile(r"_(bucket|sum|count)$")
PROMETHEUS = shutil.which("prometheus")


def metrics_of(expression: str) -> set[str]:
    """The metrics that a query names, without a histogram's suffixes."""
    found = re.findall(r"\b((?:gemlane|process|vllm:)[a-z_:]+)", expression)
    return {SUFFIXES.sub("", name) if name not in table.exposed_names() else name for name in found}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_queries_name_metrics_that_exist(expression: str) -> None:
    """Every query asks for a metric of the table, or for one of the process's own."""
    names = metrics_of(expression)
    assert names
    assert names <= {*table.exposed_names(), "process_resident_memory_bytes"}


def test_every_metric_is_on_the_dashboard() -> None:
    """No metric of gemlane's is left out; those that count in detail what another panel sums up are named here."""
    shown = set().union(*(metrics_of(target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]))
    own = {metric.exposed_names[0] for metric in table.METRICS if metric.name.startswith("gemlane_")}
    assert own - shown == {"gemlane_steps_total", "gemlane_kv_usage_ratio"}


def test_panels_do_not_overlap() -> None:
    """Each panel has its own place on the grid of 24 columns, and its own id."""
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in taken) < 24
        cells |= taken
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@contextlib.contextmanager
def scraping(target: str, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes ``target`` every second; its address."""
    assert PROMETHEUS is not None
    example = (ROOT / "scripts/grafana/prometheus.yml").read_text()
    config = folder / "prometheus.yml"
    config.write_text(example.replace("127.0.0.1:8080", target).replace("interval: 5s", "interval: 1s"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(timeout=20)


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> None:
    """One request, under one adapter after the other; one in ten for an adapter that is not there."""
    lora = ("", "pirate", "shout", "tag")[number % 4]
    body = {"prompt": f"Tell me about number {number % 7}, please, and say why.", "max_tokens": 24}
    body |= {"lora": "nobody"} if number % 10 == 9 else {"lora": lora} if lora else {}
    async with session.post(url, json=body) as response:
        await response.read()


async def value_of(session: aiohttp.ClientSession, prometheus: str, expression: str) -> list[str]:
    """The values of a query now."""
    query = expression.replace("$instance", ".*").replace("$__rate_interval", "10s")
    async with session.get(f"{prometheus}/api/v1/query", params={"query": query}) as response:
        answer = await response.json()
    assert answer["status"] == "success", answer
    return [sample["value"][1] for sample in answer["data"]["result"]]


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: apt install prometheus)")
async def test_a_running_prometheus_fills_every_panel(tiny_model: Path, tiny_adapters: Path, tmp_path: Path) -> None:
    """While a server answers under several adapters, each query of the dashboard has a value that is a number."""
    with (
        serving(tiny_model, tiny_adapters, "--lanes", "4") as server,
        scraping(server.url.removeprefix("http://"), tmp_path) as prometheus,
    ):
        async with aiohttp.ClientSession() as session, asyncio.timeout(120):
            number = 0
            while "1" not in await _up(session, prometheus) or number < 120:
                await asyncio.gather(*(ask(session, server.run_url, number + each) for each in range(8)))
                number += 8
                await asyncio.sleep(0.5)
            empty = {}
            for (expression,) in (parameter.values for parameter in EXPRESSIONS):
                values = await value_of(session, prometheus, str(expression))
                if not values or any(value == "NaN" for value in values):
                    empty[expression] = values
    assert empty == {}


async def _up(session: aiohttp.ClientSession, prometheus: str) -> list[str]:
    """Whether Prometheus has reached the server; nothing while Prometheus itself starts."""
    try:
        return await value_of(session, prometheus, "up")
    except (aiohttp.ClientError, AssertionError):
        return []
