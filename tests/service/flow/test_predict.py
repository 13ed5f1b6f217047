"""Laws of predictions: each model sees the views it was trained on."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from features.contacts import resolve
from features.events import NewEvent, append
from features.online import online_features
from features.tables import to_micros
from features.views import DEFAULT_VIEWS, SEND_HOUR_VIEWS, ViewSet
from features.vocabulary import EMAIL_CLICKED, EMAIL_SENT, ORDER_COMPLETED, PAGE
from service.database import Database
from service.flow.predict import predict
from training.calibration import Calibration
from training.estimators import RidgeLogistic
from training.personas import Personas
from training.send_hour import SendHourModel
from training.serving import ModelCard, Serving, stamp_version, write_model

#: The default set of before an edit: the same columns the other way round, so that only their order tells them apart.
OLD_VIEWS = ViewSet("default", DEFAULT_VIEWS.views[::-1])


def _written(folder: Path, name: str, views: ViewSet, now: datetime) -> tuple[int, Path]:
    """Version 1 of a model fitted on noise."""
    random = np.random.default_rng(3)
    X = np.floor(random.exponential(20, (300, len(views.names))))
    outcome = name != "send_hour"
    card = ModelCard(
        name, "outcome" if outcome else "send_hour", "logistic" if outcome else "personal", "a test",
        views.name, views.version, 30 if outcome else None, "", now.isoformat(), now.isoformat(), {},
    )  # fmt: skip
    if outcome:
        write_model(
            folder, card, views, RidgeLogistic.fit(X, X[:, views.names.index("orders_30d")] > 10), Calibration(), X
        )
    else:
        curve = random.uniform(0.1, 0.3, 24)
        personas = Personas(np.ones(1), random.uniform(0.1, 0.3, (2, 1, 24)), np.array([3.0, 1.0]), np.full(2, 5.0))
        hours = SendHourModel("personal", True, 0.2, curve, personas, correction=np.ones(24))
        write_model(folder, card, views, hours, None, X)
    stamp_version(folder, 1)
    return 1, folder


@pytest.fixture
def contacts(database: Database, now: datetime) -> list[int]:
    """Twenty contacts with sixty events each."""
    random = np.random.default_rng(1)
    kinds = (ORDER_COMPLETED, PAGE, EMAIL_SENT, EMAIL_CLICKED)
    with database.writing() as session:
        keys = list(resolve(session, [f"user:{n}" for n in range(20)], now=now).values())
        events = [
            NewEvent(
                key,
                kinds[n % 4],
                to_micros(now - timedelta(hours=int(random.integers(1, 24 * 90)))),
                f"{key}/{n}",
                "user:0",
                ref=str(n // 4),
                value_minor=int(random.integers(100, 9000)),
                human_ppm=1_000_000,
            )
            for key in keys
            for n in range(60)
        ]
        append(session, events, received_at=to_micros(now), imported=True)
    return keys


def test_each_model_gets_vectors_of_its_own_views_computed_once_a_set(
    database: Database, tmp_path: Path, contacts: list[int], now: datetime
):
    """Two models of an old set and the hours: two sets of vectors. One of them on today's set: three, each its own."""
    churn, old, hours, new = (
        _written(tmp_path / f"{name}-{views.version}", name, views, now)
        for name, views in (
            ("churn", OLD_VIEWS),
            ("conversion", OLD_VIEWS),
            ("send_hour", SEND_HOUR_VIEWS),
            ("conversion", DEFAULT_VIEWS),
        )
    )
    answers = []
    for conversion, views in ((old, OLD_VIEWS), (new, DEFAULT_VIEWS)):
        serving, computed = Serving(), []
        serving.refresh({"churn": churn, "conversion": conversion, "send_hour": hours}, now=now, wait=True)
        with database.reading() as session:
            answers.append(
                predict(session, contacts, serving, as_of=now, record=lambda *served, to=computed: to.append(served[2]))
            )
            own = online_features(session, contacts, now, views)
        model = serving.get("conversion")
        assert model is not None
        assert model.view_set.version == views.version
        assert answers[-1].scored["conversion"].probability.tobytes() == model.predict(own).tobytes()
        assert answers[-1].scored["conversion"].probability.std() > 0
        assert sorted(views.version for views in computed) == sorted(
            {OLD_VIEWS.version, SEND_HOUR_VIEWS.version, views.version}
        )
    before, after = answers
    assert after.scored["churn"].probability.tobytes() == before.scored["churn"].probability.tobytes()
    assert before.hours is not None
    assert after.hours is not None
    assert after.hours.probabilities.tobytes() == before.hours.probabilities.tobytes()
