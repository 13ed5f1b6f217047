"""The simulated world: its past gives away what a learner may find, and its truth is what it says."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from features import vocabulary
from features.tables import to_micros
from training.simulated_past import HUMAN_PPM, SimulatedEvent
from training.simulation import BLOCKS, DAY, HOUR, SUBJECTS, World

START = datetime(2025, 10, 1, tzinfo=UTC)
LONG_AGO = datetime(2025, 5, 1, tzinfo=UTC)  # before anybody turned away


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(1000, 90, 7, start=START)


@pytest.fixture(scope="module")
def past(world: World) -> list[SimulatedEvent]:
    return world.history(world.end)


def of(past: list[SimulatedEvent], kind: str) -> list[SimulatedEvent]:
    return [event for event in past if event.kind == kind]


def test_the_same_seed_gives_the_same_world() -> None:
    one, other, third = (World.generate(60, 30, seed, start=START) for seed in (3, 3, 4))
    assert one.contacts == other.contacts
    assert one.history(one.end) == other.history(other.end)
    assert one.history(one.end) != third.history(third.end)


def test_the_past_is_ordered_inside_its_bounds_and_grows_with_until(world: World, past: list[SimulatedEvent]) -> None:
    times = [event.occurred_at for event in past]
    assert times == sorted(times)
    assert to_micros(START) <= times[0]
    assert times[-1] < to_micros(world.end)
    half = START + timedelta(days=45)
    assert world.history(half) + world.history(world.end, since=half) == past


def test_every_message_id_is_unique_and_every_mail_event_names_its_send(past: list[SimulatedEvent]) -> None:
    assert len({event.message_id for event in past}) == len(past)
    sends = {event.ref for event in of(past, vocabulary.EMAIL_SENT)}
    for kind in (vocabulary.EMAIL_OPENED, vocabulary.EMAIL_CLICKED, vocabulary.UNSUBSCRIBED):
        assert {event.ref for event in of(past, kind)} <= sends


def test_only_the_vocabularys_kinds_occur(past: list[SimulatedEvent]) -> None:
    counts = Counter(event.kind for event in past)
    assert set(counts) <= set(vocabulary.KINDS)
    assert counts[vocabulary.PAGE] > 20_000
    assert counts[vocabulary.ORDER_COMPLETED] > 400
    assert counts[vocabulary.ORDER_CANCELLED] > 5


def test_addresses_are_on_reserved_domains_and_some_contacts_lack_something(world: World) -> None:
    addresses = [contact.email for contact in world.contacts if contact.email]
    assert all(address.split("@")[1] in {"example.com", "example.org", "example.net"} for address in addresses)
    assert 0 < sum(contact.email is None for contact in world.contacts) < 40
    assert 0 < sum(contact.name is None for contact in world.contacts) < 120
    assert 0 < sum(not contact.is_subscribed for contact in world.contacts) < 100
    assert len({contact.timezone for contact in world.contacts}) == 5


def test_mail_goes_only_to_those_who_take_it_and_stops_when_they_leave(
    world: World, past: list[SimulatedEvent]
) -> None:
    reachable = {contact.user_id for contact in world.contacts if contact.email and contact.is_subscribed}
    left = {event.user_id: event.occurred_at for event in of(past, vocabulary.UNSUBSCRIBED)}
    for event in of(past, vocabulary.EMAIL_SENT):
        assert event.user_id in reachable
        assert event.occurred_at < left.get(event.user_id, to_micros(world.end))
    assert left


def test_a_mails_local_hour_and_propensity_are_what_was_done(world: World, past: list[SimulatedEvent]) -> None:
    sends = of(past, vocabulary.EMAIL_SENT)
    index = world.index_of([event.user_id for event in sends])
    hours = world.local_hours(index, np.array([event.occurred_at for event in sends]))
    properties = [event.properties or {} for event in sends]
    assert hours.tolist() == [says["local_hour"] for says in properties]
    assigned = np.array([says["assigned_local_hour"] for says in properties])
    assert (assigned == hours).mean() > 0.995  # only a clock change's missing hour moves a send
    share = np.bincount(assigned, minlength=24) / len(assigned)
    propensity = dict(zip(assigned.tolist(), (says["hour_propensity"] for says in properties), strict=True))
    assert sum(propensity.values()) == pytest.approx(1.0)
    for hour, chance in propensity.items():
        assert share[hour] == pytest.approx(chance, abs=4 * np.sqrt(chance / len(assigned)))


def test_true_rates_of_the_living_are_near_their_declared_means(world: World) -> None:
    opens = world.true_rates("subject", at=LONG_AGO)
    for name, declared in SUBJECTS.items():
        assert opens[name] == pytest.approx(declared, rel=0.06)
    mean_open = np.mean(list(opens.values()))
    for name, rate in world.true_rates("block", at=LONG_AGO).items():
        assert rate == pytest.approx(BLOCKS[name] * mean_open, rel=0.06)


def test_contacts_answer_as_often_as_the_truth_says(world: World) -> None:
    n = 40_000
    users = [world.user_ids[i % 1000] for i in range(n)]
    sent = [LONG_AGO + timedelta(hours=i // 1000) for i in range(n)]
    names = [f"send:{i}" for i in range(n)]
    answers = world.respond_many(users, sent, subjects=["question"] * n, blocks=["for_you"] * n, occurrences=names)
    index = world.index_of(users)
    hours = world.local_hours(index, np.array([to_micros(at) for at in sent]))
    truth = world.open_probability(users, hours, at=LONG_AGO, subject="question")
    opened = np.array([answer.open_at is not None for answer in answers])
    assert abs(opened.sum() - truth.sum()) < 4 * np.sqrt((truth * (1 - truth)).sum())
    clicked = np.array([answer.click_at is not None for answer in answers])
    assert clicked[opened].mean() == pytest.approx(BLOCKS["for_you"], rel=0.1)
    assert not clicked[~opened].any()


def test_an_answer_depends_on_the_mail_and_not_on_the_order_of_calls(world: World) -> None:
    users, names = world.user_ids[:50], [f"send:{i}" for i in range(50)]
    arguments = {"subjects": ["plain"] * 50, "blocks": ["bestsellers"] * 50}
    together = world.respond_many(users, [world.end] * 50, occurrences=names, **arguments)
    for i in (31, 4, 49, 4):
        alone = world.respond(users[i], world.end, subject="plain", block="bestsellers", occurrence=names[i])
        assert alone == together[i]
    others = world.respond_many(users, [world.end] * 50, occurrences=[f"again:{i}" for i in range(50)], **arguments)
    assert others != together


def test_opens_come_some_three_hours_late_and_machines_within_seconds(world: World) -> None:
    n = 20_000
    answers = world.respond_many(
        [world.user_ids[i % 1000] for i in range(n)],
        [LONG_AGO] * n,
        subjects=["personal"] * n,
        blocks=["for_you"] * n,
        occurrences=[str(i) for i in range(n)],
    )
    delays = [(a.open_at - LONG_AGO).total_seconds() / 3600 for a in answers if a.open_at]
    assert 2.0 < np.median(delays) < 4.5
    machine = [(a.machine_open_at - LONG_AGO).total_seconds() for a in answers if a.machine_open_at]
    assert max(machine) < 10
    assert len(machine) / n == pytest.approx(0.95 * world.on_proxy.mean(), abs=0.02)
    assert all(a.click_at > a.open_at for a in answers if a.click_at)


def test_the_past_shows_the_hour_effect_once_exposure_is_corrected(world: World, past: list[SimulatedEvent]) -> None:
    """Opens per send tell early from late contacts; counts of opens do not, as most mail left at 9-11."""
    sends = {event.ref: event for event in of(past, vocabulary.EMAIL_SENT)}
    opened = {e.ref for e in of(past, vocabulary.EMAIL_OPENED) if e.human_ppm == HUMAN_PPM and not e.is_repeat}
    index = world.index_of([event.user_id for event in sends.values()])
    hour = np.array([event.properties["local_hour"] for event in sends.values()])
    is_open = np.array([ref in opened for ref in sends])
    morning, evening = (hour >= 5) & (hour < 12), (hour >= 17) & (hour < 24)
    truth = world.open_probability(world.user_ids)
    is_early = (truth[:, 5:12].mean(axis=1) > truth[:, 17:24].mean(axis=1))[index]
    for group, better, worse in ((is_early, morning, evening), (~is_early, evening, morning)):
        assert is_open[group & better].mean() > 1.2 * is_open[group & worse].mean()
    assert is_open[~is_early & morning].sum() > is_open[~is_early & evening].sum(), "plain counts mislead"


def test_personal_activity_gives_away_the_personal_hour(world: World, past: list[SimulatedEvent]) -> None:
    pages = of(past, vocabulary.PAGE)
    index = world.index_of([event.user_id for event in pages])
    hours = world.local_hours(index, np.array([event.occurred_at for event in pages]))
    seen = np.zeros((1000, 24))
    np.add.at(seen, (index, hours), 1.0)
    often = seen.sum(axis=1) >= 50
    found = np.corrcoef(
        (seen / np.maximum(seen.sum(axis=1, keepdims=True), 1))[often].ravel(), world.activity[often].ravel()
    )
    assert found[0, 1] > 0.7


def test_who_turned_away_buys_no_more_and_visits_less(world: World, past: list[SimulatedEvent]) -> None:
    dropout = dict(zip(world.user_ids, world.dropout_at.tolist(), strict=True))
    for event in of(past, vocabulary.ORDER_COMPLETED):
        assert event.occurred_at < dropout[event.user_id] + DAY  # the last purchase may move within its day
    visits = np.array([(e.occurred_at - dropout[e.user_id]) / DAY for e in of(past, vocabulary.PAGE)])
    gone = sorted(
        d for d in dropout.values() if d < to_micros(world.end) - 30 * DAY and d > to_micros(START) + 30 * DAY
    )
    assert len(gone) > 50
    before = ((visits > -30) & (visits < -15)).sum()
    after = ((visits > 15) & (visits < 30)).sum()
    assert after < 0.5 * before


def test_hours_are_worth_what_they_capture(world: World) -> None:
    truth = world.open_probability(world.user_ids)
    allowed = list(range(8, 21))
    best = np.array(allowed)[truth[:, allowed].argmax(axis=1)]
    rng = np.random.default_rng(0)
    assert world.hours_report(world.user_ids, best, allowed, 1)["captured_share"] == pytest.approx(1.0)
    random = world.hours_report(world.user_ids, rng.choice(allowed, 1000), allowed, 1)
    assert abs(random["captured_share"]) < 0.15
    assert random["interval"][0] < 0 < random["interval"][1]
    half = np.where(rng.random(1000) < 0.5, best, rng.choice(allowed, 1000))
    report = world.hours_report(world.user_ids, half, allowed, 1)
    assert report["interval"][0] < report["captured_share"] < report["interval"][1]
    assert report["captured_share"] == pytest.approx(0.5, abs=0.1)
    assert report["gain"] > 0


def test_without_an_hour_effect_no_hour_is_better_and_no_gain_is_claimed() -> None:
    flat = World.generate(300, 30, 7, start=START, hour_effect=False)
    truth = flat.open_probability(flat.user_ids)
    np.testing.assert_allclose(truth, truth[:, :1].repeat(24, axis=1))
    report = flat.hours_report(flat.user_ids, np.full(300, 19), range(24), 1)
    assert report["captured_share"] is None
    assert report["claim"] == "no hour effect"
    assert report["gain"] == pytest.approx(0.0)


def test_with_given_orders_contacts_are_those_of_the_file_and_only_mail_is_simulated() -> None:
    orders = pd.DataFrame(
        {
            "user_id": ["17", "9", "17"],
            "ordered_at": pd.to_datetime(["2025-10-03 10:00", "2025-10-05 11:00", "2025-10-20 09:00"], utc=True),
        }
    )
    world = World.generate(0, 60, 7, start=START, orders=orders)
    assert world.user_ids == ("17", "9")
    assert world.contacts[0].timezone == "Europe/London"
    past = world.history(world.end)
    mail = {vocabulary.EMAIL_SENT, vocabulary.EMAIL_OPENED, vocabulary.EMAIL_CLICKED, vocabulary.UNSUBSCRIBED}
    assert {event.kind for event in past} <= mail
    first = {
        "17": to_micros(datetime(2025, 10, 3, 10, tzinfo=UTC)),
        "9": to_micros(datetime(2025, 10, 5, 11, tzinfo=UTC)),
    }
    assert all(event.occurred_at > first[event.user_id] for event in past)
    later = World.generate(0, 60, 7, start=START, orders=orders.iloc[:2])
    assert later.history(world.end) == past, "mail must not know of orders"


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda w: w.index_of(["nobody"]), LookupError, "'nobody' is not in this world"),
        (lambda w: w.true_rates("layout"), ValueError, "choose subject or block"),
        (
            lambda w: w.respond("u000001", START, subject="loud", block="for_you", occurrence="1"),
            ValueError,
            "choose one of plain, question, personal",
        ),
        (lambda w: World.generate(0, 10, 1, start=START), ValueError, "is empty"),
        (
            lambda w: World.generate(0, 10, 1, start=START, orders=pd.DataFrame({"user_id": ["1"]})),
            ValueError,
            "ordered_at",
        ),
        (lambda w: w.hours_report([], [], [9], 1), ValueError, "at least 1"),
    ],
)
def test_what_the_world_does_not_know_is_named(world: World, call: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(world)  # type: ignore[operator]


def test_local_hours_follow_the_clock_change(world: World) -> None:
    london = next(i for i, contact in enumerate(world.contacts) if contact.timezone == "Europe/London")
    change = to_micros(datetime(2025, 10, 26, 0, 30, tzinfo=UTC))
    hours = world.local_hours(np.array([london] * 3), np.array([change, change + HOUR, change + 2 * HOUR]))
    assert hours.tolist() == [1, 1, 2]
