"""A look through the whole list: what is found is written down and counted; nothing else happens."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from service.database import Database
from service.errors import Invalid
from service.hygiene.addresses import AddressRules, disposable_domains
from service.hygiene.behaviour import Engagement, harmful_contacts
from service.name_server import NameServer
from service.settings import Settings
from service.tables import ContactRow, EventRow, HygieneFindingRow, HygieneRow

#: Finding → what it says to people.
FINDINGS: dict[str, str] = {
    "syntax": "no address that mail can be sent to",
    "no_mail_server": "a domain that takes no mail",
    "typo_domain": "a slip of the keys in the domain of a large provider",
    "role": "the mailbox of a function, not of a person",
    "disposable": "a mailbox made for an hour",
    "never_engaged": (
        "many mails over months, and never an open or click by a person; readers in Apple Mail, which loads all images "
        "by itself, look like that until they click"
    ),
    "soft_bounces": "bounced softly again and again",
    "duplicate": "the address of another contact too",
}
_OF_ADDRESSES = ("syntax", "no_mail_server", "typo_domain", "role", "disposable")
#: Contacts of one step: their part of the log is read at once.
CHUNK = 20_000


@dataclass(frozen=True)
class Rules:
    """What a look is for."""

    findings: tuple[str, ...] = tuple(FINDINGS)
    engagement: Engagement = field(default_factory=Engagement)

    def as_json(self) -> dict[str, Any]:
        """As it is kept beside the findings."""
        return {"findings": list(self.findings), **asdict(self.engagement)}


def rules_of(findings: Collection[str] | None = None, **limits: int | None) -> Rules:
    """Rules with some findings only, and some limits of `Engagement` that differ.

    Raises
    ------
    Invalid
        If a finding does not exist, or a limit lies outside of 1 to 3650.
    """
    for name in findings or ():
        if name not in FINDINGS:
            raise Invalid(f"there is no finding {name[:40]!r}; choose from {', '.join(FINDINGS)}")
    known = {one.name for one in fields(Engagement)}
    told = {name: value for name, value in limits.items() if value is not None}
    for name, value in told.items():
        if name not in known:
            raise Invalid(f"there is no limit {name[:40]!r}; choose from {', '.join(sorted(known))}")
        if not 1 <= value <= 3650:
            raise Invalid(f"{name} is {value}; give 1 to 3650")
    return Rules(tuple(dict.fromkeys(findings)) if findings else tuple(FINDINGS), Engagement(**told))


def look(
    database: Database,
    settings: Settings,
    rules: Rules,
    *,
    now: datetime,
    by: str,
    names: NameServer | None = None,
    step: Callable[[int, int], None] | None = None,
) -> str:
    """Id of a look through all contacts with an address; its findings are kept, to be shown, applied or forgotten.

    The list is read in ranges, outside of any writing transaction; domains are asked for before, and what a name server
    does not answer is no finding. One short transaction writes what was found.

    Parameters
    ----------
    by : str
        A key's id, or the command.
    step : callable, optional
        Told how many contacts were looked at, and how many there are.
    """
    without_mail: set[str] = set()
    if "no_mail_server" in rules.findings:
        with database.reading() as session:
            domains = {email.rpartition("@")[2].lower() for page in _addresses(session) for _, email in page}
        without_mail = (names or NameServer(settings.dns_server)).without_mail(sorted(domains))
    addresses = AddressRules(
        [name for name in rules.findings if name in _OF_ADDRESSES],
        disposable=disposable_domains(settings.home),
        without_mail=without_mail,
    )
    found: list[tuple[int, str, str | None]] = []
    seen = 0
    with database.reading() as session:
        total = session.scalar(select(func.count()).where(ContactRow.email.is_not(None))) or 0
        if "duplicate" in rules.findings:
            found += [(key, "duplicate", None) for key in _duplicates(session)]
        for page in _addresses(session):
            for key, email in page:
                for finding, suggestion in addresses.of(email):
                    found.append((key, finding, suggestion))
            if {"never_engaged", "soft_bounces"} & set(rules.findings):
                here = {key for key, _ in page}
                silent, soft = harmful_contacts(
                    session, EventRow.contact_key.between(page[0][0], page[-1][0]), rules.engagement, now=now
                )
                for finding, keys in (("never_engaged", silent), ("soft_bounces", soft)):
                    if finding in rules.findings:
                        found += [(key, finding, None) for key in sorted(keys & here)]
            seen += len(page)
            if step is not None:
                step(seen, total)
    return _keep(database, rules, found, seen, now=now, by=by)


def _keep(
    database: Database, rules: Rules, found: list[tuple[int, str, str | None]], seen: int, *, now: datetime, by: str
) -> str:
    counts = Counter(finding for _, finding, _ in found)
    row = HygieneRow(
        hygiene_id=f"hyg_{secrets.token_hex(6)}",
        state="previewed",
        rules=rules.as_json(),
        report={
            "contacts": seen,
            "found": len({key for key, _, _ in found}),
            "counts": {name: counts[name] for name in rules.findings},
        },
        created_at=now,
        created_by=by[:60],
        applied_at=None,
        reverted_at=None,
    )
    with database.writing() as session:
        session.add(row)
        session.flush()
        for start in range(0, len(found), CHUNK):
            session.execute(
                insert(HygieneFindingRow),
                [
                    {"hygiene_id": row.hygiene_id, "contact_key": key, "finding": finding, "suggestion": suggestion}
                    for key, finding, suggestion in found[start : start + CHUNK]
                ],
            )
    return row.hygiene_id


def _addresses(session: Session) -> Iterator[list[tuple[int, str]]]:
    """Contacts with an address in pages by key."""
    last = -1
    while True:
        page = session.execute(
            select(ContactRow.contact_key, ContactRow.email)
            .where(ContactRow.contact_key > last, ContactRow.email.is_not(None))
            .order_by(ContactRow.contact_key)
            .limit(CHUNK)
        ).all()
        if not page:
            return
        yield [(key, str(email)) for key, email in page]
        last = page[-1][0]


def _duplicates(session: Session) -> list[int]:
    """Contacts whose address, in whatever case of its letters, an older contact has too."""
    spelled = func.lower(ContactRow.email)
    place = func.row_number().over(partition_by=spelled, order_by=ContactRow.contact_key)
    ranked = select(ContactRow.contact_key, place.label("place")).where(ContactRow.email.is_not(None)).subquery()
    return list(session.scalars(select(ranked.c.contact_key).where(ranked.c.place > 1).order_by(ranked.c.contact_key)))
