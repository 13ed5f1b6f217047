"""`make bench`: every benchmark in a process of its own, one JSON object on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every ``bench_<name>.py`` of this folder."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def measure(name: str) -> dict[str, Any]:
    """What ``run()`` of the named benchmark returns, in a fresh process: peak memory is then its own."""
    code = f"import json; from tests.benchmarks.bench_{name} import run; print(json.dumps(run()))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


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
    for name in chosen:
        print(f"{name} …", file=sys.stderr, flush=True)
        started = time.perf_counter()
        report[name] = measure(name)
        report[name]["seconds"] = round(time.perf_counter() - started, 1)
        print(f"{name}: {report[name]['seconds']} s", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
