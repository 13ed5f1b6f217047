"""The rules by which a hit is a person's or a machine's: declared in YAML, checked, read anew when the file changes."""

from __future__ import annotations

import ipaddress
import logging
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.errors import Invalid

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("rules.yaml")
#: Seconds after which hits settle: no rule can look further.
LONGEST_SECONDS = 60.0
#: Most networks in one list.
LARGEST_LIST = 200_000


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Agent(_Declared):
    """A class of user agents, and the probability that a person is behind its hits."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    #: Whole user agents.
    equals: tuple[str, ...] = ()
    #: Regular expressions, found anywhere, in capitals or not.
    patterns: tuple[str, ...] = ()
    #: Whether crawlerdetect's list counts too.
    crawlers: bool = False
    #: Many recipients come through it: its network tells nothing.
    proxy: bool = False
    open: float = Field(ge=0, le=1)
    click: float = Field(ge=0, le=1)

    @field_validator("patterns")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns


class Network(_Declared):
    """Networks that only machines come from."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    cidrs: tuple[str, ...] = ()
    file: Path | None = None
    probability: float = Field(ge=0, le=1)


class Head(_Declared):
    """A request that reads nothing."""

    probability: float = Field(ge=0, le=1)


class TooQuick(_Declared):
    """A hit sooner than a person can be."""

    seconds: float = Field(gt=0)
    probability: float = Field(ge=0, le=1)


class Burst(_Declared):
    """Nearly all links of a mail at once."""

    seconds: float = Field(gt=0, le=LONGEST_SECONDS)
    links: int = Field(ge=2)
    share: float = Field(gt=0, le=1)
    probability: float = Field(ge=0, le=1)


class Trap(_Declared):
    """Whatever came from where the hidden link was followed."""

    seconds: float = Field(gt=0, le=LONGEST_SECONDS)
    probability: float = Field(ge=0, le=1)


class Crowd(_Declared):
    """One network and user agent in many recipients' mails."""

    recipients: int = Field(ge=2)
    probability: float = Field(ge=0, le=1)


class Limits(_Declared):
    """The rules that lower a hit's probability; one that is left out is off."""

    head: Head | None = None
    too_quick: TooQuick | None = None
    burst: Burst | None = None
    trap: Trap | None = None
    crowd: Crowd | None = None


class HitRules(_Declared):
    """A file of rules."""

    version: int | str
    agents: tuple[Agent, ...]
    otherwise: Agent
    networks: tuple[Network, ...] = ()
    rules: Limits = Limits()

    @model_validator(mode="after")
    def _names_differ(self) -> HitRules:
        for names in ([a.name for a in (*self.agents, self.otherwise)], [n.name for n in self.networks]):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"the name {min(twice)!r} stands twice; give each its own")
        if isinstance(self.version, str) and not 0 < len(self.version) <= 40:
            raise ValueError("the version takes 1 to 40 characters")
        return self


class Rules:
    """Declared rules, ready to be asked.

    Parameters
    ----------
    declared : HitRules
    folder : Path
        From where the networks' files are named.

    Raises
    ------
    Invalid
        If a network cannot be read.
    """

    def __init__(self, declared: HitRules, folder: Path) -> None:
        self.declared = declared
        self.version = declared.version
        self.limits = declared.rules
        #: Files that were read beside the rules' own.
        self.files = tuple(folder / network.file for network in declared.networks if network.file is not None)
        self.network_ppm = {network.name: ppm(network.probability) for network in declared.networks}
        self._named = _network_table(declared.networks, folder)
        self._whole = {whole: agent for agent in reversed(declared.agents) for whole in agent.equals}
        self._patterns = [
            (re.compile("|".join(f"(?:{pattern})" for pattern in agent.patterns) or r"(?!)", re.IGNORECASE), agent)
            for agent in declared.agents
        ]
        self.agent = lru_cache(maxsize=50_000)(self._agent)

    def _agent(self, user_agent: str) -> Agent:
        """Class of a user agent: first whole names, then patterns in the order of the file."""
        bare = user_agent.strip()
        if bare in self._whole:
            return self._whole[bare]
        for pattern, agent in self._patterns:
            if pattern.search(bare) or (agent.crawlers and _crawlers().is_crawler(bare)):
                return agent
        return self.declared.otherwise

    def network_name(self, address: str) -> str | None:
        """Name of the declared network that an IP address lies in, or None."""
        if not self._named:
            return None
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return None
        ip = getattr(ip, "ipv4_mapped", None) or ip
        for length, names in self._named[ip.version]:
            name = names.get(int(ip) >> (ip.max_prefixlen - length))
            if name is not None:
                return name
        return None


class RuleBook:
    """The rules in force; a changed file is read anew, and one that cannot be read leaves the last good ones.

    Parameters
    ----------
    path : Path, optional
        ``settings.hit_rules``; None: the shipped rules.

    Raises
    ------
    Invalid
        If the file cannot be read at the start.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or SHIPPED
        self._rules = load_rules(self._path)
        self._stamp = self._stamped()

    def current(self) -> Rules:
        """The rules in force; costs a look at the files' times."""
        stamp = self._stamped()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._rules = load_rules(self._path)
                self._stamp = self._stamped()  # it may name other files now
                log.info(
                    "rules of hits, version %s, in force", self._rules.version, extra={"action": "hit_rules_loaded"}
                )
            except Invalid as error:
                log.error("the rules of hits stay as they were: %s", error, extra={"action": "hit_rules_refused"})
        return self._rules

    def _stamped(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(_stamp(path) for path in (self._path, *self._rules.files))


def load_rules(path: Path) -> Rules:
    """Rules of a YAML file.

    Raises
    ------
    Invalid
        Naming the file and what is wrong in it.
    """
    import yaml

    try:
        declared: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Invalid(f"the rules of hits {path} cannot be read: {error}") from error
    try:
        return Rules(HitRules.model_validate(declared), path.parent)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Invalid(f"the rules of hits {path}: {place}: {first['msg']}; {SHIPPED.name} shows the form") from error


@cache
def shipped_rules() -> Rules:
    """The rules that come with Kairos."""
    return load_rules(SHIPPED)


def ppm(probability: float) -> int:
    """A probability as the log keeps it.

    Examples
    --------
    >>> ppm(0.97)
    970000
    """
    return round(probability * 1_000_000)


@cache
def _crawlers() -> Any:
    from crawlerdetect import CrawlerDetect

    return CrawlerDetect()


def _network_table(networks: tuple[Network, ...], folder: Path) -> dict[int, list[tuple[int, dict[int, str]]]]:
    """By IP version the lengths of prefixes, longest first, each with its prefixes' names."""
    table: dict[int, dict[int, dict[int, str]]] = {4: {}, 6: {}}
    for network in networks:
        written = list(network.cidrs)
        if network.file is not None:
            try:
                lines = (folder / network.file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"the networks of {network.name!r} cannot be read: {error}") from error
            written += [bare for line in lines if (bare := line.partition("#")[0].strip())]
        if len(written) > LARGEST_LIST:
            raise Invalid(f"{network.name!r} lists {len(written)} networks; at most {LARGEST_LIST} are taken")
        for cidr in written:
            try:
                parsed = ipaddress.ip_network(cidr, strict=False)
            except ValueError as error:
                raise Invalid(f"{network.name!r}: {cidr[:60]!r} is no network ({error}); write 192.0.2.0/24") from error
            prefix = int(parsed.network_address) >> (parsed.max_prefixlen - parsed.prefixlen)
            table[parsed.version].setdefault(parsed.prefixlen, {}).setdefault(prefix, network.name)
    if not any(table.values()):
        return {}
    return {version: sorted(by_length.items(), reverse=True) for version, by_length in table.items()}


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_size
