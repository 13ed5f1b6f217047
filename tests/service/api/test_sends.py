"""What a crash left open is closed or sent again over HTTP."""

from __future__ import annotations

from tests.service.mailing import plan, send_row, subscribe


def test_unknown_sends_are_listed_closed_and_sent_again(caller, database, now) -> None:
    """List by state, close one, send one again; each keeps who did it; neither works twice."""
    keys = subscribe(database, 2, now=now)
    first, second = plan(database, keys, now=now, state="unknown", reason="crash", finished_at=now)
    sender = caller("read", "send")
    listed = sender("GET", "/v1/sends?state=unknown").json()
    assert {item["id"] for item in listed["items"]} == {str(first), str(second)}
    closed = sender("POST", f"/v1/sends/{first}/close", json={"state": "accepted"})
    assert (closed.status_code, closed.json()["state"]) == (200, "accepted")
    again = sender("POST", f"/v1/sends/{second}/resend")
    assert (again.status_code, again.json()["state"]) == (200, "planned")
    assert "closed as accepted by " in send_row(database, first).reason
    for path, body in ((f"{first}/close", {"state": "failed"}), (f"{second}/resend", None)):
        refused = sender("POST", f"/v1/sends/{path}", json=body)
        assert refused.status_code == 409
        assert "only an unknown one" in refused.json()["detail"]


def test_closing_needs_the_scope_a_send_and_a_state(caller, database, now) -> None:
    """403 without ``send``, 404 for no send, 422 for a state that nobody may write."""
    [key] = subscribe(database, 1, now=now)
    [send_id] = plan(database, [key], now=now, state="unknown")
    assert caller("read")("POST", f"/v1/sends/{send_id}/resend").status_code == 403
    sender = caller("send")
    assert sender("POST", "/v1/sends/999999/resend").status_code == 404
    assert sender("POST", f"/v1/sends/{send_id}/close", json={"state": "planned"}).status_code == 422
