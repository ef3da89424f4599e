"""Figures to Prometheus text and OpenMetrics; the only importer of prometheus_client."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sipsidecar.batch import LOSSES
from sipsidecar.calls.findings import KINDS
from sipsidecar.pipeline import REFUSED_KINDS
from sipsidecar.signals.decisions import STATES
from sipsidecar.signals.snapshot import (
    GATEWAY_STATES,
    REPORTS,
    SWITCH_CAPS,
    TRUNK_STATES,
    UNRATED,
    AdmissionFigures,
    AgentFigures,
    Figures,
    Histogram,
    KpiFigures,
    KpiScope,
    Snapshot,
    SwitchFigures,
    TrunkFigures,
    WatchFigures,
    code_label,
)
from sipsidecar.wire import hep

OTHER = "other"
# An alert on a counter's growth does not see the first step of one that begins with it.
_NO_REFUSALS = dict.fromkeys((*hep.WHYS, *REFUSED_KINDS.values()), 0)
_NO_DROPS = dict.fromkeys(LOSSES, 0)
_NO_FINDINGS = dict.fromkeys(KINDS, 0)
_NO_REPORTS = dict.fromkeys(REPORTS, 0)
_NONE_UNRATED = dict.fromkeys(UNRATED, 0)
_NO_GATEWAYS = dict.fromkeys(GATEWAY_STATES, 0)
_NO_CAPS = dict.fromkeys(SWITCH_CAPS, 0)


class FiguresCollector(Collector):
    """Metric families out of one reading of the figures."""

    def __init__(self, read: Callable[[], Figures], *, heplify_names: bool = False) -> None:
        self._read = read
        self._heplify_names = heplify_names

    def describe(self) -> list[Metric]:
        """Nothing: names are known without reading."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        figures = self._read()
        pipeline, storage, capture = figures.pipeline, figures.storage, figures.capture
        spool, memory = storage.spool, figures.memory
        ledger = figures.ledger()

        yield InfoMetricFamily(
            "sipsidecar_build", "This sidecar's version", value={"version": figures.version}
        )
        yield _gauge("uptime_seconds", "Time since start", figures.uptime_seconds)

        yield _counter("packets_received", "HEP packets received", pipeline.received)
        yield _counter("received_bytes", "Bytes of HEP received", pipeline.received_bytes)
        yield _labelled(
            "packets_kind",
            "HEP packets by what their payload is",
            "kind",
            pipeline.received_by_kind,
        )
        yield _labelled(
            "packets_refused",
            "HEP packets with nothing to keep",
            "reason",
            _NO_REFUSALS | pipeline.refused,
        )
        yield _counter(
            "packets_stored", "HEP packets whose message is in the database", ledger["stored"]
        )
        yield _counter(
            "packets_quarantined",
            "HEP packets whose payload was not understood and is in quarantine",
            ledger["quarantined"],
        )
        yield _gauge(
            "packets_waiting", "HEP packets on their way to the database", ledger["waiting"]
        )
        yield _labelled(
            "packets_dropped",
            "HEP packets lost by this sidecar",
            "reason",
            _NO_DROPS | storage.packets_dropped,
        )
        yield _gauge(
            "packets_spooled", "HEP packets that wait on disk for the database", ledger["spooled"]
        )
        yield _counter(
            "packets_inherited",
            "HEP packets of earlier lives that were on disk at the start",
            ledger["inherited"],
        )
        yield _gauge(
            "ledger_balance",
            "Received and inherited minus everywhere they can be; anything but 0 is a bug",
            ledger["balance"],
        )
        yield _labelled(
            "packets_odd",
            "HEP packets kept although something was wrong",
            "what",
            pipeline.oddities,
        )
        yield _counter(
            "kernel_drops", "Datagrams the kernel dropped at the HEP socket", capture.kernel_drops
        )
        yield _gauge(
            "receive_buffer_bytes",
            "Receive buffer the kernel gave the HEP socket",
            capture.buffer_bytes,
        )
        yield _gauge(
            "receive_buffer_used_bytes",
            "Bytes that wait in the HEP socket",
            capture.buffer_used_bytes,
        )
        yield _gauge("tcp_connections", "Open HEP connections", capture.tcp_connections)
        yield _labelled(
            "tcp_events", "What happened to HEP connections", "event", capture.tcp_events
        )
        yield _counter("capture_errors", "Packets whose handling broke", capture.errors)
        yield _labelled(
            "http_events", "What happened to HTTP requests", "event", figures.http_events
        )
        yield _gauge(
            "warming", "1 shortly after a start: calls may lack their beginning", figures.warming
        )
        yield _gauge(
            "rebuilding",
            "1 while calls that an earlier life left open are taken up",
            figures.rebuilding,
        )
        if memory is not None:
            yield _gauge("memory_used_bytes", "Resident memory", memory.used_bytes)
            yield _gauge("memory_ceiling_bytes", "limits.memory_bytes", memory.ceiling_bytes)
            yield _gauge(
                "memory_share", "Share of each cap in force; 1 without pressure", memory.share
            )

        for name, text, values in (
            ("rows_stored", "Rows in the database", storage.rows_stored),
            ("rows_refused", "Rows that PostgreSQL refused, in quarantine", storage.rows_refused),
            ("rows_spooled", "Rows that went to disk first", spool.rows_spooled),
            ("rows_replayed", "Rows that came from disk to the database", spool.rows_replayed),
        ):
            yield _labelled(name, text, "table", values)
        for name, text, values in (
            ("rows_waiting", "Rows on their way to the database", storage.rows_waiting),
            ("spool_rows", "Rows that wait on disk", spool.rows),
            ("default_rows", "Rows in DEFAULT partitions", storage.default_rows),
        ):
            yield _labelled_gauge(name, text, "table", values)
        yield _gauge("spool_bytes", "Bytes that wait on disk for the database", spool.bytes)
        yield _gauge("spool_limit_bytes", "Bytes that may wait on disk", spool.limit_bytes)
        yield _gauge("spool_batches", "Batches that wait on disk", spool.batches)
        yield _gauge(
            "spool_oldest_seconds", "Age of the oldest batch on disk", spool.oldest_seconds or 0.0
        )
        if storage.size_bytes is not None:
            yield _gauge(
                "database_bytes", "Size of all tables at the last maintenance", storage.size_bytes
            )
        dropped = CounterMetricFamily(
            "sipsidecar_rows_dropped", "Rows lost by this sidecar", labels=("table", "reason")
        )
        for (table, reason), value in sorted(storage.rows_dropped.items()):
            dropped.add_metric((table, reason), value)
        yield dropped
        yield _gauge("queue_bytes", "Memory that waiting rows take", storage.queue_bytes)
        yield _gauge("queue_limit_bytes", "Memory they may take", storage.queue_limit_bytes)
        yield _gauge("database_up", "1 when the last write worked", int(storage.up))
        yield _counter(
            "database_restarts",
            "Times the embedded PostgreSQL was started again",
            storage.server_restarts,
        )
        yield _histogram(
            "batch_write_seconds", "Time a batch took to be committed", storage.write_seconds
        )
        yield _labelled(
            "batch_failures",
            "Batches that were not committed at once",
            "reason",
            storage.write_failures,
        )
        yield _gauge(
            "loop_lag_seconds", "Longest lateness of the loop lately", figures.loop_lag_seconds
        )

        yield _labelled_gauge("live_calls", "Calls that are live", "state", pipeline.live)
        yield _gauge("calls_tracked", "Calls in memory", pipeline.calls_tracked)
        yield _gauge(
            "transactions_open", "REGISTER and OPTIONS that wait", pipeline.transactions_open
        )
        calls = CounterMetricFamily(
            "sipsidecar_calls", "Calls that ended", labels=("class", "code", "origin")
        )
        for key, value in sorted(pipeline.finals.items()):
            calls.add_metric(key, value)
        yield calls
        attempts = CounterMetricFamily(
            "sipsidecar_attempts", "Egress attempts that ended", labels=("class", "code")
        )
        for pair, value in sorted(pipeline.attempt_finals.items()):
            attempts.add_metric(pair, value)
        yield attempts
        yield _labelled(
            "registrations", "REGISTER transactions by final code", "code", pipeline.registrations
        )
        yield _labelled("pings", "OPTIONS transactions by final code", "code", pipeline.pings)
        yield _histogram(
            "pdd_seconds", "First INVITE to the first 180, 181, 182, 183 or 2xx", pipeline.pdd
        )
        yield _histogram("setup_seconds", "First INVITE to the first 2xx", pipeline.setup)
        yield from _media(pipeline)
        yield _labelled("limits", "What the caps refused", "cap", pipeline.limits)
        yield _counter(
            "orphans", "Remains of messages and events that were no call", pipeline.orphans
        )
        yield _counter("revisions", "Records that late facts changed", pipeline.revisions)
        yield _counter(
            "legs_unended", "Legs of FreeSWITCH whose end was not heard", pipeline.legs_unended
        )
        yield from _agents(pipeline.agents, figures.agent_names)
        if figures.switches:
            yield from _switches(figures.switches)
        if figures.admission is not None:
            yield from _admission(figures.admission)
        if pipeline.cohort_finals:
            cohorts = CounterMetricFamily(
                "sipsidecar_cohort_calls",
                "Calls that ended, by whose they were; class admission: refused by this product",
                labels=("tenant", "trunk", "direction", "region", "class"),
            )
            for labels, value in sorted(pipeline.cohort_finals.items()):
                cohorts.add_metric(labels, value)
            yield cohorts
        if figures.watch is not None:
            yield from _watch(figures.watch)
        if self._heplify_names:
            yield from _heplify(pipeline, figures.watch)


def _media(pipeline: Snapshot) -> Iterator[Metric]:
    """Quality of media, by scale (two do not compare) and direction."""
    mos = HistogramMetricFamily(
        "sipsidecar_mos", "Mean opinion score of a stream of media", labels=("scale", "direction")
    )
    for key, histogram in sorted(pipeline.mos.items()):
        mos.add_metric(key, _buckets(histogram), histogram.total)
    yield mos
    for name, text, histograms in (
        ("media_loss_ratio", "Share of a stream's packets that were lost", pipeline.loss),
        ("media_jitter_seconds", "Mean interarrival jitter of a stream", pipeline.jitter),
    ):
        family = HistogramMetricFamily(f"sipsidecar_{name}", text, labels=("direction",))
        for direction, histogram in sorted(histograms.items()):
            family.add_metric((direction,), _buckets(histogram), histogram.total)
        yield family
    yield _labelled(
        "findings", "Calls with this finding", "finding", _NO_FINDINGS | pipeline.findings
    )
    yield _labelled("media_reports", "Messages about media", "what", _NO_REPORTS | pipeline.reports)
    yield _labelled(
        "media_unrated", "Streams of media without a MOS", "why", _NONE_UNRATED | pipeline.unrated
    )


def _agents(agents: Iterable[AgentFigures], names: Mapping[int, str]) -> Iterator[Metric]:
    """Per agent, by configured name; capture ids come from strangers, so the rest share `other`."""
    skew = GaugeMetricFamily(
        "sipsidecar_agent_clock_skew_seconds",
        "How far the agent's clock is ahead of ours; of several, the farthest",
        labels=("agent",),
    )
    seen = GaugeMetricFamily(
        "sipsidecar_agent_last_seen_seconds", "Age of the agent's newest packet", labels=("agent",)
    )
    packets = CounterMetricFamily(
        "sipsidecar_agent_packets", "HEP packets of the agent", labels=("agent",)
    )
    skews: dict[str, float] = {}
    ages: dict[str, float] = {}
    counts: dict[str, int] = {}
    for agent in agents:
        name = OTHER if agent.agent_id is None else names.get(agent.agent_id, OTHER)
        counts[name] = counts.get(name, 0) + agent.packets
        ages[name] = min(ages.get(name, agent.last_seen_seconds), agent.last_seen_seconds)
        if agent.clock_skew_seconds is not None:
            skews[name] = max(skews.get(name, 0.0), agent.clock_skew_seconds, key=abs)
    for family, values in ((skew, skews), (seen, ages), (packets, counts)):
        for name, value in sorted(values.items()):
            family.add_metric((name,), value)
        yield family


_SWITCH_GAUGES: tuple[tuple[str, str, Callable[[SwitchFigures], float | None]], ...] = (
    (
        "up",
        "1 while connected to the switch and HEARTBEATs come",
        lambda one: one.trouble not in {"away", "silent"} if one.configured else None,
    ),
    ("sessions", "Legs at the last HEARTBEAT", lambda one: one.sessions),
    ("sessions_max", "Legs that the switch takes", lambda one: one.max_sessions),
    (
        "sessions_per_second",
        "New legs in the second before the last HEARTBEAT",
        lambda one: one.sessions_per_second,
    ),
    (
        "sessions_per_second_limit",
        "New legs that the switch takes in a second",
        lambda one: one.sessions_per_second_limit,
    ),
    ("idle_cpu_ratio", "Share of the switch's CPU that is idle", lambda one: one.idle_cpu),
    (
        "live_legs",
        "Legs now: HEARTBEAT's and what began and ended since",
        lambda one: one.live_legs,
    ),
    (
        "heartbeat_age_seconds",
        "Time since the last HEARTBEAT",
        lambda one: one.heartbeat_age_seconds,
    ),
    ("lag_seconds", "Least age of an event at its arrival, lately", lambda one: one.lag_seconds),
    ("registrations", "Users whose registration is not over", lambda one: one.registrations),
    (
        "registrations_approximate",
        "1 while there are more registrations than can be known",
        lambda one: one.registrations_approximate,
    ),
)
_SWITCH_COUNTERS: tuple[tuple[str, str, Callable[[SwitchFigures], int]], ...] = (
    ("events", "Events of the switch", lambda one: one.events),
    ("refused", "Frames of the switch that were no event or reply", lambda one: one.refused),
    ("reconnects", "Connections to the switch after the first", lambda one: one.reconnects),
    ("restarts", "Times the switch began anew", lambda one: one.restarts),
    ("drift", "Legs by which live counts were corrected", lambda one: one.drift),
)


def _switches(switches: Sequence[SwitchFigures]) -> Iterator[Metric]:
    """Per FreeSWITCH, by configured name; what one does not say is not shown."""
    for name, text, gauge in _SWITCH_GAUGES:
        shown = {one.name: value for one in switches if (value := gauge(one)) is not None}
        yield _labelled_gauge(f"freeswitch_{name}", text, "switch", shown)
    for name, text, counter in _SWITCH_COUNTERS:
        counts = {one.name: counter(one) for one in switches}
        yield _labelled(f"freeswitch_{name}", text, "switch", counts)
    # Gateways have names of their own, which come over the wire.
    gateways = GaugeMetricFamily(
        "sipsidecar_freeswitch_gateways",
        "Gateways that changed their state, by the newest",
        labels=("switch", "state"),
    )
    limits = CounterMetricFamily(
        "sipsidecar_freeswitch_limits", "What the caps refused", labels=("switch", "cap")
    )
    connection = CounterMetricFamily(
        "sipsidecar_freeswitch_connection_events",
        "What happened on the connection to the switch; errors: events lost by a bug here",
        labels=("switch", "event"),
    )
    for one in switches:
        for family, values in (
            (gateways, _NO_GATEWAYS | one.gateways),
            (limits, _NO_CAPS | one.limits),
            (connection, one.connection),
        ):
            for key, value in sorted(values.items()):
                family.add_metric((one.name, key), value)
    yield from (gateways, limits, connection)


def _admission(admission: AdmissionFigures) -> Iterator[Metric]:
    """What was decided, who holds capacity, how rules stand; labels are the configuration's words."""
    decisions = CounterMetricFamily(
        "sipsidecar_admission_decisions",
        "Decisions by the rule that they stand under; shadow: would have been refused",
        labels=("rule", "verdict", "way"),
    )
    for labels, value in sorted(admission.decisions.items()):
        decisions.add_metric(labels, value)
    yield decisions
    yield _histogram("admission_decision_seconds", "Time that a question took", admission.seconds)
    yield _labelled(
        "admission_exempt", "Requests that are never refused", "why", admission.exempted
    )
    yield _counter("admission_repeated", "Questions that were answered before", admission.repeated)
    yield _counter(
        "admission_too_late", "Refused calls that went on all the same", admission.too_late
    )
    yield _gauge("admission_leases", "Calls that hold capacity", admission.leases)
    yield _gauge(
        "admission_leases_pending", "Admitted calls not seen yet", admission.leases_pending
    )
    yield _labelled(
        "admission_leases_ended", "Leases that ended, by why", "why", admission.leases_ended
    )
    yield _counter(
        "admission_leases_refused", "Calls over the cap of leases", admission.leases_refused
    )
    yield _counter("admission_rows_lost", "Rows of decisions over their cap", admission.rows_lost)
    yield _counter("admission_faults", "Bugs that cost a turn or a new beginning", admission.faults)
    active = GaugeMetricFamily(
        "sipsidecar_admission_active", "Calls that hold capacity", labels=("scope", "value")
    )
    for pair, count in sorted(admission.active.items()):
        active.add_metric(pair, count)
    yield active
    # One series a state, as Prometheus' own state sets: an alert names the state it means.
    states = GaugeMetricFamily(
        "sipsidecar_admission_state",
        "1 for the state that a rule is in, for one value of its scope",
        labels=("rule", "value", "state"),
    )
    for (rule, of), now in sorted(admission.states.items()):
        for state in STATES:
            states.add_metric((rule, of, state), state == now)
    yield states
    notified = GaugeMetricFamily(
        "sipsidecar_admission_notified",
        "1 while a capacity is at its notify mark",
        labels=("rule", "value"),
    )
    for place, reached in sorted(admission.notified.items()):
        notified.add_metric(place, reached)
    yield notified
    drained = GaugeMetricFamily(
        "sipsidecar_admission_drained", "1 while an operator drains it", labels=("scope", "value")
    )
    for pair in admission.drained:
        drained.add_metric(pair, 1)
    yield drained
    for name, text, what in (
        ("up", "1 while the switch takes what is pushed", lambda one: one.up),
        ("entries", "Keys that the switch holds", lambda one: one.entries),
        ("rtt_seconds", "From push to answer", lambda one: _seconds(one.rtt_ms)),
    ):
        family = GaugeMetricFamily(f"sipsidecar_push_{name}", text, labels=("kind", "switch"))
        for one in admission.pushes:
            if (reading := what(one)) is not None:
                family.add_metric((one.kind, one.name), reading)
        yield family
    failed = CounterMetricFamily(
        "sipsidecar_push_failures", "Pushes without a good answer", labels=("kind", "switch")
    )
    pushed = CounterMetricFamily("sipsidecar_pushes", "Pushes", labels=("kind", "switch"))
    for one in admission.pushes:
        failed.add_metric((one.kind, one.name), one.failed)
        pushed.add_metric((one.kind, one.name), one.pushed)
    yield from (failed, pushed)
    up = GaugeMetricFamily(
        "sipsidecar_asker_up", "1 while a switch may ask", labels=("kind", "switch")
    )
    asked = CounterMetricFamily(
        "sipsidecar_asked", "Questions of a switch", labels=("kind", "switch")
    )
    for asker in admission.asks:
        up.add_metric((asker.kind, asker.name), asker.up)
        asked.add_metric((asker.kind, asker.name), asker.asked)
    yield from (up, asked)
    yield _labelled_gauge(
        "check_ok",
        "1 while a downstream check is well; absent while unknown",
        "check",
        {name: well for name, well in admission.checks.items() if well is not None},
    )


def _watch(watch: WatchFigures) -> Iterator[Metric]:
    """What is looked after besides capture; labels are the configuration's words, or fixed ones."""
    if watch.kpi is not None:
        yield from _kpi(watch.kpi)
    if watch.trunks:
        yield from _trunks(watch.trunks)
    incidents = GaugeMetricFamily(
        "sipsidecar_incidents_open", "Incidents that are open", labels=("category", "severity")
    )
    for pair, count in sorted(watch.incidents.items()):
        incidents.add_metric(pair, count)
    yield incidents
    alerts = CounterMetricFamily(
        "sipsidecar_alerts",
        "Alerts by receiver and what became of them",
        labels=("receiver", "result"),
    )
    for pair, count in sorted(watch.receivers.items()):
        alerts.add_metric(pair, count)
    yield alerts
    yield _labelled("timeline_events", "What happened, by kind", "kind", watch.events)
    yield _counter("watch_faults", "Bugs that cost a turn or a new beginning", watch.faults)
    yield _counter("watch_folded", "Series of detectors over their cap", watch.folded)


def _kpi(kpi: KpiFigures) -> Iterator[Metric]:
    """Figures of the last minutes by whose they are, and setups since the start."""
    scopes = kpi.scopes
    yield _gauge("kpi_window_seconds", "Time that the other kpi gauges cover", kpi.window_seconds)
    for name, text, label, values_of in (
        ("setups", "Calls (of a trunk or carrier: attempts) lately", "what", _counts_of),
        ("ratio", "Shares lately; asr, ner, ser and so on by their names", "measure", _ratios_of),
        ("mos", "Mean opinion score of calls lately, by scale", "scale", _mos_of),
    ):
        family = GaugeMetricFamily(f"sipsidecar_kpi_{name}", text, labels=("scope", "value", label))
        for one in scopes:
            for key, value in sorted(values_of(one).items()):
                family.add_metric((one.scope, one.value, key), value)
        yield family
    delays = GaugeMetricFamily(
        "sipsidecar_kpi_delay_seconds",
        "Delays lately: pdd, setup, failed_srd, rrd, and of media jitter and rtt",
        labels=("scope", "value", "measure", "quantile"),
    )
    talk = GaugeMetricFamily(
        "sipsidecar_kpi_acd_seconds",
        "Mean talk of calls that ended lately",
        labels=("scope", "value"),
    )
    codes = CounterMetricFamily(
        "sipsidecar_kpi_finals",
        "Setups that ended, by class; admission: refused by this product",
        labels=("scope", "value", "class"),
    )
    for one in scopes:
        for (measure, quantile), seconds in sorted(one.seconds.items()):
            delays.add_metric((one.scope, one.value, measure, quantile), seconds)
        if one.acd_seconds is not None:
            talk.add_metric((one.scope, one.value), one.acd_seconds)
        for what, count in sorted(_by_class(one).items()):
            codes.add_metric((one.scope, one.value, what), count)
    yield from (delays, talk, codes)
    yield _labelled(
        "kpi_limits", "What caps of the watch left out, by what it was", "cap", kpi.limits
    )
    yield _gauge("kpi_left_out", "Configured values without figures here", kpi.left_out)


def _counts_of(one: KpiScope) -> Mapping[str, float]:
    return one.counts


def _ratios_of(one: KpiScope) -> Mapping[str, float]:
    return one.ratios


def _mos_of(one: KpiScope) -> Mapping[str, float]:
    return one.mos


def _by_class(one: KpiScope) -> Mapping[str, float]:
    classes: Counter[str] = Counter(dict.fromkeys(_CLASSES, 0))
    for (code, origin), count in one.codes.items():
        what = f"{code // 100}xx" if code else "unknown"
        classes["admission" if origin == "admission" else what] += count
    return classes


_CLASSES = ("2xx", "3xx", "4xx", "5xx", "6xx", "unknown", "admission")


def _trunks(trunks: Sequence[TrunkFigures]) -> Iterator[Metric]:
    """Per far end, by configured name; `by` says whose OPTIONS tell."""
    names = ("peer", "trunk", "by")
    # One series a state, as Prometheus' own state sets: an alert names the state it means.
    states = GaugeMetricFamily(
        "sipsidecar_trunk_state", "1 for the state that a far end is in", labels=(*names, "state")
    )
    failures = CounterMetricFamily(
        "sipsidecar_trunk_failures", "OPTIONS without a good answer", labels=names
    )
    for one in trunks:
        labels = _peer(one)
        for state in TRUNK_STATES:
            states.add_metric((*labels, state), state == one.state)
        failures.add_metric(labels, one.failures)
    yield from (states, failures)
    for name, text, what in (
        ("rtt_seconds", "From OPTIONS to its answer", lambda one: _seconds(one.rtt_ms)),
        ("state_age_seconds", "Time since its state changed", lambda one: one.since_seconds),
        (
            "certificate_left_seconds",
            "Time until its TLS certificate ends",
            lambda one: None if one.certificate_days is None else one.certificate_days * 86_400,
        ),
    ):
        family = GaugeMetricFamily(f"sipsidecar_trunk_{name}", text, labels=names)
        for one in trunks:
            if (reading := what(one)) is not None:
                family.add_metric(_peer(one), reading)
        yield family


def _peer(one: TrunkFigures) -> tuple[str, str, str]:
    return one.name, one.trunk, "probe" if one.own else "capture"


_HEPLIFY_TYPES = {"sip": "sip", "rtcp": "rtcp", "log": "log"}
_UNSEEN = frozenset({"inferred", "esl"})
"""Origins of finals that no message had."""


def _heplify(pipeline: Snapshot, watch: WatchFigures | None) -> Iterator[Metric]:
    """True figures under the names of heplify-server, for dashboards that were made for it.

    - heplify_packets_total{type}: as there, of the types that are told alike.
    - heplify_method_response{target_name,response,method}: it counts messages, each hop of a call;
      these are INVITE attempts, REGISTER and OPTIONS transactions that ended (response=method) and
      their finals as they were seen, without what was inferred; BYE with 200 is a call that ended
      with one. target_name is a configured trunk, whose attempts these are, and `unknown` of what has
      none; without trunks it is empty, and these are calls. Codes that IANA does not know read
      `other`.
    - heplify_kpi_srd, heplify_kpi_rrd: there the last delay, here the median of the last minutes;
      nanoseconds in both.

    Left out are the labels node_id (its words come from packets) and direction (of a message), all of
    heplify_method_response but that (provisional responses, ACK, CANCEL: messages are not what is
    counted here), heplify_packets_size (of the last packet), heplify_reason_isup_total and
    heplify_log_alert_total (not counted here), and heplify_rtcp_*, rtcpxr_*, vqrtcpxr_*, xrtp_*,
    rtpagent_* and horaclifix_*: they show the last report, whosever it was, in the units of its
    sender. sipsidecar_mos and its like are in their place.
    """
    packets = CounterMetricFamily("heplify_packets", "HEP packets by type", labels=("type",))
    for kind, name in _HEPLIFY_TYPES.items():
        packets.add_metric((name,), pipeline.received_by_kind.get(kind, 0))
    yield packets
    # Its counters have no _total, so they are of no type here.
    responses = UnknownMetricFamily(
        "heplify_method_response",
        "Transactions and their final responses",
        labels=("target_name", "response", "method"),
    )
    scopes = watch.kpi.scopes if watch is not None and watch.kpi is not None else ()
    trunks = [one for one in scopes if one.scope == "trunk"]
    nobody = "unknown" if trunks else ""
    counts: Counter[tuple[str, str, str]] = Counter()
    for method, finals in (("REGISTER", pipeline.registrations), ("OPTIONS", pipeline.pings)):
        for code, count in finals.items():
            _answered(counts, nobody, code, method, count)
            counts[nobody, method, method] += count
    if not trunks:
        for (_, code, origin), count in pipeline.finals.items():
            if origin not in _UNSEEN:
                _answered(counts, "", code, "INVITE", count)
            counts["", "INVITE", "INVITE"] += count
    for one in trunks:
        for (final, origin), count in one.codes.items():
            if origin not in _UNSEEN:
                _answered(counts, one.value, code_label(final or None), "INVITE", count)
            counts[one.value, "INVITE", "INVITE"] += count
    for one in trunks or [one for one in scopes if one.scope == "global"]:
        counts[one.value, "200", "BYE"] += one.completed
    for labels, count in sorted(counts.items()):
        responses.add_metric(labels, count)
    yield responses
    for name, text, wanted, measure in (
        ("srd", "Session request delay, ns", "trunk" if trunks else "global", "pdd"),
        ("rrd", "Registration request delay, ns", "registrations", "rrd"),
    ):
        family = GaugeMetricFamily(f"heplify_kpi_{name}", text, labels=("target_name",))
        for one in scopes:
            seconds = one.seconds.get((measure, "0.5")) if one.scope == wanted else None
            if seconds is not None:
                family.add_metric((one.value or nobody,), round(seconds * 1e9))
        yield family


def _answered(
    counts: Counter[tuple[str, str, str]], target: str, code: str, method: str, count: int
) -> None:
    if code != "unknown":
        counts[target, code, method] += count


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"sipsidecar_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"sipsidecar_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"sipsidecar_{name}", text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family


def _labelled_gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"sipsidecar_{name}", text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    running = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        running += count
        buckets.append(("+Inf" if bound is None else str(float(bound)), running))
    return buckets


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(
        f"sipsidecar_{name}", text, buckets=_buckets(histogram), sum_value=histogram.total
    )


class Metrics:
    """The registry of one sidecar; nothing module-wide, so that several can live in one process."""

    def __init__(self, read: Callable[[], Figures], *, heplify_names: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(FiguresCollector(read, heplify_names=heplify_names))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, by the scraper's Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
