"""List hygiene: addresses that harm the sender are found, shown, suppressed if somebody says so, and given back."""

from service.hygiene.addresses import AddressRules, domain_suggestion
from service.hygiene.behaviour import Engagement, harmful_contacts
from service.hygiene.looks import FINDINGS, Rules, look, rules_of
from service.hygiene.verdict import apply_look, find_look, revert_look, shown_look

__all__ = [
    "FINDINGS",
    "AddressRules",
    "Engagement",
    "Rules",
    "apply_look",
    "domain_suggestion",
    "find_look",
    "harmful_contacts",
    "look",
    "revert_look",
    "rules_of",
    "shown_look",
]
