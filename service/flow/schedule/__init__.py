"""When: contacts, their hours, consent and caps → sends with `due_at`, one per intent, no arm yet."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
from sqlalchemy.orm import Session

from service.flow.predict import Hours
from service.flow.schedule.capacity import find_capacity
from service.flow.schedule.intent import (
    Economy,
    Intent,
    Limits,
    Placement,
    Sends,
    as_utc,
    check_intent,
    check_limits,
    check_waves,
)
from service.flow.schedule.objective import engagement, profit
from service.flow.schedule.people import CAP_WINDOW_DAYS, COUNTED_STATES, find_people
from service.flow.schedule.placing import NO_SLOT_IN_WINDOW, Draws, place
from service.flow.schedule.window import WATCHED, Waves, Window
from service.flow.schedule.writing import write_sends

#: Plans that are made until none has more mails on a day than its warm-up lets leave; the last one has for sure.
MOST_PLANS = 4

__all__ = [
    "CAP_WINDOW_DAYS",
    "COUNTED_STATES",
    "NO_SLOT_IN_WINDOW",
    "WATCHED",
    "Economy",
    "Intent",
    "Limits",
    "Placement",
    "Sends",
    "Waves",
    "as_utc",
    "check_waves",
    "schedule",
    "write_sends",
]


def schedule(
    session: Session, intent: Intent, contact_keys: np.ndarray, hours: Hours | None, limits: Limits, *, now: datetime
) -> Sends:
    """Sends of ``intent`` to ``contact_keys``: each placed at its hour, or ended with the reason why not.

    Collisions are resolved in this order: consent and suppression, frequency cap and the contact's own pause, quiet
    hours and window, throughput and warm-up, best hour. Where hours run out they go to those to whom they are worth
    most (`assignment.assign`), after the canary and the random-hour share have theirs. Holdouts are placed like any
    other send and trapped at the claim, so that both sides went through the same. Nothing is written.

    Parameters
    ----------
    contact_keys : ndarray of int64, shape (n_contacts,)
        Each once.
    hours : Hours or None
        Rows in the order of ``contact_keys``; None where no send-hour model serves.

    Raises
    ------
    Invalid
        If the window is empty, has passed or is too short for its canary, the timing is not known, or a rate lets
        nothing leave.
    """
    check_intent(intent, now)
    check_limits(limits)
    window = Window.of(intent, now)
    people = find_people(session, intent, contact_keys, limits, window)
    if limits.economy is None:
        values = engagement(hours, len(contact_keys))
    else:
        values = profit(session, contact_keys, hours, limits.economy, now=now)
    capacity = find_capacity(session, window, people.mailboxes, limits, intent.stream, now=now)
    draws = Draws(limits.salt, intent, contact_keys)
    sends = place(people, values, intent, limits, draws, window, capacity)
    for plans in range(2, MOST_PLANS + 1):
        # A day without mail is no step of the warm-up: then the days after it take less than was thought.
        leaves = (sends.state == "planned") & ~sends.is_holdout
        used = capacity.as_used(sends.due_at[leaves], people.mailbox[leaves], for_sure=plans == MOST_PLANS)
        if used is None:
            break
        capacity = used
        sends = place(people, values, intent, limits, draws, window, capacity)
    return replace(sends, contact_key=contact_keys)
