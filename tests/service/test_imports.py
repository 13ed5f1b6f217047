"""Laws of the order import."""

import gzip
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import func, select

from features.contacts import update_traits
from features.tables import from_micros
from service.database import Database
from service.errors import Invalid, NotFound
from service.imports import import_orders
from service.suppression import consent_states
from service.tables import ContactRow, EventRow

HEAD = "InvoiceNo,StockCode,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


def write(folder: Path, text: str, name: str = "orders.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def events(database: Database) -> list[EventRow]:
    with database.reading() as session:
        return list(session.scalars(select(EventRow).order_by(EventRow.occurred_at, EventRow.seq)))


def test_lines_become_orders_and_cancellations(any_database: Database, tmp_path: Path, now: datetime):
    """One order an id at its earliest line, rounded line by line; C-numbers and negative quantities take back."""
    path = write(
        tmp_path,
        HEAD
        + "1,a,2,2011-03-01 12:05:00,1.005,17850,UK\n"
        + "1,b,1,2011-03-01 12:00:00,0,17850,UK\n"
        + "C2,a,-1,2011-03-02 08:00:00,1.005,17850,UK\n"
        + "3,a,5,2011-03-03 08:00:00,2,17851.0,UK\n"
        + "3,b,-1,2011-03-03 08:00:00,2,17851,UK\n",
    )
    report = import_orders(any_database, path, now=now)
    rows = events(any_database)

    assert (report.rows, report.orders, report.cancellations, report.set_aside, report.contacts) == (5, 2, 2, 0, 2)
    assert report.events_stored == 4
    assert [(row.kind, row.ref, row.value_minor, from_micros(row.occurred_at).hour) for row in rows] == [
        ("Order Completed", "1", 201, 12),
        ("Order Cancelled", "C2", 101, 8),
        ("Order Completed", "3", 1000, 8),
        ("Order Cancelled", "3", 200, 8),
    ]
    assert all(row.is_imported and row.received_at == row.occurred_at for row in rows)
    assert from_micros(rows[0].occurred_at).minute == 0


def test_importing_twice_changes_nothing(any_database: Database, tmp_path: Path, now: datetime):
    """The second import finds every event in the log."""
    path = write(tmp_path, HEAD + "1,a,2,2011-03-01 12:00:00,1,7,UK\nC2,a,-2,2011-03-01 13:00:00,1,7,UK\n")
    import_orders(any_database, path, now=now)
    again = import_orders(any_database, path, now=now)

    assert (again.events_stored, again.duplicates) == (0, 2)
    assert len(events(any_database)) == 2


def test_a_bad_line_is_set_aside_with_its_reason_and_costs_nothing_else(
    database: Database, tmp_path: Path, now: datetime
):
    """Each broken line lands beside the file as it was, with line number and reason; the good one is imported."""
    bad = {
        "2,a,1,2011-03-01 12:00:00,1,,UK": "no contact: CustomerID is empty",
        "3,a,1,tomorrow,1,7,UK": "InvoiceDate is no date; write it as 2011-03-01 12:30",
        "4,a,1,2099-03-01 12:00:00,1,7,UK": "InvoiceDate lies in the future",
        "5,a,1,1960-03-01 12:00:00,1,7,UK": "InvoiceDate lies before 1970",
        "6,a,inf,2011-03-01 12:00:00,1,7,UK": "Quantity is no number other than 0",
        "7,a,0,2011-03-01 12:00:00,1,7,UK": "Quantity is no number other than 0",
        "8,a,1,2011-03-01 12:00:00,NaN,7,UK": "UnitPrice is no finite number",
        "9,a,1,2011-03-01 12:00:00,-inf,7,UK": "UnitPrice is no finite number",
        "10,a,1,2011-03-01 12:00:00,-5,7,UK": "UnitPrice is negative: a correction of the books, no order",
        "11,a,1,2011-03-01 12:00:00,1e30,7,UK": "UnitPrice is beyond all bounds",
        ",a,1,2011-03-01 12:00:00,1,7,UK": "InvoiceNo is empty",
        "x" * 101 + ",a,1,2011-03-01 12:00:00,1,7,UK": "InvoiceNo is longer than 100 or holds NUL",
        "1,a,1,2011-03-01 12:30:00,1,8,UK": "the order belongs to another contact",
    }
    path = write(tmp_path, HEAD + "1,a,1,2011-03-01 12:00:00,1,7,UK\n" + "\n".join(bad) + "\n")
    report = import_orders(database, path, now=now)
    rejected = pd.read_csv(tmp_path / "orders.csv.rejected.csv", dtype=str, keep_default_na=False)

    assert (report.rows, report.orders, report.set_aside) == (14, 1, 13)
    assert report.rejects_path == tmp_path / "orders.csv.rejected.csv"
    assert list(rejected["reason"]) == list(bad.values())
    assert list(rejected["line"]) == [str(number) for number in range(3, 16)]
    assert rejected.drop(columns=["line", "reason"]).apply(",".join, axis=1).tolist() == list(bad)
    assert sum(report.reasons.values()) == 13


def test_local_times_are_read_in_their_zone(database: Database, tmp_path: Path, now: datetime):
    """Winter, summer, the hour that comes twice (the first is meant) and the hour that never was (moved on)."""
    path = write(
        tmp_path,
        HEAD
        + "1,a,1,2011-01-10 12:00:00,1,7,UK\n"
        + "2,a,1,2011-03-27 01:30:00,1,7,UK\n"
        + "3,a,1,2011-07-10 12:00:00,1,7,UK\n"
        + "4,a,1,2011-10-30 01:30:00,1,7,UK\n",
    )
    import_orders(database, path, now=now, timezone="Europe/London")

    assert [from_micros(row.occurred_at).strftime("%m-%d %H:%M") for row in events(database)] == [
        "01-10 12:00",
        "03-27 01:00",
        "07-10 11:00",
        "10-30 00:30",
    ]
    assert [row.hour_of_week % 24 for row in events(database)] == [12, 2, 12, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("19970131", "1997-01-31T00:00:00"),
        ("2011-03-31", "2011-03-31T00:00:00"),
        ("2011-03-31T08:15:30+02:00", "2011-03-31T06:15:30"),
        ("2011-03-31T08:15:30Z", "2011-03-31T08:15:30"),
        ("3/31/2011 8:26", "2011-03-31T08:26:00"),
        ("31/3/2011 8:26", "2011-03-31T08:26:00"),
        ("31.03.2011", "2011-03-31T00:00:00"),
    ],
)
def test_dates_are_read_in_the_form_that_fits(
    text: str, expected: str, database: Database, tmp_path: Path, now: datetime
):
    """ISO, compact, month first, day first, with a zone of their own or without."""
    import_orders(database, write(tmp_path, HEAD + f"1,a,1,{text},1,7,UK\n"), now=now)

    assert from_micros(events(database)[0].occurred_at).isoformat() == f"{expected}+00:00"


def test_dates_that_fit_two_forms_are_not_guessed(database: Database, tmp_path: Path, now: datetime):
    """3/4/2011 may be March or April: the import says so instead of choosing."""
    path = write(tmp_path, HEAD + "1,a,1,3/4/2011 8:26,1,7,UK\n")

    with pytest.raises(Invalid, match="write them as 2011-03-01"):
        import_orders(database, path, now=now)


@pytest.mark.parametrize(
    ("head", "missing"),
    [
        ("InvoiceNo,Quantity,InvoiceDate,UnitPrice,Kunde", "contact"),
        ("InvoiceNo,Quantity,Tag,UnitPrice,CustomerID", "date"),
        ("InvoiceNo,Quantity,InvoiceDate,Preis,CustomerID", "price"),
        ("Nummer,Quantity,InvoiceDate,UnitPrice,CustomerID", "order_id"),
    ],
)
def test_wrong_columns_are_named_with_the_remedy(
    head: str, missing: str, database: Database, tmp_path: Path, now: datetime
):
    """The error names the field, the columns that there are, and the option that helps."""
    path = write(tmp_path, head + "\n1,1,2011-01-01,1,1\n")

    with pytest.raises(Invalid) as refusal:
        import_orders(database, path, now=now)

    assert f"no column for {missing}" in refusal.value.detail
    assert head.replace(",", ", ") in refusal.value.detail
    assert f"--map {missing}=Column" in refusal.value.detail


def test_mapped_columns_are_read(database: Database, tmp_path: Path, now: datetime):
    """`--map` names what the file calls otherwise; a wrong field or column is refused by name."""
    path = write(tmp_path, "Nummer,Menge,Tag,Preis,Kunde\n1,2,2011-01-01,3.5,k\n")
    mapping = {"order_id": "Nummer", "quantity": "Menge", "date": "Tag", "price": "Preis", "contact": "Kunde"}
    report = import_orders(database, path, now=now, mapping=mapping)

    assert report.columns == mapping
    assert events(database)[0].value_minor == 700
    with pytest.raises(Invalid, match="'Kundin'"):
        import_orders(database, path, now=now, mapping=mapping | {"contact": "Kundin"})
    with pytest.raises(Invalid, match="no field 'customer'"):
        import_orders(database, path, now=now, mapping={"customer": "Kunde"})


def test_a_file_without_order_ids_has_an_order_a_line(database: Database, tmp_path: Path, now: datetime):
    """As in CDNOW: contact, day, total; two equal lines are two orders, and importing again changes nothing."""
    text = "customer_id,date,number_of_cds,dollar_value\n4,19970101,2,29.33\n4,19970101,2,29.33\n5,19970101,1,0\n"
    path = tmp_path / "cds.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    report = import_orders(database, path, now=now)
    again = import_orders(database, path, now=now)

    assert (report.orders, report.contacts, again.events_stored) == (3, 2, 0)
    assert sorted(row.value_minor or 0 for row in events(database)) == [0, 2933, 2933]


def test_a_dry_run_writes_nothing(database: Database, tmp_path: Path, now: datetime):
    """It reports the same counts and leaves log, contacts and folder as they were."""
    path = write(tmp_path, HEAD + "1,a,1,2011-03-01 12:00:00,1,7,UK\n2,a,1,2011-03-01 12:00:00,1,,UK\n")
    report = import_orders(database, path, now=now, dry_run=True)

    assert (report.orders, report.set_aside, report.events_stored, report.rejects_path) == (1, 1, 0, None)
    assert events(database) == []
    assert [found.name for found in tmp_path.glob("*.rejected.csv")] == []


def test_an_import_asks_nobody_for_consent(database: Database, tmp_path: Path, now: datetime):
    """Contacts come with their address and the consent unknown; a bad address is left out."""
    text = "order_id,customer_id,date,total,email\n1,7,2011-03-01,5,Ann@Shop.example\n2,8,2011-03-01,5,none at all\n"
    import_orders(database, write(tmp_path, text), now=now)
    with database.reading() as session:
        contacts = {row.user_id: row for row in session.scalars(select(ContactRow))}
        states = consent_states(session, [row.contact_key for row in contacts.values()], "marketing")

    assert (contacts["7"].email, contacts["8"].email) == ("Ann@shop.example", None)
    assert set(states.values()) == {"unknown"}


@pytest.mark.parametrize("name", ["missing.csv", "orders.xlsx", "broken.parquet"])
def test_a_file_that_is_none_is_named(name: str, database: Database, tmp_path: Path, now: datetime):
    """Missing, of another kind, or damaged: the message names the file and what is understood."""
    if name != "missing.csv":
        write(tmp_path, "junk", name)

    with pytest.raises((Invalid, NotFound), match=name):
        import_orders(database, tmp_path / name, now=now)


def test_rejects_never_land_in_a_folder_that_is_read_only(database: Database, tmp_path: Path, now: datetime):
    """Beside a write-protected file they go to the folder that was named."""
    folder = tmp_path / "given"
    folder.mkdir()
    path = write(folder, HEAD + "1,a,1,2011-03-01 12:00:00,1,,UK\n")
    folder.chmod(0o555)
    try:
        report = import_orders(database, path, now=now, rejects_folder=tmp_path / "mine")
    finally:
        folder.chmod(0o755)

    assert report.rejects_path == tmp_path / "mine" / "orders.csv.rejected.csv"
    assert [found.name for found in folder.iterdir()] == ["orders.csv"]


@pytest.mark.data
def test_counts_of_a_real_file_agree_with_a_direct_count(
    database: Database, data_folder: Path, tmp_path: Path, now: datetime
):
    """320,705 lines of a British wholesaler: orders, cancellations, contacts, set-aside lines and money; then again."""
    path = data_folder / "online_retail_to_2011-08-31.parquet"
    report = import_orders(database, path, now=now, timezone="Europe/London", rejects_folder=tmp_path)

    raw = pd.read_parquet(path)
    known = raw[raw["CustomerID"].notna()]
    cancelled = known["InvoiceNo"].str.startswith("C")
    assert report.rows == len(raw) == 320_705
    assert report.orders == known.loc[~cancelled, "InvoiceNo"].nunique()
    assert report.cancellations == known.loc[cancelled, "InvoiceNo"].nunique()
    assert report.set_aside == raw["CustomerID"].isna().sum() == sum(report.reasons.values())
    assert report.contacts == known["CustomerID"].nunique()
    with database.reading() as session:
        sums = dict(
            session.execute(select(EventRow.kind, func.sum(EventRow.value_minor)).group_by(EventRow.kind)).all()
        )
    pence = (known["Quantity"] * known["UnitPrice"] * 100).abs().round()
    assert abs(sums["Order Completed"] - pence[~cancelled].sum()) < 200  # prices of three decimals, rounded half up
    assert abs(sums["Order Cancelled"] - pence[cancelled].sum()) < 20
    assert import_orders(database, path, now=now, timezone="Europe/London", rejects_folder=tmp_path).events_stored == 0


def test_an_imported_contact_exists_since_its_first_order(database, tmp_path, now):
    """An audience as of an instant in the past holds who had bought by then."""
    path = tmp_path / "orders.csv"
    path.write_text("order_id,customer_id,date,total\n1,a,2025-01-05,10\n2,a,2025-03-01,10\n3,b,2025-02-01,5\n")
    import_orders(database, path, now=now)
    with database.reading() as session:
        rows = session.execute(select(ContactRow.user_id, ContactRow.created_at)).all()

    assert {user: at.date().isoformat() for user, at in rows} == {"a": "2025-01-05", "b": "2025-02-01"}


def test_an_import_never_overrules_an_address_that_the_contact_told(database, tmp_path, now):
    """What was identified since the file was written stands, however often the file is read."""
    path = tmp_path / "orders.csv"
    path.write_text("order_id,customer_id,date,total,email\n1,a,2025-01-05,10,old@example.com\n")
    import_orders(database, path, now=now)
    with database.writing() as session:
        key = session.scalar(select(ContactRow.contact_key))
        update_traits(session, {key: {"email": "new@example.com"}}, now=now)
    import_orders(database, path, now=now)
    with database.reading() as session:
        assert session.scalar(select(ContactRow.email)) == "new@example.com"
