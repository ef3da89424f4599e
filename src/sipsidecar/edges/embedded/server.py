"""Turns a data directory into one running PostgreSQL server, supervised until it is stopped."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from sipsidecar.edges.embedded.binaries import Binaries, find_binaries, reachable
from sipsidecar.edges.embedded.cluster import (
    Account,
    EmbeddedError,
    account_of,
    clear_stale,
    cluster_major,
    dsn_at,
    dsn_of,
    make_directory,
    opened,
    place_socket,
    postmaster,
    remove_socket_directory,
)
from sipsidecar.edges.embedded.lock import DirectoryLock, InUseError, Role
from sipsidecar.edges.embedded.log import ServerLog
from sipsidecar.edges.embedded.process import START_SECONDS, Programs, as_arguments, exited

WAIT_SECONDS = 15.0
"""How long a start waits for what an earlier run left to go away."""
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))
"""A fast, then an immediate shutdown (the next start recovers), each with its time."""


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
        self._log = log or logging.getLogger(__package__)
        self._server_log = ServerLog(self.log_path)
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
        return dsn_at(self._socket, self._database)

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
            make_directory(self.directory, created)
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
            remove_socket_directory(self.directory)
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
        while old := postmaster(self.cluster):
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"PostgreSQL pid {old.pid} of an earlier run is still stopping in "
                    f"{self.directory}; wait for it, or end it with: kill -QUIT {old.pid}"
                )
            await asyncio.sleep(0.05)
        clear_stale(self.cluster)

    async def _prepare(self) -> None:
        """Settle binaries, user, cluster and the place of the socket."""
        if self.binaries is None:
            self.binaries = find_binaries(directory=self.directory)
        else:
            find_binaries(self.binaries.directory, directory=self.directory)
        self._account = account_of(self.cluster)
        if self._account:
            self.binaries = reachable(self.binaries, self._account)
        if cluster_major(self.directory) is None:
            await self._initialise()
        elif self._account and self.cluster.stat().st_uid == 0:  # copied here by root
            for path in (self.cluster, *self.cluster.rglob("*")):
                os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)
        self._socket = place_socket(self.directory, self._account)

    @property
    def _programs(self) -> Programs:
        return Programs(self.binaries or find_binaries(), self._account, self._server_log)

    async def _initialise(self) -> None:
        """Make cluster and database in a folder that becomes the cluster by one rename."""
        for stale in self.directory.glob("postgres.new-*"):
            shutil.rmtree(stale, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.directory))
        try:
            if self._account:
                os.chown(fresh, self._account.uid, self._account.gid)
            options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres"]
            await self._programs.run(
                fresh, "initdb", *options, *(() if self._fsync else ("--no-sync",))
            )
            quoted = self._database.replace('"', '""')
            await self._programs.run(
                fresh,
                "postgres",
                "--single",
                *as_arguments(exit_on_error="on", fsync="on" if self._fsync else "off"),
                "postgres",
                stdin=f'CREATE DATABASE "{quoted}"\n'.encode(),
            )
            os.rename(fresh, self.cluster)  # noqa: PTH104
            with opened(self.directory, os.O_RDONLY) as folder:
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
        self._server_log.bound()
        offset = self._server_log.size()
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
        process = self._process = self._programs.spawn(
            self.cluster, "postgres", *as_arguments(**settings), socket=self._socket
        )
        deadline = time.monotonic() + START_SECONDS
        while not ((said := postmaster(self.cluster)) and said.pid == process.pid and said.ready):
            if process.poll() is not None:
                raise EmbeddedError(
                    f"PostgreSQL did not start: {self._server_log.last_words(offset)}"
                )
            if time.monotonic() > deadline:
                await self._end()
                raise EmbeddedError(
                    f"PostgreSQL was not ready after {START_SECONDS:.0f} s, see {self.log_path}"
                )
            await asyncio.sleep(0.01)
        self._up = True
        self._ended.clear()
        self._log.info("PostgreSQL runs in %s (pid %d)", self.cluster, process.pid)

    # While it runs, and the way down

    async def _supervise(self) -> None:
        """Start the server again whenever it dies: at once, then ever more slowly."""
        delay = 0.0
        while True:
            began = time.monotonic()
            while self._process and self._process.poll() is None:
                await asyncio.sleep(0.1)
                self._server_log.bound()
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
                await exited(process, seconds)
        if process and process.poll() is None:
            process.kill()
            await exited(process, 10.0)
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
                remove_socket_directory(self.directory)
                nothing = not self.cluster.exists()
                if nothing:
                    self.log_path.unlink(missing_ok=True)
                self._lock.release(remove=nothing)
            for path in created:
                path.rmdir()


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
