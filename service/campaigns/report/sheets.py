"""Reports as CSV that a spreadsheet cannot take for formulas, and that reads back as it was written.

A text that begins with ``= + - @``, a tab, a carriage return or an apostrophe gets an apostrophe in front; numbers stay
numbers. Reading takes one apostrophe off, so every text comes back.

References
----------
OWASP, "CSV Injection". RFC 4180 for quotes and line breaks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def sheet(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as CSV with a line of names; columns are those of all rows, in the order in which they come.

    Examples
    --------
    >>> sheet([{"name": "one, two", "sends": -3}]).splitlines()
    ['name,sends', '"one, two",-3']
    """
    listed = [flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in listed for name in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([cell(name) for name in names])
    writer.writerows([cell(row.get(name)) for name in names] for row in listed)
    return text.getvalue()


def read_sheet(text: str) -> list[dict[str, str]]:
    """The cells of `sheet` as texts, by name; what was None is empty."""
    lines = list(csv.reader(io.StringIO(text, newline="")))
    names = [plain_text(one) for one in lines[0]] if lines else []
    return [dict(zip(names, (plain_text(one) for one in line), strict=True)) for line in lines[1:]]


def cell(value: Any) -> str:
    """A value as a cell.

    Examples
    --------
    >>> cell("@cmd"), cell(-1.5), cell(None), cell("plain")
    ("'@cmd", '-1.5', '', 'plain')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def plain_text(text: str) -> str:
    """The text that `cell` made ``text`` of."""
    return text[1:] if text.startswith("'") else text


def flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested figures as one row: the names of the levels joined by dots, bounds of intervals as low and high.

    Examples
    --------
    >>> flat({"opens": {"rate": 0.5, "interval": [0.4, 0.6]}, "id": "a"})
    {'opens.rate': 0.5, 'opens.low': 0.4, 'opens.high': 0.6, 'id': 'a'}
    """
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name == "interval":
            low, high = value if value is not None else (None, None)
            cells |= {f"{before}low": low, f"{before}high": high}
        elif isinstance(value, Mapping):
            cells |= flat(value, f"{before}{name}.")
        elif not isinstance(value, list | tuple):
            cells[f"{before}{name}"] = value
    return cells


def campaign_sheet(report: Mapping[str, Any]) -> str:
    """A campaign's report as CSV: the whole in the first row, then its parts, each with the figures of its mails."""
    head = {name: report[name] for name in ("campaign_id", "name", "status", "currency", "planned")}
    whole = head | {"part": "campaign", "value": None} | report["mails"] | {"sends": report["sends"]}
    profit = report["incremental"]
    whole["incremental"] = {
        name: profit[name] for name in ("per_contact_minor", "total_minor", "verdict", "not_before", "sentence")
    }
    rows = [whole]
    for part, name in (
        ("by_assigned_local_hour", "hour"),
        ("by_actual_local_hour", "hour"),
        ("by_hour_reason", "hour_reason"),
        ("by_mailbox", "mailbox"),
    ):
        rows += [{"part": part, "value": row[name]} | row for row in report[part]]
    for experiment in report["experiments"]:
        rows += [
            {
                "part": f"experiment {experiment['id']}",
                "value": arm["id"],
                "arm": {key: arm[key] for key in ("sends", "successes", "rate", "interval", "status")},
            }
            for arm in experiment["arms"]
        ]
    return sheet(rows)
