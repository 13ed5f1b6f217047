"""Which versions of a model exist and which one serves: MLflow's runs, registry and aliases."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from training.serving import stamp_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Aliases as MLflow shows them: what serves, what served before it, what was trained but not promoted.
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model."""

    name: str
    version: int
    #: Folder of the plain files that serve it.
    folder: Path
    run_id: str
    created_at: datetime
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def _client(tracking_uri: str) -> Iterator[MlflowClient]:
    """MLflow's client, silent: it logs through handlers of its own, and asks home unless told not to."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    if tracking_uri.startswith("file:") or "://" not in tracking_uri:
        raise ValueError(
            f"MLflow no longer takes a folder as its tracking store ({tracking_uri!r}); "
            "set MLFLOW_TRACKING_URI to sqlite:////absolute/path/mlflow.db or to a server"
        )
    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        for name in ("mlflow", "mlflow.store.db.utils", "mlflow.tracking", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield MlflowClient(tracking_uri, registry_uri=tracking_uri)


def log_and_register(
    folder: Path,
    name: str,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    tracking_uri: str,
    artifact_root: Path,
) -> ModelVersion:
    """A run with its parameters and metrics, the files of ``folder`` as its artifacts, and a fresh version of ``name``.

    Parameters
    ----------
    folder : Path
        A folder of plain files as ``training.serving.write_model`` leaves it; its version is stamped here.
    params, metrics, tags : mapping
        Shown with the run; metrics that are NaN or infinite are left out, because MLflow's store refuses them.
    tracking_uri : str
        ``sqlite:///…`` or a server.
    artifact_root : Path
        Folder under which each model keeps the files of its versions.

    Returns
    -------
    ModelVersion
        Its ``folder`` is the place to serve from.
    """
    import math
    import shutil

    with _client(tracking_uri) as client:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = (Path(artifact_root).resolve() / name).as_uri() if tracking_uri.startswith("sqlite:") else None
            experiment_id = client.create_experiment(name, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run = client.create_run(experiment_id, tags=dict(tags), run_name=f"{name} {tags.get('as_of', '')}".strip())
        run_id = run.info.run_id
        try:
            now = int(datetime.now(UTC).timestamp() * 1000)
            client.log_batch(
                run_id,
                metrics=[Metric(k, float(v), now, 0) for k, v in metrics.items() if math.isfinite(v)],
                params=[Param(k, str(v)) for k, v in params.items()],
            )
            source = f"{run.info.artifact_uri}/model"
            registered = client.create_model_version(name, source=source, run_id=run_id, tags=dict(tags))
            version = int(registered.version)
            try:
                stamp_version(folder, version)
                client.log_artifacts(run_id, str(folder), "model")
            except BaseException:
                client.delete_model_version(name, str(version))
                raise
        except BaseException:
            client.set_terminated(run_id, status="FAILED")
            raise
        client.set_terminated(run_id)
        served_from = _local_path(source)
        if served_from is None:  # a server keeps the artifacts: serving reads a copy of its own
            served_from = Path(artifact_root).resolve() / name / run_id / "model"
            shutil.copytree(folder, served_from, dirs_exist_ok=True)
            client.set_model_version_tag(name, str(version), "folder", str(served_from))
        return _read(client, name, version)


def promote(name: str, version: int, *, tracking_uri: str) -> Path:
    """Make ``version`` the champion and what was the champion ``previous``; the folder to serve from.

    Raises
    ------
    LookupError
        If the model or the version does not exist.
    """
    with _client(tracking_uri) as client:
        found = _read(client, name, version)
        current = _alias(client, name, CHAMPION)
        if current is not None and current != version:
            client.set_registered_model_alias(name, PREVIOUS, str(current))
        client.set_registered_model_alias(name, CHAMPION, str(version))
        if _alias(client, name, CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        return found.folder


def rollback(name: str, *, tracking_uri: str) -> int:
    """Make the previous version the champion again, the two changing places; the version that serves now.

    Raises
    ------
    LookupError
        If the model does not exist or nothing served before.
    """
    with _client(tracking_uri) as client:
        current, previous = _alias(client, name, CHAMPION), _alias(client, name, PREVIOUS)
        if current is None or previous is None:
            raise LookupError(
                f"{name!r} has no earlier champion to go back to; `kairos models show {name}` lists its versions, "
                "`kairos models promote` picks one"
            )
        client.set_registered_model_alias(name, CHAMPION, str(previous))
        client.set_registered_model_alias(name, PREVIOUS, str(current))
        return previous


def mark_challenger(name: str, version: int, *, tracking_uri: str) -> None:
    """Give the alias ``challenger`` to a version that was trained and did not pass the gate."""
    with _client(tracking_uri) as client:
        client.set_registered_model_alias(name, CHALLENGER, str(version))


def champion(name: str, *, tracking_uri: str) -> ModelVersion | None:
    """The version that serves; None before the first promotion."""
    with _client(tracking_uri) as client:
        try:
            version = _alias(client, name, CHAMPION)
        except LookupError:
            return None
        return None if version is None else _read(client, name, version)


def model_version(name: str, version: int, *, tracking_uri: str) -> ModelVersion:
    """One version with its metrics and aliases; LookupError if there is none."""
    with _client(tracking_uri) as client:
        return _read(client, name, version)


def list_models(*, tracking_uri: str) -> dict[str, list[ModelVersion]]:
    """Every model's versions, newest first."""
    with _client(tracking_uri) as client:
        return {
            model.name: sorted(
                (
                    _read(client, model.name, int(v.version))
                    for v in client.search_model_versions(f"name='{model.name}'")
                ),
                key=lambda one: -one.version,
            )
            for model in sorted(client.search_registered_models(), key=lambda one: one.name)
        }


def _alias(client: MlflowClient, name: str, alias: str) -> int | None:
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LookupError(f"no model is called {name!r}; `kairos models list` shows those there are") from None
    version = model.aliases.get(alias)
    return None if version is None else int(version)


def _read(client: MlflowClient, name: str, version: int) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LookupError(
            f"{name!r} has no version {version}; `kairos models show {name}` lists its versions"
        ) from None
    folder = found.tags.get("folder") or _local_path(str(found.source))
    if folder is None:
        raise LookupError(
            f"version {version} of {name!r} keeps its files at {found.source}, not in a local folder; train it again"
        )
    return ModelVersion(
        name=name,
        version=int(found.version),
        folder=Path(folder),
        run_id=str(found.run_id),
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        aliases=tuple(sorted(found.aliases)),
        metrics=dict(client.get_run(str(found.run_id)).data.metrics),
        tags=dict(found.tags),
    )


def _local_path(uri: str) -> Path | None:
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None
