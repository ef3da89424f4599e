import asyncio
import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listeners import Run, both_loops, until
from sipsidecar.edges.kamailio import push
from sipsidecar.edges.kamailio.entries import CHECKSUM, CLOSED, TEXTS, UP
from sipsidecar.edges.kamailio.push import MOST_ALOFT, KamailioPush
from sipsidecar.signals.decisions import Denial, RateLimit

Call = dict[str, Any]
FULL = Denial(scope="global", rule="full", reason="cac full: 50 of 50")
ACME = Denial(scope="trunk", scope_value="acme", rule="acme")


class Tables:
    """Kamailio's side of the calls: what it holds and what it answers."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Any] = {}
        self.leases: dict[tuple[str, str], int] = {}
        self.calls: list[Call] = []
        self.methods: Counter[str] = Counter()

    def answer(self, call: Call) -> Call:
        self.calls.append(call)
        self.methods[call["method"]] += 1
        method, params, said = call["method"], call["params"], {"jsonrpc": "2.0", "id": call["id"]}
        key = (params[0], params[1])
        if method == "htable.setxi":
            self.held[key], self.leases[key] = params[2], params[3]
            assert isinstance(params[2], int)
        elif method == "htable.sets":
            self.held[key] = params[2]
            assert isinstance(params[2], str)
        elif method == "htable.get":
            if key not in self.held:
                message = "Key name doesn't exist in htable."
                return said | {"error": {"code": 500, "message": message}}
            return said | {"result": {"item": {"name": key[1], "value": self.held[key]}}}
        elif self.held.pop(key, None) is None:
            return said | {"error": {"code": 404, "message": "Key not found in htable."}}
        return said | {"result": "Ok."}


class Line:
    """A line whose answers come when the test says so."""

    def __init__(self, tables: Tables, heard: push.Heard, broke: push.Broke) -> None:
        self.tables, self.heard, self.broke = tables, heard, broke
        self.waiting: list[Call] = []
        self.room = 10_000
        self.closed = False

    def send(self, call: bytes) -> bool:
        if len(self.waiting) >= self.room:
            return False
        self.waiting.append(json.loads(call))
        return True

    def close(self) -> None:
        self.closed = True

    def answer(self, most: int = 100_000) -> None:
        """Answer what waits, and what that causes."""
        while self.waiting and most:
            most -= 1
            self.heard(json.dumps(self.tables.answer(self.waiting.pop(0))).encode())


class Bench:
    """A KamailioPush without its sockets, with a clock of the test's."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.tables = Tables()
        self.push = KamailioPush("edge", "udp:127.0.0.1:9", now=lambda: self.now, **settings)
        self.lines: list[Line] = []
        self.refuse: Exception | None = None

        async def opened(heard: push.Heard, broke: push.Broke) -> Line:
            if self.refuse is not None:
                raise self.refuse
            self.lines.append(Line(self.tables, heard, broke))
            return self.lines[-1]

        self.push._open = opened

    @property
    def line(self) -> Line:
        return self.lines[-1]

    def second(self) -> None:
        """What `run` does each second."""
        self.now += 1
        self.push._look_for_missing()
        if self.push._line is None:
            asyncio.run(self.push._connect())
        self.push._renew()

    def up(self) -> "Bench":
        self.second()
        self.line.answer()
        assert self.push.status().up
        return self


# ----------------------------------------------------------------------------------- what is held


def test_what_is_shown_is_sent_before_show_returns() -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    # Why, before that.
    methods = [(call["method"], call["params"][1]) for call in at.line.waiting]
    assert [method for method, _ in methods] == ["htable.sets", "htable.sets", "htable.setxi"]
    assert methods[0] == ("htable.sets", "checksum")
    assert methods[2] == ("htable.setxi", "global")
    at.line.answer()
    assert at.tables.held[CLOSED, "global"] % 1_000_000 == 486_100
    assert "full: 50 of 50" in at.tables.held.values()


def test_everything_that_expires_is_renewed_each_second_and_nothing_else() -> None:
    at = Bench(lease_seconds=7, routes=["ivr"]).up()
    at.push.show([FULL, ACME], [RateLimit(scope="global", limit=5)])
    at.line.answer()
    at.tables.calls.clear()
    at.second()
    at.line.answer()
    renewed = [
        (*call["params"][:2],) for call in at.tables.calls if call["method"] == "htable.setxi"
    ]
    assert renewed[0] == UP
    assert len(renewed) == len(set(renewed)) == 7
    assert set(at.tables.leases.values()) == {7}
    assert [c["params"] for c in at.tables.calls if c["method"] != "htable.setxi"] == [[*CHECKSUM]]


def test_the_same_again_sends_nothing() -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    at.line.answer()
    at.push.show([FULL], [], {("trunk", "acme"): 5})
    assert at.line.waiting == []


def test_what_opens_again_is_deleted() -> None:
    at = Bench().up()
    at.push.show([FULL, ACME], [])
    at.line.answer()
    at.push.show([ACME], [])
    at.line.answer()
    assert at.tables.methods["htable.delete"] == 1
    assert {key for key in at.tables.held if key[0] == CLOSED} == {UP, (CLOSED, "trunk::acme")}
    assert at.push.status().entries == 2


def test_a_key_that_expired_before_it_was_deleted_is_no_failure() -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    at.line.answer()
    del at.tables.held[CLOSED, "global"]
    at.push.show([], [])
    at.line.answer()
    assert (at.push.status().failed, at.push.status().entries) == (0, 1)


def test_two_calls_about_one_key_are_never_on_their_way_together() -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    at.push.show([], [])
    at.push.show([FULL], [])
    at.push.show([], [])
    keys = [tuple(call["params"][:2]) for call in at.line.waiting]
    assert len(keys) == len(set(keys))
    at.line.answer()
    assert (CLOSED, "global") not in at.tables.held
    assert at.push._wanted.keys() >= {UP}


def test_texts_are_sent_again_after_a_restart_of_kamailio() -> None:
    at = Bench(routes=["ivr"]).up()
    at.push.show([FULL], [])
    at.line.answer()
    before = dict(at.tables.held)
    at.tables.held.clear()
    at.second()
    at.line.answer()
    assert at.tables.held == before
    assert at.push.status().failed == 0
    # Another sidecar's texts: the same.
    at.tables.held[CHECKSUM] = "another"
    at.tables.held[TEXTS, "route::1"] = "another"
    at.second()
    at.line.answer()
    assert at.tables.held == before


def test_texts_lost_in_a_restart_are_sent_again_although_others_changed_since() -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    at.line.answer()
    at.tables.held.clear()
    at.push.show([FULL, ACME], [])
    at.line.answer()
    for _ in range(2):
        at.second()
        at.line.answer()
    assert {"full: 50 of 50", "acme"} < set(at.tables.held.values())


@given(st.lists(st.sampled_from(["show", "second", "answer", "some", "lose"]), max_size=12))
def test_whatever_a_restart_met_all_texts_are_there_in_the_end(steps: list[str]) -> None:
    at = Bench().up()
    shown = [Denial(scope="trunk", scope_value="a", rule="ra")]
    for number, step in enumerate(steps):
        if step == "show":
            key = f"b{number}"
            shown = [*shown, Denial(scope="trunk", scope_value=key, rule=f"r{key}")]
            at.push.show(shown, [])
        elif step == "second":
            at.second()
        elif step == "lose":
            at.line.waiting.clear()
        else:
            at.line.answer(1 if step == "some" else 100_000)
    at.push.show(shown, [])
    at.line.answer(len(steps))
    at.tables.held.clear()
    for _ in range(4):
        at.line.answer()
        at.second()
    at.line.answer()
    assert set(at.tables.held.values()) >= {one.rule for one in shown}


def test_hundreds_of_entries_are_sent_in_bounded_turns() -> None:
    at = Bench().up()
    many = [Denial(scope="trunk", scope_value=str(n), rule="r") for n in range(500)]
    at.push.show(many, [])
    assert len(at.line.waiting) == MOST_ALOFT
    most = 0
    while at.line.waiting:
        at.line.answer(1)
        most = max(most, len(at.line.waiting))
    assert most <= MOST_ALOFT
    assert at.push.status().entries == 501


def test_a_full_socket_is_tried_again_with_the_next_answer() -> None:
    at = Bench().up()
    at.line.room = 3
    at.push.show([Denial(scope="trunk", scope_value=str(n), rule="r") for n in range(20)], [])
    assert len(at.line.waiting) == 3
    at.line.answer()
    assert at.push.status().entries == 21
    assert at.push.status().failed == 0


def test_too_many_entries_are_said() -> None:
    at = Bench()
    at.push.show([Denial(scope="trunk", scope_value=str(n), rule="r") for n in range(3000)], [])
    at.up()
    error = at.push.status().error
    assert error is not None
    assert error.startswith("1001 denials")


@given(
    st.lists(
        st.one_of(
            st.sets(st.sampled_from("abcdef")).map(lambda keys: ("show", keys)),
            st.sampled_from([("second", None), ("answer", None), ("some", None), ("lose", None)]),
            st.just(("restart", None)),
        ),
        max_size=40,
    )
)
def test_after_any_losses_it_holds_what_was_shown_last(steps: list[tuple[str, Any]]) -> None:
    at = Bench().up()
    shown: list[Denial] = []
    for step, keys in steps:
        if step == "show":
            shown = [Denial(scope="trunk", scope_value=key, rule=f"r{key}") for key in sorted(keys)]
            at.push.show(shown, [])
        elif step == "second":
            at.second()
        elif step == "answer":
            at.line.answer()
        elif step == "some":
            at.line.answer(2)
        elif step == "lose":
            at.line.waiting.clear()
        else:
            at.tables.held.clear()
    for _ in range(4):
        at.second()
        at.line.answer()
    leased = {key: value for key, value in at.tables.held.items() if key[0] != TEXTS}
    assert set(leased) == {UP, *((CLOSED, f"trunk::{one.scope_value}") for one in shown)}
    texts = {value for key, value in at.tables.held.items() if key[0] == TEXTS}
    assert texts >= {one.rule for one in shown}
    assert at.push.status().up
    assert at.push._busy == {}
    assert at.push._aloft == {}


# ------------------------------------------------------------------------------------- up and down


def test_it_is_up_when_everything_was_taken_and_not_before() -> None:
    at = Bench(routes=["ivr"])
    assert at.push.status().up is False
    assert at.push.status().since is None
    at.second()
    at.line.answer(1)
    assert at.push.status().up is False
    at.line.answer()
    state = at.push.status()
    assert (state.name, state.kind, state.up, state.error) == ("edge", "kamailio", True, None)
    assert (state.entries, state.failed, state.since) == (1, 0, 0.0)


def test_an_error_is_said_and_everything_is_sent_again_once_it_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sipsidecar.admission")
    at = Bench().up()
    healthy, broken = (
        at.tables.answer,
        lambda call: {
            "id": call["id"],
            "error": {"code": 500, "message": "Failed to set the item"},
        },
    )
    at.tables.answer = broken  # type: ignore[method-assign]
    at.push.show([FULL], [])
    at.line.answer()
    for _ in range(5):
        at.second()
        assert len(at.line.waiting) == 1  # only to see whether it is back
        at.line.answer()
    state = at.push.status()
    assert (state.up, state.entries) == (False, 0)
    assert state.error == "has no table sidecar: is sipsidecar-admission.cfg included?"
    assert state.failed >= 6
    at.tables.answer = healthy  # type: ignore[method-assign]
    at.tables.held.clear()
    at.second()
    at.line.answer()
    assert at.push.status().up
    assert (CLOSED, "global") in at.tables.held
    assert "full: 50 of 50" in at.tables.held.values()
    said = [record.getMessage() for record in caplog.records]
    assert sum("has no table sidecar:" in line for line in said) == 1
    assert sum("takes what it is told" in line for line in said) == 2


def test_missing_answers_are_failures() -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    at.line.waiting.clear()
    at.now += 0.4
    at.push._look_for_missing()
    assert at.push.status().up
    at.now += 0.2
    at.push._look_for_missing()
    state = at.push.status()
    assert (state.up, state.error, state.failed) == (False, "does not answer", 3)
    at.line.answer()  # they were sent again
    at.second()
    at.line.answer()
    assert at.push.status().up
    assert at.tables.held[CLOSED, "global"]


def test_late_and_strange_answers_change_nothing() -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    first = at.line.waiting[0]
    for said in (b"", b"{", b"[]", b'{"id": "1"}', b"[" * 10_000, b'{"result": {}}', b"\xff"):
        at.line.heard(said)
    assert at.push.status().error == "answers what is no JSON-RPC"
    at.line.answer()
    at.line.heard(json.dumps({"id": first["id"], "result": "Ok"}).encode())
    assert at.push.late == 1
    at.second()
    at.line.answer()
    assert at.push.status().up


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({}, "answers nothing"),
        ({"error": {"message": "Method Not Found"}}, "refuses: Method Not Found"),
        ({"error": {"message": "\x1b[31m" + "x" * 1000}}, "refuses: \\x1b[31m" + "x" * 95),
        ({"error": 5}, "refuses: None"),
    ],
)
def test_every_answer_is_checked(said: Call, error: str) -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    at.line.heard(json.dumps({"id": at.line.waiting.pop()["id"], **said}).encode())
    assert at.push.status().error == error
    assert at.push.status().up is False


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (ConnectionRefusedError(), "nobody listens there"),
        (FileNotFoundError(), "nobody listens there"),
        (TimeoutError(), "cannot be reached in time"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
        (OSError(), "OSError"),
    ],
)
def test_without_a_line_it_says_why_and_keeps_what_it_was_shown(
    refusal: Exception, words: str
) -> None:
    at = Bench()
    at.refuse = refusal
    at.second()
    at.push.show([FULL], [])
    assert at.push.status().error == words
    at.refuse = None
    at.second()
    at.line.answer()
    assert at.push.status().up
    assert (CLOSED, "global") in at.tables.held


def test_a_line_that_breaks_is_opened_again() -> None:
    at = Bench().up()
    at.push.show([FULL], [])
    at.line.broke("closed the connection")
    assert at.line.closed
    assert at.push.status().error == "closed the connection"
    at.second()
    assert len(at.lines) == 2
    at.line.answer()
    assert at.push.status().up
    assert (CLOSED, "global") in at.tables.held


def test_a_line_that_breaks_while_sending_loses_nothing() -> None:
    at = Bench().up()

    def send(call: bytes) -> bool:
        at.line.broke("nobody listens there")
        return False

    at.line.send = send  # type: ignore[method-assign]
    at.push.show([FULL], [])
    at.second()
    at.line.answer()
    at.second()
    at.line.answer()
    assert (CLOSED, "global") in at.tables.held
    assert at.push.status().up


@pytest.mark.parametrize("address", ["", "tcp:127.0.0.1:1", "http://", "udp:nowhere", "unix:x"])
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        KamailioPush("edge", address)


# ------------------------------------------------------------------------------------ over sockets


class Server:
    """Answers as Kamailio's jsonrpcs does, over one of its three transports."""

    def __init__(self, way: str, folder: Path) -> None:
        self.tables = Tables()
        self.way = way
        self.path = str(folder / "rpc")
        self.answers: Callable[[Call], bytes] = lambda call: json.dumps(
            self.tables.answer(call), indent=1
        ).encode()
        self._close: Callable[[], object] = lambda: None
        self.writers: list[asyncio.StreamWriter] = []

    async def open(self) -> str:
        loop = asyncio.get_running_loop()
        if self.way == "http":
            server = await asyncio.start_server(self._http, "127.0.0.1", 0)
            self._close = server.close
            port = server.sockets[0].getsockname()[1]
            return f"http://127.0.0.1:{port}/RPC?x=1"
        if self.way == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sock.bind(self.path)
            address = f"unix:{self.path}"
        elif self.way == "udp6":
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            sock.bind(("::1", 0))
            address = f"udp:[::1]:{sock.getsockname()[1]}"
        else:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            address = f"udp:127.0.0.1:{sock.getsockname()[1]}"
        sock.setblocking(False)

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    call, peer = sock.recvfrom(65536)
                    sock.sendto(self.answers(json.loads(call)), peer)

        loop.add_reader(sock.fileno(), read)

        def close() -> None:
            if sock.fileno() >= 0:
                loop.remove_reader(sock.fileno())
                sock.close()

        self._close = close
        return address

    def close(self) -> None:
        self._close()
        for writer in self.writers:
            writer.close()

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                assert head.startswith("POST /RPC?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")
                length = int(head.partition("Content-Length: ")[2].partition("\r\n")[0])
                body = self.answers(json.loads(await reader.readexactly(length)))
                if body.startswith(b"HTTP"):
                    writer.write(body)
                    continue
                head = f"HTTP/1.1 200 OK\r\nSia: x\r\nContent-Length: {len(body)}\r\n\r\n"
                # In pieces.
                writer.write(head[:20].encode())
                await asyncio.sleep(0)
                writer.write(head[20:].encode() + body)
        writer.close()


@contextlib.asynccontextmanager
async def pushing(server: Server) -> AsyncIterator[KamailioPush]:
    address = await server.open()
    one = KamailioPush("edge", address, routes=["ivr"])
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        server.close()
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "EVERY", 0.02)
    monkeypatch.setattr(push, "LOOK", 0.01)


@both_loops
@pytest.mark.parametrize("way", ["udp", "udp6", "unix", "http"])
def test_kamailio_holds_what_is_shown_over_every_transport(
    run: Run, way: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        server = Server(way, tmp_path)
        async with pushing(server) as one:
            await until(lambda: one.status().up)
            many = [Denial(scope="trunk", scope_value=str(n), rule="r") for n in range(300)]
            one.show([FULL, *many], [])
            await until(lambda: one.status().entries == 302)
            assert (CLOSED, "trunk::299") in server.tables.held
            one.show([], [])
            await until(lambda: one.status().entries == 1)
            assert {key for key in server.tables.held if key[0] == CLOSED} == {UP}
            state = one.status()
            assert state.failed == 0
            assert state.rtt_ms is not None
            assert 0 < state.rtt_ms < 1000
        assert one.status().up is False

    run(scenario())


def test_a_name_that_can_be_none_is_an_error_and_no_end() -> None:
    one = KamailioPush("edge", f"http://{'a' * 64}.example:1/RPC")
    asyncio.run(one._connect())
    assert one.status().up is False
    assert one.status().error is not None


@both_loops
@pytest.mark.parametrize("way", ["udp", "unix", "http"])
def test_a_kamailio_that_is_away_is_found_when_it_comes(run: Run, way: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(way, tmp_path)
        async with pushing(server) as one:
            await until(lambda: one.status().up)
            server.close()
            await until(lambda: not one.status().up)
            await until(
                lambda: one.status().error in ("nobody listens there", "closed the connection")
            )

    run(scenario())


@both_loops
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answers HTTP 404"),
        (b"HTTP no\r\n\r\n", "answers what is no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "answers what is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "answers what is no HTTP"),
        (b"HTTP" + b"x" * 100_000, "answers what is no HTTP"),
    ],
)
def test_http_that_is_no_answer_is_a_failure(
    run: Run, answer: bytes, error: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        server = Server("http", tmp_path)
        server.answers = lambda _: answer
        async with pushing(server) as one:
            await until(lambda: one.status().error == error)
            assert not one.status().up

    run(scenario())


def test_a_server_that_reads_nothing_is_not_sent_more() -> None:
    async def scenario() -> None:
        said: list[str] = []
        line = push._Http("h", "/", lambda _: None, said.append)
        assert line.send(b"{}") is False  # not connected yet
        line.close()
        deaf = socket.create_server(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        _, line = await asyncio.get_running_loop().create_connection(
            lambda: push._Http("h", "/", lambda _: None, said.append), "127.0.0.1", port
        )
        sent = 0
        while line.send(b"x" * 65536):
            sent += 1
        assert 0 < sent < 1000
        line.resume_writing()
        assert line.send(b"x")
        line.close()
        assert line.send(b"x") is False
        deaf.close()
        assert said == []

    asyncio.run(scenario())


def test_an_http_line_that_was_closed_before_it_was_made_is_aborted() -> None:
    async def scenario() -> None:
        line = push._Http("h", "/", lambda _: None, lambda _: None)
        line.close()
        made = asyncio.get_running_loop().create_future()

        class Transport(asyncio.Transport):
            def abort(self) -> None:
                made.set_result(None)

        line.connection_made(Transport())
        await made

    asyncio.run(scenario())
