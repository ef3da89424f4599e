"""A sidecar, its database and its traffic as processes that a script may kill, stop and starve.

The scripts beside this file each prove one claim. They run as `python -m chaos.NAME` with `tests`
on PYTHONPATH (`make chaos`), print a table, and end with 0 only when every claim held.
"""

import asyncio
import atexit
import contextlib
import functools
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import asyncpg

from chaos.results import Unfit, progress
from running import ENVIRONMENT, children
from sipsidecar.edges.embedded import EmbeddedPostgres
from sipsidecar.edges.embedded.binaries import find_binaries, reachable
from sipsidecar.edges.embedded.cluster import account_of, clear_stale, dsn_at, postmaster

BENCH = Path(__file__).parents[1] / "bench"
TICKS = os.sysconf("SC_CLK_TCK")
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55
RECEIVE_BUFFER = 64 * 2**20
QUIET = 3.0
"""Seconds without a change after which all is told: a call closes 2 s after its last message."""
KEEP = "CHAOS_KEEP"
"""The environment variable that leaves a lab's folder where it is, for its logs."""
START_LIMIT = 120.0
"""Seconds that a server may take to recover, or a sidecar to be ready."""


# -------------------------------------------------------------------------------------- processes

# Runs in the child before it becomes the program: PDEATHSIG outlives exec but not a change of
# user, and LISTEN_PID must name the very process that takes the socket.
_SHIM = """
import ctypes, json, os, sys
said = json.loads(sys.argv[1])
libc = ctypes.CDLL(None)
if said["uid"]:
    os.setgroups([])
    os.setgid(said["gid"])
    os.setuid(said["uid"])
libc.prctl(1, said["signal"])
if os.getppid() != said["parent"]:
    os._exit(1)
if said["fd"] is not None:
    os.dup2(said["fd"], 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="hep")
os.execv(sys.argv[2], sys.argv[2:])
"""


def spawn(
    words: Sequence[str | Path],
    log: Path,
    *,
    env: dict[str, str] | None = None,
    out: Path | None = None,
    account: tuple[int, int] | None = None,
    passed: socket.socket | None = None,
    dies_by: int = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a program that never outlives this thread; it gets `passed` as systemd would pass it."""
    uid, gid = account or (0, 0)
    fd = passed.fileno() if passed else None
    said = {"uid": uid, "gid": gid, "signal": int(dies_by), "parent": os.getpid(), "fd": fd}
    with log.open("ab") as errors, (out or log).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SHIM, json.dumps(said), *map(str, words)],
            env=ENVIRONMENT if env is None else env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd="/",
            pass_fds=() if fd is None else (fd,),
            start_new_session=True,
        )


def reap(process: subprocess.Popen[bytes], number: int, seconds: float) -> int:
    """Send a signal and wait; SIGKILL when that does not help."""
    if process.poll() is None:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.poll() is None:
        process.kill()
    return process.wait(30)


@functools.cache
def compiled(name: str) -> Path:
    """One of the C programs of tests/bench, compiled once; raises Unfit without a compiler."""
    if shutil.which("cc") is None:
        raise Unfit("a C compiler is missing: apt-get install gcc libc6-dev")
    folder = Path(tempfile.mkdtemp(prefix="sipsidecar-chaos-bin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    flags = ["-O2", "-Wall", "-Wextra"]
    subprocess.run(["cc", *flags, "-o", folder / name, BENCH / f"{name}.c", "-lm"], check=True)
    return folder / name


class Lab:
    """A temporary folder and everything that runs in it; leaving it ends and removes all."""

    def __init__(self, *, disk_gb: float, memory_gb: float = 2.0) -> None:
        free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
        if free < disk_gb:
            raise Unfit(f"{free:.1f} GB free in {tempfile.gettempdir()}, {disk_gb:g} are needed")
        said = Path("/proc/meminfo").read_text()
        available = int(re.findall(r"MemAvailable: +(\d+)", said)[0]) / 2**20
        if available < memory_gb:
            raise Unfit(f"{available:.1f} GB of memory are available, {memory_gb:g} are needed")
        self.stack = contextlib.ExitStack()
        self.folder = Path()

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="sipsidecar-chaos-"))
        self.folder.chmod(0o711)  # the server's own user must get through
        if KEEP in os.environ:
            self.stack.callback(progress, f"logs are in {self.folder}")
        else:
            self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def database(self, folder: Path | None = None, **settings: str) -> "Database":
        """A running server."""
        one = Database(folder or self.folder / "database", settings)
        self.stack.callback(one.end)
        one.make()
        one.start()
        return one

    def sidecar(
        self,
        name: str,
        database: "Database",
        settings: dict[str, str] | None = None,
        *,
        constants: dict[str, float] | None = None,
    ) -> "Sidecar":
        """A sidecar that is ready, at a socket that outlives it; settings by SECTION__KEY."""
        one = Sidecar(self.folder / name, database.dsn, settings or {})
        one.constants = constants or {}
        self.stack.callback(one.end)
        one.start()
        one.wait_ready()
        return one

    def blast(self, name: str, target: tuple[str, int], *words: str | float) -> "Generator":
        """hepblast on its way."""
        program: list[str | Path] = [compiled("hepblast"), "-t", f"{target[0]}:{target[1]}"]
        return self.generator(name, [*program, *map(str, words)])

    def generator(self, name: str, words: Sequence[str | Path]) -> "Generator":
        """A program that sends, and says what at its end as JSON."""
        one = Generator(self.folder / name, words)
        self.stack.callback(one.end)
        return one

    def tmpfs(self, name: str, megabytes: int) -> Path:
        """A small file system; raises Unfit where this process may not mount one."""
        place = self.folder / name
        place.mkdir()
        options = f"size={megabytes}m,mode=0711"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip()
            raise Unfit(f"a tmpfs cannot be mounted here (root is needed): {why}")
        self.stack.callback(subprocess.run, ("umount", "-l", str(place)), check=False)
        return place


# --------------------------------------------------------------------------------------- database


@functools.cache
def _template() -> Path:
    """A folder with a cluster and its database, made once, that nothing runs in."""
    folder = Path(tempfile.mkdtemp(prefix="sipsidecar-chaos-cluster-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    async def run() -> None:
        server = EmbeddedPostgres(folder, fsync=False)
        await server.start()
        await server.stop()

    asyncio.run(run())
    return folder


class Database:
    """One PostgreSQL server, a direct child that is started, killed and starved at will."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.cluster = folder / "postgres"
        self.log = folder / "server.log"
        self.dsn = dsn_at(self.cluster, "sipsidecar")
        self.process: subprocess.Popen[bytes] | None = None
        self.wanted = False
        self.starts = 0
        self._settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_permissions": "0700",
            "unix_socket_directories": str(self.cluster),
            "max_wal_size": "1GB",
            "jit": "off",
            **settings,
        }

    def make(self) -> None:
        """Make the cluster, as a copy of one that is made once."""
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o711)
        subprocess.run(["cp", "-a", _template() / "postgres", self.cluster], check=True)

    def start(self, limit: float = START_LIMIT) -> None:
        """Start it and wait until it is ready; patient with what a kill left behind."""
        self.wanted = True
        deadline = time.monotonic() + limit
        while True:
            self.launch()
            assert self.process is not None
            while self.process.poll() is None:
                said = postmaster(self.cluster)
                if said and said.pid == self.process.pid and said.ready:
                    return
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            if time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start:\n{tail(self.log)}")
            time.sleep(0.2)

    def launch(self) -> None:
        """Start it, ready or not."""
        account = account_of(self.cluster)
        binaries = find_binaries(directory=self.folder)
        if account:
            binaries = reachable(binaries, account)
        clear_stale(self.cluster)
        settings = [word for pair in self._settings.items() for word in ("-c", "=".join(pair))]
        self.process = spawn(
            [binaries.directory / "postgres", "-D", self.cluster, *settings],
            self.log,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            account=(account.uid, account.gid) if account else None,
            dies_by=signal.SIGINT,
        )
        self.starts += 1

    def tend(self) -> None:
        """Start it again when it died by itself, as a supervisor would; does not wait."""
        if self.wanted and self.process and self.process.poll() is not None:
            self.launch()

    def kill(self, how: str) -> None:
        """SIGKILL: `server` and all its processes, its `postmaster` alone, or one `backend`."""
        assert self.process is not None
        if how == "backend":
            pids = self.query(
                "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^sipsidecar node'"
            )
            for (pid,) in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        self.wanted = False
        victims = children(self.process.pid) if how == "server" else set()
        self.process.kill()
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        """A fast shutdown."""
        self.wanted = False
        if self.process:
            reap(self.process, signal.SIGINT, 60)

    def read_only(self, on: bool) -> None:
        """Refuse or allow writes in every session, those that are open too."""
        word = "on" if on else "off"
        self.query(f"ALTER SYSTEM SET default_transaction_read_only = {word}")
        self.query("SELECT pg_reload_conf()")

    def query(self, sql: str, *values: object) -> list[Any]:
        """Rows of one statement, each a tuple."""

        async def ask() -> list[Any]:
            connection = await asyncpg.connect(self.dsn, timeout=30, command_timeout=1800)
            try:
                return [tuple(row) for row in await connection.fetch(sql, *values)]
            finally:
                await connection.close(timeout=10)

        return asyncio.run(ask())

    def walk(self, sql: str, see: Callable[..., None], *values: object) -> None:
        """Call `see` with the columns of each row, without all rows in memory."""

        async def ask() -> None:
            connection = await asyncpg.connect(self.dsn, timeout=30, command_timeout=1800)
            try:
                async with connection.transaction(readonly=True):
                    async for row in connection.cursor(sql, *values, prefetch=5000):
                        see(*row)
            finally:
                await connection.close(timeout=10)

        asyncio.run(ask())

    def value(self, sql: str, *values: object) -> Any:
        """The one value of a statement."""
        return self.query(sql, *values)[0][0]

    def end(self) -> None:
        """Whatever it does: no more."""
        self.wanted = False
        if self.process:
            reap(self.process, signal.SIGQUIT, 20)


# ---------------------------------------------------------------------------------------- sidecar


def bound_socket() -> socket.socket:
    """A UDP socket on a loopback port that is free for TCP too, its buffer as the sidecar wants it."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tcp.bind(udp.getsockname())
            except OSError:
                udp.close()
                continue
        for option in (socket.SO_RCVBUF, SO_RCVBUFFORCE):
            with contextlib.suppress(OSError):
                udp.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER)
        return udp


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# Some of the code's numbers are minutes, and a test has seconds.
_RUN = """
import importlib, json, sys
for place, value in json.loads(sys.argv.pop(1)).items():
    module, _, name = place.partition(":")
    found = importlib.import_module(module)
    getattr(found, name)
    setattr(found, name, value)
from sipsidecar.cli import main
sys.exit(main())
"""


class Sidecar:
    """One sidecar through all its lives, and the socket that the kernel keeps for it."""

    def __init__(self, folder: Path, dsn: str, settings: dict[str, str]) -> None:
        folder.mkdir()
        settings = {"SPOOL__DIRECTORY": str(folder / "spool"), **settings}
        self.folder = folder
        self.out, self.err = folder / "out", folder / "err"
        self.socket = bound_socket()
        self.hep: tuple[str, int] = self.socket.getsockname()
        self.http = ("127.0.0.1", free_port())
        self.spool = Path(settings["SPOOL__DIRECTORY"])
        self.process: subprocess.Popen[bytes] | None = None
        self.lives = 0
        self.crashes = 0
        """Times that it ended although nobody had killed or stopped it."""
        self.constants: dict[str, float] = {}
        """What a life finds instead of numbers of the code, by `module:NAME`."""
        self._settings = {f"SIPSIDECAR_{key}": value for key, value in settings.items()}
        self._dsn = dsn
        self._ready = False

    @property
    def pid(self) -> int:
        """Of the newest life."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Begin a life; does not wait."""
        self.out.unlink(missing_ok=True)
        at = [f"{host}:{port}" for host, port in (self.hep, self.http)]
        words = ["run", "--dsn", self._dsn, "--hep", at[0], "--http", at[1]]
        self.process = spawn(
            [sys.executable, "-c", _RUN, json.dumps(self.constants), *words],
            self.err,
            out=self.out,
            env=ENVIRONMENT | self._settings,
            passed=self.socket,
        )
        self.lives += 1
        self._ready = False

    def wait_ready(self, limit: float = START_LIMIT) -> None:
        """Wait for its greeting."""
        deadline = time.monotonic() + limit
        while not self.ready:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no greeting of the sidecar:\n{tail(self.err)}")
            time.sleep(0.02)

    @property
    def ready(self) -> bool:
        """This life has greeted."""
        if not self._ready:
            with contextlib.suppress(OSError):
                self._ready = "\n  calls " in self.out.read_text()
        return self._ready

    def tend(self) -> None:
        """Start it again when it ended by itself, as systemd would, and count that."""
        if self.process is not None and self.process.poll() is not None:
            self.crashes += 1
            time.sleep(0.5)
            self.start()

    def kill(self) -> None:
        """SIGKILL, and begin the next life at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)
        self.start()

    def stop(self, seconds: float = 120.0) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        return reap(self.process, signal.SIGTERM, seconds)

    def end(self) -> None:
        """Whatever it does: no more."""
        if self.process is not None:
            reap(self.process, signal.SIGKILL, 10)
        self.socket.close()

    def page(self, path: str, timeout: float = 30.0) -> bytes:
        """Body of a page; OSError and http.client's errors when there is none."""
        connection = http.client.HTTPConnection(*self.http, timeout=timeout)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def ledger(self) -> dict[str, Any]:
        """Its ledger page."""
        said: dict[str, Any] = json.loads(self.page("/v1/ledger"))
        return said

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples whose labels are these."""
        found = 0.0
        for line in self.page("/metrics").decode().splitlines():
            match = re.match(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                pairs = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if labels.items() <= pairs.items():
                    found += float(match[3])
        return found

    def kernel(self) -> tuple[int, float]:
        """Datagrams that the kernel dropped at the socket, in all lives, and how full it is."""
        raw = self.socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
        figures = struct.unpack("9I", raw)
        return figures[8], figures[0] / max(figures[1], 1)

    def words(self) -> str:
        """All that it wrote to standard error, in all lives."""
        return self.err.read_text(errors="replace")

    def settle(self, limit: float, database: Database | None = None) -> dict[str, Any]:
        """Wait until nothing is on its way any more; returns the ledger, settled or not."""
        deadline = time.monotonic() + limit
        last: list[Any] = []
        since = time.monotonic()
        while True:
            self.tend()
            if database is not None:
                database.tend()
            try:
                said = self.ledger()
                moving = said["waiting"] or said["spooled"] or any(said["rows_waiting"].values())
                moving = moving or self.metric("sipsidecar_rebuilding") > 0
            except (OSError, http.client.HTTPException, ValueError):
                said, moving = {}, True
            now = time.monotonic()
            state = [said.get(side) for side in ("received", "stored", "refused", "rows_stored")]
            if moving or state != last:
                last, since = state, now
            if (said and now - since >= QUIET) or now > deadline:
                return said
            time.sleep(0.25)


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return ""


def resident(pid: int) -> tuple[int, int]:
    """Resident memory of a process in bytes, now and at most."""
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+)", Path(f"/proc/{pid}/status").read_text()))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# ------------------------------------------------------------------------------------------ watch


class Sample(NamedTuple):
    """One look at a sidecar."""

    at: float
    """Monotonic seconds."""
    pid: int
    resident: int
    descriptors: int
    threads: int
    cpu: float
    ledger: dict[str, Any]
    kernel_drops: int


class Watch(threading.Thread):
    """Asks /health/live again and again, and looks at the process and its ledger now and then."""

    def __init__(self, sidecar: Sidecar, every: float = 0.2, look_every: float = 1.0) -> None:
        super().__init__(daemon=True)
        self._sidecar = sidecar
        self._every = every
        self._look_every = look_every
        self._over = threading.Event()
        self.latencies: list[float] = []
        """Seconds from connect to the last byte; a page that never came has taken 10."""
        self.away = 0
        """Times that nobody listened: between two lives."""
        self.late = 0.0
        """Longest that this thread itself was late: the noise of the machine."""
        self.samples: list[Sample] = []
        self.peak = 0
        """Most resident bytes of any life."""
        self.unbalanced: list[dict[str, Any]] = []
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(30)

    def run(self) -> None:
        # The watcher's own wait for a processor is not the sidecar's latency.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        due = look = time.monotonic()
        while True:
            begin = time.monotonic()
            if self._over.wait(max(due - begin, 0)):
                return
            self.late = max(self.late, time.monotonic() - max(due, begin))
            self._ask()
            if time.monotonic() >= look:
                look = time.monotonic() + self._look_every
                with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                    self._look()
            due = max(due + self._every, time.monotonic())

    def _ask(self) -> None:
        began = time.monotonic()
        try:
            self._sidecar.page("/health/live", timeout=10)
        except (ConnectionError, http.client.HTTPException):
            self.away += 1
            return
        except OSError:
            pass
        self.latencies.append(time.monotonic() - began)

    def _look(self) -> None:
        sidecar = self._sidecar
        pid = sidecar.pid
        now, peak = resident(pid)
        self.peak = max(self.peak, peak)
        threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
        said = sidecar.ledger()
        if said["balance"]:
            self.unbalanced.append(said)
        numbers = (now, descriptors(pid), threads, cpu_seconds(pid))
        self.samples.append(Sample(time.monotonic(), pid, *numbers, said, sidecar.kernel()[0]))

    def most(self, side: str) -> int:
        """The highest reading of a side of the ledger."""
        return max((sample.ledger.get(side, 0) for sample in self.samples), default=0)

    def latency_ms(self) -> dict[str, float]:
        """Of /health/live: median, 99th percentile, most; and how late the watcher was itself."""
        found = sorted(self.latencies) or [0.0]
        shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        said = {
            name: round(found[min(int(share * len(found)), len(found) - 1)] * 1000, 1)
            for name, share in shares.items()
        }
        return {**said, "asked": len(self.latencies), "watcher_late": round(self.late * 1000, 1)}


class Kills:
    """SIGKILLs of a sidecar: when, and what its newest reading said."""

    def __init__(self, sidecar: Sidecar, watch: Watch) -> None:
        self._sidecar = sidecar
        self._watch = watch
        self.at: list[float] = []
        """Wall-clock seconds."""
        self.waiting: list[int] = []
        """Packets in memory at the newest look before."""

    def strike(self) -> None:
        """Kill it; the next life begins at once."""
        samples = self._watch.samples
        self.waiting.append(samples[-1].ledger["waiting"] if samples else 0)
        self.at.append(time.time())
        self._sidecar.kill()


# ---------------------------------------------------------------------------------------- traffic


class Generator:
    """A program that sends, and says at its end what it sent."""

    def __init__(self, name: Path, words: Sequence[str | Path]) -> None:
        self._out = name.with_suffix(".out")
        self._err = name.with_suffix(".err")
        self.process = spawn(words, self._err, out=self._out)

    @property
    def running(self) -> bool:
        """It still sends."""
        return self.process.poll() is None

    def hold(self, on: bool) -> None:
        """Stop it for a while, or let it go on."""
        if self.running:
            self.process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def said(self, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for its end; what it says."""
        code = self.process.wait(seconds)
        if code:
            raise AssertionError(f"the generator ended with {code}: {tail(self._err)}")
        said: dict[str, Any] = json.loads(self._out.read_text().splitlines()[-1])
        return said

    def end(self) -> None:
        """Whatever it does: no more."""
        reap(self.process, signal.SIGKILL, 10)


# --------------------------------------------------------------------------------------- schedules


class Event(NamedTuple):
    """Something to do, seconds after the beginning."""

    at: float
    name: str
    act: Callable[[], None]


def spread(rng: random.Random, seconds: float, lengths: Sequence[float]) -> list[float]:
    """Begin times of things of these lengths, in this order, none overlapping, with random gaps.

    The first twentieth and the last tenth stay free. Raises Unfit when there is no room.
    """
    begin, end = seconds * 0.05, seconds * 0.9
    free = end - begin - sum(lengths)
    if free <= 0:
        raise Unfit(f"{sum(lengths):g} s of faults do not fit into a run of {seconds:g} s")
    gaps = [rng.random() + 0.2 for _ in range(len(lengths) + 1)]
    times = []
    at = begin
    for gap, length in zip(gaps, lengths, strict=False):
        at += gap / sum(gaps) * free
        times.append(at)
        at += length
    return times


def play(
    events: Sequence[Event],
    while_true: Callable[[], bool],
    tend: Callable[[], None],
    every: float = 0.05,
) -> float:
    """Do the events in time while something goes on, then those that are left; seconds taken.

    Late events are done at once, all of them: each fault has its repair.
    """
    began = time.monotonic()
    waiting = sorted(events, key=lambda event: event.at)
    while while_true() or waiting:
        now = time.monotonic() - began
        while waiting and (waiting[0].at <= now or not while_true()):
            event = waiting.pop(0)
            progress(f"{now:6.1f} s {event.name}")
            event.act()
        tend()
        time.sleep(every)
    return time.monotonic() - began
