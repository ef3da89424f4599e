import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from sipsidecar.signals.alarms import CATEGORIES, PAGE, TREND, WARN, Alarm, Scope
from sipsidecar.signals.baseline import Baseline, BaselineHour
from sipsidecar.signals.detectors import (
    MAX_SLOS,
    DetectorError,
    Detectors,
    DetectorSettings,
    Slo,
    check_slos,
)
from sipsidecar.signals.minutes import CodeMinute, KpiMinute

MONDAY = 20_059 * 1440
"""Minutes since 1970."""
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
ACME = {"tenant": "t1", "trunk": "acme", "carrier": "c1", "direction": "in", "region": "eu"}
BETA = {"tenant": "t2", "trunk": "beta", "carrier": "c1", "direction": "in", "region": "us"}
Rows = tuple[list[KpiMinute], list[CodeMinute]]


def rows(
    labels: dict[str, str],
    calls: int,
    codes: dict[int, int],
    *,
    sources: Sequence[str] = ("call", "trunk"),
    **more: Any,
) -> Rows:
    """What one cohort did in a minute, as calls and as attempts."""
    failed = sum(codes.values())
    said: dict[str, Any] = {**labels, **more}
    kpis = [
        KpiMinute(
            received_at=0, minute_at=0, source=source, attempts=calls, seizures=calls,
            answered=calls - failed, effective=calls - failed, **said,
        )
        for source in sources
    ]  # fmt: skip
    return kpis, [
        CodeMinute(received_at=0, minute_at=0, source=source, **labels, code=code, count=count)
        for source in sources
        for code, count in codes.items()
        if count
    ]


def joined(*parts: Rows) -> Rows:
    return [one for part in parts for one in part[0]], [one for part in parts for one in part[1]]


def hour(at: int, series: str, **more: Any) -> BaselineHour:
    said: dict[str, Any] = {
        "received_at": 0, "hour_at": at * HOUR_US, "series": series, "minutes": 60, "total": 1800,
        "answered": 1500, "effective": 1700, "counts": (60, 9, 0, 60, 60, 60, 51), **more,
    }  # fmt: skip
    return msgspec.convert(said, BaselineHour)


def known(*series: str, start: int = MONDAY, **more: Any) -> Baseline:
    """A baseline that has seen a week of 30 calls a minute."""
    baseline = Baseline()
    for name in series:
        baseline.load(hour(start // 60 - 168 + each, name, **more) for each in range(168))
    return baseline


class Fed:
    """Detectors, minute for minute."""

    def __init__(
        self, baseline: Baseline | None = None, settings: DetectorSettings | None = None
    ) -> None:
        self.baseline = baseline or Baseline()
        self.detectors = Detectors(settings or DetectorSettings(), self.baseline)
        self.minute = MONDAY

    def __call__(self, *parts: Rows, minutes: int = 1) -> list[Alarm]:
        kpis, codes = joined(*parts)
        found: list[Alarm] = []
        for _ in range(minutes):
            found = self.detectors.receive_minute(self.minute * MINUTE_US, kpis, codes)
            self.minute += 1
        return found


def by_key(alarms: Sequence[Alarm]) -> dict[tuple[str, str, Scope], Alarm]:
    assert len({alarm.key for alarm in alarms}) == len(alarms)
    return {alarm.key: alarm for alarm in alarms}


TRUNK = (("trunk", "acme"),)


# ------------------------------------------------------------------------------- what there is of it


def test_an_outage_is_an_alarm_of_every_series_that_its_calls_are_of() -> None:
    fed = Fed()
    fed(rows(ACME, 30, {}), rows(BETA, 5, {}), minutes=5)
    found = by_key(fed(rows(ACME, 30, {503: 30}), rows(BETA, 5, {})))
    scopes = {scope for source, category, scope in found if (source, category) == ("rate", "5xx")}
    assert scopes == {
        (("tenant", "t1"),),
        (("region", "eu"),),
        TRUNK,
        (("tenant", "t1"), ("trunk", "acme"), ("direction", "in"), ("region", "eu")),
    } | {(), (("direction", "in"),), (("carrier", "c1"),)}
    alarm = found["rate", "5xx", TRUNK]
    assert alarm.severity == PAGE
    assert alarm.at == fed.minute * MINUTE_US
    assert alarm.codes == ((503, 24),)
    assert "trunks" not in alarm.evidence
    assert found["rate", "5xx", ()].evidence["trunks"] == {"acme": 30}
    assert found["rate", "5xx", ()].summary.endswith("trunks acme 30")


def test_before_anything_is_known_only_what_no_healthy_trunk_has_is_an_alarm() -> None:
    fed = Fed()
    assert fed(rows(ACME, 100, {503: 25, 403: 60, 603: 10}), minutes=60) == []
    found = by_key(fed(rows(ACME, 100, {503: 90})))
    assert "normal is not known yet, taken for 20.0 %" in found["rate", "5xx", TRUNK].summary
    assert not any(category in ("404", "486") for _, category, _ in found)


def test_a_series_without_a_past_of_its_own_is_judged_by_all_calls() -> None:
    fed = Fed(known("call:all", "trunk:all"))
    fed(rows(ACME, 30, {}), minutes=3)
    found = by_key(fed(rows(ACME, 30, {503: 6}), minutes=2))
    assert found["rate", "5xx", TRUNK].evidence["known"] == "fleet"
    assert found["rate", "5xx", ()].evidence["known"] == "own"
    assert "its own is not known yet" in found["rate", "5xx", TRUNK].summary
    # How often calls are answered is each trunk's own: nothing is said of it.
    found = by_key(fed(rows(ACME, 30, {503: 29}), minutes=5))
    assert ("asr", "asr", ()) in found
    assert ("asr", "asr", TRUNK) not in found


def test_its_own_past_counts_once_there_is_enough_of_it() -> None:
    baseline = known("trunk:trunk=acme", counts=(0, 900, 0, 0, 0, 0, 0))
    fed = Fed(baseline)
    alarms = fed(rows(ACME, 30, {503: 15}, sources=["trunk"]), minutes=10)
    assert ("rate", "5xx", TRUNK) not in by_key(alarms)  # half is normal there
    settings = DetectorSettings(arm_hours=169)
    fed = Fed(known("trunk:trunk=acme", counts=(0, 900, 0, 0, 0, 0, 0)), settings)
    alarms = fed(rows(ACME, 30, {503: 15}, sources=["trunk"]), minutes=10)
    assert by_key(alarms)["rate", "5xx", TRUNK].evidence["known"] == "cold"


def test_a_day_of_learning_arms_a_series() -> None:
    fed = Fed()
    ordinary = rows(ACME, 30, {403: 1, 503: 3})
    fed(ordinary, minutes=24 * 60 + 50)
    assert "cold" in {alarm.evidence["known"] for alarm in fed(rows(ACME, 30, {503: 25}))}
    fed(ordinary, minutes=200)
    found = by_key(fed(rows(ACME, 30, {503: 25})))
    alarm = found["rate", "5xx", TRUNK]
    assert alarm.evidence["known"] == "own"
    assert alarm.expected == pytest.approx(10, abs=0.3)


def test_refusals_of_our_own_are_in_no_count() -> None:
    fed = Fed(known("call:all"))
    refused = CodeMinute(
        received_at=0, minute_at=0, source="call", code=503, origin="admission", count=500
    )
    kpis, codes = rows({}, 30, {}, sources=["call"])
    assert fed((kpis, [*codes, refused]), minutes=30) == []


def test_severities_are_those_of_the_settings() -> None:
    settings = DetectorSettings(severities={"404": PAGE})
    fed = Fed(known("call:all"), settings)
    found = by_key(fed(rows({}, 300, {404: 200, 486: 80, 403: 20}, sources=["call"]), minutes=3))
    assert found["rate", "404", ()].severity == PAGE
    assert found["rate", "486", ()].severity == TREND
    assert found["rate", "4xx", ()].severity == WARN


def test_codes_that_count_for_themselves_are_not_in_their_class() -> None:
    fed = Fed(known("call:all"))
    found = by_key(fed(rows({}, 300, {404: 250}, sources=["call"]), minutes=3))
    assert {category for _, category, _ in found} == {"404", "asr", "ner"}
    assert found["rate", "404", ()].codes[0][0] == 404


def test_an_alarm_ends_once_and_says_so() -> None:
    fed = Fed(known("call:all"))
    good, bad = rows({}, 30, {}, sources=["call"]), rows({}, 30, {503: 20}, sources=["call"])
    fed(bad, minutes=10)
    ends: list[tuple[str, str]] = []
    for _ in range(60):
        ends += [(one.source, one.category) for one in fed(good) if not one.active]
    assert sorted(ends) == [("asr", "asr"), ("drift", "5xx"), ("ner", "ner"), ("rate", "5xx")]
    assert fed(good) == []


def test_a_surplus_is_over_the_codes_that_were_there_before() -> None:
    fed = Fed(known("call:all", counts=(360, 0, 0, 0, 0, 0, 0)))
    fed(rows({}, 100, {488: 20}, sources=["call"]), minutes=30)
    found = by_key(fed(rows({}, 100, {488: 20, 403: 50}, sources=["call"])))
    assert dict(found["rate", "4xx", ()].codes)[403] >= 49


def test_the_order_of_rows_changes_nothing() -> None:
    dice = random.Random(5)
    one, other = Fed(), Fed()
    for _ in range(40):
        kpis, codes = joined(
            *(rows({**ACME, "codec": codec}, 20, {503: dice.randint(0, 20)}) for codec in "abc"),
            rows(BETA, 20, {403: dice.randint(0, 20)}),
        )
        first = one((kpis, codes))
        dice.shuffle(kpis)
        dice.shuffle(codes)
        assert by_key(other((kpis, codes))) == by_key(first)


def test_slices_are_the_same_as_the_whole() -> None:
    one, other = Fed(), Fed()
    parts = [rows({"tenant": f"t{i}", "trunk": f"k{i}"}, 30, {503: 25}) for i in range(60)]
    kpis, codes = joined(*parts)
    for _ in range(3):
        whole = one((kpis, codes))
        slices = list(other.detectors.look(other.minute * MINUTE_US, kpis, codes))
        other.minute += 1
        assert [alarm for part in slices for alarm in part] == whole
        assert len(slices) > 8
        assert max(map(len, slices)) < 10


def test_a_minute_that_was_looked_at_is_not_looked_at_again() -> None:
    fed = Fed()
    fed(rows({}, 30, {}))
    fed.minute -= 1
    assert fed(rows({}, 30, {503: 30})) == []
    assert fed.detectors.late == 1


def test_a_clock_that_was_set_back_begins_again_and_keeps_what_was_learned() -> None:
    fed = Fed(known("call:all"), DetectorSettings(slos=(Slo(name="gold", objective_percent=99),)))
    fed.minute += 5000
    fed(rows({}, 30, {503: 20}, sources=["call"]), minutes=150)
    fed.minute -= 3000
    assert fed(rows({}, 30, {}, sources=["call"])) == []
    assert fed.detectors.late == 1
    found = by_key(fed(rows({}, 30, {503: 20}, sources=["call"])))
    assert found["rate", "5xx", ()].evidence["known"] == "own"
    fed(rows({}, 30, {}, sources=["call"]), minutes=200)


def test_codes_without_their_calls_alarm_nobody() -> None:
    fed = Fed(known("call:all"))
    _, codes = rows({}, 30, {503: 30}, sources=["call"])
    assert fed(([], codes), minutes=10) == []


# ----------------------------------------------------------------------------- answers and volume


def test_inbound_calls_have_a_fixed_threshold_and_others_their_own() -> None:
    labels = {"direction": "inbound", "tenant": "t1"}
    fed = Fed(known("call:all"))
    found = by_key(fed(rows(labels, 50, {486: 15}, sources=["call"]), minutes=2))
    assert found["asr", "asr", (("direction", "inbound"),)].expected == 90.0
    assert ("asr", "asr", (("tenant", "t1"), ("direction", "inbound"))) in found
    assert ("asr", "asr", (("tenant", "t1"),)) not in found  # 83 % is usual: 70 % is no surprise
    settings = DetectorSettings(inbound=("in",), answer_percent=50.0)
    fed = Fed(None, settings)
    assert fed(rows(labels, 50, {486: 15}, sources=["call"]), minutes=2) == []


def test_a_drop_of_volume_is_told_in_the_second_week() -> None:
    fed = Fed(known("call:all"))
    fed.minute += 60
    fed(rows({}, 30, {}, sources=["call"]), minutes=5)
    found: list[Alarm] = []
    for _ in range(5):
        found = fed()
    alarm = by_key(found)["volume", "volume", ()]
    assert (alarm.value, alarm.expected) == (0.0, 150.0)
    assert fed.detectors.shares(alarm) == []
    fed.minute += 30  # the sidecar was not there
    assert all(one.active for one in fed())


# ------------------------------------------------------------------------------------------ gauges


def delays(place: int, count: int = 30) -> dict[str, Any]:
    buckets = [0] * 15
    buckets[place] = count
    return {
        "pdd_count": count, "pdd_sum_ms": 1.0, "pdd_buckets": tuple(buckets),
        "jitter_count": count, "jitter_sum_ms": 5.0 * count * (1 + (place > 4)) ** 3,
    }  # fmt: skip


def test_delays_and_jitter_over_what_is_usual_are_alarms_that_end() -> None:
    fed = Fed(known("call:all", pdd_p95_ms=1487.5, jitter_ms=5.0))
    good = rows({}, 30, {}, sources=["call"], **delays(4))
    bad = rows({}, 30, {}, sources=["call"], **delays(8))
    assert fed(good, minutes=10) == []
    found = by_key(fed(bad, minutes=2))
    assert found["pdd", "pdd", ()].expected == 1487.5
    assert "usual is 1488 ms, at most 1688 ms" in found["pdd", "pdd", ()].summary
    assert found["jitter", "jitter", ()].severity == WARN
    ends = [one.source for _ in range(30) for one in fed(good) if not one.active]
    assert sorted(ends) == ["jitter", "pdd"]
    assert fed.detectors.shares(found["pdd", "pdd", ()]) == []


def test_a_slow_trunk_tells_how_many_calls_are_slow() -> None:
    fed = Fed(known("call:all", pdd_p95_ms=1487.5, jitter_ms=5.0))
    good = rows({}, 30, {}, sources=["call"], **delays(4))
    bad = rows({}, 12, {}, sources=["call"], **delays(8, 12))
    fed(good, minutes=5)
    found = by_key(fed(good, bad, minutes=2))["pdd", "pdd", ()]
    assert (found.count, found.total) == (24, 5 * 30 + 2 * 42)
    assert "24 of 234 calls were slow in half an hour" in found.summary
    again = by_key(fed(bad))["pdd", "pdd", ()]
    assert (again.count, again.total) == (36, 246)
    fed(good, minutes=40)
    again = by_key(fed(bad, minutes=3))["pdd", "pdd", ()]
    assert (again.count, again.total) == (36, 27 * 30 + 36)


def test_readings_wait_for_ten_calls() -> None:
    fed = Fed(known("call:all", pdd_p95_ms=1487.5, jitter_ms=5.0))
    few = rows({}, 9, {}, sources=["call"], **delays(8, 9))
    assert fed(few) == []
    assert {one.source for one in fed(few)} == {"pdd", "jitter"}


def test_gauges_are_learned_by_the_hour_but_not_while_their_alarm_holds() -> None:
    fed = Fed(known("call:all", pdd_p95_ms=1487.5, jitter_ms=5.0))
    fed(rows({}, 30, {}, sources=["call"], **delays(4)), minutes=60)
    fed(rows({}, 30, {}, sources=["call"], **delays(8)), minutes=150)
    history = fed.baseline.history("call:all")
    assert history is not None
    assert len(history.gauges(0)) == 169
    assert max(history.gauges(0)) < 1500


# -------------------------------------------------------------------------------------- objectives


def test_an_objective_is_told_with_its_name_and_divided() -> None:
    slos = (
        Slo(name="gold", measure="asr", objective_percent=99, scope="trunk=acme"),
        Slo(name="all", objective_percent=99.9),
    )
    fed = Fed(None, DetectorSettings(slos=slos))
    fed(rows(ACME, 100, {}), rows(BETA, 100, {}), minutes=360)
    found = by_key(fed(rows(ACME, 100, {486: 50}), rows(BETA, 100, {}), minutes=25))
    alarm = found["slo", "slo-gold", TRUNK]
    assert alarm.severity == PAGE
    assert "99 % is promised (gold)" in alarm.summary
    assert ("slo", "slo-all", ()) in found
    divided = {share.values[1]: share for share in fed.detectors.shares(alarm)}
    assert divided["acme"].failed == 25 * 50
    assert divided["beta"].failed == 0
    assert fed.baseline.history("slo:gold") is not None


def test_an_objective_is_not_forgotten_in_a_month_without_calls() -> None:
    fed = Fed(None, DetectorSettings(slos=(Slo(name="gold", objective_percent=99),)))
    fed(rows(ACME, 100, {}))
    assert fed.baseline.series > 1
    fed.minute += 29 * 1440
    fed()
    assert fed.baseline.series == 1
    assert fed.detectors.series == 0


@pytest.mark.parametrize(
    ("slo", "why"),
    [
        ({"name": ""}, "name: expected"),
        ({"name": "x" * 65}, "name: expected"),
        ({"name": "a b"}, "name: expected"),
        ({"objective_percent": 100}, "objective_percent: expected"),
        ({"objective_percent": 0}, "objective_percent: expected"),
        ({"objective_percent": float("nan")}, "objective_percent: expected"),
        ({"scope": "trunk"}, "scope: expected"),
        ({"scope": "trunk="}, "scope: expected"),
        ({"scope": "node=a"}, "scope: expected"),
        ({"scope": "trunk=a,trunk=b"}, "scope: expected"),
        ({"scope": ""}, "scope: expected"),
    ],
)
def test_an_objective_that_cannot_be_is_named(slo: dict[str, Any], why: str) -> None:
    good = Slo(name="a", objective_percent=99)
    with pytest.raises(DetectorError, match=f"^slo 2: {why}"):
        check_slos([good, Slo(**{"name": "b", "objective_percent": 99, **slo})])


def test_objectives_are_bounded_and_have_names_of_their_own() -> None:
    good = Slo(name="a", objective_percent=99.95, scope="direction=in,trunk=a.b-c_d")
    check_slos([good, Slo(name="b", objective_percent=99)])
    with pytest.raises(DetectorError, match="slo 2: name: 'a' stands there twice"):
        check_slos([good, good])
    many = [Slo(name=f"a{i}", objective_percent=99) for i in range(MAX_SLOS + 1)]
    check_slos(many[:-1])
    with pytest.raises(DetectorError, match=f"slo {MAX_SLOS + 1}: there are more than {MAX_SLOS}"):
        check_slos(many)


# ------------------------------------------------------------------------------------- three sigma


def test_three_sigma_replaces_windows_and_cusum_and_is_kept_over_a_restart() -> None:
    settings = DetectorSettings(method="three_sigma", arm_hours=2)
    fed = Fed(None, settings)
    for _ in range(125):
        assert fed(rows({}, 30, {403: 2}, sources=["call"])) == []
    rows_ = fed.baseline.records(fed.minute * MINUTE_US, all_=True)
    assert sum(row.rate_minutes for row in rows_) == 125
    again = Fed(None, settings)
    again.minute = fed.minute
    again.baseline.load(rows_)
    found = by_key(again(rows({}, 30, {403: 9}, sources=["call"])))
    alarm = found["three-sigma", "4xx", ()]
    assert alarm.expected == pytest.approx(100 * 2 / 30)
    assert alarm.value == pytest.approx(30)
    assert not {"rate", "drift"}.intersection(source for source, _, _ in found)
    plain = Fed(None, DetectorSettings(arm_hours=2))
    plain.minute = fed.minute
    plain.baseline.load(rows_)
    assert plain(rows({}, 30, {403: 9}, sources=["call"])) == []


# ----------------------------------------------------------------------------- shares and learning


def test_an_excess_is_divided_among_all_cohorts_with_calls() -> None:
    baseline = known("call:all", "trunk:all", "trunk:trunk=beta", counts=(0, 180, 0, 0, 0, 0, 0))
    fed = Fed(baseline)
    quiet = {**BETA, "trunk": "quiet"}
    fed(rows(quiet, 30, {}))
    fed(rows(ACME, 30, {}), rows(BETA, 30, {503: 3}), minutes=10)
    coded = {**ACME, "codec": "G729"}
    found = by_key(
        fed(rows(ACME, 30, {503: 20}), rows(coded, 5, {503: 5}), rows(BETA, 30, {503: 3}))
    )
    alarm = found["rate", "5xx", TRUNK]
    minutes = alarm.evidence["minutes"]
    divided = {share.values: share for share in fed.detectors.shares(alarm)}
    acme = ("t1", "acme", "c1", "in", "eu", "", "")
    beta = ("t2", "beta", "c1", "in", "us", "", "")
    assert set(divided) == {acme, (*acme[:-1], "G729"), beta}
    assert divided[acme].total == 30 * minutes
    assert divided[acme].failed == 20
    assert divided[beta].failed == 3 * minutes
    assert divided[beta].expected == pytest.approx(divided[beta].total * 0.1, rel=0.01)
    assert fed.detectors.shares(alarm) == fed.detectors.shares(alarm)
    other = msgspec.structs.replace(alarm, category="codec-change")
    assert fed.detectors.shares(other) == []


def test_an_alarm_of_nobody_is_divided_by_what_happened_lately() -> None:
    fed = Fed()
    fed(rows(ACME, 30, {503: 20}), minutes=3)
    alarm = Alarm(source="trunk", category="5xx", scope=(("trunk", "new"),), at=0)
    (share,) = fed.detectors.shares(alarm)
    assert (share.total, share.failed) == (90, 60)
    assert share.expected == pytest.approx(18)
    fed(minutes=70)
    assert fed.detectors.shares(alarm) == []


def test_where_nothing_was_seen_there_is_nothing_to_divide() -> None:
    assert Fed().detectors.shares(Alarm(source="trunk", category="5xx", at=0)) == []


def test_a_cohort_whose_attempts_all_failed_otherwise_has_no_seizures_to_divide() -> None:
    fed = Fed()
    alarm = Alarm(source="rate", category="5xx", at=0)
    only = KpiMinute(
        received_at=0, minute_at=0, source="call", pdd_count=3, pdd_sum_ms=1.0, pdd_buckets=(3,)
    )
    fed(([only], []))
    assert fed.detectors.shares(alarm) == []


def test_old_codes_are_outweighed_by_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipsidecar.signals.detectors._MIX_MOST", 100)
    counts = (360, 0, 0, 0, 0, 0, 0)
    fed = Fed(known("call:all", counts=counts, answered=1440, effective=1440))
    fed(rows({}, 100, {488: 20}, sources=["call"]), minutes=100)
    fed(rows({}, 100, {403: 20}, sources=["call"]), minutes=100)
    found = by_key(fed(rows({}, 100, {488: 40, 403: 40}, sources=["call"])))
    codes = dict(found["rate", "4xx", ()].codes)
    assert codes[488] > codes[403]


def learned(fed: Fed, name: str) -> list[int]:
    history = fed.baseline.history(name)
    assert history is not None
    history.settle(fed.minute - 1)
    return history.sums[:2]


def test_minutes_of_an_alarm_teach_its_series_nothing() -> None:
    fed = Fed(known("call:all"))
    before = learned(fed, "call:all")
    fed(rows({}, 30, {}, sources=["call"]), minutes=20)
    fed(rows({}, 30, {503: 20}, sources=["call"]), minutes=30)
    for _ in range(60):
        fed(rows({}, 30, {}, sources=["call"]))
    after = learned(fed, "call:all")
    assert 50 <= after[0] - before[0] <= 70
    history = fed.baseline.history("call:all")
    assert history is not None
    assert history.expect(MONDAY // 60 + 24)[CATEGORIES.index("5xx")] < 0.01


def test_what_holds_for_more_than_two_days_is_learned() -> None:
    fed = Fed(known("call:all"))
    bad = rows({}, 30, {503: 10}, sources=["call"])
    before = learned(fed, "call:all")
    fed(bad, minutes=47 * 60)
    assert learned(fed, "call:all")[0] - before[0] < 10
    fed(bad, minutes=10 * 60)
    assert learned(fed, "call:all")[0] - before[0] > 8 * 60


def test_minutes_of_an_incident_are_taken_back_within_its_scope() -> None:
    fed = Fed()
    fed(rows(ACME, 30, {}), rows(BETA, 30, {}), minutes=130)
    for name in ("trunk:trunk=acme", "trunk:trunk=beta", "call:all"):
        assert learned(fed, name)[0] == 130
    since, until = (MONDAY + 10) * MINUTE_US + 5, (MONDAY + 40) * MINUTE_US
    for _ in range(2):
        fed.detectors.exclude(TRUNK, since, until)
    combined = "trunk:tenant=t1,trunk=acme,direction=in,region=eu"
    assert learned(fed, "trunk:trunk=acme")[0] == 100
    assert learned(fed, combined)[0] == 100
    assert learned(fed, "trunk:trunk=beta")[0] == 130
    assert learned(fed, "call:all")[0] == 130
    fed.detectors.exclude((), since, until)
    assert learned(fed, "call:all")[0] == 100
    fed(rows(ACME, 30, {}))


def test_what_an_earlier_life_learned_is_normal_as_soon_as_it_is_loaded() -> None:
    fed = Fed()
    part = rows({}, 30, {503: 20}, sources=["call"])
    found = by_key(fed(part, minutes=2))
    assert found["rate", "5xx", ()].evidence["known"] == "cold"
    fed.baseline.load(hour(MONDAY // 60 - each, "call:all") for each in range(1, 169))
    found = by_key(fed(part))
    assert found["rate", "5xx", ()].evidence["known"] == "own"


# ---------------------------------------------------------------------------------------- bounds


def test_series_and_cohorts_are_bounded() -> None:
    fed = Fed(Baseline(max_series=10))
    parts = [rows({"trunk": f"k{i}"}, 30, {503: 29}) for i in range(50)]
    found = fed(*parts)
    assert fed.detectors.series == 10
    assert fed.detectors.folded == 42
    assert ("rate", "5xx", ()) in by_key(found)
    fed(*parts)
    assert fed.detectors.folded == 84


def test_cohorts_that_an_excess_cannot_be_divided_among_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sipsidecar.signals.detectors.MAX_COHORTS", 4)
    monkeypatch.setattr("sipsidecar.signals.detectors.MAX_KNOWN", 3)
    fed = Fed()
    parts = [rows({"trunk": f"k{i}"}, 30, {503: 29}) for i in range(5)]
    fed(*parts)
    assert fed.detectors.unshared == 6
    fed.minute = (fed.minute // 60 + 3) * 60
    fed(*parts[:1])  # those of the last hour are gone
    assert fed.detectors.unshared == 6


def test_a_series_of_a_month_ago_is_forgotten() -> None:
    fed = Fed()
    fed(rows(ACME, 30, {}))
    many = fed.detectors.series
    fed.minute += 28 * 1440 - 60
    fed(rows({}, 1, {}, sources=["call"]))
    assert fed.detectors.series == many
    fed.minute += 120
    fed(rows({}, 1, {}, sources=["call"]))
    assert fed.detectors.series == 1
