"""Sends a span per ended call to a collector of OpenTelemetry, in batches (OTLP over HTTP, JSON)."""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter, OrderedDict, deque
from typing import Final, NamedTuple

import msgspec

from sipsidecar import __version__
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.config import Otel
from sipsidecar.posting import Poster, PostError
from sipsidecar.signals.spans import (
    attribute,
    is_sampled,
    request_of,
    span_id_of,
    span_of,
    trace_id_of,
)

MOST_SPANS: Final = 512
"""In one message."""
MOST_WAITING: Final = 8192
"""Spans that wait; what comes while there are so many is dropped."""
MOST_BYTES: Final = 16 * 2**20
"""Of all that wait."""
MOST_KNOWN: Final = 65_536
"""Spans whose ids are remembered: a record that comes again with late facts is told once."""
CLOSING: Final = 2.0
"""Seconds that `close` waits for what is not sent yet."""
_AGAIN = (429, 502, 503, 504)
"""HTTP statuses after which OTLP has a client try again; no other."""

log = logging.getLogger("sipsidecar.otel")


class Timing(NamedTuple):
    """Seconds."""

    every: float = 5.0
    one_try: float = 10.0
    first_pause: float = 1.0
    longest_pause: float = 30.0
    give_up: float = 300.0
    """After these a batch counts as failed."""


class _Partial(msgspec.Struct):
    rejected_spans: int | str = msgspec.field(name="rejectedSpans", default=0)


class _Answer(msgspec.Struct):
    """ExportTraceServiceResponse."""

    partial_success: _Partial | None = msgspec.field(name="partialSuccess", default=None)


class Exporter:
    """Takes records, and sends the spans of those that are sampled while `run` runs."""

    def __init__(self, settings: Otel, timing: Timing | None = None) -> None:
        self.counters: Counter[str] = Counter(sent=0, dropped=0, failed=0, unsampled=0)
        """Spans: taken by the collector; dropped for want of room; not taken; left out by the ratio."""
        self._settings = settings
        self._timing = timing or Timing()
        self._resource = [attribute("service.name", settings.service_name)]
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._known: OrderedDict[str, None] = OrderedDict()
        self._full, self._ending, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._poster = Poster(self._timing.one_try, keep=True)
        self._running = False
        self._aloft = 0
        self._failing = False

    @property
    def waiting(self) -> int:
        """Spans that are not sent yet."""
        return len(self._waiting) + self._aloft

    def add(self, record: CallRecord | AttemptRecord) -> None:
        """Take the record of a call, once it has ended, or of an attempt."""
        if not self._settings.endpoint or (isinstance(record, CallRecord) and not record.ended):
            return
        branch = (record.branch,) if isinstance(record, AttemptRecord) else ()
        span_id = span_id_of(record.call_id, record.from_tag, *branch)
        if span_id in self._known:
            return
        self._known[span_id] = None
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        if not is_sampled(trace_id_of(record.call_id), self._settings.ratio):
            self.counters["unsampled"] += 1
            return
        if len(self._waiting) >= MOST_WAITING or self._bytes >= MOST_BYTES:
            self.counters["dropped"] += 1
            return
        span = span_of(record)
        self._waiting.append(span)
        self._bytes += len(span)
        if len(self._waiting) >= MOST_SPANS:
            self._full.set()

    async def run(self) -> None:
        """Send batches until closed or cancelled."""
        self._running = True
        try:
            while not (self._ending.is_set() and not self._waiting):
                await self._wait()
                while self._waiting:
                    await self._send()
        finally:
            self._running = False
            self._ended.set()
            await self._poster.close()

    async def close(self) -> None:
        """Send what can be sent in `CLOSING` seconds; the rest is dropped."""
        self._ending.set()
        self._full.set()
        if self._running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await self._ended.wait()
        self.counters["dropped"] += self.waiting
        self._waiting.clear()
        self._bytes = self._aloft = 0

    async def _wait(self) -> None:
        """Until a batch is full, or its time is up."""
        if len(self._waiting) < MOST_SPANS:
            self._full.clear()
            if self._ending.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timing.every):
                    await self._full.wait()

    async def _send(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(MOST_SPANS, len(self._waiting)))]
        self._bytes -= sum(map(len, batch))
        self._aloft = len(batch)
        body = request_of(batch, self._resource, __version__)
        rejected = await self._post(body, len(batch))
        if not self._aloft:
            return  # it was counted at the end
        self._aloft = 0
        self.counters["failed"] += rejected
        self.counters["sent"] += len(batch) - rejected

    async def _post(self, body: bytes, spans: int) -> int:
        """How many spans of a batch were not taken."""
        timing, pause = self._timing, self._timing.first_pause
        headers = {**self._settings.headers, "Content-Type": "application/json"}
        began = time.monotonic()
        while True:
            after: float | None = None
            try:
                reply = await self._poster.post(self._settings.endpoint, headers, body)
            except PostError as error:
                why = error.why
            else:
                why, after = f"HTTP {reply.status}", reply.after
                if 200 <= reply.status < 300:
                    self._say("")
                    return min(_rejected(reply.body), spans)
                if reply.status not in _AGAIN:
                    self._say(why)
                    return spans
            self._say(why)
            wait = max(after or 0.0, pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            if self._ending.is_set() or time.monotonic() + wait - began > timing.give_up:
                return spans
            pause = min(pause * 2, timing.longest_pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ending.wait()

    def _say(self, why: str) -> None:
        if why and not self._failing:
            log.warning("the collector does not take spans: %s", why)
        elif self._failing and not why:
            log.info("the collector takes spans again")
        self._failing = bool(why)


def _rejected(body: bytes) -> int:
    """Spans that the collector took the message but not them; what cannot be read says none."""
    with contextlib.suppress(ValueError, RecursionError):
        partial = msgspec.json.decode(body, type=_Answer).partial_success
        if partial is not None:
            text = str(partial.rejected_spans)
            return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    return 0
