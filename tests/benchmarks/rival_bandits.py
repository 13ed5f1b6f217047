"""MABWiser and Vowpal Wabbit on the world that `bench bandits` made; run by an environment that has them.

Library defaults but for what the names say; neither is tuned. MABWiser logs no probabilities. Vowpal Wabbit learns one
example at a time from text, as a Python service would feed it; its own command line is faster.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
import warnings
from typing import Any

import numpy as np


class LinTS:
    """MABWiser's linear Thompson sampling with alpha = .25, trained in batches."""

    def __init__(self, n_arms: int, seed: int) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        self.mab = MAB(list(range(n_arms)), LearningPolicy.LinTS(alpha=0.25), seed=seed)
        self.n_arms, self.trained = n_arms, False
        self.rng = np.random.default_rng(seed)

    def choose(self, x: np.ndarray) -> np.ndarray:
        if not self.trained:
            return self.rng.integers(self.n_arms, size=len(x))
        return np.atleast_1d(np.asarray(self.mab.predict(x)))

    def learn(self, x: np.ndarray, arms: np.ndarray, clicks: np.ndarray) -> None:
        if len(x):
            (self.mab.partial_fit if self.trained else self.mab.fit)(arms, clicks, x)
            self.trained = True


class SquareCB:
    """Vowpal Wabbit's cb_explore_adf with squarecb; contact crossed with arm."""

    def __init__(self, n_arms: int, seed: int) -> None:
        from vowpalwabbit import Workspace

        self.vw = Workspace(f"--cb_explore_adf --squarecb -q CA --quiet --random_seed {seed}")
        self.n_arms = n_arms
        self.rng = np.random.default_rng(seed)
        self.probability: list[float] = []
        self.learned = 0

    def _text(self, x: np.ndarray, label: str = "", arm: int = -1) -> list[str]:
        shared = "shared |C " + " ".join(f"f{i}:{value:.5g}" for i, value in enumerate(x))
        return [shared, *(f"{label if k == arm else ''} |A a={k}" for k in range(self.n_arms))]

    def choose(self, x: np.ndarray) -> np.ndarray:
        arms = np.empty(len(x), dtype=int)
        for i, row in enumerate(x):
            pmf = np.asarray(self.vw.predict(self._text(row)), dtype=float)
            arms[i] = self.rng.choice(self.n_arms, p=pmf / pmf.sum())
            self.probability.append(float(pmf[arms[i]]))
        return arms

    def learn(self, x: np.ndarray, arms: np.ndarray, clicks: np.ndarray) -> None:
        for row, arm, click in zip(x, arms.tolist(), clicks.tolist(), strict=True):
            label = f"{arm}:{-click:g}:{self.probability[self.learned]:.6g}"
            self.vw.learn(self._text(row, label, arm))
            self.learned += 1


RIVALS = {"mabwiser_lin_ts_.25": LinTS, "vw_squarecb": SquareCB}


def chosen_by(rival: Any, world: Any, batch: int, delay: int) -> np.ndarray:
    """The arm chosen in each round, batches with a frozen state."""
    x, rates, draws = world["contexts"].astype(np.float64), world["rates"], world["draws"]
    chosen, known = np.empty(len(x), dtype=int), 0
    for start in range(0, len(x), batch):
        rows = np.arange(known, max(known, start - delay))
        known += len(rows)
        rival.learn(x[rows], chosen[rows], (draws[rows] < rates[rows, chosen[rows]]).astype(float))
        chosen[start : start + batch] = rival.choose(x[start : start + batch])
    return chosen


def main(path: str, n_speed: int) -> dict[str, Any]:
    """Chosen arms of every rival beside the world's file, and decisions a second of the trained ones in one batch."""
    warnings.simplefilter("ignore")
    world = np.load(path)
    versions = {name: importlib.metadata.version(name) for name in ("mabwiser", "vowpalwabbit", "numpy")}
    report: dict[str, Any] = {"versions": versions}
    for name, make in RIVALS.items():
        rival = make(world["rates"].shape[1], int(world["seed"]))
        began = time.perf_counter()
        chosen = chosen_by(rival, world, int(world["batch"]), int(world["delay"]))
        seconds = time.perf_counter() - began
        speed = {}
        if n_speed:
            x = np.resize(world["contexts"], (n_speed, world["contexts"].shape[1])).astype(np.float64)
            began = time.perf_counter()
            rival.choose(x)
            speed = {"decisions_per_second": round(n_speed / (time.perf_counter() - began))}
        np.save(f"{path}.{name}.npy", chosen)
        report[name] = {"seconds": round(seconds, 1), **speed}
    return report


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
