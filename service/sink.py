"""A mail server on this machine that keeps what it gets: where the demo's mail goes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

Answer = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A mail that the sink took."""

    sender: str
    recipient: str
    content: bytes = field(repr=False)


class MailSink:
    """SMTP on 127.0.0.1, at a free port, in a thread of its own.

    Parameters
    ----------
    on_delivery : callable, optional
        Called in the sink's thread with each `Delivery`.
    keep : bool
        Keep the mails in ``deliveries``; else only count them.
    on_recipient, on_message : callable, optional
        What to answer an address at RCPT, and after its message: an SMTP reply, ``drop`` to break the line, or None to
        accept. ``drop`` after the message breaks the line once the mail was taken: the sender cannot know.

    Examples
    --------
    >>> with MailSink() as sink:
    ...     sink.url.startswith("smtp://127.0.0.1:"), sink.count
    (True, 0)
    """

    def __init__(
        self,
        *,
        on_delivery: Callable[[Delivery], None] | None = None,
        keep: bool = True,
        on_recipient: Answer | None = None,
        on_message: Answer | None = None,
    ) -> None:
        self.deliveries: list[Delivery] = []
        self.count = 0
        self.port = 0
        self.on_delivery = on_delivery
        self.on_recipient = on_recipient
        self.on_message = on_message
        self._keep = keep
        self._lock = threading.Lock()
        self._controller: Controller | None = None

    @property
    def url(self) -> str:
        """What ``SMTP_URL`` takes to reach this sink."""
        return f"smtp://127.0.0.1:{self.port}"

    def __enter__(self) -> MailSink:
        # A server that closes a socket leaves its port for a moment; the kernel hands out one that is free.
        for attempt in range(5):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = int(probe.getsockname()[1])
            self._controller = Controller(
                _Handler(self), hostname="127.0.0.1", port=self.port, ident="Kairos sink", enable_SMTPUTF8=False
            )
            try:
                self._controller.start()
                return self
            except OSError:
                if attempt == 4:
                    raise
        raise AssertionError("unreachable")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._controller is not None:
            self._controller.stop()

    def take(self, delivery: Delivery) -> None:
        """Keep or count a mail."""
        with self._lock:
            self.count += 1
            if self._keep:
                self.deliveries.append(delivery)
        if self.on_delivery is not None:
            self.on_delivery(delivery)


class _Handler:
    def __init__(self, sink: MailSink) -> None:
        self._sink = sink

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[Any]
    ) -> str:
        answer = self._sink.on_recipient(address) if self._sink.on_recipient else None
        if answer == "drop":
            return _hang_up(server)
        if answer is not None and not answer.startswith("2"):
            return answer
        envelope.rcpt_tos.append(address)
        return answer or "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        answers = [self._sink.on_message(address) if self._sink.on_message else None for address in envelope.rcpt_tos]
        refusal = next((answer for answer in answers if answer is not None and not answer.startswith("2")), None)
        if refusal is not None and refusal != "drop":
            return refusal
        content = envelope.original_content or b""
        for address in envelope.rcpt_tos:
            self._sink.take(Delivery(envelope.mail_from or "", address, content))
        return _hang_up(server) if refusal == "drop" else "250 2.0.0 OK"


def _hang_up(server: SMTP) -> str:
    if isinstance(server.transport, asyncio.WriteTransport):
        server.transport.abort()
    return "421 4.4.2 line lost"
