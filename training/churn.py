"""Will this buyer stop buying: who can still be lost. How many silent days make a loss: `features.labels`."""

from __future__ import annotations

from training.serving import Population

NAME = "churn"


def population(horizon_days: int) -> Population:
    """Buyers who have not been silent for twice the horizon already: those are lost, not at risk."""
    return Population(
        alternatives=((("orders_ever", 1, None), ("days_since_order", 0, 2 * horizon_days)),),
        says=f"contacts with an order in the last {2 * horizon_days} days",
    )
