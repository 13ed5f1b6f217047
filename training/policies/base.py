"""What every policy promises: explicit arm probabilities, a floor, and draws that anyone can repeat.

A policy is a pure function from counts to a probability mass function (pmf) over the arms. The arm of a decision is
drawn from that pmf by a hash of what the decision is about, so the logged propensity is exact and every decision can
be taken again, bit for bit, on any machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import blake2b
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.policies.statistics import ArmStatistics, FloatArray, IntArray

#: A pmf's sum may differ from one by at most this.
PMF_TOLERANCE = 1e-9


#: What one allocation's probabilities may differ by: nothing, the contact's segment, the contact's vector.
Context = Literal["none", "segment", "vector"]


@dataclass(frozen=True)
class Allocation:
    """Arm probabilities and why they are what they are: what a snapshot keeps, and all that a draw needs.

    Attributes
    ----------
    arms : tuple of str, length n_arms
    pmf : ndarray of float64, shape (n_arms,)
        Floor mixed in, sums to one within 1e-9. For a contact of whom neither segment nor vector is known.
    reason : str
    details : mapping
        JSON values for the reader of a snapshot.
    by_segment : mapping of str to ndarray of float64, shape (n_arms,)
        Probabilities of the segments that have their own.
    ensemble : ndarray of float32, shape (n_draws, n_arms, n_features), optional
        Posterior draws of each arm's coefficients: an arm's share of the draws that it wins on a contact's vector is
        its probability, so the logged propensity is exact with respect to what is stored.
    uniform : float, in [0, 1]
        Share of the ensemble's probabilities that is spread evenly over the arms (floor and exploration). It is
        already part of ``pmf`` and ``by_segment``.
    """

    arms: tuple[str, ...]
    pmf: FloatArray
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    by_segment: Mapping[str, FloatArray] = field(default_factory=dict)
    ensemble: NDArray[np.float32] | None = None
    uniform: float = 0.0

    def explored(self, share: float) -> Allocation:
        """The same with ``share`` of every decision drawn evenly."""
        if not 0 <= share <= 1:
            raise ValueError(f"a share of {share} cannot be explored; choose one between 0 and 1")
        return replace(
            self,
            pmf=_explored(self.pmf, share),
            by_segment={name: _explored(pmf, share) for name, pmf in self.by_segment.items()},
            uniform=share + (1 - share) * self.uniform,
        )

    def probabilities(
        self, n: int, *, segments: Sequence[str | None] | None = None, contexts: ArrayLike | None = None
    ) -> FloatArray:
        """Arm probabilities of ``n`` contacts, shape (n, n_arms).

        Parameters
        ----------
        segments : sequence of str or None, length n, optional
        contexts : array-like of float32, shape (n, n_features), optional
            Vectors; a row with a number that is not finite, also once it is a float32, is a contact without one.
        """
        rows = np.repeat(self.pmf[None, :], n, axis=0)
        if self.by_segment and segments is not None:
            for i, segment in enumerate(segments):
                if segment is not None and segment in self.by_segment:
                    rows[i] = self.by_segment[segment]
        if self.ensemble is not None and contexts is not None:
            with np.errstate(over="ignore"):
                x = np.asarray(contexts, dtype=np.float32)
            known = np.isfinite(x).all(axis=1)
            shares = won_shares(self.ensemble, x[known])
            rows[known] = (1 - self.uniform) * shares + self.uniform / len(self.arms)
        return rows


def _explored(pmf: FloatArray, share: float) -> FloatArray:
    return np.asarray((1 - share) * pmf + share / len(pmf), dtype=np.float64)


def won_shares(ensemble: NDArray[np.float32], contexts: NDArray[np.float32]) -> FloatArray:
    """Share of the ensemble's draws that each arm wins on each vector, shape (n, n_arms); ties go to the first arm.

    A score is the float32 sum of products in the order of the features, rounded after each step: the result for a
    vector depends on nothing but the vector and the ensemble, neither on the batch it comes in nor on the machine.

    Parameters
    ----------
    ensemble : ndarray of float32, shape (n_draws, n_arms, n_features)
    contexts : ndarray of float32, shape (n, n_features)

    Raises
    ------
    ValueError
        If the vectors have another width than the ensemble.
    """
    n_draws, n_arms, n_features = ensemble.shape
    if contexts.ndim != 2 or contexts.shape[1] != n_features:
        raise ValueError(f"vectors of shape {contexts.shape} do not fit an ensemble of {n_features} features")
    by_arm = np.ascontiguousarray(ensemble.transpose(1, 2, 0), dtype=np.float32)
    shares = np.zeros((len(contexts), n_arms))
    _won_kernel()(by_arm, np.ascontiguousarray(contexts, dtype=np.float32), shares)
    return shares / n_draws


@cache
def _won_kernel() -> Any:
    """The compiled ``_count_won``; loaded from Numba's cache once it was compiled on this machine."""
    import numba  # loaded where it is used

    def array(of: Any, ndim: int, readonly: bool = True) -> Any:
        return numba.types.Array(of, ndim, "C", readonly=readonly)

    t = numba.types
    signature = t.void(array(t.float32, 3), array(t.float32, 2), array(t.float64, 2, readonly=False))
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}  # no fastmath: it may reorder and fuse
    try:
        return numba.njit(signature, cache=True, **options)(_count_won)
    except RuntimeError:  # no folder to cache in (a read-only installation): compile in memory
        return numba.njit(signature, **options)(_count_won)


def _count_won(by_arm: Any, contexts: Any, won: Any) -> None:
    """Add to ``won`` of shape (n, n_arms) the draws won; ``by_arm`` has shape (n_arms, n_features, n_draws)."""
    n_arms, n_features, n_draws = by_arm.shape
    score = np.empty(n_draws, np.float32)
    best = np.empty(n_draws, np.float32)
    winner = np.empty(n_draws, np.int32)
    for i in range(len(contexts)):
        for arm in range(n_arms):
            for draw in range(n_draws):
                score[draw] = contexts[i, 0] * by_arm[arm, 0, draw]
            for feature in range(1, n_features):
                x = contexts[i, feature]
                for draw in range(n_draws):
                    score[draw] += x * by_arm[arm, feature, draw]
            if arm == 0:
                best[:] = score
                winner[:] = 0
            else:
                for draw in range(n_draws):
                    is_better = score[draw] > best[draw]
                    best[draw] = score[draw] if is_better else best[draw]
                    winner[draw] = arm if is_better else winner[draw]
        for draw in range(n_draws):
            won[i, winner[draw]] += 1.0


class Policy(ABC):
    """A pure function from statistics to arm probabilities.

    Laws, held by ``tests/contracts/test_policies.py`` for every policy: probabilities sum to one within 1e-9; every
    arm keeps at least its floor; renaming or reordering arms reorders the probabilities alike; the same statistics
    give the same bits; the parameters survive JSON; drawing gives each arm its probability.
    """

    #: Name under which ``policy_from_parameters`` finds the class.
    name: ClassVar[str]
    #: What its probabilities may differ by from contact to contact.
    context: ClassVar[Context] = "none"
    #: Class of the statistics it learns from.
    learns_from: ClassVar[type]

    @abstractmethod
    def allocate(self, statistics: Any, *, previous: Allocation | None = None, seed: int = 0) -> Allocation:
        """Arm probabilities with their reason.

        Parameters
        ----------
        statistics : of the class ``learns_from``
        previous : Allocation, optional
            The one in force, for policies that limit the change from snapshot to snapshot.
        seed : int
            Of posterior draws, where a policy stores an ensemble.
        """

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The policy as JSON values; ``policy_from_parameters`` makes an equal policy from them."""

    @abstractmethod
    def floor_of(self, n_arms: int) -> float:
        """Least probability of each running arm."""


class CountPolicy(Policy):
    """A policy that learns from counts of trials and successes."""

    learns_from: ClassVar[type] = ArmStatistics

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

    def reason(self, statistics: ArmStatistics) -> str:
        """One sentence for the log: why the probabilities are what they are."""
        return self.name

    def pmf(self, statistics: ArmStatistics) -> FloatArray:
        """Arm probabilities, shape (n_arms,), in the order of ``statistics.arms``."""
        return self.shares(statistics.arms, statistics.trials, statistics.successes, statistics.age_hours)

    def allocate(self, statistics: ArmStatistics, *, previous: Allocation | None = None, seed: int = 0) -> Allocation:
        """Arm probabilities with their reason."""
        return Allocation(statistics.arms, self.pmf(statistics), self.reason(statistics))


def mix_floor(shares: FloatArray, floor: float | FloatArray) -> FloatArray:
    """``(1 - n_arms * floor) * shares + floor``: every arm keeps at least ``floor``, and the sum stays one.

    Mixing, not clipping: it keeps the order of the arms, moves no probability discontinuously, and bounds the
    importance weights of every later estimate by ``1 / floor``.

    Parameters
    ----------
    shares : ndarray of float64, shape (..., n_arms)
    floor : float, or ndarray of float64 of shape (..., 1)

    Raises
    ------
    ValueError
        If ``floor`` does not fit: below 0, or above ``1 / n_arms``.
    """
    n_arms = shares.shape[-1]
    if not np.all((np.asarray(floor) >= 0) & (np.asarray(floor) <= 1 / n_arms)):
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
    total = kept.sum(axis=-1, keepdims=True)
    if not np.all(total > 0):
        raise ValueError("no arm is open to the draw; resume a paused arm or add one")
    return np.asarray(kept / total, dtype=np.float64)


def choose(pmf: ArrayLike, draws: ArrayLike) -> IntArray:
    """Index of the arm that each draw falls on: arm k owns ``[cdf(k - 1), cdf(k))``.

    An arm without probability owns an empty interval and is never chosen, rounding of the sum included.

    Parameters
    ----------
    pmf : array-like of float, shape (n_arms,), or (n, n_arms) with a row for each of n draws
    draws : array-like of float, any shape (with rows: (n,)), in [0, 1)

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
    if (
        probabilities.ndim not in (1, 2)
        or not np.all(probabilities >= 0)
        or np.any(np.abs(probabilities.sum(axis=-1) - 1.0) > PMF_TOLERANCE)
    ):
        raise ValueError(f"{probabilities} is no pmf: it needs no negative number and the sum 1 within 1e-9")
    # What lies at or beyond the last arm with probability belongs to it, rounding of the sum included.
    n_arms = probabilities.shape[-1]
    last = n_arms - 1 - np.argmax(probabilities[..., ::-1] > 0, axis=-1)
    cdf = np.where(np.arange(n_arms) >= last[..., None], 1.0, np.cumsum(probabilities, axis=-1))
    at = np.asarray(draws, dtype=np.float64)
    if probabilities.ndim == 1:
        return np.asarray(np.searchsorted(cdf, at, side="right"), dtype=np.int64)
    if at.shape != probabilities.shape[:1]:
        raise ValueError(f"{probabilities.shape} is no pmf for {at.shape} draws; give one row a draw")
    return np.asarray((cdf <= at[:, None]).sum(axis=-1), dtype=np.int64)


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
