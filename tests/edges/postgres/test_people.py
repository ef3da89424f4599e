from typing import Any

import pytest

from sipsidecar import rows
from sipsidecar.batch import StoreError, StoreUnavailable
from sipsidecar.calls.events import RegistrationRecord
from sipsidecar.edges.postgres import people
from sipsidecar.edges.postgres.people import Person, find_person, forget_person
from stored import (
    DAY,
    NOON,
    admission_row,
    attempt,
    call_row,
    conversation_row,
    count,
    incident_row,
    interval_row,
    leg_row,
    media_row,
    message,
    outcome_row,
    settings_of,
    sql,
    store,
)

TABLES = (*people.TABLES, *people.JOINED_TABLES, "quarantine")
# There is no person in them, but for the examples of incidents.
NOBODYS = {
    "pings", "admission_states", "kpi_minute", "code_minute", "baseline_hours", "incidents", "events",
}  # fmt: skip
ALL_ROWS = [7, 3, 4, 8, 2, 7, 4, 3, 0, 0, 4]


def quarantined(payload: bytes, sequence: int = 0, received_at: int = NOON) -> bytes:
    return rows.encode_quarantine(
        received_at, NOON, 1, 2001, sequence, "10.0.0.1", 1, "10.0.0.2", 2, "via", payload
    )


def registration(call_id: str, user: str) -> bytes:
    record = RegistrationRecord(
        call_id=call_id, branch="r", cseq=1, received_at=NOON, started_at=NOON, aor_user=user
    )
    return rows.encode_registration(record, 1)


@pytest.fixture
async def people_calls(database: str) -> str:
    """Alice calls Bob and is called, forwarded to and registered; Bob also calls without her."""
    calls = [
        call_row("from@pbx", from_user="alice", to_user="bob"),
        call_row("to@pbx", from_user="bob", to_user="alice"),
        call_row("ruri@pbx", from_user="bob", ruri_user="alice"),
        call_row("old@pbx", from_user="alice", received_at=NOON - DAY),
        call_row("forked@pbx", from_user="bob", to_user="carol"),
        call_row("bob@pbx", from_user="bob", to_user="alice2"),
        call_row("case@pbx", from_user="Alice"),
    ]
    attempts = [
        rows.encode_attempt(attempt("forked@pbx", "b1", ruri_user="alice"), 1),
        rows.encode_attempt(attempt("from@pbx", "b1"), 1),
        rows.encode_attempt(attempt("bob@pbx", "b1", ruri_user="bob"), 1),
    ]
    heard = ("from@pbx", "ruri@pbx", "bob@pbx", "")
    names = ("from@pbx", "from@pbx", "to@pbx", "forked@pbx", "reg@pbx", "bob@pbx", "")
    async with store(database) as opened:
        await opened.write(
            1,
            {
                "calls": calls,
                "attempts": attempts,
                "media": [media_row(name) for name in heard],
                "quality_intervals": [
                    interval_row(name, NOON + n) for name in heard for n in (0, 1)
                ],
                "registrations": [registration("reg@pbx", "alice"), registration("b@pbx", "bob")],
                "messages": [message(name, number) for number, name in enumerate(names)],
                "admissions": [
                    *(admission_row("to@pbx", rule=rule) for rule in ("one", "two")),
                    *(admission_row(name) for name in ("bob@pbx", "")),
                ],
                "outcomes": [outcome_row(name) for name in ("to@pbx", "bob@pbx", "")],
                "incidents": [
                    incident_row("5xx-1", call_ids=("bob@pbx", "to@pbx", "old@pbx", "case@pbx")),
                    incident_row("asr-1", call_ids=("from@pbx",)),
                    incident_row("asr-2"),
                ],
                "quarantine": [
                    quarantined(b"garbage sip:alice@h", 1),
                    quarantined(b"garbage sip:alice2@h alice", 2),
                    quarantined(b"garbage sip:malice@h \xffalices", 3),
                    quarantined(b"garbage", 4),
                ],
            },
            life=1,
        )
    return database


async def forgotten(dsn: str, users: list[str], found: Person) -> list[dict[str, int]]:
    return [gone async for gone in forget_person(settings_of(dsn), users, found)]


async def test_a_person_is_found_as_caller_callee_target_and_registered(people_calls: str) -> None:
    found = await find_person(settings_of(people_calls), ["alice"])
    names = ["forked@pbx", "from@pbx", "old@pbx", "reg@pbx", "ruri@pbx", "to@pbx"]
    assert sorted(found.call_ids) == names
    assert found.rows == {
        "calls": 5, "attempts": 2, "media": 2, "quality_intervals": 4, "registrations": 1,
        "messages": 5, "admissions": 2, "outcomes": 1, "legs": 0, "conversations": 0,
        "quarantine": 2,
    }  # fmt: skip
    assert {key[2] for key in found.quarantined} == {1, 2}
    assert [await count(people_calls, table) for table in TABLES] == ALL_ROWS


@pytest.mark.parametrize(
    ("users", "calls"),
    [
        (["nobody"], 0),
        (["ali"], 0),
        (["ALICE"], 0),
        (["alic%"], 0),
        (["'; DROP TABLE calls; --\0\ud800"], 0),
        (["alice2"], 1),
        (["alice2", "Alice"], 2),
        ([], 0),
    ],
)
async def test_only_the_exact_user_counts(people_calls: str, users: list[str], calls: int) -> None:
    found = await find_person(settings_of(people_calls), users)
    assert found.rows["calls"] == len(found.call_ids) == calls


async def test_only_later_rows_are_looked_at_when_a_time_is_given(people_calls: str) -> None:
    found = await find_person(settings_of(people_calls), ["alice"], NOON - DAY + 1)
    assert "old@pbx" not in found.call_ids
    assert found.rows["quarantine"] == 2
    later = await find_person(settings_of(people_calls), ["alice"], NOON + 1)
    assert (later.call_ids, set(later.rows.values())) == ((), {0})


async def test_what_was_found_is_deleted_and_nothing_else(
    people_calls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "_CALL_IDS_PER_TRANSACTION", 2)
    found = await find_person(settings_of(people_calls), ["alice"])
    gone = await forgotten(people_calls, ["alice"], found)
    assert len(gone) == 3 + 1
    assert {t: sum(some.get(t, 0) for some in gone) for t in TABLES} == found.rows
    assert [await count(people_calls, table) for table in TABLES] == [
        2, 1, 2, 4, 1, 2, 2, 2, 0, 0, 2,
    ]  # fmt: skip
    async with sql(people_calls) as connection:
        left = await connection.fetch("SELECT call_id FROM calls ORDER BY 1")
        assert [row["call_id"] for row in left] == ["bob@pbx", "case@pbx"]
        kept = await connection.fetch("SELECT sequence FROM quarantine ORDER BY 1")
        assert [row["sequence"] for row in kept] == [3, 4]
        examples = await connection.fetch("SELECT incident, call_ids FROM incidents ORDER BY 1")
        assert [tuple(row) for row in examples] == [
            ("5xx-1", ["bob@pbx", "case@pbx"]), ("asr-1", []), ("asr-2", []),
        ]  # fmt: skip
    again = await find_person(settings_of(people_calls), ["alice"])
    assert again == Person((), dict.fromkeys(TABLES, 0))
    assert await forgotten(people_calls, ["alice"], again) == []


async def test_rows_of_one_call_go_together_or_not_at_all(people_calls: str) -> None:
    found = await find_person(settings_of(people_calls), ["alice"])
    async with sql(people_calls) as connection:
        await connection.execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'not now'; END $$;"
            "CREATE TRIGGER no BEFORE DELETE ON messages FOR EACH ROW EXECUTE FUNCTION no()"
        )
    with pytest.raises(StoreError, match="not now"):
        await forgotten(people_calls, ["alice"], found)
    assert [await count(people_calls, table) for table in TABLES] == ALL_ROWS


def joined(name: str, *legs: tuple[str, str, dict[str, Any]]) -> tuple[list[bytes], bytes]:
    """The rows of a conversation."""
    some = [leg_row(uuid, call_id, conversation=name, **more) for uuid, call_id, more in legs]
    call_ids = tuple(call_id for _, call_id, _ in legs if call_id)
    return some, conversation_row(name, call_ids=call_ids, legs=tuple(uuid for uuid, _, _ in legs))


async def test_what_a_freeswitch_joined_with_a_persons_call_goes_with_it(database: str) -> None:
    conversations = [
        joined("u1", ("u1", "sip@a", {}), ("u2", "b@fs1", {}), ("u3", "", {})),  # by SIP
        joined("v1", ("v1", "b@fs1", {}), ("v2", "c@fs2", {})),  # the next FreeSWITCH
        joined("w1", ("w1", "", {"caller": "alice"}), ("w2", "", {})),  # by ESL alone
        joined("x1", ("x1", "x@a", {"destination": "alice"})),
        joined("y1", ("y1", "y@a", {"caller": "alice2"}), ("y2", "", {})),
    ]
    async with store(database) as opened:
        await opened.write(
            1,
            {
                "calls": [call_row("sip@a", from_user="alice"), call_row("c@fs2"), call_row("y@a")],
                "messages": [
                    message(name, n) for n, name in enumerate(("b@fs1", "x@a", "y@a", ""))
                ],
                "legs": [row for some, _ in conversations for row in some],
                "conversations": [
                    *(row for _, row in conversations),
                    conversation_row("legless", call_ids=("sip@a",)),
                ],
            },
        )
    found = await find_person(settings_of(database), ["alice"])
    assert found.call_ids == ("b@fs1", "c@fs2", "sip@a", "x@a")
    assert found.conversations == ("legless", "u1", "v1", "w1", "x1")
    gone = await forgotten(database, ["alice"], found)
    assert {t: n for t in TABLES if (n := sum(some.get(t, 0) for some in gone))} == {
        "calls": 2, "messages": 2, "legs": 8, "conversations": 5,
    }  # fmt: skip
    assert {t: n for t, n in found.rows.items() if n} == {
        "calls": 2, "messages": 2, "legs": 8, "conversations": 5,
    }  # fmt: skip
    async with sql(database) as connection:
        left = await connection.fetch("SELECT uuid FROM legs ORDER BY 1")
    assert [row["uuid"] for row in left] == ["y1", "y2"]
    assert await count(database, "messages") == 2


async def test_legs_that_came_before_the_time_given_are_not_looked_at(database: str) -> None:
    async with store(database) as opened:
        await opened.write(1, {"legs": [leg_row("u1", caller="alice")]})
    found = await find_person(settings_of(database), ["alice"], NOON + 1)
    assert (found.conversations, set(found.rows.values())) == ((), {0})


async def test_messages_without_a_call_belong_to_nobody(database: str) -> None:
    async with store(database) as opened:
        tables = {"calls": [call_row("", from_user="alice")], "messages": [message("")]}
        await opened.write(1, tables, life=1)
    found = await find_person(settings_of(database), ["alice"])
    assert found.call_ids == ()
    assert found.rows["messages"] == 0


def test_every_table_with_call_ids_is_forgotten() -> None:
    assert {*people.TABLES, *people.JOINED_TABLES} == {
        table for table, columns in rows.TABLES.items() if "call_id" in columns
    } - NOBODYS


async def test_a_long_user_is_found_as_it_was_clipped(database: str) -> None:
    user = "é" * 300
    async with store(database) as opened:
        await opened.write(1, {"calls": [call_row("long@pbx", from_user=user)]}, life=1)
    assert (await find_person(settings_of(database), [user])).call_ids == ("long@pbx",)


async def test_a_user_of_many_bytes_is_found_within_longer_words(database: str) -> None:
    payloads = (b"x4930123456789y", b"x493012y", b"493012")
    async with store(database) as opened:
        tables: dict[str, Any] = {
            "quarantine": [quarantined(payload, n) for n, payload in enumerate(payloads)]
        }
        await opened.write(1, tables, life=1)
    for user, numbers in (("4930123456789", {0}), ("493012", {2})):
        found = await find_person(settings_of(database), [user])
        assert {key[2] for key in found.quarantined} == numbers


async def test_a_database_that_is_away_is_one_line() -> None:
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1 port 1"):
        await find_person(settings_of("postgresql://me:secret@127.0.0.1:1/x"), ["alice"])
