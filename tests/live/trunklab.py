"""A real Kamailio before trunks that can be broken, callers, and a receiver of alerts."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any, Self

from certificates import Authority, Certificate
from live.programs import (
    Program,
    answers_options,
    free_port,
    kamailio_command,
    need,
    network,
    running,
    until,
)

HERE = Path(__file__).parent
CONFIG = HERE / "kamailio-watch-test.cfg"
SCENARIO = HERE / "scenarios" / "uac_trunks.xml"
SIP, SIPS = 5060, 5061
TENANTS = {"red": "4930", "blue": "4940"}
"""By what the called number begins with."""
BUSY = 33
"""One call of so many is answered 486: there is no trunk without any."""
CODECS = {"PCMA": "8 PCMA/8000", "G729": "18 G729/8000"}


class Exchange:
    """The loop of all far ends, in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wait(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def wait(self, what: Any) -> Any:
        """Await something on its loop."""
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(10)

    @staticmethod
    async def _end() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class Trunk(asyncio.DatagramProtocol):
    """A carrier's end: takes calls over UDP, and over TLS where it has a certificate.

    How it answers may be changed at any time. `troubled` are calls that it took while it was broken.
    """

    def __init__(self, name: str, ip: str, certificate: Certificate | None = None) -> None:
        self.name = name
        self.ip = ip
        self.failing = False
        """Answer 503."""
        self.silent = False
        self.rings_after = 0.05
        """Seconds from the INVITE to the 180."""
        self.codec = "PCMA"
        self.broken = False
        """Take note of calls."""
        self.troubled: set[str] = set()
        self.calls: dict[str, float] = {}
        """When each was met first, by time()."""
        self._certificate = certificate
        self._udp: asyncio.DatagramTransport | None = None
        self._tls: asyncio.Server | None = None

    @property
    def udp_uri(self) -> str:
        return f"sip:{self.ip}:{SIP}"

    @property
    def uri(self) -> str:
        """As it is meant to be reached."""
        return f"sip:{self.ip}:{SIPS};transport=tls" if self._certificate else self.udp_uri

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, (self.ip, SIP))
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate.certificate, self._certificate.key)
            self._tls = await asyncio.start_server(self._serve, self.ip, SIPS, ssl=context)

    async def close(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tls is not None:
            self._tls.close()

    def between(self, first: float, last: float) -> int:
        """Calls that came in this time."""
        return sum(first <= at < last for at in list(self.calls.values()))

    def datagram_received(self, data: bytes, addr: Any) -> None:
        udp = self._udp
        assert udp is not None

        def send(reply: bytes) -> None:
            if not udp.is_closing():
                udp.sendto(reply, addr)

        self._take(data.decode("latin-1"), send)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"\r\nContent-Length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(size[1]) if size else 0)
                if not writer.is_closing():
                    self._take((head + body).decode("latin-1").lstrip("\r\n"), writer.write)
        writer.close()

    def _take(self, request: str, send: Any) -> None:
        method = request.partition(" ")[0]
        if method == "INVITE":
            self._invite(request, send)
        elif not self.silent and method in ("OPTIONS", "BYE", "CANCEL"):
            send(self._reply(request, "200 OK"))

    def _invite(self, request: str, send: Any) -> None:
        call_id = re.findall(r"^Call-ID: *(\S+)", request, re.MULTILINE)[0]
        if self.broken:
            self.troubled.add(call_id)
        if self.silent or call_id in self.calls:
            self.calls.setdefault(call_id, time())
            return  # a copy of what was answered
        self.calls[call_id] = time()
        if self.failing:
            send(self._reply(request, "503 Service Unavailable"))
            return
        send(self._reply(request, "100 Trying"))
        loop = asyncio.get_running_loop()
        if len(self.calls) % BUSY == 0:
            loop.call_later(self.rings_after, send, self._reply(request, "486 Busy Here"))
            return
        payload, _, encoding = CODECS[self.codec].partition(" ")
        sdp = (
            f"v=0\r\no=- 1 1 IN IP4 {self.ip}\r\ns=-\r\nc=IN IP4 {self.ip}\r\nt=0 0\r\n"
            f"m=audio 30000 RTP/AVP {payload}\r\na=rtpmap:{payload} {encoding}\r\n"
        )
        loop.call_later(self.rings_after, send, self._reply(request, "180 Ringing"))
        loop.call_later(self.rings_after + 0.05, send, self._reply(request, "200 OK", sdp))

    def _reply(self, request: str, said: str, body: str = "") -> bytes:
        kept = re.findall(r"^(?:Via|From|To|Call-ID|CSeq|Record-Route): .*$", request, re.MULTILINE)
        lines = [f"SIP/2.0 {said}"]
        for line in map(str.strip, kept):
            tagged = line.startswith("To:") and ";tag=" not in line and not said.startswith("100")
            lines.append(f"{line};tag={self.name}" if tagged else line)
        secure = request.partition("\r\nVia: ")[2].startswith("SIP/2.0/TLS")
        contact = self.uri if secure else self.udp_uri
        lines += [f"Contact: <{contact}>"]
        lines += ["Content-Type: application/sdp"] if body else []
        lines += [f"Content-Length: {len(body)}", "", body]
        return "\r\n".join(lines).encode("latin-1")


class Hook:
    """A webhook's receiver, in a thread: what was told at each path, and when by time()."""

    def __init__(self) -> None:
        told: list[tuple[float, str, dict[str, Any]]] = []
        self.told = told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                told.append((time(), self.path, json.loads(body)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def __str__(self) -> str:
        return "\n".join(f"{body['what']} {body['summary']}" for _, _, body in list(self.told))

    def at(self, path: str) -> list[tuple[float, dict[str, Any]]]:
        """What was told at one path, in its order."""
        return [(at, body) for at, where, body in list(self.told) if where == path]


@dataclass
class Stack:
    """One Kamailio, its trunks, and where the sidecar is to be."""

    folder: Path
    net: str
    trunks: dict[str, Trunk]
    authority: str = ""
    """PEM file, where a trunk has TLS."""
    hep: str = ""
    rpc: str = ""
    kamailio: Program | None = None
    _unsafe: set[str] = field(default_factory=set)

    @property
    def proxy(self) -> str:
        return f"{self.net}.1:{SIP}"

    @property
    def list_file(self) -> Path:
        return self.folder / "trunks.list"

    def write_list(self) -> None:
        """Where the dispatcher sends calls."""
        uris = [
            one.udp_uri if one.name in self._unsafe else one.uri for one in self.trunks.values()
        ]
        self.list_file.write_text("".join(f"1 {uri} 0 0\n" for uri in uris))

    def downgrade(self, name: str) -> None:
        """Send a trunk's calls over UDP, as somebody may who edits the list."""
        self._unsafe.add(name)
        self._reload()

    def upgrade(self, name: str) -> None:
        self._unsafe.discard(name)
        self._reload()

    def _reload(self) -> None:
        self.write_list()
        said = self.ask("dispatcher.reload")
        assert "result" in said, said

    def ask(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call of Kamailio."""
        host, _, port = self.rpc.partition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((host, int(port)))
            call = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
            sock.send(json.dumps(call).encode())
            return json.loads(sock.recv(65536))

    def flags(self, name: str) -> str:
        """The dispatcher's flags of a trunk."""
        ip = self.trunks[name].ip
        for one in self.ask("dispatcher.list")["result"]["RECORDS"]:
            for target in one["SET"]["TARGETS"]:
                if target["DEST"]["URI"].startswith(f"sip:{ip}:"):
                    return str(target["DEST"]["FLAGS"])
        raise AssertionError(name)

    @contextlib.contextmanager
    def calling(self, per_second: float) -> Iterator[Program]:
        """Calls in a row, to numbers of all tenants."""
        numbers = self.folder / "numbers.csv"
        numbers.write_text("RANDOM\n" + "".join(f"{one};\n" for one in TENANTS.values()))
        ip = f"{self.net}.9"
        command: list[str | Path] = [need("sipp", "sip-tester"), self.proxy, "-sf", SCENARIO]
        command += ["-inf", numbers, "-i", ip, "-p", str(SIP), "-bind_local", "-nostdin"]
        command += ["-m", "1000000", "-l", "2000", "-cid_str", f"{self.folder.name}.%u.%p@%s"]
        # One that is lost is no end of all others.
        command += ["-r", f"{per_second * 10:g}", "-rp", "10000", "-recv_timeout", "60000"]
        with running("callers", command, self.folder) as program:
            yield program


def _close(exchange: Exchange, trunk: Trunk) -> None:
    exchange.wait(trunk.close())


@contextlib.contextmanager
def stack(
    folder: Path, exchange: Exchange, names: Sequence[str], secure: Sequence[str] = (), *, hep: str
) -> Iterator[Stack]:
    """A Kamailio before these trunks, those of `secure` over TLS; it is up, and nobody calls yet."""
    folder.mkdir(parents=True, exist_ok=True)
    net = network()
    made = Stack(folder, net, {}, hep=hep, rpc=f"127.0.0.1:{free_port()}")
    own: Certificate | None = None
    defines: dict[str, str | int] = {"PROXY_LISTEN": made.proxy}
    strings = {
        "TRUNK_LIST": str(made.list_file),
        "SIPSIDECAR_RPC": f"udp:{made.rpc}",
        "SIPSIDECAR_URI": f"sip:{hep}",
    }
    if secure:
        authority = Authority(folder, "carriers")
        ips = ",".join(f"IP:{net}.{number}" for number in range(1, 9))
        own = authority.issue("trunk", names=ips, days=90)
        made.authority = authority.certificate
        defines |= {"TLS_LISTEN": f"{net}.1:{SIPS}", "PROXY_IP": f"{net}.1"}
        strings |= {"TLS_CERTIFICATE": own.certificate, "TLS_KEY": own.key}
    for number, name in enumerate(names, start=2):
        made.trunks[name] = Trunk(name, f"{net}.{number}", own if name in secure else None)
    made.write_list()
    command = kamailio_command(CONFIG, folder, defines, strings=strings)
    with contextlib.ExitStack() as opened:
        for one in made.trunks.values():
            exchange.wait(one.open())
            opened.callback(_close, exchange, one)
        made.kamailio = opened.enter_context(running("kamailio", command, folder))
        host, _, port = made.proxy.partition(":")
        until("OPTIONS answer", lambda: answers_options(host, int(port)), 30, made.kamailio)
        yield made


def settings(
    at: Stack,
    hook: str,
    *,
    clear_seconds: float,
    peers: bool,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """The sidecar's configuration for a stack."""
    lines = ["[hep]", "agents = { edge = 2001 }"]
    for name, one in at.trunks.items():
        lines += ["[[cohorts.match]]", f'trunk = "{name}"', 'carrier = "north"']
        lines += [f'destinations = ["{one.ip}"]']
    for tenant, prefix in TENANTS.items():
        lines += ["[[cohorts.match]]", f'tenant = "{tenant}"', 'direction = "outbound"']
        lines += [f'prefixes = ["{prefix}"]']
    if peers:
        lines += ["[trunks]", f'kamailio = {{ edge = "udp:{at.rpc}" }}']
        for name, one in at.trunks.items():
            lines += ["[[trunks.peers]]", f'name = "{name}"', f'uri = "{one.uri}"']
            lines += ["dispatcher_group = 1"]
            if "tls" in one.uri:
                lines += [f'ca = "{at.authority}"']
    lines += ["[alerts]", f"clear_seconds = {clear_seconds:g}"]
    lines += ["[[alerts.receivers]]", 'name = "hook"', 'kind = "webhook"', f'url = "{hook}"']
    lines += ['severity = "trend"']
    for section, text in (extra or {}).items():
        lines += [f"[{section}]", text]
    path = at.folder / "sidecar.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
