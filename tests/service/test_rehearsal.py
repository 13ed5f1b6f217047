"""Laws of the rehearsal: real contacts, the awkward ones among them; what would go wrong is said before it does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from features.contacts import resolve, update_traits
from service.database import Database
from service.errors import Invalid
from service.flow.render import Template, compile_template
from service.flow.render.proofread import CLIP_BYTES
from service.rehearsal import MOST_COMBINATIONS, rehearse
from service.settings import Settings

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
WAY_OUT = '<p>{{ postal_address }} <a href="{{ unsubscribe_url }}">Unsubscribe</a></p>'
LONG = "Wolfeschlegelsteinhausenbergerdorff-Hubert Blaine the Second of that Name"
AWKWARD = {
    "no-name": {"first_name": None},
    "long": {"first_name": LONG},
    "greek": {"first_name": "Ελένη"},
    "arabic": {"first_name": "فاطمة"},
    "emoji": {"first_name": "\U0001f381 Gift"},
    "bare": {"first_name": None, "city": None, "cart": None},
    "no-zone": {"timezone": None},
}


def template(source: str, subject: str = "Hi {{ first_name | default: 'you' }}") -> Template:
    return Template("t", 1, subject, source, "html", compile_template(source, "html"))


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    return Settings(home=tmp_path / "home", postal_address="1 High Street", _env_file=None)


@pytest.fixture
def people(any_database: Database, now: datetime) -> tuple[Database, np.ndarray]:
    """Forty plain contacts, and seven awkward ones among them."""
    with any_database.writing() as session:
        names = [f"p{i}" for i in range(40)] + list(AWKWARD)
        found = resolve(session, [f"user:{name}" for name in names], now=now)
        for place, name in enumerate(names):
            plain = {
                "email": f"{name}@hidden.example", "first_name": f"Ann{place % 7}", "city": "Bath",
                "timezone": "Europe/Paris", "cart": {"total": place},
            }  # fmt: skip
            traits = {key: value for key, value in (plain | AWKWARD.get(name, {})).items() if value is not None}
            update_traits(session, {found[f"user:{name}"]: traits}, now=now + timedelta(minutes=place))
        keys = np.array(sorted(found.values()), dtype=np.int64)
    return any_database, keys


def test_the_awkward_contacts_are_among_the_samples(people: tuple[Database, np.ndarray], settings: Settings) -> None:
    """No name, the longest, other scripts, missing traits, no zone: each is found in the audience and shown, once."""
    database, keys = people
    page = template(
        f"<p>Hello {{{{ first_name | default: 'there' }}}} in {{{{ city | default: 'town' }}}}</p>{WAY_OUT}"
    )
    with database.reading() as session:
        found = rehearse(session, page, keys, settings, now=NOW, samples=12)
    why = {one["user_id"]: one["why"] for one in found.samples}
    assert len(why) == len(found.samples) <= 12
    assert "longest name" in why["long"]
    assert "written right to left" in why["arabic"] or "another script" in why["arabic"]
    assert any("another script" in reasons for reasons in (why.get("greek", []), why["arabic"]))
    assert "missing traits" in why["bare"]
    assert "no time zone" in why["no-zone"]
    assert any("no name" in why.get(name, []) for name in ("no-name", "bare"))
    assert sum(reasons == ["typical"] for reasons in why.values()) >= 2
    shown = {one["user_id"]: one for one in found.samples}
    assert LONG in shown["long"]["subject"]
    assert shown["long"]["subject_characters"] == len(LONG) + 3
    assert "Hello there in town" in shown["bare"]["text"]
    assert "فاطمة" in shown["arabic"]["html"]
    assert found.audience == found.examined == found.tried == len(keys) == 47
    assert not found.failures


def test_it_counts_who_lacks_what_the_mail_says(people: tuple[Database, np.ndarray], settings: Settings) -> None:
    """Set-wise over the audience; only what has neither a default nor a condition is a warning."""
    database, keys = people
    page = template(
        "<p>{{ first_name | default: 'x' }} {{ city }}{% if cart %}{{ cart.total }}{% endif %}</p>" + WAY_OUT
    )
    with database.reading() as session:
        found = rehearse(session, page, keys, settings, now=NOW)
    traits = {one["name"]: (one["lacking"], one["has_fall_back"]) for one in found.traits}
    assert traits == {"cart": (1, True), "city": (1, False), "first_name": (2, True)}
    [gap] = [one for one in found.warnings if one["kind"] == "trait-without-fall-back"]
    assert "2.13 % lack city" in gap["says"]


def test_no_address_is_told_even_where_a_template_prints_it(
    people: tuple[Database, np.ndarray], settings: Settings
) -> None:
    """User ids name the contacts; an address in subject, text, link or failure is veiled."""
    database, keys = people
    source = (
        '<p>{{ email }} <a href="https://shop.example/?who={{ email | url_encode }}">x</a>'
        f"{{% if first_name == 'Ann1' %}}{{{{ email | divided_by: 0 }}}}{{% endif %}}</p>{WAY_OUT}"
    )
    with database.reading() as session:
        found = rehearse(session, template(source, "For {{ email }}"), keys, settings, now=NOW)
    assert found.samples
    assert "hidden.example" not in repr(found)


def test_contacts_for_whom_the_template_fails_are_counted(
    people: tuple[Database, np.ndarray], settings: Settings
) -> None:
    """By reason, with some of those it concerns; the others' mails are made."""
    database, keys = people
    page = template(f"<p>{{{{ 100 | divided_by: cart.total }}}}</p>{WAY_OUT}")
    with database.reading() as session:
        found = rehearse(session, page, keys, settings, now=NOW)
    assert sum(one["contacts"] for one in found.failures) == 2  # p0, whose cart is empty, and who has none
    assert {user for one in found.failures for user in one["user_ids"]} == {"p0", "bare"}
    assert "divide" in found.failures[0]["reason"]


def test_it_warns_of_what_recipients_would_stumble_over(
    people: tuple[Database, np.ndarray], settings: Settings
) -> None:
    """Each fault of a bad template is named; a good one has none."""
    database, keys = people
    bad = (
        "<a>nowhere</a><a href='#'>top</a><img src='https://cdn.example/a.png'>"
        "<a href='https://shop.example/'><img src='https://cdn.example/b.png' alt=''></a>"
        "{% if nobody %}<a href='{{ unsubscribe_url }}'>out</a>{% endif %}"
    )
    good = (
        f"<p>Dear {{{{ first_name | default: 'friend' }}}}, here is a whole sentence about the new things.</p>{WAY_OUT}"
    )
    now = NOW
    with database.reading() as session:
        poor = rehearse(session, template(bad, "BUY NOW"), keys, settings, now=now, samples=3)
        fine = rehearse(session, template(good, "News"), keys, settings, now=now, samples=3)
    kinds = {one["kind"]: one for one in poor.warnings}
    assert set(kinds) == {
        "shouting-subject", "dead-anchor", "image-without-alt", "images-only", "no-unsubscribe",
    }  # fmt: skip
    assert "2 link(s)" in kinds["dead-anchor"]["says"]
    assert "2 picture(s)" in kinds["image-without-alt"]["says"]
    assert all(one["mails"] == 3 for one in kinds.values())
    assert poor.links == ("https://shop.example/",)
    assert fine.warnings == ()


def test_the_largest_mail_of_every_combination_of_arms_is_measured(
    people: tuple[Database, np.ndarray], settings: Settings
) -> None:
    """One combination passes Gmail's limit: it is named, even if the sample shown with it is another."""
    database, keys = people
    page = template(f"<div>{{% slot block %}}small{{% endslot %}}{{% slot foot %}}{{% endslot %}}</div>{WAY_OUT}")
    arms = {
        "subject": {"s1": "One", "s2": "Two"},
        "block": {"small": "<p>small</p>", "huge": "<p>" + "word " * (CLIP_BYTES // 5) + "</p>"},
    }
    now = NOW
    with database.reading() as session:
        found = rehearse(session, page, keys, settings, now=now, arms=arms, samples=4)
        many = {
            "block": {f"a{i}": f"<p>{i}</p>" for i in range(20)},
            "foot": {f"b{i}": f"<p>{i}</p>" for i in range(20)},
        }
        wide = rehearse(session, page, keys, settings, now=now, arms=many, samples=2)
    sizes = {(one["arms"]["subject"], one["arms"]["block"]): one for one in found.combinations}
    assert len(sizes) == 4
    assert {ids for ids, one in sizes.items() if one["is_clipped"]} == {("s1", "huge"), ("s2", "huge")}
    assert all(one["html_bytes"] > CLIP_BYTES for ids, one in sizes.items() if "huge" in ids)
    assert any(one["kind"] == "clipped" for one in found.warnings)
    assert {tuple(one["arms"].values()) for one in found.samples} == set(sizes)
    assert len(wide.combinations) == MOST_COMBINATIONS
    assert len(wide.samples) == 2


def test_nobody_to_write_to_is_no_fault(any_database: Database, settings: Settings) -> None:
    """An empty audience has an empty rehearsal; a number of samples beyond the limit is refused."""
    page, now = template(f"<p>{{{{ first_name }}}}</p>{WAY_OUT}"), NOW
    with any_database.reading() as session:
        found = rehearse(session, page, np.array([], dtype=np.int64), settings, now=now)
        assert (found.audience, found.samples, found.warnings) == (0, (), ())
        with pytest.raises(Invalid, match="samples 13"):
            rehearse(session, page, np.array([], dtype=np.int64), settings, now=now, samples=13)
