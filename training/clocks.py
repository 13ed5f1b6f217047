"""Whose clock is it: hours that have moved, and the zone that a contact's round of the day gives away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.personas import HOURS

Array = NDArray[np.float64]

#: A clock has moved when the mean hour of the last 30 days lies further than this from the mean hour before.
MOVED_HOURS = 3.0
#: Events needed before and after, and how many standard errors beyond ``MOVED_HOURS`` the move must lie: the errors are
#: those of single events, and pages come in visits of some four.
MIN_EVENTS = 10
MOVED_ERRORS = 4.0
#: Below this concentration (resultant length) a round of the day has no mean hour to speak of.
MIN_CONCENTRATION = 0.3
#: A zone is claimed when the offset, give or take so many hours, has at least this probability.
CLAIM_PROBABILITY, NEAR_HOURS = 0.9, 2
#: Events after which a contact's further ones tell little more of its zone: they tell its own habits then.
SATURATION_EVENTS = 20.0
#: What a persona is worth at least, against the flattest day, so that no single event rules an offset out.
_FLAT_SHARE = 0.05


@dataclass(frozen=True)
class Moved:
    """How far clocks have moved, shape (n,) each."""

    #: Hours from the older to the recent mean hour, -12 to 12; NaN where there is too little to say.
    hours: Array
    #: True where that is provably more than 3 h.
    alarm: NDArray[np.bool_]


def circular_mean(counts: Array) -> tuple[Array, Array, Array]:
    """Mean hour of counts by hour (n, 24), its concentration from 0 to 1, and its standard error in hours; shape (n,).

    References
    ----------
    Fisher, N. I. (1993), "Statistical analysis of circular data", section 4.4 (circular standard error).

    Examples
    --------
    >>> mean, concentration, _ = circular_mean(np.eye(24)[[23]] + np.eye(24)[[1]])
    >>> float(mean[0]), round(float(concentration[0]), 3)
    (0.5, 0.966)
    """
    angle = 2 * np.pi * (np.arange(HOURS) + 0.5) / HOURS
    total = np.maximum(counts.sum(axis=1), 1e-9)
    first = (counts @ np.exp(1j * angle)) / total
    mean, concentration = np.angle(first), np.abs(first)
    second = np.real((counts @ np.exp(2j * angle)) / total * np.exp(-2j * mean))
    spread = np.maximum(1 - second, 0) / (2 * np.maximum(concentration, 1e-9) ** 2)
    to_hours = HOURS / (2 * np.pi)
    return np.round((mean * to_hours) % HOURS, 9), concentration, np.sqrt(spread / total) * to_hours


def moved_clocks(recent: Array, older: Array) -> Moved:
    """Whether the mean hour of ``recent`` counts lies provably more than 3 h from that of ``older`` ones.

    Take what people do by themselves: answers to mail follow the hours at which mail is sent.

    Parameters
    ----------
    recent, older : ndarray, shape (n, 24)
        Events by local hour in the last 30 days and before.
    """
    enough = (recent.sum(axis=1) >= MIN_EVENTS) & (older.sum(axis=1) >= MIN_EVENTS)
    hours = np.full(len(recent), np.nan)
    alarm = np.zeros(len(recent), dtype=bool)
    if enough.any():
        now, now_concentration, now_error = circular_mean(recent[enough])
        then, then_concentration, then_error = circular_mean(older[enough])
        distance = (now - then + HOURS / 2) % HOURS - HOURS / 2
        sharp = np.minimum(now_concentration, then_concentration) >= MIN_CONCENTRATION
        hours[enough] = np.where(sharp, distance, np.nan)
        error = np.hypot(now_error, then_error)
        alarm[enough] = sharp & (np.abs(distance) > MOVED_HOURS + MOVED_ERRORS * error)
    return Moved(hours, alarm)


@dataclass(frozen=True)
class Offsets:
    """How far each contact's clock runs ahead of the clock its events were counted by, shape (n,) each."""

    #: Whole hours, -11 to 12: the most probable; add it to an hour counted to get the contact's own.
    hours: NDArray[np.int64]
    #: Probability of that offset, give or take two hours.
    confidence: Array
    #: True where the confidence allows the claim; elsewhere the zone stays unknown.
    is_claimed: NDArray[np.bool_]


def infer_offsets(
    counts: Array, profiles: Array, weight: Array, *, prior: Array | None = None, offsets: Sequence[int] | None = None
) -> Offsets:
    """Offset of each contact's zone from the hours it is up: which turn of everyone's day fits its trough and peaks.

    Early and late risers are told from early and late zones only as far as the profiles differ by more than a turn:
    with a morning and an evening persona an evening reader may be a morning reader elsewhere, and nothing is claimed.

    Parameters
    ----------
    counts : ndarray, shape (n, 24)
        Events by hour of the clock they were counted by, such as the installation's.
    profiles : ndarray, shape (K, 24)
        Curves of people whose zone is known, by their own hours (``Personas.rate`` of visits).
    weight : ndarray, shape (K,)
        Their shares.
    prior : ndarray, shape (n_offsets,), optional
        Probability of each offset; alike by default.
    offsets : sequence of int, optional
        Whole hours that may be; all 24 by default.

    Returns
    -------
    Offsets
        Claimed where the offset give or take two hours has a probability of at least .9, under the mixture likelihood
        with the events of a contact counting less the more there are (they come in bursts).
    """
    tried = np.arange(-HOURS // 2 + 1, HOURS // 2 + 1) if offsets is None else np.asarray(offsets, dtype=np.int64)
    share = profiles / profiles.sum(axis=1, keepdims=True)
    share = (1 - _FLAT_SHARE) * share + _FLAT_SHARE / HOURS
    total = counts.sum(axis=1, keepdims=True)
    told = counts * (1 + SATURATION_EVENTS) / (np.maximum(total, 1) + SATURATION_EVENTS)
    # An event counted at hour h happened at h + offset on the contact's clock.
    turned = np.stack([np.roll(np.log(share), -offset, axis=1) for offset in tried])  # (n_offsets, K, 24)
    log_likelihood = np.einsum("nh,okh->nok", told, turned) + np.log(weight)
    log_prior = np.zeros(len(tried)) if prior is None else np.log(np.maximum(prior, 1e-12))
    log_posterior = np.logaddexp.reduce(log_likelihood, axis=2) + log_prior
    posterior = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    distance = np.abs((tried[:, None] - tried[None, :] + HOURS // 2) % HOURS - HOURS // 2)
    near = posterior @ (distance <= NEAR_HOURS)
    best = posterior.argmax(axis=1)
    confidence = near[np.arange(len(counts)), best]
    return Offsets(tried[best], confidence, (confidence >= CLAIM_PROBABILITY) & (total[:, 0] >= MIN_EVENTS))
