"""Addresses of SDP, hints and reports to who speaks under an SSRC: which party, and whether itself.

A party's own address is the one in its SDP at its own end of the call. A node between (media proxy,
B2BUA) has an address that faces each party: what goes there comes from that party, what comes from
there speaks in the other party's place.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from sipsidecar.calls.call import Endpoint
from sipsidecar.calls.negotiation import Agreement, MediaSide, Negotiation

CALLER, CALLEE = "caller", "callee"
OTHER = {CALLER: CALLEE, CALLEE: CALLER}
DIRECTIONS = {CALLER: "caller_to_callee", CALLEE: "callee_to_caller"}
"""By who speaks."""

Route = tuple[Endpoint, Endpoint]
"""Where a packet came from and where it went."""

_MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"
_NO_ADDRESS = frozenset({b"", bytes(4), bytes(16)})


class Voice(msgspec.Struct, frozen=True, gc=False):
    """Who speaks under an SSRC."""

    party: str
    """caller or callee."""
    own: bool | None
    """False: a node between speaks in the party's place. None: nobody can tell."""


HINTS = {
    "caller": Voice(CALLER, True),
    "callee": Voice(CALLEE, True),
    "for_caller": Voice(CALLER, False),
    "for_callee": Voice(CALLEE, False),
}
"""What a source that knows who speaks calls it; `for_`: a node between, in that party's place."""

_ITSELF = {CALLER: Voice(CALLER, True), CALLEE: Voice(CALLEE, True)}
_IN_PLACE = {CALLER: Voice(CALLER, False), CALLEE: Voice(CALLEE, False)}
_EITHER = {CALLER: Voice(CALLER, None), CALLEE: Voice(CALLEE, None)}

_Table = tuple[Mapping[object, str], Mapping[object, str]]


class Parties:
    """Who speaks under each SSRC of one call."""

    def __init__(
        self,
        negotiation: Negotiation,
        routes: Mapping[int, Collection[Route]],
        hints: Mapping[int, Collection[str]],
        pairs: Iterable[tuple[int, int]] = (),
        speakers: Collection[int] = (),
    ) -> None:
        """Look at everything at once: `pairs` are reporter and source, `speakers` sent media."""
        self.own: dict[str, list[MediaSide]] = {CALLER: [], CALLEE: []}
        self._facing: dict[str, list[MediaSide]] = {CALLER: [], CALLEE: []}
        self._read(negotiation.ingress, negotiation.egress)
        self.between = any(self._facing.values())
        """A node between is known of."""
        known = bool(negotiation.ingress or negotiation.egress)
        self._assumed = _ITSELF if known and not self.between else _EITHER
        """Who an SSRC of the other party speaks for, when only the party is known."""
        self._tables: list[_Table] = []
        self.voices: dict[int, Voice] = {}
        self.sure: set[int] = set()
        """SSRCs whose reports come from, or go to, the very addresses of the audio lines."""
        for ssrc, ways in routes.items():
            found = [some for way in ways if (some := self.of_route(way)) is not None]
            voice = _best(found) or _by_hints(hints.get(ssrc, ()))
            if voice is not None:
                self.voices[ssrc] = voice
            for level, _ in found:
                if level == 0:
                    self.sure.add(ssrc)
        self._by_sdp()
        self._infer(list(pairs), speakers)

    def _read(self, ingress: Collection[Agreement], egress: Collection[Agreement]) -> None:
        self.own[CALLER] += [agreement.caller for agreement in ingress]
        far = egress or ingress
        self.own[CALLEE] += [agreement.callee for agreement in far]
        if egress:
            mine = {(side.ip, side.port) for sides in self.own.values() for side in sides}
            self._facing[CALLER] += [a.callee for a in ingress if _stands(a.callee, mine)]
            self._facing[CALLEE] += [a.caller for a in egress if _stands(a.caller, mine)]
            if not ingress:
                self.own[CALLER] += [a.caller for a in egress if not _stands(a.caller, mine)]

    def _table(self, level: int) -> _Table:
        """Whose own a place is, and whom it faces: by endpoint, by port alone, by address alone.

        NAT changes addresses and often keeps ports; a place that two claim is nobody's. The levels
        are made when a packet is looked up there: most are found at the first.
        """
        while len(self._tables) <= level:
            key = _KEYS[len(self._tables)]
            own: dict[object, str | None] = {}
            facing: dict[object, str | None] = {}
            for sides, table in ((self.own, own), (self._facing, facing)):
                for party, some in sides.items():
                    for side in some:
                        for endpoint in _endpoints(side):
                            place = key(endpoint)
                            table[place] = party if table.get(place, party) == party else None
            self._tables.append((_only(own, facing), _only(facing, own)))
        return self._tables[level]

    def of_route(self, route: Route) -> tuple[int, Voice] | None:
        """Who sent a packet by where it came from and went, and how sure that is (0 is surest)."""
        source, destination = plain(route[0]), plain(route[1])
        for level, key in enumerate(_KEYS):
            own, facing = self._table(level)
            here, there = key(source), key(destination)
            if (party := own.get(here)) is not None:
                return level, _ITSELF[party]
            if (party := facing.get(here)) is not None:
                return level, _IN_PLACE[OTHER[party]]
            if (party := facing.get(there)) is not None:
                return level, _ITSELF[party]
            if (party := own.get(there)) is not None:
                return level, (_EITHER if self.between else _ITSELF)[OTHER[party]]
        return None

    def _by_sdp(self) -> None:
        """SSRCs that a=ssrc lines name (RFC 5576)."""
        named: dict[int, set[tuple[str, bool]]] = {}
        for party, sides in self.own.items():
            for side in sides:
                for ssrc in side.ssrcs:
                    named.setdefault(ssrc, set()).add((party, True))
        for party, sides in self._facing.items():
            for side in sides:
                for ssrc in side.ssrcs:
                    if (OTHER[party], True) not in named.get(ssrc, ()):
                        named.setdefault(ssrc, set()).add((OTHER[party], False))
        for ssrc, who in named.items():
            if ssrc not in self.voices and len(who) == 1:
                self.voices[ssrc] = Voice(*next(iter(who)))

    def _infer(self, pairs: Collection[tuple[int, int]], speakers: Collection[int]) -> None:
        """Two SSRCs that hear each other are two parties."""
        for _ in range(3):
            guesses: dict[int, set[str]] = {}
            for reporter, source in pairs:
                for known, other in ((reporter, source), (source, reporter)):
                    if other not in self.voices and known in self.voices and known != other:
                        guesses.setdefault(other, set()).add(OTHER[self.voices[known].party])
            if not guesses:
                break
            for ssrc, parties in guesses.items():
                if len(parties) == 1:
                    self.voices[ssrc] = self._assumed[parties.pop()]
        strangers = [ssrc for ssrc in speakers if ssrc not in self.voices]
        if len(strangers) != 1:
            return
        heard = {self.voices[ssrc].party for ssrc in speakers if ssrc in self.voices}
        if len(heard) == 1:
            self.voices[strangers[0]] = self._assumed[OTHER[heard.pop()]]

    def hearer(self, reporter: int, route: Route) -> Voice | None:
        """Who made a report: the party that hears, or a node that hears in its place."""
        voice = self.voices.get(reporter)
        if voice is None:
            found = self.of_route(route)
            voice = found[1] if found else None
        return voice

    def of_host(self, endpoint: Endpoint) -> str | None:
        """Whose address that is, whatever the port: of a party that signals from where it speaks."""
        own, _ = self._table(2)
        return own.get(_host(plain(endpoint)))

    def place(self, party: str | None) -> Endpoint | None:
        """Where a party takes media, by the newest SDP that says so."""
        for side in reversed(self.own.get(party or "", ())):
            if side.port and side.ip not in _NO_ADDRESS:
                return side.ip, side.port
        return None

    def reaches_end(self, routes: Iterable[Route], party: str) -> bool:
        """Whether packets go straight to a party's own address."""
        own, _ = self._table(0)
        return any(own.get(_endpoint(plain(route[1]))) == party for route in routes)


def plain(endpoint: Endpoint) -> Endpoint:
    """An IPv4-mapped address as the IPv4 address it is."""
    ip, port = endpoint
    return (ip[12:], port) if len(ip) == 16 and ip.startswith(_MAPPED) else endpoint


def _endpoint(endpoint: Endpoint) -> object:
    return None if endpoint[0] in _NO_ADDRESS else endpoint


def _port(endpoint: Endpoint) -> object:
    return endpoint[1] or None


def _host(endpoint: Endpoint) -> object:
    return None if endpoint[0] in _NO_ADDRESS else endpoint[0]


_KEYS = (_endpoint, _port, _host)
"""By what a place is known, the surest first."""


def _endpoints(side: MediaSide) -> tuple[Endpoint, ...]:
    """Where a side takes media and its reports; nothing for one that takes none."""
    if not side.port:
        return ()
    return plain((side.ip, side.port)), plain((side.rtcp_ip, side.rtcp_port))


def _stands(side: MediaSide, own: Collection[Endpoint]) -> bool:
    """Whether a side is a node between: it takes media, at an address that no party has."""
    return bool(side.port) and side.ip not in _NO_ADDRESS and (side.ip, side.port) not in own


def _only(
    table: Mapping[object, str | None], against: Mapping[object, str | None]
) -> dict[object, str]:
    """Those places that only one has, and nobody in the other table."""
    return {
        key: party
        for key, party in table.items()
        if party is not None and key is not None and key not in against
    }


def _best(found: Sequence[tuple[int, Voice]]) -> Voice | None:
    """What the surest of several ways say; nothing when they contradict each other."""
    if len(found) == 1:
        return found[0][1]
    best = min((level for level, _ in found), default=None)
    voices = {voice for level, voice in found if level == best}
    if len({voice.party for voice in voices}) > 1:
        # A proxy passes reports on: seen at both its ends, only one of them is from the source.
        voices = {voice for voice in voices if voice.own}
    parties = {voice.party for voice in voices}
    if len(parties) != 1:
        return None
    own = {voice.own for voice in voices}
    return Voice(parties.pop(), True if True in own else None if None in own else False)


def _by_hints(hints: Collection[str]) -> Voice | None:
    """What the sources say who speaks; nothing when they contradict each other."""
    voices = {HINTS[hint] for hint in hints}
    return voices.pop() if len(voices) == 1 else None
