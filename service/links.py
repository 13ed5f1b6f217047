"""Signed short tokens of opens, clicks, traps and unsubscribes, and the targets that clicks lead to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from features.tables import allocate
from service.database import Database
from service.tables import LinkRow

#: Bytes of the authentication code. With the largest ids a click token then has 38 characters, so that a
#: `List-Unsubscribe` header stays on one line.
CODE_BYTES = 10
#: Largest number that a token carries (the databases' own limit).
LARGEST_ID = 2**63 - 1
#: Characters of the longest text that is looked at as a token.
LONGEST_TOKEN = 60
_NOT_IN_A_URL = re.compile(r"[\x00-\x20\x7f\\]")
_QUERY_CHUNK = 5_000


class BadToken(ValueError):
    """A token that we did not sign for this purpose."""


def sign_open(key: str, send_id: int) -> str:
    """Token of the open pixel of a send."""
    return _sign(key, b"o", (send_id,))


def sign_click(key: str, send_id: int, link_id: int) -> str:
    """Token of one link of a send; it names the target by number, so it cannot redirect anywhere else."""
    return _sign(key, b"c", (send_id, link_id))


def sign_unsubscribe(key: str, send_id: int) -> str:
    """Token that unsubscribes the contact of a send from the send's topic."""
    return _sign(key, b"u", (send_id,))


def sign_trap(key: str, send_id: int) -> str:
    """Token of the link that people do not see."""
    return _sign(key, b"t", (send_id,))


def trap_html(base: str, token: str) -> str:
    """The link that people do not see, for the end of a mail's body: who follows it reads the source, as scanners do.

    It is hidden from eyes, from screen readers and from the keyboard.
    """
    return (
        '<div style="display:none;max-height:0;overflow:hidden" aria-hidden="true">'
        f'<a href="{base}/t/{token}" tabindex="-1" rel="nofollow"></a></div>'
    )


def sign_bounce(key: str, send_id: int) -> str:
    """Token of a send's return path; only 0-9 and a-v in it, because relays may change the case of a local part."""
    return base64.b32hexencode(_sign_bytes(key, b"b", (send_id,))).rstrip(b"=").decode().lower()


def read_open(key: str, token: str) -> int:
    """Send id of an open token.

    Raises
    ------
    BadToken
        If it was not signed with ``key`` for opens.
    """
    return _read(key, b"o", token, 1)[0]


def read_click(key: str, token: str) -> tuple[int, int]:
    """``(send_id, link_id)`` of a click token.

    Raises
    ------
    BadToken
        If it was not signed with ``key`` for clicks.
    """
    send_id, link_id = _read(key, b"c", token, 2)
    return send_id, link_id


def read_trap(key: str, token: str) -> int:
    """Send id of a trap's token.

    Raises
    ------
    BadToken
        If it was not signed with ``key`` for traps.
    """
    return _read(key, b"t", token, 1)[0]


def read_unsubscribe(key: str, token: str) -> int:
    """Send id of an unsubscribe token.

    Raises
    ------
    BadToken
        If it was not signed with ``key`` for unsubscribing.
    """
    return _read(key, b"u", token, 1)[0]


def read_bounce(key: str, token: str) -> int:
    """Send id of a return path's token, in whatever case it comes back.

    Raises
    ------
    BadToken
        If it was not signed with ``key`` for bounces.
    """
    token = token.lower()
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise _refused()
    try:
        packed = base64.b32hexdecode(token.upper() + "=" * (-len(token) % 8))
    except (binascii.Error, ValueError):
        raise _refused() from None
    (send_id,) = _unpack(packed[:-CODE_BYTES], 1)
    if not hmac.compare_digest(sign_bounce(key, send_id), token):
        raise _refused()
    return send_id


def link_ids(session: Session, urls: Iterable[str]) -> dict[str, int]:
    """Numbers of link targets, registering those that are new; one query for what is known, one insert for the rest.

    Raises
    ------
    ValueError
        If a target is not an absolute http or https address: nothing else may ever be redirected to.
    """
    wanted = {url: _fingerprint(url) for url in dict.fromkeys(urls)}
    for url in wanted:
        if not is_web_address(url):
            raise ValueError(f"{url!r} cannot be tracked; give an absolute http:// or https:// address")
    known = _known_links(session, wanted.values())
    missing = {url: digest for url, digest in wanted.items() if digest not in known}
    if missing:
        # Raising the counter takes its lock: whoever registered the same target meanwhile has committed by now.
        first = allocate(session, "link_id", len(missing))
        known |= _known_links(session, missing.values())
        fresh = {url: first + place for place, url in enumerate(missing) if missing[url] not in known}
        if fresh:
            session.execute(
                insert(LinkRow),
                [{"link_id": number, "url_sha256": missing[url], "url": url} for url, number in fresh.items()],
            )
            known |= {missing[url]: number for url, number in fresh.items()}
    return {url: known[digest] for url, digest in wanted.items()}


class LinkBook:
    """Numbers of link targets by a database, remembered; what is new is registered in a short transaction of its own.

    Registering a target says nothing about any send, so it may outlive the batch that asked for it.
    """

    #: Targets remembered; personal targets (a cart, a coupon) would otherwise fill the memory.
    LARGEST = 100_000

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, int] = {}

    def __call__(self, urls: Iterable[str]) -> dict[str, int]:
        """Link id of each of ``urls``, registered and committed."""
        wanted = list(dict.fromkeys(urls))
        known = self._known
        missing = [url for url in wanted if url not in known]
        if missing:
            if len(known) + len(missing) > self.LARGEST:
                known = self._known = {url: known[url] for url in wanted if url in known}
            with self._database.writing() as session:
                fresh = link_ids(session, missing)
            known.update(fresh)
        return {url: known[url] for url in wanted}


def link_url(session: Session, link_id: int) -> str | None:
    """Target of a link, or None where there is none of that number."""
    return session.execute(select(LinkRow.url).where(LinkRow.link_id == link_id)).scalar_one_or_none()


@lru_cache(maxsize=65_536)
def is_web_address(url: str) -> bool:
    """Whether ``url`` is an absolute http(s) address without control characters or white space.

    Examples
    --------
    >>> is_web_address("https://shop.example/a?b=1"), is_web_address("javascript:alert(1)"), is_web_address("//evil")
    (True, False, False)
    """
    if _NOT_IN_A_URL.search(url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _known_links(session: Session, digests: Iterable[str]) -> dict[str, int]:
    wanted = list(digests)
    known: dict[str, int] = {}
    for start in range(0, len(wanted), _QUERY_CHUNK):
        chunk = wanted[start : start + _QUERY_CHUNK]
        rows = session.execute(select(LinkRow.url_sha256, LinkRow.link_id).where(LinkRow.url_sha256.in_(chunk)))
        known |= {row.url_sha256: row.link_id for row in rows}
    return known


def _fingerprint(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=64)
def _keyed(key: str, purpose: bytes) -> hashlib.blake2b:
    # One key a purpose: an open token can never be read as an unsubscribe.
    return hashlib.blake2b(
        key=hashlib.sha256(key.encode()).digest(), person=b"kairos-" + purpose, digest_size=CODE_BYTES
    )


def _sign_bytes(key: str, purpose: bytes, numbers: tuple[int, ...]) -> bytes:
    packed = bytearray()
    for number in numbers:
        if not 0 <= number <= LARGEST_ID:
            raise ValueError(f"{number} cannot be put into a token; ids lie between 0 and {LARGEST_ID}")
        while number > 0x7F:  # LEB128: small ids make short tokens
            packed.append(number & 0x7F | 0x80)
            number >>= 7
        packed.append(number)
    code = _keyed(key, purpose).copy()
    code.update(packed)
    return bytes(packed) + code.digest()


def _sign(key: str, purpose: bytes, numbers: tuple[int, ...]) -> str:
    return base64.urlsafe_b64encode(_sign_bytes(key, purpose, numbers)).rstrip(b"=").decode()


def _read(key: str, purpose: bytes, token: str, count: int) -> list[int]:
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise _refused()
    try:
        packed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise _refused() from None
    numbers = _unpack(packed[:-CODE_BYTES], count)
    # Signing again and comparing leaves exactly one spelling of each token.
    if not hmac.compare_digest(_sign(key, purpose, tuple(numbers)).encode(), token.encode()):
        raise _refused()
    return numbers


def _unpack(packed: bytes, count: int) -> list[int]:
    numbers, number, shift = [], 0, 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            numbers.append(number)
            number, shift = 0, 0
    if shift or len(numbers) != count or max(numbers) > LARGEST_ID:
        raise _refused()
    return numbers


def _refused() -> BadToken:
    return BadToken("this link is not one of ours, or it was cut off; use the link exactly as it stands in the mail")
