"""The vector of a contact right now: its rows from the log, the same sweep as training."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from features.events import EventColumns, contacts_after, positions, read_contacts
from features.tables import to_micros
from features.views import ViewSet

#: Events that a cache holds at most (about 90 bytes each).
CACHED_EVENTS = 500_000
#: A cache that fell so many events behind starts anew: reading them costs more than it saves.
LONGEST_CATCH_UP = 5_000


@dataclass(frozen=True)
class Served:
    """Vectors, and what of the log they saw: enough to compute them again from the lake."""

    #: float64, shape (n_contacts, n_columns)
    X: npt.NDArray[np.float64]
    #: Place of the log up to which events entered.
    seq: int


def online_features(
    session: Session,
    contact_keys: Sequence[int],
    as_of: datetime,
    views: ViewSet,
    cache: VectorCache | None = None,
) -> npt.NDArray[np.float64]:
    """Vectors of these contacts at ``as_of``, from the events that the log holds and that were known then.

    Parameters
    ----------
    session : Session
        Its open transaction is what is seen of the log.
    contact_keys : sequence of int
        Repeats are fine; a key without events gets the null rules.
    as_of : datetime
        Aware; usually now.
    views : ViewSet
    cache : VectorCache, optional
        Spares the database the events it has handed out lately; the vectors are the same without it.

    Returns
    -------
    ndarray of float64, shape (n_contacts, n_columns)
        In the order of ``contact_keys``, columns as ``views.names``; bit for bit what `historical_features` gives for
        the same contact and instant once the lake has the same events.
    """
    return served_features(session, contact_keys, as_of, views, cache).X


def served_features(
    session: Session,
    contact_keys: Sequence[int],
    as_of: datetime,
    views: ViewSet,
    cache: VectorCache | None = None,
) -> Served:
    """The same vectors with the place of the log that they saw; parameters as of `online_features`."""
    from features.kernel import sweep  # numba: loaded where it is used

    keys = np.asarray(contact_keys, dtype=np.int64)
    head, rewrites = positions(session)
    if cache is None:
        events = read_contacts(session, contact_keys, views.needs_properties)
    else:
        events = cache.read(session, contact_keys, views.needs_properties, head, rewrites)
    # Where a transaction is no snapshot (PostgreSQL's default), rows may have come in after the head was read.
    if len(events) and int(events.seq.max()) > head:
        events = events.take(events.seq <= head)
    return Served(sweep(events, keys, np.full(len(keys), to_micros(as_of), dtype=np.int64), views), head)


class VectorCache:
    """The events of the contacts that were asked about lately, kept true by reading on in the log.

    Each process may have one: before it answers it reads whose events came into the log since its last answer, from
    whichever process, and forgets those contacts. When rows are taken out of the log it forgets everything.

    Parameters
    ----------
    most_events : int
        The contacts asked about longest ago are forgotten beyond it.
    """

    def __init__(self, most_events: int = CACHED_EVENTS) -> None:
        self._most_events = most_events
        self._lock = threading.Lock()
        self._contacts: OrderedDict[tuple[int, bool], EventColumns] = OrderedDict()
        self._events = 0
        #: The contacts' events are complete up to this place of the log …
        self._seq = 0
        #: … as it was after so many rewrites.
        self._rewrites = 0

    def __len__(self) -> int:
        return len(self._contacts)

    def read(
        self, session: Session, contact_keys: Sequence[int], with_properties: bool, head: int, rewrites: int
    ) -> EventColumns:
        """What `read_contacts` would read, at least up to ``head`` and perhaps beyond it.

        Parameters
        ----------
        session : Session
        contact_keys : sequence of int
        with_properties : bool
        head, rewrites : int
            `positions` of the log in this session's transaction.
        """
        wanted = sorted({int(key) for key in contact_keys})
        found: dict[int, EventColumns] = {}
        with self._lock:
            if self._keep_up(session, head, rewrites):
                for key in wanted:
                    events = self._contacts.get((key, with_properties))
                    if events is not None:
                        self._contacts.move_to_end((key, with_properties))
                        found[key] = events
        missing = [key for key in wanted if key not in found]
        if missing:
            read = read_contacts(session, missing, with_properties)
            edges = np.searchsorted(read.contact_key, [*missing, missing[-1] + 1])
            fresh = {  # positions copy, where a slice that is kept would keep the whole batch
                key: read if len(missing) == 1 else read.take(np.arange(edges[place], edges[place + 1]))
                for place, key in enumerate(missing)
            }
            found |= fresh
            with self._lock:
                # A reader of an older state of the log must not pass it off as the newest.
                if (self._seq, self._rewrites) == (head, rewrites):
                    for key, events in fresh.items():
                        self._remember((key, with_properties), events)
        if len(wanted) == 1:
            return found[wanted[0]]
        return EventColumns.concat([found[key] for key in wanted])

    def _keep_up(self, session: Session, head: int, rewrites: int) -> bool:
        """Forget what is no longer true up to ``head``; False if the session sees an older state than the cache."""
        if rewrites < self._rewrites or head < self._seq:
            return False
        if rewrites > self._rewrites:
            self._forget_everything()
        elif head > self._seq and self._contacts:
            if head - self._seq > LONGEST_CATCH_UP:
                self._forget_everything()
            else:
                for key in contacts_after(session, self._seq, head):
                    for with_properties in (False, True):
                        gone = self._contacts.pop((key, with_properties), None)
                        self._events -= 0 if gone is None else len(gone) + 1
        self._seq, self._rewrites = head, rewrites
        return True

    def _remember(self, place: tuple[int, bool], events: EventColumns) -> None:
        if place in self._contacts or len(events) >= self._most_events:
            return
        self._contacts[place] = events
        self._events += len(events) + 1  # a contact without events takes room too
        while self._events > self._most_events:
            _, gone = self._contacts.popitem(last=False)
            self._events -= len(gone) + 1

    def _forget_everything(self) -> None:
        self._contacts.clear()
        self._events = 0
