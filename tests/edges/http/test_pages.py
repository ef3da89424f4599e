import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from asking import Served, serving
from sipsidecar.edges.http import MAX_LIVE, Access
from sipsidecar.signals.snapshot import AgentFigures

TOKEN = "0123456789abcdef"  # noqa: S105 -- of these tests alone


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as made:
        yield made


async def test_the_first_page_names_all_others_and_they_are_there(served: Served) -> None:
    status, pages = await served.get("/")
    assert status == 200
    assert len(pages) == 7
    for path in pages:
        assert (await served.ask(path)).status == 200, path


async def test_metrics_come_in_the_format_that_was_asked_for(served: Served) -> None:
    reply = await served.ask("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert b"sipsidecar_packets_received_total 6.0" in reply.body
    reply = await served.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert reply.headers["content-type"].startswith("application/openmetrics-text; version=")
    assert reply.body.endswith(b"# EOF\n")


async def test_a_living_process_is_live_whatever_its_work_is_like(served: Served) -> None:
    served.change("storage", up=False)
    assert await served.get("/health/live") == (200, {"status": "live", "uptime_seconds": 1.5})


async def test_a_sidecar_that_does_its_work_is_ready(served: Served) -> None:
    status, said = await served.get("/health/ready")
    assert (status, said["status"]) == (200, "ready")
    assert all(check["ok"] for check in said["checks"].values())
    assert said["checks"]["database"]["reading"] == "up"


@pytest.mark.parametrize(
    ("part", "changes", "name", "reading"),
    [
        ("storage", {"up": False}, "database", "away"),
        ("storage", {"queue_bytes": 950}, "queue", 0.95),
        ("capture", {"buffer_used_bytes": 990}, "receive_buffer", 0.99),
        ("pipeline", {"received": 5}, "ledger_balance", -1),
    ],
)
async def test_a_failing_check_is_a_503_that_names_it(
    served: Served, part: str, changes: dict[str, Any], name: str, reading: object
) -> None:
    served.change(part, **changes)
    status, said = await served.get("/health/ready")
    assert (status, said["status"]) == (503, "not-ready")
    assert [one for one, check in said["checks"].items() if not check["ok"]] == [name]
    assert said["checks"][name]["reading"] == reading


async def test_a_check_that_only_warns_leaves_a_sidecar_ready(served: Served) -> None:
    served.figures = msgspec.structs.replace(served.figures, warming=True)
    status, said = await served.get("/health/ready")
    assert (status, said["status"]) == (200, "ready")
    assert not said["checks"]["warming"]["ok"]


@pytest.mark.parametrize(("up", "status"), [(True, 200), (False, 503)])
async def test_a_probe_without_a_token_learns_the_status_and_no_more(up: bool, status: int) -> None:
    async with serving(access=Access([TOKEN])) as served:
        served.change("storage", up=up)
        said = {"status": "ready" if up else "not-ready"}
        assert await served.get("/health/ready") == (status, said)
        known = await served.ask("/health/ready", Authorization=f"Bearer {TOKEN}")
        assert (known.status, known.json["checks"]["database"]["ok"]) == (status, up)
        wrong = await served.ask("/health/ready", Authorization="Bearer wrong")
        assert (wrong.status, wrong.json) == (status, said)


async def test_the_ledger_has_each_side_and_the_reasons(served: Served) -> None:
    served.change("pipeline", received=10, refused={"chunk": 3}, held=1)
    status, said = await served.get("/v1/ledger")
    assert status == 200
    assert said == {
        **served.figures.ledger(),
        "refused_by_reason": {"chunk": 3},
        "dropped_by_reason": {"queue-full": 2},
        "rows_stored": {"messages": 3},
        "rows_waiting": {"messages": 1},
        "spool": msgspec.to_builtins(served.figures.storage.spool),
    }
    assert (said["received"], said["stored"], said["waiting"], said["balance"]) == (10, 3, 2, 0)
    assert said["spool"]["batches"] == 0


async def test_agents_are_shown_with_their_configured_name_or_none(served: Served) -> None:
    agents = (
        AgentFigures(2001, "192.0.2.1", "kam1", 5, 1.5, -0.25, "192.0.2.1"),
        AgentFigures(7, "192.0.2.7", 'evil"\n\x1b[31m<script>', 1, 9.0, None, None),
        AgentFigures(None, "192.0.2.8", None, 1, 9.0, None, None),
    )
    served.change("pipeline", agents=agents)
    reply = await served.ask("/v1/agents")
    said = reply.json
    assert reply.status == 200
    assert [agent["name"] for agent in said] == ["edge", None, None]
    assert said[0]["clock_skew_seconds"] == -0.25
    assert said[1]["node_name"] == 'evil"\n\x1b[31m<script>'
    assert b"\x1b" not in reply.body


async def test_switches_are_those_that_the_sidecar_knows_and_none_without_any() -> None:
    said = [{"name": "fs1", "connected": True, "idle_cpu": 0.93}, {"name": "fs2", "error": "\x1b"}]
    async with serving(switches=lambda: said) as served:
        assert await served.get("/v1/switches") == (200, said)
    async with serving() as served:
        assert await served.get("/v1/switches") == (200, [])


async def test_live_calls_are_counted_and_listed_up_to_the_limit(served: Served) -> None:
    served.change("pipeline", live={"trying": 1, "ringing": 2, "answered": 0})
    status, said = await served.get("/v1/calls/live?limit=2")
    assert status == 200
    assert said["live"] == {"trying": 1, "ringing": 2, "answered": 0}
    assert [call["call_id"] for call in said["calls"]] == ["0@a", "1@a"]


@pytest.mark.parametrize(
    ("query", "limit"),
    [("", 100), ("?limit=0", 0), ("?limit=007", 7), (f"?limit={MAX_LIVE + 1}", MAX_LIVE),
     ("?limit=999999999", MAX_LIVE), ("?limit=5&limit=9", 5), ("?other=5", 100)],
)  # fmt: skip
async def test_the_limit_is_a_number_and_has_a_bound(
    served: Served, query: str, limit: int
) -> None:
    status, _ = await served.get(f"/v1/calls/live{query}")
    assert status == 200
    assert served.asked == [limit]


@pytest.mark.parametrize(
    "limit",
    ["", "-1", "1.5", "1e9", "+5", "5+", "1_0", "%D9%A3", "abc", "0x10", "9" * 5000, "%00", "5%0A",
     "%FF"],
)  # fmt: skip
async def test_a_limit_of_garbage_is_a_400_that_says_so(served: Served, limit: str) -> None:
    status, said = await served.get(f"/v1/calls/live?limit={limit}")
    assert status == 400
    assert said == {"error": f"limit: expected a number up to {MAX_LIVE}"}
    assert served.asked == []


async def test_a_head_request_has_the_headers_and_no_body(served: Served) -> None:
    reply = await served.ask("/v1/ledger", "HEAD")
    assert reply.status == 200
    assert int(reply.headers["content-length"]) > 100


async def test_reload_answers_what_the_callback_says() -> None:
    said = {"applied": ["log.level"], "restart": ["hep.listen"]}
    called: list[int] = []

    def reload() -> dict[str, Any]:
        called.append(1)
        return said

    async with serving(reload=reload) as served:
        assert "POST /v1/reload" in (await served.ask("/")).json
        for body in (b"", b"{}", b" {}\n"):
            reply = await served.ask(
                "/v1/reload", "POST", body, Content_Type="application/json; charset=utf-8"
            )
            assert (reply.status, reply.json) == (200, said)
        assert called == [1, 1, 1]
        reply = await served.ask("/v1/reload")
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
        assert called == [1, 1, 1]


async def test_without_a_callback_there_is_nothing_to_reload(served: Served) -> None:
    reply = await served.ask("/v1/reload", "POST", b"{}", Content_Type="application/json")
    assert reply.status == 404


async def test_pages_are_json_that_everybody_reads(served: Served) -> None:
    for path in ("/", "/v1/ledger", "/v1/agents", "/nowhere"):
        assert json.loads((await served.ask(path)).body) is not None
