"""What an earlier life left, and what happened: incidents, the timeline, what is normal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sipsidecar.edges.postgres.connection import PostgresSettings, explained, session, transaction
from sipsidecar.edges.postgres.partitions import DAY_US
from sipsidecar.edges.postgres.questions import ask
from sipsidecar.rows import BRANCH_CAP, clean_text
from sipsidecar.signals.alarms import EventRecord, IncidentRecord
from sipsidecar.signals.baseline import BaselineHour

if TYPE_CHECKING:
    from sipsidecar.edges.postgres.questions import Where

Kind = TypeVar("Kind", bound=msgspec.Struct)

_LOADING_SECONDS = 60.0
_LOADED_AT_ONCE = 2000
"""Hours between which somebody else has the loop: there may be hundreds of thousands."""
_TOLD_LATER_US = 7 * DAY_US
"""By how much an event may be told before it happens: a marker of what is planned."""

# Both halves have the columns of an event; a change of a rule's state has a name made of its own.
_TIMELINE_SQL = """
SELECT * FROM (
    SELECT received_at, event, at, kind, subject, state, previous, severity, scope, tenant, trunk,
        carrier, direction, region, agent, text, by, data
    FROM events
    WHERE received_at >= $3::timestamptz AND at >= $1::timestamptz AND at < $2::timestamptz
    UNION ALL
    SELECT received_at,
        'admission-' || floor(1e6 * extract(epoch FROM received_at)) || '-' || rule,
        received_at, 'admission', rule, state, previous, NULL,
        CASE WHEN scope_value = '' THEN 'all' ELSE scope || '=' || scope_value END,
        CASE WHEN scope = 'tenant' THEN scope_value END,
        CASE WHEN scope = 'trunk' THEN scope_value END,
        CASE WHEN scope = 'carrier' THEN scope_value END,
        CASE WHEN scope = 'direction' THEN scope_value END,
        CASE WHEN scope = 'region' THEN scope_value END,
        CASE WHEN scope = 'agent' THEN scope_value END,
        reason, by, NULL
    FROM admission_states
    WHERE received_at >= $1::timestamptz AND received_at < $2::timestamptz
) AS happened
WHERE ($4::text IS NULL OR kind = $4)
  AND ($5::text IS NULL OR tenant = $5)
  AND ($6::text IS NULL OR trunk = $6)
  AND ($7::text IS NULL OR carrier = $7)
  AND ($8::text IS NULL OR direction = $8)
  AND ($9::text IS NULL OR region = $9)
  AND ($10::text IS NULL OR agent = $10)
ORDER BY at DESC, received_at DESC, event DESC LIMIT $11
"""
# Of an incident only the newest row is kept, but one that was stored twice in a batch stands beside it.
_NEWEST_SQL = """
SELECT * FROM (
    SELECT DISTINCT ON (node_id, received_at, incident) *
    FROM incidents
    WHERE {where}
    ORDER BY node_id, received_at, incident, revision DESC
) AS newest
"""
_OPEN_SQL = (
    _NEWEST_SQL.format(where="call_id = '' AND node_id = $1")
    + "WHERE state = 'open' ORDER BY opened_at DESC, incident LIMIT $2"
)
_INCIDENT_SQL = (
    _NEWEST_SQL.format(where="call_id = '' AND incident = $1")
    + "ORDER BY opened_at DESC, node_id LIMIT $2"
)
_BASELINE_SQL = """
SELECT * FROM baseline_hours
WHERE received_at >= $2::timestamptz AND hour_at >= $2::timestamptz
  AND ($1::integer IS NULL OR node_id = $1)
ORDER BY hour_at DESC, series, received_at DESC, node_id LIMIT $3
"""


async def find_timeline(
    where: Where,
    since_us: int,
    until_us: int,
    limit: int = 1000,
    kind: str | None = None,
    *,
    tenant: str | None = None,
    trunk: str | None = None,
    carrier: str | None = None,
    direction: str | None = None,
    region: str | None = None,
    agent: str | None = None,
) -> list[EventRecord]:
    """Find what happened from one time on until another, newest first: events and admission's changes.

    Those are of kind `admission`, about a rule. What is told of a tenant, trunk and so on is found by
    it, what concerns everybody's calls only without one. Times are microseconds UTC, against `at`.
    Raises StoreError.
    """
    found = await ask(
        where,
        _TIMELINE_SQL,
        since_us,
        until_us,
        since_us - _TOLD_LATER_US,
        kind,
        tenant,
        trunk,
        carrier,
        direction,
        region,
        agent,
        limit,
    )
    return [EventRecord(**row) for row in found]


async def find_open_incidents(
    where: Where, node_id: int, limit: int = 1000
) -> list[IncidentRecord]:
    """Find the incidents that a node left open, opened last first. Raises StoreError."""
    found = await ask(where, _OPEN_SQL, node_id, limit)
    return [_record(row, IncidentRecord) for row in found]


async def find_incident(where: Where, name: str, limit: int = 20) -> list[dict[str, Any]]:
    """Find the incidents of a name, one of each node, opened last first: column to value.

    Times are microseconds UTC, `evidence` is JSON. Raises StoreError.
    """
    return await ask(where, _INCIDENT_SQL, clean_text(name, BRANCH_CAP).decode(), limit)


async def find_baseline(
    where: Where, node_id: int | None, since_us: int, limit: int = 1_000_000
) -> list[BaselineHour]:
    """Find what was learned of the hours since then, by one node or by all, newest first.

    Raises StoreError.
    """
    settings = PostgresSettings(dsn=where) if isinstance(where, str) else where
    settings = msgspec.structs.replace(
        settings, connect_timeout_s=5.0, statement_timeout_s=_LOADING_SECONDS
    )
    hours: list[BaselineHour] = []
    with explained(settings):
        async with (
            session(settings, "sipsidecar baseline") as connection,
            transaction(connection, "BEGIN READ ONLY"),
        ):
            cursor = await connection.cursor(_BASELINE_SQL, node_id, since_us, limit)
            while part := await cursor.fetch(_LOADED_AT_ONCE):
                hours += [_record(dict(row), BaselineHour) for row in part]
    return hours


def _record(row: dict[str, Any], kind: type[Kind]) -> Kind:
    """Turn a row into the record that it was."""
    values = {name: row[name] for name in kind.__struct_fields__}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
