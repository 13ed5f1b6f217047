"""The headers of a mail, and the return path that its bounces come back to."""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from hashlib import blake2b

from service.flow.render.addresses import deliverable
from service.flow.render.inputs import RenderInput
from service.links import sign_bounce

#: Longest `PUBLIC_URL`: with the longest ids and the longest From address, `List-Unsubscribe` then still is one line of
#: 998 octets (RFC 5322 section 2.1.1), so that nobody has to fold it.
LONGEST_PUBLIC_URL = 600

_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9-]+")


def mail_headers(
    given: RenderInput,
    *,
    subject: str,
    now: datetime,
    from_header: str,
    from_address: str,
    unsubscribe_url: str,
    signing_key: str,
) -> tuple[tuple[str, str], ...]:
    """Names and values in the order they stand; marketing mail carries the ways out and the names of its list.

    The same send gives the same Message-ID whenever it is made, so that a mail that is sent again after a crash can be
    told from another one.

    Raises
    ------
    ValueError
        If the contact's address cannot be mailed.

    References
    ----------
    Levine & Herkula (2017), RFC 8058, "Signaling One-Click Functionality for List Email Headers".
    Chandhok & Wenger (2001), RFC 2919, "List-Id".
    Google, "Feedback Loop (FBL)", Postmaster Tools help: ``a:b:c:SenderId``.
    """
    domain = from_address.rpartition("@")[2]
    headers = [
        ("From", from_header),
        ("To", deliverable(given.email)),
        ("Subject", subject),
        ("Date", _date(now)),
        ("Message-ID", f"<s{given.send_id}.{_fingerprint(signing_key, given)}@{domain}>"),
    ]
    if given.stream != "transactional":
        token = unsubscribe_url.rpartition("/")[2]
        topic = _NOT_IN_A_LABEL.sub("-", given.topic.lower()).strip("-") or "mail"
        written = f"<{unsubscribe_url}>, <mailto:{from_address}?subject=unsubscribe%20{token}>"
        headers += [
            ("List-Unsubscribe", written),
            ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
            ("List-ID", f"<{topic}.{domain}>"),
            ("Feedback-ID", f"{given.campaign_id or given.template.template_id}:{topic}:{given.stream}:kairos"),
        ]
    headers.append(("X-Kairos-Send", str(given.send_id)))
    return tuple(headers)


def return_path(signing_key: str, send_id: int, domain: str) -> str | None:
    """The envelope sender of a send, to which its bounces come back; None where there is no domain that takes them.

    References
    ----------
    Bernstein (1997), "Variable Envelope Return Paths".
    """
    return f"b+{sign_bounce(signing_key, send_id)}@{domain}" if domain and send_id else None


@lru_cache(maxsize=16)
def _date(now: datetime) -> str:
    return format_datetime(now)


def _fingerprint(key: str, given: RenderInput) -> str:
    said = f"message {given.send_id} {given.nonce}".rstrip()
    return blake2b(said.encode(), key=key.encode()[:64], digest_size=6).hexdigest()
