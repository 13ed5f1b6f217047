"""How many mails may leave now: token buckets and warm-up allowances in the database, shared by all workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import case, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.tables import to_micros
from service.mailboxes import DOMAINS, EARNED_SHARE, IDLE_DAYS, OTHER, WARM_UP, rates_of, warm_up_limits
from service.settings import Settings
from service.tables import DepartureRow, SendRow, ThrottleRow

ALL = "all"

#: What a bucket holds at most, in minutes of its limit (two seconds), and at least one mail.
CAPACITY_MINUTES = 1 / 30
#: A clock that is behind the bucket's by less earns nothing until it has caught up (two workers' clocks differ); one
#: that is further behind was set back, and the bucket follows it: no stall is longer than this.
SET_BACK = timedelta(seconds=60)

_DAY_MICROS = 86_400_000_000


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


@dataclass
class Room:
    """What may leave now; its rows are locked until the transaction ends."""

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
        """Take mails (by mailbox provider) out of the buckets; as departures they count once they are attempted."""
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
    rates = {ALL: settings.send_rate_per_minute, **rates_of(settings.mailbox_rates)}
    query = select(ThrottleRow).where(ThrottleRow.mailbox.in_(rates)).order_by(ThrottleRow.mailbox).with_for_update()
    rows = session.scalars(query.execution_options(populate_existing=True)).all()
    if len(rows) < len(rates):
        fresh = [{"mailbox": name, "tokens": capacity(rate), "counted_at": now} for name, rate in rates.items()]
        session.execute(_insert(session)(ThrottleRow).values(fresh).on_conflict_do_nothing())
        rows = session.scalars(query.execution_options(populate_existing=True)).all()
    tokens, counted_at = {}, {}
    for row in rows:
        tokens[row.mailbox], counted_at[row.mailbox] = earned(row.tokens, row.counted_at, now, rates[row.mailbox])
    return Room(rates, tokens, counted_at, _allowances(session, now, settings))


def _allowances(session: Session, now: datetime, settings: Settings) -> dict[str, int]:
    """What the warm-up lets leave today beside what has left and what a worker holds: its claimed mails."""
    if settings.warm_up_from is None:
        return {}
    today = day_of(now)
    began = settings.warm_up_from.toordinal() - date(1970, 1, 1).toordinal()
    # In this order: what a worker begins meanwhile is counted twice, not missed.
    held: dict[str | None, int] = dict(
        session.execute(
            select(SendRow.mailbox, func.count())
            .where(SendRow.state == "claimed", SendRow.is_holdout.is_(False))
            .group_by(SendRow.mailbox)
        ).all()
    )
    departures: dict[str, dict[int, int]] = {mailbox: {} for mailbox in (*DOMAINS, OTHER)}
    since = today - len(WARM_UP) * (IDLE_DAYS + 1)  # farther back lies no warm-up of today
    rows = session.execute(
        select(DepartureRow.mailbox, DepartureRow.day, DepartureRow.mails).where(
            DepartureRow.day >= since, DepartureRow.day <= today
        )
    )
    for mailbox, day, mails in rows:
        departures.setdefault(mailbox, {})[day] = mails
    allowances: dict[str, int] = {}
    for mailbox, by_day in departures.items():
        [limit] = warm_up_limits(by_day, [today], began=began)
        if limit is not None:
            allowances[mailbox] = max(0, limit - by_day.get(today, 0) - held.get(mailbox, 0))
    return allowances


def count_departures(session: Session, mails: Mapping[str, int], *, now: datetime) -> None:
    """Add mails (by mailbox provider; negative: they did not leave after all) to the day's departures.

    No day falls below 0: what is given back after midnight had left the day before.
    """
    day = day_of(now)
    for mailbox, count in sorted(mails.items()):  # by row: what is added may be negative, what is put in first may not
        if not count:
            continue
        statement = _insert(session)(DepartureRow).values(day=day, mailbox=mailbox, mails=max(0, count))
        after = DepartureRow.mails + count
        session.execute(
            statement.on_conflict_do_update(
                index_elements=[DepartureRow.day, DepartureRow.mailbox],
                set_={"mails": case((after < 0, 0), else_=after)},
            )
        )


def _insert(session: Session) -> Any:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    return dialect.insert
