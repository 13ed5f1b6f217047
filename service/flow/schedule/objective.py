"""What a mail to a contact at a local hour is worth: human engagement, or expected profit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from features.tables import to_micros
from features.vocabulary import ORDER_COMPLETED
from service.flow.ingest.values import decimals_of
from service.flow.predict import Hours
from service.flow.schedule.chunks import chunks, columns_of, near, places
from service.flow.schedule.intent import Economy
from service.tables import ConsentRow, EventRow, PredictionRow, ScoringRow, SendRow

#: Orders whose mean value is what an order is worth, and mails whose unsubscribes are counted: of so many days.
ORDER_DAYS, UNSUBSCRIBE_DAYS = 365, 90
#: Unsubscribes a mail before any are known, weighing as much as so many mails.
PRIOR_UNSUBSCRIBES, PRIOR_MAILS = 0.002, 1_000
#: Chance of an order within the horizon where no contact is scored, and the horizon where no scoring says it.
PRIOR_CONVERSION, PRIOR_HORIZON_DAYS = 0.02, 30


@dataclass(frozen=True)
class Values:
    """What is expected of a mail to each contact.

    Attributes
    ----------
    value : ndarray of float32, shape (n_contacts, 24) or (n_contacts, 1)
        By local hour; a single column where no hour is better than another.
    is_indifferent : ndarray of bool, shape (n_contacts,)
        No hour is better than another for this contact.
    is_known : bool
        False where every mail counts alike because nothing is known: that is no expectation.
    says : tuple of str
        How the terms were estimated.
    gain, cost : ndarray of float64, shape (n_contacts,), or None
        Of expected profit: what the best hour brings, and what the mail costs.
    """

    value: np.ndarray
    is_indifferent: np.ndarray
    is_known: bool
    says: tuple[str, ...] = ()
    gain: np.ndarray | None = None
    cost: float = 0.0


def engagement(hours: Hours | None, n: int) -> Values:
    """P(a person answers within 24 h | sent at the local hour), as the send-hour model gives it."""
    if hours is None:
        return Values(np.ones((n, 1), dtype=np.float32), np.ones(n, dtype=bool), False)
    value = hours.probabilities.astype(np.float32)
    value[~hours.is_usable] = value[~hours.is_usable].mean(axis=1, keepdims=True)
    return Values(value, ~hours.is_usable, True, ("human engagement within 24 h, by the send-hour model",))


def profit(
    session: Session, contact_keys: np.ndarray, hours: Hours | None, economy: Economy, *, now: datetime
) -> Values:
    """Expected profit of a mail, in units of the currency, by local hour::

        margin_share * P(order in the attribution window) * order value * (1 + effect of the hour)
        - mail_cost - unsubscribe_cost * P(unsubscribe)

    * P(order): the contact's stored conversion score p over its horizon of H days, brought to the attribution window of
      A days at an even rate, ``1 - (1 - p) ** (A / H)``; where the contact has no score, the mean of those that have.
      It is the chance of an order after the mail, not the part that the mail causes: a holdout tells that part.
    * Order value: the mean of the installation's orders of the last year in the reporting currency.
    * Effect of the hour: the contact's P(engagement | hour) over its mean over all hours; 1 where no hour is known to
      be better.
    * P(unsubscribe): unsubscribes over accepted marketing mails of the last 90 days, shrunk to 2 in 1,000 with the
      weight of 1,000 mails.

    Parameters
    ----------
    contact_keys : ndarray of int64, shape (n_contacts,)
    """
    n = len(contact_keys)
    scores, horizon, says = _conversion(session, contact_keys)
    order_value = _order_value(session, now, economy.currency)
    unsubscribes, mails = _unsubscribes(session, now)
    per_mail = (unsubscribes + PRIOR_UNSUBSCRIBES * PRIOR_MAILS) / (mails + PRIOR_MAILS)
    ordering = 1.0 - (1.0 - scores) ** (economy.attribution_days / horizon)
    margin = economy.margin_share * ordering * order_value
    cost = economy.mail_cost + economy.unsubscribe_cost * per_mail
    if hours is None:
        relative = np.ones((n, 1), dtype=np.float32)
        indifferent = np.ones(n, dtype=bool)
    else:
        relative = hours.probabilities.astype(np.float32)
        relative /= np.maximum(relative.mean(axis=1, keepdims=True), 1e-12)
        relative[~hours.is_usable] = 1.0
        indifferent = ~hours.is_usable
    gain = margin * relative.max(axis=1, initial=0.0)
    relative *= margin[:, None].astype(np.float32)
    relative -= np.float32(cost)
    return Values(
        relative,
        indifferent,
        True,
        (
            says,
            f"an order is worth {order_value:.2f} {economy.currency}, of which {economy.margin_share:.0%} is margin",
            f"{per_mail:.2%} of mails end in an unsubscribe ({unsubscribes} of {mails} in {UNSUBSCRIBE_DAYS} days)",
        ),
        gain,
        cost,
    )


def _conversion(session: Session, contact_keys: np.ndarray) -> tuple[np.ndarray, float, str]:
    """Score of each contact, the days of its horizon, and what stands in where there is none."""
    scores = np.full(len(contact_keys), np.nan)
    for rows, keys in chunks(contact_keys):
        query = near(PredictionRow.contact_key, keys, PredictionRow.probability)
        found, probability = columns_of(session, query.where(PredictionRow.model == "conversion"), 2)
        place, known = places(rows, keys, found)
        scores[place] = np.asarray(probability, dtype=np.float64)[known]
    horizon = session.scalar(
        select(ScoringRow.horizon_days)
        .where(ScoringRow.model == "conversion", ScoringRow.role == "served")
        .order_by(ScoringRow.as_of.desc())
        .limit(1)
    )
    is_scored = ~np.isnan(scores)
    base = float(scores[is_scored].mean()) if is_scored.any() else PRIOR_CONVERSION
    whose = "the mean of the others" if is_scored.any() else "a guess: run `kairos score`"
    says = f"P(order) from the scores of {is_scored.sum():,} contacts; {base:.2%} for the other "
    says += f"{(~is_scored).sum():,} ({whose})"
    return np.where(is_scored, scores, base), float(horizon or PRIOR_HORIZON_DAYS), says


def _order_value(session: Session, now: datetime, currency: str) -> float:
    since = to_micros(now - timedelta(days=ORDER_DAYS))
    mean = session.scalar(
        select(func.avg(EventRow.value_minor)).where(
            EventRow.kind == ORDER_COMPLETED, EventRow.occurred_at >= since, EventRow.value_minor.is_not(None)
        )
    )
    return float(mean or 0.0) / 10.0 ** decimals_of(currency)


def _unsubscribes(session: Session, now: datetime) -> tuple[int, int]:
    since = now - timedelta(days=UNSUBSCRIBE_DAYS)
    left = session.scalar(
        select(func.count(ConsentRow.contact_key.distinct())).where(
            ConsentRow.state == "unsubscribed", ConsentRow.at >= since, ConsentRow.source.not_like("import%")
        )
    )
    mails = session.scalar(
        select(func.count()).where(SendRow.state == "accepted", SendRow.stream == "marketing", SendRow.due_at >= since)
    )
    return int(left or 0), int(mails or 0)
