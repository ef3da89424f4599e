import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import ANSWERED, CALLER_BYE, FLOWS, PARENTS, SCENARIOS, flow
from lives import Life, Tables
from sim import Line
from sipsidecar.calls import table
from sipsidecar.calls.events import CallRecord
from sipsidecar.calls.restoring import StoredRow, last_call
from sipsidecar.calls.table import Retraction

INVITE, RINGING, OK, ACK = ANSWERED
BYE = CALLER_BYE[0]
BUSY = "1.0 B>A 486 1/INVITE b1 a x"

ALL = [(s["name"], s["messages"]) for s in SCENARIOS] + [(name, lines) for name, lines, _ in FLOWS]


def _truth(lines: list[str], **how: Any) -> Tables:
    tables = Tables()
    life = Life(tables)
    for text in lines:
        life.hear(text, **how)
    life.run_out()
    return tables


def _restarted(
    lines: list[str],
    cut: int,
    *,
    drained: bool,
    late: bool,
    rebuilt_after: int,
    held: bool = True,
    lost: int = 0,
    **how: Any,
) -> tuple[Tables, Life]:
    """Two lives: the first ends before message `cut`, the second rebuilds after so many messages.

    `late` ends the first life when the next message comes instead of right after its last one.
    `rebuilt_after` beyond the last message: within the settle time, or (not `held`) long after it.
    When not `held` the second life's own rows are not to be seen yet.
    `lost` rows, the last that the first life wrote, did not get to the disk.
    """
    tables = Tables()
    first = Life(tables)
    for text in lines[:cut]:
        first.hear(text, **how)
    if late:
        first.run_until(Line.of(lines[cut]).at)
    if drained:
        first.stop()
    for key in list(tables.rows)[len(tables.rows) - lost :]:
        del tables.rows[key]
    second = Life(tables, first.now)
    second.pipeline.calls.hold_partials_until = first.now + 60.0 if held else None
    for i, text in enumerate(lines[cut:]):
        if i == rebuilt_after:
            second.rebuild(own_rows=held)
            second.pipeline.calls.hold_partials_until = None
        second.hear(text, **how)
    if rebuilt_after >= len(lines) - cut:
        second.run_until(second.now + (1.0 if held else 20.0))
        second.rebuild(own_rows=held)
        second.pipeline.calls.hold_partials_until = None
    second.run_out()
    return tables, second


@pytest.mark.parametrize(("name", "lines"), ALL, ids=[name[:50] for name, _ in ALL])
@pytest.mark.parametrize("drained", [False, True], ids=["killed", "drained"])
def test_a_flow_cut_by_a_restart_anywhere_leaves_the_rows_of_one_that_was_not(
    name: str, lines: list[str], drained: bool
) -> None:
    expected = _truth(lines, parents=PARENTS).said()
    for cut in range(1, len(lines)):
        rest = len(lines) - cut
        for rebuilt_after, late, (held, lost) in itertools.product(
            {0, rest // 2, rest}, (False, True), ((True, 0), (False, 1))
        ):
            case = f"{cut=} {rebuilt_after=} {late=} {held=} {lost=}"
            tables, life = _restarted(
                lines, cut, drained=drained, late=late, rebuilt_after=rebuilt_after, held=held,
                lost=lost, parents=PARENTS,
            )  # fmt: skip
            assert expected == tables.said(), case
            assert life.pipeline.calls.live == [0, 0, 0], case
            assert len(life.pipeline.calls) == 0, case


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32))
def test_no_number_of_lives_and_no_loss_leaves_two_rows_for_one_call(seed: int) -> None:
    rng = random.Random(seed)
    _, lines = rng.choice(ALL)
    arrivals = sorted((Line.of(text).at + rng.choice((0.0, 0.0, rng.random() * 5)), text)
                      for text in lines for _ in range(rng.choice((1, 1, 2))))  # fmt: skip
    life, rebuilt = Life(Tables()), True
    for at, text in arrivals:
        if rng.random() < 0.25:
            if not rebuilt:
                life.rebuild(own_rows=rng.random() < 0.5)
            if rng.random() < 0.5:
                life.stop()
            elif lost := rng.randrange(3):
                del life.tables.messages[max(1, len(life.tables.messages) - lost) :]
            life, rebuilt = Life(life.tables, life.now + 0.001), False
            life.pipeline.calls.hold_partials_until = rng.choice((None, life.now + 60.0))
        if not rebuilt and rng.random() < 0.4:
            life.rebuild(own_rows=rng.random() < 0.5)
            rebuilt = True
        life.hear(text, at=max(at, life.now), parents=PARENTS)
    if not rebuilt:
        life.run_until(life.now + rng.choice((0.0, 1.0, 20.0)))
        life.rebuild()
    life.run_out()
    names = [(call.call_id, call.from_tag) for call in life.tables.calls()]
    assert len(names) == len(set(names))
    assert life.pipeline.calls.live == [0, 0, 0]
    assert len(life.pipeline.calls) == 0


def _life(*lines: str, tables: Tables | None = None, began: float = 0.0) -> Life:
    life = Life(tables or Tables(), began)
    for text in lines:
        life.hear(text)
    return life


def _next(life: Life, **settings: Any) -> Life:
    """The life after this one, before it rebuilds."""
    return Life(life.tables, life.now, **settings)


def _live(life: Life) -> dict[str, int]:
    return life.pipeline.snapshot(life.now).live


def test_a_killed_calls_durations_are_between_one_agents_times_across_the_restart() -> None:
    taps = ((2001, 0), (2002, -3_600_000_000))
    expected = _truth([*ANSWERED, *CALLER_BYE], agents=taps).said()
    tables, _ = _restarted(
        [*ANSWERED, *CALLER_BYE], 2, drained=False, late=False, rebuilt_after=1, agents=taps
    )
    assert expected == tables.said()
    (call,) = tables.calls()
    assert (call.setup_ms, call.talk_ms, call.agent_ids) == (5000.0, 60000.0, (2001, 2002))


def test_an_interrupted_call_is_live_again_and_its_row_is_replaced_by_the_whole_one() -> None:
    first = _life(*ANSWERED)
    first.stop()
    (row,) = first.tables.calls()
    assert (row.flags, row.revision, row.talk_ms) == (("interrupted",), 0, None)
    second = _next(first)
    second.rebuild()
    assert _live(second) == {"trying": 0, "ringing": 0, "answered": 1}
    for text in CALLER_BYE:
        second.hear(text)
    assert sum(_live(second).values()) == 0
    second.run_out()
    (row,) = second.tables.calls()
    assert (row.flags, row.revision, row.talk_ms) == (("rebuilt",), 1, 60000.0)


def test_a_call_that_was_complete_but_not_stored_leaves_after_the_settle_time() -> None:
    first = _life(*ANSWERED, *CALLER_BYE)
    second = _next(first)
    second.rebuild()
    second.run_until(first.now + 1.9)
    assert second.tables.calls() == []
    second.run_until(first.now + 2.1)
    (row,) = second.tables.calls()
    assert (row.flags, row.revision, row.talk_ms) == (("rebuilt",), 0, 60000.0)


def test_a_call_whose_record_is_stored_says_nothing_again_and_lingers() -> None:
    first = _life(*ANSWERED, *CALLER_BYE)
    first.run_until(first.now + 10)
    second = _next(first)
    second.rebuild()
    assert (sum(_live(second).values()), second.pipeline.calls.lingering) == (0, 1)
    second.run_until(second.now + 64.1)
    assert len(second.pipeline.calls) == 0
    second.stop()
    assert second.outputs == []


def test_a_late_fact_after_the_restart_revises_the_stored_record() -> None:
    first = _life(INVITE, OK, ACK, BYE)
    first.run_until(first.now + 10)
    second = _next(first)
    second.rebuild()
    second.hear(RINGING, at=second.now + 1)
    second.run_out()
    (row,) = second.tables.calls()
    assert (row.pdd_ms, row.revision, row.flags) == (900.0, 1, ("rebuilt",))


def test_a_late_fact_before_the_crash_whose_revision_was_lost_is_said_after_it() -> None:
    first = _life(INVITE, OK, ACK, BYE)
    first.run_until(first.now + 10)
    first.hear(RINGING, at=first.now + 1)
    second = _next(first)
    second.rebuild()
    second.run_out()
    (row,) = second.tables.calls()
    assert (row.pdd_ms, row.revision) == (900.0, 1)


def test_an_attempt_whose_row_was_lost_is_stored_again() -> None:
    lines = flow("503 at the first trunk")
    expected = _truth(lines).said()
    first = _life(*lines)
    first.run_out()
    (lost, *_) = [key for key, row in first.tables.rows.items() if not isinstance(row, CallRecord)]
    del first.tables.rows[lost]
    second = _next(first)
    second.rebuild()
    second.run_out()
    assert expected == second.tables.said()


def test_a_stored_record_stays_when_messages_that_it_was_made_of_are_missing() -> None:
    first = _life(*ANSWERED, *CALLER_BYE)
    first.run_until(first.now + 10)
    rows = first.tables.said()
    whole = first.tables.messages
    for kept in (whole[:4], whole[1:], whole[5:]):
        first.tables.messages = list(kept)
        second = _next(first)
        second.rebuild()
        second.run_out()
        assert rows == second.tables.said()


def test_a_record_keeps_its_key_when_a_stray_of_its_call_id_was_heard_before() -> None:
    first = _life()
    first.hear("0.0 A>B ACK 1/ACK b9 q r")
    for text in (INVITE, OK, ACK, BYE):
        first.hear(text, at=100 + Line.of(text).at)
    first.run_until(first.now + 10)
    second = _next(first)
    second.rebuild()
    second.hear(RINGING, at=second.now + 1)
    second.run_out()
    (row,) = second.tables.calls()
    assert (row.pdd_ms, row.revision) == (900.0, 1)


def test_two_rows_that_an_earlier_crash_left_become_one() -> None:
    first = _life(*ANSWERED)
    first.stop()
    # This life never rebuilt, and said what it saw.
    second = _next(first)
    second.hear(BYE)
    second.run_until(second.now + 20)
    assert len(second.tables.calls()) == 2
    for key, row in list(second.tables.rows.items()):
        if "interrupted" in row.flags:  # as if it had been complete
            second.tables.rows[key] = CallRecord(
                call_id=row.call_id, from_tag=row.from_tag, received_at=row.received_at,
                started_at=row.started_at,
            )  # fmt: skip
    third = _next(second)
    third.rebuild()
    third.run_out()
    (row,) = third.tables.calls()
    assert (row.talk_ms, row.revision) == (60000.0, 1)


def test_three_lives_of_one_call_leave_one_row() -> None:
    expected = _truth([*ANSWERED, *CALLER_BYE]).said()
    for drained in itertools.product((False, True), repeat=2):
        first = _life(INVITE, RINGING)
        if drained[0]:
            first.stop()
        second = _next(first)
        second.rebuild()
        second.hear(OK)
        if drained[1]:
            second.stop()
        third = _next(second)
        third.rebuild()
        third.hear(ACK)
        for text in CALLER_BYE:
            third.hear(text)
        third.run_out()
        assert expected == third.tables.said()


def test_what_this_life_saw_whole_is_not_rebuilt() -> None:
    life = _life(INVITE, BUSY)
    life.rebuild()
    life.run_until(10.0)
    life.rebuild()
    life.run_out()
    (row,) = (r for r in life.outputs if isinstance(r, CallRecord))
    assert (row.flags, row.final_code) == ((), 486)


def test_a_call_without_its_invite_waits_for_the_rebuild() -> None:
    first = _life(*ANSWERED)
    second = _next(first)
    second.pipeline.calls.hold_partials_until = 125.0
    second.hear(BYE)
    second.run_until(100.0)
    assert second.outputs == []
    second.rebuild()
    second.run_out()
    (row,) = (r for r in second.outputs if isinstance(r, CallRecord))
    assert (row.talk_ms, row.flags, row.revision) == (60000.0, ("rebuilt",), 0)


def test_a_call_without_its_invite_does_not_wait_longer_than_told() -> None:
    life = Life(Tables())
    life.pipeline.calls.hold_partials_until = 60.0
    life.hear(BYE, at=1.0)
    life.run_until(59.9)
    assert life.outputs == []
    life.run_until(61.0)
    assert life.call().flags == ("partial_no_invite",)


def test_strays_that_fill_half_of_the_room_do_not_wait() -> None:
    life = Life(Tables(), max_calls=10)
    life.pipeline.calls.hold_partials_until = 60.0
    for i in range(6):
        life.hear("0.0 A>B ACK 1/ACK b2 a x", call_id=f"{i}@example.com", at=0.0)
    life.run_until(8.0)
    assert len(life.pipeline.calls) == 5


def test_a_stray_that_was_stored_proves_to_be_one_again() -> None:
    first = _life("0.0 A>B BYE 2/BYE b3 a x")
    first.stop()
    assert len(first.tables.calls()) == 1
    second = _next(first)
    second.rebuild()
    second.hear("0.1 B>A 481 2/BYE b3 a x", at=0.1)
    second.run_out()
    assert second.tables.calls() == []
    assert [type(r) for r in second.outputs] == [Retraction]


def test_a_call_without_room_is_not_restored_and_counted() -> None:
    first = _life(INVITE)
    for cause in ("calls", "memory"):
        second = _next(first, max_calls=1)
        second.hear(INVITE, call_id="another@example.com")
        second.pipeline.calls.refuse_new = cause == "memory"
        second.rebuild()
        assert second.pipeline.snapshot(0.0).limits[cause] == 1
        assert len(second.pipeline.calls) == 1


def test_restored_calls_that_linger_give_way_to_those_of_this_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "MAX_LINGERING", 2)
    first = Life(Tables())
    for i in range(3):
        for text in (INVITE, BUSY):
            first.hear(text, call_id=f"{i}@example.com", at=float(i))
    first.run_until(10.0)
    second = _next(first)
    for text in (INVITE, BUSY):
        second.hear(text, call_id="new@example.com", at=11.0)
    second.run_until(14.0)
    second.rebuild()
    assert (second.pipeline.calls.lingering, second.pipeline.calls.evicted) == (2, 2)
    second.hear(RINGING, call_id="new@example.com", at=15.0)
    second.run_out()
    assert [c.revision for c in second.calls()] == [1]


def test_facts_of_a_restored_call_over_its_caps_are_counted() -> None:
    first = _life(*(f"0.0 A>B INVITE 1/INVITE b{i} a -" for i in range(70)))
    second = _next(first)
    second.rebuild()
    assert second.pipeline.snapshot(0.0).limits["facts"] == 6


def test_a_call_id_that_was_used_before_is_another_call() -> None:
    first = _life(*ANSWERED, *CALLER_BYE)
    first.run_out()
    kept = first.tables.said()
    second = Life(first.tables, 1000.0)
    for text in ANSWERED:
        second.hear(text, at=1000.0 + Line.of(text).at)
    third = _next(second)
    third.rebuild()
    third.hear(BYE, at=1015.0)
    third.run_out()
    one, two = sorted(third.tables.calls(), key=lambda c: c.received_at)
    assert (one.talk_ms, two.revision, two.flags) == (60000.0, 0, ("rebuilt",))
    assert kept[0] in third.tables.said()


def test_a_long_talk_is_no_end_of_a_call() -> None:
    first = _life(*ANSWERED, BYE.replace("65.0", "9000.0"))
    first.run_until(first.now + 10)
    second = _next(first)
    second.rebuild()
    second.run_out()
    assert second.outputs == []


def test_a_row_that_says_interrupted_or_no_end_never_parts_a_call_id_in_two() -> None:
    life = _life(INVITE)
    sightings: list[Any] = [_at(0), _at(1_000_000_000)]
    for interrupted, lasted, begins in ((False, 0, 1), (True, 0, 0), (False, None, 0)):
        row = StoredRow("a", None, 0, 0, interrupted, lasted)
        facts, rows = last_call(sightings, [row], 66_000_000)
        assert (2 - begins, [row] if not begins else []) == (len(facts), rows)
    assert life.pipeline.calls.live == [1, 0, 0]


class _at:  # noqa: N801 -- stands for a sighting
    def __init__(self, received_at: int) -> None:
        self.received_at = received_at
