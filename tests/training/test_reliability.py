"""Reliability where the probabilities are known: simulated buyers whose chance to order follows from what they did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from features import contacts
from features.events import NewEvent, append
from features.labels import CONVERSION
from features.lake import Lake
from features.tables import to_micros
from features.views import DEFAULT_VIEWS
from features.vocabulary import ORDER_COMPLETED
from tests.training.conftest import BEGIN, DAY, END, SHOP_DAYS, fresh_database, lake_of
from training import conversion
from training.bgnbd import BGNBD
from training.datasets import Definition, log_span, snapshot_instants, training_set
from training.rungs import history, history_columns
from training.study import Study

HORIZON = 30
CUSTOMERS = 2_500


@dataclass(frozen=True)
class KnownShop:
    """A shop of buyers whose law of buying is known, and the lake of their orders."""

    law: BGNBD
    lake: Lake


#: Rates of buying and chances of leaving: many who come once; faithful ones; quick ones who leave quickly.
LAWS = {
    "like cdnow": BGNBD(r=0.5, alpha=30.0, a=0.8, b=2.4),
    "faithful": BGNBD(r=2.0, alpha=60.0, a=0.3, b=6.0),
    "fickle": BGNBD(r=1.2, alpha=15.0, a=1.2, b=2.5),
}


def _order_days(law: BGNBD, rng: np.random.Generator) -> list[float]:
    """Days of one customer's orders by BG/NBD (Fader, Hardie & Lee 2005): exponential gaps, leaving after an order."""
    rate, leaves = rng.gamma(law.r) / law.alpha, rng.beta(law.a, law.b)
    day, days = rng.uniform(0, 100), []
    while day < SHOP_DAYS:
        days.append(day)
        if len(days) > 1 and rng.random() < leaves:
            break
        day += rng.exponential(1 / rate)
    return days


@pytest.fixture(scope="module", params=LAWS)
def known_shop(request, empty_sqlite, tmp_path_factory) -> KnownShop:
    """One shop of each law."""
    law = LAWS[request.param]
    folder = tmp_path_factory.mktemp("known")
    database = fresh_database(empty_sqlite, folder)
    rng = np.random.default_rng(3)
    users = [f"user:{i}" for i in range(CUSTOMERS)]
    with database.writing() as session:
        keys = contacts.resolve(session, users, now=END)
        events = [
            NewEvent(
                keys[user],
                ORDER_COMPLETED,
                to_micros(BEGIN) + int(day * DAY),
                f"o/{user}/{i}",
                user,
                f"{user}-{i}",
                1000,
            )
            for user in users
            for i, day in enumerate(_order_days(law, rng))
        ]
        append(session, events, received_at=to_micros(END), imported=True)
    lake = lake_of(database, folder)
    database.close()
    return KnownShop(law, lake)


def test_probabilities_lie_within_the_reliability_intervals_of_a_known_law(known_shop: KnownShop) -> None:
    """In each decile the mean answer is the mean true chance but for what that many outcomes can tell (95 %, normal).

    Of ten deciles one may miss: the fit rests on outcomes too. The totals agree to 7 %.
    """
    until = to_micros(END)
    cutoff = until - HORIZON * DAY
    asked = Definition(CONVERSION, conversion.POPULATION, HORIZON, "an order")
    instants = snapshot_instants(cutoff, log_span(known_shop.lake, until).first, HORIZON)
    data = training_set(known_shop.lake, DEFAULT_VIEWS, asked, instants)

    judged = Study(asked, data, data, HORIZON, until, DEFAULT_VIEWS).judge(cutoff)
    said = judged.probabilities["served"]
    truth = known_shop.law.probability(*history(judged.rows.X, history_columns(data.names)), HORIZON)

    misses = 0
    for part in np.array_split(np.argsort(said, kind="stable"), 10):
        true_rate = truth[part].mean()
        margin = 1.96 * np.sqrt(true_rate * (1 - true_rate) / len(part))
        misses += abs(said[part].mean() - true_rate) > margin
    assert misses <= 1
    assert said.sum() / truth.sum() == pytest.approx(1.0, abs=0.07)
