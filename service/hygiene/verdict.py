"""What becomes of a look: shown, applied, taken back."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.bounces.feedback import hmacs_of
from service.errors import Conflict, Invalid, NotFound
from service.hygiene.behaviour import Engagement, harmful_contacts
from service.hygiene.looks import CHUNK, FINDINGS
from service.logs import redact
from service.suppression import HYGIENE, release, suppress
from service.tables import ContactRow, EventRow, HygieneFindingRow, HygieneRow

log = logging.getLogger(__name__)

#: A look that is older says too little of the contacts of today.
STALE_AFTER = timedelta(days=30)
EXAMPLES = 5
#: Told, but nothing to suppress: the address is good, it stands twice.
NOT_APPLIED = ("duplicate",)
#: No mail can reach such an address.
UNREACHABLE = ("syntax", "no_mail_server")
#: Judged by the log, in the order in which `harmful_contacts` tells them.
_OF_BEHAVIOUR = ("never_engaged", "soft_bounces")


def find_look(session: Session, hygiene_id: str, *, for_update: bool = False) -> HygieneRow:
    """The row of a look.

    Raises
    ------
    NotFound
        If there is none of that id.
    """
    row = session.get(HygieneRow, hygiene_id, with_for_update=for_update or None)
    if row is None:
        raise NotFound(f"there is no look {hygiene_id[:60]!r}; GET /v1/hygiene or `kairos hygiene list` shows them")
    return row


def shown_look(session: Session, row: HygieneRow) -> dict[str, Any]:
    """A look for people: counts, and some contacts of each finding by user id (an address as user id is not shown)."""
    findings = []
    for name, count in row.report["counts"].items():
        examples = session.execute(
            select(ContactRow.user_id, HygieneFindingRow.suggestion)
            .join(ContactRow, ContactRow.contact_key == HygieneFindingRow.contact_key)
            .where(HygieneFindingRow.hygiene_id == row.hygiene_id, HygieneFindingRow.finding == name)
            .order_by(HygieneFindingRow.contact_key)
            .limit(EXAMPLES)
        ).all()
        findings.append(
            {
                "finding": name,
                "says": FINDINGS[name],
                "contacts": count,
                "examples": [
                    {"user_id": redact(user_id)} | ({"suggestion": suggestion} if suggestion else {})
                    for user_id, suggestion in examples
                ],
            }
        )
    return {
        "id": row.hygiene_id,
        "state": row.state,
        "contacts": row.report["contacts"],
        "found": row.report["found"],
        "findings": findings,
        "applied": row.report.get("applied"),
        "rules": row.rules,
        "created_at": row.created_at,
        "created_by": row.created_by,
        "applied_at": row.applied_at,
        "reverted_at": row.reverted_at,
    }


def apply_look(
    session: Session, hygiene_id: str, *, pepper: str, now: datetime, findings: Collection[str] | None = None
) -> dict[str, Any]:
    """Suppress the addresses of what a look found: ``{findings, contacts, suppressed, changed_since}``.

    Addresses that no mail can reach (`UNREACHABLE`) get none any more; the others no marketing mail, for a person who
    never opened a newsletter, or reads a role's mailbox, still wants the receipt. Nothing is deleted, and `revert_look`
    takes it back. Contacts that told something new of themselves since the look are left alone, and so are those who
    came back: what they did is judged again. Duplicates are told and never suppressed: their address is good.

    Parameters
    ----------
    findings : collection of str, optional
        Only these of the look's findings.

    Raises
    ------
    Invalid
        If the look was not for one of the findings, or for nothing that can be applied.
    Conflict
        If it was applied already, or is older than 30 days.
    """
    row = find_look(session, hygiene_id, for_update=True)
    if row.state != "previewed":
        raise Conflict(f"look {hygiene_id} is {row.state}; look again with `kairos hygiene look` to apply anew")
    if now - row.created_at > STALE_AFTER:
        raise Conflict(
            f"look {hygiene_id} is from {row.created_at.date()}, more than {STALE_AFTER.days} days ago; look again"
        )
    asked = list(findings) if findings else [name for name in row.rules["findings"] if name not in NOT_APPLIED]
    for name in asked:
        if name in NOT_APPLIED:
            raise Invalid(f"{name} cannot be applied, for the address is good; join the contacts with an alias call")
        if name not in row.rules["findings"]:
            raise Invalid(f"look {hygiene_id} was not for {name[:40]!r}; it has {', '.join(row.rules['findings'])}")
    if not asked:
        raise Invalid(f"look {hygiene_id} found nothing that can be applied; see its findings")
    keys = _found(session, hygiene_id, asked)
    contacts, suppressed = 0, 0
    for start in range(0, len(keys), CHUNK):
        standing = _standing(session, row, keys[start : start + CHUNK], asked, now)
        contacts += len(standing)
        suppressed += _suppress(session, row.hygiene_id, standing, pepper, now)
    applied = {
        "findings": asked,
        "contacts": contacts,
        "suppressed": suppressed,
        "changed_since": len(keys) - contacts,
    }
    row.report = {**row.report, "applied": applied}
    row.state, row.applied_at = "applied", now
    session.flush()
    log.info("a look through the list was applied", extra={"action": "hygiene_applied", "hygiene_id": hygiene_id})
    return applied


def revert_look(session: Session, hygiene_id: str, *, pepper: str, now: datetime) -> int:
    """How many addresses are free again: exactly those that this look suppressed and nothing else speaks against.

    What bounced, complained or unsubscribed meanwhile stays; what another applied look found too is that one's now.

    Raises
    ------
    Conflict
        If the look is not applied.
    """
    row = find_look(session, hygiene_id, for_update=True)
    if row.state != "applied":
        raise Conflict(f"look {hygiene_id} is {row.state}; only an applied one can be taken back")
    freed = release(session, HYGIENE + hygiene_id)
    others = session.scalars(
        select(HygieneRow).where(HygieneRow.state == "applied", HygieneRow.hygiene_id != hygiene_id)
    ).all()
    mine = set(_found(session, hygiene_id, row.report["applied"]["findings"]))
    for other in others:
        findings = other.report["applied"]["findings"]
        common = sorted(mine & set(_found(session, other.hygiene_id, findings)))
        for start in range(0, len(common), CHUNK):
            standing = _standing(session, other, common[start : start + CHUNK], findings, now)
            freed -= _suppress(session, other.hygiene_id, standing, pepper, now)
    row.state, row.reverted_at = "reverted", now
    session.flush()
    log.info("a look through the list was taken back", extra={"action": "hygiene_reverted", "hygiene_id": hygiene_id})
    return freed


def _found(session: Session, hygiene_id: str, findings: Iterable[str]) -> list[int]:
    query = select(HygieneFindingRow.contact_key).where(
        HygieneFindingRow.hygiene_id == hygiene_id, HygieneFindingRow.finding.in_(list(findings))
    )
    return list(session.scalars(query.distinct().order_by(HygieneFindingRow.contact_key)))


def _standing(
    session: Session, row: HygieneRow, keys: list[int], findings: Collection[str], now: datetime
) -> dict[int, set[str]]:
    """Those of the contacts of whom the look's findings are still true, with these findings.

    Who told something new of itself since is left alone; who opened, clicked, bought or got its mail since came back.
    """
    told = session.execute(
        select(HygieneFindingRow.contact_key, HygieneFindingRow.finding)
        .join(ContactRow, ContactRow.contact_key == HygieneFindingRow.contact_key)
        .where(
            HygieneFindingRow.hygiene_id == row.hygiene_id,
            HygieneFindingRow.finding.in_(list(findings)),
            HygieneFindingRow.contact_key.in_(keys),
            ContactRow.updated_at <= row.created_at,
        )
    )
    found: dict[int, set[str]] = defaultdict(set)
    for key, finding in told:
        found[key].add(finding)
    judged = [key for key, names in found.items() if names & set(_OF_BEHAVIOUR)]
    if judged:
        rules = Engagement(**{one.name: row.rules[one.name] for one in fields(Engagement)})
        harmful = harmful_contacts(session, EventRow.contact_key.in_(judged), rules, now=now)
        for name, still in zip(_OF_BEHAVIOUR, harmful, strict=True):
            for key in judged:
                if key not in still:
                    found[key].discard(name)
    return {key: names for key, names in found.items() if names}


def _suppress(
    session: Session, hygiene_id: str, found: Mapping[int, Collection[str]], pepper: str, now: datetime
) -> int:
    """How many addresses are suppressed now: for all mail if none can reach them, else for marketing mail."""
    source = HYGIENE + hygiene_id
    dead = [key for key, names in found.items() if set(names) & set(UNREACHABLE)]
    alive = [key for key, names in found.items() if not set(names) & set(UNREACHABLE)]
    return sum(
        suppress(session, hmacs_of(session, keys, pepper), reason=reason, source=source, now=now)
        for keys, reason in ((dead, "manual"), (alive, "hygiene"))
    )
