"""The arguments that say where a running server is; nothing that connects to it is imported."""

from __future__ import annotations

import argparse
import os


def add_address(parser: argparse.ArgumentParser) -> None:
    """Declare where the server is."""
    parser.add_argument(
        "--url",
        default=os.environ.get("GEMLANE_URL", "http://127.0.0.1:8080"),
        help="the server's address, also unix:PATH (default: GEMLANE_URL, else %(default)s)",
    )
    parser.add_argument("--token-file", metavar="FILE", help="file whose first token is sent (default: GEMLANE_TOKEN)")
    parser.add_argument("--ca-file", default="", metavar="FILE", help="certificates to trust for https, in PEM")
