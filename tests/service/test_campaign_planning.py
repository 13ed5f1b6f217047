"""Laws of a campaign's dry run: it tells the objective, what limits cost, mailbox providers and the canary."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta

import pytest
from sqlalchemy import update

from service.campaigns import NewCampaign, create_campaign, limits_of, plan_campaign
from service.errors import Invalid
from service.settings import Settings
from service.tables import CampaignRow
from service.templates import add_template, bundled_template
from training.serving import Serving


def test_a_plan_tells_what_its_limits_cost(database, add_contacts, tmp_path, now):
    """Warm-up of 50 a day for 120 people: what is full, the days it takes, and advice in words; all of it JSON."""
    settings = Settings(home=tmp_path / "home", warm_up_from=now.date(), mailbox_rates="gmail=10", _env_file=None)
    with database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        add_contacts(session, 120)
        new = NewCampaign("News", "offer", now, now + timedelta(hours=8), {"everyone": True})
        campaign_id = create_campaign(session, new, now=now)
        session.execute(update(CampaignRow).values(canary_share=0.2))
        session.expire_all()
        plan = plan_campaign(session, campaign_id, Serving(), settings, now=now)

    assert (plan.planned, plan.mailboxes, plan.personal_hours) == (50, {"other": 50}, 0)
    assert 0 < plan.canary < 50
    assert plan.placement.objective == "engagement"
    assert plan.placement.warm_up_days == {"other": 2}
    assert sum(plan.placement.zones.values()) == 120
    assert "other take 2 days of the warm-up" in plan.advice[0]
    assert json.dumps(dataclasses.asdict(plan), default=str)


def test_a_campaigns_objective_goes_before_the_installations(settings):
    """None leaves it to the setting; a word that is none is refused by name."""
    assert limits_of(settings).objective == "engagement"
    assert limits_of(settings, "profit").objective == "profit"
    with pytest.raises(Invalid, match="'fame'"):
        limits_of(settings, "fame")
    with pytest.raises(Invalid, match="'gmail=fast'"):
        limits_of(settings.model_copy(update={"mailbox_rates": "gmail=fast"}))
