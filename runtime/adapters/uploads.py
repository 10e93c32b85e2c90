"""Uploaded adapters: created by name, filled with two files, converted on arrival, kept over restarts.

A folder for each, named by its id::

    finetunes/
      <id>/finetune.json                  the manifest; its digest says that the adapter is whole
           adapter_config.json
           adapter_model.safetensors      until it is converted
           adapter.gguf, adapter.gguf.json    the result, and the converter's record
      .uploads/                           files on their way; emptied at the start

Everything is written beside its place and moved there. Belongs to the event loop; conversions run one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import shutil
import uuid
from collections.abc import Awaitable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from convert.files import record_path
from runtime.adapters.record import Manifest, now, read_manifest, write_manifest
from runtime.adapters.registry import Registry, ServedAdapter, digest_of
from runtime.engines.protocol import Engine
from runtime.errors import AdapterError, EngineUnavailable, GemlaneError, InvalidAdapter, StorageError, UnknownAdapter

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
GGUF_NAME: Final = "adapter.gguf"
MAX_CONFIG_BYTES: Final = 1 << 20
_MAX_NAME_LENGTH: Final = 200
_MAX_DESCRIPTION_LENGTH: Final = 2000
_OTHER_FAMILIES: Final = ("llama", "mistral", "mixtral", "qwen", "falcon")
_RESERVED_PREFIX: Final = "cf-public-"  # Cloudflare's own adapters (docs "fine-tunes/public-loras")

log = logging.getLogger(__name__)


class Convert(Protocol):
    """Makes a GGUF adapter of an uploaded folder; see ``conversion.Converter``."""

    def convert(self, folder: Path, output: Path) -> Awaitable[None]:
        """Write ``output``, whole or not at all."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that has come whole: where it lies, and the SHA-256 of its content."""

    path: Path
    digest: str


class Finetunes:
    """The uploaded adapters of one folder."""

    def __init__(self, folder: Path, registry: Registry, engine: Engine, converter: Convert, max_adapters: int) -> None:
        """Take over ``folder``, which is made if it is missing.

        Raises:
            StorageError: it cannot be used.
        """
        self._folder = folder
        self._registry = registry
        self._engine = engine
        self._converter = converter
        self._max_adapters = max_adapters
        self._manifests: dict[str, Manifest] = {}
        self._stalled: set[str] = set()  # unfinished, and left so: a file was refused, or an earlier run began them
        self._converting = asyncio.Lock()
        self._tasks: set[asyncio.Task[Manifest]] = set()
        with _storage(folder):
            shutil.rmtree(self.uploads, ignore_errors=True)
            self.uploads.mkdir(parents=True)

    def __iter__(self) -> Iterator[Manifest]:
        return iter(sorted(self._manifests.values(), key=lambda manifest: manifest.created_at))

    @property
    def uploads(self) -> Path:
        """Where files lie while they come."""
        return self._folder / ".uploads"

    async def load(self) -> None:
        """Take in what an earlier run has kept; a conversion that was cut off is done again, in the background.

        A folder that cannot be used is logged and left alone.
        """
        for folder in sorted(self._folder.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                await self._take_in(folder, read_manifest(folder))
            except (OSError, ValueError, AdapterError) as error:
                log.warning("finetune %s is left out: %s", folder.name, error)

    def find(self, name_or_id: str) -> Manifest | None:
        """The finetune of that id, else of that name, else None."""
        by_name = (manifest for manifest in self._manifests.values() if manifest.name == name_or_id)
        return self._manifests.get(name_or_id) or next(by_name, None)

    def create(self, name: str, model: str, description: str = "", *, is_public: bool = False) -> Manifest:
        """A new finetune that waits for its files; a stalled one of that name gives way to it.

        Raises:
            InvalidAdapter: the name cannot be used, or is taken.
            AdapterError: there are as many adapters as there may be.
            StorageError: it cannot be written.
        """
        _check_name(name)
        if len(description) > _MAX_DESCRIPTION_LENGTH:
            raise InvalidAdapter(f"a description may have {_MAX_DESCRIPTION_LENGTH} characters")
        self._give_way(name)
        if len(self._registry) + self._registry.n_reserved >= self._max_adapters:
            raise AdapterError(f"this server keeps {self._max_adapters} adapters at most (--max-adapters)")
        moment = now()
        manifest = Manifest(str(uuid.uuid4()), name, model, description, is_public, moment, moment)
        self._registry.reserve(manifest.id, name)
        try:
            with _storage(self._folder):
                self._folder_of(manifest).mkdir()
                write_manifest(self._folder_of(manifest), manifest)
        except StorageError:
            self._registry.release(manifest.id)
            shutil.rmtree(self._folder_of(manifest), ignore_errors=True)
            raise
        self._manifests[manifest.id] = manifest
        return manifest

    async def add_file(self, manifest_id: str, file_name: str, upload: Upload) -> Manifest:
        """Give the finetune one of its files; with the second it is converted, and may then be named in requests.

        The file is taken away from where it lies. Goes on when its caller is cancelled, since the file has come. The
        same file once more changes nothing.

        Raises:
            AdapterError: the file breaks a rule, does not fit the base model, or would replace one in use.
            StorageError, ConversionDied: it is our own fault.
        """
        check_file_name(file_name)
        taken = self.uploads / str(uuid.uuid4())
        with _storage(self.uploads):
            upload.path.replace(taken)
        work = self._add_file(manifest_id, file_name, Upload(taken, upload.digest))
        return await asyncio.shield(self._start(work))

    async def remove(self, manifest_id: str) -> None:
        """Forget a finetune and its files; answers that run under it are finished.

        Raises:
            StorageError: it cannot be removed.
        """
        async with self._converting:
            manifest = self._manifests[manifest_id]
            self._registry.release(manifest.id)
            adapter = self._registry.find(manifest.id)
            if adapter is not None:
                self._registry.remove(adapter)
                if all(other.digest != adapter.digest for other in self._registry):
                    await self._engine.remove_adapter(adapter.digest)
            del self._manifests[manifest_id]
            self._stalled.discard(manifest_id)
            with _storage(self._folder):
                self._folder_of(manifest).replace(self.uploads / manifest.id)  # gone for good with the next start
            shutil.rmtree(self.uploads / manifest.id, ignore_errors=True)

    async def close(self) -> None:
        """End conversions that still run; they are done again at the next start."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _give_way(self, name: str) -> None:
        """Forget a stalled finetune of that name, which Cloudflare's clients could not delete."""
        earlier = self.find(name)
        if earlier is not None and earlier.name == name and earlier.digest is None and earlier.id in self._stalled:
            self._stalled.remove(earlier.id)
            self._registry.release(earlier.id)
            del self._manifests[earlier.id]
            shutil.rmtree(self._folder_of(earlier), ignore_errors=True)

    async def _add_file(self, manifest_id: str, file_name: str, upload: Upload) -> Manifest:
        try:
            async with self._converting:
                with self._filling(manifest_id):
                    return await self._add_taken_file(manifest_id, file_name, upload)
        finally:
            upload.path.unlink(missing_ok=True)

    async def _add_taken_file(self, manifest_id: str, file_name: str, upload: Upload) -> Manifest:
        manifest = self._manifests.get(manifest_id)
        if manifest is None:
            raise UnknownAdapter("the finetune was deleted meanwhile", manifest_id)
        folder = self._folder_of(manifest)
        if manifest.digest is not None:
            if manifest.files.get(file_name) == upload.digest:
                return manifest
            raise InvalidAdapter("the files of a finetune cannot be replaced; create a new one")
        if file_name == CONFIG_NAME:
            check_config(upload.path)
        files = {**manifest.files, file_name: upload.digest}
        with _storage(folder):
            upload.path.replace(folder / file_name)
            manifest = self._keep(dataclasses.replace(manifest, files=files, modified_at=now()))
        if not _is_filled(folder):
            return manifest
        try:
            return await self._complete(manifest)
        except (AdapterError, StorageError):
            for path in (folder / file_name, *_results(folder)):  # whoever mends the file sends it again
                path.unlink(missing_ok=True)
            raise

    async def _complete(self, manifest: Manifest) -> Manifest:
        """Both files are there: convert, tell the engine, and let requests name the adapter."""
        folder = self._folder_of(manifest)
        gguf = folder / GGUF_NAME
        await self._converter.convert(folder, gguf)
        with _storage(folder):
            digest = await asyncio.to_thread(digest_of, gguf)
        with contextlib.suppress(EngineUnavailable):  # it will be told once it is ready
            await self._engine.add_adapter(digest, gguf)
        with _storage(folder):
            manifest = self._keep(dataclasses.replace(manifest, digest=digest, modified_at=now()))
            (folder / WEIGHTS_NAME).unlink(missing_ok=True)
        self._registry.release(manifest.id)
        self._registry.add(ServedAdapter(manifest.id, manifest.name, digest, gguf, manifest.created_at))
        log.info("finetune %s is ready, as %s", manifest.name, manifest.id)
        return manifest

    async def _take_in(self, folder: Path, manifest: Manifest) -> None:
        if folder.name != manifest.id:
            raise ValueError(f"its manifest is that of {manifest.id}")
        if manifest.digest is None:
            self._registry.reserve(manifest.id, manifest.name)
            self._manifests[manifest.id] = manifest
            if _is_filled(folder):
                self._start(self._resume(manifest))
            else:
                self._stalled.add(manifest.id)
            return
        gguf = folder / GGUF_NAME
        if await asyncio.to_thread(digest_of, gguf) != manifest.digest:
            raise ValueError(f"{GGUF_NAME} is not what was converted; create the finetune again")
        self._registry.add(ServedAdapter(manifest.id, manifest.name, manifest.digest, gguf, manifest.created_at))
        self._manifests[manifest.id] = manifest
        (folder / WEIGHTS_NAME).unlink(missing_ok=True)

    async def _resume(self, manifest: Manifest) -> Manifest:
        async with self._converting:
            try:
                with self._filling(manifest.id):
                    return await self._complete(manifest)
            except GemlaneError as error:
                log.warning("finetune %s cannot be completed: %s", manifest.name, error)
                return manifest

    @contextlib.contextmanager
    def _filling(self, manifest_id: str) -> Iterator[None]:
        """While a file is taken in, its finetune is not stalled; it is when that fails."""
        self._stalled.discard(manifest_id)
        try:
            yield
        except GemlaneError:
            if manifest_id in self._manifests:
                self._stalled.add(manifest_id)
            raise

    def _start(self, work: Coroutine[Any, Any, Manifest]) -> asyncio.Task[Manifest]:
        """Begin work that outlives whoever asked for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Manifest]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, GemlaneError):  # ours are told where they are awaited
            log.error("a finetune cannot be completed", exc_info=error)

    def _keep(self, manifest: Manifest) -> Manifest:
        write_manifest(self._folder_of(manifest), manifest)
        self._manifests[manifest.id] = manifest
        return manifest

    def _folder_of(self, manifest: Manifest) -> Path:
        return self._folder / manifest.id


def check_file_name(file_name: str) -> None:
    """Let the two names of a PEFT adapter's files pass.

    Raises:
        InvalidAdapter: it is another.
    """
    if file_name not in (CONFIG_NAME, WEIGHTS_NAME):
        raise InvalidAdapter(f"file_name must be {CONFIG_NAME} or {WEIGHTS_NAME}, not {file_name[:200]!r}")


def check_config(path: Path) -> None:
    """Refuse at once what no conversion could use: another model's configuration, or none.

    Cloudflare wants ``model_type``; PEFT does not write it. Where it is missing the base's name may still tell, and
    if that says nothing either, the conversion compares every shape.

    Raises:
        InvalidAdapter: not a JSON object, too large, or not for Gemma.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_CONFIG_BYTES + 1)
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{CONFIG_NAME} may have {MAX_CONFIG_BYTES} bytes at most")
    try:
        config: Any = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidAdapter(f"{CONFIG_NAME} is not JSON") from None
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{CONFIG_NAME} must be a JSON object")
    kind = config.get("model_type")
    if kind not in (None, "gemma"):
        raise InvalidAdapter(f"{CONFIG_NAME} has model_type {str(kind)[:100]!r}; this server's model is gemma")
    base = str(config.get("base_model_name_or_path")).lower()
    if kind is None and "gemma" not in base and any(family in base for family in _OTHER_FAMILIES):
        raise InvalidAdapter(f"{CONFIG_NAME} is for {base[:100]!r}; this server's model is gemma")


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidAdapter(f"a finetune's name must have 1 to {_MAX_NAME_LENGTH} printable characters")
    if name.startswith(_RESERVED_PREFIX):
        raise InvalidAdapter(f"names that begin with {_RESERVED_PREFIX} are reserved")
    with contextlib.suppress(ValueError):
        uuid.UUID(name)
        raise InvalidAdapter("a finetune's name must not look like an id")


def _results(folder: Path) -> tuple[Path, Path]:
    """The adapter, and the converter's record of it."""
    return folder / GGUF_NAME, record_path(folder / GGUF_NAME)


def _is_filled(folder: Path) -> bool:
    return (folder / CONFIG_NAME).exists() and (folder / WEIGHTS_NAME).exists()


@contextlib.contextmanager
def _storage(folder: Path) -> Iterator[None]:
    """What the operating system refuses, as an error of ours."""
    try:
        yield
    except OSError as error:
        log.error("cannot write in %s: %s", folder, error)
        raise StorageError(f"the adapter folder cannot be written: {error.strerror}") from error
