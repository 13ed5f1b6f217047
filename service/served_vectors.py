"""A sample of the vectors that requests were answered from, kept for some days to be computed again from the lake."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.checks import ServedVectors
from features.events import IN_CHUNK
from features.lake import splitmix64
from features.online import Served
from features.tables import to_micros
from features.views import ViewSet
from service.database import Database
from service.tables import ErasureRow, ServedVectorRow

log = logging.getLogger(__name__)

#: Vectors are kept this long, and at most so many of them (of 100 columns: 40 MB).
KEEP = timedelta(days=14)
MOST = 50_000
#: A writer of so many looks whether there are too many: a busy day does not wait for the daily round.
PRUNE_EVERY = 5_000
#: Rows of one transaction: no other writer waits long behind it.
CHUNK = 1_000


class VectorLog:
    """Takes down what sampled contacts' vectors were, without ever keeping a request waiting.

    A request leaves its vectors in memory; a thread of its own writes them a little later, many in one transaction.
    What does not fit, or cannot be written, is dropped and counted: a sample bears that, a request would not.

    Parameters
    ----------
    database : Database
    share : float
        Share of the contacts, 0 to 1, that are sampled: by a hash of the contact, so always the same ones.
    wait_seconds : float
        How long vectors gather before they are written.
    capacity : int
        Vectors in memory at most.
    """

    def __init__(self, database: Database, share: float, *, wait_seconds: float = 2.0, capacity: int = 10_000) -> None:
        #: Vectors written, and vectors that were sampled but not written.
        self.written = self.dropped = 0
        self._database = database
        self._share = share
        self._wait_seconds = wait_seconds
        self._capacity = capacity
        self._rows: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._since_prune = 0

    def record(
        self,
        contact_keys: npt.NDArray[np.int64] | Sequence[int],
        as_of: datetime,
        views: ViewSet,
        served: Served,
    ) -> None:
        """Remember these contacts' vectors as they were served; never raises."""
        if not self._share:
            return
        try:
            keys = np.asarray(contact_keys, dtype=np.int64)
            rows = [
                {
                    "contact_key": int(keys[i]),
                    "as_of": as_of,
                    "view_set": views.version,
                    "seq": served.seq,
                    "vector": served.X[i].astype("<f8").tobytes(),
                }
                for i in np.flatnonzero(is_sampled(keys, self._share)).tolist()
            ]
        except Exception:
            log.exception("served vectors cannot be recorded", extra={"action": "vectors_not_recorded"})
            return
        if not rows:
            return
        with self._lock:
            room = max(0, self._capacity - len(self._rows))
            self._rows.extend(rows[:room])
            self.dropped += len(rows) - len(rows[:room])
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vector-log", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Write what is in memory; what the database does not take is dropped and counted."""
        with self._writing:
            while True:
                with self._lock:
                    rows = [self._rows.popleft() for _ in range(min(CHUNK, len(self._rows)))]
                if not rows:
                    return
                try:
                    with self._database.writing() as session:
                        self.written += _insert(session, rows, self._database.is_sqlite)
                    self._since_prune += len(rows)
                    if self._since_prune >= PRUNE_EVERY:
                        self._since_prune = 0
                        prune_served(self._database, max(row["as_of"] for row in rows))
                except Exception as error:  # the sample is worth less than the process
                    self.dropped += len(rows)
                    log.warning(
                        "%d served vectors were not kept: %s", len(rows), error, extra={"action": "vectors_dropped"}
                    )

    def close(self) -> None:
        """Write the rest and let the thread end."""
        self._closing.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self.flush()

    def _run(self) -> None:
        while True:
            self._closing.wait(self._wait_seconds)
            self.flush()
            with self._lock:
                if not self._rows:
                    self._thread = None
                    return


def is_sampled(contact_keys: npt.ArrayLike, share: float) -> npt.NDArray[np.bool_]:
    """Whether each contact is among the sampled ``share``; the high bits of the hash whose low bits name its bucket.

    Examples
    --------
    >>> is_sampled([1, 2, 3, 4], 0.5).tolist(), bool(is_sampled(range(1000), 1.0).all())
    ([False, False, True, True], True)
    """
    return np.asarray((splitmix64(contact_keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share)


def _insert(session: Session, rows: list[dict[str, Any]], is_sqlite: bool) -> int:
    """Rows written: without those of contacts erased meanwhile, and the first only of those alike in key."""
    erased = _erased(session, {row["contact_key"] for row in rows})
    kept = [row for row in rows if row["contact_key"] not in erased]
    if kept:
        insert = (sqlite if is_sqlite else postgresql).insert(ServedVectorRow)
        session.execute(insert.on_conflict_do_nothing(), kept)
    return len(kept)


def _erased(session: Session, contact_keys: Collection[int]) -> set[int]:
    keys = sorted(contact_keys)
    found: set[int] = set()
    for start in range(0, len(keys), IN_CHUNK):
        query = select(ErasureRow.contact_key).where(ErasureRow.contact_key.in_(keys[start : start + IN_CHUNK]))
        found.update(session.scalars(query))
    return found


def read_served(session: Session, most: int = MOST) -> tuple[ServedVectors, set[int]]:
    """The newest served vectors, and which of their contacts were erased meanwhile."""
    columns = (
        ServedVectorRow.contact_key,
        ServedVectorRow.as_of,
        ServedVectorRow.seq,
        ServedVectorRow.view_set,
        ServedVectorRow.vector,
    )
    rows = session.execute(select(*columns).order_by(ServedVectorRow.as_of.desc()).limit(most)).all()
    served = ServedVectors(
        contact_key=np.array([row[0] for row in rows], dtype=np.int64),
        as_of=np.array([to_micros(row[1]) for row in rows], dtype=np.int64),
        seq=np.array([row[2] for row in rows], dtype=np.int64),
        version=[row[3] for row in rows],
        vector=[row[4] for row in rows],
    )
    return served, _erased(session, set(served.contact_key.tolist()))


def prune_served(database: Database, now: datetime, most: int = MOST) -> int:
    """Drop vectors older than `KEEP`, those beyond the ``most`` newest, and those of erased contacts; how many."""
    with database.reading() as session:
        newest = select(ServedVectorRow.as_of).order_by(ServedVectorRow.as_of.desc())
        first_too_many = session.scalar(newest.offset(most).limit(1))
    bound = now - KEEP
    if first_too_many is not None:
        bound = max(bound, first_too_many + timedelta(microseconds=1))
    key = (ServedVectorRow.contact_key, ServedVectorRow.as_of, ServedVectorRow.view_set)
    stale = select(*key).where(ServedVectorRow.as_of < bound).order_by(ServedVectorRow.as_of).limit(CHUNK)
    with database.writing() as session:
        erased = select(ErasureRow.contact_key)
        dropped = _count(session.execute(delete(ServedVectorRow).where(ServedVectorRow.contact_key.in_(erased))))
    while True:
        with database.writing() as session:
            keys = [tuple(row) for row in session.execute(stale)]
            if keys:
                session.execute(delete(ServedVectorRow).where(tuple_(*key).in_(keys)))
        dropped += len(keys)
        if len(keys) < CHUNK:
            return dropped


def forget_served(session: Session, contact_keys: Collection[int]) -> int:
    """Drop every served vector of these contacts; how many there were."""
    keys, dropped = sorted(contact_keys), 0
    for start in range(0, len(keys), IN_CHUNK):
        some = keys[start : start + IN_CHUNK]
        dropped += _count(session.execute(delete(ServedVectorRow).where(ServedVectorRow.contact_key.in_(some))))
    return dropped


def _count(deleted: Any) -> int:
    return int(deleted.rowcount)
