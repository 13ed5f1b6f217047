"""What another policy would have earned: an experiment's own log, read and evaluated off policy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, String, cast, func, select, type_coerce
from sqlalchemy.orm import Session

from features.events import HOUR_MICROS
from features.tables import current, to_micros
from service.errors import Invalid, NotFound
from service.experiments import find_experiment
from service.experiments.evidence import SAME_PROPENSITY
from service.flow.decide import allocation_of
from service.flow.reward import CURSOR, arms_of
from service.tables import CursorRow, DecisionRow, ExperimentRow, RewardRow, SendRow, SnapshotRow
from training.off_policy import (
    Estimate,
    Evaluation,
    LoggedDecisions,
    best_arm_target,
    calibration,
    can_draw,
    evaluate,
    split_of,
)
from training.policies import Allocation, masked
from training.reward_models import RewardModel, fit_outcomes

#: Rows fetched at a time.
PAGE = 50_000
#: Snapshots held in memory at a time; one may hold an ensemble of posterior draws.
SNAPSHOTS = 200
#: The estimator that totals are told by: unbiased whatever the model.
MAIN = "dr"
POLICIES = ("uniform", "logged", "best_arm")
UNITS = {"revenue": "minor units of the reporting currency"}


@dataclass(frozen=True)
class ExperimentLog:
    """Decisions of an experiment whose reward is known in full, and how many others there are and why.

    Attributes
    ----------
    snapshot_ids : tuple of str, length n
        Snapshot that each decision was drawn from.
    left_out : mapping of str to int
        ``held_out``: a ghost, nothing was shown. ``not_sent``: the mail did not leave. ``waiting``: its window is
        still open.
    events_behind : int
        Events of the log that were not yet folded into rewards.
    """

    experiment_id: str
    reward: str
    logged: LoggedDecisions
    snapshot_ids: tuple[str, ...]
    left_out: Mapping[str, int]
    events_behind: int


def logged_decisions(
    session: Session,
    experiment_id: str,
    *,
    now: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
) -> ExperimentLog:
    """The decisions of an experiment taken from ``since`` to before ``until``, with their rewards.

    Only those count that were shown (decisions of a mail: once it left) and whose reward window has passed: a mail
    not yet clicked is no failure. Rewards are 0 or 1, of revenue the minor units that stand.

    Raises
    ------
    NotFound
        If there is no such experiment.
    Invalid
        If the period is empty.
    """
    experiment = find_experiment(session, experiment_id)
    if since is not None and until is not None and not since < until:
        raise Invalid(f"since {since.isoformat()} is not before until {until.isoformat()}; widen the period")
    arms = tuple(arm.arm_id for arm in arms_of(session, experiment_id))
    position = {arm: k for k, arm in enumerate(arms)}
    window, until_known = int(experiment.reward_window_hours * HOUR_MICROS), to_micros(now)
    kept: list[Any] = []
    left_out: Counter[str] = Counter()
    for row in _rows(session, experiment, since, until):
        shown_at = row.finished_at if row.send_id is not None and row.finished_at is not None else row.decided_at
        if row.is_holdout:
            left_out["held_out"] += 1
        elif row.send_id is not None and row.state != "accepted":
            left_out["not_sent"] += 1
        elif shown_at + window > until_known:
            left_out["waiting"] += 1
        else:
            kept.append(row)
    cursor = session.get(CursorRow, CURSOR)
    is_value = experiment.reward == "revenue"
    logged = LoggedDecisions(
        arms,
        arm=_ints(position[row.arm_id] for row in kept),
        propensity=np.array([row.propensity for row in kept], dtype=np.float64),
        reward=np.array([(row.value or 0.0) if is_value else float((row.value or 0.0) > 0) for row in kept]),
        eligible=_eligible(kept, position),
        contexts=_contexts([row.context for row in kept]),
        segment=tuple(row.segment for row in kept),
        contact_key=_ints(row.contact_key for row in kept),
        occurred_at=_ints(row.decided_at for row in kept),
        reward_at=_ints(-1 if row.rewarded_at is None else row.rewarded_at for row in kept),
        wave=_ints(row.wave for row in kept),
    )
    return ExperimentLog(
        experiment_id,
        experiment.reward,
        logged,
        tuple(row.snapshot_id for row in kept),
        {reason: left_out[reason] for reason in ("held_out", "not_sent", "waiting")},
        max(0, current(session, "event_seq") - (cursor.position if cursor else 0)),
    )


def evaluate_experiment(
    session: Session,
    experiment_id: str,
    target: Mapping[str, Any],
    *,
    now: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    force: bool = False,
    most: int | None = None,
) -> dict[str, Any]:
    """What ``target`` would have earned in place of what ran, as JSON values, or why that cannot be told.

    For ``logged`` those decisions are left out, and counted as ``erased``, whose logged propensity is not that which
    their snapshot gives by what is still known of the contact.

    Parameters
    ----------
    target : mapping with one key
        ``{"policy": "uniform"}``, ``{"policy": "logged"}`` (what ran; a check), ``{"policy": "best_arm"}`` (chosen on
        other contacts than it is judged by), ``{"arm": ID}``, ``{"weights": {ID: number}}`` or ``{"snapshot": ID}``.
    since, until : datetime, optional
        Of the decisions; all of them by default.
    force : bool
        Give values where they would be refused.
    most : int, optional
        Refuse a period with more decisions than these before reading them.

    Raises
    ------
    NotFound
        If the experiment or the snapshot does not exist.
    Invalid
        If the target is none of these, or the period is empty or has more decisions than ``most``.
    """
    kind, wanted = _checked(target)
    if most is not None:
        _check_size(session, experiment_id, since, until, most)
    log = logged_decisions(session, experiment_id, now=now, since=since, until=until)
    try:
        pmf = _target(session, log, kind, wanted)
    except ValueError as error:
        raise Invalid(str(error)) from error
    can = can_draw(log.logged, pmf)
    n_no_arm_open = int((~can).sum())
    logged = log.logged.take(can)
    probabilities = masked(pmf[can], logged.open_arms)
    n_unlike = 0
    if wanted == "logged" and kind == "policy":  # what the draw saw of a contact may have been erased since
        drawn_with = probabilities[np.arange(len(logged)), logged.arm]
        alike = np.abs(drawn_with - logged.propensity) <= SAME_PROPENSITY
        n_unlike = int((~alike).sum())
        can[can] = alike
        logged, probabilities = logged.take(alike), probabilities[alike]
    model: RewardModel = "arm_mean" if logged.contexts is None else "ridge"
    expected = fit_outcomes(logged, model, order="time", epoch=_epochs(log)[can])
    found = evaluate(logged, probabilities, expected, force=force)
    main = found[MAIN]
    return {
        "experiment_id": experiment_id,
        "target": {kind: wanted},
        "reward": log.reward,
        "unit": f"{UNITS.get(log.reward, log.reward + 's')} a decision",
        "since": since,
        "until": until,
        "decisions": {
            "used": found.n,
            "contacts": found.n_contacts,
            "left_out": {**log.left_out, "no_arm_open": n_no_arm_open, "erased": n_unlike},
            "events_behind": log.events_behind,
        },
        "logged": {"value": _finite(found.logged_value), "standard_error": _finite(found.logged_standard_error)},
        "estimates": [_shown(one) for one in found.estimates],
        "totals": {
            "logged": _finite(found.logged_value * found.n),
            "target": None if main.value is None else main.value * found.n,
            "interval": None if main.interval is None else [end * found.n for end in main.interval],
        },
        "diagnostics": {
            "ess": found.ess,
            "max_weight": found.max_weight,
            "mean_weight": _finite(found.mean_weight),
            "mean_weight_error": _finite(found.mean_weight_error),
            "least_propensity": found.least_propensity,
        },
        "arms": [asdict(one) for one in calibration(logged)],
        "outcome_model": model,
        "level": found.level,
        "why": found.why,
        "says": _said(found, main, log.reward),
    }


def _check_size(
    session: Session, experiment_id: str, since: datetime | None, until: datetime | None, most: int
) -> None:
    query = _within(
        select(func.count()).select_from(DecisionRow).where(DecisionRow.experiment_id == experiment_id), since, until
    )
    count = session.scalar(query) or 0
    if count > most:
        raise Invalid(
            f"the period has {count:,} decisions, and {most:,} can be evaluated in a request; narrow since and until, "
            "or run the command kairos experiments evaluate"
        )


def _within(query: Any, since: datetime | None, until: datetime | None) -> Any:
    if since is not None:
        query = query.where(DecisionRow.decided_at >= since)
    if until is not None:
        query = query.where(DecisionRow.decided_at < until)
    return query


def _rows(session: Session, experiment: ExperimentRow, since: datetime | None, until: datetime | None) -> Any:
    """Decisions with the state of their send and their reward, in order of time, instants as microseconds."""
    query = (
        select(
            DecisionRow.arm_id,
            DecisionRow.propensity,
            cast(DecisionRow.eligible, String).label("eligible"),
            DecisionRow.segment,
            DecisionRow.context,
            DecisionRow.contact_key,
            DecisionRow.is_holdout,
            DecisionRow.wave,
            DecisionRow.snapshot_id,
            DecisionRow.send_id,
            type_coerce(DecisionRow.decided_at, BigInteger).label("decided_at"),
            SendRow.state,
            type_coerce(SendRow.finished_at, BigInteger).label("finished_at"),
            RewardRow.value,
            type_coerce(RewardRow.occurred_at, BigInteger).label("rewarded_at"),
        )
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .outerjoin(
            RewardRow, (RewardRow.decision_id == DecisionRow.decision_id) & (RewardRow.kind == experiment.reward)
        )
        .where(DecisionRow.experiment_id == experiment.experiment_id)
        .order_by(DecisionRow.decided_at, DecisionRow.decision_id)
        .execution_options(yield_per=PAGE)
    )
    return session.execute(_within(query, since, until))


def _ints(values: Any) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def _eligible(rows: list[Any], position: Mapping[str, int]) -> np.ndarray:
    """Open arms of each decision, shape (n, n_arms); few sets of arms occur, so each is parsed once."""
    number: dict[str, int] = {}
    of_row = _ints(number.setdefault(row.eligible, len(number)) for row in rows)
    masks = np.zeros((len(number), len(position)), dtype=bool)
    for arms, i in number.items():
        masks[i, [position[arm] for arm in json.loads(arms)]] = True
    return masks[of_row]


def _contexts(kept: list[bytes | None]) -> np.ndarray | None:
    """Contexts of shape (n, n_features), NaN where there is none; of the newest decision's width, should it differ."""
    width = next((len(context) for context in reversed(kept) if context), 0)
    if not width:
        return None
    unknown = np.full(width // 4, np.nan, dtype="<f4").tobytes()
    joined = b"".join(context if context is not None and len(context) == width else unknown for context in kept)
    return np.frombuffer(joined, dtype="<f4").reshape(len(kept), -1).astype(np.float64)


def _checked(target: Mapping[str, Any]) -> tuple[str, Any]:
    if len(target) != 1 or next(iter(target)) not in ("policy", "arm", "weights", "snapshot"):
        raise Invalid(f"a target is one of policy, arm, weights or snapshot, not {sorted(target)}; name exactly one")
    kind, wanted = next(iter(target.items()))
    if kind == "policy" and wanted not in POLICIES:
        raise Invalid(
            f"policy {wanted!r} is no target; choose one of {', '.join(POLICIES)}, or an arm, weights, a snapshot"
        )
    return kind, wanted


def _target(session: Session, log: ExperimentLog, kind: str, wanted: Any) -> np.ndarray:
    """The target's pmf at each decision, before arms that were not open are taken out, shape (n, n_arms)."""
    logged = log.logged
    if kind == "arm":
        wanted, kind = {wanted: 1.0}, "weights"
    if kind == "weights":
        return np.tile(split_of(logged, wanted), (len(logged), 1))
    if kind == "snapshot":
        return _of_snapshots(session, log, np.full(len(logged), wanted))
    if wanted == "logged":
        return _of_snapshots(session, log, np.array(log.snapshot_ids, dtype=np.str_))
    if wanted == "best_arm":
        return best_arm_target(logged)
    return np.full((len(logged), logged.n_arms), 1.0 / logged.n_arms)


def _of_snapshots(session: Session, log: ExperimentLog, snapshot_ids: np.ndarray) -> np.ndarray:
    """Probabilities that a snapshot of the experiment gives each decision's contact."""
    logged = log.logged
    pmf = np.zeros((len(logged), logged.n_arms))
    ids = np.unique(snapshot_ids).tolist()
    for start in range(0, len(ids), SNAPSHOTS):
        some = ids[start : start + SNAPSHOTS]
        query = select(SnapshotRow).where(
            SnapshotRow.experiment_id == log.experiment_id, SnapshotRow.snapshot_id.in_(some)
        )
        allocations = {row.snapshot_id: allocation_of(row) for row in session.scalars(query)}
        for snapshot_id in some:
            if snapshot_id not in allocations:
                raise NotFound(
                    f"experiment {log.experiment_id} has no snapshot {snapshot_id[:60]!r}; its report names one"
                )
            allocation = allocations[snapshot_id]
            rows = np.flatnonzero(snapshot_ids == snapshot_id)
            chosen = logged.take(rows)
            columns = _ints(logged.arms.index(arm) for arm in allocation.arms)
            contexts = chosen.contexts if _fits(allocation, chosen.contexts) else None
            pmf[np.ix_(rows, columns)] = allocation.probabilities(len(rows), segments=chosen.segment, contexts=contexts)
    return pmf


def _fits(allocation: Allocation, contexts: np.ndarray | None) -> bool:
    return (
        contexts is not None and allocation.ensemble is not None and contexts.shape[1] == allocation.ensemble.shape[2]
    )


def _epochs(log: ExperimentLog) -> np.ndarray:
    """Number of each decision's snapshot, in the order in which they were first drawn from."""
    number: dict[str, int] = {}
    return _ints(number.setdefault(snapshot_id, len(number)) for snapshot_id in log.snapshot_ids)


def _shown(one: Estimate) -> dict[str, Any]:
    shown = asdict(one)
    for name in ("interval", "gain_interval"):
        shown[name] = None if shown[name] is None else list(shown[name])
    return shown


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _said(found: Evaluation, main: Estimate, reward: str) -> str:
    if main.value is None or main.interval is None or main.gain is None or main.gain_interval is None:
        return f"no value: {main.why}"
    low, high = main.interval
    gain_low, gain_high = main.gain_interval
    proved = "more" if gain_low > 0 else "less" if gain_high < 0 else None
    verdict = f"{proved} than what ran" if proved else "not provably more or less than what ran"
    return (
        f"{main.value:.4g} {UNITS.get(reward, reward + 's')} a decision ({found.level:.0%} interval {low:.4g} to "
        f"{high:.4g}), and what ran earned {found.logged_value:.4g}: {verdict}"
    )
