"""Where media flows and who sends it, to the call it belongs to: for reports that name no call.

Most capture agents name the call (correlation id). For those that do not, the addresses and SSRCs of
SDP tell. That costs something per message, so it begins with the first report that needs it: calls
that are known then are taken in bit by bit, and what is not asked for is forgotten.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from sipsidecar.calls.call import Call, Endpoint
from sipsidecar.calls.media import Facts
from sipsidecar.calls.negotiation import media_addresses, ssrcs_of
from sipsidecar.wire import quality, rtcp

Said = rtcp.Report | quality.SessionQuality
"""Whatever is reported of a call's media."""

MAX_KEYS = 200_000
"""Addresses and SSRCs together."""
MAX_KEYS_PER_CALL = 64
SWEEP = 64
"""Known calls taken in per report that names no call, when the first such report has come."""
QUIET = 600.0
"""Seconds without such a report after which everything is forgotten."""

Key = Endpoint | int


class MediaIndex:
    """Addresses and SSRCs of live calls."""

    def __init__(self) -> None:
        self.wanted = False
        """Reports come that name no call: bodies are worth reading."""
        self._asked_at = 0.0
        self._calls: dict[Key, str | None] = {}
        self._keys: dict[str, list[Key]] = {}
        self._unread: deque[str] = deque()
        self.refused = 0
        """Addresses and SSRCs over the caps."""
        self.ambiguous = 0
        """Those that two live calls claim: behind NAT everybody has 192.168.1.2."""

    def __len__(self) -> int:
        return len(self._calls)

    def want(self, calls: dict[str, Call], now: float) -> None:
        """A report came that names no call: begin, or go on, to take in the calls that are known."""
        self._asked_at = now
        if not self.wanted:
            self.wanted = True
            self._unread.extend(calls)
        for _ in range(min(SWEEP, len(self._unread))):
            call = calls.get(self._unread.popleft())
            if call is not None:
                for body in bodies_of(call):
                    self.read(call.call_id, body, calls)

    def read(self, call_id: str, body: bytes, calls: dict[str, Call]) -> None:
        """Take in what a body says: RTP and RTCP addresses of audio, SSRCs."""
        for endpoint in media_addresses(body):
            self._add(endpoint, call_id, calls)
        for ssrc in ssrcs_of(body):
            self._add(ssrc, call_id, calls)

    def learn(self, call_id: str, ssrc: int, calls: dict[str, Call]) -> None:
        """Take in an SSRC that spoke in a call."""
        self._add(ssrc, call_id, calls)

    def find(self, source: Endpoint, destination: Endpoint, ssrcs: Iterable[int]) -> str | None:
        """Name the call of a report by its addresses, else by its SSRCs; None unless one is meant."""
        for keys in ((source, destination), tuple(ssrcs)):
            found = {call_id for key in keys if (call_id := self._calls.get(key)) is not None}
            if len(found) == 1:
                return found.pop()
            if found:
                return None
        return None

    def forget(self, call_id: str) -> None:
        """Let go of a call that is over."""
        for key in self._keys.pop(call_id, ()):
            if self._calls.get(key) in (call_id, None):
                self._calls.pop(key, None)

    def rest(self, now: float) -> None:
        """Forget everything when no report has needed it for long."""
        if self.wanted and now - self._asked_at > QUIET:
            self.wanted = False
            self._calls.clear()
            self._keys.clear()
            self._unread.clear()

    def _add(self, key: Key, call_id: str, calls: dict[str, Call]) -> None:
        holder = self._calls.get(key, "")
        if holder == call_id or holder is None:
            return
        keys = self._keys.setdefault(call_id, [])
        if len(keys) >= MAX_KEYS_PER_CALL or (not holder and len(self._calls) >= MAX_KEYS):
            self.refused += 1
            return
        keys.append(key)
        other = calls.get(holder) if holder else None
        if other is not None and other.emitted is None:
            self.ambiguous += 1
            self._calls[key] = None
        else:
            self._calls[key] = call_id  # a port is used again by the next call


def bodies_of(call: Call) -> Iterator[bytes]:
    """Every body that is kept of a call."""
    for leg in call.legs.values():
        if leg.first is not None and leg.first.body:
            yield leg.first.body
        for reply in leg.replies.values():
            if reply.body:
                yield reply.body
    for ack in call.acks.values():
        if ack.body:
            yield ack.body
    for session in (call.sessions or {}).values():
        yield session.body


def join(
    facts: Facts,
    said: Said,
    source: Endpoint,
    destination: Endpoint,
    clock: int,
    at: int,
    reporter: str | None = None,
) -> None:
    """Join one report, of an interval or of a whole session; `reporter` where it is known."""
    if isinstance(said, rtcp.Report):
        facts.see_report(said, source, destination, clock, at, reporter=reporter)
    else:
        facts.see_quality(said, source, destination, clock, at)


def ssrcs_in(said: Said) -> tuple[int, ...]:
    """The SSRCs that a report names: its own first."""
    if isinstance(said, rtcp.Report):
        return (said.ssrc, *(block.source_ssrc for block in said.blocks))
    return tuple(ssrc for ssrc in (said.local_ssrc, said.remote_ssrc) if ssrc is not None)
