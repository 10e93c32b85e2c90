"""``POST .../ai/v1/chat/completions``: OpenAI's body and objects, in the form that Workers AI gives them.

Recorded on the original in 2026: no envelope around the answer, no role and no ``finish_reason`` in a stream's content
chunks, ids ``id-<milliseconds>``; errors are those of REST.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from runtime.adapters.blend import blend_of, parse_lora
from runtime.chat.body import CompletionInput, parse_chat
from runtime.chat.messages import parse_messages
from runtime.cloudflare.run import NEURONS, refuse_if_busy
from runtime.cloudflare.wire import DONE, MODEL, check_model, render_error_frame, render_frame, render_usage
from runtime.errors import MethodNotAllowed, UnknownModel, UnsupportedGrammar, UnsupportedParameter
from runtime.generation import FinishReason, GenerationRequest, Usage
from runtime.prompt import gemma
from runtime.prompt.gemma import SystemRole
from runtime.web.answers import Ask, collect, refuse_oversized, stream
from runtime.web.body import parse_json_object, render_json
from runtime.web.keys import IGNORED, LIMITS, REQUEST_ID, SETTINGS, STORE
from runtime.web.limits import read_body
from runtime.web.streams import TextEnd, TextPiece

_DEFAULT_MAX_TOKENS: Final = 256  # the schema's, as for the native route


@dataclass(frozen=True, slots=True)
class WorkersChatFrames:
    """The stream, in the orders of keys that were recorded. ``created_ms`` is in Unix milliseconds."""

    created_ms: int
    model: str = MODEL

    def start(self) -> bytes:
        """Nothing: no chunk holds the role."""
        return b""

    def text(self, piece: TextPiece) -> bytes:
        """A content chunk."""
        head = {"id": f"id-{self.created_ms}", "created": self.created_ms // 1000, "model": self.model}
        choice = {"index": piece.index, "delta": {"content": piece.text}}
        return render_frame({**head, "object": "chat.completion.chunk", "choices": [choice]})

    def end(self, end: TextEnd) -> bytes:
        """The last chunk, with why the answer ended and usage."""
        choice = {"index": end.index, "delta": {}, "finish_reason": end.reason.value}
        return render_frame(_object(self.created_ms, self.model, "chat.completion.chunk", choice, end.usage))

    def close(self, _usage: Usage) -> bytes:
        """The end of the stream."""
        return DONE

    def error(self, error: Exception) -> bytes:
        """The error as the last event, without ``[DONE]``."""
        return render_error_frame(error)


def render_chat(created_ms: int, text: str, reason: FinishReason, usage: Usage, model: str = MODEL) -> bytes:
    """A whole answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason.value}
    return render_json(_object(created_ms, model, "chat.completion", choice, usage))


def _object(created_ms: int, model: str, kind: str, choice: dict[str, Any], usage: Usage) -> dict[str, Any]:
    return {
        "id": f"id-{created_ms}",
        "object": kind,
        "created": created_ms // 1000,
        "model": model,
        "choices": [choice],
        "usage": render_usage(usage),
    }


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer one chat; unknown keys are ignored, as in the native route."""
    return await answer_chat(request, parse_json_object(await read_body(request, request.app[LIMITS])))


async def answer_chat(request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
    """Answer the chat of a body.

    Raises:
        GemlaneError: the body, the model, its adapters or the engine.
    """
    asked = parse_chat(body, is_strict=False)
    messages = parse_messages(body.get("messages"))
    check_model(asked.model, request.app[SETTINGS].cloudflare_model)
    _refuse_choices(asked)
    refuse_oversized(request, [message.content for message in messages])
    refuse_if_busy(request, body.get("options"))
    request[IGNORED] = asked.ignored
    lora = asked.lora or parse_lora(request.query.get("lora"))
    generation = GenerationRequest(
        request_id=request[REQUEST_ID],
        prompt=gemma.render(messages, SystemRole(request.app[SETTINGS].system_role)),
        max_tokens=_DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens,
        sampling=asked.sampling,
        blend=blend_of(lora, request.app[STORE].member),
        stop=asked.stop,
        n_draft_max=asked.n_draft_max,
        prediction=asked.prediction,
    )
    try:
        return await _answer(request, generation, asked.model, is_stream=asked.is_stream)
    except UnsupportedGrammar as error:
        # The engine knows what is wrong with the grammar, and not which key it came by.
        raise UnsupportedGrammar(f"{asked.structure_param}: {error}", asked.structure_param) from None


async def _answer(
    request: web.Request, generation: GenerationRequest, model: str, *, is_stream: bool
) -> web.StreamResponse:
    created_ms = time.time_ns() // 1_000_000
    if is_stream:
        return await stream(request, [Ask(generation)], WorkersChatFrames(created_ms, model))
    answer = await collect(request, generation)
    body_bytes = render_chat(created_ms, answer.text, answer.finish_reason, answer.usage, model)
    return web.Response(body=body_bytes, headers={"Content-Type": "application/json", **NEURONS})


def _refuse_choices(asked: CompletionInput) -> None:
    """Refuse what the recorded objects have no place for.

    Raises:
        UnsupportedParameter: several choices, or logprobs.
    """
    if asked.n_choices > 1:
        raise UnsupportedParameter("n is not served at this path; leave it out, or ask /v1/chat/completions", "n")
    if asked.n_logprobs is not None:
        raise UnsupportedParameter("logprobs is not served at this path; ask /v1/chat/completions", "logprobs")


async def other_models_only(request: web.Request) -> web.StreamResponse:
    """``POST .../ai/v1/embeddings`` and ``.../responses``, which no model here serves.

    Raises:
        UnknownModel: always.
    """
    model = parse_json_object(await read_body(request, request.app[LIMITS])).get("model", "")
    raise UnknownModel("this server has only Gemma with LoRA, for chats", str(model))


async def no_list(request: web.Request) -> web.StreamResponse:
    """``GET .../ai/v1/models``: the original answers so; the list is at ``models/search``, and at ``/v1/models``.

    Raises:
        MethodNotAllowed: always.
    """
    raise MethodNotAllowed("models are listed at .../ai/models/search", request.method)
