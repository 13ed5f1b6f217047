"""Rehearse a mail before it is sent: what real contacts would get, the awkward ones among them, and what to mend."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import Invalid
from service.flow.audience import find_audience
from service.flow.render import (
    Email,
    Proof,
    RenderFailure,
    RenderInput,
    Template,
    proofread,
    render,
    slots_of,
    traits_of,
)
from service.flow.render.proofread import CLIP_BYTES
from service.rehearsal.choosing import Seen, evenly, look_at
from service.settings import Settings
from service.tables import ArmRow, CampaignRow, ContactRow, ExperimentRow
from service.templates import find_template

#: Sample mails that are shown.
MOST_SAMPLES = 12
#: Contacts whose traits are looked at: of a larger audience evenly many, which tells a share to a third of a percent.
EXAMINED = 100_000
#: Contacts whose mail is made, to find those for whom the template fails.
TRIED = 500
#: Combinations of arms that are made.
MOST_COMBINATIONS = 64
#: User ids named beside a reason.
SHOWN_USER_IDS = 3


@dataclass(frozen=True)
class Rehearsal:
    """What a mail would be like for an audience.

    Attributes
    ----------
    examined : int
        Contacts whose traits were looked at; ``traits`` counts among them.
    samples : tuple of dict
        Mails of real contacts: who and why, arms, subject, preview, size, HTML, text, warnings.
    combinations : tuple of dict
        The largest HTML by combination of arms, beside Gmail's limit.
    traits : tuple of dict
        Traits that the mail uses, how many lack them, and whether it has a fall-back.
    tried : int
        Contacts whose mail was made, the samples among them.
    failures : tuple of dict
        Reasons for which it could not be made, how often, and for whom.
    warnings : tuple of dict
        What to mend, and in how many of the samples it was found.
    links : tuple of str
        Web addresses that the samples lead to.
    dead_links : tuple of dict or None
        Those of ``links`` that do not answer, and why; None where nobody looked.
    """

    audience: int
    examined: int
    samples: tuple[dict[str, Any], ...]
    combinations: tuple[dict[str, Any], ...]
    traits: tuple[dict[str, Any], ...]
    tried: int
    failures: tuple[dict[str, Any], ...]
    warnings: tuple[dict[str, Any], ...]
    links: tuple[str, ...]
    dead_links: tuple[dict[str, str], ...] | None = None

    def with_links(self, found: Mapping[str, str | None]) -> Rehearsal:
        """The same with what `service.link_check.check_links` found, and how many links it did not look at."""
        dead = tuple({"url": url, "says": why} for url, why in found.items() if why is not None)
        warning = {"kind": "dead-link", "says": f"{len(dead)} link(s) do not answer", "mails": len(self.samples)}
        warnings = [*self.warnings, *([warning] if dead else [])]
        unasked = sum(link not in found for link in self.links)
        if unasked:
            says = f"{unasked} of {len(self.links)} links were not asked: only the first {len(found)} are"
            warnings.append({"kind": "links-not-asked", "says": says, "mails": 0})
        return replace(self, dead_links=dead, warnings=tuple(warnings))


def rehearse_campaign(
    session: Session, campaign: CampaignRow, settings: Settings, *, now: datetime, samples: int = 6
) -> Rehearsal:
    """`rehearse` for a campaign's template, running arms and audience."""
    keys = find_audience(session, campaign.audience, as_of=now).contact_keys
    template = Template.of(find_template(session, campaign.template_id, campaign.template_version))
    arms = running_arms(session, campaign.experiments)
    return rehearse(
        session, template, keys, settings, now=now, arms=arms, samples=samples, topic=campaign.topic,
        campaign_id=campaign.campaign_id,
    )  # fmt: skip


def running_arms(session: Session, experiment_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Slot → arm id → content of the arms that may be drawn."""
    arms: dict[str, dict[str, str]] = defaultdict(dict)
    query = (
        select(ExperimentRow.slot, ArmRow.arm_id, ArmRow.content)
        .join(ArmRow, ArmRow.experiment_id == ExperimentRow.experiment_id)
        .where(ExperimentRow.experiment_id.in_(experiment_ids), ArmRow.status == "running")
        .order_by(ExperimentRow.slot, ArmRow.position)
    )
    for slot, arm_id, content in session.execute(query):
        arms[slot][arm_id] = content
    return dict(arms)


def rehearse(
    session: Session,
    template: Template,
    contact_keys: np.ndarray,
    settings: Settings,
    *,
    now: datetime,
    arms: Mapping[str, Mapping[str, str]] | None = None,
    samples: int = 6,
    topic: str = "marketing",
    campaign_id: str | None = None,
) -> Rehearsal:
    """What the mail would be like for these contacts. Nothing is sent, kept or tracked, and no address is told.

    Parameters
    ----------
    contact_keys : ndarray of int64, shape (n_contacts,)
    arms : mapping, optional
        Slot → arm id → content: every combination is made, up to `MOST_COMBINATIONS`.
    samples : int
        Mails to show, 1 to `MOST_SAMPLES`: some of typical contacts, the others of awkward ones.

    Raises
    ------
    Invalid
        If ``samples`` is out of bounds.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise Invalid(f"samples {samples} is outside 1 to {MOST_SAMPLES}")
    arms = arms or {}
    used = traits_of(template.subject, template.source, *(text for some in arms.values() for text in some.values()))
    keys = np.unique(contact_keys)
    examined = keys if len(keys) <= EXAMINED else keys[np.linspace(0, len(keys) - 1, EXAMINED).astype(np.int64)]
    seen = look_at(session, examined, list(used))
    chosen = seen.choose(samples)
    combinations = list(itertools.islice(_combinations(template, arms), MOST_COMBINATIONS))
    desk = _Desk(session, template, settings, now, topic, campaign_id)

    tried = list(dict.fromkeys([*chosen, *evenly(seen.mailable, TRIED)]))[:TRIED]
    inputs = desk.inputs(tried)
    shown = _show(desk, [one for one in inputs if one.contact_key in chosen], chosen, combinations)
    traits = seen.traits(used)
    return Rehearsal(
        audience=len(keys),
        examined=len(examined),
        samples=shown.samples,
        combinations=shown.sizes(),
        traits=traits,
        tried=len(tried),
        failures=_try(desk, inputs, combinations),
        warnings=(*shown.warnings(), *_gaps(traits, seen, list(chosen))),
        links=tuple(shown.links),
    )


def _try(
    desk: _Desk, inputs: Sequence[RenderInput], combinations: Sequence[_Combination]
) -> tuple[dict[str, Any], ...]:
    """For whom the mail cannot be made, by reason; the combinations take turns."""
    turns = [desk.filled(one, combinations[place % len(combinations)]) for place, one in enumerate(inputs)]
    failed: dict[str, list[str]] = defaultdict(list)
    for given, made in desk.made(turns):
        if isinstance(made, RenderFailure):
            failed[_veiled(made.reason, given.email)].append(given.user_id)
    most_first = sorted(failed.items(), key=lambda item: -len(item[1]))
    return tuple(
        {"reason": reason, "contacts": len(ids), "user_ids": ids[:SHOWN_USER_IDS]} for reason, ids in most_first
    )


def _gaps(traits: Sequence[Mapping[str, Any]], seen: Seen, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """Traits that some lack and for which the mail has nothing else to say."""
    return [
        {
            "kind": "trait-without-fall-back",
            "says": f"{100 * one['share']:.3g} % lack {one['name']} and the mail has nothing in its place; write "
            f"{{{{ {one['name']} | default: '…' }}}}",
            "mails": sum(one["name"] in seen.lacks.get(key, ()) for key in chosen),
        }
        for one in traits
        if one["lacking"] and not one["has_fall_back"]
    ]


def _show(
    desk: _Desk,
    inputs: Sequence[RenderInput],
    chosen: Mapping[int, Sequence[str]],
    combinations: Sequence[_Combination],
) -> _Shown:
    """Each chosen contact's mail with one combination of arms, and the size of all with every combination."""
    shown = _Shown(combinations)
    by_contact: dict[int, dict[str, Any]] = {}
    for place, combination in enumerate(combinations):
        for number, (given, made) in enumerate(desk.made([desk.filled(one, combination) for one in inputs])):
            if isinstance(made, RenderFailure):
                continue
            shown.largest[place] = max(shown.largest[place], len(made.html.encode("utf-8", "replace")))
            if number % len(combinations) == place:
                proof = proofread(given, made.subject, made.html, made.text, desk.settings)
                shown.add(given, proof)
                by_contact[given.contact_key] = _sample(given, made, proof, chosen[given.contact_key], combination)
    shown.samples = tuple(by_contact[key] for key in chosen if key in by_contact)
    return shown


class _Shown:
    """What was found in the sample mails."""

    def __init__(self, combinations: Sequence[_Combination]) -> None:
        self.samples: tuple[dict[str, Any], ...] = ()
        self.largest = [0] * len(combinations)
        self.links: dict[str, None] = {}
        self._combinations = combinations
        self._counts: Counter[str] = Counter()
        self._says: dict[str, str] = {}

    def add(self, given: RenderInput, proof: Proof) -> None:
        """Take over what was found in one mail."""
        self.links |= dict.fromkeys(_veiled(link, given.email) for link in proof.links)
        self._counts.update(proof.warnings.keys())
        self._says |= {
            kind: _veiled(text, given.email) for kind, text in proof.warnings.items() if kind not in self._says
        }

    def sizes(self) -> tuple[dict[str, Any], ...]:
        """The largest HTML by combination."""
        return tuple(
            {"arms": one.ids, "html_bytes": size, "clip_bytes": CLIP_BYTES, "is_clipped": size > CLIP_BYTES}
            for one, size in zip(self._combinations, self.largest, strict=True)
        )

    def warnings(self) -> list[dict[str, Any]]:
        """What to mend, most frequent first; that a combination is too large, even where no sample shows it."""
        found = [{"kind": kind, "says": self._says[kind], "mails": n} for kind, n in self._counts.most_common()]
        too_large = [one for one in self.sizes() if one["is_clipped"]]
        if too_large and "clipped" not in self._counts:
            size = max(one["html_bytes"] for one in too_large)
            says = f"{len(too_large)} combination(s) of arms have up to {size:,} bytes; Gmail hides the rest"
            found.append({"kind": "clipped", "says": says, "mails": 0})
        return found


@dataclass(frozen=True)
class _Combination:
    """One arm of each experiment."""

    ids: dict[str, str]
    content: dict[str, str]


def _combinations(template: Template, arms: Mapping[str, Mapping[str, str]]) -> Iterator[_Combination]:
    slots = [slot for slot in slots_of(template.source) if arms.get(slot)]
    for chosen in itertools.product(*(arms[slot].items() for slot in slots)):
        ids = {slot: arm_id for slot, (arm_id, _) in zip(slots, chosen, strict=True)}
        content = {slot: text for slot, (_, text) in zip(slots, chosen, strict=True)}
        yield _Combination(ids, content)


class _Desk:
    """Makes mails of contacts for one template."""

    def __init__(
        self,
        session: Session,
        template: Template,
        settings: Settings,
        now: datetime,
        topic: str,
        campaign_id: str | None,
    ) -> None:
        self._session, self._template, self.settings, self._now = session, template, settings, now
        self._topic, self._campaign_id = topic, campaign_id

    def inputs(self, contact_keys: Sequence[int]) -> list[RenderInput]:
        """What each contact's mail is made of, in the order of ``contact_keys``."""
        query = select(ContactRow.contact_key, ContactRow.user_id, ContactRow.email, ContactRow.traits)
        rows = {
            row.contact_key: row for row in self._session.execute(query.where(ContactRow.contact_key.in_(contact_keys)))
        }
        return [
            RenderInput(
                send_id=0,
                contact_key=key,
                user_id=rows[key].user_id,
                email=rows[key].email or "",
                traits=rows[key].traits or {},
                template=self._template,
                topic=self._topic,
                campaign_id=self._campaign_id,
            )
            for key in contact_keys
        ]

    def filled(self, given: RenderInput, combination: _Combination) -> RenderInput:
        """The same with the arms of a combination."""
        return replace(given, arms=combination.content)

    def made(self, inputs: Sequence[RenderInput]) -> list[tuple[RenderInput, Email | RenderFailure]]:
        """Each input with its mail, as a preview."""
        return list(zip(inputs, render(inputs, now=self._now, settings=self.settings, number_links=None), strict=True))


def _sample(
    given: RenderInput, made: Email, proof: Proof, why: Sequence[str], combination: _Combination
) -> dict[str, Any]:
    def veil(text: str) -> str:
        return _veiled(text, given.email)

    return {
        "user_id": given.user_id,
        "why": list(why),
        "arms": combination.ids,
        "subject": veil(made.subject),
        "subject_characters": proof.subject_characters,
        "preview_text": veil(proof.preview_text),
        "html_bytes": proof.html_bytes,
        "html": veil(made.html),
        "text": veil(made.text),
        "warnings": {kind: veil(text) for kind, text in proof.warnings.items()},
    }


def _veiled(text: str, address: str) -> str:
    """``text`` without the contact's address, which a template may have put into it."""
    return text.replace(address, "<address>").replace(quote(address), "<address>") if address else text
