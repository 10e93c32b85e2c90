"""The admin API over HTTP; the real converter and the real adapters of the tiny Gemma, the engine is a double."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, FormData

from runtime.adapters.check import make_check
from runtime.adapters.converter import Converter
from runtime.adapters.disk import StateDir
from runtime.adapters.folder import AdapterFolder
from runtime.adapters.intake import Intake
from runtime.adapters.known import KnownFiles, stamp_of
from runtime.adapters.service import AdapterService
from runtime.adapters.store import Store
from runtime.adapters.uploads import Uploads
from tests.runtime.conftest import PIRATE, PIRATE_FILE, Serve
from tests.runtime.double import ScriptedEngine
from tests.tiny_gemma.files import ADAPTERS

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The adapters folder, empty."""
    (tmp_path / "adapters").mkdir()
    return tmp_path / "adapters"


@pytest.fixture
async def service(tmp_path: Path, place: Path, tiny_model: Path, store: Store) -> AsyncIterator[AdapterService]:
    """Uploads and a folder beside the store that holds the pirate."""
    state = StateDir(tmp_path / "state")
    known = KnownFiles(state.root / "known.json", stamp_of(tiny_model))
    intake = Intake(state, known, make_check(tiny_model), Converter(tiny_model, 32), 0)
    folder = AdapterFolder(place, store, intake, still_s=0.02)
    uploads = Uploads(state, store, intake)
    yield AdapterService(store, uploads, folder)
    await folder.close()
    await uploads.close()
    state.close()


@pytest.fixture
async def client(serve: Serve, service: AdapterService, place: Path) -> ClientSession:
    """A client of a server that takes changes from every loopback client."""
    return await serve(service, adapters=str(place))


async def ask(
    client: ClientSession, method: str, path: str, data: Any = None, status: int = 200, **headers: str
) -> dict[str, Any]:
    """The answer's body, after a look at its status."""
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    async with client.request(method, path, data=data, headers=names) as response:
        assert response.status == status, await response.text()
        return dict(await response.json())


def tar_of(*files: tuple[str, bytes]) -> bytes:
    """A tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def folder_tar(adapter: str, prefix: str = "") -> bytes:
    """One of the tiny adapters' folders as a tar."""
    return tar_of(*((prefix + name, (ADAPTERS[adapter] / name).read_bytes()) for name in FILES))


def folder_form(adapter: str, **fields: str) -> FormData:
    """The two files of a folder as a form."""
    form = FormData()
    for name, value in fields.items():
        form.add_field(name, value)
    for name in FILES:
        form.add_field("files", (ADAPTERS[adapter] / name).read_bytes(), filename=f"run-7/{name}")
    return form


async def answer_of(client: ClientSession, lora: str) -> int:
    """The status of a request under an adapter."""
    body = json.dumps({"model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": "hi"}], "lora": lora})
    async with client.post("/v1/chat/completions", data=body) as response:
        return response.status


async def test_the_list(client: ClientSession) -> None:
    """The list has every field of an adapter, and the most adapters that may be kept."""
    answer = await ask(client, "GET", "/adapters")
    (adapter,) = answer["adapters"]
    assert {key: adapter[key] for key in ("id", "name", "state", "reason", "digest", "bytes", "rank", "source")} == {
        "id": PIRATE.id,
        "name": "pirate",
        "state": "ready",
        "reason": None,
        "digest": PIRATE_FILE.digest,
        "bytes": 1000,
        "rank": 4,
        "source": "folder",
    }
    assert (adapter["hits"], adapter["last_used_at"], adapter["replacement"]) == (0, None, None)
    assert answer["limits"]["max_adapters"] == 100
    await answer_of(client, "pirate")
    async with client.get("/adapters/pirate") as response:
        assert response.headers["ETag"] == f'"{PIRATE_FILE.digest}"'
        assert (await response.json())["hits"] == 1


@pytest.mark.parametrize("prefix", ["", "./", "run-7/"])
async def test_a_tar_is_added_and_answers(client: ClientSession, engine: ScriptedEngine, prefix: str) -> None:
    """The answer to the upload comes once requests may name it; then it has its own name and id."""
    body = folder_tar("tag", prefix)
    added = await ask(client, "PUT", f"/adapters/tag?sha256={hashlib.sha256(body).hexdigest()}", body, 201)
    assert (added["state"], added["source"], added["rank"]) == ("ready", "upload", 8)
    assert added["digest"] in engine.adapters
    for lora in ("tag", added["id"]):
        assert await answer_of(client, lora) == 200


async def test_a_form_and_a_gguf_give_what_a_tar_gives(client: ClientSession, tiny_adapters: Path) -> None:
    """The content decides, however it came; a GGUF is kept as it is."""
    digests: list[str] = []
    form = folder_form(
        "tag", **{f"sha256.{name}": hashlib.sha256((ADAPTERS["tag"] / name).read_bytes()).hexdigest() for name in FILES}
    )
    for body in (folder_tar("tag"), form):
        digests.append((await ask(client, "PUT", f"/adapters/n{len(digests)}", body, 201))["digest"])
    assert digests[0] == digests[1]
    content = (tiny_adapters / "tag.gguf").read_bytes()
    form = FormData()
    form.add_field("sha256", hashlib.sha256(content).hexdigest().upper())
    form.add_field("adapter", content, filename="tag.gguf")
    for body in (content, form):
        answer = await ask(client, "PUT", "/adapters/gguf", body, 201 if body is content else 200)
        assert answer["digest"] == hashlib.sha256(content).hexdigest()


async def test_replacing_is_compare_and_swap(client: ClientSession) -> None:
    """``If-Match`` with the ETag replaces that content alone; ``If-None-Match: *`` replaces none."""
    first = await ask(client, "PUT", "/adapters/mine", folder_tar("tag"), 201)
    stale = f'"{"0" * 64}"'
    refused = await ask(client, "PUT", "/adapters/mine", folder_tar("pirate"), 412, If_Match=stale)
    assert refused["error"]["code"] == "generation_mismatch"
    await ask(client, "PUT", "/adapters/mine", folder_tar("pirate"), 412, If_None_Match="*")
    second = await ask(client, "PUT", "/adapters/mine", folder_tar("pirate"), 200, If_Match=f'"{first["digest"]}"')
    assert (second["id"], second["digest"] != first["digest"]) == (first["id"], True)
    await ask(client, "DELETE", "/adapters/mine", None, 412, If_Match=f'"{first["digest"]}"')
    gone = await ask(client, "DELETE", "/adapters/mine", None, 200, If_Match=f'"{second["digest"]}"')
    assert gone["state"] == "retiring"
    assert await answer_of(client, "mine") == 404
    await ask(client, "DELETE", "/adapters/mine", None, 404)


async def test_a_path_below_the_folder_is_added(client: ClientSession, place: Path) -> None:
    """A copy is kept, so the path may change afterwards."""
    shutil.copytree(ADAPTERS["tag"], place / "runs" / "7")
    added = await ask(client, "POST", "/adapters", json.dumps({"name": "tag", "path": "runs/7"}), 201)
    shutil.rmtree(place / "runs")
    assert (await ask(client, "GET", f"/adapters/{added['id']}"))["state"] == "ready"


@pytest.mark.parametrize(
    "path", ["..", "../state", "/etc", "missing", "runs/../../state", "", "link", "\x00", "x" * 5000]
)
async def test_a_path_that_leads_out_of_the_folder_is_refused(
    client: ClientSession, place: Path, tmp_path: Path, path: str
) -> None:
    """Links are followed before the check, and the answer does not say what is at the path."""
    (place / "link").symlink_to(tmp_path)
    answer = await ask(client, "POST", "/adapters", json.dumps({"name": "x", "path": path}), 400 if not path else 422)
    assert str(tmp_path) not in answer["error"]["message"]


async def test_vllms_routes(client: ClientSession, place: Path) -> None:
    """The routes of vLLM have the bodies and texts of its server, and its refusal of a name that is loaded."""
    shutil.copytree(ADAPTERS["tag"], place / "runs" / "7")
    body = {"lora_name": "tag", "lora_path": "runs/7"}
    async with client.post("/v1/load_lora_adapter", data=json.dumps(body)) as response:
        assert (response.status, await response.text()) == (200, "Success: LoRA adapter 'tag' added successfully.")
    assert await answer_of(client, "tag") == 200
    async with client.post("/v1/load_lora_adapter", data=json.dumps(body)) as response:
        assert response.status == 400
        assert "already" in (await response.json())["error"]["message"]
    async with client.post("/v1/load_lora_adapter", data=json.dumps(body | {"load_inplace": True})) as response:
        assert response.status == 200
    for status in (200, 404):
        async with client.post("/v1/unload_lora_adapter", data=json.dumps({"lora_name": "tag"})) as response:
            assert response.status == status
    assert await answer_of(client, "tag") == 404


async def test_llama_servers_list(client: ClientSession) -> None:
    """llama-server's list gives names in place of host paths."""
    async with client.get("/lora-adapters") as response:
        assert await response.json() == [{"id": 0, "path": "pirate", "scale": 0.0}]


async def test_the_folder_is_looked_at_on_demand(client: ClientSession, place: Path, tiny_adapters: Path) -> None:
    """The answer to a rescan comes once what lies in the folder is served."""
    shutil.copy(tiny_adapters / "tag.gguf", place)
    answer = await ask(client, "POST", "/adapters:rescan")
    assert {adapter["name"]: adapter["state"] for adapter in answer["adapters"]} == {"pirate": "ready", "tag": "ready"}


async def test_a_file_of_the_folder_is_not_ours_to_change(client: ClientSession) -> None:
    """The error for a change of an adapter of the folder says where its file lies."""
    for method, data in (("DELETE", None), ("PUT", folder_tar("tag"))):
        answer = await ask(client, method, "/adapters/pirate", data, 409)
        assert "'pirate.gguf'" in answer["error"]["message"]
    assert await answer_of(client, "pirate") == 200


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "no body"),
        (b"GGUF", 422, "upload-1: the file ends"),
        (b"hello" * 200, 422, "neither a GGUF file nor an uncompressed tar"),
        (tar_of(), 422, "none of them"),
        (tar_of(("notes.txt", b"x")), 422, "none of them"),
        (tar_of((FILES[0], b"{}")), 422, "this is adapter_config.json"),
        (tar_of((FILES[0], b"{}"), (FILES[0], b"{}")), 422, "twice"),
        (tar_of((FILES[0], b"{}"), (FILES[1], b"x")), 422, "adapter_model.safetensors"),
        (tar_of((FILES[0], b"[" * 100_000), (FILES[1], b"x")), 422, "adapter_config.json"),
        (tar_of(*((f"{n}", b"") for n in range(1001))), 422, "over 1000 entries"),
        (folder_tar("tag")[:3000], 422, "ends inside"),
    ],
)
async def test_bad_uploads(client: ClientSession, service: AdapterService, body: bytes, status: int, text: str) -> None:
    """Each bad upload is refused with its reason and keeps no name and no file."""
    answer = await ask(client, "PUT", "/adapters/bad", body, status)
    assert text in answer["error"]["message"]
    assert answer["error"]["request_id"]
    assert service.uploads is not None
    state = service.uploads.state
    assert str(state.root) not in answer["error"]["message"]
    assert [list(folder.iterdir()) for folder in (state.incoming, state.uploads, state.blobs)] == [[], [], []]
    await ask(client, "GET", "/adapters/bad", None, 404)


async def test_a_wrong_sha256_keeps_nothing(client: ClientSession) -> None:
    """The answer gives the SHA-256 of what arrived; a text that is not a SHA-256 is refused too."""
    body, wrong = folder_tar("tag"), "0" * 64
    answer = await ask(client, "PUT", f"/adapters/tag?sha256={wrong}", body, 400)
    assert hashlib.sha256(body).hexdigest() in answer["error"]["message"]
    await ask(client, "PUT", "/adapters/tag?sha256=12", body, 400)
    await ask(client, "PUT", "/adapters/tag", folder_form("tag", **{f"sha256.{FILES[1]}": wrong}), 400)
    await ask(client, "GET", "/adapters/tag", None, 404)


@pytest.mark.parametrize("name", ["%20", "a%0Ab", "6f0f8f3e-4c0c-4d0e-9a55-7d3c1f6d2b12", "cf-public-x", "n" * 201])
async def test_bad_names(client: ClientSession, name: str) -> None:
    """Bad names are refused before anything is kept."""
    await ask(client, "PUT", f"/adapters/{name}", folder_tar("tag"), 422)


async def test_names_with_signs(client: ClientSession) -> None:
    """An adapter whose name has signs that a URL escapes can be added and read."""
    added = await ask(client, "PUT", "/adapters/a%2Fb%3F%C3%A9", folder_tar("tag"), 201)
    assert added["name"] == "a/b?é"
    assert (await ask(client, "GET", "/adapters/a%2Fb%3F%C3%A9"))["id"] == added["id"]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"pinned": 1}', b'{"pinned": true, "x": 1}', b"nonsense"])
async def test_bad_pins(client: ClientSession, body: bytes) -> None:
    """A body that is not a pin alone, true or false, is refused."""
    await ask(client, "PATCH", "/adapters/pirate", body, 400)


async def test_an_upload_over_the_limit(serve: Serve, service: AdapterService) -> None:
    """An upload over the limit is refused as soon as its size is known, in every form."""
    client = await serve(service, max_adapter_mib=1)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    for body in (io.BytesIO(b"x" * (2 << 20)), chunks()):
        await ask(client, "PUT", "/adapters/big", body, 413)


async def test_an_upload_goes_on_when_its_client_is_gone(
    client: ClientSession, service: AdapterService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files have come, so the adapter is served all the same."""
    began, may_go_on = asyncio.Event(), asyncio.Event()
    assert service.uploads is not None
    intake = service.uploads._intake
    convert = intake.convert

    async def held(source: Any) -> Any:
        began.set()
        await may_go_on.wait()
        return await convert(source)

    monkeypatch.setattr(intake, "convert", held)
    sending = asyncio.ensure_future(client.put("/adapters/tag", data=folder_tar("tag")))
    await asyncio.wait_for(began.wait(), 10)
    sending.cancel()
    await asyncio.sleep(0.05)  # the server notices
    may_go_on.set()
    async with asyncio.timeout(20):
        while await answer_of(client, "tag") != 200:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)


async def test_tokens(serve: Serve, service: AdapterService, tmp_path: Path) -> None:
    """A user's token may read; only an admin's token may change, and it may do what users may as well."""
    (tmp_path / "users").write_text("user\n")
    (tmp_path / "admins").write_text("admin\n")
    client = await serve(service, token_file=str(tmp_path / "users"), admin_token_file=str(tmp_path / "admins"))
    pin = json.dumps({"pinned": True})
    for token, reading, changing in (("user", 200, 403), ("admin", 200, 200), ("other", 401, 401)):
        headers = {"Authorization": f"Bearer {token}"}
        await ask(client, "GET", "/adapters", None, reading, **headers)
        await ask(client, "PATCH", "/adapters/pirate", pin, changing, **headers)
    await ask(client, "PATCH", "/adapters/pirate", pin, 401)


async def test_changes_without_a_token_of_their_own(serve: Serve, service: AdapterService, tmp_path: Path) -> None:
    """Where users need tokens, no user may change adapters until the server has admin tokens."""
    (tmp_path / "users").write_text("user\n")
    client = await serve(service, token_file=str(tmp_path / "users"))
    answer = await ask(client, "DELETE", "/adapters/pirate", None, 403, Authorization="Bearer user")
    assert "--admin-token-file" in answer["error"]["message"]


async def test_an_admin_token_alone(serve: Serve, service: AdapterService, tmp_path: Path) -> None:
    """With admin tokens alone, anyone on loopback may read and changes need the token."""
    (tmp_path / "admins").write_text("admin\n")
    client = await serve(service, admin_token_file=str(tmp_path / "admins"))
    await ask(client, "GET", "/adapters")
    await ask(client, "PATCH", "/adapters/pirate", json.dumps({"pinned": True}), 401)
    await ask(client, "PATCH", "/adapters/pirate", json.dumps({"pinned": True}), 200, Authorization="Bearer admin")


async def test_a_server_without_a_folder(serve: Serve) -> None:
    """What it cannot do, it says with the way out."""
    client = await serve()
    for method, path, data in (
        ("PUT", "/adapters/x", folder_tar("tag")),
        ("POST", "/adapters:rescan", None),
        ("POST", "/adapters", json.dumps({"name": "x", "path": "y"})),
    ):
        answer = await ask(client, method, path, data, 422)
        assert "--adapters DIR" in answer["error"]["message"]
