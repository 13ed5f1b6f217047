"""When does this contact engage: P(a person's click or open within 24 h | sent at local hour h), for all 24 hours."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.metrics import Difference, evaluate, log_losses, paired_difference

Array = NDArray[np.float64]

NAME = "send_hour"
HOURS = 24
#: A send counts once this much time has passed, because answers are awaited this long.
ANSWER_WINDOW_HOURS = 24
#: Below either, the hours are not learned: the installation's default hour stays, and the model says so.
MIN_SENDS = 500
MIN_SPREAD_SENDS = 100
#: A contact has a curve of its own from these on; before, it is served the curve of all.
MIN_CONTACT_SENDS = 5
MIN_CONTACT_ANSWERS = 1
MIN_CONTACT_ACTIVITY = 10
#: Widths of the circular kernels, in hours.
GLOBAL_KERNEL_HOURS = 1.0
PERSONAL_KERNEL_HOURS = 1.5
#: Sends the overall rate counts for in the global curve, per hour.
GLOBAL_PRIOR_SENDS = 50.0
#: Sends the global curve counts for against a contact's own, when a contact's level is estimated.
LEVEL_PRIOR_SENDS = 20.0
#: The same while the global curve is estimated: next to nothing, so that hours are compared within contacts.
WITHIN_PRIOR_SENDS = 1.0
#: One-sided error rate of each of the three proofs that hours matter; together about 3 %.
PROOF_LEVEL = 0.01
#: What is tried: sends the prior counts for, activities the shape of all counts for, hours a mail stays on top.
PRIOR_SENDS_GRID = (10.0, 20.0, 40.0, 80.0)
SHAPE_PRIOR_GRID = (10.0, 30.0, 100.0, float("inf"))
BURIAL_HOURS_GRID = (1.5, 3.0, 6.0)


@dataclass(frozen=True)
class Sends:
    """Closed sends (their 24 h have passed) as parallel arrays, shape (n_sends,), in time order."""

    contact_key: NDArray[np.int64]
    #: Microseconds since 1970 UTC.
    sent_at: NDArray[np.int64]
    #: Local hour of the send, 0-23.
    hour: NDArray[np.int64]
    #: A person opened or clicked within 24 h.
    answered: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.sent_at)

    def take(self, index: NDArray[Any]) -> Sends:
        """The sends at ``index`` (positions or a mask)."""
        return Sends(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Histograms:
    """What is known of contacts: sends, answered sends and activity by local hour, each of shape (n, 24)."""

    sent: Array
    answered: Array
    active: Array

    @classmethod
    def of(cls, X: Array) -> Histograms:
        """From vectors of the view set ``hours``: 24 columns each of sent, answered, active."""
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or X.shape[1] != 3 * HOURS:
            raise ValueError(
                f"hour vectors have shape {X.shape}; pass (n, {3 * HOURS}) columns of the view set `hours`"
            )
        sent, answered, active = np.nan_to_num(X[:, :24]), np.nan_to_num(X[:, 24:48]), np.nan_to_num(X[:, 48:])
        return cls(sent, np.minimum(answered, sent), active)


def circular_kernel(width_hours: float) -> Array:
    """Circulant matrix (24, 24) of Gaussian weights over the distance of two hours on the clock, 1 at distance 0."""
    distance = np.abs(np.subtract.outer(np.arange(HOURS), np.arange(HOURS)))
    distance = np.minimum(distance, HOURS - distance)
    return np.asarray(np.exp(-0.5 * (distance / width_hours) ** 2), dtype=np.float64)


def burial_kernel(hours: float) -> Array:
    """Matrix (24, 24) that turns activity by hour into attention to a mail sent at an hour, columns summing to 1.

    A mail sent at h meets the activity of h, h + 1, …, with weight exp(−delay / hours), because later mail buries it.
    """
    delay = np.subtract.outer(np.arange(HOURS), np.arange(HOURS)) % HOURS  # row: activity at, column: sent at
    weight = np.exp(-delay / hours)
    return np.asarray(weight / weight.sum(axis=0), dtype=np.float64)


@dataclass(frozen=True)
class SendHourModel:
    """Global send-hour rates, and how far a contact's own history and activity bend them.

    With A and E a contact's answered and all sends by hour, ⊛K a circular kernel, g the global rate by hour, ℓ the
    contact's level and s its activity shape (mean 1 under g):
    p(h) = ((A⊛K)(h) + a ℓ g(h) s(h)) / ((E⊛K)(h) + a), the mean of a Beta posterior whose prior counts ``a`` sends.

    References
    ----------
    Clayton, D. & Kaldor, J. (1987), "Empirical Bayes estimates of age-standardized relative risks" (levels and rates
    by alternating shrinkage); Casella, G. (1985), "An introduction to empirical Bayes data analysis".
    """

    #: default (too few sends) | flat (hours do not provably differ) | global | personal
    rung: str
    #: False where hours do not provably differ: curves are then flat and no hour is called best.
    hour_effect: bool
    #: Rate over all hours.
    rate: float
    #: Exposure-corrected rate by local send hour, shape (24,).
    global_rate: Array
    #: Share of all activity by local hour, shape (24,), summing to 1.
    activity: Array
    prior_sends: float
    shape_prior: float
    burial_hours: float

    FILE = "hours.json"

    def predict_hours(self, X: Array) -> Array:
        """P(human click or open within 24 h | sent at local hour h), shape (n, 24), of vectors of shape (n, 72)."""
        known = Histograms.of(X)
        if not self.hour_effect:
            return np.repeat(self._flat(known)[:, None], HOURS, axis=1)
        common = self._global(known)
        if self.rung != "personal":
            return common
        return np.where(_has_own_curve(known)[:, None], self._personal(known), common)

    def predict(self, X: Array) -> Array:
        """P(human click or open within 24 h) at each contact's best hour, shape (n,)."""
        return np.asarray(self.predict_hours(X).max(axis=1), dtype=np.float64)

    def levels(self, X: Array) -> list[str]:
        """``contact`` where the curve is a contact's own, else ``global``."""
        if not self.hour_effect or self.rung != "personal":
            return ["global"] * len(X)
        return ["contact" if own else "global" for own in _has_own_curve(Histograms.of(X))]

    def _level(self, known: Histograms, curve: Array) -> Array:
        """How much more or less than all a contact answers, given the hours it was sent at; shape (n, 1)."""
        prior = LEVEL_PRIOR_SENDS * self.rate
        level = (known.answered.sum(axis=1) + prior) / (known.sent @ curve + prior)
        return np.asarray(level[:, None], dtype=np.float64)

    def _flat(self, known: Histograms) -> Array:
        return _bounded(self._level(known, np.full(HOURS, self.rate))[:, 0] * self.rate)

    def _global(self, known: Histograms) -> Array:
        return _bounded(self._level(known, self.global_rate) * self.global_rate)

    def _shape(self, known: Histograms) -> Array:
        if not np.isfinite(self.shape_prior):
            return np.ones_like(known.active)
        burial = burial_kernel(self.burial_hours)
        common = self.activity @ burial
        own = known.active @ burial + self.shape_prior * common
        shape = own / (known.active.sum(axis=1, keepdims=True) + self.shape_prior) / common
        return np.asarray(shape / (shape @ self.global_rate / self.global_rate.sum())[:, None], dtype=np.float64)

    def _personal(self, known: Histograms) -> Array:
        kernel = circular_kernel(PERSONAL_KERNEL_HOURS)
        prior = self._level(known, self.global_rate) * self.global_rate * self._shape(known)
        answered = known.answered @ kernel + self.prior_sends * prior
        return _bounded(answered / (known.sent @ kernel + self.prior_sends))

    def save(self, folder: Path) -> None:
        """Write ``hours.json``."""
        content = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(self).items()
        }
        content["shape_prior"] = None if np.isinf(self.shape_prior) else self.shape_prior
        (folder / self.FILE).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: Path) -> SendHourModel:
        """Read ``hours.json``."""
        content = json.loads((folder / cls.FILE).read_text())
        content["shape_prior"] = float("inf") if content["shape_prior"] is None else content["shape_prior"]
        for name in ("global_rate", "activity"):
            content[name] = np.array(content[name], dtype=np.float64)
        return cls(**content)


def _bounded(rate: Array) -> Array:
    return np.clip(rate, 1e-6, 0.999)


def _has_own_curve(known: Histograms) -> NDArray[np.bool_]:
    """Enough answered sends, or enough activity of other kinds, to bend the curve of all."""
    mailed = (known.sent.sum(axis=1) >= MIN_CONTACT_SENDS) & (known.answered.sum(axis=1) >= MIN_CONTACT_ANSWERS)
    return np.asarray(mailed | (known.active.sum(axis=1) >= MIN_CONTACT_ACTIVITY), dtype=np.bool_)


@dataclass(frozen=True)
class Slice:
    """Vectors known at an instant, and the sends that came after it: ``row[i]`` is the vector of send i's contact."""

    X: Array
    sends: Sends
    row: NDArray[np.int64]

    def losses(self, curves: Array) -> Array:
        """Negative log-likelihood of each send's answer under curves of shape (n, 24)."""
        return log_losses(self.sends.answered, curves[self.row, self.sends.hour])


@dataclass(frozen=True)
class FittedHours:
    """A model, why it is what it is, and how it did on later sends."""

    model: SendHourModel
    reason: str
    metrics: dict[str, float]


def fit_global(sends: Sends, activity: Array | None = None) -> SendHourModel:
    """Exposure-corrected rates by hour: contact levels and hour rates estimated in turn, the hours shrunk.

    Who is mailed at an hour differs from hour to hour (a scheduler sends to the keen at their best hour), so answers
    are compared with those expected from the same contacts' levels: a Poisson regression with contact effects, whose
    hour effects are consistent however few sends a contact has.

    References
    ----------
    Hausman, J., Hall, B. & Griliches, Z. (1984), "Econometric models for count data with an application to the
    patents–R&D relationship" (fixed effects).
    """
    rate = (sends.answered.sum() + 0.5) / (len(sends) + 1)
    _, contact = np.unique(sends.contact_key, return_inverse=True)
    answered = sends.answered.astype(np.float64)
    kernel = circular_kernel(GLOBAL_KERNEL_HOURS)
    contact_answers, hour_answers = np.bincount(contact, answered), np.bincount(sends.hour, answered, HOURS)
    curve = np.full(HOURS, rate)
    prior = WITHIN_PRIOR_SENDS * rate
    for _ in range(20):
        level = (contact_answers + prior) / (np.bincount(contact, curve[sends.hour]) + prior)
        expected = np.bincount(sends.hour, level[contact], HOURS) * rate
        prior_answers = GLOBAL_PRIOR_SENDS * rate
        curve = _bounded(rate * (hour_answers @ kernel + prior_answers) / (expected @ kernel + prior_answers))
    seen = np.full(HOURS, 1 / HOURS) if activity is None or activity.sum() == 0 else activity / activity.sum()
    return SendHourModel(
        rung="global",
        hour_effect=True,
        rate=float(rate),
        global_rate=curve,
        activity=0.9 * seen + 0.1 / HOURS,  # no hour is so dead that a share of it explodes
        prior_sends=PRIOR_SENDS_GRID[1],
        shape_prior=float("inf"),
        burial_hours=BURIAL_HOURS_GRID[-1],
    )


def too_little(sends: Sends) -> str | None:
    """Why these sends cannot tell hours apart; None if they may."""
    spread = len(sends) - int(np.bincount(sends.hour, minlength=HOURS).max(initial=0))
    if len(sends) >= MIN_SENDS and spread >= MIN_SPREAD_SENDS:
        return None
    return (
        f"{len(sends)} sends are older than 24 h and {spread} of them left outside the commonest hour; learning hours "
        f"takes {MIN_SENDS} and {MIN_SPREAD_SENDS}: the default hour stays, send one campaign spread over the day"
    )


def default_model(sends: Sends, reason: str) -> FittedHours:
    """The flat curve of an installation that has not sent enough."""
    model = replace(fit_global(sends), rung="default", hour_effect=False)
    return FittedHours(model, reason, {"sends": float(len(sends)), "hour_effect": 0.0})


def fit_hours(
    before_tuning: Sends, tuning: Slice, before_judging: Sends, judging: Slice, everything: Sends, X: Array
) -> FittedHours:
    """The rung that predicts later answers best, with its strengths tuned on later answers too.

    Parameters
    ----------
    before_tuning, before_judging, everything : Sends
        Closed sends up to the first split, up to the second, and up to now.
    tuning, judging : Slice
        The sends after the first split up to the second, and after the second, with the vectors known at the split.
    X : ndarray, shape (n, 72)
        Vectors now; their activity gives the shape of all.
    """
    early = fit_global(before_tuning, Histograms.of(tuning.X).active.sum(axis=0))
    tuned = _tune(early, tuning)
    strengths: dict[str, Any] = {
        "prior_sends": tuned.prior_sends,
        "shape_prior": tuned.shape_prior,
        "burial_hours": tuned.burial_hours,
    }
    judged = replace(fit_global(before_judging, Histograms.of(judging.X).active.sum(axis=0)), **strengths)
    known = Histograms.of(judging.X)
    curves = {
        "flat": np.repeat(judged._flat(known)[:, None], HOURS, axis=1),
        "global": judged.predict_hours(judging.X),
        "personal": replace(judged, rung="personal").predict_hours(judging.X),
    }
    losses = {name: judging.losses(curve) for name, curve in curves.items()}
    rung = "personal" if losses["personal"].mean() < losses["global"].mean() else "global"
    gain = paired_difference(losses["flat"] - losses[rung], judging.sends.contact_key)
    p_global = hours_differ(everything)
    p_personal = activity_matters(replace(early, shape_prior=SHAPE_PRIOR_GRID[1]), tuning, judging)
    proven = _proofs(gain, p_global, p_personal)
    model = replace(
        fit_global(everything, Histograms.of(X).active.sum(axis=0)),
        rung=rung if proven else "flat",
        hour_effect=bool(proven),
        **strengths,
    )
    served = curves[rung] if proven else curves["flat"]
    metrics = evaluate(judging.sends.answered, served[judging.row, judging.sends.hour])
    metrics |= {f"{name}_log_loss": float(loss.mean()) for name, loss in losses.items()}
    metrics |= {
        "sends": float(len(everything)),
        "gain_over_flat_nats": gain.mean,
        "gain_over_flat_z": gain.z,
        "hours_differ_p": p_global,
        "activity_matters_p": p_personal,
        "hour_effect": float(bool(proven)),
        "flat_roc_auc": evaluate(judging.sends.answered, curves["flat"][judging.row, judging.sends.hour])["roc_auc"],
    }
    better = f"{rung} curves predicted {len(judging.sends)} later sends best of global and personal"
    if proven:
        reason = f"{better}; {' and '.join(proven)}"
    else:
        reason = (
            f"hours do not provably differ (gain on later sends {gain.mean:+.5f} nats, z {gain.z:.1f}; "
            f"p {p_global:.2f} over all hours, {p_personal:.2f} along activity): curves are flat and no gain is claimed"
        )
    return FittedHours(model, reason, metrics)


def _tune(model: SendHourModel, slice_: Slice) -> SendHourModel:
    candidates = [
        replace(model, rung="personal", prior_sends=a, shape_prior=shape, burial_hours=burial)
        for a, shape, burial in product(PRIOR_SENDS_GRID, SHAPE_PRIOR_GRID, BURIAL_HOURS_GRID)
        if np.isfinite(shape) or burial == BURIAL_HOURS_GRID[-1]
    ]
    return min(candidates, key=lambda one: float(slice_.losses(one.predict_hours(slice_.X)).mean()))


def _proofs(gain: Difference, p_global: float, p_personal: float) -> list[str]:
    from scipy.stats import norm

    proofs = []
    if gain.z > norm.isf(PROOF_LEVEL):
        proofs.append(f"they beat a flat curve there (z {gain.z:.1f})")
    if p_global < PROOF_LEVEL:
        proofs.append(f"answers differ by hour within contact and day (p {p_global:.4f})")
    if p_personal < PROOF_LEVEL:
        proofs.append(f"answers follow a contact's own active hours (p {p_personal:.4f})")
    return proofs


def hours_differ(sends: Sends) -> float:
    """p-value of “no hour effect”: daily and half-daily waves in a linear model with contact and day effects.

    Contact effects keep who is mailed at an hour, day effects keep which campaign ran, out of the comparison.
    """
    angle = 2 * np.pi * sends.hour / HOURS
    waves = np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])
    statistic, rank = _within_test(waves, sends)
    from scipy.stats import chi2

    return float(chi2.sf(statistic @ statistic, rank)) if rank else 1.0


def activity_matters(model: SendHourModel, *slices: Slice) -> float:
    """One-sided p-value of “answers do not follow the contact's own active hours”, known before the sends."""
    from scipy.stats import norm

    shape = np.concatenate([np.log(model._shape(Histograms.of(s.X)))[s.row, s.sends.hour] for s in slices])
    sends = Sends(*(np.concatenate([getattr(s.sends, f.name) for s in slices]) for f in fields(Sends)))
    # Within contact and slice: a later vector knows the earlier slice's answers, and must not be compared across it.
    part = np.repeat(np.arange(len(slices)), [len(s.sends) for s in slices])
    statistic, rank = _within_test(shape[:, None], sends, part)
    return float(norm.sf(statistic[0])) if rank else 1.0


def _within_test(regressors: Array, sends: Sends, part: NDArray[np.int64] | None = None) -> tuple[Array, int]:
    """Score of each regressor within contact (and part) and day, in standard errors over contacts, and their rank.

    References
    ----------
    Frisch, R. & Waugh, F. V. (1933), "Partial time regressions as compared with individual trends"; Liang, K.-Y. &
    Zeger, S. L. (1986), "Longitudinal data analysis using generalized linear models" (cluster-robust variance).
    """
    _, contact = np.unique(sends.contact_key, return_inverse=True)
    _, day = np.unique(sends.sent_at // 86_400_000_000, return_inverse=True)
    own = contact if part is None else np.unique(contact * (part.max() + 1) + part, return_inverse=True)[1]
    both = np.column_stack([sends.answered.astype(np.float64), regressors])
    for _ in range(20):  # alternating projections; a few rounds suffice for nearly balanced panels
        for group in (own, day):
            count = np.bincount(group)
            for column in range(both.shape[1]):
                both[:, column] -= (np.bincount(group, both[:, column]) / count)[group]
    residual, within = both[:, 0], both[:, 1:]
    moments = np.column_stack([np.bincount(contact, residual * within[:, j]) for j in range(within.shape[1])])
    values, vectors = np.linalg.eigh(moments.T @ moments)
    kept = values > max(values.max(initial=0.0), 1e-12) * 1e-8
    scores = (moments.sum(axis=0) @ vectors[:, kept]) / np.sqrt(values[kept])
    if regressors.shape[1] == 1 and kept.any():
        scores = np.array([float(moments.sum()) / float(np.sqrt((moments**2).sum()))])  # keep the sign of the effect
    return scores, int(kept.sum())
