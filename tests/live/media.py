"""Calls with media through a real Kamailio and a real rtpengine, over networks of a known badness.

Two parties of the test's own make each call. What they sent, lost and heard is the truth that a
record is compared with.
"""

import asyncio
import contextlib
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live.programs import (
    Program,
    answers_options,
    free_port,
    kamailio_command,
    need,
    network,
    running,
    until,
)
from live.rtp import CLOCK_RATE, Address, Endpoint, Habits, Said

HERE = Path(__file__).parent
NEEDED = (("kamailio", "kamailio"), ("rtpengine", "rtpengine-daemon"))
"""Programs and the Debian packages that bring them."""
MEDIA_SECONDS = 16.0
REPORT_SECONDS = 2.0
"""Real parties report every 5 s (RFC 3550 6.2); a short test needs more reports than that."""
WORDS = {"caller_to_callee": "A -> B", "callee_to_caller": "B -> A"}


@dataclass(frozen=True)
class Case:
    """One call: the caller's habits and the callee's."""

    name: str
    """Begins the Call-ID."""
    caller: Habits = field(default_factory=Habits)
    callee: Habits = field(default_factory=Habits)


CASES = (
    Case("clean"),
    Case("clean-leaves", Habits(leaves=True), Habits(leaves=True)),
    Case("loss-1", Habits(loss=0.01)),
    Case("loss-5", Habits(loss=0.05)),
    Case("loss-20", Habits(loss=0.20)),
    Case("loss-5-back", callee=Habits(loss=0.05)),
    # Uniform delays of 0 to J ms are a jitter of J/3 by RFC 3550 A.8: 60 is near the threshold of
    # 20 ms, only 120 is well beyond it.
    Case("jitter-20", Habits(jitter_ms=20)),
    Case("jitter-40", Habits(jitter_ms=40)),
    Case("jitter-60", Habits(jitter_ms=60)),
    Case("jitter-120", Habits(jitter_ms=120)),
    Case("loss-5-jitter-40", *[Habits(loss=0.05, jitter_ms=40)] * 2),
    Case("far", *[Habits(delay_ms=100)] * 2),
    Case("far-loss-5", Habits(delay_ms=100, loss=0.05), Habits(delay_ms=100)),
    Case("one-way", callee=Habits(media=False)),
    Case("one-way-back", Habits(media=False)),
    Case("no-media", *[Habits(media=False)] * 2),
    Case("no-rtcp-back", callee=Habits(reports=False)),
    Case("nothing", *[Habits(media=False, reports=False)] * 2),
)


@dataclass(frozen=True)
class Heard:
    """The truth about one direction."""

    call_id: str
    sender: Habits
    ssrc: int
    sender_address: Address
    """Of media, as `receiver_address`."""
    receiver_address: Address
    sent: int
    """Packets that left the sender, `dropped` among them."""
    dropped: int
    arrived: int
    expected: int
    """By the receiver's own count of the whole call, as `lost`."""
    lost: int
    said: tuple[Said, ...]
    """The receiver's report blocks."""
    round_trip_ms: float | None
    """Between the parties: median of what they measured; None unless both of them could."""
    rtpengine_mos: float | None
    """Its mean for this direction, asked for right before the BYE."""

    @property
    def loss_percent(self) -> float | None:
        """Of the whole call."""
        return 100 * self.lost / self.expected if self.expected else None

    @property
    def jitter_ms(self) -> float | None:
        """Mean of what the receiver reported."""
        if not self.said:
            return None
        return statistics.fmean(one.jitter for one in self.said) / CLOCK_RATE * 1e3


@dataclass(frozen=True)
class Truth:
    """One call as its parties saw it."""

    case: Case
    directions: dict[str, Heard]
    """By the words of the `media` table."""


def run(
    folder: Path,
    collector: str,
    cases: Sequence[Case] = CASES,
    *,
    seconds: float = MEDIA_SECONDS,
    report_seconds: float = REPORT_SECONDS,
) -> dict[str, Truth]:
    """Make all calls at once, mirrored as HEP to `collector` (ADDR:PORT); the truth by Call-ID."""
    for program, package in NEEDED:
        need(program, package)
    net = network()
    proxy, ng = (f"{net}.1", free_port(f"{net}.1")), (f"{net}.2", free_port(f"{net}.2"))
    with _rtpengine(folder, ng, collector), _kamailio(folder, proxy, ng, collector):
        return asyncio.run(_calls(cases, net, proxy, ng, seconds, report_seconds))


@contextlib.contextmanager
def _rtpengine(folder: Path, ng: Address, collector: str) -> Iterator[Program]:
    command = [
        need("rtpengine", "rtpengine-daemon"),
        *("--config-file=none", "--table=-1", "--foreground", "--log-stderr", "--log-level=5"),
        *(f"--interface={ng[0]}", "--port-min=30000", "--port-max=39999", "--num-threads=2"),
        *(f"--listen-ng={ng[0]}:{ng[1]}", f"--pidfile={folder / 'rtpengine.pid'}"),
        *(f"--homer={collector}", "--homer-protocol=udp", "--homer-id=3001"),
    ]
    with running("rtpengine", command, folder) as program:

        def answers() -> bool | None:
            with contextlib.suppress(TimeoutError, OSError):
                return bool(asyncio.run(ask_rtpengine(ng, {"command": "ping"})))
            return None

        until("answer of rtpengine", answers, 20, program)
        yield program


@contextlib.contextmanager
def _kamailio(folder: Path, proxy: Address, ng: Address, collector: str) -> Iterator[Program]:
    command = kamailio_command(
        HERE / "kamailio-media-test.cfg",
        folder,
        {"PROXY_LISTEN": f"{proxy[0]}:{proxy[1]}"},
        strings={
            "SIPSIDECAR_URI": f"sip:{collector}",
            "SIPSIDECAR_RTPENGINE": f"udp:{ng[0]}:{ng[1]}",
        },
    )
    with running("kamailio", command, folder) as program:
        until("answer to OPTIONS", lambda: answers_options(*proxy), 20, program)
        yield program


async def _calls(
    cases: Sequence[Case],
    net: str,
    proxy: Address,
    ng: Address,
    seconds: float,
    report_seconds: float,
) -> dict[str, Truth]:
    calls = [
        _Call(case, number, (f"{net}.{10 + number}", f"{net}.{110 + number}"), report_seconds)
        for number, case in enumerate(cases)
    ]
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(call.make(proxy, ng, seconds)) for call in calls]
    return {call.call_id: truth.result() for call, truth in zip(calls, made, strict=True)}


class _Call:
    """One call: two phones and two endpoints of media."""

    def __init__(
        self, case: Case, number: int, addresses: tuple[str, str], report_seconds: float
    ) -> None:
        self.case = case
        self.number = number
        self.addresses = addresses
        self.call_id = f"{case.name}.{random.getrandbits(32):08x}@{addresses[0]}"
        # The same packets are lost in every run.
        self.caller = Endpoint(case.caller, 2 * number + 1, report_seconds)
        self.callee = Endpoint(case.callee, 2 * number + 2, report_seconds)

    async def make(self, proxy: Address, ng: Address, seconds: float) -> Truth:
        # A little apart, so that not all of them send in the same millisecond of each 20.
        await asyncio.sleep(self.number * 0.031)
        caller = await _Phone.open(self.addresses[0], self.call_id)
        callee = await _Phone.open(self.addresses[1], self.call_id)
        try:
            await self.caller.open(self.addresses[0])
            await self.callee.open(self.addresses[1])
            async with asyncio.timeout(seconds + 20), asyncio.TaskGroup() as group:
                group.create_task(self._answer(callee, seconds))
                return await self._call(caller, callee, proxy, ng, seconds)
        finally:
            for one in (caller, callee, self.caller, self.callee):
                one.close()

    async def _call(
        self, phone: "_Phone", peer: "_Phone", proxy: Address, ng: Address, seconds: float
    ) -> Truth:
        target = f"sip:callee@{peer.ip}:{peer.port}"
        start = phone.request("INVITE", target, 1, _sdp(self.caller.address))
        phone.send(start, proxy)
        while (answer := await phone.take()).status < 200:
            pass
        assert answer.status == 200, answer.text
        route = answer.header("Record-Route")
        dialog = {"To": answer.header("To"), "Route": route}
        phone.send(phone.request("ACK", answer.contact, 1, **dialog), proxy)
        self.caller.start(answer.media, seconds)
        longest = max(one.jitter_ms + one.delay_ms for one in (self.case.caller, self.case.callee))
        # A machine that stalls is late with the last packets.
        await asyncio.sleep(seconds + 0.3)
        self.caller.stop()
        self.callee.stop()
        # What is on its way arrives.
        await asyncio.sleep(longest / 1e3 + 0.1)
        query = {"command": "query", "call-id": self.call_id}
        asked = await ask_rtpengine(ng, query)
        assert asked["result"] == "ok", asked
        phone.send(phone.request("BYE", answer.contact, 2, **dialog), proxy)
        done = await phone.take()
        assert (done.method, done.status) == ("BYE", 200), done.text
        return Truth(
            self.case,
            {
                "caller_to_callee": _heard(self.call_id, self.caller, self.callee, asked),
                "callee_to_caller": _heard(self.call_id, self.callee, self.caller, asked),
            },
        )

    async def _answer(self, phone: "_Phone", seconds: float) -> None:
        offer = await phone.take()
        assert offer.method == "INVITE", offer.text
        phone.reply(offer, "180 Ringing")
        await asyncio.sleep(0.2)
        phone.reply(offer, "200 OK", _sdp(self.callee.address))
        ack = await phone.take()
        assert ack.method == "ACK", ack.text
        self.callee.start(offer.media, seconds)
        bye = await phone.take()
        assert bye.method == "BYE", bye.text
        phone.reply(bye, "200 OK")


def _heard(call_id: str, sender: Endpoint, receiver: Endpoint, asked: dict[str, Any]) -> Heard:
    state = receiver.receiver
    counted = state is not None and state.valid
    trips = [*sender.round_trips, *receiver.round_trips]
    both = sender.round_trips and receiver.round_trips
    # Its table names who reports: what stands under the receiver's SSRC is what the receiver heard.
    mos = asked.get("SSRC", {}).get(str(receiver.ssrc), {}).get("average MOS", {}).get("MOS")
    return Heard(
        call_id=call_id,
        sender=sender.habits,
        ssrc=sender.ssrc,
        sender_address=sender.address,
        receiver_address=receiver.address,
        sent=sender.sent,
        dropped=sender.dropped,
        arrived=receiver.arrived,
        expected=state.expected if state is not None and counted else 0,
        lost=state.lost if state is not None and counted else 0,
        said=tuple(receiver.said),
        round_trip_ms=statistics.median(trips) if both else None,
        rtpengine_mos=mos / 10 if mos else None,
    )


def _sdp(address: Address) -> str:
    ip, port = address
    lines = ["v=0", f"o=- 1 1 IN IP4 {ip}", "s=-", f"c=IN IP4 {ip}", "t=0 0"]
    lines += [f"m=audio {port} RTP/AVP 0", "a=rtpmap:0 PCMU/8000", "a=ptime:20", "a=sendrecv"]
    return "".join(f"{line}\r\n" for line in lines)


# ---------------------------------------------------------------------------------------------- SIP


@dataclass(frozen=True)
class _Message:
    """One SIP message that came to a phone."""

    text: str

    @property
    def status(self) -> int:
        """0 for a request."""
        first, second, *_ = self.text.split(maxsplit=2)
        return int(second) if first == "SIP/2.0" else 0

    @property
    def method(self) -> str:
        return self.header("CSeq").split()[1]

    def headers(self, name: str) -> list[str]:
        """All header lines of a name, as they came."""
        head = self.text.partition("\r\n\r\n")[0].split("\r\n")[1:]
        split = (line.partition(":") for line in head)
        return [value.strip() for key, _, value in split if key.lower() == name.lower()]

    def header(self, name: str) -> str:
        found = self.headers(name)
        assert found, f"no {name} in {self.text}"
        return found[0]

    @property
    def contact(self) -> str:
        return self.header("Contact").strip("<>")

    @property
    def media(self) -> Address:
        """Where its SDP wants RTP."""
        body = dict(line.split("=", 1) for line in self.text.split("\r\n") if line[1:2] == "=")
        return body["c"].split()[-1], int(body["m"].split()[1])


class _Phone(asyncio.DatagramProtocol):
    """Just as much SIP over UDP as one call needs; a loopback loses no messages."""

    def __init__(self, ip: str, call_id: str) -> None:
        self.ip = ip
        self.call_id = call_id
        self._tag = f"{random.getrandbits(32):08x}"
        self._inbox: asyncio.Queue[_Message] = asyncio.Queue()

    @classmethod
    async def open(cls, ip: str, call_id: str) -> "_Phone":
        _, phone = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: cls(ip, call_id), local_addr=(ip, 0)
        )
        return phone

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self.port: int = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._peer = addr
        self._inbox.put_nowait(_Message(data.decode()))

    async def take(self) -> _Message:
        return await self._inbox.get()

    def send(self, text: str, peer: Address) -> None:
        self._transport.sendto(text.encode(), peer)

    def request(self, method: str, uri: str, cseq: int, body: str = "", **dialog: str) -> str:
        """A request of the caller's; `dialog` has the headers To and Route once they are known."""
        headers = {
            "Via": f"SIP/2.0/UDP {self.ip}:{self.port};branch=z9hG4bK{random.getrandbits(64):x}",
            "From": f"<sip:caller@{self.ip}>;tag={self._tag}",
            "To": f"<{uri}>",
            "Call-ID": self.call_id,
            "CSeq": f"{cseq} {method}",
            "Contact": f"<sip:caller@{self.ip}:{self.port}>",
            "Max-Forwards": "70",
        }
        return _text(f"{method} {uri} SIP/2.0", [*(headers | dialog).items()], body)

    def reply(self, to: _Message, status: str, body: str = "") -> None:
        same = ("Via", "Record-Route", "From", "Call-ID", "CSeq")
        headers = [(name, value) for name in same for value in to.headers(name)]
        tagged = to.header("To") if ";tag=" in to.header("To") else f"{to.header('To')};tag=callee"
        headers += [("To", tagged), ("Contact", f"<sip:callee@{self.ip}:{self.port}>")]
        self.send(_text(f"SIP/2.0 {status}", headers, body), self._peer)

    def close(self) -> None:
        self._transport.close()


def _text(start: str, headers: list[tuple[str, str]], body: str) -> str:
    if body:
        headers = [*headers, ("Content-Type", "application/sdp")]
    lines = [start, *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body])


# ---------------------------------------------------------------------------------- rtpengine's NG


async def ask_rtpengine(address: Address, question: dict[str, str]) -> dict[str, Any]:
    """What rtpengine answers to one NG command."""
    came: asyncio.Queue[bytes] = asyncio.Queue()

    class Answer(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            came.put_nowait(data)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Answer, local_addr=(address[0], 0)
    )
    try:
        words = "".join(f"{len(word)}:{word}" for pair in sorted(question.items()) for word in pair)
        # The same cookie again would get the same answer again.
        cookie = f"{random.getrandbits(64):016x}"
        transport.sendto(f"{cookie} d{words}e".encode(), address)
        answer = await asyncio.wait_for(came.get(), 2)
    finally:
        transport.close()
    value, _ = _bdecode(answer, len(cookie) + 1)
    assert isinstance(value, dict)
    return value


def _bdecode(data: bytes, at: int) -> tuple[Any, int]:
    """A bencoded value, and where the next one begins."""
    first = data[at : at + 1]
    if first == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if first in b"ld":
        items, at = [], at + 1
        while data[at : at + 1] != b"e":
            item, at = _bdecode(data, at)
            items.append(item)
        return (items if first == b"l" else dict(zip(items[::2], items[1::2], strict=True))), at + 1
    colon = data.index(b":", at)
    end = colon + 1 + int(data[at:colon])
    return data[colon + 1 : end].decode(), end
