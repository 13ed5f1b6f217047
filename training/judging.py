"""Was the score right? What became of those it was given to, without those who were treated because of it.

Treated contacts cannot judge the score that had them treated: a win-back that works makes a right churn score look
wrong. Those who were held out at random stand in for them. For each campaign that picked its audience by the score, of
``n`` picked contacts ``m`` got no mail; each of the ``m`` then weighs ``n / m`` (inverse probability weighting). Simply
leaving the treated out would not do: who stays silent is picked later, who buys is not, so those who are never picked
bought more often than all.

References
----------
Horvitz, D. G. & Thompson, D. J. (1952), "A generalization of sampling without replacement from a finite universe".
Robins, J. M. & Finkelstein, D. M. (2000), "Correcting for noncompliance and dependent censoring ... with inverse
probability of censoring weighted (IPCW) log-rank tests".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from features.events import DAY_MICROS
from features.lake import splitmix64
from training.metrics import BOOTSTRAP_BUDGET, evaluate, log_losses, roc_auc

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Total predicted over total actual outside of this is an alarm.
RATIO_BOUNDS = (0.8, 1.25)
#: Fewer rows, or fewer of one outcome, than these say nothing about a model.
LEAST_ROWS, LEAST_OF_EACH = 50, 10
#: A treated contact needs a stand-in: a campaign with fewer held out than this cannot be weighted, …
LEAST_HELD_OUT = 10
#: … and where more than this share of the contacts has none, the automatic test does not look at the scoring.
MOST_UNREPRESENTED = 0.01
#: People named in the sentence.
NAMED, NAMED_SHARE, LEAST_NAMED = 50, 0.01, 10

#: Chance that a model which is not worse ever falls back, however often it is looked at.
ALPHA = 0.05
#: Probabilities are held this far from 0 and 1 in the test, so that one row's loss is bounded.
TEST_CLIP = 1e-3
#: Shares of the greatest safe bet, mixed evenly: small ones suit a small difference on many rows, large ones the rest.
BETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


# --- Who counts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Treatment:
    """What was done to each contact because of the score within the horizon, shape (n,) each."""

    #: Whether a mail that its audience's rule picked by this model was sent.
    treated: NDArray[np.bool_]
    #: Which campaign first picked the contact; 0 for those whom none did.
    picked_by: Ints

    @classmethod
    def nobody(cls, n: int) -> Treatment:
        """Nobody was picked."""
        return cls(np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64))


@dataclass(frozen=True)
class Weights:
    """How much each contact counts; 0 for the treated, and for nobody else."""

    weight: Array
    treated: int
    held_out: int
    #: Treated contacts for whom nobody stands in.
    unrepresented: int

    @property
    def is_fair(self) -> bool:
        """Whether what is left speaks for all."""
        return self.unrepresented <= MOST_UNREPRESENTED * max(1, len(self.weight))


def weigh(found: Treatment) -> Weights:
    """Weights under which those who were not treated stand for everybody.

    Examples
    --------
    >>> picked = np.repeat([0, 7], [10, 30])
    >>> weigh(Treatment(np.arange(40) >= 20, picked)).weight[[0, 15, 25]].tolist()
    [1.0, 3.0, 0.0]
    """
    weight = np.where(found.treated, 0.0, 1.0)
    unrepresented = held_out = 0
    for campaign in np.unique(found.picked_by[found.picked_by != 0]).tolist():
        picked = found.picked_by == campaign
        stays = picked & ~found.treated
        n_picked, n_stay = int(picked.sum()), int(stays.sum())
        held_out += n_stay
        if n_stay == n_picked:
            continue
        if n_stay < LEAST_HELD_OUT:
            unrepresented += n_picked - n_stay
            continue
        weight[stays] = n_picked / n_stay
    return Weights(weight, int(found.treated.sum()), held_out, unrepresented)


# --- How good it was ---------------------------------------------------------------------------------------------


def judge_scores(
    y: NDArray[np.generic],
    probability: NDArray[np.generic],
    fallback: NDArray[np.generic],
    weights: Weights,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures, intervals, deciles and alarms of one scoring, JSON-like; with a note alone where rows do not suffice.

    Parameters
    ----------
    y : ndarray, shape (n,)
        Outcomes, 0 or 1, of all contacts.
    probability, fallback : ndarray, shape (n,)
        What was said, and what the rung below would have said (NaN: nothing).
    weights : Weights
        From `weigh`.
    """
    report: dict[str, Any] = {
        "contacts": len(y),
        "left_out": weights.treated,
        "held_out": weights.held_out,
        "unrepresented": weights.unrepresented,
        "alarms": [],
    }
    kept = weights.weight > 0
    outcome, p, w = (np.asarray(values, dtype=np.float64)[kept] for values in (y, probability, weights.weight))
    positives = int(outcome.sum())
    report |= {"judged": len(outcome), "positives": positives}
    if len(outcome) < LEAST_ROWS or min(positives, len(outcome) - positives) < LEAST_OF_EACH:
        return report | {
            "note": f"{len(outcome)} contacts, {positives} with the outcome, are too few to judge; it takes "
            f"{LEAST_ROWS} and {LEAST_OF_EACH} of each"
        }
    figures = weighted_figures(outcome, p, w)
    intervals = weighted_intervals(outcome, p, w, rng=np.random.default_rng(seed))
    report |= {"metrics": figures, "intervals": intervals, "deciles": weighted_deciles(outcome, p, w)}
    ratio, (low, high) = figures["predicted_over_actual"], intervals["predicted_over_actual"]
    # Beyond the bounds by more than chance: 50 contacts are often 1.3 times what was expected.
    if ratio > RATIO_BOUNDS[1] and low > 1:
        report["alarms"].append(f"predicted {ratio:.2f} times what happened (at most {RATIO_BOUNDS[1]} is well)")
    if ratio < RATIO_BOUNDS[0] and high < 1:
        report["alarms"].append(f"predicted {ratio:.2f} of what happened (at least {RATIO_BOUNDS[0]} is well)")
    below = np.asarray(fallback, dtype=np.float64)[kept]
    if np.isfinite(below).all():
        gain = log_losses(outcome, below) - log_losses(outcome, p)
        report["gain_over_fallback"] = float(np.average(gain, weights=w))
    return report


def weighted_figures(y: Array, p: Array, w: Array) -> dict[str, float]:
    """`training.metrics.evaluate`; with unequal weights those of its figures that have a weighted form."""
    if (w == 1.0).all():
        return evaluate(y, p)
    base = float(np.average(y, weights=w))
    brier, spread = float(np.average((p - y) ** 2, weights=w)), base * (1 - base)
    bins = weighted_deciles(y, p, w)
    return {
        "roc_auc": roc_auc(y, p, w),
        "brier": brier,
        "brier_skill": 1 - brier / spread,
        "log_loss": float(np.average(log_losses(y, p), weights=w)),
        "ece": float(sum(one["share"] * abs(one["predicted"] - one["actual"]) for one in bins)),
        "predicted_over_actual": float((w * p).sum() / (w * y).sum()),
        "base_rate": base,
        "rows": float(len(y)),
    }


def weighted_deciles(y: Array, p: Array, w: Array, bins: int = 10) -> list[dict[str, float]]:
    """Predicted and actual rate in bins of equal weight, lowest probabilities first."""
    order = np.argsort(p, kind="stable")
    before = np.cumsum(w[order]) - w[order] / 2
    place = np.minimum((before / w.sum() * bins).astype(np.int64), bins - 1)
    told = []
    for number in np.unique(place):
        of = order[place == number]
        told.append(
            {
                "share": float(w[of].sum() / w.sum()),
                "rows": len(of),
                "predicted": float(np.average(p[of], weights=w[of])),
                "actual": float(np.average(y[of], weights=w[of])),
            }
        )
    return told


def weighted_intervals(
    y: Array, p: Array, w: Array, *, rng: np.random.Generator, replicates: int = 200, level: float = 0.95
) -> dict[str, list[float]]:
    """Percentile intervals of ROC AUC, Brier score and predicted over actual when contacts are drawn again."""
    order = np.argsort(p, kind="stable")
    y, p, w = y[order], p[order], w[order]
    squared, n = (p - y) ** 2, len(y)
    drawn: dict[str, list[float]] = {"roc_auc": [], "brier": [], "predicted_over_actual": []}
    for _ in range(max(40, min(replicates, BOOTSTRAP_BUDGET // n))):
        again = w * np.bincount(rng.integers(0, n, n), minlength=n)
        actual = float((again * y).sum())
        drawn["roc_auc"].append(roc_auc(y, p, again))
        drawn["brier"].append(float((again * squared).sum() / again.sum()))
        drawn["predicted_over_actual"].append(float((again * p).sum() / actual) if actual else np.nan)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: np.nanquantile(values, tails).tolist() for name, values in drawn.items()}


def named_sentence(
    name: str,
    says: str,
    day: str,
    y: NDArray[np.generic],
    probability: NDArray[np.generic],
    weights: Weights,
) -> dict[str, Any] | None:
    """The highest scores against as many random contacts, as a sentence and its numbers; None of fewer than ten.

    The number for random contacts is what the base rate of the same rows gives, with the 95 % interval of a draw.

    Examples
    --------
    >>> p = np.linspace(0.01, 0.99, 2000)
    >>> told = named_sentence("churn", "no order in 30 days", "1 June", p > 0.8, p, weigh(Treatment.nobody(2000)))
    >>> told["says"]
    'On 1 June churn named these 20; 20 have left since (no order in 30 days); of 20 random ones 4 (1 to 8).'
    """
    kept = weights.weight > 0
    outcome, p, w = (np.asarray(values, dtype=np.float64)[kept] for values in (y, probability, weights.weight))
    if len(outcome) < LEAST_NAMED:
        return None
    k = min(len(outcome), max(LEAST_NAMED, min(NAMED, int(NAMED_SHARE * len(outcome)))))
    top = np.argsort(-p, kind="stable")[:k]
    hits, rate = int(outcome[top].sum()), float(np.average(outcome, weights=w))
    low, high = (int(value) for value in binom.ppf([0.025, 0.975], k, rate))
    told = f"{hits} have left since ({says})" if name == "churn" else f"{hits} came true since ({says})"
    left = f" {weights.treated:,} who were written to because of it are left out." if weights.treated else ""
    return {
        "named": k,
        "hits": hits,
        "random": k * rate,
        "random_interval": [low, high],
        "says": f"On {day} {name} named these {k}; {told}; of {k} random ones {k * rate:.0f} ({low} to {high}).{left}",
    }


# --- When it has to go -------------------------------------------------------------------------------------------


def is_turn(contact_key: Ints, as_of: int, horizon_days: int) -> NDArray[np.bool_]:
    """Which contacts a scoring's test looks at: each on one day of every horizon and a day, so that windows never meet.

    Windows that overlap would bring the same silence to the test again and again. By contact, not all on one day, so
    that every day brings outcomes. Two looks at a contact lie more than a horizon apart: what happened in the first
    window was known when the second score was given.
    """
    days = np.uint64(horizon_days + 1)
    mine = splitmix64(np.asarray(contact_key, dtype=np.int64) ^ 0x6A75646765) % days
    return np.asarray(mine == np.uint64(as_of // DAY_MICROS) % days)


def evidence(
    y: NDArray[np.generic], probability: NDArray[np.generic], fallback: NDArray[np.generic], weights: Array
) -> list[float]:
    """What these rows add to the logarithm of each bet against the model; they add up over scorings.

    Each row bets a share of the wealth that the model loses more (log-loss, probabilities clipped to `TEST_CLIP`) than
    its fallback. Where in expectation it does not, the wealth is a supermartingale: by Ville's inequality it exceeds
    ``1 / ALPHA`` at any time, however often one looks, with probability ``ALPHA`` at most. The stake is bounded by the
    worst that these rows can bring, which probabilities and weights tell before any outcome does.

    Contacts are taken as independent given what was known when they were scored, and the weights as given. A shock that
    meets everybody (a strike, a holiday) meets the fallback too; what remains of it is the test's blind spot.

    Parameters
    ----------
    weights : ndarray, shape (n,)
        Of `weigh`; 0 for the treated.

    Returns
    -------
    list of float
        One for each of `BETS`.

    References
    ----------
    Waudby-Smith, I. & Ramdas, A. (2024), "Estimating means of bounded random variables by betting".
    Howard, S. R., Ramdas, A., McAuliffe, J. & Sekhon, J. (2021), "Time-uniform, nonparametric, nonasymptotic confidence
    sequences". Choe, Y. J. & Ramdas, A. (2024), "Comparing sequential forecasters".

    Examples
    --------
    >>> good, bad = np.full(500, 0.5), np.full(500, 0.99)
    >>> e_value([evidence(np.arange(500) % 2, bad, good, np.ones(500))]) > 1 / ALPHA
    True
    >>> e_value([evidence(np.arange(500) % 2, good, bad, np.ones(500))]) < 1
    True
    """
    p, q = (np.clip(np.asarray(values, np.float64), TEST_CLIP, 1 - TEST_CLIP) for values in (probability, fallback))
    w, outcome = np.asarray(weights, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(p) == 0 or not np.isfinite(q).all():
        return [0.0] * len(BETS)
    if_it_comes, if_not = np.log(q / p), np.log((1 - q) / (1 - p))
    worst = float((np.maximum(-if_it_comes, -if_not) * max(1.0, w.max())).max())
    if worst <= 0:
        return [0.0] * len(BETS)
    loss = w * np.where(outcome > 0, if_it_comes, if_not) / worst
    return [float(np.log1p(bet * loss).sum()) for bet in BETS]


def e_value(parts: Sequence[Sequence[float]]) -> float:
    """The wealth of all bets together, begun with 1; `evidence` of each scoring, in any order."""
    if not len(parts):
        return 1.0
    logs = np.asarray(parts, dtype=np.float64).sum(axis=0)
    return float(np.exp(min(700.0, np.logaddexp.reduce(logs) - np.log(len(BETS)))))


def crossed(parts: Sequence[Sequence[float]]) -> bool:
    """Whether the test has ever said, after one of these scorings in their order, that the fallback is better."""
    return any(e_value(parts[: i + 1]) >= 1 / ALPHA for i in range(len(parts)))


def drift_of(now: Mapping[str, Any], then: Mapping[str, Any]) -> float:
    """PSI of the scores' deciles at the version's first scoring; 0 where they are distributed as they were.

    Parameters
    ----------
    now, then : mapping
        Each ``{"edges": [...], "shares": [...]}`` over the same edges.
    """
    p, q = (np.maximum(np.asarray(one["shares"], dtype=np.float64), 1e-4) for one in (then, now))
    return float(((q - p) * np.log(q / p)).sum())
