"""What contacts ask for themselves: their topics, a break, how often; from the preferences page or a program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.events import NewEvent, append
from features.tables import allocate, to_micros
from features.vocabulary import SUBSCRIBED, UNSUBSCRIBED
from service.errors import Invalid
from service.suppression import Consent, identities_of, set_consent, topics_in_force
from service.tables import ContactRow, PreferenceRow

#: Custom event of a break or a frequency that was asked for.
PREFERENCES_CHANGED = "Preferences Changed"
#: Longest break: whoever wants a longer one wants to unsubscribe.
LONGEST_SNOOZE = timedelta(days=366)
#: Most mails a week that somebody can ask for.
LARGEST_CAP = 50

_QUERY_CHUNK = 10_000


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a contact asked for beside its topics."""

    #: No marketing mail before it.
    snoozed_until: datetime | None = None
    #: Marketing mails in any seven days at most; None: the installation's cap.
    most_per_week: int | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a contact asks for now."""

    contact_key: int
    #: Topic → whether it wants mail about it; a topic that is not named stays as it is.
    topics: Mapping[str, bool] = field(default_factory=dict)
    #: None: they stay as they are.
    preferences: Preferences | None = None
    #: The mail it came from, if it came from one, and that mail's campaign.
    send_id: int | None = None
    campaign_id: str | None = None
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of wishes, over all contacts."""

    subscribed: int
    unsubscribed: int
    #: Contacts whose break or frequency changed.
    preferences: int


def preferences_of(session: Session, contact_keys: Iterable[int]) -> dict[int, Preferences]:
    """Preferences of those of the contacts who ever stated any; one query for ten thousand contacts."""
    found: dict[int, Preferences] = {}
    for chunk in _chunks(dict.fromkeys(contact_keys)):
        query = select(PreferenceRow.contact_key, PreferenceRow.snoozed_until, PreferenceRow.most_per_week)
        rows = session.execute(query.where(PreferenceRow.contact_key.in_(chunk)))
        found |= {key: Preferences(until, most) for key, until, most in rows}
    return found


def weekly_caps(session: Session, contact_keys: Iterable[int], cap: int) -> dict[int, int]:
    """Marketing mails in any seven days at most, by contact: the installation's cap or the contact's own, if lower.

    Parameters
    ----------
    cap : int
        The installation's; 0 = none. Contacts without either are left out.
    """
    keys = list(dict.fromkeys(contact_keys))
    caps = dict.fromkeys(keys, cap) if cap else {}
    for key, asked in preferences_of(session, keys).items():
        if asked.most_per_week is not None:
            caps[key] = min(asked.most_per_week, caps.get(key, asked.most_per_week))
    return caps


def set_preferences(session: Session, wishes: Sequence[Wishes], *, source: str, now: datetime) -> Changed:
    """Carry out what contacts asked for: consent lines, preferences, and events of what changed; nothing of the rest.

    Asking for the same again changes nothing. To subscribe a contact that had unsubscribed is right here, for it is
    the person's own act: who carries wishes in must know that they are. Contacts that are no more are left out.

    Parameters
    ----------
    wishes : sequence of Wishes
        One a contact at most.
    source : str
        Where they were stated: ``preferences page``, ``api …``.

    Raises
    ------
    Invalid
        If a break is over already or too long, or a frequency is out of bounds.
    """
    for wish in wishes:
        _check(wish.preferences, now)
    if not wishes:
        return Changed(0, 0, 0)
    # Contacts before the ledger's counter before the log, like every writer; the counter's lock before the look.
    wanted = [wish.contact_key for wish in wishes]
    alive = {
        key
        for chunk in _chunks(wanted)
        for key in session.scalars(
            select(ContactRow.contact_key)
            .where(ContactRow.contact_key.in_(chunk))
            .order_by(ContactRow.contact_key)
            .with_for_update()
        )
    }
    wishes = [wish for wish in wishes if wish.contact_key in alive]
    allocate(session, "consent_id", 1)
    force = topics_in_force(session, alive)
    before = preferences_of(session, alive)
    identities = identities_of(session, alive)
    changes: list[Consent] = []
    rows: list[dict[str, object]] = []
    events: list[NewEvent] = []
    micros = to_micros(now)

    def log(wish: Wishes, kind: str, name: str, properties: Mapping[str, object], ref: str | None) -> None:
        events.append(
            NewEvent(
                contact_key=wish.contact_key,
                kind=kind,
                occurred_at=micros,
                message_id=f"kairos/preferences/{wish.contact_key}/{micros}/{name}",
                identity=identities[wish.contact_key],
                ref=ref,
                properties={**properties, "source": source, "campaign_id": wish.campaign_id},
                timezone=wish.timezone,
            )
        )

    for wish in wishes:
        ref = None if wish.send_id is None else str(wish.send_id)
        for topic, is_wanted in wish.topics.items():
            state = force.get((wish.contact_key, topic), "unknown")
            if state == ("subscribed" if is_wanted else "unsubscribed"):
                continue
            changes.append(Consent(wish.contact_key, topic, "subscribed" if is_wanted else "unsubscribed", source))
            kind = SUBSCRIBED if is_wanted else UNSUBSCRIBED
            log(wish, kind, f"{kind}/{topic}", {"topic": topic}, None if is_wanted else ref)
        asked = wish.preferences
        if asked is not None and asked != before.get(wish.contact_key, Preferences()):
            rows.append(
                {
                    "contact_key": wish.contact_key,
                    "snoozed_until": asked.snoozed_until,
                    "most_per_week": asked.most_per_week,
                    "updated_at": now,
                }
            )
            until = None if asked.snoozed_until is None else asked.snoozed_until.isoformat()
            properties = {"snoozed_until": until, "most_per_week": asked.most_per_week}
            log(wish, PREFERENCES_CHANGED, "preferences", properties, None)
    set_consent(session, changes, now=now)
    _keep(session, rows)
    if events:
        append(session, events, received_at=micros)
    wanted_now = sum(change.state == "subscribed" for change in changes)
    return Changed(wanted_now, len(changes) - wanted_now, len(rows))


def _check(asked: Preferences | None, now: datetime) -> None:
    if asked is None:
        return
    until, most = asked.snoozed_until, asked.most_per_week
    if until is not None and until <= now:
        raise Invalid(f"snoozed_until {until.isoformat()} has passed; give an instant to come, or null for no break")
    if until is not None and until > now + LONGEST_SNOOZE:
        raise Invalid(f"snoozed_until {until.isoformat()} is more than {LONGEST_SNOOZE.days} days away; unsubscribe")
    if most is not None and not 1 <= most <= LARGEST_CAP:
        raise Invalid(f"most_per_week {most} is out of bounds; give 1 to {LARGEST_CAP}, or null for the usual cap")


def _keep(session: Session, rows: list[dict[str, object]]) -> None:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    for start in range(0, len(rows), 1_000):
        statement = dialect.insert(PreferenceRow).values(rows[start : start + 1_000])
        session.execute(
            statement.on_conflict_do_update(
                index_elements=[PreferenceRow.contact_key],
                set_={name: statement.excluded[name] for name in ("snoozed_until", "most_per_week", "updated_at")},
            )
        )


def _chunks(items: Iterable[int]) -> Iterator[list[int]]:
    walk = iter(items)
    while chunk := list(islice(walk, _QUERY_CHUNK)):
        yield chunk
