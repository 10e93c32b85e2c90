"""Fuzzing guided by coverage, of all code that reads untrusted input.

    pip install atheris==3.0.0                      # in an environment of its own, with gemlane's dependencies
    python -m scripts.fuzz run -max_total_time=60   # the target, then libFuzzer's options
    python -m scripts.fuzz http -runs=200000

A target may raise the errors that its function names and nothing else. `http` and `form` send the bytes to a real
listener over a scripted engine, and a 500 counts as a fault; they need GEMLANE_MODEL, a small GGUF that uploads are
checked against.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-not-found, unused-ignore]
import numpy as np

with atheris.instrument_imports(include=["runtime", "convert", "aiohttp.multipart"], enable_loader_override=False):
    from convert.checkpoint.tokenizer import JSON_NAME, MODEL_NAME, read_vocabulary
    from convert.errors import ConvertError
    from convert.gguf.header import ValueType, read_header
    from convert.gguf.types import GgmlType
    from convert.gguf.writer import KeyValue, TensorPlan, encode_header
    from convert.tensors.safetensors_header import read_tensor_table
    from runtime.adapters.blend import parse_lora
    from runtime.adapters.service import adapters_of
    from runtime.app import build_app
    from runtime.chat.body import parse_chat, parse_text
    from runtime.chat.messages import parse_messages
    from runtime.chat.structured import parse_structure
    from runtime.cloudflare.wire import parse_run
    from runtime.config import EngineSettings, ServerSettings, Settings
    from runtime.engine.cache.disk import PrefixStore
    from runtime.engine.cache.prefixes import Prefixes
    from runtime.engine.coverage import Coverage
    from runtime.errors import GemlaneError
    from runtime.openai.responses.body import parse_response
    from runtime.pipe import decode
    from runtime.web.body import parse_json, parse_json_object
    from runtime.web.listener import listen
    from tests.runtime.double import ScriptedEngine

PLACE = Path(tempfile.mkdtemp(prefix="gemlane-fuzz-"))
ROUTES = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/adapters", "/v1/load_lora_adapter"),
    *("/client/v4/accounts/local/ai/run/@cf/google/gemma-7b-it-lora", "/client/v4/accounts/local/ai/finetunes"),
    *("/client/v4/accounts/local/ai/v1/chat/completions", "/v1/models", "/adapters/x", "/adapters:rescan", "/"),
)
ANSWER_S = 5
_CHAT = (
    b'{"model":"gemma-7b-it-lora:pirate","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],'
    b'"temperature":0.5,"top_p":0.9,"stop":["a"],"logit_bias":{"5":-1},"stream":true,"n":2,"lora":"a:0.5+b:1"}'
)
_RUN = b'{"prompt":"hi","lora":"a","raw":true,"max_tokens":5,"temperature":0.1,"top_k":5,"seed":1,"stream":false}'
_SCHEMA = (
    b'{"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"type":"object","properties":'
    b'{"a":{"type":"string","maxLength":20,"pattern":"^a"}},"required":["a"],"additionalProperties":false}}}}'
)
_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file_name"\r\n\r\nadapter_config.json\r\n--b\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: text/plain\r\n\r\n{"r":1}\r\n--b--\r\n'
)
_N_ROWS = 300
"""Rows of the embedding that tokenizer files are read for."""
_PREFIX = b'{"identity":"","blend":[["a",1.0]],"start":0,"n_tokens":%d,"sha256":""}\n'


def _gguf_seed() -> bytes:
    """A small file with a value of each type, without its first eight bytes."""
    values: list[KeyValue] = [
        KeyValue("general.architecture", ValueType.STRING, "gemma"),
        KeyValue("general.alignment", ValueType.UINT32, 32),
        KeyValue("a.b", ValueType.BOOL, value=True),
        KeyValue("a.tokens", ValueType.ARRAY, [b"<bos>", b"a"]),
        KeyValue("a.scores", ValueType.ARRAY, np.array([0.5, 1], np.float32)),
        KeyValue("a.ids", ValueType.ARRAY, np.array([1, 2], np.uint32)),
    ]
    kinds = (ValueType.UINT8, ValueType.INT16, ValueType.INT64, ValueType.FLOAT32, ValueType.FLOAT64)
    values += [KeyValue(f"a.{kind.name}", kind, 1) for kind in kinds]
    shapes = ((GgmlType.F32, (2, 4)), (GgmlType.F16, (8,)), (GgmlType.Q8_0, (1, 32)))
    tensors = [TensorPlan(f"blk.{n}.x", kind, shape, lambda: ()) for n, (kind, shape) in enumerate(shapes)]
    return encode_header(values, tensors)[8:] + bytes(96)


def _tokenizer_seeds() -> tuple[bytes, ...]:
    """Whole vocabularies of Gemma's form in both formats, and cut ones: the first byte says which format it is."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    texts = (*special, *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab")
    seeds = []
    for chosen in (texts, special, ("a", "b", "ab")):
        vocabulary = {text: token_id for token_id, text in enumerate(chosen)}
        added = [{"id": 2, "content": "<bos>", "special": True}] if "<bos>" in chosen else []
        model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocabulary}
        for merges in (["a b"], [["a", "b"]]):
            content = {"added_tokens": added, "model": model | {"merges": merges}}
            seeds.append(b"\0" + json.dumps(content).encode())
        kinds = [6 if text.startswith("<0x") else 3 if text in special else 1 for text in chosen]
        pieces = [
            b"\n" + bytes([len(text)]) + text.encode() + b"\x15" + struct.pack("<f", -token_id) + bytes([0x18, kind])
            for token_id, (text, kind) in enumerate(zip(chosen, kinds, strict=True))
        ]
        seeds.append(b"\1" + b"".join(b"\n" + bytes([len(each)]) + each for each in pieces) + b"\x12\2\x18\2")
    return tuple(seeds)


SEEDS: dict[str, tuple[bytes, ...]] = {
    "lora": (b"a:0.5+b:1", b'[{"name":"a","scale":0.5},{"id":"b"}]'),
    "pipe": (
        b'{"is":"Cancel","request_id":"a"}',
        b'{"is":"Text","request_id":"a","text":"b","n_tokens":1,"scores":[]}',
        b'{"is":"Working","request_ids":["a"],"limit_s":6.0}',
        b'{"is":"Generate","request":{"request_id":"a","prompt":{"segments":[{"text":"b","has_control_tokens":false}]}}}',
    ),
    "schema": (_SCHEMA, b'{"grammar":"root ::= \\"a\\""}', b'{"json_schema":{"type":"integer"}}'),
    "run": (_RUN, b'{"messages":[{"role":"user","content":"a"}],"lora":[{"name":"a"}]}'),
    "chat": (_CHAT, b'{"prompt":["a",[1,2]],"logprobs":5,"echo":true}', b'{"input":[{"role":"user","content":"a"}]}'),
    "prefix": (
        _PREFIX % 1 + bytes(4),
        _PREFIX % 70 + bytes(range(256)) + bytes(24) + b"state",
        (_PREFIX % 2).replace(b'[["a",1.0]],"start":0', b'[["a",0.5],["b",-1]],"start":1') + bytes(9),
        (_PREFIX % 3).replace(b'["a",1.0]', b"") + bytes(12),
    ),
    "safetensors": (
        b'{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"__metadata__":{"a":"b"}}12345678',
        b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[],"data_offsets":[4,6]}}'
        b"123456",
        b'{"a":{"dtype":"F8_E4M3","shape":[0,3],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}} '
        b"123456789",
    ),
    "gguf": (_gguf_seed(),),
    "tokenizer": _tokenizer_seeds(),
    "http": (b"\0" + _CHAT, b"\5" + _RUN, b"\0" + _SCHEMA, b'\1{"prompt":"a"}', b'\3{"name":"a","path":"b"}'),
    "form": (
        _FORM,
        _FORM.replace(b'name="file"', b'name="adapter_config.json"'),
        _FORM.replace(b"adapter_config.json", b"adapter_model.safetensors").replace(b'{"r":1}', b"\2\0\0\0\0\0\0\0{}"),
        _FORM.replace(b"text/plain", b"application/octet-stream").replace(b'{"r":1}', b"GGUF\3\0\0\0"),
        _FORM.replace(b"text/plain", b"text/plain\r\nContent-Transfer-Encoding: base64").replace(b'{"r":1}', b"e30="),
    ),
}
"""Inputs to begin with."""


def lora(data: bytes) -> None:
    """The value of ``lora``, as a string and as JSON."""
    with contextlib.suppress(GemlaneError):
        parse_lora(data.decode("utf-8", "replace"))
    with contextlib.suppress(GemlaneError):
        parse_lora(parse_json(data))


def pipe(data: bytes) -> None:
    """A line between the server and its engine."""
    with contextlib.suppress(ValueError):
        decode(data)


def schema(data: bytes) -> None:
    """Structured output."""
    with contextlib.suppress(GemlaneError):
        parse_structure(parse_json_object(data))


def run(data: bytes) -> None:
    """The body of Cloudflare's run route."""
    with contextlib.suppress(GemlaneError):
        parse_run(data)


def chat(data: bytes) -> None:
    """The bodies of OpenAI's routes."""
    with contextlib.suppress(GemlaneError):
        body = parse_json_object(data)
        for parse in (parse_chat, parse_text, parse_response, lambda each: parse_messages(each.get("messages"))):
            with contextlib.suppress(GemlaneError):
                parse(body)


class NamedStore(PrefixStore):
    """A store that finds each file under the name that follows from its content, so that more than that is reached."""

    name: Path

    def _path(self, coverage: Coverage, tokens: tuple[int, ...]) -> Path:
        super()._path(coverage, tokens)
        return self.name


def prefix(data: bytes) -> None:
    """A file of the prefix folder, with the right identity, digest and name; what is read can be kept and saved."""
    store = NamedStore(PLACE / "prefixes", "identity")
    store.name = PLACE / "prefixes" / ("0" * 40 + ".prefix")
    line, _, body = data.partition(b"\n")
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        fields = json.loads(line)
        fields |= {"identity": "identity", "sha256": hashlib.sha256(body).hexdigest()}
        data = json.dumps(fields).encode() + b"\n" + body
    store.name.write_bytes(data)
    kept = Prefixes(512, range(1, 9))
    saved = PrefixStore(PLACE / "saved", "identity")
    for each in store.load():
        kept_id = kept.adopt(each.coverage, each.tokens)
        if kept_id is not None:
            kept.disown(kept_id)
        saved.save(each)
        assert saved.has(each.coverage, each.tokens)
        (again,) = saved.load()
        assert (again.tokens, again.state) == (each.tokens, each.state)
        for file in (PLACE / "saved").iterdir():
            file.unlink()


def tokenizer(data: bytes) -> None:
    """A vocabulary from a tokenizer.json or, where the first byte is odd, a tokenizer.model."""
    is_model = bool(data) and data[0] % 2 == 1
    folder = PLACE / ("of-model" if is_model else "of-json")
    folder.mkdir(exist_ok=True)
    (folder / (MODEL_NAME if is_model else JSON_NAME)).write_bytes(data[1:])
    with contextlib.suppress(ConvertError):
        encode_header(read_vocabulary(folder, _N_ROWS).metadata(), [])


def gguf(data: bytes) -> None:
    """The header of a GGUF."""
    path = PLACE / "file.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + data)
    with contextlib.suppress(ConvertError):
        read_header(path)


def safetensors(data: bytes) -> None:
    """The header of a safetensors file, its length put in front."""
    path = PLACE / "file.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    with contextlib.suppress(ConvertError), path.open("rb") as file:
        read_tensor_table(file, path)


def http(data: bytes) -> None:
    """A route, chosen by the first byte, and its body."""
    route = ROUTES[data[0] % len(ROUTES)] if data else "/"
    method = ("POST", "PUT", "DELETE", "PATCH")[data[0] // len(ROUTES) % 4] if data else "POST"
    LOOP.run_until_complete(SENDER.send(method, route, "application/json", data[1:]))


def form(data: bytes) -> None:
    """An upload as a form."""
    route = ("/client/v4/accounts/local/ai/finetunes/x/finetune-assets", "/adapters/x")[len(data) % 2]
    method = ("POST", "PUT")[len(data) % 2]
    LOOP.run_until_complete(SENDER.send(method, route, "multipart/form-data; boundary=b", data))


class Sender:
    """A listener over a scripted engine, and what a request got."""

    def __init__(self) -> None:
        self._address = ("", 0)

    async def start(self) -> None:
        """Listen on loopback."""
        engine = ScriptedEngine()
        server = ServerSettings(state_dir=str(PLACE / "state"))
        settings = Settings(engine=EngineSettings(model=os.environ["GEMLANE_MODEL"]), server=server)
        self._adapters: Any = adapters_of(settings, engine)
        app = build_app(engine, await self._adapters.__aenter__(), settings.server)
        self._listening: Any = listen(app, "127.0.0.1", 0)
        listener = await self._listening.__aenter__()
        host, _, port = listener.url.removeprefix("http://").rpartition(":")
        self._address = (host, int(port))

    async def send(self, method: str, route: str, content_type: str, body: bytes) -> None:
        """Send one request on a connection of its own; a 500 or no answer is a fault."""
        reader, writer = await asyncio.open_connection(*self._address)
        head = (
            f"{method} {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await reader.read()
        finally:
            writer.close()
        assert answer.startswith(b"HTTP/1.1 "), answer[:100]
        assert not answer.startswith(b"HTTP/1.1 500"), answer[:1000]


LOOP = asyncio.new_event_loop()
SENDER = Sender()
TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (lora, pipe, schema, run, chat, prefix, gguf, safetensors, tokenizer, http, form)
}


def main() -> None:
    """Runs libFuzzer on the named target."""
    target = TARGETS[sys.argv[1]]
    logging.disable(logging.CRITICAL)
    if target in (http, form):
        LOOP.run_until_complete(SENDER.start())
    seeds = PLACE / "seeds"
    seeds.mkdir()
    for number, seed in enumerate(SEEDS.get(target.__name__, ())):
        (seeds / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(seeds)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
