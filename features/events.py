"""The event log: append once, read one contact's events, read on from a watermark."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
from sqlalchemy import Table, bindparam, case, func, insert, or_, select, tuple_, update
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Session

from features.properties import PropertyColumns, hash_ref
from features.tables import CounterRow, EventRow, allocate, current, from_micros
from features.vocabulary import IDENTIFY, KINDS

MINUTE_MICROS = 60_000_000
HOUR_MICROS = 60 * MINUTE_MICROS
DAY_MICROS = 24 * HOUR_MICROS

#: Zone offsets change at whole quarter hours only (every IANA zone since 1973; a test samples it).
QUARTER_MICROS = HOUR_MICROS // 4

#: An event may claim to have happened this long after we received it (a sender's clock running ahead), not longer.
FUTURE_TOLERANCE_MICROS = DAY_MICROS

#: Clocks of two machines may differ by this much; one that is further behind the log's newest event is wrong.
CLOCK_TOLERANCE_MICROS = 5 * 60_000_000

#: Parameters of one ``IN`` query; SQLite allows 32,766 and PostgreSQL 65,535.
IN_CHUNK = 10_000

#: First kinds of every `EventColumns`: the vocabulary, so that known names have one code in a process.
KNOWN_KINDS: tuple[str, ...] = tuple(KINDS)

_LIMITS = {"kind": 80, "message_id": 200, "ref": 120, "identity": 300}
_INT64 = 2**63
_EVENT = cast(Table, EventRow.__table__)

#: 2100-01-01: an instant beyond it is a unit error, not an event.
_END_MICROS = 4_102_444_800_000_000


class ClockWentBackwards(ValueError):
    """The writer's clock is far behind the log's; nothing was stored."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event on its way into the log; `append` gives it its place."""

    contact_key: int
    #: Event name, at most 80 characters.
    kind: str
    #: Microseconds since 1970 UTC.
    occurred_at: int
    #: ``<source>/<the sender's id>``, at most 200 characters: the same id is stored once.
    message_id: str
    #: Name under which it arrived, ``user:…`` or ``anonymous:…``.
    identity: str
    #: What it is about: order id, send id, product id; at most 120 characters.
    ref: str | None = None
    value_minor: int | None = None
    #: Probability x 1e6 that a person opened or clicked.
    human_ppm: int | None = None
    is_repeat: bool = False
    properties: dict[str, Any] | None = None
    #: IANA zone of the contact when it happened; None takes the installation's.
    timezone: str | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did."""

    #: ``seq`` of the first stored event; the others follow without a gap, in the order given. None if none was stored.
    first_seq: int | None
    stored: int
    #: Events whose ``message_id`` was in the log, or earlier in the same batch.
    duplicates: int


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event of the log with its properties parsed."""

    seq: int
    contact_key: int
    kind: str
    occurred_at: int
    received_at: int
    message_id: str
    identity: str
    ref: str | None
    value_minor: int | None
    hour_of_week: int
    human_ppm: int | None
    is_repeat: bool
    is_imported: bool
    properties: dict[str, Any]


@dataclass(frozen=True)
class EventColumns:
    """Events as parallel arrays of shape ``(n_events,)``, sorted by (contact_key, occurred_at, seq)."""

    contact_key: npt.NDArray[np.int64]
    #: Microseconds since 1970 UTC.
    occurred_at: npt.NDArray[np.int64]
    received_at: npt.NDArray[np.int64]
    seq: npt.NDArray[np.int64]
    #: int32 index into ``kinds``.
    kind: npt.NDArray[np.int32]
    #: 0 where the event carries none.
    value_minor: npt.NDArray[np.int64]
    hour_of_week: npt.NDArray[np.int16]
    #: -1 where the event carries none.
    human_ppm: npt.NDArray[np.int32]
    is_repeat: npt.NDArray[np.bool_]
    #: `hash_ref` of the text; 0 where the event carries none.
    ref: npt.NDArray[np.int64]
    #: Names of the codes in ``kind``: the vocabulary first, then custom names.
    kinds: tuple[str, ...] = KNOWN_KINDS
    #: None: they were not read, not even the traits.
    properties: PropertyColumns | None = None

    def __len__(self) -> int:
        return len(self.seq)

    @classmethod
    def empty(cls) -> EventColumns:
        """No events."""
        arrays: dict[str, Any] = {name: np.empty(0, dtype) for name, dtype in COLUMN_TYPES.items()}
        return cls(**arrays, properties=PropertyColumns.empty(0))

    @classmethod
    def concat(cls, parts: Sequence[EventColumns]) -> EventColumns:
        """All events of ``parts``, sorted, their kinds brought to common codes."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls.empty()
        if len(parts) == 1:
            return parts[0].sorted()
        codes = KindCodes()
        arrays: dict[str, npt.NDArray[Any]] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMN_TYPES if name != "kind"
        }
        arrays["kind"] = np.concatenate([codes.encode(part.kinds)[part.kind] for part in parts])
        read = [part.properties for part in parts if part.properties is not None]
        properties = PropertyColumns.concat(read) if len(read) == len(parts) else None
        return cls(**arrays, kinds=codes.kinds, properties=properties).sorted()

    def take(self, index: npt.NDArray[Any] | slice) -> EventColumns:
        """The events at ``index`` (positions, a mask or a slice), in that order."""
        return EventColumns(
            **{name: getattr(self, name)[index] for name in COLUMN_TYPES},
            kinds=self.kinds,
            properties=None if self.properties is None else self.properties.take(index),
        )

    def is_sorted(self) -> bool:
        """True if the events lie by (contact_key, occurred_at, seq)."""
        if len(self) < 2:
            return True
        key, at, seq = self.contact_key, self.occurred_at, self.seq
        same_key = key[1:] == key[:-1]
        if not bool(np.all(key[1:] >= key[:-1])) or not bool(np.all(~same_key | (at[1:] >= at[:-1]))):
            return False
        return bool(np.all(~(same_key & (at[1:] == at[:-1])) | (seq[1:] > seq[:-1])))

    def sorted(self) -> EventColumns:
        """The same events by (contact_key, occurred_at, seq)."""
        if self.is_sorted():
            return self
        return self.take(np.lexsort((self.seq, self.occurred_at, self.contact_key)))

    def of_kind(self, *names: str) -> npt.NDArray[np.bool_]:
        """Mask of the events with one of these names."""
        wanted = np.array([kind in names for kind in self.kinds], dtype=bool)
        return wanted[self.kind]


#: Columns of `EventColumns` and their types, in order.
COLUMN_TYPES: dict[str, type[np.generic]] = {
    "contact_key": np.int64,
    "occurred_at": np.int64,
    "received_at": np.int64,
    "seq": np.int64,
    "kind": np.int32,
    "value_minor": np.int64,
    "hour_of_week": np.int16,
    "human_ppm": np.int32,
    "is_repeat": np.bool_,
    "ref": np.int64,
}
assert set(COLUMN_TYPES) == {field.name for field in fields(EventColumns)} - {"kinds", "properties"}


class KindCodes:
    """Codes for event names: those of the vocabulary are fixed, custom names follow as they come."""

    def __init__(self) -> None:
        self._codes = {name: code for code, name in enumerate(KNOWN_KINDS)}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names so far, by code."""
        return KNOWN_KINDS if len(self._codes) == len(KNOWN_KINDS) else tuple(self._codes)

    def encode(self, names: Sequence[str]) -> npt.NDArray[np.int32]:
        """int32 codes of ``names``, shape ``(len(names),)``."""
        codes = self._codes
        try:
            return np.array([codes[name] for name in names], dtype=np.int32)
        except KeyError:
            return np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int32)


@lru_cache(maxsize=1024)
def zone_of(name: str) -> tzinfo:
    """The IANA zone called ``name``.

    Raises
    ------
    ValueError
        If there is no zone of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, ModuleNotFoundError):
        raise ValueError(f"{name!r} is no IANA time zone; use a name such as 'Europe/London' or 'UTC'") from None


def local_hour_of_week(occurred_at: npt.NDArray[np.int64], timezone: str) -> npt.NDArray[np.int16]:
    """Local hour of the week (0 = Monday 00:00 … 167 = Sunday 23:00) of UTC microseconds in one zone.

    Parameters
    ----------
    occurred_at : ndarray of int64, shape (n_events,)
        Microseconds since 1970 UTC.
    timezone : str
        IANA name.

    Examples
    --------
    >>> local_hour_of_week(np.array([0]), "UTC")  # 1970-01-01 was a Thursday
    array([72], dtype=int16)
    """
    zone = zone_of(timezone)
    local_hours: npt.NDArray[np.int64]
    if timezone == "UTC":
        local_hours = occurred_at // HOUR_MICROS
    else:
        slots, inverse = np.unique(occurred_at // QUARTER_MICROS, return_inverse=True)
        offsets = np.array([_offset_micros(zone, slot) for slot in slots.tolist()], dtype=np.int64)
        local_hours = (occurred_at + offsets[inverse]) // HOUR_MICROS
    return ((local_hours + 72) % 168).astype(np.int16)


def _offset_micros(zone: tzinfo, slot: int) -> int:
    offset = datetime.fromtimestamp(slot * 900, zone).utcoffset()
    assert offset is not None
    return (offset.days * 86_400 + offset.seconds) * 1_000_000


def append(
    session: Session,
    events: Sequence[NewEvent],
    *,
    received_at: int,
    imported: bool = False,
    default_timezone: str = "UTC",
    most_behind: int | None = None,
) -> Appended:
    """Events put at the end of the log, each ``message_id`` once; what was stored and what was known already.

    The log's lock is taken before duplicates are looked for and is held to the caller's commit, so ``seq`` is dense
    and becomes visible in its order. Resolve contacts before you append, so that all writers take their locks in one
    order.

    Parameters
    ----------
    session : Session
        An open writing transaction.
    events : sequence of NewEvent
        In the order in which they shall lie in the log.
    received_at : int
        Microseconds since 1970 UTC from which the events are known. Raised to the newest one in the log, so that known
        time never runs backwards along the log.
    imported : bool
        History: every event counts as known when it occurred; ``received_at`` only bounds what may have occurred.
    default_timezone : str
        IANA zone of events that name none.
    most_behind : int, optional
        Microseconds that ``received_at`` may lie before the log's newest; None takes down what must not be lost.

    Raises
    ------
    ClockWentBackwards
        If ``received_at`` lies further behind.
    ValueError
        If an event lies outside 1970 to 2100, claims to happen more than a day after it was received, names no IANA
        zone, is longer than its column, or carries a number outside its range or properties that are not JSON.
        Nothing is stored then.
    """
    if not events:
        return Appended(None, 0, 0)
    for event in events:
        _validate(event, received_at, imported)
    session.execute(update(CounterRow).where(CounterRow.name == "event_seq").values(value=CounterRow.value))
    if not imported:
        received_at = _advance_clock(session, received_at, most_behind)
    wanted: dict[str, NewEvent] = {}
    for event in events:
        wanted.setdefault(event.message_id, event)
    for message_id in _known_message_ids(session, list(wanted)):
        del wanted[message_id]
    fresh = list(wanted.values())
    if not fresh:
        return Appended(None, 0, len(events))
    hours = _hours_of_week(fresh, default_timezone)
    properties = [_dumped(event) for event in fresh]
    first_seq = allocate(session, "event_seq", len(fresh))
    session.connection().execute(
        insert(_EVENT),
        [
            {
                "contact_key": event.contact_key,
                "occurred_at": event.occurred_at,
                "seq": seq,
                "received_at": event.occurred_at if imported else received_at,
                "kind": event.kind,
                "message_id": event.message_id,
                "ref": event.ref,
                "value_minor": event.value_minor,
                "hour_of_week": hour,
                "human_ppm": event.human_ppm,
                "is_repeat": event.is_repeat,
                "is_imported": imported,
                "identity": event.identity,
                "properties": text,
            }
            for seq, (event, hour, text) in enumerate(zip(fresh, hours, properties, strict=True), first_seq)
        ],
    )
    return Appended(first_seq, len(fresh), len(events) - len(fresh))


def _advance_clock(session: Session, received_at: int, most_behind: int | None) -> int:
    """The instant of receipt that the log takes down: never before that of an event with a smaller ``seq``.

    Two machines' clocks differ by a little, and who reads them may wait for the log's lock; that much is taken out.
    """
    clock = int(
        session.execute(
            update(CounterRow)
            .where(CounterRow.name == "event_clock")
            .values(value=case((CounterRow.value < received_at, received_at), else_=CounterRow.value))
            .returning(CounterRow.value)
        ).scalar_one()
    )
    if most_behind is not None and clock - received_at > most_behind:
        raise ClockWentBackwards(
            f"the clock says {_said(received_at)}, but the log holds events received at {_said(clock)}, more than "
            f"{most_behind // MINUTE_MICROS} minutes later; set this machine's clock right. If it is right (another "
            "machine ran ahead), `kairos db clock --set-back` lets the log follow it"
        )
    return clock


def set_clock_back(session: Session, now: int) -> int:
    """Let the log's clock be ``now`` (µs), where it had run ahead; returns what it was.

    Events received while it ran ahead stay unknown to vectors until that instant has passed.
    """
    was = current(session, "event_clock")
    session.execute(
        update(CounterRow).where(CounterRow.name == "event_clock", CounterRow.value > now).values(value=now)
    )
    return was


def _validate(event: NewEvent, received_at: int, imported: bool) -> None:
    if not 0 <= event.occurred_at < _END_MICROS:
        raise ValueError(
            f"event {event.message_id!r} has occurred_at {event.occurred_at}, outside 1970 to 2100; "
            "pass microseconds since 1970-01-01 UTC"
        )
    if event.occurred_at > received_at + FUTURE_TOLERANCE_MICROS:
        raise ValueError(
            f"event {event.message_id!r} says it happened at {_said(event.occurred_at)}, more than 1 day after it was "
            f"received at {_said(received_at)}; check the sender's clock and the unit of its timestamp"
        )
    for name, text in (
        ("kind", event.kind),
        ("message_id", event.message_id),
        ("identity", event.identity),
        ("ref", event.ref),
    ):
        if text is None:
            continue
        if len(text) > _LIMITS[name] or "\x00" in text or (not text and name != "ref"):
            raise ValueError(
                f"{name} {text[:60]!r} of event {event.message_id[:60]!r} has {len(text)} characters; "
                f"it takes 1 to {_LIMITS[name]}, none of them NUL"
            )
    if event.human_ppm is not None and not 0 <= event.human_ppm <= 1_000_000:
        raise ValueError(f"human_ppm {event.human_ppm} of event {event.message_id!r} is outside 0 to 1,000,000")
    if event.value_minor is not None and not -_INT64 <= event.value_minor < _INT64:
        raise ValueError(f"value_minor {event.value_minor} of event {event.message_id!r} does not fit 64 bits")


def _said(micros: int) -> str:
    try:
        return from_micros(micros).isoformat()
    except OverflowError:
        return f"{micros} µs since 1970"


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _dumped(event: NewEvent) -> str | None:
    if not event.properties:
        return None
    try:
        return _ENCODER.encode(event.properties)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"properties of event {event.message_id!r} are not JSON ({error}); "
            "send finite numbers, texts, lists and objects"
        ) from None


def _known_message_ids(session: Session, message_ids: list[str]) -> Iterator[str]:
    column = _EVENT.c.message_id
    for start in range(0, len(message_ids), IN_CHUNK):
        yield from session.execute(select(column).where(column.in_(message_ids[start : start + IN_CHUNK]))).scalars()


def _hours_of_week(events: Sequence[NewEvent], default_timezone: str) -> list[int]:
    occurred = np.array([event.occurred_at for event in events], dtype=np.int64)
    hours = np.empty(len(events), dtype=np.int16)
    by_zone: dict[str, list[int]] = {}
    for index, event in enumerate(events):
        by_zone.setdefault(event.timezone or default_timezone, []).append(index)
    for zone, indexes in by_zone.items():
        hours[indexes] = local_hour_of_week(occurred[indexes], zone)
    return hours.tolist()


#: What the arrays are made from, in the order of `COLUMN_TYPES`, without nulls but for ``ref``.
_ARRAY_COLUMNS = (
    _EVENT.c.contact_key,
    _EVENT.c.occurred_at,
    _EVENT.c.received_at,
    _EVENT.c.seq,
    _EVENT.c.kind,
    func.coalesce(_EVENT.c.value_minor, 0),
    _EVENT.c.hour_of_week,
    func.coalesce(_EVENT.c.human_ppm, -1),
    _EVENT.c.is_repeat,
    _EVENT.c.ref,
    _EVENT.c.properties,
)
#: The same with the properties of Identify events alone, the contact's traits: parsing the others costs time.
_TRAIT_COLUMNS = (*_ARRAY_COLUMNS[:-1], case((_EVENT.c.kind == IDENTIFY, _EVENT.c.properties)))
_PLACE = (_EVENT.c.contact_key, _EVENT.c.occurred_at, _EVENT.c.seq)
_AFTER = (
    select(*_ARRAY_COLUMNS)
    .where(_EVENT.c.seq > bindparam("after"))
    .order_by(_EVENT.c.seq)
    .limit(bindparam("most", type_=_EVENT.c.seq.type))
)
_OF_CONTACT = {
    with_properties: select(*columns).where(_EVENT.c.contact_key == bindparam("key")).order_by(*_PLACE)
    for with_properties, columns in ((False, _TRAIT_COLUMNS), (True, _ARRAY_COLUMNS))
}
_OF_CONTACTS = {
    with_properties: select(*columns).where(_EVENT.c.contact_key.in_(bindparam("keys", expanding=True)))
    for with_properties, columns in ((False, _TRAIT_COLUMNS), (True, _ARRAY_COLUMNS))
}
_BY_CONTACT = (
    select(*_ARRAY_COLUMNS)
    .where(
        tuple_(*_PLACE) > tuple_(bindparam("key"), bindparam("at"), bindparam("seq")),
        _EVENT.c.seq <= bindparam("upto"),
    )
    .order_by(*_PLACE)
    .limit(bindparam("most", type_=_EVENT.c.seq.type))
)


def read_after(session: Session, seq: int, limit: int) -> tuple[EventColumns, int]:
    """The next ``limit`` events after place ``seq`` of the log as sorted arrays, and the last place read.

    The second value is ``seq`` again where the log has no further event.
    """
    columns = _columns(_rows(session, _AFTER, {"after": seq, "most": limit}))
    return columns, int(columns.seq.max()) if len(columns) else seq


def read_contacts(session: Session, contact_keys: Collection[int], with_properties: bool = False) -> EventColumns:
    """Every event of these contacts as sorted arrays, read by the clustered index.

    Parameters
    ----------
    session : Session
    contact_keys : collection of int
    with_properties : bool
        Also the properties of other events than Identify, which are always read.
    """
    keys = sorted({int(key) for key in contact_keys})
    if len(keys) == 1:
        mine = _rows_at_once(session, _OF_CONTACT[with_properties], {"key": keys[0]})
        return _columns(mine, with_properties, is_sorted=True)
    rows: list[Any] = []
    for start in range(0, len(keys), IN_CHUNK):
        rows += _rows(session, _OF_CONTACTS[with_properties], {"keys": keys[start : start + IN_CHUNK]})
    return _columns(rows, with_properties)


def read_by_contact(session: Session, upto: int, limit: int) -> Iterator[EventColumns]:
    """The whole log up to place ``upto`` in pages of ``limit`` events, by (contact_key, occurred_at, seq).

    The clustered index is read from end to end, which is what suits a reader of most of the log; pages follow one
    another in the order of the arrays.
    """
    place = {"key": -_INT64, "at": 0, "seq": 0}
    while True:
        columns = _columns(_rows(session, _BY_CONTACT, place | {"upto": upto, "most": limit}))
        if len(columns):
            yield columns
        if len(columns) < limit:
            return
        place = {
            "key": int(columns.contact_key[-1]),
            "at": int(columns.occurred_at[-1]),
            "seq": int(columns.seq[-1]),
        }


def _rows(session: Session, query: Any, parameters: dict[str, Any]) -> list[Any]:
    """Plain tuples from the driver: millions of rows pass here, and none of their columns needs a converter."""
    cursor = session.connection().execute(query, parameters).cursor
    assert cursor is not None
    return list(cursor.fetchall())


def _rows_at_once(session: Session, query: Any, parameters: dict[str, Any]) -> list[Any]:
    """The same for a query that is written once in this module, in half the time: its text is made once.

    What SQLAlchemy does around a statement takes longer than SQLite takes to find one contact's events.
    """
    connection = session.connection()
    text, positional = _text(query, connection.dialect)
    cursor = connection.connection.cursor()
    try:
        cursor.execute(text, [parameters[name] for name in positional] if positional is not None else parameters)
        return list(cursor.fetchall())
    except Exception:
        return _rows(session, query, parameters)  # fails in the way that callers expect
    finally:
        cursor.close()


@lru_cache(maxsize=64)
def _text(query: Any, dialect: Dialect) -> tuple[str, list[str] | None]:
    """SQL of ``query`` and the names of its parameters by position; None where the driver takes names."""
    compiled = query.compile(dialect=dialect)
    return str(compiled), compiled.positiontup


def iterate_after(
    session: Session, seq: int, *, kinds: Collection[str] | None = None, page: int = 5_000
) -> Iterator[LoggedEvent]:
    """Every event after place ``seq``, in the log's order, with its properties parsed.

    Parameters
    ----------
    session : Session
        Read page by page, so a long log needs little memory.
    seq : int
        Place of the last event already seen; 0 for all.
    kinds : collection of str, optional
        Only events with these names.
    page : int
        Events fetched at a time.
    """
    upto = current(session, "event_seq")  # what is appended meanwhile is left to the next call
    query = select(*_LOGGED_COLUMNS).where(_EVENT.c.seq > bindparam("after"), _EVENT.c.seq <= upto)
    if kinds is not None:
        query = query.where(_EVENT.c.kind.in_(list(kinds)))
    query = query.order_by(_EVENT.c.seq).limit(page)
    while True:
        rows = _rows(session, query, {"after": seq})
        yield from map(_logged, rows)
        if len(rows) < page:
            return
        seq = rows[-1][0]


def read_of_contacts(
    session: Session, contact_keys: Collection[int], *, kinds: Collection[str], since: int, upto: int
) -> Iterator[LoggedEvent]:
    """Events of these contacts with their properties parsed, read by the clustered index; by contact and time.

    Parameters
    ----------
    session : Session
    contact_keys : collection of int
    kinds : collection of str
        Only events with these names.
    since : int
        Microseconds since 1970 UTC: only what occurred then or later.
    upto : int
        Last place of the log that is read.
    """
    keys = sorted({int(key) for key in contact_keys})
    query = select(*_LOGGED_COLUMNS).where(
        _EVENT.c.occurred_at >= since, _EVENT.c.seq <= upto, _EVENT.c.kind.in_(list(kinds))
    )
    for start in range(0, len(keys), IN_CHUNK):
        some = query.where(_EVENT.c.contact_key.in_(keys[start : start + IN_CHUNK])).order_by(*_PLACE)
        yield from map(_logged, _rows(session, some, {}))


def _logged(row: Any) -> LoggedEvent:
    properties = json.loads(row[13]) if row[13] else {}
    values: list[Any] = [*row[:11], bool(row[11]), bool(row[12]), properties]
    return LoggedEvent(*values)


_LOGGED_COLUMNS = tuple(_EVENT.c[one.name] for one in fields(LoggedEvent))


def head(session: Session) -> int:
    """Place of the newest event of the log; 0 if it is empty."""
    return current(session, "event_seq")


_POSITIONS = select(CounterRow.name, CounterRow.value).where(
    or_(CounterRow.name == bindparam("one"), CounterRow.name == bindparam("other"))
)


def positions(session: Session) -> tuple[int, int]:
    """Place of the newest event, and how often rows were taken out of the log or moved within it."""
    counters: dict[str, int] = dict(_rows_at_once(session, _POSITIONS, {"one": "event_seq", "other": "event_rewrites"}))
    return int(counters.get("event_seq", 0)), int(counters.get("event_rewrites", 0))


_CONTACTS_AFTER = (
    select(_EVENT.c.contact_key).where(_EVENT.c.seq > bindparam("after"), _EVENT.c.seq <= bindparam("upto")).distinct()
)


def contacts_after(session: Session, seq: int, upto: int) -> list[int]:
    """Contacts of the events after place ``seq`` up to place ``upto``."""
    return [key for (key,) in _rows(session, _CONTACTS_AFTER, {"after": seq, "upto": upto})]


def _columns(rows: Sequence[Any], with_properties: bool = True, *, is_sorted: bool = False) -> EventColumns:
    if not rows:
        return EventColumns.empty()
    key, occurred, received, seq, kind, value, hour, human, repeat, ref, properties = zip(*rows, strict=True)
    codes = KindCodes()
    columns = EventColumns(
        contact_key=np.array(key, dtype=np.int64),
        occurred_at=np.array(occurred, dtype=np.int64),
        received_at=np.array(received, dtype=np.int64),
        seq=np.array(seq, dtype=np.int64),
        kind=codes.encode(kind),
        value_minor=np.array(value, dtype=np.int64),
        hour_of_week=np.array(hour, dtype=np.int16),
        human_ppm=np.array(human, dtype=np.int32),
        is_repeat=np.array(repeat, dtype=bool),
        ref=np.array([hash_ref(one) for one in ref], dtype=np.int64),
        kinds=codes.kinds,
        properties=PropertyColumns.parse(properties, is_complete=with_properties),
    )
    return columns if is_sorted else columns.sorted()
