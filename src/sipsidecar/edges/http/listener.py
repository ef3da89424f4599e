"""Listens for HTTP and HTTPS, and takes each request past the guard to its page."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import ip_address
from typing import Any

from aiohttp import web

from sipsidecar.config import ConfigError
from sipsidecar.edges.http.connections import (
    HEADERS,
    MAX_BODY,
    Connection,
    Connections,
    Limits,
    Phase,
)
from sipsidecar.edges.http.guard import Access, Refusal, Role, refuse_forged
from sipsidecar.edges.http.pages import (
    Page,
    Pages,
    Reload,
    Render,
    Request,
    Switches,
    error_response,
)
from sipsidecar.edges.http.verdicts import ABSENT, QUESTION, Admitter, admission_pages
from sipsidecar.edges.http.watch import Watcher, watch_pages
from sipsidecar.signals.snapshot import Figures
from sipsidecar.tables import printable
from sipsidecar.tls import TlsError

PER_TURN = 32
"""Connections that are accepted in one turn of the loop."""
PER_TURN_TLS = 4
"""The same with TLS: a handshake costs more than a millisecond, and capture waits meanwhile."""
BACKLOG = 128
ACCEPT_AGAIN = 1.0
"""Seconds until the next accept when there are no descriptors left."""
SWEEP = 1.0
SAY_EVERY = 60.0
"""Seconds between two log lines of one kind."""
PACE = 3
"""Pages may take one part of the loop's time for so many that they leave to others."""
QUESTION_SHARE = 0.001
"""Seconds of one turn of the loop for questions, besides what reading and writing them takes."""
MAX_SENDING = 16 * 2**20
"""Bytes of answers that clients have not taken yet; with more, only probes are answered."""
CLOSE_SECONDS = 0.5

log = logging.getLogger("sipsidecar.http")


class HttpError(OSError):
    """A listener that cannot be had; the message is one line that says what to do."""


class Line:
    """Requests one after the other, each in its own turn of the loop.

    However many ask at one moment, capture has the loop between any two of them, and for `pace`
    times as long as one took.
    """

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._lock = asyncio.Lock()
        self._free_at = 0.0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn; nothing may be awaited in it, or one client would keep the others."""
        async with self._lock:
            # not the loop's clock: uvloop's stands still during a turn
            await asyncio.sleep(max(self._free_at - time.monotonic(), 0))
            began = time.monotonic()
            try:
                yield
            finally:
                ended = time.monotonic()
                self._free_at = ended + self._pace * (ended - began)


class Share:
    """Requests at once, while they take less than `seconds` of a turn of the loop; the rest later.

    For questions that calls wait for: under load a turn takes milliseconds, and one question in each
    would keep a burst of calls waiting longer than their switches do.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._spent = 0.0
        self._begun = False

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn with time left; nothing may be awaited in it."""
        while self._spent >= self._seconds:  # noqa: ASYNC110 -- an event comes a turn later
            await asyncio.sleep(0)
        if not self._begun:
            self._begun = True
            asyncio.get_running_loop().call_soon(self._next)
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - began

    def _next(self) -> None:
        """The next turn of the loop: all that was called soon in the last one runs in it."""
        self._spent, self._begun = 0.0, False


class HttpServer:
    """The pages on one address.

    `switches` gives what is known of each FreeSWITCH. `admission` answers for calls; without it its
    pages are not there; nor are those of `watch` without it. `tls` makes the context of each new listener, and again at `reload_tls`;
    None is plain HTTP.
    `reload` is what POST /v1/reload calls; what it returns is the answer, and the words of a
    ConfigError or TlsError are told to who asked. Without it there is no such page.
    """

    def __init__(
        self,
        figures: Callable[[], Figures],
        render_metrics: Render,
        live_calls: Callable[[int], Sequence[dict[str, Any]]],
        *,
        switches: Switches = list,
        admission: Admitter | None = None,
        watch: Watcher | None = None,
        access: Access | None = None,
        reload: Reload | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.access = access or Access()
        """Who may ask for what; a new one counts from the next request on."""
        more = {} if admission is None else admission_pages(admission)
        if watch is not None:
            more |= watch_pages(watch)
        self._pages = Pages(figures, render_metrics, live_calls, reload, switches, more)
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._limits = limits or Limits()
        self._loop = asyncio.get_running_loop()
        self._connections = Connections(self._limits, self._loop.time, self._trouble)
        self.counters: Counter[str] = self._connections.counters
        self._manager: web.Server | None = None
        self._listeners: list[socket.socket] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._wildcard = False
        self._line, self._probe_line, self._questions = Line(PACE), Line(0), Share(QUESTION_SHARE)
        self._sending = 0
        self._said: Counter[str] = Counter()
        self._say_at: dict[str, float] = {}
        self._stranger = ""

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address it got. TlsError when the certificate cannot be used."""
        self.reload_tls()
        try:
            self._listeners = _listen(host, port)
        except OSError as error:
            raise HttpError(error.errno, f"HTTP {host}:{port} {_explain(error)}") from None
        self._manager = web.Server(
            self._handle,
            request_factory=lambda message, payload, protocol, writer, task: web.BaseRequest(
                message, payload, protocol, writer, task, self._loop, client_max_size=MAX_BODY
            ),
            handler_cancellation=True,
        )
        bound: tuple[str, int] = self._listeners[0].getsockname()[:2]
        self._wildcard = ip_address(bound[0].partition("%")[0]).is_unspecified
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
        self._sweep()
        return bound

    def reload_tls(self) -> None:
        """Read the certificate again, for new connections; a TlsError leaves the old one."""
        if self._tls is not None:
            self._context = self._tls()

    async def close(self) -> None:
        """Stop listening, finish what is being answered, close every connection."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        manager, self._manager = self._manager, None
        if manager is None:
            return
        self._connections.drop_all(busy=False)
        await manager.shutdown(CLOSE_SECONDS)
        self._connections.drop_all(busy=True)
        # the loop closes descriptors in a later turn, those of TLS after two
        for _ in range(4):
            await asyncio.sleep(0)

    # -- connections

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(PER_TURN if self._context is None else PER_TURN_TLS):
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:  # it is gone already
                continue
            except OSError:  # no descriptors or memory: asking again at once would spin
                self.counters["accept-failed"] += 1
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(ACCEPT_AGAIN, self._accept_again, listener)
                return
            if not self._connections.admit():
                accepted.close()
                continue
            accepted.setblocking(False)
            assert self._manager is not None
            connection = Connection(self._connections, self._manager, self._loop, accepted)
            self._connections.add(connection)
            connection.connecting = self._loop.create_task(self._connect(connection))

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    async def _connect(self, connection: Connection) -> None:
        accepted, context = connection.hand_over(), self._context
        patience: dict[str, Any] = {}
        if context is not None:
            patience = {
                "ssl_handshake_timeout": self._limits.head_seconds,
                "ssl_shutdown_timeout": CLOSE_SECONDS,
            }
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=context, **patience
            )
        except OSError:  # a handshake that failed: plain HTTP, garbage, an old version
            if connection in self._connections:
                self.counters["closed-handshake"] += 1
            connection.forget()
        except Exception as error:  # noqa: BLE001 -- one client's fault must not be everybody's
            self._trouble(error)
            connection.forget()
        finally:
            connection.connecting = None

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(
            min(SWEEP, self._limits.head_seconds / 2), self._sweep
        )
        self._connections.sweep()
        if self._may_say("unauthorized"):
            new = self.counters["unauthorized"] - self._said["unauthorized"]
            self._said["unauthorized"] += new
            log.warning(
                "%d requests without a valid token, the last from %s",
                new,
                printable(self._stranger),
            )

    # -- requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer, and see the client take the answer: aiohttp would not wait for it."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.enter(Phase.ANSWER)
        try:
            response = await self._answer(request, connection)
            if response.status >= 400 and request.path == QUESTION:
                self.counters["not-decided"] += 1
            self.counters[f"requests-{response.status // 100}xx"] += 1
            response.headers.update(HEADERS)
            unread = request.body_exists and not request.content.at_eof()
            if "Upgrade" in request.headers or (response.status >= 400 and unread):
                response.force_close()
            size = response.content_length or 0
            self._sending += size
            try:
                with contextlib.suppress(ConnectionError):
                    await response.prepare(request)
                    await response.write_eof()
                    await request.writer.drain()
            finally:
                self._sending -= size
        finally:
            connection.enter(Phase.IDLE)
        return response

    async def _answer(self, request: web.BaseRequest, connection: Connection) -> web.Response:
        page = self._pages.find(request.path)
        line = self._line_of(page)
        try:
            async with line.turn():
                found = self._find(request, page)
                if isinstance(found, web.Response):
                    return found
                page, role = found
                connection.asks |= page.question
                if request.method != "POST":
                    return self._make(page, Request(request, role))
            body = await self._body(request, connection)
            if isinstance(body, web.Response):
                return body
            if not page.body and body.strip() not in {b"", b"{}"}:
                return error_response(400, "send {} or nothing as the body")
            async with line.turn():
                return self._make(page, Request(request, role, body))
        except (ConfigError, TlsError) as error:
            return error_response(422, str(error))
        except Exception as error:  # noqa: BLE001 -- whatever it is, the client gets no traceback
            self._trouble(error)
            return error_response(500, "this page failed: look into the sidecar's log")

    def _line_of(self, page: Page | None) -> Line | Share:
        if page is not None and page.question:
            return self._questions
        return self._probe_line if page is not None and page.probe else self._line

    def _make(self, page: Page, request: Request) -> web.Response:
        if self._sending <= MAX_SENDING or page.probe or page.question:
            return page.make(request)
        self.counters["refused-busy"] += 1
        busy = error_response(503, "too many slow clients: ask again in a second")
        busy.headers["Retry-After"] = "1"
        return busy

    def _find(
        self, request: web.BaseRequest, page: Page | None
    ) -> tuple[Page, Role] | web.Response:
        """Find that there is such a page and the asker's role, or refuse."""
        access, headers = self.access, request.headers
        if not request.raw_path.startswith("/"):
            return error_response(400, "ask for a path that begins with /")
        refusal = access.refuse_host(
            headers,
            local=_local_address(request),
            wildcard=self._wildcard,
            changing=request.method not in {"GET", "HEAD"} or (page is not None and page.changes),
            old=request.version < (1, 1),
        )
        if refusal is not None:
            return self._refused(refusal, request)
        role = access.role_of(headers)
        needs = Role.READ if page is None else page.needs
        refusal = access.refuse_role(role, needs, headers)
        if refusal is not None:
            return self._refused(refusal, request)
        if role is Role.NOBODY and "Authorization" in headers:
            self._count_stranger(request)  # a wrong token shows on open pages, too
        if page is None:
            return error_response(
                404, ABSENT.get(request.path, "there is no such page: / lists them")
            )
        allowed = {*page.methods}
        if "GET" in allowed and not page.changes:
            allowed.add("HEAD")
        if request.method not in allowed:
            response = error_response(405, f"send {' or '.join(page.methods)} here")
            response.headers["Allow"] = ", ".join(sorted(allowed))
            return response
        if page.changes:
            refusal = refuse_forged(headers, secure=self._context is not None)
            if refusal is not None:
                return self._refused(refusal, request)
        return page, role

    def _refused(self, refusal: Refusal, request: web.BaseRequest) -> web.Response:
        if refusal.counter == "unauthorized":
            self._count_stranger(request)
        else:
            self.counters[refusal.counter] += 1
        response = error_response(refusal.status, refusal.error)
        response.headers.update(refusal.headers)
        return response

    async def _body(self, request: web.BaseRequest, connection: Connection) -> bytes | web.Response:
        """Read the body of a changing request, or refuse it."""
        headers = request.headers
        if request.content_type != "application/json" or "Content-Encoding" in headers:
            return error_response(415, "send `Content-Type: application/json` and no encoding")
        if "Expect" in headers:
            return error_response(417, "send the body without an Expect header")
        too_large = f"send a body of at most {MAX_BODY} bytes"
        if (request.content_length or 0) > MAX_BODY:
            return error_response(413, too_large)
        connection.enter(Phase.BODY)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return error_response(413, too_large)
        except (ConnectionError, web.RequestPayloadError):
            return error_response(400, "the body did not come whole: send it again")
        connection.enter(Phase.ANSWER)
        return body

    # -- what is said of strangers and faults

    def _count_stranger(self, request: web.BaseRequest) -> None:
        self.counters["unauthorized"] += 1
        self._stranger = request.remote or "?"

    def _trouble(self, error: BaseException) -> None:
        """Count a fault of ours, and log it with the others of its minute."""
        self.counters["faults"] += 1
        if self._may_say("faults"):
            new = self.counters["faults"] - self._said["faults"]
            self._said["faults"] += new
            lines = "".join(traceback.format_exception(error)).splitlines()
            shown = "".join(f"\n  {printable(line)}" for line in lines)
            log.error("%d faults, the last:%s", new, shown)

    def _may_say(self, what: str) -> bool:
        now = self._loop.time()
        if self.counters[what] == self._said[what] or now < self._say_at.get(what, 0.0):
            return False
        self._say_at[what] = now + SAY_EVERY
        return True


def _listen(host: str, port: int) -> list[socket.socket]:
    """Bind every address of the host that this machine has, all on one port."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        if listeners:
            port = listeners[0].getsockname()[1]
        try:
            listeners.append(_bound(family, kind, protocol, (address[0], port, *address[2:])))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                absent = error  # localhost may name ::1 on a machine without IPv6
                continue
            for listener in listeners:
                listener.close()
            raise
    if absent is not None and not listeners:
        raise absent
    return listeners


def _bound(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _local_address(request: web.BaseRequest) -> str:
    name = request.get_extra_info("sockname")
    return str(name[0]) if name else ""


def _explain(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "is taken by another program; stop it, or give --http another ADDR:PORT"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return "is no address of this machine; give --http one that is"
    if error.errno == errno.EACCES:
        return "may not be used by this user; give --http a port above 1023"
    return error.strerror or str(error)
