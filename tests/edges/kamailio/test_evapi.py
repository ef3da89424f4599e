import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listeners import Run, both_loops, until
from sipsidecar.edges.kamailio import evapi
from sipsidecar.edges.kamailio.evapi import (
    MOST_QUESTION,
    EvapiError,
    KamailioAsk,
    Netstrings,
    answer,
    netstring,
    question,
)
from sipsidecar.signals.decisions import ADMIT, OVERFLOW, REFUSE, Ask, Decision

INCLUDE = Path(__file__).parents[3] / "kamailio" / "sipsidecar-admission-asked.cfg"
REFUSED = Decision(verdict=REFUSE, code=503, rule="acme", reason="cac acme: 50 of 50")


def hexa(text: str) -> str:
    return text.encode().hex()


def asked(**other: Any) -> bytes:
    """A question as the include writes it."""
    texts = {
        "ci": "call-1@192.0.2.1",
        "ft": "tag-1",
        "cs": "17",
        "ru": "sip:+4930@carrier.example;user=phone",
        "fu": "sip:alice@Home.example:5062",
        "tu": "sip:bob@there.example",
        "du": "",
        "pr": "",
        "rs": "",
        "hd": "",
        "tr": "",
        "te": "",
        "di": "",
        "re": "",
    }
    numbers: dict[str, Any] = {
        "ti": 45042,
        "tl": 599937976,
        "s": 1_700_000_000,
        "u": 250_000,
        "si": "192.0.2.7",
        "sp": 5062,
        "ri": "198.51.100.1",
        "rp": 5060,
    }
    for name, value in other.items():
        (texts if name in texts else numbers)[name] = value
    said = numbers | {name: hexa(text) for name, text in texts.items()}
    return json.dumps(said, separators=(",", ":")).encode()


def read(**other: Any) -> Ask:
    ask, index, label = question(asked(**other), "edge", lambda _: 0.0)
    assert (index, label) == (45042, 599937976)
    return ask


# --------------------------------------------------------------------------------------- questions


def test_a_question_is_everything_that_is_known_of_the_invite() -> None:
    ask, index, label = question(asked(), "edge", lambda then: 1_700_000_001 - then)
    assert (index, label) == (45042, 599937976)
    assert (ask.call_id, ask.from_tag, ask.cseq) == ("call-1@192.0.2.1", "tag-1", 17)
    assert (ask.method, ask.in_dialog, ask.node, ask.way) == ("INVITE", False, "edge", "evapi")
    assert ask.ruri == "sip:+4930@carrier.example;user=phone"
    assert ask.waited == 0.75
    seen = ask.sighted
    assert (seen.src_ip, seen.src_port) == ("192.0.2.7", 5062)
    assert (seen.dst_ip, seen.dst_port) == ("198.51.100.1", 5060)
    assert (seen.from_user, seen.from_host) == ("alice", "home.example")
    assert (seen.to_user, seen.to_host) == ("bob", "there.example")
    assert (seen.ruri_user, seen.ruri_host) == ("+4930", "carrier.example")
    assert seen.headers == {}


def test_the_fields_are_those_of_the_include() -> None:
    (said,) = re.findall(r'evapi_async_unicast\("(\{.*?\})", ', INCLUDE.read_text())
    names = re.findall(r'\\"(\w+)\\":', said)
    assert names == list(evapi._Question.__struct_fields__)
    # Longer than Kamailio can print, it would be no question at all.
    lengths = [int(length) for length in re.findall(r"s\.substr,0,(\d+)", said)]
    assert sum(lengths) * 2 + len(said) < 8000
    hexed = re.findall(r'\\"(\w+)\\":\\"\$\(\S+?\{s\.encode\.hexa\}\)\\"', said)
    assert hexed == list(names[8:])


def test_the_destination_is_the_one_the_script_chose_where_that_is_an_address() -> None:
    assert read(du="sip:203.0.113.9:5070").sighted.dst_ip == "203.0.113.9"
    assert read(du="sip:203.0.113.9:5070").sighted.dst_port == 5070
    assert read(du="sip:[2001:DB8::0:9]").sighted.dst_ip == "2001:db8::9"
    assert read(du="sip:[2001:db8::9]").sighted.dst_port is None
    assert read(du="sip:carrier.example").sighted.dst_ip == "198.51.100.1"


def test_headers_are_the_script_s_lines_and_its_own_words_stand_above_them() -> None:
    ask = read(
        hd="X-Account: 7\r\nX-Account: 8\r\n folded: no\r\nno line\r\nSidecar-Trunk: forged\r\n"
        "sidecar-tenant: forged\r\nbad name: 1\r\n: 2\r\n",
        tr="acme",
        di="inbound",
    )
    assert ask.sighted.headers == {
        "x-account": "7",
        "sidecar-trunk": "acme",
        "sidecar-direction": "inbound",
    }
    many = "".join(f"h{number}: 1\r\n" for number in range(100))
    assert len(read(hd=many).sighted.headers) == evapi.MOST_HEADERS


def test_what_is_absent_is_unknown() -> None:
    bare = b'{"ti":1,"tl":2}'
    ask, index, label = question(bare, "edge", lambda _: 0.0)
    assert (index, label, ask.call_id, ask.cseq, ask.ruri) == (1, 2, "", None, "")
    seen = ask.sighted
    assert (seen.src_ip, seen.src_port, seen.dst_ip, seen.dst_port) == (None, None, None, None)
    assert (seen.from_user, seen.to_user, seen.ruri_user) == (None, None, None)


@pytest.mark.parametrize("cseq", ["", "-1", "1e3", "\u0661\u0667", "12345678901", " 1_7"])
def test_a_cseq_is_digits_or_unknown(cseq: str) -> None:
    assert read(cs=cseq).cseq is None


def test_bytes_that_are_no_text_are_written_as_hep_shows_them() -> None:
    raw = asked().replace(hexa("call-1@192.0.2.1").encode(), b"61ff00")
    ask, _, _ = question(raw, "edge", lambda _: 0.0)
    assert ask.call_id == "a\\xff\\x00"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_question_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        question(data, "edge", lambda _: 0.0)


@given(
    st.dictionaries(st.sampled_from(["ci", "ft", "cs", "ru", "fu", "tu", "du", "hd"]), st.text())
)
def test_any_text_of_a_caller_is_a_question(texts: dict[str, str]) -> None:
    texts = {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
    read(**texts)


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (Decision(verdict=ADMIT, rule="shadowy", reason="x"), "admit|0||"),
        (REFUSED, "refuse|503||acme: 50 of 50"),
        (Decision(verdict=REFUSE, rule="r", code=200), "refuse|486||r"),
        (Decision(verdict=REFUSE, rule="r", reason='cac r: a|b"'), "refuse|486||r: a_b_"),
        (Decision(verdict=OVERFLOW, rule="r", route="ivr"), "overflow|0|ivr|r"),
    ],
)
def test_an_answer_is_what_the_script_selects_from(decision: Decision, said: str) -> None:
    assert answer(1, 2, decision) == f"a|1|2|{said}"


# -------------------------------------------------------------------------------------- netstrings


def test_netstrings_come_out_whatever_the_pieces() -> None:
    data = netstring("b") + netstring("é" * 300) + netstring("") + netstring("{}")
    for size in (1, 2, 3, 7, len(data)):
        reader, found = Netstrings(), []
        for at in range(0, len(data), size):
            reader.receive_data(data[at : at + size])
            while (one := reader.next()) is not None:
                found.append(one.decode())
        assert found == ["b", "é" * 300, "", "{}"]


@pytest.mark.parametrize(
    "data", [b":", b"x", b"1x", b"1:ab", b"1234567", b"99999:", b" 1:a,", b"-1:"]
)
def test_what_is_no_netstring_is_an_error_that_stays(data: bytes) -> None:
    reader = Netstrings()
    reader.receive_data(data)
    for _ in range(2):
        with pytest.raises(EvapiError):
            reader.next()


@given(st.binary())
def test_any_bytes_are_netstrings_or_an_error(data: bytes) -> None:
    reader = Netstrings()
    reader.receive_data(data)
    with contextlib.suppress(EvapiError):
        while (one := reader.next()) is not None:
            assert len(one) <= MOST_QUESTION


# -------------------------------------------------------------------------------------- the clocks


def test_how_long_a_call_waited_is_no_matter_of_whose_clock_is_right() -> None:
    clock = evapi._Clock()
    for ahead in (-3600.0, 3600.0):
        clock = evapi._Clock()
        ages = [
            clock.age(100.0 + n, 100.0 + n + ahead + late, n)
            for n, late in enumerate([0.001, 0.0, 0.2, 0.001])
        ]
        assert ages == pytest.approx([0.0, 0.0, 0.2, 0.001])


def test_a_clock_that_was_set_is_forgotten_after_a_while() -> None:
    clock = evapi._Clock()
    clock.age(100.0, 100.0, 0.0)
    assert clock.age(100.0, 105.0, 1.0) == pytest.approx(5.0)
    assert clock.age(130.0, 135.0, 35.0) == pytest.approx(5.0)
    assert clock.age(165.0, 170.0, 65.0) == 0.0
    assert clock.age(1.0, 2.0, 500.0) == 0.0


# ------------------------------------------------------------------------------------- connections


class Kamailio:
    """Kamailio's side: one client, whose signs of life are answered."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.said: list[str] = []
        self.beats = 0
        self.clients = 0
        self.writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def open(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self.writer is not None:
            self.writer.close()
            with contextlib.suppress(ConnectionError):
                await self.writer.wait_closed()

    def ask(self, *questions: bytes) -> None:
        assert self.writer is not None
        self.writer.write(b"".join(b"%d:%b," % (len(one), one) for one in questions))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        self.writer = writer
        frames = Netstrings()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                frames.receive_data(data)
                while (one := frames.next()) is not None:
                    if one == b"b":
                        self.beats += 1
                        if not self.silent:
                            writer.write(b"1:b,")
                    else:
                        self.said.append(one.decode())
        writer.close()


@contextlib.asynccontextmanager
async def meeting(
    kamailio: Kamailio, ask: Callable[[Ask], Decision], **settings: Any
) -> AsyncIterator[KamailioAsk]:
    one = KamailioAsk("edge", "127.0.0.1", await kamailio.open(), ask, **settings)
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await kamailio.close()
        await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evapi, "BEAT", 0.01)
    monkeypatch.setattr(evapi, "FIRST_PAUSE", 0.001)


def admit(ask: Ask) -> Decision:
    return Decision(verdict=ADMIT)


@both_loops
def test_every_question_is_answered_under_its_transaction(run: Run) -> None:
    async def scenario() -> None:
        kamailio = Kamailio()
        asks: list[Ask] = []

        def ask(one: Ask) -> Decision:
            asks.append(one)
            return REFUSED if one.call_id == "2" else Decision(verdict=ADMIT)

        async with meeting(kamailio, ask) as one:
            assert one.status().up is False
            await until(lambda: one.status().up)
            kamailio.ask(*(asked(ti=n, ci=str(n)) for n in range(1, 4)))
            await until(lambda: len(kamailio.said) == 3)
            assert kamailio.said == [
                "a|1|599937976|admit|0||",
                "a|2|599937976|refuse|503||acme: 50 of 50",
                "a|3|599937976|admit|0||",
            ]
            assert [ask.call_id for ask in asks] == ["1", "2", "3"]
            state = one.status()
            assert (state.name, state.kind, state.error) == ("edge", "evapi", None)
            assert (state.asked, state.refused) == (3, 0)
            assert state.since is not None
            assert one.counters["refuse"] == 1
            kamailio.ask(b"l", asked(ti=4))
            await until(lambda: len(kamailio.said) == 4)
            assert (one.counters["late"], one.status().asked) == (1, 4)

    run(scenario())


def test_a_question_that_is_not_understood_is_admitted_and_counted() -> None:
    async def scenario() -> None:
        kamailio = Kamailio()

        def ask(one: Ask) -> Decision:
            raise AssertionError

        async with meeting(kamailio, ask) as one:
            await until(lambda: one.status().up)
            kamailio.ask(
                b'{"ti":7,"tl":8,"si":"<null>","sp":<null>}',
                b'{"ti":9,"tl":10,"ci":"zz"}',
                b"nothing",
                b'{"ti":11,"tl":12,' + b"[" * 5000,
            )
            await until(lambda: one.status().refused == 4)
            await until(lambda: len(kamailio.said) == 3)
            assert kamailio.said == [f"a|{n}|{n + 1}|admit|0||" for n in (7, 9, 11)]

    asyncio.run(scenario())


def test_a_bug_costs_no_call(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        kamailio = Kamailio()

        def ask(one: Ask) -> Decision:
            raise RuntimeError("a bug")

        async with meeting(kamailio, ask) as one:
            await until(lambda: one.status().up)
            kamailio.ask(asked(ti=1), asked(ti=2))
            await until(lambda: len(kamailio.said) == 2)
            assert kamailio.said[1] == "a|2|599937976|admit|0||"
            assert one.counters["broke"] == 2

    asyncio.run(scenario())
    assert sum("was not answered" in record.getMessage() for record in caplog.records) == 1


@both_loops
def test_a_kamailio_that_goes_is_met_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sipsidecar.admission")

    async def scenario() -> None:
        kamailio = Kamailio()
        async with meeting(kamailio, admit) as one:
            await until(lambda: one.status().up)
            assert kamailio.writer is not None
            kamailio.writer.close()
            await until(lambda: kamailio.clients == 2)
            await until(lambda: one.status().up)
            port = kamailio._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            await kamailio.close()
            await until(lambda: one.status().error == "nobody listens there")
            assert one.status().up is False
            kamailio.writer = None
            await kamailio.open(port)
            await until(lambda: one.status().up)
            assert one.counters["connected"] == 3

    run(scenario())
    said = [record.getMessage() for record in caplog.records]
    assert sum("nobody listens there" in line for line in said) == 1
    assert sum("may ask" in line for line in said) == 3


def test_a_kamailio_that_answers_no_sign_of_life_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        kamailio = Kamailio(silent=True)
        async with meeting(kamailio, admit) as one:
            await until(lambda: kamailio.clients >= 2)
            assert kamailio.beats >= evapi.MOST_SILENCE
            state = one.status()
            assert state.up is False
            assert state.error == "is silent: is sipsidecar-admission-asked.cfg included?"

    asyncio.run(scenario())
    assert sum("is silent" in record.getMessage() for record in caplog.records) == 1


def test_a_peer_that_speaks_no_netstrings_is_left() -> None:
    async def scenario() -> None:
        kamailio = Kamailio()
        async with meeting(kamailio, admit) as one:
            await until(lambda: one.status().up)
            assert kamailio.writer is not None
            kamailio.writer.write(b"HTTP/1.1 400 Bad Request\r\n")
            await until(lambda: kamailio.clients == 2)
            assert one.status().error in (None, "sends what is no netstring")

    asyncio.run(scenario())


def test_pauses_between_attempts_grow_until_they_are_long() -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def scenario() -> None:
        kamailio = Kamailio()
        port = await kamailio.open()
        await kamailio.close()
        one = KamailioAsk("edge", "127.0.0.1", port, admit, pause=pause)
        task = asyncio.create_task(one.run())
        await until(lambda: len(pauses) > 15)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert pauses[:3] == [0.002, 0.004, 0.008]
    assert pauses[-1] == evapi.LONGEST_PAUSE


def test_an_address_nobody_has_is_said() -> None:
    async def pause(seconds: float) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        one = KamailioAsk("edge", "255.255.255.255", 1, admit, pause=pause)
        assert one.address == "255.255.255.255:1"
        assert KamailioAsk("edge", "::1", 1, admit).address == "[::1]:1"
        task = asyncio.create_task(one.run())
        await until(lambda: one.status().error is not None)
        assert one.status().error != "nobody listens there"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_flood_of_questions_shares_the_loop_and_is_answered_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evapi, "TURN", 0.0005)
    monkeypatch.setattr(evapi, "MOST_WAITING", 64 * 1024)

    async def scenario() -> None:
        kamailio = Kamailio()
        async with meeting(kamailio, admit) as one:
            await until(lambda: one.status().up)
            turns = 0

            def turn() -> None:
                nonlocal turns
                turns += 1
                if len(kamailio.said) < 2000:
                    asyncio.get_running_loop().call_soon(turn)

            turn()
            kamailio.ask(*(asked(ti=n) for n in range(2000)))
            await until(lambda: len(kamailio.said) == 2000)
            assert [said.split("|")[1] for said in kamailio.said] == [str(n) for n in range(2000)]
            assert turns > 50

    asyncio.run(scenario())


def test_a_number_no_clock_can_be_at_is_no_question() -> None:
    async def scenario() -> None:
        kamailio = Kamailio()
        async with meeting(kamailio, admit) as one:
            await until(lambda: one.status().up)
            kamailio.ask(asked(ti=1, s=10**400))
            await until(lambda: len(kamailio.said) == 1)
            assert one.counters["not-understood"] == 1
            assert (one.status().up, kamailio.clients) == (True, 1)

    asyncio.run(scenario())


def test_a_kamailio_that_asks_and_reads_no_answer_is_left() -> None:
    class Deaf(asyncio.Transport):
        limit: int | None = None
        aborted = False

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            self.limit = high

        def write(self, data: object) -> None:
            pass

        def abort(self) -> None:
            self.aborted = True

    async def scenario() -> None:
        deaf = Deaf()
        line = evapi._Line(lambda _: "", lambda: None)
        line.connection_made(deaf)
        assert deaf.limit == evapi.MOST_WAITING
        line.pause_writing()  # what the loop does over this limit
        assert deaf.aborted
        assert line.why == "does not read what it is told"

    asyncio.run(scenario())


def test_one_that_is_stopped_is_not_up() -> None:
    async def scenario() -> None:
        kamailio = Kamailio()
        async with meeting(kamailio, admit) as one:
            await until(lambda: one.status().up)
        assert (one.status().up, one.status().error) == (False, "stopped")

    asyncio.run(scenario())


def test_a_connection_that_ends_in_a_flood_answers_no_more() -> None:
    async def scenario() -> None:
        kamailio = Kamailio()
        answered = 0

        def ask(one: Ask) -> Decision:
            nonlocal answered
            answered += 1
            if answered == 3:
                assert kamailio.writer is not None
                line = next(iter(lines))
                line.close("stopped")
            return Decision(verdict=ADMIT)

        lines: list[evapi._Line] = []
        made = evapi._Line.connection_made

        def remember(self: evapi._Line, transport: asyncio.BaseTransport) -> None:
            lines.append(self)
            made(self, transport)

        evapi._Line.connection_made = remember  # type: ignore[method-assign]
        try:
            async with meeting(kamailio, ask) as one:
                await until(lambda: one.status().up)
                kamailio.ask(*(asked(ti=n) for n in range(10)))
                await until(lambda: kamailio.clients == 2)
                assert answered == 3
        finally:
            evapi._Line.connection_made = made  # type: ignore[method-assign]

    asyncio.run(scenario())
