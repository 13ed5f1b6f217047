"""`make bench`: every benchmark in a process of its own, one JSON object on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import FOLDER

HERE = Path(__file__).parent

#: Run only when named, or with --all: each takes 3 to 10 minutes and up to 12 GB of disk for a while.
LONG = {"append", "bandits", "feedback", "ladder", "models", "online", "plan", "reports", "scale", "tracking"}


def names() -> list[str]:
    """Every ``bench_<name>.py`` of this folder."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def measure(name: str, folder: str) -> dict[str, Any]:
    """What ``run()`` of the named benchmark returns, in a fresh process: peak memory is then its own."""
    code = f"import json; from tests.benchmarks.bench_{name} import run; print(json.dumps(run()))"
    environment = {**os.environ, FOLDER: os.environ.get(FOLDER, folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run the benchmarks that were named, else the short ones."""
    short = [name for name in names() if name not in LONG]
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=f"Without names: {', '.join(short)} (about 10 minutes). Long, run when named: "
        f"{', '.join(sorted(LONG))} (3 to 10 minutes each). {FOLDER} names a folder in which large files are kept "
        "from one run to the next.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parser.add_argument("--all", action="store_true", help="the long ones too")
    options = parser.parse_args()
    chosen = options.names or (names() if options.all else short)
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join(names())}")
    report: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    }
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as folder:
        # Online before append: both use one large database, and append adds to it.
        for name in sorted(chosen, key=lambda name: (name == "append", name)):
            print(f"{name} …", file=sys.stderr, flush=True)
            started = time.perf_counter()
            report[name] = measure(name, folder)
            report[name]["seconds"] = round(time.perf_counter() - started, 1)
            print(f"{name}: {report[name]['seconds']} s", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
