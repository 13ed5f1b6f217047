"""Live prediction in process, from a vector and from the log, and scoring of all contacts against LightGBM alone."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import insert, update

from features.lake import Lake
from features.online import online_features
from features.tables import CounterRow, EventRow, to_micros
from features.views import DEFAULT_VIEWS
from features.vocabulary import EMAIL_OPENED, EMAIL_SENT, ORDER_COMPLETED, PAGE
from service.database import Database
from training.calibration import Calibration
from training.estimators import RUNGS, SmallLightGBM
from training.scoring import score
from training.serving import ModelCard, load_model, write_model

CONTACTS, EVENTS_PER_CONTACT, CALLS = 20_000, 30, 2_000
NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)


def _filled(database: Database, rng: np.random.Generator) -> None:
    """A log of made-up events, written past ``append``: what is measured here is reading."""
    n = CONTACTS * EVENTS_PER_CONTACT
    kinds = np.array([ORDER_COMPLETED, PAGE, PAGE, EMAIL_SENT, EMAIL_OPENED])[rng.integers(0, 5, n)]
    at = to_micros(NOW - timedelta(days=1)) - rng.integers(0, 400 * 86_400_000_000, n)
    rows = [
        {
            "contact_key": i % CONTACTS + 1,
            "occurred_at": when,
            "seq": i + 1,
            "received_at": when,
            "kind": kind,
            "message_id": f"bench/{i}",
            "ref": None,
            "value_minor": 1000 if kind == ORDER_COMPLETED else None,
            "hour_of_week": when // 3_600_000_000 % 168,
            "human_ppm": 900_000 if kind == EMAIL_OPENED else None,
            "is_repeat": False,
            "is_imported": True,
            "identity": "user:bench",
            "properties": None,
        }
        for i, (kind, when) in enumerate(zip(kinds.tolist(), at.tolist(), strict=True))
    ]
    with database.writing() as session:
        session.connection().execute(insert(EventRow), rows)
        session.execute(update(CounterRow).where(CounterRow.name == "event_seq").values(value=n))


def _latency_ms(call: Callable[[int], object], calls: int = CALLS) -> dict[str, float]:
    call(0)
    times = np.empty(calls)
    for i in range(calls):
        begin = time.perf_counter()
        call(i)
        times[i] = time.perf_counter() - begin
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1000
    return {"p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4)}


def run() -> dict[str, object]:
    """Latency of one prediction in four settings, and rows a second of scoring against the booster alone."""
    rng = np.random.default_rng(0)
    result: dict[str, object] = {"contacts": CONTACTS, "events": CONTACTS * EVENTS_PER_CONTACT}
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as scratch:
        folder = Path(scratch)
        database = Database(f"sqlite:///{folder / 'kairos.db'}")
        database.upgrade()
        _filled(database, rng)
        lake = Lake(str(folder / "lake"))
        with database.reading() as session:
            lake.sync(session)
            X = online_features(session, range(1, CONTACTS + 1), NOW, DEFAULT_VIEWS)
        y = (rng.random(CONTACTS) < 1 / (1 + np.exp(X[:, 0] / 20))).astype(np.int8)
        models = {}
        for rung, estimator in RUNGS.items():
            card = ModelCard(
                "conversion", "outcome", rung, "", "default", DEFAULT_VIEWS.version, 30, "an order", "", "", {}
            )
            write_model(folder / rung, card, DEFAULT_VIEWS, estimator.fit(X, y), Calibration(), X)
            models[rung] = load_model(folder / rung)
            result[f"{rung}_vector_given"] = _latency_ms(lambda i, rung=rung: models[rung].predict(X[i : i + 1]))
        served = models[SmallLightGBM.rung]
        keys = rng.integers(1, CONTACTS + 1, CALLS).tolist()

        def live(i: int) -> object:
            with database.reading() as session:
                return served.predict(online_features(session, [keys[i]], NOW, DEFAULT_VIEWS))

        result["lightgbm_from_the_log"] = _latency_ms(live)
        result["lightgbm_reasons"] = _latency_ms(lambda i: served.reasons(X[i : i + 1]), 500)
        booster = served.estimator._booster
        bare = min(_seconds(lambda: booster.predict(X, num_threads=1)) for _ in range(3))
        asked = min(_seconds(lambda: served.predict(X)) for _ in range(3))
        whole = min(_seconds(lambda: score(lake, served, NOW)) for _ in range(2))
        result["rows_per_second"] = {
            "booster_alone": round(CONTACTS / bare),
            "served_model": round(CONTACTS / asked),
            "lake_to_scores": round(CONTACTS / whole),
        }
        database.close()
    result["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return result


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
