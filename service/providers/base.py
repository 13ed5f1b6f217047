"""What sends mail: a protocol in two phases, so that we know what is uncertain when a line breaks."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

Outcome = Literal["accepted", "deferred", "rejected", "unknown"]

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
#: Statuses of RFC 3463 and its registry that say: this address takes no mail, and never will.
_BAD_ADDRESS = frozenset(("5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10"))
_BAD_SENDER = frozenset(("5.1.7", "5.1.8"))
_NO_SUCH = re.compile(
    r"no such (?:user|recipient|mailbox|address)|(?:user|recipient|mailbox|address)\b.{0,60}"
    r"(?:unknown|not found|does(?: not|n't) exist|invalid)|unknown (?:user|recipient|mailbox|address)",
    re.IGNORECASE,
)
#: What a relay says at RCPT of the sender that it took at MAIL.
_OF_SENDER = re.compile(
    r"\b(?:sender|return[- ]path)\b(?:'s)?(?: (?:e-?mail|address|domain|verify|verification))*"
    r"(?: (?:is|was|has|been|not))* (?:rejected|refused|denied|blocked|invalid|unknown|failed|found|exist)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the provider answered.

    Attributes
    ----------
    outcome : str
        ``accepted``; ``deferred``: try again later; ``rejected``: do not; ``unknown``: the line broke after the
        message began to leave, so it may or may not have arrived.
    code : int or None
        SMTP reply code; None where none came.
    text : str
        The reply's text.
    """

    outcome: Outcome
    code: int | None
    text: str
    #: No conversation took place at all: it says nothing about this mail, and its tries are not counted.
    is_relay_down: bool = False
    #: The answer to MAIL: it speaks of our sender, whatever its words.
    at_mail: bool = False

    @property
    def is_sender(self) -> bool:
        """Whether the sender was refused (5.1.7, 5.1.8, any answer to MAIL, or words that say so): no recipient is bad.

        Refusals for policy are left to `is_policy`.
        """
        if self.outcome != "rejected" or self.is_policy:
            return False
        enhanced = _ENHANCED.match(self.text)
        return (
            self.at_mail
            or (enhanced is not None and enhanced.group() in _BAD_SENDER)
            or _OF_SENDER.search(self.text) is not None
        )

    @property
    def is_bad_address(self) -> bool:
        """Whether the reply says that there is no such mailbox: 5.1.x (RFC 3463), or 550 in words that say so."""
        if self.outcome != "rejected" or self.at_mail or self.is_sender:
            return False
        if enhanced := _ENHANCED.match(self.text):
            return enhanced.group() in _BAD_ADDRESS
        return self.code in (550, 551, 553) and _NO_SUCH.search(self.text) is not None

    @property
    def is_full_mailbox(self) -> bool:
        """Whether the mailbox has no room (5.2.2, or 552 without an enhanced status): it may have some another day."""
        if self.outcome != "rejected" or self.at_mail:
            return False
        if enhanced := _ENHANCED.match(self.text):
            return enhanced.group() == "5.2.2"
        return self.code == 552

    @property
    def is_policy(self) -> bool:
        """Whether the provider does not want our mail (5.7.x): it is about the sender, not about the address."""
        return self.outcome == "rejected" and self.text.lstrip().startswith("5.7.")


class Connection(Protocol):
    """One conversation with a provider; several mails go through it one after the other."""

    async def check(self, sender: str, recipient: str) -> Receipt:
        """Whether the provider would take a mail for ``recipient``. Nothing has left yet: a crash here is harmless."""
        ...

    async def transmit(self, message: bytes) -> Receipt:
        """Send the message that the last `check` announced. A line that breaks here leaves ``unknown``."""
        ...

    async def abandon(self) -> None:
        """Drop what the last `check` announced, without sending."""
        ...


class Provider(Protocol):
    """A way for mail to leave."""

    #: Connections that may be open at once.
    connections: int

    @property
    def pause_seconds(self) -> float:
        """Seconds for which nothing should be claimed for it, because it cannot be reached; 0 when it can."""
        ...

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """A conversation, closed when its block ends; it reconnects by itself when the line was lost."""
        ...


def classify(code: int, text: str) -> Receipt:
    """The receipt that an SMTP reply stands for: 2xx accepted, 4xx deferred, 5xx rejected.

    Examples
    --------
    >>> classify(451, "4.7.1 greylisted").outcome, classify(550, "5.1.1 no such user").is_bad_address
    ('deferred', True)
    """
    if 200 <= code < 300:
        return Receipt("accepted", code, text)
    if 500 <= code < 600:
        return Receipt("rejected", code, text)
    return Receipt("deferred", code, text)


def provider_from_url(url: str, *, home: Path, connections: int) -> Provider:
    """The provider that ``SMTP_URL`` names.

    Raises
    ------
    ValueError
        If the scheme is none of ``smtp``, ``smtps``, ``outbox``, or an SMTP address has no host.
    """
    from service.providers.outbox import OutboxProvider
    from service.providers.smtp import SmtpProvider

    scheme = urlsplit(url).scheme
    if scheme == "outbox":
        return OutboxProvider(home / "outbox", connections=connections)
    if scheme in ("smtp", "smtps"):
        return SmtpProvider(url, connections=connections)
    raise ValueError(f"SMTP_URL begins with {scheme!r}; use smtp://host:port, smtps://host:port or outbox://")
