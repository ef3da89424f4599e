"""One Call-ID as the join of its sightings: every fact that was seen, and when it was first seen.

Rule 1: everything that changes a call's state lives here, and it does not depend on arrival
order. HEP repeats, loses and reorders (10 to 29 % of calls with an instant callee show an ACK
before its 200), two taps see one message twice, and agents' clocks differ. So a fact is kept as
the earliest stamp per clock (`min` does not care about order), and `record.py` derives the record
from the facts alone.
"""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING

from sipsidecar.calls.traits import traits_of
from sipsidecar.wire import sip

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sipsidecar.calls.events import Move, Traits
    from sipsidecar.calls.media import Facts

Endpoint = tuple[bytes, int]
"""Packed address and port."""

Place = str | tuple[Endpoint, Endpoint]
"""Where copies of a message belong: an INVITE transaction's branch, or a hop."""

Times = tuple[int, ...]
"""First sightings of one fact: clock, microseconds, clock, microseconds, ... sorted by clock."""

MAX_LEGS = 64
MAX_REPLIES = 32
MAX_DIALOG_FACTS = 64
MAX_COPIES = 256
MAX_COPY_TIMES = 16
MAX_CHAINED = 16
"""INVITE transactions of a call up to which all are compared with each other, message by message."""
MAX_REASONS = 8
MAX_REASON = 256
MAX_BODIES = 64 * 1024
"""Bytes of bodies kept per call: one Call-ID must not hold what a thousand calls need."""
RETRANSMISSION_US = 250_000
"""Equal bytes at one hop closer than this are one message captured twice; T1 is 500 ms (RFC 3261)."""

Copy = tuple[Place, tuple[int, ...]]
"""One message's bytes at one hop: where, and clock, microseconds, clock, ... of each sighting."""

INVITED, RANG, ANSWERED, ENDED, REFUSED, GONE, FAILED = 1, 2, 4, 8, 16, 32, 64
"""What a call's live state is made of at once, before its record is derived.

ENDED: a BYE was seen. GONE: what proves that it is over although its BYE was not seen. FAILED: some
INVITE of it was refused; REFUSED: the one that the caller sent last, and nothing is open.
"""

FINAL = 1
"""Beside FAILED: what is known of an INVITE transaction's end."""

DIALOG_GONE = frozenset({408, 481})
"""Answers to a re-INVITE or UPDATE that end the dialog (RFC 3261 12.2.1.2, RFC 4028 10)."""

MAX_HEADER = 256
"""Characters kept of a header that a cohort is told by: more than any that is configured."""

RETRIED = frozenset({401, 407, 422, 494})
"""Refusals of an INVITE that a caller mends and sends again."""

NO_HEADERS: dict[str, str] = {}
"""Shared by all INVITEs of which none is asked for."""

NO_INTERVALS: frozenset[int] = frozenset()
"""Shared: every frozenset() is an object of 216 bytes."""

RECEIVER = 0
"""The clock of the messages that carry no time: this sidecar's own."""


def earlier(times: Times, clock: int, at: int) -> Times:
    """The join of a fact's first sightings with one more sighting."""
    if not times:
        return (clock, at)
    for i in range(0, len(times), 2):
        if times[i] == clock:
            if at >= times[i + 1]:
                return times
            return (*times[: i + 1], at, *times[i + 2 :])
        if times[i] > clock:
            return (*times[:i], clock, at, *times[i:])
    return (*times, clock, at)


class Invite:
    """What a record needs of the earliest copy of one INVITE; the message itself is not kept."""

    __slots__ = (
        "body",
        "content_type",
        "destination",
        "from_host",
        "from_user",
        "headers",
        "key",
        "ruri_host",
        "ruri_user",
        "source",
        "to_host",
        "to_user",
        "traits",
        "transport",
        "user_agent",
    )

    def __init__(
        self,
        key: tuple[int, int],
        message: sip.Message,
        source: Endpoint,
        destination: Endpoint,
        transport: str | None,
        asked: tuple[str, ...] = (),
        *,
        traits: bool = False,
    ) -> None:
        """`asked`: names of headers to keep, in small letters. `traits`: whether they are wanted."""
        self.key = key
        self.source = source
        self.destination = destination
        self.transport = transport
        self.from_user, self.from_host = _user_host(message.address("from"))
        self.to_user, self.to_host = _user_host(message.address("to"))
        ruri = sip.uri(message.ruri)
        self.ruri_user, self.ruri_host = (ruri.user, ruri.host) if ruri else (None, None)
        self.user_agent = message.first("user-agent")
        self.headers = NO_HEADERS
        if asked:
            found = ((name, message.first(name)) for name in asked)
            self.headers = {name: text[:MAX_HEADER] for name, text in found if text is not None}
        self.traits: Traits | None = None
        if traits:
            self.traits = traits_of(message, self.from_user, self.from_host, key[0])
        self.body = b""
        self.content_type = ""


def _user_host(address: sip.NameAddr | None) -> tuple[str | None, str | None]:
    return (address.uri.user, address.uri.host) if address else (None, None)


class Reply:
    """One response of an INVITE transaction: status, To tag, with or without a body."""

    __slots__ = ("body", "content_type", "key", "phrase", "reasons", "status", "times", "to_tag")

    def __init__(self, status: int, to_tag: str) -> None:
        self.status = status
        self.to_tag = to_tag
        self.times: Times = ()
        self.key: tuple[int, int] | None = None
        self.phrase = ""
        self.reasons: tuple[bytes, ...] = ()
        self.content_type = ""
        self.body = b""


class Leg:
    """One INVITE transaction at one hop (RFC 3261 17.2.3), known by its branch and CSeq."""

    __slots__ = (
        "branch",
        "cancel",
        "cancel_reasons",
        "cseq",
        "finals",
        "first",
        "from_tag",
        "invite",
        "parent",
        "replies",
        "seen_between",
    )

    def __init__(self, branch: str, cseq: int, from_tag: str) -> None:
        self.branch = branch
        self.cseq = cseq
        self.from_tag = from_tag
        self.parent: str | None = None
        self.invite: Times = ()
        self.first: Invite | None = None
        self.replies: dict[tuple[int, str, bool], Reply] = {}
        self.finals = 0
        """Bits: FINAL when it has a final response, FAILED when that is a refusal to stay."""
        self.cancel: Times = ()
        self.cancel_reasons: tuple[bytes, ...] = ()
        self.seen_between: tuple[Endpoint, Endpoint] | None = None
        """Requester and responder by the smallest of its replies, for a lost INVITE."""

    def ends(self) -> tuple[Endpoint, Endpoint] | None:
        """Where the INVITE came from and went to."""
        return (self.first.source, self.first.destination) if self.first else self.seen_between


def chained(upstream: Leg, leg: Leg) -> bool:
    """Whether a transaction starts where another arrived."""
    above, below = upstream.ends(), leg.ends()
    if above is None or below is None:
        return False
    if below[0] == above[1]:
        return below[1] != above[0]
    return below[0][0] == above[1][0] and above[0][0] not in (below[0][0], below[1][0])


def _reasons_of(message: sip.Message) -> tuple[bytes, ...]:
    return tuple(value[:MAX_REASON] for value in message.values("reason")[:MAX_REASONS])


def _began(leg: Leg) -> tuple[int, str]:
    """What orders INVITEs: when each was first seen, or anything of one that was lost."""
    if leg.invite:
        return min(leg.invite[1::2]), leg.branch
    stamps = [*leg.cancel[1::2]]
    for reply in leg.replies.values():
        stamps += reply.times[1::2]
    return min(stamps, default=0), leg.branch


class DialogFact:
    """An ACK or BYE at one hop."""

    __slots__ = (
        "body",
        "branch",
        "content_type",
        "cseq",
        "ends",
        "from_tag",
        "key",
        "reasons",
        "times",
        "to_tag",
    )

    def __init__(self, message: sip.Message, ends: tuple[Endpoint, Endpoint]) -> None:
        self.from_tag = intern(message.from_tag)
        self.to_tag = intern(message.to_tag)
        self.branch = intern(message.branch)
        self.cseq = message.cseq
        self.ends = ends
        self.times: Times = ()
        self.reasons = _reasons_of(message)
        self.key: tuple[int, int, bytes] | None = None
        """Which copy its body is of: the earliest that has one; None without a body."""
        self.content_type = ""
        self.body = b""


class SessionFact:
    """A re-INVITE, UPDATE or PRACK, or a 2xx to one of the latter two, that carried a body.

    Those without a body say nothing of the session and are not kept.
    """

    __slots__ = (
        "body",
        "branch",
        "content_type",
        "cseq",
        "ends",
        "from_tag",
        "key",
        "method",
        "status",
        "times",
        "to_tag",
    )

    def __init__(self, method: str, status: int | None, message: sip.Message) -> None:
        self.method = method
        self.status = status
        self.branch = intern(message.branch)
        self.cseq = message.cseq
        self.from_tag = intern(message.from_tag)
        self.to_tag = intern(message.to_tag)
        self.ends: tuple[Endpoint, Endpoint] | None = None
        """Requester and responder, also of a response."""
        self.key: tuple[int, int, bytes] | None = None
        self.times: Times = ()
        self.content_type = ""
        self.body = b""


SessionKey = tuple[str, int | None, str, int, str, str]
"""Method, status (None: the request), branch, CSeq, From tag, To tag."""


class Call:
    """Everything sighted under one Call-ID."""

    __slots__ = (
        "acks",
        "asked",
        "body_bytes",
        "bye_codes",
        "byes",
        "call_id",
        "clocks",
        "copies",
        "due",
        "emitted",
        "emitted_at",
        "first_received_at",
        "gone",
        "heard_last",
        "heard_since",
        "in_dialog",
        "intervals_said",
        "last_now",
        "legs",
        "live",
        "marks",
        "media",
        "media_clocks",
        "media_news",
        "moved",
        "news",
        "refers",
        "refused",
        "reinvites",
        "revision",
        "revived",
        "session_expires",
        "sessions",
        "set_up",
        "shown",
        "stored",
        "told",
        "traits",
    )

    def __init__(
        self,
        call_id: str,
        now: float,
        received_at: int,
        asked: tuple[str, ...] = (),
        *,
        traits: bool = False,
    ) -> None:
        """`asked`: names of headers that are kept of each INVITE, in small letters.

        `traits`: whether those of its INVITEs are wanted.
        """
        self.call_id = call_id
        self.asked = asked
        self.traits = traits
        self.first_received_at = received_at
        self.last_now = now
        self.due = 0.0
        self.live = 0
        self.news = False
        """Something is known of its INVITEs that was not when it was last told of."""
        self.moved: Move | None = None
        """What was told of it last."""
        self.shown: int | None = None
        """The live state that it is counted under."""
        self.revived = False
        """Its record has left, and then it proved to go on."""
        self.set_up: tuple[str, ...] = ()
        """From tags of which it was told what became of the setup."""
        self.heard_since: float | None = None
        """When RTCP was first heard since its session changed, and last: monotonic."""
        self.heard_last = 0.0
        self.legs: dict[tuple[str, int], Leg] = {}
        self.acks: dict[tuple[str, int, str, Endpoint, Endpoint], DialogFact] = {}
        self.byes: dict[tuple[str, str, int, Endpoint, Endpoint], DialogFact] = {}
        # tuples, for these are few and mostly empty: an empty set alone is 216 bytes
        self.bye_codes: tuple[int, ...] = ()
        self.reinvites: tuple[tuple[str, int], ...] = ()
        self.refers = False
        self.in_dialog = False
        self.gone: Times = ()
        self.session_expires: int | None = None
        self.sessions: dict[SessionKey, SessionFact] | None = None
        """None until the first: most calls never change their session."""
        self.clocks: tuple[int, ...] = ()
        self.copies: dict[int, Copy] = {}
        self.refused = 0
        self.body_bytes = 0
        self.emitted: dict[tuple[str, str | None, str | None], int] | None = None
        self.emitted_at = 0.0
        self.revision = 0
        self.media: Facts | None = None
        """What was reported of its media; None until something was."""
        self.told: tuple[bool, float | None] | None = None
        """Whether it was answered and how long it talked, ms, where only a FreeSWITCH told of it."""
        self.media_clocks: tuple[int, ...] = ()
        self.media_news = False
        """Something was reported since its record left."""
        self.intervals_said = NO_INTERVALS
        """Hashes of the intervals that have left."""
        self.marks: tuple[str, ...] = ()
        """Flags that its records get for how this process came to know it."""
        self.stored: tuple[tuple[str, str | None, str | None, int], ...] = ()
        """Rows that its next record replaces or takes back: From tag, branch, stream,
        `received_at`."""

    def see(
        self,
        message: sip.Message,
        source: Endpoint,
        destination: Endpoint,
        transport: str | None,
        fingerprint: int,
        clock: int,
        at: int,
    ) -> None:
        """Join one message: its bytes' fingerprint at this hop, seen at `at` by `clock`."""
        if clock not in self.clocks:
            self.clocks += (clock,)
        method = message.method
        if message.status is None:
            if method == "INVITE":
                if message.to_tag:
                    self.in_dialog = True
                    again = (message.from_tag, message.cseq)
                    if again in self.reinvites:
                        pass
                    elif len(self.reinvites) < MAX_DIALOG_FACTS:
                        self.reinvites += (again,)
                        if self.live & FAILED:
                            self._see_refused()
                    else:
                        self.refused += 1
                    self._refresh(message)
                    self.heard_since = None  # on hold nothing may be heard
                    if message.body:
                        self._see_session(message, (source, destination), clock, at)
                else:
                    self._see_invite(message, source, destination, transport, clock, at)
            elif method == "ACK":
                self._see_ack(message, source, destination, clock, at)
            elif method == "BYE":
                self._see_bye(message, source, destination, clock, at)
            elif method == "CANCEL":
                leg = self._leg(message)
                if leg:
                    if not leg.cancel:
                        leg.cancel_reasons = _reasons_of(message)
                    leg.cancel = earlier(leg.cancel, clock, at)
                    if self.live & FAILED:
                        self._see_refused()
            elif message.to_tag:
                self.in_dialog = True
                if method == "REFER":
                    self.refers = True
                elif method in ("UPDATE", "PRACK"):
                    if method == "UPDATE":
                        self._refresh(message)
                    if message.body:
                        self._see_session(message, (source, destination), clock, at)
        elif method == "INVITE":
            self._see_reply(message, source, destination, clock, at)
        elif method == "BYE":
            if message.status >= 200 and message.status not in self.bye_codes:
                self.bye_codes += (message.status,)
            if 200 <= message.status < 300:
                # Any other answer leaves open whether that BYE was of this dialog, and allowed.
                self.live |= GONE
        elif method in ("UPDATE", "PRACK"):
            if message.body and 200 <= message.status < 300:
                self._see_session(message, (destination, source), clock, at)
            elif method == "UPDATE" and message.status in DIALOG_GONE:
                self.gone = earlier(self.gone, clock, at)
        where: Place | None = message.branch if method in ("INVITE", "CANCEL", "ACK") else None
        self._count_copy(fingerprint, where, source, destination, clock, at)

    def _body_of(self, message: sip.Message) -> tuple[str, bytes]:
        """Content type and body, as long as the call's bodies stay within bounds.

        A content type without a body: there was one, and it is not known.
        """
        if not message.body:
            return (message.first("content-type") or "" if message.truncated else ""), b""
        self.body_bytes += len(message.body)
        content_type = message.first("content-type") or ""
        if self.body_bytes > MAX_BODIES:
            self.refused += 1
            return content_type, b""
        return content_type, message.body

    def _leg(self, message: sip.Message) -> Leg | None:
        key = (message.branch, message.cseq)
        leg = self.legs.get(key)
        if leg is None:
            if len(self.legs) >= MAX_LEGS:
                self.refused += 1
                return None
            # Interned: every message of a call brings its own copy of the same few words.
            branch, from_tag = intern(message.branch), intern(message.from_tag)
            leg = self.legs[branch, message.cseq] = Leg(branch, message.cseq, from_tag)
            self.news = True
        return leg

    def _see_invite(
        self,
        message: sip.Message,
        source: Endpoint,
        destination: Endpoint,
        transport: str | None,
        clock: int,
        at: int,
    ) -> None:
        leg = self._leg(message)
        if leg is None:
            return
        self.live |= INVITED
        seen = earlier(leg.invite, clock, at)
        leg.parent = message.parent_branch
        if leg.first is None or (at, clock) < leg.first.key:
            leg.first = Invite(
                (at, clock), message, source, destination, transport, self.asked, traits=self.traits
            )
            leg.first.content_type, leg.first.body = self._body_of(message)
        if seen is not leg.invite:
            leg.invite = seen
            self.news = True
            if self.live & FAILED:
                self._see_refused()
        self._refresh(message)

    def _see_reply(
        self, message: sip.Message, source: Endpoint, destination: Endpoint, clock: int, at: int
    ) -> None:
        leg = self._leg(message)
        if leg is None or message.status is None:
            return
        if message.parent_branch is not None:
            leg.parent = message.parent_branch
        ends = (destination, source)
        if leg.seen_between is None or ends < leg.seen_between:
            leg.seen_between = ends
        key = (message.status, message.to_tag, bool(message.body))
        reply = leg.replies.get(key)
        if reply is None:
            if len(leg.replies) >= MAX_REPLIES:
                self.refused += 1
                return
            to_tag = intern(message.to_tag)
            reply = Reply(message.status, to_tag)
            leg.replies[message.status, to_tag, bool(message.body)] = reply
        if reply.key is None or (at, clock) < reply.key:
            reply.key = (at, clock)
            reply.phrase = message.phrase
            reply.reasons = _reasons_of(message)
            if message.values("x-admission"):
                reply.reasons = (*reply.reasons, b"X-Admission")
            reply.content_type, reply.body = self._body_of(message)
        before = reply.times
        reply.times = earlier(before, clock, at)
        status = message.status
        finals = leg.finals
        if status >= 300:
            leg.finals |= FINAL
            if status not in RETRIED:
                leg.finals |= FAILED
                self.live |= FAILED
        elif status >= 200:
            leg.finals |= FINAL
            self.live |= ANSWERED
            self._refresh(message)
        elif status > 100:
            self.live |= RANG
        if self.live & FAILED and (
            leg.finals != finals or (not leg.invite and reply.times is not before)
        ):
            self._see_refused()

    def _see_refused(self) -> None:
        """Tell from all facts, so from none's order, whether the call was refused as it looks now.

        An attempt's refusal is not the call's: the proxy may still fail over. Nor is that of an
        INVITE that the caller followed by another one.
        """
        began = {key: _began(leg) for key, leg in self.legs.items()}
        newest: dict[str, int] = {}
        current: list[tuple[tuple[int, str], Leg]] = []
        for key, leg in self.legs.items():
            if self._may_be_ingress(leg, began):
                current.append((began[key], leg))
                newest[leg.from_tag] = max(leg.cseq, newest.get(leg.from_tag, 0))
        current = [(at, leg) for at, leg in current if leg.cseq == newest[leg.from_tag]]
        last: dict[str, tuple[tuple[int, str], Leg]] = {}
        for at, leg in current:
            if leg.from_tag not in last or at > last[leg.from_tag][0]:
                last[leg.from_tag] = at, leg
        refused = any(leg.finals & FAILED for _, leg in current) and all(
            leg.finals & FINAL for _, leg in last.values()
        )
        self.live = self.live | REFUSED if refused else self.live & ~REFUSED

    def _may_be_ingress(self, leg: Leg, began: dict[tuple[str, int], tuple[int, str]]) -> bool:
        """Whether no other INVITE that is known was forwarded into this one, nor is it a re-INVITE."""
        if not (leg.invite or leg.replies):
            return False  # of a CANCEL alone nobody knows
        if (leg.parent, leg.cseq) in self.legs or (
            not leg.invite and (leg.from_tag, leg.cseq) in self.reinvites
        ):
            return False
        if len(self.legs) > MAX_CHAINED:
            return True
        since = began[leg.branch, leg.cseq]
        return not any(
            other.cseq == leg.cseq and at < since and chained(other, leg)
            for at, other in zip(began.values(), self.legs.values(), strict=True)
        )

    def _see_ack(
        self, message: sip.Message, source: Endpoint, destination: Endpoint, clock: int, at: int
    ) -> None:
        key = (message.from_tag, message.cseq, message.branch, source, destination)
        fact = self.acks.get(key)
        if fact is None:
            if len(self.acks) >= MAX_DIALOG_FACTS:
                self.refused += 1
                return
            fact = DialogFact(message, (source, destination))
            key = (fact.from_tag, fact.cseq, fact.branch, source, destination)
            self.acks[key] = fact
        fact.times = earlier(fact.times, clock, at)
        if message.body and (fact.key is None or (at, clock, message.body) < fact.key):
            if message.body != fact.body:
                fact.content_type, fact.body = self._body_of(message)
            fact.key = (at, clock, fact.body)

    def _see_bye(
        self, message: sip.Message, source: Endpoint, destination: Endpoint, clock: int, at: int
    ) -> None:
        self.in_dialog = True
        self.live |= ENDED
        key = (message.from_tag, message.to_tag, message.cseq, source, destination)
        fact = self.byes.get(key)
        if fact is None:
            if len(self.byes) >= MAX_DIALOG_FACTS:
                self.refused += 1
                return
            fact = DialogFact(message, (source, destination))
            key = (fact.from_tag, fact.to_tag, fact.cseq, source, destination)
            self.byes[key] = fact
        fact.times = earlier(fact.times, clock, at)

    def _see_session(
        self, message: sip.Message, ends: tuple[Endpoint, Endpoint], clock: int, at: int
    ) -> None:
        """`ends` are requester and responder."""
        if self.sessions is None:
            self.sessions = {}
        method, status = message.method, message.status
        key = (method, status, message.branch, message.cseq, message.from_tag, message.to_tag)
        fact = self.sessions.get(key)
        if fact is None:
            if len(self.sessions) >= MAX_DIALOG_FACTS:
                self.refused += 1
                return
            fact = SessionFact(intern(method), status, message)
            key = (fact.method, status, fact.branch, fact.cseq, fact.from_tag, fact.to_tag)
            self.sessions[key] = fact
        fact.times = earlier(fact.times, clock, at)
        if fact.key is None or (at, clock, message.body) < fact.key:
            # Every hop, and every refresh of the session, may repeat the same body: kept once.
            same = next((s for s in self.sessions.values() if s.body == message.body), None)
            if same is None:
                fact.content_type, fact.body = self._body_of(message)
            else:
                fact.content_type = message.first("content-type") or ""
                fact.body = same.body
            fact.key = (at, clock, fact.body)
            fact.ends = ends

    def _refresh(self, message: sip.Message) -> None:
        """RFC 4028: the session interval that the dialog speaks of; the longest one is believed."""
        seconds = message.seconds("session-expires")
        if seconds is not None and (self.session_expires is None or seconds > self.session_expires):
            self.session_expires = seconds

    def _count_copy(
        self,
        fingerprint: int,
        where: Place | None,
        source: Endpoint,
        destination: Endpoint,
        clock: int,
        at: int,
    ) -> None:
        copy = self.copies.get(fingerprint)
        if copy is None:
            if len(self.copies) >= MAX_COPIES:
                self.refused += 1
                return
            if where is None:
                where = (source, destination) if source < destination else (destination, source)
            elif isinstance(where, str):
                where = intern(where)
            self.copies[fingerprint] = (where, (clock, at))
        elif len(copy[1]) < 2 * MAX_COPY_TIMES:
            self.copies[fingerprint] = (copy[0], (*copy[1], clock, at))

    def retransmissions(self, where: set[Place]) -> int:
        """How often messages of these branches or hops were sent again, by the clock that saw most."""
        total = 0
        for place, times in self.copies.values():
            if len(times) > 2 and place in where:
                total += _again(times)
        return total


def _again(times: tuple[int, ...]) -> int:
    by_clock: dict[int, list[int]] = {}
    for i in range(0, len(times), 2):
        by_clock.setdefault(times[i], []).append(times[i + 1])
    return max(map(sendings, by_clock.values())) - 1


def sendings(times: Iterable[int]) -> int:
    """How often one message was sent, by the stamps of its copies: those close together are one."""
    count, last = 0, None
    for at in sorted(times):
        if last is None or at - last >= RETRANSMISSION_US:
            count += 1
            last = at
    return count
