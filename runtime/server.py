"""Composition root of ``gemlane serve``: engine, adapters and web application, from the start to the last stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import platformdirs
from aiohttp import web

from runtime.adapters.service import AdapterService, adapters_of, watch
from runtime.app import build_app
from runtime.cluster.make import make_engine
from runtime.config import ServerSettings, Settings
from runtime.engines.protocol import ManagedEngine
from runtime.engines.supervisor import ChildEngine
from runtime.errors import ConfigError
from runtime.messages import Ready
from runtime.observe.log import set_up as set_up_logging
from runtime.systemd import Systemd
from runtime.terminal import Serving, greeting, loading_bar
from runtime.web.keys import SETTINGS, TOKENS
from runtime.web.listener import Listener, listen
from runtime.web.tls import load_tls, reload_tls

log = logging.getLogger("gemlane")

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
        EngineError: the engine is lost for good.
    """
    set_up_logging(settings.server.log_level, settings.server.log_format, settings.server.log_file)
    _check_places(settings)
    tls, stop, systemd = load_tls(settings.server), _stop_event(), Systemd()
    async with contextlib.AsyncExitStack() as stack:
        loading = stack.enter_context(contextlib.ExitStack())
        on_loading = loading.enter_context(loading_bar())
        # What the engine has proven holds for the machine, with any adapters.
        state_dir = settings.server.state_dir or str(platformdirs.user_state_path("gemlane"))
        _give_temporary_folder(Path(state_dir))
        engine = _make_engine(settings, state_dir, on_loading)
        adapters = await stack.enter_async_context(adapters_of(settings, engine))
        app = build_app(engine, adapters, settings.server)
        listener = await stack.enter_async_context(_listening(app, settings.server, tls))
        _reload_on_hangup(app, adapters, tls, systemd)
        filling = asyncio.create_task(_fill(adapters))
        starting = asyncio.create_task(_start(engine, filling))
        try:
            log.info("loading %s", settings.engine.model)
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            loading.close()
            if starting.done():
                _greet(starting.result(), adapters, listener.url, settings.server)
                systemd.ready(f"serving on {listener.url}")
                watching = asyncio.create_task(watch(adapters))
                living = asyncio.create_task(systemd.keep_alive())
                losing = asyncio.create_task(engine.wait_lost())
                await asyncio.wait({stopping, losing}, return_when=asyncio.FIRST_COMPLETED)
                systemd.stopping()
                watching.cancel()
                listener.close()
                await _drain(engine, stop, settings.server.drain_s)
                living.cancel()
                if losing.done():
                    raise losing.result()
                losing.cancel()
        finally:
            filling.cancel()
            starting.cancel()
            await engine.stop()
    log.info("stopped")


def _make_engine(settings: Settings, state_dir: str, on_loading: Callable[[float], None]) -> ManagedEngine:
    """The engine of this machine, or replicas on a Ray cluster; not started yet.

    Raises:
        ConfigError: Ray is asked for and not installed.
    """
    n_running = settings.engine.parallel * max(settings.cluster.replicas, settings.cluster.max_replicas)
    max_in_flight = n_running + settings.server.max_queue
    if settings.cluster.engine == "local":
        return ChildEngine(settings.engine, max_in_flight=max_in_flight, state_dir=state_dir, on_loading=on_loading)
    return make_engine(settings, max_in_flight, on_loading)


def _check_places(settings: Settings) -> None:
    """Check the settings whose faults show before anything is started."""
    if not settings.engine.model:
        raise ConfigError("no base model: name a GGUF file with --model (see gemlane convert model --help)")
    folder = settings.server.adapters
    if folder and not Path(folder).is_dir():
        raise ConfigError(f"--adapters {folder}: {'not a folder' if Path(folder).exists() else 'no such folder'}")


def _give_temporary_folder(state_dir: Path) -> None:
    """Let temporary files, the engine's too, lie in the state folder where /tmp and the like cannot be written.

    Raises:
        ConfigError: the state folder cannot be written either.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        place = state_dir / "tmp"
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"no folder for temporary files can be written ({error}); name one by TMPDIR") from error
        os.environ["TMPDIR"] = str(place)


@contextlib.asynccontextmanager
async def _listening(
    app: web.Application, settings: ServerSettings, tls: ssl.SSLContext | None
) -> AsyncIterator[Listener]:
    """Listen with ``app``, and give the listener, while the context lasts."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            listener = await stack.enter_async_context(
                listen(app, settings.host, settings.port, tls=tls, socket_path=settings.socket)
            )
        except OSError as error:
            # asyncio puts the address into strerror too; a name that cannot be resolved gets a message of its own.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            if settings.socket:
                raise ConfigError(f"cannot listen on --socket {settings.socket}: {reason}") from error
            raise ConfigError(
                f"cannot listen on {settings.host} port {settings.port}: {reason}; choose another with --host or --port"
            ) from error
        yield listener


async def _fill(adapters: AdapterService) -> None:
    """Take in what lies in the adapters folder."""
    if adapters.folder is not None:
        await adapters.folder.start()


async def _start(engine: ManagedEngine, filling: asyncio.Task[None]) -> Ready:
    """Start the engine; a large folder that is new may take longer, and does not hold up requests.

    Raises:
        ModelLoadError: as `ManagedEngine.start`.
    """
    ready = await engine.start()
    await asyncio.wait({filling}, timeout=_FILL_TIMEOUT_S)
    if not filling.done():
        log.info("the adapters folder is still being read; adapters are served as they become ready")
    return ready


def _stop_event() -> asyncio.Event:
    """Set by SIGINT or SIGTERM; a caller clears it to wait for the next signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _drain(engine: ManagedEngine, stop: asyncio.Event, drain_s: int) -> None:
    """Let running answers end, for at most ``drain_s`` seconds or until the next signal."""
    if not engine.n_in_flight:
        return
    stop.clear()
    log.info(
        "finishing %d running requests, for at most %d s (--drain-s); a second signal cuts them",
        engine.n_in_flight,
        drain_s,
    )
    deadline = asyncio.get_running_loop().time() + drain_s
    while engine.n_in_flight and not stop.is_set() and asyncio.get_running_loop().time() < deadline:
        try:
            await asyncio.wait_for(stop.wait(), timeout=0.05)
        except TimeoutError:
            continue


def _greet(ready: Ready, adapters: AdapterService, url: str, settings: ServerSettings) -> None:
    """Show what is served on the terminal, and log it in a line."""
    names = tuple(adapter.name for adapter in adapters.store.usable())
    log.info("ready on %s: %s, %d adapters, batched %s", url, ready.model.name, len(names), ready.adapter_batching)
    if settings.log_format == "text":
        shown = greeting(
            Serving(ready, names, url, settings.token_file, settings.tls_cert), shutil.get_terminal_size().columns
        )
        print(shown, file=sys.stderr, flush=True)


def _reload_on_hangup(
    app: web.Application, adapters: AdapterService, tls: ssl.SSLContext | None, systemd: Systemd
) -> None:
    """Let SIGHUP read tokens, certificate and adapters folder again; what cannot be read stays as it was."""
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        systemd.reloading()
        try:
            log.info("reloading: %d tokens", app[TOKENS].reload())
            if tls is not None:
                reload_tls(tls, app[SETTINGS])
        except ConfigError as error:
            log.error("not reloaded: %s", error)
        if adapters.folder is not None:
            task = asyncio.create_task(adapters.folder.look())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        systemd.ready("reloaded")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
