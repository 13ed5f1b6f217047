"""What becomes of a look: shown, applied, taken back."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.bounces.feedback import hmacs_of
from service.errors import Conflict, Invalid, NotFound
from service.hygiene.looks import CHUNK, FINDINGS
from service.logs import redact
from service.suppression import HYGIENE, release, suppress
from service.tables import ContactRow, HygieneFindingRow, HygieneRow

log = logging.getLogger(__name__)

#: A look that is older says too little of the contacts of today.
STALE_AFTER = timedelta(days=30)
EXAMPLES = 5
#: Told, but nothing to suppress: the address is good, it stands twice.
NOT_APPLIED = ("duplicate",)


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

    Nothing is deleted, and `revert_look` takes it back. Contacts that told something new of themselves since the look
    are left alone. Duplicates are told and never suppressed: their address is good.

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
    unchanged = [
        key
        for start in range(0, len(keys), CHUNK)
        for key in session.scalars(
            select(ContactRow.contact_key).where(
                ContactRow.contact_key.in_(keys[start : start + CHUNK]), ContactRow.updated_at <= row.created_at
            )
        )
    ]
    applied = {
        "findings": asked,
        "contacts": len(unchanged),
        "suppressed": _suppress(session, row.hygiene_id, unchanged, pepper, now),
        "changed_since": len(keys) - len(unchanged),
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
        common = mine & set(_found(session, other.hygiene_id, other.report["applied"]["findings"]))
        freed -= _suppress(session, other.hygiene_id, sorted(common), pepper, now)
    row.state, row.reverted_at = "reverted", now
    session.flush()
    log.info("a look through the list was taken back", extra={"action": "hygiene_reverted", "hygiene_id": hygiene_id})
    return freed


def _found(session: Session, hygiene_id: str, findings: Iterable[str]) -> list[int]:
    query = select(HygieneFindingRow.contact_key).where(
        HygieneFindingRow.hygiene_id == hygiene_id, HygieneFindingRow.finding.in_(list(findings))
    )
    return list(session.scalars(query.distinct().order_by(HygieneFindingRow.contact_key)))


def _suppress(session: Session, hygiene_id: str, keys: list[int], pepper: str, now: datetime) -> int:
    source = HYGIENE + hygiene_id
    return suppress(session, hmacs_of(session, keys, pepper), reason="manual", source=source, now=now)
