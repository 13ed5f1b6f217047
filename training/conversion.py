"""Will this contact buy: whom we ask it of, and over how many days."""

from __future__ import annotations

from training.serving import Population

NAME = "conversion"
HORIZON_DAYS = 30

#: Known contacts: someone who ordered, showed a sign of life, or was sent a mail.
POPULATION = Population(
    alternatives=(
        (("orders_ever", 1, None),),
        (("days_known", 0, None),),
        (("days_since_send", 0, None),),
    ),
    says="contacts with an order, a sign of life or a mail so far",
)
