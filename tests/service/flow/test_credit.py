"""Laws of rewards and credits: by when things happened, whatever arrived first, twice, or was taken back."""

from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import select, update

from features.contacts import update_traits
from features.events import NewEvent, append
from features.tables import to_micros
from service.flow.decide import open_experiment, policy_of, replay
from service.flow.reward import evidence, learn, rebuild, statistics
from service.flow.reward.evidence import policy_under_drift
from service.tables import ArmRow, DecisionRow, ExperimentRow, LearnerCellRow, SendRow, SnapshotRow
from tests.service.flow.shown import ARMS, assert_same, new_experiment, order, reward, show, state

HOUR = timedelta(hours=1)


def opened(session, now, **changes) -> str:
    return open_experiment(session, new_experiment(**changes), now=now, salt="credit")


def take(session, events, at) -> None:
    append(session, events, received_at=to_micros(at))


def value_of(session, row, kind="revenue") -> float | None:
    found = state(session)["rewards"].get((row.decision_id, kind))
    return None if found is None else found[0]


def test_revenue_is_what_stands_of_the_credited_orders(any_database, add_contacts, now):
    """Two orders add up; a refund of a part lowers the sum, one without a value takes the whole order."""
    with any_database.writing() as session:
        keys = add_contacts(session, 1)
        experiment_id = opened(session, now, reward="revenue")
        [row] = show(session, experiment_id, keys, "x", now)
        take(session, [order(keys[0], now + HOUR, "o1", 1000), order(keys[0], now + 2 * HOUR, "o2", 500)], now + HOUR)
        learn(session, now=now + 3 * HOUR)
        assert (value_of(session, row), value_of(session, row, "conversion")) == (1500, 1)

        take(session, [order(keys[0], now + 5 * HOUR, "o1", 300, "Order Refunded")], now + 5 * HOUR)
        learn(session, now=now + 5 * HOUR)
        assert value_of(session, row) == 1200

        take(session, [order(keys[0], now + 6 * HOUR, "o2", None, "Order Cancelled")], now + 6 * HOUR)
        learn(session, now=now + 6 * HOUR)
        assert (value_of(session, row), value_of(session, row, "conversion")) == (700, 1)
        [cell] = session.scalars(select(LearnerCellRow)).all()
        assert (cell.trials, cell.successes, cell.sum_rewards, cell.sum_squares) == (1, 1, 700, 490_000)


def test_an_order_wholly_taken_back_takes_its_conversion_back(any_database, add_contacts, now):
    """The reward stays as a row that says when it was reversed; the cell forgets the success."""
    with any_database.writing() as session:
        keys = add_contacts(session, 1)
        experiment_id = opened(session, now, reward="conversion")
        [row] = show(session, experiment_id, keys, "x", now)
        take(session, [order(keys[0], now + HOUR, "o1")], now + HOUR)
        learn(session, now=now + HOUR)
        assert statistics(session, experiment_id, now=now).successes.sum() == 1
        back = [order(keys[0], now + 2 * HOUR, "o1", 400, "Order Refunded"),
                order(keys[0], now + 900 * HOUR, "o1", 600, "Order Refunded")]  # fmt: skip
        take(session, back[:1], now + 2 * HOUR)
        learn(session, now=now + 2 * HOUR)
        assert statistics(session, experiment_id, now=now).successes.sum() == 1
        take(session, back[1:], now + 900 * HOUR)
        learn(session, now=now + 900 * HOUR)

        assert statistics(session, experiment_id, now=now).successes.sum() == 0
        assert state(session)["rewards"][row.decision_id, "conversion"] == (0.0, now + HOUR, now + 900 * HOUR)
        before = state(session)
        rebuild(session)
        learn(session, now=now + 900 * HOUR)
        assert_same(state(session), before)


def test_an_order_credits_one_decision_of_each_experiment(database, add_contacts, now):
    """The clicked one, though another was shown later; in the other experiment the last one, for want of a click."""
    with database.writing() as session:
        keys = add_contacts(session, 1)
        first, second = opened(session, now, reward="revenue"), opened(session, now, reward="conversion")
        one, two = (show(session, first, keys, f"x{n}", now + n * HOUR)[0] for n in range(2))
        late = [show(session, second, keys, f"x{n}", now + n * HOUR)[0] for n in range(2)][-1]
        take(session, [reward(one, now + 3 * HOUR), order(keys[0], now + 4 * HOUR, "o1")], now + 4 * HOUR)
        learn(session, now=now + 5 * HOUR)

        credits = {place[0]: decision for place, (decision, _, _) in state(session)["credits"].items()}
        assert credits == {first: one.decision_id, second: late.decision_id}
        assert value_of(session, two) is None


@pytest.mark.parametrize("reading", ["at once", "one by one"])
def test_the_order_of_arrival_changes_nothing(database, add_contacts, now, reading):
    """Clicks, orders, refunds and reports in thirty orders, in one reading or one after the other: the same state."""
    rng = np.random.default_rng(7)
    with database.writing() as session:
        keys = add_contacts(session, 6)
        ids = [opened(session, now, reward=kind) for kind in ("click", "conversion", "revenue")]
        rows = [show(session, one, keys, f"x{n}", now + n * HOUR) for one in ids for n in range(3)]
        events = []
        for i, key in enumerate(keys):
            events += [reward(some[i], now + (n + 3) * HOUR) for n, some in enumerate(rows[: 3 + i])]
            events += [order(key, now + n * HOUR, f"o{i}{n}", 100 * n) for n in range(1, 8, 2)]
            events.append(order(key, now + 20 * HOUR, f"o{i}3", None, "Order Cancelled"))
            events.append(order(key, now + 21 * HOUR, f"o{i}5", 200, "Order Refunded"))
            events.append(reward(rows[6][i], now + 5 * HOUR, "revenue", 77))
        outcomes = []
        with session.begin_nested() as outer:
            for _ in range(2 if reading == "at once" else 3):
                with session.begin_nested() as attempt:
                    order_of_arrival = rng.permutation(len(events))
                    step = len(events) if reading == "at once" else 7
                    for start in range(0, len(events), step):
                        take(session, [events[k] for k in order_of_arrival[start : start + step]], now + 30 * HOUR)
                        learn(session, now=now + 30 * HOUR)
                    outcomes.append(state(session))
                    attempt.rollback()
                assert state(session)["rewards"] == {}
            outer.rollback()
        take(session, events, now + 30 * HOUR)
        learn(session, now=now + 30 * HOUR)
        plain = state(session)

        assert len(plain["credits"]) > 20
        for outcome in outcomes:
            assert_same(outcome, plain)


@pytest.mark.parametrize(
    ("hours", "delivered", "counts"),
    [(71.9, 200.0, 1), (72.0, 72.0, 1), (72.1, 72.1, 0), (-0.1, 1.0, 0)],
)
def test_a_reward_counts_by_when_it_happened(database, add_contacts, now, hours, delivered, counts):
    """Delivered late but from inside the window it counts; outside it or before the decision it does not."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        [row] = show(session, experiment_id, add_contacts(session, 1), "x", now)
        take(session, [reward(row, now + hours * HOUR)], now + delivered * HOUR)
        learn(session, now=now + delivered * HOUR)

        assert statistics(session, experiment_id, now=now).successes.sum() == counts


def test_what_nobody_knows_is_left_aside(database, add_contacts, now):
    """Rewards of unknown decisions and refunds of unknown orders neither fail nor count."""
    with database.writing() as session:
        keys = add_contacts(session, 1)
        experiment_id = opened(session, now, reward="revenue")
        [row] = show(session, experiment_id, keys, "x", now)
        stranger = NewEvent(keys[0], "Reward Received", to_micros(now), "m", "user:x", ref="dec_none",
                            properties={"kind": "click", "value": 1.0})  # fmt: skip
        take(session, [stranger, order(keys[0], now + HOUR, "o9", 5, "Order Refunded")], now + HOUR)
        take(session, [order(keys[0], now + 100 * HOUR, "late")], now + 100 * HOUR)
        learn(session, now=now + 100 * HOUR)

        assert state(session)["rewards"] == {}
        assert value_of(session, row) is None


def test_the_earliest_of_a_kind_is_the_reward(database, add_contacts, now):
    """A duplicate changes nothing, and one that happened earlier but came later moves the reward's instant only."""
    with database.writing() as session:
        experiment_id = opened(session, now)
        [row] = show(session, experiment_id, add_contacts(session, 1), "x", now)
        later, earlier = reward(row, now + 5 * HOUR), reward(row, now + 2 * HOUR)
        take(session, [later, later], now + 5 * HOUR)
        learn(session, now=now + 5 * HOUR)
        take(session, [later, NewEvent(**{name: getattr(earlier, name) for name in earlier.__slots__}
                                       | {"message_id": "again"})], now + 6 * HOUR)  # fmt: skip
        learn(session, now=now + 6 * HOUR)

        assert state(session)["rewards"] == {(row.decision_id, "click"): (1.0, now + 2 * HOUR, None)}
        assert statistics(session, experiment_id, now=now).successes.sum() == 1


def test_a_held_out_person_earns_what_orders_earn_and_teaches_nobody(any_database, add_contacts, now):
    """Their conversions are there to compare with; no cell counts them, and no click of theirs is a reward."""
    with any_database.writing() as session:
        keys = add_contacts(session, 200)
        experiment_id = opened(session, now, reward="conversion", holdout_share=0.3)
        rows = show(session, experiment_id, keys, "x", now)
        again = show(session, experiment_id, keys, "y", now)
        events = [order(row.contact_key, now + HOUR, f"o{row.contact_key}") for row in rows]
        take(session, [*events, *(reward(row, now + HOUR) for row in rows)], now + HOUR)
        learn(session, now=now + 2 * HOUR)
        held = [row for row in rows if row.is_holdout]
        counts = statistics(session, experiment_id, now=now)
        kinds = {kind for (decision, kind) in state(session)["rewards"] if decision in {r.decision_id for r in held}}

        assert 30 < len(held) < 90
        assert [row.is_holdout for row in again] == [row.is_holdout for row in rows]
        assert counts.trials.sum() == 2 * (200 - len(held))
        assert counts.successes.sum() == 200 - len(held)
        assert len(state(session)["credits"]) == 200
        assert kinds == {"conversion", "revenue"}


def mailed(session, rows, now) -> None:
    """Let decisions be those of accepted mails, send 1 the first."""
    for number, row in enumerate(rows, 1):
        row.send_id = number
        session.add(
            SendRow(
                send_id=number, intent_key=f"x:{number}", contact_key=row.contact_key, stream="marketing",
                topic="marketing", template_id="t", template_version=1, state="accepted", due_at=now, not_after=now,
                timezone="UTC", assigned_local_hour=9, hour_propensity=1.0, hour_reason="fixed", is_holdout=False,
                decided_at=now, created_at=now, finished_at=now,
            )
        )  # fmt: skip
    session.flush()


def test_who_leaves_or_complains_is_counted_by_arm(database, add_contacts, now):
    """Once a decision, by the mail that the event names; a stranger's word about somebody's mail does not count."""
    with database.writing() as session:
        keys = add_contacts(session, 4)
        rows = show(session, opened(session, now), keys, "x", now)
        mailed(session, rows, now)

        def harm(kind, key, send, n=0):
            return NewEvent(key, kind, to_micros(now + HOUR), f"{kind}{key}{send}{n}", "user:x", ref=str(send))

        events = [harm("Unsubscribed", keys[0], 1), harm("Unsubscribed", keys[0], 1, 1),
                  harm("Email Marked as Spam", keys[1], 2), harm("Unsubscribed", keys[1], 3),
                  harm("Unsubscribed", keys[3], "9" * 30)]  # fmt: skip
        take(session, events, now + HOUR)
        learn(session, now=now + HOUR)
        cells = session.scalars(select(LearnerCellRow)).all()

        assert (sum(c.unsubscribes for c in cells), sum(c.complaints for c in cells)) == (1, 1)
        assert next(c.unsubscribes for c in cells if c.arm_id == rows[0].arm_id) == 1
        before = state(session)
        rebuild(session)
        learn(session, now=now + HOUR)
        assert_same(state(session), before)


def test_segments_have_cells_of_their_own_and_a_fold_in_parts_is_the_fold(any_database, add_contacts, now):
    """Trials and rewards are counted where the contact stood when it was decided; a rebuild gives the same."""
    with any_database.writing() as session:
        keys = add_contacts(session, 90)
        places = ("DE", "FR", "PL")
        update_traits(session, {key: {"country": places[i % 3]} for i, key in enumerate(keys[:80])}, now=now)
        rule = {"trait": "country", "values": ["DE", "FR"]}
        experiment_id = opened(session, now, segment_by=rule)
        rows = show(session, experiment_id, keys, "x", now)
        update_traits(session, {key: {"country": "DE"} for key in keys}, now=now)
        for row in rows[::3]:
            take(session, [reward(row, now + HOUR)], now + HOUR)
        learn(session, now=now + HOUR)
        cells = session.scalars(select(LearnerCellRow)).all()
        trials = {name: sum(c.trials for c in cells if c.segment == name) for name in ("DE", "FR", "other", "")}
        experiment = session.get_one(ExperimentRow, experiment_id)
        before = state(session)
        rebuild(session)
        learn(session, now=now + HOUR)

        assert trials == {"DE": 27, "FR": 27, "other": 26, "": 10}
        assert evidence(session, experiment, now=now).segments == ("", "DE", "FR", "other")
        assert_same(state(session), before)


def test_a_linear_experiment_folds_its_vectors(any_database, add_contacts, now):
    """Gram and moments are the sums over the shown decisions, in parts or at once, revenue and refunds included."""
    with any_database.writing() as session:
        keys = add_contacts(session, 40)
        take(session, [order(key, now - (1 + i) * HOUR, f"p{key}", 100 * i) for i, key in enumerate(keys)], now)
        experiment_id = opened(
            session, now, reward="revenue", policy="linear", context={"features": ["orders_ever", "revenue_ever"]},
            holdout_share=0.2,
        )  # fmt: skip
        rows = show(session, experiment_id, keys, "x", now)
        orders = [order(row.contact_key, now + HOUR, f"o{row.contact_key}", 10 * i) for i, row in enumerate(rows)]
        back = [
            order(row.contact_key, now + 2 * HOUR, f"o{row.contact_key}", None, "Order Refunded") for row in rows[:5]
        ]
        for part in (orders[:20], orders[20:], back):
            take(session, part, now + 2 * HOUR)
            learn(session, now=now + 2 * HOUR)
        table = evidence(session, session.get_one(ExperimentRow, experiment_id), now=now)
        shown = [(i, row) for i, row in enumerate(rows) if not row.is_holdout]
        x = np.array([np.frombuffer(row.context, "<f4").astype(float) for _, row in shown])
        value = np.array([0.0 if i < 5 else 10.0 * i for i, _ in shown])
        before = state(session)
        rebuild(session)
        learn(session, now=now + 2 * HOUR)

        assert 0 < len(shown) < 40
        np.testing.assert_allclose(table.gram.sum(axis=(0, 1)), x.T @ x, rtol=1e-9)
        np.testing.assert_allclose(table.moments.sum(axis=(0, 1)), value @ x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(table.squares.sum(), value @ value)
        assert_same(state(session), before)


def test_the_lifecycle_of_arms(database, add_contacts, now):
    """A new arm enters a snapshot at once and keeps the floor; a retired one leaves it, its answers still count."""
    with database.writing() as session:
        keys = add_contacts(session, 60)
        experiment_id = opened(session, now, floor=0.1)
        rows = show(session, experiment_id, keys, "x", now)
        learn(session, now=now)
        session.execute(update(ArmRow).where(ArmRow.arm_id == "a").values(status="retired"))
        session.add(ArmRow(experiment_id=experiment_id, arm_id="d", position=3, content="New", features={},
                           status="running", created_at=now))  # fmt: skip
        session.flush()
        gone = next(row for row in rows if row.arm_id == "a")
        take(session, [reward(gone, now + HOUR)], now + HOUR)
        learned = learn(session, now=now + timedelta(minutes=1))
        newest = session.scalars(select(SnapshotRow).order_by(SnapshotRow.snapshot_no.desc())).first()
        later = show(session, experiment_id, keys, "y", now + HOUR)
        still = learn(session, now=now + timedelta(minutes=2))

        assert (learned.snapshots, still.snapshots) == (1, 0)
        assert newest.policy["arms"] == ["b", "c", "d"]
        assert min(newest.policy["pmf"]) >= 0.1
        assert {row.arm_id for row in later} == {"b", "c", "d"}
        counts = statistics(session, experiment_id, now=now)
        assert counts.successes.sum(axis=1).tolist() == [1, 0, 0, 0]
        assert session.scalars(select(DecisionRow).where(DecisionRow.arm_id == "a")).first() is not None


@pytest.mark.parametrize("changes", [True, False])
def test_an_arm_whose_rate_changes_shortens_the_memory(database, add_contacts, now, changes):
    """The alarm is in the snapshot's reason and half-life, and it replays; without a change nothing is said."""
    rng = np.random.default_rng(3)
    with database.writing() as session:
        keys = add_contacts(session, 30)
        experiment_id = opened(session, now)
        waves = 60
        for wave in range(waves):
            for arm in "abc":
                rate = 0.5 if changes and arm == "a" and wave >= waves // 2 else 0.1
                session.add(
                    LearnerCellRow(
                        experiment_id=experiment_id, arm_id=arm, wave=wave, segment="", trials=300,
                        successes=int(rng.binomial(300, rate)),
                        sum_shown_at=300 * int((now - (waves - wave) * 4 * HOUR).timestamp()),
                    )
                )  # fmt: skip
        session.flush()
        learn(session, now=now + HOUR)
        newest = session.scalars(select(SnapshotRow).order_by(SnapshotRow.snapshot_no.desc())).first()
        made = show(session, experiment_id, keys, "x", now + HOUR)

        assert ("the rate of" in newest.policy["reason"]) is changes
        assert (newest.policy["parameters"]["half_life_days"] is not None) is changes
        assert all(again.is_equal for again in replay(session, [row.decision_id for row in made]))
        assert learn(session, now=now + 2 * HOUR).snapshots == 1  # the trials just shown
        assert learn(session, now=now + 3 * HOUR).snapshots == 0  # a shortened memory is no edit


def test_what_counts_of_an_order_does_not_hang_on_who_shares_the_reading(database, add_contacts, now):
    """An order first told before its contact's decision is none of its, whoever else is looked at with it."""
    with database.writing() as session:
        keys = add_contacts(session, 2)
        experiment_id = opened(session, now, reward="revenue")
        [old] = show(session, experiment_id, keys[1:], "x", now)
        [row] = show(session, experiment_id, keys[:1], "x", now + 5 * HOUR)
        learn(session, now=now + 5 * HOUR)
        take(session, [order(keys[0], now + 4 * HOUR, "o1")], now + 6 * HOUR)
        learn(session, now=now + 6 * HOUR)
        take(session, [order(keys[0], now + 7 * HOUR, "o1")], now + 7 * HOUR)
        learn(session, now=now + 7 * HOUR)
        take(session, [order(keys[1], now + 8 * HOUR, "o2", 300)], now + 8 * HOUR)
        learn(session, now=now + 8 * HOUR)
        live = state(session)
        rebuild(session)
        learn(session, now=now + 8 * HOUR)

        assert_same(state(session), live)
        assert value_of(session, row) is None
        assert value_of(session, old) == 300


def test_a_refund_in_another_currency_leaves_the_order_as_it_stands(database, add_contacts, now):
    """Its worth is not known in the reports' currency; one that tells no value takes the whole order."""
    with database.writing() as session:
        keys = add_contacts(session, 1)
        [row] = show(session, opened(session, now, reward="revenue"), keys, "x", now)
        foreign = NewEvent(keys[0], "Order Refunded", to_micros(now + 2 * HOUR), "r", "user:x", ref="o1",
                           properties={"order_id": "o1", "value": 3, "currency": "JPY"})  # fmt: skip
        take(session, [order(keys[0], now + HOUR, "o1", 1000), foreign], now + 2 * HOUR)
        learn(session, now=now + 3 * HOUR)
        assert (value_of(session, row), value_of(session, row, "conversion")) == (1000, 1)
        take(session, [order(keys[0], now + 4 * HOUR, "o1", None, "Order Refunded")], now + 4 * HOUR)
        learn(session, now=now + 4 * HOUR)

        assert (value_of(session, row), value_of(session, row, "conversion")) == (0, 0)


def test_where_segments_are_told_apart_a_change_of_who_comes_is_no_drift(database, now):
    """Rates stay in each segment, and who comes changes: counts added up over the segments would drift."""
    with database.writing() as session:
        experiment_id = opened(session, now, arms=ARMS[:2], segment_by={"trait": "country", "values": ["DE"]})
        first = to_micros(now) // 3_600_000_000 - 96
        for wave in range(96):
            eager = wave >= 48
            for arm, segment in (("a", "DE"), ("a", "other"), ("b", "DE"), ("b", "other")):
                trials = 180 if eager == ((arm, segment) in (("a", "DE"), ("b", "other"))) else 20
                session.add(
                    LearnerCellRow(
                        experiment_id=experiment_id, arm_id=arm, wave=first + wave, segment=segment, trials=trials,
                        successes=trials * (4 if segment == "DE" else 1) // 10,
                        sum_shown_at=trials * (first + wave) * 3600,
                    )
                )  # fmt: skip
        session.flush()
        experiment = session.get_one(ExperimentRow, experiment_id)
        policy = policy_of(experiment)
        pooled, _ = policy_under_drift(session, replaced(experiment, segment_by=None), policy, now=now)
        apart, note = policy_under_drift(session, replaced(experiment, segment_by={"trait": "c"}), policy, now=now)

        assert pooled.parameters() != policy.parameters()
        assert (apart.parameters(), note) == (policy.parameters(), "")


def replaced(experiment: ExperimentRow, **settings) -> ExperimentRow:
    return ExperimentRow(experiment_id=experiment.experiment_id, settings={**experiment.settings, **settings})
