"""Contacts: the names under which they come, their traits, and the key everything else uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table, bindparam, insert, select, update
from sqlalchemy.orm import Session

from features.events import IN_CHUNK, zone_of
from features.tables import ContactRow, CounterRow, IdentityRow, allocate

#: Prefix of the ``user_id`` of a contact that nobody has named yet.
ANONYMOUS = "anonymous_id:"

_CONTACT = cast(Table, ContactRow.__table__)
_IDENTITY = cast(Table, IdentityRow.__table__)


def user_id_of(identity: str) -> str:
    """The ``user_id`` under which the contact of an identity is known outside.

    Raises
    ------
    ValueError
        If ``identity`` is neither ``user:…`` nor ``anonymous:…``, is empty after the colon, or too long.

    Examples
    --------
    >>> user_id_of("user:42"), user_id_of("anonymous:abc")
    ('42', 'anonymous_id:abc')
    """
    source, _, name = identity.partition(":")
    if source not in ("user", "anonymous") or not name or "\x00" in name:
        raise ValueError(f"identity {identity[:80]!r} is not of the form 'user:<id>' or 'anonymous:<id>'")
    user_id = name if source == "user" else ANONYMOUS + name
    if len(user_id) > 255:
        raise ValueError(
            f"identity {identity[:80]!r}… has {len(name)} characters after the colon; at most 240 are kept"
        )
    return user_id


def resolve(session: Session, identities: Sequence[str], *, now: datetime) -> dict[str, int]:
    """The ``contact_key`` of every identity; contacts nobody knew are created, in one batch.

    Safe beside other writers: who creates contacts holds the lock of the key counter to the commit. Call it before
    `features.events.append` in a transaction, so that all writers take their locks in one order.

    Parameters
    ----------
    session : Session
        An open writing transaction.
    identities : sequence of str
        ``user:<id>`` or ``anonymous:<id>``; repeats are fine.
    now : datetime
        Aware UTC; becomes ``created_at`` of what is new.

    Raises
    ------
    ValueError
        If an identity has another form (see `user_id_of`). Nothing is created then.
    """
    user_ids = {identity: user_id_of(identity) for identity in identities}
    known = _keys_of(session, list(user_ids))
    if len(known) == len(user_ids):
        return known
    session.execute(update(CounterRow).where(CounterRow.name == "contact_key").values(value=CounterRow.value))
    known |= _keys_of(session, [identity for identity in user_ids if identity not in known])
    missing = [identity for identity in user_ids if identity not in known]
    if not missing:
        return known
    keys = find(session, [user_ids[identity] for identity in missing])
    fresh = list(dict.fromkeys(user_ids[identity] for identity in missing if user_ids[identity] not in keys))
    if fresh:
        first = allocate(session, "contact_key", len(fresh))
        created = dict(zip(fresh, range(first, first + len(fresh)), strict=True))
        keys |= created
        session.connection().execute(
            insert(_CONTACT),
            [
                {"contact_key": key, "user_id": user_id, "traits": {}, "created_at": now, "updated_at": now}
                for user_id, key in created.items()
            ],
        )
    new = {identity: keys[user_ids[identity]] for identity in missing}
    session.connection().execute(
        insert(_IDENTITY),
        [{"identity": identity, "contact_key": key, "created_at": now} for identity, key in new.items()],
    )
    return known | new


def find(session: Session, user_ids: Iterable[str]) -> dict[str, int]:
    """The ``contact_key`` of every ``user_id`` that has a contact; the others are left out, nothing is created."""
    wanted = list(dict.fromkeys(user_ids))
    found: dict[str, int] = {}
    for start in range(0, len(wanted), IN_CHUNK):
        query = select(_CONTACT.c.user_id, _CONTACT.c.contact_key).where(
            _CONTACT.c.user_id.in_(wanted[start : start + IN_CHUNK])
        )
        found.update((row.user_id, row.contact_key) for row in session.execute(query))
    return found


def update_traits(
    session: Session,
    traits_by_key: Mapping[int, Mapping[str, Any]],
    *,
    now: datetime,
    timezone_source: str = "explicit",
) -> None:
    """Traits merged into those of each contact; a trait of value None is taken away.

    ``email`` and ``timezone`` go to their own columns, so that the address lies nowhere else. Keys without a contact
    are ignored.

    Parameters
    ----------
    session : Session
        An open writing transaction; the contacts' rows stay locked to its end.
    traits_by_key : mapping of int to mapping
        By ``contact_key``: the traits told, ``email`` already validated by the caller.
    now : datetime
        Aware UTC.
    timezone_source : str
        Where a told time zone comes from: ``explicit``, ``inferred`` or ``import``.

    Raises
    ------
    ValueError
        If a time zone is no IANA zone.
    """
    for traits in traits_by_key.values():
        if traits.get("timezone") is not None:
            zone_of(str(traits["timezone"]))
    keys = sorted(traits_by_key)
    changed: list[dict[str, Any]] = []
    for start in range(0, len(keys), IN_CHUNK):
        query = (
            select(
                _CONTACT.c.contact_key,
                _CONTACT.c.email,
                _CONTACT.c.timezone,
                _CONTACT.c.timezone_source,
                _CONTACT.c.traits,
            )
            .where(_CONTACT.c.contact_key.in_(keys[start : start + IN_CHUNK]))
            .order_by(_CONTACT.c.contact_key)
            .with_for_update()
        )
        for row in session.execute(query):
            told = dict(traits_by_key[row.contact_key])
            values = {"email": row.email, "timezone": row.timezone, "timezone_source": row.timezone_source}
            if "email" in told:
                values["email"] = told.pop("email")
            if "timezone" in told:
                values["timezone"] = told.pop("timezone")
                values["timezone_source"] = timezone_source if values["timezone"] is not None else None
            merged = {name: value for name, value in {**row.traits, **told}.items() if value is not None}
            changed.append(
                {"key": row.contact_key, "now": now, "new_traits": merged} | {f"new_{k}": v for k, v in values.items()}
            )
    if changed:
        session.connection().execute(_UPDATE, changed)


_UPDATE = (
    update(_CONTACT)
    .where(_CONTACT.c.contact_key == bindparam("key"))
    .values(
        email=bindparam("new_email"),
        timezone=bindparam("new_timezone"),
        timezone_source=bindparam("new_timezone_source"),
        traits=bindparam("new_traits"),
        updated_at=bindparam("now"),
    )
)


def _keys_of(session: Session, identities: Sequence[str]) -> dict[str, int]:
    known: dict[str, int] = {}
    for start in range(0, len(identities), IN_CHUNK):
        query = select(_IDENTITY.c.identity, _IDENTITY.c.contact_key).where(
            _IDENTITY.c.identity.in_(identities[start : start + IN_CHUNK])
        )
        known.update((row.identity, row.contact_key) for row in session.execute(query))
    return known
