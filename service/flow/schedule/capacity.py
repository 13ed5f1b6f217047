"""How many mails each hour and day takes: the relay's rate, a mailbox provider's rate, and the warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, func, select, type_coerce
from sqlalchemy.orm import Session

from features.events import DAY_MICROS, HOUR_MICROS
from features.tables import from_micros, to_micros
from service.flow.schedule.assignment import UNLIMITED
from service.flow.schedule.intent import Limits
from service.flow.schedule.window import Window
from service.mailboxes import EARNED_SHARE, IDLE_DAYS, WARM_UP, warm_up_limits
from service.tables import DepartureRow, SendRow

MINUTE_MICROS = HOUR_MICROS // 60
#: Still to leave: they take a place of their hour and day. What is being tried or has left is in `DepartureRow`.
UNDER_WAY = ("planned", "claimed")


@dataclass(frozen=True)
class WarmUp:
    """The warm-up to one mailbox provider, without the plan's own mails.

    Attributes
    ----------
    mails : mapping of int to int
        What has left and what is planned, by day since 1970-01-01 UTC.
    first : int
        Number of its first day's resource.
    days : range
        Days of the window.
    """

    mails: Mapping[int, int]
    began: int
    first: int
    days: range

    def places(self, own: Mapping[int, int]) -> list[int]:
        """What each day of the window takes, if the plan has mails on the days of ``own``."""
        together = {**self.mails, **{day: self.mails.get(day, 0) + mails for day, mails in own.items()}}
        limits = warm_up_limits(together, self.days, began=self.began)
        return [
            UNLIMITED if limit is None else max(0, limit - self.mails.get(day, 0))
            for day, limit in zip(self.days, limits, strict=True)
        ]

    def days_needed(self, mails: int) -> int:
        """Days from the window's first on until so many mails have left, if mail leaves on each."""
        together, left = dict(self.mails), mails
        for needed in range(1, len(WARM_UP) + 2):
            day = self.days[0] + needed - 1
            [limit] = warm_up_limits(together, [day], began=self.began)
            left -= left if limit is None else max(0, limit - self.mails.get(day, 0))
            if left <= 0:
                return needed
            together[day] = 1
        return len(WARM_UP) + 1


@dataclass(frozen=True)
class Capacity:
    """Places by resource, and which resources a mail takes.

    Resources are, in this order: the relay's hours, each limited mailbox provider's hours, each provider's days of the
    warm-up, and one that never runs out.

    Attributes
    ----------
    places : ndarray of int64, shape (n_resources,)
        What other campaigns have planned is taken off.
    uses : ndarray of int64, shape (n_mailboxes, n_slots, 3)
    """

    places: np.ndarray
    uses: np.ndarray
    names: tuple[dict[str, Any], ...]
    #: By mailbox provider.
    warm_up: Mapping[str, WarmUp]

    @property
    def by_mailbox(self) -> bool:
        """Whether mailbox providers differ."""
        return bool(np.any(self.uses[:, :, 1:] != len(self.places) - 1))

    def days_needed(self, mails: Mapping[str, int]) -> dict[str, int]:
        """Days of the warm-up until so many mails have left to a provider, where more than the first day is needed."""
        needed = {mailbox: self.warm_up[mailbox].days_needed(count) for mailbox, count in mails.items() if count}
        return {mailbox: days for mailbox, days in needed.items() if days > 1}

    def as_used(self, due: np.ndarray, mailbox: np.ndarray, *, for_sure: bool) -> Capacity | None:
        """Places of the warm-up as mails at ``due`` let it climb, or None if these all have room in it.

        Parameters
        ----------
        due, mailbox : ndarray of int64, shape (n_mails,)
            Instant and provider's number of each mail of the plan.
        for_sure : bool
            Let the warm-up climb by the other mails alone: whatever the plan then places has room.
        """
        places, fits = self.places.copy(), True
        for code, warm_up in enumerate(self.warm_up.values()):
            days, counts = np.unique(due[mailbox == code] // DAY_MICROS, return_counts=True)
            own = dict(zip(days.tolist(), counts.tolist(), strict=True))
            now_are = np.array(warm_up.places(own))
            fits &= all(count <= now_are[day - warm_up.days[0]] for day, count in own.items())
            if for_sure:
                now_are = np.array(warm_up.places({}))
            own_days = slice(warm_up.first, warm_up.first + len(now_are))
            places[own_days] = np.minimum(places[own_days], now_are)
        return None if fits else replace(self, places=places)


def find_capacity(
    session: Session, window: Window, mailboxes: tuple[str, ...], limits: Limits, stream: str, *, now: datetime
) -> Capacity:
    """What is left of the hours and days of the window when everything planned so far has left.

    Transactional mail takes places and is never limited by them. The warm-up's days are those of a plan that has mail
    on each of them: see `Capacity.as_used`.
    """
    n_slots = len(window.slots)
    uses = np.full((max(1, len(mailboxes)), n_slots, 3), -1, dtype=np.int64)
    names: list[dict[str, Any]] = []
    places: list[np.ndarray] = []
    warm_up: dict[str, WarmUp] = {}
    if stream != "transactional":
        planned = _planned(session, int(window.slots[0]), int(window.slots[-1]) + HOUR_MICROS) if n_slots else {}
        _add_hours(uses, names, places, window, limits.rate_per_minute, planned, None, slice(None))
        for code, mailbox in enumerate(mailboxes):
            rate = limits.mailbox_rates.get(mailbox)
            if rate is not None:
                _add_hours(uses, names, places, window, rate, planned, mailbox, slice(code, code + 1))
        if limits.warm_up_from is not None and n_slots:
            days = range(window.begin // DAY_MICROS, (window.end - 1) // DAY_MICROS + 1)
            began = limits.warm_up_from.toordinal() - date(1970, 1, 1).toordinal()
            by_day = _by_day(session, window.end, now)
            for code, mailbox in enumerate(mailboxes):
                warm_up[mailbox] = WarmUp(by_day.get(mailbox, {}), began, len(names), days)
                uses[code, :, 2] = len(names) + np.asarray(window.slots) // DAY_MICROS - days[0]
                places.append(np.array(warm_up[mailbox].places(dict.fromkeys(days, 1))))
                names += [{"at": from_micros(day * DAY_MICROS), "limit": "warm-up", "mailbox": mailbox} for day in days]
    uses[uses < 0] = len(names)
    names.append({})
    places.append(np.array([UNLIMITED]))
    return Capacity(np.maximum(np.concatenate(places), 0).astype(np.int64), uses, tuple(names), warm_up)


def _add_hours(
    uses: np.ndarray, names: list[dict[str, Any]], places: list[np.ndarray], window: Window, rate: int,
    planned: Mapping[tuple[int, str | None], int], mailbox: str | None, codes: slice,
) -> None:  # fmt: skip
    """The window's hours at a rate: what the throttle earns in each, without what is planned."""
    uses[codes, :, 0 if mailbox is None else 1] = len(names) + np.arange(len(window.slots))
    # A slot of less than a minute still takes what leaves in it.
    earned = np.maximum((EARNED_SHARE * rate * window.width / MINUTE_MICROS).astype(np.int64), 1)
    places.append(earned - np.array([planned.get((int(slot), mailbox), 0) for slot in window.slots], dtype=np.int64))
    names += [
        {"at": from_micros(slot), "limit": f"{rate} mails a minute", "mailbox": mailbox}
        for slot in window.slots.tolist()
    ]


def _planned(session: Session, begin: int, end: int) -> dict[tuple[int, str | None], int]:
    """Mails under way by hour and mailbox provider; by hour alone under None."""
    hour = type_coerce(SendRow.due_at, BigInteger) // HOUR_MICROS
    query = (
        select(hour, SendRow.mailbox, func.count())
        .where(SendRow.state.in_(UNDER_WAY), SendRow.due_at >= from_micros(begin), SendRow.due_at < from_micros(end))
        .group_by(hour, SendRow.mailbox)
    )
    counts: dict[tuple[int, str | None], int] = {}
    for at, mailbox, mails in session.execute(query):
        for key in {(int(at) * HOUR_MICROS, mailbox), (int(at) * HOUR_MICROS, None)}:
            counts[key] = counts.get(key, 0) + mails
    return counts


def _by_day(session: Session, end: int, now: datetime) -> dict[str, dict[int, int]]:
    """Mails to each provider that have left or will, by day up to ``end``; what is overdue leaves today."""
    today = to_micros(now) // DAY_MICROS
    counts: dict[str, dict[int, int]] = {}
    since = today - len(WARM_UP) * (IDLE_DAYS + 1)  # farther back lies no warm-up of today
    gone = select(DepartureRow.mailbox, DepartureRow.day, DepartureRow.mails).where(DepartureRow.day >= since)
    day = type_coerce(SendRow.due_at, BigInteger) // DAY_MICROS
    under_way = (
        select(SendRow.mailbox, day, func.count())
        .where(
            SendRow.state.in_(UNDER_WAY),
            SendRow.due_at < from_micros(end),
            SendRow.mailbox.is_not(None),
            SendRow.is_holdout.is_(False),
        )
        .group_by(SendRow.mailbox, day)
    )
    for query, earliest in ((gone, since), (under_way, today)):
        for mailbox, at, mails in session.execute(query):
            of = counts.setdefault(str(mailbox), {})
            of[max(int(at), earliest)] = of.get(max(int(at), earliest), 0) + mails
    return counts
