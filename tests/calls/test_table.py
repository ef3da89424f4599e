import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import FLOWS, PARENTS, SCENARIOS
from lives import Life, Tables
from reports import Said, datagram
from sim import ADDRESSES, Line, World, packet
from sipsidecar.calls import table
from sipsidecar.calls.dialog import Timing
from sipsidecar.calls.events import CallRecord, Cohort, Move, Setup
from sipsidecar.calls.table import Retraction
from sipsidecar.signals.cohort import Cohorts, Matcher
from sipsidecar.signals.leases import Alive
from sipsidecar.wire import rtcp

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


# ------------------------------------------------------------------------- moves, setups, signs of life

A, B, C = (ADDRESSES[name] for name in "ABC")
COHORTS = Cohorts(
    [
        Matcher(tenant="acme", sources=(A,)),
        Matcher(trunk="b", addresses=(B,)),
        Matcher(trunk="c", addresses=(C,)),
    ],
    {2001: "edge"},
)
ACME = Cohort("acme", node="edge")


class Watched(World):
    """A world that hears of every move and setup as it happens."""

    def __init__(self, timing: Timing | None = None, *, setups: bool = True, **how: object) -> None:
        super().__init__(timing or Timing(settle=2.0), **({"cohorts": COHORTS} | how))
        self.pipeline.watch(moves=True, setups=setups)
        self.moves: list[Move] = []
        self.setups: list[Setup] = []

    def _drain(self) -> None:
        super()._drain()
        self.moves += self.pipeline.moves()
        self.setups += self.pipeline.setups()

    def told(self) -> dict[str, int]:
        """The live counts that the moves tell."""
        states = {move.call_id: move.state for move in self.moves}
        return {state: sum(s == state for s in states.values()) for state in table.STATES}

    def live(self) -> dict[str, int]:
        return self.pipeline.snapshot(self.now).live

    def hear(self, text: str, at: float | None = None, call_id: str = "one@example.com") -> None:
        line = Line.of(text)
        data = packet(line, call_id, parent=PARENTS.get(line.branch))
        self.send(data, line.at if at is None else at)

    def states(self) -> list[str | None]:
        return [move.state for move in self.moves]


def test_each_change_of_a_calls_live_state_is_told_with_its_cohort() -> None:
    world = Watched()
    for text in (INVITE, RINGING, OK, ACK, BYE):
        world.hear(text)
    world.run_out()
    found = ACME._replace(trunk="b")
    assert world.moves == [
        Move("one@example.com", state, found) for state in ("trying", "ringing", "answered", None)
    ]


def test_nobody_is_told_who_does_not_ask() -> None:
    world = _world()
    for text in (INVITE, OK, BYE):
        _send(world, text)
    world.run_out()
    assert (world.pipeline.moves(), world.pipeline.setups()) == ([], [])


def test_an_egress_invite_that_came_first_is_put_right_when_the_ingress_is_seen() -> None:
    world = Watched()
    world.hear("0.01 P>B INVITE 1/INVITE p1 a -", 0.0)
    assert world.moves[-1].cohort == Cohort(trunk="b", node="edge")
    world.hear("0.0 A>P INVITE 1/INVITE b1 a -", 0.02)
    assert world.moves[-1] == Move("one@example.com", "trying", ACME._replace(trunk="b"))


def test_the_newest_egress_invite_says_the_trunk_and_only_if_it_is_one() -> None:
    world = Watched()
    for text in (
        "0.0 A>P INVITE 1/INVITE b1 a -",
        "0.1 P>B INVITE 1/INVITE p1 a -",
        "0.5 B>P 503 1/INVITE p1 a x",
        "0.6 P>C INVITE 1/INVITE q1 a -",
        "0.7 P>D INVITE 1/INVITE q2 a -",
    ):
        world.hear(text)
    assert [(move.state, move.cohort.trunk) for move in world.moves] == [
        ("trying", "other"),
        ("trying", "b"),
        ("trying", "c"),
    ]


def test_the_ingress_whose_invite_was_lost_is_known_by_its_replies() -> None:
    world = Watched()
    world.hear("0.1 P>B INVITE 1/INVITE p1 a -")
    world.hear("0.2 P>A 100 1/INVITE b1 a -")
    assert world.moves[-1].cohort == ACME._replace(trunk="b")


def test_without_cohorts_moves_still_tell_and_with_names_alone_they_tell_the_node() -> None:
    for cohorts, node in ((None, "other"), (Cohorts((), {2001: "edge"}), "edge")):
        world = Watched(cohorts=cohorts)
        world.hear(INVITE)
        assert world.moves == [Move("one@example.com", "trying", Cohort(node=node))]
        world.run_out()
        assert world.call().tenant is None


ALL = [(s["name"], s["messages"]) for s in SCENARIOS] + [(name, lines) for name, lines, _ in FLOWS]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ALL), st.data())
def test_moves_tell_the_live_counts_at_any_time_under_loss_copies_and_any_order(
    flow: tuple[str, list[str]], data: st.DataObject
) -> None:
    lines = flow[1]
    heard = data.draw(st.lists(st.sampled_from(range(len(lines))), max_size=2 * len(lines)))
    gaps = data.draw(st.sampled_from([0.001, 0.5, 3.0, 20.0]))
    world = Watched()
    invited = False
    for step, index in enumerate(heard):
        world.hear(lines[index], step * gaps)
        line = Line.of(lines[index])
        invited |= line.start == "INVITE" and not line.to_tag
        # A call whose INVITE was lost is told, but no live call was seen to begin.
        assert world.told() == world.live() or (not invited and not any(world.live().values()))
    while (due := world.pipeline.next_timer()) is not None:
        world.run_until(due)
        assert world.told() == world.live() or not invited
    assert not any(world.live().values())
    assert not any(world.told().values())
    assert len({(one.call.call_id, one.call.from_tag) for one in world.setups}) == len(world.setups)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ALL), st.data())
def test_what_was_told_last_does_not_depend_on_the_order_of_arrival(
    flow: tuple[str, list[str]], data: st.DataObject
) -> None:
    lines = flow[1]
    order = data.draw(st.permutations(range(len(lines))))
    last = []
    for indices in (range(len(lines)), order):
        world = Watched()
        for step, index in enumerate(indices):
            world.hear(lines[index], step * 0.0001)
        move = world.moves[-1] if world.moves else None
        # what was never seen live is told as nobody's
        last.append(move if move and move.state else move and move.state)
    assert last[0] == last[1]


def test_a_call_whose_invite_was_lost_is_told_once_it_rings_or_is_answered_and_so_is_its_end() -> (
    None
):
    world = Watched()
    world.hear("0.1 B>A 100 1/INVITE b1 a -")
    assert world.moves == []
    world.hear(RINGING)
    world.hear(OK)
    assert world.states() == ["ringing", "answered"]
    assert not any(world.live().values()), "nobody saw it begin"
    world.hear(INVITE, 1.2)
    assert world.moves[-1].state == "answered"
    assert world.live()["answered"] == 1
    world.hear(BYE)
    assert world.states()[-1] is None


def test_a_stray_reply_holds_nothing_for_long() -> None:
    world = Watched()
    world.hear(RINGING)
    world.run_until(185.0)
    assert world.states() == ["ringing", None]


LOST_FINALS = [
    ("the ACK of a final that was lost", ["3.0 A>B ACK 1/ACK b1 a x"], 2.0),
    ("a CANCEL whose 487 and ACK were lost", ["3.0 A>B CANCEL 1/CANCEL b1 a -"], 34.0),
]


@pytest.mark.parametrize(("what", "lines", "patience"), LOST_FINALS)
@pytest.mark.parametrize("backwards", [False, True])
def test_what_proves_an_end_ends_a_ringing_call_long_before_timer_c(
    what: str, lines: list[str], patience: float, backwards: bool
) -> None:
    facts = [INVITE, RINGING, *lines]
    world = Watched()
    for step, text in enumerate(reversed(facts) if backwards else facts):
        world.hear(text, 3.0 + step * 0.001)
    assert world.moves[-1].state == "ringing", what
    world.run_until(3.1 + patience)
    assert world.moves[-1].state is None
    assert len(world.calls()) == 1


@pytest.mark.parametrize("source", ["A", "B"])
def test_the_ack_of_an_attempts_lost_final_does_not_end_the_call(source: str) -> None:
    """Nor does one of an attempt that nobody can tell from the caller's INVITE."""
    world = Watched()
    for text in (
        f"0.0 {source}>P INVITE 1/INVITE {'b1' if source == 'A' else 'z1'} a -",
        "0.1 P>B INVITE 1/INVITE p1 a -",
        "0.5 B>P 180 1/INVITE p1 a x",
        "1.0 P>B ACK 1/ACK p1 a x",
        "1.1 P>C INVITE 1/INVITE q1 a -",
    ):
        world.hear(text)
    world.run_until(60.0)
    assert world.moves[-1].state == "ringing"
    world.hear("61.0 C>P 200 1/INVITE q1 a y")
    assert world.moves[-1].state == "answered"


@pytest.mark.parametrize("drained", [False, True])
@pytest.mark.parametrize("cut", range(1, 5))
def test_a_restored_call_is_told_and_ends_as_if_nothing_had_been(cut: int, drained: bool) -> None:
    tables = Tables()
    lines = [INVITE, RINGING, OK, ACK, BYE]
    first = Life(tables)
    for text in lines[:cut]:
        first.hear(text)
    if drained:
        first.stop()
    second = Life(tables, first.now)
    second.pipeline.watch(moves=True, setups=True)
    second.rebuild()
    moves = second.pipeline.moves()
    states = ["trying", "ringing", "answered", "answered"]
    assert [move.state for move in moves] == [states[cut - 1]]
    for text in lines[cut:]:
        second.hear(text)
    second.run_out()
    assert second.pipeline.moves()[-1].state is None
    assert len(second.pipeline.setups()) == (1 if cut < 3 else 0)


@pytest.mark.parametrize(
    ("seconds", "held", "media"), [(0.5, False, False), (10.0, False, True), (10.0, True, False)]
)
def test_the_silence_of_a_restored_call_means_something_if_its_rtcp_was_heard(
    seconds: float, held: bool, media: bool
) -> None:
    """Unless it was put on hold since: then nothing may be heard."""
    tables = Tables()
    first = Life(tables)
    for text in (INVITE, OK, ACK):
        first.hear(text)
    for at in (2.0, 2.0 + seconds):
        first.send(datagram(Said(at, "caller", 100, 1100), "flow@example.com"), at)
    if held:
        first.hear("13.0 A>B INVITE 2/INVITE b4 a x")
    second = Life(tables, 20.0)
    second.pipeline.watch(moves=True, setups=False)
    second.rebuild()
    alive = second.pipeline.alive("flow@example.com")
    assert alive == Alive(over=False, last_now=20.0, media=media)


def test_a_recorded_call_that_goes_on_with_another_invite_is_live_again_at_once() -> None:
    world = Watched()
    for text in (INVITE, "1.0 A>B ACK 1/ACK b1 a x"):
        world.hear(text)
    world.run_until(5.0)
    assert len(world.calls()) == 1, "refused, by its ACK"
    assert world.states() == ["trying", None]
    world.hear("6.0 A>B INVITE 2/INVITE b4 a -")
    assert world.states() == ["trying", None, "trying"]
    alive = world.pipeline.alive("one@example.com")
    assert alive is not None
    assert not alive.over
    world.hear("6.5 B>A 486 2/INVITE b4 a x")
    assert world.states()[-1] is None


def test_a_call_that_was_recorded_before_a_restart_tells_nothing() -> None:
    tables = Tables()
    first = Life(tables)
    for text in (INVITE, BUSY):
        first.hear(text)
    first.run_until(5.0)
    second = Life(tables, 6.0)
    second.pipeline.watch(moves=True, setups=True)
    second.rebuild()
    second.run_out()
    assert (second.pipeline.moves(), second.pipeline.setups()) == ([], [])


def test_a_200_to_a_bye_that_was_lost_ends_the_live_state_in_any_order() -> None:
    answer = "6.1 B>A 200 2/BYE b3 a x"
    for lines in ([INVITE, OK, answer], [answer, OK, INVITE], [OK, answer, INVITE]):
        world = Watched()
        for step, text in enumerate(lines):
            world.hear(text, step * 0.001)
        assert sum(world.live().values()) == 0
        assert world.told() == world.live()
        assert world.states()[-1] is None
        alive = world.pipeline.alive("one@example.com")
        assert alive is not None
        assert alive.over
        world.hear(BYE, 3.0)
        world.run_until(5.01)
        assert world.call().ended


@pytest.mark.parametrize("code", [401, 407, 481, 408, 500])
def test_a_bye_that_was_not_accepted_proves_nothing_by_its_answer(code: int) -> None:
    world = Watched()
    for text in (INVITE, OK, f"6.1 B>A {code} 2/BYE b3 a x"):
        world.hear(text)
    assert world.live()["answered"] == 1


def test_a_caller_that_mends_its_invite_is_live_at_once_whatever_came_first() -> None:
    again = "1.5 A>C INVITE 1/INVITE b2 a -"
    for lines in ([INVITE, "1.0 B>A 503 1/INVITE b1 a x", again], [again, INVITE]):
        world = Watched()
        for step, text in enumerate(lines):
            world.hear(text, step * 0.001)
        assert world.live()["trying"] == 1
        assert world.told() == world.live()


def test_an_attempts_refusal_that_came_before_the_ingress_invite_is_not_the_calls() -> None:
    world = Watched()
    world.hear("0.2 B>P 503 1/INVITE p1 a x", 0.0)
    world.hear("0.1 P>B INVITE 1/INVITE p1 a -", 0.01)
    world.hear("0.0 A>P INVITE 1/INVITE b1 a -", 0.02)
    assert world.states()[-1] == "trying"
    assert world.told() == world.live()


def test_a_hidden_attempts_refusal_is_told_from_the_calls_by_its_addresses() -> None:
    world = Watched()
    for text in (
        "0.0 A>P INVITE 1/INVITE b1 a -",
        "0.1 P>B INVITE 1/INVITE h1 a -",  # its Via does not name the one above
        "0.2 B>P 503 1/INVITE h1 a x",
    ):
        world.hear(text)
    assert world.states()[-1] == "trying"


def test_the_refusal_of_a_reinvite_whose_call_was_answered_out_of_sight_ends_nothing() -> None:
    for lines in (
        [INVITE, "8.0 A>B INVITE 2/INVITE b5 a x", "8.1 B>A 488 2/INVITE b5 a x"],
        ["8.1 B>A 488 2/INVITE b5 a x", INVITE, "8.0 A>B INVITE 2/INVITE b5 a x"],
    ):
        world = Watched()
        for step, text in enumerate(lines):
            world.hear(text, step * 0.001)
        assert world.live()["trying"] == 1


def test_a_call_with_very_many_invites_costs_no_comparison_of_all_with_all() -> None:
    world = Watched()
    for i in range(40):
        world.hear(f"{i / 100} A>B INVITE {i}/INVITE x{i} a -")
        world.hear(f"{i / 100} B>A 503 {i}/INVITE x{i} a k")
    assert sum(world.live().values()) == 0
    world.hear("1.0 A>B INVITE 77/INVITE x77 a -")
    assert world.live()["trying"] == 1


def test_a_call_that_goes_on_after_its_record_left_is_live_again_until_it_ends() -> None:
    world = Watched()
    world.hear(INVITE)
    world.run_until(40.0)
    assert (world.call().final_code, world.states()) == (408, ["trying", None])
    world.hear(OK, 41.0)
    assert (world.live()["answered"], world.states()[-1]) == (1, "answered")
    assert [state for state, _ in world.pipeline.live_calls()] == ["answered"]
    alive = world.pipeline.alive("one@example.com")
    assert alive is not None
    assert not alive.over
    world.hear(BYE, 46.0)
    assert (sum(world.live().values()), world.states()[-1]) == (0, None)
    world.run_out()
    assert world.told() == world.live()
    assert len(world.setups) == 1


def test_an_evicted_call_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_LINGERING", 1)
    world = Watched()
    world.hear(INVITE)
    world.run_until(40.0)
    world.hear(OK, 41.0)  # lives, and lingers still
    _ended(world, "other@example.com", 42.0)
    world.run_until(50.0)
    assert world.told() == world.live() == {"trying": 0, "ringing": 0, "answered": 0}


def test_what_is_known_of_a_calls_life() -> None:
    world = Watched()
    assert world.pipeline.alive("one@example.com") is None
    world.hear(INVITE, 1.0)
    assert world.pipeline.alive("one@example.com") == Alive(over=False, last_now=1.0, media=False)
    world.hear(BUSY, 2.0)
    assert world.pipeline.alive("one@example.com") == Alive(over=True, last_now=2.0, media=False)
    world.run_until(5.0)
    alive = world.pipeline.alive("one@example.com")
    assert alive is not None
    assert alive.over
    world.run_out()
    assert world.pipeline.alive("one@example.com") is None


def _rtcp(world: Watched, at: float) -> None:
    world.run_until(at)
    report = rtcp.parse(b"\x80\xc9\x00\x01\x00\x00\x00\x07")[0]
    end = (b"\xc0\0\2\1", 4001)
    world.pipeline.calls.receive_media(
        "one@example.com", report, end, end, 0, int(at * 1e6), world.now, int(at * 1e6)
    )


def test_silence_of_media_means_something_once_it_was_heard_for_a_while_and_not_on_hold() -> None:
    world = Watched()
    for text in (INVITE, OK, ACK):
        world.hear(text)
    _rtcp(world, 5.0)
    _rtcp(world, 5.2)  # another tap's copy
    assert world.pipeline.alive("one@example.com") == Alive(over=False, last_now=5.2, media=False)
    _rtcp(world, 10.0)
    assert world.pipeline.alive("one@example.com") == Alive(over=False, last_now=10.0, media=True)
    world.hear("20.0 A>B INVITE 2/INVITE b9 a x")
    assert world.pipeline.alive("one@example.com") == Alive(over=False, last_now=20.0, media=False)
    _rtcp(world, 25.0)
    _rtcp(world, 30.0)
    assert world.pipeline.alive("one@example.com") == Alive(over=False, last_now=30.0, media=True)


def test_the_setup_of_an_answered_call_is_told_a_settle_time_later_and_once() -> None:
    world = Watched()
    for text in (INVITE, RINGING, OK, ACK):
        world.hear(text)
    world.run_until(2.99)
    assert world.setups == []
    world.run_until(3.01)
    (setup,) = world.setups
    assert (setup.call.final_code, setup.call.pdd_ms, setup.call.ended) == (200, 500.0, False)
    assert (setup.call.tenant, setup.call.trunk, setup.attempts) == ("acme", "b", ())
    world.hear(BYE)
    world.hear(OK, 7.0)
    world.run_out()
    assert len(world.setups) == 1


def test_the_setup_of_a_refused_call_is_told_with_its_record_and_has_its_attempts() -> None:
    world = Watched()
    for text in (
        "0.0 A>P INVITE 1/INVITE b1 a -",
        "0.1 P>B INVITE 1/INVITE p1 a -",
        "0.2 B>P 486 1/INVITE p1 a x",
        "0.3 P>A 486 1/INVITE b1 a x",
    ):
        world.hear(text)
    assert world.setups == []
    world.run_until(2.5)
    (setup,) = world.setups
    assert (setup.call, setup.attempts) == (world.call(), tuple(world.attempts()))
    assert setup.attempts[0].trunk == "b"


def test_each_dialog_of_a_call_id_tells_its_own_setup_with_its_own_attempts() -> None:
    world = Watched()
    for text in (
        "0.0 A>P INVITE 1/INVITE b1 a -",
        "0.1 P>B INVITE 1/INVITE p1 a -",
        "0.2 B>P 486 1/INVITE p1 a x",
        "0.3 P>A 486 1/INVITE b1 a x",
        "0.4 A>C INVITE 1/INVITE d1 z -",
        "0.5 C>A 200 1/INVITE d1 z y",
    ):
        world.hear(text)
    world.run_out()
    found = {one.call.from_tag: (one.call.final_code, len(one.attempts)) for one in world.setups}
    assert (found, len(world.setups)) == ({"a": (486, 1), "z": (200, 0)}, 2)


def test_a_setup_that_was_not_seen_or_is_not_over_is_not_told() -> None:
    world = Watched()
    world.hear("2.0 B>A 200 1/INVITE b1 a x", 0.0)
    world.hear("9.0 A>B BYE 2/BYE b3 a x", 0.1)
    world.hear(INVITE, 1.0, call_id="two@example.com")
    world.pipeline.drain(1.5)
    world.run_out()
    assert len(world.calls()) == 2
    assert world.setups == []


def test_the_setup_of_a_call_has_nothing_of_its_media() -> None:
    record = CallRecord(call_id="one", from_tag="a", received_at=1, started_at=1)
    judged = msgspec.structs.replace(
        record, mos=3.1, mos_scale="nb", mos_direction="x", findings=("high_loss",), evidence="{}"
    )
    assert table._without_media(judged) == table._without_media(record) == record


def test_setups_are_told_a_few_at_a_time() -> None:
    world = Watched()
    for i in range(20):
        for text in (INVITE, OK):
            world.hear(text, 1.0, call_id=f"{i}@example.com")
    world.pipeline.handle_timer(3.0)
    world._drain()
    assert len(world.setups) == table.TURN
    assert world.pipeline.next_timer() == 3.0
    world.run_until(3.0)
    assert len(world.setups) == 20


def test_a_hang_up_that_others_heard_ends_a_call_whose_bye_was_lost_and_its_record_waits() -> None:
    world = Watched()
    for text in (INVITE, OK, ACK):
        world.hear(text)
    world.pipeline.calls.hang_up("one@example.com", world.now)
    world._drain()
    assert (world.states()[-1], sum(world.live().values())) == (None, 0)
    for text in (OK, ACK, INVITE):
        world.hear(text, 2.0)
    assert world.states()[-1] is None
    assert world.calls() == []
    world.hear(BYE, 6.0)
    world.run_until(8.01)
    assert world.call().end_source == "bye"


def test_a_hang_up_is_remembered_for_sip_that_comes_late_but_not_for_long_nor_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Watched()
    hang_up = world.pipeline.calls.hang_up
    hang_up("one@example.com", 0.0)
    for text in (INVITE, OK):
        world.hear(text)
    assert sum(world.live().values()) == 0
    assert world.states() == [None]
    hang_up("two@example.com", 10.0)
    world.hear(INVITE, 10.0 + table.HUNG_UP_SECONDS + 0.1, call_id="two@example.com")
    assert world.live()["trying"] == 1
    monkeypatch.setattr(table, "MAX_HUNG_UP", 2)
    for i in range(5):
        hang_up(f"{i}@example.com", 80.0 + i)
    for i in range(5):
        world.hear(INVITE, 90.0, call_id=f"{i}@example.com")
    assert world.live()["trying"] == 1 + 3
