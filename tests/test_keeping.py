from typing import Any

import pytest

from sipsidecar import demo, rows
from sipsidecar.batch import Waiting
from sipsidecar.calls.events import MediaRecord, QualityInterval
from sipsidecar.calls.legs import Unjoined
from sipsidecar.calls.table import Retraction
from sipsidecar.keeping import Kept, RowMaker
from sipsidecar.pipeline import Pipeline, Stored
from stored import (
    KINDS,
    NOON,
    admission,
    bare,
    conversation,
    event,
    incident,
    kpi,
    leg,
    outcome,
    state,
)

NOW = 1_795_000_000_000_000


def waiting() -> Waiting:
    return Waiting(max_rows=100_000, max_age=1.0, max_bytes=1 << 30)


def stored(**changes: Any) -> Stored:
    fields: dict[str, Any] = {
        "received_at": NOW,
        "captured_at": NOW,
        "agent_id": 7,
        "kind": 1,
        "source": bytes((192, 0, 2, 1)),
        "source_port": 5060,
        "destination": bytes((192, 0, 2, 2)),
        "destination_port": 5060,
        "transport": "udp",
        "call_id": "a@b",
        "payload": b"INVITE",
        "packets": 1,
        "why": None,
        "peer": "192.0.2.9",
    }
    return Stored(**fields | changes)


def taken(kept: Waiting) -> dict[str, list[bytes]]:
    batch = kept.take()
    return (
        {table: [row.data for row in found] for table, found in batch.tables.items()}
        if batch
        else {}
    )


def test_a_message_becomes_a_row_with_the_address_of_its_agent() -> None:
    kept = waiting()
    RowMaker(kept, 3, messages=True).keep([stored()], 0.0)
    ((row,),) = taken(kept).values()
    assert bytes((192, 0, 2, 9)) in row
    assert row == rows.encode_message(
        NOW, NOW, 3, 7, 1, 1, "192.0.2.1", 5060, "192.0.2.2", 5060, "udp", "a@b", b"INVITE",
        agent_ip="192.0.2.9",
    )  # fmt: skip


def test_what_was_not_understood_becomes_a_row_of_quarantine() -> None:
    kept = waiting()
    RowMaker(kept, 3, messages=True).keep([stored(why="start-line", packets=2)], 0.0)
    assert kept.packets_waiting["quarantine"] == 2
    assert list(taken(kept)) == ["quarantine"]


def test_messages_that_are_not_wanted_are_dropped_with_their_reason() -> None:
    kept = waiting()
    RowMaker(kept, 3, messages=False).keep([stored(packets=3)], 0.0)
    assert kept.packets_dropped["messages", "not-configured"] == 3
    assert taken(kept) == {}


@pytest.mark.parametrize("node", [1, 2])
def test_every_record_of_a_pipeline_becomes_a_row_of_its_table(node: int) -> None:
    kept, pipeline, now = waiting(), Pipeline(), 0.0
    for step, _ in zip(demo.timeline(demo.dialogs(7)), range(1500), strict=False):
        now = step.at
        at = NOW + round(now * 1_000_000)
        pipeline.receive(demo.datagram(step, at), now, at, "192.0.2.10")
        pipeline.handle_timer(now)
    pipeline.drain(now)
    outputs = pipeline.records()
    RowMaker(kept, node, messages=True).add(outputs, now)
    found = taken(kept)
    assert set(found) == {
        "calls", "attempts", "media", "quality_intervals", "registrations", "pings",
    }  # fmt: skip
    assert sum(map(len, found.values())) == len(outputs)
    assert all(row.endswith(node.to_bytes(4, "big")) for row in found["calls"])


def media(stream: str = "caller_to_callee", revision: int = 0) -> MediaRecord:
    return MediaRecord(
        call_id="a@b",
        from_tag="t",
        stream=stream,
        direction="caller_to_callee",
        received_at=NOW,
        revision=revision,
        started_at=NOW,
        ended_at=NOW,
    )


INTERVAL = QualityInterval(
    call_id="a@b",
    from_tag="t",
    direction="caller_to_callee",
    reporter_ssrc=1,
    source_ssrc=2,
    received_at=NOW,
    at=NOW,
    source="rtcp",
)


def test_media_and_its_intervals_become_rows_that_account_for_no_packet() -> None:
    kept = waiting()
    RowMaker(kept, 3, messages=True).add([media(), INTERVAL], 0.0)
    assert sum(kept.packets_waiting.values()) == 0
    assert taken(kept) == {
        "media": [rows.encode_media(media(), 3)],
        "quality_intervals": [rows.encode_interval(INTERVAL, 3)],
    }


def test_legs_and_conversations_become_rows_and_later_ones_replace_them() -> None:
    kept = waiting()
    maker = RowMaker(kept, 3, messages=True)
    maker.add([leg("u1"), conversation("u1"), leg("u1", "a@b", revision=1)], 0.0)
    maker.add([conversation("u1", revision=1)], 0.0)
    maker.add([Unjoined("u2", NOON, 4)], 0.0)
    batch = kept.take()
    assert batch is not None
    assert {table: len(found) for table, found in batch.tables.items()} == {
        "legs": 2, "conversations": 2,
    }  # fmt: skip
    assert sorted(batch.replaced) == [
        rows.Replaced("conversations", "", "", "u1", NOON, 3, 1),
        rows.Replaced("conversations", "", "", "u2", NOON, 3, 4),
        rows.Replaced("legs", "a@b", "", "u1", NOON, 3, 1),
    ]


def test_refusals_and_changes_of_state_become_rows_that_account_for_no_packet() -> None:
    kept = waiting()
    RowMaker(kept, 3, messages=True).add([admission("a@b"), state("acme-asr")], 0.0)
    assert sum(kept.packets_waiting.values()) == 0
    assert taken(kept) == {
        "admissions": [rows.encode_admission(admission("a@b"), 3)],
        "admission_states": [rows.encode_state(state("acme-asr"), 3)],
    }


def test_figures_incidents_events_and_outcomes_become_rows_and_later_incidents_replace() -> None:
    kept = waiting()
    first, second = incident("5xx-1"), incident("5xx-1", revision=1)
    some: list[Kept] = [kpi(), event("e-1"), outcome("a@b"), first, second]
    RowMaker(kept, 3, messages=True).add(some, 0.0)
    assert sum(kept.packets_waiting.values()) == 0
    batch = kept.take()
    assert batch is not None
    assert {t: [row.data for row in found] for t, found in batch.tables.items()} == {
        "kpi_minute": [rows.encode_kpi(kpi(), 3)],
        "events": [rows.encode_event(event("e-1"), 3)],
        "outcomes": [rows.encode_outcome(outcome("a@b"), 3)],
        "incidents": [rows.encode_incident(one, 3) for one in (first, second)],
    }
    assert batch.replaced == [rows.Replaced("incidents", "", "", "5xx-1", NOON, 3, 1)]


@pytest.mark.parametrize("table", KINDS)
def test_every_kind_of_record_goes_to_its_own_table(table: str) -> None:
    kept = waiting()
    some: list[Any] = [bare(KINDS[table][0])]
    RowMaker(kept, 3, messages=True).add(some, 0.0)
    assert list(taken(kept)) == [table]


def test_intervals_that_are_not_wanted_become_no_rows() -> None:
    kept = waiting()
    RowMaker(kept, 3, messages=True, intervals=False).add([media(), INTERVAL], 0.0)
    assert list(taken(kept)) == ["media"]


def test_a_later_revision_of_media_puts_the_earlier_out_of_date() -> None:
    kept = waiting()
    RowMaker(kept, 3, messages=True).add([media(revision=2)], 0.0)
    batch = kept.take()
    assert batch is not None
    key = ("media", "a@b", "t", "caller_to_callee", NOW, 3, 2)
    assert batch.replaced == [rows.Replaced(*key)]


@pytest.mark.parametrize(
    ("branch", "stream", "table", "part"),
    [
        (None, None, "calls", ""),
        ("z9hG4bK", None, "attempts", "z9hG4bK"),
        ("", None, "attempts", ""),
        (None, "unknown-1", "media", "unknown-1"),
        (None, "", "media", ""),
    ],
)
def test_what_is_taken_back_is_named_by_its_table_and_its_key_as_stored(
    branch: str | None, stream: str | None, table: str, part: str
) -> None:
    kept = waiting()
    gone = Retraction("a\0", "t", branch, NOW, 4, stream)
    RowMaker(kept, 3, messages=True).add([gone], 0.0)
    batch = kept.take()
    assert batch is not None
    assert batch.tables == {}
    assert batch.replaced == [rows.Replaced(table, r"a\x00", "t", part, NOW, 3, 4)]
