"""The headline study: its reading, its truth, and what the ways of sending capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training.headlines import (
    FLAT,
    HeadlineTests,
    draw_true_rates,
    earned,
    earned_by_split,
    headlines_report,
    read_headline_tests,
)

FILE = "upworthy_early_weeks.parquet"
#: Figures of an earlier study of the same tests, one noise draw: sends, way, share captured.
EARLIER = {
    (2_000, "split 20 %"): 0.15, (2_000, "split 50 %"): 0.17, (2_000, "thompson, 10 batches"): 0.02,
    (2_000, "thompson, pooled prior, 10 batches"): 0.07,
    (10_000, "split 20 %"): 0.24, (10_000, "split 50 %"): 0.31, (10_000, "thompson, 10 batches"): 0.31,
    (10_000, "thompson, pooled prior, 10 batches"): 0.26, (10_000, "thompson, pooled prior, 50 batches"): 0.29,
    (50_000, "split 20 %"): 0.55, (50_000, "split 50 %"): 0.40, (50_000, "thompson, 10 batches"): 0.56,
    (50_000, "thompson, pooled prior, 10 batches"): 0.56, (50_000, "thompson, pooled prior, 50 batches"): 0.60,
}  # fmt: skip
#: Of the same study, not reached: .094 [.087, .100] over 20 draws.
MISSED = (2_000, "thompson, pooled prior, 50 batches"), 0.15


def made_up(n_tests: int, seed: int) -> HeadlineTests:
    rng = np.random.default_rng(seed)
    is_arm = np.arange(4) < rng.integers(2, 5, n_tests)[:, None]
    impressions = np.where(is_arm, 3000, 0)
    return HeadlineTests(impressions, rng.binomial(impressions, rng.uniform(0.01, 0.03, is_arm.shape)), is_arm)


def test_true_rates_are_the_posteriors_and_shrink_the_winner() -> None:
    tests = made_up(300, 0)
    rng = np.random.default_rng(1)
    rates = np.mean([draw_true_rates(tests, rng) for _ in range(200)], axis=0)
    mean = (tests.clicks.sum(axis=1) / tests.impressions.sum(axis=1))[:, None]
    expected = np.where(tests.is_arm, (2205 * mean + tests.clicks) / (2205 + tests.impressions), 0.0)
    np.testing.assert_allclose(rates, expected, atol=0.002)
    observed = np.where(tests.is_arm, tests.clicks / np.maximum(tests.impressions, 1), 0).max(axis=1)
    assert rates.max(axis=1).mean() < observed.mean()


def test_a_split_earns_what_can_be_reckoned_by_hand() -> None:
    """Rates 0 and 1: half of the tenth that is tested earns nothing, the winner all the rest."""
    rates = np.array([[0.0, 1.0]])
    got = earned_by_split(rates, rates >= 0, 1000, 0.1, np.random.default_rng(0))
    assert got == pytest.approx([50 + 900])


def test_one_batch_is_uniform_and_more_come_near_the_oracle() -> None:
    rates = np.tile([0.05, 0.2], (50, 1))
    is_arm = rates > 0
    rng = np.random.default_rng(0)
    assert earned(FLAT, rates, is_arm, 1000, 1, rng) == pytest.approx(np.full(50, 125.0))
    assert earned(FLAT, rates, is_arm, 10_000, 50, rng).mean() > 1900


def test_the_report_orders_the_ways_and_brackets_them() -> None:
    report = headlines_report(made_up(20, 2), sends=(2_000, 50_000), draws=1)
    assert report == headlines_report(made_up(20, 2), sends=(2_000, 50_000), draws=1)
    by = {(row["sends"], row["way"]): row for row in report["captured"]}
    assert by[2_000, "uniform"]["captured"] == pytest.approx(0)
    for row in report["captured"]:
        assert row["low"] <= row["captured"] <= row["high"]
        assert row["captured"] < 1
    few, many = by[2_000, "thompson, 50 batches"], by[50_000, "thompson, 50 batches"]
    assert many["captured"] > few["captured"] + 0.2


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"headline": ["x"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no column clickability_test_id"):
        read_headline_tests(tmp_path / "x.parquet")


@pytest.mark.data
def test_valid_tests_only(data_folder: Path) -> None:
    tests = read_headline_tests(data_folder / FILE)
    frame = pd.read_parquet(data_folder / FILE)
    suspect = set(frame.loc[frame["randomization_suspect_week"], "clickability_test_id"])
    sound = frame[~frame["clickability_test_id"].isin(suspect)].groupby("clickability_test_id")
    assert len(tests) == ((sound.size() > 1) & (sound["clicks"].sum() > 0)).sum()
    assert tests.is_arm.sum(axis=1).min() >= 2
    with pytest.raises(ValueError, match="ask for fewer"):
        read_headline_tests(data_folder / FILE, 100_000)


@pytest.mark.data
def test_real_headlines_are_captured_as_in_an_earlier_study(data_folder: Path) -> None:
    """60 tests, one draw: within the noise of so few. The slow test has 400 and 20."""
    report = headlines_report(read_headline_tests(data_folder / FILE, 60), sends=(10_000,), draws=1)
    for row in report["captured"]:
        if (row["sends"], row["way"]) in EARLIER:
            assert row["high"] >= EARLIER[row["sends"], row["way"]] - 0.05, row


@pytest.fixture(scope="module")
def captured_of_400(data_folder: Path) -> dict[tuple[int, str], float]:
    report = headlines_report(read_headline_tests(data_folder / FILE, 400))
    return {(row["sends"], row["way"]): row["captured"] for row in report["captured"]}


@pytest.mark.data
@pytest.mark.slow
def test_400_real_tests_capture_no_less_than_an_earlier_study(captured_of_400: dict) -> None:
    for key, before in EARLIER.items():
        assert captured_of_400[key] >= before - 0.05, key


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="2,000 sends in 50 batches with the pooled prior capture .094, not .10")
def test_400_real_tests_of_2000_sends_with_the_pooled_prior_capture_as_much(captured_of_400: dict) -> None:
    key, before = MISSED
    assert captured_of_400[key] >= before - 0.05
