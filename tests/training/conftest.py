"""What the tests of training share: lakes of real and of made-up orders, and an MLflow store made once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from features import contacts
from features.events import NewEvent, append
from features.lake import Lake
from features.tables import to_micros
from features.vocabulary import EMAIL_CLICKED, EMAIL_SENT, ORDER_CANCELLED, ORDER_COMPLETED, PAGE
from service.database import Database

ZONE = "Europe/London"
DAY = 86_400_000_000
HOUR = DAY // 24
#: First day of the made-up shop, and its last.
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
SHOP_DAYS = 260
END = BEGIN + timedelta(days=SHOP_DAYS)


def _end_of_day(date: str) -> datetime:
    """The instant at which a bare date is over in the shop's zone."""
    midnight = datetime.combine(datetime.fromisoformat(date).date() + timedelta(days=1), time(), ZoneInfo(ZONE))
    return midnight.astimezone(UTC)


@pytest.fixture(scope="session")
def end_of_day():
    """Bare date → the instant at which it is over in London."""
    return _end_of_day


def fresh_database(empty: Path, folder: Path) -> Database:
    """A copy of the empty database in ``folder``."""
    shutil.copy(empty, folder / "kairos.db")
    return Database(f"sqlite:///{folder / 'kairos.db'}")


def lake_of(database: Database, folder: Path) -> Lake:
    """The lake of a database's log."""
    lake = Lake(str(folder / "lake"), buckets=8)
    with database.reading() as session:
        lake.sync(session)
    return lake


@pytest.fixture(scope="session")
def retail_lake(data_folder: Path, empty_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Lake of the Online Retail orders and cancellations of known customers."""
    folder = tmp_path_factory.mktemp("retail")
    database = fresh_database(empty_sqlite, folder)
    file = data_folder / "online_retail_to_2011-08-31.parquet"
    lines = pd.read_parquet(file, columns=["InvoiceNo", "Quantity", "UnitPrice", "InvoiceDate", "CustomerID"])
    lines = lines[lines.CustomerID.notna()]
    local = lines.InvoiceDate.dt.tz_localize(ZONE, ambiguous=False, nonexistent="shift_forward")
    lines = lines.assign(
        at=local.dt.tz_convert("UTC").astype("datetime64[us, UTC]").astype("int64"),
        minor=np.rint(lines.Quantity * lines.UnitPrice * 100).astype("int64"),
        user="user:" + lines.CustomerID.astype("int64").astype(str),
    )
    orders = lines.groupby(["user", "InvoiceNo"], as_index=False).agg(at=("at", "min"), minor=("minor", "sum"))
    now = int(orders["at"].max()) + 1
    with database.writing() as session:
        instant = datetime.fromtimestamp(now / 1e6, UTC)
        keys = contacts.resolve(session, orders.user.unique().tolist(), now=instant)
        events = [
            NewEvent(
                contact_key=keys[user],
                kind=ORDER_CANCELLED if invoice.startswith("C") else ORDER_COMPLETED,
                occurred_at=at,
                message_id=f"test/{invoice}/{user}",
                identity=user,
                ref=invoice,
                value_minor=abs(minor),
                timezone=ZONE,
            )
            for user, invoice, at, minor in orders.itertuples(index=False)
        ]
        append(session, events, received_at=now, imported=True)
    lake = lake_of(database, folder)
    database.close()
    return lake


@dataclass(frozen=True)
class Shop:
    """A made-up shop of 400 buyers, some of whom leave for good, with mail that is answered at personal hours."""

    database: Database
    lake: Lake
    keys: np.ndarray
    #: The instant after its last day.
    now: datetime = END


def _shop_events(rng: np.random.Generator, key: int, user: str) -> list[NewEvent]:
    begin = to_micros(BEGIN)
    gap, stays = rng.choice([8.0, 25.0, 60.0]), rng.uniform(60, 2.5 * SHOP_DAYS)
    day, events = rng.uniform(0, 60), []
    while day < min(stays, SHOP_DAYS):
        at, number = begin + int(day * DAY), len(events)
        events.append(
            NewEvent(
                key, ORDER_COMPLETED, at, f"o/{user}/{number}", user, f"{user}-{number}", int(rng.integers(500, 9000))
            )
        )
        day += rng.gamma(3, gap / 3)
    peak = rng.choice([8, 13, 20])
    for i in range(12):
        active = begin + int(rng.integers(SHOP_DAYS)) * DAY + int((peak + rng.integers(-1, 2)) % 24) * HOUR
        events.append(NewEvent(key, PAGE, active, f"p/{user}/{i}", user))
        hour = int(rng.integers(24)) if rng.random() < 0.4 else 10
        sent = begin + int(rng.integers(SHOP_DAYS)) * DAY + hour * HOUR
        events.append(NewEvent(key, EMAIL_SENT, sent, f"s/{user}/{i}", user, f"send-{user}-{i}"))
        distance = abs((hour - peak + 12) % 24 - 12)
        if rng.random() < 0.05 + 0.5 * np.exp(-0.5 * (distance / 2) ** 2):
            clicked = sent + int(rng.uniform(0.1, 3) * HOUR)
            events.append(
                NewEvent(key, EMAIL_CLICKED, clicked, f"c/{user}/{i}", user, f"send-{user}-{i}", human_ppm=950_000)
            )
    return events


@pytest.fixture(scope="session")
def shop(empty_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A `Shop` in a database and its lake; do not write into it."""
    folder = tmp_path_factory.mktemp("shop")
    database = fresh_database(empty_sqlite, folder)
    rng = np.random.default_rng(11)
    with database.writing() as session:
        users = [f"user:{i}" for i in range(400)]
        keys = contacts.resolve(session, users, now=END)
        events = [event for user in users for event in _shop_events(rng, keys[user], user)]
        append(session, events, received_at=to_micros(END), imported=True)
    yield Shop(database, lake_of(database, folder), np.array(sorted(keys.values())))
    database.close()


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its schema: making one takes seconds, copying it none."""
    from training.registry import list_models

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert list_models(tracking_uri=f"sqlite:///{path}") == {}
    return path


@dataclass(frozen=True)
class Mlruns:
    """Where a test's MLflow keeps its things, as keyword arguments take them."""

    tracking_uri: str
    artifact_root: Path


@pytest.fixture
def mlruns(mlflow_template: Path, tmp_path: Path) -> Mlruns:
    """A fresh MLflow store."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return Mlruns(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts")
