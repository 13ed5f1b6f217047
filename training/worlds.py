"""How a policy fares in worlds whose truth is known: late answers, day and night, drift, bots, repeats, no effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.policies import CountPolicy, DelayCdf
from training.policies.statistics import FloatArray, IntArray
from training.policies.waves import design_effect

#: Relative base rate at an hour since the start, an array function.
BaseRate = Callable[[FloatArray], FloatArray]

#: Age at which nothing is pending any more: a learner told this of fresh mail counts the pending as failures.
_AGED_HOURS = 1e6

#: Sends by hour of the day when every contact is written to at its best hour: little at night, a peak before noon and
#: a higher one in the evening, as hours of activity in public message logs are.
BEST_HOURS = (9, 5, 3, 2, 2, 4, 10, 22, 38, 52, 60, 58, 50, 48, 46, 44, 46, 52, 62, 74, 80, 66, 42, 20)


def steady(hours: FloatArray) -> FloatArray:
    """The same base rate at every hour."""
    return np.ones_like(hours)


def day_and_night(hours: FloatArray) -> FloatArray:
    """A swing of 30 % either way within 24 hours."""
    return np.asarray(1.0 + 0.3 * np.sin(2 * np.pi * hours / 24.0), dtype=np.float64)


def weekly_season(hours: FloatArray) -> FloatArray:
    """A swing of 30 % either way within a week."""
    return np.asarray(1.0 + 0.3 * np.sin(2 * np.pi * hours / 168.0), dtype=np.float64)


@dataclass(frozen=True)
class Responses:
    """Many runs of one policy in one world."""

    #: shape (runs, n_waves, n_arms): probabilities that each wave was drawn from.
    shares: FloatArray
    #: shape (runs, n_arms): probabilities after the last wave.
    last_share: FloatArray
    #: shape (runs,): expected successes missed against always choosing the best arm that was running.
    regret: FloatArray
    #: Expected successes that the uniform split would have missed.
    uniform_regret: float
    #: shape (runs, n_arms, n_waves)
    trials: IntArray
    #: shape (runs, n_arms, n_waves): human successes in the end, those still to come included.
    successes: IntArray

    @property
    def captured(self) -> FloatArray:
        """Share of the oracle's gain over the uniform split, shape (runs,)."""
        return 1.0 - self.regret / self.uniform_regret


@dataclass
class _Learning:
    """What a policy is shown while answers come in: the same for every world. A cell is a part of a wave's mails."""

    policy: CountPolicy
    delay: DelayCdf
    rng: np.random.Generator
    #: shape (n_cells,): when each cell's mails leave, and the wave that the policy takes them for.
    left_hours: FloatArray
    wave_of: IntArray
    step_hours: float
    #: shape (runs, n_arms, n_cells): mails, answers seen, and answers still to come.
    trials: IntArray
    seen: IntArray
    pending: IntArray
    pooled: bool = False
    pending_is_failure: bool = False

    def arrive(self, now_hours: float) -> FloatArray:
        """Let in what is due by now; returns every cell's age, shape (n_cells,).

        Those pending at one look have come in by the next with probability ``(F(b) - F(a)) / (1 - F(a))``, which
        gives the same counts as a delay drawn for every mail.
        """
        age = now_hours - self.left_hours
        before, now = self.delay(np.maximum(age - self.step_hours, 0)), self.delay(np.maximum(age, 0))
        due = np.clip((now - before) / np.maximum(1 - before, 1e-12), 0, 1)
        # Only what has left may answer; a settled cell has nothing pending.
        waiting = np.flatnonzero((age > 0) & self.pending.any(axis=(0, 1)))
        arrived = self.rng.binomial(self.pending[..., waiting], due[waiting])
        self.seen[..., waiting] += arrived
        self.pending[..., waiting] -= arrived
        return np.maximum(age, 0.0)

    def shares(self, now_hours: float, arms: IntArray, thinning: FloatArray | None = None) -> FloatArray:
        """Probabilities of ``arms`` from what is known by now, shape (runs, n_arms given).

        Parameters
        ----------
        thinning : ndarray of float64, shape (runs,), optional
            Design effect of each run, by which its evidence is divided.
        """
        names = tuple(f"arm_{k}" for k in arms)
        age = self.arrive(now_hours)
        left = np.flatnonzero(self.left_hours < now_hours)
        waves = np.unique(self.wave_of[left])
        trials, seen = (values[:, arms][..., left] for values in (self.trials, self.seen))
        age = np.broadcast_to(np.full_like(age, _AGED_HOURS) if self.pending_is_failure else age, self.trials.shape)
        age = age[:, arms][..., left]
        if len(waves) < len(left):
            of_wave = (self.wave_of[left][:, None] == waves).astype(np.int64)
            mails = trials @ of_wave
            age = (trials * age) @ of_wave / np.maximum(mails, 1)
            trials, seen = mails, seen @ of_wave
        if self.pooled:
            total = trials.sum(axis=-1, keepdims=True)
            mean_share = (trials * self.delay(age)).sum(axis=-1, keepdims=True) / np.maximum(total, 1)
            trials, seen, age = total, seen.sum(axis=-1, keepdims=True), _age_of(self.delay, mean_share)
        if thinning is not None:
            thinned = trials / thinning[:, None, None], seen / thinning[:, None, None]
            return self.policy.shares(names, *thinned, age)  # type: ignore[arg-type]
        return self.policy.shares(names, trials, seen, age)


def simulate_responses(
    policy: CountPolicy,
    rates: ArrayLike,
    *,
    n_sends: int,
    n_waves: int,
    runs: int,
    seed: int,
    wave_hours: float = 2.0,
    base: BaseRate = steady,
    delay: DelayCdf | None = None,
    sizes: Sequence[float] | None = None,
    running: ArrayLike | None = None,
    machine_rate: ArrayLike = 0.0,
    pooled: bool = False,
    pending_is_failure: bool = False,
) -> Responses:
    """Runs of a send in waves, all at once: each wave is drawn from the pmf of what has come in when it leaves.

    Parameters
    ----------
    policy : CountPolicy
    rates : array-like of float, shape (n_arms,) or (n_arms, n_waves)
        True success rate of each arm at a base rate of one; with a column a wave where it drifts.
    n_sends, n_waves : int
        Sends in all, cut into waves ``wave_hours`` apart.
    runs : int
        Independent repetitions.
    base : function of hours since the start
        Multiplies every arm's rate.
    delay : DelayCdf, optional
        True delay of an answer; a lognormal with a median of 3 hours by default.
    sizes : sequence of float, length n_waves, optional
        Relative sizes of the waves; equal by default.
    running : array-like of bool, shape (n_arms, n_waves), optional
        Where each arm may be chosen; all everywhere by default. An arm is unknown until it first runs.
    machine_rate : float or array-like of float, shape (n_arms,)
        Share of an arm's mails that a machine opens at once and that are taken for human answers. 0 is a world
        without machines, or a filter that catches them.
    pooled : bool
        Show the policy the counts added up over waves, as textbook bandits have them: the harness's teeth.
    pending_is_failure : bool
        Tell the policy that nothing is pending, so that mail without an answer counts as failed: teeth again.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones(n_waves) if sizes is None else np.asarray(sizes, dtype=np.float64)
    edges = np.concatenate([[0], np.round(n_sends * np.cumsum(weights) / weights.sum())]).astype(np.int64)
    per_wave = np.diff(edges)
    by_arm = np.asarray(rates, dtype=np.float64)
    n_arms = len(by_arm)
    hours = np.arange(n_waves, dtype=np.float64) * wave_hours
    truth: FloatArray = (by_arm[:, None] if by_arm.ndim == 1 else by_arm) * base(hours)
    if truth.min() < 0 or truth.max() > 1:
        raise ValueError(f"rates reach from {truth.min():.3g} to {truth.max():.3g}; keep them between 0 and 1")
    is_running = np.ones((n_arms, n_waves), dtype=bool) if running is None else np.asarray(running, dtype=bool)
    if is_running.shape != truth.shape or not is_running.any(axis=0).all():
        raise ValueError(f"running has shape {is_running.shape}; give {truth.shape}, with an arm in every wave")
    machines = np.broadcast_to(np.asarray(machine_rate, dtype=np.float64), (n_arms,))

    nothing = np.zeros((runs, n_arms, n_waves), dtype=np.int64)
    learning = _Learning(
        policy, delay or DelayCdf(), rng, hours, np.arange(n_waves), wave_hours,
        nothing, nothing.copy(), nothing.copy(), pooled, pending_is_failure,
    )  # fmt: skip
    shares = np.zeros((runs, n_waves + 1, n_arms))
    successes = np.zeros((runs, n_arms, n_waves), dtype=np.int64)
    for wave in range(n_waves + 1):
        open_now = is_running[:, min(wave, n_waves - 1)]
        known = np.flatnonzero(is_running[:, : wave + 1].any(axis=1))
        pmf = np.ones((runs, 1)) if len(known) == 1 else learning.shares(wave * wave_hours, known)
        shares[:, wave, known] = np.where(open_now[known], pmf, 0.0)
        shares[:, wave] /= shares[:, wave].sum(axis=-1, keepdims=True)
        if wave < n_waves:
            trials = rng.multinomial(per_wave[wave], shares[:, wave])
            by_machine = rng.binomial(trials, machines)
            human_too = rng.binomial(by_machine, truth[:, wave])
            answers = rng.binomial(trials - by_machine, truth[:, wave])
            learning.trials[:, :, wave] = trials
            learning.seen[:, :, wave] = by_machine
            learning.pending[:, :, wave] = answers
            successes[:, :, wave] = answers + human_too
    best = np.where(is_running, truth, 0.0).max(axis=0)
    missed = np.where(is_running, best - truth, 0.0)
    return Responses(
        shares=shares[:, :-1],
        last_share=shares[:, -1],
        regret=(shares[:, :-1] * (missed * per_wave).T).sum(axis=(1, 2)),
        uniform_regret=float((missed.sum(axis=0) / is_running.sum(axis=0) * per_wave).sum()),
        trials=learning.trials,
        successes=successes,
    )


def simulate_repeat_contacts(
    policy: CountPolicy,
    rates: Sequence[float],
    *,
    n_contacts: int,
    runs: int,
    seed: int,
    sticky: bool,
    n_mails: int = 10,
    n_cohorts: int = 10,
    concentration: float = 4.0,
    duplicates: float = 0.0,
    delay: DelayCdf | None = None,
    ignore_design_effect: bool = False,
    wave_of_mail: bool = False,
) -> Responses:
    """Runs in which the same contacts get mail after mail, one a day, and some are far more eager than others.

    Contacts come in cohorts, one a day; each gets ``n_mails``. A contact's rate is drawn once, from a Beta
    distribution of the mean of ``rates``, and multiplied by its arm's rate over that mean: answers of one contact are
    alike. Where contacts keep their arm, two things change. The evidence counts less than its number of mails; the
    policy is told each run's own design effect, measured on the answers so far
    (``training.policies.waves.design_effect``). And a mail's wave is that of its contact's first decision: only
    contacts whose arms were drawn from the same probabilities may be compared.

    Parameters
    ----------
    rates : sequence of float, length n_arms
    n_contacts : int
        Persons.
    sticky : bool
        Whether a contact keeps the arm of its first mail.
    concentration : float
        Of the Beta distribution of contacts' rates; 4 makes ten mails to one contact worth 3.6.
    duplicates : float, in [0, 1]
        Share of persons (the earliest) who are two contacts until half of the days are over, when they are found to
        be one and merged: until then they get every mail twice, each with its own arm, and answer at most one of the
        two.
    ignore_design_effect, wave_of_mail : bool
        Take every mail for independent evidence; take a sticky mail for part of the wave in which it leaves: the
        harness's teeth.
    """
    rng = np.random.default_rng(seed)
    n_arms, n_waves = len(rates), n_cohorts + n_mails - 1
    mean = float(np.mean(rates))
    relative = np.asarray(rates) / mean
    n_twice = round(duplicates * n_contacts)
    person = np.concatenate([np.arange(n_contacts), np.arange(n_twice)])  # the second contacts stand last
    is_second = np.arange(len(person)) >= n_contacts
    cohort = person * n_cohorts // n_contacts
    rate = rng.beta(mean * concentration, (1 - mean) * concentration, (runs, n_contacts))
    # A cell is the mails of one cohort on one day.
    day, first_day = (axis.ravel() for axis in np.indices((n_waves, n_cohorts)))
    nothing = np.zeros((runs, n_arms, len(day)), dtype=np.int64)
    wave_of = first_day if sticky and not wave_of_mail else day
    learning = _Learning(
        policy, delay or DelayCdf(), rng, day.astype(np.float64) * 24.0, wave_of, 24.0,
        nothing, nothing.copy(), nothing.copy(),
    )  # fmt: skip
    shares = np.empty((runs, n_waves + 1, n_arms))
    arm = np.zeros((runs, len(person)), dtype=np.int64)
    mails, answered = np.zeros_like(arm), np.zeros_like(arm)
    for wave in range(n_waves + 1):
        thinning = design_effect(mails, answered) if sticky and not ignore_design_effect and wave else None
        shares[:, wave] = learning.shares(wave * 24.0, np.arange(n_arms), thinning)
        if wave == n_waves:
            break
        apart = wave < n_waves / 2
        gets = np.flatnonzero((cohort <= wave) & (wave < cohort + n_mails) & (apart | ~is_second))
        fresh = gets[cohort[gets] == wave] if sticky else gets
        cdf = np.cumsum(shares[:, wave], axis=-1)[:, None, :-1]
        arm[:, fresh] = (rng.random((runs, len(fresh)))[..., None] >= cdf).sum(axis=-1)
        chance = np.minimum(rate[:, person[gets]] * relative[arm[:, gets]], 1.0)
        if n_twice and apart:
            reads_second = rng.random((runs, n_contacts)) < 0.5
            is_read = (person[gets] >= n_twice) | (reads_second[:, person[gets]] == is_second[gets])
            chance = np.where(is_read, chance, 0.0)
        says = rng.random(chance.shape) < chance
        mails[:, gets] += 1
        answered[:, gets] += says
        for k in range(n_arms):
            of_arm = arm[:, gets] == k
            for c in np.unique(cohort[gets]):
                of_cohort = cohort[gets] == c
                cell = wave * n_cohorts + c
                learning.trials[:, k, cell] = of_arm[:, of_cohort].sum(axis=1)
                learning.pending[:, k, cell] = (says & of_arm)[:, of_cohort].sum(axis=1)
    by_day = (runs, n_arms, n_waves, n_cohorts)
    trials = learning.trials.reshape(by_day).sum(axis=-1)
    drawn = (
        shares[:, :-1] if not sticky else np.moveaxis(trials / np.maximum(trials.sum(axis=1, keepdims=True), 1), 1, 2)
    )
    per_wave = trials.sum(axis=1).mean(axis=0)
    missed = np.max(rates) - np.asarray(rates)
    return Responses(
        shares=drawn,
        last_share=shares[:, -1],
        regret=(drawn * missed * per_wave[:, None]).sum(axis=(1, 2)),
        uniform_regret=float(missed.mean() * per_wave.sum()),
        trials=trials,
        successes=(learning.seen + learning.pending).reshape(by_day).sum(axis=-1),
    )


def _age_of(delay: DelayCdf, share: FloatArray) -> FloatArray:
    """Age by which ``share`` of the answers has come in: one age that stands for all pooled waves."""
    ages = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 4000)])
    return np.asarray(np.interp(share, delay(ages), ages), dtype=np.float64)


def no_effect_misses(last_share: FloatArray) -> NDArray[np.bool_]:
    """Runs whose last share of the first arm lies outside 10-90 %."""
    return np.asarray(np.abs(last_share[:, 0] - 0.5) > 0.4, dtype=np.bool_)
