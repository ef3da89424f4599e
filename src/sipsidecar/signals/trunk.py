"""Answers to OPTIONS, seen and asked for, to the state of each trunk."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from sipsidecar.calls.events import PingRecord
from sipsidecar.signals.alarms import Alarm, EventRecord


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One far end that is looked after: a trunk of the cohorts, or a node of it."""

    name: str
    """To show, and to label metrics."""
    trunk: str = ""
    """Its trunk as cohorts call it; empty: the same as `name`."""
    uri: str
    """Where its OPTIONS go: sip:HOST[:PORT][;transport=udp|tcp|tls] or sips:HOST."""
    probe: bool = True
    """Send OPTIONS of our own; without it only those of others, as HEP shows them, are judged."""
    interval_seconds: float = 10.0
    timeout_seconds: float = 4.0
    """An answer that comes later is none."""
    down_after: int = 3
    """Missed in a row."""
    up_after: int = 2
    """Good ones in a row."""
    alive: tuple[str, ...] = ()
    """Codes or classes that count as alive, as 200, 4xx; empty: any answer but 408 and 503
    (standards 4.6)."""
    from_host: str = ""
    """Host of the From URI; empty: our address."""
    source: str = ""
    """Local address to send from."""
    ca: str = ""
    """PEM file of authorities for TLS; empty: the system's."""
    server_name: str = ""
    """Name that the certificate must be for; empty: the URI's host."""
    dispatcher_group: int | None = None
    """Set of Kamailio's dispatcher that it is taken out of while it is down; None: not."""
    dispatcher_uri: str = ""
    """Its URI there; empty: `uri`."""
    severity: Literal["trend", "warn", "page"] = "page"
    """Of the incident when it is down."""


class PeerError(ValueError):
    """A peer that cannot be; the message is one line that says which and why."""


def check_peers(peers: Sequence[Peer]) -> None:
    """Find what is wrong with peers; PeerError says which."""


class Trunks:
    """The state of every peer; times are microseconds UTC of this sidecar's clock."""

    def __init__(self, peers: Sequence[Peer], certificate_days: float = 14.0) -> None:
        raise NotImplementedError

    def receive_ping(self, record: PingRecord, at: int) -> None:
        """One OPTIONS of somebody else's, as HEP shows it."""
        raise NotImplementedError

    def receive_answer(self, name: str, code: int | None, rtt_ms: float | None, at: int) -> None:
        """What became of one OPTIONS of ours; `code` None: no answer in time, or no connection."""
        raise NotImplementedError

    def alarms(self, at: int) -> list[Alarm]:
        """Alarms that hold or end: trunk-down, certificate, dns."""
        raise NotImplementedError

    def records(self) -> list[EventRecord]:
        """Changes of state since the last call, for the timeline."""
        raise NotImplementedError

    def down(self) -> frozenset[str]:
        """Names of the peers that are down now."""
        raise NotImplementedError
