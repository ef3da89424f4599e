"""Figures of calls by cohort: SIP, media and what the voice agent's side said, joined call by call."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sipsidecar.edges.postgres.questions import ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sipsidecar.edges.postgres.questions import Where

# Columns and what stands for them: never a text of who asks.
REPORT_BY = {
    "tenant": "c.tenant",
    "trunk": "c.trunk",
    "carrier": "c.carrier",
    "direction": "c.direction",
    "region": "c.region",
    "agent": "coalesce(nullif(c.agent, 'other'), o.agent, c.agent)",
    "codec": "c.codec_negotiated",
    "day": "to_char(c.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
"""What a report can be grouped by."""
_FILTERS = ("tenant", "trunk", "carrier", "direction", "region", "agent")
_SECONDS = 60.0
_AGENTS, _SHOWN = 10_000, 20
"""Of a summary: agents that are looked at, for most may have no outcomes, and those that are shown."""
_DAY_US = 86_400_000_000

# Of several outcomes of one call the newest counts. NER as ITU-T E.425 on SIP's codes (house: setups).
_REPORT_SQL = """
WITH o AS (
    SELECT DISTINCT ON (call_id) * FROM outcomes
    WHERE received_at >= $1::timestamptz AND received_at < $2::timestamptz + interval '7 days'
    ORDER BY call_id, received_at DESC, outcome DESC
)
SELECT {columns},
    count(*) AS calls,
    count(*) FILTER (WHERE c.final_origin = 'admission') AS own_refusals,
    count(*) FILTER (WHERE {seizure}) AS seizures,
    count(*) FILTER (WHERE {seizure} AND c.answered) AS answered,
    100::float8 * count(*) FILTER (WHERE {seizure} AND c.answered)
        / nullif(count(*) FILTER (WHERE {seizure}), 0) AS asr_percent,
    100::float8 * count(*) FILTER (WHERE {seizure} AND (c.answered
            OR c.final_code IN (480, 486, 487, 600, 603, 607, 608)
            OR (c.final_code = 408 AND c.ring_ms IS NOT NULL)))
        / nullif(count(*) FILTER (WHERE {seizure}), 0) AS ner_percent,
    count(*) FILTER (WHERE c.final_class = '5xx' AND c.final_origin IS DISTINCT FROM 'admission')
        AS server_errors,
    avg(c.talk_ms) FILTER (WHERE c.answered) / 1000 AS acd_seconds,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY c.pdd_ms) AS pdd_p50_ms,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY c.pdd_ms) AS pdd_p95_ms,
    avg(c.mos) FILTER (WHERE c.mos_scale = 'nb') AS mos_nb,
    avg(c.mos) FILTER (WHERE c.mos_scale = 'wb') AS mos_wb,
    avg(c.mos) FILTER (WHERE c.mos_scale = 'fb') AS mos_fb,
    count(*) FILTER (WHERE 'low_mos' = ANY(c.findings)) AS low_mos,
    count(*) FILTER (WHERE 'one_way_audio' = ANY(c.findings)) AS one_way_audio,
    count(o.call_id) AS outcomes,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY o.first_audio_ms) AS first_audio_p50_ms,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY o.first_audio_ms) AS first_audio_p95_ms,
    avg(o.asr_confidence) AS asr_confidence,
    avg(o.asr_accuracy) AS asr_accuracy,
    100::float8 * count(*) FILTER (WHERE o.completed) / nullif(count(o.completed), 0)
        AS completed_percent,
    100::float8 * count(*) FILTER (WHERE o.transferred) / nullif(count(o.transferred), 0)
        AS transferred_percent
FROM calls AS c LEFT JOIN o ON o.call_id = c.call_id
WHERE c.started_at >= $1::timestamptz AND c.started_at < $2::timestamptz
  AND c.received_at >= $1::timestamptz - interval '1 day'
  AND c.received_at < $2::timestamptz + interval '1 day'
  AND ($4::text IS NULL OR c.tenant = $4) AND ($5::text IS NULL OR c.trunk = $5)
  AND ($6::text IS NULL OR c.carrier = $6) AND ($7::text IS NULL OR c.direction = $7)
  AND ($8::text IS NULL OR c.region = $8) AND ($9::text IS NULL OR c.agent = $9)
GROUP BY {groups}
ORDER BY calls DESC, {groups} LIMIT $3
"""
_SEIZURE = "c.seizure AND c.final_origin IS DISTINCT FROM 'admission' AND c.final_code IS NOT NULL"


async def find_report(
    where: Where,
    by: Sequence[str],
    since_us: int,
    until_us: int,
    *,
    filters: Mapping[str, str] | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Find the figures of calls that began in a time, one row for each value, most calls first.

    ValueError for a grouping that is none of `REPORT_BY`, or a filter that is none.
    """
    wanted = dict(filters or {})
    if not by or not set(by) <= REPORT_BY.keys():
        raise ValueError(f"by: expected some of {', '.join(REPORT_BY)}")
    if not wanted.keys() <= set(_FILTERS):
        raise ValueError(f"filters: expected some of {', '.join(_FILTERS)}")
    columns = ", ".join(f'{REPORT_BY[name]} AS "{name}"' for name in by)
    groups = ", ".join(str(place) for place in range(1, len(by) + 1))
    sql = _REPORT_SQL.format(columns=columns, groups=groups, seizure=_SEIZURE)
    values = (wanted.get(name) for name in _FILTERS)
    return await ask(where, sql, since_us, until_us, limit, *values, seconds=_SECONDS)


_SUMMARY_SQL = """
SELECT * FROM kpi($1, $2, $3, $4::text[])
WHERE source = $5 AND ($6::text IS NULL OR tenant = $6)
ORDER BY "time", attempts DESC LIMIT 1000
"""
_CODES_SQL = """
SELECT code, class, sum(count)::bigint AS count
FROM codes($1, $2, $3, $4::text[])
WHERE source = 'call' AND origin <> 'admission' AND ($5::text IS NULL OR tenant = $5)
GROUP BY code, class ORDER BY count DESC, code LIMIT 20
"""
# One that is told of all tenants is a tenant's, too.
_INCIDENTS_SQL = """
SELECT * FROM (
    SELECT DISTINCT ON (node_id, received_at, incident) *
    FROM incidents
    WHERE call_id = '' AND received_at >= $1::timestamptz AND received_at < $2::timestamptz
    ORDER BY node_id, received_at, incident, revision DESC
) AS newest
WHERE severity <> 'trend' AND ($3::text IS NULL OR tenant IS NULL OR tenant = $3)
ORDER BY opened_at LIMIT 200
"""


async def find_summary(
    where: Where, since_us: int, days: int, tenant: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Find the figures of a day (`days` 1) or of a week (7) that begins on a Monday, UTC.

    `period`: its row, and that of the one before; `by_day`, `trunks` (attempts), `codes`, `incidents`;
    and `agents` with what was said of outcomes.
    """
    step, day = timedelta(days=days), timedelta(days=1)
    length = days * _DAY_US
    began, ended, before = since_us, since_us + length, since_us - length
    mine = ["tenant"] if tenant is not None else []
    found = {
        "period": await ask(
            where, _SUMMARY_SQL, step, before, ended, mine, "call", tenant, seconds=_SECONDS
        ),
        "by_day": await ask(
            where, _SUMMARY_SQL, day, began, ended, mine, "call", tenant, seconds=_SECONDS
        ),
        "trunks": await ask(
            where, _SUMMARY_SQL, step, began, ended, [*mine, "trunk"], "trunk", tenant,
            seconds=_SECONDS,
        ),
        "codes": await ask(
            where, _CODES_SQL, step, began, ended, mine, tenant, seconds=_SECONDS
        ),
        "incidents": await ask(where, _INCIDENTS_SQL, began, ended, tenant),
    }  # fmt: skip
    filters = {"tenant": tenant} if tenant is not None else {}
    agents = await find_report(where, ["agent"], began, ended, filters=filters, limit=_AGENTS)
    found["agents"] = [row for row in agents if row["outcomes"]][:_SHOWN]
    return found
