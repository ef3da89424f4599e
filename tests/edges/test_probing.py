import asyncio
import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority
from listeners import Run, both_families, both_loops, until
from sipsidecar.edges import probing
from sipsidecar.edges.probing import Prober
from sipsidecar.signals.health import Probed
from sipsidecar.signals.rules import Probe

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A pipeline's part under test: what it was asked, and how many asked at once."""

    def __init__(self, answer: bytes | Answer) -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.port = 0
        self.open = 0
        self.most = 0
        self.written = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if callable(self.answer):
                await self.answer(reader, writer)
            else:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def served(
    answer: bytes | Answer = OK, host: str = "127.0.0.1", **more: Any
) -> AsyncIterator[Server]:
    made = Server(answer)
    server = await asyncio.start_server(made.take, host, 0, **more)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.stop()
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def probing_of(*checks: Probe) -> AsyncIterator[Prober]:
    prober = Prober(checks)
    task = asyncio.create_task(prober.run())
    try:
        yield prober
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def check(url: str, name: str = "asr", **more: Any) -> Probe:
    return Probe(name=name, url=url, **{"every_seconds": 60.0} | more)


def now_of(prober: Prober) -> tuple[Probed, ...]:
    return prober.probed(time.monotonic())


async def first(*checks: Probe) -> Probed:
    """What the first of the checks found."""
    async with probing_of(*checks) as prober:
        await until(lambda: now_of(prober)[0].ok is not None)
        return now_of(prober)[0]


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never answer; end with the client."""
    while await reader.read(1000):
        pass


# ----------------------------------------------------------------------------------- what is found


@both_loops
@both_families
def test_a_port_that_takes_connections_is_well(run: Run, host: str) -> None:
    async def main() -> None:
        async with served(hang, host) as server:
            shown = f"[{host}]" if ":" in host else host
            found = await first(check(f"tcp://{shown}:{server.port}"))
            assert (found.ok, found.why, found.name) == (True, "", "asr")
            assert found.ms is not None
            assert 0 < found.ms < 2000
            assert found.age_seconds is not None

    run(main())


@both_loops
@pytest.mark.parametrize(
    ("line", "expected", "why"),
    [
        ("200 OK", 0, ""),
        ("204 No Content", 0, ""),
        ("302 Found\r\nLocation: /elsewhere", 0, "status"),
        ("302 Found\r\nLocation: /elsewhere", 302, ""),
        ("503 Busy", 0, "status"),
        ("404 Not Found", 404, ""),
        ("200 OK", 204, "status"),
    ],
)
def test_the_status_decides_and_no_redirect_is_followed(
    run: Run, line: str, expected: int, why: str
) -> None:
    async def main() -> None:
        answer = f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n".encode()
        async with served(answer) as server:
            url = f"http://127.0.0.1:{server.port}/health?deep=1"
            found = await first(check(url, status=expected))
            assert (found.ok, found.why) == (not why, why)
            assert found.ms is not None
            (head,) = server.heads
            assert head.startswith(b"GET /health?deep=1 HTTP/1.1\r\n")
            assert b"connection: close" in head.lower()

    run(main())


@both_loops
def test_nobody_who_listens_is_refused(run: Run) -> None:
    async def main() -> None:
        port = closed_port()
        for url in (f"tcp://127.0.0.1:{port}", f"http://127.0.0.1:{port}/"):
            found = await first(check(url))
            assert (found.ok, found.ms, found.why) == (False, None, "refused")
        for url in (f"tcp://localhost:{port}", f"http://localhost:{port}/"):
            assert (await first(check(url))).why == "refused"

    run(main())


@both_loops
def test_a_name_is_tried_at_each_of_its_addresses(run: Run) -> None:
    async def main() -> None:
        async with served() as server:
            for url in (f"tcp://localhost:{server.port}", f"http://localhost:{server.port}/"):
                assert (await first(check(url))).ok

    run(main())


@both_loops
def test_silence_is_a_timeout(run: Run) -> None:
    async def main() -> None:
        async with served(hang) as server:
            url = f"http://127.0.0.1:{server.port}/"
            found = await first(check(url, timeout_seconds=0.1))
            assert (found.ok, found.why, found.ms) == (False, "timeout", None)
            await until(lambda: server.open == 0)

    run(main())


@both_loops
def test_a_port_whose_queue_is_full_is_a_timeout(run: Run) -> None:
    async def main() -> None:
        with socket.socket() as full, contextlib.ExitStack() as stack:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(4):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(full.getsockname())
            port = full.getsockname()[1]
            found = await first(check(f"tcp://127.0.0.1:{port}", timeout_seconds=0.2))
            assert found.why == "timeout"

    run(main())


@both_loops
def test_a_late_answer_is_slow_and_says_how_late(run: Run) -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(OK)

    async def main() -> None:
        async with served(late) as server:
            url = f"http://127.0.0.1:{server.port}/"
            found = await first(check(url, max_ms=20.0))
            assert (found.ok, found.why) == (False, "slow")
            assert found.ms is not None
            assert found.ms >= 50
            assert (await first(check(url, max_ms=2000.0))).ok

    run(main())


@both_loops
def test_a_certificate_that_nobody_vouches_for_is_tls(run: Run, tmp_path: Path) -> None:
    import ssl

    made = Authority(tmp_path).issue("pipeline")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)

    async def main() -> None:
        async with served(OK, ssl=context) as server:
            assert (await first(check(f"https://127.0.0.1:{server.port}/"))).why == "tls"
        # and one that speaks no TLS at all
        async with served(b"HTTP/1.1 400 Bad\r\n\r\n") as server:
            server.answer = speak_plainly
            assert (await first(check(f"https://127.0.0.1:{server.port}/"))).why == "tls"

    async def speak_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    run(main())


@both_loops
def test_https_is_well_with_a_certificate_of_a_known_authority(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    from aiohttp import connector

    authority = Authority(tmp_path)
    made = authority.issue("pipeline")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    monkeypatch.setattr(connector, "_SSL_CONTEXT_VERIFIED", authority.client())

    async def main() -> None:
        async with served(OK, ssl=context) as server:
            assert (await first(check(f"https://127.0.0.1:{server.port}/"))).ok

    run(main())


@both_loops
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SIP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_broken(run: Run, said: bytes) -> None:
    async def main() -> None:
        async with served(said) as server:
            found = await first(check(f"http://127.0.0.1:{server.port}/"))
            assert (found.ok, found.why, found.ms) == (False, "broken", None)

    run(main())


@pytest.mark.parametrize("url", ["http://[", "http://127.1:80/", "http://127.0.0.1:99999/"])
async def test_a_url_that_cannot_be_is_broken_and_stops_nobody_else(url: str) -> None:
    async with served() as server:
        good = check(f"http://127.0.0.1:{server.port}/", "llm", every_seconds=0.2)
        async with probing_of(check(url), good) as prober:
            await until(lambda: all(one.ok is not None for one in now_of(prober)))
            assert [one.ok for one in now_of(prober)] == [False, True]
            assert now_of(prober)[0].why == "broken"


async def test_a_port_that_cannot_be_is_not_another_one() -> None:
    async with served(hang) as server:
        found = await first(check(f"tcp://127.0.0.1:{65_536 + server.port}"))
        assert (found.ok, found.why) == (False, "broken")


@both_loops
def test_of_an_endless_answer_only_a_part_is_read(run: Run) -> None:
    written = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            written += 65_536
            await writer.drain()

    async def main() -> None:
        async with served(endless) as server:
            found = await first(check(f"http://127.0.0.1:{server.port}/", timeout_seconds=5.0))
            assert found.ok
            await until(lambda: server.open == 0)
            # what both sides' buffers hold
            assert written < 64 << 20

    run(main())


def test_an_address_needs_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(threading, "Thread", never)

    async def main() -> None:
        async with served() as server:
            assert (await first(check(f"tcp://127.0.0.1:{server.port}"))).ok

    asyncio.run(main())


class Names:
    """A name server as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.port = 0
        self.asked = 0
        self._real = probing._look_up
        monkeypatch.setattr(probing, "_look_up", self.look_up)

    def look_up(self, host: str, port: int, flags: int = 0) -> Any:
        if flags or host == "127.0.0.1":
            return self._real(host, port, flags)
        self.asked += 1
        self.answers.wait(10)
        if host == "asr.example":
            return self._real("127.0.0.1", port)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")


@both_loops
def test_a_name_that_is_not_found_is_dns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    names.answers.set()

    async def main() -> None:
        assert (await first(check("tcp://nowhere.example:5060"))).why == "dns"
        assert (await first(check("http://nowhere.example/"))).why == "dns"

    run(main())


@both_loops
@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_a_silent_name_server_keeps_one_thread_and_nobody_waiting(
    run: Run, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    names = Names(monkeypatch)

    async def main() -> None:
        async with served() as server:
            slow = check(
                f"{scheme}://asr.example:{server.port}", every_seconds=0.1, timeout_seconds=0.05
            )
            good = check(f"tcp://127.0.0.1:{server.port}", "llm", every_seconds=0.1)
            async with probing_of(slow, good) as prober:
                await until(lambda: prober.probes >= 8)
                assert names.asked == 1
                assert [one.why for one in now_of(prober)] == ["timeout", ""]
                names.answers.set()
                await until(lambda: now_of(prober)[0].ok is True)

    run(main())


def test_a_name_server_that_answers_after_the_end_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch)

    async def main() -> None:
        assert (await first(check("tcp://gone.example:1", timeout_seconds=0.05))).why == "timeout"

    asyncio.run(main())
    (thread,) = (one for one in threading.enumerate() if one.name == "check-name")
    assert thread.daemon
    names.answers.set()
    thread.join(10)
    assert not thread.is_alive()


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    async with served() as server:
        assert (await first(check(f"http://127.0.0.1:{server.port}/"))).ok


# -------------------------------------------------------------------------------------- schedule


@both_loops
def test_a_check_is_never_asked_twice_at_once(run: Run) -> None:
    async def main() -> None:
        async with served(hang) as server:
            url = f"http://127.0.0.1:{server.port}/"
            often = check(url, every_seconds=0.1, timeout_seconds=0.25)
            async with probing_of(often) as prober:
                await until(lambda: prober.probes >= 4)
                assert server.most == 1

    run(main())


async def test_checks_are_spread_over_their_time() -> None:
    began = time.monotonic()
    times: dict[str, float] = {}

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        times.setdefault(path, time.monotonic() - began)
        writer.write(OK)

    async with served(note) as server:
        checks = [
            check(f"http://127.0.0.1:{server.port}/{name}", name, every_seconds=0.3)
            for name in "abc"
        ]
        async with probing_of(*checks):
            await until(lambda: len(times) == 3)
    assert times["/b"] >= 0.1
    assert times["/c"] >= 0.2


async def test_a_check_is_asked_at_its_times_whatever_a_probe_takes() -> None:
    times: list[float] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        times.append(time.monotonic())
        await asyncio.sleep(0.06)
        writer.write(OK)

    async with (
        served(note) as server,
        probing_of(check(f"http://127.0.0.1:{server.port}/", every_seconds=0.1)),
    ):
        await until(lambda: len(times) == 6)
    assert times[-1] - times[0] == pytest.approx(0.5, abs=0.2)


async def test_after_a_failure_the_next_probe_comes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "AGAIN", 0.02)
    async with (
        served(b"") as server,
        probing_of(check(f"http://127.0.0.1:{server.port}/")) as prober,
    ):
        await until(lambda: prober.probes >= 3)
        assert now_of(prober)[0].ok is False
        server.answer = OK
        await until(lambda: now_of(prober)[0].ok is True)
        probes = prober.probes
        await asyncio.sleep(0.1)
        assert prober.probes == probes


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_what_we_could_not_ask_is_unknown(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served() as server:

        def none(*_: object, **__: object) -> socket.socket:
            raise OSError(errno.EMFILE, "too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", none)
            url = f"{scheme}://127.0.0.1:{server.port}"
            async with probing_of(check(url, every_seconds=0.1)) as prober:
                await until(lambda: prober.probes >= 2)
                assert now_of(prober) == (Probed("asr", None),)
                patch.undo()
                await until(lambda: now_of(prober)[0].ok is True)


async def test_an_answer_that_is_too_old_is_none() -> None:
    async with served() as server:
        one = check(f"tcp://127.0.0.1:{server.port}", every_seconds=10.0, timeout_seconds=2.0)
        async with probing_of(one) as prober:
            assert prober.probed(0.0) == (Probed("asr", None),)
            await until(lambda: now_of(prober)[0].ok is True)
            now = time.monotonic()
            assert prober.probed(now + 31)[0].ok is True
            old = prober.probed(now + 33)[0]
            assert (old.ok, old.ms) == (None, None)
            assert old.age_seconds == pytest.approx(33, abs=2)


async def test_without_checks_there_is_nothing_to_do() -> None:
    async with probing_of() as prober:
        assert prober.probed(0.0) == ()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Prober(()).run(), 0.01)


@both_loops
def test_the_end_waits_for_no_probe(run: Run) -> None:
    async def main() -> None:
        async with served(hang) as server:
            url = f"127.0.0.1:{server.port}"
            checks = (check(f"http://{url}/", timeout_seconds=60.0), check(f"tcp://{url}", "llm"))
            async with probing_of(*checks):
                await until(lambda: server.open == 1)
                began = time.monotonic()
            assert time.monotonic() - began < 1
            await until(lambda: server.open == 0)

    run(main())


# ------------------------------------------------------------------------------------------- log


async def test_only_a_change_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sipsidecar.checks")
    async with served() as server:
        url = f"http://127.0.0.1:{server.port}/"
        async with probing_of(check(url, every_seconds=0.1)) as prober:

            async def some(answer: bytes, *, ok: bool) -> None:
                server.answer = answer
                await until(lambda: now_of(prober)[0].ok is ok)
                so_far = prober.probes
                await until(lambda: prober.probes > so_far + 2)

            await some(OK, ok=True)
            await some(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", ok=False)
            await some(b"", ok=False)
            await some(OK, ok=True)
    said = [(one.levelname, one.getMessage()) for one in caplog.records]
    assert said == [
        ("WARNING", "check asr: fails: status"),
        ("INFO", "check asr: well again"),
    ]


@pytest.mark.parametrize("scheme", ["http", "https", "tcp"])
async def test_what_is_secret_in_a_url_is_never_in_the_log(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(b"") as server:
        where = f"127.0.0.1:{server.port}"
        url = f"{scheme}://u:secret-1@{where}" + ("" if scheme == "tcp" else "/?key=secret-2")
        found = await first(check(url, timeout_seconds=0.3))
        assert found.ok is False
    assert "check asr: fails" in caplog.text
    assert "secret" not in caplog.text + repr(found)


async def test_a_password_in_the_url_is_sent() -> None:
    async with served() as server:
        assert (await first(check(f"http://u:secret-1@127.0.0.1:{server.port}/"))).ok
        assert b"authorization: basic dTpzZWNyZXQtMQ==" in server.heads[0].replace(
            b"Authorization: Basic", b"authorization: basic"
        )


def test_every_word_of_failure_is_one_of_ours() -> None:
    for error in (OSError(101, "x"), ValueError(), ConnectionResetError(), TimeoutError()):
        assert probing._why(error) in probing.WHYS
