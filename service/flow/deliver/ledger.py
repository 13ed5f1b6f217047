"""Write what became of sends, in groups, each row fenced by its lease token."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import bindparam, select, tuple_, update
from sqlalchemy.orm import Session

from features.events import NewEvent, append, zone_of
from features.tables import to_micros
from features.vocabulary import EMAIL_BOUNCED, EMAIL_SENT, EMAIL_WITHHELD
from service.clock import Clock
from service.database import Database, database_now
from service.flow.audience import models_of
from service.flow.deliver.claiming import Claimed, barred_sends
from service.flow.render import Email
from service.group_commit import GroupCommit
from service.providers.base import Receipt
from service.suppression import address_hmac, suppress
from service.tables import CampaignRow, DecisionRow, SendRow

#: Waits before the second, third and every later try of a deferred mail.
BACK_OFF = (timedelta(minutes=5), timedelta(hours=1), timedelta(hours=4))
#: How long a group of ledger writes gathers at most; it goes at once when every conversation waits for it.
GROUP_SECONDS = 0.015
LARGEST_GROUP = 500

_ADDRESS = re.compile(r"\S*@\S*")


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


class Ledger:
    """Writes the changes of many sends in groups, each row fenced by its lease token."""

    def __init__(self, database: Database, clock: Clock, pepper: str, attempt_lease_seconds: float) -> None:
        self._clock = clock
        self._pepper = pepper
        self._attempt_lease = timedelta(seconds=attempt_lease_seconds)
        self._group: GroupCommit[_Entry, str] = GroupCommit(
            database, self._write, wait_seconds=GROUP_SECONDS, largest=LARGEST_GROUP
        )
        self._written: list[asyncio.Future[str]] = []
        #: By campaign, the models whose scores picked its audience.
        self._models: dict[str | None, list[str]] = {None: []}
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
        barred = barred_sends(session, [entry.send for entry in entries], self._pepper)
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
            returned = [entry.send.send_id for entry in bad]
            session.execute(update(SendRow).where(SendRow.send_id.in_(returned)).values(bounce="hard"))
            suppress(session, hmacs, reason="hard_bounce", source="smtp", now=bad[0].at)
        events = _events(session, entries, self._models)
        if events:
            append(session, events, received_at=max(event.occurred_at for event in events))


def _still_held(session: Session, sends: Iterable[Claimed]) -> set[int]:
    """Ids of the sends whose lease is still ours, their rows locked."""
    tokens = [(send.send_id, send.lease_token) for send in sends]
    query = select(SendRow.send_id).where(
        tuple_(SendRow.send_id, SendRow.lease_token).in_(tokens), SendRow.state.in_(("claimed", "attempting"))
    )
    return set(session.execute(query.order_by(SendRow.send_id).with_for_update()).scalars())


def _events(session: Session, entries: Iterable[_Entry], models: dict[str | None, list[str]]) -> list[NewEvent]:
    """Log entries of what left, was held out or came back at once."""
    telling = [entry for entry in entries if entry.state in ("accepted", "held_out") or entry.is_bad_address]
    if not telling:
        return []
    for campaign_id in {entry.send.campaign_id for entry in telling} - models.keys():
        rule = session.scalar(select(CampaignRow.audience).where(CampaignRow.campaign_id == campaign_id))
        models[campaign_id] = models_of(rule or {})
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
            DecisionRow.segment,
            DecisionRow.is_holdout,
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
            if models[send.campaign_id]:
                properties["models"] = models[send.campaign_id]
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


def _scrub(reply: str, recipient: str) -> str:
    """A relay's reply without addresses: those live in the contacts table and nowhere else."""
    local = recipient.partition("@")[0]
    plain = _ADDRESS.sub("<address>", " ".join(reply.split()))
    return (plain.replace(local, "<address>") if len(local) >= 4 else plain)[:200]
