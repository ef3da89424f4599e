from typing import Any

import msgspec
import pytest

from sipsidecar import rows
from sipsidecar.edges.postgres import find_incidents_of, find_outcomes, find_related, questions
from stored import NOON, call, sql, store

MINUTE = 60_000_000


async def row_of(dsn: str, call_id: str) -> dict[str, Any]:
    (found,) = await questions.find_call(dsn, call_id, exact=True)
    return found


@pytest.fixture
async def asked(database: str) -> str:
    """A call of alice to 100, her second try, a later one, and one of somebody else."""
    made = [
        call(name, started_at=NOON + after, from_user=who, to_user="100")
        for name, after, who in (
            ("one", 0, "alice"),
            ("two", 5 * MINUTE, "alice"),
            ("late", 11 * MINUTE, "alice"),
            ("other", MINUTE, "bob"),
            ("nobody", MINUTE, None),
        )
    ]
    made[0] = msgspec.structs.replace(made[0], trunk="acme", tenant="t", region="eu")
    async with store(database) as opened:
        await opened.write(1, {"calls": [rows.encode_call(one, 1) for one in made]})
    return database


async def test_only_calls_of_the_same_two_within_ten_minutes_are_near(asked: str) -> None:
    near = await find_related(asked, await row_of(asked, "one"))
    assert [row["call_id"] for row in near] == ["two"]
    near = await find_related(asked, await row_of(asked, "two"))
    assert [row["call_id"] for row in near] == ["one", "late"]
    assert await find_related(asked, await row_of(asked, "two"), limit=1) == near[:1]


async def test_a_call_without_users_is_near_no_other(asked: str) -> None:
    assert await find_related(asked, await row_of(asked, "nobody")) == []


async def test_outcomes_are_those_of_the_calls_that_are_named(asked: str) -> None:
    async with sql(asked) as connection:
        await connection.execute(
            "INSERT INTO outcomes (call_id, received_at, outcome, completed, node_id) VALUES"
            " ('one', now(), 'a', true, 1), ('two', now(), 'b', false, 1)"
        )
    assert [row["outcome"] for row in await find_outcomes(asked, ["one"])] == ["a"]
    assert await find_outcomes(asked, []) == []


async def test_incidents_are_those_open_at_the_time_and_of_the_cohort(asked: str) -> None:
    for name, trunk, opened, cleared in (
        ("mine", "acme", -5, 5),
        ("everybodys", None, -5, None),
        ("anothers", "beta", -5, None),
        ("before", "acme", -9, -1),
        ("after", "acme", 5, None),
    ):
        at, until = (
            None if minutes is None else NOON / 1e6 + minutes * 60 for minutes in (opened, cleared)
        )
        async with sql(asked) as connection:
            await connection.execute(
                "INSERT INTO incidents (incident, received_at, category, severity, scope,"
                " opened_at, last_seen_at, cleared_at, trunk, node_id) VALUES ($1,"
                " to_timestamp($2), '5xx', 'page', 'all', to_timestamp($2), to_timestamp($2),"
                " to_timestamp($3), $4, 1)",
                name, at, until, trunk,
            )  # fmt: skip
    found = await find_incidents_of(asked, await row_of(asked, "one"))
    assert [row["incident"] for row in found] == ["everybodys", "mine"]
    found = await find_incidents_of(asked, await row_of(asked, "other"))
    assert [row["incident"] for row in found] == ["everybodys"]


async def test_an_incident_that_is_over_is_not_open_by_an_older_row(asked: str) -> None:
    begin = NOON / 1e6 - 600
    for revision, state, cleared in ((0, "open", None), (1, "cleared", begin + 60)):
        async with sql(asked) as connection:
            await connection.execute(
                "INSERT INTO incidents (incident, received_at, category, severity, scope, state,"
                " opened_at, last_seen_at, cleared_at, revision, node_id) VALUES ('short',"
                " to_timestamp($1), '5xx', 'page', 'all', $2, to_timestamp($1), to_timestamp($1),"
                " to_timestamp($3), $4, 1)",
                begin, state, cleared, revision,
            )  # fmt: skip
    assert await find_incidents_of(asked, await row_of(asked, "one")) == []
