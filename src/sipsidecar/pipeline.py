"""HEP packets and time to call records and stored messages: the house without its doors."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from sipsidecar.calls.agents import Agent, Agents
from sipsidecar.calls.call import RECEIVER, Call
from sipsidecar.calls.dialog import IMPLAUSIBLE_US, TIMER_B, Timing
from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    PingRecord,
    RegistrationRecord,
)
from sipsidecar.calls.restoring import Sighting, StoredRow
from sipsidecar.calls.table import CallTable, Retraction
from sipsidecar.calls.transactions import TransactionTable
from sipsidecar.gate import WHYS as GATE_WHYS
from sipsidecar.gate import Gate
from sipsidecar.privacy import Mask
from sipsidecar.signals.snapshot import (
    DELAY_BOUNDS,
    AgentFigures,
    Histogram,
    Snapshot,
    code_label,
)
from sipsidecar.wire import hep, sip, stream

MAX_STREAMS = 4096
"""TCP or TLS connections whose messages are put together at once; the quietest gives way."""
STREAM_PATIENCE = 32.0
"""Seconds that a part of a message waits for the rest."""
UDP = 17
REFUSED_KINDS = {
    hep.Kind.KEEP_ALIVE: "keep-alive",
    hep.Kind.EMPTY: "empty-payload",
    hep.Kind.STUN: "stun",
}

Output = CallRecord | AttemptRecord | RegistrationRecord | PingRecord | Retraction


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
    """One stored SIP message, to be joined again after a restart."""

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
    ) -> None:
        self._mask = mask or Mask()
        self.gate = gate or Gate()
        """Who may speak; another may take its place at any time."""
        self.agents = Agents(local)
        self.calls = CallTable(self.agents, timing, max_calls=max_calls, linger=linger)
        self.transactions = TransactionTable(self.agents, timing)
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
        self._registrations: Counter[str] = Counter()
        self._pings: Counter[str] = Counter()
        self._pdd = Histogram(DELAY_BOUNDS)
        self._setup = Histogram(DELAY_BOUNDS)

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
            payload = self._mask.payload(kind, packet.payload)
            self._store(
                packet, payload, packet.captured_at, 1, agent, received_at, transport,
                call_id, None,
            )  # fmt: skip

    def restore(
        self, messages: Sequence[Restored], rows: Sequence[StoredRow], now: float
    ) -> int | None:
        """Join the stored messages of one Call-ID again; None when there is no room for the call.

        `rows` are what is stored in `calls` and `attempts` under it. Nothing is counted, kept or
        masked a second time. Returns how many messages were facts of a call: a REGISTER is none.
        """
        found: dict[str, list[Sighting]] = {}
        for m in messages:
            try:
                message = sip.parse(m.payload)
            except sip.SipError:
                continue
            if not _of_a_call(message):
                continue
            agent = self.agents.recall(m.agent_id, m.peer)
            if m.captured_at is None or agent is None:
                clock, at = RECEIVER, m.received_at
            else:
                clock, at = agent.clock, m.captured_at
            if agent is not None and agent.local is None:
                agent.learn(m.source, m.destination)
            source, destination = (m.source, m.source_port), (m.destination, m.destination_port)
            fingerprint = hash((m.payload, source, destination))
            # By the Call-ID as it came: the stored one may be clipped.
            found.setdefault(message.call_id, []).append(
                Sighting(
                    message, source, destination, m.transport, fingerprint, clock, at, m.received_at
                )
            )
        joined = 0
        for call_id, sightings in found.items():
            if not self.calls.restore(call_id, sightings, rows, now):
                return None
            joined += len(sightings)
        return joined

    def warming(self, now: float) -> bool:
        """Whether calls that are met now may lack their beginning, for this life is young."""
        until = self.calls.warming_until
        return until is not None and now < until

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do; None when nothing is waited for."""
        timers = [self.calls.next_timer(), self.transactions.next_timer()]
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
        self.calls.handle_timer(now)
        self.transactions.handle_timer(now)

    def flush(self, now: float) -> None:
        """Give out what waits in streams: at drain, and at the end of a capture file."""
        for key in list(self._streams):
            self._flush_stream(key, now)

    def drain(self, now: float) -> None:
        """Give out everything that is known: nothing received may be lost when the process ends."""
        self.flush(now)
        self.calls.drain(now)
        self.transactions.drain()

    def stored(self) -> list[Stored]:
        """Messages and quarantined payloads since the last time; drains."""
        drained, self._stored = self._stored, []
        return drained

    def records(self) -> list[Output]:
        """Records that have left since the last time; drains."""
        found: list[Output] = [*self.calls.records(), *self.transactions.records()]
        for record in found:
            self._count(record)
        return found

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
        calls, transactions = self.calls, self.transactions
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
                "lingering": calls.evicted,
                "transactions": transactions.refused,
                "agents": self.agents.overflow,
                "streams": self._oddities["stream-evicted"],
            },
            orphans=calls.orphans + transactions.orphans,
            revisions=calls.revisions,
            finals=dict(self._finals),
            attempt_finals=dict(self._attempt_finals),
            registrations=dict(self._registrations),
            pings=dict(self._pings),
            pdd=self._pdd,
            setup=self._setup,
            agents=tuple(_figures(agent, now) for agent in self.agents),
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
        if captured_at is None or agent is None:
            clock, at = RECEIVER, received_at
        else:
            clock, at = agent.clock, captured_at
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
            if record.pdd_ms is not None:
                self._pdd.observe(record.pdd_ms / 1000)
            if record.setup_ms is not None:
                self._setup.observe(record.setup_ms / 1000)
        elif isinstance(record, AttemptRecord):
            if not record.revision:
                self._attempt_finals[
                    (record.final_class or "unknown", code_label(record.final_code))
                ] += 1
        elif isinstance(record, RegistrationRecord):
            self._registrations[code_label(record.final_code)] += 1
        elif isinstance(record, PingRecord):
            self._pings[code_label(record.final_code)] += 1


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
