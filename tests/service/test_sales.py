"""Laws of sales: no money is lost on the way, and each order is credited as the learner credits it."""

import json
from collections import defaultdict
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from features.events import DAY_MICROS, LoggedEvent, NewEvent, append
from features.vocabulary import EMAIL_BOUNCED, EMAIL_CLICKED, ORDER_CANCELLED, ORDER_COMPLETED, ORDER_REFUNDED
from service.flow.reward.credit import Shown, credited, orders_of
from service.sales import Mails, OrderLines, credit_orders, net_orders, read_mails, read_orders
from service.tables import SendRow

DAY = DAY_MICROS
WINDOW = 7 * DAY

lines_of_a_shop = st.lists(
    st.tuples(
        st.integers(1, 3),  # contact
        st.integers(0, 60),  # day
        st.sampled_from([ORDER_COMPLETED, ORDER_COMPLETED, ORDER_CANCELLED, ORDER_REFUNDED]),
        st.sampled_from(["a", "b", "c", "d", None, "C9"]),
        st.sampled_from([None, None, 0, 1, 250, 999, 1_000, 10_000]),
        st.booleans(),  # without a value: in another currency?
    ),
    max_size=25,
)


def told(lines):
    """Rows as the log has them; the order of the list is the order of arrival, whatever the days say."""
    return [
        (key, day * DAY + seq, seq, kind, ref, value, None if value is not None else _properties(foreign))
        for seq, (key, day, kind, ref, value, foreign) in enumerate(lines, 1)
    ]


def _properties(foreign):
    return json.dumps({"revenue": 5, "currency": "USD"}) if foreign else None


@given(lines_of_a_shop)
def test_no_money_is_lost(lines):
    """Orders less what was taken back, capped per order, less credit notes: by plain arithmetic, to the minor unit."""
    rows = told(lines)
    orders = net_orders(OrderLines.of([rows]))
    first: dict = {}
    for key, at, seq, kind, ref, value, _ in sorted(rows, key=lambda row: row[1:3]):
        if kind == ORDER_COMPLETED:
            first.setdefault((key, ref or f"#{seq}"), (at, value or 0))
    named: dict = defaultdict(int)
    notes = 0
    for key, _, seq, kind, ref, value, properties in rows:
        if kind == ORDER_COMPLETED or properties:
            continue
        name = (key, ref or f"#{seq}")
        if name in first:
            named[name] += value or 10**9
        else:
            notes += value or 0
    expected = sum(value - min(named[name], value) for name, (_, value) in first.items()) - notes

    assert orders.net_minor.sum() - orders.return_minor.sum() == expected
    assert len(orders.net_minor) == len(first)
    assert (orders.net_minor >= 0).all()
    assert orders.is_foreign.sum() == sum(
        kind == ORDER_COMPLETED and bool(properties) and at == first[key, ref or f"#{seq}"][0]
        for key, at, seq, kind, ref, _, properties in rows
    )


mails_of_a_shop = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60)), max_size=12)
clicks_on_them = st.lists(st.tuples(st.integers(0, 11), st.integers(-2, 20)), max_size=12)


@given(lines_of_a_shop, mails_of_a_shop, clicks_on_them)
def test_an_order_is_credited_as_the_learner_credits_it(lines, sent, clicked):
    """The same mail as `service.flow.reward.credit` picks, and the same money where no credit note is in play."""
    sent = [(key, day * DAY + 500 + place) for place, (key, day) in enumerate(sent)]
    clicked = [(place, sent[place][1] + days * DAY) for place, days in clicked if place < len(sent)]
    rows = [row for row in told(lines) if row[4] != "C9" and row[4] is not None]
    orders = net_orders(OrderLines.of([rows]))
    ids = np.arange(1, len(sent) + 1)
    keys, at = np.array(sent, dtype=np.int64).reshape(-1, 2).T
    mails = Mails.of(ids, keys, at, np.ones(len(ids), dtype=bool))
    place = mails.place_of(np.array([one + 1 for one, _ in clicked], dtype=np.int64))
    got = credit_orders(
        orders.contact_key,
        orders.occurred_at,
        mails,
        place,
        np.array([when for _, when in clicked], dtype=np.int64),
        WINDOW,
    )
    ours = {
        (int(k), int(t)): (int(mails.send_id[m]) if m >= 0 else None, int(net), bool(undone))
        for k, t, m, net, undone in zip(
            orders.contact_key, orders.occurred_at, got, orders.net_minor, orders.is_undone, strict=True
        )
    }
    theirs = {}
    for key in {row[0] for row in rows}:
        events = [_logged(row) for row in rows if row[0] == key]
        shown = [
            Shown(f"{n:03}", "e", "a", 0, "", "revenue", WINDOW, n, when, who, False, None)
            for n, (who, when) in enumerate(sent, 1)
            if who == key
        ]
        events += [
            LoggedEvent(
                1_000 + n,
                key,
                EMAIL_CLICKED,
                when,
                when,
                f"c{n}",
                "",
                str(mail + 1),
                None,
                0,
                1_000_000,
                False,
                False,
                {},
            )
            for n, (mail, when) in enumerate(clicked)
            if sent[mail][0] == key
        ]
        found = orders_of(events)
        of = {order.seq: one.send_id for one, given_ in credited(shown, events, found).items() for order in given_}
        theirs |= {
            (key, order.occurred_at): (of.get(order.seq), order.stands_minor, order.undone_at is not None)
            for order in found
        }
    notes = {
        row[0]
        for row in rows
        if row[3] != ORDER_COMPLETED
        and row[4] not in {r[4] for r in rows if r[3] == ORDER_COMPLETED and r[0] == row[0]}
    }

    assert {place: one[0] for place, one in ours.items()} == {place: one[0] for place, one in theirs.items()}
    assert {p: one for p, one in ours.items() if p[0] not in notes} == {
        p: one for p, one in theirs.items() if p[0] not in notes
    }


def _logged(row):
    key, at, seq, kind, ref, value, properties = row
    return LoggedEvent(
        seq, key, kind, at, at, f"m{seq}", "", ref, value, 0, None, False, False, json.loads(properties or "{}")
    )


def test_a_credit_note_is_taken_off_the_latest_order_of_thirty_days():
    """What that order does not cover stands against the day of the note."""
    rows = [
        (1, 0, 1, ORDER_COMPLETED, "a", 1_000, None),
        (1, 10 * DAY, 2, ORDER_COMPLETED, "b", 500, None),
        (1, 20 * DAY, 3, ORDER_CANCELLED, "Cb", 300, None),
        (1, 21 * DAY, 4, ORDER_CANCELLED, "Cx", 300, None),
        (1, 90 * DAY, 5, ORDER_CANCELLED, "Cy", 70, None),
    ]
    orders = net_orders(OrderLines.of([rows]))

    assert orders.net_minor.tolist() == [1_000, 0]
    assert orders.is_undone.tolist() == [False, True]
    assert list(zip(orders.return_at // DAY, orders.return_minor, strict=True)) == [(21, 100), (90, 70)]


@pytest.mark.parametrize(
    ("state", "bounces", "clicks", "is_credited"),
    [
        ("accepted", False, False, True),
        ("accepted", True, False, False),
        ("accepted", True, True, True),
        ("unknown", False, False, False),
        ("unknown", False, True, True),
        ("held_out", False, False, False),
        ("failed", False, False, False),
    ],
)
def test_a_mail_earns_an_order_if_it_arrived(any_database, add_contacts, now, state, bounces, clicks, is_credited):
    """Accepted and not come back, or clicked by a person: read from the ledger and the log of either database."""
    at = int(now.timestamp()) * 1_000_000
    with any_database.writing() as session:
        (key,) = add_contacts(session, 1)
        session.execute(insert(SendRow), [_send(1, key, state, now)])
        events = [
            NewEvent(key, ORDER_COMPLETED, at - DAY + 100, "o1", "user:u0", "1", 700),
            NewEvent(key, EMAIL_CLICKED, at - DAY + 50, "c0", "user:u0", "1", human_ppm=1_000),
        ]
        events += [NewEvent(key, EMAIL_BOUNCED, at - DAY + 10, "b", "user:u0", "1")] * bounces
        events += [NewEvent(key, EMAIL_CLICKED, at - DAY + 20, "c", "user:u0", "1", human_ppm=900_000)] * clicks
        append(session, events, received_at=at)
    with any_database.reading() as session:
        orders = read_orders(session)
        mails, click_mail, click_at = read_mails(session, at - 9 * DAY, at)
        credit = credit_orders(orders.contact_key, orders.occurred_at, mails, click_mail, click_at, WINDOW)

    assert orders.net_minor.tolist() == [700]
    assert (credit >= 0).tolist() == [is_credited]


def _send(send_id, key, state, now):
    return {
        "send_id": send_id,
        "intent_key": f"s/{send_id}",
        "contact_key": key,
        "campaign_id": None,
        "stream": "marketing",
        "topic": "marketing",
        "template_id": "offer",
        "template_version": 1,
        "state": state,
        "due_at": now - timedelta(days=1),
        "not_after": now,
        "timezone": "UTC",
        "assigned_local_hour": 9,
        "hour_propensity": 1.0,
        "hour_reason": "best",
        "is_holdout": False,
        "created_at": now - timedelta(days=2),
        "finished_at": now - timedelta(days=1),
    }
