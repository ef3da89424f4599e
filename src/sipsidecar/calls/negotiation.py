"""SDP of a call's dialog to what its parties agreed on, leg by leg, offer by offer (RFC 3264)."""

import msgspec

from sipsidecar.wire import sdp


class MediaSide(msgspec.Struct, frozen=True, gc=False):
    """One end of one leg's audio, as its SDP says."""

    ip: bytes
    """Packed; empty when the c-line has a host name or nothing."""
    host: str | None
    """The c-line's address as it stands."""
    port: int
    rtcp_ip: bytes
    rtcp_port: int
    """By a=rtcp, a=rtcp-mux, else port + 1."""
    codecs: tuple[str, ...]
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
    """When the answer was seen, microseconds by the dialog's first clock."""
    via: str
    """invite, ack, prack, reinvite or update: the transaction that carried the offer, or ack when the
    offer was in the 2xx."""
    offered_by: str
    """caller or callee."""
    caller: MediaSide
    callee: MediaSide
    """The ends of this leg: the one towards the caller, the one towards the callee."""
    codec: sdp.Codec | None
    ptime_ms: int | None
    flow: str
    """both, caller_to_callee, callee_to_caller or none: which way media may flow."""
    early: bool
    """The answer stood in a provisional response; a 2xx of the same answer makes it False."""


class Negotiation(msgspec.Struct, frozen=True, gc=False):
    """All agreements of a dialog, by time, and what is missing of it."""

    ingress: tuple[Agreement, ...] = ()
    egress: tuple[Agreement, ...] = ()
    """Of the branch that was answered; of the last one when none was."""
    late_offer: bool = False
    """The INVITE had no SDP: the offer was in the 2xx."""
    unanswered_offer: bool = False
    """An offer was accepted by a 2xx without any answer seen."""
    illegal_answers: tuple[str, ...] = ()
    """Answers that RFC 3264 6.1 does not allow, such as `sendonly answered by sendonly`."""
    refused_media: bool = False
    """The answer rejected the audio line (port 0)."""
