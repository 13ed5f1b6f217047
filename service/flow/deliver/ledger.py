"""Write what became of sends, in groups, each row fenced by its lease token."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.orm import Session

from features.events import append
from service.bounces.feedback import Feedback, take_feedback
from service.clock import Clock
from service.database import Database, database_now
from service.flow.deliver.claiming import Claimed, barred_sends
from service.flow.deliver.log_entries import Entry, LogEntries
from service.flow.deliver.refusals import halt_refusing
from service.flow.render import Email
from service.group_commit import GroupCommit
from service.halts import leaving_allowed
from service.providers.base import Receipt
from service.settings import Settings
from service.tables import CampaignRow, SendRow
from service.throttle import count_departures

#: Waits before the second, third and every later try of a deferred mail.
BACK_OFF = (timedelta(minutes=5), timedelta(hours=1), timedelta(hours=4))
#: A mail that was deferred for so long in all expires.
LONGEST_DEFERRAL = timedelta(hours=72)
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
    #: Sends that a halt, a pause or a canary held back between their claim and their departure: planned again.
    halted: int = 0
    cancelled: int = 0
    #: Sends whose lease had passed to another worker; they were not touched.
    lost: int = 0


def deferred_for(tries: int) -> timedelta:
    """Time that a mail has waited before its next try, after so many deferred ones.

    Examples
    --------
    >>> deferred_for(3)
    datetime.timedelta(seconds=18300)
    """
    return sum((BACK_OFF[min(number, len(BACK_OFF) - 1)] for number in range(tries)), timedelta())


class Ledger:
    """Writes the changes of many sends in groups, each row fenced by its lease token.

    At no time are more sends ``attempting`` than there are conversations: a conversation's result is in the group that
    marks its next mail, or in an earlier one.
    """

    def __init__(self, database: Database, clock: Clock, settings: Settings, attempt_lease_seconds: float) -> None:
        self._clock = clock
        self._pepper = settings.pepper
        self._sandbox = settings.sandbox
        self._attempt_lease = timedelta(seconds=attempt_lease_seconds)
        self._group: GroupCommit[Entry, str] = GroupCommit(
            database, self._write, wait_seconds=GROUP_SECONDS, largest=LARGEST_GROUP
        )
        self._written: list[asyncio.Future[str]] = []
        self._log = LogEntries()
        #: Mailbox providers that were halted while the present sends leave: nothing more is asked of them.
        self.refusing: set[str] = set()
        self._conversations = 0
        #: Conversations that wait for their mail to be marked ``attempting``.
        self._waiting = 0

    def expect(self, sends: Sequence[Claimed]) -> None:
        """Tell which sends come next, so that what the log says of them is read once for all."""
        self._log.expect(sends)
        self.refusing = set()

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
        """Whether the send is now ``attempting``: still ours, not halted, its contact still to be mailed."""
        future = self._group.put(Entry("begin", send, email, self._clock.now()))
        self._waiting += 1
        self._hurry_if_all_wait()
        try:
            answer = await future
        finally:
            self._waiting -= 1
        if answer != "attempting":
            self._written.append(future)
        return answer == "attempting"

    def finish(self, send: Claimed, state: str, reason: str | None, *, email: Email | None = None, **said: Any) -> None:
        """Write the result with the next group; the connection need not wait for it."""
        self._written.append(
            self._group.put(Entry("finish", send, email, self._clock.now(), state=state, reason=reason, **said))
        )

    def finish_with(self, send: Claimed, email: Email, receipt: Receipt, *, pause_seconds: float = 0.0) -> None:
        """Write what the provider's receipt means for the send.

        Parameters
        ----------
        pause_seconds : float
            How long a relay that could not be reached is left alone: its mails wait so long, and no try is counted.
        """
        reason = f"{receipt.code or ''} {_scrub(receipt.text, email.recipient)}".strip()
        said: dict[str, Any] = {"email": email, "code": receipt.code}
        if receipt.outcome == "accepted":
            self.finish(send, "accepted", None, **said)
        elif receipt.outcome == "unknown":
            self.finish(send, "unknown", reason, **said)
        elif receipt.outcome == "rejected":
            self.finish(
                send, "failed", reason, **said,
                bounce="hard" if receipt.is_bad_address else "soft" if receipt.is_full_mailbox else None,
                is_policy=receipt.is_policy,
            )  # fmt: skip
        elif receipt.is_relay_down:
            again_at = self._clock.now() + timedelta(seconds=max(1.0, pause_seconds))
            self.finish(send, "planned", f"waits for the relay: {reason}", **said, due_at=again_at, is_try=False)
        else:
            again_at = self._clock.now() + BACK_OFF[min(send.attempts, len(BACK_OFF) - 1)]
            if again_at > send.not_after:
                self.finish(send, "expired", f"deferred until it was too late: {reason}", **said)
            elif deferred_for(send.attempts + 1) > LONGEST_DEFERRAL:
                self.finish(send, "expired", f"deferred for 72 hours: {reason}", **said)
            else:
                self.finish(send, "planned", f"deferred: {reason}", **said, due_at=again_at)

    def hold_back(self, send: Claimed) -> None:
        """Plan a send again whose mailbox provider was halted meanwhile; it was not tried."""
        self.finish(send, "planned", "held back by a halt before it left", due_at=send.due_at, is_try=False)

    async def receipts(self) -> Receipts:
        """Counts of what was written since the last call, once all of it is on disk."""
        written, self._written = self._written, []
        counts = Counter(await asyncio.gather(*written))
        return Receipts(**counts)

    def _write(self, session: Session, entries: list[Entry]) -> list[str]:
        held = _still_held(session, entries)
        answers = ["lost"] * len(entries)
        begun: list[Entry] = []
        finished: list[Entry] = []
        # A send is begun in one group and finished in a later one, never both in one.
        for place, entry in enumerate(entries):
            if entry.send.send_id in held:
                (begun if entry.kind == "begin" else finished).append(entry)
                answers[place] = "deferred" if entry.state == "planned" else entry.state
        stopped = self._begin_all(session, begun, held)
        self._finish_all(session, finished)
        return [
            stopped.get(entry.send.send_id, answer) if entry.kind == "begin" and answer != "lost" else answer
            for entry, answer in zip(entries, answers, strict=True)
        ]

    def _begin_all(self, session: Session, entries: list[Entry], held: Mapping[int, bool]) -> dict[int, str]:
        """What became of the sends that may not leave after all; the others are ``attempting``."""
        if not entries:
            return {}
        halted = [entry for entry in entries if not held[entry.send.send_id]]
        going = [entry for entry in entries if held[entry.send.send_id]]
        barred = barred_sends(
            session, [entry.send for entry in going], self._pepper, self._sandbox, now=self._clock.now()
        )
        stopped = dict.fromkeys(barred, "suppressed") | _hold_back(session, halted)
        if barred:
            closed = [
                {"key": entry.send.send_id, "why": barred[entry.send.send_id], "at": entry.at}
                for entry in going
                if entry.send.send_id in barred
            ]
            session.connection().execute(_BAR, closed)
        if stopped:  # they were counted as departures when they were claimed
            stayed = Counter(entry.send.mailbox for entry in entries if entry.send.send_id in stopped)
            count_departures(session, {mailbox: -count for mailbox, count in stayed.items()}, now=entries[0].at)
        if len(barred) < len(going):
            until = database_now(session) + self._attempt_lease
            session.connection().execute(
                _BEGIN,
                [
                    {
                        "key": entry.send.send_id,
                        "until": until,
                        "id_of_message": entry.email.message_id if entry.email else None,
                        "links": entry.email.link_count if entry.email else None,
                    }
                    for entry in going
                    if entry.send.send_id not in barred
                ],
            )
        return stopped

    def _finish_all(self, session: Session, entries: list[Entry]) -> None:
        if not entries:
            return
        session.connection().execute(
            _FINISH,
            [
                {
                    "key": entry.send.send_id,
                    "to": entry.state,
                    "why": entry.reason[:300] if entry.reason else None,
                    "code": entry.code,
                    "due": entry.due_at or entry.send.due_at,
                    "at": None if entry.state == "planned" else entry.at,
                    "tries": entry.send.attempts
                    + (entry.is_try and entry.state != "held_out" and entry.email is not None),
                    "id_of_message": entry.email.message_id if entry.email else None,
                    "links": entry.email.link_count if entry.email else None,
                }
                for entry in entries
            ],
        )
        back = [
            Feedback(entry.send.contact_key, entry.send.send_id, entry.bounce or "policy", entry.at)
            for entry in entries
            if entry.bounce or entry.is_policy
        ]
        take_feedback(session, back, source="smtp", pepper=self._pepper, now=entries[0].at)
        refusing = {entry.send.mailbox for entry in entries if entry.is_policy}
        if refusing:
            self.refusing |= set(halt_refusing(session, refusing, now=entries[0].at))
        events = self._log.events(session, entries)
        if events:
            append(session, events, received_at=max(event.occurred_at for event in events))


_SEND = cast(Table, SendRow.__table__)
_BAR = (
    update(_SEND)
    .where(_SEND.c.send_id == bindparam("key"))
    .values(state="suppressed", reason=bindparam("why"), finished_at=bindparam("at"), lease_until=None)
)
_BEGIN = (
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
_FINISH = (
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


def _still_held(session: Session, entries: Sequence[Entry]) -> dict[int, bool]:
    """Sends whose lease is still ours, their rows locked, and whether nothing holds them back."""
    tokens = {entry.send.send_id: entry.send.lease_token for entry in entries}
    rows = session.connection().execute(_HELD, {"ids": list(tokens)})
    return {send_id: bool(free) for send_id, token, free in rows if token == tokens[send_id]}


def _hold_back(session: Session, entries: Sequence[Entry]) -> dict[int, str]:
    """Plan again what was halted between its claim and its departure; what was cancelled ends so."""
    if not entries:
        return {}
    campaigns = {entry.send.campaign_id for entry in entries}
    cancelled = set(
        session.scalars(
            select(CampaignRow.campaign_id).where(
                CampaignRow.campaign_id.in_(campaigns), CampaignRow.status == "cancelled"
            )
        )
    )
    over = [entry for entry in entries if entry.send.campaign_id in cancelled]
    waiting = [entry for entry in entries if entry.send.campaign_id not in cancelled]
    for group, values in (
        (over, {"state": "cancelled", "reason": "campaign cancelled", "finished_at": entries[0].at}),
        (waiting, {"state": "planned", "reason": "held back by a halt before it left"}),
    ):
        if group:
            session.execute(
                update(SendRow)
                .where(SendRow.send_id.in_([entry.send.send_id for entry in group]))
                .values(**values, lease_until=None)
            )
    return {entry.send.send_id: "cancelled" for entry in over} | {entry.send.send_id: "halted" for entry in waiting}


def _scrub(reply: str, recipient: str) -> str:
    """A relay's reply without addresses: those live in the contacts table and nowhere else."""
    local = recipient.partition("@")[0]
    plain = _ADDRESS.sub("<address>", " ".join(reply.split()))
    return (plain.replace(local, "<address>") if len(local) >= 4 else plain)[:200]
