"""REGISTER and OPTIONS messages to one record per transaction: result, round-trip, peer."""

import heapq
from collections import OrderedDict
from typing import Any

from sipsidecar.calls.agents import Agents
from sipsidecar.calls.call import Endpoint, Times, earlier, sendings
from sipsidecar.calls.dialog import IMPLAUSIBLE_US, INVERSION_US, MAX_TEXT, Timing
from sipsidecar.calls.events import PingRecord, RegistrationRecord
from sipsidecar.wire import hep, sip

TIMER_F = 32.0
"""64*T1: a request without any final response (RFC 3261 17.1.2.2)."""
TIMER_J = 32.0
"""64*T1: how long copies of an answered request still belong to it (RFC 3261 17.2.2)."""
MAX_TRANSACTIONS = 50_000
MAX_REPLIES = 16
TURN = 64

Key = tuple[str, str, int, str]


class _Transaction:
    __slots__ = (
        "clocks",
        "copies",
        "due",
        "ends",
        "first",
        "first_received_at",
        "key",
        "replies",
        "request",
        "transport",
    )

    def __init__(self, key: Key, received_at: int) -> None:
        self.key = key
        self.first_received_at = received_at
        self.due = 0.0
        self.request: sip.Message | None = None
        self.first: tuple[int, int] | None = None
        self.ends: tuple[Endpoint, Endpoint] | None = None
        self.transport: str | None = None
        self.copies: dict[int, set[int]] = {}
        self.replies: dict[tuple[int, str], Times] = {}
        self.clocks: set[int] = set()


class TransactionTable:
    """REGISTER and OPTIONS transactions that wait for their end."""

    def __init__(self, agents: Agents, timing: Timing | None = None) -> None:
        self._agents = agents
        self._settle = (timing or Timing()).settle
        self._open: dict[Key, _Transaction] = {}
        self._closed: OrderedDict[Key, float] = OrderedDict()
        """Transactions whose record has left, and until when late copies are theirs."""
        self._deadlines: list[tuple[float, Key]] = []
        self._records: list[RegistrationRecord | PingRecord] = []
        self.refused = 0
        self.orphans = 0

    def __len__(self) -> int:
        return len(self._open)

    def receive(
        self,
        message: sip.Message,
        source: Endpoint,
        destination: Endpoint,
        transport: str | None,
        clock: int,
        at: int,
        now: float,
        received_at: int,
    ) -> None:
        """Join one request or response outside any dialog."""
        key = (message.call_id, message.method, message.cseq, message.branch)
        found = self._open.get(key)
        if found is None:
            if self._closed.get(key, now) > now:
                return  # a client behind a firewall that never gets its 200 repeats for 32 s
            if len(self._open) >= MAX_TRANSACTIONS:
                self.refused += 1
                return
            found = self._open[key] = _Transaction(key, received_at)
            self._schedule(found, now + TIMER_F + self._settle)
        elif received_at < found.first_received_at:
            found.first_received_at = received_at
        found.clocks.add(clock)
        if message.status is None:
            times = found.copies.setdefault(clock, set())
            if len(times) < 16:
                times.add(at)
            if found.first is None or (at, clock) < found.first:
                found.first = (at, clock)
                found.request = message
                found.ends = (source, destination)
                found.transport = transport
        elif message.status >= 200:
            reply = (message.status, message.phrase)
            if reply in found.replies or len(found.replies) < MAX_REPLIES:
                found.replies[reply] = earlier(found.replies.get(reply, ()), clock, at)
            if now + self._settle < found.due:
                self._schedule(found, now + self._settle)

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do; None when nothing is waited for."""
        return self._deadlines[0][0] if self._deadlines else None

    def handle_timer(self, now: float) -> None:
        """Close what is due, at most `TURN` transactions."""
        for _ in range(TURN):
            if not self._deadlines or self._deadlines[0][0] > now:
                return
            due, key = heapq.heappop(self._deadlines)
            found = self._open.get(key)
            if found is not None and found.due == due:
                del self._open[key]
                self._close(found)
                self._remember(key, now)

    def _remember(self, key: Key, now: float) -> None:
        closed = self._closed
        closed[key] = now + TIMER_J
        closed.move_to_end(key)
        while len(closed) > MAX_TRANSACTIONS or next(iter(closed.values())) <= now:
            closed.popitem(last=False)

    def drain(self) -> None:
        """Let every transaction leave; those that still waited for an answer are `interrupted`."""
        for found in self._open.values():
            self._close(found, "interrupted")
        self._open.clear()

    def records(self) -> list[RegistrationRecord | PingRecord]:
        """What has closed since the last time; drains."""
        drained, self._records = self._records, []
        return drained

    def _schedule(self, found: _Transaction, due: float) -> None:
        found.due = due
        heapq.heappush(self._deadlines, (due, found.key))

    def _close(self, found: _Transaction, unanswered: str = "no_response") -> None:
        request, first, ends = found.request, found.first, found.ends
        if request is None or first is None or ends is None:
            self.orphans += 1
            return
        at = first[0]
        final = min(
            ((min(times[1::2]), reply) for reply, times in found.replies.items()), default=None
        )
        flags = () if final else (unanswered,)
        dated_by = "agent"
        (code, phrase), rtt = (
            (final[1], self._rtt_ms(found, final[1])) if final else ((None, None), None)
        )
        if abs(at - found.first_received_at) > IMPLAUSIBLE_US:
            at, dated_by = found.first_received_at, "receiver"
        requests = max(map(sendings, found.copies.values()))
        ids = self._agents.clocks(found.clocks).agent_ids.values()
        agent_ids = tuple(sorted(i for i in ids if i is not None))
        call_id, method, cseq, branch = found.key
        common: dict[str, Any] = {
            "call_id": call_id,
            "branch": branch,
            "cseq": cseq,
            "received_at": found.first_received_at,
            "started_at": at,
            "dated_by": dated_by,
            "agent_ids": agent_ids,
            "src_ip": hep.address_text(ends[0][0]),
            "src_port": ends[0][1],
            "peer_ip": hep.address_text(ends[1][0]),
            "peer_port": ends[1][1],
            "transport": found.transport,
            "user_agent": (request.first("user-agent") or "")[:MAX_TEXT] or None,
            "final_code": code,
            "final_phrase": (phrase or "")[:MAX_TEXT] or None,
            "rtt_ms": rtt,
            "requests": requests,
            "flags": flags,
        }
        if method == "OPTIONS":
            self._records.append(PingRecord(**common))
            return
        to = request.address("to")
        self._records.append(
            RegistrationRecord(
                **common,
                aor_user=(to.uri.user or "")[:MAX_TEXT] or None if to else None,
                aor_host=(to.uri.host or "")[:MAX_TEXT] or None if to else None,
                expires=_expires(request),
                authorized=bool(
                    request.values("authorization") or request.values("proxy-authorization")
                ),
            )
        )

    @staticmethod
    def _rtt_ms(found: _Transaction, reply: tuple[int, str]) -> float | None:
        """First request to the final response, by one clock."""
        times = found.replies[reply]
        for i in range(0, len(times), 2):
            asked = found.copies.get(times[i])
            if asked:
                interval = times[i + 1] - min(asked)
                if interval < -INVERSION_US:
                    return None
                return max(interval, 0) / 1000
        return None


def _expires(request: sip.Message) -> int | None:
    """Seconds the binding was asked for: the Contact's parameter wins (RFC 3261 10.2.1.1)."""
    contact = request.first("contact")
    if contact:
        for part in contact.lower().split(";"):
            name, _, value = part.partition("=")
            if name.strip() == "expires" and value.strip().isascii() and value.strip().isdigit():
                return min(int(value.strip()[:10]), 0x7FFFFFFF)
    return request.seconds("expires")
