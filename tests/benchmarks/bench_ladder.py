"""What a whole training costs at the size where the trees are tuned: every rung fitted, chosen and judged."""

from __future__ import annotations

import json
import tempfile
import time
from typing import Any

from features.events import DAY_MICROS
from features.lake import Lake
from tests.benchmarks.measuring import peak_rss_mb
from tests.benchmarks.synthetic_log import DAYS, START, write_lake
from training.datasets import log_span
from training.runs import define, judge, make_study

CONTACTS, EVENTS = 200_000, 2_000_000
UNTIL = START + DAYS * DAY_MICROS


def run() -> dict[str, Any]:
    """Seconds of each part of training ``conversion``, rows, the rung, peak memory."""
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as scratch:
        write_lake(f"{scratch}/lake", CONTACTS, EVENTS)
        lake = Lake(f"{scratch}/lake")
        span = log_span(lake, UNTIL)
        asked, _ = define("conversion", span, UNTIL, None)
        clock = [time.perf_counter()]
        cpu = time.process_time()
        study = make_study(lake, asked, UNTIL, span.first)
        clock.append(time.perf_counter())
        fitted = study.fit(UNTIL)
        clock.append(time.perf_counter())
        judged = judge(study)
        clock.append(time.perf_counter())
        return {
            "contacts": CONTACTS,
            "events": EVENTS,
            "rows": len(study.learned),
            "columns": len(study.learned.names),
            "rung": fitted.choice.rung,
            "reason": fitted.choice.reason,
            "judged_cutoffs": len(judged),
            "seconds": {
                name: round(after - before, 1)
                for name, before, after in zip(("rows", "ladder", "judging"), clock, clock[1:], strict=False)
            },
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_rss_mb": peak_rss_mb(),
        }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
