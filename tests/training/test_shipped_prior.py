"""The shipped prior is what its trainer makes, knows no unit of time, grows with the horizon, ranks real customers."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from training.bgnbd import BGNBD
from training.calibration import fit_platt
from training.metrics import roc_auc
from training.shipped_prior import CUSTOMER_INPUTS, FILE, SETTINGS, ShippedPrior, prior_inputs, train_prior
from training.simulated_shops import CDNOW, FOLLOW_DAYS, NATURE, simulate_shops

PRIOR = ShippedPrior.load()


@st.composite
def customers(draw: st.DrawFn) -> tuple[int, float, float]:
    x = draw(st.integers(0, 3000))
    age = draw(st.floats(0, 10_000))
    return x, age * draw(st.floats(0, 1)) if x else 0.0, age


@settings(deadline=None)
@given(customer=customers(), horizon=st.floats(0.01, 5000), longer=st.floats(1, 100))
def test_log_odds_never_fall_with_the_horizon(customer, horizon: float, longer: float) -> None:
    """A longer wait never makes a purchase less likely, for any customer; the log-odds are finite."""
    short, long = PRIOR.log_odds(*customer, horizon)[0], PRIOR.log_odds(*customer, longer * horizon)[0]

    assert np.isfinite([short, long]).all()
    assert short <= long + 1e-9
    assert (PRIOR.coefficients[len(CUSTOMER_INPUTS) :] >= 0).all()


@settings(deadline=None)
@given(
    x=st.integers(0, 300),
    age=st.floats(1, 1000),
    share=st.floats(0.01, 1),
    horizon=st.floats(1, 500),
    unit=st.sampled_from([1 / 7, 24.0, 86_400.0]),
)
def test_the_unit_of_time_changes_nothing(x: int, age: float, share: float, horizon: float, unit: float) -> None:
    """Only ratios of times enter."""
    t_x = age * share if x else 0.0

    assert PRIOR.log_odds(x, t_x, age, horizon)[0] == pytest.approx(
        PRIOR.log_odds(x, t_x * unit, age * unit, horizon * unit)[0], abs=1e-6
    )


@settings(deadline=None)
@given(rows=st.lists(customers(), min_size=1, max_size=5), horizon=st.floats(1, 365))
def test_contributions_add_up_to_the_log_odds(rows: list[tuple[int, float, float]], horizon: float) -> None:
    """One part for each named input, and the base."""
    x, t_x, age = np.array(rows).T
    parts, base = PRIOR.contributions(x, t_x, age, horizon)

    assert parts.shape == (len(rows), len(PRIOR.inputs))
    np.testing.assert_allclose(parts.sum(axis=1) + base, PRIOR.log_odds(x, t_x, age, horizon), atol=1e-12)


def test_each_customer_may_have_a_horizon_of_their_own() -> None:
    """A vector of horizons is one for each row."""
    both = PRIOR.log_odds([1, 1], [50, 50], [100, 100], [7, 90])

    assert both[0] == PRIOR.log_odds(1, 50, 100, 7)[0]
    assert both[1] == PRIOR.log_odds(1, 50, 100, 90)[0]


@settings(deadline=None)
@given(
    x=st.integers(1, 300),
    overdue=st.floats(3, 1000),
    longer=st.floats(1, 50),
    horizon=st.floats(0.002, 10),
)
def test_beyond_three_usual_gaps_longer_silence_never_raises_the_odds(
    x: int, overdue: float, longer: float, horizon: float
) -> None:
    """With the same count and age; nearer than that, regular buyers may be less likely right after a purchase."""
    recent, silent = (x / (x + gaps) for gaps in (overdue, longer * overdue))  # last purchase as a share of the age
    log_odds = PRIOR.log_odds([x, x], [recent, silent], [1.0, 1.0], horizon)

    assert log_odds[1] <= log_odds[0] + 1e-9


def test_a_monthly_buyer_fades() -> None:
    """Here last week, three months ago, a year ago: each far less likely than the one before."""
    log_odds = PRIOR.log_odds([12, 12, 12], [360, 360, 360], [367, 450, 725], 30)

    assert (np.diff(log_odds) < -0.5).all()


def test_the_file_is_what_the_trainer_makes() -> None:
    """Learning anew gives the numbers that ship, and the file names the settings and shops it was learned on."""
    content = json.loads(files("training").joinpath(FILE).read_text(encoding="utf-8"))
    again = train_prior()

    assert content["trained_on"]["settings"] == SETTINGS
    assert content["trained_on"]["first_shop"] == CDNOW
    assert content["trained_on"]["shops"] == json.loads(json.dumps(NATURE))
    assert again.intercept == pytest.approx(PRIOR.intercept, abs=1e-3)
    np.testing.assert_allclose(again.coefficients, PRIOR.coefficients, atol=1e-3)
    np.testing.assert_allclose(again.center, PRIOR.center, atol=1e-3)


def test_one_seed_gives_one_prior_and_another_gives_nearly_the_same() -> None:
    """A rehearsal on few shops repeats itself, and ranks as the file does."""
    small = {"n_shops": 60, "n_customers": 100}
    first, second, other = train_prior(1, **small), train_prior(1, **small), train_prior(2, **small)
    people = simulate_shops(np.random.default_rng(3), 40, 100)
    scores = [p.log_odds(people.frequency, people.recency, people.T, 30) for p in (first, other, PRIOR)]

    assert first.to_dict() == second.to_dict()
    assert np.corrcoef(scores).min() > 0.95


def test_a_prior_survives_json_and_refuses_other_inputs() -> None:
    """The dictionary holds all of it; a file of other inputs names the remedy."""
    content = json.loads(json.dumps(PRIOR.to_dict()))
    again = ShippedPrior.from_dict(content)

    assert again.to_dict() == PRIOR.to_dict()
    del content["inputs"]["silence"]
    with pytest.raises(ValueError, match=r"python -m training\.shipped_prior"):
        ShippedPrior.from_dict(content)


def test_a_horizon_of_nothing_is_refused() -> None:
    """The message names the value and the bound."""
    with pytest.raises(ValueError, match="above 0"):
        prior_inputs([1], [5], [9], 0)


def test_simulated_customers_are_what_a_shop_records() -> None:
    """Recency lies within the age, one-time buyers have none, nobody comes next before tomorrow."""
    people = simulate_shops(np.random.default_rng(0), 50, 200)

    assert ((people.recency >= 0) & (people.recency <= people.T)).all()
    assert (people.recency[people.frequency == 0] == 0).all()
    assert (people.frequency <= people.recency).all()  # a day counts once
    assert (people.days_to_next >= 1).all()
    assert (people.days_to_next[np.isfinite(people.days_to_next)] <= FOLLOW_DAYS).all()


def test_the_first_simulated_shop_is_cdnow() -> None:
    """Its customers give CDNOW's published parameters back, as well as days instead of instants allow."""
    people = simulate_shops(np.random.default_rng(0), 1, 40_000)
    fitted = BGNBD.fit(people.frequency, people.recency, people.T)

    assert fitted.r == pytest.approx(CDNOW["r"], rel=0.1)
    assert fitted.alpha == pytest.approx(CDNOW["alpha_days"], rel=0.15)
    assert fitted.a / (fitted.a + fitted.b) == pytest.approx(CDNOW["a"] / (CDNOW["a"] + CDNOW["b"]), rel=0.15)


Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _at(days: pd.DataFrame, cutoff: str, horizon: int) -> Case:
    """Counts, recencies and ages at the end of a day, and who came within the horizon after."""
    end = pd.Timestamp(cutoff)
    past = days[days["day"] <= end].groupby("customer")["day"].agg(["min", "max", "size"])
    ahead = days[(days["day"] > end) & (days["day"] <= end + pd.Timedelta(days=horizon))]
    return (
        past["size"].to_numpy(float) - 1,
        (past["max"] - past["min"]).dt.days.to_numpy(float),
        (end - past["min"]).dt.days.to_numpy(float),
        past.index.isin(ahead["customer"]).astype(float),
    )


@pytest.fixture(scope="module")
def order_days(data_folder: Path) -> dict[str, pd.DataFrame]:
    orders = pd.read_csv(data_folder / "cdnow_sample_2357.csv.gz")
    cdnow = pd.DataFrame({"customer": orders["customer_id"], "day": pd.to_datetime(orders["date"].astype(str))})
    lines = pd.read_parquet(data_folder / "online_retail_to_2011-08-31.parquet")
    is_order = lines["CustomerID"].notna() & (lines["Quantity"] > 0) & (lines["UnitPrice"] > 0)
    lines = lines[is_order & ~lines["InvoiceNo"].str.startswith("C")]
    retail = pd.DataFrame({"customer": lines["CustomerID"].astype(int), "day": lines["InvoiceDate"].dt.normalize()})
    return {"cdnow": cdnow.drop_duplicates(), "retail": retail.drop_duplicates()}


@pytest.mark.data
@pytest.mark.parametrize(
    ("shop", "cutoff", "horizon", "least_auc", "most_brier"),
    [
        # Measured: AUC .797 .829 .726 .737 .770, Brier .106 .088 .168 .157 .145.
        ("cdnow", "1997-12-31", 91, 0.790, 0.109),
        ("cdnow", "1998-03-31", 91, 0.823, 0.091),
        ("retail", "2011-05-31", 30, 0.720, 0.171),
        ("retail", "2011-06-30", 30, 0.730, 0.159),
        ("retail", "2011-07-31", 30, 0.764, 0.147),
    ],
)
def test_without_one_outcome_it_ranks_real_customers_like_a_local_bgnbd(
    order_days, shop: str, cutoff: str, horizon: int, least_auc: float, most_brier: float
) -> None:
    """Within .01 AUC of BG/NBD fitted on the shop itself, and not worse than recency alone by more than that."""
    x, t_x, age, bought = _at(order_days[shop], cutoff, horizon)
    score = PRIOR.log_odds(x, t_x, age, horizon)
    local = BGNBD.fit(x, t_x, age).probability(x, t_x, age, horizon)

    assert roc_auc(bought, score) >= roc_auc(bought, local) - 0.01
    assert roc_auc(bought, score) >= roc_auc(bought, t_x - age) - 0.01
    assert roc_auc(bought, score) >= least_auc
    assert float(((expit(score) - bought) ** 2).mean()) <= most_brier


@pytest.mark.data
def test_the_level_set_right_on_one_window_helps_in_the_next(order_days) -> None:
    """CDNOW buys less than an average shop: the intercept of the window before mends most of it."""
    before, after = (_at(order_days["cdnow"], cutoff, 91) for cutoff in ("1997-12-31", "1998-03-31"))
    level = fit_platt(PRIOR.log_odds(*before[:3], 91), before[3], slope=1.0)
    score = PRIOR.log_odds(*after[:3], 91)

    assert abs(level.apply(score).mean() - after[3].mean()) < abs(expit(score).mean() - after[3].mean())
