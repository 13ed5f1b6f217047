"""How much of what the best choice would earn the linear policy captures, beside MABWiser and Vowpal Wabbit.

The rivals run in an environment of their own (`make rivals`), which ``KAIROS_RIVALS_PYTHON`` or ``.venv-rivals``
names. All meet the same contacts and the same luck, in batches of 100 with a frozen state. The comparison favours us:
our defaults were chosen in these worlds, the rivals run on those of their libraries. Captured: the share of the way
from the random choice to the oracle, in expected clicks. ``bounds`` says of each what is held and whether it is.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.bench_decisions import decided, linear_statistics
from tests.benchmarks.measuring import ONE_THREAD, child, peak_rss_mb
from training.contextual_worlds import choose_in_turn, linear_world, round_delay
from training.policies import BetaBernoulliThompson, LinearThompson

ROOT = Path(__file__).parents[2]
SEEDS, BATCH, SPEED_ROUNDS = (0, 1, 2), 100, 20_000
WORLDS = {"base": 0, "delay": 5_000}
#: The linear policy's mean captured share leads a rival's by more than: within 2 points of MABWiser, above VW squarecb.
LEAST_LEAD = {"mabwiser_lin_ts_.25": -0.02, "vw_squarecb": 0.0}


def run() -> dict[str, Any]:
    """Captured shares by world and seed, seconds of a run, decisions a second in one batch."""
    report: dict[str, Any] = {"rivals": _rivals(), "captured": {}, "seconds_of_50k_rounds": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, delay in WORLDS.items():
            captured: dict[str, list[float]] = {}
            for seed in SEEDS:
                world = linear_world(seed)
                lines = {
                    "linear": LinearThompson(floor=0.0, delay=round_delay(delay)),
                    "thompson_without_context": BetaBernoulliThompson(floor=0.0, delay=round_delay(delay)),
                }
                for label, policy in lines.items():
                    began = time.perf_counter()
                    chosen = choose_in_turn(policy, world, batch=BATCH, delay_rounds=delay, seed=seed)
                    report["seconds_of_50k_rounds"].setdefault(label, round(time.perf_counter() - began, 1))
                    captured.setdefault(label, []).append(world.captured(chosen))
                best = np.full(len(world.rates), world.best_fixed())
                captured.setdefault("best_fixed_arm", []).append(world.captured(best))
                if _python().exists():
                    path = Path(folder) / f"{name}-{seed}.npz"
                    np.savez(
                        path,
                        contexts=world.contexts,
                        rates=world.rates,
                        draws=world.draws,
                        seed=seed,
                        batch=BATCH,
                        delay=delay,
                    )
                    is_first = name == "base" and seed == SEEDS[0]
                    rounds = str(SPEED_ROUNDS if is_first else 0)
                    rivals = child("rival_bandits", str(path), rounds, python=str(_python()), **ONE_THREAD)
                    if is_first:
                        report["rivals"] |= rivals
                    for label in rivals:
                        if label != "versions":
                            theirs = np.load(f"{path}.{label}.npy")
                            captured.setdefault(label, []).append(world.captured(theirs))
            report["captured"][name] = {
                label: {"mean": round(float(np.mean(shares)), 4), "seeds": np.round(shares, 4).tolist()}
                for label, shares in captured.items()
            }
    report["bounds"] = {name: _bounds(of) for name, of in report["captured"].items()}
    rng = np.random.default_rng(0)
    allocation = LinearThompson().allocate(linear_statistics(rng))
    contexts = rng.standard_normal((SPEED_ROUNDS, 30), dtype=np.float32)
    names = [f"send:{i}" for i in range(SPEED_ROUNDS)]
    decided(allocation, names[:1], contexts[:1])
    began = time.perf_counter()
    decided(allocation, names, contexts)
    report["linear_decisions_per_second"] = round(SPEED_ROUNDS / (time.perf_counter() - began))
    return report | {"peak_rss_mb": peak_rss_mb()}


def _bounds(captured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How far the linear policy leads each rival that ran, beside what the lead must exceed."""
    leads = {rival: captured["linear"]["mean"] - captured[rival]["mean"] for rival in LEAST_LEAD if rival in captured}
    return {
        rival: {"lead": round(lead, 4), "bound": LEAST_LEAD[rival], "within": bool(lead > LEAST_LEAD[rival])}
        for rival, lead in leads.items()
    }


def _python() -> Path:
    return Path(os.environ.get("KAIROS_RIVALS_PYTHON") or ROOT / ".venv-rivals" / "bin" / "python")


def _rivals() -> dict[str, Any]:
    if _python().exists():
        return {"installed": True}
    return {"installed": False, "how": "`make rivals` makes .venv-rivals with MABWiser and Vowpal Wabbit"}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
