"""Turns a program of PostgreSQL into a child, as the server's user, that dies with its parent."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from sipsidecar.edges.embedded.binaries import Binaries
from sipsidecar.edges.embedded.cluster import LINUX, Account, EmbeddedError, as_account, opened
from sipsidecar.edges.embedded.log import ServerLog

START_SECONDS = 300.0
"""How long a server may take to be ready; crash recovery on a slow disk is long."""

_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ")
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if LINUX else None


class Programs(msgspec.Struct, frozen=True):
    """PostgreSQL's programs, the user that runs them, and the log that they write."""

    binaries: Binaries
    account: Account | None
    log: ServerLog

    async def run(self, cluster: Path, program: str, *arguments: str, stdin: bytes = b"") -> None:
        """Run a program on a cluster to its end; raises EmbeddedError if it fails."""
        offset = self.log.size()
        process = self.spawn(cluster, program, *arguments, stdin=stdin)
        try:
            await exited(process, START_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # initdb has children of its own
                process.wait()
        if process.returncode:
            raise EmbeddedError(f"{program} failed: {self.log.last_words(offset)}")

    def spawn(
        self,
        cluster: Path,
        program: str,
        *arguments: str,
        stdin: bytes = b"",
        socket: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program on a cluster, as the server's user, its output in our log."""
        keep = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        inherited: tuple[int, ...] = ()
        place = str(cluster)
        with contextlib.ExitStack() as stack:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            log = stack.enter_context(opened(self.log.path, flags))
            if self.account and LINUX:
                # The server's user may not be let through the folders above its own (a 0700
                # home): an open folder is a way in that needs no way there.
                folder = stack.enter_context(opened(cluster, os.O_RDONLY | os.O_DIRECTORY))
                inherited, place = (folder,), f"/proc/self/fd/{folder}"
            if socket is not None:
                at = place if socket == cluster else str(socket)
                quoted = '"' + at.replace('"', '""') + '"'
                arguments = (*arguments, *as_arguments(unix_socket_directories=quoted))
            try:
                process = subprocess.Popen(  # noqa: S603
                    [str(self.binaries.directory / program), *arguments],
                    stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=keep | {"LC_ALL": "C", "PGDATA": place},
                    pass_fds=inherited,
                    start_new_session=True,  # a Ctrl-C is for us: we drain before we stop it
                    preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509
                    **as_account(self.account),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise EmbeddedError(f"cannot run {program} of PostgreSQL: {error}") from error
        if process.stdin:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(stdin)
        return process


def as_arguments(**settings: str) -> list[str]:
    """Return the arguments that give settings to postgres."""
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


async def exited(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a process has ended, but no longer than that."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
