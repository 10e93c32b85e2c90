"""Random schemas, and a short run of the script against a real server."""

from __future__ import annotations

import json
import random
from pathlib import Path

from jsonschema import Draft202012Validator

from scripts.structured import random_schema, run
from tests.end_to_end.serving import serving

N_SCHEMAS = 40


def test_the_schemas_are_schemas_and_differ() -> None:
    """The generator makes valid schemas, and the same ones for one seed."""
    draw = random.Random(5)
    schemas = [random_schema(draw) for _ in range(300)]
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
    assert len({json.dumps(schema) for schema in schemas}) > 250
    again = random.Random(5)
    assert [random_schema(again) for _ in range(300)] == schemas


async def test_every_whole_answer_keeps_its_schema(tiny_model: Path, tiny_adapters: Path) -> None:
    """Structured answers under four voices, mixed with plain streams by eight clients: nothing is wrong."""
    draw = random.Random(9)
    with serving(tiny_model, tiny_adapters) as server:
        tally = await run(server.url, [random_schema(draw) for _ in range(N_SCHEMAS)], 8, 9)
    assert tally.faults == []
    assert tally.counts["whole and valid"] > N_SCHEMAS / 2
    assert tally.counts["plain streams"] > 0
    assert tally.counts["refused"] == sum(tally.reasons.values())
