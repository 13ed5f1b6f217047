"""The page that recipients see: a notice, or their mail preferences as a form that needs neither script nor cookie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi.responses import HTMLResponse
from liquid import BoundTemplate, Environment

from service.preferences import LARGEST_CAP, Preferences
from service.settings import CHECKOUT

NEVER_STORED = {"Cache-Control": "no-store, no-cache, must-revalidate, private, max-age=0", "Pragma": "no-cache"}
QUIET = NEVER_STORED | {"Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex, nofollow"}
_PAGE = QUIET | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    "X-Frame-Options": "DENY",
}
_FOLDERS = (CHECKOUT / "templates" / "pages", Path(__file__).parents[1] / "_templates" / "pages")

#: Breaks offered, in days.
BREAKS = {14: "Two weeks", 30: "One month", 90: "Three months"}
#: Frequencies offered, where they are below the installation's.
OFTEN = (1, 2)


@dataclass(frozen=True, slots=True)
class Choices:
    """What somebody may choose, and what holds now."""

    #: Topic that the mail was about.
    about: str
    #: Topic → what people read, in order.
    names: Mapping[str, str]
    #: Topics that are on.
    subscribed: frozenset[str]
    preferences: Preferences
    #: The installation's cap; 0 = none.
    cap: int


def notice(title: str, text: str, status: int = 200) -> HTMLResponse:
    """A page that says something."""
    return _page({"title": title, "text": text, "done": "", "form": False}, status)


def preferences_page(choices: Choices, *, now: datetime, done: str = "") -> HTMLResponse:
    """The form, and above it what was done."""
    asked = choices.preferences
    until = asked.snoozed_until if asked.snoozed_until is not None and asked.snoozed_until > now else None
    breaks = [_choice("", "No break", until is None)]
    if until is not None:
        breaks.append(_choice("keep", f"Until {until.day} {until:%B %Y}, as you asked", True))
    breaks += [_choice(str(days), says, False) for days, says in BREAKS.items()]
    usual = f"As we usually write: up to {choices.cap} a week" if choices.cap else "Whenever there is something new"
    offered = [most for most in OFTEN if not choices.cap or most < choices.cap]
    if asked.most_per_week is not None and asked.most_per_week not in offered:
        offered.append(asked.most_per_week)
    often = [_choice("", usual, asked.most_per_week is None)]
    often += [_choice(str(most), f"At most {most} a week", most == asked.most_per_week) for most in offered]
    return _page(
        {
            "title": "Your mail preferences",
            "text": "",
            "done": done,
            "form": True,
            "leaving": choices.names[choices.about] if choices.about in choices.subscribed else "",
            "topics": [
                {"name": name, "says": says, "on": name in choices.subscribed} for name, says in choices.names.items()
            ],
            "breaks": breaks,
            "often": often,
        },
        200,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """A form that came back."""

    #: one_click | unsubscribe | save | leave
    does: str
    #: Of the topics that were shown, whether they are wanted.
    topics: Mapping[str, bool]
    #: Days, ``keep``, or empty.
    snooze: str
    most: str


def read_answer(body: bytes) -> Answer:
    """What a POST to the page asks for; whatever is not the form's own wants out, as the mail program's one click does.

    References
    ----------
    Levine & Herkula (2017), RFC 8058, "Signaling One-Click Functionality for List Email Headers".
    """
    if b"List-Unsubscribe" in body and b"One-Click" in body:  # urlencoded or multipart, the words are the same
        return Answer("one_click", {}, "", "")
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=1_000) if body.count(b"&") < 1_000 else {}
    does = fields.get("do", ["unsubscribe"])[-1]
    wanted = set(fields.get("topic", ()))
    return Answer(
        does if does in ("save", "leave") else "unsubscribe",
        {topic: topic in wanted for topic in fields.get("shown", ())},
        fields.get("break", [""])[-1],
        fields.get("most", [""])[-1],
    )


def asked_preferences(answer: Answer, before: Preferences, *, now: datetime) -> Preferences:
    """Break and frequency as the form says them; what it never offered counts as not chosen."""
    until = None
    if answer.snooze == "keep":
        until = before.snoozed_until if before.snoozed_until is not None and before.snoozed_until > now else None
    elif answer.snooze in {str(days) for days in BREAKS}:
        until = now + timedelta(days=int(answer.snooze))
    # Looked up, not read: of thousands of digits Python makes no number.
    most = int(answer.most) if answer.most in {str(most) for most in range(1, LARGEST_CAP + 1)} else None
    return Preferences(until, most)


def _choice(value: str, says: str, is_on: bool) -> dict[str, Any]:
    return {"value": value, "says": says, "on": is_on}


@cache
def _template() -> BoundTemplate:
    folder = next(path for path in _FOLDERS if path.is_dir())
    return Environment(autoescape=True).from_string((folder / "recipient.html").read_text(encoding="utf-8"))


def _page(values: Mapping[str, Any], status: int) -> HTMLResponse:
    return HTMLResponse(_template().render(**values), status, _PAGE)
