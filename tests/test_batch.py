from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sipsidecar.batch import KEY_OVERHEAD, ROW_OVERHEAD, WORTH, Batch, Row, Waiting
from sipsidecar.rows import TABLES, Replaced

MAX_ROWS = 3
MAX_BYTES = 4000


def waiting(max_rows: int = 1000, max_age: float = 1.0, max_bytes: int = 1 << 20) -> Waiting:
    return Waiting(max_rows=max_rows, max_age=max_age, max_bytes=max_bytes)


def key(call_id: str, table: str = "calls") -> Replaced:
    return Replaced(table, call_id, "tag", "", 1, 1, 1)


def data(batch: Batch | None) -> dict[str, list[bytes]]:
    assert batch is not None
    return {table: [row.data for row in rows] for table, rows in batch.tables.items()}


def take_all(queue: Waiting) -> list[dict[str, list[bytes]]]:
    taken = []
    while (batch := queue.take()) is not None:
        taken.append(data(batch))
        queue.done()
    return taken


class Ledger(RuleBasedStateMachine):
    """Any sequence of what happens to a queue, beside plain lists of what was put in."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = waiting(MAX_ROWS, 1.0, MAX_BYTES)
        self.model: dict[str, list[Row]] = {table: [] for table in WORTH}
        self.flying: list[Row] | None = None
        self.flying_bytes = 0
        self.rest: list[Row] = []
        self.max_bytes = MAX_BYTES
        self.number = 0
        self.added: Counter[str] = Counter()
        self.packets: Counter[str] = Counter()
        self.shed: Counter[tuple[str, str]] = Counter()

    @rule(
        table=st.sampled_from(WORTH),
        size=st.integers(8, 2000),
        packets=st.integers(0, 9),
        revised=st.booleans(),
    )
    def add(self, table: str, size: int, packets: int, revised: bool) -> None:
        self.number += 1
        content = self.number.to_bytes(8, "big").ljust(size, b"x")
        row = Row(content, packets, key(str(self.number), table) if revised else None)
        self.queue.add(table, row.data, 0.0, packets, row.replaces)
        self.added[table] += 1
        self.packets[table] += packets
        self.model[table].append(row)
        self.make_room()

    @rule(table=st.sampled_from(["calls", "attempts"]))
    def retract(self, table: str) -> None:
        self.number += 1
        row = Row(b"", 0, key(str(self.number), table))
        self.queue.retract(key(str(self.number), table), 0.0)
        self.model[table].append(row)
        self.make_room()

    def make_room(self) -> None:
        """What is worth least goes first, and of that the oldest."""
        reason = "queue-full" if self.max_bytes == MAX_BYTES else "memory"
        while any(self.model.values()) and self.bytes() > self.max_bytes:
            table = next(table for table in WORTH if self.model[table])
            self.shed[table, reason] += bool(self.model[table].pop(0).data)

    def bytes(self) -> int:
        return self.flying_bytes + sum(row.size for rows in self.model.values() for row in rows)

    @rule(max_bytes=st.sampled_from([0, 1000, 3000, MAX_BYTES, 2 * MAX_BYTES]))
    def limit(self, max_bytes: int) -> None:
        self.queue.limit(max_bytes)
        self.max_bytes = max(1, min(max_bytes, MAX_BYTES))
        self.make_room()

    @precondition(lambda self: self.flying is None and not self.rest)
    @rule()
    def take(self) -> None:
        batch = self.queue.take()
        if batch is None:
            assert not any(self.model.values())
            return
        self.flying = []
        for table, waits in self.model.items():
            rows = batch.tables.get(table, [])
            assert len(rows) <= MAX_ROWS
            bare = [row for row in waits if not row.data and row.replaces in batch.replaced]
            front = waits[: len(rows) + len(bare)]
            # a batch is the front of what waits, in its order; a key goes with its row, no earlier
            assert [row for row in front if row.data] == rows
            keys = [row.replaces for row in front if row.replaces]
            assert keys == [one for one in batch.replaced if one.table == table]
            del waits[: len(front)]
            self.flying += front
        assert self.flying
        self.flying_bytes = sum(row.size for row in self.flying)

    @precondition(lambda self: self.flying is None and self.rest)
    @rule()
    def take_the_rest(self) -> None:
        assert self.queue.due(0.0)
        batch = self.queue.take()
        assert batch is not None
        assert sorted(batch.replaced) == sorted(row.replaces for row in self.rest if row.replaces)
        assert batch.rows == sum(1 for row in self.rest if row.data)
        self.flying, self.rest = self.rest, []

    @precondition(lambda self: self.flying is not None and not self.rest)
    @rule()
    def split(self) -> None:
        assert self.flying is not None
        self.rest = [row for row in self.flying if row.replaces]
        self.flying = [row for row in self.flying if not row.replaces]
        batch = self.queue.split()
        assert batch.replaced == []
        rows = [row for some in batch.tables.values() for row in some]
        assert sorted(row.data for row in rows) == sorted(row.data for row in self.flying)

    @precondition(lambda self: self.flying is not None)
    @rule(how=st.sampled_from(["done", "refused", "spooled", "lost"]))
    def finish(self, how: str) -> None:
        before = self.queue.refused.copy()
        refused = {table: (0,) for table in WORTH if self.flies(table)}
        if how == "done":
            self.queue.done()
        elif how == "refused":
            self.queue.done(refused)
            assert self.queue.refused - before == Counter(refused.keys())
        elif how == "spooled":
            self.queue.spooled()
        else:
            self.queue.lost("rejected")
        self.flying = None
        if not self.rest:
            self.flying_bytes = 0

    def flies(self, table: str) -> bool:
        taken = self.queue._taken
        return taken is not None and table in taken.tables

    @precondition(lambda self: self.flying is not None)
    @rule()
    def take_again(self) -> None:
        assert self.queue.take() is None
        assert not self.queue.due(1e9)

    @invariant()
    def rows_balance(self) -> None:
        queue = self.queue
        for table in WORTH:
            dropped = sum(count for (name, _), count in queue.dropped.items() if name == table)
            assert queue.added[table] == self.added[table]
            there = queue.waiting(table) + queue.stored[table] + queue.refused[table]
            assert queue.added[table] == there + queue.rows_spooled[table] + dropped
            for reason in ("queue-full", "memory"):
                assert queue.dropped[(table, reason)] == self.shed[table, reason]

    @invariant()
    def packets_balance(self) -> None:
        queue = self.queue
        for table in WORTH:
            lost = sum(n for (name, _), n in queue.packets_dropped.items() if name == table)
            there = queue.packets_waiting[table] + queue.packets_stored[table]
            there += queue.packets_refused[table] + queue.packets_spooled[table]
            assert queue.packets_waiting[table] >= 0
            assert there + lost == self.packets[table]

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.queue.total_bytes == self.bytes()
        assert 0 <= self.queue.total_bytes <= max(self.max_bytes, self.flying_bytes)
        assert self.queue.fill == self.bytes() / self.max_bytes

    @invariant()
    def what_waits_becomes_due_and_nothing_else_does(self) -> None:
        if self.flying is None and not self.rest:
            assert self.queue.due(2.0) == any(self.model.values())


class TestLedger(Ledger.TestCase):  # type: ignore[valid-type,misc]
    settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_the_tables_are_those_that_rows_are_made_for() -> None:
    assert set(WORTH) == set(TABLES)


def test_messages_go_first_then_what_is_worth_more_and_of_each_the_oldest() -> None:
    queue = waiting(max_bytes=len(WORTH) * 2 * (100 + ROW_OVERHEAD))
    for table in reversed(WORTH):
        for number in b"12":
            queue.add(table, bytes([number]) * 100, 0.0)
    gone = []
    for size in [100] * (2 * len(WORTH) - 2):
        before = {table: queue.waiting(table) for table in WORTH}
        queue.add("calls", b"3" * size, 0.0)
        gone += [table for table in WORTH if queue.waiting(table) < before[table]]
    assert gone == [table for table in WORTH[:-1] for _ in "12"]
    assert queue.waiting("calls") == 2 * len(WORTH)
    left = [row for one in take_all(queue) for row in one["calls"]]
    assert left[:3] == [b"1" * 100, b"2" * 100, b"3" * 100]


def test_a_row_larger_than_all_the_memory_is_dropped_and_counted() -> None:
    queue = waiting(max_bytes=1000)
    queue.add("messages", b"x" * 2000, 0.0, packets=1)
    assert queue.take() is None
    assert queue.dropped == {("messages", "queue-full"): 1}
    assert queue.packets_dropped == {("messages", "queue-full"): 1}
    assert not queue.due(1e9)


def test_a_batch_in_flight_is_never_dropped_to_make_room() -> None:
    queue = waiting(max_bytes=8 * (100 + ROW_OVERHEAD))
    for number in b"12":
        queue.add("messages", bytes([number]) * 100, 0.0)
    assert data(queue.take()) == {"messages": [b"1" * 100, b"2" * 100]}
    for _ in range(50):
        queue.add("calls", b"3" * 100, 0.0)
    assert queue.waiting("messages") == 2
    assert queue.waiting("calls") == 6
    queue.done()
    assert queue.stored == {"messages": 2}


def test_a_batch_holds_at_most_max_rows_of_each_table_and_the_rest_stays_due() -> None:
    queue = waiting(max_rows=2)
    for table in ("messages", "calls"):
        for number in b"123":
            queue.add(table, bytes([number]), 0.0)
    assert data(queue.take()) == {"calls": [b"1", b"2"], "messages": [b"1", b"2"]}
    queue.done()
    assert queue.due(1.0)
    assert data(queue.take()) == {"calls": [b"3"], "messages": [b"3"]}


def test_a_batch_takes_a_quarter_of_the_memory_and_what_is_worth_most_goes_first() -> None:
    queue = waiting(max_bytes=40_000)
    for _ in range(20):
        queue.add("messages", b"m" * 1000, 0.0)
    queue.add("calls", b"c" * 1000, 0.0)
    batch = queue.take()
    assert batch is not None
    assert next(iter(batch.tables)) == "calls"
    assert len(batch.tables["calls"]) == 1
    assert 10_000 <= sum(row.size for rows in batch.tables.values() for row in rows) < 12_000


@pytest.mark.parametrize(
    ("rows", "size", "age", "is_due"),
    [(1, 1, 0.9, False), (1, 1, 1.0, True), (9, 1, 0.0, False), (10, 1, 0.0, True),
     (1, 30_000, 0.0, True)],
)  # fmt: skip
def test_a_batch_is_due_by_rows_by_age_or_by_bytes(
    rows: int, size: int, age: float, is_due: bool
) -> None:
    queue = waiting(max_rows=10, max_age=1.0, max_bytes=100_000)
    for _ in range(rows):
        queue.add("messages", b"x" * size, 100.0)
    assert queue.due(100.0 + age) is is_due


def test_the_age_is_that_of_the_oldest_row_and_begins_anew_with_an_empty_queue() -> None:
    queue = waiting()
    queue.add("calls", b"1", 100.0)
    queue.add("calls", b"2", 100.9)
    assert queue.due(101.0)
    queue.take()
    queue.done()
    queue.add("calls", b"3", 101.0)
    assert not queue.due(101.9)
    assert queue.due(102.0)


def test_the_older_revision_is_replaced_in_the_batch_of_the_newer_one_and_never_before() -> None:
    queue = waiting(max_rows=1)
    queue.add("calls", b"first", 0.0)
    queue.add("calls", b"second", 0.0, replaces=key("a"))
    first, second = queue.take(), None
    assert data(first) == {"calls": [b"first"]}
    assert first is not None
    assert first.replaced == []
    queue.done()
    second = queue.take()
    assert data(second) == {"calls": [b"second"]}
    assert second is not None
    assert second.replaced == [key("a")]


def test_a_revision_that_was_dropped_does_not_take_the_stored_one_with_it() -> None:
    size = 100 + ROW_OVERHEAD
    queue = waiting(max_bytes=4 * size)
    queue.add("calls", b"1" * 100, 0.0, replaces=key("a"))
    for _ in range(4):
        queue.add("calls", b"2" * 100, 0.0)
    assert queue.dropped == {("calls", "queue-full"): 1}
    batch = queue.take()
    assert batch is not None
    assert batch.replaced == []


def test_a_retraction_follows_the_row_that_it_retracts() -> None:
    queue = waiting(max_rows=1)
    queue.add("calls", b"row", 0.0)
    queue.retract(key("a"), 0.0)
    assert queue.waiting("calls") == 1
    first = queue.take()
    assert data(first) == {"calls": [b"row"]}
    assert first is not None
    assert first.replaced == []
    queue.done()
    second = queue.take()
    assert second is not None
    assert second == Batch({}, [key("a")])
    queue.done()
    assert queue.take() is None
    assert queue.stored == {"calls": 1}


def test_a_retraction_alone_becomes_due() -> None:
    queue = waiting()
    queue.retract(key("a"), 0.0)
    assert queue.due(1.0)


def test_retractions_without_end_are_bounded_too() -> None:
    queue = waiting(max_bytes=10 * (KEY_OVERHEAD + ROW_OVERHEAD))
    for number in range(1000):
        queue.retract(key(str(number)), 0.0)
    batch = queue.take()
    assert batch is not None
    assert batch.replaced == [key("990"), key("991"), key("992")]


def test_what_replaces_stored_rows_can_be_split_off_and_comes_with_the_next_take() -> None:
    queue = waiting()
    queue.add("calls", b"first", 0.0, packets=1)
    queue.add("calls", b"second", 0.0, packets=2, replaces=key("a"))
    queue.retract(key("b", "attempts"), 0.0)
    queue.add("messages", b"m", 0.0, packets=4)
    queue.take()
    assert queue.split() == Batch({"calls": [Row(b"first", 1)], "messages": [Row(b"m", 4)]}, [])
    assert len(queue) == 3
    assert queue.packets_waiting == {"calls": 3, "messages": 4}
    queue.done()
    assert queue.due(0.0)
    assert queue.total_bytes > 0
    assert queue.take() == Batch(
        {"calls": [Row(b"second", 2, key("a"))]}, [key("a"), key("b", "attempts")]
    )
    assert queue.waiting("calls") == 1
    queue.spooled()
    assert queue.total_bytes == 0
    assert queue.stored == {"calls": 1, "messages": 1}
    assert queue.rows_spooled == {"calls": 1}
    assert queue.packets_spooled == {"calls": 2}


def test_a_batch_without_replacing_rows_has_no_rest_after_a_split() -> None:
    queue = waiting()
    queue.add("calls", b"first", 0.0)
    queue.take()
    queue.split()
    queue.done()
    assert queue.take() is None
    assert not queue.due(1e9)


def test_refused_rows_are_counted_apart_with_their_packets() -> None:
    queue = waiting()
    for packets in (1, 2, 4):
        queue.add("messages", b"m", 0.0, packets=packets)
    queue.add("calls", b"c", 0.0)
    queue.take()
    queue.done({"messages": (0, 2), "attempts": ()})
    assert queue.stored == {"messages": 1, "calls": 1}
    assert queue.packets_stored["messages"] == 2
    assert queue.refused == {"messages": 2}
    assert queue.packets_refused == {"messages": 5}
    assert queue.packets_waiting["messages"] == 0


def test_a_lower_limit_makes_room_at_once_and_says_so_until_it_is_lifted() -> None:
    queue = waiting(max_bytes=10 * (100 + ROW_OVERHEAD))
    for _ in range(10):
        queue.add("messages", b"m" * 100, 0.0, packets=1)
    assert queue.fill == 1.0
    queue.limit(4 * (100 + ROW_OVERHEAD))
    assert queue.dropped == {("messages", "memory"): 6}
    queue.add("calls", b"c" * 100, 0.0)
    assert queue.packets_dropped == {("messages", "memory"): 7}
    queue.limit(1 << 40)
    assert queue.fill == 0.4
    for _ in range(7):
        queue.add("messages", b"m" * 100, 0.0, packets=1)
    assert queue.dropped == {("messages", "memory"): 7, ("messages", "queue-full"): 1}


def test_a_small_batch_may_be_made_to_wait_but_not_a_large_one() -> None:
    queue = waiting(max_rows=10, max_age=1.0)
    queue.add("calls", b"c", 0.0)
    assert not queue.due(4.9, patience=5.0)
    assert queue.due(5.0, patience=5.0)
    assert queue.due(1.0, patience=0.5)
    for _ in range(9):
        queue.add("calls", b"c", 0.0)
    assert queue.due(0.0, patience=5.0)
