"""Order files: lines of CSV or Parquet become orders and cancellations in the log; what cannot is set aside."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from features.contacts import resolve, update_traits
from features.events import NewEvent, append
from features.tables import ContactRow, UtcMicros, from_micros, to_micros
from features.vocabulary import ORDER_CANCELLED, ORDER_COMPLETED
from service.database import Database
from service.errors import Invalid, NotFound
from service.flow.ingest import MAX_MINOR, decimals_of, valid_address

#: Fields of an order line and the column names under which they are found, in small letters without signs.
KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "order_id": ("invoiceno", "invoice", "invoicenumber", "orderid", "ordernumber", "orderno", "order"),
    "contact": ("customerid", "userid", "contactid", "clientid", "customer", "customerno", "customernumber"),
    "date": ("invoicedate", "orderdate", "date", "datetime", "timestamp", "createdat", "occurredat", "purchasedate"),
    "quantity": ("quantity", "qty", "numberofcds", "units"),
    "price": ("unitprice", "price", "itemprice"),
    "total": ("total", "revenue", "amount", "dollarvalue", "value", "ordertotal", "totalprice", "linetotal"),
    "email": ("email", "emailaddress", "customeremail"),
}

#: Events of one transaction: no other writer waits long behind it.
CHUNK = 20_000
#: Longest order and contact ids; the log's columns hold a little more.
LONGEST_ID = 100
LONGEST_CONTACT = 240
#: Price times 10^6 is an integer: prices of up to six decimals are multiplied and rounded exactly.
_SCALE = 10**6

_EMPTY = ("", "nan", "none", "null", "na", "n/a", "<na>")
_DATE_FORMATS = (
    "%Y%m%d",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y",
)


@dataclass(frozen=True)
class ImportReport:
    """What an order file held and what became of it."""

    #: Lines of the file.
    rows: int
    orders: int
    cancellations: int
    #: Lines that could not be taken.
    set_aside: int
    #: Different contacts of the orders and cancellations.
    contacts: int
    #: Set-aside lines by reason.
    reasons: dict[str, int]
    #: Column that was read for each field.
    columns: dict[str, str]
    #: File with the set-aside lines and their reasons; None if there are none, or in a dry run.
    rejects_path: Path | None
    #: Events that were new; 0 in a dry run and when the file was imported before.
    events_stored: int
    #: Events that the log had already.
    duplicates: int
    #: Instants of the first and the last order or cancellation.
    first: datetime | None
    last: datetime | None


def import_orders(
    database: Database,
    path: Path,
    *,
    now: datetime,
    mapping: Mapping[str, str] | None = None,
    timezone: str | None = None,
    currency: str = "GBP",
    dry_run: bool = False,
    rejects_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Orders and cancellations of a file, stored once however often it is imported.

    The lines of one order id are one order, at its earliest line, its value rounded line by line. Lines of negative
    quantity, and those of invoice numbers that begin with C, are a cancellation: an event of its own that takes its
    value back. A price of zero is a gift and stays in its order; a negative price is a correction of the books, no
    order, and is set aside. Without an order id each line is one order, which needs a column with its total. Contacts
    are created with the consent unknown.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.csv.gz`` or ``.parquet``.
    now : datetime
        Aware; lines after it are set aside.
    mapping : mapping of str to str, optional
        Column of a field, where the name is not one of `KNOWN_COLUMNS`.
    timezone : str, optional
        IANA zone of times that name none; default UTC. Of an hour that the clocks go through twice the first is
        meant; an hour that they skip is moved to the first instant after it.
    currency : str
        ISO 4217 code of the amounts, which must be the installation's.
    rejects_folder : Path, optional
        Where set-aside lines go if nothing may be written beside the file.
    progress : callable, optional
        Called with (events stored or known, events in all) after each transaction.

    Raises
    ------
    NotFound
        If there is no such file.
    Invalid
        If it is no table, lacks a column, or its dates can be read in two ways.
    """
    zone = timezone or "UTC"
    table = _read(path)
    columns = _columns(table, mapping or {})
    lines, reasons = _lines(table, columns, zone, currency, now)
    events = _events(lines)
    rejects = None
    if not dry_run and len(reasons):
        rejects = _write_rejects(table, reasons, path, rejects_folder or _home_of(database) / "rejected")
    stored = duplicates = 0
    if not dry_run:
        for start in range(0, len(events), CHUNK):
            part = events.iloc[start : start + CHUNK]
            done = _store(database, part, zone, now)
            stored, duplicates = stored + done[0], duplicates + done[1]
            if progress is not None:
                progress(start + len(part), len(events))
    return ImportReport(
        rows=len(table),
        orders=int((events["kind"] == ORDER_COMPLETED).sum()),
        cancellations=int((events["kind"] == ORDER_CANCELLED).sum()),
        set_aside=len(reasons),
        contacts=int(events["contact"].nunique()),
        reasons={str(reason): int(count) for reason, count in reasons.value_counts().items()},
        columns=columns,
        rejects_path=rejects,
        events_stored=stored,
        duplicates=duplicates,
        first=from_micros(int(events["at"].min())) if len(events) else None,
        last=from_micros(int(events["at"].max())) if len(events) else None,
    )


def _read(path: Path) -> pd.DataFrame:
    """The file as a table; CSV as texts, so that what is set aside leaves as it came."""
    if not path.is_file():
        raise NotFound(f"there is no file {path}; name a .csv, .csv.gz or .parquet file")
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(path).reset_index(drop=True)
        if name.endswith((".csv", ".csv.gz")):
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
            # More fields than the head names: pandas takes the first ones for an index.
            return table if isinstance(table.index, pd.RangeIndex) else table.reset_index(drop=True)
    except (ValueError, OSError, ImportError) as error:
        raise Invalid(f"{path} cannot be read as a table ({error}); save it as UTF-8 CSV with a head line") from error
    raise Invalid(f"{path.name} is of no known kind; name a .csv, .csv.gz or .parquet file")


def _columns(table: pd.DataFrame, mapping: Mapping[str, str]) -> dict[str, str]:
    """Column of each field that the file has."""
    found = ", ".join(str(column) for column in table.columns)
    for field, column in mapping.items():
        if field not in KNOWN_COLUMNS:
            raise Invalid(
                f"--map {field}={column}: there is no field {field!r}; choose from {', '.join(KNOWN_COLUMNS)}"
            )
        if column not in table.columns:
            raise Invalid(f"--map {field}={column}: the file has no column {column!r}; it has {found}")
    by_name = {re.sub(r"[^a-z0-9]", "", str(column).lower()): str(column) for column in reversed(table.columns)}
    columns = {
        field: mapping.get(field) or next((by_name[name] for name in names if name in by_name), None)
        for field, names in KNOWN_COLUMNS.items()
    }
    missing = [field for field in ("contact", "date") if columns[field] is None]
    if columns["total"] is None and columns["price"] is None:
        missing.append("price")
    if columns["total"] is None and columns["order_id"] is None:
        missing.insert(0, "order_id")
    if missing:
        raise Invalid(
            f"the file has no column for {', '.join(missing)}; its columns are {found}. "
            f"Name the column with --map {missing[0]}=Column"
        )
    return {field: column for field, column in columns.items() if column is not None}


def _lines(
    table: pd.DataFrame, columns: Mapping[str, str], zone: str, currency: str, now: datetime
) -> tuple[pd.DataFrame, pd.Series]:
    """The lines that can be taken, and the reason of each of the others by its place in the file."""
    reasons = pd.Series(None, index=table.index, dtype=object)

    def refuse(mask: npt.NDArray[np.bool_] | pd.Series, reason: str) -> None:
        reasons[np.asarray(mask, dtype=bool) & reasons.isna().to_numpy()] = reason

    contact = _ids(table[columns["contact"]])
    refuse(contact == "", f"no contact: {columns['contact']} is empty")
    refuse(~_storable(contact, LONGEST_CONTACT), f"{columns['contact']} is longer than {LONGEST_CONTACT} or holds NUL")
    at = _instants(table[columns["date"]], zone)
    date = columns["date"]
    refuse(at.isna(), f"{date} is no date; write it as 2011-03-01 12:30")
    micros = at.astype("datetime64[us]").astype("int64").to_numpy(np.int64)
    refuse(micros < 0, f"{date} lies before 1970")
    refuse(micros > to_micros(now), f"{date} lies in the future")
    quantity = _numbers(table[columns["quantity"]]) if "quantity" in columns else pd.Series(1.0, index=table.index)
    if "total" in columns and "price" not in columns:
        # The total is the line's money already; a negative one takes back like a negative quantity.
        amount_column = columns["total"]
        total = _numbers(table[amount_column])
        quantity, price = quantity.abs().where((quantity > 0) & ~(total < 0), -quantity.abs()), total.abs()
        multiplier = pd.Series(1.0, index=table.index)
    else:
        amount_column = columns["price"]
        price, multiplier = _numbers(table[amount_column]), quantity
    if "quantity" in columns:
        refuse(~np.isfinite(quantity) | (quantity == 0), f"{columns['quantity']} is no number other than 0")
    refuse(~np.isfinite(price), f"{amount_column} is no finite number")
    refuse(price < 0, f"{amount_column} is negative: a correction of the books, no order")
    decimals = decimals_of(currency)
    refuse((price * multiplier).abs() * 10**decimals > MAX_MINOR, f"{amount_column} is beyond all bounds")
    if "order_id" in columns:
        order = _ids(table[columns["order_id"]])
        refuse(order == "", f"{columns['order_id']} is empty")
        refuse(~_storable(order, LONGEST_ID), f"{columns['order_id']} is longer than {LONGEST_ID} or holds NUL")
        is_invoice = columns["order_id"].lower().startswith("invoice")
        begins_with_c = order.str.match(r"[Cc]\d").to_numpy() if is_invoice else np.zeros(len(table), dtype=bool)
    else:
        order = _derived_orders(contact, micros)
        begins_with_c = np.zeros(len(table), dtype=bool)

    kept = reasons.isna().to_numpy()
    lines = pd.DataFrame(
        {
            "order": order[kept],
            "contact": contact[kept],
            "at": micros[kept],
            "quantity": quantity[kept].abs(),
            "value_minor": _line_values(multiplier[kept].to_numpy(), price[kept].to_numpy(), decimals),
            "is_cancelled": begins_with_c[kept] | (quantity[kept] < 0).to_numpy(),
            "email": _ids(table[columns["email"]])[kept] if "email" in columns else "",
        }
    )
    # An order belongs to the contact of its earliest line.
    lines = lines.sort_values(["order", "at"], kind="stable")
    owner = lines.groupby("order", sort=False)["contact"].transform("first")
    strangers = lines.index[owner.to_numpy() != lines["contact"].to_numpy()]
    reasons[strangers] = "the order belongs to another contact"
    return lines.drop(index=strangers), reasons.dropna()


def _events(lines: pd.DataFrame) -> pd.DataFrame:
    """One row an order and one a cancellation, by time."""
    grouped = lines.groupby(["order", "is_cancelled"], sort=False)
    events = grouped.agg(
        contact=("contact", "first"),
        at=("at", "first"),
        value_minor=("value_minor", "sum"),
        quantity=("quantity", "sum"),
        lines=("order", "size"),
        email=("email", "last"),
    ).reset_index()
    events["kind"] = np.where(events["is_cancelled"].astype(bool), ORDER_CANCELLED, ORDER_COMPLETED)
    return events.sort_values(["at", "order"], kind="stable", ignore_index=True)


def _store(database: Database, part: pd.DataFrame, zone: str, now: datetime) -> tuple[int, int]:
    names = part["contact"].unique().tolist()
    addresses = part.loc[part["email"] != ""].groupby("contact")["email"].last()
    with database.writing() as session:
        keys = resolve(session, [f"user:{name}" for name in names], now=now)
        traits = {keys[f"user:{name}"]: {"email": valid_address(text)} for name, text in addresses.items()}
        # A file tells an address that nobody told yet; it never overrules what the contact said since.
        has_address = _with_address(session, list(traits))
        told = {key: trait for key, trait in traits.items() if trait["email"] is not None and key not in has_address}
        if told:
            update_traits(session, told, now=now)
        # A contact of history exists since its first order, not since the file was read.
        earlier = update(ContactRow).where(
            ContactRow.contact_key == bindparam("key"), ContactRow.created_at > bindparam("first", type_=UtcMicros)
        )
        session.connection().execute(
            earlier.values(created_at=bindparam("first", type_=UtcMicros)),
            [
                {"key": keys[f"user:{name}"], "first": from_micros(int(at))}
                for name, at in sorted(
                    part.groupby("contact")["at"].min().items(), key=lambda one: keys[f"user:{one[0]}"]
                )
            ],
        )
        appended = append(
            session,
            [
                NewEvent(
                    contact_key=keys[f"user:{row.contact}"],
                    kind=row.kind,
                    occurred_at=int(row.at),
                    message_id=f"import:orders/{row.order}" + ("/cancelled" if row.is_cancelled else ""),
                    identity=f"user:{row.contact}",
                    ref=row.order,
                    value_minor=int(row.value_minor),
                    properties={"quantity": _plain(row.quantity), "lines": int(row.lines)},
                    timezone=zone,
                )
                for row in cast("Any", part.itertuples(index=False))
            ],
            received_at=to_micros(now),
            imported=True,
            default_timezone=zone,
        )
    return appended.stored, appended.duplicates


def _with_address(session: Session, keys: list[int]) -> set[int]:
    found: set[int] = set()
    for start in range(0, len(keys), 10_000):
        query = select(ContactRow.contact_key).where(
            ContactRow.contact_key.in_(keys[start : start + 10_000]), ContactRow.email.is_not(None)
        )
        found.update(session.scalars(query))
    return found


def _write_rejects(table: pd.DataFrame, reasons: pd.Series, path: Path, elsewhere: Path) -> Path:
    rejected = table.loc[reasons.index].copy()
    rejected.insert(0, "line", reasons.index.to_numpy() + (1 if path.name.lower().endswith(".parquet") else 2))
    rejected.insert(1, "reason", reasons)
    folder = path.resolve().parent
    # The rights as written count, also for root, who could overrule them.
    if not folder.stat().st_mode & 0o222 or not os.access(folder, os.W_OK):
        elsewhere.mkdir(parents=True, exist_ok=True)
        folder = elsewhere
    target = folder / f"{path.name}.rejected.csv"
    rejected.to_csv(target, index=False)
    return target


def _home_of(database: Database) -> Path:
    return Path(str(database.url.database)).resolve().parent if database.is_sqlite else Path.cwd()


def _ids(column: pd.Series) -> pd.Series:
    """Texts without blanks around them; whole numbers without the ``.0`` that spreadsheets give them."""
    if pd.api.types.is_float_dtype(column.dtype):
        whole = column.notna() & np.isfinite(column) & (column == np.floor(column))
        text = column.astype(object).where(~whole, column.where(whole, 0).astype("int64").astype(object))
        text = text.astype(str)
    else:
        text = column.astype(str).str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    empty = (
        column.isna().to_numpy() | text.str.lower().isin(("", "nan", "none", "null", "na", "n/a", "<na>")).to_numpy()
    )
    return text.where(~empty, "").astype(object)


def _storable(ids: pd.Series, longest: int) -> npt.NDArray[np.bool_]:
    return np.array([len(text) <= longest and "\x00" not in text for text in ids], dtype=bool)


def _numbers(column: pd.Series) -> pd.Series:
    if not pd.api.types.is_numeric_dtype(column.dtype):
        column = column.astype(str).str.strip()
    return pd.to_numeric(column, errors="coerce").astype("float64")


def _line_values(quantity: npt.NDArray[Any], price: npt.NDArray[Any], decimals: int) -> npt.NDArray[np.int64]:
    """|quantity x price| of each line in minor units, rounded half up on integers."""
    if np.all(quantity == np.floor(quantity)):
        amount = np.abs(quantity).astype(np.int64) * np.rint(price * _SCALE).astype(np.int64)
    else:  # sold by weight or length
        amount = np.rint(np.abs(quantity) * price * _SCALE).astype(np.int64)
    unit = _SCALE // 10**decimals
    return (amount + unit // 2) // unit


def _instants(column: pd.Series, zone: str) -> pd.Series:
    """UTC instants; NaT where the text is no date."""
    if not pd.api.types.is_datetime64_any_dtype(column.dtype):
        column = _parsed(column.astype(str).str.strip())
    if column.dt.tz is not None:
        return column.dt.tz_convert("UTC").dt.tz_localize(None)
    try:
        local = column.dt.tz_localize(zone, ambiguous=np.ones(len(column), dtype=bool), nonexistent="shift_forward")
    except (KeyError, ValueError, OSError) as error:
        raise Invalid(f"{zone!r} is no IANA time zone; write one such as Europe/London") from error
    return local.dt.tz_convert("UTC").dt.tz_localize(None)


def _parsed(texts: pd.Series) -> pd.Series:
    """The texts read by the one format that fits most of them."""
    distinct = pd.Series(texts.unique())
    zoned = distinct.str.contains(r"\d(?:Z|[+-]\d\d:?\d\d)$", regex=True)
    if zoned.any():
        read = pd.to_datetime(distinct.where(zoned), format="ISO8601", errors="coerce", utc=True)
        return texts.map(dict(zip(distinct, read, strict=True))).astype("datetime64[us, UTC]")
    tried = [
        (format_, pd.to_datetime(distinct, format=format_, errors="coerce"))
        # Eight digits are also ISO 8601 to pandas; both readings agree.
        for format_ in ("ISO8601", *_DATE_FORMATS)
    ]
    best = max(int(read.notna().sum()) for _, read in tried)
    fitting = [(format_, read) for format_, read in tried if int(read.notna().sum()) == best and best]
    if len(fitting) > 1 and any(not read.equals(fitting[0][1]) for _, read in fitting):
        raise Invalid(
            f"the dates fit {fitting[0][0]} as well as {fitting[1][0]}, such as {distinct.iloc[0]!r}; "
            "write them as 2011-03-01 12:30"
        )
    chosen = fitting[0][1] if fitting else pd.Series(pd.NaT, index=distinct.index, dtype="datetime64[us]")
    return texts.map(dict(zip(distinct, chosen, strict=True))).astype("datetime64[us]")


def _derived_orders(contact: pd.Series, micros: npt.NDArray[Any]) -> pd.Series:
    """An id for each line of a file without order ids: of contact, instant and place among its like."""
    frame = pd.DataFrame({"contact": contact, "at": micros})
    place = frame.groupby(["contact", "at"], sort=False).cumcount()
    ids = [
        hashlib.blake2b(f"{who}|{at}|{n}".encode(), digest_size=12).hexdigest()
        for who, at, n in zip(contact, micros, place, strict=True)
    ]
    return pd.Series(ids, index=contact.index, dtype=object)


def _plain(quantity: float) -> int | float:
    return int(quantity) if float(quantity).is_integer() else float(quantity)
