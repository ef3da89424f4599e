"""Says something to a server of others by one HTTP POST, and waits for no name server.

It follows no redirect (what is sent holds secrets), asks no proxy and no `.netrc`, and reads an answer
up to a bound. Texts of errors hold URLs, so only the words of `WHYS` come out.
"""

import asyncio
import contextlib
import errno
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

WHYS: Final = ("refused", "timeout", "tls", "dns", "broken")
"""Why nothing was answered: nobody listens, not in time, a certificate or handshake, a name that is not
found, anything else."""
MOST_ANSWER: Final = 65_536
"""Bytes of an answer's body that are read."""
AFTER_STATUS: Final = 2.0
"""Seconds that the body of an answer may take: its status has said all that matters."""

T = TypeVar("T")
_Found = list[tuple[int, int, int, str, tuple[str, int]]]


class PostError(Exception):
    """Nothing was answered; `why` is one of `WHYS`."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Reply(NamedTuple):
    """What was answered."""

    status: int
    body: bytes
    """As much as came in time, `MOST_ANSWER` at most."""
    after: float | None = None
    """Seconds until it may be tried again (Retry-After, RFC 9110 10.2.3)."""


class Poster:
    """Posts, each within `seconds`; with `keep` connections are used again."""

    def __init__(self, seconds: float = 10.0, *, keep: bool = False) -> None:
        self._seconds = seconds
        self._keep = keep
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send a body to an http or https URL; PostError."""
        try:
            async with asyncio.timeout(self._seconds):
                response = await self._opened().post(
                    url, headers=headers, data=body, allow_redirects=False
                )
        except (OSError, ValueError, aiohttp.ClientError) as error:
            raise PostError(why_of(error)) from None
        read = b""
        # Whatever happens now, it was answered: another try would say it twice.
        with contextlib.suppress(OSError, ValueError, aiohttp.ClientError):
            async with response, asyncio.timeout(AFTER_STATUS):
                while len(read) < MOST_ANSWER and (
                    some := await response.content.read(MOST_ANSWER - len(read))
                ):
                    read += some
                if not response.content.at_eof():
                    response.close()
        return Reply(response.status, read, _after(response.headers.get("Retry-After", "")))

    async def close(self) -> None:
        """End all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            names = _Names()
            connector = (
                aiohttp.TCPConnector(resolver=names, keepalive_timeout=30)
                if self._keep
                # a server that has just ended a kept connection leaves open whether it took a POST
                else aiohttp.TCPConnector(resolver=names, force_close=True, use_dns_cache=False)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "sipsidecar"},
                auto_decompress=False,  # a body of a thousandfold size
                trust_env=False,
                timeout=aiohttp.ClientTimeout(),  # the whole has its own
            )
        return self._session


def in_thread(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Do what blocks in a thread of its own that nobody has to wait for, at the end neither.

    The loop's own threads are few and for others, too.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def answer(found: T | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(found)  # type: ignore[arg-type]
        else:
            future.set_exception(error)
            future.exception()  # the one who asked may be gone

    def work() -> None:
        found, error = None, None
        try:
            found = function()
        except Exception as caught:  # noqa: BLE001 - it belongs to the one who asked
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(answer, found, error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


def why_of(error: BaseException) -> str:
    """The word of `WHYS` for what went wrong."""
    if isinstance(error, TimeoutError):  # ETIMEDOUT too
        return "timeout"
    if isinstance(error, ssl.SSLError):  # aiohttp's are of it
        return "tls"
    if isinstance(error, socket.gaierror | aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, OSError) and error.errno == errno.ECONNREFUSED:
        return "refused"
    return "broken"


class _Names(AbstractResolver):
    """Names to addresses: each has at most one thread, and later questions wait for its answer."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, int], asyncio.Future[_Found]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of a host; OSError."""
        key = host, port
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = in_thread(lambda: _look_up(host, port), "post-name")
            future.add_done_callback(lambda _: self._asked.pop(key, None))
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, address in await asyncio.shield(future)
            if family in (socket.AF_UNSPEC, found)
        ]

    async def close(self) -> None:
        """Nothing is open; a connector says so at its end."""


def _look_up(host: str, port: int) -> _Found:
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # type: ignore[arg-type]
    except (ValueError, OverflowError):  # a name that can be none
        raise socket.gaierror from None


def _after(text: str) -> float | None:
    """Seconds or a date; None for neither."""
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return float(text)
    with contextlib.suppress(ValueError, OverflowError):
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    return None
