"""One dialog of a call from its caller's side: which transaction was forwarded into which, and when.

The *ingress* are the INVITE transactions that no other transaction of the call was forwarded into
(Via's branch below the top one, else the chain of addresses). Times are asked for by clock: an
interval is always between two sightings of one capture agent.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from sipsidecar.calls.call import Call, Endpoint, Leg, Reply, Times, chained, earlier
from sipsidecar.wire import sdp, sip

TIMER_B = 32.0
"""64*T1: an INVITE without any reply, a CANCEL without a final, a challenge without a retry."""
TIMER_C = 180.0
"""RFC 3261 16.6: longest silence after a provisional response."""
ORPHAN = 5.0
"""How long facts without an INVITE wait for it."""
INVERSION_US = 20_000
"""Kamailio stamps a message after it was sent, so an instant answer may look older; up to this
much the truth is below the resolution and reads 0, beyond it an interval is unknown."""
FORK_US = 250_000
"""INVITEs sent within this of each other are a parallel fork: none waited for another to fail."""
IMPLAUSIBLE_US = 86_400_000_000
"""An agent's clock more than a day off the receive time does not date a record."""
MAX_TEXT = 255

PDD_STOP = frozenset({180, 181, 182, 183})
CHALLENGES = frozenset({401, 407})
UNKNOWN_DIALOG = frozenset({404, 481})


class Timing(msgspec.Struct, frozen=True):
    """The waits that are choices, in seconds; the others are RFC 3261's."""

    settle: float = 2.0
    """How long facts that are complete wait for late ones."""
    longest: float = 14_400.0
    """When an answered call whose BYE was never seen is given up."""


class Clocks(msgspec.Struct, frozen=True):
    """What the call's clocks are: capture id and local addresses of the agent behind each."""

    agent_ids: dict[int, int | None]
    """Clock to capture id; None when that agent sends none."""
    local: frozenset[bytes]
    """Packed addresses of the capture nodes; empty while unknown."""
    skews: dict[int, int] = {}
    """Clock to microseconds that it is ahead of the receiver's, where that is known."""


class Dialog:
    """One dialog of a call, from its caller's side."""

    def __init__(self, call: Call, from_tag: str, legs: Sequence[Leg], clocks: Clocks) -> None:
        self.call = call
        self.tag = from_tag
        self.legs = list(legs)
        if len(legs) > 1:
            self.legs.sort(key=lambda leg: (leg.cseq, oldest(leg.invite), leg.branch))
        self.clocks = clocks
        self.parents = self._parents()
        roots = [leg for leg in self.legs if leg.branch not in self.parents]
        self.roots, self.late = without_reinvites(roots)
        self.seen_invite = any(leg.invite for leg in self.legs)
        self.order = self._clock_order()
        self.byes = [b for b in call.byes.values() if from_tag in (b.from_tag, b.to_tag)]
        self.acks = [a for a in call.acks.values() if a.from_tag == from_tag]
        self._sessions: dict[bytes, sdp.SessionDescription | None] = {}

    def _parents(self) -> dict[str, str]:
        """Branch of a forwarded INVITE to the branch it came from."""
        branches = {leg.branch for leg in self.legs}
        parents: dict[str, str] = {}
        for leg in self.legs:
            if leg.parent is not None and leg.parent in branches and leg.parent != leg.branch:
                parents[leg.branch] = leg.parent
        for i, leg in enumerate(self.legs):
            if leg.branch in parents:
                continue
            # A proxy that rewrites Via (topology hiding) still sends from where it received.
            for other in self.legs[:i]:
                if other.cseq == leg.cseq and chained(other, leg):
                    parents[leg.branch] = other.branch
                    break
        return parents

    def _clock_order(self) -> list[int]:
        """The clocks of the call, the one that saw the first INVITE first."""
        others = sorted(self.call.clocks)
        if len(others) == 1:
            return others
        firsts = merge(leg.invite for leg in (self.roots or self.legs))
        if not firsts:
            return others
        primary = min((firsts[i + 1], firsts[i]) for i in range(0, len(firsts), 2))[1]
        return [primary, *(c for c in others if c != primary)]

    def _stamp(self, times: Times) -> int | None:
        """A fact's time by the first clock of the call's order that saw it."""
        if len(times) == 2:  # nearly all: one capture agent
            return times[1] if times[0] in self.order else None
        for clock in self.order:
            for i in range(0, len(times), 2):
                if times[i] == clock:
                    return times[i + 1]
        return None

    def _span_ms(self, start: Times, end: Times) -> float | None:
        """Milliseconds between two facts, both by one clock; None when no clock saw both."""
        if len(start) == len(end) == 2 and start[0] == end[0]:
            return _apart_ms(start[1], end[1]) if start[0] in self.order else None
        for clock in self.order:
            a = b = None
            for i in range(0, len(start), 2):
                if start[i] == clock:
                    a = start[i + 1]
            for i in range(0, len(end), 2):
                if end[i] == clock:
                    b = end[i + 1]
            if a is not None and b is not None:
                return _apart_ms(a, b)
        return None

    def _invited(self) -> Times:
        """The caller's first INVITE, by the clocks that can tell which one was first.

        A clock that missed one of the INVITEs of the lowest CSeq, as when a caller turns to the next
        server and that has another agent, would start its intervals at the wrong one.
        """
        lowest = min((leg.cseq for leg in self.roots), default=0)
        invited = [leg for leg in self.roots if leg.cseq == lowest]
        if len(invited) == 1:
            return invited[0].invite
        firsts = [(leg.invite, life(leg)) for leg in invited]
        times: Times = ()
        for clock in self.order:
            lives = [(time_by(clock, life), time_by(clock, invite)) for invite, life in firsts]
            began = [(at, invite) for at, invite in lives if at is not None]
            if len(began) == len(lives) and began:
                invite = min(began, key=lambda some: some[0])[1]
                if invite is not None:
                    times = earlier(times, clock, invite)
        return times

    def _plausible(self, at: int) -> bool:
        return abs(at - self.call.first_received_at) <= IMPLAUSIBLE_US

    def _reply_key(self, reply: Reply) -> tuple[int, int, str]:
        stamp = self._stamp(reply.times)
        return (stamp if stamp is not None else 0, reply.status, reply.to_tag)

    def _reinvited(self) -> bool:
        callees = {r.to_tag for leg in self.roots for r in leg.replies.values()}
        return bool(self.late) or any(
            tag == self.tag or tag in callees for tag, _ in self.call.reinvites
        )

    def _agent_ids(self) -> tuple[int, ...]:
        ids = {self.clocks.agent_ids.get(clock) for clock in self.call.clocks}
        return tuple(sorted(i for i in ids if i is not None))

    def answered_at(self) -> int | None:
        """When the first 2xx was seen, by the first clock that saw it."""
        replies = (r for leg in self.roots for r in leg.replies.values())
        return self._stamp(merge(r.times for r in replies if is_2xx(r)))

    def early_media_at(self) -> int | None:
        """When the first provisional response with SDP was seen; likewise."""
        replies = (r for leg in self.roots for r in leg.replies.values())
        return self._stamp(merge(r.times for r in replies if 100 < r.status < 200 and has_sdp(r)))

    def callee_ip(self) -> bytes:
        """Where the branch that was answered went to (packed); empty when there is none."""
        for leg in self.legs:
            if leg.branch in self.parents and any(map(is_2xx, leg.replies.values())):
                ends = leg.ends()
                if ends:
                    return ends[1][0]
        return b""

    def ends(self) -> tuple[Endpoint, Endpoint] | None:
        """Where its INVITEs came from and went to."""
        return next((ends for leg in self.roots if (ends := leg.ends())), None)

    def session(self, content_type: str, body: bytes) -> sdp.SessionDescription | None:
        """The SDP of a body, None when there is none or it makes no sense.

        Each is parsed once for all who ask: a proxy repeats it at every hop.
        """
        description = sdp_of(content_type, body)
        if description is None:
            return None
        if description not in self._sessions:
            self._sessions[description] = parsed(description)
        return self._sessions[description]

    def _codecs(
        self, legs: Sequence[Leg], answers: Sequence[Reply], provisional: Sequence[Reply]
    ) -> tuple[tuple[str, ...], str | None]:
        """Names offered, and the one agreed on; None unless the call was answered (RFC 3264)."""
        firsts = sorted((leg.first for leg in legs if leg.first), key=lambda i: i.key)
        offer = next((d for i in firsts if (d := self.session(i.content_type, i.body))), None)
        replies = sorted(answers, key=self._reply_key) + sorted(provisional, key=self._reply_key)
        answer = next((d for r in replies if (d := self.session(r.content_type, r.body))), None)
        if offer is None and answers:
            # the offer was in the 2xx, the answer is in the ACK (RFC 3261 13.2.2.4)
            acks = sorted(self.acks, key=lambda a: (self._stamp(a.times) or 0, a.branch))
            offer = answer
            answer = next((d for a in acks if (d := self.session(a.content_type, a.body))), None)
        offered = sdp.audio_codecs(offer) if offer else ()
        return offered, agreed(offer, answer) if answers else None


def _apart_ms(start: int, end: int) -> float | None:
    """Milliseconds from one stamp to another of the same clock; None when they are inverted."""
    if end >= start:
        return (end - start) / 1000
    return 0.0 if start - end <= INVERSION_US else None


def merge(facts: Iterable[Times]) -> Times:
    """The first sightings of several facts as those of one."""
    merged: Times = ()
    for times in facts:
        if not merged:
            merged = times
            continue
        for i in range(0, len(times), 2):
            merged = earlier(merged, times[i], times[i + 1])
    return merged


def time_by(clock: int, times: Times) -> int | None:
    """A fact's time by one clock."""
    for i in range(0, len(times), 2):
        if times[i] == clock:
            return times[i + 1]
    return None


def life(leg: Leg) -> Times:
    """When anything of a transaction was first seen."""
    return merge((leg.invite, leg.cancel, *(reply.times for reply in leg.replies.values())))


def oldest(times: Times) -> int:
    """The earliest stamp by any clock; later than all when there is none."""
    return min(times[1::2]) if times else 1 << 62


def any_time(leg: Leg) -> Times:
    """First sightings of a transaction, by whatever of it was seen."""
    return leg.invite or merge(reply.times for reply in leg.replies.values()) or leg.cancel


def is_2xx(reply: Reply) -> bool:
    """Whether a response accepts the INVITE."""
    return 200 <= reply.status < 300


def has_sdp(reply: Reply) -> bool:
    """Whether a response carries SDP."""
    return sdp_of(reply.content_type, reply.body) is not None


def sdp_of(content_type: str, body: bytes) -> bytes | None:
    """The SDP in a body, None when there is none."""
    if content_type == "application/sdp":  # as nearly all write it
        return body or None
    return sdp.body_of(content_type, body) if body else None


def parsed(description: bytes) -> sdp.SessionDescription | None:
    """What SDP says, None when it makes no sense."""
    try:
        return sdp.parse(description)
    except sdp.SdpError:
        return None


def agreed(
    offer: sdp.SessionDescription | None, answer: sdp.SessionDescription | None
) -> str | None:
    """The answer's codec; what it only numbers is named by the offer."""
    codec = sdp.negotiated(answer) if answer else None
    if codec is None or codec.name or offer is None:
        return codec.name if codec else None
    offered = (c for media in offer.media for c in media.codecs)
    return next((c.name for c in offered if c.payload_type == codec.payload_type), None)


def read_reasons(raw: Collection[bytes]) -> list[sip.Reason]:
    """Reason values as they stood to what they say."""
    return sip.parse_reasons(list(raw))


def code_class(code: int | None) -> str | None:
    """2xx to 6xx."""
    return f"{code // 100}xx" if code is not None else None


def clip(value: str | None) -> str | None:
    """Text of strangers at the length that is stored; None when there is none."""
    return value[:MAX_TEXT] if value else None


def without_reinvites(roots: list[Leg]) -> tuple[list[Leg], list[Leg]]:
    """Ingress transactions, and those of re-INVITEs whose request was lost.

    After an answer no INVITE without a To tag is sent any more: a reply to one is a re-INVITE's.
    """
    answered = [leg.cseq for leg in roots if leg.invite and any(map(is_2xx, leg.replies.values()))]
    if not answered:
        return roots, []
    first = min(answered)
    late = [leg for leg in roots if leg.cseq > first and not leg.invite]
    return [leg for leg in roots if leg not in late], late


def same_endpoints(
    a: tuple[Endpoint, Endpoint] | None, b: tuple[Endpoint, Endpoint] | None
) -> bool:
    """Whether two hops have the same addresses and ports, in either direction."""
    return a is not None and b is not None and set(a) == set(b)


def same_hosts(a: tuple[Endpoint, Endpoint] | None, b: tuple[Endpoint, Endpoint] | None) -> bool:
    """Whether two hops have the same addresses, in either direction."""
    return a is not None and b is not None and {a[0][0], a[1][0]} == {b[0][0], b[1][0]}
