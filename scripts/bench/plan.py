"""How much a benchmark does, and the files it runs on."""

import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.bench.asks import Ask, random_prompt
from scripts.bench.sides import PEER, Setup, Side, gemlane, llama_server
from scripts.make_shapes import adapter_folder, model_path

SIDES = ("both", "gemlane", "llama-server")
N_CLIENTS = 8
N_CELLS = 8192
CELLS_PER_CLIENT = 256  # prompt and answer of the default 64 tokens each, twice
RANK = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line chose."""

    folder: Path
    shape: str
    type_name: str
    n_threads: int
    n_tokens: int
    repeats: int
    sides: str
    n_clients: int = N_CLIENTS
    """At once, where several ask; both servers run as many requests side by side."""
    n_prompt: int = 0
    """Tokens of a prompt; 0: as many as each benchmark has by itself."""
    n_cells: int = N_CELLS
    """Tokens that the cache of each server holds."""
    peer: Path = PEER
    """The program llama-server."""

    def setup(self, n_adapters: int = N_CLIENTS) -> Setup:
        """The files for a server with `n_adapters` adapters; missing ones are written first."""
        model = model_path(self.folder, self.shape, self.type_name)
        adapters = adapter_folder(self.folder, self.shape, n_adapters, RANK)
        n_cells = max(self.n_cells, CELLS_PER_CLIENT * self.n_clients)
        return Setup(model, adapters, self.n_threads, self.n_clients, n_cells, self.peer)

    async def start(self, stack: AsyncExitStack, setup: Setup, *options: str) -> list[Side]:
        """The chosen servers, until the stack is closed; the options are for ours."""
        chosen = []
        if self.sides != "llama-server":
            chosen.append(await stack.enter_async_context(gemlane(setup, *options)))
        if self.sides != "gemlane":
            chosen.append(await stack.enter_async_context(llama_server(setup)))
        return chosen

    def asks(self, generator: np.random.Generator, adapters: list[int]) -> list[Ask]:
        """One request for each listed adapter, of n_tokens in and n_tokens out, no two prompts alike."""
        return [Ask(random_prompt(generator, self.n_tokens), self.n_tokens, adapter) for adapter in adapters]


async def warm(side: Side, adapters: list[int | None]) -> None:
    """Touches the model and every adapter once, so that no measured request reads a file."""
    for adapter in adapters:
        await side.ask(Ask(" 10 20", 2, adapter))


def tell(text: str) -> None:
    """One line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)
