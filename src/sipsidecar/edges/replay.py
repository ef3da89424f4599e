"""Capture files to a pipeline: HEP or plain SIP, over UDP or TCP, with the capture's own time.

And transcripts of a FreeSWITCH's event socket: events and packets come in the order of their times.
"""

import heapq
import io
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from sipsidecar.pipeline import Output, Pipeline, Stored
from sipsidecar.signals.switches import count, share
from sipsidecar.wire import esl, hep, pcap

MAX_CONNECTIONS = 4096
"""TCP connections of a file that are followed; the one silent for longest gives way."""
TELLING = 32
"""Bytes that show what a TCP connection carries."""

REORDER = 20_000
"""Packets over which a file may be out of order."""
REORDER_EVENTS = 2000
"""The same for the events of a transcript, which are larger."""
CHUNK = 1 << 16
"""Bytes of a transcript that are read at once."""
MAX_SWITCHES = 1000
"""Switches that are told apart: their names are in the files."""
MAX_LEGS = 100_000
"""Legs of a switch that are known to be live."""
MAX_RESTARTS = 10_000
"""Restarts that are noticed, of all switches."""

Progress = Callable[[int, int], None]
"""Bytes read so far, bytes in all."""


class ReplayError(ValueError):
    """A file that cannot be replayed; the message is one line that says why."""


class Switch(msgspec.Struct, kw_only=True):
    """What the transcripts say of one FreeSWITCH; None for what they do not."""

    switch: str
    """Its own name."""
    core_uuid: str | None = None
    """The newest: another one after each restart."""
    version: str | None = None
    restarts: int = 0
    events: int = 0
    first_event_at: int
    """Microseconds UTC, as all times."""
    last_event_at: int
    heartbeats: int = 0
    heartbeat_at: int | None = None
    sessions: int | None = None
    """Of the last heartbeat, as what follows; sessions are legs."""
    max_sessions: int | None = None
    sessions_per_second: int | None = None
    sessions_per_second_left: int | None = None
    """Of this second's budget: the limit when nothing was going on."""
    idle_cpu: float | None = None
    """Share of the time, 0 to 1."""
    uptime_ms: int | None = None
    sessions_since_startup: int | None = None
    sessions_peak: int | None = None
    """Since its start, by its own word."""
    sessions_seen: int = 0
    """Most at once in the transcripts."""


class _Told(NamedTuple):
    """One event of a transcript."""

    captured_at: int
    switch: str
    event: esl.Event


_Item = TypeVar("_Item", pcap.Captured, _Told)


class Replay:
    """One run over capture files; iterate over it for what leaves the pipeline, in order."""

    def __init__(
        self,
        paths: Sequence[Path],
        pipeline: Pipeline,
        *,
        keep: Callable[[list[Stored]], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._paths = paths
        self._pipeline = pipeline
        self._keep = keep
        self._progress = progress
        self._flows: OrderedDict[tuple[bytes, int, bytes, int], hep.HepStream | bytes | None]
        self._flows = OrderedDict()
        self.now = 0.0
        self.packets = 0
        self.not_sip = 0
        """Payloads that are neither HEP nor SIP: other protocols of the capture."""
        self.cut = 0
        """Packets of which the capture holds only the beginning."""
        self.skipped: Counter[str] = Counter()
        """Packets without UDP or TCP payload to give, by reason."""
        self.truncated: list[str] = []
        """Files that end inside a packet or an event."""
        self.broken: list[str] = []
        """Transcripts that make no sense from somewhere on."""
        self.events = 0
        self.events_refused: Counter[str] = Counter()
        """Frames of transcripts that were left out, by why."""
        self.switches: dict[str, Switch] = {}
        """By name, those of the transcripts."""
        self._live: dict[str, set[str]] = {}
        self._processes: set[tuple[str, str]] = set()
        """Names and Core-UUIDs: hosts of one name take turns, which is no restart each time."""

    def __iter__(self) -> Iterator[Output]:
        """Feed everything, then let every timer run out as it would in life."""
        for turn in self.turns():
            yield from turn

    def turns(self) -> Iterator[list[Output]]:
        """The same packet by packet, for who must not let what is kept pile up."""
        pipeline = self._pipeline
        total = sum(path.stat().st_size for path in self._paths if path.is_file())
        merged = heapq.merge(*(self._read(path) for path in self._paths), key=_time)
        for number, item in enumerate(merged):
            self._run_until(_time(item) / 1_000_000)
            yield self._out()
            if isinstance(item, _Told):
                self._tell(item)
            else:
                self._feed(item)
            if self._progress and not number % 1000:
                self._progress(self._position, total)
        pipeline.flush(self.now)
        yield self._out()
        while (due := pipeline.next_timer()) is not None:
            self._run_until(due)
            yield self._out()

    _position = 0

    def _read(self, path: Path) -> Iterator[pcap.Captured | _Told]:
        """What is in a file, by time; its first bytes tell what it is."""
        try:
            with path.open("rb") as file:
                begin = file.peek(4)[:4]
                if any(magic.startswith(begin) for magic in _PCAP_MAGICS):
                    yield from _in_order(self._read_capture(file, path), REORDER)
                else:
                    yield from _in_order(self._read_transcript(file, path), REORDER_EVENTS)
        except OSError as error:
            raise ReplayError(f"{path}: {error.strerror}") from None

    def _read_capture(self, file: io.BufferedReader, path: Path) -> Iterator[pcap.Captured]:
        try:
            reader = pcap.Reader(file)
        except pcap.PcapError:
            raise _unknown(path) from None
        last = 0
        for captured in reader:
            if file.seekable():  # a pipe is not
                position = file.tell()
                self._position += position - last
                last = position
            yield captured
        self.packets += reader.packets
        self.cut += reader.cut
        self.skipped += reader.skipped
        if reader.truncated:
            self.truncated.append(str(path))

    def _read_transcript(self, file: io.BufferedReader, path: Path) -> Iterator[_Told]:
        """Its events; an event without a time has that of the one before, the first that of the next."""
        connection = esl.Connection(recorded=True)
        at: int | None = None
        name = ""
        undated: list[esl.Event] = []
        nothing = True
        while connection.fault is None and (data := file.read(CHUNK)):
            self._position += len(data)
            try:
                found = connection.receive_data(data)
            except esl.EslError:
                break
            nothing = nothing and not found
            for item in found:
                if isinstance(item, esl.Reply):
                    continue
                at = _event_time(item) or at
                name = item.freeswitch_switchname or name or item.core_uuid or ""
                undated.append(item)
                if at is not None or len(undated) > REORDER_EVENTS:
                    yield from (_Told(at or 0, name, event) for event in undated)
                    undated.clear()
        if nothing and (connection.fault or connection.pending):
            raise _unknown(path)
        yield from (_Told(0, name, event) for event in undated)
        self.events_refused += connection.refused
        if connection.fault:
            self.broken.append(str(path))
        elif connection.pending:
            self.truncated.append(str(path))

    def _tell(self, told: _Told) -> None:
        self.events += 1
        self._count(told)
        self._pipeline.receive_event(told.switch, told.event, self.now, told.captured_at)

    def _count(self, told: _Told) -> None:
        """Keep what one event says of its switch."""
        at, event = told.captured_at, told.event
        one = self.switches.get(told.switch)
        if one is None:
            if len(self.switches) >= MAX_SWITCHES:
                return
            one = Switch(switch=told.switch, first_event_at=at, last_event_at=at)
            self.switches[told.switch] = one
        live = self._live.setdefault(told.switch, set())
        one.events += 1
        one.last_event_at = at
        one.version = event.freeswitch_version or one.version
        if event.core_uuid and event.core_uuid != one.core_uuid:
            self._see_process(one, event.core_uuid)
        if event.event_name == "CHANNEL_CREATE" and event.unique_id and len(live) < MAX_LEGS:
            live.add(event.unique_id)
        elif event.event_name == "CHANNEL_DESTROY" and event.unique_id:
            live.discard(event.unique_id)
        elif event.event_name == "HEARTBEAT":
            one.heartbeats += 1
            one.heartbeat_at = at
            one.sessions = count(event.session_count)
            one.max_sessions = count(event.max_sessions)
            one.sessions_per_second = count(event.session_per_sec_last)
            one.sessions_per_second_left = count(event.session_per_sec)
            one.idle_cpu = share(event.idle_cpu)
            one.uptime_ms = count(event.uptime_msec)
            one.sessions_since_startup = count(event.session_since_startup)
            one.sessions_peak = count(event.session_peak_max)
        one.sessions_seen = max(one.sessions_seen, one.sessions or 0, len(live))

    def _see_process(self, one: Switch, core_uuid: str) -> None:
        process = (one.switch, core_uuid)
        if process in self._processes or len(self._processes) >= MAX_RESTARTS:
            return
        self._processes.add(process)
        if one.core_uuid is not None:
            one.restarts += 1
            self._pipeline.bridging.legs.forget_switch(one.switch, core_uuid)
            self._live[one.switch].clear()
        one.core_uuid = core_uuid

    def _feed(self, captured: pcap.Captured) -> None:
        payload = captured.payload
        if captured.protocol == pcap.TCP:
            self._feed_tcp(captured)
        elif _is_hep(payload):
            self._hep(captured, payload)
        elif hep.sniff(payload, 1) is hep.Kind.SIP:
            self._sip(captured, payload)
        else:
            self.not_sip += 1

    def _feed_tcp(self, captured: pcap.Captured) -> None:
        """Bytes of a connection that carries HEP, SIP, or what nobody asked for.

        A flow is known by a stream of HEP frames, None for SIP, or bytes too few to tell.
        """
        flow = (
            captured.source,
            captured.source_port,
            captured.destination,
            captured.destination_port,
        )
        payload = captured.payload
        known = self._flows.pop(flow, b"")
        if isinstance(known, bytes):
            payload = known + payload
            if any(mark in payload for mark in _HEP3_MARKS):
                known = hep.HepStream()
            elif hep.sniff(payload, 1) is hep.Kind.SIP:
                known = None
            elif len(payload) < TELLING and b"\n" not in payload.lstrip(b"\r\n"):
                known = payload
            else:
                self.not_sip += 1
                return
        self._flows[flow] = known
        if len(self._flows) > MAX_CONNECTIONS:
            self._flows.popitem(last=False)
        if known is None:
            self._sip(captured, payload)
        elif isinstance(known, hep.HepStream):
            try:
                frames = known.feed(payload)
            except hep.HepError:
                del self._flows[flow]
                self.not_sip += 1
                return
            for frame in frames:
                self._hep(captured, frame)

    def _hep(self, captured: pcap.Captured, frame: bytes) -> None:
        peer = hep.address_text(captured.source) or ""
        self._pipeline.receive(frame, self.now, _time(captured), peer)

    def _sip(self, captured: pcap.Captured, payload: bytes) -> None:
        at = _time(captured)
        packet = hep.Packet(
            version=0,
            source=captured.source,
            destination=captured.destination,
            source_port=captured.source_port,
            destination_port=captured.destination_port,
            ip_protocol=captured.protocol,
            captured_at=at,
            protocol_type=1,
            agent_id=None,
            auth_key=None,
            correlation_id=None,
            node_name=None,
            payload=payload,
            kind=hep.Kind.SIP,
        )
        self._pipeline.receive_plain(packet, self.now, at)

    def _run_until(self, at: float) -> None:
        pipeline = self._pipeline
        while (due := pipeline.next_timer()) is not None and due <= at:
            self.now = max(self.now, due)
            pipeline.handle_timer(self.now)
        self.now = max(self.now, at)

    def _out(self) -> list[Output]:
        stored = self._pipeline.stored()
        if stored and self._keep:
            self._keep(stored)
        return self._pipeline.records()


_HEP3_MARKS = (b"HEP3", b"EEP3", b"EEP1")
_PCAP_MAGICS = (
    b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1",
    b"\n\r\r\n",
)  # fmt: skip
_MICROSECONDS = re.compile("[0-9]{1,16}")


def _unknown(path: Path) -> ReplayError:
    return ReplayError(
        f"{path}: not a pcap or pcapng file, nor a transcript of a FreeSWITCH's event socket; "
        "write one with tcpdump -w or Wireshark"
    )


def _event_time(event: esl.Event) -> int | None:
    text = event.event_date_timestamp
    return int(text) if text and _MICROSECONDS.fullmatch(text) else None


def _in_order(read: Iterator[_Item], most: int) -> Iterator[_Item]:
    """What is in a file by time: merged and multi-queue captures are not, and time drives timers."""
    waiting: list[tuple[int, int, _Item]] = []
    for number, item in enumerate(read):
        heapq.heappush(waiting, (_time(item), number, item))
        if len(waiting) > most:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _is_hep(payload: bytes) -> bool:
    if payload[:4] in _HEP3_MARKS:
        return True
    if payload[:1] not in (b"\x01", b"\x02"):
        return False
    try:
        hep.decode(payload)
    except hep.HepError:
        return False
    return True


def _time(item: pcap.Captured | _Told) -> int:
    return item.captured_at or 0
