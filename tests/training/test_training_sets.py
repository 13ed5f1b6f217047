"""Laws of saved training sets: made again bit for bit whatever came later, and without those who were erased."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from sqlalchemy.event import listen

from features.checks import sample_vectors
from features.events import NewEvent, append
from features.labels import CHURN, CONVERSION, EMAIL_CHURN
from features.lake import Lake
from features.store import StoreError
from features.tables import to_micros
from features.views import DEFAULT_VIEWS, ViewSet
from features.vocabulary import EMAIL_CLICKED, ORDER_CANCELLED, ORDER_COMPLETED, PAGE
from service.database import Database
from service.jobs import train_model
from service.settings import Settings
from training import churn, conversion, registry
from training.datasets import DAY_MICROS, Definition, TrainingSet, training_set
from training.runs import TRAINING_SET_FILE, train
from training.serving import Population, load_model
from training.study import Study
from training.training_sets import KEEP, NotReproduced, erase_from_training_sets, reproduce, save

HORIZON = 30
ASKED = Definition(CONVERSION, conversion.POPULATION, HORIZON, "an order")
SAVED_AT = datetime(2026, 3, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Past:
    """A shop whose log can be written on, and a saved training set of it."""

    database: Database
    lake: Lake
    until: int
    data: TrainingSet
    #: As the run keeps it: through JSON.
    manifest: dict[str, Any]

    def sync(self) -> None:
        with self.database.reading() as session:
            self.lake.sync(session)

    def go_on(self) -> None:
        """Orders, cancellations and clicks of the same contacts: live ones that arrive late, and imported history."""
        random = np.random.default_rng(5)
        oldest, contacts = int(self.data.as_of.min()) - 30 * DAY_MICROS, np.unique(self.data.contact_key).tolist()
        for batch, imported in (("late", False), ("imported", True), ("more", False)):
            events = [
                NewEvent(
                    key,
                    (ORDER_COMPLETED, ORDER_CANCELLED, PAGE, EMAIL_CLICKED)[n % 4],
                    int(random.integers(oldest, self.until)),
                    f"{batch}/{key}/{n}",
                    "user:0",
                    ref=f"user:{key - 1}-{n}",
                    value_minor=0 if n % 4 == 1 else 2000,
                    human_ppm=1_000_000,
                )
                for key in contacts
                for n in range(4)
            ]
            with self.database.writing() as session:
                append(session, events, received_at=self.until + 1, imported=imported)
            self.sync()


def made(lake: Lake, until: int, asked: Definition = ASKED) -> TrainingSet:
    newest = until - HORIZON * DAY_MICROS
    return training_set(lake, DEFAULT_VIEWS, asked, [newest - n * 15 * DAY_MICROS for n in range(6)])


@pytest.fixture
def past(shop: Any, tmp_path: Path) -> Iterator[Past]:
    """A copy of the made-up shop, and the training set of its last day."""
    with sqlite3.connect(shop.database.url.database) as source, sqlite3.connect(tmp_path / "shop.db") as copy:
        source.backup(copy)
    source.close()
    copy.close()
    database = Database(f"sqlite:///{tmp_path / 'shop.db'}", is_durable=False)
    lake = Lake(str(tmp_path / "lake"), buckets=8)
    with database.reading() as session:
        lake.sync(session)
    until = to_micros(shop.now)
    data = made(lake, until)
    yield Past(database, lake, until, data, json.loads(json.dumps(save(lake, "conversion", data, saved_at=SAVED_AT))))
    database.close()


def test_a_set_is_made_again_bit_for_bit_whatever_came_later(past: Past):
    """Late events, and history imported as known back then, change the set as it would be made now, not the saved."""
    past.go_on()
    now = made(past.lake, past.until)
    assert now.manifest["checksum"] != past.manifest["checksum"]
    assert (now.y != past.data.y).any()

    again = reproduce(past.lake, past.manifest, n_jobs=2)

    assert again.X.tobytes() == past.data.X.tobytes()
    assert again.y.tobytes() == past.data.y.tobytes()
    assert again.contact_key.tobytes() == past.data.contact_key.tobytes()
    assert again.as_of.tobytes() == past.data.as_of.tobytes()
    assert again.names == past.data.names
    assert again.manifest == past.manifest | {"erased_rows": 0, "unchecked_buckets": []}


def test_a_set_of_the_log_as_it_stood_needs_no_saved_rows(past: Past):
    """Named a place of the log, the same function makes the same set, spine and all."""
    past.go_on()
    manifest = past.manifest

    again = training_set(
        past.lake,
        ViewSet.from_definition(manifest["view_set_definition"]),
        Definition.from_dict(manifest["definition"]),
        manifest["instants"],
        seq=manifest["watermark"],
    )

    assert again.manifest["checksum"] == manifest["checksum"]


def test_a_rebuilt_lake_gives_the_same_set(past: Past):
    """The files of the lake do not matter, the log does."""
    past.go_on()
    with past.database.reading() as session:
        past.lake.rebuild(session)

    assert reproduce(past.lake, past.manifest).X.tobytes() == past.data.X.tobytes()


def test_churn_over_its_own_horizon_is_made_again_too(past: Past):
    """Population, outcome and horizon come from the manifest, not from what the code declares by then."""
    asked = Definition(CHURN, churn.population(45), 45, "no order in the next 45 days")
    data = made(past.lake, past.until - 15 * DAY_MICROS, asked)
    manifest = json.loads(json.dumps(save(past.lake, "churn", data, saved_at=SAVED_AT)))
    past.go_on()

    again = reproduce(past.lake, manifest)

    assert Definition.from_dict(manifest["definition"]) == asked
    assert again.y.tobytes() == data.y.tobytes()
    assert again.X.tobytes() == data.X.tobytes()


def test_weighted_rows_are_made_again_with_their_weights(past: Past):
    """E-mail churn leaves out who got too few mails; the weights are those of back then, also without the erased."""
    mailed = Population(((("sends_90d", 1, None),),), "mailed")
    data = made(past.lake, past.until - 30 * DAY_MICROS, Definition(EMAIL_CHURN, mailed, 60, "silence"))
    manifest = json.loads(json.dumps(save(past.lake, "email_churn", data, saved_at=SAVED_AT)))
    past.go_on()

    again = reproduce(past.lake, manifest)

    assert data.is_weighted
    assert data.manifest["censored_rows"] > len(data) > 100
    assert again.weight.tobytes() == data.weight.tobytes()
    assert again.y.tobytes() == data.y.tobytes()
    assert again.order_value.tobytes() == data.order_value.tobytes()
    gone = int(data.contact_key[0])
    past.lake.erase([gone])
    erase_from_training_sets(past.lake, [gone])
    assert reproduce(past.lake, manifest).weight.tobytes() == data.weight[data.contact_key != gone].tobytes()


def test_a_set_that_differs_is_refused_with_its_buckets(past: Past):
    """Vectors of another place of the log are not those: the buckets, the libraries that changed and a remedy."""
    past.go_on()
    other = past.manifest | {"libraries": {**past.manifest["libraries"], "numpy": "1.0"}}

    with pytest.raises(NotReproduced, match=r"buckets \[0, 1.*numpy 1\.0 then, .* now.*features verify"):
        reproduce(past.lake, other | {"watermark": past.lake.watermark})


def test_a_lake_that_is_behind_is_told_to_sync(past: Past, tmp_path: Path):
    """A set from beyond the lake's reach cannot be made again yet."""
    with pytest.raises(NotReproduced, match=r"at place \d+ of the log.*features sync"):
        reproduce(past.lake, past.manifest | {"watermark": past.lake.watermark + 1})


def test_the_store_holds_spine_and_outcomes_and_no_vector(past: Past):
    """A few bytes a row, in files by bucket; the manifest carries the definitions and no contact."""
    folder = past.manifest["folder"]
    files = past.lake.store.list(folder)
    size = sum(len(past.lake.store.read(path)) for path in files if path.endswith(".parquet"))

    assert folder.startswith("training/conversion-")
    assert len(files) == len(past.manifest["files"]) + 1 == 9
    assert size < 8 * len(past.data) + 8 * 2000
    assert past.manifest["rows"] == len(past.data)
    assert sum(bucket["rows"] for bucket in past.manifest["buckets"].values()) == len(past.data)
    assert ViewSet.from_definition(past.manifest["view_set_definition"]).version == DEFAULT_VIEWS.version
    assert {"python", "numpy", "numba", "lightgbm"} <= past.manifest["libraries"].keys()


def test_only_the_newest_sets_of_each_model_stay(past: Past):
    """Older ones go, with what a run that was broken off left; the other model's are not counted."""
    past.lake.store.write("training/conversion-0123/bucket=000-00.parquet", b"no manifest")
    newest = past.until - HORIZON * DAY_MICROS
    churned = save(past.lake, "churn", past.data, saved_at=SAVED_AT - timedelta(days=99))
    saved = [
        save(
            past.lake,
            "conversion",
            training_set(past.lake, DEFAULT_VIEWS, ASKED, [newest - n * DAY_MICROS]),
            saved_at=SAVED_AT + timedelta(days=n + 1),
        )
        for n in range(KEEP)
    ]

    folders = {path.rpartition("/")[0] for path in past.lake.store.list("training")}
    assert folders == {churned["folder"], *(manifest["folder"] for manifest in saved)}
    with pytest.raises(LookupError, match=r"conversion-.* is not there.*5 newest"):
        reproduce(past.lake, past.manifest)


def test_a_part_of_a_set_is_not_saved_as_the_whole(past: Past):
    """Rows that the manifest does not tell of could not be told again."""
    with pytest.raises(ValueError, match="not those of the set's manifest"):
        save(past.lake, "conversion", past.data.rows(past.data.y == 1), saved_at=SAVED_AT)


def test_a_damaged_or_missing_file_is_named(past: Past):
    """One changed byte, a lost file, a manifest that is none: an error with file and remedy."""
    folder = past.manifest["folder"]
    path = next(path for path in past.lake.store.list(folder) if path.endswith(".parquet"))
    data = past.lake.store.read(path)
    past.lake.store.write(path, data[:50] + b"?" + data[51:])
    with pytest.raises(StoreError, match=rf"{path}.*was altered.*train again"):
        reproduce(past.lake, past.manifest)
    past.lake.store.remove(path)
    with pytest.raises(StoreError, match=rf"{path} is missing.*train again"):
        reproduce(past.lake, past.manifest)
    past.lake.store.write(f"{folder}/manifest.json", b"[]")
    with pytest.raises(StoreError, match=r"manifest\.json is no manifest"):
        reproduce(past.lake, past.manifest)


# --- Erasing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files_followed", [True, False], ids=["from the set too", "from the lake so far"])
def test_an_erased_contact_is_reported_and_the_others_are_as_they_were(past: Past, files_followed: bool):
    """Its rows are left out and counted, its bucket is named; every other row is bit for bit the same."""
    gone = int(past.data.contact_key[0])
    others = past.data.contact_key != gone
    past.lake.erase([gone])
    if files_followed:
        assert erase_from_training_sets(past.lake, [gone]) == (~others).sum()
        assert erase_from_training_sets(past.lake, [gone]) == 0
    past.go_on()

    again = reproduce(past.lake, past.manifest)

    assert again.manifest["erased_rows"] == (~others).sum() > 0
    assert again.manifest["unchecked_buckets"] == past.lake.bucket_of([gone]).tolist()
    assert again.X.tobytes() == past.data.X[others].tobytes()
    assert again.y.tobytes() == past.data.y[others].tobytes()


def test_erasing_touches_the_contacts_bucket_only(past: Past):
    """Of every set; a bucket without a row left has no file, and a set that was broken off is removed."""
    other = save(past.lake, "churn", past.data, saved_at=SAVED_AT)
    past.lake.store.write("training/churn-0123/bucket=000-00.parquet", b"no manifest")
    before = set(past.lake.store.list("training"))
    keys = np.unique(past.data.contact_key)
    bucket = keys[past.lake.bucket_of(keys) == 5]
    rows = int(np.isin(past.data.contact_key, bucket).sum())

    assert erase_from_training_sets(past.lake, bucket.tolist()) == 2 * rows

    gone = before - set(past.lake.store.list("training"))
    assert {path.rpartition("/")[2].split("-")[0] for path in gone} == {"bucket=005", "bucket=000"}
    assert len(gone) == 3
    again = reproduce(past.lake, other)
    assert (again.manifest["erased_rows"], again.manifest["unchecked_buckets"]) == (rows, [5])


def test_who_is_erased_while_the_model_is_trained_is_not_saved(past: Past):
    """The set was in memory when the contact went; its rows do not reach the store."""
    data = made(past.lake, past.until - DAY_MICROS)
    gone = int(data.contact_key[0])
    past.lake.erase([gone])
    erase_from_training_sets(past.lake, [gone])

    manifest = save(past.lake, "conversion", data, saved_at=SAVED_AT)

    assert manifest["erased_rows"] == (data.contact_key == gone).sum()
    assert erase_from_training_sets(past.lake, [gone]) == 0
    assert reproduce(past.lake, manifest).manifest["erased_rows"] == manifest["erased_rows"]


def test_a_set_that_cannot_be_read_does_not_survive_an_erasure(past: Past, caplog):
    """Nobody can tell who is in a damaged file, so it goes, with a warning."""
    gone = int(past.data.contact_key[0])
    name = past.manifest["files"][str(past.lake.bucket_of([gone])[0])]["name"]
    past.lake.store.write(f"{past.manifest['folder']}/{name}", b"damaged")

    assert erase_from_training_sets(past.lake, [gone]) == 0

    assert past.lake.store.list("training") == []
    assert "cannot be read to erase" in caplog.text


def test_any_store_holds_training_sets(past: Past):
    """An object store: saved, made again, erased from."""
    lake = Lake("memory://kairos-training-sets", buckets=8)
    try:
        with past.database.reading() as session:
            lake.sync(session)
        manifest = save(lake, "conversion", past.data, saved_at=SAVED_AT)
        assert manifest["buckets"] == past.manifest["buckets"]
        assert reproduce(lake, manifest).X.tobytes() == past.data.X.tobytes()
        assert erase_from_training_sets(lake, past.data.contact_key[:1].tolist()) > 0
    finally:
        fsspec.filesystem("memory").rm("/kairos-training-sets", recursive=True)


@pytest.mark.postgres
def test_training_saves_its_set_under_the_lock_that_an_erasure_takes(
    past: Past, shop: Any, postgres: Any, tmp_path: Path
):
    """On an object store beside PostgreSQL that is the database's: each waits for the other on another machine."""
    lake, settings = Lake("memory://kairos-training-lock", buckets=8), Settings(home=tmp_path / "home", _env_file=None)
    said: list[str] = []
    listen(postgres.engine, "before_cursor_execute", lambda *told: said.append(told[2]))
    try:
        with past.database.reading() as session:
            lake.sync(session)
        train_model(postgres, lake, settings, "conversion", as_of=shop.now, now=shop.now)
    finally:
        fsspec.filesystem("memory").rm("/kairos-training-lock", recursive=True)

    assert [one.split("(")[0] for one in said if "advisory" in one] == [
        "select pg_advisory_lock",
        "select pg_advisory_unlock",
    ]


# --- The run -----------------------------------------------------------------------------------------------------


def test_a_registered_version_can_be_fitted_again_from_what_it_names(past: Past, shop: Any, mlruns: Any):
    """MLflow's run names the set and holds its manifest; made again and fitted again it is the same model."""
    where = {"tracking_uri": mlruns.tracking_uri, "artifact_root": mlruns.artifact_root}
    trained = train("conversion", past.lake, shop.now, seed=4, **where)
    past.go_on()

    found = registry.model_version("conversion", trained.version, tracking_uri=mlruns.tracking_uri)
    manifest = json.loads((found.folder / TRAINING_SET_FILE).read_text())
    data = reproduce(past.lake, manifest)
    model = load_model(found.folder)
    asked = replace(ASKED, horizon_days=manifest["definition"]["horizon_days"])
    today = sample_vectors(
        past.lake, DEFAULT_VIEWS, to_micros(shop.now), lambda X: asked.population.contains(X, DEFAULT_VIEWS.names)
    )
    study = Study(asked, data, data, asked.horizon_days, to_micros(shop.now), DEFAULT_VIEWS, 4, today)
    fitted = study.fit(to_micros(shop.now))

    assert found.tags["training_set"] == manifest["folder"]
    assert (found.tags["checksum"], found.tags["watermark"]) == (manifest["checksum"], str(manifest["watermark"]))
    assert model.predict(data.X).tobytes() == fitted.probability(data.X).tobytes()
