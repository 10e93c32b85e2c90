"""Finetunes over HTTP, as wrangler, the SDKs and curl send them; the real converter, the real adapters."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, FormData, MultipartWriter

from runtime.adapters.check import make_check
from runtime.adapters.converter import Converter
from runtime.adapters.disk import StateDir
from runtime.adapters.intake import Intake
from runtime.adapters.known import KnownFiles, stamp_of
from runtime.adapters.service import AdapterService
from runtime.adapters.store import Store
from runtime.adapters.uploads import Uploads
from tests.runtime.conftest import Serve
from tests.runtime.double import ScriptedEngine
from tests.tiny_gemma.files import ADAPTERS

PEFT = ADAPTERS["tag"]
AI = "/client/v4/accounts/a/ai"
MODEL = "@cf/google/gemma-7b-it-lora"
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def uploads(tmp_path: Path, tiny_model: Path, store: Store) -> Uploads:
    """An empty state folder."""
    state = StateDir(tmp_path / "state")
    known = KnownFiles(state.root / "known.json", stamp_of(tiny_model))
    return Uploads(state, store, Intake(state, known, make_check(tiny_model), Converter(tiny_model, 32), 0))


@pytest.fixture
async def client(serve: Serve, store: Store, uploads: Uploads) -> ClientSession:
    """A client of a server that takes finetunes."""
    return await serve(AdapterService(store, uploads))


async def post(client: ClientSession, path: str, data: Any, status: int = 200, **headers: str) -> Any:
    """The answer's body, after a look at status and content type."""
    async with client.post(AI + path, data=data, headers=headers) as response:
        assert response.status == status, await response.text()
        assert response.headers["Content-Type"] == "application/json"
        return json.loads(await response.read())


async def create(client: ClientSession, name: str = "tagged", **fields: object) -> str:
    """A new finetune's id."""
    body = json.dumps({"model": MODEL, "name": name, "description": "", **fields})
    answer = await post(client, "/finetunes", body, 200, **{"Content-Type": "text/plain;charset=UTF-8"})
    return str(answer["result"]["id"])


def wrangler_form(name: str, content: bytes) -> FormData:
    """As wrangler sends it: the name first, and the file under the name of a blob."""
    form = FormData()
    form.add_field("file_name", name)
    form.add_field("file", content, filename="blob", content_type="application/octet-stream")
    return form


def reversed_form(name: str, content: bytes) -> MultipartWriter:
    """The file first."""
    form = MultipartWriter("form-data")
    form.append(content).set_content_disposition("form-data", name="file", filename=name)
    form.append(name).set_content_disposition("form-data", name="file_name")
    return form


@pytest.mark.parametrize("make_form", [wrangler_form, reversed_form])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_create_fill_and_use(client: ClientSession, engine: ScriptedEngine, make_form: Any, slash: str) -> None:
    """A finetune is created, filled and used, by name and by id."""
    fine_id = await create(client)
    for key, name in zip((fine_id, "tagged"), FILES, strict=True):
        path = f"/finetunes/{key}/finetune-assets{slash}"
        answer = await post(client, path, make_form(name, (PEFT / name).read_bytes()))
        assert answer["success"] is True
        assert set(answer["result"]) == {
            "id",
            "bucket_name",
            "created_at",
            "file_name",
            "finetune_id",
            "modified_at",
        }
        assert (answer["result"]["file_name"], answer["result"]["finetune_id"]) == (name, fine_id)
    for lora in (fine_id, "tagged"):
        answer = await post(client, f"/run/{MODEL}", json.dumps({"prompt": "hi", "lora": lora}))
        assert answer["result"]["response"] == "Hello world"
    _, digest = engine.adapters
    assert {request.blend.members[0].digest for request in engine.requests} == {digest}


async def test_create_answers_with_all_that_clients_read(client: ClientSession) -> None:
    """The answer to a creation has every field that clients read; times are RFC 3339 in UTC."""
    body = json.dumps({"model": MODEL, "name": "n", "description": "d", "public": True})
    answer = await post(client, "/finetunes/", body)
    result = answer["result"]
    assert {key: result[key] for key in ("model", "name", "description", "public")} == {
        "model": MODEL,
        "name": "n",
        "description": "d",
        "public": True,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", result["created_at"])
    assert (answer["success"], answer["errors"], answer["messages"]) == (True, [], [])


async def test_an_incomplete_finetune_has_its_own_error(client: ClientSession) -> None:
    """A request for an incomplete finetune gets 3039, by name and by id."""
    fine_id = await create(client)
    for lora in (fine_id, "tagged"):
        answer = await post(client, f"/run/{MODEL}", json.dumps({"prompt": "hi", "lora": lora}), 400)
        assert answer["errors"][0]["code"] == 3039


async def test_lists(client: ClientSession) -> None:
    """A flat list, the public ones apart, one by its name or id, and one less after a deletion."""
    for index, is_public in enumerate((False, True, True)):
        await create(client, f"n{index}", public=is_public)

    async def names(path: str) -> list[str]:
        async with client.get(AI + path) as response:
            assert response.status == 200
            return [item["name"] for item in (await response.json())["result"]]

    assert await names("/finetunes?") == ["n0", "n1", "n2"]
    assert await names("/finetunes/public?orderBy=name") == ["n1", "n2"]
    assert await names("/finetunes/public?limit=1&offset=1&orderBy=name") == ["n2"]
    assert await names("/finetunes/public?limit=x&offset=9") == []
    async with client.get(AI + "/finetunes/n1") as response:
        assert (await response.json())["result"]["name"] == "n1"
    async with client.delete(AI + "/finetunes/n1") as response:
        assert response.status == 200
    assert await names("/finetunes/") == ["n0", "n2"]
    for method in ("GET", "DELETE"):
        async with client.request(method, AI + "/finetunes/n1") as response:
            assert (response.status, (await response.json())["errors"][0]["code"]) == (400, 3037)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({"model": "@cf/meta/llama", "name": "n"}, 1000, "MODEL_NOT_SUPPORTED"),
        ({"model": MODEL, "name": ""}, 1000, "name"),
        ({"model": MODEL, "name": "pirate"}, 1000, "taken"),
        ({"model": MODEL, "name": "cf-public-x"}, 1000, "reserved"),
        ({"model": MODEL, "name": "n", "description": "d" * 2001}, 1000, "description"),
        ({"model": MODEL, "name": 5}, 5006, "name must be a string"),
        ({"name": "n"}, 5006, "model must be a string"),
        ({"model": MODEL, "name": "n", "public": "yes"}, 5006, "public must be a boolean"),
        ({"model": MODEL, "name": "n", "description": 5}, 5006, "description must be a string"),
        ([], 5006, "must be a JSON object"),
    ],
)
async def test_create_refusals(client: ClientSession, uploads: Uploads, body: Any, code: int, text: str) -> None:
    """Each refusal says what is wrong, and no finetune is made."""
    answer = await post(client, "/finetunes", json.dumps(body), 400)
    assert answer["errors"][0]["code"] == code
    assert text in answer["errors"][0]["message"]
    assert list(uploads) == []


async def test_upload_refusals(client: ClientSession, uploads: Uploads) -> None:
    """Each refusal says what is wrong, and nothing of the upload stays on disk."""
    fine_id = await create(client)
    path = f"/finetunes/{fine_id}/finetune-assets"
    nameless, fileless = FormData(), FormData()
    nameless.add_field("file", b"x", filename="blob")
    fileless.add_field("file_name", FILES[0])
    fileless.add_field("other", b"x", filename="blob")
    long_field = wrangler_form("n" * 5000, b"x")
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    cut = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nhalf of i'
    bad_header = b'--b\r\nContent-Disposition: form-data; name="\xff\x00"\r\n\r\nx\r\n--b--\r\n'
    for where, data, headers, status, code in [
        ("/finetunes/nobody/finetune-assets", wrangler_form(FILES[0], b"{}"), {}, 400, 1000),
        (path, wrangler_form("adapter_model.bin", b"x"), {}, 400, 1000),
        (path, wrangler_form(FILES[0], b"{"), {}, 400, 1000),
        (path, nameless, {}, 400, 5006),
        (path, fileless, {}, 400, 5006),
        (path, long_field, {}, 400, 5006),
        (path, b"{}", {"Content-Type": "application/json"}, 400, 5006),
        (path, b"{}", boundary, 400, 5006),
        (path, b"{}", {"Content-Type": "multipart/form-data"}, 400, 5006),
        (path, None, {}, 400, 5006),
        (path, cut, boundary, 400, 5006),
        (path, bad_header, boundary, 400, 5006),
    ]:
        answer = await post(client, where, data, status, **headers)
        assert answer["errors"][0]["code"] == code, answer
        assert list(uploads.state.incoming.iterdir()) == []
    assert [record.files for record in uploads] == [{}]


@pytest.mark.parametrize(
    "body",
    [
        b'--b\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\n' + b"x" * 99 + b"\r\n--b--\r\n",
        b"--b\r\n" + b"".join(b"H%d: v\r\n" % n for n in range(999)) + b"\r\n\r\n--b--\r\n",
        b"--b\r\nH: " + b"v" * 20_000 + b"\r\n\r\n\r\n--b--\r\n",
    ],
    ids=["charset", "headers", "long header"],
)
async def test_a_form_that_the_reader_refuses(client: ClientSession, body: bytes) -> None:
    """A form that aiohttp cannot read is the client's error, whatever class aiohttp raises."""
    path = f"/finetunes/{await create(client)}/finetune-assets"
    answer = await post(client, path, body, 400, **{"Content-Type": "multipart/form-data; boundary=b"})
    assert answer["errors"][0]["code"] == 5006


async def test_an_upload_that_does_not_say_what_it_is(client: ClientSession) -> None:
    """An upload without a content type is refused, since it has no parts."""
    path = f"{AI}/finetunes/{await create(client)}/finetune-assets"
    async with client.post(path, data=b"x", skip_auto_headers=["Content-Type"]) as response:
        assert response.status == 400
        assert "multipart" in await response.text()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_file_over_the_limit(serve: Serve, store: Store, uploads: Uploads, is_chunked: bool) -> None:
    """A file over the limit is refused as soon as that is known, and leaves nothing."""
    client = await serve(AdapterService(store, uploads), max_adapter_mib=1)
    fine_id = await create(client)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    async def body() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(1, 40):
            yield b"x" * 65536
        yield b"\r\n--b--\r\n"

    data = body() if is_chunked else b"".join([chunk async for chunk in body()])
    if not is_chunked:
        headers["Content-Length"] = str(len(data))
        data = _pieces(data)
    answer = await post(client, f"/finetunes/{fine_id}/finetune-assets", data, 413, **headers)
    assert answer["errors"][0]["code"] == 3006
    assert list(uploads.state.incoming.iterdir()) == []


async def _pieces(data: bytes) -> Any:
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


async def test_an_upload_that_is_cut_off(client: ClientSession, uploads: Uploads) -> None:
    """The client vanishes in the middle: no part of its file stays."""
    fine_id = await create(client)
    is_stuck = asyncio.Event()

    async def body() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"x" * 200_000
        while not list(uploads.state.incoming.glob("*/*")):  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0)
        is_stuck.set()
        await asyncio.Event().wait()

    path = f"{AI}/finetunes/{fine_id}/finetune-assets"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    sending = asyncio.ensure_future(client.post(path, data=body(), headers=headers))
    await asyncio.wait_for(is_stuck.wait(), 10)
    sending.cancel()
    async with asyncio.timeout(10):
        while list(uploads.state.incoming.iterdir()):  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0)


async def test_a_disk_that_takes_nothing(client: ClientSession, uploads: Uploads) -> None:
    """A full disk is the server's error, and the message says so."""
    fine_id = await create(client)
    uploads.state.incoming.rmdir()
    form = wrangler_form(FILES[0], b"{}")
    answer = await post(client, f"/finetunes/{fine_id}/finetune-assets", form, 500)
    assert answer["errors"][0]["code"] == 3043
    assert "cannot be written" in answer["errors"][0]["message"]


async def test_without_a_folder(serve: Serve) -> None:
    """The list is empty, and creating says what to do."""
    client = await serve()
    async with client.get(AI + "/finetunes") as response:
        assert (await response.json())["result"] == []
    answer = await post(client, "/finetunes", json.dumps({"model": MODEL, "name": "n"}), 400)
    assert "--adapters" in answer["errors"][0]["message"]


async def test_two_of_one_name_at_once(client: ClientSession) -> None:
    """One of two creations succeeds, and the other gets the error that the name is taken."""
    body = json.dumps({"model": MODEL, "name": "twin"})

    async def one() -> int:
        async with client.post(AI + "/finetunes", data=body) as response:
            return response.status

    assert sorted(await asyncio.gather(one(), one())) == [200, 400]


async def test_one_file_uploaded_twice_at_once(client: ClientSession, engine: ScriptedEngine) -> None:
    """Both uploads succeed, and the file is converted once."""
    fine_id = await create(client)
    path = f"/finetunes/{fine_id}/finetune-assets"
    contents = {name: (PEFT / name).read_bytes() for name in FILES}
    await post(client, path, wrangler_form(FILES[0], contents[FILES[0]]))
    await asyncio.gather(*(post(client, path, wrangler_form(FILES[1], contents[FILES[1]])) for _ in range(2)))
    assert len(engine.adapters) == 2
