"""Second thoughts while a worker sends over SMTP: what was in the air is known, nothing more leaves, none is lost."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from service.campaigns import (
    cancel_campaign,
    find_campaign,
    pause_campaign,
    resume_campaign,
    resume_sending,
    stop_sending,
)
from service.clock import SystemClock
from service.database import Database
from service.settings import Settings
from service.sink import MailSink
from service.worker import run
from tests.service.mailing import add_template, campaign, plan, send_row, states, subscribe

MAILS = 40
#: What the issue allows between the wish and the last mail.
SECONDS = 5.0


def slow(_address: str) -> None:
    """A relay that takes 15 ms for each mail, one at a time."""
    time.sleep(0.015)


@contextmanager
def sending(database: Database, settings: Settings) -> Iterator[MailSink]:
    """A campaign of `MAILS` mails and a worker that sends it into a slow sink."""
    now = datetime.now(UTC) - timedelta(minutes=1)
    keys = subscribe(database, MAILS, now=now)
    add_template(database, now=now)
    with database.writing() as session:
        session.add(campaign("c", now))
    plan(database, keys, now=now, campaign_id="c")
    end = threading.Event()
    with MailSink(on_message=slow) as sink:
        here = settings.model_copy(update={"smtp_url": sink.url, "quiet_hours": ""})
        worker = threading.Thread(target=run, args=(database, here, SystemClock(), end), daemon=True)
        worker.start()
        try:
            until(lambda: sink.count >= 8)
            yield sink
        finally:
            end.set()
            worker.join(30)


def until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def settled(database: Database, sink: MailSink) -> int:
    """Mails that had left once nothing moved any more; the ledger agrees with the sink on them."""
    wished = time.monotonic()
    until(lambda: not {"claimed", "attempting"} & set(states(database).values()), SECONDS)
    left = sink.count
    time.sleep(max(0.0, wished + 1.5 - time.monotonic()))  # more than a round of the worker
    assert sink.count == left
    assert list(states(database).values()).count("accepted") == left < MAILS
    return left


def test_a_stop_acts_at_once_and_loses_nothing(any_database: Database, settings: Settings) -> None:
    """Within seconds nothing is in the air and nothing leaves, whichever campaign it belongs to."""
    with sending(any_database, settings) as sink:
        with any_database.writing() as session:
            stop_sending(session, reason="wrong price", by="k", now=datetime.now(UTC))
        left = settled(any_database, sink)
        assert list(states(any_database).values()).count("planned") == MAILS - left
        quiet = settings.model_copy(update={"quiet_hours": ""})
        with any_database.writing() as session:
            assert resume_sending(session, quiet, by="k", now=datetime.now(UTC)) is not None
        until(lambda: set(states(any_database).values()) == {"accepted"})
        assert sorted(mail.recipient for mail in sink.deliveries) == sorted(f"c{i}@shop.example" for i in range(MAILS))


@pytest.mark.parametrize(
    "which",
    ["database", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])],
)
def test_a_paused_campaign_goes_on_or_is_cancelled(
    request: pytest.FixtureRequest, settings: Settings, which: str
) -> None:
    """Paused, resumed and cancelled while it leaves: what had not left is cancelled with the reason, and stays so."""
    database: Database = request.getfixturevalue(which)
    quiet = settings.model_copy(update={"quiet_hours": ""})
    with sending(database, settings) as sink:
        with database.writing() as session:
            pause_campaign(session, "c", reason="wrong price", by="k", now=datetime.now(UTC))
        left = settled(database, sink)
        with database.writing() as session:
            assert resume_campaign(session, "c", quiet, by="k", now=datetime.now(UTC)).planned == MAILS - left
        until(lambda: sink.count > left)
        with database.writing() as session:
            cancel_campaign(session, "c", reason="the offer is over", by="k", now=datetime.now(UTC))
        left = settled(database, sink)
        ended = [send_id for send_id, state in states(database).items() if state == "cancelled"]
        assert len(ended) == MAILS - left
        assert send_row(database, ended[0]).reason == "campaign cancelled: the offer is over"
        with database.reading() as session:
            row = find_campaign(session, "c")
        assert (row.status, row.status_reason, row.status_by) == ("cancelled", "the offer is over", "k")
