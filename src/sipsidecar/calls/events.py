"""The public words of this room: the records that calls leave behind.

Times are integers, microseconds UTC. Durations are floats in milliseconds, always between two
times of one clock. `None` means that the value cannot be known; it is never 0 or a guess.
"""

import msgspec


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call as its caller met it: the ingress hop, from the first INVITE to its end.

    A call is one (Call-ID, From tag); definitions are RFC 6076's unless a field says otherwise.
    """

    call_id: str
    from_tag: str
    received_at: int
    """This sidecar's own clock at the first sighting; the partition key."""
    revision: int = 0
    """0 for the first record, +1 each time that late facts changed it."""
    started_at: int
    """First INVITE by the agent's clock, or `received_at` when that clock is implausible."""
    ended: bool = False
    ended_at: int | None = None
    end_source: str | None = None
    """What ended it: bye, final, cancel, timer, dialog-gone (481 or 408 to a refresh); None while unknown (the BYE was never seen)."""
    agent_ids: tuple[int, ...] = ()
    """Capture ids that saw the call."""
    time_source: str = "agent"
    """Whose clock the durations come from: agent, or receiver (HEPv1 carries no time)."""
    dated_by: str = "agent"
    """Whose clock `started_at` and `ended_at` are by: agent, or receiver when the agent's is
    implausible (more than a day off)."""
    clock_agent_id: int | None = None
    """The capture id of that agent; None for the receiver's clock."""
    from_user: str | None = None
    from_host: str | None = None
    to_user: str | None = None
    to_host: str | None = None
    ruri_user: str | None = None
    ruri_host: str | None = None
    user_agent: str | None = None
    src_ip: str | None = None
    src_port: int | None = None
    dst_ip: str | None = None
    dst_port: int | None = None
    transport: str | None = None
    """udp, tcp, tls, ws, wss or sctp."""
    final_code: int | None = None
    final_phrase: str | None = None
    final_class: str | None = None
    """2xx, 3xx, 4xx, 5xx or 6xx."""
    final_origin: str | None = None
    """Who made the final response: callee, caller, proxy, admission or inferred."""
    answered: bool = False
    inferred: bool = False
    pdd_ms: float | None = None
    """First INVITE to the first 180, 181, 182, 183 or 2xx; a challenge or redirect does not reset it."""
    srd_ms: float | None = None
    """RFC 6076 session request delay: as `pdd_ms`, and for a failed call up to its final response."""
    ring_ms: float | None = None
    """First INVITE to the first 180."""
    early_media_ms: float | None = None
    """First INVITE to the first 183 with SDP."""
    setup_ms: float | None = None
    """First INVITE to the first 2xx."""
    talk_ms: float | None = None
    """First 2xx to the first BYE."""
    fail_ms: float | None = None
    """First INVITE to the final response of a call that was not answered."""
    released_by: str | None = None
    """caller or callee: who sent the BYE, or caller for a CANCEL."""
    q850: int | None = None
    reason: str | None = None
    """The Reason headers (RFC 3326) of what ended the call, as they stood."""
    invites: int = 0
    """INVITE transactions on the caller's side: a challenge and its retry are 2."""
    retransmissions: int = 0
    """Copies of messages that were sent again on the caller's side; capture duplicates do not count."""
    attempts: int = 0
    """How many attempt records belong to this call."""
    codec_offered: str | None = None
    """Comma-joined encoding names of the offer's audio formats, in order of preference."""
    codec_negotiated: str | None = None
    flags: tuple[str, ...] = ()
    """What was remarkable, sorted. `interrupted`: the sidecar ended before the call; `rebuilt`: it
    knows the call, or its beginning, from what an earlier life stored; `warming`: it had just begun
    and may have missed the INVITE. An attempt's too."""
    seizure: bool = False
    trunk: str | None = None
    """None until cohorts exist."""
    mos: float | None = None
    """None until media is rated."""


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One egress INVITE branch of a call, towards a trunk or a callee."""

    call_id: str
    from_tag: str
    branch: str
    received_at: int
    revision: int = 0
    started_at: int
    dated_by: str = "agent"
    """Whose clock `started_at` is by: agent, or receiver when the agent's is implausible."""
    agent_ids: tuple[int, ...] = ()
    failover_order: int = 1
    """1 for the first branch that was tried, 2 for the next."""
    src_ip: str | None = None
    src_port: int | None = None
    peer_ip: str | None = None
    peer_port: int | None = None
    transport: str | None = None
    ruri_user: str | None = None
    ruri_host: str | None = None
    trunk: str | None = None
    """None until cohorts exist."""
    final_code: int | None = None
    final_phrase: str | None = None
    final_class: str | None = None
    answered: bool = False
    inferred: bool = False
    pdd_ms: float | None = None
    ring_ms: float | None = None
    early_media_ms: float | None = None
    setup_ms: float | None = None
    fail_ms: float | None = None
    q850: int | None = None
    reason: str | None = None
    retransmissions: int = 0
    codec_offered: str | None = None
    codec_negotiated: str | None = None
    flags: tuple[str, ...] = ()


class RegistrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One REGISTER transaction at one hop."""

    call_id: str
    branch: str
    cseq: int
    received_at: int
    started_at: int
    dated_by: str = "agent"
    """Whose clock `started_at` is by: agent, or receiver when the agent's is implausible."""
    agent_ids: tuple[int, ...] = ()
    aor_user: str | None = None
    aor_host: str | None = None
    src_ip: str | None = None
    src_port: int | None = None
    peer_ip: str | None = None
    """Where the REGISTER was sent."""
    peer_port: int | None = None
    transport: str | None = None
    user_agent: str | None = None
    expires: int | None = None
    """Seconds asked for; 0 takes the binding away."""
    authorized: bool = False
    """The request carried credentials."""
    final_code: int | None = None
    final_phrase: str | None = None
    rtt_ms: float | None = None
    requests: int = 0
    """Copies of the request on the wire: 1 and its retransmissions."""
    flags: tuple[str, ...] = ()


class PingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One OPTIONS transaction outside a dialog, at one hop."""

    call_id: str
    branch: str
    cseq: int
    received_at: int
    started_at: int
    dated_by: str = "agent"
    """Whose clock `started_at` is by: agent, or receiver when the agent's is implausible."""
    agent_ids: tuple[int, ...] = ()
    src_ip: str | None = None
    src_port: int | None = None
    peer_ip: str | None = None
    """Where the OPTIONS was sent."""
    peer_port: int | None = None
    transport: str | None = None
    user_agent: str | None = None
    final_code: int | None = None
    """None when no answer was seen."""
    final_phrase: str | None = None
    rtt_ms: float | None = None
    requests: int = 0
    flags: tuple[str, ...] = ()


Record = CallRecord | AttemptRecord | RegistrationRecord | PingRecord
