"""``gemlane chat``: talk to a running server, under one adapter or under several side by side."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TextIO

from runtime.commands import columns
from runtime.commands.address import add_address
from runtime.commands.columns import Column
from runtime.commands.conversation import Chat
from runtime.commands.stream import StreamedAnswer, address_of, get_json
from runtime.errors import GemlaneError

try:
    readline: ModuleType | None = importlib.import_module("readline")
except ImportError:  # a Python without it still chats, without line editing
    readline = None

BASE: Final = "base"
_REDRAW_S: Final = 0.1
_HISTORY_LINES: Final = 1000
HELP: Final = """\
/lora NAME ...   answer under these adapters, side by side;
                 base is the model alone, a:0.5+b a blend
/adapters        list the server's adapters
/system TEXT     a system message; without text, none
/set NAME VALUE  temperature, top_p, max_tokens, seed ...;
                 without a value, the default again
/retry           answer the last message again
/clear           forget the conversation
/save FILE       write the conversation as text
/help            this text
/exit            the end; so is Ctrl-D
Ctrl-C stops an answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_address(parser)
    parser.add_argument(
        "--lora", action="append", default=[], metavar="NAME", help="an adapter or blend; more than one: side by side"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the most likely token")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    parser.add_argument("--seed", type=int, metavar="N", help="repeats an answer")
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="answer this alone and end; - reads standard input")


def run(arguments: argparse.Namespace) -> int:
    """Chat, or answer one prompt; the exit status.

    Raises:
        GemlaneError: standard input was to hold the prompt and is empty, or the server cannot be asked.
    """
    chat = Chat(address_of(arguments), _loras(arguments.lora) or [""], arguments.system, _options(arguments))
    prompt = " ".join(arguments.prompt)
    if prompt == "-" or (not prompt and not sys.stdin.isatty()):
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise GemlaneError("standard input holds no prompt")
    if prompt:
        return 1 if any(answer.error for answer in answer_prompt(chat, prompt, sys.stdout)) else 0
    names = [adapter["id"].partition(":")[2] for adapter in get_json(chat.address, "/v1/models")["data"]]
    print(
        f"{chat.address.url}: adapters {', '.join(filter(None, names)) or 'none'}. /help for commands, Ctrl-D to end."
    )
    with _history():
        _converse(chat)
    return 0


def _loras(names: Sequence[str]) -> list[str]:
    return ["" if name == BASE else name for name in names]


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    chosen = {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens, "seed": arguments.seed}
    return {name: value for name, value in chosen.items() if value is not None}


def _converse(chat: Chat) -> None:
    """Read lines until the end."""
    while True:
        try:
            line = input(f"{'+'.join(lora or BASE for lora in chat.loras)}> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("  (Ctrl-D or /exit ends)")
            continue
        if line in ("/exit", "/quit"):
            return
        if not line:
            continue
        try:
            text = obey(chat, line, sys.stdout) if line.startswith("/") else line
            if text:
                answer_prompt(chat, text, sys.stdout)
        except (GemlaneError, OSError) as error:
            print(f"error: {error}")


def obey(chat: Chat, line: str, out: TextIO) -> str | None:
    """Do what a command says; the text to answer now, or None."""
    command, _, rest = line.partition(" ")
    handler = _COMMANDS.get(command)
    if handler is None:
        print(f"no command {command}; /help lists them", file=out)
        return None
    return handler(chat, rest.strip(), out)


def _choose(chat: Chat, names: str, _out: TextIO) -> None:
    chat.choose(_loras(names.split()))


def _list_adapters(chat: Chat, _rest: str, out: TextIO) -> None:
    for model in get_json(chat.address, "/v1/models")["data"]:
        print(model["id"].partition(":")[2] or BASE, file=out)


def _set_system(chat: Chat, text: str, _out: TextIO) -> None:
    chat.system = text


def _retry(chat: Chat, _rest: str, out: TextIO) -> str | None:
    text = chat.drop_answers()
    if text is None:
        print("nothing has been asked yet", file=out)
    return text


def _clear(chat: Chat, _rest: str, _out: TextIO) -> None:
    chat.clear()


def _help(_chat: Chat, _rest: str, out: TextIO) -> None:
    print(HELP, file=out)


def _set(chat: Chat, rest: str, _out: TextIO) -> None:
    name, _, value = rest.partition(" ")
    if not name:
        raise GemlaneError("/set needs a name: /set temperature 0")
    chat.options.pop(name, None)
    if value:
        try:
            chat.options[name] = int(value) if value.lstrip("-").isdecimal() else float(value)
        except ValueError:
            raise GemlaneError(f"{name} must be a number, not {value!r}") from None


def _save(chat: Chat, path: str, out: TextIO) -> None:
    if not path:
        raise GemlaneError("/save needs a file: /save talk.txt")
    parts = [
        f"# {conversation.lora or BASE}\n\n"
        + "".join(f"{message['role']}: {message['content']}\n\n" for message in conversation.messages)
        for conversation in chat.conversations
    ]
    Path(path).write_text("".join(parts), encoding="utf-8")
    print(f"saved to {path}", file=out)


_COMMANDS: Final[dict[str, Callable[[Chat, str, TextIO], str | None]]] = {
    "/lora": _choose,
    "/adapters": _list_adapters,
    "/system": _set_system,
    "/set": _set,
    "/retry": _retry,
    "/clear": _clear,
    "/save": _save,
    "/help": _help,
}


def answer_prompt(chat: Chat, text: str, out: TextIO) -> list[StreamedAnswer]:
    """Ask, and show the answers while they come; Ctrl-C stops them and keeps what has come."""
    requests, answers = chat.ask(text), [StreamedAnswer() for _ in chat.conversations]
    threads = [
        threading.Thread(target=request.stream, args=(answer,), daemon=True)
        for request, answer in zip(requests, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    show = _show_columns if len(answers) > 1 else _show_one
    try:
        show(chat, answers, threads, out)
    except KeyboardInterrupt:
        for request in requests:
            with contextlib.suppress(OSError):
                request.cancel()
        print("\n(stopped)", file=out)
    chat.take(answers)
    return answers


def _show_one(_chat: Chat, answers: Sequence[StreamedAnswer], threads: Sequence[threading.Thread], out: TextIO) -> None:
    """Write one answer as it comes; its speed goes to a terminal only."""
    answer, n_shown, is_running = answers[0], 0, True
    while is_running:
        is_running = threads[0].is_alive()
        threads[0].join(0.02)
        n_come = len(answer.text)
        out.write(answer.text[n_shown:n_come])
        out.flush()
        n_shown = n_come
    if answer.text and not answer.text.endswith("\n"):
        out.write("\n")
    if answer.error:
        print(f"error: {answer.error}", file=sys.stderr)
    elif out.isatty():
        print(f"\x1b[2m{footer(answer)}\x1b[0m", file=out)


def _show_columns(
    chat: Chat, answers: Sequence[StreamedAnswer], threads: Sequence[threading.Thread], out: TextIO
) -> None:
    """Draw the answers side by side again and again; where ``out`` is not a terminal, once at the end."""
    n_drawn = 0
    while True:
        is_running = any(thread.is_alive() for thread in threads)
        size = shutil.get_terminal_size()
        titled = [
            Column(lora or BASE, answer.text, footer(answer)) for lora, answer in zip(chat.loras, answers, strict=True)
        ]
        lines = columns.render(titled, size.columns - 1)
        if out.isatty():
            shown = lines[-(size.lines - 2) :] if is_running else lines
            out.write((f"\x1b[{n_drawn}A" if n_drawn else "") + "\r\x1b[J" + "\n".join(shown) + "\n")
            n_drawn = len(shown)
        elif not is_running:
            out.write("\n".join(lines) + "\n")
        out.flush()
        if not is_running:
            return
        time.sleep(_REDRAW_S)


def footer(answer: StreamedAnswer) -> str:
    """How fast an answer came, or why it did not."""
    if answer.error:
        return f"error: {answer.error}"
    if answer.first_token_s is None:
        return "..."
    speed = f", {answer.tokens_per_s:.1f} tokens/s" if answer.tokens_per_s else ""
    cut = ", cut at max_tokens" if answer.finish_reason == "length" else ""
    return f"{answer.n_tokens} tokens, first after {answer.first_token_s:.2f} s{speed}{cut}"


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Line editing with a history that lasts, where Python has it."""
    if readline is None:
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "gemlane"
    path = state / "chat_history"
    with contextlib.suppress(OSError):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
