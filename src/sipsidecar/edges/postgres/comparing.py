"""Which calls failed and which did not, of one trunk and the same hours, each with its INVITE.

Of a trunk it is the INVITE that went to it, of all else the caller's; of several tries, as with a
challenge, the one that the final response answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sipsidecar.edges.postgres.connection import PostgresSettings, explained, session, transaction
from sipsidecar.rows import BRANCH_CAP, TAG_CAP, clean_call_id, clean_text
from sipsidecar.signals.diagnose import Slot
from sipsidecar.wire import WireError, sip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sipsidecar.edges.postgres.connection import Connection

EGRESS, INGRESS = "egress", "ingress"
SCOPES = ("trunk", "carrier", "tenant", "direction", "region", "agent")
"""What calls may be narrowed down by: words of the configuration."""
MAX_MESSAGES = 1000
"""INVITEs and responses that are read of `CALLS_AT_ONCE` calls."""
CALLS_AT_ONCE = 25
FEW = 20
"""Good calls of the hours in which others failed; of fewer, those of all hours are taken."""
_SLOTS = 240
_SECONDS = 60.0
_BEFORE_US, _AFTER_US = 60_000_000, 900_000_000
"""How long before and after a call was first seen its INVITEs are looked for."""
_INVITE, _RESPONSE = b"INVITE", b"SIP/2.0 "


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls to compare; None asks nothing. Times are microseconds UTC, against `started_at`."""

    since_us: int
    until_us: int
    final_code: int | None = None
    """Of the failing ones: this, or `final_class`; with neither, any."""
    final_class: str | None = None
    trunk: str | None = None
    carrier: str | None = None
    tenant: str | None = None
    direction: str | None = None
    region: str | None = None
    agent: str | None = None
    hop: str | None = None
    """`EGRESS`: as they went to trunks; `INGRESS`: as they came. None: as they went when a trunk or a
    carrier is asked for that calls go to."""
    limit: int = 1000
    """Calls of each side; of more these are taken evenly over time."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One call, or one attempt of it, and the INVITE that its final response answered."""

    call_id: str
    at: int
    failed: bool
    final_code: int | None
    payload: bytes
    about: dict[str, str | None]
    """What else is known of it, by the names of `calls.features.CONTEXT`."""
    idle_seconds: float | None = None
    """Since the INVITE before it on the same connection; None over UDP, and for the first."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared, and what there was in all."""

    hop: str
    failing: int
    """In all, compared or not; so is `good`."""
    good: int
    calls: tuple[Compared, ...]
    slots: tuple[Slot, ...]
    same_hours: bool = True
    """Good calls are of the hours in which others failed; false: there were too few."""
    without: int = 0
    """Chosen calls whose INVITE is not stored, or no more."""


# `{table}` and `{own}` are from here, all else are parameters. Partitions go by received_at, people
# ask by started_at: a day of slack for agents' clocks.
_SCOPE = """
started_at >= $1::timestamptz AND started_at < $2::timestamptz
  AND received_at >= $1::timestamptz - interval '1 day'
  AND received_at < $2::timestamptz + interval '1 day'
  AND ($3::text IS NULL OR trunk = $3)
  AND ($4::text IS NULL OR carrier = $4)
  AND ($5::text IS NULL OR tenant = $5)
  AND ($6::text IS NULL OR direction = $6)
  AND ($7::text IS NULL OR region = $7)
  AND ($8::text IS NULL OR agent = $8)
  {own}
"""
# What this product refused says nothing of the INVITE.
_OWN = {EGRESS: "", INGRESS: "AND final_origin IS DISTINCT FROM 'admission'"}
_TABLE = {EGRESS: "attempts", INGRESS: "calls"}
_ENDS = {EGRESS: "peer_ip AS dst_ip, peer_port AS dst_port", INGRESS: "dst_ip, dst_port"}
_PART = {EGRESS: "branch, failover_order", INGRESS: "'' AS branch, 1 AS failover_order"}
_FAILED = """
NOT answered AND final_code >= 300
  AND ($9::integer IS NULL OR final_code = $9) AND ($10::text IS NULL OR final_class = $10)
"""
_SLOTS_SQL = """
SELECT floor((extract(epoch FROM started_at - $1::timestamptz)) * 1000000 / $11::bigint)::bigint
    AS slot,
  count(*) FILTER (WHERE {failed}) AS failing, count(*) FILTER (WHERE answered) AS good
FROM {table} WHERE {scope}
GROUP BY slot ORDER BY slot
"""
_HOURS_SQL = """
SELECT hour, count(*) FILTER (WHERE failed) AS failing, count(*) FILTER (WHERE answered) AS good
FROM (
  SELECT floor(extract(epoch FROM started_at) / 3600)::bigint AS hour, answered,
    ({failed}) AS failed
  FROM {table} WHERE {scope}
) AS seen
GROUP BY hour ORDER BY hour
"""
_CALLS_SQL = """
WITH hop AS (
  SELECT call_id, from_tag, {part}, received_at, started_at, node_id, src_ip, src_port, {ends},
    transport, final_code, answered, tenant, trunk, carrier, direction, region, agent,
    ({failed}) AS failed,
    CASE WHEN transport <> 'udp' THEN started_at - lag(started_at) OVER (
      PARTITION BY transport, src_ip, src_port, {ends_alone} ORDER BY started_at
    ) END AS idle
  FROM {table} WHERE {scope}
), numbered AS (
  SELECT *, row_number() OVER (ORDER BY started_at, call_id, from_tag, branch) - 1 AS place,
    count(*) OVER () AS total
  FROM hop
  WHERE CASE WHEN $11::boolean THEN failed ELSE answered END
    AND ($12::bigint[] IS NULL
         OR floor(extract(epoch FROM started_at) / 3600)::bigint = ANY($12))
)
SELECT *, extract(epoch FROM idle)::double precision AS idle_seconds FROM numbered
WHERE place = 0
   OR place * $13::bigint / greatest(total, $13) > (place - 1) * $13 / greatest(total, $13)
ORDER BY place LIMIT $13
"""
_MESSAGES_SQL = """
SELECT call_id, received_at, agent_id, src_ip, src_port, dst_ip, dst_port, transport, payload
FROM messages
WHERE call_id = ANY($1::text[]) AND received_at >= $2::timestamptz AND received_at < $3::timestamptz
  AND kind = 1
  AND (position($4::bytea IN substring(payload FROM 1 FOR 16)) > 0
       OR substring(payload FROM 1 FOR 11) = ANY($5::bytea[]))
ORDER BY received_at, sequence LIMIT $6
"""


def _sql(text: str, hop: str) -> str:
    own = _OWN[hop]
    ends = _ENDS[hop]
    return text.format(
        table=_TABLE[hop],
        scope=_SCOPE.format(own=own),
        failed=_FAILED,
        ends=ends,
        ends_alone=", ".join(one.partition(" AS ")[0] for one in ends.split(", ")),
        part=_PART[hop],
    )


async def find_compared(
    where: str | PostgresSettings,
    wanted: Wanted,
    tell: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Find failing and good calls with their INVITEs; `tell` is told of the progress: part, whole.

    Good ones are those that were answered, of the same hours. What changes meanwhile may be seen or
    not. Raises StoreError.
    """
    settings = PostgresSettings(dsn=where) if isinstance(where, str) else where
    settings = msgspec.structs.replace(
        settings, connect_timeout_s=5.0, statement_timeout_s=_SECONDS
    )
    with explained(settings):
        async with (
            session(settings, "sipsidecar diagnosis") as connection,
            transaction(connection, "BEGIN READ ONLY"),
        ):
            return await _compared(connection, wanted, tell or (lambda _part, _whole: None))


async def _compared(
    connection: Connection, wanted: Wanted, tell: Callable[[int, int], None]
) -> Comparison:
    scope = _scope(wanted)
    hop, hours = await _hop(connection, wanted, scope)
    failing = sum(count for _, count, _ in hours)
    good = sum(count for _, _, count in hours)
    troubled = [hour for hour, count, _ in hours if count]
    beside = sum(count for hour, _, count in hours if hour in set(troubled))
    same_hours = beside >= min(FEW, good)
    rows: list[dict[str, Any]] = []
    limit = max(wanted.limit, 1)
    if failing:
        sql = _sql(_CALLS_SQL, hop)
        rows += await _rows(connection, sql, *scope, True, None, limit)
        rows += await _rows(connection, sql, *scope, False, troubled if same_hours else None, limit)
    rows = list(_once(rows))
    found = await _with_invites(connection, rows, tell)
    return Comparison(
        hop=hop,
        failing=failing,
        good=good,
        calls=tuple(found),
        slots=await _slots(connection, wanted, hop, scope),
        same_hours=same_hours,
        without=len(rows) - len(found),
    )


def _scope(wanted: Wanted) -> tuple[Any, ...]:
    named = [getattr(wanted, scope) for scope in SCOPES]
    words = [None if name is None else clean_call_id(name) for name in named]
    return (wanted.since_us, wanted.until_us, *words, wanted.final_code, wanted.final_class)


async def _rows(connection: Connection, sql: str, *values: object) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(sql, *values)]


async def _hop(
    connection: Connection, wanted: Wanted, scope: tuple[Any, ...]
) -> tuple[str, list[tuple[int, int, int]]]:
    """Where the calls are compared, and how many failed and were good there in each hour."""
    if wanted.hop is not None:
        order = [wanted.hop]
    elif wanted.trunk is not None or wanted.carrier is not None:
        order = [EGRESS, INGRESS]
    else:
        order = [INGRESS]
    hours: list[tuple[int, int, int]] = []
    for hop in order:
        found = await _rows(connection, _sql(_HOURS_SQL, hop), *scope)
        hours = [(row["hour"], row["failing"], row["good"]) for row in found]
        if any(failing for _, failing, _ in hours):
            return hop, hours
    return order[-1], hours


async def _slots(
    connection: Connection, wanted: Wanted, hop: str, scope: tuple[Any, ...]
) -> tuple[Slot, ...]:
    width = max((wanted.until_us - wanted.since_us) // _SLOTS, 1_000_000)
    found = await _rows(connection, _sql(_SLOTS_SQL, hop), *scope, width)
    return tuple(
        Slot(wanted.since_us + row["slot"] * width, row["failing"], row["good"]) for row in found
    )


def _once(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Each of them once, though two sidecars may have seen it."""
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        key = row["call_id"], row["from_tag"], row["branch"]
        if key not in seen:
            seen.add(key)
            yield row


async def _with_invites(
    connection: Connection, rows: Sequence[dict[str, Any]], tell: Callable[[int, int], None]
) -> list[Compared]:
    """Those whose INVITE is stored. Read in the order of time, so that few partitions are looked at."""
    ordered = sorted(rows, key=lambda row: (row["received_at"], row["call_id"]))
    found: list[Compared] = []
    for first in range(0, len(ordered), CALLS_AT_ONCE):
        tell(first, len(ordered))
        some = ordered[first : first + CALLS_AT_ONCE]
        codes = {row["final_code"] for row in some} - {None}
        messages = await _rows(
            connection,
            _MESSAGES_SQL,
            list({row["call_id"] for row in some}),
            some[0]["received_at"] - _BEFORE_US,
            some[-1]["received_at"] + _AFTER_US,
            _INVITE,
            [_RESPONSE + str(code).encode() for code in sorted(codes)],
            MAX_MESSAGES,
        )
        by_call: dict[str, list[_Read]] = {}
        for message in messages:
            if (read := _read(message)) is not None:
                by_call.setdefault(message["call_id"], []).append(read)
        for row in some:
            invite = chosen(row, by_call.get(row["call_id"], []))
            if invite is not None:
                found.append(_compared_call(row, *invite))
    tell(len(ordered), len(ordered))
    return found


_Read = tuple[dict[str, Any], sip.Message]
"""A stored message, and what it says."""


def _read(row: dict[str, Any]) -> _Read | None:
    try:
        message = sip.parse(row["payload"])
    except WireError:
        return None
    return (row, message) if message.method == "INVITE" else None


def chosen(row: dict[str, Any], messages: Sequence[_Read]) -> tuple[_Read, bool] | None:
    """The INVITE of a call or attempt that its final response answered, and whether others came before.

    `row` has `from_tag`, `branch` (empty: the caller's own hop), its ends and `final_code`. None when
    there is no INVITE of it.
    """
    own = [
        one
        for one in messages
        if one[1].status is None
        and not one[1].to_tag  # a re-INVITE
        and clean_text(one[1].from_tag, TAG_CAP).decode() == row["from_tag"]
    ]
    if row["branch"]:
        own = [
            one for one in own if clean_text(one[1].branch, BRANCH_CAP).decode() == row["branch"]
        ]
    else:
        ends = row["src_ip"], row["dst_ip"]
        here = [one for one in own if (one[0]["src_ip"], one[0]["dst_ip"]) == ends]
        if not here and own:  # nobody saw the first hop: the one that is nearest to it
            least = min(one[1].via_count for one in own)
            here = [one for one in own if one[1].via_count == least]
        own = here
    if not own:
        return None
    answers = {
        (one[1].branch, one[1].cseq) for one in messages if one[1].status == row["final_code"]
    }
    answered = [one for one in own if (one[1].branch, one[1].cseq) in answers]
    newest = max(one[1].cseq for one in answered or own)
    # of retransmissions the first
    invite = next(one for one in answered or own if one[1].cseq == newest)
    return invite, any(one[1].cseq < newest for one in own)


def _compared_call(row: dict[str, Any], invite: _Read, retried: bool) -> Compared:
    message = invite[0]
    port = message["dst_port"]
    about: dict[str, str | None] = {scope: row[scope] for scope in SCOPES}
    about |= {
        "source": message["src_ip"],
        "source-port": None if message["src_port"] is None else str(message["src_port"]),
        "destination": f"{message['dst_ip']} port {port}" if message["dst_ip"] else None,
        "transport": message["transport"],
        "capture-agent": None if message["agent_id"] is None else str(message["agent_id"]),
        "retried": "yes" if retried else None,
        "attempt": str(row["failover_order"]) if row["failover_order"] > 1 else None,
    }
    return Compared(
        call_id=row["call_id"],
        at=row["started_at"],
        failed=row["failed"],
        final_code=row["final_code"],
        payload=message["payload"],
        about=about,
        idle_seconds=row["idle_seconds"],
    )
