"""One Kamailio that is told what to refuse, by JSON-RPC: what changed at once, all of it every second.

Kamailio forgets what is not renewed, so that its calls pass when this process is gone or stuck.
Nothing is believed to be there until Kamailio has said so: it may be away, restarted, or without the
tables; a datagram may be lost. An array of calls does nothing in Kamailio (5.6), and answers as if it
had: one call is one datagram.
"""

import asyncio
import logging
import re
import socket
import ssl
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from sipsidecar.config import parse_address
from sipsidecar.edges.kamailio.entries import CHECKSUM, TEXTS, UP, Encoder, Key
from sipsidecar.signals.decisions import Denial, PushState, RateLimit
from sipsidecar.tables import printable

EVERY: Final = 1.0
"""Seconds between two renewals."""
LOOK: Final = 0.25
"""Seconds between two looks for missing answers."""
PATIENCE: Final = 0.5
"""Seconds for an answer, and for a connection."""
MOST_ALOFT: Final = 64
"""Calls without an answer, and answers taken in one turn of the loop: a millisecond."""
MOST_ANSWER: Final = 65536
COMPLAIN_EVERY: Final = 60.0

log = logging.getLogger("sipsidecar.admission")

_CHECK: Final = (TEXTS, "")
"""Not a key but a task: see whether the texts are there."""
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LENGTH: Final = re.compile(
    rb"\r\nContent-Length[ \t]*:[ \t]*([0-9]{1,8})[ \t]*\r\n", re.IGNORECASE
)


class _Said(msgspec.Struct):
    """What an answer holds."""

    id: int
    result: Any = msgspec.UNSET
    error: Any = None


_decode = msgspec.json.Decoder(_Said).decode
_encode = msgspec.json.Encoder().encode


class _Aloft(msgspec.Struct):
    """One call whose answer is awaited."""

    key: Key
    value: int | str | None
    """What it has to be there then; None: nothing."""
    sent_at: float


class _Line(Protocol):
    """Some way to Kamailio."""

    def send(self, call: bytes) -> bool:
        """Send one call now; False: not now."""

    def close(self) -> None:
        """End it."""


class KamailioPush:
    """One configured Kamailio: `show` says what must hold, `run` sees to it that it does.

    `address` is `udp:HOST:PORT`, `unix:/PATH` or `http://HOST:PORT/PATH` (https, too); ValueError for
    anything else. `routes` and `addresses` are as `Encoder` wants them. What was pushed holds for
    `lease_seconds`.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        routes: Sequence[str] = (),
        addresses: Callable[[str, str], Sequence[str]] = lambda _scope, _value: (),
        lease_seconds: int = 3,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.address = address
        self.late = 0
        """Answers that nobody awaited any more."""
        self._now = now  # not the loop's, which counts in milliseconds
        self._open = _opener(address)
        self._lease = lease_seconds
        self._encoder = Encoder(name, routes, addresses)
        self._shown: tuple[list[Denial], list[RateLimit]] = ([], [])
        entries = self._encoder.encode((), ())
        self._wanted: dict[Key, int | str] = {**entries.texts, **entries.leased}
        self._left_out = 0
        self._held: set[Key] = set()
        """Of those that expire, which it took."""
        self._line: _Line | None = None
        self._last_id = 0
        self._aloft: dict[int, _Aloft] = {}
        self._busy: dict[Key, bool] = {}
        """Keys of calls aloft, and whether they need another: two workers of Kamailio might swap
        two calls about one key."""
        self._urgent: dict[Key, None] = {}
        self._due: dict[Key, None] = {}
        self._up = False
        self._clean = False
        """Nothing failed since the last renewal."""
        self._probing = False
        """It failed: one call has to show that it is back before all of them are sent."""
        self._owes_texts = True
        self._error: str | None = None
        self._since: float | None = None
        self._complained: tuple[str, float] | None = None
        self._rtts: deque[float] = deque(maxlen=256)
        self._pushed = 0
        self._failed = 0

    def show(
        self,
        denials: Sequence[Denial],
        limits: Sequence[RateLimit],
        caps: Mapping[tuple[str, str], int] | None = None,  # noqa: ARG002 -- it counts no calls
    ) -> None:
        """Take what must hold from now on, and send what changed before returning."""
        shown = (list(denials), list(limits))
        if shown == self._shown:
            return
        self._shown = shown
        entries = self._encoder.encode(*shown)
        self._left_out = entries.left_out
        before, self._wanted = self._wanted, {**entries.texts, **entries.leased}
        # Texts first: a refusal must not be there before its reason.
        changed = [key for key, value in self._wanted.items() if before.get(key) != value]
        gone = [key for key in before.keys() - self._wanted.keys() if key[0] != TEXTS]
        self._hurry(changed + gone)
        if CHECKSUM in changed:
            self._urgent |= dict.fromkeys(self._texts())
        self._pump()

    async def run(self) -> None:
        """Keep Kamailio at what was shown, until cancelled; what it holds then expires by itself."""
        renewed_at: float | None = None
        try:
            while True:
                self._look_for_missing()
                now = self._now()
                if renewed_at is None or now - renewed_at >= EVERY - LOOK / 2:
                    renewed_at = now
                    if self._line is None:
                        await self._connect()
                    self._renew()
                await asyncio.sleep(LOOK)
        finally:
            self._hang_up()
            self._up = False

    def status(self) -> PushState:
        """How it is with it now."""
        error = self._error
        if error is None and self._left_out:
            error = f"{self._left_out} denials or limits are too many: left out"
        return PushState(
            name=self.name,
            kind="kamailio",
            up=self._up,
            error=error,
            rtt_ms=statistics.median(self._rtts) * 1000 if self._rtts else None,
            entries=len(self._held) if self._up else 0,
            pushed=self._pushed,
            failed=self._failed,
            since=None if self._since is None else max(0.0, self._now() - self._since),
        )

    # -- what is to be sent

    def _renew(self) -> None:
        """Have everything sent that expires, and see whether the rest is still there."""
        if self._line is None:
            return
        self._probing = not self._up and not self._clean and self._error is not None
        self._clean = True
        if self._probing:
            self._urgent = {UP: None}
            self._due.clear()
        else:
            self._renew_all()
        self._pump()

    def _renew_all(self) -> None:
        # The wanted are in their order: texts, then that we are up, then who is closed.
        texts = self._texts()
        leased = [key for key in self._wanted if key[0] != TEXTS]
        if self._owes_texts:
            self._owes_texts = False
            self._hurry(texts)
        self._due = dict.fromkeys(leased)
        self._due |= dict.fromkeys(key for key in self._held if key not in self._wanted)
        if texts:
            self._due[_CHECK] = None

    def _texts(self) -> list[Key]:
        """All texts behind their checksum.

        Kamailio has them all when it has the checksum, for all of them are set after it: had it lost
        some by a restart that nobody saw, it would have lost the checksum as well.
        """
        return [key for key in self._wanted if key[0] == TEXTS]

    def _hurry(self, keys: Sequence[Key]) -> None:
        """Send these before all else, in this order."""
        self._urgent = dict.fromkeys(keys) | self._urgent

    def _pump(self) -> None:
        """Send what waits, as much as a turn and the switch can bear; answers send the rest."""
        while self._line is not None and (self._urgent or self._due):
            if len(self._aloft) >= MOST_ALOFT:
                return
            queue = self._urgent or self._due
            key = next(iter(queue))
            del queue[key]
            if key in self._busy:
                self._busy[key] = self._busy[key] or queue is self._urgent
                continue
            if not self._send(key):
                if self._line is not None:
                    self._hurry([key])
                return

    def _send(self, key: Key) -> bool:
        assert self._line is not None
        value = self._wanted.get(CHECKSUM if key == _CHECK else key)
        params: list[int | str] = [*key]
        if key == _CHECK:
            method, params = "htable.get", [*CHECKSUM]
        elif value is None:
            method = "htable.delete"
        elif isinstance(value, int):
            method = "htable.setxi"
            params += [value, self._lease]
        else:
            method = "htable.sets"
            params.append(value)
        self._last_id = (self._last_id + 1) % 2**31
        call = {"jsonrpc": "2.0", "method": method, "params": params, "id": self._last_id}
        # Before it is sent: a line that breaks while sending ends all calls aloft.
        self._aloft[self._last_id] = _Aloft(key, value, self._now())
        self._busy[key] = False
        call_id, line = self._last_id, self._line
        if line.send(_encode(call)):
            return True
        if self._aloft.pop(call_id, None) is not None:
            del self._busy[key]
        return False

    # -- what comes back

    def _heard(self, answer: bytes) -> None:
        """One answer, whatever it is."""
        try:
            said = _decode(answer)
        except (msgspec.DecodeError, RecursionError):
            self._fail("answers what is no JSON-RPC")
            return
        call = self._aloft.pop(said.id, None)
        if call is None:
            self.late += 1
            return
        again = self._busy.pop(call.key)
        wrong = self._wrong(call, said)
        if wrong is not None and call.key != _CHECK:
            self._fail(wrong)
        else:
            self._pushed += 1
            self._rtts.append(self._now() - call.sent_at)
            if wrong is not None:
                # It was restarted, or has another sidecar's.
                self._hurry(self._texts())
            elif call.value is None:
                self._held.discard(call.key)
            elif call.key[0] != TEXTS:
                self._held.add(call.key)
        if again:
            self._hurry(self._texts() if call.key == CHECKSUM else [call.key])
        if self._clean and not (self._aloft or self._urgent or self._due):
            if self._probing:
                self._probing = False
                self._renew_all()
            else:
                self._went_up()
        self._pump()

    def _wrong(self, call: _Aloft, said: _Said) -> str | None:
        """What is wrong with an answer; None: nothing."""
        if said.error is not None:
            error = said.error if isinstance(said.error, dict) else {}
            words, code = error.get("message"), error.get("code")
            if call.value is None and code == 404:
                return None  # it was gone
            if words in ("No such htable", "Failed to set the item"):
                return f"has no table {call.key[0]}: is sipsidecar-admission.cfg included?"
            return f"refuses: {printable(str(words)[:100])}"
        if said.result is msgspec.UNSET:
            return "answers nothing"
        if call.key == _CHECK:
            item = said.result.get("item") if isinstance(said.result, dict) else None
            value = item.get("value") if isinstance(item, dict) else None
            return None if value == call.value else "holds other texts"
        return None

    def _look_for_missing(self) -> None:
        overdue = self._now() - PATIENCE
        missing = [call_id for call_id, call in self._aloft.items() if call.sent_at < overdue]
        for call_id in missing:
            call = self._aloft.pop(call_id)
            del self._busy[call.key]
            self._urgent[call.key] = None
        if missing:
            self._fail("does not answer", len(missing))
            self._pump()

    # -- up and down

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                self._line = await self._open(self._heard, self._broke)
        except (OSError, ValueError) as error:  # a name that can be none is a UnicodeError
            self._fail(_words(error))

    def _broke(self, why: str) -> None:
        """The line is of no use any more."""
        lost = len(self._aloft)
        self._hang_up()
        self._fail(why, max(lost, 1))

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        self._urgent |= {call.key: None for call in self._aloft.values()}
        self._aloft.clear()
        self._busy.clear()
        if line is not None:
            line.close()

    def _fail(self, why: str, calls: int = 1) -> None:
        now = self._now()
        self._failed += calls
        self._clean = False
        self._owes_texts = True
        self._error = why
        if self._up or self._since is None:
            self._since = now
        self._up = False
        said = self._complained
        if said is None or said[0] != why or now - said[1] >= COMPLAIN_EVERY:
            self._complained = why, now
            log.warning("Kamailio %s at %s: %s; it is told nothing", self.name, self.address, why)

    def _went_up(self) -> None:
        if self._up:
            return
        self._up = True
        self._since = self._now()
        self._error = None
        self._complained = None
        log.info("Kamailio %s at %s: takes what it is told", self.name, self.address)


Heard = Callable[[bytes], None]
Broke = Callable[[str], None]


def _words(error: Exception) -> str:
    """Why there is no way to it, in words of ours or the system's."""
    if isinstance(error, TimeoutError):
        return "cannot be reached in time"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "nobody listens there"
    return printable((getattr(error, "strerror", None) or str(error) or type(error).__name__)[:100])


def _opener(address: str) -> Callable[[Heard, Broke], Awaitable[_Line]]:
    """How to get a line to an address; ValueError."""
    if address.startswith("udp:"):
        host, port = parse_address(address.removeprefix("udp:"))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET

        async def open_udp(heard: Heard, broke: Broke) -> _Line:
            return _Datagrams(family, (host, port), heard, broke)

        return open_udp
    if address.startswith("unix:/"):

        async def open_unix(heard: Heard, broke: Broke) -> _Line:
            return _Datagrams(socket.AF_UNIX, address.removeprefix("unix:"), heard, broke)

        return open_unix
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"expected udp:, unix: or http://, got {address!r}")
    secure = url.scheme == "https"
    host, port = url.hostname, url.port or (443 if secure else 80)
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")

    async def open_http(heard: Heard, broke: Broke) -> _Line:
        _, line = await asyncio.get_running_loop().create_connection(
            lambda: _Http(url.netloc, target, heard, broke),
            host,
            port,
            ssl=ssl.create_default_context() if secure else None,
        )
        return line

    return open_http


class _Datagrams:
    """A datagram socket to Kamailio, and nobody else's datagrams from it."""

    def __init__(
        self, family: int, address: tuple[str, int] | str, heard: Heard, broke: Broke
    ) -> None:
        self._heard, self._broke = heard, broke
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            if family == socket.AF_UNIX:
                # A name of the kernel's choice, so that it can answer; nothing stays on disk.
                self._socket.bind("")
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket.fileno(), self._read)

    def send(self, call: bytes) -> bool:
        """Send one call; False when the kernel has no room now, or the line broke."""
        try:
            self._socket.send(call)
        except BlockingIOError:
            return False
        except OSError as error:
            self._broke(_words(error))
            return False
        return True

    def close(self) -> None:
        """End it."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        for _ in range(MOST_ALOFT):
            if self._socket.fileno() < 0:
                return
            try:
                answer = self._socket.recv(MOST_ANSWER)
            except BlockingIOError:
                return
            except OSError as error:  # ICMP says that nobody listens
                self._broke(_words(error))
                return
            self._heard(answer)


class _Http(asyncio.Protocol):
    """One kept connection, with several calls on it at a time (RFC 9112 9.3.2)."""

    def __init__(self, authority: str, target: str, heard: Heard, broke: Broke) -> None:
        self._head = (
            f"POST {target} HTTP/1.1\r\nHost: {authority}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._heard, self._broke = heard, broke
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._full = False
        self._closed = False

    def send(self, call: bytes) -> bool:
        """Send one call; False when what was sent before is not taken."""
        if self._transport is None or self._full or self._closed:
            return False
        self._transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(call), call))
        return True

    def close(self) -> None:
        """End it."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer has accepted."""
        self._transport = cast("asyncio.Transport", transport)  # which uvloop's is not by class
        if self._closed:
            self._transport.abort()

    def pause_writing(self) -> None:
        """It does not read."""
        self._full = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._full = False

    def data_received(self, data: bytes) -> None:
        """Bytes, in any pieces."""
        self._buffer += data
        while not self._closed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MOST_ANSWER:
                    self._end("answers what is no HTTP")
                return
            head = bytes(self._buffer[: end + 2])
            status, length = _STATUS.match(head), _LENGTH.search(head)
            if status is None or length is None or int(length[1]) > MOST_ANSWER:
                self._end("answers what is no HTTP")
                return
            if len(self._buffer) < end + 4 + int(length[1]):
                return
            body = bytes(self._buffer[end + 4 : end + 4 + int(length[1])])
            del self._buffer[: end + 4 + int(length[1])]
            if status[1] != b"200":
                self._end(f"answers HTTP {int(status[1])}")
                return
            self._heard(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._end("closed the connection" if exc is None else _words(exc))

    def _end(self, why: str) -> None:
        if not self._closed:
            self._closed = True
            if self._transport is not None:
                self._transport.abort()
            self._broke(why)
