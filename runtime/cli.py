"""The ``gemlane`` command."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from convert.commands import arguments as convert_cli
from runtime import config
from runtime.errors import GemlaneError

SERVE_EPILOG = """\
every setting can also come from the environment (GEMLANE_N_CTX=4096) or a TOML file given by --config (n_ctx = 4096);
a flag beats the environment, which beats the file.

  gemlane serve --model gemma-7b-it-q4_k_m.gguf --adapters ./adapters
  curl http://127.0.0.1:8080/client/v4/accounts/local/ai/run/@cf/google/gemma-7b-it-lora \\
       -d '{"prompt": "tell me a story", "lora": "pirate"}'
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; ``serve`` sets ``run``, the converter's run as theirs do."""
    parser = argparse.ArgumentParser(prog="gemlane", description="Gemma with any number of LoRA adapters, offline.")
    parser.add_argument("--version", action="version", version=f"gemlane {importlib.metadata.version('gemlane')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve a base model and its adapters over HTTP",
        description="Serve a base model and any number of LoRA adapters, chosen per request.",
        epilog=SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config.add_arguments(serve)
    serve.set_defaults(run=_serve)
    convert_cli.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit status: 0 done, 1 it went wrong, 2 the input was wrong, 130 interrupted."""
    parsed = build_parser().parse_args(arguments)
    try:
        return int(getattr(parsed, "run", convert_cli.run)(parsed))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _serve(arguments: argparse.Namespace) -> int:
    # asyncio, aiohttp and numpy come with it; the other commands answer at once without them.
    server = importlib.import_module("runtime.server")
    try:
        server.run(config.resolve(arguments))
    except GemlaneError as error:
        print(f"gemlane: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
