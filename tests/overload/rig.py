"""Callers, a real Kamailio and a callee of known capacity on one loopback network."""

import contextlib
import functools
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.lab import TICKS, Generator, Lab, reap, spawn, tail
from chaos.results import Unfit
from live.programs import answers_options, free_port, network
from overload import callee
from overload.callers import Fate
from running import children

HERE = Path(__file__).parent
START_LIMIT = 20.0


@functools.cache
def kamailio() -> str:
    """Path of the program; raises Unfit without it."""
    # Debian keeps it where only root looks for programs.
    found = shutil.which("kamailio") or shutil.which("kamailio", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Unfit("kamailio is not installed (Debian: apt-get install kamailio)")
    return found


def modules() -> set[str]:
    """File names of the modules that are installed."""
    places = ("lib*/kamailio", "lib*/*/kamailio", "local/lib*/kamailio")
    return {path.name for one in places for path in Path("/usr").glob(f"{one}/modules/*.so")}


def tree_cpu(pid: int) -> float:
    """CPU seconds that a process and all that it has started have used so far."""
    total = 0.0
    for one in {pid, *children(pid)}:
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def split(address: str) -> tuple[str, int]:
    """ADDR:PORT to both."""
    host, port = address.rsplit(":", 1)
    return host, int(port)


class Run:
    """Callers who call."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.began = 0.0
        """Monotonic seconds of the first stage's begin; known at the end."""
        self.late_ms = 0.0
        """Most that a call began after its time: the noise of the machine."""

    @property
    def running(self) -> bool:
        """They still call."""
        return self._generator.running

    def fates(self, seconds: float) -> list[Fate]:
        """Wait for their end; what became of every call."""
        said = self._generator.said(seconds)
        self.began = said["began"]
        self.late_ms = said["late_ms"]
        return [Fate(*one) for one in said["calls"]]


class Rig:
    """The processes of one run, in a lab that ends them all."""

    def __init__(self, lab: Lab, name: str = "rig") -> None:
        self._lab = lab
        self._runs = 0
        self.folder = lab.folder / name
        self.folder.mkdir()
        net = network()
        self.proxy, self.callee, self.callers = (
            f"{net}.{number}:{free_port(f'{net}.{number}')}" for number in (1, 2, 3)
        )
        self.kamailio: subprocess.Popen[bytes] | None = None
        self._callee: Generator | None = None

    def start_proxy(
        self,
        config: Path = HERE / "proxy.cfg",
        defines: Mapping[str, str | int] | None = None,
        strings: Mapping[str, str] | None = None,
        *,
        hep: tuple[str, int] | None = None,
    ) -> None:
        """A Kamailio that mirrors to `hep`, or to nobody, and is ready.

        `strings` are defines whose value is put between the quotes that a string needs.
        """
        host, port = hep or ("127.0.0.1", free_port("127.0.0.1"))
        words: list[str | Path] = [kamailio(), "-f", config, "-DD", "-E", "-m", "128", "-M", "8"]
        words += ["-Y", self.folder, "-P", self.folder / "kamailio.pid"]
        for name, value in {"PROXY_LISTEN": self.proxy, **(defines or {})}.items():
            words += ["-A", f"{name}={value}"]
        for name, text in {"SIPSIDECAR_URI": f"sip:{host}:{port}", **(strings or {})}.items():
            words += ["-A", f'{name}="{text}"']
        log = self.folder / "kamailio.log"
        process = self.kamailio = spawn(words, log)
        self._lab.stack.callback(reap, process, signal.SIGTERM, 5)
        self._until("Kamailio", process, log, lambda: bool(answers_options(*split(self.proxy))))

    def start_callee(self, *words: str | float) -> None:
        """A callee, ready; flags as its parser has them."""
        program = [sys.executable, "-m", "overload.callee", "--listen", self.callee]
        self._callee = self._lab.generator(
            f"{self.folder.name}/callee", [*program, *map(str, words)]
        )
        log = self.folder / "callee.err"
        process = self._callee.process
        self._until("the callee", process, log, lambda: self.queue_ms() is not None)

    def queue_ms(self) -> float | None:
        """How long a newcomer would wait in the callee's queue; None: no answer."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.5)
            with contextlib.suppress(OSError, ValueError):
                sock.sendto(callee.SURVEY, split(self.callee))
                return float(sock.recv(100))
        return None

    def start_callers(self, stages: Sequence[tuple[float, float]], *words: str | float) -> Run:
        """Callers on their way, so many seconds at so many calls per second after each other."""
        self._runs += 1
        program = [sys.executable, "-m", "overload.callers", "--listen", self.callers]
        program += ["--proxy", self.proxy, "--callee", self.callee]
        program += ["--stages", ",".join(f"{seconds:g}:{rate:g}" for seconds, rate in stages)]
        # Call-IDs of its own for each run: proxy and sidecar outlive the callers.
        program += ["--mark", f"{self.folder.name}-{self._runs}-{time.time_ns() % 10**9}"]
        program += map(str, words)
        name = f"{self.folder.name}/callers{self._runs}"
        return Run(self._lab.generator(name, program))

    def end(self) -> dict[str, Any]:
        """End callee and proxy; what the callee did in each second of the monotonic clock."""
        assert self._callee is not None
        self._callee.process.terminate()
        said = self._callee.said()
        if self.kamailio is not None:
            reap(self.kamailio, signal.SIGTERM, 5)
        return said

    @staticmethod
    def _until(
        what: str, process: subprocess.Popen[bytes], log: Path, look: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not look():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{what} did not start:\n{tail(log)}")
            time.sleep(0.05)
