"""FreeSWITCH's events to records: its channels (legs), and what people call a call (conversations).

A leg is the join of its events: each fact is the first, the last or the smallest that was told, by
FreeSWITCH's own time and sequence, so that order, copies and format of the events do not matter.
Legs that name each other are one conversation. A leg's record leaves when the leg has ended and
nothing new came for the settle time, the conversation's with its last leg. Both then linger for
late facts, and what they change leaves again with a higher revision.

Most texts in an event are chosen by callers or by the switch's dialplan; UUIDs and links are not.
"""

import heapq
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from sys import intern
from typing import Final

import msgspec

from sipsidecar.calls.call import Endpoint
from sipsidecar.calls.dialog import MAX_TEXT
from sipsidecar.calls.events import ConversationRecord, LegRecord
from sipsidecar.wire import esl, hep, sip

MAX_LINKS: Final = 16
"""Other channels that one leg may name."""
MAX_CONVERSATION: Final = 64
"""Legs of one conversation, those that were only named included."""
MAX_LINGERING: Final = 20_000
"""Legs of conversations that are over, kept for late facts; the oldest go first."""
SETTLE: Final = 2.0
"""Seconds after the last event of an end, for what came out of order."""
LINGER: Final = 32.0
"""Seconds that a conversation that is over is kept; and a leg that began to hang up."""
LONGEST: Final = 4 * 3600.0
"""Seconds of silence after which a leg without an end is given up."""
SPARE_DEADLINES: Final = 1000
"""Deadlines that no longer count, beside one for each conversation, before all are ordered anew."""
TURN: Final = 8
"""Conversations judged per turn, so that a burst of endings does not stall the receiver."""


class Unjoined(msgspec.Struct, frozen=True):
    """A conversation that had left before a later link merged it into another: its record goes."""

    conversation: str
    received_at: int
    revision: int
    """Of the change that disproved it: the records below it go."""


class Packets(msgspec.Struct, frozen=True):
    """RTP that a leg's end counted (audio); None where FreeSWITCH did not say."""

    received: int | None = None
    sent: int | None = None
    skipped: int | None = None
    """Ticks without a packet: about what was lost or late."""


Leaving = LegRecord | ConversationRecord | Unjoined
"""What a table hands out."""

# ------------------------------------------------------------------------------------------- codes

_SIP_OF_CAUSE: Final = {
    "UNALLOCATED_NUMBER": 404,
    "NO_ROUTE_TRANSIT_NET": 404,
    "NO_ROUTE_DESTINATION": 404,
    "USER_BUSY": 486,
    "NO_USER_RESPONSE": 408,
    "NO_ANSWER": 480,
    "SUBSCRIBER_ABSENT": 480,
    "NORMAL_UNSPECIFIED": 480,
    "CALL_REJECTED": 603,
    "NUMBER_CHANGED": 410,
    "REDIRECTION_TO_NEW_DESTINATION": 410,
    "DESTINATION_OUT_OF_ORDER": 502,
    "INVALID_PROFILE": 502,
    "INVALID_NUMBER_FORMAT": 484,
    "INVALID_URL": 484,
    "INVALID_GATEWAY": 484,
    "FACILITY_REJECTED": 501,
    "FACILITY_NOT_IMPLEMENTED": 501,
    "SERVICE_NOT_IMPLEMENTED": 501,
    "REQUESTED_CHAN_UNAVAIL": 503,
    "NORMAL_CIRCUIT_CONGESTION": 503,
    "NETWORK_OUT_OF_ORDER": 503,
    "NORMAL_TEMPORARY_FAILURE": 503,
    "SWITCH_CONGESTION": 503,
    "BEARERCAPABILITY_NOTAVAIL": 503,
    "GATEWAY_DOWN": 503,
    "OUTGOING_CALL_BARRED": 403,
    "INCOMING_CALL_BARRED": 403,
    "BEARERCAPABILITY_NOTAUTH": 403,
    "BEARERCAPABILITY_NOTIMPL": 488,
    "INCOMPATIBLE_DESTINATION": 488,
    "RECOVERY_ON_TIMER_EXPIRE": 504,
    "ORIGINATOR_CANCEL": 487,
    "EXCHANGE_ROUTING_ERROR": 483,
}
"""The code that FreeSWITCH refuses a caller with (mod_sofia, after RFC 4497 8.4.1)."""
_OTHER_REFUSAL: Final = 480
"""For every other cause."""
_CAUSE_OF_SIP: Final = {
    **dict.fromkeys((401, 402, 403, 407, 603, 607, 608), "CALL_REJECTED"),
    404: "UNALLOCATED_NUMBER",
    **dict.fromkeys((485, 604), "NO_ROUTE_DESTINATION"),
    **dict.fromkeys((408, 504), "RECOVERY_ON_TIMER_EXPIRE"),
    410: "NUMBER_CHANGED",
    **dict.fromkeys((413, 414, 416, 420, 421, 423, 505, 513), "INTERWORKING"),
    480: "NO_USER_RESPONSE",
    **dict.fromkeys((400, 481, 500, 503), "NORMAL_TEMPORARY_FAILURE"),
    **dict.fromkeys((486, 600), "USER_BUSY"),
    484: "INVALID_NUMBER_FORMAT",
    **dict.fromkeys((488, 606), "INCOMPATIBLE_DESTINATION"),
    502: "NETWORK_OUT_OF_ORDER",
    405: "SERVICE_UNAVAILABLE",
    **dict.fromkeys((406, 415, 501), "SERVICE_NOT_IMPLEMENTED"),
    **dict.fromkeys((482, 483), "EXCHANGE_ROUTING_ERROR"),
    487: "ORIGINATOR_CANCEL",
}
"""The cause that a code becomes (mod_sofia, after RFC 4497 8.4.4); else NORMAL_UNSPECIFIED."""

# ------------------------------------------------------------------------------------------- texts


def _number(text: str | None, limit: int) -> int | None:
    """A decimal number; int() also takes signs, spaces, underscores and other scripts' digits."""
    if not text or len(text) > 19 or not (text.isascii() and text.isdigit()):
        return None
    value = int(text)
    return value if value <= limit else None


def _time(text: str | None) -> int:
    """Microseconds UTC; 0 for what did not happen."""
    return _number(text, 10**16) or 0


def _packets(text: str | None) -> int | None:
    return _number(text, 2**31 - 1)


def _mos(text: str | None) -> float | None:
    if not text or len(text) > 8:
        return None
    whole, _, rest = text.partition(".")
    if not (whole + rest).isascii() or not whole.isdigit() or (rest and not rest.isdigit()):
        return None
    value = float(text)
    return value if value <= 5 else None


def _code(text: str | None) -> int | None:
    """A final SIP code: 486, or sip:486 as in proto_specific_hangup_cause."""
    if text and text.startswith("sip:"):
        text = text[4:]
    value = _number(text, 699)
    return value if value is not None and value >= 200 else None


def _endpoint(ip: str | None, port: str | None) -> Endpoint | None:
    if not ip or len(ip) > 64:
        return None
    try:
        packed = ipaddress.ip_address(ip.strip("[]")).packed
    except ValueError:
        return None
    number = _number(port, 65535)
    return (packed, number) if number else None


# ------------------------------------------------------------------------------------------ a leg

_FIRST: Final = (
    "core_uuid",
    "call_direction",
    "variable_sip_call_id",
    "variable_sip_gateway_name",
    "variable_sofia_profile_name",
    "caller_caller_id_number",
    "caller_destination_number",
    "variable_originating_leg_uuid",
    "variable_originator",
)
"""Facts of which the first counts."""
_LENGTHS: Final = {"variable_sip_call_id": sip.MAX_CALL_ID}
"""Characters kept where they are not MAX_TEXT: a shorter Call-ID would join no call."""
_LAST: Final = (
    "other_leg_unique_id",
    "hangup_cause",
    "variable_hangup_cause_q850",
    "variable_sip_term_status",
    "variable_sip_invite_failure_status",
    "variable_proto_specific_hangup_cause",
    "variable_last_bridge_proto_specific_hangup_cause",
    "variable_sip_hangup_disposition",
    "channel_read_codec_name",
    "channel_write_codec_name",
    "variable_read_codec",
    "variable_write_codec",
    "variable_rtp_use_ssrc",
)
"""Facts of which the last counts."""
_COUNTED: Final = (
    "variable_rtp_audio_in_packet_count",
    "variable_rtp_audio_in_skip_packet_count",
    "variable_rtp_audio_out_packet_count",
    "variable_rtp_audio_in_mos",
)
"""Facts of the end: events before it may hold them unfinished."""
_PLACES: Final = {name: place for place, name in enumerate((*_FIRST, *_LAST, *_COUNTED))}
_FIRST_PLACES: Final = tuple((_PLACES[name], name) for name in _FIRST)
_LAST_PLACES: Final = tuple((_PLACES[name], name) for name in _LAST)
_END_PLACES: Final = tuple((_PLACES[name], name) for name in (*_LAST, *_COUNTED))
_TIMES: Final = (
    "caller_channel_created_time",
    "caller_channel_progress_time",
    "caller_channel_progress_media_time",
    "caller_channel_answered_time",
    "caller_channel_bridged_time",
    "caller_channel_hangup_time",
)
_CREATED_AT, _PROGRESS_AT, _MEDIA_AT, _ANSWERED_AT, _BRIDGED_AT, _HANGUP_AT = range(6)

_CREATED, _HANGING_UP, _COMPLETE, _DESTROYED = 1, 2, 4, 8
_OVER: Final = _COMPLETE | _DESTROYED
_ENDED: Final = _OVER | _HANGING_UP
_SEEN: Final = {
    "CHANNEL_CREATE": _CREATED,
    "CHANNEL_OUTGOING": _CREATED,
    "CHANNEL_HANGUP": _HANGING_UP,
    "CHANNEL_HANGUP_COMPLETE": _COMPLETE,
    "CHANNEL_DESTROY": _DESTROYED,
}


def _order(event: esl.Event) -> int:
    """When an event was made: its time is by a tick of 20 ms, its sequence by the whole core."""
    sequence = _number(event.event_sequence, 2**40 - 1) or 0
    return _time(event.event_date_timestamp) << 40 | sequence


class Leg:
    """One channel: everything that its events told."""

    __slots__ = (
        "_keys",
        "_local",
        "_network",
        "_remote",
        "_times",
        "_values",
        "conversation",
        "counted",
        "due",
        "ended_seen",
        "first_now",
        "first_seen",
        "last_now",
        "left",
        "links",
        "mirrored",
        "number",
        "received_at",
        "revision",
        "said",
        "seen",
        "set_up",
        "switch",
        "uuid",
        "why",
        "wire_code",
    )

    def __init__(
        self,
        uuid: str,
        switch: str,
        number: int,
        conversation: "Conversation",
        now: float,
        received_at: int,
    ) -> None:
        self.uuid = uuid
        self.switch = switch
        self.number = number
        """Small, running: names it where a UUID is too much."""
        self.conversation = conversation
        self.received_at = received_at
        self.first_now = self.last_now = now
        self.due = 0.0
        self.seen = 0
        self.first_seen = 0
        """Of its earliest event, by FreeSWITCH; 0 while unknown."""
        self.ended_seen = 0
        self.links: tuple[str, ...] = ()
        self.left = False
        """Its record was handed out."""
        self.said: int | None = None
        """Hash of the record that left last."""
        self.revision = 0
        self.why: str | None = None
        """Why it left, or is about to, without an end."""
        self.counted = False
        self.wire_code: int | None = None
        """Final SIP code that was seen; kept, for the SIP call may be forgotten before its leg."""
        self.mirrored = False
        """SIP of its Call-ID was known at its last event."""
        self.set_up: bool | None = None
        """It was told what became of its setup; None while it is not answered, False until then."""
        self._values: list[str | None] = [None] * len(_PLACES)
        self._keys = [0] * len(_PLACES)
        self._times = [0] * len(_TIMES)
        self._network: tuple[int, Endpoint] | None = None
        self._remote: tuple[int, Endpoint] | None = None
        self._local: tuple[int, Endpoint] | None = None

    def join(self, event: esl.Event) -> bool:
        """Join one event; tell whether there is anything new in it."""
        key = _order(event)
        bit = _SEEN.get(event.event_name, 0)
        news = bool(bit & ~self.seen)
        self.seen |= bit
        at = key >> 40
        if at:
            if not self.first_seen or at < self.first_seen:
                self.first_seen = at
                news = True
            if bit & _ENDED and (not self.ended_seen or at < self.ended_seen):
                self.ended_seen = at
                news = True
        for place, name in enumerate(_TIMES):
            at = _time(getattr(event, name))
            if at and (not self._times[place] or at < self._times[place]):
                self._times[place] = at
                news = True
        values, keys = self._values, self._keys
        for place, name in _FIRST_PLACES:
            value = getattr(event, name)
            if value and ((held := values[place]) is None or key <= keys[place]):
                value = value[: _LENGTHS.get(name, MAX_TEXT)]
                if held is None or key < keys[place] or value < held:
                    keys[place] = key
                    if value != held:
                        values[place] = intern(value)
                        news = True
        for place, name in _END_PLACES if bit & _OVER else _LAST_PLACES:
            value = getattr(event, name)
            if value and ((held := values[place]) is None or key >= keys[place]):
                value = value[:MAX_TEXT]
                if held is None or key > keys[place] or value > held:
                    keys[place] = key
                    if value != held:
                        values[place] = intern(value)
                        news = True
        return self._see_endpoints(event, key) or news

    def _see_endpoints(self, event: esl.Event, key: int) -> bool:
        before = (self._network, self._remote, self._local)
        self._network = _first(
            self._network, key, event.variable_sip_network_ip, event.variable_sip_network_port
        )
        self._remote = _first(
            self._remote, key, event.variable_remote_media_ip, event.variable_remote_media_port
        )
        self._local = _first(
            self._local, key, event.variable_local_media_ip, event.variable_local_media_port
        )
        return before != (self._network, self._remote, self._local)

    def value(self, name: str) -> str | None:
        """A fact by the name that `esl.Event` has for it."""
        return self._values[_PLACES[name]]

    @property
    def call_id(self) -> str:
        """SIP Call-ID; empty while FreeSWITCH has not told it."""
        return self.value("variable_sip_call_id") or ""

    @property
    def direction(self) -> str | None:
        """Inbound or outbound, as FreeSWITCH sees it."""
        direction = self.value("call_direction")
        return direction if direction in {"inbound", "outbound"} else None

    @property
    def endpoints(self) -> tuple[Endpoint | None, Endpoint | None]:
        """Where its media goes and comes from: the peer's end, then FreeSWITCH's; the first told."""
        remote, local = self._remote, self._local
        return remote[1] if remote else None, local[1] if local else None

    @property
    def ended(self) -> bool:
        """An event of its end was seen."""
        return bool(self.seen & _ENDED)

    @property
    def answered(self) -> bool:
        """By Answered-Time alone: a cause or an early event proves nothing."""
        return self._times[_ANSWERED_AT] > 0

    @property
    def ringing(self) -> bool:
        """A 180 or 183 was seen."""
        return self._times[_PROGRESS_AT] > 0 or self._times[_MEDIA_AT] > 0

    def created_at(self) -> int:
        """Microseconds UTC by FreeSWITCH; its first event's time, or else ours, if it did not say."""
        return self._times[_CREATED_AT] or self.first_seen or self.received_at

    def ended_at(self) -> int | None:
        """Microseconds UTC by FreeSWITCH; None when its end was not seen."""
        return (self._times[_HANGUP_AT] or self.ended_seen or None) if self.ended else None

    def rank(self) -> tuple[int, bool, str]:
        """Put legs in the order of creation; in one tick the caller's before the one made for it."""
        return self.created_at(), self.direction != "inbound", self.uuid

    def quality(self) -> Packets:
        """The packets that its end counted."""
        return Packets(
            _packets(self.value("variable_rtp_audio_in_packet_count")),
            _packets(self.value("variable_rtp_audio_out_packet_count")),
            _packets(self.value("variable_rtp_audio_in_skip_packet_count")),
        )

    def final(self) -> tuple[int | None, str | None]:
        """Final SIP code and how it is known, by ESL alone; (None, None) when nothing tells it."""
        term = _code(self.value("variable_sip_term_status"))
        own = _code(self.value("variable_proto_specific_hangup_cause"))
        if self.answered:
            return 200, "reported" if 200 in {term, own} else "derived"
        if not self.ended:
            return None, None
        for code in (term, own):
            if code is not None and code >= 300:
                return code, "reported"
        cause = self.value("hangup_cause")
        failure = _code(self.value("variable_sip_invite_failure_status"))
        if self.direction == "inbound":
            # Copied from the leg that was made for it. FreeSWITCH hands that code on, unless the
            # dialplan went on and refused with another, which the cause shows.
            failure = failure or _code(
                self.value("variable_last_bridge_proto_specific_hangup_cause")
            )
            if cause and _CAUSE_OF_SIP.get(failure or 0, "NORMAL_UNSPECIFIED") != cause:
                failure = None
        if failure is not None and failure >= 300:
            return failure, "reported"
        code = _SIP_OF_CAUSE.get(cause or "")
        if code is None and cause and self.direction == "inbound":
            code = _OTHER_REFUSAL
        return (code, "derived") if code is not None else (None, None)

    def record(self, conversation: str) -> LegRecord:
        """Derive the record from the facts; revision is left out."""
        times = self._times
        created = self.created_at()
        answered_at = times[_ANSWERED_AT] or None
        progress = [at for at in times[_PROGRESS_AT : _MEDIA_AT + 1] if at]
        began = [*progress, answered_at] if answered_at else progress
        ended_at = self.ended_at()
        packets = self.quality()
        code, source = self.final()
        if self.wire_code is not None:
            code, source = self.wire_code, "wire"
        disposition = self.value("variable_sip_hangup_disposition") or ""
        network = self._network[1] if self._network else None
        return LegRecord(
            uuid=self.uuid,
            switch=self.switch,
            core_uuid=self.value("core_uuid"),
            conversation=conversation,
            call_id=self.call_id,
            received_at=self.received_at,
            direction=self.direction,
            other_leg=self.conversation.bridged_with(self.uuid)
            or self.value("other_leg_unique_id")
            or self.value("variable_originating_leg_uuid")
            or self.value("variable_originator")
            or self.conversation.only_other(self.uuid),
            created_at=created,
            progress_at=min(progress, default=None),
            answered_at=answered_at,
            bridged_at=times[_BRIDGED_AT] or None,
            ended_at=ended_at,
            answered=self.answered,
            pdd_ms=_span_ms(created, min(began, default=None)),
            talk_ms=_span_ms(answered_at, ended_at),
            hangup_cause=self.value("hangup_cause"),
            q850=_number(self.value("variable_hangup_cause_q850"), 127),
            released_by="peer"
            if disposition.startswith("recv_")
            else "switch"
            if disposition.startswith("send_")
            else None,
            sip_code=code,
            sip_code_source=source,
            gateway=self.value("variable_sip_gateway_name"),
            profile=self.value("variable_sofia_profile_name"),
            caller=self.value("caller_caller_id_number"),
            destination=self.value("caller_destination_number"),
            network_ip=hep.address_text(network[0]) if network else None,
            network_port=network[1] if network else None,
            codec_read=self.value("channel_read_codec_name") or self.value("variable_read_codec"),
            codec_write=self.value("channel_write_codec_name")
            or self.value("variable_write_codec"),
            packets_in=packets.received,
            packets_out=packets.sent,
            packets_skipped=packets.skipped,
            fs_mos=_mos(self.value("variable_rtp_audio_in_mos")),
            flags=self._flags(packets),
        )

    def _flags(self, packets: Packets) -> tuple[str, ...]:
        flags = set()
        if not self.seen & _CREATED:
            flags.add("created_unseen")
        if not self.ended and self.why:
            flags.add(self.why)
            if self.why == "restarted":
                flags.add("end_unseen")
        # Ticks are counted only where FreeSWITCH itself had the media.
        if self.answered and packets.received == 0 and packets.skipped:
            flags.add("no_packets_in")
        return tuple(sorted(flags))


def _first(
    held: tuple[int, Endpoint] | None, key: int, ip: str | None, port: str | None
) -> tuple[int, Endpoint] | None:
    if not ip or (held is not None and key > held[0]):
        return held
    endpoint = _endpoint(ip, port)
    if endpoint is None:
        return held
    return (key, endpoint) if held is None else min(held, (key, endpoint))


def _span_ms(start: int | None, end: int | None) -> float | None:
    """None for a span that a clock set back made negative."""
    return (end - start) / 1000 if start and end and end >= start else None


# ---------------------------------------------------------------------------------- a conversation


class Conversation:
    """Legs that named each other."""

    __slots__ = ("bridges", "due", "legs", "named", "news", "number", "rests", "revision", "said")

    def __init__(self, number: int) -> None:
        self.number = number
        self.legs: list[Leg] = []
        self.named: tuple[str, ...] = ()
        """UUIDs that its legs named and of which no event was seen."""
        self.bridges: dict[str, tuple[int, str]] | None = None
        """Who was bridged with whom last, and when."""
        self.said: dict[tuple[str, int], int] = {}
        """Name and `received_at` of records that left and stand, and their hashes."""
        self.revision = 0
        self.due = 0.0
        self.news: float | None = None
        """When what has left is looked at again, for late facts came."""
        self.rests: float | None = None
        """It is over, and until when it lingers."""

    def __len__(self) -> int:
        return len(self.legs) + len(self.named)

    def name(self) -> str:
        """The UUID of its earliest leg."""
        return min(leg.rank() for leg in self.legs)[-1]

    def bridged_with(self, uuid: str) -> str | None:
        """The UUID of a leg's last partner."""
        return self.bridges[uuid][1] if self.bridges and uuid in self.bridges else None

    def only_other(self, uuid: str) -> str | None:
        """The other leg of two: one that was called for a leg names it, but not the reverse."""
        others = [leg.uuid for leg in self.legs if leg.uuid != uuid]
        return others[0] if len(others) == 1 else None

    def bridge(self, uuid: str, key: int, partner: str) -> bool:
        """Join one bridge's news; tell whether it is any."""
        held = self.bridges.get(uuid) if self.bridges else None
        if held is not None and held >= (key, partner):
            return False
        self.bridges = self.bridges or {}
        self.bridges[uuid] = (key, partner)
        return held is None or held[1] != partner

    def record(self) -> ConversationRecord:
        """Derive the record from the legs; revision is left out."""
        legs = sorted(self.legs, key=Leg.rank)
        ends = [leg.ended_at() for leg in legs]
        flags = {leg.why for leg in legs if leg.why and not leg.ended}
        if "restarted" in flags:
            flags.add("end_unseen")
        return ConversationRecord(
            conversation=legs[0].uuid,
            switch=legs[0].switch,
            received_at=min(leg.received_at for leg in legs),
            started_at=legs[0].created_at(),
            ended_at=max(filter(None, ends)) if all(ends) else None,
            answered=any(leg.answered for leg in legs),
            legs=tuple(leg.uuid for leg in legs),
            call_ids=tuple(leg.call_id for leg in legs if leg.call_id),
            flags=tuple(sorted(flags)),
        )


# ----------------------------------------------------------------------------------------- a table


def _unknown(call_id: str) -> None:  # noqa: ARG001 -- nobody saw any SIP
    return None


class LegTable:
    """All legs that are live or lingering, of all switches."""

    def __init__(
        self,
        final_code: Callable[[str], int | None] | None = None,
        *,
        max_legs: int = 50_000,
        settle: float = SETTLE,
        linger: float = LINGER,
        longest: float = LONGEST,
    ) -> None:
        """`final_code`: the final SIP code that the wire showed for a Call-ID, or None."""
        self._final_code = final_code or _unknown
        self._max_legs = max_legs
        self._settle = settle
        self._linger = linger
        self._longest = longest
        self._legs: dict[str, Leg] = {}
        self._named: dict[str, Conversation] = {}
        self._conversations: dict[int, Conversation] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._resting: OrderedDict[int, None] = OrderedDict()
        self._resting_legs = 0
        self._live: Counter[str] = Counter()
        self._numbers = 0
        self._records: list[Leaving] = []
        self.mirrored: set[str] = set()
        """Call-IDs of records that wait to be drained of which SIP was seen, if only once."""
        self.refuse_new = False
        """Newcomers are refused and counted in `refused_memory`: somebody governs memory."""
        self.refused_legs = 0
        """Events of legs that there was no room for."""
        self.refused_memory = 0
        self.refused_links = 0
        """Joins that would have made a leg's links, or a conversation, too many."""
        self.refused_uuids = 0
        """Events with a UUID that is longer than any of FreeSWITCH's."""
        self.strays = 0
        """Events of legs that are not known and do not begin one: RTCP, and ends long after."""
        self.evicted = 0
        self.given_up = 0
        """Legs that left without an end: their switch restarted, or did not tell."""
        self.revisions = 0

    def __len__(self) -> int:
        return len(self._legs)

    @property
    def lingering(self) -> int:
        """Legs of conversations that are over, kept for late facts."""
        return self._resting_legs

    def leg_of(self, uuid: str) -> Leg | None:
        """The leg of that UUID, live or lingering."""
        return self._legs.get(uuid)

    def live(self, switch: str) -> int:
        """Legs of a switch that are up as far as their events tell."""
        return self._live.get(switch, 0)

    def receive(self, switch: str, event: esl.Event, now: float, received_at: int) -> None:
        """Join one event; those without a Unique-ID are no leg's."""
        uuid = event.unique_id
        if not uuid:
            return
        leg = self._legs.get(uuid)
        tells = bool(event.caller_channel_created_time) or event.event_name.startswith("CHANNEL_")
        if leg is None:
            leg = self._admit(uuid, switch[:MAX_TEXT], event, now, received_at) if tells else None
            if leg is None:
                self.strays += not tells
                return
        elif not leg.left:
            leg.received_at = min(leg.received_at, received_at)
        leg.last_now = now
        if leg.why is not None and not leg.left and leg.why != "interrupted":  # it lives, after all
            leg.why = None
            leg.due = now + self._longest
        if not tells:
            return
        before = leg.seen
        news = leg.join(event)
        if switch < leg.switch:  # two names for one switch
            self._count(leg, gone=True)
            leg.switch = switch
        self._count(leg)
        if leg.left:
            if news:
                self._look_again(leg.conversation, now)
        elif leg.seen & ~before & _ENDED:
            # Not for each copy of an end: they would put off the record for ever.
            leg.due = now + (self._settle if leg.seen & _OVER else self._linger)
            self._schedule_by(leg.conversation, leg.due)
        self._link(leg, event, now)

    def forget_switch(self, switch: str, core_uuid: str) -> None:
        """End the legs of a switch that are not of the process that runs now: it restarted."""
        for leg in self._legs.values():
            if leg.switch == switch and leg.value("core_uuid") != core_uuid:
                self._doubt(leg, "restarted", leg.last_now)

    def reconcile(self, switch: str, uuids: Collection[str], now: float) -> None:
        """End the legs of a switch that are not among the channels that it listed.

        Those that began within the settle time are spared: FreeSWITCH lists what its database
        has, which is behind. A leg that is heard of again before it leaves goes on.
        """
        listed = frozenset(uuids)
        for leg in self._legs.values():
            if leg.switch != switch or leg.left:
                continue
            if leg.uuid in listed:
                leg.last_now = max(leg.last_now, now)
            elif now - leg.first_now > self._settle:
                self._doubt(leg, "end_unseen", now)

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do; None when nothing is waited for."""
        return self._deadlines[0][0] if self._deadlines else None

    def handle_timer(self, now: float) -> None:
        """Let leave what is due, at most `TURN` conversations; the rest is due at once again."""
        for _ in range(TURN):
            if not self._deadlines or self._deadlines[0][0] > now:
                return
            due, number = heapq.heappop(self._deadlines)
            conversation = self._conversations.get(number)
            if conversation is not None and conversation.due == due:
                self._judge(conversation, now)

    def records(self) -> list[Leaving]:
        """What has left since the last time; drains."""
        drained, self._records = self._records, []
        return drained

    def drain(self, now: float) -> None:
        """Let every record leave, of legs that go on too: those say what is known, `interrupted`."""
        for conversation in list(self._conversations.values()):
            going = [leg for leg in conversation.legs if not leg.left]
            if not going and conversation.news is None:
                continue
            for leg in going:
                leg.why = leg.why or "interrupted"
                self._leave(leg)
            self._say(conversation, now)
            self._plan(conversation)

    def shrink(self, share: float, now: float) -> None:
        """Evict what lingers longest, down to this share of `MAX_LINGERING`, at once."""
        while self._resting_legs > max(share, 0.0) * MAX_LINGERING:
            self._evict(now)

    # ----------------------------------------------------------------------------------- coming

    def _admit(
        self, uuid: str, switch: str, event: esl.Event, now: float, received_at: int
    ) -> Leg | None:
        """A new leg; None, and counted, when there is no room or it is none."""
        if len(uuid) > MAX_TEXT:
            self.refused_uuids += 1
            return None
        hangup = _time(event.caller_channel_hangup_time)
        patience = int((self._settle + self._linger) * 1_000_000)
        if hangup and _time(event.event_date_timestamp) - hangup > patience:
            # The end of a leg that is told already, and forgotten.
            self.strays += 1
            return None
        if self.refuse_new:
            self.refused_memory += 1
            return None
        if len(self._legs) - self._resting_legs >= self._max_legs:
            self.refused_legs += 1
            return None
        conversation = self._named.pop(uuid, None)
        if conversation is None:
            conversation = self._conversation()
        else:
            self._wake(conversation)
            conversation.named = tuple(name for name in conversation.named if name != uuid)
        self._numbers += 1
        leg = Leg(uuid, intern(switch), self._numbers, conversation, now, received_at)
        self._legs[uuid] = leg
        conversation.legs.append(leg)
        leg.due = now + self._longest
        self._look_again(conversation, now)
        self._schedule_by(conversation, leg.due)
        return leg

    def _conversation(self) -> Conversation:
        self._numbers += 1
        conversation = self._conversations[self._numbers] = Conversation(self._numbers)
        conversation.due = float("inf")
        return conversation

    def _count(self, leg: Leg, *, gone: bool = False) -> None:
        up = not (gone or leg.left or leg.seen & _DESTROYED)
        if up != leg.counted:
            leg.counted = up
            self._live[leg.switch] += 1 if up else -1
            if not self._live[leg.switch]:
                del self._live[leg.switch]

    def _doubt(self, leg: Leg, why: str, now: float) -> None:
        if not leg.left and not leg.ended and leg.why is None:
            leg.why = why
            leg.due = now + self._settle
            self._schedule_by(leg.conversation, leg.due)

    # ---------------------------------------------------------------------------------- joining

    def _link(self, leg: Leg, event: esl.Event, now: float) -> None:
        for uuid in (
            event.other_leg_unique_id,
            event.channel_call_uuid,
            event.variable_originating_leg_uuid,
            event.variable_originator,
            event.bridge_a_unique_id,
            event.bridge_b_unique_id,
        ):
            if not uuid or uuid == leg.uuid or uuid in leg.links:
                continue
            if len(uuid) > MAX_TEXT or len(leg.links) >= MAX_LINKS:
                self.refused_links += 1
                continue
            leg.links = (*leg.links, uuid)
            self._join(leg.conversation, uuid, now)
        one, other = event.bridge_a_unique_id, event.bridge_b_unique_id
        if one and other and one != other and leg.uuid in {one, other}:
            key = _order(event)
            conversation = leg.conversation
            partner = other if leg.uuid == one else one
            news = conversation.bridge(leg.uuid, key, partner)
            if partner in leg.links and self._of(partner) is conversation:
                news |= conversation.bridge(partner, key, leg.uuid)
            if news:
                self._look_again(conversation, now)

    def _of(self, uuid: str) -> Conversation | None:
        leg = self._legs.get(uuid)
        return leg.conversation if leg else self._named.get(uuid)

    def _join(self, conversation: Conversation, uuid: str, now: float) -> None:
        other = self._of(uuid)
        if other is conversation:
            return
        if len(conversation) + (1 if other is None else len(other)) > MAX_CONVERSATION:
            self.refused_links += 1
            return
        if other is None:
            conversation.named = (*conversation.named, uuid)
            self._named[uuid] = conversation
            return
        self._wake(conversation)
        self._wake(other)
        del self._conversations[other.number]
        for leg in other.legs:
            leg.conversation = conversation
        for name in other.named:
            self._named[name] = conversation
        conversation.legs += other.legs
        conversation.named += other.named
        for name, (key, partner) in (other.bridges or {}).items():
            conversation.bridge(name, key, partner)
        conversation.said |= other.said
        conversation.revision = max(conversation.revision, other.revision)
        self._schedule_by(conversation, other.due)
        self._look_again(conversation, now)

    def _look_again(self, conversation: Conversation, now: float) -> None:
        """Late facts came: what has left may have to be said anew."""
        if conversation.news is None and any(leg.left for leg in conversation.legs):
            conversation.news = now + self._settle
            self._schedule_by(conversation, conversation.news)

    def _wake(self, conversation: Conversation) -> None:
        """A conversation that was over goes on."""
        if conversation.rests is not None:
            conversation.rests = None
            del self._resting[conversation.number]
            self._resting_legs -= len(conversation.legs)

    # ---------------------------------------------------------------------------------- leaving

    def _schedule(self, conversation: Conversation, due: float) -> None:
        conversation.due = due
        heapq.heappush(self._deadlines, (due, conversation.number))
        if len(self._deadlines) > 2 * len(self._conversations) + SPARE_DEADLINES:
            # A leg that was hung up leaves the deadline it had before, hours ahead.
            self._deadlines = [(each.due, each.number) for each in self._conversations.values()]
            heapq.heapify(self._deadlines)

    def _schedule_by(self, conversation: Conversation, due: float) -> None:
        if due < conversation.due:
            self._schedule(conversation, due)

    def _plan(self, conversation: Conversation) -> None:
        """Set the deadline to the first thing that is waited for."""
        dues = [leg.due for leg in conversation.legs if not leg.left]
        dues += [at for at in (conversation.news, conversation.rests) if at is not None]
        self._schedule(conversation, min(dues))

    def _judge(self, conversation: Conversation, now: float) -> None:
        leaving = False
        for leg in conversation.legs:
            if leg.left or leg.due > now:
                continue
            if not leg.ended and leg.why is None:
                if leg.last_now + self._longest > now:
                    leg.due = leg.last_now + self._longest
                    continue
                leg.why = "end_unseen"
            self._leave(leg)
            leaving = True
        over = conversation.rests is not None and conversation.rests <= now
        late = conversation.news is not None and conversation.news <= now
        # The last look: SIP may have come after the events, and no event tells of that.
        if leaving or late or over:
            self._say(conversation, now)
        if over:
            self._forget(conversation)
        else:
            self._plan(conversation)

    def _leave(self, leg: Leg) -> None:
        leg.left = True
        self._count(leg)
        self.given_up += not leg.ended and leg.why != "interrupted"

    def _say(self, conversation: Conversation, now: float) -> None:
        """Hand out what is new of the legs that left, and of the conversation when all have."""
        conversation.news = None
        name, said = conversation.name(), conversation.said
        for leg in conversation.legs:
            if leg.left:
                self._say_leg(leg, name)
        if not all(leg.left for leg in conversation.legs):
            gone = [key for key in said if key[0] != name]
            self._unjoin(conversation, gone, conversation.revision + 1)
            return
        record = conversation.record()
        key = (name, record.received_at)
        gone = [each for each in said if each != key]
        if said.get(key) != hash(record) or gone:
            if said or conversation.revision:
                conversation.revision += 1
                self.revisions += 1
            self._records.append(msgspec.structs.replace(record, revision=conversation.revision))
            said[key] = hash(record)
        self._unjoin(conversation, gone, conversation.revision)
        if conversation.rests is None:
            conversation.rests = now + self._linger
            self._resting[conversation.number] = None
            self._resting_legs += len(conversation.legs)
            while self._resting_legs > MAX_LINGERING:
                self._evict(now)

    def _say_leg(self, leg: Leg, conversation: str) -> None:
        if leg.call_id and (code := self._final_code(leg.call_id)) is not None:
            leg.wire_code = code
        if leg.mirrored or leg.wire_code is not None:
            self.mirrored.add(leg.call_id)
        record = leg.record(conversation)
        if leg.said is not None:
            if hash(record) == leg.said:
                return
            leg.revision += 1
            self.revisions += 1
        leg.said = hash(record)
        self._records.append(msgspec.structs.replace(record, revision=leg.revision))

    def _unjoin(
        self, conversation: Conversation, gone: list[tuple[str, int]], revision: int
    ) -> None:
        for name, received_at in sorted(gone):
            del conversation.said[name, received_at]
            conversation.revision = revision
            self._records.append(Unjoined(name, received_at, revision))

    def _evict(self, now: float) -> None:
        """Forget the conversation that lingers longest; what late facts changed is said before."""
        conversation = self._conversations[next(iter(self._resting))]
        self.evicted += len(conversation.legs)
        if conversation.news is not None:
            self._say(conversation, now)
        self._forget(conversation)

    def _forget(self, conversation: Conversation) -> None:
        self._wake(conversation)
        for leg in conversation.legs:
            del self._legs[leg.uuid]
        for uuid in conversation.named:
            del self._named[uuid]
        del self._conversations[conversation.number]
