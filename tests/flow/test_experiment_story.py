"""Experiments as stories on a simulated clock: a send in waves learns within itself; harm is stopped by the worker."""

from datetime import timedelta
from typing import ClassVar

import pytest
from sqlalchemy import select

from service.experiments import experiment_report, resume_arm, shown_experiment
from service.tables import DecisionRow
from tests.flow.test_event_to_reward import Story


class Few(Story):
    """As many as a lesson takes."""

    n_people = 300


def test_a_send_in_waves_learns_within_itself(database, settings, now):
    """The first tenth is drawn evenly; wave by wave the subject that people click gets the larger share."""
    story = Story(
        database, settings, now, timing="at_start", waves=5, window_end=now + timedelta(hours=10), holdout_share=0
    )
    story.live(hours=11)
    with database.reading() as session:
        report = experiment_report(session, story.experiment_id, now=story.clock.now())
        drawn = session.execute(select(DecisionRow.wave, DecisionRow.arm_id)).all()
    shares = [
        sum(arm == "loved" for at, arm in drawn if at == wave) / sum(at == wave for at, _ in drawn)
        for wave in sorted({at for at, _ in drawn})
    ]

    assert len(drawn) == len(story.read) == story.plan.planned
    assert len(story.plan.waves) >= 5
    assert report["arms"][1]["share_first_wave"] == pytest.approx(0.5)
    assert report["arms"][1]["share_last_wave"] > 0.9
    assert shares[-1] > 0.8


class Annoyed(Few):
    """Half of those who get the loved subject ask for no more mail."""

    leaves: ClassVar[dict[str, float]] = {"loved": 0.5, "plain": 0.03}


def test_the_worker_pauses_an_arm_that_drives_people_away(database, settings, now):
    """While the campaign runs, however much it is clicked; nobody gets it from then on until a person resumes it."""
    story = Annoyed(database, settings, now, timing="at_start", waves=4, window_end=now + timedelta(hours=8))
    story.live(hours=9)
    with database.reading() as session:
        shown = shown_experiment(session, story.experiment_id)
        loved = shown["arms"][1]
        after = session.scalars(select(DecisionRow.arm_id).where(DecisionRow.decided_at > loved["status_at"])).all()

    assert loved["status"] == "paused"
    assert "unsubscribes" in loved["status_reason"]
    assert loved["status_at"] < now + timedelta(hours=8)
    assert [entry["who"] for entry in shown["history"]] == ["guardrail"]
    assert len(after) > 20
    assert set(after) == {"plain"}
    with database.writing() as session:
        resume_arm(session, story.experiment_id, "loved", reason="a mistake", who="Ann", now=story.clock.now())
    story.live(hours=1)
    with database.reading() as session:
        assert shown_experiment(session, story.experiment_id)["arms"][1]["status"] == "running"
