"""How many mails each hour and day takes: the relay's rate, a mailbox provider's rate, and the warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, func, select, type_coerce
from sqlalchemy.orm import Session

from features.events import DAY_MICROS, HOUR_MICROS
from features.tables import from_micros
from service.flow.schedule.assignment import UNLIMITED
from service.flow.schedule.intent import Limits
from service.flow.schedule.window import Window
from service.mailboxes import WARM_UP, warm_up_limit
from service.tables import DepartureRow, SendRow

MINUTE_MICROS = HOUR_MICROS // 60
#: Still to leave: they take a place of their hour and day. What has left is in `DepartureRow`.
UNDER_WAY = ("planned", "claimed", "attempting")
#: Days after which a warm-up that cannot end is no longer counted.
MOST_DAYS = 3650


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
    #: By mailbox provider, what is left to it on each day from the window's first on, as far as the warm-up goes.
    warm_up: Mapping[str, tuple[int | None, ...]]

    @property
    def by_mailbox(self) -> bool:
        """Whether mailbox providers differ."""
        return bool(np.any(self.uses[:, :, 1:] != len(self.places) - 1))

    def days_needed(self, mails: Mapping[str, int]) -> dict[str, int]:
        """Days of the warm-up until so many mails have left to a provider, where more than the first day is needed."""
        needed = {}
        for mailbox, wanted in mails.items():
            left = wanted
            for day, limit in enumerate(self.warm_up.get(mailbox, ()), start=1):
                left -= left if limit is None else limit
                if left <= 0:
                    if day > 1:
                        needed[mailbox] = day
                    break
        return needed


def find_capacity(session: Session, window: Window, mailboxes: tuple[str, ...], limits: Limits) -> Capacity:
    """What is left of the hours and days of the window when everything planned so far has left."""
    n_slots = len(window.slots)
    first_day = int(window.slots[0]) // DAY_MICROS if n_slots else 0
    n_days = (window.end - 1) // DAY_MICROS - first_day + 1
    planned = _planned(session, first_day * DAY_MICROS, (first_day + n_days) * DAY_MICROS)
    # A slot of less than a minute still takes what leaves in it.
    relay = np.maximum(limits.rate_per_minute * window.width // MINUTE_MICROS, 1)
    places = [relay - np.array([planned.get((int(slot), None), 0) for slot in window.slots])]
    names: list[dict[str, Any]] = [
        {"at": from_micros(slot), "limit": f"{limits.rate_per_minute} mails a minute", "mailbox": None}
        for slot in window.slots.tolist()
    ]
    uses = np.full((max(1, len(mailboxes)), n_slots, 3), -1, dtype=np.int64)
    uses[:, :, 0] = np.arange(n_slots)
    for code, mailbox in enumerate(mailboxes):
        rate = limits.mailbox_rates.get(mailbox)
        if rate is None:
            continue
        uses[code, :, 1] = len(names) + np.arange(n_slots)
        taken = np.array([planned.get((int(slot), mailbox), 0) for slot in window.slots])
        places.append(np.maximum(rate * window.width // MINUTE_MICROS, 1) - taken)
        names += [
            {"at": from_micros(slot), "limit": f"{rate} mails a minute", "mailbox": mailbox}
            for slot in window.slots.tolist()
        ]
    warm_up: dict[str, tuple[int | None, ...]] = {}
    if limits.warm_up_from is not None:
        days = np.asarray(window.slots) // DAY_MICROS - first_day
        for code, mailbox in enumerate(mailboxes):
            left = _left_to_warm_up(session, mailbox, first_day, limits.warm_up_from, planned)
            warm_up[mailbox] = left
            uses[code, :, 2] = len(names) + days
            by_day = [left[min(day, len(left) - 1)] for day in range(n_days)]
            places.append(np.array([UNLIMITED if limit is None else limit for limit in by_day]))
            names += [
                {
                    "at": from_micros((first_day + day) * DAY_MICROS),
                    "limit": "warm-up",
                    "mailbox": mailbox,
                }
                for day in range(n_days)
            ]
    uses[uses < 0] = len(names)
    names.append({})
    return Capacity(
        np.maximum(np.concatenate([*places, np.array([UNLIMITED])]), 0).astype(np.int64), uses, tuple(names), warm_up
    )


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


def _left_to_warm_up(
    session: Session, mailbox: str, first_day: int, warm_up_from: date, planned: Mapping[tuple[int, str | None], int]
) -> tuple[int | None, ...]:
    """Mails that each day still takes, from the window's first day to the first one without a limit."""
    began = (warm_up_from - date(1970, 1, 1)) // timedelta(days=1)
    departed: dict[int, int] = dict(
        session.execute(
            select(DepartureRow.day, DepartureRow.mails).where(
                DepartureRow.mailbox == mailbox, DepartureRow.day >= first_day
            )
        ).all()
    )
    for (at, whose), mails in planned.items():
        if whose == mailbox:
            departed[at // DAY_MICROS] = departed.get(at // DAY_MICROS, 0) + mails
    left: list[int | None] = []
    for day in range(first_day, min(max(began + len(WARM_UP), first_day), first_day + MOST_DAYS) + 1):
        limit = warm_up_limit(day - began)
        left.append(None if limit is None else max(0, limit - departed.get(day, 0)))
    return tuple(left)
