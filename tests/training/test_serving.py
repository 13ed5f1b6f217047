"""Plain files in, the same numbers out; anything altered, foreign or broken is refused and the old model stays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from features.views import DEFAULT_VIEWS, ORDERS, SEND_HOUR_VIEWS, FeatureView, ViewSet
from training.calibration import Calibration
from training.estimators import RUNGS
from training.personas import Personas
from training.send_hour import SendHourModel
from training.serving import BrokenModel, ModelCard, Population, Serving, Wanted, load_model, stamp_version, write_model

NOW = datetime(2026, 3, 2, tzinfo=UTC)


def _vectors(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    X = np.floor(rng.exponential(20, (n, len(DEFAULT_VIEWS.names))))
    X[rng.random(X.shape) < 0.1] = np.nan
    y = (rng.random(n) < 1 / (1 + np.exp(-np.nan_to_num(X[:, 0]) / 20 + 1))).astype(np.int8)
    return X, y


def _card(rung: str, name: str = "conversion", version: int = 0) -> ModelCard:
    return ModelCard(
        name=name,
        kind="outcome",
        rung=rung,
        reason="a test",
        view_set=DEFAULT_VIEWS.name,
        view_set_version=DEFAULT_VIEWS.version,
        horizon_days=30,
        outcome="an order",
        as_of=NOW.isoformat(),
        created_at=NOW.isoformat(),
        metrics={"roc_auc": 0.7, "lift_10": float("nan")},
        population=Population(((("orders_ever", 1, None),), (("days_known", 0, 90),)), "buyers"),
        version=version,
    )


def _written(folder: Path, rung: str, version: int = 1) -> Path:
    X, y = _vectors()
    write_model(folder, _card(rung), DEFAULT_VIEWS, RUNGS[rung].fit(X, y), Calibration(0.9, -0.2), X)
    stamp_version(folder, version)
    return folder


@pytest.fixture(scope="module", params=["logistic", "lightgbm"])
def folder(request, tmp_path_factory) -> Path:
    """A written model of each rung; tests that alter it copy it first."""
    return _written(tmp_path_factory.mktemp("model") / request.param, request.param)


def test_what_is_loaded_gives_what_was_fitted(folder) -> None:
    """The round trip over plain files changes no probability."""
    X, y = _vectors()
    model = load_model(folder)
    fitted = RUNGS[model.rung].fit(X, y)

    np.testing.assert_allclose(model.predict(X), Calibration(0.9, -0.2).apply(fitted.log_odds(X)), atol=1e-12, rtol=0)
    assert (model.name, model.version, model.card.horizon_days) == ("conversion", 1, 30)
    assert model.view_set is DEFAULT_VIEWS


def test_every_altered_file_is_refused(folder, tmp_path) -> None:
    """One changed byte in any file of the folder keeps the model from loading, and the message names the file."""
    for path in sorted(folder.iterdir()):
        if path.name == "checksums.json":
            continue
        copy = tmp_path / path.name.replace(".", "_")
        shutil.copytree(folder, copy)
        (copy / path.name).write_bytes(path.read_bytes().replace(b"0", b"1", 1))
        with pytest.raises(BrokenModel, match=path.name):
            load_model(copy)


def test_a_model_that_no_longer_gives_its_golden_outputs_is_refused(folder, tmp_path) -> None:
    """Checksums may be right and the numbers wrong: the golden rows find it."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "calibration.json").write_text(json.dumps({"slope": 0.9, "intercept": -0.2000001}))
    stamp_version(copy, 1)

    with pytest.raises(BrokenModel, match="golden rows"):
        load_model(copy)


def _altered(folder: Path, **changes: object) -> Path:
    """The folder with other contents of ``view_set.json``, vouched for by its checksums."""
    content = json.loads((folder / "view_set.json").read_text()) | changes
    (folder / "view_set.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    stamp_version(folder, 1)
    return folder


EDITED = ViewSet("default", (FeatureView("orders", "count", ORDERS, (14,), "frequency", "orders", "Orders."),))


def test_a_model_goes_on_with_the_views_it_was_trained_on(folder, monkeypatch) -> None:
    """After ``features/views.py`` was edited an old version gives what it gave, reasons with their families too."""
    X, _ = _vectors()
    before = load_model(folder)
    probabilities, reasons = before.predict(X), before.reasons(X[:20])
    for declared in ({"default": EDITED}, {}):
        monkeypatch.setattr("training.serving.VIEW_SETS", declared)
        model = load_model(folder)

        assert model.view_set is not DEFAULT_VIEWS
        assert (model.view_set.version, model.view_set.names) == (DEFAULT_VIEWS.version, DEFAULT_VIEWS.names)
        assert model.predict(X).tobytes() == probabilities.tobytes()
        assert model.reasons(X[:20]) == reasons


def test_a_definition_that_is_not_the_cards_is_refused(tmp_path) -> None:
    """A card that names another version, and a definition of other views, do not go together."""
    X, y = _vectors()
    foreign = replace(_card("logistic"), view_set_version="0123456789abcdef")
    write_model(tmp_path / "a", foreign, DEFAULT_VIEWS, RUNGS["logistic"].fit(X, y), Calibration(), X)
    with pytest.raises(
        BrokenModel, match=rf"0123456789abcdef.*version {DEFAULT_VIEWS.version}.*kairos train conversion"
    ):
        load_model(tmp_path / "a")
    other = _altered(_written(tmp_path / "b", "logistic"), definition=EDITED.definition())
    with pytest.raises(BrokenModel, match=rf"{DEFAULT_VIEWS.version}.*defines 'default' version {EDITED.version}"):
        load_model(other)


def test_a_definition_that_cannot_be_evaluated_is_refused(tmp_path, monkeypatch) -> None:
    """Primitives that mean something else by now, one this program has not, or no definition at all."""
    content = DEFAULT_VIEWS.definition()
    strange = content | {"views": [{**content["views"][0], "foresight_days": 3}]}
    for number, definition in enumerate((strange, {"name": "default"}, [1])):
        with pytest.raises(BrokenModel, match=r"cannot evaluate.*kairos train conversion"):
            load_model(_altered(_written(tmp_path / str(number), "logistic"), definition=definition))
    folder = _written(tmp_path / "m", "logistic")
    monkeypatch.setattr("features.views.SEMANTICS", 99)
    with pytest.raises(BrokenModel, match=r"semantics.*99.*kairos train conversion"):
        load_model(folder)


def test_a_folder_without_a_definition_serves_as_long_as_its_views_are_declared(tmp_path, monkeypatch) -> None:
    """Versions of before definitions were kept: taken while the declared set is theirs, refused after an edit."""
    old = _altered(_written(tmp_path / "m", "logistic"), definition=None)

    assert load_model(old).view_set is DEFAULT_VIEWS
    for declared, says in (({"default": EDITED}, f"declares version {EDITED.version}"), ({}, "none of that name")):
        monkeypatch.setattr("training.serving.VIEW_SETS", declared)
        with pytest.raises(BrokenModel, match=rf"does not keep its definition.*{says}.*kairos train conversion"):
            load_model(old)


def test_a_missing_file_or_folder_is_named(folder, tmp_path) -> None:
    """What is not there is named, with what to do."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "view_set.json").unlink()

    with pytest.raises(BrokenModel, match=r"view_set\.json is missing"):
        load_model(copy)
    with pytest.raises(BrokenModel, match="no model folder"):
        load_model(tmp_path / "nowhere")


def test_a_folder_holds_plain_text_only(folder) -> None:
    """Every file is JSON or LightGBM's text: nothing that could be unpickled."""
    for path in folder.iterdir():
        text = path.read_bytes().decode("utf-8")
        assert path.suffix == ".json" or (path.name == "booster.txt" and text.startswith("tree\n"))
        if path.suffix == ".json":
            json.loads(text)


def test_serving_imports_neither_mlflow_nor_sklearn_nor_pickles(folder) -> None:
    """A process that loads and asks a model has not imported MLflow or scikit-learn's models."""
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from training.serving import load_model\n"
        f"model = load_model(Path({str(folder)!r}))\n"
        "model.predict(np.zeros((1, len(model.view_set.names))))\n"
        "print([m for m in ('mlflow', 'sklearn.linear_model', 'joblib.numpy_pickle') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    loaded = json.loads(done.stdout.replace("'", '"'))
    assert "mlflow" not in loaded
    assert "sklearn.linear_model" not in loaded


def test_the_population_is_read_off_the_vector(folder) -> None:
    """A contact belongs when every bound of one alternative holds; a missing value meets none."""
    model = load_model(folder)
    column = {name: i for i, name in enumerate(DEFAULT_VIEWS.names)}
    X = np.zeros((4, len(column)))
    X[:, column["days_known"]] = [np.nan, 100, 90, np.nan]
    X[:, column["orders_ever"]] = [0, 0, 0, 2]

    assert model.contains(X).tolist() == [False, False, True, True]


def test_wrong_width_is_refused(folder) -> None:
    """Vectors of another width are an error that names both."""
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        load_model(folder).predict(np.zeros((1, 3)))


def test_one_row_takes_less_than_a_millisecond(folder) -> None:
    """A live prediction from a vector is far below what a request may cost (the benchmark has the exact figure)."""
    model = load_model(folder)
    X = _vectors()[0][:1]
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        model.predict(X)
        times.append(time.perf_counter() - begin)

    assert np.median(times) < 1e-3


def test_the_send_hour_model_comes_back_whole(tmp_path) -> None:
    """Hours round-trip through their folder with the set of views they belong to."""
    rng = np.random.default_rng(0)
    personas = Personas(np.array([0.3, 0.7]), rng.uniform(0.1, 0.3, (2, 2, 24)), np.array([3.0, 1.0]), np.full(2, 5.0))
    hours = SendHourModel(
        "personal", True, 0.2, rng.uniform(0.1, 0.3, 24), personas, correction=np.ones(24), prior_events=np.inf
    )
    card = replace(
        _card("personal", "send_hour"),
        kind="send_hour",
        view_set=SEND_HOUR_VIEWS.name,
        view_set_version=SEND_HOUR_VIEWS.version,
        population=Population(((),), "every contact"),
    )
    X = rng.poisson(1.0, (30, 120)).astype(float)
    write_model(tmp_path, card, SEND_HOUR_VIEWS, hours, None, X)
    model = load_model(tmp_path)

    np.testing.assert_array_equal(model.predict_hours(X), hours.predict_hours(X))
    assert model.hour_effect
    assert model.contains(X).all()
    assert set(model.levels(X)) <= {"global", "persona", "contact"}


def test_serving_swaps_in_the_background_and_keeps_the_old_when_the_new_fails(tmp_path, caplog) -> None:
    """A new version takes over; a broken one is logged with its reason while the old one goes on."""
    first, second, third = (_written(tmp_path / str(v), "logistic", v) for v in (1, 2, 3))
    (third / "logistic.json").write_text("{}")
    serving = Serving()

    serving.refresh({"conversion": (1, first)}, now=NOW, wait=True)
    before = serving.get("conversion")
    serving.refresh({"conversion": (2, second)}, now=NOW, wait=True)
    assert serving.versions == {"conversion": 2}
    assert serving.get("conversion") is not before
    with caplog.at_level("ERROR"):
        serving.refresh({"conversion": (3, third)}, now=NOW, wait=True)
    assert serving.versions == {"conversion": 2}
    assert "logistic.json was altered" in caplog.text
    assert "version 2 goes on serving" in caplog.text


def test_a_failed_version_is_tried_again_after_a_minute_not_at_each_look(tmp_path, caplog) -> None:
    """A broken folder does not fill the log; once mended it is found."""
    folder = _written(tmp_path / "m", "logistic", 5)
    good = (folder / "logistic.json").read_text()
    (folder / "logistic.json").write_text("{}")
    serving = Serving()
    for seconds in (0, 1, 2):
        serving.refresh({"conversion": (5, folder)}, now=NOW + timedelta(seconds=seconds), wait=True)
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
    (folder / "logistic.json").write_text(good)
    serving.refresh({"conversion": (5, folder)}, now=NOW + timedelta(seconds=61), wait=True)

    assert serving.versions == {"conversion": 5}


def test_a_model_no_longer_wanted_is_dropped(tmp_path) -> None:
    """What the wanted list does not name does not serve."""
    serving = Serving()
    serving.refresh({"conversion": (1, _written(tmp_path / "m", "logistic"))}, now=NOW, wait=True)
    serving.refresh({}, now=NOW, wait=True)

    assert serving.get("conversion") is None


def test_without_its_files_a_model_answers_with_its_previous_version(tmp_path) -> None:
    """At the start of a process too; it says why, and the wanted version takes over once its files are back."""
    first, second = (_written(tmp_path / str(v), "logistic", v) for v in (1, 2))
    kept = tmp_path / "kept"
    shutil.copytree(second, kept)
    shutil.rmtree(second)
    wanted = {"conversion": Wanted(2, str(second), 1, str(first))}
    serving = Serving()

    serving.refresh(wanted, now=NOW, wait=True)
    assert serving.versions == {"conversion": 1}
    assert "version 2 does not load, version 1 goes on serving" in serving.why["conversion"]
    shutil.copytree(kept, second)
    serving.refresh(wanted, now=NOW + timedelta(seconds=61), wait=True)
    assert serving.versions == {"conversion": 2}
    assert serving.why == {}


def test_without_either_nothing_serves_and_both_reasons_are_told(tmp_path) -> None:
    """No exception: other models and the service go on."""
    serving = Serving()
    serving.refresh({"conversion": Wanted(2, str(tmp_path / "b"), 1, str(tmp_path / "a"))}, now=NOW, wait=True)

    assert serving.versions == {}
    assert "none serves" in serving.why["conversion"]
    assert "nor does version 1" in serving.why["conversion"]


def test_a_version_that_fell_back_answers_with_the_base_rate_until_it_need_not(tmp_path) -> None:
    """Same version and population, the lower rung's probability, its reason shown; lifted, the old answers exactly."""
    X, y = _vectors()
    card = replace(_card("logistic"), metrics={"base_rate": 0.25})
    write_model(tmp_path, card, DEFAULT_VIEWS, RUNGS["logistic"].fit(X, y), Calibration(0.9, -0.2), X)
    stamp_version(tmp_path, 4)
    serving = Serving()
    serving.refresh({"conversion": Wanted(4, str(tmp_path))}, now=NOW, wait=True)
    before = serving.get("conversion").predict(X)

    serving.refresh({"conversion": Wanted(4, str(tmp_path), fell_back="it lost")}, now=NOW, wait=True)
    model = serving.get("conversion")
    np.testing.assert_allclose(model.predict(X), 0.25)
    assert (model.rung, model.version, model.card.reason) == ("base_rate", 4, "it lost")
    assert serving.why == {"conversion": "it lost"}
    assert model.reasons(X[:3]) == [[], [], []]
    serving.refresh({"conversion": Wanted(4, str(tmp_path))}, now=NOW, wait=True)
    np.testing.assert_array_equal(serving.get("conversion").predict(X), before)
