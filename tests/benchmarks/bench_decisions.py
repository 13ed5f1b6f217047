"""How fast decisions are: a million draws and choices without and with vectors, and one snapshot of each kind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.measuring import cheapest, peak_rss_mb
from training.policies import (
    Allocation,
    ArmStatistics,
    BetaBernoulliThompson,
    LinearStatistics,
    LinearThompson,
    choose,
    hashed_draws,
    sums_of,
)

CONTACTS, ARMS, WAVES, FEATURES = 1_000_000, 10, 50, 30
#: Contacts decided at once, as the service does by wave.
CHUNK = 20_000


def _best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs: the one least disturbed by others on the machine."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def decided(allocation: Allocation, names: list[str], contexts: np.ndarray | None) -> np.ndarray:
    """The arm of each contact, by hashed draws, in chunks."""
    arms = np.empty(len(names), dtype=np.int64)
    for start in range(0, len(names), CHUNK):
        rows = slice(start, min(start + CHUNK, len(names)))
        draws = hashed_draws("salt", "snapshot", np.arange(rows.start, rows.stop), names[rows])
        if contexts is None:
            arms[rows] = choose(allocation.pmf, draws)
        else:
            pmf = allocation.probabilities(len(draws), contexts=contexts[rows])
            arms[rows] = choose(pmf, draws)
    return arms


def count_statistics(rng: np.random.Generator) -> ArmStatistics:
    """Counts of fifty waves."""
    trials = rng.integers(500, 2000, (ARMS, WAVES))
    return ArmStatistics(
        tuple(f"arm_{k}" for k in range(ARMS)),
        trials,
        rng.binomial(trials, np.linspace(0.18, 0.22, ARMS)[:, None]),
        np.broadcast_to(np.arange(WAVES, 0, -1) * 1.0, trials.shape),
    )


def linear_statistics(rng: np.random.Generator, n: int = 100_000) -> LinearStatistics:
    """Sums of fifty waves of vectors."""
    x = np.concatenate([np.ones((n, 1)), rng.standard_normal((n, FEATURES - 1))], axis=1)
    arm, wave = rng.integers(ARMS, size=n), rng.integers(WAVES, size=n)
    beta = rng.normal(0, 0.02, (ARMS, FEATURES))
    click = rng.random(n) < (0.2 + (x * beta[arm]).sum(axis=1)).clip(0, 1)
    sums = sums_of(arm, wave, x, click, n_arms=ARMS, n_waves=WAVES)
    age = np.broadcast_to(np.arange(WAVES, 0, -1) * 1.0, (ARMS, WAVES))
    return sums.statistics([f"arm_{k}" for k in range(ARMS)], age)


def run() -> dict[str, Any]:
    """Decisions a second in one process on one thread, milliseconds of a snapshot and of a single draw, peak memory.

    A CPU second is what a decision costs where the machine is shared.
    """
    rng = np.random.default_rng(0)
    names = [f"send:{i}" for i in range(CONTACTS)]
    counts, sums = count_statistics(rng), linear_statistics(rng)
    policy, linear = BetaBernoulliThompson(), LinearThompson()
    plain, contextual = policy.allocate(counts), linear.allocate(sums)
    without = cheapest(3, lambda: decided(plain, names, None))
    contexts = rng.standard_normal((CONTACTS, FEATURES), dtype=np.float32)
    contexts[:, 0] = 1
    with_vectors = cheapest(3, lambda: decided(contextual, names, contexts))
    return {
        "contacts": CONTACTS,
        "arms": ARMS,
        "features": FEATURES,
        "ensemble_draws": linear.n_draws,
        "decisions_per_second": round(CONTACTS / without["wall_seconds"]),
        "decisions_per_cpu_second": round(CONTACTS / without["cpu_seconds"]),
        "contextual_decisions_per_second": round(CONTACTS / with_vectors["wall_seconds"]),
        "contextual_decisions_per_cpu_second": round(CONTACTS / with_vectors["cpu_seconds"]),
        "snapshot_ms": round(1000 * _best_of(5, lambda: policy.allocate(counts)), 2),
        "linear_snapshot_ms": round(1000 * _best_of(5, lambda: linear.allocate(sums)), 2),
        "single_draw_ms": round(1000 * _best_of(20, lambda: decided(plain, names[:1], None)), 3),
        "single_contextual_draw_ms": round(1000 * _best_of(20, lambda: decided(contextual, names[:1], contexts)), 3),
        "vectors_mb": round(contexts.nbytes / 2**20),
        "peak_rss_mb_without_vectors": without["peak_rss_mb"],
        "peak_rss_mb": peak_rss_mb(),
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
