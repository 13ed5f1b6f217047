"""Hits that are old enough become events: one for each send, kind and link."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, HUMAN_PPM
from service.hits.judging import Verdict, judge
from service.hits.rules import LONGEST_SECONDS, Rules, shipped_rules
from service.suppression import identities_of
from service.tables import ErasureRow, EventRow, HitRow, SendRow

#: Hits settled in one transaction: some 300 ms, in which SQLite lets nobody else write.
SETTLE_HITS = 2_000
#: Settled hits are kept so long, for other rules to be compared on them; then their events are what is left.
KEEP_HITS = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Settled:
    """What settling made of the hits that were old enough."""

    hits: int
    events: int
    human_opens: int
    human_clicks: int
    #: Hits of sends that are no more, or whose contact was erased; the latter are deleted.
    dropped: int


def settle(
    session: Session,
    *,
    now: datetime,
    rules: Rules | None = None,
    settle_seconds: float = LONGEST_SECONDS,
    limit: int = SETTLE_HITS,
) -> Settled:
    """Turn the oldest ``limit`` hits that are older than ``settle_seconds`` into one event a send, kind and link.

    The event stands at the group's first hit of its highest human probability. A human click of a mail that no person
    opened yet brings an open with it: the images were off. Message ids come from the hits' ids, so settling the same
    hits again changes nothing. Hits of one send that fall into two transactions are two events, of which the second,
    if it is a person's, says that it repeats.

    Parameters
    ----------
    rules : Rules, optional
        Default: those that are shipped.
    """
    rules = rules or shipped_rules()
    _prune(session, now - KEEP_HITS, limit)
    rows = _due(session, now - timedelta(seconds=settle_seconds), limit)
    if not rows:
        return Settled(0, 0, 0, 0, 0)
    send_ids = sorted({row.send_id for row in rows})
    sends = {send.send_id: send for send in _sends(session, send_ids)}
    groups: dict[tuple[int, int | None], list[tuple[Verdict, datetime, int]]] = defaultdict(list)
    for row, verdict in zip(rows, judge(session, rows, sends, rules), strict=True):
        if verdict is not None:
            groups[row.send_id, row.link_id].append((verdict, row.at, row.hit_id))
    dropped = sum(row.send_id not in sends for row in rows)

    candidates = []
    for (send_id, link_id), hits in groups.items():
        verdict, at, _ = min(hits, key=lambda hit: (-hit[0].human_ppm, hit[1], hit[2]))
        candidates.append((at, min(hit_id for _, _, hit_id in hits), send_id, link_id, verdict))
    candidates.sort(key=lambda candidate: candidate[:2])
    seen = _human_before(session, sends.values())
    identities = identities_of(session, {send.contact_key for send in sends.values()})
    events: list[NewEvent] = []
    human = Counter[str]()

    def log(kind: str, message_id: str, send_id: int, at: datetime, verdict: Verdict, **more: Any) -> None:
        send = sends[send_id]
        is_human = verdict.human_ppm >= HUMAN_PPM
        events.append(
            NewEvent(
                contact_key=send.contact_key,
                kind=kind,
                occurred_at=to_micros(at),
                message_id=message_id,
                identity=identities.get(send.contact_key, ""),
                ref=str(send_id),
                human_ppm=verdict.human_ppm,
                is_repeat=is_human and (send_id, kind) in seen,
                properties={
                    "user_agent_class": verdict.user_agent_class,
                    **more,
                    "rules": list(verdict.rules),
                    "rule_version": rules.version,
                    "campaign_id": send.campaign_id,
                },
                timezone=send.timezone,
            )
        )
        if is_human:
            seen.add((send_id, kind))
            human[kind] += 1

    for at, hit_id, send_id, link_id, verdict in candidates:
        if link_id is None:
            log(EMAIL_OPENED, f"kairos/hit/{hit_id}", send_id, at, verdict)
            continue
        if verdict.human_ppm >= HUMAN_PPM and (send_id, EMAIL_OPENED) not in seen:
            log(EMAIL_OPENED, f"kairos/hit/{hit_id}/open", send_id, at, verdict, implied_by="click")
        log(EMAIL_CLICKED, f"kairos/hit/{hit_id}", send_id, at, verdict, link_id=link_id)

    for chunk in _chunks([row.hit_id for row in rows], 10_000):
        session.execute(update(HitRow).where(HitRow.hit_id.in_(chunk)).values(settled=True))
    if dropped:  # somebody opened a mail from before the contact was erased
        of_erased = select(SendRow.send_id).where(
            SendRow.send_id.in_(send_ids), SendRow.contact_key.in_(select(ErasureRow.contact_key))
        )
        session.execute(delete(HitRow).where(HitRow.send_id.in_(of_erased)))
    if events:
        append(session, events, received_at=to_micros(now))
    return Settled(len(rows), len(events), human[EMAIL_OPENED], human[EMAIL_CLICKED], dropped)


def _prune(session: Session, before: datetime, limit: int) -> None:
    """Delete the oldest settled hits, some at a time."""
    old = select(HitRow.hit_id).where(HitRow.settled.is_(True), HitRow.at < before).order_by(HitRow.at).limit(limit)
    ids = session.scalars(old).all()
    if ids:
        session.execute(delete(HitRow).where(HitRow.hit_id.in_(ids)))


def _due(session: Session, cutoff: datetime, limit: int) -> Sequence[Any]:
    """The oldest open hits, held: of two who settle at once the second waits here and finds those gone."""
    oldest = (
        select(HitRow.hit_id)
        .where(HitRow.settled.is_(False), HitRow.at <= cutoff)
        .order_by(HitRow.at, HitRow.hit_id)
        .limit(limit)
    )
    return session.execute(
        select(*hit_columns())
        .where(HitRow.hit_id.in_(oldest), HitRow.settled.is_(False))
        .order_by(HitRow.hit_id)
        .with_for_update()
    ).all()


def hit_columns() -> tuple[Any, ...]:
    """What is asked of the hits."""
    return (
        HitRow.hit_id,
        HitRow.send_id,
        HitRow.link_id,
        HitRow.method,
        HitRow.user_agent,
        HitRow.network,
        HitRow.known_network,
        HitRow.is_trap,
        HitRow.at,
    )


def send_columns() -> tuple[Any, ...]:
    """What is asked of the sends that were hit."""
    return (
        SendRow.send_id,
        SendRow.contact_key,
        SendRow.due_at,
        SendRow.finished_at,
        SendRow.created_at,
        SendRow.timezone,
        SendRow.link_count,
        SendRow.campaign_id,
    )


def _sends(session: Session, send_ids: Sequence[int]) -> Iterable[Any]:
    """The sends that these are, but for those of contacts who were erased."""
    erased = select(ErasureRow.contact_key)
    for chunk in _chunks(send_ids, 10_000):
        query = select(*send_columns()).where(SendRow.send_id.in_(chunk))
        yield from session.execute(query.where(SendRow.contact_key.not_in(erased)))


def _human_before(session: Session, sends: Iterable[Any]) -> set[tuple[int, str]]:
    """(send, kind) pairs that the log already holds a person's open or click of."""
    sends = list(sends)
    if not sends:
        return set()
    earliest = to_micros(min(send.created_at for send in sends))
    refs = {str(send.send_id) for send in sends}
    seen: set[tuple[int, str]] = set()
    for chunk in _chunks(sorted({send.contact_key for send in sends}), 10_000):
        query = select(EventRow.ref, EventRow.kind).where(
            EventRow.contact_key.in_(chunk),
            EventRow.occurred_at >= earliest,
            EventRow.kind.in_((EMAIL_OPENED, EMAIL_CLICKED)),
            EventRow.human_ppm >= HUMAN_PPM,
        )
        seen |= {(int(ref), kind) for ref, kind in session.execute(query) if ref in refs}
    return seen


def _chunks(items: Sequence[int], size: int) -> Iterable[list[int]]:
    walk = iter(items)
    while chunk := list(islice(walk, size)):
        yield chunk
