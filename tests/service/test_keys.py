"""Laws of the API keys."""

import io
import json
import logging
from datetime import datetime

import pytest
from sqlalchemy import select

from service.database import Database
from service.errors import Invalid, NotFound, Unauthorized
from service.keys import authenticate, create_key, list_keys, revoke_key
from service.logs import configure
from service.tables import ApiKeyRow


def test_a_key_is_recognised_by_its_secret(any_database: Database, now: datetime):
    """What was created authenticates, with its scopes and no other."""
    with any_database.writing() as session:
        key_id, secret = create_key(session, "shop", ["ingest", "read", "ingest"], now)
    with any_database.reading() as session:
        key = authenticate(session, secret)

    assert secret.startswith(f"kk_live_{key_id}_")
    assert (key.key_id, key.name, key.scopes) == (key_id, "shop", {"ingest", "read"})
    assert key.allows("read")
    assert not key.allows("send")


def test_the_secret_is_kept_nowhere(database: Database, now: datetime):
    """The row holds its hash only."""
    with database.writing() as session:
        _, secret = create_key(session, "shop", ["read"], now)
        row = session.scalars(select(ApiKeyRow)).one()

        assert secret[-24:] not in repr(vars(row))


def test_admin_may_do_everything(database: Database, now: datetime):
    """The scope `admin` allows what any other scope allows."""
    with database.writing() as session:
        _, secret = create_key(session, "root", ["admin"], now)

        assert authenticate(session, secret).allows("send")


def test_a_revoked_key_is_refused(any_database: Database, now: datetime):
    """After revoking, the secret no longer authenticates; revoking twice changes nothing."""
    with any_database.writing() as session:
        key_id, secret = create_key(session, "shop", ["read"], now)
        revoke_key(session, key_id, now)
        revoke_key(session, key_id, now)

        with pytest.raises(Unauthorized, match="was revoked"):
            authenticate(session, secret)
        assert [row.key_id for row in list_keys(session)] == [key_id]


@pytest.mark.parametrize("secret", ["", "wrong", "kk_live_abc_def", "kk_live_\ud800_x", "x" * 10_000])
def test_an_unknown_secret_is_refused_without_being_repeated(secret: str, database: Database):
    """The message names the remedy and never the secret."""
    with database.reading() as session, pytest.raises(Unauthorized, match="kairos keys create") as refusal:
        authenticate(session, secret)

    assert len(secret) < 6 or secret not in refusal.value.detail


@pytest.mark.parametrize(("name", "scopes"), [("a", ["reading"]), ("a", []), ("", ["read"]), ("x" * 121, ["read"])])
def test_a_key_that_makes_no_sense_is_not_made(name: str, scopes: list[str], database: Database, now: datetime):
    """Unknown or no scopes, an empty or endless name."""
    with database.writing() as session, pytest.raises(Invalid):
        create_key(session, name, scopes, now)


def test_revoking_what_is_not_there_says_so(database: Database, now: datetime):
    """The id is named."""
    with database.writing() as session, pytest.raises(NotFound, match="'nope'"):
        revoke_key(session, "nope", now)


def test_no_address_reaches_the_log():
    """Message, arguments, extras and traces are cleaned of everything that looks like an address."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    try:
        configure("INFO", stream)
        try:
            raise RuntimeError("no such user <ann@shop.example>")
        except RuntimeError:
            extra = {"send_id": 7, "to": "bob@shop.example", "more": {"cc": ["eve@shop.example"]}}
            logging.getLogger("test").exception("refused %s", "dan@shop.example", extra=extra)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    line = json.loads(stream.getvalue())

    assert "@" not in stream.getvalue()
    assert line["send_id"] == 7
    assert "RuntimeError" in line["trace"]
