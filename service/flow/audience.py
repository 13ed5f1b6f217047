"""Who: a rule → contact keys, as of an instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.contacts import find
from features.tables import ContactRow
from service.errors import Invalid


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
        Naming the rule and the two forms that are understood.
    """
    if dict(rule) == {"everyone": True}:
        return
    user_ids = rule.get("user_ids")
    if {"user_ids"} <= set(rule) <= {"user_ids", "models"} and isinstance(user_ids, list) and user_ids:
        models = rule.get("models", [])
        if not isinstance(models, list) or not all(isinstance(name, str) and name for name in models):
            raise Invalid('audience.models lists the models whose scores picked the contacts, such as ["churn"]')
        if all(isinstance(user_id, str) for user_id in user_ids):
            return
        raise Invalid('audience.user_ids holds a value that is no string; write ids as strings, such as ["42"]')
    raise Invalid(f'audience {dict(rule)!r} is not understood; write {{"everyone": true}} or {{"user_ids": ["…", …]}}')


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

    Raises
    ------
    Invalid
        If the rule is not understood.
    """
    check_rule(rule)
    if rule.get("everyone"):
        rows = session.scalars(
            select(ContactRow.contact_key).where(ContactRow.created_at <= as_of).order_by(ContactRow.contact_key)
        )
        return Audience(np.fromiter(rows, dtype=np.int64), (), as_of)
    wanted = list(dict.fromkeys(rule["user_ids"]))
    found = find(session, wanted)
    keys = np.array(sorted(set(found.values())), dtype=np.int64)
    return Audience(keys, tuple(user_id for user_id in wanted if user_id not in found), as_of)
