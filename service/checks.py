"""Is everything in place? Database, lake, models, mail server: each says what is wrong and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from service.database import MIGRATIONS, Database
from service.halts import halts_in_force
from service.sender_checks import leaves_this_machine, sender_checks
from service.settings import Settings
from service.tables import ServingModelRow


@dataclass(frozen=True, slots=True)
class Check:
    """One part of the installation, and how it is."""

    name: str
    ok: bool
    #: How it is, and what to do where it is not well.
    says: str


def check_database(database: Database) -> Check:
    """Whether the database answers and has the tables of this version."""
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    try:
        with database.engine.connect() as connection:
            at = MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as error:
        reason = type(getattr(error, "orig", None) or error).__name__
        return Check("database", False, f"does not answer ({reason}); see to KAIROS_DATABASE_URL")
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    if at != head:
        return Check(
            "database",
            False,
            f"its tables are at {at}, not at {head}; run `kairos db upgrade`",
        )
    return Check("database", True, f"{database.url.get_backend_name()} answers, its tables are at {head}")


def is_fresh(database: Database) -> bool:
    """Whether the database has no table at all yet."""
    from sqlalchemy import inspect

    return not inspect(database.engine).get_table_names()


def check_lake(settings: Settings) -> Check:
    """Whether the lake's place can be reached; an empty one is well."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(settings.lake)
        exists = filesystem.exists(path)
        if exists:
            filesystem.ls(path)
    except (OSError, ValueError, ImportError) as error:
        return Check("lake", False, f"{settings.lake} cannot be read ({error}); see to KAIROS_LAKE_URL")
    return Check("lake", True, "can be read" if exists else "is empty; `kairos features sync` fills it")


def check_models(database: Database) -> Check:
    """Whether what should serve can be loaded from its files."""
    from pathlib import Path

    from training.serving import load_model

    try:
        with database.reading() as session:
            rows = session.scalars(select(ServingModelRow).order_by(ServingModelRow.name)).all()
    except SQLAlchemyError:
        return Check("models", False, "cannot be looked up while the database does not answer or has no tables")
    if not rows:
        return Check("models", True, "none serves yet; `kairos train all` trains and promotes them")
    broken = []
    for row in rows:
        try:
            load_model(Path(row.path))
        except (OSError, ValueError) as error:
            broken.append(f"{row.name} {row.version}: {error}")
    if broken:
        return Check("models", False, "; ".join(broken))
    return Check("models", True, ", ".join(f"{row.name} {row.version}" for row in rows) + " serve")


def check_halts(database: Database) -> Check:
    """Whether anything is stopped: everything, a stream, the mail to one mailbox provider."""
    try:
        with database.reading() as session:
            standing = halts_in_force(session)
    except SQLAlchemyError:
        return Check("halts", False, "cannot be looked up while the database does not answer or has no tables")
    if standing:
        said = "; ".join(f"{row.scope} since {row.halted_at:%Y-%m-%d %H:%M} UTC: {row.reason}" for row in standing)
        return Check("halts", False, f"{said}; `kairos resume` or POST /v1/resume lifts it")
    return Check("halts", True, "nothing is stopped")


def check_sender(settings: Settings) -> list[Check]:
    """The sender's set-up, one check a part; where mail does not leave this machine it does not matter."""
    if not leaves_this_machine(settings):
        return [Check("sender", True, "mail does not leave this machine, so the sender's set-up is not looked at")]
    allowed = {name.strip() for name in settings.allow_bulk_despite.split(",")}
    checks = []
    for one in sender_checks(settings):
        says = one.says if one.state == "ok" else f"{one.state}: {one.says}"
        if one.record:
            says += f"; publish: {one.record}"
        is_bad = one.state == "fail" and one.is_required
        if is_bad and one.name in allowed:
            says += " (bulk mail leaves in spite of it: KAIROS_ALLOW_BULK_DESPITE)"
        checks.append(Check(one.name, not is_bad or one.name in allowed, says))
    return checks


def check_signing(settings: Settings) -> Check:
    """Whether mails can be signed, where the installation is to sign them itself."""
    from email.utils import parseaddr

    from service.dkim import signer_of

    domain = parseaddr(settings.from_address)[1].rpartition("@")[2]
    try:
        signer = signer_of(settings, domain)
    except ValueError as error:
        return Check("signing", False, str(error))
    if signer is None:
        return Check("signing", True, "is left to the relay; KAIROS_DKIM_KEY_FILE lets Kairos sign")
    return Check("signing", True, f"signs for {signer.domain}; its record belongs at {signer.selector}._domainkey")


def check_mail(settings: Settings) -> Check:
    """Whether the mail server lets us in. Nothing is sent."""
    import smtplib
    import ssl
    from urllib.parse import unquote, urlsplit

    url = urlsplit(settings.smtp_url)
    if url.scheme == "outbox":
        return Check("mail", True, "mails become files in HOME/outbox; set KAIROS_SMTP_URL to send them")
    where = f"{url.hostname}:{url.port}" if url.port else str(url.hostname)
    try:
        if url.scheme == "smtps":
            context = ssl.create_default_context()
            server: smtplib.SMTP = smtplib.SMTP_SSL(str(url.hostname), url.port or 465, timeout=10, context=context)
        else:
            server = smtplib.SMTP(str(url.hostname), url.port or 25, timeout=10)
        with server:
            server.ehlo()
            if url.scheme == "smtp" and server.has_extn("starttls"):
                server.starttls(context=ssl.create_default_context())
                server.ehlo()
            if url.username:
                server.login(unquote(url.username), unquote(url.password or ""))
    except (OSError, smtplib.SMTPException, ValueError) as error:
        return Check("mail", False, f"{where} cannot be used ({error}); see to KAIROS_SMTP_URL and the server")
    return Check("mail", True, f"{where} answers")
