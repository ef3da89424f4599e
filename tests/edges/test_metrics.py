import functools
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from sipsidecar import batch, demo
from sipsidecar.calls.findings import KINDS
from sipsidecar.edges.metrics import Metrics
from sipsidecar.pipeline import REFUSED_KINDS, Pipeline
from sipsidecar.signals.snapshot import (
    GATEWAY_STATES,
    JITTER_BOUNDS,
    KNOWN_CODES,
    LOSS_BOUNDS,
    MOS_BOUNDS,
    REPORTS,
    SWITCH_CAPS,
    TRUNK_STATES,
    UNRATED,
    WRITE_BOUNDS,
    AgentFigures,
    CaptureFigures,
    Figures,
    Histogram,
    KpiFigures,
    KpiScope,
    MemoryFigures,
    Snapshot,
    SpoolFigures,
    StorageFigures,
    SwitchFigures,
    TrunkFigures,
    WatchFigures,
)
from sipsidecar.signals.switches import Switches
from sipsidecar.signals.trunk import ACTIVE, DISABLED, INACTIVE, TRYING, UNKNOWN
from sipsidecar.wire import esl, hep

TEXT = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
NOW = 1_795_000_000_000_000


def figures(snapshot: Snapshot, **changes: Any) -> Figures:
    writes = Histogram(WRITE_BOUNDS)
    writes.observe(0.02)
    writes.observe(99.0)
    return msgspec.structs.replace(
        Figures(
            version="1.2.3",
            pipeline=snapshot,
            storage=StorageFigures(
                up=True,
                rows_stored={"calls": 5},
                rows_waiting={"calls": 2},
                rows_dropped={("messages", "queue-full"): 4, ("calls", "rejected"): 1},
                packets_stored=11,
                packets_quarantined=3,
                packets_waiting=2,
                packets_dropped={"queue-full": 4},
                queue_bytes=100,
                queue_limit_bytes=1000,
                write_seconds=writes,
                write_failures={"unavailable": 1},
                server_restarts=1,
                spool=SpoolFigures(
                    batches=2,
                    bytes=500,
                    limit_bytes=2000,
                    oldest_seconds=12.0,
                    rows={"calls": 3},
                    packets=6,
                    inherited=8,
                    rows_spooled={"calls": 13},
                    rows_replayed={"calls": 10},
                ),
                rows_refused={"calls": 1},
                default_rows={"messages": 4},
                size_bytes=123456,
            ),
            capture=CaptureFigures(
                kernel_drops=9,
                buffer_bytes=4096,
                buffer_used_bytes=10,
                tcp_connections=1,
                tcp_events={"accepted": 1},
            ),
            loop_lag_seconds=0.25,
            uptime_seconds=12.5,
            agent_names={2001: "edge"},
            warming=True,
            memory=MemoryFigures(300, 500, 0.5),
            http_events={"unauthorized": 2},
        ),
        **changes,
    )


def test_what_waits_on_disk_and_how_near_the_limits_are_is_shown() -> None:
    found = values(figures(fresh()))
    expected = {
        ("packets_spooled",): 6,
        ("packets_inherited_total",): 8,
        ("spool_bytes",): 500,
        ("spool_limit_bytes",): 2000,
        ("spool_batches",): 2,
        ("spool_oldest_seconds",): 12,
        ("spool_rows", "calls"): 3,
        ("rows_spooled_total", "calls"): 13,
        ("rows_replayed_total", "calls"): 10,
        ("rows_refused_total", "calls"): 1,
        ("default_rows", "messages"): 4,
        ("database_bytes",): 123456,
        ("warming",): 1,
        ("memory_used_bytes",): 300,
        ("memory_ceiling_bytes",): 500,
        ("memory_share",): 0.5,
        ("http_events_total", "unauthorized"): 2,
    }
    assert {key: found.get(key) for key in expected} == expected


def page(said: Figures, accept: str = TEXT) -> str:
    body, _ = Metrics(lambda: said).render(accept)
    return body.decode()


def families(said: Figures, accept: str = TEXT) -> dict[str, Metric]:
    read = openmetrics_parser if accept is OPENMETRICS else parser
    return {one.name: one for one in read.text_string_to_metric_families(page(said, accept))}


def values(said: Figures) -> dict[tuple[str, ...], float]:
    """Sample name, and the label values in the order of their labels' names, to value."""
    return {
        (
            sample.name.removeprefix("sipsidecar_"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in families(said).values()
        for sample in family.samples
    }


@functools.cache
def busy() -> Snapshot:
    """That of a pipeline that has seen a bit of everything."""
    pipeline = Pipeline()
    world = iter(demo.timeline(demo.dialogs(7)))
    now = 0.0
    for step, _ in zip(world, range(1500), strict=False):
        now = step.at
        at = NOW + round(step.at * 1_000_000)
        pipeline.receive(demo.datagram(step, at), now, at, "192.0.2.10")
        pipeline.handle_timer(now)
        pipeline.records()
    pipeline.receive(b"garbage", now, NOW, "192.0.2.10")
    pipeline.drain(now)
    pipeline.records()
    return pipeline.snapshot(60.0)


def of(bounds: tuple[float, ...], *seen: float) -> Histogram:
    histogram = Histogram(bounds)
    for value in seen:
        histogram.observe(value)
    return histogram


def heard() -> Snapshot:
    """The same after reports of media."""
    return msgspec.structs.replace(
        busy(),
        mos={
            ("nb", "caller_to_callee"): of(MOS_BOUNDS, 4.41, 4.0),
            ("wb", "unknown"): of(MOS_BOUNDS, 1.0),
        },
        loss={"caller_to_callee": of(LOSS_BOUNDS, 0.0, 0.02), "unknown": of(LOSS_BOUNDS, 1.0)},
        jitter={"callee_to_caller": of(JITTER_BOUNDS, 0.0213)},
        findings={"low_mos": 2, "one_way_audio": 1},
        reports={"sr": 12, "implausible": 1},
        unrated={"short": 3},
    )


def fresh() -> Snapshot:
    return Pipeline().snapshot(0.0)


HOSTILE = 'EVIL"\n}evil{x="1"} 1\\\n# TYPE evil counter\nevil_total 1\r\n\x1b[31m\u2028€'


def hostile_packets(count: int = 1) -> Iterator[bytes]:
    """SIP and no SIP, with a stranger's words in every place that holds words."""
    evil = HOSTILE.replace("\r\n", " ").replace("\n", " ")
    for number in range(count):
        call = f"{evil}{number}@EVIL"
        head = (
            f"Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK{number}EVIL\r\n"
            f'From: "{evil}" <sip:EVIL{number}@EVIL>;tag=EVIL{number}\r\n'
            f"To: <sip:EVIL@EVIL>\r\nCall-ID: EVIL{number}\r\nX-Evil: {evil}\r\n"
            f'User-Agent: {evil}\r\nReason: EVIL;cause=16;text="{evil}"\r\nContact: {evil}\r\n'
        )
        for start, method in (
            ("INVITE sip:EVIL@EVIL SIP/2.0", "INVITE"),
            (f"EVIL{number} sip:EVIL@EVIL SIP/2.0", f"EVIL{number}"),
            ("OPTIONS sip:EVIL@EVIL SIP/2.0", "OPTIONS"),
            ("REGISTER sip:EVIL@EVIL SIP/2.0", "REGISTER"),
            (f"SIP/2.0 {100 + number % 900} {evil}", "INVITE"),
            (f"SIP/2.0 {200 + number % 800} {evil}", "OPTIONS"),
            (f"SIP/2.0 {200 + number % 800} {evil}", "REGISTER"),
            (f"SIP/2.0 {200 + number % 800} {evil}", f"EVIL{number}"),
        ):
            yield hep.encode(
                source=socket.inet_aton("192.0.2.1"),
                destination=socket.inet_aton("192.0.2.2"),
                source_port=5060,
                destination_port=5060,
                captured_at=NOW,
                agent_id=number,
                node_name=evil.encode(),
                correlation_id=call.encode(),
                auth_key=evil.encode(),
                payload=f"{start}\r\n{head}CSeq: 1 {method}\r\n\r\n".encode(),
            )
        yield hep.encode(
            source=b"", destination=b"", source_port=0, destination_port=0,
            protocol_type=number % 256, agent_id=number, node_name=evil.encode(), payload=evil.encode(),
        )  # fmt: skip
        yield evil.encode()
        yield b"HEP3" + evil.encode()


def after_hostile_input(count: int = 1) -> Figures:
    pipeline = Pipeline()
    for data in hostile_packets(count):
        pipeline.receive(data, 0.0, NOW, "192.0.2.66")
    while (due := pipeline.next_timer()) is not None:
        pipeline.handle_timer(due)
        pipeline.records()
        pipeline.stored()
    return figures(pipeline.snapshot(100.0))


# ------------------------------------------------------------------------------------- the formats


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
@pytest.mark.parametrize("snapshot", [busy, heard, fresh])
def test_a_page_is_read_by_prometheus_own_parser(
    accept: str, snapshot: Callable[[], Snapshot]
) -> None:
    found = families(figures(snapshot()), accept)
    assert len([name for name in found if name.startswith("sipsidecar_")]) > 30
    assert {"process_cpu_seconds", "process_resident_memory_bytes"} <= {
        name.removesuffix("_total") for name in found
    }


def test_the_content_type_is_that_of_the_format_that_was_asked_for() -> None:
    metrics = Metrics(lambda: figures(busy()))
    assert metrics.render(TEXT)[1].startswith("text/plain")
    assert metrics.render("")[1].startswith("text/plain")
    assert metrics.render(OPENMETRICS)[1].startswith("application/openmetrics-text")
    assert metrics.render(OPENMETRICS)[0].endswith(b"# EOF\n")


def test_an_accept_header_of_garbage_gives_a_page() -> None:
    body, _ = Metrics(lambda: figures(busy())).render("\x00;;q=,,/;version=" + "x" * 1000)
    assert b"sipsidecar_packets_received_total" in body


def test_names_follow_prometheus_conventions() -> None:
    said = figures(heard(), switches=(SWITCH,), watch=WATCH)
    for family in families(said, OPENMETRICS).values():
        if not family.name.startswith("sipsidecar_"):
            continue
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation
        assert not family.documentation.endswith(".")
        assert not re.search(r"_(ms|us|milliseconds|kb|mb|percent|count|total)$", family.name)
        if family.type == "histogram":
            # a MOS has no unit
            assert family.name.endswith(("_seconds", "_ratio")) or family.name == "sipsidecar_mos"
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total")
        for unit in ("seconds", "bytes"):
            if f"_{unit}" in family.name:
                assert family.name.endswith(f"_{unit}")


def test_two_sidecars_in_one_process_have_pages_of_their_own() -> None:
    one, two = Metrics(lambda: figures(busy())), Metrics(lambda: figures(fresh()))
    assert b"sipsidecar_packets_received_total 0.0" in two.render(TEXT)[0]
    assert b"sipsidecar_packets_received_total 0.0" not in one.render(TEXT)[0]


# ------------------------------------------------------------------------------------- the figures


def test_the_page_says_what_the_figures_say() -> None:
    said = figures(busy())
    found = values(said)
    ledger = said.ledger()
    assert found["packets_received_total",] == busy().received > 1000
    assert found["received_bytes_total",] == busy().received_bytes
    assert found["packets_refused_total", "not-hep"] == 1
    assert found["packets_stored_total",] == 11
    assert found["packets_quarantined_total",] == 3
    assert found["packets_waiting",] == 2
    assert found["packets_dropped_total", "queue-full"] == 4
    assert found["ledger_balance",] == ledger["balance"]
    assert found["rows_stored_total", "calls"] == 5
    assert found["rows_waiting", "calls"] == 2
    assert found["rows_dropped_total", "queue-full", "messages"] == 4
    assert found["kernel_drops_total",] == 9
    assert found["receive_buffer_bytes",] == 4096
    assert found["queue_limit_bytes",] == 1000
    assert found["database_up",] == 1
    assert found["database_restarts_total",] == 1
    assert found["loop_lag_seconds",] == 0.25
    assert found["uptime_seconds",] == 12.5
    assert found["build_info", "1.2.3"] == 1
    assert sum(found["live_calls", state] for state in ("trying", "ringing", "answered")) == sum(
        busy().live.values()
    )
    calls = {key: value for key, value in found.items() if key[0] == "calls_total"}
    assert calls == {("calls_total", *key): count for key, count in busy().finals.items()}
    assert ("calls_total", "2xx", "200", "callee") in calls
    assert sum(value for key, value in found.items() if key[0] == "attempts_total") == sum(
        busy().attempt_finals.values()
    )
    assert found["registrations_total", "200"] > 0
    assert found["pings_total", "200"] > 0


def test_a_histogram_is_cumulative_and_holds_every_value() -> None:
    found = families(figures(busy()))
    for name, histogram in (
        ("sipsidecar_pdd_seconds", busy().pdd),
        ("sipsidecar_setup_seconds", busy().setup),
    ):
        samples = found[name].samples
        counts = [sample.value for sample in samples if sample.name.endswith("_bucket")]
        assert counts == sorted(counts)
        assert counts[-1] == sum(histogram.counts) > 0
        assert {s.name: s.value for s in samples}[f"{name}_sum"] == pytest.approx(histogram.total)
    writes = [s for s in found["sipsidecar_batch_write_seconds"].samples if "le" in s.labels]
    assert [s.value for s in writes if s.labels["le"] in ("0.01", "0.025", "+Inf")] == [0, 1, 2]


def test_the_quality_of_media_is_shown_by_scale_and_direction() -> None:
    found = families(figures(heard()))
    mos = {
        (s.labels["scale"], s.labels["direction"], s.labels["le"]): s.value
        for s in found["sipsidecar_mos"].samples
        if "le" in s.labels
    }
    ours = ("nb", "caller_to_callee")
    assert [mos[*ours, le] for le in ("3.8", "4.0", "4.4", "4.5", "+Inf")] == [0, 1, 1, 2, 2]
    assert mos["wb", "unknown", "1.0"] == mos["wb", "unknown", "+Inf"] == 1
    said = values(figures(heard()))
    assert said["mos_sum", "caller_to_callee", "nb"] == pytest.approx(8.41)
    assert said["mos_count", "unknown", "wb"] == 1
    loss = {
        (s.labels["direction"], s.labels["le"]): s.value
        for s in found["sipsidecar_media_loss_ratio"].samples
        if "le" in s.labels
    }
    assert [loss["caller_to_callee", le] for le in ("0.0", "0.01", "0.02", "+Inf")] == [1, 1, 2, 2]
    assert (loss["unknown", "0.5"], loss["unknown", "1.0"]) == (0, 1)
    assert said["media_jitter_seconds_sum", "callee_to_caller"] == pytest.approx(0.0213)
    assert said["findings_total", "low_mos"] == 2
    assert said["media_reports_total", "sr"] == 12
    assert said["media_unrated_total", "short"] == 3


def test_findings_and_reports_are_there_before_the_first_one() -> None:
    found = values(figures(fresh()))
    assert [found["findings_total", kind] for kind in KINDS] == [0] * len(KINDS)
    assert [found["media_reports_total", what] for what in REPORTS] == [0] * len(REPORTS)
    assert [found["media_unrated_total", why] for why in UNRATED] == [0] * len(UNRATED)


def test_losses_and_refusals_are_there_before_the_first_one() -> None:
    said = figures(fresh())
    storage = msgspec.structs.replace(said.storage, packets_dropped={})
    found = values(msgspec.structs.replace(said, storage=storage))
    for reason in batch.LOSSES:
        assert found["packets_dropped_total", reason] == 0
    for reason in (*hep.WHYS, *REFUSED_KINDS.values()):
        assert found["packets_refused_total", reason] == 0


def agent(agent_id: int | None, skew: float | None, age: float, packets: int) -> AgentFigures:
    return AgentFigures(agent_id, "192.0.2.1", "EVIL", packets, age, skew, None)


def test_agents_with_a_configured_name_have_it_and_all_others_share_one() -> None:
    agents = (
        agent(2001, 0.5, 3.0, 10),
        agent(2001, -2.5, 1.0, 5),
        agent(7, 0.1, 9.0, 1),
        agent(8, None, 4.0, 2),
        agent(None, None, 5.0, 4),
    )
    found = values(figures(msgspec.structs.replace(busy(), agents=agents)))
    mine = {key: value for key, value in found.items() if key[0].startswith("agent_")}
    assert mine == {
        ("agent_packets_total", "edge"): 15,
        ("agent_packets_total", "other"): 7,
        ("agent_last_seen_seconds", "edge"): 1.0,
        ("agent_last_seen_seconds", "other"): 4.0,
        ("agent_clock_skew_seconds", "edge"): -2.5,
        ("agent_clock_skew_seconds", "other"): 0.1,
    }


SWITCH = SwitchFigures(
    "fs1",
    heartbeat_age_seconds=4.5,
    sessions=20,
    max_sessions=1000,
    sessions_per_second=3,
    sessions_per_second_limit=30,
    idle_cpu=0.875,
    live_legs=22,
    drift=2,
    restarts=1,
    gateways={"up": 3, "down": 1},
    registrations=40,
    registrations_approximate=True,
    limits={"legs": 6},
    connected_seconds=100.0,
    events=500,
    refused=5,
    reconnects=7,
    connection={"lost": 3, "errors": 0},
    lag_seconds=0.25,
)


def of_switches(*switches: SwitchFigures) -> dict[tuple[str, ...], float]:
    found = values(figures(busy(), switches=switches))
    return {
        (name.removeprefix("freeswitch_"), *labels): value
        for (name, *labels), value in found.items()
        if name.startswith("freeswitch_")
    }


def test_the_load_of_a_switch_is_shown() -> None:
    found = of_switches(SWITCH)
    assert {key: value for key, value in found.items() if len(key) == 2} == {
        ("up", "fs1"): 1,
        ("sessions", "fs1"): 20,
        ("sessions_max", "fs1"): 1000,
        ("sessions_per_second", "fs1"): 3,
        ("sessions_per_second_limit", "fs1"): 30,
        ("idle_cpu_ratio", "fs1"): 0.875,
        ("live_legs", "fs1"): 22,
        ("heartbeat_age_seconds", "fs1"): 4.5,
        ("registrations", "fs1"): 40,
        ("registrations_approximate", "fs1"): 1,
        ("lag_seconds", "fs1"): 0.25,
        ("events_total", "fs1"): 500,
        ("refused_total", "fs1"): 5,
        ("reconnects_total", "fs1"): 7,
        ("restarts_total", "fs1"): 1,
        ("drift_total", "fs1"): 2,
    }
    states = [found["gateways", state, "fs1"] for state in ("up", "down", "unknown")]
    assert states == [3, 1, 0]
    assert [found["limits_total", cap, "fs1"] for cap in ("legs", "gateways")] == [6, 0]


def test_what_a_switch_did_not_say_is_not_shown_as_zero() -> None:
    found = of_switches(SwitchFigures("fs1"))
    assert found["up", "fs1"] == 0
    assert found["events_total", "fs1"] == 0
    for name in (
        "sessions",
        "sessions_max",
        "idle_cpu_ratio",
        "live_legs",
        "heartbeat_age_seconds",
    ):
        assert (name, "fs1") not in found


@pytest.mark.parametrize(
    ("changes", "up"),
    [
        ({"connected_seconds": None}, 0),
        ({"heartbeat_age_seconds": 60.0}, 0),
        ({"live_legs": 1000}, 1),
    ],
)
def test_a_switch_is_up_while_it_beats_however_full_it_is(changes: dict[str, Any], up: int) -> None:
    assert of_switches(msgspec.structs.replace(SWITCH, **changes))["up", "fs1"] == up


def test_without_switches_there_is_nothing_of_them() -> None:
    assert of_switches() == {}


def after_strangers_switches(count: int) -> Figures:
    """Every text that a switch can send is a stranger's."""
    found = Switches(["fs1"])
    for number in range(count):
        evil = f"{HOSTILE}{number}"
        texts = dict.fromkeys(esl.Event.__struct_fields__, evil) | {"core_uuid": "core-1"}
        for event, subclass in (
            ("CHANNEL_CREATE", None),
            ("HEARTBEAT", None),
            ("CUSTOM", "sofia::gateway_state"),
            ("CUSTOM", "sofia::register"),
        ):
            for switch in ("fs1", evil):
                found.receive(switch, {**texts, "event_name": event, "event_subclass": subclass}, 0)
    return figures(busy(), switches=found.snapshot(1.0))


# ------------------------------------------------------------------------------------ what is watched

ACME = KpiScope(
    scope="trunk",
    value="acme",
    counts={"attempts": 8, "answered": 4},
    ratios={"asr": 0.5, "ner": 0.75},
    seconds={("pdd", "0.5"): 0.4, ("pdd", "0.95"): 2.5},
    acd_seconds=61.5,
    mos={"nb": 4.1},
    codes={
        (200, ""): 40, (486, ""): 7, (499, ""): 3, (503, ""): 2, (408, "inferred"): 1,
        (503, "admission"): 5, (0, ""): 6,
    },
    completed=38,
)  # fmt: skip
WATCH = WatchFigures(
    kpi=KpiFigures(
        window_seconds=300.0,
        scopes=(
            KpiScope(scope="global", value="", seconds={("pdd", "0.5"): 0.1}, completed=39),
            ACME,
            KpiScope(
                scope="registrations",
                value="",
                seconds={("rrd", "0.5"): 0.02},
                codes={(200, ""): 9},
            ),
        ),
        limits={"cohorts": 11},
        left_out=2,
    ),
    trunks=(
        TrunkFigures(
            name="acme-1",
            trunk="acme",
            state="inactive",
            rtt_ms=25.0,
            since_seconds=90.0,
            certificate_days=-0.5,
            failures=3,
        ),
        TrunkFigures(name="acme-2", trunk="acme", state="unknown", own=False),
    ),
    incidents={("5xx", "page"): 1, ("trunk-down", "page"): 2},
    receivers={("duty", "sent"): 4, ("duty", "failed"): 1},
    events={"trunk": 6},
    faults=1,
    folded=3,
)


def test_figures_of_calls_are_shown_by_whose_they_are() -> None:
    found = values(figures(busy(), watch=WATCH))
    mine = {key: value for key, value in found.items() if key[0].startswith("kpi_")}
    finals: dict[tuple[str, ...], float] = {
        ("kpi_finals_total", what, scope, value): count
        for scope, value, counts in (
            ("trunk", "acme", (40, 0, 11, 2, 0, 6, 5)),
            ("global", "", (0,) * 7),
            ("registrations", "", (9, *(0,) * 6)),
        )
        for what, count in zip(
            ("2xx", "3xx", "4xx", "5xx", "6xx", "unknown", "admission"), counts, strict=True
        )
    }
    # label values in the order of their labels' names: class, measure or quantile, scope, value
    assert (
        mine
        == {
            ("kpi_window_seconds",): 300,
            ("kpi_setups", "trunk", "acme", "attempts"): 8,
            ("kpi_setups", "trunk", "acme", "answered"): 4,
            ("kpi_ratio", "asr", "trunk", "acme"): 0.5,
            ("kpi_ratio", "ner", "trunk", "acme"): 0.75,
            ("kpi_mos", "nb", "trunk", "acme"): 4.1,
            ("kpi_delay_seconds", "pdd", "0.5", "global", ""): 0.1,
            ("kpi_delay_seconds", "pdd", "0.5", "trunk", "acme"): 0.4,
            ("kpi_delay_seconds", "pdd", "0.95", "trunk", "acme"): 2.5,
            ("kpi_delay_seconds", "rrd", "0.5", "registrations", ""): 0.02,
            ("kpi_acd_seconds", "trunk", "acme"): 61.5,
            ("kpi_limits_total", "cohorts"): 11,
            ("kpi_left_out",): 2,
        }
        | finals
    )


def test_trunks_incidents_and_alerts_are_shown() -> None:
    found = values(figures(busy(), watch=WATCH))
    mine = ("capture", "acme-2"), ("probe", "acme-1")
    states = {key: value for key, value in found.items() if key[0] == "trunk_state"}
    assert states == {
        ("trunk_state", *one, state, "acme"): float(state == now)
        for one, now in zip(mine, ("unknown", "inactive"), strict=True)
        for state in TRUNK_STATES
    }
    expected = {
        ("trunk_rtt_seconds", "probe", "acme-1", "acme"): 0.025,
        ("trunk_state_age_seconds", "probe", "acme-1", "acme"): 90,
        ("trunk_certificate_left_seconds", "probe", "acme-1", "acme"): -43_200,
        ("trunk_failures_total", "probe", "acme-1", "acme"): 3,
        ("trunk_failures_total", "capture", "acme-2", "acme"): 0,
        ("incidents_open", "5xx", "page"): 1,
        ("incidents_open", "trunk-down", "page"): 2,
        ("alerts_total", "duty", "sent"): 4,
        ("alerts_total", "duty", "failed"): 1,
        ("timeline_events_total", "trunk"): 6,
        ("watch_faults_total",): 1,
        ("watch_folded_total",): 3,
    }
    assert {key: found.get(key) for key in expected} == expected
    # unknown is not zero
    assert ("trunk_rtt_seconds", "capture", "acme-2", "acme") not in found


def test_the_states_of_a_trunk_are_those_that_it_can_have() -> None:
    assert set(TRUNK_STATES) == {UNKNOWN, ACTIVE, TRYING, INACTIVE, DISABLED}


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
@pytest.mark.parametrize("watch", [WATCH, WatchFigures(), None])
def test_a_page_with_what_is_watched_is_read_by_prometheus_own_parser(
    accept: str, watch: WatchFigures | None
) -> None:
    found = families(figures(busy(), watch=watch), accept)
    assert ("sipsidecar_incidents_open" in found) is (watch is not None)
    assert ("sipsidecar_kpi_ratio" in found) is (watch is WATCH)


def heplify(said: Figures, accept: str = TEXT) -> dict[tuple[str, ...], float]:
    """Samples of heplify-server's names, by their labels in the order of those names."""
    body, _ = Metrics(lambda: said, heplify_names=True).render(accept)
    read = openmetrics_parser if accept is OPENMETRICS else parser
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in read.text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name.startswith("heplify_")
    }


def test_heplify_s_names_are_there_only_when_they_are_wanted() -> None:
    assert "heplify" not in page(figures(busy(), watch=WATCH))
    assert {name for name, *_ in heplify(figures(busy(), watch=WATCH))} == {
        "heplify_packets_total",
        "heplify_method_response",
        "heplify_kpi_srd",
        "heplify_kpi_rrd",
    }


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
def test_dashboards_for_heplify_find_attempts_and_finals_by_trunk(accept: str) -> None:
    found = heplify(figures(busy(), watch=WATCH), accept)
    # labels: method, response, target_name
    invites = {
        response: value
        for (name, *labels), value in found.items()
        if name == "heplify_method_response" and labels[0] == "INVITE"
        for response in labels[1:2]
    }
    # what was inferred had no message, what nobody saw has no code
    assert invites == {"INVITE": 64, "200": 40, "486": 7, "other": 3, "503": 7}
    assert found["heplify_method_response", "BYE", "200", "acme"] == 38
    assert found["heplify_kpi_srd", "acme"] == 400_000_000
    assert found["heplify_kpi_rrd", "unknown"] == 20_000_000
    registers = sum(busy().registrations.values())
    assert found["heplify_method_response", "REGISTER", "REGISTER", "unknown"] == registers > 0
    assert found["heplify_packets_total", "sip"] == busy().received_by_kind["sip"]


def test_without_trunks_heplify_s_figures_are_those_of_all_calls() -> None:
    snapshot = busy()
    kpi = KpiFigures(window_seconds=300.0, scopes=WATCH.kpi.scopes[:1] if WATCH.kpi else ())
    nothing: dict[tuple[str, ...], float] = {}
    for watch, extra in ((None, nothing), (WatchFigures(kpi=kpi), {("BYE", "200"): 39.0})):
        found = heplify(figures(snapshot, watch=watch))
        finals = {
            tuple(labels[:2]): value
            for (name, *labels), value in found.items()
            if name == "heplify_method_response" and labels[0] in ("INVITE", "BYE")
        }
        assert {labels[-1] for (name, *labels) in found if name.startswith("heplify_method")} == {
            ""
        }
        assert finals["INVITE", "INVITE"] == sum(snapshot.finals.values())
        assert finals["INVITE", "200"] == sum(
            count
            for (_, code, origin), count in snapshot.finals.items()
            if code == "200" and origin not in ("inferred", "esl")
        )
        assert {key: value for key, value in finals.items() if key[0] == "BYE"} == extra


# -------------------------------------------------------------------------------------- strangers


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
def test_no_text_of_a_switch_is_on_the_page(accept: str) -> None:
    said = after_strangers_switches(300)
    assert [one.name for one in said.switches] == ["fs1", "other"]
    assert [one.gateways for one in said.switches] == [{"unknown": 256}] * 2
    text = page(said, accept)
    assert "evil" not in text.lower()
    assert text.isascii()
    families(said, accept)


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
def test_no_byte_of_a_stranger_is_on_the_page(accept: str) -> None:
    said = after_hostile_input(300)
    assert said.pipeline.received > 3000
    assert said.pipeline.finals
    assert said.pipeline.pings
    assert said.pipeline.registrations
    text = page(said, accept)
    assert "evil" not in text.lower()
    assert "192.0.2." not in text
    assert text.isascii()
    families(said, accept)


CODES = {"unknown", "other", *map(str, KNOWN_CODES)}
DIRECTIONS = {"caller_to_callee", "callee_to_caller", "unknown"}
CLASSES = {"2xx", "3xx", "4xx", "5xx", "6xx", "unknown"}
ALLOWED = {
    ("packets_kind", "kind"): {kind.name.lower().replace("_", "-") for kind in hep.Kind},
    ("packets_refused", "reason"): {*hep.WHYS, *REFUSED_KINDS.values()},
    ("packets_dropped", "reason"): {*batch.LOSSES, "not-configured"},
    ("packets_odd", "what"): {
        "hep-1", "trailing-bytes", "overdeclared-length", "no-address", "truncated-sip",
        "stream-evicted",
    },
    ("tcp_events", "event"): {"accepted"},
    ("rows_stored", "table"): set(batch.WORTH),
    ("rows_waiting", "table"): set(batch.WORTH),
    ("rows_dropped", "table"): set(batch.WORTH),
    ("rows_dropped", "reason"): set(batch.LOSSES),
    ("batch_failures", "reason"): {"unavailable", "rejected", "slow", "spool", "renumbered"},
    ("rows_refused", "table"): set(batch.WORTH),
    ("rows_spooled", "table"): set(batch.WORTH),
    ("rows_replayed", "table"): set(batch.WORTH),
    ("spool_rows", "table"): set(batch.WORTH),
    ("default_rows", "table"): set(batch.WORTH),
    ("http_events", "event"): {"unauthorized"},
    ("live_calls", "state"): {"trying", "ringing", "answered"},
    ("calls", "class"): CLASSES,
    ("calls", "code"): CODES,
    ("calls", "origin"): {"callee", "caller", "proxy", "admission", "inferred", "esl", "unknown"},
    ("attempts", "class"): CLASSES,
    ("attempts", "code"): CODES,
    ("registrations", "code"): CODES,
    ("pings", "code"): CODES,
    ("mos", "scale"): {"nb", "wb", "fb"},
    ("mos", "direction"): DIRECTIONS,
    ("media_loss_ratio", "direction"): DIRECTIONS,
    ("media_jitter_seconds", "direction"): DIRECTIONS,
    ("findings", "finding"): set(KINDS),
    ("media_reports", "what"): set(REPORTS),
    ("media_unrated", "why"): set(UNRATED),
    ("limits", "cap"): {"calls", "facts", "lingering", "transactions", "agents", "streams",
        "memory", "media", "media-reports", "media-addresses", "legs", "leg-links",
    },
    ("agent_packets", "agent"): {"edge", "other"},
    ("agent_last_seen_seconds", "agent"): {"edge", "other"},
    ("agent_clock_skew_seconds", "agent"): {"edge", "other"},
    ("build_info", "version"): {"1.2.3"},
    ("freeswitch_gateways", "state"): set(GATEWAY_STATES),
    ("freeswitch_limits", "cap"): set(SWITCH_CAPS),
    ("freeswitch_connection_events", "event"): {"lost", "errors"},
    ("incidents_open", "category"): {"5xx", "trunk-down"},
    ("incidents_open", "severity"): {"page"},
    ("alerts", "receiver"): {"duty"},
    ("alerts", "result"): {"sent", "failed"},
    ("timeline_events", "kind"): {"trunk"},
    ("trunk_state", "state"): set(TRUNK_STATES),
    ("kpi_setups", "what"): {"attempts", "answered"},
    ("kpi_ratio", "measure"): {"asr", "ner"},
    ("kpi_mos", "scale"): {"nb"},
    ("kpi_limits", "cap"): {"cohorts"},
    ("kpi_delay_seconds", "measure"): {"pdd", "rrd"},
    ("kpi_delay_seconds", "quantile"): {"0.5", "0.95"},
    ("kpi_finals", "class"): CLASSES | {"admission"},
    **{
        (f"kpi_{name}", label): allowed
        for name in ("setups", "ratio", "mos", "delay_seconds", "acd_seconds", "finals")
        for label, allowed in (
            ("scope", {"trunk", "global", "registrations"}),
            ("value", {"acme", ""}),
        )
    },
    **{
        (f"trunk_{name}", label): allowed
        for name in (
            "state", "rtt_seconds", "state_age_seconds", "certificate_left_seconds", "failures"
        )
        for label, allowed in (
            ("peer", {"acme-1", "acme-2"}),
            ("trunk", {"acme"}),
            ("by", {"probe", "capture"}),
        )
    },
    **{
        (f"freeswitch_{name}", "switch"): {"fs1", "other"}
        for name in (
            "up", "sessions", "sessions_max", "sessions_per_second", "sessions_per_second_limit",
            "idle_cpu_ratio", "live_legs", "heartbeat_age_seconds", "lag_seconds", "registrations",
            "registrations_approximate", "events", "reconnects", "restarts", "drift", "gateways",
            "refused", "limits", "connection_events",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        lambda: figures(busy()),
        lambda: figures(heard()),
        lambda: after_hostile_input(1000),
        lambda: figures(busy(), switches=(SWITCH,)),
        lambda: after_strangers_switches(300),
        lambda: figures(busy(), watch=WATCH),
    ],
    ids=["demo", "media", "hostile", "switch", "hostile-switch", "watch"],
)
def test_every_label_has_a_value_of_a_fixed_set(said: Callable[[], Figures]) -> None:
    for family in families(said()).values():
        name = family.name.removeprefix("sipsidecar_")
        if not family.name.startswith("sipsidecar_"):
            continue
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label != "le":
                    assert value in ALLOWED[name, label], (name, label)


def test_thousands_of_strangers_make_no_more_series_than_hundreds() -> None:
    def series(said: Figures) -> set[tuple[str, ...]]:
        return {
            (sample.name, *sample.labels.values())
            for family in families(said).values()
            for sample in family.samples
        }

    few, many = series(after_hostile_input(900)), series(after_hostile_input(2000))
    assert many == few
