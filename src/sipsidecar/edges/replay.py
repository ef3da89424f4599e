"""Capture files to a pipeline: HEP or plain SIP, over UDP or TCP, with the capture's own time."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sipsidecar.pipeline import Output, Pipeline, Stored
from sipsidecar.wire import hep, pcap

MAX_CONNECTIONS = 4096
"""HEP over TCP connections of a file that are followed."""

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
        self._streams: dict[tuple[bytes, int, bytes, int], hep.HepStream] = {}
        self.now = 0.0
        self.packets = 0
        self.not_sip = 0
        """Payloads that are neither HEP nor SIP: other protocols of the capture."""
        self.truncated: list[str] = []

    def __iter__(self) -> Iterator[Output]:
        """Feed everything, then let every timer run out as it would in life."""
        pipeline = self._pipeline
        total = sum(path.stat().st_size for path in self._paths if path.is_file())
        for count, captured in enumerate(heapq.merge(*map(self._read, self._paths), key=_time)):
            self._run_until(_time(captured) / 1_000_000)
            yield from self._out()
            self._feed(captured)
            if self._progress and not count % 1000:
                self._progress(self._position, total)
        pipeline.flush(self.now)
        yield from self._out()
        while (due := pipeline.next_timer()) is not None:
            self._run_until(due)
            yield from self._out()

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
                    position = file.tell()
                    self._position += position - last
                    last = position
                    yield captured
                self.packets += reader.packets
                if reader.truncated:
                    self.truncated.append(str(path))
        except OSError as error:
            raise ReplayError(f"{path}: {error.strerror}") from None

    def _feed(self, captured: pcap.Captured) -> None:
        at = _time(captured)
        peer = hep.address_text(captured.source) or ""
        payload = captured.payload
        if captured.protocol == pcap.TCP:
            key = (
                captured.source,
                captured.source_port,
                captured.destination,
                captured.destination_port,
            )
            framing = self._streams.get(key)
            if framing is None and payload[:4] in (b"HEP3", b"EEP3"):
                if len(self._streams) >= MAX_CONNECTIONS:
                    self._streams.pop(next(iter(self._streams)))
                framing = self._streams[key] = hep.HepStream()
            if framing is not None:
                try:
                    frames = framing.feed(payload)
                except hep.HepError:
                    del self._streams[key]
                    self.not_sip += 1
                    return
                for frame in frames:
                    self._pipeline.receive(frame, self.now, at, peer)
                return
        elif _is_hep(payload):
            self._pipeline.receive(payload, self.now, at, peer)
            return
        kind = hep.sniff(payload, 1)
        if captured.protocol == pcap.UDP and kind is not hep.Kind.SIP:
            self.not_sip += 1
            return
        self._pipeline.receive_plain(
            hep.Packet(
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
                kind=kind,
            ),
            self.now,
            at,
        )

    def _run_until(self, at: float) -> None:
        pipeline = self._pipeline
        while (due := pipeline.next_timer()) is not None and due <= at:
            self.now = max(self.now, due)
            pipeline.handle_timer(self.now)
        self.now = max(self.now, at)

    def _out(self) -> Iterator[Output]:
        stored = self._pipeline.stored()
        if stored and self._keep:
            self._keep(stored)
        yield from self._pipeline.records()


def _is_hep(payload: bytes) -> bool:
    if payload[:4] in (b"HEP3", b"EEP3", b"EEP1"):
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
