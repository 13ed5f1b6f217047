"""Which rung answers and how it did: fitted as of each cut-off, chosen on earlier ones, judged on later ones.

A *walk* goes back from an instant in steps of the horizon. At each of its cut-offs every rung is fitted on what was
known there and asked about the contacts of that day. A cut-off's outcomes are known one step later; so the choice among
the rungs at a cut-off, and the calibration of each, rest on the answers given at the cut-offs before it, to outcomes
that the fits had not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from features.views import ViewSet
from training.bgnbd import BGNBD, CannotFit
from training.calibration import Calibration, fit_platt
from training.datasets import DAY_MICROS, TrainingSet
from training.estimators import Estimator, OneClass, RidgeLogistic, SmallLightGBM
from training.explain import family_by_column
from training.metrics import log_losses, paired_difference
from training.outcomes import LEAST_CONTACTS, LEAST_OF_EACH
from training.rungs import HISTORY, BaseRates, Blend, BuyingHistory, history, history_columns

Array = NDArray[np.float64]
logger = logging.getLogger(__name__)

#: Below any of these not even base rates say anything.
LEAST_ROWS = 20
#: LightGBM loses to the logistic below about this many contacts or positive ones (measured on real orders).
LIGHTGBM_CONTACTS, LIGHTGBM_POSITIVES = 1_000, 200
#: Above this many contacts a few sizes of the trees compete.
TUNED_CONTACTS = 20_000
#: Cut-offs on which a choice rests, at most.
CHOICE_CUTOFFS = 3
#: Families of views that a logistic regression only finds noise in: a dozen bins each.
NOISY_FAMILIES = {"hours"}

#: Parts of each rung, lowest first. A rung with a part that cannot be fitted is no candidate.
BUYER_RUNGS: dict[str, tuple[str, ...]] = {
    "base_rates": ("base_rates",),
    "prior": ("prior",),
    "bgnbd": ("bgnbd",),
    # Alone where mail and visits tell more than the buying history does.
    "ridge": ("logistic",),
    "logistic": ("bgnbd", "logistic"),
    "boosted": ("logistic", "lightgbm"),
    "blend": ("bgnbd", "logistic", "lightgbm"),
    "tuned_31": ("bgnbd", "logistic", "lightgbm_31"),
    "tuned_63": ("bgnbd", "logistic", "lightgbm_63"),
}
#: The same where no buying history tells anything: leads, and outcomes that are not about orders.
PLAIN_RUNGS: dict[str, tuple[str, ...]] = {
    "base_rates": ("base_rates",),
    "logistic": ("logistic",),
    "blend": ("logistic", "lightgbm"),
    "tuned_31": ("logistic", "lightgbm_31"),
    "tuned_63": ("logistic", "lightgbm_63"),
}
#: Leaves and least rows a leaf.
TREES = {"lightgbm": (15, 40), "lightgbm_31": (31, 100), "lightgbm_63": (63, 200)}
#: Prior spread of the level of what was fitted without labels: BG/NBD knows its level better than one window does.
LEVEL_SD = {"bgnbd": 0.3}


class NotEnoughData(ValueError):
    """Too few contacts, outcomes or days for any answer; the message has the counts and the remedy."""


@dataclass(frozen=True)
class Counts:
    """Contacts that a choice could learn from."""

    contacts: int
    positives: int
    negatives: int

    @classmethod
    def of(cls, data: TrainingSet) -> Counts:
        """Contacts in ``data``, with the outcome at some instant, and without it at some instant."""
        with_outcome = [len(np.unique(data.contact_key[data.y == value])) for value in (1, 0)]
        return cls(len(np.unique(data.contact_key)), *with_outcome)

    @property
    def suffice(self) -> bool:
        """Whether a personal score may be learned."""
        return self.contacts >= LEAST_CONTACTS and min(self.positives, self.negatives) >= LEAST_OF_EACH


@dataclass(frozen=True)
class Choice:
    """A rung and why."""

    rung: str
    reason: str


@dataclass
class Walk:
    """The rungs fitted as of one cut-off after the other, each part once.

    Parameters
    ----------
    data : TrainingSet
        Rows at instants of one grid that holds every cut-off which the walk visits.
    newest : int
        Microseconds since 1970 UTC; the last cut-off.
    horizon_days : int
        The step of the walk, and the horizon of the outcomes in ``data``.
    rungs : mapping
        `BUYER_RUNGS` or `PLAIN_RUNGS`.
    views : ViewSet
        Of the vectors.
    today : ndarray, shape (m, p), optional
        Vectors at ``newest``, where ``data`` has no rows there because nothing is known of what follows.
    """

    data: TrainingSet
    newest: int
    horizon_days: int
    rungs: Mapping[str, tuple[str, ...]]
    views: ViewSet
    seed: int = 0
    today: Array | None = None
    _counts: dict[int, Counts] = field(default_factory=dict)
    _parts: dict[tuple[int, str], Estimator | None] = field(default_factory=dict)
    _raw: dict[tuple[int, str], Array] = field(default_factory=dict)
    _lines: dict[tuple[int, str], Calibration] = field(default_factory=dict)
    _losses: dict[tuple[int, str], Array] = field(default_factory=dict)

    def before(self, cutoff: int, steps: int = 1) -> int:
        """The cut-off ``steps`` earlier."""
        return cutoff - steps * self.horizon_days * DAY_MICROS

    def known(self, cutoff: int) -> TrainingSet:
        """Rows whose outcome was known at ``cutoff``."""
        return self.data.closed_by(cutoff, self.horizon_days)

    def rows(self, cutoff: int) -> TrainingSet:
        """The contacts of the day of ``cutoff``; their outcomes were not known then."""
        return self.data.at(cutoff)

    def candidates(self, counts: Counts) -> list[str]:
        """Rungs that this many contacts may be answered by, lowest first."""
        if not counts.suffice:
            return ["base_rates"]
        boosts = counts.contacts >= LIGHTGBM_CONTACTS and counts.positives >= LIGHTGBM_POSITIVES
        parts = {"bgnbd", "prior", "base_rates", "logistic"}
        parts |= {"lightgbm"} if boosts else set()
        parts |= set(TREES) if boosts and counts.contacts > TUNED_CONTACTS else set()
        return [name for name, needed in self.rungs.items() if parts.issuperset(needed)]

    def fit(self, cutoff: int, rung: str) -> Blend | None:
        """``rung`` as it would have answered at ``cutoff``; None where it is unknown or cannot be fitted."""
        parts = []
        for name in self.rungs.get(rung, ()):
            estimator = self._part(cutoff, name)
            if estimator is None:
                return None
            parts.append((estimator, self._line(cutoff, name)))
        return Blend(rung, tuple(parts)) if parts else None

    def choose(self, cutoff: int) -> Choice:
        """The rung that answered best at the cut-offs whose outcomes were known at ``cutoff``, and why.

        From the lowest on, a rung takes over from the best so far if its log-loss is lower over the earlier cut-offs
        together and at most of them.
        """
        counts = self.counts(cutoff)
        candidates = self.candidates(counts)
        said = f"{counts.contacts} contacts, {counts.positives} with the outcome"
        if candidates == ["base_rates"]:
            return Choice(
                "base_rates",
                f"not enough data for a personal score ({said}, {counts.negatives} without; it takes {LEAST_CONTACTS} "
                f"and {LEAST_OF_EACH} of each): base rates by recency",
            )
        if "blend" not in candidates:
            said += f": below {LIGHTGBM_CONTACTS} and {LIGHTGBM_POSITIVES} LightGBM is not tried"
        earlier = [self.before(cutoff, k) for k in range(1, CHOICE_CUTOFFS + 1)]
        earlier = [c for c in earlier if len(self.rows(c)) and self._can_learn(c)]
        if not earlier:
            fallback = next(
                name for name in ("logistic", "ridge", "bgnbd", "prior", "base_rates")
                if name in self.rungs and self.fit(cutoff, name)
            )  # fmt: skip
            return Choice(fallback, f"{said}; the history is too short to compare rungs on an earlier cut-off")
        keys = np.concatenate([self.rows(c).contact_key for c in earlier])
        losses: dict[str, list[Array]] = {}
        for rung in candidates:
            found = [self.losses(c, rung) for c in earlier]
            if self.fit(cutoff, rung) is not None and all(one is not None for one in found):
                losses[rung] = [one for one in found if one is not None]
        best = "base_rates"
        z = 0.0
        for rung in list(losses)[1:]:
            wins = [float((a - b).mean()) > 0 for a, b in zip(losses[best], losses[rung], strict=True)]
            gain = paired_difference(np.concatenate(losses[best]) - np.concatenate(losses[rung]), keys)
            if gain.mean > 0 and 2 * sum(wins) > len(wins):
                best, z = rung, gain.z
        means = ", ".join(f"{name} {np.concatenate(loss).mean():.4f}" for name, loss in losses.items())
        won = f", z {z:+.1f} over the rung below" if best != "base_rates" else ""
        return Choice(
            best, f"least log-loss on {len(earlier)} earlier cut-off{'s' * (len(earlier) > 1)} ({means}{won}); {said}"
        )

    def losses(self, cutoff: int, rung: str) -> Array | None:
        """Weighted log-loss of each contact of the day, shape (n,); None where the rung cannot be fitted there."""
        key = (cutoff, rung)
        if key not in self._losses:
            log_odds = self.answers(cutoff, rung)
            if log_odds is None:
                return None
            rows = self.rows(cutoff)
            self._losses[key] = rows.weight / rows.weight.mean() * log_losses(rows.y, expit(log_odds))
        return self._losses[key]

    def answers(self, cutoff: int, rung: str) -> Array | None:
        """Calibrated log-odds of the contacts of the day, shape (n,)."""
        fitted = self.fit(cutoff, rung)
        if fitted is None:
            return None
        scores = [  # a part's are computed once for all rungs that it is in
            line.intercept + line.slope * self._scores(cutoff, name)
            for name, (_, line) in zip(self.rungs[rung], fitted.parts, strict=True)
        ]
        return np.asarray(np.mean(scores, axis=0))

    def bgnbd(self, cutoff: int) -> BGNBD | None:
        """BG/NBD of the buyers of the day; None where it cannot be fitted."""
        part = self._part(cutoff, "bgnbd") if "bgnbd" in self.rungs else None
        return BGNBD.from_dict(part.parameters) if isinstance(part, BuyingHistory) else None

    def counts(self, cutoff: int) -> Counts:
        """Contacts whose outcome was known at ``cutoff``."""
        if cutoff not in self._counts:
            self._counts[cutoff] = Counts.of(self.known(cutoff))
        return self._counts[cutoff]

    def _can_learn(self, cutoff: int) -> bool:
        return self.counts(cutoff).suffice

    def _vectors(self, cutoff: int) -> Array:
        if cutoff == self.newest and self.today is not None:
            return self.today
        return self.rows(cutoff).X

    def _scores(self, cutoff: int, name: str) -> Array:
        key = (cutoff, name)
        if key not in self._raw:
            part = self._part(cutoff, name)
            assert part is not None
            self._raw[key] = part.log_odds(self.rows(cutoff).X)
        return self._raw[key]

    def _line(self, cutoff: int, name: str) -> Calibration:
        """Slope from the answers one step earlier, which had not seen their outcomes; level of that window."""
        key = (cutoff, name)
        if key not in self._lines:
            earlier = self.before(cutoff)
            last = self.rows(earlier)
            part = self._part(cutoff, name)
            assert part is not None
            if name == "base_rates" or not len(last):
                self._lines[key] = Calibration()
            else:
                slope = 1.0
                if self._can_learn(earlier) and self._part(earlier, name) is not None:
                    slope = fit_platt(self._scores(earlier, name), last.y, weight=last.weight).slope
                self._lines[key] = fit_platt(
                    part.log_odds(last.X), last.y, slope=slope, intercept_sd=LEVEL_SD.get(name), weight=last.weight
                )
        return self._lines[key]

    def _part(self, cutoff: int, name: str) -> Estimator | None:
        key = (cutoff, name)
        if key not in self._parts:
            try:
                self._parts[key] = self._fitted(cutoff, name)
            except (CannotFit, OneClass) as error:
                logger.info("%s is left out: %s", name, error, extra={"action": "rung_left_out", "rung": name})
                self._parts[key] = None
        return self._parts[key]

    def _fitted(self, cutoff: int, name: str) -> Estimator:
        if name in ("bgnbd", "prior"):
            X = self._vectors(cutoff)
            columns = history_columns(self.data.names)
            if name == "prior":
                return BuyingHistory.prior(X, columns, self.horizon_days)
            return BuyingHistory.bgnbd(BGNBD.fit(*history(X, columns)), X, columns, self.horizon_days)
        known = self.known(cutoff)
        if name == "base_rates":
            column = self.data.names.index(HISTORY[1] if "bgnbd" in self.rungs else "days_since_active")
            return BaseRates.fit(known.X, known.y, column, self.horizon_days, known.weight)
        if name == "logistic":
            left_out = np.isin(family_by_column(self.views), list(NOISY_FAMILIES))
            return RidgeLogistic.fit(known.X, known.y, weight=known.weight, left_out=left_out)
        leaves, rows = TREES[name]
        return SmallLightGBM.fit(
            known.X, known.y, seed=self.seed, weight=known.weight, num_leaves=leaves, min_data_in_leaf=rows
        )


def check_enough(data: TrainingSet, name: str) -> None:
    """Refuse a training set in which nothing, or only one thing, ever happened.

    Raises
    ------
    NotEnoughData
        With the counts, the limits and what to do.
    """
    counts = Counts.of(data)
    if len(data) < LEAST_ROWS or min(counts.positives, counts.negatives) < 1:
        raise NotEnoughData(
            f"{name} has {counts.contacts} contacts with a closed outcome, {counts.positives} with it and "
            f"{counts.negatives} without; even base rates take {LEAST_ROWS} rows and one of each: import a longer "
            "history, or ask over another horizon (--horizon-days)"
        )


def rival_column(known: TrainingSet, rows: TrainingSet, column: str) -> Array:
    """Probabilities by a logistic regression on one column."""
    alone = [known.names.index(column)]
    try:
        fitted = RidgeLogistic.fit(known.X[:, alone], known.y, weight=known.weight)
    except OneClass:
        return np.full(len(rows), np.average(known.y, weights=known.weight))
    return np.asarray(expit(fitted.log_odds(rows.X[:, alone])))
