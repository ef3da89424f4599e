import functools
import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from flows import ANSWERED, CALLER_BYE, FLOWS, PARENTS
from lives import Life, Tables
from sim import ADDRESSES, EPOCH, Line
from sipsidecar.batch import StoreError, StoreUnavailable, Waiting
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.edges import postgres, rebuild
from sipsidecar.edges.rebuild import Rebuilt
from sipsidecar.keeping import RowMaker
from sipsidecar.rows import clean_call_id
from sipsidecar.wire import hep
from stored import sql, store

if TYPE_CHECKING:
    from sipsidecar.pipeline import Output, Stored

AWAY = StoreUnavailable("canceling statement due to statement timeout")
PROXY = [hep.packed_address(ADDRESSES["P"])]


class Answers:
    """A database's answers, from what a life before left in its tables."""

    def __init__(self, tables: Tables, *script: StoreError | None) -> None:
        self.tables = tables
        self.script = list(script)
        """What each question fails with; None, and none, for an answer."""
        self.asked: list[tuple[Any, ...]] = []
        self.pauses: list[float] = []

    def _next(self, *question: Any) -> None:
        self.asked.append(question)
        failure = self.script.pop(0) if self.script else None
        if failure is not None:
            raise failure

    async def unfinished(
        self, since_us: int, linger_us: int, limit: int
    ) -> list[tuple[str, int | None, bool]]:
        self._next("unfinished", since_us, linger_us, limit)
        call_ids = dict.fromkeys(m.call_id for m in self.tables.messages if m.call_id)
        found: list[tuple[str, int | None, bool]] = [(one, None, False) for one in call_ids]
        return found[:limit]

    async def sip(self, call_ids: Sequence[str], limit: int) -> list[dict[str, Any]]:
        self._next("sip", list(call_ids), limit)
        text = hep.address_text
        return [
            {
                "received_at": m.received_at,
                "captured_at": m.captured_at,
                "agent_id": m.agent_id,
                "agent_ip": m.peer,
                "src_ip": text(m.source),
                "src_port": m.source_port,
                "dst_ip": text(m.destination),
                "dst_port": m.destination_port,
                "transport": m.transport,
                "call_id": m.call_id,
                "payload": m.payload,
                "kind": m.kind,
            }
            for m in self.tables.messages
            if m.call_id in call_ids
        ][:limit]

    async def rows(self, call_ids: Sequence[str]) -> list[dict[str, Any]]:
        self._next("rows", list(call_ids))
        found = [row for row in self.tables.rows.values() if row.call_id in call_ids]
        unsaid = {"branch": None, "stream": None, "ended_at": None}
        return [unsaid | msgspec.structs.asdict(row) for row in found]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


async def _rebuild(life: Life, answers: Answers, **changes: Any) -> Rebuilt:
    how: dict[str, Any] = {
        "now": lambda: life.now,
        "at_us": EPOCH + 100_000_000,
        "look_back": 3600.0,
        "linger": 32.0,
        "limit": 1000,
        "pause": answers.pause,
    }
    return await rebuild.rebuild(
        answers.unfinished, answers.sip, answers.rows, life.pipeline, **(how | changes)
    )


def _first(calls: int, *lines: str, drained: bool = False) -> Tables:
    life = Life(Tables())
    for text in lines or ANSWERED:
        for i in range(calls):
            life.hear(text, call_id=f"{i}@example.com")
    if drained:
        life.stop()
    return life.tables


@pytest.mark.parametrize("drained", [False, True])
async def test_calls_that_were_open_are_live_again_and_end_as_one_record(drained: bool) -> None:
    second = Life(_first(3, drained=drained), 10.0)
    done = await _rebuild(second, Answers(second.tables))
    assert (done.calls, done.messages, done.left_out) == (3, 12, 0)
    assert second.pipeline.calls.live == [0, 0, 3]
    for i in range(3):
        for text in CALLER_BYE:
            second.hear(text, call_id=f"{i}@example.com", at=70.0)
    second.run_out()
    assert [c.talk_ms for c in second.tables.calls()] == [60000.0] * 3


async def test_the_question_goes_back_from_the_wall_clock_by_the_look_back() -> None:
    answers = Answers(Tables())
    assert await _rebuild(Life(answers.tables), answers) == Rebuilt()
    assert answers.asked == [("unfinished", EPOCH - 3_500_000_000, 32_000_000, 2000)]


async def test_a_question_that_takes_too_long_is_asked_of_half_the_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = Answers(_first(1), AWAY, AWAY, AWAY)
    with caplog.at_level(logging.WARNING):
        done = await _rebuild(Life(answers.tables), answers)
    back = [EPOCH + 100_000_000 - q[1] for q in answers.asked if q[0] == "unfinished"]
    assert [seconds / 1_000_000 for seconds in back] == [3600, 1800, 900, 450]
    assert done.calls == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"looking for open calls {seconds} s back instead: {AWAY}" for seconds in (1800, 900, 450)
    ]


@pytest.mark.parametrize("failures", [[AWAY] * 4, [StoreError("no such database")]])
async def test_a_database_that_does_not_answer_costs_a_line_and_not_the_sidecar(
    failures: list[StoreError], caplog: pytest.LogCaptureFixture
) -> None:
    answers = Answers(_first(1), *failures)
    with caplog.at_level(logging.WARNING):
        done = await _rebuild(Life(answers.tables), answers)
    assert (done.calls, len(answers.asked)) == (0, len(failures))
    assert caplog.messages[-1] == f"calls that were open before are not rebuilt: {failures[-1]}"


async def test_calls_that_the_database_does_not_answer_for_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "CHUNK", 2)
    answers = Answers(_first(5), None, None, None, *[AWAY] * rebuild.TRIES)
    second = Life(answers.tables)
    with caplog.at_level(logging.WARNING):
        done = await _rebuild(second, answers)
    assert (done.calls, done.left_out) == (2, 3)
    assert [seconds for seconds in answers.pauses if seconds] == [1, 2, 4, 8, 16, 30, 30]
    assert caplog.messages == [f"3 calls are not rebuilt: {AWAY}"]


async def test_a_database_that_is_away_for_a_moment_is_asked_again() -> None:
    answers = Answers(_first(1), None, AWAY, None, AWAY)
    done = await _rebuild(Life(answers.tables), answers)
    assert (done.calls, done.left_out) == (1, 0)


async def test_calls_over_the_limit_are_left_out_and_counted() -> None:
    answers = Answers(_first(5))
    second = Life(answers.tables)
    done = await _rebuild(second, answers, limit=3)
    assert (done.calls, done.left_out, len(second.pipeline.calls)) == (3, 2, 3)


async def test_calls_without_room_in_the_table_are_left_out_and_counted() -> None:
    answers = Answers(_first(5))
    second = Life(answers.tables, max_calls=2)
    done = await _rebuild(second, answers)
    assert (done.calls, done.left_out) == (2, 3)


async def test_the_loop_has_its_turn_after_so_many_messages() -> None:
    answers = Answers(_first(40))
    turns = [0]

    async def pause(seconds: float) -> None:
        turns.append(len(second.pipeline.calls))

    second = Life(answers.tables)
    await _rebuild(second, answers, pause=pause, turn=20)
    assert [after - before for before, after in itertools.pairwise(turns)] == [5] * 8


async def test_a_call_id_of_a_flood_does_not_keep_the_others_from_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rebuild, "MAX_ROWS", 8)
    monkeypatch.setattr(rebuild, "MAX_MESSAGES", 6)
    tables = _first(2)
    flood = Life(tables)
    for i in range(20):
        flood.hear(f"6.{i} A>B ACK 1/ACK f{i} a x", call_id="0@example.com", at=6.0 + i / 100)
    answers = Answers(tables)
    second = Life(tables, 10.0)
    done = await _rebuild(second, answers)
    assert (done.calls, done.messages, done.messages_left_out) == (2, 10, 2)
    assert second.pipeline.calls.live == [0, 0, 2]


async def test_calls_without_their_invite_wait_while_it_is_being_looked_for() -> None:
    answers = Answers(_first(1))
    second = Life(answers.tables, 65.0)
    held: list[float | None] = []

    async def pause(seconds: float) -> None:
        held.append(second.pipeline.calls.hold_partials_until)

    await _rebuild(second, answers, pause=pause, turn=1)
    assert held == [125.0]
    assert second.pipeline.calls.hold_partials_until is None


async def test_the_wait_ends_when_the_rebuild_breaks() -> None:
    answers = Answers(Tables(), RuntimeError("a mistake"))  # type: ignore[arg-type]
    second = Life(answers.tables)
    with pytest.raises(RuntimeError):
        await _rebuild(second, answers)
    assert second.pipeline.calls.hold_partials_until is None


async def test_addresses_and_ports_that_are_unknown_stay_unknown() -> None:
    answers = Answers(_first(1))
    answers.tables.messages = [
        m._replace(source=b"", source_port=0, peer=None) for m in answers.tables.messages
    ]
    second = Life(answers.tables)
    assert (await _rebuild(second, answers)).messages == 4


# -- with a real database


class _Wired:
    """A life whose rows go to PostgreSQL."""

    def __init__(self, opened: postgres.Postgres, life: Life) -> None:
        self.opened = opened
        self.life = life
        self.waiting = Waiting(max_rows=10_000, max_age=1.0, max_bytes=1 << 26)
        self.maker = RowMaker(self.waiting, 1, messages=True)
        self.sent = 0

    async def write(self) -> None:
        """Everything that has come out since the last time, in one batch."""
        messages: Sequence[Stored] = self.life.stored
        outputs: Sequence[Output] = self.life.outputs
        self.maker.keep(messages, 0.0)
        self.maker.add(outputs, 0.0)
        self.life.stored, self.life.outputs = [], []
        batch = self.waiting.take()
        if batch is not None:
            self.opened.first_sequence += 1
            tables = {table: [row.data for row in rows] for table, rows in batch.tables.items()}
            await self.opened.write(self.opened.first_sequence, tables, batch.replaced)


def _as_asked(record: CallRecord | AttemptRecord) -> dict[str, Any]:
    fields = msgspec.structs.asdict(record)
    for name in ("agent_ids", "findings"):
        if name in fields:
            fields[name] = list(fields[name])
    return {name: fields[name] for name in fields if name not in ("revision", "flags")}


@pytest.mark.parametrize("drained", [False, True], ids=["killed", "drained"])
async def test_every_flow_cut_by_a_restart_is_in_postgresql_as_if_it_was_not(
    database: str, drained: bool
) -> None:
    expected: dict[str, list[dict[str, Any]]] = defaultdict(list)
    cuts: dict[str, int] = {}
    events = []
    for number, (_, lines, _) in enumerate(FLOWS):
        # one is longer than what is stored of a Call-ID
        call_id = "é" * 300 if number == 3 else f"{number}@example.com"
        truth = Life(Tables(), local=PROXY)
        for text in lines:
            truth.hear(text, call_id=call_id, parents=PARENTS)
        truth.run_out()
        for record in truth.tables.rows.values():
            expected[clean_call_id(record.call_id)].append(_as_asked(record))
        cuts[call_id] = len(lines) // 2
        events += [(Line.of(text).at, call_id, n, text) for n, text in enumerate(lines)]
    events.sort(key=lambda event: event[0])
    async with store(database) as opened:
        first = _Wired(opened, Life(Tables(), local=PROXY))
        for _, call_id, n, text in events:
            if n < cuts[call_id]:
                first.life.hear(text, call_id=call_id, parents=PARENTS)
        if drained:
            first.life.stop()
        await first.write()
        second = _Wired(opened, Life(Tables(), first.life.now, local=PROXY))
        done = await rebuild.rebuild(
            functools.partial(postgres.find_unfinished, database, 1),
            lambda ids, limit: postgres.find_sip(database, 1, ids, limit=limit),
            lambda ids: postgres.find_rows(database, 1, ids, EPOCH - 1),
            second.life.pipeline,
            now=lambda: second.life.now,
            at_us=EPOCH + 100_000_000,
            look_back=3600.0,
            linger=32.0,
            limit=1000,
        )
        assert (done.calls, done.left_out) == (sum(cut > 0 for cut in cuts.values()), 0)
        for at, call_id, n, text in events:
            if n >= cuts[call_id]:
                second.life.hear(
                    text, call_id=call_id, parents=PARENTS, at=max(at, second.life.now)
                )
        second.life.run_out()
        await second.write()
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    async with sql(database) as connection:
        for table in ("calls", "attempts"):
            for row in await connection.fetch(f"SELECT * FROM {table}"):  # noqa: S608
                fields = {k: v for k, v in dict(row).items() if k not in ("revision", "flags")}
                del fields["node_id"]
                found[row["call_id"]].append(fields)
    for by_call in (expected, found):
        for records in by_call.values():
            for fields in records:
                # messages of the second half came when the rebuild was over, not at their time
                del fields["received_at"], fields["call_id"]
                if fields.get("evidence"):
                    fields["evidence"] = msgspec.json.decode(fields["evidence"])
            records.sort(key=str)
    assert expected == found
