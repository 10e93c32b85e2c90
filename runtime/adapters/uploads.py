"""Adapters that come over HTTP: as a finetune's two files one after the other, or whole, to add or to replace one.

The record in the state folder is what counts: it is written once the engine has taken the adapter, and until then
a crash leaves what was there before.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from runtime.adapters.disk import StateDir, storage_errors
from runtime.adapters.intake import AdapterFiles, Intake
from runtime.adapters.package import unpack
from runtime.adapters.record import RECORD_NAME, UploadRecord, read_record, write_record
from runtime.adapters.store import Store
from runtime.adapters.upload_rules import CONFIG_NAME, WEIGHTS_NAME, check_config, check_file_name, check_name
from runtime.adapters.views import AdapterView, CheckedAdapter, NewAdapter, Source, now
from runtime.errors import (
    AdapterConflict,
    AdapterError,
    GemlaneError,
    GenerationMismatch,
    InvalidAdapter,
    StorageError,
    UnknownAdapter,
)

_MAX_DESCRIPTION_LENGTH: Final = 2000

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file that has come whole: where it lies, and the SHA-256 of its content."""

    path: Path
    digest: str


class Uploads:
    """The uploaded adapters of one state folder."""

    def __init__(self, state: StateDir, store: Store, intake: Intake) -> None:
        self._state = state
        self._store = store
        self._intake = intake
        self._records: dict[str, UploadRecord] = {}
        self._stalled: set[str] = set()
        """Ids of adapters whose files will not come: a file was refused, or an earlier run began them."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def state(self) -> StateDir:
        """Where files lie while they come."""
        return self._state

    def __iter__(self) -> Iterator[UploadRecord]:
        """Every record, the oldest first."""
        return iter(sorted(self._records.values(), key=lambda record: record.created_at))

    def digests(self) -> set[str]:
        """The contents that the records on disk name."""
        digests = set()
        for folder in self._state.uploads.iterdir():
            with contextlib.suppress(OSError, ValueError):
                digests.add(read_record(folder).digest or "")
        return digests

    async def load(self) -> None:
        """Take in what an earlier run has kept; a conversion that was cut off is done again, in the background.

        An upload that cannot be used is logged and left alone.
        """
        for folder in sorted(self._state.uploads.iterdir()):
            if _is_unborn(folder):
                continue
            try:
                await self._load(folder, read_record(folder))
            except (OSError, ValueError, GemlaneError) as error:
                log.warning("upload %s is left out: %s", folder.name, error)

    def find(self, name_or_id: str) -> UploadRecord | None:
        """The record of that id, else of that name, else None."""
        by_name = (record for record in self._records.values() if record.name == name_or_id)
        return self._records.get(name_or_id) or next(by_name, None)

    async def create(self, name: str, model: str, description: str = "", *, is_public: bool = False) -> UploadRecord:
        """A new adapter that waits for its two files; a stalled one of that name gives way to it.

        Raises:
            InvalidAdapter: the name cannot be used.
            AdapterConflict: it is taken.
            AdapterBudget: there are as many adapters as there may be.
            StorageError: it cannot be written.
        """
        check_name(name)
        if len(description) > _MAX_DESCRIPTION_LENGTH:
            raise InvalidAdapter(f"a description may have {_MAX_DESCRIPTION_LENGTH} characters")
        await self._give_way(name)
        record = _new_record(name, model, description, is_public=is_public)
        self._store.add(_new_adapter(record))
        try:
            self._keep(record)
        except StorageError:
            await self._drop(record.id)
            raise
        return record

    async def add_file(self, adapter_id: str, file_name: str, received: ReceivedFile) -> UploadRecord:
        """Give an adapter one of its two files; with the second it is converted, and may then be named in requests.

        The file is taken away from where it lies. Goes on when its caller is cancelled, since the file has come. The
        same file once more changes nothing.

        Raises:
            AdapterError: the file breaks a rule, does not fit the base model, or would replace one in use.
            StorageError, ConversionDied: it is our own fault; the same file may be sent again.
        """
        check_file_name(file_name)
        taken = self._state.incoming / str(uuid.uuid4())
        with storage_errors():
            received.path.replace(taken)
        await asyncio.shield(self._start(self._add_file(adapter_id, file_name, ReceivedFile(taken, received.digest))))
        return self._records[adapter_id]

    async def put(
        self, name: str, files: Mapping[str, Path], *, expected_digest: str | None = None, must_be_new: bool = False
    ) -> tuple[AdapterView, bool]:
        """Add a whole adapter, or replace the one of that name; the view, and whether it is new.

        Goes on when its caller is cancelled, since the files have come.

        Args:
            name: what requests will call it.
            files: as ``package.unpack`` takes them; they are taken away from where they lie.
            expected_digest: the content that is to be replaced; None: any content.
            must_be_new: replace nothing.

        Raises:
            InvalidAdapter, IncompatibleAdapter: the name or the content is refused; what was served is served on.
            AdapterConflict: the name belongs to a file of the adapters folder.
            GenerationMismatch: another content is served than ``expected_digest``, or ``must_be_new`` and it exists.
            AdapterBudget: there are as many adapters, or as many bytes, as there may be.
            StorageError, ConversionDied: it is our own fault.
        """
        view = self._store.find(name)
        if view is None:
            check_name(name)
            if expected_digest is not None:
                raise GenerationMismatch(f"there is no adapter {name!r} to replace")
        else:
            if must_be_new:
                raise GenerationMismatch(f"there is an adapter {name!r} already")
            if view.adapter.source is Source.FOLDER:
                raise AdapterConflict(
                    f"adapter {name!r} lies in the adapters folder as {view.adapter.location!r}; replace it there"
                )
        with storage_errors():
            place = Path(tempfile.mkdtemp(dir=self._state.incoming))
            taken = {
                file: path.replace(place / f"upload-{index + 1}") for index, (file, path) in enumerate(files.items())
            }
        if view is not None:
            return await asyncio.shield(self._start(self._replace(view.id, place, taken, expected_digest))), False
        record = _new_record(name, "")
        self._store.add(_new_adapter(record))
        return await asyncio.shield(self._start(self._fill_new(record, place, taken))), True

    async def remove(self, adapter_id: str, expected_digest: str | None = None) -> AdapterView:
        """Forget an uploaded adapter and its files; answers that run under it are finished.

        Raises:
            UnknownAdapter: there is no such upload.
            GenerationMismatch: another content is served than ``expected_digest``.
            StorageError: its record cannot be deleted; it is served on.
        """
        if adapter_id not in self._records:
            raise UnknownAdapter("there is no such upload", adapter_id)
        trash = self._state.incoming / adapter_id  # gone for good with the next start

        def commit() -> None:
            with storage_errors():
                self._folder(adapter_id).replace(trash)

        view = await self._store.remove(adapter_id, expected_digest, commit)
        self._records.pop(adapter_id, None)
        self._stalled.discard(adapter_id)
        shutil.rmtree(trash, ignore_errors=True)
        return view

    async def close(self) -> None:
        """End conversions that still run; they are done again at the next start."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _give_way(self, name: str) -> None:
        """Forget a stalled adapter of that name, which Cloudflare's clients could not delete."""
        earlier = self.find(name)
        if earlier is not None and earlier.name == name and earlier.digest is None and earlier.id in self._stalled:
            await self._drop(earlier.id)

    async def _drop(self, adapter_id: str) -> None:
        """Forget an adapter that never became one."""
        with contextlib.suppress(UnknownAdapter):
            await self._store.remove(adapter_id)
        self._records.pop(adapter_id, None)
        self._stalled.discard(adapter_id)
        shutil.rmtree(self._folder(adapter_id), ignore_errors=True)

    async def _add_file(self, adapter_id: str, file_name: str, received: ReceivedFile) -> AdapterView | None:
        try:
            async with self._locks[adapter_id]:
                with self._filling(adapter_id):
                    return await self._add_taken_file(adapter_id, file_name, received)
        finally:
            received.path.unlink(missing_ok=True)

    async def _add_taken_file(self, adapter_id: str, file_name: str, received: ReceivedFile) -> AdapterView | None:
        record = self._records.get(adapter_id)
        if record is None:
            raise UnknownAdapter("the finetune was deleted meanwhile", adapter_id)
        folder = self._folder(adapter_id)
        if record.digest is not None:
            if record.files.get(file_name) == received.digest:
                return None
            raise InvalidAdapter("the files of a finetune cannot be replaced; create a new one")
        if file_name == CONFIG_NAME:
            check_config(received.path)
        files = {**record.files, file_name: received.digest}
        # The record first: a file that lies there without it would be converted after a crash, but not known again.
        self._keep(dataclasses.replace(record, files=files, modified_at=now()))
        with storage_errors():
            received.path.replace(folder / file_name)
        if not _is_filled(folder):
            return None
        try:
            return await self._complete(adapter_id)
        except AdapterError as error:
            (folder / file_name).unlink(missing_ok=True)  # the client mends the file and sends it again
            await self._store.wait_for_files(adapter_id, f"the last file was refused: {error}")
            raise

    async def _complete(self, adapter_id: str) -> AdapterView:
        """Both files of a finetune are there."""
        folder = self._folder(adapter_id)
        source = AdapterFiles(folder, (folder / CONFIG_NAME, folder / WEIGHTS_NAME))
        view = await self._store.fill(
            adapter_id, lambda: self._intake.convert(source), lambda checked: self._commit(adapter_id, checked)
        )
        (folder / WEIGHTS_NAME).unlink(missing_ok=True)
        return view

    async def _fill_new(self, record: UploadRecord, place: Path, files: Mapping[str, Path]) -> AdapterView:
        self._records[record.id] = record
        try:
            return await self._replace(record.id, place, files, None)
        except BaseException:
            await self._drop(record.id)
            raise

    async def _replace(
        self, adapter_id: str, place: Path, files: Mapping[str, Path], expected_digest: str | None
    ) -> AdapterView:
        """Bring in the files in ``place``, which is deleted with them."""

        async def prepare() -> CheckedAdapter:
            source = await asyncio.to_thread(unpack, files, place)
            return await (self._intake.keep if source.is_gguf else self._intake.convert)(source)

        try:
            return await self._store.fill(
                adapter_id, prepare, lambda checked: self._commit(adapter_id, checked), expected_digest
            )
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _commit(self, adapter_id: str, checked: CheckedAdapter) -> None:
        """Write down which content the adapter has now."""
        record = self._records[adapter_id]
        files = record.files if record.digest is None else {}  # of another content than the finetune's two files
        self._keep(dataclasses.replace(record, digest=checked.digest, files=files, modified_at=now()))

    async def _load(self, folder: Path, record: UploadRecord) -> None:
        if folder.name != record.id:
            raise ValueError(f"its record is that of {record.id}")
        self._store.add(_new_adapter(record))
        self._records[record.id] = record
        digest = record.digest
        if digest is not None:
            (folder / WEIGHTS_NAME).unlink(missing_ok=True)
            await self._store.fill(record.id, lambda: self._intake.open_blob(digest))
        elif _is_filled(folder):
            self._start(self._resume(record.id))
        else:
            self._stalled.add(record.id)

    async def _resume(self, adapter_id: str) -> AdapterView:
        async with self._locks[adapter_id]:
            with self._filling(adapter_id):
                return await self._complete(adapter_id)

    @contextlib.contextmanager
    def _filling(self, adapter_id: str) -> Iterator[None]:
        """While a file is taken in, its adapter is not stalled; it is when that fails."""
        self._stalled.discard(adapter_id)
        try:
            yield
        except GemlaneError:
            if adapter_id in self._records:
                self._stalled.add(adapter_id)
            raise

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin work that outlives its caller."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, GemlaneError):
            log.info("an upload is refused: %s", error)
        elif error is not None:
            log.error("an upload cannot be completed", exc_info=error)

    def _keep(self, record: UploadRecord) -> None:
        folder = self._folder(record.id)
        with storage_errors():
            folder.mkdir(exist_ok=True)
            write_record(folder, record)
        self._records[record.id] = record

    def _folder(self, adapter_id: str) -> Path:
        return self._state.uploads / adapter_id


def _new_record(name: str, model: str, description: str = "", *, is_public: bool = False) -> UploadRecord:
    moment = now()
    return UploadRecord(str(uuid.uuid4()), name, model, description, is_public, moment, moment)


def _new_adapter(record: UploadRecord) -> NewAdapter:
    return NewAdapter(record.id, record.name, Source.UPLOAD, record.created_at)


def _is_unborn(folder: Path) -> bool:
    """Whether a crash came between making a folder and writing its record; the folder is removed then."""
    if not folder.is_dir():
        return False
    for part in folder.glob(f"{RECORD_NAME}*.part"):
        part.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:  # it is not empty
        return False
    return True


def _is_filled(folder: Path) -> bool:
    return (folder / CONFIG_NAME).exists() and (folder / WEIGHTS_NAME).exists()
