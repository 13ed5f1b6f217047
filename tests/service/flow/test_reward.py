"""Laws of `service.flow.reward`: the learner's counts are a fold of the log, whatever arrives twice or late."""

import threading
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import func, select, update

from features.events import NewEvent, append
from features.tables import to_micros
from service.flow.decide import Arm, NewExperiment, decide_for, open_experiment
from service.flow.reward import learn, rebuild, statistics
from service.tables import ArmRow, DecisionRow, LearnerCellRow, RewardRow, SendRow, SnapshotRow
from tests.service.flow.shown import new_experiment, reward, show

ARMS = (Arm("a", "One"), Arm("b", "Two"))


@pytest.fixture
def sent(add_contacts, now):
    """A function that opens an experiment and puts ``count`` accepted sends with their decisions into the log."""

    def send(session, count=40, reward="click", window_hours=72.0):
        keys = add_contacts(session, count)
        new = NewExperiment("Test", "subject", ARMS, reward=reward, reward_window_hours=window_hours)
        experiment_id = open_experiment(session, new, now=now)
        decide_for(session, experiment_id, keys, "x", now=now)
        events = []
        for number, row in enumerate(session.scalars(select(DecisionRow).order_by(DecisionRow.contact_key)).all(), 1):
            row.send_id = number
            session.add(
                SendRow(
                    send_id=number,
                    intent_key=f"x:{number}",
                    contact_key=row.contact_key,
                    stream="marketing",
                    topic="marketing",
                    template_id="t",
                    template_version=1,
                    state="accepted",
                    due_at=now,
                    not_after=now,
                    timezone="UTC",
                    assigned_local_hour=9,
                    hour_propensity=1.0,
                    hour_reason="fixed",
                    is_holdout=False,
                    decided_at=now,
                    created_at=now,
                    finished_at=now,
                )
            )
            decision = {"decision_id": row.decision_id, "experiment_id": experiment_id, "arm_id": row.arm_id}
            events.append(
                NewEvent(
                    row.contact_key,
                    "Email Sent",
                    to_micros(now),
                    f"sent:{number}",
                    f"user:u{number}",
                    ref=str(number),
                    properties={"decisions": [{**decision, "wave": row.wave}]},
                )
            )
        append(session, events, received_at=to_micros(now))
        return experiment_id, keys

    return send


def click(session, now, key, send_id, *, after_hours=1.0, ppm=900_000, kind="Email Link Clicked", n=0, repeat=False):
    at = to_micros(now + timedelta(hours=after_hours))
    event = NewEvent(
        key, kind, at, f"{kind}:{send_id}:{n}", "user:x", ref=str(send_id), human_ppm=ppm, is_repeat=repeat
    )
    append(session, [event], received_at=at)


def totals(session, experiment_id, now):
    counts = statistics(session, experiment_id, now=now)
    return int(counts.trials.sum()), int(counts.successes.sum())


def test_an_accepted_mail_is_a_trial_and_a_human_click_a_success(any_database, sent, now):
    """Forty sends, one click: forty trials, one success, and a snapshot that holds them."""
    later = now + timedelta(hours=2)
    with any_database.writing() as session:
        experiment_id, keys = sent(session)
        click(session, now, keys[0], 1)
        learned = learn(session, now=later)

        assert (learned.trials, learned.rewards, learned.snapshots) == (40, 1, 1)
        assert totals(session, experiment_id, later) == (40, 1)
        newest = session.scalars(select(SnapshotRow).order_by(SnapshotRow.snapshot_no.desc())).first()
        assert np.sum(newest.statistics["trials"]) == 40
        assert sum(newest.policy["pmf"]) == pytest.approx(1)


def test_reading_the_log_twice_changes_nothing(database, sent, now):
    """The cursor remembers; nothing is counted twice."""
    later = now + timedelta(hours=2)
    with database.writing() as session:
        experiment_id, keys = sent(session)
        click(session, now, keys[0], 1)
        learn(session, now=later)
        again = learn(session, now=later)

        assert (again.events, again.trials, again.rewards) == (0, 0, 0)
        assert totals(session, experiment_id, later) == (40, 1)


def test_a_rebuild_gives_the_same_numbers(any_database, sent, now):
    """Folding in three readings or in one, from the beginning, ends in the same cells and rewards."""
    later = now + timedelta(hours=9)
    with any_database.writing() as session:
        _, keys = sent(session)
        for i in range(9):
            click(session, now, keys[i], i + 1, after_hours=i / 2)
            if i % 3 == 2:
                learn(session, now=later)
        cells = select(
            LearnerCellRow.arm_id, LearnerCellRow.wave, LearnerCellRow.trials, LearnerCellRow.successes
        ).order_by(LearnerCellRow.arm_id, LearnerCellRow.wave)
        rewards = select(RewardRow.decision_id, RewardRow.kind, RewardRow.log_seq).order_by(RewardRow.log_seq)
        before = session.execute(cells).all(), session.execute(rewards).all()
        rebuild(session)
        learn(session, now=later)
        session.expire_all()

        assert (session.execute(cells).all(), session.execute(rewards).all()) == before
        assert len(before[1]) == 9


@pytest.mark.parametrize(
    "answer",
    [
        {"ppm": 100_000},
        {"ppm": None},
        {"repeat": True},
        {"after_hours": 73.0},
        {"after_hours": -0.5},
        {"kind": "Email Opened"},
    ],
)
def test_what_is_no_answer_of_a_person_inside_the_window_is_no_success(database, sent, now, answer):
    """Machines, repeats, the late, the impossible, and the kind that was not asked for earn nothing."""
    with database.writing() as session:
        experiment_id, keys = sent(session)
        click(session, now, keys[0], 1, **answer)
        learn(session, now=now + timedelta(days=5))

        assert totals(session, experiment_id, now + timedelta(days=5)) == (40, 0)


def test_a_second_click_on_the_same_mail_earns_nothing_more(database, sent, now):
    """One decision, one success of a kind."""
    with database.writing() as session:
        experiment_id, keys = sent(session)
        click(session, now, keys[0], 1, n=0)
        learn(session, now=now + timedelta(hours=2))
        click(session, now, keys[0], 1, after_hours=3, n=1)
        learn(session, now=now + timedelta(hours=4))

        assert totals(session, experiment_id, now) == (40, 1)


def test_an_answer_to_a_send_that_nobody_knows_is_left_aside(database, sent, now):
    """An event whose send is not in the ledger neither fails nor counts."""
    with database.writing() as session:
        experiment_id, keys = sent(session)
        click(session, now, keys[0], 4711)
        learn(session, now=now + timedelta(hours=2))

        assert totals(session, experiment_id, now) == (40, 0)


def test_a_failed_send_is_no_trial(database, sent, now):
    """What did not leave cannot be answered: its click, if one turns up, earns nothing."""
    with database.writing() as session:
        experiment_id, keys = sent(session)
        session.execute(update(SendRow).where(SendRow.send_id == 1).values(state="failed"))
        click(session, now, keys[0], 1)
        learn(session, now=now + timedelta(hours=2))

        assert totals(session, experiment_id, now)[1] == 0


def test_an_order_credits_the_send_that_was_clicked_last(database, sent, now):
    """One order is one conversion of one decision."""
    with database.writing() as session:
        experiment_id, keys = sent(session, reward="conversion")
        click(session, now, keys[0], 1)
        at = to_micros(now + timedelta(hours=5))
        order = NewEvent(keys[0], "Order Completed", at, "o-1", "user:u0", ref="o-1", value_minor=990)
        append(session, [order], received_at=at)
        learn(session, now=now + timedelta(hours=6))

        assert totals(session, experiment_id, now) == (40, 1)
        assert session.scalar(select(func.count()).where(RewardRow.kind == "conversion")) == 1


def test_snapshots_keep_their_distance_and_miss_no_news(database, sent, now):
    """News within a quarter of an hour of a snapshot are in the next one."""
    with database.writing() as session:
        _, keys = sent(session)
        first = learn(session, now=now + timedelta(hours=2))
        click(session, now, keys[0], 1, after_hours=2.1)
        early = learn(session, now=now + timedelta(hours=2, minutes=10))
        late = learn(session, now=now + timedelta(hours=2, minutes=16))
        still = learn(session, now=now + timedelta(hours=3))

        assert (first.snapshots, early.snapshots, late.snapshots, still.snapshots) == (1, 0, 1, 0)


@pytest.mark.postgres
def test_two_workers_that_learn_first_at_once_fold_once(postgres, sent, now):
    """On PostgreSQL the one that comes second waits, and finds nothing left to count."""
    later = now + timedelta(hours=2)
    with postgres.writing() as session:
        experiment_id, keys = sent(session)
        click(session, now, keys[0], 1)
    start = threading.Barrier(4)
    learned = []

    def work() -> None:
        start.wait()
        with postgres.writing() as session:
            learned.append(learn(session, now=later))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert sorted(one.trials for one in learned) == [0, 0, 0, 40]
    with postgres.reading() as session:
        assert totals(session, experiment_id, later) == (40, 1)


def test_a_rebuild_credits_orders_as_the_fold_did(database, sent, now):
    """A click that stands before the order in the log counts whether both are read at once or one by one."""
    later = now + timedelta(hours=9)
    with database.writing() as session:
        _, keys = sent(session, reward="conversion")
        learn(session, now=later)
        click(session, now, keys[0], 1)
        at = to_micros(now + timedelta(hours=5))
        order = NewEvent(keys[0], "Order Completed", at, "o-1", "user:u0", ref="o-1", value_minor=990)
        append(session, [order], received_at=at)
        click(session, now, keys[0], 1, after_hours=4, n=2)
        learn(session, now=later)
        rewards = select(RewardRow.decision_id, RewardRow.kind, RewardRow.log_seq).order_by(RewardRow.log_seq)
        before = session.execute(rewards).all()
        rebuild(session)
        learn(session, now=later)

        assert session.execute(rewards).all() == before
        assert [row.kind for row in before].count("conversion") == 1


def test_a_kept_arm_weighs_its_mails_by_how_alike_a_contacts_answers_are(database, add_contacts, now):
    """Each contact clicks on all of three mails or on none: three mails are worth one, where the arm is kept."""
    found = {}
    with database.writing() as session:
        keys = add_contacts(session, 90)
        for is_sticky in (True, False):
            experiment_id = open_experiment(session, new_experiment(sticky=is_sticky), now=now)
            for mail in range(3):
                at = now + timedelta(minutes=mail)
                rows = show(session, experiment_id, keys, f"mail {mail}", at)
                clicks = [reward(row, at + timedelta(minutes=30)) for row in rows[::3]]
                append(session, clicks, received_at=to_micros(now + timedelta(hours=2)))
            learn(session, now=now + timedelta(hours=3))
            newest = select(SnapshotRow).where(SnapshotRow.experiment_id == experiment_id)
            snapshot = session.scalars(newest.order_by(SnapshotRow.snapshot_no.desc()).limit(1)).one()
            found[is_sticky] = snapshot.policy["parameters"]["design_effect"]

    assert found[True] == pytest.approx(3.0, abs=0.1)
    assert found[False] == 1.0


def test_an_experiment_that_cannot_be_learned_from_stops_no_other(any_database, add_contacts, now, caplog):
    """Its snapshot stays and the log names it; the fold and the other experiment go on."""
    later = now + timedelta(hours=1)
    with any_database.writing() as session:
        keys = add_contacts(session, 9)
        bad = open_experiment(
            session, new_experiment(policy="linear", context={"features": ["orders_ever"]}), now=now, salt="bad"
        )
        good = open_experiment(session, new_experiment(), now=now, salt="good")
        for one in (bad, good):
            show(session, one, keys, "x", now)
        session.execute(update(ArmRow).where(ArmRow.experiment_id == bad).values(features={"p": 10**400}))
        learned = learn(session, now=later)
    with any_database.writing() as session:
        again = learn(session, now=later + timedelta(hours=1))

        assert (learned.trials, learned.snapshots, again.trials, again.snapshots) == (18, 1, 0, 0)
        assert session.scalar(select(func.count()).where(SnapshotRow.experiment_id == bad)) == 1
        assert statistics(session, bad, now=later).trials.sum() == 9
        assert bad in caplog.text
        assert good not in caplog.text
