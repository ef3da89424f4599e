"""The questions people ask, and the one a sidecar asks after a crash: rows as dictionaries."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from sipsidecar.edges.postgres.connection import PostgresSettings, explained, session, transaction
from sipsidecar.edges.postgres.partitions import DAY_US
from sipsidecar.rows import clean_call_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from sipsidecar.edges.postgres.connection import Connection

    Where = str | PostgresSettings
    """The database to ask: a DSN, or settings with a password beside it."""

_REBUILD_SECONDS = 20.0
_REBUILD_MEMORY = "64MB"  # with less it sorts all payloads on disk where it could hash Call-IDs
_FLAG_OF_A_CRASH = "interrupted"
_OFFERED_SECONDS = 60.0
_ONE_CALL = ("call_id", "from_tag", "received_at", "node_id")
_OFFERED_KEY = ("started_at", *_ONE_CALL, "revision")


class CallFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls to find; None asks nothing. Times are microseconds UTC, against `started_at`."""

    # The order of the fields is the order of the parameters of _CALLS_SQL.
    since_us: int
    until_us: int | None = None
    final_code: int | None = None
    final_class: str | None = None
    trunk: str | None = None
    from_user: str | None = None
    """Part of the user, in any case; `to_user` too."""
    to_user: str | None = None
    pdd_above_ms: float | None = None
    talk_above_ms: float | None = None
    talk_below_ms: float | None = None
    mos_below: float | None = None
    flags: tuple[str, ...] = ()
    """All of these."""
    call_id: str | None = None
    """Part of the Call-ID."""
    answered: bool | None = None
    findings: tuple[str, ...] = ()
    """All of these."""
    tenant: str | None = None
    """Words of the configuration's cohorts, as is `trunk`."""
    direction: str | None = None
    region: str | None = None
    final_origin: str | None = None
    limit: int = 50
    order: str = "started_at"
    """One of `ORDERS`, highest first, but for `mos`; no parameter."""


# Partitions go by received_at, people ask by started_at: a day of slack for agents' clocks.
_CALLS_SQL = """
SELECT * FROM calls
WHERE started_at >= $1::timestamptz AND received_at >= $1::timestamptz - interval '1 day'
  AND ($2::timestamptz IS NULL
       OR started_at < $2::timestamptz AND received_at < $2::timestamptz + interval '1 day')
  AND ($3::integer IS NULL OR final_code = $3)
  AND ($4::text IS NULL OR final_class = $4)
  AND ($5::text IS NULL OR trunk = $5)
  AND ($6::text IS NULL OR strpos(lower(from_user), lower($6)) > 0)
  AND ($7::text IS NULL OR strpos(lower(to_user), lower($7)) > 0)
  AND ($8::double precision IS NULL OR pdd_ms > $8)
  AND ($9::double precision IS NULL OR talk_ms > $9)
  AND ($10::double precision IS NULL OR talk_ms < $10)
  AND ($11::double precision IS NULL OR mos < $11)
  AND flags @> $12::text[]
  AND ($13::text IS NULL OR strpos(call_id, $13) > 0)
  AND ($14::boolean IS NULL OR answered = $14)
  AND findings @> $15::text[]
  AND ($16::text IS NULL OR tenant = $16)
  AND ($17::text IS NULL OR direction = $17)
  AND ($18::text IS NULL OR region = $18)
  AND ($19::text IS NULL OR final_origin = $19)
ORDER BY {order}, call_id, from_tag LIMIT $20
"""
ORDERS = ("started_at", "ended_at", "pdd_ms", "setup_ms", "talk_ms", "retransmissions", "mos")
_LOWEST_FIRST = {"mos"}
_CALL_SQL = "SELECT * FROM calls WHERE call_id = $1 ORDER BY started_at DESC, from_tag LIMIT $2"
_CALL_PART_SQL = """
SELECT * FROM calls WHERE strpos(call_id, $1) > 0 AND received_at >= $3
ORDER BY strpos(call_id, $1) > 1, started_at DESC, call_id, from_tag LIMIT $2
"""
_ATTEMPTS_SQL = """
SELECT * FROM attempts WHERE call_id = $1 ORDER BY started_at, failover_order, branch LIMIT $2
"""
_MEDIA_SQL = """
SELECT * FROM media WHERE call_id = $1
ORDER BY direction = 'unknown', direction DESC, started_at, from_tag, stream LIMIT $2
"""
_INTERVALS_SQL = """
SELECT * FROM quality_intervals WHERE call_id = $1
ORDER BY at, direction DESC, source_ssrc, reporter_ssrc, from_tag LIMIT $2
"""
_MESSAGES_SQL = """
SELECT * FROM messages WHERE call_id = $1
ORDER BY coalesce(captured_at, received_at), sequence LIMIT $2
"""
_LEGS_SQL = """
SELECT * FROM legs
WHERE ($1::text IS NULL OR call_id = $1) AND ($2::text IS NULL OR conversation = $2)
ORDER BY created_at, direction IS DISTINCT FROM 'inbound', uuid, revision LIMIT $3
"""
_CONVERSATION_SQL = """
SELECT * FROM conversations WHERE conversation = ANY(ARRAY(
    SELECT $1::text
    UNION SELECT conversation FROM legs WHERE uuid = $1
    UNION SELECT conversation FROM legs WHERE call_id = $1
))
ORDER BY started_at DESC, conversation, revision LIMIT $2
"""
_ADMISSIONS_SQL = """
SELECT * FROM admissions WHERE call_id = ANY($1::text[])
ORDER BY received_at, call_id, from_tag, rule LIMIT $2
"""
# Of one microsecond there may be more calls than a part has room for: hence the whole key.
_OFFERED_SQL = """
SELECT call_id, from_tag, received_at, revision, node_id, started_at, ended, ended_at, agent_ids,
    from_user, from_host, to_user, to_host, ruri_user, ruri_host, src_ip, src_port, dst_ip,
    dst_port, transport, final_code, final_origin, answered, inferred, seizure, pdd_ms, srd_ms,
    setup_ms, talk_ms, fail_ms, tenant, trunk, direction, region, mos, mos_scale,
    flags,
    (SELECT max(loss_percent) FROM media
     WHERE media.call_id = calls.call_id AND media.from_tag = calls.from_tag
       AND media.received_at = calls.received_at AND media.node_id = calls.node_id) AS loss_percent
FROM calls
WHERE started_at >= $1::timestamptz AND started_at < $2::timestamptz
  AND received_at >= $1::timestamptz - interval '1 day'
  AND received_at < $2::timestamptz + interval '1 day'
  AND ($3::integer IS NULL OR node_id = $3)
  AND (started_at, call_id, from_tag, received_at, node_id, revision)
      > ($1::timestamptz, $4::text, $5::text, $6::timestamptz, $7::integer, $8::integer)
ORDER BY started_at, call_id, from_tag, received_at, node_id, revision LIMIT $9
"""
# Rows of one call are together: they have its received_at.
_OFFERED_ATTEMPTS_SQL = """
SELECT call_id, from_tag, branch, received_at, revision, node_id, started_at, failover_order,
    src_ip, src_port, peer_ip, peer_port, transport, ruri_user, ruri_host, final_code, answered,
    inferred, pdd_ms, setup_ms, fail_ms, tenant, trunk, direction, region, flags
FROM attempts
WHERE call_id = ANY($1::text[])
  AND received_at >= $2::timestamptz AND received_at <= $3::timestamptz
ORDER BY call_id, from_tag, failover_order, branch
"""


def _calls_sql(order: str) -> str:
    # `started_at` is never NULL, and only so can its index, read backwards, give this order.
    nulls = "" if order == "started_at" else " NULLS LAST"
    way = "ASC" if order in _LOWEST_FIRST else "DESC"
    return _CALLS_SQL.format(order=f"{order} {way}{nulls}")


def _storable(value: object) -> object:
    if isinstance(value, str):
        return clean_call_id(value)
    return [_storable(one) for one in value] if isinstance(value, list | tuple) else value


async def ask(
    where: Where, sql: str, *values: object, seconds: float = 15.0, work_mem: str = ""
) -> list[dict[str, Any]]:
    """Ask one question in a transaction that can change nothing."""
    settings = PostgresSettings(dsn=where) if isinstance(where, str) else where
    settings = msgspec.structs.replace(settings, connect_timeout_s=5.0, statement_timeout_s=seconds)
    with explained(settings):
        async with (
            session(settings, "sipsidecar query") as connection,
            transaction(connection, "BEGIN READ ONLY"),
        ):
            if work_mem:
                await connection.execute("SELECT set_config('work_mem', $1, true)", work_mem)
            found = await connection.fetch(sql, *map(_storable, values))
            return [dict(row) for row in found]


async def find_calls(where: Where, wanted: CallFilter) -> list[dict[str, Any]]:
    """Find calls, in the order asked for: column to value, times in microseconds UTC."""
    if wanted.order not in ORDERS:
        raise ValueError(f"order: expected one of {', '.join(ORDERS)}")
    *values, order = msgspec.structs.astuple(wanted)
    return await ask(where, _calls_sql(order), *values)


async def find_call(
    where: Where,
    call_id: str,
    *,
    since_us: int | None = None,
    limit: int = 20,
    exact: bool = False,
) -> list[dict[str, Any]]:
    """Find the calls of a Call-ID; when there is none, those with the text in their Call-ID.

    The second search goes back to `since_us` (7 days); Call-IDs that begin with the text go first.
    With `exact` there is none.
    """
    found = await ask(where, _CALL_SQL, call_id, limit)
    if found or exact or not call_id:
        return found
    since = time.time_ns() // 1000 - 7 * DAY_US if since_us is None else since_us
    return await ask(where, _CALL_PART_SQL, call_id, limit, since)


async def find_attempts(where: Where, call_id: str, limit: int = 1000) -> list[dict[str, Any]]:
    """Find the egress attempts of a call, in the order they were made."""
    return await ask(where, _ATTEMPTS_SQL, call_id, limit)


async def find_media(where: Where, call_id: str, limit: int = 1000) -> list[dict[str, Any]]:
    """Find what is known of the media of a call: what the caller sent first, what is unknown last."""
    return await ask(where, _MEDIA_SQL, call_id, limit)


async def find_intervals(where: Where, call_id: str, limit: int = 10_000) -> list[dict[str, Any]]:
    """Find the quality of a call's media over time, report by report."""
    return await ask(where, _INTERVALS_SQL, call_id, limit)


async def find_messages(where: Where, call_id: str, limit: int = 10_000) -> list[dict[str, Any]]:
    """Find the messages of a call, in the order they were captured."""
    return await ask(where, _MESSAGES_SQL, call_id, limit)


async def find_legs(
    where: Where,
    *,
    call_id: str | None = None,
    conversation: str | None = None,
    limit: int = 1000,
) -> list[dict[str, Any]]:
    """Find the legs of a FreeSWITCH by their Call-ID, their conversation or both, as they were made."""
    if not call_id and not conversation:  # the legs whose Call-ID nobody knows belong to nobody
        return []
    return await ask(where, _LEGS_SQL, call_id, conversation, limit)


async def find_conversation(where: Where, text: str, limit: int = 20) -> list[dict[str, Any]]:
    """Find the conversations of a leg by its Call-ID or UUID, or by their own name; newest first."""
    return await ask(where, _CONVERSATION_SQL, text, limit) if text else []


async def find_admissions(
    where: Where, call_ids: Sequence[str], limit: int = 1000
) -> list[dict[str, Any]]:
    """Find what was decided about calls, as it was decided; calls that were simply let in have none."""
    named = [call_id for call_id in call_ids if call_id]
    return await ask(where, _ADMISSIONS_SQL, named, limit) if named else []


async def find_offered(
    where: Where, *, since_us: int, until_us: int, node_id: int | None = None, chunk: int = 2000
) -> AsyncGenerator[list[dict[str, Any]]]:
    """Find all calls that began in a time, of one node or of all, in the order they began.

    They come in parts of at most `chunk`, each call a dictionary of columns of `calls`; besides these
    `loss_percent` of the direction that lost more, and `made`, its attempts in the order of failover
    as dictionaries of columns of `attempts`. Headers are not stored, so none are told. Times are
    microseconds UTC; `until_us` is not in it. What changes meanwhile may be seen or not. Raises
    StoreError.
    """
    chunk = max(chunk, 1)
    settings = PostgresSettings(dsn=where) if isinstance(where, str) else where
    settings = msgspec.structs.replace(
        settings, connect_timeout_s=5.0, statement_timeout_s=_OFFERED_SECONDS
    )
    after: tuple[Any, ...] = (since_us, "", "", 0, -1, -1)
    with explained(settings):
        async with session(settings, "sipsidecar simulation") as connection:
            while True:
                async with transaction(connection, "BEGIN READ ONLY"):
                    calls = await _offered(connection, after, until_us, node_id, chunk)
                if calls:
                    after = tuple(calls[-1][name] for name in _OFFERED_KEY)
                    yield calls
                if len(calls) < chunk:
                    return


async def _offered(
    connection: Connection, after: tuple[Any, ...], until_us: int, node_id: int | None, limit: int
) -> list[dict[str, Any]]:
    """One part: the calls after that key, with their attempts."""
    began, *key = after
    found = await connection.fetch(_OFFERED_SQL, began, until_us, node_id, *key, limit)
    calls: list[dict[str, Any]] = [{**row, "made": []} for row in found]
    if not calls:
        return []
    own = {tuple(call[name] for name in _ONE_CALL): call["made"] for call in calls}
    stamps = [call["received_at"] for call in calls]
    names = list({call["call_id"] for call in calls})
    for row in await connection.fetch(_OFFERED_ATTEMPTS_SQL, names, min(stamps), max(stamps)):
        made = own.get(tuple(row[name] for name in _ONE_CALL))
        if made is not None:
            made.append(dict(row))
    return calls


# A Call-ID of registrations, pings or presence alone is no call: its table has no row to look for.
_UNFINISHED_SQL = r"""
WITH heard AS MATERIALIZED (
    SELECT call_id, max(received_at) AS last
    FROM messages
    WHERE received_at >= $2::timestamptz AND node_id = $1 AND kind = 1 AND call_id <> ''
    GROUP BY call_id
    HAVING max(CASE substring(payload FROM 1 FOR 4)
        WHEN 'SIP/' THEN 0
        WHEN 'INVI' THEN 2 WHEN 'ACK ' THEN 2 WHEN 'BYE ' THEN 2 WHEN 'CANC' THEN 2
        WHEN 'REGI' THEN 1 WHEN 'OPTI' THEN 1 WHEN 'SUBS' THEN 1 WHEN 'NOTI' THEN 1
        WHEN 'PUBL' THEN 1 WHEN 'MESS' THEN 1 ELSE 0 END) <> 1
), known AS MATERIALIZED (
    SELECT call_id, max(revision) AS revision,
        (array_agg($5::text = ANY(flags) ORDER BY received_at DESC, revision DESC))[1]
            AS interrupted
    FROM calls
    WHERE received_at >= $2::timestamptz - interval '1 day' AND node_id = $1
    GROUP BY call_id
)
SELECT call_id, revision, coalesce(interrupted, false) AS interrupted
FROM heard LEFT JOIN known USING (call_id)
WHERE revision IS NULL OR interrupted
    OR last >= (SELECT max(last) FROM heard) - $3::bigint * interval '1 microsecond'
ORDER BY last DESC, call_id
LIMIT $4
"""
_SIP_SQL = """
SELECT received_at, captured_at, agent_id, agent_ip, src_ip, src_port, dst_ip, dst_port,
    transport, payload, call_id, kind
FROM messages
WHERE call_id = ANY($2::text[]) AND ($3::timestamptz IS NULL OR received_at >= $3::timestamptz)
    AND node_id = $1
ORDER BY received_at, sequence LIMIT $4
"""
_ROWS_SQL = """
SELECT call_id, from_tag, NULL AS branch, NULL AS stream, received_at, revision, flags,
    started_at, ended_at
FROM calls
WHERE call_id = ANY($2::text[]) AND received_at >= $3::timestamptz AND node_id = $1
UNION ALL
SELECT call_id, from_tag, branch, NULL, received_at, revision, flags, started_at, NULL
FROM attempts
WHERE call_id = ANY($2::text[]) AND received_at >= $3::timestamptz AND node_id = $1
UNION ALL
SELECT call_id, from_tag, NULL, stream, received_at, revision, flags, started_at, NULL
FROM media
WHERE call_id = ANY($2::text[]) AND received_at >= $3::timestamptz AND node_id = $1
"""


async def find_unfinished(
    where: Where, node_id: int, since_us: int, linger_us: int, limit: int = 50_000
) -> list[tuple[str, int | None, bool]]:
    """Find the Call-IDs that this node heard of since then and may not have a true record of yet.

    (Call-ID, newest revision in `calls`, was it interrupted): revision None when there is no
    record; else its newest record is `interrupted`, or it was heard of within `linger_us` of the
    node's last message. Heard of last comes first.
    """
    found = await ask(
        where,
        _UNFINISHED_SQL,
        node_id,
        since_us,
        linger_us,
        limit,
        _FLAG_OF_A_CRASH,
        seconds=_REBUILD_SECONDS,
        work_mem=_REBUILD_MEMORY,
    )
    return [(row["call_id"], row["revision"], row["interrupted"]) for row in found]


async def find_sip(
    where: Where,
    node_id: int,
    call_ids: Sequence[str],
    *,
    since_us: int | None = None,
    limit: int = 100_000,
) -> list[dict[str, Any]]:
    """Find the SIP and the reports of media that this node received of some calls, as received."""
    return await ask(
        where, _SIP_SQL, node_id, list(call_ids), since_us, limit, seconds=_REBUILD_SECONDS
    )


async def find_rows(
    where: Where, node_id: int, call_ids: Sequence[str], since_us: int
) -> list[dict[str, Any]]:
    """Find what this node recorded of some calls, their attempts and their media.

    `branch` is of an attempt, `stream` of media; both are None for a call.
    """
    return await ask(where, _ROWS_SQL, node_id, list(call_ids), since_us, seconds=_REBUILD_SECONDS)
