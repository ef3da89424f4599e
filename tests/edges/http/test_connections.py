import asyncio
import socket

import pytest
from aiohttp import web

from asking import Client, Run, both_loops, descriptors, serving, slow_reader
from desks import Desk
from sipsidecar.edges.http import Access, Limits
from sipsidecar.edges.http.connections import (
    MAX_HEAD,
    MAX_UNASKED,
    Connection,
    Connections,
    Phase,
)

QUICK = Limits(
    connections=4,
    head_seconds=0.2,
    body_seconds=0.2,
    answer_seconds=0.3,
    idle_seconds=0.6,
    grace_seconds=0.05,
)
PATIENT = Limits(connections=4, grace_seconds=30.0)
GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 2\r\n\r\n"
)


async def trickle(client: Client, text: bytes) -> None:
    """Send a byte now and then for as long as the server takes them."""
    try:
        for number in range(len(text)):
            client.writer.write(text[number : number + 1])
            await client.writer.drain()
            await asyncio.sleep(0.02)
    except (ConnectionError, RuntimeError):  # uvloop says the latter of a closed transport
        pass


@both_loops
@pytest.mark.parametrize("start", [b"", b"G", b"GET / HT", GET[:-1], b"\x16\x03\x01"])
def test_a_head_that_does_not_end_is_closed(run: Run, start: bytes) -> None:
    async def ask() -> None:
        async with serving(limits=QUICK) as served:
            client = await served.connect()
            client.writer.write(start)
            assert await client.gone()
            await client.close()
            closed = served.server.counters["closed-slow"] + served.server.counters["bad-request"]
            assert closed == 1

    run(ask())


@both_loops
def test_a_byte_now_and_then_does_not_hold_a_connection(run: Run) -> None:
    async def ask() -> None:
        async with serving(limits=QUICK) as served:
            client = await served.connect()
            sending = asyncio.create_task(trickle(client, b"GET / HTTP/1.1\r\nX: " + b"y" * 500))
            began = asyncio.get_running_loop().time()
            assert await client.gone()
            assert asyncio.get_running_loop().time() - began < 2.0
            await sending
            await client.close()
            assert served.server.counters["closed-slow"] == 1

    run(ask())


@both_loops
def test_a_second_request_that_does_not_end_is_closed_too(run: Run) -> None:
    async def ask() -> None:
        async with serving(limits=QUICK) as served:
            client = await served.connect()
            assert (await client.ask("/health/live")).status == 200
            client.writer.write(GET[:10])
            assert await client.gone()
            await client.close()
            assert served.server.counters["closed-slow"] == 1

    run(ask())


@both_loops
def test_a_body_that_does_not_come_is_not_waited_for(run: Run) -> None:
    async def ask() -> None:
        limits = Limits(body_seconds=0.2)
        async with serving(limits=limits, reload=dict) as served:
            client = await served.connect()
            client.writer.write(POST + b"{")
            assert await client.gone()
            await client.close()
            assert served.server.counters["closed-slow"] == 1

    run(ask())


@both_loops
def test_an_idle_connection_stays_for_a_while_and_then_goes(run: Run) -> None:
    async def ask() -> None:
        async with serving(limits=QUICK) as served:
            client = await served.connect()
            for _ in range(3):
                assert (await client.ask("/health/live")).status == 200
                await asyncio.sleep(0.3)  # longer than a head may take
            assert served.server.counters["accepted"] == 1
            assert await client.gone()
            await client.close()
            assert served.server.counters["closed-idle"] == 1

    run(ask())


@both_loops
def test_a_client_that_does_not_read_its_answer_is_closed(run: Run) -> None:
    async def ask() -> None:
        async with serving(limits=QUICK) as served:
            served.calls = lambda: [{"call_id": "x" * 2**24}]
            with slow_reader(served.address) as sock:
                sock.send(b"GET /v1/calls/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
                before = descriptors()
                await served.until(lambda: served.server.counters["closed-slow"] == 1)
                assert not served.server.connections
                await served.until(lambda: descriptors() == before)

    run(ask())


@both_loops
@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"])
def test_a_client_that_reads_nothing_at_the_end_does_not_stay(run: Run, closing: bytes) -> None:
    """What is left of the answer fits the transport's buffer, so that nobody waits for it."""

    async def ask() -> None:
        async with serving(limits=QUICK) as served:
            served.calls = lambda: [{"call_id": "x" * 50_000}]
            asked = b"GET /v1/calls/live HTTP/1.1\r\nHost: localhost\r\n" + closing + b"\r\n"
            with slow_reader(served.address) as sock:
                for _ in range(200):
                    try:
                        sock.send(asked)
                    except OSError:
                        break
                    await asyncio.sleep(0)
                await served.until(lambda: not served.server.connections)

    run(ask())


@both_loops
def test_more_connections_than_the_limit_are_refused_and_counted(run: Run) -> None:
    async def ask() -> None:
        async with serving(limits=PATIENT) as served:
            held = [await served.connect() for _ in range(4)]
            for client in held:
                client.writer.write(GET[:10])
            await served.until(lambda: served.server.connections == 4)
            for _ in range(3):
                assert await served.send(GET) == b""
            assert served.server.counters["refused-full"] == 3
            for client in held:
                client.writer.write(GET[10:])
                assert (await client.reply()).status == 200
                await client.close()

    run(ask())


@both_loops
def test_an_idle_connection_makes_room_for_a_new_one(run: Run) -> None:
    async def ask() -> None:
        async with serving(limits=PATIENT) as served:
            held = [await served.connect() for _ in range(4)]
            for client in held[:3]:
                client.writer.write(GET[:10])
            assert (await held[3].ask("/health/live")).status == 200
            assert (await served.ask("/health/live")).status == 200
            assert await held[3].gone()
            assert served.server.counters["evicted-full"] == 1
            for client in held:
                await client.close()

    run(ask())


@both_loops
def test_who_loses_nothing_goes_before_who_is_slow(run: Run) -> None:
    async def ask() -> None:
        limits = Limits(connections=3, grace_seconds=0.01)
        async with serving(limits=limits) as served:
            slow = [await served.connect() for _ in range(2)]
            for client in slow:
                client.writer.write(GET[:10])
            await served.until(lambda: served.server.connections == 2)
            await asyncio.sleep(0.05)
            idle = await served.connect()
            assert (await idle.ask("/health/live")).status == 200
            assert (await served.ask("/health/live")).status == 200
            assert await idle.gone()
            assert served.server.counters["evicted-full"] == 1
            for client in slow:
                client.writer.write(GET[10:])
                assert (await client.reply()).status == 200
            for client in (*slow, idle):
                await client.close()

    run(ask())


@both_loops
@pytest.mark.parametrize(("askers", "stays"), [(1, True), (2, True), (3, False)])
def test_a_switch_keeps_its_place_while_it_asks_nothing_unless_most_places_are_such(
    run: Run, askers: int, stays: bool
) -> None:
    async def ask() -> None:
        async with serving(limits=PATIENT, admission=Desk()) as served:
            held = [await served.connect() for _ in range(4)]
            for client in held[:askers]:
                assert (await client.ask("/v1/admission?call_id=1")).status == 200
            for client in held[askers:]:
                client.writer.write(GET[:10])
            await served.until(lambda: served.server.connections == 4)
            newcomer = await served.connect()
            if stays:
                assert await newcomer.gone()
                assert (await held[0].ask("/v1/admission?call_id=1")).status == 200
            else:
                assert (await newcomer.ask("/health/live")).status == 200
                assert await held[0].gone()
            assert served.server.counters["refused-full" if stays else "evicted-full"] == 1
            for client in (*held, newcomer):
                await client.close()

    run(ask())


@both_loops
def test_a_stranger_who_may_not_ask_keeps_no_place(run: Run) -> None:
    async def ask() -> None:
        access = Access(["read-read-read-00"], ["operate-operate-0"])
        async with serving(limits=PATIENT, admission=Desk(), access=access) as served:
            held = [await served.connect() for _ in range(4)]
            assert (await held[0].ask("/v1/admission?call_id=1")).status == 401
            assert (await served.ask("/health/live")).status == 200
            assert await held[0].gone()
            for client in held:
                await client.close()

    run(ask())


@both_loops
def test_probes_get_in_while_slow_clients_hold_every_place(run: Run) -> None:
    async def ask() -> None:
        slow = Limits(connections=16, grace_seconds=0.05)
        async with serving(limits=slow) as served:
            served.calls = lambda: [{"call_id": "x" * 2**24}]
            hanging = [await served.connect() for _ in range(8)]
            for client in hanging:
                client.writer.write(GET[:-2])
            readers = [slow_reader(served.address) for _ in range(8)]
            for sock in readers:
                sock.send(b"GET /v1/calls/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await served.until(lambda: served.server.connections == 16)
            await asyncio.sleep(0.1)  # past the grace
            for _ in range(10):
                assert (await served.ask("/health/live")).status == 200
            assert served.server.counters["evicted-full"] > 0
            assert not served.server.counters["refused-full"]
            for client in hanging:
                await client.close()
            for sock in readers:
                sock.close()

    run(ask())


@both_loops
def test_bytes_for_clients_that_do_not_read_are_bounded(run: Run) -> None:
    async def ask() -> None:
        async with serving() as served:
            served.calls = lambda: [{"call_id": "x" * 10 * 2**20}]
            readers = [slow_reader(served.address) for _ in range(4)]
            for sock in readers:
                sock.send(b"GET /v1/calls/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await served.until(lambda: served.server.counters["refused-busy"] == 2)
            reply = await served.ask("/v1/ledger")
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert (await served.ask("/health/live")).status == 200
            for sock in readers:
                sock.close()
            await served.until(lambda: not served.server.connections)
            assert (await served.ask("/v1/ledger")).status == 200

    run(ask())


@both_loops
@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"X-Many: 0123456789\r\n" * 2000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: %s\r\n" % (n, b"y" * 4000) for n in range(9)),
    ],
)
def test_a_head_of_too_many_bytes_is_closed_before_it_ends(run: Run, head: bytes) -> None:
    async def ask() -> None:
        assert len(head) > MAX_HEAD
        async with serving() as served:
            client = await served.connect()
            client.writer.write(head)
            assert await client.gone()
            await client.close()
            assert served.server.counters["closed-big"] + served.server.counters["bad-request"] == 1

    run(ask())


@both_loops
def test_a_body_that_nobody_reads_is_taken_only_up_to_a_bound(run: Run) -> None:
    async def ask() -> None:
        async with serving() as served:
            client = await served.connect()
            client.writer.write(
                b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
            )
            assert (await client.reply()).status == 200
            client.writer.write(b"x" * (2 * MAX_UNASKED))
            assert await client.gone()
            await client.close()
            await served.until(lambda: not served.server.connections)

    run(ask())


@both_loops
def test_many_requests_at_once_are_answered_in_their_order(run: Run) -> None:
    async def ask() -> None:
        async with serving() as served:
            client = await served.connect()
            paths = ["/health/live", "/v1/ledger", "/nowhere"] * 30
            for path in paths:
                client.writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
            statuses = [(await client.reply()).status for _ in paths]
            assert statuses == [200, 200, 404] * 30
            await client.close()

    run(ask())


@both_loops
def test_half_closed_reset_and_vanished_clients_leave_nothing(run: Run) -> None:
    async def ask() -> None:
        async with serving() as served:
            for start in (b"", GET[:9], GET, GET * 50, POST):
                for how in ("reset", "half", "close"):
                    with socket.create_connection(served.address) as sock:
                        sock.sendall(start)
                        if how == "reset":
                            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + bytes(7))
                        elif how == "half":
                            sock.shutdown(socket.SHUT_WR)
                            await asyncio.sleep(0.01)
            await served.until(lambda: not served.server.connections)
            assert not served.server.counters["faults"]

    run(ask())


@both_loops
def test_closing_does_not_wait_for_slow_clients(run: Run) -> None:
    async def ask() -> None:
        async with serving() as served:
            served.calls = lambda: [{"call_id": "x" * 2**24}]
            client: Client = await served.connect()
            client.writer.write(GET[:10])
            sock = slow_reader(served.address)
            sock.send(b"GET /v1/calls/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await served.until(lambda: served.server.connections == 2)
            await asyncio.sleep(0.1)
            began = asyncio.get_running_loop().time()
            await served.server.close()
            assert asyncio.get_running_loop().time() - began < 3.0
            assert await client.gone()
            await client.close()
            sock.close()

    run(ask())


def test_the_defaults_are_those_of_the_settings() -> None:
    assert Limits().connections == 256


class Wire(asyncio.Transport):
    """A transport that only remembers that it was aborted."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        pass


class Lone:
    """One connection without a socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.faults: list[BaseException] = []
        self.taken = 0

        def take(_: web.RequestHandler, data: bytes) -> None:
            self.taken += len(data)

        monkeypatch.setattr(web.RequestHandler, "data_received", take)
        self.pool = Connections(Limits(), lambda: self.now, self.faults.append)
        self.sock = socket.socket()
        manager = web.Server(self.never)
        loop = asyncio.get_running_loop()
        self.connection = Connection(self.pool, manager, loop, self.sock)
        self.pool.add(self.connection)
        self.wire = Wire()

    async def never(self, _: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    async def made(self) -> Connection:
        self.connection.hand_over().close()
        self.connection.connection_made(self.wire)
        await asyncio.sleep(0)
        return self.connection

    async def end(self) -> None:
        self.connection.connection_lost(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_head_that_ends_between_two_reads_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cut in range(1, 4):
        one = Lone(monkeypatch)
        connection = await one.made()
        head = b"x" * (MAX_HEAD - 10) + b"\r\n\r\n"
        connection.data_received(head[:-cut])
        connection.data_received(head[-cut:])
        connection.data_received(b"y" * 2 * MAX_HEAD)
        assert not one.wire.aborted
        assert one.taken == len(head) + 2 * MAX_HEAD
        await one.end()


async def test_a_head_that_does_not_end_is_taken_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Lone(monkeypatch)
    connection = await one.made()
    for _ in range(MAX_HEAD + 100):
        connection.data_received(b"x")
    assert one.wire.aborted
    assert one.taken == MAX_HEAD
    assert one.pool.counters == {"accepted": 1, "closed-big": 1}
    await one.end()


@pytest.mark.parametrize("phase", [Phase.BODY, Phase.ANSWER])
async def test_what_comes_during_an_answer_is_taken_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    one = Lone(monkeypatch)
    connection = await one.made()
    for _ in range(3):
        connection.enter(phase)
        connection.data_received(b"x" * MAX_UNASKED)
        assert not one.wire.aborted
    connection.data_received(b"x")
    assert one.wire.aborted
    await one.end()


async def test_a_parser_that_breaks_closes_the_connection_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Lone(monkeypatch)
    connection = await one.made()

    def fail(*_: object) -> None:
        raise ValueError("Invalid IPv6 URL")

    monkeypatch.setattr(web.RequestHandler, "data_received", fail)
    connection.data_received(b"x")
    assert one.wire.aborted
    assert one.pool.counters["closed-garbage"] == 1
    assert not one.faults
    await one.end()


async def test_a_connection_dropped_before_the_loop_had_it_closes_its_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Lone(monkeypatch)
    task = asyncio.create_task(asyncio.sleep(60))
    one.connection.connecting = task
    one.connection.drop("evicted-full")
    assert one.sock.fileno() == -1
    assert not one.pool
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_connection_whose_place_is_gone_when_it_is_made_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Lone(monkeypatch)
    one.pool.discard(one.connection)
    await one.made()
    assert one.wire.aborted
    one.connection.data_received(b"GET")
    assert not one.taken
    await one.end()


@pytest.mark.parametrize(
    ("phase", "seconds", "why"),
    [
        (Phase.HEAD, 10.0, "closed-slow"),
        (Phase.BODY, 10.0, "closed-slow"),
        (Phase.ANSWER, 30.0, "closed-slow"),
        (Phase.IDLE, 75.0, "closed-idle"),
    ],
)
async def test_each_phase_has_its_time(
    monkeypatch: pytest.MonkeyPatch, phase: Phase, seconds: float, why: str
) -> None:
    one = Lone(monkeypatch)
    connection = await one.made()
    one.now = 100.0
    connection.enter(phase)
    one.now += seconds
    one.pool.sweep()
    assert not one.wire.aborted
    one.now += 0.1
    one.pool.sweep()
    one.pool.sweep()
    assert one.wire.aborted
    assert one.pool.counters[why] == 1
    await one.end()


async def test_a_fault_that_aiohttp_would_log_is_told_to_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Lone(monkeypatch)
    error = ValueError("x")
    one.connection.log_exception("Unhandled exception", exc_info=error)
    one.connection.log_exception("Missing return statement on request handler")
    assert one.faults == [error]
    one.connection.forget()
