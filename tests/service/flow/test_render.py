"""Laws of the mail that is made."""

from __future__ import annotations

import email
import email.policy
import html
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.database import Database
from service.errors import Invalid
from service.flow.render import (
    Email,
    RenderFailure,
    RenderInput,
    Template,
    check_subject,
    compile_template,
    gather,
    proofread,
    render,
    slots_of,
)
from service.flow.render.message import build_message
from service.links import read_click, read_open, read_unsubscribe
from service.settings import Settings
from tests.service.mailing import OFFER, add_template, plan, send_row, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
HTML = "<html><body>{}</body></html>"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", secret_key="fixed", public_url="https://mail.shop.example/", _env_file=None)


class Numbers:
    """Numbers targets as they come, and remembers them."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.calls = 0

    def __call__(self, urls: Iterable[str]) -> dict[str, int]:
        self.calls += 1
        return {url: self.known.setdefault(url, len(self.known) + 1) for url in urls}

    def target(self, number: int) -> str:
        return next(url for url, known in self.known.items() if known == number)


def template(source: str, subject: str = "Hello", source_format: str = "html") -> Template:
    return Template("t", 1, subject, source, source_format, compile_template(source, source_format))


def given(send_id: int, page: Template, traits: dict[str, object] | None = None, **values: object) -> RenderInput:
    return RenderInput(send_id, send_id, f"u{send_id}", f"ann{send_id}@shop.example", traits or {}, page, **values)


def one(page: Template, settings: Settings, traits: dict[str, object] | None = None, **values: object) -> Email:
    [mail] = render([given(7, page, traits, **values)], now=NOW, settings=settings, number_links=Numbers())
    assert isinstance(mail, Email), mail
    return mail


def parsed(mail: Email) -> email.message.EmailMessage:
    return email.message_from_bytes(mail.message_bytes, policy=email.policy.default)


# -- the bytes -------------------------------------------------------------------------------------


def test_the_bytes_on_the_wire_are_these(settings: Settings) -> None:
    """Golden bytes: headers whole on one line each, the text twin before the HTML, quoted-printable, CRLF."""
    page = template(
        HTML.format("<p>Caf\u00e9 {{ first_name }}</p><a href='{{ unsubscribe_url }}'>Unsubscribe</a>"),
        "Hi {{ first_name }}",
    )
    mail = one(page, settings, {"first_name": "Ann"}, campaign_id="spring", topic="News & more")
    expected = """\
From: Kairos <hello@kairos.example>
To: ann7@shop.example
Subject: Hi Ann
Date: Mon, 02 Mar 2026 09:00:00 +0000
Message-ID: <s7.0594a686ee5d@kairos.example>
List-Unsubscribe: <https://mail.shop.example/u/B4YUt-NPllVJ7c4>, \
<mailto:hello@kairos.example?subject=unsubscribe%20B4YUt-NPllVJ7c4>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
List-ID: <news-more.kairos.example>
Feedback-ID: spring:news-more:marketing:kairos
X-Kairos-Send: 7
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary="=_7a9b04c9a795b4dff370e25b"

--=_7a9b04c9a795b4dff370e25b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Caf=C3=A9 Ann

Unsubscribe (https://mail.shop.example/u/B4YUt-NPllVJ7c4)
--=_7a9b04c9a795b4dff370e25b
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<html><head></head><body><p>Caf=C3=A9 Ann</p><a href=3D"https://mail.shop.e=
xample/u/B4YUt-NPllVJ7c4">Unsubscribe</a><div style=3D"display:none;max-hei=
ght:0;overflow:hidden" aria-hidden=3D"true"><a href=3D"https://mail.shop.ex=
ample/t/B5-HIYxOspMv1YA" tabindex=3D"-1" rel=3D"nofollow"></a></div><img sr=
c=3D"https://mail.shop.example/o/B-Yg-HwwK4ZbCFE" width=3D"1" height=3D"1" =
alt=3D"" style=3D"display:block"></body></html>
--=_7a9b04c9a795b4dff370e25b--
"""
    assert mail.message_bytes == expected.replace("\n", "\r\n").encode()
    assert read_unsubscribe(settings.signing_key, "B4YUt-NPllVJ7c4") == 7
    assert read_open(settings.signing_key, "B-Yg-HwwK4ZbCFE") == 7


def test_list_unsubscribe_is_neither_folded_nor_encoded(settings: Settings) -> None:
    """However large the ids and long the domain, the header stands on one line in plain ASCII (RFC 8058)."""
    long = settings.model_copy(update={"public_url": "https://a-rather-long-tracking-host.marketing.shop.example/base"})
    [mail] = render([given(2**62, template(HTML.format("x")))], now=NOW, settings=long, number_links=Numbers())
    [line] = [line for line in mail.message_bytes.split(b"\r\n") if line.startswith(b"List-Unsubscribe:")]
    assert re.fullmatch(rb"List-Unsubscribe: <https://[^>]+/u/[\w-]+>, <mailto:[^>]+>", line)


def test_what_is_parsed_is_what_was_said(settings: Settings) -> None:
    """Any subject and any body come back from a mail parser as they were written."""
    subject = "Gr\u00fc\u00dfe \U0001f381 " + "und noch etwas mehr " * 8
    text = "\u4f60\u597d = 100 %\n.dot\n" + "long " * 300 + "\ntrailing  \nend"
    body = build_message([("Subject", subject.strip())], text=text, html="<p>\u00e9</p>" * 200)
    message = email.message_from_bytes(body, policy=email.policy.default)
    assert message["Subject"] == subject.strip()
    assert message.get_body(("plain",)).get_content().replace("\r\n", "\n").rstrip("\n") == text
    assert message.get_body(("html",)).get_content().rstrip() == "<p>\u00e9</p>" * 200
    assert max(map(len, body.split(b"\r\n"))) <= 78
    assert b"\n" not in body.replace(b"\r\n", b"")


def test_the_same_input_gives_the_same_bytes(settings: Settings) -> None:
    """A mail that is made again, after a crash, is the same mail with the same Message-ID."""
    page = template(OFFER, "Hi {{ first_name }}", "mjml")
    first, second = (one(page, settings, {"first_name": "Ann"}) for _ in range(2))
    assert first.message_bytes == second.message_bytes


def test_transactional_mail_carries_no_list_headers(settings: Settings) -> None:
    """A receipt is no newsletter: no List headers, and no footer is forced into it."""
    mail = one(template(HTML.format("<p>Your order</p>")), settings, stream="transactional")
    assert not [name for name, _ in mail.headers if name.startswith(("List-", "Feedback"))]
    assert "Unsubscribe" not in mail.html


@pytest.mark.parametrize(
    "source",
    [
        "<p>Sale</p>",
        "<p>Sale</p>{% if vip %}<a href='{{ unsubscribe_url }}'>out</a>{% endif %}",
        "<p>Sale</p>{% comment %}<a href='{{ unsubscribe_url }}'>out</a>{% endcomment %}",
        "<p>Sale {{ unsubscribe_url }}</p>",
    ],
)
def test_marketing_mail_always_has_a_visible_way_out(settings: Settings, source: str) -> None:
    """A template that forgot it, or shows it to others only, gets a link out and the sender, in both parts."""
    house = settings.model_copy(update={"postal_address": "A & B, 1 High Street"})
    mail = one(template(HTML.format(source)), house, {"postal_address": "the contact's own"})
    assert len(re.findall(r'<a href="https://mail\.shop\.example/u/[\w-]+"', mail.html)) == 1
    assert re.search(r"A & B, 1 High Street\nUnsubscribe \(https://mail\.shop\.example/u/[\w-]+\)\n$", mail.text)
    assert "A &amp; B, 1 High Street" in mail.html
    assert "own" not in mail.html + mail.text


def test_a_way_out_that_is_there_is_not_doubled(settings: Settings) -> None:
    """The footer is for mails without one."""
    mail = one(template(HTML.format("<a href='{{ unsubscribe_url }}'>out</a>")), settings)
    assert mail.html.count("/u/") == 1


# -- failures stay in their row --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traits", "address"),
    [
        ({"first_name": "Ann\r\nBcc: all@shop.example"}, "ann@shop.example"),
        ({"first_name": "Ann"}, "ann@shop.example\r\nBcc: all@shop.example"),
        ({"first_name": "Ann"}, "ann@shop.example, bob@shop.example"),
        ({"first_name": "x" * 1000}, "ann@shop.example"),
    ],
)
def test_header_injection_fails_its_row_only(settings: Settings, traits: dict[str, object], address: str) -> None:
    """A value that would make another header, or another recipient, stops its own mail and no other."""
    page = template(HTML.format("<p>x</p>"), "Hi {{ first_name }}")
    bad = RenderInput(1, 1, "u1", address, traits, page)
    failed, fine = render([bad, given(2, page)], now=NOW, settings=settings, number_links=Numbers())
    assert isinstance(failed, RenderFailure)
    assert isinstance(fine, Email)
    assert b"Bcc" not in fine.message_bytes


def test_a_filter_that_cannot_take_a_trait_fails_its_row_only(settings: Settings) -> None:
    """A trait of the wrong kind stops one mail with the reason; its neighbours are made."""
    page = template(HTML.format("<p>{{ 10 | divided_by: n }}</p>"))
    failed, fine = render(
        [given(1, page, {"n": 0}), given(2, page, {"n": 5})], now=NOW, settings=settings, number_links=Numbers()
    )
    assert isinstance(failed, RenderFailure)
    assert "divide" in failed.reason
    assert "<p>2</p>" in fine.html


@pytest.mark.parametrize(
    "bomb",
    [
        "{% for i in (1..999) %}{% for j in (1..999) %}x{% endfor %}{% endfor %}",
        "{% assign a = 'xxxxxxxxxx' %}{% for i in (1..900) %}{% assign a = a | append: a %}{% endfor %}{{ a }}",
        "{% assign a = 9 %}{% for i in (1..900) %}{% assign a = a | times: a %}{% endfor %}{{ a }}",
        "{{ 'xxxxxxxxxx'" + " | replace: 'x', 'xxxxxxxxxx'" * 12 + " }}",
        "{{ 'a,b' | split: ','" + " | concat: list" * 40 + " | join: ',' }}",
        "{% for a in list %}{% for b in list %}{{ text | upcase }}{% endfor %}{% endfor %}",
        "{% assign a = text | split: '' | join: text %}{{ a }}",
        "{% tablerow i in list %}{% tablerow j in list %}{{ text }}{% endtablerow %}{% endtablerow %}",
    ],
)
def test_a_liquid_bomb_is_stopped_at_once(settings: Settings, bomb: str) -> None:
    """Loops, doublings and chains of filters that would take minutes or gigabytes end within half a second."""
    page = template(HTML.format(f"<p>{bomb}</p>"))
    traits = {"list": list(range(900)), "text": "y" * 20_000}
    began = time.process_time()
    [failed] = render([given(1, page, traits)], now=NOW, settings=settings, number_links=Numbers())
    assert time.process_time() - began < 0.5
    assert isinstance(failed, RenderFailure)


@pytest.mark.parametrize("range_", ["(1..1000000000)", "(1..n)", "(a..999)"])
def test_a_range_without_a_small_bound_does_not_compile(range_: str) -> None:
    """A range is refused where its size cannot be seen: walking it inside a filter would hold a core for minutes."""
    with pytest.raises(Invalid, match=r"line 2: a range takes whole numbers below 1000"):
        compile_template(HTML.format("\n{{ " + range_ + " | join: ',' }}"), "html")


# -- templates that do not compile -----------------------------------------------------------------

MJML = "<mjml>\n<mj-body>\n<mj-section>\n<mj-column>\n{}\n</mj-column>\n</mj-section>\n</mj-body>\n</mjml>"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (MJML.format("<mj-txt>x</mj-txt>"), "line 5: <mj-txt> is no MJML element"),
        (MJML.format("<mj-section></mj-section>"), "line 5: <mj-section> cannot stand in <mj-column>"),
        (MJML.format("words"), "'words' would be lost in <mj-column>; put it into <mj-text>"),
        (MJML.format("<mj-text>x").replace("</mj-column>", "", 1), "line 5: <mj-text> is not closed|closes <mj-text>"),
        (MJML.format('<mj-include path="/etc/passwd" />'), "line 5: <mj-include> reads files"),
        (MJML.format("<mj-text>{% if x %}</mj-text>"), "endif"),
        (MJML.format("<mj-text>\n{{ x | nosuch }}</mj-text>"), "line 6: unknown filter 'nosuch'"),
        (MJML.format("<mj-text>{% include 'x' %}</mj-text>"), "line 5: .*include"),
        (MJML.format("<mj-text>{% slot a %}x</mj-text>"), "line 5: {% slot a %} has no partner"),
        (MJML.format("<mj-text><a {% if x %}href=''{% endif %}>x</a></mj-text>"), "line 5: .* between attributes"),
        ("<p>x</p>", "begins with <mjml>"),
        ("", "begins with <mjml>"),
        ("<mjml></mjml>", "no <mj-body>"),
    ],
)
def test_a_template_that_does_not_compile_says_where_and_what_to_do(source: str, told: str) -> None:
    """The error names the line and the remedy."""
    with pytest.raises(Invalid, match=told.replace("{", r"\{")):
        compile_template(source, "mjml")


def test_a_subject_that_does_not_parse_is_refused() -> None:
    """The subject line is Liquid too, and must say something."""
    with pytest.raises(Invalid, match="subject"):
        check_subject("Hi {{ first_name")
    with pytest.raises(Invalid, match="empty"):
        check_subject("  ")


@pytest.mark.parametrize("name", ["offer", "plain"])
def test_shipped_templates_show_the_sender(settings: Settings, name: str) -> None:
    """The law wants the postal address; without one no empty line stands in its place."""
    page = template((Path(__file__).parents[3] / "templates" / "email" / f"{name}.mjml").read_text(), "x", "mjml")
    house = settings.model_copy(update={"postal_address": "1 High Street, London"})
    assert "1 High Street, London" in one(page, house).text
    assert "1 High Street, London<br" in one(page, house).html
    proof = proofread(given(1, page), "x", one(page, house).html, one(page, house).text, house)
    assert set(proof.warnings) == set()


@pytest.mark.parametrize(
    "name",
    [
        "\u05e9\u05dc\u05d5\u05dd",
        "\u0641\u0627\u0637\u0645\u0629",
        "\u4f60\u597d",
        "\U0001f469\u200d\U0001f680 Ann",
        "W" * 200,
        "O'Brien & <Sons>",
    ],
)
def test_names_of_every_script_come_through(settings: Settings, name: str) -> None:
    """Right to left, emoji sequences, long names and signs of HTML: the same in subject, HTML and text."""
    page = template(OFFER, "{{ first_name }}, hello", "mjml")
    mail = parsed(one(page, settings, {"first_name": name}))
    assert mail["Subject"] == f"{name}, hello"
    assert f"Hello {name}" in mail.get_body(("plain",)).get_content()
    assert f"Hello {html.escape(name, quote=False)}" in mail.get_body(("html",)).get_content().replace("&#39;", "'")


@pytest.mark.parametrize("name", ["offer", "plain"])
def test_shipped_templates_make_a_mail_for_somebody_unknown(settings: Settings, name: str) -> None:
    """Without a single trait the shipped templates read well: fall-backs, no leftovers."""
    source = (Path(__file__).parents[3] / "templates" / "email" / f"{name}.mjml").read_text()
    mail = one(template(source, "For {{ first_name | default: 'you' }}", "mjml"), settings)
    assert mail.subject == "For you"
    assert "Hello there" in mail.text
    assert not re.search(r"\{\{|\{%|kq[0-9a-f]{12}|[\ue000-\uf8ff]|<mj-", mail.html + mail.text)
    assert "https://mail.shop.example/u/" in mail.text


# -- slots, traits and links -----------------------------------------------------------------------


def test_arms_fill_their_slots(settings: Settings) -> None:
    """The subject arm replaces the subject line, a block arm its slot; both are Liquid; the rest stays."""
    page = template(OFFER, "default", "mjml")
    arms = {"subject": "Only for {{ first_name }}", "block": "<mj-text>Block B, {{ first_name }}</mj-text>"}
    mail = one(page, settings, {"first_name": "Ann"}, arms=arms)
    plain = one(page, settings, {"first_name": "Ann"})
    assert mail.subject == "Only for Ann"
    assert "Block B, Ann" in mail.text
    assert "Block B" in mail.html
    assert "We put something together" in plain.text
    assert "We put something together" not in mail.text


@pytest.mark.parametrize(
    "content",
    ["Words", "<b>Words</b>", "<mj-text>Words</mj-text>", "<mj-button href='https://a.example'>Words</mj-button>"],
)
@pytest.mark.parametrize("around", ["mj-column", "mj-body"])
def test_an_arm_may_be_words_html_or_mjml(settings: Settings, content: str, around: str) -> None:
    """Whatever the author wrote is wrapped as its place needs."""
    slot = "{% slot s %}{% endslot %}"
    source = MJML.format(slot) if around == "mj-column" else f"<mjml><mj-body>{slot}</mj-body></mjml>"
    mail = one(template(source, "x", "mjml"), settings, arms={"s": content})
    assert "Words" in mail.text


def test_an_arm_without_its_slot_fails_the_mail(settings: Settings) -> None:
    """An arm that would show nowhere is an error: a decision that nobody saw must not be learned from."""
    page = template(HTML.format("{% slot hero %}x{% endslot %}"))
    [failed] = render([given(1, page, arms={"heroo": "y"})], now=NOW, settings=settings, number_links=Numbers())
    assert isinstance(failed, RenderFailure)
    assert "no slot 'heroo'" in failed.reason
    assert slots_of(page.source) == ("subject", "hero")


def test_traits_are_text_not_markup(settings: Settings) -> None:
    """A trait cannot bring markup, a script link or a tracked link into a mail; the subject shows it as it is."""
    page = template(HTML.format('<p>{{ name }}</p><a href="{{ link }}">x</a>'), "Hi {{ name }}")
    mail = one(page, settings, {"name": "<b>A & B</b>", "link": "javascript:alert(1)"})
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;" in mail.html
    assert mail.subject == "Hi <b>A & B</b>"
    assert "javascript" not in mail.html + mail.text


def test_each_link_becomes_a_token_to_its_target(settings: Settings) -> None:
    """Fixed targets and those made of traits are tracked, one token each; mail addresses and the way out are not."""
    page = template(
        HTML.format(
            '<a href="https://a.example/x?p=1&amp;q=2">one</a> <a href="{{ url }}">two</a> <a href="https://a.example/x?p=1&amp;q=2">again</a>'
            '<a href="mailto:us@shop.example">write</a><a href="#top">top</a><a href="{{ unsubscribe_url }}">out</a>'
        )
    )
    numbers = Numbers()
    batch = [given(i, page, {"url": f"https://b.example/?u={i}&v=ü"}) for i in (1, 2)]
    first, second = render(batch, now=NOW, settings=settings, number_links=numbers)
    assert numbers.calls == 1
    assert first.link_count == 2
    for mail, send_id in ((first, 1), (second, 2)):
        for part in (mail.html, mail.text):
            targets = []
            for token in re.findall(r"https://mail\.shop\.example/c/([\w-]+)", part):
                signed_for, number = read_click(settings.signing_key, token)
                assert signed_for == send_id
                targets.append(numbers.target(number))
            assert targets == [
                "https://a.example/x?p=1&q=2",
                f"https://b.example/?u={send_id}&v=ü",
                "https://a.example/x?p=1&q=2",
            ]
        assert 'href="mailto:us@shop.example"' in mail.html
        assert 'href="#top"' in mail.html


def test_liquid_survives_tables_and_comparisons(settings: Settings) -> None:
    """Loops around table rows stay where they are, and < and > in conditions stay operators."""
    page = template(
        HTML.format(
            "<table>{% for item in items %}{% if item.n > 1 %}<tr><td>{{ item.name }}</td></tr>"
            "{% endif %}{% endfor %}</table>"
        )
    )
    mail = one(page, settings, {"items": [{"name": "A", "n": 1}, {"name": "B", "n": 2}, {"name": "C", "n": 3}]})
    assert re.sub(r"\s|<tbody>|</tbody>", "", mail.html).count("<tr><td>B</td></tr><tr><td>C</td></tr></table>") == 1
    assert mail.text.split()[:2] == ["B", "C"]


def test_a_preview_tracks_nothing(settings: Settings) -> None:
    """Without a book of links the mail keeps its targets and has no pixel."""
    page = template(HTML.format('<a href="https://a.example/x">x</a>'))
    [mail] = render([given(1, page)], now=NOW, settings=settings, number_links=None)
    assert 'href="https://a.example/x"' in mail.html
    assert "/o/" not in mail.html


def test_gather_takes_each_sends_own_values(database: Database, settings: Settings) -> None:
    """Address, traits and template come from the rows; what is missing is a reason in its own place."""
    keys = subscribe(database, 2, now=NOW)
    add_template(database, now=NOW)
    good, gone = plan(database, keys, now=NOW)
    (missing,) = plan(database, [keys[0]], now=NOW, template_version=9)
    sends = [send_row(database, send_id) for send_id in (gone, missing, good)]
    sends[0].contact_key = 10**6
    with database.reading() as session:
        inputs = gather(session, sends)
    assert [type(one).__name__ for one in inputs] == ["RenderFailure", "RenderFailure", "RenderInput"]
    assert "offer version 9 does not exist" in inputs[1].reason
    mails = render(inputs, now=NOW, settings=settings, number_links=Numbers())
    assert mails[2].subject == "For you, C0"
    assert mails[2].recipient == "c0@shop.example"
