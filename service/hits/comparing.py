"""What other rules would have said of the hits that were judged already."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from features.vocabulary import HUMAN_PPM
from service.hits.judging import judge
from service.hits.rules import Rules
from service.hits.settling import hit_columns, send_columns
from service.tables import HitRow, SendRow

_PAGE = 20_000


@dataclass(frozen=True)
class Compared:
    """Hits by the verdict of two sets of rules; the trap's own and those of sends that are gone are left out."""

    hits: int
    human_by_both: int
    machine_by_both: int
    #: A person's by the rules in force, a machine's by the others.
    would_become_machine: int
    would_become_human: int
    #: Rules of the other set that fired where the verdicts differ, with how often.
    because: dict[str, int]


def compare(session: Session, current: Rules, other: Rules, *, since: datetime, until: datetime) -> Compared:
    """Counts of hits in ``[since, until)`` by what both sets of rules say; events stay as they were judged."""
    counts, because = Counter[tuple[bool, bool]](), Counter[str]()
    last: tuple[Any, int] = (since, -1)
    while True:
        page = session.execute(
            select(*hit_columns())
            .where(
                HitRow.settled.is_(True),
                HitRow.at >= last[0],
                or_(HitRow.at > last[0], HitRow.hit_id > last[1]),
                HitRow.at < until,
            )
            .order_by(HitRow.at, HitRow.hit_id)
            .limit(_PAGE)
        ).all()
        if not page:
            break
        last = (page[-1].at, page[-1].hit_id)
        send_ids = {hit.send_id for hit in page}
        sends = {
            send.send_id: send for send in session.execute(select(*send_columns()).where(SendRow.send_id.in_(send_ids)))
        }
        pairs = zip(judge(session, page, sends, current), judge(session, page, sends, other), strict=True)
        for now, then in pairs:
            if now is None or then is None:
                continue
            verdicts = now.human_ppm >= HUMAN_PPM, then.human_ppm >= HUMAN_PPM
            counts[verdicts] += 1
            if verdicts[0] != verdicts[1]:
                because.update(then.rules)
    return Compared(
        hits=counts.total(),
        human_by_both=counts[True, True],
        machine_by_both=counts[False, False],
        would_become_machine=counts[True, False],
        would_become_human=counts[False, True],
        because=dict(because.most_common()),
    )
