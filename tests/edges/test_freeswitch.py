import asyncio
import contextlib
import gc
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fakeswitch import GARBAGE, NOTICE, RECORDINGS, FakeSwitch, Setup, User
from listeners import Run, both_loops, until
from sipsidecar.edges import freeswitch
from sipsidecar.edges.freeswitch import (
    EVENTS,
    LONGEST_PAUSE,
    MOST_COMMANDS,
    SLOW_PAUSE,
    FreeSwitch,
    SwitchState,
    SwitchUnavailable,
)
from sipsidecar.wire import esl

PASSWORD = "s3cret-of-fs1"  # noqa: S105
SILENCE = 0.1
GREETING = b"Content-Type: auth/request\n\n"


def reply(text: str) -> bytes:
    return f"Content-Type: command/reply\nReply-Text: {text}\n\n".encode()


def output(text: str) -> bytes:
    return f"Content-Type: api/response\nContent-Length: {len(text)}\n\n{text}".encode()


class Switch(FakeSwitch):
    """One that may be asked for its Core-UUID, as the real one."""

    async def start(self, port: int = 0) -> tuple[str, int]:
        address = await super().start(port)
        self.core.variables["core_uuid"] = self.core.core_uuid
        return address


class Told:
    """What came out of one FreeSwitch, in the order in which it came."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self.pauses: list[float] = []

    def deliver(self, name: str, event: esl.Event, now: float, received_at: int) -> None:
        assert name == "fs1"
        self.all.append(event)

    def restarted(self, name: str, core_uuid: str) -> None:
        self.all.append(("restarted", name, core_uuid))

    def channels(self, name: str, uuids: list[str]) -> None:
        self.all.append(("channels", name, uuids))

    def state(self, state: SwitchState) -> None:
        self.all.append(state)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0.001)

    def of(self, kind: str) -> list[Any]:
        return [one[2] for one in self.all if isinstance(one, tuple) and one[0] == kind]

    @property
    def events(self) -> list[esl.Event]:
        return [one for one in self.all if isinstance(one, esl.Event)]

    @property
    def states(self) -> list[SwitchState]:
        return [one for one in self.all if isinstance(one, SwitchState)]


def client(address: tuple[str, int], told: Told, **more: Any) -> FreeSwitch:
    given: dict[str, Any] = {
        "password": PASSWORD,
        "deliver": told.deliver,
        "restarted": told.restarted,
        "channels": told.channels,
        "on_state": told.state,
        "pause": told.pause,
        "heartbeat_seconds": 30.0,
        "chance": lambda: 1.0,
    }
    return FreeSwitch("fs1", *address, **given | more)


@contextlib.asynccontextmanager
async def running(one: FreeSwitch) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def joined(setup: Setup | None = None, **more: Any) -> AsyncIterator[Any]:
    """A fake switch, who is connected to it, and what came out."""
    setup = setup or Setup(password=PASSWORD)
    told = Told()
    async with Switch(setup) as switch:
        one = client(switch.address, told, **more)
        async with running(one):
            await until(lambda: one.status().connected)
            await until(lambda: bool(told.of("channels")) or "channels" in more)
            yield switch, one, told


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[tuple[str, int]]:
    """A switch that does just this on every connection."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        tasks.add(me)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def log_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    assert await reader.readuntil(b"\n\n") == f"auth {PASSWORD}\n\n".encode()
    writer.write(reply("+OK accepted"))


async def serve_setup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All that is asked after the login, with nothing known."""
    for _ in range(4):
        line = await reader.readuntil(b"\n\n")
        writer.write(output("-ERR no\n") if line.startswith(b"api") else reply("+OK"))


# ------------------------------------------------------------------------------------- connections


@both_loops
def test_it_logs_in_subscribes_to_its_events_as_json_and_lists_channels(run: Run) -> None:
    async def main() -> None:
        async with joined() as (switch, one, told):
            asked = list(switch.core.commands)
            assert asked == [
                "auth",
                "api global_getvar core_uuid",
                "api version",
                (
                    "event json CHANNEL_CREATE CHANNEL_PROGRESS CHANNEL_PROGRESS_MEDIA CHANNEL_ANSWER"
                    " CHANNEL_BRIDGE CHANNEL_UNBRIDGE CHANNEL_HANGUP_COMPLETE CHANNEL_DESTROY HEARTBEAT"
                    " RECV_RTCP_MESSAGE SEND_RTCP_MESSAGE CUSTOM sofia::gateway_state sofia::register"
                    " sofia::unregister sofia::expire"
                ),
                "api show channels count",
                "api show channels as json",
            ]
            assert told.of("channels") == [[]]
            state = one.status()
            assert state.connected
            assert state.error is None
            assert state.version == "1.11.2-release~64bit"
            assert state.address == f"127.0.0.1:{switch.address[1]}"
            assert state.reconnects == 0
            assert state.last_event_seconds is None
            assert [one.connected for one in told.states] == [True]
        assert not one.status().connected

    run(main())


def test_a_restricted_user_gets_what_it_may_have_and_the_log_names_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    user = User(PASSWORD, events="CHANNEL_CREATE HEARTBEAT CUSTOM sofia::register", api="version")
    setup = Setup(password="another", users={"sidecar@default": user})  # noqa: S106

    async def main() -> None:
        async with joined(setup, user="sidecar@default", channels=None) as (switch, one, told):
            switch.emit("CHANNEL_CREATE", {"Unique-ID": "a"})
            switch.emit("CHANNEL_ANSWER", {"Unique-ID": "a"})
            switch.emit("sofia::register", {"from-user": "bob"})
            switch.beat()
            await until(lambda: len(told.events) == 3)
            names = [event.event_subclass or event.event_name for event in told.events]
            assert names == ["CHANNEL_CREATE", "sofia::register", "HEARTBEAT"]
            assert one.counters["denied-events"] == len(EVENTS) - 3
            assert one.counters["channels-unknown"] == 1
            # By the events, since it may not ask.
            assert one.status().core_uuid == switch.core.core_uuid

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    (line,) = [record.getMessage() for record in caplog.records if "may not" in record.message]
    assert "CHANNEL_ANSWER" in line
    assert "CHANNEL_CREATE" not in line


@pytest.mark.parametrize("user", ["", "sidecar@default"])
def test_a_wrong_password_is_tried_slowly_and_said_once_without_it(
    user: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        told = Told()
        async with Switch(Setup(password="right")) as switch:  # noqa: S106
            one = client(switch.address, told, user=user)
            async with running(one):
                await until(lambda: len(told.pauses) >= 3)
                state = one.status()
        assert told.pauses[:3] == [SLOW_PAUSE] * 3
        assert not state.connected
        assert state.error == "it refuses the user or the password"
        assert one.counters["login-refused"] >= 3
        assert PASSWORD not in f"{state} {one.counters} {vars(one).keys()}"

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert sum("refuses" in record.getMessage() for record in caplog.records) == 1
    assert PASSWORD not in caplog.text


def test_a_user_without_any_event_is_told_apart() -> None:
    setup = Setup(users={"u@d": User(PASSWORD, events="", api="version")})

    async def main() -> None:
        told = Told()
        async with Switch(setup) as switch, running(client(switch.address, told, user="u@d")):
            await until(lambda: bool(told.pauses))
        assert told.pauses[0] == SLOW_PAUSE
        assert "esl-allowed-events" in str(told.states[-1].error)

    asyncio.run(main())


@pytest.mark.parametrize("bad", [{"password": "a\nb"}, {"password": "x", "user": "nobody"}])
def test_a_login_that_cannot_be_sent_is_refused_at_once(bad: dict[str, str]) -> None:
    with pytest.raises(esl.EslError) as caught:
        FreeSwitch("fs1", "127.0.0.1", 8021, deliver=Told().deliver, **bad)  # type: ignore[arg-type]
    assert "a\nb" not in str(caught.value)


def test_its_access_list_is_named_and_tried_slowly() -> None:
    words = b"Access Denied, go away.\n"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"Content-Type: text/rude-rejection\nContent-Length: %d\n\n" % len(words)
        writer.write(head + words)
        await writer.drain()

    async def main() -> None:
        told = Told()
        async with scripted(script) as address, running(client(address, told)):
            await until(lambda: bool(told.pauses))
        assert told.pauses[0] == SLOW_PAUSE
        assert "apply-inbound-acl" in str(told.states[-1].error)

    asyncio.run(main())


def test_pauses_double_to_a_cap_and_their_jitter_halves_them_at_most() -> None:
    async def main(chance: float) -> list[float]:
        told = Told()
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            one = client(closed.getsockname(), told, chance=lambda: chance)
            async with running(one):
                await until(lambda: len(told.pauses) >= 9)
        assert one.counters["connect-failed"] >= 9
        assert one.status().error
        return told.pauses[:9]

    longest = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    assert asyncio.run(main(1.0)) == longest
    assert asyncio.run(main(0.0)) == [pause / 2 for pause in longest]


def test_only_a_connection_that_lasted_makes_the_next_pause_short_again() -> None:
    async def main() -> None:
        times = [0.0]
        async with joined(now=lambda: times[0]) as (switch, one, told):
            for lasts in (0.0, 0.0, 10.0, 0.0):
                connected = one.counters["connected"]
                times[0] += lasts
                await switch.restart(kill=True)
                await until(lambda: one.counters["connected"] > connected)  # noqa: B023
            pauses = [pause for pause in told.pauses if pause]
            shortest = pauses.index(0.5, 1)
            assert pauses[:2] == [0.5, 1.0]
            assert pauses[shortest - 1] > 0.5

    asyncio.run(main())


@both_loops
def test_nobody_who_answers_ends_in_time(run: Run) -> None:
    async def main() -> None:
        told = Told()
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(socket.socket())
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(2):  # what fills its queue; the next one's SYN is dropped
                other = stack.enter_context(socket.socket())
                other.setblocking(False)
                other.connect_ex(full.getsockname())
            one = client(full.getsockname(), told, patience=0.05)
            async with running(one):
                await until(lambda: bool(told.pauses))
        assert one.counters["connect-timeout"] >= 1

    run(main())


def test_a_host_without_address_is_tried_again() -> None:
    async def main() -> None:
        told = Told()
        one = client(("a" * 70 + ".invalid", 8021), told)
        async with running(one):
            await until(lambda: len(told.pauses) >= 2)
        assert one.counters["connect-failed"] >= 2

    asyncio.run(main())


# ------------------------------------------------------------------------------------------ events


@both_loops
def test_events_come_out_as_they_came_in(run: Run) -> None:
    async def main() -> None:
        async with joined() as (switch, one, told):
            sent = switch.replay(RECORDINGS / "20-bridged-json.esl", as_own=True)
            wanted = [event for event in sent if event.get("Event-Name") in EVENTS]
            for number in range(500):
                switch.emit("CHANNEL_CREATE", {"Unique-ID": str(number)})
            await until(lambda: len(told.events) == len(wanted) + 500)
            assert [event.unique_id for event in told.events] == [
                *[event.get("Unique-ID") or None for event in wanted],
                *map(str, range(500)),
            ]
            state = one.status()
            assert state.events == len(wanted) + 500
            assert state.received_bytes > 100_000
            assert state.refused == 0
            assert state.last_event_seconds is not None

    run(main())


@both_loops
def test_an_event_of_two_megabytes_is_heard(run: Run) -> None:
    async def main() -> None:
        async with joined() as (switch, one, told):
            switch.emit("CHANNEL_ANSWER", {"Unique-ID": "a", "variable_x": "x" * 2**21})
            switch.emit("CHANNEL_ANSWER", {"Unique-ID": "b"})
            await until(lambda: len(told.events) == 2)
            assert [event.unique_id for event in told.events] == ["a", "b"]
            assert one.counters["connected"] == 1

    run(main())


@both_loops
def test_a_burst_waits_in_the_kernel_and_others_get_their_turn(run: Run) -> None:
    async def main() -> None:
        longest = heard = 0.0

        def deliver(name: str, event: esl.Event, now: float, received_at: int) -> None:
            nonlocal heard
            heard += 1
            until_then = time.monotonic() + 0.0001
            while time.monotonic() < until_then:
                pass

        async def others() -> None:
            nonlocal longest
            while True:
                before = time.monotonic()
                await asyncio.sleep(0)
                longest = max(longest, time.monotonic() - before)

        async with joined(deliver=deliver) as (switch, one, _):
            event = switch.emit("HEARTBEAT", {"Filler": "x" * 900}).encode("json")
            await until(lambda: heard == 1)
            ticker = asyncio.create_task(others())
            switch.send_raw(event * 3000)
            await until(lambda: heard == 3001)
            ticker.cancel()
            assert one.counters["pauses"] >= 1
            # At least 0.3 s of work, in turns; the sender's are in it, too, and the machine's.
            assert longest < 0.2

    run(main())


def test_what_was_read_is_delivered_before_the_end_and_in_a_stop() -> None:
    async def main(how: str) -> None:
        heard: list[esl.Event] = []

        def deliver(name: str, event: esl.Event, now: float, received_at: int) -> None:
            heard.append(event)
            until_then = time.monotonic() + 0.0002
            while time.monotonic() < until_then:
                pass

        told = Told()
        async with Switch(Setup(password=PASSWORD)) as switch:
            one = client(switch.address, told, deliver=deliver)
            async with running(one):
                await until(lambda: bool(told.of("channels")))
                event = switch.emit("HEARTBEAT", {"Filler": "x" * 100}).encode("json")
                switch.send_raw(event * 400)
                await until(lambda: len(heard) > 1)
                assert len(heard) < 401
                if how == "kill":
                    await switch.kill()
                    await until(lambda: not one.status().connected)
                    assert len(heard) == 401
            assert len(heard) == 401

    asyncio.run(main("kill"))
    asyncio.run(main("stop"))


@pytest.mark.parametrize("kind", range(len(GARBAGE)))
def test_garbage_is_counted_and_events_come_again(kind: int) -> None:
    async def main() -> None:
        async with joined() as (switch, one, told):
            switch.garbage(kind)
            switch.send_raw(b"\n\n")
            if kind == 4:  # a whole frame, whose content is no event
                await until(lambda: one.status().refused == 1)
                assert one.counters["connected"] == 1
            else:
                await until(lambda: one.counters["connected"] == 2)
                faults = [why for why in one.counters if why.startswith("fault-")]
                assert len(faults) == 1
                assert one.status().reconnects == 1
            switch.emit("CHANNEL_ANSWER", {"Unique-ID": "a"})
            await until(lambda: len(told.events) == 1)
        if kind == 4:
            assert one.counters["refused"] == one.counters["refused-json"] == 1

    asyncio.run(main())


def test_a_bug_behind_it_costs_one_event(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        heard = []

        def deliver(name: str, event: esl.Event, now: float, received_at: int) -> None:
            heard.append(event.unique_id)
            if event.unique_id != "c":
                raise ValueError(event.unique_id)

        def broken(*_: object) -> None:
            raise ValueError

        told = Told()
        async with Switch(Setup(password=PASSWORD)) as switch:
            one = client(
                switch.address,
                told,
                deliver=deliver,
                channels=broken,
                restarted=broken,
                on_state=broken,
            )
            async with running(one):
                await until(lambda: one.errors == 2)
                for name in "abc":
                    switch.emit("CHANNEL_ANSWER", {"Unique-ID": name})
                await until(lambda: heard == ["a", "b", "c"])
                assert one.errors == 4
                assert one.status().connected
                await switch.restart()
                await until(lambda: one.counters["connected"] == 2)
                assert one.counters["restarts"] == 1

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1


def test_a_bug_in_it_costs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with joined() as (switch, one, _):
            monkeypatch.setattr(freeswitch, "EVENTS", [])
            await switch.restart()
            await until(lambda: one.counters["broken"] > 1)
            monkeypatch.undo()
            await until(lambda: one.status().connected)
            assert one.errors > 1

    asyncio.run(main())


def test_the_lag_is_the_smallest_difference_of_late() -> None:
    async def main() -> None:
        times = [0.0]
        wall = 1_800_000_000_000_000

        async with joined(now=lambda: times[0], wall=lambda: wall) as (switch, one, told):

            async def lag(*stamps: str) -> float | None:
                count = len(told.events)
                for stamp in stamps:
                    body = json.dumps({"Event-Name": "HEARTBEAT", "Event-Date-Timestamp": stamp})
                    head = b"Content-Type: text/event-json\nContent-Length: %d\n\n" % len(body)
                    switch.send_raw(head + body.encode())
                await until(lambda: len(told.events) == count + len(stamps))
                said: float | None = one.status().lag_seconds
                return said

            assert one.status().lag_seconds is None
            assert await lag("soon", "", "9" * 18, "-5", "٣") is None
            assert await lag(str(wall - 300_000), str(wall - 20_000), str(wall - 90_000)) == 0.02
            times[0] += 31
            assert await lag(str(wall - 90_000)) == 0.02
            times[0] += 31
            assert await lag(str(wall - 80_000)) == 0.08
            times[0] += 100
            assert one.status().lag_seconds is None
            assert one.status().last_event_seconds == 100

    asyncio.run(main())


# ------------------------------------------------------------------------------- restarts, silence


@both_loops
@pytest.mark.parametrize("how", ["term", "kill", "reset"])
def test_a_restart_is_told_before_any_event_of_the_new_process(run: Run, how: str) -> None:
    async def main() -> None:
        async with joined() as (switch, one, told):
            switch.emit("CHANNEL_CREATE", {"Unique-ID": "old"})
            await until(lambda: len(told.events) == 1)
            if how == "reset":
                await switch.kill(reset=True)
                await switch.start(switch.address[1])
            else:
                await switch.restart(kill=how == "kill")
            await until(lambda: len(told.of("channels")) == 2)
            switch.emit("CHANNEL_CREATE", {"Unique-ID": "new"})
            await until(lambda: len(told.events) == 2)
            kept = [one for one in told.all if not isinstance(one, SwitchState)]
            assert kept[0] == ("channels", "fs1", [])
            assert kept[1].unique_id == "old"
            assert kept[2] == ("restarted", "fs1", kept[4].core_uuid)
            assert kept[3] == ("channels", "fs1", [])
            assert kept[4].unique_id == "new"
            assert one.counters["goodbye" if how == "term" else "lost"] == 1
            assert [state.connected for state in told.states if state.connected] == [True, True]
            assert one.status().core_uuid == switch.core.core_uuid

    run(main())


def test_the_same_process_is_no_restart() -> None:
    async def main() -> None:
        async with joined() as (switch, one, told):
            switch.beat()
            await until(lambda: len(told.events) == 1)
            switch.send_raw(b"A" * 70_000)
            await until(lambda: one.counters["connected"] == 2)
            switch.beat()
            await until(lambda: len(told.events) == 2)
            assert told.of("restarted") == []

    asyncio.run(main())


def test_a_switch_that_may_not_be_asked_who_it_is_says_so_by_its_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(freeswitch, "SETTLE", 0.01)
    setup = Setup(users={"u@d": User(PASSWORD, api="show version")})

    async def main() -> None:
        async with joined(setup, user="u@d") as (switch, one, told):
            switch.beat()
            await until(lambda: len(told.events) == 1)
            assert told.of("channels") == [[]]
            await switch.restart()
            await until(lambda: one.counters["connected"] == 2)
            switch.emit("CHANNEL_CREATE", {"Unique-ID": "new"})
            await until(lambda: len(told.of("channels")) == 2)
            kept = [one for one in told.all if not isinstance(one, SwitchState)][-3:]
            assert kept[0] == ("restarted", "fs1", switch.core.core_uuid)
            assert kept[1].unique_id == "new"
            assert kept[2] == ("channels", "fs1", ["new"])

    asyncio.run(main())


@both_loops
def test_silence_ends_the_connection_and_words_keep_it(run: Run) -> None:
    async def main() -> None:
        async with joined(heartbeat_seconds=SILENCE) as (switch, one, _):
            loop = asyncio.get_running_loop()
            for _ in range(8):
                switch.beat()
                await asyncio.sleep(SILENCE / 4)
            assert one.counters["silent"] == 0
            switch.silent()
            began = loop.time()
            await until(lambda: one.counters["silent"] == 1)
            assert loop.time() - began > SILENCE * 0.7
            switch.resume()
            await until(lambda: one.status().connected)

    run(main())


def test_a_loop_that_stood_still_takes_nobody_for_silent() -> None:
    async def main() -> None:
        async with joined(heartbeat_seconds=SILENCE) as (switch, one, _):
            for _ in range(3):
                switch.beat()
                await switch.drained()
                time.sleep(SILENCE)  # noqa: ASYNC251 -- the loop is to stand still
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert one.counters["silent"] == 0

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["hang", "silent"])
def test_who_accepts_and_does_not_answer_is_met_again(mode: str) -> None:
    async def main() -> None:
        told = Told()
        async with Switch(Setup(password=PASSWORD)) as switch:
            getattr(switch, mode)()
            one = client(switch.address, told, patience=0.03)
            async with running(one):
                await until(lambda: one.counters["handshake-timeout"] == 2)
                assert not one.status().connected
                switch.resume()
                await until(lambda: one.status().connected)

    asyncio.run(main())


def test_who_hangs_after_the_login_is_met_again() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await log_in(reader, writer)
        await reader.read()

    async def main() -> None:
        told = Told()
        async with scripted(script) as address:
            one = client(address, told, patience=0.03)
            async with running(one):
                await until(lambda: one.counters["handshake-timeout"] == 2)
        # Two questions that it may leave open, and the subscription, which it may not.
        assert one.counters["command-timeouts"] >= 4

    asyncio.run(main())


def test_an_end_in_the_middle_of_the_login_is_one_more_attempt() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.readuntil(b"\n\n")

    async def main() -> None:
        told = Told()
        async with scripted(script) as address:
            one = client(address, told)
            async with running(one):
                await until(lambda: one.counters["lost"] >= 2)
        assert told.pauses[:2] == [0.5, 1.0]
        assert told.states[0].error == "it closed the connection"

    asyncio.run(main())


def test_a_peer_that_only_closes_its_half_is_gone() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await log_in(reader, writer)
        await serve_setup(reader, writer)
        writer.write_eof()
        await reader.read()

    async def main() -> None:
        told = Told()
        async with scripted(script) as address:
            one = client(address, told)
            async with running(one):
                await until(lambda: one.counters["lost"] >= 1)
        assert one.counters["connected"] >= 1

    asyncio.run(main())


def test_its_loss_is_said_once_while_the_reason_stays_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with joined() as (switch, one, _):
            await switch.stop()
            await until(lambda: one.counters["connect-failed"] >= 5)

    with caplog.at_level(logging.INFO, "sipsidecar.freeswitch"):
        asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[2][:10] for line in lines[:2]] == ["connected ", "it said go"]
    assert len(lines) == 3


# ---------------------------------------------------------------------------------------- commands


@both_loops
def test_answers_find_their_commands(run: Run) -> None:
    async def main() -> None:
        async with joined() as (switch, one, _):
            for number in range(100):
                switch.core.variables[f"v{number}"] = str(number)
            switch.beat()
            replies = await asyncio.gather(
                *(one.command(f"api global_getvar v{number}") for number in range(100)),
                one.command("no such command"),
            )
            assert [reply.text for reply in replies[:100]] == list(map(str, range(100)))
            assert not replies[100].ok

    run(main())


def test_a_late_answer_is_not_taken_for_the_next_ones() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await log_in(reader, writer)
        await serve_setup(reader, writer)
        first = await reader.readuntil(b"\n\n")
        second = await reader.readuntil(b"\n\n")
        for line in (first, second):
            writer.write(output(f"to {line.decode().strip()}"))
        await reader.read()

    async def main() -> None:
        told = Told()
        async with scripted(script) as address:
            one = client(address, told)
            async with running(one):
                await until(lambda: one.counters["channels-unknown"] == 1)
                with pytest.raises(SwitchUnavailable) as caught:
                    await one.command("api first", timeout=0.02)
                assert caught.value.why == "timeout"
                reply = await one.command("api second")
                assert reply.text == "to api second"
                assert one.counters["command-timeouts"] == one.counters["late-replies"] == 1

    asyncio.run(main())


def test_a_line_end_in_a_command_is_refused_and_nothing_is_sent() -> None:
    async def main() -> None:
        async with joined() as (switch, one, _):
            count = len(switch.core.commands)
            for line in ("api status\n\nexit", "api a\rb", "", "  "):
                with pytest.raises(esl.EslError):
                    await one.command(line)
            await one.command("api status")
            assert list(switch.core.commands)[count:] == ["api status"]

    asyncio.run(main())


def test_without_a_switch_commands_are_refused_at_once() -> None:
    async def main() -> None:
        told = Told()
        one = client(("127.0.0.1", 1), told)
        with pytest.raises(SwitchUnavailable, match="not-connected"):
            await one.command("api status")
        async with joined() as (switch, one, _):
            switch.hang()
            waiting = asyncio.create_task(one.command("api status", timeout=5))
            await asyncio.sleep(0)
            given_up = asyncio.create_task(one.command("api status", timeout=5))
            await asyncio.sleep(0)
            given_up.cancel()
            await switch.kill()
            with pytest.raises(SwitchUnavailable, match="lost"):
                await waiting

    asyncio.run(main())


def test_commands_without_an_answer_are_few_and_do_not_wait_for_ever() -> None:
    async def main() -> None:
        async with joined(heartbeat_seconds=SILENCE) as (switch, one, _):
            switch.hang()

            async def beats() -> None:  # so that it is not silent
                while True:
                    switch.send_raw(b"\n")
                    await asyncio.sleep(SILENCE / 5)

            beating = asyncio.create_task(beats())
            replies = await asyncio.gather(
                *(one.command("api status", timeout=5) for _ in range(MOST_COMMANDS + 3)),
                return_exceptions=True,
            )
            beating.cancel()
            whys = [reply.why for reply in replies if isinstance(reply, SwitchUnavailable)]
            assert whys.count("busy") == one.counters["commands-refused"] == 3
            assert whys.count("lost") == MOST_COMMANDS
            await until(lambda: one.counters["stuck"] == 1)

    asyncio.run(main())


def test_answers_that_nobody_asked_for_are_counted() -> None:
    async def main() -> None:
        async with joined() as (switch, one, _):
            switch.send_raw(reply("+OK") + GREETING)
            await until(lambda: one.counters["unasked-replies"] == 2)
            assert (await one.command("api version")).ok

    asyncio.run(main())


# ---------------------------------------------------------------------------------- live channels


def test_what_lived_before_the_connection_is_listed() -> None:
    async def main() -> None:
        told = Told()
        async with Switch(Setup(password=PASSWORD)) as switch:
            # The name is one that a caller sent: the byte is no UTF-8.
            strange = {"Caller-Caller-ID-Name": 'Jos\udce9 "\\x41\\'}
            for number in range(50):
                uuid = {"Unique-ID": str(number)}
                switch.emit("CHANNEL_CREATE", uuid)
                switch.emit("CHANNEL_PROGRESS", uuid | strange)
            switch.emit("CHANNEL_DESTROY", {"Unique-ID": "7"})
            async with running(client(switch.address, told)):
                await until(lambda: bool(told.of("channels")))
        assert sorted(told.of("channels")[0], key=int) == [str(n) for n in range(50) if n != 7]

    asyncio.run(main())


def test_events_beside_the_list_correct_it() -> None:
    async def main() -> None:
        told = Told()
        async with Switch(Setup(password=PASSWORD)) as switch:
            for uuid in ("kept", "ended", "both"):
                switch.emit("CHANNEL_CREATE", {"Unique-ID": uuid})
            show = switch.core.apis["show"]

            def late(words: str) -> str:
                """The table is behind the events."""
                said = show(words)
                if words.endswith("json"):
                    switch.emit("CHANNEL_CREATE", {"Unique-ID": "new"})
                    switch.emit("CHANNEL_DESTROY", {"Unique-ID": "ended"})
                    switch.emit("CHANNEL_HANGUP_COMPLETE", {"Unique-ID": "ended"})
                    switch.emit("CHANNEL_CREATE", {"Unique-ID": "short"})
                    switch.emit("CHANNEL_DESTROY", {"Unique-ID": "short"})
                    switch.emit("CHANNEL_ANSWER", {"Unique-ID": "both"})
                    switch.emit("RECV_RTCP_MESSAGE", {"Unique-ID": "rtcp"})
                    for listener in switch.core.listeners:  # events go out before the answer
                        for queued in listener.queue:
                            switch.send_raw(queued.encode("json"))
                        listener.queue.clear()
                return said

            switch.core.apis["show"] = late
            async with running(client(switch.address, told)):
                await until(lambda: bool(told.of("channels")))
        assert told.of("channels") == [["kept", "both", "new"]]

    asyncio.run(main())


@pytest.mark.parametrize(
    "said",
    ["-ERR no\n", "", "[1]", '{"row_count":1,"rows":[{"uuid":5}]}', '{"row_count":1', "[" * 9000],
)
def test_a_list_that_is_none_changes_nothing(said: str) -> None:
    async def main() -> None:
        told = Told()
        async with Switch(Setup(password=PASSWORD)) as switch:
            show = switch.core.apis["show"]
            switch.core.apis["show"] = lambda words: said if "json" in words else show(words)
            one = client(switch.address, told)
            async with running(one):
                await until(lambda: one.counters["channels-unknown"] == 1)
                assert one.status().connected
        assert told.of("channels") == []

    asyncio.run(main())


def test_too_many_channels_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeswitch, "MOST_CHANNELS", 3)

    async def main() -> None:
        told = Told()
        async with Switch(Setup(password=PASSWORD)) as switch:
            for number in range(4):
                switch.emit("CHANNEL_CREATE", {"Unique-ID": str(number)})
            one = client(switch.address, told)
            async with running(one):
                await until(lambda: one.counters["channels-too-many"] == 1)
            assert "api show channels as json" not in switch.core.commands

    asyncio.run(main())


def test_more_events_beside_a_list_than_are_remembered_make_it_worthless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(freeswitch, "MOST_WATCHED", 2)
    watch = freeswitch._Watch()
    for number in range(3):
        watch.see("CHANNEL_CREATE", str(number))
    assert watch.full
    assert len(watch.alive) == 2


def test_a_heartbeat_that_counts_otherwise_asks_again_but_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(freeswitch, "SETTLE", 0.01)

    async def main() -> None:
        live = 0
        times = [0.0]
        async with joined(live=lambda _: live, now=lambda: times[0]) as (switch, one, told):

            async def beat() -> None:
                count = one.status().events
                switch.beat()
                await until(lambda: one.status().events == count + 1)

            await beat()
            assert one.counters["counts-differed"] == 0
            live = 2  # whose ends were lost
            await beat()
            await until(lambda: len(told.of("channels")) == 2)
            assert told.of("channels")[1] == []
            await beat()
            times[0] += freeswitch.RECONCILE_EVERY - 1
            await beat()
            assert one.counters["counts-differed"] == 1
            times[0] += 1
            await beat()
            await until(lambda: len(told.of("channels")) == 3)
            switch.emit("HEARTBEAT", {"Session-Count": "many"})
            switch.emit("HEARTBEAT", {"Session-Count": "9" * 10})
            times[0] += 100
            await until(lambda: one.status().events == 7)
            assert one.counters["counts-differed"] == 2
            # and an end while it waits for the table
            await beat()
            assert one.counters["counts-differed"] == 3
            await switch.kill()
            await until(lambda: not one.status().connected)

    asyncio.run(main())


def test_the_version_of_a_switch_that_may_not_be_asked_comes_with_its_heartbeat() -> None:
    setup = Setup(users={"u@d": User(PASSWORD, api="show")})

    async def main() -> None:
        async with joined(setup, user="u@d") as (switch, one, _):
            assert one.status().version is None
            switch.emit("HEARTBEAT", {"FreeSWITCH-Version": "1.11.2\x1b[31m"})
            await until(lambda: one.status().version == "1.11.2\\x1b[31m")

    asyncio.run(main())


# -------------------------------------------------------------------------------------------- ends


@both_loops
def test_a_stop_at_any_moment_leaves_no_task_and_no_socket(run: Run) -> None:
    async def main() -> None:
        setup = Setup(password=PASSWORD)
        async with Switch(setup) as switch:
            for turns in range(40):
                one = client(switch.address, Told())
                task = asyncio.create_task(one.run())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert not one.status().connected
                assert one._line is None
            await until(lambda: switch.connections == 0)
        gc.collect()
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    run(main())


@both_loops
def test_twenty_restarts_leave_no_task_and_no_socket(run: Run) -> None:
    async def main() -> None:
        async with joined() as (switch, one, _):
            for number in range(20):
                connected = one.counters["connected"]
                switch.call()
                await switch.restart(kill=number % 2 == 0)
                await until(lambda: one.counters["connected"] > connected)  # noqa: B023
            await until(lambda: switch.connections == 1)
        gc.collect()
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    run(main())


def test_the_notice_of_the_switch_is_its_goodbye() -> None:
    async def main() -> None:
        async with joined() as (switch, one, _):
            switch.send_raw(NOTICE)
            await until(lambda: one.counters["goodbye"] == 1)

    asyncio.run(main())


def test_an_address_of_version_six_is_written_with_brackets() -> None:
    assert client(("::1", 8021), Told(), now=lambda: 0.0).status().address == "[::1]:8021"
