"""``gemlane serve``: serve a base model and its adapters."""

from __future__ import annotations

import argparse
import importlib
from typing import Final

from runtime import config

EPILOG: Final = """\
every setting can also come from the environment (GEMLANE_N_CTX=4096) or a TOML file given by --config (n_ctx = 4096);
a flag beats the environment, which beats the file. gemlane config shows what comes from where.

  gemlane serve --model gemma-7b-it-q4_k_m.gguf --adapters ./adapters
  curl http://127.0.0.1:8080/client/v4/accounts/local/ai/run/@cf/google/gemma-7b-it-lora \\
       -d '{"prompt": "tell me a story", "lora": "pirate"}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: every setting."""
    parser.description = "Serve a base model and any number of LoRA adapters, chosen per request."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    config.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped; the exit status."""
    # asyncio, aiohttp and numpy come with it; the help answers at once without them.
    server = importlib.import_module("runtime.server")
    server.run(config.resolve(arguments))
    return 0
