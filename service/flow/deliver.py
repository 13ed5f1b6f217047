"""Send: claim what is due → hand it to the provider → write down what became of it; effectively once.

``planned → claimed → attempting → accepted | failed | unknown``. A claim is committed before the provider hears of a
mail, ``attempting`` just before its message leaves, the result after: whatever a crash interrupts, the row says whether
the mail can have left. This step commits by itself, in groups, and so takes the database instead of a session.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import bindparam, or_, select, text, tuple_, update
from sqlalchemy.orm import Session

from features.events import NewEvent, append, zone_of
from features.tables import from_micros, to_micros
from features.vocabulary import EMAIL_BOUNCED, EMAIL_SENT, EMAIL_WITHHELD
from service.clock import Clock
from service.database import Database
from service.flow.render import Email, RenderFailure
from service.group_commit import GroupCommit
from service.providers.base import Connection, Provider, Receipt
from service.settings import Settings
from service.suppression import address_hmac, identities_of, mailable, suppress
from service.tables import CampaignRow, DecisionRow, SendRow

log = logging.getLogger(__name__)

CAP_DAYS = 7
#: Waits before the second, third and every later try of a deferred mail.
BACK_OFF = (timedelta(minutes=5), timedelta(hours=1), timedelta(hours=4))
#: A row stays ``attempting`` unquestioned for as long as a relay may take to answer the final dot, and a minute.
ATTEMPT_LEASE_SECONDS = 660.0
#: How long a group of ledger writes gathers at most; it goes at once when every conversation waits for it.
GROUP_SECONDS = 0.015
LARGEST_GROUP = 500

_SPENT_STATES = ("claimed", "attempting", "accepted", "unknown", "held_out")
_ADDRESS = re.compile(r"\S*@\S*")


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


@dataclass(frozen=True, slots=True)
class Receipts:
    """What became of the delivered sends, counted."""

    accepted: int = 0
    deferred: int = 0
    failed: int = 0
    unknown: int = 0
    held_out: int = 0
    suppressed: int = 0
    expired: int = 0
    #: Sends whose lease had passed to another worker; they were not touched.
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of the sends of workers that did not come back."""

    #: Claimed but never begun: planned again.
    replanned: int
    #: Begun, and to be sent again with the same Message-ID.
    resent: int
    #: Begun, held for reconciling.
    unknown: int


def claim(session: Session, *, now: datetime, limit: int, lease_seconds: float, settings: Settings) -> Claim:
    """Take up to ``limit`` due, decided sends; close those that are too late, may not be mailed or are over the cap.

    Parameters
    ----------
    session : Session
        From ``Database.writing()``; commit before anything is handed to a provider.
    now : datetime
        Business time, for ``due_at``, ``not_after`` and the cap; the lease runs on the database's own clock.
    """
    halted = select(CampaignRow.campaign_id).where(CampaignRow.status.in_(("paused", "cancelled")))
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
            or_(SendRow.campaign_id.is_(None), SendRow.campaign_id.not_in(halted)),
        )
        .order_by(SendRow.due_at, SendRow.send_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    late = [send.send_id for send in due if send.not_after < now]
    _close(session, late, "expired", "it was due too late: its last useful moment had passed", now)
    timely = [send for send in due if send.not_after >= now]
    barred = _barred(session, timely, settings.pepper)
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


def _barred(session: Session, sends: Iterable[Any], pepper: str) -> dict[int, str]:
    """Why these sends may not leave, by send id; those that may are not in it."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for send in sends:
        groups[send.topic, send.stream].append(send)
    barred: dict[int, str] = {}
    for (topic, stream), group in groups.items():
        reasons = mailable(session, [send.contact_key for send in group], topic, pepper=pepper, stream=stream)
        for send in group:
            reason = reasons[send.contact_key]
            if reason is not None:
                barred[send.send_id] = reason
    return barred


def _over_cap(
    session: Session, sends: Sequence[Any], barred: dict[int, str], *, now: datetime, cap: int
) -> dict[int, str]:
    """Marketing sends beyond ``cap`` in the last seven days.

    A planned send counts against those due after it, never against those due before: two workers that claim two sends
    of one contact at once come to the same answer without seeing each other.
    """
    candidates = [send for send in sends if send.stream == "marketing" and send.send_id not in barred]
    if not cap or not candidates:
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
    over: dict[int, str] = {}
    for send in candidates:  # earliest due first
        before = sum(
            1
            for due_at, send_id in waiting[send.contact_key]
            if (due_at, send_id) < (send.due_at, send.send_id) and send_id not in barred and send_id not in over
        )
        used = spent[send.contact_key] + before
        if used >= cap:
            over[send.send_id] = f"frequency cap: {used} marketing mails in {CAP_DAYS} days, at most {cap}"
    return over


def _close(session: Session, send_ids: Sequence[int], state: str, reason: str, now: datetime) -> None:
    if send_ids:
        session.execute(
            update(SendRow)
            .where(SendRow.send_id.in_(send_ids), SendRow.state == "planned")
            .values(state=state, reason=reason[:300], finished_at=now)
        )


async def deliver(
    sends: Sequence[Claimed],
    emails: Sequence[Email | RenderFailure],
    provider: Provider,
    database: Database,
    *,
    clock: Clock,
    settings: Settings,
    attempt_lease_seconds: float = ATTEMPT_LEASE_SECONDS,
) -> Receipts:
    """Hand each claimed send's mail to the provider over its connections, and log what became of it.

    The recipient is checked while the send is ``claimed``. Then consent and suppression are looked at once more, in the
    transaction that marks it ``attempting``; only then the message leaves. A held-out send is trapped here, after its
    mail was made like any other. 4xx answers plan the send again later, 5xx fail it (5.1.x suppress the address), and a
    line that breaks after the message began leaves ``unknown``.

    Raises
    ------
    ValueError
        If a send has no mail among ``emails``.
    """
    by_id = {email.send_id: email for email in emails}
    for send in sends:
        if send.send_id not in by_id:
            raise ValueError(f"send {send.send_id} was claimed but not rendered; pass its mail or its RenderFailure")
    ledger = _Ledger(database, clock, settings.pepper, attempt_lease_seconds)
    queue: list[tuple[Claimed, Email]] = []
    for send in sends:
        email = by_id[send.send_id]
        if isinstance(email, RenderFailure):
            ledger.finish(send, "failed", email.reason)
        elif send.is_holdout:
            ledger.finish(send, "held_out", "holdout: rendered, logged, not sent", email=email)
        else:
            queue.append((send, email))
    queue.reverse()
    n_connections = min(provider.connections, len(queue))
    outcomes = await asyncio.gather(
        *(_converse(queue, provider, ledger) for _ in range(n_connections)), return_exceptions=True
    )
    receipts = await ledger.receipts()
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return receipts


async def _converse(queue: list[tuple[Claimed, Email]], provider: Provider, ledger: _Ledger) -> None:
    async with provider.connection() as connection, ledger.conversation():
        while queue:
            send, email = queue.pop()
            checked = await _check(connection, email)
            if checked.outcome != "accepted":
                ledger.finish_with(send, email, checked)
                continue
            if not await ledger.begin(send, email):
                await connection.abandon()
                continue
            ledger.finish_with(send, email, await _transmit(connection, email))


async def _check(connection: Connection, email: Email) -> Receipt:
    try:
        return await connection.check(email.sender, email.recipient)
    except Exception as error:
        log.exception("the provider failed at the check", extra={"action": "check_failed", "send_id": email.send_id})
        return Receipt("deferred", None, f"the provider failed at the check: {type(error).__name__}")


async def _transmit(connection: Connection, email: Email) -> Receipt:
    try:
        return await connection.transmit(email.message_bytes)
    except Exception as error:
        log.exception("the provider failed sending", extra={"action": "transmit_failed", "send_id": email.send_id})
        return Receipt("unknown", None, f"the provider failed after the message began: {type(error).__name__}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A change of one send that waits to be written."""

    kind: Literal["begin", "finish"]
    send: Claimed
    email: Email | None
    at: datetime
    #: For ``finish``: the state to write; ``planned`` plans it again at ``due_at``.
    state: str = "attempting"
    reason: str | None = None
    code: int | None = None
    due_at: datetime | None = None
    is_bad_address: bool = False


class _Ledger:
    """Writes the changes of many sends in groups, each row fenced by its lease token."""

    def __init__(self, database: Database, clock: Clock, pepper: str, attempt_lease_seconds: float) -> None:
        self._clock = clock
        self._pepper = pepper
        self._attempt_lease = timedelta(seconds=attempt_lease_seconds)
        self._group: GroupCommit[_Entry, str] = GroupCommit(
            database, self._write, wait_seconds=GROUP_SECONDS, largest=LARGEST_GROUP
        )
        self._written: list[asyncio.Future[str]] = []
        self._conversations = 0
        #: Conversations that wait for their mail to be marked ``attempting``.
        self._waiting = 0

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[None]:
        """A block in which one conversation goes on, for the ledger to know whether another mail may be ready soon."""
        self._conversations += 1
        try:
            yield
        finally:
            self._conversations -= 1
            self._hurry_if_all_wait()

    def _hurry_if_all_wait(self) -> None:
        if self._waiting and self._waiting >= self._conversations:
            self._group.hurry()

    async def begin(self, send: Claimed, email: Email) -> bool:
        """Whether the send is now ``attempting``: it was still ours, and its contact may still be mailed."""
        future = self._group.put(_Entry("begin", send, email, self._clock.now()))
        self._waiting += 1
        self._hurry_if_all_wait()
        try:
            answer = await future
        finally:
            self._waiting -= 1
        if answer != "attempting":
            self._written.append(future)
        return answer == "attempting"

    def finish(
        self,
        send: Claimed,
        state: str,
        reason: str | None,
        *,
        email: Email | None = None,
        code: int | None = None,
        due_at: datetime | None = None,
        is_bad_address: bool = False,
    ) -> None:
        """Write the result with the next group; the connection need not wait for it."""
        entry = _Entry("finish", send, email, self._clock.now(), state, reason, code, due_at, is_bad_address)
        self._written.append(self._group.put(entry))

    def finish_with(self, send: Claimed, email: Email, receipt: Receipt) -> None:
        """Write what the provider's receipt means for the send."""
        reason = f"{receipt.code or ''} {_scrub(receipt.text, email.recipient)}".strip()
        if receipt.outcome == "accepted":
            self.finish(send, "accepted", None, email=email, code=receipt.code)
        elif receipt.outcome == "unknown":
            self.finish(send, "unknown", reason, email=email, code=receipt.code)
        elif receipt.outcome == "rejected":
            self.finish(send, "failed", reason, email=email, code=receipt.code, is_bad_address=receipt.is_bad_address)
        else:
            again_at = self._clock.now() + BACK_OFF[min(send.attempts, len(BACK_OFF) - 1)]
            if again_at > send.not_after:
                late = f"deferred until it was too late: {reason}"
                self.finish(send, "expired", late, email=email, code=receipt.code)
            else:
                self.finish(send, "planned", f"deferred: {reason}", email=email, code=receipt.code, due_at=again_at)

    async def receipts(self) -> Receipts:
        """Counts of what was written, once all of it is on disk."""
        answers = await asyncio.gather(*self._written)
        counts = Counter(answers)
        return Receipts(**{("deferred" if state == "planned" else state): count for state, count in counts.items()})

    def _write(self, session: Session, entries: list[_Entry]) -> list[str]:
        held = _still_held(session, [entry.send for entry in entries])
        answers = ["lost"] * len(entries)
        begun: list[_Entry] = []
        finished: list[_Entry] = []
        # A send is begun in one group and finished in a later one, never both in one.
        for place, entry in enumerate(entries):
            if entry.send.send_id in held:
                (begun if entry.kind == "begin" else finished).append(entry)
                answers[place] = entry.state
        barred = self._begin_all(session, begun)
        self._finish_all(session, finished)
        return [
            "suppressed" if entry.kind == "begin" and entry.send.send_id in barred else answer
            for entry, answer in zip(entries, answers, strict=True)
        ]

    def _begin_all(self, session: Session, entries: list[_Entry]) -> dict[int, str]:
        if not entries:
            return {}
        barred = _barred(session, [entry.send for entry in entries], self._pepper)
        until = database_now(session) + self._attempt_lease
        session.execute(
            update(SendRow.__table__).where(SendRow.__table__.c.send_id == bindparam("key")),  # type: ignore[arg-type]
            [
                {
                    "key": entry.send.send_id,
                    "state": "suppressed" if entry.send.send_id in barred else "attempting",
                    "reason": barred.get(entry.send.send_id),
                    "finished_at": entry.at if entry.send.send_id in barred else None,
                    "lease_until": None if entry.send.send_id in barred else until,
                    "message_id": entry.email.message_id if entry.email else None,
                    "link_count": entry.email.link_count if entry.email else None,
                }
                for entry in entries
            ],
        )
        return barred

    def _finish_all(self, session: Session, entries: list[_Entry]) -> None:
        if not entries:
            return
        session.execute(
            update(SendRow.__table__).where(SendRow.__table__.c.send_id == bindparam("key")),  # type: ignore[arg-type]
            [
                {
                    "key": entry.send.send_id,
                    "state": entry.state,
                    "reason": entry.reason[:300] if entry.reason else None,
                    "smtp_code": entry.code,
                    "due_at": entry.due_at or entry.send.due_at,
                    "finished_at": None if entry.state == "planned" else entry.at,
                    "lease_until": None,
                    "attempts": entry.send.attempts + (entry.state != "held_out" and entry.email is not None),
                    "message_id": entry.email.message_id if entry.email else None,
                    "link_count": entry.email.link_count if entry.email else None,
                }
                for entry in entries
            ],
        )
        bad = [entry for entry in entries if entry.is_bad_address and entry.email is not None]
        if bad:
            hmacs = [address_hmac(self._pepper, entry.email.recipient) for entry in bad if entry.email]
            suppress(session, hmacs, reason="hard_bounce", source="smtp", now=bad[0].at)
        events = _events(session, entries)
        if events:
            append(session, events, received_at=max(event.occurred_at for event in events))


def _still_held(session: Session, sends: Iterable[Claimed]) -> set[int]:
    """Ids of the sends whose lease is still ours, their rows locked."""
    tokens = [(send.send_id, send.lease_token) for send in sends]
    query = select(SendRow.send_id).where(
        tuple_(SendRow.send_id, SendRow.lease_token).in_(tokens), SendRow.state.in_(("claimed", "attempting"))
    )
    return set(session.execute(query.order_by(SendRow.send_id).with_for_update()).scalars())


def _events(session: Session, entries: Iterable[_Entry]) -> list[NewEvent]:
    """Log entries of what left, was held out or came back at once."""
    telling = [entry for entry in entries if entry.state in ("accepted", "held_out") or entry.is_bad_address]
    if not telling:
        return []
    decisions: dict[int, list[dict[str, Any]]] = defaultdict(list)
    rows = session.execute(
        select(
            DecisionRow.send_id,
            DecisionRow.decision_id,
            DecisionRow.experiment_id,
            DecisionRow.arm_id,
            DecisionRow.propensity,
            DecisionRow.snapshot_id,
            DecisionRow.wave,
        )
        .where(DecisionRow.send_id.in_([entry.send.send_id for entry in telling if not entry.is_bad_address]))
        .order_by(DecisionRow.decision_id)
    )
    for row in rows:
        values = dict(row._mapping)
        decisions[values.pop("send_id")].append(values)
    events = []
    for entry in telling:
        send = entry.send
        kind, word = {"accepted": (EMAIL_SENT, "sent"), "held_out": (EMAIL_WITHHELD, "withheld")}.get(
            entry.state, (EMAIL_BOUNCED, "bounced")
        )
        properties: dict[str, Any] = {
            "campaign_id": send.campaign_id,
            "template_id": send.template_id,
            "template_version": send.template_version,
            "stream": send.stream,
        }
        if kind == EMAIL_BOUNCED:
            properties |= {"code": entry.code, "is_permanent": True}
        else:
            properties |= {
                "assigned_local_hour": send.assigned_local_hour,
                "local_hour": entry.at.astimezone(zone_of(send.timezone)).hour,
                "hour_propensity": send.hour_propensity,
                "hour_reason": send.hour_reason,
                "attempts": send.attempts + (kind == EMAIL_SENT),
                "decisions": decisions[send.send_id],
            }
        events.append(
            NewEvent(
                contact_key=send.contact_key,
                kind=kind,
                occurred_at=to_micros(entry.at),
                message_id=f"kairos/{word}/{send.send_id}",
                identity=send.identity,
                ref=str(send.send_id),
                properties=properties,
                timezone=send.timezone,
            )
        )
    return events


def recover(session: Session, *, now: datetime, crash_policy: str = "hold") -> Recovered:
    """Take back the sends of workers whose lease ended without a result.

    Parameters
    ----------
    crash_policy : str
        ``hold``: a marketing mail that may have left becomes ``unknown`` (one lost beats one doubled); ``resend``: it
        is sent again with the same Message-ID, as transactional mail always is.
    """
    over = SendRow.lease_until < database_now(session)
    again = {
        "state": "planned",
        "lease_token": SendRow.lease_token + 1,  # whoever held it and wakes up late writes nothing
        "lease_until": None,
    }
    # Rows are counted by what is returned: PostgreSQL and SQLite agree on it.
    replanned = session.execute(
        update(SendRow).where(SendRow.state == "claimed", over).values(**again).returning(SendRow.send_id)
    ).all()
    begun = (SendRow.state == "attempting") & over
    resend = begun if crash_policy == "resend" else begun & (SendRow.stream == "transactional")
    resent = session.execute(
        update(SendRow)
        .where(resend)
        .values(**again, attempts=SendRow.attempts + 1, reason="sent again after a crash, with the same Message-ID")
        .returning(SendRow.send_id)
    ).all()
    unknown = session.execute(
        update(SendRow)
        .where(begun)
        .values(
            state="unknown",
            lease_token=SendRow.lease_token + 1,
            lease_until=None,
            attempts=SendRow.attempts + 1,
            finished_at=now,
            reason="the worker stopped while the message was leaving; look for its Message-ID, then resend or close",
        )
        .returning(SendRow.send_id)
    ).all()
    return Recovered(len(replanned), len(resent), len(unknown))


def database_now(session: Session) -> datetime:
    """The database's own clock, which leases run on: workers' clocks may differ, and business time may be simulated."""
    if session.get_bind().dialect.name == "postgresql":
        query = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint"
    else:
        query = "SELECT CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"
    return from_micros(session.execute(text(query)).scalar_one())


def _scrub(reply: str, recipient: str) -> str:
    """A relay's reply without addresses: those live in the contacts table and nowhere else."""
    local = recipient.partition("@")[0]
    plain = _ADDRESS.sub("<address>", " ".join(reply.split()))
    return (plain.replace(local, "<address>") if len(local) >= 4 else plain)[:200]
