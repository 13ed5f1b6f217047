"""The send ledger: every intended mail, its state and why it is so."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.api.installation import Installation, allow, installation
from service.api.paging import Cursor, Limit, page, position
from service.flow.deliver import close_unknown, resend_unknown
from service.keys import Key
from service.links import LARGEST_ID
from service.tables import ContactRow, DecisionRow, SendRow

router = APIRouter(prefix="/v1/sends", tags=["sends"])

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


@router.get("", dependencies=[Depends(allow("read"))])
def list_sends(
    state: Annotated[State | None, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """The ledger, newest intent first."""
    with here.database.reading() as session:
        return list_of_sends(session, here.settings.signing_key, limit, cursor, state)


class Closing(BaseModel):
    """What became of a send."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["accepted", "failed"]


SendId = Annotated[int, Path(ge=1, le=LARGEST_ID)]


@router.post("/{send_id}/resend")
def resend(
    send_id: SendId, key: Key = Depends(allow("send")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Send an unknown mail again, with the same Message-ID; it gets at least an hour to leave, and may arrive twice."""
    with here.database.writing() as session:
        resend_unknown(session, send_id, now=here.clock.now(), by=key.key_id)
        return _one(session, send_id)


@router.post("/{send_id}/close")
def close(
    send_id: SendId,
    body: Closing,
    key: Key = Depends(allow("send")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Write down what became of an unknown mail: it was accepted, or it failed."""
    with here.database.writing() as session:
        close_unknown(session, send_id, body.state, by=key.key_id, now=here.clock.now())
        return _one(session, send_id)


def _one(session: Session, send_id: int) -> dict[str, Any]:
    query = select(SendRow, ContactRow.user_id).outerjoin(ContactRow, ContactRow.contact_key == SendRow.contact_key)
    row, user_id = session.execute(query.where(SendRow.send_id == send_id)).one()
    return _shown(row, user_id, _decisions(session, [send_id]).get(send_id, []))


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
    decisions = _decisions(session, [send.send_id for send, _ in rows])
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


def _decisions(session: Session, send_ids: list[int]) -> dict[int, list[dict[str, Any]]]:
    decisions: dict[int, list[dict[str, Any]]] = {}
    for decision in session.scalars(
        select(DecisionRow).where(DecisionRow.send_id.in_(send_ids)).order_by(DecisionRow.experiment_id)
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
    return decisions


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
        "is_canary": row.is_canary,
        "mailbox": row.mailbox,
        "decisions": decisions,
        "attempts": row.attempts,
        "message_id": row.message_id,
        "smtp_code": row.smtp_code,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
    }
