"""Prometheus metrics: requests, events, sends by state."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.database import Database
from service.tables import SendRow

log = logging.getLogger(__name__)


class Metrics:
    """The counters of one app, in a registry of their own."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kairos_requests", "HTTP requests.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "kairos_request_seconds",
            "Seconds from a request's head to its answer's head.",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self.registry,
        )
        self.events = Counter("kairos_events", "Events by what became of them.", ["outcome"], registry=self.registry)
        for outcome in ("stored", "duplicate", "quarantined"):
            self.events.labels(outcome)
        self.registry.register(_SendsByState(database))


class _SendsByState(Collector):
    """Rows of the send ledger by state, counted when Prometheus asks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily("kairos_sends", "Sends in the ledger by state.", labels=["state"])]

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("kairos_sends", "Sends in the ledger by state.", labels=["state"])
        try:
            with self._database.reading() as session:
                for state, count in session.execute(select(SendRow.state, func.count()).group_by(SendRow.state)):
                    family.add_metric([state], count)
        except SQLAlchemyError as error:  # the other metrics are worth having while the database is away
            log.warning("sends are not counted: %s", error, extra={"action": "metrics_without_sends"})
        return [family]


class Measured:
    """Middleware that counts requests by route template (never by path: ids would make endless series)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            metrics: Metrics = scope["app"].state.installation.metrics
            metrics.requests.labels(scope["method"], route, str(status)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - begun)
