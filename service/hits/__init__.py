"""Opens and clicks: raw hits are kept as they come, judged a minute later by rules, and become events.

`keeping` writes them down, `rules` reads the declared rules (`rules.yaml`, or ``KAIROS_HIT_RULES``), `judging` applies
them, `settling` logs what they say.
"""

from service.hits.comparing import Compared, compare
from service.hits.judging import Verdict, judge
from service.hits.keeping import Hit, HitBuffer, network_hash, record_hits
from service.hits.rules import RuleBook, Rules, load_rules, shipped_rules
from service.hits.settling import Settled, settle

__all__ = [
    "Compared",
    "Hit",
    "HitBuffer",
    "RuleBook",
    "Rules",
    "Settled",
    "Verdict",
    "compare",
    "judge",
    "load_rules",
    "network_hash",
    "record_hits",
    "settle",
    "shipped_rules",
]
