"""Experiments as growth teams meet them: what may befall them, what they showed, what they can show at all."""

from __future__ import annotations

from service.experiments.counts import wilson
from service.experiments.guarding import HarmfulArm, arms_by_status, harmful_arms, pause_harmful
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
from service.experiments.planning import keep_base, planning
from service.experiments.plot import plot_report
from service.experiments.report import experiment_report
from service.experiments.shown import shown_experiment, shown_experiments

__all__ = [
    "HarmfulArm",
    "add_arm",
    "arms_by_status",
    "edit_experiment",
    "end_experiment",
    "experiment_report",
    "find_experiment",
    "harmful_arms",
    "keep_base",
    "pause_arm",
    "pause_experiment",
    "pause_harmful",
    "planning",
    "plot_report",
    "resume_arm",
    "resume_experiment",
    "retire_arm",
    "rewrite_arm",
    "shown_experiment",
    "shown_experiments",
    "wilson",
]
