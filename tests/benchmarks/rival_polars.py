"""The question in Polars, three ways, lazily on its streaming engine.

What makes Polars fast here: conditions become columns row by row, so that every aggregate after `group_by` is a plain
sum, minimum or maximum (filters inside `agg` take ten times as long); a known instant is a constant in a filter, and
the parts are put below each other (a cross join with the instants, filtered, becomes a nested loop: five times slower).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from features.events import DAY_MICROS
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, HUMAN_PPM
from tests.benchmarks.measuring import cheapest
from tests.benchmarks.question import COLUMNS, CONTACTS, INSTANTS, STREAMS, Column

TIMES = 3
PLACE = ["contact_key", "instant"]
AT, INSTANT, VALUE = pl.col("occurred_at"), pl.col("instant"), pl.col("value_minor")
KNOWN = (AT < INSTANT) & (pl.col("received_at") <= INSTANT)


def joined(log: pl.LazyFrame) -> pl.LazyFrame:
    """One join with the spine on the contact, filtered by time; one group by."""
    return _measured(log.join(_spine(), on="contact_key").filter(KNOWN), COLUMNS, of_stream=True)


def per_kind_joined(log: pl.LazyFrame) -> pl.LazyFrame:
    """Per kind a join with the spine, filtered by time, and that kind's windows alone."""
    return _per_kind(log, lambda part: part.join(_spine(), on="contact_key").filter(KNOWN))


def per_kind_per_instant(log: pl.LazyFrame) -> pl.LazyFrame:
    """Per kind and instant a filter; no join but that of the kinds at the end."""

    def known(part: pl.LazyFrame) -> Sequence[pl.LazyFrame]:
        return [
            part.filter((at > AT) & (pl.col("received_at") <= at)).with_columns(pl.lit(at, pl.Int64).alias("instant"))
            for at in INSTANTS.tolist()
        ]

    return _per_kind(log, known)


WAYS: dict[str, Callable[[pl.LazyFrame], pl.LazyFrame]] = {
    "joined": joined,
    "per_kind_joined": per_kind_joined,
    "per_kind_per_instant": per_kind_per_instant,
}


def _per_kind(
    log: pl.LazyFrame, known: Callable[[pl.LazyFrame], pl.LazyFrame | Sequence[pl.LazyFrame]]
) -> pl.LazyFrame:
    vectors = _spine()
    for stream in range(len(STREAMS)):
        columns = [column for column in COLUMNS if column.stream == stream]
        parts = known(log.filter(pl.col("stream") == stream))
        parts = [parts] if isinstance(parts, pl.LazyFrame) else parts
        measured = pl.concat([_measured(part, columns, of_stream=False) for part in parts])
        vectors = vectors.join(measured, on=PLACE, how="left")
    return vectors


def _measured(known: pl.LazyFrame, columns: Sequence[Column], *, of_stream: bool) -> pl.LazyFrame:
    rows, aggregates, finished = [], [], []
    for column in columns:
        one = pl.col(column.name)
        inside = [pl.col("stream") == column.stream] if of_stream else []
        if column.window is not None:
            inside.append(INSTANT - column.window <= AT)
        here = pl.all_horizontal(inside) if inside else pl.lit(True)
        of = {"count": pl.lit(1), "sum": VALUE, "mean": VALUE}.get(column.primitive, AT)
        rows.append((pl.when(here).then(of) if inside else of).alias(column.name))
        aggregates.append(
            {"count": one.count(), "sum": one.sum(), "mean": one.mean(), "recency": one.max(), "first_seen": one.min()}[
                column.primitive
            ]
        )
        if column.primitive in ("recency", "first_seen"):
            finished.append(((INSTANT - one) / DAY_MICROS).alias(column.name))
    return known.select(*PLACE, *rows).group_by(PLACE).agg(aggregates).with_columns(finished)


def _spine() -> pl.LazyFrame:
    instants = pl.LazyFrame({"instant": INSTANTS})
    return pl.LazyFrame({"contact_key": np.arange(1, CONTACTS + 1)}).join(instants, how="cross")


def _log(lake: str) -> pl.LazyFrame:
    number = {kind: place for place, stream in enumerate(STREAMS) for kind in stream.kinds}
    by_person = (pl.col("human_ppm") >= HUMAN_PPM) & ~pl.col("is_repeat")
    return (
        pl.scan_parquet(f"{lake}/*/*.parquet", hive_partitioning=False)
        .filter(pl.col("kind").is_in(list(number)))
        .filter(~pl.col("kind").is_in([EMAIL_OPENED, EMAIL_CLICKED]) | by_person)
        .select(
            "contact_key",
            "occurred_at",
            "received_at",
            "value_minor",
            pl.col("kind").cast(pl.String).replace_strict(number, return_dtype=pl.UInt8).alias("stream"),
        )
    )


def vectors(way: str, lake: str) -> pl.DataFrame:
    """The whole work: files to a frame in memory; the log is decoded once, whatever is asked of it."""
    log = _log(lake).collect(engine="streaming").lazy()
    filled = [pl.col(column.name).fill_null(0) for column in COLUMNS if column.primitive in ("count", "sum")]
    answer = WAYS[way](log)
    if way == "joined":
        answer = _spine().join(answer, on=PLACE, how="left")
    return answer.with_columns(filled).collect(engine="streaming")


def main(way: str, lake: str, answer: Path) -> dict[str, float]:
    """CPU seconds from files to a frame in memory; the frame as a matrix in ``answer``."""
    measured = cheapest(TIMES, lambda: vectors(way, lake))
    frame = vectors(way, lake).sort(PLACE)
    np.save(answer, frame.select(pl.col(column.name).cast(pl.Float64) for column in COLUMNS).to_numpy())
    return measured


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
