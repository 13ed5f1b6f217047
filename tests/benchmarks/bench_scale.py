"""A larger business: 50 M events, 1 M contacts, the default views at one instant, on two cores."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from features.events import DAY_MICROS
from features.lake import Lake
from features.offline import historical_features
from features.views import DEFAULT_VIEWS
from features.vocabulary import ORDER_COMPLETED
from tests.benchmarks.measuring import KEEP_MEMORY, cheapest, child
from tests.benchmarks.question import spine
from tests.benchmarks.synthetic_log import DAYS, START, write_lake

EVENTS, CONTACTS, JOBS = 50_000_000, 1_000_000, 2
#: Two days after the last event: the latest has been received.
AS_OF = START + (DAYS + 2) * DAY_MICROS


def run() -> dict[str, Any]:
    """Wall and CPU seconds from the lake's files to the matrix, and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_lake(folder, CONTACTS, EVENTS)
        measured = child("bench_scale", folder, **KEEP_MEMORY)
        orders = sum(
            int((pq.read_table(file, columns=["kind"])["kind"].to_numpy() == ORDER_COMPLETED).sum())
            for file in Path(folder).glob("bucket=*/*.parquet")
        )
    if orders != measured.pop("orders"):
        raise AssertionError(f"the lake holds {orders} orders, the vectors count another number")
    return {"events": EVENTS, "contacts": CONTACTS, "n_jobs": JOBS, **measured}


def _measure(folder: str) -> dict[str, Any]:
    lake, asked = Lake(folder), spine(np.arange(1, CONTACTS + 1), np.array([AS_OF]))
    historical_features(lake, asked[:1], DEFAULT_VIEWS)  # loads the kernel
    frames = []
    measured = cheapest(1, lambda: frames.append(historical_features(lake, asked, DEFAULT_VIEWS, n_jobs=JOBS)))
    return {
        **measured,
        "columns": len(DEFAULT_VIEWS.names),
        "events_per_wall_second": round(EVENTS / measured["wall_seconds"]),
        "orders": int(frames[0].X[:, DEFAULT_VIEWS.names.index("orders_ever")].sum()),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1]) if len(sys.argv) > 1 else run(), indent=None if len(sys.argv) > 1 else 2))
