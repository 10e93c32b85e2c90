"""``gemlane adapters``: list, show, add, replace, remove and pin the adapters of a running server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from runtime.commands.adapter_client import ask, path_of, upload
from runtime.commands.address import add_address
from runtime.commands.columns import n_cells, pad
from runtime.commands.stream import Address, address_of
from runtime.errors import GemlaneError

_EPILOG: Final = """\
where the server was started with --admin-token-file, commands that change something need one of those tokens.

  gemlane adapters add ./my-training-run --name pirate
  gemlane adapters list
"""
_SHOWN_DIGITS: Final = 12  # of a digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = "Ask a running server about its adapters, and change them without a restart."
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, verb: Callable[[argparse.Namespace, Address], dict[str, Any]], summary: str) -> Any:
        added = verbs.add_parser(name, help=summary, description=summary)
        added.set_defaults(verb=verb)
        add_address(added)
        added.add_argument("--json", action="store_true", help="print what the server answered, as JSON")
        return added

    add("list", _list, "list every adapter, with its state")
    add("show", _show, "show one adapter").add_argument("name", help="its name or id")
    adding = add("add", _add, "upload a GGUF adapter, or a folder as PEFT or MLX leaves it")
    adding.add_argument("path", type=Path, help="the file or folder")
    adding.add_argument("--name", help="what requests will call it (default: the file's or folder's name)")
    adding.add_argument("--replace", action="store_true", help="replace the adapter of that name, if there is one")
    adding.add_argument("--if-match", metavar="DIGEST", help="replace it only while its content has this SHA-256")
    removing = add("remove", _remove, "remove an adapter; answers that run under it are finished")
    removing.add_argument("name", help="its name or id")
    removing.add_argument("--if-match", metavar="DIGEST", help="remove it only while its content has this SHA-256")
    add("pin", _pin, "keep an adapter's weights in a lane").add_argument("name", help="its name or id")
    add("unpin", _unpin, "let an adapter's lane be given to others").add_argument("name", help="its name or id")
    add("rescan", _rescan, "look at the adapters folder now")


def run(arguments: argparse.Namespace) -> int:
    """Ask the server and print its answer; the exit status."""
    answer = arguments.verb(arguments, address_of(arguments))
    if arguments.json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        print("\n".join(table(answer["adapters"]) if "adapters" in answer else sheet(answer)))
    return 0


def _list(_arguments: argparse.Namespace, address: Address) -> dict[str, Any]:
    return ask(address, "GET", "/adapters")


def _show(arguments: argparse.Namespace, address: Address) -> dict[str, Any]:
    return ask(address, "GET", path_of(arguments.name))


def _add(arguments: argparse.Namespace, address: Address) -> dict[str, Any]:
    path = arguments.path
    if not path.exists():
        raise GemlaneError(f"there is no {path}")
    headers = _if_match(arguments)
    if not arguments.replace and not headers:
        headers = {"If-None-Match": "*"}
    return upload(address, arguments.name or (path.resolve().name if path.is_dir() else path.stem), path, headers)


def _remove(arguments: argparse.Namespace, address: Address) -> dict[str, Any]:
    return ask(address, "DELETE", path_of(arguments.name), headers=_if_match(arguments))


def _pin(arguments: argparse.Namespace, address: Address) -> dict[str, Any]:
    return ask(address, "PATCH", path_of(arguments.name), {"pinned": True})


def _unpin(arguments: argparse.Namespace, address: Address) -> dict[str, Any]:
    return ask(address, "PATCH", path_of(arguments.name), {"pinned": False})


def _rescan(_arguments: argparse.Namespace, address: Address) -> dict[str, Any]:
    return ask(address, "POST", "/adapters:rescan")


def _if_match(arguments: argparse.Namespace) -> dict[str, str]:
    return {"If-Match": f'"{arguments.if_match}"'} if arguments.if_match else {}


def table(adapters: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each adapter, columns as wide as they need to be; below it, what is wrong with the adapter."""
    if not adapters:
        return ["no adapters"]
    rows: list[tuple[str, ...]] = [("NAME", "STATE", "RANK", "SIZE", "USES", "LAST USED", "DIGEST")]
    rows += [_row(adapter) for adapter in adapters]
    widths = [max(map(n_cells, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(pad, row, widths)).rstrip() for row in rows]
    notes = [[], *([f"    {note}"] if (note := _note(adapter)) else [] for adapter in adapters)]
    return [text for line, note in zip(lines, notes, strict=True) for text in (line, *note)]


def sheet(adapter: dict[str, Any]) -> list[str]:
    """One line for each fact about an adapter."""
    shown = {key: value for key, value in adapter.items() if value not in (None, "") and key != "replacement"}
    lines = [f"{key.replace('_', ' '):14} {_text(value)}" for key, value in shown.items()]
    return [*lines, *([f"{'replacement':14} {_note(adapter)}"] if adapter["replacement"] else [])]


def _row(adapter: dict[str, Any]) -> tuple[str, ...]:
    marks = [mark for mark in ("pinned", "in_lane") if adapter[mark]]
    return (
        adapter["name"],
        ", ".join((adapter["state"], *(mark.replace("_", " ") for mark in marks))),
        str(adapter["rank"] or ""),
        f"{adapter['bytes'] / 1e6:.1f} MB" if adapter["bytes"] else "",
        str(adapter["hits"]),
        (adapter["last_used_at"] or "").partition(".")[0].replace("T", " "),
        (adapter["digest"] or "")[:_SHOWN_DIGITS],
    )


def _note(adapter: dict[str, Any]) -> str:
    replacement = adapter["replacement"]
    if replacement is None:
        return str(adapter["reason"] or "")
    return f"its new content is {replacement['state']}" + (
        f": {replacement['reason']}" if replacement["reason"] else ""
    )


def _text(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
