"""Whether an arm drives people away: a test of unsubscribes and complaints that may be read after every mail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from training.policies.statistics import FloatArray
from training.sample_ratio import tilt_log_ratios

#: So rarely does an experiment of harmless arms see one paused: an arm is paused once its e-value reaches
#: n_arms / ALPHA.
ALPHA = 0.01
#: The arm's rate over the others' that the test looks for. Below about 1.6 times the evidence shrinks in expectation:
#: an arm a tenth worse is hardly ever paused, though the guarantee is only for arms that are no worse at all.
SOUGHT = (2.5, 3.5)
#: An arm's rate over the others' that is still tolerated.
TOLERATED = 1.0
#: Mailbox providers turn a sender away beyond this share of complaints.
COMPLAINT_LIMIT = 0.003
#: Delivered mails of an arm before its share of complaints is held against that limit.
NEEDED_DELIVERED = 1000
#: Why arms are not compared.
NO_ONE_PMF = "each contact has its own probabilities"


@dataclass(frozen=True)
class Judgement:
    """What the guardrails say of one arm."""

    arm: str
    #: Evidence that the arm's rate lies above the others': 1 when there is none; it may be read at any time.
    e_unsubscribes: float
    e_complaints: float
    is_paused: bool
    #: Why it is paused, or how things stand.
    sentence: str


def harm_log_e(
    trials: ArrayLike,
    events: ArrayLike,
    shares: ArrayLike | None = None,
    *,
    tolerated: float = TOLERATED,
    sought: Sequence[float] = SOUGHT,
) -> FloatArray:
    """Log e-value of each arm after each wave against "its rate is at most ``tolerated`` times the others'".

    Given that somebody of a wave unsubscribed, it is somebody of arm k with probability ``p r / (1 + p (r - 1))``,
    where p is the probability that the wave was drawn with and r the arm's rate over that of the wave's other arms
    together: the wave's base rate cancels, however it moves with the hour. Each event is one draw from that law,
    whatever the allocation has learned from earlier ones; so the likelihood ratio of a sought r against the tolerated
    one, averaged over those sought, is a nonnegative supermartingale for every arm with r at most as tolerated in
    every wave, and passes ``K / alpha`` with probability at most ``alpha / K``, ever (Ville 1939): of experiments
    with K harmless arms at most alpha see any of them pass. The null is composite: how the others compare among
    themselves does not matter, but beside an arm that is much better than the rest, the rest is worse.

    All of a wave must have been drawn from one pmf: where the pmf differs by segment, each segment of each wave is a
    stratum of its own here, told in the order of the waves. Pooled, an arm that is drawn for the segment that
    unsubscribes more is taken for a bad one.

    With ``shares`` left out the realised shares of the trials stand in. At a look that was fixed beforehand the counts
    of equal arms are then hypergeometric, which spread less than the binomial (Hoeffding 1963), so that each arm's
    e-value is at most 1 on average. While a wave still grows, its shares move with each mail and the bound holds
    approximately; for tolerated ratios other than 1 it does as events become rare.

    Parameters
    ----------
    trials, events : array-like of int, shape (..., n_arms, n_waves)
    shares : array-like of float, same shape, optional
        Probabilities that each wave was drawn with.

    Returns
    -------
    ndarray of float64, shape (..., n_arms, n_waves)

    References
    ----------
    Ville (1939), "Étude critique de la notion de collectif". Wald (1945), "Sequential tests of statistical
    hypotheses". Przyborowski, Wilenski (1940), conditional test of two Poisson rates. Grünwald, de Heide, Koolen
    (2024), "Safe testing". Hoeffding (1963), "Probability inequalities for sums of bounded random variables".

    Examples
    --------
    Of ten who unsubscribed nine had the second arm.

    >>> harm_log_e([[1000], [1000]], [[1], [9]]).round(2).tolist()
    [[-5.27], [2.94]]
    """
    shown, came = np.asarray(trials), np.asarray(events)
    if shown.shape != came.shape or shown.ndim < 2:
        raise ValueError(f"trials {shown.shape} and events {came.shape} must both be (..., n_arms, n_waves)")
    if np.any(came < 0) or np.any(shown < 0) or np.any(came > shown):
        raise ValueError("an arm has more events than trials, or fewer than none; count a mail's event once")
    if not sought or tolerated <= 0 or min(sought) <= tolerated:
        raise ValueError(f"the ratios sought {tuple(sought)} must lie above the tolerated one, {tolerated}")
    total = shown.sum(axis=-2, keepdims=True)
    share = shown / np.maximum(total, 1) if shares is None else np.asarray(shares, dtype=np.float64)
    counts, by_wave = came.swapaxes(-1, -2), came.sum(axis=-2)[..., None]
    ratios = [tilt_log_ratios(counts, by_wave, share.swapaxes(-1, -2), tolerated, ratio) for ratio in sought]
    log_e = special.logsumexp(np.stack(ratios), axis=0) - np.log(len(ratios))
    return np.asarray(log_e.swapaxes(-1, -2), dtype=np.float64)


def judge_guardrails(
    arms: Sequence[str],
    trials: ArrayLike,
    unsubscribes: ArrayLike,
    complaints: ArrayLike,
    *,
    shares: ArrayLike | None = None,
    alpha: float = ALPHA,
    tolerated: float = TOLERATED,
    watch_unsubscribes: bool = True,
    watch_complaints: bool = True,
    has_one_pmf: bool = True,
) -> tuple[Judgement, ...]:
    """One judgement an arm, from all counts so far; made to be asked again whenever counts have moved.

    An arm is to be paused when the e-value of its unsubscribes or of its complaints reaches ``n_arms / alpha``, or
    when it has more than .3 % complaints in 1,000 delivered mails or more. Each of the two tests holds alpha, over
    all arms, by itself.

    Parameters
    ----------
    arms : sequence of str, length n_arms
    trials, unsubscribes, complaints : array-like of int, shape (n_arms, n_waves)
        Delivered mails and what came of them, wave by wave.
        A wave is a stratum that was drawn from one pmf; see ``harm_log_e``.
    shares : array-like of float, shape (n_arms, n_waves), optional
        See ``harm_log_e``.
    has_one_pmf : bool
        False where the pmf differs from contact to contact: arms are then not compared, as no share stands for all
        of a wave, and only the limit on complaints holds.

    Examples
    --------
    >>> calm, bad = judge_guardrails(["a", "b"], [[5000], [5000]], [[10], [40]], [[0], [0]])
    >>> calm.is_paused, bad.is_paused
    (False, True)
    >>> bad.sentence
    'b is paused: 40 unsubscribes in 5,000 mails (0.80 %) against 10 in 5,000 (0.20 %) of the other arms, e = 10,037'
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} is no share of false alarms; choose one above 0 and below 1")
    shown = np.asarray(trials, dtype=np.int64)
    if shown.ndim != 2 or len(shown) != len(arms):
        raise ValueError(f"trials {shown.shape} are not (n_arms, n_waves) of {len(arms)} arms")
    by_arm = shown.sum(axis=1)
    counts = {
        "unsubscribes": (np.asarray(unsubscribes, dtype=np.int64), watch_unsubscribes),
        "complaints": (np.asarray(complaints, dtype=np.int64), watch_complaints),
    }
    e_values, sums = {}, {}
    for name, (events, is_watched) in counts.items():
        log_e = harm_log_e(shown, events, shares, tolerated=tolerated)
        is_compared = is_watched and has_one_pmf and shown.shape[1]
        last = log_e[:, -1] if is_compared else np.zeros(len(arms))
        e_values[name], sums[name] = np.exp(np.minimum(last, 700.0)), events.sum(axis=1)
    calm = "nothing against it" if has_one_pmf else f"not compared, as {NO_ONE_PMF}; nothing by the limit on complaints"
    judgements = []
    for k, arm in enumerate(arms):
        n, rest = int(by_arm[k]), int(by_arm.sum() - by_arm[k])
        why = None
        for name in counts:
            e, own, others = e_values[name][k], int(sums[name][k]), int(sums[name].sum() - sums[name][k])
            if e >= len(arms) / alpha and why is None:
                why = (
                    f"{own:,} {name} in {n:,} mails ({_percent(own, n)}) against {others:,} in {rest:,} "
                    f"({_percent(others, rest)}) of the other arms, e = {e:,.0f}"
                )
        complained = int(sums["complaints"][k])
        if watch_complaints and why is None and n >= NEEDED_DELIVERED and complained > COMPLAINT_LIMIT * n:
            why = (
                f"{complained:,} complaints in {n:,} mails ({_percent(complained, n)}), above the limit of "
                f"{COMPLAINT_LIMIT:.1%}"
            )
        judgements.append(
            Judgement(
                arm,
                float(e_values["unsubscribes"][k]),
                float(e_values["complaints"][k]),
                why is not None,
                f"{arm} is paused: {why}" if why else f"{arm}: {calm} in {n:,} mails",
            )
        )
    return tuple(judgements)


def _percent(events: int, trials: int) -> str:
    return f"{100 * events / trials:.2f} %" if trials else "none"
