"""Real orders, through the import, the log and the lake, give the numbers that pandas computes from the raw file."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import select

from features.lake import Lake
from features.offline import historical_features
from features.tables import IdentityRow, to_micros
from features.views import DEFAULT_VIEWS
from service.database import Database
from service.imports import import_orders

ZONE = "Europe/London"
DATES = ("2011-02-15", "2011-06-01", "2011-09-01")
DAY = pd.Timedelta(days=1)


def raw_orders(file: Path) -> pd.DataFrame:
    """One row an order of a known customer: contact, instant of its first line in UTC, money in pence.

    Written from the file's description alone: an invoice number that begins with C, or a negative quantity, is a
    cancellation; a negative price is no order; a line's money is rounded half up, exactly, on decimals.
    """
    lines = pd.read_parquet(file)
    lines = lines[lines.CustomerID.notna() & (lines.UnitPrice >= 0) & (lines.Quantity > 0)]
    lines = lines[~lines.InvoiceNo.astype(str).str.startswith("C")]
    lines = lines.assign(
        pence=[
            int((int(quantity) * Decimal(str(price)) * 100).quantize(Decimal(1), ROUND_HALF_UP))
            for quantity, price in zip(lines.Quantity, lines.UnitPrice, strict=True)
        ],
        at=lines.InvoiceDate.dt.tz_localize(ZONE).dt.tz_convert("UTC"),
        contact="user:" + lines.CustomerID.astype("int64").astype(str),
    )
    return lines.groupby("InvoiceNo").agg(contact=("contact", "first"), at=("at", "min"), pence=("pence", "sum"))


def by_pandas(orders: pd.DataFrame, as_of: pd.Timestamp) -> pd.DataFrame:
    """Recency, frequency and money of every contact of ``orders`` as of an instant."""
    contacts = pd.Index(sorted(orders.contact.unique()))
    orders = orders[orders["at"] < as_of].assign(age=lambda orders: (as_of - orders["at"]) / DAY)
    orders["day"] = orders["at"].dt.floor("D")
    orders["fresh"] = 0.5 ** (orders.age / 90)
    orders["fresh_pence"] = orders.fresh * orders.pence

    def per_contact(rows: pd.DataFrame, column: str, how: str) -> pd.Series:
        return rows.groupby("contact")[column].agg(how).reindex(contacts)

    found = {
        "days_since_order": per_contact(orders, "age", "min"),
        "days_since_first_order": per_contact(orders, "age", "max"),
        "orders_decayed": per_contact(orders, "fresh", "sum").fillna(0),
        "revenue_decayed": per_contact(orders, "fresh_pence", "sum").fillna(0),
    }
    for days in (7, 30, 90, 180, 365, None):
        rows = orders if days is None else orders[orders.age <= days]
        name = "ever" if days is None else f"{days}d"
        found[f"orders_{name}"] = per_contact(rows, "pence", "size").fillna(0)
        found[f"revenue_{name}"] = per_contact(rows, "pence", "sum").fillna(0)
        found[f"order_value_{name}"] = per_contact(rows, "pence", "mean")
        found[f"order_days_{name}"] = per_contact(rows, "day", "nunique").fillna(0)
    for days in (30, 90):
        before = orders[(orders.age > days) & (orders.age <= 2 * days)]
        found[f"orders_trend_{days}d"] = found[f"orders_{days}d"] - per_contact(before, "pence", "size").fillna(0)
    return pd.DataFrame(found)


@pytest.mark.data
def test_real_orders_give_pandas_recency_frequency_and_money(database: Database, tmp_path: Path, data_folder: Path):
    """Every contact of the file at three dates, every column of the three families; order by order, to the penny."""
    file = data_folder / "online_retail_to_2011-08-31.parquet"
    now = datetime(2011, 9, 2, tzinfo=UTC)
    report = import_orders(database, file, now=now, timezone=ZONE, rejects_folder=tmp_path)
    lake = Lake(str(tmp_path / "lake"))
    with database.reading() as session:
        lake.sync(session)
        keys = {row.identity: row.contact_key for row in session.scalars(select(IdentityRow))}
    orders = raw_orders(file)
    assert report.orders == len(orders)
    families = ("recency", "frequency", "monetary")
    asked = {row["name"] for row in DEFAULT_VIEWS.describe() if row["family"] in families}
    compared = 0
    for date in DATES:
        as_of = pd.Timestamp(date, tz=ZONE).tz_convert("UTC")
        expected = by_pandas(orders, as_of)
        spine = pd.DataFrame({"contact_key": expected.index.map(keys), "as_of": to_micros(as_of.to_pydatetime())})

        vectors = historical_features(lake, spine, DEFAULT_VIEWS, n_jobs=2).to_pandas()

        names = [name for name in expected.columns if name in asked]
        assert len(names) >= 20
        for name in names:
            np.testing.assert_allclose(vectors[name], expected[name], rtol=1e-9, err_msg=f"{name} at {date}")
        counts = [name for name in names if name.startswith(("orders_", "revenue_")) and not name.endswith("decayed")]
        assert (vectors[counts].to_numpy() == expected[counts].to_numpy()).all()
        compared += len(expected)
    assert compared == 3 * orders.contact.nunique() > 9_000
    assert np.isfinite(vectors["days_since_order"]).all()  # by the last date everybody has ordered
