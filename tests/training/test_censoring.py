"""Mailing less neither makes churners nor erases them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.events import COLUMN_TYPES, DAY_MICROS, KNOWN_KINDS, EventColumns
from features.kernel import sweep
from features.labels import EMAIL_CHURN, label, observed
from features.views import DEFAULT_VIEWS
from features.vocabulary import EMAIL_CLICKED, EMAIL_SENT
from training.censoring import MOST_WEIGHT, censoring_weights, exposure_strata

CONTACTS = 6_000
NOW = 20_000 * DAY_MICROS
HORIZON = 60


def _mailbox(rng: np.random.Generator, halved: np.ndarray) -> tuple[EventColumns, np.ndarray]:
    """A log of 150 days around ``NOW``, and who has lost interest by then; ``halved`` get half of the mails after it.

    The first half of the contacts answered lately, and goes on getting more mail; most of those who lost interest are
    among the others.
    """
    is_lively = np.arange(CONTACTS) < CONTACTS // 2
    is_lost = rng.random(CONTACTS) < np.where(is_lively, 0.1, 0.6)
    parts = []
    for after in (False, True):
        days = HORIZON if after else 90
        rate = np.where(is_lively, 12, 8) * days / 60 / (np.where(halved, 2, 1) if after else 1)
        key = np.repeat(np.arange(CONTACTS), rng.poisson(rate))
        at = NOW + ((rng.random(len(key)) - (0 if after else 1)) * days * DAY_MICROS).astype(np.int64)
        if after:
            answers = (rng.random(len(key)) < 0.7) & ~is_lost[key]
        else:
            answers = (rng.random(len(key)) < 0.5) & (is_lively[key] | (at < NOW - 40 * DAY_MICROS))
        parts += [(key, at, EMAIL_SENT), (key[answers], at[answers] + 1_000_000, EMAIL_CLICKED)]
    arrays = {name: np.zeros(sum(len(part[0]) for part in parts), dtype) for name, dtype in COLUMN_TYPES.items()}
    arrays["contact_key"] = np.concatenate([key for key, _, _ in parts])
    arrays["occurred_at"] = arrays["received_at"] = np.concatenate([at for _, at, _ in parts])
    arrays["kind"] = np.concatenate([np.full(len(key), KNOWN_KINDS.index(kind), np.int32) for key, _, kind in parts])
    arrays["human_ppm"][:] = 900_000
    arrays["seq"] = np.arange(len(arrays["kind"]))
    return EventColumns(**arrays).sorted(), is_lost


@pytest.mark.parametrize("whose", ["a random half", "those who answer less"])
def test_halving_the_mail_of_half_of_the_contacts_leaves_the_churn_rate(whose: str) -> None:
    """The weighted rate stays; calling the unseen churners, leaving them out, or calling them loyal moves it."""
    rng = np.random.default_rng(5)
    everybody = np.arange(CONTACTS)
    halved = rng.random(CONTACTS) < 0.5 if whose == "a random half" else everybody >= CONTACTS // 2
    rates: dict[str, list[float]] = {}
    for who in (np.zeros(CONTACTS, dtype=bool), halved):
        columns, is_lost = _mailbox(np.random.default_rng(9), who)
        as_of = np.full(CONTACTS, NOW)
        X = sweep(columns, everybody, as_of, DEFAULT_VIEWS)
        y = label(EMAIL_CHURN, columns, everybody, as_of)
        is_seen = observed(EMAIL_CHURN, columns, everybody, as_of)
        weight = censoring_weights(is_seen, as_of, exposure_strata(X, DEFAULT_VIEWS.names))
        found = {
            "weighted": float(np.average(y, weights=weight)),
            "truth": float(is_lost.mean()),
            "no answer": float(y.mean()),
            "those seen": float(y[is_seen].mean()),
            "seen without answer": float((y * is_seen).mean()),
        }
        for name, rate in found.items():
            rates.setdefault(name, []).append(rate)

    noise = 3 * np.sqrt(0.35 * 0.65 * 2 / CONTACTS)
    assert all(abs(rate - rates["truth"][0]) < noise for rate in rates["weighted"])
    assert rates["those seen"][1] < rates["truth"][1] - noise
    assert rates["seen without answer"][1] < rates["seen without answer"][0] - 2 * noise
    assert rates["no answer"][1] > rates["no answer"][0]


rows = st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=200)


@given(rows=rows)
@settings(deadline=None)
def test_weights_are_positive_where_something_was_seen_and_nowhere_else(rows: list[tuple[bool, int, int]]) -> None:
    """Bounded, alike within a stratum, and 1 where every stratum is seen alike."""
    is_seen, as_of, stratum = (np.array(column) for column in zip(*rows, strict=True))
    weight = censoring_weights(is_seen, as_of, stratum)

    assert ((weight > 0) == is_seen).all()
    assert (weight <= MOST_WEIGHT).all()
    for cell in {(a, s) for _, a, s in rows}:
        assert len(set(weight[is_seen & (as_of == cell[0]) & (stratum == cell[1])].tolist())) <= 1
    alone = censoring_weights(is_seen, as_of, np.zeros_like(stratum))
    np.testing.assert_allclose(alone[is_seen], 1.0)


def test_strata_need_the_columns_they_are_made_of() -> None:
    """A view set without the mails is refused by name; never answered is a band of its own."""
    names = ("sends_90d", "days_since_open", "days_since_click")
    X = np.array([[0, np.nan, np.nan], [5, 10, np.nan], [5, np.nan, 30.0], [5, 31, 200], [30, 91, np.nan]])

    assert exposure_strata(X, names).tolist() == [2, 6, 6, 7, 14]
    with pytest.raises(ValueError, match="'days_since_click'"):
        exposure_strata(X[:, :2], names[:2])
