"""Asks a running server for answers to random JSON schemas, and checks that every whole answer keeps its schema.

    python -m scripts.structured http://127.0.0.1:8080                        1,000 schemas, 8 clients
    python -m scripts.structured http://127.0.0.1:8080 --schemas 200 --seed 7
    python -m scripts.structured http://127.0.0.1:8080 --suite tests/draft2020-12/*.json

The server must hold the tiny Gemma of tests/tiny_gemma and its three adapters: between the structured requests plain
streams are asked under all four voices, and each must be answered word for word. With `--suite` the schemas are those
of the JSON-Schema-Test-Suite's files. The exit status is 1 if an answer breaks its schema, a voice is wrong, or a
schema is refused without a reason.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES

MODEL = "gemma-7b-it-lora"
MAX_TOKENS = 300
MAX_DEPTH = 3
PLAIN_SHARE = 0.3
"""Share of the requests that are plain streams."""
NAMES = ("name", "age", "kind", "tags", "a b", "é", 'quo"te', "x-1", "line\nbreak")
TEXTS = ("red", "green", "", 'quo"te', "back\\slash", "tab\t", "日本", "😀")
UNSUPPORTED: dict[str, Any] = {
    "uniqueItems": True,
    "not": {"const": 1},
    "contains": {"const": 1},
    "propertyNames": {"maxLength": 3},
    "dependentRequired": {"a": ["b"]},
    "if": {"const": 1},
}
"""Keywords that must be refused by name."""


def random_schema(draw: random.Random) -> dict[str, Any]:
    """One schema; some hold a keyword that cannot be enforced, some are satisfied by nothing."""
    definitions = {f"d{n}": _schema(draw, 1, ()) for n in range(draw.randrange(3))}
    schema = _schema(draw, MAX_DEPTH, tuple(definitions))
    if definitions:
        schema["$defs"] = definitions
    if draw.random() < 0.05:
        keyword = draw.choice(tuple(UNSUPPORTED))
        schema[keyword] = UNSUPPORTED[keyword]
    return schema


def _schema(draw: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    leaves = (_integer, _number, _string, _enum, _const, _plain)
    if definitions and draw.random() < 0.15:
        return {"$ref": f"#/$defs/{draw.choice(definitions)}"}
    if not depth or draw.random() < 0.3:
        return draw.choice(leaves)(draw)
    return draw.choice((_object, _object, _array, _any_of, _all_of))(draw, depth - 1, definitions)


def _integer(draw: random.Random) -> dict[str, Any]:
    low = draw.randrange(-1000, 1000)
    limits: dict[str, Any] = {"minimum": low, "maximum": low + draw.randrange(2000)}
    if draw.random() < 0.3:
        limits = {"exclusiveMinimum": low, "exclusiveMaximum": low + 2 + draw.randrange(50)}
    return {"type": "integer", **(limits if draw.random() < 0.7 else {})}


def _number(draw: random.Random) -> dict[str, Any]:
    low = round(draw.uniform(-100, 100), draw.randrange(4))
    return {"type": "number", "minimum": low, "maximum": low + round(draw.uniform(0, 50), 2)}


def _string(draw: random.Random) -> dict[str, Any]:
    low = draw.randrange(4)
    kinds: tuple[dict[str, Any], ...] = (
        {"minLength": low, "maxLength": low + draw.randrange(8)},
        {"pattern": draw.choice((r"^[a-z]{2,5}$", r"^\d{3}-\d{4}$", "^(yes|no)$", "^[^a]{1,4}$", r"^a+b?c*$"))},
        {"format": draw.choice(("date", "time", "date-time", "uuid", "ipv4", "email"))},
    )
    return {"type": "string", **draw.choice(kinds)}


def _enum(draw: random.Random) -> dict[str, Any]:
    values = [*draw.sample(TEXTS, 3), draw.randrange(9), None, True, 1.5, [1, "x"], {"k": 'v"'}]
    return {"enum": draw.sample(values, draw.randint(1, 5))}


def _const(draw: random.Random) -> dict[str, Any]:
    return {"const": draw.choice((*TEXTS, 0, -7, 2.5, False, None, ["a", 1], {"a b": {"c": []}}))}


def _plain(draw: random.Random) -> dict[str, Any]:
    return {"type": draw.choice(("boolean", "null", ["null", "boolean"], ["integer", "null"]))}


def _object(draw: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    names = draw.sample(NAMES, draw.randrange(4))
    properties = {name: _schema(draw, depth, definitions) for name in names}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": draw.sample(names, draw.randint(0, len(names))),
    }
    more = draw.random()
    if more < 0.8:
        schema["additionalProperties"] = False
    elif more < 0.9:
        schema["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
        schema["maxProperties"] = len(names) + 1
    return schema


def _array(draw: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    low = draw.randrange(3)
    schema: dict[str, Any] = {
        "type": "array",
        "items": _schema(draw, depth, definitions),
        "maxItems": low + draw.randrange(3),
    }
    if draw.random() < 0.2:
        schema["prefixItems"] = [_schema(draw, 0, definitions) for _ in range(draw.randrange(1, 3))]
    return {**schema, "minItems": low}


def _any_of(draw: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    return {"anyOf": [_schema(draw, depth, definitions) for _ in range(draw.randint(1, 3))]}


def _all_of(draw: random.Random, depth: int, definitions: tuple[str, ...]) -> dict[str, Any]:
    del depth, definitions
    low = draw.randrange(10)
    return {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + draw.randrange(100)}]}


def suite_schemas(paths: list[Path]) -> list[Any]:
    """The schemas of files of the JSON-Schema-Test-Suite."""
    return [case["schema"] for path in paths for case in json.loads(path.read_text(encoding="utf-8"))]


@dataclass
class Tally:
    """What came of all requests."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def fault(self, what: str) -> None:
        """Note something that must not happen."""
        self.counts["faults"] += 1
        self.faults.append(what[:600])


class Asker:
    """Asks one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, tally: Tally) -> None:
        self._session = session
        self._url = url + "/v1/chat/completions"
        self._tally = tally

    async def structured(self, schema: Any, seed: int) -> None:
        """One structured answer, whole or streamed, under one of the voices."""
        form = {"type": "json_schema", "json_schema": {"name": "random", "schema": schema}}
        body = self._body(STYLES[seed % 4], QUESTIONS[seed % len(QUESTIONS)], max_tokens=MAX_TOKENS)
        body |= {"response_format": form, "temperature": 1.2, "seed": seed, "stream": seed % 3 == 0}
        async with self._session.post(self._url, json=body) as response:
            text = await response.text()
            if response.status != 200:
                self._refused(schema, response.status, text)
                return
        answer, reason = _streamed(text) if body["stream"] else _whole(text)
        if reason != "stop":
            self._tally.counts[f"ended by {reason}"] += 1
            return
        try:
            Draft202012Validator(schema).validate(json.loads(answer))
        except (ValueError, ValidationError) as error:
            self._tally.fault(f"{json.dumps(schema)} -> {answer!r}: {error}")
        else:
            self._tally.counts["whole and valid"] += 1

    def _refused(self, schema: Any, status: int, text: str) -> None:
        error = json.loads(text)["error"]
        self._tally.counts["refused"] += 1
        self._tally.reasons[error["message"].partition(": ")[2][:60]] += 1
        if status != 400 or error["code"] != "unsupported_grammar" or error["param"] != "response_format":
            self._tally.fault(f"{json.dumps(schema)} -> {status} {text}")

    async def plain(self, seed: int) -> None:
        """One plain stream, which must be its voice's, word for word."""
        style, question = STYLES[seed % 4], QUESTIONS[seed % len(QUESTIONS)]
        body = self._body(style, question, max_tokens=64) | {"temperature": 0, "stream": True}
        async with self._session.post(self._url, json=body) as response:
            answer, _ = _streamed(await response.text())
        self._tally.counts["plain streams"] += 1
        if answer != ANSWERS[style][question]:
            self._tally.fault(f"voice {style}: {answer!r}")

    def _body(self, style: str, question: str, **more: Any) -> dict[str, Any]:
        model = MODEL if style == "base" else f"{MODEL}:{style}"
        return {"model": model, "messages": [{"role": "user", "content": question}], **more}


def _whole(text: str) -> tuple[str, str]:
    choice = json.loads(text)["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def _streamed(text: str) -> tuple[str, str]:
    events = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event.startswith("data: {")]
    if any("error" in event for event in events):
        return "", next(event["error"]["code"] or "error" for event in events if "error" in event)
    choices = [choice for event in events for choice in event["choices"]]
    answer = "".join(choice["delta"].get("content", "") for choice in choices)
    return answer, next((choice["finish_reason"] for choice in choices if choice["finish_reason"]), "nothing")


async def run(url: str, schemas: list[Any], n_clients: int, seed: int) -> Tally:
    """Ask for all schemas, by several clients at once, with plain streams between them."""
    tally, draw = Tally(), random.Random(seed)
    jobs: Iterator[tuple[int, Any]] = iter(enumerate(schemas))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        asker = Asker(session, url, tally)

        async def client() -> None:
            for number, schema in jobs:
                while draw.random() < PLAIN_SHARE:
                    await asker.plain(draw.randrange(10_000))
                await asker.structured(schema, seed + number)

        await asyncio.gather(*(client() for _ in range(n_clients)))
    return tally


def main() -> int:
    """Ask, count, and print; the exit status says whether all was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a server with the tiny Gemma and its adapters")
    parser.add_argument("--schemas", type=int, default=1000, metavar="N")
    parser.add_argument("--clients", type=int, default=8, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--suite", nargs="+", type=Path, metavar="FILE", help="files of the JSON-Schema-Test-Suite")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    schemas = suite_schemas(arguments.suite) if arguments.suite else None
    schemas = schemas or [random_schema(draw) for _ in range(arguments.schemas)]
    began = time.monotonic()
    tally = asyncio.run(run(arguments.url.rstrip("/"), schemas, arguments.clients, arguments.seed))
    print(f"{len(schemas)} schemas, {arguments.clients} clients, {time.monotonic() - began:.0f} s")
    for name, count in sorted(tally.counts.items()):
        print(f"  {count:6} {name}")
    for reason, count in tally.reasons.most_common():
        print(f"  {count:6} refused: {reason}")
    for fault in tally.faults[:20]:
        print("FAULT", fault)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
