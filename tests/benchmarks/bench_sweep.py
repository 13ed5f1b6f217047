"""How fast vectors are: 10 M events × 200 k contacts × 4 instants, from the lake's files to the matrix.

Reading is part of it, and so is every file's SHA-256: the lake is opened anew each time, and has verified none then.
Beside it DuckDB and Polars answer `question` from the same files, each in its best of several ways; they check no
checksum. Every engine runs by itself on one thread, three times, of which the cheapest counts; the matrices must be
equal. CPU seconds are user and system time, so that a busy machine shows little in them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from features.events import DAY_MICROS
from features.lake import Lake
from features.offline import historical_features
from features.views import DEFAULT_VIEWS
from tests.benchmarks.measuring import KEEP_MEMORY, ONE_THREAD, cheapest, child
from tests.benchmarks.question import CONTACTS, EVENTS, INSTANTS, SHARED_VIEWS, largest_difference, spine
from tests.benchmarks.synthetic_log import START, write_lake

TIMES = 3
#: What two orders of adding up floating-point numbers may differ by.
TOLERANCE = 1e-12
#: Instants per contact, and of how many of the 64 buckets: 52 instants of everyone would fill 7 GB.
MANY_INSTANTS, SOME_BUCKETS = (1, 4, 12, 52), 8


def run() -> dict[str, Any]:
    """Events per CPU second, memory, the rivals' CPU seconds and ours, what a further instant costs."""
    from tests.benchmarks import rival_duckdb, rival_polars  # not in the children: their memory is measured

    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/lake"
        write_lake(place, CONTACTS, EVENTS)
        numba = {"NUMBA_CACHE_DIR": f"{folder}/numba"}
        environment = ONE_THREAD | KEEP_MEMORY | numba
        compiled = child("bench_sweep", "load", **environment)
        loaded = child("bench_sweep", "load", **environment)
        every_column = child("bench_sweep", "default", place, **environment)
        shared = child("bench_sweep", "shared", place, f"{folder}/ours.npy", **environment)
        rivals = {
            name: {
                way: child(f"rival_{name}", way, place, f"{folder}/theirs.npy", **environment)
                | {"largest_difference": largest_difference(Path(f"{folder}/ours.npy"), Path(f"{folder}/theirs.npy"))}
                for way in ways
            }
            for name, ways in (("duckdb", rival_duckdb.WAYS), ("polars", rival_polars.WAYS))
        }
        instants = child("bench_sweep", "instants", place, **environment)
    for name, ways in rivals.items():
        for way, measured in ways.items():
            if measured["largest_difference"] > TOLERANCE:
                raise AssertionError(f"{name}'s {way} and the sweep differ by {measured['largest_difference']}")
    best = {name: min(ways, key=lambda way: ways[way]["cpu_seconds"]) for name, ways in rivals.items()}
    return {
        "events": EVENTS,
        "contacts": CONTACTS,
        "instants_per_contact": len(INSTANTS),
        "compile_cpu_seconds": compiled["cpu_seconds"],
        "load_cpu_seconds": loaded["cpu_seconds"],
        "default_views": every_column,
        "shared_columns": {
            "columns": len(SHARED_VIEWS.names),
            "kairos": shared,
            **{name: {"best": best[name], **ways} for name, ways in rivals.items()},
            **{
                f"{name}_over_kairos": round(ways[best[name]]["cpu_seconds"] / shared["cpu_seconds"], 1)
                for name, ways in rivals.items()
            },
        },
        "per_instant": instants,
    }


def _load() -> dict[str, Any]:
    """CPU seconds until a first vector: importing Numba, then compiling or loading the kernel."""

    def first() -> None:
        from features.events import EventColumns
        from features.kernel import sweep

        sweep(EventColumns.empty(), [1], [START], DEFAULT_VIEWS)

    return cheapest(1, first)


def _default(place: str) -> dict[str, Any]:
    asked = spine(np.arange(1, CONTACTS + 1), INSTANTS)
    measured = cheapest(TIMES, lambda: historical_features(Lake(place), asked, DEFAULT_VIEWS))
    cpu = measured["cpu_seconds"]
    return {
        **measured,
        "columns": len(DEFAULT_VIEWS.names),
        "events_per_cpu_second": round(EVENTS / cpu),
        "vectors_per_cpu_second": round(len(asked) / cpu),
        "reading_cpu_seconds": cheapest(TIMES, lambda: _read(Lake(place)))["cpu_seconds"],
    }


def _read(lake: Lake) -> None:
    for bucket in range(lake.buckets):
        lake.read_bucket(bucket)


def _shared(place: str, answer: str) -> dict[str, Any]:
    asked = spine(np.arange(1, CONTACTS + 1), INSTANTS)
    measured = cheapest(TIMES, lambda: historical_features(Lake(place), asked, SHARED_VIEWS))
    np.save(answer, historical_features(Lake(place), asked, SHARED_VIEWS).X)
    return measured


def _instants(place: str) -> dict[str, Any]:
    """The default views of the contacts of some buckets, at weekly and rarer instants of the last year."""
    keys = np.arange(1, CONTACTS + 1)
    keys = keys[Lake(place).bucket_of(keys) < SOME_BUCKETS]
    measured: dict[str, Any] = {"contacts": len(keys)}
    for count in MANY_INSTANTS:
        days = np.linspace(365 / count, 365, count).astype(np.int64)
        asked = spine(keys, START + days * DAY_MICROS)
        cpu = cheapest(TIMES, lambda asked=asked: historical_features(Lake(place), asked, DEFAULT_VIEWS))["cpu_seconds"]
        measured[f"cpu_seconds_{count}"] = cpu
        measured[f"us_per_vector_{count}"] = round(cpu / len(asked) * 1e6, 2)
    few, many = MANY_INSTANTS[0], MANY_INSTANTS[-1]
    measured["us_per_extra_instant"] = round(
        (measured[f"cpu_seconds_{many}"] - measured[f"cpu_seconds_{few}"]) / (many - few) / len(keys) * 1e6, 2
    )
    return measured


if __name__ == "__main__":
    if len(sys.argv) > 1:
        what = {"load": _load, "default": _default, "shared": _shared, "instants": _instants}[sys.argv[1]]
        print(json.dumps(what(*sys.argv[2:])))
    else:
        print(json.dumps(run(), indent=2))
