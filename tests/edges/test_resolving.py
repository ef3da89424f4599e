import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.rcode
import dns.resolver
import pytest

from dnsserver import DnsServer, resolver
from listeners import Run, both_loops, until
from sipsidecar.edges import resolving
from sipsidecar.edges.resolving import Resolving
from sipsidecar.signals.trunk import DnsAnswer, Peer, Place

HOST = "trunk.example.com"
A4, A6 = (HOST, "A"), (HOST, "AAAA")


def peer(uri: str = f"sip:{HOST}:5070", name: str = "acme") -> Peer:
    return Peer(name=name, uri=uri)


class Heard:
    def __init__(self) -> None:
        self.looks: list[tuple[str, Sequence[DnsAnswer], int]] = []

    def receive(self, name: str, answers: Sequence[DnsAnswer], at: int) -> None:
        self.looks.append((name, answers, at))


def made(
    servers: Sequence[DnsServer], *peers: Peer, every: float = 60.0, **more: Any
) -> tuple[Resolving, Heard]:
    heard = Heard()
    addresses = [one.address for one in servers]
    given = {"hosts": "/nowhere"} | more
    return Resolving(peers or [peer()], addresses, every, heard.receive, **given), heard


async def looked(uri: str, *servers: DnsServer, **more: Any) -> list[DnsAnswer]:
    one, _ = made(servers, peer(uri), **more)
    return await one._look(one._named[0][1])


async def asked(uri: str, server: DnsServer, **more: Any) -> DnsAnswer:
    [answer] = await looked(uri, server, **more)
    return answer


@contextlib.asynccontextmanager
async def running(one: Resolving) -> AsyncIterator[None]:
    task = asyncio.create_task(one.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "PATIENCE", 0.2)


# -------------------------------------------------------------------------------------------- lookups


@both_loops
def test_a_name_with_a_port_is_looked_up_by_a_and_aaaa(run: Run) -> None:
    async def scenario() -> None:
        async with resolver() as server:
            server.knows(HOST, "A", "192.0.2.2", "192.0.2.1", ttl=300)
            server.knows(HOST, "AAAA", "2001:db8::1", ttl=120)
            answer = await asked(f"sip:{HOST}:5070", server)
            assert answer == DnsAnswer(
                resolver=server.address,
                outcome="ok",
                places=(
                    Place("192.0.2.1", 5070),
                    Place("192.0.2.2", 5070),
                    Place("2001:db8::1", 5070),
                ),
                ttl=120,
            )
            assert sorted(server.asked) == [A4, A6]

    run(scenario())


@pytest.mark.parametrize(
    ("uri", "service"),
    [
        (f"sip:{HOST}", "_sip._udp."),
        (f"sip:{HOST};transport=tcp", "_sip._tcp."),
        (f"sip:{HOST};transport=tls", "_sips._tcp."),
        (f"sips:{HOST}", "_sips._tcp."),
    ],
)
async def test_a_name_without_a_port_is_looked_up_by_srv_in_its_order(
    uri: str, service: str
) -> None:
    async with resolver() as server:
        server.knows(
            service + HOST, "SRV", "20 1 5090 c.example.com.", "10 1 5080 b.example.com.",
            "10 60 5070 a.example.com.", ttl=30,
        )  # fmt: skip
        for number, host in enumerate("abc", start=1):
            server.knows(f"{host}.example.com", "A", f"192.0.2.{number}")
        answer = await asked(uri, server)
        assert answer.places == (
            Place("192.0.2.1", 5070), Place("192.0.2.2", 5080), Place("192.0.2.3", 5090)
        )  # fmt: skip
        assert answer.ttl == 30


@pytest.mark.parametrize(("uri", "port"), [(f"sip:{HOST}", 5060), (f"sips:{HOST}", 5061)])
async def test_without_srv_records_it_is_the_default_port(uri: str, port: int) -> None:
    async with resolver() as server:
        server.knows(HOST, "A", "192.0.2.1")
        assert (await asked(uri, server)).places == (Place("192.0.2.1", port),)


async def test_a_service_that_is_said_not_to_be_has_no_address() -> None:
    async with resolver() as server:
        server.knows(f"_sip._udp.{HOST}", "SRV", "0 0 0 .")
        server.knows(HOST, "A", "192.0.2.1")
        answer = await asked(f"sip:{HOST}", server)
        assert (answer.outcome, answer.places) == ("empty", ())
        assert A4 not in server.asked


async def test_a_srv_record_without_a_port_is_passed_over() -> None:
    async with resolver() as server:
        server.knows(f"_sip._udp.{HOST}", "SRV", "0 0 0 a.example.com.")
        server.knows(HOST, "A", "192.0.2.1")
        assert (await asked(f"sip:{HOST}", server)).places == (Place("192.0.2.1", 5060),)


async def test_a_srv_target_that_is_an_address_is_taken_for_it() -> None:
    async with resolver() as server:
        server.knows(f"_sip._udp.{HOST}", "SRV", "0 0 5070 192.0.2.7.")
        assert (await asked(f"sip:{HOST}", server)).places == (Place("192.0.2.7", 5070),)


async def test_a_target_that_is_not_there_does_not_hide_another_one() -> None:
    async with resolver() as server:
        server.knows(f"_sip._udp.{HOST}", "SRV", "0 0 5070 a.test.", "1 0 5070 b.test.")
        server.knows("b.test", "A", "192.0.2.2")
        assert (await asked(f"sip:{HOST}", server)).places == (Place("192.0.2.2", 5070),)
        del server.records["b.test", "A"]
        assert (await asked(f"sip:{HOST}", server)).outcome == "empty"


async def test_a_failing_target_does_not_hide_another_one_and_alone_it_fails() -> None:
    async with resolver() as server:
        server.knows(f"_sip._udp.{HOST}", "SRV", "0 0 5070 a.test.", "1 0 5070 b.test.")
        server.knows("a.test", "CNAME", "a.test.")  # a circle
        server.knows("b.test", "A", "192.0.2.2")
        assert (await asked(f"sip:{HOST}", server)).places == (Place("192.0.2.2", 5070),)
        del server.records["b.test", "A"]
        assert (await asked(f"sip:{HOST}", server)).outcome == "failed"


async def test_aliases_are_followed_and_the_shortest_time_counts() -> None:
    async with resolver() as server:
        server.knows(HOST, "CNAME", "a.test.", ttl=20)
        server.knows("a.test", "A", "192.0.2.1", ttl=900)
        answer = await asked(f"sip:{HOST}:5060", server)
        assert (answer.places, answer.ttl) == ((Place("192.0.2.1", 5060),), 20)


async def test_a_name_that_is_not_there_and_one_without_addresses_are_told_apart() -> None:
    async with resolver() as server:
        assert (await asked(f"sip:{HOST}:5060", server)).outcome == "nxdomain"
        server.knows(HOST, "TXT", '"x"')
        assert (await asked(f"sip:{HOST}:5060", server)).outcome == "empty"
        assert (await asked(f"sip:{HOST}", server)).outcome == "empty"


async def test_an_answer_that_is_too_long_is_asked_for_over_tcp() -> None:
    async with resolver() as server:
        many = [f"198.51.{n // 256}.{n % 256}" for n in range(300)]
        server.knows(HOST, "A", *many)
        server.shorten = True
        answer = await asked(f"sip:{HOST}:5060", server)
        assert server.by_tcp == 2
        assert len(answer.places) == resolving.MOST_RECORDS


async def test_a_name_that_is_too_long_with_its_service_fails() -> None:
    async with resolver() as server:
        host = ".".join(["a" * 60] * 4) + ".example"
        assert (await asked(f"sip:{host}", server)).why == "no name"


# ---------------------------------------------------------------------------------- failing servers


@pytest.mark.parametrize(
    ("code", "why"), [(dns.rcode.SERVFAIL, "servfail"), (dns.rcode.REFUSED, "refused")]
)
async def test_a_server_that_cannot_say_fails_and_is_no_nxdomain(
    code: dns.rcode.Rcode, why: str
) -> None:
    async with resolver() as server:
        server.rcode = code
        answer = await asked(f"sip:{HOST}", server)
        assert (answer.outcome, answer.why, answer.ttl) == ("failed", why, None)


async def test_a_lost_datagram_is_asked_for_again() -> None:
    async with resolver() as server:
        server.knows(HOST, "A", "192.0.2.1")
        server.silent = 1
        assert (await asked(f"sip:{HOST}:5060", server)).outcome == "ok"
        assert len(server.asked) == 3


async def test_a_silent_server_fails_in_time() -> None:
    async with resolver() as server:
        server.silent = -1
        answer = await asked(f"sip:{HOST}:5060", server)
        assert (answer.outcome, answer.why) == ("failed", "no answer")


async def test_a_server_that_is_not_there_fails() -> None:
    async with resolver() as server:
        port = server.port
    gone = DnsServer()
    gone.port = port
    assert (await asked(f"sip:{HOST}:5060", gone)).why in ("nobody listens", "no answer")


@pytest.mark.parametrize(
    ("error", "why"),
    [(ConnectionRefusedError(), "nobody listens"), (OSError(), "broken"), (EOFError(), "broken")],
)
async def test_an_error_on_the_way_is_a_failure(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(dns.asyncquery, "udp_with_fallback", broken)
    server = DnsServer()
    assert (await asked(f"sip:{HOST}:5060", server)).why == why


async def test_one_family_that_fails_does_not_hide_the_other() -> None:
    async with resolver() as server:
        server.knows(HOST, "A", "192.0.2.1")
        server.knows(HOST, "AAAA", "2001:db8::1")

        def only_a(answer: bytes) -> list[bytes]:
            return [answer] if server.asked[-1][1] == "A" else []

        server.spoil = only_a
        assert (await asked(f"sip:{HOST}:5060", server)).places == (Place("192.0.2.1", 5060),)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: [b"", b"x", bytes(2) + answer[2:], answer],
        lambda answer: [answer[:2] + b"\x01" + answer[3:], answer],
        lambda answer: [answer[:-3], answer],
    ],
)
async def test_what_is_no_answer_to_the_question_is_passed_over(spoil: Any) -> None:
    async with resolver() as server:
        server.knows(HOST, "A", "192.0.2.1")
        server.spoil = spoil
        assert (await asked(f"sip:{HOST}:5060", server)).outcome == "ok"


async def test_garbage_alone_is_no_answer() -> None:
    async with resolver() as server:
        server.spoil = lambda _: [b"\x00" * 40]
        assert (await asked(f"sip:{HOST}:5060", server)).outcome == "failed"


async def test_every_resolver_is_asked_and_counted() -> None:
    async with resolver() as first, resolver() as second:
        first.knows(HOST, "A", "192.0.2.1")
        second.rcode = dns.rcode.SERVFAIL
        one, _ = made([first, second])
        answers = await one._look(one._named[0][1])
        assert [answer.outcome for answer in answers] == ["ok", "failed"]
        good, bad = one.status()
        assert (good.resolver, good.asked, good.failed, good.error) == (first.address, 2, 0, "")
        assert (bad.asked, bad.failed, bad.error) == (2, 2, "servfail")


# ------------------------------------------------------------------------------------- hosts, and time


async def test_what_the_hosts_file_says_holds(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_bytes(
        b"127.0.0.1 localhost\n# 192.0.2.9 trunk.example.com\n\nnonsense trunk.example.com\n"
        b"192.0.2.7\tx Trunk.Example.com # y\n2001:db8::7 trunk.example.com\xff trunk.example.com\n"
    )
    async with resolver() as server:
        answer = await asked(f"sip:{HOST}", server, hosts=str(hosts))
        assert answer == DnsAnswer(
            resolver="hosts",
            outcome="ok",
            places=(Place("192.0.2.7", 5060), Place("2001:db8::7", 5060)),
        )
        assert server.asked == []
        assert (await asked("sip:other.test:1", server, hosts=str(hosts))).outcome == "nxdomain"


@both_loops
def test_names_are_looked_at_again_and_again_and_addresses_never(run: Run) -> None:
    async def scenario() -> None:
        async with resolver() as server:
            server.knows(HOST, "A", "192.0.2.1", ttl=0)
            one, heard = made(
                [server], peer(), peer("sip:192.0.2.1", "literal"), every=0.02,
                wall=lambda: 7_000,
            )  # fmt: skip
            async with running(one):
                await until(lambda: len(heard.looks) >= 3)
            assert {(name, at) for name, _, at in heard.looks} == {("acme", 7)}

    run(scenario())


async def test_an_answer_is_not_asked_for_again_while_it_holds() -> None:
    async with resolver() as server:
        server.knows(HOST, "A", "192.0.2.1", ttl=60)
        one, heard = made([server], every=0.01)
        async with running(one):
            await until(lambda: len(heard.looks) == 1)
            await asyncio.sleep(0.1)
            assert len(heard.looks) == 1


async def test_however_long_it_holds_it_is_asked_for_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolving, "LONGEST", 0.02)
    async with resolver() as server:
        server.knows(HOST, "A", "192.0.2.1", ttl=86400)
        one, heard = made([server], every=0.01)
        async with running(one):
            await until(lambda: len(heard.looks) >= 3)


async def test_without_names_nobody_is_asked() -> None:
    async with resolver() as server:
        one, heard = made([server], peer("sip:192.0.2.1"))
        async with running(one):
            await asyncio.sleep(0.05)
        assert (heard.looks, one.status(), server.asked) == ([], [], [])


async def test_a_bug_costs_one_look_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async with resolver() as server:
        server.knows(HOST, "A", "192.0.2.1", ttl=0)
        one, heard = made([server], every=0.01)
        real = one._receive
        left = 2

        def broken(name: str, answers: Sequence[DnsAnswer], at: int) -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                raise RuntimeError("a bug")
            real(name, answers, at)

        one._receive = broken
        with caplog.at_level(logging.ERROR):
            async with running(one):
                await until(lambda: len(heard.looks) == 1)
        assert one.faults == 2
        assert len(caplog.records) == 1


@pytest.mark.parametrize("where", ["_resolve", "_query"])
async def test_a_bug_in_a_lookup_is_a_bug_and_no_answer(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with resolver() as server:
        server.knows(f"_sip._udp.{HOST}", "SRV", "0 0 5070 a.test.")
        real = Resolving._query

        async def broken(self: Resolving, one: Any, name: str, *more: Any) -> Any:
            if where == "_resolve" or name != f"_sip._udp.{HOST}":
                raise RuntimeError("a bug")
            return await real(self, one, name, *more)

        monkeypatch.setattr(Resolving, "_query", broken)
        with pytest.raises(RuntimeError):
            await looked(f"sip:{HOST}", server)
        with pytest.raises(RuntimeError):
            await looked(f"sip:{HOST}:5060", server)


def test_resolvers_are_addresses_with_or_without_a_port() -> None:
    assert resolving._servers(["192.0.2.53", "2001:db8::53", "127.0.0.1:5353", "[::1]:5353"]) == [
        ("192.0.2.53", "192.0.2.53", 53),
        ("2001:db8::53", "2001:db8::53", 53),
        ("127.0.0.1:5353", "127.0.0.1", 5353),
        ("[::1]:5353", "::1", 5353),
    ]
    assert len(resolving._servers([f"192.0.2.{n}" for n in range(20)])) == resolving.MOST_SERVERS


def test_without_resolvers_they_are_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    class System:
        nameservers = ("192.0.2.53",)

    monkeypatch.setattr(dns.resolver, "Resolver", System)
    assert resolving._servers([]) == [("192.0.2.53", "192.0.2.53", 53)]

    def none() -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver, "Resolver", none)
    assert resolving._servers([]) == []
