"""A running application over a fresh database."""

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from service.app import create_app
from service.clock import SimulatedClock
from service.database import Database
from service.keys import create_key
from service.settings import Settings
from tests.service.calling import Caller, Client


@pytest.fixture
def clock(now: datetime) -> SimulatedClock:
    return SimulatedClock(now)


@pytest.fixture
def client(settings: Settings, database: Database, clock: SimulatedClock) -> Iterator[Client]:
    """A client that has no key."""
    with Client(create_app(settings, database, clock)) as started:
        yield started


@pytest.fixture
def caller(client: Client, database: Database, now: datetime) -> Callable[..., Caller]:
    """Makes a client that has a key with the given scopes."""

    def make(*scopes: str) -> Caller:
        with database.writing() as session:
            return Caller(client, create_key(session, "test", scopes, now)[1])

    return make
