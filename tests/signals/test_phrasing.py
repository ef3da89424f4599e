from sipsidecar.signals.alarms import PAGE, WARN
from sipsidecar.signals.burning import PAIRS, Burning
from sipsidecar.signals.phrasing import (
    More,
    budget_alarm,
    figures_of,
    gauge_alarm,
    level_alarm,
    rate_alarm,
    surplus,
    volume_alarm,
)
from sipsidecar.signals.rates import Finding, Held, Normal
from sipsidecar.signals.series import COUNTED, FIRST, INEFFECTIVE, TOTAL, UNANSWERED, WIDTH

TUESDAY = 20_060 * 1440
MINUTE = TUESDAY + 14 * 60 + 10
SCOPE = (("tenant", "acme"),)
MORE = More(((404, 29), (484, 5)), {"A": 31, "B": 6}, {"4xx": PAGE})


def normal(known: str = "own", share: float | None = 0.081) -> Normal:
    return Normal(MINUTE // 60, known, [share] * len(COUNTED))


def counted(total: int, bad: int, column: int = FIRST) -> list[int]:
    found = [0] * WIDTH
    found[TOTAL], found[column] = total, bad
    return found


def held(window: int = 5, calm: int = 0) -> Held:
    one = Held(MINUTE - 7, MINUTE - 2, window)
    one.calm = calm
    return one


def test_an_alarm_reads_as_the_standard_has_it() -> None:
    finding = Finding("rate", FIRST, held(), True)
    alarm = rate_alarm(SCOPE, normal(), finding, MINUTE, counted(210, 37), 0.0, MORE)
    assert alarm.summary == (
        "4xx 17.6 % (37 of 210) in the last 5 min; normal for Tue 14:00 UTC is 8.1 %;"
        " chance of this by luck 6e-6; z 5.1; top codes 404 +29, 484 +5; first seen 14:03 UTC;"
        " trunks A 31, B 6"
    )
    assert alarm.key == ("rate", "4xx", SCOPE)
    assert alarm.at == (MINUTE + 1) * 60_000_000
    assert alarm.since == (MINUTE - 7) * 60_000_000
    assert (alarm.count, alarm.total, alarm.severity) == (37, 210, PAGE)
    assert alarm.value is not None
    assert round(alarm.value, 1) == 17.6
    assert alarm.expected is not None
    assert round(alarm.expected, 1) == 8.1
    assert alarm.codes == ((404, 29), (484, 5))
    assert alarm.evidence == {
        "minutes": 5, "known": "own", "phi": 1.0, "trunks": {"A": 31, "B": 6},
    }  # fmt: skip


def test_a_drift_says_where_its_cusum_is() -> None:
    finding = Finding("drift", FIRST, held(60), True)
    alarm = rate_alarm((), normal(), finding, MINUTE, counted(3600, 420), 11.23, MORE)
    assert alarm.evidence["cusum"] == 11.2
    assert "(420 of 3600) in the last 60 min" in alarm.summary


def test_three_sigma_speaks_of_minutes_and_of_no_chance() -> None:
    finding = Finding("three-sigma", FIRST, held(1), True, 0.176, 0.08)
    alarm = rate_alarm((), normal(), finding, MINUTE, counted(210, 37), 0.0, MORE)
    assert "mean of its minutes in seven days is 8.0 %" in alarm.summary
    assert (alarm.probability, alarm.z) == (None, None)
    finding = Finding("three-sigma", FIRST, held(1), False)
    alarm = rate_alarm((), normal(), finding, MINUTE, counted(0, 0), 0.0, MORE)
    assert alarm.summary.startswith("4xx unknown (0 of 0)")
    assert (alarm.value, alarm.expected) == (None, None)


def test_what_is_not_known_is_not_made_up() -> None:
    finding = Finding("rate", FIRST, held(), False)
    alarm = rate_alarm((), normal("cold", None), finding, MINUTE, counted(5, 5), 0.0, MORE)
    assert "normal is not known yet, taken for unknown" in alarm.summary
    assert (alarm.expected, alarm.probability, alarm.active) == (None, None, False)


def test_figures_of_an_alarm_that_is_calm_are_not_of_a_single_minute() -> None:
    assert figures_of(held(1)) == 1
    assert figures_of(held(1, calm=2)) == 5
    assert figures_of(held(60, calm=2)) == 60


def test_a_fixed_threshold_is_said_and_no_chance() -> None:
    finding = Finding("asr", UNANSWERED, held(), True, 0.6, 0.9)
    bad = counted(50, 19, UNANSWERED)
    alarm = level_alarm((), normal(), finding, MINUTE, bad, 0.9, MORE)
    assert alarm.summary.startswith("ASR 62.0 % (31 of 50) in the last 5 min; least is 90.0 %; top")
    assert (alarm.category, alarm.count, alarm.total, alarm.expected) == ("asr", 31, 50, 90.0)
    assert alarm.probability is None


def test_a_usual_share_is_said_with_its_chance() -> None:
    finding = Finding("ner", UNANSWERED, held(), True, 0.6, 0.9)
    bad = counted(50, 19, UNANSWERED)
    alarm = level_alarm((), normal(share=0.05), finding, MINUTE, bad, None, MORE)
    assert "NER 62.0 % (31 of 50)" in alarm.summary
    assert "normal for Tue 14:00 UTC is 95.0 %; chance of this by luck" in alarm.summary
    assert alarm.expected == 95.0
    none = counted(0, 0, UNANSWERED)
    alarm = level_alarm((), normal("cold", None), finding, MINUTE, none, None, MORE)
    assert alarm.summary.startswith("NER unknown (0 of 0)")
    assert (alarm.value, alarm.expected) == (None, None)


def test_a_drop_of_volume_says_how_many_there_should_be() -> None:
    finding = Finding("volume", TOTAL, held(), True, 12.0, 75.4)
    alarm = volume_alarm((), normal(), finding, MINUTE)
    assert alarm.summary.startswith(
        "12 calls in the last 5 min; normal for Tue 14:00 UTC is 75; chance of this by luck"
    )
    assert (alarm.value, alarm.expected, alarm.severity) == (12.0, 75.4, WARN)
    finding = Finding("volume", TOTAL, held(), False, 12.0, None)
    alarm = volume_alarm((), normal(), finding, MINUTE)
    assert "normal for Tue 14:00 UTC is unknown" in alarm.summary


def test_a_gauge_says_its_limit() -> None:
    finding = Finding("pdd", 0, held(), True, 3100.0, 1200.0)
    alarm = gauge_alarm(SCOPE, finding, MINUTE, 1600.0)
    assert alarm.summary == (
        "PDD p95 3100 ms, smoothed; usual is 1200 ms, at most 1600 ms; first seen 14:03 UTC"
    )
    assert alarm.evidence == {"limit_ms": 1600.0}
    finding = Finding("jitter", 0, held(), False, 31.0, None)
    alarm = gauge_alarm(SCOPE, finding, MINUTE, None)
    assert alarm.summary == "jitter 31 ms, smoothed; first seen 14:03 UTC"


def test_a_budget_says_what_is_promised_and_how_fast_it_goes() -> None:
    burning = Burning(Finding("slo", UNANSWERED, held(), True), PAIRS[0], (15.04, 20.0))
    alarm = budget_alarm((), burning, MINUTE, (1000, 150), "gold", "asr", 99.0)
    assert alarm.summary == (
        "ASR 85.0 % (850 of 1000) in the last 60 min; 99 % is promised (gold);"
        " its budget goes 15.0 times too fast, 20.0 times in the last 5 min; first seen 14:03 UTC"
    )
    assert (alarm.source, alarm.category, alarm.severity) == ("slo", "slo-gold", PAGE)
    assert (alarm.value, alarm.expected) == (85.0, 99.0)
    alarm = budget_alarm((), burning, MINUTE, (0, 0), "gold", "asr", 99.0)
    assert alarm.value is None


def test_a_surplus_is_what_is_over_the_usual_mix_of_codes() -> None:
    minutes = [(404, 20, 484, 5, 503, 9), (), (404, 20, 499, 1)]
    learned = {403: 10, 484: 80, 499: 10, 404: 50, 503: 999}
    # 10 of 4xx are usual: 8 times 484, 1 times 403, 1 times 499 (404 is a category of its own).
    assert surplus(minutes, learned, FIRST, 10.0) == ()
    assert surplus(minutes, {403: 10, 484: 0, 499: 10}, FIRST, 2.0) == ((484, 5),)
    assert surplus(minutes, learned, FIRST + 3, 15.0) == ((404, 25),)


def test_people_s_doing_is_no_surplus_of_calls_that_the_network_failed() -> None:
    minutes = [(486, 27, 503, 4), (603, 5, 408, 2)]
    assert surplus(minutes, {}, INEFFECTIVE, 0.0) == ((503, 4), (408, 2))
    assert surplus(minutes, {}, UNANSWERED, 0.0)[0] == (486, 27)


def test_without_a_known_mix_the_surplus_is_divided_as_the_codes_are() -> None:
    minutes = [(484, 30, 403, 10)]
    assert surplus(minutes, {}, FIRST, 20.0) == ((484, 15), (403, 5))
    assert surplus(minutes, {}, UNANSWERED, 0.0) == ((484, 30), (403, 10))
    assert surplus([], {}, FIRST, 20.0) == ()
    many = [tuple(each for code in range(430, 450) for each in (code, 3))]
    assert len(surplus(many, {}, FIRST, 0.0)) == 5
