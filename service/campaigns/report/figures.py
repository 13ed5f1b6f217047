"""The figures of mails: counts, and rates with their uncertainty, or the reason why there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from service.experiments import wilson

#: Units below which a rate carries the remark that it rests on little.
LEAST_UNITS = 100
#: Buyers below which the money per mail has no interval.
LEAST_BUYERS = 30


def rate(count: int, of: int, unit: str) -> dict[str, Any]:
    """Share with its 95 % Wilson (1927) interval, and ``why`` where it says little or nothing.

    Examples
    --------
    >>> rate(2, 10, "mails delivered")["why"]
    'too little data: 10 mails delivered; the interval is what is known'
    """
    why = None
    if not of:
        why = f"no {unit} yet"
    elif of < LEAST_UNITS:
        why = f"too little data: {of} {unit}; the interval is what is known"
    return {"count": count, "of": of, "rate": count / of if of else None, "interval": wilson(count, of), "why": why}


def funnel(mails: pd.DataFrame) -> dict[str, Any]:
    """What became of these mails (a frame of `service.campaigns.report.mails`), each mail counted once.

    An erased contact's mail stays among the accepted and delivered; what came of it is gone with its events, so that
    rates are of the other mails. ``machine_opens`` and ``machine_clicks`` are mails that a program opened or clicked, a
    person as well or not.
    """
    accepted, n_delivered = int(mails["accepted"].sum()), int(mails["delivered"].sum())
    is_known = mails["delivered"] & ~mails["is_erased"]
    delivered = int(is_known.sum())
    opens, clicks = int(mails["opened"].sum()), int(mails["clicked"].sum())
    came_back = {name: mails[f"bounced_{name}"] for name in ("hard", "soft", "policy")}
    handed_over = mails["accepted"] | came_back["hard"] | came_back["soft"] | came_back["policy"]
    tried = int((handed_over & ~mails["is_erased"]).sum())
    revenue = mails["revenue_minor"].to_numpy()
    reached = "mails delivered"
    return {
        "accepted": accepted,
        "delivered": n_delivered,
        "delivered_basis": _basis(mails),
        "erased": int((mails["accepted"] & mails["is_erased"]).sum()),
        "human_opens": rate(opens, delivered, reached),
        "human_clicks": rate(clicks, delivered, reached),
        "click_to_open": rate(clicks, opens, "mails opened"),
        "machine_opens": int(mails["machine_opened"].sum()),
        "machine_clicks": int(mails["machine_clicked"].sum()),
        **{f"bounces_{name}": rate(int(which.sum()), tried, "mails handed over") for name, which in came_back.items()},
        "complaints": rate(int(mails["complained"].sum()), delivered, reached),
        "unsubscribes": rate(int(mails["unsubscribed"].sum()), delivered, reached),
        "conversions": rate(int(((mails["orders"] > 0) & mails["delivered"]).sum()), delivered, reached),
        "orders": int(mails["orders"].sum()),
        "revenue_minor": int(revenue.sum()),
        "revenue_per_mail_minor": _per_mail(revenue[is_known.to_numpy()]),
    }


def weighted(mails: pd.DataFrame) -> dict[str, Any]:
    """Rates of delivered mails, each weighted by the reciprocal of the probability that its hour was drawn.

    ``effective_mails`` is how many mails of equal weight would tell as much (Kish 1965).
    """
    known = mails[mails["delivered"] & ~mails["is_erased"]]
    weight = 1.0 / known["hour_propensity"].to_numpy()
    total = float(weight.sum())
    if not total:
        return {"human_opens": None, "human_clicks": None, "revenue_per_mail_minor": None, "effective_mails": 0.0}
    return {
        "human_opens": float(weight @ known["opened"].to_numpy()) / total,
        "human_clicks": float(weight @ known["clicked"].to_numpy()) / total,
        "revenue_per_mail_minor": float(weight @ known["revenue_minor"].to_numpy()) / total,
        "effective_mails": total**2 / float(weight @ weight),
    }


def _basis(mails: pd.DataFrame) -> str:
    by_report, by_rest = "what the provider reported as delivered", "accepted by the provider, less what came back"
    is_told = mails.loc[mails["accepted"], "is_told"]
    if is_told.any() and not is_told.all():
        return f"{by_report} in campaigns of whose mails it told of most, else {by_rest}"
    return by_report if is_told.any() else by_rest


def _per_mail(revenue: np.ndarray) -> dict[str, Any]:
    """Mean money of a delivered mail with its normal interval, once enough of them earned any."""
    n, buyers = len(revenue), int(np.count_nonzero(revenue))
    if not n:
        return {"mean": None, "interval": None, "why": "no mails delivered yet"}
    mean = float(revenue.mean())
    if buyers < LEAST_BUYERS:
        return {
            "mean": mean,
            "interval": None,
            "why": f"too little data: {buyers} mails earned orders, an interval takes {LEAST_BUYERS}",
        }
    half = 1.959964 * float(revenue.std(ddof=1)) / float(np.sqrt(n))
    return {"mean": mean, "interval": [mean - half, mean + half], "why": None}
