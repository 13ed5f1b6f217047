"""The order curve: coherent for everybody, inverted exactly, and right about dates on real orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.events import EventColumns
from features.labels import _orders
from features.tables import to_micros
from features.views import DEFAULT_VIEWS
from training import conversion
from training.bgnbd import BGNBD
from training.datasets import DAY_MICROS, log_span
from training.gamma_gamma import GammaGamma
from training.order_curve import OrderCurve
from training.runs import _rows, define, snapshot_instants
from training.study import Study

CDNOW = BGNBD(r=0.243, alpha=30.9, a=0.793, b=2.426)
CURVE = OrderCurve(30, (0, 1, 2, 3), CDNOW, GammaGamma(p=6.25, q=3.74, v=1544.0))

people = st.tuples(
    st.integers(0, 60),  # order days
    st.floats(0, 900),  # days since the last
    st.floats(0, 900),  # days from the first to the last
    st.floats(-12, 12),  # log-odds of an order within 30 days
    st.floats(100, 100_000),  # money of a day with an order
)


def _vector(person: tuple[int, float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    days, last, span, log_odds, money = person
    if days == 0:
        return np.array([[0.0, np.nan, np.nan, 0.0]]), np.array([log_odds])
    first = last + (span if days > 1 else 0.0)
    return np.array([[float(days), last, first, days * money]]), np.array([log_odds])


@given(people)
@settings(max_examples=300, deadline=None)
def test_chances_rise_with_the_horizon_and_pass_through_the_anchor(person) -> None:
    """P(7) ≤ P(14) ≤ P(30) ≤ P(90) ≤ P(365) for anybody, and P(30) is what the rung said."""
    X, z = _vector(person)
    chances = [float(CURVE.probability(X, z, h)[0]) for h in (7, 14, 30, 90, 365)]

    assert all(0 <= a <= b <= 1 for a, b in itertools.pairwise(chances))
    assert chances[2] == pytest.approx(1 / (1 + np.exp(-z[0])), rel=1e-9)
    assert float(CURVE.expected_orders(X, z, 90)[0]) >= chances[3] * (1 - 1e-9)
    assert float(CURVE.expected_value(X, z, 90)[0]) > 0


@given(people, st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=300, deadline=None)
def test_a_date_is_where_the_chance_reaches_its_quantile(person, quantile) -> None:
    """Inverting the curve and asking it again gives the quantile back; infinity means that it never gets there."""
    X, z = _vector(person)
    days = float(CURVE.next_order_days(X, z, quantile)[0])

    if np.isfinite(days) and days > 1e-6:
        assert float(CURVE.probability(X, z, days)[0]) == pytest.approx(quantile, rel=1e-6)
    elif np.isinf(days):
        assert float(CURVE.probability(X, z, 3650)[0]) <= quantile + 1e-9


def test_without_repeat_buyers_everybodys_hazard_is_constant() -> None:
    """Where BG/NBD cannot be fitted, twice the days are twice the hazard."""
    plain = OrderCurve(30, (0, 1, 2, 3))
    X, z = np.array([[1.0, 5.0, 5.0, 100.0]]), np.array([0.3])

    assert plain.hazard(X, z, 60)[0] == pytest.approx(2 * plain.hazard(X, z, 30)[0])
    assert np.isnan(plain.expected_value(X, z, 30)[0])


@pytest.mark.data
def test_the_interval_of_the_next_date_covers_what_it_says_on_real_orders(retail_lake, end_of_day) -> None:
    """Online Retail: 80 % intervals told on 2011-05-31 and 06-30 cover 76–84 % of the next orders.

    Who is still silent when the log ends is censored: coverage by Kaplan–Meier on the probability at which each order
    came. On a later cut-off too few days are seen to tell the upper ends.
    """
    end = to_micros(end_of_day("2011-08-31"))
    columns = EventColumns.concat([retail_lake.read_bucket(b) for b in range(retail_lake.buckets)])
    told = _orders(columns)
    stands = told.cancelled_from > end
    keys, at = told.orders.contact_key[stands], told.orders.occurred_at[stands]
    for date in ("2011-05-31", "2011-06-30"):
        cutoff = to_micros(end_of_day(date))
        asked, _ = define("conversion", log_span(retail_lake, cutoff), end, 30)
        grid = snapshot_instants(cutoff, log_span(retail_lake, cutoff).first, 30)
        rows, _ = _rows(retail_lake, asked, 30, grid, grid, 1, None)
        fitted = Study(asked, rows, rows, 30, cutoff, DEFAULT_VIEWS).fit(cutoff)
        mine = rows.at(cutoff)
        later = at >= cutoff
        order = np.lexsort((at[later], keys[later]))
        first_key, place = np.unique(keys[later][order], return_index=True)
        waited = np.full(len(mine), np.inf)
        known = np.isin(mine.contact_key, first_key)
        waited[known] = (
            at[later][order][place[np.searchsorted(first_key, mine.contact_key[known])]] - cutoff
        ) / DAY_MICROS
        seen = (end - cutoff) / DAY_MICROS
        z = fitted.estimator.log_odds(mine.X)
        assert fitted.curve is not None
        came_at = np.array(
            [
                fitted.curve.probability(mine.X[i : i + 1], z[i : i + 1], min(waited[i], seen))[0]
                for i in range(len(mine))
            ]
        )
        left = _kaplan_meier(came_at, waited <= seen, (0.1, 0.9))

        assert conversion.POPULATION.contains(mine.X, DEFAULT_VIEWS.names).all()
        assert 0.76 <= left[0] - left[1] <= 0.84, date


def _kaplan_meier(values: np.ndarray, happened: np.ndarray, at: tuple[float, ...]) -> list[float]:
    """Share still without the event at each of the ascending values (Kaplan & Meier 1958)."""
    order = np.argsort(values, kind="stable")
    values, happened = values[order], happened[order]
    steps = np.where(happened, 1 - 1 / np.arange(len(values), 0, -1), 1.0)
    curve = np.concatenate([[1.0], np.cumprod(steps)])
    return [float(curve[np.searchsorted(values, one, side="right")]) for one in at]
