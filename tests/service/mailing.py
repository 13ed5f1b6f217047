"""An installation with contacts, a template and sends in its ledger, for the tests of what mails."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from features.contacts import resolve, update_traits
from features.tables import allocate
from service.database import Database
from service.flow.render import compile_template
from service.suppression import Consent, set_consent
from service.tables import CampaignRow, EventRow, SendRow, TemplateRow

TOPIC = "news"
OFFER = (Path(__file__).parents[2] / "templates" / "email" / "offer.mjml").read_text()


def subscribe(database: Database, n: int, *, now: datetime, prefix: str = "c") -> list[int]:
    """``n`` contacts with addresses ``<prefix><i>@shop.example``, subscribed to the topic."""
    identities = [f"user:{prefix}{i}" for i in range(n)]
    with database.writing() as session:
        keys = resolve(session, identities, now=now)
        traits = {
            keys[identity]: {"email": f"{identity[5:]}@shop.example", "first_name": identity[5:].upper()}
            for identity in identities
        }
        update_traits(session, traits, now=now)
        set_consent(session, [Consent(keys[i], TOPIC, "subscribed", "test") for i in identities], now=now)
    return [keys[identity] for identity in identities]


def add_template(
    database: Database, *, now: datetime, source: str = OFFER, subject: str = "For you, {{ first_name }}"
) -> None:
    """The template ``offer``, version 1."""
    with database.writing() as session:
        session.add(
            TemplateRow(
                template_id="offer",
                version=1,
                name="Offer",
                subject=subject,
                source=source,
                source_format="mjml",
                compiled_html=compile_template(source, "mjml"),
                created_at=now,
            )
        )


def plan(database: Database, contact_keys: Sequence[int], *, now: datetime, **values: Any) -> list[int]:
    """One planned, decided send for each contact, due now."""
    with database.writing() as session:
        first = allocate(session, "send_id", len(contact_keys))
        rows = [
            {
                "send_id": first + place,
                "intent_key": f"test/{first + place}",
                "contact_key": key,
                "campaign_id": None,
                "stream": "marketing",
                "topic": TOPIC,
                "template_id": "offer",
                "template_version": 1,
                "state": "planned",
                "due_at": now,
                "not_after": now + timedelta(days=2),
                "timezone": "Europe/Paris",
                "assigned_local_hour": 10,
                "hour_propensity": 0.5,
                "hour_reason": "best",
                "is_holdout": False,
                "decided_at": now,
                "lease_token": 0,
                "attempts": 0,
                "created_at": now,
            }
            | values
            for place, key in enumerate(contact_keys)
        ]
        session.execute(insert(SendRow), rows)
    return [row["send_id"] for row in rows]


def campaign(campaign_id: str, now: datetime, **values: Any) -> CampaignRow:
    """A scheduled campaign's row, to everyone, at once."""
    plain = {
        "name": campaign_id,
        "status": "scheduled",
        "template_id": "offer",
        "template_version": 1,
        "audience": {"everyone": True},
        "experiments": [],
        "topic": TOPIC,
        "window_start": now,
        "window_end": now + timedelta(days=1),
        "holdout_share": 0.0,
        "timing": "at_start",
        "created_at": now,
        "scheduled_at": now,
    }
    return CampaignRow(campaign_id=campaign_id, **(plain | values))


def states(database: Database) -> dict[int, str]:
    """State of each send."""
    with database.reading() as session:
        return {row.send_id: row.state for row in session.execute(select(SendRow.send_id, SendRow.state))}


def send_row(database: Database, send_id: int) -> SendRow:
    """One line of the ledger."""
    with database.reading() as session:
        row = session.get(SendRow, send_id)
        assert row is not None
        return row


def events(database: Database, kind: str) -> list[EventRow]:
    """Events of a kind, in the order of the log."""
    with database.reading() as session:
        return list(session.execute(select(EventRow).where(EventRow.kind == kind).order_by(EventRow.seq)).scalars())
