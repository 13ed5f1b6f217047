"""A name server on this machine that answers what a test tells it, by UDP, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from types import TracebackType

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class LocalNames:
    """Answers questions from ``records``: name → type → texts as a zone file has them; all else does not exist.

    A name whose records are None is never answered; one whose records are ``"SERVFAIL"`` answers that it cannot.
    """

    def __init__(self, records: dict[str, dict[str, list[str]] | str | None]) -> None:
        self.records = records
        self.asked: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> str:
        """What ``DNS_SERVER`` takes to reach it."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> LocalNames:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            wire, sender = self._socket.recvfrom(4_096)
            if not wire:
                return
            question = dns.message.from_wire(wire)
            [asked] = question.question
            name, kind = str(asked.name).rstrip(".").lower(), dns.rdatatype.to_text(asked.rdtype)
            self.asked[f"{name} {kind}"] += 1
            known = self.records.get(name, {})
            if known is None:
                continue
            answer = dns.message.make_response(question)
            answer.flags |= dns.flags.RA
            if isinstance(known, str):
                answer.set_rcode(dns.rcode.from_text(known))
            elif name not in self.records:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            elif kind in known:
                answer.answer.append(dns.rrset.from_text_list(asked.name, 300, "IN", kind, known[kind]))
            self._socket.sendto(answer.to_wire(max_size=65_000), sender)
