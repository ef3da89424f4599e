"""Calls through a proxy to a trunk that refuses some of them, as a capture of HEP with real SIP."""

import random
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from bench import diagnosing
from sipsidecar.wire import hep, pcap

PROXY, TRUNK = "203.0.113.5", "198.51.100.7"
COHORTS = f"""
[[cohorts.match]]
trunk = "acme"
carrier = "acme-tel"
destinations = ["{TRUNK}/32"]
"""


@dataclass(frozen=True)
class Sent:
    """One call of a capture."""

    call_id: str
    failed: bool
    has_cause: bool


def capture(
    path: Path,
    *,
    cause: str = "a codec line",
    calls: int = 120,
    failing: int = 24,
    seconds_ago: float = 3600.0,
    challenged: bool = False,
    seed: int = 1,
) -> list[Sent]:
    """Write the calls of an hour: 400 from the trunk for the failing ones, 200 for the others.

    With `challenged` the caller's first INVITE is answered by 407, and lacks the cause.
    """
    rng = random.Random(seed)
    failed = [True] * failing + [False] * (calls - failing)
    rng.shuffle(failed)
    began = time.time_ns() // 1000 - int(seconds_ago * 1e6)
    sent, records = [], [(0, pcap.file_header())]
    for number, one in enumerate(failed):
        plain = diagnosing.written(rng, number)
        text = plain.text()
        has_cause = cause != diagnosing.NONE and rng.random() < (
            diagnosing.WITH_FAILING if one else diagnosing.WITH_GOOD
        )
        if has_cause:
            diagnosing.plant(cause, plain)
        at = began + int(seconds_ago * 0.9e6 * number / calls)
        fields = dict(plain.headers)
        wire = _Wire(plain.phone.source, fields, at, number)
        if challenged:
            wire.challenge(text, 1)
        wire.call(plain.text(), 400 if one else 200, 2 if challenged else 1)
        records += wire.records
        sent.append(Sent(fields["Call-ID"], one, has_cause))
    path.write_bytes(b"".join(data for _, data in sorted(records, key=lambda record: record[0])))
    return sent


class _Wire:
    """One call's messages as HEP packets, by time."""

    def __init__(self, phone: str, fields: dict[str, str], at: int, number: int) -> None:
        self.phone = phone
        self.fields = fields
        self.at = at
        self.number = number
        self.records: list[tuple[int, bytes]] = []

    def challenge(self, text: bytes, cseq: int) -> None:
        self._send(self.phone, PROXY, self._invite(text, cseq, f"in{cseq}"))
        self._send(PROXY, self.phone, self._reply(407, cseq, [self._via(self.phone, f"in{cseq}")]))

    def call(self, text: bytes, code: int, cseq: int) -> None:
        caller = self._via(self.phone, f"in{cseq}")
        invite = self._invite(text, cseq, f"in{cseq}")
        own = self._via(PROXY, f"out{cseq}")
        self._send(self.phone, PROXY, invite)
        line, _, rest = invite.partition(b"\r\n")
        self._send(PROXY, TRUNK, line + f"\r\nVia: {own}\r\n".encode() + rest)
        self._send(TRUNK, PROXY, self._reply(code, cseq, [own, caller]))
        self._send(PROXY, self.phone, self._reply(code, cseq, [caller]))
        for source, target, via in ((PROXY, TRUNK, own), (self.phone, PROXY, caller)):
            self._send(source, target, self._request("ACK", cseq, via))
        if code == 200:
            bye = self._via(self.phone, "bye")
            self._send(self.phone, PROXY, self._request("BYE", cseq + 1, bye))
            self._send(PROXY, self.phone, self._reply(200, cseq + 1, [bye], "BYE"))

    def _via(self, host: str, branch: str) -> str:
        return f"SIP/2.0/UDP {host}:5060;branch=z9hG4bK{branch}-{self.number}"

    def _invite(self, text: bytes, cseq: int, branch: str) -> bytes:
        text = text.replace(
            f"Via: {self.fields['Via']}".encode(), f"Via: {self._via(self.phone, branch)}".encode()
        )
        return text.replace(
            f"CSeq: {self.fields['CSeq']}".encode(), f"CSeq: {cseq} INVITE".encode()
        )

    def _request(self, method: str, cseq: int, via: str) -> bytes:
        return self._message(f"{method} sip:x@{PROXY} SIP/2.0", [via], cseq, method, ";tag=far")

    def _reply(self, code: int, cseq: int, vias: list[str], method: str = "INVITE") -> bytes:
        return self._message(f"SIP/2.0 {code} Said", vias, cseq, method, f";tag=far{code // 400}")

    def _message(self, start: str, vias: list[str], cseq: int, method: str, tag: str) -> bytes:
        fields = self.fields
        return (
            f"{start}\r\n{''.join(f'Via: {via}' + chr(13) + chr(10) for via in vias)}"
            f"From: {fields['From']}\r\nTo: {fields['To']}{tag}\r\nCall-ID: {fields['Call-ID']}\r\n"
            f"CSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    def _send(self, source: str, destination: str, payload: bytes) -> None:
        self.at += 20_000
        ends = (socket.inet_aton(source), socket.inet_aton(destination))
        packet = hep.encode(
            source=ends[0],
            destination=ends[1],
            source_port=5060,
            destination_port=5060,
            ip_protocol=17,
            captured_at=self.at,
            protocol_type=1,
            agent_id=2001,
            payload=payload,
        )
        self.records.append((self.at, pcap.udp_record(self.at, *ends, 9060, 9060, packet)))
