"""Several servers behind HAProxy and nginx: one dies and one comes under load, and all watch one adapters folder.

Each test is skipped where the balancer's program is not installed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.balancers import KINDS, Balancer, Box, balancing, is_installed
from tests.end_to_end.serving import MODEL, Server, serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS

RUN = f"/client/v4/accounts/local/ai/run/{MODEL}"
CHAT = "/v1/chat/completions"
VOICES = ("base", "pirate", "shout", "tag")
ALONE = ("--engine", "local")
"""Each box is a whole server, also where the other tests run with replicas."""
N_CLIENTS = 12
N_SESSIONS = 24
N_ENDS = 60
"""Requests that end before each of the three events of the test under load, and after the last one."""


@dataclass
class Boxes:
    """Servers of the tiny model that share an adapters folder, behind a balancer."""

    balancer: Balancer
    servers: dict[int, Server]
    """By number; a server that was killed stays in it."""
    adapters: Path
    model: Path
    stack: ExitStack

    def add(self) -> Box:
        """Start one more server; blocks until it is ready."""
        number = max(self.servers) + 1
        server = self.stack.enter_context(serving(self.model, self.adapters, *ALONE))
        self.servers[number] = server
        return box_of(number, server)


def box_of(number: int, server: Server) -> Box:
    """A server as the balancer names it."""
    return Box(number, server.url.removeprefix("http://"))


@pytest.fixture(params=sorted(KINDS))
def boxes(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path, tiny_adapters: Path) -> Iterator[Boxes]:
    """Two servers behind each balancer that is installed."""
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    adapters, folder = tmp_path / "adapters", tmp_path / "balancer"
    shutil.copytree(tiny_adapters, adapters)
    folder.mkdir()
    with ExitStack() as stack:
        servers = {number: stack.enter_context(serving(tiny_model, adapters, *ALONE)) for number in (1, 2)}
        known = [box_of(number, server) for number, server in servers.items()]
        balancer = stack.enter_context(balancing(KINDS[request.param], folder, known))
        yield Boxes(balancer, servers, adapters, tiny_model, stack)


@dataclass
class Load:
    """Clients that ask one question after the other, by turns in a stream and for a whole answer."""

    balancer: Balancer
    ends: list[tuple[str, str]] = field(default_factory=list)
    """How each request was asked and how it ended, in the order of their ends."""
    by_box: Counter[int] = field(default_factory=Counter)
    is_over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Ask until the load is over."""
        numbers = itertools.count()
        connector = aiohttp.TCPConnector(limit=0, force_close=self.balancer.kind.name == "nginx")
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(self.balancer.url, connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(self._ask_on(session, numbers) for _ in range(N_CLIENTS)))

    async def _ask_on(self, session: aiohttp.ClientSession, numbers: Iterator[int]) -> None:
        while not self.is_over:
            number = next(numbers)
            question, voice = QUESTIONS[number % len(QUESTIONS)], VOICES[number % len(VOICES)]
            kind = "stream" if number // len(VOICES) % 2 else "whole"
            headers = {"x-session-affinity": f"session {number % N_SESSIONS}"}
            ask = self._stream if kind == "stream" else self._whole
            self.ends.append((kind, await ask(session, question, voice, headers)))
            self.changed.set()

    async def _whole(self, session: aiohttp.ClientSession, question: str, voice: str, headers: dict[str, str]) -> str:
        body = {"prompt": question, "temperature": 0, "max_tokens": 64} | lora(voice)
        async with session.post(RUN, data=json.dumps(body), headers=headers) as response:
            text = await response.text()
            if response.status != 200:
                return f"{response.status} {text}"
            self.by_box[self.balancer.number_of(response)] += 1
            answer = json.loads(text)["result"]["response"]
            return "right" if answer == ANSWERS[voice][question] else f"wrong: {answer}"

    async def _stream(self, session: aiohttp.ClientSession, question: str, voice: str, headers: dict[str, str]) -> str:
        messages = [{"role": "user", "content": question}]
        body = {"model": "gemma-7b-it-lora", "messages": messages, "stream": True, "temperature": 0} | lora(voice)
        async with session.post(CHAT, data=json.dumps(body), headers=headers) as response:
            if response.status != 200:
                return f"{response.status} {await response.text()}"
            try:
                lines = (await response.text()).splitlines()
            except aiohttp.ClientPayloadError:
                return "cut"
            self.by_box[self.balancer.number_of(response)] += 1
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            if lines[-2:] != ["data: [DONE]", ""] or any("error" in event for event in events):
                return f"not whole: {lines}"
            answer = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
            return "right" if answer == ANSWERS[voice][question] else f"wrong: {answer}"

    async def begin(self, session: aiohttp.ClientSession, number: int) -> aiohttp.ClientResponse:
        """A long stream of the box with that number, of which the first event has come."""
        messages = [{"role": "user", "content": "capital of capital of"}]
        body = {"model": "gemma-7b-it-lora", "messages": messages, "stream": True, "max_tokens": 2000}
        for key in itertools.count():
            headers = {"x-session-affinity": f"long {key}"}
            response = await session.post(CHAT, data=json.dumps(body | {"ignore_eos": True}), headers=headers)
            if self.balancer.number_of(response) == number:
                await response.content.readuntil(b"\n\n")
                return response
            response.close()
        raise AssertionError

    async def until_more(self, n_ends: int) -> None:
        """Wait until that many further requests have ended."""
        wanted = len(self.ends) + n_ends
        async with asyncio.timeout(60):
            while len(self.ends) < wanted:
                self.changed.clear()
                await self.changed.wait()


def lora(voice: str) -> dict[str, str]:
    """The field that names the adapter."""
    return {} if voice == "base" else {"lora": voice}


async def test_a_box_dies_and_another_comes_under_load(boxes: Boxes) -> None:
    """Only streams that had begun on the killed box are cut; every other answer is right, and the new box answers."""
    await asyncio.wait_for(_lose_one_and_add_one(boxes), 150)


async def _lose_one_and_add_one(boxes: Boxes) -> None:
    load = Load(boxes.balancer)
    running = asyncio.create_task(load.run())
    await load.until_more(N_ENDS)
    assert set(load.by_box) == {1, 2}
    async with aiohttp.ClientSession(boxes.balancer.url) as session:
        on_first, on_second = [await load.begin(session, number) for number in (1, 2)]
        before_death = len(load.ends)
        boxes.servers[1].process.send_signal(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientPayloadError):
            await on_first.read()
        assert (await on_second.read()).endswith(b"data: [DONE]\n\n")
    await load.until_more(N_ENDS)
    new = await asyncio.to_thread(boxes.add)
    boxes.balancer.reload([box_of(2, boxes.servers[2]), new])
    async with asyncio.timeout(60):
        while load.by_box[new.number] < 20:
            await load.until_more(10)
    load.is_over = True
    await running
    counts = Counter(load.ends)
    print(f"{boxes.balancer.kind.name}: {dict(counts)}, by box {dict(load.by_box)}")
    assert set(counts) <= {("whole", "right"), ("stream", "right"), ("stream", "cut")}
    cut = [index for index, end in enumerate(load.ends) if end == ("stream", "cut")]
    assert len(cut) <= N_CLIENTS
    assert all(before_death <= index < before_death + 2 * N_CLIENTS for index in cut)


async def test_one_folder_serves_all_boxes(boxes: Boxes) -> None:
    """An adapter that appears in the shared folder is served by all boxes, whose digests differ only meanwhile."""
    async with aiohttp.ClientSession() as session:

        async def digests() -> list[str]:
            shown = []
            for server in boxes.servers.values():
                async with session.get(f"{server.url}/health") as response:
                    shown.append(str((await response.json())["adapters_digest"]))
            return shown

        first, second = await digests()
        assert first == second
        shutil.copy(boxes.adapters / "tag.gguf", boxes.adapters / "new.part")
        (boxes.adapters / "new.part").rename(boxes.adapters / "new.gguf")
        async with asyncio.timeout(30):
            while first in (shown := await digests()):
                continue
        assert len(set(shown)) == 1
        question = QUESTIONS[0]
        for number in range(8):  # sessions on both boxes
            body = {"prompt": question, "temperature": 0, "max_tokens": 64, "lora": "new"}
            headers = {"x-session-affinity": f"session {number}"}
            async with session.post(boxes.balancer.url + RUN, data=json.dumps(body), headers=headers) as response:
                assert json.loads(await response.text())["result"]["response"] == ANSWERS["tag"][question]
