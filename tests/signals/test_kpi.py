import random
import statistics
from collections import Counter
from math import ceil, comb, sqrt
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls.events import AttemptRecord, CallRecord, Cohort, MediaRecord, Move, Setup
from sipsidecar.signals import kpi
from sipsidecar.signals.kpi import Figures, Key, Windows
from sipsidecar.signals.rules import SCOPES

ALL = Key()
ACME = Key("trunk", "acme")
OTHER = Key("trunk", "other")


def call(code: int | None = 200, **more: Any) -> CallRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "received_at": 0, "started_at": 0}
    whole |= {"seizure": True}
    answered = code is not None and 200 <= code < 300
    return CallRecord(**whole | {"final_code": code, "answered": answered} | more)


def attempt(code: int | None = 200, trunk: str | None = "acme", **more: Any) -> AttemptRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "branch": "b", "received_at": 0}
    answered = code is not None and 200 <= code < 300
    said = {"started_at": 0, "final_code": code, "answered": answered, "trunk": trunk}
    return AttemptRecord(**whole | said | more)


def media(loss: float | None, **more: Any) -> MediaRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "stream": "s", "received_at": 0}
    said = {"direction": "unknown", "started_at": 0, "ended_at": 0, "loss_percent": loss}
    return MediaRecord(**whole | said | more)


def windows(**more: Any) -> Windows:
    return Windows(SCOPES, **more)


def fed(*setups: Setup) -> Windows:
    made = windows()
    for setup in setups:
        made.receive_setup(setup, 100.0)
    return made


def read(made: Windows, key: Key = ALL, seconds: float = 300.0, now: float = 100.0) -> Figures:
    return made.read(key, seconds, now)


def judge(made: Windows, measure: str, limit: float, key: Key = ALL, least: int = 20) -> Any:
    """A `Verdict`; of no type, so that it compares with what is only about."""
    return made.surely_bad(key, measure, limit, 300.0, 100.0, min_samples=least)


def of_attempt(one: AttemptRecord, whole: CallRecord, *others: AttemptRecord) -> Figures:
    return read(fed(Setup(whole, (one, *others))), ACME)


def what(figures: Figures) -> str:
    """What the only attempt of a window was counted as."""
    assert figures.attempts <= 1
    if not figures.attempts:
        return "own" if figures.own_refusals else "nothing"
    if figures.by_class["unknown"]:
        assert not figures.seizures
        return "unknown"
    if not figures.seizures:
        return "no seizure"
    if figures.answered:
        assert figures.effective
        return "answered"
    return "effective" if figures.effective else "failed"


# ------------------------------------------------------------------------- what counts as what

VECTOR = (
    (60, 200), (10, 486), (8, 480), (5, 487), (4, 404), (3, 603), (4, 503), (2, 500), (2, 408), (2, 302)
)  # fmt: skip
"""RFC 6076's and E.425's ratios of 100 attempts, worked out by hand."""


@pytest.mark.parametrize("key", [ALL, ACME])
def test_the_ratios_of_a_hundred_attempts_are_those_worked_out_by_hand(key: Key) -> None:
    made = fed(
        *(
            Setup(call(code, seizure=code != 302), (attempt(code),))
            for count, code in VECTOR
            for _ in range(count)
        )
    )
    found = read(made, key)
    assert (found.attempts, found.seizures, found.answered, found.effective) == (100, 98, 60, 86)
    assert found.asr_percent == pytest.approx(61.2245, abs=1e-4)
    assert found.ner_percent == pytest.approx(87.7551, abs=1e-4)
    assert found.server_errors_percent == pytest.approx(100 * 6 / 98)
    classes = {"2xx": 60, "3xx": 2, "4xx": 29, "5xx": 6, "6xx": 3, "unknown": 0}
    assert found.by_class == classes


def test_an_empty_window_says_nothing() -> None:
    assert read(windows()) == Figures(
        seconds=300.0, by_class=dict.fromkeys(("2xx", "3xx", "4xx", "5xx", "6xx", "unknown"), 0)
    )


@pytest.mark.parametrize(
    ("code", "more", "counted"),
    [
        (200, {}, "answered"),
        (202, {}, "answered"),
        (200, {"inferred": True, "flags": ("answer_inferred",)}, "answered"),
        (486, {}, "effective"),
        (600, {}, "effective"),
        (607, {}, "effective"),
        (608, {}, "effective"),
        (480, {}, "effective"),
        (487, {}, "effective"),
        (487, {"inferred": True}, "effective"),
        (408, {}, "failed"),
        (408, {"ring_ms": 900.0}, "effective"),
        (408, {"inferred": True, "flags": ("no_response",)}, "failed"),
        (408, {"inferred": True, "flags": ("stuck_early",), "ring_ms": 9.0}, "effective"),
        (404, {}, "failed"),
        (422, {}, "failed"),
        (500, {}, "failed"),
        (604, {}, "failed"),
        (None, {"flags": ("final_lost",)}, "unknown"),
        (None, {"flags": ("interrupted",)}, "nothing"),
        (999, {}, "unknown"),
    ],
)
def test_a_final_code_counts_alike_of_a_call_and_of_an_attempt(
    code: int | None, more: dict[str, Any], counted: str
) -> None:
    assert what(read(fed(Setup(call(code, **more), ())))) == counted
    assert what(of_attempt(attempt(code, **more), call(500))) == counted


@pytest.mark.parametrize("code", [401, 407])
def test_a_challenge_counts_only_when_nobody_answered_it(code: int) -> None:
    left: dict[str, Any] = {"flags": ("auth_not_completed",)}
    assert what(read(fed(Setup(call(code, **left), ())))) == "no seizure"
    assert what(of_attempt(attempt(code, **left), call(code, **left))) == "no seizure"
    answered = attempt(code, flags=("challenged",))
    assert what(of_attempt(answered, call(200, flags=("challenged",)))) == "nothing"
    # the second challenge was left unanswered
    both = {"flags": ("auth_not_completed", "challenged")}
    assert what(read(fed(Setup(call(code, **both), ())))) == "no seizure"


def test_an_attempt_that_was_sent_again_with_what_was_asked_for_is_none() -> None:
    first = attempt(422, peer_ip="203.0.113.5", peer_port=5060)
    again = attempt(200, peer_ip="203.0.113.5", peer_port=5060, failover_order=2)
    elsewhere = attempt(200, "other", peer_ip="203.0.113.9", peer_port=5060, failover_order=2)
    assert what(of_attempt(first, call(200), again)) == "answered"
    assert what(of_attempt(first, call(200), elsewhere)) == "failed"


def test_a_redirected_call_is_no_seizure() -> None:
    assert what(read(fed(Setup(call(302, seizure=False), ())))) == "no seizure"


def test_a_call_whose_invite_was_never_seen_is_nothing() -> None:
    for code in (None, 200, 503):
        whole = call(code, seizure=False, flags=("partial_no_invite",))
        assert what(read(fed(Setup(whole, ())))) == "nothing"


def test_a_call_that_we_refused_is_nothing_but_that() -> None:
    whole = call(486, final_origin="admission", tenant="t", trunk="acme", pdd_ms=3.0)
    made = fed(Setup(whole, (attempt(486),)))
    for key in (ALL, Key("tenant", "t"), ACME):
        found = read(made, key)
        assert what(found) == "own"
        assert (found.own_refusals, found.pdd_count, found.asr_percent) == (1, 0, None)
    assert judge(made, "asr_percent", 99, least=1).samples == 0


S = 1_000_000
LOST = {"inferred": True, "flags": ("no_response",)}
STUCK = {"inferred": True, "flags": ("stuck_early",)}


@pytest.mark.parametrize(
    ("more", "whole", "later_at", "counted"),
    [
        # the next one was tried in its place
        (LOST, call(200, setup_ms=2000.0), 1 * S, "failed"),
        (STUCK, call(200, setup_ms=2000.0), 1 * S, "failed"),
        # a fork: the other side was quicker, and nobody knows what this one would have said
        (LOST, call(200, setup_ms=2000.0), 100, "unknown"),
        (STUCK, call(200, setup_ms=9000.0), 100, "unknown"),
        # not even a 100 within four seconds
        (LOST, call(200, setup_ms=4000.0), 100, "failed"),
        (LOST, call(200, setup_ms=2000.0, ended_at=60 * S), 100, "unknown"),
        (LOST, call(200, ended_at=60 * S), 100, "unknown"),
        # the caller gave up
        (LOST, call(487, ended_at=2 * S), None, "unknown"),
        (LOST, call(487, ended_at=5 * S), None, "failed"),
        (LOST, call(487), None, "unknown"),
        (STUCK, call(487, ended_at=60 * S), None, "unknown"),
        # the call failed by itself, so all its attempts had
        (LOST, call(408), None, "failed"),
        (STUCK, call(500), None, "failed"),
        (LOST, call(None, flags=("final_lost",)), None, "failed"),
    ],
)
def test_an_attempt_without_a_final_failed_only_where_that_is_proven(
    more: dict[str, Any], whole: CallRecord, later_at: int | None, counted: str
) -> None:
    others = () if later_at is None else (attempt(200, "b", started_at=later_at, failover_order=2),)
    assert what(of_attempt(attempt(408, **more), whole, *others)) == counted


# ------------------------------------------------------------------------------------- whose


def test_a_call_speaks_for_its_labels_and_its_attempts_for_their_trunks() -> None:
    labels = {"tenant": "t", "direction": "in", "region": "eu", "trunk": "ingress"}
    made = windows(nodes={7: "edge", 9: "core"})
    made.receive_setup(
        Setup(
            call(200, **labels, pdd_ms=900.0, agent_ids=(3, 7, 9)),
            (attempt(503, "acme"), attempt(200, "beta", pdd_ms=400.0)),
        ),
        100.0,
    )
    for scope, value in {**labels, "node": "edge", "global": ""}.items():
        found = read(made, Key(scope, value))
        assert what(found) == "answered"
        assert found.pdd_p50_ms == pytest.approx(900, rel=0.025)
    assert what(read(made, ACME)) == "failed"
    assert read(made, ACME).pdd_count == 0
    beta = read(made, Key("trunk", "beta"))
    assert what(beta) == "answered"
    assert beta.pdd_p50_ms == pytest.approx(400, rel=0.025)
    assert read(made, Key("node", "core")).attempts == 0
    assert made.keys == 7


def test_a_call_does_not_speak_for_a_trunk_that_its_attempts_speak_for() -> None:
    made = fed(Setup(call(200, trunk="acme"), (attempt(503), attempt(503, failover_order=2))))
    assert (read(made, ACME).attempts, read(made, ACME).answered) == (2, 0)
    # even when none of them counts
    made = fed(Setup(call(200, trunk="acme"), (attempt(401, flags=("challenged",)),)))
    assert read(made, ACME).attempts == 0


def test_without_labels_a_call_counts_among_all_calls_alone() -> None:
    made = fed(Setup(call(200), (attempt(503, None),)))
    made.receive_call(call(mos=4.0, mos_scale="nb"), 100.0)
    made.receive_media(media(1.0), call(), 100.0)
    made.receive_media(media(3.0), None, 100.0)
    assert made.keys == 0
    found = read(made)
    assert (found.attempts, found.mos, found.loss_percent) == (1, 4.0, 2.0)


def test_a_node_without_a_name_is_other() -> None:
    made = windows(nodes={7: "edge"})
    made.receive_setup(Setup(call(200, agent_ids=(8,)), ()), 100.0)
    assert read(made, Key("node", "other")).attempts == 1


def test_only_what_is_asked_for_is_kept() -> None:
    made = Windows(["tenant"], nodes={7: "edge"})
    whole = call(200, tenant="t", region="eu", trunk="x", agent_ids=(7,))
    made.receive_setup(Setup(whole, (attempt(200),)), 1.0)
    made.receive_media(media(1.0), whole, 1.0)
    assert made.keys == 1
    assert read(made, Key("tenant", "t")).loss_count == 1


def test_more_keys_than_may_be_count_as_other_and_are_counted() -> None:
    made = windows(max_keys=3)
    for number in range(10):
        whole = call(200, tenant=f"t{number}")
        made.receive_setup(Setup(whole, (attempt(200, f"k{number}"),)), 100.0)
        made.receive_setup(Setup(whole, ()), 100.0)
        made.receive_media(media(1.0), whole, 100.0)
    # k0 t0 k1 had room, and `other` of each scope always has
    assert made.keys == 5
    assert read(made, Key("tenant", "t0")).attempts == 2
    assert read(made, Key("tenant", "t1")).attempts == 0
    assert read(made, Key("tenant", "other")).attempts == 18
    assert read(made, Key("tenant", "other")).loss_count == 9
    assert read(made, Key("trunk", "other")).attempts == 8
    assert read(made).attempts == 20
    assert made.folded == 18 + 9 + 8


def test_nothing_is_kept_of_a_key_that_was_idle() -> None:
    made = windows(longest=300.0, max_keys=2)
    made.receive_setup(Setup(call(200, tenant="a", region="r"), ()), 0.0)
    made.receive_setup(Setup(call(200, tenant="b", region="r"), ()), 10.0)
    assert read(made, Key("tenant", "other"), now=10.0).attempts == 1
    for late in range(100):
        made.receive_setup(Setup(call(200, region="r"), ()), 400.0 + 100 * late)
    assert made.keys == 1
    made.receive_setup(Setup(call(200, tenant="b", region="r"), ()), 10_400.0)
    assert read(made, Key("tenant", "b"), now=10_400.0).attempts == 1
    read(made, now=99_999.0)
    assert made.keys == 0


def test_labels_without_end_do_not_make_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kpi, "MAX_GROUPS", 8)
    made = windows(max_keys=4)
    for number in range(100):
        made.receive_setup(Setup(call(200, tenant=f"t{number % 50}", region="r"), ()), 100.0)
        assert len(made._groups) <= 8
    assert made.keys == 5
    assert read(made, Key("region", "r")).attempts == 100
    assert read(made, Key("tenant", "t1")).attempts == 2


# ------------------------------------------------------------------------------------- delays


@given(st.lists(st.floats(1.0, 3_600_000.0), min_size=1, max_size=60))
def test_percentiles_are_within_the_promised_share_of_the_truth(delays: list[float]) -> None:
    found = read(fed(*(Setup(call(200, pdd_ms=ms), ()) for ms in delays)))
    ordered = sorted(delays)
    for share, value in ((0.5, found.pdd_p50_ms), (0.95, found.pdd_p95_ms)):
        truth = ordered[ceil(share * len(ordered)) - 1]
        assert value == pytest.approx(truth, rel=0.025)
    assert found.pdd_count == len(delays)


@pytest.mark.parametrize(("ms", "shown"), [(0.0, 0.5), (0.99, 0.5), (1e9, 3.6e6)])
def test_a_delay_out_of_the_range_is_at_its_edge(ms: float, shown: float) -> None:
    found = read(fed(Setup(call(200, pdd_ms=ms), ())))
    assert found.pdd_p95_ms == pytest.approx(shown, rel=0.05)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1.0, 7.0, 100.0, 2000.0, 5000.0])
def test_a_delay_is_never_over_a_limit_that_it_keeps(limit: float) -> None:
    made = fed(*(Setup(call(200, pdd_ms=limit), ()) for _ in range(500)))
    assert judge(made, "pdd_p95_ms", limit).bad is False
    made = fed(*(Setup(call(200, pdd_ms=max(limit, 1) * 1.051), ()) for _ in range(500)))
    assert judge(made, "pdd_p95_ms", limit).bad


def test_slow_calls_are_bad_when_they_are_surely_more_than_one_in_twenty() -> None:
    def bad(slow: int, of: int) -> Any:
        delays = [9000.0] * slow + [300.0] * (of - slow)
        made = fed(*(Setup(call(200, pdd_ms=ms), ()) for ms in delays))
        return judge(made, "pdd_p95_ms", 5000.0)

    assert bad(3, 40).bad is False
    assert bad(3, 40).value == pytest.approx(9000, rel=0.025)
    assert bad(12, 40).bad is True
    assert bad(60, 1000).bad is False
    assert bad(90, 1000).bad is True
    assert bad(10, 10) == (None, pytest.approx(9000, rel=0.025), 10)


# -------------------------------------------------------------------------------------- media


@given(st.lists(st.floats(1.0, 4.6), min_size=1, max_size=40))
def test_mean_and_deviation_of_what_was_heard_are_the_true_ones(opinions: list[float]) -> None:
    made = windows()
    for mos in opinions:
        made.receive_call(call(mos=mos, mos_scale="nb"), 100.0)
        made.receive_media(media(mos), None, 100.0)
    found = read(made)
    assert found.mos_count == found.loss_count == len(opinions)
    for mean, deviation in (
        (found.mos, found.mos_deviation),
        (found.loss_percent, found.loss_deviation),
    ):
        assert mean == pytest.approx(statistics.fmean(opinions), abs=1e-4)
        if len(opinions) > 1:
            assert deviation == pytest.approx(statistics.stdev(opinions), abs=2e-4)
        else:
            assert deviation is None
    worst = sorted(opinions)[ceil(0.05 * len(opinions)) - 1]
    assert found.mos_p05 == pytest.approx(worst, abs=0.026)


def test_what_was_not_rated_is_not_heard_badly() -> None:
    made = windows()
    made.receive_call(call(), 100.0)
    made.receive_media(media(None), call(), 100.0)
    assert (read(made).mos_count, read(made).loss_count) == (0, 0)
    assert judge(made, "mos", 3.5, least=1) == (None, None, 0)
    assert judge(made, "loss_percent", 1, least=1) == (None, None, 0)


@pytest.mark.parametrize("wild", [1e300, -1e300, float("inf"), -float("inf")])
def test_figures_out_of_all_bounds_are_at_the_bounds(wild: float) -> None:
    made = windows()
    made.receive_call(call(mos=wild, mos_scale="nb"), 100.0)
    made.receive_media(media(wild), None, 100.0)
    made.receive_media(media(wild), None, 110.0)
    found = read(made, now=110.0)
    assert found.mos in (1.0, 5.0)
    assert found.loss_percent in (0.0, 100.0)


def hearing(**scales: list[float]) -> Windows:
    made = windows()
    for scale, opinions in scales.items():
        for mos in opinions:
            made.receive_call(call(mos=mos, mos_scale=scale, trunk="acme"), 100.0)
    return made


def test_opinions_of_two_scales_are_never_one_mean() -> None:
    made = hearing(nb=[4.4] * 30, wb=[3.0, 3.2] * 20)
    found = read(made, ACME)
    assert (found.mos_scale, found.mos_count) == ("wb", 40)
    assert found.mos == pytest.approx(3.1)
    # the scale that is bad says so, be it that of few or of many calls
    for others in (0, 30, 300):
        made = hearing(nb=[4.4, 4.3] * (others // 2), wb=[3.0, 3.2] * 20, fb=[1.0] * 3)
        verdict = judge(made, "mos", 3.5, ACME)
        assert verdict == (True, pytest.approx(3.1), 40)
    made = hearing(nb=[4.4] * 30, wb=[3.9] * 25, fb=[1.0] * 3)
    verdict = judge(made, "mos", 3.5, ACME)
    assert verdict == (False, pytest.approx(3.9), 25)
    made = hearing(nb=[1.4] * 5, fb=[1.0] * 3)
    verdict = judge(made, "mos", 3.5, ACME)
    assert verdict == (None, pytest.approx(1.4), 5)


def test_one_opinion_is_never_sure() -> None:
    made = hearing(nb=[1.0])
    assert judge(made, "mos", 3.5, ACME, least=1).bad is None


def test_a_mean_is_bad_when_its_bound_is_past_the_limit() -> None:
    values = [3.3, 3.5] * 32
    spread = kpi.Z * statistics.stdev(values) / sqrt(64)
    made = hearing(nb=values)
    for limit, bad in ((3.4 + spread + 0.001, True), (3.4 + spread - 0.001, False), (3.4, False)):
        assert judge(made, "mos", limit, ACME).bad is bad
    lossy = windows()
    for loss in values:
        lossy.receive_media(media(loss), None, 100.0)
    for limit, bad in ((3.4 - spread - 0.001, True), (3.4 - spread + 0.001, False), (3.4, False)):
        assert judge(lossy, "loss_percent", limit).bad is bad


# ------------------------------------------------------------------------------------- shares


@given(st.integers(1, 2000), st.floats(0, 1))
def test_the_bounds_of_a_share_are_the_roots_of_the_score_test(whole: int, share: float) -> None:
    part = round(share * whole)
    for bound in kpi._bounds(part, whole):
        assert -1e-9 <= bound <= 1 + 1e-9
        left = (part / whole - bound) ** 2
        assert left == pytest.approx(kpi.Z**2 * bound * (1 - bound) / whole, abs=1e-9)


@pytest.mark.parametrize(
    ("measure", "good", "bad", "limit", "trip"),
    [
        ("asr_percent", 200, 486, 50.0, 0.5),
        ("ner_percent", 486, 503, 90.0, 0.1),
        ("server_errors_percent", 486, 500, 10.0, 0.1),
    ],
)
def test_a_share_at_its_limit_is_seldom_called_bad_and_one_past_it_soon(
    measure: str, good: int, bad: int, limit: float, trip: float
) -> None:
    rng = random.Random(6)
    good_one, bad_one = Setup(call(good), ()), Setup(call(bad), ())

    def trips(share: float) -> int:
        found = 0
        for _ in range(300):
            made = fed(*(bad_one if rng.random() < share else good_one for _ in range(100)))
            found += judge(made, measure, limit).bad is True
        return found

    assert trips(trip) <= 3
    assert trips(min(1.0, trip + 0.35)) >= 290


@pytest.mark.parametrize("whole", [20, 27, 60, 150, 200, 201, 400])
@pytest.mark.parametrize(("measure", "limit"), [("server_errors_percent", 10), ("asr_percent", 30)])
def test_a_share_at_its_limit_is_not_called_bad_more_often_than_promised(
    measure: str, limit: float, whole: int
) -> None:
    """With few calls, too: a gate looks at them each second, all night."""
    bad_code, good_code = (503, 200) if measure == "server_errors_percent" else (404, 200)
    share = limit / 100 if measure == "server_errors_percent" else 1 - limit / 100

    def is_bad(part: int) -> bool:
        made = windows()
        for number in range(whole):
            code = bad_code if number < part else good_code
            made.receive_setup(Setup(call(code), ()), 100.0)
        return bool(judge(made, measure, limit).bad)

    first = next((part for part in range(whole + 1) if is_bad(part)), whole + 1)
    chance = sum(
        comb(whole, count) * share**count * (1 - share) ** (whole - count)
        for count in range(first, whole + 1)
    )
    # Wilson's interval alone says 0.24 % of 7 of 20.
    assert chance < (0.001 if whole <= kpi.FEW else 0.002)


def test_few_calls_say_nothing_of_a_share() -> None:
    made = fed(*(Setup(call(503), ()) for _ in range(19)))
    assert judge(made, "asr_percent", 50) == (None, 0.0, 19)
    assert judge(made, "asr_percent", 50, least=19) == (True, 0.0, 19)
    nothing = judge(windows(), "ner_percent", 50, least=1)
    assert nothing == (None, None, 0)


@pytest.mark.parametrize(
    ("measure", "limit", "code"),
    [("server_errors_percent", 30, 503), ("asr_percent", 30, 404), ("ner_percent", 60, 404)],
)
def test_setups_that_go_on_count_as_good_where_a_share_is_judged(
    measure: str, limit: float, code: int
) -> None:
    made = windows()
    for _ in range(40):
        made.receive_setup(Setup(call(code), (attempt(code),)), 100.0)
    before = judge(made, measure, limit, ACME)
    assert before.bad is True
    for number in range(100):
        made.receive_move(Move(str(number), "trying", Cohort(trunk="acme")))
    said = judge(made, measure, limit, ACME)
    assert (said.bad, said.value, said.samples) == (False, before.value, before.samples)
    assert judge(made, measure, limit, OTHER).bad is None
    assert read(made, ACME) == read(fed(*[Setup(call(code), (attempt(code),))] * 40), ACME)


@pytest.mark.parametrize("state", ["answered", None])
def test_a_setup_goes_on_until_it_is_answered_or_over(state: str | None) -> None:
    made = windows()
    here, there = Cohort(trunk="acme"), Cohort(trunk="beta", tenant="one")
    for said in (here, here, there, there):
        made.receive_move(Move("a", "ringing", said))
    assert made.going == {
        ("global", ""): 1, ("tenant", "one"): 1, ("trunk", "beta"): 1, ("direction", "other"): 1,
        ("region", "other"): 1, ("node", "other"): 1, ("carrier", "other"): 1, ("agent", "other"): 1,
    }  # fmt: skip
    for _ in range(2):
        made.receive_move(Move("a", state, there))
        assert made.going == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["trying", "ringing", "answered", None]), st.sampled_from("xy"))))  # fmt: skip
def test_setups_that_go_on_are_counted_as_they_are(
    moves: list[tuple[str, str | None, str]],
) -> None:
    made, truth = windows(), dict[str, str]()
    for name, state, trunk in moves:
        made.receive_move(Move(name, state, Cohort(trunk=trunk)))
        truth.pop(name, None)
        if state in ("trying", "ringing"):
            truth[name] = trunk
    for trunk in "xy":
        assert made.going["trunk", trunk] == list(truth.values()).count(trunk)
    assert made.going["global", ""] == len(truth)


def test_setups_without_end_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kpi, "MAX_GOING", 10)
    made = windows()
    for number in range(15):
        made.receive_move(Move(str(number), "trying", Cohort()))
    assert (made.going["global", ""], made.overlooked) == (10, 5)
    made.receive_move(Move("3", "ringing", Cohort(trunk="acme")))  # room is made first
    assert (made.going["trunk", "acme"], made.overlooked) == (1, 5)


def test_what_is_no_measure_of_quality_is_not_judged() -> None:
    with pytest.raises(ValueError, match="cpu_percent"):
        judge(windows(), "cpu_percent", 50, least=1)


# ------------------------------------------------------------------------------------ windows


class Fed(NamedTuple):
    slot: int
    key: Key
    code: int
    pdd: float | None


EVENTS = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 4.0, 5.0, 17.0, 100.0, 700.0]),
    st.sampled_from(["", "x", "y", "z"]),
    st.sampled_from([200, 486, 503, 302, 401]),
    st.sampled_from([None, 0.0, 50.0, 7000.0]),
)
READS = st.tuples(
    st.sampled_from([1.0, 5.0, 30.0, 300.0, 9999.0]),
    st.one_of(st.none(), st.sampled_from([0.0, 3.0, 20.0, 250.0])),
    st.sampled_from(["", "x", "y"]),
)


@settings(max_examples=150)
@given(st.lists(st.one_of(EVENTS, READS), max_size=60), st.sampled_from([1.0, 5.0, 7.0]))
def test_a_window_holds_what_came_in_it_and_nothing_else(
    steps: list[tuple[Any, ...]], step: float
) -> None:
    longest = 600.0
    made = windows(longest=longest, step=step)
    known: list[Fed] = []
    now = 1000.0
    for each in steps:
        if len(each) == 4:
            pause, tenant, code, pdd = each
            now += pause
            whole = call(code, tenant=tenant or None, pdd_ms=pdd)
            made.receive_setup(Setup(whole, ()), now)
            known.append(Fed(int(now // step), Key("tenant", tenant), code, pdd))
            continue
        seconds, ago, tenant = each
        key = Key("tenant", tenant) if tenant else ALL
        since = None if ago is None else now - ago
        first = int((now - min(seconds, longest)) // step)
        if since is not None:
            first = max(first, ceil(since / step))
        there = [one for one in known if one.slot >= first and key in (ALL, one.key)]
        found = made.read(key, seconds, now, since)
        assert found.seconds == pytest.approx(max(0.0, now - first * step))
        codes = Counter(one.code // 100 for one in there)
        assert found.by_class == {f"{c}xx": codes[c] for c in range(2, 7)} | {"unknown": 0}
        assert found.seizures == sum(one.code not in (302, 401) for one in there)
        assert found.pdd_count == sum(one.pdd is not None for one in there)
        verdict = made.surely_bad(
            key, "asr_percent", 50.0, seconds, now, min_samples=1, since=since
        )
        assert (verdict.samples, verdict.value) == (found.seizures, found.asr_percent)


def test_a_window_is_never_shorter_than_asked_and_at_most_a_step_longer() -> None:
    for tenth in range(200):
        came = 1000 + tenth / 10
        for seconds in (1.0, 5.0, 12.0):
            for later in (0.0, 0.5, 0.9, 1.0):
                made = windows()
                made.receive_setup(Setup(call(200), ()), came)
                assert made.read(ALL, seconds, came + later * seconds).attempts == 1
            assert made.read(ALL, seconds, came + seconds + 5.01).attempts == 0


def test_nothing_from_before_is_in_a_window_since() -> None:
    made = windows()
    for tenth in range(1000):
        made.receive_setup(Setup(call(503 if tenth < 503 else 200), ()), tenth / 10)
    found = made.read(ALL, 300.0, 99.9, since=50.3)
    assert found.answered == found.attempts == 450
    assert found.seconds == pytest.approx(44.9)
    # what began in this very step has said nothing yet
    assert made.read(ALL, 300.0, 99.9, since=99.0) == made.read(ACME, 300.0, 99.9, since=99.0)
    assert made.read(ALL, 300.0, 99.9, since=99.0).seconds == 0.0


def test_windows_of_many_rules_do_not_disturb_each_other() -> None:
    made = windows()
    for second in range(600):
        made.receive_setup(Setup(call(200), ()), second)
    for turn in range(3):
        for seconds in range(10, 10 + 2 * kpi.MAX_WINDOWS):
            found = made.read(ALL, float(seconds), 600.0 + turn)
            assert found.attempts == 600 - int((600 + turn - seconds) // 5) * 5
    assert len(made._global.windows) <= kpi.MAX_WINDOWS


def test_a_clock_that_stands_still_or_goes_back_loses_nothing() -> None:
    made = windows()
    for now in (100.0, 100.0, 94.0, 101.0):
        made.receive_setup(Setup(call(200, trunk="acme"), ()), now)
    assert read(made, ALL, now=101.0).attempts == read(made, ACME, now=101.0).attempts == 4
    assert made.read(ALL, 300.0, 50.0).attempts == 4


def test_sums_do_not_drift_over_many_windows() -> None:
    made = windows(longest=60.0)
    rng = random.Random(1)
    for second in range(3000):
        made.receive_call(call(mos=rng.uniform(1, 4.5), mos_scale="nb"), second)
        made.read(ALL, 60.0, second)
    assert read(made, ALL, 60.0, now=3060.0 + 5).mos_count == 0
    for _ in range(30):
        made.receive_call(call(mos=4.2, mos_scale="nb"), 4000.0)
    found = read(made, ALL, 60.0, now=4001.0)
    assert (found.mos_count, found.mos, found.mos_deviation) == (30, 4.2, 0.0)
