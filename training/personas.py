"""Whose day is this like: a few ways to spend the 24 hours, learned from counts by hour, each with its exposure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HOURS = 24
#: Width of the kernel that smooths a persona's hours, and events its curve starts with, per hour.
PERSONA_KERNEL_HOURS = 1.0
PERSONA_PRIOR_EVENTS = 2.0
#: Width of the kernel over which a contact's own hours tell of their neighbours.
PERSONAL_KERNEL_HOURS = 2.0
#: Default saturation: the best of 3 to 30 on later hours of real people's messages and of simulated mail, about.
SATURATION_EVENTS = 5.0
#: Rounds of the EM algorithm; the curves hardly move after some twenty.
ROUNDS = 20
#: Where the algorithm starts, as parts of the distance of two personas, and the rounds until the best start is known.
STARTS = (0.5, 0.17, 0.83)
TRIAL_ROUNDS = 8
#: Contacts that the personas are learned from at most; more tell nothing new about so few curves.
MAX_CONTACTS = 20_000
#: Bounds of the shape of the gamma distribution of levels: 1 / shape is the squared coefficient of variation.
LEVEL_SHAPE_BOUNDS = (0.5, 50.0)


def circular_kernel(width_hours: float) -> Array:
    """Circulant matrix (24, 24) of Gaussian weights over the distance of two hours on the clock, 1 at distance 0."""
    distance = np.abs(np.subtract.outer(np.arange(HOURS), np.arange(HOURS)))
    distance = np.minimum(distance, HOURS - distance)
    return np.asarray(np.exp(-0.5 * (distance / width_hours) ** 2), dtype=np.float64)


@dataclass(frozen=True)
class Channel:
    """What contacts did by hour, and how much of each hour they could have done it in; both of shape (n, 24)."""

    counts: Array
    #: At a rate of one, as many events are expected as this says.
    exposure: Array

    def take(self, index: NDArray[Any] | slice) -> Channel:
        """The contacts at ``index``."""
        return Channel(self.counts[index], self.exposure[index])


@dataclass(frozen=True)
class Known:
    """What the personas say of contacts: whose day theirs is like, and the rates that follow."""

    #: shape (n, K): P(persona | what the contact did).
    share: Array
    #: Per channel, shape (n, 24): the contact's expected rate by hour, its level included.
    rate: tuple[Array, ...]


@dataclass(frozen=True)
class Personas:
    """A mixture of K curves round the clock: counts are Poisson at level x curve x exposure, levels gamma distributed.

    With the level integrated out, a contact that did ``N`` things in all is like persona k in proportion to
    w_k x prod_t theta_k(t)^C(t) / (a + sum_t theta_k(t) R(t))^(a + N): hours without an event count by their exposure.
    Channels (mail, visits) are independent given the persona, each with levels of its own.

    References
    ----------
    Dempster, A. P., Laird, N. M. & Rubin, D. B. (1977), "Maximum likelihood from incomplete data via the EM algorithm";
    Clayton, D. & Kaldor, J. (1987), "Empirical Bayes estimates of age-standardized relative risks" (gamma levels).
    """

    #: shape (K,), summing to 1.
    weight: Array
    #: shape (n_channels, K, 24).
    rate: Array
    #: shape (n_channels,): shape of the gamma distribution of levels, whose mean is 1.
    level_shape: Array
    #: shape (n_channels,): events after which a contact's further ones hardly tell more of whose day it is like.
    saturation: Array

    def __len__(self) -> int:
        return len(self.weight)

    def know(self, channels: Sequence[Channel], log_weight: Array | None = None) -> Known:
        """Shares and rates of contacts, of what each did in the channels.

        Parameters
        ----------
        channels : sequence of Channel
            In the order of ``rate``.
        log_weight : ndarray, shape (n, K), optional
            Logarithms of the personas' weights for each contact, where they are not those of all.
        """
        told = [self._events(channel, limit) for channel, limit in zip(channels, self.saturation, strict=True)]
        share, levels = self._expect(channels, told, log_weight)
        rates = tuple((share * level).T @ rate for level, rate in zip(levels, self.rate, strict=True))
        return Known(share.T, rates)

    def _expect(
        self, channels: Sequence[Channel], told: Sequence[tuple[Array, Array]], log_weight: Array | None = None
    ) -> tuple[Array, list[Array]]:
        """Shares and, per channel, levels; shape (K, n): sums over a few personas are faster that way round."""
        log_share, levels = self._log_share(channels, told, log_weight)
        share = np.exp(log_share - log_share.max(axis=0))
        return share / share.sum(axis=0), levels

    def _log_share(
        self, channels: Sequence[Channel], told: Sequence[tuple[Array, Array]], log_weight: Array | None
    ) -> tuple[Array, list[Array]]:
        log_share = np.log(self.weight)[:, None] if log_weight is None else log_weight.T
        levels = []
        for c, (channel, (events, weight)) in enumerate(zip(channels, told, strict=True)):
            a = self.level_shape[c]
            with_exposure = a + self.rate[c] @ channel.exposure.T
            levels.append((a + events) / with_exposure)
            log_likelihood = np.log(self.rate[c]) @ channel.counts.T - (a + events) * np.log(with_exposure)
            log_share = log_share + weight * log_likelihood
        return log_share, levels

    def _log_likelihood(self, channels: Sequence[Channel], told: Sequence[tuple[Array, Array]]) -> float:
        """Of all contacts, up to what does not depend on the personas."""
        return float(np.logaddexp.reduce(self._log_share(channels, told, None)[0], axis=0).sum())

    @staticmethod
    def _events(channel: Channel, limit: float) -> tuple[Array, Array]:
        """Each contact's events in a channel, and what one counts for; shape (n,).

        Bursts, and hours that are all its own, tell the same again: beyond the saturation more events tell little.
        That is the weight of counts that vary as Dirichlet-multinomial ones do.

        References
        ----------
        Williams, D. A. (1982), "Extra-binomial variation in logistic linear models" (quasi-likelihood weights).
        """
        events = channel.counts @ np.ones(HOURS)
        if np.isinf(limit):
            return events, np.ones_like(events)
        return events, (1 + limit) / (np.maximum(events, 1) + limit)

    def as_json(self) -> dict[str, Any]:
        """Plain lists; None for infinity."""
        content = {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}
        content["saturation"] = [None if np.isinf(limit) else limit for limit in content["saturation"]]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Personas:
        """What ``as_json`` wrote."""
        content = {**content, "saturation": [np.inf if limit is None else limit for limit in content["saturation"]]}
        return cls(**{name: np.array(content[name], dtype=np.float64) for name in cls.__dataclass_fields__})


def common_rate(channel: Channel) -> Array:
    """Rate of all contacts by hour, shape (24,): events over exposure, smoothed, drawn to the mean."""
    kernel = circular_kernel(PERSONA_KERNEL_HOURS)
    counts, exposure = channel.counts.sum(axis=0), channel.exposure.sum(axis=0)
    mean = (counts.sum() + 0.5) / (exposure.sum() + 1.0)
    return np.asarray(
        (counts @ kernel + PERSONA_PRIOR_EVENTS) / (exposure @ kernel + PERSONA_PRIOR_EVENTS / mean), dtype=np.float64
    )


def fit_personas(channels: Sequence[Channel], k: int, saturation: Sequence[float] | None = None) -> Personas:
    """``k`` personas of contacts by the EM algorithm; the same counts give the same personas.

    It starts from the curve of all, bent towards ``k`` evenly spread shares of the day, and goes on with the likeliest
    of a few such starts; no random number is needed.

    Parameters
    ----------
    channels : sequence of Channel
    k : int
        1: one curve for all.
    saturation : sequence of float, optional
        For each channel; ``SATURATION_EVENTS`` by default.

    Raises
    ------
    ValueError
        If ``k`` is below 1 or there is no contact.
    """
    n = len(channels[0].counts) if channels else 0
    if k < 1 or n == 0:
        raise ValueError(f"{k} personas of {n} contacts cannot be learned; ask for at least one of at least one")
    limits = np.array([SATURATION_EVENTS] * len(channels) if saturation is None else saturation, dtype=np.float64)
    if n > MAX_CONTACTS:
        picked = np.linspace(0, n - 1, MAX_CONTACTS).astype(np.int64)
        channels = [channel.take(picked) for channel in channels]
    common = np.stack([common_rate(channel) for channel in channels])
    shapes = np.array([_level_shape(channel, rate) for channel, rate in zip(channels, common, strict=True)])
    told = [Personas._events(channel, limit) for channel, limit in zip(channels, limits, strict=True)]
    if k == 1:
        return Personas(np.ones(1), common[:, None, :], shapes, limits)

    def improved(personas: Personas, rounds: int) -> Personas:
        for _ in range(rounds):
            personas = _improved(personas, channels, told, common)
        return personas

    starts = [Personas(np.full(k, 1 / k), _spread(channels, common, k, turn), shapes, limits) for turn in STARTS]
    tried = [improved(start, TRIAL_ROUNDS) for start in starts]
    return improved(max(tried, key=lambda personas: personas._log_likelihood(channels, told)), ROUNDS)


def _improved(
    personas: Personas, channels: Sequence[Channel], told: Sequence[tuple[Array, Array]], common: Array
) -> Personas:
    """One round of the EM algorithm."""
    kernel = circular_kernel(PERSONA_KERNEL_HOURS)
    share, levels = personas._expect(channels, told)
    rate = np.empty_like(personas.rate)
    for c, channel in enumerate(channels):
        heard = share * told[c][1]
        events = heard @ channel.counts @ kernel
        expected = (heard * levels[c]) @ channel.exposure @ kernel
        rate[c] = (events + PERSONA_PRIOR_EVENTS) / (expected + PERSONA_PRIOR_EVENTS / common[c])
    weight = (share.sum(axis=1) + 1) / (share.sum() + len(personas))
    return replace(personas, weight=weight, rate=rate)


def _spread(channels: Sequence[Channel], common: Array, k: int, turn: float) -> Array:
    """The common curves, bent towards the k-quantiles of the day's activity, moved by a part of their distance."""
    activity = common / common.sum(axis=1, keepdims=True)
    passed = np.cumsum(activity.mean(axis=0))
    centres = np.interp((np.arange(k) + turn) / k, passed, np.arange(HOURS) + 0.5)
    bend = np.exp(np.cos(2 * np.pi * (np.arange(HOURS)[None, :] + 0.5 - centres[:, None]) / HOURS))
    rate: Array = common[:, None, :] * bend[None, :, :]
    # Each as high as the common one on its exposure, so that none begins with more events than the others.
    for c, channel in enumerate(channels):
        exposure = channel.exposure.sum(axis=0)
        rate[c] *= (common[c] @ exposure) / (rate[c] @ exposure)[:, None]
    return rate


def _level_shape(channel: Channel, rate: Array) -> float:
    """Shape of the levels' gamma distribution by moments: counts vary by more than a Poisson's mean² / shape."""
    expected = channel.exposure @ rate
    excess = float(((channel.counts.sum(axis=1) - expected) ** 2 - expected).sum())
    square = float((expected**2).sum())
    low, high = LEVEL_SHAPE_BOUNDS
    return float(np.clip(square / excess, low, high)) if excess > 0 else high


def bent(known: Known, channels: Sequence[Channel], weight: Sequence[float], prior_events: float) -> Array:
    """How far each contact's own hours bend the curve of its personas, shape (n, 24): 1 where they say no more.

    The posterior mean of a gamma distributed relative rate whose prior counts ``prior_events``, over neighbouring
    hours: (events ⊛ K + b) / (expected events ⊛ K + b).

    Parameters
    ----------
    known : Known
        What the personas expect of ``channels``.
    weight : sequence of float
        What an event of each channel counts for.
    prior_events : float
        Infinite: nobody's own hours are looked at.
    """
    if not np.isfinite(prior_events):
        return np.ones_like(channels[0].counts)
    events, expected = np.zeros_like(channels[0].counts), np.zeros_like(channels[0].counts)
    for channel, rate, counts_for in zip(channels, known.rate, weight, strict=True):
        events += counts_for * channel.counts
        expected += counts_for * rate * channel.exposure
    kernel = circular_kernel(PERSONAL_KERNEL_HOURS)
    return np.asarray((events @ kernel + prior_events) / (expected @ kernel + prior_events), dtype=np.float64)


def hours_of_day(counts: Array, k: int, prior_events: float) -> Array:
    """When each contact does what is counted: its distribution over the 24 hours, shape (n, 24), rows summing to 1.

    The curve of the personas it is like, bent by its own hours: what the send-hour model makes of visits.

    Parameters
    ----------
    counts : ndarray, shape (n, 24)
        Events by hour; a contact without any gets the mean of the personas.
    k : int
        Personas, learned from ``counts``.
    prior_events : float
        See `bent`.
    """
    channel = Channel(counts, np.ones_like(counts))
    known = fit_personas([channel.take(counts.sum(axis=1) > 0)], k).know([channel])
    rate = known.rate[0] * bent(known, [channel], [1.0], prior_events)
    return np.asarray(rate / rate.sum(axis=1, keepdims=True), dtype=np.float64)
