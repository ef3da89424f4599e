"""Servers that alerts and spans are sent to: HTTP and SMTP on loopback, told what to answer."""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import web

Answer = tuple[int, dict[str, str]]


class Asked(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Web:
    """An HTTP server; `answers` are used up one by one, the last one stays."""

    def __init__(self, *answers: Answer | int, body: bytes = b"") -> None:
        self.asked: list[Asked] = []
        self.answers = [(one, {}) if isinstance(one, int) else one for one in answers or (200,)]
        self.body = body
        self.held: asyncio.Event | None = None
        self.url = ""

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(Asked(request.path_qs, dict(request.headers), await request.read()))
        if self.held is not None:
            await self.held.wait()
        status, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, headers=headers, body=self.body)


@contextlib.asynccontextmanager
async def web_server(
    *answers: Answer | int, body: bytes = b"", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Web]:
    server = Web(*answers, body=body)
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", server.take)
    runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        if server.held is not None:
            server.held.set()
        await runner.cleanup()


class Mail:
    """An SMTP server; `says` are its answers by the first word of a command, instead of its own."""

    def __init__(self, tls: ssl.SSLContext | None, says: Mapping[str, str]) -> None:
        self.tls, self.says = tls, dict(says)
        self.commands: list[str] = []
        self.letters: list[bytes] = []
        self.held: asyncio.Event | None = None
        self.port = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            writer.write(self.says.get("HELLO", "220 mail.example ESMTP").encode() + b"\r\n")
            while line := await reader.readline():
                command = line.decode().strip()
                self.commands.append(command)
                word = command.split(" ")[0].upper()
                if word == "DATA" and "DATA" not in self.says:
                    writer.write(b"354 go on\r\n")
                    self.letters.append(await reader.readuntil(b"\r\n.\r\n"))
                    if self.held is not None:
                        await self.held.wait()
                    word = "SENT"
                writer.write(self._answer(word).encode() + b"\r\n")
                await writer.drain()
                if word == "STARTTLS" and self.tls:
                    await writer.start_tls(self.tls)
                if word == "QUIT":
                    break
        writer.close()

    def _answer(self, word: str) -> str:
        extensions = "250-STARTTLS\r\n" if self.tls else ""
        own = {
            "EHLO": f"250-mail.example\r\n{extensions}250-AUTH PLAIN\r\n250 8BITMIME",
            "STARTTLS": "220 go on",
            "AUTH": "235 welcome",
            "QUIT": "221 bye",
        }
        return self.says.get(word, own.get(word, "250 OK"))

    @property
    def passwords(self) -> list[bytes]:
        return [
            base64.b64decode(command.split(" ")[2])
            for command in self.commands
            if command.startswith("AUTH PLAIN")
        ]


@contextlib.asynccontextmanager
async def mail_server(
    *,
    tls: ssl.SSLContext | None = None,
    starttls: ssl.SSLContext | None = None,
    says: Mapping[str, str] | None = None,
) -> AsyncIterator[Mail]:
    mail = Mail(starttls, says or {})
    tasks = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await mail.take(reader, writer)

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=tls)
    mail.port = server.sockets[0].getsockname()[1]
    try:
        yield mail
    finally:
        if mail.held is not None:
            mail.held.set()
        server.close()
        await asyncio.wait_for(asyncio.gather(*filter(None, tasks), return_exceptions=True), 5)
        await server.wait_closed()


async def until(holds: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 -- a test looks from outside
            await asyncio.sleep(0.002)
