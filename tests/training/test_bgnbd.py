"""BG/NBD finds the published parameters, obeys the laws of its probabilities and never throws without a remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import hyp2f1

from training.bgnbd import BGNBD, CannotFit

CDNOW = BGNBD(r=0.243, alpha=4.414, a=0.793, b=2.426)

parameters = st.builds(
    BGNBD,
    r=st.floats(0.05, 5),
    alpha=st.floats(0.5, 200),
    a=st.floats(0.05, 5),
    b=st.floats(0.3, 20),
)


@st.composite
def customers(draw: st.DrawFn) -> tuple[int, float, float]:
    x = draw(st.integers(0, 200))
    age = draw(st.floats(1, 1500))
    return x, age * draw(st.floats(0.05, 1)) if x else 0.0, age


def _world(n: int, seed: int, *, r: float, alpha: float, a: float, b: float, horizon: float = 0.0):
    """Counts, recencies, ages and purchases in the ``horizon`` after, of customers drawn as the model says."""
    rng = np.random.default_rng(seed)
    age = np.ceil(rng.uniform(20, 400, n))
    rate, leaving = rng.gamma(r, 1 / alpha, n), rng.beta(a, b, n)
    x, t_x, later, now, here = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.arange(n)
    while len(here):
        now[here] += rng.exponential(1 / np.maximum(rate[here], 1e-12))
        past, ahead = here[now[here] <= age[here]], here[(now[here] > age[here]) & (now[here] <= age[here] + horizon)]
        x[past] += 1
        t_x[past] = now[past]
        later[ahead] += 1
        here = np.concatenate([past, ahead])
        here = here[rng.random(len(here)) >= leaving[here]]
    return x, t_x, age, later


@pytest.mark.data
def test_cdnow_gives_the_published_parameters(data_folder: Path) -> None:
    """Fader, Hardie & Lee (2005), table 2: .243, 4.414, .793, 2.426 with log-likelihood −9582.4, in weeks."""
    orders = pd.read_csv(data_folder / "cdnow_sample_2357.csv.gz")
    date = pd.to_datetime(orders["date"].astype(str))
    end = pd.Timestamp("1997-09-30")
    days = date[date <= end].groupby(orders["customer_id"]).agg(["min", "max", "nunique"])
    age, recency = (end - days["min"]).dt.days / 7, (days["max"] - days["min"]).dt.days / 7
    fitted = BGNBD.fit(days["nunique"] - 1, recency, age)

    assert fitted.n_customers == 2357
    assert fitted.r == pytest.approx(0.243, abs=0.001)
    assert fitted.alpha == pytest.approx(4.414, abs=0.002)
    assert fitted.a == pytest.approx(0.793, abs=0.001)
    assert fitted.b == pytest.approx(2.426, abs=0.002)
    assert fitted.log_likelihood == pytest.approx(-9582.4, abs=0.05)


def test_a_fit_finds_the_parameters_that_made_the_data() -> None:
    """Forty thousand simulated customers give back their parameters; the last stretch goes over all of them."""
    truth = {"r": 0.8, "alpha": 40.0, "a": 0.7, "b": 3.0}
    x, t_x, age, _ = _world(40_000, 1, **truth)
    fitted = BGNBD.fit(x, t_x, age)

    for name, value in truth.items():
        assert getattr(fitted, name) == pytest.approx(value, rel=0.12), name


def test_equal_rows_and_weights_are_the_same_data() -> None:
    """A row of weight three is three customers."""
    x, t_x, age, _ = _world(300, 2, r=0.8, alpha=40.0, a=0.7, b=3.0)
    weight = np.arange(300) % 4
    repeated = BGNBD.fit(np.repeat(x, weight), np.repeat(t_x, weight), np.repeat(age, weight))
    weighted = BGNBD.fit(x, t_x, age, weight=weight)

    assert weighted.n_customers == repeated.n_customers
    assert weighted.log_likelihood == pytest.approx(repeated.log_likelihood, rel=1e-9)
    assert weighted.alpha == pytest.approx(repeated.alpha, rel=1e-3)


def test_days_and_weeks_give_the_same_probabilities() -> None:
    """Another unit of time scales alpha and nothing else."""
    x, t_x, age, _ = _world(800, 3, r=0.5, alpha=30.0, a=0.8, b=2.5)
    days, weeks = BGNBD.fit(x, t_x, age), BGNBD.fit(x, t_x / 7, age / 7)

    assert days.alpha == pytest.approx(7 * weeks.alpha, rel=1e-4)
    np.testing.assert_allclose(
        days.probability(x, t_x, age, 30.0), weeks.probability(x, t_x / 7, age / 7, 30.0 / 7), rtol=1e-4
    )
    np.testing.assert_allclose(
        days.expected_purchases(x, t_x, age, 365.0), weeks.expected_purchases(x, t_x / 7, age / 7, 365 / 7), rtol=1e-4
    )


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(customers(), min_size=1, max_size=12),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
    n=st.sampled_from([1, 50]),
)
def test_any_data_give_a_usable_fit_or_a_remedy(rows: list[tuple[int, float, float]], unit: float, n: int) -> None:
    """Few, constant or odd customers: finite probabilities, or CannotFit where none bought again."""
    x, t_x, age = (np.repeat(column, n) for column in np.array(rows, dtype=float).T)
    if (x == 0).all():
        with pytest.raises(CannotFit, match="bought again"):
            BGNBD.fit(x, t_x * unit, age * unit)
        return
    fitted = BGNBD.fit(x, t_x * unit, age * unit)
    chance = fitted.probability(x, t_x * unit, age * unit, unit * 30)

    assert np.isfinite(fitted.log_likelihood)
    assert ((chance >= 0) & (chance <= 1)).all()
    assert np.isfinite(fitted.expected_purchases(x, t_x * unit, age * unit, unit * 30)).all()


def test_what_cannot_be_fitted_says_what_to_do() -> None:
    """No customers, no time: each message ends in a remedy."""
    with pytest.raises(CannotFit, match="once someone has ordered"):
        BGNBD.fit([], [], [])
    with pytest.raises(CannotFit, match="when time has passed"):
        BGNBD.fit([1, 1], [0, 0], [0, 0])
    with pytest.raises(ValueError, match="customer 1 has frequency 1, recency 9, T 8"):
        BGNBD.fit([1, 1], [5, 9], [8, 8])
    with pytest.raises(ValueError, match="ascending"):
        CDNOW.log_survival([1], [5], [8], [30, 7])
    with pytest.raises(ValueError, match="alpha is -1"):
        BGNBD(r=1, alpha=-1, a=1, b=1)


@settings(deadline=None)
@given(model=parameters, customer=customers(), horizon=st.floats(0.5, 400))
def test_probabilities_are_probabilities_and_grow_with_the_horizon(model, customer, horizon: float) -> None:
    """Between 0 and 1, higher for a longer horizon, never above P(alive)."""
    x, t_x, age = customer
    short, long = (model.probability(x, t_x, age, h)[0] for h in (horizon, 1.5 * horizon))
    alive = model.probability_alive(x, t_x, age)[0]

    assert 0 < short <= long <= 1
    assert long <= alive <= 1


@settings(deadline=None)
@given(model=parameters, customer=customers(), horizon=st.floats(0.5, 400))
def test_log_survival_is_the_complement_of_the_probability(model, customer, horizon: float) -> None:
    """Each column is log(1 − probability) at its horizon."""
    horizons = [horizon / 7, horizon, 3 * horizon]
    survival = np.exp(model.log_survival(*customer, horizons))

    expected = [1 - model.probability(*customer, h)[0] for h in horizons]
    np.testing.assert_allclose(survival[0], expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(model=parameters, customer=customers(), share=st.floats(0, 1), horizon=st.floats(0.5, 400))
def test_a_more_recent_purchase_never_makes_the_next_less_likely(model, customer, share: float, horizon: float) -> None:
    """With the same count and age, a later last purchase raises P(alive) and the probability."""
    x, t_x, age = customer
    earlier = t_x * share

    assert model.probability_alive(x, earlier, age) <= model.probability_alive(x, t_x, age)
    assert model.probability(x, earlier, age, horizon) <= model.probability(x, t_x, age, horizon)


@settings(deadline=None)
@given(model=parameters, customer=customers(), horizon=st.floats(0.5, 400))
def test_expected_purchases_grow_with_the_horizon_and_exceed_the_probability(model, customer, horizon: float) -> None:
    """E[Y] is at least P(Y ≥ 1), is 0 at horizon 0, and grows."""
    short, long = (model.expected_purchases(*customer, h)[0] for h in (horizon, 1.5 * horizon))

    assert model.probability(*customer, horizon)[0] <= short * (1 + 1e-9) < long
    assert model.expected_purchases(*customer, 0.0)[0] == 0


@pytest.mark.parametrize(("x", "t_x", "age"), [(0, 0.0, 20.0), (2, 30.43, 38.86), (25, 30.0, 38.0)])
@pytest.mark.parametrize("horizon", [1.0, 39.0, 400.0])
def test_expected_purchases_are_those_of_the_paper(x: int, t_x: float, age: float, horizon: float) -> None:
    """Equation 10 of Fader, Hardie & Lee (2005), where its hypergeometric function behaves."""
    r, alpha, a, b = CDNOW.r, CDNOW.alpha, CDNOW.a, CDNOW.b
    total = alpha + age + horizon
    series = hyp2f1(r + x, b + x, a + b + x - 1, horizon / total)
    gain = 1 - ((alpha + age) / total) ** (r + x) * series
    gone = (x > 0) * a / max(b + x - 1, 1e-9) * ((alpha + age) / (alpha + t_x)) ** (r + x)

    assert CDNOW.expected_purchases(x, t_x, age, horizon)[0] == pytest.approx(
        (a + b + x - 1) / (a - 1) * gain / (1 + gone), rel=1e-8
    )


def test_expected_purchases_and_probabilities_are_those_that_come() -> None:
    """In simulated customers, sums by count of repeat purchases agree with what follows; a = 1 is no special case."""
    model = BGNBD(r=0.8, alpha=40.0, a=1.0, b=3.0)
    x, t_x, age, later = _world(60_000, 4, r=0.8, alpha=40.0, a=1.0, b=3.0, horizon=90.0)
    expected, chance = model.expected_purchases(x, t_x, age, 90.0), model.probability(x, t_x, age, 90.0)

    for group in (x == 0, (x > 0) & (x < 3), x >= 3):
        assert expected[group].sum() == pytest.approx(later[group].sum(), rel=0.04)
        assert chance[group].sum() == pytest.approx((later[group] > 0).sum(), rel=0.04)


def test_a_frequent_buyer_and_a_far_horizon_stay_finite() -> None:
    """Where the paper's series overflows, the expectation stays between its bounds."""
    model = BGNBD(r=0.5, alpha=1.0, a=0.2, b=4.0)
    got = model.expected_purchases([0, 1, 300, 2000], [0, 1, 364, 3650], [1, 1, 365, 3650], 3650.0)

    assert np.isfinite(got).all()
    assert (got > 0).all()
    assert (got < (0.5 + np.array([0, 1, 300, 2000])) * 3650 / (1 + np.array([1, 1, 365, 3650]))).all()


def test_one_time_buyers_are_held_for_alive() -> None:
    """The model's known caveat: without a repeat purchase nobody has left, but the probability falls with age."""
    age = np.array([10.0, 100.0, 1000.0])

    assert (CDNOW.probability_alive(np.zeros(3), np.zeros(3), age) == 1).all()
    assert (np.diff(CDNOW.probability(np.zeros(3), np.zeros(3), age, 30.0)) < 0).all()


def test_a_model_survives_json() -> None:
    """The dictionary holds all of it."""
    x, t_x, age, _ = _world(200, 5, r=0.8, alpha=40.0, a=0.7, b=3.0)
    fitted = BGNBD.fit(x, t_x, age)

    assert BGNBD.from_dict(fitted.to_dict()) == fitted
