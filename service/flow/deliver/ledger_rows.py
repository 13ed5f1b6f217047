"""The ledger's statements: what a group of changes asks of the rows, and writes to them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.orm import Session

from service.flow.deliver.log_entries import Entry
from service.halts import leaving_allowed
from service.tables import CampaignRow, SendRow

HELD_BACK = "held back by a halt before it left"
CANCELLED = "campaign cancelled"

_SEND = cast(Table, SendRow.__table__)
BAR = (
    update(_SEND)
    .where(_SEND.c.send_id == bindparam("key"))
    .values(state="suppressed", reason=bindparam("why"), finished_at=bindparam("at"), lease_until=None)
)
BEGIN = (
    update(_SEND)
    .where(_SEND.c.send_id == bindparam("key"))
    .values(
        state="attempting",
        reason=None,
        lease_until=bindparam("until"),
        message_id=bindparam("id_of_message"),
        link_count=bindparam("links"),
    )
)
FINISH = (
    update(_SEND)
    .where(_SEND.c.send_id == bindparam("key"))
    .values(
        state=bindparam("to"),
        reason=bindparam("why"),
        smtp_code=bindparam("code"),
        due_at=bindparam("due"),
        finished_at=bindparam("at"),
        lease_until=None,
        attempts=bindparam("tries"),
        message_id=bindparam("id_of_message"),
        link_count=bindparam("links"),
    )
)
_HELD = (
    select(_SEND.c.send_id, _SEND.c.lease_token, leaving_allowed())
    .where(_SEND.c.send_id.in_(bindparam("ids", expanding=True)), _SEND.c.state.in_(("claimed", "attempting")))
    .order_by(_SEND.c.send_id)
    .with_for_update(of=_SEND)
)


def still_held(session: Session, entries: Sequence[Entry]) -> dict[int, bool]:
    """Sends whose lease is still ours, their rows locked, and whether nothing holds them back."""
    tokens = {entry.send.send_id: entry.send.lease_token for entry in entries}
    rows = session.connection().execute(_HELD, {"ids": list(tokens)})
    return {send_id: bool(free) for send_id, token, free in rows if token == tokens[send_id]}


def hold_back_all(session: Session, entries: Sequence[Entry]) -> dict[int, str]:
    """Plan again what was halted between its claim and its departure; what was cancelled ends so."""
    if not entries:
        return {}
    cancelled = cancelled_among(session, {entry.send.campaign_id for entry in entries})
    over = [entry for entry in entries if entry.send.campaign_id in cancelled]
    waiting = [entry for entry in entries if entry.send.campaign_id not in cancelled]
    for group, values in (
        (over, {"state": "cancelled", "reason": CANCELLED, "finished_at": entries[0].at}),
        (waiting, {"state": "planned", "reason": HELD_BACK}),
    ):
        if group:
            session.execute(
                update(SendRow)
                .where(SendRow.send_id.in_([entry.send.send_id for entry in group]))
                .values(**values, lease_until=None)
            )
    return {entry.send.send_id: "cancelled" for entry in over} | {entry.send.send_id: "halted" for entry in waiting}


def cancelled_among(session: Session, campaign_ids: Collection[str | None], *, lock: bool = False) -> set[str]:
    """Those of the campaigns that are cancelled.

    Parameters
    ----------
    lock : bool
        Let no one be cancelled until this transaction ends: who cancels then finds what it has planned.
    """
    named = {campaign_id for campaign_id in campaign_ids if campaign_id is not None}
    if not named:
        return set()
    query = select(CampaignRow.campaign_id, CampaignRow.status).where(CampaignRow.campaign_id.in_(named))
    if lock:
        query = query.order_by(CampaignRow.campaign_id).with_for_update(read=True)
    return {campaign_id for campaign_id, status in session.execute(query) if status == "cancelled"}
