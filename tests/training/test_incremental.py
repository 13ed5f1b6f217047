"""Laws of incremental profit: its interval covers the truth, and it says when there is none."""

import numpy as np
import pytest

from training.incremental import LEAST_BUYERS, Group, incremental_profit, times_needed

MARGIN, COST = 0.3, 0.1


def side(rng, contacts, buyer_share, sigma, cost=0.0):
    """A group whose orders are lognormal; a mail to everybody costs ``cost``."""
    return Group(contacts, rng.lognormal(8.0, sigma, rng.binomial(contacts, buyer_share)), cost)


def coverage(seed, *, contacts, share, buyers, lift, sigma, runs=500):
    """Share of worlds whose interval holds the true profit per contact."""
    rng = np.random.default_rng(seed)
    truth = MARGIN * buyers * lift * np.exp(8.0 + sigma**2 / 2) - COST
    hits = told = 0
    for _ in range(runs):
        out = int(rng.binomial(contacts, share))
        mailed = side(rng, contacts - out, buyers * (1 + lift), sigma, COST)
        found = incremental_profit(mailed, side(rng, out, buyers, sigma), margin_share=MARGIN)
        if found.why is None:
            told += 1
            hits += found.lower <= truth <= found.upper
    assert told > 0.8 * runs
    return hits / told


@pytest.mark.parametrize("sigma", [0.7, 1.3])
@pytest.mark.parametrize(
    ("contacts", "share", "buyers"),
    [(20_000, 0.1, 0.02), (10_000, 0.1, 0.05), (3_000, 0.5, 0.05)],
)
def test_the_interval_covers_the_truth(sigma, contacts, share, buyers):
    """In at least 92.5 % of 500 worlds, with few held out and orders of a long tail; it errs on the wide side."""
    covered = coverage(3, contacts=contacts, share=share, buyers=buyers, lift=0.1, sigma=sigma)
    assert 0.925 <= covered <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("lift", [-0.3, 0.0, 0.1, 0.3])
@pytest.mark.parametrize("sigma", [0.7, 1.3])
def test_the_interval_covers_effects_of_any_sign(lift, sigma):
    """Also where mailing harms, or helps a lot: 4,000 worlds each."""
    covered = coverage(5, contacts=20_000, share=0.1, buyers=0.03, lift=lift, sigma=sigma, runs=4_000)
    assert 0.925 <= covered <= 0.985


def test_few_buyers_give_no_interval():
    """The estimate is there, the bounds are not, and the reason names the figures."""
    mailed, held_out = Group(10_000, np.full(500, 900.0)), Group(500, np.full(LEAST_BUYERS - 1, 900.0))
    found = incremental_profit(mailed, held_out, margin_share=MARGIN)

    assert (found.lower, found.upper) == (None, None)
    assert found.estimate is not None
    assert f"{LEAST_BUYERS - 1} of those held out" in found.why
    assert "0 was held out" in incremental_profit(mailed, Group(0, np.empty(0)), margin_share=MARGIN).why


def test_with_as_many_contacts_as_were_named_the_effect_is_seen():
    """Four of five times, as the power says."""
    rng = np.random.default_rng(11)
    small = side(rng, 9_000, 0.055, 0.7), side(rng, 1_000, 0.05, 0.7)
    truth = MARGIN * 0.005 * np.exp(8.0 + 0.7**2 / 2)
    found = incremental_profit(*small, margin_share=MARGIN)
    times = times_needed(*small, found, least_effect=max(truth, abs(found.estimate)))
    effect = max(truth, abs(found.estimate))
    lift = effect / (MARGIN * 0.05 * np.exp(8.0 + 0.7**2 / 2))
    seen = 0
    for _ in range(300):
        mailed = side(rng, int(9_000 * times), 0.05 * (1 + lift), 0.7)
        again = incremental_profit(mailed, side(rng, int(1_000 * times), 0.05, 0.7), margin_share=MARGIN)
        seen += again.lower is not None and again.lower > 0
    assert 0.7 <= seen / 300 <= 0.9
