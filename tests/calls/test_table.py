import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Line, World, packet
from sipsidecar.calls import table
from sipsidecar.calls.dialog import Timing
from sipsidecar.calls.events import CallRecord
from sipsidecar.calls.table import Retraction

INVITE = "0.0 A>B INVITE 1/INVITE b1 a -"
RINGING = "0.5 B>A 180 1/INVITE b1 a x"
OK = "1.0 B>A 200 1/INVITE b1 a x"
ACK = "1.1 A>B ACK 1/ACK b2 a x"
BYE = "6.0 A>B BYE 2/BYE b3 a x"
BUSY = "1.0 B>A 486 1/INVITE b1 a x"


def _world(**settings: object) -> World:
    return World(Timing(settle=2.0, longest=14_400.0), **settings)


def _send(
    world: World, text: str, call_id: str = "one@example.com", at: float | None = None
) -> None:
    line = Line.of(text)
    world.send(packet(line, call_id), line.at if at is None else at)


def _live(world: World) -> dict[str, int]:
    return world.pipeline.snapshot(world.now).live


def test_live_counts_follow_each_fact_at_once() -> None:
    world = _world()
    _send(world, INVITE)
    assert _live(world) == {"trying": 1, "ringing": 0, "answered": 0}
    _send(world, RINGING)
    assert _live(world) == {"trying": 0, "ringing": 1, "answered": 0}
    _send(world, OK)
    assert _live(world) == {"trying": 0, "ringing": 0, "answered": 1}
    assert [(state, call.call_id) for state, call in world.pipeline.live_calls()] == [
        ("answered", "one@example.com")
    ]
    _send(world, BYE)
    assert _live(world) == {"trying": 0, "ringing": 0, "answered": 0}
    assert world.pipeline.live_calls() == []


def test_a_call_joined_in_the_middle_is_not_counted_as_live() -> None:
    world = _world()
    _send(world, "0.0 A>B INVITE 5/INVITE b9 a x")
    assert _live(world) == {"trying": 0, "ringing": 0, "answered": 0}


@settings(max_examples=60, deadline=None)
@given(st.permutations([INVITE, RINGING, OK, ACK, BYE]))
def test_live_counts_are_never_negative_and_end_at_zero(order: list[str]) -> None:
    world = _world()
    for step, text in enumerate(order):
        _send(world, text, at=step * 0.001)
        assert min(_live(world).values()) >= 0
    world.run_out()
    assert sum(_live(world).values()) == 0
    assert len(world.pipeline.calls) == 0


def test_the_record_leaves_after_the_settle_time_and_not_before() -> None:
    world = _world()
    for text in (INVITE, OK, ACK, BYE):
        _send(world, text)
    world.run_until(7.99)
    assert world.calls() == []
    world.run_until(8.01)
    assert world.call().final_code == 200


def test_a_late_fact_changes_the_record_with_a_higher_revision() -> None:
    world = _world()
    for text in (INVITE, OK, BYE):
        _send(world, text)
    world.run_until(10.0)
    _send(world, RINGING, at=11.0)
    world.run_out()
    first, second = (r for r in world.outputs if isinstance(r, CallRecord))
    assert (first.revision, first.pdd_ms) == (0, 1000.0)
    assert (second.revision, second.pdd_ms) == (1, 500.0)
    assert world.pipeline.snapshot(0.0).revisions == 1


def test_a_copy_at_the_very_instant_of_the_record_does_not_forget_the_call() -> None:
    world = _world()
    for text in (INVITE, BUSY):
        _send(world, text)
    leaves_at = world.pipeline.next_timer()
    assert leaves_at is not None
    _send(world, BUSY, at=leaves_at)
    _send(world, BUSY, at=leaves_at + 4.0)
    world.run_out()
    (record,) = (r for r in world.outputs if isinstance(r, CallRecord))
    assert (record.final_code, record.flags) == (486, ())


def test_a_late_copy_that_proves_nothing_new_says_nothing() -> None:
    world = _world()
    for text in (INVITE, BUSY):
        _send(world, text)
    world.run_until(10.0)
    _send(world, BUSY, at=11.0)
    world.run_out()
    assert sum(isinstance(r, CallRecord) for r in world.outputs) == 1


def test_an_answer_after_an_inferred_timeout_makes_the_call_live_again() -> None:
    world = _world()
    _send(world, INVITE)
    world.run_until(40.0)
    assert (world.call().final_code, world.call().inferred) == (408, True)
    _send(world, OK, at=41.0)
    _send(world, ACK, at=41.1)
    _send(world, BYE, at=46.0)
    world.run_out()
    record = world.call()
    assert (
        record.final_code,
        record.inferred,
        record.revision,
        record.talk_ms,
    ) == (200, False, 1, 5000.0)


def test_a_record_that_late_facts_disprove_is_taken_back() -> None:
    world = _world()
    # The callee's re-INVITE was lost, its refusal looks like a call of the callee's own.
    _send(world, "0.0 A>B 488 7/INVITE c5 x a")
    world.run_until(20.0)
    assert [c.from_tag for c in world.calls()] == ["x"]
    for text in (INVITE, OK, ACK, BYE):
        _send(world, text, at=21.0)
    world.run_out()
    (retraction,) = [r for r in world.outputs if isinstance(r, Retraction)]
    assert (
        retraction.call_id,
        retraction.from_tag,
        retraction.branch,
        retraction.revision,
    ) == ("one@example.com", "x", None, 1)


def test_newcomers_over_the_cap_are_refused_and_counted_and_room_comes_back() -> None:
    world = _world(max_calls=2)
    for i in range(5):
        _send(world, INVITE, call_id=f"{i}@example.com", at=0.0)
    assert world.pipeline.snapshot(0.0).limits["calls"] == 3
    for i in range(5):
        _send(world, BUSY, call_id=f"{i}@example.com")
    world.run_until(4.0)
    _send(world, INVITE, call_id="later@example.com", at=5.0)
    world.run_out()
    assert {"0@example.com", "1@example.com", "later@example.com"} == {
        c.call_id for c in world.calls()
    }


def test_a_flood_of_call_ids_stays_within_the_cap() -> None:
    world = _world(max_calls=500)
    for i in range(5000):
        _send(world, INVITE, call_id=f"{i}@flood.example.com", at=0.0)
    said = world.pipeline.snapshot(0.0)
    assert (said.calls_tracked, said.limits["calls"]) == (500, 4500)


def test_the_oldest_lingering_calls_go_first_and_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "MAX_LINGERING", 3)
    world = _world()
    for i in range(5):
        _send(world, INVITE, call_id=f"{i}@example.com", at=float(i))
        _send(world, BUSY, call_id=f"{i}@example.com", at=float(i) + 0.5)
    world.run_until(8.0)
    said = world.pipeline.snapshot(world.now)
    assert (said.calls_lingering, said.limits["lingering"]) == (3, 2)
    assert len(world.calls()) == 5


def test_calls_that_were_hung_up_leave_no_deadline_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SPARE_DEADLINES", 20)
    world = _world()
    for i in range(300):
        at = i * 60.0
        for line in (INVITE, OK, ACK):
            _send(world, line, call_id=f"{i}@example.com", at=at)
        world.run_until(at + 40.0)  # it was looked at while it was on: its end is hours ahead
        _send(world, BYE, call_id=f"{i}@example.com", at=at + 41.0)
    world.run_until(300 * 60.0)
    assert len(world.calls()) == 300
    assert len(world.pipeline.calls._deadlines) <= 2 * len(world.pipeline.calls) + 21


def test_a_burst_of_endings_is_worked_off_in_turns() -> None:
    world = _world()
    for i in range(table.TURN + 10):
        _send(world, INVITE, call_id=f"{i}@example.com", at=0.0)
        _send(world, BUSY, call_id=f"{i}@example.com", at=1.0)
    world.now = 20.0
    world.pipeline.handle_timer(20.0)
    world._drain()
    assert len(world.calls()) <= table.TURN
    world.run_until(20.0)
    assert len(world.calls()) == table.TURN + 10


def test_draining_says_what_is_known_of_calls_that_go_on() -> None:
    world = _world()
    _send(world, INVITE, call_id="trying@example.com")
    _send(world, INVITE, call_id="talking@example.com")
    _send(world, OK, call_id="talking@example.com")
    _send(world, ACK, call_id="talking@example.com")
    _send(world, INVITE, call_id="busy@example.com")
    _send(world, BUSY, call_id="busy@example.com")
    _send(world, "1.0 A>B ACK 1/ACK z9 q r", call_id="stray@example.com")
    world.pipeline.drain(world.now)
    world._drain()
    records = {c.call_id.split("@")[0]: c for c in world.calls()}
    assert {"trying", "talking", "busy"} == set(records)
    trying, talking, busy = records["trying"], records["talking"], records["busy"]
    assert (trying.final_code, trying.ended, trying.flags) == (None, False, ("interrupted",))
    assert (talking.final_code, talking.flags) == (200, ("interrupted",))
    assert (busy.final_code, busy.flags) == (486, ())
    assert sum(_live(world).values()) == 0


def test_a_drained_attempt_without_answer_is_unknown_not_timed_out() -> None:
    world = _world()
    _send(world, "0.0 A>P INVITE 1/INVITE b1 a -")
    _send(world, "0.1 P>B INVITE 1/INVITE p1 a -")
    world.pipeline.drain(world.now)
    world._drain()
    (attempt,) = world.attempts()
    assert (
        attempt.final_code,
        attempt.inferred,
        attempt.flags,
    ) == (None, False, ("interrupted",))


def test_draining_twice_says_nothing_twice() -> None:
    world = _world()
    _send(world, INVITE)
    world.pipeline.drain(world.now)
    world.pipeline.drain(world.now)
    world._drain()
    assert len([r for r in world.outputs if isinstance(r, CallRecord)]) == 1


def test_a_simulated_day_leaves_nothing_behind() -> None:
    world = _world()
    for i in range(400):
        start = i * 216.0
        for text in (INVITE, RINGING, OK, ACK, BYE)[: 5 if i % 3 else 3]:
            _send(world, text, call_id=f"{i}@example.com", at=start + Line.of(text).at)
    world.run_out()
    assert len(world.calls()) == 400
    assert len(world.pipeline.calls) == 0
    assert world.pipeline.next_timer() is None


def test_a_caller_that_turns_to_the_next_server_is_live_again() -> None:
    world = _world()
    _send(world, INVITE)
    _send(world, "0.5 B>A 503 1/INVITE b1 a x")
    assert _live(world) == {"trying": 0, "ringing": 0, "answered": 0}
    _send(world, "1.0 A>C INVITE 1/INVITE b2 a -")
    world.run_until(4.0)
    assert _live(world) == {"trying": 1, "ringing": 0, "answered": 0}
    _send(world, "5.0 C>A 486 1/INVITE b2 a y")
    world.run_out()
    assert (world.call().final_code, sum(_live(world).values())) == (486, 0)


def _ended(world: World, call_id: str, at: float) -> None:
    _send(world, INVITE, call_id=call_id, at=at)
    _send(world, BUSY, call_id=call_id, at=at)


def test_shrinking_forgets_the_oldest_lingering_calls_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "MAX_LINGERING", 10)
    world = _world()
    for i in range(8):
        _ended(world, f"{i}@example.com", float(i))
    world.run_until(12.0)
    world.pipeline.calls.shrink(0.5, world.now)
    said = world.pipeline.snapshot(world.now)
    assert (said.calls_lingering, said.calls_tracked, said.limits["lingering"]) == (5, 5, 3)
    world.pipeline.calls.shrink(0.0, world.now)
    assert len(world.pipeline.calls) == 0
    world.run_out()
    assert len(world.calls()) == 8


def test_what_late_facts_changed_is_said_before_a_lingering_call_is_evicted() -> None:
    world = _world()
    _ended(world, "one@example.com", 1.0)
    world.run_until(5.0)
    _send(world, RINGING, at=5.5)
    world.pipeline.calls.shrink(0.0, world.now)
    world._drain()
    assert [(c.ring_ms, c.revision) for c in world.calls()] == [(500.0, 1)]


def test_a_lingering_call_that_proved_to_be_none_can_be_evicted() -> None:
    world = _world()
    _send(world, BYE)
    world.run_until(20.0)
    _send(world, "6.1 B>A 481 2/BYE b3 a x", at=20.0)
    world.pipeline.calls.shrink(0.0, 20.0)
    assert (len(world.pipeline.calls), world.pipeline.calls.orphans) == (0, 1)


def test_what_proves_to_be_no_call_after_all_is_taken_back() -> None:
    world = _world()
    _send(world, BYE)
    world.run_until(20.0)
    _send(world, "6.1 B>A 481 2/BYE b3 a x", at=20.5)
    world.run_out()
    record, retraction = world.outputs
    assert isinstance(record, CallRecord)
    assert isinstance(retraction, Retraction)
    assert (retraction.from_tag, retraction.revision) == (record.from_tag, 1)
    assert len(world.pipeline.calls) == 0


def test_newcomers_are_refused_while_memory_is_short_and_known_calls_go_on() -> None:
    world = _world()
    _send(world, INVITE)
    world.pipeline.calls.refuse_new = True
    _send(world, INVITE, call_id="new@example.com")
    _send(world, BUSY)
    world.pipeline.calls.refuse_new = False
    world.run_out()
    assert [c.call_id for c in world.calls()] == ["one@example.com"]
    limits = world.pipeline.snapshot(0.0).limits
    assert (limits["memory"], limits["calls"]) == (1, 0)


def test_a_call_met_in_its_middle_says_that_the_sidecar_was_warming() -> None:
    world = _world()
    world.pipeline.calls.warming_until = 5.0
    _send(world, OK, call_id="warming@example.com", at=1.0)
    _send(world, INVITE, call_id="whole@example.com", at=2.0)
    _send(world, OK, call_id="partial@example.com", at=5.0)
    for name in ("warming", "whole", "partial"):
        _send(world, BYE, call_id=f"{name}@example.com", at=6.0)
    world.run_out()
    flags = {c.call_id.split("@")[0]: c.flags for c in world.calls()}
    assert "warming" in flags["warming"]
    assert "partial_no_invite" in flags["warming"]
    assert "warming" not in flags["whole"] + flags["partial"]
