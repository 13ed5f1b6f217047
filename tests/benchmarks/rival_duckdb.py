"""The question in DuckDB, three ways: ``python -m tests.benchmarks.rival_duckdb WAY`` prints the query.

All of them let an event meet the four instants instead of a spine of 800 k rows: right because every contact is asked
about at the same instants, and cheaper than the join on contact and time that any spine would need (which costs a
tenth more). The log is decoded once: names of kinds become small numbers, machines' opens and clicks drop out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np

from features.events import DAY_MICROS
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, HUMAN_PPM
from tests.benchmarks.measuring import cheapest
from tests.benchmarks.question import COLUMNS, CONTACTS, INSTANTS, STREAMS, Column

TIMES = 3
KNOWN = "occurred_at < instant and received_at <= instant"
VALUES = ", ".join(f"({at})" for at in INSTANTS.tolist())


def one_group_by(files: str) -> str:
    """A filtered aggregate per column over contact and instant."""
    measured = ",\n    ".join(f"{_aggregate(column, of_stream=True)} as {column.name}" for column in COLUMNS)
    return f"""{_log(files)},
vectors as (
  select contact_key, instant,
    {measured}
  from log, instants where {KNOWN} group by contact_key, instant
)
select contact_key, instant, {_filled()}
from spine left join vectors using (contact_key, instant)"""


def two_stages(files: str) -> str:
    """Per contact, instant and kind every window once; then each kind's part joined to its columns."""
    windows = sorted({column.window for column in COLUMNS if column.window})
    parts = ",\n    ".join(
        f"count(*){_within(window)} as n_{window or 'ever'}, sum(value_minor){_within(window)} as v_{window or 'ever'}"
        for window in (*windows, None)
    )
    joins = "\n".join(
        f"left join part as s{stream} on s{stream}.contact_key = spine.contact_key and "
        f"s{stream}.instant = spine.instant and s{stream}.stream = {stream}"
        for stream in range(len(STREAMS))
    )
    picked = ",\n  ".join(f"{_picked(column)} as {column.name}" for column in COLUMNS)
    return f"""{_log(files)},
part as materialized (
  select contact_key, instant, stream,
    {parts},
    max(occurred_at) as last, min(occurred_at) as first
  from log, instants where {KNOWN} group by contact_key, instant, stream
)
select spine.contact_key, spine.instant,
  {picked}
from spine
{joins}"""


def per_kind(files: str) -> str:
    """A subquery per kind with that kind's windows alone, joined to the spine."""
    subqueries, joins = [], []
    for stream in range(len(STREAMS)):
        measured = ", ".join(
            f"{_aggregate(column, of_stream=False)} as {column.name}" for column in COLUMNS if column.stream == stream
        )
        subqueries.append(
            f"s{stream} as (select contact_key, instant, {measured}\n"
            f"  from log, instants where stream = {stream} and {KNOWN} group by contact_key, instant)"
        )
        joins.append(f"left join s{stream} using (contact_key, instant)")
    parts = [_log(files), *subqueries]
    return ",\n".join(parts) + "\n" + "\n".join([f"select contact_key, instant, {_filled()}", "from spine", *joins])


WAYS: dict[str, Callable[[str], str]] = {
    "one_group_by": one_group_by,
    "two_stages": two_stages,
    "per_kind": per_kind,
}


def _log(files: str) -> str:
    number = {kind: place for place, stream in enumerate(STREAMS) for kind in stream.kinds}
    cases = " ".join(f"when '{kind}' then {place}" for kind, place in number.items())
    kinds = ", ".join(f"'{kind}'" for kind in number)
    return f"""with log as materialized (
  select contact_key, occurred_at, received_at, value_minor, (case kind {cases} end)::utinyint as stream
  from read_parquet('{files}', hive_partitioning = false)
  where kind in ({kinds})
    and (kind not in ('{EMAIL_OPENED}', '{EMAIL_CLICKED}') or (human_ppm >= {HUMAN_PPM} and not is_repeat))
),
instants as (select * from (values {VALUES}) as asked(instant)),
spine as (select contact_key, instant from range(1, {CONTACTS} + 1) as contacts(contact_key), instants)"""


def _aggregate(column: Column, *, of_stream: bool) -> str:
    conditions = [f"stream = {column.stream}"] if of_stream else []
    if column.window is not None:
        conditions.append(f"occurred_at >= instant - {column.window}")
    where = f" filter ({' and '.join(conditions)})" if conditions else ""
    return {
        "count": f"count(*){where}",
        "sum": f"sum(value_minor){where}",
        "mean": f"avg(value_minor){where}",
        "recency": f"(instant - max(occurred_at){where}) / {DAY_MICROS}",
        "first_seen": f"(instant - min(occurred_at){where}) / {DAY_MICROS}",
    }[column.primitive]


def _within(window: int | None) -> str:
    return "" if window is None else f" filter (occurred_at >= instant - {window})"


def _picked(column: Column) -> str:
    part, window = f"s{column.stream}", column.window or "ever"
    return {
        "count": f"coalesce({part}.n_{window}, 0)",
        "sum": f"coalesce({part}.v_{window}, 0)",
        "mean": f"{part}.v_{window} / nullif({part}.n_{window}, 0)",
        "recency": f"(spine.instant - {part}.last) / {DAY_MICROS}",
        "first_seen": f"(spine.instant - {part}.first) / {DAY_MICROS}",
    }[column.primitive]


def _filled() -> str:
    return ", ".join(
        f"coalesce({column.name}, 0) as {column.name}" if column.primitive in ("count", "sum") else column.name
        for column in COLUMNS
    )


def main(way: str, lake: str, answer: Path) -> dict[str, float]:
    """CPU seconds from files to a table in memory; the table as a matrix in ``answer``."""
    with duckdb.connect(":memory:") as connection:
        connection.execute("set threads = 1")
        connection.execute("set preserve_insertion_order = false")
        query = f"create or replace table vectors as {WAYS[way](f'{lake}/*/*.parquet')}"
        measured = cheapest(TIMES, lambda: connection.execute(query))
        names = ", ".join(f"{column.name}::double as {column.name}" for column in COLUMNS)
        table = connection.execute(f"select {names} from vectors order by contact_key, instant").fetchnumpy()
    np.save(answer, np.column_stack([np.ma.filled(table[column.name], np.nan) for column in COLUMNS]))
    return measured


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(WAYS[sys.argv[1]]("lake/*/*.parquet"))
    else:
        print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
