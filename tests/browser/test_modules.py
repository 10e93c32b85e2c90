"""The page's pure modules, run by the browser itself: streams cut anywhere, names, ranges, figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.playground import Playground
from tests.runtime.playground.test_files import ROOT

STREAM = (
    ': a comment\r\ndata: {"text": "é😀"}\r\n\r\n'
    "event: ignored\ndata: one\ndata: two\n\n"
    "data:no space\n\n"
    "\n"
    "data: [DONE]\n\n"
    "data: never ended"
)
EVENTS = ['{"text": "é😀"}', "one\ntwo", "no space", "[DONE]"]


def call(playground: Playground, module: str, expression: str, argument: Any = None) -> Any:
    """The value of a JavaScript expression over ``m``, the module, and ``x``, the argument."""
    source = f"async (x) => {{ const m = await import('/playground/{module}'); return {expression}; }}"
    return playground.page.evaluate(source, argument)


def test_events_are_whole_wherever_the_bytes_are_cut(playground: Playground) -> None:
    """A stream of events, cut in two at every byte and into single bytes, gives the same events each time."""
    read = """(async () => {
        const all = [];
        for (const cuts of x.cuts) {
            const bytes = new TextEncoder().encode(x.text);
            const body = new ReadableStream({ start(out) {
                for (let i = 0; i < cuts.length - 1; i += 1) out.enqueue(bytes.slice(cuts[i], cuts[i + 1]));
                out.close();
            } });
            const events = [];
            for await (const data of m.eventsOf(body)) events.push(data);
            all.push(events);
        }
        return all;
    })()"""
    size = len(STREAM.encode())
    cuts = [[0, middle, size] for middle in range(size + 1)] + [list(range(size + 1))]
    for events in call(playground, "sse.js", f"await {read}", {"text": STREAM, "cuts": cuts}):
        assert events == EVENTS


@pytest.mark.parametrize(
    ("members", "lora"),
    [
        ([], None),
        ([("pirate", 1)], "pirate"),
        ([("a:b+c", 1)], [{"name": "a:b+c", "scale": 1}]),
        ([("pirate", 0.5)], "pirate:0.5"),
        ([("pirate", 0.5), ("shout", 1)], "pirate:0.5+shout"),
        ([("my voice", 0.5), ("shout", 1)], [{"name": "my voice", "scale": 0.5}, {"name": "shout", "scale": 1}]),
    ],
)
def test_a_blend_is_named_as_the_server_reads_it(
    playground: Playground, members: list[tuple[str, float]], lora: Any
) -> None:
    """``lora`` is left out for the base model, text where the names allow it, else a list."""
    value = [{"name": name, "scale": scale} for name, scale in members]
    assert call(playground, "blends.js", "m.loraOf(x) ?? null", value) == lora


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("0.5", 0.5),
        ("-1", -1),
        ("1e9", 100),
        ("-1e9", -100),
        ("0.12345", 0.123),
        ("", None),
        ("x", None),
        ("NaN", None),
    ],
)
def test_a_scale_is_a_number_within_the_servers_limits(playground: Playground, text: str, scale: float | None) -> None:
    """What no number is is refused; what is out of range becomes the nearest limit."""
    assert call(playground, "blends.js", "m.parseScale(x)", text) == scale


def test_the_parameters_are_those_of_the_models_schema(playground: Playground) -> None:
    """Every sampling parameter of the schema is there with exactly its range, and no other."""
    schema = json.loads((ROOT / "runtime" / "cloudflare" / "schema.json").read_text())
    properties = schema["input"]["oneOf"][0]["properties"]
    wanted = {
        name: (value["type"] == "integer", value.get("minimum"), value.get("maximum"))
        for name, value in properties.items()
        if value["type"] in ("integer", "number")
    }
    wanted["max_tokens"] = (True, 1, None)  # the schema names no range; less than one token is no answer
    shown = {
        one["name"]: (one["step"] == 1, one["min"], one["max"])
        for one in call(playground, "parameters.js", "m.PARAMETERS")
    }
    assert shown == wanted


def test_a_batchs_speed_is_counted_while_all_of_it_runs(playground: Playground) -> None:
    """Two answers, 0 to 1,000 ms and 500 to 2,000 ms, at a token each 10 ms: only the half second of both counts."""
    expression = """(() => {
        const one = new m.Meter(0), other = new m.Meter(0);
        for (let at = 0; at <= 1000; at += 10) one.arrive(at);
        for (let at = 500; at <= 2000; at += 10) other.arrive(at);
        return [m.sharedRate([one, other]), m.sharedRate([one]), m.totalOf([one, other]), one.rate, other.firstTokenMs];
    })()"""
    shared, alone, total, rate, first = call(playground, "meter.js", expression)
    assert shared == pytest.approx(200)
    assert alone == pytest.approx(100)
    assert total == {"nTokens": 252, "seconds": 2}
    assert rate == {"perSecond": pytest.approx(100), "isWhole": False}
    assert first == 500


def test_a_speed_that_cannot_be_told_is_none(playground: Playground) -> None:
    """Answers that never ran together, or for too short a time, have no shared speed."""
    expression = """(() => {
        const one = new m.Meter(0), other = new m.Meter(0), brief = new m.Meter(0);
        for (let at = 0; at <= 400; at += 10) one.arrive(at);
        for (let at = 500; at <= 900; at += 10) other.arrive(at);
        for (let at = 0; at <= 50; at += 1) brief.arrive(at);
        return [m.sharedRate([one, other]), m.sharedRate([brief]), m.sharedRate([]), brief.rate.isWhole];
    })()"""
    assert call(playground, "meter.js", expression) == [None, None, None, True]


def test_tokens_are_counted_as_the_server_counts_them(playground: Playground) -> None:
    """A piece that holds several tokens counts as that number of tokens, once the server has sent its count."""
    expression = """(() => {
        const meter = new m.Meter(0);
        for (let at = 0; at <= 1000; at += 100) meter.arrive(at);
        meter.finish({ completion_tokens: 22 });
        return [meter.nTokens, meter.tokensWithin(0, 1000)];
    })()"""
    assert call(playground, "meter.js", expression) == [22, pytest.approx(20)]


@pytest.mark.parametrize(
    ("paths", "adapters"),
    [
        (["pirate.gguf"], [("pirate", ["pirate.gguf"])]),
        (["My Voice (2).gguf"], [("My-Voice-2", ["My Voice (2).gguf"])]),
        (
            ["run/checkpoint-9/adapter_config.json", "run/checkpoint-9/adapter_model.safetensors", "run/log.txt"],
            [("checkpoint-9", ["adapter_config.json", "adapter_model.safetensors"])],
        ),
        (
            ["mlx/adapter_config.json", "mlx/adapters.safetensors"],
            [("mlx", ["adapter_config.json", "adapters.safetensors"])],
        ),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            [("adapter", ["adapter_config.json", "adapter_model.safetensors"])],
        ),
    ],
)
def test_a_drop_is_read_as_adapters(playground: Playground, paths: list[str], adapters: list[Any]) -> None:
    """Files are grouped by folder; what belongs to no adapter stays where it is."""
    expression = """m.adaptersOf(x.map((path) => ({ path, file: new File(["x"], path.split("/").at(-1)) })))
        .map(({ name, files }) => [name, files.map((file) => file.name)])"""
    assert call(playground, "upload.js", expression, paths) == [list(adapter) for adapter in adapters]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a/adapter_config.json"], "two files"),
        (["a/adapter_config.json", "a/adapter_model.bin"], "two files"),
        (["pytorch_model.bin"], "never opened"),
        (["notes.txt"], "No adapter was found"),
        ([], "No adapter was found"),
    ],
)
def test_a_drop_without_an_adapter_says_what_is_missing(playground: Playground, paths: list[str], words: str) -> None:
    """The words name what was dropped and what is wanted."""
    expression = """(() => {
        try { return m.adaptersOf(x.map((path) => ({ path, file: new File(["x"], path.split("/").at(-1)) }))); }
        catch (error) { return error.message; }
    })()"""
    assert words in call(playground, "upload.js", expression, paths)
