"""PostgreSQL: batches of encoded rows stored exactly once, their upkeep, and questions about them."""

from sipsidecar.edges.postgres.connection import RETENTION_DAYS, PostgresSettings
from sipsidecar.edges.postgres.history import (
    find_baseline,
    find_incident,
    find_open_incidents,
    find_timeline,
)
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
from sipsidecar.edges.postgres.relating import find_incidents_of, find_outcomes, find_related
from sipsidecar.edges.postgres.reports import REPORT_BY, find_report, find_summary
from sipsidecar.edges.postgres.store import Postgres

__all__ = [
    "ORDERS",
    "REPORT_BY",
    "RETENTION_DAYS",
    "CallFilter",
    "Maintained",
    "Postgres",
    "PostgresSettings",
    "find_admissions",
    "find_attempts",
    "find_baseline",
    "find_call",
    "find_calls",
    "find_conversation",
    "find_incident",
    "find_incidents_of",
    "find_intervals",
    "find_legs",
    "find_media",
    "find_messages",
    "find_offered",
    "find_open_incidents",
    "find_outcomes",
    "find_related",
    "find_report",
    "find_rows",
    "find_sip",
    "find_summary",
    "find_timeline",
    "find_unfinished",
]
