import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import msgspec
import pytest

from sipsidecar.edges.http import MAX_LIVE, HttpError, HttpServer
from sipsidecar.edges.metrics import Metrics
from sipsidecar.pipeline import Pipeline
from sipsidecar.signals.snapshot import (
    WRITE_BOUNDS,
    AgentFigures,
    CaptureFigures,
    Figures,
    Histogram,
    StorageFigures,
)


class Served:
    """A server on a free port, and what it reads."""

    def __init__(self) -> None:
        self.figures = Figures(
            version="1",
            pipeline=Pipeline().snapshot(0.0),
            storage=StorageFigures(
                up=True,
                rows_stored={"messages": 3},
                rows_waiting={"messages": 1},
                rows_dropped={},
                packets_stored=3,
                packets_quarantined=0,
                packets_waiting=1,
                packets_dropped={"queue-full": 2},
                queue_bytes=0,
                queue_limit_bytes=1000,
                write_seconds=Histogram(WRITE_BOUNDS),
                write_failures={},
                server_restarts=0,
            ),
            capture=CaptureFigures(
                kernel_drops=0,
                buffer_bytes=1000,
                buffer_used_bytes=0,
                tcp_connections=0,
                tcp_events={},
            ),
            loop_lag_seconds=0.0,
            uptime_seconds=1.5,
            agent_names={2001: "edge"},
        )
        self.asked: list[int] = []
        self.server = HttpServer(
            lambda: self.figures, Metrics(lambda: self.figures).render, self.live
        )
        self.url = ""
        self.session: aiohttp.ClientSession

    def live(self, limit: int) -> Sequence[dict[str, Any]]:
        self.asked.append(limit)
        return [{"call_id": f"{number}@a", "state": "ringing"} for number in range(min(limit, 3))]

    def change(self, part: str, **changes: Any) -> None:
        old = getattr(self.figures, part)
        new = msgspec.structs.replace(old, **changes)
        self.figures = msgspec.structs.replace(self.figures, **{part: new})

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        async with self.session.get(self.url + path, **options) as reply:
            assert reply.content_type == "application/json"
            return reply.status, msgspec.json.decode(await reply.read())


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    host, port = await made.server.open("127.0.0.1", 0)
    made.url = f"http://{host}:{port}"
    async with aiohttp.ClientSession() as made.session:
        yield made
    await made.server.close()


async def test_the_first_page_names_all_others_and_they_are_there(served: Served) -> None:
    status, pages = await served.get("/")
    assert status == 200
    assert len(pages) == 6
    for path in pages:
        async with served.session.get(served.url + path) as reply:
            assert reply.status in (200, 503), path


async def test_metrics_come_in_the_format_that_was_asked_for(served: Served) -> None:
    url = f"{served.url}/metrics"
    async with served.session.get(url) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
        assert "sipsidecar_packets_received_total 0.0" in await reply.text()
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with served.session.get(url, headers=accept) as reply:
        assert reply.headers["Content-Type"].startswith("application/openmetrics-text; version=")
        assert (await reply.text()).endswith("# EOF\n")


async def test_a_living_process_is_live_whatever_its_work_is_like(served: Served) -> None:
    served.change("storage", up=False)
    assert await served.get("/health/live") == (200, {"status": "live", "uptime_seconds": 1.5})


async def test_a_sidecar_that_does_its_work_is_ready(served: Served) -> None:
    served.change("pipeline", received=6)
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
    served.change("pipeline", received=6)
    served.change(part, **changes)
    status, said = await served.get("/health/ready")
    assert (status, said["status"]) == (503, "not-ready")
    assert [one for one, check in said["checks"].items() if not check["ok"]] == [name]
    assert said["checks"][name]["reading"] == reading


async def test_the_ledger_has_each_side_and_the_reasons(served: Served) -> None:
    served.change("pipeline", received=10, refused={"chunk": 3}, held=1)
    assert await served.get("/v1/ledger") == (
        200,
        {
            "received": 10,
            "stored": 3,
            "waiting": 2,
            "quarantined": 0,
            "refused": 3,
            "dropped": 2,
            "balance": 0,
            "kernel_drops": 0,
            "refused_by_reason": {"chunk": 3},
            "dropped_by_reason": {"queue-full": 2},
            "rows_stored": {"messages": 3},
            "rows_waiting": {"messages": 1},
        },
    )


async def test_agents_are_shown_with_their_configured_name_or_none(served: Served) -> None:
    agents = (
        AgentFigures(2001, "192.0.2.1", "kam1", 5, 1.5, -0.25, "192.0.2.1"),
        AgentFigures(7, "192.0.2.7", 'evil"\n\x1b[31m', 1, 9.0, None, None),
        AgentFigures(None, "192.0.2.8", None, 1, 9.0, None, None),
    )
    served.change("pipeline", agents=agents)
    status, said = await served.get("/v1/agents")
    assert status == 200
    assert [agent["name"] for agent in said] == ["edge", None, None]
    assert said[0]["clock_skew_seconds"] == -0.25
    assert said[1]["node_name"] == 'evil"\n\x1b[31m'


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
    ["", "-1", "1.5", "1e9", " 5", "5 ", "1_0", "٣", "abc", "0x10", "9" * 5000, "%00", "5\n"],
)
async def test_a_limit_of_garbage_is_a_400_that_says_so(served: Served, limit: str) -> None:
    status, said = await served.get("/v1/calls/live", params={"limit": limit})
    assert status == 400
    assert said == {"error": f"limit: expected a number up to {MAX_LIVE}"}
    assert served.asked == []


async def test_what_is_not_there_is_404_and_cannot_be_written(served: Served) -> None:
    async with served.session.get(f"{served.url}/etc/passwd") as reply:
        assert reply.status == 404
    async with served.session.post(f"{served.url}/metrics", data=b"x") as reply:
        assert reply.status == 405


async def test_garbage_instead_of_http_does_not_stop_the_server(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    for garbage in (b"\0" * 1000, b"GET /metrics\r\n\r\n", b"HEP3\0\x10" + b"x" * 70_000):
        with socket.create_connection(("127.0.0.1", port)) as sock, contextlib.suppress(OSError):
            sock.sendall(garbage)
    status, _ = await served.get("/health/live")
    assert status == 200


async def test_a_busy_port_is_one_line_that_names_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = Served().server
        with pytest.raises(HttpError) as caught:
            await server.open("127.0.0.1", port)
        await server.close()
    assert caught.value.strerror == (
        f"HTTP 127.0.0.1:{port} is taken by another program; "
        "stop it, or give --http another ADDR:PORT"
    )


async def test_an_address_of_another_machine_is_refused_in_one_line() -> None:
    with pytest.raises(HttpError) as caught:
        await Served().server.open("192.0.2.1", 9080)
    assert caught.value.strerror == (
        "HTTP 192.0.2.1:9080 is no address of this machine; give --http one that is"
    )


async def test_after_close_nobody_can_connect(served: Served) -> None:
    await served.server.close()
    await served.server.close()
    with pytest.raises(aiohttp.ClientConnectionError):
        await served.get("/")
