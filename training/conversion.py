"""Will this contact buy: whom we ask it of, and over how many days (`declarations/conversion.yaml`)."""

from __future__ import annotations

from training.outcomes import shipped

NAME = "conversion"
HORIZON_DAYS = 30

#: Known contacts: someone who ordered, showed a sign of life, or was sent a mail.
POPULATION = shipped()[NAME].population_over(HORIZON_DAYS)
