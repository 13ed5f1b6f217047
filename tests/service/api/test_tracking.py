"""Laws of what recipients reach."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from features.contacts import resolve
from service.database import Database
from service.links import link_ids, sign_click, sign_open, sign_unsubscribe
from service.settings import Settings
from service.suppression import Consent, consent_states, set_consent
from service.tables import HitRow, SendRow

TARGET = "https://shop.example/new?a=1&b=2"
BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}


class Mailed:
    """A contact with one accepted send, its links, and what the database knows afterwards."""

    def __init__(self, database: Database, settings: Settings, now: datetime) -> None:
        self.database = database
        with database.writing() as session:
            self.contact_key = resolve(session, ["user:42"], now=now)["user:42"]
            set_consent(session, [Consent(self.contact_key, "marketing", "subscribed", "form")], now=now)
            link_id = link_ids(session, [TARGET])[TARGET]
            session.add(
                SendRow(
                    send_id=1, intent_key="one", contact_key=self.contact_key, campaign_id=None, stream="marketing",
                    topic="marketing", template_id="t", template_version=1, state="accepted", reason=None, due_at=now,
                    not_after=now + timedelta(days=1), timezone="UTC", assigned_local_hour=9, hour_propensity=1.0,
                    hour_reason="fixed", is_holdout=False, decided_at=now, lease_until=None, message_id="m",
                    smtp_code=250, link_count=1, created_at=now, finished_at=now,
                )
            )  # fmt: skip
        key = settings.signing_key
        self.open_path = f"/o/{sign_open(key, 1)}"
        self.click_path = f"/c/{sign_click(key, 1, link_id)}"
        self.unknown_link_path = f"/c/{sign_click(key, 1, 10_000)}"
        self.unsubscribe_path = f"/u/{sign_unsubscribe(key, 1)}"

    def hits(self) -> list[tuple[str, int | None]]:
        with self.database.reading() as session:
            return [(row.method, row.link_id) for row in session.scalars(select(HitRow).order_by(HitRow.hit_id))]

    def consent(self) -> str:
        with self.database.reading() as session:
            return consent_states(session, [self.contact_key], "marketing")[self.contact_key]


@pytest.fixture
def mailed(database: Database, settings: Settings, now: datetime) -> Mailed:
    return Mailed(database, settings, now)


def test_the_pixel_is_answered_once_its_hit_is_kept(client: Any, mailed: Mailed):
    """43 bytes of GIF that no cache may keep; GET and HEAD are told apart."""
    got = client.get(mailed.open_path, headers=BROWSER)
    headed = client.request("HEAD", mailed.open_path)

    assert (got.status_code, got.headers["content-type"], len(got.content)) == (200, "image/gif", 43)
    assert "no-store" in got.headers["cache-control"]
    assert (headed.status_code, headed.content) == (200, b"")
    assert mailed.hits() == [("GET", None), ("HEAD", None)]


def test_a_link_leads_to_its_target(client: Any, mailed: Mailed):
    """A redirect to exactly the registered address, counted each time."""
    for _ in range(2):
        answer = client.get(mailed.click_path, headers=BROWSER)

        assert (answer.status_code, answer.headers["location"]) == (302, TARGET)
    assert [link is not None for _, link in mailed.hits()] == [True, True]


@pytest.mark.parametrize("kind", ["o", "c", "t", "u"])
@pytest.mark.parametrize(
    "token",
    ["x", "AAAA", "https:%2F%2Fevil.example", "//evil.example", "%2F%2Fevil.example", "javascript:alert(1)",
     "..%2F..%2Fv1", "%0d%0aLocation:%20https:%2F%2Fevil.example", "%00", "ü", "a" * 500],
)  # fmt: skip
def test_a_token_that_is_not_ours_leads_nowhere(kind: str, token: str, client: Any, mailed: Mailed):
    """404 with a page, never a redirect, nothing recorded, on every path and method."""
    for method in ("GET", "HEAD", *(["POST"] if kind == "u" else [])):
        answer = client.request(method, f"/{kind}/{token}")

        assert answer.status_code == 404
        assert "location" not in answer.headers
    assert mailed.hits() == []


def test_tokens_do_not_open_other_doors(client: Any, mailed: Mailed):
    """An open token neither unsubscribes nor redirects; a signed link without a target leads nowhere."""
    token = mailed.open_path.rpartition("/")[2]

    assert client.post(f"/u/{token}").status_code == 404
    assert client.get(f"/c/{token}").status_code == 404
    assert client.get(mailed.unknown_link_path).status_code == 404
    assert mailed.consent() == "subscribed"


def test_looking_never_unsubscribes(client: Any, mailed: Mailed):
    """GET and HEAD show a page with a button and change nothing; no cookie is set."""
    page = client.get(mailed.unsubscribe_path)
    client.request("HEAD", mailed.unsubscribe_path)

    assert page.status_code == 200
    assert '<form method="post">' in page.text
    assert client.get(mailed.unsubscribe_path).text == page.text
    assert "set-cookie" not in page.headers
    assert mailed.consent() == "subscribed"


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"List-Unsubscribe": "One-Click"}},
        {"files": {"List-Unsubscribe": (None, "One-Click")}},
        {},
    ],
    ids=["urlencoded", "multipart", "button"],
)
def test_one_click_unsubscribes_at_once(body: dict[str, Any], client: Any, mailed: Mailed):
    """Either form encoding of the mail program, and the page's own button; twice is as once."""
    for _ in range(2):
        answer = client.post(mailed.unsubscribe_path, **body)

        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
    assert mailed.consent() == "unsubscribed"


def test_a_lost_database_does_not_strand_the_reader(client: Any, mailed: Mailed, database: Database):
    """A known link still leads on when its hit cannot be kept."""
    client.get(mailed.click_path)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("DROP TABLE hit")
        connection.commit()

    assert client.get(mailed.click_path).headers["location"] == TARGET
    assert client.get(mailed.open_path).status_code == 200


def test_tracking_needs_no_key_and_lists_do(client: Any, mailed: Mailed, caller: Callable[..., Any]):
    """The paths in mails are open to everybody, the ledger is not."""
    assert client.get(mailed.open_path).status_code == 200
    assert client.get("/v1/sends").status_code == 401
    listed = caller("read")("GET", "/v1/sends", params={"state": "accepted"}).json()["items"]
    assert [(send["id"], send["user_id"], send["state"]) for send in listed] == [("1", "42", "accepted")]
