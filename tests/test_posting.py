import asyncio
import contextlib
import errno
import socket
import ssl
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from certificates import Authority
from receiving import web_server
from sipsidecar import posting
from sipsidecar.posting import MOST_ANSWER, Poster, PostError, Reply, in_thread, why_of


async def post(url: str, seconds: float = 5.0, **headers: str) -> Reply:
    poster = Poster(seconds)
    try:
        return await poster.post(url, headers, b"body")
    finally:
        await poster.close()


async def why(url: str, seconds: float = 5.0) -> str:
    with pytest.raises(PostError) as caught:
        await post(url, seconds)
    assert "token" not in f"{caught.value!r} {caught.value}"
    return caught.value.why


async def test_a_body_and_its_headers_are_posted() -> None:
    async with web_server(202, body=b"ok") as server:
        reply = await post(f"{server.url}/a?b=c", Authorization="Bearer x")
    assert reply == (202, b"ok", None)
    (asked,) = server.asked
    assert asked.path == "/a?b=c"
    assert asked.body == b"body"
    assert asked.headers["Authorization"] == "Bearer x"


async def test_no_redirect_is_followed() -> None:
    async with web_server() as other, web_server((307, {"Location": other.url})) as server:
        assert (await post(server.url)).status == 307
    assert not other.asked


async def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with web_server() as proxy, web_server() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert (await post(server.url)).status == 200
    assert not proxy.asked


async def test_an_answer_is_read_up_to_a_bound() -> None:
    async with web_server(body=b"x" * 10 * MOST_ANSWER) as server:
        assert len((await post(server.url)).body) == MOST_ANSWER


async def test_a_body_that_never_comes_does_not_undo_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(posting, "AFTER_STATUS", 0.05)
    gone = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert (await post(f"http://127.0.0.1:{port}/")).status == 200
    await asyncio.wait_for(gone.wait(), 5)
    server.close()
    await server.wait_closed()


async def test_it_says_how_long_to_wait() -> None:
    dated = formatdate(time.time() + 60, usegmt=True)
    for text, least, most in (("7", 7, 7), (dated, 55, 60), (formatdate(0, usegmt=True), 0, 0)):
        async with web_server((429, {"Retry-After": text})) as server:
            after = (await post(server.url)).after
        assert after is not None
        assert least <= after <= most
    for text in ("", "-1", "soon", "\u0667", "Sun, 99 Foo 99999999 00:00:00 GMT"):
        async with web_server((429, {"Retry-After": text})) as server:
            assert (await post(server.url)).after is None


async def test_why_nothing_is_answered_is_one_of_few_words(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert await why(f"http://127.0.0.1:{port}/token") == "refused"
    async with web_server() as server:
        server.held = asyncio.Event()
        assert await why(f"{server.url}/token", 0.05) == "timeout"
    certificate = Authority(tmp_path).issue("mine")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with web_server(tls=context) as server:
        assert await why(f"{server.url}/token") == "tls"
        assert await why(server.url.replace("https", "http") + "/token") in ("broken", "refused")
    assert await why("http://no-such-host.invalid/token") == "dns"
    assert await why("http://%s.invalid/token" % ("x" * 70)) in ("dns", "broken")
    assert await why("nothing") == "broken"


async def test_a_trusted_certificate_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("mine"))
    trusting = ssl.create_default_context(cafile=authority.certificate)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting)
    async with web_server(tls=context) as server:
        assert (await post(server.url)).status == 200


async def test_a_header_of_two_lines_is_not_sent() -> None:
    async with web_server() as server:
        with pytest.raises(PostError):
            await post(server.url, Authorization="x\r\nInjected: y")
    assert not server.asked


async def test_kept_connections_are_used_again() -> None:
    for keep, made in ((True, 1), (False, 2)):
        poster, ports = Poster(keep=keep), set()
        async with web_server() as server:
            for _ in range(2):
                await poster.post(server.url, {}, b"")
            ports = {asked.headers.get("Connection") for asked in server.asked}
            await poster.close()
        assert ports == ({None} if keep else {"close"}), made


async def test_a_silent_name_server_is_asked_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answer = [], threading.Event()

    def silent(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        answer.wait(10)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    poster = Poster(0.05)
    for _ in range(3):
        with pytest.raises(PostError):
            await poster.post("http://slow.example/", {}, b"")
    answer.set()
    await poster.close()
    assert asked == ["slow.example"]


async def test_a_thread_gives_back_what_it_found_or_what_broke() -> None:
    assert await in_thread(lambda: 7, "test") == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0, "test")


async def test_a_thread_that_nobody_waits_for_ends_by_itself() -> None:
    go = threading.Event()
    future = in_thread(lambda: go.wait(5), "test-gone")
    future.cancel()
    go.set()
    for thread in threading.enumerate():
        if thread.name == "test-gone":
            thread.join()
    await asyncio.sleep(0)


def test_a_thread_may_outlive_the_loop() -> None:
    go = threading.Event()

    async def leave() -> None:
        in_thread(lambda: go.wait(5), "test-late")

    asyncio.run(leave())
    go.set()
    for thread in threading.enumerate():
        if thread.name == "test-late":
            thread.join()


def test_the_words_of_errors() -> None:
    assert why_of(TimeoutError()) == "timeout"
    assert why_of(ssl.SSLError()) == "tls"
    assert why_of(socket.gaierror()) == "dns"
    assert why_of(OSError(errno.ECONNREFUSED, "")) == "refused"
    assert why_of(OSError(errno.EPIPE, "")) == "broken"
    assert why_of(ValueError()) == "broken"
