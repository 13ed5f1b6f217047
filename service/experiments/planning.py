"""What an experiment can prove, said before it is begun and in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.errors import Invalid
from service.experiments.lifecycle import newest_snapshot
from service.flow.reward import arms_in_play
from service.tables import ExperimentRow, LearnerCellRow
from training.inference import Plan
from training.planning import LEAST_LIFT, LEAST_SHARE, lift_between_arms, lift_provable, sends_needed

DEFAULT_PLANNED_SENDS = 10_000
DEFAULT_LIFT = 0.1
#: Trials and successes that past experiments must have had, so that their rate stands for the next one's.
NEEDED_TRIALS, NEEDED_SUCCESSES = 1_000, 30


@dataclass(frozen=True)
class Base:
    """The reward that a unit is expected to bring, before anything is known of the arms.

    Attributes
    ----------
    mean, variance : float
        Of a unit's reward; money in minor units.
    source : str
        Where they come from.
    """

    mean: float
    variance: float
    source: str


def _rate(rate: float, what: str) -> Base:
    return Base(rate, rate * (1 - rate), f"no past experiment: {what} assumed")


#: Until the installation has rates of its own.
DEFAULTS = {
    "open": _rate(0.20, "20 % opens"),
    "click": _rate(0.02, "2 % clicks"),
    "conversion": _rate(0.005, "0.5 % conversions"),
    # Half a percent of orders of 50.00 on average, as spread as an exponential.
    "revenue": Base(25.0, 249_375.0, "no past experiment: 0.5 % orders of 50.00 assumed"),
}


@dataclass(frozen=True)
class ReportPlan:
    """What the reports' intervals were planned for; it moves where they are narrowest, never what they hold."""

    mean: float
    inference: Plan


def plan_of(experiment: ExperimentRow) -> ReportPlan:
    """The plan that was fixed when the experiment was opened."""
    kept = experiment.settings.get("base") or {}
    default = DEFAULTS[experiment.reward]
    units = int(experiment.settings.get("planned_sends") or DEFAULT_PLANNED_SENDS)
    variance = float(kept.get("variance", default.variance))
    return ReportPlan(float(kept.get("mean", default.mean)), Plan(units, variance))


def control_of(experiment: ExperimentRow, arms: Sequence[str]) -> str:
    """The arm that others are compared with: the named one, else the first."""
    return str(experiment.settings.get("control") or arms[0])


def base_of(session: Session, reward: str, *, without: str | None = None) -> Base:
    """What a unit has brought in past experiments with this reward, or an assumption that says so."""
    cell = LearnerCellRow
    trials, successes, total, squares = session.execute(
        select(func.sum(cell.trials), func.sum(cell.successes), func.sum(cell.sum_rewards), func.sum(cell.sum_squares))
        .join(ExperimentRow, ExperimentRow.experiment_id == cell.experiment_id)
        .where(ExperimentRow.reward == reward, ExperimentRow.experiment_id != (without or ""))
    ).one()
    if (trials or 0) < NEEDED_TRIALS or (successes or 0) < NEEDED_SUCCESSES or successes == trials:
        return DEFAULTS[reward]
    source = f"{int(successes):,} in {int(trials):,} of past experiments"
    if reward != "revenue":
        rate = float(successes) / float(trials)
        return Base(rate, rate * (1 - rate), source)
    mean = float(total) / float(trials)
    return Base(mean, max(float(squares) / float(trials) - mean**2, 1.0), source)


def keep_base(session: Session, experiment: ExperimentRow) -> Base:
    """Fix what is expected now, before the first decision, for the reports to be planned by."""
    base = base_of(session, experiment.reward, without=experiment.experiment_id)
    experiment.settings = {**experiment.settings, "base": {"mean": base.mean, "variance": base.variance}}
    session.flush()
    return base


def planning(
    session: Session,
    experiment: ExperimentRow,
    *,
    sends: int | None = None,
    lift: float | None = None,
    holdout_share: float | None = None,
) -> dict[str, Any]:
    """Sends needed for a lift, the lift that the planned sends can prove, and until when the split stays even.

    Parameters
    ----------
    sends : int, optional
        Planned decisions; by default what the experiment was opened for.
    lift : float, 1e-6 or more, optional
        Relative: .1, the default, is 10 % more than the control. On a rate that leaves no room for the default no
        figure is given, and the sentence says why.
    holdout_share : float, optional
        Of the campaign; by default the experiment's own.

    Raises
    ------
    Invalid
        If the lift asked for is too small or leaves no rate below 1, or nothing is to be sent.
    """
    planned = sends if sends is not None else plan_of(experiment).inference.units
    held = experiment.holdout_share if holdout_share is None else holdout_share
    # Money is planned by the rate at which it comes: what an order is worth varies on top.
    asked = "conversion" if experiment.reward == "revenue" else experiment.reward
    base = base_of(session, asked, without=experiment.experiment_id)
    if planned < 1:
        raise Invalid(f"{planned} sends prove nothing; give the number that is planned")
    highest = 1 / base.mean - 1
    if lift is not None and not LEAST_LIFT <= lift < highest:
        raise Invalid(f"a lift of {lift:g} on a rate of {base.mean:.3g} is outside {LEAST_LIFT:g} to {highest:.3g}")
    meant = DEFAULT_LIFT if lift is None else lift
    n_arms = len(arms_in_play(session, experiment.experiment_id))
    shares = [1 / n_arms] * n_arms
    needed = sends_needed(base.mean, meant, allocation=shares) if meant < highest else None
    provable = lift_between_arms(planned, base.mean, allocation=shares)
    no_room = f"A lift of {meant:.0%} on a rate of {base.mean:.3g} is impossible; plan one below {highest:.3g}."
    sentences = [no_room if needed is None else needed.sentence, provable.sentence]
    if experiment.reward == "revenue":
        sentences.append("This counts who orders; amounts vary on top, so a difference in revenue takes more sends.")
    floor = max(experiment.floor, LEAST_SHARE)
    if needed is not None and experiment.policy not in ("uniform", "fixed") and floor < 1 / n_arms:
        rest = n_arms - 1
        least = sends_needed(base.mean, meant, alpha=0.05 / rest, allocation=[floor, 1 - rest * floor])
        sentences.append(
            f"If the split moves all the way to the better arm, the control keeping its floor of {100 * floor:.3g} %, "
            f"up to {_round(least.sends):,} sends."
        )
    uniform_until = _uniform_until(session, experiment, base, n_arms, planned)
    if uniform_until is not None:
        sentences.append(uniform_until["sentence"])
    holdout = None
    if held > 0 and planned > 1:
        orders = base_of(session, "conversion", without=experiment.experiment_id)
        found = lift_provable(planned, held, orders.mean)
        holdout = {"share": held, "base_rate": orders.mean, "source": orders.source, "lift": found.lift}
        sentences.append(found.sentence)
    return {
        "base_rate": base.mean,
        "source": base.source,
        "sends": planned,
        "lift": meant,
        "sends_needed": None if needed is None else needed.sends,
        "sends_needed_why": no_room if needed is None else None,
        "lift_provable": provable.lift,
        "uniform_until": uniform_until,
        "holdout": holdout,
        "sentences": sentences,
    }


def _uniform_until(
    session: Session, experiment: ExperimentRow, base: Base, n_arms: int, planned: int
) -> dict[str, Any] | None:
    """How long a policy that waits for evidence keeps the split even; None where it does not wait."""
    parameters = newest_snapshot(session, experiment.experiment_id).policy.get("parameters", {})
    minimum = parameters.get("minimum_successes")
    if not minimum:
        return None
    successes = float(minimum) * n_arms
    sends = round(successes / base.mean)
    start = f"The split stays even until there are {successes:g} successes in all, after about {_round(sends):,} sends"
    says = f"{start}." if sends <= planned else f"{start}: {planned:,} sends will not bring that many."
    return {"successes": successes, "sends": sends, "is_reached": sends <= planned, "sentence": says}


def _round(sends: int) -> int:
    """Two significant figures."""
    return int(round(sends, -max(0, len(str(sends)) - 2)))
