"""Are the models right? Every scoring is kept, judged once its horizon has passed, and a model that lost falls back."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from features.events import DAY_MICROS
from features.labels import CHURN, CONVERSION, Outcome
from features.lake import Lake
from features.store import StoreError
from features.tables import to_micros
from service.database import Database
from service.errors import NotFound
from service.job_queue import enqueue
from service.tables import ModelEventRow, ScoringRow, ServingModelRow
from training.fallback import fallback_of
from training.judging import (
    ALPHA,
    BETS,
    drift_of,
    e_value,
    evidence,
    is_turn,
    judge_scores,
    named_sentence,
    weigh,
)
from training.score_files import KeptScores, find_scores, keep_scores, remove_scores
from training.scoring import Scores
from training.serving import ServedModel, finite
from training.treatments import closed_scores

log = logging.getLogger(__name__)

#: Score files stay this long after they were judged, so that a surprise can be looked into.
KEEP_JUDGED = timedelta(days=30)
#: The score's distribution has moved when its PSI reaches this (the band in common use).
SHIFTED_PSI = 0.25
#: What a model is asked where its card does not say it in full.
OUTCOMES: Mapping[str, Outcome] = {"churn": CHURN, "conversion": CONVERSION}
SHOWN = 90


# --- Keep --------------------------------------------------------------------------------------------------------


def asked_outcome(model: ServedModel) -> Outcome | None:
    """What the model is asked; None if its scores cannot be judged by a label alone.

    Those are the send hours, and outcomes that only mailed contacts can show: who was not mailed enough is censored.
    """
    own = model.card.asked
    asked = OUTCOMES.get(model.name) if own is None else Outcome.from_dict(own)
    return None if asked is None or asked.least_deliveries else asked


def keep_scoring(
    database: Database, lake: Lake, model: ServedModel, scores: Scores, *, as_of: datetime, role: str = "served"
) -> bool:
    """Keep what it takes to judge a scoring later: a file beside the lake and a row that names it; False if not kept.

    A scoring as of an instant before its model was trained is not kept: the model has seen its outcomes.

    Parameters
    ----------
    role : {'served', 'challenger'}
    """
    outcome, horizon = asked_outcome(model), model.card.horizon_days
    if outcome is None or horizon is None or not len(scores) or as_of < _trained_at(model, as_of):
        return False
    below = fallback_of(model)
    fallback = np.full(len(scores), np.nan) if scores.fallback is None else scores.fallback
    kept = KeptScores(scores.contact_key, scores.probability.astype(np.float32), fallback.astype(np.float32))
    with database.reading() as session:
        files = keep_scores(lake, model.name, model.version, to_micros(as_of), kept, session=session)
        first = session.scalars(
            select(ScoringRow.summary)
            .where(ScoringRow.model == model.name, ScoringRow.version == model.version)
            .order_by(ScoringRow.as_of)
            .limit(1)
        ).first()
    with database.writing() as session:
        session.merge(
            ScoringRow(
                model=model.name,
                version=model.version,
                as_of=as_of,
                role=role,
                rung=model.rung,
                fallback=None if below is None else below.rung,
                horizon_days=horizon,
                outcome={**asdict(outcome), "says": model.card.outcome},
                contacts=files.rows,
                summary=_summary(scores.probability, first),
                folder=files.folder,
                due_at=as_of + timedelta(days=horizon),
                judged_at=None,
                result=None,
            )
        )
    return True


def _trained_at(model: ServedModel, otherwise: datetime) -> datetime:
    try:
        trained = datetime.fromisoformat(model.card.as_of)
    except ValueError:
        return otherwise
    return trained if trained.tzinfo is not None else otherwise


def _summary(probability: np.ndarray, first: Mapping[str, Any] | None) -> dict[str, Any]:
    """Mean and shares of the scores between the deciles of the version's first scoring, with their PSI against it."""
    edges = np.unique(np.quantile(probability, np.linspace(0.1, 0.9, 9))) if first is None else first["edges"]
    counts = np.bincount(np.searchsorted(edges, probability, side="left"), minlength=len(edges) + 1)
    now = {"edges": list(map(float, edges)), "shares": (counts / len(probability)).tolist()}
    return {"mean": float(probability.mean()), "psi": drift_of(now, first or now), **now}


# --- Judge -------------------------------------------------------------------------------------------------------


def judge_due(database: Database, lake: Lake, *, now: datetime, n_jobs: int = 1) -> list[ScoringRow]:
    """Judge every scoring whose horizon has passed at ``now``, oldest first; a model that provably lost falls back.

    The lake must reach beyond the horizon: sync it first.
    """
    with database.reading() as session:
        due = select(ScoringRow).where(ScoringRow.judged_at.is_(None), ScoringRow.due_at <= now)
        rows = session.scalars(due.order_by(ScoringRow.due_at, ScoringRow.model, ScoringRow.version)).all()
    for row in rows:
        result = finite(_judged(database, lake, row, n_jobs))
        with database.writing() as session:
            kept = session.get(ScoringRow, (row.model, row.version, row.as_of), with_for_update=True)
            if kept is None or kept.judged_at is not None:
                continue
            kept.judged_at, kept.result = now, result
            session.flush()
            fall_back_if_lost(session, row.model, now=now)
        for alarm in result.get("alarms", []):
            log.warning("%s %d: %s", row.model, row.version, alarm, extra={"action": "model_alarm"})
    return list(rows)


def _judged(database: Database, lake: Lake, row: ScoringRow, n_jobs: int) -> dict[str, Any]:
    as_of = to_micros(row.as_of)
    asked = {name: value for name, value in row.outcome.items() if name != "says"}
    try:
        closed = closed_scores(
            lake,
            find_scores(lake, str(row.folder)),
            row.model,
            Outcome.from_dict(asked),
            as_of,
            row.horizon_days,
            n_jobs,
        )
    except (StoreError, LookupError) as error:
        return {"note": f"its scores could not be judged: {error}", "alarms": []}
    weights = weigh(closed.treatment)
    result = judge_scores(closed.y, closed.probability, closed.fallback, weights)
    if row.summary["psi"] >= SHIFTED_PSI:
        result["alarms"].append(
            f"scores are distributed otherwise than at the version's first scoring (PSI {row.summary['psi']:.2f})"
        )
    says = row.outcome["says"]
    day = f"{row.as_of.day} {row.as_of:%B %Y}"
    result["named"] = named_sentence(row.model, says, day, closed.y, closed.probability, weights)
    result["test"] = {"outcomes": 0, "evidence": [0.0] * len(BETS)}
    if weights.unrepresented:
        result["note"] = (
            f"{weights.unrepresented:,} contacts were written to because of this score and nobody was held out for "
            "them; give such campaigns a holdout_share (0.1), else outcomes cannot judge the model"
        )
    if weights.is_fair and _is_first_of_its_day(database, row):
        turn = is_turn(closed.contact_key, as_of, row.horizon_days)
        told = (closed.y[turn], closed.probability[turn], closed.fallback[turn], weights.weight[turn])
        result["test"] = {"outcomes": int((told[3] > 0).sum()), "evidence": evidence(*told)}
    return result


def _is_first_of_its_day(database: Database, row: ScoringRow) -> bool:
    """A contact has its turn once a day: a second scoring of the day, by whatever version, looks at the same window."""
    begin = row.as_of - timedelta(microseconds=to_micros(row.as_of) % DAY_MICROS)
    with database.reading() as session:
        earlier = select(func.count()).where(
            ScoringRow.model == row.model,
            ScoringRow.role == row.role,
            ScoringRow.as_of >= begin,
            ScoringRow.as_of < row.as_of,
        )
        return not session.scalar(earlier)


# --- Fall back ---------------------------------------------------------------------------------------------------


def running_test(session: Session, row: ServingModelRow) -> dict[str, Any]:
    """How the model's test stands: versions and outcomes since it began, e-value, and what would prove a loss.

    It goes over the versions that followed one another by training: each was served on the strength of the same
    recipe, and none serves until its own outcomes are known.
    """
    judged = session.scalars(
        select(ScoringRow)
        .where(
            ScoringRow.model == row.name,
            ScoringRow.role == "served",
            ScoringRow.as_of >= row.tested_from,
            ScoringRow.judged_at.is_not(None),
        )
        .order_by(ScoringRow.due_at)
    ).all()
    # Once it has fallen back it and its fallback are one: those scorings have nothing to compare.
    tests = [
        (one, one.result["test"]) for one in judged if one.result and "test" in one.result and one.rung != one.fallback
    ]
    return {
        "since": row.tested_from,
        "versions": sorted({one.version for one, _ in tests}),
        "fallback": tests[-1][0].fallback if tests else None,
        "outcomes": sum(test["outcomes"] for _, test in tests),
        "e_value": e_value([test["evidence"] for _, test in tests]),
        "needed": 1 / ALPHA,
    }


def fall_back_if_lost(session: Session, name: str, *, now: datetime) -> bool:
    """Let the serving version answer with its lower rung if the test says so, and ask for a new training."""
    row = session.get(ServingModelRow, name, with_for_update=True)
    if row is None or row.fell_back_at is not None:
        return False
    found = running_test(session, row)
    if found["e_value"] < found["needed"]:
        return False
    versions = ", ".join(map(str, found["versions"]))
    why = (
        f"scores of {'versions' if len(found['versions']) > 1 else 'version'} {versions} were provably worse than "
        f"{found['fallback']} on {found['outcomes']:,} outcomes of contacts that were not written to because of them "
        f"(e-value {found['e_value']:,.0f}, {found['needed']:.0f} is proof); version {row.version} answers with its "
        "lower rung until another is promoted"
    )
    row.fell_back_at, row.fell_back_why = now, why
    note_event(session, name, "fell_back", row.version, why, now=now)
    enqueue(session, "train", {"name": name}, now=now, job_id=f"train-{name}-{now:%Y%m%d}"[:40])
    log.warning("%s falls back: %s", name, why, extra={"action": "model_fell_back", "model": name})
    return True


def note_event(session: Session, model: str, kind: str, version: int, reason: str, *, now: datetime) -> None:
    """Add a line to the model's history."""
    session.add(
        ModelEventRow(
            event_id=secrets.token_hex(8), model=model, at=now, kind=kind, version=version, reason=reason[:2000]
        )
    )


# --- Prune -------------------------------------------------------------------------------------------------------


def prune_scores(database: Database, lake: Lake, *, now: datetime) -> int:
    """Remove the score files of scorings judged more than 30 days ago; their results stay. Returns how many."""
    with database.reading() as session:
        old = session.scalars(
            select(ScoringRow).where(ScoringRow.folder.is_not(None), ScoringRow.judged_at < now - KEEP_JUDGED)
        ).all()
    for row in old:
        with database.reading() as session:
            remove_scores(lake, str(row.folder), session=session)
        with database.writing() as session:
            session.get_one(ScoringRow, (row.model, row.version, row.as_of)).folder = None
    return len(old)


# --- Show --------------------------------------------------------------------------------------------------------


def quality(session: Session, name: str, *, limit: int = SHOWN) -> dict[str, Any]:
    """What outcomes say of a model: the newest sentence, the running test, judged scorings and what befell it.

    Raises
    ------
    NotFound
        If no model of that name ever served.
    """
    row = session.get(ServingModelRow, name)
    if row is None:
        raise NotFound(f"no model {name[:60]!r} was promoted; `kairos train {name[:60]}` trains and promotes one")
    mine = ScoringRow.model == name
    judged = session.scalars(
        select(ScoringRow)
        .where(mine, ScoringRow.judged_at.is_not(None))
        .order_by(ScoringRow.as_of.desc(), ScoringRow.version.desc())
        .limit(limit)
    ).all()
    waiting, next_due = session.execute(
        select(func.count(), func.min(ScoringRow.due_at)).where(mine, ScoringRow.judged_at.is_(None))
    ).one()
    events = session.scalars(
        select(ModelEventRow).where(ModelEventRow.model == name).order_by(ModelEventRow.at.desc()).limit(limit)
    ).all()
    named = [(one.result or {}).get("named") for one in judged if one.role == "served"]
    sentences = [one["says"] for one in named if one]
    return {
        "name": name,
        "version": row.version,
        "fell_back_at": row.fell_back_at,
        "fell_back_why": row.fell_back_why,
        "challenger_version": row.challenger_version,
        "says": sentences[0] if sentences else None,
        "test": running_test(session, row),
        "waiting": {"scorings": waiting, "next_due_at": next_due},
        "history": [_shown(one) for one in judged],
        "events": [{"at": e.at, "kind": e.kind, "version": e.version, "reason": e.reason} for e in events],
    }


def _shown(row: ScoringRow) -> dict[str, Any]:
    shown = {
        name: getattr(row, name)
        for name in ("version", "role", "rung", "fallback", "as_of", "horizon_days", "contacts", "judged_at")
    }
    result = {name: value for name, value in (row.result or {}).items() if name != "test"}
    return shown | {"outcome": row.outcome["says"], "mean": row.summary["mean"], "psi": row.summary["psi"], **result}


def newest_judged(session: Session) -> list[ScoringRow]:
    """The newest judged scoring of each model and role."""
    newest = (
        select(ScoringRow.model, ScoringRow.role, func.max(ScoringRow.as_of).label("as_of"))
        .where(ScoringRow.judged_at.is_not(None))
        .group_by(ScoringRow.model, ScoringRow.role)
        .subquery()
    )
    same = (
        (ScoringRow.model == newest.c.model) & (ScoringRow.role == newest.c.role) & (ScoringRow.as_of == newest.c.as_of)
    )
    return list(session.scalars(select(ScoringRow).join(newest, same).order_by(ScoringRow.model, ScoringRow.role)))
