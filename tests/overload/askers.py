"""A switch that asks and is told, without calls: how long a sidecar takes to answer and to tell.

    python -m overload.askers --evapi 127.0.0.1:8448 --rpc 127.0.0.1:8033 --http 127.0.0.1:9080 \
        --seconds 10

It takes the sidecar's connection as Kamailio's evapi does and puts its questions there, others over
kept HTTP connections, both at a steady rate whatever the answers take, so that a slow answer delays
the figures of those behind it. It answers what is pushed to it as Kamailio's jsonrpcs does, and
measures how long a drain takes from the operator's request to the switch. The times are said at the
end as JSON, in milliseconds.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import uvloop

DRAINED = "trunk::probed"
"""The key whose drains are timed; the configuration must have such a trunk."""
LOST_AFTER = 5.0
"""Seconds without an answer."""


def netstring(text: str) -> bytes:
    """As evapi frames a message."""
    return f"{len(text)}:{text},".encode()


def question(number: int, source: str) -> str:
    """What sipsidecar-admission-asked.cfg sends for one INVITE."""

    def digits(text: str) -> str:
        return text.encode().hex()

    now = time.time()
    said: dict[str, int | str] = {"ti": number, "tl": 1, "s": int(now), "u": int(now % 1 * 1e6)}
    said |= {"si": source, "sp": 5060, "ri": "192.0.2.9", "rp": 5060}
    said |= {"ci": digits(f"probe-{number}"), "ft": digits("f"), "cs": digits("1")}
    said |= {"ru": digits(f"sip:4930{number}@example.com"), "fu": digits("sip:caller@example.com")}
    said |= {"tu": digits(f"sip:4930{number}@example.com"), "du": "", "pr": "", "rs": ""}
    said |= {"hd": "", "tr": "", "te": "", "di": "", "re": ""}
    return json.dumps(said, separators=(",", ":"))


class Evapi(asyncio.Protocol):
    """Kamailio's side of one connection."""

    def __init__(self, times: list[float | None]) -> None:
        self.ready = asyncio.Event()
        """The other side has said that it lives."""
        self._times = times
        self._asked: dict[int, float] = {}
        self._held = b""
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._held += data
        while b":" in self._held:
            length, _, rest = self._held.partition(b":")
            end = int(length)
            if len(rest) <= end:
                return
            message, self._held = rest[:end], rest[end + 1 :]
            if message == b"b":
                self.ready.set()
                self._send("b")
            elif message.startswith(b"a|"):
                asked = self._asked.pop(int(message.split(b"|")[1]), None)
                if asked is not None:
                    self._times.append(now - asked)

    def ask(self, number: int, source: str, at: float) -> None:
        """Put a question that was due at `at`."""
        self._asked[number] = at
        self._send(question(number, source))

    def unanswered(self) -> int:
        """Questions that wait."""
        return len(self._asked)

    def _send(self, text: str) -> None:
        if self._wire is not None:
            self._wire.write(netstring(text))


class Rpc(asyncio.DatagramProtocol):
    """Kamailio's JSON-RPC: takes whatever it is told."""

    def __init__(self) -> None:
        self.pushed = 0
        self.changes: asyncio.Queue[tuple[float, bool]] = asyncio.Queue()
        """When the drained key closed (True) or opened."""
        self.ready = asyncio.Event()
        """All that holds now is pushed: the other side knows that we are here."""
        self._closed = False
        self._texts: dict[tuple[str, str], str] = {}
        self._wire: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.DatagramTransport", transport)

    def answer(self, call: dict[str, Any]) -> dict[str, Any]:
        """What htable says; it keeps texts alone, for numbers are not read back."""
        said: dict[str, Any] = {"jsonrpc": "2.0", "id": call["id"]}
        key = (call["params"][0], call["params"][1])
        if call["method"] == "htable.sets":
            self._texts[key] = call["params"][2]
        if call["method"] == "htable.get":
            if key not in self._texts:
                return said | {
                    "error": {"code": 500, "message": "Key name doesn't exist in htable."}
                }
            return said | {"result": {"item": {"name": key[1], "value": self._texts[key]}}}
        return said | {"result": {}}

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        now = time.perf_counter()
        call = json.loads(data)
        self.pushed += 1
        assert self._wire is not None
        self._wire.sendto(json.dumps(self.answer(call)).encode(), addr)
        if call["params"][:2] == ["sidecar", "up"]:
            self.ready.set()
        if call["params"][:2] == ["sidecar", DRAINED]:
            closed = call["method"] != "htable.delete"
            if closed != self._closed:
                self._closed = closed
                self.changes.put_nowait((now, closed))


class Http:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        # The name that the guard against forged requests looks at.
        self._host = "{}:{}".format(*writer.get_extra_info("peername")[:2])

    async def post(self, path: str, body: dict[str, Any]) -> int:
        """One request; its status."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = answer.partition("content-length:")[2].partition("\r\n")[0]
        await self._reader.readexactly(int(length or 0))
        return int(answer.split()[1])

    def close(self) -> None:
        """End it."""
        self._writer.close()


async def _every(
    seconds: float, rate: float, act: Callable[[int, float], Coroutine[Any, Any, None] | None]
) -> None:
    """Do something at a steady rate, never waiting for it; those who wait are ended at the end."""
    began = time.perf_counter()
    waiting: set[asyncio.Task[None]] = set()
    for number in range(int(seconds * rate)):
        at = began + number / rate
        if (wait := at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        doing = act(number, at)
        if doing is not None:
            one = asyncio.create_task(doing)
            waiting.add(one)
            one.add_done_callback(waiting.discard)
    if waiting:
        await asyncio.wait(waiting, timeout=LOST_AFTER)
    for one in list(waiting):
        one.cancel()


async def probe(wanted: argparse.Namespace) -> dict[str, Any]:
    """All questions, and what they took."""
    loop = asyncio.get_running_loop()
    evapi_times: list[float | None] = []
    http_times: list[float | None] = []
    drains: list[float | None] = []
    met: asyncio.Queue[Evapi] = asyncio.Queue()

    def accept() -> Evapi:
        line = Evapi(evapi_times)
        met.put_nowait(line)
        return line

    def place(address: str) -> tuple[str, int]:
        host, port = address.rsplit(":", 1)
        return host, int(port)

    server = await loop.create_server(accept, *place(wanted.evapi))
    _, rpc = await loop.create_datagram_endpoint(Rpc, local_addr=place(wanted.rpc))
    print("ready", flush=True)
    line = await asyncio.wait_for(met.get(), 30)
    await asyncio.wait_for(line.ready.wait(), 30)
    await asyncio.wait_for(rpc.ready.wait(), 30)
    idle: asyncio.Queue[Http] = asyncio.Queue()
    for _ in range(wanted.connections):
        idle.put_nowait(Http(*await asyncio.open_connection(*place(wanted.http))))

    async def ask_http(number: int, at: float) -> None:
        connection = await idle.get()
        body = {"call_id": f"http-{number}", "from_tag": "f", "cseq": 1, "src_ip": "192.0.2.1"}
        status = await connection.post("/v1/admission", body)
        http_times.append(time.perf_counter() - at if status == 200 else None)
        idle.put_nowait(connection)

    async def drain_and_resume() -> None:
        for path in ("drain", "resume"):
            at = time.perf_counter()
            operator = Http(*await asyncio.open_connection(*place(wanted.http)))
            await operator.post(f"/v1/admission/{path}", {"trunk": DRAINED.partition("::")[2]})
            operator.close()
            with contextlib.suppress(TimeoutError):
                seen, _ = await asyncio.wait_for(rpc.changes.get(), LOST_AFTER)
                drains.append(seen - at)
                continue
            drains.append(None)

    async def operate() -> None:
        until = time.perf_counter() + wanted.seconds
        while time.perf_counter() < until:
            await drain_and_resume()
            await asyncio.sleep(0.5)

    def ask_evapi(number: int, at: float) -> None:
        line.ask(number, f"192.0.2.{number % 8 + 1}", at)

    await asyncio.gather(
        _every(wanted.seconds, wanted.rate, ask_evapi),
        _every(wanted.seconds, wanted.rate, ask_http),
        operate(),
    )
    if line.unanswered():
        await asyncio.sleep(LOST_AFTER)
    server.close()
    lost = {
        "evapi": line.unanswered(),
        "http": int(wanted.seconds * wanted.rate) - len(http_times) + http_times.count(None),
        "drain": drains.count(None),
    }
    taken = {"evapi": evapi_times, "http": http_times, "drain": drains}
    return {
        "lost": lost,
        "pushed": rpc.pushed,
        "ms": {
            name: sorted(round(one * 1000, 3) for one in times if one is not None)
            for name, times in taken.items()
        },
    }


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--evapi", required=True, metavar="ADDR:PORT", help="listens here")
    flags.add_argument("--rpc", required=True, metavar="ADDR:PORT", help="listens here")
    flags.add_argument("--http", required=True, metavar="ADDR:PORT", help="of the sidecar")
    flags.add_argument("--seconds", type=float, default=10)
    flags.add_argument("--rate", type=float, default=100, help="questions per second, each way")
    flags.add_argument("--connections", type=int, default=4, help="kept ones, over HTTP")
    return flags


def main() -> int:
    """Run it as a program."""
    wanted = parser().parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(probe(wanted))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
