"""Platt's line follows level drift, keeps its slope near 1 and never runs away."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from training.calibration import Calibration, fit_platt


def _drifted(shift: float, slope: float = 1.0, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.normal(-1, 1.2, n)
    return z, (rng.random(n) < expit(shift + slope * z)).astype(float)


def test_a_shift_of_level_is_found_and_mended() -> None:
    """Where every log-odds is off by a constant, the total predicted becomes the total actual."""
    z, y = _drifted(-0.7)
    fitted = fit_platt(z, y)

    assert fitted.intercept == pytest.approx(-0.7, abs=0.06)
    assert fitted.slope == pytest.approx(1.0, abs=0.04)
    assert fitted.apply(z).sum() == pytest.approx(y.sum(), rel=0.002)


def test_few_rows_leave_the_slope_near_one() -> None:
    """Thirty rows do not overturn the slope's prior."""
    z, y = _drifted(0.0, slope=0.2)

    assert 0.7 < fit_platt(z[:30], y[:30]).slope <= 1.1
    assert fit_platt(z, y).slope == pytest.approx(0.2, abs=0.05)


def test_a_kept_slope_is_kept_and_only_the_level_moves() -> None:
    """Refitting the intercept alone leaves the ranking's stretch as it was."""
    z, y = _drifted(0.4)
    fitted = fit_platt(z, y, slope=1.3)

    assert fitted.slope == 1.3
    assert fitted.apply(z).mean() == pytest.approx(y.mean(), abs=0.002)


def test_one_class_gives_a_finite_line() -> None:
    """A window in which nobody bought moves the level down, not to minus infinity."""
    fitted = fit_platt(np.zeros(500), np.zeros(500))

    assert -12 < fitted.intercept < -2
    assert np.isfinite(fitted.apply(np.array([-700.0, 700.0]))).all()


def test_a_line_never_reverses_the_ranking() -> None:
    """Calibration is increasing, so ROC AUC is untouched."""
    z, y = _drifted(0.1)
    p = fit_platt(z, y).apply(np.sort(z))

    assert (np.diff(p) >= 0).all()


def test_no_change_is_the_logistic_function() -> None:
    """Slope 1 and intercept 0 give the plain probability of the log-odds."""
    assert Calibration().apply(np.array([0.0]))[0] == 0.5


def test_a_row_of_weight_two_counts_like_two_rows() -> None:
    """Censoring weights stand for contacts who were not seen."""
    z, y = _drifted(-0.3, n=2_000)
    twice = np.repeat([1, 2], 1_000)

    weighted = fit_platt(z, y, weight=twice.astype(float))
    repeated = fit_platt(np.repeat(z, twice), np.repeat(y, twice))

    assert weighted.slope == pytest.approx(repeated.slope, abs=1e-9)
    assert weighted.intercept == pytest.approx(repeated.intercept, abs=1e-9)
