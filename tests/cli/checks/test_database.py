import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sipsidecar.cli.checks import database
from sipsidecar.cli.checks.case import Case, Finding
from sipsidecar.config import load
from sipsidecar.edges.postgres.examining import Examination, Holder
from stored import store

SEEN = Examination(
    version="15.18", supported=True, read_only=False, schema=2, schema_known=2,
    clock_ahead_seconds=0.001, round_trip_seconds=0.002, holder=None, bytes=1_000_000,
)  # fmt: skip


def case_of(dsn: str = "postgresql://h/d", **flags: object) -> Case:
    values = {key.replace("__", "."): value for key, value in flags.items()}
    return Case(load(None, {}, {"database.dsn": dsn, **values}), None)


def looked(monkeypatch: pytest.MonkeyPatch, case: Case, **changes: Any) -> dict[str, Finding]:
    """What is found at a database that an examination described so."""

    async def examined(*_: object, **__: object) -> Examination:
        return msgspec.structs.replace(SEEN, **changes)

    monkeypatch.setattr(database, "examine", examined)
    return {finding.check: finding for finding in database.database(case)}


def test_a_real_database_is_ok_and_its_node_is_seen(database_dsn: str) -> None:
    async def look() -> dict[str, Finding]:
        async with store(database_dsn) as opened:
            await opened.maintain(time.time_ns() // 1000)
            return await asyncio.to_thread(
                lambda: {one.check: one for one in database.database(case_of(database_dsn))}
            )

    found = asyncio.run(look())
    assert {name: one.state for name, one in found.items()} == {
        "database": "ok", "node": "warn", "partitions": "ok", "maintenance": "ok",
        "database size": "ok",
    }  # fmt: skip
    assert "from a program on the database's machine since 20" in found["node"].reading
    assert "set node.id to another one than 1" in str(found["node"].advice)


@pytest.fixture
def database_dsn(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("database")


def test_a_database_that_is_away_is_a_failure_without_its_password() -> None:
    (found,) = database.database(case_of("postgresql://u:secret-word@127.0.0.1:1/d"))
    assert found.state == "fail"
    assert "PostgreSQL at 127.0.0.1 port 1" in found.reading
    assert "secret-word" not in str(found)


def test_its_own_database_at_rest_is_ok_when_postgresql_is_here(tmp_path: Path) -> None:
    (found,) = database.database(case_of("", database__directory=str(tmp_path)))
    assert found.state == "ok"
    assert "not running; is made with the sidecar" in found.reading
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("15\n")
    (found,) = database.database(case_of("", database__directory=str(tmp_path)))
    assert "starts with the sidecar" in found.reading
    flags = {"database__directory": str(tmp_path), "database__binaries": str(tmp_path)}
    (found,) = database.database(case_of("", **flags))
    assert found.state == "fail"
    assert "sipsidecar[embedded]" in str(found.advice)


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "ok", ""),
        ({"schema": None}, "ok", ""),
        ({"schema": 1}, "ok", ""),
        ({"schema": 3}, "fail", "install a newer one"),
        ({"supported": False}, "fail", "PostgreSQL 15 or newer"),
        ({"read_only": True}, "fail", "it takes no writes"),
        ({"clock_ahead_seconds": 2.0}, "warn", "its clock is 2.0 s ahead of ours"),
        ({"clock_ahead_seconds": -2.0}, "warn", "its clock is 2.0 s behind ours"),
        ({"clock_ahead_seconds": 2.0, "round_trip_seconds": 3.0}, "ok", ""),
    ],
)
def test_a_server_that_cannot_be_used_says_why(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], state: str, words: str
) -> None:
    found = looked(monkeypatch, case_of(), **changes)
    assert found["database"].state == state
    assert words in (found["database"].advice or "")
    assert ("partitions" in found) is (changes.get("schema", 2) == 2)


def test_the_node_is_free_in_use_by_us_or_by_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of()
    assert looked(monkeypatch, case)["node"].reading == "1 is free"
    holder = Holder(application="x", address="192.0.2.7\x1b", since_us=None)
    found = looked(monkeypatch, case, holder=holder)["node"]
    assert (found.state, found.reading) == ("warn", "1 is in use from 192.0.2.7\\x1b")
    case.running.silence = None
    assert looked(monkeypatch, case, holder=holder)["node"].state == "ok"


@pytest.mark.parametrize("runs", [True, False])
def test_partitions_and_upkeep_are_judged_by_whether_a_sidecar_runs(
    monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    case = case_of()
    case.running.silence = None if runs else "away"
    now = time.time_ns() // 1000
    good = {"partitions_end_us": now + 7_200_000_000, "maintained_us": now - 200_000_000}
    found = looked(monkeypatch, case, **good)
    assert (found["partitions"].state, found["maintenance"].state) == ("ok", "ok")
    assert found["maintenance"].reading == "done 3 min ago"
    old = {"partitions_end_us": now - 1, "maintained_us": now - 1_000_000_000}
    found = looked(monkeypatch, case, **old)
    expected = ("fail", "warn") if runs else ("ok", "ok")
    assert (found["partitions"].state, found["maintenance"].state) == expected
    found = looked(monkeypatch, case)
    assert (found["partitions"].state, found["maintenance"].state) == expected
    found = looked(monkeypatch, case, **good, default_rows={"calls": 2, "messages": 1})
    assert found["partitions"].state == "warn"
    assert "rows of calls, messages" in str(found["partitions"].advice)
    assert "3 rows outside of them" in found["partitions"].reading


def test_the_size_is_judged_by_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, state in ((0, "ok"), (1_000_000, "ok"), (999_999, "warn")):
        found = looked(monkeypatch, case_of(retention__max_bytes=limit))["database size"]
        assert found.state == state
        assert found.figures == {"bytes": 1_000_000, "max_bytes": limit}
