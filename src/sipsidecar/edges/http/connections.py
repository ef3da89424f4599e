"""Bounds on clients: how many there are, how long each may take, how much each may send.

aiohttp waits for a request's head and for a client that does not read as long as the client likes
(slowloris), so each connection has a clock here, and one sweep closes those that are overdue.
"""

import asyncio
import enum
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import msgspec
from aiohttp import web

from sipsidecar.edges.http.pages import error_response

MAX_BODY = 64 * 1024
MAX_HEAD = 32 * 1024
"""Bytes of request line and headers in all; aiohttp bounds each of them, at 8190."""
MAX_UNASKED = 2**20
"""Bytes from a client while its request is answered: a body that nobody reads, or pipelining."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
    "Referrer-Policy": "no-referrer",
    "Server": "sipsidecar",
}
"""On every answer; the last so that no versions are told."""


class Limits(msgspec.Struct, frozen=True):
    """What one client may take of us; times in seconds."""

    connections: int = 256
    head_seconds: float = 10.0
    """From connecting, or the first byte of a later request, to the end of its headers; TLS too."""
    body_seconds: float = 10.0
    answer_seconds: float = 30.0
    """Until the answer is made and the client has taken it."""
    idle_seconds: float = 75.0
    grace_seconds: float = 1.0
    """A slow client younger than that is not closed in favour of a new one."""


class Phase(enum.Enum):
    """What a connection is doing."""

    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWER = enum.auto()
    IDLE = enum.auto()


class Connections:
    """All connections that are open."""

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        trouble: Callable[[BaseException], None],
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.trouble = trouble
        self.counters: Counter[str] = Counter()
        self._open: dict[Connection, None] = {}
        self._seconds = {
            Phase.HEAD: limits.head_seconds,
            Phase.BODY: limits.body_seconds,
            Phase.ANSWER: limits.answer_seconds,
            Phase.IDLE: limits.idle_seconds,
        }

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def admit(self) -> bool:
        """Make room for one more; who idles or is slow goes first, so that probes get in."""
        if len(self._open) < self.limits.connections:
            return True
        oldest = self.clock() - self.limits.grace_seconds
        # a switch keeps its connection between two calls: a flood must not cost it its place
        askers = sum(one.asks for one in self._open)
        kept = askers <= self.limits.connections // 2
        rivals = [
            one
            for one in self._open
            if (one.phase is Phase.IDLE or one.since <= oldest) and not (kept and one.asks)
        ]
        if not rivals:
            self.counters["refused-full"] += 1
            return False
        # an idle one loses nothing; one that is being answered may be innocent
        order = {Phase.IDLE: 0, Phase.HEAD: 1, Phase.BODY: 1, Phase.ANSWER: 2}
        min(rivals, key=lambda one: (order[one.phase], one.since)).drop("evicted-full")
        return True

    def add(self, connection: "Connection") -> None:
        """Count a connection from its accept on, before any TLS."""
        self._open[connection] = None
        self.counters["accepted"] += 1

    def discard(self, connection: "Connection") -> None:
        """A connection is gone."""
        self._open.pop(connection, None)

    def sweep(self) -> None:
        """Close whoever took too long."""
        now = self.clock()
        for one in list(self._open):
            if now - one.since > self._seconds[one.phase]:
                one.drop("closed-idle" if one.phase is Phase.IDLE else "closed-slow")

    def drop_all(self, *, busy: bool) -> None:
        """Close those that are not being answered, and with `busy` those too."""
        for one in list(self._open):
            if busy or one.phase in {Phase.HEAD, Phase.IDLE}:
                one.drop("closed-stop")


class Connection(web.RequestHandler):
    """One client: aiohttp's protocol, and the clock that it lacks."""

    def __init__(
        self,
        pool: Connections,
        manager: web.Server,
        loop: asyncio.AbstractEventLoop,
        accepted: socket.socket,
    ) -> None:
        settings: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,  # a body of a thousandfold size
            "lingering_time": 2.0,
            # the sweep closes idle connections; this only stands behind it
            "keepalive_timeout": 2 * pool.limits.idle_seconds,
        }
        super().__init__(manager, loop=loop, **settings)
        self._pool = pool
        self._accepted: socket.socket | None = accepted
        self._wire: asyncio.Transport | None = None
        """The transport; aiohttp forgets its own when it begins to close, and may then wait for
        ever for a client that does not read."""
        self.connecting: asyncio.Task[None] | None = None
        self.phase = Phase.HEAD
        self.since = pool.clock()
        """When this phase began."""
        self.asks = False
        """Questions of calls came over it, from somebody who may ask."""
        self._taken = 0
        """Bytes since the last request was handed on or answered."""
        self._complete = False
        """A request's head has ended, although it was not handed on yet."""
        self._last = b""

    def hand_over(self) -> socket.socket:
        """Give the accepted socket to the loop, which closes it from now on."""
        assert self._accepted is not None
        accepted, self._accepted = self._accepted, None
        return accepted

    def enter(self, phase: Phase) -> None:
        """Begin a phase; its clock starts now."""
        self.phase = phase
        self.since = self._pool.clock()
        if phase is not Phase.HEAD:
            self._taken, self._complete, self._last = 0, False, b""

    def drop(self, why: str) -> None:
        """Close without waiting for the client, and count why."""
        if self in self._pool:
            self._pool.counters[why] += 1
            self.forget()
        if self._wire is not None:
            self._wire.abort()
        elif self.connecting is not None:
            self.connecting.cancel()

    def forget(self) -> None:
        """It takes no place any more."""
        self._pool.discard(self)
        if self._accepted is not None:
            self._accepted.close()
            self._accepted = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless its time or place ran out during the TLS handshake."""
        self._wire = cast("asyncio.Transport", transport)
        super().connection_made(transport)
        if self not in self._pool:
            self._wire.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport is closed."""
        self._wire = None
        self.forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a client, as many as one may send."""
        if data:
            if self not in self._pool:
                return
            if self.phase is Phase.IDLE:
                self.enter(Phase.HEAD)
            self._taken += len(data)
            if self.phase is Phase.HEAD and not self._complete:
                end = b"\r\n\r\n"
                self._complete = end in data or end in self._last + data[:3]
                self._last = (self._last + data[-3:])[-3:]
            head = self.phase is Phase.HEAD and not self._complete
            if self._taken > (MAX_HEAD if head else MAX_UNASKED):
                self.drop("closed-big")
                return
        try:
            super().data_received(data)
        except Exception:  # noqa: BLE001 -- some parsers raise anything; the loop would log each one
            self.drop("closed-garbage")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 -- it repeats the client's bytes
    ) -> web.StreamResponse:
        """Make the answer to what is no HTTP; aiohttp would log each one."""
        if status < 500:
            self._pool.counters["bad-request"] += 1
        elif exc is not None:
            self._pool.trouble(exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        self._pool.counters[f"requests-{status // 100}xx"] += 1
        error = "send HTTP/1.1 with one Host header; this was not, or it was meant for https"
        response = error_response(status, error if status < 500 else "look into the sidecar's log")
        response.headers.update(HEADERS)
        response.force_close()
        return response

    def log_exception(self, *_: object, **options: object) -> None:
        """Take what aiohttp would log."""
        error = options.get("exc_info")
        if isinstance(error, BaseException):
            self._pool.trouble(error)
