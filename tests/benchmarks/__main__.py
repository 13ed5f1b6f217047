"""`make bench`: every benchmark in a process of its own, one JSON object on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every ``bench_<name>.py`` of this folder."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def measure(name: str) -> dict[str, Any]:
    """What ``run()`` of the named benchmark returns."""
    return importlib.import_module(f"tests.benchmarks.bench_{name}").run()


def main() -> None:
    """Run the benchmarks that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; all by default")
    chosen = parser.parse_args().names or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join(names())}")
    report: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    }
    context = multiprocessing.get_context("spawn")
    for name in chosen:
        print(f"{name} …", file=sys.stderr, flush=True)
        started = time.perf_counter()
        with context.Pool(1) as pool:  # a fresh process each: peak memory is the benchmark's own
            report[name] = pool.apply(measure, (name,))
        report[name]["seconds"] = round(time.perf_counter() - started, 1)
        print(f"{name}: {report[name]['seconds']} s", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
