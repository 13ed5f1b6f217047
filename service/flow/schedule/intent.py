"""What a plan is asked for and by which rules, and what it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from service.errors import Invalid
from service.suppression import SNOOZED

MAX_WAVES = 96
#: Longest window: its slots are looked at for every class of contacts.
MAX_WINDOW_DAYS = 31


@dataclass(frozen=True)
class Intent:
    """What is to be sent, before it is known to whom and when.

    Attributes
    ----------
    key : str
        Campaign (or journey version and step): with the contact and the occurrence it makes the intent key.
    window_start, window_end : datetime
        The send leaves in ``[window_start, window_end)``.
    timing : {'best_hour', 'spread', 'at_start'}
        Each contact's best hour; a uniformly random allowed hour; at once.
    waves : int
        Parts, spread evenly over the window, that a send ``at_start`` is cut into, so that each part's arms are drawn
        from what the parts before it have taught. The other timings leave in hourly waves by themselves.
    canary_share : float
        Share of the sends that leaves first; the others wait until the last of it was out for `WATCHED`. It is drawn
        evenly among those not held out whose first allowed hour is early: see `service.flow.schedule.placing`.
    """

    key: str
    template_id: str
    template_version: int
    window_start: datetime
    window_end: datetime
    campaign_id: str | None = None
    stream: str = "marketing"
    topic: str = "marketing"
    timing: str = "best_hour"
    occurrence: str = "1"
    holdout_share: float = 0.0
    waves: int = 1
    canary_share: float = 0.0


@dataclass(frozen=True)
class Economy:
    """What a mail and its consequences are worth, in units of the currency."""

    currency: str
    #: Margin's share of revenue.
    margin_share: float
    mail_cost: float
    unsubscribe_cost: float
    #: Days after a mail in which an order is credited to it.
    attribution_days: int


@dataclass(frozen=True)
class Limits:
    """The installation's rules for the hour and the number of mails."""

    quiet_hours: tuple[int, int] | None
    frequency_cap: int
    rate_per_minute: int
    explore_share: float
    global_holdout: float
    default_timezone: str
    pepper: str
    salt: str
    #: Mails a minute by mailbox provider: `service.mailboxes`.
    mailbox_rates: Mapping[str, int] = field(default_factory=dict)
    #: First day (UTC) of a sending address that is being warmed up.
    warm_up_from: date | None = None
    #: None: human engagement is maximised; else expected profit.
    economy: Economy | None = None
    #: Mails beyond the cap, also the contact's own, that this plan may have: 1 for a correction, for who got the wrong
    #: mail must not go without the right one.
    extra_cap: int = 0
    #: `Settings.sandbox`: the addresses and domains that get any mail; empty allows every one.
    sandbox: str = ""

    @property
    def objective(self) -> str:
        """``engagement`` or ``profit``."""
        return "engagement" if self.economy is None else "profit"


@dataclass(frozen=True)
class Placement:
    """What the plan as a whole comes to.

    Attributes
    ----------
    expected : float or None
        Sum of the planned sends' expected values; None where nothing is expected of anybody.
    expected_unbound : float or None
        What it would be if no slot ran out: the same rules, each contact at its best hour.
    at_most_below : float
        Share by which the joint plan can lie below the best possible one: proven by its prices, usually far less.
    full : tuple of dict
        The slots and days without a place left: ``at``, ``limit`` (relay, rate or warm-up), ``mailbox``, ``mails`` that
        they took, and ``price``: what one more place would have been worth.
    warm_up_days : dict of str to int
        Mailbox providers to whose mailboxes the whole audience cannot leave in the window, with the days it takes.
    zones : dict of str to int
        Contacts whose zone is known, and those that go by the installation's, with the reason.
    """

    objective: str
    expected: float | None
    expected_unbound: float | None
    at_most_below: float
    full: tuple[dict[str, Any], ...]
    warm_up_days: dict[str, int]
    zones: dict[str, int]


@dataclass(frozen=True)
class Sends:
    """One planned send per contact, in arrays of length n_contacts.

    Attributes
    ----------
    state : ndarray of str
        ``planned``, or a terminal state: ``suppressed`` or ``unplaced``.
    reason : ndarray of object
        Why, where the state is terminal; else None.
    due_at : ndarray of int64
        Microseconds since 1970 UTC; the window's start where terminal.
    hour_propensity : ndarray of float64
        Probability with which this plan would choose this local hour again, in (0, 1]; of a wave, this slot. It is
        exact, given everybody else's draws, but where an hour was full: a contact of the joint plan then counts as if
        the plan's prices had chosen its hour, one that drew its hour as if all allowed hours had had room.
    hour_reason : ndarray of object
        ``best``, ``explore`` (drawn evenly, for learning), ``fallback`` (drawn evenly: no hour is known to be better),
        ``fixed`` (at the start; the canary), ``full`` (the wished hour had no place that was worth its price).
    expected_value : ndarray of float64
        What the objective expects of the mail at its hour; NaN where nothing is known, and where not planned.
    """

    intent: Intent
    contact_key: np.ndarray
    state: np.ndarray
    reason: np.ndarray
    due_at: np.ndarray
    timezone: np.ndarray
    assigned_local_hour: np.ndarray
    hour_propensity: np.ndarray
    hour_reason: np.ndarray
    is_holdout: np.ndarray
    is_canary: np.ndarray
    mailbox: np.ndarray
    expected_value: np.ndarray
    placement: Placement

    def __len__(self) -> int:
        return len(self.contact_key)

    def counts(self) -> dict[str, int]:
        """Contacts by state, with the reason behind a colon where there is one."""
        pairs = Counter(zip(self.state.tolist(), self.reason.tolist(), strict=True))
        labels: Counter[str] = Counter()
        for (state, why), count in pairs.items():
            if why is not None and why.startswith(SNOOZED):  # until when is each contact's own
                why = SNOOZED
            labels[state if why is None else f"{state}: {why}"] += count
        return dict(sorted(labels.items()))


def check_intent(intent: Intent, now: datetime) -> None:
    """Whether it can be planned at all.

    Raises
    ------
    Invalid
        If the window is empty, too long or has passed, the timing is not known, or a share is out of bounds.
    """
    if intent.window_end <= intent.window_start:
        raise Invalid(
            f"the window ends at {intent.window_end.isoformat()}, not after its start "
            f"{intent.window_start.isoformat()}; set window_end later"
        )
    if intent.window_end <= now:
        raise Invalid(f"the window ended at {intent.window_end.isoformat()}; it is {now.isoformat()} now")
    if (intent.window_end - intent.window_start).days > MAX_WINDOW_DAYS:
        raise Invalid(
            f"the window lasts {(intent.window_end - intent.window_start).days} days; a plan looks at most "
            f"{MAX_WINDOW_DAYS} days ahead: split the campaign"
        )
    if intent.timing not in ("best_hour", "spread", "at_start"):
        raise Invalid(f"timing {intent.timing!r} is not known; write best_hour, spread or at_start")
    if not 0 <= intent.holdout_share <= 0.9:
        raise Invalid(f"holdout_share {intent.holdout_share} is outside 0 to 0.9")
    if not 0 <= intent.canary_share <= 0.5:
        raise Invalid(f"canary_share {intent.canary_share} is outside 0 to 0.5; 0.05 is enough to see trouble")
    check_waves(intent.waves, intent.timing)


def check_limits(limits: Limits) -> None:
    """Whether anything can leave at all under these rules.

    Raises
    ------
    Invalid
        If a rate is below 1 mail a minute.
    """
    if limits.rate_per_minute < 1:
        raise Invalid(
            f"a rate of {limits.rate_per_minute} mails a minute sends nothing; set at least 1, or stop sending"
        )
    for mailbox, rate in limits.mailbox_rates.items():
        if rate < 1:
            raise Invalid(f"a rate of {rate} mails a minute to {mailbox} sends nothing; set at least 1, or halt it")


def check_waves(waves: int, timing: str) -> None:
    """Whether a send of this timing can be cut into so many waves.

    Raises
    ------
    Invalid
        If there are none or too many, or if the timing has waves of its own.
    """
    if not 1 <= waves <= MAX_WAVES:
        raise Invalid(f"{waves} waves are outside 1 to {MAX_WAVES}; 8 are enough to learn within one send")
    if waves > 1 and timing != "at_start":
        raise Invalid(f"{waves} waves do not go with timing {timing!r}, which leaves in hourly waves; leave waves at 1")


def as_utc(instant: datetime) -> datetime:
    """``instant`` in UTC.

    Raises
    ------
    Invalid
        If it carries no time zone.
    """
    if instant.tzinfo is None:
        raise Invalid(f"{instant.isoformat()} has no time zone; write it as 2026-03-01T09:00:00Z")
    return instant.astimezone(UTC)
