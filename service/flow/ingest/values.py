"""Single values of a message: times, amounts, addresses, zones, texts; read, or refused with the remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from email_validator import EmailNotValidError, validate_email

from service.logs import redact

#: Bytes of one message, as the Segment API limits them.
MAX_BYTES = 32 * 1024
MAX_DEPTH = 32
#: Largest amount, in minor units: sums of millions of these stay inside int64.
MAX_MINOR = 10**12

_NO_DECIMALS = {
    "BIF",
    "CLP",
    "DJF",
    "GNF",
    "ISK",
    "JPY",
    "KMF",
    "KRW",
    "PYG",
    "RWF",
    "UGX",
    "VND",
    "VUV",
    "XAF",
    "XOF",
    "XPF",
}
_THREE_DECIMALS = {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"}


class MessageError(ValueError):
    """A message, or a part of it, that cannot be taken; says which value and what to do."""


def parse_instant(value: Any, name: str = "timestamp") -> datetime:
    """Aware UTC datetime of an RFC 3339 text; without a zone it is taken as UTC.

    Raises
    ------
    MessageError
        If it is no such text, or lies before 1970 or after 2200.

    Examples
    --------
    >>> parse_instant("2026-03-02T10:00:00+01:00").isoformat()
    '2026-03-02T09:00:00+00:00'
    """
    try:
        instant = datetime.fromisoformat(value)
        instant = (instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise MessageError(f"{name} is {said(value)}; write an RFC 3339 time such as 2026-03-02T09:00:00Z") from None
    if not 1970 <= instant.year < 2200:
        raise MessageError(f"{name} {value} lies outside the years 1970 to 2199; check the sender's clock")
    return instant


def minor_units(value: Any, currency: str, name: str = "value") -> int:
    """An amount in minor units of ``currency``, rounded half up, exact in decimal.

    Raises
    ------
    MessageError
        If it is no finite number, or larger than 10^12 minor units.

    Examples
    --------
    >>> minor_units(12.345, "GBP"), minor_units("7", "JPY")
    (1235, 7)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise MessageError(f"{name} is {said(value)}; send an amount such as 12.50")
    try:
        # repr of a float is the shortest text that names it: 12.345 is read as written, not as 12.34499…
        amount = Decimal(value.strip() if isinstance(value, str) else repr(value))
    except InvalidOperation:
        raise MessageError(f"{name} is {said(value)}; send an amount such as 12.50") from None
    decimals = decimals_of(currency)
    if not amount.is_finite() or abs(amount) > MAX_MINOR:
        raise MessageError(f"{name} is {said(value)}; send a finite amount of at most {MAX_MINOR // 10**decimals:,}")
    minor = int((amount * 10**decimals).to_integral_value(ROUND_HALF_UP))
    if abs(minor) > MAX_MINOR:
        raise MessageError(f"{name} is {said(value)}; send a finite amount of at most {MAX_MINOR // 10**decimals:,}")
    return minor


def decimals_of(currency: str) -> int:
    """Decimal places of a currency's minor unit (ISO 4217); 2 where it is not one of the exceptions.

    Examples
    --------
    >>> decimals_of("GBP"), decimals_of("JPY"), decimals_of("KWD")
    (2, 0, 3)
    """
    return 0 if currency in _NO_DECIMALS else 3 if currency in _THREE_DECIMALS else 2


def valid_address(text: str) -> str | None:
    """The address in its usual spelling, or None if ``text`` is none. Nothing is looked up.

    Examples
    --------
    >>> valid_address(" Ann@Shop.Example "), valid_address("ann at shop")
    ('Ann@shop.example', None)
    """
    try:
        return usual_address(text)
    except EmailNotValidError:
        return None


def usual_address(text: str) -> str:
    """The address in its usual spelling.

    Raises
    ------
    EmailNotValidError
        Saying what is wrong with it.
    """
    # Domains reserved for tests (RFC 2606) are allowed: demo and tests send to them, into a local sink.
    return str(validate_email(text.strip(), check_deliverability=False, test_environment=True).normalized)


@lru_cache(maxsize=1024)
def is_zone(name: str) -> bool:
    """Whether there is an IANA time zone of that name."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def checked_text(body: Mapping[str, Any]) -> str:
    """The message as JSON, once every value in it can be stored."""
    # A stack, not recursion: the nesting is what is being checked.
    stack: list[tuple[str, Any, int]] = [("", body, 1)]
    while stack:
        path, value, depth = stack.pop()
        if isinstance(value, str):
            _check_characters(value, path)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise MessageError(f"{path} is {value}; send a finite number or leave it out")
        elif isinstance(value, Mapping | list):
            if depth > MAX_DEPTH:
                raise MessageError(f"{path[:80]}… is nested deeper than {MAX_DEPTH} levels; flatten it")
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, inner in items:
                if isinstance(key, str):
                    _check_characters(key, f"a name inside {path or 'the message'}")
                stack.append((f"{path}.{key}" if path else str(key), inner, depth + 1))
    text = json.dumps(body, ensure_ascii=False, sort_keys=True, default=str)
    size = len(text) if len(text) > MAX_BYTES else len(text.encode())
    if size > MAX_BYTES:
        raise MessageError(f"the message has {size:,} bytes; the limit is {MAX_BYTES:,}: send less in one message")
    return text


def _check_characters(text: str, path: str) -> None:
    if "\x00" in text:
        raise MessageError(f"{path} holds a NUL character (\\u0000); remove it")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise MessageError(f"{path} holds half of a surrogate pair; send valid Unicode")


def said(value: Any) -> str:
    """A value as an error may repeat it: short, without addresses."""
    if value is None:
        return "missing"
    text = repr(value)
    return redact(text if len(text) <= 80 else f"{text[:77]}…")
