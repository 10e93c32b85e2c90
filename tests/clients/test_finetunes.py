"""Adapters arrive as they arrive at Cloudflare: a finetune is created, its two PEFT files are uploaded, it answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import installed
from tests.clients.asking import QUESTION, answer_of, get_json
from tests.clients.conftest import Command, Needs, Ran
from tests.end_to_end.serving import MODEL, Server, serving
from tests.tiny_gemma.facts import ANSWERS
from tests.tiny_gemma.files import ADAPTERS

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """The adapters' folder of a server, empty."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def empty_server(tiny_model: Path, uploads: Path) -> Iterator[Server]:
    """The tiny Gemma without an adapter."""
    with serving(tiny_model, uploads) as running:
        yield running


def peft(folder: Path, voice: str) -> Path:
    """A PEFT adapter as Cloudflare wants it: the two files, ``model_type`` in the configuration."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(ADAPTERS[voice] / name, folder)
    config = json.loads((folder / FILES[0]).read_text())
    (folder / FILES[0]).write_text(json.dumps(config | {"model_type": "gemma"}))
    return folder


def try_wrangler(command: Command, server: Server, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A ``wrangler ai`` command; without an account's id it asks the server for its accounts."""
    script = installed.package("wrangler") / "bin" / "wrangler.js"
    account = {
        "CLOUDFLARE_API_BASE_URL": f"{server.url}/client/v4",
        "CLOUDFLARE_API_TOKEN": "token",
    }
    return command(installed.node(), script, "ai", *words, **account)


def wrangler(command: Command, server: Server, *words: str | Path) -> str:
    """What a ``wrangler ai`` command prints; it must succeed."""
    done = try_wrangler(command, server, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wrangler_creates_a_finetune_that_outlives_the_server(
    tiny_model: Path, uploads: Path, tmp_path: Path, command: Command, needs: Needs, ran: Ran
) -> None:
    """A finetune that wrangler creates answers by name and by id, at once and after a restart of the server."""
    needs("npm")
    folder = peft(tmp_path / "peft", "pirate")
    with serving(tiny_model, uploads, state=tmp_path / "state") as server:
        created = wrangler(command, server, "finetune", "create", MODEL, "mine", folder)
        assert "mine" in created
        assert answer_of(server, "mine") == ANSWERS["pirate"][QUESTION]
        finetunes = get_json(f"{server.url}/client/v4/accounts/local/ai/finetunes")["result"]
        assert [finetune["name"] for finetune in finetunes] == ["mine"]
        finetune_id = finetunes[0]["id"]
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", finetune_id)
        assert answer_of(server, finetune_id) == ANSWERS["pirate"][QUESTION]
        listed = wrangler(command, server, "finetune", "list")
        assert "mine" in listed
        assert finetune_id in listed
    with serving(tiny_model, uploads, state=tmp_path / "state") as server:
        assert answer_of(server, "mine") == ANSWERS["pirate"][QUESTION]
        assert answer_of(server, finetune_id) == ANSWERS["pirate"][QUESTION]
        assert finetune_id in wrangler(command, server, "finetune", "list")
    ran("npm wrangler ai finetune", installed.version("wrangler"), "create, list; answers at once and after a restart")


def test_wrangler_says_why_a_finetune_is_refused_and_may_try_again(
    empty_server: Server, tmp_path: Path, command: Command, needs: Needs
) -> None:
    """Wrangler cannot delete, so the name of a finetune that came to nothing is free; one that answers keeps it."""
    needs("npm")
    folder = peft(tmp_path / "peft", "pirate")
    config = json.loads((folder / FILES[0]).read_text())
    create = ("finetune", "create", MODEL, "mine", folder)
    for broken, words in (({"model_type": "llama"}, "has model_type 'llama'"), ({"r": 4096}, "has rank 8")):
        (folder / FILES[0]).write_text(json.dumps(config | broken))
        assert words in try_wrangler(command, empty_server, *create).stderr
    (folder / FILES[0]).write_text(json.dumps(config))
    wrangler(command, empty_server, *create)
    assert answer_of(empty_server, "mine") == ANSWERS["pirate"][QUESTION]
    assert "is taken" in try_wrangler(command, empty_server, *create).stderr


def test_wrangler_shows_the_models(server: Server, command: Command, needs: Needs, ran: Ran) -> None:
    """The catalogue and the model's schema; an account need not be named."""
    needs("npm")
    assert MODEL in wrangler(command, server, "models", "list")
    assert '"prompt"' in wrangler(command, server, "models", "schema", MODEL)
    ran("npm wrangler ai models", installed.version("wrangler"), "list, schema")


@pytest.mark.parametrize(
    ("client", "found_in", "program"),
    [
        ("PyPI cloudflare 5", "newest", "finetune.py"),
        ("PyPI cloudflare 4", "earlier", "finetune.py"),
        ("npm cloudflare", "npm", "finetune.mjs"),
    ],
)
def test_an_sdk_creates_a_finetune(
    client: str,
    found_in: str,
    program: str,
    empty_server: Server,
    tmp_path: Path,
    command: Command,
    needs: Needs,
    ran: Ran,
) -> None:
    """The two uploads as the SDK forms them; a name that is taken is the SDK's own error."""
    needs(found_in)
    variables = {
        "GEMLANE_URL": empty_server.url,
        "GEMLANE_QUESTION": QUESTION,
        "GEMLANE_LORA": "",
        "GEMLANE_TOKEN": "token",
        "GEMLANE_PEFT": str(peft(tmp_path / "peft", "tag")),
        "GEMLANE_NAME": "by an SDK",
    }
    done = command(*installed.program(found_in, program), **variables)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["is_listed"]
    assert outcome["public"] == []
    assert outcome["errors"]["taken"]["class"] == "BadRequestError"
    assert answer_of(empty_server, "by an SDK") == ANSWERS["tag"][QUESTION]
    assert answer_of(empty_server, outcome["id"]) == ANSWERS["tag"][QUESTION]
    ran(f"{client} finetunes", outcome["version"], "create, upload, list, public list, a taken name")


def test_the_documented_curls_create_a_finetune(empty_server: Server, tmp_path: Path, command: Command) -> None:
    """The three commands of Cloudflare's page on LoRAs, trailing slashes and explicit content type included."""
    folder = peft(tmp_path / "peft", "shout")
    account = f"{empty_server.url}/client/v4/accounts/local/ai/finetunes"
    bearer = ("-H", "Authorization: Bearer token")
    body = json.dumps({"model": MODEL, "name": "curled", "description": "by curl"})
    created = command(
        "curl", "-sS", "-X", "POST", f"{account}/", *bearer, "-H", "Content-Type: application/json", "-d", body
    )
    finetune_id = json.loads(created.stdout)["result"]["id"]
    for name in FILES:
        form = ("-F", f"file_name={name}", "-F", f"file=@{folder / name}")
        content_type = ("-H", "Content-Type: multipart/form-data")
        done = command(
            "curl", "-sS", "-X", "POST", f"{account}/{finetune_id}/finetune-assets/", *bearer, *content_type, *form
        )
        assert json.loads(done.stdout)["success"] is True, done.stdout
    assert answer_of(empty_server, "curled") == ANSWERS["shout"][QUESTION]
