import math
from itertools import accumulate
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.calls.events import CallRecord, RegistrationRecord, Setup
from sipsidecar.signals import ratios as module
from sipsidecar.signals.minutes import (
    DELAY_BOUNDS_MS,
    LOSS_BOUNDS_PERCENT,
    MINUTE,
    MOS_BOUNDS,
    KpiMinute,
    Minutes,
)
from sipsidecar.signals.ratios import Ratios, added, kpi_figures, kpi_slices, percentile, ratios
from sipsidecar.signals.snapshot import KpiScope

T0 = 1_795_000_020_000_000 // MINUTE * MINUTE


def row(**counts: Any) -> KpiMinute:
    return KpiMinute(received_at=T0 + MINUTE, minute_at=T0, source="call", **counts)


FULL = row(
    attempts=110, redirected=2, unknown=10, seizures=95, answered=57, effective=76,
    session_effective=70, ineffective=8, failovers=11, ended=50, completed=40, dropped=10,
    short_calls=4, talk_seconds=2400.0, talk_count=40, one_way=1, no_media=2, dead_air=3, low_mos=4,
    registers=20, registers_failed=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("asr_percent", 100 * 57 / 95),
        ("ner_percent", 100 * 76 / 95),
        ("ser_percent", 100 * 57 / 98),
        ("seer_percent", 100 * 70 / 98),
        ("isa_percent", 8.0),
        ("scr_percent", 40.0),
        ("abr_percent", 57.0),
        ("failover_percent", 10.0),
        ("acd_seconds", 60.0),
        ("short_percent", 10.0),
        ("dropped_percent", 20.0),
        ("one_way_percent", 2.0),
        ("no_media_percent", 4.0),
        ("dead_air_percent", 6.0),
        ("low_mos_percent", 8.0),
        ("ira_percent", 5.0),
    ],
)
def test_a_ratio_is_what_its_definition_says(name: str, value: float) -> None:
    assert getattr(ratios(FULL), name) == pytest.approx(value)


def test_of_nothing_nothing_is_said() -> None:
    said = msgspec.structs.asdict(ratios(row()))
    assert set(said.values()) == {None}
    # nobody knows how they ended: that is no failure
    said = msgspec.structs.asdict(ratios(row(attempts=3, unknown=3)))
    assert {name for name, value in said.items() if value is not None} == {"failover_percent"}
    assert ratios(row(attempts=2, redirected=2)).ser_percent is None


def test_means_and_percentiles_are_of_their_own_buckets() -> None:
    delays = tuple(100 if place == 2 else 0 for place in range(len(DELAY_BOUNDS_MS) + 1))
    opinions = tuple(10 if place == 7 else 0 for place in range(len(MOS_BOUNDS) + 1))
    assert (MOS_BOUNDS[6], MOS_BOUNDS[7]) == (3.5, 3.7)
    for name in ("pdd", "setup", "failed_srd", "rrd"):
        said = ratios(
            row(**{f"{name}_count": 100, f"{name}_sum_ms": 40_000.0, f"{name}_buckets": delays})
        )
        assert getattr(said, f"{name}_ms") == 400.0
        assert getattr(said, f"{name}_p50_ms") == pytest.approx(375.0)
        assert getattr(said, f"{name}_p95_ms") == pytest.approx(487.5)
    for scale in ("nb", "wb", "fb"):
        counts = {f"mos_{scale}_count": 10, f"mos_{scale}_sum": 36.0}
        said = ratios(row(**counts, **{f"mos_{scale}_buckets": opinions}))
        assert getattr(said, f"mos_{scale}") == 3.6
        assert getattr(said, f"mos_{scale}_p05") == pytest.approx(3.51)
    said = ratios(row(loss_count=4, loss_sum_percent=2.0, jitter_count=2, jitter_sum_ms=6.0, rtt_count=1, rtt_sum_ms=80.0))  # fmt: skip
    assert (said.loss_percent, said.jitter_ms, said.rtt_ms) == (0.5, 3.0, 80.0)


@given(
    st.lists(st.integers(0, 50), min_size=len(DELAY_BOUNDS_MS) + 1, max_size=len(DELAY_BOUNDS_MS) + 1),
    st.floats(0.001, 1.0),
)  # fmt: skip
def test_a_percentile_is_in_the_bucket_of_its_rank(buckets: list[int], share: float) -> None:
    found = percentile(buckets, DELAY_BOUNDS_MS, share)
    total = sum(buckets)
    if not total:
        assert found is None
        return
    edges = (0.0, *DELAY_BOUNDS_MS, DELAY_BOUNDS_MS[-1])
    running = list(accumulate(buckets))
    place = next(at for at, seen in enumerate(running) if buckets[at] and seen >= share * total)
    assert found is not None
    assert edges[place] - 1e-6 <= found <= edges[place + 1] + 1e-6


@given(st.lists(st.floats(0, 60_000), min_size=1, max_size=60))
def test_a_percentile_of_more_is_never_less(delays: list[float]) -> None:
    made = Minutes()
    for ms in delays:
        made.receive_setup(Setup(call(200, pdd_ms=ms), ()), T0)
    found = made.live("call", (), T0)[0].pdd_buckets
    values = [percentile(found, DELAY_BOUNDS_MS, share / 20) for share in range(1, 21)]
    assert values == sorted(v for v in values if v is not None)


def test_what_is_under_the_first_or_over_the_last_bound_is_at_it() -> None:
    clean = (5, *[0] * len(LOSS_BOUNDS_PERCENT))
    assert percentile(clean, LOSS_BOUNDS_PERCENT, 0.95) == 0.0
    lost = (*[0] * len(LOSS_BOUNDS_PERCENT), 5)
    assert percentile(lost, LOSS_BOUNDS_PERCENT, 0.95) == LOSS_BOUNDS_PERCENT[-1]
    best = (*[0] * len(MOS_BOUNDS), 5)
    assert percentile(best, MOS_BOUNDS, 1.0, low=1.0, high=5.0) == 5.0
    assert percentile(best, MOS_BOUNDS, 1.5) == MOS_BOUNDS[-1]
    worst = (5, *[0] * len(MOS_BOUNDS))
    assert percentile(worst, MOS_BOUNDS, 1.0, low=1.0, high=5.0) == MOS_BOUNDS[0]


def test_rows_add_up_in_every_field() -> None:
    whole = added([FULL, FULL, row()])
    assert ratios(whole) == ratios(FULL)
    assert (whole.attempts, whole.talk_seconds, whole.source) == (220, 4800.0, "call")
    one = row(pdd_count=1, pdd_buckets=(1, *[0] * len(DELAY_BOUNDS_MS)))
    assert added([row(), one, one]).pdd_buckets == (2, *[0] * len(DELAY_BOUNDS_MS))
    with pytest.raises(ValueError, match="nothing"):
        added([])


# --------------------------------------------------------------------------------- for metrics


def call(code: int | None = 200, **more: Any) -> CallRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "received_at": 0, "started_at": 0}
    answered = code is not None and 200 <= code < 300
    said = {"final_code": code, "answered": answered, "seizure": True}
    return CallRecord(**whole | said | more)


def scopes(made: Minutes, **values: list[str]) -> dict[tuple[str, str], KpiScope]:
    return {(one.scope, one.value): one for one in kpi_figures(made, values, T0).scopes}


def test_only_configured_values_are_shown_and_all_calls_always() -> None:
    made = Minutes()
    for trunk, code in (("acme", 200), ("acme", 503), ("stray", 200)):
        whole = call(code, call_id=trunk, trunk=trunk, tenant="t", pdd_ms=400.0)
        made.receive_setup(Setup(whole, ()), T0)
    ended = call(200, call_id="acme", trunk="acme", tenant="t", talk_ms=30_000.0, end_source="bye", mos=4.0, mos_scale="nb")  # fmt: skip
    made.receive_call(ended, T0)
    found = scopes(made, trunk=["acme", "idle"], tenant=["t"])
    assert set(found) == {
        ("global", ""), ("trunk", "acme"), ("trunk", "idle"), ("tenant", "t"), ("registrations", ""),
    }  # fmt: skip
    acme = found["trunk", "acme"]
    assert (acme.counts["attempts"], acme.counts["answered"], acme.ratios["asr"]) == (2, 1, 0.5)
    assert acme.codes == {(200, ""): 1, (503, ""): 1}
    assert acme.seconds["pdd", "0.5"] == pytest.approx(0.375)
    assert (acme.acd_seconds, acme.mos, acme.completed) == (30.0, {"nb": 4.0}, 1)
    assert found["global", ""].counts["attempts"] == found["tenant", "t"].counts["attempts"] == 3
    idle = found["trunk", "idle"]
    assert (idle.counts["attempts"], idle.ratios, idle.seconds, idle.codes) == (0, {}, {}, {})


def test_registrations_are_shown_by_themselves() -> None:
    made = Minutes()
    for cseq, code in enumerate((200, 403)):
        made.receive_registration(
            RegistrationRecord(
                call_id="r", branch="b", cseq=cseq, received_at=0, started_at=0, final_code=code,
                rtt_ms=40.0,
            ),
            T0,
        )  # fmt: skip
    said = scopes(made)["registrations", ""]
    assert (said.counts, said.ratios) == ({"registers": 2}, {"ira": 0.5})
    assert said.codes == {(200, ""): 1, (403, ""): 1}
    assert set(said.seconds) == {("rrd", "0.5"), ("rrd", "0.95")}


def test_more_values_than_may_be_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SCOPES", 2)
    said = kpi_figures(Minutes(), {"trunk": ["a", "b", "c"], "tenant": ["t"]}, T0)
    assert [one.value for one in said.scopes] == ["", "t", "a", ""]
    assert said.left_out == 2
    assert said.limits == {"cohorts": 0, "minutes": 0, "calls": 0, "challenges": 0}


def test_every_named_figure_has_a_field_that_is_there() -> None:
    fields = set(Ratios.__struct_fields__)
    assert {field for _, field in module._SHOWN_RATIOS} <= fields
    assert {field for *_, field in module._SHOWN_DELAYS} <= fields
    assert set(module._SHOWN_COUNTS) <= set(KpiMinute.__struct_fields__)
    assert math.isclose(sum(1 for _ in module._SUMMED), len(KpiMinute.__struct_fields__) - 11)


def test_figures_in_slices_are_the_same_and_come_last() -> None:
    values = {"trunk": [str(number) for number in range(120)]}
    *before, last = kpi_slices(Minutes(), values, T0)
    assert before == [None, None, None]  # 121 scopes, 50 at a time
    assert last == kpi_figures(Minutes(), values, T0)
