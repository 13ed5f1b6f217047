"""Laws of the canary: what holds a campaign, how often by mistake, and that the others wait for the judgement."""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from scipy import stats

from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import EMAIL_BOUNCED, EMAIL_COMPLAINED, UNSUBSCRIBED
from service.campaigns import cancel_campaign, find_campaign, is_canary_watched, judge_canaries, resume_campaign
from service.campaigns.canary import LIMITS, Harm, find_harm
from service.clock import SimulatedClock
from service.database import Database
from service.errors import Conflict
from service.flow.deliver import claim
from service.settings import Settings
from service.tables import CampaignRow, SendRow
from service.worker import Worker
from tests.service.mailing import add_template, campaign, plan, send_row, states, subscribe

LIMIT = (0.03, 0.001, 0.01)
USUAL = (0.01, 0.0002, 0.003)
BAD = (0.10, 0.005, 0.04)


def threshold(which: int, mails: int) -> int:
    """The least count of one kind of harm that holds a campaign."""
    for count in range(mails + 1):
        counts = [0, 0, 0]
        counts[which] = count
        if find_harm(Harm(mails, *counts)) is not None:
            return count
    raise AssertionError("nothing holds it")


@pytest.mark.parametrize(
    ("mails", "found"), [(50, (0.56, 0.02, 0.32)), (500, (0.999, 0.45, 0.99)), (5_000, (0.999, 0.999, 0.999))]
)
def test_the_error_rates_are_those_that_the_docstring_states(mails: int, found: tuple[float, ...]) -> None:
    """At a limit held in at most 5 % of cases, a usual campaign in less than .1 %, a bad one as often as it says."""
    usual = 0.0
    for which in range(3):
        tail = threshold(which, mails) - 1
        assert stats.binom.sf(tail, mails, LIMIT[which]) <= 0.05
        assert stats.binom.sf(tail, mails, BAD[which]) >= found[which]
        usual += stats.binom.sf(tail, mails, USUAL[which])
    assert usual < 0.001


@pytest.mark.parametrize("mails", [50, 500, 5_000])
def test_looking_after_every_mail_holds_no_more_campaigns(mails: int) -> None:
    """In simulated campaigns at all three limits at once, watched all the time: at most 3 x 5 % are held, ever."""
    rng = np.random.default_rng(7)
    n = 4_000
    thresholds = np.array([threshold(which, mails) for which in range(3)])
    ever = np.zeros(n, dtype=bool)
    counts = np.zeros((n, 3), dtype=np.int64)
    for part in np.array_split(np.arange(mails), 10):
        counts += rng.binomial(len(part), LIMIT, size=(n, 3))
        ever |= (counts >= thresholds).any(axis=1)
    final = (counts >= thresholds).any(axis=1)
    assert (ever == final).all()
    assert ever.mean() <= 0.15
    assert (rng.binomial(mails, BAD, size=(n, 3)) >= thresholds).any(axis=1).mean() >= 0.7


def test_few_are_never_enough() -> None:
    """One complaint in fifty passes the bound, and still says nothing."""
    assert [limit.least for limit in LIMITS] == [3, 2, 3]
    assert find_harm(Harm(20, 2, 1, 2)) is None
    assert find_harm(Harm(0, 0, 0, 0)) is None
    assert "2 complaints of 20 mails" in str(find_harm(Harm(20, 0, 2, 0)))


# -- in the ledger -------------------------------------------------------------------------------------------------


class Watched:
    """A campaign of 60 mails whose canary is twenty."""

    def __init__(self, database: Database, settings: Settings, now: datetime) -> None:
        self.database, self.settings, self.now = database, settings, now
        keys = subscribe(database, 60, now=now)
        with database.writing() as session:
            session.add(
                campaign("c", now, canary_state="waiting", canary_share=1 / 3, window_end=now + timedelta(hours=5))
            )
        end = {"campaign_id": "c", "not_after": now + timedelta(hours=6), "timezone": "UTC"}
        self.canary_keys = keys[:20]
        self.canary = plan(database, keys[:20], now=now, is_canary=True, **end)
        self.others = plan(database, keys[20:], now=now, **end)

    def sent(self, ids: Sequence[int], at: datetime, state: str = "accepted") -> None:
        with self.database.writing() as session:
            for send_id in ids:
                row = session.get(SendRow, send_id)
                row.state, row.finished_at, row.attempts = state, at, 1

    def happened(self, kind: str, places: Sequence[int], at: datetime, *, ref: bool = True, **properties: Any) -> None:
        with self.database.writing() as session:
            events = [
                NewEvent(
                    contact_key=self.canary_keys[place],
                    kind=kind,
                    occurred_at=to_micros(at),
                    message_id=f"{kind}/{place}",
                    identity=f"user:c{place}",
                    ref=str(self.canary[place]) if ref else None,
                    properties=properties,
                )
                for place in places
            ]
            append(session, events, received_at=to_micros(at))

    def judge(self, at: datetime) -> list[str]:
        with self.database.writing() as session:
            return [one.state for one in judge_canaries(session, self.settings, now=at)]

    def row(self) -> CampaignRow:
        with self.database.reading() as session:
            return find_campaign(session, "c")

    def claimed(self, at: datetime) -> set[int]:
        with self.database.writing() as session:
            took = claim(session, now=at, limit=500, lease_seconds=60, settings=self.settings)
        return {send.send_id for send in took.sends}


@pytest.fixture
def watched(database: Database, settings: Settings, now: datetime) -> Watched:
    return Watched(database, settings, now)


def test_the_others_wait_until_an_hour_has_shown_no_harm(
    any_database: Database, settings: Settings, now: datetime
) -> None:
    """First only the canary's mails can be claimed; an hour after them, one having left the list, all the others."""
    watched = Watched(any_database, settings, now)
    assert watched.claimed(now) == set(watched.canary)
    watched.sent(watched.canary, now + timedelta(minutes=1))
    watched.happened(UNSUBSCRIBED, [3], now + timedelta(minutes=30))
    watched.happened(EMAIL_BOUNCED, [4], now + timedelta(minutes=30), ref=False)
    assert watched.judge(now + timedelta(minutes=60)) == []
    assert watched.claimed(now + timedelta(minutes=60)) == set()
    assert watched.judge(now + timedelta(minutes=61)) == ["passed"]
    assert watched.row().canary_state == "passed"
    assert watched.claimed(now + timedelta(minutes=61)) == set(watched.others)


def test_two_slow_mails_in_twenty_do_not_keep_the_others(watched: Watched, now: datetime) -> None:
    """Deferred ones may be missing, up to a tenth; untried ones may not."""
    watched.sent(watched.canary[:17], now)
    watched.sent(watched.canary[17:], now, state="planned")
    assert watched.judge(now + timedelta(hours=1)) == []
    watched.sent(watched.canary[17:18], now)
    assert watched.judge(now + timedelta(hours=1)) == ["passed"]


@pytest.mark.parametrize(
    ("kind", "places", "ref", "properties", "words"),
    [
        (EMAIL_COMPLAINED, [0, 1], True, {}, "2 complaints of 20 mails"),
        (UNSUBSCRIBED, [0, 1, 2], True, {}, "3 unsubscribes of 20 mails"),
        (UNSUBSCRIBED, [0, 1, 2], False, {}, "3 unsubscribes of 20 mails"),
        (EMAIL_BOUNCED, [0, 1, 2, 3], True, {"is_permanent": True}, "4 mails refused"),
        (EMAIL_BOUNCED, [0, 1, 2, 3], True, {"is_permanent": False}, None),
        (EMAIL_COMPLAINED, [0], True, {}, None),
    ],
)
def test_a_bad_canary_holds_its_campaign_at_once(
    watched: Watched, now: datetime, kind: str, places: list[int], ref: bool, properties: Any, words: str | None
) -> None:
    """Before its hour is over; the reason is kept, nothing more leaves, and only force lets it go on."""
    watched.sent(watched.canary[:10], now + timedelta(minutes=1))
    watched.happened(kind, places, now + timedelta(minutes=5), ref=ref, **properties)
    later = now + timedelta(minutes=6)
    assert watched.judge(later) == ([] if words is None else ["held"])
    if words is None:
        return
    row = watched.row()
    assert (row.status, row.canary_state, row.status_by, row.status_at) == ("paused", "held", "kairos", later)
    assert words in str(row.status_reason)
    assert watched.judge(later) == []
    assert watched.claimed(later) == set()
    with watched.database.writing() as session, pytest.raises(Conflict, match="force"):
        resume_campaign(session, "c", watched.settings, by="k", now=later)
    with watched.database.writing() as session:
        assert resume_campaign(session, "c", watched.settings, by="k", now=later, force=True).planned == 50
    assert (watched.row().canary_state, watched.row().status) == ("overruled", "scheduled")
    assert watched.claimed(later) == set(watched.canary[10:] + watched.others)


def test_mails_that_cannot_be_made_hold_the_campaign(watched: Watched, now: datetime) -> None:
    """A template that fails for many is what a canary is for."""
    watched.sent(watched.canary[:4], now, state="failed")
    assert watched.judge(now) == ["held"]
    assert "4 mails refused for good or impossible to make of 20 mails" in str(watched.row().status_reason)


def test_what_a_slow_judgement_makes_late_expires_and_says_so(watched: Watched, now: datetime) -> None:
    """Nothing leaves after its last useful moment because the canary took so long."""
    watched.sent(watched.canary, now + timedelta(hours=5, minutes=50))
    assert watched.judge(now + timedelta(hours=6, seconds=1)) == []
    rows = [send_row(watched.database, one) for one in watched.others]
    assert {row.state for row in rows} == {"expired"}
    assert {row.reason for row in rows} == {"its last useful moment passed while its campaign's canary was watched"}
    assert watched.judge(now + timedelta(hours=7)) == ["passed"]


def test_what_passes_at_night_waits_for_the_morning(watched: Watched, now: datetime) -> None:
    """Quiet hours hold for mails that waited, too."""
    with watched.database.writing() as session:
        for send_id in watched.others:
            session.get(SendRow, send_id).not_after = now + timedelta(days=2)
    watched.sent(watched.canary, now)
    night = now.replace(hour=23)
    assert watched.judge(night) == ["passed"]
    morning = now.replace(hour=7) + timedelta(days=1)
    assert {send_row(watched.database, one).due_at for one in watched.others} == {morning}


def test_the_worker_judges_and_lets_the_others_go_in_the_same_round(watched: Watched, now: datetime) -> None:
    """Nobody has to ask for it."""
    add_template(watched.database, now=now)
    watched.sent(watched.canary, now)
    worker = Worker(watched.database, watched.settings, SimulatedClock(now + timedelta(hours=2)))
    asyncio.run(worker.work())
    assert watched.row().canary_state == "passed"
    assert set(states(watched.database).values()) == {"accepted"}


def test_a_reason_names_nobody(watched: Watched, now: datetime) -> None:
    """What is kept of a judgement are counts."""
    watched.sent(watched.canary, now)
    watched.happened(EMAIL_COMPLAINED, [0, 1], now + timedelta(minutes=5))
    watched.judge(now + timedelta(minutes=6))
    assert "@" not in json.dumps(watched.row().status_reason)


def test_a_canary_of_which_nothing_left_holds_its_campaign(
    any_database: Database, settings: Settings, now: datetime
) -> None:
    """All twenty suppressed: nothing was watched, so the others wait for somebody to look; the reason says so."""
    watched = Watched(any_database, settings, now)
    with any_database.writing() as session:
        for send_id in watched.canary:
            row = session.get(SendRow, send_id)
            row.state, row.reason, row.finished_at = "suppressed", "address suppressed: hard_bounce", now
    assert watched.judge(now + timedelta(minutes=5)) == ["held"]
    assert watched.row().status == "paused"
    assert "none of its 20 mails left" in str(watched.row().status_reason)
    assert "20 of them suppressed (address suppressed: hard_bounce)" in str(watched.row().status_reason)
    assert watched.claimed(now + timedelta(minutes=5)) == set()


def test_a_canary_of_which_nothing_left_holds_nobody_up_where_nobody_waits(watched: Watched, now: datetime) -> None:
    """A campaign that is over need not be resumed by hand."""
    watched.sent(watched.canary, now, state="suppressed")
    watched.sent(watched.others, now, state="suppressed")
    assert watched.judge(now) == ["passed"]


def test_a_cancelled_campaign_s_canary_is_watched_no_more(watched: Watched, now: datetime) -> None:
    """Nobody looks at it every few seconds for ever."""
    with watched.database.writing() as session:
        assert is_canary_watched(session)
        cancel_campaign(session, "c", now=now)
    with watched.database.reading() as session:
        assert not is_canary_watched(session)
    assert watched.row().canary_state == "none"


def test_what_passes_at_night_and_would_be_late_in_the_morning_expires_now(watched: Watched, now: datetime) -> None:
    """It is not promised for a morning on which it may not leave any more."""
    night = now.replace(hour=23)
    with watched.database.writing() as session:
        for place, send_id in enumerate(watched.others):
            session.get(SendRow, send_id).not_after = night + timedelta(hours=7 if place < 30 else 9)
    watched.sent(watched.canary, now)
    assert watched.judge(night) == ["passed"]
    rows = [send_row(watched.database, one) for one in watched.others]
    assert [row.state for row in rows] == ["expired"] * 30 + ["planned"] * 10
    assert "quiet hours" in str(rows[0].reason)
    assert {row.due_at for row in rows[30:]} == {now.replace(hour=7) + timedelta(days=1)}
