"""How bad a bounce is: is the address dead, is it out of order for now, or is it us that are refused?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

#: hard: there is no such mailbox. soft: it takes nothing now. policy: it is the sender or the content that is refused.
Severity = Literal["hard", "soft", "policy"]

#: Enhanced status codes stand free in a text: 5.1.1 is one, 192.5.1.1 and 5.1.1.7 are none.
_STATUS = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d.]*\d)")
_REPLY = re.compile(r"(?<![\d.])([45]\d\d)(?=[ -])")
#: Bad address of the *sender* (RFC 3463, X.1.7 and X.1.8): says nothing of the recipient's.
_SENDERS_FAULT = ("5.1.7", "5.1.8")
#: The message is too large for the mailbox or the system.
_TOO_LARGE = ("5.2.3", "5.3.4")
_POLICY_WORDS = re.compile(
    r"spam|block(?:ed|list)|black ?list|reputation|polic(?:y|ies)|dmarc|\bspf\b|dkim|unsolicited|abus|virus|"
    r"rate limit|authenticat|relay(?:ing)? (?:access )?(?:denied|not)",
    re.IGNORECASE,
)
_NOBODY = re.compile(
    r"(?:user|mailbox|recipient|address|account|person)\b.{0,40}?\b(?:unknown|not found|not exist|n't exist|no longer|"
    r"invalid|not available here)|no such (?:user|mailbox|recipient|address|person|account)|unknown (?:user|recipient|"
    r"local[- ]part|address)|no mailbox here|invalid (?:recipient|mailbox|address)|does not like recipient",
    re.IGNORECASE,
)
_FULL = re.compile(r"mailbox (?:is )?full|over ?quota|quota (?:is )?exceeded|insufficient (?:system )?storage", re.I)


def severity_of(status: str | None, code: int | None, text: str = "") -> Severity:
    """What a failure says of the address.

    Parameters
    ----------
    status : str or None
        Enhanced status code such as ``5.1.1``.
    code : int or None
        SMTP reply code such as 550.
    text : str
        The diagnostic; it decides where the codes say nothing.

    References
    ----------
    Vaudreuil (2003), RFC 3463, "Enhanced Mail System Status Codes".

    Examples
    --------
    >>> severity_of("5.1.1", 550), severity_of("5.2.2", 552), severity_of("5.7.1", 550), severity_of("4.4.7", None)
    ('hard', 'soft', 'policy', 'soft')
    >>> severity_of(None, 550, "no such user here"), severity_of(None, 550, "blocked: no such user policy")
    ('hard', 'policy')
    """
    if status is not None and status.startswith("4."):
        return "soft"
    if status is not None and not status.endswith(".0.0"):
        if status in _SENDERS_FAULT or status in _TOO_LARGE or status.startswith(("5.5.", "5.6.", "5.7.")):
            return "policy"
        return "hard" if status.startswith("5.1.") else "soft"
    if code is not None and code < 500:
        return "soft"
    if _POLICY_WORDS.search(text):
        return "policy"
    if code == 552 or _FULL.search(text):
        return "soft"
    return "hard" if _NOBODY.search(text) else "soft"


def status_in(text: str) -> str | None:
    """The first enhanced status code of a failure in a text.

    Examples
    --------
    >>> status_in("550-5.1.1 no such user"), status_in("connection to 192.5.1.1 failed")
    ('5.1.1', None)
    """
    return next((found for found in _STATUS.findall(text) if not found.startswith("2.")), None)


def reply_in(text: str) -> int | None:
    """The first SMTP reply code of a failure in a text."""
    found = _REPLY.search(text)
    return int(found.group(1)) if found else None


def severity_told(properties: Mapping[str, Any]) -> Severity:
    """Severity of an ``Email Bounced`` event as its sender tells it.

    ``bounce`` (hard, soft, policy) decides; else the code tells a policy; else ``is_permanent``, or the providers' word
    ``type`` (hard, permanent); else the code.

    Examples
    --------
    >>> severity_told({"is_permanent": True}), severity_told({"is_permanent": True, "status": "5.7.1"})
    ('hard', 'policy')
    >>> severity_told({"is_permanent": "true"}), severity_told({"is_permanent": "false"})
    ('hard', 'soft')
    """
    told = properties.get("bounce")
    if told in ("hard", "soft", "policy"):
        return told
    words = [str(properties[name]) for name in ("status", "code", "diagnostic", "reason") if properties.get(name)]
    text = " ".join(words) + " "
    status, code = status_in(text), reply_in(text)
    by_code = severity_of(status, code, text)
    if by_code == "policy":
        return "policy"
    is_permanent = properties.get("is_permanent")
    if is_permanent is None and isinstance(properties.get("type"), str):
        is_permanent = properties["type"].strip().lower() in ("hard", "permanent", "hardbounce")
    if is_permanent is not None:
        return "hard" if _is_true(is_permanent) else "soft"
    return by_code


def _is_true(value: Any) -> bool:
    """Senders write booleans as JSON has them, as words and as numbers."""
    return value is True or str(value).strip().lower() in ("true", "yes", "1")
