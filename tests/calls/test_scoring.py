import msgspec
import pytest

from sipsidecar.calls import emodel
from sipsidecar.calls.negotiation import Negotiation
from sipsidecar.calls.scoring import (
    Delay,
    Figures,
    Point,
    Setting,
    Settings,
    burst_ratio,
    p95,
    score,
    summarize,
)
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.wire import rtcp
from talks import CALLEE, CALLER, START, TO_CALLEE, TO_CALLER, agreement, proxied

G711 = Setting(emodel.codec_of("PCMU", 8000)[0], "PCMU", 8000, 20, frozenset())
WIDE = Setting(emodel.codec_of("AMR-WB", 16_000)[0], "AMR-WB", 16_000, 20, frozenset())


def point(
    loss: float | None,
    expected: int | None = 250,
    seconds: float | None = 5.0,
    setting: Setting = G711,
    delay: Delay | None = None,
) -> Point:
    lost = None if loss is None or expected is None else round(expected * loss / 100)
    return score(
        START, setting, delay or Delay(), loss_percent=loss, jitter_ms=1.0, expected=expected,
        lost=lost, seconds=seconds,
    )  # fmt: skip


def figures(*points: Point) -> Figures:
    expected = [each.expected for each in points if each.expected is not None]
    lost = [each.lost for each in points if each.lost is not None]
    return Figures(
        source="rtcp", segment=None, points=points, ssrcs=(1,),
        expected=sum(expected) if expected else None, lost=sum(lost) if lost else None,
        delay=Delay(), first_at=START, last_at=START, flags=frozenset(),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ intervals


def test_the_buffer_that_jitter_makes_adds_delay_and_late_packets() -> None:
    # the published vector: network 20 ms, jitter 60 ms, no loss
    rated = score(START, G711, Delay(network_ms=20), loss_percent=0.0, jitter_ms=60.0)
    assert rated.delay_ms == pytest.approx(240)
    assert rated.rating is not None
    assert rated.rating.r == pytest.approx(73.6913, abs=1e-3)
    assert rated.mos == pytest.approx(3.7650, abs=1e-4)
    assert rated.kind == "cq"


def test_a_device_that_tells_its_discards_and_buffer_is_believed_instead() -> None:
    told = Delay(network_ms=20, buffer_ms=40, discard_percent=5.0)
    rated = score(START, G711, told, loss_percent=0.0, jitter_ms=60.0)
    assert rated.delay_ms == pytest.approx(80)
    assert rated.rating == emodel.rate(G711.codec, 5.0, delay_ms=80)


def test_a_delay_that_devices_tell_whole_is_taken_as_it_is() -> None:
    rated = score(
        START, G711, Delay(network_ms=20, mouth_to_ear_ms=300), loss_percent=0.0, jitter_ms=0.0
    )
    assert rated.delay_ms == 300


def test_an_interval_without_a_loss_or_without_packets_is_not_rated() -> None:
    for unrated in (point(None), point(0.0, expected=0)):
        assert unrated.rating is None
        assert unrated.mos is None
        assert unrated.kind is None


def test_an_interval_weighs_its_packets_else_its_seconds() -> None:
    assert point(0.0, expected=100).weight == 100
    assert point(0.0, expected=None, seconds=4.0).weight == 200
    assert point(0.0, expected=None, seconds=None).weight is None
    assert point(0.0, expected=None, seconds=4.0).media_seconds == 4.0


# ------------------------------------------------------------------------------------ directions


def test_the_mean_is_weighted_by_packets() -> None:
    good, bad = point(0.0, expected=900), point(20.0, expected=100)
    summary = summarize(figures(good, bad), Thresholds())
    assert good.mos is not None
    assert bad.mos is not None
    assert summary.mos == pytest.approx(0.9 * good.mos + 0.1 * bad.mos)
    assert summary.mos_min == bad.mos
    assert (summary.low_intervals, summary.rated_intervals, summary.low_share) == (1, 2, 0.5)


def test_an_interval_of_unknown_size_weighs_as_much_as_the_others() -> None:
    unknown = point(20.0, expected=None, seconds=None)
    summary = summarize(figures(unknown, point(0.0, 500), point(0.0, 500)), Thresholds())
    even = summarize(figures(point(20.0, 500), point(0.0, 500), point(0.0, 500)), Thresholds())
    assert summary.mos == even.mos


def test_a_total_loss_in_the_middle_lowers_the_mean() -> None:
    whole = summarize(figures(point(0.0), point(0.0), point(0.0)), Thresholds())
    broken = summarize(figures(point(0.0), point(100.0), point(0.0)), Thresholds())
    assert whole.mos is not None
    assert broken.mos is not None
    assert broken.mos < whole.mos - 1


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ((point(0.0, expected=100),), "short"),
        ((point(100.0), point(100.0), point(100.0)), "no_packets"),
        ((point(99.7, 1000), point(99.7, 1000)), "no_packets"),
        ((point(None), point(None), point(None)), "no_packets"),
        ((point(0.0, expected=None, seconds=None),), "short"),
    ],
)
def test_what_cannot_be_rated_says_why(points: tuple[Point, ...], why: str) -> None:
    summary = summarize(figures(*points), Thresholds())
    assert (summary.rated, summary.unrated, summary.mos) == (False, why, None)


def test_two_scales_are_not_averaged() -> None:
    summary = summarize(
        figures(point(0.0), point(0.0), point(5.0, 800, setting=WIDE)), Thresholds()
    )
    assert (summary.mos_scale, summary.rated_intervals) == ("wb", 1)
    assert summary.mos == point(5.0, setting=WIDE).mos
    assert summary.flags == {"mixed_scales"}


def test_the_worst_grade_is_the_grade_of_the_whole() -> None:
    guessed = msgspec.structs.replace(G711, codec=emodel.codec_of("GSM-HR")[0])
    summary = summarize(figures(point(0.0), point(0.0, setting=guessed), point(0.0)), Thresholds())
    assert summary.mos_grade == "B"


def test_loss_is_of_the_counts_else_the_mean_of_the_fractions() -> None:
    counted = figures(point(1.0, 100), point(4.0, 300))
    assert counted.loss_percent == pytest.approx(100 * 13 / 400)
    assert counted.received == 387
    told = figures(point(1.0, None), point(4.0, None, 15.0))
    assert told.loss_percent == pytest.approx((1 * 5 + 4 * 15) / 20)
    assert told.received is None
    assert figures(point(None, None)).loss_percent is None
    assert figures(point(0.0, 0, None)).loss_percent is None


def test_the_mean_of_equal_figures_is_that_figure() -> None:
    rated = point(1.7, expected=333)
    summary = summarize(figures(*[rated] * 7), Thresholds())
    assert summary.mos == summary.mos_min == rated.mos


def test_p95_is_the_value_that_95_of_100_do_not_exceed() -> None:
    assert p95([float(i) for i in range(1, 101)]) == 95
    assert p95([3.0]) == 3.0
    assert p95([]) is None


# ------------------------------------------------------------------------------------ settings


def test_what_is_heard_is_in_the_codec_of_the_hearing_end() -> None:
    settings = Settings(proxied("G729", "PCMU"), Thresholds())
    forth = settings.heard_at("caller", end=True, clock=None, at=START)
    between = settings.heard_at("caller", end=False, clock=None, at=START)
    back = settings.heard_at("callee", end=True, clock=None, at=START)
    assert (forth.name, between.name, back.name) == ("PCMU", "G729", "G729")
    assert forth.flags == {"transcoded_ie"}
    assert (forth.codec.ie, forth.codec.grade) == (11, "A")
    assert between.flags == frozenset()


def test_codecs_of_two_scales_do_not_add_up() -> None:
    settings = Settings(
        Negotiation(
            (agreement("ingress", CALLER, TO_CALLER, "AMR-WB", clock_rate=16_000),),
            (agreement("egress", TO_CALLEE, CALLEE, "PCMU"),),
        ),
        Thresholds(),
    )
    forth = settings.heard_at("caller", end=True, clock=None, at=START)
    assert forth.codec.ie == 0
    assert "transcoded_ie" not in forth.flags


@pytest.mark.parametrize(
    ("codec", "sdp_clock", "told", "clock", "assumed"),
    [
        ("PCMU", 8000, None, 8000, False),
        ("G722", 16_000, None, 8000, False),
        ("opus", 48_000, None, 48_000, False),
        ("PCMU", 8000, 16_000, 16_000, False),
        ("PCMU", 8000, 1, 8000, False),
        ("X-NEW", 32_000, None, 32_000, False),
        ("X-NEW", 1, None, 8000, True),
    ],
)
def test_the_clock_is_that_of_the_report_the_codec_or_sdp(
    codec: str, sdp_clock: int, told: int | None, clock: int, assumed: bool
) -> None:
    settings = Settings(proxied(codec, clock_rate=sdp_clock), Thresholds())
    setting = settings.heard_at("caller", end=True, clock=told, at=START)
    assert setting.clock_rate == clock
    assert ("clock_assumed" in setting.flags) == assumed


def test_an_agreement_holds_from_its_time_on_and_the_first_before_it() -> None:
    later = agreement("ingress", CALLER, TO_CALLER, "G729", at=10)
    gone = agreement("ingress", CALLER, TO_CALLER, None, at=20)
    ingress = Negotiation((*proxied().ingress, later, gone))
    settings = Settings(ingress, Thresholds())
    names = [
        settings.heard_at("callee", end=True, clock=None, at=START + at * 1_000_000).name
        for at in (-100, 0, 9, 10, 19, 30)
    ]
    assert names == ["PCMU", "PCMU", "PCMU", "G729", "G729", "G729"]


def test_nobody_knows_the_codec_of_an_unknown_speaker_unless_there_is_but_one() -> None:
    one = Settings(proxied(), Thresholds())
    assert one.heard_at(None, end=True, clock=None, at=START).name == "PCMU"
    two = Settings(proxied("G729", "PCMU"), Thresholds())
    setting = two.heard_at(None, end=True, clock=None, at=START)
    assert setting.name is None
    assert setting.flags == {"codec_assumed", "clock_assumed", "ptime_assumed"}


def test_thresholds_choose_the_scale_and_the_concealment() -> None:
    narrow = Settings(proxied("opus", clock_rate=48_000), Thresholds(narrowband_only=True))
    assert narrow.heard_at("caller", end=True, clock=None, at=START).codec.scale == "nb"
    bare = Settings(proxied(), Thresholds(plc=False))
    assert bare.heard_at("caller", end=True, clock=None, at=START).codec.name == "G711-noPLC"


# ------------------------------------------------------------------------------------ bursts


def metrics(**fields: float) -> rtcp.VoipMetrics:
    values: dict[str, object] = dict.fromkeys(rtcp.VoipMetrics.__struct_fields__)
    values |= {
        "source_ssrc": 1, "burst_density_percent": 0.0, "gap_density_percent": 0.0, "burst_ms": 0,
        "gap_ms": 0,
    }  # fmt: skip
    return rtcp.VoipMetrics(**(values | fields))  # type: ignore[arg-type]


def test_random_loss_has_a_burst_ratio_of_one() -> None:
    even = metrics(burst_density_percent=10.0, burst_ms=500, gap_density_percent=10.0, gap_ms=500)
    assert burst_ratio(even) == pytest.approx(1.0)


def test_loss_in_bursts_has_a_higher_ratio() -> None:
    # half of the packets lost in a tenth of the time: runs of 2, where random loss has 1/(1-0.05)
    burst = metrics(burst_density_percent=50.0, burst_ms=100, gap_ms=900)
    assert burst_ratio(burst) == pytest.approx(2 * 0.95)


@pytest.mark.parametrize(
    "nothing",
    [metrics(), metrics(gap_ms=1000), metrics(burst_density_percent=100.0, burst_ms=1000)],
)
def test_without_loss_or_without_anything_else_there_is_no_ratio(nothing: rtcp.VoipMetrics) -> None:
    assert burst_ratio(nothing) is None
