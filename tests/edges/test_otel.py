import asyncio
import contextlib
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from receiving import Web, until, web_server
from sipsidecar.calls.events import AttemptRecord, CallRecord
from sipsidecar.config import Otel
from sipsidecar.edges import otel
from sipsidecar.edges.otel import Exporter, Timing

AT = 1_769_850_000_000_000
QUICK = Timing(every=0.01, one_try=2.0, first_pause=0.001, longest_pause=0.004, give_up=5.0)


def call(name: str = "a", **changes: Any) -> CallRecord:
    made = CallRecord(
        call_id=name, from_tag="t", received_at=AT, started_at=AT, ended=True, ended_at=AT + 9
    )
    return msgspec.structs.replace(made, **changes)


def attempt(name: str = "a") -> AttemptRecord:
    return AttemptRecord(call_id=name, from_tag="t", branch="z", received_at=AT, started_at=AT)


@contextlib.asynccontextmanager
async def exporting(
    server: Web, timing: Timing = QUICK, **settings: Any
) -> AsyncIterator[Exporter]:
    exporter = Exporter(Otel(endpoint=f"{server.url}/v1/traces", **settings), timing)
    task = asyncio.create_task(exporter.run())
    await asyncio.sleep(0)
    try:
        yield exporter
    finally:
        await exporter.close()
        await asyncio.wait_for(task, 5)


def spans(server: Web) -> list[list[str]]:
    return [
        [
            next(
                each["value"]["stringValue"]
                for each in span["attributes"]
                if each["key"] == "sip.call_id"
            )
            for span in asked.json["resourceSpans"][0]["scopeSpans"][0]["spans"]
        ]
        for asked in server.asked
    ]


async def test_spans_are_sent_in_a_batch_when_its_time_is_up() -> None:
    async with web_server() as server:
        headers = {"Authorization": "Bearer x"}
        async with exporting(server, headers=headers, service_name="sbc") as exporter:
            exporter.add(call())
            exporter.add(attempt())
            await until(lambda: exporter.counters["sent"] == 2)
    assert spans(server) == [["a", "a"]]
    (asked,) = server.asked
    assert asked.path == "/v1/traces"
    assert asked.headers["Content-Type"] == "application/json"
    assert asked.headers["Authorization"] == "Bearer x"
    (about,) = asked.json["resourceSpans"][0]["resource"]["attributes"]
    assert about == {"key": "service.name", "value": {"stringValue": "sbc"}}


async def test_a_full_batch_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "MOST_SPANS", 3)
    async with web_server() as server, exporting(server, QUICK._replace(every=60.0)) as exporter:
        for number in range(3):
            exporter.add(call(str(number)))
        await until(lambda: exporter.counters["sent"] == 3)
        for number in range(3, 10):
            exporter.add(call(str(number)))
        await until(lambda: exporter.counters["sent"] == 10)
    assert [len(batch) for batch in spans(server)] == [3, 3, 3, 1]


async def test_a_call_is_told_once_and_when_it_has_ended() -> None:
    async with web_server() as server, exporting(server) as exporter:
        exporter.add(call(ended=False))
        exporter.add(call())
        exporter.add(call(revision=1))
        await until(lambda: exporter.counters["sent"])
    assert spans(server) == [["a"]]


async def test_what_is_remembered_of_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "MOST_KNOWN", 2)
    exporter = Exporter(Otel(endpoint="http://127.0.0.1:1/"))
    for name in ("a", "b", "c", "a"):
        exporter.add(call(name))
    assert exporter.waiting == 4
    assert len(exporter._known) == 2


async def test_without_an_endpoint_nothing_waits() -> None:
    exporter = Exporter(Otel())
    exporter.add(call())
    assert exporter.waiting == 0
    await exporter.close()


async def test_only_a_share_of_the_calls_is_told_with_all_their_attempts() -> None:
    exporter = Exporter(Otel(endpoint="http://127.0.0.1:1/", ratio=0.25))
    for number in range(400):
        exporter.add(call(str(number)))
        exporter.add(attempt(str(number)))
    told = exporter.waiting
    assert 120 < told < 280
    assert told % 2 == 0
    assert exporter.counters["unsampled"] == 800 - told


@pytest.mark.parametrize(("name", "most"), [("MOST_WAITING", 5), ("MOST_BYTES", 2000)])
async def test_what_finds_no_room_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(otel, name, most)
    exporter = Exporter(Otel(endpoint="http://127.0.0.1:1/"))
    for number in range(20):
        exporter.add(call(str(number)))
    assert 2 <= exporter.waiting <= 5
    assert exporter.counters["dropped"] == 20 - exporter.waiting
    await exporter.close()
    assert exporter.counters["dropped"] == 20


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_collector_that_is_busy_is_tried_again(status: int) -> None:
    async with web_server(status, status, 200) as server, exporting(server) as exporter:
        exporter.add(call())
        await until(lambda: exporter.counters["sent"] == 1)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 302])
async def test_what_a_collector_refuses_is_not_sent_again(status: int) -> None:
    async with web_server(status) as server, exporting(server) as exporter:
        exporter.add(call())
        await until(lambda: exporter.counters["failed"] == 1)
    assert len(server.asked) == 1


async def test_a_collector_that_is_gone_is_given_up_and_said_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        web_server() as server,
        exporting(server, QUICK._replace(give_up=0.01), headers={"A": "hush"}) as exporter,
    ):
        exporter._settings = Otel(endpoint="http://127.0.0.1:1/hush")
        exporter.add(call())
        await until(lambda: exporter.counters["failed"] == 1)
        exporter._settings = Otel(endpoint=server.url)
        exporter.add(call("b"))
        await until(lambda: exporter.counters["sent"] == 1)
    assert [each.message for each in caplog.records if each.name == "sipsidecar.otel"] == [
        "the collector does not take spans: refused",
        "the collector takes spans again",
    ]


async def test_a_collector_is_not_tried_before_it_wants_to_be() -> None:
    async with (
        web_server((503, {"Retry-After": "1"}), 200) as server,
        exporting(server) as exporter,
    ):
        exporter.add(call())
        await until(lambda: server.asked)
        await asyncio.sleep(0.05)
        assert len(server.asked) == 1
        assert exporter.waiting == 1
    assert exporter.counters["sent"] == 1  # at the end it is tried once more


@pytest.mark.parametrize(
    ("answer", "rejected"),
    [
        (b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"no"}}', 1),
        (b'{"partialSuccess":{"rejectedSpans":1}}', 1),
        (b'{"partialSuccess":{"rejectedSpans":"999"}}', 2),
        (b'{"partialSuccess":{"rejectedSpans":"-1"}}', 0),
        (b'{"partialSuccess":{"rejectedSpans":"\xd9\xa1"}}', 0),
        (b'{"partialSuccess":{}}', 0),
        (b'{"partialSuccess":null}', 0),
        (b"{}", 0),
        (b"", 0),
        (b"[" * 50_000, 0),
        (gzip.compress(b"{}"), 0),
    ],
)
async def test_spans_that_a_collector_leaves_out_are_counted(answer: bytes, rejected: int) -> None:
    async with web_server(body=answer) as server, exporting(server) as exporter:
        exporter.add(call("a"))
        exporter.add(call("b"))
        await until(lambda: not exporter.waiting)
        assert exporter.counters["failed"] == rejected
        assert exporter.counters["sent"] == 2 - rejected


async def test_closing_sends_what_waits() -> None:
    async with web_server() as server, exporting(server, QUICK._replace(every=60.0)) as exporter:
        await asyncio.sleep(0.01)
        exporter.add(call())
    assert exporter.counters == {"sent": 1, "dropped": 0, "failed": 0, "unsampled": 0}


async def test_closing_waits_for_no_dead_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "CLOSING", 0.05)
    async with web_server() as server:
        server.held = asyncio.Event()
        exporter = Exporter(Otel(endpoint=server.url), QUICK)
        task = asyncio.create_task(exporter.run())
        exporter.add(call())
        await until(lambda: server.asked)
        await exporter.close()
        assert exporter.counters["dropped"] == 1
        server.held.set()
        await asyncio.wait_for(task, 5)
    assert exporter.counters == {"sent": 0, "dropped": 1, "failed": 0, "unsampled": 0}


async def test_a_request_is_json_however_hostile_a_call_is() -> None:
    async with web_server() as server, exporting(server) as exporter:
        exporter.add(call('\ud800\x00"}]', user_agent="\x1b" * 9999))
        await until(lambda: exporter.counters["sent"])
    json.loads(server.asked[0].body)
