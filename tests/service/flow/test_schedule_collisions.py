"""Laws of the planner where rules collide: consent, cap and pause, quiet hours, throughput and warm-up, best hour."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from features.events import NewEvent, append
from features.tables import from_micros, to_micros
from service.errors import Invalid
from service.flow.predict import Hours
from service.flow.schedule import Economy, schedule, write_sends
from service.flow.schedule.people import Caps
from service.settings import Settings
from service.suppression import address_hmac, mailable, suppress
from service.tables import ContactRow, DepartureRow, PredictionRow, PreferenceRow, SendRow
from service.throttle import count_departures, open_room
from tests.service.flow.plans import intent, limits

HOUR = timedelta(hours=1)


def curves(peaks: list[int], level: float = 0.1) -> Hours:
    n = len(peaks)
    probabilities = np.full((n, 24), level)
    probabilities[np.arange(n), peaks] = 3 * level
    return Hours(1, "personal", probabilities, ("contact",) * n, np.ones(n, dtype=bool))


def test_the_planner_bars_whom_the_claim_would_bar_and_says_the_same(any_database, add_contacts, now):
    """Consent, suppression, no address, no contact: reason by reason as `mailable`, on both databases."""
    with any_database.writing() as session:
        keys = [
            *add_contacts(session, 4, prefix="a"),
            *add_contacts(session, 2, prefix="b", consent="unsubscribed"),
            *add_contacts(session, 2, prefix="c", consent="unknown"),
        ]
        session.execute(update(ContactRow).where(ContactRow.contact_key == keys[1]).values(email=None))
        for prefix, reason in (("a2", "hard_bounce"), ("a3", "unsubscribed"), ("b0", "complaint")):
            hmacs = [address_hmac("pepper", f"{prefix}@example.com")]
            suppress(session, hmacs, reason=reason, source="test", now=now)
        asked = np.array([keys[-1] + 1000, *keys])
        for stream in ("marketing", "transactional"):
            sends = schedule(session, intent(now, stream=stream), asked, None, limits(), now=now)
            expected = mailable(session, asked.tolist(), "marketing", pepper="pepper", stream=stream)

            assert sends.reason.tolist() == [expected[key] for key in asked.tolist()]


def test_the_planner_and_the_claim_tell_the_same_reason_where_several_hold(any_database, add_contacts, now):
    """Suppression goes before the sandbox, and a break that outlasts the window is told in the same words."""
    with any_database.writing() as session:
        keys = add_contacts(session, 3, prefix="a")
        suppress(session, [address_hmac("pepper", "a0@example.com")], reason="hard_bounce", source="test", now=now)
        snooze = now + timedelta(days=30)
        session.add(PreferenceRow(contact_key=keys[2], snoozed_until=snooze, updated_at=now))
        session.flush()
        box = "a2@example.com"
        sends = schedule(session, intent(now), np.array(keys), None, limits(sandbox=box), now=now)
        expected = mailable(session, keys, "marketing", pepper="pepper", sandbox=box, now=now)

    assert sends.reason.tolist() == [expected[key] for key in keys]
    assert [reason.split()[0] for reason in sends.reason] == ["address", "sandbox:", "snoozed"]
    assert sends.counts()["suppressed: snoozed"] == 1


def test_a_contacts_own_cap_and_pause_go_before_the_installations(database, add_contacts, now):
    """One wants a mail a week and has had it; one sleeps past the window; one wakes inside it and is placed after."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 4))
        first = schedule(session, intent(now), keys, None, limits(), now=now)
        write_sends(session, first, now=now)
        wakes = now + timedelta(days=2, hours=20)
        for row in (
            PreferenceRow(contact_key=int(keys[0]), most_per_week=1, updated_at=now),
            PreferenceRow(contact_key=int(keys[1]), snoozed_until=now + timedelta(days=30), updated_at=now),
            PreferenceRow(contact_key=int(keys[2]), snoozed_until=wakes, updated_at=now),
        ):
            session.add(row)
        session.flush()
        plan = intent(now + timedelta(days=2), key="cmp_2", timing="spread", window_end=now + timedelta(days=4))
        sends = schedule(session, plan, keys, None, limits(), now=now)

    assert sends.reason[0] == "the contact's own cap: 1 mails in 7 days"
    assert sends.reason[1].startswith("snoozed until ")
    assert sends.state.tolist() == ["suppressed", "suppressed", "planned", "planned"]
    assert from_micros(sends.due_at[2]) >= wakes


def test_a_mail_planned_for_later_in_the_week_keeps_its_place_under_the_cap(database, add_contacts, now):
    """Any seven days count, also those that end after the new mail."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 5))
        later = schedule(session, intent(now + timedelta(days=3)), keys, None, limits(frequency_cap=1), now=now)
        write_sends(session, later, now=now)
        sooner = schedule(session, intent(now, key="cmp_2"), keys, None, limits(frequency_cap=1), now=now)

    assert set(sooner.reason) == {"frequency cap: 1 mails in 7 days"}


def test_a_cap_that_frees_itself_inside_the_window_delays_the_mail(database, add_contacts, now):
    """The window of nine days begins under the cap; the mail leaves when the old one is seven days old."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 20))
        old = schedule(session, intent(now), keys, None, limits(frequency_cap=1), now=now)
        write_sends(session, old, now=now)
        plan = intent(now + HOUR * 24, key="cmp_2", timing="spread", window_end=now + timedelta(days=10))
        sends = schedule(session, plan, keys, None, limits(frequency_cap=1), now=now)

    assert set(sends.state) == {"planned"}
    assert np.all(sends.due_at - old.due_at >= 7 * 86_400_000_000)


def test_hours_that_other_campaigns_have_taken_are_counted_off(any_database, add_contacts, now):
    """Two mails a minute: what the first campaign has planned in an hour is missing to the second."""
    with any_database.writing() as session:
        keys = np.array(add_contacts(session, 300))
        rule = limits(rate_per_minute=2, frequency_cap=0)
        plan = intent(now, window_end=now + HOUR * 2)
        first = schedule(session, plan, keys[:200], curves([10] * 200), rule, now=now)
        write_sends(session, first, now=now)
        other = intent(now, key="cmp_2", window_end=now + HOUR * 2)
        second = schedule(session, other, keys[200:], curves([10] * 100), rule, now=now)

    due = np.concatenate([first.due_at, second.due_at[second.state == "planned"]])
    assert np.bincount((due - to_micros(now)) // 3_600_000_000).max() <= 120
    # The throttle earns 98 % of its rate: 117 in the hour.
    assert np.bincount((due - to_micros(now)) // 3_600_000_000).max() == 117
    assert (second.state == "planned").sum() == 34
    assert {full["limit"] for full in second.placement.full} == {"2 mails a minute"}


def test_warm_up_lets_the_most_engaged_go_first_and_counts_what_has_left(any_database, add_contacts, now):
    """50 mails on the first day of a new address, 20 of which have gone; the plan says how many days it would take."""
    with any_database.writing() as session:
        keys = np.array(add_contacts(session, 400))
        session.add(DepartureRow(day=to_micros(now) // 86_400_000_000, mailbox="other", mails=20))
        session.flush()
        hours = curves([12] * 400)
        hours.probabilities[:] *= np.linspace(0.1, 3, 400)[:, None]
        rule = limits(warm_up_from=now.date(), explore_share=0.0)
        sends = schedule(session, intent(now, window_end=now + HOUR * 8), keys, hours, rule, now=now)

    placed = np.flatnonzero(sends.state == "planned")
    assert placed.tolist() == list(range(370, 400))
    assert set(sends.reason[:370]) == {"the window's days are full: a new sending address is warmed up to other"}
    # 30 today, then 100 and 250 make 380 of 400: the fourth day.
    assert sends.placement.warm_up_days == {"other": 4}
    assert any(full["limit"] == "warm-up" and full["price"] > 0 for full in sends.placement.full)


def test_a_mailbox_providers_rate_binds_its_own_mails_alone(database, add_contacts, now):
    """One mail a minute to Gmail is 58 in the hour, for the throttle earns 98 % of it; everybody else leaves."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 200))
        for key in keys[:100].tolist():
            session.execute(update(ContactRow).where(ContactRow.contact_key == key).values(email=f"k{key}@gmail.com"))
        plan = intent(now, window_end=now + HOUR)
        sends = schedule(session, plan, keys, curves([9] * 200), limits(mailbox_rates={"gmail": 1}), now=now)

    assert (sends.state[:100] == "planned").sum() == 58
    assert set(sends.state[100:]) == {"planned"}
    assert sends.mailbox[[0, 150]].tolist() == ["gmail", "other"]


def test_the_random_hour_share_is_reserved_before_the_joint_plan(database, add_contacts, now):
    """However tight the best hour: explorers keep the hour that they drew, and it is drawn evenly."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 1500))
        rule = limits(rate_per_minute=3, explore_share=0.2)
        sends = schedule(session, intent(now), keys, curves([18] * 1500), rule, now=now)

    explored = sends.hour_reason == "explore"
    assert abs(explored.mean() - 0.2) < 0.05
    counts = np.bincount(sends.assigned_local_hour[explored], minlength=24)[7:22]
    assert np.all(np.abs(counts - explored.sum() / 15) < 5 * np.sqrt(explored.sum() / 15))
    assert (sends.assigned_local_hour == 18).sum() == 176
    assert sends.placement.expected < sends.placement.expected_unbound


def test_clocks_that_jump_leave_each_mail_once_in_its_hour(database, add_contacts, now):
    """A skipped hour gives its first valid instant, a repeated one its first occurrence (London 2026)."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 60))
        rule = limits(quiet_hours=None, explore_share=0.0)
        spring = datetime.fromisoformat("2026-03-28T18:00:00+00:00")
        skipped = schedule(session, intent(spring), keys, curves([1] * 60), rule, now=spring)
        autumn = datetime.fromisoformat("2026-10-24T18:00:00+00:00")
        repeated = schedule(session, intent(autumn, key="cmp_2"), keys, curves([1] * 60), rule, now=autumn)

    for due in skipped.due_at.tolist():
        assert from_micros(due).astimezone(ZoneInfo("Europe/London")).strftime("%d %H") == "29 02"
    for due in repeated.due_at.tolist():
        local = from_micros(due).astimezone(ZoneInfo("Europe/London"))
        assert (local.strftime("%d %H"), local.fold) == ("25 01", 0)
    assert set(repeated.assigned_local_hour) == {1}


def test_a_zone_that_does_not_exist_falls_back_and_is_counted(database, add_contacts, now):
    """One contact's bad zone does not stop the others."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 3, zones=("Europe/London",)))
        session.execute(update(ContactRow).where(ContactRow.contact_key == int(keys[0])).values(timezone="Mars/Base"))
        session.execute(update(ContactRow).where(ContactRow.contact_key == int(keys[1])).values(timezone=None))
        rule = limits(default_timezone="Asia/Tokyo")
        sends = schedule(session, intent(now), keys, None, rule, now=now)

    assert sends.timezone.tolist() == ["Asia/Tokyo", "Asia/Tokyo", "Europe/London"]
    assert sorted(sends.placement.zones.values()) == [1, 1, 1]
    assert "the installation's: the contact's is no IANA zone" in sends.placement.zones


def test_the_canary_leaves_first_and_the_others_wait_until_it_was_watched(database, add_contacts, now):
    """A share of those not held out, at the first hour; the others an hour after the last of it."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 1000))
        plan = intent(now, canary_share=0.1, holdout_share=0.2)
        sends = schedule(session, plan, keys, curves([11] * 1000), limits(), now=now)
        write_sends(session, sends, now=now)
        rows = session.execute(select(SendRow.is_canary, SendRow.due_at, SendRow.mailbox, SendRow.expected_value)).all()

    canary = sends.is_canary
    assert abs(canary.mean() - 0.08) < 0.04
    assert not np.any(canary & sends.is_holdout)
    assert np.all(sends.due_at[canary] < to_micros(now + HOUR))
    assert sends.due_at[~canary].min() >= sends.due_at[canary].max() + 3_600_000_000
    assert sum(row.is_canary for row in rows) == canary.sum()
    assert {row.mailbox for row in rows} == {"other"}
    assert sum(row.expected_value for row in rows) == pytest.approx(sends.placement.expected, rel=1e-5)


def test_nobody_waits_for_a_canary_at_the_far_end_of_the_window(database, add_contacts, now):
    """London and Los Angeles: the canary is drawn from Londoners, or its last mail would leave at 16 o'clock."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 600, zones=("Europe/London", "America/Los_Angeles")))
        plan = intent(now, canary_share=0.1, timing="at_start")
        sends = schedule(session, plan, keys, None, limits(), now=now)

    assert set(sends.timezone[sends.is_canary]) == {"Europe/London"}
    assert abs(sends.is_canary.mean() - 0.1) < 0.05
    last = sends.due_at[sends.is_canary].max()
    assert last < to_micros(now + HOUR)
    london = ~sends.is_canary & (sends.timezone == "Europe/London")
    assert last + 3_600_000_000 <= sends.due_at[london].min() < to_micros(now + 3 * HOUR)


def test_a_window_too_short_for_its_canary_is_refused(database, add_contacts, now):
    """Of an hour nothing is left once the canary was watched: said before anything is planned."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 200))
        plan = intent(now, canary_share=0.1, window_end=now + HOUR)
        with pytest.raises(Invalid, match=r"too short for a canary.*set canary_share to 0"):
            schedule(session, plan, keys, None, limits(), now=now)


def test_a_correction_may_be_one_more_than_the_contacts_own_cap(database, add_contacts, now):
    """One wants a mail a week and has had the wrong one: the right one goes, a third mail does not."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 1))
        session.add(PreferenceRow(contact_key=int(keys[0]), most_per_week=1, updated_at=now))
        session.flush()
        for key, extra, state in (("cmp_1", 0, "planned"), ("cmp_2", 1, "planned"), ("cmp_3", 1, "suppressed")):
            plan = intent(now, key=key, campaign_id=key)
            sends = schedule(session, plan, keys, None, limits(extra_cap=extra), now=now)
            write_sends(session, sends, now=now)
            assert sends.state.tolist() == [state]


def test_a_mail_late_in_a_long_window_leaves_the_days_before_it_free(database, add_contacts, now):
    """Cap 1 and a mail on day 29: a campaign of 30 days finds its place before day 22."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 20))
        late = intent(now + timedelta(days=29), window_end=now + timedelta(days=30))
        other = schedule(session, late, keys, None, limits(frequency_cap=1), now=now)
        write_sends(session, other, now=now)
        plan = intent(now, key="cmp_2", timing="spread", window_end=now + timedelta(days=30))
        sends = schedule(session, plan, keys, None, limits(frequency_cap=1), now=now)

    assert set(sends.state) == {"planned"}
    assert np.all(other.due_at - sends.due_at >= 7 * 86_400_000_000)


@settings(max_examples=40, deadline=None)
@given(
    mails=st.lists(st.tuples(st.integers(0, 2), st.integers(-200, 400)), max_size=12),
    cap=st.integers(1, 3),
    snooze=st.integers(0, 200),
)
def test_a_gap_holds_no_instant_that_the_cap_forbids(mails, cap, snooze):
    """Against each hour tried one by one; who is barred has no allowed hour at all."""
    hour, week, end = 3_600_000_000, 168, 240
    mails = sorted(mails)
    row, at = (np.array([one[k] for one in mails], dtype=np.int64) for k in (0, 1))
    not_before = np.array([0, snooze * hour, 0])
    caps = Caps(np.full(3, cap), np.zeros(3, dtype=bool), row, at * hour)
    starts, until, barred = caps.gaps(not_before, 0, end * hour)

    def keeps(contact, instant):
        times = at[row == contact]
        weeks = [begin for begin in (*times.tolist(), instant) if begin <= instant < begin + week]
        return all(((times >= begin) & (times < begin + week)).sum() < cap for begin in weeks)

    for contact in range(3):
        free = [keeps(contact, instant) for instant in range(not_before[contact] // hour, end + 1)]
        assert (contact in barred) == (not any(map(all, itertools.pairwise(free))))
        if contact not in barred:
            for instant in range(max(0, starts[contact] // hour), until[contact] // hour):
                assert keeps(contact, instant)
                assert instant >= not_before[contact] // hour


def test_transactional_mail_takes_places_and_needs_none(any_database, add_contacts, now):
    """A mail a minute, a warm-up of 50: a hundred receipts leave within a minute, decided, and count off the hour."""
    with any_database.writing() as session:
        keys = np.array(add_contacts(session, 200))
        rule = limits(rate_per_minute=2, warm_up_from=now.date(), quiet_hours=None)
        receipts = intent(now, stream="transactional", key="r", campaign_id=None, timing="at_start")
        sends = schedule(session, receipts, keys[:100], None, rule, now=now)
        write_sends(session, sends, now=now)
        decided = session.scalars(select(SendRow.decided_at)).all()
        plan = intent(now, window_end=now + HOUR)
        others = schedule(session, plan, keys[100:], None, replace(rule, warm_up_from=None), now=now)
        write_sends(session, others, now=now)
        undecided = session.scalars(select(SendRow.decided_at).where(SendRow.campaign_id == "cmp_1")).all()

    assert set(sends.state) == {"planned"}
    assert set(sends.due_at) == {to_micros(now)}
    assert set(decided) == {now}
    assert (others.state == "planned").sum() == 17
    assert set(undecided) == {None}


def test_what_the_planner_places_on_a_day_of_the_warm_up_the_claim_lets_go(any_database, add_contacts, now, tmp_path):
    """Quiet days between make no step: each day's mails fit what the throttle allows, and the last place is used."""
    cold = Settings(home=tmp_path, warm_up_from=now.date(), _env_file=None)
    with any_database.writing() as session:
        keys = np.array(add_contacts(session, 700))
        write_sends(session, schedule(session, intent(now + HOUR * 24), keys[:40], None, limits(), now=now), now=now)
        rule = limits(warm_up_from=now.date(), explore_share=0.0, frequency_cap=0)
        plan = intent(now + HOUR * 48, key="cmp_2", campaign_id="cmp_2", window_end=now + HOUR * 80)
        sends = schedule(session, plan, keys[40:], None, rule, now=now)
        write_sends(session, sends, now=now)

        by_day = {}
        for day in range(4):
            at = now + timedelta(days=day)
            begin = at.replace(hour=0)
            due = (SendRow.state == "planned") & (SendRow.due_at >= begin) & (SendRow.due_at < begin + 24 * HOUR)
            by_day[day] = session.scalar(select(func.count()).where(due))
            assert by_day[day] <= open_room(session, now=at, settings=cold).allowance["other"]
            session.execute(update(SendRow).where(due).values(state="accepted"))
            count_departures(session, {"other": by_day[day]}, now=at)

    assert (by_day[0], by_day[1], by_day[2], by_day[3]) == (0, 36, 100, 250)


def test_a_day_that_the_plan_leaves_empty_is_no_step_of_the_warm_up(database, add_contacts, now):
    """All like one hour, and only the first day's window has another: the days after climb by the days with mail."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 400))
        # The first day is asleep: its allowed hours lie in the quiet ones.
        evening = now.replace(hour=22, minute=30)
        rule = limits(warm_up_from=now.date(), explore_share=0.0)
        sends = schedule(session, intent(evening, window_end=evening + HOUR * 40), keys, None, rule, now=now)

    days = (sends.due_at[sends.state == "planned"] - to_micros(now.replace(hour=0))) // 86_400_000_000
    assert np.bincount(days.astype(int)).tolist() == [0, 50, 100]


def test_profit_leaves_out_who_costs_more_than_comes_in(database, add_contacts, now):
    """By hand: 30 % margin of orders of 40.00 with a chance of .5 over 30 of 30 days is 6; a chance of 0 brings 0."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 2))
        event = NewEvent(
            int(keys[0]), "Order Completed", to_micros(now) - 1, "m1", "user:u0", ref="o1", value_minor=4000
        )
        append(session, [event], received_at=to_micros(now))
        for key, probability in zip(keys.tolist(), (0.5, 0.0), strict=True):
            session.add(
                PredictionRow(
                    model="conversion", contact_key=key, probability=probability, percentile=0.5, as_of=now,
                    model_version=1, detail=None,
                )
            )  # fmt: skip
        session.flush()
        economy = Economy("GBP", margin_share=0.3, mail_cost=0.01, unsubscribe_cost=1.0, attribution_days=30)
        sends = schedule(session, intent(now), keys, None, limits(economy=economy), now=now)

    assert sends.state.tolist() == ["planned", "unplaced"]
    assert sends.expected_value[0] == pytest.approx(6.0 - 0.01 - 0.002, rel=1e-5)
    assert sends.reason[1].startswith("expected profit -0.012 GBP: ")
    assert sends.placement.objective == "profit"


def test_propensities_stay_those_of_the_rule_where_hours_run_out(database, add_contacts, now):
    """What the prices chose has 1 - e + e/k, what was drawn e/k."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 900))
        rng = np.random.default_rng(3)
        hours = curves(rng.integers(8, 21, 900).tolist())
        sends = schedule(session, intent(now), keys, hours, limits(rate_per_minute=2), now=now)

    drawn = sends.hour_reason == "explore"
    best = sends.hour_reason == "best"
    assert sends.hour_propensity[best] == pytest.approx(0.8 + 0.2 / 15)
    assert np.isin(sends.hour_propensity[drawn].round(6), [round(0.2 / 15, 6), round(0.8 + 0.2 / 15, 6)]).all()


@pytest.mark.parametrize(
    ("rule", "words"), [({"rate_per_minute": 0}, "0 mails a minute"), ({"mailbox_rates": {"gmail": 0}}, "to gmail")]
)
def test_a_rate_of_zero_is_refused(database, now, rule, words):
    """It would leave everybody unplaced without a word."""
    with database.reading() as session, pytest.raises(Invalid, match=words):
        schedule(session, intent(now), np.array([1]), None, limits(**rule), now=now)


def test_days_before_a_warm_up_begins_take_as_little_as_its_first(database, add_contacts, now):
    """A window ahead of the first day is not unlimited."""
    with database.writing() as session:
        keys = np.array(add_contacts(session, 60))
        rule = limits(warm_up_from=date(2026, 3, 20))
        sends = schedule(session, intent(now, window_end=now + HOUR * 8), keys, None, rule, now=now)

    assert (sends.state == "planned").sum() == 50
