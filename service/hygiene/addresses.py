"""What an address alone tells: its syntax, a mistyped domain, a role instead of a person, a mailbox for an hour."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from email_validator import EmailNotValidError, validate_email

from service.errors import Invalid
from service.mailboxes import DOMAINS

_HERE = Path(__file__).parent
#: Providers whose names people mistype, and endings that stand for .com by mistake.
_MISTYPED = ("gmail.com", "googlemail.com", "hotmail.com", "outlook.com", "yahoo.com", "icloud.com", "protonmail.com")
_NOT_COM = ("con", "cmo", "ocm", "comm", "coom", "cpm", "vom", "xom", "om", "cm")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PLAIN = re.compile(rf"(?=.{{1,64}}@){_ATOM}(?:\.{_ATOM})*@")


def _lines(path: Path) -> list[str]:
    return [line.partition("#")[0].strip().lower() for line in path.read_text(encoding="utf-8").splitlines()]


ROLES = frozenset(_lines(_HERE / "roles.txt")) - {""}
DISPOSABLE = frozenset(_lines(_HERE / "disposable_domains.txt")) - {""}


def _one_slip(word: str) -> Iterator[str]:
    """Words one letter away: left out, doubled or put in, taken for another, or two exchanged."""
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        yield word[:i] + word[i + 1 : i + 2] + word[i : i + 1] + word[i + 2 :]
        for letter in _LETTERS:
            yield word[:i] + letter + word[i + 1 :]
            yield word[: i + 1] + letter + word[i + 1 :]


def _slips() -> dict[str, str]:
    real = {domain for domains in DOMAINS.values() for domain in domains}
    slips: dict[str, str] = {}
    for domain in _MISTYPED:
        name = domain.removesuffix(".com")
        for ending in _NOT_COM:
            slips[f"{name}.{ending}"] = domain
        for slip in _one_slip(name):
            # The first letter is hardly ever mistyped, and ymail.com, email.com and mail.com are real.
            if slip[:1] == name[0] or slip == name[1] + name[0] + name[2:]:
                slips.setdefault(f"{slip}.com", domain)
    return {slip: domain for slip, domain in slips.items() if slip not in real}


_SLIPS = _slips()


def domain_suggestion(domain: str) -> str | None:
    """The large provider's domain that ``domain`` is a slip of the keys away from, if there is one.

    Examples
    --------
    >>> domain_suggestion("gmial.com"), domain_suggestion("hotmail.con"), domain_suggestion("mail.com")
    ('gmail.com', 'hotmail.com', None)
    """
    return _SLIPS.get(domain)


def disposable_domains(home: Path) -> Collection[str]:
    """Domains of disposable mailboxes: those of the file in ``home`` if there is one, else ours.

    Raises
    ------
    Invalid
        If a line of the file is no domain.
    """
    path = home / "disposable_domains.txt"
    if not path.is_file():
        return DISPOSABLE
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        if line and not re.fullmatch(r"[\w-]+(?:\.[\w-]+)+", line):
            raise Invalid(
                f"{path} line {number}: {line[:60]!r} is no domain; write one such as tempmail.example a line"
            )
    return frozenset(lines) - {""}


class AddressRules:
    """Findings of addresses, each domain judged once.

    Parameters
    ----------
    findings : collection of str
        Which of ``syntax``, ``typo_domain``, ``role``, ``disposable``, ``no_mail_server`` to look for.
    disposable : collection of str
        Domains of disposable mailboxes; their subdomains count too.
    without_mail : collection of str
        Domains that take no mail.
    """

    def __init__(
        self, findings: Collection[str], *, disposable: Collection[str] = DISPOSABLE, without_mail: Collection[str] = ()
    ) -> None:
        self._findings = frozenset(findings)
        self._disposable = disposable
        self._without_mail = without_mail
        self._domains: dict[str, tuple[bool, tuple[tuple[str, str | None], ...]]] = {}

    def of(self, address: str) -> list[tuple[str, str | None]]:
        """``(finding, suggestion)`` of an address; the suggestion is a better spelling of its domain.

        Examples
        --------
        >>> rules = AddressRules(["typo_domain", "role"])
        >>> rules.of("info@gmial.com"), rules.of("ann@shop.example")
        ([('typo_domain', 'gmail.com'), ('role', None)], [])
        """
        local, _, domain = address.rpartition("@")
        domain = domain.lower()
        told = self._domains.get(domain)
        if told is None:
            told = self._domains[domain] = (_is_domain(domain), tuple(self._of_domain(domain)))
        is_domain, findings = told
        found = list(findings)
        if "syntax" in self._findings and not (is_domain and _PLAIN.match(address)) and not _is_address(address):
            found.append(("syntax", None))
        if "role" in self._findings and local.partition("+")[0].lower() in ROLES:
            found.append(("role", None))
        return found

    def _of_domain(self, domain: str) -> Iterator[tuple[str, str | None]]:
        suggestion = domain_suggestion(domain)
        if suggestion is not None and "typo_domain" in self._findings:
            yield "typo_domain", suggestion
        if "disposable" in self._findings:
            labels = domain.split(".")
            if any(".".join(labels[place:]) in self._disposable for place in range(len(labels) - 1)):
                yield "disposable", None
        if "no_mail_server" in self._findings and domain in self._without_mail:
            yield "no_mail_server", suggestion


def _is_domain(domain: str) -> bool:
    return _is_address(f"x@{domain}")


def _is_address(address: str) -> bool:
    try:
        # Domains reserved for tests are allowed, as where addresses come in.
        validate_email(address, check_deliverability=False, test_environment=True, allow_smtputf8=False, strict=True)
    except EmailNotValidError:
        return False
    return True
