"""Two parties that talk through a media proxy, as their RTCP and SDP tell it."""

import ipaddress
from dataclasses import dataclass, field, replace

from sipsidecar.calls.call import Endpoint
from sipsidecar.calls.media import Facts, Media, derive
from sipsidecar.calls.negotiation import Agreement, MediaSide, Negotiation
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import rtcp, sdp

START = 1_790_000_000_000_000
"""When media begins, microseconds UTC."""
CALLER_SSRC, CALLEE_SSRC = 0x11111111, 0x22222222
NTP_1970 = 2_208_988_800
NOWHERE: Endpoint = (b"", 0)

Seen = tuple[rtcp.Report, Endpoint, Endpoint, int, int]
"""What `Facts.see_report` takes."""


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def rtcp_of(ip: str, port: int) -> Endpoint:
    """Where the reports of a side at this RTP address come from."""
    return packed(ip), port + 1


def side(ip: str, port: int, **fields: object) -> MediaSide:
    """One end of a leg."""
    address = packed(ip) if ip else b""
    plain = MediaSide(
        address, ip, port, address, port + 1, ("PCMU",), "sendrecv", False, False, False
    )
    return _changed(plain, fields)


def _changed(plain: MediaSide, fields: dict[str, object]) -> MediaSide:
    values = {name: getattr(plain, name) for name in plain.__struct_fields__}
    return MediaSide(**(values | fields))


CALLER = side("192.0.2.1", 4000)
CALLEE = side("198.51.100.2", 6000)
TO_CALLER = side("203.0.113.9", 30_000)
"""The proxy, as the caller sees it."""
TO_CALLEE = side("203.0.113.9", 30_100)


def agreement(
    leg: str,
    caller: MediaSide,
    callee: MediaSide,
    codec: str | None = "PCMU",
    *,
    clock_rate: int = 8000,
    fmtp: str | None = None,
    ptime_ms: int | None = 20,
    at: float = -1.0,
    via: str = "invite",
    offered_by: str = "caller",
    flow: str = "both",
    early: bool = False,
) -> Agreement:
    """A completed offer and answer, `at` seconds after media begins."""
    agreed = sdp.Codec(0, codec, clock_rate, 1, fmtp) if codec else None
    when = START + round(at * 1e6)
    return Agreement(leg, when, via, offered_by, caller, callee, agreed, ptime_ms, flow, early)


def proxied(
    codec: str = "PCMU", to_callee: str | None = None, *, clock_rate: int = 8000
) -> Negotiation:
    """A call whose media goes through the proxy."""
    egress = agreement("egress", TO_CALLEE, CALLEE, to_callee or codec, clock_rate=clock_rate)
    ingress = agreement("ingress", CALLER, TO_CALLER, codec, clock_rate=clock_rate)
    return Negotiation(ingress=(ingress,), egress=(egress,))


DIRECT = Negotiation(ingress=(agreement("ingress", CALLER, CALLEE),))
"""A call whose callee answers with its own address."""


@dataclass(frozen=True)
class Voice:
    """One party, or who speaks in its place."""

    ssrc: int
    source: Endpoint
    destination: Endpoint
    sends: bool = True
    reports: bool = True
    loss: float = 0.0
    """Share of what it sends that does not arrive."""
    jitter: int = 8
    """Of what it sends, as the other reports it."""
    delay_ms: float = 10.0
    """From it to the capture point, one way."""


def caller(**fields: object) -> Voice:
    plain = Voice(CALLER_SSRC, rtcp_of("192.0.2.1", 4000), rtcp_of("203.0.113.9", 30_000))
    return replace(plain, **fields)  # type: ignore[arg-type]


def callee(**fields: object) -> Voice:
    plain = Voice(CALLEE_SSRC, rtcp_of("198.51.100.2", 6000), rtcp_of("203.0.113.9", 30_100))
    return replace(plain, **fields)  # type: ignore[arg-type]


@dataclass
class _State:
    last_sr: tuple[int, float] | None = None
    """Middle of its NTP time, and when it arrived at the other."""
    lost: int = 0
    sequence: int = field(default=1000)


def talk(
    one: Voice | None = None,
    other: Voice | None = None,
    *,
    seconds: float = 60.0,
    every: float = 5.0,
    start: float = 0.0,
    clock: int = 1,
    skew_us: int = 0,
    form: str = "json",
) -> list[Seen]:
    """What two voices report, each about the other, at 50 packets a second."""
    voices = (one or caller(), other or callee())
    states = (_State(), _State())
    seen: list[Seen] = []
    for step in range(1, round(seconds / every) + 1):
        for i in (0, 1):
            me, you = voices[i], voices[1 - i]
            passed = step * every + 0.4 * i
            now = start + passed
            sent = round(passed * 50)
            before = round((passed - every) * 50) if step > 1 else 0
            blocks: tuple[rtcp.ReportBlock, ...] = ()
            if you.sends:
                lost, old = round(sent * you.loss), round(before * you.loss)
                last = states[1 - i].last_sr
                blocks = (
                    rtcp.ReportBlock(
                        you.ssrc,
                        min(int(256 * (lost - old) / (sent - before)), 255),
                        lost,
                        999 + sent,
                        you.jitter,
                        last[0] if last else 0,
                        round((now - last[1]) * 65536) if last else 0,
                    ),
                )
            ntp = round((START / 1e6 + now + NTP_1970) * (1 << 32))
            sender = rtcp.SenderInfo(ntp, sent * 160, sent, sent * 160) if me.sends else None
            if me.sends and me.reports:
                states[i].last_sr = (
                    ntp >> 16 & 0xFFFFFFFF,
                    now + (me.delay_ms + you.delay_ms) / 1000,
                )
            if me.reports:
                at = START + round((now + me.delay_ms / 1000) * 1e6) + skew_us
                report = rtcp.Report(me.ssrc, sender, blocks, form=form)
                seen.append((report, me.source, me.destination, clock, at))
    return seen


def facts_of(*talks: list[Seen]) -> Facts:
    """Everything seen, joined."""
    facts = Facts()
    for each in talks:
        for report, source, destination, clock, at in each:
            facts.see_report(report, source, destination, clock, at)
    return facts


def media_of(
    facts: Facts,
    negotiation: Negotiation | None = None,
    thresholds: Thresholds | None = None,
    *,
    skews: dict[int, int] | None = None,
    received_at: int = START,
) -> Media:
    """What is derived of it; by default of a call through the proxy."""
    return derive(
        facts,
        proxied() if negotiation is None else negotiation,
        thresholds or Thresholds(),
        call_id="call@example.com",
        from_tag="a",
        received_at=received_at,
        skews=skews or {},
    )
