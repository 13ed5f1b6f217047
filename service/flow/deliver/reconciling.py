"""What became of a mail whose fate a crash or a broken line left open: by what came back of it, or by a person."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from features.events import append, head, read_of_contacts
from features.tables import to_micros
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_COMPLAINED,
    EMAIL_DELIVERED,
    EMAIL_OPENED,
    UNSUBSCRIBED,
)
from service.errors import Conflict, NotFound
from service.flow.deliver.claiming import Claimed
from service.flow.deliver.ledger_rows import cancelled_among
from service.flow.deliver.log_entries import Entry, LogEntries
from service.mailboxes import OTHER
from service.suppression import identities_of
from service.tables import SendRow

#: So long is looked for what comes back of an ``unknown`` send. Then the reason says so, and it stays ``unknown``: it
#: goes on counting against the cap, and a person can still send it again or close it.
LOOKED_FOR = timedelta(hours=48)
#: A mail that is sent again by hand gets at least so long to leave.
RESENT_WITHIN = timedelta(hours=1)

#: What a mail that arrived leaves in the log.
_ARRIVED = (EMAIL_DELIVERED, EMAIL_OPENED, EMAIL_CLICKED, EMAIL_COMPLAINED, UNSUBSCRIBED)
_STILL_OPEN = "nothing was heard of it within 48 hours; it stays unknown until somebody sends it again or closes it"


def resend_unknown(session: Session, send_id: int, *, now: datetime, by: str = "kairos") -> None:
    """Plan an ``unknown`` send again, due now, with the same Message-ID: it may arrive twice.

    Raises
    ------
    NotFound
        If there is no such send.
    Conflict
        If it is not ``unknown``, or its campaign was cancelled.
    """
    row = _unknown(session, send_id, "sent again")
    if cancelled_among(session, {row.campaign_id}):
        raise Conflict(
            f"send {send_id} belongs to campaign {row.campaign_id}, which is cancelled; close it as accepted or failed"
        )
    row.state, row.due_at, row.finished_at = "planned", now, None
    row.not_after = max(row.not_after, now + RESENT_WITHIN)
    row.lease_token += 1  # whoever held it and wakes up late writes nothing
    row.lease_until = None
    row.reason = f"sent again by {by}, with the same Message-ID"[:300]
    session.flush()


def close_unknown(
    session: Session, send_id: int, as_state: Literal["accepted", "failed"], *, by: str, now: datetime
) -> None:
    """Write down what became of an ``unknown`` send; one that arrived enters the log as sent.

    Raises
    ------
    NotFound
        If there is no such send.
    Conflict
        If it is not ``unknown``.
    """
    row = _unknown(session, send_id, "closed")
    _close(session, [row], as_state, f"closed as {as_state} by {by}"[:200], now)


def reconcile(session: Session, *, now: datetime) -> dict[str, int]:
    """Close the ``unknown`` sends of which the log has heard; returns how many by state.

    A bounce closes as ``failed``; a delivery, an open, a click, a complaint or an unsubscribe as ``accepted``.
    """
    open_sends = session.scalars(
        select(SendRow)
        .where(SendRow.state == "unknown", func.coalesce(SendRow.reason, "").not_like(f"%{_STILL_OPEN}"))
        .order_by(SendRow.send_id)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    if not open_sends:
        return {}
    heard: dict[str, str] = {}
    events = read_of_contacts(
        session,
        {row.contact_key for row in open_sends},
        kinds=(*_ARRIVED, EMAIL_BOUNCED),
        since=min(to_micros(row.created_at) for row in open_sends),
        upto=head(session),
    )
    for event in events:
        if event.ref is not None and heard.get(event.ref) != "failed":
            heard[event.ref] = "failed" if event.kind == EMAIL_BOUNCED else "accepted"
    closed: dict[str, int] = {}
    for state in ("accepted", "failed"):
        rows = [row for row in open_sends if heard.get(str(row.send_id)) == state]
        if rows:
            what = "it bounced" if state == "failed" else "it was delivered, opened, clicked or answered"
            _close(session, rows, state, f"reconciled: {what}", now)
            closed[state] = len(rows)
    late = [
        row
        for row in open_sends
        if str(row.send_id) not in heard and (row.finished_at or row.due_at) < now - LOOKED_FOR
    ]
    for row in late:
        row.reason = _and_then(row.reason, _STILL_OPEN)
    if late:
        session.flush()
        closed["unknown"] = len(late)
    return closed


def _unknown(session: Session, send_id: int, what: str) -> SendRow:
    row = session.scalar(select(SendRow).where(SendRow.send_id == send_id).with_for_update())
    if row is None:
        raise NotFound(f"there is no send {send_id}; GET /v1/sends lists them")
    if row.state != "unknown":
        raise Conflict(f"send {send_id} is {row.state}; only an unknown one can be {what}")
    return row


def _close(session: Session, rows: Sequence[SendRow], state: str, reason: str, now: datetime) -> None:
    entries = []
    identities = identities_of(session, {row.contact_key for row in rows})
    for row in rows:
        # An erased contact's send is told of no more: its identity is gone.
        if state == "accepted" and row.contact_key in identities:
            tried_at = row.finished_at or now
            entries.append(Entry("finish", _claimed(row, identities[row.contact_key]), None, tried_at, state=state))
        row.state, row.reason = state, _and_then(row.reason, reason)
        row.finished_at = row.finished_at or now
    session.flush()
    if entries:
        append(session, LogEntries().events(session, entries), received_at=to_micros(now))


def _and_then(said: str | None, what: str) -> str:
    """A reason that keeps what the relay said, and ends with what followed."""
    return f"{said[: 298 - len(what)]}; {what}" if said else what[:300]


def _claimed(row: SendRow, identity: str) -> Claimed:
    named = {name: getattr(row, name) for name in Claimed.__slots__ if name not in ("identity", "mailbox", "attempts")}
    return Claimed(**named, identity=identity, mailbox=row.mailbox or OTHER, attempts=max(0, row.attempts - 1))
