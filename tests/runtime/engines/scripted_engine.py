"""A stand-in for the engine process: it speaks the pipe's protocol and does what the prompt says.

Prompts: ``say WORDS`` answers them word by word; ``begin WORDS`` does so without an end; ``wait`` never answers;
``die`` kills the process; ``once FILE`` does so unless the file exists, which it makes, and then answers ``again``;
``babble`` breaks the protocol; ``fail`` is refused; ``mix`` changes how adapters share batches. Nothing but its
answers tells it apart from the real one.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from runtime import messages, pipe
from runtime.config import EngineSettings
from runtime.generation import FinishReason, Usage

RUNNING: list[str] = []
"""Ids of the requests without an end."""


def send(message: messages.Message) -> None:
    """Write one event."""
    sys.stdout.buffer.write(pipe.encode(message))
    sys.stdout.buffer.flush()


def answer(request_id: str, order: str) -> None:
    """Do what the prompt says."""
    words = order.split()
    RUNNING.append(request_id)
    send(messages.Working(tuple(RUNNING), 0.01))
    if words[0] == "once":
        words = ["say", "again"] if Path(words[1]).exists() else ["die"]
        Path(order.split()[1]).touch()
    if words[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif words[0] == "babble":
        print("I am not JSON", flush=True)
    elif words[0] == "mix":
        RUNNING.remove(request_id)
        send(messages.BatchingChanged("mixed", "proven"))
        send(messages.Finished(request_id, FinishReason.STOP, Usage(1, 0)))
    elif words[0] == "fail":
        RUNNING.remove(request_id)
        send(messages.Failed(request_id, "context_exceeded", "too long"))
    elif words[0] in ("say", "begin"):
        send(messages.Started(request_id, len(words)))
        for word in words[1:]:
            send(messages.Text(request_id, word))
    if words[0] == "say":
        RUNNING.remove(request_id)
        send(messages.Finished(request_id, FinishReason.STOP, Usage(len(words), len(words) - 1)))


def load(settings: EngineSettings, gone: Path) -> int | None:
    """Do what the model's name says; an exit status, if that is to end. The test or the script makes ``gone``."""
    match settings.model:
        case "missing.gguf":
            send(messages.LoadFailed("model_load", "no such file: missing.gguf"))
            return 2
        case "gone-later.gguf" if gone.exists():
            send(messages.LoadFailed("model_load", "no such file: gone-later.gguf"))
            return 2
        case "lanes-abort.gguf" if settings.adapter_batching != "grouped":
            os.abort()
        case "stuck.gguf" if not gone.exists():
            gone.touch()
        case "slow.gguf":
            pass
        case "silent.gguf":
            return 3
        case _:
            send(messages.Loading(0.5))
            send(messages.Ready(messages.ModelInfo("scripted", 1, 1, 1, 512, 512, 2, "none"), "grouped", "scripted"))
    return None


def answer_adapter(command: messages.AddAdapter | messages.RemoveAdapter, paths: dict[str, str]) -> None:
    """Do what the adapter's path says: ``bad`` is refused, ``never`` not answered, ``used`` is in use for ever."""
    match command:
        case messages.AddAdapter(digest, path):
            paths[digest] = path
            if "bad" in path:
                send(messages.AdapterRefused(digest, "invalid_adapter", "rank 0"))
            elif "never" not in path:
                send(messages.AdapterAdded(digest))
        case messages.RemoveAdapter(digest):
            if "used" not in paths.get(digest, ""):
                send(messages.AdapterRemoved(digest))


def main() -> int:
    """Serve until the end of input."""
    log = Path(sys.argv[1])
    paths: dict[str, str] = {}
    for line in sys.stdin.buffer:
        with log.open("a") as heard:
            heard.write(line.decode())
        match pipe.decode(line):
            case messages.Load(settings):
                if (status := load(settings, log.with_name("gone"))) is not None:
                    return status
            case messages.Generate(request):
                answer(request.request_id, request.prompt.text)
            case messages.AddAdapter() | messages.RemoveAdapter() as command:
                answer_adapter(command, paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
