"""This machine to the readings that `sipsidecar doctor` judges; None where it does not say."""

import contextlib
import ctypes
import errno
import os
import resource
import socket
import stat
from pathlib import Path

import msgspec

_SO_RCVBUFFORCE = 33
_UNSYNCHRONISED_US = 16_000_000
"""Largest error of a clock that somebody keeps; timedatectl judges by the same number."""
_MAX_ENTRIES = 200_000
_LISTEN = "0A"  # state of a socket in /proc/net/tcp


class Space(msgspec.Struct, frozen=True):
    """What is left for us on the file system of a folder."""

    free_bytes: int
    total_bytes: int
    free_files: int | None
    """None where files are not counted."""
    total_files: int


class Backlog(msgspec.Struct, frozen=True):
    """Files that wait in a folder."""

    files: int
    bytes: int
    oldest_at: float | None
    """Modified then, seconds UTC."""
    damaged: int
    complete: bool
    """All were counted."""


def receive_buffer_limit() -> int | None:
    """Read net.core.rmem_max: what an unprivileged program gets at most."""
    return _number(Path("/proc/sys/net/core/rmem_max"))


def granted_buffer(wanted: int) -> int | None:
    """Ask for a receive buffer as the sidecar does, and read back what the kernel gives."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted)
            # the kernel reports twice what it uses for data (socket(7))
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2 < wanted:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    except OSError:
        return None


def bind_error(host: str, port: int, kind: socket.SocketKind) -> int | None:
    """Try to listen; the errno of why not, None when that would work."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
    except OSError:
        return errno.EADDRNOTAVAIL
    with socket.socket(family, kind) as sock:
        if kind == socket.SOCK_STREAM:  # as servers do: connections that linger are no obstacle
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            if kind == socket.SOCK_STREAM:
                sock.listen(1)
        except OSError as error:
            return error.errno or errno.EINVAL
    return None


def port_owner(port: int, kind: socket.SocketKind) -> str | None:
    """Name the program that has a port, such as `systemd (pid 1)`; None when we may not see it."""
    name = "udp" if kind == socket.SOCK_DGRAM else "tcp"
    inodes = set()
    for table in (name, f"{name}6"):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                waits = kind == socket.SOCK_DGRAM or fields[3] == _LISTEN
                if waits and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in inodes for link in (process / "fd").iterdir()):
                return (
                    f"{(process / 'comm').read_text(errors='replace').strip()} (pid {process.name})"
                )
    return None


class _Timex(ctypes.Structure):
    """The beginning of `struct timex`, as far as it is read here (adjtimex(2))."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("max_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def clock_is_kept() -> bool | None:
    """Whether something such as NTP keeps the clock right, by what the kernel knows."""
    timex = _Timex()  # modes 0: only read
    try:
        state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(timex.max_error < _UNSYNCHRONISED_US)


def open_file_limit() -> int:
    """Descriptors that a program started here may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def available_memory() -> int | None:
    """Bytes that programs may still take, by the machine and by our control group."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        said = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(int(said.partition("\nMemAvailable:")[2].split()[0]) * 1024)
    with contextlib.suppress(OSError, IndexError):
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::")[2].strip()
        folder = Path("/sys/fs/cgroup") / group.lstrip("/")
        most, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if most is not None and used is not None:
            found.append(max(most - used, 0))
    return min(found, default=None)


def space(folder: Path) -> Space | None:
    """Look at the file system of a folder, or of the nearest one above it that exists."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            found = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return Space(
            found.f_bavail * found.f_frsize,
            found.f_blocks * found.f_frsize,
            found.f_favail if found.f_files else None,
            found.f_files,
        )
    return None


def backlog(folder: Path, ending: str, damaged: str) -> Backlog | None:
    """Count files by the endings of their names; None for a folder that may not be read."""
    files = size = bad = seen = 0
    oldest = None
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                seen += 1
                if seen > _MAX_ENTRIES:
                    return Backlog(files, size, oldest, bad, complete=False)
                if entry.name.endswith(damaged):
                    bad += 1
                elif entry.name.endswith(ending):
                    with contextlib.suppress(OSError):  # stored in this moment
                        at = entry.stat(follow_symlinks=False)
                        files, size = files + 1, size + at.st_size
                        oldest = at.st_mtime if oldest is None else min(oldest, at.st_mtime)
    except FileNotFoundError:
        return Backlog(0, 0, None, 0, complete=True)
    except OSError:
        return None
    return Backlog(files, size, oldest, bad, complete=True)


def readers(path: Path) -> str | None:
    """Who may read a file besides its owner: `everybody`, `its group`, or None for nobody."""
    mode = path.stat().st_mode
    if mode & stat.S_IROTH:
        return "everybody"
    return "its group" if mode & stat.S_IRGRP else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # also `max`, which is no limit
        return None
