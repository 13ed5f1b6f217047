"""Which decision an order is credited to, and what is left of the order: a pure function of ledger and log.

An order credits at most one decision of an experiment, among those whose window it falls into: the one whose mail a
person clicked last before the order; without a click the one shown last. It goes by what happened when, never by what
arrived first, so the credit is the same however the log is cut.

A cancellation or refund that names the order takes its value off it, or without a value of its own all of it; an order
is undone once nothing is left. One whose value is in another currency than the reports' cannot be netted, and leaves
the order as it stands. One that names no order known is left aside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from features.events import LoggedEvent
from features.vocabulary import (
    EMAIL_CLICKED,
    HUMAN_PPM,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    ORDER_REFUNDED,
    REWARD_RECEIVED,
)

#: Rewards that orders earn.
ORDERED = ("conversion", "revenue")
#: Properties that hold a value: that of an event without minor units is in another currency.
_TELLING = ("revenue", "total", "value")


@dataclass(frozen=True)
class Shown:
    """A decision that took effect, as the fold needs it."""

    decision_id: str
    experiment_id: str
    arm_id: str
    wave: int
    segment: str
    #: The experiment's reward.
    reward: str
    window_micros: int
    send_id: int | None
    shown_at: int
    contact_key: int
    #: Drawn and not shown, or withheld with its mail: it earns what orders earn, and teaches nobody.
    is_ghost: bool
    context: bytes | None

    def is_inside(self, at: int) -> bool:
        """Whether an instant lies in the reward window."""
        return 0 <= at - self.shown_at <= self.window_micros


@dataclass(frozen=True)
class Order:
    """One order with what was taken back of it."""

    ref: str
    occurred_at: int
    seq: int
    value_minor: int | None
    taken_back_minor: int
    #: When the last of it was taken back; None while something stands.
    undone_at: int | None

    @property
    def stands_minor(self) -> int:
        """Minor units that stand."""
        return 0 if self.undone_at is not None else (self.value_minor or 0) - self.taken_back_minor


@dataclass(frozen=True)
class Earned:
    """A reward that orders, or a caller's report, earned a decision."""

    value: float
    occurred_at: int
    seq: int
    reversed_at: int | None


def orders_of(events: Iterable[LoggedEvent]) -> list[Order]:
    """The orders of one contact, one an order id, at its earliest line."""
    placed: dict[str, LoggedEvent] = {}
    undone: dict[str, list[LoggedEvent]] = defaultdict(list)
    for event in sorted(events, key=_place):
        if event.is_imported:
            continue
        if event.kind == ORDER_COMPLETED:
            placed.setdefault(_ref(event), event)
        elif event.kind in (ORDER_CANCELLED, ORDER_REFUNDED) and event.ref:
            undone[event.ref].append(event)
    return [_netted(ref, event, undone[ref]) for ref, event in placed.items()]


def credited(
    shown: Sequence[Shown], events: Sequence[LoggedEvent], orders: Sequence[Order]
) -> dict[Shown, list[Order]]:
    """The orders that each decision of one contact is credited with.

    Parameters
    ----------
    shown : sequence of Shown
        The contact's decisions.
    events : sequence of LoggedEvent
        Its events, the clicks among them.
    orders : sequence of Order
    """
    clicks = _clicks(shown, events)
    by_experiment: dict[str, list[Shown]] = defaultdict(list)
    for one in shown:
        by_experiment[one.experiment_id].append(one)
    credits: dict[Shown, list[Order]] = defaultdict(list)
    for order in orders:
        for candidates in by_experiment.values():
            inside = [one for one in candidates if one.is_inside(order.occurred_at)]
            if inside:
                credits[max(inside, key=lambda one: _claim(one, order, clicks))].append(order)
    return credits


def earned(
    shown: Sequence[Shown], events: Sequence[LoggedEvent], credits: Mapping[Shown, Sequence[Order]]
) -> dict[tuple[Shown, str], Earned]:
    """Conversion and revenue of each decision: from its credited orders, and from what callers reported for it.

    What is reported adds to what is credited: a purchase that enters as an order is not to be reported as well.
    """
    by_id = {one.decision_id: one for one in shown}
    told: dict[tuple[Shown, str], list[Earned]] = defaultdict(list)
    for one, orders in credits.items():
        for order in orders:
            back = order.undone_at
            told[one, "conversion"].append(Earned(float(back is None), order.occurred_at, order.seq, back))
            if order.value_minor is not None:
                told[one, "revenue"].append(Earned(float(order.stands_minor), order.occurred_at, order.seq, back))
    for event in events:
        reported = by_id.get(event.ref or "") if event.kind == REWARD_RECEIVED else None
        if reported is not None and event.properties["kind"] in ORDERED and reported.is_inside(event.occurred_at):
            kind, value = reported_reward(event)
            told[reported, kind].append(Earned(value, event.occurred_at, event.seq, None))
    return {place: _summed(place[1], parts) for place, parts in told.items()}


def reported_reward(event: LoggedEvent) -> tuple[str, float]:
    """Kind and value of a reward that a caller reported: revenue in minor units, of everything else whether it is."""
    kind, value = str(event.properties["kind"]), float(event.properties["value"])
    if kind == "revenue":
        return kind, value if event.value_minor is None else float(event.value_minor)
    return kind, float(value > 0)


def _netted(ref: str, placed: LoggedEvent, undone: Sequence[LoggedEvent]) -> Order:
    value, taken_back, undone_at = placed.value_minor, 0, None
    for event in undone:
        if event.value_minor is None and any(event.properties.get(name) not in (None, "") for name in _TELLING):
            continue
        back = abs(event.value_minor or 0)
        taken_back = taken_back + back if back and value else value or 0
        if taken_back >= (value or 0):
            undone_at = event.occurred_at
            break
    return Order(ref, placed.occurred_at, placed.seq, value, min(taken_back, value or 0), undone_at)


def _clicks(shown: Sequence[Shown], events: Iterable[LoggedEvent]) -> dict[str, list[int]]:
    """Instants of people's clicks, by decision."""
    by_send: dict[str, list[str]] = defaultdict(list)
    for one in shown:
        if one.send_id is not None:
            by_send[str(one.send_id)].append(one.decision_id)
    clicks: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if event.kind == EMAIL_CLICKED and (event.human_ppm or 0) >= HUMAN_PPM:
            for decision_id in by_send.get(event.ref or "", ()):
                clicks[decision_id].append(event.occurred_at)
        elif event.kind == REWARD_RECEIVED and reported_reward(event) == ("click", 1.0):
            clicks[event.ref or ""].append(event.occurred_at)
    return clicks


def _claim(one: Shown, order: Order, clicks: Mapping[str, Sequence[int]]) -> tuple[int, int, str]:
    """What a decision's claim on an order is compared by: its last click before it, else when it was shown."""
    before = [at for at in clicks.get(one.decision_id, ()) if one.shown_at <= at <= order.occurred_at]
    return max(before, default=-1), one.shown_at, one.decision_id


def _summed(kind: str, parts: Sequence[Earned]) -> Earned:
    first = min(parts, key=lambda part: (part.occurred_at, part.seq))
    total = sum(part.value for part in parts)
    backs = [part.reversed_at for part in parts]
    reversed_at = max(at for at in backs if at is not None) if None not in backs else None
    return Earned(float(total > 0) if kind == "conversion" else total, first.occurred_at, first.seq, reversed_at)


def _place(event: LoggedEvent) -> tuple[int, int]:
    return event.occurred_at, event.seq


def _ref(event: LoggedEvent) -> str:
    """An order's id; one without an id is known by its place in the log."""
    return event.ref or f"#{event.seq}"
