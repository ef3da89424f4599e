"""The words of alarms and incidents, and the rows that stay of them."""

from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

DIMENSIONS: Final = ("tenant", "trunk", "carrier", "direction", "region", "agent", "codec")
"""What calls are grouped by; each value is of the configuration, or the name of a known codec."""

TREND: Final = "trend"
WARN: Final = "warn"
PAGE: Final = "page"
SEVERITIES: Final = (TREND, WARN, PAGE)
"""What is only recorded, what somebody should look at today, what wakes somebody; by weight."""

CATEGORIES: Final = ("4xx", "5xx", "6xx", "404", "480", "486", "487")
"""What failed setups are counted as: those four codes by themselves, all others by their class. An
unanswered challenge is none."""

Scope: TypeAlias = tuple[tuple[str, str], ...]
"""Whose calls: (dimension, value) pairs in the order of `DIMENSIONS`; () is all of them."""


def scope_text(scope: Scope) -> str:
    """Turn a scope into `trunk=acme,direction=in`; `all` for all calls."""
    return ",".join(f"{name}={value}" for name, value in scope) or "all"


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """What one detector, finding or trunk says of one scope.

    Again each time that it looks, while it holds, and once with `active` false when it is over.
    """

    source: str
    """Which detector or finding: rate, drift, three-sigma, volume, asr, ner, slo, pdd, jitter, trunk,
    certificate, dns, or the kind of a finding over traffic."""
    category: str
    """What is wrong: one of `CATEGORIES`, or a word such as volume, asr, pdd, codec-change, trunk-down."""
    scope: Scope = ()
    at: int
    """Microseconds UTC."""
    active: bool = True
    severity: str = WARN
    summary: str = ""
    """One line with numbers, for people: `4xx 17.6 % (37 of 210) in the last 5 min; normal for
    Tue 14:00 is 8.1 %; ...` (standards 5.2). Nothing of it was written by strangers."""
    since: int | None = None
    """When it was first seen, microseconds UTC."""
    value: float | None = None
    expected: float | None = None
    """In the unit of `value`."""
    count: int | None = None
    total: int | None = None
    probability: float | None = None
    """Of this by luck."""
    z: float | None = None
    codes: tuple[tuple[int, int], ...] = ()
    """SIP codes and how many more than expected, most first; at most 5."""
    call_ids: tuple[str, ...] = ()
    """Examples, newest first, at most 5; strangers wrote them."""
    evidence: dict[str, Any] = {}
    """Figures, and short texts that strangers wrote (addresses, codec names)."""

    @property
    def key(self) -> tuple[str, str, Scope]:
        """What makes two alarms the same one."""
        return self.source, self.category, self.scope


class Share(NamedTuple):
    """One combination of cohort values in the time of an alarm: what an excess is divided among."""

    values: tuple[str, ...]
    """In the order of `DIMENSIONS`."""
    total: int
    failed: int
    expected: float
    """Failures that would be normal."""


class IncidentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One incident: alarms that are one trouble, from the first to its end."""

    call_id: str = ""
    """Always empty, for it is of no call; rows are distributed by it."""
    incident: str
    """Its name: category and time of opening, unique within one sidecar."""
    received_at: int
    """When it was opened, by this sidecar's clock, microseconds UTC; the partition key."""
    revision: int = 0
    category: str
    severity: str
    state: str = "open"
    """open or cleared."""
    scope: str = "all"
    """As `scope_text` writes it: the smallest cohort that explains more than 80 % of it."""
    explained: float | None = None
    """The share of the excess that this cohort explains."""
    tenant: str | None = None
    """Each dimension of the scope by itself; None where it is not part of it."""
    trunk: str | None = None
    carrier: str | None = None
    direction: str | None = None
    region: str | None = None
    agent: str | None = None
    upstream: bool = False
    """Several tenants on one region or carrier: the trouble is there, not with them."""
    opened_at: int
    escalated_at: int | None = None
    cleared_at: int | None = None
    first_seen_at: int | None = None
    last_seen_at: int
    sources: tuple[str, ...] = ()
    """Detectors and findings that said it."""
    summary: str = ""
    codes: tuple[str, ...] = ()
    """As `404 +29`."""
    call_ids: tuple[str, ...] = ()
    """Examples."""
    evidence: str | None = None
    """JSON object."""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be told to receivers: when an incident opens, gets worse, and is over."""

    what: str
    """opened, escalated or cleared."""
    incident: IncidentRecord
    at: int


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened, for the timeline."""

    call_id: str = ""
    """Always empty, for it is of no call; rows are distributed by it."""
    received_at: int
    """When this sidecar knew of it, microseconds UTC; the partition key."""
    event: str
    """Its name, unique within one sidecar."""
    at: int
    """When it happened, as whoever told it says."""
    kind: str
    """incident, trunk, agent, switch, sidecar or marker; admission changes have rows of their own."""
    subject: str = ""
    """What it is about: an incident's name, a trunk, an agent, a switch, a marker's kind."""
    state: str = ""
    previous: str = ""
    severity: str | None = None
    scope: str = "all"
    tenant: str | None = None
    trunk: str | None = None
    carrier: str | None = None
    direction: str | None = None
    region: str | None = None
    agent: str | None = None
    text: str = ""
    """For people; of a marker it is a stranger's."""
    by: str = "sidecar"
    """sidecar, or the name that a poster gave."""
    data: str | None = None
    """JSON object."""


class OutcomeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the voice agent's side says of one call, as it was posted."""

    call_id: str
    received_at: int
    """When it was posted, microseconds UTC; the partition key."""
    outcome: str
    """Its name, unique within one sidecar: a call may have several."""
    first_audio_ms: float | None = None
    """Answer to the first audio of the agent."""
    asr_confidence: float | None = None
    """Speech recognition's own, 0 to 1."""
    asr_accuracy: float | None = None
    """Measured, 0 to 1 (1 - word error rate)."""
    completed: bool | None = None
    """The caller's task was done."""
    transferred: bool | None = None
    """To a person."""
    result: str | None = None
    """A word of the poster's, such as booked."""
    agent: str | None = None
    """The poster's name of the agent or its version."""
    data: str | None = None
    """JSON object: all other fields."""
