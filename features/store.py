"""Where derived files lie: a local folder or an object store, whole files or none, read back as they were written."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from fsspec.core import url_to_fs
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

#: Key of PostgreSQL's advisory lock for writers of the store.
ADVISORY_LOCK = 0x4B61_6972_6F73  # "Kairos"


#: A file that changed less long ago is hashed at every reading.
FRESH_NANOSECONDS = 2_000_000_000


class StoreError(ValueError):
    """A file is missing, is not what was written, or could not be written; the message names file and remedy."""


class Unavailable(StoreError):
    """The store did not answer or refused: nothing is known of its files, so that none may be held for damaged."""


class NotWritten(Unavailable):
    """A file could not be written; what was there before is unchanged."""


#: How the name of a file ends that is being written by who holds the lock; others end in ".tmp" alone.
HELD = ".held.tmp"

#: The remedy for a store that is no folder.
ASK_THE_STORE = "see that the store answers at this address and that its credentials are valid"


@dataclass(frozen=True)
class StoredFile:
    """A file that was written: enough to tell whether it is still the same."""

    name: str
    rows: int
    size: int
    #: `file_checksum` of its bytes.
    checksum: str


def file_checksum(data: bytes) -> str:
    """XXH3-128 of ``data`` in hexadecimal: 30 times as fast as SHA-256, so that every first reading can afford it.

    It finds what a disk, a copy or a hand changed. Who may write the files may write the manifest too, and no hash
    that lies beside them would keep such a person out.
    """
    return str(xxhash.xxh3_128_hexdigest(data))


class Store:
    """Files under one folder or fsspec address, each written whole or not at all.

    Parameters
    ----------
    url : str
        A folder, or any address that fsspec knows (``s3://…``, ``memory://…``).
    """

    def __init__(self, url: str) -> None:
        self.url = str(url)
        self._open()

    def _open(self) -> None:
        self._thread_lock = threading.Lock()
        #: The thread that holds the file lock, if one of this store does.
        self._holder: int | None = None
        #: Files of this machine whose bytes were found right, by path: size and time of change as they were then.
        self._verified: dict[str, tuple[int, int]] = {}
        try:
            self._fs, self._root = url_to_fs(self.url)
        except ImportError as error:  # s3://… without s3fs, and the like
            raise StoreError(f"{self.url} takes a package that is not installed: {error}") from None
        protocols = (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        #: Whether the store is a folder of this machine.
        self.is_local = "file" in protocols

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to open the same store."""
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.url = state["url"]
        self._open()

    def locate(self, path: str) -> str:
        """Full address of ``path``, for messages."""
        return f"{self._root}/{path}"

    def write(self, path: str, data: bytes, rows: int = 0) -> StoredFile:
        """The whole of ``data`` at ``path``, or nothing: renamed into place, or one object put.

        Raises
        ------
        NotWritten
            If the disk is full or the place cannot be written; what was there before is untouched.
        """
        try:
            self._put(path, data)
        except Exception as error:
            if not self._is_store_fault(error):
                raise
            remedy = "free space or mend the folder's permissions" if self.is_local else ASK_THE_STORE
            raise NotWritten(
                f"{self._name(path)} ({len(data):,} bytes) could not be written: {_said(error)}; {remedy}, and try "
                "again. What was there before is unchanged"
            ) from error
        return StoredFile(path.rpartition("/")[2], rows, len(data), file_checksum(data))

    def _put(self, path: str, data: bytes) -> None:
        where = self.locate(path)
        if not self.is_local:
            self._fs.makedirs(where.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(where, data)
            return
        os.makedirs(os.path.dirname(where), exist_ok=True)
        written_by = HELD if self._holder == threading.get_ident() else ".tmp"
        beside = f"{where}.{uuid.uuid4().hex}{written_by}"
        try:
            with open(beside, "wb") as file:
                file.write(data)
            os.replace(beside, where)
        except BaseException:
            if os.path.exists(beside):
                os.remove(beside)
            raise

    def _name(self, path: str) -> str:
        """Where ``path`` lies, with the address of a store that is no folder."""
        return self.locate(path) if self.is_local else f"{self.url.rstrip('/')}/{path}".rstrip("/")

    def _is_store_fault(self, error: Exception) -> bool:
        """Whether the system or the store's driver raised it; drivers raise whatever they like."""
        return isinstance(error, OSError) or not self.is_local

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        """What the store raises becomes a sentence, except that there is no such file."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if not self._is_store_fault(error):
                raise
            remedy = "mend the disk or the permissions" if self.is_local else ASK_THE_STORE
            raise Unavailable(
                f"{self._name(path)} could not be reached: {_said(error)}; {remedy}, and try again"
            ) from error

    def read(self, path: str, expected: StoredFile | None = None) -> bytes:
        """The bytes at ``path``; with ``expected``, only if they are those that were written.

        A file of this machine that was found right, and has not changed since, is not hashed again.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        StoreError
            If the file has another length or other bytes than ``expected``, or (`Unavailable`) if the store does not
            answer.
        """
        state = None
        with self._asking(path):
            if self.is_local:
                with open(self.locate(path), "rb") as file:
                    found = os.fstat(file.fileno())
                    data = file.read()
                state = (found.st_size, found.st_mtime_ns)
            else:
                data = bytes(self._fs.cat_file(self.locate(path)))
        if expected is None:
            return data
        known = f"{path}@{expected.checksum}"
        if state is not None and self._verified.get(known) == state and len(data) == expected.size:
            return data
        if len(data) != expected.size:
            raise StoreError(
                f"{self.locate(path)} has {len(data):,} bytes instead of {expected.size:,}: it was cut short or "
                "written over; run `kairos features rebuild`"
            )
        if file_checksum(data) != expected.checksum:
            raise StoreError(
                f"{self.locate(path)} was altered: its checksum is not the {expected.checksum} of what was written; "
                "run `kairos features rebuild`"
            )
        # Clocks of file systems tick in milliseconds: a file that is still fresh may change without showing it.
        if state is not None and time.time_ns() - state[1] > FRESH_NANOSECONDS:
            self._verified[known] = state
        return data

    def forget(self) -> None:
        """Hash every file again when it is read next."""
        self._verified.clear()

    def list(self, folder: str = "") -> list[str]:
        """Paths of all files under ``folder``, relative to the store, sorted.

        Raises
        ------
        Unavailable
            If the store does not answer.
        """
        self._fs.invalidate_cache()
        root = self._root.lstrip("/")
        where = self.locate(folder) if folder else self._root
        with self._asking(folder):
            found = self._fs.find(where)
            if not found and not self.is_local:
                try:
                    self._fs.ls(where)  # where `find` cannot look, many drivers find nothing
                except FileNotFoundError:
                    return []
        return sorted(path.lstrip("/")[len(root) + 1 :] for path in found)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        try:
            with self._asking(path):
                self._fs.rm_file(self.locate(path))
        except FileNotFoundError:
            return

    def keep_only(self, folder: str, names: Collection[str]) -> None:
        """Remove every file of ``folder`` but these: what no manifest names, a writer that was killed left behind."""
        named = {f"{folder}/{name}" for name in names}
        for path in self.list(folder):
            if path not in named:
                self.remove(path)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with everything in it, if it is there."""
        with self._asking(folder):
            # `exists` is no for a store that does not answer, too.
            if self._fs.exists(self.locate(folder)) if self.is_local else self.list(folder):
                self._fs.rm(self.locate(folder), recursive=True)

    @contextmanager
    def exclusive(self, session: Session | None = None) -> Iterator[None]:
        """One writer at a time: among threads, and among processes.

        A local folder is locked by a file in it. For another store the database of ``session`` is asked, if it is
        PostgreSQL (writers may be on many machines); else a file of this machine, the only one a SQLite file serves.
        """
        with self._thread_lock:
            if not self.is_local and session is not None and session.get_bind().dialect.name == "postgresql":
                with _advisory_lock(session.get_bind().engine):
                    yield
                return
            import fcntl

            if self.is_local:
                os.makedirs(self._root, exist_ok=True)
                place = f"{self._root}/.lock"
            else:
                named = hashlib.sha256(self.url.encode()).hexdigest()[:16]
                place = os.path.join(tempfile.gettempdir(), f"kairos-{named}.lock")
            with open(place, "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.is_local:  # no other holder is at work: what one was writing at the root, a kill left behind
                    for leftover in Path(self._root).glob(f"*{HELD}"):
                        leftover.unlink()
                self._holder = threading.get_ident()
                try:
                    yield
                finally:
                    self._holder = None


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def _advisory_lock(engine: Engine) -> Iterator[None]:
    """PostgreSQL's lock, on a connection of its own: a failed statement of the caller does not keep it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("select pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        try:
            yield
        finally:
            try:
                connection.execute(text("select pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
            except BaseException:
                connection.invalidate()  # closed, and the lock with it, instead of pooled
                raise
