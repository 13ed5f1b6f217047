"""A feature that tells the outcome apart without a miss has not foretold it: it was made from it."""

from __future__ import annotations

import numpy as np

from training.datasets import Array, TrainingSet

#: Of each class, this share may lie on the wrong side: a leak that came a day late for one contact is still one.
TOLERANCE = 0.001
#: With fewer of either class chance may tell them apart.
LEAST_OF_EACH = 20


def leak(data: TrainingSet) -> str | None:
    """What is wrong if one column alone separates the two outcomes; None if none does.

    Missing values stand for less than any number, or for more than any: whether a value is there may leak as well.
    """
    yes, no = data.X[data.y == 1], data.X[data.y == 0]
    if min(len(yes), len(no)) < LEAST_OF_EACH:
        return None
    for column, name in enumerate(data.names):
        for missing in (-np.inf, np.inf):
            (low_yes, high_yes), (low_no, high_no) = (
                _range(np.where(np.isnan(part[:, column]), missing, part[:, column])) for part in (yes, no)
            )
            if low_yes > high_no or low_no > high_yes:
                return (
                    f"the feature {name} alone tells the {len(yes)} rows with the outcome from the {len(no)} without, "
                    "so it holds what it is to foretell: take it out of the view set, declare another event, or see "
                    "whether the events carry the time at which they were known"
                )
    return None


def _range(values: Array) -> tuple[float, float]:
    """Least and greatest value but for the tolerated share at each end."""
    apart = int(TOLERANCE * len(values))
    found = np.partition(values, (apart, len(values) - 1 - apart))
    return float(found[apart]), float(found[len(values) - 1 - apart])
