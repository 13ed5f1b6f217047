"""Laws of `service.flow.decide`: arms drawn late, with exact propensities, replayable bit for bit."""

from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import delete, func, select, update

from features.contacts import resolve
from features.events import NewEvent, append
from features.tables import to_micros
from service.errors import Conflict, Invalid, NotFound
from service.flow.decide import Arm, NewExperiment, decide, decide_for, open_experiment, replay
from service.flow.ingest import ingest
from service.flow.reward import learn, renew_snapshot
from service.tables import ArmRow, DecisionRow, ExperimentRow, SendRow, SnapshotRow
from tests.service.flow.shown import plan_campaign, reward, show

ARMS = (Arm("plain", "News for you"), Arm("question", "Seen this?"), Arm("offer", "10 % off today"))


def new_experiment(**changes) -> NewExperiment:
    return NewExperiment(**{"name": "Subjects", "kind": "subject", "arms": ARMS, **changes})


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
        ({"arms": (ARMS[0], Arm("b", "Two", {"p": 10**400}))}, "'p' of arm 'b' is a number of 1329 bits"),
        ({"arms": (ARMS[0], Arm("b", "Two", {"p": 1e999}))}, "'p' of arm 'b' is inf"),
        ({"arms": (ARMS[0], Arm("b", "Two", {"p": {"q": [1, float("nan")]}}))}, "'p' of arm 'b' is nan"),
        ({"arms": (ARMS[0], Arm("b", "Two", {"p": -2e9}))}, "from -1e9 to 1e9"),
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


def buyers(session, keys, now) -> None:
    """Orders in the log, so that vectors differ: contact i ordered i % 5 times."""
    events = [
        NewEvent(key, "Order Completed", to_micros(now - timedelta(days=n + 1)), f"b{key}-{n}", "user:x",
                 ref=f"b{key}-{n}", value_minor=100 * (n + 1))
        for i, key in enumerate(keys)
        for n in range(i % 5)
    ]  # fmt: skip
    append(session, events, received_at=to_micros(now))


SEEING = {"policy": "linear", "context": {"features": ["orders_ever", "revenue_ever"]}, "floor": 0.02}
COUNTRIES = {"trait": "country", "values": ["DE", "FR"]}


def seeing(session, keys, now, **changes) -> str:
    """A linear experiment whose newest snapshot prefers the first arm for those who bought much."""
    buyers(session, keys, now)
    experiment_id = open_experiment(session, new_experiment(**SEEING | changes), now=now, salt="seeing")
    rows = show(session, experiment_id, keys, "teach", now)
    bought = {key: i % 5 for i, key in enumerate(keys)}
    loved = [row for row in rows if (row.arm_id == "plain") == (bought[row.contact_key] >= 2)]
    append(session, [reward(row, now) for row in loved], received_at=to_micros(now))
    learn(session, now=now + timedelta(days=2))
    return experiment_id


def test_a_linear_policy_sees_the_contact_and_every_decision_replays(any_database, add_contacts, now):
    """Arms follow the vectors, each decision keeps what was seen, one contact alone gets what it gets in a batch."""
    with any_database.writing() as session:
        keys = add_contacts(session, 600)
        experiment_id = seeing(session, keys, now)
        later = now + timedelta(days=2)
        made = decide_for(session, experiment_id, keys, "visit", now=later)
        rows = {
            row.contact_key: row
            for row in session.scalars(select(DecisionRow).where(DecisionRow.occurrence == "visit"))
        }
        plain = [np.mean([rows[key].arm_id == "plain" for key in keys[i::5]]) for i in (0, 4)]
        session.execute(delete(DecisionRow).where(DecisionRow.occurrence == "visit"))
        alone = [decide_for(session, experiment_id, [key], "visit", now=later).propensity[0] for key in keys[:30]]

        assert plain[0] < 0.2 < 0.8 < plain[1]
        assert len({row.propensity for row in rows.values()}) > 5
        assert alone == [rows[key].propensity for key in keys[:30]]
        assert np.frombuffer(rows[keys[0]].context, "<f4")[0] == 1
        assert len(made) == 600
    with any_database.reading() as session:
        assert all(again.is_equal for again in replay(session, list(session.scalars(select(DecisionRow.decision_id)))))


@pytest.mark.parametrize("part", ["pmf", "statistics", "ensemble", "context"])
@pytest.mark.parametrize("policy", ["thompson", "linear"])
def test_whatever_is_altered_of_a_snapshot_shows(database, add_contacts, now, policy, part):
    """The stored pmf, its statistics, the ensemble: the replay disagrees, though arm and propensity may be the same."""
    with database.writing() as session:
        keys = add_contacts(session, 300)
        experiment_id = seeing(session, keys, now) if policy == "linear" else open_experiment(
            session, new_experiment(segment_by=COUNTRIES, explore_share=0.1, maximum_change=0.2), now=now
        )  # fmt: skip
        made = decide_for(session, experiment_id, keys, "visit", now=now + timedelta(days=2))
        assert all(again.is_equal for again in replay(session, made.decision_id))
        snapshot = session.scalars(select(SnapshotRow).order_by(SnapshotRow.snapshot_no.desc())).first()
        if part == "pmf":
            first, second, third = snapshot.policy["pmf"]
            snapshot.policy = snapshot.policy | {"pmf": [first, second + 1e-6, third - 1e-6]}
        elif part == "statistics" and policy == "thompson":
            snapshot.statistics = {name: [[1]] * 3 for name in ("trials", "successes")} | {"age_hours": [[9.0]] * 3}
            snapshot.policy = snapshot.policy | {
                "parameters": snapshot.policy["parameters"] | {"floor": 0.1, "minimum_successes": 0}
            }
        elif part == "ensemble" and policy == "linear":
            snapshot.ensemble = snapshot.ensemble[:-1] + bytes([snapshot.ensemble[-1] ^ 1])
        elif part == "context" and policy == "linear":
            session.execute(update(DecisionRow).values(context=np.array([1, -3, -3], "<f4").tobytes()))
        else:
            pytest.skip("the policy has no such part")
        session.flush()
        again = replay(session, made.decision_id)

        assert (
            (not any(one.is_equal for one in again)) if part != "context" else (not all(one.is_equal for one in again))
        )


def test_a_sticky_experiment_keeps_a_contacts_arm_while_it_runs(any_database, add_contacts, now):
    """Also within a wave and under a new snapshot; the first propensity and snapshot are logged, and it replays."""
    with any_database.writing() as session:
        keys = add_contacts(session, 120)
        experiment_id = open_experiment(session, new_experiment(sticky=True), now=now)
        first = decide_for(session, experiment_id, keys, "one", now=now)
        renew_snapshot(session, session.get_one(ExperimentRow, experiment_id), now=now)
        plan_campaign(session, [*keys, *add_contacts(session, 30, prefix="v")], [experiment_id], now)
        mailed = decide(session, now=now, look_ahead=timedelta(days=2))
        arm_of = dict(zip(first.contact_key, first.arm_id, strict=True))
        known = [i for i, key in enumerate(mailed.contact_key) if key in arm_of]

        assert len(known) == 120
        assert all(arm_of[mailed.contact_key[i]] == mailed.arm_id[i] for i in known)
        assert {mailed.snapshot_id[i] for i in known} == set(first.snapshot_id)
        assert len(set(mailed.snapshot_id)) == 2  # who came later was drawn from the newer one
        session.execute(update(ArmRow).where(ArmRow.arm_id == "offer").values(status="paused"))
        paused = decide_for(session, experiment_id, keys, "two", now=now + timedelta(hours=1))
        assert "offer" not in paused.arm_id
        session.execute(update(ArmRow).values(status="running"))
        back = decide_for(session, experiment_id, keys, "three", now=now + timedelta(hours=2))
        assert back.arm_id == first.arm_id
        waves = select(DecisionRow.wave).distinct().where(DecisionRow.occurrence.in_(["one", "three"]))
        assert len(session.scalars(waves).all()) == 1  # compared among those who were drawn together
        ids = session.scalars(select(DecisionRow.decision_id)).all()
        assert all(again.is_equal for again in replay(session, ids))
        session.execute(update(DecisionRow).where(DecisionRow.repeats.is_not(None)).values(propensity=0.5))
        assert sum(again.is_equal for again in replay(session, ids)) < len(ids)


def test_two_mails_of_one_wave_get_one_sticky_arm(database, add_contacts, now):
    """The second repeats the first, though neither was decided before."""
    with database.writing() as session:
        keys = add_contacts(session, 100)
        experiment_id = open_experiment(session, new_experiment(sticky=True), now=now)
        plan_campaign(session, keys, [experiment_id], now)
        # Half the people get the other half's mail as well.
        session.execute(
            update(SendRow).where(SendRow.contact_key > keys[49]).values(contact_key=SendRow.contact_key - 50)
        )
        mailed = decide(session, now=now, look_ahead=timedelta(days=2))
        arms = {
            key: {a for k, a in zip(mailed.contact_key, mailed.arm_id, strict=True) if k == key} for key in keys[:50]
        }
        repeats = session.scalar(select(func.count()).where(DecisionRow.repeats.is_not(None)))

        assert len(mailed) == 100
        assert all(len(own) == 1 for own in arms.values())
        assert repeats == 50
        assert all(again.is_equal for again in replay(session, mailed.decision_id))


def test_two_names_of_one_person_share_arm_and_holdout(database, add_contacts, now):
    """Whoever tells a second name stays one person to sticky arms and holdouts, under whichever of the two."""
    with database.writing() as session:
        experiment_id = open_experiment(session, new_experiment(sticky=True, holdout_share=0.5), now=now)
        told = [
            {"type": "identify", "userId": f"p{i}", "anonymousId": f"a{i}", "messageId": f"m{i}"} for i in range(40)
        ]
        ingest(session, told, source="segment", now=now)
        keys = [resolve(session, [f"{name}{i}" for i in range(40)], now=now) for name in ("user:p", "anonymous:a")]
        named, unnamed = ([found[name] for name in sorted(found)] for found in keys)
        first = decide_for(session, experiment_id, named, "one", now=now)
        again = decide_for(session, experiment_id, unnamed, "two", now=now + timedelta(hours=1))

        assert again.arm_id == first.arm_id
        assert again.is_holdout == first.is_holdout
        assert 5 < sum(first.is_holdout) < 35


def test_only_eligible_arms_are_drawn_and_the_mask_is_logged(database, add_contacts, now):
    """The others are left out; none eligible and running is a conflict, an unknown one invalid."""
    with database.writing() as session:
        keys = add_contacts(session, 60)
        experiment_id = open_experiment(session, new_experiment(), now=now)
        made = decide_for(session, experiment_id, keys, "x", now=now, eligible=["offer", "plain"])
        masks = set(map(tuple, session.scalars(select(DecisionRow.eligible))))

        assert set(made.arm_id) == {"plain", "offer"}
        assert masks == {("plain", "offer")}
        assert all(again.is_equal for again in replay(session, made.decision_id))
        with pytest.raises(Invalid, match="'banner'"):
            decide_for(session, experiment_id, keys, "y", now=now, eligible=["banner"])
        session.execute(update(ArmRow).where(ArmRow.arm_id == "offer").values(status="paused"))
        with pytest.raises(Conflict, match="among offer"):
            decide_for(session, experiment_id, keys, "y", now=now, eligible=["offer"])


def test_a_paused_experiment_draws_nothing(database, add_contacts, now):
    """Campaigns keep the template's own text; the API says that there is no running arm."""
    with database.writing() as session:
        keys = add_contacts(session, 5)
        experiment_id = open_experiment(session, new_experiment(), now=now)
        plan_campaign(session, keys, [experiment_id], now)
        session.execute(update(ExperimentRow).values(status="paused"))

        assert len(decide(session, now=now, look_ahead=timedelta(days=2))) == 0
        with pytest.raises(Conflict):
            decide_for(session, experiment_id, keys, "x", now=now)


def test_a_fixed_split_follows_its_weights(database, add_contacts, now):
    """An arm without a weight is never drawn; with the only weighted arm paused nothing is."""
    with database.writing() as session:
        keys = add_contacts(session, 400)
        new = new_experiment(policy="fixed", weights={"plain": 3, "question": 1})
        experiment_id = open_experiment(session, new, now=now, salt="fixed")
        made = decide_for(session, experiment_id, keys, "x", now=now)

        assert set(made.propensity) == {0.75, 0.25}
        assert "offer" not in made.arm_id
        session.execute(update(ArmRow).where(ArmRow.arm_id != "offer").values(status="paused"))
        with pytest.raises(Conflict):
            decide_for(session, experiment_id, keys, "y", now=now)


@pytest.mark.parametrize("policy", ["uniform", "epsilon_greedy", "gaussian", "thompson"])
def test_every_policy_opens_evenly_and_replays(database, add_contacts, now, policy):
    """Before any answer all arms are alike, whatever the policy."""
    with database.writing() as session:
        keys = add_contacts(session, 30)
        experiment_id = open_experiment(session, new_experiment(policy=policy), now=now)
        made = decide_for(session, experiment_id, keys, "x", now=now)

        assert made.propensity == pytest.approx([1 / 3] * 30)
        assert all(again.is_equal for again in replay(session, made.decision_id))


def test_revenue_is_learned_by_a_policy_for_values(database, now):
    """Without a policy named, revenue gets the Gaussian one; one that counts is refused with the remedy."""
    with database.writing() as session:
        experiment_id = open_experiment(session, new_experiment(reward="revenue"), now=now)
        assert session.get_one(ExperimentRow, experiment_id).policy == "gaussian"
        with pytest.raises(Invalid, match="choose gaussian"):
            open_experiment(session, new_experiment(reward="revenue", policy="thompson"), now=now)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"holdout_share": 0.95}, "holdout_share 0.95"),
        ({"holdout_share": float("nan")}, "holdout_share nan"),
        ({"control": "best"}, "'best'"),
        ({"weights": {"plain": 1}}, "takes no weights"),
        ({"policy": "fixed"}, "needs weights"),
        ({"policy": "fixed", "weights": {"none": 1}}, "none"),
        ({"policy": "fixed", "weights": {"plain": 0}}, "weights"),
        ({"policy": "uniform", "half_life_days": 3.0}, "takes no half_life_days"),
        ({"half_life_days": 0.0}, "half_life_days 0.0"),
        ({"maximum_change": float("inf")}, "maximum_change inf"),
        ({"maximum_change": 2.0}, "maximum_change 2.0"),
        ({"planned_sends": 0}, "planned_sends 0"),
        ({"guardrails": {"sales": True}}, "'sales'"),
        ({"segment_by": {"trait": "country"}}, "segment_by"),
        ({"segment_by": {"trait": "country", "values": [str(i) for i in range(21)]}}, "1 to 20"),
        ({"segment_by": {"trait": "country", "values": ["DE", "DE"]}}, "different texts"),
        ({"policy": "linear"}, "needs a context"),
        ({"context": {"features": ["orders_ever"]}}, "looks at no context"),
        ({"policy": "linear", "context": {"features": ["luck"]}}, "'luck'"),
        ({"policy": "linear", "context": {"features": []}}, "0 features"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_value(database, now, changes, words):
    """The message names the value, and nothing is opened."""
    with database.writing() as session, pytest.raises(Invalid, match=words):
        open_experiment(session, new_experiment(**changes), now=now)
