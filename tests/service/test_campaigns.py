"""Laws of campaigns: what a draft may be, what a plan shows, and that scheduling does what the plan said."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from service.campaigns import NewCampaign, cancel_campaign, create_campaign, plan_campaign, schedule_campaign
from service.errors import Conflict, Invalid, NotFound
from service.flow.decide import Arm, NewExperiment, open_experiment
from service.tables import SendRow
from service.templates import NewTemplate, add_template, bundled_template
from training.serving import Serving

ARMS = (Arm("a", "One"), Arm("b", "Two"))


def draft(now, **changes) -> NewCampaign:
    plain = {
        "name": "News",
        "template_id": "offer",
        "window_start": now,
        "window_end": now + timedelta(hours=24),
        "audience": {"everyone": True},
    }
    return NewCampaign(**{**plain, **changes})


@pytest.fixture
def shop(database, add_contacts, now):
    """A database with a template, ten contacts who want mail and two who do not."""
    with database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        add_contacts(session, 10)
        add_contacts(session, 2, prefix="no", consent="unknown")
    return database


def test_a_plan_counts_everyone_and_writes_nothing(shop, settings, now):
    """Counts by state and reason add up to the audience; the ledger stays empty."""
    with shop.writing() as session:
        campaign_id = create_campaign(session, draft(now), now=now)
        plan = plan_campaign(session, campaign_id, Serving(), settings, now=now)

        assert plan.audience == sum(plan.counts.values()) == 12
        assert plan.planned == sum(plan.local_hours.values()) == 10
        assert all(7 <= hour < 22 for hour in plan.local_hours)
        assert session.scalar(select(func.count()).select_from(SendRow)) == 0


def test_scheduling_does_what_the_plan_said(shop, settings, now):
    """The same counts, now as rows, the suppressed ones among them with their reason."""
    with shop.writing() as session:
        campaign_id = create_campaign(session, draft(now), now=now)
        plan = plan_campaign(session, campaign_id, Serving(), settings, now=now)

        assert schedule_campaign(session, campaign_id, Serving(), settings, now=now) == plan.counts
        assert session.scalar(select(func.count()).select_from(SendRow)) == 12
        with pytest.raises(Conflict, match="scheduled"):
            schedule_campaign(session, campaign_id, Serving(), settings, now=now)


def test_of_two_who_schedule_at_once_one_wins(any_database, add_contacts, settings, now):
    """On both databases: the other one is refused, and each contact is in the ledger once."""
    with any_database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        add_contacts(session, 10)
        campaign_id = create_campaign(session, draft(now), now=now)
    together = threading.Barrier(2)

    def try_it(_place: int) -> str:
        together.wait()
        try:
            with any_database.writing() as session:
                schedule_campaign(session, campaign_id, Serving(), settings, now=now)
        except Conflict:
            return "refused"
        return "scheduled"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(try_it, range(2))) == ["refused", "scheduled"]
    with any_database.reading() as session:
        assert session.scalar(select(func.count()).select_from(SendRow)) == 10


def test_a_named_audience_says_whom_it_does_not_know(shop, settings, now):
    """Unknown ids do not stop the others."""
    with shop.writing() as session:
        new = draft(now, audience={"user_ids": ["u1", "u2", "nobody"]})
        plan = plan_campaign(session, create_campaign(session, new, now=now), Serving(), settings, now=now)

        assert (plan.audience, plan.unknown) == (2, ("nobody",))


def test_cancelling_leaves_nothing_planned(shop, settings, now):
    """Every send that had not left ends as cancelled."""
    with shop.writing() as session:
        campaign_id = create_campaign(session, draft(now), now=now)
        schedule_campaign(session, campaign_id, Serving(), settings, now=now)

        assert cancel_campaign(session, campaign_id, now=now) == 10
        assert session.scalar(select(func.count()).where(SendRow.state == "planned")) == 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"template_id": "none"}, NotFound, "'none'"),
        ({"experiments": ["exp_none"]}, NotFound, "exp_none"),
        ({"audience": {"everyone": False}}, Invalid, "not understood"),
        ({"audience": {"user_ids": []}}, Invalid, "not understood"),
        ({"audience": {"user_ids": [7]}}, Invalid, "no string"),
        ({"audience": {"user_ids": ["u1"], "models": "churn"}}, Invalid, "lists the models"),
    ],
)
def test_a_draft_that_cannot_be_is_refused_with_the_value(shop, now, changes, error, words):
    """The message names what is wrong and what would be right."""
    with shop.writing() as session, pytest.raises(error, match=words):
        create_campaign(session, draft(now, **changes), now=now)


def test_an_experiment_must_fill_a_slot_that_the_template_has_and_alone(shop, now):
    """A missing slot, or two experiments for one slot, would fail every mail; so they fail the draft."""
    with shop.writing() as session:
        one = open_experiment(session, NewExperiment("One", "subject", ARMS), now=now)
        two = open_experiment(session, NewExperiment("Two", "subject", ARMS), now=now)
        odd = open_experiment(session, NewExperiment("Odd", "block", ARMS, slot="sidebar"), now=now)
        with pytest.raises(Invalid, match="'sidebar'"):
            create_campaign(session, draft(now, experiments=[odd]), now=now)
        with pytest.raises(Invalid, match="two experiments"):
            create_campaign(session, draft(now, experiments=[one, two]), now=now)


def test_a_plan_says_what_its_experiments_can_prove(shop, settings, now):
    """For the sends that are planned; a small list hears that the split stays even."""
    with shop.writing() as session:
        experiment_id = open_experiment(session, NewExperiment("One", "subject", ARMS), now=now)
        new = draft(now, experiments=[experiment_id], holdout_share=0.1)
        plan = plan_campaign(session, create_campaign(session, new, now=now), Serving(), settings, now=now)

    assert [(one["id"], one["sends"]) for one in plan.experiments] == [(experiment_id, 10)]
    assert any("10 sends will not bring that many" in sentence for sentence in plan.experiments[0]["sentences"])
    assert any("10 % held out" in sentence for sentence in plan.experiments[0]["sentences"])


def test_a_send_at_once_is_cut_into_the_waves_that_were_asked_for(shop, settings, now):
    """The plan shows them; waves that lie too close for answers to come in between are pointed out."""
    with shop.writing() as session:
        experiment_id = open_experiment(session, NewExperiment("One", "subject", ARMS), now=now)
        new = draft(now, timing="at_start", waves=3, window_end=now + timedelta(hours=3), experiments=[experiment_id])
        plan = plan_campaign(session, create_campaign(session, new, now=now), Serving(), settings, now=now)

        assert sum(wave["sends"] for wave in plan.waves) == 10
        assert {wave["at"] for wave in plan.waves} <= {now + timedelta(hours=hour) for hour in range(3)}
        assert "Waves lie 1 h apart" in plan.advice[0]
        with pytest.raises(Invalid, match="best_hour"):
            create_campaign(session, draft(now, waves=3), now=now)


def test_a_large_send_at_once_is_told_to_come_in_waves(database, add_contacts, settings, now):
    """From 3,000 people on, where an experiment could learn from one wave to the next."""
    with database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        add_contacts(session, 3000)
        experiment_id = open_experiment(session, NewExperiment("One", "subject", ARMS), now=now)
        told = [
            plan_campaign(session, create_campaign(session, new, now=now), Serving(), settings, now=now).advice
            for new in (
                draft(now, timing="at_start", experiments=[experiment_id]),
                draft(now, timing="at_start"),
                draft(now, timing="at_start", experiments=[experiment_id], waves=8),
            )
        ]

    assert "set waves to 8" in told[0][0]
    assert told[1:] == [(), ()]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "<mjml><mj-body><mj-nonsense/></mj-body></mjml>"}, "mj-nonsense"),
        ({"source": "<mjml><mj-body>{% if %}</mj-body></mjml>"}, "line 1"),
        ({"template_id": "No Spaces"}, "'No Spaces'"),
        ({"subject": "Hello {{ name"}, "(?i)subject"),
        ({"source_format": "docx"}, "'docx'"),
    ],
)
def test_a_template_that_does_not_compile_is_refused_with_the_place(database, now, changes, words):
    """Nothing is kept of it."""
    good = {"template_id": "mine", "subject": "Hello", "source": bundled_template("plain").source}
    with database.writing() as session, pytest.raises(Invalid, match=words):
        add_template(session, NewTemplate(**{**good, **changes}), now=now)


def test_a_changed_template_is_a_new_version(database, now):
    """What was sent with the first can still be shown."""
    with database.writing() as session:
        assert add_template(session, bundled_template("offer"), now=now) == 1
        assert add_template(session, bundled_template("offer", subject="Other"), now=now) == 2
