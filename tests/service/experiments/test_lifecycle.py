"""Laws of `service.experiments.lifecycle`: what may befall a running experiment, at once and with a trace."""

from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from service.errors import Conflict, Invalid, NotFound
from service.experiments import (
    add_arm,
    edit_experiment,
    end_experiment,
    pause_arm,
    pause_experiment,
    resume_arm,
    resume_experiment,
    retire_arm,
    rewrite_arm,
    shown_experiment,
)
from service.flow.decide import Arm, NewExperiment, decide, decide_for, open_experiment, replay
from service.tables import DecisionRow, SendRow, SnapshotRow
from tests.service.flow.shown import plan_campaign

ARMS = (Arm("plain", "News for you"), Arm("question", "Seen this?"))
BY = {"reason": "a test", "who": "somebody"}


def opened(session, now, **changes) -> str:
    return open_experiment(session, NewExperiment("Subjects", "subject", ARMS, **changes), now=now)


def drawn(session, experiment_id, keys, occurrence, now) -> Counter:
    return Counter(decide_for(session, experiment_id, keys, occurrence, now=now).arm_id)


def test_a_new_arm_is_in_the_draw_at_once(any_database, add_contacts, now):
    """A snapshot with it is taken when it is added, and it has at least the floor."""
    with any_database.writing() as session:
        keys = add_contacts(session, 300)
        experiment_id = opened(session, now)
        add_arm(session, experiment_id, Arm("offer", "10 % off"), who="somebody", now=now)
        counts = drawn(session, experiment_id, keys, "visit", now)
        snapshot = session.scalars(select(SnapshotRow).order_by(SnapshotRow.snapshot_no.desc()).limit(1)).one()

    assert snapshot.policy["arms"] == ["plain", "question", "offer"]
    assert min(snapshot.policy["pmf"]) >= 0.05
    assert counts["offer"] > 60


def test_a_paused_arm_is_out_at_once_and_back_when_resumed(any_database, add_contacts, now):
    """No snapshot is needed for either."""
    with any_database.writing() as session:
        keys = add_contacts(session, 200)
        experiment_id = opened(session, now)
        pause_arm(session, experiment_id, "plain", now=now, **BY)
        paused = drawn(session, experiment_id, keys, "first", now)
        resume_arm(session, experiment_id, "plain", now=now, **BY)
        resumed = drawn(session, experiment_id, keys, "second", now)

    assert set(paused) == {"question"}
    assert set(resumed) == {"plain", "question"}


def test_waiting_mails_are_drawn_again_without_the_paused_arm(any_database, add_contacts, now):
    """What was drawn and has not left is not shown any more; a mail that a worker holds leaves as it was drawn."""
    with any_database.writing() as session:
        keys = add_contacts(session, 200)
        experiment_id = opened(session, now)
        plan_campaign(session, keys, [experiment_id], now)
        ahead = timedelta(days=2)
        first = decide(session, now=now, look_ahead=ahead)
        shown = select(DecisionRow.send_id, DecisionRow.decision_id, DecisionRow.arm_id)
        before = {row.send_id: row for row in session.execute(shown)}
        held = [send_id for send_id, row in before.items() if row.arm_id == "plain"][:10]
        session.execute(update(SendRow).where(SendRow.send_id.in_(held)).values(state="claimed"))

        pause_arm(session, experiment_id, "plain", now=now, **BY)
        again = decide(session, now=now, look_ahead=ahead)
        after = {row.send_id: row for row in session.execute(shown)}

        n_plain = sum(row.arm_id == "plain" for row in before.values())
        assert len(first) == 200
        assert len(again.send_ids) == len(again) == n_plain - 10
        assert {send_id for send_id, row in after.items() if row.arm_id == "plain"} == set(held)
        assert set(after) == set(before)  # every intent has a decision
        assert all(row == after[send_id] for send_id, row in before.items() if row.arm_id == "question")
        assert all(one.is_equal for one in replay(session, [row.decision_id for row in after.values()]))
        end_experiment(session, experiment_id, now=now, **BY)
        assert set(row.send_id for row in session.execute(shown)) == set(held)


def test_a_retired_arm_stays_out_and_cannot_come_back(database, add_contacts, now):
    """Its text may be added again under another id."""
    with database.writing() as session:
        keys = add_contacts(session, 50)
        experiment_id = opened(session, now)
        retire_arm(session, experiment_id, "plain", now=now, **BY)
        assert set(drawn(session, experiment_id, keys, "visit", now)) == {"question"}
        with pytest.raises(Conflict, match="another id"):
            resume_arm(session, experiment_id, "plain", now=now, **BY)
        with pytest.raises(Conflict, match="already"):
            add_arm(session, experiment_id, Arm("plain", "x"), who="me", now=now)


def test_every_change_is_kept_with_who_made_it(database, now):
    """Oldest first, as the API shows it."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        edit_experiment(session, experiment_id, {"name": "Better", "floor": 0.1}, who="Ann", now=now)
        pause_arm(session, experiment_id, "plain", reason="complaints", who="guardrail", now=now + timedelta(hours=1))
        end_experiment(session, experiment_id, reason="", who="Bob", now=now + timedelta(hours=2))
        shown = shown_experiment(session, experiment_id)

    assert [(entry["who"], entry["what"]) for entry in shown["history"]] == [
        ("Ann", "name 'Subjects' → 'Better'"),
        ("Ann", "floor 0.05 → 0.1"),
        ("guardrail", "arm 'plain' paused: complaints"),
        ("Bob", "experiment ended"),
    ]
    assert shown["arms"][0]["status_reason"] == "complaints (by guardrail)"
    assert (shown["status"], shown["ended_at"]) == ("ended", now + timedelta(hours=2))


def test_a_new_floor_is_in_force_at_once(database, now):
    """By a snapshot of its own."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        before = session.scalar(select(func.count()).select_from(SnapshotRow))
        edit_experiment(session, experiment_id, {"floor": 0.2}, who="Ann", now=now)
        newest = session.scalars(select(SnapshotRow).order_by(SnapshotRow.snapshot_no.desc()).limit(1)).one()

        assert session.scalar(select(func.count()).select_from(SnapshotRow)) == before + 1
        assert newest.policy["parameters"]["floor"] == 0.2


@pytest.mark.parametrize(
    "changes",
    [{"reward": "open"}, {"reward_window_hours": 1.0}, {"policy": "uniform"}, {"salt": "mine"}, {"holdout_share": 0.1}],
)
def test_what_it_asks_cannot_change_while_it_runs(database, now, changes):
    """The error says what to do instead."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        with pytest.raises(Conflict, match="end it and open a new one"):
            edit_experiment(session, experiment_id, changes, who="Ann", now=now)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "nothing"),
        ({"floor": 0.6}, "0.6"),
        ({"floor": 0.0}, "floor"),
        ({"explore_share": 1.5}, "1.5"),
        ({"name": " "}, "name"),
        ({"colour": "red"}, "colour"),
        ({"guardrails": {"speed": True}}, "speed"),
        ({"guardrails": {"complaints": 3}}, "complaints"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_with_the_value(database, now, changes, said):
    """And nothing is changed."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        before = shown_experiment(session, experiment_id)
        with pytest.raises(Invalid, match=said):
            edit_experiment(session, experiment_id, changes, who="Ann", now=now)
        assert shown_experiment(session, experiment_id) == before


def test_a_text_can_change_until_it_was_drawn(database, add_contacts, now):
    """Afterwards what was shown under the arm's name would be another text."""
    with database.writing() as session:
        keys = add_contacts(session, 20)
        experiment_id = opened(session, now)
        assert rewrite_arm(session, experiment_id, "plain", "Better news", who="Ann", now=now).content == "Better news"
        decide_for(session, experiment_id, keys, "visit", now=now)
        with pytest.raises(Conflict, match="retire it and add another"):
            rewrite_arm(session, experiment_id, "plain", "Other news", who="Ann", now=now)


def test_an_ended_experiment_changes_no_more(database, add_contacts, now):
    """Every change is a conflict, and so is a decision; pausing twice is one too."""
    with database.writing() as session:
        keys = add_contacts(session, 2)
        experiment_id = opened(session, now)
        pause_experiment(session, experiment_id, now=now, **BY)
        with pytest.raises(Conflict, match="paused already"):
            pause_experiment(session, experiment_id, now=now, **BY)
        resume_experiment(session, experiment_id, now=now, **BY)
        end_experiment(session, experiment_id, now=now, **BY)
        for change in (
            lambda: resume_experiment(session, experiment_id, now=now, **BY),
            lambda: edit_experiment(session, experiment_id, {"name": "x"}, who="me", now=now),
            lambda: add_arm(session, experiment_id, Arm("c", "x"), who="me", now=now),
            lambda: pause_arm(session, experiment_id, "plain", now=now, **BY),
        ):
            with pytest.raises(Conflict, match="ended"):
                change()
        with pytest.raises(Conflict):
            decide_for(session, experiment_id, keys, "visit", now=now)


def test_what_is_not_there_cannot_change(database, now):
    """404 with the names that there are."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        with pytest.raises(NotFound, match="plain, question"):
            pause_arm(session, experiment_id, "nope", now=now, **BY)
        with pytest.raises(NotFound, match="exp_none"):
            pause_experiment(session, "exp_none", now=now, **BY)


def test_a_floor_that_does_not_fit_one_arm_more_refuses_the_arm(database, now):
    """The message names the greatest that does."""
    with database.writing() as session:
        experiment_id = opened(session, now, floor=0.5)
        with pytest.raises(Invalid, match=r"0\.333"):
            add_arm(session, experiment_id, Arm("c", "Third"), who="me", now=now)
        with pytest.raises(Invalid, match="no text"):
            add_arm(session, opened(session, now), Arm("c", " "), who="me", now=now)
        with pytest.raises(Invalid, match="'p' of arm 'c' is inf"):
            add_arm(session, opened(session, now), Arm("c", "Third", {"p": 1e999}), who="me", now=now)
