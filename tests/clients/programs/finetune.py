"""PyPI ``cloudflare``: create a finetune, upload its two files, list; the same program for both majors."""

from __future__ import annotations

import os
from pathlib import Path

from cloudflare import Cloudflare
from report import MODEL, TOKEN, URL, error_of, report

folder, name = Path(os.environ["GEMLANE_PEFT"]), os.environ["GEMLANE_NAME"]
client = Cloudflare(base_url=f"{URL}/client/v4", api_token=TOKEN, max_retries=0)
finetunes = client.ai.finetunes


def create() -> str:
    """The id of a new finetune, its files still missing."""
    return finetunes.create(account_id="local", model=MODEL, name=name).id


finetune_id = create()
for file_name in ("adapter_config.json", "adapter_model.safetensors"):
    with (folder / file_name).open("rb") as file:
        finetunes.assets.create(finetune_id, account_id="local", file=file, file_name=file_name)
with client.ai.finetunes.with_streaming_response.list(account_id="local") as response:
    listed = response.read().decode()
report(
    "cloudflare",
    id=finetune_id,
    is_listed=name in listed,
    public=[public.name for public in finetunes.public.list(account_id="local")],
    errors={"taken": error_of(create)},
)
