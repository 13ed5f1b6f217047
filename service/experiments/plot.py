"""A report as a picture: each arm's mean with its interval over time, and how the sends were shared out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np

HOUR = timedelta(hours=1)
#: Of matplotlib's ``tab10``, apart for most people with a colour-vision deficiency when the order is kept.
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
#: Arms in the legend; further ones are drawn without a name.
NAMED_ARMS = 12
UNITS = {"click": "click rate", "open": "open rate", "conversion": "conversion rate", "revenue": "minor units a send"}


def plot_report(report: Mapping[str, Any]) -> bytes:
    """A PNG of 1,200 by 1,000 pixels.

    Parameters
    ----------
    report : mapping
        As `service.experiments.report.experiment_report` gives it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(12, 10), dpi=100, layout="constrained")
    rates, shares = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    is_rate = report["reward"] != "revenue" and report["matured"]["unit"] == "decision"
    colour = {arm["id"]: COLOURS[k % len(COLOURS)] for k, arm in enumerate(report["arms"])}

    for mean in report["means"]:
        told = [row for row in mean["over_time"] if row["estimate"] is not None]
        at = np.array([datetime.fromisoformat(row["at"]) for row in told])
        arm = mean["arm"]
        rates.plot(at, [row["estimate"] for row in told], color=colour[arm], linewidth=1.6, marker=".", markersize=3)
        bounded = [i for i, row in enumerate(told) if row["lower"] is not None]
        if bounded:
            lower = np.array([told[i]["lower"] for i in bounded])
            upper = np.array([told[i]["upper"] for i in bounded])
            rates.fill_between(at[bounded], lower, upper, color=colour[arm], alpha=0.15, linewidth=0)
    _limit(rates, report["means"])
    by = "" if report["matured"]["unit"] == "decision" else ", by contact"
    rates.set_ylabel(f"{UNITS[report['reward']]}{by}, with its 95 % confidence sequence")
    if is_rate:
        rates.yaxis.set_major_formatter(PercentFormatter(1.0))
    rates.text(0, 1.005, _shortened(report["verdict"]["sentence"], 150), transform=rates.transAxes, va="bottom")
    rates.set_title(_shortened(str(report["name"]), 90), loc="left", fontweight="bold", pad=22)

    hours = report["allocation"]
    if hours:
        at = np.array([datetime.fromisoformat(hour["at"]) for hour in hours])
        at = np.append(at, at[-1] + HOUR)  # the last hour has a width too
        parts = [np.array([hour["shares"][arm] for hour in hours]) for arm in colour]
        shares.stackplot(
            at, [np.append(part, part[-1]) for part in parts], colors=list(colour.values()), step="post", alpha=0.8
        )
    else:
        rates.text(0.5, 0.5, "no decision's reward window is over yet", transform=rates.transAxes, ha="center")
    shares.set_ylim(0, 1)
    shares.yaxis.set_major_formatter(PercentFormatter(1.0))
    shares.set_ylabel("share of the draws")
    shares.set_xlabel("decided at (UTC)")
    locator = AutoDateLocator(minticks=4, maxticks=12)
    shares.xaxis.set_major_locator(locator)
    shares.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    for axes in (rates, shares):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [_patch(colour[arm["id"]], _named(arm)) for arm in report["arms"][:NAMED_ARMS]]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def _limit(axes: Any, means: Any) -> None:
    """Let the axis show the estimates and the later intervals, not the first wide ones alone."""
    last = [mean["mean"] for mean in means]
    told = [value for mean in means for row in mean["over_time"] if (value := row["estimate"]) is not None]
    told += [value for mean in last for name in ("lower", "upper") if (value := mean[name]) is not None]
    if not told:
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        return
    low, high = min(told), max(told)
    margin = max(0.15 * (high - low), 0.02 * abs(high), 1e-6)
    axes.set_ylim(min(low - margin, max(0.0, low - margin)), high + margin)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, alpha=0.8, label=label)


def _named(arm: Mapping[str, Any]) -> str:
    status = "" if arm["status"] == "running" else f" ({arm['status']})"
    return _shortened(str(arm["id"]), 28) + status


def _shortened(text: str, length: int) -> str:
    shown = text.replace("$", r"\$")  # no formula
    return shown if len(shown) <= length else shown[: length - 1] + "…"
