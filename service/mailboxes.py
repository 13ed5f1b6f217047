"""Mailbox providers: whose machines take the mail of an address. Rates, warm-up and halts go by them."""

from __future__ import annotations

from functools import lru_cache

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
