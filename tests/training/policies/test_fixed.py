"""The policies that do not learn."""

from __future__ import annotations

import numpy as np
import pytest

from training.policies import ArmStatistics, FixedSplit


def test_a_fixed_split_does_not_look_at_the_counts() -> None:
    split = FixedSplit({"a": 1, "b": 3})
    seen = ArmStatistics(("a", "b"), np.array([[900], [900]]), np.array([[800], [0]]), np.array([[9.0], [9.0]]))
    assert split.pmf(seen).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": np.inf}])
def test_weights_that_make_no_split_are_refused(weights: dict) -> None:
    with pytest.raises(ValueError, match="make no split"):
        FixedSplit(weights)


def test_an_arm_without_a_weight_is_named() -> None:
    with pytest.raises(ValueError, match="no weight for \\['b'\\]"):
        FixedSplit({"a": 1.0}).pmf(ArmStatistics.empty(("a", "b")))
