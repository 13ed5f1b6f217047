"""Laws of properties as columns: the same event gives the same bits, whatever was read before it."""

from __future__ import annotations

import numpy as np

from features.properties import PropertyColumns


def test_zero_has_one_sign_whatever_was_read_before():
    """-0.0 equals 0.0: told apart by their bits, the first one read would decide what the later one becomes."""
    found = PropertyColumns.parse(['{"a": -0.0}', '{"a": 0.0}', '{"a": "-0"}', '{"a": "-0.0e5"}', '{"a": 0}'])

    assert np.signbit(found.number).tolist() == [False] * 5
    assert len(set(found.number.tobytes()[place : place + 8] for place in range(0, 40, 8))) == 1
    assert found.value[0] == found.value[1] == found.value[4]
