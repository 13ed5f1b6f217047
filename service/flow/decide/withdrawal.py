"""Take decisions back whose mails have not left: an arm that is out of the draw is not shown to anybody any more."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, aliased

from service.flow.decide.draw import CHUNK
from service.tables import DecisionRow, SendRow


def withdraw(session: Session, experiment_id: str, arms: Collection[str] | None = None) -> int:
    """Forget the decisions for ``arms`` (by default all) of mails that still wait; returns how many.

    Their sends are undecided again, and the next round draws for them among the arms that are open then, for the same
    intent. Nothing was shown and nothing logged of what is forgotten. A mail that a worker has claimed leaves as it
    was drawn, and so does what a further decision of a sticky experiment repeats.

    Parameters
    ----------
    arms : collection of str, optional
        Ids of arms.
    """
    repeating = aliased(DecisionRow)
    waiting = (
        select(DecisionRow.send_id, DecisionRow.decision_id)
        .join(SendRow, SendRow.send_id == DecisionRow.send_id)
        .where(
            DecisionRow.experiment_id == experiment_id,
            SendRow.state == "planned",
            ~select(repeating.decision_id)
            .where(
                repeating.experiment_id == experiment_id,
                repeating.contact_key == DecisionRow.contact_key,
                repeating.repeats == DecisionRow.decision_id,
            )
            .exists(),
        )
    )
    if arms is not None:
        waiting = waiting.where(DecisionRow.arm_id.in_(arms))
    decision_of = {send_id: decision_id for send_id, decision_id in session.execute(waiting) if send_id is not None}
    withdrawn = 0
    for start in range(0, len(decision_of), CHUNK):
        asked = list(decision_of)[start : start + CHUNK]
        # Who is claimed meanwhile is planned no longer, and keeps the decision.
        freed = session.scalars(
            update(SendRow)
            .where(SendRow.send_id.in_(asked), SendRow.state == "planned")
            .values(decided_at=None)
            .returning(SendRow.send_id)
        ).all()
        ids = [decision_of[send_id] for send_id in freed]
        session.execute(delete(DecisionRow).where(DecisionRow.decision_id.in_(ids)))
        withdrawn += len(ids)
    return withdrawn
