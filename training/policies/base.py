"""What every policy promises: explicit arm probabilities, a floor, and draws that anyone can repeat.

A policy is a pure function from counts to a probability mass function (pmf) over the arms. The arm of a decision is
drawn from that pmf by a hash of what the decision is about, so the logged propensity is exact and every decision can
be taken again, bit for bit, on any machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: A pmf's sum may differ from one by at most this.
PMF_TOLERANCE = 1e-9


@dataclass(frozen=True)
class ArmStatistics:
    """Counts of each arm in each wave: all that a policy without context learns from. They add up.

    Parameters
    ----------
    arms : tuple of str, length n_arms
        Distinct arm ids, in the order in which pmfs list them.
    trials : ndarray of int64, shape (n_arms, n_waves)
        Decisions shown: mails accepted by the provider.
    successes : ndarray of int64, shape (n_arms, n_waves)
        Trials with a reward so far; at most ``trials``.
    age_hours : ndarray of float64, shape (n_arms, n_waves)
        Mean age of the cell's trials at the snapshot; 0 where there are none.

    Raises
    ------
    ValueError
        If there are fewer than two arms, if they repeat, if the shapes differ, or if a count is impossible.
    """

    arms: tuple[str, ...]
    trials: IntArray
    successes: IntArray
    age_hours: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", tuple(self.arms))
        for name, dtype in (("trials", np.int64), ("successes", np.int64), ("age_hours", np.float64)):
            given = np.asarray(getattr(self, name))
            values = given.astype(dtype)
            if dtype is np.int64 and not np.array_equal(values, given):
                raise ValueError(f"{name} holds numbers that are not whole; counts are whole numbers")
            object.__setattr__(self, name, values)
            if values.ndim != 2 or values.shape != (len(self.arms), np.shape(self.trials)[-1]):
                raise ValueError(
                    f"{name} has shape {values.shape}; it must be (n_arms, n_waves) with n_arms = {len(self.arms)}"
                )
            if not np.all(np.isfinite(values)) or np.any(values < 0):
                raise ValueError(f"{name} holds a negative or not finite number; counts and ages start at 0")
        if len(self.arms) < 2:
            raise ValueError(f"there is nothing to choose among {len(self.arms)} arm(s); give at least 2")
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms {self.arms} repeat; give each arm an id of its own")
        if np.any(self.successes > self.trials):
            raise ValueError("a cell has more successes than trials; count at most one success a trial")

    @classmethod
    def empty(cls, arms: Sequence[str], n_waves: int = 0) -> ArmStatistics:
        """Statistics before the first trial."""
        counts = np.zeros((len(arms), n_waves), dtype=np.int64)
        return cls(tuple(arms), counts, counts, counts.astype(np.float64))

    def __add__(self, other: ArmStatistics) -> ArmStatistics:
        """Cells added up, ages averaged over the trials; both sides must list the same arms and waves.

        Examples
        --------
        >>> day = ArmStatistics(("a", "b"), [[2], [3]], [[1], [0]], [[4.0], [4.0]])
        >>> (day + day).trials.tolist()
        [[4], [6]]
        """
        if self.arms != other.arms or self.trials.shape != other.trials.shape:
            raise ValueError(
                f"cannot add statistics of {other.arms} to those of {self.arms}: arms and waves must agree"
            )
        trials = self.trials + other.trials
        hours = self.trials * self.age_hours + other.trials * other.age_hours
        return ArmStatistics(self.arms, trials, self.successes + other.successes, hours / np.maximum(trials, 1))

    def reordered(self, order: Sequence[int]) -> ArmStatistics:
        """The same statistics with the arms listed as ``order`` says."""
        index = list(order)
        return ArmStatistics(
            tuple(self.arms[i] for i in index), self.trials[index], self.successes[index], self.age_hours[index]
        )


@dataclass(frozen=True)
class Allocation:
    """Arm probabilities and why they are what they are."""

    arms: tuple[str, ...]
    #: shape (n_arms,), floor mixed in, sums to one within 1e-9.
    pmf: FloatArray
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Policy(ABC):
    """A pure function from statistics to arm probabilities.

    Laws, held by ``tests/contracts/test_policies.py`` for every policy: probabilities sum to one within 1e-9; every
    arm keeps at least its floor; renaming or reordering arms reorders the probabilities alike; the same statistics
    give the same bits; the parameters survive JSON; drawing with ``choose`` gives each arm its probability.
    """

    #: Name under which ``policy_from_parameters`` finds the class.
    name: ClassVar[str]

    @abstractmethod
    def shares(self, arms: tuple[str, ...], trials: IntArray, successes: IntArray, age_hours: FloatArray) -> FloatArray:
        """Arm probabilities of many tables at once.

        Parameters
        ----------
        arms : tuple of str, length n_arms
        trials, successes, age_hours : ndarray, shape (..., n_arms, n_waves)
            As in ``ArmStatistics``, with any leading axes (runs of a simulation, segments).

        Returns
        -------
        ndarray of float64, shape (..., n_arms)
        """

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The policy as JSON values; ``policy_from_parameters`` makes an equal policy from them."""

    @abstractmethod
    def floor_of(self, n_arms: int) -> float:
        """Least probability of each running arm."""

    def reason(self, statistics: ArmStatistics) -> str:
        """One sentence for the log: why the probabilities are what they are."""
        return self.name

    def pmf(self, statistics: ArmStatistics) -> FloatArray:
        """Arm probabilities, shape (n_arms,), in the order of ``statistics.arms``."""
        return self.shares(statistics.arms, statistics.trials, statistics.successes, statistics.age_hours)

    def allocate(self, statistics: ArmStatistics) -> Allocation:
        """Arm probabilities with their reason."""
        return Allocation(statistics.arms, self.pmf(statistics), self.reason(statistics))


def mix_floor(shares: FloatArray, floor: float) -> FloatArray:
    """``(1 - n_arms * floor) * shares + floor``: every arm keeps at least ``floor``, and the sum stays one.

    Mixing, not clipping: it keeps the order of the arms, moves no probability discontinuously, and bounds the
    importance weights of every later estimate by ``1 / floor``.

    Raises
    ------
    ValueError
        If ``floor`` does not fit: below 0, or above ``1 / n_arms``.
    """
    n_arms = shares.shape[-1]
    if not 0 <= floor <= 1 / n_arms:
        raise ValueError(f"floor {floor} does not fit {n_arms} arms; choose one between 0 and {1 / n_arms:.4g}")
    return np.asarray((1.0 - n_arms * floor) * shares + floor, dtype=np.float64)


def masked(pmf: FloatArray, eligible: ArrayLike) -> FloatArray:
    """The pmf over the eligible arms only: the others get zero, the rest is scaled to sum to one.

    Log what this returns, not what went in: it is what the arm is drawn from.

    Raises
    ------
    ValueError
        If no eligible arm has a probability above zero.

    Examples
    --------
    >>> masked(np.array([0.5, 0.3, 0.2]), [True, False, True]).round(4).tolist()
    [0.7143, 0.0, 0.2857]
    """
    kept = np.where(np.asarray(eligible, dtype=bool), pmf, 0.0)
    total = kept.sum()
    if not total > 0:
        raise ValueError("no arm is open to the draw; resume a paused arm or add one")
    return kept / total


def choose(pmf: ArrayLike, draws: ArrayLike) -> IntArray:
    """Index of the arm that each draw falls on: arm k owns ``[cdf(k - 1), cdf(k))``.

    An arm without probability owns an empty interval and is never chosen, rounding of the sum included.

    Parameters
    ----------
    pmf : array-like of float, shape (n_arms,)
    draws : array-like of float, any shape, in [0, 1)

    Returns
    -------
    ndarray of int64, of the shape of ``draws``

    Examples
    --------
    >>> choose([0.2, 0.0, 0.8], [0.0, 0.19, 0.2, 0.999]).tolist()
    [0, 0, 2, 2]
    >>> int(choose([0.5, 0.5], 0.7))
    1
    """
    probabilities = np.asarray(pmf, dtype=np.float64)
    if probabilities.ndim != 1 or not np.all(probabilities >= 0) or abs(probabilities.sum() - 1.0) > PMF_TOLERANCE:
        raise ValueError(f"{probabilities} is no pmf: it needs one axis, no negative number and the sum 1 within 1e-9")
    cdf = np.cumsum(probabilities)
    cdf[np.flatnonzero(probabilities)[-1] :] = 1.0
    return np.asarray(np.searchsorted(cdf, np.asarray(draws, dtype=np.float64), side="right"), dtype=np.int64)


def hashed_draw(salt: str, snapshot_id: str, contact_key: int, occurrence: str) -> float:
    """The draw of one decision, in [0, 1): a batch of one of ``hashed_draws``.

    Examples
    --------
    >>> hashed_draw("salt", "snapshot-1", 42, "send:7") == hashed_draw("salt", "snapshot-1", 42, "send:7")
    True
    """
    return float(hashed_draws(salt, snapshot_id, np.array([contact_key]), [occurrence])[0])


def hashed_draws(
    salt: str, snapshot_id: str, contact_keys: ArrayLike, occurrences: Sequence[str] | NDArray[np.str_]
) -> FloatArray:
    """Draws in [0, 1) that depend on nothing but what is decided: no generator, no state, the same on every machine.

    A 64-bit key is BLAKE2b of salt and snapshot, each preceded by its length, so that no two pairs share their
    bytes. A decision's draw is the first 53 bits of XXH64, seeded with that key, over the contact key (8 bytes,
    little endian, so what follows cannot be confused with it) and the occurrence (UTF-8), divided by 2**53.
    XXH64 in numpy is some ten times as fast as a BLAKE2b a row; uniformity and published test vectors are tested.

    Parameters
    ----------
    salt, snapshot_id : str
        The experiment's salt and the snapshot in force: a new snapshot draws anew.
    contact_keys : array-like of int64, shape (n,)
    occurrences : sequence of str, length n
        What is decided for the contact, such as ``"send:17"``.

    References
    ----------
    Aumasson, Neves, Wilcox-O'Hearn, Winnerlein (2013), "BLAKE2: simpler, smaller, fast as MD5".
    Collet (2012), "xxHash", specification of XXH64.
    """
    keys = np.ascontiguousarray(contact_keys, dtype="<i8")
    names = occurrences.tolist() if isinstance(occurrences, np.ndarray) else list(occurrences)
    if keys.shape != (len(names),):
        raise ValueError(f"{keys.shape} contact keys and {len(names)} occurrences; give one occurrence a contact")
    if not names:
        return np.empty(0)
    digest = blake2b(digest_size=8)
    for part in (salt.encode(), snapshot_id.encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    seed = int.from_bytes(digest.digest(), "little")

    text = "".join(names)
    encoded: Sequence[str | bytes] = names if text.isascii() else [name.encode() for name in names]
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(names))
    bodies = np.array(encoded, dtype=f"S{max(1, int(lengths.max(initial=1)))}")
    matrix = bodies.view(np.uint8).reshape(len(names), -1)
    hashes = np.empty(len(names), dtype=np.uint64)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        message = np.concatenate([keys[rows].view(np.uint8).reshape(-1, 8), matrix[rows, :length]], axis=1)
        hashes[rows] = xxh64(message, seed)
    return np.asarray((hashes >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
    )
)  # fmt: skip


def _rotated(value: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


def _round(accumulator: NDArray[np.uint64], lane: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _rotated(accumulator + lane * _P2, 31) * _P1


def xxh64(messages: NDArray[np.uint8], seed: int) -> NDArray[np.uint64]:
    """XXH64 of each row.

    Parameters
    ----------
    messages : ndarray of uint8, shape (n, length)
    seed : int, 0 to 2**64 - 1

    References
    ----------
    Collet (2012), "xxHash", specification of XXH64.

    Examples
    --------
    >>> hex(xxh64(np.frombuffer(b"abc", np.uint8)[None, :], 0)[0])
    '0x44bc2cf5ad770999'
    """
    n, length = messages.shape
    start = np.full(n, seed, dtype=np.uint64)
    at = 0

    def lane(first: int, width: int) -> NDArray[np.uint64]:
        columns = np.ascontiguousarray(messages[:, first : first + width])
        return columns.view(f"<u{width}")[:, 0].astype(np.uint64)

    if length >= 32:
        v = [start + _P1 + _P2, start + _P2, start.copy(), start - _P1]
        while at + 32 <= length:
            v = [_round(v[i], lane(at + 8 * i, 8)) for i in range(4)]
            at += 32
        h = _rotated(v[0], 1) + _rotated(v[1], 7) + _rotated(v[2], 12) + _rotated(v[3], 18)
        for part in v:
            h = (h ^ _round(np.zeros_like(part), part)) * _P1 + _P4
    else:
        h = start + _P5
    h = h + np.uint64(length)
    while at + 8 <= length:
        h = _rotated(h ^ _round(np.zeros_like(h), lane(at, 8)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= length:
        h = _rotated(h ^ (lane(at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    for i in range(at, length):
        h = _rotated(h ^ (lane(i, 1) * _P5), 11) * _P1
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))
