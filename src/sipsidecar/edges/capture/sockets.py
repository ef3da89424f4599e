"""Addresses and inherited descriptors to sockets that listen, and bugs of the receiver to counts."""

import errno
import logging
import socket
from collections.abc import Callable

from sipsidecar.tables import printable

Deliver = Callable[[bytes, float, int, str], None]
"""A HEP packet, monotonic seconds, wall-clock microseconds UTC, the sender's address."""

COMPLAIN_EVERY = 60.0
"""Seconds between two log lines about the same trouble."""

log = logging.getLogger("sipsidecar.capture")


class CaptureError(OSError):
    """A listener that cannot be had; the message is one line that says what to do."""


def bound(kind: socket.SocketKind, host: str, port: int, what: str, setting: str) -> socket.socket:
    """Return a socket of this kind on the address; `setting` is what gives it another one.

    `localhost` is 127.0.0.1. An IPv6 socket on `::` takes IPv4 too, whatever the system's default.
    """
    try:
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CaptureError(error.errno, f"{what} {host}:{port} {error.strerror}") from None
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    try:
        sock = socket.socket(family, kind)
    except OSError as error:
        raise _explain(error, host, port, what, setting) from None
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == socket.SOCK_STREAM:
            # connections of an earlier life in TIME_WAIT must not keep us from starting
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _explain(error, host, port, what, setting) from None
    return sock


def inherited(sock: socket.socket, kind: socket.SocketKind, what: str) -> socket.socket:
    """Return a socket that somebody else bound, such as systemd, ready to be read."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.type != kind:
        word = "datagrams" if kind == socket.SOCK_DGRAM else "streams"
        raise CaptureError(
            errno.ENOTSOCK, f"{what}: the inherited socket is not an IP socket of {word}"
        )
    sock.setblocking(False)
    return sock


def address_of(sock: socket.socket) -> tuple[str, int]:
    """Return host and port that a socket is bound to."""
    host, port = sock.getsockname()[:2]
    return host, port


def _explain(error: OSError, host: str, port: int, what: str, setting: str) -> CaptureError:
    if error.errno == errno.EADDRINUSE:
        why = f"is taken by another program; stop it, or give {setting} another ADDR:PORT"
    elif error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        why = f"is no address of this machine; give {setting} one that is"
    elif error.errno == errno.EACCES:
        why = f"may not be used by this user; give {setting} a port above 1023"
    else:
        why = error.strerror or str(error)
    return CaptureError(error.errno, f"{what} {host}:{port} {why}")


class Complaint:
    """One kind of trouble: counted each time, logged the first time and then once a minute."""

    def __init__(self, text: str, *, is_bug: bool) -> None:
        """Say what is broken; of a bug the traceback is logged too."""
        self.count = 0
        self._text = text
        self._is_bug = is_bug
        self._again = float("-inf")

    def __call__(self, now: float, error: Exception) -> None:
        """Count this one; `now` is monotonic seconds."""
        self.count += 1
        if now < self._again:
            return
        self._again = now + COMPLAIN_EVERY
        if self._is_bug:
            log.error("%s (%d so far)", self._text, self.count, exc_info=error)
        else:
            log.error("%s (%d so far): %s", self._text, self.count, printable(str(error)))
