"""Mailbox providers: whose machines take the mail of an address. Rates, warm-up and halts go by them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from service.errors import Invalid

OTHER = "other"

#: Provider → domains of its mailboxes. Domains of businesses that it hosts are found by their MX (`service.hygiene`).
DOMAINS: dict[str, tuple[str, ...]] = {
    "gmail": ("gmail.com", "googlemail.com"),
    "microsoft": (
        "outlook.com", "hotmail.com", "live.com", "msn.com", "hotmail.co.uk", "hotmail.fr", "hotmail.de", "hotmail.it",
        "hotmail.es", "live.co.uk", "live.fr", "outlook.fr", "outlook.de", "outlook.es",
    ),
    "yahoo": (
        "yahoo.com", "ymail.com", "rocketmail.com", "aol.com", "yahoo.co.uk", "yahoo.fr", "yahoo.de", "yahoo.it",
        "yahoo.es", "yahoo.co.in", "yahoo.ca", "yahoo.com.br",
    ),
    "apple": ("icloud.com", "me.com", "mac.com"),
    "proton": ("proton.me", "protonmail.com", "pm.me"),
    "gmx": ("gmx.de", "gmx.net", "gmx.at", "gmx.ch", "gmx.com", "web.de"),
    "orange": ("orange.fr", "wanadoo.fr"),
    "mailru": ("mail.ru", "inbox.ru", "list.ru", "bk.ru"),
    "yandex": ("yandex.ru", "yandex.com", "ya.ru"),
    "qq": ("qq.com", "foxmail.com"),
    "netease": ("163.com", "126.com", "yeah.net"),
}  # fmt: skip
_PROVIDER = {domain: provider for provider, domains in DOMAINS.items() for domain in domains}


@lru_cache(maxsize=65_536)
def _of_domain(domain: str) -> str:
    return _PROVIDER.get(domain, OTHER)


def mailbox_of(address: str | None) -> str:
    """Provider of an address: one of `DOMAINS`, else ``other``; the domain itself is not kept, it can name a person.

    Examples
    --------
    >>> mailbox_of("ann@Gmail.com"), mailbox_of("ann@example.org")
    ('gmail', 'other')
    """
    return _of_domain((address or "").rpartition("@")[2].strip().lower())


#: Mails a day that a new sending address may send to one mailbox provider, from its first day on: doubled at first,
#: then by a third (SendGrid's table for a new IP address). After these days it is warm.
WARM_UP = (
    50, 100, 250, 500, 1_000, 2_500, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 40_000, 55_000, 70_000, 100_000
)  # fmt: skip


def warm_up_limit(days_since_first: int) -> int | None:
    """Mails that may leave to a mailbox provider on a day of the warm-up, counted from 0; None once it is over.

    Days before the first one take as little as the first.

    Examples
    --------
    >>> warm_up_limit(0), warm_up_limit(2), warm_up_limit(16)
    (50, 250, None)
    """
    return WARM_UP[max(0, days_since_first)] if days_since_first < len(WARM_UP) else None


def rates_of(text: str) -> Mapping[str, int]:
    """Mails a minute by mailbox provider, from a setting.

    Raises
    ------
    Invalid
        Naming the part that is no rate.

    Examples
    --------
    >>> dict(rates_of("gmail=600, microsoft=300"))
    {'gmail': 600, 'microsoft': 300}
    """
    rates = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        mailbox, _, rate = (piece.strip() for piece in part.partition("="))
        if mailbox not in DOMAINS and mailbox != OTHER:
            raise Invalid(f"mailbox rate {part!r} names no mailbox provider; there are {', '.join((*DOMAINS, OTHER))}")
        if not rate.isdigit() or int(rate) < 1:
            raise Invalid(f"mailbox rate {part!r} is no rate; write mails a minute, at least 1, such as gmail=600")
        rates[mailbox] = int(rate)
    return rates
