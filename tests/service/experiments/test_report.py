"""Laws of `service.experiments.report`: the truth lies in it, nothing is told too early, and it can be drawn."""

import shutil
import struct
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import insert, select, update

from features.contacts import update_traits
from service.database import Database
from service.experiments import experiment_report, find_experiment, pause_arm, plot_report
from service.experiments.evidence import read_evidence
from service.flow.decide import decide_for
from service.tables import DecisionRow, RewardRow, SnapshotRow
from tests.service.experiments.simulated import contacts, live, opened

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
ARMS = {"plain": "News", "loved": "Your favourites"}
RATES = {"plain": 0.12, "loved": 0.24}
HOURS, PEOPLE = 12, 250
SEEN = NOW + timedelta(hours=HOURS + 73)


def by_day(arm: str, hour: int) -> float:
    """The hour moves both arms alike."""
    return RATES[arm] * (1 + 0.3 * np.sin(2 * np.pi * hour / 12))


@pytest.fixture(scope="module")
def shop(empty_sqlite, tmp_path_factory):
    """Half a day of an experiment with a better arm: 12 waves of 250 people, the split learned wave by wave."""
    path = tmp_path_factory.mktemp("report") / "kairos.db"
    shutil.copy(empty_sqlite, path)
    database = Database(f"sqlite:///{path}", is_durable=False)
    experiment_id = opened(database, ARMS, NOW, floor=0.1)
    keys = contacts(database, PEOPLE, NOW)
    live(database, experiment_id, keys, by_day, now=NOW, hours=HOURS)
    yield database, experiment_id
    database.close()


@pytest.fixture(scope="module")
def report(shop):
    database, experiment_id = shop
    with database.reading() as session:
        return experiment_report(session, experiment_id, now=SEEN)


def test_the_truth_lies_in_every_interval(report):
    """Of the comparison at every look, of both means, and the verdict names the better arm with its interval."""
    comparison = report["comparisons"][0]
    truth = RATES["loved"] - RATES["plain"]
    told = [row for row in comparison["over_time"] if row["lower"] is not None]

    assert len(told) > 5
    assert all(row["lower"] <= truth <= row["upper"] for row in told)
    assert comparison["lift"]["lower"] <= 1.0 <= comparison["lift"]["upper"]
    assert report["verdict"]["kind"] == "better"
    assert report["verdict"]["arm"] == "loved"
    assert report["verdict"]["sentence"].startswith("loved is better than plain by ")
    for mean in report["means"]:
        assert mean["mean"]["lower"] <= RATES[mean["arm"]] <= mean["mean"]["upper"]


def test_the_report_counts_what_the_log_holds(report):
    """Matured units, batches and the hourly shares add up to the decisions."""
    assert report["matured"]["units"] == HOURS * PEOPLE == sum(hour["units"] for hour in report["allocation"])
    assert report["matured"]["pending"] == 0
    assert sum(arm["sends"] for arm in report["arms"]) == HOURS * PEOPLE
    assert len(report["allocation"]) == report["waves"] == HOURS
    assert all(sum(hour["shares"].values()) == pytest.approx(1) for hour in report["allocation"])
    assert report["allocation"][0]["shares"]["loved"] == pytest.approx(0.5)
    assert report["allocation"][-1]["shares"]["loved"] > 0.8


def test_every_section_carries_its_uncertainty(report):
    """Decision aid, uniform slice, sample ratio, overlap, value against the even split."""
    aid = {arm["id"]: arm for arm in report["decision_aid"]["arms"]}
    even = {arm["id"]: arm for arm in report["uniform_slice"]["arms"]}

    assert aid["loved"]["probability_best"] > 0.99
    assert aid["loved"]["expected_loss"] < aid["plain"]["expected_loss"]
    assert "not error-controlled" in report["decision_aid"]["label"]
    assert all(arm["interval"][0] < RATES[name] * 1.3 for name, arm in even.items())
    assert 0 < report["uniform_slice"]["share"] < 1
    assert not report["sample_ratio"]["is_off"]
    assert all(one["why"] is None and one["least_propensity"] >= 0.1 for one in report["overlap"])
    earned = report["against_uniform"]["per_unit"]
    assert earned["lower"] <= earned["estimate"] <= earned["upper"]
    assert "cannot click" in report["against_holdout"]["why"]
    assert [one["is_paused"] for one in report["guardrails"]] == [False, False]


def test_nothing_is_told_of_decisions_whose_window_is_open(shop):
    """Half-way only what matured counts; before that the report says that it is too early, and can still be drawn."""
    database, experiment_id = shop
    with database.reading() as session:
        early = experiment_report(session, experiment_id, now=NOW + timedelta(hours=HOURS))
        half = experiment_report(session, experiment_id, now=NOW + timedelta(hours=72 + 5.5))

    assert early["matured"] == early["matured"] | {"units": 0, "pending": HOURS * PEOPLE}
    assert early["verdict"]["kind"] == "too_early"
    assert early["verdict"]["sentence"].startswith("Too early: ")
    assert sum(arm["sends"] for arm in early["arms"]) == HOURS * PEOPLE
    assert half["matured"] == half["matured"] | {"units": 6 * PEOPLE, "pending": 6 * PEOPLE}
    assert plot_report(early).startswith(b"\x89PNG")


def test_the_picture_is_a_png_of_a_fixed_size(report):
    """Whatever its arms are called."""
    odd = {**report, "name": "Dollars $x_1$ " * 20, "verdict": {**report["verdict"], "sentence": "so $ it is " * 40}}
    picture = plot_report(odd)

    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (1200, 1000)


def test_a_paused_arm_is_left_out_of_its_batches(database):
    """What was drawn without an arm has no probability for it, and the comparison is from the other batches."""
    experiment_id = opened(database, ARMS, NOW, policy="uniform")
    keys = contacts(database, 200, NOW)
    live(database, experiment_id, keys, by_day, now=NOW, hours=6)
    with database.writing() as session:
        pause_arm(session, experiment_id, "loved", reason="test", who="me", now=NOW + timedelta(hours=6))
    live(database, experiment_id, keys, by_day, now=NOW, hours=4, first_hour=6)
    with database.reading() as session:
        shown = experiment_report(session, experiment_id, now=SEEN)

    assert [hour["shares"]["loved"] for hour in shown["allocation"]] == [0.5] * 6 + [0.0] * 4
    assert shown["comparisons"][0]["over_time"][-1]["units"] == 6 * 200
    assert not shown["sample_ratio"]["is_off"]
    assert [arm["status"] for arm in shown["arms"]] == ["running", "paused"]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"sticky": True},
        {"segment_by": {"trait": "country", "values": ["DE", "FR"]}},
        {"policy": "linear", "context": {"features": ["orders_ever", "days_since_order"]}},
        {"policy": "fixed", "weights": {"plain": 1, "loved": 3}, "control": "loved"},
        {"reward": "revenue"},
    ],
    ids=["plain", "sticky", "segments", "vectors", "fixed", "revenue"],
)
def test_every_kind_of_experiment_is_reported_on_both_databases(any_database, asked):
    """Units and means are those of the log; what a kind cannot tell says why."""
    experiment_id = opened(any_database, ARMS, NOW, **asked)
    keys = contacts(any_database, 100, NOW)
    with any_database.writing() as session:
        update_traits(session, {key: {"country": ("DE", "FR", "IT")[key % 3]} for key in keys[:90]}, now=NOW)
    kind, amount = ("revenue", 25.0) if asked.get("reward") else ("click", 1.0)
    rate = {"plain": 0.3, "loved": 0.6}.__getitem__
    live(any_database, experiment_id, keys, lambda arm, _: rate(arm), now=NOW, hours=4, kind=kind, amount=amount)
    with any_database.reading() as session:
        report = experiment_report(session, experiment_id, now=SEEN)
    contacts_or_decisions = 100 if asked.get("sticky") else 400
    comparison = report["comparisons"][0]

    assert report["matured"]["units"] == contacts_or_decisions
    assert report["matured"]["unit"] == ("contact" if asked.get("sticky") else "decision")
    assert ("approximate" in (report["matured"]["note"] or "")) == bool(asked.get("sticky"))
    assert sum(arm["sends"] for arm in report["arms"]) == 400
    assert comparison["control"] == asked.get("control", "plain")
    estimates = {one["arm"]: one["mean"]["estimate"] for one in report["means"]}
    scale = {"sticky": 4.0, "reward": 2500.0}.get(next(iter(asked), ""), 1.0)
    assert estimates["loved"] / scale == pytest.approx(0.6, abs=0.15)
    assert estimates["plain"] / scale == pytest.approx(0.3, abs=0.15)
    has_no_pmf = asked.get("policy") == "linear"
    assert ("why" in report["sample_ratio"]) == has_no_pmf
    assert ("why" in report["uniform_slice"]) == (has_no_pmf or asked.get("policy") == "fixed")
    assert plot_report(report).startswith(b"\x89PNG")


def test_the_holdout_shows_what_being_shown_an_arm_has_earned(database):
    """Person by person, in the reward's unit; the truth lies in the interval."""
    asked = {"reward": "conversion", "holdout_share": 0.3, "policy": "uniform"}
    experiment_id = opened(database, ARMS, NOW, **asked)
    keys = contacts(database, 1500, NOW)
    rates = {"plain": 0.2, "loved": 0.4, "held_out": 0.1}
    live(database, experiment_id, keys, lambda arm, _: rates[arm], now=NOW, hours=1, kind="conversion")
    with database.reading() as session:
        report = experiment_report(session, experiment_id, now=SEEN)
    found = report["against_holdout"]

    assert found["unit"] == "contact"
    assert found["held_out"]["units"] + found["mailed"]["units"] == 1500
    assert found["held_out"]["units"] == pytest.approx(450, abs=80)
    assert found["held_out"]["mean"] == pytest.approx(0.1, abs=0.06)
    assert 0 < found["per_unit"]["lower"] <= 0.2 <= found["per_unit"]["upper"]
    assert found["total"]["estimate"] == pytest.approx(found["per_unit"]["estimate"] * found["mailed"]["units"])
    assert report["matured"]["units"] == found["mailed"]["units"]


def test_an_even_split_has_nothing_to_compare_with_itself(database):
    """And a report without any decision says so everywhere."""
    experiment_id = opened(database, ARMS, NOW, policy="uniform")
    with database.reading() as session:
        report = experiment_report(session, experiment_id, now=SEEN)

    assert "even" in report["against_uniform"]["why"]
    assert report["verdict"]["kind"] == "too_early"
    assert report["decision_aid"]["why"] == report["uniform_slice"]["why"]
    assert report["allocation"] == []


def test_each_batch_is_held_against_the_probabilities_of_its_own_draw(database):
    """Contacts without a segment were drawn from the pooled pmf; of an erased contact the pmf is not known any more."""
    countries = {"trait": "country", "values": ["DE"]}
    experiment_id = opened(database, ARMS, NOW, segment_by=countries)
    keys = contacts(database, 120, NOW)
    with database.writing() as session:
        update_traits(session, {key: {"country": "DE"} for key in keys[:60]}, now=NOW)
        first = session.scalars(select(SnapshotRow)).one()
        split = {"pmf": [0.3, 0.7], "by_segment": {"": [0.5, 0.5], "DE": [0.8, 0.2]}}
        first.policy = first.policy | split
        session.flush()
        decide_for(session, experiment_id, keys, "visit", now=NOW)
        experiment = find_experiment(session, experiment_id)
        found = read_evidence(session, experiment, tuple(ARMS), now=SEEN)
        pmf = dict(zip(found.segments, found.pmf.tolist(), strict=True))

        assert pmf == {None: pytest.approx([0.3, 0.7]), "DE": pytest.approx([0.8, 0.2])}
        assert (found.left_out, int(found.trials.sum())) == (0, 120)

        erased = update(DecisionRow).where(DecisionRow.contact_key.in_(keys[:25])).values(segment=None)
        session.execute(erased)
        matured = experiment_report(session, experiment_id, now=SEEN)["matured"]
    assert (matured["left_out"], matured["units"], matured["batches"]) == (25, 95, 2)
    assert "erased contacts" in matured["left_out_why"]


def test_rewards_by_kind_are_those_that_stand_of_what_was_shown(database):
    """Neither a ghost's order nor one that was taken back."""
    experiment_id = opened(database, ARMS, NOW, reward="conversion", holdout_share=0.5)
    keys = contacts(database, 60, NOW)
    with database.writing() as session:
        decide_for(session, experiment_id, keys, "visit", now=NOW)
        rows = session.scalars(select(DecisionRow)).all()
        shown = [row for row in rows if not row.is_holdout]
        taken_back = {row.decision_id for row in shown[:5]}
        told = {"kind": "conversion", "occurred_at": NOW, "log_seq": 1}
        rewards = [
            {"decision_id": row.decision_id, "value": float(row.decision_id not in taken_back), **told} for row in rows
        ]
        session.execute(insert(RewardRow), rewards)
        arms = experiment_report(session, experiment_id, now=SEEN)["arms"]
    assert 0 < len(shown) < 60
    assert sum(arm["rewards"].get("conversion", 0) for arm in arms) == len(shown) - 5
