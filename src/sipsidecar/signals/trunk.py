"""Answers to OPTIONS, seen and asked for, to the state of each trunk.

A peer's own probes decide about it; OPTIONS of others, as HEP shows them, are counted beside them
and told as evidence: when a proxy still gets answers and we do not, the way from here is broken and
not the trunk. Where `probe` is false, those of others decide. What is not known is neither up nor
down: of a peer that nothing was heard of for a while nothing is said, and nothing is done.

| state | Kamailio's flag | |
| --- | --- | --- |
| unknown | | nothing was heard of it yet, or lately |
| active | A | it answers |
| trying | T | the last one or two were missed: still in use |
| inactive | I | down: `down_after` missed, and not yet `up_after` good ones again |
| disabled | D | an operator wants nothing said of it |
"""

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

from sipsidecar.calls.events import PingRecord
from sipsidecar.signals.alarms import PAGE, SEVERITIES, TREND, WARN, Alarm, EventRecord, Scope
from sipsidecar.signals.alarms import scope_text as text_of
from sipsidecar.signals.naming import DnsAnswer, Names, Place, Problem
from sipsidecar.signals.pulse import Beat, Pulse

__all__ = ["DnsAnswer", "Peer", "PeerError", "Place", "Trunks", "check_peers"]

UNKNOWN: Final = "unknown"
ACTIVE: Final = "active"
TRYING: Final = "trying"
INACTIVE: Final = "inactive"
DISABLED: Final = "disabled"
FLAGS: Final = {ACTIVE: "A", TRYING: "T", INACTIVE: "I", DISABLED: "D", UNKNOWN: "?"}

MAX_PEERS: Final = 500
MAX_RECORDS: Final = 10_000
MAX_FINGERPRINTS: Final = 16
"""Certificates that are nothing new of a peer: several machines behind one address take turns."""
SILENT_TURNS: Final = 5
"""Intervals, and `SILENT_US` besides, without any evidence, after which a state is unknown."""
SILENT_US: Final = 60_000_000
LATEST_US: Final = 40_000_000
"""A miss of somebody else's is known so much later: Timer F, and the time to settle."""

_LABEL: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_WORD: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z)(?:{_WORD}\.)*{_WORD}\.?")
_URI: Final = re.compile(
    r"(sips?):(?:[A-Za-z0-9_.+!~*'-]{1,64}@)?(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.-]{1,253}))"
    r"(?::([0-9]{1,5}))?(?:;transport=(udp|tcp|tls))?"
)
_DISPATCHER_URI: Final = re.compile(r"sips?:[A-Za-z0-9_.:;=@\[\]+!~*'()-]{1,250}")
_ALIVE: Final = re.compile(r"[2-6](?:xx|[0-9]{2})")


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

    @property
    def of_trunk(self) -> str:
        """The trunk that it is, or is a node of."""
        return self.trunk or self.name

    @property
    def destination(self) -> tuple[int, str] | None:
        """Set and URI in Kamailio's dispatcher."""
        if self.dispatcher_group is None:
            return None
        return self.dispatcher_group, self.dispatcher_uri or self.uri


class PeerError(ValueError):
    """A peer that cannot be; the message is one line that says which and why."""


class PeerUri(NamedTuple):
    """What a peer's URI says."""

    host: str
    port: int | None
    """None: by SRV, else the default (RFC 3263 4.2)."""
    transport: str
    literal: bool
    """The host is an address."""

    @property
    def default_port(self) -> int:
        """The port where neither the URI nor SRV says one (RFC 3261 19.1.2)."""
        return 5061 if self.transport == "tls" else 5060


def parse_uri(uri: str) -> PeerUri:
    """Read a peer's URI; ValueError says what is expected. Without `transport`, UDP is meant."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise ValueError(f"expected sip:HOST[:PORT][;transport=udp|tcp|tls], got {uri!r}")
    scheme, bracketed, host, digits, transport = found.groups()
    port = int(digits) if digits else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port {digits} is none")
    if scheme == "sips":
        if transport == "udp":
            raise ValueError("sips: is over TLS (RFC 3261 26.2.2)")
        transport = "tls"
    try:
        literal = str(
            (ipaddress.IPv6Address if bracketed else ipaddress.IPv4Address)(bracketed or host)
        )
    except ValueError:
        if bracketed or not _HOST.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
            raise ValueError(f"{bracketed or host!r} is neither a name nor an address") from None
        return PeerUri(host.lower().rstrip("."), port, transport or "udp", False)
    return PeerUri(literal, port, transport or "udp", True)


def check_peers(peers: Sequence[Peer]) -> None:
    """Find what is wrong with peers; PeerError says which."""
    if len(peers) > MAX_PEERS:
        raise PeerError(f"at most {MAX_PEERS} peers")
    names: set[str] = set()
    destinations: set[tuple[int, str]] = set()
    for peer in peers:
        try:
            _check(peer)
        except ValueError as error:
            raise PeerError(f"peer {peer.name!r}: {error}") from None
        if peer.name in names:
            raise PeerError(f"peer {peer.name!r}: another peer has this name")
        if peer.destination in destinations:
            raise PeerError(f"peer {peer.name!r}: another peer is this dispatcher destination")
        names.add(peer.name)
        if peer.destination is not None:
            destinations.add(peer.destination)


def _check(peer: Peer) -> None:
    for what, text in (("name", peer.name), ("trunk", peer.trunk or peer.name)):
        if not _LABEL.fullmatch(text) or text == "other":
            raise ValueError(f"{what}: 1 to 64 letters, digits, dots, _ or -, and not `other`")
    parse_uri(peer.uri)
    if not 1 <= peer.interval_seconds <= 3600:
        raise ValueError("interval_seconds: expected 1 to 3600")
    if not 0.1 <= peer.timeout_seconds <= min(peer.interval_seconds, 32):
        raise ValueError("timeout_seconds: expected 0.1 to interval_seconds, and at most 32")
    for what, count in (("down_after", peer.down_after), ("up_after", peer.up_after)):
        if not 1 <= count <= 20:
            raise ValueError(f"{what}: expected 1 to 20")
    for word in peer.alive:
        if not _ALIVE.fullmatch(word):
            raise ValueError(f"alive: expected codes or classes such as 200 or 4xx, got {word!r}")
    for what, host in (("from_host", peer.from_host), ("server_name", peer.server_name)):
        if host and not (_HOST.fullmatch(host) or _is_address(host.strip("[]"))):
            raise ValueError(f"{what}: expected a host, got {host!r}")
    if peer.source and not _is_address(peer.source):
        raise ValueError(f"source: expected an address, got {peer.source!r}")
    if peer.dispatcher_group is not None and not 0 <= peer.dispatcher_group < 2**31:
        raise ValueError("dispatcher_group: expected the number of a set")
    if peer.dispatcher_uri and not _DISPATCHER_URI.fullmatch(peer.dispatcher_uri):
        raise ValueError(f"dispatcher_uri: expected a SIP URI, got {peer.dispatcher_uri!r}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_alive(peer: Peer, code: int | None) -> bool:
    """Whether an answer shows that a peer is there (standards 4.6)."""
    if code is None:
        return False
    if not peer.alive:
        return code not in (408, 503)
    return str(code) in peer.alive or f"{code // 100}xx" in peer.alive


class SeenCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer showed at a TLS handshake; times are microseconds UTC."""

    place: Place
    not_before: int | None = None
    not_after: int | None = None
    """None: it cannot be read."""
    subject: str | None = None
    """As its maker wrote it; so is `issuer`."""
    issuer: str | None = None
    fingerprint: str = ""
    """SHA-256, in hexadecimal digits."""
    verified: bool | None = None
    """The chain leads to an authority that is trusted, and it is for the name; None: could not say."""
    why: str = ""
    """Why not: expired, not-yet-valid, self-signed, untrusted, name, broken; or ca: the file of
    authorities cannot be read."""


class PeerState(msgspec.Struct, frozen=True, kw_only=True):
    """How one peer stands; unknown is None."""

    name: str
    trunk: str
    uri: str
    transport: str
    state: str
    flags: str
    """As Kamailio's dispatcher writes them: A, T, I or D, then P where it is probed, else X."""
    probed: bool
    since: int | None
    """When it became so, microseconds UTC."""
    missed_in_row: int
    code: int | None
    """Of the last answer that decides; so is `rtt_ms`. None: none came."""
    rtt_ms: float | None
    why: str
    last_good_at: int | None
    answered: int
    """Own probes; so is `missed`."""
    missed: int
    seen_answered: int
    """OPTIONS of others."""
    seen_missed: int
    seen_late: int
    silences: int
    """Times that nothing could be asked, for reasons of our own."""
    silence: str
    """The reason of the last one."""
    places: tuple[str, ...]
    certificate: SeenCertificate | None
    """The one that ends first."""
    certificate_days: float | None
    dns: tuple[DnsAnswer, ...]
    problems: tuple[str, ...]
    """Of its certificate and its name."""


class _Watched:
    """One peer."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.uri = parse_uri(peer.uri)
        self.state = UNKNOWN
        self.since: int | None = None
        self.own = Pulse(peer.down_after, peer.up_after)
        self.seen = Pulse(peer.down_after, peer.up_after)
        self.heard_at: int | None = None
        """When the last evidence of the deciding kind came, by our clock; None: it is forgotten."""
        self.silences = 0
        self.silence = ""
        self.disabled = False
        self.names = Names()
        self.certificates: dict[Place, SeenCertificate] = {}
        self.fingerprints: dict[str, bool] = {}
        """Of certificates that were shown, the last one last."""
        port = self.uri.port or self.uri.default_port
        self.literal = (Place(self.uri.host, port),) if self.uri.literal else ()

    @property
    def places(self) -> tuple[Place, ...]:
        return self.literal or self.names.places

    @property
    def deciding(self) -> Pulse:
        return self.own if self.peer.probe else self.seen

    def judge(self) -> str:
        """The state that follows from all that is known."""
        if self.disabled:
            return DISABLED
        standing = self.deciding.standing
        if standing.up is False:
            return INACTIVE
        if standing.misses:
            return TRYING
        return UNKNOWN if standing.up is None else ACTIVE


class Trunks:
    """The state of every peer; times are microseconds UTC of this sidecar's clock."""

    def __init__(self, peers: Sequence[Peer], certificate_days: float = 14.0) -> None:
        self.own_call_ids = ""
        """What Call-IDs of our own probes end with, where there are any: seen in HEP, they are
        nothing new."""
        self.own_seen = 0
        """Such ones."""
        self.strange = 0
        """OPTIONS to nobody who is looked after."""
        self.records_lost = 0
        self._days = certificate_days
        self._peers = {peer.name: _Watched(peer) for peer in peers}
        self._by_place: dict[Place, list[_Watched]] = {}
        self._index()
        self._told: dict[tuple[str, str, Scope], Alarm] = {}
        self._records: list[EventRecord] = []
        self._number = 0

    # -- what is heard

    def receive_ping(self, record: PingRecord, at: int) -> None:
        """One OPTIONS of somebody else's, as HEP shows it."""
        if self.own_call_ids and record.call_id.endswith(self.own_call_ids):
            self.own_seen += 1
            return
        if record.final_code is None and "interrupted" in record.flags:
            return  # nobody waited for its end
        place = Place(record.peer_ip or "", record.peer_port or 0)
        found = [
            one
            for one in self._by_place.get(place, ())
            if record.transport in (None, one.uri.transport)
        ]
        self.strange += not found
        for one in found:
            code = record.final_code
            # By our clock: those of agents may be wrong.
            beat = Beat(
                record.received_at,
                is_alive(one.peer, code),
                code,
                record.rtt_ms,
                "no-answer" if code is None else "",
                record.call_id,
            )
            one.seen.add(beat)
            if not one.peer.probe:
                one.heard_at = max(at, one.heard_at or 0)
                self._look(one, at)

    def receive_answer(
        self, name: str, code: int | None, rtt_ms: float | None, at: int, why: str = ""
    ) -> None:
        """What became of one OPTIONS of ours.

        `code` None: no answer in time, or no connection, and `why` is a word for it.
        """
        one = self._peers[name]
        one.own.add(Beat(at, is_alive(one.peer, code), code, rtt_ms, why))
        if one.peer.probe:
            one.heard_at = at
            self._look(one, at)

    def receive_silence(self, name: str, why: str, at: int) -> None:
        """We could not ask, or not listen: that is no miss."""
        one = self._peers[name]
        one.silences += 1
        one.silence = why
        self._age(one, at)

    def receive_certificate(self, name: str, seen: SeenCertificate, at: int) -> None:
        """What a peer showed when a connection to it was made."""
        one = self._peers[name]
        before = one.certificates.get(seen.place)
        known = one.fingerprints.pop(seen.fingerprint, False)
        one.fingerprints[seen.fingerprint] = True
        if len(one.fingerprints) > MAX_FINGERPRINTS:
            del one.fingerprints[next(iter(one.fingerprints))]
        one.certificates[seen.place] = seen
        self._forget_certificates(one)
        if before is not None and before.fingerprint != seen.fingerprint and not known:
            until = f"until {_day(seen.not_after)}" if seen.not_after is not None else ""
            self._tell(one, at, "certificate", "", f"another certificate {until}".rstrip())

    def receive_dns(self, name: str, answers: Sequence[DnsAnswer], at: int) -> None:
        """What each resolver says of a peer's name: all of one look."""
        one = self._peers[name]
        before = one.places
        change = one.names.receive(answers, at)
        if one.places != before:
            self._index()
            self._forget_certificates(one)
        if change is not None:
            self._tell(one, at, "dns", "", f"addresses changed: {change}")

    def disable(self, name: str, at: int) -> None:
        """Say nothing of a peer until it is enabled; LookupError."""
        self._peers[name].disabled = True
        self._look(self._peers[name], at)

    def enable(self, name: str, at: int) -> None:
        """End that; LookupError."""
        one = self._peers[name]
        if one.disabled:
            one.disabled = False
            self._look(one, at)

    # -- what follows

    def alarms(self, at: int) -> list[Alarm]:
        """Alarms that hold or end: trunk-down, certificate, dns; one of each kind for a trunk."""
        for one in self._peers.values():
            self._age(one, at)
        groups: defaultdict[str, list[_Watched]] = defaultdict(list)
        for one in self._peers.values():
            if not one.disabled:
                groups[one.peer.of_trunk].append(one)
        holding: dict[tuple[str, str, Scope], Alarm] = {}
        for trunk, group in groups.items():
            scope = (("trunk", trunk),)
            for alarm in (
                self._down_alarm(scope, group, at),
                self._problems_alarm("certificate", scope, group, at),
                self._problems_alarm("dns", scope, group, at),
            ):
                if alarm is not None:
                    holding[alarm.key] = alarm
        over = [
            msgspec.structs.replace(alarm, active=False, at=at)
            for key, alarm in self._told.items()
            if key not in holding
        ]
        self._told = {
            key: msgspec.structs.replace(alarm, since=self._since(key, alarm))
            for key, alarm in holding.items()
        }
        return [*self._told.values(), *over]

    def records(self) -> list[EventRecord]:
        """Changes of state since the last call, for the timeline."""
        drained, self._records = self._records, []
        return drained

    def down(self) -> frozenset[str]:
        """Names of the peers that are down now."""
        return frozenset(name for name, one in self._peers.items() if one.state == INACTIVE)

    def down_trunks(self) -> frozenset[str]:
        """Trunks of which all peers are down; those that are disabled do not count."""
        states: defaultdict[str, set[str]] = defaultdict(set)
        for one in self._peers.values():
            if not one.disabled:
                states[one.peer.of_trunk].add(one.state)
        return frozenset(trunk for trunk, found in states.items() if found == {INACTIVE})

    def out(self) -> frozenset[tuple[int, str]]:
        """Set and URI of each destination in Kamailio's dispatcher that is down now."""
        return frozenset(
            one.peer.destination
            for one in self._peers.values()
            if one.state == INACTIVE and one.peer.destination is not None
        )

    def is_disabled(self, name: str) -> bool:
        """Whether nothing shall be asked of a peer."""
        return self._peers[name].disabled

    def places(self, name: str) -> tuple[Place, ...]:
        """Where a peer can be reached, as far as it is known."""
        return self._peers[name].places

    def addresses(self) -> Mapping[str, frozenset[str]]:
        """All addresses of each trunk, of which each name has one."""
        found: dict[str, set[str]] = {}
        unknown: set[str] = set()
        for one in self._peers.values():
            trunk = one.peer.of_trunk
            if not one.places or one.names.left_out:
                unknown.add(trunk)
            found.setdefault(trunk, set()).update(place.ip for place in one.places)
        return {trunk: frozenset(ips) for trunk, ips in found.items() if trunk not in unknown}

    def states(self, at: int) -> list[PeerState]:
        """How all peers stand, in the order of the configuration."""
        return [self._state(one, at) for one in self._peers.values()]

    # -- states

    def _look(self, one: _Watched, at: int, text: str = "") -> None:
        """See whether the state of a peer is another one now."""
        before, state = one.state, one.judge()
        if state == before:
            return
        one.state = state
        one.since = at
        # One that was missed and then came is no news, nor that all answer after a start.
        quiet = {ACTIVE, TRYING, UNKNOWN}
        if state in quiet and before in quiet:
            return
        self._tell(one, at, state, before, text or self._words(one))

    def _age(self, one: _Watched, at: int) -> None:
        """Know nothing of a peer that nothing was heard of for long."""
        patience = SILENT_TURNS * int(one.peer.interval_seconds * 1_000_000) + SILENT_US
        if one.heard_at is not None and at - one.heard_at > patience:
            one.heard_at = None
            one.deciding.forget()
            seconds = patience // 1_000_000
            self._look(one, at, f"nothing was heard for {seconds} s {one.silence}".rstrip())
        other = one.seen.last
        if other is not None and at - other.at > patience + LATEST_US:
            one.seen.forget()
            self._look(one, at)

    def _words(self, one: _Watched) -> str:
        """What speaks for the state that a peer has, with numbers."""
        pulse = one.deciding
        last, standing = pulse.last, pulse.standing
        if one.disabled or last is None:
            return ""
        if not last.ok:
            said = f"answers {last.code}" if last.code is not None else last.why or "no-answer"
            since = f" since {_clock(standing.missed_since or last.at)} UTC"
            return f"{said}, {standing.misses} OPTIONS in a row{since}"
        rtt = f" in {last.rtt_ms:.0f} ms" if last.rtt_ms is not None else ""
        return f"answers {last.code}{rtt}, {standing.goods} OPTIONS in a row"

    def _tell(self, one: _Watched, at: int, state: str, previous: str, text: str) -> None:
        if len(self._records) >= MAX_RECORDS:
            self.records_lost += 1
            return
        self._number += 1
        scope: Scope = (("trunk", one.peer.of_trunk),)
        self._records.append(
            EventRecord(
                received_at=at,
                event=f"trunk-{one.peer.name}-{at}-{self._number}",
                at=at,
                kind="trunk",
                subject=one.peer.name,
                state=state,
                previous=previous,
                severity=one.peer.severity if state == INACTIVE else None,
                scope=text_of(scope),
                trunk=one.peer.of_trunk,
                text=text,
            )
        )

    def _index(self) -> None:
        by_place: dict[Place, list[_Watched]] = {}
        for one in self._peers.values():
            for place in one.places:
                by_place.setdefault(place, []).append(one)
        self._by_place = by_place

    @staticmethod
    def _forget_certificates(one: _Watched) -> None:
        for place in one.certificates.keys() - set(one.places):
            del one.certificates[place]

    # -- alarms

    def _since(self, key: tuple[str, str, Scope], alarm: Alarm) -> int:
        before = self._told.get(key)
        if before is not None and before.since is not None:
            return before.since
        return alarm.since if alarm.since is not None else alarm.at

    def _down_alarm(self, scope: Scope, group: Sequence[_Watched], at: int) -> Alarm | None:
        down = [one for one in group if one.state == INACTIVE]
        if not down:
            return None
        severity = _gravest(one.peer.severity for one in down)
        if len(down) < len(group) and severity == PAGE:
            severity = WARN  # the others have its calls
        said = "; ".join(f"{one.peer.name} {self._words(one)}" for one in down[:4])
        since = [one.deciding.standing.missed_since or at for one in down]
        call_ids = [call_id for one in down for call_id in one.seen.missed_call_ids()]
        return Alarm(
            source="trunk",
            category="trunk-down",
            scope=scope,
            at=at,
            severity=severity,
            summary=f"{len(down)} of {len(group)} down: {said}",
            since=min(since),
            value=float(len(down)),
            expected=0.0,
            count=len(down),
            total=len(group),
            call_ids=tuple(call_ids[:5]),
            evidence={one.peer.name: self._evidence(one) for one in group[:16]},
        )

    @staticmethod
    def _evidence(one: _Watched) -> dict[str, Any]:
        own, seen = one.own, one.seen
        last, good = one.deciding.last, one.deciding.last_good
        return {
            "state": one.state,
            "uri": one.peer.uri,
            "addresses": [_address(place) for place in one.places],
            "decides": "own" if one.peer.probe else "captured",
            "missed_in_row": one.deciding.standing.misses,
            "code": last.code if last is not None else None,
            "why": last.why if last is not None else "",
            "last_good_at": good.at if good is not None else None,
            "last_rtt_ms": good.rtt_ms if good is not None else None,
            "own_answered": own.answered,
            "own_missed": own.missed,
            "captured_up": seen.standing.up,
            "captured_missed_in_row": seen.standing.misses,
            "captured_code": seen.last.code if seen.last is not None else None,
        }

    def _problems_alarm(
        self, kind: str, scope: Scope, group: Sequence[_Watched], at: int
    ) -> Alarm | None:
        judge = self._certificate_problems if kind == "certificate" else self._name_problems
        found = [(one, problem) for one in group for problem in judge(one, at)]
        if not found:
            return None
        return Alarm(
            source=kind,
            category=kind,
            scope=scope,
            at=at,
            severity=_gravest(problem.severity for _, problem in found),
            summary="; ".join(f"{one.peer.name}: {problem.text}" for one, problem in found[:4]),
            since=at,
            count=len({one.peer.name for one, _ in found}),
            total=len(group),
            evidence={
                one.peer.name: self._certificate_evidence(one)
                if kind == "certificate"
                else self._name_evidence(one)
                for one in list(dict.fromkeys(one for one, _ in found))[:16]
            },
        )

    def _certificate_problems(self, one: _Watched, at: int) -> list[Problem]:
        found: dict[str, Problem] = {}
        for seen in one.certificates.values():
            left = None if seen.not_after is None else (seen.not_after - at) / 86_400_000_000
            if left is not None and left <= 0:
                text = f"certificate expired {_day(seen.not_after)}"
                found[text] = Problem(one.peer.severity, text)
                continue
            if seen.verified is False:
                text = f"certificate not verified: {seen.why}"
                found[text] = Problem(WARN, text)
            elif seen.why == "ca":
                text = "certificate not verified: the file of authorities cannot be read"
                found[text] = Problem(WARN, text)
            if left is not None and left < self._days:
                text = f"certificate ends in {left:.1f} days, {_day(seen.not_after)}"
                found[text] = Problem(WARN, text)
        return list(found.values())

    @staticmethod
    def _name_problems(one: _Watched, at: int) -> list[Problem]:
        return one.names.problems(at, one.peer.severity)

    @staticmethod
    def _certificate_evidence(one: _Watched) -> dict[str, Any]:
        return {
            _address(place): {
                "not_after": seen.not_after,
                "subject": seen.subject,
                "issuer": seen.issuer,
                "fingerprint": seen.fingerprint,
                "verified": seen.verified,
                "why": seen.why,
                "expected": one.peer.server_name or one.uri.host,
            }
            for place, seen in one.certificates.items()
        }

    @staticmethod
    def _name_evidence(one: _Watched) -> dict[str, Any]:
        return {
            "host": one.uri.host,
            "addresses": [_address(place) for place in one.places],
            "resolvers": {
                answer.resolver: [_address(place) for place in answer.places] or answer.outcome
                for answer in one.names.answers
            },
        }

    def _state(self, one: _Watched, at: int) -> PeerState:
        last, good = one.deciding.last, one.deciding.last_good
        shown = min(
            one.certificates.values(),
            key=lambda seen: (seen.not_after is None, seen.not_after or 0),
            default=None,
        )
        problems = [*self._certificate_problems(one, at), *self._name_problems(one, at)]
        ends = shown.not_after if shown is not None else None
        return PeerState(
            name=one.peer.name,
            trunk=one.peer.of_trunk,
            uri=one.peer.uri,
            transport=one.uri.transport,
            state=one.state,
            flags=FLAGS[one.state] + ("P" if one.peer.probe and not one.disabled else "X"),
            probed=one.peer.probe,
            since=one.since,
            missed_in_row=one.deciding.standing.misses,
            code=last.code if last is not None else None,
            rtt_ms=last.rtt_ms if last is not None else None,
            why=last.why if last is not None else "",
            last_good_at=good.at if good is not None else None,
            answered=one.own.answered,
            missed=one.own.missed,
            seen_answered=one.seen.answered,
            seen_missed=one.seen.missed,
            seen_late=one.seen.late,
            silences=one.silences,
            silence=one.silence,
            places=tuple(_address(place) for place in one.places),
            certificate=shown,
            certificate_days=None if ends is None else (ends - at) / 86_400_000_000,
            dns=one.names.answers,
            problems=tuple(problem.text for problem in problems),
        )


def _gravest(severities: Iterable[str]) -> str:
    return max(severities, key=SEVERITIES.index, default=TREND)


def _address(place: Place) -> str:
    return f"[{place.ip}]:{place.port}" if ":" in place.ip else f"{place.ip}:{place.port}"


def _clock(at: int) -> str:
    return datetime.fromtimestamp(at / 1_000_000, UTC).strftime("%H:%M:%S")


def _day(at: int | None) -> str:
    return datetime.fromtimestamp((at or 0) / 1_000_000, UTC).strftime("%Y-%m-%d")
