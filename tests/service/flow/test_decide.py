"""Laws of `service.flow.decide`: arms drawn late, with exact propensities, replayable bit for bit."""

from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import func, select, update

from service.errors import Conflict, Invalid, NotFound
from service.flow.decide import Arm, NewExperiment, decide, decide_for, open_experiment, replay
from service.flow.schedule import schedule, write_sends
from service.tables import ArmRow, CampaignRow, DecisionRow, SendRow
from tests.service.flow.plans import intent, limits

ARMS = (Arm("plain", "News for you"), Arm("question", "Seen this?"), Arm("offer", "10 % off today"))


def new_experiment(**changes) -> NewExperiment:
    return NewExperiment(**{"name": "Subjects", "kind": "subject", "arms": ARMS, **changes})


def plan_campaign(session, keys, experiments, now, window_hours=24) -> None:
    session.add(
        CampaignRow(
            campaign_id="cmp_1",
            name="One",
            status="scheduled",
            template_id="offer",
            template_version=1,
            audience={"everyone": True},
            experiments=experiments,
            topic="marketing",
            window_start=now,
            window_end=now + timedelta(hours=window_hours),
            holdout_share=0.0,
            timing="spread",
            created_at=now,
            scheduled_at=now,
        )
    )
    plan = intent(now, timing="spread", window_end=now + timedelta(hours=window_hours))
    write_sends(session, schedule(session, plan, np.array(keys), None, limits(), now=now), now=now)


def test_every_decision_has_a_positive_propensity_and_replays_to_the_same_arm(any_database, add_contacts, now):
    """Two experiments in one campaign give two decisions a send, each in (0, 1] and recomputable."""
    with any_database.writing() as session:
        keys = add_contacts(session, 200)
        ids = [
            open_experiment(session, new_experiment(), now=now),
            open_experiment(session, new_experiment(kind="block", arms=ARMS[:2]), now=now),
        ]
        plan_campaign(session, keys, ids, now)
        decisions = decide(session, now=now, look_ahead=timedelta(days=2))

    assert len(decisions) == 400
    assert all(0 < propensity <= 1 for propensity in decisions.propensity)
    with any_database.reading() as session:
        assert all(again.is_equal for again in replay(session, decisions.decision_id))


def test_a_changed_snapshot_is_detected_by_the_replay(database, add_contacts, now):
    """If what was stored is altered, the replay says so instead of agreeing."""
    with database.writing() as session:
        keys = add_contacts(session, 50)
        plan_campaign(session, keys, [open_experiment(session, new_experiment(), now=now)], now)
        decisions = decide(session, now=now, look_ahead=timedelta(days=2))
        session.execute(update(DecisionRow).values(propensity=0.5))
    with database.reading() as session:
        assert not any(again.is_equal for again in replay(session, decisions.decision_id))


def test_a_send_is_decided_when_it_falls_due_and_only_once(database, add_contacts, now):
    """Sends outside the look-ahead wait; a second call finds nothing new."""
    with database.writing() as session:
        keys = add_contacts(session, 300)
        plan_campaign(session, keys, [open_experiment(session, new_experiment(), now=now)], now)
        first = decide(session, now=now, look_ahead=timedelta(hours=1))
        again = decide(session, now=now, look_ahead=timedelta(hours=1))
        rest = decide(session, now=now, look_ahead=timedelta(hours=30))

    assert 0 < len(first) < 300
    assert len(again) == 0
    assert len(first) + len(rest) == 300


def test_first_decisions_are_uniform_and_follow_their_propensities(database, add_contacts, now):
    """Before any answer each of three arms has probability 1/3, and the draws agree with it."""
    with database.writing() as session:
        keys = add_contacts(session, 3000)
        experiment_id = open_experiment(session, new_experiment(), now=now)
        decisions = decide_for(session, experiment_id, keys, "home-page", now=now)

    counts = Counter(decisions.arm_id)
    assert decisions.propensity == pytest.approx([1 / 3] * 3000)
    assert all(abs(n - 1000) < 4 * np.sqrt(3000 * 2 / 9) for n in counts.values())


def test_the_same_question_gets_the_same_answer(database, add_contacts, now):
    """A decision asked for again is the one that was made, and no second row appears."""
    with database.writing() as session:
        keys = add_contacts(session, 20)
        experiment_id = open_experiment(session, new_experiment(), now=now)
        one = decide_for(session, experiment_id, keys, "visit-1", now=now)
        two = decide_for(session, experiment_id, list(reversed(keys)), "visit-1", now=now + timedelta(hours=3))
        count = session.scalar(select(func.count()).select_from(DecisionRow))

    assert dict(zip(one.contact_key, one.arm_id, strict=True)) == dict(zip(two.contact_key, two.arm_id, strict=True))
    assert count == 20


def test_a_paused_arm_is_never_drawn_and_the_others_share_its_probability(database, add_contacts, now):
    """Masked, renormalised, and the masked pmf is what is logged."""
    with database.writing() as session:
        keys = add_contacts(session, 200)
        experiment_id = open_experiment(session, new_experiment(), now=now)
        session.execute(update(ArmRow).where(ArmRow.arm_id == "offer").values(status="paused"))
        decisions = decide_for(session, experiment_id, keys, "visit", now=now)

        assert set(decisions.arm_id) == {"plain", "question"}
        assert set(decisions.propensity) == {0.5}
        assert all(again.is_equal for again in replay(session, decisions.decision_id))


def test_with_every_arm_paused_a_send_keeps_the_templates_own_text(database, add_contacts, now):
    """No decision is claimed; through the API it is a conflict that says what to do."""
    with database.writing() as session:
        keys = add_contacts(session, 5)
        experiment_id = open_experiment(session, new_experiment(), now=now)
        plan_campaign(session, keys, [experiment_id], now)
        session.execute(update(ArmRow).values(status="paused"))
        decisions = decide(session, now=now, look_ahead=timedelta(days=2))
        undecided = session.scalar(select(func.count()).select_from(SendRow).where(SendRow.decided_at.is_(None)))

        assert len(decisions) == 0
        assert undecided == 0
        with pytest.raises(Conflict, match="resume an arm"):
            decide_for(session, experiment_id, keys, "visit", now=now)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ARMS[:1]}, "1 arm is no experiment"),
        ({"arms": (ARMS[0], ARMS[0])}, "given twice"),
        ({"kind": "banner"}, "'banner'"),
        ({"reward": "smile"}, "'smile'"),
        ({"policy": "guess"}, "'guess'"),
        ({"floor": 0.4}, "floor of 0.4"),
        ({"floor": 0.0}, "floor of 0.0"),
        ({"explore_share": float("nan")}, "explore_share nan"),
        ({"reward_window_hours": 0.0}, "reward_window_hours 0.0"),
        ({"arms": (ARMS[0], Arm("empty", " "))}, "no text"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_with_the_value(database, now, changes, words):
    """The message names the value and the remedy."""
    with database.writing() as session, pytest.raises(Invalid, match=words):
        open_experiment(session, new_experiment(**changes), now=now)


def test_an_unknown_experiment_or_decision_is_named(database, now):
    """Looking up what is not there says so."""
    with database.writing() as session:
        with pytest.raises(NotFound, match="exp_none"):
            decide_for(session, "exp_none", [1], "visit", now=now)
        with pytest.raises(NotFound, match="dec_none"):
            replay(session, ["dec_none"])
