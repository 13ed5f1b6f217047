"""Planned sends as rows of the ledger: a million at a time, as plain tuples."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.tables import allocate, to_micros
from service.errors import Conflict
from service.flow.schedule.intent import Intent, Sends
from service.tables import SendRow

#: Rows handed to the database at once.
CHUNK = 20_000
#: A mail is better not sent at all this long after its window.
GRACE = timedelta(hours=1)

#: What the planner fills; every other column starts empty.
COLUMNS = (
    "send_id", "intent_key", "contact_key", "campaign_id", "stream", "topic", "template_id", "template_version",
    "state", "reason", "due_at", "not_after", "timezone", "assigned_local_hour", "hour_propensity", "hour_reason",
    "is_holdout", "is_canary", "mailbox", "expected_value", "lease_token", "attempts", "created_at", "decided_at",
    "finished_at",
)  # fmt: skip


def write_sends(session: Session, sends: Sends, *, now: datetime) -> int:
    """Put the sends into the ledger; returns how many rows were new.

    Raises
    ------
    Conflict
        If one of the intents is in the ledger already: an intent exists once.
    """
    if not len(sends):
        return 0
    intent = sends.intent
    existing = _existing(session, sends)
    if existing is not None:
        raise Conflict(f"{intent.key} is in the ledger already (intent {existing}); plan a new campaign to send again")
    first = allocate(session, "send_id", len(sends))
    session.flush()
    connection = session.connection()
    names = ", ".join(COLUMNS)
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY send ({names}) FROM STDIN") as copy:
            for rows in _rows(sends, first, to_micros(now)):
                for row in rows:
                    copy.write_row(row)
    else:
        statement = f"INSERT INTO send ({names}) VALUES ({', '.join('?' * len(COLUMNS))})"
        for rows in _rows(sends, first, to_micros(now)):
            connection.exec_driver_sql(statement, rows)
    return len(sends)


def _existing(session: Session, sends: Sends) -> str | None:
    intent = sends.intent
    if intent.campaign_id == intent.key:  # found by its index
        return session.scalar(select(SendRow.intent_key).where(SendRow.campaign_id == intent.key).limit(1))
    for start in range(0, len(sends), CHUNK):
        keys = _intent_keys(intent, sends.contact_key[start : start + CHUNK].tolist())
        existing = session.scalar(select(SendRow.intent_key).where(SendRow.intent_key.in_(keys)).limit(1))
        if existing is not None:
            return existing
    return None


def _intent_keys(intent: Intent, contact_keys: list[int]) -> list[str]:
    return [f"{intent.key}:{key}:{intent.occurrence}" for key in contact_keys]


def _rows(sends: Sends, first: int, now: int) -> Iterator[list[tuple[Any, ...]]]:
    intent = sends.intent
    not_after = to_micros(intent.window_end + GRACE)
    is_decided = intent.stream == "transactional"  # no experiment has a say in it: nothing is left to be decided
    for start in range(0, len(sends), CHUNK):
        part = slice(start, min(start + CHUNK, len(sends)))
        count = part.stop - start
        keys = sends.contact_key[part].tolist()
        states = sends.state[part].tolist()
        expected = sends.expected_value[part]
        values = expected.astype(object)
        values[np.isnan(expected)] = None
        yield list(
            zip(
                range(first + start, first + part.stop),
                _intent_keys(intent, keys),
                keys,
                [intent.campaign_id] * count,
                [intent.stream] * count,
                [intent.topic] * count,
                [intent.template_id] * count,
                [intent.template_version] * count,
                states,
                sends.reason[part].tolist(),
                sends.due_at[part].tolist(),
                [not_after] * count,
                sends.timezone[part].tolist(),
                sends.assigned_local_hour[part].tolist(),
                sends.hour_propensity[part].tolist(),
                sends.hour_reason[part].tolist(),
                sends.is_holdout[part].tolist(),
                sends.is_canary[part].tolist(),
                sends.mailbox[part].tolist(),
                values.tolist(),
                [0] * count,
                [0] * count,
                [now] * count,
                [now if is_decided and state == "planned" else None for state in states],
                [None if state == "planned" else now for state in states],
                strict=True,
            )
        )
