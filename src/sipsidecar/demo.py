"""Makes sample traffic: what a Kamailio proxy between phones and two trunks would mirror, and RTCP.

The plan is pure and follows from its seed; it knows how each of its calls ends. `play` sends it
as HEP in real time. Numbers, names and addresses are from the ranges reserved for examples.
"""

import asyncio
import heapq
import ipaddress
import itertools
import random
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from sipsidecar.wire import hep

AGENT_ID = 2001
DOMAIN = "example.com"
OUTCOMES = {
    "answered": 48, "busy": 10, "cancelled": 9, "challenged": 8, "failover": 8, "no answer": 5,
    "not found": 6, "register": 6,
}  # fmt: skip
"""What can happen, and how often in a hundred."""
_OPENING = (
    "register", "busy", "answered", "failover", "not found", "answered", "challenged", "cancelled",
)  # fmt: skip
_CALLS_PER_SECOND = 2.0
_PING_SECONDS = 10.0
_CODECS = {"0": "PCMU/8000", "8": "PCMA/8000", "111": "opus/48000/2", "101": "telephone-event/8000"}
_PHONES = ("ExamplePhone/2.1", "DeskSet 410 (1.0.7)", "SoftClient/5.3")
_RTP_PORT = 28100
_RTCP_SECONDS = 5.0
_LOSSY = 0.2
"""Share of calls that lose packets in one direction."""
_NTP_1970 = 2_208_988_800
_DIGEST = f'Digest username="demo", realm="{DOMAIN}", nonce="%s", uri="sip:{DOMAIN}", response="%s"'


class Endpoint(NamedTuple):
    """One end of a hop: an IPv4 address and a UDP port."""

    host: str
    port: int = 5060


PROXY = Endpoint("192.0.2.10")
TRUNKS = (Endpoint("203.0.113.31"), Endpoint("203.0.113.32"))


class Step(NamedTuple):
    """One message on the wire, `at` seconds after the start."""

    at: float
    source: Endpoint
    destination: Endpoint
    payload: bytes
    rtcp_of: str | None = None
    """Call-ID of an RTCP report, which goes as JSON (HEP type 5); None for SIP."""


class Truth(msgspec.Struct, frozen=True):
    """How a call of the plan ends."""

    call_id: str
    final_code: int
    released_by: str | None
    """caller or callee, as in a call record; None when the network refused."""
    attempts: tuple[int, ...]
    """Final codes towards the trunks, in the order they were tried."""


class Dialog(NamedTuple):
    """The messages of one call, registration or ping, by time; only a call has a truth."""

    steps: list[Step]
    truth: Truth | None


def dialogs(seed: int, run: str = "") -> Iterator[Dialog]:
    """Plan traffic without end, by start: short calls first, then about two calls a second.

    `run` goes into each Call-ID, so that two runs of one seed are different calls.
    """
    rng = random.Random(seed)  # noqa: S311  # sample traffic, no secrets
    start, ping = 0.1, 0.0
    for serial in itertools.count(1):
        while ping <= start:
            for trunk in TRUNKS:
                yield _Script(rng, f"{run}ping{ping:.0f}", ping, PROXY, brisk=True).ping(trunk)
            ping += _PING_SECONDS
        brisk = serial <= len(_OPENING)
        [outcome] = rng.choices(list(OUTCOMES), list(OUTCOMES.values()))
        if brisk:
            outcome = _OPENING[serial - 1]
        phone = Endpoint(f"198.51.100.{rng.randint(20, 80)}")
        script = _Script(rng, f"{run}{serial}", start, phone, brisk=brisk)
        yield script.register() if outcome == "register" else script.call(outcome)
        start += 0.25 if brisk else rng.expovariate(_CALLS_PER_SECOND)


def timeline(plan: Iterator[Dialog]) -> Iterator[Step]:
    """Merge dialogs, which come by start, into their messages by time."""
    waiting: list[tuple[float, int, Step]] = []
    order = itertools.count()
    for dialog in plan:
        while waiting and waiting[0][0] <= dialog.steps[0].at:
            yield heapq.heappop(waiting)[2]
        for step in dialog.steps:
            heapq.heappush(waiting, (step.at, next(order), step))
    yield from (step for _, _, step in sorted(waiting))


def truth(seed: int, seconds: float, run: str = "") -> dict[str, Truth]:
    """Tell, by Call-ID, how the calls end whose last message is sent within `seconds`."""
    started = itertools.takewhile(lambda dialog: dialog.steps[0].at <= seconds, dialogs(seed, run))
    return {
        dialog.truth.call_id: dialog.truth
        for dialog in started
        if dialog.truth and dialog.steps[-1].at <= seconds
    }


def datagram(step: Step, captured_at: int) -> bytes:
    """Turn a step into the HEP packet of the proxy's capture agent; microseconds UTC."""
    rtcp = step.rtcp_of is not None
    return hep.encode(
        source=ipaddress.IPv4Address(step.source.host).packed,
        destination=ipaddress.IPv4Address(step.destination.host).packed,
        source_port=step.source.port,
        destination_port=step.destination.port,
        captured_at=captured_at,
        agent_id=AGENT_ID,
        protocol_type=5 if rtcp else 1,
        correlation_id=step.rtcp_of.encode() if step.rtcp_of is not None else None,
        payload=step.payload,
    )


async def play(
    host: str, port: int, *, seed: int = 1, seconds: float | None = None, run: str | None = None
) -> int:
    """Send the plan over UDP as it would happen, stamped now; returns how many messages."""
    run = f"{secrets.token_hex(5)}-" if run is None else run
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=(host, port)
    )
    sent, start = 0, loop.time()
    try:
        for step in timeline(dialogs(seed, run)):
            if seconds is not None and step.at > seconds:
                break
            await asyncio.sleep(max(0.0, start + step.at - loop.time()))
            transport.sendto(datagram(step, time.time_ns() // 1000))
            sent += 1
    finally:
        transport.close()
    return sent


class _Hop(NamedTuple):
    """One transaction between two neighbours."""

    source: Endpoint
    destination: Endpoint
    vias: tuple[str, ...]
    uri: str
    method: str
    cseq: int
    backward: bool = False
    """From the callee's side: From and To change places."""


class _Script:
    """Writes the messages of one dialog, moving its own clock."""

    def __init__(
        self, rng: random.Random, name: str, start: float, caller: Endpoint, *, brisk: bool
    ) -> None:
        self.rng, self.at, self.caller, self.brisk = rng, start, caller, brisk
        self.steps: list[Step] = []
        self.call_id = f"{name}-{self._hex(8)}@{caller.host}"
        self.user = f"+1212555{rng.randint(100, 199):04d}"
        self.number = f"+44{rng.choice(('2079460', '7700900'))}{rng.randint(0, 999):03d}"
        self.uri = f"sip:{self.number}@{DOMAIN}"
        self.from_ = f"<sip:{self.user}@{DOMAIN}>;tag={self._hex(8)}"
        self.to, self.tag = f"<{self.uri}>", self._hex(8)
        self.contact = f"sip:{self.user}@{caller.host}:{caller.port}"
        self.agent = f"User-Agent: {rng.choice(_PHONES)}"
        self.route = f"<sip:{PROXY.host};lr;ftag={self.from_.rpartition('=')[2]}>"

    # the wire

    def _hex(self, digits: int) -> str:
        return f"{self.rng.getrandbits(4 * digits):0{digits}x}"

    def _wait(self, least: float, most: float) -> None:
        self.at += self.rng.uniform(least, most)

    def _send(self, source: Endpoint, destination: Endpoint, lines: list[str], sdp: str) -> None:
        """Put one message on the wire, seen by the proxy when it has come or gone."""
        if self.steps:
            self._wait(*((0.0003, 0.001) if source == PROXY else (0.004, 0.02)))
        if sdp:
            lines = [*lines, "Content-Type: application/sdp"]
        text = "\r\n".join([*lines, f"Content-Length: {len(sdp)}", "", sdp])
        self.steps.append(Step(self.at, source, destination, text.encode()))

    def _names(self, hop: _Hop, *, tagged: bool) -> list[str]:
        ends = [self.from_, f"{self.to};tag={self.tag}" if tagged else self.to]
        origin, target = reversed(ends) if hop.backward else ends
        cseq = f"CSeq: {hop.cseq} {hop.method}"
        return [f"From: {origin}", f"To: {target}", f"Call-ID: {self.call_id}", cseq]

    def _request(self, hop: _Hop, *headers: str, tagged: bool = False, sdp: str = "") -> None:
        vias = [f"Via: {via}" for via in hop.vias]
        names = self._names(hop, tagged=tagged)
        lines = [f"{hop.method} {hop.uri} SIP/2.0", *vias, *names]
        lines.append(f"Max-Forwards: {71 - len(vias)}")
        self._send(hop.source, hop.destination, [*lines, *headers], sdp)

    def _reply(self, hop: _Hop, status: str, *headers: str, sdp: str = "") -> None:
        names = self._names(hop, tagged=not status.startswith("100"))
        lines = [f"SIP/2.0 {status}", f"Via: {', '.join(hop.vias)}", *names, *headers]
        self._send(hop.destination, hop.source, lines, sdp)

    def _hop(self, source: Endpoint, destination: Endpoint, method: str, cseq: int = 1) -> _Hop:
        via = f"SIP/2.0/UDP {source.host}:{source.port};branch=z9hG4bK{self._hex(12)}"
        return _Hop(source, destination, (via,), self.uri, method, cseq)

    def _onward(self, hop: _Hop, destination: Endpoint, uri: str, number: int = 0) -> _Hop:
        via = f"SIP/2.0/UDP {PROXY.host};branch=z9hG4bK{self._hex(16)}.{number}"
        return hop._replace(source=PROXY, destination=destination, vias=(via, *hop.vias), uri=uri)

    # what happens

    def ping(self, trunk: Endpoint) -> Dialog:
        """Make one OPTIONS of the proxy to a trunk."""
        self.uri = f"sip:{trunk.host}:{trunk.port}"
        self.from_ = f"<sip:ping@{DOMAIN}>;tag={self._hex(8)}"
        self.to = f"<{self.uri}>"
        hop = self._hop(PROXY, trunk, "OPTIONS")
        self._request(hop, "User-Agent: kamailio")
        self._reply(hop, "200 OK")
        return Dialog(self.steps, None)

    def register(self) -> Dialog:
        """Make one REGISTER, challenged, and its retry."""
        self.uri = f"sip:{DOMAIN}"
        self.to = self.from_.partition(";")[0]
        contact = f"Contact: <{self.contact}>;expires=600"
        hop = self._hop(self.caller, PROXY, "REGISTER")
        self._request(hop, contact, self.agent)
        hop = self._challenged(hop, "401 Unauthorized", contact, self.agent)
        self._reply(hop, "200 OK", contact)
        return Dialog(self.steps, None)

    def call(self, outcome: str) -> Dialog:
        """Make one call that ends as told."""
        codecs = self.rng.choice((("0", "8"), ("8", "0"), ("111", "0", "8")))
        offer = _sdp(self.caller.host, codecs)
        headers = (f"Contact: <{self.contact}>", self.agent)
        hop = self._hop(self.caller, PROXY, "INVITE")
        self._request(hop, *headers, sdp=offer)
        if outcome == "challenged":
            hop = self._challenged(hop, "407 Proxy Authentication Required", *headers, sdp=offer)
        self._reply(hop, "100 Trying", "Server: kamailio")
        codes: tuple[int, ...] = ()
        if outcome == "failover":
            self._refuse(self._forward(hop, TRUNKS[0], offer, 0), "503 Service Unavailable")
            codes = (503,)
            self.tag = self._hex(8)
        trunk = TRUNKS[len(codes)]
        out = self._forward(hop, trunk, offer, len(codes))
        self._wait(0.1, 0.3 if self.brisk else 2.5)
        if outcome == "not found":
            return self._refused("404 Not Found", (out, hop))
        answer = _sdp(trunk.host, (self.rng.choice(codecs),))
        early = self.rng.random() < 0.2
        self._up(out, hop, *(("183 Session Progress", answer) if early else ("180 Ringing",)))
        self._wait(0.2, 0.5 if self.brisk else 6.0)
        if outcome == "busy":
            return self._refused("486 Busy Here", (out, hop))
        if outcome == "cancelled":
            self._cancel(hop)
            self._cancel(out)
            return self._refused("487 Request Terminated", (out, hop), "caller")
        if outcome == "no answer":
            self._wait(8, 12)
            self._cancel(out)
            self._refuse(out, "487 Request Terminated")
            self.tag = self._hex(8)  # now the proxy answers
            return self._refused("408 Request Timeout", (hop,), None, 487)
        self._up(out, hop, "200 OK", answer)
        self._through("ACK", trunk, hop.cseq)
        talk = min(self.rng.lognormvariate(2.8, 0.7), 90.0)
        if self.brisk:
            self._wait(0.6, 1.2)
        else:
            self._talk(talk, trunk)
        hung_up = self.rng.choice(("caller", "callee"))
        self._through("BYE", trunk, hop.cseq + 1, backward=hung_up == "callee")
        return Dialog(self.steps, Truth(self.call_id, 200, hung_up, (*codes, 200)))

    def _talk(self, seconds: float, trunk: Endpoint) -> None:
        """Let both sides send 50 packets a second and report what they hear."""
        start = self.at
        caller, callee = (
            Endpoint(self.caller.host, _RTP_PORT + 1),
            Endpoint(trunk.host, _RTP_PORT + 1),
        )
        ssrcs = {caller: self.rng.getrandbits(32), callee: self.rng.getrandbits(32)}
        deaf = self.rng.choice((caller, callee)) if self.rng.random() < _LOSSY else None
        lost = dict.fromkeys(ssrcs, 0)
        for number in range(1, int(seconds / _RTCP_SECONDS) + 1):
            for own, other in ((caller, callee), (callee, caller)):
                after = number * _RTCP_SECONDS + (0.4 if own == callee else 0.0)
                if after >= seconds:
                    continue
                self.at = start + after
                sent = int((self.at - start) * 50)
                lost_now = self.rng.randint(6, 14) if own == deaf else 0
                lost[own] += lost_now
                report = {
                    "sender_information": {
                        "ntp_timestamp_sec": _NTP_1970 + int(self.at),
                        "ntp_timestamp_usec": int(self.at % 1 * 2**32),
                        "octets": sent * 160,
                        "rtp_timestamp": sent * 160,
                        "packets": sent,
                    },
                    "ssrc": ssrcs[own],
                    "type": 200,
                    "report_count": 1,
                    "report_blocks": [
                        {
                            "source_ssrc": ssrcs[other],
                            "highest_seq_no": 1000 + sent,
                            "fraction_lost": lost_now * 256 // int(_RTCP_SECONDS * 50),
                            "ia_jitter": self.rng.randint(4, 40),
                            "packets_lost": lost[own],
                            "lsr": 0,
                            "dlsr": 0,
                        }
                    ],
                }
                payload = msgspec.json.encode(report)
                self.steps.append(Step(self.at, own, other, payload, self.call_id))
        self.at = start + seconds

    def _challenged(self, hop: _Hop, status: str, *headers: str, sdp: str = "") -> _Hop:
        """Refuse a request for its credentials and send it again with them."""
        ask, prove = "WWW-Authenticate", "Authorization"
        if hop.method == "INVITE":
            ask, prove = "Proxy-Authenticate", "Proxy-Authorization"
        nonce = self._hex(16)
        self._refuse(hop, status, f'{ask}: Digest realm="{DOMAIN}", nonce="{nonce}"')
        self.tag = self._hex(8)
        hop = self._hop(self.caller, PROXY, hop.method, 2)
        self._request(hop, *headers, f"{prove}: {_DIGEST % (nonce, self._hex(32))}", sdp=sdp)
        return hop

    def _forward(self, hop: _Hop, trunk: Endpoint, offer: str, number: int) -> _Hop:
        """Send the proxy's INVITE to a trunk, which says 100."""
        out = self._onward(hop, trunk, f"sip:{self.number}@{trunk.host}", number)
        contact = f"Contact: <{self.contact}>"
        self._request(out, f"Record-Route: {self.route}", contact, self.agent, sdp=offer)
        self._reply(out, "100 Trying")
        return out

    def _up(self, out: _Hop, hop: _Hop, status: str, sdp: str = "") -> None:
        """Relay a response of the trunk's side to the caller."""
        contact = f"Contact: <sip:{self.number}@{out.destination.host}>"
        for each in (out, hop):
            self._reply(each, status, f"Record-Route: {self.route}", contact, sdp=sdp)

    def _refuse(self, hop: _Hop, status: str, *headers: str) -> None:
        """Refuse on one hop; the ACK of a refusal is of the same transaction."""
        self._reply(hop, status, *headers)
        if hop.method == "INVITE":
            self._request(hop._replace(method="ACK", vias=hop.vias[:1]), tagged=True)

    def _refused(
        self, status: str, hops: Iterable[_Hop], by: str | None = None, *codes: int
    ) -> Dialog:
        for hop in hops:
            self._refuse(hop, status)
        code = int(status[:3])
        return Dialog(self.steps, Truth(self.call_id, code, by, codes or (code,)))

    def _cancel(self, hop: _Hop) -> None:
        cancel = hop._replace(method="CANCEL", vias=hop.vias[:1])
        self._request(cancel)
        self._reply(cancel, "200 OK")

    def _through(self, method: str, trunk: Endpoint, cseq: int, *, backward: bool = False) -> None:
        """Send a request of the dialog through the proxy; all but an ACK are answered."""
        callee = f"sip:{self.number}@{trunk.host}"
        near, far, uri = self.caller, trunk, callee
        if backward:
            near, far, uri = trunk, self.caller, self.contact
        hop = self._hop(near, PROXY, method, cseq)._replace(uri=uri, backward=backward)
        out = self._onward(hop, far, uri)
        self._request(hop, f"Route: {self.route}", tagged=True)
        self._request(out, tagged=True)
        if method != "ACK":
            self._reply(out, "200 OK")
            self._reply(hop, "200 OK")


def _sdp(host: str, formats: Iterable[str]) -> str:
    formats = (*formats, "101")
    lines = ["v=0", f"o=- 1 1 IN IP4 {host}", "s=-", f"c=IN IP4 {host}", "t=0 0"]
    lines.append(f"m=audio {_RTP_PORT} RTP/AVP {' '.join(formats)}")
    lines += [f"a=rtpmap:{number} {_CODECS[number]}" for number in formats]
    return "\r\n".join([*lines, "a=ptime:20", "a=sendrecv", ""])
