"""Laws of erasing: nothing names or describes the person any more, in no table and no file; nobody else is touched."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import delete, event, func, select, text, update

from features.contacts import find
from features.events import NewEvent, append
from features.labels import CONVERSION
from features.lake import Lake
from features.offline import historical_features
from features.online import VectorCache, online_features
from features.properties import hash_ref
from features.snapshots import list_snapshots, read_snapshot, write_snapshot
from features.store import Store, StoreError
from features.tables import current, to_micros
from features.views import DEFAULT_VIEWS
from service.campaigns import NewCampaign, campaign_report, create_campaign, plan_campaign, schedule_campaign
from service.clock import SimulatedClock
from service.database import Database
from service.erase import REASON, awaiting_files, erase_contacts
from service.erase_files import finish_erasures
from service.errors import Invalid, NotFound
from service.flow.decide import Arm, NewExperiment, decide_for, open_experiment, replay
from service.flow.deliver import claim, deliver
from service.flow.ingest import ingest
from service.flow.render import gather, render
from service.flow.reward import evidence, learn, rebuild, statistics
from service.hits import Hit, record_hits, settle
from service.idempotency import Answer, begin, keep
from service.links import LinkBook, link_ids
from service.providers.outbox import OutboxProvider
from service.settings import Settings
from service.suppression import Consent, mailable, set_consent, unsubscribe
from service.tables import (
    Base,
    CampaignRow,
    ConsentRow,
    ContactRow,
    CreditRow,
    DecisionRow,
    ErasureRow,
    EventRow,
    ExperimentRow,
    HitRow,
    IdentityRow,
    LinkRow,
    PredictionRow,
    QuarantineRow,
    RewardRow,
    SendRow,
    ServedVectorRow,
    SuppressionRow,
)
from service.templates import NewTemplate, add_template
from service.worker import Worker
from tests.service.flow.shown import assert_same, new_experiment, order, show, state
from tests.service.mailing import send_row
from training import conversion
from training.datasets import DAY_MICROS, Definition, training_set
from training.score_files import KeptScores, keep_scores
from training.serving import Serving
from training.training_sets import reproduce, save

#: Stands in everything that the person said or was said of them.
CANARY = "zqcanary"
ADDRESS = "zqcanary.address@shop.example"
REVENUE = 73197.31
LONG_AGO = datetime(1990, 1, 1, tzinfo=UTC)
BROWSER = "Mozilla/5.0 (iPhone) zqcanary-agent"
OTHERS = 11
ARMS = (Arm("a", "Hello"), Arm("b", "Good day"))
TEMPLATE = """<mjml><mj-body><mj-section><mj-column>
<mj-text>Dear {{ first_name }}, you like {{ favourite }}.</mj-text>
<mj-button href="https://shop.example/new">New</mj-button>
<mj-button href="https://shop.example/cart?who={{ user_id }}">Your cart</mj-button>
</mj-column></mj-section></mj-body></mjml>"""
#: Tables in which the number of an erased contact may stay.
TOMBSTONES = {"send", "decision", "erasure"}


@dataclass
class Shop:
    """An installation in a home, with people, mails that were sent and answered, and everything derived from it."""

    database: Database
    settings: Settings
    lake: Lake
    now: datetime
    key: int
    others: list[int]
    experiment_id: str
    campaign_id: str
    later_campaign_id: str
    decision_id: str
    training_set: dict[str, Any]

    def sync(self) -> None:
        with self.database.reading() as session:
            self.lake.sync(session)

    def erase(self, *user_ids: str) -> Any:
        return erase_contacts(self.database, self.settings, user_ids or (CANARY,), now=self.now)

    def finish(self, **options: Any) -> Any:
        return finish_erasures(self.database, self.lake, self.settings, now=self.now, **options)

    def found(self) -> list[str]:
        """Where something of the person is still to be found."""
        return sorted([*in_database(self.database, self.key), *in_files(self.settings.home, self.key)])


def in_database(database: Database, key: int) -> Iterator[str]:
    """Tables whose rows hold the canary, its address, its order's value or, outside the tombstones, its key."""
    with database.reading() as session:
        for table in Base.metadata.sorted_tables:
            for row in session.execute(select(table)).mappings():
                said = repr(dict(row)).lower()
                if CANARY in said or "7319731" in said or "73197.31" in said:
                    yield f"table {table.name}: {said[:200]}"
                elif row.get("contact_key") == key and table.name not in TOMBSTONES:
                    yield f"table {table.name} has the key"


def in_files(home: Path, key: int) -> Iterator[str]:
    """Files that hold the canary as bytes, or once decoded; Parquet files with its key or the hash of its words."""
    words = (f"{CANARY}-order", f"{CANARY}-shoes", "7319731", "73197.31")
    hashes = {hash_ref(word) for word in words}
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if CANARY.encode() in data.lower() or str(REVENUE).encode() in data:
            yield f"{path.relative_to(home)}: bytes"
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            if key in table.column("contact_key").to_pylist():
                yield f"{path.relative_to(home)}: key"
            numbers = set(_numbers(table.to_pylist()))
            if numbers & (hashes | {7319731, REVENUE}):
                yield f"{path.relative_to(home)}: values"
        if path.suffix == ".eml":
            mail = email.message_from_bytes(data, policy=email.policy.default)
            parts = [str(part.get_content()) for part in mail.walk() if not part.is_multipart()]
            if any(CANARY in said.lower() for said in (*map(str, mail.values()), *parts)):
                yield f"{path.relative_to(home)}: mail"


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)
    else:
        yield value


def identify(user_id: str, **traits: Any) -> dict[str, Any]:
    return {"type": "identify", "userId": user_id, "messageId": f"i-{user_id}", "traits": traits}


def messages(user_id: str, now: datetime, revenue: float) -> list[dict[str, Any]]:
    """Twelve weeks of orders and page views."""
    told: list[dict[str, Any]] = []
    for week in range(12):
        at = (now - timedelta(weeks=12 - week, hours=3)).isoformat()
        told.append(
            {
                "type": "track", "event": "Order Completed", "userId": user_id, "timestamp": at,
                "messageId": f"{user_id}-o{week}",
                "properties": {"order_id": f"{user_id}-order", "revenue": revenue, "category": f"{user_id}-shoes"},
            }
        )  # fmt: skip
        told.append(
            {
                "type": "page", "userId": user_id, "timestamp": at, "messageId": f"{user_id}-p{week}",
                "properties": {"url": f"https://shop.example/account/{user_id}"},
            }
        )  # fmt: skip
    return told


@pytest.fixture
def home_database(
    request: pytest.FixtureRequest, settings: Settings, empty_sqlite: Path
) -> Iterator[tuple[Database, Settings]]:
    """A SQLite file in the home, or a PostgreSQL server beside it."""
    settings.home.mkdir(parents=True)
    if request.param == "postgresql":
        yield request.getfixturevalue("postgres"), settings
        return
    shutil.copy(empty_sqlite, settings.home / "kairos.db")
    database = Database(settings.database)
    yield database, settings
    database.close()


on_both = pytest.mark.parametrize(
    "home_database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
on_sqlite = pytest.mark.parametrize("home_database", ["sqlite"], indirect=True)


@pytest.fixture
def shop(home_database: tuple[Database, Settings], now: datetime) -> Shop:
    """Everything that Kairos keeps of anybody, kept of the canary and of eleven others."""
    database, settings = home_database
    start = now - timedelta(days=2)
    names = [CANARY, *(f"other{i}" for i in range(OTHERS))]
    with database.writing() as session:
        for name in names:
            ingest(session, messages(name, start, REVENUE if name == CANARY else 12.5), source="segment", now=start,
                   imported=True)  # fmt: skip
        told = [
            identify(
                name,
                email=ADDRESS if name == CANARY else f"{name}@shop.example",
                first_name=name.title(),
                favourite=f"{name}-trait",
                timezone="Europe/Paris",
                email_consent="subscribed",
            )
            | {"anonymousId": f"{name}-anonymous"}
            for name in names
        ]
        ingest(session, told, source="segment", now=start)
        bad = [{"type": "track", "userId": name, "properties": {"note": f"{name}-quarantined"}} for name in names]
        assert len(ingest(session, bad, source="segment", now=start).quarantined) == len(names)
        found = find(session, names)
        keys = {name: found[name] for name in names}
        add_template(session, NewTemplate("mail", "For you, {{ first_name }}", TEMPLATE), now=start)
        new = NewExperiment("Subject", "subject", ARMS, reward="click")
        experiment_id = open_experiment(session, new, now=start, salt="erase")
        campaigns = [
            create_campaign(
                session,
                NewCampaign(
                    f"Campaign {n}", "mail", begin, begin + timedelta(hours=8), {"user_ids": names}, [experiment_id],
                    timing="at_start",
                ),
                now=start,
            )
            for n, begin in enumerate((start, now + timedelta(hours=3)))
        ]  # fmt: skip
        for campaign_id in campaigns:
            schedule_campaign(session, campaign_id, Serving(), settings, now=start)
    clock = SimulatedClock(start)
    lake = Lake(settings.lake, 8)
    worker = Worker(database, settings, clock, lake)
    asyncio.run(worker.work())
    with database.writing() as session:
        sends = {row.contact_key: row.send_id for row in session.scalars(select(SendRow).where(_accepted()))}
        assert set(sends) == set(keys.values())
        links = {row.url: row.link_id for row in session.scalars(select(LinkRow))}
        hits = [
            Hit(sends[key], links[url], "GET", BROWSER if name == CANARY else "Mozilla/5.0 (iPhone)",
                start + timedelta(hours=1 + i))
            for i, (name, key) in enumerate(keys.items())
            for url in ("https://shop.example/new", f"https://shop.example/cart?who={name}")
        ]  # fmt: skip
        record_hits(session, hits)
    clock.move_to(start + timedelta(days=1))
    asyncio.run(worker.work())
    with database.writing() as session:
        made = decide_for(session, experiment_id, list(keys.values()), f"api:{CANARY}-occasion", now=start)
        shown = [
            NewEvent(key, "Arm Shown", to_micros(start), f"kairos/shown/{decision_id}", f"user:{name}",
                     ref=decision_id, properties={"decisions": [{"experiment_id": experiment_id, "arm_id": arm,
                                                                 "wave": to_micros(start) // 3_600_000_000}]})
            for (name, key), decision_id, arm in zip(keys.items(), made.decision_id, made.arm_id, strict=True)
        ]  # fmt: skip
        append(session, shown, received_at=to_micros(clock.now()))
        record_hits(session, [Hit(sends[keys[CANARY]], None, "GET", BROWSER, now)])  # not settled yet
        for name, key in keys.items():
            session.add(
                PredictionRow(
                    model="churn", contact_key=key, probability=0.5, percentile=0.5, as_of=now, model_version=1,
                    detail={"note": f"{name}-prediction"},
                )
            )  # fmt: skip
            vector = f"{name}-vector".encode()
            session.add(ServedVectorRow(contact_key=key, as_of=now, view_set="v", seq=1, vector=vector))
        for row in session.scalars(select(DecisionRow).where(DecisionRow.contact_key != keys[CANARY])):
            if row.send_id is None:
                row.occurrence = "api:other-occasion"
        for name in names:
            begin(session, name, "key", "0" * 64, now=now)
            keep(session, name, "key", Answer(201, json.dumps({"audience": {"user_ids": [name]}})))
    rejected = settings.home / "rejected"
    rejected.mkdir()
    lines = [f"{n},no date,{name},{n}" for n, name in enumerate(names, 2)]
    (rejected / "orders.csv.rejected.csv").write_text("\n".join(["line,reason,CustomerID,Quantity", *lines, ""]))
    with database.reading() as session:
        lake.sync(session)
    write_snapshot(lake, DEFAULT_VIEWS, to_micros(now))
    asked = Definition(CONVERSION, conversion.POPULATION, 14, "an order")
    data = training_set(lake, DEFAULT_VIEWS, asked, [to_micros(now) - n * 14 * DAY_MICROS for n in (1, 2, 3)])
    manifest = save(lake, "conversion", data, saved_at=now)
    everybody = np.array(sorted(keys.values()))
    chance = np.full(len(everybody), 0.5, dtype=np.float32)
    keep_scores(lake, "churn", 1, to_micros(now), KeptScores(everybody, chance, chance))
    return Shop(
        database, settings, lake, now, keys[CANARY], sorted(set(keys.values()) - {keys[CANARY]}), experiment_id,
        campaigns[0], campaigns[1], made.decision_id[0], manifest,
    )  # fmt: skip


def _accepted() -> Any:
    return SendRow.state == "accepted"


def count(database: Database, table: Any, *where: Any) -> int:
    with database.reading() as session:
        return int(session.scalar(select(func.count()).select_from(table).where(*where)) or 0)


@on_both
def test_a_search_of_every_table_and_file_finds_nothing(shop: Shop):
    """What was everywhere before is nowhere after: as bytes, decoded, as key, as hash of a word, as amount."""
    before = "\n".join(shop.found())
    places = (
        "contact", "identity", "event", "consent", "prediction", "served_vector", "hit", "quarantine", "link",
        "campaign", "decision", "send", "idempotency",
    )  # fmt: skip
    for table in places:
        assert f"table {table}" in before or table == "send", table
    for file in ("outbox/", "rejected/", "lake/bucket=", "lake/vectors/", "lake/training/", "lake/scores/", "values"):
        assert file in before, file
    assert ("kairos.db" in before) == shop.database.is_sqlite

    shop.erase()
    finished = shop.finish()

    assert (finished.finished, finished.waiting) == (1, 0)
    assert shop.found() == []
    with shop.database.reading() as session:
        assert session.get_one(ErasureRow, shop.key).files_done_at == shop.now


@on_both
def test_it_stays_gone_after_sync_and_rebuild(shop: Shop):
    """Nothing that is derived again brings a row back; the lake equals the log."""
    shop.erase()
    shop.finish()
    for again in (shop.lake.sync, shop.lake.rebuild):
        with shop.database.reading() as session:
            again(session)
            assert shop.lake.verify(session).equal
        assert shop.found() == []
    write_snapshot(shop.lake, DEFAULT_VIEWS, to_micros(shop.now) + 1)
    shop.finish()
    assert shop.found() == []


@on_both
def test_an_erasure_that_waits_for_its_files_is_no_fault_of_the_lake(shop: Shop):
    """Verified between the two steps: equal, with the events that wait; nor is what a straggler brings later."""
    events = count(shop.database, EventRow, EventRow.contact_key == shop.key)
    shop.erase()
    with shop.database.reading() as session:
        assert not shop.lake.verify(session).equal
    with shop.database.reading() as session:
        between = shop.lake.verify(session, awaiting_files)
    shop.finish()
    with shop.database.writing() as session:
        straggler = NewEvent(shop.key, "Page Viewed", to_micros(shop.now), "late", f"user:{CANARY}")
        append(session, [straggler], received_at=to_micros(shop.now))
    shop.sync()
    with shop.database.reading() as session:
        after = shop.lake.verify(session, awaiting_files)

    assert (between.equal, between.rows_lake, between.rows_awaiting_erasure) == (True, between.rows_log, events)
    assert (after.equal, after.rows_lake, after.rows_awaiting_erasure) == (True, between.rows_log, 0)


@on_both
def test_nobody_else_is_touched(shop: Shop):
    """The others' vectors are the same bit for bit, live, from the lake, in snapshot and training set; so are rows."""
    import pandas as pd

    spine = pd.DataFrame({"contact_key": shop.others, "as_of": to_micros(shop.now)})
    version, as_of = DEFAULT_VIEWS.version, to_micros(shop.now)

    def seen() -> list[Any]:
        with shop.database.reading() as session:
            tables = [
                sorted(map(repr, session.execute(select(*table.c).where(table.c.contact_key.in_(shop.others)))))
                for table in Base.metadata.sorted_tables
                if "contact_key" in table.c
            ]
            live = online_features(session, shop.others, shop.now, DEFAULT_VIEWS).tobytes()
        frame = read_snapshot(shop.lake, version, as_of)
        kept = np.isin(frame.contact_key, shop.others)
        data = reproduce(shop.lake, shop.training_set)
        mine = np.isin(data.contact_key, shop.others)
        mails = [path.read_bytes() for path in sorted((shop.settings.home / "outbox").glob("*.eml"))]
        return [
            tables,
            live,
            historical_features(shop.lake, spine, DEFAULT_VIEWS).X.tobytes(),
            (frame.contact_key[kept].tobytes(), frame.X[kept].tobytes()),
            (data.contact_key[mine].tobytes(), data.X[mine].tobytes(), data.y[mine].tobytes()),
            [mail for mail in mails if CANARY.encode() not in mail],
        ]

    before = seen()
    shop.erase()
    shop.finish()

    assert seen() == before
    assert [snapshot.erased_rows for snapshot in list_snapshots(shop.lake)] == [1]
    assert count(shop.database, QuarantineRow) == OTHERS
    with shop.database.reading() as session:
        urls = set(session.scalars(select(LinkRow.url)))
        audience = session.get_one(CampaignRow, shop.campaign_id).audience
    assert {"https://shop.example/new", "https://shop.example/cart?who=other0"} <= urls
    assert audience == {"user_ids": [f"other{i}" for i in range(OTHERS)]}
    rejected = (shop.settings.home / "rejected" / "orders.csv.rejected.csv").read_text().splitlines()
    assert rejected == [
        "line,reason,CustomerID,Quantity",
        *(f"{i + 3},no date,other{i},{i + 3}" for i in range(OTHERS)),
    ]


@on_both
def test_reports_stay(shop: Shop):
    """Sends, trials and successes count as before; a rebuild of the learner from the log gives the same counts."""
    cells = select(text("experiment_id, arm_id, wave, trials, successes, sum_shown_at")).select_from(
        text("learner_cell order by 1, 2, 3")
    )

    def told() -> tuple[Any, ...]:
        with shop.database.writing() as session:
            learn(session, now=shop.now)
            counts = statistics(session, shop.experiment_id, now=shop.now)
            report = campaign_report(session, shop.campaign_id, shop.settings, now=shop.now)
            for arm in report["experiments"][0]["arms"]:
                arm.pop("probability")
            report["experiments"][0].pop("snapshot")
            rewards = session.scalar(select(func.count()).select_from(RewardRow))
            return counts.trials.sum(), counts.successes.sum(), report["sends"], rewards, session.execute(cells).all()

    before = told()
    assert before[0] == 2 * (OTHERS + 1)
    assert before[1] == OTHERS + 1
    shop.erase()
    assert told() == before
    with shop.database.writing() as session:
        rebuild(session)

    assert told() == before


@on_both
def test_what_the_log_had_not_taught_yet_is_learned_before_it_goes(shop: Shop):
    """A trial whose event the learner had not read counts all the same."""
    with shop.database.reading() as session:
        trials = statistics(session, shop.experiment_id, now=shop.now).trials.sum()
    shop.erase()
    with shop.database.reading() as session:
        assert statistics(session, shop.experiment_id, now=shop.now).trials.sum() == trials + OTHERS + 1


@on_both
def test_the_ledger_keeps_a_tombstone(shop: Shop):
    """The open send is cancelled with its reason, what was sent stays counted; neither says where the person lived."""
    shop.erase()
    with shop.database.reading() as session:
        sends = session.scalars(select(SendRow).where(SendRow.contact_key == shop.key).order_by(SendRow.send_id)).all()
        decision = session.get_one(DecisionRow, shop.decision_id)

    assert [send.state for send in sends] == ["accepted", "cancelled"]
    assert {(send.reason, send.timezone, send.message_id) for send in sends} == {(REASON, "UTC", None)}
    assert sends[1].finished_at == shop.now
    assert decision.occurrence == f"erased:{shop.decision_id}"


@on_both
def test_a_claimed_mail_does_not_leave(shop: Shop):
    """A worker that holds the send with its mail already made has lost it: nothing goes out, nothing is logged."""
    at = shop.now + timedelta(hours=4)
    with shop.database.writing() as session:
        session.execute(update(SendRow).where(SendRow.state == "planned").values(decided_at=at))
    mails = len(list((shop.settings.home / "outbox").glob("*.eml")))
    taken, emails = _claimed(shop, at)
    shop.erase()
    provider = OutboxProvider(shop.settings.home / "outbox")
    clock = SimulatedClock(at)
    receipts = asyncio.run(deliver(taken, emails, provider, shop.database, clock=clock, settings=shop.settings))

    assert (receipts.accepted, receipts.lost) == (OTHERS, 1)
    assert len(list((shop.settings.home / "outbox").glob("*.eml"))) == mails + OTHERS
    assert shop.finish().finished == 1
    assert shop.found() == []


@on_both
def test_a_mail_that_was_leaving_keeps_the_files_waiting(shop: Shop):
    """Erased between `attempting` and the provider's answer: it ends as unknown, and its mail is removed too."""
    at = shop.now + timedelta(hours=4)
    with shop.database.writing() as session:
        session.execute(update(SendRow).where(SendRow.state == "planned").values(decided_at=at))
    taken, emails = _claimed(shop, at)
    mine = [(send, mail) for send, mail in zip(taken, emails, strict=True) if send.contact_key == shop.key]
    erased: list[Any] = []

    def erase_now(_recipient: str) -> None:
        erased.extend([shop.erase(), shop.finish()])

    provider = OutboxProvider(shop.settings.home / "outbox", on_message=erase_now)
    clock = SimulatedClock(at)
    receipts = asyncio.run(
        deliver([mine[0][0]], [mine[0][1]], provider, shop.database, clock=clock, settings=shop.settings)
    )

    assert (receipts.lost, erased[0].sends_leaving, erased[1].waiting) == (1, 1, 1)
    assert "mail that was leaving" in erased[1].waits_for
    assert send_row(shop.database, mine[0][0].send_id).state == "unknown"
    assert any("outbox" in place for place in shop.found())
    assert shop.finish().waiting == 1  # the attempt's lease has not passed
    with shop.database.writing() as session:
        session.execute(update(SendRow).where(SendRow.lease_until.is_not(None)).values(lease_until=LONG_AGO))
    assert shop.finish().finished == 1
    assert shop.found() == []


def _claimed(shop: Shop, at: datetime) -> tuple[Sequence[Any], Sequence[Any]]:
    settings = shop.settings.model_copy(update={"frequency_cap": 0})
    with shop.database.writing() as session:
        taken = claim(session, now=at, limit=100, lease_seconds=60, settings=settings).sends
    assert len(taken) == OTHERS + 1
    with shop.database.reading() as session:
        inputs = gather(session, taken)
    return taken, render(inputs, now=at, settings=settings, number_links=LinkBook(shop.database))


@on_both
def test_an_answer_to_an_old_mail_changes_nothing(shop: Shop):
    """A hit that comes in later is dropped with its user agent; an unsubscribe finds nobody; neither fails."""
    shop.erase()
    later = shop.now + timedelta(days=1)
    with shop.database.writing() as session:
        head = current(session, "event_seq")
        send_id = session.scalars(select(SendRow.send_id).where(SendRow.contact_key == shop.key, _accepted())).one()
        record_hits(session, [Hit(send_id, 1, "GET", BROWSER, shop.now)])
    with shop.database.writing() as session:
        assert settle(session, now=later).dropped == 1
        assert unsubscribe(session, [send_id], source="one-click", now=later).unknown == (send_id,)
        assert current(session, "event_seq") == head

    assert count(shop.database, HitRow, HitRow.user_agent == BROWSER) == 0
    assert count(shop.database, ConsentRow, ConsentRow.contact_key == shop.key) == 0


@on_both
def test_what_was_under_way_is_taken_away_later(shop: Shop):
    """A transaction that knew the contact may commit a row after the erasure: the next round finds it."""
    shop.erase()
    shop.finish()
    with shop.database.writing() as session:
        straggler = NewEvent(shop.key, "Page Viewed", to_micros(shop.now), "late", f"user:{CANARY}")
        append(session, [straggler], received_at=to_micros(shop.now))
        session.add(IdentityRow(identity=f"user:{CANARY}2", contact_key=shop.key, created_at=shop.now))
        set_consent(session, [Consent(shop.key, "marketing", "subscribed", CANARY)], now=shop.now)
        rewrites = current(session, "event_rewrites")
    shop.sync()
    assert len(list(in_database(shop.database, shop.key))) == 3
    assert shop.key not in [key for bucket in range(8) for key in shop.lake.read_bucket(bucket).contact_key.tolist()]

    shop.finish()

    assert list(in_database(shop.database, shop.key)) == []
    with shop.database.reading() as session:
        assert current(session, "event_rewrites") == rewrites + 1
        assert shop.lake.verify(session).equal


@on_sqlite
def test_a_cell_of_any_length_stops_no_erasure(shop: Shop):
    """A broken quote makes a cell of the rest of a file: read to its end, removed only if it names the person."""
    long = "x, " * 100_000
    folder = shop.settings.home / "rejected"
    (folder / "long.csv.rejected.csv").write_text(
        f'line,reason,CustomerID\n2,no date,"other0 {long}"\n3,no date,"{long}{CANARY}"\n'
    )

    shop.erase()

    assert (folder / "long.csv.rejected.csv").read_text() == f'line,reason,CustomerID\n2,no date,"other0 {long}"\n'


class FailingStore(Store):
    """A store whose disk is full from the n-th write on."""

    def fail_after(self, writes: int) -> FailingStore:
        self.left = writes
        return self

    def _put(self, path: str, data: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        super()._put(path, data)


@on_sqlite
def test_files_broken_off_anywhere_are_finished_later(shop: Shop):
    """Whichever write of the lake, its snapshots or training sets fails, the erasure waits, and a round ends it."""
    shop.erase()
    failures = 0
    for writes in range(50):
        shop.lake.store = FailingStore(shop.settings.lake).fail_after(writes // 2)  # what is done is not written again
        try:
            shop.finish()
            break
        except StoreError:
            failures += 1
            assert count(shop.database, ErasureRow, ErasureRow.files_done_at.is_(None)) == 1
            assert shop.found() != []
    assert failures >= 3
    assert shop.found() == []
    shop.lake.store = Store(shop.settings.lake)
    with shop.database.reading() as session:
        assert shop.lake.verify(session).equal


@on_sqlite
def test_the_worker_finishes_what_was_erased(shop: Shop):
    """Its next maintenance round does the files."""
    shop.erase()
    assert shop.found() != []
    asyncio.run(Worker(shop.database, shop.settings, SimulatedClock(shop.now), shop.lake).work())

    assert shop.found() == []


@on_sqlite
def test_a_reader_of_the_database_keeps_the_files_waiting(shop: Shop):
    """While somebody reads an old state its bytes must stay; the round after is the last."""
    with shop.database.reading() as session:
        session.execute(select(ContactRow)).all()
        shop.erase()
        waiting = shop.finish()
        written = {path: path.stat().st_mtime_ns for path in Path(shop.settings.lake).rglob("*") if path.is_file()}
        assert shop.finish().waiting == 1
    assert (waiting.finished, waiting.waiting) == (0, 1)
    assert "reader" in waiting.waits_for
    for path, at in written.items():  # files that are done are not written once more
        assert path.name == ".lock" or path.stat().st_mtime_ns == at, path

    assert shop.finish().finished == 1
    assert shop.found() == []


@on_both
def test_who_comes_back_is_a_new_contact(shop: Shop):
    """The same name gets a new key, no consent, no history; the erased key stays nobody's."""
    shop.erase()
    shop.finish()
    with shop.database.writing() as session:
        ingest(session, [identify(CANARY, email=ADDRESS)], source="segment", now=shop.now)
        key = find(session, [CANARY])[CANARY]
        reasons = mailable(session, [key], "marketing", pepper=shop.settings.pepper)
    shop.sync()

    assert key not in (shop.key, *shop.others)
    assert count(shop.database, EventRow, EventRow.contact_key == key) == 1
    assert "unknown" in str(reasons[key])
    with shop.database.reading() as session:
        assert shop.lake.verify(session).equal


@on_both
def test_a_refusal_outlives_the_erasure(shop: Shop):
    """Who had unsubscribed gets no marketing mail under the same address, whatever is told; only a hash says so."""
    with shop.database.writing() as session:
        set_consent(session, [Consent(shop.key, "news", "unsubscribed", "one-click")], now=shop.now)
    shop.erase(CANARY, "other0")
    with shop.database.writing() as session:
        told = [
            identify(name, email=address, email_consent="subscribed")
            for name, address in (("new", ADDRESS), ("new0", "other0@shop.example"))
        ]
        ingest(session, told, source="segment", now=shop.now)
        keys = find(session, ["new", "new0"])
        marketing = mailable(session, keys.values(), "marketing", pepper=shop.settings.pepper)
        transactional = mailable(session, keys.values(), "x", pepper=shop.settings.pepper, stream="transactional")

    assert marketing == {keys["new"]: "address suppressed: unsubscribed", keys["new0"]: None}
    assert set(transactional.values()) == {None}
    assert count(shop.database, SuppressionRow) == 1


@on_both
def test_any_of_its_names_will_do_and_an_unknown_one_erases_nobody(shop: Shop):
    """The anonymous id that was told is nobody's user id; a list with a stranger in it is refused as a whole."""
    with pytest.raises(NotFound, match="'stranger'"):
        shop.erase(CANARY, "stranger")
    assert count(shop.database, ErasureRow) == 0
    with shop.database.writing() as session:
        session.add(IdentityRow(identity="user:alias", contact_key=shop.key, created_at=shop.now))

    assert shop.erase("alias", CANARY, CANARY).contacts == 1
    with pytest.raises(NotFound, match="erased already"):
        shop.erase()


@on_sqlite
def test_an_audience_without_anybody_left_is_refused(shop: Shop):
    """The list of a campaign for the person alone is empty afterwards, and cannot be scheduled."""
    with shop.database.writing() as session:
        new = NewCampaign("One", "mail", shop.now, shop.now + timedelta(hours=8), {"user_ids": [CANARY]})
        campaign_id = create_campaign(session, new, now=shop.now)
    shop.erase()
    with shop.database.reading() as session, pytest.raises(Invalid, match="audience"):
        plan_campaign(session, campaign_id, Serving(), shop.settings, now=shop.now)


@on_sqlite
def test_a_number_for_a_name_takes_nobody_elses_rows(shop: Shop):
    """Erasing user 42 leaves the messages with 42 mugs, the page of product 42 and the line of 42 units."""
    bad = [
        {"type": "track", "userId": "someone", "properties": {"quantity": 42, "note": "42 mugs"}},
        {"type": "track", "userId": 42, "properties": {"note": "mine"}},
    ]
    with shop.database.writing() as session:
        ingest(session, [identify("42", plan="gold")], source="segment", now=shop.now)
        ingest(session, bad, source="segment", now=shop.now)
        page, cart = "https://shop.example/p/42", "https://shop.example/cart?who=42"
        ids = link_ids(session, [page, cart])
        add_template(session, NewTemplate("static", "Hello", f'<p><a href="{page}">Mug</a></p>', "html"), now=shop.now)
    shop.erase("42")
    with shop.database.reading() as session:
        bodies = [row.body for row in session.scalars(select(QuarantineRow)) if "other" not in row.body]
        links = set(session.scalars(select(LinkRow.link_id).where(LinkRow.link_id.in_(ids.values()))))

    assert ["mugs" in body for body in bodies if CANARY not in body] == [True]
    assert links == {ids[page]}


@on_sqlite
def test_many_take_as_few_statements_as_one(shop: Shop):
    """Ten contacts are erased with the statements of one."""
    statements: list[str] = []
    event.listen(shop.database.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    shop.erase(CANARY)
    one = len(statements)
    statements.clear()
    shop.erase(*(f"other{i}" for i in range(10)))

    assert len(statements) <= one


@on_both
def test_a_cache_of_vectors_forgets_them(shop: Shop):
    """An API process that had read the contact's events answers for an erased key as for a stranger."""
    cache = VectorCache()
    with shop.database.reading() as session:
        online_features(session, [shop.key, shop.others[0]], shop.now, DEFAULT_VIEWS, cache)
    shop.erase()
    with shop.database.reading() as session:
        seen = online_features(session, [shop.key], shop.now, DEFAULT_VIEWS, cache)
        stranger = online_features(session, [10**9], shop.now, DEFAULT_VIEWS)

    assert seen.tobytes() == stranger.tobytes()


@on_sqlite
def test_no_copy_stays_in_a_page_of_the_database(home_database: tuple[Database, Settings], now: datetime):
    """Pages that were split as the log grew keep copies of rows; the deleted rows' copies go with the scrub."""
    database, settings = home_database
    random = np.random.default_rng(7)
    contacts, erased = 400, range(0, 400, 20)
    for _ in range(60):
        events = [
            NewEvent(
                key,
                "Page Viewed",
                to_micros(now) - int(random.integers(10**12)),
                f"{CANARY if key in erased else 'other'}/{random.random()}",
                "user:x",
                properties={"said": (CANARY if key in erased else "other") * int(random.integers(1, 20))},
            )
            for key in random.integers(0, contacts, 300).tolist()
        ]
        with database.writing() as session:
            append(session, events, received_at=to_micros(now))
    with database.writing() as session:
        session.execute(delete(EventRow).where(EventRow.contact_key.in_(erased)))
    file = settings.home / "kairos.db"
    with database.engine.connect() as connection:
        connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert CANARY.encode() in file.read_bytes()  # else this test shows nothing

    assert database.scrub()

    assert CANARY.encode() not in b"".join(path.read_bytes() for path in settings.home.iterdir())
    with database.reading() as session:
        assert session.execute(text("pragma integrity_check")).scalar_one() == "ok"


def test_what_an_erased_contact_taught_stays_and_what_was_seen_of_it_goes(any_database, settings, add_contacts, now):
    """Contexts, segments and credits go; counts move to no segment, matrices stay, and a rebuild gives the same."""
    with any_database.writing() as session:
        keys = add_contacts(session, 12)
        session.execute(update(ContactRow).values(traits={"country": "DE"}))
        ids = [
            open_experiment(session, new_experiment(reward="conversion", **changes), now=now)
            for changes in (
                {"segment_by": {"trait": "country", "values": ["DE"]}},
                {"policy": "linear", "context": {"features": ["orders_ever", "revenue_ever"]}},
            )
        ]
        for experiment_id in ids:
            show(session, experiment_id, keys, "visit", now)
        later = now + timedelta(hours=1)
        append(session, [order(key, later, f"o{key}", 100 * key) for key in keys], received_at=to_micros(later))
        learn(session, now=later)
        before = [evidence(session, session.get_one(ExperimentRow, one), now=later) for one in ids]
    erase_contacts(any_database, settings, ["u0", "u1"], now=later)
    with any_database.writing() as session:
        erased = session.scalars(select(DecisionRow).where(DecisionRow.contact_key.in_(keys[:2]))).all()
        seen = {(row.context, row.segment) for row in erased}
        credited = set(session.scalars(select(CreditRow.contact_key)))
        after = [evidence(session, session.get_one(ExperimentRow, one), now=later) for one in ids]
        live = state(session)
        replays = replay(session, [row.decision_id for row in erased])
        rebuild(session)
        learn(session, now=later)
        again = state(session)

    assert seen == {(None, None)}
    assert credited == set(keys[2:])
    assert after[0].segments == ("", "DE")
    assert after[0].trials.sum(axis=(1, 2)).tolist() == [2, 10]
    assert np.array_equal(after[0].pooled().successes, before[0].pooled().successes)
    np.testing.assert_allclose(after[1].gram, before[1].gram, rtol=1e-9)
    np.testing.assert_allclose(after[1].moments, before[1].moments, rtol=1e-9, atol=1e-9)
    assert all(one.why and not one.is_equal for one in replays)
    assert_same(again, live)
