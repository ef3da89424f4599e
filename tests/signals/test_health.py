from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.pipeline import Pipeline
from sipsidecar.signals import health
from sipsidecar.signals.health import Host, Probed, Signals, readings
from sipsidecar.signals.rules import MEASURES
from sipsidecar.signals.snapshot import (
    WRITE_BOUNDS,
    CaptureFigures,
    Figures,
    Histogram,
    StorageFigures,
    SwitchFigures,
)

FIGURES = Figures(
    version="1",
    pipeline=Pipeline().snapshot(0.0),
    storage=StorageFigures(
        up=True,
        rows_stored={},
        rows_waiting={},
        rows_dropped={},
        packets_stored=0,
        packets_quarantined=0,
        packets_waiting=0,
        packets_dropped={},
        queue_bytes=250,
        queue_limit_bytes=1000,
        write_seconds=Histogram(WRITE_BOUNDS),
        write_failures={},
        server_restarts=0,
    ),
    capture=CaptureFigures(
        kernel_drops=0, buffer_bytes=1000, buffer_used_bytes=0, tcp_connections=0, tcp_events={}
    ),
    loop_lag_seconds=0.12,
    uptime_seconds=1.0,
    agent_names={},
)


def with_switches(*switches: SwitchFigures) -> Figures:
    return msgspec.structs.replace(FIGURES, switches=switches)


def with_storage(**more: Any) -> Figures:
    storage = msgspec.structs.replace(FIGURES.storage, **more)
    return msgspec.structs.replace(FIGURES, storage=storage)


def switch(name: str = "fs1", **more: Any) -> SwitchFigures:
    well: dict[str, Any] = {
        "connected_seconds": 300.0,
        "heartbeat_age_seconds": 7.0,
        "sessions": 40,
        "live_legs": 50,
        "max_sessions": 200,
        "sessions_per_second": 12,
        "sessions_per_second_limit": 30,
        "idle_cpu": 0.75,
    }
    return SwitchFigures(name, **well | more)


def said(
    figures: Figures = FIGURES, host: Host | None = None, probed: tuple[Probed, ...] = ()
) -> dict[health.Reading, float | None]:
    return readings(figures, host or Host(), probed, {})


# --------------------------------------------------------------------------------- readings


def test_every_measure_of_health_has_a_reading() -> None:
    found = readings(FIGURES, Host(1.0, 2.0, 3.0), (), {"load": 7.0})
    named = {measure for measure, _ in found}
    assert named == {name for name, measure in MEASURES.items() if measure.kind == "health"}


def test_what_the_host_and_the_sidecar_say_is_read() -> None:
    found = said(host=Host(1.0, 2.0, 3.0))
    assert found["cpu_percent", ""] == 1.0
    assert found["memory_percent", ""] == 2.0
    assert found["disk_percent", ""] == 3.0
    assert found["loop_lag_ms", ""] == pytest.approx(120.0)
    assert found["queue_percent", ""] == 25.0
    assert found["database", ""] == 0.0
    assert said(with_storage(up=False))["database", ""] == 1.0


def test_what_is_unknown_is_none_and_never_a_figure() -> None:
    found = said(with_storage(queue_limit_bytes=0))
    for measure in MEASURES:
        if MEASURES[measure].kind == "health" and measure not in {
            "database",
            "loop_lag_ms",
            "signal",
        }:
            assert found[measure, ""] is None, measure


def test_each_freeswitch_is_read_and_the_worst_of_them() -> None:
    found = said(
        with_switches(
            switch(),
            switch("fs2", live_legs=None, sessions=190, sessions_per_second=0, idle_cpu=0.2),
            switch("other", configured=False, sessions=199, live_legs=199, idle_cpu=0.0),
        )
    )
    assert found["freeswitch_sessions_percent", "fs1"] == 25.0
    assert found["freeswitch_sessions_percent", "fs2"] == 95.0
    assert found["freeswitch_sessions_percent", ""] == 95.0
    assert found["freeswitch_rate_percent", "fs1"] == 40.0
    assert found["freeswitch_rate_percent", "fs2"] == 0.0
    assert found["freeswitch_rate_percent", ""] == 40.0
    assert found["freeswitch_idle_cpu_percent", "fs1"] == 75.0
    assert found["freeswitch_idle_cpu_percent", "fs2"] == 20.0
    assert found["freeswitch_idle_cpu_percent", ""] == 20.0
    assert ("freeswitch_idle_cpu_percent", "other") not in found


@pytest.mark.parametrize(
    "more",
    [
        {"connected_seconds": None},
        {"heartbeat_age_seconds": None},
        {"heartbeat_age_seconds": 45.0},
        # connected again just now: what it said before is old
        {"heartbeat_age_seconds": 600.0, "connected_seconds": 1.0},
    ],
)
def test_a_freeswitch_that_is_not_heard_now_is_unknown(more: dict[str, Any]) -> None:
    found = said(with_switches(switch(**more)))
    for what in ("sessions", "rate", "idle_cpu"):
        assert found[f"freeswitch_{what}_percent", "fs1"] is None
        assert found[f"freeswitch_{what}_percent", ""] is None
    found = said(with_switches(switch(**more), switch("fs2")))
    assert found["freeswitch_sessions_percent", ""] == 25.0


@pytest.mark.parametrize(
    ("measure", "more"),
    [
        ("freeswitch_sessions_percent", {"max_sessions": None}),
        ("freeswitch_sessions_percent", {"max_sessions": 0}),
        ("freeswitch_sessions_percent", {"live_legs": None, "sessions": None}),
        ("freeswitch_rate_percent", {"sessions_per_second": None}),
        ("freeswitch_rate_percent", {"sessions_per_second_limit": None}),
        ("freeswitch_idle_cpu_percent", {"idle_cpu": None}),
    ],
)
def test_a_part_that_a_freeswitch_did_not_say_is_unknown(
    measure: str, more: dict[str, Any]
) -> None:
    assert said(with_switches(switch(**more)))[measure, "fs1"] is None
    assert said(with_switches(switch(**more)))[measure, ""] is None


def test_one_check_that_fails_is_the_worst_and_one_unknown_is_not() -> None:
    well, failing, unknown = Probed("a", True), Probed("b", False), Probed("c", None)
    found = said(probed=(well, failing, unknown))
    assert [found["check", name] for name in ("a", "b", "c", "")] == [0.0, 1.0, None, 1.0]
    assert said(probed=(well, unknown))["check", ""] == 0.0
    assert said(probed=(unknown,))["check", ""] is None


def test_signals_are_read_under_their_names() -> None:
    found = readings(FIGURES, Host(), (), {"gpu": 97.5, "llm": None})
    assert found["signal", "gpu"] == 97.5
    assert found["signal", "llm"] is None


# ---------------------------------------------------------------------------------- signals


def test_a_signal_holds_for_its_time_and_is_unknown_after_it() -> None:
    signals = Signals(["gpu", "llm"])
    assert signals.values(0.0) == {"gpu": None, "llm": None}
    assert signals.set("gpu", 0.0, 30.0, 100.0)
    assert signals.values(129.9) == {"gpu": 0.0, "llm": None}
    assert signals.values(130.0) == {"gpu": None, "llm": None}
    assert signals.set("gpu", 97.0, 30.0, 131.0)
    assert signals.set("gpu", 12.0, 1.0, 132.0)
    assert signals.values(132.5)["gpu"] == 12.0
    assert signals.values(133.0)["gpu"] is None


def test_a_signal_holds_a_day_at_most() -> None:
    signals = Signals(["gpu"])
    assert signals.set("gpu", 1.0, 1e12, 0.0)
    assert signals.values(health.LONGEST_TTL - 1) == {"gpu": 1.0}
    assert signals.values(health.LONGEST_TTL) == {"gpu": None}


@given(st.lists(st.text("know!\0", max_size=5)))
def test_names_that_no_rule_knows_are_never_kept(names: list[str]) -> None:
    signals = Signals(["known!"])
    for name in names:
        assert not signals.set(name, 1.0, 10.0, 0.0)
    assert signals.values(1.0) == {"known!": None}


@pytest.mark.parametrize(
    ("value", "ttl"),
    [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))],
)
def test_what_is_no_signal_is_refused(value: float, ttl: float) -> None:
    signals = Signals(["gpu"])
    with pytest.raises(ValueError, match="expected a number"):
        signals.set("gpu", value, ttl, 0.0)
    assert signals.values(0.0) == {"gpu": None}


def test_after_a_reload_known_signals_still_hold_and_others_are_gone() -> None:
    before = Signals(["gpu", "llm"])
    before.set("gpu", 1.0, 30.0, 0.0)
    before.set("llm", 2.0, 30.0, 0.0)
    signals = Signals(["gpu", "tts"])
    signals.take_over(before)
    assert signals.values(1.0) == {"gpu": 1.0, "tts": None}
    assert not signals.set("llm", 2.0, 30.0, 1.0)
