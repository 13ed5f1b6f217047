"""From the log to a judged version: real orders, no leak, honest refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from features.labels import CONVERSION
from features.tables import from_micros, to_micros
from features.views import DEFAULT_VIEWS, ViewSet
from training import conversion, registry
from training.datasets import DAY_MICROS, Definition, TrainingSet, log_span, snapshot_instants, training_set
from training.ladder import NotEnoughData, check_enough
from training.metrics import evaluate, roc_auc
from training.runs import backtest, define, gate_outcome, train
from training.serving import load_model
from training.study import Study

HORIZON = 30


def _conversion_set(lake, until: int) -> TrainingSet:
    asked = Definition(CONVERSION, conversion.POPULATION, HORIZON, "an order")
    cutoff = until - HORIZON * DAY_MICROS
    return training_set(lake, DEFAULT_VIEWS, asked, snapshot_instants(cutoff, log_span(lake, until).first, HORIZON))


@pytest.fixture(scope="module")
def until(shop) -> int:
    """Last instant of the made-up shop."""
    return to_micros(shop.now)


@pytest.fixture(scope="module")
def shop_set(shop, until) -> TrainingSet:
    """Snapshots of the made-up shop with 30-day outcomes."""
    return _conversion_set(shop.lake, until)


@pytest.mark.data
def test_conversion_on_real_orders_keeps_its_figures(retail_lake, end_of_day) -> None:
    """Online Retail, 30 days, three cut-offs: ROC AUC ≥ .757, Brier ≤ .1535 in the mean, and every rival loses."""
    cutoffs = [end_of_day(date) for date in ("2011-05-31", "2011-06-30", "2011-07-31")]

    table = backtest("conversion", retail_lake, cutoffs, HORIZON).groupby("model").mean(numeric_only=True)

    assert table.loc["served", "roc_auc"] >= 0.757
    assert table.loc["served", "brier"] <= 0.1535
    assert table.loc["served", "ece"] <= 0.05
    assert 0.85 <= table.loc["served", "predicted_over_actual"] <= 1.2
    for rival in ("recency", "orders", "bgnbd", "base_rate"):
        assert table.loc[rival, "roc_auc"] < table.loc["served", "roc_auc"]
        assert table.loc[rival, "brier"] > table.loc["served", "brier"]


def _study(data: TrainingSet, newest: int) -> Study:
    asked = Definition(CONVERSION, conversion.POPULATION, HORIZON, "an order")
    return Study(asked, data, data, HORIZON, newest, DEFAULT_VIEWS)


def test_shuffled_outcomes_teach_nothing(shop_set, until) -> None:
    """With outcomes dealt out at random the judged ROC AUC is about one half."""
    rng = np.random.default_rng(0)
    shuffled = replace(shop_set, y=rng.permutation(shop_set.y))

    judged = _study(shuffled, until).judge(until - HORIZON * DAY_MICROS)

    assert roc_auc(judged.rows.y, judged.probabilities["served"]) == pytest.approx(0.5, abs=0.08)


def test_what_happens_after_an_instant_changes_no_vector_before_it(shop, shop_set, until) -> None:
    """Snapshots of a log that goes on are, up to an instant, those of a log that ended there."""
    cut = until - 60 * DAY_MICROS
    columns = [shop.lake.read_bucket(b) for b in range(shop.lake.buckets)]

    class Ended:
        """The same lake as it was at ``cut``."""

        buckets, watermark = shop.lake.buckets, shop.lake.watermark

        def read_bucket(self, bucket: int, with_properties: bool = False):
            return columns[bucket].take(columns[bucket].occurred_at < cut)

    early = shop_set.closed_by(cut, HORIZON)
    asked = Definition(CONVERSION, conversion.POPULATION, HORIZON, "an order")
    ended = training_set(Ended(), DEFAULT_VIEWS, asked, np.unique(early.as_of).tolist())

    assert len(early) > 500
    np.testing.assert_array_equal(ended.contact_key, early.contact_key)
    np.testing.assert_array_equal(ended.X, early.X)
    np.testing.assert_array_equal(ended.y, early.y)


def test_the_judged_fit_has_seen_no_outcome_after_the_cutoff(shop_set, until) -> None:
    """Turning every outcome that closes after the cut-off upside down leaves the judged probabilities as they were."""
    cutoff = until - HORIZON * DAY_MICROS
    late = shop_set.as_of + HORIZON * DAY_MICROS > cutoff
    turned = replace(shop_set, y=np.where(late, 1 - shop_set.y, shop_set.y).astype(np.int8))

    straight = _study(shop_set, until).judge(cutoff).probabilities

    for name, probability in _study(turned, until).judge(cutoff).probabilities.items():
        np.testing.assert_array_equal(probability, straight[name])


def test_few_customers_get_no_lightgbm_and_are_told_why(shop_set, until) -> None:
    """Below 1,000 contacts LightGBM is not tried, and the reason names the counts."""
    choice = _study(shop_set, until).fit(until - HORIZON * DAY_MICROS).choice

    assert choice.rung in ("prior", "bgnbd", "ridge", "logistic")
    assert "400 contacts" in choice.reason
    assert "1000" in choice.reason


def test_the_same_data_and_seed_give_the_same_model(shop_set, until) -> None:
    """Every rung is deterministic."""
    for rung in ("base_rates", "prior", "bgnbd", "logistic", "blend"):
        once, again = (
            _study(shop_set, until).fit(until - HORIZON * DAY_MICROS, rung).probability(shop_set.X) for _ in range(2)
        )
        np.testing.assert_array_equal(once, again)


def test_too_little_data_gets_base_rates_or_a_refusal_with_counts_and_remedy(shop_set, until) -> None:
    """Fewer than 100 contacts, or than 20 with the outcome: base rates, said; one class or three people: a refusal."""
    keys = np.unique(shop_set.contact_key)
    few = shop_set.rows(shop_set.contact_key <= keys[49])
    cutoff = until - HORIZON * DAY_MICROS

    fitted = _study(few, until).fit(cutoff)
    assert fitted.choice.rung == "base_rates"
    assert "not enough data for a personal score (50 contacts" in fitted.choice.reason
    assert len(np.unique(fitted.probability(few.at(cutoff).X))) <= 7
    for data, said in (
        (shop_set.rows(shop_set.contact_key <= keys[2]).rows(slice(0, 12)), "even base rates take 20 rows"),
        (shop_set.rows(shop_set.y == 0), "0 with it"),
    ):
        with pytest.raises(NotEnoughData, match=said):
            check_enough(data, "conversion")
    with pytest.raises(NotEnoughData):
        _study(shop_set.rows(shop_set.y == 0), until).judge(cutoff)


def test_no_two_answers_about_one_contact_contradict_each_other(shop, mlruns) -> None:
    """P(order) rises with the horizon, churn is one less the chance of an order, a date and an amount go along."""
    where = {"tracking_uri": mlruns.tracking_uri, "artifact_root": mlruns.artifact_root}
    models = [load_model(train(name, shop.lake, shop.now, **where).folder) for name in ("conversion", "churn")]
    X = training_set(
        shop.lake, DEFAULT_VIEWS, Definition(CONVERSION, conversion.POPULATION, HORIZON, ""), [to_micros(shop.now)]
    ).X
    both = models[0].contains(X) & models[1].contains(X)
    days = models[1].card.horizon_days
    order, churn = (model.outlook(X[both], [7, 14, 30, 60, 90, days]) for model in models)
    assert order is not None
    assert churn is not None

    assert both.sum() > 100
    for one, other, lost, chance in zip(
        order, churn, models[1].predict(X[both]), models[0].predict(X[both]), strict=True
    ):
        within = {int(h): p for h, p in one["order_within_days"].items()}
        assert within == {int(h): p for h, p in other["order_within_days"].items()}
        steps = [within[h] for h in sorted(within)]
        assert all(0 <= a <= b <= 1 for a, b in itertools.pairwise(steps))
        assert lost == pytest.approx(1 - within[days], abs=1e-12)
        assert chance == within[30]
        assert one["expected_orders"] >= chance - 1e-4
        next_order = [d for d in one["next_order_days"].values() if d is not None]
        assert next_order == sorted(next_order)


def test_a_history_too_short_for_the_horizon_is_refused_and_churn_fits_itself_to_it(shop, until) -> None:
    """A horizon asked for must fit twice into the history; churn's own is shortened, and says so."""
    span = log_span(shop.lake, until)
    short = span.first + 100 * DAY_MICROS

    with pytest.raises(NotEnoughData, match="--horizon-days of at most 37"):
        define("conversion", span, short, 60)
    asked, note = define("churn", span, short, None)
    assert asked.horizon_days == 30
    assert "bears 30" in note


def test_train_registers_promotes_and_serves(shop, until, mlruns) -> None:
    """Churn and conversion of a small shop: registered, champion, better than the base rate, and loadable."""
    end = shop.now
    first = train("conversion", shop.lake, end, tracking_uri=mlruns.tracking_uri, artifact_root=mlruns.artifact_root)
    churn = train("churn", shop.lake, end, tracking_uri=mlruns.tracking_uri, artifact_root=mlruns.artifact_root)

    for trained in (first, churn):
        assert trained.promoted, trained.gate
        assert trained.metrics["brier"] < trained.metrics["base_rate_brier"]
        assert trained.metrics["roc_auc"] > trained.metrics["orders_roc_auc"]
        assert trained.metrics["mean_brier_low"] <= trained.metrics["mean_brier"] <= trained.metrics["mean_brier_high"]
        assert {path.name for path in (trained.folder / "report").iterdir()} == {
            "card.md", "gain.png", "judgement.json", "reliability.png"
        }  # fmt: skip
        champion = registry.champion(trained.name, tracking_uri=mlruns.tracking_uri)
        assert champion is not None
        assert champion.version == trained.version == 1
        model = load_model(trained.folder)
        assert (model.name, model.version, model.rung) == (trained.name, 1, trained.rung)
    second = train("conversion", shop.lake, end, tracking_uri=mlruns.tracking_uri, artifact_root=mlruns.artifact_root)
    assert second.version == 2
    assert "version 1's recipe" in second.gate


def test_send_hour_learns_from_the_lake(shop, mlruns) -> None:
    """Sends and their answers in the log become personal hours that are provably better than none."""
    trained = train(
        "send_hour", shop.lake, shop.now, tracking_uri=mlruns.tracking_uri, artifact_root=mlruns.artifact_root
    )

    assert trained.promoted
    assert trained.rung == "personal"
    assert trained.metrics["hour_effect"] == 1.0
    assert trained.metrics["personal_log_loss"] < trained.metrics["global_log_loss"]


def test_the_gate_refuses_what_is_worse_than_the_base_rate_or_the_champion(shop_set, until) -> None:
    """A challenger below the base rate, or taught with shuffled labels, or below the champion, does not serve."""
    cutoff = until - HORIZON * DAY_MICROS
    judged = _study(shop_set, until).judge(cutoff, "logistic")
    assert gate_outcome(judged, None).passed
    champion = SimpleNamespace(card=SimpleNamespace(as_of=from_micros(until).isoformat()), version=1, rung="logistic")
    assert gate_outcome(judged, champion).passed

    unknown = _study(shop_set, until).judge(cutoff, "a rung of long ago")
    assert "cannot be asked" in gate_outcome(unknown, champion).reason
    poisoned = replace(shop_set, y=np.random.default_rng(1).permutation(shop_set.y))
    taught = _study(poisoned, until).fit(cutoff, "logistic").probability(judged.rows.X)
    reversed_ = replace(judged, probabilities=dict(judged.probabilities, served=1 - judged.probabilities["served"]))
    assert "below the base rate" in gate_outcome(reversed_, None).reason
    for below in (reversed_, replace(judged, probabilities=dict(judged.probabilities, served=taught))):
        assert not gate_outcome(below, champion).passed
    near = judged.probabilities["base_rate"] * 0.98 + 0.02 * judged.probabilities["served"]
    worse = gate_outcome(replace(judged, probabilities=dict(judged.probabilities, served=near)), champion)
    assert not worse.passed
    assert "worse than version 1's recipe (logistic)" in worse.reason


def test_a_champion_of_other_views_is_judged_on_vectors_of_its_own(shop, mlruns, monkeypatch) -> None:
    """After the views were edited the gate compares with what the champion really says of the same rows."""
    where = {"tracking_uri": mlruns.tracking_uri, "artifact_root": mlruns.artifact_root}
    turned = ViewSet("default", DEFAULT_VIEWS.views[::-1])
    early = shop.now - timedelta(days=HORIZON + 1)
    monkeypatch.setattr("training.runs.DEFAULT_VIEWS", turned)
    old = train("conversion", shop.lake, early, **where)
    monkeypatch.undo()
    same = train("conversion", shop.lake, early, **where)

    gates = {}
    for version in (old, same):
        registry.promote("conversion", version.version, tracking_uri=mlruns.tracking_uri)
        gates[version.version] = train("conversion", shop.lake, shop.now, **where).gate

    assert load_model(old.folder).view_set.names == turned.names != DEFAULT_VIEWS.names
    assert "version 1 on" in gates[1]
    # The same columns in another order are the same model but for the last digits of its fit.
    assert gates[1].replace("version 1", "version 2") == gates[2]


def test_unknown_models_are_named(shop, mlruns) -> None:
    """A name that is no model is answered with those there are."""
    with pytest.raises(LookupError, match="churn, conversion, send_hour"):
        train("lifetime", shop.lake, shop.now, tracking_uri=mlruns.tracking_uri, artifact_root=mlruns.artifact_root)


def test_snapshots_step_so_that_a_horizon_earlier_is_a_snapshot_too() -> None:
    """The grid about every 14 days holds each instant less the horizon, as far back as it goes."""
    for horizon in (7, 14, 30, 63, 90):
        newest = 400 * DAY_MICROS
        grid = snapshot_instants(newest, 0, horizon)
        earlier = [t - horizon * DAY_MICROS for t in grid if t - horizon * DAY_MICROS >= grid[0]]

        assert grid[-1] == newest
        assert set(earlier) <= set(grid)


@pytest.mark.data
def test_churn_on_real_orders_is_never_below_its_best_rival(retail_lake, end_of_day) -> None:
    """Online Retail, no order in 60 days, two cut-offs: carried over from 30 days, it ranks as well."""
    cutoffs = [end_of_day(date) for date in ("2011-05-31", "2011-06-30")]

    table = backtest("churn", retail_lake, cutoffs, 60)

    for _, rows in table.groupby("cutoff"):
        figures = rows.set_index("model")["roc_auc"]
        assert figures["served"] >= figures.drop("served").max() - 0.005


@pytest.mark.data
@pytest.mark.parametrize(
    ("customers", "draws"), [(150, 2), *[pytest.param(n, 6, marks=pytest.mark.slow) for n in (150, 300, 600)]]
)
def test_few_customers_get_honest_scores(retail_lake, end_of_day, customers, draws) -> None:
    """Learned from so few customers of Online Retail, everybody is scored: ROC AUC ≥ .765, Brier skill ≥ .18."""
    cutoff = to_micros(end_of_day("2011-07-31"))
    asked = Definition(CONVERSION, conversion.POPULATION, HORIZON, "an order")
    grid = snapshot_instants(cutoff, log_span(retail_lake, cutoff).first, HORIZON)
    data = training_set(retail_lake, DEFAULT_VIEWS, asked, grid)
    everybody, figures = data.at(cutoff), []
    for draw in range(draws):
        some = np.random.default_rng(draw).choice(everybody.contact_key, customers, replace=False)
        few = data.rows(np.isin(data.contact_key, some))
        fitted = Study(asked, few, few, HORIZON, cutoff, DEFAULT_VIEWS).fit(cutoff)
        figures.append(evaluate(everybody.y, fitted.probability(everybody.X)))

    assert np.mean([one["roc_auc"] for one in figures]) >= 0.765
    assert np.mean([one["brier_skill"] for one in figures]) >= 0.18


def test_answers_know_nothing_of_outcomes_dealt_out_at_random(shop_set, until) -> None:
    """The mean ROC AUC over 100 permutations of the outcomes that judge is .5 ± .01."""
    judged = _study(shop_set, until).judge(until - HORIZON * DAY_MICROS)
    rng = np.random.default_rng(0)

    found = [roc_auc(rng.permutation(judged.rows.y), judged.probabilities["served"]) for _ in range(100)]

    assert np.mean(found) == pytest.approx(0.5, abs=0.01)
