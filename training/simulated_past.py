"""The past of a simulated world as events: purchases, visits, and mail with its answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features import vocabulary
from training.policies.base import FloatArray, IntArray

if TYPE_CHECKING:
    from training.simulation import World

HOUR = 3_600_000_000
DAY = 24 * HOUR
#: Share of past mail at a uniformly random local hour; the rest leaves at 9, 10 or 11.
RANDOM_HOUR_SHARE = 0.2
USUAL_HOURS = (9, 10, 11)
PAST_OPEN_RATE, PAST_CLICK_RATE = 0.22, 0.26
HUMAN_PPM, MACHINE_PPM = 970_000, 20_000
_N_PRODUCTS = 200


@dataclass(frozen=True, slots=True)
class SimulatedEvent:
    """One event, ready for the log once its contact has a key."""

    user_id: str
    kind: str
    #: Microseconds since 1970 UTC.
    occurred_at: int
    message_id: str
    ref: str | None = None
    value_minor: int | None = None
    human_ppm: int | None = None
    is_repeat: bool = False
    properties: dict[str, Any] | None = None


def events_of(world: World) -> list[SimulatedEvent]:
    """Every event of the past and of the days beyond it (mail ends with the past), oldest first."""
    rng = np.random.default_rng([world.seed, 2])
    events: list[SimulatedEvent] = []
    if not world.has_given_orders:
        events += _orders_and_visits(world, rng)
    events += _mail(world, rng)
    events.sort(key=lambda event: event.occurred_at)
    return events


def _events(
    world: World,
    kind: str,
    prefix: str,
    index: IntArray,
    at: IntArray,
    refs: Iterable[str] | None = None,
    values: IntArray | None = None,
) -> list[SimulatedEvent]:
    names = world.user_ids
    ref_list = [None] * len(index) if refs is None else list(refs)
    value_list = [None] * len(index) if values is None else values.tolist()
    return [
        SimulatedEvent(names[i], kind, t, f"{prefix}-{j}", ref, value)
        for j, (i, t, ref, value) in enumerate(zip(index.tolist(), at.tolist(), ref_list, value_list, strict=True))
    ]


def _on_waking_hours(world: World, rng: np.random.Generator, index: IntArray, at: IntArray) -> IntArray:
    """The instants moved, within their local day, to hours at which their contacts are about."""
    cdf = np.cumsum(world.activity[index], axis=1)
    hour = (rng.random((len(index), 1)) * cdf[:, -1:] >= cdf).sum(axis=1)
    midnight = (at + world.offsets(index, at)) // DAY * DAY
    return _to_utc(world, index, midnight + hour * HOUR + rng.integers(0, HOUR, len(index)))


def _to_utc(world: World, index: IntArray, local: IntArray) -> IntArray:
    """UTC instants of local wall-clock times; in a clock change's gap, the hour after it."""
    guess = local - world.offsets(index, local)
    return np.asarray(local - world.offsets(index, guess), dtype=np.int64)


def _orders_and_visits(world: World, rng: np.random.Generator) -> list[SimulatedEvent]:
    n, first, last = len(world.user_ids), world.start, world.start + (world.n_days + world.days_beyond) * DAY
    buyer = world.purchase_contact
    bought_at = _on_waking_hours(world, rng, buyer, world.purchase_at)
    habit = np.exp(rng.normal(np.log(4500), 0.4, n))
    value = np.maximum(100, habit[buyer] * np.exp(rng.normal(0, 0.5, len(buyer)))).astype(np.int64)
    order_ids = [f"o{j:06d}" for j in range(len(buyer))]
    events = _events(world, vocabulary.ORDER_COMPLETED, "order", buyer, bought_at, order_ids, value)
    cancelled = np.flatnonzero(rng.random(len(buyer)) < 0.04)
    whole = rng.random(len(cancelled)) < 0.7
    taken_back = np.where(whole, value[cancelled], value[cancelled] // 3)
    later = bought_at[cancelled] + rng.integers(2 * HOUR, 3 * DAY, len(cancelled))
    which = [order_ids[j] for j in cancelled.tolist()]
    events += _events(world, vocabulary.ORDER_CANCELLED, "cancel", buyer[cancelled], later, which, taken_back)

    # Visits: everyday ones that follow engagement and life, and those of somebody about to buy.
    begin = np.maximum(world.joined_at, first)
    visits = rng.poisson(0.45 * world.engagement * np.maximum(last - begin, 0) / DAY)
    visitor = np.repeat(np.arange(n), visits)
    when = begin[visitor] + (rng.random(len(visitor)) * (last - begin)[visitor]).astype(np.int64)
    kept = rng.random(len(visitor)) < world.vitality(visitor, when)
    visitor = visitor[kept]
    when = _on_waking_hours(world, rng, visitor, when[kept])
    wishes = np.repeat(np.arange(len(buyer)), 1 + rng.poisson(1.5, len(buyer)))
    before = bought_at[wishes] - (rng.exponential(3.0, len(wishes)) * DAY).astype(np.int64)
    wishing = _on_waking_hours(world, rng, buyer[wishes], before)
    wishing = np.where(wishing < bought_at[wishes], wishing, before)
    session_contact = np.concatenate([visitor, buyer[wishes], buyer])
    session_at = np.concatenate([when, wishing, bought_at - rng.integers(6 * 60, 20 * 60, len(buyer)) * 1_000_000])
    role = np.repeat([0, 1, 2], [len(visitor), len(wishes), len(buyer)])
    inside = (session_at >= np.maximum(first, world.joined_at[session_contact])) & (session_at < last)
    session_contact, session_at, role = session_contact[inside], session_at[inside], role[inside]

    def within(rates: FloatArray, low: int, high: int) -> tuple[IntArray, IntArray]:
        session = np.repeat(np.arange(len(role)), rng.poisson(rates[role]))
        return session_contact[session], session_at[session] + rng.integers(low, high, len(session)) * 1_000_000

    prices = rng.integers(500, 9000, _N_PRODUCTS)

    def products(count: int) -> tuple[list[str], IntArray]:
        number = (_N_PRODUCTS * rng.random(count) ** 2).astype(np.int64)
        return [f"p{j:03d}" for j in number.tolist()], prices[number]

    events += _events(world, vocabulary.PAGE, "visit", session_contact, session_at)
    events += _events(world, vocabulary.PAGE, "page", *within(np.array([1.2, 1.5, 2.0]), 5, 240))
    viewed = within(np.array([0.6, 2.0, 2.0]), 10, 300)
    events += _events(world, vocabulary.PRODUCT_VIEWED, "view", *viewed, *products(len(viewed[0])))
    added = within(np.array([0.03, 0.35, 1.2]), 60, 320)
    events += _events(world, vocabulary.PRODUCT_ADDED, "cart", *added, *products(len(added[0])))
    checkout = bought_at - 60_000_000
    events += _events(world, vocabulary.CHECKOUT_STARTED, "checkout", buyer, checkout, order_ids, value)
    return events


def _mail(world: World, rng: np.random.Generator) -> list[SimulatedEvent]:
    """One mail in five or six days to everyone who takes mail, most at the usual hours, some at random ones."""
    days, day = [], 2
    while day < world.n_days:
        days.append(day)
        day += 5 + int(rng.integers(0, 2))
    reachable = np.flatnonzero([contact.email is not None and contact.is_subscribed for contact in world.contacts])
    index = np.tile(reachable, len(days))
    campaign = np.repeat(np.arange(len(days)), len(reachable))
    explored = rng.random(len(index)) < RANDOM_HOUR_SHARE
    hour = np.where(explored, rng.integers(0, 24, len(index)), rng.choice(USUAL_HOURS, len(index)))
    midnight = (world.start // DAY + np.array(days, dtype=np.int64)[campaign]) * DAY
    sent_at = _to_utc(world, index, midnight + hour * HOUR + rng.integers(0, HOUR, len(index)))
    quality = np.exp(rng.normal(0, 0.05, len(days)))[campaign]
    answers = world.answers(
        index,
        sent_at,
        PAST_OPEN_RATE * quality * world.subject_taste[index].mean(axis=1),
        PAST_CLICK_RATE * world.block_taste[index].mean(axis=1),
        rng.random((len(index), 16)),
    )
    left_at = np.full(len(world.user_ids), np.iinfo(np.int64).max)
    leaving = answers.unsubscribe_at >= 0
    np.minimum.at(left_at, index[leaving], answers.unsubscribe_at[leaving])
    end = world.start + world.n_days * DAY
    real = (sent_at > world.joined_at[index]) & (sent_at < np.minimum(left_at[index], end))

    propensity = RANDOM_HOUR_SHARE / 24 + np.where(np.isin(hour, USUAL_HOURS), (1 - RANDOM_HOUR_SHARE) / 3, 0.0)
    local_hour = world.local_hours(index, sent_at)
    again_at = answers.open_at + rng.integers(2 * HOUR, 3 * DAY, len(index))
    again = (answers.open_at >= 0) & (rng.random(len(index)) < 0.3)
    columns = np.stack(
        [
            index, sent_at, campaign, hour, local_hour, explored, answers.machine_open_at, answers.machine_click_at,
            answers.open_at, answers.click_at, np.where(again, again_at, -1), answers.unsubscribe_at,
        ],
        axis=1,
    )[real].tolist()  # fmt: skip
    human = {"rule_version": "simulated", "user_agent_class": "mail_client"}
    machine = {"rule_version": "simulated", "user_agent_class": "proxy"}
    scanner = {"rule_version": "simulated", "user_agent_class": "scanner"}
    events: list[SimulatedEvent] = []
    for chance, row in zip(propensity[real].tolist(), columns, strict=True):
        i, sent, c, assigned, actual, is_random, proxy, scan, opened, clicked, repeated, left = row
        user, ref = world.user_ids[i], f"past-{c + 1}-{i + 1}"
        properties = {
            "campaign_id": f"past-{c + 1}", "template_id": "past", "template_version": 1, "stream": "marketing",
            "assigned_local_hour": assigned, "local_hour": actual, "hour_propensity": chance,
            "hour_reason": "explore" if is_random else "fixed", "decisions": [],
        }  # fmt: skip
        events.append(SimulatedEvent(user, vocabulary.EMAIL_SENT, sent, f"sent-{ref}", ref, properties=properties))
        for kind, at, name, ppm, repeat, says in (
            (vocabulary.EMAIL_OPENED, proxy, "proxy", MACHINE_PPM, False, machine),
            (vocabulary.EMAIL_CLICKED, scan, "scan", MACHINE_PPM, False, scanner),
            (vocabulary.EMAIL_OPENED, opened, "open", HUMAN_PPM, False, human),
            (vocabulary.EMAIL_CLICKED, clicked, "click", HUMAN_PPM, False, human),
            (vocabulary.EMAIL_OPENED, repeated, "again", HUMAN_PPM, True, human),
        ):
            if at >= 0:
                events.append(SimulatedEvent(user, kind, at, f"{name}-{ref}", ref, None, ppm, repeat, says))
        if left >= 0:
            events.append(SimulatedEvent(user, vocabulary.UNSUBSCRIBED, left, f"left-{ref}", ref))
    return events
