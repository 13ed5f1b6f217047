"""Metrics agree with scikit-learn and with what they say of themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from training import metrics


def _rows(seed: int, n: int = 300, levels: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = rng.integers(1, levels, n) / levels  # few levels, so that ties are common
    return (rng.random(n) < probability).astype(float), probability


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_ranking_and_loss_agree_with_scikit_learn(seed: int) -> None:
    """ROC AUC, average precision, Brier and log-loss are scikit-learn's, ties included."""
    y, p = _rows(seed)

    assert metrics.roc_auc(y, p) == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert metrics.pr_auc(y, p) == pytest.approx(average_precision_score(y, p), abs=1e-12)
    assert metrics.brier(y, p) == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    assert metrics.log_losses(y, p).mean() == pytest.approx(log_loss(y, p), abs=1e-9)


def test_weighted_auc_equals_auc_of_repeated_rows() -> None:
    """A weight of k says the same as the row k times over."""
    y, p = _rows(3)
    weight = np.random.default_rng(0).integers(0, 4, len(y))

    repeated = metrics.roc_auc(np.repeat(y, weight), np.repeat(p, weight))

    assert metrics.roc_auc(y, p, weight) == pytest.approx(repeated, abs=1e-12)


def test_ece_is_zero_when_every_bin_keeps_its_promise_and_the_shift_when_all_are_off() -> None:
    """ECE is the mean gap of promise and truth over bins of equal count."""
    promised = np.repeat([0.2, 0.6], 100)
    y = np.concatenate([np.repeat([1, 0], [20, 80]), np.repeat([1, 0], [60, 40])])

    assert metrics.expected_calibration_error(y, promised, bins=2) == pytest.approx(0.0, abs=1e-12)
    assert metrics.expected_calibration_error(y, promised + 0.1, bins=2) == pytest.approx(0.1, abs=1e-12)


def test_lift_does_not_depend_on_the_order_of_tied_rows() -> None:
    """Rows tied at the border of the top tenth count in proportion."""
    y, p = _rows(5, levels=4)
    shuffled = np.random.default_rng(1).permutation(len(y))

    assert metrics.lift_at(y, p) == pytest.approx(metrics.lift_at(y[shuffled], p[shuffled]))


def test_interval_over_contacts_is_wider_when_rows_of_a_contact_repeat() -> None:
    """Copies of the same contacts carry no new information, so the interval does not shrink."""
    y, p = _rows(7, n=400, levels=1000)
    key = np.arange(len(y))
    squared = (p - y) ** 2
    single = metrics.bootstrap_mean(squared, key, rng=np.random.default_rng(0))
    copied = metrics.bootstrap_mean(np.tile(squared, 9), np.tile(key, 9), rng=np.random.default_rng(0))

    assert copied[1] - copied[0] == pytest.approx(single[1] - single[0], rel=0.1)


def test_interval_covers_the_truth() -> None:
    """The 95 % interval of Brier holds the expected score in about 95 of 100 samples."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.05, 0.95, 200)
        y = (rng.random(200) < p).astype(float)
        low, high = metrics.bootstrap_mean((p - y) ** 2, np.arange(200), rng=rng, replicates=100, level=0.95)
        covered += low <= np.mean(0.05 + 0.9 * 0.5 - (0.9**2 / 12 + 0.5**2)) <= high

    assert covered >= 85


def test_one_class_has_no_auc_and_no_numbers_are_refused() -> None:
    """With one class the AUC is NaN, and a score that is no number is an error that says so."""
    assert np.isnan(metrics.roc_auc(np.zeros(3), np.arange(3)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        metrics.brier(np.array([0, 1]), np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="no rows"):
        metrics.evaluate(np.array([]), np.array([]))


def test_paired_difference_counts_contacts_not_rows() -> None:
    """A contact's rows repeated make the mean no surer."""
    values = np.random.default_rng(2).normal(0.1, 1, 50)
    once = metrics.paired_difference(values, np.arange(50))
    often = metrics.paired_difference(np.tile(values, 20), np.tile(np.arange(50), 20))

    assert often.mean == pytest.approx(once.mean)
    assert often.standard_error == pytest.approx(once.standard_error)
