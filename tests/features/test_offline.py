"""Laws of vectors from the lake: the same bits as online, the spine's order, real history as pandas reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.events import DAY_MICROS, NewEvent, append
from features.lake import Lake
from features.offline import historical_features, map_buckets
from features.online import online_features
from features.tables import from_micros
from features.views import DEFAULT_VIEWS, SEND_HOUR_VIEWS, ViewSet
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, EMAIL_SENT, ORDER_CANCELLED, ORDER_COMPLETED, PAGE
from service.database import Database

START = 1_760_000_000_000_000
SPAN = 120 * DAY_MICROS


@pytest.fixture
def history(any_database: Database, tmp_path: Path) -> tuple[Database, Lake]:
    """Thirty contacts' random events, received in batches over time, many of them late; the lake synced in between.

    As it was after three of six batches, the lake lies beside the whole one, in ``earlier``.
    """
    random = np.random.default_rng(7)
    lake = Lake(str(tmp_path / "lake"), buckets=8)
    kinds = (ORDER_COMPLETED, ORDER_CANCELLED, PAGE, EMAIL_SENT, EMAIL_OPENED, EMAIL_CLICKED, "Sofa Tested")
    for batch in range(6):
        received_at = START + (batch + 1) * SPAN // 6
        events = [
            NewEvent(
                int(random.integers(1, 31)),
                kinds[int(random.integers(len(kinds)))],
                int(received_at - random.integers(0, SPAN // 3)),
                f"{batch}-{n}",
                "user:1",
                ref=str(random.integers(0, 12)),
                value_minor=int(random.integers(0, 90_000)),
                human_ppm=int(random.integers(0, 1_000_001)),
                is_repeat=bool(random.random() < 0.2),
                timezone=("Europe/Berlin", "America/New_York", None)[n % 3],
            )
            for n in range(150)
        ]
        with any_database.writing() as session:
            append(session, events, received_at=received_at, imported=batch == 2)
        with any_database.reading() as session:
            lake.sync(session)
        if batch == 2:
            shutil.copytree(lake.url, tmp_path / "earlier")
    return any_database, lake


@pytest.mark.parametrize("views", [DEFAULT_VIEWS, SEND_HOUR_VIEWS], ids=lambda views: views.name)
def test_offline_equals_online_bit_for_bit(history: tuple[Database, Lake], views: ViewSet):
    """Every contact, also one without events, at instants through the whole history."""
    database, lake = history
    instants = [START + part * SPAN // 9 for part in range(11)]
    spine = pd.DataFrame([(key, at) for at in instants for key in range(32)], columns=["contact_key", "as_of"])

    frame = historical_features(lake, spine, views)
    with database.reading() as session:
        online = [online_features(session, range(32), from_micros(at), views) for at in instants]
        alone = online_features(session, [5], from_micros(instants[6]), views)

    assert frame.X.tobytes() == np.concatenate(online).tobytes()
    assert alone.tobytes() == frame.X[6 * 32 + 5].tobytes()
    assert np.nanmax(frame.X) > 1


def test_rows_come_in_the_spines_order_whatever_runs_them(history: tuple[Database, Lake]):
    """Shuffled, with repeats, in one thread or in two."""
    _, lake = history
    spine = pd.DataFrame({"contact_key": np.arange(200) % 31, "as_of": START + np.arange(200) % 7 * SPAN // 7})
    shuffled = spine.sample(frac=1.0, random_state=3)

    straight = historical_features(lake, spine, DEFAULT_VIEWS).X
    mixed = historical_features(lake, shuffled, DEFAULT_VIEWS, n_jobs=2)

    assert mixed.X.tobytes() == straight[shuffled.index.to_numpy()].tobytes()
    assert mixed.names == DEFAULT_VIEWS.names
    assert mixed.to_pandas()["contact_key"].tolist() == shuffled["contact_key"].tolist()


def test_the_log_up_to_a_place_gives_what_the_lake_gave_when_it_reached_it(
    history: tuple[Database, Lake], tmp_path: Path
):
    """Bit for bit, though half of the log, much of it late, came in since; the frame says which place it was."""
    _, lake = history
    earlier = Lake(str(tmp_path / "earlier"), buckets=8)
    instants = [START + part * SPAN // 9 for part in range(11)]
    spine = pd.DataFrame([(key, at) for at in instants for key in range(32)], columns=["contact_key", "as_of"])

    then = historical_features(earlier, spine, DEFAULT_VIEWS)
    again = historical_features(lake, spine, DEFAULT_VIEWS, seq=earlier.watermark)
    now = historical_features(lake, spine, DEFAULT_VIEWS)

    assert then.X.tobytes() == again.X.tobytes() != now.X.tobytes()
    assert (then.watermark, again.watermark, now.watermark) == (450, 450, 900)
    assert np.isnan(historical_features(lake, spine, DEFAULT_VIEWS, seq=0).X[:, _places("days_since_order")]).all()
    with pytest.raises(ValueError, match=r"seq is 451 and lake .*earlier reaches to place 450 .*features sync"):
        historical_features(earlier, spine, DEFAULT_VIEWS, seq=451)


def _places(*names: str) -> list[int]:
    return [DEFAULT_VIEWS.names.index(name) for name in names]


def test_mapping_buckets_sees_every_event_once(history: tuple[Database, Lake]):
    """In the order of the buckets, on one thread or on two."""
    _, lake = history

    counts = map_buckets(lambda lake, bucket: len(lake.read_bucket(bucket)), lake)

    assert sum(counts) == lake.rows == 900
    assert map_buckets(lambda lake, bucket: len(lake.read_bucket(bucket)), lake, n_jobs=2) == counts


@pytest.mark.parametrize(
    "spine",
    [
        pd.DataFrame({"contact_key": [1]}),
        pd.DataFrame({"contact_key": [1], "as_of": [pd.Timestamp("2026-01-01")]}),
        pd.DataFrame({"contact_key": [1.5], "as_of": [1]}),
    ],
)
def test_a_spine_of_other_columns_is_refused(tmp_path: Path, spine: pd.DataFrame):
    """The error names the column that is missing or of another type."""
    with pytest.raises(ValueError, match="spine"):
        historical_features(Lake(str(tmp_path)), spine, DEFAULT_VIEWS)
