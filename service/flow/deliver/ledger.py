"""Write what became of sends, in groups, each row fenced by its lease token."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from features.events import append
from service.bounces.feedback import Feedback, take_feedback
from service.clock import Clock
from service.database import Database, database_now
from service.flow.deliver.claiming import Claimed, barred_sends
from service.flow.deliver.ledger_rows import (
    BAR,
    BEGIN,
    CANCELLED,
    FINISH,
    HELD_BACK,
    cancelled_among,
    hold_back_all,
    still_held,
)
from service.flow.deliver.log_entries import Entry, LogEntries
from service.flow.deliver.refusals import halt_refusing
from service.flow.render import Email
from service.group_commit import GroupCommit
from service.providers.base import Receipt
from service.settings import Settings
from service.throttle import count_departures

log = logging.getLogger(__name__)

#: Waits before the second, third and every later try of a deferred mail.
BACK_OFF = (timedelta(minutes=5), timedelta(hours=1), timedelta(hours=4))
#: A mail that was deferred for so long in all expires.
LONGEST_DEFERRAL = timedelta(hours=72)
#: How long a group of ledger writes gathers at most; it goes at once when every conversation waits for it.
GROUP_SECONDS = 0.015
LARGEST_GROUP = 500

#: A result that the database did not take is written again after so long, then after twice as long, and so on.
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.2, 10.0

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
        #: Whether it was said that results could not be written.
        self._is_retrying = False
        self._log = LogEntries()
        #: Mailbox providers that were halted while the present sends leave: nothing more is asked of them.
        self.refusing: set[str] = set()
        self._conversations = 0
        self._set_aside = 0
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

    def set_aside(self, conversation: asyncio.Task[None]) -> None:
        """Wait no more for a conversation that has the last of its mails in the air."""
        self._set_aside += 1
        conversation.add_done_callback(self._back)

    def _back(self, _conversation: asyncio.Task[None]) -> None:
        self._set_aside -= 1

    def _hurry_if_all_wait(self) -> None:
        if self._waiting and self._waiting >= self._conversations - self._set_aside:
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
        entry = Entry("finish", send, email, self._clock.now(), state=state, reason=reason, **said)
        self._written.append(asyncio.ensure_future(self._kept(entry, self._group.put(entry))))

    async def _kept(self, entry: Entry, written: asyncio.Future[str]) -> str:
        """Write a result that the database did not take until it does, or its lease is over.

        The relay has the mail by then: a result that is lost makes it unknown, or sends it twice. The lease token makes
        a second writing of the same harmless.
        """
        pause, until = FIRST_RETRY_SECONDS, time.monotonic() + self._attempt_lease.total_seconds()
        while True:
            try:
                return await written
            except OperationalError:
                if time.monotonic() + pause >= until:
                    raise
                if not self._is_retrying:
                    self._is_retrying = True
                    log.warning(
                        "what became of mails could not be written; it is tried until it can",
                        exc_info=True, extra={"action": "results_not_written"},
                    )  # fmt: skip
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)
            written = self._group.put(entry)

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
        elif receipt.outcome == "rejected" and not receipt.is_sender:
            self.finish(
                send, "failed", reason, **said,
                bounce="hard" if receipt.is_bad_address else "soft" if receipt.is_full_mailbox else None,
                is_policy=receipt.is_policy,
            )  # fmt: skip
        elif receipt.is_relay_down:
            again_at = self._clock.now() + timedelta(seconds=max(1.0, pause_seconds))
            self.finish(send, "planned", f"waits for the relay: {reason}", **said, due_at=again_at, is_try=False)
        else:
            if receipt.is_sender:
                reason = f"our sender was refused: {reason}"
            again_at = self._clock.now() + BACK_OFF[min(send.attempts, len(BACK_OFF) - 1)]
            if again_at > send.not_after:
                self.finish(send, "expired", f"deferred until it was too late: {reason}", **said)
            elif deferred_for(send.attempts + 1) > LONGEST_DEFERRAL:
                self.finish(send, "expired", f"deferred for 72 hours: {reason}", **said)
            else:
                self.finish(send, "planned", f"deferred: {reason}", **said, due_at=again_at)

    def hold_back(self, send: Claimed) -> None:
        """Plan a send again whose mailbox provider was halted meanwhile; it was not tried."""
        self.finish(send, "planned", HELD_BACK, due_at=send.due_at, is_try=False)

    async def receipts(self) -> Receipts:
        """Counts of what was written since the last call, once all of it is on disk."""
        written, self._written = self._written, []
        counts = Counter(await asyncio.gather(*written))
        self._is_retrying = False
        return Receipts(**counts)

    def _write(self, session: Session, entries: list[Entry]) -> list[str]:
        again = {entry.send.campaign_id for entry in entries if entry.kind == "finish" and entry.state == "planned"}
        cancelled = cancelled_among(session, again, lock=True)  # before the rows, as who cancels does
        held = still_held(session, entries)
        entries = [_ended(entry) if entry.send.campaign_id in cancelled else entry for entry in entries]
        answers = ["lost"] * len(entries)
        begun: list[Entry] = []
        finished: list[Entry] = []
        # A send is begun in one group and finished in a later one, never both in one.
        for place, entry in enumerate(entries):
            if entry.send.send_id in held:
                (begun if entry.kind == "begin" else finished).append(entry)
                again_as = "halted" if entry.reason == HELD_BACK else "deferred"
                answers[place] = again_as if entry.state == "planned" else entry.state
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
        stopped = dict.fromkeys(barred, "suppressed") | hold_back_all(session, halted)
        if barred:
            closed = [
                {"key": entry.send.send_id, "why": barred[entry.send.send_id], "at": entry.at}
                for entry in going
                if entry.send.send_id in barred
            ]
            session.connection().execute(BAR, closed)
        going = [entry for entry in going if entry.send.send_id not in barred]
        if going:
            count_departures(session, Counter(entry.send.mailbox for entry in going), now=going[0].at)
            until = database_now(session) + self._attempt_lease
            session.connection().execute(
                BEGIN,
                [
                    {
                        "key": entry.send.send_id,
                        "until": until,
                        "id_of_message": entry.email.message_id if entry.email else None,
                        "links": entry.email.link_count if entry.email else None,
                    }
                    for entry in going
                ],
            )
        return stopped

    def _finish_all(self, session: Session, entries: list[Entry]) -> None:
        if not entries:
            return
        session.connection().execute(
            FINISH,
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


def _ended(entry: Entry) -> Entry:
    """A mail that would be planned again, and whose campaign was cancelled meanwhile."""
    if entry.kind == "begin" or entry.state != "planned":
        return entry
    return replace(entry, state="cancelled", reason=f"{CANCELLED}; {entry.reason}", due_at=None)


def _scrub(reply: str, recipient: str) -> str:
    """A relay's reply without addresses: those live in the contacts table and nowhere else."""
    local = re.escape(recipient.partition("@")[0])
    # A short one stands in many words; as a word of its own it is the name, whatever its case.
    name = local if len(local) >= 4 else rf"(?<![\w.]){local}(?!\w|\.\w)"
    plain = _ADDRESS.sub("<address>", " ".join(reply.split()))
    return re.sub(name, "<address>", plain, flags=re.IGNORECASE)[:200]
