"""How fast decisions are: a million hashed draws and choices, and one snapshot."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable

import numpy as np

from training.policies import ArmStatistics, BetaBernoulliThompson, choose, hashed_draw, hashed_draws

CONTACTS, ARMS, WAVES = 1_000_000, 10, 50


def _best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs: the one least disturbed by others on the machine."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def run() -> dict[str, float | int]:
    """Decisions a second in one process, seconds of a snapshot, seconds of a single draw, peak memory."""
    rng = np.random.default_rng(0)
    keys, names = np.arange(CONTACTS), [f"send:{i}" for i in range(CONTACTS)]
    trials = rng.integers(500, 2000, (ARMS, WAVES))
    statistics = ArmStatistics(
        tuple(f"arm_{k}" for k in range(ARMS)),
        trials,
        rng.binomial(trials, np.linspace(0.18, 0.22, ARMS)[:, None]),
        np.broadcast_to(np.arange(WAVES, 0, -1) * 1.0, trials.shape),
    )
    policy = BetaBernoulliThompson()
    pmf = policy.pmf(statistics)
    batch = _best_of(3, lambda: choose(pmf, hashed_draws("salt", "snapshot", keys, names)))
    return {
        "contacts": CONTACTS,
        "arms": ARMS,
        "decisions_per_second": round(CONTACTS / batch),
        "snapshot_ms": 1000 * _best_of(5, lambda: policy.pmf(statistics)),
        "single_draw_ms": 1000 * _best_of(20, lambda: choose(pmf, hashed_draw("salt", "snapshot", 1, "send:1"))),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
