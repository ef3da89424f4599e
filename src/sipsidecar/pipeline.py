"""HEP packets and time to call records and stored messages: the house without its doors."""

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from sipsidecar.calls.agents import Agent, Agents
from sipsidecar.calls.bridging import Bridging
from sipsidecar.calls.call import RECEIVER, Call
from sipsidecar.calls.dialog import IMPLAUSIBLE_US, TIMER_B, Timing
from sipsidecar.calls.events import (
    OTHER,
    AttemptRecord,
    CallRecord,
    ConversationRecord,
    LegRecord,
    MediaRecord,
    Move,
    PingRecord,
    RegistrationRecord,
    Setup,
)
from sipsidecar.calls.joining import Said
from sipsidecar.calls.legs import Unjoined
from sipsidecar.calls.restoring import Heard, Sighting, StoredRow
from sipsidecar.calls.table import CallTable, Leaving, Retraction
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.calls.transactions import TransactionTable
from sipsidecar.gate import WHYS as GATE_WHYS
from sipsidecar.gate import Gate
from sipsidecar.privacy import Mask
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.leases import Alive
from sipsidecar.signals.snapshot import (
    DELAY_BOUNDS,
    JITTER_BOUNDS,
    LOSS_BOUNDS,
    MOS_BOUNDS,
    AgentFigures,
    Histogram,
    Snapshot,
    code_label,
)
from sipsidecar.signals.switches import EVENTS, Switches
from sipsidecar.wire import WireError, esl, hep, quality, rtcp, sip, stream

MAX_STREAMS = 4096
"""TCP or TLS connections whose messages are put together at once; the quietest gives way."""
STREAM_PATIENCE = 32.0
"""Seconds that a part of a message waits for the rest."""
MAX_COHORTS = 2000
"""Combinations of labels that calls are counted by; over it they are `other`."""
UDP = 17
REFUSED_KINDS = {
    hep.Kind.KEEP_ALIVE: "keep-alive",
    hep.Kind.EMPTY: "empty-payload",
    hep.Kind.STUN: "stun",
}

Output = (
    Leaving
    | LegRecord
    | ConversationRecord
    | RegistrationRecord
    | PingRecord
    | Retraction
    | Unjoined
)


class Stored(NamedTuple):
    """One message to keep as it was."""

    received_at: int
    captured_at: int | None
    agent_id: int | None
    kind: int
    """HEP protocol type."""
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    transport: str | None
    call_id: str | None
    payload: bytes
    packets: int
    """How many received packets this accounts for: the loss ledger counts packets."""
    why: str | None
    """Why it was not understood; None for a message, a word for quarantine."""
    peer: str | None
    """Address of the capture agent that sent it; None of one of too many agents."""


class Restored(NamedTuple):
    """One stored message, to be joined again after a restart."""

    received_at: int
    captured_at: int | None
    agent_id: int | None
    peer: str
    """Address of the capture agent that sent it; empty when unknown."""
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    transport: str | None
    payload: bytes
    kind: int = 1
    """HEP protocol type."""


class _Held(NamedTuple):
    framing: stream.SipStream
    packet: hep.Packet
    agent: Agent | None
    received_at: int
    since: float


class Pipeline:
    """Everything between a received packet and the rows that it becomes."""

    def __init__(
        self,
        timing: Timing | None = None,
        *,
        max_calls: int = 50_000,
        linger: float = 2 * TIMER_B,
        local: Collection[bytes] = (),
        gate: Gate | None = None,
        mask: Mask | None = None,
        thresholds: Thresholds | None = None,
        switches: Collection[str] = (),
        cohorts: Cohorts | None = None,
    ) -> None:
        self._mask = mask or Mask()
        self.gate = gate or Gate()
        """Who may speak; another may take its place at any time."""
        self.agents = Agents(local)
        self.calls = CallTable(
            self.agents,
            timing,
            max_calls=max_calls,
            linger=linger,
            thresholds=thresholds,
            cohorts=cohorts,
        )
        self.transactions = TransactionTable(self.agents, timing)
        self.bridging = Bridging(self.calls, self.agents, max_legs=2 * max_calls, linger=linger)
        self.switches = Switches(switches)
        self._streams: OrderedDict[tuple[bytes, int, bytes, int], _Held] = OrderedDict()
        self._stored: list[Stored] = []
        self._received = 0
        self._bytes = 0
        self._held = 0
        self._stored_out = 0
        self._quarantined_out = 0
        self._kinds = [0] * (max(hep.Kind) + 1)
        self._refused: Counter[str] = Counter()
        self._oddities: Counter[str] = Counter()
        self._finals: Counter[tuple[str, str, str]] = Counter()
        self._attempt_finals: Counter[tuple[str, str]] = Counter()
        self._cohort_finals: Counter[tuple[str, str, str, str, str]] = Counter()
        self._registrations: Counter[str] = Counter()
        self._pings: Counter[str] = Counter()
        self._pdd = Histogram(DELAY_BOUNDS)
        self._setup = Histogram(DELAY_BOUNDS)
        self._reported: Counter[str] = Counter()
        self._findings: Counter[str] = Counter()
        self._unrated: Counter[str] = Counter()
        self._mos: dict[tuple[str, str], Histogram] = {}
        self._loss: dict[str, Histogram] = {}
        self._jitter: dict[str, Histogram] = {}

    def receive(self, datagram: bytes, now: float, received_at: int, peer: str) -> None:
        """One HEP packet: its bytes, monotonic and wall-clock time of arrival, its sender's address.

        Never raises on input.
        """
        self._received += 1
        self._bytes += len(datagram)
        gate = self.gate
        if gate.has_networks and not gate.admits(peer):
            self._refused["not-allowed"] += 1
            return
        try:
            packet = hep.decode(datagram, now_seconds=received_at // 1_000_000)
        except hep.HepError as error:
            self._refused[error.why] += 1
            if error.why == "not-hep" and hep.sniff(datagram, 0) is hep.Kind.SIP:
                self._oddities["plain-sip"] += 1
            return
        if gate.has_keys and not gate.knows(packet):
            self._refused["bad-key"] += 1
            return
        self.receive_packet(packet, now, received_at, peer)

    def receive_plain(self, packet: hep.Packet, now: float, received_at: int) -> None:
        """One SIP payload that a capture file holds without HEP, dressed as a packet."""
        self._received += 1
        self._bytes += len(packet.payload)
        self.receive_packet(packet, now, received_at, "")

    def receive_packet(self, packet: hep.Packet, now: float, received_at: int, peer: str) -> None:
        """One decoded packet."""
        kind = packet.kind
        self._kinds[kind] += 1
        if packet.version == 1:
            self._oddities["hep-1"] += 1
        agent = self.agents.see(packet.agent_id, peer, now, received_at)
        if agent is not None:
            if packet.captured_at is not None:
                agent.stamp(packet.captured_at, received_at, now)
                if abs(packet.captured_at - received_at) > IMPLAUSIBLE_US:
                    self._oddities["clock-implausible"] += 1
            if packet.node_name is not None:
                agent.node_name = packet.node_name[:64]
        if packet.trailing or packet.overdeclared:
            self._oddities["trailing-bytes" if packet.trailing else "overdeclared-length"] += 1
        if not packet.source or not packet.destination:
            self._oddities["no-address"] += 1
        if self._streams and packet.ip_protocol != UDP and _connection(packet) in self._streams:
            # whatever it looks like alone: it is the next bytes of a message that has begun
            self._fragment(packet, agent, now, received_at)
        elif kind is hep.Kind.SIP or (kind is hep.Kind.OTHER and packet.protocol_type == 1):
            if packet.ip_protocol == UDP:
                self._message(
                    packet, packet.payload, packet.captured_at, 1, agent, now, received_at
                )
            else:
                self._fragment(packet, agent, now, received_at)
        elif kind in REFUSED_KINDS:
            self._refused[REFUSED_KINDS[kind]] += 1
        else:
            correlation = packet.correlation_id
            call_id = sip.text(correlation[: sip.MAX_CALL_ID]) if correlation else None
            transport = hep.transport_name(packet.ip_protocol, None)
            for said in self._reports(kind, packet, now):
                call_id = self._join_media(said, call_id, packet, agent, now, received_at)
            payload = self._mask.payload(kind, packet.payload)
            self._store(
                packet, payload, packet.captured_at, 1, agent, received_at, transport,
                call_id, None,
            )  # fmt: skip

    def receive_event(self, switch: str, event: esl.Event, now: float, received_at: int) -> None:
        """One event of a FreeSWITCH, by its configured name, or by its own in a transcript."""
        if self._mask.users:
            event = _masked(event, self._mask)
        if event.event_name in EVENTS:
            self.switches.receive(switch, msgspec.structs.asdict(event), now)
        self.bridging.receive(switch, event, now, received_at)

    def restore(
        self, messages: Sequence[Restored], rows: Sequence[StoredRow], now: float
    ) -> int | None:
        """Join the stored messages of one Call-ID again; None when there is no room for the call.

        `rows` are what is stored in `calls` and `attempts` under it. Nothing is counted, kept or
        masked a second time. Returns how many messages were facts of a call: a REGISTER is none.
        """
        found: dict[str, list[Sighting]] = {}
        heard: list[Heard] = []
        for m in messages:
            agent = self.agents.recall(m.agent_id, m.peer)
            clock, at = _clock(m.captured_at, agent, m.received_at)
            source, destination = (m.source, m.source_port), (m.destination, m.destination_port)
            reports, message = _stored_reports(m)
            heard += [
                Heard(said, source, destination, clock, at, m.received_at) for said in reports
            ]
            if message is None or not _of_a_call(message):
                continue
            if agent is not None and agent.local is None:
                agent.learn(m.source, m.destination)
            fingerprint = hash((m.payload, source, destination))
            # By the Call-ID as it came: the stored one may be clipped.
            found.setdefault(message.call_id, []).append(
                Sighting(
                    message, source, destination, m.transport, fingerprint, clock, at, m.received_at
                )
            )
        joined = 0
        for call_id, sightings in found.items():
            if not self.calls.restore(call_id, sightings, rows, now, heard):
                return None
            joined += len(sightings)
        return joined

    def warming(self, now: float) -> bool:
        """Whether calls that are met now may lack their beginning, for this life is young."""
        until = self.calls.warming_until
        return until is not None and now < until

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do; None when nothing is waited for."""
        timers = [
            self.calls.next_timer(),
            self.transactions.next_timer(),
            self.bridging.next_timer(),
        ]
        if self._streams:
            timers.append(next(iter(self._streams.values())).since + STREAM_PATIENCE)
        return min((t for t in timers if t is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Close what is due."""
        while self._streams:
            key, held = next(iter(self._streams.items()))
            if held.since + STREAM_PATIENCE > now:
                break
            self._flush_stream(key, now)
        # Legs before calls: a leg asks what SIP said of it, and calls may be forgotten in this turn.
        self.bridging.handle_timer(now)
        self.calls.handle_timer(now)
        self.transactions.handle_timer(now)

    def flush(self, now: float) -> None:
        """Give out what waits in streams: at drain, and at the end of a capture file."""
        for key in list(self._streams):
            self._flush_stream(key, now)

    def drain(self, now: float) -> None:
        """Give out everything that is known: nothing received may be lost when the process ends."""
        self.flush(now)
        self.bridging.legs.drain(now)
        self.calls.drain(now)
        self.transactions.drain()

    def stored(self) -> list[Stored]:
        """Messages and quarantined payloads since the last time; drains."""
        drained, self._stored = self._stored, []
        return drained

    def records(self) -> list[Output]:
        """Records that have left since the last time; drains."""
        found: list[Output] = [
            *self.calls.records(),
            *self.bridging.records(),
            *self.transactions.records(),
        ]
        for record in found:
            self._count(record)
        return found

    def watch(self, *, moves: bool = False, setups: bool = False, traits: bool = False) -> None:
        """Tell from now on of live states, and of what becomes of setups, as they are wanted.

        `traits`: setups say what their INVITEs said besides; those from now on do.
        """
        self.calls.watch = moves
        self.calls.tell_traits = traits
        self.calls.tell_setups = setups

    def moves(self) -> list[Move]:
        """Changes of calls' live states since the last time, by SIP and by events; drains."""
        return self.calls.moves()

    def setups(self) -> list[Setup]:
        """Setups that are over since the last time; drains."""
        return self.calls.setups()

    def alive(self, call_id: str) -> Alive | None:
        """What is known of a Call-ID; None when nothing is (any more)."""
        found = self.bridging.alive(call_id)
        return Alive(*found) if found is not None else None

    def odd(self, reason: str) -> int:
        """How often something was refused or odd for this reason."""
        return self._refused[reason] + self._oddities[reason]

    def troubles(self) -> dict[str, int]:
        """Counts of what an operator should hear of, in words that end a sentence on packets."""
        whys = hep.WHYS | GATE_WHYS
        found = {f"refused as {why}": n for why, n in self._refused.items() if why in whys}
        found["not understood and quarantined"] = self._quarantined_out
        found["of calls over calls.max_calls were not followed"] = self.calls.refused_calls
        return {what: count for what, count in found.items() if count}

    def live_calls(self) -> list[tuple[str, Call]]:
        """State and call of each that is live."""
        return list(self.calls.live_calls())

    def snapshot(self, now: float) -> Snapshot:
        """Read every figure; changes nothing."""
        calls, transactions, legs = self.calls, self.transactions, self.bridging.legs
        return Snapshot(
            received=self._received,
            received_bytes=self._bytes,
            received_by_kind={
                kind.name.lower().replace("_", "-"): self._kinds[kind] for kind in hep.Kind
            },
            refused=dict(self._refused),
            held=self._held,
            stored_out=self._stored_out,
            quarantined_out=self._quarantined_out,
            oddities=dict(self._oddities),
            live=dict(zip(("trying", "ringing", "answered"), calls.live, strict=True)),
            calls_tracked=len(calls),
            calls_lingering=calls.lingering,
            transactions_open=len(transactions),
            limits={
                "calls": calls.refused_calls,
                "memory": calls.refused_memory,
                "facts": calls.refused_facts,
                "lingering": calls.evicted + legs.evicted,
                "transactions": transactions.refused,
                "agents": self.agents.overflow,
                "streams": self._oddities["stream-evicted"],
                "media": calls.refused_media,
                "media-reports": calls.refused_reports,
                "legs": legs.refused_legs + legs.refused_memory,
                "leg-links": legs.refused_links + legs.refused_uuids,
                "media-addresses": calls.index.refused + calls.index.ambiguous,
            },
            orphans=calls.orphans + transactions.orphans + legs.strays,
            revisions=calls.revisions + legs.revisions,
            finals=dict(self._finals),
            attempt_finals=dict(self._attempt_finals),
            cohort_finals=dict(self._cohort_finals),
            registrations=dict(self._registrations),
            pings=dict(self._pings),
            pdd=self._pdd,
            setup=self._setup,
            agents=tuple(_figures(agent, now) for agent in self.agents),
            mos=self._mos,
            loss=self._loss,
            jitter=self._jitter,
            findings=dict(self._findings),
            reports=dict(self._reported + self.bridging.reports + Counter(left_out=calls.left_out)),
            unrated=dict(self._unrated),
            legs_unended=legs.given_up,
        )

    # -- SIP

    def _message(
        self,
        packet: hep.Packet,
        payload: bytes,
        captured_at: int | None,
        packets: int,
        agent: Agent | None,
        now: float,
        received_at: int,
    ) -> None:
        # Here every message is whole, and nothing has been kept of it yet.
        payload = self._mask.payload(hep.Kind.SIP, payload)
        try:
            message = sip.parse(payload)
        except sip.SipError as error:
            transport = hep.transport_name(packet.ip_protocol, None)
            self._store(
                packet, payload, captured_at, packets, agent, received_at, transport, None,
                error.why,
            )  # fmt: skip
            return
        if message.truncated:
            self._oddities["truncated-sip"] += 1
        transport = hep.transport_name(packet.ip_protocol, message.via_transport)
        self._store(
            packet, payload, captured_at, packets, agent, received_at, transport,
            message.call_id, None,
        )  # fmt: skip
        clock, at = _clock(captured_at, agent, received_at)
        if agent is not None:
            agent.learn(packet.source, packet.destination)
        source = (packet.source, packet.source_port)
        destination = (packet.destination, packet.destination_port)
        if not _of_a_call(message):
            self.transactions.receive(
                message, source, destination, transport, clock, at, now, received_at
            )
        else:
            fingerprint = hash((payload, source, destination))
            self.calls.receive(
                message, source, destination, transport, fingerprint, clock, at, now, received_at
            )
        if message.method in _METHODS_WITH_QUALITY:
            try:
                for said in _quality_in(message):
                    self._join_media(said, message.call_id, packet, agent, now, received_at)
            except quality.QualityError:
                self._reported["refused"] += 1

    # -- media

    def _reports(self, kind: hep.Kind, packet: hep.Packet, now: float) -> Sequence[Said]:
        """What a payload that is no SIP says of media; what makes no sense is counted."""
        try:
            return _reports_in(kind, packet.payload)
        except WireError as error:
            if error.why == "encrypted":
                self._reported["encrypted"] += 1
                correlation = packet.correlation_id
                self.calls.receive_encrypted(
                    sip.text(correlation[: sip.MAX_CALL_ID]) if correlation else None,
                    (packet.source, packet.source_port),
                    (packet.destination, packet.destination_port),
                    now,
                )
            elif error.why not in _NO_REPORT:
                self._reported["refused"] += 1
            return ()

    def _join_media(
        self,
        said: Said,
        call_id: str | None,
        packet: hep.Packet,
        agent: Agent | None,
        now: float,
        received_at: int,
    ) -> str | None:
        """Join one report to its call; the call's name, or what the packet gave for one."""
        captured_at = packet.captured_at
        if isinstance(said, rtcp.Report):
            self._reported["sr" if said.sender is not None else "rr"] += 1
            if said.voip:
                self._reported["xr"] += 1
            if said.flaw is not None:
                self._reported["flawed"] += 1
            if rtcp.implausible(said) is not None:
                self._reported["implausible"] += 1
                return call_id
            if captured_at is not None and abs(captured_at - received_at) > IMPLAUSIBLE_US:
                captured_at = None  # rtpengine of 2025 stamped in the wrong byte order
        else:
            self._reported[said.source] += 1
            call_id = said.call_id or call_id
        source = (packet.source, packet.source_port)
        destination = (packet.destination, packet.destination_port)
        clock, at = _clock(captured_at, agent, received_at)
        found = self.calls.call_of(call_id, said, source, destination, now)
        if found is None:
            self._reported["unjoined"] += 1
            return call_id
        self.calls.receive_media(found, said, source, destination, clock, at, now, received_at)
        return found

    def _fragment(
        self, packet: hep.Packet, agent: Agent | None, now: float, received_at: int
    ) -> None:
        """A payload off a byte stream: a part of a message, one, or several (sofia-sip <= 1.13.17)."""
        key = _connection(packet)
        held = self._streams.get(key)
        if held is None:
            if stream.is_whole(packet.payload):
                self._message(
                    packet, packet.payload, packet.captured_at, 1, agent, now, received_at
                )
                return
            if len(self._streams) >= MAX_STREAMS:
                self._oddities["stream-evicted"] += 1
                self._flush_stream(next(iter(self._streams)), now)
            held = _Held(stream.SipStream(), packet, agent, received_at, now)
        self._held += 1
        for piece in held.framing.feed(packet.payload, packet.captured_at):
            self._piece(piece, packet, agent, now, received_at)
        if held.framing.pending:
            self._streams[key] = _Held(held.framing, packet, agent, received_at, now)
            self._streams.move_to_end(key)
        else:
            self._streams.pop(key, None)

    def _flush_stream(self, key: tuple[bytes, int, bytes, int], now: float) -> None:
        held = self._streams.pop(key)
        piece = held.framing.flush()
        if piece is not None:
            self._piece(piece, held.packet, held.agent, now, held.received_at)

    def _piece(
        self,
        piece: stream.StreamMessage,
        packet: hep.Packet,
        agent: Agent | None,
        now: float,
        received_at: int,
    ) -> None:
        self._held -= piece.packets
        if piece.payload.strip(b"\r\n"):
            self._message(
                packet, piece.payload, piece.captured_at, piece.packets, agent, now, received_at
            )
        else:
            self._refused["keep-alive"] += piece.packets

    # -- out

    def _store(
        self,
        packet: hep.Packet,
        payload: bytes,
        captured_at: int | None,
        packets: int,
        agent: Agent | None,
        received_at: int,
        transport: str | None,
        call_id: str | None,
        why: str | None,
    ) -> None:
        if why is None:
            self._stored_out += packets
        else:
            self._quarantined_out += packets
        self._stored.append(
            Stored(
                received_at,
                captured_at,
                packet.agent_id,
                packet.protocol_type,
                packet.source,
                packet.source_port,
                packet.destination,
                packet.destination_port,
                transport,
                call_id,
                payload,
                packets,
                why,
                agent.peer if agent is not None else None,
            )
        )

    def _count(self, record: Output) -> None:
        """Count a record the first time that it leaves; revisions change rows, not counters."""
        if isinstance(record, CallRecord):
            if record.revision or (not record.seizure and record.final_code is None):
                return
            key = (record.final_class or "unknown", code_label(record.final_code))
            self._finals[(*key, record.final_origin or "unknown")] += 1
            if record.tenant is not None:
                self._count_cohort(record)
            if record.pdd_ms is not None:
                self._pdd.observe(record.pdd_ms / 1000)
            if record.setup_ms is not None:
                self._setup.observe(record.setup_ms / 1000)
            self._findings.update(record.findings)
        elif isinstance(record, MediaRecord):
            if not record.revision:
                self._count_media(record)
        elif isinstance(record, AttemptRecord):
            if not record.revision:
                self._attempt_finals[
                    (record.final_class or "unknown", code_label(record.final_code))
                ] += 1
        elif isinstance(record, RegistrationRecord):
            self._registrations[code_label(record.final_code)] += 1
        elif isinstance(record, PingRecord):
            self._pings[code_label(record.final_code)] += 1

    def _count_cohort(self, record: CallRecord) -> None:
        labels = (record.tenant, record.trunk, record.direction, record.region)
        own = record.final_origin == "admission"
        what = "admission" if own else record.final_class or "unknown"
        tenant, trunk, direction, region = (label or OTHER for label in labels)
        key = (tenant, trunk, direction, region, what)
        if key not in self._cohort_finals and len(self._cohort_finals) >= MAX_COHORTS:
            key = (OTHER, OTHER, OTHER, OTHER, what)
        self._cohort_finals[key] += 1

    def _count_media(self, record: MediaRecord) -> None:
        direction = record.direction
        if record.mos is not None and record.mos_scale is not None:
            key = (record.mos_scale, direction)
            self._mos.setdefault(key, Histogram(MOS_BOUNDS)).observe(record.mos)
        elif record.unrated is not None:
            self._unrated[record.unrated] += 1
        if record.loss_percent is not None:
            histogram = self._loss.setdefault(direction, Histogram(LOSS_BOUNDS))
            histogram.observe(record.loss_percent / 100)
        if record.jitter_ms is not None:
            histogram = self._jitter.setdefault(direction, Histogram(JITTER_BOUNDS))
            histogram.observe(record.jitter_ms / 1000)


_METHODS_WITH_QUALITY = frozenset({"BYE", "PUBLISH", "NOTIFY"})
_NO_REPORT = frozenset({"not-rtcp", "not-quality"})
"""Words for payloads that never claimed to be one: log lines, events of other kinds."""
_VQ_TEXT = re.compile(rb"\A\s*VQ|(?:NLR|MOSLQ)=", re.IGNORECASE)
"""RFC 6035's body, or its figures alone, as some agents send under HEP type 35."""


def _reports_in(kind: hep.Kind, payload: bytes) -> Sequence[Said]:
    """A payload that is no SIP to what it says of media; nothing for what is not about media."""
    if kind is hep.Kind.RTCP:
        return rtcp.parse(payload)
    if kind is hep.Kind.JSON:
        try:
            return (rtcp.parse_json(payload),)
        except rtcp.RtcpError as error:
            if error.why != "not-rtcp":
                raise
        return quality.parse_log(payload)
    if kind is hep.Kind.NG:
        return quality.parse_ng(payload)
    if kind is hep.Kind.LOG:
        return quality.parse_log(payload)
    if kind is hep.Kind.OTHER and _VQ_TEXT.search(payload, 0, 4096):
        return quality.parse_vq(payload)
    return ()


def _quality_in(message: sip.Message) -> Sequence[Said]:
    """The accounts of a session's quality that SIP carries: RFC 6035, and phones' headers on a BYE.

    Such a header is of whoever sent the message: the one that hangs up, or the one that answers it.
    """
    if message.method == "BYE":
        # Nearly none has one, and to look for a header that is not kept costs much more.
        if b"-rtp-stat" not in message.head.lower():
            return ()
        stats = message.first("x-rtp-stat") or message.first("p-rtp-stat")
        if not stats:
            return ()
        tag = message.from_tag if message.status is None else message.to_tag
        return (msgspec.structs.replace(quality.parse_rtp_stat(stats), local_tag=tag),)
    if message.status is None and (message.first("event") or "").lower().startswith("vq-rtcpxr"):
        return quality.parse_vq(message.body)
    return ()


def _stored_reports(m: Restored) -> tuple[Sequence[Said], sip.Message | None]:
    """What a stored message says of media, and the message itself if it is SIP."""
    kind = hep.sniff(m.payload, m.kind)
    try:
        if kind is not hep.Kind.SIP:
            return _reports_in(kind, m.payload), None
        message = sip.parse(m.payload)
    except WireError:
        return (), None
    try:
        return _quality_in(message), message
    except quality.QualityError:
        return (), message


def _clock(captured_at: int | None, agent: Agent | None, received_at: int) -> tuple[int, int]:
    """By which clock a message is dated, and when."""
    if captured_at is None or agent is None:
        return RECEIVER, received_at
    return agent.clock, captured_at


_PEOPLE = ("caller_caller_id_number", "caller_destination_number", "from_user")


def _masked(event: esl.Event, mask: Mask) -> esl.Event:
    """The event with the tokens of the users that it names."""
    names = {name: text for name in _PEOPLE if (text := getattr(event, name))}
    return msgspec.structs.replace(event, **{name: mask.user(names[name]) for name in names})


def _of_a_call(message: sip.Message) -> bool:
    """Whether a message is a fact of a call; REGISTER and OPTIONS outside a dialog are not."""
    inside = message.to_tag and message.status is None
    return bool(inside) or message.method not in ("REGISTER", "OPTIONS")


def _connection(packet: hep.Packet) -> tuple[bytes, int, bytes, int]:
    """One direction of one connection."""
    return packet.source, packet.source_port, packet.destination, packet.destination_port


def _figures(agent: Agent, now: float) -> AgentFigures:
    return AgentFigures(
        agent.agent_id,
        agent.peer,
        sip.text(agent.node_name) if agent.node_name else None,
        agent.packets,
        max(now - agent.last_now, 0.0),
        agent.skew_seconds,
        hep.address_text(agent.local) if agent.local else None,
    )
