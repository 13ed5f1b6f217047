"""What the benchmarks share: work in processes of its own, CPU seconds, latencies, a place for large files."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

#: Where large files are kept between benchmarks of one `make bench`; without it each makes its own.
FOLDER = "KAIROS_BENCH_FOLDER"

ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "ARROW_NUM_THREADS",
        "POLARS_MAX_THREADS",
        "OPENBLAS_NUM_THREADS",
    )
}

#: Let allocators keep what was freed. On a virtual machine that hands free memory back to its host, the first touch of
#: a page can cost more than all the work: the second of two equal runs then measures the work. For glibc (NumPy,
#: Arrow), and for the jemalloc inside Polars and DuckDB.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1",
    "DUCKDB_JE_MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1",
}


def child(module: str, *arguments: str, python: str = sys.executable, **environment: str) -> dict[str, Any]:
    """The JSON that ``python -m tests.benchmarks.<module> …`` prints last; in a process of its own."""
    done = subprocess.run(
        [python, "-m", f"tests.benchmarks.{module}", *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cheapest(times: int, work: Callable[[], Any]) -> dict[str, float]:
    """User and system seconds of the cheapest of several runs, and the peak memory of the process in the first."""
    runs: list[dict[str, float]] = []
    peak = 0
    for _ in range(times):
        gc.collect()
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        work()
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        peak = peak or peak_rss_mb()
        runs.append({"cpu_seconds": user + system, "system_seconds": system, "wall_seconds": wall})
    best = min(runs, key=lambda run: run["cpu_seconds"])
    return {name: round(value, 3) for name, value in best.items()} | {"peak_rss_mb": peak}


def peak_rss_mb() -> int:
    """Most memory that this process held, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def latency(calls: Sequence[Callable[[], Any]], warm: int = 50) -> dict[str, float]:
    """Milliseconds of one call after another; the first ``warm`` are made twice and counted once.

    ``cpu_ms`` is this process's CPU time per call: what the call costs where the machine is shared.
    """
    for call in calls[:warm]:
        call()
    took = np.empty(len(calls))
    cpu = time.process_time()
    for place, call in enumerate(calls):
        began = time.perf_counter()
        call()
        took[place] = time.perf_counter() - began
    cpu = (time.process_time() - cpu) / len(calls) * 1000
    p50, p99 = (np.quantile(took, [0.5, 0.99]) * 1000).tolist()
    return {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "cpu_ms": round(cpu, 3), "calls": len(calls)}


@contextmanager
def large_files() -> Iterator[Path]:
    """The folder named by ``KAIROS_BENCH_FOLDER``, or one that is gone after the block."""
    if named := os.environ.get(FOLDER):
        Path(named).mkdir(parents=True, exist_ok=True)
        yield Path(named)
        return
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as folder:
        yield Path(folder)
