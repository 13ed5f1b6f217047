"""Training sets say what they are made of; sends find their answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.events import EventColumns, hash_ref
from features.labels import CONVERSION
from features.properties import PropertyColumns
from features.tables import to_micros
from features.views import DEFAULT_VIEWS
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, EMAIL_SENT, KINDS
from training import conversion
from training.calibration import Calibration
from training.datasets import (
    DAY_MICROS,
    Definition,
    TrainingSet,
    checksum,
    checksums,
    closed_sends,
    in_order,
    sends_of,
    snapshot_instants,
    training_set,
)
from training.estimators import RidgeLogistic
from training.scoring import score
from training.serving import ModelCard, load_model, write_model

HOUR = DAY_MICROS // 24
ASKED = Definition(CONVERSION, conversion.POPULATION, 30, "an order")


def _mail(*events: tuple[str, float, str, int]) -> EventColumns:
    """(kind, hour, ref, human_ppm) of one contact, in time order."""
    n = len(events)
    at = np.array([int(hour * HOUR) for _, hour, _, _ in events], dtype=np.int64) + DAY_MICROS
    return EventColumns(
        contact_key=np.ones(n, np.int64),
        occurred_at=at,
        received_at=at.copy(),
        seq=np.arange(n, dtype=np.int64),
        kind=np.array([list(KINDS).index(kind) for kind, *_ in events], dtype=np.int32),
        value_minor=np.zeros(n, np.int64),
        hour_of_week=((at // HOUR) % 168).astype(np.int16),
        human_ppm=np.array([ppm for *_, ppm in events], dtype=np.int32),
        is_repeat=np.zeros(n, bool),
        ref=np.array([hash_ref(ref) for _, _, ref, _ in events], dtype=np.int64),
    )


def test_a_send_is_answered_by_a_person_within_a_day_and_by_nothing_else() -> None:
    """Machine opens, answers after 24 h and answers to other mails do not count; young sends are left out."""
    columns = _mail(
        (EMAIL_SENT, 9, "by a person", -1),
        (EMAIL_SENT, 10, "by a machine", -1),
        (EMAIL_OPENED, 10.01, "by a machine", 20_000),
        (EMAIL_SENT, 11, "too late", -1),
        (EMAIL_CLICKED, 12, "by a person", 970_000),
        (EMAIL_CLICKED, 13, "never sent", 970_000),
        (EMAIL_OPENED, 36, "too late", 970_000),
        (EMAIL_SENT, 40, "too young", -1),
    )

    sends = sends_of(columns, DAY_MICROS + 60 * HOUR)

    assert sends.hour.tolist() == [9, 10, 11]
    assert sends.answered.tolist() == [True, False, False]
    np.testing.assert_array_equal(sends.delay_hours, [3, np.nan, np.nan])


def test_a_send_brings_the_propensity_that_it_logged() -> None:
    """NaN where it logged none; a number of that name in another event is not taken for it."""
    columns = _mail((EMAIL_SENT, 9, "a", -1), (EMAIL_CLICKED, 10, "a", 970_000), (EMAIL_SENT, 11, "b", -1))
    told = ['{"hour_propensity": 0.275, "local_hour": 9}', '{"hour_propensity": 0.5}', None]
    sends = sends_of(replace(columns, properties=PropertyColumns.parse(told)), 4 * DAY_MICROS)

    np.testing.assert_array_equal(sends.propensity, [0.275, np.nan])


def test_an_answer_that_arrived_later_is_not_known_earlier() -> None:
    """What was received after ``as_of`` does not count as of then."""
    columns = _mail((EMAIL_SENT, 9, "a", -1), (EMAIL_CLICKED, 10, "a", 970_000))
    columns.received_at[1] += 5 * DAY_MICROS

    assert sends_of(columns, 3 * DAY_MICROS).answered.tolist() == [False]
    assert sends_of(columns, 9 * DAY_MICROS).answered.tolist() == [True]


def test_every_send_of_the_log_is_found_once(shop) -> None:
    """Buckets neither lose nor double a send, and time order holds."""
    sends = closed_sends(shop.lake, to_micros(shop.now) + 2 * DAY_MICROS)

    assert len(sends) == 400 * 12
    assert (np.diff(sends.sent_at) >= 0).all()


def test_the_manifest_names_what_a_set_is_made_of(shop) -> None:
    """View set, watermark, rows, instants and a checksum that changes with the content and with nothing else."""
    newest = to_micros(shop.now) - 30 * DAY_MICROS
    instants = [newest - 30 * DAY_MICROS, newest]
    once, again = (training_set(shop.lake, DEFAULT_VIEWS, ASKED, instants, n_jobs=n) for n in (1, 2))
    other = training_set(shop.lake, DEFAULT_VIEWS, ASKED, instants[:1])

    assert once.manifest == again.manifest
    assert once.manifest["view_set"] == f"default@{DEFAULT_VIEWS.version}"
    assert once.manifest["rows"] == len(once) == len(once.X)
    assert once.manifest["instants"] == instants
    assert other.manifest["checksum"] != once.manifest["checksum"]
    assert once.manifest["contacts_share"] == 1.0


def test_too_many_rows_take_a_stable_part_of_the_contacts(shop, monkeypatch) -> None:
    """Above the bound a set keeps whole contacts, the same ones each time, and says what share."""
    monkeypatch.setattr("training.datasets.MAX_ROWS", 400)
    newest = to_micros(shop.now) - 30 * DAY_MICROS
    instants = [newest - 15 * DAY_MICROS, newest]
    once, again = (training_set(shop.lake, DEFAULT_VIEWS, ASKED, instants) for _ in range(2))

    assert len(once) <= 400
    assert 0.4 < once.manifest["contacts_share"] < 0.6
    np.testing.assert_array_equal(once.contact_key, again.contact_key)


def test_rows_keep_their_weights_and_money_wherever_they_go() -> None:
    """Chosen, put in order, summed: weight, order days and money stay with their row; a weight changes the sum."""
    n, hour = 6, np.arange(6, dtype=np.int64) * HOUR
    data = TrainingSet(
        np.arange(6.0)[:, None], np.ones(n, np.int8), np.arange(n), hour, ("x",), {}, np.arange(6.0), np.arange(n), hour
    )
    halves = [data.rows(data.X[:, 0] >= 3), data.rows(data.X[:, 0] < 3)]

    for part in (in_order(halves, ("x",)), data.at(2 * HOUR), data.closed_by(2 * HOUR + DAY_MICROS, 1)):
        np.testing.assert_array_equal(part.weight, part.X[:, 0])
        np.testing.assert_array_equal(part.order_days, part.X[:, 0])
        np.testing.assert_array_equal(part.order_value, part.X[:, 0] * HOUR)
    plain = TrainingSet(data.X, data.y, data.contact_key, data.as_of, data.names)
    assert plain.weight.tolist() == [1.0] * n
    assert not plain.is_weighted
    assert "weight" not in checksums(plain)
    assert checksums(data) == checksums(plain) | {"weight": checksum(data.weight)}
    assert in_order([], ("x",)).weight.shape == (0,)


def test_orders_in_the_window_stand_beside_the_outcome(shop) -> None:
    """Somebody with an order day has money and the outcome; nobody else has."""
    data = training_set(shop.lake, DEFAULT_VIEWS, ASKED, [to_micros(shop.now) - 30 * DAY_MICROS])

    np.testing.assert_array_equal(data.order_days > 0, data.y == 1)
    np.testing.assert_array_equal(data.order_value >= 500, data.y == 1)


def test_no_instant_is_refused(shop) -> None:
    """A training set needs an instant."""
    with pytest.raises(ValueError, match="at least one instant"):
        training_set(shop.lake, DEFAULT_VIEWS, ASKED, [])


def test_scores_are_the_model_on_the_vectors_whatever_the_buckets(shop, tmp_path) -> None:
    """Scoring bucket by bucket gives each contact what the model gives its vector, with its rank among all."""
    until = to_micros(shop.now)
    instants = snapshot_instants(until - 30 * DAY_MICROS, until - 200 * DAY_MICROS, 30)
    data = training_set(shop.lake, DEFAULT_VIEWS, ASKED, instants)
    card = ModelCard(
        "conversion", "outcome", "logistic", "", "default", DEFAULT_VIEWS.version, 30, "", "", "", {}, ASKED.population
    )
    write_model(tmp_path, card, DEFAULT_VIEWS, RidgeLogistic.fit(data.X, data.y), Calibration(), data.X)
    model = load_model(tmp_path)

    scores = score(shop.lake, model, shop.now, n_jobs=2)
    now = training_set(shop.lake, DEFAULT_VIEWS, ASKED, [until])

    np.testing.assert_array_equal(scores.contact_key, now.contact_key)
    np.testing.assert_array_equal(scores.probability, model.predict(now.X))
    assert scores.percentile[scores.probability.argmax()] == 1.0
    assert scores.percentile.min() > 0
    assert scores.detail is None
