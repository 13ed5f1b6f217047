"""What the log tells of contacts: who never answered, and whose mailbox keeps refusing."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from features.tables import to_micros
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_OPENED,
    EMAIL_SENT,
    HUMAN_PPM,
    ORDER_COMPLETED,
)
from service.bounces.status import severity_told
from service.tables import EventRow


@dataclass(frozen=True, slots=True)
class Engagement:
    """When silence, or refusal, is a finding."""

    #: Mails that did not come back, the first of them so many days ago, and never an open or click by a person since
    #: (nor an order: who buys is not lost).
    least_deliveries: int = 10
    least_days: int = 90
    #: Different mails that bounced softly within so many days, whatever lay between.
    soft_bounces: int = 3
    soft_days: int = 180


def harmful_contacts(
    session: Session, which: ColumnElement[bool], rules: Engagement, *, now: datetime
) -> tuple[set[int], set[int]]:
    """Contacts that never engaged, and those that bounced softly again and again.

    Parameters
    ----------
    which : condition on `EventRow.contact_key`
        Whose part of the log to read; it lies by contact.
    """

    def count(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.sum(case((condition, 1), else_=0))

    sent, bounced = EventRow.kind == EMAIL_SENT, EventRow.kind == EMAIL_BOUNCED
    answered = EventRow.kind.in_((EMAIL_OPENED, EMAIL_CLICKED)) & (EventRow.human_ppm >= HUMAN_PPM)
    totals = session.execute(
        select(
            EventRow.contact_key,
            count(sent) - count(bounced),
            func.min(case((sent, EventRow.occurred_at))),
            count(answered),
            func.max(case((EventRow.kind == ORDER_COMPLETED, EventRow.occurred_at))),
            count(bounced),
        )
        .where(
            which,
            EventRow.kind.in_((EMAIL_SENT, EMAIL_BOUNCED, EMAIL_OPENED, EMAIL_CLICKED, ORDER_COMPLETED)),
        )
        .group_by(EventRow.contact_key)
    )
    early = to_micros(now - timedelta(days=rules.least_days))
    silent, suspects = set(), []
    for key, delivered, first_sent, answers, last_order, bounces in totals:
        if (
            delivered >= rules.least_deliveries
            and first_sent is not None
            and first_sent <= early
            and not answers
            and (last_order is None or last_order < first_sent)
        ):
            silent.add(key)
        if bounces >= rules.soft_bounces:
            suspects.append(key)
    return silent, _softly_refusing(session, suspects, rules, now=now)


def _softly_refusing(session: Session, contact_keys: list[int], rules: Engagement, *, now: datetime) -> set[int]:
    if not contact_keys:
        return set()
    bounces = session.execute(
        select(EventRow.contact_key, EventRow.ref, EventRow.seq, EventRow.properties).where(
            EventRow.contact_key.in_(contact_keys),
            EventRow.kind == EMAIL_BOUNCED,
            EventRow.occurred_at >= to_micros(now - timedelta(days=rules.soft_days)),
        )
    )
    mails: dict[int, set[str]] = defaultdict(set)
    for key, ref, seq, properties in bounces:
        if severity_told(json.loads(properties or "{}")) == "soft":
            mails[key].add(ref or f"event {seq}")
    return {key for key, different in mails.items() if len(different) >= rules.soft_bounces}
