"""Starts real programs for a test, finds free addresses for them, and ends what it started."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
REQUIRE_LIVE = os.environ.get("SIPSIDECAR_REQUIRE_LIVE") == "1"

# Debian keeps kamailio where only root looks for programs.
_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def need(program: str, package: str) -> str:
    """Path of a program; without it the test is skipped, or fails if SIPSIDECAR_REQUIRE_LIVE=1."""
    path = shutil.which(program, path=_PATH)
    if path is not None:
        return path
    reason = f"{program} is not installed (Debian: apt-get install {package})"
    if REQUIRE_LIVE:
        pytest.fail(reason)
    pytest.skip(reason)


def clean_environment() -> dict[str, str]:
    """The environment without a developer's own sidecar settings, and with this tree's code."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("SIPSIDECAR_")}
    return own | {"PYTHONPATH": str(ROOT / "src")}


class Program:
    """A running program with its output in a file; `stop` ends it and whatever it started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        folder: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            # A session of its own: a Ctrl-C at the test reaches it through `stop` alone, and
            # children that outlive it are found by their group.
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(env) if env is not None else clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int:
        """Exit code of a program that ends by itself; the test fails if it does not in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} still runs after {seconds:g} s:\n{self.tail()}")

    def stop(self, seconds: float = 10) -> int:
        """End it with SIGTERM; exit code, or the negative number of the signal that ended it."""
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(5)

    def tail(self, lines: int = 40) -> str:
        """The last lines of its output."""
        text = self.log.read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    env: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """A program for the length of a `with`; its output is shown if the body fails."""
    program = Program(name, command, folder, env)
    try:
        yield program
    except BaseException:
        print(f"--- {name} ({' '.join(map(str, command))})\n{program.tail()}")
        raise
    finally:
        program.stop()


def until(
    what: object,
    look: Callable[[], T | None],
    seconds: float,
    program: Program | None = None,
    *,
    every: float = 0.05,
) -> T:
    """What `look` returns once it is not None; fails after `seconds`, or when `program` has died.

    `what` is what is waited for; it is made text when that has failed.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        if program is not None and program.process.poll() is not None:
            pytest.fail(f"{program.name} ended before {what}:\n{program.tail()}")
        if time.monotonic() > deadline:
            pytest.fail(f"no {what} in {seconds:g} s" + (f":\n{program.tail()}" if program else ""))
        time.sleep(every)


def network() -> str:
    """First three numbers of a loopback network that hardly another test run has taken."""
    return f"127.{random.randint(16, 250)}.{random.randint(1, 250)}"


def free_port(address: str = "0.0.0.0") -> int:  # noqa: S104 - bound for a moment, and read by nobody
    """A port that is free for UDP and TCP; on every address, unless one is given."""
    for _ in range(50):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        ):
            udp.bind((address, 0))
            port: int = udp.getsockname()[1]
            with contextlib.suppress(OSError):
                tcp.bind((address, port))
                return port
    pytest.fail("no port is free")


def kamailio_command(
    config: Path, folder: Path, defines: Mapping[str, str | int], *, strings: Mapping[str, str]
) -> list[str | Path]:
    """How to start Kamailio in the foreground, small, with all its files in `folder`.

    `strings` are defines whose value is put between the quotes that a string needs.
    """
    command: list[str | Path] = [need("kamailio", "kamailio"), "-f", config, "-DD", "-E"]
    command += ["-m", "64", "-M", "8", "-Y", folder, "-P", folder / "kamailio.pid"]
    for name, value in defines.items():
        command += ["-A", f"{name}={value}"]
    for name, value in strings.items():
        command += ["-A", f'{name}="{value}"']
    return command


def answers_options(host: str, port: int) -> bool | None:
    """True once a SIP server answers 200 to an OPTIONS over UDP, None while it does not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(0.5)
        own = f"{host}:{sock.getsockname()[1]}"
        request = (
            f"OPTIONS sip:{host}:{port} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {own};branch=z9hG4bKready\r\n"
            f"From: <sip:test@{own}>;tag=ready\r\nTo: <sip:{host}:{port}>\r\n"
            f"Call-ID: ready@{own}\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\n"
            "Content-Length: 0\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            sock.sendto(request.encode(), (host, port))
            if sock.recv(65535).startswith(b"SIP/2.0 200"):
                return True
    return None
