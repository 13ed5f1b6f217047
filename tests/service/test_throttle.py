"""Laws of the throttle: no minute holds more than the limit and a twentieth, whatever workers and clocks do."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from service.database import Database
from service.mailboxes import WARM_UP, warm_up_limits
from service.settings import Settings
from service.tables import DepartureRow, SendRow
from service.throttle import (
    ALL,
    capacity,
    count_departures,
    day_of,
    earned,
    open_room,
)
from tests.service.mailing import plan, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


@settings(max_examples=200, deadline=None)
@given(
    rate=st.integers(1, 20_000),
    looks=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 1), st.floats(0, 2)), min_size=1, max_size=150),
)
def test_no_minute_holds_more_than_the_limit_and_a_twentieth(
    rate: int, looks: list[tuple[float, float, float]]
) -> None:
    """Random workers look at random times, take a random share, and each mail leaves up to two seconds after its claim.

    For limits so small that a twentieth is less than one mail, the claims keep the limit, and jitter may add one.
    """
    tokens, counted_at, at = capacity(rate), NOW, 0.0
    claims: list[tuple[float, int]] = []
    departures: list[tuple[float, int]] = []
    for wait, share, jitter in looks:
        at += wait
        tokens, counted_at = earned(tokens, counted_at, NOW + timedelta(seconds=at), rate)
        taken = int(tokens * share) if share < 0.7 else int(tokens)
        tokens -= taken
        claims.append((at, taken))
        departures.append((at + jitter, taken))
    assert _fullest_minute(claims) <= max(1.02 * rate, rate)
    assert _fullest_minute(departures) <= max(1.05 * rate, rate + 1)


def _fullest_minute(mails: list[tuple[float, int]]) -> int:
    return max(sum(n for at, n in mails if begin <= at < begin + 59.999) for begin, _ in mails)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps_neither_bursts_nor_stalls(hours: int) -> None:
    """After a jump of an hour the bucket holds no more than it may, and goes on earning at once."""
    tokens, counted_at = earned(0.0, NOW, NOW + timedelta(hours=hours), 6000)
    assert tokens <= capacity(6000)
    tokens, _ = earned(tokens, counted_at, NOW + timedelta(hours=hours, seconds=1), 6000)
    assert 90 <= tokens <= capacity(6000)


def test_two_clocks_that_differ_earn_no_more_than_one() -> None:
    """A worker whose clock is 20 s behind does not turn the bucket's time back for the other one to earn it again."""
    tokens, counted_at = 0.0, NOW
    gained = 0.0
    for second in range(60):
        for behind in (0, 20):
            now = NOW + timedelta(seconds=second - behind)
            tokens, counted_at = earned(tokens, counted_at, now, 60)
            gained, tokens = gained + tokens, 0.0
    assert gained <= 60


def test_workers_share_the_buckets(any_database: Database, settings: Settings) -> None:
    """What one took is not there for the next one; it comes back with time, and counts as the day's departures."""
    bounded = settings.model_copy(update={"send_rate_per_minute": 6000, "mailbox_rates": "gmail=60"})
    with any_database.writing() as session:
        room = open_room(session, now=NOW, settings=bounded)
        assert (room.most, room.left("gmail"), room.left("other")) == (200, 2, None)
        room.take(session, Counter(gmail=2, other=100))
    with any_database.writing() as session:
        room = open_room(session, now=NOW, settings=bounded)
        assert (room.most, room.left("gmail"), room.full()) == (98, 0, ["gmail"])
        assert 0.9 < (room.wait_seconds() or 0) < 1.1
        room = open_room(session, now=NOW + timedelta(seconds=1.1), settings=bounded)
        assert (room.most, room.left("gmail")) == (200, 1)
        assert room.tokens.keys() == {ALL, "gmail"}


def test_the_warm_up_climbs_with_the_days_on_which_mail_left(any_database: Database, settings: Settings) -> None:
    """50 on the first day whenever it comes, then the table; each provider climbs by itself; idle for a month: anew."""
    cold = settings.model_copy(update={"warm_up_from": date(2026, 2, 1)})
    with any_database.writing() as session:
        room = open_room(session, now=NOW, settings=cold)
        assert room.left("gmail") == 50
        count_departures(session, {"gmail": 30, "yahoo": -2}, now=NOW)
        count_departures(session, {"gmail": -5}, now=NOW)
    with any_database.writing() as session:
        assert open_room(session, now=NOW, settings=cold).left("gmail") == 25
        tomorrow = NOW + timedelta(days=1)
        room = open_room(session, now=tomorrow, settings=cold)
        assert (room.left("gmail"), room.left("yahoo")) == (100, 50)
        count_departures(session, {"gmail": -1000}, now=NOW)
        assert session.get_one(DepartureRow, {"day": day_of(NOW), "mailbox": "gmail"}).mails == 0
    days = {day: 1000 for day in range(100, 100 + len(WARM_UP))}
    end = 100 + len(WARM_UP)
    assert warm_up_limits(days, [*range(100, end), end, end + 30], began=100) == [*WARM_UP, None, 50]
    assert warm_up_limits(days, [90, 101], began=101) == [50, 50]


def test_what_a_worker_holds_is_taken_off_the_warm_up_until_it_counts_as_departed(
    any_database: Database, settings: Settings
) -> None:
    """Three claimed mails leave room for 47; held-out ones and those that are attempted take none of it."""
    cold = settings.model_copy(update={"warm_up_from": NOW.date()})
    keys = subscribe(any_database, 6, now=NOW)
    ids = plan(any_database, keys, now=NOW, mailbox="gmail")
    with any_database.writing() as session:
        session.execute(update(SendRow).where(SendRow.send_id.in_(ids)).values(state="claimed"))
        session.execute(update(SendRow).where(SendRow.send_id == ids[0]).values(is_holdout=True))
        session.execute(update(SendRow).where(SendRow.send_id.in_(ids[1:3])).values(state="attempting"))
        assert open_room(session, now=NOW, settings=cold).allowance["gmail"] == 47
        count_departures(session, {"gmail": 2}, now=NOW)
        assert open_room(session, now=NOW, settings=cold).allowance["gmail"] == 45


@pytest.mark.parametrize(("written", "says"), [("gmail=0", "at least 1"), ("gnail=5", "gnail=5"), ("gmail", "no rate")])
def test_a_rate_that_cannot_be_kept_is_refused(written: str, says: str) -> None:
    """A rate of zero, a provider that is none, a rate that is missing: named, with the remedy."""
    with pytest.raises(ValueError, match=says):
        Settings(mailbox_rates=written, _env_file=None)
