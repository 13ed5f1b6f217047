"""Laws of `service.experiments.guarding`: an arm that drives people away is paused, by hand alone it comes back."""

import asyncio
import logging
from datetime import timedelta

import pytest
from sqlalchemy import insert, select

from features.tables import to_micros
from service import worker
from service.clock import SimulatedClock
from service.experiments import (
    arms_by_status,
    edit_experiment,
    end_experiment,
    experiment_report,
    harmful_arms,
    pause_arm,
    pause_experiment,
    pause_harmful,
    resume_arm,
    shown_experiment,
)
from service.experiments.guarding import judged_arms
from service.flow.decide import Arm, NewExperiment, decide_for, open_experiment
from service.settings import Settings
from service.tables import DecisionRow, ExperimentRow, LearnerCellRow, RewardRow

ARMS = (Arm("calm", "News"), Arm("loud", "LAST CHANCE!!!"), Arm("third", "Hello"))


def opened(session, now) -> str:
    return open_experiment(session, NewExperiment("Subjects", "subject", ARMS), now=now)


def count(session, experiment_id, now, *, unsubscribes=(0, 0, 0), complaints=(0, 0, 0), trials=2000, segment=""):
    """One wave, as the fold writes it; ``trials`` of each arm, or one number for all."""
    mails = trials if isinstance(trials, tuple) else (trials,) * len(ARMS)
    wave = to_micros(now) // 3_600_000_000
    rows = [
        {
            "experiment_id": experiment_id, "arm_id": arm.arm_id, "wave": wave, "segment": segment, "trials": mails[k],
            "successes": 100, "sum_shown_at": mails[k] * (to_micros(now) // 1_000_000), "sum_rewards": 100.0,
            "sum_squares": 100.0, "unsubscribes": unsubscribes[k], "complaints": complaints[k],
        }
        for k, arm in enumerate(ARMS)
    ]  # fmt: skip
    session.execute(insert(LearnerCellRow), rows)


def experiment_of(session) -> ExperimentRow:
    return session.scalars(select(ExperimentRow)).one()


def found(session):
    return [(one.experiment_id, one.arm_id) for one in harmful_arms(session)]


def test_an_arm_that_drives_people_away_is_paused_with_its_reason(any_database, add_contacts, now, caplog):
    """Four times the unsubscribes of the others: out of the draw at once, logged, counted, and in the history."""
    with any_database.writing() as session:
        keys = add_contacts(session, 100)
        experiment_id = opened(session, now)
        count(session, experiment_id, now, unsubscribes=(4, 18, 4))
        count(session, experiment_id, now + timedelta(hours=1), unsubscribes=(4, 16, 5))
        with caplog.at_level(logging.WARNING):
            pause_harmful(session, harmful_arms(session), now=now + timedelta(hours=2))
        arms = {arm["id"]: arm for arm in shown_experiment(session, experiment_id)["arms"]}
        drawn = set(decide_for(session, experiment_id, keys, "visit", now=now + timedelta(hours=2)).arm_id)

        assert arms["loud"]["status"] == "paused"
        assert arms["loud"]["status_reason"].startswith("guardrail: 34 unsubscribes in 4,000 mails (0.85 %)")
        assert drawn == {"calm", "third"}
        assert [entry["who"] for entry in shown_experiment(session, experiment_id)["history"]] == ["guardrail"]
        assert arms_by_status(session) == {"running": 2, "paused": 0, "paused_by_guardrail": 1, "retired": 0}
        assert found(session) == []
        report = experiment_report(session, experiment_id, now=now + timedelta(hours=2))
        assert {one["arm"]: one["is_paused"] for one in report["guardrails"]}["loud"]
    record = next(record for record in caplog.records if getattr(record, "action", "") == "arm_paused")
    assert (record.experiment_id, record.arm_id) == (experiment_id, "loud")


def test_a_resumed_arm_is_judged_by_what_was_sent_since(database, now):
    """Who resumed it had seen the evidence; new harm pauses it again."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        count(session, experiment_id, now, unsubscribes=(8, 40, 8))
        pause_harmful(session, harmful_arms(session), now=now + timedelta(hours=1))
        later = now + timedelta(hours=2)
        resume_arm(session, experiment_id, "loud", reason="a broken link", who="Ann", now=later)
        assert found(session) == []
        count(session, experiment_id, later + timedelta(hours=1), unsubscribes=(8, 40, 8))
        assert found(session) == [(experiment_id, "loud")]


def test_complaints_above_the_providers_limit_pause_an_arm_whatever_the_others_do(database, now):
    """More than .3 % in 1,000 delivered mails."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        count(session, experiment_id, now, complaints=(7, 7, 6))
        assert found(session) == [(experiment_id, "calm"), (experiment_id, "loud")]


@pytest.mark.parametrize("case", ["equal", "switched off", "experiment paused", "nothing"])
def test_an_arm_that_does_no_harm_or_is_not_watched_runs_on(database, now, case):
    """Equal arms, a guardrail that is off, an experiment that draws nothing."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        harms = {"equal": (9, 11, 10), "nothing": (0, 0, 0)}.get(case, (4, 40, 4))
        count(session, experiment_id, now, unsubscribes=harms)
        if case == "switched off":
            edit_experiment(session, experiment_id, {"guardrails": {"unsubscribes": False}}, who="Ann", now=now)
        if case == "experiment paused":
            pause_experiment(session, experiment_id, reason="", who="Ann", now=now)
        assert found(session) == []


def test_harm_in_every_segment_is_one_harm(database, now):
    """Evidence of the segments multiplies; each alone would not do."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        for segment in ("DE", "FR", "other", ""):
            count(session, experiment_id, now, unsubscribes=(2, 14, 2), trials=500, segment=segment)
        assert found(session) == [(experiment_id, "loud")]


def test_an_arm_drawn_for_those_who_leave_more_is_not_taken_for_a_bad_one(database, now):
    """Both segments treat all arms alike; the second leaves four times as often, and gets loud nine times as often."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        calm = {"trials": (9000, 1000, 9000), "unsubscribes": (18, 2, 18)}
        gone = {"trials": (1000, 9000, 1000), "unsubscribes": (8, 72, 8)}
        count(session, experiment_id, now, segment="DE", **calm)
        count(session, experiment_id, now, segment="FR", **gone)
        assert found(session) == []
        judged = {one["arm"]: one["e_unsubscribes"] for one in judged_arms(session, experiment_of(session))}
        assert max(judged.values()) < 1


def test_where_each_contact_has_its_own_probabilities_only_complaints_are_limited(database, now):
    """A linear policy's arms are not compared, and it is said; .3 % complaints pause an arm all the same."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        experiment_of(session).policy = "linear"
        count(session, experiment_id, now, unsubscribes=(4, 60, 4))
        assert found(session) == []
        told = judged_arms(session, experiment_of(session))[1]
        assert told["e_unsubscribes"] == 1
        assert "not compared, as each contact has its own probabilities" in told["sentence"]
        count(session, experiment_id, now + timedelta(hours=1), complaints=(0, 13, 0))
        assert found(session) == [(experiment_id, "loud")]


@pytest.mark.parametrize("meanwhile", ["arm paused", "experiment paused", "experiment ended"])
def test_a_person_who_was_faster_does_not_keep_other_arms_from_being_paused(database, now, meanwhile):
    """Between the verdict and the pause; only what still runs is paused."""
    with database.writing() as session:
        first, second = opened(session, now), opened(session, now)
        for experiment_id in (first, second):
            count(session, experiment_id, now, unsubscribes=(8, 40, 8))
        harmful = harmful_arms(session)
        if meanwhile == "arm paused":
            pause_arm(session, first, "loud", reason="", who="Ann", now=now)
        else:
            turn = pause_experiment if meanwhile == "experiment paused" else end_experiment
            turn(session, first, reason="", who="Ann", now=now)
        assert pause_harmful(session, harmful, now=now) == 1
        arms = {arm["id"]: arm["status"] for arm in shown_experiment(session, second)["arms"]}
        assert arms == {"calm": "running", "loud": "paused", "third": "running"}


def test_a_workers_first_round_and_one_after_a_failure_judge_what_was_learned_before(
    database, now, monkeypatch, tmp_path
):
    """Though the round itself learns nothing: no verdict is lost."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        count(session, experiment_id, now, unsubscribes=(8, 40, 8))
    settings = Settings(home=tmp_path / "home", smtp_url="outbox://", _env_file=None)
    new = worker.Worker(database, settings, SimulatedClock(now))
    with monkeypatch.context() as broken:
        broken.setattr(worker, "harmful_arms", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(new.work())
    rounds = [asyncio.run(new.work()) for _ in range(2)]

    assert [(one.learned, one.paused) for one in rounds] == [(0, 1), (0, 0)]
    with database.reading() as session:
        assert {arm["id"]: arm["status"] for arm in shown_experiment(session, experiment_id)["arms"]}[
            "loud"
        ] == "paused"


def test_a_resumed_arm_of_a_sticky_experiment_is_judged_by_what_was_sent_since(any_database, add_contacts, now):
    """Repeats keep the wave of the contact's first decision, before the resume; new harm is seen all the same."""
    with any_database.writing() as session:
        keys = add_contacts(session, 900)
        experiment_id = open_experiment(session, NewExperiment("Sticky", "subject", ARMS, sticky=True), now=now)
        decide_for(session, experiment_id, keys, "first", now=now)
        count(session, experiment_id, now, unsubscribes=(8, 40, 8))
        pause_harmful(session, harmful_arms(session), now=now + timedelta(hours=1))
        resume_arm(session, experiment_id, "loud", reason="", who="Ann", now=now + timedelta(hours=2))
        decide_for(session, experiment_id, keys, "second", now=now + timedelta(hours=4))
        assert found(session) == []

        second = select(DecisionRow).where(DecisionRow.occurrence == "second").order_by(DecisionRow.decision_id)
        rows = session.scalars(second).all()
        assert {row.wave for row in rows} == {to_micros(now) // 3_600_000_000}
        left = [row for row in rows if row.arm_id == "loud"][:30] + [row for row in rows if row.arm_id == "calm"][:4]
        harm = {"kind": "unsubscribe", "value": 1.0, "occurred_at": now + timedelta(hours=5), "log_seq": 1}
        session.execute(insert(RewardRow), [{"decision_id": row.decision_id, **harm} for row in left])
        harmful = harmful_arms(session)
    assert [one.arm_id for one in harmful] == ["loud"]
    assert harmful[0].reason.startswith("30 unsubscribes in ")
