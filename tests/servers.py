"""Embedded servers, other owners and other users for the tests of the embedded PostgreSQL."""

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvloop

from sipsidecar.edges import embedded
from sipsidecar.edges.embedded import Binaries, EmbeddedPostgres

Run = Callable[[Coroutine[Any, Any, Any]], Any]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")
both_loops = pytest.mark.parametrize(
    "run", [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
)
both_origins = pytest.mark.parametrize("origin", ["system", "wheel"])


OWNER = """
import asyncio, sys
from pathlib import Path
from sipsidecar.edges.embedded import EmbeddedPostgres, find_binaries

async def main():
    server = EmbeddedPostgres(Path(sys.argv[1]), binaries=find_binaries(directory=Path(sys.argv[1])))
    print(await server.start(), flush=True)
    print(server.pid, flush=True)
    while True:
        await asyncio.sleep(60)

asyncio.run(main())
"""


def binaries_from(origin: str) -> Binaries:
    found = embedded.binaries._system() if origin == "system" else embedded.binaries._wheel()
    if not found or found[0].major < embedded.binaries.LEAST_MAJOR:
        pytest.skip(f"no {origin} PostgreSQL >= {embedded.binaries.LEAST_MAJOR} here")
    return found[0]


def copy(template: Path, directory: Path) -> Path:
    shutil.copytree(template / "postgres", directory / "postgres")
    directory.chmod(0o700)
    return directory


@contextlib.asynccontextmanager
async def running(directory: Path, **options: Any) -> Any:
    server = EmbeddedPostgres(directory, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(dsn: str, sql: str, *arguments: object) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process is no more; a zombie that nobody reaps is gone too."""
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pid: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def owner_uid(path: Path | str) -> int:
    return os.stat(path).st_uid  # noqa: PTH116


@contextlib.contextmanager
def owner_of(directory: Path, *before: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Another sidecar, as far as this part goes: a process that runs a server until killed."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", OWNER, str(directory)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        dsn, pid = process.stdout.readline().strip(), int(process.stdout.readline())
        yield process, dsn, pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        wait_until_gone(pid)


def as_nobody(function: Callable[[], Any]) -> None:
    """Run a function as an ordinary user: as ourselves, or in a forked child that root gives up."""
    if os.geteuid() != 0:
        function()
        return
    nobody = pwd.getpwnam("nobody")
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads about
        child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            function()
        except BaseException:  # noqa: BLE001 - it must not get back into pytest
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        trouble = pipe.read().decode()
    os.waitpid(child, 0)
    assert not trouble, trouble


def belongs_to_nobody(path: Path) -> Path:
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        entry = pwd.getpwnam("nobody")
        os.chown(path, entry.pw_uid, entry.pw_gid)
    return path


def program(path: Path, lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
