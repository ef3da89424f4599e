"""RTCP of two parties as a media proxy would mirror it: HEP type 5 with JSON, for simulated worlds."""

import json
import socket
from dataclasses import dataclass

from sim import EPOCH
from sipsidecar.wire import hep

CALLER, CALLEE = ("192.0.2.1", 4001), ("198.51.100.2", 4001)
"""RTCP addresses of A and B in `sim`: their SDP says port 4000."""
CALLER_SSRC, CALLEE_SSRC = 0x11111111, 0x22222222
NTP_1970 = 2_208_988_800


@dataclass(frozen=True)
class Said:
    """What one party says in one report: what it sent, and what it heard of the other."""

    at: float
    """Seconds of the world."""
    by: str
    """caller or callee."""
    packets: int | None
    """Sent so far; None in a receiver report."""
    heard_seq: int | None
    """Extended highest sequence number it heard; None: it heard nothing."""
    lost: int = 0
    fraction: int = 0
    jitter: int = 0


def payload(said: Said) -> bytes:
    """The report as rtpengine writes it."""
    own, other = CALLER_SSRC, CALLEE_SSRC
    if said.by == "callee":
        own, other = other, own
    blocks = []
    if said.heard_seq is not None:
        blocks.append(
            {
                "source_ssrc": other,
                "highest_seq_no": said.heard_seq,
                "fraction_lost": said.fraction,
                "ia_jitter": said.jitter,
                "packets_lost": said.lost & 0xFFFFFF,
                "lsr": 0,
                "dlsr": 0,
            }
        )
    fields: dict[str, object] = {}
    if said.packets is not None:
        seconds = EPOCH / 1_000_000 + said.at + NTP_1970
        fields["sender_information"] = {
            "ntp_timestamp_sec": int(seconds),
            "ntp_timestamp_usec": int((seconds % 1) * (1 << 32)),
            "octets": said.packets * 160,
            "rtp_timestamp": said.packets * 160,
            "packets": said.packets,
        }
    fields |= {
        "ssrc": own,
        "type": 200 if said.packets is not None else 201,
        "report_count": len(blocks),
        "report_blocks": blocks,
        "sdes_report_count": 0,
        "sdes_information": [],
    }
    return json.dumps(fields).encode()


def datagram(said: Said, call_id: str | None, *, agent_id: int = 3001, at_us: int = 0) -> bytes:
    """The report as one HEP packet; without `call_id` only its addresses tell whose it is."""
    source, destination = (CALLER, CALLEE) if said.by == "caller" else (CALLEE, CALLER)
    return hep.encode(
        source=socket.inet_aton(source[0]),
        destination=socket.inet_aton(destination[0]),
        source_port=source[1],
        destination_port=destination[1],
        ip_protocol=17,
        captured_at=EPOCH + round(said.at * 1_000_000) + at_us,
        protocol_type=5,
        agent_id=agent_id,
        correlation_id=call_id.encode() if call_id is not None else None,
        payload=payload(said),
    )


def conversation(
    seconds: float = 60.0,
    *,
    start: float = 5.0,
    every: float = 5.0,
    loss_to_callee: float = 0.0,
    jitter_to_callee: int = 8,
    callee_sends: bool = True,
    callee_reports: bool = True,
) -> list[Said]:
    """The reports of a call in which both send 50 packets a second from `start` on.

    `loss_to_callee`: share of what the caller sends that does not arrive.
    """
    said = []
    lost = 0
    steps = int(seconds / every)
    for step in range(1, steps + 1):
        at = start + step * every
        sent = round(step * every * 50)
        heard = 1000 + sent - 1
        now_lost = round(sent * loss_to_callee)
        fraction = int((now_lost - lost) * 256 / (every * 50))
        lost = now_lost
        said.append(Said(at, "caller", sent, heard if callee_sends else None))
        if callee_reports:
            packets = sent if callee_sends else None
            said.append(Said(at + 0.4, "callee", packets, heard, lost, fraction, jitter_to_callee))
    return said
