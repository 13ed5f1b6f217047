"""Whom to show a mail of: a pass over the audience that counts missing traits and finds the awkward contacts."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, select, type_coerce
from sqlalchemy.orm import Session

from service.tables import ContactRow

#: What a contact is called by, the first that it has.
NAMES = ("first_name", "name", "last_name")
#: What makes a contact worth a look, in the order in which they are shown.
AWKWARD = (
    "no name", "longest name", "another script", "missing traits", "written right to left", "no time zone", "oldest",
    "newest",
)  # fmt: skip

_CHUNK = 5_000


@dataclass
class Seen:
    """What was seen of the contacts that were looked at."""

    count: int
    #: Contacts with an address, in the order of their keys.
    mailable: list[int]
    #: How many lack each trait that the mail uses.
    lacking: dict[str, int]
    #: Traits that a contact lacks, of those who were noted for something.
    lacks: dict[int, frozenset[str]]
    #: Of `AWKWARD`, in its order → the contact that is so most of all.
    awkward: dict[str, int]
    #: Mailable contacts that lack no trait of the mail.
    whole: list[int]

    def choose(self, samples: int) -> dict[int, list[str]]:
        """Contacts to show and why: typical ones first, then awkward ones, then more typical ones."""
        typical = list(dict.fromkeys([*evenly(self.whole, samples), *evenly(self.mailable, samples)]))
        n_typical = max(1, samples - min(len(self.awkward), samples * 2 // 3))
        chosen: dict[int, list[str]] = {key: ["typical"] for key in typical[:n_typical]}
        for why, key in self.awkward.items():
            if key in chosen:
                chosen[key] = [one for one in chosen[key] if one != "typical"] + [why]
            elif len(chosen) < samples:
                chosen[key] = [why]
        for key in typical:
            if len(chosen) < samples:
                chosen.setdefault(key, ["typical"])
        return chosen

    def traits(self, used: Mapping[str, bool]) -> tuple[dict[str, Any], ...]:
        """How many lack each trait that the mail uses."""
        return tuple(
            {
                "name": name,
                "lacking": self.lacking[name],
                "share": self.lacking[name] / self.count if self.count else 0.0,
                "has_fall_back": not is_bare,
            }
            for name, is_bare in used.items()
        )


def look_at(session: Session, contact_keys: np.ndarray, used: Sequence[str]) -> Seen:
    """One pass over the contacts' traits, a query for every few thousand of them."""
    asked = list(dict.fromkeys([*used, *NAMES]))
    columns = [ContactRow.traits[name].as_string() for name in asked]
    born = type_coerce(ContactRow.created_at, BigInteger)  # microseconds as they are kept: only their order matters
    query = select(ContactRow.contact_key, ContactRow.email, ContactRow.timezone, born, *columns)
    names = [asked.index(name) for name in NAMES]
    places = range(len(used))
    lacking = [0] * len(used)
    mailable: list[int] = []
    whole: list[int] = []
    lacks: dict[int, frozenset[str]] = {}
    # why → (how much so, contact): the greatest of each is kept.
    best: dict[str, tuple[int, int]] = {}

    def note(why: str, rank: int, key: int, missing: Sequence[int]) -> None:
        if why not in best or rank > best[why][0]:
            best[why] = (rank, key)
            lacks[key] = frozenset(used[place] for place in missing)

    for start in range(0, len(contact_keys), _CHUNK):
        chunk = contact_keys[start : start + _CHUNK].tolist()
        for key, email, timezone, born_at, *values in session.execute(query.where(ContactRow.contact_key.in_(chunk))):
            missing = [place for place in places if not values[place]]
            for place in missing:
                lacking[place] += 1
            if not email:
                continue
            mailable.append(key)
            if not missing:
                whole.append(key)
            name = next((values[place] for place in names if values[place]), "")
            if not name:
                note("no name", 1, key, missing)
            else:
                note("longest name", len(name), key, missing)
                if not name.isascii():
                    script = _script(name)
                    if script == "right to left":
                        note("written right to left", 1, key, missing)
                    if script:
                        note("another script", len(name), key, missing)
            if missing:
                note("missing traits", len(missing), key, missing)
            if not timezone:
                note("no time zone", 1, key, missing)
            note("oldest", -born_at, key, missing)
            note("newest", born_at, key, missing)
    return Seen(
        count=len(contact_keys),
        mailable=mailable,
        lacking=dict(zip(used, lacking, strict=True)),
        lacks=lacks,
        awkward={why: best[why][1] for why in AWKWARD if why in best},
        whole=whole,
    )


def _script(name: str) -> str:
    """How a name's letters differ from Latin ones; empty where they do not."""
    for sign in name:
        if unicodedata.bidirectional(sign) in ("R", "AL"):
            return "right to left"
        if sign.isalpha() and not unicodedata.name(sign, "").startswith("LATIN"):
            return "another script"
    return ""


def evenly(keys: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of ``keys``, evenly over their order."""
    if len(keys) <= count:
        return list(keys)
    return [keys[place] for place in np.linspace(0, len(keys) - 1, count).astype(np.int64).tolist()]
