"""Setups and calls to findings over traffic: what changed between trunks, carriers and agents.

Nothing of it is an alarm by itself: a trunk whose callers are all diverted is as it is. What is told
is a share that surely rose over what this trunk taught (`shares`), lengths at which calls are cut
(`cuts`), and capture agents (`silence`). After a restart all is learned again.
"""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

import msgspec

from sipsidecar.calls.events import OTHER, AttemptRecord, CallRecord, Setup, Traits
from sipsidecar.signals.alarms import TREND, WARN, Alarm, Scope, scope_text
from sipsidecar.signals.cuts import Cut, Cuts
from sipsidecar.signals.loops import Loops
from sipsidecar.signals.newcomers import Directory, Newcomer, Newcomers
from sipsidecar.signals.shares import Share, ShareSettings, Shift, Watch
from sipsidecar.signals.silence import Silence, Silences, Skew
from sipsidecar.signals.snapshot import AgentFigures

SHOWN: Final = 5
"""Addresses and the like in the evidence of one alarm."""
STALE_SECONDS: Final = 60
"""How far the iat of a PASSporT may be from the time it is seen (RFC 8224 4.1)."""
IDENTITY_CODES: Final = frozenset({428, 436, 437, 438})
"""Refusals for an Identity (RFC 8224 6.2.2)."""
SECURE: Final = frozenset({"tls", "wss"})
CODECS: Final = frozenset(
    {
        "PCMU", "PCMA", "G722", "G723", "G726-16", "G726-24", "G726-32", "G726-40", "G728", "G729",
        "G729D", "G729E", "GSM", "GSM-EFR", "iLBC", "opus", "speex", "AMR", "AMR-WB", "AMR-WB+",
        "EVS", "EVRC", "EVRC0", "EVRCB", "G7221", "SILK", "L16", "L8", "LPC", "DVI4", "BV16", "BV32",
    }
)  # fmt: skip
"""Codecs that are told apart by name; another one is `other`."""


class TrafficSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What findings over traffic are told by the configuration."""

    arm_calls: int = 200
    """Calls that a trunk must have taught with."""
    skew_limit_seconds: float = 1.0
    """How far the clock of a capture agent may be off."""


class _Check(NamedTuple):
    """One share that is watched."""

    category: str
    words: str
    """What the calls are, for people; {kind} stands for the kind."""
    points: float
    hits: int
    severity: str = WARN


CHECKS: Final = {
    "codec-change": _Check("codec-change", "codec {kind}", 0.10, 10),
    "transcoding": _Check(
        "codec-change", "another codec than on the caller's side", 0.10, 10, TREND
    ),
    "transport-downgrade": _Check("transport-downgrade", "not over TLS", 0.05, 3),
    "secure-asked": _Check("transport-downgrade", "TLS asked for and not used", 0.05, 3),
    "media-downgrade": _Check("transport-downgrade", "media offered without SRTP", 0.05, 5),
    "destination-new": _Check("destination-drift", "to addresses that are new", 0.05, 10),
    "destination-unlisted": _Check(
        "destination-drift", "to addresses that DNS does not give", 0.05, 10
    ),
    "failover-loop": _Check("failover-loop", "calls that go round", 0.03, 5),
    "caller-id": _Check("caller-id", "From names another caller than was asserted", 0.10, 10),
    "caller-domain": _Check("caller-id", "asserted by domains that are new", 0.05, 10),
    "diversion": _Check("caller-id", "diverted", 0.10, 10, TREND),
    "attestation-drop": _Check("attestation-drop", "{kind}", 0.10, 10),
    "attestation-number": _Check(
        "attestation-drop", "signed for another number than From", 0.05, 10
    ),
    "attestation-stale": _Check(
        "attestation-drop", f"signed more than {STALE_SECONDS} s off", 0.10, 10, TREND
    ),
    "attestation-refused": _Check(
        "attestation-drop", "refused for their Identity (428, 436, 437, 438)", 0.02, 5
    ),
}
"""By source: what is watched as a share of calls. Sources of one category may be one incident."""

OTHER_SOURCES: Final = ("early-cut", "agent-silent", "clock-skew")
"""What is found otherwise; the latter two are followed by the name of the capture agent."""

_BELOW: Final = {
    "A": (),
    "B": ("attested less than A",),
    "C": ("attested less than A", "attested less than B"),
    "missing": ("attested less than A", "attested less than B", "not signed"),
}
_GRAVITY: Final = {
    kind: place for place, kind in enumerate(("", "attested less than B", "not signed"))
}


class _Hop(NamedTuple):
    """One hop of a call at a trunk: an attempt, or the ingress where that is the trunk's."""

    scope: Scope
    trunk: str | None
    transport: str | None
    peer_ip: str | None
    """Where an attempt was sent; None of an ingress."""
    answered: bool
    code: int | None
    codec: str | None
    traits: Traits | None


class Traffic:
    """All findings over traffic; times are microseconds UTC of this sidecar's clock."""

    def __init__(
        self,
        agent_names: Mapping[int, str] | None = None,
        settings: TrafficSettings | None = None,
    ) -> None:
        self._settings = settings or TrafficSettings()
        self._watches = {
            source: Watch(
                ShareSettings(
                    points=check.points, hits=check.hits, arm_calls=self._settings.arm_calls
                )
            )
            for source, check in CHECKS.items()
        }
        self._addresses = Newcomers()
        self._domains = Newcomers()
        self._directory = Directory()
        self._loops = Loops()
        self._cuts = Cuts()
        self._silences = Silences(agent_names, self._settings.skew_limit_seconds)

    @property
    def folded(self) -> dict[str, int]:
        """What the caps kept from being looked at, by what it was."""
        return {
            **{source: watch.folded for source, watch in self._watches.items()},
            "addresses": self._addresses.folded,
            "domains": self._domains.folded,
            "dns": self._directory.folded,
            "pairs": self._loops.folded,
            "early-cut": self._cuts.folded,
            "agents": self._silences.folded,
        }

    def receive_setup(self, setup: Setup, at: int) -> None:
        """One call whose setup is over, its attempts and what its INVITEs said."""
        call = setup.call
        traits = dict(setup.traits)
        for hop in _hops(setup, traits):
            self._receive_hop(hop, call, at)
        scope = _scope(("tenant", call.tenant))
        signs = self._loops.signs(setup, traits, at)
        self._see("failover-loop", scope, bool(signs), call, at, signs[0] if signs else "")
        ingress = traits.get("")
        if ingress is not None and ingress.asserted_host is not None:
            owner = call.tenant or ""
            new = self._domains.receive(owner, ingress.asserted_host, at)
            if new is not None:
                self._see("caller-domain", scope, new, call, at, ingress.asserted_host)

    def receive_call(self, record: CallRecord, at: int) -> None:
        """One call that is over, at its first record."""
        if record.answered and record.ended and record.talk_ms is not None:
            self._cuts.receive(
                _scope(("trunk", record.trunk), ("direction", record.direction)),
                record.talk_ms / 1000,
                at,
                record.call_id,
                released_by=record.released_by,
                no_ack="no_ack" in record.flags,
            )

    def receive_addresses(self, trunk: str, addresses: frozenset[str], at: int) -> None:
        """What DNS says of a trunk now: all addresses of all of its names."""
        self._directory.receive(trunk, frozenset(map(_plain_address, addresses)), at)

    def look(self, at: int, agents: Sequence[AgentFigures]) -> list[Alarm]:
        """Once a minute: alarms that hold or end."""
        return [alarm for some in self.looks(at, agents) for alarm in some]

    def looks(self, at: int, agents: Sequence[AgentFigures]) -> Iterator[list[Alarm]]:
        """The same in slices, between which other things may be done, and calls received.

        Once begun it is to be gone through to its end.
        """
        self._addresses.grow_old(at)
        self._domains.grow_old(at)
        for source, watch in self._watches.items():
            yield [
                self._share_alarm(source, scope, share, shifts, at)
                for scope, share, shifts in watch.look(at)
            ]
        yield [_cut_alarm(scope, cuts, at) for scope, cuts in self._cuts.look(at)]
        silences, skews = self._silences.look(at, agents)
        yield [
            *(_silence_alarm(one, at) for one in silences),
            *(_skew_alarm(one, at) for one in skews),
        ]

    def _see(
        self, source: str, scope: Scope, hit: bool, call: CallRecord, at: int, note: str = ""
    ) -> None:
        kinds = (source,) if hit else ()
        self._watches[source].receive(scope, kinds, at, call.call_id, note)

    def _receive_hop(self, hop: _Hop, call: CallRecord, at: int) -> None:
        scope = hop.scope
        if hop.answered and hop.codec is not None:
            codec = hop.codec if hop.codec in CODECS else OTHER
            self._watches["codec-change"].receive(scope, (codec,), at, call.call_id)
            if hop.peer_ip is not None and call.codec_negotiated is not None:
                differs = call.codec_negotiated != hop.codec
                known = call.codec_negotiated if call.codec_negotiated in CODECS else OTHER
                self._see("transcoding", scope, differs, call, at, f"{known} to {codec}")
        if hop.transport is not None:
            insecure = hop.transport not in SECURE
            self._see("transport-downgrade", scope, insecure, call, at, hop.transport)
            if hop.traits is not None and hop.traits.secure_asked:
                self._see("secure-asked", scope, insecure, call, at, hop.transport)
        if hop.peer_ip is not None and hop.trunk not in (None, OTHER):
            assert hop.trunk is not None
            new = self._addresses.receive(hop.trunk, hop.peer_ip, at, answered=hop.answered)
            if new is not None:
                self._see("destination-new", scope, new, call, at, hop.peer_ip)
            listed = self._directory.lists(hop.trunk, _plain_address(hop.peer_ip), at)
            if listed is not None:
                self._see("destination-unlisted", scope, not listed, call, at, hop.peer_ip)
        if hop.code is not None:
            refused = hop.code in IDENTITY_CODES
            self._see("attestation-refused", scope, refused, call, at, str(hop.code))
        if hop.traits is not None:
            self._receive_traits(hop.traits, scope, call, at)

    def _receive_traits(self, traits: Traits, scope: Scope, call: CallRecord, at: int) -> None:
        if traits.media is not None and traits.media != OTHER:
            plain = "SAVP" not in traits.media
            self._see("media-downgrade", scope, plain, call, at, traits.media)
        asserted, remote = traits.asserted_differs, traits.remote_party_differs
        if asserted is not None or remote is not None:
            note = "P-Asserted-Identity" if asserted else "Remote-Party-ID"
            self._see("caller-id", scope, bool(asserted or remote), call, at, note)
        self._see("diversion", scope, traits.diverted, call, at)
        if traits.identity in _BELOW:
            self._watches["attestation-drop"].receive(
                scope, _BELOW[traits.identity], at, call.call_id, traits.identity
            )
        if traits.origin_differs is not None:
            self._see("attestation-number", scope, traits.origin_differs, call, at)
        if traits.identity_age_seconds is not None:
            stale = abs(traits.identity_age_seconds) > STALE_SECONDS
            self._see("attestation-stale", scope, stale, call, at)

    def _share_alarm(
        self, source: str, scope: Scope, share: Share, shifts: Sequence[Shift], at: int
    ) -> Alarm:
        """One alarm of all kinds of a scope: that of the one that tells most."""
        check = CHECKS[source]
        held = [shift for shift in shifts if shift.active] or list(shifts)
        most = max(shift.hits for shift in held)
        shift = max(
            held,
            key=lambda one: (one.hits >= 0.8 * most, _GRAVITY.get(one.kind, 0), one.hits),
        )
        words = check.words.format(kind=shift.kind)
        percent, normal = 100 * shift.hits / max(shift.total, 1), 100 * shift.normal
        if shift.active:
            summary = (
                f"{words}: {percent:.1f} % ({shift.hits} of {shift.total} calls) of "
                f"{scope_text(scope)}; normal is at most {normal:.1f} %; chance of this by luck "
                f"{shift.probability:.0e}; z {shift.z:.1f}"
            )
        elif shift.adopted:
            summary = f"{words}: of {scope_text(scope)} this is normal now, after a day"
        else:
            summary = f"{words}: of {scope_text(scope)} as normal again"
        return Alarm(
            source=source,
            category=check.category,
            scope=scope,
            at=at,
            active=shift.active,
            severity=check.severity,
            summary=summary,
            since=shift.since,
            value=percent,
            expected=normal,
            count=shift.hits,
            total=shift.total,
            probability=shift.probability,
            z=shift.z,
            call_ids=shift.call_ids,
            evidence=self._evidence(source, scope, share, shift, at),
        )

    def _evidence(
        self, source: str, scope: Scope, share: Share, shift: Shift, at: int
    ) -> dict[str, Any]:
        total, kinds, notes = share.recent()
        evidence: dict[str, Any] = {
            "kind": shift.kind,
            "calls_in_the_last_hour": total,
            "learned_calls": share.learned,
        }
        if notes:
            evidence["seen_in_the_last_hour"] = dict(list(notes.items())[:SHOWN])
        if source in ("codec-change", "attestation-drop") and total:
            evidence["percent_in_the_last_hour"] = {
                kind: round(100 * hits / total, 1) for kind, hits in sorted(kinds.items())
            }
            evidence["normal_percent"] = {
                kind: round(100 * (share.normal(kind) or 0.0), 1) for kind in sorted(kinds)
            }
        if source.startswith("destination-"):
            trunk = dict(scope).get("trunk", "")
            evidence["addresses"] = self._address_evidence(trunk, notes, at)
        return evidence

    def _address_evidence(self, trunk: str, notes: Mapping[str, int], at: int) -> dict[str, Any]:
        """The addresses that calls went to, the remarkable ones first, with how many were answered."""
        known = self._addresses.of(trunk, at)
        order = sorted(known, key=lambda one: (one not in notes, -known[one].calls, one))
        return {
            address: _of_address(
                known[address],
                self._directory.lists(trunk, _plain_address(address), at),
                self._directory.left(trunk, _plain_address(address)),
            )
            for address in order[: 2 * SHOWN]
        }


def _of_address(known: Newcomer, listed: bool | None, left_at: int | None) -> dict[str, Any]:
    said: dict[str, Any] = {
        "calls": known.calls,
        "asr_percent": round(100 * known.answered / known.calls, 1) if known.calls else None,
        "new": known.new,
        "since": known.first_at,
    }
    if known.idle_days is not None:
        said["idle_days_before"] = known.idle_days
    if listed is not None:
        said["in_dns"] = listed
        if not listed and left_at is not None:
            said["left_dns_at"] = left_at
    return said


def _scope(*pairs: tuple[str, str | None]) -> Scope:
    """The dimensions that are known of; all calls where there are none."""
    return tuple([(name, value) for name, value in pairs if value is not None])


def _hops(setup: Setup, traits: Mapping[str, Traits]) -> list[_Hop]:
    """Each attempt, and the ingress where none of the attempts is at the call's trunk."""
    call = setup.call
    hops = [_of_attempt(one, traits.get(one.branch)) for one in setup.attempts]
    if call.trunk not in {one.trunk for one in hops}:
        hops.append(
            _Hop(
                _scope(("trunk", call.trunk), ("direction", call.direction)),
                call.trunk,
                call.transport,
                None,
                call.answered,
                call.final_code,
                call.codec_negotiated,
                traits.get(""),
            )
        )
    return hops


def _of_attempt(attempt: AttemptRecord, traits: Traits | None) -> _Hop:
    return _Hop(
        _scope(("trunk", attempt.trunk), ("direction", attempt.direction)),
        attempt.trunk,
        attempt.transport,
        attempt.peer_ip,
        attempt.answered,
        attempt.final_code,
        attempt.codec_negotiated,
        traits,
    )


def _plain_address(text: str) -> str:
    """One way of writing each address; a text that is none stays."""
    try:
        address = ip_address(text)
    except ValueError:
        return text
    return str(getattr(address, "ipv4_mapped", None) or address)


def _cut_alarm(scope: Scope, cuts: Sequence[Cut], at: int) -> Alarm:
    held = [cut for cut in cuts if cut.active] or list(cuts)
    worst = max(held, key=lambda cut: (cut.hits - cut.expected, cut.spot))
    if worst.active:
        summary = (
            f"{worst.hits} of {worst.calls} answered calls of {scope_text(scope)} ended after "
            f"{worst.spot}; by the lengths around it {worst.expected:.1f} would; chance of this by "
            f"luck {worst.probability:.0e}; ended by the caller {worst.released_by['caller']}, by the "
            f"callee {worst.released_by['callee']}, without ACK {worst.no_ack}"
        )
    else:
        summary = f"calls of {scope_text(scope)} end after {worst.spot} no more than after others"
    return Alarm(
        source="early-cut",
        category="early-cut",
        scope=scope,
        at=at,
        active=worst.active,
        summary=summary,
        since=worst.since,
        value=float(worst.hits),
        expected=worst.expected,
        count=worst.hits,
        total=worst.calls,
        probability=worst.probability,
        call_ids=worst.call_ids,
        evidence={
            "lengths": {
                cut.spot: {
                    "calls": cut.hits,
                    "expected": round(cut.expected, 1),
                    "released_by": cut.released_by,
                    "no_ack": cut.no_ack,
                }
                for cut in held
            }
        },
    )


def _silence_alarm(silence: Silence, at: int) -> Alarm:
    if silence.active:
        summary = (
            f"capture agent {silence.name} has said nothing for {silence.seconds:.0f} s; its longest "
            f"pause in a week is {silence.usual_seconds:.0f} s"
        )
    else:
        summary = f"capture agent {silence.name} is heard again, after {silence.seconds:.0f} s"
    return Alarm(
        source=f"agent-silent {silence.name}",
        category="agent-silent",
        at=at,
        active=silence.active,
        summary=summary,
        since=silence.since,
        value=silence.seconds,
        expected=silence.usual_seconds,
        evidence={"agent": silence.name, "last_heard_at": silence.since},
    )


def _skew_alarm(skew: Skew, at: int) -> Alarm:
    if skew.active:
        way = "ahead of" if skew.seconds > 0 else "behind"
        summary = (
            f"the clock of capture agent {skew.name} is {abs(skew.seconds):.1f} s {way} ours: times "
            f"between agents cannot be compared"
        )
    else:
        summary = f"the clock of capture agent {skew.name} is right again"
    return Alarm(
        source=f"clock-skew {skew.name}",
        category="clock-skew",
        at=at,
        active=skew.active,
        summary=summary,
        since=skew.since,
        value=skew.seconds,
        evidence={"agent": skew.name},
    )
