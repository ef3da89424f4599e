from typing import Any

import pytest

from sipsidecar.calls.events import AttemptRecord, CallRecord, Setup
from sipsidecar.signals import setups
from sipsidecar.signals.setups import (
    ANSWERED,
    CHALLENGED,
    EFFECTIVE,
    FAILED,
    GLOBAL_EFFECTIVE,
    GLOBAL_FAILED,
    REDIRECTED,
    SERVER,
    UNKNOWN,
    kind_of_attempt,
    kind_of_call,
    kind_of_code,
    was_followed,
)

S = 1_000_000
HERE, PEER = "203.0.113.5", "198.51.100.2"


def call(code: int | None, **more: Any) -> CallRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "received_at": 0, "started_at": 0}
    answered = code is not None and 200 <= code < 300
    return CallRecord(**whole | {"final_code": code, "answered": answered, "seizure": True} | more)


def attempt(code: int | None, order: int = 1, **more: Any) -> AttemptRecord:
    whole: dict[str, Any] = {"call_id": "c", "from_tag": "a", "branch": str(order)}
    whole |= {"received_at": 0, "started_at": 0, "failover_order": order, "src_ip": HERE}
    answered = code is not None and 200 <= code < 300
    return AttemptRecord(**whole | {"final_code": code, "answered": answered} | more)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (200, ANSWERED),
        (299, ANSWERED),
        (302, REDIRECTED),
        (401, CHALLENGED),
        (407, CHALLENGED),
        (402, FAILED),
        (404, FAILED),
        (408, FAILED),
        (480, EFFECTIVE),
        (486, EFFECTIVE),
        (487, EFFECTIVE),
        (503, SERVER),
        (600, GLOBAL_EFFECTIVE),
        (603, GLOBAL_EFFECTIVE),
        (604, GLOBAL_FAILED),
        (606, GLOBAL_FAILED),
        (607, GLOBAL_EFFECTIVE),
        (608, GLOBAL_EFFECTIVE),
        (None, UNKNOWN),
        (100, UNKNOWN),
        (183, UNKNOWN),
        (700, UNKNOWN),
        (999, UNKNOWN),
    ],
)
def test_a_final_code_is_of_one_kind(code: int | None, kind: int) -> None:
    assert kind_of_code(code) == kind


def test_every_kind_but_our_own_refusal_is_in_one_class() -> None:
    of_a_class = [kind for kinds in setups.CLASSES.values() for kind in kinds]
    assert sorted(of_a_class) == sorted(set(range(10)) - {setups.OWN})
    for code in range(200, 700):
        assert kind_of_code(code) in setups.CLASSES[f"{code // 100}xx"]


def test_a_timeout_after_ringing_is_people_s_doing() -> None:
    assert kind_of_code(408, rang=True) == EFFECTIVE
    assert kind_of_code(503, rang=True) == SERVER
    assert kind_of_call(call(408, ring_ms=900.0)) == EFFECTIVE
    assert kind_of_attempt(attempt(408, ring_ms=900.0), Setup(call(500), ())) == EFFECTIVE


def test_a_call_that_goes_on_or_began_unseen_is_nothing() -> None:
    assert kind_of_call(call(None, flags=("final_lost",))) == UNKNOWN
    assert kind_of_call(call(None, flags=("interrupted",))) is None
    assert kind_of_call(call(200, seizure=False)) is None
    assert kind_of_call(call(302, seizure=False)) == REDIRECTED


def test_a_challenge_that_was_answered_is_nothing() -> None:
    whole = Setup(call(200), ())
    assert kind_of_attempt(attempt(407, flags=("challenged",)), whole) is None
    assert kind_of_attempt(attempt(407, flags=("auth_not_completed",)), whole) == CHALLENGED


def followed(first: AttemptRecord, *later: AttemptRecord, flag: str = "failover") -> bool:
    return was_followed(first, Setup(call(200, flags=(flag,)), (first, *later)))


@pytest.mark.parametrize(
    ("first", "later", "is_so"),
    [
        # refused after 200 ms, the next one was sent then
        ({"code": 503, "fail_ms": 200.0}, {"started_at": S // 2}, True),
        ({"code": 503, "fail_ms": 200.0}, {"started_at": 190_000}, True),
        # side by side: nobody waited for it
        ({"code": 503, "fail_ms": 200.0}, {"started_at": 10_000}, False),
        # silence
        ({"code": 408, "fail_ms": None}, {"started_at": 2 * S}, True),
        ({"code": 408, "fail_ms": None}, {"started_at": 200_000}, False),
        # sent on by somebody else: the same call a hop further
        ({"code": 503, "fail_ms": 200.0}, {"started_at": S, "src_ip": PEER}, False),
        # not a failure, or mended by the caller
        ({"code": 200, "fail_ms": None}, {"started_at": 2 * S}, False),
        ({"code": 302, "fail_ms": 200.0}, {"started_at": 2 * S}, False),
        ({"code": 407, "fail_ms": 200.0}, {"started_at": 2 * S}, False),
        ({"code": None, "fail_ms": None}, {"started_at": 2 * S}, False),
        ({"code": 487, "fail_ms": 200.0, "flags": ("cancelled",)}, {"started_at": S}, False),
    ],
)
def test_an_attempt_was_followed_when_another_took_its_place(
    first: dict[str, Any], later: dict[str, Any], is_so: bool
) -> None:
    assert followed(attempt(**first), attempt(200, 2, **later)) is is_so
    assert not followed(attempt(**first), attempt(200, 2, **later), flag="challenged")


def test_the_last_attempt_was_not_followed() -> None:
    first, last = attempt(503, fail_ms=1.0), attempt(503, 2, started_at=S, fail_ms=1.0)
    whole = Setup(call(503, flags=("failover",)), (first, last))
    assert (was_followed(first, whole), was_followed(last, whole)) == (True, False)


@pytest.mark.parametrize(("place", "kind"), [(PEER, None), ("198.51.100.9", FAILED)])
def test_a_request_that_was_mended_at_the_same_place_is_none(place: str, kind: int | None) -> None:
    first = attempt(422, peer_ip=PEER, peer_port=5060)
    again = attempt(200, 2, peer_ip=place, peer_port=5060)
    assert kind_of_attempt(first, Setup(call(200), (first, again))) == kind


@pytest.mark.parametrize(
    ("flag", "whole", "later_at", "kind"),
    [
        ("no_response", call(200, setup_ms=2000.0), S, FAILED),
        ("no_response", call(200, setup_ms=2000.0), 100, UNKNOWN),
        ("no_response", call(200, setup_ms=4000.0), 100, FAILED),
        ("stuck_early", call(200, setup_ms=9000.0), 100, UNKNOWN),
        ("no_response", call(487, ended_at=5 * S), None, FAILED),
        ("no_response", call(487, ended_at=2 * S), None, UNKNOWN),
        ("no_response", call(408), None, FAILED),
    ],
)
def test_silence_is_a_failure_only_where_that_is_proven(
    flag: str, whole: CallRecord, later_at: int | None, kind: int
) -> None:
    one = attempt(408, inferred=True, flags=(flag,))
    others = () if later_at is None else (attempt(200, 2, started_at=later_at),)
    assert kind_of_attempt(one, Setup(whole, (one, *others))) == kind
