"""Orders credited to mails over a whole year: reading ledger and log of a SQLite file, and the crediting by itself.

A million orders (one in twenty refunded), five million mails to half a million contacts, a human click on one mail in
twenty-five. The ledger's secondary indexes are left out of the file: the report reads it from end to end.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from features.events import DAY_MICROS
from features.vocabulary import EMAIL_CLICKED, ORDER_COMPLETED, ORDER_REFUNDED
from service.database import Database
from service.sales import credit_orders, read_mails, read_orders

CONTACTS, ORDERS, MAILS = 500_000, 1_000_000, 5_000_000
YEAR = 365 * DAY_MICROS
START = 20_000 * DAY_MICROS
_EVENT = (
    "insert into event (contact_key, occurred_at, seq, received_at, kind, message_id, ref, value_minor, hour_of_week, "
    "human_ppm, is_repeat, is_imported, identity) values (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, 0, 0, '')"
)
_SEND = (
    "insert into send (send_id, intent_key, contact_key, campaign_id, stream, topic, template_id, template_version, "
    "state, due_at, not_after, timezone, assigned_local_hour, hour_propensity, hour_reason, is_holdout, is_canary, "
    "lease_token, attempts, created_at, finished_at) values (?, ?, ?, 'c', 'marketing', 'news', 't', 1, 'accepted', "
    "?, ?, 'UTC', 9, 1, 'best', 0, 0, 0, 1, ?, ?)"
)


def run() -> dict[str, Any]:
    """Seconds and events a second of each step, and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'sales.db'}", is_durable=False)
        database.upgrade()
        n_events = _fill(database)
        report = _measure(database, n_events)
        database.close()
    return report


def _measure(database: Database, n_events: int) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        seconds[name] = round(time.perf_counter() - began, 2)
        began = time.perf_counter()

    cpu = time.process_time()
    with database.reading() as session:
        orders = read_orders(session)
        lap("read_and_net_orders")
        mails, click_mail, click_at = read_mails(session, START, START + YEAR)
        lap("read_mails_and_clicks")
        credited = credit_orders(orders.contact_key, orders.occurred_at, mails, click_mail, click_at, 7 * DAY_MICROS)
        lap("credit")
    total = sum(seconds.values())
    return {
        "orders": len(credited),
        "mails": len(mails),
        "clicks": len(click_mail),
        "credited_share": float((credited >= 0).mean()),
        "seconds": seconds,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "events_per_second": round((n_events + MAILS) / total),
        "events_per_second_crediting_alone": round((len(credited) + len(mails) + len(click_mail)) / seconds["credit"]),
    }


def _fill(database: Database) -> int:
    rng = np.random.default_rng(1)
    sent_to = np.sort(rng.integers(1, CONTACTS + 1, MAILS))
    sent_at = START + rng.integers(0, YEAR, MAILS)
    clicked = np.flatnonzero(rng.random(MAILS) < 0.04)
    bought_by = rng.integers(1, CONTACTS + 1, ORDERS)
    bought_at = START + rng.integers(0, YEAR, ORDERS)
    back = np.flatnonzero(rng.random(ORDERS) < 0.05)
    key = np.r_[bought_by, bought_by[back], sent_to[clicked]]
    at = np.r_[
        bought_at, bought_at[back] + DAY_MICROS, sent_at[clicked] + rng.integers(1, 2 * DAY_MICROS, len(clicked))
    ]
    kind = np.r_[np.zeros(ORDERS, int), np.ones(len(back), int), np.full(len(clicked), 2)]
    ref = np.r_[np.arange(ORDERS), back, clicked]
    value = np.r_[rng.integers(100, 20_000, ORDERS), np.full(len(back), 100), np.zeros(len(clicked), int)]
    order = np.lexsort((at, key))
    names = (ORDER_COMPLETED, ORDER_REFUNDED, EMAIL_CLICKED)

    def events() -> Iterator[tuple[Any, ...]]:
        columns = (one[order].tolist() for one in (key, at, kind, ref, value))
        for seq, (who, when, what, name, minor) in enumerate(zip(*columns, strict=True), 1):
            is_click = what == 2
            told = None if is_click else minor
            yield who, when, seq, when, names[what], f"b/{seq}", str(name), told, 900_000 if is_click else None

    def sends() -> Iterator[tuple[Any, ...]]:
        for number, (who, when) in enumerate(zip(sent_to.tolist(), sent_at.tolist(), strict=True)):
            yield number, f"s/{number:09}", who, when, when, when, when

    connection = database.engine.raw_connection()
    cursor = connection.cursor()
    dropped = cursor.execute(
        "select name from sqlite_master where type = 'index' and tbl_name = 'send' and sql is not null"
    ).fetchall()
    for (name,) in dropped:
        cursor.execute(f"drop index {name}")
    cursor.execute("begin")
    cursor.executemany(_EVENT, events())
    cursor.executemany(_SEND, sends())
    cursor.execute("commit")
    connection.close()
    return len(key)
