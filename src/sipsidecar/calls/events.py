"""The public words of this room: the records that calls leave behind.

Times are integers, microseconds UTC. Durations are floats in milliseconds, always between two
times of one clock. `None` means that the value cannot be known; it is never 0 or a guess.
"""

from typing import Final, NamedTuple

import msgspec

OTHER: Final = "other"
"""What matched nothing that is configured."""


class Cohort(NamedTuple):
    """Whose a call is, in words of the configuration alone; `other` where nothing matched."""

    tenant: str = OTHER
    trunk: str = OTHER
    direction: str = OTHER
    region: str = OTHER
    node: str = OTHER
    """The proxy or capture agent, by its configured name."""
    carrier: str = OTHER
    """Who is behind the trunk: one carrier may have many trunks."""
    agent: str = OTHER
    """The voice agent, bot or queue that takes or makes the call."""


class Sighted(msgspec.Struct, frozen=True, kw_only=True):
    """What of an INVITE cohorts are told by; all of it was written by strangers."""

    src_ip: str | None = None
    src_port: int | None = None
    dst_ip: str | None = None
    dst_port: int | None = None
    from_user: str | None = None
    from_host: str | None = None
    to_user: str | None = None
    to_host: str | None = None
    ruri_user: str | None = None
    ruri_host: str | None = None
    agent_ids: tuple[int, ...] = ()
    """Capture ids."""
    headers: dict[str, str] = {}
    """First values by name in small letters; only those that a matcher asks for."""
    gateway: str | None = None
    """FreeSWITCH gateway of an outbound leg."""
    switch: str | None = None
    """Configured name of the FreeSWITCH."""


class Move(NamedTuple):
    """A call became live, changed its live state, or is over."""

    call_id: str
    state: str | None
    """trying, ringing or answered; None: it is over."""
    cohort: Cohort


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
    """Who made the final response: callee, caller, proxy, admission or inferred; esl: no SIP was seen,
    a FreeSWITCH told of the call."""
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
    tenant: str | None = None
    """Words of the configuration's cohorts, as are the next three; `other` where nothing matched,
    None where no cohorts are configured."""
    trunk: str | None = None
    """Of the ingress hop; where that is none, of the last attempt that has one."""
    direction: str | None = None
    region: str | None = None
    carrier: str | None = None
    """As `trunk`: of the ingress hop, else of the last attempt that has one; so is `agent`."""
    agent: str | None = None
    """The voice agent, bot or queue of the configuration; no capture agent."""
    mos: float | None = None
    """Of the direction that was heard worse; None when neither was rated."""
    mos_scale: str | None = None
    """nb, wb or fb: MOS of two scales do not compare."""
    mos_direction: str | None = None
    """The direction that `mos` is of."""
    findings: tuple[str, ...] = ()
    """What is wrong with its media, sorted; the words of `calls.findings`."""
    evidence: str | None = None
    """JSON object: for each finding the figures that it stands on."""


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
    tenant: str | None = None
    """Its call's, unless this hop says another, as `direction` and `region`."""
    trunk: str | None = None
    """Of this hop alone, as `carrier` and `agent`; None where no cohorts are configured."""
    direction: str | None = None
    region: str | None = None
    carrier: str | None = None
    agent: str | None = None
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


class MediaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one party of a call sent and the other heard: one per call and direction.

    Loss and jitter are what the hearing side reports (RFC 3550 6.4); the one who heard well may be
    a node in the middle, see `segment`. Where several sources report one direction, the figures are
    those of `source` alone.
    """

    call_id: str
    from_tag: str
    """Empty for media without a call."""
    stream: str
    """Names the row among those of its call: the direction, or `unknown-` and the SSRC in hex."""
    received_at: int
    revision: int = 0
    direction: str
    """caller_to_callee, callee_to_caller or unknown."""
    started_at: int
    """Its first report, by the clock that its call is timed by."""
    ended_at: int
    segment: str | None = None
    """end_to_end: heard by the party itself what the other party sent; to_middle: heard by a node
    between; from_middle: the party itself heard what a node between had made anew."""
    source: str | None = None
    """rtcp, esl, vq, rtp_stat, rtpengine or log: whose figures these are; None when there are none."""
    ssrc: int | None = None
    """The newest one that was heard."""
    ssrcs: int = 0
    sender_ip: str | None = None
    sender_port: int | None = None
    """Of media (RTP), as SDP has it; of RTCP where SDP was not seen."""
    receiver_ip: str | None = None
    receiver_port: int | None = None
    codec: str | None = None
    """Encoding name as negotiated (IANA); the newest one."""
    clock_rate: int | None = None
    ptime_ms: int | None = None
    reports: int = 0
    """Reports that speak of it."""
    packets_sent: int | None = None
    packets_expected: int | None = None
    packets_lost: int | None = None
    loss_percent: float | None = None
    loss_max_percent: float | None = None
    """Of the worst interval between two reports."""
    discard_percent: float | None = None
    burst_ratio: float | None = None
    upstream_loss_percent: float | None = None
    """Loss before the node that made the stream anew (`from_middle`)."""
    jitter_ms: float | None = None
    """Mean of the reports' interarrival jitter."""
    jitter_p95_ms: float | None = None
    jitter_max_ms: float | None = None
    rtt_ms: float | None = None
    """Round trip between the parties: median."""
    rtt_max_ms: float | None = None
    delay_ms: float | None = None
    """Mouth to ear, one way, as it was taken for the MOS."""
    delay_source: str | None = None
    """xr, sr_rr, esl or declared; None when no delay is known: then the MOS is a listening one."""
    media_seconds: float | None = None
    """How much media the reports cover."""
    mos: float | None = None
    """Mean over the intervals, weighted by packets: conversational, or listening without a delay."""
    mos_kind: str | None = None
    """cq or lq."""
    mos_lq: float | None = None
    mos_min: float | None = None
    """Of the worst interval."""
    low_share: float | None = None
    """Share of the intervals whose MOS is under the threshold."""
    r: float | None = None
    """Mean transmission rating factor, on its scale."""
    mos_scale: str | None = None
    """nb, wb or fb."""
    mos_grade: str | None = None
    """A: published codec figures; B: loss robustness borrowed; C: estimated."""
    mos_codec: str | None = None
    """Row of the codec table that was taken."""
    rated: bool = False
    unrated: str | None = None
    """Why there is no MOS: no_reports, short, no_packets or encrypted."""
    peer_mos: float | None = None
    """What a device or media proxy claims; never mixed with ours."""
    peer_mos_source: str | None = None
    """xr, vq, rtp_stat, rtpengine or log."""
    flags: tuple[str, ...] = ()
    """What was remarkable, sorted: assumptions made (clock_assumed, codec_assumed, ptime_assumed),
    ssrc_changed, restarted, implausible."""
    findings: tuple[str, ...] = ()


class QualityInterval(msgspec.Struct, frozen=True, kw_only=True):
    """What one report says of the time since the one before it."""

    call_id: str
    from_tag: str
    direction: str
    reporter_ssrc: int
    source_ssrc: int
    received_at: int
    """First sighting of its call: rows of one call are together, as in `media`."""
    at: int
    """When the report was captured, by the clock that its call is timed by."""
    source: str
    """rtcp or esl."""
    seconds: float | None = None
    """Since the report before; None for the first."""
    packets_expected: int | None = None
    packets_lost: int | None = None
    loss_percent: float | None = None
    jitter_ms: float | None = None
    rtt_ms: float | None = None
    mos: float | None = None
    mos_kind: str | None = None
    mos_scale: str | None = None
    r: float | None = None


class LegRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One channel of a FreeSWITCH: one side of a bridged call, as its events (ESL) tell it."""

    uuid: str
    switch: str
    """Configured name, or FreeSWITCH-Switchname of a transcript."""
    core_uuid: str | None = None
    """Of the process: changes with its restart."""
    conversation: str
    """The UUID of the earliest leg that it was joined with: its own when it is alone."""
    call_id: str = ""
    """SIP Call-ID of this leg; empty while FreeSWITCH has not told it."""
    received_at: int
    revision: int = 0
    direction: str | None = None
    """inbound or outbound, as FreeSWITCH sees it."""
    other_leg: str | None = None
    """UUID of the leg that it was bridged with, or made for."""
    created_at: int
    """Times are FreeSWITCH's, in ticks of 20 ms."""
    progress_at: int | None = None
    """First 180 or 183."""
    answered_at: int | None = None
    bridged_at: int | None = None
    ended_at: int | None = None
    answered: bool = False
    """By Answered-Time alone: causes such as NORMAL_CLEARING prove nothing."""
    pdd_ms: float | None = None
    talk_ms: float | None = None
    hangup_cause: str | None = None
    q850: int | None = None
    released_by: str | None = None
    """peer or switch: who hung up."""
    sip_code: int | None = None
    sip_code_source: str | None = None
    """wire (HEP saw it), reported (FreeSWITCH says so, even where no answer came) or derived (from the
    cause: many codes have one cause)."""
    gateway: str | None = None
    profile: str | None = None
    caller: str | None = None
    destination: str | None = None
    network_ip: str | None = None
    network_port: int | None = None
    codec_read: str | None = None
    codec_write: str | None = None
    packets_in: int | None = None
    packets_out: int | None = None
    packets_skipped: int | None = None
    """Ticks without a packet: about what was lost or late."""
    fs_mos: float | None = None
    """FreeSWITCH's rtp_audio_in_mos, which reads 4.50 for a call without audio: kept, never used."""
    flags: tuple[str, ...] = ()
    """What was remarkable, sorted: created_unseen, end_unseen (switch gone, or it was not told),
    restarted, no_packets_in."""


class ConversationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The legs that FreeSWITCH joined: what people call one call."""

    conversation: str
    switch: str
    received_at: int
    revision: int = 0
    started_at: int
    ended_at: int | None = None
    answered: bool = False
    legs: tuple[str, ...] = ()
    """UUIDs, by creation."""
    call_ids: tuple[str, ...] = ()
    """Of the legs, in their order; those that are known."""
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


class Traits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one INVITE says beyond its record, in classes.

    Of people it tells nothing but whether two headers name the same one; None where that cannot be
    known, as where a caller is hidden.
    """

    max_forwards: int | None = None
    vias: int = 1
    """How many nodes it had passed (RFC 3261 20.42)."""
    passed_twice: bool = False
    """One of them twice: it came round again."""
    asserted_differs: bool | None = None
    """P-Asserted-Identity names another number than From (RFC 3325)."""
    asserted_host: str | None = None
    """Its domain, in small letters; a stranger wrote it."""
    remote_party_differs: bool | None = None
    """Likewise of Remote-Party-ID."""
    diverted: bool = False
    """Diversion (RFC 5806) or History-Info (RFC 7044) is there."""
    identity: str = "missing"
    """A, B or C: the attestation that its PASSporT claims (RFC 8588), which nobody verified;
    unreadable: there is an Identity that tells none, or users are masked; missing."""
    origin_differs: bool | None = None
    """That claims another number (orig tn) than From."""
    identity_age_seconds: int | None = None
    """From its iat to when it was seen; negative: of the future."""
    secure_asked: bool = False
    """The Request-URI or Contact is SIPS or says transport=tls."""
    media: str | None = None
    """Protocol of the first audio line, such as RTP/SAVP; `other` when it is not known by name."""
    session: int | None = None
    """Stands for its Session-ID (RFC 7989), icid-value (RFC 7315) or X-CID: equal within one life of
    the process for INVITEs of one session."""


class Setup(msgspec.Struct, frozen=True):
    """What became of a call's setup, said once: when it was answered or refused and has settled."""

    call: CallRecord
    """Without media; of an answered call not ended yet."""
    attempts: tuple[AttemptRecord, ...]
    traits: tuple[tuple[str, Traits], ...] = ()
    """What its INVITEs said, by branch of the attempt, of the ingress hop by an empty one; only of
    those that were seen, and only while somebody asks."""


Record = (
    CallRecord
    | AttemptRecord
    | MediaRecord
    | QualityInterval
    | LegRecord
    | ConversationRecord
    | RegistrationRecord
    | PingRecord
)
