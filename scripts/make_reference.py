# ruff: noqa: SLF001 - argparse shows its actions in no other way
"""Write .github/docs/reference.md: commands with their options, settings and metrics, as the code declares them.

python -m scripts.make_reference            write it
python -m scripts.make_reference --check    exit with 1 if it is not what the code declares
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runtime.cli import build_parser
from runtime.config import ENVIRONMENT_PREFIX, EngineSettings, ServerSettings
from runtime.observe import table

REFERENCE: Final = Path(__file__).resolve().parents[1] / ".github" / "docs" / "reference.md"
HEAD: Final = """\
# Reference

Made from the code by `python -m scripts.make_reference`; a test holds it against the code.

## Settings

A value comes from the first that names it: the flag (`--n-ctx 4096`), the environment (`GEMLANE_N_CTX=4096`), the file
of `--config` or `GEMLANE_CONFIG` (`n_ctx = 4096`), the default. `gemlane config` shows what comes from where.
"""
METRICS_HEAD: Final = """\
## Metrics

At `/metrics`, in Prometheus's text format; where tokens are used, any of them is needed. The label `adapter` is `base`,
the name of the only adapter, `blend` for several, or `other` beyond 32 names. vLLM's names carry the same numbers, with
its labels `model_name` and `engine`, so that its dashboards and gateways work. `process_*` is the web process.
"""


def main() -> int:
    """Write the file, or compare it; the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    text = render()
    if not parser.parse_args().check:
        REFERENCE.write_text(text, encoding="utf-8")
        return 0
    if REFERENCE.exists() and REFERENCE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{REFERENCE} is not what the code declares; run python -m scripts.make_reference", file=sys.stderr)
    return 1


def render() -> str:
    """The whole document."""
    lines = [
        HEAD,
        *_settings(),
        "## Commands",
        "",
        *_commands(build_parser(), "gemlane"),
        METRICS_HEAD,
        *_metrics(),
    ]
    return "\n".join(lines) + "\n"


def _settings() -> Iterator[str]:
    for title, kind in (("Engine", EngineSettings), ("Server", ServerSettings)):
        yield f"| {title} | default | |"
        yield "|--|--|--|"
        for field in dataclasses.fields(kind):
            name, allowed = field.name.replace("_", "-"), field.metadata["choices"]
            value = f"`{field.default}`" if field.default not in ("", 0) else "" if field.default == "" else "`0`"
            words = field.metadata["help"] + (f" ({', '.join(allowed)})" if allowed else "")
            yield f"| `--{name}`, `{ENVIRONMENT_PREFIX}{field.name.upper()}` | {value} | {_cell(words)} |"
        yield ""


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """Each command below ``parser`` with its own options; those that are settings stand above."""
    settings = {field.name for kind in (EngineSettings, ServerSettings) for field in dataclasses.fields(kind)}
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for command, sub in action.choices.items():
            full = f"{name} {command}"
            yield f"### `{full}`\n\n{_sentence(summaries[command])}\n"
            takes_settings = any(each.dest == "n_ctx" for each in sub._actions)
            left_out = {"help", *(settings if takes_settings else ())}
            rows = [_row(each) for each in sub._actions if each.dest not in left_out and _is_plain(each)]
            if rows:
                yield "| | |\n|--|--|"
                yield from rows
                yield ""
            if takes_settings:
                yield "And every setting above.\n"
            yield from _commands(sub, full)


def _is_plain(action: argparse.Action) -> bool:
    return not isinstance(action, argparse._SubParsersAction)


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if not names:
        names, metavar = f"`{metavar or action.dest}`", ""
    default = action.default
    words = (action.help or "") % {"default": default, "prog": "gemlane"} if action.help else ""
    if action.choices:
        words += f" ({', '.join(str(choice) for choice in action.choices)})"
    return f"| {names}{f' {metavar}' if metavar else ''} | {_cell(words)} |"


def _metrics() -> Iterator[str]:
    yield "| metric | labels | | vLLM's name |"
    yield "|--|--|--|--|"
    for metric in table.METRICS:
        own, *twins = metric.exposed_names
        labels = ", ".join(label for label in metric.labels if label != "le")
        twin = ", ".join(f"`{name}`" for name in twins)
        yield f"| `{own}` ({metric.kind}) | {labels} | {_cell(metric.help)} | {twin} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


if __name__ == "__main__":
    sys.exit(main())
