"""Experiments as growth teams meet them: what may befall them, what they showed, what they can show at all."""

from __future__ import annotations

from service.experiments.counts import wilson
from service.experiments.lifecycle import (
    add_arm,
    edit_experiment,
    end_experiment,
    find_experiment,
    pause_arm,
    pause_experiment,
    resume_arm,
    resume_experiment,
    retire_arm,
    rewrite_arm,
)
from service.experiments.report import experiment_report
from service.experiments.shown import shown_experiment, shown_experiments

__all__ = [
    "add_arm",
    "edit_experiment",
    "end_experiment",
    "experiment_report",
    "find_experiment",
    "pause_arm",
    "pause_experiment",
    "resume_arm",
    "resume_experiment",
    "retire_arm",
    "rewrite_arm",
    "shown_experiment",
    "shown_experiments",
    "wilson",
]
