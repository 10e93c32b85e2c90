"""A stand-in for the engine process: it speaks the pipe's protocol and does what the prompt says.

Prompts: ``say WORDS`` answers them word by word; ``wait`` never answers; ``die`` kills the process; ``babble`` breaks
the protocol; ``fail`` is refused; ``unknown NAME`` fails for want of that adapter. It cannot be
told apart from the real one by anything but its answers.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from runtime import messages
from runtime.generation import FinishReason, Usage


def send(message: messages.Message) -> None:
    """Write one event."""
    sys.stdout.buffer.write(messages.encode(message))
    sys.stdout.buffer.flush()


def answer(request_id: str, order: str) -> None:
    """Do what the prompt says."""
    words = order.split()
    if words[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif words[0] == "babble":
        print("I am not JSON", flush=True)
    elif words[0] == "fail":
        send(messages.Failed(request_id, "context_exceeded", "too long"))
    elif words[0] == "unknown":
        send(messages.Failed(request_id, "unknown_adapter", "removed", words[1]))
    elif words[0] == "say":
        send(messages.Started(request_id, len(words)))
        for word in words[1:]:
            send(messages.Text(request_id, word))
        send(messages.Finished(request_id, FinishReason.STOP, Usage(len(words), len(words) - 1)))


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
        match messages.decode(line):
            case messages.Load(settings):
                if settings.model == "missing.gguf":
                    send(messages.LoadFailed("model_load", "no such file: missing.gguf"))
                    return 2
                if settings.model == "lanes-abort.gguf" and settings.adapter_batching != "grouped":
                    os.abort()
                if settings.model == "slow.gguf":
                    continue
                if settings.model == "silent.gguf":
                    return 3
                send(messages.Loading(0.5))
                send(
                    messages.Ready(messages.ModelInfo("scripted", 1, 1, 1, 512, 512, 2, "none"), "grouped", "scripted")
                )
            case messages.Generate(request):
                answer(request.request_id, request.prompt.text)
            case messages.AddAdapter() | messages.RemoveAdapter() as command:
                answer_adapter(command, paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
