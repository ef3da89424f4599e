import asyncio
import os
import socket
import time
from typing import Any

import pytest

from listeners import BUFFER, Run, both_families, both_loops, bytes_of, udp, until
from sipsidecar.edges.capture import CaptureError, UdpCapture
from sipsidecar.edges.capture.udp import PER_TURN


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
def test_a_receiver_that_fails_loses_one_datagram_and_is_counted_and_told_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with udp() as (source, sender, delivered):
            turns = []

            def deliver(*one: Any) -> None:
                delivered.append(one)
                if one[0] == b"bad":
                    raise RuntimeError("a bug")

            source._deliver = deliver
            source._after_turn = lambda: turns.append(len(delivered))
            for data in (b"bad", b"good", b"bad", b"last"):
                sender.send(data)
            await until(lambda: len(delivered) == 4)
            sender.send(b"next turn")
            await until(lambda: len(delivered) == 5)
            assert source.errors == 2
            assert turns[-1] == 5
            assert source.kernel() == (0, 0)

    run(main())
    (record,) = caplog.records
    assert record.getMessage() == "a datagram's handling broke (1 so far)"
    assert "a bug" in caplog.text


@both_loops
def test_a_turn_that_fails_does_not_make_the_socket_deaf(run: Run) -> None:
    async def main() -> None:
        async with udp() as (source, sender, delivered):

            def after_turn() -> None:
                raise RuntimeError("a bug")

            source._after_turn = after_turn
            for number in range(5):
                sender.send(b"%d" % number)
                await until(lambda: len(delivered) > number)  # noqa: B023
            assert source.errors >= 5
            sender.send(b"at the end")
            source.drain()
            assert delivered[-1][0] == b"at the end"

    run(main())


@both_loops
def test_a_socket_that_waited_for_us_gives_what_came_meanwhile(run: Run) -> None:
    async def main() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            ours.bind(("127.0.0.1", 0))
            for number in range(100):
                sender.sendto(b"%d" % number, ours.getsockname())
            async with udp(sock=ours) as (source, later, delivered):
                later.send(b"later")
                await until(lambda: len(delivered) == 101)
                assert later.getpeername() == ours.getsockname()
                assert not ours.getblocking()
                assert source.buffer_bytes >= BUFFER or source.advice
            assert ours.fileno() == -1
        assert bytes_of(delivered)[::100] == [b"0", b"later"]

    run(main())


async def test_drops_of_earlier_lives_of_a_socket_are_not_ours() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kept,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        kept.bind(("127.0.0.1", 0))
        address = kept.getsockname()
        before = drops = 0
        for life in range(3):  # as when systemd keeps the socket and we start again and again
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            source = UdpCapture(lambda *_: None)
            source.open("", 0, 1, kept.dup())
            assert source.drops_before == before
            assert source.kernel()[0] == 0
            for _ in range(100 * (life + 1)):
                sender.sendto(b"x" * 1000, address)
            drops = source.kernel()[0]
            assert 0 < drops <= 100 * (life + 1)
            before += drops
            source.drain()
            assert source.kernel() == (drops, 0)


async def test_an_inherited_socket_keeps_a_buffer_that_is_larger_than_ours_would_be() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kept:
        kept.bind(("127.0.0.1", 0))
        given = kept.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        source = UdpCapture(lambda *_: None)
        source.open("", 0, 4096, kept.dup())
        assert kept.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == given
        assert source.buffer_bytes == given // 2
        source.drain()


async def test_an_inherited_socket_that_is_not_udp_is_refused() -> None:
    with socket.socket() as other, pytest.raises(CaptureError, match="HEP UDP: the inherited"):
        UdpCapture(lambda *_: None).open("", 0, 4096, other)


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
