"""A running application over a fresh database."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from fastapi import FastAPI

from service.app import create_app
from service.clock import SimulatedClock
from service.database import Database
from service.keys import create_key
from service.settings import Settings
from tests.service.calling import Caller, Client


@pytest.fixture
def clock(now: datetime) -> SimulatedClock:
    return SimulatedClock(now)


@pytest.fixture(scope="session")
def routes(empty_sqlite: Path) -> FastAPI:
    """One routing table for all tests, since it takes a while to build; each test gives it its own installation."""
    settings = Settings(home=empty_sqlite.parent / "home", _env_file=None)
    return create_app(settings, Database(f"sqlite:///{empty_sqlite}"))


@pytest.fixture
def client(settings: Settings, database: Database, clock: SimulatedClock, routes: FastAPI) -> Iterator[Client]:
    """A client that has no key."""
    own = create_app(settings, database, clock)
    routes.state.installation = own.state.installation
    routes.router.lifespan_context = own.router.lifespan_context
    with Client(routes) as started:
        yield started


@pytest.fixture
def caller(client: Client, database: Database, now: datetime) -> Callable[..., Caller]:
    """Makes a client that has a key with the given scopes."""

    def make(*scopes: str) -> Caller:
        with database.writing() as session:
            return Caller(client, create_key(session, "test", scopes, now)[1])

    return make
