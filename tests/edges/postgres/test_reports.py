from typing import Any

import msgspec
import pytest

from sipsidecar import rows
from sipsidecar.edges.postgres import REPORT_BY, find_report, find_summary
from sipsidecar.signals.minutes import KpiMinute
from stored import DAY, NOON, call, sql, store

UNTIL = NOON + DAY
FIVE = (200, 486, 503, 408, 487)


@pytest.fixture
async def asked(database: str) -> str:
    """Five seizures of trunk acme with one answer, one call of beta, and one that was refused."""
    made = []
    for number, code in enumerate(FIVE):
        one = call(f"acme-{number}", started_at=NOON + number, final_code=code, seizure=True)
        fields: dict[str, Any] = {"trunk": "acme", "tenant": "t", "pdd_ms": 100.0 * number}
        if code == 200:
            fields |= {"answered": True, "talk_ms": 60_000.0, "mos": 4.0, "mos_scale": "nb"}
        made.append(msgspec.structs.replace(one, **fields))
    beta = call("beta-0", started_at=NOON, final_code=200, seizure=True, answered=True)
    made.append(
        msgspec.structs.replace(beta, trunk="beta", mos=4.4, mos_scale="wb", findings=("low_mos",))
    )
    own = call("own", started_at=NOON, final_code=486, seizure=True, final_origin="admission")
    made.append(msgspec.structs.replace(own, trunk="acme"))
    async with store(database) as opened:
        await opened.write(1, {"calls": [rows.encode_call(one, 1) for one in made]})
    return database


async def test_figures_are_those_of_the_definitions(asked: str) -> None:
    acme, beta = await find_report(asked, ["trunk"], NOON, UNTIL)
    assert (acme["trunk"], acme["calls"], acme["seizures"], acme["answered"]) == ("acme", 6, 5, 1)
    assert acme["own_refusals"] == 1
    assert acme["asr_percent"] == pytest.approx(20.0)
    # answered, busy, cancelled; 408 without ringing and 503 are the network's
    assert acme["ner_percent"] == pytest.approx(60.0)
    assert (acme["acd_seconds"], acme["mos_nb"], acme["mos_wb"]) == (60.0, 4.0, None)
    assert acme["pdd_p50_ms"] == pytest.approx(200.0)
    assert acme["completed_percent"] is None
    assert (beta["trunk"], beta["mos_wb"], beta["low_mos"]) == ("beta", 4.4, 1)


async def test_the_newest_outcome_of_a_call_counts_and_no_other(asked: str) -> None:
    for number, (call_id, audio, done) in enumerate(
        (
            ("acme-0", 900, False),
            ("acme-0", 500, True),
            ("acme-1", 700, None),
            ("gone", 1, True),
        )
    ):
        async with sql(asked) as connection:
            await connection.execute(
                "INSERT INTO outcomes (call_id, received_at, outcome, first_audio_ms, completed,"
                " agent, node_id) VALUES ($1, to_timestamp($2), $3, $4, $5, $6, 1)",
                call_id, NOON / 1e6 + number, f"o{number}", audio, done, f"bot-{number}",
            )  # fmt: skip
    acme, beta = await find_report(asked, ["trunk"], NOON, UNTIL)
    assert (acme["outcomes"], acme["first_audio_p50_ms"]) == (2, 600.0)
    assert acme["completed_percent"] == 100.0
    assert (beta["outcomes"], beta["completed_percent"]) == (0, None)
    agents = await find_report(asked, ["agent"], NOON, UNTIL)
    assert {row["agent"] for row in agents} == {None, "bot-1", "bot-2"}


async def test_two_groupings_are_every_pair(asked: str) -> None:
    found = await find_report(asked, ["trunk", "tenant"], NOON, UNTIL)
    assert {(row["trunk"], row["tenant"]) for row in found} == {
        ("acme", "t"), ("acme", None), ("beta", None),
    }  # fmt: skip


@pytest.mark.parametrize("by", REPORT_BY)
async def test_every_grouping_holds_all_calls_of_the_time(asked: str, by: str) -> None:
    assert sum(row["calls"] for row in await find_report(asked, [by], NOON, UNTIL)) == 7
    assert await find_report(asked, [by], NOON + DAY, UNTIL + DAY) == []


async def test_filters_and_limits_narrow_it_down(asked: str) -> None:
    (only,) = await find_report(asked, ["trunk"], NOON, UNTIL, filters={"trunk": "beta"})
    assert only["calls"] == 1
    assert len(await find_report(asked, ["trunk"], NOON, UNTIL, limit=1)) == 1


@pytest.mark.parametrize(
    ("by", "filters"), [([], {}), (["from_user"], {}), (["trunk"], {"codec": "PCMU"})]
)
async def test_what_is_none_of_the_words_is_refused(
    database: str, by: list[str], filters: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="expected some of"):
        await find_report(database, by, NOON, UNTIL, filters=filters)


async def test_a_summary_counts_only_its_own_period_and_the_one_before(database: str) -> None:
    monday = 1_735_516_800_000_000  # 2024-12-30
    kpis = [
        KpiMinute(
            received_at=monday + at, minute_at=monday + at, source="call", tenant=tenant,
            attempts=attempts,
        )
        for at, tenant, attempts in (
            (0, "t", 1), (7 * DAY - 1, "t", 2), (7 * DAY, "t", 4), (-1, "t", 8),
            (-7 * DAY, "t", 16), (-7 * DAY - 1, "t", 32), (0, "u", 64),
        )
    ]  # fmt: skip
    async with store(database) as opened:
        await opened.write(1, {"kpi_minute": [rows.encode_kpi(row, 1) for row in kpis]})
    found = await find_summary(database, monday, 7, "t")
    assert [row["attempts"] for row in found["period"]] == [24, 3]
    assert [row["attempts"] for row in found["by_day"]] == [1, 2]
    assert (found["trunks"], found["codes"], found["incidents"], found["agents"]) == (
        [],
        [],
        [],
        [],
    )
    everybody = await find_summary(database, monday, 7)
    assert [row["attempts"] for row in everybody["period"]] == [24, 67]


async def test_agents_with_outcomes_are_not_hidden_by_busier_ones(asked: str) -> None:
    made = [
        msgspec.structs.replace(call(f"{n}-{m}", started_at=NOON + n), agent=f"a{n:02}")
        for n in range(25)
        for m in range(2 if n else 1)
    ]
    async with store(asked) as opened:
        await opened.write(2, {"calls": [rows.encode_call(one, 1) for one in made]})
    async with sql(asked) as connection:
        await connection.execute(
            "INSERT INTO outcomes (call_id, received_at, outcome, completed, node_id) VALUES"
            " ('0-0', to_timestamp($1), 'a', true, 1)",
            NOON / 1e6 + 60,
        )
    found = await find_summary(asked, NOON // DAY * DAY, 1)
    assert [row["agent"] for row in found["agents"]] == ["a00"]
