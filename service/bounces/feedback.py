"""What bounces and complaints do: the ledger notes them, and addresses that must get no more mail are suppressed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Literal, TypeVar, cast

from sqlalchemy import Table, bindparam, func, select, update
from sqlalchemy.orm import Session

from features.tables import to_micros
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_DELIVERED,
    EMAIL_OPENED,
    EMAIL_SENT,
    HUMAN_PPM,
)
from service.bounces.status import severity_told
from service.suppression import ADDRESS_RELEASED, address_hmac, suppress
from service.tables import ContactRow, EventRow, SendRow

#: A hard bounce that is told later than this is history: it says nothing of the address of today.
HARD_DAYS = 90
#: So many soft bounces within so many days, and nothing delivered or opened in between, stop an address.
SOFT_BOUNCES, SOFT_DAYS = 3, 30
_CHUNK = 5_000
_SIGNS = (EMAIL_BOUNCED, EMAIL_SENT, EMAIL_DELIVERED, EMAIL_OPENED, EMAIL_CLICKED, ADDRESS_RELEASED)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Feedback:
    """A mail that came back, or was marked as spam."""

    contact_key: int
    #: None where the sender of the event names no mail of ours.
    send_id: int | None
    kind: Literal["hard", "soft", "policy", "complaint"]
    occurred_at: datetime
    #: The address may be stopped for it; False where the contact has another address by now, or mail arrived since.
    is_of_its_address: bool = True


def take_feedback(
    session: Session, feedback: Sequence[Feedback], *, source: str, pepper: str, now: datetime
) -> dict[int, str]:
    """Contacts whose address is suppressed for it, with the reason; their sends carry how they came back.

    A complaint or a hard bounce stops the address at once; `SOFT_BOUNCES` soft ones within `SOFT_DAYS` days stop it if
    nothing was delivered or opened in between; a policy never does, for it is the sender that is refused. A hard bounce
    of more than `HARD_DAYS` days ago, or from before a later sign that the address works, stops nothing: imported
    history is no reason to stop the address of today (a list of dead addresses is: ``kairos import``). In the ledger
    what is known never gets better: a hard bounce stays one whatever is told later.

    Call it before the events go into the log (whose lock comes last), with those events that the log does not hold yet.
    """
    if not feedback:
        return {}
    _note(session, feedback)
    reasons: dict[int, str] = {}
    works = _last_worked(session, {one.contact_key for one in feedback if one.kind == "hard"}, now)
    soft: dict[int, list[Feedback]] = defaultdict(list)
    for one in feedback:
        if not one.is_of_its_address:
            continue
        if one.kind in ("hard", "complaint"):
            if one.kind == "hard" and (
                now - one.occurred_at > timedelta(days=HARD_DAYS)
                or to_micros(one.occurred_at) < works.get(one.contact_key, 0)
            ):
                continue
            if reasons.get(one.contact_key) != "complaint":
                reasons[one.contact_key] = "complaint" if one.kind == "complaint" else "hard_bounce"
        elif one.kind == "soft" and now - one.occurred_at <= timedelta(days=SOFT_DAYS):
            soft[one.contact_key].append(one)
    repeated = repeatedly_soft(session, {key: told for key, told in soft.items() if key not in reasons}, now=now)
    reasons |= {key: "hard_bounce" for key in repeated}
    for reason in ("complaint", "hard_bounce"):
        keys = [key for key, why in reasons.items() if why == reason]
        plain = [key for key in keys if key not in repeated]
        for some, from_where in ((plain, source), ([key for key in keys if key in repeated], f"{source}: repeated")):
            suppress(session, hmacs_of(session, some, pepper), reason=reason, source=from_where, now=now)
    return reasons


def _last_worked(session: Session, contact_keys: Iterable[int], now: datetime) -> dict[int, int]:
    """When a mail last arrived, a person last answered, or somebody last released the address; microseconds."""
    since = to_micros(now - timedelta(days=HARD_DAYS))
    is_sign = EventRow.kind.in_((EMAIL_DELIVERED, ADDRESS_RELEASED)) | (
        EventRow.kind.in_((EMAIL_OPENED, EMAIL_CLICKED)) & (EventRow.human_ppm >= HUMAN_PPM)
    )
    found: dict[int, int] = {}
    for chunk in _chunks(contact_keys):
        query = select(EventRow.contact_key, func.max(EventRow.occurred_at)).where(
            EventRow.contact_key.in_(chunk), EventRow.occurred_at >= since, is_sign
        )
        found |= {key: at for key, at in session.execute(query.group_by(EventRow.contact_key))}
    return found


def hmacs_of(session: Session, contact_keys: Iterable[int], pepper: str) -> list[str]:
    """Keyed hashes of the contacts' present addresses."""
    return [
        address_hmac(pepper, email)
        for chunk in _chunks(contact_keys)
        for email in session.scalars(
            select(ContactRow.email).where(ContactRow.contact_key.in_(chunk), ContactRow.email.is_not(None))
        )
        if email
    ]


def repeatedly_soft(
    session: Session,
    fresh: Mapping[int, Sequence[Feedback]],
    *,
    now: datetime,
    bounces: int = SOFT_BOUNCES,
    days: int = SOFT_DAYS,
) -> set[int]:
    """Contacts with so many soft bounces, of different mails, since the last sign that the address works.

    Signs are a delivery, an open or click by a person, a release by hand, and a mail that was accepted and did not come
    back although a later one did.

    Parameters
    ----------
    fresh : mapping of int to sequence of Feedback
        By contact, soft bounces that the log may not hold yet; contacts without any may have an empty one.
    """
    since = to_micros(now - timedelta(days=days))
    found: set[int] = set()
    for chunk in _chunks(fresh):
        query = select(
            EventRow.contact_key,
            EventRow.kind,
            EventRow.occurred_at,
            EventRow.seq,
            EventRow.ref,
            EventRow.human_ppm,
            EventRow.properties,
        ).where(EventRow.contact_key.in_(chunk), EventRow.occurred_at >= since, EventRow.kind.in_(_SIGNS))
        signs: dict[int, list[_Sign]] = defaultdict(list)
        for row in session.execute(query):
            is_human = row.kind in (EMAIL_OPENED, EMAIL_CLICKED) and (row.human_ppm or 0) >= HUMAN_PPM
            severity = severity_told(json.loads(row.properties or "{}")) if row.kind == EMAIL_BOUNCED else None
            signs[row.contact_key].append(
                _Sign(row.kind, row.occurred_at, row.ref or f"event {row.seq}", severity, is_human)
            )
        for key in chunk:
            told = [
                _Sign(
                    EMAIL_BOUNCED, to_micros(one.occurred_at), str(one.send_id or f"fresh {place}"), "soft", False
                )
                for place, one in enumerate(fresh[key])
            ]  # fmt: skip
            if _soft_in_a_row([*signs[key], *told]) >= bounces:
                found.add(key)
    return found


@dataclass(frozen=True, slots=True)
class _Sign:
    kind: str
    at: int
    ref: str
    severity: str | None
    is_human: bool


def _soft_in_a_row(signs: Sequence[_Sign]) -> int:
    """Soft bounces of different mails since the address last worked."""
    came_back = {sign.ref for sign in signs if sign.kind == EMAIL_BOUNCED}
    soft: dict[str, int] = {}
    for sign in signs:
        if sign.severity == "soft":
            soft[sign.ref] = min(sign.at, soft.get(sign.ref, sign.at))
    if not soft:
        return 0
    newest = max(soft, key=lambda ref: soft[ref])
    newest_sent = next((sign.at for sign in signs if sign.kind == EMAIL_SENT and sign.ref == newest), soft[newest])
    works = [
        sign.at
        for sign in signs
        if sign.is_human
        or sign.kind == ADDRESS_RELEASED
        or (sign.ref not in came_back and sign.kind == EMAIL_DELIVERED)
        # Its own report would be here by now: that of a later mail is.
        or (sign.ref not in came_back and sign.kind == EMAIL_SENT and sign.at < newest_sent)
    ]
    last = max(works, default=-1)
    return sum(at > last for at in soft.values())


def _note(session: Session, feedback: Sequence[Feedback]) -> None:
    """Write how they came back into the ledger; the rows are locked in the order of their ids, as everywhere."""
    ids = sorted({one.send_id for one in feedback if one.send_id is not None})
    for chunk in _chunks(ids):
        session.execute(
            select(SendRow.send_id).where(SendRow.send_id.in_(chunk)).order_by(SendRow.send_id).with_for_update()
        ).all()
    for kind in ("hard", "soft", "policy"):
        for chunk in _chunks(sorted({one.send_id for one in feedback if one.kind == kind and one.send_id is not None})):
            came_back = update(SendRow).where(SendRow.send_id.in_(chunk)).values(bounce=kind)
            session.execute(came_back if kind == "hard" else came_back.where(SendRow.bounce.is_(None)))
    complaints = {
        one.send_id: one.occurred_at for one in feedback if one.kind == "complaint" and one.send_id is not None
    }
    if complaints:
        session.connection().execute(
            _COMPLAINED, [{"key": send_id, "at": at} for send_id, at in sorted(complaints.items())]
        )


_SEND = cast(Table, SendRow.__table__)
_COMPLAINED = (
    update(_SEND)
    .where(_SEND.c.send_id == bindparam("key"), _SEND.c.complained_at.is_(None))
    .values(complained_at=bindparam("at"))
)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    walk = iter(items)
    while chunk := list(islice(walk, _CHUNK)):
        yield chunk
