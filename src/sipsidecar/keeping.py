"""What leaves the pipeline to rows that wait for the database."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sipsidecar import rows
from sipsidecar.batch import Waiting
from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    ConversationRecord,
    LegRecord,
    MediaRecord,
    PingRecord,
    QualityInterval,
    RegistrationRecord,
)
from sipsidecar.calls.legs import Unjoined
from sipsidecar.calls.table import Retraction
from sipsidecar.pipeline import Output, Stored
from sipsidecar.signals.alarms import EventRecord, IncidentRecord, OutcomeRecord
from sipsidecar.signals.baseline import BaselineHour
from sipsidecar.signals.decisions import AdmissionRecord, StateRecord
from sipsidecar.signals.minutes import CodeMinute, KpiMinute
from sipsidecar.wire import hep

Kept: TypeAlias = (
    Output
    | AdmissionRecord
    | StateRecord
    | KpiMinute
    | CodeMinute
    | BaselineHour
    | IncidentRecord
    | EventRecord
    | OutcomeRecord
)
"""Whatever becomes rows, or takes some back."""

_SAID_ONCE: dict[type, tuple[str, Callable[[Any, int], bytes]]] = {
    RegistrationRecord: ("registrations", rows.encode_registration),
    PingRecord: ("pings", rows.encode_ping),
    AdmissionRecord: ("admissions", rows.encode_admission),
    StateRecord: ("admission_states", rows.encode_state),
    KpiMinute: ("kpi_minute", rows.encode_kpi),
    CodeMinute: ("code_minute", rows.encode_code),
    BaselineHour: ("baseline_hours", rows.encode_baseline),
    EventRecord: ("events", rows.encode_event),
    OutcomeRecord: ("outcomes", rows.encode_outcome),
}
"""Records that no later one replaces: their table, and how they become a row."""


class RowMaker:
    """What leaves the pipeline to rows that wait for the database."""

    def __init__(
        self, waiting: Waiting, node_id: int, *, messages: bool, intervals: bool = True
    ) -> None:
        self._waiting = waiting
        self._node_id = node_id
        self._messages = messages
        self._intervals = intervals
        self._sequence = 0

    def keep(self, stored: Sequence[Stored], now: float) -> None:
        """Messages, and what was not understood."""
        waiting, node_id = self._waiting, self._node_id
        text = hep.address_text
        for m in stored:
            self._sequence += 1
            if m.why is not None:
                row = rows.encode_quarantine(
                    m.received_at,
                    m.captured_at,
                    node_id,
                    m.agent_id,
                    self._sequence,
                    text(m.source),
                    m.source_port,
                    text(m.destination),
                    m.destination_port,
                    m.why,
                    m.payload,
                )
                waiting.add("quarantine", row, now, m.packets)
            elif self._messages:
                row = rows.encode_message(
                    m.received_at,
                    m.captured_at,
                    node_id,
                    m.agent_id,
                    self._sequence,
                    m.kind,
                    text(m.source),
                    m.source_port,
                    text(m.destination),
                    m.destination_port,
                    m.transport,
                    m.call_id,
                    m.payload,
                    agent_ip=m.peer,
                )
                waiting.add("messages", row, now, m.packets)
            else:
                waiting.packets_dropped["messages", "not-configured"] += m.packets

    def add(self, outputs: Sequence[Kept], now: float) -> None:
        """Records, and what they replace."""
        waiting, node_id = self._waiting, self._node_id
        for record in outputs:
            if isinstance(record, CallRecord):
                row, gone = rows.encode_call(record, node_id), rows.replaced(record, node_id)
                waiting.add("calls", row, now, replaces=gone)
            elif isinstance(record, AttemptRecord):
                row, gone = rows.encode_attempt(record, node_id), rows.replaced(record, node_id)
                waiting.add("attempts", row, now, replaces=gone)
            elif isinstance(record, MediaRecord):
                row, gone = rows.encode_media(record, node_id), rows.replaced(record, node_id)
                waiting.add("media", row, now, replaces=gone)
            elif isinstance(record, QualityInterval):
                if self._intervals:
                    row = rows.encode_interval(record, node_id)
                    waiting.add("quality_intervals", row, now)
            elif isinstance(record, LegRecord):
                row, gone = rows.encode_leg(record, node_id), rows.replaced(record, node_id)
                waiting.add("legs", row, now, replaces=gone)
            elif isinstance(record, ConversationRecord):
                row = rows.encode_conversation(record, node_id)
                waiting.add("conversations", row, now, replaces=rows.replaced(record, node_id))
            elif isinstance(record, IncidentRecord):
                row, gone = rows.encode_incident(record, node_id), rows.replaced(record, node_id)
                waiting.add("incidents", row, now, replaces=gone)
            elif isinstance(record, Retraction | Unjoined):
                waiting.retract(_gone(record, node_id), now)
            else:
                table, encode = _SAID_ONCE[type(record)]
                waiting.add(table, encode(record, node_id), now)


def _gone(record: Retraction | Unjoined, node_id: int) -> rows.Replaced:
    if isinstance(record, Unjoined):
        name, at = record.conversation, record.received_at
        return rows.clean_key(
            rows.Replaced("conversations", "", "", name, at, node_id, record.revision)
        )
    table, part = "calls", ""
    if record.stream is not None:
        table, part = "media", record.stream
    elif record.branch is not None:
        table, part = "attempts", record.branch
    key = (record.call_id, record.from_tag, part, record.received_at, node_id, record.revision)
    return rows.clean_key(rows.Replaced(table, *key))
