import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from sipsidecar import rows
from sipsidecar.batch import StoreUnavailable
from sipsidecar.calls.events import AttemptRecord, Sighted
from sipsidecar.edges.postgres import CallFilter, questions
from sipsidecar.edges.postgres import partitions as keeping
from stored import (
    DAY,
    NOON,
    admission,
    admission_row,
    as_stored,
    attempt,
    call,
    call_row,
    conversation,
    conversation_row,
    interval_row,
    leg,
    leg_row,
    media,
    media_row,
    message,
    settings_of,
    sql,
    store,
)


async def found(dsn: str, **wanted: Any) -> list[str]:
    calls = await questions.find_calls(dsn, CallFilter(**({"since_us": NOON} | wanted)))
    return [row["call_id"] for row in calls]


@pytest.fixture
async def asked(database: str) -> str:
    """Three calls: `one`, then `two` a second later, then `three`, which was not answered."""
    one = call("one@pbx", from_user="Alice", to_user="100", answered=True, final_code=200)
    one = msgspec.structs.replace(one, final_class="2xx", pdd_ms=900.0, talk_ms=60_000.0, mos=4.2)
    two = call("two@pbx", started_at=NOON + 1_000_000, from_user="bob%", to_user="alice")
    two = msgspec.structs.replace(two, answered=True, final_code=200, final_class="2xx", mos=2.9)
    findings = ("high_loss", "low_mos")
    two = msgspec.structs.replace(two, findings=findings, evidence='{"low_mos": [{"mos": 2.9}]}')
    two = msgspec.structs.replace(two, pdd_ms=2500.0, talk_ms=500.0, flags=("forked", "reinvite"))
    three = call("three@pbx", started_at=NOON + 2_000_000, final_code=486, final_class="4xx")
    three = msgspec.structs.replace(three, flags=("forked",), trunk="carrier-a", tenant="t3")
    three = msgspec.structs.replace(three, direction="in", region="eu", final_origin="admission")
    async with store(database) as opened:
        await opened.write(1, {"calls": [rows.encode_call(r, 1) for r in (one, two, three)]})
    return database


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "three two one"),
        ({"limit": 2}, "three two"),
        ({"since_us": NOON + 1}, "three two"),
        ({"until_us": NOON + 2_000_000}, "two one"),
        ({"final_code": 486}, "three"),
        ({"final_code": 99_999}, ""),
        ({"final_class": "2xx"}, "two one"),
        ({"trunk": "carrier-a"}, "three"),
        ({"tenant": "t3"}, "three"),
        ({"tenant": "T3"}, ""),
        ({"direction": "in"}, "three"),
        ({"direction": "out"}, ""),
        ({"region": "eu", "tenant": "t3"}, "three"),
        ({"region": "us", "tenant": "t3"}, ""),
        ({"final_origin": "admission"}, "three"),
        ({"final_origin": "callee"}, ""),
        ({"from_user": "ALI"}, "one"),
        ({"from_user": "%"}, "two"),
        ({"to_user": "lic"}, "two"),
        ({"pdd_above_ms": 900.0}, "two"),
        ({"talk_above_ms": 1000.0}, "one"),
        ({"talk_below_ms": 1000.0}, "two"),
        ({"mos_below": 3.5}, "two"),
        ({"mos_below": 2.9}, ""),
        ({"findings": ("low_mos",)}, "two"),
        ({"findings": ("low_mos", "high_loss")}, "two"),
        ({"findings": ("low_mos", "no_media")}, ""),
        ({"order": "mos"}, "two one three"),
        ({"order": "talk_ms"}, "one two three"),
        ({"flags": ("forked",)}, "three two"),
        ({"flags": ("forked", "reinvite")}, "two"),
        ({"call_id": "pbx"}, "three two one"),
        ({"call_id": "two@"}, "two"),
        ({"call_id": "\0'; DROP TABLE calls; --\ud800"}, ""),
        ({"answered": True}, "two one"),
        ({"answered": False}, "three"),
    ],
)
async def test_calls_are_found_newest_first_by_what_is_asked(
    asked: str, wanted: dict[str, Any], expected: str
) -> None:
    names = [f"{name}@pbx" for name in expected.split()]
    assert await found(asked, **wanted) == names


async def test_a_found_call_has_the_fields_of_its_record_and_times_in_microseconds(
    asked: str,
) -> None:
    (row,) = await questions.find_calls(asked, CallFilter(since_us=NOON, final_code=486))
    record = call("three@pbx", started_at=NOON + 2_000_000, final_code=486, final_class="4xx")
    record = msgspec.structs.replace(record, flags=("forked",), trunk="carrier-a", tenant="t3")
    record = msgspec.structs.replace(record, direction="in", region="eu", final_origin="admission")
    assert row == as_stored(record) | {"node_id": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("two@pbx", "two"), ("t", "three two"), ("e@pbx", "three one"), ("nobody", ""), ("", "")],
)
async def test_a_call_is_found_by_its_call_id_or_by_part_of_it(
    asked: str, text: str, expected: str
) -> None:
    rows_found = await questions.find_call(asked, text, since_us=NOON)
    assert [row["call_id"] for row in rows_found] == [f"{n}@pbx" for n in expected.split()]


async def test_messages_of_a_call_come_in_the_order_of_capture(database: str) -> None:
    async with store(database) as opened:
        unordered = [
            message("a", 3, captured_at=NOON + 10),
            message("a", 2, captured_at=None, received_at=NOON + 5),
            message("b", 9),
            message("a", 1, captured_at=NOON + 10),
            message("a", 4, captured_at=NOON),
        ]
        await opened.write(1, {"messages": unordered})
    messages = await questions.find_messages(database, "a")
    assert [row["sequence"] for row in messages] == [4, 2, 1, 3]
    assert len(await questions.find_messages(database, "a", limit=2)) == 2


async def test_attempts_of_a_call_come_in_the_order_they_were_made(database: str) -> None:
    made = [
        attempt("a", "z3", started_at=NOON + 9, failover_order=2),
        attempt("a", "z1", failover_order=1),
        attempt("b", "z2"),
    ]
    async with store(database) as opened:
        await opened.write(1, {"attempts": [rows.encode_attempt(r, 1) for r in made]})
    assert [r["branch"] for r in await questions.find_attempts(database, "a")] == ["z1", "z3"]


async def test_media_of_a_call_comes_by_direction_and_what_is_unknown_last(database: str) -> None:
    some = [
        media_row("a", "unknown-00000002"),
        media_row("a", "callee_to_caller", mos=3.1),
        media_row("a", "caller_to_callee", started_at=NOON + 9),
        media_row("b"),
    ]
    async with store(database) as opened:
        await opened.write(1, {"media": some})
    found = await questions.find_media(database, "a")
    assert [row["stream"] for row in found] == [
        "caller_to_callee", "callee_to_caller", "unknown-00000002",
    ]  # fmt: skip
    assert found[1] == as_stored(media("a", "callee_to_caller", mos=3.1)) | {"node_id": 1}
    assert len(await questions.find_media(database, "a", limit=1)) == 1
    assert await questions.find_media(database, "nobody") == []


async def test_intervals_of_a_call_come_by_time(database: str) -> None:
    some = [
        interval_row("a", NOON + 5),
        interval_row("a", NOON, source_ssrc=7),
        interval_row("a", NOON, source_ssrc=6, direction="callee_to_caller"),
        interval_row("b", NOON),
    ]
    async with store(database) as opened:
        await opened.write(1, {"quality_intervals": some})
    found = await questions.find_intervals(database, "a")
    assert [(row["at"], row["source_ssrc"]) for row in found] == [
        (NOON, 7), (NOON, 6), (NOON + 5, 2**31),
    ]  # fmt: skip
    assert len(await questions.find_intervals(database, "a", limit=2)) == 2


@pytest.fixture
async def joined(database: str) -> str:
    """Two conversations of two legs, one of which has no Call-ID, and a leg that nobody joined."""
    legs = [
        leg_row("u2", "b@fs", conversation="u1", created_at=NOON + 5),
        leg_row("u1", "a@pbx", conversation="u1"),
        leg_row("v1", "b@fs", conversation="v1"),
        leg_row("v2", "", conversation="v1"),
        leg_row("w1", ""),
    ]
    some = [
        conversation_row("u1", call_ids=("a@pbx", "b@fs"), legs=("u1", "u2")),
        conversation_row("v1", call_ids=("b@fs",), started_at=NOON + 1),
    ]
    async with store(database) as opened:
        await opened.write(1, {"legs": legs, "conversations": some})
    return database


async def test_legs_are_found_by_their_call_id_or_conversation_in_the_order_they_were_made(
    joined: str,
) -> None:
    async def found(**asked: Any) -> list[str]:
        return [row["uuid"] for row in await questions.find_legs(joined, **asked)]

    assert await found(conversation="u1") == ["u1", "u2"]
    assert await found(call_id="b@fs") == ["v1", "u2"]
    assert await found(call_id="b@fs", conversation="u1") == ["u2"]
    assert await found(call_id="") == await found() == []
    assert await found(conversation="u1", limit=1) == ["u1"]
    (one,) = await questions.find_legs(joined, call_id="a@pbx")
    assert one == as_stored(leg("u1", "a@pbx", conversation="u1")) | {"node_id": 1}


@pytest.mark.parametrize(
    ("text", "names"),
    [("a@pbx", "u1"), ("b@fs", "v1 u1"), ("u2", "u1"), ("u1", "u1"), ("v2", "v1"), ("", ""),
     ("w1", ""), ("nobody", "")],
)  # fmt: skip
async def test_a_conversation_is_found_by_any_of_its_legs_and_by_its_name(
    joined: str, text: str, names: str
) -> None:
    found = await questions.find_conversation(joined, text)
    assert [row["conversation"] for row in found] == names.split()


async def test_a_found_conversation_has_the_fields_of_its_record(joined: str) -> None:
    (one,) = await questions.find_conversation(joined, "u2")
    record = conversation("u1", call_ids=("a@pbx", "b@fs"), legs=("u1", "u2"))
    assert one == as_stored(record) | {"node_id": 1}


async def test_what_was_decided_about_calls_comes_as_it_was_decided(database: str) -> None:
    some = [
        admission_row("b@fs", received_at=NOON + 5),
        admission_row("a@pbx", received_at=NOON + 9, verdict="overflow"),
        admission_row("a@pbx"),
        admission_row("other@pbx"),
        admission_row(""),
    ]
    async with store(database) as opened:
        await opened.write(1, {"admissions": some})
    found = await questions.find_admissions(database, ["a@pbx", "b@fs", "", "nobody\0"])
    assert [(row["call_id"], row["received_at"] - NOON) for row in found] == [
        ("a@pbx", 0), ("b@fs", 5), ("a@pbx", 9),
    ]  # fmt: skip
    assert found[0] == as_stored(admission("a@pbx")) | {"node_id": 1}
    assert len(await questions.find_admissions(database, ["a@pbx"], limit=1)) == 1
    assert await questions.find_admissions(database, []) == []
    assert await questions.find_admissions(database, [""]) == []


async def offered(dsn: str, **asked: Any) -> list[list[dict[str, Any]]]:
    times = {"since_us": NOON, "until_us": NOON + DAY}
    return [part async for part in questions.find_offered(dsn, **(times | asked))]


async def test_offered_calls_come_in_parts_in_the_order_they_began(database: str) -> None:
    # most of one microsecond, some with one Call-ID, of two days by their receipt
    calls = [call(f"{n % 4}@pbx", from_tag=f"t{n}", started_at=NOON + n // 5) for n in range(23)]
    late = [
        call("early", started_at=NOON - 1),
        call("late", started_at=NOON + DAY),
        call("tomorrow", started_at=NOON + DAY - 1, received_at=NOON + DAY),
    ]
    mine = [rows.encode_call(one, 1) for one in (*calls, *late)]
    theirs = [rows.encode_call(calls[0], 2)]
    async with store(database, retention_days={}) as opened:
        await opened.maintain(NOON)
        await opened.write(1, {"calls": [*reversed(mine), *theirs]})
    whole = [one for part in await offered(database) for one in part]
    keys = [
        (one["started_at"], one["call_id"], one["from_tag"], one["received_at"], one["node_id"])
        for one in whole
    ]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) == 23 + 1 + 1
    assert (keys[0][2], keys[0][4], keys[-1][1]) == ("t0", 1, "tomorrow")
    for chunk in (1, 2, 5, 24, 25, 26):
        parts = await offered(database, chunk=chunk)
        assert [one for part in parts for one in part] == whole
        assert {len(part) for part in parts[:-1]} <= {chunk}
    assert [one["node_id"] for part in await offered(database, node_id=2) for one in part] == [2]
    assert await offered(database, since_us=NOON + 2 * DAY, until_us=NOON + 3 * DAY) == []


async def test_an_offered_call_has_what_decides_about_it_and_its_attempts(database: str) -> None:
    labels = {"tenant": "t1", "trunk": "acme", "direction": "in", "region": "eu"}
    one = call(
        "a", src_ip="192.0.2.1", from_user="alice", ruri_user="112", agent_ids=(7,), pdd_ms=9.5,
        final_code=200, answered=True, final_origin="callee", mos=4.1, ended_at=NOON + 7, **labels,
    )  # fmt: skip
    made = [
        attempt("a", "z2", failover_order=2, trunk="beta", final_code=200),
        attempt("a", "z1", failover_order=1, trunk="acme", final_code=503),
        attempt("a", "z3", from_tag="another"),
        attempt("a", "z4", received_at=NOON + 1),
        attempt("b", "z5"),
    ]
    tables = {
        "calls": [rows.encode_call(one, 1), call_row("b")],
        "attempts": [
            *(rows.encode_attempt(r, 1) for r in made), rows.encode_attempt(made[0], 2),
        ],
        "media": [
            media_row("a", loss_percent=0.5),
            media_row("a", "callee_to_caller", loss_percent=2.5),
            media_row("a", from_tag="another", loss_percent=9.5),
        ],
    }  # fmt: skip
    async with store(database) as opened:
        await opened.write(1, tables)
    ((first, second),) = await offered(database)
    stored = as_stored(one) | {"node_id": 1, "loss_percent": 2.5}
    assert {name: first[name] for name in first if name != "made"} == {
        name: stored[name] for name in first if name != "made"
    }
    assert set(Sighted.__struct_fields__) - {"headers", "gateway", "switch"} < set(first)
    assert [(r["branch"], r["trunk"], r["final_code"]) for r in first["made"]] == [
        ("z1", "acme", 503), ("z2", "beta", 200),
    ]  # fmt: skip
    assert set(first["made"][0]) < {*AttemptRecord.__struct_fields__, "node_id"}
    assert (second["call_id"], second["loss_percent"]) == ("b", None)
    assert [r["branch"] for r in second["made"]] == ["z5"]


async def test_who_asks_for_no_more_offered_calls_gets_no_more(database: str) -> None:
    async with store(database) as opened:
        await opened.write(1, {"calls": [call_row(f"{n}") for n in range(9)]})
    parts = questions.find_offered(database, since_us=NOON, until_us=NOON + 1, chunk=3)
    assert [one["call_id"] for one in await anext(parts)] == ["0", "1", "2"]
    await parts.aclose()
    async with sql(database) as connection:
        ask = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'simulation'"
        for _ in range(100):
            if not await connection.fetchval(ask):
                break
            await asyncio.sleep(0.02)
        assert await connection.fetchval(ask) == 0


async def test_offered_calls_are_read_from_the_index_by_day(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        await opened.maintain(NOON)
        batch = [call_row(f"{n}@pbx", started_at=NOON + n) for n in range(3000)]
        await opened.write(1, {"calls": batch})
        await connection.execute("ANALYZE calls")
        ask = questions._OFFERED_SQL.replace("$9", "100")
        for name, value in (
            ("$1", "'2026-07-20 00:00:00+00'"), ("$2", "'2026-07-20 13:00:00+00'"), ("$3", "NULL"),
            ("$4", "''"), ("$5", "''"), ("$6", "'1970-01-01 00:00:00+00'"), ("$7", "0"), ("$8", "0"),
        ):  # fmt: skip
            ask = ask.replace(name, value)
        plan = "\n".join(line for (line,) in await connection.fetch(f"EXPLAIN {ask}"))
    assert "calls_p20260720_started_at_idx" in plan
    assert "Incremental Sort" in plan
    assert "Seq Scan on calls_p20260720" not in plan
    assert "calls_p20260722" not in plan


async def test_offered_calls_of_a_database_that_is_away_are_one_line() -> None:
    dsn = "postgresql://me:secret@127.0.0.1:1/x"
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1 port 1"):
        await offered(dsn)


async def test_a_call_that_must_be_that_one_is_not_looked_for_by_a_part(asked: str) -> None:
    assert await questions.find_call(asked, "one", since_us=NOON - DAY, exact=True) == []
    assert len(await questions.find_call(asked, "one@pbx", exact=True)) == 1


async def test_tables_of_an_earlier_version_are_said_to_be_so(database: str) -> None:
    async with sql(database) as connection:
        await connection.execute("ALTER TABLE calls DROP COLUMN findings CASCADE")
    with pytest.raises(StoreUnavailable, match="tables are of another version; `sipsidecar run`"):
        await found(database)


def index_scans(plan: Any) -> list[str]:
    here = [plan["Node Type"]] if "Relation Name" in plan or "Index Name" in plan else []
    return here + [scan for below in plan.get("Plans", []) for scan in index_scans(below)]


async def test_what_belongs_to_a_call_is_found_through_an_index(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        await opened.maintain(NOON)
        for n, day in enumerate((-1, 0, 1)):
            at = NOON + day * DAY
            messages = [message(f"{i}@pbx", i, received_at=at) for i in range(1000)]
            attempts = [
                rows.encode_attempt(attempt(f"{i}@pbx", "z", received_at=at), 1)
                for i in range(1000)
            ]
            heard = [media_row(f"{i}@pbx", received_at=at) for i in range(1000)]
            legs = [
                leg_row(f"u{i}", f"{i}@pbx", received_at=at, conversation=f"c{i}")
                for i in range(1000)
            ]
            some = [conversation_row(f"c{i}", received_at=at) for i in range(1000)]
            refused = [admission_row(f"{i}@pbx", received_at=at) for i in range(1000)]
            over_time = [interval_row(f"{i}@pbx", received_at=at) for i in range(1000)]
            await opened.write(
                n,
                {
                    "messages": messages,
                    "attempts": attempts,
                    "media": heard,
                    "quality_intervals": over_time,
                    "legs": legs,
                    "conversations": some,
                    "admissions": refused,
                },
            )
        await connection.execute(
            "ANALYZE messages, attempts, media, quality_intervals, legs, conversations, admissions"
        )
        by_call_id, by_name = ("'7@pbx'", "NULL"), ("NULL", "'c7'")
        for statement in (
            questions._MESSAGES_SQL,
            questions._ATTEMPTS_SQL,
            questions._MEDIA_SQL,
            questions._INTERVALS_SQL,
            *(
                questions._LEGS_SQL.replace("$1", one).replace("$2", other).replace("$3", "9")
                for one, other in (by_call_id, by_name)
            ),
            questions._CONVERSATION_SQL,
            questions._ADMISSIONS_SQL.replace("$1", "'{7@pbx,8@pbx}'"),
        ):
            ask = statement.replace("$1", "'7@pbx'").replace("$2", "100")
            (answer,) = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {ask}"))
            scans = index_scans(answer["Plan"])
            assert "Index Scan" in str(scans)
            full = [scan for scan in scans if scan == "Seq Scan"]
            # Days without a row in them (the DEFAULT among them) may be read as they are.
            assert len(scans) - len(full) >= 3


def search_since(since: str, order: str = "") -> str:
    ask = questions._calls_sql(order or "started_at").replace("$20", "50")
    for name in [f"${n}" for n in range(19, 1, -1)]:
        ask = ask.replace(name, "'{}'" if name in {"$12", "$15"} else "NULL")
    return ask.replace("$1", f"'{since}'")


async def test_a_search_touches_only_the_days_it_asks_for(database: str) -> None:
    async with store(database), sql(database) as connection:
        for day in (-1, 9, 10, 11):
            async with connection.transaction():
                await keeping._make_partition(connection, "calls", NOON // DAY * DAY + day * DAY)
        ask = search_since("2026-07-31 12:00:00+00")
        plan = await connection.fetch(f"EXPLAIN ANALYZE {ask}")
    text = "\n".join(line for (line,) in plan)
    assert "calls_p20260730" in text
    assert "calls_p20260729" not in text
    assert "calls_p20260719" not in text


async def test_the_newest_calls_are_read_from_the_index_and_not_sorted(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        await opened.maintain(NOON)
        batch = [call_row(f"{n}@pbx", started_at=NOON + n) for n in range(3000)]
        await opened.write(1, {"calls": batch})
        await connection.execute("ANALYZE calls")
        ask = search_since("2026-07-20 00:00:00+00")
        plan = await connection.fetch(f"EXPLAIN {ask}")
    text = "\n".join(line for (line,) in plan)
    assert "Index Scan Backward using calls_p20260720_started_at_idx" in text


@pytest.mark.parametrize(
    ("order", "expected"),
    [("started_at", "three two one"), ("pdd_ms", "two one three"), ("talk_ms", "one two three")],
)
async def test_calls_come_in_the_order_asked_for_with_the_unknown_last(
    asked: str, order: str, expected: str
) -> None:
    assert await found(asked, order=order) == [f"{name}@pbx" for name in expected.split()]


async def test_an_order_that_is_not_offered_never_reaches_the_database(asked: str) -> None:
    with pytest.raises(ValueError, match="expected one of started_at, "):
        await found(asked, order="1; DROP TABLE calls")


async def test_the_view_of_recent_calls_shows_the_newest_first(database: str) -> None:
    now = int(datetime.now(UTC).timestamp()) * 1_000_000
    batch = [
        call_row("old", received_at=now - 2 * DAY, started_at=now - 2 * DAY),
        call_row("earlier", received_at=now, started_at=now - 5),
        call_row("last", received_at=now, started_at=now),
    ]
    async with store(database) as opened, sql(database) as connection:
        await opened.write(1, {"calls": batch})
        recent = await connection.fetch("SELECT call_id FROM calls_recent")
    assert [name for (name,) in recent] == ["last", "earlier"]


# --- after a crash ----------------------------------------------------------------------------

SECOND = 1_000_000


def sip(call_id: str, at: int, payload: bytes = b"INVITE sip:b SIP/2.0", **changes: Any) -> bytes:
    return message(call_id, at // 1000 % 1_000_000, received_at=at, payload=payload, **changes)


async def unfinished(dsn: str, since: int = NOON, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"node_id": 1, "linger_us": 32 * SECOND}
    values |= changes
    answer = await questions.find_unfinished(dsn, since_us=since, **values)
    assert len({call_id for call_id, _, _ in answer}) == len(answer)
    return {call_id: (revision, interrupted) for call_id, revision, interrupted in answer}


async def test_calls_without_a_true_record_are_found_after_a_crash(database: str) -> None:
    now = NOON + 600 * SECOND
    batch = [
        sip("open", NOON),
        sip("interrupted", NOON + 1),
        sip("interrupted, then recorded", NOON + 2),
        sip("done", NOON + 3),
        sip("done, still heard", now - 31 * SECOND),
        sip("before the look-back", NOON - 1),
        sip("of another node", now, node_id=2),
        sip("", now - SECOND),
        sip("a report", now - SECOND, kind=5),
        sip("last", now),
    ]
    records = [
        call_row("interrupted", flags=("interrupted", "forked"), revision=3),
        call_row("interrupted, then recorded", flags=("interrupted",), received_at=NOON - DAY + 1),
        call_row("interrupted, then recorded", revision=1, received_at=NOON),
        call_row("done"),
        call_row("done, still heard", revision=2),
        call_row("done, still heard", from_tag="fork"),
        rows.encode_call(call("open"), 2),
    ]
    async with store(database) as opened:
        await opened.write(1, {"messages": batch, "calls": records})
    assert await unfinished(database) == {
        "last": (None, False),
        "done, still heard": (2, False),
        "interrupted": (3, True),
        "open": (None, False),
    }
    assert list(await unfinished(database, limit=2)) == ["last", "done, still heard"]
    assert await unfinished(database, node_id=3) == {}
    assert "done" in await unfinished(database, linger_us=700 * SECOND)


@pytest.mark.parametrize(
    ("payloads", "is_call"),
    [
        (["REGISTER sip:b SIP/2.0", "SIP/2.0 200 OK"], False),
        (["OPTIONS sip:b SIP/2.0"], False),
        (["NOTIFY sip:b SIP/2.0"], False),
        (["SIP/2.0 200 OK"], True),
        (["INVITE sip:b SIP/2.0", "NOTIFY sip:b SIP/2.0"], True),
        (["OPTIONS sip:b SIP/2.0", "BYE sip:b SIP/2.0"], True),
        (["ACK sip:b SIP/2.0"], True),
        (["\0\xff"], True),
    ],
)
async def test_registrations_pings_and_presence_are_no_unfinished_calls(
    database: str, payloads: list[str], is_call: bool
) -> None:
    batch = [sip("x", NOON + n, payload.encode()) for n, payload in enumerate(payloads)]
    async with store(database) as opened:
        await opened.write(1, {"messages": batch})
    assert await unfinished(database) == ({"x": (None, False)} if is_call else {})


async def test_what_was_heard_of_calls_comes_in_the_order_received_with_the_agents_address(
    database: str,
) -> None:
    odd = "a\0b\udcff" + "x" * 600
    batch = [
        sip("b", NOON + 2, b"2", agent_ip="10.5.5.5"),
        sip(odd, NOON + 3, b"3"),
        sip("b", NOON, b"0"),
        sip("b", NOON + 1, b"1", captured_at=None, agent_id=None),
        sip("b", NOON + 4, b"rtcp", kind=5),
        sip("b", NOON + 1, b"other", node_id=2),
        sip("c", NOON + 1, b"c"),
    ]
    async with store(database) as opened:
        await opened.write(1, {"messages": batch})
    found = await questions.find_sip(database, 1, [odd, "b", "nobody"])
    assert [row["payload"] for row in found] == [b"0", b"1", b"2", b"3", b"rtcp"]
    assert found[4]["kind"] == 5
    assert found[2] == {
        "received_at": NOON + 2,
        "captured_at": NOON,
        "agent_id": 2001,
        "agent_ip": "10.5.5.5",
        "src_ip": "10.0.0.1",
        "src_port": 5060,
        "dst_ip": "10.0.0.2",
        "dst_port": 5060,
        "transport": "udp",
        "payload": b"2",
        "call_id": "b",
        "kind": 1,
    }
    assert (found[1]["captured_at"], found[1]["agent_id"], found[1]["agent_ip"]) == (None,) * 3
    later = await questions.find_sip(database, 1, ["b"], since_us=NOON + 1, limit=1)
    assert [row["payload"] for row in later] == [b"1"]
    assert await questions.find_sip(database, 1, []) == []


async def test_what_was_recorded_of_calls_is_told_apart_by_branch_and_stream(database: str) -> None:
    async with store(database) as opened:
        await opened.write(
            1,
            {
                "calls": [call_row("a", revision=2, flags=("interrupted",), ended_at=NOON + 5)],
                "attempts": [rows.encode_attempt(attempt("a", "z1"), 1)],
                "media": [media_row("a", revision=1), rows.encode_media(media("a"), 2)],
            },
        )
    said = await questions.find_rows(database, 1, ["a", "b"], NOON)
    assert [(row["branch"], row["stream"], row["revision"], row["ended_at"]) for row in said] == [
        (None, None, 2, NOON + 5),
        ("z1", None, 0, None),
        (None, "caller_to_callee", 1, None),
    ]
    assert said[0]["flags"] == ["interrupted"]
    assert await questions.find_rows(database, 1, ["a"], NOON + 1) == []


async def test_looking_back_touches_only_the_partitions_of_that_time(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        await opened.maintain(NOON)
        ask = questions._UNFINISHED_SQL
        for name, value in (("$2", "'2026-07-20 15:30:00+00'"), ("$5", "'interrupted'")):
            ask = ask.replace(name, value)
        ask = ask.replace("$1", "1").replace("$3", "1").replace("$4", "10")
        plan = await connection.fetch(f"EXPLAIN {ask}")
        ask = questions._SIP_SQL.replace("$1", "1").replace("$2", "'{a,b}'")
        ask = ask.replace("$3", "'2026-07-20 15:30:00+00'").replace("$4", "10")
        plan += await connection.fetch(f"EXPLAIN {ask}")
    text = "\n".join(line for (line,) in plan)
    assert "messages_p2026072015" in text
    assert "messages_p2026072014" not in text
    assert "calls_p20260719" in text


async def test_a_question_can_be_asked_with_settings_and_changes_nothing(database: str) -> None:
    async with store(database) as opened:
        await opened.write(1, {"attempts": [rows.encode_attempt(attempt("a", "z"), 1)]})
    assert len(await questions.find_attempts(settings_of(database), "a")) == 1
    with pytest.raises(StoreUnavailable, match="read-only"):
        await questions.ask(database, "DELETE FROM attempts WHERE call_id = $1", "a")
