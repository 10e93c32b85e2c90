"""Each SDK does its real job: base and adapter answer exactly, a stream joins to the same, errors are its classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from tests.clients import installed
from tests.clients.asking import QUESTION
from tests.clients.conftest import Command, Needs, Ran
from tests.end_to_end.serving import MODEL, Server
from tests.tiny_gemma.facts import ANSWERS

CLOUDFLARE_V1 = {"GEMLANE_OPENAI_PATH": "/client/v4/accounts/local/ai/v1", "GEMLANE_MODEL": MODEL}
ROOT_V1 = {"GEMLANE_OPENAI_PATH": "/v1", "GEMLANE_MODEL": "gemma-7b-it-lora", "GEMLANE_ADAPTERS_ARE_MODELS": "1"}
NAMES = ("gemma-7b-it-lora", "gemma-7b-it-lora:pirate")


@dataclass(frozen=True, slots=True)
class Client:
    """A program of ``programs/``, where it runs, and the classes that it throws."""

    name: str
    found_in: str
    program: str
    unknown_lora: str = "BadRequestError"
    bad_body: str = "BadRequestError"
    wrong_token: str = "AuthenticationError"  # noqa: S105 - a class
    says_why: bool = True
    """Whether the text of its errors holds the server's words."""
    models: tuple[str, ...] = ()
    """Names that must be among those it lists."""
    variables: dict[str, str] = field(default_factory=dict)


CLIENTS = (
    Client("PyPI cloudflare 5", "newest", "cloudflare_rest.py", models=(MODEL,)),
    Client("PyPI cloudflare 4", "earlier", "cloudflare_rest.py", models=(MODEL,)),
    Client("PyPI openai 3, ai/v1", "newest", "openai_chat.py", variables=CLOUDFLARE_V1),
    Client("PyPI openai 2, ai/v1", "earlier", "openai_chat.py", variables=CLOUDFLARE_V1),
    Client("PyPI openai 3, /v1", "newest", "openai_chat.py", "NotFoundError", models=NAMES, variables=ROOT_V1),
    Client("PyPI openai 2, /v1", "earlier", "openai_chat.py", "NotFoundError", models=NAMES, variables=ROOT_V1),
    Client("PyPI litellm", "earlier", "litellm_chat.py"),
    Client("PyPI langchain-cloudflare", "earlier", "langchain_chat.py", *3 * ("HTTPStatusError",), says_why=False),
    Client("npm cloudflare", "npm", "cloudflare_rest.mjs", models=(MODEL,)),
    Client("npm openai, ai/v1", "npm", "openai_chat.mjs", variables=CLOUDFLARE_V1),
    Client("npm openai, /v1", "npm", "openai_chat.mjs", "NotFoundError", models=NAMES, variables=ROOT_V1),
    Client("npm workers-ai-provider", "npm", "ai_sdk.mjs", *3 * ("APICallError",)),
)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_client_does_its_job(
    client: Client,
    server: Server,
    needs: Needs,
    command: Command,
    ran: Ran,
) -> None:
    """The answers of facts.py, word for word, through code that knows nothing of us."""
    needs(client.found_in)
    done = command(*installed.program(client.found_in, client.program), **asked(server), **client.variables)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])

    assert outcome["answers"] == {voice: ANSWERS[voice][QUESTION] for voice in ("base", "pirate")}
    assert "".join(outcome["stream"]) == ANSWERS["pirate"][QUESTION]
    assert len(outcome["stream"]) > 5
    assert sum(count for count in outcome["usage"].values() if isinstance(count, int)) > 0
    for case, kind, words in (
        ("unknown_lora", client.unknown_lora, "nobody"),
        ("bad_body", client.bad_body, "temperature"),
    ):
        error = outcome["errors"][case]
        assert error["class"] == kind, error
        assert error["status"] == (404 if kind == "NotFoundError" else 400), error
        assert not client.says_why or words in error["text"], error
    assert outcome.get("completion") in (None, "The capital of France")
    assert set(client.models) <= set(outcome.get("models", []))
    ran(client.name, outcome["version"], "base, adapter, stream, errors")


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_wrong_token_is_the_client_s_own_error(
    client: Client, guarded: Server, needs: Needs, command: Command
) -> None:
    """The program ends at its first call, with the class that the client has for it."""
    needs(client.found_in)
    variables = asked(guarded) | client.variables | {"GEMLANE_TOKEN": "wrong"}
    done = command(*installed.program(client.found_in, client.program), **variables)
    assert done.returncode != 0
    assert client.wrong_token in done.stderr, done.stderr
    assert "401" in done.stderr or "Authentication error" in done.stderr, done.stderr


def asked(server: Server) -> dict[str, str]:
    """Arguments of a program."""
    return {
        "GEMLANE_URL": server.url,
        "GEMLANE_QUESTION": QUESTION,
        "GEMLANE_LORA": "pirate",
        "GEMLANE_TOKEN": "token",
    }
