"""transformers and PEFT as a server: a GGUF model and its LoRA adapters, requests that come together in one batch.

PEFT gives each row of a batch its own adapter, as our lanes do: ``generate(adapter_names=[...])``. Source: PEFT's guide
to LoRA, "Inference with different LoRA adapters in the same batch". The weights are those of the files, so answers can
be compared. Only the tokens of make_shapes' vocabulary are known, and only greedy answers.

    python -m scripts.bench.peft_server --model MODEL --adapters FOLDER --threads N --dtype bfloat16 --host H --port P
"""

import argparse
import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aiohttp import web
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GemmaConfig
from transformers.generation.streamers import BaseStreamer

from convert.rules.gemma import PROJECTIONS, gguf_name, is_norm
from scripts.make_shapes import FIRST_WORD_ID, vocabulary

GATHERING_S = 0.01  # requests that come this soon after the first share its batch
BOS = 2
BASE = "__base__"  # PEFT's name for a row without an adapter
LORA_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.(?P<adapter>[0-9]+)\.weight")


def number(reader: GGUFReader, key: str) -> Any:
    """The value of a metadata key that holds one number."""
    return reader.fields[key].contents()


def load_base(path: Path, dtype: torch.dtype) -> Any:
    """Gemma as transformers has it, with the weights of a GGUF file in F32 or F16.

    Raises:
        KeyError: a weight is not in the file.
    """
    reader = GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    config = GemmaConfig(
        vocab_size=len(tensors["token_embd.weight"]),
        hidden_size=number(reader, "gemma.embedding_length"),
        intermediate_size=number(reader, "gemma.feed_forward_length"),
        num_hidden_layers=number(reader, "gemma.block_count"),
        num_attention_heads=number(reader, "gemma.attention.head_count"),
        num_key_value_heads=number(reader, "gemma.attention.head_count_kv"),
        head_dim=number(reader, "gemma.attention.key_length"),
        rms_norm_eps=number(reader, "gemma.attention.layer_norm_rms_epsilon"),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wanted = gguf_name(name)
            if wanted is None:
                raise KeyError(name)
            values = torch.from_numpy(np.array(tensors[wanted]))
            # A norm is stored as 1 + w.
            parameter.copy_(values - 1 if is_norm(wanted) else values)
    return model


def load_adapters(base: Any, paths: Sequence[Path]) -> PeftModel:
    """The model with these adapters, each under its file's name; in the model's own type, which is PEFT's fastest."""
    readers = {path.stem: GGUFReader(path) for path in paths}
    model = base
    for name, reader in readers.items():
        rank = int(reader.tensors[0].data.shape[0])
        modules = [module.rpartition(".")[2] for module in PROJECTIONS]
        config = LoraConfig(r=rank, lora_alpha=number(reader, "adapter.lora.alpha"), target_modules=modules)
        if model is base:
            model = get_peft_model(base, config, name, autocast_adapter_dtype=False)
        else:
            model.add_adapter(name, config, autocast_adapter_dtype=False)
    tensors = {(name, one.name): one.data for name, reader in readers.items() for one in reader.tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if match := LORA_NAME.fullmatch(name):
                key = f"{gguf_name(match['module'] + '.weight')}.lora_{match['half'].lower()}"
                parameter.copy_(torch.from_numpy(np.array(tensors[match["adapter"], key])))
    return model


class Streamer(BaseStreamer):  # type: ignore[misc]
    """Passes every step's tokens on; transformers' own streamers take one sequence only."""

    def __init__(self, take: Callable[[list[int]], None]) -> None:
        self._take = take

    def put(self, value: torch.Tensor) -> None:
        """Receive the prompts, ``[n, n_tokens]``, and then each step's tokens, ``[n]``."""
        if value.dim() == 1:
            self._take(value.tolist())

    def end(self) -> None:
        """Nothing is held back."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for its batch, and the queue of its tokens."""

    prompt: tuple[int, ...]
    n_tokens: int
    adapter: str
    tokens: asyncio.Queue[int] = field(default_factory=asyncio.Queue)


class Batches:
    """Puts requests together and lets the model answer them, one batch after the other."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._waiting: asyncio.Queue[Waiting] = asyncio.Queue()

    def add(self, waiting: Waiting) -> None:
        """Let a request into the next batch."""
        self._waiting.put_nowait(waiting)

    async def run(self) -> None:
        """Answer batches until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(GATHERING_S)
            while not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await asyncio.to_thread(self._generate, batch, asyncio.get_running_loop())

    def _generate(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        def take(tokens: list[int]) -> None:
            for waiting, token in zip(batch, tokens, strict=True):
                loop.call_soon_threadsafe(waiting.tokens.put_nowait, token)

        # Benchmarks send prompts and answers of one length in one batch, so that nothing is padded.
        prompts = torch.tensor([waiting.prompt for waiting in batch])
        n_tokens = max(waiting.n_tokens for waiting in batch)
        with torch.inference_mode():
            self._model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                adapter_names=[waiting.adapter for waiting in batch],
                do_sample=False,
                min_new_tokens=n_tokens,
                max_new_tokens=n_tokens,
                eos_token_id=None,
                streamer=Streamer(take),
            )


def application(model: Any, adapters: Sequence[str]) -> web.Application:
    """/health and /v1/completions as far as the benchmarks ask for them."""
    batches, pieces = Batches(model), vocabulary(model.config.vocab_size)[0]

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "adapters": adapters})

    async def completions(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        words = (FIRST_WORD_ID + int(word) for word in body["prompt"].split())
        adapter = body["model"].partition(":")[2] or BASE
        waiting = Waiting((BOS, *words), int(body["max_tokens"]), adapter)
        batches.add(waiting)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(waiting.n_tokens):
            text = pieces[await waiting.tokens.get()].replace("▁", " ")
            await response.write(event({"choices": [{"text": text}], "usage": None}))
        await response.write(event({"choices": [], "usage": {"completion_tokens": waiting.n_tokens}}))
        return response

    async def answer_batches(_: web.Application) -> Any:
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_post("/v1/completions", completions)
    app.cleanup_ctx.append(answer_batches)
    return app


def event(content: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(content)}\n\n".encode()


def main() -> None:
    """Load the files of the command line and serve."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file of make_shapes, in F32 or F16")
    parser.add_argument("--adapters", type=Path, required=True, help="the folder of its adapters")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    paths = sorted(asked.adapters.glob("*.gguf"))
    model = load_adapters(load_base(asked.model, getattr(torch, asked.dtype)), paths).eval()
    web.run_app(application(model, [path.stem for path in paths]), host=asked.host, port=asked.port)


if __name__ == "__main__":
    main()
