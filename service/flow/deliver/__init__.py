"""Send: claim what is due → hand it to the provider → write down what became of it; effectively once.

``planned → claimed → attempting → accepted | failed | unknown``. A claim is committed before the provider hears of a
mail, ``attempting`` just before its message leaves, the result after: whatever a crash interrupts, the row says whether
the mail can have left. This step commits by itself, in groups, and so takes the database instead of a session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from service.clock import Clock
from service.database import Database, database_now
from service.flow.deliver.claiming import IS_READY, STREAMS, Claim, Claimed, claim, may_leave
from service.flow.deliver.ledger import BACK_OFF, Ledger, Receipts
from service.flow.deliver.reconciling import close_unknown, reconcile, resend_unknown
from service.flow.deliver.recovery import Recovered, recover
from service.flow.render import Email, RenderFailure
from service.providers.base import Connection, Provider, Receipt
from service.settings import Settings

__all__ = [
    "BACK_OFF",
    "IS_READY",
    "STREAMS",
    "Claim",
    "Claimed",
    "DeliveryAgent",
    "Receipts",
    "Recovered",
    "claim",
    "close_unknown",
    "database_now",
    "deliver",
    "may_leave",
    "reconcile",
    "recover",
    "resend_unknown",
]

log = logging.getLogger(__name__)

#: A row stays ``attempting`` unquestioned for as long as a relay may take to answer DATA (one minute) and the final dot
#: (ten), and the ledger to write it.
ATTEMPT_LEASE_SECONDS = 780.0
#: Once nothing of a batch is left to begin, those that the relay still has not answered for are waited for so long.
#: Then the next batch leaves over the other connections.
PATIENCE_SECONDS = 5.0


class DeliveryAgent:
    """Hands mails to a provider over connections that stay open from one batch to the next.

    Examples
    --------
    ``async with DeliveryAgent(provider, database, clock=clock, settings=settings) as agent: await agent.deliver(…)``
    """

    def __init__(
        self,
        provider: Provider,
        database: Database,
        *,
        clock: Clock,
        settings: Settings,
        attempt_lease_seconds: float = ATTEMPT_LEASE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._provider = provider
        self._ledger = Ledger(database, clock, settings, attempt_lease_seconds)
        self._stack = AsyncExitStack()
        #: Connections on which nothing goes on, and how many there are in all.
        self._idle: list[Connection] = []
        self._opened = 0
        #: Conversations of earlier batches in which the relay has not answered yet.
        self._late: set[asyncio.Task[None]] = set()
        self._patience_seconds = patience_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> DeliveryAgent:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.hang_up()

    @property
    def is_waiting(self) -> bool:
        """Whether the relay has not answered yet for a mail of an earlier batch."""
        return bool(self._late)

    async def hang_up(self) -> None:
        """Close the connections, once the relay has answered for what it was given; the next batch opens new ones."""
        if self._loop is asyncio.get_running_loop():
            if self._late:
                await asyncio.wait(self._late)
            await self._ledger.receipts()
        stack, self._stack, self._idle, self._opened = self._stack, AsyncExitStack(), [], 0
        await stack.aclose()

    async def deliver(self, sends: Sequence[Claimed], emails: Sequence[Email | RenderFailure]) -> Receipts:
        """Hand each claimed send's mail to the provider, and log what became of it.

        The recipient is checked while the send is ``claimed``. Then halts, consent and suppression are looked at once
        more, in the transaction that marks it ``attempting``; only then the message leaves. A held-out send is trapped
        here, after its mail was made like any other. 4xx answers plan the send again later, 5xx fail it (5.1.x suppress
        the address, a full mailbox is a soft bounce, 5.7.x count against the mailbox provider), and a line that breaks
        after the message began leaves ``unknown``.

        Raises
        ------
        ValueError
            If a send has no mail among ``emails``.
        """
        by_id = {email.send_id: email for email in emails}
        for send in sends:
            if send.send_id not in by_id:
                raise ValueError(
                    f"send {send.send_id} was claimed but not rendered; pass its mail or its RenderFailure"
                )
        if self._loop is not asyncio.get_running_loop():  # lines do not outlive the loop that they were opened in
            self._loop, self._stack, self._idle, self._opened = asyncio.get_running_loop(), AsyncExitStack(), [], 0
            self._late = set()
        ledger = self._ledger
        ledger.expect(sends)
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
        try:
            if queue:
                await self._talk(queue)
        finally:
            receipts = await ledger.receipts()
        return receipts

    async def _talk(self, queue: list[tuple[Claimed, Email]]) -> None:
        """Empty the queue over all connections; what the relay is slow to answer for goes on beside the next batch."""
        while len(self._idle) < len(queue) and self._opened < self._provider.connections:
            self._idle.append(await self._stack.enter_async_context(self._provider.connection()))
            self._opened += 1
        while not self._idle:  # all of them wait for the relay
            await asyncio.wait(self._late, return_when=asyncio.FIRST_COMPLETED)
        talking, self._idle = self._idle[: len(queue)], self._idle[len(queue) :]
        going = {asyncio.ensure_future(self._converse(queue, connection)) for connection in talking}
        failed: list[BaseException] = []
        try:
            while going:
                is_last = not queue
                done, going = await asyncio.wait(
                    going, timeout=self._patience_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                failed += [fault for task in done if (fault := task.exception()) is not None]
                if is_last and not done:
                    break
        except asyncio.CancelledError:
            for task in going:
                task.cancel()
            raise
        for task in going:
            self._late.add(task)
            task.add_done_callback(self._answered)
            self._ledger.set_aside(task)
        if going:
            log.info("the relay is slow to answer for %d mails", len(going), extra={"action": "relay_slow"})
        if failed:
            raise failed[0]

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._late.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("a mail of an earlier batch failed", exc_info=fault, extra={"action": "late_mail_failed"})

    @asynccontextmanager
    async def _in_use(self, connection: Connection) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._idle.append(connection)

    async def _converse(self, queue: list[tuple[Claimed, Email]], connection: Connection) -> None:
        ledger, provider = self._ledger, self._provider
        async with self._in_use(connection), ledger.conversation():
            while queue:
                send, email = queue.pop()
                if send.mailbox in ledger.refusing:
                    ledger.hold_back(send)
                    continue
                checked = await _check(connection, email)
                if checked.outcome != "accepted":
                    ledger.finish_with(send, email, checked, pause_seconds=provider.pause_seconds)
                    continue
                if not await ledger.begin(send, email):
                    await connection.abandon()
                    continue
                ledger.finish_with(send, email, await _transmit(connection, email))


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
    """One batch over connections of its own: see `DeliveryAgent.deliver`."""
    async with DeliveryAgent(
        provider, database, clock=clock, settings=settings, attempt_lease_seconds=attempt_lease_seconds
    ) as agent:
        return await agent.deliver(sends, emails)


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
