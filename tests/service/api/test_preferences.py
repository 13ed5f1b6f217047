"""Laws of the preferences page, and of the same by programs."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from sqlalchemy import select

from features.contacts import resolve
from features.vocabulary import SUBSCRIBED, UNSUBSCRIBED
from service.clock import SimulatedClock
from service.database import Database
from service.erase import erase_contacts
from service.links import sign_unsubscribe
from service.preferences import PREFERENCES_CHANGED, Preferences, preferences_of
from service.settings import Settings
from service.suppression import Consent, set_consent, topics_in_force
from service.tables import ConsentRow
from tests.service.mailing import events, plan

EVIL = "<script>alert(1)</script>"


class Person:
    """A contact with a mail about news, and what its preferences are."""

    def __init__(self, database: Database, settings: Settings, now: datetime) -> None:
        self.database = database
        with database.writing() as session:
            self.key = resolve(session, ["user:42"], now=now)["user:42"]
            set_consent(session, [Consent(self.key, "news", "subscribed", "form")], now=now)
        [self.send_id] = plan(database, [self.key], now=now, state="accepted", topic="news", campaign_id="spring")
        self.path = f"/u/{sign_unsubscribe(settings.signing_key, self.send_id)}"

    def topics(self) -> dict[str, str]:
        with self.database.reading() as session:
            return {topic: state for (_, topic), state in topics_in_force(session, [self.key]).items()}

    def preferences(self) -> Preferences:
        with self.database.reading() as session:
            return preferences_of(session, [self.key]).get(self.key, Preferences())


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"topics": f"news=News & views, sales=Sales {EVIL}"})


@pytest.fixture
def person(database: Database, settings: Settings, now: datetime) -> Person:
    return Person(database, settings, now)


class Form(HTMLParser):
    """What a browser without scripts makes of a page: labels, boxes, radio buttons and what is chosen."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inputs: list[dict[str, str | None]] = []
        self.unlabelled = 0
        self._labels = 0
        self.lang = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.lang = values.get("lang") or self.lang
        self._labels += tag == "label"
        if tag == "input":
            self.inputs.append(values)
            self.unlabelled += values["type"] != "hidden" and not self._labels

    def handle_endtag(self, tag: str) -> None:
        self._labels -= tag == "label"

    def checked(self, name: str) -> list[str | None]:
        return [given["value"] for given in self.inputs if given["name"] == name and "checked" in given]

    def offered(self, name: str) -> list[str | None]:
        return [given["value"] for given in self.inputs if given["name"] == name]


def save(client: Any, person: Person, topics: list[str], snooze: str = "", most: str = "") -> Any:
    form = {"do": "save", "shown": ["news", "sales"], "topic": topics, "break": snooze, "most": most}
    return client.post(person.path, data=form)


def test_the_page_shows_what_holds(client: Any, person: Person) -> None:
    """Topics as they stand, breaks, frequencies below the cap of 3; labelled, in a language, escaped, no script."""
    answer = client.get(person.path)
    form = Form(answer.text)

    assert (answer.status_code, form.lang, form.unlabelled) == (200, "en", 0)
    assert form.offered("topic") == ["news", "sales"]
    assert form.checked("topic") == ["news"]
    assert (form.offered("break"), form.checked("break")) == (["", "14", "30", "90"], [""])
    assert (form.offered("most"), form.checked("most")) == (["", "1", "2"], [""])
    assert "script" not in form.tags
    assert "News &amp; views" in answer.text
    assert "Unsubscribe from News" in answer.text
    assert "width=device-width" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "no-store" in answer.headers["cache-control"]
    assert "set-cookie" not in answer.headers


def test_the_pages_colours_can_be_read(client: Any, person: Person) -> None:
    """Text on its ground has a contrast of 4.5 at least, by day and by night (WCAG 2.2, 1.4.3)."""
    page = client.get(person.path).text

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    themes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", found)) for found in re.findall(r":root \{(.*?)\}", page)]
    assert len(themes) == 2
    for colours in themes:
        pairs = [("ink", "paper"), ("quiet", "paper"), ("act", "paper"), ("on-act", "act"), ("ink", "good")]
        for text, ground in pairs:
            lighter, darker = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


def test_saving_does_what_was_chosen(client: Any, person: Person, database: Database, now: datetime) -> None:
    """Topics change both ways, the break and the cap hold, the page then shows them; saving again changes nothing."""
    answer = save(client, person, ["sales"], "14", "1")
    form = Form(answer.text)

    assert answer.status_code == 200
    assert person.topics() == {"news": "unsubscribed", "sales": "subscribed"}
    assert person.preferences() == Preferences(now + timedelta(days=14), 1)
    assert 'role="status"' in answer.text
    assert (form.checked("topic"), form.checked("break"), form.checked("most")) == (["sales"], ["keep"], ["1"])
    assert "Until 16 March 2026" in answer.text
    save(client, person, ["sales"], "keep", "1")
    assert [len(events(database, kind)) for kind in (UNSUBSCRIBED, SUBSCRIBED, PREFERENCES_CHANGED)] == [1, 1, 1]
    with database.reading() as session:
        lines = session.scalars(select(ConsentRow).order_by(ConsentRow.consent_id)).all()
    assert [line.source for line in lines] == ["form", "preferences page", "preferences page"]


def test_who_left_may_come_back(client: Any, person: Person, clock: SimulatedClock) -> None:
    """A box that is ticked anew is the person's own act; a break ends when none is chosen."""
    save(client, person, [], "90", "2")
    assert person.topics() == {"news": "unsubscribed"}  # sales was never on: no refusal to note
    clock.move_to(clock.now() + timedelta(minutes=1))
    save(client, person, ["news"])
    assert person.topics() == {"news": "subscribed"}
    assert person.preferences() == Preferences()


def test_a_break_that_is_over_is_not_shown(client: Any, person: Person, clock: SimulatedClock) -> None:
    """After its end there is no break to keep, and saving the page works."""
    save(client, person, ["news"], "14")
    clock.move_to(clock.now() + timedelta(days=15))
    assert Form(client.get(person.path).text).offered("break") == ["", "14", "30", "90"]
    assert save(client, person, ["news"], "keep").status_code == 200
    assert person.preferences().snoozed_until is None


@pytest.mark.parametrize("does", ["unsubscribe", "leave"])
def test_leaving_by_the_pages_buttons(does: str, client: Any, person: Person, database: Database) -> None:
    """One button leaves the mail's topic, the other everything, also what was never asked for."""
    for _ in range(2):
        answer = client.post(person.path, data={"do": does})
        assert answer.status_code == 200
        assert "no more" in answer.text
    left = {"news": "unsubscribed"} | ({"sales": "unsubscribed"} if does == "leave" else {})
    assert person.topics() == left
    refs = {event.ref for event in events(database, UNSUBSCRIBED)}
    assert refs == {str(person.send_id)}
    assert len(events(database, UNSUBSCRIBED)) == len(left)


@pytest.mark.parametrize(
    "form",
    [
        {"do": "save", "shown": ["bogus", EVIL], "topic": ["bogus", EVIL], "break": "1e9", "most": "-1"},
        {"do": "save", "shown": "news", "topic": "news", "break": "99999999999999999999", "most": "9" * 30},
        {"do": "save", "shown": "news", "topic": "news", "break": "²", "most": "٣"},
    ],
)
def test_a_forged_form_chooses_only_what_there_is(form: dict[str, Any], client: Any, person: Person) -> None:
    """Topics that the page did not offer, and breaks and frequencies that it does not know, change nothing."""
    answer = client.post(person.path, data=form)

    assert answer.status_code == 200
    assert EVIL not in answer.text
    assert person.topics() == {"news": "subscribed"}
    assert person.preferences().snoozed_until is None


def test_an_erased_contact_has_nothing_to_choose(
    client: Any, person: Person, database: Database, settings: Settings, now: datetime
) -> None:
    """The page says so, whatever is sent to it; one click is still answered well."""
    erase_contacts(database, settings, ["42"], now=now)
    for answer in (client.get(person.path), save(client, person, ["news"]), client.post(person.path)):
        assert (answer.status_code, "<form" in answer.text) == (200, False)
    assert client.post(person.path, data={"List-Unsubscribe": "One-Click"}).status_code == 200
    assert person.topics() == {}


# -- by programs -----------------------------------------------------------------------------------


def test_programs_read_and_set_preferences(caller: Callable[..., Any], person: Person, now: datetime) -> None:
    """What was put is what is got; topics that are not named stay; keys need their scopes."""
    path = "/v1/contacts/42/preferences"
    until = (now + timedelta(days=3)).isoformat()
    body = {"topics": {"sales": True}, "snoozed_until": until, "most_per_week": 2}
    write, read = caller("write"), caller("read")

    put = write("PUT", path, json=body)
    assert put.status_code == 200, put.text
    got = read("GET", path).json()
    assert got == put.json()
    assert got["topics"] == {"news": "subscribed", "sales": "subscribed"}
    assert (got["most_per_week"], got["frequency_cap"]) == (2, 3)
    assert datetime.fromisoformat(got["snoozed_until"]) == now + timedelta(days=3)
    assert read("PUT", path, json=body).status_code == 403
    assert write("PUT", path, json={}).json()["snoozed_until"] is None


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"topics": {"bogus": True}}, 422, "there are news, sales"),
        ({"snoozed_until": "2020-01-01T00:00:00Z"}, 422, "has passed"),
        ({"snoozed_until": "2026-04-01T00:00:00"}, 422, "no time zone"),
        ({"most_per_week": 0}, 422, "1 to 50"),
        ({"most": 1}, 422, "most"),
    ],
)
def test_what_programs_cannot_ask_for(
    body: dict[str, Any], status: int, says: str, caller: Callable[..., Any], person: Person
) -> None:
    """A problem that names the value, and nothing changes."""
    answer = caller("write")("PUT", "/v1/contacts/42/preferences", json=body)
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert person.topics() == {"news": "subscribed"}
    assert caller("read")("GET", "/v1/contacts/nobody/preferences").status_code == 404


def test_programs_bring_nobody_back_by_themselves(caller: Callable[..., Any], person: Person, client: Any) -> None:
    """Who unsubscribed comes back by an act of the person alone, which the ledger then names."""
    save(client, person, [])
    put = caller("write")
    refused = put("PUT", "/v1/contacts/42/preferences", json={"topics": {"news": True}})
    assert refused.status_code == 409
    assert person.topics() == {"news": "unsubscribed"}
    told = put("PUT", "/v1/contacts/42/preferences", json={"topics": {"news": True}, "source": "account page"})
    assert told.status_code == 200
    assert person.topics() == {"news": "subscribed"}
    with person.database.reading() as session:
        newest = session.scalars(select(ConsentRow.source).order_by(ConsentRow.consent_id.desc()).limit(1)).one()
    assert newest.endswith(": account page")
