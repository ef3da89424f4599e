import asyncio
import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sipsidecar import rows
from sipsidecar.batch import WORTH, Batch, Row, Spooled, SpoolError
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.edges import spool as module
from sipsidecar.edges.spool import (
    BAD_KEPT,
    BLOCK,
    Report,
    Spool,
    SpoolFolder,
    decode,
    encode,
)
from sipsidecar.rows import TABLES, Replaced

LIFE = (1 << 63) - 1
KEY = Replaced("calls", "a@b", "tag", "", 1, 1, 3)
BLOCKS = 4096


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def folder(directory: Path, **changes: Any) -> SpoolFolder:
    values: dict[str, Any] = {"max_bytes": 1 << 30, "max_age_seconds": 3600.0, "now": Clock()}
    return SpoolFolder(directory, 1, **(values | changes))


@contextlib.contextmanager
def opened(directory: Path, **changes: Any) -> Iterator[SpoolFolder]:
    spool = folder(directory, **changes)
    spool.open()
    try:
        yield spool
    finally:
        spool.close()


def batch(*replaced: Replaced, **tables: int) -> Batch:
    """So many rows of each table, each with one packet more than the one before."""
    return Batch(
        {
            table: [Row(b"\0\1\0\0\0\1%d" % (n % 10), n + 1) for n in range(count)]
            for table, count in tables.items()
        },
        list(replaced),
    )


def of(sequence: int, *replaced: Replaced, **tables: int) -> Spooled:
    return Spooled(sequence, LIFE, batch(*replaced, **tables))


def big(sequence: int, table: str = "messages", size: int = 10_000) -> Spooled:
    return Spooled(sequence, LIFE, Batch({table: [Row(bytes(size), 1)]}, []))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".lock")


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def all_of(spool: SpoolFolder) -> list[Spooled]:
    found = []
    while (one := spool.oldest()) is not None:
        found.append(one)
        spool.done(one, {})
    return found


def accounted(report: Report) -> None:
    """What came is on disk, stored, refused or dropped."""
    for kind in ("rows", "packets"):
        for table in WORTH:
            sides = {
                side: getattr(report, f"{kind}_{side}").get(table, 0)
                for side in ("inherited", "put", "stored", "refused")
            }
            dropped = sum(
                count
                for (name, _), count in getattr(report, f"{kind}_dropped").items()
                if name == table
            )
            there = getattr(report, kind).get(table, 0) + sides["stored"] + sides["refused"]
            assert sides["inherited"] + sides["put"] == there + dropped, (kind, table, report)


# -- what is in a file


@given(
    contents=st.lists(st.tuples(st.binary(max_size=50), st.integers(0, 9)), max_size=20),
    tag=st.text(st.characters(), max_size=20),
    life=st.integers(0, LIFE),
)
def test_what_is_encoded_comes_back(contents: list[tuple[bytes, int]], tag: str, life: int) -> None:
    some = [Row(data, packets) for data, packets in contents]
    key = KEY._replace(from_tag=tag)
    content = encode("calls", some, [key], life, 12.5)
    summary, found, replaced = decode("calls", b"".join(content.parts))
    assert found == some
    assert replaced == [rows.clean_key(key)]
    assert (summary.life, summary.rows, summary.spooled_at) == (life, len(some), 12.5)
    assert summary.packets == sum(row.packets for row in some)
    assert content.size % BLOCKS == 0
    assert content.size >= sum(map(len, content.parts))


def test_a_tag_that_is_no_unicode_does_not_stop_a_batch(tmp_path: Path) -> None:
    key = KEY._replace(from_tag="\udc80\0", call_id="\ud800")
    with opened(tmp_path) as spool:
        spool.put(of(5, key, calls=1))
        assert all_of(spool)[0].batch.replaced == [rows.clean_key(key)]


WHOLE = b"".join(encode("calls", batch(calls=3).tables["calls"], [KEY], LIFE, 1.0).parts)


@settings(max_examples=300)
@given(at=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_no_single_wrong_bit_goes_unseen(at: int, bit: int) -> None:
    wrong = bytearray(WHOLE)
    wrong[at] ^= 1 << bit
    with contextlib.suppress(module._BadFileError):
        # only blanks and the like of the first line, which nothing depends on, may differ
        assert decode("calls", bytes(wrong)) == decode("calls", WHOLE)


@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda tail: WHOLE[:15] + tail))
def test_whatever_else_a_file_holds_is_a_bad_file(content: bytes) -> None:
    with pytest.raises(module._BadFileError):
        decode("calls", content)


@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_that_was_cut_is_a_bad_file(length: int) -> None:
    with pytest.raises(module._BadFileError):
        decode("calls", WHOLE[:length])


def test_rows_of_an_earlier_version_get_null_for_new_columns_and_lose_old_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = b"\0\3" + b"\0\0\0\1a" + b"\xff\xff\xff\xff" + b"\0\0\0\2cc"
    monkeypatch.setitem(TABLES, "pings", ("one", "gone", "three"))
    content = b"".join(encode("pings", [Row(row, 7)], [], LIFE, 1.0).parts)
    monkeypatch.setitem(TABLES, "pings", ("three", "new", "one"))
    _, found, _ = decode("pings", content)
    assert found == [Row(b"\0\3" + b"\0\0\0\2cc" + b"\xff\xff\xff\xff" + b"\0\0\0\1a", 7)]


async def test_calls_spooled_before_there_were_findings_are_stored_with_none(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sipsidecar.edges.postgres import Postgres, PostgresSettings

    today = TABLES["calls"]
    old = tuple(
        name for name in today if name not in {"mos_scale", "mos_direction", "findings", "evidence"}
    )
    record = CallRecord(call_id="old@x", from_tag="t", received_at=1, started_at=1, mos=4.1)
    (row,) = module._fitted([rows.encode_call(record, 1)], today, old)
    monkeypatch.setitem(TABLES, "calls", old)
    content = b"".join(encode("calls", [Row(row, 1)], [KEY], LIFE, 1.0).parts)
    monkeypatch.setitem(TABLES, "calls", today)
    _, found, replaced = decode("calls", content)
    assert replaced == [KEY]
    store = Postgres(PostgresSettings(dsn=database))
    await store.open()
    try:
        written = await store.write(1, {"calls": [one.data for one in found]})
    finally:
        await store.close()
    assert written.refused == {}
    connection = await asyncpg.connect(database)
    try:
        kept = await connection.fetchrow("SELECT call_id, mos, findings, evidence FROM calls")
    finally:
        await connection.close()
    assert kept is not None
    assert tuple(kept) == ("old@x", 4.1, [], None)


async def test_rows_spooled_before_there_were_cohorts_are_stored_with_none(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sipsidecar.edges.postgres import Postgres, PostgresSettings

    labels = {"tenant": "t1", "direction": "in", "region": "eu"}
    values: dict[str, Any] = {
        "call_id": "old@x",
        "from_tag": "t",
        "received_at": 1,
        "started_at": 1,
    }
    written = {
        "calls": rows.encode_call(CallRecord(**(values | labels)), 1),
        "attempts": rows.encode_attempt(AttemptRecord(branch="z", **(values | labels)), 1),
    }
    waiting = {}
    for table, row in written.items():
        today = TABLES[table]
        old = tuple(name for name in today if name not in labels)
        (before,) = module._fitted([row], today, old)
        monkeypatch.setitem(TABLES, table, old)
        content = b"".join(encode(table, [Row(before, 1)], [], LIFE, 1.0).parts)
        monkeypatch.setitem(TABLES, table, today)
        _, found, _ = decode(table, content)
        waiting[table] = [one.data for one in found]
    store = Postgres(PostgresSettings(dsn=database))
    await store.open()
    try:
        assert (await store.write(1, waiting)).refused == {}
    finally:
        await store.close()
    connection = await asyncpg.connect(database)
    try:
        for table in written:
            kept = await connection.fetchrow(
                f"SELECT call_id, tenant, direction, region FROM {table}"  # noqa: S608
            )
            assert kept is not None
            assert tuple(kept) == ("old@x", None, None, None)
    finally:
        await connection.close()


def test_keys_spooled_by_an_earlier_version_are_read_by_their_place() -> None:
    details = module._Details(columns=TABLES["calls"], lengths=[], packets=[], replaced=[])
    text = msgspec.json.encode(details).replace(
        b'"replaced":[]', b'"replaced":[["calls","a","t","b",1,2,3]]'
    )
    assert msgspec.json.decode(text, type=module._Details).replaced == [
        Replaced("calls", "a", "t", "b", 1, 2, 3)
    ]


async def test_postgresql_loads_a_file_as_it_is(tmp_path: Path, database: str) -> None:
    from sipsidecar.edges.postgres import Postgres, PostgresSettings

    store = Postgres(PostgresSettings(dsn=database))
    await store.open()
    await store.close()
    encoded = [
        Row(rows.encode_call(CallRecord(call_id=f"{n}@x", from_tag="t", received_at=n + 1,
                                        started_at=n + 1), 1), 1)
        for n in range(1000)
    ]  # fmt: skip
    with opened(tmp_path) as spool:
        spool.put(Spooled(7, LIFE, Batch({"calls": encoded}, [KEY] * 100)))
    connection = await asyncpg.connect(database)
    try:
        with (tmp_path / "1-7-calls.pgcopy").open("rb") as source:
            copied = await connection.copy_to_table(
                "calls", source=source, columns=TABLES["calls"], format="binary"
            )
        assert copied == "COPY 1000"
        assert await connection.fetchval("SELECT count(DISTINCT call_id) FROM calls") == 1000
    finally:
        await connection.close()


# -- the folder


def test_batches_come_back_in_order_and_are_gone_when_they_are_stored(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(9, KEY, calls=2, messages=3))
        spool.put(of(11, messages=1))
        spool.put(of(1000, KEY._replace(table="attempts")))
        assert spool.batches == 3
        assert spool.highest == 1000
        assert names(tmp_path) == [
            "1-1000-attempts.pgcopy", "1-11-messages.pgcopy", "1-9-calls.pgcopy",
            "1-9-messages.pgcopy",
        ]  # fmt: skip
        assert spool.oldest() == spool.oldest() == of(9, KEY, calls=2, messages=3)
        assert [one.sequence for one in all_of(spool)] == [9, 11, 1000]
        assert names(tmp_path) == []
        report = spool.report()
        assert report.rows_stored == report.rows_put == {"calls": 2, "messages": 4}
        assert report.packets_stored == {"calls": 3, "messages": 7}
        assert report.bytes == report.batches == 0
        accounted(report)


def test_the_next_life_finds_what_is_left_and_counts_it_as_inherited(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, now=clock) as spool:
        spool.put(of(9, KEY, calls=2, messages=3))
        spool.put(of(11, messages=1))
        before = spool.report()
    clock.now += 10
    with opened(tmp_path, now=clock) as spool:
        report = spool.report()
        assert report.packets_inherited == before.packets == {"calls": 3, "messages": 7}
        assert report.rows_inherited == before.rows
        assert report.rows_put == {}
        assert (report.bytes, report.batches) == (before.bytes, 2)
        assert report.oldest_at == clock.now - 10
        assert spool.highest == 11
        assert all_of(spool) == [of(9, KEY, calls=2, messages=3), of(11, messages=1)]
        accounted(spool.report())


def test_files_and_folder_are_for_the_owner_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "deep" / "spool") as spool:
        spool.put(of(1, messages=1))
    assert stat.S_IMODE((tmp_path / "deep" / "spool").stat().st_mode) == 0o700
    for path in (tmp_path / "deep" / "spool").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(
        SpoolError, match=r"may be written by other users \(mode 777\): `chmod go-w`"
    ):
        folder(tmp_path).open()


def test_a_folder_that_cannot_be_made_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match=r"set spool\.directory .* or spool\.max_bytes to 0"):
        folder(tmp_path / "file" / "spool").open()


def test_no_second_process_uses_the_same_node_but_another_node_may_share_the_folder(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(1, messages=1))
        with pytest.raises(SpoolError, match=f"by sidecar pid {os.getpid()} as node 1: stop it"):
            folder(tmp_path).open()
        other = SpoolFolder(tmp_path, 2, max_bytes=1 << 20, max_age_seconds=60)
        other.open()
        assert other.oldest() is None
        assert other.highest == -1
        other.put(of(1, messages=1))
        other.close()
        assert all_of(spool) == [of(1, messages=1)]
    with opened(tmp_path) as spool:
        assert spool.batches == 0
    assert names(tmp_path) == ["2-1-messages.pgcopy"]


def test_leftovers_of_a_crash_go_and_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(5, messages=1))
    (tmp_path / "1-6-calls.pgcopy.tmp").write_bytes(b"half")
    strange = [
        "1-7-calls.pgcopy.old", "1-07-calls.pgcopy", "01-7-calls.pgcopy", "1-7-7-calls.pgcopy",
        "1-7-users.pgcopy", "1-7-calls.pgcopy\n", "2-7-calls.pgcopy.tmp", "notes.txt",
        "1-9000000000000000000-calls.pgcopy", "1-7-calls.pgcopy.bad.tmp", "x1-7-calls.pgcopy",
    ]  # fmt: skip
    for name in strange:
        (tmp_path / name).write_bytes(b"not ours")
    with opened(tmp_path) as spool:
        assert spool.highest == 6
        assert all_of(spool) == [of(5, messages=1)]
        assert spool.report().bad_files == 0
    assert names(tmp_path) == sorted(strange)


def test_a_file_that_is_no_plain_file_does_not_stop_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1-7-calls.pgcopy")
    with opened(tmp_path / "elsewhere") as spool:
        spool.put(of(8, calls=1))
    (tmp_path / "1-8-calls.pgcopy").symlink_to(tmp_path / "elsewhere" / "1-8-calls.pgcopy")
    with opened(tmp_path) as spool:
        assert spool.oldest() is None
        assert spool.report().bad_files == 2
        assert spool.report().rows_inherited == {}


# -- damage


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-5],
        lambda content: content + b"x",
        lambda content: content[:-3] + b"x" + content[-2:],
        lambda content: content.replace(b'"lengths"', b'"lenghts"'),
    ],
)
@pytest.mark.parametrize("restart", [False, True])
def test_a_damaged_file_is_set_aside_and_counted_and_the_others_are_stored(
    tmp_path: Path, change: Callable[[bytes], bytes], restart: bool
) -> None:
    spool = folder(tmp_path)
    spool.open()
    for number in (1, 2):
        spool.put(of(number, messages=2, calls=1))
    damage(tmp_path / "1-1-messages.pgcopy", change)
    if restart:
        spool.close()
        spool = folder(tmp_path)
        spool.open()
    assert all_of(spool) == [of(1, calls=1), of(2, messages=2, calls=1)]
    report = spool.report()
    assert report.rows_dropped == {("messages", "spool-corrupt"): 2}
    assert report.packets_dropped == {("messages", "spool-corrupt"): 3}
    assert report.bad_files == 1
    accounted(report)
    spool.close()
    assert names(tmp_path) == ["1-1-messages.pgcopy.bad"]


def test_a_file_whose_header_is_gone_was_never_inherited(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(1, messages=2))
    damage(tmp_path / "1-1-messages.pgcopy", lambda content: bytes(len(content)))
    with opened(tmp_path) as spool:
        assert spool.oldest() is None
        report = spool.report()
        assert report.bad_files == 1
        assert report.rows_inherited == {}
        assert report.rows_dropped == {}
        assert spool.highest == 1


def test_a_file_that_somebody_removed_is_counted(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(1, messages=2))
        (tmp_path / "1-1-messages.pgcopy").unlink()
        assert spool.oldest() is None
        assert spool.report().packets_dropped == {("messages", "spool-corrupt"): 3}
        accounted(spool.report())


def test_a_file_that_was_exchanged_is_not_believed(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(1, messages=2))
        other = encode("messages", [Row(b"", 1)] * 5, [], LIFE, 1.0)
        (tmp_path / "1-1-messages.pgcopy").write_bytes(b"".join(other.parts))
        assert spool.oldest() is None
        assert spool.report().rows_dropped == {("messages", "spool-corrupt"): 2}


def test_only_so_many_damaged_files_are_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path) as spool:
            for number in range(BAD_KEPT):
                spool.put(of(spool.highest + number + 1, messages=1))
        for path in tmp_path.glob("*.pgcopy"):
            path.write_bytes(b"")
    with opened(tmp_path) as spool:
        assert spool.oldest() is None
    assert len(names(tmp_path)) == BAD_KEPT


# -- bounds


def test_the_oldest_messages_go_first_and_calls_last(tmp_path: Path) -> None:
    files = 2 * len(WORTH)
    with opened(tmp_path, max_bytes=files * BLOCK) as spool:
        for number in range(2):
            spool.put(of(number, **dict.fromkeys(WORTH, 1)))
        gone = []
        for number in range(2, 2 + files):
            before = spool.report().rows_dropped
            spool.put(of(number, calls=1))
            after = spool.report().rows_dropped
            gone += [one for one in after if after[one] != before.get(one)]
            assert spool.report().bytes <= files * BLOCK
        assert gone == [(table, "spool-full") for table in WORTH for _ in range(2)]
        assert [one.sequence for one in all_of(spool)] == list(range(2, 2 + files))
        accounted(spool.report())


def test_messages_of_the_new_batch_go_before_older_calls(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=3 * BLOCK) as spool:
        for number in range(2):
            spool.put(of(number, calls=1))
        spool.put(of(2, calls=1, messages=2))
        assert spool.report().rows_dropped == {("messages", "spool-full"): 2}
        assert spool.report().rows == {"calls": 3}
        assert all_of(spool) == [of(0, calls=1), of(1, calls=1), of(2, calls=1)]
        accounted(spool.report())


def test_a_batch_larger_than_the_spool_is_dropped_and_counted(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=BLOCK) as spool:
        spool.put(big(1))
        assert spool.oldest() is None
        assert spool.report().packets_dropped == {("messages", "spool-full"): 1}
        accounted(spool.report())


def test_the_number_of_files_is_bounded_too(tmp_path: Path) -> None:
    with opened(tmp_path, max_files=3) as spool:
        for number in range(10):
            spool.put(of(number, messages=1))
        assert [one.sequence for one in all_of(spool)] == [7, 8, 9]


def test_a_file_takes_little_memory_while_it_waits(tmp_path: Path) -> None:
    count = 200
    with opened(tmp_path) as spool:
        for number in range(count):
            spool.put(of(1_700_000_000_000_000 + number, messages=500))
    tracemalloc.start()
    try:
        with opened(tmp_path) as spool:
            assert spool.batches == count
            assert tracemalloc.get_traced_memory()[0] / count < 1000
    finally:
        tracemalloc.stop()


def test_the_batch_that_is_being_stored_is_not_dropped_for_room(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=2 * BLOCK) as spool:
        for number in (1, 2):
            spool.put(of(number, messages=1))
        first = spool.oldest()
        assert first is not None
        spool.put(of(3, messages=1))
        assert spool.report().rows_dropped == {("messages", "spool-full"): 1}
        spool.done(first, {})
        assert [one.sequence for one in all_of(spool)] == [3]
        accounted(spool.report())


def test_old_batches_are_given_up(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, now=clock, max_age_seconds=100.0) as spool:
        spool.put(of(1, messages=2, calls=1))
        clock.now += 60
        spool.put(of(2, messages=1))
    clock.now += 41
    with opened(tmp_path, now=clock, max_age_seconds=100.0) as spool:
        assert all_of(spool) == [of(2, messages=1)]
        assert spool.report().packets_dropped == {
            ("messages", "spool-expired"): 3, ("calls", "spool-expired"): 1,
        }  # fmt: skip
        accounted(spool.report())


def test_a_clock_that_goes_back_gives_nothing_up(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, now=clock, max_age_seconds=100.0) as spool:
        spool.put(of(1, messages=1))
        clock.now -= 1e9
        assert spool.oldest() == of(1, messages=1)


# -- a disk that fails


class Disk:
    """Makes a call of the operating system fail, for files whose name has a word in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: dict[str, tuple[str, int, int]] = {}
        self.names: dict[int, str] = {}
        for name in ("open", "write", "fdatasync", "rename", "unlink", "fsync", "read"):
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def fail(self, call: str, error: int, word: str = "", times: int = 1_000_000) -> None:
        self.errors[call] = (word, error, times)

    def heal(self) -> None:
        self.errors.clear()

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *others: Any, **named: Any) -> Any:
            what = self.names.get(first, "") if isinstance(first, int) else str(first)
            word, error, times = self.errors.get(name, ("", 0, 0))
            if times and word in what:
                self.errors[name] = (word, error, times - 1)
                raise OSError(error, os.strerror(error))
            result = real(first, *others, **named)
            if name == "open":
                self.names[result] = what
            return result

        return call


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("call", ["open", "write", "fdatasync", "rename", "fsync"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.EIO, "spool-error"),
        (errno.EROFS, "spool-error"),
        (errno.EACCES, "spool-error"),
        (errno.ENOSPC, "spool-full"),
        (errno.EDQUOT, "spool-full"),
    ],
)
def test_a_batch_that_the_disk_does_not_take_stays_the_callers(
    tmp_path: Path, disk: Disk, call: str, error: int, reason: str
) -> None:
    with opened(tmp_path) as spool:
        disk.fail(call, error)
        with pytest.raises(SpoolError, match=os.strerror(error)) as caught:
            spool.put(of(1, messages=1, calls=1))
        assert caught.value.reason == reason
        disk.heal()
        assert spool.report() == Report()
        assert names(tmp_path) == []
        spool.put(of(1, messages=1, calls=1))
        assert all_of(spool) == [of(1, messages=1, calls=1)]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_the_oldest_messages_and_then_the_batch_fits(
    tmp_path: Path, disk: Disk, error: int
) -> None:
    with opened(tmp_path) as spool:
        for number in range(5):
            spool.put(of(number, messages=1, calls=1))
        disk.fail("write", error, times=2)
        spool.put(of(5, calls=1))
        assert spool.report().rows_dropped == {("messages", "spool-full"): 2}
        assert spool.report().rows == {"calls": 6, "messages": 3}
        accounted(spool.report())


def test_a_full_disk_does_not_cost_calls_for_the_sake_of_messages(
    tmp_path: Path, disk: Disk
) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(0, messages=1, calls=1))
        disk.fail("write", errno.ENOSPC, "messages")
        spool.put(of(1, messages=2, calls=1))
        assert spool.report().rows_dropped == {("messages", "spool-full"): 3}
        disk.heal()
        assert all_of(spool) == [of(0, calls=1), of(1, calls=1)]
        accounted(spool.report())


def test_a_failing_disk_costs_nothing_that_is_on_it(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(0, messages=1))
        disk.fail("write", errno.EIO)
        with pytest.raises(SpoolError):
            spool.put(of(1, messages=1))
        disk.heal()
        assert all_of(spool) == [of(0, messages=1)]


def test_what_cannot_be_removed_is_not_counted_as_gone(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path, max_bytes=BLOCK) as spool:
        spool.put(of(0, messages=1))
        disk.fail("unlink", errno.EROFS)
        spool.put(of(1, messages=2))
        assert spool.report().rows == {"messages": 1}
        assert spool.report().rows_dropped == {("messages", "spool-full"): 2}
        disk.heal()
        assert all_of(spool) == [of(0, messages=1)]
        accounted(spool.report())


def test_a_stored_batch_that_cannot_be_removed_is_found_again_by_the_next_life_only(
    tmp_path: Path, disk: Disk
) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(0, messages=1))
        disk.fail("unlink", errno.EROFS)
        assert all_of(spool) == [of(0, messages=1)]
        assert spool.report().stuck_files == 1
        accounted(spool.report())
    disk.heal()
    with opened(tmp_path) as spool:
        assert all_of(spool) == [of(0, messages=1)]


def test_a_read_that_may_work_later_sets_nothing_aside(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(0, messages=1))
        disk.fail("open", errno.EMFILE)
        with pytest.raises(SpoolError, match="Too many open files"):
            spool.oldest()
        disk.heal()
        assert all_of(spool) == [of(0, messages=1)]


def test_a_file_that_cannot_be_read_any_more_is_set_aside(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path) as spool:
        for number in range(2):
            spool.put(of(number, messages=1))
        disk.fail("read", errno.EIO, times=1)
        assert [one.sequence for one in all_of(spool)] == [1]
        accounted(spool.report())


def test_a_batch_that_must_cost_nothing_is_refused_when_there_is_no_room(
    tmp_path: Path, disk: Disk
) -> None:
    with opened(tmp_path, max_bytes=2 * BLOCK) as spool:
        spool.put(of(0, messages=1))
        with pytest.raises(SpoolError, match=r"spool\.max_bytes is reached") as caught:
            spool.put(of(1, messages=1, calls=1), make_room=False)
        assert caught.value.reason == "spool-full"
        disk.fail("write", errno.ENOSPC, "messages")
        spool.put(of(2, calls=1), make_room=False)
        spool.done(of(2, calls=1), {})
        spool.lost(of(0, messages=1), "rejected")
        with pytest.raises(SpoolError):
            spool.put(of(3, messages=1, calls=1), make_room=False)
        assert names(tmp_path) == []
        assert spool.report().rows_dropped == {("messages", "rejected"): 1}


def test_a_batch_put_on_its_way_to_the_store_is_not_dropped_for_room_either(
    tmp_path: Path,
) -> None:
    with opened(tmp_path, max_bytes=2 * BLOCK) as spool:
        spool.put(of(1, messages=1), make_room=False)
        for number in (2, 3, 4):
            spool.put(of(number, messages=1))
        spool.done(of(1, messages=1), {})
        assert [one.sequence for one in all_of(spool)] == [4]
        accounted(spool.report())


def test_a_spool_of_no_bytes_takes_nothing_but_gives_what_is_there(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(0, messages=1))
    with opened(tmp_path, max_bytes=0) as spool:
        with pytest.raises(SpoolError, match="switched off"):
            spool.put(of(1, messages=1))
        assert all_of(spool) == [of(0, messages=1)]


def test_what_a_stranger_filled_the_disk_with_is_told_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with opened(tmp_path, now=clock, max_bytes=BLOCK) as spool:
        for number in range(100):
            spool.put(of(number, messages=1))
        assert len(caplog.messages) == 1
        assert caplog.messages[0].endswith(
            "what waits on disk has no room: 1 rows of messages are dropped"
        )
        clock.now += 61
        spool.put(of(100, messages=1))
        assert len(caplog.messages) == 2


# -- numbers


def test_a_batch_with_a_new_number_keeps_its_place_and_its_life(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in (5, 6):
            spool.put(of(number, KEY, calls=1, messages=1))
        first = spool.oldest()
        assert first is not None
        again = spool.renumber(first, 70)
        assert again == of(70, KEY, calls=1, messages=1)
        assert spool.oldest() == again
        assert spool.highest == 70
        assert names(tmp_path)[2:] == ["1-70-5-calls.pgcopy", "1-70-5-messages.pgcopy"]
        accounted(spool.report())
    with opened(tmp_path) as spool:
        assert spool.highest == 70
        assert spool.oldest() == again
        assert spool.renumber(again, 80) == again._replace(sequence=80)
        spool.put(of(81, calls=1))
        assert [one.sequence for one in all_of(spool)] == [80, 6, 81]
        assert names(tmp_path) == []


def test_a_new_number_that_got_only_half_of_the_files_makes_two_batches(
    tmp_path: Path, disk: Disk
) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(5, calls=1, messages=1))
        spool.put(of(6, calls=1))
        first = spool.oldest()
        assert first is not None
        disk.fail("rename", errno.EIO, "calls")
        with pytest.raises(SpoolError):
            spool.renumber(first, 70)
        disk.heal()
        accounted(spool.report())
    with opened(tmp_path) as spool:
        found = [(one.sequence, list(one.batch.tables)) for one in all_of(spool)]
        assert found == [(5, ["calls"]), (70, ["messages"]), (6, ["calls"])]


def test_a_number_that_is_not_above_those_on_disk_is_a_mistake(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(5, messages=1))
        with pytest.raises(ValueError, match="sequence 5 is not above"):
            spool.put(of(5, calls=1))


def test_refused_and_rejected_rows_are_counted_by_their_packets(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(1, messages=3, calls=1))
        spool.put(of(2, messages=2))
        first = spool.oldest()
        assert first is not None
        spool.done(first, {"messages": (0, 2)})
        second = spool.oldest()
        assert second is not None
        spool.lost(second, "rejected")
        report = spool.report()
        assert report.rows_refused == {"messages": 2}
        assert report.packets_refused == {"messages": 4}
        assert report.packets_stored == {"messages": 2, "calls": 1}
        assert report.packets_dropped == {("messages", "rejected"): 3}
        accounted(report)


def test_a_batch_put_a_while_ago_is_found_among_newer_ones(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in range(5):
            spool.put(of(number, messages=1, calls=number % 2))
        spool.done(of(3, messages=1, calls=1), {})
        assert [one.sequence for one in all_of(spool)] == [0, 1, 2, 4]
        accounted(spool.report())


# -- any order of all of it


class Disordered(RuleBasedStateMachine):
    """Puts, reads, losses, restarts and damage beside a model of what must come back."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name)
        self.clock = Clock()
        self.number = 0
        self.model: dict[int, Spooled] = {}
        self.reopen()

    def reopen(self) -> None:
        self.spool = folder(
            self.directory, now=self.clock, max_bytes=8 * BLOCK, max_age_seconds=50.0
        )
        self.spool.open()

    def teardown(self) -> None:
        self.spool.close()
        self.temporary.cleanup()

    @rule(tables=st.dictionaries(st.sampled_from(WORTH), st.integers(1, 3), min_size=1))
    def put(self, tables: dict[str, int]) -> None:
        self.number = max(self.number, self.spool.highest) + 1
        self.spool.put(of(self.number, **tables))
        self.model[self.number] = of(self.number, **tables)

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(how=st.sampled_from(["done", "refused", "lost", "renumber", "nothing"]))
    def take(self, how: str) -> None:
        one = self.spool.oldest()
        if one is None:
            assert self.spool.batches == 0
            return
        whole = self.model[one.sequence]
        for table, some in one.batch.tables.items():
            assert whole.batch.tables[table] == some
        places = [int(name.split("-")[-2]) for name in self.on_disk()]
        assert min(places) in {one.sequence, places[self.numbers().index(one.sequence)]}
        if how == "renumber":
            number = max(self.number, self.spool.highest) + 1
            self.spool.renumber(one, number)
            self.model[number] = self.model.pop(one.sequence)._replace(sequence=number)
        elif how == "lost":
            self.spool.lost(one, "rejected")
        elif how != "nothing":
            refused = dict.fromkeys(one.batch.tables, (0,))
            self.spool.done(one, refused if how == "refused" else {})

    def on_disk(self) -> list[str]:
        return [name for name in names(self.directory) if name.endswith(".pgcopy")]

    def numbers(self) -> list[int]:
        return [int(name.split("-")[1]) for name in self.on_disk()]

    @precondition(lambda self: self.spool.batches)
    @rule(data=st.data())
    def spoil(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.directory.glob("*.pgcopy"))))
        damage(path, lambda content: content[:-1])

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.reopen()

    @invariant()
    def balances(self) -> None:
        report = self.spool.report()
        accounted(report)
        assert report.bytes <= 8 * BLOCK
        files = list(self.directory.glob("*.pgcopy"))
        assert report.bytes == BLOCK * len(files)
        assert report.batches == len({path.name.rpartition("-")[0] for path in files})


class TestDisordered(Disordered.TestCase):  # type: ignore[valid-type,misc]
    settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


# -- beside an event loop


async def test_the_loop_goes_on_while_the_disk_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, 1, max_bytes=1 << 20, max_age_seconds=60.0)
    await spool.open()
    slow = threading.Event()
    fdatasync = os.fdatasync

    def wait(fd: int) -> None:
        assert slow.wait(10)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", wait)
    task = asyncio.create_task(spool.put(of(1, messages=2)))
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert not task.done()
    assert spool.batches == 0
    assert spool.figures().packets == 0
    slow.set()
    await task
    assert spool.batches == 1
    assert spool.figures().packets == 3
    await spool.close()
    await spool.close()


async def test_the_figures_say_what_waits_and_what_came_and_went(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path) as before:
        before.put(of(1, messages=2))
    spool = Spool(tmp_path, 1, max_bytes=1 << 20, max_age_seconds=60.0, now=clock)
    await spool.open()
    await spool.put(of(2, messages=1, calls=1))
    clock.now += 7
    figures = spool.figures()
    assert (figures.batches, figures.bytes, figures.limit_bytes) == (2, 3 * BLOCK, 1 << 20)
    assert (figures.packets, figures.inherited, figures.oldest_seconds) == (5, 3, 7.0)
    assert figures.rows == {"messages": 3, "calls": 1}
    first = await spool.oldest()
    assert first == of(1, messages=2)
    await spool.done(first, {})
    second = await spool.oldest()
    assert second is not None
    await spool.lost(await spool.renumber(second, 9), "rejected")
    figures = spool.figures()
    assert figures.rows_replayed == {"messages": 2}
    assert figures.rows_spooled == {"messages": 1, "calls": 1}
    assert (figures.batches, figures.oldest_seconds) == (0, None)
    assert spool.highest == 9
    with pytest.raises(SpoolError, match="in use"):
        await Spool(tmp_path, 1, max_bytes=1, max_age_seconds=1).open()
    await spool.close()


async def test_what_a_failed_put_dropped_shows_at_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1, max_bytes=1 << 20, max_age_seconds=60.0, now=(clock := Clock()))
    await spool.open()
    await spool.put(of(1, messages=1))
    clock.now += 61
    with pytest.raises(ValueError, match="not above"):
        await spool.put(of(1, messages=1))
    await spool.oldest()
    assert spool.report.rows_dropped == {("messages", "spool-expired"): 1}
    await spool.close()


KILLED = """
import sys
from pathlib import Path
from sipsidecar.batch import Batch, Row, Spooled
from sipsidecar.edges.spool import SpoolFolder

spool = SpoolFolder(Path(sys.argv[1]), 1, max_bytes=1 << 30, max_age_seconds=3600)
spool.open()
rows = [Row(bytes(200), 1)] * 50
while True:
    number = spool.highest + 1
    spool.put(Spooled(number, 7, Batch({"calls": rows, "messages": rows}, [])))
    print(number, flush=True)
"""


def test_every_batch_whose_put_returned_is_there_after_a_kill(tmp_path: Path) -> None:
    said: set[int] = set()
    for enough in (1, 20, 60, 150):
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process:
            out = process.stdout.read(enough)
            process.kill()
            out += process.stdout.read()
        said |= {int(line) for line in out.decode().split("\n")[:-1]}
    with opened(tmp_path) as spool:
        found = all_of(spool)
        assert spool.report().bad_files == 0
    sequences = [one.sequence for one in found]
    assert sequences == sorted(set(sequences))
    whole = {one.sequence for one in found if one.batch.rows == 100}
    assert said <= whole
    assert len(found) - len(said) <= 4  # one for each kill
    assert names(tmp_path) == []


def test_the_header_is_json_that_people_can_read(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.put(of(1, KEY, calls=2))
    content = (tmp_path / "1-1-calls.pgcopy").read_bytes()
    length = int.from_bytes(content[15:19], "big")
    seal, summary, details = content[19 : 19 + length].splitlines()
    assert json.loads(seal).keys() == {"crc32"}
    assert json.loads(summary) == {
        "life": LIFE, "rows": 2, "packets": 3, "bytes": 14, "spooled_at": 1_700_000_000.0,
    }  # fmt: skip
    assert json.loads(details)["columns"] == list(TABLES["calls"])
