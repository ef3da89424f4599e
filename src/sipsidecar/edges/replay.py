"""Capture files to a pipeline: HEP or plain SIP, over UDP or TCP, with the capture's own time."""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sipsidecar.pipeline import Output, Pipeline, Stored
from sipsidecar.wire import hep, pcap

MAX_CONNECTIONS = 4096
"""TCP connections of a file that are followed; the one silent for longest gives way."""
TELLING = 32
"""Bytes that show what a TCP connection carries."""

REORDER = 20_000
"""Packets over which a file may be out of order."""

Progress = Callable[[int, int], None]
"""Bytes read so far, bytes in all."""


class ReplayError(ValueError):
    """A file that cannot be replayed; the message is one line that says why."""


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
        """Files that end inside a packet."""

    def __iter__(self) -> Iterator[Output]:
        """Feed everything, then let every timer run out as it would in life."""
        for turn in self.turns():
            yield from turn

    def turns(self) -> Iterator[list[Output]]:
        """The same packet by packet, for who must not let what is kept pile up."""
        pipeline = self._pipeline
        total = sum(path.stat().st_size for path in self._paths if path.is_file())
        merged = heapq.merge(*(_in_order(self._read(path)) for path in self._paths), key=_time)
        for count, captured in enumerate(merged):
            self._run_until(_time(captured) / 1_000_000)
            yield self._out()
            self._feed(captured)
            if self._progress and not count % 1000:
                self._progress(self._position, total)
        pipeline.flush(self.now)
        yield self._out()
        while (due := pipeline.next_timer()) is not None:
            self._run_until(due)
            yield self._out()

    _position = 0

    def _read(self, path: Path) -> Iterator[pcap.Captured]:
        try:
            with path.open("rb") as file:
                try:
                    reader = pcap.Reader(file)
                except pcap.PcapError:
                    raise ReplayError(
                        f"{path}: not a pcap or pcapng file; write one with tcpdump -w or Wireshark"
                    ) from None
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
        except OSError as error:
            raise ReplayError(f"{path}: {error.strerror}") from None

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


def _in_order(read: Iterator[pcap.Captured]) -> Iterator[pcap.Captured]:
    """A file's packets by time: merged and multi-queue captures are not, and time drives timers."""
    waiting: list[tuple[int, int, pcap.Captured]] = []
    for count, captured in enumerate(read):
        heapq.heappush(waiting, (_time(captured), count, captured))
        if len(waiting) > REORDER:
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


def _time(captured: pcap.Captured) -> int:
    return captured.captured_at or 0
