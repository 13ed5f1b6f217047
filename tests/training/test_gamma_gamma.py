"""Gamma-Gamma finds the published parameters and draws a mean towards that of all, the fewer orders the more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.bgnbd import BGNBD, CannotFit
from training.customer_value import expected_revenue
from training.gamma_gamma import GammaGamma

CDNOW = GammaGamma(p=6.25, q=3.74, v=15.44)

models = st.builds(GammaGamma, p=st.floats(0.1, 50), q=st.floats(1.05, 30), v=st.floats(0.1, 1000))


@pytest.mark.data
def test_cdnow_gives_the_published_parameters(data_folder: Path) -> None:
    """Fader & Hardie (2013): p 6.25, q 3.74, v 15.44 on the 946 customers who bought again by 1997-09-30."""
    orders = pd.read_csv(data_folder / "cdnow_sample_2357.csv.gz")
    orders = orders[orders["date"] <= 19970930]
    days = orders.groupby(["customer_id", "date"], as_index=False)["dollar_value"].sum()
    again = days[days.duplicated("customer_id")]  # the file is in order of date: all but each first day
    repeat = again.groupby("customer_id")["dollar_value"].agg(["size", "mean"])
    fitted = GammaGamma.fit(repeat["size"], repeat["mean"])

    assert fitted.n_customers == 946
    assert fitted.p == pytest.approx(6.25, abs=0.01)
    assert fitted.q == pytest.approx(3.74, abs=0.01)
    assert fitted.v == pytest.approx(15.44, abs=0.02)


def _spenders(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, n).astype(float)
    rate = rng.gamma(CDNOW.q, 1 / CDNOW.v, n)
    return x, np.where(x > 0, rng.gamma(np.maximum(CDNOW.p * x, 1e-3)) / np.maximum(x, 1) / rate, np.nan)


def test_a_fit_finds_the_parameters_that_made_the_data() -> None:
    """Thirty thousand simulated customers give back p, q and v; those without an order are left out."""
    x, mean = _spenders(30_000, 0)
    fitted = GammaGamma.fit(x, mean)

    assert fitted.n_customers == (x > 0).sum()
    for name in "pqv":
        assert getattr(fitted, name) == pytest.approx(getattr(CDNOW, name), rel=0.06), name


def test_another_currency_changes_nothing_but_the_unit() -> None:
    """Cents instead of euros scale v and every expectation by a hundred."""
    x, mean = _spenders(500, 1)
    euros, cents = GammaGamma.fit(x, mean), GammaGamma.fit(x, 100 * mean)

    assert cents.p == pytest.approx(euros.p, rel=1e-4)
    np.testing.assert_allclose(cents.expected_value(x, 100 * mean), 100 * euros.expected_value(x, mean), rtol=1e-5)


def test_equal_rows_and_weights_are_the_same_data() -> None:
    """A row of weight three is three customers."""
    x, mean = _spenders(300, 2)
    weight = np.arange(300) % 4
    weighted = GammaGamma.fit(x, mean, weight=weight)
    repeated = GammaGamma.fit(np.repeat(x, weight), np.repeat(mean, weight))

    assert weighted.log_likelihood == pytest.approx(repeated.log_likelihood, rel=1e-9)
    assert weighted.n_customers == repeated.n_customers


@given(model=models, x=st.integers(1, 500), mean=st.floats(0.01, 1e5))
def test_an_expectation_lies_between_ones_own_mean_and_everybodys(model: GammaGamma, x: int, mean: float) -> None:
    """It is a weighted mean of the two, and grows with one's own."""
    everybody, own, more = model.expected_value([0, x, x], [np.nan, mean, 1.01 * mean])

    assert min(everybody, mean) * (1 - 1e-9) <= own <= max(everybody, mean) * (1 + 1e-9)
    assert more > own


@given(model=models, mean=st.floats(0.01, 1e5))
def test_more_orders_weigh_more(model: GammaGamma, mean: float) -> None:
    """The distance to one's own mean shrinks with the count of orders."""
    distance = np.abs(model.expected_value([1, 2, 10, 1000], [mean] * 4) - mean)

    assert (np.diff(distance) <= 1e-9 * mean).all()


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.tuples(st.integers(0, 50), st.floats(0.01, 1e4)), min_size=1, max_size=12),
    unit=st.sampled_from([1e-3, 1.0, 1e6]),
)
def test_any_data_give_a_usable_fit_or_a_remedy(rows: list[tuple[int, float]], unit: float) -> None:
    """Few or odd customers: finite values above 0, or CannotFit where values have no spread."""
    x, mean = np.array(rows, dtype=float).T
    mean = mean * unit
    try:
        fitted = GammaGamma.fit(x, mean)
    except CannotFit:
        bought = mean[x > 0]
        assert len(bought) == 0 or bought.max() <= bought.min() * (1 + 1e-8)
        return
    values = fitted.expected_value(x, mean)

    assert np.isfinite(values).all()
    assert (values > 0).all()


def test_what_cannot_be_fitted_says_what_to_do() -> None:
    """Nobody, no spread, an order of nothing: each message ends in a remedy."""
    with pytest.raises(CannotFit, match="use the mean value of orders"):
        GammaGamma.fit([0, 0], [np.nan, np.nan])
    with pytest.raises(CannotFit, match="take it as everybody's"):
        GammaGamma.fit([1, 3], [9.0, 9.0])
    with pytest.raises(ValueError, match="customer 1 has 2 orders of 0 in mean"):
        GammaGamma.fit([1, 2], [9.0, 0.0])
    with pytest.raises(ValueError, match=r"q is 0\.9"):
        GammaGamma(p=1, q=0.9, v=1)


def test_a_model_survives_json() -> None:
    """The dictionary holds all of it."""
    fitted = GammaGamma.fit(*_spenders(200, 3))

    assert GammaGamma.from_dict(fitted.to_dict()) == fitted


def test_expected_revenue_is_purchases_times_value() -> None:
    """One-time buyers get everybody's value; a longer horizon brings more."""
    buys = BGNBD(r=0.243, alpha=30.9, a=0.793, b=2.426)
    x, t_x, age = np.array([0, 3]), np.array([0, 200]), np.array([100, 250])
    year = expected_revenue(buys, CDNOW, x, t_x, age, [np.nan, 50.0])
    month = expected_revenue(buys, CDNOW, x, t_x, age, [np.nan, 50.0], horizon=30.0)

    np.testing.assert_allclose(
        year, buys.expected_purchases(x, t_x, age, 365.0) * CDNOW.expected_value(x, [np.nan, 50.0])
    )
    assert (month > 0).all()
    assert (month < year).all()
