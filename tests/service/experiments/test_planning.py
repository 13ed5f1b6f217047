"""Laws of `service.experiments.planning`: what can be proved is said before anything is sent."""

import pytest
from sqlalchemy import insert

from service.errors import Invalid
from service.experiments import edit_experiment, find_experiment, keep_base, planning
from service.experiments.planning import DEFAULTS, base_of, plan_of
from service.flow.decide import Arm, NewExperiment, open_experiment
from service.tables import LearnerCellRow
from training.planning import lift_provable, sends_needed

ARMS = (Arm("a", "One"), Arm("b", "Two"))


def opened(session, now, **changes):
    return find_experiment(
        session, open_experiment(session, NewExperiment("Subjects", "subject", ARMS, **changes), now=now)
    )


def past(session, now, trials, successes, reward="click"):
    """An experiment that is over, with its counts."""
    experiment = opened(session, now, reward=reward)
    row = {
        "experiment_id": experiment.experiment_id, "arm_id": "a", "wave": 1, "segment": "", "trials": trials,
        "successes": successes, "sum_shown_at": 0, "sum_rewards": successes, "sum_squares": successes,
        "unsubscribes": 0, "complaints": 0,
    }  # fmt: skip
    session.execute(insert(LearnerCellRow), [row])


def test_the_sends_needed_come_from_the_installations_own_rate(any_database, now):
    """Where past experiments with this reward have one; else an assumption that says it is one."""
    with any_database.writing() as session:
        fresh = planning(session, opened(session, now))
        past(session, now, 50_000, 2_500)
        past(session, now, 50_000, 20_000, reward="open")
        known = planning(session, opened(session, now))

    assert "assumed" in fresh["source"]
    assert fresh["base_rate"] == 0.02
    assert (known["base_rate"], known["source"]) == (0.05, "2,500 in 50,000 of past experiments")
    assert known["sends_needed"] == sends_needed(0.05, 0.1).sends < fresh["sends_needed"]
    assert sends_needed(0.05, 0.1).sentence in known["sentences"]


def test_few_past_answers_are_no_rate(database, now):
    """Below 1,000 trials or 30 successes the assumption stands."""
    with database.writing() as session:
        past(session, now, 900, 300)
        assert base_of(session, "click") == DEFAULTS["click"]
        past(session, now, 900, 5)
        assert base_of(session, "click").mean == pytest.approx(305 / 1800)


def test_a_small_list_hears_that_the_split_stays_even(database, now):
    """With the successes that it takes, and whether the planned sends bring them."""
    with database.writing() as session:
        experiment = opened(session, now)
        small = planning(session, experiment, sends=500)
        large = planning(session, experiment, sends=50_000)

    assert small["uniform_until"]["sends"] == large["uniform_until"]["sends"] == 2_000
    assert "500 sends will not bring that many" in small["uniform_until"]["sentence"]
    assert large["uniform_until"]["is_reached"]
    assert small["uniform_until"]["sentence"] in small["sentences"]


def test_a_holdout_hears_what_it_can_prove(database, now):
    """In the words of the planning figure, from the rate of conversions."""
    with database.writing() as session:
        plan = planning(session, opened(session, now, reward="conversion"), sends=8_000, holdout_share=0.05)

    assert lift_provable(8_000, 0.05, 0.005).sentence in plan["sentences"]
    assert plan["sentences"][-1].startswith("With 8,000 contacts and 5 % held out")


def test_what_is_expected_is_kept_before_the_first_decision(database, now):
    """Reports are planned by what was known then, whatever is learned later."""
    with database.writing() as session:
        past(session, now, 50_000, 2_500)
        experiment = opened(session, now)
        keep_base(session, experiment)
        past(session, now, 50_000, 20_000)

        assert plan_of(experiment).mean == 0.05
        assert plan_of(experiment).inference.variance == pytest.approx(0.05 * 0.95)


@pytest.mark.parametrize("asked", [{"sends": 0}, {"lift": 0.0}, {"lift": 60.0}])
def test_a_question_that_makes_no_sense_is_refused(database, now, asked):
    """The message names the value."""
    with database.writing() as session:
        experiment = opened(session, now)
        with pytest.raises(Invalid, match=str(next(iter(asked.values()))).removesuffix(".0")):
            planning(session, experiment, **asked)


def test_a_rate_without_room_for_the_default_lift_has_no_figure_but_a_reason(database, now):
    """Opening is not refused because of it; a lift that was asked for is."""
    with database.writing() as session:
        past(session, now, 10_000, 9_500, reward="open")
        experiment = opened(session, now, reward="open")
        keep_base(session, experiment)
        said = planning(session, experiment)
        with pytest.raises(Invalid, match=r"a lift of 0.1 on a rate of 0.95 is outside 1e-06 to 0.0526"):
            planning(session, experiment, lift=0.1)
        assert planning(session, experiment, lift=0.04)["sends_needed"] > 1000
    assert (said["sends_needed"], said["lift"]) == (None, 0.1)
    assert said["sends_needed_why"] == said["sentences"][0]
    assert "a rate of 0.95 is impossible; plan one below 0.0526" in said["sends_needed_why"]


def test_lifts_and_floors_next_to_nothing_are_refused_and_the_least_are_planned(database, now):
    """No number of sends would do for less."""
    with database.writing() as session:
        experiment = opened(session, now, floor=1e-6)
        assert planning(session, experiment, lift=1e-6)["sends_needed"] > 1e12
        with pytest.raises(Invalid, match=r"a lift of 1e-17 .* is outside 1e-06 to"):
            planning(session, experiment, lift=1e-17)
        with pytest.raises(Invalid, match=r"a floor of 1e-310 for 2 arms does not fit; choose 1e-06 ≤ floor ≤ 0.500"):
            opened(session, now, floor=1e-310)
        with pytest.raises(Invalid, match=r"a floor of 1e-310 for 2 arms does not fit; choose 1e-06 ≤ floor ≤ 0.500"):
            edit_experiment(session, experiment.experiment_id, {"floor": 1e-310}, who="Ann", now=now)
