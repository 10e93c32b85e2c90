"""The same broken files and clients for gemlane and llama-server, as a table: what the client saw, what was lost.

    python -m scripts.faults --llama-server .gemlane/peers/bin/llama-server

Each case runs on a server that has answered one question before it. After it the same question is asked again: "right"
means that it is answered as before by the same process, "ended" that the process is gone, "wrong" anything else.
Adapter files are given to gemlane by upload and to llama-server at its start, its only way in.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.gguf.header import read_header
from tests.end_to_end.serving import serving
from tests.faults.mutants import mutant
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS
from tests.tiny_gemma.files import ADAPTERS, convert_adapter, convert_base

CHAT = "/v1/chat/completions"
QUESTION = {
    "model": "gemma-7b-it-lora",
    "messages": [{"role": "user", "content": QUESTIONS[0]}],
    "temperature": 0,
    "max_tokens": 64,
}
START_S, ANSWER_S = 30, 30


@dataclass(frozen=True, slots=True)
class Peer:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[Any]

    def send(self, raw: bytes, timeout_s: float = ANSWER_S) -> str:
        """Status line and the start of the body of the answer to raw bytes, or how the connection ended."""
        started = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
                with contextlib.suppress(OSError):  # refused before all of it was sent
                    connection.sendall(raw)
                response = http.client.HTTPResponse(connection)
                response.begin()
                text = response.read(400).decode("utf-8", "replace")
        except TimeoutError:
            return f"nothing within {timeout_s:g} s"
        except (OSError, http.client.HTTPException) as error:
            return f"connection lost ({type(error).__name__})"
        took_s = time.monotonic() - started
        return f"{response.status} {words_of(text)}" + (f" ({took_s:.1f} s)" if took_s > 1 else "")

    def post(self, body: bytes, path: str = CHAT, method: str = "POST") -> str:
        """The answer to a JSON body."""
        return self.send(request(body, path, method))

    def answer(self, **more: Any) -> str:
        """The text of the known question's answer."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
            connection.request("POST", CHAT, chat(**more), {"Content-Type": "application/json"})
            return str(json.loads(connection.getresponse().read())["choices"][0]["message"]["content"])
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            return f"no answer: {error}"


def words_of(text: str) -> str:
    """The message of an error, or the start of the body."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(text)["error"]["message"])[:70]
    return " ".join(text.split())[:70]


def request(body: bytes, path: str = CHAT, method: str = "POST", more: str = "") -> bytes:
    """A whole HTTP request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def chat(**more: Any) -> bytes:
    """The known question with other parameters."""
    return json.dumps(QUESTION | more).encode()


def schema(value: Any) -> bytes:
    """The known question with a schema."""
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": value}})


def nested(depth: int) -> Any:
    """A schema that is that deep."""
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


CLIENT_CASES: dict[str, Callable[[Peer], str]] = {
    "malformed JSON": lambda peer: peer.post(b'{"messages": ['),
    "JSON nested 100,000 deep": lambda peer: peer.post(b"[" * 100_000 + b"]" * 100_000),
    "invalid UTF-8": lambda peer: peer.post(
        b'{"model":"gemma-7b-it-lora","messages":[{"role":"user","content":"\xff\xfe"}]}'
    ),
    "half a surrogate pair": lambda peer: peer.post(
        b'{"model":"gemma-7b-it-lora","messages":[{"role":"user","content":"\\ud800"}],"max_tokens":4}'
    ),
    "NUL in the prompt": lambda peer: peer.post(
        b'{"model":"gemma-7b-it-lora","messages":[{"role":"user","content":"a\\u0000b"}],"max_tokens":4}'
    ),
    "no body": lambda peer: peer.post(b""),
    "messages is a number": lambda peer: peer.post(b'{"model":"gemma-7b-it-lora","messages":5}'),
    "100,000 messages (3.4 MB)": lambda peer: peer.post(
        json.dumps({"model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": "h"}] * 100_000}).encode()
    ),
    "a prompt of 4 MB": lambda peer: peer.post(
        json.dumps(
            {"model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": "hello " * 690_000}]}
        ).encode()
    ),
    "temperature NaN": lambda peer: peer.post(
        b'{"model":"gemma-7b-it-lora","messages":[{"role":"user","content":"a"}],"temperature":NaN}'
    ),
    "max_tokens 1e308": lambda peer: peer.post(chat(max_tokens=1e308)),
    "max_tokens -5": lambda peer: peer.post(chat(max_tokens=-5)),
    "n 1,000,000": lambda peer: peer.post(chat(n=1_000_000)),
    "logit_bias of a token that is not there": lambda peer: peer.post(chat(logit_bias={"99999999": 5})),
    "unknown adapter": lambda peer: peer.post(
        chat(lora="nobody" if peer.name == "gemlane" else [{"id": 99, "scale": 1}])
    ),
    "adapter's scale 1e39": lambda peer: peer.post(
        chat(lora=[{"name": "tag", "scale": 1e39}] if peer.name == "gemlane" else [{"id": 0, "scale": 1e39}])
    ),
    "grammar with a fault": lambda peer: peer.post(chat(grammar="root ::= (")),
    "grammar 60,000 brackets deep": lambda peer: peer.post(
        chat(grammar="root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000)
    ),
    "schema 900 deep": lambda peer: peer.post(schema(nested(900))),
    "schema with a pattern (a*)*b": lambda peer: peer.post(schema({"type": "string", "pattern": "^(a*)*b$"})),
    "schema that refers to itself": lambda peer: peer.post(schema({"$ref": "#"})),
    "negative Content-Length": lambda peer: peer.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"
    ),
    "broken chunk": lambda peer: peer.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"zz\r\n{}\r\n0\r\n\r\n"
    ),
    "not HTTP": lambda peer: peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, 5),
    "10,000 headers": lambda peer: peer.send(request(chat(), more="".join(f"x-{i}: a\r\n" for i in range(10_000)))),
    "200 streams left after their first bytes": lambda peer: leave(peer, 200),
}


def leave(peer: Peer, n_clients: int) -> str:
    """Streams whose clients go away; then how long the next answer takes."""
    for _ in range(n_clients):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", peer.port), timeout=5) as connection:
            connection.sendall(request(chat(stream=True, max_tokens=400)))
    started = time.monotonic()
    peer.answer()
    return f"next answer after {time.monotonic() - started:.1f} s"


def adapter_files(adapter: Path, place: Path) -> Iterator[tuple[str, Path]]:
    """Broken adapters: what is wrong, and the file."""
    sound = adapter.read_bytes()
    files = {
        "empty adapter": b"",
        "wrong magic": b"BAD!" + sound[4:],
        "future version": sound[:4] + struct.pack("<I", 99) + sound[8:],
        "2^63 tensors": sound[:8] + struct.pack("<Q", 2**63) + sound[16:],
        "cut in its header": sound[:400],
        "cut in its weights": sound[: len(sound) - 5000],
        "alpha of another type": sound.replace(
            b"adapter.lora.alpha" + struct.pack("<I", 6), b"adapter.lora.alpha" + struct.pack("<I", 4)
        ),
        "general.type of another type": sound.replace(
            b"general.type" + struct.pack("<I", 8), b"general.type" + struct.pack("<I", 4)
        ),
        "type is model": sound.replace(b"adapter", b"adaptor", 1),
        "a weight's name that the base lacks": sound.replace(b"blk.0.", b"blk.7."),
        "unpaired weight": sound.replace(b".lora_a", b".lora_x", 1),
    }
    n_header = read_header(adapter).data_offset
    files |= {f"random mutant {seed}": mutant(sound, n_header, seed) for seed in range(40)}
    for name, data in files.items():
        path = place / "broken.gguf"
        path.write_bytes(data)
        yield name, path


def try_upload(peer: Peer, path: Path) -> str:
    """Give gemlane a file, and use it if it was taken."""
    seen = peer.send(
        request(path.read_bytes(), "/adapters/broken", "PUT").replace(b"application/json", b"application/octet-stream")
    )
    if seen.startswith("20"):
        seen = f"served: {peer.answer(lora='broken')[:40]}"
        peer.post(b"", "/adapters/broken", "DELETE")
    return seen


def try_start(program: Path, base: Path, path: Path) -> str:
    """Start llama-server with a file, and ask it once."""
    with tempfile.TemporaryFile() as log:
        try:
            with llama_server(program, base, path, log) as peer:
                answer = peer.answer()
                return f"served: {answer[:40]}" if peer.process.poll() is None else "ended at the first answer"
        except ChildProcessError as error:
            return str(error)


@contextlib.contextmanager
def llama_server(program: Path, base: Path, adapter: Path, log: Any) -> Iterator[Peer]:
    """A llama-server with one adapter.

    Raises:
        ChildProcessError: it ended, or was not ready in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = ("-m", base, "--lora", adapter, "--port", port, "-t", 1, "-np", 4, "-c", 2048, "--no-webui")
    process = subprocess.Popen([str(program), *map(str, places)], stdout=log, stderr=log)
    try:
        started = time.monotonic()
        while time.monotonic() - started < START_S:
            if process.poll() is not None:
                code = process.returncode
                raise ChildProcessError(f"did not start: signal {-code}" if code < 0 else f"did not start: exit {code}")
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.05)
        else:
            raise ChildProcessError(f"not ready within {START_S} s")
        yield Peer("llama-server", port, process)
    finally:
        process.kill()
        process.wait()


def known_answer(peer: Peer) -> str:
    """The question's answer before anything went wrong: llama-server applies its adapter unless a request says more."""
    answer = peer.answer()
    assert answer == ANSWERS["base" if peer.name == "gemlane" else "tag"][QUESTIONS[0]], answer
    return answer


def after(peer: Peer, before: str) -> str:
    """What was lost."""
    is_right = peer.answer() == before
    with contextlib.suppress(subprocess.TimeoutExpired):  # a core dump takes a moment
        peer.process.wait(0 if is_right else 2)
    if peer.process.returncode is not None:
        return f"ended ({peer.process.returncode})"
    return "right" if is_right else "wrong"


def run_clients(make: Callable[[], contextlib.AbstractContextManager[Peer]]) -> dict[str, tuple[str, str]]:
    """Every client case; a server that ended is started again."""
    rows, left = {}, list(CLIENT_CASES)
    while left:
        with make() as peer:
            before = known_answer(peer)
            while left:
                name = left.pop(0)
                seen = CLIENT_CASES[name](peer)
                rows[name] = (seen, after(peer, before))
                if rows[name][1] != "right":
                    break
    return rows


def main() -> int:
    """Prints the table; 1 if gemlane lost anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--llama-server", type=Path, required=True, help="the program")
    program = parser.parse_args().llama_server
    with tempfile.TemporaryDirectory(prefix="gemlane-faults-") as name, (Path(name) / "log").open("wb") as log:
        place = Path(name)
        base, adapters, adapter = place / "base.gguf", place / "adapters", place / "adapters" / "tag.gguf"
        adapters.mkdir()
        convert_base(base, "f32")
        convert_adapter(ADAPTERS["tag"], base, adapter, "f16")

        @contextlib.contextmanager
        def gemlane() -> Iterator[Peer]:
            with serving(base, adapters) as server:
                yield Peer("gemlane", int(server.url.rpartition(":")[2]), server.process)

        ours = run_clients(gemlane)
        theirs = run_clients(lambda: llama_server(program, base, adapter, log))
        with gemlane() as peer:
            before = known_answer(peer)
            for what, path in adapter_files(adapter, place):
                seen = try_upload(peer, path)
                ours[what], theirs[what] = (seen, after(peer, before)), (try_start(program, base, path), "")
    print("| case | gemlane: the client saw | then | llama-server: the client saw | then |\n|--|--|--|--|--|")
    for what, (seen, lost) in ours.items():
        print(f"| {what} | {seen} | {lost} | {theirs[what][0]} | {theirs[what][1]} |".replace("\n", " "))
    return int(any(lost != "right" for _, lost in ours.values()))


if __name__ == "__main__":
    sys.exit(main())
