from bisect import bisect_left
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.pipeline import Pipeline
from sipsidecar.signals.snapshot import (
    DELAY_BOUNDS,
    JITTER_BOUNDS,
    KNOWN_CODES,
    LOSS_BOUNDS,
    MOS_BOUNDS,
    NO_SPOOL,
    WRITE_BOUNDS,
    CaptureFigures,
    Figures,
    Histogram,
    MemoryFigures,
    StorageFigures,
    SwitchFigures,
    code_label,
    health,
)

STORAGE = StorageFigures(
    up=True,
    rows_stored={},
    rows_waiting={},
    rows_dropped={},
    packets_stored=0,
    packets_quarantined=0,
    packets_waiting=0,
    packets_dropped={},
    queue_bytes=0,
    queue_limit_bytes=1000,
    write_seconds=Histogram(WRITE_BOUNDS),
    write_failures={},
    server_restarts=0,
)
CAPTURE = CaptureFigures(
    kernel_drops=0, buffer_bytes=1000, buffer_used_bytes=0, tcp_connections=0, tcp_events={}
)
FIGURES = Figures(
    version="1",
    pipeline=Pipeline().snapshot(0.0),
    storage=STORAGE,
    capture=CAPTURE,
    loop_lag_seconds=0.0,
    uptime_seconds=1.0,
    agent_names={},
)


def figures(**changes: Any) -> Figures:
    """Figures with some fields of any of their parts changed."""
    parts: dict[str, Any] = {}
    for part in ("pipeline", "storage", "capture"):
        old = getattr(FIGURES, part)
        mine = {name: changes.pop(name) for name in list(changes) if name in old.__struct_fields__}
        parts[part] = msgspec.structs.replace(old, **mine)
    return msgspec.structs.replace(FIGURES, **parts, **changes)


# --------------------------------------------------------------------------------------- histograms


@pytest.mark.parametrize(
    "bounds", [DELAY_BOUNDS, WRITE_BOUNDS, MOS_BOUNDS, LOSS_BOUNDS, JITTER_BOUNDS]
)
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert bounds[0] >= 0


def test_a_call_without_any_loss_is_told_from_one_with_a_little() -> None:
    histogram = Histogram(LOSS_BOUNDS)
    histogram.observe(0.0)
    histogram.observe(0.0001)
    assert histogram.counts[:2] == [1, 1]


def test_every_mos_and_every_share_of_loss_has_a_bucket() -> None:
    assert (MOS_BOUNDS[0], MOS_BOUNDS[-1]) == (1.0, 4.5)
    assert (LOSS_BOUNDS[0], LOSS_BOUNDS[-1]) == (0.0, 1.0)


def test_a_snapshot_says_nothing_of_media_until_there_is_some() -> None:
    said = FIGURES.pipeline
    assert not any((said.mos, said.loss, said.jitter, said.findings, said.reports, said.unrated))


@given(st.lists(st.floats(0, 1e6)))
def test_each_value_is_in_the_first_bucket_that_is_not_below_it(values: list[float]) -> None:
    histogram = Histogram(DELAY_BOUNDS)
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert histogram.total == pytest.approx(sum(values))
    for index, count in enumerate(histogram.counts):
        assert count == sum(1 for value in values if bisect_left(DELAY_BOUNDS, value) == index)


@pytest.mark.parametrize("bound", DELAY_BOUNDS)
def test_a_value_on_a_bound_belongs_to_the_bucket_up_to_it(bound: float) -> None:
    histogram = Histogram(DELAY_BOUNDS)
    histogram.observe(bound)
    assert histogram.counts[DELAY_BOUNDS.index(bound)] == 1


# ------------------------------------------------------------------------------------------- codes


@given(st.one_of(st.none(), st.integers(-(2**70), 2**70)))
def test_no_code_makes_a_label_that_is_not_known(code: int | None) -> None:
    assert code_label(code) in {"unknown", "other", *map(str, KNOWN_CODES)}


def test_a_code_of_the_registry_is_its_own_label_and_others_share_one() -> None:
    assert code_label(486) == "486"
    assert code_label(499) == code_label(699) == code_label(299) == "other"
    assert code_label(None) == "unknown"


# ------------------------------------------------------------------------------------------ ledger

SIDES = st.integers(0, 10**9)


SPOOL = msgspec.structs.replace(NO_SPOOL, limit_bytes=1000)


@given(stored=SIDES, waiting=SIDES, held=SIDES, quarantined=SIDES, refused=SIDES, dropped=SIDES,
       spooled=SIDES, inherited=SIDES, missing=st.integers(-5, 5))  # fmt: skip
def test_the_balance_is_what_is_missing(
    stored: int,
    waiting: int,
    held: int,
    quarantined: int,
    refused: int,
    dropped: int,
    spooled: int,
    inherited: int,
    missing: int,
) -> None:
    known = stored + waiting + held + quarantined + refused + dropped + spooled - inherited
    said = figures(
        received=known + missing,
        spool=msgspec.structs.replace(SPOOL, packets=spooled, inherited=inherited),
        held=held,
        refused={"chunk": refused, "length": 0},
        packets_stored=stored,
        packets_quarantined=quarantined,
        packets_waiting=waiting,
        packets_dropped={"queue-full": dropped},
        kernel_drops=7,
    ).ledger()
    assert said["balance"] == missing
    assert said == {
        "received": known + missing,
        "inherited": inherited,
        "stored": stored,
        "waiting": waiting + held,
        "spooled": spooled,
        "quarantined": quarantined,
        "refused": refused,
        "dropped": dropped,
        "balance": missing,
        "kernel_drops": 7,
    }


# ------------------------------------------------------------------------------------------ health


def failing(said: Figures) -> list[str]:
    return [check.name for check in health(said) if not check.ok]


def test_a_sidecar_that_does_its_work_has_no_failing_check() -> None:
    assert failing(figures()) == []


@pytest.mark.parametrize(
    ("name", "fine", "bad"),
    [
        ("database", {"up": True}, {"up": False}),
        ("queue", {"queue_bytes": 899}, {"queue_bytes": 900}),
        ("receive_buffer", {"buffer_used_bytes": 899}, {"buffer_used_bytes": 900}),
        ("loop_lag_seconds", {"loop_lag_seconds": 0.99}, {"loop_lag_seconds": 1.0}),
        ("ledger_balance", {"received": 0}, {"received": 1}),
        (
            "spool",
            {"spool": msgspec.structs.replace(SPOOL, bytes=899)},
            {"spool": msgspec.structs.replace(SPOOL, bytes=900)},
        ),
        ("memory", {"memory": MemoryFigures(99, 100, 1.0)}, {"memory": MemoryFigures(100, 100, 1)}),
        ("default_partition_rows", {"default_rows": {"calls": 0}}, {"default_rows": {"calls": 1}}),
        ("warming", {"warming": False}, {"warming": True}),
        ("rebuilding", {"rebuilding": False}, {"rebuilding": True}),
    ],
)
def test_each_check_fails_alone_at_its_limit(
    name: str, fine: dict[str, Any], bad: dict[str, Any]
) -> None:
    assert failing(figures(**fine)) == []
    assert failing(figures(**bad)) == [name]


def test_each_check_shows_what_it_read_and_where_its_limit_is() -> None:
    for check in health(figures()):
        assert check.reading is not None
        assert check.limit is not None or check.name == "database"


def required(said: Figures) -> list[str]:
    return [check.name for check in health(said) if not check.ok and check.required]


def test_without_a_spool_a_sidecar_needs_its_database_with_one_it_does_its_work_without() -> None:
    assert required(figures(up=False)) == ["database"]
    assert required(figures(up=False, spool=SPOOL)) == []


def test_warnings_do_not_make_a_sidecar_unready() -> None:
    said = figures(warming=True, default_rows={"calls": 1}, memory=MemoryFigures(2, 1, 0.1))
    assert len(failing(said)) == 3
    assert required(said) == []


def test_a_failing_database_comes_with_advice() -> None:
    (check,) = [check for check in health(figures(up=False)) if check.name == "database"]
    assert check.advice


def test_a_sidecar_without_a_socket_has_a_receive_buffer_that_is_not_full() -> None:
    assert failing(figures(buffer_bytes=0, buffer_used_bytes=0)) == []


# ---------------------------------------------------------------------------------------- switches


def switch(**changes: Any) -> SwitchFigures:
    fine: dict[str, Any] = {
        "connected_seconds": 1000.0,
        "heartbeat_age_seconds": 5.0,
        "sessions": 10,
        "max_sessions": 100,
        "live_legs": 12,
        "watchdog_seconds": 45.0,
    }
    return SwitchFigures("fs1", **(fine | changes))


@pytest.mark.parametrize(
    ("trouble", "fine", "bad"),
    [
        ("away", {}, {"connected_seconds": None}),
        ("silent", {"heartbeat_age_seconds": 44.9}, {"heartbeat_age_seconds": 45.0}),
        ("full", {"live_legs": 89}, {"live_legs": 90}),
        ("full", {"live_legs": None, "sessions": 89}, {"live_legs": None, "sessions": 90}),
        ("full", {"max_sessions": 5, "live_legs": 4}, {"max_sessions": 5, "live_legs": 5}),
        (
            "silent",
            {"heartbeat_age_seconds": None, "connected_seconds": 20.0},
            {"heartbeat_age_seconds": None, "connected_seconds": 60.0},
        ),
    ],
)
def test_a_switch_is_in_order_while_it_is_connected_beats_in_time_and_has_room(
    trouble: str, fine: dict[str, Any], bad: dict[str, Any]
) -> None:
    assert switch(**fine).trouble is None
    assert switch(**bad).trouble == trouble
    said = figures(switches=(switch(**bad),))
    (check,) = [check for check in health(said) if not check.ok]
    assert check.name == "freeswitch_fs1"
    assert check.advice
    assert not check.required
    assert failing(figures(switches=(switch(**fine),))) == []


def test_the_heartbeat_of_before_a_gap_does_not_make_a_new_connection_silent() -> None:
    assert switch(heartbeat_age_seconds=300.0, connected_seconds=3.0).trouble is None


@pytest.mark.parametrize("most", [None, 0])
def test_a_switch_whose_limit_is_unknown_is_not_full(most: int | None) -> None:
    assert switch(max_sessions=most).trouble is None


def test_the_check_of_a_switch_shows_its_legs_and_from_where_on_it_is_full() -> None:
    def read(one: SwitchFigures) -> list[tuple[Any, Any]]:
        found = health(figures(switches=(one,)))
        return [(check.reading, check.limit) for check in found if "freeswitch" in check.name]

    assert read(switch()) == [(12, 90)]
    assert read(switch(live_legs=95)) == [(95, 90)]
    assert read(switch(max_sessions=None)) == [("up", None)]
    assert read(switch(connected_seconds=None)) == [("away", None)]
    assert read(switch(heartbeat_age_seconds=60.0)) == [("silent", None)]


def test_switches_that_are_not_configured_have_no_check() -> None:
    assert failing(figures(switches=(SwitchFigures("other", configured=False),))) == []
