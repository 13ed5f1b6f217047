"""Live prediction and one decision over HTTP, beside an endpoint that does nothing and MLflow's server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import select

from features.lake import Lake
from features.views import DEFAULT_VIEWS
from service.app import create_app
from service.clock import SimulatedClock
from service.database import Database
from service.demo import free_port, serving_http, write_contacts, write_events
from service.flow.decide import Arm, NewExperiment, open_experiment
from service.jobs import score_contacts, train_model
from service.keys import create_key
from service.settings import Settings
from service.tables import ServingModelRow
from training.serving import Serving
from training.simulation import World

END = datetime(2026, 3, 2, tzinfo=UTC)
N_CONTACTS, N_DAYS, N_REQUESTS = 2_000, 120, 2_000
ARMS = tuple(Arm(f"arm_{number}", f"Subject {number}") for number in range(10))
#: Experiments that a decision is asked of: one that counts, and one that looks at the contact's vector.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "decision": {"floor": 0.02},
    "linear_decision": {
        "floor": 0.02, "policy": "linear", "context": {"features": list(DEFAULT_VIEWS.names[:29])},
    },
}  # fmt: skip


def run() -> dict[str, Any]:
    """Milliseconds of one request after another over one kept-alive connection."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        settings = Settings(home=Path(folder), public_url=f"http://127.0.0.1:{port}", _env_file=None)
        database = Database(settings.database)
        database.upgrade()
        world = World.generate(N_CONTACTS, N_DAYS, 7, start=END - timedelta(days=N_DAYS))
        write_contacts(database, world)
        events = write_events(database, world.history(END), now=END, imported=True)
        lake = Lake(settings.lake, settings.buckets)
        with database.reading() as session:
            lake.sync(session)
        for name in ("churn", "conversion", "send_hour"):
            train_model(database, lake, settings, name, as_of=END, now=END)
        serving = Serving()
        app = create_app(settings, database, SimulatedClock(END), serving)
        with database.writing() as session:
            _, secret = create_key(session, "bench", ["read", "write"], END)
            experiments = {
                name: open_experiment(session, NewExperiment("Bench", "subject", ARMS, **asked), now=END)
                for name, asked in EXPERIMENTS.items()
            }
        with (
            serving_http(app, port),
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {secret}"}, timeout=30
            ) as client,
        ):
            for name in ("churn", "conversion", "send_hour"):
                model = serving.get(name)
                if model is not None:
                    score_contacts(database, lake, model, as_of=END)
            users = np.random.default_rng(7).choice(world.user_ids, N_REQUESTS)
            report = {
                "contacts": N_CONTACTS,
                "events": events,
                "nothing": _latency(client, ["/healthz"] * N_REQUESTS),
                "vector": _latency(client, [f"/v1/contacts/{user}/vector" for user in users]),
                "predictions": _latency(client, [f"/v1/contacts/{user}/predictions" for user in users]),
                "one_model": _latency(
                    client,
                    ["/v1/predictions"] * N_REQUESTS,
                    [{"user_ids": [user], "models": ["conversion"]} for user in users],
                ),
                **{
                    name: _decision_latency(client, experiment_id, users.tolist())
                    for name, experiment_id in experiments.items()
                },
            }
        served = serving.get("conversion")
        assert served is not None
        with database.reading() as session:
            folder_of = session.scalar(select(ServingModelRow.path).where(ServingModelRow.name == "conversion"))
        X = np.nan_to_num(np.random.default_rng(0).random((N_REQUESTS, len(served.view_set.names))))
        with _mlflow_serving(Path(str(folder_of)), Path(folder)) as rival:
            report["mlflow_models_serve"] = _latency(
                rival,
                ["/invocations"] * N_REQUESTS,
                [{"dataframe_split": {"columns": list(served.view_set.names), "data": [x.tolist()]}} for x in X],
            )
        database.close()
    report["predictions_over_nothing"] = round(report["predictions"]["p50_ms"] / report["nothing"]["p50_ms"], 2)
    report["one_model_over_mlflow"] = round(report["one_model"]["p50_ms"] / report["mlflow_models_serve"]["p50_ms"], 3)
    return report


@contextmanager
def _mlflow_serving(model_folder: Path, scratch: Path) -> Iterator[httpx.Client]:
    """`mlflow models serve` on the model that serves here, one process, as MLflow's manual starts it."""
    import mlflow

    root = Path(__file__).parents[2]
    path = scratch / "pyfunc"
    mlflow.pyfunc.save_model(
        path,
        python_model=str(root / "tests" / "benchmarks" / "rival_mlflow.py"),
        artifacts={"folder": str(model_folder)},
        pip_requirements=[],
    )
    port = free_port()
    with (scratch / "mlflow.log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "models", "serve", "-m", str(path), "--env-manager", "local",
                "--port", str(port), "--workers", "1",
            ],
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # it starts uvicorn by name
                "PYTHONPATH": str(root),
                "MLFLOW_TRACKING_URI": f"sqlite:///{scratch / 'rival.db'}",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                for _ in range(120):
                    try:
                        client.get("/ping").raise_for_status()
                        break
                    except httpx.TransportError:
                        if server.poll() is not None:
                            raise RuntimeError((scratch / "mlflow.log").read_text()[-2000:]) from None
                        time.sleep(0.5)
                yield client
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _latency(client: httpx.Client, paths: list[str], bodies: list[dict[str, Any]] | None = None) -> dict[str, float]:
    if bodies is None:
        return _timed([partial(client.get, path) for path in paths])
    return _timed([partial(client.post, path, json=body) for path, body in zip(paths, bodies, strict=True)])


def _decision_latency(client: httpx.Client, experiment_id: str, users: list[str]) -> dict[str, float]:
    """One new decision a request, each with its row and its event on disk before the answer."""
    bodies = [
        {"experiment": experiment_id, "user_ids": [user], "occurrence": f"visit-{number}"}
        for number, user in enumerate(users)
    ]
    return _timed([partial(client.post, "/v1/decisions", json=body) for body in bodies])


def _timed(requests: list[Callable[[], httpx.Response]]) -> dict[str, float]:
    for request in requests[:20]:
        request().raise_for_status()
    took = []
    for request in requests[20:]:
        begin = time.perf_counter()
        response = request()
        took.append(time.perf_counter() - begin)
        response.raise_for_status()
    p50, p99 = np.quantile(took, [0.5, 0.99]) * 1000
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "requests": len(took)}
