"""From draft to sends, and second thoughts: pause, resume, cancel, and stopping everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, func, select, true, update
from sqlalchemy.orm import Session

from service.campaigns.approval import check_approval, digest_of
from service.campaigns.drafts import find_campaign
from service.campaigns.overdue import Overdue, settle_overdue
from service.campaigns.planning import planned_sends
from service.errors import Conflict, Invalid
from service.flow.schedule import Sends, write_sends
from service.halts import EVERYTHING, halt, halts_in_force, lift, mailbox_scope, stream_scope, take_back
from service.mailboxes import DOMAINS, OTHER
from service.sender_checks import check_bulk
from service.settings import Settings
from service.tables import CampaignRow, ErasureRow, ExperimentRow, SendRow
from training.serving import Serving


@dataclass(frozen=True, slots=True)
class Resumed:
    """What goes on after a pause."""

    #: Mails that are planned.
    planned: int
    #: Mails whose last useful moment passed meanwhile.
    expired: int
    #: Mails that were overdue in their contact's quiet hours, and leave in the morning.
    postponed: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A draft placed for scheduling, and what it was when it was."""

    campaign_id: str
    sends: Sends
    recipients: int
    digest: str


def prepare_campaign(
    session: Session, campaign_id: str, serving: Serving, settings: Settings, *, now: datetime
) -> Prepared:
    """Place the draft's audience and ask the name server after the sender's set-up; nothing is written.

    The long part of scheduling, a minute for a million contacts: call it in ``Database.reading()``, so that nobody who
    writes waits for it, and hand what it returns to `schedule_prepared`.

    Raises
    ------
    Conflict
        If the campaign is not a draft, or is bulk mail and the sender's set-up is not green.
    """
    campaign = _draft(session, campaign_id)
    sends, _, _ = planned_sends(session, campaign, serving, settings, now)
    recipients = int((sends.state == "planned").sum())
    check_bulk(settings, recipients=recipients)
    return Prepared(campaign_id, sends, recipients, digest_of(session, campaign))


def schedule_prepared(
    session: Session, prepared: Prepared, settings: Settings, *, now: datetime, by: str | None = None
) -> dict[str, int]:
    """Put the sends into the ledger, in one transaction: all or none; returns the contacts by state and reason.

    On SQLite everybody else who writes waits for it: about 34 s for a million contacts on two busy cores.

    What happened since they were placed: a change of the draft or of its arms refuses it; contacts who were erased are
    left out; consent, suppression, breaks, the frequency cap and the relay's rates are looked at when a mail is
    claimed, as they are for whatever changes between the plan and the mail's hour.

    Raises
    ------
    Conflict
        If the campaign is no draft any more or was changed, or goes to more than `Settings.approval_above` contacts
        without approval.
    """
    campaign_id = prepared.campaign_id
    campaign = _draft(session, campaign_id, for_update=True)
    # Whoever adds or rewrites an arm holds its experiment: it is in the digest, or sees the campaign scheduled.
    asked = select(ExperimentRow.experiment_id).where(ExperimentRow.experiment_id.in_(campaign.experiments))
    session.execute(asked.order_by(ExperimentRow.experiment_id).with_for_update())
    if digest_of(session, campaign) != prepared.digest:
        raise Conflict(f"campaign {campaign_id} was changed while its sends were placed; look at it and schedule again")
    check_approval(session, campaign, prepared.recipients, settings.approval_above)
    sends = _without_erased(session, prepared.sends)
    write_sends(session, sends, now=now)
    _turn(campaign, "scheduled", None, by, now)
    campaign.scheduled_at = now
    canary = select(SendRow.send_id).where(
        SendRow.campaign_id == campaign_id, SendRow.is_canary.is_(True), SendRow.state == "planned"
    )
    campaign.canary_state = "none" if session.scalar(canary.limit(1)) is None else "waiting"
    session.flush()
    return sends.counts()


def schedule_campaign(
    session: Session, campaign_id: str, serving: Serving, settings: Settings, *, now: datetime, by: str | None = None
) -> dict[str, int]:
    """`prepare_campaign` and `schedule_prepared` in one transaction, where nobody else waits to write.

    Raises
    ------
    Conflict
        As these two.
    """
    prepared = prepare_campaign(session, campaign_id, serving, settings, now=now)
    return schedule_prepared(session, prepared, settings, now=now, by=by)


def _without_erased(session: Session, sends: Sends) -> Sends:
    erased = np.array(session.scalars(select(ErasureRow.contact_key)).all(), dtype=np.int64)
    stays = ~np.isin(sends.contact_key, erased)
    if stays.all():
        return sends
    columns: dict[str, Any] = {name: getattr(sends, name) for name in sends.__dataclass_fields__}
    left: dict[str, Any] = {name: of[stays] for name, of in columns.items() if isinstance(of, np.ndarray)}
    return replace(sends, **left)


def _draft(session: Session, campaign_id: str, *, for_update: bool = False) -> CampaignRow:
    campaign = find_campaign(session, campaign_id, for_update=for_update)
    if campaign.status != "draft":
        raise Conflict(f"campaign {campaign_id} is {campaign.status}; only a draft can be scheduled")
    return campaign


def pause_campaign(session: Session, campaign_id: str, *, reason: str, by: str | None, now: datetime) -> int:
    """Let nothing more of the campaign leave until it is resumed; how many mails were taken back from a worker.

    One that is paused already stays as it is, with its first reason.

    Raises
    ------
    Conflict
        If the campaign is a draft or was cancelled.
    """
    campaign = find_campaign(session, campaign_id, for_update=True)
    if campaign.status == "paused":
        return 0
    if campaign.status != "scheduled":
        raise Conflict(f"campaign {campaign_id} is {campaign.status}; only a scheduled one can be paused")
    _turn(campaign, "paused", reason, by, now)
    session.flush()
    return take_back(session)


def resume_campaign(
    session: Session, campaign_id: str, settings: Settings, *, by: str | None, now: datetime, force: bool = False
) -> Resumed:
    """Let a paused campaign go on.

    Mails whose last useful moment has passed end as ``expired``; those that are overdue leave now, but not in their
    contact's quiet hours.

    Parameters
    ----------
    force : bool
        Go on although the canary was found bad.

    Raises
    ------
    Conflict
        If the campaign is not paused, or is held by its canary and ``force`` is not given.
    """
    campaign = find_campaign(session, campaign_id, for_update=True)
    if campaign.status != "paused":
        raise Conflict(f"campaign {campaign_id} is {campaign.status}; only a paused one can be resumed")
    if campaign.canary_state == "held":
        if not force:
            raise Conflict(
                f"campaign {campaign_id} is held: {campaign.status_reason}; cancel it, or resume it with "
                '{"force": true} if what was found is mended'
            )
        campaign.canary_state = "overruled"
    why = f"its campaign was paused ({campaign.status_reason})"
    _turn(campaign, "scheduled", None, by, now)
    session.flush()
    overdue = settle_overdue(session, SendRow.campaign_id == campaign_id, settings, reason=why, now=now)
    planned = session.scalar(select(func.count()).where(SendRow.campaign_id == campaign_id, SendRow.state == "planned"))
    return Resumed(int(planned or 0), overdue.expired, overdue.postponed)


def cancel_campaign(
    session: Session, campaign_id: str, *, now: datetime, reason: str | None = None, by: str | None = None
) -> int:
    """Cancel what has not left yet, what a worker has claimed among it; returns how many sends were cancelled.

    A mail that is being handed over at this moment cannot be called back. Cancelling twice changes nothing.
    """
    campaign = find_campaign(session, campaign_id, for_update=True)
    if campaign.status != "cancelled":
        _turn(campaign, "cancelled", reason, by, now)
        if campaign.canary_state == "waiting":  # there is nothing left to let go
            campaign.canary_state = "none"
    session.flush()
    cancelled = _cancel_planned(session, campaign_id, reason, now)
    if take_back(session):
        cancelled += _cancel_planned(session, campaign_id, reason, now)
    return cancelled


def _cancel_planned(session: Session, campaign_id: str, reason: str | None, now: datetime) -> int:
    cancelled = session.scalars(
        update(SendRow)
        .where(SendRow.campaign_id == campaign_id, SendRow.state == "planned")
        .values(
            state="cancelled",
            reason=(f"campaign cancelled: {reason}" if reason else "campaign cancelled")[:300],
            finished_at=now,
        )
        .returning(SendRow.send_id)
    ).all()
    return len(cancelled)


def stop_sending(session: Session, *, reason: str, by: str, now: datetime, scope: str = EVERYTHING) -> int:
    """Let nothing leave, whoever started it, until `resume_sending`; how many mails were taken back from workers.

    Parameters
    ----------
    scope : str
        ``everything``, ``stream:marketing``, ``stream:transactional`` or ``mailbox:<provider>``.

    Raises
    ------
    Invalid
        If there is no such scope.
    """
    _check_scope(scope)
    halt(session, scope, reason=reason, by=by, now=now)
    return take_back(session)


def resume_sending(
    session: Session, settings: Settings, *, by: str, now: datetime, scope: str = EVERYTHING
) -> Overdue | None:
    """Lift the halt of ``scope``; what became of the mails that waited too long, or None if nothing was halted.

    Raises
    ------
    Invalid
        If there is no such scope.
    """
    _check_scope(scope)
    why = "; ".join(row.reason for row in halts_in_force(session) if row.scope == scope)
    if not lift(session, scope, by=by, now=now):
        return None
    return settle_overdue(session, _within(scope), settings, reason=f"sending was stopped ({why})", now=now)


def _check_scope(scope: str) -> None:
    streams = [stream_scope(stream) for stream in ("marketing", "transactional")]
    mailboxes = [mailbox_scope(mailbox) for mailbox in (*DOMAINS, OTHER)]
    if scope not in (EVERYTHING, *streams, *mailboxes):
        raise Invalid(
            f"scope {scope[:80]!r} is not known; write one of {', '.join((EVERYTHING, *streams, *mailboxes))}"
        )


def _within(scope: str) -> ColumnElement[bool]:
    kind, _, name = scope.partition(":")
    if kind == "stream":
        return SendRow.stream == name
    return SendRow.mailbox == name if kind == "mailbox" else true()


def _turn(campaign: CampaignRow, status: str, reason: str | None, by: str | None, now: datetime) -> None:
    campaign.status, campaign.status_reason = status, reason[:300] if reason else None
    campaign.status_by, campaign.status_at = by, now
