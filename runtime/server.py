"""Composition root of ``gemlane serve``: engine, adapters and web application, from the start to the last stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from tqdm import tqdm

from runtime.adapters.service import AdapterService, adapters_of, watch
from runtime.adapters.store import Store
from runtime.app import build_app
from runtime.config import ServerSettings, Settings
from runtime.engines.supervisor import ChildEngine
from runtime.errors import ConfigError
from runtime.messages import Ready
from runtime.observe.log import set_up as set_up_logging
from runtime.web.listener import Listener, listen

log = logging.getLogger("gemlane")

_DRAIN_TIMEOUT_S = 10.0
"""How long running answers may go on after the first signal to stop; a second signal cuts them."""
_FILL_TIMEOUT_S = 10.0
"""How long the greeting waits for the adapters folder once the engine is ready."""


def run(settings: Settings) -> None:
    """Serve until stopped, on an event loop of its own; raises as `serve`."""
    asyncio.run(serve(settings))


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigError: the address cannot be listened on, or a file named by the settings cannot be used.
        ModelLoadError: the base model cannot be loaded.
    """
    set_up_logging(settings.server.log_level, settings.server.log_format, settings.server.log_file)
    _check_places(settings)
    bar = _LoadingBar()
    max_in_flight = settings.engine.parallel + settings.server.max_queue
    engine = ChildEngine(settings.engine, max_in_flight=max_in_flight, on_loading=bar.show)
    stop = _stop_event()
    async with (
        adapters_of(settings, engine) as adapters,
        _listening(build_app(engine, adapters, settings.server), settings.server) as listener,
    ):
        filling = asyncio.create_task(_fill(adapters))
        try:
            log.info("loading %s", settings.engine.model)
            starting = asyncio.create_task(_start(engine, filling))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            bar.close()
            if starting.done():
                _greet(starting.result(), adapters.store, listener.url)
                watching = asyncio.create_task(watch(adapters))
                await stopping
                watching.cancel()
                listener.close()
                await _drain(engine, stop)
        finally:
            filling.cancel()
            await engine.stop()
    log.info("stopped")


def _check_places(settings: Settings) -> None:
    """What can be seen to be wrong before anything is started."""
    if not settings.engine.model:
        raise ConfigError("no base model: name a GGUF file with --model (see gemlane convert model --help)")
    folder = settings.server.adapters
    if folder and not Path(folder).is_dir():
        raise ConfigError(f"--adapters {folder}: no such folder")


@contextlib.asynccontextmanager
async def _listening(app: web.Application, settings: ServerSettings) -> AsyncIterator[Listener]:
    """Listen with ``app``, and give the listener, while the context lasts."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            listener = await stack.enter_async_context(listen(app, settings.host, settings.port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"cannot listen on {settings.host} port {settings.port}: {reason}; choose another with --host or --port"
            ) from error
        yield listener


async def _fill(adapters: AdapterService) -> None:
    """Take in what lies in the adapters folder."""
    if adapters.folder is not None:
        await adapters.folder.start()


async def _start(engine: ChildEngine, filling: asyncio.Task[None]) -> Ready:
    """Start the engine; a large folder that is new may take longer, and does not hold up requests.

    Raises:
        ModelLoadError: as `ChildEngine.start`.
    """
    ready = await engine.start()
    await asyncio.wait({filling}, timeout=_FILL_TIMEOUT_S)
    if not filling.done():
        log.info("the adapters folder is still being read; adapters are served as they become ready")
    return ready


def _stop_event() -> asyncio.Event:
    """Set by SIGINT or SIGTERM; cleared by who wants to hear of the next one."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _drain(engine: ChildEngine, stop: asyncio.Event) -> None:
    """Let running answers end, for a while."""
    if not engine.n_in_flight:
        return
    stop.clear()
    log.info(
        "finishing %d running requests, for at most %.0f s; again to cut them", engine.n_in_flight, _DRAIN_TIMEOUT_S
    )
    deadline = asyncio.get_running_loop().time() + _DRAIN_TIMEOUT_S
    while engine.n_in_flight and not stop.is_set() and asyncio.get_running_loop().time() < deadline:
        try:
            await asyncio.wait_for(stop.wait(), timeout=0.05)
        except TimeoutError:
            continue


def _greet(ready: Ready, store: Store, url: str) -> None:
    """Say what is served, and give lines to paste."""
    model = ready.model
    log.info(
        "%s, %s on %s: %d tokens a request, %d at once, %d cells of key-value cache",
        model.name,
        f"{model.size_bytes / 1e9:.2f} GB" if model.size_bytes >= 1e8 else f"{model.size_bytes / 1e6:.2f} MB",
        model.device,
        model.n_ctx,
        model.n_parallel,
        model.n_kv_cells,
    )
    log.info("adapters are batched %s: %s", ready.adapter_batching, ready.batching_reason)
    names = [adapter.name for adapter in store.usable()]
    log.info("%d adapters: %s", len(names), ", ".join(names[:10]) + (", ..." if len(names) > 10 else ""))
    print(f"\nserving on {url}; Ctrl-C ends it. Try:", file=sys.stderr)
    for lora in ("", *names[:1]):
        chosen = f', "lora": "{lora}"' if lora else ""
        print(
            f"  curl {url}/client/v4/accounts/local/ai/run/@cf/google/gemma-7b-it-lora "
            f'-d \'{{"prompt": "What is the capital of France?"{chosen}}}\'',
            file=sys.stderr,
        )
    sys.stderr.flush()


class _LoadingBar:
    """A progress bar for the model file; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._bar = tqdm(
            total=100,
            unit="%",
            desc="loading",
            leave=False,
            disable=None,
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left",
        )

    def show(self, fraction: float) -> None:
        """Move to ``fraction``, 0 to 1."""
        self._bar.update(max(0, round(fraction * 100) - self._bar.n))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
