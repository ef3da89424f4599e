from typing import Any

import pytest

from sipsidecar import rows
from sipsidecar.batch import StoreUnavailable
from sipsidecar.edges.postgres import history
from sipsidecar.signals.alarms import EventRecord
from stored import (
    DAY,
    NOON,
    baseline,
    event,
    incident,
    settings_of,
    sql,
    state,
    store,
)

AWAY = "postgresql://me:secret@127.0.0.1:1/x"


@pytest.fixture
async def told(database: str) -> str:
    """A day of events, and two changes of admission."""
    events = [
        event("deploy", NOON, subject="deploy", tenant="t1", data='{"version":"1.4"}', by="ci"),
        event("planned", NOON + DAY, received_at=NOON - DAY, kind="marker"),
        event("late", NOON - DAY, received_at=NOON + 20 * DAY, agent="bot-1"),
        event("trouble", NOON + 1, kind="incident", trunk="acme", region="eu", severity="page"),
        event("down", NOON + 2, kind="trunk", trunk="acme", carrier="telco", direction="out"),
    ]
    changes = [
        state(received_at=NOON + 3, reason="asr 40 %", value=40.0),
        state("drain", received_at=NOON, scope="global", scope_value="", by="operator"),
        state("node-calls", received_at=NOON + 5, scope="node", scope_value="edge-1"),
    ]
    async with store(database) as opened:
        await opened.write(
            1,
            {
                "events": [rows.encode_event(one, 1) for one in events],
                "admission_states": [rows.encode_state(one, 1) for one in changes],
            },
        )
    return database


async def names(dsn: str, since: int, until: int, **more: Any) -> list[str]:
    found = await history.find_timeline(dsn, since, until, **more)
    return [one.subject if one.kind == "admission" else one.event for one in found]


async def test_the_timeline_comes_newest_first_by_when_it_happened(told: str) -> None:
    assert await names(told, NOON - 2 * DAY, NOON + 2 * DAY) == [
        "planned", "node-calls", "acme-asr", "down", "trouble", "deploy", "drain", "late",
    ]  # fmt: skip
    assert await names(told, NOON + 1, NOON + 3) == ["down", "trouble"]
    assert await names(told, NOON, NOON + 9, limit=2) == ["node-calls", "acme-asr"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"kind": "admission"}, ["node-calls", "acme-asr", "drain"]),
        ({"kind": "marker"}, ["deploy"]),
        ({"tenant": "t1"}, ["deploy"]),
        ({"trunk": "acme"}, ["acme-asr", "down", "trouble"]),
        ({"trunk": "acme", "kind": "trunk"}, ["down"]),
        ({"carrier": "telco", "direction": "out"}, ["down"]),
        ({"region": "eu"}, ["trouble"]),
        ({"agent": "bot-1"}, []),
        ({"tenant": "'; DROP TABLE events; --\0\ud800"}, []),
    ],
)
async def test_the_timeline_is_narrowed_by_kind_and_by_whose_it_is(
    told: str, asked: dict[str, Any], expected: list[str]
) -> None:
    assert await names(told, NOON, NOON + 9, **asked) == expected


async def test_what_happened_comes_back_as_it_was_and_admission_as_an_event(told: str) -> None:
    (deploy,) = await history.find_timeline(told, NOON, NOON + 9, tenant="t1")
    said = {"tenant": "t1", "by": "ci", "subject": "deploy"}
    assert deploy == event("deploy", NOON, data='{"version": "1.4"}', **said)
    (change,) = await history.find_timeline(told, NOON + 3, NOON + 4)
    assert change == EventRecord(
        received_at=NOON + 3,
        event=f"admission-{NOON + 3}-acme-asr",
        at=NOON + 3,
        kind="admission",
        subject="acme-asr",
        state="closed",
        previous="open",
        scope="trunk=acme",
        trunk="acme",
        text="asr 40 %",
        by="rule",
    )


async def test_open_incidents_are_those_of_the_node_as_they_were_last_told(database: str) -> None:
    full = incident(
        "asr-1", NOON + 1, scope="trunk=acme", trunk="acme", explained=0.9, codes=("404 +29",),
        call_ids=("a@b", "c@d"), sources=("rate", "drift"), summary="asr 40 %", upstream=True,
        evidence='{"a": 1}', escalated_at=NOON + 2, first_seen_at=NOON - 5, revision=3,
    )  # fmt: skip
    mine = [
        incident("old", NOON - 200 * DAY),
        incident("over", NOON, state="cleared", cleared_at=NOON + 9),
        incident("twice", NOON + 2),
        incident("twice", NOON + 2, revision=1, state="cleared"),
        full,
    ]
    async with store(database) as opened:
        await opened.write(
            1,
            {
                "incidents": [
                    *(rows.encode_incident(one, 1) for one in mine),
                    rows.encode_incident(incident("theirs"), 2),
                ]
            },
        )
    found = await history.find_open_incidents(settings_of(database), 1)
    assert found == [full, mine[0]]
    assert await history.find_open_incidents(database, 1, limit=1) == [full]
    assert [one.incident for one in await history.find_open_incidents(database, 2)] == ["theirs"]


async def test_an_incident_is_found_by_its_name_of_every_node_and_as_it_was_clipped(
    database: str,
) -> None:
    long = "ü" * 300
    async with store(database) as opened:
        some = [(incident("5xx-1"), 1), (incident("5xx-1", NOON + 1), 2), (incident(long), 1)]
        await opened.write(1, {"incidents": [rows.encode_incident(*one) for one in some]})
    found = await history.find_incident(database, "5xx-1")
    assert [(row["node_id"], row["opened_at"]) for row in found] == [(2, NOON + 1), (1, NOON)]
    assert found[0]["call_ids"] == []
    assert len(await history.find_incident(database, long)) == 1
    assert await history.find_incident(database, "5xx") == []


async def test_hours_that_were_learned_from_come_back_as_they_were(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_LOADED_AT_ONCE", 2)
    hour = 3_600_000_000
    taught = [baseline(hour_at=NOON - n * hour, total=n, rate_sums=(0.25, 0.5)) for n in range(5)]
    unknown = baseline("trunk:trunk=acme", NOON - 9 * hour, counts=(), jitter_ms=2.5)
    async with store(database) as opened:
        await opened.write(
            1,
            {
                "baseline_hours": [
                    *(rows.encode_baseline(one, 1) for one in [*taught, unknown]),
                    rows.encode_baseline(baseline(hour_at=NOON - 40 * DAY), 1),
                    rows.encode_baseline(baseline(total=7), 2),
                ]
            },
        )
    since = NOON - 28 * DAY
    assert await history.find_baseline(database, 1, since) == [*taught, unknown]
    assert [one.total for one in await history.find_baseline(database, 2, since)] == [7]
    assert len(await history.find_baseline(database, None, since)) == 7
    assert len(await history.find_baseline(database, None, since, limit=3)) == 3


async def test_looking_back_reads_only_the_weeks_of_that_time(database: str) -> None:
    async with store(database, retention_days={}) as opened, sql(database) as connection:
        for weeks in (0, 2, 4):
            await opened.maintain(NOON + weeks * 7 * DAY)
        for statement, values in (
            (history._BASELINE_SQL, {"1": "NULL", "2": f"'{'2026-08-07'}'", "3": "10"}),
            (
                history._TIMELINE_SQL,
                {"1": "'2026-08-14'", "2": "'2026-08-15'", "3": "'2026-08-07'", "11": "10"},
            ),
        ):
            ask = statement
            for number in range(11, 0, -1):
                ask = ask.replace(f"${number}", values.get(f"{number}", "NULL"))
            plan = await connection.fetch(f"EXPLAIN {ask}")
            text = "\n".join(line for (line,) in plan)
            assert "_p20260806" in text
            assert "_p20260716" not in text


@pytest.mark.parametrize(
    "ask",
    [
        lambda: history.find_timeline(AWAY, 0, 1),
        lambda: history.find_open_incidents(AWAY, 1),
        lambda: history.find_incident(AWAY, "x"),
        lambda: history.find_baseline(AWAY, 1, 0),
    ],
)
async def test_a_database_that_is_away_is_one_line(ask: Any) -> None:
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1 port 1"):
        await ask()
