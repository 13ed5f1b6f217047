"""Contacts: who they are, what they did, what is known and expected of them."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.online import served_features
from features.tables import from_micros
from features.views import DEFAULT_VIEWS
from service.api.installation import Installation, allow, as_problem, aware, find_contact, installation
from service.api.paging import Cursor, Limit, before, page, position
from service.api.predictions import shown_predictions
from service.erase import erase_contacts
from service.flow.predict import predict
from service.keys import Key
from service.suppression import release_contact
from service.tables import ConsentRow, ContactRow, EventRow, IdentityRow

router = APIRouter(prefix="/v1/contacts", tags=["contacts"])
READ, WRITE = [Depends(allow("read"))], [Depends(allow("write"))]


class ReleaseBody(BaseModel):
    """Why the address may get mail again."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=300)


@router.get("", dependencies=READ)
def list_contacts(
    limit: Limit = 50, cursor: Cursor = None, here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Contacts in the order in which they came."""
    query = select(ContactRow).order_by(ContactRow.contact_key)
    last = position(here.settings.signing_key, cursor, "contacts")
    if last is not None:
        query = query.where(ContactRow.contact_key > last[0])
    with here.database.reading() as session:
        rows = session.scalars(query.limit(limit + 1)).all()
    return page(here.settings.signing_key, rows, limit, _shown, lambda row: [row.contact_key], "contacts")


# A user id may hold slashes: the longer paths come first, the bare one takes what is left.
@router.get("/{user_id:path}/events", dependencies=READ)
def list_events(
    user_id: str,
    limit: Limit = 50,
    cursor: Cursor = None,
    event: str | None = Query(None, max_length=80, description="Only events of this name."),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """What the contact did and what was done for it, newest first."""
    last = position(here.settings.signing_key, cursor, "events", user_id, event)
    with here.database.reading() as session:
        query = select(EventRow).where(EventRow.contact_key == find_contact(session, user_id))
        if event is not None:
            query = query.where(EventRow.kind == event)
        if last is not None:
            query = query.where(before((EventRow.occurred_at, EventRow.seq), last))
        rows = session.scalars(query.order_by(EventRow.occurred_at.desc(), EventRow.seq.desc()).limit(limit + 1)).all()
    return page(
        here.settings.signing_key,
        rows,
        limit,
        _shown_event,
        lambda row: [row.occurred_at, row.seq],
        "events",
        user_id,
        event,
    )


@router.get("/{user_id:path}/vector", dependencies=READ, response_model=None)
def read_vector(
    user_id: str,
    as_of: datetime | None = Query(None, description="Instant; only what was known then counts. Default: now."),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """The contact's features as of an instant, as the models see them."""
    instant = here.clock.now() if as_of is None else aware(as_of, "as_of")
    with here.database.reading() as session, as_problem():
        key = find_contact(session, user_id)
        served = served_features(session, [key], instant, DEFAULT_VIEWS, here.cache)
    if as_of is None:  # what the models are asked about; a look into the past is not kept
        here.vectors.record([key], instant, DEFAULT_VIEWS, served)
    return {
        "user_id": user_id,
        "as_of": instant,
        "view_set": DEFAULT_VIEWS.version,
        "features": {
            name: value if math.isfinite(value) else None
            for name, value in zip(DEFAULT_VIEWS.names, served.X[0].tolist(), strict=True)
        },
    }


@router.get("/{user_id:path}/predictions", dependencies=READ, response_model=None)
def read_predictions(user_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """What the contact is expected to do, computed now; null with a why where nothing can be said."""
    now = here.clock.now()
    with here.database.reading() as session:
        key = find_contact(session, user_id)
        predictions = predict(session, [key], here.serving, as_of=now, cache=here.cache, record=here.vectors.record)
        return shown_predictions(session, predictions, [user_id], here.settings)[0]


@router.get("/{user_id:path}", dependencies=READ)
def read_contact(user_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Profile: traits, time zone, address, consent in force, names."""
    with here.database.reading() as session:
        row = session.get_one(ContactRow, find_contact(session, user_id))
        identities = session.scalars(
            select(IdentityRow.identity)
            .where(IdentityRow.contact_key == row.contact_key)
            .order_by(IdentityRow.created_at, IdentityRow.identity)
        ).all()
        return _shown(row) | {"identities": list(identities), "consent": _consent(session, row.contact_key)}


@router.post("/{user_id:path}/release")
def release(
    user_id: str,
    body: ReleaseBody,
    key: Key = Depends(allow("admin")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Take the contact's address off the suppression list, whatever but its own unsubscribing put it there.

    Consent stays as it is. An `Address Released` event keeps who did it and why.
    """
    now = here.clock.now()
    with here.database.writing() as session:
        contact_key = find_contact(session, user_id)
        was = release_contact(
            session, contact_key, reason=body.reason, by=key.key_id, pepper=here.settings.pepper, now=now
        )
    return {"user_id": user_id, "was": was, "reason": body.reason, "by": key.key_id, "at": now}


@router.delete("/{user_id:path}", dependencies=WRITE, status_code=202)
def erase_contact(user_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Erase the contact: at once from the database; the worker takes it out of the files, every 15 minutes."""
    erased = erase_contacts(here.database, here.settings, [user_id], now=here.clock.now())
    return {
        "user_id": user_id,
        "events": erased.events,
        "sends_cancelled": erased.sends_cancelled,
        "sends_leaving": erased.sends_leaving,
        "pending": "files",
        "note": "the contact is out of the database; the worker takes it out of the files, looking every 15 minutes",
    }


def _shown(row: ContactRow) -> dict[str, Any]:
    return {
        "user_id": row.user_id,
        "email": row.email,
        "timezone": row.timezone,
        "timezone_source": row.timezone_source,
        "traits": row.traits,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _consent(session: Session, contact_key: int) -> list[dict[str, Any]]:
    lines = session.scalars(
        select(ConsentRow).where(ConsentRow.contact_key == contact_key).order_by(ConsentRow.consent_id)
    )
    in_force = {(line.channel, line.topic): line for line in lines}
    return [
        {
            "channel": line.channel,
            "topic": line.topic,
            "state": line.state,
            "source": line.source,
            "text_version": line.text_version,
            "at": line.at,
        }
        for line in in_force.values()
    ]


def _shown_event(row: EventRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "event": row.kind,
        "occurred_at": from_micros(row.occurred_at),
        "received_at": from_micros(row.received_at),
        "message_id": row.message_id,
        "ref": row.ref,
        "value_minor": row.value_minor,
        "human_probability": None if row.human_ppm is None else row.human_ppm / 1e6,
        "is_repeat": row.is_repeat,
        "is_imported": row.is_imported,
        "properties": json.loads(row.properties) if row.properties else {},
    }
