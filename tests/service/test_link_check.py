"""Laws of looking at links: what is dead is named, each is asked once, and nobody looks into our own network."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import httpcore
import pytest

from service.link_check import check_links, is_public


class Shop(ThreadingHTTPServer):
    """A server on loopback that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        super().__init__(("127.0.0.1", 0), Pages)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Pages(BaseHTTPRequestHandler):
    server: Shop

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        self.server.asked[method, self.path] += 1
        if self.path == "/slow":
            time.sleep(1.0)
        status = {"/": 200, "/gone": 410, "/broken": 500, "/moved": 302, "/lost": 302, "/inward": 302, "/members": 403,
                  "/round": 302, "/file": 302, "/slow": 200, "/noheads": 200 if method == "GET" else 501}  # fmt: skip
        targets = {"/moved": "/", "/lost": "/gone", "/inward": "http://[::1]:1/", "/round": "/round",
                   "/file": "file:///etc/passwd"}  # fmt: skip
        self.send_response(status.get(self.path, 404))
        if self.path in targets:
            self.send_header("Location", targets[self.path])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with Shop() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_dead_links_are_named_with_what_they_answered(shop: Shop) -> None:
    """Gone, broken, lost behind a redirect, endless, to no server: each its reason; what lives has none."""
    paths = ["/", "/moved", "/members", "/noheads", "/gone", "/broken", "/lost", "/nowhere", "/round", "/file"]
    found = check_links([f"{shop.url}{path}" for path in paths], allow_private=True)
    said = {url.removeprefix(shop.url): why for url, why in found.items()}
    assert {path for path, why in said.items() if why is None} == {"/", "/moved", "/members", "/noheads"}
    assert said["/gone"] == said["/lost"] == "answers 410"
    assert said["/broken"] == "answers 500"
    assert said["/nowhere"] == "answers 404"
    assert "redirects" in str(said["/round"])
    assert "file:///etc/passwd" in str(said["/file"])


def test_an_address_is_asked_once_however_often_it_stands_in_the_mails(shop: Shop) -> None:
    """Twelve mails with one link are one request."""
    shop.asked.clear()
    check_links([f"{shop.url}/?once"] * 12, allow_private=True)
    assert shop.asked == {("HEAD", "/?once"): 1, ("GET", "/?once"): 1}  # 404 to HEAD is asked again by GET


def test_nobody_waits_for_a_server_that_does_not_answer(shop: Shop) -> None:
    """A stalled server and a closed port end in time, with the reason."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/"
    began = time.monotonic()
    found = check_links([f"{shop.url}/slow", closed], allow_private=True, timeout_seconds=0.2)
    assert time.monotonic() - began < 1.0
    assert found[f"{shop.url}/slow"] == "no answer within 0.2 s"
    assert "cannot be reached" in str(found[closed])


def test_a_resolver_that_hangs_holds_nobody_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a name knows no limit of its own; the other links are answered for in time."""
    release = threading.Event()
    real = socket.getaddrinfo

    def hanging(host: str, *rest: object, **more: object) -> object:
        if host == "stuck.example":
            release.wait(30)
            raise socket.gaierror("gone")
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    found = check_links(["http://stuck.example/", f"{shop.url}/"], allow_private=True, overall_seconds=1.0)
    release.set()
    assert found == {"http://stuck.example/": "was not answered for within 1 s", f"{shop.url}/": None}


def test_no_link_looks_into_our_own_network(shop: Shop) -> None:
    """Loopback by any spelling, link-local metadata, mapped and tunnelled addresses: refused before a connection."""
    shop.asked.clear()
    port = shop.server_port
    inward = [
        shop.url,
        f"http://localhost:{port}/",
        f"http://2130706433:{port}/",
        f"http://[::ffff:127.0.0.1]:{port}/",
        f"http://[::1]:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[2002:7f00:1::]/",
        "http://[64:ff9b::7f00:1]/",
        f"http://0.0.0.0:{port}/",
    ]
    found = check_links(inward)
    assert not shop.asked
    assert all("private network" in str(why) for why in found.values()), found


def test_a_name_cannot_change_its_address_between_the_look_and_the_connection(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose second answer is loopback is asked for once: the connection goes to the address that was checked."""
    looked = Counter[str]()
    real = socket.getaddrinfo

    def rebinding(host: str, *rest: object, **more: object) -> object:
        if host != "rebind.example":
            return real(host, *rest, **more)
        looked[host] += 1
        address = "8.8.8.8" if looked[host] == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, shop.server_port))]

    connected: list[str] = []

    def connect(_self: object, host: str, *_: object, **__: object) -> httpcore.NetworkStream:
        connected.append(host)  # nothing of the tests leaves this machine
        raise httpcore.ConnectError("not from here")

    shop.asked.clear()
    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    found = check_links([f"http://rebind.example:{shop.server_port}/"], timeout_seconds=0.2)
    assert connected == ["8.8.8.8"]
    assert looked["rebind.example"] == 1
    assert not shop.asked
    assert list(found.values()) == ["cannot be reached: not from here"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("224.0.0.1", False), ("100.64.0.1", False),
     ("::ffff:10.0.0.1", False), ("fe80::1", False), ("fd00::1", False), ("2002:a00:1::", False)],
)  # fmt: skip
def test_what_is_public(address: str, expected: bool) -> None:
    """Python 3.11 alone would let the mapped and the tunnelled ones through."""
    assert is_public(ip_address(address)) is expected
