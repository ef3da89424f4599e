import asyncio
import logging
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asking import LIMIT, Reply, Run, Served, both_loops, certificate, descriptors, no_ipv6, serving
from sipsidecar.config import ConfigError
from sipsidecar.edges.http import Access, HttpError, HttpServer, Limits, listener
from sipsidecar.edges.http.connections import HEADERS, MAX_BODY
from sipsidecar.edges.http.pages import Page
from sipsidecar.tls import TlsError, server_context

READ, OPERATE = "read-read-read-00", "operate-operate-0"
BOTH = Access([READ], [OPERATE])
PAGES = ("/", "/metrics", "/v1/calls/live", "/v1/agents", "/v1/ledger")
PROBES = ("/health/live", "/health/ready")
JSON = "application/json"
GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def reload(served: Served, body: bytes = b"{}", /, **headers: str) -> Reply:
    return await served.ask(
        "/v1/reload", "POST", body, **{"Content_Type": JSON, "Authorization": f"Bearer {OPERATE}"}
        | headers,
    )  # fmt: skip


# -- who may


@pytest.mark.parametrize("token", [None, READ, OPERATE, "wrong", ""])
async def test_every_page_but_the_probes_wants_a_token(token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    may = token in {READ, OPERATE}
    async with serving(access=BOTH, reload=dict) as served:
        for path in (*PAGES, "/nowhere", "/health", "/health/live/", "/%2e%2e/metrics"):
            reply = await served.ask(path, **headers)
            assert reply.status == ((200 if path in PAGES else 404) if may else 401), path
            assert may or reply.headers["www-authenticate"].startswith("Bearer ")
        for path in PROBES:
            assert (await served.ask(path, **headers)).status == 200
        reply = await served.ask("/v1/reload", "POST", b"{}", Content_Type=JSON, **headers)
        assert reply.status == {OPERATE: 200, READ: 403}.get(token or "", 401)
        wrong = (0 if may else 10) + (2 if token not in {None, READ, OPERATE} else 0)
        assert served.server.counters["unauthorized"] == wrong
        assert served.server.counters["forbidden"] == (token == READ)


async def test_with_read_tokens_only_nobody_operates() -> None:
    async with serving(access=Access([READ]), reload=dict) as served:
        for headers in ({}, {"Authorization": f"Bearer {READ}"}):
            reply = await served.ask("/v1/reload", "POST", b"{}", Content_Type=JSON, **headers)
            assert reply.status == 403
            assert "http.operate_tokens" in reply.json["error"]


async def test_with_operate_tokens_only_these_read() -> None:
    async with serving(access=Access((), [OPERATE]), reload=dict) as served:
        assert (await served.ask("/metrics")).status == 401
        assert (await served.ask("/metrics", Authorization=f"Bearer {OPERATE}")).status == 200
        assert (await reload(served)).status == 200


async def test_without_tokens_everything_is_open() -> None:
    async with serving(reload=dict) as served:
        assert (await served.ask("/metrics")).status == 200
        assert (await reload(served, Authorization="")).status == 200


async def test_new_tokens_count_from_the_next_request_on() -> None:
    async with serving(access=BOTH) as served:
        client = await served.connect()
        token = f"Bearer {READ}"
        assert (await client.ask("/metrics", Authorization=token)).status == 200
        served.server.access = Access(["another-token-000"])
        assert (await client.ask("/metrics", Authorization=token)).status == 401
        await client.close()


async def test_tokens_that_fail_are_one_line_a_minute_and_never_in_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "SWEEP", 0.01)
    async with serving(access=BOTH) as served:
        for _ in range(50):
            await served.ask("/metrics", Authorization="Bearer secret-secret-secret")
        await served.until(lambda: bool(caplog.records))
        await served.ask("/metrics", Authorization="Bearer secret-secret-secret")
        await asyncio.sleep(0.05)  # some sweeps
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 1
        assert "requests without a valid token, the last from 127.0.0.1" in said[0]
        assert served.server.counters["unauthorized"] == 51
    assert "secret-secret" not in caplog.text


# -- browsers


@pytest.mark.parametrize("path", [*PAGES, *PROBES, "/nowhere"])
async def test_a_page_under_a_rebound_name_is_misdirected(path: str) -> None:
    async with serving() as served:
        reply = await served.ask(path, Host="evil.example:9080")
        assert reply.status == 421
        assert "http.hosts" in reply.json["error"]
        assert served.server.counters["bad-host"] == 1


async def test_a_name_that_is_set_is_ours() -> None:
    async with serving(access=Access(hosts=["mon.example"])) as served:
        assert (await served.ask("/metrics", Host="mon.example")).status == 200
        assert (await served.ask("/metrics", Host="localhost:1")).status == 200
        assert (await served.ask("/metrics", Host="10.0.0.1")).status == 421


async def test_a_probe_names_an_address_where_everything_is_bound() -> None:
    async with serving("0.0.0.0", access=BOTH, reload=dict) as served:  # noqa: S104
        assert (await served.ask("/health/ready", Host="10.1.2.3:9080")).status == 200
        assert (await served.ask("/health/ready", Host="evil.example")).status == 421
        assert (await reload(served, Host="10.1.2.3:9080")).status == 421
        assert (await reload(served, Host="127.0.0.1")).status == 200


async def test_an_old_probe_may_leave_the_host_out() -> None:
    async with serving() as served:
        assert (await served.send(b"GET /health/live HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200")
        said = await served.send(b"GET /health/live HTTP/1.1\r\n\r\n")
        assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "application/jsonp"}, 415),
        ({"Content_Type": ""}, 415),
        ({"Content_Encoding": "gzip"}, 415),
        ({"Expect": "100-continue"}, 417),
        ({"Content_Length": str(MAX_BODY + 1)}, 413),
        ({"Host": "evil.example"}, 421),
        ({"Transfer_Encoding": "chunked", "Content_Length": "2"}, 400),
    ],
)
async def test_a_changing_request_that_is_not_plainly_ours_changes_nothing(
    headers: dict[str, str], status: int
) -> None:
    called: list[int] = []

    def change() -> dict[str, Any]:
        called.append(1)
        return {}

    async with serving(reload=change) as served:
        reply = await reload(served, Authorization="", **headers)
        assert reply.status == status
        assert called == ([1] if status == 200 else [])
        assert status == 200 or "\n" not in reply.json["error"]


async def test_our_own_page_may_change_things() -> None:
    async with serving(reload=dict) as served:
        host, port = served.address
        assert (await reload(served, Origin=f"http://{host}:{port}")).status == 200
        assert (await reload(served, Origin=f"http://{host}:{port + 1}")).status == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{}", 200), (b"", 200), (b"[]", 400), (b"{", 400), (b'{"a":1}', 400), (b"\xff", 400)],
)
async def test_the_body_of_reload_says_nothing(body: bytes, status: int) -> None:
    async with serving(reload=dict) as served:
        assert (await reload(served, body)).status == status


async def test_a_chunked_body_is_bounded_too() -> None:
    head = (
        b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    async with serving(reload=dict) as served:
        assert (await served.send(head + b"2\r\n{}\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        chunks = (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 3 + b"0\r\n\r\n"
        assert (await served.send(head + chunks)).startswith(b"HTTP/1.1 413")
        for wrong in (
            b"2\r\n{}XX",
            b"zz\r\n{}\r\n0\r\n\r\n",
            b"-1\r\n\r\n",
            b"ffffffffffffffff\r\n{}",
        ):
            said = await served.send(head + wrong)
            assert not said.startswith(b"HTTP/1.1 200")
        assert (await served.ask("/health/live")).status == 200
        assert not served.server.counters["faults"]


# -- answers


async def test_every_answer_has_the_headers_that_keep_browsers_safe() -> None:
    def fail() -> Any:
        raise RuntimeError("x")

    async with serving(access=Access([READ]), reload=dict) as served:
        token = {"Authorization": f"Bearer {READ}"}
        replies = [
            *[await served.ask(path, **token) for path in (*PAGES, *PROBES, "/nowhere")],
            await served.ask("/metrics"),
            await served.ask("/metrics", Host="evil.example"),
            await served.ask("/metrics", "DELETE", **token),
            await served.ask("/metrics", "OPTIONS", Origin="http://evil.example", **token),
            await served.ask("/metrics", "HEAD", **token),
            await reload(served),
        ]
        served.calls = fail
        replies.append(await served.ask("/v1/calls/live", **token))
        assert {reply.status for reply in replies} == {200, 401, 403, 404, 405, 421, 500}
        for reply in replies:
            for name, value in HEADERS.items():
                assert reply.headers[name.lower()] == value
            allowed = [name for name in reply.headers if name.startswith("access-control")]
            assert not allowed
            assert "set-cookie" not in reply.headers
        garbage = (await served.send(b"\0\r\n\r\n")).decode()
        assert garbage.startswith("HTTP/1.0 400 ")
        for name, value in HEADERS.items():
            assert f"{name}: {value}\r\n" in garbage


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_pages_are_only_read(method: str) -> None:
    async with serving() as served:
        for path in (*PAGES, *PROBES):
            reply = await served.ask(path, method)
            assert reply.status == 405
            assert reply.headers["allow"] == "GET, HEAD"
            assert reply.json == {"error": "send GET here"}


@pytest.mark.parametrize(
    "target", ["http://localhost/metrics", "*", "localhost:80", "metrics", "?x"]
)
async def test_a_target_that_is_no_path_is_refused(target: str) -> None:
    async with serving() as served:
        reply = await served.ask(target)
        assert reply.status == 400
        assert "error" in reply.json


async def test_a_page_that_fails_tells_the_client_nothing_and_the_log_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> Any:
        raise ValueError("secret\n\x1b[31mwords")

    async with serving() as served:
        served.calls = fail
        for _ in range(5):
            reply = await served.ask("/v1/calls/live")
            assert reply.status == 500
            assert reply.json == {"error": "this page failed: look into the sidecar's log"}
        assert served.server.counters["faults"] == 5
        assert served.server.counters["requests-5xx"] == 5
        assert (await served.ask("/v1/ledger")).status == 200
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "1 faults" in record.getMessage()
    assert "ValueError: secret" in record.getMessage()
    assert "\x1b" not in record.getMessage()


@pytest.mark.parametrize(
    "error", [ConfigError("hep.listen: no"), TlsError("key.pem: no such file")]
)
async def test_settings_that_cannot_be_read_are_told_to_who_asked(error: Exception) -> None:
    def fail() -> dict[str, Any]:
        raise error

    async with serving(reload=fail) as served:
        reply = await reload(served)
        assert (reply.status, reply.json) == (422, {"error": str(error)})
        assert not served.server.counters["faults"]


async def test_requests_are_counted_by_their_outcome() -> None:
    async with serving() as served:
        for path in ("/", "/metrics", "/nowhere", "/v1/calls/live?limit=x"):
            await served.ask(path)
        await served.send(b"garbage\r\n\r\n")
        counters = served.server.counters
        assert counters["requests-2xx"] == 2
        assert counters["requests-4xx"] == 3
        assert counters["bad-request"] == 1
        assert counters["accepted"] == 5


@both_loops
def test_pages_that_cost_time_leave_the_loop_to_others(run: Run) -> None:
    """Eight clients ask for a page of 20 ms at one moment; capture has the loop in between."""

    def slow() -> list[dict[str, Any]]:
        time.sleep(0.02)
        return []

    async def ask() -> None:
        async with serving() as served:
            served.calls = slow
            began = time.monotonic()
            asking = [asyncio.create_task(served.ask("/v1/calls/live")) for _ in range(8)]
            turns, probes = 0, 0
            while not all(task.done() for task in asking):
                probes += (await served.ask("/health/live")).status == 200
                await asyncio.sleep(0)
                turns += 1
            assert [task.result().status for task in asking] == [200] * 8
            assert time.monotonic() - began > 7 * 4 * 0.02  # three parts of the time for others
            assert probes == turns > 30  # all at once would leave room for one or two

    run(ask())


@both_loops
def test_cheap_requests_have_a_turn_of_the_loop_each(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of refusals must not keep the loop from capture either."""
    turn, turns = 0, []
    find = HttpServer._find

    def note(self: HttpServer, request: web.BaseRequest, page: Page | None) -> Any:
        turns.append(turn)
        return find(self, request, page)

    monkeypatch.setattr(HttpServer, "_find", note)

    async def ask() -> None:
        nonlocal turn
        async with serving(access=BOTH) as served:
            for path in ("/metrics", "/health/live"):
                turns.clear()
                asking = [asyncio.create_task(served.ask(path)) for _ in range(20)]
                while not all(task.done() for task in asking):
                    turn += 1
                    await asyncio.sleep(0)
                assert len(set(turns)) == len(turns) == 20

    run(ask())


@both_loops
def test_a_page_is_not_made_for_who_is_gone(run: Run) -> None:
    def slow() -> list[dict[str, Any]]:
        time.sleep(0.01)
        return []

    async def ask() -> None:
        async with serving() as served:
            served.calls = slow
            clients = [await served.connect() for _ in range(8)]
            for client in clients:
                client.writer.write(b"GET /v1/calls/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await served.until(lambda: bool(served.asked))
            for client in clients:
                await client.close()
            await served.until(lambda: not served.server.connections)
            assert (await served.ask("/v1/calls/live")).status == 200  # after those before it
            assert len(served.asked) < 6

    run(ask())


# -- hostile bytes

GARBAGE = [
    b"\0" * 1000,
    b"GET /metrics\r\n\r\n",
    b"HEP3\0\x10" + b"x" * 70_000,
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    b"GET / HTTP/1.1\nHost: localhost\n\n",
    b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 10_000 + b"\r\n\r\n",
    b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET //[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%zz%00%ff?%=%&&&= HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://[::1/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 1000,
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nxxxx",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9" + b"9" * 50 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab\r\n0\r\n\r\n",
    b"\r\n" * 1000,
    b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\nAuthorization: Bearer \xff\r\n\r\n",
]


@both_loops
@pytest.mark.parametrize("tokens", [False, True])
def test_garbage_instead_of_http_is_refused_without_a_word_in_the_log(
    run: Run, tokens: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        async with serving(access=BOTH if tokens else Access()) as served:

            async def send(garbage: bytes) -> None:
                said = await served.send(garbage)
                first = said.partition(b"\r\n")[0]
                assert b" 500 " not in first, garbage
                assert b"Traceback" not in said

            await asyncio.gather(*map(send, GARBAGE))
            assert (await served.ask("/health/live")).status == 200
            assert not served.server.counters["faults"]

    run(ask())
    assert [record for record in caplog.records if "valid token" not in record.message] == []


@given(st.lists(st.binary(max_size=300) | st.sampled_from(GARBAGE), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_stop_the_server(parts: list[bytes]) -> None:
    async def ask() -> None:
        async with serving() as served:
            client = await served.connect()
            for part in parts:
                client.writer.write(part)
                await asyncio.sleep(0)
            await client.rest(0.005)
            await client.close()
            assert (await served.ask("/health/live")).status == 200
            assert not served.server.counters["faults"]

    asyncio.run(ask())


@both_loops
def test_a_flood_of_hostile_connections_leaves_nothing(run: Run) -> None:
    async def ask() -> None:
        async with serving(limits=Limits(connections=32)) as served:
            before = descriptors()
            for number in range(1000):
                with socket.create_connection(served.address) as sock:
                    sock.sendall(GARBAGE[number % len(GARBAGE)][:2000])
                if number % 10 == 0:
                    await asyncio.sleep(0)
            await served.until(lambda: descriptors() <= before)
            assert (await served.ask("/health/live")).status == 200
            assert not served.server.counters["faults"]

    run(ask())


async def test_without_descriptors_it_asks_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "ACCEPT_AGAIN", 0.01)

    class Empty:
        """A listener of a process that may open no more files."""

        def __init__(self, real: socket.socket) -> None:
            self.real, self.failures = real, 3

        def accept(self) -> tuple[socket.socket, Any]:
            if self.failures:
                self.failures -= 1
                raise OSError(24, "Too many open files")
            return self.real.accept()

        def fileno(self) -> int:
            return self.real.fileno()

        def close(self) -> None:
            self.real.close()

    async with serving() as served:
        server = served.server
        (real,) = server._listeners
        empty: Any = Empty(real)
        loop = asyncio.get_running_loop()
        loop.remove_reader(real.fileno())
        server._listeners = [empty]
        loop.add_reader(real.fileno(), server._accept, empty)
        assert (await served.ask("/health/live")).status == 200
        assert served.server.counters["accept-failed"] == 3


# -- TLS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return certificate(tmp_path_factory.mktemp("tls"))


@both_loops
def test_pages_come_over_tls(run: Run, pair: tuple[str, str]) -> None:
    async def ask() -> None:
        async with serving(tls=lambda: server_context(*pair), reload=dict) as served:
            client = await served.connect()
            served.calls = lambda: [{"call_id": "x" * 2**20}]
            for path in (*PAGES, *PROBES):
                assert (await client.ask(path)).status == 200
            await client.close()
            host, port = served.address
            assert (await reload(served, Origin=f"https://{host}:{port}")).status == 200
            assert (await reload(served, Origin=f"http://{host}:{port}")).status == 403

    run(ask())


@both_loops
def test_plain_http_and_garbage_on_the_tls_port_are_only_counted(
    run: Run, pair: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        async with serving(tls=lambda: server_context(*pair)) as served:
            hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"x" * 300
            sent = [GET, b"\0" * 1000, hello, b"\x16\x03\x01\xff\xff" + b"y" * 70_000]
            for garbage in sent:
                await served.send(garbage, plain=True)
            await served.until(lambda: served.server.counters["closed-handshake"] == len(sent))
            assert (await served.ask("/health/live")).status == 200
            assert not served.server.counters["faults"]

    run(ask())
    assert not caplog.records


@both_loops
def test_a_handshake_that_does_not_end_takes_a_place_and_is_closed(
    run: Run, pair: tuple[str, str]
) -> None:
    async def ask() -> None:
        limits = Limits(connections=3, head_seconds=0.2, grace_seconds=0.05)
        async with serving(tls=lambda: server_context(*pair), limits=limits) as served:
            socks = [socket.create_connection(served.address) for _ in range(3)]
            for sock in socks:
                sock.send(b"\x16\x03\x01")
            await served.until(lambda: served.server.connections == 3)
            await asyncio.sleep(0.06)
            assert (await served.ask("/health/live")).status == 200
            assert served.server.counters["evicted-full"] == 1
            await served.until(lambda: not served.server.connections)
            closed = served.server.counters["closed-slow"]
            assert closed + served.server.counters["closed-handshake"] == 2
            for sock in socks:
                sock.close()

    run(ask())


@both_loops
def test_handshakes_in_progress_do_not_outlive_the_server(run: Run, pair: tuple[str, str]) -> None:
    async def ask() -> None:
        async with serving(tls=lambda: server_context(*pair)) as served:
            socks = [socket.create_connection(served.address) for _ in range(5)]
            await served.until(lambda: served.server.connections == 5)
            await served.server.close()
            await served.until(lambda: not served.server.connections)
            for sock in socks:
                sock.close()

    run(ask())


@both_loops
def test_a_new_certificate_is_shown_to_new_connections(run: Run, tmp_path: Path) -> None:
    paths = certificate(tmp_path, "first.example")

    async def shown(served: Served) -> bytes:
        client = await served.connect()
        found: bytes = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        await client.close()
        return found

    async def ask() -> None:
        async with serving(tls=lambda: server_context(*paths)) as served:
            old = await served.connect()
            first = await shown(served)
            Path(paths[1]).write_text("broken")  # noqa: ASYNC240
            with pytest.raises(TlsError):
                served.server.reload_tls()
            assert await shown(served) == first
            certificate(tmp_path, "second.example")
            assert await shown(served) == first
            served.server.reload_tls()
            assert await shown(served) != first
            assert (await old.ask("/health/live")).status == 200
            await old.close()

    run(ask())


async def test_a_certificate_that_is_not_there_is_said_before_anything_listens() -> None:
    server = Served(tls=lambda: server_context("/nowhere.pem", "/nowhere.key")).server
    with pytest.raises(TlsError):
        await server.open("127.0.0.1", 0)
    await server.close()


async def test_an_old_version_of_tls_is_refused(pair: tuple[str, str]) -> None:
    async with serving(tls=lambda: server_context(*pair)) as served:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError):  # noqa: PT011 -- either side may notice first
            await asyncio.open_connection(*served.address, ssl=context)
        await served.until(lambda: served.server.counters["closed-handshake"] == 1)


# -- listening


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use any port")
async def test_a_port_of_the_system_is_refused_in_one_line() -> None:
    with pytest.raises(HttpError, match="give --http a port above 1023"):
        await Served().server.open("127.0.0.1", 80)


@no_ipv6
@pytest.mark.parametrize("host", ["::1", "::"])
async def test_pages_come_over_ipv6(host: str) -> None:
    async with serving(host, reload=dict) as served:
        assert (await served.ask("/metrics")).status == 200
        assert (await reload(served, Authorization="")).status == 200
        probed = await served.ask("/health/live", Host="[2001:db8::1]:9080")
        assert probed.status == (200 if host == "::" else 421)


@both_loops
def test_localhost_is_reached_by_its_name(run: Run) -> None:
    async def ask() -> None:
        async with serving("localhost") as served:
            reply = await served.ask("/health/live", Host="localhost")
            assert reply.status == 200

    run(ask())


async def test_after_close_nobody_can_connect() -> None:
    async with serving() as served:
        client = await served.connect()
        assert (await client.ask("/health/live")).status == 200
        await served.server.close()
        await served.server.close()
        assert await client.gone()
        await client.close()
        with pytest.raises(ConnectionError):
            await served.connect()


@both_loops
def test_what_is_being_answered_at_the_end_is_answered(run: Run) -> None:
    async def ask() -> None:
        async with serving() as served:
            client = await served.connect()
            started: list[int] = []

            def calls() -> list[dict[str, Any]]:
                started.append(1)
                return [{"call_id": "x" * 2**23}]

            served.calls = calls
            asking = asyncio.create_task(client.ask("/v1/calls/live"))
            await served.until(lambda: bool(started))
            async with asyncio.timeout(LIMIT):
                await served.server.close()
            assert len((await asking).body) > 2**23
            await client.close()

    run(ask())
