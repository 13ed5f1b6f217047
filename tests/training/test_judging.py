"""Laws of judging: the treated cannot make a right score look wrong; a model that is not worse hardly ever falls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.judging import (
    ALPHA,
    Treatment,
    Weights,
    crossed,
    e_value,
    evidence,
    is_turn,
    judge_scores,
    named_sentence,
    weigh,
)
from training.metrics import evaluate

DAY = 86_400_000_000


def _everybody(n: int) -> Weights:
    return weigh(Treatment.nobody(n))


# --- A world with a win-back that works --------------------------------------------------------------------------


def _win_back(rng: np.random.Generator, n: int, holdout: float, *, late: bool) -> tuple[np.ndarray, ...]:
    """Right churn scores, a mail that keeps seven in ten who would have left, and who was picked for it.

    ``late``: picked in the middle of the window, and only those who are still silent by then.
    """
    p = rng.beta(1.5, 3, n)
    would_leave = rng.random(n) < p
    silent_so_far = would_leave | (rng.random(n) < 0.4)
    picked = (p > 0.4) & (silent_so_far if late else True)
    treated = picked & (rng.random(n) >= holdout)
    y = would_leave & ~(treated & (rng.random(n) < 0.7))
    return p, y, Treatment(treated, np.where(picked, 9, 0))


@pytest.mark.parametrize("late", [False, True], ids=["picked at once", "picked while still silent"])
def test_a_win_back_that_works_does_not_make_a_right_score_look_wrong(late: bool) -> None:
    """Naively it predicted far too much; leaving the treated out misleads too; held-outs weighed, it is right."""
    rng = np.random.default_rng(5)
    p, y, found = _win_back(rng, 40_000, 0.15, late=late)
    fallback = np.full(len(p), 0.33)

    naive = judge_scores(y, p, fallback, _everybody(len(p)))
    fair = judge_scores(y, p, fallback, weigh(found))

    assert naive["metrics"]["predicted_over_actual"] > 1.5
    assert naive["alarms"]
    assert fair["metrics"]["predicted_over_actual"] == pytest.approx(1.0, abs=0.06)
    assert fair["alarms"] == []
    assert fair["metrics"]["roc_auc"] > naive["metrics"]["roc_auc"]
    assert fair["left_out"] == found.treated.sum()
    assert fair["gain_over_fallback"] > 0
    if late:
        just_dropped = evaluate(y[~found.treated], p[~found.treated])
        assert just_dropped["predicted_over_actual"] > 1.15


def test_the_treated_without_a_stand_in_are_told() -> None:
    """Without held-outs what is left does not speak for all, and says so."""
    rng = np.random.default_rng(1)
    p, _, found = _win_back(rng, 2_000, 0.0, late=False)
    weights = weigh(found)

    assert weights.unrepresented == found.treated.sum() == weights.treated
    assert not weights.is_fair
    assert weigh(Treatment.nobody(len(p))).is_fair


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=300))
def test_weights_stand_for_everybody_who_is_represented(rows: list[tuple[bool, int]]) -> None:
    """They add up to all contacts less the unrepresented; the treated weigh nothing, nobody weighs less than one."""
    picked = np.array([campaign for _, campaign in rows])
    treated = np.array([sent and campaign > 0 for sent, campaign in rows])
    weights = weigh(Treatment(treated, picked))

    assert weights.weight.sum() == pytest.approx(len(rows) - weights.unrepresented)
    assert (weights.weight[treated] == 0).all()
    assert (weights.weight[~treated] >= 1).all()


def test_without_treatment_the_figures_are_those_of_evaluate() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(500)
    y = (rng.random(500) < p).astype(int)
    report = judge_scores(y, p, np.full(500, np.nan), _everybody(500))

    assert report["metrics"] == evaluate(y, p)
    assert "gain_over_fallback" not in report
    assert sum(one["rows"] for one in report["deciles"]) == 500
    low, high = report["intervals"]["roc_auc"]
    assert low < report["metrics"]["roc_auc"] < high


def test_too_few_rows_give_a_note_and_no_figure() -> None:
    report = judge_scores(np.ones(40), np.full(40, 0.5), np.full(40, 0.5), _everybody(40))

    assert "too few" in report["note"]
    assert "metrics" not in report


def test_the_sentence_compares_with_random_contacts() -> None:
    """The random number is the base rate's, its interval a draw's; a small list names ten."""
    rng = np.random.default_rng(3)
    p = rng.beta(1, 3, 8_000)
    told = named_sentence("churn", "no order in 30 days", "1 June", rng.random(8_000) < p, p, _everybody(8_000))

    assert told is not None
    assert (told["named"], told["hits"] > 35) == (50, True)
    assert told["random_interval"][0] < told["random"] < told["random_interval"][1]
    assert told["says"].startswith("On 1 June churn named these 50;")
    assert named_sentence("churn", "…", "1 June", p[:9] > 2, p[:9], _everybody(9)) is None
    small = named_sentence("churn", "…", "1 June", p[:300] > 0.2, p[:300], _everybody(300))
    assert small is not None
    assert small["named"] == 10


# --- The test that lets a model fall back ------------------------------------------------------------------------


def _one_life(rng: np.random.Generator, scorings: int, n: int, bias: float, holdout: float | None = None) -> bool:
    """Whether a model's test ever crosses, looked at after each of many scorings.

    The same contacts come again and again and have habits of their own that neither model knows. The model errs by
    ``bias`` in log-odds, up or down by coin; its fallback by 1, so at ``bias`` 1 neither is better.
    """
    habit = rng.normal(0, 1, n)
    parts = []
    for _ in range(scorings):
        z = habit + rng.normal(0, 0.7, n)
        truth = 1 / (1 + np.exp(-z))
        signs = rng.choice([-1, 1], (2, n))
        p, q = (1 / (1 + np.exp(-(z + sign * off))) for sign, off in zip(signs, (bias, 1.0), strict=True))
        y = rng.random(n) < truth
        weights = np.ones(n)
        if holdout is not None:
            picked = p > 0.6
            treated = picked & (rng.random(n) >= holdout)
            y &= ~treated
            weights = weigh(Treatment(treated, np.where(picked, 1, 0))).weight
        parts.append(evidence(y, p, q, weights))
    return crossed(parts)


@pytest.mark.parametrize("holdout", [None, 0.3], ids=["nobody treated", "win-back with held-outs"])
def test_a_model_that_is_not_worse_hardly_ever_falls_back_however_often_one_looks(holdout: float | None) -> None:
    """At the very border, after each of 40 scorings of the same contacts: at most ALPHA, by more than chance."""
    rng = np.random.default_rng(11)
    lives = 300
    falls = sum(_one_life(rng, 40, 120, 1.0, holdout) for _ in range(lives))

    assert falls / lives <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / lives)
    # Probabilities that lie between are what the test allows itself; a better model stays far below.
    better = sum(_one_life(rng, 40, 120, 0.5, holdout) for _ in range(100))
    assert better == 0


def test_a_model_whose_world_has_changed_falls_back_soon() -> None:
    """An error twice the fallback's is found within a few thousand outcomes."""
    rng = np.random.default_rng(12)

    assert sum(_one_life(rng, 20, 200, 2.0) for _ in range(30)) >= 29


def test_evidence_adds_up_and_does_not_mind_the_order() -> None:
    """Two halves of the rows bring what the whole brings if the stake is the same; treated rows bring nothing."""
    rng = np.random.default_rng(4)
    p, q = np.full(200, 0.7), np.full(200, 0.4)
    y = rng.random(200) < 0.5
    whole = evidence(y, p, q, np.ones(200))
    halves = [evidence(y[:100], p[:100], q[:100], np.ones(100)), evidence(y[100:], p[100:], q[100:], np.ones(100))]

    np.testing.assert_allclose(np.sum(halves, axis=0), whole)
    assert e_value(halves) == pytest.approx(e_value(halves[::-1])) == pytest.approx(e_value([whole]))
    assert evidence(y, p, q, np.zeros(200)) == [0.0] * len(whole)
    assert evidence(y, p, np.full(200, np.nan), np.ones(200)) == [0.0] * len(whole)
    assert evidence(y, p, p, np.ones(200)) == [0.0] * len(whole)
    assert e_value([]) == 1.0


@given(horizon=st.integers(1, 90), first=st.integers(0, 20_000), jitter=st.integers(0, DAY - 1))
def test_two_looks_at_a_contact_lie_more_than_a_horizon_apart(horizon: int, first: int, jitter: int) -> None:
    """Over daily scorings every contact has its turn once in a horizon and a day, at whatever hour they run."""
    keys = np.arange(200)
    rng = np.random.default_rng(jitter)
    at = [(first + day) * DAY + int(rng.integers(DAY)) for day in range(2 * (horizon + 1))]
    turns = np.array([is_turn(keys, instant, horizon) for instant in at])

    assert (turns.sum(axis=0) == 2).all()
    for column in turns.T:
        one, other = np.flatnonzero(column)
        assert at[other] - at[one] > horizon * DAY
