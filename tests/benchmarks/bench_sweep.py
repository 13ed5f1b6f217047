"""How fast vectors are: 10 M events × 200 k contacts × 4 instants through the sweep, beside DuckDB on the same files.

Each engine runs in a process of its own on one thread, from the same Parquet files, so CPU seconds and peak memory are
its own. DuckDB computes the columns that one range join with filtered aggregates gives (counts, sums, means, first and
last times); the sweep computes every column of the default views. The shared columns must agree.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

EVENTS, CONTACTS, FILES = 10_000_000, 200_000, 16
AS_OF_DAYS = (90, 180, 270, 365)
START = 1_700_000_000_000_000
LATE_SHARE = 0.02
SHARED = {
    "count": "count({event}) filter ({where})",
    "sum": "coalesce(sum(value_minor) filter ({where}), 0)",
    "mean": "avg(value_minor) filter ({where})",
    "recency": "(any_value(instant) - max(occurred_at) filter ({where})) / 86400000000",
    "first_seen": "(any_value(instant) - min(occurred_at) filter ({where})) / 86400000000",
}


def run() -> dict[str, Any]:
    """Events per CPU second, peak memory, agreement; compile time; microseconds for one contact."""
    with tempfile.TemporaryDirectory() as folder:
        _write_log(Path(folder))
        compiled = _child("compile", folder)
        loaded = _child("compile", folder)
        sweep = _child("sweep", folder)
        duckdb = _child("duckdb", folder)
        shared = duckdb.pop("column_means")
        means = sweep.pop("column_means")
    worst = max(abs(means[name] - value) / max(1.0, abs(value)) for name, value in shared.items())
    return {
        "events": EVENTS,
        "contacts": CONTACTS,
        "instants_per_contact": len(AS_OF_DAYS),
        "compile_cpu_seconds": compiled["cpu_seconds"],
        "load_cpu_seconds": loaded["cpu_seconds"],
        "sweep": sweep,
        "duckdb": duckdb | {"columns": len(shared)},
        "duckdb_over_sweep_cpu": round(duckdb["cpu_seconds"] / sweep["cpu_seconds_with_reading"], 1),
        "largest_relative_difference": worst,
    }


def _child(what: str, folder: str) -> dict[str, Any]:
    limits = {name: "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ARROW_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_sweep", what, folder],
        env={**os.environ, **limits, "NUMBA_CACHE_DIR": f"{folder}/numba"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


def _write_log(folder: Path) -> None:
    """Files of random events, each of its own contacts; some people are ten times as active as others."""
    from features.events import KNOWN_KINDS, EventColumns
    from features.lake import _to_parquet

    share = {
        "Page": 0.28, "Product Viewed": 0.2, "Product Added": 0.05, "Order Completed": 0.05, "Order Cancelled": 0.01,
        "Email Sent": 0.22, "Email Opened": 0.12, "Email Link Clicked": 0.05, "Identify": 0.02,
    }  # fmt: skip
    kinds = np.array([KNOWN_KINDS.index(name) for name in share], dtype=np.int32)
    n = EVENTS // FILES
    for file in range(FILES):
        rng = np.random.default_rng(file)
        contacts = np.arange(file, CONTACTS, FILES)
        activity = rng.lognormal(0.0, 1.0, len(contacts))
        at = START + rng.integers(0, 365 * 86_400, n) * 1_000_000
        late = rng.random(n) < LATE_SHARE
        columns = EventColumns(
            contact_key=rng.choice(contacts, n, p=activity / activity.sum()),
            occurred_at=at,
            received_at=at + 1_000_000 + late * rng.integers(0, 86_400, n) * 1_000_000,
            seq=np.arange(n) * FILES + file,
            kind=rng.choice(kinds, n, p=list(share.values())),
            value_minor=rng.integers(0, 20_000, n),
            hour_of_week=rng.integers(0, 168, n).astype(np.int16),
            human_ppm=np.where(rng.random(n) < 0.5, 900_000, 100_000).astype(np.int32),
            is_repeat=rng.random(n) < 0.1,
            ref=rng.integers(1, 1_000_000, n),
        ).sorted()
        (folder / f"{file:02d}.parquet").write_bytes(_to_parquet(columns))


def _instants() -> np.ndarray:
    return START + np.array(AS_OF_DAYS, dtype=np.int64) * 86_400_000_000


def _compile(_folder: Path) -> dict[str, Any]:
    """CPU seconds until a first vector: importing Numba, then compiling or loading the kernel."""
    started = time.process_time()
    from features.events import EventColumns
    from features.kernel import sweep
    from features.views import DEFAULT_VIEWS

    sweep(EventColumns.empty(), [1], [START], DEFAULT_VIEWS)
    return {"cpu_seconds": round(time.process_time() - started, 2)}


def _sweep(folder: Path) -> dict[str, Any]:
    from features.kernel import sweep
    from features.lake import _from_parquet
    from features.views import DEFAULT_VIEWS

    instants = _instants()
    reading = sweeping = 0.0
    sums = np.zeros(len(DEFAULT_VIEWS.names))
    defined = np.zeros(len(DEFAULT_VIEWS.names))
    sweep(_from_parquet((folder / "00.parquet").read_bytes()).take(slice(0, 9)), [0], instants[:1], DEFAULT_VIEWS)
    for file in range(FILES):
        started = time.process_time()
        columns = _from_parquet((folder / f"{file:02d}.parquet").read_bytes())
        read = time.process_time()
        contacts = np.arange(file, CONTACTS, FILES)
        X = sweep(columns, np.repeat(contacts, len(instants)), np.tile(instants, len(contacts)), DEFAULT_VIEWS)
        sweeping += time.process_time() - read
        reading += read - started
        sums += np.nansum(X, axis=0)
        defined += (~np.isnan(X)).sum(axis=0)
    one = columns.take(slice(*np.searchsorted(columns.contact_key, [contacts[7], contacts[7] + 1])))
    began = time.perf_counter()
    for _ in range(2_000):
        sweep(one, [contacts[7]], instants[-1:], DEFAULT_VIEWS)
    return {
        "cpu_seconds": round(sweeping, 3),
        "cpu_seconds_with_reading": round(sweeping + reading, 3),
        "events_per_cpu_second": round(EVENTS / sweeping),
        "vectors_per_cpu_second": round(CONTACTS * len(instants) / sweeping),
        "columns": len(DEFAULT_VIEWS.names),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "one_contact_us": round((time.perf_counter() - began) / 2_000 * 1e6, 1),
        "column_means": dict(zip(DEFAULT_VIEWS.names, (sums / defined).tolist(), strict=True)),
    }


def _duckdb(folder: Path) -> dict[str, Any]:
    import duckdb

    from features.views import DEFAULT_VIEWS
    from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, HUMAN_PPM

    selected, names = [], []
    for view in DEFAULT_VIEWS.views:
        for name, days in zip(view.columns, view.windows, strict=False):
            if view.primitive not in SHARED:
                continue
            where = f"kind in ({', '.join(repr(kind) for kind in view.stream.kinds)})"
            if view.stream.human_only:
                human = f"(human_ppm >= {HUMAN_PPM} and not is_repeat)"
                where += f" and ({human} or kind not in ('{EMAIL_OPENED}', '{EMAIL_CLICKED}'))"
            if days is not None:
                where += f" and occurred_at >= instant - {days * 86_400_000_000}"
            selected.append(SHARED[view.primitive].format(event="occurred_at", where=where))
            names.append(name)
    instants = ", ".join(f"({at})" for at in _instants().tolist())
    query = f"""
        create table vectors as
        with spine as (select range as contact, instant from range({CONTACTS}), (values {instants}) as asked(instant))
        select contact, instant, {", ".join(f"{what} as {name}" for what, name in zip(selected, names, strict=True))}
        from spine left join read_parquet('{folder}/*.parquet') as log
            on log.contact_key = contact and occurred_at < instant and received_at <= instant
        group by contact, instant
    """
    with duckdb.connect(":memory:") as connection:
        connection.execute("set threads = 1")
        connection.execute("set memory_limit = '3GB'")
        started = time.process_time()
        connection.execute(query)
        cpu = time.process_time() - started
        means = connection.execute(f"select {', '.join(f'avg({name})' for name in names)} from vectors").fetchone()
    assert means is not None
    return {
        "cpu_seconds": round(cpu, 2),
        "events_per_cpu_second": round(EVENTS / cpu),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "column_means": dict(zip(names, (float(mean) for mean in means), strict=True)),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child = {"compile": _compile, "sweep": _sweep, "duckdb": _duckdb}[sys.argv[1]]
        print(json.dumps(child(Path(sys.argv[2]))))
    else:
        print(json.dumps(run(), indent=2))
