"""Expected reward of every arm at every logged decision, from a model that has not seen the contact."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from training.off_policy import LoggedDecisions, contact_folds
from training.policies.statistics import FloatArray, IntArray

RewardModel = Literal["arm_mean", "ridge", "lightgbm"]

#: Decisions at the mean of all arms that are added to each arm's own.
PRIOR_DECISIONS = 10.0
#: Ridge strength on standardised columns, in decisions.
RIDGE = 10.0
LIGHTGBM_TREES = 100
LIGHTGBM_PARAMETERS: dict[str, Any] = {
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 40,
    "lambda_l2": 2.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}


def fit_outcomes(
    logged: LoggedDecisions,
    model: RewardModel = "arm_mean",
    *,
    folds: int = 5,
    order: Literal["contact", "time"] = "contact",
    epoch: IntArray | None = None,
    seed: int = 0,
) -> FloatArray:
    """Expected reward, shape (n, n_arms), each row from a model fitted without that row's contact.

    A model that has seen a decision's reward repeats it, and a doubly robust estimate with such a model is too sure.

    Parameters
    ----------
    model : {"arm_mean", "ridge", "lightgbm"}
        Each arm's mean, pulled a little to the mean of all; a ridge regression on the contexts for each arm; one
        LightGBM on contexts and arm. The last two need contexts.
    folds : int, 2 or more
    order : {"contact", "time"}
        ``contact``: folds of contacts, each answered by the model of the others. ``time``: some 2 * ``folds``
        consecutive blocks of epochs, each answered by the model of earlier blocks, and of the other contacts of its
        own epoch where a block is one epoch; what has neither, by 0. Where the log's policy learned from its own
        rewards, later draws depend on earlier rewards, and only such a model leaves the estimate exactly unbiased.
    epoch : ndarray of int64, shape (n,), optional
        For ``time``: decisions of one epoch were drawn from one snapshot; later ones have greater numbers. By default
        ``occurred_at``.
    seed : int
        Of the folds.

    Raises
    ------
    ValueError
        If the model needs contexts, or the order needs instants, that the log has not.

    References
    ----------
    Chernozhukov et al. (2018), "Double/debiased machine learning", cross-fitting. Hadad, Hirshberg, Zhan, Wager,
    Athey (2021), "Confidence intervals for policy evaluation in adaptive experiments", models of the past only.

    Examples
    --------
    >>> log = LoggedDecisions(("a", "b"), [0, 1] * 50, [0.5] * 100, [0.0, 1.0] * 50)
    >>> bool((np.diff(fit_outcomes(log)) > 0.5).all())
    True
    """
    if folds < 2:
        raise ValueError(f"{folds} fold(s) leave nothing to fit on; choose 2 or more")
    if model not in _FITS:
        raise ValueError(f"outcome model {model!r} is unknown; choose one of {', '.join(_FITS)}")
    if model != "arm_mean" and (logged.contexts is None or not logged.contexts.shape[1]):
        raise ValueError(f"{model} needs contexts, and the log has none; choose arm_mean")
    fold, learned_from = contact_folds(logged, folds, seed), 1.0 - np.eye(folds)
    if order == "time":
        fold, learned_from = _in_time(logged, epoch, fold, folds)
    return _FITS[model](logged, fold, learned_from)


def _in_time(
    logged: LoggedDecisions, epoch: IntArray | None, contact_fold: IntArray, folds: int
) -> tuple[IntArray, FloatArray]:
    """A fold for each block of epochs and fold of contacts, and the folds that each may learn from."""
    at = logged.occurred_at if epoch is None else epoch
    if at is None:
        raise ValueError("order 'time' needs occurred_at or epoch; give one, or choose order 'contact'")
    n_blocks = 2 * folds
    epochs, number = np.unique(at, return_inverse=True)
    before = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=len(epochs)))])[:-1]
    block_of = before * n_blocks // max(1, len(logged))
    is_one_epoch = np.bincount(block_of.astype(np.int64), minlength=n_blocks) == 1
    block = np.repeat(np.arange(n_blocks), folds)
    contacts = np.tile(np.arange(folds), n_blocks)
    earlier = block[None, :] < block[:, None]
    beside = (block[None, :] == block[:, None]) & (contacts[None, :] != contacts[:, None]) & is_one_epoch[block]
    fold = block_of[number] * folds + contact_fold
    return np.asarray(fold, dtype=np.int64), (earlier | beside).astype(np.float64)


def _arm_means(logged: LoggedDecisions, fold: IntArray, learned_from: FloatArray) -> FloatArray:
    return _levels(logged, fold, learned_from)[fold]


def _levels(logged: LoggedDecisions, fold: IntArray, learned_from: FloatArray) -> FloatArray:
    """Each arm's pulled mean by the model of each fold, shape (folds, n_arms); 0 from nothing."""
    shape = (len(learned_from), logged.n_arms)
    cell, size = fold * logged.n_arms + logged.arm, shape[0] * shape[1]
    n = learned_from @ np.bincount(cell, minlength=size).reshape(shape)
    total = learned_from @ np.bincount(cell, logged.reward, size).reshape(shape)
    overall = total.sum(axis=1, keepdims=True) / np.maximum(n.sum(axis=1, keepdims=True), 1.0)
    return np.asarray((total + PRIOR_DECISIONS * overall) / (n + PRIOR_DECISIONS), dtype=np.float64)


def _ridge(logged: LoggedDecisions, fold: IntArray, learned_from: FloatArray) -> FloatArray:
    """Sums of each fold and arm, added up over the folds that a model may learn from; intercepts are `_levels`."""
    X = _standardised(logged.contexts)
    folds, n_arms, width = len(learned_from), logged.n_arms, X.shape[1]
    cell = fold * n_arms + logged.arm
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(folds * n_arms + 1))
    n, r = np.zeros(folds * n_arms), np.zeros(folds * n_arms)
    x, xr = np.zeros((folds * n_arms, width)), np.zeros((folds * n_arms, width))
    xx = np.zeros((folds * n_arms, width, width))
    for i in range(folds * n_arms):
        rows = order[bounds[i] : bounds[i + 1]]
        here, reward = X[rows], logged.reward[rows]
        n[i], r[i], x[i], xr[i], xx[i] = len(rows), reward.sum(), here.sum(axis=0), reward @ here, here.T @ here

    def learned(sums: FloatArray) -> FloatArray:
        by_fold = sums.reshape(folds, n_arms, -1)
        return np.einsum("fg,gkv->fkv", learned_from, by_fold).reshape(folds, n_arms, *sums.shape[1:])

    n, r, x, xr, xx = map(learned, (n, r, x, xr, xx))
    count = np.maximum(n, 1.0)[..., None]
    centre = x / count
    gram = xx - count[..., None] * centre[..., :, None] * centre[..., None, :] + RIDGE * np.eye(width)
    slopes = np.linalg.solve(gram, (xr - centre * r[..., None])[..., None])[..., 0]
    offset = _levels(logged, fold, learned_from) - np.einsum("fkv,fkv->fk", centre, slopes)
    expected = np.empty((len(logged), n_arms))
    for f in range(folds):
        expected[fold == f] = X[fold == f] @ slopes[f].T + offset[f]
    return expected


def _standardised(contexts: FloatArray | None) -> FloatArray:
    """Columns of mean 0 and deviation 1, missing values at the mean. It looks at no reward."""
    assert contexts is not None
    there = ~np.isnan(contexts)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, contexts, 0.0).sum(axis=0) / count
    centred = np.where(there, contexts - mean, 0.0)
    scale = np.sqrt((centred**2).sum(axis=0) / count)
    return np.asarray(centred / np.where(scale > 0, scale, 1.0), dtype=np.float64)


def _lightgbm(logged: LoggedDecisions, fold: IntArray, learned_from: FloatArray) -> FloatArray:
    import lightgbm

    assert logged.contexts is not None
    expected = _arm_means(logged, fold, learned_from)
    is_binary = bool(np.isin(logged.reward, (0.0, 1.0)).all())
    parameters = LIGHTGBM_PARAMETERS | {"objective": "binary" if is_binary else "regression"}
    X = np.column_stack([logged.contexts, logged.arm])
    for f in range(len(learned_from)):
        known, asked = learned_from[f, fold] > 0, fold == f
        if not asked.any() or not known.any() or np.ptp(logged.reward[known]) == 0:
            continue  # one reward only: the means say it
        data = lightgbm.Dataset(X[known], logged.reward[known], categorical_feature=[X.shape[1] - 1])
        booster = lightgbm.train(parameters, data, LIGHTGBM_TREES)
        new = X[asked]
        for k in range(logged.n_arms):
            new[:, -1] = k
            expected[asked, k] = booster.predict(new)
    return expected


_FITS = {"arm_mean": _arm_means, "ridge": _ridge, "lightgbm": _lightgbm}
