"""Laws of `service.flow.schedule`: when a send leaves, and why one does not."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from sqlalchemy import func, select

from features.tables import from_micros
from service.errors import Conflict, Invalid
from service.flow.predict import Hours
from service.flow.schedule import schedule, write_sends
from service.tables import SendRow
from tests.service.flow.plans import intent, limits

ZONES = ("Europe/London", "America/New_York", "Asia/Kolkata", "Australia/Sydney")


def peak_at(hour: int, n: int) -> Hours:
    probabilities = np.full((n, 24), 0.1)
    probabilities[:, hour] = 0.3
    return Hours(1, "personal", probabilities, ("contact",) * n, np.ones(n, dtype=bool))


@pytest.mark.parametrize(
    "start", ["2026-03-02T09:00:00+00:00", "2026-03-28T12:00:00+00:00", "2026-10-24T12:00:00+00:00"]
)
def test_a_planned_send_lies_in_its_window_and_outside_quiet_hours_in_the_contacts_zone(
    database, add_contacts, now, start
):
    """Also across both changes of the clock, in zones with half-hour offsets."""
    begin = datetime.fromisoformat(start)
    with database.writing() as session:
        keys = np.array(add_contacts(session, 400, zones=ZONES))
        plan = intent(begin, timing="spread")
        sends = schedule(session, plan, keys, None, limits(), now=begin)

    assert set(sends.state) == {"planned"}
    for i in range(len(sends)):
        due = from_micros(sends.due_at[i])
        local = due.astimezone(ZoneInfo(sends.timezone[i]))
        assert plan.window_start <= due < plan.window_end
        assert 7 <= local.hour < 22
        assert local.hour == sends.assigned_local_hour[i]


def test_the_best_allowed_hour_is_chosen_and_its_propensity_is_exact(database, add_contacts, now):
    """With explore share e and k allowed hours the best has probability 1 - e + e/k, any other e/k."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 2000))
        sends = schedule(session, intent(now), keys, peak_at(18, 2000), limits(), now=now)

    best = sends.assigned_local_hour == 18
    allowed = 15
    assert sends.hour_propensity[best] == pytest.approx(0.8 + 0.2 / allowed)
    assert sends.hour_propensity[~best] == pytest.approx(0.2 / allowed)
    assert abs(best.mean() - (0.8 + 0.2 / allowed)) < 4 * np.sqrt(0.19 * 0.81 / 2000)
    assert set(sends.hour_reason[~best]) == {"explore"}


def test_no_hour_is_called_best_where_the_hours_do_not_differ(database, add_contacts, now):
    """Without a usable hour model every allowed hour is equally likely, and the reason says so."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 1500))
        flat = peak_at(18, 1500)
        unusable = Hours(1, "global", flat.probabilities, flat.level, np.zeros(1500, dtype=bool))
        sends = schedule(session, intent(now), keys, unusable, limits(), now=now)

    counts = np.bincount(sends.assigned_local_hour, minlength=24)
    assert set(sends.hour_reason) == {"fallback"}
    assert sends.hour_propensity == pytest.approx(1 / 15)
    assert counts[18] < 1500 / 15 + 5 * np.sqrt(1500 / 15)


def test_no_hour_takes_more_than_the_provider_does(database, add_contacts, now):
    """Two mails a minute are 120 an hour: the rest moves to its next hour, and what finds no room says so."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 500))
        plan = intent(now, window_end=now + timedelta(hours=4))
        sends = schedule(session, plan, keys, peak_at(10, 500), limits(rate_per_minute=2), now=now)

    placed = sends.state == "planned"
    hours = (sends.due_at[placed] // 3_600_000_000).astype(int)
    assert np.bincount(hours - hours.min()).max() <= 120
    assert placed.sum() == 4 * 117  # the throttle earns 98 % of its rate
    assert np.all(sends.hour_propensity > 0)
    assert "full" in set(sends.hour_reason[placed])
    assert set(sends.state[~placed]) == {"unplaced"}
    assert all("full" in reason for reason in sends.reason[~placed])


def test_who_may_not_be_mailed_is_suppressed_with_the_reason(database, add_contacts, now):
    """Without consent no send is placed, and the ledger will say why."""
    with database.writing() as session:
        asked = add_contacts(session, 3, prefix="a")
        silent = add_contacts(session, 2, prefix="b", consent="unsubscribed")
        sends = schedule(session, intent(now), np.array([*asked, *silent]), None, limits(), now=now)

    assert sends.state.tolist() == ["planned"] * 3 + ["suppressed"] * 2
    assert all("unsubscribed" in reason for reason in sends.reason[3:])


def test_the_frequency_cap_counts_the_last_seven_days(database, add_contacts, now):
    """With a cap of one the second campaign of the week reaches nobody, a campaign eight days later everybody."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 20))
        first = schedule(session, intent(now), keys, None, limits(frequency_cap=1), now=now)
        write_sends(session, first, now=now)
        again = intent(now + timedelta(days=2), key="cmp_2")
        later = intent(now + timedelta(days=9), key="cmp_3")
        second = schedule(session, again, keys, None, limits(frequency_cap=1), now=now)
        third = schedule(session, later, keys, None, limits(frequency_cap=1), now=now)

    assert set(second.state) == {"suppressed"}
    assert set(second.reason) == {"frequency cap: 1 mails in 7 days"}
    assert set(third.state) == {"planned"}


def test_a_window_without_an_allowed_hour_leaves_its_sends_unplaced(database, add_contacts, now):
    """A window inside the quiet hours places nobody, and says why."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 5))
        night = now.replace(hour=23)
        plan = intent(night, window_end=night + timedelta(hours=3))
        sends = schedule(session, plan, keys, None, limits(), now=now)

    assert set(sends.state) == {"unplaced"}
    assert set(sends.reason) == {"no allowed hour left in the window"}


def test_the_same_plan_again_is_the_same_plan(database, add_contacts, now):
    """Draws are hashed from the intent and the contact, not taken from a generator."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 300, zones=ZONES))
        one = schedule(session, intent(now), keys, peak_at(18, 300), limits(), now=now)
        two = schedule(session, intent(now), keys, peak_at(18, 300), limits(), now=now)

    assert np.array_equal(one.due_at, two.due_at)
    assert np.array_equal(one.is_holdout, two.is_holdout)


def test_an_intent_enters_the_ledger_once(any_database, add_contacts, now):
    """Scheduling the same intent a second time is refused, and nothing is written twice."""
    with any_database.writing() as session:
        keys = np.array(add_contacts(session, 10))
        sends = schedule(session, intent(now), keys, None, limits(), now=now)
        write_sends(session, sends, now=now)
    with pytest.raises(Conflict, match="cmp_1"), any_database.writing() as session:
        write_sends(session, sends, now=now)

    with any_database.reading() as session:
        assert session.scalar(select(func.count()).select_from(SendRow)) == 10


def test_a_global_holdout_holds_out_the_same_people_from_everything(database, add_contacts, now):
    """Holdouts are drawn by person: two campaigns agree on who is held out."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 1000))
        rule = limits(global_holdout=0.2)
        one = schedule(session, intent(now), keys, None, rule, now=now)
        two = schedule(session, intent(now, key="cmp_9"), keys, None, rule, now=now)

    assert np.array_equal(one.is_holdout, two.is_holdout)
    assert abs(one.is_holdout.mean() - 0.2) < 0.06


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window_end": datetime.fromisoformat("2026-03-02T08:00:00+00:00")}, "ends at"),
        (
            {
                "window_start": datetime.fromisoformat("2026-02-02T08:00:00+00:00"),
                "window_end": datetime.fromisoformat("2026-02-03T08:00:00+00:00"),
            },
            "ended at",
        ),
        ({"timing": "noon"}, "'noon'"),
        ({"holdout_share": 2.0}, "holdout_share 2.0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_value(database, now, changes, words):
    """The message names the value that is wrong."""
    with database.reading() as session, pytest.raises(Invalid, match=words):
        schedule(session, intent(now, **changes), np.array([], dtype=np.int64), None, limits(), now=now)


def test_an_empty_audience_plans_nothing(database, now):
    """No contacts, no sends, no error."""
    with database.writing() as session:
        sends = schedule(session, intent(now), np.array([], dtype=np.int64), None, limits(), now=now)

        assert write_sends(session, sends, now=now) == 0


def test_waves_are_spread_over_the_window_and_the_first_is_small(database, add_contacts, now):
    """A tenth of the contacts first, equal parts afterwards; the wave's probability is the hour's propensity."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 3000))
        plan = intent(now, timing="at_start", waves=4, window_end=now + timedelta(hours=8))
        sends = schedule(session, plan, keys, None, limits(), now=now)
        again = schedule(session, plan, keys, None, limits(), now=now)

    starts, counts = np.unique(sends.due_at, return_counts=True)
    assert [from_micros(at) for at in starts] == [now + timedelta(hours=2 * wave) for wave in range(4)]
    assert np.all(np.abs(counts - 3000 * np.array([0.1, 0.3, 0.3, 0.3])) < 4 * np.sqrt(3000 * 0.21))
    assert sends.hour_propensity == pytest.approx(np.where(sends.due_at == starts[0], 0.1, 0.3))
    assert np.array_equal(again.due_at, sends.due_at)


@pytest.mark.parametrize("minutes", [0, 25])
def test_a_wave_that_meets_quiet_hours_leaves_when_they_end(database, add_contacts, now, minutes):
    """In the contact's own zone, with the waves' probabilities added up where they leave together."""
    begin = now.replace(hour=12, minute=minutes)
    with database.writing() as session:
        keys = np.array(add_contacts(session, 800, zones=ZONES))
        plan = intent(begin, timing="at_start", waves=6, window_end=begin + timedelta(hours=24))
        sends = schedule(session, plan, keys, None, limits(), now=begin)

    assert set(sends.state) == {"planned"}
    for i in range(len(sends)):
        due = from_micros(sends.due_at[i])
        local = due.astimezone(ZoneInfo(sends.timezone[i]))
        assert plan.window_start <= due < plan.window_end
        assert 7 <= local.hour < 22
        assert local.hour == sends.assigned_local_hour[i]
    for zone in ZONES:
        mine = sends.timezone == zone
        at, first = np.unique(sends.due_at[mine], return_index=True)
        assert sends.hour_propensity[mine][first].sum() == pytest.approx(1)
        share = np.array([(sends.due_at[mine] == one).mean() for one in at])
        assert np.abs(share - sends.hour_propensity[mine][first]).max() < 4 * np.sqrt(0.25 / mine.sum())


@pytest.mark.parametrize(("waves", "timing"), [(0, "at_start"), (97, "at_start"), (8, "best_hour"), (2, "spread")])
def test_waves_that_do_not_fit_are_refused(database, add_contacts, now, waves, timing):
    """The message names the number."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 2))
        with pytest.raises(Invalid, match=str(waves)):
            schedule(session, intent(now, timing=timing, waves=waves), keys, None, limits(), now=now)
