"""What a model costs: scoring a million contacts beside the bare booster, one answer, and a fit on 1.2 M rows.

The served model is the highest rung that real shops get: LightGBM, ridge logistic and BG/NBD blended, with the order
curve behind it, once as ``conversion`` and once as ``churn``. The rival is ``Booster.predict`` on the same matrix with
as many threads (one): what no server around it can undercut. Outcomes are drawn from the vectors: trees grow deep.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from features.events import DAY_MICROS
from features.lake import Lake
from features.offline import historical_features
from features.views import DEFAULT_VIEWS
from tests.benchmarks.measuring import latency, peak_rss_mb
from tests.benchmarks.question import spine
from tests.benchmarks.synthetic_log import START, write_lake
from training import churn, conversion
from training.bgnbd import BGNBD
from training.calibration import Calibration, fit_platt
from training.estimators import RidgeLogistic, SmallLightGBM
from training.gamma_gamma import GammaGamma
from training.order_curve import OrderCurve
from training.rungs import Blend, BuyingHistory, history, history_columns
from training.scoring import score
from training.serving import ModelCard, ServedOutcome, load_model, write_model

CONTACTS, EVENTS = 1_000_000, 10_000_000
#: Rows of the fit whose time is told.
FIT_ROWS = 1_200_000
NOW = START + 365 * DAY_MICROS


def run() -> dict[str, Any]:
    """CPU seconds of scoring and their ratios, latency of one answer, seconds of the fit."""
    names = DEFAULT_VIEWS.names
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as scratch:
        folder = Path(scratch)
        write_lake(f"{scratch}/lake", CONTACTS, EVENTS)
        lake = Lake(f"{scratch}/lake")
        asked = spine(np.arange(1, CONTACTS + 1), np.array([NOW]))
        X = historical_features(lake, asked, DEFAULT_VIEWS).X
        rng = np.random.default_rng(0)
        recency = np.nan_to_num(X[:, names.index("days_since_order")], nan=300.0)
        chance = 1 / (1 + np.exp(1 + recency / 60 - 0.05 * X[:, names.index("pages_30d")]))
        y = (rng.random(len(X)) < chance).astype(np.int8)
        models = _write(folder, X, y)
        booster = models["conversion"].estimator.parts[2][0]._booster  # type: ignore[attr-defined]
        bare = _cpu(lambda: booster.predict(X, raw_score=True, num_threads=1))
        predicting = {name: _cpu(lambda model=model: model.predict(X)) for name, model in models.items()}
        when = datetime.fromtimestamp(NOW / 1e6, UTC)
        scoring = {name: _cpu(lambda model=model: score(lake, model, when)) for name, model in models.items()}
        served, one = models["conversion"], [X[i : i + 1] for i in rng.integers(0, len(X), 3_000)]
        answers = {
            "bare_booster": latency([lambda x=x: booster.predict(x, num_threads=1) for x in one]),
            "probability": latency([lambda x=x: served.predict(x) for x in one]),
            "probability_reasons_outlook": latency(
                [lambda x=x: (served.predict(x), served.reasons(x), served.outlook(x)) for x in one[:1_000]]
            ),
        }
        before = peak_rss_mb()
        rows = rng.integers(0, len(X), FIT_ROWS)
        many, of = X[rows], y[rows]
        began, cpu = time.perf_counter(), time.process_time()
        fitted = SmallLightGBM.fit(many, of)
        fit_platt(fitted.log_odds(many[:200_000]), of[:200_000])
        fit = {
            "rows": FIT_ROWS,
            "columns": len(names),
            "wall_seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_rss_mb": peak_rss_mb(),
            "peak_rss_before_mb": before,
        }
    both = sum(predicting.values()) / (2 * bare)
    return {
        "contacts": CONTACTS,
        "events": EVENTS,
        "booster_alone_cpu_seconds": round(bare, 2),
        "predicting_cpu_seconds": {name: round(value, 2) for name, value in predicting.items()},
        "predicting_over_booster": round(both, 2),
        "lake_to_scores_cpu_seconds": {name: round(value, 2) for name, value in scoring.items()},
        "lake_to_scores_over_booster": round(sum(scoring.values()) / (2 * bare), 2),
        "one_answer": answers,
        "lightgbm_fit_with_calibration": fit,
    }


def _write(folder: Path, X: np.ndarray, y: np.ndarray) -> dict[str, ServedOutcome]:
    names, some = DEFAULT_VIEWS.names, slice(0, 100_000)
    columns = history_columns(names)
    bought = X[some][X[some, columns[0]] >= 1]
    bgnbd = BGNBD.fit(*history(bought, columns))
    days, revenue = bought[:, columns[0]], bought[:, names.index("revenue_ever")]
    blend = Blend(
        "blend",
        tuple(
            (estimator, Calibration(0.9, -0.1))
            for estimator in (
                BuyingHistory.bgnbd(bgnbd, bought, columns, 30),
                RidgeLogistic.fit(X[some], y[some]),
                SmallLightGBM.fit(X[some], y[some]),
            )
        ),
    )
    spent = (days >= 2) & (revenue > 0)
    values = GammaGamma.fit(days[spent], revenue[spent] / days[spent])
    curve = OrderCurve(30, (*columns, names.index("revenue_ever")), bgnbd, values)
    models = {}
    for name, population, days_ahead in (
        ("conversion", conversion.POPULATION, 30),
        ("churn", churn.population(60), 60),
    ):
        card = ModelCard(
            name, "outcome", "blend", "", "default", DEFAULT_VIEWS.version, days_ahead, "", "", "", {}, population,
            happens=name == "conversion", anchor_days=30,
        )  # fmt: skip
        write_model(folder / name, card, DEFAULT_VIEWS, blend, Calibration(), X[some], None, curve)
        model = load_model(folder / name)
        assert isinstance(model, ServedOutcome)
        models[name] = model
    return models


def _cpu(work: Callable[[], object], times: int = 2) -> float:
    """User and system seconds of the cheapest of a few runs."""
    best = float("inf")
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF)
        work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
