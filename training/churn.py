"""Will this buyer stop buying: who can still be lost (`declarations/churn.yaml`); the horizon: `features.labels`."""

from __future__ import annotations

from training.outcomes import shipped
from training.serving import Population

NAME = "churn"


def population(horizon_days: int) -> Population:
    """Buyers who have not been silent for twice the horizon already: those are lost, not at risk."""
    return shipped()[NAME].population_over(horizon_days)
