"""Raw mail that came back: is it a bounce, a complaint or neither, and what does it say?"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes, message_from_string
from email.message import Message
from email.utils import getaddresses, parseaddr
from typing import Literal

from flufl.bounce import all_failures

from service.bounces.status import Severity, reply_in, severity_of, status_in
from service.errors import Invalid, TooLarge

log = logging.getLogger(__name__)

Kind = Literal["bounce", "complaint", "none"]

#: Bytes of a message that is read; reports return the headers, or a mail without attachments.
LARGEST_MESSAGE = 5_000_000
#: Return path of a mail: see `service.links.sign_bounce`.
_RETURN_PATH = re.compile(r"\bb\+([0-9a-z]{1,60})@", re.IGNORECASE)
_MESSAGE_ID = re.compile(r"^(?:X-)?Message-ID:[ \t]*(?:\r?\n[ \t]+)?(<[^<>\s]{3,250}>)", re.IGNORECASE | re.MULTILINE)
_NAMED_SEND = re.compile(r"^X-Kairos-Send:[ \t]*(\d{1,19})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_SENT_TO = re.compile(r"^To:[ \t]*(.{3,320}?)\r?$", re.IGNORECASE | re.MULTILINE)
_ADDRESS = re.compile(r"\S*@\S*")
_DAEMON = re.compile(r"mailer-daemon|postmaster|mail delivery|mailerdaemon|mail-daemon", re.IGNORECASE)
_AWAY = re.compile(
    r"out of (?:the )?office|auto(?:matic)?[- ]?(?:reply|response)|vacation|abwesen|absence du bureau|on leave", re.I
)
_RECIPIENT_HEADERS = ("Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To", "To", "Original-Recipient")


@dataclass(frozen=True, slots=True)
class Report:
    """What a message that came back says; addresses in it are for matching only and show in no log."""

    kind: Kind
    #: For ``none``: what it is instead.
    why: str = ""
    severity: Severity | None = None
    status: str | None = None
    code: int | None = None
    #: The other side's words, without addresses.
    diagnostic: str = ""
    #: Tokens of return paths that the message was addressed to.
    tokens: tuple[str, ...] = field(default=(), repr=False)
    #: Message-ID of the mail that came back.
    message_id: str | None = None
    #: The send that the returned headers name: a bare number that anybody can write, so only a hint.
    named_send: int | None = None
    #: Addresses that the mail had been sent to, as the report tells.
    recipients: tuple[str, ...] = field(default=(), repr=False)


def read_report(raw: bytes) -> Report:
    """What a raw message says of a mail of ours.

    Delivery status notifications and feedback reports are read as they are defined; what only looks like a bounce goes
    through the heuristics of flufl.bounce. Answers of absent people, notes of delay and receipts are no bounces.

    Raises
    ------
    TooLarge
        If it has more than `LARGEST_MESSAGE` bytes.
    Invalid
        If it is no mail message.

    References
    ----------
    Moore & Vaudreuil (2003), RFC 3464, "An Extensible Message Format for Delivery Status Notifications"; Shafranovich
    et al. (2010), RFC 5965, "An Extensible Format for Email Feedback Reports"; Moore (2004), RFC 3834.
    """
    if len(raw) > LARGEST_MESSAGE:
        raise TooLarge(f"the message has {len(raw):,} bytes; reports of at most {LARGEST_MESSAGE:,} are read")
    try:
        message = message_from_bytes(raw)
        parts = list(message.walk())
    except RecursionError:
        raise Invalid("the message is nested too deep to be read; send the report as it came") from None
    if not message.keys():
        raise Invalid("this is no mail message: it has no headers; send the raw message as it came (message/rfc822)")
    for part in parts:
        if part.get_content_type() == "message/feedback-report":
            return _complaint(message, part, parts)
    for part in parts:
        if part.get_content_type() == "message/delivery-status":
            return _notification(message, part, parts)
    return _guessed(raw, message, parts)


def scrub(text: str, addresses: Sequence[str] = ()) -> str:
    """The other side's words on one line, without addresses or their local parts; at most 200 characters.

    Examples
    --------
    >>> scrub("550 5.1.1 <jane@shop.example>: jane99 is unknown", ["jane99@shop.example"])
    '550 5.1.1 <address> <address> is unknown'
    """
    plain = _ADDRESS.sub("<address>", " ".join(text.split()))
    for address in addresses:
        local = address.partition("@")[0]
        if len(local) >= 4:
            plain = re.sub(re.escape(local), "<address>", plain, flags=re.IGNORECASE)
    return "".join(sign if sign.isprintable() else "?" for sign in plain)[:200]


def _complaint(message: Message, part: Message, parts: list[Message]) -> Report:
    fields = _blocks(part)[0]
    kind = _text(fields, "Feedback-Type").lower()
    if kind in ("not-spam", "opt-out", "opt-out-list", "dmarc", "auth-failure"):
        return Report("none", f"a feedback report of type {kind}, no complaint")
    named = [_text(fields, name) for name in ("Original-Rcpt-To", "Original-Recipient", "Removal-Recipient")]
    return _of_returned(message, parts, [address for text in named for address in _addresses(text)], kind="complaint")


def _notification(message: Message, part: Message, parts: list[Message]) -> Report:
    blocks = [block for block in _blocks(part) if block.get("Action") or block.get("Final-Recipient")]
    # opensmtpd says error; some add a comment
    failed = [block for block in blocks if _text(block, "Action").lower().startswith(("fail", "error"))]
    if not failed:
        actions = sorted({_text(block, "Action").lower().split(" ")[0] for block in blocks} - {""})
        return Report("none", f"a note that the mail was {', '.join(actions) or 'reported on'}, no bounce")
    block = failed[0]
    words = _text(block, "Diagnostic-Code")
    words = words.partition(";")[2].strip() or words
    status = status_in(_text(block, "Status") + " ")
    if status is None or status.endswith(".0.0"):
        status = status_in(words) or status
    named = [
        address for name in ("Original-Recipient", "Final-Recipient") for address in _addresses(_text(block, name))
    ]
    return _of_returned(message, parts, named, kind="bounce", words=words, status=status, code=reply_in(words + " "))


def _guessed(raw: bytes, message: Message, parts: list[Message]) -> Report:
    """A message that follows no standard."""
    sender = f"{_text(message, 'From')} {_text(message, 'Sender')}"
    is_daemon = bool(_DAEMON.search(sender)) or "X-Failed-Recipients" in message
    is_auto = _text(message, "Auto-Submitted").lower().startswith("auto") or any(
        name in message for name in ("X-Autoreply", "X-Autorespond", "X-Autoresponse", "Vacation")
    )
    if _AWAY.search(_text(message, "Subject")) or (is_auto and not is_daemon):
        return Report("none", "an automatic reply, no bounce")
    if not is_daemon and message.get_content_type() != "multipart/report":
        return Report("none", "no report of a bounce or a complaint")
    delayed, failed = _failures(raw)
    named = [address.decode("ascii", "replace") for address in sorted(failed)]
    named += [address for address in _addresses(_text(message, "X-Failed-Recipients")) if address not in named]
    if delayed and not named:
        return Report("none", "a note that the mail was delayed, no bounce")
    if not named:
        return Report("none", "no failed recipient can be found in it")
    words = next((_payload(part) for part in parts if part.get_content_type() == "text/plain"), "")
    words = words.partition("--- Below this line")[0][:4_000]
    told = " ".join(line for line in words.splitlines() if status_in(line) or reply_in(line + " ") or "user" in line)
    status, code = status_in(told), reply_in(told + " ")
    return _of_returned(message, parts, named, kind="bounce", words=told or words, status=status, code=code)


def _failures(raw: bytes) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Addresses that the heuristics find delayed, and failed."""
    # They take every header for a text, which one with a byte outside of ASCII is not.
    try:
        return all_failures(message_from_bytes(raw.decode("latin-1").encode("ascii", "replace")))
    except Exception as error:  # patterns of many hands, over whatever came in
        log.warning("a bounce could not be guessed at: %s", type(error).__name__, extra={"action": "bounce_unreadable"})
        return frozenset(), frozenset()


def _of_returned(
    message: Message,
    parts: list[Message],
    named: list[str],
    *,
    kind: Kind,
    words: str = "",
    status: str | None = None,
    code: int | None = None,
) -> Report:
    returned = _returned_headers(message, parts)
    found, send = _MESSAGE_ID.search(returned), _NAMED_SEND.search(returned)
    sent_to = _SENT_TO.search(returned)
    recipients = dict.fromkeys([*(_addresses(sent_to.group(1)) if sent_to else []), *named])
    tokens = (
        token
        for name in _RECIPIENT_HEADERS
        for value in message.get_all(name, [])
        for token in _RETURN_PATH.findall(str(value))
    )
    return Report(
        kind=kind,
        severity=severity_of(status, code, words) if kind == "bounce" else None,
        status=status,
        code=code,
        diagnostic=scrub(words, list(recipients)),
        tokens=tuple(dict.fromkeys(token.lower() for token in tokens)),
        message_id=found.group(1) if found else None,
        named_send=int(send.group(1)) if send else None,
        recipients=tuple(recipients),
    )


def _returned_headers(message: Message, parts: list[Message]) -> str:
    """The headers of the mail that came back: a part of their own, or what stands below the words (qmail, exim)."""
    for part in parts:
        if part.get_content_type() in ("message/rfc822", "message/rfc822-headers"):
            inner = part.get_payload()
            if isinstance(inner, list) and inner and isinstance(inner[0], Message):
                return "".join(f"{name}: {' '.join(str(value).split())}\n" for name, value in inner[0].items())
        if part.get_content_type() == "text/rfc822-headers":
            return _payload(part)
    if message.is_multipart():
        return ""
    text = _payload(message)
    begin = re.search(r"^(?:--- Below this line|-+ This is a copy of|-+ ?original message)", text, re.I | re.M)
    return text[begin.start() :] if begin else ""


def _blocks(part: Message) -> list[Message]:
    """Groups of fields of a machine-readable part; at least one."""
    payload = part.get_payload()
    blocks = [block for block in payload if isinstance(block, Message)] if isinstance(payload, list) else []
    if not any(block.keys() for block in blocks):
        # Some gateways encode the part, which the parser does not expect of this type.
        text = "".join(str(block.get_payload()) for block in blocks) or _payload(part)
        if _text(part, "Content-Transfer-Encoding").lower() == "base64":
            with suppress(ValueError):
                text = base64.b64decode(text).decode("utf-8", "replace")
        blocks = [message_from_string(block) for block in re.split(r"(?:\r?\n){2,}", text)]
    return [block for block in blocks if block.keys()] or [Message()]


def _bytes(part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _payload(part: Message) -> str:
    payload = _bytes(part)
    try:
        return payload.decode(part.get_content_charset() or "utf-8", "replace")
    except (LookupError, ValueError):  # a charset that nobody knows
        return payload.decode("latin-1")


def _text(part: Message, name: str) -> str:
    return " ".join(str(part.get(name, "")).split())


def _addresses(value: str) -> Iterator[str]:
    """Addresses of a field such as ``rfc822; ann@shop.example`` or ``Ann <ann@shop.example>, …``."""
    for part in value.split(";"):
        for _, address in getaddresses([part]):
            plain = parseaddr(address)[1] or address
            if plain.count("@") == 1 and len(plain) <= 320:
                yield plain.strip("<>\"' ")
