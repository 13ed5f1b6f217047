"""Every setting of an installation, with its default and unit; the only reader of the environment."""

from __future__ import annotations

import secrets
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import Invalid
from service.mailboxes import rates_of

CHECKOUT = Path(__file__).resolve().parent.parent
DEFAULT_HOME = Path("./var")


class Settings(BaseSettings):
    """Settings `KAIROS_*`, read from the environment and from `.env`; all optional."""

    model_config = SettingsConfigDict(env_prefix="KAIROS_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(DEFAULT_HOME, description="Folder that holds everything an installation writes.")
    database_url: str | None = Field(None, description="SQLAlchemy URL; default SQLite in HOME (kairos.db).")
    lake_url: str | None = Field(None, description="fsspec URL of the lake; default HOME/lake.")
    buckets: int = Field(64, ge=1, le=1000, description="Number of contact buckets; fixed for an installation's life.")
    engine: Literal["local", "ray"] = Field(
        "local", description="Where bucket work runs: local (this machine) or ray (extra kairos-mail[ray])."
    )
    engine_address: str = Field(
        "",
        description="host:port of the Ray cluster's head; empty: the cluster this machine is in, else a new one.",
    )
    public_url: str = Field(
        "http://127.0.0.1:8000", description="Base URL that recipients reach (tracking, unsubscribe)."
    )
    smtp_url: str = Field(
        "outbox://", description="smtp://[user:password@]host:port, smtps://…, or outbox:// (files in HOME/outbox)."
    )
    smtp_connections: int = Field(8, ge=1, le=100, description="SMTP connections held open at once.")
    from_address: str = Field("Kairos <hello@kairos.example>", description="From of every mail.")
    postal_address: str = Field("", description="The sender's postal address, which the law wants in marketing mail.")
    return_path_domain: str = Field(
        "",
        description="Domain that takes bounces: each mail gets a return path of its own there; empty: FROM_ADDRESS.",
    )
    dkim_key_file: Path | None = Field(None, description="PEM file of the DKIM key; empty: the relay signs.")
    dkim_selector: str = Field("kairos", description="DKIM selector: <selector>._domainkey.<domain of FROM_ADDRESS>.")
    dns_server: str = Field("", description="host:port of the name server to ask; empty: the system's.")
    allow_bulk_despite: str = Field(
        "", description="Names of doctor's sender checks, comma-separated, that bulk mail may leave in spite of."
    )
    sandbox: str = Field(
        "", description="Addresses and @domains, comma-separated: mail leaves to these only. Empty: to everybody."
    )
    topics: str = Field(
        "marketing=News and offers",
        description="Topics of the preferences page: name=What people read, comma-separated.",
    )
    secret_key: SecretStr | None = Field(None, description="Signs links; default generated into HOME/secret_key.")
    suppression_pepper: SecretStr | None = Field(
        None,
        description="Keys the suppression list's hashes; made in HOME on first use; never rotate it.",
    )
    timezone: str = Field("UTC", description="IANA zone of the installation: bare dates, contacts without a zone.")
    currency: str = Field("GBP", min_length=3, max_length=3, description="ISO 4217 reporting currency.")
    crash_policy: Literal["hold", "resend"] = Field(
        "hold", description="What becomes of a marketing mail whose fate a crash left unknown."
    )
    quiet_hours: str = Field(
        "22-07", description="Local hours without marketing mail, from-to (half an hour of delay passes); empty = none."
    )
    frequency_cap: int = Field(3, ge=0, description="Marketing mails per contact in any 7 days; 0 = no cap.")
    send_rate_per_minute: int = Field(6000, ge=1, description="Mails handed to the provider per minute at most.")
    mailbox_rates: str = Field(
        "", description="Mails per minute at most by mailbox provider, such as gmail=600,microsoft=300."
    )
    warm_up_from: date | None = Field(
        None, description="First day of a new sending address: mails a day rise from 50 by mailbox provider. Empty: no."
    )
    approval_above: int = Field(
        0, ge=0, description="Recipients above which another key has to approve a campaign; 0 = never."
    )
    canary_share: float = Field(
        0.0, ge=0.0, le=0.5, description="Share of a campaign that leaves first and is watched, if it does not say."
    )
    objective: Literal["engagement", "profit"] = Field(
        "engagement", description="What the planner maximises: human engagement, or expected profit."
    )
    margin_share: float = Field(0.3, ge=0.0, le=1.0, description="Margin's share of revenue, for expected profit.")
    mail_cost: float = Field(0.001, ge=0.0, description="Cost of one mail, in units of CURRENCY.")
    unsubscribe_cost: float = Field(1.0, ge=0.0, description="Cost of one unsubscribe, in units of CURRENCY.")
    attribution_days: int = Field(7, ge=1, le=90, description="Days after a mail in which an order is credited to it.")
    hit_rules: Path | None = Field(None, description="YAML file of rules that tell people from machines; empty: ours.")
    global_holdout: float = Field(
        0.0, ge=0.0, le=0.5, description="Share of contacts that never get marketing mail, for comparison."
    )
    explore_share: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of sends at a uniformly random allowed hour, for learning."
    )
    vector_log_share: float = Field(
        0.01, ge=0.0, le=1.0, description="Share of contacts whose served vectors are kept 14 days, to be replayed."
    )
    score_hours: int = Field(
        24, ge=0, description="Hours between two scorings of all contacts by the worker; 0 = only when asked."
    )
    retrain_days: int = Field(
        7, ge=0, description="Days after which the worker trains a model anew, to serve if it passes; 0 = never."
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    test_data: Path | None = Field(None, description="Folder of real data for the tests.")
    mlflow_tracking_uri: str | None = Field(
        None,
        validation_alias="MLFLOW_TRACKING_URI",
        description="MLflow's own name; default HOME/mlruns/mlflow.db (default HOME: ./mlruns).",
    )

    def environment(self) -> dict[str, str]:
        """Variables that give a child process these settings."""
        variables = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                alias = type(self).model_fields[name].validation_alias
                plain = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                variables[str(alias or f"KAIROS_{name.upper()}")] = plain
        return variables

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object, info: ValidationInfo) -> object:
        """An empty variable leaves a setting without a default unset, as a line of `.env.example` does."""
        is_optional = info.field_name is not None and cls.model_fields[info.field_name].default is None
        return None if is_optional and isinstance(value, str) and not value.strip() else value

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{value!r} is no IANA time zone; write one such as Europe/London") from error
        return value

    @cached_property
    def database(self) -> str:
        """SQLAlchemy URL in force."""
        if self.database_url:
            return self.database_url
        return f"sqlite:///{(self.home / 'kairos.db').resolve()}"

    @cached_property
    def lake(self) -> str:
        """URL or path of the lake in force."""
        return self.lake_url or str((self.home / "lake").resolve())

    @cached_property
    def mlruns(self) -> Path:
        """Folder of MLflow's database and artifacts."""
        base = CHECKOUT if self.home == DEFAULT_HOME else self.home
        return (base / "mlruns").resolve()

    @cached_property
    def tracking_uri(self) -> str:
        """MLflow tracking URI in force."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.mlruns / 'mlflow.db'}"

    @cached_property
    def quiet(self) -> tuple[int, int] | None:
        """Quiet hours as (from, to) local hours, or None."""
        if not self.quiet_hours.strip():
            return None
        begin, _, end = self.quiet_hours.partition("-")
        return int(begin), int(end)

    @cached_property
    def topic_names(self) -> dict[str, str]:
        """Topics of the preferences page, in order: name → what people read."""
        return _parsed_topics(self.topics)

    @cached_property
    def signing_key(self) -> str:
        """Key that signs links; made and kept in HOME on first use."""
        return self._kept_secret(self.secret_key, "secret_key")

    @cached_property
    def pepper(self) -> str:
        """Pepper of the suppression list's hashes; made and kept in HOME on first use."""
        return self._kept_secret(self.suppression_pepper, "suppression_pepper")

    def _kept_secret(self, given: SecretStr | None, name: str) -> str:
        if given is not None:
            return given.get_secret_value()
        path = self.home / name
        if not path.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            fresh = self.home / f".{name}.{secrets.token_hex(4)}"
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_urlsafe(32))
            try:
                path.hardlink_to(fresh)  # two processes that start together keep one secret
            except FileExistsError:
                fresh.unlink()
                return path.read_text().strip()
            fresh.unlink()
        return path.read_text().strip()

    @field_validator("mailbox_rates")
    @classmethod
    def _rates_parse(cls, value: str) -> str:
        try:
            rates_of(value)
        except Invalid as error:
            raise ValueError(error.detail) from error
        return value

    @field_validator("topics")
    @classmethod
    def _topics_parse(cls, value: str) -> str:
        _parsed_topics(value)
        return value

    @field_validator("quiet_hours")
    @classmethod
    def _quiet_hours_parse(cls, value: str) -> str:
        if value.strip():
            begin, _, end = value.partition("-")
            if not (begin.isdigit() and end.isdigit() and int(begin) < 24 and int(end) < 24):
                raise ValueError(
                    f"{value!r} are no quiet hours; write from-to in local hours such as 22-07, or nothing"
                )
        return value


def _parsed_topics(written: str) -> dict[str, str]:
    topics: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in written.split(","))):
        name, equals, says = (piece.strip() for piece in part.partition("="))
        if not equals or not says or not 0 < len(name) <= 60 or name in topics:
            raise ValueError(
                f"{part!r} is no topic; write each once as name=What people read, the name to 60 characters"
            )
        topics[name] = says
    return topics


def documentation() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every setting, for the README and `.env.example`."""
    rows = []
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"KAIROS_{name.upper()}")
        default = "" if field.default is None else str(field.default)
        rows.append((variable, default, field.description or ""))
    return rows


def as_table() -> str:
    """The README's table of settings."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {f'`{default}`' if default else ''} | {says} |" for name, default, says in documentation()]
    return "\n".join(lines)


def as_env_example() -> str:
    """The text of `.env.example`: every setting with its default, commented out."""
    blocks = [f"# {says}\n# {name}={default}" for name, default, says in documentation()]
    return "# Copy to .env and uncomment what you change. Everything is optional.\n\n" + "\n\n".join(blocks) + "\n"


def write_documentation() -> None:
    """Bring the README's table and `.env.example` up to date."""
    readme = CHECKOUT / "README.md"
    text = readme.read_text()
    begin, end = text.index("<!-- settings:"), text.index("<!-- /settings -->")
    head = text[begin : text.index("\n", begin) + 1]
    readme.write_text(f"{text[:begin]}{head}{as_table()}\n{text[end:]}")
    (CHECKOUT / ".env.example").write_text(as_env_example())


if __name__ == "__main__":
    write_documentation()
