"""What systemd hands to a service: where to report to, and sockets that it already opened.

Protocols: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3). Their variables are taken out of
the environment, so that PostgreSQL and other children never take them for theirs.
"""

import contextlib
import os
import re
import socket
import stat
import time
from collections.abc import MutableMapping
from typing import Self

from sipsidecar.tables import clip

FIRST_DESCRIPTOR = 3
MAX_DESCRIPTORS = 64
"""More sockets than any unit file of ours has: a wrong number must not be walked to its end."""
MAX_STATUS = 200
_LONGEST_PATH = 107  # bytes of a socket's path, sockaddr_un less its end


class SystemdError(OSError):
    """A socket that cannot be used; the message is one line that says what to do."""


class Notifier:
    """Reports to the service manager; without one every method does nothing.

    Nothing here blocks or raises: a manager that is away must not stop a capture.
    """

    def __init__(self, address: str | None = None, watchdog_interval: float | None = None) -> None:
        self.watchdog_interval = watchdog_interval
        """Seconds between two pings; None when nobody waits for any."""
        self.failures = 0
        """Reports that could not be sent."""
        self._address = _socket_address(address)
        self._socket: socket.socket | None = None
        self._owed: tuple[str, ...] = ()
        if self._address is not None:
            # One for the whole run: a process without free descriptors can still report.
            with contextlib.suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], pid: int | None = None) -> Self:
        """Read and remove NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        address = environ.pop("NOTIFY_SOCKET", None)
        limit = environ.pop("WATCHDOG_USEC", "")
        whose = environ.pop("WATCHDOG_PID", "")
        ours = not whose or whose == str(os.getpid() if pid is None else pid)
        interval = None
        if ours and address and re.fullmatch("[0-9]{1,18}", limit) and int(limit):
            interval = int(limit) / 2 / 1_000_000
        return cls(address, interval)

    @property
    def present(self) -> bool:
        """Whether there is a manager to report to."""
        return self._socket is not None

    def ready(self, status: str = "") -> bool:
        """Say that the start, or a reload, is done."""
        return self._state("READY=1", *_status(status))

    def reloading(self) -> bool:
        """Say that settings are read again; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._state("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str = "") -> bool:
        """Say that the end has begun."""
        return self._state("STOPPING=1", *_status(status))

    def status(self, text: str) -> bool:
        """Show one line in `systemctl status`."""
        return self._send(*_status(text))

    def ping(self) -> bool:
        """Say that the work goes on; also says again what could not be said before."""
        return self._send(*(("WATCHDOG=1",) if self.watchdog_interval else ()))

    def close(self) -> None:
        """Report no more."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _state(self, *lines: str) -> bool:
        self._owed = lines  # the newest state is the only one that is true
        return self._send()

    def _send(self, *lines: str) -> bool:
        lines = (*self._owed, *lines)
        if self._socket is None or not lines:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address or "")
        except OSError:  # gone, or its queue is full; a state is said again with the next ping
            self.failures += 1
            return False
        self._owed = ()
        return True


def _socket_address(text: str | None) -> str | None:
    """Turn NOTIFY_SOCKET into an address; None for what is neither a path nor an abstract name."""
    if not text or text[0] not in "/@" or len(os.fsencode(text)) > _LONGEST_PATH or "\0" in text:
        return None
    return "\0" + text[1:] if text[0] == "@" else text


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={clip(text, MAX_STATUS)}",) if text else ()


def listening(
    environ: MutableMapping[str, str], pid: int | None = None
) -> list[tuple[str, socket.socket]]:
    """Take over the sockets that were opened for this process: name and socket each.

    The name is the unit's FileDescriptorName=, `unknown` without one. Sockets are not inherited by
    children and do not block. An environment that was meant for another process gives none.
    Raises SystemdError for a descriptor that is neither UDP nor a listening TCP socket.
    """
    count = environ.pop("LISTEN_FDS", "")
    whose = environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    if not count or whose != str(os.getpid() if pid is None else pid):
        return []
    if not re.fullmatch("[0-9]{1,4}", count) or int(count) > MAX_DESCRIPTORS:
        raise SystemdError(
            f"LISTEN_FDS is {clip(count, 20)}: at most {MAX_DESCRIPTORS} sockets are taken over;"
            " give sipsidecar.socket one ListenDatagram= and one ListenStream="
        )
    named = [*names.split(":"), *[""] * int(count)]
    taken: list[tuple[str, socket.socket]] = []
    try:
        for index in range(int(count)):
            name = named[index] or "unknown"
            taken.append((name, _adopt(FIRST_DESCRIPTOR + index, name)))
    except BaseException:
        for _, sock in taken:
            sock.close()
        raise
    return taken


def _adopt(descriptor: int, name: str) -> socket.socket:
    expected = SystemdError(
        f"descriptor {descriptor} ({clip(name, 40)}) from systemd is neither a UDP nor a listening"
        " TCP socket: look at ListenDatagram= and ListenStream= of sipsidecar.socket"
    )
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise expected
        sock = socket.socket(fileno=descriptor)
    except OSError:
        raise expected from None
    fits = sock.family in (socket.AF_INET, socket.AF_INET6) and (
        sock.type == socket.SOCK_DGRAM
        or (
            sock.type == socket.SOCK_STREAM
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )
    )
    if not fits:
        sock.close()
        raise expected
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
