"""What a draw sees of a contact: the segment that its trait puts it in, and its vector on a scale fixed at opening."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from features.online import VectorCache, served_features
from features.properties import value_text
from features.views import DEFAULT_VIEWS, ViewSet
from service.tables import ContactRow

#: Contacts whose vectors fix the scale.
MEASURED = 2_000
#: Standard deviations beyond which a feature is cut: one rich contact must not outweigh a thousand.
LONGEST = 4.0
#: The segment of all values that were not named.
OTHER = "other"
CHUNK = 5_000


@dataclass(frozen=True)
class Projection:
    """Vectors of a view set → what the policy sees: ``[1, clip((signed log1p(v) - centre) / scale, -4, 4)]``.

    Fixed when the experiment opens, with the definition of its views: what was logged and what is learned keep one
    meaning, whatever becomes of the default view set. A feature that is null stands at 0, the centre.

    Attributes
    ----------
    features : tuple of str, length n_features - 1
    views : ViewSet
        The views that have these columns.
    centre, scale : ndarray of float64, shape (n_features - 1,)
    """

    features: tuple[str, ...]
    views: ViewSet
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]

    def __call__(self, vectors: NDArray[np.float64]) -> NDArray[np.float32]:
        """Contexts of shape (n, n_features) from vectors of shape (n, n_columns)."""
        standard = np.clip((_signed_log(self._columns(vectors)) - self.centre) / self.scale, -LONGEST, LONGEST)
        ones = np.ones((len(vectors), 1))
        return np.hstack([ones, np.nan_to_num(standard, nan=0.0)]).astype(np.float32)

    def _columns(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        return vectors[:, [self.views.names.index(name) for name in self.features]]

    @classmethod
    def measure(cls, session: Session, features: Sequence[str], *, now: datetime, seed: int) -> Projection:
        """The projection whose centre and scale are those of up to 2,000 contacts now, drawn with ``seed``."""
        chosen = set(features)
        views = ViewSet("context", tuple(view for view in DEFAULT_VIEWS.views if chosen & set(view.columns)))
        unit = cls(tuple(features), views, np.zeros(len(features)), np.ones(len(features)))
        keys = _some_contacts(session, seed)
        if not keys:
            return unit
        logs = _signed_log(unit._columns(served_features(session, keys, now, views).X))
        known = ~np.isnan(logs)
        count = np.maximum(known.sum(axis=0), 1)
        centre = np.where(known, logs, 0.0).sum(axis=0) / count
        spread = np.sqrt(np.where(known, (logs - centre) ** 2, 0.0).sum(axis=0) / count)
        return cls(unit.features, views, centre, np.where(spread > 1e-9, spread, 1.0))

    def kept(self) -> dict[str, Any]:
        """The projection as JSON values; `projection_of` reads them."""
        return {
            "features": list(self.features),
            "view_set": self.views.version,
            "definition": self.views.definition(),
            "centre": self.centre.tolist(),
            "scale": self.scale.tolist(),
        }


def projection_of(settings: Mapping[str, Any]) -> Projection | None:
    """The projection that an experiment's settings keep; None where its policy sees no vectors."""
    kept = settings.get("context")
    if kept is None:
        return None
    return Projection(
        tuple(kept["features"]),
        _views(json.dumps(kept["definition"])),
        np.array(kept["centre"], dtype=np.float64),
        np.array(kept["scale"], dtype=np.float64),
    )


@lru_cache(maxsize=64)
def _views(definition: str) -> ViewSet:
    return ViewSet.from_definition(json.loads(definition))


def contexts_of(
    session: Session,
    projection: Projection,
    contact_keys: Sequence[int],
    *,
    now: datetime,
    cache: VectorCache | None = None,
) -> NDArray[np.float32]:
    """What the policy sees of each contact now, shape (n, n_features)."""
    parts = [
        projection(served_features(session, contact_keys[start : start + CHUNK], now, projection.views, cache).X)
        for start in range(0, len(contact_keys), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 1 + len(projection.features)), dtype=np.float32)


def segments_of(session: Session, rule: Mapping[str, Any], contact_keys: Sequence[int]) -> list[str | None]:
    """Segment of each contact: its trait as text if that is one of the rule's values, else ``other``; None without."""
    told: dict[int, str | None] = {}
    keys = sorted(set(contact_keys))
    for start in range(0, len(keys), CHUNK):
        query = select(ContactRow.contact_key, ContactRow.traits).where(
            ContactRow.contact_key.in_(keys[start : start + CHUNK])
        )
        for key, traits in session.execute(query):
            value = (traits or {}).get(rule["trait"])
            told[key] = None if isinstance(value, dict | list) else value_text(value)
    values = set(rule["values"])
    named = {key: text if text is None or text in values else OTHER for key, text in told.items()}
    return [named.get(key) for key in contact_keys]


def _signed_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)), dtype=np.float64)


def _some_contacts(session: Session, seed: int) -> list[int]:
    count = int(session.scalar(select(func.count()).select_from(ContactRow)) or 0)
    if count <= MEASURED:
        return list(session.scalars(select(ContactRow.contact_key).order_by(ContactRow.contact_key)))
    least, most = session.execute(select(func.min(ContactRow.contact_key), func.max(ContactRow.contact_key))).one()
    rng = np.random.default_rng(seed)
    wanted = np.unique(rng.integers(least, most + 1, size=4 * MEASURED)).tolist()
    found = session.scalars(select(ContactRow.contact_key).where(ContactRow.contact_key.in_(wanted)))
    return rng.permutation(sorted(found))[:MEASURED].tolist()
