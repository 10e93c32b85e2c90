"""How adapters are named to different servers, found by what a server says of itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runtime.bench.request import RequestForm
from runtime.bench.target import LoadTarget, find_target
from runtime.commands.stream import Address
from runtime.errors import GemlaneError, ServerRefused, ServerUnreachable

OURS = {"data": [{"id": "gemma", "owned_by": "gemlane"}, {"id": "gemma:pirate"}, {"id": "gemma:tag"}]}
VLLM = {"data": [{"id": "llama", "owned_by": "vllm"}, {"id": "sql", "owned_by": "vllm", "parent": "llama"}]}
LLAMA_SERVER = {"data": [{"id": "model.gguf", "owned_by": "llamacpp"}]}
LORAS = [{"id": 0, "path": "/a/pirate.gguf", "scale": 0.0}, {"id": 1, "path": "/a/tag.gguf", "scale": 1.0}]


@pytest.fixture
def answers() -> dict[str, Any]:
    """What the server answers, by path."""
    return {}


@pytest.fixture
def address(answers: dict[str, Any]) -> Iterator[Address]:
    """A server with fixed answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path, {"error": {"message": "no such path"}})).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Address(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_our_adapters_are_named_by_model(address: Address, answers: dict[str, Any]) -> None:
    """Our list has MODEL:NAME; requests name that model, and the base by its own."""
    answers["/v1/models"] = OURS
    target = find_target(address)
    assert target.adapters == ("pirate", "tag")
    assert target.naming("tag") == {"model": "gemma:tag"}
    assert target.naming("base") == {"model": "gemma"}


def test_adapters_that_are_models_of_their_own_are_named_by_model(address: Address, answers: dict[str, Any]) -> None:
    """A server like vLLM lists an adapter as a model; --model chooses another base."""
    answers["/v1/models"] = VLLM
    assert find_target(address).naming("sql") == {"model": "sql"}
    assert find_target(address, "sql").adapters == ("llama",)


def test_llama_servers_adapters_are_named_by_number(address: Address, answers: dict[str, Any]) -> None:
    """llama-server takes a scale for each of its adapters: 1 for the chosen one, 0 for all others."""
    answers |= {"/v1/models": LLAMA_SERVER, "/lora-adapters": LORAS}
    target = find_target(address)
    assert target.adapters == ("pirate", "tag")
    assert target.naming("tag")["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
    assert target.naming("base")["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]


def test_files_of_one_name_are_told_apart_by_number(address: Address, answers: dict[str, Any]) -> None:
    """Where two of llama-server's files are called alike, their numbers name them."""
    loras = [{"id": 0, "path": "/a/x.gguf"}, {"id": 1, "path": "/b/x.gguf"}]
    answers |= {"/v1/models": LLAMA_SERVER, "/lora-adapters": loras}
    assert find_target(address).adapters == ("0", "1")


def test_adapters_are_chosen_from_the_list(address: Address, answers: dict[str, Any]) -> None:
    """``all`` is every adapter; names keep their order; an unknown one is an error that lists the known."""
    answers["/v1/models"] = OURS
    target = find_target(address)
    assert target.chosen("all") == ("pirate", "tag")
    assert target.chosen("tag, base") == ("tag", "base")
    with pytest.raises(GemlaneError, match=r"lists no adapter 'nobody'; it has: pirate, tag"):
        target.chosen("base,nobody")
    with pytest.raises(GemlaneError, match="lists no adapters; leave --adapters out"):
        LoadTarget(address, "m", {}, {}).chosen("all")


@pytest.mark.parametrize("body", [{"data": [{"name": "x"}]}, {"models": []}, [], {"data": 3}])
def test_what_is_no_list_of_models_is_an_error(body: Any, address: Address, answers: dict[str, Any]) -> None:
    """An answer in another form is one line that names the address."""
    answers["/v1/models"] = body
    with pytest.raises(GemlaneError, match=r"/v1/models is not a list of models in OpenAI's form"):
        find_target(address)


def test_a_server_without_models_is_an_error(address: Address, answers: dict[str, Any]) -> None:
    """An empty list, a missing one and a missing server are errors of their own."""
    with pytest.raises(ServerRefused, match="404: no such path"):
        find_target(address)
    answers["/v1/models"] = {"data": []}
    with pytest.raises(GemlaneError, match="lists no model"):
        find_target(address)
    with pytest.raises(ServerUnreachable, match="start one with gemlane serve"):
        find_target(Address("http://127.0.0.1:1"))


def test_bodies_of_both_endpoints() -> None:
    """A body asks for a stream with counts, of exactly the tokens asked for, by prompt or by message."""
    target = LoadTarget(Address("http://127.0.0.1:1"), "gemma", {"tag": "gemma:tag"}, {})
    text = RequestForm("completions", 5, 0.0, ignores_end=True).body(target, "tag", "hello")
    assert text == {
        "model": "gemma:tag", "prompt": "hello", "max_tokens": 5, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True,
    }  # fmt: skip
    chat = RequestForm("chat", 5, 0.0, ignores_end=False).body(target, "base", "hello")
    assert chat["messages"] == [{"role": "user", "content": "hello"}]
    assert "ignore_eos" not in chat
