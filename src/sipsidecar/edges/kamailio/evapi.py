"""One Kamailio that asks about each new call over its evapi: questions in, answers in the same turn.

We connect to it. Messages are netstrings: a question is JSON with what callers wrote in hexadecimal
digits, as sipsidecar-admission-asked.cfg writes it. A call waits 200 ms there, and passes then;
Kamailio asks only who said within three seconds that he lives.
"""

import asyncio
import ipaddress
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final, cast

import msgspec

from sipsidecar.calls.events import Sighted
from sipsidecar.edges.kamailio import entries
from sipsidecar.signals.decisions import ADMIT, OVERFLOW, REFUSE, Ask, AskState, Decision
from sipsidecar.tables import printable
from sipsidecar.wire import sip

BEAT: Final = 1.0
"""Seconds between two signs of life."""
MOST_SILENCE: Final = 4
"""Signs of life without an answer that end a connection. Not a time: our own loop may stand still."""
PATIENCE: Final = 5.0
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 5.0
MOST_QUESTION: Final = 16 * 1024
"""Bytes of one; the script writes at most half of it."""
MOST_WAITING: Final = 1024 * 1024
TURN: Final = 0.004
"""Seconds that one connection works before others get their turn."""
MOST_HEADERS: Final = 32
COMPLAIN_EVERY: Final = 600.0
CLOCK_WINDOW: Final = 30.0

log = logging.getLogger("sipsidecar.admission")

_DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)
_WHICH = re.compile(rb'\{"ti":([0-9]{1,10}),"tl":([0-9]{1,10}),')
_TOKEN = re.compile(r"[!#-'*+.0-9A-Z^-z|~-]{1,64}", re.ASCII)


class EvapiError(ValueError):
    """Bytes that are no netstrings."""


class Netstrings:
    """Bytes in any pieces to the netstrings in them: `LENGTH:BYTES,`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        """Take what came."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next one; None until more came. EvapiError, from then on always, where there is none."""
        colon = self._buffer.find(b":", 0, 7)
        digits = bytes(self._buffer[: colon if colon >= 0 else 7])
        if (digits and not digits.isdigit()) or colon == 0 or (colon < 0 and len(digits) > 6):
            raise EvapiError("no netstring")
        if colon < 0:
            return None
        length = int(digits)
        if length > MOST_QUESTION:
            raise EvapiError("too long")
        end = colon + 1 + length
        if len(self._buffer) <= end:
            return None
        if self._buffer[end] != 0x2C:
            raise EvapiError("no netstring")
        found = bytes(self._buffer[colon + 1 : end])
        del self._buffer[: end + 1]
        return found


def netstring(text: str) -> bytes:
    """One message as it is sent."""
    data = text.encode()
    return b"%d:%b," % (len(data), data)


class _Question(msgspec.Struct):
    """One question; texts that callers wrote are hexadecimal digits."""

    ti: int
    tl: int
    """With `ti`: Kamailio's transaction."""
    s: int = 0
    u: int = 0
    """When it was asked: seconds and microseconds UTC."""
    si: str = ""
    sp: int = 0
    ri: str = ""
    rp: int = 0
    """The address that the INVITE came to."""
    ci: str = ""
    ft: str = ""
    cs: str = ""
    ru: str = ""
    fu: str = ""
    tu: str = ""
    du: str = ""
    """Destination URI, if the script chose one already."""
    pr: str = ""
    rs: str = ""
    hd: str = ""
    """Header lines that the script chose."""
    tr: str = ""
    te: str = ""
    di: str = ""
    re: str = ""
    """Trunk, tenant, direction and region, if the script knows them."""


_decode = msgspec.json.Decoder(_Question).decode


def _text(digits: str) -> str:
    """What a caller wrote, as it is written when HEP shows it; ValueError."""
    return sip.text(bytes.fromhex(digits))


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None


def _port(port: int | None) -> int | None:
    return port if port is not None and 0 < port < 1 << 16 else None


def _headers(lines: str) -> dict[str, str]:
    """Names in small letters to first values; a line that begins with a blank goes on the last one."""
    found: dict[str, str] = {}
    for line in lines.replace("\r", "\n").split("\n"):
        name, colon, value = line.partition(":")
        if colon and _TOKEN.fullmatch(name) and len(found) < MOST_HEADERS:
            found.setdefault(name.lower(), value.strip())
    return found


def question(data: bytes, name: str, waited: Callable[[float], float]) -> tuple[Ask, int, int]:
    """One message of the Kamailio of a name to what it asks, and the transaction that waits for it.

    `waited` tells how old a time of its clock is. ValueError (msgspec's, too) for what is no question.
    """
    said = _decode(data)
    ruri = _text(said.ru)
    to, caller, at = sip.uri(_text(said.tu)), sip.uri(_text(said.fu)), sip.uri(ruri)
    going = sip.uri(_text(said.du))
    dst_ip, dst_port = _address(said.ri), _port(said.rp)
    if going is not None and going.host is not None and _address(going.host) is not None:
        dst_ip, dst_port = _address(going.host), _port(going.port)
    headers = _headers(_text(said.hd))
    for header, value in (
        ("sidecar-trunk", said.tr),
        ("sidecar-tenant", said.te),
        ("sidecar-direction", said.di),
        ("sidecar-region", said.re),
    ):
        # Words of the script, which no header can stand for.
        headers.pop(header, None)
        if value:
            headers[header] = _text(value)
    cseq = _text(said.cs)
    ask = Ask(
        call_id=_text(said.ci),
        from_tag=_text(said.ft),
        cseq=int(cseq) if _DIGITS.fullmatch(cseq) else None,
        sighted=Sighted(
            src_ip=_address(said.si),
            src_port=_port(said.sp),
            dst_ip=dst_ip,
            dst_port=dst_port,
            from_user=caller.user if caller is not None else None,
            from_host=caller.host if caller is not None else None,
            to_user=to.user if to is not None else None,
            to_host=to.host if to is not None else None,
            ruri_user=at.user if at is not None else None,
            ruri_host=at.host if at is not None else None,
            headers=headers,
        ),
        ruri=ruri,
        priority=_text(said.pr),
        resource_priority=_text(said.rs),
        node=name,
        way="evapi",
        waited=waited(said.s + said.u / 1e6),
    )
    return ask, said.ti, said.tl


def answer(index: int, label: int, decision: Decision) -> str:
    """What Kamailio's script is told about the transaction that waits."""
    code, route, words = 0, "", ""
    if decision.verdict == REFUSE:
        code = entries.refusal_code(decision.code)
    elif decision.verdict == OVERFLOW:
        route = entries.text(decision.route, "")
    if decision.verdict != ADMIT:
        words = entries.text(decision.rule, decision.reason)
    return f"a|{index}|{label}|{decision.verdict}|{code}|{route}|{words}"


class _Clock:
    """How old a time of another clock is: the clocks' difference is the least that was seen lately."""

    def __init__(self) -> None:
        self._window = -1
        self._least = self._before = float("inf")

    def age(self, then: float, wall: float, now: float) -> float:
        """Seconds; `now` is steady."""
        window, seen = int(now // CLOCK_WINDOW), wall - then
        if window != self._window:
            self._before = self._least if window == self._window + 1 else float("inf")
            self._window, self._least = window, float("inf")
        self._least = min(self._least, seen)
        return seen - min(self._least, self._before)


class KamailioAsk:
    """One configured Kamailio: `run` keeps the connection, and every question is answered.

    `ask` is called for each in turn. When it raises, which is a bug, the call is admitted.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        ask: Callable[[Ask], Decision],
        *,
        wall: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.counters: Counter[str] = Counter()
        """Of connections by how they ended, questions by their answers, and what was not understood."""
        self._host, self._port = host, port
        self._ask = ask
        self._wall = wall
        self._pause = pause
        self._clock = _Clock()
        self._line: _Line | None = None
        self._up = False
        self._error: str | None = None
        self._since: float | None = None
        self._asked = 0
        self._refused = 0
        self._complained: tuple[str, float] | None = None
        self._broke_at: float | None = None

    async def run(self) -> None:
        """Be there for its questions, until cancelled."""
        pause = FIRST_PAUSE
        try:
            while True:
                was_up = await self._meet()
                pause = FIRST_PAUSE if was_up else min(pause * 2, LONGEST_PAUSE)
                await self._pause(pause)
        finally:
            self._up, self._error = False, "stopped"

    def status(self) -> AskState:
        """How it is with it now."""
        since = None if self._since is None else max(0.0, self._now() - self._since)
        return AskState(
            name=self.name,
            kind="evapi",
            up=self._up,
            error=self._error,
            asked=self._asked,
            refused=self._refused,
            since=since,
        )

    # -- one connection

    async def _meet(self) -> bool:
        """One connection from begin to end; returns whether it was ever good."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE):
                _, line = await loop.create_connection(
                    lambda: _Line(self._hear, self._went_up), self._host, self._port
                )
        except (OSError, TimeoutError) as error:
            refused = isinstance(error, ConnectionRefusedError)
            words = printable((getattr(error, "strerror", None) or type(error).__name__)[:100])
            self._went_down("nobody listens there" if refused else words)
            return False
        try:
            await line.ended
        finally:
            line.close("stopped")
        was_up = self._up
        self._went_down(line.why)
        return was_up

    def _hear(self, data: bytes) -> str:
        """One message to the answer to it; empty where there is none to give."""
        if data == b"l":
            self.counters["late"] += 1  # its call passed, or was cancelled
            return ""
        self._asked += 1
        which = _WHICH.match(data)
        try:
            ask, index, label = question(data, self.name, self._age)
        except (ValueError, OverflowError, RecursionError):  # msgspec's errors are ValueErrors
            self._refused += 1
            self.counters["not-understood"] += 1
            if which is None:
                return ""
            return answer(int(which[1]), int(which[2]), Decision(verdict=ADMIT))
        try:
            decision = self._ask(ask)
            said = answer(index, label, decision)
        except Exception:  # a bug must cost no call
            self.counters["broke"] += 1
            now = self._now()
            if self._broke_at is None or now - self._broke_at > COMPLAIN_EVERY:
                self._broke_at = now
                log.exception("a question of Kamailio %s was not answered", self.name)
            return answer(index, label, Decision(verdict=ADMIT))
        self.counters[decision.verdict] += 1
        return said

    def _age(self, then: float) -> float:
        return self._clock.age(then, self._wall(), self._now())

    # -- up and down

    def _went_up(self) -> None:
        if not self._up:
            self._up = True
            self._error = None
            self._since = self._now()
            self._complained = None
            self.counters["connected"] += 1
            log.info("Kamailio %s at %s: may ask about its calls", self.name, self.address)

    def _went_down(self, why: str) -> None:
        now = self._now()
        self._error = why
        if self._up or self._since is None:
            self._since = now
        self._up = False
        said = self._complained
        if said is None or said[0] != why or now - said[1] > COMPLAIN_EVERY:
            self._complained = why, now
            log.warning("Kamailio %s at %s: %s; it asks nobody", self.name, self.address, why)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class _Line(asyncio.Protocol):
    """One connection to evapi."""

    def __init__(self, hear: Callable[[bytes], str], alive: Callable[[], None]) -> None:
        """`hear` answers a question; `alive` is told that the script is there."""
        self._loop = asyncio.get_running_loop()
        self._hear = hear
        self._alive = alive
        self._netstrings = Netstrings()
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._transport: asyncio.Transport | None = None
        self._again: asyncio.Handle | None = None
        self._beater: asyncio.TimerHandle | None = None
        self._silence = 0
        self._paused = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.why = ""

    def close(self, why: str) -> None:
        """End it, unless it has ended."""
        self.why = self.why or why
        if self._beater is not None:
            self._beater.cancel()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has accepted."""
        self._transport = cast("asyncio.Transport", transport)  # which uvloop's is not by class
        self._transport.set_write_buffer_limits(MOST_WAITING)
        self._beat()

    def pause_writing(self) -> None:
        """It asks, and does not read the answers: they would pile up here."""
        self.close("does not read what it is told")

    def data_received(self, data: bytes) -> None:
        """Bytes, in any pieces."""
        self._pieces.append(data)
        self._waiting += len(data)
        if self._again is None:
            self._turn()
        if self._waiting > MOST_WAITING and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        words = "it closed the connection" if exc is None else type(exc).__name__
        self.close(words)
        if not self.ended.done():
            self.ended.set_result(None)

    def _beat(self) -> None:
        """Say that we live; and see that it said so."""
        self._silence += 1
        if self._silence > MOST_SILENCE:
            self.close("is silent: is sipsidecar-admission-asked.cfg included?")
            return
        assert self._transport is not None
        self._transport.write(netstring("b"))
        self._beater = self._loop.call_later(BEAT, self._beat)

    def _turn(self) -> None:
        """Answer for as long as a turn may last; the rest comes after the others."""
        self._again = None
        until = time.monotonic() + TURN
        try:
            while self._step():
                if time.monotonic() >= until:
                    self._again = self._loop.call_soon(self._turn)
                    break
        except EvapiError:
            # It lost a part of what it wrote, for we did not read for long.
            self.close("sends what is no netstring")
        if self._paused and self._waiting < MOST_WAITING // 2 and not self.why:
            assert self._transport is not None
            self._paused = False
            self._transport.resume_reading()

    def _step(self) -> bool:
        """Answer one question; False when there is none."""
        if self.why:
            return False
        message = self._netstrings.next()
        if message is None:
            if not self._pieces:
                return False
            piece = self._pieces.popleft()
            self._waiting -= len(piece)
            self._netstrings.receive_data(piece)
            return True
        self._silence = 0
        if message == b"b":
            self._alive()
            return True
        said = self._hear(message)
        if said and not self.why:
            assert self._transport is not None
            self._transport.write(netstring(said))
        return True
