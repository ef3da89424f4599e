"""A world whose clock the test owns: golden flows as real SIP over HEP into a real pipeline."""

import random
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from sipsidecar.calls.dialog import Timing
from sipsidecar.calls.events import AttemptRecord, CallRecord, PingRecord, RegistrationRecord
from sipsidecar.pipeline import Output, Pipeline, Stored
from sipsidecar.wire import hep

EPOCH = 1_795_000_000_000_000
"""Microseconds UTC at which every simulated world begins."""
ADDRESSES = {
    "A": "192.0.2.1",
    "B": "198.51.100.2",
    "C": "198.51.100.3",
    "D": "198.51.100.4",
    "P": "203.0.113.5",
    "Q": "203.0.113.6",
}
PHRASES = {
    100: "Trying",
    180: "Ringing",
    183: "Session Progress",
    200: "OK",
    302: "Moved Temporarily",
    401: "Unauthorized",
    407: "Proxy Authentication Required",
    422: "Session Interval Too Small",
    486: "Busy Here",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    503: "Service Unavailable",
}
SDP = "v=0\r\no=- 1 1 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\nm=audio 4000 RTP/AVP {formats}\r\n"


@dataclass(frozen=True)
class Line:
    """One message of a golden flow: `t src>dst START cseq/METHOD branch from_tag to_tag [k=v ...]`."""

    at: float
    source: str
    destination: str
    start: str
    cseq: int
    method: str
    branch: str
    from_tag: str
    to_tag: str
    extra: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> "Line":
        at, hop, start, cseq, branch, from_tag, to_tag, *extra = text.split()
        source, destination = hop.split(">")
        number, method = cseq.split("/")
        pairs = dict(item.split("=", 1) for item in extra)
        return cls(
            float(at),
            source,
            destination,
            start,
            int(number),
            method,
            branch,
            from_tag,
            "" if to_tag == "-" else to_tag,
            pairs,
        )


def sip_text(line: Line, call_id: str, parent: str | None = None) -> bytes:
    """The message a line stands for, as a user agent would write it."""
    if line.start.isdigit():
        first = f"SIP/2.0 {line.start} {PHRASES.get(int(line.start), 'Some Reason')}"
        via_host = ADDRESSES[line.destination]
    else:
        first = f"{line.start} sip:bob@example.net SIP/2.0"
        via_host = ADDRESSES[line.source]
    to_tag = f";tag={line.to_tag}" if line.to_tag else ""
    lines = [first, f"Via: SIP/2.0/UDP {via_host}:5060;branch=z9hG4bK{line.branch}"]
    if parent:
        lines.append(f"Via: SIP/2.0/UDP {ADDRESSES['A']}:5060;branch=z9hG4bK{parent}")
    lines += [
        f'From: "Alice" <sip:alice@example.com>;tag={line.from_tag}',
        f"To: <sip:bob@example.net>{to_tag}",
        f"Call-ID: {call_id}",
        f"CSeq: {line.cseq} {line.method}",
        "Max-Forwards: 70",
    ]
    if "reason" in line.extra:
        lines.append(f"Reason: {line.extra['reason']}")
    if "se" in line.extra:
        lines.append(f"Session-Expires: {line.extra['se']}")
    body = ""
    if "sdp" in line.extra:
        body = SDP.format(ip=ADDRESSES[line.source], formats=line.extra["sdp"].replace(",", " "))
        lines.append("Content-Type: application/sdp")
    lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def packet(
    line: Line, call_id: str, *, agent_id: int = 2001, parent: str | None = None, skew_us: int = 0
) -> bytes:
    """A line as the HEP3 datagram an agent would send."""
    return hep.encode(
        source=socket.inet_aton(ADDRESSES[line.source]),
        destination=socket.inet_aton(ADDRESSES[line.destination]),
        source_port=5060,
        destination_port=5060,
        ip_protocol=17,
        captured_at=EPOCH + round(line.at * 1_000_000) + skew_us,
        protocol_type=1,
        agent_id=agent_id,
        payload=sip_text(line, call_id, parent),
    )


class World:
    """A pipeline, its clock, and what has come out of it."""

    def __init__(self, timing: Timing | None = None, **settings: object) -> None:
        self.pipeline = Pipeline(timing, **settings)  # type: ignore[arg-type]
        self.now = 0.0
        self.outputs: list[Output] = []
        self.stored: list[Stored] = []

    def send(self, datagram: bytes, at: float | None = None, peer: str = "203.0.113.5") -> None:
        """One packet arrives at `at` seconds of this world."""
        if at is not None:
            self.run_until(at)
        self.pipeline.receive(datagram, self.now, EPOCH + round(self.now * 1_000_000), peer)
        self._drain()

    def run_until(self, at: float) -> None:
        """Let time pass, with every timer on its way."""
        while (due := self.pipeline.next_timer()) is not None and due <= at:
            self.now = max(self.now, due)
            self.pipeline.handle_timer(self.now)
            self._drain()
        self.now = max(self.now, at)

    def run_out(self) -> None:
        """Let every timer run out."""
        self.pipeline.flush(self.now)
        while (due := self.pipeline.next_timer()) is not None:
            self.run_until(due)
        self._drain()

    def _drain(self) -> None:
        self.outputs += self.pipeline.records()
        self.stored += self.pipeline.stored()

    def calls(self) -> list[CallRecord]:
        """The newest revision of each call."""
        newest: dict[tuple[str, str], CallRecord] = {}
        for record in self.outputs:
            if isinstance(record, CallRecord):
                newest[record.call_id, record.from_tag] = record
        return list(newest.values())

    def attempts(self) -> list[AttemptRecord]:
        """The newest revision of each attempt."""
        newest: dict[tuple[str, str, str], AttemptRecord] = {}
        for record in self.outputs:
            if isinstance(record, AttemptRecord):
                newest[record.call_id, record.from_tag, record.branch] = record
        return list(newest.values())

    def call(self) -> CallRecord:
        """The only call."""
        (record,) = self.calls()
        return record

    def registrations(self) -> list[RegistrationRecord]:
        return [r for r in self.outputs if isinstance(r, RegistrationRecord)]

    def pings(self) -> list[PingRecord]:
        return [r for r in self.outputs if isinstance(r, PingRecord)]


def play(
    lines: Iterable[str],
    *,
    order: Sequence[int] | None = None,
    call_id: str = "flow@example.com",
    parents: dict[str, str] | None = None,
    spread: float = 0.001,
    agents: Sequence[tuple[int, int]] = ((2001, 0),),
) -> World:
    """A whole flow, its messages arriving in `order` (indices, repeats allowed) within moments.

    `agents` is (capture id, clock skew in microseconds) of each tap that sees every message.
    """
    parsed = [Line.of(text) for text in lines]
    world = World()
    for step, index in enumerate(order if order is not None else range(len(parsed))):
        line = parsed[index]
        parent = (parents or {}).get(line.branch)
        for tap, (agent_id, skew_us) in enumerate(agents):
            data = packet(line, call_id, agent_id=agent_id, parent=parent, skew_us=skew_us)
            # the first tap is the proxy P itself, which sends HEP from its own address
            world.send(data, step * spread, peer=f"203.0.113.{5 + tap}")
    world.run_out()
    return world


def shuffled(count: int, rng: random.Random) -> list[int]:
    """A random arrival order with random duplicates."""
    order = list(range(count)) + [rng.randrange(count) for _ in range(rng.randrange(count + 1))]
    rng.shuffle(order)
    return order


def comparable(record: CallRecord | AttemptRecord) -> dict[str, object]:
    """A record without what this sidecar's own clock puts into it."""
    fields = msgspec.structs.asdict(record)
    for name in ("received_at", "revision"):
        del fields[name]
    return fields
