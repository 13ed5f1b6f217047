"""The test of realised counts against the probabilities that they were drawn with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from training.batches import Batches
from training.sample_ratio import sample_ratio, sample_ratio_log_e


def test_the_e_value_of_a_right_draw_is_one_on_average() -> None:
    """Exactly, by summing over every outcome of a batch of 60."""
    counts = np.arange(61)
    table = np.stack([counts, 60 - counts], axis=-1)[:, None, :]
    for share in (0.05, 0.3, 0.5):
        e = np.exp(sample_ratio_log_e(np.broadcast_to([share, 1 - share], table.shape), table)[:, -1])
        assert (stats.binom.pmf(counts, 60, share) * e).sum() == pytest.approx(1.0)


def test_right_draws_rarely_alarm_however_the_pmf_moves() -> None:
    rng = np.random.default_rng(1)
    pmf = rng.dirichlet([2.0, 2.0, 2.0], (500, 40))
    trials = rng.multinomial(500, pmf)
    assert (sample_ratio_log_e(pmf, trials).max(axis=1) >= np.log(100)).mean() <= 0.015


def test_a_percent_of_lost_decisions_alarms_in_a_million_and_in_one_batch() -> None:
    lost = Batches.of(("a", "b"), [[0.5, 0.5]], [[495_000, 505_000]], [[0, 0]])
    assert sample_ratio(lost).is_off
    assert "look for lost or doubled decisions" in sample_ratio(lost).sentence
    right = Batches.of(("a", "b"), [[0.5, 0.5]], [[500_400, 499_600]], [[0, 0]])
    assert not sample_ratio(right).is_off
    assert sample_ratio(right).p_value <= 1.0
