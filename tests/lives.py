"""Two lives of one sidecar on a simulated clock, and the tables that outlast them."""

from collections.abc import Sequence

import msgspec

from sim import Line, World, packet
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.calls.restoring import StoredRow
from sipsidecar.calls.table import Retraction
from sipsidecar.pipeline import Output, Restored, Stored
from sipsidecar.rows import replaced

Key = tuple[str, str, str | None, int]
"""Call-ID, From tag, branch (None for a call), received_at."""
OF_A_RESTART = frozenset({"interrupted", "rebuilt", "warming"})


def key_of(record: CallRecord | AttemptRecord) -> Key:
    branch = record.branch if isinstance(record, AttemptRecord) else None
    return record.call_id, record.from_tag, branch, record.received_at


class Tables:
    """What is stored: rows by key and revision, as PostgreSQL keeps them; and messages."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Key, int], CallRecord | AttemptRecord] = {}
        self.messages: list[Stored] = []

    def write(self, outputs: Sequence[Output], messages: Sequence[Stored] = ()) -> None:
        """One batch: all rows go in, then what they replace goes."""
        self.messages += messages
        gone: list[tuple[Key, int]] = []
        for record in outputs:
            if isinstance(record, CallRecord | AttemptRecord):
                key = key_of(record)
                assert (key, record.revision) not in self.rows, "this key is there already"
                self.rows[key, record.revision] = record
                assert (replaced(record, 1) is None) == (record.revision == 0)
                gone.append((key, record.revision))
            elif isinstance(record, Retraction):
                key = (record.call_id, record.from_tag, record.branch, record.received_at)
                gone.append((key, record.revision))
        for key, below in gone:
            for stored in [k for k in self.rows if k[0] == key and k[1] < below]:
                del self.rows[stored]

    def said(self) -> list[dict[str, object]]:
        """Every row without what a restart may change in it."""
        rows = []
        for _, record in sorted(self.rows.items(), key=str):
            fields = msgspec.structs.asdict(record)
            del fields["revision"]
            fields["flags"] = tuple(sorted({*record.flags} - OF_A_RESTART))
            rows.append(fields)
        return sorted(rows, key=str)

    def calls(self) -> list[CallRecord]:
        return [row for row in self.rows.values() if isinstance(row, CallRecord)]

    def attempts(self) -> list[AttemptRecord]:
        return [row for row in self.rows.values() if isinstance(row, AttemptRecord)]


def restored(message: Stored) -> Restored:
    """A stored message as a rebuild hands it back."""
    return Restored(
        message.received_at,
        message.captured_at,
        message.agent_id,
        message.peer or "",
        message.source,
        message.source_port,
        message.destination,
        message.destination_port,
        message.transport,
        message.payload,
        message.kind,
    )


def stored_row(record: CallRecord | AttemptRecord) -> StoredRow:
    """A row as a rebuild hands it back."""
    ended_at = record.ended_at if isinstance(record, CallRecord) else None
    return StoredRow(
        record.from_tag,
        record.branch if isinstance(record, AttemptRecord) else None,
        record.received_at,
        record.revision,
        "interrupted" in record.flags,
        ended_at - record.started_at if ended_at is not None else None,
    )


class Life(World):
    """A sidecar that writes to tables that were there before it."""

    def __init__(self, tables: Tables, began: float = 0.0, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.tables = tables
        self.before = dict(tables.rows)
        self.now = began

    def _drain(self) -> None:
        outputs, messages = self.pipeline.records(), self.pipeline.stored()
        self.outputs += outputs
        self.stored += messages
        self.tables.write(outputs, messages)

    def hear(
        self,
        text: str,
        *,
        call_id: str = "flow@example.com",
        at: float | None = None,
        parents: dict[str, str] | None = None,
        agents: Sequence[tuple[int, int]] = ((2001, 0),),
    ) -> None:
        """One line of a flow, at its own time, mirrored by each of the agents."""
        line = Line.of(text)
        parent = (parents or {}).get(line.branch)
        for tap, (agent_id, skew_us) in enumerate(agents):
            data = packet(line, call_id, agent_id=agent_id, parent=parent, skew_us=skew_us)
            self.send(data, line.at if at is None else at, peer=f"203.0.113.{5 + tap}")

    def rebuild(self, *, own_rows: bool = True) -> None:
        """Restore every Call-ID that is stored; what this life wrote may not be there yet."""
        rows = self.tables.rows if own_rows else self.before
        for call_id in dict.fromkeys(m.call_id for m in self.tables.messages):
            messages = [restored(m) for m in self.tables.messages if m.call_id == call_id]
            known = [stored_row(row) for row in rows.values() if row.call_id == call_id]
            self.pipeline.restore(messages, known, self.now)
        self._drain()

    def stop(self) -> None:
        """Drain, as SIGTERM does."""
        self.pipeline.drain(self.now)
        self._drain()
