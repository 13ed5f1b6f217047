"""A small loader of real orders for the tests of training: order lines → events → lake, without the service's import."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from features import contacts
from features.events import NewEvent, append
from features.lake import Lake
from features.vocabulary import ORDER_CANCELLED, ORDER_COMPLETED
from service.database import Database

ZONE = "Europe/London"


def end_of_day(date: str) -> datetime:
    """The instant at which a bare date is over in the shop's zone."""
    midnight = datetime.combine(datetime.fromisoformat(date).date() + timedelta(days=1), time(), ZoneInfo(ZONE))
    return midnight.astimezone(UTC)


def retail_lake(file: Path, database: Database, folder: Path) -> Lake:
    """Lake of the Online Retail orders and cancellations of known customers."""
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
    lake = Lake(str(folder), buckets=8)
    with database.reading() as session:
        lake.sync(session)
    return lake
