"""Mailbox providers: whose machines take the mail of an address. Rates, warm-up and halts go by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


#: Mails a day that a new sending address may send to one mailbox provider, by the days on which mail has left to it:
#: doubled at first, then by a third (SendGrid's table for a new IP address). After these days it is warm.
WARM_UP = (
    50, 100, 250, 500, 1_000, 2_500, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 40_000, 55_000, 70_000, 100_000
)  # fmt: skip
#: After so many days without a mail a provider has forgotten us: the warm-up begins again.
IDLE_DAYS = 30
#: Share of a rate that is used. Any 60 s hold at most ``2 s' worth + 0.98 x rate`` claimed mails: the rest up to
#: 1.05 x rate is room for mails that wait two seconds between their claim and their departure.
EARNED_SHARE = 0.98


def warm_up_limits(mails: Mapping[int, int], days: Iterable[int], *, began: int) -> list[int | None]:
    """Mails to a mailbox provider that each day of the warm-up takes in all; None: any number.

    The warm-up climbs with each day on which mail left: an address that is new for three weeks but never wrote is as
    cold as on its first day. The more days have mail, the higher all limits.

    Parameters
    ----------
    mails : mapping of int to int
        Mails by day since 1970-01-01 UTC.
    days : iterable of int
        Ascending.
    began : int
        First day of the warm-up; days before it are as cold as the first, and teach nothing.

    Examples
    --------
    >>> warm_up_limits({18: 50, 19: 80}, [18, 20], began=18), warm_up_limits({18: 50}, [60], began=18)
    ([50, 250], [50])
    """
    warm = sorted(day for day, count in mails.items() if count > 0 and day >= began)
    limits: list[int | None] = []
    step, seen, place = 0, began, 0
    for day in days:
        while place < len(warm) and warm[place] < day:
            step = 1 if warm[place] - seen > IDLE_DAYS else step + 1
            seen = warm[place]
            place += 1
        now_at = 0 if day - seen > IDLE_DAYS else step
        limits.append(WARM_UP[now_at] if now_at < len(WARM_UP) else None)
    return limits


@lru_cache(maxsize=16)
def rates_of(text: str) -> Mapping[str, int]:
    """Mails a minute by mailbox provider, from the setting ``MAILBOX_RATES``.

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
            raise Invalid(
                f"mailbox rate {part!r} is no rate; write mails a minute, at least 1, such as gmail=600, and stop a "
                "provider's mail with a halt"
            )
        rates[mailbox] = int(rate)
    return rates
