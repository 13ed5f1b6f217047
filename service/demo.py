"""`kairos demo`: the whole loop once, on people whose true habits are known, on a clock that days pass quickly on.

What is real: the tables, the lake, the models and their registry, the campaign, the worker, SMTP, the tracking links
over HTTP. What is simulated: the people, and the time. Their truth stays in `training.simulation` and reaches the
report only after the run.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import pandas as pd
import uvicorn
from sqlalchemy import func, select

from features.contacts import resolve, update_traits
from features.events import NewEvent, append
from features.lake import Lake
from features.offline import historical_features
from features.tables import from_micros, to_micros
from features.views import DEFAULT_VIEWS
from service.app import create_app
from service.campaigns import (
    TERMINAL_STATES,
    NewCampaign,
    campaign_report,
    create_campaign,
    plan_campaign,
    schedule_campaign,
)
from service.clock import SimulatedClock
from service.database import Database
from service.errors import Conflict
from service.flow.decide import Arm, NewExperiment, open_experiment, replay
from service.flow.predict import refresh_serving
from service.imports import ImportReport, import_orders
from service.jobs import MODELS, score_contacts, train_model
from service.quiet_hours import is_quiet
from service.settings import Settings
from service.sink import MailSink
from service.suppression import Consent, set_consent
from service.tables import ContactRow, DecisionRow, EventRow, SendRow
from service.templates import add_template, bundled_template
from service.worker import Worker
from training.serving import Serving
from training.simulation import HUMAN_AGENT, PROXY_AGENT, Response, World

DAY = 86_400_000_000
APPEND_CHUNK = 20_000

#: What the arms say; each can be told from the mail that arrives.
SUBJECTS = {
    "plain": "New arrivals this week",
    "question": "Have you seen what is new?",
    "personal": "{{ first_name | default: 'Hello' }}, picked for you",
}
SUBJECT_MARKS = {"plain": "New arrivals", "question": "Have you seen", "personal": "picked for you"}
BLOCKS = {
    "bestsellers": "<mj-text><h2>Our bestsellers</h2><p>What everybody takes home.</p></mj-text>"
    '<mj-button href="https://shop.example/bestsellers">See the bestsellers</mj-button>',
    "for_you": "<mj-text><h2>Chosen for you</h2><p>From what you looked at.</p></mj-text>"
    '<mj-button href="https://shop.example/for-you">See your choice</mj-button>',
}
BLOCK_MARKS = {"bestsellers": "Our bestsellers", "for_you": "Chosen for you"}

WINDOW = timedelta(hours=24)
STEP = timedelta(minutes=10)
#: After the window, answers are awaited this long in coarser steps.
TAIL = timedelta(hours=60)
TAIL_STEP = timedelta(minutes=30)

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoOptions:
    """What `kairos demo` was asked for."""

    home: Path
    contacts: int = 2000
    days: int = 120
    seed: int = 7
    orders: Path | None = None
    timezone: str = "UTC"
    hour_effect: bool = True
    end: datetime | None = None


class DemoSettings(Settings):
    """Settings deaf to the environment: a demo must never reach the database, lake or registry of an installation."""

    @classmethod
    def settings_customise_sources(cls, *args: Any, **sources: Any) -> tuple[Any, ...]:
        """Only what is passed in."""
        return (sources["init_settings"],)


def run_demo(options: DemoOptions, say: Say) -> dict[str, Any]:
    """The loop once; returns the report of CONTRACT section 2 as JSON values.

    Parameters
    ----------
    say : callable
        Takes progress, a line at a time.

    Raises
    ------
    Conflict
        If the home holds an installation that is no earlier demo.
    """
    started = time.perf_counter()
    _clear(options.home)
    port = free_port()
    with MailSink() as sink:
        settings = DemoSettings(
            home=options.home,
            public_url=f"http://127.0.0.1:{port}",
            smtp_url=sink.url,
            timezone=options.timezone,
            suppression_pepper=f"demo-{options.seed}",
            global_holdout=0.05,
            send_rate_per_minute=1_000_000,  # its clock stands while the worker works: what is due leaves at once
        )
        database = Database(settings.database)
        database.upgrade()
        try:
            report = _Demo(options, settings, database, sink, say).run(port)
        finally:
            database.close()
    report["seconds"] = round(time.perf_counter() - started, 1)
    return report


def summarise(report: dict[str, Any]) -> str:
    """The report of `run_demo` for people: a screenful, with the world's truth beside what was learned."""
    lines = [
        "",
        f"{report['events']:,} events of {report['contacts']:,} contacts; "
        f"{report['vectors_per_second']:,} vectors a second",
        "",
        f"{'model':<12} {'version':>7}  {'rung':<10} {'ROC AUC':>8} {'recency':>8} {'Brier':>7} {'ECE':>6}",
    ]
    for name, model in report["models"].items():
        figures = [
            f"{value:.3f}" if isinstance(value := model.get(key), float) else "-"
            for key in ("roc_auc", "recency_roc_auc", "brier", "ece")
        ]
        lines.append(
            f"{name:<12} {model['version']:>7}  {model['rung']:<10} "
            f"{figures[0]:>8} {figures[1]:>8} {figures[2]:>7} {figures[3]:>6}"
        )
    sends = report["sends"]
    ended = ", ".join(f"{sends[state]:,} {state.replace('_', ' ')}" for state in TERMINAL_STATES if sends[state])
    lines += ["", f"{sends['planned']:,} sends planned, all ended: {ended}; {sends['unknown']} unknown"]
    for experiment in report["experiments"]:
        lines += ["", f"{experiment['name']} experiment, reward: {experiment['reward']}"]
        lines.append(f"  {'arm':<12} {'true rate':>9} {'seen':>7} {'sends':>6}   share of first wave → last → next")
        for arm in experiment["arms"]:
            seen = "-" if arm["rate"] is None else f"{arm['rate']:.3f}"
            shares = " → ".join(
                "-" if arm[key] is None else f"{arm[key]:.2f}"
                for key in ("share_first_wave", "share_last_wave", "probability")
            )
            lines.append(f"  {arm['id']:<12} {arm['true_rate']:>9.3f} {seen:>7} {arm['sends']:>6}   {shares}")
    hours, decisions = report["hours"], report["decisions"]
    opens = hours["opens_per_mail"]
    lines += [
        "",
        f"hours: expected opens a mail {opens['chosen']:.3f} at the chosen hours, {opens['random']:.3f} at random "
        f"ones, {opens['best']:.3f} at each contact's best",
    ]
    if hours["captured_share"] is None:
        lines.append(
            "  in truth no hour is better than another"
            + ("" if hours["claimed_gain"] else ", and none was called best")
        )
    else:
        low, high = hours["interval"]
        lines.append(
            f"  {hours['captured_share']:.0%} of the possible gain captured (95 % interval {low:.0%} to {high:.0%})"
        )
    if decisions["count"]:
        lines.append(
            f"decisions: {decisions['count']:,}, {decisions['replayed_equal']:,} of them replayed to the same arm; "
            f"least propensity {decisions['least_propensity']:.3f}"
        )
    lines.append(f"{report['seconds']} seconds")
    return "\n".join(lines)


@dataclass
class _Demo:
    options: DemoOptions
    settings: Settings
    database: Database
    sink: MailSink
    say: Say
    lake: Lake = field(init=False)
    serving: Serving = field(default_factory=Serving)

    def run(self, port: int) -> dict[str, Any]:
        """Every stage in order."""
        self.lake = Lake(self.settings.lake, self.settings.buckets)
        world, imported = self._history()
        now = world.end
        report: dict[str, Any] = {"seed": self.options.seed, "hour_effect": self.options.hour_effect}
        if imported is not None:
            report["import"] = _import_counts(imported)
        report |= self._know(now)
        report["models"] = self._learn(now)
        if imported is not None:
            report["backtest"] = self._backtest(now)
        clock = SimulatedClock(now)
        app = create_app(self.settings, self.database, clock, self.serving)
        with serving_http(app, port):
            campaign_id = self._start_campaign(now)
            mails = asyncio.run(_live(self, world, clock, now))
        report |= self._report(world, campaign_id, clock.now(), mails)
        return report

    def _history(self) -> tuple[World, ImportReport | None]:
        options = self.options
        imported: ImportReport | None = None
        if options.orders is not None:
            self.say(f"Reading orders from {options.orders.name}")
            imported = import_orders(self.database, options.orders, timezone=options.timezone, now=datetime.now(UTC))
            orders = _orders_in_log(self.database)
            start = orders["ordered_at"].min().floor("D").to_pydatetime()
            end = orders["ordered_at"].max().ceil("D").to_pydatetime()
            world = World.generate(
                0, (end - start).days, options.seed,
                start=start, hour_effect=options.hour_effect, orders=orders, orders_zone=options.timezone,
            )  # fmt: skip
        else:
            end = options.end or _last_monday(datetime.now(UTC) - timedelta(days=4))
            start = end - timedelta(days=options.days)
            self.say(f"Simulating {options.contacts} people over {options.days} days")
            world = World.generate(
                options.contacts, options.days, options.seed, start=start, hour_effect=options.hour_effect
            )
        write_contacts(self.database, world)
        stored = write_events(self.database, world.history(world.end), now=world.end, imported=True)
        self.say(f"History: {stored} events of {len(world.user_ids)} contacts are in the log")
        return world, imported

    def _know(self, now: datetime) -> dict[str, Any]:
        with self.database.reading() as session:
            synced = self.lake.sync(session)
            keys = session.scalars(select(ContactRow.contact_key).order_by(ContactRow.contact_key)).all()
            events = session.scalar(select(func.count()).select_from(EventRow))
        spine = pd.DataFrame({"contact_key": np.array(keys, dtype=np.int64), "as_of": to_micros(now)})
        historical_features(self.lake, spine.head(1), DEFAULT_VIEWS)  # compiles the kernel, or loads it from its cache
        begin = time.perf_counter()
        frame = historical_features(self.lake, spine, DEFAULT_VIEWS)
        rate = len(frame.X) / (time.perf_counter() - begin)
        self.say(
            f"Lake: {synced.rows} events; {len(frame.X)} vectors of {len(frame.names)} features, {rate:,.0f} a second"
        )
        return {"events": events, "contacts": len(keys), "vectors_per_second": round(rate)}

    def _learn(self, now: datetime) -> dict[str, Any]:
        models: dict[str, Any] = {}
        for name in MODELS:
            version = train_model(self.database, self.lake, self.settings, name, as_of=now, now=now, seed=0)
            models[name] = {"rung": version.rung, "version": version.version, "reason": version.reason}
            models[name] |= {key: value for key, value in version.metrics.items() if _is_plain(value)}
            self.say(_model_line(name, models[name]))
        with self.database.reading() as session:
            refresh_serving(session, self.serving, now=now, wait=True)
        for name in MODELS:
            model = self.serving.get(name)
            if model is not None:
                score_contacts(self.database, self.lake, model, as_of=now)
        return models

    def _backtest(self, now: datetime) -> dict[str, Any]:
        from training.runs import backtest  # as costly to import as training

        cutoffs = [month for month in _month_ends(now, self.options.timezone) if month + timedelta(days=30) <= now][:3]
        table = backtest("conversion", self.lake, sorted(cutoffs), horizon_days=30)
        shown = table[["model", "roc_auc", "brier", "ece", "predicted_over_actual"]].groupby("model", sort=False).mean()
        self.say(f"Backtest of conversion, mean of {len(cutoffs)} month ends:\n{shown.round(3).to_string()}")
        return {"conversion": json.loads(table.to_json(orient="records", date_format="iso"))}

    def _start_campaign(self, now: datetime) -> str:
        subject = NewExperiment(
            "Subject lines", "subject", [Arm(k, v) for k, v in SUBJECTS.items()], slot="subject", reward="open"
        )
        block = NewExperiment("Content blocks", "block", [Arm(k, v) for k, v in BLOCKS.items()], slot="block")
        with self.database.writing() as session:
            add_template(session, bundled_template("offer"), now=now)
            seed = self.options.seed
            experiments = [
                open_experiment(session, subject, now=now, salt=f"subject-{seed}"),
                open_experiment(session, block, now=now, salt=f"block-{seed}"),
            ]
            new = NewCampaign(
                "Demo", "offer", now, now + WINDOW, {"everyone": True}, experiments, campaign_id=f"cmp_demo_{seed}"
            )
            campaign_id = create_campaign(session, new, now=now)
            plan = plan_campaign(session, campaign_id, self.serving, self.settings, now=now)
            schedule_campaign(session, campaign_id, self.serving, self.settings, now=now)
        self.say(f"Campaign: {plan.planned} of {plan.audience} sends planned over 24 h; hours by {plan.hour_reasons}")
        for label, count in plan.counts.items():
            if label != "planned":
                self.say(f"  {count} {label}")
        return campaign_id

    def _report(self, world: World, campaign_id: str, now: datetime, mails: int) -> dict[str, Any]:
        with self.database.reading() as session:
            report = campaign_report(session, campaign_id, self.settings, now=now)
            sends = session.execute(
                select(SendRow.state, SendRow.assigned_local_hour, SendRow.hour_reason, ContactRow.user_id).join(
                    ContactRow, ContactRow.contact_key == SendRow.contact_key
                )
            ).all()
            ids = session.scalars(select(DecisionRow.decision_id)).all()
            propensities = session.scalars(select(DecisionRow.propensity)).all()
            replays = replay(session, ids)
        accepted = [send for send in sends if send.state == "accepted"]
        users = [send.user_id for send in accepted]
        hours = np.array([send.assigned_local_hour for send in accepted])
        truth_now = world.end + WINDOW / 2
        experiments = []
        for name, found in zip(("subject", "block"), report["experiments"], strict=True):
            true = world.true_rates(name, user_ids=users, local_hours=hours, at=truth_now)
            arms = [arm | {"true_rate": true[arm["id"]]} for arm in found["arms"]]
            experiments.append({"id": found["id"], "name": name, "reward": found["reward"], "arms": arms})
        allowed = [hour for hour in range(24) if not is_quiet(hour, self.settings.quiet)]
        truth = world.hours_report(users, hours, allowed, self.options.seed, at=truth_now)
        model = self.serving.get("send_hour")
        reasons = sorted({send.hour_reason for send in sends})
        return {
            "sends": {"planned": sum(report["sends"].values())}
            | {state: report["sends"][state] for state in TERMINAL_STATES},
            "still_open": sum(n for state, n in report["sends"].items() if state not in TERMINAL_STATES),
            "mails_in_sink": mails,
            "experiments": experiments,
            "decisions": {
                "count": len(ids),
                "least_propensity": min(propensities, default=None),
                "replayed_equal": sum(again.is_equal for again in replays),
            },
            "hours": truth
            | {
                "claimed_gain": bool(getattr(model, "hour_effect", False)),
                "reasons": {reason: sum(send.hour_reason == reason for send in sends) for reason in reasons},
            },
        }


# --- Living through the campaign ---------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class _Answer:
    at: datetime
    url: str = field(compare=False)
    agent: str = field(compare=False)
    is_post: bool = field(compare=False, default=False)


async def _live(demo: _Demo, world: World, clock: SimulatedClock, begin: datetime) -> int:
    """Let the campaign's days pass: the worker works, mail arrives, people answer over HTTP. Returns mails received."""
    user_of = _users_by_address(demo.database)
    waiting: list[_Answer] = []
    n_mails = 0
    seen = begin
    worker = Worker(demo.database, demo.settings, clock, demo.lake)
    async with httpx.AsyncClient(timeout=30, follow_redirects=False) as browser:
        for now in _instants(begin):
            clock.move_to(now)
            write_events(demo.database, _news(world, seen, now), now=now, imported=False)
            seen = now
            due = [answer for answer in waiting if answer.at <= now]
            waiting = [answer for answer in waiting if answer.at > now]
            await _answer(browser, due)
            await worker.work()
            mails = [delivery.content for delivery in demo.sink.deliveries]
            del demo.sink.deliveries[: len(mails)]
            n_mails += len(mails)
            answers = _answers(world, mails, user_of, now)
            at_once = [answer for answer in answers if answer.at < now + timedelta(minutes=1)]
            waiting += [answer for answer in answers if answer.at >= now + timedelta(minutes=1)]
            await _answer(browser, at_once)
            if now.minute == 0 and now.hour % 6 == 0:
                demo.say(f"  {now:%a %H:%M} UTC: {n_mails} mails delivered, {len(waiting)} answers to come")
        await worker.work()
    return n_mails


def _instants(begin: datetime) -> Iterator[datetime]:
    now = begin
    while now < begin + WINDOW + TAIL:
        now += STEP if now < begin + WINDOW + timedelta(hours=1) else TAIL_STEP
        yield now


def _news(world: World, since: datetime, until: datetime) -> list[Any]:
    return world.history(until, since)


def _answers(world: World, mails: Sequence[bytes], user_of: dict[str, str], now: datetime) -> list[_Answer]:
    """How the people who got these mails will answer, read off the mails themselves."""
    read = [read_mail(mail) for mail in mails]
    answers = []
    for mail, response in zip(read, responses_to(world, read, user_of, now), strict=True):
        for at, url, agent in (
            (response.open_at, mail.pixel, HUMAN_AGENT),
            (response.click_at, mail.links[0], HUMAN_AGENT),
            (response.machine_open_at, mail.pixel, PROXY_AGENT),
            *((response.machine_click_at, link, HUMAN_AGENT) for link in mail.links),
        ):
            if at is not None:
                answers.append(_Answer(at, url, agent))
        if response.unsubscribe_at is not None:
            answers.append(_Answer(response.unsubscribe_at, mail.unsubscribe, HUMAN_AGENT, is_post=True))
    return answers


def responses_to(world: World, mails: Sequence[Mail], user_of: dict[str, str], now: datetime) -> list[Response]:
    """How the people who get ``mails`` at ``now`` respond, by the arms that the mails show."""
    return world.respond_many(
        [user_of[mail.recipient] for mail in mails],
        [now] * len(mails),
        subjects=[_marked(mail.subject, SUBJECT_MARKS) for mail in mails],
        blocks=[_marked(mail.html, BLOCK_MARKS) for mail in mails],
        occurrences=[mail.send for mail in mails],
    )


@dataclass(frozen=True)
class Mail:
    """What a recipient sees of a mail."""

    recipient: str
    send: str
    subject: str
    html: str
    pixel: str
    links: tuple[str, ...]
    unsubscribe: str


def read_mail(raw: bytes) -> Mail:
    """A mail as it arrived, read by its headers and its HTML part."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    body = message.get_body(("html",))
    html = body.get_content() if body is not None else ""
    targets = [unescape(target) for target in re.findall(r'(?:href|src)="([^"]+)"', html)]
    return Mail(
        recipient=message["To"].addresses[0].addr_spec,
        send=str(message["X-Kairos-Send"]),
        subject=str(message["Subject"]),
        html=html,
        pixel=next(target for target in targets if "/o/" in target),
        links=tuple(dict.fromkeys(target for target in targets if "/c/" in target)),
        unsubscribe=re.findall(r"<(https?:[^>]+)>", str(message["List-Unsubscribe"]))[0],
    )


def _marked(text: str, marks: dict[str, str]) -> str:
    return next(arm for arm, mark in marks.items() if mark in text)


async def _answer(browser: httpx.AsyncClient, answers: Sequence[_Answer]) -> None:
    async def one(answer: _Answer) -> None:
        headers = {"User-Agent": answer.agent}
        if answer.is_post:
            response = await browser.post(answer.url, headers=headers, data={"List-Unsubscribe": "One-Click"})
        else:
            response = await browser.get(answer.url, headers=headers)
        if response.status_code >= 400:
            raise RuntimeError(f"{answer.url} answered {response.status_code}: {response.text[:200]}")

    await asyncio.gather(*(one(answer) for answer in answers))


# --- Small things ------------------------------------------------------------------------------------------------


def _clear(home: Path) -> None:
    mark = home / "demo"
    if home.exists() and any(home.iterdir()):
        if not mark.exists():
            raise Conflict(f"{home} holds something that is no earlier demo; name an empty folder with --home")
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    mark.write_text("A home of `kairos demo`; the next demo here replaces it.\n")


def _last_monday(instant: datetime) -> datetime:
    midnight = instant.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())


def _month_ends(now: datetime, timezone: str) -> Iterator[datetime]:
    """Ends of the months before ``now`` in the zone, newest first."""
    first = now.astimezone(ZoneInfo(timezone)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    for _ in range(12):
        yield first.astimezone(UTC)
        first = (first - timedelta(days=1)).replace(day=1)


def _orders_in_log(database: Database) -> pd.DataFrame:
    query = (
        select(ContactRow.user_id, EventRow.occurred_at)
        .join(ContactRow, ContactRow.contact_key == EventRow.contact_key)
        .where(EventRow.kind == "Order Completed")
    )
    with database.reading() as session:
        frame = pd.DataFrame(session.execute(query).all(), columns=["user_id", "ordered_at"])
    return frame.assign(ordered_at=pd.to_datetime(frame["ordered_at"], unit="us", utc=True))


def write_contacts(database: Database, world: World) -> None:
    """The world's people as contacts, with the consent that they gave."""
    with database.writing() as session:
        found = resolve(session, [f"user:{c.user_id}" for c in world.contacts], now=from_micros(world.start))
        traits = {
            found[f"user:{contact.user_id}"]: {
                key: value
                for key, value in (
                    ("email", contact.email), ("first_name", contact.name), ("timezone", contact.timezone)
                )
                if value is not None
            }
            for contact in world.contacts
        }  # fmt: skip
        update_traits(session, traits, now=from_micros(world.start))
        consents = [
            Consent(found[f"user:{contact.user_id}"], "marketing", "subscribed", "demo", "demo-1")
            for contact in world.contacts
            if contact.is_subscribed
        ]
        set_consent(session, consents, now=from_micros(world.start))


def write_events(database: Database, events: Sequence[Any], *, now: datetime, imported: bool) -> int:
    """Simulated events into the log, in short transactions; returns how many were new."""
    stored = 0
    zones: dict[str, str | None] = {}
    for start in range(0, len(events), APPEND_CHUNK):
        chunk = events[start : start + APPEND_CHUNK]
        with database.writing() as session:
            found = resolve(session, sorted({f"user:{event.user_id}" for event in chunk}), now=now)
            if not zones:
                zones.update(session.execute(select(ContactRow.user_id, ContactRow.timezone)).all())
            rows = [
                NewEvent(
                    found[f"user:{event.user_id}"], event.kind, event.occurred_at, f"demo/{event.message_id}",
                    f"user:{event.user_id}", event.ref, event.value_minor, event.human_ppm, event.is_repeat,
                    event.properties, zones.get(event.user_id),
                )
                for event in chunk
            ]  # fmt: skip
            stored += append(session, rows, received_at=to_micros(now), imported=imported).stored
    return stored


def _users_by_address(database: Database) -> dict[str, str]:
    with database.reading() as session:
        rows = session.execute(select(ContactRow.email, ContactRow.user_id).where(ContactRow.email.is_not(None)))
        return {address: user_id for address, user_id in rows if address is not None}


def _import_counts(report: ImportReport) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "orders": report.orders,
        "cancellations": report.cancellations,
        "set_aside": report.set_aside,
        "contacts": report.contacts,
        "reasons": dict(report.reasons),
    }


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)


def _model_line(name: str, model: dict[str, Any]) -> str:
    figures = ", ".join(
        f"{label} {model[key]:.3f}"
        for key, label in (
            ("roc_auc", "ROC AUC"),
            ("recency_roc_auc", "recency alone"),
            ("brier", "Brier"),
            ("ece", "ECE"),
        )
        if isinstance(model.get(key), float)
    )
    return f"Model {name} version {model['version']}: {model['rung']}; {figures or model['reason']}"


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving_http(app: Any, port: int) -> Iterator[None]:
    """The app behind a real port, in a thread, for as long as the block lasts."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, name="demo-http", daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError(f"the demo's server did not start on port {port} within 30 seconds")
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)
