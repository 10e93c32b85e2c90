"""One run of the model, on whichever route it came: input -> generation -> answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from runtime.adapters.blend import blend_of
from runtime.adapters.store import Store
from runtime.cloudflare.wire import RunFrames, RunInput, render_result
from runtime.config import ServerSettings
from runtime.errors import Overloaded
from runtime.generation import GenerationRequest
from runtime.prompt import gemma
from runtime.prompt.gemma import Message, SystemRole
from runtime.web.answers import Ask, collect, refuse_oversized, stream
from runtime.web.keys import ENGINE, REQUEST_ID, SETTINGS, STORE

NEURONS: Final = {"cf-ai-neurons": "0.00"}
"""What a success cost; LoRA inference is free (docs "features/fine-tunes/loras"), and so is our own."""


def to_generation(run_input: RunInput, request_id: str, store: Store, settings: ServerSettings) -> GenerationRequest:
    """The request for the engine.

    Raises:
        UnknownAdapter: no such adapter; or another AdapterError if it cannot be used.
        InvalidRequest: the prompt cannot be made.
    """
    if run_input.prompt is not None and run_input.is_raw:
        prompt = gemma.render_raw(run_input.prompt)
    elif run_input.prompt is not None:
        prompt = gemma.render([Message("user", run_input.prompt)], SystemRole.DROP)
    else:
        prompt = gemma.render(run_input.messages or (), SystemRole(settings.system_role))
    return GenerationRequest(
        request_id=request_id,
        prompt=prompt,
        max_tokens=run_input.max_tokens,
        sampling=run_input.sampling,
        blend=blend_of(run_input.lora, store.member),
        n_draft_max=run_input.n_draft_max,
    )


def refuse_if_busy(request: web.Request, options: Any) -> None:
    """Refuse a request that would wait for its turn, if its ``options`` ask for that.

    Raises:
        Overloaded: ``rejectIfBusy`` is true, and every place is taken.
    """
    engine = request.app[ENGINE]
    is_busy = engine.ready is not None and engine.n_in_flight >= engine.ready.model.n_parallel
    if is_busy and isinstance(options, dict) and options.get("rejectIfBusy") is True:
        raise Overloaded("every place is taken, and the request asked not to wait")


async def answer(
    request: web.Request, run_input: RunInput, render: Callable[[dict[str, object]], bytes]
) -> web.StreamResponse:
    """Generate, and answer with ``render(result)`` or with the native stream.

    Raises:
        GemlaneError: the adapter, the prompt or the engine.
    """
    if run_input.messages is not None:
        refuse_oversized(request, [message.content for message in run_input.messages])
    generation = to_generation(run_input, request[REQUEST_ID], request.app[STORE], request.app[SETTINGS])
    if run_input.is_stream:
        return await stream(request, [Ask(generation)], RunFrames())
    whole = await collect(request, generation)
    body = render(render_result(whole.text, whole.usage))
    # Exactly this content type: the Worker binding compares it as a string, so a charset would break it.
    return web.Response(body=body, headers={"Content-Type": "application/json", **NEURONS})
