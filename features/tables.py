"""What the log and the contacts look like as rows: Base, column types, counters, contacts, identities, events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Boolean, Index, SmallInteger, String, Text, TypeDecorator, select, update
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(instant: datetime) -> int:
    """Microseconds since 1970-01-01 UTC of an aware datetime, exact (no float on the way).

    Raises
    ------
    ValueError
        If ``instant`` carries no time zone.

    Examples
    --------
    >>> to_micros(datetime(1970, 1, 2, tzinfo=UTC))
    86400000000
    """
    if instant.tzinfo is None:
        raise ValueError(f"{instant!r} has no time zone; pass an aware datetime such as datetime.now(UTC)")
    return (instant - EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """Aware UTC datetime of microseconds since 1970-01-01 UTC.

    Examples
    --------
    >>> from_micros(86_400_000_000).isoformat()
    '1970-01-02T00:00:00+00:00'
    """
    return EPOCH + timedelta(microseconds=int(micros))


class UtcMicros(TypeDecorator[datetime]):
    """An aware UTC datetime, kept as int64 microseconds so that both databases order and subtract it alike."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Datetime to microseconds."""
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Microseconds to datetime."""
        return None if value is None else from_micros(value)


Json = JSON()


class Base(DeclarativeBase):
    """Declarative base of every table of the installation."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcMicros(),
        dict[str, Any]: Json,
        list[Any]: Json,
        int: BigInteger,
    }


class CounterRow(Base):
    """A named counter. Raising one locks its row to the commit: this is the lock of the event log."""

    __tablename__ = "counter"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


def allocate(session: Session, name: str, count: int) -> int:
    """First of ``count`` fresh consecutive numbers of the counter ``name``; the counter stays locked to the commit.

    Because the lock is held to the commit, numbers become visible in their order: a reader that has seen number n
    has seen every smaller one. (A PostgreSQL sequence does not promise that.)
    """
    if count < 1:
        raise ValueError(f"cannot allocate {count} numbers of counter {name!r}; ask for at least 1")
    last = session.execute(
        update(CounterRow)
        .where(CounterRow.name == name)
        .values(value=CounterRow.value + count)
        .returning(CounterRow.value)
    ).scalar_one_or_none()
    if last is None:
        raise LookupError(f"counter {name!r} does not exist; run `kairos db upgrade`")
    return int(last) - count + 1


def current(session: Session, name: str) -> int:
    """Last number that the counter ``name`` has given out in a committed transaction (0 if none)."""
    return int(session.execute(select(CounterRow.value).where(CounterRow.name == name)).scalar_one_or_none() or 0)


#: Counters that the migrations create. ``event_clock`` holds the newest ``received_at`` of the log (µs), and
#: ``event_rewrites`` is raised whenever rows of the log are taken out of it.
COUNTERS = (
    "event_seq",
    "contact_key",
    "send_id",
    "link_id",
    "hit_id",
    "consent_id",
    "snapshot_no",
    "event_clock",
    "event_rewrites",
)


class ContactRow(Base):
    """One person. E-mail addresses live in this table and nowhere else."""

    __tablename__ = "contact"

    contact_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: The caller's id, or ``anonymous_id:…`` for a contact that nobody has named yet.
    user_id: Mapped[str] = mapped_column(String(255), unique=True)
    email: Mapped[str | None] = mapped_column(String(320))
    #: IANA zone; None where unknown (the installation's zone then applies).
    timezone: Mapped[str | None] = mapped_column(String(64))
    #: explicit | inferred | import | None
    timezone_source: Mapped[str | None] = mapped_column(String(20))
    #: Newest value of each trait, without the address; their history is the log's Identify events.
    traits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    __table_args__ = (Index("ix_contact_email", "email"),)


class IdentityRow(Base):
    """A name under which events arrive (``user:…`` or ``anonymous:…``) and the contact it stands for."""

    __tablename__ = "identity"

    identity: Mapped[str] = mapped_column(String(300), primary_key=True)
    contact_key: Mapped[int] = mapped_column(index=True)
    created_at: Mapped[datetime]


class EventRow(Base):
    """One thing that happened. Append-only; clustered by contact and time so that one contact is one range read."""

    __tablename__ = "event"

    contact_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Microseconds since 1970 UTC at which it happened.
    occurred_at: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Place in the log: dense, in commit order.
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Microseconds since 1970 UTC from which it was known; equals ``occurred_at`` for imported history.
    received_at: Mapped[int] = mapped_column(BigInteger)
    #: Event name of ``features.vocabulary`` or the caller's own.
    kind: Mapped[str] = mapped_column(String(80))
    #: ``<source>/<the sender's id>``: a second delivery of the same message changes nothing.
    message_id: Mapped[str] = mapped_column(String(200), unique=True)
    #: What it is about: order id, send id, product id.
    ref: Mapped[str | None] = mapped_column(String(120))
    #: Money in minor units of the installation's currency.
    value_minor: Mapped[int | None] = mapped_column(BigInteger)
    #: Local hour of the week (0 = Monday 00:00, 167 = Sunday 23:00) in the contact's zone when it happened.
    hour_of_week: Mapped[int] = mapped_column(SmallInteger)
    #: Probability x 1e6 that a person, not a machine, opened or clicked; None for other kinds.
    human_ppm: Mapped[int | None] = mapped_column(BigInteger)
    #: A further human open or click of a send that already had one.
    is_repeat: Mapped[bool] = mapped_column(Boolean, default=False)
    #: History that was brought in by an import: known when it occurred.
    is_imported: Mapped[bool] = mapped_column(Boolean, default=False)
    #: Identity under which it arrived; survives merges.
    identity: Mapped[str] = mapped_column(String(300))
    properties: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("ux_event_seq", "seq", unique=True), {"sqlite_with_rowid": False})


class ErasureRow(Base):
    """A contact that was erased: its key (which names nobody any more), and whether the files have followed."""

    __tablename__ = "erasure"

    contact_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    requested_at: Mapped[datetime]
    #: When the lake, its snapshots and training sets were rewritten; None while they wait.
    files_done_at: Mapped[datetime | None]
