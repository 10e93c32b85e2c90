"""``scripts/balancer``: where requests go, and what a box that fails costs them; the boxes are scripted here.

Each test is skipped where the balancer's program is not installed.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.end_to_end.balancers import KINDS, Balancer, Box, balancing, free_port, is_installed
from tests.end_to_end.serving import MODEL

RUN = f"/client/v4/accounts/local/ai/run/{MODEL}"
CHAT = "/v1/chat/completions"
SESSION = "x-session-affinity"


@dataclass
class ScriptedBox:
    """Answers every request in the way that ``does`` says."""

    box: Box
    does: str = "answer"
    asked: list[str] = field(default_factory=list)
    """The bodies that came, in order."""
    was_checked: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    has_lost_client: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/ready":
            self.was_checked.set()
            return web.json_response({"status": "ok"}, status=503 if self.does == "not ready" else 200)
        self.asked.append((await request.read()).decode())
        assert request.transport is not None
        match self.does:
            case "answer" | "not ready":
                return web.json_response({"box": self.box.number, "length": len(self.asked[-1])})
            case "refuse":
                return web.json_response({"error": "full"}, status=429, headers={"Retry-After": "3"})
            case "load":
                return web.json_response({"error": "loading"}, status=503)
            case "die":
                request.transport.abort()
                return web.Response()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        if self.does == "die after a piece":
            request.transport.abort()
            return response
        try:
            await self.may_end.wait()
            await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.has_lost_client.set()
            raise
        return response


@dataclass
class World:
    """A balancer before scripted boxes, and a client of it."""

    balancer: Balancer
    boxes: list[ScriptedBox]
    client: aiohttp.ClientSession

    async def box_for(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> int:
        """The number of the box that answers such a request."""
        async with self.client.post(path, data=json.dumps(body), headers=headers) as response:
            assert response.status == 200, await response.text()
            number = self.balancer.number_of(response)
            assert (await response.json())["box"] == number
            return number

    async def box_seen(self, path: str, headers: Mapping[str, str]) -> int:
        """The number of the box that answers, in whatever way."""
        async with self.client.post(path, data="{}", headers=headers) as response:
            return self.balancer.number_of(response)

    async def session_on(self, number: int) -> dict[str, str]:
        """Headers of a session whose requests go to that box."""
        for key in range(100):
            headers = {SESSION: f"session {key}"}
            if await self.box_for(RUN, {"prompt": "hi"}, headers) == number:
                return headers
        raise AssertionError(f"100 sessions, and none of them on box {number}")


async def start(stack: AsyncExitStack, number: int) -> ScriptedBox:
    """A scripted box that listens until the stack ends."""
    scripted = ScriptedBox(Box(number, f"127.0.0.1:{free_port()}"))
    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/{path:.*}", scripted.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", int(scripted.box.address.split(":")[1])).start()
    return scripted


@pytest.fixture(params=sorted(KINDS))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Three boxes behind each balancer that is installed."""
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    async with AsyncExitStack() as stack:
        boxes = [await start(stack, number) for number in (1, 2, 3)]
        # Its start blocks for a moment; the boxes need no loop until something asks them.
        balancer = stack.enter_context(balancing(KINDS[request.param], tmp_path, [each.box for each in boxes]))
        yield World(balancer, boxes, await stack.enter_async_context(client_of(balancer)))


def client_of(balancer: Balancer) -> aiohttp.ClientSession:
    """A client; a reload of nginx closes kept connections at once, with the request that may be on its way in one."""
    connector = aiohttp.TCPConnector(limit=0, force_close=balancer.kind.name == "nginx")
    return aiohttp.ClientSession(balancer.url, connector=connector, timeout=aiohttp.ClientTimeout(total=30))


async def test_requests_of_one_adapter_go_to_one_box(world: World) -> None:
    """Both APIs and every way of naming an adapter lead to the same box; many adapters use all boxes."""
    used = set()
    for number in range(40):
        name = f"adapter-{number}"
        ways = (
            (RUN, {"lora": name, "prompt": "hi"}),
            (RUN, {"prompt": 'say "lora": "other", and \\"lora\\": "third"', "lora": name}),
            (RUN, {"messages": [{"role": "user", "content": "caf\u00e9 {\n"}], "lora": name}),
            (CHAT, {"model": f"gemma-7b-it-lora:{name}", "messages": []}),
            (CHAT, {"model": "gemma-7b-it-lora", "messages": [], "lora": name}),
            (
                CHAT,
                {"model": "gemma-7b-it-lora", "messages": [], "lora": [{"name": name, "scale": 0.5}, {"name": "b"}]},
            ),
        )
        boxes = {await world.box_for(path, body) for path, body in ways}
        assert len(boxes) == 1, name
        used |= boxes
    assert used == {1, 2, 3}


async def test_a_session_comes_before_its_adapter(world: World) -> None:
    """Requests with one ``x-session-affinity`` stay on one box, whatever adapter they name."""
    used = set()
    for number in range(20):
        headers = {SESSION: f"session {number}"}
        boxes = {await world.box_for(RUN, {"prompt": "hi", "lora": f"a{each}"}, headers) for each in range(5)}
        assert len(boxes) == 1
        used |= boxes
    assert used == {1, 2, 3}


async def test_a_body_that_comes_late_is_waited_for(world: World) -> None:
    """A request is routed by its adapter also if its body comes in pieces, behind the headers."""

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.05)  # so that the headers go first
        yield body[:10]
        await asyncio.sleep(0.05)
        yield body[10:]

    for number in range(8):
        body = {"prompt": "hi", "lora": f"adapter-{number}"}
        wanted = await world.box_for(RUN, body)
        async with world.client.post(RUN, data=pieces(json.dumps(body).encode())) as response:
            assert world.balancer.number_of(response) == wanted


@pytest.mark.parametrize("size", [10, 60_000, 3_000_000])
async def test_bodies_pass_whole(world: World, size: int) -> None:
    """A body of any size that a box would take reaches it as it was sent."""
    body = json.dumps({"lora": "pirate", "prompt": "x" * size}).encode()
    async with world.client.post(RUN, data=io.BytesIO(body)) as response:
        assert (await response.json())["length"] == len(body)


@pytest.mark.parametrize("fault", ["load", "die"])
async def test_a_fault_before_the_first_byte_is_unseen(world: World, fault: str) -> None:
    """A box that dies before its answer, or loads its model, is asked once; another one answers."""
    headers = await world.session_on(2)
    world.boxes[1].does = fault
    world.boxes[1].asked.clear()
    assert await world.box_for(RUN, {"prompt": "hi"}, headers) != 2
    assert len(world.boxes[1].asked) == 1


async def test_a_fault_after_the_first_byte_is_seen(world: World) -> None:
    """A stream that breaks off ends as an error of the connection, and no box is asked again."""
    headers = await world.session_on(2)
    for each in world.boxes:
        each.does = "die after a piece"
        each.asked.clear()
    async with world.client.post(RUN, data='{"stream": true}', headers=headers) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert [len(each.asked) for each in world.boxes] == [0, 1, 0]


async def test_a_full_box_says_so_itself(world: World) -> None:
    """A 429 reaches the client with its Retry-After; the other boxes are not asked instead."""
    headers = await world.session_on(3)
    for each in world.boxes:
        each.does = "refuse"
        each.asked.clear()
    async with world.client.post(RUN, data="{}", headers=headers) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "3")
    assert sum(len(each.asked) for each in world.boxes) == 1


async def test_without_any_box_the_error_is_typed(world: World) -> None:
    """When no box answers, the client gets a 503 in both dialects' words."""
    for each in world.boxes:
        each.does = "die"
    async with world.client.post(RUN, data="{}") as response:
        body = await response.json()
        assert response.status in (502, 503)
        assert body["error"]["code"] in ("engine_died", "engine_unavailable")
        assert body["errors"][0]["code"] in (3040, 3043)
        assert body["success"] is False


async def test_pieces_pass_at_once_and_a_lost_client_is_noticed(world: World) -> None:
    """The first event arrives while the answer goes on, and a client that leaves ends the box's work."""
    for each in world.boxes:
        each.does = "stream"
    async with world.client.post(CHAT, data="{}") as response:
        number = world.balancer.number_of(response)
        assert await response.content.readuntil(b"\n\n") == b"data: first\n\n"
        response.close()
    await asyncio.wait_for(world.boxes[number - 1].has_lost_client.wait(), 10)


async def test_a_busy_box_hands_on(world: World) -> None:
    """HAProxy spreads one session's requests over the boxes when they run at once, each at most 1.25 times its share.

    nginx has a fixed bound for that, which 12 requests do not reach.
    """
    if world.balancer.kind.name == "nginx":
        pytest.skip("nginx bounds connections by a number, not by load")
    for each in world.boxes:
        each.does = "stream"
    async with AsyncExitStack() as stack:
        asked = world.client.post(CHAT, data="{}", headers={SESSION: "one"})
        running = [await stack.enter_async_context(asked)]
        for _ in range(11):
            again = world.client.post(CHAT, data="{}", headers={SESSION: "one"})
            running.append(await stack.enter_async_context(again))
        assert max(len(each.asked) for each in world.boxes) == 5  # 1.25 * 12 / 3
        for each in world.boxes:
            each.may_end.set()
        assert [await response.read() for response in running] == [b"data: first\n\ndata: [DONE]\n\n"] * 12


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/adapters/pirate"),
        ("PATCH", "/adapters/pirate"),
        ("DELETE", "/adapters/pirate"),
        ("POST", "/adapters"),
        ("POST", "/adapters:rescan"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/client/v4/accounts/local/ai/finetunes"),
        ("POST", "/client/v4/accounts/local/ai/finetunes/one/finetune-assets"),
        ("DELETE", "/client/v4/accounts/local/ai/finetunes/one"),
    ],
)
async def test_adapters_are_not_changed_through_the_balancer(world: World, method: str, path: str) -> None:
    """A change that only one box would hear of is refused, with the way to do it."""
    async with world.client.request(method, path, data="{}") as response:
        assert response.status == 403
        assert "folder that all servers watch" in (await response.json())["error"]["message"]
    assert [each.asked for each in world.boxes] == [[], [], []]


async def test_lists_of_adapters_pass(world: World) -> None:
    """Requests that only read the list of adapters pass."""
    for path in ("/adapters", "/client/v4/accounts/local/ai/finetunes", "/v1/models"):
        async with world.client.get(path) as response:
            assert response.status == 200


async def test_a_new_box_takes_its_share_and_nothing_else_moves(world: World) -> None:
    """After a reload with a fourth box, a session stays on its box or goes to the new one."""
    sessions = [{SESSION: f"session {number}"} for number in range(60)]
    before = [await world.box_for(RUN, {"prompt": "hi"}, headers) for headers in sessions]
    async with AsyncExitStack() as stack:
        fourth = await start(stack, 4)
        world.balancer.reload([*world.balancer.boxes, fourth.box])
        async with asyncio.timeout(10):
            while len(fourth.asked) < len(sessions):  # the earlier process may take connections for a moment yet
                for headers in sessions:
                    await world.box_for(RUN, {"prompt": "hi"}, headers)
        await world.client.close()  # kept connections end with the process that they belong to
        world.client = await stack.enter_async_context(client_of(world.balancer))
        after = [await world.box_for(RUN, {"prompt": "hi"}, headers) for headers in sessions]
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {new for _, new in moved} == {4}
    assert 5 <= len(moved) <= 30  # a quarter of 60, within what so few points on the ring allow


async def test_a_box_that_is_not_ready_gets_nothing(world: World) -> None:
    """HAProxy leaves a box out as long as its ``/ready`` is not 200; nginx does not ask."""
    if world.balancer.kind.name == "nginx":
        pytest.skip("nginx has no health checks of its own")
    headers = await world.session_on(1)
    for does, is_asked in (("not ready", False), ("answer", True)):
        world.boxes[0].does = does
        async with asyncio.timeout(15):
            while (await world.box_seen(RUN, headers) == 1) is not is_asked:
                world.boxes[0].was_checked.clear()
                await world.boxes[0].was_checked.wait()
