"""Versions in MLflow: logged with their files, promoted, rolled back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from features.views import DEFAULT_VIEWS
from training import registry
from training.calibration import Calibration
from training.estimators import RidgeLogistic
from training.serving import ModelCard, load_model, write_model


def _folder(path: Path) -> Path:
    rng = np.random.default_rng(0)
    X = rng.exponential(1, (200, len(DEFAULT_VIEWS.names)))
    card = ModelCard(
        "churn", "outcome", "logistic", "a test", DEFAULT_VIEWS.name, DEFAULT_VIEWS.version, 30, "silence", "", "", {}
    )
    write_model(path, card, DEFAULT_VIEWS, RidgeLogistic.fit(X, X[:, 0] > 1), Calibration(), X)
    return path


def _register(tmp_path: Path, mlruns) -> registry.ModelVersion:
    return registry.log_and_register(
        _folder(tmp_path / "files"),
        "churn",
        params={"rung": "logistic"},
        metrics={"roc_auc": 0.7, "lift_10": float("nan")},
        tags={"view_set": "default@1", "watermark": "12", "rows": "200"},
        tracking_uri=mlruns.tracking_uri,
        artifact_root=mlruns.artifact_root,
    )


def test_a_version_is_logged_with_its_files_and_can_be_served(tmp_path, mlruns) -> None:
    """Params, metrics and tags are on the run; the folder loads and knows its version."""
    version = _register(tmp_path, mlruns)

    assert (version.name, version.version, version.metrics) == ("churn", 1, {"roc_auc": 0.7})
    assert version.tags["watermark"] == "12"
    assert version.folder.is_relative_to(mlruns.artifact_root)
    assert load_model(version.folder).version == 1
    assert _register(tmp_path, mlruns).version == 2


def test_promotion_keeps_the_previous_and_rollback_swaps(tmp_path, mlruns) -> None:
    """Promote 1, then 2: 1 is previous; roll back: 1 serves again and 2 is previous."""
    uri = {"tracking_uri": mlruns.tracking_uri}
    one, two = _register(tmp_path, mlruns), _register(tmp_path, mlruns)
    assert registry.champion("churn", **uri) is None
    with pytest.raises(LookupError, match="no earlier champion"):
        registry.rollback("churn", **uri)

    assert registry.promote("churn", 1, **uri) == one.folder
    registry.mark_challenger("churn", 2, **uri)
    assert registry.promote("churn", 2, **uri) == two.folder
    assert {v.version: v.aliases for v in registry.list_models(**uri)["churn"]} == {2: ("champion",), 1: ("previous",)}
    assert registry.rollback("churn", **uri) == 1
    assert {v.version: v.aliases for v in registry.list_models(**uri)["churn"]} == {2: ("previous",), 1: ("champion",)}


def test_promoting_the_champion_again_changes_nothing(tmp_path, mlruns) -> None:
    """The champion does not become its own predecessor."""
    uri = {"tracking_uri": mlruns.tracking_uri}
    _register(tmp_path, mlruns)
    registry.promote("churn", 1, **uri)
    registry.promote("churn", 1, **uri)

    assert registry.model_version("churn", 1, **uri).aliases == ("champion",)


def test_what_does_not_exist_is_named(tmp_path, mlruns) -> None:
    """Unknown models and versions are LookupErrors with the next step."""
    uri = {"tracking_uri": mlruns.tracking_uri}
    _register(tmp_path, mlruns)

    with pytest.raises(LookupError, match="no version 7"):
        registry.promote("churn", 7, **uri)
    with pytest.raises(LookupError, match="no model is called 'chrun'"):
        registry.rollback("chrun", **uri)


def test_a_folder_as_tracking_store_is_refused_with_the_remedy(tmp_path) -> None:
    """MLflow dropped its file store; the message says what to write instead."""
    for uri in (str(tmp_path), f"file:{tmp_path}"):
        with pytest.raises(ValueError, match="sqlite:///"):
            registry.list_models(tracking_uri=uri)


def test_the_registry_prints_nothing(tmp_path, mlruns, capfd) -> None:
    """MLflow's own chatter reaches neither stdout nor stderr: `--json` stays one object."""
    _register(tmp_path, mlruns)
    registry.promote("churn", 1, tracking_uri=mlruns.tracking_uri)

    assert capfd.readouterr() == ("", "")


def test_mlflow_is_not_imported_before_it_is_used() -> None:
    """Importing the registry and the runs does not import MLflow, which takes seconds."""
    script = "import sys; from training import registry, runs; sys.stdout.write(str('mlflow' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "False"
