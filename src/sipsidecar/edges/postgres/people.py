"""What is stored of one person: found by the exact user of a URI, and deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sipsidecar.edges.postgres.connection import PostgresSettings, explained, session, transaction
from sipsidecar.rows import TEXT_CAP, clean_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sipsidecar.edges.postgres.connection import Connection

TABLES = (
    "calls", "attempts", "media", "quality_intervals", "registrations", "messages", "admissions",
    "outcomes",
)  # fmt: skip
"""The tables whose rows belong to a Call-ID."""
JOINED_TABLES = ("legs", "conversations")
"""The tables whose rows belong to a conversation: its legs may lack a Call-ID."""
_CALL_IDS_PER_TRANSACTION = 200
_SECONDS = 600.0
_PLAIN_ENOUGH = 8
"""Bytes from which on a user is looked for within longer words, too."""

# A message without a call has an empty Call-ID: those belong to nobody.
_FIND_SQL = """
SELECT call_id FROM calls
WHERE (from_user = ANY($1::text[]) OR to_user = ANY($1::text[]) OR ruri_user = ANY($1::text[]))
  AND ($2::timestamptz IS NULL OR received_at >= $2::timestamptz) AND call_id <> ''
UNION
SELECT call_id FROM attempts
WHERE ruri_user = ANY($1::text[])
  AND ($2::timestamptz IS NULL OR received_at >= $2::timestamptz) AND call_id <> ''
UNION
SELECT call_id FROM registrations
WHERE aor_user = ANY($1::text[])
  AND ($2::timestamptz IS NULL OR received_at >= $2::timestamptz) AND call_id <> ''
ORDER BY call_id
"""
# What a FreeSWITCH joined is one call to people: it goes with all its legs.
_JOINED_SQL = """
SELECT conversation FROM legs
WHERE (caller = ANY($1::text[]) OR destination = ANY($1::text[]))
  AND ($3::timestamptz IS NULL OR received_at >= $3::timestamptz)
UNION
SELECT conversation FROM legs WHERE call_id = ANY($2::text[])
UNION
SELECT conversation FROM conversations WHERE call_ids && $2::text[]
ORDER BY conversation
"""
_JOINED_CALL_IDS_SQL = """
SELECT call_id FROM legs WHERE conversation = ANY($1::text[]) AND call_id <> ''
UNION
SELECT unnest(call_ids) AS call_id FROM conversations WHERE conversation = ANY($1::text[])
"""
_COUNT_SQL = "SELECT count(*) FROM {table} WHERE {column} = ANY($1::text[])"
_DELETE_SQL = "DELETE FROM {table} WHERE {column} = ANY($1::text[])"
# An incident is nobody's, and stays; the calls that it names as examples are somebody's.
_EXAMPLES_SQL = """
UPDATE incidents SET call_ids = ARRAY(
    SELECT name FROM unnest(call_ids) WITH ORDINALITY AS example (name, place)
    WHERE name <> ALL($1::text[]) ORDER BY place
)
WHERE call_ids && $1::text[]
"""
_QUARANTINE_SQL = """
SELECT received_at, node_id, sequence, payload FROM quarantine
WHERE ($2::timestamptz IS NULL OR received_at >= $2::timestamptz)
  AND EXISTS (SELECT FROM unnest($1::bytea[]) AS who WHERE position(who IN payload) > 0)
"""
# Rows that PostgreSQL refused share the number of their batch, hence the bytes once more.
_RELEASE_SQL = """
DELETE FROM quarantine AS q
USING unnest($2::timestamptz[], $3::integer[], $4::bigint[]) AS k (received_at, node_id, sequence)
WHERE q.received_at = k.received_at AND q.node_id = k.node_id AND q.sequence = k.sequence
  AND EXISTS (SELECT FROM unnest($1::bytea[]) AS who WHERE position(who IN q.payload) > 0)
"""


class Person(msgspec.Struct, frozen=True):
    """What is stored of somebody."""

    call_ids: tuple[str, ...]
    rows: dict[str, int]
    """By table, those of all its Call-IDs and conversations; in `quarantine`, those whose payload
    holds the user."""
    quarantined: tuple[tuple[int, int, int], ...] = ()
    """received_at, node_id and sequence of the rows in quarantine."""
    conversations: tuple[str, ...] = ()
    """Those that a FreeSWITCH joined."""


def _patient(settings: PostgresSettings) -> PostgresSettings:
    return msgspec.structs.replace(settings, statement_timeout_s=_SECONDS)


def _stored_users(users: Sequence[str]) -> list[str]:
    """Users as they stand in a column."""
    return [clean_text(user, TEXT_CAP).decode() for user in users]


def _bytes_of(users: Sequence[str]) -> list[bytes]:
    return [user.encode("utf-8", "surrogatepass") for user in users if user]


def _holds(payload: bytes, users: Sequence[bytes]) -> bool:
    """Tell whether a payload holds a user; a short one as a word, for 100 stands in 1000 too."""
    for user in users:
        at = payload.find(user)
        while at >= 0:
            end = at + len(user)
            around = payload[max(at - 1, 0) : at], payload[end : end + 1]
            if len(user) >= _PLAIN_ENOUGH or not any(byte.isalnum() for byte in around):
                return True
            at = payload.find(user, at + 1)
    return False


async def find_person(
    settings: PostgresSettings, users: Sequence[str], since_us: int | None = None
) -> Person:
    """Find everything of the calls and registrations in which one of these users is named.

    Calls that a FreeSWITCH joined with one of them are among them. Users are compared exactly, as they stand in a URI. `since_us` (received, microseconds UTC)
    limits where Call-IDs are looked for, not which rows of a Call-ID count. Raises StoreError.
    """
    with explained(settings):
        async with (
            session(_patient(settings), "sipsidecar forget") as connection,
            transaction(connection, "BEGIN READ ONLY"),
        ):
            stored = _stored_users(users)
            found = await connection.fetch(_FIND_SQL, stored, since_us)
            call_ids = [row["call_id"] for row in found]
            joined: list[str] = []
            while True:  # over a second FreeSWITCH, too, which has a leg of the same Call-ID
                before = len(joined)
                found = await connection.fetch(_JOINED_SQL, stored, call_ids, since_us)
                joined = [row["conversation"] for row in found]
                if len(joined) == before:
                    break
                found = await connection.fetch(_JOINED_CALL_IDS_SQL, joined)
                call_ids = sorted({*call_ids, *(row["call_id"] for row in found)})
            rows = {table: await _count(connection, table, call_ids) for table in TABLES}
            for table in JOINED_TABLES:
                rows[table] = await _count(connection, table, joined, "conversation")
            wanted = _bytes_of(users)
            quarantined = [
                (row["received_at"], row["node_id"], row["sequence"])
                async for row in connection.cursor(_QUARANTINE_SQL, wanted, since_us)
                if _holds(row["payload"], wanted)
            ]
    rows["quarantine"] = len(quarantined)
    return Person(tuple(call_ids), rows, tuple(quarantined), tuple(joined))


async def _count(
    connection: Connection, table: str, names: list[str], column: str = "call_id"
) -> int:
    ask = _COUNT_SQL.format(table=table, column=column)
    return sum([await connection.fetchval(ask, some) for some in _portions(names)])


def _portions(names: Sequence[str]) -> list[list[str]]:
    size = _CALL_IDS_PER_TRANSACTION
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


async def forget_person(
    settings: PostgresSettings, users: Sequence[str], person: Person
) -> AsyncIterator[dict[str, int]]:
    """Delete what was found; gives the deleted rows by table after each transaction.

    All rows of a Call-ID go in one transaction, and it as an example of incidents; those of a
    conversation go in another. Raises StoreError; what was given before is gone.
    """
    with explained(settings):
        async with session(_patient(settings), "sipsidecar forget") as connection:
            for names, tables, column in (
                (person.call_ids, TABLES, "call_id"),
                (person.conversations, JOINED_TABLES, "conversation"),
            ):
                for some in _portions(names):
                    gone = {}
                    async with transaction(connection):
                        for table in tables:
                            statement = _DELETE_SQL.format(table=table, column=column)
                            gone[table] = _rows(await connection.execute(statement, some))
                        if column == "call_id":
                            await connection.execute(_EXAMPLES_SQL, some)
                    yield gone
            if person.quarantined:
                keys = [list(column) for column in zip(*person.quarantined, strict=True)]
                async with transaction(connection):
                    status = await connection.execute(_RELEASE_SQL, _bytes_of(users), *keys)
                yield {"quarantine": _rows(status)}


def _rows(status: str) -> int:
    """How many rows a command changed, by its tag: `DELETE 3`."""
    return int(status.rpartition(" ")[2])
