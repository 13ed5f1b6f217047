"""How many mails may leave now: token buckets and warm-up allowances in the database, shared by all workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.tables import to_micros
from service.mailboxes import DOMAINS, OTHER
from service.settings import Settings
from service.tables import DepartureRow, ThrottleRow

ALL = "all"

#: What a bucket holds at most, in minutes of its limit (two seconds), and at least one mail.
CAPACITY_MINUTES = 1 / 30
#: Share of the limit that is earned. Any 60 s hold at most ``capacity + 0.98 x limit`` claimed mails: the rest up to
#: 1.05 x limit is room for mails that wait two seconds between their claim and their departure.
EARNED_SHARE = 0.98
#: A clock that is behind the bucket's by less earns nothing until it has caught up (two workers' clocks differ); one
#: that is further behind was set back, and the bucket follows it: no stall is longer than this.
SET_BACK = timedelta(seconds=60)

#: Mails a day from the first day on, by mailbox provider; after the last day any number (the ramp that SendGrid gives).
WARM_UP = (
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    7_500,
    10_000,
    15_000,
    20_000,
    30_000,
    40_000,
    55_000,
    70_000,
    100_000,
)
#: After so many days without a mail a provider has forgotten us: the ramp begins again.
IDLE_DAYS = 30

_DAY_MICROS = 86_400_000_000


@lru_cache(maxsize=16)
def mailbox_rates(written: str) -> Mapping[str, int]:
    """Mails a minute by mailbox provider, from the setting ``MAILBOX_RATES``.

    Raises
    ------
    ValueError
        Naming the part that cannot be read.

    Examples
    --------
    >>> mailbox_rates("gmail=600, microsoft=300")
    {'gmail': 600, 'microsoft': 300}
    """
    rates: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in written.split(","))):
        name, _, rate = (word.strip() for word in part.partition("="))
        if name not in DOMAINS and name != OTHER:
            raise ValueError(f"MAILBOX_RATES: {name!r} is no mailbox provider; there are {', '.join(DOMAINS)}, {OTHER}")
        if not rate.isdigit() or int(rate) < 1:
            raise ValueError(
                f"MAILBOX_RATES: {rate!r} mails a minute to {name} cannot be kept; write {name}=N with N at least 1, "
                f"and stop its mail with a halt of mailbox:{name}"
            )
        rates[name] = int(rate)
    return rates


def day_of(instant: datetime) -> int:
    """Days since 1970-01-01 UTC.

    Examples
    --------
    >>> from datetime import UTC
    >>> day_of(datetime(1970, 1, 3, 12, tzinfo=UTC))
    2
    """
    return to_micros(instant) // _DAY_MICROS


def capacity(rate_per_minute: float) -> float:
    """Mails that may leave at once after a pause: two seconds' worth, at least one.

    Examples
    --------
    >>> capacity(6000), capacity(10)
    (200.0, 1.0)
    """
    return max(1.0, rate_per_minute * CAPACITY_MINUTES)


def earned(tokens: float, counted_at: datetime, now: datetime, rate_per_minute: float) -> tuple[float, datetime]:
    """Tokens of a bucket now, and the instant up to which they are counted.

    A jump forward fills the bucket and no more; after one backward it goes on from the new time within `SET_BACK`.
    """
    if now < counted_at:
        return tokens, counted_at if counted_at - now <= SET_BACK else now
    gained = EARNED_SHARE * rate_per_minute * ((now - counted_at) / timedelta(minutes=1))
    return min(tokens + gained, capacity(rate_per_minute)), now


def warm_up_allowance(today: int, departures: Mapping[int, int]) -> int | None:
    """Mails that may still leave today under the warm-up; None: any number.

    The ramp climbs with each day on which mail left: an address that is new for three weeks but never wrote is as cold
    as on its first day.

    Parameters
    ----------
    departures : mapping of int to int
        Mails by day, from the first day of the ramp on.

    Examples
    --------
    >>> warm_up_allowance(20, {18: 50, 19: 80}), warm_up_allowance(20, {20: 30}), warm_up_allowance(60, {18: 50})
    (250, 20, 50)
    """
    step, seen = 0, None
    for day in sorted(day for day, mails in departures.items() if mails > 0 and day < today):
        step = 1 if seen is None or day - seen > IDLE_DAYS else step + 1
        seen = day
    if seen is None or today - seen > IDLE_DAYS:
        step = 0
    return None if step >= len(WARM_UP) else max(0, WARM_UP[step] - departures.get(today, 0))


@dataclass
class Room:
    """What may leave now; its rows are locked until the transaction ends."""

    now: datetime
    rates: Mapping[str, int]
    #: Tokens of ``all`` and of each mailbox provider that has a rate.
    tokens: dict[str, float]
    counted_at: dict[str, datetime]
    #: Mails of today's warm-up left, by mailbox provider, where the ramp still binds.
    allowance: dict[str, int]

    @property
    def most(self) -> int:
        """Mails that may leave now, whoever takes them."""
        return int(self.tokens[ALL])

    def left(self, mailbox: str) -> int | None:
        """Mails that may leave now to one mailbox provider; None: any number."""
        bounds = [int(self.tokens[mailbox])] if mailbox in self.tokens else []
        bounds += [self.allowance[mailbox]] if mailbox in self.allowance else []
        return min(bounds) if bounds else None

    def full(self) -> list[str]:
        """Mailbox providers that can take no mail now."""
        return [mailbox for mailbox in (*DOMAINS, OTHER) if self.left(mailbox) == 0]

    def wait_seconds(self) -> float | None:
        """Seconds until a bucket that is empty earns a mail; None if none is empty."""
        waits = [
            (1.0 - self.tokens[name]) / (EARNED_SHARE * rate / 60)
            for name, rate in self.rates.items()
            if self.tokens[name] < 1.0
        ]
        return max(0.0, min(waits)) if waits else None

    def take(self, session: Session, mails: Counter[str]) -> None:
        """Take mails (by mailbox provider) out of the buckets, and count them as departures of the day."""
        for mailbox, count in mails.items():
            if mailbox in self.tokens:
                self.tokens[mailbox] -= count
            self.tokens[ALL] -= count
        for name, tokens in self.tokens.items():
            session.execute(
                update(ThrottleRow)
                .where(ThrottleRow.mailbox == name)
                .values(tokens=tokens, counted_at=self.counted_at[name])
            )


def open_room(session: Session, *, now: datetime, settings: Settings) -> Room:
    """What may leave now, by the buckets and the warm-up; one worker at a time, to the end of its transaction."""
    rates = {ALL: settings.send_rate_per_minute, **mailbox_rates(settings.mailbox_rates)}
    query = select(ThrottleRow).where(ThrottleRow.mailbox.in_(rates)).order_by(ThrottleRow.mailbox).with_for_update()
    rows = session.scalars(query.execution_options(populate_existing=True)).all()
    if len(rows) < len(rates):
        fresh = [{"mailbox": name, "tokens": capacity(rate), "counted_at": now} for name, rate in rates.items()]
        session.execute(_insert(session)(ThrottleRow).values(fresh).on_conflict_do_nothing())
        rows = session.scalars(query.execution_options(populate_existing=True)).all()
    tokens, counted_at = {}, {}
    for row in rows:
        tokens[row.mailbox], counted_at[row.mailbox] = earned(row.tokens, row.counted_at, now, rates[row.mailbox])
    return Room(now, rates, tokens, counted_at, _allowances(session, now, settings))


def _allowances(session: Session, now: datetime, settings: Settings) -> dict[str, int]:
    if settings.warm_up_from is None:
        return {}
    today = day_of(now)
    first_day = settings.warm_up_from.toordinal() - date(1970, 1, 1).toordinal()
    departures: dict[str, dict[int, int]] = {mailbox: {} for mailbox in (*DOMAINS, OTHER)}
    since = max(min(first_day, today), today - len(WARM_UP) * (IDLE_DAYS + 1))  # farther back lies no ramp of today
    rows = session.execute(
        select(DepartureRow.mailbox, DepartureRow.day, DepartureRow.mails).where(
            DepartureRow.day >= since, DepartureRow.day <= today
        )
    )
    for mailbox, day, mails in rows:
        departures.setdefault(mailbox, {})[day] = mails
    allowances = {mailbox: warm_up_allowance(today, mails) for mailbox, mails in departures.items()}
    return {mailbox: left for mailbox, left in allowances.items() if left is not None}


def count_departures(session: Session, mails: Mapping[str, int], *, now: datetime) -> None:
    """Add mails (by mailbox provider; negative: they did not leave after all) to the day's departures."""
    day = day_of(now)
    rows = [{"day": day, "mailbox": mailbox, "mails": count} for mailbox, count in sorted(mails.items()) if count]
    if rows:
        statement = _insert(session)(DepartureRow).values(rows)
        session.execute(
            statement.on_conflict_do_update(
                index_elements=[DepartureRow.day, DepartureRow.mailbox],
                set_={"mails": DepartureRow.mails + statement.excluded.mails},
            )
        )


def _insert(session: Session) -> Any:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    return dialect.insert
