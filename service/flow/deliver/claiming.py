"""Take what is due, and close what may not leave: too late, not mailable, over the cap."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, Table, bindparam, or_, select, text, update
from sqlalchemy.orm import Session

from service.database import database_now
from service.halts import halts_in_force, leaving_allowed, mailbox_scope
from service.mailboxes import mailbox_of
from service.preferences import weekly_caps
from service.quiet_hours import next_open
from service.settings import Settings
from service.suppression import identities_of, mailable
from service.tables import CampaignRow, ContactRow, SendRow
from service.throttle import Room, open_room

CAP_DAYS = 7
#: So long after its open hour a mail may still leave: what an hour holds needs a while to be handed over.
TAIL = timedelta(minutes=30)
#: In the order in which they leave.
STREAMS = ("transactional", "marketing")
#: Word for word the condition of the index that holds these rows alone: a bound value would not find it.
IS_READY = text("send.state = 'planned' AND send.decided_at IS NOT NULL")
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
    #: Mailbox provider of the address: `service.mailboxes`.
    mailbox: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim took, and what it closed on the way."""

    #: Held sends: transactional ones first, then the earliest due; held-out ones among them, rendered like any other.
    sends: tuple[Claimed, ...]
    expired: int
    suppressed: int
    #: Marketing sends that came due late, in their contact's quiet hours: planned for the morning.
    postponed: int = 0
    #: Seconds until the throttle lets a mail through, where it held some back; None: it held none back.
    wait_seconds: float | None = None


_DUE = (
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
    SendRow.mailbox,
    SendRow.attempts,
)


def claim(session: Session, *, now: datetime, limit: int, lease_seconds: float, settings: Settings) -> Claim:
    """Take up to ``limit`` due, decided sends; close those that are too late, may not be mailed or are over the cap.

    Transactional mail comes first, however much waits: a password is not queued behind a campaign. Marketing mail that
    was delayed into its contact's quiet hours is planned for the morning, or expires where that is too late. What the
    throttle or the warm-up has no room for stays planned, and what is behind it gets its turn.

    Parameters
    ----------
    session : Session
        From ``Database.writing()``; commit before anything is handed to a provider.
    now : datetime
        Business time, for ``due_at``, ``not_after``, the cap and the throttle; the lease runs on the database's own
        clock.
    """
    room = open_room(session, now=now, settings=settings)
    full = room.full()
    may_go = may_leave()
    if full:
        may_go &= or_(SendRow.mailbox.is_(None), SendRow.mailbox.not_in(full), SendRow.is_holdout)
    if room.most < 1:
        may_go &= SendRow.is_holdout
    due: list[Any] = []
    for stream in STREAMS:
        if len(due) < limit:
            due += session.execute(
                select(*_DUE)
                .where(IS_READY, SendRow.stream == stream, SendRow.due_at <= now, or_(may_go, _is_late(now)))
                # not by id as well: a million that fall due at once would be sorted each time
                .order_by(SendRow.due_at)
                .limit(limit - len(due))
                .with_for_update(skip_locked=True)
            ).all()
    due.sort(key=lambda send: (STREAMS.index(send.stream), send.due_at, send.send_id))
    mailboxes = _mailboxes(session, due)
    if any(send.mailbox is None for send in due):  # whose mailbox provider the query could not look at
        stopped = {halt.scope for halt in halts_in_force(session)}
        due = [send for send in due if mailbox_scope(mailboxes[send.send_id]) not in stopped]
    late = [send for send in due if send.not_after < now]
    _expire(session, late, mailboxes, room, now)
    timely = [send for send in due if send.not_after >= now]
    timely, postponed, dark = _postpone(session, timely, now, settings.quiet)
    barred = barred_sends(session, timely, settings.pepper, settings.sandbox, now=now)
    barred |= _over_cap(session, timely, barred, now=now, cap=settings.frequency_cap)
    by_reason: dict[str, list[int]] = defaultdict(list)
    for send_id, reason in barred.items():
        by_reason[reason].append(send_id)
    for reason, send_ids in by_reason.items():
        _close(session, send_ids, "suppressed", reason, now)
    free = _fitting([send for send in timely if send.send_id not in barred], mailboxes, room)
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
    room.take(session, Counter(mailboxes[send.send_id] for send in free if not send.is_holdout))
    identities = identities_of(session, {send.contact_key for send in free})
    claimed = tuple(
        Claimed(
            **{
                **send._mapping,
                "lease_token": send.lease_token + 1,
                "identity": identities[send.contact_key],
                "mailbox": mailboxes[send.send_id],
            }
        )
        for send in free
    )
    wait_seconds = room.wait_seconds() if len(free) < limit else None
    if wait_seconds is not None and not _is_waiting(session, now):
        wait_seconds = None
    return Claim(
        claimed, expired=len(late) + dark, suppressed=len(barred), postponed=postponed, wait_seconds=wait_seconds
    )


def _postpone(
    session: Session, sends: Sequence[Any], now: datetime, quiet: tuple[int, int] | None
) -> tuple[list[Any], int, int]:
    """The sends that may leave at this hour, how many were planned for the morning, and how many expired for it."""
    zones = {send.timezone for send in sends if send.stream == "marketing"}
    mornings = {zone: morning for zone in zones if (morning := next_open(now, zone, quiet)) > now}
    if not mornings:
        return list(sends), 0, 0
    awake: list[Any] = []
    waiting: dict[datetime, list[int]] = defaultdict(list)
    over: list[int] = []
    for send in sends:
        if send.stream != "marketing" or send.timezone not in mornings or _is_on_its_way(send, now, quiet):
            awake.append(send)
        elif mornings[send.timezone] > send.not_after:
            over.append(send.send_id)
        else:
            waiting[mornings[send.timezone]].append(send.send_id)
    for morning, send_ids in waiting.items():
        session.execute(update(SendRow).where(SendRow.send_id.in_(send_ids)).values(due_at=morning))
    _close(session, over, "expired", "it is quiet at its contact's until after its last useful moment", now)
    return awake, sum(map(len, waiting.values())), len(over)


def _is_on_its_way(send: Any, now: datetime, quiet: tuple[int, int] | None) -> bool:
    """Whether it came due in an open hour a short while ago: the evening's last mails do not wait for the morning."""
    return bool(now - send.due_at <= TAIL and next_open(send.due_at, send.timezone, quiet) == send.due_at)


def _is_late(now: datetime) -> ColumnElement[bool]:
    return (SendRow.not_after < now) & may_leave()


def _is_waiting(session: Session, now: datetime) -> bool:
    """Whether a send that could leave is due."""
    waiting = select(SendRow.send_id).where(IS_READY, SendRow.stream.in_(STREAMS), SendRow.due_at <= now, may_leave())
    return session.execute(waiting.limit(1)).first() is not None


def _mailboxes(session: Session, due: Sequence[Any]) -> dict[int, str]:
    """Mailbox provider by send id; a send planned without one gets that of its contact's address now."""
    mailboxes = {send.send_id: send.mailbox for send in due}
    unknown = [send for send in due if send.mailbox is None]
    if unknown:
        query = select(ContactRow.contact_key, ContactRow.email)
        wanted = {send.contact_key for send in unknown}
        rows = session.execute(query.where(ContactRow.contact_key.in_(wanted)))
        addresses = {row.contact_key: row.email for row in rows}
        found = {send.send_id: mailbox_of(addresses.get(send.contact_key)) for send in unknown}
        session.connection().execute(
            update(cast(Table, SendRow.__table__))
            .where(SendRow.__table__.c.send_id == bindparam("key"))
            .values(mailbox=bindparam("found")),
            [{"key": send_id, "found": mailbox} for send_id, mailbox in found.items()],
        )
        mailboxes |= found
    return mailboxes


def _fitting(sends: Sequence[Any], mailboxes: dict[int, str], room: Room) -> list[Any]:
    """Those of the sends that the buckets and the warm-up have room for; held-out ones need none."""
    most, taken, fitting = room.most, Counter[str](), []
    left = {mailbox: room.left(mailbox) for mailbox in set(mailboxes.values())}
    for send in sends:
        if not send.is_holdout:
            mailbox = mailboxes[send.send_id]
            bound = left[mailbox]
            if taken.total() >= most or (bound is not None and taken[mailbox] >= bound):
                continue
            taken[mailbox] += 1
        fitting.append(send)
    return fitting


def _expire(session: Session, late: Sequence[Any], mailboxes: dict[int, str], room: Room, now: datetime) -> None:
    by_reason: dict[str, list[int]] = defaultdict(list)
    for send in late:
        mailbox = mailboxes[send.send_id]
        spent = room.allowance.get(mailbox) == 0 and not send.is_holdout
        why = f"the warm-up to {mailbox} had no room for it" if spent else "its last useful moment had passed"
        by_reason[f"it was due too late: {why}"].append(send.send_id)
    for reason, send_ids in by_reason.items():
        _close(session, send_ids, "expired", reason, now)


def may_leave() -> ColumnElement[bool]:
    """Sends that nothing holds back at this moment: see `service.halts.leaving_allowed`."""
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

    A mail counts at the moment for which it was planned, here as for the planner: one a week stays one a week, however
    long each took to leave. What is held back counts once it leaves. A planned send counts against those due after it,
    never against those due before: two workers that claim two sends of one contact at once come to the same answer
    without seeing each other. A correction counts like any mail, but may be one more than the cap allows: who got the
    wrong mail must not go without the right one for it.
    """
    candidates = [send for send in sends if send.stream == "marketing" and send.send_id not in barred]
    caps = weekly_caps(session, {send.contact_key for send in candidates}, cap)
    candidates = [send for send in candidates if send.contact_key in caps]
    if not candidates:
        return {}
    begin = now - timedelta(days=CAP_DAYS)
    others = session.execute(
        select(SendRow.contact_key, SendRow.send_id, SendRow.state, SendRow.due_at).where(
            SendRow.contact_key.in_({send.contact_key for send in candidates}),
            SendRow.stream == "marketing",
            SendRow.due_at > begin,
            SendRow.due_at <= now,
            or_(
                SendRow.state.in_(_SPENT_STATES),
                (SendRow.state == "planned") & (SendRow.not_after >= now) & may_leave(),
            ),
        )
    ).all()
    spent: Counter[int] = Counter()
    waiting: dict[int, list[tuple[datetime, int]]] = defaultdict(list)
    for other in others:
        if other.state == "planned":
            waiting[other.contact_key].append((other.due_at, other.send_id))
        else:
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
