"""PyPI ``cloudflare``: run, streamed run, errors, models, finetunes; the same program for both majors."""

from __future__ import annotations

import json
from typing import Any

from cloudflare import Cloudflare
from report import GREEDY, LORA, MODEL, QUESTION, TOKEN, URL, error_of, report

client = Cloudflare(base_url=f"{URL}/client/v4", api_token=TOKEN, max_retries=0)


def run(**body: Any) -> dict[str, Any]:
    """The result of one call."""
    return dict(client.ai.run(MODEL, account_id="local", **{"prompt": QUESTION, **GREEDY, **body}))


def stream() -> list[str]:
    """The pieces of a streamed answer, from the raw lines that the SDK hands out."""
    body = {"prompt": QUESTION, "lora": LORA, "stream": True, **GREEDY}
    with client.ai.with_streaming_response.run(MODEL, account_id="local", **body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line)["response"] for line in lines[:-1]]


plain = run()
report(
    "cloudflare",
    answers={"base": plain["response"], LORA: run(lora=LORA)["response"]},
    usage=plain["usage"],
    stream=stream(),
    errors={
        "unknown_lora": error_of(lambda: run(lora="nobody")),
        "bad_body": error_of(lambda: run(temperature=9)),
    },
    models=[model["name"] for model in client.ai.models.list(account_id="local")],
)
