"""Draws, masks, floors and statistics."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from training.policies import (
    ArmStatistics,
    choose,
    hashed_draw,
    hashed_draws,
    masked,
    mix_floor,
    policy_from_parameters,
)
from training.policies.base import xxh64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"as", 0x1C330FB2D66BE179),
        (b"asdf", 0x415872F599CEA71E),
        (b"Call me Ishmael. Some years ago--never mind how long precisely-", 0x02A2E85470D6FD96),
    ],
)
def test_xxh64_gives_its_published_values(text: bytes, expected: int) -> None:
    row = np.frombuffer(text, dtype=np.uint8)[None, :]
    assert xxh64(np.concatenate([row, row]), 0).tolist() == [expected, expected]


def test_draws_are_uniform_and_independent_of_their_neighbours() -> None:
    n = 400_000
    draws = hashed_draws("salt", "s", np.arange(n), ["send:1"] * n)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(n)
    counts = np.bincount((draws * 2**53).astype(np.int64) & 0xFF, minlength=256)  # the lowest bits too
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("what", ["salt", "snapshot", "contact", "occurrence"])
def test_each_field_alone_draws_anew(what: str) -> None:
    """Draws under two snapshots, salts, contacts or occurrences are uncorrelated."""
    n = 20_000
    keys, names = np.arange(n), [f"send:{i}" for i in range(n)]
    first = hashed_draws("salt", "s", keys, names)
    second = {
        "salt": lambda: hashed_draws("salu", "s", keys, names),
        "snapshot": lambda: hashed_draws("salt", "t", keys, names),
        "contact": lambda: hashed_draws("salt", "s", keys + 1, names),
        "occurrence": lambda: hashed_draws("salt", "s", keys, [f"send:{i + 1}" for i in range(n)]),
    }[what]()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)


def test_fields_cannot_be_confused_with_their_neighbours() -> None:
    assert hashed_draw("ab", "c", 1, "x") != hashed_draw("a", "bc", 1, "x")
    assert hashed_draw("a", "b", 1, "x") != hashed_draw("a", "b", 1, "x\0")
    assert hashed_draw("a", "b", 1, "") != hashed_draw("a", "b", 1, "\0")


def test_a_batch_gives_what_each_gives_alone_whatever_the_lengths_and_scripts() -> None:
    names = ["send:1", "", "send:123456789", "é", "日本語" * 20, "send:1"]
    keys = np.array([1, 2, 3, -4, 5, 2**62])
    batch = hashed_draws("salt", "s", keys, names)
    assert batch.tolist() == [hashed_draw("salt", "s", int(k), o) for k, o in zip(keys, names, strict=True)]
    assert hashed_draws("salt", "s", keys, np.array(names)).tolist() == batch.tolist()
    assert hashed_draws("salt", "s", np.array([], dtype=np.int64), []).tolist() == []


def test_draws_are_the_same_bits_in_a_fresh_process() -> None:
    program = "from training.policies import hashed_draw; print(repr(hashed_draw('salt', 'snap-1', 42, 'send:7')))"
    environment = {**os.environ, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert float(out.stdout) == hashed_draw("salt", "snap-1", 42, "send:7") == 0.2705747207740823


def test_as_many_occurrences_as_contacts_are_needed() -> None:
    with pytest.raises(ValueError, match="give one occurrence a contact"):
        hashed_draws("salt", "s", np.array([1, 2]), ["x"])


def test_choose_is_exact_at_the_edges() -> None:
    pmf = [0.25, 0.0, 0.25, 0.5, 0.0]
    draws = [0.0, np.nextafter(0.25, 0), 0.25, np.nextafter(0.5, 0), 0.5, np.nextafter(1.0, 0)]
    assert choose(pmf, draws).tolist() == [0, 0, 2, 2, 3, 3]


def test_rounding_of_the_sum_never_chooses_an_arm_without_probability() -> None:
    pmf = np.array([0.1] * 10 + [0.0]) * (1 - 4e-10)
    assert choose(pmf, np.nextafter(1.0, 0)) == 9
    assert choose([0.0, 1.0], 0.0) == 1


@pytest.mark.parametrize("pmf", [[0.5, 0.4], [1.5, -0.5], [[1.0]], [np.nan, 1.0]])
def test_what_is_no_pmf_is_not_drawn_from(pmf: list) -> None:
    with pytest.raises(ValueError, match="is no pmf"):
        choose(pmf, 0.5)


def test_a_masked_arm_is_never_drawn_and_the_rest_keeps_its_proportions() -> None:
    pmf = masked(np.array([0.6, 0.1, 0.3]), [False, True, True])
    np.testing.assert_allclose(pmf, [0.0, 0.25, 0.75])
    assert set(choose(pmf, np.linspace(0, 1, 1001)[:-1]).tolist()) == {1, 2}


def test_masking_every_arm_is_an_error() -> None:
    with pytest.raises(ValueError, match="no arm is open"):
        masked(np.array([0.5, 0.5]), [False, False])


@pytest.mark.parametrize("floor", [-0.1, 0.34, np.nan])
def test_a_floor_that_does_not_fit_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="does not fit 3 arms"):
        mix_floor(np.array([1.0, 0.0, 0.0]), floor)


def test_statistics_add_up_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(3):
        trials = rng.integers(0, 50, (2, 4))
        parts.append(ArmStatistics(("a", "b"), trials, rng.binomial(trials, 0.3), rng.uniform(0, 9, (2, 4))))
    one, other = parts[0] + parts[1] + parts[2], parts[2] + (parts[1] + parts[0])
    assert np.array_equal(one.trials, other.trials)
    assert np.array_equal(one.successes, other.successes)
    np.testing.assert_allclose(one.age_hours, other.age_hours)


@pytest.mark.parametrize(
    ("trials", "successes", "age", "says"),
    [
        ([[1], [1]], [[2], [0]], [[0.0], [0.0]], "more successes than trials"),
        ([[-1], [1]], [[0], [0]], [[0.0], [0.0]], "negative"),
        ([[1], [1]], [[0], [0]], [[np.nan], [0.0]], "not finite"),
        ([[1.5], [1]], [[0], [0]], [[0.0], [0.0]], "whole"),
        ([[1, 2], [1, 2]], [[0], [0]], [[0.0], [0.0]], "shape"),
    ],
)
def test_impossible_statistics_are_refused(trials: list, successes: list, age: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ArmStatistics(("a", "b"), np.array(trials), np.array(successes), np.array(age))


@pytest.mark.parametrize("parameters", [{"policy": "ucb"}, {}, {"policy": "thompson", "flor": 0.1}])
def test_unknown_policies_and_parameters_are_named(parameters: dict) -> None:
    with pytest.raises(ValueError, match=r"unknown|do not fit"):
        policy_from_parameters(parameters)
