import contextlib
import socket
from collections.abc import Iterator

import pytest

from live.programs import free_port
from overload.relay import Relay


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as one:
        yield one


def place() -> tuple[str, int]:
    return "127.0.0.1", free_port("127.0.0.1")


def test_datagrams_pass_both_ways_until_the_wire_is_cut(relay: Relay) -> None:
    with contextlib.ExitStack() as stack:
        far, near = (
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)
        )
        far.bind(("127.0.0.1", 0))
        listen = place()
        relay.udp(listen, far.getsockname())
        for sock in (far, near):
            sock.settimeout(5)
        near.sendto(b"there", listen)
        data, back = far.recvfrom(100)
        assert data == b"there"
        far.sendto(b"back", back)
        assert near.recv(100) == b"back"
        relay.cut()
        far.settimeout(0.2)
        near.sendto(b"lost", listen)
        with pytest.raises(TimeoutError):
            far.recv(100)
        relay.cut(now=False)
        far.settimeout(5)
        near.sendto(b"again", listen)
        assert far.recv(100) == b"again"


def test_a_cut_connection_stays_open_and_brings_nothing(relay: Relay) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(5)
        listen = place()
        relay.tcp(listen, server.getsockname())
        near = stack.enter_context(socket.create_connection(listen, 5))
        far = stack.enter_context(server.accept()[0])
        far.settimeout(5)
        near.sendall(b"one")
        assert far.recv(100) == b"one"
        relay.cut()
        far.settimeout(0.2)
        near.sendall(b"two")
        with pytest.raises(TimeoutError):
            far.recv(100)
        relay.cut(now=False)
        far.settimeout(5)
        assert far.recv(100) == b"two"
