"""Downstream checks: whether what stands behind the calls (ASR, LLM, TTS) is there, and quick enough.

A check that hangs costs nothing but itself: each has its own schedule and its own time limit, names
are resolved outside of the loop, and what is answered is read up to a bound and thrown away.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from sipsidecar.signals.health import Probed
from sipsidecar.signals.rules import Probe

WHYS: Final = ("refused", "timeout", "status", "slow", "tls", "dns", "broken")
"""Why a check fails: nobody listens, no answer in time, another HTTP status than expected, an answer
later than `max_ms`, a certificate or handshake, a name that is not found, anything else."""
MAX_BODY: Final = 65_536
"""Bytes of an answer's body that are read; the rest is not waited for."""
STAGGER: Final = 5.0
"""Seconds over which the first probes are spread, when none is more frequent."""
AGAIN: Final = 1.0
"""Seconds to the next probe after one that failed: rules read once a second, and count bad readings
in a row. One lost packet must not be several of them."""
HEADERS: Final = {"User-Agent": "sipsidecar", "Accept": "*/*", "Connection": "close"}

log = logging.getLogger("sipsidecar.checks")

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_Found = list[tuple[Any, ...]]
"""What getaddrinfo returns."""


class _WrongStatus(Exception):
    """HTTP answered with another status than is expected."""


class _Answer(msgspec.Struct, frozen=True):
    """What a probe found."""

    at: float
    ok: bool
    ms: float | None
    why: str


class Prober:
    """All configured checks, asked again and again; `clock` is a steady one, in seconds."""

    def __init__(
        self, checks: Sequence[Probe], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = tuple(checks)
        self._clock = clock
        self._answers: dict[str, _Answer] = {}
        self._resolver = _Resolver()
        self.probes = 0
        """Probes that were made."""

    async def run(self) -> None:
        """Probe until cancelled; a check is never asked twice at once."""
        if not self._checks:
            await asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            for place, check in enumerate(self._checks):
                delay = min(check.every_seconds, STAGGER) * place / len(self._checks)
                group.create_task(self._follow(check, delay))

    def probed(self, now: float) -> tuple[Probed, ...]:
        """What each check found last, in the order of the configuration.

        An answer older than three turns and the time limit is none: nobody is refused for it.
        """
        return tuple(_judged(check, self._answers.get(check.name), now) for check in self._checks)

    async def _follow(self, check: Probe, delay: float) -> None:
        due = self._clock() + delay
        while True:
            await asyncio.sleep(max(0.0, due - self._clock()))
            answer = await self._probe(check)
            if answer is not None:
                self._take(check, answer)
            well = answer is None or answer.ok
            turn = check.every_seconds if well else min(check.every_seconds, AGAIN)
            # what took longer than its turn has lost the turns in between
            due += turn * (1 + max(0.0, (self._clock() - due) // turn))

    async def _probe(self, check: Probe) -> _Answer | None:
        """Ask once; None where we could not even ask: that says nothing of the one behind."""
        self.probes += 1
        began = self._clock()
        why = ""
        try:
            async with asyncio.timeout(check.timeout_seconds):
                if check.url.startswith("tcp://"):
                    await self._connect(check)
                else:
                    await self._get(check)
        except Exception as error:  # noqa: BLE001 - one bad answer must not end all checks
            if _errno(error) in _OURS:
                return None
            why = _why(error)
        now = self._clock()
        ms = (now - began) * 1000
        if not why and check.max_ms is not None and ms > check.max_ms:
            why = "slow"
        return _Answer(now, not why, ms if why in ("", "slow", "status") else None, why)

    def _take(self, check: Probe, answer: _Answer) -> None:
        """Remember an answer; a change is a line in the log, the URL (with its token) never is."""
        before = self._answers.get(check.name)
        self._answers[check.name] = answer
        if answer.ok and before is not None and not before.ok:
            log.info("check %s: well again", check.name)
        elif not answer.ok and (before is None or before.ok):
            log.warning("check %s: fails: %s", check.name, answer.why)

    async def _connect(self, check: Probe) -> None:
        host, _, digits = check.url.removeprefix("tcp://").rpartition(":")
        host, port = host.removeprefix("[").removesuffix("]"), int(digits)
        if port > 65_535:
            raise ValueError(port)  # the system would take its lower bits for a port
        loop = asyncio.get_running_loop()
        last: OSError = socket.gaierror()
        for family, kind, protocol, _, address in await self._resolver.find(host, port):
            with socket.socket(family, kind, protocol) as sock:
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, address)
                except OSError as error:
                    last = error
                else:
                    return
        raise last

    async def _get(self, check: Probe) -> None:
        # A connection of its own for each probe: a server that is full must be found out.
        connector = aiohttp.TCPConnector(
            force_close=True, use_dns_cache=False, resolver=self._resolver
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=HEADERS,
                auto_decompress=False,  # a body of a thousandfold size
                trust_env=False,
                timeout=aiohttp.ClientTimeout(),  # the whole probe has its own
            ) as session,
            session.get(check.url, allow_redirects=False) as response,
        ):
            status = response.status
            left = MAX_BODY
            while left > 0 and (some := await response.content.read(left)):
                left -= len(some)
            response.close()
        if status != check.status if check.status else not 200 <= status < 300:
            raise _WrongStatus


class _Resolver(AbstractResolver):
    """Names to addresses, each in a thread of its own that nobody has to wait for.

    The loop's own threads are few and for others, too: a name server that is silent would keep
    them all. Here a name has at most one thread, and later questions wait for the same answer.
    """

    def __init__(self) -> None:
        self._asked: dict[tuple[str, int], asyncio.Future[_Found]] = {}

    async def find(self, host: str, port: int) -> _Found:
        """Addresses of a host, as getaddrinfo has them; OSError."""
        with contextlib.suppress(OSError, ValueError, OverflowError):  # a name, not an address
            return _look_up(host, port, socket.AI_NUMERICHOST)
        future = self._asked.get((host, port))
        if future is None:
            future = self._ask(host, port)
        return await asyncio.shield(future)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The same as aiohttp asks for it."""
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, address in await self.find(host, port)
            if family in (socket.AF_UNSPEC, found)
        ]

    async def close(self) -> None:
        """Nothing is open; a connector says so at its end."""

    def _ask(self, host: str, port: int) -> asyncio.Future[_Found]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Found] = loop.create_future()
        self._asked[host, port] = future

        def answer(found: _Found | None) -> None:
            self._asked.pop((host, port), None)
            if found:
                future.set_result(found)
            else:
                future.set_exception(socket.gaierror())
                future.exception()  # the one who asked may be gone

        def look() -> None:
            found: _Found | None = None
            with contextlib.suppress(OSError, ValueError, OverflowError):
                found = _look_up(host, port)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(answer, found)

        threading.Thread(target=look, name="check-name", daemon=True).start()
        return future


def _look_up(host: str, port: int, flags: int = 0) -> _Found:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


def _judged(check: Probe, answer: _Answer | None, now: float) -> Probed:
    if answer is None:
        return Probed(check.name, None)
    age = max(0.0, now - answer.at)
    if age > 3 * check.every_seconds + check.timeout_seconds:
        return Probed(check.name, None, age_seconds=age)
    return Probed(check.name, answer.ok, answer.ms, answer.why, age)


def _why(error: BaseException) -> str:
    """The word of `WHYS` for what went wrong; texts of errors hold URLs, and are never shown."""
    if isinstance(error, _WrongStatus):
        return "status"
    if isinstance(error, TimeoutError):  # ETIMEDOUT too
        return "timeout"
    if isinstance(error, ssl.SSLError):  # aiohttp's are of it
        return "tls"
    if isinstance(error, socket.gaierror | aiohttp.ClientConnectorDNSError):
        return "dns"
    return "refused" if _errno(error) == errno.ECONNREFUSED else "broken"


def _errno(error: BaseException) -> int | None:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    return error.errno if isinstance(error, OSError) else None
