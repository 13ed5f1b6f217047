"""Take what is due, and close what may not leave: too late, not mailable, over the cap."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from service.database import database_now
from service.halts import leaving_allowed
from service.preferences import weekly_caps
from service.settings import Settings
from service.suppression import identities_of, mailable
from service.tables import CampaignRow, SendRow

CAP_DAYS = 7
_SPENT_STATES = ("claimed", "attempting", "accepted", "unknown", "held_out")


@dataclass(frozen=True, slots=True)
class Claimed:
    """A due send that this worker holds until its lease ends."""

    send_id: int
    #: Every write about the send names it: a worker whose lease has passed to another can no longer write.
    lease_token: int
    contact_key: int
    identity: str
    campaign_id: str | None
    stream: str
    topic: str
    template_id: str
    template_version: int
    due_at: datetime
    not_after: datetime
    timezone: str
    assigned_local_hour: int
    hour_propensity: float
    hour_reason: str
    is_holdout: bool
    attempts: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim took, and what it closed on the way."""

    #: Held sends, earliest due first; held-out ones among them, for they are rendered like any other.
    sends: tuple[Claimed, ...]
    expired: int
    suppressed: int


def claim(session: Session, *, now: datetime, limit: int, lease_seconds: float, settings: Settings) -> Claim:
    """Take up to ``limit`` due, decided sends; close those that are too late, may not be mailed or are over the cap.

    Parameters
    ----------
    session : Session
        From ``Database.writing()``; commit before anything is handed to a provider.
    now : datetime
        Business time, for ``due_at``, ``not_after`` and the cap; the lease runs on the database's own clock.
    """
    cancelled = select(CampaignRow.campaign_id).where(CampaignRow.status == "cancelled")
    session.execute(  # what was under way when its campaign was cancelled comes back as planned: it ends here
        update(SendRow)
        .where(SendRow.state == "planned", SendRow.due_at <= now, SendRow.campaign_id.in_(cancelled))
        .values(state="cancelled", reason="campaign cancelled", finished_at=now)
    )
    due = session.execute(
        select(
            SendRow.send_id,
            SendRow.lease_token,
            SendRow.contact_key,
            SendRow.campaign_id,
            SendRow.stream,
            SendRow.topic,
            SendRow.template_id,
            SendRow.template_version,
            SendRow.due_at,
            SendRow.not_after,
            SendRow.timezone,
            SendRow.assigned_local_hour,
            SendRow.hour_propensity,
            SendRow.hour_reason,
            SendRow.is_holdout,
            SendRow.attempts,
        )
        .where(
            SendRow.state == "planned",
            SendRow.due_at <= now,
            or_(SendRow.decided_at.is_not(None), SendRow.not_after < now),
            may_leave(),
        )
        .order_by(SendRow.due_at, SendRow.send_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    late = [send.send_id for send in due if send.not_after < now]
    _close(session, late, "expired", "it was due too late: its last useful moment had passed", now)
    timely = [send for send in due if send.not_after >= now]
    barred = barred_sends(session, timely, settings.pepper, settings.sandbox, now=now)
    barred |= _over_cap(session, timely, barred, now=now, cap=settings.frequency_cap)
    by_reason: dict[str, list[int]] = defaultdict(list)
    for send_id, reason in barred.items():
        by_reason[reason].append(send_id)
    for reason, send_ids in by_reason.items():
        _close(session, send_ids, "suppressed", reason, now)
    free = [send for send in timely if send.send_id not in barred]
    if free:
        session.execute(
            update(SendRow)
            .where(SendRow.send_id.in_([send.send_id for send in free]), SendRow.state == "planned")
            .values(
                state="claimed",
                lease_token=SendRow.lease_token + 1,
                lease_until=database_now(session) + timedelta(seconds=lease_seconds),
            )
        )
    identities = identities_of(session, {send.contact_key for send in free})
    claimed = tuple(
        Claimed(**{**send._mapping, "lease_token": send.lease_token + 1, "identity": identities[send.contact_key]})
        for send in free
    )
    return Claim(sends=claimed, expired=len(late), suppressed=len(barred))


def may_leave() -> ColumnElement[bool]:
    """Sends that nothing holds back: see `service.halts.leaving_allowed`."""
    return leaving_allowed()


def barred_sends(
    session: Session, sends: Iterable[Any], pepper: str, sandbox: str = "", *, now: datetime | None = None
) -> dict[int, str]:
    """Why these sends may not leave (at ``now``, if it is given), by send id; those that may are not in it."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for send in sends:
        groups[send.topic, send.stream].append(send)
    barred: dict[int, str] = {}
    for (topic, stream), group in groups.items():
        keys = [send.contact_key for send in group]
        reasons = mailable(session, keys, topic, pepper=pepper, stream=stream, sandbox=sandbox, now=now)
        for send in group:
            reason = reasons[send.contact_key]
            if reason is not None:
                barred[send.send_id] = reason
    return barred


def _over_cap(
    session: Session, sends: Sequence[Any], barred: dict[int, str], *, now: datetime, cap: int
) -> dict[int, str]:
    """Marketing sends beyond ``cap``, or beyond the contact's own wish, in the last seven days.

    A planned send counts against those due after it, never against those due before: two workers that claim two sends
    of one contact at once come to the same answer without seeing each other. A correction counts like any mail, but
    may be one more than the cap allows: who got the wrong mail must not go without the right one for it.
    """
    candidates = [send for send in sends if send.stream == "marketing" and send.send_id not in barred]
    caps = weekly_caps(session, {send.contact_key for send in candidates}, cap)
    candidates = [send for send in candidates if send.contact_key in caps]
    if not candidates:
        return {}
    begin = now - timedelta(days=CAP_DAYS)
    others = session.execute(
        select(SendRow.contact_key, SendRow.send_id, SendRow.state, SendRow.due_at, SendRow.finished_at).where(
            SendRow.contact_key.in_({send.contact_key for send in candidates}),
            SendRow.stream == "marketing",
            SendRow.due_at > begin - timedelta(days=CAP_DAYS),
            SendRow.due_at <= now,
            or_(SendRow.state.in_(_SPENT_STATES), (SendRow.state == "planned") & (SendRow.not_after >= now)),
        )
    ).all()
    spent: Counter[int] = Counter()
    waiting: dict[int, list[tuple[datetime, int]]] = defaultdict(list)
    for other in others:
        if other.state == "planned":
            waiting[other.contact_key].append((other.due_at, other.send_id))
        elif (other.finished_at or other.due_at) > begin:
            spent[other.contact_key] += 1
    corrections = set(
        session.scalars(
            select(CampaignRow.campaign_id).where(
                CampaignRow.campaign_id.in_({send.campaign_id for send in candidates}),
                CampaignRow.corrects.is_not(None),
            )
        )
    )
    over: dict[int, str] = {}
    for send in candidates:  # earliest due first
        before = sum(
            1
            for due_at, send_id in waiting[send.contact_key]
            if (due_at, send_id) < (send.due_at, send.send_id) and send_id not in barred and send_id not in over
        )
        used, most = spent[send.contact_key] + before, caps[send.contact_key] + (send.campaign_id in corrections)
        if used >= most:
            over[send.send_id] = f"frequency cap: {used} marketing mails in {CAP_DAYS} days, at most {most}"
    return over


def _close(session: Session, send_ids: Sequence[int], state: str, reason: str, now: datetime) -> None:
    if send_ids:
        session.execute(
            update(SendRow)
            .where(SendRow.send_id.in_(send_ids), SendRow.state == "planned")
            .values(state=state, reason=reason[:300], finished_at=now)
        )
