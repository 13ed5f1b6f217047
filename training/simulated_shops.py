"""Order histories of shops that never were: many kinds of buying, leaving and joining, drawn from published models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

YEAR_DAYS = 365.0
#: How long after the cutoff a customer is followed.
FOLLOW_DAYS = 365.0

#: From what each shop's nature is drawn: (low, high) are log-uniform, lists are drawn from evenly, shares add up to 1.
NATURE: dict[str, Any] = {
    "observed_days": (90, 900),
    "mean_gap_days": (15, 250),
    "rate_shape_r": (0.2, 3.0),
    # 1 is Poisson, below it purchases come in bursts, above it they are regular (Erlang).
    "gap_shape": [0.7, 1.0, 1.0, 2.0, 3.0],
    "leaving_shares": {"never": 0.2, "after_a_purchase": 0.45, "by_lifetime": 0.35},
    "leaving_mean": (0.02, 0.4),
    "leaving_concentration": (1.0, 20.0),
    "mean_lifetime_days": (100, 3000),
    "lifetime_shape_s": (0.5, 3.0),
    "share_of_one_time_buyers": [0.0, 0.0, 0.15, 0.4],
    "season_swing": [0.0, 0.0, 0.3, 0.6],
    "joining": ["in the first 30 % of the time", "evenly", "ever more", "half before the records begin"],
}
#: Fader, Hardie & Lee (2005): the first shop of every draw. 4.414 weeks are 30.898 days.
CDNOW = {"r": 0.243, "alpha_days": 30.898, "a": 0.793, "b": 2.426, "observed_days": 273}


@dataclass(frozen=True)
class ShopCustomers:
    """What is known of each customer at the cutoff of their shop, and when they came next; vectors of shape (n,)."""

    shop: NDArray[np.int64]
    #: Days with a purchase less one.
    frequency: Array
    #: Days from first to last recorded purchase, and from the first to the cutoff.
    recency: Array
    T: Array
    #: Days from the cutoff to the next purchase; ∞ where none came within `FOLLOW_DAYS`.
    days_to_next: Array


def simulate_shops(rng: np.random.Generator, n_shops: int, n_customers: int) -> ShopCustomers:
    """Customers of ``n_shops`` different shops, up to ``n_customers`` of each: those with a purchase on record.

    Rates are gamma distributed within a shop. Customers stay for ever, leave after a purchase (BG/NBD: a beta
    distributed probability of one's own) or when their lifetime is over (Pareto/NBD: an exponential lifetime with gamma
    distributed rate); gaps are gamma distributed (Poisson, burst or Erlang purchases); a season of a year stretches and
    presses the calendar. Some join before the records begin, so their age is younger than they are. Days with a
    purchase count once.

    References
    ----------
    Schmittlein, D. C., Morrison, D. G. & Colombo, R. (1987), "Counting your customers: who are they and what will they
    do next?"; Fader, Hardie & Lee (2005); Platzer, M. & Reutterer, T. (2016), "Ticking away the moments: timing
    regularity helps to better predict customer activity".
    """
    nature = _draw_nature(rng, n_shops)
    shop = np.repeat(np.arange(n_shops), n_customers)
    of = {name: values[shop] for name, values in nature.items()}
    n = len(shop)
    cutoff = of["observed_days"]
    rate = rng.gamma(of["r"]) / of["r"] / of["gap"]
    leaving = rng.beta(of["leaving_mean"] * of["concentration"], (1 - of["leaving_mean"]) * of["concentration"])
    leaving[of["leaves"] != 1] = 0.0
    lifetime = rng.exponential(size=n) * of["lifetime"] * of["s"] / np.maximum(rng.gamma(of["s"]), 1e-9)
    joined = np.choose(
        of["joining"],
        [rng.uniform(0, 0.3, n), rng.random(n), np.sqrt(rng.random(n)), rng.uniform(-1, 1, n)],
    ) * cutoff  # fmt: skip
    ends = np.where(of["leaves"] == 2, joined + lifetime, np.inf)

    first, last, following = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.inf)
    count = np.zeros(n)
    clock = joined.copy()
    here = np.arange(n)
    chance = of["one_time"]  # of leaving after the first purchase, then after each
    while len(here):
        day = np.floor(_in_season(clock[here], of["swing"][here], of["phase"][here]))
        on_record = (day >= 0) & (day <= cutoff[here])
        i, d = here[on_record], day[on_record]
        count[i] += ~(d == last[i])
        first[i] = np.where(np.isnan(first[i]), d, first[i])
        last[i] = d
        is_later = day > cutoff[here]
        following[here[is_later]] = day[is_later] - cutoff[here[is_later]]
        stays = ~is_later & (rng.random(len(here)) >= chance[here])
        chance = leaving
        here = here[stays]
        shape = of["gap_shape"][here]
        clock[here] += rng.gamma(shape) / shape / np.maximum(rate[here], 1e-9)
        # A season moves a day by less than a year; beyond that no purchase can fall within the time followed.
        here = here[clock[here] <= np.minimum(ends[here], cutoff[here] + FOLLOW_DAYS + YEAR_DAYS)]
    known = count > 0
    following[following > FOLLOW_DAYS] = np.inf
    return ShopCustomers(
        shop[known], count[known] - 1, (last - first)[known], (cutoff - first)[known], following[known]
    )  # fmt: skip


def _draw_nature(rng: np.random.Generator, n: int) -> dict[str, NDArray[Any]]:
    def log_uniform(name: str) -> Array:
        low, high = NATURE[name]
        return np.exp(rng.uniform(np.log(low), np.log(high), n))

    nature: dict[str, NDArray[Any]] = {
        "observed_days": np.round(log_uniform("observed_days")),
        "gap": log_uniform("mean_gap_days"),
        "r": log_uniform("rate_shape_r"),
        "gap_shape": rng.choice(NATURE["gap_shape"], n),
        "leaves": rng.choice(3, n, p=list(NATURE["leaving_shares"].values())),
        "leaving_mean": log_uniform("leaving_mean"),
        "concentration": log_uniform("leaving_concentration"),
        "lifetime": log_uniform("mean_lifetime_days"),
        "s": log_uniform("lifetime_shape_s"),
        "one_time": rng.choice(NATURE["share_of_one_time_buyers"], n),
        "swing": rng.choice(NATURE["season_swing"], n),
        "phase": rng.uniform(0, YEAR_DAYS, n),
        "joining": rng.choice(len(NATURE["joining"]), n),
    }
    cdnow = {
        "observed_days": CDNOW["observed_days"], "gap": CDNOW["alpha_days"] / CDNOW["r"], "r": CDNOW["r"],
        "gap_shape": 1.0, "leaves": 1, "leaving_mean": CDNOW["a"] / (CDNOW["a"] + CDNOW["b"]),
        "concentration": CDNOW["a"] + CDNOW["b"], "one_time": 0.0, "swing": 0.0, "joining": 0,
    }  # fmt: skip
    for name, value in cdnow.items():
        nature[name][0] = value
    return nature


def _in_season(clock: Array, swing: Array, phase: Array) -> Array:
    """Calendar days at which a clock of even purchases stands; increasing while the swing is below 1."""
    turn = 2 * np.pi / YEAR_DAYS
    return np.asarray(clock + swing / turn * (np.sin(turn * (clock + phase)) - np.sin(turn * phase)))
