"""How a version did, for people: figures with intervals over cut-offs, plots, and a card that says it in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.tables import from_micros
from training.metrics import BOOTSTRAP_BUDGET, deciles, evaluate
from training.serving import ModelCard, finite
from training.study import Judgement

Array = NDArray[np.float64]

JUDGEMENT_FILE, CARD_FILE = "judgement.json", "card.md"
RELIABILITY_FILE, GAIN_FILE = "reliability.png", "gain.png"
#: Figures that are told with an interval.
WITH_INTERVAL = ("roc_auc", "pr_auc", "brier", "brier_skill", "ece", "lift_10", "predicted_over_actual")
REPLICATES = 200
LEVEL = 0.95
#: Fewer rows of leads or buyers are not judged apart.
LEAST_APART = 20


def mean_figures(judged: Sequence[Judgement], name: str = "served") -> dict[str, float]:
    """Each figure of ``training.metrics.evaluate``, the mean over the cut-offs."""
    found = [evaluate(one.rows.y, one.probabilities[name], one.rows.weight) for one in judged]
    return {key: float(np.mean([figures[key] for figures in found])) for key in found[0]}


def intervals(judged: Sequence[Judgement], *, seed: int, name: str = "served") -> dict[str, tuple[float, float]]:
    """95 % intervals of the mean over the cut-offs, when whole contacts are drawn again.

    A contact stands in several cut-offs, and drawing contacts keeps its rows together.

    References
    ----------
    Field, C. A. & Welsh, A. H. (2007), "Bootstrapping clustered data".
    """
    rng = np.random.default_rng(seed)
    contacts = np.unique(np.concatenate([one.rows.contact_key for one in judged]))
    places = [np.searchsorted(contacts, one.rows.contact_key) for one in judged]
    rows = sum(len(place) for place in places)
    replicates = int(np.clip(BOOTSTRAP_BUDGET // (4 * rows), 40, REPLICATES))
    drawn: dict[str, list[float]] = {figure: [] for figure in WITH_INTERVAL}
    for _ in range(replicates):
        times = np.bincount(rng.integers(0, len(contacts), len(contacts)), minlength=len(contacts))
        found = []
        for one, place in zip(judged, places, strict=True):
            row = np.repeat(np.arange(len(place)), times[place])
            if len(row):
                found.append(evaluate(one.rows.y[row], one.probabilities[name][row], one.rows.weight[row]))
        for figure in WITH_INTERVAL:
            drawn[figure].append(float(np.mean([figures[figure] for figures in found])) if found else float("nan"))
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    result = {}
    for figure, values in drawn.items():
        finite = np.array(values)[np.isfinite(values)]
        low, high = np.quantile(finite, tails) if len(finite) else (np.nan, np.nan)
        result[figure] = (float(low), float(high))
    return result


def metrics_of(judged: Sequence[Judgement], *, seed: int) -> dict[str, float]:
    """Plain numbers for MLflow and the card: of the newest cut-off, and the means over all with their intervals.

    Returns
    -------
    dict
        The figures of ``evaluate`` at the newest cut-off; ``mean_<figure>`` with ``mean_<figure>_low`` and ``_high``;
        ``<rival>_roc_auc`` and ``<rival>_brier`` beside both; ``leads_…`` and ``buyers_…`` where both were judged.
    """
    newest = judged[0]
    found = evaluate(newest.rows.y, newest.probabilities["served"], newest.rows.weight)
    found |= {f"mean_{figure}": value for figure, value in mean_figures(judged).items()}
    for figure, (low, high) in intervals(judged, seed=seed).items():
        found |= {f"mean_{figure}_low": low, f"mean_{figure}_high": high}
    for figure, (low, high) in intervals(judged[:1], seed=seed).items():
        found |= {f"{figure}_low": low, f"{figure}_high": high}
    for rival in newest.probabilities:
        if rival in ("served", "recipe"):
            continue
        here = evaluate(newest.rows.y, newest.probabilities[rival], newest.rows.weight)
        over_all = mean_figures(judged, rival) if all(rival in one.probabilities for one in judged) else {}
        for figure in ("roc_auc", "brier"):
            found[f"{rival}_{figure}"] = here[figure]
            if over_all:
                found[f"mean_{rival}_{figure}"] = over_all[figure]
    if newest.is_lead.any() and not newest.is_lead.all():
        for name, mask in (("leads", newest.is_lead), ("buyers", ~newest.is_lead)):
            if mask.sum() >= LEAST_APART:
                of = newest.rows.rows(mask)
                apart = evaluate(of.y, newest.probabilities["served"][mask], of.weight)
                found |= {f"{name}_{figure}": value for figure, value in apart.items()}
    positives = float(newest.rows.y.sum())
    return found | {"contacts": float(len(newest.rows)), "positives": positives, "cutoffs": float(len(judged))}


def write_report(folder: Path, card: ModelCard, judged: Sequence[Judgement]) -> None:
    """The judgement as JSON, two plots and the card in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JUDGEMENT_FILE).write_text(json.dumps(_judgement(card, judged), indent=1))
    _plot(folder, card, judged)
    (folder / CARD_FILE).write_text(_card(card, judged))


def _judgement(card: ModelCard, judged: Sequence[Judgement]) -> dict[str, Any]:
    return {
        "outcome": card.outcome,
        "population": card.population.says,
        "horizon_days": card.horizon_days,
        "cutoffs": [
            {
                "cutoff": from_micros(one.cutoff).isoformat(),
                "rung": one.choice.rung,
                "reason": one.choice.reason,
                "leads_rung": None if one.leads is None else one.leads.rung,
                "contacts": len(one.rows),
                "leads": int(one.is_lead.sum()),
                "models": {name: finite(evaluate(one.rows.y, p, one.rows.weight)) for name, p in _told(one).items()},
                "deciles": [
                    {"contacts": d.rows, "predicted": d.predicted, "actual": d.actual}
                    for d in deciles(one.rows.y, one.probabilities["served"])
                ],
            }
            for one in judged
        ],
    }


def _told(one: Judgement) -> dict[str, Array]:
    return {name: p for name, p in one.probabilities.items() if name != "recipe"}


def _plot(folder: Path, card: ModelCard, judged: Sequence[Judgement]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    newest = judged[0]
    when = from_micros(newest.cutoff).date().isoformat()
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for one in judged:
        bins = deciles(one.rows.y, one.probabilities["served"])
        predicted, actual = np.array([d.predicted for d in bins]), np.array([d.actual for d in bins])
        spread = 1.96 * np.sqrt(np.maximum(actual * (1 - actual), 1e-9) / np.array([d.rows for d in bins]))
        axes.errorbar(
            predicted, actual, yerr=spread, fmt="o-", markersize=4, linewidth=1, capsize=2,
            label=from_micros(one.cutoff).date().isoformat(),
        )  # fmt: skip
    axes.set(xlabel="predicted", ylabel="happened", xlim=(0, 1), ylim=(0, 1), title=f"{card.name}: {card.outcome}")
    axes.legend(title="judged from", frameon=False)
    FigureCanvasAgg(figure).print_png(str(folder / RELIABILITY_FILE))

    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    positives = max(1.0, float(newest.rows.y.sum()))
    for name in ("served", *(name for name in _told(newest) if name not in ("served", "base_rate"))):
        order = np.argsort(-newest.probabilities[name], kind="stable")
        share = np.arange(1, len(order) + 1) / len(order)
        axes.plot(
            share, np.cumsum(newest.rows.y[order]) / positives, label=name, linewidth=2 if name == "served" else 1
        )
    axes.set(
        xlabel="share of the contacts, highest scores first", ylabel="share of those to whom it happened",
        xlim=(0, 1), ylim=(0, 1), title=f"{card.name}, judged from {when}",
    )  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    FigureCanvasAgg(figure).print_png(str(folder / GAIN_FILE))


def _card(card: ModelCard, judged: Sequence[Judgement]) -> str:
    names = list(_told(judged[0]))
    means = {
        name: mean_figures(judged, name) for name in names if all(name in one.probabilities for one in judged)
    }  # fmt: skip
    shown = ("roc_auc", "pr_auc", "brier", "brier_skill", "ece", "lift_10", "predicted_over_actual")
    table = [f"| | {' | '.join(shown)} |", f"|---|{'---|' * len(shown)}"]
    for name, figures in means.items():
        table.append(f"| {name} | {' | '.join(f'{figures[one]:.3f}' for one in shown)} |")
    said = [
        f"{one} {card.metrics[f'mean_{one}_low']:.3f} to {card.metrics[f'mean_{one}_high']:.3f}"
        for one in ("roc_auc", "brier", "predicted_over_actual")
        if card.metrics.get(f"mean_{one}_low") is not None
    ]
    leads = ["", f"Never-buyers: rung **{card.leads_rung}**. {card.leads_reason}."] if card.leads_rung else []
    return "\n".join(
        [
            f"# {card.name}",
            "",
            f"**Asks** of {card.population.says}: {card.outcome}?",
            "",
            f"**Learned** from the log up to {card.as_of}, view set {card.view_set} {card.view_set_version}.",
            "",
            f"**Answers by** rung **{card.rung}**: {card.reason}.",
            *leads,
            "",
            f"**Judged** as it would have stood at {len(judged)} earlier cut-offs ("
            + ", ".join(f"{from_micros(one.cutoff).date()}: {len(one.rows)} contacts" for one in judged)
            + "), by what happened after each; means over the cut-offs:",
            "",
            *table,
            "",
            f"95 % intervals of the served model, whole contacts drawn again: {'; '.join(said)}.",
            "",
            "Reasons tell what goes along with a score in the data. They are no causes: changing a value need not",
            "change the outcome. Scores are not made for decisions about credit, work or anything people depend on.",
            "",
        ]
    )
