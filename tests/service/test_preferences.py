"""Laws of what contacts ask for themselves."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from features.vocabulary import SUBSCRIBED, UNSUBSCRIBED
from service.database import Database
from service.erase import erase_contacts
from service.errors import Invalid
from service.flow.deliver import claim
from service.preferences import (
    PREFERENCES_CHANGED,
    Changed,
    Preferences,
    Wishes,
    preferences_of,
    set_preferences,
    weekly_caps,
)
from service.settings import Settings
from service.suppression import mailable, topics_in_force
from service.tables import ConsentRow, PreferenceRow
from tests.service.mailing import TOPIC, add_template, events, plan, send_row, states, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def ask(database: Database, *wishes: Wishes, now: datetime = NOW) -> Changed:
    with database.writing() as session:
        return set_preferences(session, wishes, source="preferences page", now=now)


def test_wishes_become_lines_rows_and_events(any_database: Database) -> None:
    """Topics go to the ledger, the rest to the preferences; each change is one event; asking again changes nothing."""
    keys = subscribe(any_database, 3, now=NOW)
    wishes = [
        Wishes(keys[0], {TOPIC: False, "sales": True}, Preferences(NOW + 14 * DAY, 2), send_id=7, campaign_id="spring"),
        Wishes(keys[1], {TOPIC: True}),
        Wishes(keys[2], {}, Preferences(None, 1)),
    ]
    assert ask(any_database, *wishes) == Changed(subscribed=1, unsubscribed=1, preferences=2)
    assert ask(any_database, *wishes, now=NOW + DAY) == Changed(0, 0, 0)
    with any_database.reading() as session:
        force = topics_in_force(session, keys)
        asked = preferences_of(session, keys)
        [line] = session.scalars(select(ConsentRow).where(ConsentRow.topic == "sales"))
    assert (force[keys[0], TOPIC], force[keys[0], "sales"], force[keys[1], TOPIC]) == (
        "unsubscribed",
        "subscribed",
        "subscribed",
    )
    assert asked == {keys[0]: Preferences(NOW + 14 * DAY, 2), keys[2]: Preferences(None, 1)}
    assert (line.source, line.at) == ("preferences page", NOW)
    [left], [came] = events(any_database, UNSUBSCRIBED), events(any_database, SUBSCRIBED)
    assert (left.ref, json.loads(left.properties or "")) == (
        "7",
        {"topic": TOPIC, "source": "preferences page", "campaign_id": "spring"},
    )
    assert (came.ref, json.loads(came.properties or "")["topic"]) == (None, "sales")
    changed = [json.loads(event.properties or "") for event in events(any_database, PREFERENCES_CHANGED)]
    assert [(said["snoozed_until"], said["most_per_week"]) for said in changed] == [
        ("2026-03-16T09:00:00+00:00", 2),
        (None, 1),
    ]


def test_a_break_can_be_ended_and_a_refusal_taken_back(any_database: Database) -> None:
    """The newest wish holds, in both directions."""
    [key] = subscribe(any_database, 1, now=NOW)
    ask(any_database, Wishes(key, {TOPIC: False}, Preferences(NOW + DAY, 1)))
    ask(any_database, Wishes(key, {TOPIC: True}, Preferences()), now=NOW + timedelta(hours=1))
    with any_database.reading() as session:
        assert topics_in_force(session, [key]) == {(key, TOPIC): "subscribed"}
        assert preferences_of(session, [key]) == {key: Preferences()}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Preferences(NOW, None), "has passed"),
        (Preferences(NOW + 367 * DAY, None), "366 days away"),
        (Preferences(None, 0), "give 1 to 50"),
        (Preferences(None, 51), "give 1 to 50"),
    ],
)
def test_impossible_wishes_are_refused(asked: Preferences, says: str, database: Database) -> None:
    """The error names the value and the limit, and nothing is kept, not of the neighbours either."""
    keys = subscribe(database, 2, now=NOW)
    with pytest.raises(Invalid, match=says):
        ask(database, Wishes(keys[0], {TOPIC: False}), Wishes(keys[1], {}, asked))
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(PreferenceRow)) == 0
        assert topics_in_force(session, keys) == {(key, TOPIC): "subscribed" for key in keys}


def test_a_break_bars_marketing_mail_until_it_ends(any_database: Database, settings: Settings) -> None:
    """The claim closes what falls into a break, with the reason; order mails leave, and marketing mail after it."""
    add_template(any_database, now=NOW)
    resting, awake = subscribe(any_database, 2, now=NOW)
    ask(any_database, Wishes(resting, {}, Preferences(NOW + 14 * DAY)))
    marketing, other = plan(any_database, [resting, awake], now=NOW + DAY)
    [order] = plan(any_database, [resting], now=NOW + DAY, stream="transactional")
    [after] = plan(any_database, [resting], now=NOW + 14 * DAY)
    with any_database.writing() as session:
        claim(session, now=NOW + DAY, limit=10, lease_seconds=60, settings=settings)
    assert states(any_database) == {marketing: "suppressed", other: "claimed", order: "claimed", after: "planned"}
    assert send_row(any_database, marketing).reason == "snoozed until 2026-03-16T09:00+00:00"
    with any_database.writing() as session:
        claim(session, now=NOW + 14 * DAY, limit=10, lease_seconds=60, settings=settings)
    assert states(any_database)[after] == "claimed"
    with any_database.reading() as session:
        keys = [resting, awake]
        assert mailable(session, keys, TOPIC, pepper=settings.pepper) == {resting: None, awake: None}
        barred = mailable(session, keys, TOPIC, pepper=settings.pepper, now=NOW + DAY)
    assert barred[resting] is not None
    assert barred[awake] is None


@pytest.mark.parametrize("cap", [0, 3])
def test_a_contacts_own_cap_holds(cap: int, any_database: Database, settings: Settings) -> None:
    """Of four mails in a week somebody who wants one gets one; the others get what the installation allows."""
    modest, usual = subscribe(any_database, 2, now=NOW)
    ask(any_database, Wishes(modest, {}, Preferences(None, 1)))
    sends = {key: [plan(any_database, [key], now=NOW + i * DAY)[0] for i in range(4)] for key in (modest, usual)}
    mine = settings.model_copy(update={"frequency_cap": cap})
    for day in range(4):
        with any_database.writing() as session:
            claim(session, now=NOW + day * DAY, limit=10, lease_seconds=60, settings=mine)
    found = states(any_database)
    claimed = {key: sum(found[send] == "claimed" for send in sends[key]) for key in sends}
    assert claimed == {modest: 1, usual: cap or 4}
    assert send_row(any_database, sends[modest][1]).reason == "frequency cap: 1 marketing mails in 7 days, at most 1"


def test_the_lower_cap_counts(database: Database) -> None:
    """The contact's wish lowers the installation's cap and never raises it."""
    keys = subscribe(database, 3, now=NOW)
    ask(database, Wishes(keys[0], {}, Preferences(None, 2)), Wishes(keys[1], {}, Preferences(None, 9)))
    with database.reading() as session:
        assert weekly_caps(session, keys, 3) == {keys[0]: 2, keys[1]: 3, keys[2]: 3}
        assert weekly_caps(session, keys, 0) == {keys[0]: 2, keys[1]: 9}


def test_preferences_go_with_an_erased_contact(any_database: Database, settings: Settings) -> None:
    """Nothing of them stays, and wishes that come later are nobody's."""
    key, other = subscribe(any_database, 2, now=NOW)
    wishes = [Wishes(one, {"sales": False}, Preferences(NOW + DAY, 1)) for one in (key, other)]
    ask(any_database, *wishes)
    erase_contacts(any_database, settings, ["c0"], now=NOW)
    assert ask(any_database, wishes[0]) == Changed(0, 0, 0)
    with any_database.reading() as session:
        assert list(session.scalars(select(PreferenceRow.contact_key))) == [other]
        assert set(session.scalars(select(ConsentRow.contact_key))) == {other}
