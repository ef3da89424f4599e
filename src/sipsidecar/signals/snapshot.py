"""Every figure of the hot paths as plain numbers, gathered when somebody looks."""

from bisect import bisect_left
from collections.abc import Iterator

import msgspec

from sipsidecar.signals.decisions import AskState, PushState

DELAY_BOUNDS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 32.0, 60.0)
"""Seconds. Callers notice from 2 s on; 32 s is RFC 3261's Timer B."""

DECISION_BOUNDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.1)
"""Seconds."""
WRITE_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

MOS_BOUNDS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 3.6, 3.8, 4.0, 4.1, 4.2, 4.3, 4.4, 4.5)
"""Fine where calls are: from 4.3 on all are very satisfied, under 3.6 many are not (G.109)."""
LOSS_BOUNDS = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all packets; 1 % is what speech recognition begins to suffer from."""
JITTER_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
"""Seconds."""

UNRATED = ("no_reports", "short", "no_packets", "encrypted")
"""Why a stream of media has no MOS."""
REPORTS = (
    "sr", "rr", "xr", "vq", "rtp_stat", "rtpengine", "log",
    "encrypted", "flawed", "implausible", "unjoined", "left_out", "refused",
)  # fmt: skip
"""What messages about media were, or what became of them."""
GATEWAY_STATES = ("up", "down", "unknown")
TRUNK_STATES = ("unknown", "active", "trying", "inactive", "disabled")
"""States of a far end, as Kamailio's dispatcher calls them."""
SWITCH_CAPS = ("legs", "gateways", "registrations")
"""What is bounded of one FreeSWITCH."""

# RFC 3261 and IANA's registry; a code outside it is a stranger's invention and reads `other`.
KNOWN_CODES = frozenset(
    {200, 202, 204, 300, 301, 302, 305, 380}
    | {400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417}
    | {420, 421, 422, 423, 424, 425, 428, 429, 430, 433, 436, 437, 438, 439, 440, 469, 470}
    | {480, 481, 482, 483, 484, 485, 486, 487, 488, 489, 491, 493, 494}
    | {500, 501, 502, 503, 504, 505, 513, 555, 580, 600, 603, 604, 606, 607, 608}
)


def code_label(code: int | None) -> str:
    """A final code as a metric label."""
    if code is None:
        return "unknown"
    return str(code) if code in KNOWN_CODES else "other"


class Histogram:
    """Counts per bucket and their sum; cheaper than a metrics library's on the hot path."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One value, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class AgentFigures(msgspec.Struct, frozen=True):
    """What is known of one capture agent."""

    agent_id: int | None
    address: str
    node_name: str | None
    packets: int
    last_seen_seconds: float
    """Age of its last packet."""
    clock_skew_seconds: float | None
    """Positive: its clock is ahead of ours. None when its packets carry no time."""
    local_address: str | None
    """The capture node's own address, as far as it was learned."""


class Snapshot(msgspec.Struct, frozen=True):
    """What the pipeline can say of itself at one moment."""

    received: int
    """HEP packets handed in."""
    received_bytes: int
    received_by_kind: dict[str, int]
    refused: dict[str, int]
    """Packets that hold nothing to keep, by reason."""
    held: int
    """Packets that wait in stream reassembly for the rest of their message."""
    stored_out: int
    """Packets handed on for storage as messages."""
    quarantined_out: int
    """Packets handed on for quarantine."""
    oddities: dict[str, int]
    """Packets that were kept although something about them was wrong, by what."""
    live: dict[str, int]
    calls_tracked: int
    calls_lingering: int
    transactions_open: int
    limits: dict[str, int]
    """What the caps refused, by cap."""
    orphans: int
    revisions: int
    finals: dict[tuple[str, str, str], int]
    """Calls that ended, by class, code and origin."""
    attempt_finals: dict[tuple[str, str], int]
    registrations: dict[str, int]
    pings: dict[str, int]
    pdd: Histogram
    setup: Histogram
    agents: tuple[AgentFigures, ...]
    mos: dict[tuple[str, str], Histogram] = {}
    """By scale and direction; one value per record of media, as in `loss` and `jitter`."""
    loss: dict[str, Histogram] = {}
    """By direction: share of the packets."""
    jitter: dict[str, Histogram] = {}
    """By direction, in seconds."""
    findings: dict[str, int] = {}
    """Calls with each finding."""
    reports: dict[str, int] = {}
    """Messages about media, by the words of `REPORTS`."""
    unrated: dict[str, int] = {}
    """Records of media without a MOS, by why; the words of `UNRATED`."""
    legs_unended: int = 0
    """Legs of FreeSWITCH that were given up: their end was not heard."""
    cohort_finals: dict[tuple[str, str, str, str, str], int] = {}
    """Calls that ended, by tenant, trunk, direction, region, and class; class `admission` for those
    that this product refused. Empty where no cohorts are configured."""


class SpoolFigures(msgspec.Struct, frozen=True):
    """What waits on disk for the database."""

    batches: int
    bytes: int
    limit_bytes: int
    oldest_seconds: float | None
    """Age of the oldest batch; None while there is none."""
    rows: dict[str, int]
    """Rows on disk, by table."""
    packets: int
    """Packets that they account for."""
    inherited: int
    """Packets of an earlier life that were on disk at the start."""
    rows_spooled: dict[str, int]
    """Rows that ever went to disk in this life."""
    rows_replayed: dict[str, int]
    """Rows that went from disk to the database in this life."""


NO_SPOOL = SpoolFigures(0, 0, 0, None, {}, 0, 0, {}, {})


class StorageFigures(msgspec.Struct, frozen=True):
    """What waits for the database, what is in it, and what was lost on the way."""

    up: bool
    """The last write worked, or none was tried since the connection was made."""
    rows_stored: dict[str, int]
    rows_waiting: dict[str, int]
    rows_dropped: dict[tuple[str, str], int]
    """By table and reason."""
    packets_stored: int
    packets_quarantined: int
    packets_waiting: int
    packets_dropped: dict[str, int]
    queue_bytes: int
    queue_limit_bytes: int
    write_seconds: Histogram
    write_failures: dict[str, int]
    server_restarts: int
    """Of the embedded PostgreSQL."""
    spool: SpoolFigures = NO_SPOOL
    rows_refused: dict[str, int] = {}
    """Rows that PostgreSQL refused, by table: they are in quarantine."""
    default_rows: dict[str, int] = {}
    """Rows in DEFAULT partitions after the last maintenance, by table."""
    size_bytes: int | None = None
    """Of all tables, at the last maintenance; None before it."""


class CaptureFigures(msgspec.Struct, frozen=True):
    """What the sockets say."""

    kernel_drops: int
    buffer_bytes: int
    buffer_used_bytes: int
    tcp_connections: int
    tcp_events: dict[str, int]
    errors: int = 0
    """Packets whose handling broke: a bug."""


class MemoryFigures(msgspec.Struct, frozen=True):
    """How near the process is to its memory ceiling."""

    used_bytes: int
    ceiling_bytes: int
    share: float
    """Of each cap that may be used now; 1 without pressure."""


class SwitchFigures(msgspec.Struct, frozen=True):
    """What one FreeSWITCH said of itself, and how the connection to it is; unknown is None."""

    name: str
    """As it is configured."""
    configured: bool = True
    """False for `other`, all switches that are not: whether they are connected nobody knows."""
    heartbeat_age_seconds: float | None = None
    sessions: int | None = None
    """Legs at the last HEARTBEAT; a bridged call has two."""
    max_sessions: int | None = None
    sessions_per_second: int | None = None
    """New ones in the second before the last HEARTBEAT."""
    sessions_per_second_limit: int | None = None
    """The largest budget that the last HEARTBEATs left: the limit, unless all seconds were busy."""
    idle_cpu: float | None = None
    """Share from 0 to 1."""
    uptime_seconds: float | None = None
    """At the last HEARTBEAT."""
    peak: int | None = None
    """Most sessions since its start."""
    since_startup: int | None = None
    """Sessions since its start."""
    live_legs: int | None = None
    """`sessions` and what began and ended since."""
    drift: int = 0
    """Legs by which HEARTBEATs corrected the live count, in all."""
    restarts: int = 0
    gateways: dict[str, int] = {}
    """By state; the words of `GATEWAY_STATES`. Only those whose state changed are known."""
    registrations: int = 0
    """Users whose registration was seen and is not over."""
    registrations_approximate: bool = False
    """There are more than can be known."""
    limits: dict[str, int] = {}
    """What the caps refused, by cap; the words of `SWITCH_CAPS`."""
    connected_seconds: float | None = None
    """Time since the connection was made and let in; None while there is none."""
    watchdog_seconds: float = 45.0
    """Silence after which a switch is taken for stuck."""
    events: int = 0
    refused: int = 0
    """Frames that were no event or reply."""
    reconnects: int = 0
    """Connections after the first."""
    connection: dict[str, int] = {}
    """What happened on the connection, by what: ends, pauses, commands and events that were lost."""
    lag_seconds: float | None = None
    """Least age of an event at its arrival, lately: delay and what both clocks are wrong by."""

    @property
    def legs(self) -> int | None:
        """The newest count there is."""
        return self.sessions if self.live_legs is None else self.live_legs

    @property
    def full_at(self) -> int | None:
        """Legs from which on it is nearly full: nine tenths of what it takes."""
        return (9 * self.max_sessions + 9) // 10 if self.max_sessions else None

    @property
    def trouble(self) -> str | None:
        """`away`, `silent` (connected, without a HEARTBEAT in time), `full` or None."""
        if self.connected_seconds is None:
            return "away"
        # The first HEARTBEAT of a new connection is not due at once.
        silence = self.connected_seconds
        if self.heartbeat_age_seconds is not None:
            silence = min(silence, self.heartbeat_age_seconds)
        if silence >= self.watchdog_seconds:
            return "silent"
        if self.legs is None or self.full_at is None or self.legs < self.full_at:
            return None
        return "full"


class AdmissionFigures(msgspec.Struct, frozen=True):
    """What admission decided, who holds capacity, and how each rule stands; all names configured."""

    decisions: dict[tuple[str, str, str], int]
    """By rule (empty: none objected), verdict (admit, refuse, overflow, shadow) and way."""
    seconds: Histogram
    """Time that a question took."""
    exempted: dict[str, int]
    """Requests that are never refused, by why."""
    repeated: int
    too_late: int
    """Refused calls that went on all the same: the answer came too late."""
    leases: int
    leases_pending: int
    leases_ended: dict[str, int]
    """By why."""
    leases_refused: int
    active: dict[tuple[str, str], int]
    """Calls that hold capacity, by scope and value."""
    states: dict[tuple[str, str], str]
    """By rule and value of its scope."""
    notified: dict[tuple[str, str], bool]
    """By rule and value, where there is a notify mark: whether it was reached."""
    drained: tuple[tuple[str, str], ...]
    """Scopes and values that an operator drained."""
    rows_lost: int
    trunks: dict[str, tuple[str, str]]
    """By trunk: its state, and `fail-open` or `fail-closed` while no sidecar speaks."""
    pushes: tuple[PushState, ...] = ()
    asks: tuple[AskState, ...] = ()
    checks: dict[str, bool | None] = {}
    """Downstream checks: whether what is behind answers as it should."""
    faults: int = 0
    """Bugs in admission itself, each of which cost a turn or made a part begin again."""


class KpiScope(msgspec.Struct, frozen=True, kw_only=True):
    """What all calls, or those of one value of one dimension, did.

    A trunk's and a carrier's are figures of attempts.
    """

    scope: str
    """A dimension of cohorts, `global`, or `registrations`."""
    value: str
    """Configured; empty of those two."""
    counts: dict[str, int] = {}
    """In the last minutes, by the names of `KpiMinute`'s fields."""
    ratios: dict[str, float] = {}
    """Shares from 0 to 1 in the last minutes, by name; what nobody knows is not there. So are the rest."""
    seconds: dict[tuple[str, str], float] = {}
    """Delays by name and quantile."""
    acd_seconds: float | None = None
    mos: dict[str, float] = {}
    """Mean by scale."""
    codes: dict[tuple[int, str], int] = {}
    """Setups since the start, by final code (0: unknown) and who made it; admission: this product."""
    completed: int = 0
    """Calls since the start that ended with a BYE."""


class KpiFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of calls in the last minutes, by whose they are."""

    window_seconds: float
    """What they cover, and what is gone of the minute that is open."""
    scopes: tuple[KpiScope, ...]
    limits: dict[str, int] = {}
    """What the caps cost, by cap: cohorts (counted as `other` in all dimensions), minutes (counted in
    another one), calls (ended at another trunk than they were set up at), challenges (not paired)."""
    left_out: int = 0
    """Configured values over the cap of those that are shown."""


class TrunkFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one far end that is looked after; unknown is None."""

    name: str
    """As it is configured; so is `trunk`."""
    trunk: str
    state: str
    """The words of `TRUNK_STATES`."""
    rtt_ms: float | None = None
    own: bool = True
    """By OPTIONS of our own; else by those of others."""
    since_seconds: float | None = None
    """Age of the state."""
    certificate_days: float | None = None
    """Until its TLS certificate ends; negative: it has."""
    failures: int = 0
    """OPTIONS without a good answer."""


class WatchFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked after besides capture: figures of calls, trunks, incidents and who is told."""

    kpi: KpiFigures | None = None
    trunks: tuple[TrunkFigures, ...] = ()
    incidents: dict[tuple[str, str], int] = {}
    """Open ones by category and severity."""
    receivers: dict[tuple[str, str], int] = {}
    """Alerts by configured receiver and what became of them: sent, failed, dropped."""
    events: dict[str, int] = {}
    """Of the timeline, by kind."""
    faults: int = 0
    """Bugs in watching itself, each of which cost a turn or made a part begin again."""
    folded: int = 0
    """Series of detectors over their cap."""


class Figures(msgspec.Struct, frozen=True):
    """Everything that is shown of one running sidecar."""

    version: str
    pipeline: Snapshot
    storage: StorageFigures
    capture: CaptureFigures
    loop_lag_seconds: float
    """The longest the loop was late in the last seconds."""
    uptime_seconds: float
    agent_names: dict[int, str]
    """Capture id to the name that the configuration gives it; only these may label a metric."""
    warming: bool = False
    """The sidecar started a short while ago: calls may lack their beginning."""
    rebuilding: bool = False
    """Calls that an earlier life left open are not all followed again yet."""
    memory: MemoryFigures | None = None
    http_events: dict[str, int] = {}
    switches: tuple[SwitchFigures, ...] = ()
    admission: AdmissionFigures | None = None
    """None where admission is not configured."""
    watch: WatchFigures | None = None
    """None while nothing is watched."""

    def ledger(self) -> dict[str, int]:
        """Where every packet went, received or found in the spool; `balance` is 0 when none misses."""
        pipeline, storage = self.pipeline, self.storage
        came = {"received": pipeline.received, "inherited": storage.spool.inherited}
        went = {
            "stored": storage.packets_stored,
            "waiting": storage.packets_waiting + pipeline.held,
            "spooled": storage.spool.packets,
            "quarantined": storage.packets_quarantined,
            "refused": sum(pipeline.refused.values()),
            "dropped": sum(storage.packets_dropped.values()),
        }
        balance = sum(came.values()) - sum(went.values())
        return {**came, **went, "balance": balance, "kernel_drops": self.capture.kernel_drops}


class Check(msgspec.Struct, frozen=True):
    """One reading of health."""

    name: str
    ok: bool
    reading: float | int | str | None
    limit: float | int | str | None = None
    advice: str | None = None
    required: bool = True
    """Without it this sidecar does not do its work; else it is a warning."""
    policy: str | None = None
    """Of a trunk: fail-open or fail-closed, what happens to its calls while no sidecar speaks."""


def health(figures: Figures) -> tuple[Check, ...]:
    """Whether this sidecar does its work now; the readiness page shows these, nothing else judges."""
    storage, capture, spool = figures.storage, figures.capture, figures.storage.spool
    fill = storage.queue_bytes / storage.queue_limit_bytes
    socket_fill = capture.buffer_used_bytes / capture.buffer_bytes if capture.buffer_bytes else 0.0
    spool_fill = spool.bytes / spool.limit_bytes if spool.limit_bytes else 0.0
    memory = figures.memory
    memory_fill = memory.used_bytes / memory.ceiling_bytes if memory else 0.0
    strays = sum(storage.default_rows.values())
    ledger = figures.ledger()
    # While rows go to disk the sidecar does its work; only without a spool it is about to lose them.
    where = "on disk" if spool.limit_bytes else "in memory"
    away = f"rows wait {where}; look at the log for the database's words"
    return (
        Check(
            "database",
            storage.up,
            "up" if storage.up else "away",
            None,
            None if storage.up else away,
            required=not spool.limit_bytes,
        ),
        Check("queue", fill < 0.9, round(fill, 4), 0.9),
        Check(
            "spool",
            spool_fill < 0.9,
            round(spool_fill, 4),
            0.9,
            None
            if spool_fill < 0.9
            else "soon the oldest raw messages go: bring the database back",
        ),
        Check("receive_buffer", socket_fill < 0.9, round(socket_fill, 4), 0.9),
        Check(
            "loop_lag_seconds",
            figures.loop_lag_seconds < 1.0,
            round(figures.loop_lag_seconds, 4),
            1.0,
        ),
        Check(
            "memory",
            memory_fill < 1.0,
            round(memory_fill, 4),
            1.0,
            None if memory_fill < 1.0 else "raise limits.memory_bytes or lower calls.max_calls",
            required=False,
        ),
        Check(
            "default_partition_rows",
            not strays,
            strays,
            0,
            None if not strays else "rows are in no day's partition; they are moved within minutes",
            required=False,
        ),
        Check("ledger_balance", ledger["balance"] == 0, ledger["balance"], 0),
        Check("rebuilding", not figures.rebuilding, int(figures.rebuilding), 0, required=False),
        Check("warming", not figures.warming, int(figures.warming), 0, required=False),
        *(_switch(one) for one in figures.switches if one.configured),
        *(_admission(figures.admission) if figures.admission is not None else ()),
    )


def _admission(admission: AdmissionFigures) -> Iterator[Check]:
    """How each trunk is admitted, and whether the switches are told; a refusal is no failure."""
    for trunk, (state, policy) in admission.trunks.items():
        yield Check(f"admission_{trunk}", True, state, required=False, policy=policy)
    switches: tuple[PushState | AskState, ...] = (*admission.pushes, *admission.asks)
    for one in switches:
        yield Check(
            f"{one.kind}_{one.name}",
            one.up,
            "up" if one.up else "away",
            advice=None if one.up else one.error or "it was not met yet",
            required=False,
        )
    for name, well in admission.checks.items():
        reading = "unknown" if well is None else "well" if well else "failing"
        yield Check(f"check_{name}", well is not False, reading, required=False)


_ADVICE = {
    "away": "there is no connection to its event socket: the log says why",
    "silent": "no HEARTBEAT comes: may its ESL user have that event? is the switch stuck?",
    "full": "from max-sessions on it refuses calls with 503: raise it or spread the calls",
}


def _switch(one: SwitchFigures) -> Check:
    """Whether one FreeSWITCH is met and has room; without it the sidecar still does its work."""
    trouble, reading, limit = one.trouble, one.legs, one.full_at
    counted = trouble in {None, "full"} and reading is not None and limit is not None
    return Check(
        f"freeswitch_{one.name}",
        trouble is None,
        reading if counted else trouble or "up",
        limit if counted else None,
        None if trouble is None else _ADVICE[trouble],
        required=False,
    )
