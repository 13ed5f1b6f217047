"""Clocks that change for summer, jump, and contacts that move: each send once, in the hour it was planned for."""

from __future__ import annotations

import asyncio
import email
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select

from features.contacts import update_traits
from features.vocabulary import EMAIL_SENT
from service.campaigns import NewCampaign, create_campaign, schedule_campaign
from service.database import Database
from service.settings import Settings
from service.tables import EventRow, SendRow
from service.templates import add_template, bundled_template
from service.worker import Worker
from training.serving import Serving

#: Zones whose clocks change on different days, by half an hour, or never.
ZONES = ("Europe/London", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Chatham")
STEP = timedelta(minutes=20)


class JumpingClock:
    """A machine's clock that somebody sets forward or back."""

    def __init__(self, start: datetime) -> None:
        self.at = start

    def now(self) -> datetime:
        return self.at


def arrived(settings: Settings) -> Counter[int]:
    """How often each send arrived."""
    mails = [email.message_from_bytes(path.read_bytes()) for path in (settings.home / "outbox").glob("*.eml")]
    return Counter(int(mail["X-Kairos-Send"]) for mail in mails)


def sent(database: Database) -> dict[int, datetime]:
    """When each send left, by the worker's clock."""
    with database.reading() as session:
        rows = session.execute(select(SendRow.send_id, SendRow.finished_at).where(SendRow.state == "accepted"))
        return {row.send_id: row.finished_at for row in rows}


def scheduled(database: Database, settings: Settings, add_contacts, start: datetime, hours: int, n: int = 15):
    """A campaign spread over the next hours, to people in five zones; its sends."""
    with database.writing() as session:
        add_contacts(session, n, zones=ZONES)
        add_template(session, bundled_template("plain"), now=start)
        window = {"window_start": start, "window_end": start + timedelta(hours=hours)}
        new = NewCampaign("Clocks", "plain", audience={"everyone": True}, timing="spread", **window)
        campaign_id = create_campaign(session, new, now=start)
        schedule_campaign(session, campaign_id, Serving(), settings, now=start)
    with database.reading() as session:
        sends = session.scalars(select(SendRow)).all()
    assert {send.state for send in sends} == {"planned"}
    return sends


@pytest.mark.parametrize(
    "start",
    ["2026-03-28T12:00", "2026-10-31T18:00", "2026-04-04T03:00"],
)
def test_each_send_leaves_once_in_its_hour_when_the_clocks_change(
    database: Database, settings: Settings, add_contacts, start: str
) -> None:
    """Summer time begins in London, ends in New York, ends on Lord Howe (by half an hour) while the campaign runs."""
    begin = datetime.fromisoformat(start).replace(tzinfo=UTC)
    sends = scheduled(database, settings, add_contacts, begin, hours=26)
    changed = [
        zone
        for zone in ZONES
        if begin.astimezone(ZoneInfo(zone)).utcoffset()
        != (begin + timedelta(hours=26)).astimezone(ZoneInfo(zone)).utcoffset()
    ]
    assert changed
    clock = JumpingClock(begin)
    worker = Worker(database, settings, clock)
    for due_at in sorted({send.due_at for send in sends}):
        clock.at = due_at
        asyncio.run(worker.work())
    left = sent(database)

    assert arrived(settings) == dict.fromkeys(left, 1)
    assert len(left) == len(sends)
    for send in sends:
        assert left[send.send_id].astimezone(ZoneInfo(send.timezone)).hour == send.assigned_local_hour
        assert 7 <= send.assigned_local_hour < 22


@pytest.mark.parametrize("jump_hours", [1, -1])
def test_a_clock_that_jumps_sends_nothing_twice_and_nothing_early(
    database: Database, settings: Settings, add_contacts, jump_hours: int
) -> None:
    """Set an hour forward or back in the middle: each once, none before its time by the clock of the worker."""
    begin = datetime(2026, 6, 3, 9, 0, tzinfo=UTC)
    settings = settings.model_copy(update={"quiet_hours": ""})
    sends = scheduled(database, settings, add_contacts, begin, hours=8)
    clock = JumpingClock(begin)
    worker = Worker(database, settings, clock)
    jumps_at = begin + timedelta(hours=4)
    readings = []
    while clock.at < begin + timedelta(hours=9):
        clock.at += STEP
        if clock.at >= jumps_at and not any(one >= jumps_at for one in readings):
            readings.append(clock.at)
            clock.at += timedelta(hours=jump_hours)
        readings.append(clock.at)
        asyncio.run(worker.work())
    left = sent(database)

    assert min(later - earlier for earlier, later in pairwise(readings)) < STEP or jump_hours > 0
    assert arrived(settings) == dict.fromkeys((send.send_id for send in sends), 1)
    skipped = (jumps_at, jumps_at + timedelta(hours=jump_hours) + STEP)
    for send in sends:
        late = left[send.send_id] - send.due_at
        # What fell due in an hour that the clock left out leaves as soon as it has jumped.
        in_the_gap = skipped[0] - STEP <= send.due_at <= skipped[1]
        assert timedelta(0) <= late <= (timedelta(hours=1) + STEP if in_the_gap else STEP)
    with database.reading() as session:
        logged = Counter(session.scalars(select(EventRow.ref).where(EventRow.kind == EMAIL_SENT)))
    assert logged == {str(send.send_id): 1 for send in sends}


def test_who_moves_after_the_plan_gets_the_mail_once_at_the_planned_instant(
    database: Database, settings: Settings, add_contacts
) -> None:
    """A new time zone changes the next plan, not this one: the row says which zone its hour was meant in."""
    begin = datetime(2026, 6, 3, 9, 0, tzinfo=UTC)
    sends = scheduled(database, settings, add_contacts, begin, hours=12, n=5)
    with database.writing() as session:
        moved = {send.contact_key: {"timezone": "America/Los_Angeles"} for send in sends}
        update_traits(session, moved, now=begin + timedelta(minutes=1))
    clock = JumpingClock(begin)
    worker = Worker(database, settings, clock)
    for due_at in sorted({send.due_at for send in sends}):
        clock.at = due_at
        asyncio.run(worker.work())
    left = sent(database)

    assert left == {send.send_id: send.due_at for send in sends}
    assert arrived(settings) == dict.fromkeys(left, 1)
    with database.reading() as session:
        zones = dict(session.execute(select(SendRow.send_id, SendRow.timezone)).all())
    assert zones == {send.send_id: send.timezone for send in sends}
