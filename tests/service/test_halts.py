"""Laws of what may leave: halts of everything, a stream or a mailbox provider, and the state of a campaign."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from service.database import Database
from service.halts import EVERYTHING, halt, halts_in_force, leaving_allowed, lift, mailbox_scope, stream_scope
from service.tables import CampaignRow, SendRow
from tests.service.mailing import plan


def campaign(campaign_id: str, now: datetime, **values: Any) -> CampaignRow:
    plain = {
        "name": campaign_id,
        "status": "scheduled",
        "template_id": "offer",
        "template_version": 1,
        "audience": {"everyone": True},
        "experiments": [],
        "topic": "news",
        "window_start": now,
        "window_end": now + timedelta(days=1),
        "holdout_share": 0.0,
        "timing": "at_start",
        "created_at": now,
    }
    return CampaignRow(campaign_id=campaign_id, **(plain | values))


def leaving(database: Database) -> set[int]:
    with database.reading() as session:
        return set(session.scalars(select(SendRow.send_id).where(leaving_allowed())))


@pytest.mark.parametrize(
    ("scope", "stopped"),
    [
        (EVERYTHING, {"marketing", "gmail", "transactional"}),
        (stream_scope("marketing"), {"marketing", "gmail"}),
        (stream_scope("transactional"), {"transactional"}),
        (mailbox_scope("gmail"), {"gmail"}),
    ],
)
def test_a_halt_holds_back_its_scope_until_it_is_lifted(
    any_database: Database, now: datetime, scope: str, stopped: set[str]
) -> None:
    """Mail outside the scope leaves; a mail whose mailbox provider nobody noted is in no mailbox's scope."""
    ids = {
        "marketing": plan(any_database, [1], now=now)[0],
        "gmail": plan(any_database, [2], now=now, mailbox="gmail")[0],
        "transactional": plan(any_database, [3], now=now, stream="transactional")[0],
    }
    with any_database.writing() as session:
        first = halt(session, scope, reason="harm", by="test", now=now)
        assert halt(session, scope, reason="again", by="other", now=now) == first
    assert leaving(any_database) == {ids[name] for name in ids.keys() - stopped}
    with any_database.writing() as session:
        assert [(row.scope, row.reason) for row in halts_in_force(session)] == [(scope, "harm")]
        assert lift(session, scope, by="test", now=now)
        assert not lift(session, scope, by="test", now=now)
    assert leaving(any_database) == set(ids.values())


@pytest.mark.parametrize(
    ("values", "leaves"),
    [
        ({}, {"canary", "other"}),
        ({"status": "paused"}, set()),
        ({"status": "cancelled"}, set()),
        ({"canary_state": "waiting"}, {"canary"}),
        ({"canary_state": "held"}, {"canary"}),
        ({"canary_state": "held", "status": "paused"}, set()),
        ({"canary_state": "passed"}, {"canary", "other"}),
    ],
)
def test_a_campaign_lets_leave_what_its_state_allows(
    any_database: Database, now: datetime, values: dict[str, str], leaves: set[str]
) -> None:
    """While a canary is watched only its own mails leave; what belongs to no campaign is not concerned."""
    with any_database.writing() as session:
        session.add(campaign("c", now, **values))
    ids = {
        "canary": plan(any_database, [1], now=now, campaign_id="c", is_canary=True)[0],
        "other": plan(any_database, [2], now=now, campaign_id="c")[0],
    }
    [free] = plan(any_database, [3], now=now)
    assert leaving(any_database) == {ids[name] for name in leaves} | {free}
