import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.calls.emodel import (
    ASSUMPTIONS,
    CODEC_ASSUMED,
    CODECS,
    MODE_ASSUMED,
    R_MAX,
    codec_of,
    jitter_buffer,
    mos_of,
    mouth_to_ear,
    r_of,
    rate,
    with_late,
)

VECTORS = json.loads((Path(__file__).parents[1] / "corpus/vectors/emodel.json").read_text())
R_WITHIN, MOS_WITHIN = 1e-3, 1e-4

codecs = st.sampled_from(list(CODECS.values()))
losses = st.floats(0, 100)
delays = st.floats(0, 5000)
bursts = st.floats(0, 50)
modes = st.sampled_from(["idd", "linear"])
scales = st.sampled_from(list(R_MAX))


def near(value: float, within: float) -> Any:
    return pytest.approx(value, abs=within)


# --------------------------------------------------------------------------------------- vectors


def _named(vector: dict[str, Any]) -> str:
    names = ("codec", "loss_pct", "burst_r", "ta_ms", "net_owd_ms", "jitter_ms", "id_mode")
    return " ".join(str(vector[name]) for name in names)


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=_named)
def test_every_vector_is_rated_as_published(vector: dict[str, Any]) -> None:
    codec = CODECS[vector["codec"]]
    delay, late = vector["ta_ms"], 0.0
    if vector["jitter_ms"] is not None:
        buffer, late = jitter_buffer(vector["jitter_ms"], vector["ptime_ms"])
        assert buffer == vector["jb_ms"]
        delay = mouth_to_ear(vector["net_owd_ms"], vector["ptime_ms"], codec, buffer)
    assert delay == near(vector["Ta"], 1e-9)
    assert late == near(vector["late_pct"], 1e-6)
    loss = with_late(vector["loss_pct"], late)
    assert loss == near(vector["Ppl"], 1e-6)
    said = rate(
        codec, loss, burst_ratio=vector["burst_r"], delay_ms=delay, id_mode=vector["id_mode"]
    )
    assert said.r == near(vector["R"], R_WITHIN)
    assert said.mos_cq == near(vector["mos_cq"], MOS_WITHIN)
    assert said.mos_lq == near(vector["mos_lq"], MOS_WITHIN)
    assert R_MAX[said.scale] - said.r_lq == near(vector["Ie_eff"], R_WITHIN)
    assert (said.scale, said.grade) == (vector["scale"].lower(), vector["grade"])


@pytest.mark.parametrize(
    ("name", "loss", "delay", "r", "mos"),
    [
        ("AMRWB-12.65", 0, 50, 116.0, 4.3371),
        ("AMRWB-12.65", 1, 50, 100.528, 3.9434),
        ("AMRWB-23.85", 0, 50, 121.0, 4.4206),
        ("EVS-24.4", 0, 50, 140.8, 4.4436),
        ("EVS-24.4", 2, 50, 122.173, 4.1166),
        ("EVS-13.2", 0, 200, 126.394, 4.2107),
        ("OPUS-FB", 1, 50, 114.819, 3.9294),
    ],
)
def test_wideband_and_fullband_are_rated_on_their_own_scales(
    name: str, loss: float, delay: float, r: float, mos: float
) -> None:
    said = rate(CODECS[name], loss, delay_ms=delay)
    assert said.r == near(r, R_WITHIN)
    assert said.mos_cq == near(mos, MOS_WITHIN)


def test_the_codec_table_has_every_published_row_in_its_order() -> None:
    rows = VECTORS["codecs"]
    assert [name for name in CODECS if name in rows] == list(rows)
    for name, row in rows.items():
        ours = CODECS[name]
        assert ours.name == name
        assert (ours.scale, ours.grade) == (row["scale"].lower(), row["grade"])
        assert (ours.ie, ours.bpl) == (row["Ie"], row["Bpl"])
        assert (ours.alg_delay_ms, ours.clock_rate) == (row["alg_delay_ms"], row["rtp_clock"])


@pytest.mark.parametrize(
    ("name", "ie", "bpl"),
    [
        ("G726-40", 2, 10), ("G726-24", 25, 10), ("G726-16", 50, 10), ("G728-12.8", 20, 10),
        ("GSM-HR", 23, 10), ("G722-WB-56", 20, 4.3), ("G722-WB-48", 31, 4.3), ("unknown", 0, 10),
        ("EVS-9.6", 22.7, 13), ("EVS-16.4", 10.8, 10.3), ("EVS-32", 8.7, 9.3),
        ("EVS-48", 10.2, 9.6),
    ],
)  # fmt: skip
def test_codecs_without_a_vector_have_the_figures_of_g113(name: str, ie: float, bpl: float) -> None:
    assert (CODECS[name].ie, CODECS[name].bpl) == (ie, bpl)


def test_the_modes_of_amr_wb_reach_the_mos_that_g113_gives_them() -> None:
    published = {
        "6.6": 3.51, "8.85": 4.02, "12.65": 4.34, "14.25": 4.39, "15.85": 4.43, "18.25": 4.46,
        "19.85": 4.48, "23.05": 4.49, "23.85": 4.42,
    }  # fmt: skip
    for mode, mos in published.items():
        assert rate(CODECS[f"AMRWB-{mode}"], 0).mos_lq == near(mos, 0.0051)


@pytest.mark.parametrize("point", VECTORS["delay_curves"], ids=lambda point: str(point["d_ms"]))
def test_delay_alone_takes_what_the_curves_say(point: dict[str, float]) -> None:
    delay = point["d_ms"]
    assert rate(CODECS["G711"], 0, delay_ms=delay).r == near(point["R_idd"], R_WITHIN)
    linear = rate(CODECS["G711"], 0, delay_ms=delay, id_mode="linear")
    assert linear.r == near(point["R_linear"], R_WITHIN)


@pytest.mark.parametrize("point", VECTORS["inverse"], ids=lambda point: str(point["mos"]))
def test_a_mos_turns_back_into_the_published_r(point: dict[str, float]) -> None:
    assert r_of(point["mos"]) == near(point["R"], R_WITHIN)
    assert mos_of(point["R"]) == near(point["mos"], MOS_WITHIN)


def test_a_mos_of_three_and_a_half_is_the_published_r() -> None:
    assert r_of(3.5) == near(VECTORS["mos35_R"], R_WITHIN)
    assert mos_of(VECTORS["mos35_R"]) == near(3.5, MOS_WITHIN)


@pytest.mark.parametrize(("name", "published"), VECTORS["loss_for_mos35"].items())
def test_a_mos_of_three_and_a_half_takes_the_published_loss(name: str, published: float) -> None:
    low, high = 0.0, 100.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(CODECS[name], middle).mos_lq > 3.5 else (low, middle)
    assert low == near(published, 1e-3)


def test_the_highest_r_is_the_one_of_all_default_parameters_rounded() -> None:
    full = VECTORS["full_default"]
    assert full["Ro"] - full["Is"] - full["Id"] == near(full["R"], 1e-9)
    assert round(full["R"], 1) == R_MAX["nb"] == rate(CODECS["G711"], 0).r


# ------------------------------------------------------------------------------------ properties


@given(codecs, losses, losses, bursts, st.none() | delays, modes)
def test_more_loss_never_raises_mos(
    codec: Any, one: float, other: float, burst: float, delay: float | None, mode: str
) -> None:
    less, more = sorted((one, other))
    better = rate(codec, less, burst_ratio=burst, delay_ms=delay, id_mode=mode)
    worse = rate(codec, more, burst_ratio=burst, delay_ms=delay, id_mode=mode)
    assert worse.r <= better.r + 1e-9
    assert worse.mos_lq <= better.mos_lq + 1e-9
    assert (worse.mos_cq or 0) <= (better.mos_cq or 0) + 1e-9


@given(codecs, losses, delays, delays, modes)
def test_more_delay_never_raises_mos(
    codec: Any, loss: float, one: float, other: float, mode: str
) -> None:
    less, more = sorted((one, other))
    better = rate(codec, loss, delay_ms=less, id_mode=mode)
    worse = rate(codec, loss, delay_ms=more, id_mode=mode)
    assert worse.r <= better.r + 1e-9
    assert better.mos_cq is not None
    assert worse.mos_cq is not None
    assert worse.mos_cq <= better.mos_cq + 1e-9
    assert worse.mos_lq == better.mos_lq


@given(codecs, losses, bursts, bursts)
def test_loss_in_longer_bursts_never_raises_mos(
    codec: Any, loss: float, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    better, worse = (rate(codec, loss, burst_ratio=each) for each in (less, more))
    assert worse.mos_lq <= better.mos_lq + 1e-9


@given(
    codecs,
    st.floats(0, 10),
    st.floats(0, 300),
    st.floats(0, 500),
    st.floats(0, 500),
    st.sampled_from([10.0, 20.0, 30.0, 60.0]),
    modes,
)
def test_more_jitter_never_raises_mos(
    codec: Any, loss: float, network: float, one: float, other: float, ptime: float, mode: str
) -> None:
    moses = []
    for jitter in sorted((one, other)):
        buffer, late = jitter_buffer(jitter, ptime)
        delay = mouth_to_ear(network, ptime, codec, buffer)
        said = rate(codec, with_late(loss, late), delay_ms=delay, id_mode=mode)
        assert said.mos_cq is not None
        moses.append((said.mos_cq, said.mos_lq))
    (better_cq, better_lq), (worse_cq, worse_lq) = moses
    assert worse_cq <= better_cq + 1e-9
    assert worse_lq <= better_lq + 1e-9


@given(codecs, st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), modes)
def test_mos_stays_between_1_and_4_5_whatever_comes_in(
    codec: Any, loss: float, burst: float, delay: float, mode: str
) -> None:
    said = rate(codec, loss, burst_ratio=burst, delay_ms=delay, id_mode=mode)
    assert said.mos_cq is not None
    assert 1.0 <= said.mos_cq <= said.mos_lq <= 4.5


@given(scales, st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_a_higher_r_never_has_a_lower_mos(scale: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 1.0 <= mos_of(low, scale) <= mos_of(high, scale) + 1e-12
    assert mos_of(high, scale) <= 4.5


@given(scales, st.floats(1, 4.5))
def test_a_mos_turned_into_r_and_back_is_the_same(scale: str, mos: float) -> None:
    assert mos_of(r_of(mos, scale), scale) == near(mos, 1e-6)


@given(scales, st.floats(0.08, 1))
def test_an_r_turned_into_mos_and_back_is_the_same(scale: str, share: float) -> None:
    r = share * 100 * R_MAX[scale] / R_MAX["nb"] * 0.93
    r = min(max(r, 6.6 * 1.48), R_MAX[scale])
    assert r_of(mos_of(r, scale), scale) == near(r, 1e-4)


@pytest.mark.parametrize(("mos", "r"), [(0.0, 6.5153), (-3.0, 6.5153), (4.6, 100.0), (99.0, 100.0)])
def test_a_mos_off_the_scale_counts_as_the_scales_end(mos: float, r: float) -> None:
    assert r_of(mos) == near(r, R_WITHIN)


def test_a_loss_or_time_that_is_no_number_never_gives_a_good_mos() -> None:
    codec, nan = CODECS["G711"], math.nan
    assert math.isnan(rate(codec, nan).mos_lq)
    assert math.isnan(rate(codec, 0, delay_ms=nan).r)
    assert math.isnan(rate(codec, 0, delay_ms=nan, id_mode="linear").r)
    assert all(map(math.isnan, jitter_buffer(nan, 20)))


# ---------------------------------------------------------------------------------------- rating


def test_without_a_delay_there_is_a_listening_mos_alone() -> None:
    said = rate(CODECS["G729A-VAD"], 2)
    assert said.mos_cq is None
    assert said.r == said.r_lq == near(74.2, 1e-9)


def test_a_delay_changes_r_and_leaves_the_listening_one() -> None:
    said = rate(CODECS["G711"], 0, delay_ms=400)
    assert said.r_lq == 93.2
    assert said.r == near(69.1299, R_WITHIN)
    assert said.mos_cq is not None
    assert said.mos_cq < said.mos_lq


def test_a_burst_ratio_under_one_counts_as_one() -> None:
    assert rate(CODECS["G711"], 5, burst_ratio=0.0) == rate(CODECS["G711"], 5)


@pytest.mark.parametrize("name", ["AMRWB-12.65", "EVS-24.4"])
def test_the_burst_ratio_has_no_part_on_the_other_scales(name: str) -> None:
    assert rate(CODECS[name], 5, burst_ratio=8.0) == rate(CODECS[name], 5)


def test_delay_takes_more_on_the_fullband_scale_and_the_same_on_the_wideband_one() -> None:
    for mode in ("idd", "linear"):
        lost = {
            scale: said.r_lq - said.r
            for scale, name in (("nb", "G711"), ("wb", "G722-WB"), ("fb", "EVS-48"))
            for said in [rate(CODECS[name], 0, delay_ms=300, id_mode=mode)]
        }
        assert lost["wb"] == near(lost["nb"], 1e-9)
        assert lost["fb"] == near(lost["nb"] * 1.48, 1e-9)


def test_no_codec_has_a_good_mos_when_everything_is_lost() -> None:
    for codec in CODECS.values():
        assert rate(codec, 100).mos_lq < 1.6, codec.name


@pytest.mark.parametrize(
    ("jitter", "ptime", "depth"),
    [(0, 20, 20), (-5, 20, 20), (0, 10, 20), (0, 60, 60), (5, 20, 20), (10, 20, 40), (30, 20, 120),
     (50, 20, 200), (1000, 20, 200), (0, 500, 200)],
)  # fmt: skip
def test_the_buffer_is_four_times_the_jitter_a_packet_at_least_and_200_ms_at_most(
    jitter: float, ptime: float, depth: float
) -> None:
    model = VECTORS["jitter_buffer"]
    assert (model["k"], model["floor_ms"], model["cap_ms"]) == (4, 20, 200)
    assert jitter_buffer(jitter, ptime)[0] == depth


def test_what_comes_too_late_is_told_by_the_jitter() -> None:
    assert jitter_buffer(0, 20)[1] == 0.0
    assert jitter_buffer(5e-324, 20)[1] == 0.0
    assert jitter_buffer(200, 20)[1] == near(100 / math.e, 1e-9)


@pytest.mark.parametrize(
    ("loss", "late", "both"), [(0, 0, 0), (3, 0, 3), (0, 7, 7), (50, 50, 75), (100, 0, 100)]
)
def test_loss_and_lateness_strike_independently(loss: float, late: float, both: float) -> None:
    assert with_late(loss, late) == near(both, 1e-9)


def test_a_packet_holds_one_frame_at_least() -> None:
    assert mouth_to_ear(40, 20, CODECS["G723.1-6.3"], 80) == 40 + 30 + 7.5 + 80
    assert mouth_to_ear(40, 60, CODECS["G723.1-6.3"], 80) == 40 + 60 + 7.5 + 80
    assert mouth_to_ear(40, 20, CODECS["OPUS-FB"], 80) == 40 + 20 + 6.5 + 80


# ------------------------------------------------------------------------------------ codec names


@pytest.mark.parametrize("name", list(CODECS))
def test_every_row_is_found_by_its_name_in_any_case(name: str) -> None:
    for spelled in (name, name.lower(), name.upper()):
        row, assumptions = codec_of(spelled)
        assert row is CODECS[name]
        assert assumptions == ((CODEC_ASSUMED,) if name == "unknown" else ())


@pytest.mark.parametrize(
    ("name", "clock_rate", "fmtp", "row"),
    [
        ("PCMU", 8000, None, "G711"),
        ("PCMA", None, None, "G711"),
        ("pcma", 8000, None, "G711"),
        ("G729", 8000, None, "G729A-VAD"),
        ("G729", 8000, "annexb=yes", "G729A-VAD"),
        ("G729", 8000, "annexb=no", "G729"),
        ("G729", 8000, "x=1; AnnexB = NO", "G729"),
        ("G729", None, "annexb=no", "G729"),
        ("G729A", 8000, None, "G729A-VAD"),
        ("G723", 8000, "bitrate=5.3;annexa=no", "G723.1-5.3"),
        ("G723", 8000, "bitrate=6.3", "G723.1-6.3"),
        ("G722", 8000, None, "G722-WB"),
        ("G722", 16_000, None, "G722-WB"),
        ("GSM", 8000, None, "GSM-FR"),
        ("GSM-EFR", 8000, None, "GSM-EFR"),
        ("GSM-HR-08", 8000, None, "GSM-HR"),
        ("AMR", 8000, "mode-set=7; octet-align=1", "AMR-12.2"),
        ("AMR-WB", 16_000, "mode-set=0", "AMRWB-6.6"),
        ("AMR-WB", 16_000, "octet-align=1;mode-set=2", "AMRWB-12.65"),
        ("AMR-WB", 16_000, "mode-set=8", "AMRWB-23.85"),
        ("iLBC", 8000, "mode=20", "ILBC-15.2"),
        ("speex", 8000, None, "SPEEX-15"),
        ("opus", 48_000, "useinbandfec=1", "OPUS-FB"),
        ("EVS", 16_000, "br=24.4; bw=swb", "EVS-24.4"),
        ("EVS", 16_000, "br=13.2", "EVS-13.2"),
        ("G726-16", 8000, None, "G726-16"),
        ("G726-40", 8000, None, "G726-40"),
        ("AAL2-G726-32", 8000, None, "G726-32"),
        ("G728", 8000, None, "G728"),
    ],
)
def test_an_sdp_name_that_leaves_nothing_open_finds_its_row(
    name: str, clock_rate: int | None, fmtp: str | None, row: str
) -> None:
    assert codec_of(name, clock_rate, fmtp) == (CODECS[row], ())


@pytest.mark.parametrize(
    ("name", "clock_rate", "fmtp", "row"),
    [
        ("G723", 8000, None, "G723.1-6.3"),
        ("G723", None, None, "G723.1-6.3"),
        ("AMR", 8000, None, "AMR-12.2"),
        ("AMR", 8000, "mode-set=0,2,4,7", "AMR-12.2"),
        ("AMR", 8000, "mode-set=0", "AMR-12.2"),
        ("AMR-WB", 16_000, None, "AMRWB-12.65"),
        ("AMR-WB", 16_000, "mode-set=0,1,2", "AMRWB-12.65"),
        ("AMR-WB", 16_000, "mode-set=9", "AMRWB-12.65"),
        ("AMR-WB", 16_000, "mode-set=", "AMRWB-12.65"),
        ("AMR-WB", 16_000, "mode-set=\u0662", "AMRWB-12.65"),
        ("iLBC", 8000, None, "ILBC-15.2"),
        ("iLBC", 8000, "mode=30", "ILBC-15.2"),
        ("EVS", 16_000, None, "EVS-13.2"),
        ("EVS", 16_000, "br=5.9-24.4", "EVS-13.2"),
        ("EVS", 16_000, "br=24.4;bw=wb", "EVS-24.4"),
    ],
)
def test_a_mode_that_sdp_leaves_open_is_an_assumption_of_grade_c(
    name: str, clock_rate: int | None, fmtp: str | None, row: str
) -> None:
    found, assumptions = codec_of(name, clock_rate, fmtp)
    assert assumptions == (MODE_ASSUMED,)
    assert found.grade == "C"
    assert (found.name, found.ie, found.bpl) == (row, CODECS[row].ie, CODECS[row].bpl)


@pytest.mark.parametrize(
    ("name", "clock_rate"),
    [
        (None, None), (None, 8000), ("", 8000), ("unknown", None), ("unknown", 8000),
        ("L16", 8000), ("telephone-event", 8000), ("speex", 16_000), ("speex", 32_000),
        ("PCMU", 16_000), ("PCMU", 0), ("G729E", 8000), ("x" * 1000, 8000), ("\x1b[31m", None),
        ("AMR-WB", 8000),
    ],
)  # fmt: skip
def test_a_codec_without_figures_is_rated_as_unknown_and_says_so(
    name: str | None, clock_rate: int | None
) -> None:
    assert codec_of(name, clock_rate) == (CODECS["unknown"], (CODEC_ASSUMED,))


def test_the_name_alone_of_a_row_is_not_taken_for_an_sdp_name() -> None:
    assert codec_of("G729")[0].name == "G729"
    assert codec_of("G729", 8000)[0].name == "G729A-VAD"


@pytest.mark.parametrize("name", ["PCMU", "PCMA", "G711"])
def test_g711_without_concealment_has_a_row_of_its_own(name: str) -> None:
    assert codec_of(name, plc=False)[0].name == "G711-noPLC"
    assert codec_of(name, 8000, plc=False)[0].name == "G711-noPLC"


def test_concealment_is_asked_of_g711_alone() -> None:
    for name in set(CODECS) - {"G711"}:
        assert codec_of(name, plc=False) == codec_of(name)


@pytest.mark.parametrize(
    ("name", "clock_rate", "fmtp", "row", "ie", "bpl"),
    [
        ("G722", 8000, None, "G722-NB", 0.0, 25.1),
        ("opus", 48_000, None, "OPUS-NB", 0.0, 20.0),
        ("AMR-WB", 16_000, "mode-set=0", "AMRWB-6.6-NB", 5.2, 4.3),
        ("AMR-WB", 16_000, None, "AMRWB-12.65-NB", 0.0, 4.3),
        ("EVS", 16_000, "br=9.6", "EVS-9.6-NB", 0.0, 13.0),
    ],
)
def test_on_the_narrowband_scale_a_wideband_codec_is_as_good_as_g711_at_most(
    name: str, clock_rate: int, fmtp: str | None, row: str, ie: float, bpl: float
) -> None:
    found, _ = codec_of(name, clock_rate, fmtp, narrowband_only=True)
    assert (found.name, found.scale, found.grade) == (row, "nb", "C")
    assert (found.ie, found.bpl) == (ie, bpl)


def test_on_the_narrowband_scale_all_mos_compare() -> None:
    for name, codec in CODECS.items():
        found, _ = codec_of(name, narrowband_only=True)
        assert found.scale == "nb"
        assert rate(found, 0).r <= 93.2
        assert found is codec or found.grade == "C"
        # what goes below the cap on the own scale goes below it here
        assert rate(found, 0).r == near(min(rate(codec, 0).r, 93.2), 1e-9)
        assert (found.frame_ms, found.look_ahead_ms) == (codec.frame_ms, codec.look_ahead_ms)


@given(
    st.none() | st.sampled_from([*CODECS, "PCMU", "AMR-WB", "EVS", "G729", "iLBC"]) | st.text(),
    st.none() | st.integers(-1, 2**33),
    st.none() | st.text() | st.from_regex(r"(mode-set|br|mode|annexb)=.*", fullmatch=True),
    st.booleans(),
    st.booleans(),
)
def test_whatever_a_stranger_names_there_is_a_row_and_fixed_words(
    name: str | None, clock_rate: int | None, fmtp: str | None, plc: bool, narrowband: bool
) -> None:
    row, assumptions = codec_of(name, clock_rate, fmtp, plc=plc, narrowband_only=narrowband)
    assert set(assumptions) <= set(ASSUMPTIONS)
    assert row.name.removesuffix("-NB") in CODECS or row.name in CODECS
    assert row.grade == "C" or not assumptions
    assert 1.0 <= rate(row, 1, delay_ms=150).mos_lq <= 4.5


def test_the_rows_are_fit_to_be_rated() -> None:
    assert len({name.lower() for name in CODECS}) == len(CODECS)
    for name, row in CODECS.items():
        assert row.name == name
        assert row.scale in R_MAX
        assert row.grade in {"A", "B", "C"}
        assert row.bpl > 0
        assert row.note
