"""The web application: every noun's endpoints over one installation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from service.api import (
    bounces,
    campaigns,
    contacts,
    decisions,
    evaluations,
    events,
    experiments,
    health,
    hygiene,
    idempotency,
    messages,
    models,
    outcomes,
    predictions,
    preferences,
    problems,
    reports,
    sends,
    stop,
    templates,
    tracking,
)
from service.api.installation import Installation
from service.api.metrics import Measured, Metrics
from service.clock import Clock, SystemClock
from service.database import Database
from service.flow.predict import refresh_serving
from service.hits import HitBuffer, RuleBook
from service.logs import configure
from service.served_vectors import VectorLog
from service.settings import Settings
from training.serving import Serving

log = logging.getLogger(__name__)

#: Seconds between two looks at which model versions should serve.
REFRESH_SECONDS = 5.0


def create_app(
    settings: Settings, database: Database, clock: Clock | None = None, serving: Serving | None = None
) -> FastAPI:
    """The application of one installation; several may live in one process.

    Parameters
    ----------
    serving : Serving, optional
        Models in memory, shared with a worker in the same process; a fresh one by default.
    """
    clock = clock or SystemClock()
    vectors = VectorLog(database, settings.vector_log_share)
    here = Installation(
        settings=settings,
        database=database,
        clock=clock,
        serving=serving or Serving(),
        hits=HitBuffer(database),
        hit_rules=RuleBook(settings.hit_rules),
        vectors=vectors,
        metrics=Metrics(database, clock, vectors),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_refresh, here, wait=True)
        watching = asyncio.create_task(_watch_models(here))
        yield
        watching.cancel()
        await here.hits.close()
        await asyncio.to_thread(vectors.close)

    app = FastAPI(
        title="Kairos",
        description="Decides for every contact whether to write, what to say and when, and learns from what happens.",
        version="0.1.0",
        lifespan=lifespan,
    )
    app.state.installation = here
    problems.install(app)
    idempotency.install(app)
    for noun in (
        events, preferences, contacts, predictions, decisions, experiments, evaluations, templates, campaigns, sends,
        messages, models, outcomes, reports, stop, tracking, bounces, hygiene, health,
    ):  # fmt: skip
        app.include_router(noun.router)
    app.add_middleware(problems.BoundedBody)
    app.add_middleware(Measured)
    return app


def from_environment() -> FastAPI:
    """The application of the installation that the environment describes, for servers of several processes."""
    settings = Settings()
    configure(settings.log_level)
    return create_app(settings, Database(settings.database))


async def _watch_models(here: Installation) -> None:
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        await asyncio.to_thread(_refresh, here)


def _refresh(here: Installation, wait: bool = False) -> None:
    try:
        with here.database.reading() as session:
            refresh_serving(session, here.serving, now=here.clock.now(), wait=wait)
    except SQLAlchemyError as error:
        log.warning("which models serve could not be read: %s", error, extra={"action": "models_not_refreshed"})
