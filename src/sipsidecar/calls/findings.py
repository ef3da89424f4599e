"""What is known of a call's media to what is wrong with it, each with the figures it stands on."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_address, ip_network

import msgspec

from sipsidecar.calls.media import PRECEDENCE, UNKNOWN, Direction, Media
from sipsidecar.calls.negotiation import Agreement, MediaSide, Negotiation
from sipsidecar.calls.parties import CALLEE, CALLER, DIRECTIONS, OTHER, plain
from sipsidecar.calls.thresholds import Thresholds

KINDS = (
    "codec_changed",
    "dead_air",
    "direction_mismatch",
    "early_media_only",
    "high_jitter",
    "high_loss",
    "late_sdp",
    "low_mos",
    "no_media",
    "one_way_audio",
    "private_media_address",
    "transcoded",
)

MIN_LOST = 2
"""One packet is lost at the start of many clean streams."""
MIN_EXPECTED = 100
"""Packets: of fewer, a loss in percent says little."""
MIN_REPORTS = 2
"""Jitter begins at anything: one report of it says little."""
MIN_LOW_INTERVALS = 2
DEAF_SHARE = 0.1
"""Under this share of what was sent, a direction counts as not heard."""
MIN_SENT = 250
"""Packets for that: 5 s of audio."""

_PRIVATE = tuple(
    ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
        "::1/128",
    )
)
"""RFC 1918, 6598, 3927, 1122, 4193, 4291: nobody outside can send there."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong."""

    kind: str
    """One of `KINDS`."""
    direction: str | None
    """The stream of the media record that it is of; None when it is the call's."""
    evidence: dict[str, object]
    """Figures and words that JSON can hold; what is unknown is left out."""


class CallFacts(msgspec.Struct, frozen=True):
    """What findings ask of the call itself. Times in microseconds by the clock it is timed by."""

    answered: bool
    answered_at: int | None
    talk_ms: float | None
    early_media_at: int | None
    """First provisional response with SDP."""
    source_ip: bytes
    """Who sent the INVITE (packed)."""
    destination_ip: bytes
    callee_ip: bytes = b""
    """Where the egress branch went whose SDP is in `Negotiation.egress`; empty when there is none."""


def judge(
    call: CallFacts | None, negotiation: Negotiation, media: Media, thresholds: Thresholds
) -> tuple[Finding, ...]:
    """Find what is wrong, sorted by kind and direction; `call` is None for media without a call."""
    found = [*_codecs(negotiation), *_sdp(negotiation)]
    if call is not None:
        found += _addresses(call, negotiation)
        if not call.answered:
            found += _early(call, media)
    if media.directions:
        found += _quality(media, thresholds)
        found += _audio(call, negotiation, media, thresholds)
        if call is not None:
            found += _dead_air(call, negotiation, media, thresholds)
    if len(found) > 1:
        found.sort(key=lambda one: (one.kind, one.direction or ""))
    return tuple(found)


def _made(kind: str, direction: str | None, **evidence: object) -> Finding:
    return Finding(kind, direction, {k: v for k, v in evidence.items() if v is not None})


# ------------------------------------------------------------------------------------- figures


def _quality(media: Media, thresholds: Thresholds) -> Iterator[Finding]:
    for direction in media.directions:
        record = direction.record
        if record.mos is not None and (
            record.mos < thresholds.low_mos or direction.low_intervals >= MIN_LOW_INTERVALS
        ):
            yield _made(
                "low_mos",
                record.stream,
                mos=_round(record.mos),
                mos_min=_round(record.mos_min),
                mos_kind=record.mos_kind,
                mos_scale=record.mos_scale,
                mos_grade=record.mos_grade,
                mos_codec=record.mos_codec,
                threshold=thresholds.low_mos,
                low_intervals=direction.low_intervals,
                rated_intervals=direction.rated_intervals,
                loss_percent=_round(record.loss_percent),
                jitter_ms=_round(record.jitter_ms),
                delay_ms=_round(record.delay_ms),
                reports=record.reports,
                source=record.source,
            )
        if _lossy(direction, thresholds):
            yield _made(
                "high_loss",
                record.stream,
                loss_percent=_round(record.loss_percent),
                loss_max_percent=_round(record.loss_max_percent),
                threshold_percent=thresholds.high_loss_percent,
                packets_lost=record.packets_lost,
                packets_expected=record.packets_expected,
                upstream_loss_percent=_round(record.upstream_loss_percent),
                segment=record.segment,
                reports=record.reports,
                source=record.source,
            )
        jitter = record.jitter_ms
        enough = record.reports >= MIN_REPORTS or record.source in PRECEDENCE
        if jitter is not None and jitter >= thresholds.high_jitter_ms and enough:
            yield _made(
                "high_jitter",
                record.stream,
                jitter_ms=_round(jitter),
                jitter_p95_ms=_round(record.jitter_p95_ms),
                jitter_max_ms=_round(record.jitter_max_ms),
                threshold_ms=thresholds.high_jitter_ms,
                segment=record.segment,
                reports=record.reports,
                source=record.source,
            )


def _lossy(direction: Direction, thresholds: Thresholds) -> bool:
    record = direction.record
    if record.loss_percent is None or record.loss_percent < thresholds.high_loss_percent:
        return False
    if record.packets_expected is None or record.packets_lost is None:
        return record.source in PRECEDENCE  # a whole session's, which counts no packets
    return record.packets_lost >= MIN_LOST and record.packets_expected >= MIN_EXPECTED


# ------------------------------------------------------------------------------------- who hears whom


def _audio(
    call: CallFacts | None, negotiation: Negotiation, media: Media, thresholds: Thresholds
) -> Iterator[Finding]:
    """One-way audio, and none at all: while both should have sent, for long enough."""
    directions = [each for each in media.directions if each.record.direction != UNKNOWN]
    directions = directions or list(media.directions)
    if len(directions) != 2:
        return
    seconds = _both_ways(call, negotiation, media)
    if seconds < thresholds.one_way_seconds:
        return
    one, other = directions
    if _dead(one) and _dead(other):
        yield _made(
            "no_media",
            None,
            talk_seconds=_round(seconds),
            **{name: _hearing(each) for name, each in _by_stream(directions)},
        )
        return
    for silent, audible in ((one, other), (other, one)):
        if _dead(silent) and _alive(audible):
            yield _made(
                "one_way_audio",
                silent.record.stream,
                talk_seconds=_round(seconds),
                **_hearing(silent),
                other_direction=_hearing(audible),
            )


def _both_ways(call: CallFacts | None, negotiation: Negotiation, media: Media) -> float:
    """Seconds in which both parties should have sent: answered, and neither on hold."""
    records = [direction.record for direction in media.directions]
    reported = max(((r.ended_at - r.started_at) / 1e6 for r in records), default=0.0)
    if call is None:
        return reported
    if not call.answered:
        return 0.0
    talk = reported if call.talk_ms is None else call.talk_ms / 1000
    agreements = negotiation.ingress or negotiation.egress
    if not agreements:
        return talk
    # One agreement may be older than the answer: it holds from there on.
    began = call.answered_at
    if began is None:
        began = min((a.at for a in agreements if a.at is not None), default=0)
    times = [0.0]
    times += [max((each.at - began) / 1e6, 0.0) if each.at else 0.0 for each in agreements[1:]]
    times.append(max(talk, times[-1]))
    return sum(
        max(min(until, talk) - min(since, talk), 0.0)
        for each, since, until in zip(agreements, times, times[1:], strict=False)
        if each.flow == "both" and each.codec is not None
    )


def _dead(direction: Direction) -> bool:
    """Not heard, or never sent and nobody says that it was heard."""
    if direction.heard is None:
        return direction.sends is False
    if not direction.heard:
        return True
    sent, received = direction.sent_packets, direction.received_packets
    if sent is None or received is None or sent < MIN_SENT:
        return False
    return received < DEAF_SHARE * sent


def _alive(direction: Direction) -> bool:
    return not _dead(direction) and bool(direction.heard or direction.sends)


def _hearing(direction: Direction) -> dict[str, object]:
    """What is known of whether a direction was sent and heard."""
    known = {
        "sends": direction.sends,
        "heard": direction.heard,
        "packets_sent": direction.sent_packets,
        "packets_received": direction.received_packets,
        "sender_reports": direction.sender_reports,
        "reports": direction.record.reports or None,
        "reports_of_nothing": direction.silent_reports or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def _by_stream(directions: Iterable[Direction]) -> Iterator[tuple[str, Direction]]:
    for direction in directions:
        yield direction.record.stream, direction


# ------------------------------------------------------------------------------------- early and late


def _early(call: CallFacts, media: Media) -> Iterator[Finding]:
    """Media of a call that nobody answered."""
    sent = [name for name, each in _by_stream(media.directions) if each.sends or each.heard]
    if sent or call.early_media_at is not None:
        yield _made(
            "early_media_only",
            None,
            early_sdp=call.early_media_at is not None,
            media=sent or None,
        )


def _dead_air(
    call: CallFacts, negotiation: Negotiation, media: Media, thresholds: Thresholds
) -> Iterator[Finding]:
    if not call.answered or call.answered_at is None:
        return
    agreements = negotiation.ingress or negotiation.egress
    first = next((each for each in agreements if not each.early), None)
    if first is not None and first.flow != "both":
        return
    for stream, direction in _by_stream(media.directions):
        if direction.first_media_at is None or _dead(direction):
            continue
        late = (direction.first_media_at - call.answered_at) / 1e6
        if late > thresholds.dead_air_seconds:
            yield _made(
                "dead_air",
                stream,
                silence_seconds=_round(late),
                threshold_seconds=thresholds.dead_air_seconds,
                packets_sent=direction.sent_packets,
            )


# ------------------------------------------------------------------------------------- SDP


def _codecs(negotiation: Negotiation) -> Iterator[Finding]:
    ingress, egress = _names(negotiation.ingress), _names(negotiation.egress)
    if len(ingress) > 1 or len(egress) > 1:
        yield _made(
            "codec_changed",
            None,
            ingress_codecs=ingress if len(ingress) > 1 else None,
            egress_codecs=egress if len(egress) > 1 else None,
        )
    if ingress and egress and ingress[-1] != egress[-1]:
        yield _made("transcoded", None, ingress_codec=ingress[-1], egress_codec=egress[-1])


def _names(agreements: Iterable[Agreement]) -> list[str]:
    """The codecs of a leg, one after another; what was only previewed does not count."""
    names: list[str] = []
    for each in agreements:
        name = each.codec.name if each.codec and not each.early else None
        if name is not None and names[-1:] != [name]:
            names.append(name)
    return names


def _sdp(negotiation: Negotiation) -> Iterator[Finding]:
    mismatches: list[dict[str, object]] = []
    for leg, agreements in (("ingress", negotiation.ingress), ("egress", negotiation.egress)):
        for each in _first_ones(agreements):
            callers = each.offered_by == CALLER
            offer, answer = (each.caller, each.callee) if callers else (each.callee, each.caller)
            restricted = answer.direction in ("sendonly", "inactive") or answer.held
            if offer.direction == "sendrecv" and not offer.held and restricted:
                mismatches.append(
                    {
                        "leg": leg,
                        "offered": offer.direction,
                        "answered": "0.0.0.0" if answer.held else answer.direction,  # noqa: S104
                        "answered_by": OTHER[each.offered_by],
                    }
                )
    illegal = list(negotiation.illegal_answers)
    if mismatches or illegal:
        yield _made(
            "direction_mismatch", None, answers=mismatches or None, illegal_answers=illegal or None
        )
    if negotiation.late_offer:
        ingress = negotiation.ingress or negotiation.egress
        via = next((each.via for each in ingress), None)
        yield _made("late_sdp", None, offer_in_response=True, answer_in=via)


def _first_ones(agreements: Iterable[Agreement]) -> Iterator[Agreement]:
    """Those of the INVITE itself: what comes later may be a hold."""
    for each in agreements:
        if each.via not in ("reinvite", "update"):
            yield each
        if not each.early:
            return


def _addresses(call: CallFacts, negotiation: Negotiation) -> Iterator[Finding]:
    """Media addresses that only work at home, of parties whose signalling comes from outside."""
    ingress, egress = negotiation.ingress, negotiation.egress
    told: dict[str, Finding] = {}
    for party, signalling, agreements in (
        (CALLER, call.source_ip, ingress),
        (CALLEE, call.destination_ip, ingress),
        (CALLEE, call.callee_ip, egress),
    ):
        source, at_home = _known(signalling)
        if source is None or at_home:
            continue
        for each in agreements:
            side = each.caller if party == CALLER else each.callee
            media, private = _known(side.ip)
            if media is not None and private and _counts(side):
                # What suffers is what the other party sends there.
                stream = DIRECTIONS[OTHER[party]]
                told[stream] = _made(
                    "private_media_address",
                    stream,
                    party=party,
                    media_address=media,
                    signalling_address=source,
                )
    yield from told.values()


def _counts(side: MediaSide) -> bool:
    return bool(side.port) and not side.candidates and not side.held


@lru_cache(maxsize=4096)
def _known(packed: bytes) -> tuple[str | None, bool]:
    """An address as text, None for no address, and whether it is private."""
    ip, _ = plain((packed, 0))
    if len(ip) not in (4, 16):
        return None, False
    address = ip_address(ip)
    return str(address), any(address in net for net in _PRIVATE if net.version == address.version)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
