"""What is stored around one call: others of the same two parties, outcomes, incidents of its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sipsidecar.edges.postgres.questions import ask

if TYPE_CHECKING:
    from sipsidecar.edges.postgres.questions import Where

_RELATED_SQL = """
SELECT call_id, started_at, final_code, final_phrase, answered, talk_ms, trunk
FROM calls
WHERE started_at BETWEEN $1::timestamptz - interval '10 minutes'
        AND $1::timestamptz + interval '10 minutes'
  AND received_at BETWEEN $1::timestamptz - interval '1 day' AND $1::timestamptz + interval '1 day'
  AND from_user = $2 AND to_user = $3 AND call_id <> $4
ORDER BY started_at LIMIT $5
"""
_OUTCOMES_SQL = """
SELECT * FROM outcomes WHERE call_id = ANY($1::text[]) ORDER BY received_at, outcome LIMIT $2
"""
# A month: longer than any incident is open, and the partitions of it are few. One that was stored twice
# in a batch has an older row that still reads open.
_INCIDENTS_SQL = """
SELECT * FROM (
    SELECT DISTINCT ON (node_id, received_at, incident) *
    FROM incidents
    WHERE call_id = '' AND received_at BETWEEN $1::timestamptz - interval '31 days'
            AND $1::timestamptz + interval '1 hour'
    ORDER BY node_id, received_at, incident, revision DESC
) AS newest
WHERE coalesce(first_seen_at, opened_at) <= $1::timestamptz
  AND (cleared_at IS NULL OR cleared_at >= $1::timestamptz)
  AND (tenant IS NULL OR tenant = $2) AND (trunk IS NULL OR trunk = $3)
  AND (carrier IS NULL OR carrier = $4) AND (direction IS NULL OR direction = $5)
  AND (region IS NULL OR region = $6) AND (agent IS NULL OR agent = $7)
ORDER BY opened_at, incident LIMIT $8
"""


async def find_related(where: Where, call: dict[str, Any], limit: int = 20) -> list[dict[str, Any]]:
    """Find other calls of the same two users within ten minutes, for who redials has a reason."""
    if not call["from_user"] or not call["to_user"]:
        return []
    names = ("started_at", "from_user", "to_user", "call_id")
    return await ask(where, _RELATED_SQL, *(call[name] for name in names), limit)


async def find_outcomes(
    where: Where, call_ids: list[str], limit: int = 100
) -> list[dict[str, Any]]:
    """Find what the voice agent's side said of calls."""
    return await ask(where, _OUTCOMES_SQL, call_ids, limit)


async def find_incidents_of(
    where: Where, call: dict[str, Any], limit: int = 20
) -> list[dict[str, Any]]:
    """Find incidents that were open when a call began, and of whose cohort it is."""
    names = ("started_at", "tenant", "trunk", "carrier", "direction", "region", "agent")
    return await ask(where, _INCIDENTS_SQL, *(call[name] for name in names), limit)
