"""Laws of `service.evaluation`: an experiment's own log, read whole and only where its rewards are known."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import event, insert, select, update
from sqlalchemy.orm import Session

from features.tables import allocate, to_micros
from service.errors import Invalid, NotFound
from service.evaluation import evaluate_experiment, logged_decisions
from service.flow.decide import Arm, NewExperiment, decide_for, open_experiment
from service.tables import ArmRow, DecisionRow, ExperimentRow, RewardRow, SendRow, SnapshotRow

ARMS = ("a", "b", "c")
RATES = {"a": 0.1, "b": 0.3, "c": 0.2}
SPLIT = {"a": 0.2, "b": 0.6, "c": 0.2}


@dataclass(frozen=True)
class Ran:
    """An experiment with two waves of decisions, an hour apart, the second from the split above.

    Only contacts with an odd key ever answer, at twice the rates above.
    """

    experiment_id: str
    decisions: list[DecisionRow]
    rewards: dict[str, float]
    snapshot_id: str


def run(session: Session, keys: Sequence[int], now: datetime, *, values: float = 1.0, **changes) -> Ran:
    arms = tuple(Arm(arm, f"Text {arm}") for arm in ARMS)
    experiment_id = open_experiment(session, NewExperiment("Test", "subject", arms, **changes), now=now)
    decide_for(session, experiment_id, keys, "one", now=now)
    first = session.scalars(select(SnapshotRow).where(SnapshotRow.experiment_id == experiment_id)).one()
    number = allocate(session, "snapshot_no", 1)
    pmf = [SPLIT[arm] for arm in ARMS]
    session.add(
        SnapshotRow(
            snapshot_id=f"snp_{number}",
            snapshot_no=number,
            experiment_id=experiment_id,
            created_at=now,
            log_seq=0,
            algorithm="fixed",
            policy=first.policy | {"pmf": pmf, "reason": "a split"},
            statistics=first.statistics,
        )
    )
    session.flush()
    decide_for(session, experiment_id, keys, "two", now=now + timedelta(hours=1))
    query = select(DecisionRow).order_by(DecisionRow.decided_at, DecisionRow.decision_id)
    decisions = list(session.scalars(query.where(DecisionRow.experiment_id == experiment_id)))
    rng = np.random.default_rng(4)
    rewards = {
        one.decision_id: values for one in decisions if rng.random() < 2 * RATES[one.arm_id] * (one.contact_key % 2)
    }
    kind = changes.get("reward", "click")
    session.execute(
        insert(RewardRow),
        [
            {"decision_id": name, "kind": kind, "value": value, "occurred_at": now + timedelta(hours=2), "log_seq": 1}
            for name, value in rewards.items()
        ],
    )
    return Ran(experiment_id, decisions, rewards, f"snp_{number}")


@pytest.fixture
def later(now: datetime) -> datetime:
    """An instant at which every window has closed."""
    return now + timedelta(days=10)


def test_the_log_is_read_as_it_was_written(any_database, add_contacts, now, later):
    """Arms, exact propensities, rewards, contacts, instants and snapshots of every decision, in order of time."""
    with any_database.writing() as session:
        ran = run(session, add_contacts(session, 300), now)
    with any_database.reading() as session:
        log = logged_decisions(session, ran.experiment_id, now=later)
    logged = log.logged

    assert logged.arms == ARMS
    assert [logged.arms[k] for k in logged.arm] == [one.arm_id for one in ran.decisions]
    assert logged.propensity.tolist() == [one.propensity for one in ran.decisions]
    assert logged.reward.tolist() == [ran.rewards.get(one.decision_id, 0.0) for one in ran.decisions]
    assert logged.contact_key.tolist() == [one.contact_key for one in ran.decisions]
    assert logged.occurred_at.tolist() == [to_micros(one.decided_at) for one in ran.decisions]
    assert set(logged.reward_at) == {-1, to_micros(now + timedelta(hours=2))}
    assert list(log.snapshot_ids) == [one.snapshot_id for one in ran.decisions]
    assert logged.eligible.all()
    assert (logged.contexts, logged.wave[-1] - logged.wave[0]) == (None, 1)
    assert log.left_out == {"held_out": 0, "not_sent": 0, "waiting": 0}


def test_what_was_not_shown_or_is_not_known_yet_is_left_out_and_counted(any_database, add_contacts, now, later):
    """Ghosts, mails that did not leave, open windows; a mail's window opens when it leaves."""
    with any_database.writing() as session:
        ran = run(session, add_contacts(session, 100), now)
        ghosts, unsent, sent = (ran.decisions[i : i + 10] for i in (0, 10, 20))
        session.execute(
            update(DecisionRow)
            .where(DecisionRow.decision_id.in_([one.decision_id for one in ghosts]))
            .values(is_holdout=True)
        )
        for number, one in enumerate([*unsent, *sent], 1):
            one.send_id = number
            state = "suppressed" if one in unsent else "accepted"
            finished_at = now + timedelta(hours=5) if one in sent else now
            session.add(send_row(number, one.contact_key, state, finished_at, now))
    with any_database.reading() as session:
        all_of_it = logged_decisions(session, ran.experiment_id, now=later)
        at_73_hours = logged_decisions(session, ran.experiment_id, now=now + timedelta(hours=72.5))
        first_wave = logged_decisions(session, ran.experiment_id, now=later, until=now + timedelta(minutes=30))
        second_wave = logged_decisions(session, ran.experiment_id, now=later, since=now + timedelta(minutes=30))

    assert (len(all_of_it.logged), all_of_it.left_out) == (180, {"held_out": 10, "not_sent": 10, "waiting": 0})
    assert (len(at_73_hours.logged), at_73_hours.left_out["waiting"]) == (70, 110)  # 10 mails and the second wave
    assert (len(first_wave.logged), len(second_wave.logged)) == (80, 100)


def send_row(number: int, contact_key: int, state: str, finished_at: datetime, now: datetime) -> SendRow:
    return SendRow(
        send_id=number,
        intent_key=f"x:{number}",
        contact_key=contact_key,
        stream="marketing",
        topic="marketing",
        template_id="t",
        template_version=1,
        state=state,
        due_at=now,
        not_after=now,
        timezone="UTC",
        assigned_local_hour=9,
        hour_propensity=1.0,
        hour_reason="fixed",
        is_holdout=False,
        decided_at=now,
        created_at=now,
        finished_at=finished_at,
    )


def test_each_target_is_worth_what_its_arms_earned(any_database, add_contacts, now, later):
    """An arm, a split, a snapshot, the uniform policy and the best arm against the truth; what ran, against itself."""
    with any_database.writing() as session:
        ran = run(session, add_contacts(session, 1000), now)
    with any_database.reading() as session:
        found = {
            name: evaluate_experiment(session, ran.experiment_id, target, now=later)
            for name, target in {
                "b": {"arm": "b"},
                "split": {"weights": {"a": 1, "b": 3, "c": 1}},
                "snapshot": {"snapshot": ran.snapshot_id},
                "uniform": {"policy": "uniform"},
                "logged": {"policy": "logged"},
                "best": {"policy": "best_arm"},
            }.items()
        }
    dr = {name: next(one for one in report["estimates"] if one["estimator"] == "dr") for name, report in found.items()}
    truth = {"b": 0.3, "split": 0.24, "snapshot": 0.24, "uniform": 0.2, "best": 0.3}

    for name, value in truth.items():
        low, high = dr[name]["interval"]
        assert abs(dr[name]["value"] - value) < 3 * dr[name]["standard_error"]
        assert low < dr[name]["value"] < high
        assert abs(found[name]["diagnostics"]["mean_weight"] - 1) < 0.1
    assert dr["split"] == dr["snapshot"]
    assert dr["b"]["gain_interval"][0] > 0
    assert ": more than what ran" in found["b"]["says"]
    assert ": less than what ran" in found["uniform"]["says"]
    assert found["b"]["totals"]["target"] == pytest.approx(2000 * dr["b"]["value"])
    assert found["b"]["totals"]["logged"] == sum(ran.rewards.values())
    weights = found["logged"]["diagnostics"]
    assert (weights["max_weight"], weights["mean_weight"], weights["ess"]) == pytest.approx((1, 1, 2000))
    assert found["logged"]["estimates"][0]["gain"] == pytest.approx(0, abs=1e-12)
    assert found["b"]["decisions"] == {
        "used": 2000,
        "contacts": 1000,
        "left_out": {"held_out": 0, "not_sent": 0, "waiting": 0, "no_arm_open": 0, "erased": 0},
        "events_behind": 0,
    }
    assert [one["arm"] for one in found["b"]["arms"]] == list(ARMS)
    assert found["b"]["unit"] == "clicks a decision"


def test_a_paused_arm_has_no_value_where_it_was_not_open(database, add_contacts, now, later):
    """Its decisions before the pause count, the others are told apart; what ran is reproduced from its snapshots."""
    with database.writing() as session:
        keys = add_contacts(session, 500)
        ran = run(session, keys, now)
        session.execute(update(ArmRow).where(ArmRow.arm_id == "b").values(status="paused"))
        decide_for(session, ran.experiment_id, keys, "three", now=now + timedelta(hours=2))
    with database.reading() as session:
        paused = evaluate_experiment(session, ran.experiment_id, {"arm": "b"}, now=later)
        split = evaluate_experiment(session, ran.experiment_id, {"weights": {"a": 1, "b": 1}}, now=later)
        logged = evaluate_experiment(session, ran.experiment_id, {"policy": "logged"}, now=later)

    assert (paused["decisions"]["used"], paused["decisions"]["left_out"]["no_arm_open"]) == (1000, 500)
    assert (split["decisions"]["used"], split["decisions"]["left_out"]["no_arm_open"]) == (1500, 0)
    assert (logged["decisions"]["used"], logged["diagnostics"]["max_weight"]) == (1500, pytest.approx(1))


def test_revenue_is_told_in_minor_units(database, add_contacts, now, later):
    """A reward of 1,250 is 12.50: per decision, in total, and named as such; clicks count as one each."""
    with database.writing() as session:
        keys = add_contacts(session, 800)
        ran = run(session, keys, now)
        session.execute(update(ExperimentRow).values(reward="revenue"))
        session.execute(update(RewardRow).values(kind="revenue", value=1250.0))
    with database.reading() as session:
        found = evaluate_experiment(session, ran.experiment_id, {"policy": "uniform"}, now=later)
        session.execute(update(ExperimentRow).values(reward="click"))
        session.execute(update(RewardRow).values(kind="click", value=7.0))
        clicks = evaluate_experiment(session, ran.experiment_id, {"policy": "uniform"}, now=later)
        session.rollback()

    assert found["unit"] == "minor units of the reporting currency a decision"
    assert found["totals"]["logged"] == 1250 * len(ran.rewards)
    assert clicks["totals"]["logged"] == pytest.approx(len(ran.rewards))


def test_what_the_policy_saw_of_contacts_makes_the_estimate_surer(database, add_contacts, now, later):
    """With contexts the outcome model is a ridge regression on them; one of another width is a missing one."""
    with database.writing() as session:
        ran = run(session, add_contacts(session, 1000), now)
        plain = evaluate_experiment(session, ran.experiment_id, {"arm": "b"}, now=later)
        for i, one in enumerate(ran.decisions):
            told = np.array([1.0, one.contact_key % 2], dtype="<f4")
            one.context = told.tobytes() if i % 10 else np.ones(7, dtype="<f4").tobytes() if i % 20 else None
    with database.reading() as session:
        log = logged_decisions(session, ran.experiment_id, now=later)
        seen = evaluate_experiment(session, ran.experiment_id, {"arm": "b"}, now=later)
    errors = [
        next(one["standard_error"] for one in report["estimates"] if one["estimator"] == "dr")
        for report in (plain, seen)
    ]

    assert log.logged.contexts.shape == (2000, 2)
    assert np.isnan(log.logged.contexts).all(axis=1).sum() == 200
    assert (plain["outcome_model"], seen["outcome_model"]) == ("arm_mean", "ridge")
    assert errors[1] < 0.95 * errors[0]


def test_what_ran_is_not_asked_of_contacts_whose_segment_was_erased(database, add_contacts, now, later):
    """Their snapshot gives them other probabilities than those that they were drawn with."""
    with database.writing() as session:
        keys = add_contacts(session, 300)
        ran = run(session, keys, now)
        drawn_otherwise = [one.decision_id for one in ran.decisions if one.arm_id == "b"][:40]
        session.execute(
            update(DecisionRow).where(DecisionRow.decision_id.in_(drawn_otherwise)).values(propensity=0.123)
        )
        logged = evaluate_experiment(session, ran.experiment_id, {"policy": "logged"}, now=later)
        uniform = evaluate_experiment(session, ran.experiment_id, {"policy": "uniform"}, now=later)

    assert (logged["decisions"]["used"], logged["decisions"]["left_out"]["erased"]) == (560, 40)
    assert logged["diagnostics"]["mean_weight"] == pytest.approx(1.0)
    assert (uniform["decisions"]["used"], uniform["decisions"]["left_out"]["erased"]) == (600, 0)


def test_a_request_may_ask_for_no_more_decisions_than_it_is_allowed(database, add_contacts, now, later):
    """The count comes first, and narrowing the period helps."""
    with database.writing() as session:
        ran = run(session, add_contacts(session, 300), now)
        asked = {"now": later, "most": 400}
        with pytest.raises(Invalid, match=r"has 600 decisions, and 400 can be .* narrow since and until, or run"):
            evaluate_experiment(session, ran.experiment_id, {"policy": "uniform"}, **asked)
        since = now + timedelta(minutes=30)
        narrowed = evaluate_experiment(session, ran.experiment_id, {"policy": "uniform"}, since=since, **asked)
    assert narrowed["decisions"]["used"] == 300


def test_too_few_decisions_are_refused_with_a_reason(database, add_contacts, now, later):
    """Below an effective 100 there is no number, until it is forced; with nothing matured neither."""
    with database.writing() as session:
        ran = run(session, add_contacts(session, 60), now)
    with database.reading() as session:
        refused = evaluate_experiment(session, ran.experiment_id, {"arm": "a"}, now=later)
        forced = evaluate_experiment(session, ran.experiment_id, {"arm": "a"}, now=later, force=True)
        early = evaluate_experiment(session, ran.experiment_id, {"arm": "a"}, now=now, force=True)

    assert "a value takes 100" in refused["why"]
    assert refused["says"].startswith("no value: ")
    assert {one["value"] for one in refused["estimates"]} == {refused["totals"]["target"]} == {None}
    assert all(one["value"] is not None for one in forced["estimates"])
    assert (early["decisions"]["used"], early["decisions"]["left_out"]["waiting"]) == (0, 120)
    assert (early["logged"]["value"], early["estimates"][0]["value"]) == (None, None)


@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        ({}, Invalid, "exactly one"),
        ({"arm": "a", "policy": "uniform"}, Invalid, "exactly one"),
        ({"colour": "red"}, Invalid, "'colour'"),
        ({"policy": "oracle"}, Invalid, "'oracle'"),
        ({"arm": "z"}, Invalid, "there is no arm 'z'"),
        ({"weights": {"a": 0}}, Invalid, "make no split"),
        ({"weights": {"a": -1, "b": 3}}, Invalid, "make no split"),
        ({"weights": {"a": float("nan")}}, Invalid, "make no split"),
        ({"snapshot": "snp_999"}, NotFound, "'snp_999'"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(target, error, said, database, add_contacts, now, later):
    """The message names the value and what would be right."""
    with database.writing() as session:
        ran = run(session, add_contacts(session, 30), now)
        with pytest.raises(error) as refused:
            evaluate_experiment(session, ran.experiment_id, target, now=later)
    assert said in refused.value.detail


def test_an_unknown_experiment_and_an_empty_period_are_refused(database, add_contacts, now):
    """404 and 422."""
    with database.writing() as session:
        ran = run(session, add_contacts(session, 30), now)
        with pytest.raises(NotFound, match="exp_nope"):
            evaluate_experiment(session, "exp_nope", {"policy": "uniform"}, now=now)
        with pytest.raises(Invalid, match="widen the period"):
            evaluate_experiment(session, ran.experiment_id, {"policy": "uniform"}, now=now, since=now, until=now)


@contextmanager
def counted(session: Session) -> Iterator[list[str]]:
    """The statements that the session's connection runs."""
    said: list[str] = []
    engine = session.connection().engine

    def note(_connection, _cursor, statement, *_rest) -> None:
        said.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield said
    event.remove(engine, "before_cursor_execute", note)


def test_the_log_is_read_in_few_queries(database, add_contacts, now, later):
    """As many for 2,000 decisions as for 60."""
    counts = []
    with database.writing() as session:
        keys = add_contacts(session, 1000)
        for n in (30, 1000):
            ran = run(session, keys[:n], now)
            session.flush()
            with counted(session) as said:
                evaluate_experiment(session, ran.experiment_id, {"policy": "logged"}, now=later)
            counts.append(len(said))

    assert counts[0] == counts[1] <= 6
