"""One SQL database, SQLite (WAL) or PostgreSQL, behind two doors: reading and writing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from features.tables import from_micros
from service import scrub

MIGRATIONS = Path(__file__).parent / "migrations"

#: Milliseconds a SQLite connection waits for another process's write lock before it gives up.
BUSY_TIMEOUT_MS = 20_000
#: Pages that a reading and the writing connection keep: readers take theirs from the mapped file; a writer changes
#: pages all over the clustered log, and what does not fit is written twice.
READER_CACHE_KIB, WRITER_CACHE_KIB = 16_384, 262_144
MMAP_BYTES = 2**31
#: Pages in the write-ahead log before they are brought into the file: a page changed often is brought over once.
CHECKPOINT_PAGES = 4_000


class Database:
    """The installation's database.

    ``reading()`` and ``writing()`` hand out a session; the latter commits when its block ends and rolls back when it
    raises. On SQLite a writing transaction begins with ``BEGIN IMMEDIATE``, so that it never fails half-way for want
    of the lock, and the writers of one process queue on a fair lock instead of on SQLite's sleeping retries.

    Parameters
    ----------
    url : str
        SQLAlchemy URL: ``sqlite:///…`` or ``postgresql+psycopg://…``.
    is_durable : bool
        False lets SQLite skip its disk flushes: a power cut may then cost the last commits. For throwaway databases.
    """

    def __init__(self, url: str, *, is_durable: bool = True) -> None:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql" and parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError(f"{parsed.get_backend_name()!r} is not supported; DATABASE_URL takes sqlite or postgresql")
        self.url = parsed
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {}
        if self.is_sqlite:
            if parsed.database in (None, "", ":memory:"):
                raise ValueError("an in-memory SQLite database has no second connection; name a file")
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000}
        self.engine: Engine = create_engine(parsed, pool_size=20, max_overflow=40, **options)
        self._write_lock = threading.Lock() if self.is_sqlite else nullcontext()
        self._writer = self._reader = self.engine
        if not self.is_sqlite:  # as SQLite does it: what is committed meanwhile is not seen
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
        if self.is_sqlite:
            event.listen(self.engine, "connect", partial(_configure_sqlite, is_durable, READER_CACHE_KIB))
            event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
            # One writer at a time needs one connection, and keeps its cache from one transaction to the next.
            self._writer = create_engine(parsed, pool_size=1, max_overflow=0, **options)
            event.listen(self._writer, "connect", partial(_configure_sqlite, is_durable, WRITER_CACHE_KIB))
            event.listen(self._writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session whose reads see one state of the database."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that is committed when the block ends."""
        with self._write_lock, Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def upgrade(self) -> None:
        """Bring the tables to the newest migration."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def scrub(self) -> bool:
        """Let no deleted byte stay in the database's files; False if others stood in the way: try again later.

        SQLite zeroes what is deleted, but not the copies that a page keeps when it is split: `service.scrub` does that,
        in a process of its own, while everybody reads and writes. On PostgreSQL dead rows are cleared away, without a
        lock; its pages overwrite the bytes in the course of time.

        Raises
        ------
        RuntimeError
            If the file cannot be scrubbed; the message says why.
        """
        if not self.is_sqlite:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as open_connection:
                open_connection.exec_driver_sql("VACUUM (SKIP_LOCKED)")
            return True
        done = subprocess.run(
            [sys.executable, "-I", scrub.__file__, str(self.url.database)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, scrub.READERS):
            said = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
            raise RuntimeError(f"{self.url.database} could not be scrubbed of what was deleted: {said}")
        return done.returncode == 0

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
        self._writer.dispose()


def database_now(session: Session) -> datetime:
    """The database's own clock, which leases run on: workers' clocks may differ, and business time may be simulated."""
    if session.get_bind().dialect.name == "postgresql":
        query = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint"
    else:
        query = "SELECT CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"
    return from_micros(session.execute(text(query)).scalar_one())


def _configure_sqlite(is_durable: bool, cache_kib: int, connection: Any, _record: Any) -> None:
    # isolation_level None hands BEGIN to us; FULL makes a 200 and an `accepted` survive a power cut.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA synchronous={'FULL' if is_durable else 'OFF'}")
    cursor.execute("PRAGMA foreign_keys=ON")
    # Deleted bytes become zeros, also where SQLite was not built so (costs nothing that can be measured).
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute(f"PRAGMA cache_size=-{cache_kib}")
    cursor.execute(f"PRAGMA mmap_size={MMAP_BYTES}")
    cursor.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    cursor.execute("PRAGMA temp_store=MEMORY")
    cursor.close()
