"""One function per model: what the log holds → a fitted, judged, registered version; and the rolling backtest."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from sqlalchemy.orm import Session

from features.checks import sample_vectors
from features.labels import CHURN, CHURN_HORIZON_BOUNDS, CONVERSION, churn_horizon_days
from features.lake import Lake
from features.offline import historical_features
from features.tables import from_micros, to_micros
from features.views import DEFAULT_VIEWS, SEND_HOUR_VIEWS
from training import churn, conversion, registry, send_hour, training_sets
from training.calibration import Calibration
from training.datasets import (
    DAY_MICROS,
    Array,
    Definition,
    LogSpan,
    TrainingSet,
    burn_in_micros,
    checksum,
    closed_sends,
    log_span,
    snapshot_instants,
    training_set,
    vectors_of,
)
from training.history import longest_horizon_days
from training.ladder import NotEnoughData, check_enough
from training.leaks import leak
from training.metrics import bootstrap_mean, evaluate, log_losses, paired_difference
from training.report import metrics_of, write_report
from training.send_hour import FittedHours, Sends, Slice
from training.serving import BrokenModel, ModelCard, Population, ServedOutcome, load_model, write_model
from training.study import ANCHOR_DAYS, Judgement, Study, is_about_orders, judged_cutoffs

logger = logging.getLogger(__name__)

MODELS = (churn.NAME, conversion.NAME, send_hour.NAME)
#: Cut-offs at which a version is judged, at most.
JUDGED_CUTOFFS = 3
#: Who can be asked where no never-buyer was learned from.
BUYERS = Population(alternatives=((("orders_ever", 1, None),),), says="contacts who have ordered")
#: What a version was trained on, beside its files.
TRAINING_SET_FILE = "training_set.json"
#: Sends by which the send hour's strengths are tuned, and by which its rung is judged, start at these shares of time.
TUNE_FROM, JUDGE_FROM = 0.5, 0.7


@dataclass(frozen=True)
class TrainedVersion:
    """A registered version, how it did on the last closed window, and whether it serves."""

    name: str
    version: int
    #: Plain files that serve it.
    folder: Path
    rung: str
    #: Why this rung.
    reason: str
    metrics: dict[str, float]
    promoted: bool
    #: What the gate found.
    gate: str


@dataclass(frozen=True)
class Gate:
    """Whether a new version may serve, and why."""

    passed: bool
    reason: str


def train(
    name: str,
    lake: Lake,
    as_of: datetime,
    *,
    tracking_uri: str,
    artifact_root: Path,
    horizon_days: int | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    definition: Definition | None = None,
    session: Session | None = None,
) -> TrainedVersion:
    """A version of ``name`` trained on what was known at ``as_of``: logged, registered, promoted if it passes the gate.

    Parameters
    ----------
    name : str
        ``churn``, ``conversion`` or ``send_hour``, or whatever ``definition`` is of.
    lake : Lake
    as_of : datetime
        Aware; outcomes after it are not looked at.
    tracking_uri : str
        MLflow's, ``sqlite:///…`` or a server.
    artifact_root : Path
        Folder of the versions' files.
    horizon_days : int, optional
        Days an outcome is awaited; default 30 for conversion, from the usual gap of buyers for churn.
    seed : int
        The same log, ``as_of`` and seed give the same model.
    n_jobs : int
        Buckets worked on at a time.
    definition : Definition, optional
        Of a declared outcome (`training.outcomes`); its horizon is taken as it is.
    session : Session, optional
        For the lock of the lake's store, under which the training set is saved; see `Store.exclusive`.

    Raises
    ------
    NotEnoughData
        With counts and remedy.
    ValueError
        If a single feature tells the outcome apart: it leaks.
    LookupError
        If there is no model of that name or no event in the lake.
    """
    if name not in MODELS and definition is None:
        raise LookupError(f"no model is called {name!r}; choose one of {', '.join(MODELS)}")
    until = to_micros(as_of)
    with tempfile.TemporaryDirectory(prefix="kairos-train-") as scratch:
        folder = Path(scratch) / name
        if name == send_hour.NAME:
            trained = _train_hours(lake, until, folder, n_jobs)
        else:
            trained = _train_outcome(
                name, lake, until, folder, horizon_days, seed, n_jobs, tracking_uri, definition, session
            )
        card, gate, manifest = trained
        registered = registry.log_and_register(
            folder,
            name,
            params={"rung": card.rung, "horizon_days": card.horizon_days, "seed": seed, "as_of": card.as_of},
            metrics={key: value for key, value in card.metrics.items() if value is not None},
            tags={**manifest, "rung": card.rung, "reason": card.reason, "as_of": card.as_of, "gate": gate.reason},
            tracking_uri=tracking_uri,
            artifact_root=artifact_root,
        )
    if gate.passed:
        registry.promote(name, registered.version, tracking_uri=tracking_uri)
    else:
        registry.mark_challenger(name, registered.version, tracking_uri=tracking_uri)
    logger.info(
        "%s version %d trained (%s), %s",
        name,
        registered.version,
        card.rung,
        "promoted" if gate.passed else f"not promoted: {gate.reason}",
        extra={"action": "model_trained", "model": name, "version": registered.version, "promoted": gate.passed},
    )
    metrics = {key: math.nan if value is None else value for key, value in card.metrics.items()}
    return TrainedVersion(
        name, registered.version, registered.folder, card.rung, card.reason, metrics, gate.passed, gate.reason
    )


Trained = tuple[ModelCard, Gate, dict[str, str]]


def define(name: str, span: LogSpan, until: int, horizon_days: int | None) -> tuple[Definition, str]:
    """The outcome with its horizon, and a word on the horizon where the history bounds it.

    Judging takes a closed window at the cut-off and one before it to learn from: two horizons and the burn-in. Churn's
    own horizon is shortened to what the history bears; one that was asked for, or conversion's, is refused.

    Raises
    ------
    NotEnoughData
        If the history is shorter than two horizons and the burn-in.
    """
    history = until - span.first
    note = ""
    if name == conversion.NAME:
        horizon = horizon_days or conversion.HORIZON_DAYS
    else:
        horizon = horizon_days or churn_horizon_days(span.gaps)
        # A third of the history leaves several windows to learn from before the one that judges.
        bearable = max(CHURN_HORIZON_BOUNDS[0], (history - burn_in_micros(history)) // (3 * DAY_MICROS))
        if horizon_days is None and bearable < horizon:
            note = f"; three usual gaps are {horizon} days, a history of {history // DAY_MICROS} days bears {bearable}"
            horizon = int(bearable)
    check_history(name, horizon, history)
    if name == conversion.NAME:
        says = f"an order in the next {horizon} days"
        return Definition(CONVERSION, conversion.POPULATION, horizon, says), note
    return Definition(CHURN, churn.population(horizon), horizon, f"no order in the next {horizon} days"), note


def check_history(name: str, horizon_days: int, history_micros: int) -> None:
    """Refuse a horizon that the history is too short to judge.

    Raises
    ------
    NotEnoughData
        With the days there are and the days there could be.
    """
    longest = longest_horizon_days(history_micros)
    if horizon_days < 1 or horizon_days > longest:
        raise NotEnoughData(
            f"{name} over {horizon_days} days cannot be judged on {history_micros // DAY_MICROS} days of history: it "
            f"takes two horizons and a burn-in; import a longer history or pass --horizon-days of at most {longest}"
        )


def _train_outcome(
    name: str,
    lake: Lake,
    until: int,
    folder: Path,
    horizon_days: int | None,
    seed: int,
    n_jobs: int,
    tracking_uri: str,
    definition: Definition | None,
    session: Session | None,
) -> Trained:
    seq = lake.watermark  # what the log takes up meanwhile is not learned from
    span = log_span(lake, until, n_jobs, seq=seq)
    if definition is None:
        asked, note = define(name, span, until, horizon_days)
    else:
        asked, note = definition, ""
        check_history(name, asked.horizon_days, until - span.first)
    study = make_study(lake, asked, until, span.first, seed=seed, n_jobs=n_jobs, seq=seq)
    check_enough(study.told, name)
    leaked = leak(study.told)
    if leaked is not None:
        raise ValueError(f"{name} is not trained: {leaked}")
    champion = _serving_outcome(name, tracking_uri)
    judged = judge(study, None if champion is None else champion.rung)
    fitted = study.fit(until)
    has_bought = None if fitted.leads is not None or fitted.curve is None else BUYERS
    card = ModelCard(
        name=name,
        kind="outcome",
        rung=fitted.choice.rung,
        reason=fitted.choice.reason + note,
        view_set=DEFAULT_VIEWS.name,
        view_set_version=DEFAULT_VIEWS.version,
        horizon_days=asked.horizon_days,
        outcome=asked.says,
        as_of=from_micros(until).isoformat(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics={**metrics_of(judged, seed=seed), "horizon_days": float(asked.horizon_days)},
        population=asked.population if has_bought is None else asked.population.within(has_bought),
        happens=asked.outcome.positive == "some",
        asked=asdict(asked.outcome),
        anchor_days=None if fitted.curve is None else fitted.curve.anchor_days,
        leads_rung=None if fitted.leads is None else fitted.leads.rung,
        leads_reason=None if fitted.leads is None else fitted.leads.reason,
    )
    today = sample_vectors(lake, DEFAULT_VIEWS, until, lambda X: asked.population.contains(X, DEFAULT_VIEWS.names))
    write_report(folder / "report", card, judged)
    manifest = training_sets.save(lake, name, study.learned, saved_at=datetime.now(UTC), session=session)
    (folder / TRAINING_SET_FILE).write_text(json.dumps(manifest, indent=1))
    write_model(folder, card, DEFAULT_VIEWS, fitted.estimator, Calibration(), study.learned.X, today, fitted.curve)
    newest = judged[0]
    theirs = None
    if champion is not None and champion.view_set.version != DEFAULT_VIEWS.version:
        spine = pd.DataFrame({"contact_key": newest.rows.contact_key, "as_of": newest.rows.as_of})
        theirs = historical_features(lake, spine, champion.view_set, n_jobs, seq=seq).X
    gate = gate_outcome(newest, champion, theirs, seed=seed)
    tags = {key: str(manifest[key]) for key in ("view_set", "watermark", "rows", "contacts_share", "checksum")}
    instants = study.learned.manifest["instants"]
    tags |= {
        "training_set": manifest["folder"],
        "instants": f"{len(instants)} from {from_micros(instants[0]).isoformat()}",
    }
    return card, gate, tags


def make_study(
    lake: Lake,
    asked: Definition,
    until: int,
    first_event: int,
    *,
    seed: int = 0,
    n_jobs: int = 1,
    seq: int | None = None,
) -> Study:
    """What it takes to learn ``asked`` by ``until`` and to judge it at earlier cut-offs.

    Outcomes about orders are learned over at most 30 days by every contact, whatever is asked of whom; the rows that
    judge are the question's own.
    """
    anchor = min(ANCHOR_DAYS, asked.horizon_days) if is_about_orders(asked) else asked.horizon_days
    grid = snapshot_instants(until - anchor * DAY_MICROS, first_event, anchor)
    learned, told = _rows(lake, asked, anchor, grid, [t for t in grid if t + _micros(asked) <= until], n_jobs, seq)
    today = None
    if is_about_orders(asked):
        today = sample_vectors(
            lake, DEFAULT_VIEWS, until, lambda X: conversion.POPULATION.contains(X, DEFAULT_VIEWS.names)
        )
    return Study(asked, learned, told, anchor, until, DEFAULT_VIEWS, seed, today)


def _rows(
    lake: Lake, asked: Definition, anchor: int, grid: Sequence[int], closed: Sequence[int], n_jobs: int, seq: int | None
) -> tuple[TrainingSet, TrainingSet]:
    """The rows that are learned from, and those that judge, at instants of ``grid`` whose outcomes are closed."""
    if not closed:
        raise NotEnoughData(
            f"{asked.outcome.name} over {asked.horizon_days} days has no closed window in the history; import a longer "
            "one or choose a shorter --horizon-days"
        )
    if not is_about_orders(asked):
        rows = training_set(lake, DEFAULT_VIEWS, asked, grid, n_jobs, seq=seq)
        return rows, rows
    orders = Definition(CONVERSION, conversion.POPULATION, anchor, f"an order in the next {anchor} days")
    learned = training_set(lake, DEFAULT_VIEWS, orders, grid, n_jobs, seq=seq)
    if (asked.horizon_days, asked.population, asked.outcome.positive) == (anchor, conversion.POPULATION, "some"):
        return learned, learned
    return learned, training_set(lake, DEFAULT_VIEWS, asked, closed, n_jobs, seq=seq)


def _micros(asked: Definition) -> int:
    return asked.horizon_days * DAY_MICROS


def judge(study: Study, recipe: str | None = None) -> list[Judgement]:
    """The study's answers at its newest cut-offs whose outcomes are told, at most three, newest first.

    Raises
    ------
    NotEnoughData
        If not even the newest can be judged.
    """
    cutoffs = judged_cutoffs(study, JUDGED_CUTOFFS)
    if not cutoffs:
        raise NotEnoughData(
            f"no cut-off lies {study.asked.horizon_days} days before the end with rows to learn from before it; import "
            "a longer history or choose a shorter --horizon-days"
        )
    judged = [study.judge(cutoffs[0], recipe)]
    for cutoff in cutoffs[1:]:
        try:
            judged.append(study.judge(cutoff))
        except NotEnoughData:  # the history begins here
            break
    return judged


def _serving_outcome(name: str, tracking_uri: str) -> ServedOutcome | None:
    try:
        current = registry.champion(name, tracking_uri=tracking_uri)
        model = None if current is None else load_model(current.folder)
    except (LookupError, BrokenModel) as error:
        logger.warning("the champion of %s cannot be compared with: %s", name, error, extra={"action": "gate_blind"})
        return None
    return model if isinstance(model, ServedOutcome) else None


def gate_outcome(judged: Judgement, current: ServedOutcome | None, X: Array | None = None, *, seed: int = 0) -> Gate:
    """Not below the base rate, and not worse than the champion on the same rows by more than chance explains.

    Compared by log-loss, with a bootstrap over contacts of the paired differences. A champion that was trained after
    the cut-off has seen these rows' outcomes. Then its recipe, its rung fitted on what was known at the cut-off, stands
    in for it. ``X`` are the judged rows' vectors of the champion's view set, where that is another than theirs.
    """
    rows = judged.rows
    losses = {name: log_losses(rows.y, p) for name, p in judged.probabilities.items()}
    over_base = paired_difference(losses["base_rate"] - losses["served"], rows.contact_key)
    if over_base.mean <= 0 and judged.choice.rung != "base_rates":
        return Gate(False, f"below the base rate (log-loss gain {over_base.mean:+.4f} on {len(rows)} contacts)")
    if current is None:
        return Gate(True, f"first version; log-loss {over_base.mean:+.4f} better than the base rate")
    if to_micros(datetime.fromisoformat(current.card.as_of)) <= judged.cutoff:
        stands, theirs = f"version {current.version}", log_losses(rows.y, current.predict(rows.X if X is None else X))
    elif "recipe" in losses:
        stands, theirs = f"version {current.version}'s recipe ({current.rung})", losses["recipe"]
    else:
        return Gate(True, f"version {current.version} cannot be asked about these {len(rows)} contacts any more")
    worse = losses["served"] - theirs
    low, high = bootstrap_mean(worse, rows.contact_key, rng=np.random.default_rng(seed))
    word = "not worse than" if low <= 0 else "worse than"
    return Gate(
        low <= 0,
        f"{word} {stands} on {len(rows)} contacts (log-loss {worse.mean():+.4f}, 90 % interval {low:+.4f} to "
        f"{high:+.4f})",
    )


def _train_hours(lake: Lake, until: int, folder: Path, n_jobs: int) -> Trained:
    seq = lake.watermark  # what the log takes up meanwhile is not learned from
    sends = closed_sends(lake, until, n_jobs, seq=seq)
    if len(sends) == 0:
        raise NotEnoughData(
            "send_hour has no send older than 24 h to learn from; it takes "
            f"{send_hour.MIN_SENDS}, {send_hour.MIN_SPREAD_SENDS} of them outside the commonest hour: "
            "send a campaign spread over the day"
        )
    found = _fit_hours(lake, sends, until, seq, n_jobs)
    contacts = np.unique(sends.contact_key)
    X = vectors_of(lake, SEND_HOUR_VIEWS, contacts, until, n_jobs, seq=seq)
    card = ModelCard(
        name=send_hour.NAME,
        kind="send_hour",
        rung=found.model.rung,
        reason=found.reason,
        view_set=SEND_HOUR_VIEWS.name,
        view_set_version=SEND_HOUR_VIEWS.version,
        horizon_days=None,
        outcome="a click or open by a person within 24 h of a mail sent at that local hour",
        as_of=from_micros(until).isoformat(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics={**found.metrics},
    )
    today = sample_vectors(lake, SEND_HOUR_VIEWS, until, lambda X: card.population.contains(X, SEND_HOUR_VIEWS.names))
    write_model(folder, card, SEND_HOUR_VIEWS, found.model, None, X, today)
    manifest = {
        "view_set": f"{SEND_HOUR_VIEWS.name}@{SEND_HOUR_VIEWS.version}",
        "watermark": str(seq),
        "rows": str(len(sends)),
        "checksum": checksum(*(getattr(sends, name) for name in Sends.__dataclass_fields__), X),
    }
    return card, Gate(True, "flat unless hours provably differ, so it cannot do worse than not knowing"), manifest


def _fit_hours(lake: Lake, sends: Sends, until: int, seq: int, n_jobs: int) -> FittedHours:
    reason = send_hour.too_little(sends)
    if reason is not None:
        return send_hour.default_model(sends, reason)
    tune_from, judge_from = (int(t) for t in np.quantile(sends.sent_at, [TUNE_FROM, JUDGE_FROM]))

    def known_at(instant: int) -> Sends:
        return sends.take(sends.sent_at + send_hour.ANSWER_WINDOW_HOURS * 3_600_000_000 <= instant)

    def after(begin: int, end: int) -> Slice:
        later = sends.take((sends.sent_at >= begin) & (sends.sent_at < end))
        contacts, row = np.unique(later.contact_key, return_inverse=True)
        return Slice(vectors_of(lake, SEND_HOUR_VIEWS, contacts, begin, n_jobs, seq=seq), later, row)

    tuning, judging = after(tune_from, judge_from), after(judge_from, until)
    early, middle = known_at(tune_from), known_at(judge_from)
    if min(len(early), len(middle), len(tuning.sends), len(judging.sends)) < send_hour.MIN_SPREAD_SENDS:
        return send_hour.default_model(
            sends, f"{len(sends)} sends left too close together to judge hours on later ones; the default hour stays"
        )
    contacts = np.unique(sends.contact_key)
    X = vectors_of(lake, SEND_HOUR_VIEWS, contacts, until, n_jobs, seq=seq)
    return send_hour.fit_hours(early, tuning, middle, judging, sends, X)


def backtest(
    name: str,
    lake: Lake,
    cutoffs: Sequence[datetime],
    horizon_days: int | None = None,
    *,
    seed: int = 0,
    n_jobs: int = 1,
) -> pd.DataFrame:
    """How ``name`` would have done at each cut-off, learning only from what was known there, beside its rivals.

    Parameters
    ----------
    name : str
        ``churn`` or ``conversion``.
    lake : Lake
    cutoffs : sequence of datetime
        Aware; the outcome of each must be closed: the log reaches a horizon beyond the last.
    horizon_days : int, optional

    Returns
    -------
    DataFrame
        One row per cut-off and model (``served``, ``recency``, ``orders``, ``logistic``, ``bgnbd``, ``base_rate``) with
        the figures of ``training.metrics.evaluate``; ``rung`` and ``reason`` say what served.

    Raises
    ------
    NotEnoughData
        If a cut-off is not closed or too early to learn before it.
    """
    moments = sorted(to_micros(cutoff) for cutoff in cutoffs)
    if not moments or name not in (churn.NAME, conversion.NAME):
        raise ValueError(
            f"a backtest takes churn or conversion and at least one cut-off, not {name!r} and {len(moments)}"
        )
    span = log_span(lake, moments[-1], n_jobs)
    asked, _ = define(name, span, moments[0] + (horizon_days or 1) * DAY_MICROS, horizon_days)
    anchor = min(ANCHOR_DAYS, asked.horizon_days)
    grids = {cutoff: snapshot_instants(cutoff, span.first, anchor) for cutoff in moments}
    every = sorted({t for grid in grids.values() for t in grid})
    learned, told = _rows(lake, asked, anchor, every, every, n_jobs, None)
    tables = []
    for cutoff, grid in grids.items():
        rows, judges = (of.rows(np.isin(of.as_of, grid)) for of in (learned, told))
        judged = Study(asked, rows, judges, anchor, cutoff, DEFAULT_VIEWS, seed).judge(cutoff)
        for model, probability in judged.probabilities.items():
            figures = evaluate(judged.rows.y, probability)
            served = {"rung": judged.choice.rung, "reason": judged.choice.reason}
            said = served if model == "served" else {"rung": model, "reason": ""}
            tables.append({"cutoff": from_micros(cutoff), "model": model, **said, **figures})
    return pd.DataFrame(tables)
