"""The sidecar as a process, and what its tests need around one."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sipsidecar.wire import hep, pcap

T = TypeVar("T")

CORPUS = Path(__file__).parent / "corpus"
LIMIT = 30.0
"""Seconds after which whatever is waited for will not come."""
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith("SIPSIDECAR_")
} | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}


def until(what: str, look: Callable[[], T | None], limit: float = LIMIT) -> T:
    """What `look` returns once it is neither None nor False."""
    deadline = time.monotonic() + limit
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.02)


def command(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """One command that ends by itself; `settings` are environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "sipsidecar", *map(str, arguments)],
        env=ENVIRONMENT | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=LIMIT * 2,
        check=False,
    )


def children(pid: int) -> set[int]:
    """The processes that a process has started and that are there still, and theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    newest = {pid}
    while newest:
        newest = {child for child, parent in parents.items() if parent in newest}
        found |= newest
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run: not gone, and no zombies that nobody has collected."""
    left = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                left.add(pid)
    return left


def datagrams(name: str) -> list[bytes]:
    """The HEP datagrams of a capture of the corpus, in their order."""
    with (CORPUS / f"{name}.pcap").open("rb") as file:
        return [captured.payload for captured in pcap.Reader(file)]


def recent(name: str, to: Path, seconds: float) -> Path:
    """A capture of the corpus as if it had begun so many seconds ago."""
    with (CORPUS / f"{name}.pcap").open("rb") as file:
        read = [captured for captured in pcap.Reader(file) if captured.captured_at is not None]
    shift = time.time_ns() // 1000 - int(seconds * 1e6) - min(one.captured_at or 0 for one in read)
    records = [pcap.file_header()]
    for one in read:
        packet = hep.decode(one.payload)
        moved = hep.encode(
            source=packet.source,
            destination=packet.destination,
            source_port=packet.source_port,
            destination_port=packet.destination_port,
            ip_protocol=packet.ip_protocol,
            captured_at=(packet.captured_at or 0) + shift,
            protocol_type=packet.protocol_type,
            agent_id=packet.agent_id,
            correlation_id=packet.correlation_id,
            payload=packet.payload,
        )
        ends = (one.source, one.destination, one.source_port, one.destination_port)
        records.append(pcap.udp_record((one.captured_at or 0) + shift, *ends, moved))
    to.write_bytes(b"".join(records))
    return to


def send_udp(address: tuple[str, int], packets: list[bytes], source: str = "127.0.0.1") -> None:
    """Send as one agent would, not faster than a small receive buffer stands."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        for number, packet in enumerate(packets):
            sock.sendto(packet, address)
            if not number % 20:
                time.sleep(0.005)


def send_tcp(address: tuple[str, int], packets: list[bytes], source: str = "127.0.0.1") -> None:
    """Send over one connection, and close it."""
    with socket.create_connection(address, LIMIT, (source, 0)) as sock:
        sock.sendall(b"".join(packets))


class Sidecar:
    """One `sipsidecar run` or `demo`, on free ports unless `arguments` say otherwise."""

    def __init__(
        self, folder: Path, *arguments: str | Path, name: str = "run", **settings: str
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        where = () if "--dsn" in arguments else ("--data", self.data)
        ports = ("--hep", "127.0.0.1:0", "--http", "127.0.0.1:0")
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            words = (name, *where, *ports, *arguments)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sipsidecar", *map(str, words)],
                env=ENVIRONMENT | {"SIPSIDECAR_SPOOL__DIRECTORY": str(folder / "spool")} | settings,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.hep = self.http = ("", 0)

    def wait_ready(self) -> "Sidecar":
        """Wait for the greeting, and read the addresses in it."""

        def greeting() -> str | None:
            assert self.process.poll() is None, self.words
            text = self.out.read_text()
            return text if "\n  calls " in text else None

        text = until("a greeting", greeting)
        self.hep = self._address(r"HEP +(\S+):(\d+)", text)
        self.http = self._address(r"HTTP +https?://(\S+):(\d+)", text)
        return self

    @staticmethod
    def _address(pattern: str, text: str) -> tuple[str, int]:
        found = re.search(pattern, text)
        assert found, text
        return found[1].strip("[]"), int(found[2])

    @property
    def words(self) -> str:
        """What it wrote to standard error."""
        return self.err.read_text()

    def get(self, path: str) -> tuple[int, Any]:
        """Status and body of a page of JSON."""
        host, port = self.http
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=LIMIT) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def ledger(self) -> dict[str, Any]:
        """Its ledger page."""
        said: dict[str, Any] = self.get("/v1/ledger")[1]
        return said

    def wait_stored(self, packets: int) -> dict[str, Any]:
        """Wait until so many packets have come and none waits for the database."""

        def settled() -> dict[str, Any] | None:
            said = self.ledger()
            return said if said["received"] >= packets and not said["waiting"] else None

        return until(f"{packets} packets: {self.ledger()}", settled)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(LIMIT)

    def ask(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command about its data."""
        name, *rest = arguments
        return command(name, "--data", self.data, *rest)


@contextlib.contextmanager
def sidecar(
    folder: Path, *arguments: str | Path, name: str = "run", **settings: str
) -> Iterator[Sidecar]:
    """A sidecar that is ready, for the length of a `with`."""
    one = Sidecar(folder, *arguments, name=name, **settings)
    try:
        yield one.wait_ready()
    finally:
        one.kill()
