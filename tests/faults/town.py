"""An installation with a campaign that is due, for the faults to happen to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text, update

from features.contacts import resolve, update_traits
from service.campaigns import NewCampaign, create_campaign, schedule_campaign
from service.database import Database
from service.flow.decide import Arm, NewExperiment, open_experiment
from service.settings import Settings
from service.suppression import Consent, set_consent
from service.tables import SendRow
from service.templates import add_template, bundled_template
from tests.faults.checker import Report, check
from tests.faults.processes import Launcher, Running, Sink, wait_for
from training.serving import Serving

ARMS = [Arm("plain", "New arrivals"), Arm("loved", "{{ first_name }}, your favourites")]
OPEN_STATES = ("planned", "claimed", "attempting")


@dataclass
class Town:
    """People, a template, an experiment; campaigns that leave at once; and who works on them."""

    database: Database
    settings: Settings
    sink: Sink
    launcher: Launcher
    #: Instant, by contact, at which an unsubscribe was on disk.
    left_at: dict[int, float] = field(default_factory=dict)
    campaign_ids: list[str] = field(default_factory=list)
    contact_keys: list[int] = field(default_factory=list)

    def worker(self) -> Running:
        """A worker of this installation."""
        return self.launcher.worker(self.settings)

    def settle(self, n_people: int) -> None:
        """``n_people`` with addresses, subscribed, and what a campaign needs."""
        now = datetime.now(UTC)
        names = [f"c{i}" for i in range(n_people)]
        with self.database.writing() as session:
            keys = resolve(session, [f"user:{name}" for name in names], now=now)
            self.contact_keys = [keys[f"user:{name}"] for name in names]
            traits = {
                key: {"email": f"{name}@shop{i % 7}.example", "first_name": name.upper()}
                for i, (key, name) in enumerate(zip(self.contact_keys, names, strict=True))
            }
            update_traits(session, traits, now=now)
            consents = [Consent(key, "marketing", "subscribed", "test") for key in self.contact_keys]
            set_consent(session, consents, now=now)
            add_template(session, bundled_template("offer"), now=now)

    def new_campaign(self, **changes: Any) -> str:
        """A draft to everybody that asks which subject is better."""
        now = datetime.now(UTC)
        values = {
            "name": "Faults",
            "template_id": "offer",
            "window_start": now,
            "window_end": now + timedelta(hours=20),
            "audience": {"everyone": True},
            "timing": "at_start",
        }
        with self.database.writing() as session:
            new = NewExperiment("Subject", "subject", ARMS, reward="click")
            experiment_id = open_experiment(session, new, now=now)
            campaign = NewCampaign(**values | {"experiments": [experiment_id]} | changes)
            campaign_id = create_campaign(session, campaign, now=now)
        self.campaign_ids.append(campaign_id)
        return campaign_id

    def schedule(self, campaign_id: str, database: Database | None = None) -> None:
        """Turn a draft into sends, due now."""
        with (database or self.database).writing() as session:
            schedule_campaign(session, campaign_id, Serving(), self.settings, now=datetime.now(UTC))

    def send_to_everybody(self, **changes: Any) -> str:
        """A campaign, scheduled."""
        campaign_id = self.new_campaign(**changes)
        self.schedule(campaign_id)
        return campaign_id

    def unsubscribe(self, contact_keys: list[int]) -> None:
        """Let people unsubscribe by a mail of an earlier day, and remember when it was on disk.

        Not by the mail that may be under way: whoever answers a mail has it, and `reconcile` would rightly say so.
        """
        if not contact_keys:
            return
        left = [Consent(key, "marketing", "unsubscribed", "one-click") for key in contact_keys]
        with self.database.writing() as session:
            set_consent(session, left, now=datetime.now(UTC))
        at = datetime.now(UTC).timestamp()
        self.left_at |= dict.fromkeys(contact_keys, at)

    def count(self, *states: str) -> int:
        """Sends in one of the states."""
        with self.database.reading() as session:
            return int(session.scalar(select(func.count()).where(SendRow.state.in_(states))) or 0)

    def ledger(self) -> list[tuple[Any, ...]]:
        """Every column of every send."""
        with self.database.reading() as session:
            return [tuple(row) for row in session.execute(select(*SendRow.__table__.c).order_by(SendRow.send_id))]

    def let_pass(self, hours: float) -> None:
        """Let time pass for the ledger: leases end, waits are over. Nobody may be working meanwhile."""
        micros = int(hours * 3600 * 1_000_000)
        with self.database.writing() as session:
            session.execute(
                text(
                    "UPDATE send SET due_at = due_at - :micros, not_after = not_after - :micros, "
                    "lease_until = lease_until - :micros WHERE state IN ('planned', 'claimed', 'attempting')"
                ),
                {"micros": micros},
            )

    def end_leases(self) -> None:
        """Let the leases that are held now have ended: what minutes of waiting would do."""
        with self.database.writing() as session:
            session.execute(update(SendRow).where(SendRow.lease_until.is_not(None)).values(lease_until=EPOCH))

    def finish(self, seconds: float, n_workers: int = 1) -> None:
        """Let workers work undisturbed until no send is open."""
        workers = [self.worker() for _ in range(n_workers)]
        wait_for(lambda: not self.count(*OPEN_STATES), seconds, "every send ends")
        for worker in workers:
            worker.kill()  # nothing is under way any more, and what was must be on disk

    def check(self, **expected: Any) -> Report:
        """What the sink's log and the database say together."""
        return check(
            self.database,
            self.sink.deliveries(),
            connections=self.settings.smtp_connections,
            crash_policy=self.settings.crash_policy,
            cap=self.settings.frequency_cap,
            left_at=self.left_at,
            **expected,
        )


EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
BuildTown = Callable[..., Town]


def settings_of(home: Path, database_url: str, smtp_url: str, **changes: Any) -> Settings:
    """Settings of an installation that sends as fast as it can, at any hour."""
    home.mkdir(parents=True, exist_ok=True)
    values = {
        "home": home,
        "database_url": database_url,
        "smtp_url": smtp_url,
        "smtp_connections": 8,
        "quiet_hours": "",
        "send_rate_per_minute": 1_000_000,
        "score_hours": 0,
        "retrain_days": 0,
        "global_holdout": 0.0,
        "postal_address": "1 Test Street, London",
    }
    return Settings(**values | changes, _env_file=None)
