"""PostgreSQL: batches of encoded rows stored exactly once, their upkeep, and questions about them."""

from sipsidecar.edges.postgres.connection import RETENTION_DAYS, PostgresSettings
from sipsidecar.edges.postgres.partitions import Maintained
from sipsidecar.edges.postgres.questions import (
    ORDERS,
    CallFilter,
    find_admissions,
    find_attempts,
    find_call,
    find_calls,
    find_conversation,
    find_intervals,
    find_legs,
    find_media,
    find_messages,
    find_offered,
    find_rows,
    find_sip,
    find_unfinished,
)
from sipsidecar.edges.postgres.store import Postgres

__all__ = [
    "ORDERS",
    "RETENTION_DAYS",
    "CallFilter",
    "Maintained",
    "Postgres",
    "PostgresSettings",
    "find_admissions",
    "find_attempts",
    "find_call",
    "find_calls",
    "find_conversation",
    "find_intervals",
    "find_legs",
    "find_media",
    "find_messages",
    "find_offered",
    "find_rows",
    "find_sip",
    "find_unfinished",
]
