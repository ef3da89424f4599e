import errno
import logging
import socket

import pytest

from listeners import no_ipv6
from sipsidecar.edges.capture import CaptureError
from sipsidecar.edges.capture.sockets import (
    COMPLAIN_EVERY,
    Complaint,
    address_of,
    bound,
    inherited,
)

UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
both_kinds = pytest.mark.parametrize("kind", [UDP, TCP])


def told(kind: socket.SocketKind, host: str, port: int) -> str:
    with pytest.raises(CaptureError) as caught:
        bound(kind, host, port, "HEP", "--hep")
    assert caught.value.strerror is not None
    assert "\n" not in caught.value.strerror
    return caught.value.strerror


@both_kinds
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_of_another_machine_is_refused_in_one_line(
    kind: socket.SocketKind, host: str
) -> None:
    assert told(kind, host, 0) == (
        f"HEP {host}:0 is no address of this machine; give --hep one that is"
    )


@both_kinds
def test_a_taken_port_is_refused_in_one_line(kind: socket.SocketKind) -> None:
    with bound(kind, "127.0.0.1", 0, "HEP", "--hep") as other:
        if kind == TCP:
            other.listen()
        port = address_of(other)[1]
        assert told(kind, "127.0.0.1", port) == (
            f"HEP 127.0.0.1:{port} is taken by another program; "
            "stop it, or give --hep another ADDR:PORT"
        )


def test_an_interface_that_is_not_there_is_refused_in_one_line() -> None:
    assert told(UDP, "fe80::1%nosuch0", 0).startswith("HEP fe80::1%nosuch0:0 ")


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EACCES, "may not be used by this user; give --hep a port above 1023"),
        (errno.EAFNOSUPPORT, "is no address of this machine; give --hep one that is"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_what_the_kernel_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    assert told(UDP, "127.0.0.1", 1) == f"HEP 127.0.0.1:1 {why}"


@both_kinds
def test_localhost_is_127_0_0_1_whatever_the_resolver_prefers(kind: socket.SocketKind) -> None:
    with bound(kind, "localhost", 0, "HEP", "--hep") as sock:
        assert address_of(sock)[0] == "127.0.0.1"


@no_ipv6
@both_kinds
def test_the_unspecified_ipv6_address_takes_ipv4_too(kind: socket.SocketKind) -> None:
    with bound(kind, "::", 0, "HEP", "--hep") as sock:
        port = address_of(sock)[1]
        with socket.socket(socket.AF_INET, kind) as client:
            if kind == TCP:
                sock.listen()
            client.connect(("127.0.0.1", port))
            client.send(b"x")
            sock.setblocking(True)
            sock.settimeout(10.0)
            if kind == UDP:
                peer = sock.recvfrom(1)[1][0]
            else:
                accepted, (peer, *_) = sock.accept()
                accepted.close()
    assert peer == "::ffff:127.0.0.1"


@both_kinds
def test_an_inherited_socket_keeps_its_address_and_does_not_block(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
        assert inherited(sock, kind, "HEP") is sock
        assert address_of(sock) == address
        assert not sock.getblocking()


@pytest.mark.parametrize(
    ("family", "kind", "wanted"),
    [
        (socket.AF_INET, TCP, UDP),
        (socket.AF_INET, UDP, TCP),
        (socket.AF_UNIX, UDP, UDP),
        (socket.AF_UNIX, TCP, TCP),
    ],
)
def test_an_inherited_socket_of_another_kind_is_refused_in_one_line(
    family: socket.AddressFamily, kind: socket.SocketKind, wanted: socket.SocketKind
) -> None:
    with (
        socket.socket(family, kind) as sock,
        pytest.raises(CaptureError, match="HEP: the inherited socket is not an IP socket"),
    ):
        inherited(sock, wanted, "HEP")


def test_a_trouble_is_counted_each_time_and_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    complaint = Complaint("it broke", is_bug=True)
    for second in range(int(COMPLAIN_EVERY) + 1):
        complaint(1000.0 + second, ValueError("boom"))
    assert complaint.count == COMPLAIN_EVERY + 1
    assert [record.getMessage() for record in caplog.records] == [
        "it broke (1 so far)",
        "it broke (61 so far)",
    ]
    assert all(record.exc_info for record in caplog.records)


def test_what_the_kernel_says_is_told_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Complaint("starved", is_bug=False)(0.0, OSError(errno.EMFILE, "too many\x1b[31m"))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"starved (1 so far): [Errno {errno.EMFILE}] too many\\x1b[31m"
    assert record.exc_info is None
