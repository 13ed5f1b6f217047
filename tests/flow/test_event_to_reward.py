"""The product as a story: events come in, mail goes out at a chosen hour with a chosen arm, answers teach the next."""

import asyncio
import email
import email.policy
import re
import threading
from collections import Counter
from datetime import timedelta
from typing import ClassVar

import numpy as np
import pytest
from sqlalchemy import select, update

from features.lake import Lake
from service.campaigns import (
    TERMINAL_STATES,
    NewCampaign,
    campaign_report,
    cancel_campaign,
    create_campaign,
    plan_campaign,
    schedule_campaign,
)
from service.clock import SimulatedClock
from service.flow.decide import Arm, NewExperiment, open_experiment, replay
from service.flow.deliver import claim
from service.flow.ingest import ingest
from service.flow.reward import learn, rebuild, statistics
from service.hits import Hit, record_hits
from service.links import read_click
from service.suppression import unsubscribe
from service.tables import DecisionRow, EventRow, SendRow
from service.templates import add_template, bundled_template
from service.worker import Worker
from training.policies.base import hashed_draws
from training.serving import Serving

ARMS = (Arm("plain", "This week in the shop"), Arm("loved", "{{ first_name | default: 'Hello' }}, your favourites"))
CLICKS = {"plain": 0.1, "loved": 0.5}
N_PEOPLE = 300


def people(count):
    """Segment identify calls of people who asked for mail, in two time zones."""
    return [
        {
            "type": "identify",
            "userId": f"p{i}",
            "messageId": f"hello-{i}",
            "traits": {
                "email": f"p{i}@example.com",
                "first_name": f"Name{i}",
                "timezone": ("Europe/London", "America/New_York")[i % 2],
                "email_consent": "subscribed",
            },
        }
        for i in range(count)
    ]


class Story:
    """A home with people, an experiment and a scheduled campaign; time passes in `live`."""

    #: Share of those who got an arm's mail that asks for no more of them.
    leaves: ClassVar[dict[str, float]] = {}
    n_people = N_PEOPLE

    def __init__(self, database, settings, now, **changes) -> None:
        # The clock stands while the worker works: what a step brings leaves at once.
        settings = settings.model_copy(update={"send_rate_per_minute": 1_000_000})
        self.database, self.settings, self.now = database, settings, now
        self.clock = SimulatedClock(now)
        self.lake = Lake(settings.lake, 8)
        self.worker = Worker(database, settings, self.clock, self.lake)
        self.read: set[str] = set()
        self.to_come: list[tuple[object, Hit]] = []
        with database.writing() as session:
            taken = ingest(session, people(self.n_people), source="segment", now=now)
            assert (taken.stored, taken.quarantined) == (self.n_people, ())
            add_template(session, bundled_template("offer"), now=now)
            new = NewExperiment("Subject", "subject", ARMS, reward="click")
            self.experiment_id = open_experiment(session, new, now=now, salt="story")
            window = {"window_start": now, "window_end": now + timedelta(hours=24), "holdout_share": 0.1}
            campaign = NewCampaign(
                "Story", "offer", audience={"everyone": True}, experiments=[self.experiment_id], **(window | changes)
            )
            self.campaign_id = create_campaign(session, campaign, now=now)
            self.plan = plan_campaign(session, self.campaign_id, Serving(), settings, now=now)
            schedule_campaign(session, self.campaign_id, Serving(), settings, now=now)

    def live(self, hours: float) -> None:
        """Let time pass in steps of half an hour: the worker works, people click half an hour after a mail."""
        end = self.clock.now() + timedelta(hours=hours)
        while self.clock.now() < end:
            self.clock.move_to(self.clock.now() + timedelta(minutes=30))
            now = self.clock.now()
            due = [hit for at, hit in self.to_come if at <= now]
            self.to_come = [(at, hit) for at, hit in self.to_come if at > now]
            with self.database.writing() as session:
                record_hits(session, [Hit(h.send_id, h.link_id, h.method, h.user_agent, now) for h in due])
            asyncio.run(self.worker.work())
            self._open_post(now)

    def _open_post(self, now) -> None:
        for path in sorted((self.settings.home / "outbox").glob("*.eml")):
            if path.name in self.read:
                continue
            self.read.add(path.name)
            mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            arm = "loved" if "favourites" in mail["Subject"] else "plain"
            html = mail.get_body(("html",)).get_content()
            token = re.search(r'href="[^"]*/c/([^"]+)"', html).group(1)
            send_id, link_id = read_click(self.settings.signing_key, token)
            luck, patience = hashed_draws("luck", "story", np.array([send_id, send_id]), ["click", "leave"])
            if patience < self.leaves.get(arm, 0.0):
                with self.database.writing() as session:
                    unsubscribe(session, [send_id], source="one-click", now=now)
            if luck < CLICKS[arm]:
                hit = Hit(send_id, link_id, "GET", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0", now)
                self.to_come.append((now + timedelta(minutes=30), hit))


@pytest.fixture
def story(database, settings, now) -> Story:
    return Story(database, settings, now)


@pytest.fixture
def story_on_any(any_database, settings, now) -> Story:
    return Story(any_database, settings, now)


def test_the_loop_closes(story_on_any: Story, now):
    """Every planned send ends in a terminal state, and the next snapshot prefers the subject that people click."""
    story = story_on_any
    assert story.plan.planned == N_PEOPLE
    story.live(hours=34)
    with story.database.reading() as session:
        report = campaign_report(session, story.campaign_id, story.settings, now=story.clock.now())
        sends = report["sends"]
        arms = {arm["id"]: arm for arm in report["experiments"][0]["arms"]}
        ids = session.scalars(select(DecisionRow.decision_id)).all()
        propensities = session.scalars(select(DecisionRow.propensity)).all()

        assert sum(sends[state] for state in TERMINAL_STATES) == N_PEOPLE
        assert sends["unknown"] == 0
        assert sends["held_out"] == story.plan.holdouts > 0
        assert sends["accepted"] == len(story.read) == N_PEOPLE - sends["held_out"]
        assert arms["loved"]["rate"] > arms["plain"]["rate"]
        assert arms["loved"]["probability"] > 0.9
        assert arms["loved"]["share_first_wave"] == pytest.approx(0.5)
        assert arms["loved"]["share_last_wave"] > 0.6
        assert all(0 < propensity <= 1 for propensity in propensities)
        assert all(again.is_equal for again in replay(session, ids))
    with story.database.writing() as session:
        at = story.clock.now()
        before = statistics(session, story.experiment_id, now=at)
        rebuild(session)
        learn(session, now=at)
        after = statistics(session, story.experiment_id, now=at)

        assert np.array_equal(before.trials, after.trials)
        assert np.array_equal(before.successes, after.successes)


def test_who_unsubscribes_after_planning_gets_no_mail(database, settings, now):
    """Consent is looked at again inside the claim; the send says why it ended."""
    story = Story(database, settings, now, timing="at_start")
    with story.database.writing() as session:
        leave = {"type": "track", "event": "Unsubscribed", "userId": "p2", "messageId": "bye"}
        ingest(session, [leave], source="segment", now=now)
    story.live(hours=1)
    with story.database.reading() as session:
        rows = session.execute(select(SendRow.state, SendRow.reason).where(SendRow.reason.like("consent%"))).all()

        assert [row.state for row in rows] == ["suppressed"]
        assert "unsubscribed" in rows[0].reason


def test_what_training_needs_of_a_send_is_in_the_log(story: Story, now):
    """Assigned and actual hour, propensities, decisions: the log alone tells it, for sent and for held-out mail."""
    story.live(hours=6)
    with story.database.reading() as session:
        kinds = Counter(session.scalars(select(EventRow.kind).where(EventRow.kind.like("Email %"))))
        text = session.scalar(select(EventRow.properties).where(EventRow.kind == "Email Sent").limit(1))

        assert kinds["Email Sent"] == len(story.read)
        withheld = session.scalars(select(SendRow.send_id).where(SendRow.state == "held_out")).all()
        assert kinds["Email Withheld"] == len(withheld) > 0
        for name in ("assigned_local_hour", "hour_propensity", "decisions", "propensity", "snapshot_id", "wave"):
            assert f'"{name}"' in text


def test_the_lake_follows_the_log(story: Story, now):
    """After the last round what is in the lake is what is in the log."""
    story.live(hours=3)
    with story.database.reading() as session:
        story.lake.sync(session)

        assert story.lake.verify(session).equal


def test_a_cancelled_campaign_sends_nothing_more(story: Story, now):
    """What was planned ends as cancelled."""
    story.live(hours=2)
    with story.database.writing() as session:
        cancelled = cancel_campaign(session, story.campaign_id, now=story.clock.now())
    sent = len(story.read)
    story.live(hours=3)

    assert cancelled > 0
    assert len(story.read) == sent


def test_a_worker_that_dies_between_claim_and_send_loses_nothing(story: Story, now):
    """Claimed sends whose lease has ended are planned again and leave later."""
    with story.database.writing() as session:
        session.execute(update(SendRow).values(due_at=now, decided_at=now, timezone="Europe/London"))
    with story.database.writing() as session:
        held = claim(session, now=now, limit=50, lease_seconds=-1, settings=story.settings)
    story.live(hours=1)
    with story.database.reading() as session:
        states = Counter(session.scalars(select(SendRow.state)))

        assert len(held.sends) == 50
        assert states["accepted"] + states["held_out"] == N_PEOPLE


@pytest.mark.postgres
def test_two_workers_and_incoming_events_get_along(postgres, settings, now):
    """On PostgreSQL: no deadlock, no mail twice, the same counts as a rebuild, however the three interleave."""
    story = Story(postgres, settings, now, window_end=now + timedelta(hours=10))
    second = Worker(postgres, settings, story.clock)
    failures: list[BaseException] = []

    def guarded(work) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    def visits(step: int) -> None:
        for part in range(5):
            messages = [
                {"type": "page", "userId": f"p{i}", "messageId": f"{step}-{part}-{i}"}
                for i in range(part, N_PEOPLE, 20)
            ]
            with postgres.writing() as session:
                ingest(session, messages, source="segment", now=story.clock.now())

    for step in range(14):
        beside = [
            threading.Thread(target=guarded, args=(lambda: asyncio.run(second.work()),)),
            threading.Thread(target=guarded, args=(lambda step=step: visits(step),)),
        ]
        for thread in beside:
            thread.start()
        guarded(lambda: story.live(hours=1))
        for thread in beside:
            thread.join()
    with postgres.writing() as session:
        at = story.clock.now()
        before = statistics(session, story.experiment_id, now=at)
        rebuild(session)
        learn(session, now=at)
        after = statistics(session, story.experiment_id, now=at)
        states = Counter(session.scalars(select(SendRow.state)))

    assert not failures
    assert states["accepted"] == len(story.read)
    assert states["accepted"] + states["held_out"] == N_PEOPLE
    assert np.array_equal(before.trials, after.trials)
    assert np.array_equal(before.successes, after.successes)
