import contextlib
import ssl
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from certificates import Authority
from sipsidecar.edges.capture.session import TlsSession

Make = Callable[[], ssl.SSLContext]
few = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Client:
    """The other side of a session, without a connection too."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    def shake(self, session: TlsSession) -> None:
        for _ in range(3):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            assert session.receive(self.outgoing.read()) == b""
            self.incoming.write(session.to_send())
        assert session.ready


def hello(context: ssl.SSLContext) -> bytes:
    client = Client(context)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    return client.outgoing.read()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_a_peer_says_comes_out_in_clear(
    authority: Authority, make_context: Make, version: ssl.TLSVersion
) -> None:
    context = authority.client()
    context.maximum_version = version
    client, session = Client(context), TlsSession(make_context())
    client.shake(session)
    text = bytes(range(256)) * 400
    client.tls.write(text)
    assert session.receive(client.outgoing.read()) == text
    assert (session.ended, session.failed) == (False, False)


@few
@given(cuts=st.sets(st.integers(1, 5000), max_size=20))
def test_a_split_anywhere_changes_nothing(
    authority: Authority, make_context: Make, cuts: set[int]
) -> None:
    client, session = Client(authority.client()), TlsSession(make_context())
    said = b""
    sent = 0
    for turn in range(5):  # the handshake's two flights, and then something to say
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        if turn >= 2:
            client.tls.write(b"%d" % turn * 1000)
        data = client.outgoing.read()
        places = sorted(cut - sent for cut in cuts if sent < cut < sent + len(data))
        for start, end in zip([0, *places], [*places, len(data)], strict=True):
            said += session.receive(data[start:end])
            client.incoming.write(session.to_send())
        sent += len(data)
    assert said == b"2" * 1000 + b"3" * 1000 + b"4" * 1000


def test_a_peer_that_says_goodbye_has_ended_and_not_failed(
    authority: Authority, make_context: Make
) -> None:
    client, session = Client(authority.client()), TlsSession(make_context())
    client.shake(session)
    client.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    assert session.receive(client.outgoing.read()) == b"last"
    assert (session.ended, session.failed) == (True, False)
    assert session.receive(b"more") == b""


def test_what_came_whole_before_garbage_is_not_lost(
    authority: Authority, make_context: Make
) -> None:
    client, session = Client(authority.client()), TlsSession(make_context())
    client.shake(session)
    client.tls.write(b"good")
    assert session.receive(client.outgoing.read() + b"garbage" * 9) == b"good"
    assert (session.ended, session.failed, session.ready) == (True, True, True)


@few
@given(data=st.binary(max_size=400))
@example(b"GET / HTTP/1.1\r\n\r\n")
@example(b"HEP3\x00\x06")
@example(b"\x16\x03\x01\xff\xff" + bytes(400))
@example(b"\x80\x2e\x01\x00\x02")
def test_any_bytes_give_nothing_and_raise_nothing(make_context: Make, data: bytes) -> None:
    session = TlsSession(make_context())
    assert session.receive(data) == b""
    assert not session.ready
    session.to_send()


@few
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_hello_with_one_byte_changed_raises_nothing(
    authority: Authority, make_context: Make, place: int, value: int
) -> None:
    said = bytearray(hello(authority.client()))
    said[place % len(said)] = value
    session = TlsSession(make_context())
    assert session.receive(bytes(said)) == b""
    session.to_send()
    assert session.receive(bytes(50)) == b""


def test_half_a_record_of_any_length_costs_no_more_than_a_record(
    authority: Authority, make_context: Make
) -> None:
    client, session = Client(authority.client()), TlsSession(make_context())
    client.shake(session)
    client.tls.write(b"x" * 16_000)
    data = client.outgoing.read()
    for byte in data[:-1]:
        assert session.receive(bytes((byte,))) == b""
    assert session._in.pending <= len(data) <= 16 * 1024 + 300
