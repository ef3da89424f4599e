import asyncio
import contextlib
import fcntl
import functools
import itertools
import os
import resource
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certificates import Authority, Certificate
from listeners import (
    LIMIT,
    Run,
    both_families,
    both_loops,
    bytes_of,
    connected,
    frame,
    is_closed,
    peers,
    tcp,
    tls,
    until,
)
from sipsidecar.edges.capture import CaptureError, TcpCapture
from sipsidecar.edges.capture.tcp import (
    HANDSHAKES,
    HANDSHAKES_PER_ADDRESS,
    KEEP_ALIVE,
    PAUSE,
    PER_ADDRESS,
    _Listener,
)
from sipsidecar.tls import TlsError, server_context
from sipsidecar.wire import hep

Make = Callable[[], ssl.SSLContext]
HOSTILE = [
    b"HEP3\xff\xff",
    b"HEP3\x00\x00",
    b"HEP3\x00\x05garbage",
    b"H",
    b"EEP1\xff\xff" + bytes(900),
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\xff\xff\x01\x00",
    b"\x16\x03\x01\x00\x05hello",
    bytes(1400),
    b"HEP" * 400,
]


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


async def test_a_listener_that_was_drained_can_be_opened_again() -> None:
    async with tcp(idle_seconds=0.05) as (listener, _, delivered):
        await listener.drain()
        address = await listener.open("127.0.0.1", 0)
        async with connected(address) as (reader, writer):
            writer.write(frame(1) + b"HEP3")
            assert await is_closed(reader)
        assert len(delivered) == 1
        assert listener.counters["closed-slow"] == 1


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


@both_loops
@pytest.mark.parametrize("size", [10, 60_000])
def test_what_came_before_a_reset_is_heard_and_the_connection_forgotten(
    run: Run, size: int
) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered):
            with socket.create_connection(address) as sender:
                await peers(listener, 1)
                # all of it is there before the loop looks
                sender.send(frame(1, size) + frame(2, size))
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await until(lambda: listener.connections == 0)
            assert bytes_of(delivered) == [frame(1, size), frame(2, size)]

    run(main())


@both_loops
def test_one_connection_with_much_to_say_leaves_others_their_turn(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered):
            with socket.create_connection(address) as busy, socket.socket() as other:
                other.connect(address)
                await peers(listener, 2)
                busy.setblocking(False)
                # all of it is there before the loop looks
                sent = busy.send(frame(1, 10_000) * 400) // len(frame(1, 10_000))
                other.send(frame(2))
                assert sent > 20
                await until(lambda: len(delivered) == sent + 1)
            assert bytes_of(delivered).index(frame(2)) < sent / 2

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


# ------------------------------------------------------------------------------- who may connect


@both_loops
def test_an_address_that_is_not_allowed_is_closed_at_once_and_counted(run: Run) -> None:
    async def main() -> None:
        async with tcp(admits=lambda address: address == "127.0.0.2") as (listener, address, heard):
            async with connected(address, "127.0.0.1") as (reader, _):
                assert await is_closed(reader)
            async with connected(address, "127.0.0.2") as (_, writer):
                writer.write(frame(1))
                await until(lambda: len(heard) == 1)
            assert listener.counters == {"accepted": 1, "refused-not-allowed": 1}

    run(main())


@both_loops
def test_an_address_that_is_allowed_no_more_is_closed(run: Run) -> None:
    async def main() -> None:
        allowed = {"127.0.0.1", "127.0.0.2"}
        async with (
            tcp(admits=lambda address: address in allowed) as (listener, address, heard),
            connected(address, "127.0.0.1") as (gone, _),
            connected(address, "127.0.0.2") as (_, writer),
        ):
            await peers(listener, 2)
            allowed.remove("127.0.0.1")
            listener._sweep()
            assert await is_closed(gone)
            assert listener.counters["closed-not-allowed"] == 1
            writer.write(frame(1))
            await until(lambda: len(heard) == 1)

    run(main())


@both_loops
def test_a_receiver_that_fails_loses_one_packet_and_keeps_the_connection(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered), connected(address) as (_, writer):

            def deliver(*one: Any) -> None:
                delivered.append(one)
                if len(delivered) == 2:
                    raise RuntimeError("a bug")

            def after_turn() -> None:
                raise RuntimeError("another")

            listener._deliver = deliver
            writer.write(frame(1) + frame(2) + frame(3))
            await until(lambda: len(delivered) == 3)
            assert listener.errors == 1
            listener._after_turn = after_turn
            writer.write(frame(4))
            await until(lambda: listener.errors == 2)
            listener._after_turn = lambda: None
            writer.write(frame(5))
            await until(lambda: len(delivered) == 5)

    run(main())


@both_loops
def test_a_dead_node_s_connection_is_noticed_by_the_kernel(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, _), connected(address):
            (peer,) = await peers(listener, 1)
            assert peer._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            for option, value in KEEP_ALIVE.items():
                assert peer._socket.getsockopt(socket.IPPROTO_TCP, option) == value

    run(main())


# ---------------------------------------------------------------------------------------- accept


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process cannot open anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@both_loops
def test_a_lack_of_descriptors_makes_the_listener_pause_and_not_spin(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, delivered):
            with socket.socket() as sender:
                sender.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sender.connect(address)
                began = time.monotonic()
                with no_descriptors():
                    await until(lambda: listener.counters["accept-failed"] == 3)
                assert time.monotonic() - began > PAUSE + 2 * PAUSE - 0.01
                await until(lambda: listener.connections == 1)  # it waited in the kernel
                sender.send(frame(1))
                await until(lambda: len(delivered) == 1)
                assert listener.counters["accept-failed"] <= 4
                assert listener._listeners[0]._pause == PAUSE

    run(main())
    (told,) = caplog.messages
    assert told.startswith("HEP connections cannot be accepted; raise LimitNOFILE")


@both_loops
def test_drain_ends_a_pause_too(run: Run) -> None:
    async def main() -> None:
        async with tcp() as (listener, address, _):
            with socket.create_connection(address), no_descriptors():
                await until(lambda: listener.counters["accept-failed"] == 1)
            await listener.drain()
            assert listener.connections == 0

    run(main())


async def test_the_pause_of_a_listener_grows_to_a_second_and_a_peer_that_left_is_no_reason() -> (
    None
):
    pauses = []

    class Loop:
        def add_reader(self, *_: Any) -> None: ...
        def remove_reader(self, *_: Any) -> None: ...
        def call_later(self, seconds: float, _: Any) -> Any:
            pauses.append(seconds)

    class Socket:
        errors = [OSError(24, "x")] * 6 + [ConnectionAbortedError(), BlockingIOError()]

        def fileno(self) -> int:
            return 0

        def accept(self) -> Any:
            raise self.errors.pop(0)

    failures: list[OSError] = []
    listener = _Listener.__new__(_Listener)
    listener._loop, listener._socket = Loop(), Socket()  # type: ignore[assignment]
    listener._failed, listener._pause, listener._timer = failures.append, PAUSE, None
    for _ in range(7):
        listener._accept()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert len(failures) == 6


@both_loops
def test_connections_that_waited_at_an_inherited_socket_are_served(run: Run) -> None:
    async def main() -> None:
        delivered: list[Any] = []
        with socket.socket() as ours:
            ours.bind(("127.0.0.1", 0))
            ours.listen(7)
            with socket.create_connection(ours.getsockname()) as sender:
                sender.send(frame(1))
                listener = TcpCapture(
                    lambda *one: delivered.append(one), connections=1, idle_seconds=60.0
                )
                assert await listener.open("", 0, ours) == ours.getsockname()
                info = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                assert struct.unpack_from("I", info, 28)[0] == 7  # its maker's backlog stays
                await until(lambda: len(delivered) == 1)
                await listener.drain()
            assert ours.fileno() == -1

    run(main())


async def test_an_inherited_socket_that_is_not_tcp_is_refused(make_context: Make) -> None:
    listener = TcpCapture(lambda *_: None, connections=1, idle_seconds=60.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        with pytest.raises(CaptureError, match="HEP TCP: the inherited socket"):
            await listener.open("", 0, other)
        with pytest.raises(CaptureError, match="HEP TLS: the inherited socket"):
            await listener.open_tls("", 0, make_context, other)


# ------------------------------------------------------------------------------------------- TLS


@both_loops
def test_frames_over_tls_come_once_in_order_with_their_senders_address(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        frames = [frame(number, number * 37 % 65_000) for number in range(200)]
        async with (
            tls(make_context) as (listener, address, delivered),
            connected(address, "127.0.0.3", authority.client()) as (_, writer),
        ):
            writer.write(b"".join(frames))
            await until(lambda: len(delivered) == len(frames))
            assert (listener.connections, listener.handshakes) == (1, 0)
        assert bytes_of(delivered) == frames
        assert {one[3] for one in delivered} == {"127.0.0.3"}
        assert listener.counters["accepted"] == 1

    run(main())


@both_loops
def test_plain_and_tls_connections_share_one_limit(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        async with tls(make_context, connections=2) as (listener, address, delivered):
            plain = await listener.open("127.0.0.1", 0)
            context = authority.client()
            async with connected(plain) as (_, one), connected(address, None, context) as (_, two):
                await peers(listener, 2)
                for other in ((address, None, context), (plain,)):
                    async with connected(*other) as (reader, _):
                        assert await is_closed(reader)
                one.write(frame(1))
                await until(lambda: len(delivered) == 1)
                two.write(frame(2))
                await until(lambda: len(delivered) == 2)
            assert listener.counters == {"accepted": 2, "refused-full": 2}

    run(main())


@both_loops
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_with_client_authorities_only_their_agents_are_heard(
    run: Run,
    authority: Authority,
    server: Certificate,
    tmp_path: Path,
    version: ssl.TLSVersion,
) -> None:
    def context(own: Certificate | None) -> ssl.SSLContext:
        made = authority.client(own)
        made.maximum_version = version
        return made

    async def main() -> None:
        make = functools.partial(server_context, *server, authority.certificate)
        stranger = Authority(tmp_path, "stranger").issue("agent")
        async with tls(make) as (listener, address, delivered):
            for number, own in enumerate([None, stranger]):
                with contextlib.suppress(OSError):  # in TLS 1.3 the refusal comes afterwards
                    async with connected(address, None, context(own)) as (reader, writer):
                        writer.write(frame(1))
                        assert await is_closed(reader)
                await until(lambda: listener.counters["handshake-failed"] > number)  # noqa: B023
            async with connected(address, None, context(authority.issue("agent"))) as (_, writer):
                writer.write(frame(2))
                await until(lambda: len(delivered) == 1)
        assert bytes_of(delivered) == [frame(2)]
        assert listener.counters["accepted"] == 1
        assert listener.counters["handshake-failed"] == 2

    run(main())


@both_loops
def test_an_agent_that_only_writes_and_leaves_loses_nothing(
    run: Run, authority: Authority, make_context: Make
) -> None:
    frames = [frame(number, 1000) for number in range(300)]

    def agent(address: tuple[str, int]) -> None:
        with (
            socket.create_connection(address) as sock,
            authority.client().wrap_socket(sock, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(b"".join(frames))

    async def main() -> None:
        async with tls(make_context) as (listener, address, delivered):
            for count in range(1, 6):
                await asyncio.to_thread(agent, address)
                await until(lambda: listener.connections == 0)
                assert len(delivered) == count * len(frames)
            assert listener.counters == {"accepted": 5}

    run(main())


@both_loops
@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x00\xf8\x01\x00"])
def test_half_a_handshake_ends_by_time_out_and_others_do_not(
    run: Run, authority: Authority, make_context: Make, said: bytes
) -> None:
    async def main() -> None:
        async with (
            tls(make_context, handshake_seconds=0.1) as (listener, address, delivered),
            connected(address, None, authority.client()) as (_, writer),
            connected(address) as (slow, slow_writer),
        ):
            slow_writer.write(said)
            await until(lambda: listener.handshakes == 1)
            assert listener.connections == 1
            assert await is_closed(slow)
            writer.write(frame(1))
            await until(lambda: len(delivered) == 1)
            assert listener.handshakes == 0
            assert listener.counters == {"accepted": 1, "handshake-timeout": 1}

    run(main())


@both_loops
def test_one_address_cannot_take_all_handshakes(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        async with (
            tls(make_context) as (listener, address, delivered),
            contextlib.AsyncExitStack() as stack,
        ):
            for _ in range(HANDSHAKES_PER_ADDRESS):
                await stack.enter_async_context(connected(address, "127.0.0.1"))
            async with connected(address, "127.0.0.1") as (reader, _):
                assert await is_closed(reader)
            assert listener.counters == {"refused-handshakes": 1}
            async with connected(address, "127.0.0.2", authority.client()) as (_, writer):
                writer.write(frame(1))
                await until(lambda: len(delivered) == 1)

    run(main())


@both_loops
def test_when_all_handshakes_are_taken_the_oldest_gives_way_after_a_second(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        async with (
            tls(make_context) as (listener, address, delivered),
            contextlib.AsyncExitStack() as stack,
        ):
            first, _ = await stack.enter_async_context(connected(address, "127.0.0.100"))
            for number in range(HANDSHAKES - 1):
                source = f"127.0.0.{1 + number % 8}"
                await stack.enter_async_context(connected(address, source))
            await until(lambda: listener.handshakes == HANDSHAKES)
            async with connected(address, "127.0.0.99") as (reader, _):
                assert await is_closed(reader)
            assert listener.counters == {"refused-handshakes": 1}
            next(iter(listener._handshakes)).began -= 1.0
            async with connected(address, "127.0.0.99", authority.client()) as (_, writer):
                writer.write(frame(1))
                await until(lambda: len(delivered) == 1)
            assert await is_closed(first)
            assert listener.counters["handshake-timeout"] == 1

    run(main())


@both_loops
def test_who_is_not_allowed_gets_no_handshake(run: Run, make_context: Make) -> None:
    async def main() -> None:
        async with tls(make_context, admits=lambda _: False) as (listener, address, _):
            async with connected(address) as (reader, _):
                assert await is_closed(reader)
            assert listener.counters == {"refused-not-allowed": 1}

    run(main())


@both_loops
def test_tls_on_the_plain_port_and_hep_on_the_tls_port_are_told_apart(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        async with tls(make_context) as (listener, address, delivered):
            plain = await listener.open("127.0.0.1", 0)
            with pytest.raises(OSError):  # noqa: PT011 -- reset or end of file, by the loop
                async with connected(plain, None, authority.client()):
                    pass
            async with connected(address) as (reader, writer):
                writer.write(frame(1))
                assert await is_closed(reader)
            async with connected(address) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                assert await is_closed(reader)
        assert delivered == []
        assert listener.counters == {"accepted": 1, "tls-on-plain": 1, "plain-on-tls": 1} | {
            "handshake-failed": 1
        }

    run(main())


@both_loops
def test_garbage_inside_tls_is_closed_like_garbage_outside(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        async with tls(make_context) as (listener, address, _):
            async with connected(address, None, authority.client()) as (reader, writer):
                with contextlib.suppress(ConnectionError):
                    writer.write(b"GET / HTTP/1.1\r\n" * 5000)
                    await writer.drain()
                assert await is_closed(reader)
            await until(lambda: listener.counters["closed-garbage"] == 1)

            def breaks_the_protocol() -> None:
                with socket.create_connection(address) as sock:
                    secure = authority.client().wrap_socket(sock, server_hostname="127.0.0.1")
                    with socket.socket(fileno=secure.detach()) as raw:
                        raw.send(b"no record")
                        raw.settimeout(LIMIT)
                        with contextlib.suppress(ConnectionError):
                            while raw.recv(1000):
                                pass

            await asyncio.to_thread(breaks_the_protocol)
            assert listener.counters["closed-garbage"] == 2
            assert listener.connections == 0

    run(main())


@both_loops
def test_a_peer_that_does_not_read_its_handshake_is_closed(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(bytes(4096))
            async with tls(make_context) as (listener, _, _):
                listener._arrive_tls(ours, "127.0.0.1")
                out = ssl.MemoryBIO()
                with contextlib.suppress(ssl.SSLWantReadError):
                    authority.client().wrap_bio(
                        ssl.MemoryBIO(), out, server_hostname="127.0.0.1"
                    ).do_handshake()
                theirs.send(out.read())
                await until(lambda: listener.counters["closed-unread"] == 1)
                assert listener.handshakes == 0
                assert ours.fileno() == -1

    run(main())


@both_loops
def test_a_certificate_that_is_renewed_is_shown_to_the_next_peer(
    run: Run, authority: Authority, tmp_path: Path
) -> None:
    made = authority.issue("renewed")
    files = Certificate(str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem"))

    def install(certificate: Certificate) -> None:
        for source, target in zip(certificate, files, strict=True):
            Path(target).write_bytes(Path(source).read_bytes())

    async def name(address: tuple[str, int]) -> Any:
        async with connected(address, None, authority.client()) as (_, writer):
            return writer.get_extra_info("peercert")["subject"][0][0][1]

    async def main() -> None:
        install(authority.issue("first"))
        async with (
            tls(lambda: server_context(*files)) as (listener, address, delivered),
            connected(address, None, authority.client()) as (_, writer),
        ):
            assert await name(address) == "first"
            install(made)
            assert await name(address) == "first"
            listener.reload_tls()
            assert await name(address) == "renewed"
            install(Certificate(made.certificate, os.devnull))
            with pytest.raises(TlsError, match=r"key\.pem: holds no private key"):
                listener.reload_tls()
            assert await name(address) == "renewed"
            writer.write(frame(1))
            await until(lambda: len(delivered) == 1)

    run(main())


async def test_certificates_that_cannot_be_used_keep_the_listener_from_opening() -> None:
    listener = TcpCapture(lambda *_: None, connections=1, idle_seconds=60.0)
    listener.reload_tls()  # nothing to read again
    with pytest.raises(TlsError, match=r"^/no/such.pem: no such file$"):
        await listener.open_tls("127.0.0.1", 0, lambda: server_context("/no/such.pem", "x"))
    await listener.drain()


async def test_a_busy_tls_port_is_one_line_that_names_its_setting(make_context: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listener = TcpCapture(lambda *_: None, connections=1, idle_seconds=60.0)
        with pytest.raises(CaptureError, match=r"^[^\n]* give hep.tls_listen another ADDR:PORT$"):
            await listener.open_tls("127.0.0.1", other.getsockname()[1], make_context)
        await listener.drain()


@both_loops
def test_drain_takes_what_the_kernel_holds_of_a_tls_connection(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        frames = [frame(number, 1000) for number in range(100)]
        async with (
            tls(make_context) as (listener, address, delivered),
            connected(address, None, authority.client()) as (_, writer),
            connected(address),
        ):
            await until(lambda: (listener.connections, listener.handshakes) == (1, 1))
            (peer,) = listener._open
            asyncio.get_running_loop().remove_reader(peer._socket.fileno())
            writer.write(b"".join(frames))
            await writer.drain()
            await until(lambda: held_by(peer._socket) > 100_000)
            assert delivered == []
            await listener.drain()
            assert bytes_of(delivered) == frames
            assert listener.counters["drained"] == 2
            assert (listener.connections, listener.handshakes) == (0, 0)

    run(main())


def held_by(sock: socket.socket) -> int:
    """Bytes that the kernel holds for a socket."""
    found: int = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
    return found


# ----------------------------------------------------------------------------------------- storms


@both_loops
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=st.lists(st.binary(max_size=40) | st.sampled_from(HOSTILE), max_size=12))
def test_what_a_peer_makes_us_hold_is_bounded_and_nothing_breaks(
    run: Run, pieces: list[bytes]
) -> None:
    async def main() -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
        async with tcp(connections=8) as (listener, address, _):
            async with connected(address) as (_, writer):
                (peer,) = await peers(listener, 1)
                for piece in pieces:
                    peer._take(piece * 50)
                    assert peer.stream.pending < 65_536
                    if peer._socket is None:
                        break
                writer.write(b"x")
            await until(lambda: listener.connections == 0)
            assert listener.errors == 0
        assert failures == []

    run(main())


ENDS = (
    "accepted",
    "closed-garbage",
    "closed-slow",
    "cut-message",
    "handshake-failed",
    "handshake-timeout",
    "plain-on-tls",
    "tls-on-plain",
)
"""What a storm must have made happen."""


KINDS = list(
    itertools.product(
        ["plain", "tls"], [b"", "handshake", frame(0), *HOSTILE], ["close", "reset", "stay"]
    )
)


async def hostile(
    number: int, addresses: dict[str, tuple[str, int]], client: ssl.SSLContext
) -> socket.socket:
    """One hostile connection; returns its socket, which may be closed or not."""
    loop = asyncio.get_running_loop()
    port, said, end = cast("tuple[str, bytes | str, str]", KINDS[number % len(KINDS)])
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((f"127.0.1.{1 + number % 100}", 0))
    with contextlib.suppress(OSError):  # refused, or closed before it was done
        await loop.sock_connect(sock, addresses[port])
        if isinstance(said, str):  # a handshake, and then what is not of TLS
            await shake(sock, client)
            said = b"no record"
        await loop.sock_sendall(sock, said)
    if end == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if end != "stay":
        sock.close()
    return sock


async def shake(sock: socket.socket, client: ssl.SSLContext) -> None:
    """A whole TLS handshake, and a frame."""
    loop = asyncio.get_running_loop()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = client.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    await loop.sock_sendall(sock, outgoing.read())
    incoming.write(await asyncio.wait_for(loop.sock_recv(sock, 65_536), LIMIT))
    with contextlib.suppress(ssl.SSLError):  # the plain port does not speak it
        session.do_handshake()
        session.write(frame(1))
    await loop.sock_sendall(sock, outgoing.read())


@both_loops
def test_a_storm_of_hostile_connections_leaves_nothing_behind(
    run: Run, authority: Authority, make_context: Make
) -> None:
    async def main() -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
        async with tls(make_context, connections=64, idle_seconds=0.3, handshake_seconds=0.3) as (
            listener,
            secure,
            delivered,
        ):
            addresses = {"plain": await listener.open("127.0.0.1", 0), "tls": secure}
            client = authority.client()
            async with connected(addresses["plain"], "127.0.0.9") as (_, agent):
                await peers(listener, 1)
                before = descriptors()
                left: list[socket.socket] = []
                for start in range(0, 500, 25):
                    left += await asyncio.gather(
                        *(hostile(start + number, addresses, client) for number in range(25))
                    )
                    assert listener.connections <= 64
                    assert listener.handshakes <= HANDSHAKES
                    agent.write(frame(start))
                    await agent.drain()
                # half messages and half handshakes end by themselves
                await until(
                    lambda: (
                        not listener.handshakes
                        and all(peer.since is None for peer in listener._open)
                    )
                )
                for sock in left:
                    sock.close()
                await until(lambda: listener.connections == 1)
                assert descriptors() == before
                assert listener._per_address == {"127.0.0.9": 1}
                mine = [one[0] for one in delivered if one[3] == "127.0.0.9"]
                assert mine == [frame(start) for start in range(0, 500, 25)]
            assert set(ENDS) <= set(listener.counters)
            assert listener.errors == 0
        assert failures == []

    run(main())


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
