"""Laws of tokens and link targets."""

from __future__ import annotations

import string
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.database import Database
from service.links import (
    LARGEST_ID,
    BadToken,
    LinkBook,
    link_ids,
    link_url,
    read_bounce,
    read_click,
    read_open,
    read_unsubscribe,
    sign_bounce,
    sign_click,
    sign_open,
    sign_unsubscribe,
)

KEY = "a key"
ids = st.integers(0, LARGEST_ID)
ALPHABET = string.ascii_letters + string.digits + "-_"


@given(ids, ids)
def test_a_token_reads_back_what_was_signed(send_id: int, link_id: int) -> None:
    """Reading a token gives the numbers that were signed."""
    assert read_open(KEY, sign_open(KEY, send_id)) == send_id
    assert read_click(KEY, sign_click(KEY, send_id, link_id)) == (send_id, link_id)
    assert read_unsubscribe(KEY, sign_unsubscribe(KEY, send_id)) == send_id


@given(ids, ids)
def test_a_token_stays_below_forty_characters(send_id: int, link_id: int) -> None:
    """No id makes a token so long that a header that carries it would be folded."""
    assert max(len(sign_click(KEY, send_id, link_id)), len(sign_unsubscribe(KEY, send_id))) < 40


@given(ids)
def test_a_return_path_survives_a_change_of_case(send_id: int) -> None:
    """Relays may write a local part in capitals; its token fits beside ``b+`` in 64 octets and reads back."""
    token = sign_bounce(KEY, send_id)
    assert set(token) <= set("0123456789abcdefghijklmnopqrstuv")
    assert len("b+" + token) <= 64
    assert read_bounce(KEY, token) == read_bounce(KEY, token.upper()) == send_id


@given(ids, st.data())
def test_a_forged_return_path_is_refused(send_id: int, data: st.DataObject) -> None:
    """A bounce that names a send we did not sign suppresses nobody; nor does a token of another purpose."""
    token = sign_bounce(KEY, send_id)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from([sign for sign in "0123456789abcdefghijklmnopqrstuv" if sign != token[place]]))
    for forged in (
        token[:place] + other + token[place + 1 :],
        token[:-1],
        token + "0",
        sign_open(KEY, send_id),
        "",
        "=",
    ):
        with pytest.raises(BadToken):
            read_bounce(KEY, forged)
    with pytest.raises(BadToken):
        read_bounce("another key", token)


@given(ids, ids, st.data())
def test_a_changed_character_is_refused(send_id: int, link_id: int, data: st.DataObject) -> None:
    """A token with one character changed, added or taken away is not ours."""
    token = sign_click(KEY, send_id, link_id)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from([sign for sign in ALPHABET if sign != token[place]]))
    for forged in (token[:place] + other + token[place + 1 :], token[:place] + token[place + 1 :], token + other):
        with pytest.raises(BadToken):
            read_click(KEY, forged)


@given(ids)
def test_a_purpose_does_not_open_another(send_id: int) -> None:
    """An open token neither unsubscribes nor clicks, under any reading; nor does another key's."""
    for read in (read_unsubscribe, read_click):
        with pytest.raises(BadToken):
            read(KEY, sign_open(KEY, send_id))
    with pytest.raises(BadToken):
        read_open(KEY, sign_unsubscribe(KEY, send_id))
    with pytest.raises(BadToken):
        read_open("another key", sign_open(KEY, send_id))


@given(st.text(max_size=80))
def test_any_text_is_refused_as_a_token(text: str) -> None:
    """Whatever stands in the address, reading it raises BadToken and nothing else."""
    with pytest.raises(BadToken):
        read_click(KEY, text)


def test_a_target_has_one_number(any_database: Database) -> None:
    """The same address gets the same number again, in a batch and across transactions."""
    with any_database.writing() as session:
        first = link_ids(session, ["https://a.example/1", "https://a.example/2", "https://a.example/1"])
    with any_database.writing() as session:
        again = link_ids(session, ["https://a.example/2", "https://a.example/3"])
        assert again["https://a.example/2"] == first["https://a.example/2"]
        assert len({*first.values(), *again.values()}) == 3
        assert link_url(session, first["https://a.example/1"]) == "https://a.example/1"
        assert link_url(session, 10**6) is None


def test_writers_that_race_for_a_target_agree(any_database: Database) -> None:
    """Threads that register the same new targets at once end with the same numbers."""
    urls = [f"https://a.example/{i}" for i in range(40)]

    def register(_: int) -> dict[str, int]:
        return LinkBook(any_database)(urls)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(register, range(6)))
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "//evil.example",
        "/relative",
        "data:text/html,x",
        "https://a b",
        "http:\\\\evil",
        "ftp://a",
    ],
)
def test_only_web_addresses_become_targets(database: Database, url: str) -> None:
    """Nothing but an absolute http(s) address can be redirected to."""
    with database.writing() as session, pytest.raises(ValueError, match="absolute http"):
        link_ids(session, [url])
