"""What the event log says of a mail that left, was held out or came back at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from features.events import NewEvent, zone_of
from features.tables import to_micros
from features.vocabulary import EMAIL_BOUNCED, EMAIL_SENT, EMAIL_WITHHELD
from service.flow.audience import models_of
from service.flow.deliver.claiming import Claimed
from service.flow.render import Email
from service.tables import CampaignRow, DecisionRow


@dataclass(frozen=True, slots=True)
class Entry:
    """A change of one send that waits to be written."""

    kind: Literal["begin", "finish"]
    send: Claimed
    email: Email | None
    at: datetime
    #: For ``finish``: the state to write; ``planned`` plans it again at ``due_at``.
    state: str = "attempting"
    reason: str | None = None
    code: int | None = None
    due_at: datetime | None = None
    #: A refusal that speaks of the mailbox: there is none (hard), or it is full (soft).
    bounce: Literal["hard", "soft"] | None = None
    #: A refusal that speaks of us.
    is_policy: bool = False
    #: Whether it counts as a try of this mail.
    is_try: bool = True


class LogEntries:
    """Makes the log's entries; what they tell beside the send itself is read once for many sends."""

    def __init__(self) -> None:
        #: By campaign, the models whose scores picked its audience.
        self._models: dict[str | None, list[str]] = {None: []}
        self._decisions: dict[int, list[dict[str, Any]]] = {}
        self._coming: set[int] = set()

    def expect(self, sends: Sequence[Claimed]) -> None:
        """Sends that entries will be asked of; those of earlier calls are forgotten."""
        self._coming = {send.send_id for send in sends}
        self._decisions = {}

    def events(self, session: Session, entries: Iterable[Entry]) -> list[NewEvent]:
        """Log entries of what left, was held out or came back at once."""
        telling = [entry for entry in entries if entry.state in ("accepted", "held_out") or entry.bounce]
        if not telling:
            return []
        self._read(session, telling)
        return [self._event(entry) for entry in telling]

    def _read(self, session: Session, telling: Sequence[Entry]) -> None:
        for campaign_id in {entry.send.campaign_id for entry in telling} - self._models.keys():
            rule = session.scalar(select(CampaignRow.audience).where(CampaignRow.campaign_id == campaign_id))
            self._models[campaign_id] = models_of(rule or {})
        missing = {entry.send.send_id for entry in telling if not entry.bounce} - self._decisions.keys()
        if not missing:
            return
        wanted = missing | (self._coming - self._decisions.keys())
        decisions: dict[int, list[dict[str, Any]]] = defaultdict(list)
        rows = session.execute(
            select(
                DecisionRow.send_id,
                DecisionRow.decision_id,
                DecisionRow.experiment_id,
                DecisionRow.arm_id,
                DecisionRow.propensity,
                DecisionRow.snapshot_id,
                DecisionRow.wave,
                DecisionRow.segment,
                DecisionRow.is_holdout,
            )
            .where(DecisionRow.send_id.in_(wanted))
            .order_by(DecisionRow.decision_id)
        )
        for row in rows:
            values = dict(row._mapping)
            decisions[values.pop("send_id")].append(values)
        self._decisions |= {send_id: decisions[send_id] for send_id in wanted}

    def _event(self, entry: Entry) -> NewEvent:
        send = entry.send
        kind, word = {"accepted": (EMAIL_SENT, "sent"), "held_out": (EMAIL_WITHHELD, "withheld")}.get(
            entry.state, (EMAIL_BOUNCED, "bounced")
        )
        properties: dict[str, Any] = {
            "campaign_id": send.campaign_id,
            "template_id": send.template_id,
            "template_version": send.template_version,
            "stream": send.stream,
        }
        if kind == EMAIL_BOUNCED:
            properties |= {"code": entry.code, "is_permanent": entry.bounce == "hard"}
        else:
            properties |= {
                "assigned_local_hour": send.assigned_local_hour,
                "local_hour": entry.at.astimezone(zone_of(send.timezone)).hour,
                "hour_propensity": send.hour_propensity,
                "hour_reason": send.hour_reason,
                "attempts": send.attempts + (kind == EMAIL_SENT),
                "decisions": self._decisions[send.send_id],
            }
            if self._models[send.campaign_id]:
                properties["models"] = self._models[send.campaign_id]
        return NewEvent(
            contact_key=send.contact_key,
            kind=kind,
            occurred_at=to_micros(entry.at),
            message_id=f"kairos/{word}/{send.send_id}",
            identity=send.identity,
            ref=str(send.send_id),
            properties=properties,
            timezone=send.timezone,
        )
