"""What reading a FreeSWITCH event costs: our JSON reader, our plain reader and greenswitch.

    make bench-esl ARGS="--events 20000 --rounds 3"

All get the same recorded events over loopback, at full speed, each in a process of its own. Prints
a Markdown table: CPU of the reading process per event, and its memory. Quote the ratios.
"""

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast
from xml.etree import ElementTree as ET

import msgspec

HERE = Path(__file__).parent
FORMATS: Final = {"plain": "plain", "json": "json", "greenswitch": "plain"}
"""Of each reader."""
USER: Final = HERE.parents[1] / "freeswitch" / "directory" / "sidecar.xml"
"""It names the events that the product subscribes to."""
LIMIT: Final = 60.0
"""Seconds after which a reader is given up."""
HOSTILE: Final = frozenset({"24-hostile-headers.esl", "25-hostile-headers-json.esl"})
"""Not UTF-8, or forging: no measure of speed; greenswitch ends at the former."""


# ------------------------------------------------------------------------------- what is replayed


class Block(msgspec.Struct):
    """Recorded events, which are sent over and over."""

    data: dict[str, bytes]
    """By format. JSON is encoded from the plain ones, in FreeSWITCH's compact form."""
    names: Counter[str]
    """How many there are of each name."""


def recorded_block() -> Block:
    """Of all recordings, the events that the product subscribes to."""
    # Not at the top: it must not be part of the readers' memory.
    sys.path.insert(0, str(HERE.parent))
    import fakeswitch

    user = ET.parse(USER)  # noqa: S314 - our own file
    asked = user.find(".//param[@name='esl-allowed-events']")
    assert asked is not None
    wanted = set(asked.attrib["value"].split())
    events = [
        event
        for path in sorted(fakeswitch.RECORDINGS.glob("*.esl"))
        if path.name not in HOSTILE
        for event in fakeswitch.read_events(path.read_bytes())
        if (event.get("Event-Subclass") or event.get("Event-Name")) in wanted
    ]
    names = Counter(event.get("Event-Name") for event in events)
    data = {how: b"".join(event.encode(how) for event in events) for how in ("plain", "json")}
    return Block(data, names)


class Replay:
    """An event socket for one reader: logs it in, says yes to its subscription, then sends all."""

    def __init__(self, block: bytes, times: int) -> None:
        self._block, self._times = block, times
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(LIMIT)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # a reader that went away says why itself
            self._send_to(self._listener.accept()[0])

    def _send_to(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            connection.settimeout(LIMIT)
            connection.sendall(b"Content-Type: auth/request\n\n")
            for said in (b"+OK accepted", b"+OK event listener enabled"):
                while lines.readline().strip():
                    pass
                connection.sendall(b"Content-Type: command/reply\nReply-Text: %s\n\n" % said)
            for _ in range(self._times):
                connection.sendall(self._block)
            lines.read()  # until the reader has gone

    def close(self) -> None:
        self._listener.close()
        self._thread.join(LIMIT)


# ---------------------------------------------------------------------------------- who reads it


def read_ours(port: int, how: str, events: int) -> dict[str, Any]:
    import uvloop

    from sipsidecar.wire import esl

    names: Counter[str] = Counter()
    connection = esl.Connection()

    class Reader(asyncio.Protocol):
        def __init__(self, done: asyncio.Future[None]) -> None:
            self.done, self.left = done, events

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            subscription = esl.subscribe(["CHANNEL_CREATE"], json=how == "json")
            # uvloop's transport is no asyncio.Transport by type.
            cast("asyncio.Transport", transport).write(esl.auth("x") + subscription)

        def data_received(self, data: bytes) -> None:
            for item in connection.receive_data(data):
                if isinstance(item, esl.Event):
                    names[item.event_name] += 1
                    self.left -= 1
            if not self.left and not self.done.done():
                self.done.set_result(None)

    async def read() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        memory, began = memory_now(), cpu()
        transport, _ = await loop.create_connection(lambda: Reader(done), "127.0.0.1", port)
        await done
        said = {"cpu": cpu() - began, "before": memory, "peak": memory_peak(), "names": names}
        transport.close()
        return said

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(read())


def read_greenswitch(port: int, events: int) -> dict[str, Any]:
    # By name: they have no types, and need not be there.
    green = importlib.import_module("greenswitch")
    gevent_event = importlib.import_module("gevent.event")
    names: Counter[str] = Counter()
    done = gevent_event.Event()

    def handle(event: Any) -> None:
        names[event.headers["Event-Name"]] += 1
        if names.total() == events:
            done.set()

    client = green.InboundESL(host="127.0.0.1", port=port, password="x")  # noqa: S106
    client.register_handle("*", handle)
    memory, began = memory_now(), cpu()
    client.connect()
    client.send("event plain CHANNEL_CREATE")
    done.wait()
    return {"cpu": cpu() - began, "before": memory, "peak": memory_peak(), "names": names}


def cpu() -> float:
    """Seconds that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_now() -> int:
    return _status("VmRSS")


def memory_peak() -> int:
    # Not ru_maxrss, which begins with that of the parent.
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024


# ------------------------------------------------------------------------------------ the measure


def measure(reader: str, block: Block, times: int) -> dict[str, Any]:
    """One reader, one process; fails when it did not see exactly what was sent."""
    replay = Replay(block.data[FORMATS[reader]], times)
    try:
        command = [
            sys.executable,
            __file__,
            "--read",
            reader,
            str(replay.port),
            str(times * block.names.total()),
        ]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT)
    finally:
        replay.close()
    said: dict[str, Any] = json.loads(ran.stdout)
    wanted = {name: count * times for name, count in block.names.items()}
    assert said["names"] == wanted, f"{reader} saw {said['names']}, not {wanted}"
    return said


def compare(events: int, rounds: int, readers: Iterable[str]) -> list[dict[str, Any]]:
    """Per reader the medians over the rounds; in each round every reader has its turn."""
    block = recorded_block()
    each = block.names.total()
    times = max(1, events // each)
    said: dict[str, list[dict[str, Any]]] = {reader: [] for reader in readers}
    for _, reader in itertools.product(range(rounds), said):
        said[reader].append(measure(reader, block, times))
    return [
        {
            "reader": reader,
            "events": times * each,
            "bytes": len(block.data[FORMATS[reader]]) / each,
            "us": statistics.median(run["cpu"] for run in runs) * 1e6 / (times * each),
            "peak_mb": statistics.median(run["peak"] for run in runs) / 1e6,
            "grown_mb": statistics.median(run["peak"] - run["before"] for run in runs) / 1e6,
        }
        for reader, runs in said.items()
    ]


NAMES: Final = {
    "plain": "sipsidecar, `event plain`",
    "json": "sipsidecar, `event json`",
    "greenswitch": "greenswitch, `event plain`",
}


def table(rows: list[dict[str, Any]]) -> str:
    base = next(row["us"] for row in rows if row["reader"] == "plain")
    lines = [
        "| reader | bytes per event | CPU per event us | against plain | peak RSS MB | grown by MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {NAMES[row['reader']]} | {row['bytes']:.0f} | {row['us']:.1f} | "
            f"{row['us'] / base:.2f} | {row['peak_mb']:.0f} | {row['grown_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="per reader and round (20000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every reader (3)")
    parser.add_argument("--json", action="store_true", help="one JSON object per reader")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        reader, port, events = arguments.read
        if reader == "greenswitch":
            said = read_greenswitch(int(port), int(events))
        else:
            said = read_ours(int(port), reader, int(events))
        print(json.dumps(said), flush=True)
        os._exit(0)  # no reader's goodbye is part of the measure
    readers = list(FORMATS)
    if importlib.util.find_spec("greenswitch") is None:
        readers.remove("greenswitch")
        print("greenswitch is not installed: pip install greenswitch", file=sys.stderr)
    rows = compare(arguments.events, arguments.rounds, readers)
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
    else:
        about = f"{rows[0]['events']} events per reader, median of {arguments.rounds} rounds"
        print(f"{about}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
