"""One FreeSWITCH over its event socket: connect, subscribe, read for ever, come back after each end.

FreeSWITCH queues events for a slow reader, and cuts it off when that queue is full: what comes is
read at once and in small turns, so that neither the switch nor the loop waits for the other. The
socket speaks no TLS, and whoever answers on it may be stuck, restarted, wrong or silent: every wait
has an end, and every end has a name in `counters`.
"""

import asyncio
import contextlib
import logging
import random
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import msgspec

from sipsidecar.tables import printable
from sipsidecar.wire import esl

EVENTS: Final = (
    "CHANNEL_CREATE",
    "CHANNEL_PROGRESS",
    "CHANNEL_PROGRESS_MEDIA",
    "CHANNEL_ANSWER",
    "CHANNEL_BRIDGE",
    "CHANNEL_UNBRIDGE",
    "CHANNEL_HANGUP_COMPLETE",
    "CHANNEL_DESTROY",
    "HEARTBEAT",
    "RECV_RTCP_MESSAGE",
    "SEND_RTCP_MESSAGE",
    "sofia::gateway_state",
    "sofia::register",
    "sofia::unregister",
    "sofia::expire",
)
"""What is subscribed to: a restricted user needs the right to these, and to CUSTOM."""
APIS: Final = ("global_getvar", "global_setvar", "show", "version")
"""API commands that are used; a user who may not use them only knows less."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
SLOW_PAUSE: Final = 60.0
"""Seconds between attempts when the switch refuses us: each one is a line in its log."""
STABLE: Final = 5.0
"""Seconds after which a connection counts as good, and the next pause is the first again."""
PATIENCE: Final = 5.0
"""Seconds for the connection, for the greeting and login, and for each answer after it."""
COMPLAIN_EVERY: Final = 600.0
TURN: Final = 0.004
"""Seconds that one connection works before others get their turn."""
PIECE: Final = 16 * 1024
MOST_WAITING: Final = 1024 * 1024
"""Bytes that wait here before the kernel must hold the rest."""
MOST_COMMANDS: Final = 256
"""Commands without an answer."""
CHECKS: Final = 4
"""Looks in a row without a byte in between that make silence. Not a time: after the loop itself
stood still, only one look is late."""
MOST_CHANNELS: Final = 10_000
"""Channels that are listed: each is about a kilobyte of one answer, which FreeSWITCH and this loop
make in one piece."""
MOST_WATCHED: Final = 100_000
SETTLE: Final = 1.0
"""Seconds by which FreeSWITCH's table of channels may be behind its events."""
RECONCILE_EVERY: Final = 10.0
"""Seconds between two lists that were asked for because live counts differed."""
LAG_WINDOW: Final = 30.0
KEEP_ALIVE: Final = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
"""Seconds, seconds, probes."""

log = logging.getLogger("sipsidecar.freeswitch")


class SwitchUnavailable(Exception):
    """A command was not sent or not answered; `why`: not-connected, busy, timeout or lost."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class SwitchState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one switch now; texts are printable."""

    name: str
    address: str
    connected: bool
    """Logged in and subscribed."""
    since: float | None
    """When that began or ended, UNIX seconds; None before the first connection."""
    version: str | None
    core_uuid: str | None
    """Of its process: changes with its restart."""
    events: int
    refused: int
    """Frames that were no event or reply."""
    received_bytes: int
    reconnects: int
    """Connections after the first one."""
    last_event_seconds: float | None
    """Since the latest event."""
    lag_seconds: float | None
    """Smallest difference lately between an event's time and ours: delay and both clocks' error."""
    error: str | None
    """Why it is not connected."""


class _Over(Exception):
    """The end of a connection, or of an attempt: a name for the counter, and words for people."""

    def __init__(self, why: str, words: str, *, slow: bool = False) -> None:
        super().__init__(words)
        self.why = why
        self.words = words
        self.slow = slow


class _Row(msgspec.Struct):
    uuid: str


class _Rows(msgspec.Struct):
    row_count: int
    rows: list[_Row] = []


_decode_rows = msgspec.json.Decoder(_Rows).decode
_TOTAL = re.compile(r"([0-9]{1,9}) total\.")
_VERSION = re.compile(r"FreeSWITCH Version (\S{1,100})")
_CORE_UUID = re.compile(r"[0-9A-Za-z-]{1,64}")
_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|.)", re.DOTALL)


class FreeSwitch:
    """One configured switch: `run` keeps the connection, and events come out in order.

    `deliver` gets every event: the name, the event, loop seconds, microseconds UTC. `restarted` gets
    the new Core-UUID, before any event of the new process. `channels` gets the UUIDs of all live
    channels after every connection, and again when a heartbeat's count is not what `live` counts.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        *,
        password: str,
        user: str = "",
        deliver: Callable[[str, esl.Event, float, int], None],
        restarted: Callable[[str, str], None] | None = None,
        channels: Callable[[str, list[str]], None] | None = None,
        on_state: Callable[[SwitchState], None] | None = None,
        live: Callable[[str], int] | None = None,
        heartbeat_seconds: float = 45.0,
        patience: float = PATIENCE,
        now: Callable[[], float] | None = None,
        wall: Callable[[], int] = lambda: time.time_ns() // 1000,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """EslError where user or password cannot be sent.

        After `heartbeat_seconds`, or a quarter more, without a byte it is taken for gone. `wall`
        gives microseconds UTC, `chance` numbers from 0 to 1.
        """
        self.name = name
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.heartbeat_seconds = heartbeat_seconds
        self.counters: Counter[str] = Counter()
        """Of connections, ends by their names, commands and what was left out."""
        self.errors = 0
        """How often a receiver raised: a bug. The event is lost, the next one is heard."""
        self._host, self._port = host, port
        self._login = esl.userauth(user, password) if user else esl.auth(password)
        self._deliver = deliver
        self._restarted = restarted
        self._channels = channels
        self._on_state = on_state
        self._live = live
        self._patience = patience
        self._given_now = now
        self._wall = wall
        self._pause = pause
        self._chance = chance
        self._line: _Line | None = None
        self._connected = False
        self._since: float | None = None
        self._version: str | None = None
        self._core_uuid: str | None = None
        self._error: str | None = None
        self._said: tuple[str, float] | None = None
        self._broke_at: float | None = None
        self._last_event: float | None = None
        self._asked_again: float | None = None
        self._must_reconcile = False
        self._identified = False
        self._watch: _Watch | None = None
        self._lag: deque[tuple[int, float]] = deque(maxlen=2)  # by window

    async def run(self) -> None:
        """Be connected, for ever; ends by being cancelled, after what was read is delivered."""
        pause = FIRST_PAUSE
        while True:
            began = self._now()
            try:
                await self._visit()
            except _Over as over:
                end = over
            except asyncio.CancelledError:
                self._connected = False
                self._error = "stopped"
                raise
            except Exception as error:  # noqa: BLE001 -- a bug must cost one connection, not all
                self._broke(error)
                end = _Over("broken", "a bug here, see the log")
            good = self._went_down(end, began)
            if good:
                pause = FIRST_PAUSE
            # Not all at the same time: switches that stopped together come back together.
            longest = SLOW_PAUSE if end.slow else pause
            await self._pause(longest * (0.5 + self._chance() / 2))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def command(self, line: str, timeout: float = 2.0) -> esl.Reply:  # noqa: ASYNC109 -- it is what callers say
        """Send any command of one line, such as `api status`, and return its answer.

        EslError for a line that would be more than one, SwitchUnavailable without an answer. An
        answer that comes too late is taken for this command, and dropped.
        """
        sent = esl.command(line)
        if self._line is None or not self._connected:
            raise SwitchUnavailable("not-connected")
        try:
            async with asyncio.timeout(timeout):
                return await self._line.ask(sent)
        except TimeoutError:
            self.counters["command-timeouts"] += 1
        raise SwitchUnavailable("timeout")

    def status(self) -> SwitchState:
        """What is known now."""
        line = self._line
        now = self._now()
        window = int(now // LAG_WINDOW)
        return SwitchState(
            name=self.name,
            address=printable(self.address),
            connected=self._connected,
            since=self._since,
            version=self._version,
            core_uuid=None if self._core_uuid is None else printable(self._core_uuid),
            events=self.counters["events"],
            refused=self.counters["refused"] + (line.refused if line else 0),
            received_bytes=self.counters["bytes"] + (line.received if line else 0),
            reconnects=max(self.counters["connected"] - 1, 0),
            last_event_seconds=None if self._last_event is None else now - self._last_event,
            lag_seconds=min((lag for at, lag in self._lag if at >= window - 1), default=None),
            error=self._error,
        )

    # -- one connection

    async def _visit(self) -> None:
        """From the attempt to the end, which is always an _Over."""
        line = await self._connect()
        self._line = line
        try:
            try:
                await self._meet(line)
                while not line.ended.done():
                    await line.stirred.wait()
                    line.stirred.clear()
                    if self._must_reconcile:
                        self._must_reconcile = False
                        self._watch = _Watch()
                        await asyncio.wait({line.ended}, timeout=SETTLE)
                        if not line.ended.done():
                            await self._reconcile(line)
            except TimeoutError:
                line.close("handshake-timeout", "it accepts the connection and does not answer")
            except SwitchUnavailable:  # the line knows why
                pass
        finally:
            line.close("stopped", "")
            # What was read is still delivered, then a new connection may begin.
            await asyncio.wait({line.ended})
            self._watch = None
            self._must_reconcile = False
            self._line = None
            self.counters["bytes"] += line.received
            for why, count in line.refusals.items():
                self.counters["refused"] += count
                self.counters[f"refused-{why}"] += count
        raise _Over(line.why, line.words, slow=line.why == "rejected")

    async def _connect(self) -> "_Line":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._patience):
                transport, line = await loop.create_connection(
                    lambda: _Line(self._hear, self.counters, self.heartbeat_seconds),
                    self._host,
                    self._port,
                )
        except TimeoutError:
            raise _Over("connect-timeout", "no answer to the connection attempt") from None
        except (OSError, UnicodeError) as error:
            words = printable(str(error))[:200] or type(error).__name__
            raise _Over("connect-failed", words) from None
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is gone already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEP_ALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return line

    async def _meet(self, line: "_Line") -> None:
        """Log in, learn who it is, subscribe, and list what is live."""
        async with asyncio.timeout(self._patience):
            await line.greeting
            reply = await line.ask(self._login)
        if not reply.ok:
            raise _Over("login-refused", "it refuses the user or the password", slow=True)
        self._identified = False
        core_uuid = await self._api(line, "global_getvar core_uuid")
        if core_uuid is not None and _CORE_UUID.fullmatch(core_uuid):
            self._identify(core_uuid)
        version = _VERSION.match(await self._api(line, "version") or "")
        self._version = printable(version[1]) if version else None
        # From the subscription on: then no channel is in neither the list nor the events.
        self._watch = _Watch()
        await self._subscribe(line)
        self._went_up()
        if self._identified or self._core_uuid is None:
            await self._reconcile(line)
        else:  # the first event tells whether it restarted; what lives now comes after that
            self._watch = None

    async def _subscribe(self, line: "_Line") -> None:
        reply = await self._ask(line, esl.subscribe(EVENTS))
        if reply.ok:
            return
        # FreeSWITCH stops at the first name that a user may not have: ask for each alone.
        denied = [name for name in EVENTS if not (await self._ask(line, esl.subscribe([name]))).ok]
        if len(denied) == len(EVENTS):
            words = "its user may not have any event (esl-allowed-events)"
            raise _Over("events-denied", words, slow=True)
        self.counters["denied-events"] += len(denied)
        log.warning(
            "FreeSWITCH %s: its user may not have %s (esl-allowed-events)",
            self.name,
            ", ".join(denied),
        )

    async def _ask(self, line: "_Line", sent: bytes) -> esl.Reply:
        async with asyncio.timeout(self._patience):
            return await line.ask(sent)

    async def _api(self, line: "_Line", words: str) -> str | None:
        """The output of an API command without space around it; None where there is none."""
        try:
            reply = await self._ask(line, esl.api(words))
        except TimeoutError:
            self.counters["command-timeouts"] += 1
            return None
        except SwitchUnavailable:
            return None
        text = reply.text.strip()
        return text if reply.ok and text else None

    async def _reconcile(self, line: "_Line") -> None:
        """Hand on what is live. A channel that events told of meanwhile is as they said."""
        try:
            uuids = await self._listed(line)
            watch = self._watch
            if uuids is None or watch is None or watch.full:
                self.counters["channels-unknown"] += 1
            else:
                listed = [uuid for uuid in uuids if uuid not in watch.gone]
                live = list(dict.fromkeys([*listed, *watch.alive]))
                self._call(self._channels, self.name, live)
        finally:
            self._watch = None

    async def _listed(self, line: "_Line") -> list[str] | None:
        said = await self._api(line, "show channels count")
        total = _TOTAL.fullmatch(said or "")
        if total is None:
            return None
        if int(total[1]) > MOST_CHANNELS:
            self.counters["channels-too-many"] += 1
            return None
        said = await self._api(line, "show channels as json") or ""
        try:
            try:
                rows = _decode_rows(said).rows
            except msgspec.DecodeError:
                rows = _decode_rows(_ESCAPE.sub(_without_bytes, said)).rows
        except (msgspec.DecodeError, RecursionError):
            return None
        # Texts as long as those of events.
        return [row.uuid[: esl.MAX_TEXT] for row in rows if row.uuid]

    # -- what comes

    def _hear(self, event: esl.Event) -> None:
        now = self._now()
        received_at = self._wall()
        self.counters["events"] += 1
        self._last_event = now
        try:
            self._notice(event, now, received_at)
            self._deliver(self.name, event, now, received_at)
        except Exception as error:  # noqa: BLE001 -- a bug must cost one event, not the rest
            self._broke(error)

    def _notice(self, event: esl.Event, now: float, received_at: int) -> None:
        """What this side needs of an event."""
        if event.core_uuid and (event.core_uuid != self._core_uuid or not self._identified):
            was_known = self._core_uuid is not None
            self._identify(event.core_uuid)
            if was_known:
                self._wish_list()
        if event.event_name == "HEARTBEAT":  # before others take its count for theirs
            self._compare(event, now)
        stamp = event.event_date_timestamp
        if stamp and len(stamp) <= 17 and stamp.isascii() and stamp.isdigit():
            window, lag = int(now // LAG_WINDOW), (received_at - int(stamp)) / 1e6
            if self._lag and self._lag[-1][0] == window:
                lag = min(lag, self._lag.pop()[1])
            self._lag.append((window, lag))
        if self._watch is not None and event.unique_id:
            self._watch.see(event.event_name, event.unique_id)

    def _identify(self, core_uuid: str) -> None:
        self._identified = True
        known, self._core_uuid = self._core_uuid, core_uuid
        if known is not None and known != core_uuid:
            self.counters["restarts"] += 1
            self._call(self._restarted, self.name, core_uuid)

    def _compare(self, beat: esl.Event, now: float) -> None:
        """Ask for a new list where a heartbeat's count is not ours, but not all the time.

        Under load the two differ by who comes and goes at this moment.
        """
        if self._version is None and beat.freeswitch_version:
            self._version = printable(beat.freeswitch_version[:100])
        said = beat.session_count
        if self._live is None or self._watch is not None:
            return
        if not said or len(said) > 9 or not (said.isascii() and said.isdigit()):
            return
        again = self._asked_again
        if int(said) != self._live(self.name) and (again is None or now - again >= RECONCILE_EVERY):
            self._asked_again = now
            self.counters["counts-differed"] += 1
            self._wish_list()

    def _wish_list(self) -> None:
        """Have what is live listed soon, unless a list is on its way."""
        if self._line is not None and self._connected and self._watch is None:
            self._must_reconcile = True
            self._line.stirred.set()

    # -- up and down

    def _went_up(self) -> None:
        self._connected = True
        self._since = self._wall() / 1e6
        self._error = None
        self._said = None
        self.counters["connected"] += 1
        log.info("FreeSWITCH %s at %s: connected (%s)", self.name, self.address, self._version)
        self._call(self._on_state, self.status())

    def _went_down(self, end: _Over, began: float) -> bool:
        """Note why; returns whether the connection had been good for a while."""
        now = self._now()
        was_up, self._connected = self._connected, False
        self._error = end.words
        self.counters[end.why] += 1
        if was_up:
            self._since = self._wall() / 1e6
        if self._said is None or self._said[0] != end.why or now - self._said[1] > COMPLAIN_EVERY:
            self._said = end.why, now
            log.warning("FreeSWITCH %s at %s: %s", self.name, self.address, end.words)
        self._call(self._on_state, self.status())
        return was_up and now - began >= STABLE

    def _call(self, told: Callable[..., None] | None, *what: object) -> None:
        if told is not None:
            try:
                told(*what)
            except Exception as error:  # noqa: BLE001 -- who is told must not end the telling
                self._broke(error)

    def _broke(self, error: Exception) -> None:
        self.errors += 1
        now = self._now()
        if self._broke_at is None or now - self._broke_at > COMPLAIN_EVERY:
            self._broke_at = now
            log.error("FreeSWITCH %s: handling broke", self.name, exc_info=error)

    def _now(self) -> float:
        return self._given_now() if self._given_now else asyncio.get_running_loop().time()


def _without_bytes(match: re.Match[str]) -> str:
    r"""A `\xe9` stands for a byte that was no UTF-8, which a caller may have sent; it is no JSON."""
    return "?" if match[0].startswith("\\x") else match[0]


class _Watch:
    """Which channels events told of while a list was on its way."""

    def __init__(self) -> None:
        self.alive: dict[str, None] = {}
        self.gone: set[str] = set()
        self.full = False

    def see(self, name: str, uuid: str) -> None:
        """One event."""
        if not name.startswith("CHANNEL_"):
            return
        if len(self.alive) + len(self.gone) >= MOST_WATCHED:
            self.full = True
        elif name == "CHANNEL_DESTROY":
            self.alive.pop(uuid, None)
            self.gone.add(uuid)
        elif uuid not in self.gone:
            self.alive[uuid] = None


class _Line(asyncio.Protocol):
    """One connection, from its making until all that came over it was heard."""

    def __init__(
        self, hear: Callable[[esl.Event], None], counters: Counter[str], silence: float
    ) -> None:
        """`silence`: seconds without a byte, or without an answer, after which it is closed."""
        self._loop = asyncio.get_running_loop()
        self._hear = hear
        self._counters = counters
        self._esl = esl.Connection()
        self._transport: asyncio.Transport | None = None
        self._gone = False
        self._paused = False
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._items: deque[esl.Event | esl.Reply] = deque()
        self._again: asyncio.Handle | None = None
        self._asked: deque[tuple[asyncio.Future[esl.Reply], int]] = deque()
        self._every = silence / CHECKS
        self._checks = self._quiet = 0
        self._checker: asyncio.TimerHandle | None = None
        self.greeting: asyncio.Future[None] = self._loop.create_future()
        """Done when it asks for a login."""
        self.stirred = asyncio.Event()
        """There is something to do, or it is over."""
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the socket is closed and all that was read is heard."""
        self.received = 0
        self.why = ""
        self.words = ""

    @property
    def refusals(self) -> Counter[str]:
        """Frames left out, by why."""
        return self._esl.refused

    @property
    def refused(self) -> int:
        """Frames left out."""
        return self._esl.refused.total()

    def ask(self, sent: bytes) -> asyncio.Future[esl.Reply]:
        """Send a command; its answer, in its turn."""
        if self._transport is None or self.why or self._gone:
            raise SwitchUnavailable("lost")
        if len(self._asked) >= MOST_COMMANDS:
            self._counters["commands-refused"] += 1
            raise SwitchUnavailable("busy")
        self._transport.write(sent)
        future: asyncio.Future[esl.Reply] = self._loop.create_future()
        self._asked.append((future, self._checks))
        return future

    def close(self, why: str, words: str) -> None:
        """End it, unless it ended by itself; what was read is still heard."""
        if not self.why:
            self.why, self.words = why, words
        if self._transport is not None and not self._gone:
            # Not `close`, which waits for a peer that may never read.
            self._transport.abort()

    # -- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer has accepted."""
        self._transport = cast("asyncio.Transport", transport)  # which uvloop's is not by class
        self._checker = self._loop.call_later(self._every, self._check)

    def data_received(self, data: bytes) -> None:
        """Bytes, in any pieces."""
        self.received += len(data)
        self._quiet = 0
        self._waiting += len(data)
        self._pieces.extend(data[at : at + PIECE] for at in range(0, len(data), PIECE))
        self._work_soon()
        if self._waiting > MOST_WAITING and not (self._paused or self._gone or self.why):
            assert self._transport is not None
            self._counters["pauses"] += 1
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whomever."""
        self._gone = True
        if self._checker is not None:
            self._checker.cancel()
        if not self.why:
            self.why, self.words = "lost", "it closed the connection"
            if exc is not None:
                self.words = printable(str(exc))[:200] or type(exc).__name__
        self._work_soon()

    # -- own

    def _work_soon(self) -> None:
        """Not at once: a loop may hand over many reads in one go, and they share a turn."""
        if self._again is None:
            self._again = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Work for as long as a turn may last; the rest comes after the others."""
        self._again = None
        until = time.monotonic() + TURN  # uvloop's own clock stands still within a turn
        while self._step():
            if time.monotonic() >= until:
                self._work_soon()
                break
        if self._paused and self._waiting < MOST_WAITING // 2 and not (self._gone or self.why):
            assert self._transport is not None
            self._paused = False
            self._transport.resume_reading()
        if self._gone and self._again is None:
            self._end()

    def _step(self) -> bool:
        """Hear one item, or cut one piece into items; False when nothing is left."""
        if self._items:
            item = self._items.popleft()
            if isinstance(item, esl.Event):
                self._hear(item)
            else:
                self._answer(item)
            return True
        if not self._pieces:
            return False
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        with contextlib.suppress(esl.EslError):  # its name is in `fault`
            self._items.extend(self._esl.receive_data(piece))
        if self._esl.fault is not None:
            self._pieces.clear()
            self._waiting = 0
            self.close(f"fault-{self._esl.fault}", "what it sends is no ESL")
        return True

    def _answer(self, reply: esl.Reply) -> None:
        if reply.content_type == "auth/request" and not self.greeting.done():
            self.greeting.set_result(None)
        elif reply.content_type == "text/rude-rejection":
            self.close("rejected", "it refuses our address (apply-inbound-acl)")
        elif reply.content_type == "text/disconnect-notice":
            self.close("goodbye", "it said goodbye")
        elif reply.content_type == "auth/request" or not self._asked:
            self._counters["unasked-replies"] += 1
        else:
            future, _ = self._asked.popleft()
            if future.done():  # who asked has given up
                self._counters["late-replies"] += 1
            else:
                future.set_result(reply)

    def _check(self) -> None:
        """Look whether anything came since the last look."""
        self._checks += 1
        # What we do not read is not its silence.
        self._quiet = 0 if self._paused else self._quiet + 1
        if self._quiet > CHECKS:
            self.close("silent", f"nothing came for {self._every * CHECKS:g} s")
        elif self._asked and self._checks - self._asked[0][1] > CHECKS:
            self.close("stuck", f"a command had no answer for {self._every * CHECKS:g} s")
        else:
            self._checker = self._loop.call_later(self._every, self._check)

    def _end(self) -> None:
        if not self.greeting.done():
            _fail(self.greeting)
        for future, _ in self._asked:
            if not future.done():
                _fail(future)
        self._asked.clear()
        self.stirred.set()
        if not self.ended.done():
            self.ended.set_result(None)


def _fail(future: asyncio.Future[Any]) -> None:
    future.set_exception(SwitchUnavailable("lost"))
    future.exception()  # so that the loop does not complain where nobody waits any more
