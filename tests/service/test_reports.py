"""Laws of reports: they add up, they agree with one another, and they say what they rest on."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import select

from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_COMPLAINED,
    EMAIL_OPENED,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    ORDER_REFUNDED,
)
from service.campaigns import NewCampaign, create_campaign, find_campaign, schedule_campaign
from service.campaigns.report import (
    TERMINAL_STATES,
    Periods,
    campaign_report,
    campaign_sheet,
    campaigns_report,
    hours_report,
    overview,
    read_sheet,
    sheet,
)
from service.campaigns.report.holdouts import is_held_out_of_everything
from service.campaigns.report.mails import read_answers, read_credits, read_ledger, with_outcomes
from service.database import Database
from service.erase import erase_contacts
from service.errors import Invalid
from service.settings import Settings
from service.suppression import Consent, set_consent, unsubscribe
from service.tables import ContactRow, SendRow
from service.templates import add_template, bundled_template
from training.serving import Serving

HOUR = 3_600_000_000
N = 150


@dataclass
class Lived:
    """An installation after a campaign: who got mail, answered, bought, took back."""

    database: Database
    settings: Settings
    start: datetime
    campaign_ids: list[str]
    keys: list[int]
    #: Every order, refund and note: (day in the installation's zone, minor units), by plain arithmetic.
    money: dict[date, int] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        return self.start + timedelta(days=20)

    def campaign(self, number: int = 0) -> dict[str, Any]:
        with self.database.reading() as session:
            return campaign_report(session, self.campaign_ids[number], self.settings, now=self.now)

    def overview(self, by: Any = "day") -> dict[str, Any]:
        first = self.start.date() - timedelta(days=3)
        periods = Periods.between(first, self.now.date(), by, self.settings.timezone)
        with self.database.reading() as session:
            return overview(session, self.settings, periods, now=self.now)


@pytest.fixture
def live(settings: Settings, add_contacts: Callable[..., list[int]]) -> Callable[..., Lived]:
    """A function that lets two campaigns live on a database: ledger rows and events as the worker writes them."""

    def lived(database: Database, **changes: Any) -> Lived:
        # Two days before the clocks of London go forward.
        start = datetime(2026, 3, 27, 9, 0, tzinfo=UTC)
        # Hours and holdouts are drawn by the pepper and the campaign's id: the same at every run.
        fixed = {"timezone": "Europe/London", "frequency_cap": 0, "suppression_pepper": SecretStr("reports")}
        own = settings.model_copy(update=fixed | changes)
        with database.writing() as session:
            add_template(session, bundled_template("offer"), now=start)
            keys = add_contacts(session, N, zones=("Europe/London", "America/New_York", "Asia/Tokyo"))
            add_contacts(session, 5, prefix="no", consent="unknown")
            ids = []
            for number in range(2):
                at = start + timedelta(days=2 * number)
                new = NewCampaign(
                    '=Sale, "now"\nжизнь', "offer", at, at + timedelta(days=1), {"everyone": True}, holdout_share=0.2,
                    campaign_id=f"cmp_{number}",
                )  # fmt: skip
                ids.append(create_campaign(session, new, now=start))
                schedule_campaign(session, ids[-1], Serving(), own, now=start)
        done = Lived(database, own, start, ids, keys)
        with database.writing() as session:
            _live(session, done, np.random.default_rng(5))
        return done

    return lived


def _live(session: Any, done: Lived, rng: np.random.Generator) -> None:
    events: list[NewEvent] = []
    sends = session.query(SendRow).filter(SendRow.state == "planned").order_by(SendRow.send_id).all()

    def log(kind: str, key: int, at: int, ref: str | None, **values: Any) -> None:
        events.append(NewEvent(key, kind, at, f"t/{len(events)}", f"user:{key}", ref, **values))

    def sold(at: int, minor: int) -> None:
        from zoneinfo import ZoneInfo

        day = datetime.fromtimestamp(at / 1e6, ZoneInfo("Europe/London")).date()
        done.money[day] = done.money.get(day, 0) + minor

    for send in sends:
        at = to_micros(send.due_at)
        lot = rng.random()
        send.mailbox = ("gmail", "other")[send.send_id % 2]
        send.finished_at = send.due_at
        if send.is_holdout:
            send.state, send.reason = "held_out", "holdout"
            continue
        if lot < 0.05:
            send.state, send.reason = "failed", "550 no such user"
            log(EMAIL_BOUNCED, send.contact_key, at, str(send.send_id), properties={"is_permanent": True})
            continue
        if lot < 0.08:
            send.state, send.reason = "unknown", "the line broke"
            continue
        send.state = "accepted"
        if lot < 0.13:
            log(EMAIL_BOUNCED, send.contact_key, at + HOUR, str(send.send_id), properties={"is_permanent": lot < 0.1})
            continue
        if rng.random() < 0.3:
            log(EMAIL_OPENED, send.contact_key, at + 5_000_000, str(send.send_id), human_ppm=20_000)
        if rng.random() < 0.5:
            opened = at + int(rng.integers(1, 90)) * HOUR
            log(EMAIL_OPENED, send.contact_key, opened, str(send.send_id), human_ppm=900_000)
            if rng.random() < 0.5:
                log(EMAIL_CLICKED, send.contact_key, opened + 1, str(send.send_id), human_ppm=970_000)
                again = {"human_ppm": 970_000, "is_repeat": True}
                log(EMAIL_CLICKED, send.contact_key, opened + 30 * HOUR, str(send.send_id), **again)
        if rng.random() < 0.02:
            log(EMAIL_COMPLAINED, send.contact_key, at + 2 * HOUR, str(send.send_id))
    for place, key in enumerate(done.keys):
        for number in range(int(rng.integers(0, 4))):
            at = to_micros(done.start) + int(rng.integers(-2 * 24, 18 * 24)) * HOUR
            minor = int(rng.integers(100, 9_000))
            if rng.random() < 0.1:
                log(ORDER_COMPLETED, key, at, f"{place}-{number}", properties={"revenue": 5, "currency": "USD"})
                continue
            log(ORDER_COMPLETED, key, at, f"{place}-{number}", value_minor=minor)
            lot = rng.random()
            back = minor if lot < 0.05 else minor // 3 if lot < 0.15 else 0
            if back:
                later = min(at + 40 * HOUR, to_micros(done.now))
                log(ORDER_REFUNDED, key, later, f"{place}-{number}", value_minor=back)
            sold(at, minor - back)
        if rng.random() < 0.03:
            at = to_micros(done.start) + 30 * HOUR
            log(ORDER_CANCELLED, key, at - 90 * 24 * HOUR, f"C{place}", value_minor=250)
    append(session, events, received_at=to_micros(done.now))
    session.flush()
    accepted = [send.send_id for send in sends if send.state == "accepted"]
    unsubscribe(session, accepted[::40], source="one-click", now=done.start + timedelta(days=5))


def test_attributed_and_unattributed_money_is_the_shops_of_each_day(any_database, live):
    """To the minor unit, in every row, days of 23 hours among them; and the shop's money is what was sold that day."""
    done = live(any_database)
    for by in ("day", "week", "month"):
        report = done.overview(by)
        for row in report["periods"]:
            assert row["revenue_attributed_minor"] + row["revenue_unattributed_minor"] == row["revenue_minor"]
        assert report["totals"]["revenue_minor"] == sum(done.money.values())
    days = {date.fromisoformat(row["from"]): row["revenue_minor"] for row in done.overview()["periods"]}
    assert {day: minor for day, minor in days.items() if minor} == {d: m for d, m in done.money.items() if m}
    assert 0 < done.overview()["totals"]["revenue_attributed_minor"] < sum(done.money.values())
    assert done.overview()["totals"]["orders_other_currency"] > 0


def test_the_days_add_up_to_the_campaigns(any_database, live):
    """Mails, answers, orders and money: the sum of the overview's days is the sum over the campaigns' reports."""
    done = live(any_database)
    totals = done.overview()["totals"]
    reports = [done.campaign(0), done.campaign(1)]

    assert totals["planned"] == sum(report["planned"] for report in reports) == 2 * (N + 5)
    for state in TERMINAL_STATES:
        assert totals[state] == sum(report["sends"][state] for report in reports)
    for name in ("human_opens", "human_clicks", "bounces_hard", "bounces_soft", "complaints", "unsubscribes"):
        assert totals[name] == sum(report["mails"][name]["count"] for report in reports) > 0, name
    for name in ("machine_opens", "machine_clicks"):
        assert totals[name] == sum(report["mails"][name] for report in reports)
    assert totals["orders_attributed"] == sum(report["mails"]["orders"] for report in reports) > 0
    assert totals["revenue_attributed_minor"] == sum(report["mails"]["revenue_minor"] for report in reports) > 0


def test_the_parts_of_a_campaign_add_up_to_it(database, live):
    """By hour, mailbox and reason of the hour, each mail once; the list and the hours say the same."""
    done = live(database)
    report = done.campaign()
    whole = report["mails"]
    for part in ("by_assigned_local_hour", "by_actual_local_hour", "by_mailbox", "by_hour_reason"):
        rows = report[part]
        assert sum(row["accepted"] for row in rows) == whole["accepted"] == report["sends"]["accepted"]
        assert sum(row["human_clicks"]["count"] for row in rows) == whole["human_clicks"]["count"] > 0
        assert sum(row["revenue_minor"] for row in rows) == whole["revenue_minor"]
    assert {row["mailbox"] for row in report["by_mailbox"]} == {"gmail", "other"}
    assert sum(one["sends"] for one in report["reasons"] if one["state"] == "suppressed") == 5
    assert whole["delivered"] == whole["accepted"] - sum(
        row["bounces_soft"]["count"] + row["bounces_hard"]["count"] for row in report["by_hour_reason"]
    )
    with database.reading() as session:
        campaigns = [find_campaign(session, one) for one in done.campaign_ids]
        listed = campaigns_report(session, done.settings, campaigns, now=done.now)
        periods = Periods.between(done.start.date(), done.now.date(), "day", "Europe/London")
        hours = hours_report(session, done.settings, periods, now=done.now)
    assert listed[0]["mails"] == whole
    assert sum(row["human_opens"]["count"] for row in hours["by_actual_local_hour"]) == sum(
        one["mails"]["human_opens"]["count"] for one in listed
    )
    assert sum(row["accepted"] for row in hours["by_assigned_local_hour"]) == sum(
        one["mails"]["accepted"] for one in listed
    )


def test_delivered_is_what_providers_say_where_they_say_it(database, live):
    """Reports of most of a campaign's mails change what delivered rests on, in that campaign; a stray one does not."""
    done = live(database)
    before = [done.campaign(number)["mails"] for number in (0, 1)]
    with database.reading() as session:
        mine = session.query(SendRow).filter(SendRow.campaign_id == done.campaign_ids[0], SendRow.state == "accepted")
        rows = mine.order_by(SendRow.send_id).all()

    def delivered(rows: list[SendRow]) -> dict[str, Any]:
        with database.writing() as session:
            events = [
                NewEvent(
                    row.contact_key, "Email Delivered", to_micros(row.due_at) + 1, f"p/{row.send_id}", "user:x",
                    str(row.send_id),
                )
                for row in rows
            ]  # fmt: skip
            append(session, events, received_at=to_micros(done.now))
        return done.campaign()["mails"]

    assert "less what came back" in before[0]["delivered_basis"]
    assert delivered(rows[:1]) == before[0]
    after = delivered(rows[1 : len(rows) * 3 // 4])
    assert "provider reported" in after["delivered_basis"]
    assert after["human_opens"]["count"] <= after["delivered"] < before[0]["delivered"]
    assert done.campaign(1)["mails"] == before[1]


def test_a_refusal_of_the_sender_is_no_bounce_of_the_address(database, live):
    """Counted apart, in the campaign's report and in the overview."""
    done = live(database)
    before = done.campaign()["mails"]
    with database.writing() as session:
        row = (
            session.query(SendRow)
            .filter(SendRow.campaign_id == done.campaign_ids[0], SendRow.state == "unknown")
            .order_by(SendRow.send_id)
            .first()
        )
        told = {"is_permanent": "true", "status": "5.7.1"}
        at = to_micros(row.due_at) + 1
        event = NewEvent(row.contact_key, EMAIL_BOUNCED, at, "p/1", "user:x", str(row.send_id), properties=told)
        append(session, [event], received_at=to_micros(done.now))
    after = done.campaign()["mails"]

    assert (before["bounces_policy"]["count"], after["bounces_policy"]["count"]) == (0, 1)
    for name in ("bounces_hard", "bounces_soft"):
        assert after[name]["count"] == before[name]["count"] > 0
    assert done.overview()["totals"]["bounces_policy"] == 1


def test_hours_are_compared_by_drawn_mails_weighted_by_their_chance(database, live):
    """A mail that drew a rare hour stands for many: three of a tenth that were not opened outweigh ten of a half."""
    done = live(database)
    with database.writing() as session:
        rows = session.query(SendRow).filter(SendRow.state == "accepted").order_by(SendRow.send_id).all()
        for place, row in enumerate(rows):
            row.hour_reason = ("explore", "full", "fallback")[place % 3]
            row.assigned_local_hour = 9
            row.hour_propensity = 0.1 if place % 2 else 0.5
    with database.reading() as session:
        periods = Periods.between(done.start.date(), done.now.date(), "month", "Europe/London")
        hours = hours_report(session, done.settings, periods, now=done.now)
    [row] = hours["random_by_assigned_local_hour"]
    drawn = {send.send_id: 1 / send.hour_propensity for send in rows if send.hour_reason == "explore"}
    with database.reading() as session:
        answers = read_answers(session, 0)
        mails = with_outcomes(read_ledger(session), answers, read_credits(session, 0, 0, 3))
    known = mails[mails["send_id"].isin(drawn) & mails["delivered"]]
    weight = known["send_id"].map(drawn)

    assert row["accepted"] == len(drawn)
    assert row["weighted"]["human_opens"] == pytest.approx((weight * known["opened"]).sum() / weight.sum())
    assert row["weighted"]["human_opens"] != pytest.approx(row["human_opens"]["rate"])
    assert 0 < row["weighted"]["effective_mails"] < len(known)


def test_profit_is_compared_by_intention_to_treat(database, live):
    """Everybody planned counts, whatever became of the mail; who the plan closed at once does not."""
    report = live(database).campaign()
    profit, states = report["incremental"], report["sends"]

    assert profit["held_out"]["contacts"] == states["held_out"]
    assert profit["mailed"]["contacts"] == states["accepted"] + states["failed"] + states["unknown"]
    assert profit["is_final"]
    assert profit["against"] == "the campaign's holdout"


def test_too_small_a_holdout_is_told_when_it_can_be_known(database, live):
    """A date by today's volume, and how many contacts that takes; without a holdout the remedy."""
    done = live(database)
    profit = done.campaign()["incremental"]

    assert profit["verdict"] == "not_knowable_yet"
    assert (profit["not_before"] is None) != (profit["why_never"] is None)
    assert profit["contacts_needed"] > profit["mailed"]["contacts"] + profit["held_out"]["contacts"]
    assert profit["sentence"].startswith("Not knowable")
    overall = done.overview()["incremental"]
    assert overall["why_never"].startswith("nobody to compare with: set a holdout share")


def test_a_large_holdout_shows_the_gain(database, live):
    """Where mail makes half of the contacts buy, and those held out buy seldom, the interval excludes zero."""
    done = live(database)
    with database.writing() as session:
        mine = (
            session.query(SendRow).filter(SendRow.campaign_id == done.campaign_ids[1]).order_by(SendRow.send_id).all()
        )
        events = []
        for place, row in enumerate([row for row in mine if row.state in ("accepted", "held_out")]):
            held = place % 3 == 0
            row.is_holdout, row.state = held, "held_out" if held else "accepted"
            value = 50_000 + place if not held or place % 2 else None
            if value:
                at, ref = to_micros(row.due_at) + HOUR, f"g/{place}"
                events.append(NewEvent(row.contact_key, ORDER_COMPLETED, at, ref, "user:x", ref, value))
        append(session, events, received_at=to_micros(done.now))
    profit = done.campaign(1)["incremental"]

    assert profit["verdict"] == "gain"
    assert 0 < profit["total_minor"]["lower"] < profit["total_minor"]["estimate"] < profit["total_minor"]["upper"]
    assert profit["sentence"].startswith("Mailing earned")


def test_the_global_holdout_is_the_one_that_the_plan_draws(database, live):
    """Who the report calls held out of everything is who the plan held out of every campaign."""
    done = live(database, global_holdout=0.3)
    with database.writing() as session:
        new = NewCampaign(
            "Third", "offer", done.now, done.now + timedelta(days=1), {"everyone": True}, campaign_id="cmp_third"
        )
        create_campaign(session, new, now=done.now)
        schedule_campaign(session, "cmp_third", Serving(), done.settings, now=done.now)
    with database.reading() as session:
        rows = session.query(SendRow.contact_key, SendRow.is_holdout).filter(SendRow.campaign_id == "cmp_third").all()
    keys = np.array([row[0] for row in rows], dtype=np.int64)
    held = is_held_out_of_everything(keys, done.settings)

    assert held.tolist() == [row[1] for row in rows]
    assert 0 < held.sum() < len(held)
    overall = done.overview()["incremental"]
    assert overall["held_out"]["contacts"] == held.sum()
    assert overall["mailed"]["contacts"] == N + 5 - held.sum()


def test_subscribers_come_and_go_by_topic(any_database, live):
    """New less lost is the change of the total, from the consent ledger alone."""
    done = live(any_database)
    with any_database.writing() as session:
        at = done.start + timedelta(days=1)
        set_consent(session, [Consent(key, "news", "subscribed", "form") for key in done.keys[:7]], now=at)
        set_consent(session, [Consent(key, "news", "subscribed", "again") for key in done.keys[:2]], now=at)
        later = at + timedelta(days=1)
        set_consent(session, [Consent(key, "news", "unsubscribed", "page") for key in done.keys[:3]], now=later)
    rows = {row["from"]: row for row in done.overview()["subscribers"]["news"]}
    first, second = at.date().isoformat(), later.date().isoformat()

    assert (rows[first]["new"], rows[first]["lost"], rows[first]["total"]) == (7, 0, 7)
    assert (rows[second]["new"], rows[second]["lost"], rows[second]["total"]) == (0, 3, 4)
    marketing = done.overview()["subscribers"]["marketing"]
    assert marketing[-1]["total"] == N - done.overview()["totals"]["unsubscribes"]


def test_days_are_the_installations(now):
    """A day is 23 or 25 hours long when the clocks move; months and weeks begin where people think they do."""
    autumn = Periods.between(date(2026, 10, 24), date(2026, 10, 26), "day", "Europe/London")
    weeks = Periods.between(date(2026, 3, 4), date(2026, 3, 17), "week", "UTC")
    months = Periods.between(date(2026, 11, 15), date(2027, 2, 1), "month", "Asia/Kathmandu")

    assert (np.diff(autumn.edges) / HOUR).tolist() == [24, 25, 24]
    assert [day.day for day in weeks.starts] == [4, 9, 16]
    assert [day.month for day in months.starts] == [11, 12, 1, 2]
    with pytest.raises(Invalid, match="ends on or after"):
        Periods.between(date(2026, 3, 4), date(2026, 3, 3), "day", "UTC")
    with pytest.raises(Invalid, match="at most"):
        Periods.between(date(1990, 1, 1), date(2026, 3, 3), "day", "UTC")


cells = st.one_of(
    st.none(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12),
    st.sampled_from(["=1+1", "+44 1", "-x", "@cmd", "\tx", "\rx", "'=1", "''", 'a "b", c\n=d', "naïve 株式会社"]),
)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8))
def test_a_sheet_reads_back_and_holds_no_formula(rows):
    """Texts come back letter by letter, numbers are numbers, and no text begins like a formula."""
    text = sheet({"name": name, "value": value} for name, value in rows)
    back = read_sheet(text)

    for (name, value), row in zip(rows, back, strict=True):
        for told, got in ((name, row["name"]), (value, row["value"])):
            if isinstance(told, int | float):
                assert type(told)(got) == told
            else:
                assert got == (told or "")
    for (name, value), line in zip(rows, list(csv.reader(io.StringIO(text, newline="")))[1:], strict=True):
        for told, written in zip((name, value), line, strict=True):
            assert not isinstance(told, str) or not written.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_a_campaigns_sheet_is_what_its_report_says(database, live):
    """With a name that is a formula, a quote, a line break and another script."""
    report = live(database).campaign()
    rows = read_sheet(campaign_sheet(report))

    assert rows[0]["name"] == report["name"]
    assert int(rows[0]["human_clicks.count"]) == report["mails"]["human_clicks"]["count"]
    hours = [row for row in rows if row["part"] == "by_assigned_local_hour"]
    assert sum(int(row["accepted"]) for row in hours) == report["sends"]["accepted"]


@pytest.fixture
def erased(database, live):
    """The installation before and after a third of its contacts were erased."""
    done = live(database)
    before = done.campaign(), done.overview()
    with database.reading() as session:
        gone = session.scalars(select(ContactRow.user_id).where(ContactRow.contact_key.in_(done.keys[::3]))).all()
    erase_contacts(database, done.settings, gone, now=done.now)
    return before, (done.campaign(), done.overview()), len(gone)


def test_an_erasure_leaves_the_mails_and_no_rate_is_watered_down(erased):
    """The ledger's counts stay; answers and orders are gone, so rates are of those whose answers are still known."""
    (report, days), (after, days_after), n_gone = erased

    assert after["sends"] == report["sends"]
    assert after["planned"] == report["planned"]
    assert after["mails"]["accepted"] == report["mails"]["accepted"]
    assert 0 < after["mails"]["erased"] <= n_gone
    assert after["mails"]["human_opens"]["of"] <= after["mails"]["delivered"] - after["mails"]["erased"]
    assert after["mails"]["human_opens"]["count"] < report["mails"]["human_opens"]["count"]
    for name in ("planned", *TERMINAL_STATES):
        assert days_after["totals"][name] == days["totals"][name]
    for row in days_after["periods"]:
        assert row["revenue_attributed_minor"] + row["revenue_unattributed_minor"] == row["revenue_minor"]
    assert days_after["contacts_erased"] == n_gone
    assert after["incremental"]["mailed"]["contacts"] < report["incremental"]["mailed"]["contacts"]


def test_nothing_yet_is_said_and_not_divided_by(database, settings, now):
    """A draft's report, and an overview of an empty installation."""
    with database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        new = NewCampaign("Draft", "offer", now, now + timedelta(days=1), {"everyone": True}, campaign_id="cmp_draft")
        create_campaign(session, new, now=now)
    with database.reading() as session:
        report = campaign_report(session, "cmp_draft", settings, now=now)
        periods = Periods.between(now.date(), now.date(), "day", "UTC")
        told = overview(session, settings, periods, now=now)
        hours = hours_report(session, settings, periods, now=now)

    assert report["mails"]["human_opens"] == {
        "count": 0, "of": 0, "rate": None, "interval": None, "why": "no mails delivered yet"
    }  # fmt: skip
    assert report["planned"] == told["totals"]["planned"] == 0
    assert report["incremental"]["sentence"].startswith("Not knowable: too few contacts")
    assert hours["by_actual_local_hour"] == []
