"""Who: a rule → contact keys, as of an instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from features.contacts import find
from features.tables import ContactRow
from service.errors import Invalid
from service.tables import DecisionRow, SendRow

#: States of a mail that reached its contact, or may have.
GOT_IT = ("accepted", "unknown")
#: States of the ledger that an audience may be made of.
SEND_STATES = (*GOT_IT, "failed", "suppressed", "held_out", "unplaced", "cancelled", "expired")


@dataclass(frozen=True)
class Audience:
    """The contacts that a rule names.

    Attributes
    ----------
    contact_keys : ndarray of int64, shape (n_contacts,)
        Ascending, each once.
    unknown : tuple of str
        Named user ids that no contact answers to.
    as_of : datetime
        Instant at which the rule was read.
    """

    contact_keys: np.ndarray
    unknown: tuple[str, ...]
    as_of: datetime


def check_rule(rule: Mapping[str, Any]) -> None:
    """Refuse a rule that `find_audience` could not read.

    Raises
    ------
    Invalid
        Naming the rule and the forms that are understood.
    """
    if dict(rule) == {"everyone": True}:
        return
    models = rule.get("models", [])
    if not isinstance(models, list) or not all(isinstance(name, str) and name for name in models):
        raise Invalid('audience.models lists the models whose scores picked the contacts, such as ["churn"]')
    rest = {name: value for name, value in rule.items() if name != "models"}
    if set(rest) == {"user_ids"} and isinstance(rest["user_ids"], list) and rest["user_ids"]:
        if all(isinstance(user_id, str) for user_id in rest["user_ids"]):
            return
        raise Invalid('audience.user_ids holds a value that is no string; write ids as strings, such as ["42"]')
    if set(rest) == {"sends_of"}:
        _check_sends_of(rest["sends_of"])
        return
    raise Invalid(
        f'audience {dict(rule)!r} is not understood; write {{"everyone": true}}, {{"user_ids": ["…", …]}} or '
        f'{{"sends_of": {{"campaign": "cmp_…"}}}}'
    )


def _check_sends_of(part: Any) -> None:
    """Refuse a ``sends_of`` that does not say whose mails it means; see `find_audience`."""
    if not isinstance(part, Mapping) or not isinstance(part.get("campaign"), str):
        raise Invalid('audience.sends_of names a campaign: {"sends_of": {"campaign": "cmp_…", "states": ["accepted"]}}')
    unknown = sorted(set(part) - {"campaign", "states", "template_version", "arm", "from", "until"})
    if unknown:
        raise Invalid(
            f"audience.sends_of has {unknown[0]!r}, which is not understood; it takes campaign, states, "
            "template_version, arm, from and until"
        )
    states = part.get("states", list(GOT_IT))
    if not isinstance(states, list) or not states or not set(map(str, states)) <= set(SEND_STATES):
        raise Invalid(f"audience.sends_of.states {states!r} is not acceptable; list some of {', '.join(SEND_STATES)}")
    version = part.get("template_version")
    if version is not None and (not isinstance(version, int) or isinstance(version, bool) or version < 1):
        raise Invalid(f"audience.sends_of.template_version {version!r} is no version; write a number from 1 on")
    arm = part.get("arm")
    if arm is not None and not (
        isinstance(arm, Mapping)
        and set(arm) == {"experiment", "arm"}
        and all(isinstance(value, str) for value in arm.values())
    ):
        raise Invalid(f'audience.sends_of.arm {arm!r} is not understood; write {{"experiment": "exp_…", "arm": "…"}}')
    begin, end = _instant(part, "from"), _instant(part, "until")
    if begin is not None and end is not None and end <= begin:
        raise Invalid(f"audience.sends_of.until {end.isoformat()} is not after from {begin.isoformat()}")


def _instant(part: Mapping[str, Any], name: str) -> datetime | None:
    text = part.get(name)
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        instant = None
    if instant is None or instant.tzinfo is None:
        raise Invalid(f"audience.sends_of.{name} {text!r} is no instant; write it as 2026-03-01T09:00:00Z")
    return instant


def models_of(rule: Mapping[str, Any]) -> list[str]:
    """Models whose scores picked the audience; its mails cannot judge these scores, so they tell their names.

    Examples
    --------
    >>> models_of({"user_ids": ["42"], "models": ["churn"]}), models_of({"everyone": True})
    (['churn'], [])
    """
    return sorted(set(rule.get("models", [])))


def find_audience(session: Session, rule: Mapping[str, Any], *, as_of: datetime) -> Audience:
    """The contacts that ``rule`` names and that existed at ``as_of``.

    ``{"everyone": true}``; ``{"user_ids": [...]}``; or ``{"sends_of": {...}}``, those whose mail of a ``campaign`` is
    in one of ``states`` (by default `GOT_IT`: who got it, or may have), if asked for only mails of one
    ``template_version``, only those that showed one ``arm`` (``{"experiment": id, "arm": id}``), only those that left
    ``from`` an instant on and before ``until`` another.

    Raises
    ------
    Invalid
        If the rule is not understood.
    """
    check_rule(rule)
    if "user_ids" in rule:
        wanted = list(dict.fromkeys(rule["user_ids"]))
        found = find(session, wanted)
        keys = np.array(sorted(set(found.values())), dtype=np.int64)
        return Audience(keys, tuple(user_id for user_id in wanted if user_id not in found), as_of)
    query = select(ContactRow.contact_key).where(ContactRow.created_at <= as_of)
    if "sends_of" in rule:
        query = query.where(ContactRow.contact_key.in_(_contacts_of(rule["sends_of"])))
    rows = session.connection().execute(query.order_by(ContactRow.contact_key)).scalars()  # a million need no objects
    return Audience(np.fromiter(rows, dtype=np.int64), (), as_of)


def _contacts_of(part: Mapping[str, Any]) -> Select[Any]:
    query = select(SendRow.contact_key).where(
        SendRow.campaign_id == part["campaign"], SendRow.state.in_(part.get("states", GOT_IT))
    )
    if part.get("template_version") is not None:
        query = query.where(SendRow.template_version == part["template_version"])
    begin, end = _instant(part, "from"), _instant(part, "until")
    if begin is not None:
        query = query.where(SendRow.finished_at >= begin)
    if end is not None:
        query = query.where(SendRow.finished_at < end)
    arm = part.get("arm")
    if arm is not None:
        shown = DecisionRow.is_holdout.is_(False)
        query = query.join(DecisionRow, DecisionRow.send_id == SendRow.send_id).where(
            DecisionRow.experiment_id == arm["experiment"], DecisionRow.arm_id == arm["arm"], shown
        )
    return query
