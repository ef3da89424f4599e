"""SDP of a call's dialog to what its parties agreed on, leg by leg, offer by offer (RFC 3264).

Offers and answers are paired by the table of RFC 6337 2.2: INVITE and its 2xx or 18x, 2xx and ACK,
18x and PRACK, PRACK and its 2xx, UPDATE and its 2xx, re-INVITE like INVITE. SDP in an unreliable
18x is a preview of the answer. An offer that was refused, or whose answer was not seen, changes
nothing. Only audio is looked at: the first audio line that the answer accepts.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

import msgspec

from sipsidecar.calls.call import DialogFact, Endpoint, Leg, Reply, SessionFact, Times
from sipsidecar.calls.dialog import Dialog, any_time, is_2xx, merge, time_by
from sipsidecar.wire import sdp

MAX_ADDRESSES: Final = 8
"""Endpoints, and SSRCs, that one body is asked for."""


class MediaSide(msgspec.Struct, frozen=True, gc=False):
    """One end of one leg's audio, as its SDP says; port 0 when that has no audio line."""

    ip: bytes
    """Packed; empty when the c-line has a host name or nothing."""
    host: str | None
    """The c-line's address as it stands."""
    port: int
    rtcp_ip: bytes
    rtcp_port: int
    """By a=rtcp-mux of both sides, else a=rtcp, else port + 1; 0 when there is none."""
    codecs: tuple[str, ...]
    """Of speech, in order of preference."""
    direction: str
    """sendrecv, sendonly, recvonly or inactive; as the line says, 0.0.0.0 is not looked at here."""
    held: bool
    """c=0.0.0.0 (RFC 2543 hold)."""
    candidates: bool
    secure: bool
    ssrcs: tuple[int, ...] = ()
    """Of a=ssrc lines."""


class Agreement(msgspec.Struct, frozen=True, gc=False):
    """One completed offer and answer on one leg."""

    leg: str
    """ingress or egress."""
    at: int | None
    """When the answer was seen, microseconds by `clock`."""
    via: str
    """invite, ack, prack, reinvite or update: the transaction that carried the offer, or the one that
    carried the answer when the offer was in a response (ack, prack)."""
    offered_by: str
    """caller or callee."""
    caller: MediaSide
    callee: MediaSide
    """The ends of this leg: the one towards the caller, the one towards the callee."""
    codec: sdp.Codec | None
    """None when there is no audio: the line was rejected or taken away."""
    ptime_ms: int | None
    flow: str
    """both, caller_to_callee, callee_to_caller or none: which way media may flow."""
    early: bool
    """It was made before the call was answered, and no 2xx confirmed it: there was none, or the one
    that came brought another answer, which is the next agreement."""
    clock: int | None = None
    """The first of the dialog's clocks that saw the answer."""


class Negotiation(msgspec.Struct, frozen=True, gc=False):
    """All agreements of a dialog, by time, and what is missing of it."""

    ingress: tuple[Agreement, ...] = ()
    egress: tuple[Agreement, ...] = ()
    """Of the branch that was answered; of the last one when none was."""
    late_offer: bool = False
    """The INVITE had no SDP: the offer was in the 2xx, or in a reliable 18x."""
    unanswered_offer: bool = False
    """An offer was accepted by a 2xx without any answer seen."""
    illegal_answers: tuple[str, ...] = ()
    """Directions that RFC 3264 6.1 does not allow, such as `sendonly answered by sendonly`."""
    refused_media: bool = False
    """The answer rejected the audio line (port 0)."""
    unplaced: int = 0
    """Offers and answers inside the dialog that belong to no hop its INVITE took."""


def read(dialog: Dialog) -> Negotiation:
    """Pair the offers and answers of a dialog; the same facts give the same in any order."""
    return _Reading(dialog).negotiation()


# --------------------------------------------------------------------------- the dialog's own words

_Ends = tuple[Endpoint, Endpoint]
_Fit = tuple[int, int]
_NOWHERE: Final[_Fit] = (0, 0)
_ALLOWED: Final = {
    "sendrecv": frozenset({"sendrecv", "sendonly", "recvonly", "inactive"}),
    "sendonly": frozenset({"recvonly", "inactive"}),
    "recvonly": frozenset({"sendonly", "inactive"}),
    "inactive": frozenset({"inactive"}),
}
"""What may answer what (RFC 3264 6.1)."""


class _Exchange(NamedTuple):
    """An offer and its answer inside the dialog, at one hop."""

    method: str
    by: str
    """The From tag of the request."""
    cseq: int
    branch: str
    ends: _Ends | None
    via: str
    by_request: bool
    """The offer was in the request, the answer in its response; else the other way round."""
    offer: sdp.SessionDescription
    answer: sdp.SessionDescription
    times: Times
    """Of the answer."""


class _Terms(NamedTuple):
    """What an offer and its answer say together, whichever leg they are of."""

    caller: MediaSide
    callee: MediaSide
    codec: sdp.Codec | None
    ptime_ms: int | None
    flow: str
    refused: bool
    illegal: str | None


class _Reading:
    """The pairing of one dialog."""

    def __init__(self, dialog: Dialog) -> None:
        self._dialog = dialog
        self._call = dialog.call
        # Each pair of bodies is read once: a proxy repeats it at every hop, and a 200 that of the 183.
        self._terms: dict[tuple[int, int, str], _Terms] = {}
        cseqs = {leg.cseq for leg in dialog.roots}
        # what is left are replies to re-INVITEs whose request was lost
        self._initial = [leg for leg in dialog.legs if leg.invite or leg.cseq in cseqs]
        self._forwarded = set(dialog.parents.values())
        self._answered = self._answered_tag()
        beyond = [leg for leg in self._initial if leg.branch in dialog.parents]
        self._legs: dict[str, Leg] = {}
        for name, some in (("ingress", dialog.roots), ("egress", beyond)):
            if some:
                self._legs[name] = some[0] if len(some) == 1 else max(some, key=self._rank)
        self._tags = {name: self._tag_at(leg) for name, leg in self._legs.items()}
        self._late = self._unanswered = self._refused = False
        self._illegal: dict[str, None] = {}
        self._acks = [
            (ack, description)
            for ack in self._call.acks.values()
            if ack.body and (description := dialog.session(ack.content_type, ack.body))
        ]
        self._requests: dict[tuple[str, str, int], tuple[SessionFact, sdp.SessionDescription]] = {}
        self._responses: dict[tuple[str, str, int], tuple[SessionFact, sdp.SessionDescription]] = {}
        self._sort_facts()

    def negotiation(self) -> Negotiation:
        """Return everything that is known."""
        placed, unplaced = self._placed()
        agreements: dict[str, tuple[Agreement, ...]] = {}
        settled = False
        for name, leg in self._legs.items():
            later = [self._exchanged(name, exchange) for exchange in placed[name]]
            first = self._first(name, leg, later)
            settled = settled or bool(first)
            both = [*first, *later]
            if len(both) > 1:
                both.sort(key=lambda one: one.at or 0)
            agreements[name] = tuple(both)
        return Negotiation(
            ingress=agreements.get("ingress", ()),
            egress=agreements.get("egress", ()),
            late_offer=self._late,
            unanswered_offer=self._unanswered and not settled,
            illegal_answers=tuple(sorted(self._illegal)),
            refused_media=self._refused,
            unplaced=unplaced,
        )

    # ------------------------------------------------------------------ which dialog, which branch

    def _seen(self, times: Times) -> tuple[int, int]:
        """When and by which clock, the first of the dialog's clocks that saw it."""
        order = self._dialog.order
        if len(times) == 2:  # nearly all: one capture agent
            return (times[1], times[0]) if times[0] in order else (0, 0)
        for clock in order:
            at = time_by(clock, times)
            if at is not None:
                return at, clock
        return 0, 0

    def _first_answered(self, replies: Iterable[Reply]) -> str | None:
        """The To tag of the 2xx that the call became: of several, the dialog that lived longest."""
        answers: dict[str, Times] = {}
        for reply in replies:
            if is_2xx(reply):
                held = answers.get(reply.to_tag)
                answers[reply.to_tag] = merge((held, reply.times)) if held else reply.times
        if len(answers) < 2:
            return next(iter(answers), None)

        def lived(tag: str) -> tuple[int, int, str]:
            byes = [b for b in self._dialog.byes if tag in (b.from_tag, b.to_tag)]
            ended = min((self._seen(b.times)[0] for b in byes), default=1 << 62)
            return -ended, self._seen(answers[tag])[0], tag

        return min(answers, key=lived)

    def _answered_tag(self) -> str | None:
        """The callee's tag; None when nothing shows that the call was answered."""
        for legs in (self._dialog.roots, self._initial):
            tag = self._first_answered(r for leg in legs for r in leg.replies.values())
            if tag is not None:
                return tag
        # No 2xx was seen, but an ACK that is no refusal's: that has the INVITE's branch (17.1.1.3).
        branches = {leg.branch for leg in self._call.legs.values()}
        cseqs = {leg.cseq for leg in self._initial}
        known = {
            reply.to_tag
            for leg in self._initial
            for reply in leg.replies.values()
            if 100 < reply.status < 200
        }
        acknowledged = [
            (self._seen(ack.times)[0], ack.to_tag)
            for ack in self._dialog.acks
            if ack.to_tag in known and ack.branch not in branches and ack.cseq in cseqs
        ]
        return min(acknowledged)[1] if acknowledged else None

    def _rank(self, leg: Leg) -> tuple[bool, bool, bool, int, bool, int, str]:
        """What is known of a branch, best last: answered, ringing where it was answered, last tried."""
        answers = {r.to_tag for r in leg.replies.values() if is_2xx(r)}
        early = {r.to_tag for r in leg.replies.values() if 100 < r.status < 200}
        answered = self._answered
        last_hop = leg.branch not in self._dialog.parents or leg.branch not in self._forwarded
        return (
            answered is not None and answered in answers,
            answered is not None and answered in early,
            bool(answers),
            leg.cseq,
            last_hop,
            self._seen(any_time(leg))[0],
            leg.branch,
        )

    def _tag_at(self, leg: Leg) -> str | None:
        """The callee's tag as this leg has it: a B2BUA that keeps the caller's may change it."""
        answered = self._answered
        if answered is None:
            return None
        for reply in leg.replies.values():
            if reply.to_tag == answered and 100 < reply.status < 300:
                return answered
        own = self._first_answered(leg.replies.values())
        return answered if own is None else own

    def _of_dialog(self, from_tag: str, to_tag: str) -> bool:
        """Whether a request is of this dialog, and not of another branch of a fork."""
        caller = self._dialog.tag
        if caller not in (from_tag, to_tag):
            return False
        callee = to_tag if from_tag == caller else from_tag
        tags = set(self._tags.values()) - {None}
        return not tags or callee in tags

    # ------------------------------------------------------------------------- inside the dialog

    def _sort_facts(self) -> None:
        """Requests and responses inside the dialog that carried SDP, by transaction."""
        for fact in (self._call.sessions or {}).values():
            if self._of_dialog(fact.from_tag, fact.to_tag):
                description = self._dialog.session(fact.content_type, fact.body)
                if description is not None:
                    facts = self._requests if fact.status is None else self._responses
                    key = (fact.method, fact.branch, fact.cseq)
                    held = facts.get(key)
                    # two 2xx codes of one request, or two tags: the earliest stands
                    if held is None or self._age(fact) < self._age(held[0]):
                        facts[key] = (fact, description)

    def _age(self, fact: SessionFact) -> tuple[int, int, str]:
        return self._seen(fact.times)[0], fact.status or 0, fact.to_tag

    def _exchanges(self) -> list[_Exchange]:
        """Every pair of offer and answer inside the dialog, at every hop it was seen at."""
        found = []
        for key, (request, offer) in self._requests.items():
            if key in self._responses:
                reply, answer = self._responses[key]
                found.append(
                    _Exchange(
                        method=request.method,
                        by=request.from_tag,
                        cseq=request.cseq,
                        branch=request.branch,
                        ends=request.ends,
                        via=request.method.lower(),
                        by_request=True,
                        offer=offer,
                        answer=answer,
                        times=reply.times,
                    )
                )
        again = [leg for leg in self._call.legs.values() if not leg.invite]
        if again:
            initial = {id(leg) for leg in self._initial}
            for leg in again:
                exchange = self._reinvited(leg) if id(leg) not in initial else None
                if exchange is not None:
                    found.append(exchange)
        return found

    def _reinvited(self, leg: Leg) -> _Exchange | None:
        """The pair of a re-INVITE that was accepted; one that was refused changes nothing."""
        replies = [r for r in leg.replies.values() if self._of_dialog(leg.from_tag, r.to_tag)]
        if not any(map(is_2xx, replies)):
            return None
        said = [(r, d) for r in replies if (d := self._sdp_of(r)) is not None]
        if not said:
            return None
        reply, description = min(said, key=lambda pair: (not is_2xx(pair[0]), self._order(pair[0])))
        request = self._requests.get(("INVITE", leg.branch, leg.cseq))
        ends = leg.ends()
        head = ("INVITE", leg.from_tag, leg.cseq, leg.branch)
        if request is not None:
            return _Exchange(
                *head, request[0].ends, "reinvite", True, request[1], description, reply.times
            )
        ack = self._ack(leg, reply.to_tag, ends)
        if ack is None:
            return None
        return _Exchange(*head, ends, "ack", False, description, ack[1], ack[0].times)

    def _sdp_of(self, reply: Reply) -> sdp.SessionDescription | None:
        if not reply.body or not 100 < reply.status < 300:
            return None
        return self._dialog.session(reply.content_type, reply.body)

    def _order(self, reply: Reply) -> tuple[int, int, str]:
        return self._seen(reply.times)[0], reply.status, reply.to_tag

    def _ack(
        self, leg: Leg, to_tag: str, ends: _Ends | None
    ) -> tuple[DialogFact, sdp.SessionDescription] | None:
        """The ACK of a 2xx that carried SDP, at the hop that the INVITE took."""
        found = [
            (ack, description)
            for ack, description in self._acks
            if (ack.from_tag, ack.to_tag, ack.cseq) == (leg.from_tag, to_tag, leg.cseq)
            and _fit(ack.ends, ends) >= max(_fit(ack.ends, other) for other in self._hops(ack))
        ]

        def order(pair: tuple[DialogFact, sdp.SessionDescription]) -> tuple[int, int, int, str]:
            endpoints, hosts = _fit(pair[0].ends, ends)
            return -endpoints, -hosts, self._seen(pair[0].times)[0], pair[0].branch

        return min(found, key=order, default=None)

    def _hops(self, ack: DialogFact) -> list[_Ends | None]:
        """Both hops of the dialog as an ACK of this sender runs along them, and nowhere."""
        forth = ack.from_tag == self._dialog.tag
        return [None, *(_towards(leg.ends(), forth) for leg in self._legs.values())]

    def _place(self, ends: _Ends | None, by: str) -> dict[str, _Fit]:
        """The legs whose hop a request took, best fit alone; both when it passed by the proxy."""
        forth = by == self._dialog.tag
        fits = {name: _fit(ends, _towards(leg.ends(), forth)) for name, leg in self._legs.items()}
        best = max(fits.values(), default=_NOWHERE)
        return {name: fit for name, fit in fits.items() if fit == best != _NOWHERE}

    def _placed(self) -> tuple[dict[str, list[_Exchange]], int]:
        """One exchange per leg and request, and how many requests belong to no leg."""
        exchanges = self._exchanges()
        if not exchanges:
            return {name: [] for name in self._legs}, 0
        best: dict[str, dict[tuple[str, str, int], tuple[_Fit, int, str, _Exchange]]] = {
            name: {} for name in self._legs
        }
        requests = set()
        for exchange in exchanges:
            request = (exchange.method, exchange.by, exchange.cseq)
            requests.add(request)
            at = self._seen(exchange.times)[0]
            for name, fit in self._place(exchange.ends, exchange.by).items():
                ranked = ((-fit[0], -fit[1]), at, exchange.branch, exchange)
                held = best[name].get(request)
                if held is None or ranked[:3] < held[:3]:
                    best[name][request] = ranked
        placed = {
            name: [each[3] for each in sorted(some.values(), key=lambda each: (each[1], each[2]))]
            for name, some in best.items()
        }
        return placed, len(requests.difference(*best.values()))

    def _exchanged(self, name: str, exchange: _Exchange) -> Agreement:
        offered_by_caller = (exchange.by == self._dialog.tag) == exchange.by_request
        return self._agree(
            name,
            exchange.via,
            "caller" if offered_by_caller else "callee",
            (exchange.offer, exchange.answer),
            exchange.times,
            early=self._answered is None,
        )

    # -------------------------------------------------------------------------- the first INVITE

    def _first(self, name: str, leg: Leg, later: Sequence[Agreement]) -> list[Agreement]:
        """What the INVITE of a leg led to."""
        tag = self._tags[name]
        replies = [
            r for r in leg.replies.values() if 100 < r.status < 300 and tag in (None, r.to_tag)
        ]
        said = [(r, d) for r in replies if r.body and (d := self._sdp_of(r)) is not None]
        if len(said) > 1:
            said.sort(key=lambda pair: self._order(pair[0]))
        previews = [(r, d) for r, d in said if not is_2xx(r)]
        final = next(((r, d) for r, d in said if is_2xx(r)), None)
        answered = any(map(is_2xx, replies))
        invite = leg.first
        offer = self._dialog.session(invite.content_type, invite.body) if invite else None
        if offer is not None:
            if answered and not said and not any(r.content_type for r in replies):
                self._unanswered = True
            if final is not None and previews:
                answered_at, clock = self._seen(final[0].times)
                if any(
                    one.via in {"prack", "update"}
                    and one.clock == clock
                    and (one.at or 0) < answered_at
                    for one in later
                ):
                    # What was agreed since the 18x stands: SDP in the 2xx repeats the old answer.
                    final = None
            return self._answers(name, offer, previews, final)
        bare = invite is not None and not invite.body and not invite.content_type
        agreements = []
        ack = self._ack(leg, tag, leg.ends()) if tag is not None else None
        prack = self._prack(name, tag) if bare and previews else None
        if prack is not None:
            fact, answer = prack
            pair = (previews[0][1], answer)
            agreements.append(
                self._agree(name, "prack", "callee", pair, fact.times, early=tag is None)
            )
        if ack is not None and final is not None:
            pair = (final[1], ack[1])
            agreements.append(self._agree(name, "ack", "callee", pair, ack[0].times, early=False))
        if agreements or (bare and final is not None):
            self._late = True
            self._unanswered = self._unanswered or not agreements
        return agreements

    def _prack(
        self, name: str, tag: str | None
    ) -> tuple[SessionFact, sdp.SessionDescription] | None:
        """The PRACK that answers the offer of an 18x: the caller's first, and its 2xx has no SDP."""
        found = [
            (fact, description)
            for key, (fact, description) in self._requests.items()
            if fact.method == "PRACK"
            and key not in self._responses
            and fact.from_tag == self._dialog.tag
            and tag in (None, fact.to_tag)
            and name in self._place(fact.ends, fact.from_tag)
        ]
        return min(found, key=lambda pair: (pair[0].cseq, pair[0].branch), default=None)

    def _answers(
        self,
        name: str,
        offer: sdp.SessionDescription,
        previews: Sequence[tuple[Reply, sdp.SessionDescription]],
        final: tuple[Reply, sdp.SessionDescription] | None,
    ) -> list[Agreement]:
        """Previews of the answer, each that differs once, and the answer itself."""
        found: list[Agreement] = []
        for reply, answer in previews:
            one = self._agree(name, "invite", "caller", (offer, answer), reply.times, early=True)
            if not found or not _alike(found[-1], one):
                found.append(one)
        if final is None:
            if found and self._answered is not None:
                found[-1] = msgspec.structs.replace(found[-1], early=False)
            return found
        reply, answer = final
        one = self._agree(name, "invite", "caller", (offer, answer), reply.times, early=False)
        if not found:
            return [one]
        if _alike(found[-1], one):
            found[-1] = msgspec.structs.replace(found[-1], early=False)
        else:
            found.append(one)
        # Stamps of one agent may be inverted by moments: a preview does not follow its answer.
        return [
            msgspec.structs.replace(each, at=one.at, clock=one.clock)
            if (each.at or 0) > (one.at or 0)
            else each
            for each in found
        ]

    def _agree(
        self,
        name: str,
        via: str,
        offered_by: str,
        pair: tuple[sdp.SessionDescription, sdp.SessionDescription],
        times: Times,
        *,
        early: bool,
    ) -> Agreement:
        at, clock = self._seen(times)
        key = (id(pair[0]), id(pair[1]), offered_by)  # the dialog keeps both while it is read
        terms = self._terms.get(key)
        if terms is None:
            terms = self._terms[key] = _terms(offered_by, *pair)
            self._refused = self._refused or terms.refused
            if terms.illegal is not None:
                self._illegal[terms.illegal] = None
        return Agreement(name, at, via, offered_by, *terms[:5], early, clock)


def _terms(
    offered_by: str, offer: sdp.SessionDescription, answer: sdp.SessionDescription
) -> _Terms:
    """Read an offer and its answer together."""
    offered, answered = _audio(offer, answer)
    mux = bool(offered and answered and offered.rtcp_mux and answered.rtcp_mux)
    spoken = _speech(answered, offered)
    sides = (
        _media_side(offered, _speech(offered), mux=mux),
        _media_side(answered, spoken, mux=mux),
    )
    caller, callee = sides if offered_by == "caller" else sides[::-1]
    if offered is None or answered is None or not offered.port or not answered.port:
        refused = offered is not None and bool(offered.port)
        return _Terms(caller, callee, None, None, "none", refused, None)
    illegal = None
    if answered.direction not in _ALLOWED[offered.direction]:
        illegal = f"{offered.direction} answered by {answered.direction}"
    return _Terms(
        caller,
        callee,
        spoken[0] if spoken else None,
        answered.ptime_ms or offered.ptime_ms,
        _flow(caller, callee),
        False,
        illegal,
    )


def _towards(ends: _Ends | None, forth: bool) -> _Ends | None:
    return ends if ends is None or forth else (ends[1], ends[0])


def _fit(ends: _Ends | None, hop: _Ends | None) -> _Fit:
    """How many endpoints, and how many hosts, of a request's way are those of a hop."""
    if ends is None or hop is None:
        return _NOWHERE
    same = (ends[0] == hop[0]) + (ends[1] == hop[1])
    hosts = (ends[0][0] == hop[0][0]) + (ends[1][0] == hop[1][0])
    return same, hosts


def _alike(one: Agreement, other: Agreement) -> bool:
    """Whether two answers to one offer say the same."""
    return (one.caller, one.callee, one.codec, one.ptime_ms) == (
        other.caller, other.callee, other.codec, other.ptime_ms
    )  # fmt: skip


# ------------------------------------------------------------------------------------- audio lines


def _audio(
    offer: sdp.SessionDescription, answer: sdp.SessionDescription
) -> tuple[sdp.MediaDescription | None, sdp.MediaDescription | None]:
    """The first audio line that the answer accepts, and the offer's at its place (RFC 3264 6)."""
    index = _first_audio(answer.media)
    answered = answer.media[index] if index is not None else None
    if index is not None and index < len(offer.media) and offer.media[index].kind == "audio":
        return offer.media[index], answered
    first = _first_audio(offer.media)
    return offer.media[first] if first is not None else None, answered


def _first_audio(lines: Sequence[sdp.MediaDescription]) -> int | None:
    """Which audio line counts: the first that has a port, else the first."""
    first = None
    for i, line in enumerate(lines):
        if line.kind == "audio":
            if line.port:
                return i
            if first is None:
                first = i
    return first


def _speech(
    media: sdp.MediaDescription | None, offered: sdp.MediaDescription | None = None
) -> tuple[sdp.Codec, ...]:
    """The codecs of an audio line; the offer is asked only where the answer leaves out a name."""
    if media is None:
        return ()
    for codec in media.codecs:
        if codec.name is None:
            return sdp.speech(media, offered)
    return sdp.speech(media)


_NO_SIDE: Final = MediaSide(b"", None, 0, b"", 0, (), "inactive", False, False, False)


def _media_side(
    media: sdp.MediaDescription | None, spoken: Sequence[sdp.Codec], *, mux: bool
) -> MediaSide:
    if media is None:
        return _NO_SIDE
    host = media.connection
    ip = _packed(host) if host else b""
    port = media.port
    rtcp_ip = _packed(media.rtcp_address) if media.rtcp_address else ip
    if mux or not port:
        rtcp_ip, rtcp_port = ip, port
    elif media.rtcp_port is not None:
        rtcp_port = media.rtcp_port
    else:
        rtcp_port = port + 1 if port < 65_535 else 0
    return MediaSide(
        ip,
        host,
        port,
        rtcp_ip,
        rtcp_port,
        tuple(dict.fromkeys([codec.name for codec in spoken if codec.name])),
        media.direction,
        _held(media, ip),
        media.candidates,
        media.crypto or media.fingerprint or "SAVP" in media.protocol,
        media.ssrcs,
    )


def _held(media: sdp.MediaDescription, ip: bytes) -> bool:
    """Whether the address says hold: 0.0.0.0, ::, or a name that cannot be (RFC 6157).

    With ICE, 0.0.0.0 and the discard port only say that the candidates count (RFC 8840).
    """
    if media.candidates or media.port == 9:
        return False
    if ip:
        return not any(ip)
    return bool(media.connection) and str(media.connection).lower().endswith(".invalid")


def _flow(caller: MediaSide, callee: MediaSide) -> str:
    if caller.direction == callee.direction == "sendrecv" and not (caller.held or callee.held):
        return "both"
    if _sends(caller) and _hears(callee):
        return "caller_to_callee"
    return "callee_to_caller" if _sends(callee) and _hears(caller) else "none"


def _sends(side: MediaSide) -> bool:
    return side.direction in {"sendrecv", "sendonly"}


def _hears(side: MediaSide) -> bool:
    return side.direction in {"sendrecv", "recvonly"} and not side.held


@lru_cache(maxsize=1024)  # media proxies have few addresses, and this is slow
def _packed(address: str) -> bytes:
    """An address's bytes, IPv4 also when it is written as IPv6; empty when it is a host name."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return b""
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.packed
    return parsed.packed


# ----------------------------------------------------------------------------- bodies at a glance

_ADDRESS: Final = rb"IN[ \t]+IP[46][ \t]+([A-Za-z0-9._:%-]{1,253})(?![^ \t\r\n/])"
_LINES: Final = re.compile(
    rb"\n(?:m=([A-Za-z]+)[ \t]+([0-9]{1,5})(?![0-9])|c=%s|"
    rb"a=rtcp:([0-9]{1,5})(?![0-9])(?:[ \t]+%s)?|a=(rtcp-mux)(?![^ \t\r\n]))" % (_ADDRESS, _ADDRESS)
)
_SSRCS: Final = re.compile(rb"\n(?:m=([A-Za-z]+)|a=ssrc:([0-9]{1,10})(?![^ \r\n]))")


def media_addresses(body: bytes) -> tuple[Endpoint, ...]:
    """The RTP and RTCP endpoints of a body's audio lines, once each, at most MAX_ADDRESSES.

    A scan, not a parser: the body may be multipart or no SDP at all. RTCP is where a=rtcp says, else
    at port + 1, unless a=rtcp-mux stands there. Held and rejected lines have no endpoint.
    """
    if b"m=audio" not in body:
        return ()
    found: dict[Endpoint, None] = {}
    session, session_mux = b"", False
    line: _Line | None = None
    for match in _LINES.finditer(body):
        kind, port, address, rtcp_port, rtcp_address, mux = match.groups()
        if kind is not None:
            if line is not None:
                line.add_to(found, session)
                if len(found) >= MAX_ADDRESSES:
                    break
            line = _Line(int(port) if kind == b"audio" else 0, session_mux)
        elif line is None:
            session = session or address or b""
            session_mux = session_mux or mux is not None
        elif address is not None:
            line.address = line.address or address
        elif mux is not None:
            line.mux = True
        else:
            line.rtcp_port, line.rtcp_address = int(rtcp_port), rtcp_address or b""
    if line is not None:
        line.add_to(found, session)
    return tuple(found)[:MAX_ADDRESSES]


class _Line:
    """One m-line while it is scanned."""

    __slots__ = ("address", "mux", "port", "rtcp_address", "rtcp_port")

    def __init__(self, port: int, mux: bool) -> None:
        self.port = port
        self.mux = mux
        self.address = self.rtcp_address = b""
        self.rtcp_port: int | None = None

    def add_to(self, found: dict[Endpoint, None], session: bytes) -> None:
        ip = _packed((self.address or session).decode())
        if not 0 < self.port < 65_536:
            return
        if any(ip):
            found[ip, self.port] = None
        rtcp_ip = _packed(self.rtcp_address.decode()) if self.rtcp_address else ip
        rtcp_port = self.rtcp_port
        if rtcp_port is None and not self.mux:
            rtcp_port = self.port + 1
        if any(rtcp_ip) and rtcp_port is not None and 0 < rtcp_port < 65_536:
            found[rtcp_ip, rtcp_port] = None


def ssrcs_of(body: bytes) -> tuple[int, ...]:
    """The SSRCs that a body's audio lines announce (a=ssrc), once each, at most MAX_ADDRESSES."""
    if b"a=ssrc:" not in body:
        return ()
    found: dict[int, None] = {}
    audio = False
    for match in _SSRCS.finditer(body):
        kind, ssrc = match.groups()
        if kind is not None:
            audio = kind == b"audio"
        elif audio and int(ssrc) <= 0xFFFFFFFF:
            found[int(ssrc)] = None
            if len(found) == MAX_ADDRESSES:
                break
    return tuple(found)
