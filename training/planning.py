"""What a test can prove before it is begun: sends needed for a lift, and the lift that a number of sends can prove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special

from training.inference import LEARNING_PRECISION, boundary, mixture_rho

#: ``any``: the confidence sequence of the reports, which may be read at any time; ``one``: a single look at the end.
Looks = Literal["any", "one"]

#: Smaller relative lifts, and smaller shares of an arm, are not planned with: no number of sends would do.
LEAST_LIFT = 1e-6
LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class SendsNeeded:
    """How many sends a lift takes to prove, with the sentence that says so."""

    sends: int
    sentence: str


@dataclass(frozen=True)
class ProvableLift:
    """The least relative lift that a number of units can prove, with the sentence that says so."""

    #: None where not even a rate of 100 % could be told from the base.
    lift: float | None
    sentence: str


def reach(alpha: float, looks: Looks = "any", tuned_for: float = 1.0) -> float:
    """Standard errors between an estimate and the edge of its interval at the planned end.

    For a confidence sequence this is a constant: the price of looking at any time is 3.04 standard errors instead of
    1.96, and a little more where the sequence was tuned for a part ``tuned_for`` of the variance sum that it reaches.

    Examples
    --------
    >>> round(reach(0.05), 3), round(reach(0.05, tuned_for=0.4), 3), round(reach(0.05, "one"), 3)
    (3.035, 3.08, 1.96)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} is no error probability; choose one above 0 and below 1")
    if looks == "one":
        return float(special.ndtri(1 - alpha / 2))
    return float(boundary(1.0, mixture_rho(tuned_for, alpha), alpha))


def sends_needed(
    base_rate: float,
    lift: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    allocation: Sequence[float] = (0.5, 0.5),
    looks: Looks = "any",
) -> SendsNeeded:
    """Sends of all arms until a lift over the control is proved with probability ``power``.

    ``n = (reach + z_power)**2 (p_c (1 - p_c) / a_c + p_k (1 - p_k) / a_k) / (p_k - p_c)**2``: power is approximated by
    that of the look at n alone; as the sequence may cross earlier it is somewhat more.

    Parameters
    ----------
    base_rate : float
        Rate of the control, in (0, 1).
    lift : float
        Relative: .1 is 10 % more.
    alpha : float
        Of all comparisons with the control together: each of the other arms gets its part.
    allocation : sequence of float
        Shares of all arms, control first. Of the others the one with the smallest share is meant. Under an adaptive
        allocation give the shares that it will end with at worst: the floor.

    Examples
    --------
    >>> sends_needed(0.20, 0.10).sentence
    'You need about 25,000 sends to prove +10 % on a rate of 20 % (power 80 %, whenever you look).'
    """
    _check_rate(base_rate)
    _check_power(power)
    shares = np.asarray(allocation, dtype=np.float64)
    if shares.ndim != 1 or len(shares) < 2 or np.any(shares < LEAST_SHARE) or shares.sum() > 1 + 1e-9:
        raise ValueError(
            f"allocation {tuple(allocation)} must give two or more arms shares of {LEAST_SHARE:g} or more that sum to 1"
        )
    better = base_rate * (1 + lift)
    if not 0 < better < 1 or abs(lift) < LEAST_LIFT:
        raise ValueError(
            f"a lift of {lift:+.3g} on a rate of {base_rate:.3g} gives {better:.3g}; choose one that is not 0, but "
            f"{LEAST_LIFT:g} or more either way, and leaves a rate between 0 and 1"
        )
    per_send = base_rate * (1 - base_rate) / shares[0] + better * (1 - better) / shares[1:].min()
    errors = reach(alpha / (len(shares) - 1), looks, LEARNING_PRECISION) + float(special.ndtri(power))
    sends = int(np.ceil(errors**2 * per_send / (better - base_rate) ** 2))
    return SendsNeeded(
        sends,
        f"You need about {_round(sends):,} sends to prove {_sign(lift)}{_rate(abs(lift))} on a rate of "
        f"{_rate(base_rate)} (power {_rate(power)}, {_when(looks)}).",
    )


def lift_provable(
    units: int,
    holdout_share: float,
    base_rate: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    looks: Looks = "any",
) -> ProvableLift:
    """The least lift over a holdout that ``units`` can prove with probability ``power``.

    Solves ``lift * base_rate = (reach + z_power) se`` with the standard error of two rates that are both the base
    rate, as is usual for two proportions. At a base rate of 3 %, one look, a two-sided alpha of 5 % and a power of
    80 %, 8,000 contacts with 5 % held out prove a lift of 82 %; the sequence of the reports, which may be read every
    day, proves 113 % with as many.

    Parameters
    ----------
    units : int
        Contacts, held out ones included (the unit of a holdout is the person).
    holdout_share : float, in (0, 1)
    base_rate : float
        Share of those not mailed who do what is measured.

    References
    ----------
    Fleiss, Levin, Paik (2003), "Statistical methods for rates and proportions", chapter 4.

    Examples
    --------
    >>> lift_provable(8_000, 0.05, 0.03, looks="one").sentence
    'With 8,000 contacts and 5 % held out only a lift of ≥ 82 % can be proved (base rate 3 %, power 80 %, at one look).'
    >>> round(lift_provable(8_000, 0.05, 0.03).lift, 2)
    1.13
    """
    _check_rate(base_rate)
    _check_power(power)
    if units < 2 or not 0 < holdout_share < 1:
        raise ValueError(
            f"{units} contacts with a share of {holdout_share} held out are no comparison; hold out more than 0 and "
            "less than 1"
        )
    errors = reach(alpha, looks) + float(special.ndtri(power))
    spread = base_rate * (1 - base_rate) / units * (1 / holdout_share + 1 / (1 - holdout_share))
    lift = float(errors * np.sqrt(spread) / base_rate)
    start = f"With {units:,} contacts and {_rate(holdout_share)} held out"
    if base_rate * (1 + lift) > 1:
        return ProvableLift(
            None, f"{start} no lift can be proved on a base rate of {_rate(base_rate)}; hold out more, or mail more."
        )
    return ProvableLift(
        lift,
        f"{start} only a lift of ≥ {_rate(lift)} can be proved (base rate {_rate(base_rate)}, "
        f"power {_rate(power)}, {_when(looks)}).",
    )


def lift_between_arms(
    sends: int,
    base_rate: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    allocation: Sequence[float] = (0.5, 0.5),
    looks: Looks = "any",
) -> ProvableLift:
    """The least lift of an arm over the control that ``sends`` can prove: ``sends_needed`` the other way round.

    Examples
    --------
    >>> lift_between_arms(25_000, 0.20).sentence
    '25,000 sends can prove a lift of ≥ 10 % on a rate of 20 % (power 80 %, whenever you look).'
    """
    _check_rate(base_rate)
    if sends < 1:
        raise ValueError(f"{sends} sends prove nothing; give the sends that are planned")
    highest = (1 - 1e-9) / base_rate - 1

    def excess(lift: float) -> float:
        needed = sends_needed(base_rate, lift, power=power, alpha=alpha, allocation=allocation, looks=looks)
        return float(np.log(needed.sends) - np.log(sends))

    if highest <= LEAST_LIFT or excess(highest) > 0:
        return ProvableLift(
            None, f"{sends:,} sends can prove no lift on a rate of {_rate(base_rate)}; plan more sends."
        )
    lift = float(optimize.brentq(excess, LEAST_LIFT, highest, xtol=1e-6))
    return ProvableLift(
        lift,
        f"{sends:,} sends can prove a lift of ≥ {_rate(lift)} on a rate of {_rate(base_rate)} "
        f"(power {_rate(power)}, {_when(looks)}).",
    )


def _check_rate(base_rate: float) -> None:
    if not 0 < base_rate < 1:
        raise ValueError(f"a base rate of {base_rate} cannot be planned with; give one above 0 and below 1")


def _check_power(power: float) -> None:
    if not 0 < power < 1:
        raise ValueError(f"power {power} is no probability of success; choose one above 0 and below 1, as 0.8")


def _when(looks: Looks) -> str:
    return "whenever you look" if looks == "any" else "at one look"


def _rate(value: float) -> str:
    """A share in percent with two significant figures, or whole from 10 % on."""
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _round(sends: int) -> int:
    """Two significant figures."""
    digits = max(0, len(str(sends)) - 2)
    return int(round(sends, -digits))


def _sign(lift: float) -> str:
    return "+" if lift > 0 else "-"
