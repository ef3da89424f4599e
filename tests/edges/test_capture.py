import asyncio
import contextlib
import functools
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sipsidecar.edges.capture import PER_ADDRESS, PER_TURN, CaptureError, TcpCapture, UdpCapture
from sipsidecar.wire import hep

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Delivered = tuple[bytes, float, int, str]

both_loops = pytest.mark.parametrize(
    "run", [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


no_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
both_families = pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=no_ipv6)])
BUFFER = 1 << 20
LIMIT = 10.0
"""Seconds after which a test gives up."""


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.001)


def frame(number: int, size: int = 0) -> bytes:
    """A HEP3 frame; its content is the receiver's business, its length is the stream's."""
    body = b"%d:" % number + b"x" * size
    return b"HEP3" + (6 + len(body)).to_bytes(2, "big") + body


@contextlib.asynccontextmanager
async def udp(host: str = "127.0.0.1", size: int = BUFFER) -> AsyncIterator[Any]:
    delivered: list[Delivered] = []
    source = UdpCapture(lambda *one: delivered.append(one))
    address = source.open(host, 0, size)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((host, 0))
        sender.connect(address)
        try:
            yield source, sender, delivered
        finally:
            source.drain()


@contextlib.asynccontextmanager
async def tcp(
    connections: int = 8, idle_seconds: float = 60.0, host: str = "127.0.0.1"
) -> AsyncIterator[Any]:
    delivered: list[Delivered] = []
    listener = TcpCapture(
        lambda *one: delivered.append(one), connections=connections, idle_seconds=idle_seconds
    )
    address = await listener.open(host, 0)
    try:
        yield listener, address, delivered
    finally:
        await listener.drain()


@contextlib.asynccontextmanager
async def connected(address: tuple[str, int], source: str | None = None) -> AsyncIterator[Any]:
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(*address, local_addr=local)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closes, within the limit."""
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(1), LIMIT) == b""
    return True


def bytes_of(delivered: list[Delivered]) -> list[bytes]:
    return [one[0] for one in delivered]


# ------------------------------------------------------------------------------------------- UDP


@both_loops
@both_families
def test_each_datagram_comes_once_in_order_with_its_senders_address(run: Run, host: str) -> None:
    async def main() -> None:
        count = PER_TURN + 50
        async with udp(host) as (_, sender, delivered):
            for number in range(count):
                sender.send(b"%d" % number)
            await until(lambda: len(delivered) >= count)
            await asyncio.sleep(0)
        assert bytes_of(delivered) == [b"%d" % number for number in range(count)]
        assert {one[3] for one in delivered} == {host}

    run(main())


@both_loops
def test_datagrams_carry_the_loops_time_and_the_clock_on_the_wall(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = loop.time(), time.time_ns() // 1000
        async with udp() as (_, sender, delivered):
            sender.send(b"x")
            await until(lambda: bool(delivered))
        (_, now, received_at, _) = delivered[0]
        assert before[0] <= now <= loop.time()
        assert before[1] <= received_at <= time.time_ns() // 1000

    run(main())


@both_loops
@both_families
def test_the_longest_datagram_is_whole(run: Run, host: str) -> None:
    async def main() -> None:
        longest = os.urandom(65_507)
        async with udp(host) as (_, sender, delivered):
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            sender.send(longest)
            sender.send(b"next")
            await until(lambda: len(delivered) == 2)
        assert bytes_of(delivered) == [longest, b"next"]

    run(main())


@both_loops
def test_after_a_pause_the_next_datagram_still_comes(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with udp() as (source, sender, delivered):
            for number in range(5):
                sender.send(b"%d" % number)
                # the reader sleeps until the kernel wakes it
                await until(lambda: source._timer is None and len(delivered) > number)  # noqa: B023
            assert loop.is_running()
        assert bytes_of(delivered) == [b"0", b"1", b"2", b"3", b"4"]

    run(main())


@both_loops
def test_an_empty_datagram_is_delivered_too(run: Run) -> None:
    async def main() -> None:
        async with udp() as (_, sender, delivered):
            sender.send(b"")
            sender.send(b"next")
            await until(lambda: len(delivered) == 2)
        assert bytes_of(delivered) == [b"", b"next"]

    run(main())


@both_loops
def test_other_work_goes_on_while_datagrams_do_not_end(run: Run) -> None:
    async def main() -> None:
        async with udp() as (source, sender, delivered):
            flooding = True

            def deliver(*one: Any) -> None:
                delivered.append(one)
                if flooding:
                    sender.send(b"another for each")

            source._deliver = deliver
            for _ in range(PER_TURN + 50):
                sender.send(b"x")
            await until(lambda: len(delivered) > PER_TURN * 10)
            flooding = False

    run(main())


@both_loops
def test_a_receiver_that_fails_once_does_not_make_the_socket_deaf(run: Run) -> None:
    async def main() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
        async with udp() as (source, sender, delivered):

            def deliver(*one: Any) -> None:
                delivered.append(one)
                if one[0] == b"bad":
                    raise RuntimeError("a bug")

            source._deliver = deliver
            for data in (b"bad", b"good", b"bad", b"last"):
                sender.send(data)
            await until(lambda: len(delivered) == 4)
        assert [str(failure["exception"]) for failure in failures] == ["a bug", "a bug"]

    run(main())


@both_loops
def test_drain_reads_what_the_kernel_holds(run: Run) -> None:
    async def main() -> None:
        async with udp() as (source, sender, delivered):
            count = PER_TURN + 50
            for number in range(count):
                sender.send(b"%d" % number)
            assert delivered == []
            source.drain()
            assert bytes_of(delivered) == [b"%d" % number for number in range(count)]
            source.drain()
            assert len(delivered) == count

    run(main())


def test_drain_ends_although_a_sender_does_not() -> None:
    async def main() -> None:
        async with udp() as (source, sender, delivered):
            source._deliver = lambda *_: sender.send(b"one more")
            for _ in range(3):
                sender.send(b"x")
            source.drain()
            assert delivered == []

    asyncio.run(main())


@both_loops
def test_the_drop_counter_is_what_the_kernel_lost(run: Run) -> None:
    async def main() -> None:
        async with udp(size=4096) as (source, sender, delivered):
            assert source.kernel()[0] == 0
            sent = 0
            while not source.kernel()[0]:  # nothing is read while we do not wait
                for _ in range(100):
                    sender.send(b"x" * 1000)
                sent += 100
                assert sent < 1_000_000
            drops, used = source.kernel()
            assert 0 < used <= 2 * source.buffer_bytes
            await until(lambda: len(delivered) == sent - drops)
            assert source.kernel()[0] == drops
            source.drain()
            assert source.kernel() == (drops, 0)

    run(main())


async def test_a_receive_buffer_that_was_granted_is_read_back_and_needs_no_advice() -> None:
    async with udp(size=65_536) as (source, _, _):
        assert source.buffer_bytes >= 65_536
        assert source.kernel() == (0, 0)
        assert source.advice is None


async def test_a_receive_buffer_that_was_not_granted_comes_with_the_command_that_helps() -> None:
    more_than_any_kernel_gives = 1 << 30
    async with udp(size=more_than_any_kernel_gives) as (source, _, _):
        assert source.buffer_bytes < more_than_any_kernel_gives
        assert f"is {source.buffer_bytes} bytes, {1 << 30} were asked for" in source.advice
        assert source.advice.endswith(f"sysctl -w net.core.rmem_max={1 << 30}")


async def test_a_busy_udp_port_is_one_line_that_names_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(CaptureError) as caught:
            UdpCapture(lambda *_: None).open("127.0.0.1", port, BUFFER)
    assert caught.value.strerror == (
        f"HEP UDP 127.0.0.1:{port} is taken by another program; "
        "stop it, or give --hep another ADDR:PORT"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
async def test_an_address_of_another_machine_is_refused_in_one_line(host: str) -> None:
    with pytest.raises(CaptureError, match="no address of this machine") as caught:
        UdpCapture(lambda *_: None).open(host, 0, BUFFER)
    assert "\n" not in str(caught.value)
    listener = TcpCapture(lambda *_: None, connections=1, idle_seconds=1)
    with pytest.raises(CaptureError, match="no address of this machine") as caught:
        await listener.open(host, 0)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- TCP


@both_loops
@both_families
def test_frames_back_to_back_come_once_in_order_with_their_senders_address(
    run: Run, host: str
) -> None:
    async def main() -> None:
        frames = [frame(number, number % 700) for number in range(2000)]
        async with tcp(host=host) as (_, address, delivered), connected(address) as (_, writer):
            writer.write(b"".join(frames))
            await until(lambda: len(delivered) == len(frames))
        assert bytes_of(delivered) == frames
        assert {one[3] for one in delivered} == {host}

    run(main())


@both_loops
def test_the_longest_frame_is_whole(run: Run) -> None:
    async def main() -> None:
        longest = frame(1, 65_535 - 8)
        assert len(longest) == 65_535
        async with tcp() as (_, address, delivered), connected(address) as (_, writer):
            writer.write(longest + frame(2))
            await until(lambda: len(delivered) == 2)
        assert bytes_of(delivered) == [longest, frame(2)]

    run(main())


FRAMES = b"".join(frame(number, number) for number in range(6))


@both_loops
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.sets(st.integers(1, len(FRAMES) - 1), max_size=12))
def test_a_split_anywhere_changes_nothing(run: Run, cuts: set[int]) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered), connected(address) as (_, writer):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            (peer,) = await peers(listener, 1)

            def has_read(count: int) -> bool:
                read: int = sum(map(len, bytes_of(delivered))) + peer.stream.pending
                return read == count

            heard = 0
            for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(FRAMES)], strict=True):
                writer.write(FRAMES[start:end])
                heard += end - start
                # each piece is one read
                await until(functools.partial(has_read, heard))
        assert b"".join(bytes_of(delivered)) == FRAMES
        assert len(delivered) == 6

    run(main())


async def peers(listener: TcpCapture, count: int) -> list[Any]:
    await until(lambda: listener.connections == count)
    return list(listener._open)


@both_loops
def test_garbage_between_frames_is_skipped_and_counted(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered), connected(address) as (_, writer):
            writer.write(frame(1) + b"garbage" + frame(2))
            await until(lambda: len(delivered) == 2)
            writer.write(b"HEP1" + frame(3))
            await until(lambda: len(delivered) == 3)
        assert bytes_of(delivered) == [frame(1), frame(2), frame(3)]
        assert listener.counters["skipped-bytes"] == len(b"garbage" + b"HEP1")
        assert listener.counters["resynchronised"] == 2
        assert listener.counters["closed-garbage"] == 0

    run(main())


@both_loops
def test_who_speaks_no_hep_is_closed_after_64_kb(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered), connected(address) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n" * 4000)
            assert hep.MAX_GARBAGE > 4000 * 16
            await until(lambda: listener.counters["skipped-bytes"] > 60_000)
            assert listener.connections == 1
            with contextlib.suppress(ConnectionError):
                writer.write(b"GET / HTTP/1.1\r\n" * 200)
                await writer.drain()
            assert await is_closed(reader)
            assert listener.connections == 0
            assert delivered == []
        assert listener.counters["closed-garbage"] == 1

    run(main())


@both_loops
@pytest.mark.parametrize("held", [b"H", b"HEP3", frame(1)[:-1], b"gar"])
def test_who_holds_back_half_a_message_is_closed_and_others_are_not(run: Run, held: bytes) -> None:
    async def main() -> None:
        async with (
            tcp(idle_seconds=0.05) as (listener, address, delivered),
            connected(address) as (slow, slow_writer),
            connected(address) as (_, writer),
        ):
            writer.write(frame(1))
            slow_writer.write(held)
            assert await is_closed(slow)
            writer.write(frame(2))
            await until(lambda: len(delivered) == 2)
            assert listener.connections == 1
        assert listener.counters["closed-slow"] == 1
        assert listener.counters["cut-message"] == 1

    run(main())


@both_loops
def test_a_byte_now_and_then_does_not_hold_a_connection(run: Run) -> None:
    async def main() -> None:
        async with (
            tcp(idle_seconds=0.05) as (listener, address, _),
            connected(address) as (reader, writer),
        ):
            for byte in frame(1, 60_000):
                with contextlib.suppress(ConnectionError):
                    writer.write(bytes((byte,)))
                    await writer.drain()
                await asyncio.sleep(0.002)
                if listener.counters["closed-slow"]:
                    break
            assert await is_closed(reader)
            assert listener.counters["closed-slow"] == 1

    run(main())


@both_loops
def test_half_a_message_after_a_long_silence_has_its_own_time(run: Run) -> None:
    async def main() -> None:
        async with (
            tcp(idle_seconds=60.0) as (listener, address, delivered),
            connected(address) as (_, writer),
        ):
            writer.write(frame(1))
            await until(lambda: len(delivered) == 1)
            (peer,) = await peers(listener, 1)
            peer.last -= 3600.0  # the silence
            writer.write(frame(2)[:-1])
            await until(lambda: peer.stream.pending > 0)
            listener._sweep()
            writer.write(frame(2)[-1:])
            await until(lambda: len(delivered) == 2)
            assert listener.counters["closed-slow"] == 0

    run(main())


@both_loops
def test_a_quiet_connection_without_half_a_message_stays_open(run: Run) -> None:
    async def main() -> None:
        async with (
            tcp(idle_seconds=0.05) as (listener, address, delivered),
            connected(address) as (_, writer),
        ):
            writer.write(frame(1))
            await until(lambda: len(delivered) == 1)
            sweeps = 0
            sweep = listener._sweeper
            while sweeps < 4:  # which is longer than idle_seconds
                await until(lambda: listener._sweeper is not sweep)  # noqa: B023
                sweep = listener._sweeper
                sweeps += 1
            writer.write(frame(2))
            await until(lambda: len(delivered) == 2)

    run(main())


@both_loops
def test_one_connection_too_many_is_refused_and_counted(run: Run) -> None:
    async def main() -> None:
        async with tcp(connections=2) as (listener, address, delivered):
            async with connected(address) as (_, one), connected(address) as (_, two):
                await peers(listener, 2)
                async with connected(address) as (reader, _):
                    assert await is_closed(reader)
                one.write(frame(1))
                two.write(frame(2))
                await until(lambda: len(delivered) == 2)
            await until(lambda: listener.connections == 0)
            assert listener.counters == {"accepted": 2, "refused-full": 1}
            async with connected(address) as (_, again):
                again.write(frame(3))
                await until(lambda: len(delivered) == 3)

    run(main())


@both_loops
def test_the_longest_idle_connection_gives_way_to_a_new_one(run: Run) -> None:
    async def main() -> None:
        async with (
            tcp(connections=2, idle_seconds=30.0) as (listener, address, delivered),
            connected(address) as (idle, _),
            connected(address) as (_, busy),
        ):
            first, second = await peers(listener, 2)
            first.last -= 100.0
            second.last -= 29.0
            async with connected(address) as (_, new):
                assert await is_closed(idle)
                busy.write(frame(1))
                new.write(frame(2))
                await until(lambda: len(delivered) == 2)
            assert listener.counters["evicted-idle"] == 1
            assert listener.counters["refused-full"] == 0

    run(main())


@both_loops
def test_one_address_cannot_take_all_connections(run: Run) -> None:
    async def main() -> None:
        async with (
            tcp(connections=PER_ADDRESS * 2) as (listener, address, delivered),
            contextlib.AsyncExitStack() as stack,
        ):
            for _ in range(PER_ADDRESS):
                await stack.enter_async_context(connected(address, "127.0.0.1"))
            await peers(listener, PER_ADDRESS)
            async with connected(address, "127.0.0.1") as (reader, _):
                assert await is_closed(reader)
            assert listener.counters["refused-per-address"] == 1
            async with connected(address, "127.0.0.2") as (_, other):
                other.write(frame(1))
                await until(lambda: len(delivered) == 1)
            assert delivered[0][3] == "127.0.0.2"

    run(main())


@both_loops
def test_one_address_cannot_drive_out_the_quiet_connections_of_others(run: Run) -> None:
    async def main() -> None:
        async with (
            tcp(connections=PER_ADDRESS * 2) as (listener, address, delivered),
            connected(address, "127.0.0.2") as (_, quiet),
            contextlib.AsyncExitStack() as stack,
        ):
            (peer,) = await peers(listener, 1)
            peer.last -= 3600.0
            for _ in range(PER_ADDRESS):
                await stack.enter_async_context(connected(address, "127.0.0.1"))
            await peers(listener, PER_ADDRESS + 1)
            async with connected(address, "127.0.0.1") as (reader, _):
                assert await is_closed(reader)
            quiet.write(frame(1))
            await until(lambda: len(delivered) == 1)

    run(main())


@both_loops
def test_dead_connections_of_a_node_give_way_to_its_new_ones(run: Run) -> None:
    async def main() -> None:
        async with (
            tcp(connections=PER_ADDRESS * 2) as (listener, address, delivered),
            contextlib.AsyncExitStack() as stack,
        ):
            for _ in range(PER_ADDRESS):
                await stack.enter_async_context(connected(address, "127.0.0.1"))
            for peer in await peers(listener, PER_ADDRESS):
                peer.last -= 3600.0
            async with connected(address, "127.0.0.1") as (_, writer):
                writer.write(frame(1))
                await until(lambda: len(delivered) == 1)
            assert listener.counters["evicted-idle"] == 1

    run(main())


@both_loops
def test_several_connections_of_one_node_do_not_mix_their_bytes(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered), contextlib.AsyncExitStack() as stack:
            writers = [(await stack.enter_async_context(connected(address)))[1] for _ in range(4)]
            await peers(listener, 4)
            frames = [frame(number, 40) for number in range(4)]
            for position in range(0, len(frames[0]), 7):
                for writer, one in zip(writers, frames, strict=True):
                    writer.write(one[position : position + 7])
                    await writer.drain()
                await asyncio.sleep(0)
            await until(lambda: len(delivered) == 4)
        assert sorted(bytes_of(delivered)) == frames

    run(main())


@both_loops
def test_drain_takes_what_the_kernel_holds_then_closes(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered):
            with socket.create_connection(address) as sender:
                await peers(listener, 1)
                frames = [frame(number, 1000) for number in range(300)]
                sender.setblocking(False)
                sent = sender.send(b"".join(frames))  # nothing is read while we do not wait
                assert sent > 100_000
                assert delivered == []
                await listener.drain()
                assert bytes_of(delivered) == frames[: len(delivered)]
                assert sent - len(b"".join(bytes_of(delivered))) < len(frames[-1])
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.get_running_loop().sock_recv(sender, 1) == b""
            assert listener.connections == 0
            assert listener.counters["drained"] == 1

    run(main())


@both_loops
def test_after_drain_nobody_can_connect(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, _):
            await listener.drain()
            await listener.drain()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)

    run(main())


@both_loops
def test_a_connection_that_is_reset_is_forgotten_and_its_half_message_counted(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered):
            with socket.create_connection(address) as sender:
                sender.send(frame(1) + frame(2)[:-3])
                await until(lambda: len(delivered) == 1)
                linger = struct.pack("ii", 1, 0)
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await until(lambda: listener.connections == 0)
            assert listener.counters["cut-message"] == 1
            assert not listener._per_address

    run(main())


async def test_a_busy_tcp_port_is_one_line_that_names_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        listener = TcpCapture(lambda *_: None, connections=1, idle_seconds=1)
        with pytest.raises(CaptureError) as caught:
            await listener.open("127.0.0.1", port)
        await listener.drain()
    assert caught.value.strerror == (
        f"HEP TCP 127.0.0.1:{port} is taken by another program; "
        "stop it, or give --hep another ADDR:PORT"
    )
