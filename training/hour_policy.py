"""What choosing each contact's hour would have earned: off-policy value, on sends it was not learned from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

HOURS = 24
#: The evaluated policy leaves within so many hours of the chosen one, each alike: more sends of the log then count.
WINDOW_HOURS = 1
#: No send counts for more than this many.
MAX_WEIGHT = 20.0
#: Below this effective number of sends no value is given.
MIN_ESS = 100.0


@dataclass(frozen=True)
class HourPolicyValue:
    """Mean answers per mail of a policy, estimated from a log of another; None where too little of the log speaks."""

    #: Sends with a logged propensity, and the mean answer among them.
    sends: int
    logged: float
    #: Effective number of sends (Kish 1965) in the policy's hours, and the share of those whose weight was cut.
    ess: float
    clipped_share: float
    #: Inverse propensity, self-normalised, and doubly robust estimates.
    ips: float | None = None
    snips: float | None = None
    dr: float | None = None
    #: 95 % interval of ``dr``, and of its gain over ``logged``, over contacts drawn again.
    interval: tuple[float, float] | None = None
    gain_interval: tuple[float, float] | None = None
    #: Why there is no value.
    reason: str | None = None

    def as_metrics(self) -> dict[str, float]:
        """Under the names that a version's metrics have; what was refused is left out."""
        told: dict[str, float | None] = {
            "policy_sends": float(self.sends),
            "policy_ess": self.ess,
            "policy_clipped_share": self.clipped_share,
            "policy_logged_rate": self.logged,
            "policy_ips": self.ips,
            "policy_snips": self.snips,
            "policy_dr": self.dr,
        }
        if self.interval is not None and self.gain_interval is not None:
            told |= {"policy_dr_low": self.interval[0], "policy_dr_high": self.interval[1]}
            told |= {"policy_gain_low": self.gain_interval[0], "policy_gain_high": self.gain_interval[1]}
        return {name: value for name, value in told.items() if value is not None and np.isfinite(value)}


def hour_policy_value(
    contact_key: Ints,
    hour: Ints,
    answered: NDArray[np.bool_],
    propensity: Array,
    chosen: Ints,
    curves: Array,
    *,
    seed: int = 0,
    replicates: int = 200,
) -> HourPolicyValue:
    """Value of sending at ``chosen`` (give or take an hour) from sends that left at ``hour``; one row per send.

    Hand in sends that came after those ``chosen`` and ``curves`` were learned from: on the same sends the estimate
    counts the luck that the choice was made by, and is wildly optimistic.

    Parameters
    ----------
    hour, propensity : ndarray, shape (n,)
        Local hour at which each send left, and the probability with which the plan chose it; NaN is left out.
    chosen : ndarray of int, shape (n,)
        The policy's hour for the contact of each send.
    curves : ndarray, shape (n, 24)
        Expected answers by hour: the outcome model of the doubly robust estimate.
    seed : int
        Of the bootstrap over contacts.

    Notes
    -----
    A send in the window of three hours weighs 1 / (3 propensity), cut at 20; others weigh 0. Weights are normalised
    within the contacts that share a chosen hour: there a cut takes about the same part of all, and cancels.

    References
    ----------
    Horvitz, D. G. & Thompson, D. J. (1952), "A generalization of sampling without replacement from a finite universe";
    Swaminathan, A. & Joachims, T. (2015), "The self-normalized estimator for counterfactual learning";
    Dudík, M., Langford, J. & Li, L. (2011), "Doubly robust policy evaluation and learning".
    """
    logged = np.isfinite(propensity) & (propensity > 0)
    contact_key, hour, chosen = contact_key[logged], hour[logged], chosen[logged]
    propensity, curves, reward = propensity[logged], curves[logged], answered[logged].astype(np.float64)
    n = len(hour)
    if n == 0:
        return HourPolicyValue(0, float("nan"), 0.0, 0.0, reason="no send logged the propensity of its hour")
    distance = np.abs((hour - chosen + HOURS // 2) % HOURS - HOURS // 2)
    width = 2 * WINDOW_HOURS + 1
    full = np.where(distance <= WINDOW_HOURS, 1.0 / (width * propensity), 0.0)
    weight = np.minimum(full, MAX_WEIGHT)
    square = float((weight**2).sum())
    ess = float(weight.sum()) ** 2 / square if square > 0 else 0.0
    clipped = float((full > MAX_WEIGHT).sum() / max(1, (full > 0).sum()))
    found = HourPolicyValue(n, float(reward.mean()), ess, clipped)
    if ess < MIN_ESS:
        reason = (
            f"the sends that left in the chosen hours are worth {ess:.0f}, and a value takes {MIN_ESS:.0f}; "
            "let more mail leave at random hours"
        )
        return HourPolicyValue(n, found.logged, ess, clipped, reason=reason)
    rows = np.arange(n)
    window = (chosen[:, None] + np.arange(-WINDOW_HOURS, WINDOW_HOURS + 1)) % HOURS
    model = curves[rows[:, None], window].mean(axis=1)
    residual = reward - curves[rows, hour]
    _, contact = np.unique(contact_key, return_inverse=True)

    def estimates(times: Array) -> tuple[float, float, float, float]:
        total = np.bincount(chosen, times, HOURS)
        counted = np.bincount(chosen, times * weight, HOURS)
        some = counted > 0
        safe = np.where(some, counted, 1.0)
        share = total / total.sum()
        rewards = np.bincount(chosen, times * weight * reward, HOURS)
        pooled = rewards.sum() / counted.sum() if counted.sum() > 0 else float("nan")
        errors = np.bincount(chosen, times * weight * residual, HOURS)
        return (
            float(rewards.sum() / total.sum()),
            float(share @ np.where(some, rewards / safe, pooled)),
            float((times @ model) / total.sum() + share @ np.where(some, errors / safe, 0.0)),
            float((times @ reward) / total.sum()),
        )

    ips, snips, dr, _ = estimates(np.ones(n))
    rng = np.random.default_rng(seed)
    n_contacts = int(contact.max()) + 1
    again = np.empty((replicates, 2))
    for i in range(replicates):
        drawn = np.bincount(rng.integers(0, n_contacts, n_contacts), minlength=n_contacts).astype(np.float64)
        _, _, again[i, 0], logged_rate = estimates(drawn[contact])
        again[i, 1] = again[i, 0] - logged_rate
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    return HourPolicyValue(
        n, found.logged, ess, clipped, ips, snips, dr,
        (float(low[0]), float(high[0])), (float(low[1]), float(high[1])),
    )  # fmt: skip
