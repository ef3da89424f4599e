"""Callers, proxies and callees of a simulated world; HEP that loses, repeats and reorders; and the leases.

The truth is what the proxies know: which calls they let in and have not seen the end of. Their SIP
goes as real HEP through a real pipeline into a real admission, whose counts must be that truth.
"""

import heapq
import itertools
import json
import random
import re
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lives import Tables, restored, stored_row
from sim import ADDRESSES, EPOCH, PHRASES
from sipsidecar.calls.dialog import ORPHAN, TIMER_B, TIMER_C, Timing
from sipsidecar.calls.events import Sighted
from sipsidecar.pipeline import Pipeline, Stored
from sipsidecar.signals import telling
from sipsidecar.signals.admission import Admission, Policy
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.decisions import ADMIT, OVERFLOW, REFUSE, Ask, Decision
from sipsidecar.signals.kpi import Windows
from sipsidecar.signals.leases import DOUBT, LATE, OVERLAP, Leases
from sipsidecar.signals.rules import GLOBAL, SCOPES, Rule
from sipsidecar.wire import hep
from sipsidecar.wire.esl import Event

COHORTS = Cohorts(
    [
        Matcher(trunk="acme", direction="inbound", sources=(ADDRESSES["A"],)),
        Matcher(tenant="ivr", destinations=(ADDRESSES["D"],)),
    ],
    {2001: "edge", 2002: "core"},
)
HOPS = {"P": 2001, "Q": 2002}
"""Who mirrors what it receives and sends, and its capture id."""
PATIENCE = 0.2
"""Seconds that a proxy waits for an answer; then the call passes."""
LATEST = 3.0
"""Seconds that a question may be late."""
PENDING, QUIET, LOOK = 5.0, 120.0, 10.0
RIGHT = 0.4
"""Seconds after which an end must show that was heard of: HEP takes up to 0.3, an answer to a BYE 0.03."""
WAIT = Generator[float, None, None]
FINAL = re.compile(r"P>A ([3-6]\d\d)/INVITE b(\d+)")


@dataclass
class Way:
    """What becomes of a message on its way here."""

    loss: float = 0.0
    again: float = 0.0
    """Share that comes twice."""
    late: float = 0.3
    """Longest way, seconds: messages overtake each other."""
    question_loss: float = 0.0
    answer_late: float = 0.0


@dataclass
class Truth:
    """One Call-ID as its proxy knows it."""

    kind: str
    exempt: bool = False
    asked: bool = False
    """All its questions were answered in time."""
    unanswered: bool = False
    """It passed for want of an answer; one that came late may have refused it."""
    live: bool = False
    since: float = 0.0
    """Of `live`."""
    reborn: float = 0.0
    """When the sidecar was started again."""
    quick: bool = False
    """It was let in just before it ended."""
    cseq: int = 0
    """Of the caller's newest INVITE."""
    heard: Counter[str] = field(default_factory=Counter)
    """What of it reached the sidecar."""
    log: list[str] = field(default_factory=list)
    """For whoever must understand a failure."""

    def note(self, now: float, words: str) -> None:
        self.log.append(f"{now:9.3f} {words}")

    def must_be_held(self, now: float) -> bool:
        """Whether the sidecar knows enough of this live call that it must be counted."""
        hop = f"/INVITE b{self.cseq}"
        if any(f"P>A {code}{hop}" in self.heard for code in (180, 200)):
            return True
        if self.asked and now < self.since + PENDING:
            # An attempt's refusal looks like the call's where nothing of the caller's hop was heard.
            hops = [f"A>P INVITE b{self.cseq}", f"P>A 100{hop}"]
            refused = any(key.startswith(("B>P 503", "C>P 503")) for key in self.heard)
            return not refused or any(key in self.heard for key in hops)
        begun = {f"A>P INVITE b{self.cseq}", "ESL CHANNEL_CREATE"} & self.heard.keys()
        return "ESL CHANNEL_ANSWER" in self.heard or (bool(begun) and not self.unanswered)

    def is_stray(self, cseq: int) -> bool:
        """Whether of one of its INVITEs nothing but the ACK was heard."""
        whole = [key for key in self.heard if key.endswith(f" b{cseq}") and "A>P ACK" not in key]
        return f"A>P ACK b{cseq}" in self.heard and not whole

    def patience(self, timing: Timing) -> float:
        """Seconds after its end in which its lease must be gone, by what was heard of the end."""
        heard, n = self.heard, self.cseq
        # A new life begins to wait when it begins.
        base = RIGHT + max(0.0, self.reborn - self.since)
        if n > 1 or self.unanswered:
            # It may be asked about when its end was told already, and nobody tells it again.
            base += PENDING + 1.0 + LATEST * self.unanswered
        elif self.quick:
            base += DOUBT + 1.0
        if not any(" INVITE " in key for key in heard):
            # Its beginning may still come.
            base += ORPHAN + timing.settle
        finals = [found for key in heard if (found := FINAL.fullmatch(key))]
        if any("BYE" in key for key in heard) or "ESL CHANNEL_HANGUP_COMPLETE" in heard:
            return base
        if any(found[1] != "407" and found[2] == str(n) for found in finals):
            return base
        if any("200/INVITE" in key or " ACK k" in key for key in heard):
            return base + QUIET + LOOK + 5.0 if heard["RTCP"] > 1 else timing.longest
        if f"A>P ACK b{n}" in heard and not self.is_stray(n):
            return base + timing.settle
        if f"A>P CANCEL b{n}" in heard:
            return base + TIMER_B + timing.settle
        return base + TIMER_C + timing.settle


class Network:
    """A clock, the HEP on its way, and a sidecar."""

    def __init__(
        self, seed: int, *rules: Rule, way: Way | None = None, pushed: bool = False,
        reserve: float = 5.0, longest: float = 1800.0,
    ) -> None:  # fmt: skip
        self.chance = random.Random(seed)
        self.way = way or Way()
        self.pushed = pushed
        self.timing = Timing(longest=longest)
        self.truth: dict[str, Truth] = {}
        self.flags: set[tuple[str, str]] = set()
        """Keys that the proxies know to be closed."""
        self.told: set[tuple[str, str]] = set()
        """Those that they were told of last, which takes a moment to reach them."""
        self.down = False
        """The sidecar is: HEP and questions go nowhere."""
        self.blind = False
        """It has not read yet what it stored in the life before."""
        self.now = 1.0
        self.sent = 0
        self._policy = Policy(rules=rules, emergency=("112",), reserve_percent=reserve)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0
        self.tables = Tables()
        self._messages: dict[str | None, list[Stored]] = defaultdict(list)
        self.begin_life()
        self.at(1.0, self._tick)

    def begin_life(self) -> None:
        """A sidecar that knows nothing but what is stored."""
        self.pipeline = Pipeline(self.timing, cohorts=COHORTS)
        longest = self.timing.longest
        self.leases = Leases(
            self.pipeline.alive, pending=PENDING, quiet=QUIET, look=LOOK, longest=longest
        )
        windows = Windows((GLOBAL, *SCOPES))
        self.admission = Admission(self._policy, COHORTS, windows, self.leases)
        self.pipeline.watch(moves=True, setups=False)
        self.pipeline.calls.warming_until = self.now + 60.0
        self.pipeline.calls.hold_partials_until = self.now + 60.0
        self.down, self.told = False, set()

    def stop(self, *, drained: bool) -> None:
        """Drain and end, or be killed; start again two seconds later."""
        if drained:
            self.pipeline.drain(self.now)
            self.turn()
        self.down = self.blind = True
        self.flags = set()  # they expire by themselves
        for truth in self.truth.values():
            truth.asked = False  # what was admitted is not stored: what was seen is
            truth.reborn = self.now + 2.5
        self.later(2.0, self.begin_life)
        self.later(2.5, self.restore)

    def restore(self) -> None:
        """Read what was stored of calls that had not ended."""
        rows = defaultdict(list)
        for row in self.tables.rows.values():
            rows[row.call_id].append(stored_row(row))
        for call_id, messages in list(self._messages.items()):
            if not rows[call_id or ""] or any(row.interrupted for row in rows[call_id or ""]):
                found = [restored(message) for message in messages]
                assert self.pipeline.restore(found, rows[call_id or ""], self.now) is not None
        self.pipeline.calls.hold_partials_until = None
        self.blind = False
        self.turn()

    # -- time

    def at(self, when: float, do: Callable[[], object]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, do))

    def later(self, seconds: float, do: Callable[[], object]) -> None:
        self.at(self.now + seconds, do)

    def begin(self, script: WAIT, delay: float = 0.0) -> None:
        """Play a script: it yields the seconds that it waits."""

        def step() -> None:
            wait = next(script, None)
            if wait is not None:
                self.later(wait, step)

        self.later(delay, step)

    def run(self, until: float, look: Callable[[], object] | None = None) -> None:
        while True:
            due = None if self.down else self.pipeline.next_timer()
            event = self._events[0][0] if self._events else float("inf")
            first = min(event, due if due is not None else float("inf"))
            if first > until:
                break
            self.now = max(self.now, first)
            if event <= first:
                heapq.heappop(self._events)[2]()
            else:
                self.pipeline.handle_timer(self.now)
                self.turn()
            if look is not None:
                look()
        self.now = until

    @property
    def us(self) -> int:
        return EPOCH + round(self.now * 1_000_000)

    def _tick(self) -> None:
        if not self.down:
            self.admission.handle_timer(self.now, self.us)
            self.turn()
        self.later(1.0, self._tick)

    def turn(self) -> None:
        """What the running sidecar does after each turn."""
        messages = self.pipeline.stored()
        for message in messages:
            self._messages[message.call_id].append(message)
        self.tables.write(self.pipeline.records())
        moves = self.pipeline.moves()
        if moves:
            self.admission.receive_moves(moves, self.now, self.us)
        self.admission.records()
        standing = self.admission.standing
        if standing.changed:
            standing.changed = False
            denials, _ = telling.denials(standing, COHORTS, self.now)
            self.told = told = {(one.scope, one.scope_value) for one in denials}
            self.later(0.005, lambda: setattr(self, "flags", told))

    # -- on the wire

    def sip(
        self, call_id: str, hop: str, start: str, cseq: int, method: str, branch: str,
        tags: tuple[str, str] = ("a", ""), parent: str = "", user: str = "bob",
        headers: Iterable[str] = (), lost: bool | None = None,
    ) -> None:  # fmt: skip
        """One message between two; each end that mirrors tells of it."""
        source, destination = hop.split(">")
        if start.isdigit():
            first = f"SIP/2.0 {start} {PHRASES.get(int(start), 'Some Reason')}"
            top = ADDRESSES[destination]
        else:
            first = f"{start} sip:{user}@example.net SIP/2.0"
            top = ADDRESSES[source]
        from_tag, to_tag = tags
        lines = [first, f"Via: SIP/2.0/UDP {top}:5060;branch=z9hG4bK{branch}"]
        if parent:
            lines.append(f"Via: SIP/2.0/UDP {ADDRESSES['A']}:5060;branch=z9hG4bK{parent}")
        lines += [
            f"From: <sip:alice@example.com>;tag={from_tag}",
            f"To: <sip:{user}@example.net>" + (f";tag={to_tag}" if to_tag else ""),
            f"Call-ID: {call_id}",
            f"CSeq: {cseq} {method}",
            *headers,
            "Content-Length: 0",
        ]
        payload = ("\r\n".join(lines) + "\r\n\r\n").encode()
        truth = self.truth[call_id]
        for mirror, agent_id in HOPS.items():
            if mirror not in (source, destination):
                continue
            datagram = hep.encode(
                source=socket.inet_aton(ADDRESSES[source]),
                destination=socket.inet_aton(ADDRESSES[destination]),
                source_port=5060, destination_port=5060, ip_protocol=17,
                captured_at=self.us, protocol_type=1, agent_id=agent_id, payload=payload,
            )  # fmt: skip
            peer = ADDRESSES[mirror]
            what = f"{start}/{method}" if start.isdigit() else start
            self.mirror(truth, f"{hop} {what} {branch}", datagram, peer, lost)

    def mirror(
        self, truth: Truth, what: str, datagram: bytes, peer: str, lost: bool | None = None
    ) -> None:
        copies = 1 + (self.chance.random() < self.way.again)
        for _ in range(copies):
            self.sent += 1
            gone = self.chance.random() < self.way.loss if lost is None else lost
            truth.note(self.now, f"{'LOST ' if gone else ''}{what}")
            if gone:
                continue

            def arrive() -> None:
                if self.down:
                    return
                truth.heard[what] += 1
                truth.note(self.now, f"   heard {what}")
                self.pipeline.receive(datagram, self.now, self.us, peer)
                self.turn()

            self.later(self.chance.uniform(0, self.way.late), arrive)

    # -- questions

    def ask(
        self, call_id: str, cseq: int, *, user: str = "bob", node: str = "edge",
        source: str = "A", destination: str = "P", box: list[Decision | None],
    ) -> WAIT:  # fmt: skip
        """A proxy's question; the box holds the decision, None where it passed without one."""
        truth = self.truth[call_id]
        there, back = (self.chance.uniform(0.0002, 0.004) for _ in range(2))
        if self.chance.random() < self.way.answer_late:
            there = self.chance.uniform(PATIENCE, LATEST)
        ask = Ask(
            call_id=call_id, from_tag="a", cseq=cseq, node=node, way="evapi",
            sighted=Sighted(
                src_ip=ADDRESSES[source], src_port=5060, dst_ip=ADDRESSES[destination],
                dst_port=5060, ruri_user=user, agent_ids=(),
            ),
            ruri=f"sip:{user}@example.net",
        )  # fmt: skip
        found: list[Decision] = []

        def answer() -> None:
            if self.down:
                return
            decision = self.admission.ask(ask, self.now, self.us)
            again = " again" if decision.repeated else ""
            truth.note(self.now, f"   asked {cseq}: {decision.verdict} {decision.rule}{again}")
            found.append(decision)
            self.turn()

        if self.chance.random() >= self.way.question_loss:
            self.later(there, answer)
            if there + back <= PATIENCE:
                yield there + back
                if found:
                    box[:] = found
                    return
        yield PATIENCE
        truth.unanswered = True
        truth.note(self.now, "   passes without an answer")
        box[:] = [None]

    # -- truth

    def let_in(self, call_id: str, *, asked: bool) -> None:
        truth = self.truth[call_id]
        if not truth.live:
            truth.live, truth.since, truth.asked = True, self.now, asked
        truth.asked &= asked
        truth.note(self.now, f"== live, asked={asked}")

    def ended(self, call_id: str) -> None:
        truth = self.truth[call_id]
        truth.quick = self.now - truth.since < OVERLAP
        truth.live, truth.since = False, self.now
        truth.note(self.now, "== over")


class Callers:
    """Calls of many kinds through P (and Q) to B, C, and the fallback D."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.numbers = 0
        self.verdicts: Counter[str] = Counter()
        self.diverted: set[str] = set()
        """Calls that were sent to the fallback."""

    def name(self, kind: str, **said: Any) -> str:
        self.numbers += 1
        call_id = f"{kind}-{self.numbers}@example.com"
        self.net.truth[call_id] = Truth(kind, since=self.net.now, **said)
        return call_id

    def uniform(self, low: float, high: float) -> float:
        return self.net.chance.uniform(low, high)

    def decide(self, call_id: str, cseq: int, **said: Any) -> Generator[float, None, str]:
        """How the proxy decides: it asks, or looks at what it was told."""
        net = self.net
        if net.pushed:
            closed = net.flags & {(GLOBAL, ""), ("trunk", "acme")}
            verdict = REFUSE if closed and not net.truth[call_id].exempt else "pass"
            self.verdicts[verdict] += 1
            return verdict
        box: list[Decision | None] = []
        yield from net.ask(call_id, cseq, box=box, **said)
        verdict = box[0].verdict if box[0] is not None else "pass"
        self.verdicts[verdict] += 1
        return verdict

    def invite(
        self, call_id: str, cseq: int = 1, *, user: str = "bob", ask: bool = True
    ) -> Generator[float, None, str]:
        """The caller's INVITE up to the proxy's decision; the verdict."""
        net, branch = self.net, f"b{cseq}"
        net.truth[call_id].cseq = cseq
        net.sip(call_id, "A>P", "INVITE", cseq, "INVITE", branch, user=user)
        verdict = "pass"
        if ask:
            verdict = yield from self.decide(call_id, cseq, user=user)
        if verdict == REFUSE:
            yield 0.0005
            reason = ('Reason: SIP;cause=486;text="cac full"', "X-Admission: full")
            net.sip(call_id, "P>A", "486", cseq, "INVITE", branch, ("a", "p"), headers=reason)
            net.later(0.05, lambda: net.sip(
                call_id, "A>P", "ACK", cseq, "ACK", branch, ("a", "p")))  # fmt: skip
            net.ended(call_id)
            return verdict
        if verdict == OVERFLOW:
            self.diverted.add(call_id)
        else:
            net.let_in(call_id, asked=verdict == ADMIT)
        net.sip(call_id, "P>A", "100", cseq, "INVITE", branch)
        return verdict

    def relay(
        self, call_id: str, to: str, cseq: int, branch: str, parent: str, *, user: str = "bob",
        source: str = "P",
    ) -> None:  # fmt: skip
        self.net.sip(
            call_id, f"{source}>{to}", "INVITE", cseq, "INVITE", branch, parent=parent, user=user
        )

    def reply(
        self, call_id: str, code: int, cseq: int, hops: list[tuple[str, str]], to_tag: str = "x"
    ) -> None:
        """A response from the callee back along the hops (hop, branch), the callee's first."""
        for hop, branch in hops:
            self.net.sip(call_id, hop, str(code), cseq, "INVITE", branch, ("a", to_tag))

    def answered(
        self, call_id: str, cseq: int, hops: list[tuple[str, str]], *, to_tag: str = "x",
        pdd: float | None = None, ring: float | None = None, hold: float | None = None,
        bye_lost: bool | None = None,
    ) -> WAIT:  # fmt: skip
        """Ring, answer, talk, hang up by either side; HEP may have to lose all of the end."""
        net, chance = self.net, self.net.chance
        path = [hops[-1][0].split(">")[1], *(hop.split(">")[0] for hop, _ in reversed(hops))]
        yield self.uniform(0.05, 3.0) if pdd is None else pdd
        self.reply(call_id, 180, cseq, hops, to_tag)
        yield self.uniform(0.2, 15.0) if ring is None else ring
        self.reply(call_id, 200, cseq, hops, to_tag)
        yield 0.05
        for n, (one, other) in enumerate(itertools.pairwise(path)):
            net.sip(call_id, f"{one}>{other}", "ACK", cseq, "ACK", f"k{cseq}{n}", ("a", to_tag))
        yield min(chance.expovariate(1 / 60), 240.0) if hold is None else hold
        tags, along = ("a", to_tag), path
        if chance.random() < 0.5:
            tags, along = (to_tag, "a"), path[::-1]
        number = cseq + 1 if along is path else 1
        hanging = list(enumerate(itertools.pairwise(along)))
        for n, (one, other) in hanging:
            net.sip(call_id, f"{one}>{other}", "BYE", number, "BYE", f"y{n}", tags, lost=bye_lost)
        net.ended(call_id)
        yield 0.03
        for n, (one, other) in reversed(hanging):
            net.sip(call_id, f"{other}>{one}", "200", number, "BYE", f"y{n}", tags, lost=bye_lost)

    def refused(self, call_id: str, code: int, cseq: int, hops: list[tuple[str, str]]) -> None:
        """The callee refuses, each hop acknowledges by itself."""
        net = self.net
        for hop, branch in hops:
            net.sip(call_id, hop, str(code), cseq, "INVITE", branch, ("a", "x"))
            one, other = hop.split(">")
            net.sip(call_id, f"{other}>{one}", "ACK", cseq, "ACK", branch, ("a", "x"))
        net.ended(call_id)

    # -- kinds of calls

    def at_fallback(self, call_id: str, cseq: int) -> WAIT:
        self.relay(call_id, "D", cseq, f"d{cseq}", f"b{cseq}")
        hops = [("D>P", f"d{cseq}"), ("P>A", f"b{cseq}")]
        yield from self.answered(call_id, cseq, hops, to_tag="d")

    def begun(self, call_id: str, cseq: int = 1, **said: Any) -> Generator[float, None, bool]:
        """Whether the call goes on to B; one that is overflowed is played here."""
        verdict = yield from self.invite(call_id, cseq, **said)
        if verdict == OVERFLOW:
            yield from self.at_fallback(call_id, cseq)
        if verdict in (OVERFLOW, REFUSE):
            return False
        yield 0.001
        return True

    def plain(self, **how: Any) -> WAIT:
        call_id = self.name("plain")
        if (yield from self.begun(call_id)):
            self.relay(call_id, "B", 1, "p1", "b1")
            yield from self.answered(call_id, 1, [("B>P", "p1"), ("P>A", "b1")], **how)

    def busy(self) -> WAIT:
        call_id = self.name("busy")
        if (yield from self.begun(call_id)):
            self.relay(call_id, "B", 1, "p1", "b1")
            yield self.uniform(0.02, 3.0)
            if self.net.chance.random() < 0.5:
                self.reply(call_id, 180, 1, [("B>P", "p1"), ("P>A", "b1")])
                yield self.uniform(0.1, 20.0)
            self.refused(call_id, 486, 1, [("B>P", "p1"), ("P>A", "b1")])

    def cancelled(self) -> WAIT:
        call_id, net = self.name("cancelled"), self.net
        if (yield from self.begun(call_id)):
            self.relay(call_id, "B", 1, "p1", "b1")
            yield self.uniform(0.05, 2.0)
            self.reply(call_id, 180, 1, [("B>P", "p1"), ("P>A", "b1")])
            yield self.uniform(0.1, 20.0)
            net.sip(call_id, "A>P", "CANCEL", 1, "CANCEL", "b1")
            net.sip(call_id, "P>A", "200", 1, "CANCEL", "b1")
            net.sip(call_id, "P>B", "CANCEL", 1, "CANCEL", "p1")
            yield 0.03
            net.sip(call_id, "B>P", "200", 1, "CANCEL", "p1")
            self.refused(call_id, 487, 1, [("B>P", "p1"), ("P>A", "b1")])

    def challenged(self) -> WAIT:
        """By the proxy, before it asks."""
        call_id, net = self.name("challenged"), self.net
        net.sip(call_id, "A>P", "INVITE", 1, "INVITE", "b1")
        net.sip(call_id, "P>A", "407", 1, "INVITE", "b1", ("a", "p"))
        yield 0.03
        net.sip(call_id, "A>P", "ACK", 1, "ACK", "b1", ("a", "p"))
        yield 0.01
        if (yield from self.begun(call_id, 2)):
            self.relay(call_id, "B", 2, "p2", "b2")
            yield from self.answered(call_id, 2, [("B>P", "p2"), ("P>A", "b2")])

    def challenged_beyond(self) -> WAIT:
        """By the callee, after the proxy asked; the retry asks again."""
        call_id = self.name("challenged_beyond")
        if not (yield from self.begun(call_id)):
            return
        self.relay(call_id, "B", 1, "p1", "b1")
        yield 0.03
        for hop, branch in (("B>P", "p1"), ("P>A", "b1")):
            self.net.sip(call_id, hop, "407", 1, "INVITE", branch, ("a", "x"))
            one, other = hop.split(">")
            self.net.sip(call_id, f"{other}>{one}", "ACK", 1, "ACK", branch, ("a", "x"))
        yield 0.05
        if (yield from self.begun(call_id, 2)):
            self.relay(call_id, "B", 2, "p2", "b2")
            yield from self.answered(call_id, 2, [("B>P", "p2"), ("P>A", "b2")])

    def failover(self) -> WAIT:
        call_id, net = self.name("failover"), self.net
        if (yield from self.begun(call_id)):
            self.relay(call_id, "B", 1, "p1", "b1")
            yield self.uniform(0.02, 1.0)
            net.sip(call_id, "B>P", "503", 1, "INVITE", "p1", ("a", "w"))
            net.sip(call_id, "P>B", "ACK", 1, "ACK", "p1", ("a", "w"))
            self.relay(call_id, "C", 1, "q1", "b1")
            if net.chance.random() < 0.3:
                yield self.uniform(0.02, 1.0)
                self.refused(call_id, 503, 1, [("C>P", "q1"), ("P>A", "b1")])
                return
            yield from self.answered(call_id, 1, [("C>P", "q1"), ("P>A", "b1")], to_tag="y")

    def forked(self) -> WAIT:
        call_id, net = self.name("forked"), self.net
        if (yield from self.begun(call_id)):
            self.relay(call_id, "B", 1, "p1", "b1")
            self.relay(call_id, "C", 1, "q1", "b1")
            yield 0.1
            self.reply(call_id, 180, 1, [("B>P", "p1"), ("P>A", "b1")], "x")
            if net.chance.random() < 0.3:
                net.sip(call_id, "B>P", "486", 1, "INVITE", "p1", ("a", "x"))
                net.sip(call_id, "P>B", "ACK", 1, "ACK", "p1", ("a", "x"))
                yield self.uniform(0.1, 5.0)
            else:
                yield self.uniform(0.1, 5.0)
                net.later(0.1, lambda: net.sip(call_id, "P>B", "CANCEL", 1, "CANCEL", "p1"))
                net.later(0.15, lambda: net.sip(
                    call_id, "B>P", "487", 1, "INVITE", "p1", ("a", "x")))  # fmt: skip
            yield from self.answered(call_id, 1, [("C>P", "q1"), ("P>A", "b1")], to_tag="y",
                                     ring=0.05)  # fmt: skip

    def redirected(self) -> WAIT:
        call_id = self.name("redirected")
        if not (yield from self.begun(call_id)):
            return
        self.relay(call_id, "B", 1, "p1", "b1")
        yield self.uniform(0.02, 0.5)
        self.refused(call_id, 302, 1, [("B>P", "p1"), ("P>A", "b1")])
        yield self.uniform(0.01, 0.5)
        if (yield from self.begun(call_id, 2, user="carol")):
            self.relay(call_id, "C", 2, "q2", "b2", user="carol")
            yield from self.answered(call_id, 2, [("C>P", "q2"), ("P>A", "b2")], to_tag="y")

    def unanswered(self) -> WAIT:
        """Nobody ever answers; the proxy gives up."""
        call_id = self.name("unanswered")
        if (yield from self.begun(call_id)):
            self.relay(call_id, "B", 1, "p1", "b1")
            for pause in (0.5, 1.0, 2.0):
                yield pause
                self.relay(call_id, "B", 1, "p1", "b1")
            yield 1.5
            self.refused(call_id, 408, 1, [("P>A", "b1")])

    def through_two(self) -> WAIT:
        """Two proxies in a row, which both ask and both mirror."""
        call_id, net = self.name("through_two"), self.net
        if not (yield from self.begun(call_id)):
            return
        net.sip(call_id, "P>Q", "INVITE", 1, "INVITE", "p1", parent="b1")
        verdict = yield from self.decide(call_id, 1, node="core", source="P", destination="Q")
        assert verdict != REFUSE or net.pushed or not net.truth[call_id].asked
        if verdict == REFUSE:
            self.refused(call_id, 486, 1, [("Q>P", "p1"), ("P>A", "b1")])
            return
        self.relay(call_id, "B", 1, "r1", "p1", source="Q")
        yield from self.answered(call_id, 1, [("B>Q", "r1"), ("Q>P", "p1"), ("P>A", "b1")])

    def emergency(self) -> WAIT:
        """The proxy lets it pass by itself, or asks and is told to."""
        call_id = self.name("emergency", exempt=True)
        asks = self.net.chance.random() < 0.5
        if (yield from self.begun(call_id, user="112", ask=asks)):
            self.relay(call_id, "B", 1, "p1", "b1", user="112")
            yield from self.answered(call_id, 1, [("B>P", "p1"), ("P>A", "b1")])
        else:
            raise AssertionError(f"an emergency was refused: {call_id}")

    def redial(self) -> WAIT:
        """Busy, and dialled again under the same Call-ID."""
        call_id = self.name("redial")
        for cseq in range(1, 5):
            if (yield from self.begun(call_id, cseq)):
                self.relay(call_id, "B", cseq, f"p{cseq}", f"b{cseq}")
                hops = [("B>P", f"p{cseq}"), ("P>A", f"b{cseq}")]
                yield self.uniform(0.02, 0.5)
                if cseq == 4 or self.net.chance.random() < 0.3:
                    yield from self.answered(call_id, cseq, hops)
                    return
                self.refused(call_id, 486, cseq, hops)
            if call_id in self.diverted:
                return
            yield self.uniform(0.05, 4.0)

    def again(self) -> WAIT:
        """The caller's INVITE is retransmitted, and asked about each time."""
        call_id, net = self.name("again"), self.net
        if (yield from self.begun(call_id)):
            yield 0.5
            net.sip(call_id, "A>P", "INVITE", 1, "INVITE", "b1")
            verdict = yield from self.decide(call_id, 1)
            assert net.pushed or verdict != REFUSE or not net.truth[call_id].asked, call_id
            self.relay(call_id, "B", 1, "p1", "b1")
            yield from self.answered(call_id, 1, [("B>P", "p1"), ("P>A", "b1")])

    def kept_by_media(self) -> WAIT:
        """Nothing tells of its end but that its RTCP stops."""
        call_id, net = self.name("kept_by_media"), self.net
        if not (yield from self.begun(call_id)):
            return
        self.relay(call_id, "B", 1, "p1", "b1")
        hold = self.uniform(20, 60)
        net.begin(self.media(call_id, hold))
        yield from self.answered(call_id, 1, [("B>P", "p1"), ("P>A", "b1")], hold=hold,
                                 bye_lost=True)  # fmt: skip

    def media(self, call_id: str, hold: float) -> WAIT:
        net, ssrc = self.net, self.net.chance.getrandbits(32)
        yield 3.0
        for n in range(int(hold / 5) + 1):
            report = {"ssrc": ssrc, "type": 201, "report_count": 1, "report_blocks": [
                {"source_ssrc": ssrc ^ 1, "highest_seq_no": 1000 + n * 250, "fraction_lost": 0,
                 "ia_jitter": 8, "packets_lost": 0, "lsr": 0, "dlsr": 0}]}  # fmt: skip
            datagram = hep.encode(
                source=socket.inet_aton(ADDRESSES["A"]),
                destination=socket.inet_aton(ADDRESSES["B"]),
                source_port=4001, destination_port=4001, ip_protocol=17, captured_at=net.us,
                protocol_type=5, agent_id=3001, correlation_id=call_id.encode(),
                payload=json.dumps(report).encode(),
            )  # fmt: skip
            net.mirror(net.truth[call_id], "RTCP", datagram, ADDRESSES["P"])
            yield 5.0

    def hung_up_by_switch(self) -> WAIT:
        """The callee is a FreeSWITCH, whose events alone tell of the end."""
        call_id, net = self.name("hung_up_by_switch"), self.net
        if not (yield from self.begun(call_id)):
            return
        self.relay(call_id, "B", 1, "p1", "b1")
        created = answered = net.us
        self.event(call_id, "CHANNEL_CREATE", created)

        def tell() -> None:
            nonlocal answered
            answered = net.us
            self.event(call_id, "CHANNEL_ANSWER", created, answered=answered)

        ring = self.uniform(0.2, 10.0)
        net.later(3.0 + ring, tell)
        yield from self.answered(call_id, 1, [("B>P", "p1"), ("P>A", "b1")], ring=ring,
                                 hold=5.0 + self.uniform(0, 60), bye_lost=True,
                                 pdd=3.0)  # fmt: skip
        self.event(call_id, "CHANNEL_HANGUP_COMPLETE", created, answered=answered, ended=net.us)

    def of_switch_alone(self) -> WAIT:
        """A call to a FreeSWITCH that nobody mirrors; it asks by itself."""
        call_id, net = self.name("of_switch_alone"), self.net
        net.truth[call_id].cseq = 1
        verdict = yield from self.decide(call_id, 1)
        created = net.us
        if verdict in (REFUSE, OVERFLOW):
            net.ended(call_id)
            return
        net.let_in(call_id, asked=verdict == ADMIT)
        self.event(call_id, "CHANNEL_CREATE", created)
        yield self.uniform(0.5, 10.0)
        answered = net.us if net.chance.random() < 0.7 else 0
        if answered:
            self.event(call_id, "CHANNEL_ANSWER", created, answered=answered)
            yield min(net.chance.expovariate(1 / 60), 240.0)
        net.ended(call_id)
        ended = net.us
        self.event(call_id, "CHANNEL_HANGUP_COMPLETE", created, answered=answered, ended=ended)

    def event(
        self, call_id: str, name: str, created: int, answered: int = 0, ended: int = 0
    ) -> None:
        """What FreeSWITCH says of its leg; events come by TCP, late but whole."""
        net, truth = self.net, self.net.truth[call_id]
        self.numbers += 1
        said = Event(
            event_name=name, unique_id=f"uuid-{call_id}", core_uuid="core", call_direction="inbound",
            event_date_timestamp=str(net.us), event_sequence=str(self.numbers),
            caller_channel_created_time=str(created), caller_channel_answered_time=str(answered),
            caller_channel_hangup_time=str(ended), variable_sip_call_id=call_id,
            variable_sip_network_ip=ADDRESSES["A"], variable_sip_network_port="5060",
        )  # fmt: skip

        def arrive() -> None:
            if net.down:
                return
            truth.heard[f"ESL {name}"] += 1
            truth.note(net.now, f"   heard {name}")
            net.pipeline.receive_event("fs1", said, net.now, net.us)
            net.turn()

        net.later(net.chance.uniform(0, 0.3), arrive)


KINDS = (
    "plain", "busy", "cancelled", "challenged", "challenged_beyond", "failover", "forked",
    "redirected", "unanswered", "through_two", "emergency", "redial", "again", "kept_by_media",
    "hung_up_by_switch", "of_switch_alone",
)  # fmt: skip


class Judge:
    """Holds the leases against the truth, at each event and twice a second."""

    def __init__(self, net: Network) -> None:
        self.net = net
        ((rule, _),) = net.admission.standing.places
        self.room = int(rule.threshold) - net.admission.standing.reserve(rule.threshold)
        self.free = self.room - 1 if rule.resume is None else int(rule.resume)
        """Calls down to which it stays closed."""
        self.closed = False
        self.flips = 0
        self.most = 0
        """Admitted ordinary calls at once."""
        self.missing: dict[str, float] = {}
        """Calls that were not counted for want of knowing, and for how long."""
        self.kept: dict[str, float] = {}
        """Seconds that calls were counted after their end."""
        self.until = 0.0
        net.later(0.5, self._look)

    def at_event(self) -> None:
        """After everything that happens."""
        net = self.net
        if net.down:
            self.closed = False
            return
        active = net.leases.active[GLOBAL, ""]
        closed = active >= self.room or (self.closed and active > self.free)
        self.flips += closed != self.closed
        self.closed = closed
        assert ((GLOBAL, "") in net.told) == closed, "a proxy is told at once what it must know"

    def _look(self) -> None:
        net = self.net
        if not net.down and not net.blind:
            self._compare()
        if net.now < self.until:
            net.later(0.5, self._look)

    def _compare(self) -> None:
        net = self.net
        held = Counter(lease.call_id for lease in net.leases)
        counted = Counter({(GLOBAL, ""): len(net.leases)})
        for lease in net.leases:
            counted.update(zip(SCOPES, lease.cohort, strict=False))
        assert dict(net.leases.active) == +counted
        admitted = 0
        for call_id, truth in net.truth.items():
            age = net.now - truth.since
            if not (truth.unanswered and truth.cseq > 1):
                # A late question about an INVITE before the newest one might be of another call.
                assert held[call_id] <= 1, "\n".join([f"{call_id} is counted twice", *truth.log])
            if truth.live:
                admitted += truth.asked and not truth.exempt
                if not held[call_id]:
                    self.missing[call_id] = age
                    assert not truth.must_be_held(net.now), "\n".join(
                        [f"{call_id} is not counted after {age:.1f} s", *truth.log]
                    )
            elif held[call_id]:
                self.kept[call_id] = max(age, self.kept.get(call_id, 0.0))
                assert age <= truth.patience(net.timing) + 1.0, "\n".join(
                    [f"{call_id} is counted {age:.1f} s after its end", *truth.log]
                )
        self.most = max(self.most, admitted)


def play(
    net: Network, seconds: float, rate: float, kinds: Iterable[str] = KINDS, after: float = 400.0
) -> tuple[Callers, Judge]:
    """Calls come for some time; then they end, and time passes."""
    callers, judge, kinds = Callers(net), Judge(net), tuple(kinds)
    when, judge.until = net.now, net.now + seconds + after
    while when < net.now + seconds:
        when += net.chance.expovariate(rate)
        kind = net.chance.choice(kinds)
        net.at(when, lambda kind=kind: net.begin(getattr(callers, kind)()))  # type: ignore[misc]
    net.run(judge.until, judge.at_event)
    return callers, judge


def full(limit: int, **said: Any) -> Rule:
    return Rule(name="full", measure="calls", limit=limit, **said)


# ------------------------------------------------------------------------------ all kinds of calls at once


@pytest.mark.parametrize("late", [0.3, 0.001])
@pytest.mark.parametrize(("loss", "seed"), [(0.0, 1), (0.01, 2), (0.1, 3)])
def test_asked_for_every_call_the_limit_holds_and_the_leases_are_the_truth(
    loss: float, seed: int, late: float
) -> None:
    """HEP comes before the question or after it, is lost, repeated and reordered."""
    net = Network(seed, full(40), way=Way(loss=loss, again=0.1, late=late))
    callers, judge = play(net, 120.0, 1.5)
    assert judge.room == 38
    assert judge.room - 8 <= judge.most <= judge.room
    assert callers.verdicts[REFUSE] > 20
    assert set(callers.verdicts) <= {ADMIT, REFUSE, "pass"}, "pass: of emergencies"
    if not loss:
        assert max(judge.missing.values(), default=0.0) < RIGHT
        ends = [age for name, age in judge.kept.items() if net.truth[name].cseq == 1
                and net.truth[name].kind != "kept_by_media"]  # fmt: skip
        assert max(ends, default=0.0) < RIGHT + DOUBT + 1.0
    nothing_is_left(net)


@pytest.mark.parametrize(("loss", "seed"), [(0.0, 4), (0.01, 5), (0.1, 6)])
def test_told_to_the_proxies_the_counts_are_the_truth_and_the_flag_flips_with_them(
    loss: float, seed: int
) -> None:
    """Nobody asks: HEP and events alone say who holds capacity, and each change of the flag is told."""
    net = Network(seed, full(40), way=Way(loss=loss, again=0.1), pushed=True)
    callers, judge = play(net, 120.0, 1.5)
    assert callers.verdicts[REFUSE] > 20
    if not loss:
        assert max(judge.missing.values(), default=0.0) < RIGHT
    nothing_is_left(net)


def test_the_flag_flips_back_where_the_rule_says_that_it_is_good_again() -> None:
    flips = []
    for resume in (None, 30.0):
        net = Network(11, full(40, resume=resume), way=Way(again=0.1), pushed=True)
        _, judge = play(net, 120.0, 1.5)
        flips.append(judge.flips)
        nothing_is_left(net)
    assert flips[0] > 4 * flips[1] > 0


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1 << 32), st.floats(0, 0.1), st.floats(0.0, 0.3), st.floats(0, 0.2),
    st.floats(0, 0.2), st.booleans(), st.integers(1, 12),
)  # fmt: skip
def test_whatever_becomes_of_hep_and_questions_no_lease_leaks(
    seed: int, loss: float, late: float, lost: float, slow: float, pushed: bool, limit: int
) -> None:
    way = Way(loss=loss, again=0.2, late=late, question_loss=lost, answer_late=slow)
    net = Network(seed, full(limit), way=way, pushed=pushed)
    play(net, 60.0, 0.3)
    nothing_is_left(net)


def nothing_is_left(net: Network) -> None:
    """After all calls are over, and the longest time that anything waits."""
    assert not any(truth.live for truth in net.truth.values())
    net.run(net.now + net.timing.longest + LATE + 2 * TIMER_B + LOOK + PENDING)
    assert len(net.leases) == net.leases.remembered == 0
    assert not net.leases.active
    assert len(net.pipeline.calls) == len(net.pipeline.bridging.following) == 0
    refusals = net.admission._refusals
    assert (len(refusals), len(refusals._tags)) == (0, 0)
    assert net.told == net.flags == set()


# -------------------------------------------------------------------------------------- one by one

HOPS_BACK = [("B>P", "p1"), ("P>A", "b1")]


def talking(net: Network, callers: Callers, call_id: str) -> None:
    """A call through one proxy is answered, and seen to be."""
    net.truth[call_id] = Truth("one", cseq=1)
    net.sip(call_id, "A>P", "INVITE", 1, "INVITE", "b1")
    callers.relay(call_id, "B", 1, "p1", "b1")
    callers.reply(call_id, 200, 1, HOPS_BACK)
    net.run(net.now + 1.0)
    assert net.leases.active[GLOBAL, ""] == 1


@pytest.mark.parametrize(
    ("heard", "hop", "start", "tags"),
    [
        ("the caller's hop", "A>P", "BYE", ("a", "x")),
        ("the other hop's copy", "P>B", "BYE", ("a", "x")),
        ("the callee's BYE", "B>P", "BYE", ("x", "a")),
        ("the 200 to it", "P>A", "200", ("a", "x")),
        ("the other hop's 200 to it", "B>P", "200", ("a", "x")),
    ],
)
def test_any_one_message_of_the_end_frees_the_place_at_once(
    heard: str, hop: str, start: str, tags: tuple[str, str]
) -> None:
    net = Network(1, full(1), reserve=0.0)
    talking(net, Callers(net), "one@example.com")
    assert net.told == {(GLOBAL, "")}
    net.sip("one@example.com", hop, start, 2, "BYE", "y1", tags)
    net.run(net.now + net.way.late)
    assert not net.leases.active, heard
    assert net.told == set()


def test_without_any_message_of_the_end_silence_ends_it_where_media_was_heard() -> None:
    net = Network(1, full(5), reserve=0.0)
    callers = Callers(net)
    talking(net, callers, "one@example.com")
    net.begin(callers.media("one@example.com", 30.0))
    net.run(net.now + 3.0 + 30.0 + QUIET - 1.0)
    assert net.leases.active[GLOBAL, ""] == 1
    net.run(net.now + LOOK + 2.0)
    assert not net.leases.active
    assert net.leases.ended == {"quiet": 1}


def test_without_any_sign_at_all_the_longest_time_ends_it() -> None:
    net = Network(1, full(5), longest=900.0)
    talking(net, Callers(net), "one@example.com")
    net.run(895.0)
    assert net.leases.active[GLOBAL, ""] == 1
    net.run(901.0 + net.timing.settle + LOOK)
    assert not net.leases.active


def test_events_of_the_callees_switch_end_a_call_whose_byes_were_all_lost() -> None:
    net = Network(7, full(20))
    _, judge = play(net, 60.0, 0.3, ["hung_up_by_switch"], after=100.0)
    assert len(net.truth) > 10
    assert all("BYE" not in key for truth in net.truth.values() for key in truth.heard)
    assert max(judge.kept.values(), default=0.0) < 1.0
    nothing_is_left(net)


def test_calls_at_a_fallback_hold_nothing_of_what_refused_them() -> None:
    rule = full(10, outcome="overflow", route="ivr")
    net = Network(8, rule, way=Way(loss=0.01, again=0.1))
    callers, judge = play(net, 120.0, 1.0)
    assert len(callers.diverted) > 30
    assert judge.most <= judge.room
    nothing_is_left(net)
    assert not any(net.admission._refusals.is_elsewhere(call_id) for call_id in callers.diverted)


def test_a_refusal_that_comes_too_late_is_forgotten_and_its_call_counted() -> None:
    net = Network(9, full(1), reserve=0.0)
    callers = Callers(net)
    talking(net, callers, "one@example.com")
    net.truth["late@example.com"] = Truth("late", cseq=1)
    net.sip("late@example.com", "A>P", "INVITE", 1, "INVITE", "b1")
    net.run(net.now + 1.0)
    assert net.leases.active[GLOBAL, ""] == 2
    net.begin(net.ask("late@example.com", 1, box=[]))
    net.run(net.now + 0.1)
    assert net.leases.active[GLOBAL, ""] == 1, "refused: its INVITE holds nothing"
    assert net.admission.too_late == 0
    callers.relay("late@example.com", "B", 1, "p1", "b1")
    callers.reply("late@example.com", 180, 1, HOPS_BACK)
    net.run(net.now + 1.0)
    assert net.leases.active[GLOBAL, ""] == 2
    assert net.admission.too_late == 1
    callers.reply("late@example.com", 200, 1, HOPS_BACK)
    net.run(net.now + 1.0)
    assert (net.leases.active[GLOBAL, ""], net.admission.too_late) == (2, 1)
    net.sip("late@example.com", "A>P", "BYE", 2, "BYE", "y0", ("a", "x"))
    net.run(net.now + 1.0)
    assert net.leases.active[GLOBAL, ""] == 1


# ------------------------------------------------------------------------------------------ a new life


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize(("drained", "loss"), [(True, 0.0), (False, 0.01)])
def test_after_a_restart_the_counts_come_back(drained: bool, loss: float, pushed: bool) -> None:
    """Killed or stopped, away for two seconds, and restored from what it stored."""
    net = Network(10, full(40), way=Way(loss=loss, again=0.1), pushed=pushed)
    before: list[int] = []

    def stop() -> None:
        before.append(len(net.leases))
        net.stop(drained=drained)

    net.at(60.0, stop)
    # What events alone told is not stored: such calls are known with their next event. Nor is a call
    # restored that was recorded as refused, and went on under its old name.
    left_out = {"of_switch_alone", "hung_up_by_switch", "redial"}
    kinds = [kind for kind in KINDS if kind not in left_out]
    callers, _ = play(net, 120.0, 1.5, kinds)
    assert before > [20]
    assert callers.verdicts["pass"] > 0
    nothing_is_left(net)
