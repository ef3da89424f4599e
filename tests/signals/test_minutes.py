import math
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls.emodel import CODEC_ASSUMED, codec_of
from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    Cohort,
    MediaRecord,
    RegistrationRecord,
    Setup,
)
from sipsidecar.signals import minutes
from sipsidecar.signals.alarms import DIMENSIONS
from sipsidecar.signals.minutes import (
    DELAY_BOUNDS_MS,
    LOSS_BOUNDS_PERCENT,
    MINUTE,
    MOS_BOUNDS,
    TALK_BOUNDS_SECONDS,
    CodeMinute,
    KpiMinute,
    Minutes,
)
from sipsidecar.signals.ratios import added
from sipsidecar.wire import sdp

T0 = 1_795_000_020_000_000 // MINUTE * MINUTE
S = 1_000_000
LABELS: dict[str, Any] = {"tenant": "t", "trunk": "acme", "carrier": "c", "direction": "in", "region": "eu", "agent": "b"}  # fmt: skip


def call(code: int | None = 200, **more: Any) -> CallRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "received_at": 0, "started_at": 0}
    answered = code is not None and 200 <= code < 300
    said = {"final_code": code, "answered": answered, "seizure": True, "final_origin": "callee"}
    return CallRecord(**whole | said | more)


def attempt(code: int | None = 200, trunk: str | None = "acme", **more: Any) -> AttemptRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "branch": "b", "received_at": 0}
    answered = code is not None and 200 <= code < 300
    said = {"started_at": 0, "final_code": code, "answered": answered, "trunk": trunk}
    return AttemptRecord(**whole | said | more)


def over(record: CallRecord, **more: Any) -> CallRecord:
    said = {"ended": True, "end_source": "bye", "talk_ms": 60_000.0} | more
    return msgspec.structs.replace(record, **said)


def media(**more: Any) -> MediaRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "stream": "s", "received_at": 0}
    return MediaRecord(**whole | {"direction": "unknown", "started_at": 0, "ended_at": 0} | more)


def register(code: int | None, cseq: int = 1, **more: Any) -> RegistrationRecord:
    whole: dict[str, Any] = {"call_id": "r", "branch": str(cseq), "cseq": cseq, "received_at": 0}
    said = {"started_at": 0, "final_code": code, "rtt_ms": 20.0, "src_ip": "A", "peer_ip": "P"}
    return RegistrationRecord(**whole | said | more)


def fed(*setups: Setup) -> Minutes:
    made = Minutes()
    for setup in setups:
        made.receive_setup(setup, T0)
    return made


def row(made: Minutes, source: str = "call", **scope: str) -> KpiMinute:
    pairs = tuple((name, scope[name]) for name in DIMENSIONS if name in scope)
    return made.live(source, pairs, T0)[0]


def codes(made: Minutes, source: str = "call") -> dict[tuple[int, str], int]:
    return {(one.code, one.origin): one.count for one in made.live(source, (), T0)[1]}


def counted(found: KpiMinute) -> dict[str, Any]:
    """What a row says, without what is not there and how it is named."""
    named = {"call_id", "received_at", "minute_at", "source", *DIMENSIONS}
    every = msgspec.structs.asdict(found).items()
    return {name: value for name, value in every if name not in named and value not in (0, ())}


# ------------------------------------------------------------------------- what counts as what


@pytest.mark.parametrize(
    ("code", "more", "expected"),
    [
        (200, {}, {"seizures", "answered", "effective", "session_effective"}),
        (204, {}, {"seizures", "answered", "effective", "session_effective"}),
        (302, {"seizure": False}, {"redirected"}),
        (401, {}, set()),
        (404, {}, {"seizures"}),
        (408, {}, {"seizures", "ineffective"}),
        (408, {"ring_ms": 900.0}, {"seizures", "effective", "ineffective"}),
        (408, {"inferred": True, "flags": ("no_response",)}, {"seizures", "ineffective"}),
        (480, {}, {"seizures", "effective", "session_effective"}),
        (486, {}, {"seizures", "effective", "session_effective"}),
        (487, {}, {"seizures", "effective"}),
        (500, {}, {"seizures", "ineffective"}),
        (501, {}, {"seizures"}),
        (503, {}, {"seizures", "ineffective"}),
        (504, {}, {"seizures", "ineffective"}),
        (600, {}, {"seizures", "effective", "session_effective"}),
        (603, {}, {"seizures", "effective", "session_effective"}),
        (604, {}, {"seizures"}),
        (607, {}, {"seizures", "effective"}),
        (608, {}, {"seizures", "effective"}),
        (None, {"flags": ("final_lost",)}, {"unknown"}),
        (999, {}, {"unknown"}),
    ],
)
def test_a_setup_is_in_the_counts_that_its_final_says(
    code: int | None, more: dict[str, Any], expected: set[str]
) -> None:
    made = fed(Setup(call(code, **more), ()))
    assert counted(row(made)) == {"attempts": 1} | dict.fromkeys(expected, 1)
    known = code if code is not None and code < 700 else 0
    assert codes(made) == {(known, "callee"): 1}


@pytest.mark.parametrize(
    "whole",
    [
        call(None, flags=("interrupted",)),
        call(200, seizure=False, flags=("partial_no_invite",)),
    ],
)
def test_what_goes_on_or_began_unseen_is_in_no_row(whole: CallRecord) -> None:
    made = fed(Setup(whole, ()))
    assert made.close(T0 + MINUTE) == ([], [])


def test_an_attempt_that_nothing_is_proven_of_is_unknown() -> None:
    silent = attempt(408, inferred=True, flags=("no_response",))
    made = fed(Setup(call(487, ended_at=S), (silent,)))
    assert counted(row(made, "trunk")) == {"attempts": 1, "unknown": 1}
    assert codes(made, "trunk") == {(0, "inferred"): 1}


def test_our_own_refusals_and_overflows_are_nothing_else() -> None:
    whole = call(503, final_origin="admission", pdd_ms=3.0, fail_ms=3.0, **LABELS)
    made = fed(Setup(whole, (attempt(503),)))
    made.receive_overflow(call(**LABELS), T0)
    made.receive_call(over(whole), T0)
    for source in ("call", "trunk"):
        assert counted(row(made, source, trunk="acme")) == {"own_refusals": 1, "overflowed": 1}
        assert codes(made, source) == {(503, "admission"): 1}


def test_the_origin_of_a_final_is_kept_apart() -> None:
    made = fed(*(Setup(call(503, final_origin=o), ()) for o in ("callee", "proxy", "proxy", None)))
    assert codes(made) == {(503, "callee"): 1, (503, "proxy"): 2, (503, ""): 1}


# ------------------------------------------------------------------------------------- whose


def test_a_call_and_its_attempts_are_rows_of_their_own_labels() -> None:
    whole = call(200, **{**LABELS, "trunk": "beta"}, codec_negotiated="opus")
    tried = (
        attempt(503, "acme", carrier="one", tenant="t"),
        attempt(200, "beta", carrier="two", tenant="t", codec_negotiated="PCMA"),
    )
    kpis, found = fed(Setup(whole, tried)).close(T0 + MINUTE)
    assert {(k.source, k.tenant, k.trunk, k.carrier, k.codec, k.attempts, k.answered) for k in kpis} == {
        ("call", "t", "beta", "c", "opus", 1, 1),
        ("trunk", "t", "acme", "one", "", 1, 0),
        ("trunk", "t", "beta", "two", "PCMA", 1, 1),
        ("trunk", "t", "other", "c", "opus", 1, 1),  # the carrier that no attempt has
    }  # fmt: skip
    assert [(c.source, c.trunk, c.code) for c in found if c.source == "call"] == [
        ("call", "beta", 200)
    ]
    assert {(k.minute_at, k.received_at, k.call_id) for k in kpis} == {(T0, T0 + MINUTE, "")}


@pytest.mark.parametrize(
    ("own", "tried", "rows"),
    [
        # nobody else speaks for it
        (("acme", "c"), [], [("acme", "c")]),
        (("other", "other"), [], [("other", "other")]),
        ((None, None), [], [("", "")]),
        # in from a carrier, on to an agent
        (("acme", "c"), [("other", "other")], [("acme", "c"), ("other", "other")]),
        (("acme", "other"), [("other", "other")], [("acme", "other"), ("other", "other")]),
        (("other", "c"), [("other", "other")], [("other", "c"), ("other", "other")]),
        # out to a carrier: the attempts are it
        (("acme", "c"), [("acme", "c")], [("acme", "c")]),
        ((None, None), [(None, None)], [("", "")]),
        # in from one trunk, out to another of whose carrier the call has the name
        (("acme", "d"), [("beta", "d")], [("acme", "other"), ("beta", "d")]),
        (("acme", "other"), [("acme", "d")], [("acme", "d")]),
    ],
)
def test_a_call_speaks_for_what_none_of_its_attempts_speaks_for(
    own: tuple[str | None, str | None], tried: list[Any], rows: list[tuple[str, str]]
) -> None:
    attempts = tuple(attempt(200, trunk, carrier=carrier) for trunk, carrier in tried)
    made = fed(Setup(call(200, trunk=own[0], carrier=own[1]), attempts))
    kpis, _ = made.close(T0 + MINUTE)
    found = [(k.trunk, k.carrier) for k in kpis if k.source == "trunk"]
    assert sorted(found) == sorted(rows)


def test_failovers_are_of_the_attempt_that_another_followed() -> None:
    first = attempt(503, "acme", fail_ms=200.0, src_ip="P")
    second = attempt(200, "beta", failover_order=2, started_at=S, src_ip="P")
    made = fed(Setup(call(200, trunk="beta", flags=("failover",)), (first, second)))
    assert (row(made, "trunk", trunk="acme").failovers, row(made).failovers) == (1, 1)
    assert row(made, "trunk", trunk="beta").failovers == 0


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (None, ""), ("", ""), ("PCMA", "PCMA"), ("OPUS", "opus"), ("ILBC", "iLBC"), ("g729", "G729"),
        ("Pcmu", "PCMU"), ("EVIL-1", "other"), ("x" * 255, "other"),
    ],
)  # fmt: skip
def test_only_codecs_that_are_known_by_name_name_a_cohort(name: str | None, shown: str) -> None:
    kpis, _ = fed(Setup(call(200, codec_negotiated=name), ())).close(T0 + MINUTE)
    assert {one.codec for one in kpis} == {shown}


def test_all_codecs_of_rfc_3551_and_those_with_figures_of_quality_are_known() -> None:
    audio = {name.upper() for number, (name, *_) in sdp._STATIC.items() if number < 20}
    assert audio - {"CN"} <= minutes.CODECS
    assert len({name.lower() for name in minutes.CODECS}) == len(minutes.CODECS)
    rated = {"opus", "speex", "G723", "AMR", "AMR-WB", "EVS", "GSM-EFR", "iLBC", "G726-32"}
    assert rated <= minutes.CODECS
    assert all(CODEC_ASSUMED not in codec_of(name)[1] for name in rated)


# ------------------------------------------------------------------------------- ended calls


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, {"completed": 1}),
        ({"end_source": "dialog-gone", "talk_ms": None}, {"dropped": 1}),
        ({"end_source": None, "ended": False, "talk_ms": None}, {"dropped": 1}),
        ({"end_source": "timer", "talk_ms": None}, {"dropped": 1}),
    ],
)
def test_an_answered_call_that_is_over_was_completed_or_dropped(
    more: dict[str, Any], expected: dict[str, int]
) -> None:
    made = Minutes()
    made.receive_call(over(call(), **more), T0)
    found = counted(row(made))
    assert {name: found.get(name, 0) for name in ("completed", "dropped")} == {
        "completed": 0,
        "dropped": 0,
    } | expected
    assert found["ended"] == 1
    assert found.get("talk_count", 0) == (more.get("talk_ms", 1.0) is not None)


@pytest.mark.parametrize(("talk", "short"), [(0.0, 1), (5999.9, 1), (6000.0, 0), (60_000.0, 0)])
def test_a_call_of_less_than_six_seconds_is_short(talk: float, short: int) -> None:
    made = Minutes()
    made.receive_call(over(call(), talk_ms=talk), T0)
    found = row(made)
    assert (found.short_calls, found.talk_count) == (short, 1)
    assert found.talk_seconds == pytest.approx(talk / 1000)
    assert sum(found.talk_buckets) == 1
    assert len(found.talk_buckets) == len(TALK_BOUNDS_SECONDS) + 1


@pytest.mark.parametrize(
    "record",
    [
        call(486, ended=True, end_source="final"),
        over(call(), flags=("interrupted",), ended=False, end_source=None),
        over(call(), seizure=False),
        over(call(503), final_origin="admission"),
    ],
)
def test_what_was_not_answered_or_goes_on_did_not_end(record: CallRecord) -> None:
    made = Minutes()
    made.receive_call(record, T0)
    assert made.drain(T0) == ([], [])


def test_a_call_ends_at_the_trunks_that_it_was_set_up_at() -> None:
    """In from one carrier and out to another: both had a call of a minute."""
    whole = call(200, trunk="in")
    made = fed(Setup(whole, (attempt(503, "acme"), attempt(200, "beta"))))
    made.receive_call(over(whole), T0)
    made.receive_media(media(loss_percent=1.0), whole, T0)
    for trunk, ended in (("in", 1), ("acme", 0), ("beta", 1)):
        found = row(made, "trunk", trunk=trunk)
        assert (found.ended, found.completed, found.talk_count, found.loss_count) == (ended,) * 4
        assert found.attempts == 1


def test_the_end_of_a_call_that_was_forgotten_is_of_its_own_trunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(minutes, "MAX_FOLLOWED", 2)
    made = Minutes()
    calls = [call(200, call_id=str(number), trunk="in") for number in range(3)]
    for whole in calls:
        made.receive_setup(Setup(whole, (attempt(200, "beta"),)), T0)
    for whole in calls:
        made.receive_call(over(whole), T0)
    assert made.forgotten == 1
    assert (row(made, "trunk", trunk="in").ended, row(made, "trunk", trunk="beta").ended) == (3, 2)
    assert len(made._over) == 2


def test_a_call_whose_attempt_s_answer_nobody_saw_ends_at_no_trunk() -> None:
    whole = call(200, trunk="acme")
    made = fed(Setup(whole, (attempt(None, "acme", flags=("final_lost",)),)))
    made.receive_call(over(whole), T0)
    made.receive_media(media(loss_percent=1.0), whole, T0)
    assert (row(made).ended, row(made).loss_count) == (1, 1)
    found = row(made, "trunk")
    assert (found.attempts, found.unknown, found.ended, found.loss_count) == (1, 1, 0, 0)


def test_nothing_is_remembered_of_calls_that_are_over() -> None:
    made = Minutes()
    for number in range(100):
        whole = call(200, call_id=str(number))
        made.receive_setup(Setup(whole, ()), T0)
        made.receive_call(over(whole), T0)
    made.close(T0)
    assert not made._followed
    assert not made._over


def test_findings_and_opinions_are_counted_once_a_call_by_their_scale() -> None:
    made = Minutes()
    made.receive_call(over(call(), mos=4.2, mos_scale="nb", findings=("dead_air", "late_sdp")), T0)
    made.receive_call(over(call(), mos=3.0, mos_scale="wb", findings=("low_mos", "no_media")), T0)
    made.receive_call(over(call(), findings=("one_way_audio",)), T0)
    found = row(made)
    assert [found.one_way, found.no_media, found.dead_air, found.low_mos] == [1, 1, 1, 1]
    assert (found.mos_nb_count, found.mos_nb_sum, found.mos_wb_count) == (1, 4.2, 1)
    assert (found.mos_wb_buckets.index(1), found.mos_fb_buckets) == (MOS_BOUNDS.index(3.1), ())


def test_media_of_a_call_whose_end_is_long_ago_are_of_its_own_trunk() -> None:
    made = Minutes()
    made.receive_media(media(rtt_ms=80.0), call(**LABELS), T0)
    assert row(made, "trunk", trunk="acme").rtt_count == row(made, tenant="t").rtt_count == 1


def test_media_count_as_their_call_s_and_without_one_among_all() -> None:
    made = Minutes()
    whole = over(call(**LABELS))
    made.receive_call(whole, T0)
    made.receive_media(media(loss_percent=2.0, jitter_ms=4.0, rtt_ms=80.0), whole, T0)
    made.receive_media(media(loss_percent=0.0), None, T0)
    made.receive_media(media(), whole, T0)
    mine = row(made, tenant="t")
    assert (mine.loss_count, mine.jitter_count, mine.rtt_count) == (1, 1, 1)
    assert (mine.loss_sum_percent, mine.jitter_sum_ms, mine.rtt_sum_ms) == (2.0, 4.0, 80.0)
    every = row(made)
    assert (every.loss_count, every.loss_buckets[0]) == (2, 1)
    assert row(made, "trunk", trunk="acme").loss_count == 1
    assert row(made, "trunk").loss_count == 1


@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf, 1e300, -1e300])
def test_a_figure_out_of_all_bounds_is_at_the_bounds(wild: float) -> None:
    made = Minutes()
    made.receive_call(over(call(), mos=wild, mos_scale="nb", talk_ms=wild), T0)
    made.receive_media(media(loss_percent=wild, jitter_ms=wild, rtt_ms=wild), None, T0)
    made.receive_setup(Setup(call(200, pdd_ms=wild, setup_ms=wild), ()), T0)
    found = row(made)
    assert 1.0 <= found.mos_nb_sum <= 5.0
    assert 0.0 <= found.loss_sum_percent <= 100.0
    for value in (found.talk_seconds, found.jitter_sum_ms, found.rtt_sum_ms, found.pdd_sum_ms):
        assert 0.0 <= value < 1e9


# ------------------------------------------------------------------------------------- delays


def test_delays_are_of_the_setups_that_they_are_of() -> None:
    made = fed(
        Setup(call(200, pdd_ms=400.0, srd_ms=400.0, setup_ms=5000.0), ()),
        Setup(call(486, pdd_ms=700.0, srd_ms=700.0, fail_ms=9000.0), ()),
        Setup(call(503, srd_ms=30.0, fail_ms=30.0), ()),
        Setup(call(407, fail_ms=20.0), ()),
        Setup(call(402, srd_ms=25.0, fail_ms=25.0), ()),
        Setup(call(302, seizure=False), ()),
    )
    found = row(made)
    assert (found.pdd_count, found.pdd_sum_ms) == (2, 1100.0)
    # up to the first response that is none of 100, or the failure (RFC 6076 4.3.2); never challenges
    assert (found.failed_srd_count, found.failed_srd_sum_ms) == (2, 730.0)
    assert (found.setup_count, found.setup_sum_ms) == (1, 5000.0)


def test_the_failed_delay_of_an_attempt_ends_with_the_first_response() -> None:
    made = fed(
        Setup(call(486), (attempt(486, pdd_ms=200.0, fail_ms=3000.0), attempt(503, fail_ms=40.0)))
    )
    found = row(made, "trunk")
    assert (found.failed_srd_count, found.failed_srd_sum_ms) == (2, 240.0)


@given(st.lists(st.floats(0, 100_000), min_size=1, max_size=50))
def test_a_delay_is_in_the_bucket_whose_bound_it_is_not_over(delays: list[float]) -> None:
    found = row(fed(*(Setup(call(200, pdd_ms=ms), ()) for ms in delays)))
    assert sum(found.pdd_buckets) == found.pdd_count == len(delays)
    assert found.pdd_sum_ms == pytest.approx(math.fsum(delays))
    running = 0
    for bound, count in zip(DELAY_BOUNDS_MS, found.pdd_buckets, strict=False):
        running += count
        assert running == sum(ms <= bound for ms in delays)


def test_no_loss_at_all_has_a_bucket_of_its_own() -> None:
    made = Minutes()
    for loss in (0.0, 0.0, 0.05, 100.0):
        made.receive_media(media(loss_percent=loss), None, T0)
    found = row(made).loss_buckets
    assert (found[0], found[1], found[-1]) == (2, 1, 1)
    assert len(found) == len(LOSS_BOUNDS_PERCENT) + 1


# ------------------------------------------------------------------------------- registrations


def test_registrations_count_without_challenges_and_fail_by_rfc_6076() -> None:
    made = Minutes()
    for number, code in enumerate((200, 401, 407, 402, 403, 423, 500, 603, 302, None, 999)):
        made.receive_registration(register(code, call_id=str(number)), T0)
    made.receive_registration(register(None, call_id="x", flags=("interrupted",)), T0)
    found = row(made, "register")
    # 403, 423, 500, 603 and Timer F
    assert (found.registers, found.registers_failed, found.attempts) == (9, 5, 0)
    said = codes(made, "register")
    assert said[408, "inferred"] == said[401, ""] == said[407, ""] == said[0, ""] == 1
    assert sum(said.values()) == 11


@pytest.mark.parametrize(
    ("challenge", "delay"),
    [
        ({}, 120.0),
        ({"peer_ip": "Q"}, 20.0),  # of another hop
        ({"call_id": "other"}, 20.0),
        ({"cseq": 7}, 20.0),
        ({"agent_ids": (9,)}, 20.0),  # by another clock
        ({"dated_by": "receiver"}, 20.0),
        ({"started_at": -60 * S}, 20.0),  # long ago
        ({"started_at": 60 * S}, 20.0),
        ({"final_code": 500}, 20.0),
    ],
)
def test_the_delay_of_a_registration_begins_with_the_request_that_was_challenged(
    challenge: dict[str, Any], delay: float
) -> None:
    made = Minutes()
    first = register(401, 1, started_at=-S // 10)
    made.receive_registration(msgspec.structs.replace(first, **challenge), T0)
    made.receive_registration(register(200, 2), T0)
    found = row(made, "register")
    assert (found.rrd_count, found.rrd_sum_ms) == (1, delay)


def test_two_challenges_in_a_row_are_one_registration() -> None:
    made = Minutes()
    for cseq in (1, 2):  # the nonce was stale
        made.receive_registration(register(401, cseq, started_at=cseq * S), T0)
    made.receive_registration(register(200, 3, started_at=3 * S), T0)
    found = row(made, "register")
    assert (found.registers, found.rrd_sum_ms) == (1, 2020.0)
    assert not made._challenges


def test_a_registration_whose_request_was_not_seen_has_no_delay() -> None:
    made = Minutes()
    made.receive_registration(register(200, rtt_ms=None), T0)
    assert (row(made, "register").registers, row(made, "register").rrd_count) == (1, 0)


def test_challenges_without_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "MAX_CHALLENGES", 3)
    made = Minutes()
    for number in range(10):
        made.receive_registration(register(401, call_id=str(number)), T0)
    assert (len(made._challenges), made.unpaired) == (3, 7)


def test_registrations_are_whose_somebody_says_they_are() -> None:
    made = Minutes()
    made.receive_registration(register(200), T0, Cohort(tenant="t", trunk="acme", agent="bot"))
    kpis, _ = made.close(T0 + MINUTE)
    assert [(k.source, k.tenant, k.trunk, k.carrier, k.agent) for k in kpis] == [
        ("register", "t", "acme", "other", "bot")
    ]


# ------------------------------------------------------------------------------------- minutes


def test_a_minute_is_given_out_once_when_it_is_over() -> None:
    made = Minutes()
    made.receive_setup(Setup(call(), ()), T0 + 59 * S)
    assert made.close(T0 + MINUTE - 1) == ([], [])
    kpis, found = made.close(T0 + MINUTE)
    assert {(k.minute_at, k.received_at, k.attempts) for k in kpis} == {(T0, T0 + MINUTE, 1)}
    assert len(kpis) == len(found) == 2
    assert made.close(T0 + MINUTE) == made.drain(T0 + MINUTE) == ([], [])


def test_what_is_left_comes_at_the_end() -> None:
    made = Minutes()
    made.receive_setup(Setup(call(), ()), T0)
    made.receive_setup(Setup(call(), ()), T0 + MINUTE)
    kpis, _ = made.drain(T0 + MINUTE + S)
    assert [k.minute_at for k in kpis if k.source == "call"] == [T0, T0 + MINUTE]


def test_what_comes_for_a_minute_that_was_given_out_is_another_row_of_it() -> None:
    made = Minutes()
    rows: list[KpiMinute] = []
    for _ in range(3):
        made.receive_setup(Setup(call(), ()), T0)
        rows += made.close(T0 + MINUTE)[0]
    mine = [k for k in rows if k.source == "call"]
    assert [(k.minute_at, k.attempts) for k in mine] == [(T0, 1)] * 3
    assert len({k.received_at for k in mine}) == 3
    assert made.live("call", (), T0 + MINUTE)[0].attempts == 3


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_was_set_neither_loses_nor_holds_back_anything(hours: int) -> None:
    made = Minutes()
    made.receive_setup(Setup(call(), ()), T0)
    later = T0 + hours * 60 * MINUTE
    made.receive_setup(Setup(call(), ()), later)
    kpis, _ = made.close(later + MINUTE)
    assert sorted(k.minute_at for k in kpis if k.source == "call") == sorted([T0, later])


def test_a_clock_that_goes_back_a_little_does_not_close_a_minute_early() -> None:
    made = Minutes()
    made.receive_setup(Setup(call(), ()), T0 + 1)
    assert made.close(T0 - 1) == ([], [])
    assert made.close(T0 + MINUTE)[0]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["setup", "close", "drain"]), st.integers(-400, 400)), max_size=40
)


@settings(max_examples=200)
@given(EVENTS)
def test_each_setup_is_in_exactly_one_row_whatever_the_clock_does(
    events: list[tuple[str, int]],
) -> None:
    made = Minutes(keep=3)
    fed_in, rows, finals = 0, list[KpiMinute](), list[CodeMinute]()
    for what, seconds in (*events, ("drain", 0)):
        at = T0 + seconds * 7 * S
        if what == "setup":
            fed_in += 1
            made.receive_setup(Setup(call(486), ()), at)
            continue
        kpis, found = made.close(at) if what == "close" else made.drain(at)
        rows += kpis
        finals += found
    mine = [k for k in rows if k.source == "call"]
    assert sum(k.attempts for k in mine) == fed_in
    assert sum(c.count for c in finals if c.source == "call") == fed_in
    counted_since = [total.codes for total in made.totals("call").values()]
    assert counted_since == ([{(486, "callee"): fed_in}] if fed_in else [])


def test_minutes_that_are_never_closed_are_bounded_and_lose_nothing() -> None:
    made = Minutes()
    for number in range(30):
        made.receive_setup(Setup(call(), ()), T0 + number * MINUTE)
    assert (len(made._open), made.misdated) == (minutes.MAX_OPEN, 20)
    kpis, _ = made.drain(T0)
    assert sum(k.attempts for k in kpis if k.source == "call") == 30


def test_slices_give_what_closing_at_once_gives() -> None:
    def busy() -> Minutes:
        made = Minutes()
        for number in range(250):
            made.receive_setup(Setup(call(200, tenant=f"t{number}"), ()), T0)
        return made

    made = busy()
    slices = []
    for part in made.closing(T0 + MINUTE, 40):
        slices.append(part)
        # nothing is missed while it goes on, nor counted twice
        assert made.live("call", (), T0 + MINUTE)[0].attempts == 250
        assert made.totals("call")[""].codes == {(200, "callee"): 250}
        made.receive_setup(Setup(call(486), ()), T0 + MINUTE)
        made._open.clear()
        made._current = minutes._Minute(-1)
    assert len(slices) == math.ceil(500 / 40)
    kpis, found = busy().close(T0 + MINUTE)
    assert [k for part in slices for k in part[0]] == kpis
    assert [c for part in slices for c in part[1]] == found


def test_what_was_not_given_out_to_its_end_comes_with_the_next_rows_and_nothing_twice() -> None:
    made = Minutes()
    for number in range(100):
        made.receive_setup(Setup(call(200, tenant=f"t{number}"), ()), T0)
    left = made.closing(T0 + MINUTE, 40)
    rows = next(left)[0]
    made.receive_setup(Setup(call(200, tenant="late"), ()), T0)
    rows += made.drain(T0 + MINUTE + S)[0]
    rows += [row for some, _ in left for row in some]
    assert made.drain(T0 + MINUTE + S) == ([], [])
    tenants = Counter(row.tenant for row in rows if row.source == "call")
    assert tenants == dict.fromkeys(["late", *(f"t{number}" for number in range(100))], 1)
    assert made.live("call", (), T0 + MINUTE)[0].attempts == 101
    assert made.totals("call")[""].codes == {(200, "callee"): 101}
    assert not made._closing


# ------------------------------------------------------------------------------------- bounds


def test_more_cohorts_than_may_be_count_as_other_and_are_counted() -> None:
    made = Minutes(max_cohorts=4)
    for number in range(10):
        made.receive_setup(Setup(call(200, tenant=f"t{number}", trunk="k"), ()), T0)
    # t0 and t1 had room in both sources
    assert made.folded == 16
    kpis, _ = made.close(T0 + MINUTE)
    assert len(kpis) == 6
    assert {(k.source, k.tenant, k.trunk, k.codec): k.attempts for k in kpis} == {
        ("call", "t0", "k", ""): 1,
        ("call", "t1", "k", ""): 1,
        ("call", "other", "other", "other"): 8,
        ("trunk", "t0", "k", ""): 1,
        ("trunk", "t1", "k", ""): 1,
        ("trunk", "other", "other", "other"): 8,
    }
    # the next minute has room again
    made.receive_setup(Setup(call(200, tenant="t9", trunk="k"), ()), T0 + MINUTE)
    assert made.folded == 16


def test_codes_without_end_count_as_the_first_of_their_class() -> None:
    made = Minutes()
    for code in range(400, 500):
        made.receive_setup(Setup(call(code), ()), T0)
    _, found = made.close(T0 + MINUTE)
    mine = {c.code: c.count for c in found if c.source == "call"}
    assert len(mine) == minutes.MAX_CODES
    assert sum(mine.values()) == 100
    assert mine[400] == 1 + 100 - minutes.MAX_CODES


def test_totals_without_end_count_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "MAX_TOTALS", 5)
    made = Minutes()
    for number in range(20):
        made.receive_setup(Setup(call(200, tenant=f"t{number}"), ()), T0)
        made.close(T0 + MINUTE)
    found = made.totals("call", "tenant")
    assert len(found) <= 5
    assert sum(sum(total.codes.values()) for total in found.values()) == 20
    assert made.totals("call")[""].codes == {(200, "callee"): 20}


# ---------------------------------------------------------------------------------------- live


def test_a_live_window_is_the_last_whole_minutes_and_the_open_one() -> None:
    made = Minutes()
    for number in range(10):
        made.receive_setup(Setup(call(), ()), T0 + number * MINUTE)
        made.close(T0 + number * MINUTE)
    at = T0 + 9 * MINUTE + 30 * S
    for many in (1, 5, 8):
        found, _ = made.live("call", (), at, many)
        assert found.attempts == many + 1
        assert found.minute_at == T0 + (9 - many) * MINUTE
        assert found.received_at == at


def test_sums_are_remembered_of_the_newest_minutes_only() -> None:
    made = Minutes()
    for number in range(12):
        made.receive_setup(Setup(call(), ()), T0 + number * MINUTE)
        made.close(T0 + (number + 1) * MINUTE)
        assert made.live("call", (), T0 + (number + 1) * MINUTE, 60)[0].attempts == number + 1
    made.receive_setup(Setup(call(), ()), T0 + 12 * MINUTE)
    made.close(T0 + 13 * MINUTE)
    assert sum(bool(minute.sums) for minute in made._closed.values()) < minutes.SUMMED


def test_no_more_minutes_are_kept_than_asked_for() -> None:
    made = Minutes(keep=2)
    for number in range(10):
        made.receive_setup(Setup(call(), ()), T0 + number * MINUTE)
        made.close(T0 + number * MINUTE)
    assert made.live("call", (), T0 + 9 * MINUTE, 60)[0].attempts == 3


SCOPES: list[tuple[tuple[str, str], ...]] = [
    (),
    (("tenant", "x"),),
    (("trunk", "y"),),
    (("trunk", "x"), ("direction", "y")),
    (("tenant", "x"), ("trunk", "x"), ("direction", "x")),
    (("region", ""),),
]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 6), st.sampled_from("xy"), st.sampled_from("xy"), st.sampled_from("xy"),
            st.sampled_from([200, 486, 503]), st.booleans(),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_a_live_window_holds_what_was_within_its_scope(events: list[tuple[Any, ...]]) -> None:
    made = Minutes()
    at = T0
    fed_in = []
    for step, tenant, trunk, direction, code, looks in sorted(events, key=lambda one: one[0]):
        at = T0 + step * MINUTE
        whole = call(code, tenant=tenant, trunk=trunk, direction=direction)
        made.receive_setup(Setup(whole, ()), at)
        fed_in.append((at, {"tenant": tenant, "trunk": trunk, "direction": direction}, code))
        if looks:
            made.live("call", (("trunk", trunk),), at)
            made.close(at)
    for scope in SCOPES:
        there = [
            code
            for when, labels, code in fed_in
            if when >= at - 5 * MINUTE and all(labels.get(n, "") == v for n, v in scope)
        ]
        found, said = made.live("call", scope, at)
        assert found.attempts == len(there)
        assert {one.code: one.count for one in said} == Counter(there)
        assert all(getattr(found, name) == value for name, value in scope)
    assert set(made.values("call", "trunk", at)) == {
        labels["trunk"] for when, labels, _ in fed_in if when >= at - 5 * MINUTE
    }
    for trunk, total in made.totals("call", "direction").items():
        mine = Counter(code for _, labels, code in fed_in if labels["direction"] == trunk)
        assert {code: count for (code, _), count in total.codes.items()} == mine


def test_values_are_those_with_figures_in_that_time() -> None:
    made = Minutes()
    made.receive_setup(Setup(call(200, tenant="old"), ()), T0)
    made.close(T0 + MINUTE)
    made.receive_setup(Setup(call(200, tenant="new"), (attempt(200, "k"),)), T0 + 9 * MINUTE)
    at = T0 + 9 * MINUTE
    assert made.values("call", "tenant", at) == ["new"]
    assert made.values("call", "tenant", at, 30) == ["new", "old"]
    assert made.values("trunk", "trunk", at) == ["k"]
    assert made.values("call", "region", at) == []


def test_what_was_counted_since_the_start_is_never_less_than_before() -> None:
    made = Minutes(keep=1)
    for number in range(20):
        whole = call(200, call_id=str(number), tenant="t")
        made.receive_setup(Setup(whole, (attempt(503, "k"),)), T0 + number * 20 * S)
        made.receive_call(over(whole), T0 + number * 20 * S)
        if number % 3 == 0:
            made.close(T0 + number * 20 * S)
        mine = made.totals("call", "tenant")["t"]
        assert sum(mine.codes.values()) == mine.completed == number + 1
    assert made.totals("trunk", "trunk")["k"].codes == {(503, ""): 20}
    assert made.totals("trunk")[""].codes[503, ""] == 20
    assert made.totals("register") == {}
    assert made.totals("call", "region") == {}  # without one


def test_rows_of_parts_add_up_to_the_row_of_the_whole() -> None:
    every = [
        Setup(call(200, pdd_ms=300.0), ()),
        Setup(call(486, pdd_ms=9000.0, srd_ms=9000.0), ()),
        Setup(call(503, srd_ms=20.0), ()),
    ]
    parts = [row(fed(one)) for one in every]
    assert counted(added(parts)) == counted(row(fed(*every)))


def test_figures_of_each_value_are_those_of_asking_for_it_alone() -> None:
    made = Minutes()
    at = T0
    for number in range(60):
        at = T0 + number * MINUTE // 10
        trunk, region = ("acme", "beta", "other")[number % 3], ("eu", "us")[number % 2]
        setup = Setup(call(200 if number % 5 else 503, trunk=trunk, region=region), ())
        made.receive_setup(setup, at)
        made.close(at)
    for scope in ((), (("region", "eu"),), (("trunk", "acme"), ("region", "eu"))):
        said = {
            value: (row, codes) for value, row, codes in made.live_by("trunk", "trunk", scope, at)
        }
        assert set(said) == ({"acme"} if len(scope) == 2 else {"acme", "beta", "other"})
        for value, found in said.items():
            pairs = dict(scope) | {"trunk": value}
            assert found == made.live("trunk", (*pairs.items(),), at)
            assert found[0].attempts > 0
