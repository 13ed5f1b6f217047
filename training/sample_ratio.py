"""Whether arms came out as often as their probabilities say: a test that may be read at any time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from training.batches import Batches
from training.policies.statistics import FloatArray

#: More than this much doubt about the sample ratio is an alarm: it asks for a look at the draw, not at the arms.
SAMPLE_RATIO_ALPHA = 0.001


def tilt_log_ratios(counts: ArrayLike, totals: ArrayLike, shares: ArrayLike, null: float, ratio: float) -> FloatArray:
    """Log likelihood ratio of ``ratio`` against ``null`` for each arm's share of events, summed over batches so far.

    An event falls on an arm with probability ``p r / (1 + p (r - 1))`` when the arm's share is p and its rate r times
    that of the others. The ratio's expectation is one under ``null``, whatever the shares are and however they were
    chosen from the past; below ``null`` it is less when ``ratio`` lies above.

    Parameters
    ----------
    counts, shares : array-like, shape (..., n_batches, n_arms)
    totals : array-like, shape (..., n_batches, 1) or as counts

    Returns
    -------
    ndarray of float64, shape (..., n_batches, n_arms)
    """
    n, m, p = np.asarray(counts), np.asarray(totals), np.asarray(shares, dtype=np.float64)
    gain = n * np.log(ratio / null) - m * (np.log1p(p * (ratio - 1)) - np.log1p(p * (null - 1)))
    return np.asarray(np.cumsum(gain, axis=-2), dtype=np.float64)


#: Relative errors of a share that the sample ratio test looks for.
_TILTS = np.exp(np.array([s * d for d in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2) for s in (-1, 1)]))


def sample_ratio_log_e(pmf: ArrayLike, trials: ArrayLike) -> FloatArray:
    """Log e-value against "the arms were drawn from these pmfs", after each batch.

    A mixture, over arms and over relative errors of 1 % to 25-fold either way, of likelihood ratios of the multinomial
    counts; as the pmf may change from batch to batch, the alternatives are tilts of it, not fixed shares.

    Parameters
    ----------
    pmf, trials : array-like, shape (..., n_batches, n_arms)

    Returns
    -------
    ndarray of float64, shape (..., n_batches)

    References
    ----------
    Lindon, Malek (2022), "Anytime-valid inference for multinomial count data". Robbins (1970), "Statistical methods
    related to the law of the iterated logarithm" (mixtures).
    """
    count, share = np.asarray(trials), np.asarray(pmf, dtype=np.float64)
    totals = count.sum(axis=-1, keepdims=True)
    ratios = np.stack([tilt_log_ratios(count, totals, share, 1.0, tilt) for tilt in _TILTS], axis=-1)
    return np.asarray(
        special.logsumexp(ratios, axis=(-2, -1)) - np.log(count.shape[-1] * len(_TILTS)), dtype=np.float64
    )


@dataclass(frozen=True)
class SampleRatio:
    """Whether the arms came out as often as their probabilities say."""

    arms: tuple[str, ...]
    observed: tuple[int, ...]
    expected: tuple[float, ...]
    #: Holds at every look: at most this was the chance of ever seeing so much against a right draw.
    p_value: float
    is_off: bool
    sentence: str


def sample_ratio(batches: Batches) -> SampleRatio:
    """The sample ratio test of realised counts against the sum of the pmfs (without leading axes).

    p-values stay valid under peeking: 1 over the greatest e-value so far (Ville 1939).
    """
    log_e = sample_ratio_log_e(batches.pmf, batches.trials)
    p_value = float(np.exp(-max(0.0, float(log_e.max(initial=0.0)))))
    observed = batches.trials.sum(axis=0)
    expected = (batches.pmf * batches.n_units[..., None]).sum(axis=0)
    is_off = p_value < SAMPLE_RATIO_ALPHA
    pairs = ", ".join(
        f"{arm} {n:,} of {e:,.0f} expected" for arm, n, e in zip(batches.arms, observed, expected, strict=True)
    )
    says = "the arms did not come out as drawn; look for lost or doubled decisions" if is_off else "as drawn"
    return SampleRatio(
        batches.arms, tuple(observed.tolist()), tuple(expected.tolist()), p_value, is_off, f"{says}: {pairs}"
    )
