"""Laws of what may leave: halts of everything, a stream or a mailbox provider, and the state of a campaign."""

from datetime import datetime

from sqlalchemy import select

from service.database import Database
from service.halts import (
    EVERYTHING,
    halt,
    halts_in_force,
    leaving_allowed,
    lift,
    mailbox_scope,
    stream_scope,
    take_back,
)
from service.tables import SendRow
from tests.service.mailing import campaign, plan, send_row


def leaving(database: Database) -> set[int]:
    with database.reading() as session:
        return set(session.scalars(select(SendRow.send_id).where(leaving_allowed())))


def test_a_halt_holds_back_its_scope_until_it_is_lifted(any_database: Database, now: datetime) -> None:
    """Mail outside the scope leaves; a mail whose mailbox provider nobody noted is in no mailbox's scope."""
    ids = {
        "marketing": plan(any_database, [1], now=now)[0],
        "gmail": plan(any_database, [2], now=now, mailbox="gmail")[0],
        "transactional": plan(any_database, [3], now=now, stream="transactional")[0],
    }
    for scope, stopped in (
        (EVERYTHING, {"marketing", "gmail", "transactional"}),
        (stream_scope("marketing"), {"marketing", "gmail"}),
        (stream_scope("transactional"), {"transactional"}),
        (mailbox_scope("gmail"), {"gmail"}),
    ):
        with any_database.writing() as session:
            first = halt(session, scope, reason="harm", by="test", now=now)
            assert halt(session, scope, reason="again", by="other", now=now) == first
        assert leaving(any_database) == {ids[name] for name in ids.keys() - stopped}, scope
        with any_database.writing() as session:
            assert [(row.scope, row.reason) for row in halts_in_force(session)] == [(scope, "harm")]
            assert lift(session, scope, by="test", now=now)
            assert not lift(session, scope, by="test", now=now)
        assert leaving(any_database) == set(ids.values())


def test_a_campaign_lets_leave_what_its_state_allows(any_database: Database, now: datetime) -> None:
    """While a canary is watched only its own mails leave; what belongs to no campaign is not concerned."""
    [free] = plan(any_database, [99], now=now)
    expected = {free}
    for place, (status, canary_state, leaves) in enumerate(
        (
            ("scheduled", "none", {"canary", "other"}),
            ("paused", "none", set()),
            ("cancelled", "none", set()),
            ("scheduled", "waiting", {"canary"}),
            ("scheduled", "held", {"canary"}),
            ("paused", "held", set()),
            ("scheduled", "passed", {"canary", "other"}),
            ("scheduled", "overruled", {"canary", "other"}),
        )
    ):
        with any_database.writing() as session:
            session.add(campaign(f"c{place}", now, status=status, canary_state=canary_state))
        ids = {
            "canary": plan(any_database, [1], now=now, campaign_id=f"c{place}", is_canary=True)[0],
            "other": plan(any_database, [2], now=now, campaign_id=f"c{place}")[0],
        }
        expected |= {ids[name] for name in leaves}
    assert leaving(any_database) == expected


def test_what_a_worker_holds_is_taken_back_and_fenced(any_database: Database, now: datetime) -> None:
    """A halted claim is planned again under a new token; what may leave, and what is leaving, stays with its worker."""
    held = {"state": "claimed", "lease_token": 4, "lease_until": now}
    stopped = plan(any_database, [1, 2], now=now, **held)
    [attempting] = plan(any_database, [3], now=now, **(held | {"state": "attempting"}))
    [transactional] = plan(any_database, [4], now=now, **(held | {"stream": "transactional"}))
    with any_database.writing() as session:
        halt(session, stream_scope("marketing"), reason="harm", by="test", now=now)
        assert take_back(session) == 2
    rows = {send_id: send_row(any_database, send_id) for send_id in (*stopped, attempting, transactional)}
    assert [(rows[one].state, rows[one].lease_token, rows[one].lease_until) for one in stopped] == [
        ("planned", 5, None)
    ] * 2
    assert [(rows[one].state, rows[one].lease_token) for one in (attempting, transactional)] == [
        ("attempting", 4),
        ("claimed", 4),
    ]
