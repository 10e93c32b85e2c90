"""``POST .../ai/v1/chat/completions``: OpenAI's body and objects, in the form that Workers AI gives them.

Recorded on the original in 2026: no envelope around the answer, no role and no ``finish_reason`` in a stream's content
chunks, ids ``id-<milliseconds>``; errors are those of REST.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from runtime.adapters.blend import blend_of, parse_lora
from runtime.chat.body import parse_completion, parse_messages
from runtime.cloudflare.run import NEURONS
from runtime.cloudflare.wire import DONE, MODEL, check_model, render_frame, render_usage
from runtime.errors import MethodNotAllowed, UnknownModel
from runtime.generation import FinishReason, GenerationRequest, Usage
from runtime.prompt import gemma
from runtime.prompt.gemma import SystemRole
from runtime.web.answers import collect, stream
from runtime.web.body import parse_json_object, render_json
from runtime.web.keys import LIMITS, REQUEST_ID, SETTINGS, STORE
from runtime.web.limits import read_body

_DEFAULT_MAX_TOKENS: Final = 256  # the schema's, as for the native route


@dataclass(frozen=True, slots=True)
class WorkersChatFrames:
    """The stream, in the orders of keys that were recorded. ``created_ms`` is in Unix milliseconds."""

    created_ms: int

    def text(self, text: str) -> bytes:
        """A content chunk."""
        head = {"id": f"id-{self.created_ms}", "created": self.created_ms // 1000, "model": MODEL}
        choice = {"index": 0, "delta": {"content": text}}
        return render_frame({**head, "object": "chat.completion.chunk", "choices": [choice]})

    def end(self, reason: FinishReason, usage: Usage) -> bytes:
        """The last chunk, with why it ended and usage, and ``[DONE]``."""
        choice = {"index": 0, "delta": {}, "finish_reason": reason.value}
        return render_frame(_object(self.created_ms, "chat.completion.chunk", choice, usage)) + DONE

    def error(self, _error: Exception) -> bytes:
        """Nothing: the stream stops without ``[DONE]`` and its connection closes."""
        return b""


def render_chat(created_ms: int, text: str, reason: FinishReason, usage: Usage) -> bytes:
    """A whole answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason.value}
    return render_json(_object(created_ms, "chat.completion", choice, usage))


def _object(created_ms: int, kind: str, choice: dict[str, Any], usage: Usage) -> dict[str, Any]:
    return {
        "id": f"id-{created_ms}",
        "object": kind,
        "created": created_ms // 1000,
        "model": MODEL,
        "choices": [choice],
        "usage": render_usage(usage),
    }


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer one chat; keys that nobody knows are ignored, as in the native route."""
    body = parse_json_object(await read_body(request, request.app[LIMITS]))
    asked = parse_completion(body, is_strict=False)
    messages = parse_messages(body)
    check_model(asked.model)
    lora = asked.lora or parse_lora(request.query.get("lora"))
    generation = GenerationRequest(
        request_id=request[REQUEST_ID],
        prompt=gemma.render(messages, SystemRole(request.app[SETTINGS].system_role)),
        max_tokens=_DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens,
        sampling=asked.sampling,
        blend=blend_of(lora, request.app[STORE].member),
        stop=asked.stop,
    )
    created_ms = time.time_ns() // 1_000_000
    if asked.is_stream:
        return await stream(request, generation, WorkersChatFrames(created_ms))
    answer = await collect(request, generation)
    body_bytes = render_chat(created_ms, answer.text, answer.finish_reason, answer.usage)
    return web.Response(body=body_bytes, headers={"Content-Type": "application/json", **NEURONS})


async def other_models_only(request: web.Request) -> web.StreamResponse:
    """``POST .../ai/v1/embeddings`` and ``.../responses``, which no model here serves.

    Raises:
        UnknownModel: always.
    """
    model = parse_json_object(await read_body(request, request.app[LIMITS])).get("model", "")
    raise UnknownModel(f"this server has only {MODEL}, for chats", str(model))


async def no_list(request: web.Request) -> web.StreamResponse:
    """``GET .../ai/v1/models``: the original answers so; the list is at ``models/search``, and at ``/v1/models``.

    Raises:
        MethodNotAllowed: always.
    """
    raise MethodNotAllowed("models are listed at .../ai/models/search", request.method)
