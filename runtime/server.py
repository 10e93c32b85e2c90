"""Composition root of ``gemlane serve``: engine, registry and web application, from the start to the last stream."""

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

from runtime.adapters.check import make_check
from runtime.adapters.converter import Converter
from runtime.adapters.registry import Registry, scan
from runtime.adapters.uploads import Finetunes
from runtime.app import build_app
from runtime.config import ServerSettings, Settings
from runtime.engines.supervisor import ChildEngine
from runtime.errors import ConfigError, StorageError
from runtime.messages import Ready
from runtime.observe.log import set_up as set_up_logging
from runtime.web.listener import Listener, listen

log = logging.getLogger("gemlane")

_DRAIN_TIMEOUT_S = 10.0
"""How long running answers may go on after the first signal to stop; a second signal cuts them."""


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
    registry = Registry()
    finetunes = _open_finetunes(engine, registry, settings)
    await _collect_adapters(registry, finetunes, settings)
    await registry.register(engine)  # which is told once it is ready, before the first request
    stop = _stop_event()
    async with _listening(build_app(engine, registry, settings.server, finetunes), settings.server) as listener:
        try:
            log.info("loading %s", settings.engine.model)
            starting = asyncio.create_task(engine.start())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            bar.close()
            if starting.done():
                ready = starting.result()
                await registry.register(engine)  # what it refused is forgotten
                _greet(ready, registry, listener.url)
                await stopping
                listener.close()
                await _drain(engine, stop)
        finally:
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


def _open_finetunes(engine: ChildEngine, registry: Registry, settings: Settings) -> Finetunes | None:
    """The place of uploaded adapters, inside the folder of adapters if there is one."""
    if not settings.server.adapters:
        return None
    converter = Converter(Path(settings.engine.model), settings.engine.max_lora_rank)
    folder = Path(settings.server.adapters) / "finetunes"
    try:
        return Finetunes(folder, registry, engine, converter, settings.server.max_adapters)
    except StorageError as error:
        log.warning("no finetunes can be uploaded: %s", error)
        return None


async def _collect_adapters(registry: Registry, finetunes: Finetunes | None, settings: Settings) -> None:
    """Take in every sound adapter of the folder, and what was uploaded to it earlier."""
    if settings.server.adapters:
        check = make_check(Path(settings.engine.model))
        for adapter in await asyncio.to_thread(list, scan(Path(settings.server.adapters), check)):
            registry.add(adapter)
    if finetunes is not None:
        await finetunes.load()


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


def _greet(ready: Ready, registry: Registry, url: str) -> None:
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
    names = [adapter.name for adapter in registry]
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
