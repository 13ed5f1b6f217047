"""Reasons add up to the score, speak of values and never of causes."""

from __future__ import annotations

import numpy as np
import pytest

from features.views import DEFAULT_VIEWS, ORDERS, FeatureView, ViewSet
from training.estimators import RUNGS, Estimator, OneClass, RidgeLogistic
from training.explain import SENTENCES, explain, reasons


def _data(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    X = np.floor(rng.exponential(15, (n, len(DEFAULT_VIEWS.names))))
    X[rng.random(X.shape) < 0.15] = np.nan
    recency = np.nan_to_num(X[:, DEFAULT_VIEWS.names.index("days_since_order")], nan=60)
    return X, (rng.random(n) < 1 / (1 + np.exp((recency - 12) / 6))).astype(np.int8)


@pytest.fixture(scope="module", params=list(RUNGS))
def estimator(request) -> Estimator:
    """Each rung, fitted."""
    return RUNGS[request.param].fit(*_data(), seed=1)


def test_base_and_contributions_add_up_to_the_raw_score(estimator) -> None:
    """For every row, base + the sum over families = log-odds."""
    X, _ = _data()
    explained = explain(estimator, X, DEFAULT_VIEWS)

    np.testing.assert_allclose(
        explained.base + explained.contributions.sum(axis=1), estimator.log_odds(X), atol=1e-9, rtol=0
    )


def test_at_most_three_reasons_up_and_three_down_weightiest_first(estimator) -> None:
    """Each direction is sorted by weight and holds only its sign; a family speaks once."""
    for row in reasons(estimator, _data()[0][:50], DEFAULT_VIEWS):
        for direction, sign in (("up", 1), ("down", -1)):
            weights = [sign * reason.contribution for reason in row if reason.direction == direction]
            assert len(weights) <= 3
            assert weights == sorted(weights, reverse=True)
            assert all(weight > 0 for weight in weights)
        families = [reason.family for reason in row]
        assert len(families) == len(set(families))


def test_the_family_that_decides_is_named_first(estimator) -> None:
    """Where recency alone makes the outcome, a fresh buyer's first reason up is recency."""
    X, _ = _data()
    fresh = np.nanmedian(X, axis=0)[None]
    fresh[0, DEFAULT_VIEWS.names.index("days_since_order")] = 0

    up = [reason for reason in reasons(estimator, fresh, DEFAULT_VIEWS)[0] if reason.direction == "up"]

    assert up[0].family == "recency"
    assert up[0].says.startswith("last order 0 d ago")
    assert up[0].values["days_since_order"] == 0.0


def test_sentences_say_values_and_no_causes() -> None:
    """“last order 74 d ago, usual gap 21 d”; every declared family has its words, none of them causal."""
    values = dict.fromkeys(DEFAULT_VIEWS.names, 3.0) | {"days_since_order": 74.2, "order_gap": 21.4}

    assert SENTENCES["regularity"](values) == "last order 74 d ago, usual gap 21 d"
    assert {view.family for view in DEFAULT_VIEWS.views} <= set(SENTENCES)
    for say in SENTENCES.values():
        for known in (values, dict.fromkeys(DEFAULT_VIEWS.names, float("nan"))):
            said = say(known) or ""
            assert not any(word in said for word in ("because", "cause", "due to", "leads", "nan"))


def test_a_family_of_ones_own_is_said_by_its_columns() -> None:
    """A view that a user adds under a new family is explained by column and value."""
    views = ViewSet("own", (FeatureView("visits", "count", ORDERS, (30, None), "showroom", "visits", "Visits."),))
    rng = np.random.default_rng(0)
    X = rng.poisson(5, (300, 2)).astype(float)
    fitted = RidgeLogistic.fit(X, (X[:, 0] > 5).astype(int))

    said = reasons(fitted, np.array([[12.0, 3.0]]), views)[0][0]

    assert said.family == "showroom"
    assert "visits_30d 12" in said.says


def test_one_class_is_refused() -> None:
    """There is nothing to tell apart in outcomes of one kind."""
    X, _ = _data(50)
    for rung in RUNGS.values():
        with pytest.raises(OneClass, match="0 of 50"):
            rung.fit(X, np.zeros(50))


def test_a_column_never_seen_to_vary_has_no_say() -> None:
    """What was constant in training cannot move a score, whatever it holds later."""
    X, y = _data()
    X[:, 3] = 7.0
    fitted = RidgeLogistic.fit(X, y)
    moved = X.copy()
    moved[:, 3] = 1e6

    np.testing.assert_array_equal(fitted.log_odds(moved), fitted.log_odds(X))


def test_an_extreme_value_cannot_swing_a_linear_score_without_bound() -> None:
    """A wholesaler's order a million times the usual moves no further than five standard deviations."""
    X, y = _data()
    fitted = RidgeLogistic.fit(X, y)
    huge, vast = X[:1].copy(), X[:1].copy()
    huge[:], vast[:] = 1e9, 1e15

    assert fitted.log_odds(huge) == pytest.approx(fitted.log_odds(vast))
