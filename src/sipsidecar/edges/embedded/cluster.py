"""Turns a data directory into what lies in it: the cluster, its server's pid file, its socket."""

import contextlib
import os
import pwd
import re
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

LINUX = sys.platform == "linux"

_ACCOUNTS = ("sipsidecar", "postgres", "nobody")
_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 107


class EmbeddedError(Exception):
    """What stands in the way of an embedded database, and what to do, in one line."""


class Account(msgspec.Struct, frozen=True):
    """The user that a server started by root becomes, since PostgreSQL refuses uid 0."""

    uid: int
    gid: int


class Postmaster(msgspec.Struct, frozen=True):
    """What a live server says of itself in postmaster.pid."""

    pid: int
    port: str
    socket: Path
    ready: bool


def default_directory() -> Path:
    """Return where data lies when nobody said: the system's place for root, the user's state."""
    if os.geteuid() == 0:
        return Path("/var/lib/sipsidecar")
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local/state"
    return base / "sipsidecar"


def cluster_major(directory: Path) -> int | None:
    """Return the major version that made the cluster in a data directory, None if there is none."""
    try:
        text = (directory / "postgres/PG_VERSION").read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise EmbeddedError(f"cannot read {directory}: {error.strerror}") from error
    found = re.match(r"[0-9]+", text)
    return int(found[0]) if found else 0


def dsn_of(directory: Path, database: str = "sipsidecar") -> str | None:
    """Return the DSN of the server that is ready in a data directory now, else None."""
    server = postmaster(directory.absolute() / "postgres")
    return dsn_at(server.socket, database, server.port) if server and server.ready else None


def dsn_at(socket: Path, database: str, port: str = "5432") -> str:
    """Return the DSN of a database of the server that has its socket in a folder."""
    host = urllib.parse.quote(os.fsencode(socket))
    name = urllib.parse.quote(database, safe="")
    return f"postgresql:///{name}?host={host}&user=postgres&port={port}"


def postmaster(cluster: Path) -> Postmaster | None:
    """Return the live server of a cluster; None for one that is gone, or a zombie."""
    try:
        lines = (cluster / "postmaster.pid").read_text().split("\n")
        pid, socket = int(lines[0]), lines[4]
        if LINUX:
            # Not by /proc/PID/cwd: a container's root may not look at it.
            stat = Path(f"/proc/{pid}/stat").read_text()
            if "(postgres) " not in stat or "(postgres) Z" in stat:
                return None
        else:
            os.kill(pid, 0)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError, ValueError, IndexError):
        return None
    except OSError as error:
        raise EmbeddedError(f"cannot read {cluster.parent}: {error.strerror}") from error
    place = cluster if socket.startswith("/proc/self/") else Path(socket)
    return Postmaster(pid, lines[3], place, len(lines) > 7 and lines[7].strip() == "ready")


def make_directory(directory: Path, created: list[Path]) -> None:
    """Make a private directory and what is missing above it; note the new ones, deepest first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700 if path == directory else 0o777, exist_ok=True)
        created.insert(0, path)


def clear_stale(cluster: Path) -> None:
    """Make PostgreSQL see that the server named in postmaster.pid is gone.

    After a reboot another program may have that pid, and PostgreSQL would refuse to start. It
    takes the pid of its own parent for stale, and still looks for backends that are left.
    """
    with contextlib.suppress(FileNotFoundError):
        with opened(cluster / "postmaster.pid", os.O_RDWR | os.O_NOFOLLOW) as fd:
            rest = os.read(fd, 4096).partition(b"\n")[2]
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n%b" % (os.getpid(), rest), 0)
        (cluster / f"{_SOCKET}.lock").unlink(missing_ok=True)


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Give the descriptor of a file or folder, closed at the end."""
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def account_of(cluster: Path) -> Account | None:
    """Return whom the server must become if we are root: the cluster's owner, else by name."""
    owner = cluster.stat() if cluster.exists() else None
    if os.geteuid() != 0:
        if owner and owner.st_uid != os.geteuid():
            raise EmbeddedError(
                f"{cluster} belongs to another user (uid {owner.st_uid}): run as that user or "
                "as root, or give another --data or a --dsn"
            )
        return None
    if owner and owner.st_uid:
        return Account(owner.st_uid, owner.st_gid)
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        "PostgreSQL does not run as root and no other user is here: useradd --system sipsidecar"
    )


def as_account(account: Account | None) -> dict[str, Any]:
    """Return what makes subprocess start a program as an account; None is ourselves."""
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def place_socket(directory: Path, account: Account | None) -> Path:
    """Return the folder for the socket: the cluster if its path will do, else a private one."""
    remove_socket_directory(directory)  # left by an owner that was killed
    cluster = directory / "postgres"
    # A comma would split the host list of a DSN.
    name = os.fsencode(cluster / _SOCKET)
    if len(name) > _SOCKET_PATH_BYTES or b"," in name:
        return _make_socket_directory(directory, account)
    return cluster


def _make_socket_directory(directory: Path, account: Account | None) -> Path:
    """Make a private folder with a short path and remember it as the link `socket`."""
    place = Path(tempfile.mkdtemp(prefix="sipsidecar-", dir="/tmp"))
    if account:
        os.chown(place, account.uid, account.gid)
    (directory / "socket").symlink_to(place)
    return place


def remove_socket_directory(directory: Path) -> None:
    """Remove the folder that the link `socket` names, if it is one of ours, and the link."""
    link = directory / "socket"
    if link.is_symlink():
        place = link.readlink()
        link.unlink()
        if str(place.parent) == "/tmp" and place.name.startswith("sipsidecar-"):  # noqa: S108
            with contextlib.suppress(OSError):
                for name in (_SOCKET, f"{_SOCKET}.lock"):
                    (place / name).unlink(missing_ok=True)
                place.rmdir()
