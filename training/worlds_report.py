"""What the count policies earn in worlds whose truth is known: every figure with its standard error and its bound."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.policies import BetaBernoulliThompson, DelayCdf, EpsilonGreedy, Uniform
from training.policies.statistics import FloatArray
from training.worlds import (
    BEST_HOURS,
    Responses,
    day_and_night,
    no_effect_misses,
    simulate_repeat_contacts,
    simulate_responses,
    weekly_season,
)

Figure = dict[str, Any]
#: What textbooks do: counts added up over waves, the whole likelihood, next to no floor.
PLAIN = BetaBernoulliThompson(temper=1.0, floor=0.01)
AT_ONCE = DelayCdf(median_hours=1e-6)


def responses_report(seeds: int = 100, runs: int = 200, *, seed: int = 7) -> dict[str, Figure]:
    """Every world's figure: value, standard error, bound, and whether it is kept, as JSON values.

    A figure is within its bound unless it lies beyond it by more than two standard errors: with few runs noise alone
    carries a rate of 4 % over 5 %. Figures whose name ends in ``_teeth`` must miss the good bound: they show a
    textbook or a planted mistake failing in the same world.

    Parameters
    ----------
    seeds : int
        Runs of the worlds with unlike arms.
    runs : int
        Runs of the worlds with identical arms.
    """
    return {
        **_unlike_arms(seeds, seed),
        **_identical_arms(runs, seed + 1),
        **_moving_rates(max(2, seeds // 2), seed + 2),
        **_late_arm(seeds, seed + 3),
        **_repeats(runs, seed + 4),
        **_machines(max(2, seeds // 2), seed + 5),
        **_growth(max(10, seeds // 2), seed + 6),
    }


def _figure(values: ArrayLike, *, most: float | None = None, least: float | None = None, **more: Any) -> Figure:
    """One figure: mean over runs, standard error, bound."""
    each = np.asarray(values, dtype=np.float64)
    return _bounded(float(each.mean()), _standard_error(each), most, least, {"runs": len(each), **more})


def _bounded(
    value: float, error: float | None, most: float | None, least: float | None, more: dict[str, Any]
) -> Figure:
    slack = 2 * (error or 0.0)
    is_kept = (most is None or value - slack <= most) and (least is None or value + slack >= least)
    bound = {} if most is None and least is None else {"bound": f"<= {most:g}" if most is not None else f">= {least:g}"}
    return {"value": value, "standard_error": error, **bound, "within": bool(is_kept), **more}


def _standard_error(values: NDArray[Any]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def one_send(
    policy: BetaBernoulliThompson | EpsilonGreedy | Uniform, runs: int, seed: int, start_hour: int = 0
) -> Responses:
    """20,000 contacts written to at their best hours over a day from ``start_hour`` on; opens come late."""
    return simulate_responses(
        policy, (0.18, 0.22, 0.28), n_sends=20_000, n_waves=24, wave_hours=1.0, runs=runs, seed=seed,
        sizes=np.roll(BEST_HOURS, -start_hour).tolist(),
    )  # fmt: skip


def _unlike_arms(runs: int, seed: int) -> dict[str, Figure]:
    policy = BetaBernoulliThompson()
    waves = simulate_responses(policy, (0.18, 0.22, 0.28), n_sends=20_000, n_waves=8, runs=runs, seed=seed)
    day = {hour: one_send(policy, runs, seed, hour) for hour in (0, 9, 18)}
    worst = min(day.values(), key=lambda run: float(run.captured.mean()))
    return {
        "captured_in_eight_waves": _figure(waves.captured, least=0.5, worst_run=float(waves.captured.min())),
        "captured_in_one_send": _figure(
            worst.captured, least=0.6,
            by_start_hour={str(hour): float(run.captured.mean()) for hour, run in day.items()},
            last_wave_share=worst.shares[:, -1].mean(axis=0).tolist(),
        ),
        "captured_in_one_send_epsilon_greedy": _figure(one_send(EpsilonGreedy(), runs, seed, 18).captured),
        "captured_when_all_is_decided_at_once": _figure(one_send(Uniform(), runs, seed).captured, most=1e-9),
    }  # fmt: skip


def _identical_arms(runs: int, seed: int) -> dict[str, Figure]:
    alike: dict[str, Any] = {"rates": (0.2, 0.2), "runs": runs, "seed": seed}
    night: dict[str, Any] = {**alike, "n_sends": 40_000, "n_waves": 40, "wave_hours": 1.0, "base": day_and_night}
    week: dict[str, Any] = {**alike, "n_sends": 56_000, "n_waves": 56, "wave_hours": 6.0, "base": weekly_season}
    policy = BetaBernoulliThompson()

    def outside(run: Responses) -> NDArray[np.bool_]:
        return no_effect_misses(run.last_share)

    return {
        "identical_arms_outside_10_90": _figure(outside(simulate_responses(policy, **night)), most=0.05),
        "identical_arms_outside_10_90_pooled_teeth": _figure(
            outside(simulate_responses(PLAIN, pooled=True, **night)), least=0.3
        ),
        "identical_arms_weekly_season_outside_10_90": _figure(outside(simulate_responses(policy, **week)), most=0.05),
    }


def _moving_rates(runs: int, seed: int) -> dict[str, Figure]:
    sinking: dict[str, Any] = {
        "n_sends": 100_000, "n_waves": 50, "wave_hours": 1.0, "runs": runs, "seed": seed,
        "base": lambda hours: 1.0 - 0.4 * hours / 49.0,
    }  # fmt: skip
    rates = (0.25, 0.275)
    turned = np.repeat([[0.25, 0.18], [0.20, 0.24], [0.20, 0.20]], 48, axis=1)
    drift: dict[str, Any] = {"n_sends": 96_000, "n_waves": 96, "wave_hours": 1.0, "runs": runs, "seed": seed}
    kept = simulate_responses(BetaBernoulliThompson(), turned, **drift)
    discounted = simulate_responses(BetaBernoulliThompson(half_life_days=0.5), turned, **drift)
    here = np.ones((3, 72), dtype=bool)
    here[1, :24], here[0, 36:] = False, False  # the second comes after a day, the first goes after a day and a half
    moving = simulate_responses(
        BetaBernoulliThompson(minimum_per_arm=200.0), (0.24, 0.28, 0.20), n_sends=72_000, n_waves=72, wave_hours=1.0,
        running=here, runs=runs, seed=seed,
    )  # fmt: skip
    return {
        "falling_base_last_share": _figure(
            simulate_responses(BetaBernoulliThompson(), rates, **sinking).last_share[:, 1], least=0.85
        ),
        "falling_base_last_share_pooled": _figure(
            simulate_responses(PLAIN, rates, pooled=True, **sinking).last_share[:, 1]
        ),
        "drift_captured_discounted": _figure(discounted.captured, least=0.5),
        "drift_captured_undiscounted_teeth": _figure(kept.captured, most=0.4),
        "arms_coming_and_going_captured": _figure(moving.captured, least=0.6),
    }


def late_arm(policy: BetaBernoulliThompson, runs: int, seed: int, **teeth: Any) -> Responses:
    """Arms of .20 and .20, joined after a day by one of .22; 2,000 sends an hour until twelve hours later."""
    running = np.ones((3, 36), dtype=bool)
    running[2, :24] = False
    return simulate_responses(
        policy, (0.20, 0.20, 0.22), n_sends=72_000, n_waves=36, wave_hours=1.0, running=running, runs=runs, seed=seed,
        **teeth,
    )  # fmt: skip


def _late_arm(runs: int, seed: int) -> dict[str, Figure]:
    policy = BetaBernoulliThompson()
    return {
        "better_arm_added_share_after_12_h": _figure(late_arm(policy, runs, seed).last_share[:, 2], least=0.82),
        "better_arm_added_pending_as_failure_teeth": _figure(
            late_arm(policy, runs, seed, pending_is_failure=True).last_share[:, 2], most=0.82
        ),
        "better_arm_added_pooled_pending_as_failure_teeth": _figure(
            late_arm(PLAIN, runs, seed, pending_is_failure=True, pooled=True).last_share[:, 2], most=0.5
        ),
    }


def _repeats(runs: int, seed: int) -> dict[str, Figure]:
    def outside(sticky: bool, **world: Any) -> NDArray[np.bool_]:
        run = simulate_repeat_contacts(
            BetaBernoulliThompson(), (0.2, 0.2), n_contacts=4000, runs=runs, seed=seed, sticky=sticky, **world
        )
        return no_effect_misses(run.last_share)

    return {
        "repeat_contacts_redrawn_outside_10_90": _figure(outside(False), most=0.05),
        "repeat_contacts_sticky_outside_10_90": _figure(outside(True), most=0.05),
        "repeat_contacts_sticky_as_independent_teeth": _figure(outside(True, ignore_design_effect=True), least=0.1),
        "merged_contacts_redrawn_outside_10_90": _figure(outside(False, duplicates=0.2), most=0.07),
        "merged_contacts_sticky_outside_10_90": _figure(outside(True, duplicates=0.2), most=0.07),
        "merged_contacts_sticky_by_mail_teeth": _figure(outside(True, duplicates=0.2, wave_of_mail=True), least=0.1),
    }


def _machines(runs: int, seed: int) -> dict[str, Figure]:
    """The worse arm's mails are opened by machines, 15 % of them: what a filter is worth."""
    world: dict[str, Any] = {"n_sends": 40_000, "n_waves": 40, "wave_hours": 1.0, "runs": runs, "seed": seed}
    policy, rates = BetaBernoulliThompson(), (0.22, 0.20)
    left_in = simulate_responses(policy, rates, machine_rate=(0.0, 0.15), **world)
    return {
        "machines_filtered_better_arm_last_share": _figure(
            simulate_responses(policy, rates, **world).last_share[:, 0], least=0.85
        ),
        "machines_left_in_better_arm_last_share_teeth": _figure(left_in.last_share[:, 0], most=0.2),
    }


def regret_by_horizon(
    policy: BetaBernoulliThompson, rates: tuple[float, ...], runs: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Horizons 2,000 to 128,000, shape (7,), and each run's regret until then, shape (runs, 7); answers at once.

    A wave is a tenth of what was sent before, at most an eighth of the horizon's next doubling.
    """
    sizes = np.array([200.0] * 10 + [250.0 * 2**doubling for doubling in range(6) for _ in range(8)])
    run = simulate_responses(
        policy, rates, n_sends=128_000, n_waves=len(sizes), wave_hours=1.0, sizes=sizes.tolist(), delay=AT_ONCE,
        runs=runs, seed=seed,
    )  # fmt: skip
    missed = (run.shares * (max(rates) - np.array(rates))).sum(axis=-1) * sizes
    return np.asarray(2000.0 * 2.0 ** np.arange(7)), np.asarray(np.cumsum(missed, axis=1)[:, 9::8], dtype=np.float64)


def _growth(runs: int, seed: int) -> dict[str, Figure]:
    horizons, regret = regret_by_horizon(
        BetaBernoulliThompson(floor=0.0, delay=AT_ONCE), (0.10, 0.15, 0.20, 0.25, 0.30), runs, seed
    )

    def slope(some: FloatArray) -> float:
        return float(np.polyfit(np.log(horizons), np.log(some.mean(axis=0)), 1)[0])

    parts = np.array([slope(part) for part in np.array_split(regret, 10)])
    per_send = regret.mean(axis=0) / horizons
    return {
        "regret_growth_exponent": _bounded(
            slope(regret), _standard_error(parts), 0.6, None,
            {"runs": runs, "regret_per_send": per_send.tolist(), "horizons": horizons.tolist()},
        )
    }  # fmt: skip
