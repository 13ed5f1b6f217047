"""The bytes of a mail: headers that stay whole, a text twin and HTML.

`email.message.EmailMessage` takes 3 ms a mail and, with its own SMTP policy, encodes a long `List-Unsubscribe` by
RFC 2047, after which mail programs show no unsubscribe button. Here each header is one line up to 998 octets, and only
what is not ASCII is encoded.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from email.header import Header
from hashlib import blake2b

from service.flow.render.addresses import check_header

#: Octets of a line, RFC 5322 section 2.1.1.
LONGEST_LINE = 998
#: What people write; every other header is ours and must stand as it is: encoded, a `List-Unsubscribe` is no link.
_WORDS = frozenset(["Subject"])


def build_message(headers: Iterable[tuple[str, str]], *, text: str, html: str) -> bytes:
    """A multipart/alternative message with CRLF line ends; the same input gives the same bytes.

    Parameters
    ----------
    headers : iterable of (name, value)
        In the order they are to stand. Only a Subject may hold what is not ASCII; addresses come encoded
        (see `service.flow.render.addresses`).

    Raises
    ------
    ValueError
        If a value holds a control character, or one other than the subject is not ASCII, or does not fit on one line.
    """
    lines = []
    for name, value in headers:
        check_header(name, value)
        if not value.isascii():
            if name not in _WORDS:
                raise ValueError(f"the {name} holds letters beyond ASCII, which it cannot carry: {value[:80]!r}")
            value = Header(value, "utf-8", header_name=name, maxlinelen=76).encode(linesep="\r\n")
        elif len(name) + 2 + len(value) > LONGEST_LINE:
            raise ValueError(f"the {name} has {len(value)} characters; a line takes {LONGEST_LINE}")
        lines.append(f"{name}: {value}\r\n")
    text_part, html_part = _quoted(text), _quoted(html)
    # "=_" cannot stand in quoted-printable text, so no part can hold the boundary.
    mark = blake2b("".join(lines).encode(), digest_size=12).hexdigest()
    boundary = f"=_{mark}"
    head = "".join(lines) + f'MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary="{boundary}"\r\n\r\n'
    parts = [head.encode("ascii")]
    for kind, body in (("plain", text_part), ("html", html_part)):
        parts.append(
            f"--{boundary}\r\nContent-Type: text/{kind}; charset=utf-8\r\n"
            "Content-Transfer-Encoding: quoted-printable\r\n\r\n".encode("ascii")
        )
        parts.append(body)
    parts.append(f"--{boundary}--\r\n".encode("ascii"))
    return b"".join(parts)


def _quoted(text: str) -> bytes:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").replace("\n", "\r\n") + "\r\n"
    # Its line ends follow the first one it finds: with one CRLF at the end they are all CRLF.
    return binascii.b2a_qp(lines.encode("utf-8", "replace"), istext=True)
