"""What came of the contacts of a scoring within its horizon, and to whom something was done because of the score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.events import DAY_MICROS, EventColumns
from features.labels import Outcome, label
from features.lake import Lake
from features.offline import map_buckets
from features.properties import hash_ref
from features.vocabulary import EMAIL_SENT, EMAIL_WITHHELD
from training.judging import Treatment
from training.score_files import ScoreFiles, read_scores

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Properties of a mail's event: the models whose scores picked its audience, and the campaign.
MODELS, CAMPAIGN = "models", "campaign_id"


@dataclass(frozen=True)
class ClosedScores:
    """The contacts of a scoring with what was said of them, what happened and what was done, shape (n,) each."""

    contact_key: Ints
    probability: Array
    fallback: Array
    y: NDArray[np.int8]
    treatment: Treatment

    def __len__(self) -> int:
        return len(self.y)


def closed_scores(
    lake: Lake, found: ScoreFiles, model: str, outcome: Outcome, as_of: int, horizon_days: int, n_jobs: int = 1
) -> ClosedScores:
    """The kept scores with their outcomes, bucket by bucket; the horizon has passed and the lake reaches beyond it.

    Raises
    ------
    StoreError
        If a file of the scores or of the lake is damaged.
    """
    job = _ClosedScoresOfBucket(found, model, outcome, as_of, horizon_days)
    parts = map_buckets(job, lake, n_jobs)
    keys, p, q, y, treated, picked_by = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return ClosedScores(keys, p, q, y, Treatment(treated, picked_by))


@dataclass(frozen=True)
class _ClosedScoresOfBucket:
    found: ScoreFiles
    model: str
    outcome: Outcome
    as_of: int
    horizon_days: int

    def __call__(self, lake: Lake, bucket: int) -> tuple[NDArray[np.generic], ...]:
        scores = read_scores(lake, self.found, bucket)
        keys = scores.contact_key
        columns = lake.read_bucket(bucket, True) if len(keys) else EventColumns.empty()
        asked = np.full(len(keys), self.as_of, dtype=np.int64)
        y = label(self.outcome, columns, keys, asked, self.horizon_days)
        end = self.as_of + self.horizon_days * DAY_MICROS
        treatment = treatment_of(columns, keys, self.model, self.as_of, end)
        p, q = scores.probability.astype(np.float64), scores.fallback.astype(np.float64)
        return keys, p, q, y, treatment.treated, treatment.picked_by


def treatment_of(columns: EventColumns, keys: Ints, model: str, begin: int, end: int) -> Treatment:
    """Who of ``keys`` (ascending) was picked by the model's score in ``[begin, end)``, and who of them was sent a mail.

    Parameters
    ----------
    columns : EventColumns
        With properties.
    begin, end : int
        Microseconds since 1970 UTC; what was not known at ``end`` does not count.
    """
    found = Treatment.nobody(len(keys))
    properties = columns.properties
    inside = columns.of_kind(EMAIL_SENT, EMAIL_WITHHELD) & (columns.occurred_at >= begin) & (columns.occurred_at < end)
    inside &= columns.received_at <= end
    if properties is None or not inside.any() or not len(keys):
        return found
    event_of = np.repeat(np.arange(len(columns)), np.diff(properties.start))
    because = np.zeros(len(columns), dtype=bool)
    because[event_of[(properties.name == hash_ref(MODELS)) & (properties.value == hash_ref(model))]] = True
    campaign = np.ones(len(columns), dtype=np.int64)  # a mail of no campaign: all such are one
    named = properties.name == hash_ref(CAMPAIGN)
    campaign[event_of[named]] = np.where(properties.value[named] == 0, 1, properties.value[named])
    events = np.flatnonzero(inside & because)
    place = np.minimum(np.searchsorted(keys, columns.contact_key[events]), len(keys) - 1)
    mine = keys[place] == columns.contact_key[events]
    events, place = events[mine], place[mine]
    sent = columns.of_kind(EMAIL_SENT)[events]
    found.treated[place[sent]] = True
    # Events lie by contact and time, so written backwards the first one stays.
    found.picked_by[place[::-1]] = campaign[events[::-1]]
    return found
