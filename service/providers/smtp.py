"""Mail by SMTP, in phases: MAIL and RCPT while nothing can be lost, DATA when it can.

aiosmtplib opens the line (TLS, STARTTLS, EHLO, AUTH); from then on we speak ourselves. MAIL and RCPT go together where
the relay offers PIPELINING (RFC 2920), and a reply costs a tenth of what aiosmtplib's locks, timers and parsers take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast
from urllib.parse import unquote, urlsplit

import aiosmtplib

from service.providers.base import Receipt, classify
from service.providers.wire import LineLost, Reply, Wire, as_data

log = logging.getLogger(__name__)

#: RFC 5321 section 4.5.3.2.6: a server may take ten minutes to answer the final dot; giving up earlier makes doubles.
DATA_TIMEOUT_SECONDS = 600.0
COMMAND_TIMEOUT_SECONDS = 60.0
DEFAULT_PORTS = {"smtp": 25, "smtps": 465}
#: A relay that cannot be reached is left alone so long; the pause doubles with each failure that follows.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0

_PLAIN = re.compile(
    r"""(?:[^\s"<>\x00-\x1f\x7f]+|"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*")@[^\s"<>\x00-\x1f\x7f]+"""
)
_START_INPUT = 354
_CLOSING = 421


class SmtpProvider:
    """A relay reached by SMTP.

    Parameters
    ----------
    url : str
        ``smtp://[user:password@]host[:port]``, upgraded by STARTTLS where the server offers it, or ``smtps://…``.
    connections : int
        Connections that may be open at once.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
        data_timeout_seconds: float = DATA_TIMEOUT_SECONDS,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise ValueError(f"SMTP_URL with scheme {parts.scheme!r} names no relay; write smtp://host:port")
        self.host = parts.hostname
        self.port = parts.port or DEFAULT_PORTS[parts.scheme]
        self.connections = connections
        self.command_timeout_seconds = command_timeout_seconds
        self.data_timeout_seconds = data_timeout_seconds
        self._use_tls = parts.scheme == "smtps"
        self._username = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._failures = 0
        self._closed_until = 0.0
        self._why_closed: Receipt | None = None

    @property
    def pause_seconds(self) -> float:
        """Seconds for which the relay is left alone, because it could not be reached."""
        return max(0.0, self._closed_until - time.monotonic())

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[SmtpConnection]:
        """A conversation with the relay; it connects when it is first used."""
        conversation = SmtpConnection(self)
        try:
            yield conversation
        finally:
            await conversation.close()

    def client(self) -> aiosmtplib.SMTP:
        """A client that is not connected yet."""
        return aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            username=self._username,
            password=self._password,
            use_tls=self._use_tls,
            local_hostname="localhost" if self.host in ("127.0.0.1", "localhost") else None,
            timeout=self.command_timeout_seconds,
        )

    def paused(self) -> Receipt | None:
        """Why the relay is not asked at the moment; None: it may be."""
        return self._why_closed if self.pause_seconds > 0 else None

    def reached(self) -> None:
        """The relay opened a line: the next failure begins with the shortest pause."""
        self._failures = 0

    def not_reached(self, code: int | None, why: str) -> Receipt:
        """The receipt of a mail for which no line could be opened; the relay is then left alone for a while."""
        if self.pause_seconds <= 0:
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._failures)
            self._failures += 1
            self._closed_until = time.monotonic() + pause
            self._why_closed = Receipt(
                "deferred", code, f"no conversation with {self.host}:{self.port}: {why}", is_relay_down=True
            )
            log.warning(
                "the relay cannot be reached; it is asked again in %.0f s", pause,
                extra={"action": "relay_down", "code": code},
            )  # fmt: skip
        assert self._why_closed is not None
        return self._why_closed


class SmtpConnection:
    """One conversation with the relay."""

    def __init__(self, provider: SmtpProvider) -> None:
        self._provider = provider
        self._client: aiosmtplib.SMTP | None = None
        self._wire: Wire | None = None
        self._pipelines = False
        #: Whether the relay holds a sender that the next mail has to reset.
        self._is_begun = False

    async def check(self, sender: str, recipient: str) -> Receipt:
        """Announce sender and recipient. A line that is lost or closed (421) is followed once by a new one."""
        for address in (sender, recipient):
            if not (address.isascii() and _PLAIN.fullmatch(address)):
                return Receipt("rejected", None, "an address of the envelope is not one plain ASCII address")
        for is_last in (False, True):
            was_open = self._is_open()
            if not was_open:
                refusal = await self._open()
                if refusal is not None:
                    return refusal
            assert self._wire is not None
            is_new = is_last or not was_open
            try:
                receipt = await self._announce(self._wire, sender, recipient)
            except LineLost as lost:
                await self._drop()
                if is_new:
                    return Receipt("deferred", None, f"the line was lost before the message began: {lost}")
                continue
            if receipt.code != _CLOSING or is_new:
                return receipt
            # The relay closed a line that had served its time: that says nothing of this mail.
        raise AssertionError("unreachable")

    async def transmit(self, message: bytes) -> Receipt:
        """Send the message; an answer is waited for as long as RFC 5321 asks."""
        wire = self._wire
        if wire is None or not self._is_begun:
            return Receipt("deferred", None, "the line was lost before the message began")
        try:
            [ready] = await wire.ask(b"DATA\r\n", 1, self._provider.command_timeout_seconds)
        except LineLost as lost:
            await self._drop()
            return Receipt("deferred", None, f"the line was lost before the message began: {lost}")
        if ready.code != _START_INPUT:
            if ready.code < 400:  # a yes to a question that was not asked: nobody knows where the two stand
                await self._drop()
                return Receipt("deferred", ready.code, f"the relay answered DATA with {ready.text[:80]!r}")
            await self._after_refusal(ready)
            return classify(ready.code, ready.text)
        try:
            [taken] = await wire.ask(as_data(message), 1, self._provider.data_timeout_seconds)
        except LineLost as lost:
            await self._drop()
            return Receipt("unknown", None, f"the line was lost after the message began: {lost}")
        self._is_begun = False
        if taken.code == _CLOSING:
            await self._drop()
        elif not (200 <= taken.code < 300 or 400 <= taken.code < 600):
            await self._drop()
            return Receipt("unknown", taken.code, f"the relay answered the message with {taken.text[:80]!r}")
        return classify(taken.code, taken.text)

    async def abandon(self) -> None:
        """Take back what was announced: the next mail begins with RSET."""

    async def close(self) -> None:
        """Say goodbye."""
        if self._is_open() and self._wire is not None:
            with contextlib.suppress(LineLost):
                await self._wire.ask(b"QUIT\r\n", 1, 5.0)
        await self._drop()

    def _is_open(self) -> bool:
        return self._wire is not None and self._wire.fault is None

    async def _announce(self, wire: Wire, sender: str, recipient: str) -> Receipt:
        lines = [f"MAIL FROM:<{sender}>\r\n".encode("ascii"), f"RCPT TO:<{recipient}>\r\n".encode("ascii")]
        if self._is_begun:
            lines.insert(0, b"RSET\r\n")
        self._is_begun = True
        timeout = self._provider.command_timeout_seconds
        replies: list[Reply] = []
        try:
            for part in [b"".join(lines)] if self._pipelines else lines:
                replies += await wire.ask(part, len(lines) if self._pipelines else 1, timeout)
                if replies[-1].code >= 400:
                    break
        except LineLost as lost:
            replies += lost.replies
            if all(reply.code < 400 for reply in replies):
                raise
            await self._drop()  # it said why, and hung up
        if len(replies) == len(lines) and all(200 <= reply.code < 300 for reply in replies):
            return classify(replies[-1].code, replies[-1].text)
        place = next(place for place, reply in enumerate(replies) if not 200 <= reply.code < 300)
        refused = replies[place]
        if refused.code < 400:
            await self._drop()
            return Receipt("deferred", refused.code, f"the relay answered the envelope with {refused.text[:80]!r}")
        await self._after_refusal(refused)
        receipt = classify(refused.code, refused.text)
        return replace(receipt, at_mail=True) if lines[place].startswith(b"MAIL") else receipt

    async def _after_refusal(self, refused: Reply) -> None:
        if refused.code == _CLOSING:
            await self._drop()

    async def _open(self) -> Receipt | None:
        """Open the line; the receipt says why there is none."""
        await self._drop()
        paused = self._provider.paused()
        if paused is not None:
            return paused
        client = self._provider.client()
        try:
            await client.connect()
            transport = client.transport
            if transport is None or transport.is_closing():
                raise aiosmtplib.SMTPServerDisconnected("the line was lost at once")
        except BaseException as failure:
            client.close()
            if isinstance(failure, aiosmtplib.SMTPAuthenticationError):
                return self._provider.not_reached(failure.code, "it refuses our user or password; mend SMTP_URL")
            if isinstance(failure, aiosmtplib.SMTPException | OSError | ValueError):
                code = getattr(failure, "code", None)
                return self._provider.not_reached(code, " ".join(str(failure).split())[:120] or type(failure).__name__)
            raise
        self._client = client
        self._pipelines = client.supports_extension("pipelining")
        self._wire = Wire(cast(asyncio.Transport, transport))
        self._is_begun = False
        self._provider.reached()
        return None

    async def _drop(self) -> None:
        client, self._client, self._wire, self._is_begun = self._client, None, None, False
        if client is not None:
            client.close()
