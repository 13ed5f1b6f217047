"""A database with a million contacts and a year of their events, filled past `append`: what is measured comes after."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from features.events import DAY_MICROS
from features.tables import to_micros
from service.database import Database
from tests.benchmarks.synthetic_log import DAYS, ROW, as_rows, draw, user_id

CONTACTS, EVENTS = 1_000_000, 5_000_000
_CONTACT = ("contact_key", "user_id", "email", "timezone", "timezone_source", "traits", "created_at", "updated_at")
_IDENTITY = ("identity", "contact_key", "created_at")
_CHUNK = 200_000


@contextmanager
def million_contacts(folder: Path) -> Iterator[tuple[Database, float]]:
    """The SQLite database in ``folder``, made if it is not there, and the seconds that took."""
    path = folder / f"million-{CONTACTS}-{EVENTS}.db"
    began = time.perf_counter()
    if not path.exists():
        unfinished = path.with_suffix(".part")
        database = Database(f"sqlite:///{unfinished}")
        fill(database)
        database.close()
        os.replace(unfinished, path)
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    try:
        yield database, time.perf_counter() - began
    finally:
        database.close()


def fill(database: Database, contacts: int = CONTACTS, events: int = EVENTS) -> None:
    """Contacts 1 to ``contacts`` with ``events`` events of the last year, up to an hour ago."""
    database.upgrade()
    end = to_micros(datetime.now(UTC)) - DAY_MICROS - 3_600_000_000
    drawn = draw(np.random.default_rng(events), np.arange(1, contacts + 1), events, end - DAYS * DAY_MICROS)
    people = (
        (key, user_id(key), f"{user_id(key)}@example.com", "Europe/London", "explicit", "{}", end, end)
        for key in range(1, contacts + 1)
    )
    names = ((f"user:{user_id(key)}", key, end) for key in range(1, contacts + 1))
    log = (row for first in range(0, events, _CHUNK) for row in as_rows(drawn, first, first + _CHUNK))
    counters = {
        "contact_key": contacts, "event_seq": events, "event_clock": int(drawn.received_at.max())
    }  # fmt: skip
    load = _into_sqlite if database.is_sqlite else _into_postgresql
    load(database, [("contact", _CONTACT, people), ("identity", _IDENTITY, names), ("event", ROW, log)])
    with database.engine.begin() as connection:
        for name, value in counters.items():
            connection.exec_driver_sql(f"update counter set value = {value} where name = '{name}'")
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("vacuum analyze")


Tables = list[tuple[str, tuple[str, ...], Iterable[tuple[Any, ...]]]]


def _into_sqlite(database: Database, tables: Tables) -> None:
    """In the order of the clustered index; ``seq`` is indexed at the end, in one sort."""
    connection = database.engine.raw_connection()
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode = off")
    cursor.execute("pragma synchronous = off")
    cursor.execute("pragma mmap_size = 0")
    cursor.execute("pragma cache_size = -1500000")  # the random letters of message ids touch every page of their index
    seq_index = cursor.execute("select sql from sqlite_master where name = 'ux_event_seq'").fetchone()[0]
    cursor.execute("drop index ux_event_seq")
    for table, columns, rows in tables:
        statement = f"insert into {table} ({', '.join(columns)}) values ({', '.join('?' * len(columns))})"
        cursor.execute("begin")
        cursor.executemany(statement, rows)
        cursor.execute("commit")
    cursor.execute(seq_index)
    cursor.execute("analyze")
    connection.invalidate()  # its settings end with it
    connection.close()


def _into_postgresql(database: Database, tables: Tables) -> None:
    """By COPY; the secondary indexes of the log are made at the end."""
    connection = database.engine.raw_connection()
    cursor = connection.cursor()
    cursor.execute("select indexdef from pg_indexes where tablename = 'event' and indexname = 'ux_event_seq'")
    seq_index = cursor.fetchone()[0]
    cursor.execute("drop index ux_event_seq")
    cursor.execute("select conname from pg_constraint where conrelid = 'event'::regclass and contype = 'u' limit 1")
    unique = cursor.fetchone()[0]
    cursor.execute(f'alter table event drop constraint "{unique}"')
    for table, columns, rows in tables:
        with cursor.copy(f"copy {table} ({', '.join(columns)}) from stdin") as copy:
            for row in rows:
                copy.write_row(row)
    cursor.execute(f'alter table event add constraint "{unique}" unique (message_id)')
    cursor.execute(seq_index)
    connection.commit()
    connection.close()
