"""One rung down: what a version answers with when outcomes prove that it does worse than that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.calibration import Calibration

if TYPE_CHECKING:
    from training.estimators import Estimator
    from training.serving import ServedOutcome

Array = NDArray[np.float64]

#: The lowest rung: everybody gets the share of the population with whom it came true.
BASE_RATE = "base_rate"


@dataclass(frozen=True)
class BaseRate:
    """The same probability for everybody."""

    rate: float
    rung: str = BASE_RATE

    def log_odds(self, X: Array) -> Array:
        """The rate's log-odds, shape (n,)."""
        return np.full(len(X), math.log(self.rate / (1 - self.rate)))

    def contributions(self, X: Array) -> tuple[Array, float | Array]:
        """Nothing by any column: the base is all there is."""
        return np.zeros(np.shape(X)), math.log(self.rate / (1 - self.rate))

    def save(self, folder: Path) -> None:
        """Nothing: the rate stands in the card."""


@dataclass(frozen=True)
class Fallback:
    """The rung below, ready to answer."""

    estimator: Estimator
    calibration: Calibration

    @property
    def rung(self) -> str:
        """Its name."""
        return self.estimator.rung

    def predict(self, X: Array) -> Array:
        """Probabilities, shape (n,)."""
        return self.calibration.apply(self.estimator.log_odds(X))


def fallback_of(model: Any) -> Fallback | None:
    """What stands below a loaded model; None for models that are not of a yes-or-no outcome.

    A version that brings its lower rung along has it as ``fallback`` (with ``estimator`` and ``calibration``). For any
    other it is the base rate of the rows that it was judged on.
    """
    if not hasattr(model, "estimator"):
        return None
    own = getattr(model, "fallback", None)
    if own is not None:
        return Fallback(own.estimator, own.calibration)
    rate = model.card.metrics.get("base_rate")
    if rate is None or not 0 < rate < 1:
        return None
    return Fallback(BaseRate(float(rate)), Calibration())


def fallen_back(model: ServedOutcome, why: str) -> ServedOutcome:
    """The same version, answering with the rung below; itself if there is none.

    Parameters
    ----------
    why : str
        Becomes the reason of its rung.
    """
    below = fallback_of(model)
    if below is None or model.rung == below.rung:
        return model
    card = replace(model.card, rung=below.rung, reason=why)
    return replace(model, card=card, estimator=below.estimator, calibration=below.calibration, orders=None)
