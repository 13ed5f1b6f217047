"""Mail by SMTP, in phases: MAIL and RCPT while nothing can be lost, DATA when it can."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit

import aiosmtplib

from service.providers.base import Receipt, classify

#: RFC 5321 section 4.5.3.2.6: a server may take ten minutes to answer the final dot; giving up earlier makes doubles.
DATA_TIMEOUT_SECONDS = 600.0
COMMAND_TIMEOUT_SECONDS = 60.0
DEFAULT_PORTS = {"smtp": 25, "smtps": 465}


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


class SmtpConnection:
    """One conversation with the relay."""

    def __init__(self, provider: SmtpProvider) -> None:
        self._provider = provider
        self._client: aiosmtplib.SMTP | None = None

    async def check(self, sender: str, recipient: str) -> Receipt:
        """Announce sender and recipient. A lost line is tried once more on a new one, then the mail is deferred."""
        for is_last in (False, True):
            was_connected = self._client is not None
            try:
                client = await self._connected()
                await client.mail(sender)
                reply = await client.rcpt(recipient)
                return classify(reply.code, reply.message)
            except (aiosmtplib.SMTPSenderRefused, aiosmtplib.SMTPRecipientRefused) as refusal:
                await self.abandon()
                return classify(refusal.code, refusal.message)
            except aiosmtplib.SMTPAuthenticationError as refusal:
                await self._drop()
                return Receipt("deferred", refusal.code, "the relay refuses our user or password; mend SMTP_URL")
            except (aiosmtplib.SMTPException, OSError) as failure:
                await self._drop()
                if is_last or not was_connected:
                    code = getattr(failure, "code", None)
                    place = f"{self._provider.host}:{self._provider.port}"
                    return Receipt(
                        "deferred", code, f"no conversation with {place}: {str(failure) or type(failure).__name__}"
                    )
        raise AssertionError("unreachable")

    async def transmit(self, message: bytes) -> Receipt:
        """Send the message; an answer is waited for as long as RFC 5321 asks."""
        client = self._client
        if client is None:
            return Receipt("deferred", None, "the line was lost before the message began")
        try:
            reply = await client.data(message, timeout=self._provider.data_timeout_seconds)
            return classify(reply.code, reply.message)
        except aiosmtplib.SMTPDataError as refusal:
            await self.abandon()
            return classify(refusal.code, refusal.message)
        except (aiosmtplib.SMTPException, OSError) as failure:
            await self._drop()
            return Receipt("unknown", None, f"the line was lost after the message began: {type(failure).__name__}")

    async def abandon(self) -> None:
        """Reset the conversation."""
        if self._client is not None:
            try:
                await self._client.rset()
            except (aiosmtplib.SMTPException, OSError):
                await self._drop()

    async def close(self) -> None:
        """Say goodbye."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=5)
            client.close()

    async def _connected(self) -> aiosmtplib.SMTP:
        if self._client is None or not self._client.is_connected:
            client = self._provider.client()
            try:
                await client.connect()
            except BaseException:
                client.close()
                raise
            self._client = client
        return self._client

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
