import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority, Certificate
from listeners import Run, both_families, both_loops, until
from sipserver import SipServer, reply, serving
from sipsidecar.edges import pinger
from sipsidecar.edges.pinger import Pingers, PingerState
from sipsidecar.signals.trunk import DnsAnswer, Peer, PeerState, Place, Trunks
from sipsidecar.wire import sip, x509
from sipsidecar.wire.sip import Message


def peer(uri: str, **more: Any) -> Peer:
    given: dict[str, Any] = {
        "name": "acme",
        "uri": uri,
        "interval_seconds": 0.05,
        "timeout_seconds": 0.3,
    }
    return Peer(**(given | more))


def uri_of(server: SipServer, transport: str = "udp") -> str:
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"sip:{host}:{server.port};transport={transport}"


class Watch:
    """Running pingers."""

    def __init__(self, *peers: Peer, **more: Any) -> None:
        self.trunks = Trunks(peers)
        self.pingers = Pingers(peers, self.trunks, **more)

    def state(self, number: int = 0) -> PeerState:
        return self.trunks.states(0)[number]

    def status(self, number: int = 0) -> PingerState:
        return self.pingers.status()[number]

    async def once(self) -> None:
        """Ask a first time."""
        one = self.pingers._pingers[0]
        await self.pingers._ask(one)

    def close(self) -> None:
        self.pingers._pingers[0].close()

    async def answered(self, count: int = 1) -> None:
        await until(lambda: self.state().answered >= count)

    async def missed(self, count: int = 1) -> None:
        await until(lambda: self.state().missed >= count)

    async def silent(self, count: int = 1) -> None:
        await until(lambda: self.state().silences >= count)


@contextlib.asynccontextmanager
async def watching(*peers: Peer, **more: Any) -> AsyncIterator[Watch]:
    watch = Watch(*peers, **more)
    task = asyncio.create_task(watch.pingers.run())
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)


def nothing(request: bytes) -> list[bytes]:
    return []


def read(server: SipServer, number: int = 0) -> Message:
    return sip.parse(server.requests[number])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def serve_tls(made: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    return context


# ---------------------------------------------------------------------------------- what is sent


@both_loops
@both_families
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_peer_that_answers_is_active(run: Run, host: str, transport: str) -> None:
    async def scenario() -> None:
        async with serving(transport, host=host) as server:
            uri = uri_of(server, transport)
            async with watching(peer(uri)) as watch:
                await watch.answered(3)
                state = watch.state()
                assert (state.state, state.code, state.missed) == ("active", 200, 0)
                assert state.rtt_ms is not None
                assert 0 < state.rtt_ms < 400
                [line] = watch.status().lines
                assert (line.opened, line.connected, line.code) == (1, True, 200)
            # All from one socket.
            assert len(set(server.peers)) == 1
            said = read(server)
            assert (said.method, said.ruri, said.first("max-forwards")) == ("OPTIONS", uri, "70")
            assert said.values("via")[0].startswith(b"SIP/2.0/%s " % transport.upper().encode())
            assert b";rport;" in said.values("via")[0]
            own, port = server.peers[0][:2]
            written = f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
            assert said.vias()[0].sent_by == written
            contact = said.address("contact")
            assert contact is not None
            assert (contact.uri.host, contact.uri.port) == (own, port)
            assert said.first("user-agent") == "sipsidecar"
            messages = [sip.parse(one) for one in server.requests]
            for key in ("branch", "call_id", "from_tag"):
                assert len({getattr(one, key) for one in messages}) == len(messages)
            assert all(one.branch.startswith("z9hG4bK") for one in messages)

    run(scenario())


async def test_call_ids_of_our_own_are_known_to_the_trunks() -> None:
    async with serving() as server, watching(peer(uri_of(server))) as watch:
        await watch.answered()
        assert read(server).call_id.endswith(watch.trunks.own_call_ids)
        assert len(watch.trunks.own_call_ids) > 16


async def test_the_from_host_and_the_source_are_as_configured() -> None:
    async with serving() as server:
        one = peer(uri_of(server), from_host="pbx.example.com", source="127.0.0.3")
        async with watching(one, agent="test/1") as watch:
            await watch.answered()
        said = read(server)
        sender = said.address("from")
        assert sender is not None
        assert sender.uri.host == "pbx.example.com"
        assert server.peers[0][0] == "127.0.0.3"
        assert said.first("user-agent") == "test/1"


async def test_a_tcp_connection_leaves_from_the_source() -> None:
    async with serving("tcp") as server:
        async with watching(peer(uri_of(server, "tcp"), source="127.0.0.3")) as watch:
            await watch.answered()
        assert server.peers[0][0] == "127.0.0.3"


async def test_a_hundred_peers_are_not_asked_in_one_moment() -> None:
    async with serving() as server:
        peers = [peer(uri_of(server), name=f"p{n}", interval_seconds=1) for n in range(100)]
        async with watching(*peers):
            await until(lambda: len(server.requests) >= 20)
            assert len(server.requests) < 60
            await until(lambda: len(server.requests) >= 100)


# --------------------------------------------------------------------------------- what is answered


@pytest.mark.parametrize("code", [404, 405, 501, 603])
async def test_any_answer_is_alive(code: int) -> None:
    async with (
        serving(answers=lambda request: [reply(request, f"{code} No")]) as server,
        watching(peer(uri_of(server))) as watch,
    ):
        await watch.answered()
        assert watch.state().code == code


async def test_a_503_is_a_miss() -> None:
    async with (
        serving(answers=lambda request: [reply(request, "503 Full")]) as server,
        watching(peer(uri_of(server))) as watch,
    ):
        await watch.missed(3)
        assert (watch.state().state, watch.state().code) == ("inactive", 503)


async def test_a_provisional_response_is_no_answer() -> None:
    async with (
        serving(answers=lambda request: [reply(request, "100 Trying")]) as server,
        watching(peer(uri_of(server))) as watch,
    ):
        await watch.missed()
        assert watch.state().why == "no-answer"


@pytest.mark.parametrize(
    "other",
    [
        lambda _: b"\x00garbage",
        lambda request: request,
        lambda request: reply(request).replace(b"branch=z9hG4bK", b"branch=z9hG4bKx"),
        lambda request: reply(request).replace(b"Call-ID: ", b"Call-ID: x"),
        lambda request: reply(request).replace(b"1 OPTIONS", b"1 INVITE"),
    ],
)
async def test_what_is_no_answer_to_ours_is_counted_and_passed_over(
    other: Callable[[bytes], bytes],
) -> None:
    async with (
        serving(answers=lambda request: [other(request)]) as server,
        watching(peer(uri_of(server))) as watch,
    ):
        await watch.missed()
        assert watch.status().strange >= 1
        assert watch.state().answered == 0


async def test_a_datagram_of_somebody_else_is_not_heard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        async with serving() as server:

            def answers(request: bytes) -> list[bytes]:
                stranger.sendto(reply(request), server.peers[-1])
                return []

            server.answers = answers
            async with watching(peer(uri_of(server))) as watch:
                await watch.missed()
                assert (watch.state().answered, watch.status().strange) == (0, 0)


async def test_a_second_answer_changes_nothing() -> None:
    async with (
        serving(answers=lambda request: [reply(request), reply(request)]) as server,
        watching(peer(uri_of(server))) as watch,
    ):
        await watch.answered(3)
        assert watch.state().missed == 0


# ------------------------------------------------------------------------------------ UDP and time


async def test_over_udp_a_lost_request_is_repeated_and_its_time_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pinger, "T1", 0.02)
    async with serving() as server:
        server.answers = lambda request: [reply(request)] if len(server.requests) > 2 else []
        watch = Watch(peer(uri_of(server)))
        await watch.once()
        assert (watch.state().answered, watch.state().rtt_ms) == (1, None)
        status = watch.status()
        assert (status.sent, status.repeated) == (1, 2)
        assert len(set(server.requests)) == 1
        watch.close()


async def test_pauses_between_repetitions_double_up_to_t2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinger, "T1", 0.01)
    monkeypatch.setattr(pinger, "T2", 0.08)
    async with serving(answers=nothing) as server:
        watch = Watch(peer(uri_of(server), timeout_seconds=0.4))
        await watch.once()
        # at 0, 10, 30, 70, 150, 230, 310 and 390 ms; a slow machine sends fewer
        assert 3 <= watch.status().repeated <= 7
        assert watch.state().missed == 1
        watch.close()


async def test_a_port_where_nobody_listens_is_a_miss_at_once() -> None:
    async with serving() as server:
        closed = uri_of(server)
    async with watching(peer(closed, timeout_seconds=30, interval_seconds=0.05)) as watch:
        await watch.missed(3)
        assert watch.state().why == "refused"
        assert watch.state().state == "inactive"


async def test_a_peer_that_comes_back_is_active_again() -> None:
    async with serving() as server:
        uri, port = uri_of(server), server.port
    async with watching(peer(uri)) as watch:
        await watch.missed(3)
        async with serving(port=port):
            await until(lambda: watch.state().state == "active")


async def test_what_icmp_said_of_one_request_is_no_error_of_the_next() -> None:
    async with serving() as server:
        uri, port = uri_of(server), server.port
    line = pinger._Datagrams(Place("127.0.0.1", port), "", Counter(), lambda: 0.0)
    await line.open()
    line.send(b"x")
    await asyncio.sleep(0.01)
    async with serving(port=port):
        await line.open()
        line.send(b"x")
    line.close()
    line.close()
    assert uri


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_source_that_is_not_here_is_our_own_silence(transport: str) -> None:
    async with (
        serving(transport) as server,
        watching(peer(uri_of(server, transport), source="192.0.2.77")) as watch,
    ):
        await watch.silent(2)
        assert (watch.state().silence, watch.state().missed) == ("socket", 0)
        assert watch.state().state == "unknown"
        assert watch.status().lines[0].why == "socket"


@pytest.mark.parametrize("family", ["socket", "connect"])
async def test_without_a_socket_nothing_is_said_of_the_peer(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as server:
        real = socket.socket

        def none(*args: Any, **more: Any) -> socket.socket:
            if args[1:2] == (socket.SOCK_DGRAM,):
                raise OSError(errno.EMFILE, "no")
            return real(*args, **more)

        monkeypatch.setattr(socket, "socket", none)
        async with watching(peer(uri_of(server))) as watch:
            await watch.silent()
            assert watch.state().missed == 0


@pytest.mark.parametrize(
    ("number", "ours", "why"),
    [
        (errno.ENETUNREACH, True, "socket"),
        (errno.EPERM, True, "socket"),
        (errno.EHOSTUNREACH, False, "unreachable"),
        (errno.ECONNREFUSED, False, "refused"),
        (errno.ETIMEDOUT, False, "no-answer"),
        (errno.EPIPE, False, "broken"),
    ],
)
async def test_an_error_of_sending_is_ours_or_the_peers(
    number: int, ours: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: 0

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", 1

        def send(self, _: bytes) -> None:
            raise OSError(number, "x")

        def recv(self, _: int) -> bytes:
            raise BlockingIOError

    line = pinger._Datagrams(Place("127.0.0.1", 9), "", Counter(), lambda: 0.0)
    line._socket = Failing()  # type: ignore[assignment]
    with pytest.raises(pinger._OursError if ours else pinger._MissError, match=f"^{why}$"):
        line.send(b"x")
    monkeypatch.setattr(
        line._socket, "send", lambda _: (_ for _ in ()).throw(BlockingIOError()), raising=False
    )
    with pytest.raises(pinger._OursError):
        line.send(b"x")


async def test_icmp_that_there_is_no_way_is_a_miss() -> None:
    class Failing:
        def recv(self, _: int) -> bytes:
            raise OSError(errno.ENETUNREACH, "x")

    line = pinger._Datagrams(Place("127.0.0.1", 9), "", Counter(), lambda: 0.0)
    line._read()
    line._socket = Failing()  # type: ignore[assignment]
    request = pinger._Request("b", "c", b"")
    future = line.expect(request)
    line._read()
    with pytest.raises(pinger._MissError, match="unreachable"):
        await future


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_flood_is_not_listened_to_until_the_next_turn(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinger, "MOST_HEARD", 50)

    def flood(request: bytes) -> list[bytes]:
        other = reply(request).replace(b"Call-ID: ", b"Call-ID: x")
        return [*[other] * 100, reply(request)]

    async with serving(transport, flood) as server:
        watch = Watch(peer(uri_of(server, transport)))
        await watch.once()
        assert (watch.state().missed, watch.state().why) == (1, "flood")
        assert watch.status().strange >= 51
        assert not watch.status().lines[0].connected
        server.answers = lambda request: [reply(request)]
        await watch.once()
        assert watch.state().answered == 1
        watch.close()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_flood_of_answers_is_one_too(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinger, "MOST_HEARD", 50)

    async with serving(transport, lambda request: [reply(request)] * 100) as server:
        watch = Watch(peer(uri_of(server, transport)))
        await watch.once()
        await until(lambda: not watch.status().lines[0].connected)
        assert watch.state().answered == 1  # it lives, all the same
        await watch.once()
        assert (watch.state().answered, watch.pingers.faults) == (2, 0)
        watch.close()


async def test_a_loop_that_stood_still_is_no_miss() -> None:
    def answers(request: bytes) -> list[bytes]:
        time.sleep(0.1 + pinger.LATE + 0.1)
        return []

    async with serving(answers=answers) as server:
        watch = Watch(peer(uri_of(server), timeout_seconds=0.1))
        await watch.once()
        assert (watch.state().silence, watch.state().missed) == ("stalled", 0)


async def test_a_machine_that_slept_during_the_wait_is_no_miss() -> None:
    hours = iter(range(0, 10**18, 3600 * 10**9))
    async with serving(answers=nothing) as server:
        one = peer(uri_of(server), timeout_seconds=0.1)
        async with watching(one, wall=lambda: next(hours)) as watch:
            await watch.silent()
            assert (watch.state().silence, watch.state().missed) == ("slept", 0)


# --------------------------------------------------------------------------------- several addresses


def named(*places: Place) -> DnsAnswer:
    return DnsAnswer(resolver="a", outcome="ok", places=places)


async def test_a_name_without_addresses_is_our_own_silence_until_there_are_some() -> None:
    async with serving() as server, watching(peer(f"sip:trunk.example.com:{server.port}")) as watch:
        await watch.silent()
        assert watch.state().silence == "no-address"
        watch.trunks.receive_dns("acme", [named(Place("127.0.0.1", server.port))], 1)
        await watch.answered()
        assert read(server).ruri == f"sip:trunk.example.com:{server.port}"


async def test_one_address_that_answers_is_enough_and_the_others_are_shown() -> None:
    async with serving() as good, serving(answers=nothing) as silent:
        places = Place("127.0.0.1", silent.port), Place("127.0.0.1", good.port)
        async with watching(peer("sip:trunk.example.com")) as watch:
            watch.trunks.receive_dns("acme", [named(*places)], 1)
            await watch.answered(2)
            assert watch.state().missed == 0
            assert [line.why for line in watch.status().lines] == ["no-answer", ""]
            # One that is gone from DNS is asked no more.
            watch.trunks.receive_dns("acme", [named(places[1])], 2)
            await until(lambda: len(watch.status().lines) == 1)
            count = len(silent.requests)
            await watch.answered(watch.state().answered + 2)
            assert len(silent.requests) <= count + 1


async def test_of_several_bad_answers_a_code_says_more_than_silence() -> None:
    async with (
        serving(answers=nothing) as silent,
        serving(answers=lambda request: [reply(request, "503 No")]) as full,
    ):
        places = Place("127.0.0.1", silent.port), Place("127.0.0.1", full.port)
        async with watching(peer("sip:trunk.example.com")) as watch:
            watch.trunks.receive_dns("acme", [named(*places)], 1)
            await watch.missed()
            assert watch.state().code == 503


async def test_a_disabled_peer_is_not_asked() -> None:
    async with (
        serving() as server,
        watching(peer(uri_of(server)), peer(uri_of(server), name="b")) as watch,
    ):
        await watch.answered()
        watch.trunks.disable("acme", 1)
        await asyncio.sleep(0.1)
        sent = watch.status().sent
        assert not watch.status().lines[0].connected
        await until(lambda: watch.state(1).answered >= 5)
        assert watch.status().sent == sent


async def test_one_that_is_not_to_be_probed_is_not() -> None:
    async with serving() as server:
        async with watching(peer(uri_of(server), probe=False)) as watch:
            await asyncio.sleep(0.1)
            assert watch.pingers.status() == []
        assert server.requests == []


async def test_a_bug_costs_one_probe_and_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as server:
        real = sip.build_options
        left = 2

        def broken(**more: Any) -> bytes:
            nonlocal left
            left -= 1
            if left >= 0:
                raise RuntimeError("a bug")
            return real(**more)

        monkeypatch.setattr(sip, "build_options", broken)
        with caplog.at_level(logging.ERROR):
            async with watching(peer(uri_of(server))) as watch:
                await watch.answered()
                assert watch.pingers.faults == 2
        assert len(caplog.records) == 1


# ------------------------------------------------------------------------------------ TCP and TLS


async def test_a_connection_that_the_peer_closed_is_made_again_without_a_miss() -> None:
    async with serving("tcp") as server, watching(peer(uri_of(server, "tcp"))) as watch:
        for turn in range(1, 4):
            await watch.answered(2 * turn)
            server.hang_up()
        await watch.answered(8)
        assert watch.state().missed == 0
        assert watch.status().lines[0].opened == 4


async def test_a_connection_that_ends_with_the_request_is_tried_once_more() -> None:
    async with serving("tcp") as server:
        server.answers = lambda request: (
            [reply(request)] if len(server.requests) != 2 else server.hang_up()
        )
        async with watching(peer(uri_of(server, "tcp"))) as watch:
            await watch.answered(2)
            assert watch.state().missed == 0


async def test_a_peer_that_always_hangs_up_is_a_miss() -> None:
    async with serving("tcp") as server:
        server.answers = lambda _: server.hang_up()
        async with watching(peer(uri_of(server, "tcp"))) as watch:
            await watch.missed()
            assert watch.state().why == "broken"


async def test_a_silent_connection_is_made_anew_after_a_miss() -> None:
    async with (
        serving("tcp", nothing) as server,
        watching(peer(uri_of(server, "tcp"), timeout_seconds=0.05)) as watch,
    ):
        await watch.missed(3)
        assert watch.state().why == "no-answer"
        assert server.connections >= 3
        assert watch.status().repeated == 0


async def test_nobody_listening_is_refused() -> None:
    async with serving("tcp") as server:
        closed = uri_of(server, "tcp")
    async with watching(peer(closed)) as watch:
        await watch.missed()
        assert watch.state().why == "refused"


async def test_an_answer_in_pieces_between_keep_alives_and_requests_is_heard() -> None:
    def answers(request: bytes) -> list[bytes]:
        said = reply(request)
        theirs = request.replace(b"OPTIONS", b"NOTIFY")
        return [b"\r\n\r\n", theirs, said[:20], said[20:], b"\r\n"]

    async with serving("tcp", answers) as server, watching(peer(uri_of(server, "tcp"))) as watch:
        await watch.answered(3)
        assert watch.state().missed == 0
        assert watch.status().strange >= 3


async def test_endless_bytes_are_held_in_bounds() -> None:
    async with (
        serving("tcp", lambda _: [b"SIP/2.0 200 " + b"x" * 300_000]) as server,
        watching(peer(uri_of(server, "tcp"))) as watch,
    ):
        await watch.missed(2)
        [line] = watch.pingers._pingers[0]._lines.values()
        assert isinstance(line, pinger._Connection)
        assert line._open is None or line._open._messages.pending <= 128 * 1024


def test_what_is_not_taken_is_not_written() -> None:
    stream = pinger._Stream(lambda _: None, lambda: None)
    assert not stream.write(b"x")

    class Transport(asyncio.Transport):
        aborted = 0

        def is_closing(self) -> bool:
            return False

        def write(self, data: Any) -> None:
            pass

        def abort(self) -> None:
            self.aborted += 1

    transport = Transport()
    stream.connection_made(transport)
    assert stream.write(b"x")
    stream.pause_writing()
    assert not stream.write(b"x")
    stream.resume_writing()
    assert stream.write(b"x")
    stream.close()
    stream.connection_lost(None)
    assert transport.aborted == 1
    late = pinger._Stream(lambda _: None, lambda: None)
    late.close()
    late.connection_made(transport)
    assert transport.aborted == 2


@both_loops
def test_a_good_certificate_is_told_with_its_end(run: Run, authority: Authority) -> None:
    context = serve_tls(authority.issue("good"))

    async def scenario() -> None:
        async with serving("tls", context=context) as server:
            one = peer(uri_of(server, "tls"), ca=authority.certificate)
            async with watching(one) as watch:
                await watch.answered(2)
                found = watch.state().certificate
                assert found is not None
                assert (found.verified, found.why) == (True, "")
                assert (found.subject, found.issuer) == ("good", "authority")
                assert len(found.fingerprint) == 64
                assert found.not_after is not None
                assert found.not_before is not None
                assert 1.9 < (found.not_after - found.not_before) / 86_400e6 < 2.1
                [line] = watch.status().lines
                assert line.opened == 1
                assert line.tls is not None
                assert line.tls.startswith("TLSv1.")
            assert read(server).values("via")[0].startswith(b"SIP/2.0/TLS ")

    run(scenario())


@both_loops
@pytest.mark.parametrize(
    ("names", "days", "trusted", "server_name", "why"),
    [
        ("DNS:other.example.com", 2, True, "", "name"),
        ("DNS:localhost,IP:127.0.0.1", -1, True, "", "expired"),
        ("DNS:localhost,IP:127.0.0.1", 2, False, "", "untrusted"),
        ("DNS:localhost,IP:127.0.0.1", 2, True, "trunk.example.com", "name"),
        ("URI:sip:trunk.example.com", 2, True, "trunk.example.com", ""),
        ("DNS:*.example.com", 2, True, "trunk.example.com", ""),
    ],
)
def test_a_certificate_that_is_wrong_is_said_and_the_service_is_asked_all_the_same(
    run: Run, names: str, days: int, trusted: bool, server_name: str, why: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    context = serve_tls(authority.issue("server", names, days))
    ca = authority.certificate if trusted else Authority(tmp_path, "another").certificate

    async def scenario() -> None:
        async with serving("tls", context=context) as server:
            one = peer(uri_of(server, "tls"), ca=ca, server_name=server_name)
            async with watching(one) as watch:
                await watch.answered(2)
                found = watch.state().certificate
                assert found is not None
                assert (found.verified, found.why) == (not why, why)
                assert found.subject == "server"
                assert watch.state().missed == 0
                assert watch.status().lines[0].opened == 1

    run(scenario())


def self_signed(folder: Path) -> Certificate:
    made = Certificate(str(folder / "self.pem"), str(folder / "self.key"))
    words = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    )
    command = ["openssl", *words.split(), "-keyout", made.key, "-out", made.certificate]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return made


async def test_a_self_signed_certificate_is_said_and_trusted_where_it_is_named(
    tmp_path: Path,
) -> None:
    made = self_signed(tmp_path)
    async with serving("tls", context=serve_tls(made)) as server:
        one = peer(uri_of(server, "tls"))
        other = peer(uri_of(server, "tls"), name="b", ca=made.certificate)
        async with watching(one, other) as watch:
            await watch.answered()
            await until(lambda: watch.state(1).certificate is not None)
            first, second = watch.state().certificate, watch.state(1).certificate
            assert first is not None
            assert second is not None
            assert (first.verified, first.why) == (False, "self-signed")
            assert (second.verified, second.why) == (True, "")


async def test_a_file_of_authorities_that_cannot_be_read_is_said(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    context = serve_tls(authority.issue("behind"))
    async with (
        serving("tls", context=context) as server,
        watching(peer(uri_of(server, "tls"), ca="/nowhere.pem")) as watch,
    ):
        await watch.answered(2)
        found = watch.state().certificate
        assert found is not None
        assert (found.verified, found.why, found.subject) == (None, "ca", "behind")
    assert [one.getMessage() for one in caplog.records] == [
        "trunks.peers: ca /nowhere.pem: No such file or directory; it verifies no certificate"
    ]


async def test_a_certificate_that_cannot_be_read_is_not_verified(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(_: bytes) -> None:
        raise x509.X509Error("der")

    monkeypatch.setattr(x509, "parse", no)
    context = serve_tls(authority.issue("odd"))
    async with serving("tls", context=context) as server:
        one = peer(uri_of(server, "tls"), ca=authority.certificate)
        async with watching(one) as watch:
            await watch.answered()
            found = watch.state().certificate
            assert found is not None
            assert (found.verified, found.why, found.not_after) == (False, "broken", None)


async def test_a_renewed_certificate_is_seen_within_the_hour(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinger, "RENEW", 0.2)
    context = serve_tls(authority.issue("old"))
    async with serving("tls", context=context) as server:
        one = peer(uri_of(server, "tls"), ca=authority.certificate)
        async with watching(one) as watch:
            await watch.answered()
            renewed = authority.issue("new")
            context.load_cert_chain(renewed.certificate, renewed.key)

            def shows_the_new_one() -> bool:
                found = watch.state().certificate
                return found is not None and found.subject == "new"

            await until(shows_the_new_one)
            assert watch.state().missed == 0
            assert [event.state for event in watch.trunks.records()] == ["certificate"]


@both_loops
def test_a_server_that_speaks_no_tls_is_a_miss(run: Run) -> None:
    async def scenario() -> None:
        async with serving("tcp", nothing) as server:

            async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"SIP/2.0 400 Bad\r\n\r\n")
                await reader.read(1)
                writer.close()

            listener = await asyncio.start_server(talk, "127.0.0.1", 0)
            port = listener.sockets[0].getsockname()[1]
            assert server.port != port
            async with watching(peer(f"sip:127.0.0.1:{port};transport=tls")) as watch:
                await watch.missed()
                assert watch.state().why == "tls"
            listener.close()

    run(scenario())


@both_loops
def test_a_handshake_that_hangs_is_a_miss_in_time(run: Run) -> None:
    async def scenario() -> None:
        async with serving("tcp", nothing) as server:
            one = peer(uri_of(server, "tls"), timeout_seconds=0.1)
            async with watching(one) as watch:
                await watch.missed()
                assert watch.state().why == "no-answer"

    run(scenario())
