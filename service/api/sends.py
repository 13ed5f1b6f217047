"""The send ledger: every intended mail, its state and why it is so."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.api.installation import Installation, allow, installation
from service.api.paging import Cursor, Limit, page, position
from service.tables import ContactRow, DecisionRow, SendRow

router = APIRouter(prefix="/v1/sends", tags=["sends"], dependencies=[Depends(allow("read"))])

State = Literal[
    "planned",
    "claimed",
    "attempting",
    "accepted",
    "failed",
    "unknown",
    "suppressed",
    "held_out",
    "unplaced",
    "cancelled",
    "expired",
]


@router.get("")
def list_sends(
    state: Annotated[State | None, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """The ledger, newest intent first."""
    with here.database.reading() as session:
        return list_of_sends(session, here.settings.signing_key, limit, cursor, state)


def list_of_sends(
    session: Session,
    signing_key: str,
    limit: int,
    cursor: str | None,
    state: str | None = None,
    campaign_id: str | None = None,
) -> dict[str, Any]:
    """A page of the ledger, with the decisions behind each mail; two queries a page."""
    query = select(SendRow, ContactRow.user_id).outerjoin(ContactRow, ContactRow.contact_key == SendRow.contact_key)
    if state is not None:
        query = query.where(SendRow.state == state)
    if campaign_id is not None:
        query = query.where(SendRow.campaign_id == campaign_id)
    last = position(signing_key, cursor, "sends", state, campaign_id)
    if last is not None:
        query = query.where(SendRow.send_id < last[0])
    rows = session.execute(query.order_by(SendRow.send_id.desc()).limit(limit + 1)).all()
    decisions: dict[int, list[dict[str, Any]]] = {}
    for decision in session.scalars(
        select(DecisionRow)
        .where(DecisionRow.send_id.in_([send.send_id for send, _ in rows]))
        .order_by(DecisionRow.experiment_id)
    ):
        decisions.setdefault(decision.send_id or 0, []).append(
            {
                "decision_id": decision.decision_id,
                "experiment": decision.experiment_id,
                "arm": decision.arm_id,
                "propensity": decision.propensity,
                "snapshot": decision.snapshot_id,
            }
        )
    return page(
        signing_key,
        rows,
        limit,
        lambda row: _shown(row[0], row[1], decisions.get(row[0].send_id, [])),
        lambda row: [row[0].send_id],
        "sends",
        state,
        campaign_id,
    )


def _shown(row: SendRow, user_id: str | None, decisions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": str(row.send_id),
        "user_id": user_id,
        "campaign_id": row.campaign_id,
        "stream": row.stream,
        "topic": row.topic,
        "template_id": row.template_id,
        "template_version": row.template_version,
        "state": row.state,
        "reason": row.reason,
        "due_at": row.due_at,
        "not_after": row.not_after,
        "timezone": row.timezone,
        "assigned_local_hour": row.assigned_local_hour,
        "hour_propensity": row.hour_propensity,
        "hour_reason": row.hour_reason,
        "is_holdout": row.is_holdout,
        "decisions": decisions,
        "attempts": row.attempts,
        "message_id": row.message_id,
        "smtp_code": row.smtp_code,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
    }
