"""Signs that a call goes round."""

import pytest

from sipsidecar.calls.events import AttemptRecord, CallRecord, Setup, Traits
from sipsidecar.signals.loops import WITHIN, Loops, alternates

T0 = 1_795_000_000_000_000


def attempt(trunk: str | None = None, code: int = 503, peer: str | None = None) -> AttemptRecord:
    return AttemptRecord(
        call_id="c", from_tag="f", branch="b", received_at=T0, started_at=T0, trunk=trunk,
        final_code=code, peer_ip=peer,
    )  # fmt: skip


def setup(
    *trunks: str, caller: str | None = "+4930", callee: str | None = "100", code: int = 503
) -> Setup:
    call = CallRecord(
        call_id="c", from_tag="f", received_at=T0, started_at=T0, from_user=caller,
        ruri_user=callee, final_code=code,
    )  # fmt: skip
    return Setup(call, tuple(map(attempt, trunks)))


def signs(one: Setup, traits: dict[str, Traits] | None = None) -> list[str]:
    return Loops().signs(one, traits or {}, T0)


@pytest.mark.parametrize(
    ("names", "is_so"),
    [("aba", True), ("abca", True), ("ab", False), ("aab", False), ("abc", False), ("", False)],
)
def test_coming_back_is_alternating_and_trying_again_is_not(names: str, is_so: bool) -> None:
    assert alternates(names) is is_so


def test_a_call_that_came_back_to_a_trunk_goes_round() -> None:
    assert signs(setup("a", "b", "a")) == ["came back to a trunk (a, b)"]
    assert signs(setup("a", "a", "b")) == []
    assert signs(setup("a", "b")) == []


def test_trunks_without_a_name_are_told_apart_by_address_and_not_shown() -> None:
    one = setup()
    peers = tuple(attempt("other", peer=ip) for ip in ("192.0.2.1", "192.0.2.2", "192.0.2.1"))
    assert signs(Setup(one.call, peers)) == ["came back to a trunk (other)"]
    assert signs(Setup(one.call, (attempt(), attempt(), attempt()))) == []


@pytest.mark.parametrize("code", [482, 483])
def test_the_codes_of_loops_are_signs_of_call_or_attempt(code: int) -> None:
    assert signs(setup(code=code)) == [str(code)]
    assert signs(Setup(setup().call, (attempt("a", code),))) == [str(code)]


@pytest.mark.parametrize(
    ("ingress", "egress", "sign"),
    [
        (Traits(passed_twice=True), Traits(), "passed one node twice"),
        (Traits(), Traits(vias=11), "more than 10 Vias"),
        (
            Traits(max_forwards=70),
            Traits(max_forwards=59),
            "Max-Forwards fell by more than 10",
        ),
        (Traits(max_forwards=70), Traits(max_forwards=60), None),
        (Traits(max_forwards=10), Traits(max_forwards=70), None),
        (Traits(max_forwards=70), Traits(), None),
        (Traits(), Traits(max_forwards=1), None),
        (Traits(vias=10), Traits(), None),
    ],
)
def test_what_invites_say_is_a_sign(ingress: Traits, egress: Traits, sign: str | None) -> None:
    assert signs(setup("a"), {"": ingress, "b": egress}) == ([sign] if sign else [])


def test_one_caller_who_reaches_one_callee_by_turns_goes_round() -> None:
    loops = Loops()
    assert loops.signs(setup("a"), {}, T0) == []
    assert loops.signs(setup("b"), {}, T0 + 1) == []
    assert loops.signs(setup("a"), {}, T0 + 2) == ["called again over other trunks (a)"]


@pytest.mark.parametrize(
    ("caller", "callee", "later"),
    [
        ("+4930", "101", 1),
        (None, "100", 1),
        ("Anonymous", "100", 1),
        ("+4930", None, 1),
        ("+4930", "100", WITHIN + 1),
    ],
)
def test_other_people_later_calls_and_hidden_callers_do_not(
    caller: str | None, callee: str | None, later: int
) -> None:
    loops = Loops()
    loops.signs(setup("a"), {}, T0)
    loops.signs(setup("b"), {}, T0)
    assert loops.signs(setup("a", caller=caller, callee=callee), {}, T0 + later) == []


def test_calls_of_one_session_are_one_whoever_calls() -> None:
    loops = Loops()
    session = {"": Traits(session=1)}
    for trunk, caller in (("a", "1"), ("b", "2")):
        assert not loops.signs(setup(trunk, caller=caller), session, T0)
    assert loops.signs(setup("a", caller=None), session, T0)
    assert not loops.signs(setup("b"), {"": Traits(session=2)}, T0)


def test_callers_are_bounded_and_those_forgotten_too_early_are_counted() -> None:
    loops = Loops(max_pairs=2)
    for callee in ("1", "2", "3"):
        loops.signs(setup("a", callee=callee), {}, T0)
    assert loops.folded == 1
    loops.signs(setup("a", callee="4"), {}, T0 + 2 * WITHIN)
    assert loops.folded == 1
    assert len(loops._pairs) == 1
