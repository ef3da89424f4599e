"""The fake FreeSWITCH against recordings of the real one, a plain socket and greenswitch."""

import asyncio
import contextlib
import importlib.util
import json
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakeswitch import (
    GARBAGE,
    NOTICE,
    RECORDINGS,
    SAID,
    TICK,
    Core,
    Event,
    FakeSwitch,
    Gateway,
    Listener,
    Setup,
    User,
    channel_data,
    dial,
    frames,
    read_events,
    uptime,
    url_encode,
    write_call,
)

SWITCH = Setup(hostname="vm", switchname="fs-eval-1")
"""The one that was recorded."""
PASSWORD = "ClueCon"  # noqa: S105
BRIDGED = RECORDINGS / "11-bridged-b-bye.esl"
NOW = 1_795_166_400_000_000
ANSWERED = ("a_bye", "b_bye", "fs_bye", "local_a_bye", "local_fs_bye", "local_early_media")


class Client:
    """A plain socket that reads frames: as little ESL as possible, and none of the fake's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> tuple[dict[str, str], bytes]:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\n\n"), 10)).decode()
        names = dict(line.split(": ", 1) for line in head.rstrip("\n").split("\n"))
        size = int(names.get("Content-Length", "0"))
        return names, await asyncio.wait_for(self.reader.readexactly(size), 10)

    async def frame(self) -> bytes:
        names, body = await self.read()
        return b"".join(f"{k}: {v}\n".encode() for k, v in names.items()) + b"\n" + body

    async def ask(self, *lines: str) -> tuple[dict[str, str], bytes]:
        self.writer.write(("\n".join(lines) + "\n\n").encode())
        return await self.read()

    async def event(self) -> dict[str, Any]:
        names, body = await self.read()
        assert names["Content-Type"] == "text/event-json"
        event: dict[str, Any] = json.loads(body.decode("utf-8", "surrogateescape"))
        return event

    def stop_reading(self) -> None:
        transport = self.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()

    async def ended(self) -> bool:
        """Whether nothing more comes, by an end or a reset."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(), 10) == b""
        return True


@contextlib.asynccontextmanager
async def client(switch: FakeSwitch, *first: str, greeted: bool = True) -> AsyncIterator[Client]:
    """Connected, and after the commands of `first`."""
    reader, writer = await asyncio.open_connection(*switch.address, limit=1 << 24)
    one = Client(reader, writer)
    try:
        if greeted:
            assert (await one.read())[0] == {"Content-Type": "auth/request"}
        for line in first:
            said, _ = await one.ask(line)
            assert said["Reply-Text"].startswith("+OK"), said
        yield one
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until(holds: Any) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.001)


AUTH = f"auth {PASSWORD}"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def alike(frame: bytes) -> bytes:
    """A frame without what differs between two runs: uuids, times and lengths that follow."""
    text = frame.decode()
    for pattern, new in (
        (UUID, "UUID"),
        (r"(UP|Up-Time:) 0(%20| )years.*?microseconds?", r"\1 UPTIME"),
        (r"\\?(UP) 0 years.*?microseconds?", r"\1 UPTIME"),
        (r"(Event-Date-\w+|Uptime-msec|Event-Sequence): .*", r"\1: N"),
        (r'("(?:Event-Date-\w+|Event-Sequence)"):"[^"]*"', r"\1:N"),
        (r'(Content-Length"?: ?"?)\d+', r"\1N"),
        (r"(?m)^(Ping    |Uptime  )\t\d+", r"\1\tN"),
    ):
        text = re.sub(pattern, new, text)
    return text.encode()


def recorded(name: str) -> list[bytes]:
    found = []
    for head, body in frames((RECORDINGS / name).read_bytes()):
        text = "".join(f"{key}: {value}\n" for key, value in head.items()) + "\n"
        found.append(alike(text.encode() + body))
    return found


async def transcript(switch: FakeSwitch, commands: list[str], count: int) -> list[bytes]:
    """What comes back for commands that are sent one after the other."""
    got = []
    async with client(switch, greeted=False) as one:
        got.append(await one.frame())
        for command in commands:
            one.writer.write(command.encode() + b"\n\n")
            got.append(await one.frame())
            if command.startswith(("bgapi status", "sendevent CUSTOM", "wait")):
                got.append(await one.frame())
        while len(got) < count:
            got.append(await one.frame())
    return [alike(frame) for frame in got]


def like_the_recorded(switch: FakeSwitch, sessions: int, peak: int, idle: float) -> None:
    core = switch.core
    core.since_startup, core.peak, core.sps_peak, core.idle_cpu = sessions, peak, peak, idle


# ---- against the recordings


async def test_a_wrong_password_is_refused_as_recorded() -> None:
    async with FakeSwitch() as switch:
        assert await transcript(switch, ["auth wrong"], 3) == recorded("27-auth-fail.esl")
        await until(lambda: switch.connections == 0)


async def test_api_bgapi_and_exit_answer_as_recorded() -> None:
    gateway = Gateway("trunk-a", calls_out=1, failed_out=2)
    async with FakeSwitch(replace(SWITCH, gateways=[gateway])) as switch:
        like_the_recorded(switch, 4, 2, 91.30)
        commands = [AUTH, "event plain BACKGROUND_JOB", "api status", "api nosuchcommand"]
        commands += ["bgapi status", "api sofia status gateway trunk-a", "nonsense", "exit"]
        assert await transcript(switch, commands, 11) == recorded("28-api-bgapi-exit.esl")


async def test_a_restricted_user_gets_what_was_recorded() -> None:
    user = User("secret", "CHANNEL_HANGUP_COMPLETE HEARTBEAT", "status show")
    async with FakeSwitch(replace(SWITCH, users={"esl@fake": user})) as switch:
        like_the_recorded(switch, 4, 2, 91.30)
        commands = ["userauth esl@fake:secret", "event plain ALL", "event plain HEARTBEAT"]
        commands += ["api status", "api global_getvar x", "bgapi global_getvar x", "log 7"]
        commands += ["sendevent CUSTOM_NONE", "sendmsg 1234"]
        wanted = recorded("29-userauth-restricted.esl")
        async with client(switch, greeted=False) as one:
            got = [await one.frame()]
            for command in commands:
                one.writer.write(command.encode() + b"\n\n")
                got.append(await one.frame())
            switch.core.idle_cpu = 91.166667
            switch.beat()
            got.append(await one.frame())
        assert [alike(frame) for frame in got] == wanted


async def test_json_bodies_and_lists_come_as_recorded() -> None:
    async with FakeSwitch(SWITCH) as switch:
        like_the_recorded(switch, 11, 3, 76.40)
        commands = [AUTH, "event json BACKGROUND_JOB CUSTOM eval::arr", "bgapi status"]
        commands += ["sendevent CUSTOM\nEvent-Subclass: eval::arr\nArr: ARRAY::a|:b|:c"]
        assert await transcript(switch, commands, 7) == recorded("31-json-body-and-array.esl")


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("[0-9]*.esl")), ids=lambda p: p.stem[:2])
def test_every_recorded_event_is_encoded_to_the_recorded_bytes(path: Path) -> None:
    for head, body in frames(path.read_bytes()):
        how = head["Content-Type"].removeprefix("text/event-")
        if how in ("plain", "json"):
            frame = (
                f"Content-Length: {len(body)}\nContent-Type: text/event-{how}\n\n".encode() + body
            )
            (event,) = read_events(frame)
            assert event.encode(how) == frame


def test_the_two_formats_hold_the_same_headers() -> None:
    plain = list(read_events((RECORDINGS / "24-hostile-headers.esl").read_bytes()))
    for event in plain:
        (again,) = read_events(event.encode("json"))
        assert again == event
        (again,) = read_events(again.encode("plain"))
        assert again == event


def test_a_percent_sign_is_encoded_only_when_no_capital_hex_follows() -> None:
    assert url_encode(b"%0A %0a 100%") == b"%0A%20%250a%20100%25"
    assert url_encode(b"~!$'()*,-./_") == b"~!$'()*,-./_"


def test_an_empty_value_is_undefined_in_plain_and_empty_in_json() -> None:
    event = Event([("Event-Name", "API"), ("Empty", "")])
    assert b"Empty: _undef_\n" in event.encode("plain")
    assert b'"Empty":""' in event.encode("json")
    assert next(read_events(event.encode("plain"))) == event


def test_uptime_is_said_as_recorded() -> None:
    said = "0 years, 0 days, 0 hours, 1 minute, 17 seconds, 16 milliseconds, 849 microseconds"
    assert uptime(77_016_849) == said
    assert uptime(86_400_000_000 * 366).startswith("1 year, 1 day, 0 hours")


# ---- subscriptions, rights and queues


def test_words_after_custom_are_subclasses() -> None:
    one = Listener()
    assert one.subscribe(["json", "CUSTOM", "sofia::register", "HEARTBEAT"]).startswith("+OK")
    assert not one.wants(Event([("Event-Name", "HEARTBEAT")]))
    assert one.wants(Event([("Event-Name", "CUSTOM"), ("Event-Subclass", "sofia::register")]))
    assert not one.wants(Event([("Event-Name", "CUSTOM"), ("Event-Subclass", "sofia::expire")]))


def test_a_subscription_of_unknown_names_only_is_refused() -> None:
    one = Listener()
    assert one.subscribe(["plain", "sofia::register"]) == "-ERR no keywords supplied"
    assert one.subscribe(["plain", "NO_SUCH", "API"]) == "+OK event listener enabled plain"
    assert one.names == {"API"}


def test_rights_name_the_subclasses_too() -> None:
    one = Listener(allowed_events=["ALL", "CUSTOM", "sofia::register"])
    assert one.subscribe(["json", "HEARTBEAT", "CUSTOM", "sofia::expire"]) == (
        "-ERR permission denied"
    )
    assert not one.names
    assert one.subscribe(["json", "HEARTBEAT", "CUSTOM", "sofia::register"]).startswith("+OK")
    assert one.subscribe(["json", "ALL"]).startswith("+OK")


def test_nixevent_takes_one_name_out_of_all() -> None:
    one = Listener()
    one.subscribe(["json", "all"])
    assert one.unsubscribe(["HEARTBEAT"]) == "+OK events nixed"
    assert one.wants(Event([("Event-Name", "API")]))
    assert not one.wants(Event([("Event-Name", "HEARTBEAT")]))


def test_filters_let_in_what_they_name_and_keep_out_what_has_a_minus() -> None:
    one = Listener()
    one.subscribe(["json", "all"])
    assert one.filter(["Unique-ID", "u1"]) == "+OK filter added. [Unique-ID]=[u1]"
    one.filter(["Event-Name", "-API"])
    assert one.wants(Event([("Event-Name", "CODEC"), ("Unique-ID", "u1")]))
    assert not one.wants(Event([("Event-Name", "CODEC"), ("Unique-ID", "u2")]))
    assert not one.wants(Event([("Event-Name", "API"), ("Unique-ID", "u1")]))
    assert one.filter(["delete", "all"]).startswith("+OK filter deleted")
    assert one.wants(Event([("Event-Name", "API"), ("Unique-ID", "u2")]))


def test_a_listener_that_loses_501_events_is_killed() -> None:
    killed: list[bool] = []
    one = Listener(10, kill=lambda: killed.append(True))
    one.subscribe(["json", "API"])
    for _ in range(10 + 500):
        one.push(Event([("Event-Name", "API")]))
    assert (len(one.queue), one.lost, killed) == (10, 500, [])
    one.push(Event([("Event-Name", "API")]))
    assert killed == [True]


async def test_noevents_ends_a_subscription() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        assert (await one.ask("noevents"))[0]["Reply-Text"] == "-ERR not listening for events"
        await one.ask("event json HEARTBEAT")
        said = (await one.ask("noevents"))[0]["Reply-Text"]
        assert said == "+OK no longer listening for events"
        switch.beat()
        assert (await one.ask("api uuid_exists x"))[1] == b"false"


# ---- state


async def test_live_channels_follow_the_events() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        assert (await one.ask("api show channels as json"))[1] == b'{"row_count":0}'
        call = switch.call("b_bye", ends=False)
        shown = json.loads((await one.ask("api show channels as json"))[1])
        assert call.b is not None
        assert shown["row_count"] == 2
        assert [row["uuid"] for row in shown["rows"]] == [call.a.uuid, call.b.uuid]
        assert {row["call_uuid"] for row in shown["rows"]} == {call.a.uuid}
        assert [row["direction"] for row in shown["rows"]] == ["inbound", "outbound"]
        assert shown["rows"][0]["callstate"] == "ACTIVE"
        assert (await one.ask(f"api uuid_exists {call.a.uuid}"))[1] == b"true"
        assert switch.beat().get("Session-Count") == "2"
        switch.play(call)
        assert (await one.ask("api show channels count"))[1] == b"\n0 total.\n"
        beat = switch.beat()
        assert beat.get("Session-Count") == "0"
        assert beat.get("Session-Since-Startup") == beat.get("Session-Peak-Max") == "2"


async def test_registrations_follow_the_recording() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        events = list(read_events((RECORDINGS / "21-register-unregister.esl").read_bytes()))
        switch.core.deliver(events[0])
        shown = json.loads((await one.ask("api show registrations as json"))[1])
        assert shown["rows"][0]["reg_user"] == "1000"
        switch.core.deliver(events[2])
        assert (await one.ask("api show registrations as json"))[1] == b'{"row_count":0}'


async def test_variables_and_hashes_are_kept() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        for question, answer in (
            ("global_getvar deny", b"-ERR no reply\n"),
            ("global_setvar deny=1795166400", b"+OK"),
            ("global_getvar deny", b"1795166400"),
            ("global_setvar deny=", b"+OK"),
            ("global_getvar deny", b"-ERR no reply\n"),
            ("hash insert/realm/key/value", b"+OK\n"),
            ("hash select/realm/key", b"value"),
            ("hash delete/realm/key", b"+OK\n"),
            ("hash delete/realm/key", b"-ERR Not found\n"),
        ):
            assert (await one.ask(f"api {question}"))[1] == answer
        assert switch.core.commands[-1] == "api hash delete/realm/key"
        assert "auth" in switch.core.commands


async def test_pause_and_limits_are_kept() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        for question, answer in (
            ("pause_check inbound", b"false"),
            ("pause inbound", b"+OK\n"),
            ("pause_check inbound", b"true"),
            ("max_sessions 50", b"+OK max sessions: 50\n"),
            ("max_sessions 0", b"+OK max sessions: 50\n"),
        ):
            assert (await one.ask(f"api fsctl {question}"))[1] == answer
        beat = switch.beat()
        assert beat.get("Event-Info") == "System Ready"
        assert beat.get("Max-Sessions") == "50"


def test_the_sessions_of_the_last_second_lower_the_budget() -> None:
    now = [100.0]
    core = Core(Setup(sps=200), lambda: now[0])
    for number in range(3):
        core.fire("CHANNEL_CREATE", [("Unique-ID", str(number))])
    beat = core.beat()
    assert (beat.get("Session-Per-Sec"), beat.get("Session-Per-Sec-Last")) == ("197", "3")
    now[0] += 2.0
    beat = core.beat()
    assert (beat.get("Session-Per-Sec"), beat.get("Session-Per-Sec-Last")) == ("200", "0")
    assert beat.get("Session-Per-Sec-Max") == "3"


async def test_a_gateway_that_changes_is_told_and_shown() -> None:
    async with (
        FakeSwitch() as switch,
        client(switch, AUTH, "event json CUSTOM sofia::gateway_state") as one,
    ):
        switch.gateway("trunk-a", state="NOREG", status="DOWN", code=503, phrase="No answer")
        event = await one.event()
        assert event["Event-Subclass"] == "sofia::gateway_state"
        assert (event["Gateway"], event["Ping-Status"], event["Status"]) == (
            "trunk-a",
            "DOWN",
            "503",
        )
        assert b"Status  \tDOWN\n" in (await one.ask("api sofia status gateway trunk-a"))[1]
        assert (await one.ask("api sofia status gateway none"))[1] == b"Invalid Gateway!\n"


async def test_a_job_keeps_the_uuid_that_the_client_chose() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH, "event json BACKGROUND_JOB") as one:
        said, _ = await one.ask("bgapi uuid_exists x", "Job-UUID: mine")
        assert said["Job-UUID"] == "mine"
        job = await one.event()
        assert (job["Job-UUID"], job["Job-Command-Arg"], job["_body"]) == ("mine", "x", "false")


# ---- calls


def headers_of(call_steps: Any, name: str, uuid: str) -> Event:
    return next(
        event
        for at, step, pairs in call_steps
        if step == name and (event := Event(pairs)).get("Unique-ID") == uuid
    )


def test_a_call_without_changes_is_the_recorded_call() -> None:
    old = [e for e in read_events(BRIDGED.read_bytes()) if e.get("Unique-ID")]
    end = int(old[-1].get("Event-Date-Timestamp"))
    ids = ("11-bridged-b-bye-1-12396@127.0.0.1", "4cbdef35-5f66-1240-22ab-7ab7a297256e")
    call = write_call("b_bye", end=end, call_ids=ids)
    assert call.b is not None
    assert [name for _, name, _ in call.steps] == [e.get("Event-Name") for e in old]
    new = {call.a.uuid: old[0].get("Unique-ID"), call.b.uuid: old[1].get("Unique-ID")}
    for (at, _, pairs), event in zip(call.steps, old, strict=True):
        assert at == int(event.get("Event-Date-Timestamp"))
        text = json.dumps(pairs)
        for mine, theirs in new.items():
            text = text.replace(mine, theirs)
        assert [tuple(pair) for pair in json.loads(text)] == event.headers[13:]


@pytest.mark.parametrize("outcome", sorted(SAID["calls"]))
def test_every_outcome_keeps_to_the_table(outcome: str) -> None:
    call = write_call(outcome, end=NOW)
    assert call.steps[-1][0] == NOW
    assert [at for at, _, _ in call.steps] == sorted(at for at, _, _ in call.steps)
    names = Counter(name for _, name, _ in call.steps)
    assert names["CHANNEL_DESTROY"] == (2 if call.b else 1)
    a = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.a.uuid)
    assert [value for name, value in a.headers if name == "Hangup-Cause"] == [
        a.get("Hangup-Cause")
    ] * 2
    assert (int(a.get("Caller-Channel-Answered-Time")) > 0) == (outcome in ANSWERED)
    text = json.dumps([pairs for _, _, pairs in call.steps])
    assert "127.0.0.1" in text
    assert not [
        e
        for e in read_events((RECORDINGS / SAID["calls"][outcome]["file"]).read_bytes())
        if e.get("Unique-ID") and e.get("Unique-ID") in text
    ]


def test_a_refusal_has_its_own_code_on_both_legs() -> None:
    call = write_call("refused", end=NOW, status=403)
    assert call.b is not None
    a = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.a.uuid)
    b = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.b.uuid)
    assert b.get("variable_sip_term_status") == b.get("variable_sip_invite_failure_status") == "403"
    assert b.get("variable_proto_specific_hangup_cause") == "sip:403"
    assert b.get("variable_sip_hangup_disposition") == "recv_refuse"
    assert a.get("variable_sip_term_status") == ""
    assert a.get("variable_sip_invite_failure_status") == "403"
    assert a.get("variable_last_bridge_proto_specific_hangup_cause") == "sip:403"
    for leg in (a, b):
        assert (leg.get("Hangup-Cause"), leg.get("variable_hangup_cause_q850")) == (
            "CALL_REJECTED",
            "21",
        )
    first = headers_of(call.steps, "CHANNEL_CREATE", call.b.uuid)
    assert first.get("variable_sip_call_id") == ""


def test_a_refusal_by_the_switch_has_a_cause_and_no_code() -> None:
    call = write_call("refused_here", end=NOW, status=503)
    assert call.b is None
    a = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.a.uuid)
    assert a.get("Hangup-Cause") == "NORMAL_TEMPORARY_FAILURE"
    assert a.get("variable_hangup_cause_q850") == "41"
    for name in ("sip_term_status", "sip_invite_failure_status", "proto_specific_hangup_cause"):
        assert a.get(f"variable_{name}") == ""


def test_a_switch_that_ends_a_call_tells_no_code() -> None:
    call = write_call("fs_bye", end=NOW)
    assert "sip:200" not in json.dumps([pairs for _, _, pairs in call.steps])
    a = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.a.uuid)
    assert a.get("variable_sip_hangup_disposition") == "send_bye"
    assert a.get("variable_endpoint_disposition") == "ANSWER"


def test_an_unanswered_call_ends_by_b_and_then_by_a() -> None:
    call = write_call("no_answer", end=NOW)
    assert call.b is not None
    ends = [(n, Event(p).get("Unique-ID")) for _, n, p in call.steps if "HANGUP" in n]
    assert [uuid for _, uuid in ends] == [call.b.uuid] * 2 + [call.a.uuid] * 2
    b = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.b.uuid)
    assert (b.get("Hangup-Cause"), b.get("variable_hangup_cause_q850")) == ("NO_ANSWER", "19")
    assert b.get("variable_sip_invite_failure_status") == "487"
    assert b.get("variable_sip_term_status") == ""
    assert b.get("variable_sip_hangup_disposition") == "send_cancel"


def test_a_gateway_that_is_down_gives_b_only_an_end() -> None:
    call = write_call("gateway_down", end=NOW)
    assert call.b is not None
    mine = [n for _, n, p in call.steps if Event(p).get("Unique-ID") == call.b.uuid]
    assert mine == ["CHANNEL_DESTROY"]


def test_a_call_refused_by_the_core_is_not_told_at_all() -> None:
    assert not write_call("core_503", end=NOW).steps


def test_times_of_a_call_can_be_chosen() -> None:
    call = write_call("a_bye", end=NOW, ring=1.0, answer=4.0, talk=30.0)
    assert call.b is not None
    b = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.b.uuid)
    at = {n: int(b.get(f"Caller-Channel-{n}-Time")) for n in ("Created", "Progress", "Answered")}
    assert at["Progress"] - at["Created"] == 1_000_000
    assert at["Answered"] - at["Created"] == 4_000_000
    a = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.a.uuid)
    created = int(a.get("Caller-Channel-Created-Time"))
    assert int(a.get("Caller-Channel-Hangup-Time")) - created == 34_000_000
    assert b.get("variable_progressmsec") == "1000"
    assert b.get("variable_answermsec") == "4000"
    assert abs(int(b.get("variable_billmsec")) - 30_000) <= 100
    assert b.get("variable_end_epoch") == b.get("Caller-Channel-Hangup-Time")[:-6]


def test_values_of_a_call_can_be_chosen() -> None:
    call = write_call(
        "a_bye",
        end=NOW,
        call_ids=("a@x", "b@x"),
        variables={"sip_h_X-Evil": "a%0AHangup-Cause: FAKE"},
        set_b={"Source-Lost": "12", "variable_rtp_audio_in_packet_count": "0"},
        words={"44201": "1000", "trunk-a": "carrier"},
    )
    assert call.b is not None
    a = headers_of(call.steps, "CHANNEL_CREATE", call.a.uuid)
    b = headers_of(call.steps, "CHANNEL_HANGUP_COMPLETE", call.b.uuid)
    assert a.get("variable_sip_h_X-Evil") == "a%0AHangup-Cause: FAKE"
    assert a.get("variable_sip_call_id") == "a@x"
    assert a.get("Caller-Caller-ID-Number") == "1000"
    assert (b.get("variable_sip_call_id"), b.get("variable_sip_gateway_name")) == ("b@x", "carrier")
    assert b.get("variable_rtp_audio_in_packet_count") == "0"
    sent = headers_of(call.steps, "SEND_RTCP_MESSAGE", call.b.uuid)
    assert sent.get("Source-Lost") == "12"


async def test_a_call_is_sent_in_each_clients_format() -> None:
    names = "CHANNEL_CREATE CHANNEL_HANGUP_COMPLETE"
    async with (
        FakeSwitch() as switch,
        client(switch, AUTH, f"event json {names}") as one,
        client(switch, AUTH, f"event plain {names}") as two,
    ):
        call = switch.call("refused", status=486)
        for _ in range(4):
            _, body = await one.read()
            _, text = await two.read()
            (from_json,) = read_events(
                b"Content-Type: text/event-json\nContent-Length: %d\n\n%s" % (len(body), body)
            )
            (from_plain,) = read_events(
                b"Content-Type: text/event-plain\nContent-Length: %d\n\n%s" % (len(text), text)
            )
            assert from_json == from_plain
            assert from_json.get("Core-UUID") == switch.core.core_uuid
            assert abs(int(from_json.get("Event-Date-Timestamp")) / 1e6 - time.time()) < 60
            if from_json.get("Event-Name") == "CHANNEL_HANGUP_COMPLETE":
                assert body.count(b'"Hangup-Cause":') == 2
        assert not call.steps


async def test_a_replayed_recording_arrives_value_by_value_in_json() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH, "event json all") as one:
        for event in switch.replay(BRIDGED):
            got = await one.event()
            assert got == dict(event.headers)
        switch.replay(BRIDGED, as_own=True)
        assert (await one.event())["Core-UUID"] == switch.core.core_uuid


# ---- trouble


async def test_who_listens_is_told_of_a_stop() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        await switch.stop()
        names, body = await one.read()
        assert names["Content-Type"] == "text/disconnect-notice"
        assert body.startswith(b"Disconnected, goodbye.\n")
        assert await one.ended()


@pytest.mark.parametrize("reset", [False, True])
async def test_nobody_is_told_of_a_kill(reset: bool) -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        await switch.kill(reset=reset)
        assert await one.ended()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*switch.address)


@pytest.mark.parametrize("kill", [False, True])
async def test_a_restarted_switch_is_another_at_the_same_address(kill: bool) -> None:
    async with FakeSwitch() as switch:
        address, first = switch.address, switch.core.core_uuid
        async with client(switch, AUTH):
            switch.call(ends=False)
            await switch.restart(kill=kill)
        assert switch.address == address
        assert switch.core.core_uuid != first
        async with client(switch, AUTH) as one:
            assert (await one.ask("api show channels as json"))[1] == b'{"row_count":0}'
        assert switch.accepted == 2


async def test_a_hanging_switch_greets_and_answers_nothing() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH, "event json HEARTBEAT") as one:
        switch.hang()
        switch.beat()
        one.writer.write(b"api status\n\n")
        async with client(switch) as two:
            two.writer.write(AUTH.encode() + b"\n\n")
            for reader in (one.reader, two.reader):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.05)
        switch.resume()
        assert (await one.event())["Event-Name"] == "HEARTBEAT"


async def test_a_silent_switch_accepts_and_goes_on_where_it_was() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        switch.silent()
        one.writer.write(b"api uuid_exists x\n\n")
        async with client(switch, greeted=False) as two:
            for reader in (one.reader, two.reader):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.05)
            switch.resume()
            assert (await one.read())[1] == b"false"
            assert (await two.read())[0] == {"Content-Type": "auth/request"}


async def test_garbage_is_sent_as_it_is() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one:
        for kind, garbage in enumerate(GARBAGE):
            switch.garbage(kind)
            assert await asyncio.wait_for(one.reader.readexactly(len(garbage)), 10) == garbage


@pytest.mark.parametrize("sent", [b"a" * 100_000, b"api x\nContent-Length: -5\n\n"])
async def test_a_command_beyond_reason_ends_only_its_connection(sent: bytes) -> None:
    async with FakeSwitch() as switch, client(switch, AUTH) as one, client(switch, AUTH) as two:
        one.writer.write(sent)
        assert await one.ended()
        assert (await two.ask("api uuid_exists x"))[1] == b"false"


async def test_many_events_arrive_in_order() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH, "event json CHANNEL_STATE") as one:
        switch.queue(2000)
        assert [(await one.event())["Number"] for _ in range(2000)] == [str(n) for n in range(2000)]
        await switch.drained()


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async with (
        FakeSwitch(Setup(queue_limit=1000)) as switch,
        client(switch, AUTH, "event json CHANNEL_STATE") as one,
    ):
        one.stop_reading()
        switch.queue(1000, size=20_000)
        await asyncio.sleep(0)
        switch.queue(1502, size=20_000)
        await until(lambda: switch.connections == 0)
        assert switch.core.listeners == []


async def test_a_switch_that_is_ended_does_not_wait_for_who_does_not_read() -> None:
    async with FakeSwitch() as switch, client(switch, AUTH, "event json CHANNEL_STATE") as one:
        one.stop_reading()
        switch.queue(2000, size=20_000)
        await asyncio.sleep(0.01)
        began = time.monotonic()
        await switch.stop()
        assert time.monotonic() - began < 2.0


async def test_heartbeats_come_by_themselves_when_asked_for() -> None:
    async with (
        FakeSwitch(Setup(heartbeat=0.01)) as switch,
        client(switch, AUTH, "event json HEARTBEAT") as one,
    ):
        first, second = await one.event(), await one.event()
        assert int(second["Uptime-msec"]) > int(first["Uptime-msec"])
        assert int(first["Event-Date-Timestamp"]) % TICK == 0


# ---- somebody else's client

GREEN = """
import json, sys
import gevent
from greenswitch import InboundESL

port, password = int(sys.argv[1]), sys.argv[2]
one = InboundESL("127.0.0.1", port, password)
try:
    with gevent.Timeout(10):
        one.connect()
except ValueError as error:
    print(json.dumps({"refused": str(error)}), flush=True)
    sys.stdout.flush()
    import os
    os._exit(0)
got = []
one.register_handle("*", lambda event: got.append(event.headers))
names = "CHANNEL_CREATE CHANNEL_PROGRESS CHANNEL_ANSWER CHANNEL_BRIDGE CHANNEL_UNBRIDGE CALL_UPDATE"
names += " CHANNEL_HANGUP CHANNEL_HANGUP_COMPLETE CHANNEL_DESTROY HEARTBEAT BACKGROUND_JOB"
names += " RECV_RTCP_MESSAGE SEND_RTCP_MESSAGE"
with gevent.Timeout(30):
    said = {"event": one.send("event plain " + names).data}
    said["status"] = one.send("api status").data
    said["unknown"] = one.send("api nosuch").data
    said["set"] = one.send("api global_setvar x=1").data
    said["get"] = one.send("api global_getvar x").data
    said["bgapi"] = one.send("bgapi uuid_exists x").headers["Job-UUID"]
    print(json.dumps(said), flush=True)
    count = int(sys.stdin.readline())
    while len(got) < count:
        gevent.sleep(0.01)
    print(json.dumps(got), flush=True)
    one.stop()
"""

needs_greenswitch = pytest.mark.skipif(
    importlib.util.find_spec("greenswitch") is None, reason="greenswitch is not installed"
)


@contextlib.asynccontextmanager
async def greenswitch(
    switch: FakeSwitch, password: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """In its own process: gevent does not share one with asyncio."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GREEN, str(switch.address[1]), password),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        yield process
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def said_by(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    return json.loads(await asyncio.wait_for(process.stdout.readline(), 20))


@needs_greenswitch
async def test_greenswitch_is_refused_with_a_wrong_password() -> None:
    async with FakeSwitch() as switch, greenswitch(switch, "wrong") as process:
        assert await said_by(process) == {"refused": "Invalid password."}


@needs_greenswitch
async def test_greenswitch_asks_and_receives_a_recorded_call_with_equal_values() -> None:
    async with FakeSwitch() as switch, greenswitch(switch, PASSWORD) as process:
        said = await said_by(process)
        assert said["event"] == "+OK event listener enabled plain"
        assert "0 session(s) since startup" in said["status"]
        assert said["unknown"] == "-ERR nosuch Command not found!\n"
        assert (said["set"], said["get"]) == ("+OK", "1")
        events = switch.replay(BRIDGED)
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % (len(events) + 1))
        got = await said_by(process)
        assert (got[0]["Event-Name"], got[0]["Job-UUID"]) == ("BACKGROUND_JOB", said["bgapi"])
        for event, theirs in zip(events, got[1:], strict=True):
            for name, _ in event.headers:
                # It splits after decoding, so that lines of an SDP lose their line ends.
                assert theirs[name].split() == event.get(name).split(), name
            assert theirs["Content-Type"] == "text/event-plain"


# ---------------------------------------------------------------- outbound sockets


@pytest.mark.parametrize(
    ("name", "mode"), [("5100", "static"), ("5186", "static"), ("5286", "async")]
)
async def test_an_outbound_call_says_what_was_recorded(name: str, mode: str) -> None:
    """The client's recorded lines, sent again, bring what they brought."""
    recording = (RECORDINGS / f"outbound-{name}.esl").read_bytes()
    lines = [
        line.removeprefix(b">>> ").rstrip() for line in recording.split(b"\n") if b">>>" in line
    ]
    said = b"\n".join(b"" if line == b">>>" else line for line in lines) + b"\n\n"
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        heard.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        asked = await dial(*server.sockets[0].getsockname()[:2], mode=mode)
        await asyncio.sleep(0.01)
    assert asked.refused == ("" if name == "5100" else "486")
    assert asked.goes_on is (name == "5100")
    own = channel_data(mode).partition(b"\n\n")[0].split(b"\n")
    was = recording[recording.index(b"Event-Name") :].partition(b"\n\n")[0].split(b"\n")
    names = {line.partition(b": ")[0] for line in was} - {b"variable_socket_resume"}
    assert {line.partition(b": ")[0] for line in own} == names
    replies = [line for line in bytes(heard).split(b"\n") if line.startswith(b"Reply-Text: +")]
    wanted = [line for line in recording.split(b"\n") if line.startswith(b"Reply-Text: +")]
    assert replies == wanted
    assert bytes(heard).endswith(NOTICE)


async def test_an_outbound_call_to_a_closed_port_goes_on() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert (await dial(*sock.getsockname())).goes_on
