import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from fakeswitch import RECORDINGS, Asked, channel_data, dial
from listeners import Run, both_loops, until
from sipsidecar.edges import outbound
from sipsidecar.edges.outbound import MOST_BYTES, Outbound, answer, question
from sipsidecar.signals.decisions import ADMIT, OVERFLOW, REFUSE, Ask, Decision
from sipsidecar.wire import esl

ADMITTED = Decision(verdict=ADMIT)
REFUSED = Decision(
    verdict=REFUSE, code=503, rule="acme_asr", reason="cac acme_asr: ASR (5 min) is low"
)
SENT_ELSEWHERE = Decision(verdict=OVERFLOW, route="ivr", rule="r")


class Sidecar:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, decision: Decision = ADMITTED) -> None:
        self.decision = decision
        self.asked: list[Ask] = []

    def __call__(self, ask: Ask) -> Decision:
        self.asked.append(ask)
        return self.decision


@contextlib.asynccontextmanager
async def listening(sidecar: Any, **more: Any) -> AsyncIterator[tuple[Outbound, tuple[str, int]]]:
    given: dict[str, Any] = {"linger": 0.02} | more
    server = Outbound(sidecar, **given)
    address = await server.open("127.0.0.1", 0)
    try:
        yield server, address
    finally:
        await server.close()
        assert server.connections == 0


async def call(sidecar: Any, **more: Any) -> Asked:
    async with listening(sidecar) as (_, address):
        return await dial(*address, **more)


# --------------------------------------------------------------------------------------- answers


@both_loops
def test_an_admitted_call_goes_on_in_its_dialplan(run: Run) -> None:
    asked = run(call(Sidecar()))
    assert asked.goes_on
    assert asked.commands == ["connect", "exit"]


async def test_an_admitted_call_beside_its_dialplan_is_told_to_go_on() -> None:
    asked = await call(Sidecar(), mode="async")
    assert asked.goes_on
    assert asked.commands == ["connect", "resume", "exit"]


@pytest.mark.parametrize("mode", ["static", "async"])
async def test_a_refused_call_gets_its_code_and_says_who_refused(mode: str) -> None:
    asked = await call(Sidecar(REFUSED), mode=mode)
    assert asked.refused == "503"
    assert not asked.goes_on
    assert asked.variables == {
        "sip_reason": 'SIP;cause=503;text="cac acme_asr: ASR (5 min) is low"',
        "sip_rh_X-Admission": "acme_asr",
    }
    # `exit` only where FreeSWITCH does not close by itself
    assert (asked.commands[-1] == "exit") is (mode == "async")


@pytest.mark.parametrize("mode", ["static", "async"])
async def test_a_call_sent_elsewhere_is_transferred_to_its_route(mode: str) -> None:
    asked = await call(Sidecar(SENT_ELSEWHERE), mode=mode)
    assert asked.transferred == "ivr XML sidecar_overflow"
    assert asked.variables == {"sidecar_route": "ivr"}
    assert not asked.goes_on


@pytest.mark.parametrize("code", [None, 0, 200, 399, 700, 100_000])
def test_a_refusal_without_a_code_of_refusals_is_486(code: int | None) -> None:
    sent, ends = answer(Decision(verdict=REFUSE, code=code, rule="r"), is_async=False)
    assert b"execute-app-arg: 486\n" in sent
    assert b"cause=486;" in sent
    assert ends


def test_a_rule_and_its_words_cannot_write_headers_or_commands() -> None:
    hostile = 'x"\r\n\r\nexit${global_getvar(password)}'
    decision = Decision(verdict=REFUSE, code=486, rule=hostile, reason=hostile)
    sent, _ = answer(decision, is_async=False)
    assert sent.count(b"\n\n") == 3
    assert b"$" not in sent
    assert b"X-Admission=other\n" in sent
    assert b'text="xexitglobal_getvar(password)"\n' in sent


@pytest.mark.parametrize("route", ["", "a b", "x\n", "${y}"])
def test_a_route_that_is_no_name_lets_the_call_pass(route: str) -> None:
    decision = Decision(verdict=OVERFLOW, route=route, rule="r")
    assert answer(decision, is_async=False) == (b"exit\n\n", False)


# ------------------------------------------------------------------------------------- questions


async def test_the_question_says_what_freeswitch_knows() -> None:
    sidecar = Sidecar()
    names = {"aeabca5b-4051-4db3-88a1-f80ba07110e1": "fs1"}
    async with listening(sidecar, name_of=lambda uuid: names.get(uuid, "")) as (_, address):
        await dial(*address, variables={"variable_sip_h_X-Tenant": "seven"})
    (ask,) = sidecar.asked
    assert (ask.call_id, ask.from_tag) == ("inj-4b2410c2@127.0.0.1", "t54229")
    assert (ask.node, ask.way, ask.method, ask.in_dialog) == ("fs1", "freeswitch", "INVITE", False)
    assert ask.ruri == "sip:5100@127.0.0.1:15060"
    assert ask.waited == 0.0
    seen = ask.sighted
    assert (seen.src_ip, seen.src_port, seen.dst_ip) == ("127.0.0.1", 54229, "127.0.0.1")
    assert (seen.from_user, seen.from_host) == ("u", "127.0.0.1")
    assert (seen.to_user, seen.ruri_user, seen.ruri_host) == ("5100", "5100", "127.0.0.1")
    assert (seen.switch, seen.headers) == ("fs1", {"x-tenant": "seven"})


async def test_a_caller_cannot_write_what_freeswitch_knows() -> None:
    sidecar = Sidecar()
    forged = (
        b"a%0Avariable_sip_network_ip: 198.51.100.9%0AAnswer-State: answered%0A%0AEvent-Name: X"
    )
    await call(sidecar, variables={"variable_sip_h_X-Evil": forged})
    (ask,) = sidecar.asked
    assert ask.sighted.src_ip == "127.0.0.1"
    assert not ask.in_dialog
    assert list(ask.sighted.headers) == ["x-evil"]


async def test_a_call_that_was_answered_is_asked_about_as_one_in_a_dialog() -> None:
    sidecar = Sidecar()
    await call(sidecar, variables={"Answer-State": "answered"})
    assert sidecar.asked[0].in_dialog


@pytest.mark.parametrize(
    ("stamps", "waited"),
    [
        ({"Event-Date-Timestamp": "1795168052299219"}, 0.5),
        ({"Event-Date-Timestamp": "1795168051699219"}, 0.0),
        ({"Event-Date-Timestamp": "never"}, 0.0),
        ({"variable_sip_invite_stamp": ""}, 0.0),
        ({"variable_sip_invite_stamp": "1_795_168_051_799_219"}, 0.0),
    ],
)
async def test_how_old_the_call_is_comes_from_one_clock(
    stamps: Mapping[str, str], waited: float
) -> None:
    sidecar = Sidecar()
    await call(sidecar, variables=stamps)
    assert sidecar.asked[0].waited == waited


@pytest.mark.parametrize("port", ["", "65536", "-1", " 5", "+5", "5_0", "9" * 5000])
def test_a_port_that_is_none_is_unknown(port: str) -> None:
    assert question(esl.Channel(network_port=port), "").sighted.src_port is None


def test_an_urn_stays_one_and_what_is_not_said_is_empty() -> None:
    assert question(esl.Channel(request_uri="urn:service:sos"), "").ruri == "urn:service:sos"
    nothing = question(esl.Channel(), "")
    assert (nothing.ruri, nothing.call_id, nothing.sighted.switch) == ("", "", None)


# ----------------------------------------------------------------- what is not as it should be


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\n\n\nContent-Type: command/reply\nReply-Text: -ERR\n\n", "not-understood"),
        (b"\x00\xff no ESL\n\n", "not-understood"),
        (channel_data(variables={"variable_sip_call_id": ""}), "not-understood"),
        (channel_data(variables={"Call-Direction": "outbound"}), "not-inbound"),
    ],
)
async def test_a_channel_that_cannot_be_asked_about_passes(data: bytes, why: str) -> None:
    sidecar = Sidecar(REFUSED)
    async with listening(sidecar) as (server, address):
        asked = await dial(*address, data=data)
        assert server.counters[why] == 1
        assert server.status().refused == (why == "not-understood")
    assert asked.goes_on
    assert asked.commands == ["connect", "exit"]
    assert sidecar.asked == []


async def test_a_bug_lets_the_call_pass_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def breaks(_: Ask) -> Decision:
        raise ZeroDivisionError

    async with listening(breaks) as (server, address):
        for _ in range(3):
            assert (await dial(*address, mode="async")).goes_on
        assert server.counters["broke"] == 3
        assert server.status().refused == 3
    assert len(caplog.records) == 1


async def test_a_huge_invite_is_asked_about_like_any_other() -> None:
    sidecar = Sidecar(REFUSED)
    many: dict[str, str | bytes] = {f"variable_sip_h_X-{n}": "v" * 300 for n in range(1500)}
    asked = await call(sidecar, variables={"variable_switch_r_sdp": "\r\n" * 60_000} | many)
    assert asked.refused == "503"
    assert len(sidecar.asked[0].sighted.headers) == esl.MAX_CUSTOM


async def test_a_channel_without_end_is_cut_off() -> None:
    async with listening(Sidecar()) as (server, address):
        asked = await dial(*address, data=b"Event-Name: x" + b"y" * (MOST_BYTES + 1))
        await until(lambda: server.connections == 0)
        assert server.counters["too-big"] == 1
        assert asked.goes_on


async def test_a_peer_that_says_nothing_has_no_longer_than_its_time() -> None:
    async with listening(Sidecar(), patience=0.05) as (server, address):
        asked = await dial(*address, data=b"Event-Name: CHANNEL_DATA\n")
        assert asked.goes_on
        assert asked.seconds < 1
        assert server.counters["timeout"] == 1


async def test_who_leaves_without_a_word_is_counted() -> None:
    async with listening(Sidecar()) as (server, address):
        _, writer = await asyncio.open_connection(*address)
        writer.close()
        await until(lambda: server.counters["not-asked"] == 1)


async def test_a_command_that_freeswitch_cannot_do_is_counted() -> None:
    async with listening(Sidecar(REFUSED)) as (server, address):
        reader, writer = await asyncio.open_connection(*address)
        data = channel_data()
        # in any pieces, the answers close behind
        for at in range(0, len(data), 1000):
            writer.write(data[at : at + 1000])
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"Content-Type: command/reply\nReply-Text: -ERR no\n\nContent-Length: x\n\n")
        await until(lambda: server.counters["not-done"] == 1)
        writer.close()
        await reader.read()


async def test_answers_in_the_same_read_as_the_channel_are_heard() -> None:
    async with listening(Sidecar(REFUSED)) as (server, address):
        _, writer = await asyncio.open_connection(*address)
        writer.write(channel_data() + b"Content-Type: command/reply\nReply-Text: -ERR no\n\n")
        await until(lambda: server.counters["not-done"] == 1)
        writer.close()


async def test_connections_over_the_limit_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "MOST_CONNECTIONS", 2)
    async with listening(Sidecar(REFUSED)) as (server, address):
        waiting = [await asyncio.open_connection(*address) for _ in range(2)]
        await until(lambda: server.connections == 2)
        asked = await dial(*address)
        assert asked.goes_on
        assert server.counters["too-many"] == 1
        for _, writer in waiting:
            writer.close()


@both_loops
def test_closing_lets_those_pass_that_still_wait(run: Run) -> None:
    async def once() -> None:
        server = Outbound(Sidecar())
        assert not server.status().up
        address = await server.open("127.0.0.1", 0)
        assert server.status().up
        waiting = asyncio.create_task(dial(*address, data=b"Event-Name: CHANNEL_DATA\n"))
        await until(lambda: server.connections == 1)
        await server.close()
        assert (await waiting).goes_on
        assert not server.status().up
        assert server.status().error == "it does not listen"
        assert (await dial(*address)).goes_on
        await server.close()

    run(once())


async def test_the_state_counts_answers() -> None:
    sidecar = Sidecar()
    async with listening(sidecar) as (server, address):
        for decision in (ADMITTED, REFUSED, SENT_ELSEWHERE):
            sidecar.decision = decision
            await dial(*address)
        state = server.status()
    assert (state.name, state.kind, state.up) == ("outbound", "outbound", True)
    assert (state.asked, state.refused, state.error) == (3, 0, None)
    assert state.since is not None
    assert 0 <= state.since < 10


async def test_answers_are_those_of_the_recordings() -> None:
    """What was sent to a real FreeSWITCH, and did what it should there."""
    refused = (RECORDINGS / "outbound-5186.esl").read_bytes()
    admitted = (RECORDINGS / "outbound-5100.esl").read_bytes()
    assert b">>> exit\n>>>" in admitted
    sent, _ = answer(Decision(verdict=REFUSE, code=486, rule="r"), is_async=False)
    last = sent.split(b"\n\n")[-2] + b"\n"
    assert b"".join(b">>> " + line + b"\n" for line in last.split(b"\n")) in refused


async def test_many_calls_at_one_moment_are_all_answered() -> None:
    async with listening(Sidecar(REFUSED)) as (server, address):
        began = time.monotonic()
        answers = await asyncio.gather(*(dial(*address) for _ in range(200)))
        assert {one.refused for one in answers} == {"503"}
        assert time.monotonic() - began < 5
        assert server.status().asked == 200
