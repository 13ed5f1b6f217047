"""Prometheus metrics: requests, events, sends and how sending goes, the feature store and the models."""

from __future__ import annotations

import logging
import time
from collections import Counter as Counted
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.bounces.streams import LEAST_SENDS, STREAMS, WINDOW_DAYS, measure_streams
from service.clock import Clock
from service.database import Database
from service.experiments import arms_by_status
from service.feature_checks import latest_check
from service.halts import halts_in_force, leaving_allowed
from service.model_quality import newest_judged, running_test
from service.served_vectors import VectorLog
from service.tables import SendRow, ServingModelRow

log = logging.getLogger(__name__)


class Metrics:
    """The counters of one app, in a registry of their own."""

    def __init__(self, database: Database, clock: Clock, vectors: VectorLog) -> None:
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
        self.registry.register(_Sending(database, clock))
        self.registry.register(_ArmsByStatus(database))
        self.registry.register(_FeatureStore(database, clock, vectors))
        self.registry.register(_Models(database))


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


class _Sending(Collector):
    """How sending goes: what waits, how fast mails leave, what is stopped, what comes back."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily("kairos_queue_lag_seconds", "Since the oldest send that may leave fell due.")]

    def collect(self) -> Iterable[Metric]:
        now = self._clock.now()
        minute_ago = now - timedelta(minutes=1)
        try:
            with self._database.reading() as session:
                oldest = session.scalar(
                    select(func.min(SendRow.due_at)).where(SendRow.state == "planned", leaving_allowed())
                )
                left = {
                    stream: session.scalar(
                        select(func.count()).where(
                            SendRow.stream == stream, SendRow.state == "accepted", SendRow.finished_at > minute_ago
                        )
                    )
                    for stream in STREAMS
                }
                halts = Counted(row.scope.partition(":")[0] for row in halts_in_force(session))
                health = measure_streams(session, now)
        except SQLAlchemyError as error:
            log.warning("sending is not measured: %s", error, extra={"action": "metrics_without_sending"})
            return
        lag = max(0.0, (now - oldest).total_seconds()) if oldest is not None else 0.0
        yield GaugeMetricFamily("kairos_queue_lag_seconds", "Since the oldest send that may leave fell due.", value=lag)
        rate = GaugeMetricFamily("kairos_sends_per_minute", "Mails accepted in the last minute.", labels=["stream"])
        judged = (
            f"the sends that the stream is judged by: of {WINDOW_DAYS} days, or the newest {LEAST_SENDS:,} if worse"
        )
        complaints = GaugeMetricFamily("kairos_complaint_rate", f"Complaints, 0-1, of {judged}.", labels=["stream"])
        bounces = GaugeMetricFamily("kairos_hard_bounce_rate", f"Hard bounces, 0-1, of {judged}.", labels=["stream"])
        for one in health:
            rate.add_metric([one.stream], left[one.stream] or 0)
            complaints.add_metric([one.stream], one.complaint_rate)
            bounces.add_metric([one.stream], one.hard_bounce_rate)
        stopped = GaugeMetricFamily("kairos_halts", "Halts in force, by what they stop.", labels=["scope"])
        for scope in ("everything", "stream", "mailbox"):
            stopped.add_metric([scope], halts[scope])
        yield from (rate, complaints, bounces, stopped)


class _ArmsByStatus(Collector):
    """Arms of experiments that have not ended, by status; those that a guardrail paused on their own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        try:
            with self._database.reading() as session:
                counts = arms_by_status(session)
        except SQLAlchemyError as error:
            log.warning("arms are not counted: %s", error, extra={"action": "metrics_without_arms"})
            return [family]
        for status, count in counts.items():
            family.add_metric([status], count)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        says = "Arms of experiments that have not ended, by status."
        return GaugeMetricFamily("kairos_arms", says, labels=["status"])


class _FeatureStore(Collector):
    """What the newest stored check of the feature store found, and what became of sampled vectors in this process."""

    def __init__(self, database: Database, clock: Clock, vectors: VectorLog) -> None:
        self._database = database
        self._clock = clock
        self._vectors = vectors

    def describe(self) -> Iterable[Metric]:
        return [_logged_vectors(self._vectors)]

    def collect(self) -> Iterable[Metric]:
        yield _logged_vectors(self._vectors)
        try:
            with self._database.reading() as session:
                check = latest_check(session)
        except SQLAlchemyError as error:
            log.warning("the newest check is not read: %s", error, extra={"action": "metrics_without_check"})
            return
        if check is not None:
            yield from _found(check.report, (self._clock.now() - check.checked_at).total_seconds())


class _Models(Collector):
    """What outcomes said of the models: the newest judged scoring of each, served and in the shadow."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily("kairos_model_alarms", "Alarms of the newest judged scoring.", labels=["model"])]

    def collect(self) -> Iterable[Metric]:
        try:
            with self._database.reading() as session:
                rows = newest_judged(session)
                serving = session.scalars(select(ServingModelRow).order_by(ServingModelRow.name)).all()
                tests = {row.name: running_test(session, row)["e_value"] for row in serving}
        except SQLAlchemyError as error:
            log.warning("the models' quality is not read: %s", error, extra={"action": "metrics_without_models"})
            return
        labels = ["model", "version", "role"]
        gauges = {
            "roc_auc": GaugeMetricFamily("kairos_model_roc_auc", "ROC AUC on real outcomes.", labels=labels),
            "brier": GaugeMetricFamily("kairos_model_brier", "Brier score on real outcomes.", labels=labels),
            "predicted_over_actual": GaugeMetricFamily(
                "kairos_model_predicted_over_actual", "Total predicted over total actual.", labels=labels
            ),
        }
        alarms = GaugeMetricFamily("kairos_model_alarms", "Alarms of the newest judged scoring.", labels=labels)
        for row in rows:
            result = row.result or {}
            place = [row.model, str(row.version), row.role]
            alarms.add_metric(place, len(result.get("alarms", [])))
            for name, gauge in gauges.items():
                value = result.get("metrics", {}).get(name)
                if value is not None:
                    gauge.add_metric(place, value)
        fallen = GaugeMetricFamily(
            "kairos_model_fell_back", "1 where a model answers with its lower rung.", labels=["model"]
        )
        proof = GaugeMetricFamily(
            "kairos_model_loss_e_value", "Evidence that the model does worse than its lower rung.", labels=["model"]
        )
        for served in serving:
            fallen.add_metric([served.name], served.fell_back_at is not None)
            proof.add_metric([served.name], tests[served.name])
        yield from (*gauges.values(), alarms, fallen, proof)


def _logged_vectors(vectors: VectorLog) -> Metric:
    family = CounterMetricFamily(
        "kairos_vectors_logged", "Served vectors of sampled contacts by what became of them.", labels=["outcome"]
    )
    family.add_metric(["written"], vectors.written)
    family.add_metric(["dropped"], vectors.dropped)
    return family


def _found(report: dict[str, Any], age_seconds: float) -> Iterable[Metric]:
    """The report's figures as gauges; what it could not tell is left out."""

    def gauge(name: str, says: str, value: float | None) -> Iterable[Metric]:
        if value is not None:
            yield GaugeMetricFamily(name, says, value=value)

    yield from gauge("kairos_feature_check_age_seconds", "Since the newest check of the feature store.", age_seconds)
    yield from gauge("kairos_feature_check_problems", "Problems that it found.", len(report["problems"]))
    fresh, replayed = report["freshness"] or {}, report["replay"] or {}
    yield from gauge(
        "kairos_feature_freshness_seconds",
        "Wait of the oldest event that the lake did not have when it was checked.",
        fresh.get("seconds_behind"),
    )
    yield from gauge(
        "kairos_lake_events_behind",
        "Events that the lake did not have when it was checked.",
        fresh.get("events_behind"),
    )
    yield from gauge("kairos_vectors_replayed", "Served vectors computed again.", replayed.get("compared"))
    yield from gauge(
        "kairos_vectors_mismatched", "Of these, those that are not what the lake gives.", replayed.get("mismatched")
    )
    psi = GaugeMetricFamily(
        "kairos_feature_psi", "Population stability index against the day of training.", labels=["model", "feature"]
    )
    ks = GaugeMetricFamily(
        "kairos_feature_ks", "Kolmogorov-Smirnov distance from the day of training.", labels=["model", "feature"]
    )
    for model, shown in report["models"].items():
        for feature, one in shown["features"].items():
            if one["psi"] is not None:
                psi.add_metric([model, feature], one["psi"])
            if one["ks"] is not None:
                ks.add_metric([model, feature], one["ks"])
    missing = GaugeMetricFamily(
        "kairos_feature_missing_share", "Share of the contacts without a value.", labels=["view_set", "feature"]
    )
    for views, shown in report["view_sets"].items():
        for feature, share in shown["missing_shares"].items():
            if share is not None:
                missing.add_metric([views, feature], share)
    yield from (psi, ks, missing)


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
