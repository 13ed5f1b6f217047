"""What an experiment has shown, with the uncertainty of every figure or the reason why there is none yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from features.events import HOUR_MICROS
from features.tables import from_micros
from service.experiments.counts import counted, wilson
from service.experiments.evidence import Evidence, read_evidence, read_holdout
from service.experiments.guarding import judged_arms
from service.experiments.lifecycle import find_experiment
from service.experiments.planning import control_of, plan_of
from service.flow.reward import arms_of
from service.tables import ExperimentRow
from training.batches import Batches
from training.decision_aids import decision_aid, posterior_draws, shrunk_means
from training.inference import (
    Comparison,
    ConfidenceSequence,
    Interval,
    Plan,
    Weights,
    against_holdout,
    against_uniform,
    arm_mean,
    compare,
    difference,
    overlap,
)
from training.sample_ratio import sample_ratio

#: Looks that a report shows of each sequence over time, the last among them.
SHOWN_LOOKS = 200
#: Rewards that somebody can bring without having got the mail: only they compare with a holdout.
NEED_NO_MAIL = ("conversion", "revenue")
NO_UNITS = "no decision's reward window is over yet"
ERASED = "of erased contacts, whose segment is gone: the probabilities that they were drawn with are no longer known"
STICKY = (
    "a contact counts once, with the rewards of all its decisions so far, which go on growing after it was first "
    "counted: for a sticky experiment the intervals over time are approximate"
)
NO_CONTEXT = "probabilities differ by contact; each decision's own is logged, and the estimates use it"


def experiment_report(session: Session, experiment_id: str, *, now: datetime) -> dict[str, Any]:
    """The report as JSON values.

    Counts are those of this moment. Everything else is from decisions whose reward window is over: intervals of
    comparisons are confidence sequences, which hold however often one looks and however the arms were allocated.

    Raises
    ------
    NotFound
        If there is no such experiment.
    """
    experiment = find_experiment(session, experiment_id)
    arms = tuple(arm.arm_id for arm in arms_of(session, experiment_id))
    evidence = read_evidence(session, experiment, arms, now=now)
    plan = plan_of(experiment)
    control = control_of(experiment, arms)
    batches = Batches.of(
        arms,
        evidence.pmf,
        evidence.trials,
        evidence.sums,
        evidence.squares,
        waves=evidence.waves,
        prior_mean=plan.mean,
        inverse=evidence.inverse,
    )
    comparisons = compare(batches, control, plan.inference)
    return {
        "id": experiment_id,
        "name": experiment.name,
        "kind": experiment.kind,
        "reward": experiment.reward,
        "status": experiment.status,
        "policy": experiment.policy,
        "floor": experiment.floor,
        "as_of": now.isoformat(),
        **counted(session, experiment, now=now),
        "verdict": _verdict(comparisons, evidence),
        "matured": {
            "units": int(batches.trials.sum()),
            "unit": evidence.unit,
            "batches": len(evidence),
            "pending": evidence.pending,
            "left_out": evidence.left_out,
            "left_out_why": ERASED if evidence.left_out else None,
            "window_hours": experiment.reward_window_hours,
            "note": STICKY if evidence.unit == "contact" else None,
        },
        "control": control,
        "comparisons": [_comparison(one, evidence) for one in comparisons],
        "means": [_mean(batches, arm, plan.inference, evidence) for arm in arms],
        "decision_aid": _decision_aid(batches, plan.inference),
        "uniform_slice": _uniform_slice(evidence, experiment.reward),
        "sample_ratio": _sample_ratio(batches, evidence),
        "overlap": _overlap(batches, evidence),
        "against_uniform": _against_uniform(batches, plan.inference, experiment),
        "against_holdout": _against_holdout(session, experiment, plan.inference, now=now),
        "guardrails": judged_arms(session, experiment),
        "allocation": _allocation(evidence),
    }


def _verdict(comparisons: Sequence[Comparison], evidence: Evidence) -> dict[str, Any]:
    """One honest sentence: the best proven arm, else what is too early, else how much can still be there."""
    better = [one for one in comparisons if one.verdict == "better"]
    worse = [one for one in comparisons if one.verdict == "worse"]
    undecided = [one for one in comparisons if one.verdict == "undecided"]
    if better:
        best = max(better, key=lambda one: one.interval.estimate or 0.0)
        return {"kind": "better", "arm": best.arm, "sentence": best.sentence}
    if undecided:
        reach = [
            max(abs(one.lift.lower), abs(one.lift.upper))
            for one in undecided
            if one.lift.lower is not None and one.lift.upper is not None
        ]
        if len(reach) < len(undecided):
            sentence = f"Too early: {undecided[0].sentence}"
            return {"kind": "too_early", "arm": None, "sentence": sentence}
        beaten = "".join(f"; {one.sentence}" for one in worse)
        sentence = f"No difference larger than {100 * max(reach):.0f} % to {undecided[0].control} is left{beaten}"
        return {"kind": "undecided", "arm": None, "sentence": sentence}
    if worse and len(worse) == len(comparisons):
        return {"kind": "worse", "arm": worse[0].control, "sentence": "; ".join(one.sentence for one in worse)}
    refused = next((one for one in comparisons if one.verdict in ("too_early", "refused")), None)
    why = NO_UNITS if refused is None or not len(evidence) else str(refused.interval.why)
    beaten = "".join(f"; {one.sentence}" for one in worse)
    return {"kind": "too_early", "arm": None, "sentence": f"Too early: {why.removeprefix('too early: ')}{beaten}"}


def _comparison(one: Comparison, evidence: Evidence) -> dict[str, Any]:
    return {
        "arm": one.arm,
        "control": one.control,
        "difference": _interval(one.interval),
        "lift": _interval(one.lift),
        "average_difference": _interval(one.average.last),
        "verdict": one.verdict,
        "sentence": one.sentence,
        "over_time": _over_time(one.difference, evidence),
    }


def _mean(batches: Batches, arm: str, plan: Plan, evidence: Evidence) -> dict[str, Any]:
    weights: Weights = "equal" if batches.inverse is not None else "precision"
    sequence = arm_mean(batches, arm, plan, weights=weights)
    return {"arm": arm, "mean": _interval(sequence.last), "over_time": _over_time(sequence, evidence)}


def _over_time(sequence: ConfidenceSequence, evidence: Evidence) -> list[dict[str, Any]]:
    rows = sequence.rows()
    looks = np.unique(np.linspace(0, max(len(rows) - 1, 0), SHOWN_LOOKS).round().astype(int))[: len(rows)]
    return [{"at": _instant(evidence.waves[i]), **rows[i]} for i in looks]


def _decision_aid(batches: Batches, plan: Plan) -> dict[str, Any]:
    if not batches.trials.sum():
        return {"why": NO_UNITS}
    try:
        draws = posterior_draws(batches)
    except ValueError as error:  # propensities differ by contact, and there are few successes
        return {"why": str(error)}
    aid = decision_aid(batches.arms, draws)
    shrunk = shrunk_means(batches, plan)
    return {
        "label": aid.label,
        "leader": aid.leader,
        "value_remaining": aid.value_remaining,
        "may_stop": aid.may_stop,
        "shrunk_why": "too few successes where all arms were open" if shrunk is None else None,
        "arms": [
            {
                "id": arm,
                "probability_best": aid.probability_best[k],
                "expected_loss": aid.expected_loss[k],
                "shrunk_mean": None if shrunk is None else float(shrunk.estimate[k]),
                "shrunk_interval": None if shrunk is None else [float(shrunk.lower[k]), float(shrunk.upper[k])],
            }
            for k, arm in enumerate(batches.arms)
        ],
    }


def _uniform_slice(evidence: Evidence, reward: str) -> dict[str, Any]:
    """Decisions drawn evenly from all open arms: plain intervals hold there without any model, at one look."""
    even = evidence.is_uniform
    if evidence.inverse is not None:
        return {"why": NO_CONTEXT}
    units = int(evidence.trials[even].sum())
    if not units:
        return {"why": "no matured decision was drawn evenly" if len(evidence) else NO_UNITS}
    trials, successes = evidence.trials[even].sum(axis=0), evidence.successes[even].sum(axis=0)
    sums, squares = evidence.sums[even].sum(axis=0), evidence.squares[even].sum(axis=0)
    is_rate = reward != "revenue" and evidence.unit == "decision"
    return {
        "units": units,
        "share": units / int(evidence.trials.sum()),
        "arms": [
            {
                "id": arm,
                "units": int(trials[k]),
                "mean": float(sums[k] / trials[k]) if trials[k] else None,
                "interval": wilson(int(successes[k]), int(trials[k]))
                if is_rate
                else _normal(int(trials[k]), float(sums[k]), float(squares[k])),
            }
            for k, arm in enumerate(evidence.arms)
        ],
    }


def _normal(n: int, total: float, squares: float) -> list[float] | None:
    """95 % interval of a mean, None below 30 units."""
    if n < 30:
        return None
    mean = total / n
    half = 1.959964 * float(np.sqrt(max(squares / n - mean**2, 0.0) / (n - 1)))
    return [mean - half, mean + half]


def _sample_ratio(batches: Batches, evidence: Evidence) -> dict[str, Any]:
    if evidence.inverse is not None:
        return {"why": NO_CONTEXT}
    if not len(evidence):
        return {"why": NO_UNITS}
    found = sample_ratio(batches)
    return {
        "p_value": found.p_value,
        "is_off": found.is_off,
        "sentence": found.sentence,
        "arms": [
            {"id": arm, "observed": found.observed[k], "expected": found.expected[k]}
            for k, arm in enumerate(found.arms)
        ],
    }


def _overlap(batches: Batches, evidence: Evidence) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for k, one in enumerate(overlap(batches)):
        least = evidence.least_propensity[k]
        shown.append(asdict(one) | {"least_propensity": float(least) if np.isfinite(least) else None})
    return shown


def _against_uniform(batches: Batches, plan: Plan, experiment: ExperimentRow) -> dict[str, Any]:
    """What the allocation has earned beyond an even split of the same decisions."""
    if experiment.policy == "uniform":
        return {"why": "the split is even; there is nothing to compare"}
    units = int(batches.trials.sum())
    if not units:
        return {"why": NO_UNITS}
    interval = against_uniform(batches, plan).last
    return {"per_unit": _interval(interval), "units": units, "total": _scaled(interval, units)}


def _against_holdout(session: Session, experiment: ExperimentRow, plan: Plan, *, now: datetime) -> dict[str, Any]:
    """What being mailed has earned beyond being held out, in the reward's unit."""
    if experiment.reward not in NEED_NO_MAIL:
        return {
            "why": f"a contact who was held out cannot {experiment.reward}; choose the reward conversion or revenue"
        }
    holdout = read_holdout(session, experiment, now=now)
    both = (holdout.trials > 0).all(axis=1)
    if not both.any():
        return {"why": "nobody was held out; set holdout_share"}
    trials, sums, squares = holdout.trials[both], holdout.sums[both], holdout.squares[both]
    if experiment.holdout_share > 0:
        interval = against_holdout(experiment.holdout_share, trials, sums, squares, plan).last
    else:
        # Each campaign's share as it came out: given the counts, every way to deal them out was equally likely.
        pmf = trials / trials.sum(axis=1, keepdims=True)
        interval = difference(
            Batches.of(("held_out", "mailed"), pmf, trials, sums, squares), "mailed", "held_out", plan
        ).last
    units, total = trials.sum(axis=0), sums.sum(axis=0)
    return {
        "unit": holdout.unit,
        "held_out": {"units": int(units[0]), "mean": float(total[0] / units[0])},
        "mailed": {"units": int(units[1]), "mean": float(total[1] / units[1])},
        "per_unit": _interval(interval),
        "total": _scaled(interval, int(units[1])),
    }


def _allocation(evidence: Evidence) -> list[dict[str, Any]]:
    """Mean probability of each arm, hour by hour."""
    units = evidence.trials.sum(axis=1).astype(np.float64)
    hours = []
    for wave in np.unique(evidence.waves):
        of_wave = evidence.waves == wave
        mean = (evidence.pmf[of_wave] * units[of_wave, None]).sum(axis=0) / units[of_wave].sum()
        hours.append(
            {
                "at": _instant(wave),
                "units": int(units[of_wave].sum()),
                "shares": dict(zip(evidence.arms, mean.tolist(), strict=True)),
            }
        )
    return hours


def _interval(interval: Interval) -> dict[str, Any]:
    return asdict(interval)


def _scaled(interval: Interval, units: int) -> dict[str, Any]:
    scaled = {
        name: None if (value := getattr(interval, name)) is None else value * units
        for name in ("estimate", "lower", "upper")
    }
    return scaled | {"why": interval.why}


def _instant(wave: int) -> str:
    return from_micros(int(wave) * HOUR_MICROS).isoformat()
