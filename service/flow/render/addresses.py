"""Addresses as SMTP and headers take them: one mailbox, in ASCII, that cannot bring a second header or recipient."""

from __future__ import annotations

import re
from email.header import Header
from email.headerregistry import Address
from email.utils import parseaddr
from functools import lru_cache
from urllib.parse import urlsplit, urlunsplit

#: Octets of an address, and of what stands before its @: RFC 5321 section 4.5.3.1.
LONGEST_ADDRESS, LONGEST_LOCAL_PART = 254, 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOT_ATOM = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~]|\\[ -~])*"')
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)


def deliverable(address: str) -> str:
    """``address`` in ASCII, as the envelope and the To header carry it; a domain of another script in its ASCII form.

    Raises
    ------
    ValueError
        If it is not one plain mailbox; says what is wrong and never repeats it, for it ends in the ledger.

    Examples
    --------
    >>> deliverable("ann@bücher.example"), deliverable('"ann b"@shop.example')
    ('ann@xn--bcher-kva.example', '"ann b"@shop.example')
    """
    if _CONTROL.search(address):
        raise ValueError("the address holds a line break or another control character; identify the contact anew")
    local, at, domain = address.rpartition("@")
    if not at or not local or not domain:
        raise ValueError("the address has no name or no domain around its @; identify the contact with another")
    if not local.isascii():
        raise ValueError("the address has letters beyond ASCII before its @, which most relays refuse; use another")
    if not (_DOT_ATOM.fullmatch(local) or _QUOTED.fullmatch(local)):
        raise ValueError("the address is not one plain mailbox; identify the contact with one address alone")
    domain = ascii_domain(domain)
    if len(local) > LONGEST_LOCAL_PART or len(local) + 1 + len(domain) > LONGEST_ADDRESS:
        raise ValueError(
            f"the address has {len(local)} characters before its @ and {len(local) + 1 + len(domain)} in all; "
            f"SMTP takes {LONGEST_LOCAL_PART} and {LONGEST_ADDRESS}"
        )
    return f"{local}@{domain}"


@lru_cache(maxsize=4_096)
def ascii_domain(domain: str) -> str:
    """``domain`` in the ASCII form that DNS and SMTP know (IDNA 2008).

    Raises
    ------
    ValueError
        If it is no domain name.
    """
    if not domain.isascii():
        import idna

        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError(f"the domain of the address has no ASCII form: {str(error)[:80]}") from error
    if not _DOMAIN.fullmatch(domain) or len(domain) > 253:
        raise ValueError("the domain of the address is no domain name, such as shop.example")
    return domain


@lru_cache(maxsize=32)
def mailbox(written: str) -> tuple[str, str]:
    """``(header value, address)`` of ``Name <address>`` as an operator writes it.

    Raises
    ------
    ValueError
        If it holds no address.

    Examples
    --------
    >>> mailbox("Café <hello@shop.example>")
    ('=?utf-8?b?Q2Fmw6k=?= <hello@shop.example>', 'hello@shop.example')
    """
    check_header("From", written)
    name, address = parseaddr(written)
    if "@" not in address:
        raise ValueError(f"{written!r} holds no mail address; write it as Name <name@domain>")
    address = deliverable(address)
    if not name:
        return address, address
    if name.isascii():
        return str(Address(display_name=name, addr_spec=address)), address
    return f"{Header(name, 'utf-8').encode()} <{address}>", address


@lru_cache(maxsize=32)
def base_url(public_url: str) -> str:
    """``PUBLIC_URL`` without its last slash, its host in ASCII: what the links of mails begin with.

    Raises
    ------
    ValueError
        If it is no http(s) address, or holds characters that a header cannot carry as they are.

    Examples
    --------
    >>> base_url("https://bücher.example/mail/")
    'https://xn--bcher-kva.example/mail'
    """
    parts = urlsplit(public_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s<>\"]", public_url):
        raise ValueError(f"PUBLIC_URL {public_url[:80]!r} is no web address; write it as https://mail.shop.example")
    if not public_url.isascii():
        port = f":{parts.port}" if parts.port else ""
        public_url = urlunsplit(parts._replace(netloc=ascii_domain(parts.hostname) + port))
        if not public_url.isascii():
            raise ValueError(f"the path of PUBLIC_URL {public_url[:80]!r} is not ASCII; write it percent-encoded")
    return public_url.rstrip("/")


def check_header(name: str, value: str) -> None:
    """Refuse a value that would end its header and begin another.

    Raises
    ------
    ValueError
        If ``value`` holds a line break or another control character.
    """
    found = _CONTROL.search(value)
    if found and found.group() != "\t":
        raise ValueError(f"the {name} holds the control character U+{ord(found.group()):04X}; take line breaks out")
