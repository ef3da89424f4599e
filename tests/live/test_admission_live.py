"""Admission with a real Kamailio: what is pushed to it, what it asks, and what it does alone."""

import contextlib
import dataclasses
import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live.beside import Beside
from live.evapi import need_evapi
from live.phone import Phone
from live.programs import (
    Program,
    answers_options,
    free_port,
    kamailio_command,
    network,
    running,
    until,
)
from sipsidecar.edges.kamailio.evapi import KamailioAsk
from sipsidecar.edges.kamailio.push import KamailioPush
from sipsidecar.signals.decisions import (
    ADMIT,
    OVERFLOW,
    REFUSE,
    Ask,
    Decision,
    Denial,
    RateLimit,
)

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

CONFIG = Path(__file__).parent / "kamailio-admission-test.cfg"
FULL = Denial(scope="global", rule="full", reason="cac full: 50 of 50")


@dataclasses.dataclass
class Scene:
    """A proxy, a caller and a callee."""

    proxy: str
    caller: Phone
    callee: Phone
    fallback: Phone
    rpc: str
    evapi: str
    kamailio: Program
    restart: Callable[[], Program]
    number: int = 0

    def invite(self, user: str = "bob", *headers: str, call_id: str | None = None) -> str:
        """Call somebody; the Call-ID."""
        self.number += 1
        call_id = call_id or f"{self.number}-{time.monotonic_ns()}"
        self.caller.send(
            self.proxy, "INVITE", f"sip:{user}@{self.callee.address}", call_id, *headers
        )
        return call_id

    def final(self, call_id: str) -> str:
        """The final response to a call, acknowledged."""
        while True:
            text = self.caller.receive("SIP/2.0 ")
            if f"Call-ID: {call_id}\r\n" not in text or text.startswith("SIP/2.0 1"):
                continue
            tag = re.findall(r"^To: .*?(;tag=\S+)", text, re.MULTILINE)[0]
            uri = re.findall(r"^To: <(.*?)>", text, re.MULTILINE)[0]
            self.caller.send(self.proxy, "ACK", uri, call_id, to_tag=tag)
            return text

    def call(self, user: str = "bob", *headers: str, call_id: str | None = None) -> str:
        """Call somebody: `answered`, or the response that came instead."""
        call_id = self.invite(user, *headers, call_id=call_id)
        stopped = threading.Event()
        answering = threading.Thread(target=self._answer, args=(call_id, stopped))
        answering.start()
        try:
            text = self.final(call_id)
        finally:
            stopped.set()
            answering.join()
        return "answered" if text.startswith("SIP/2.0 200") else text

    def passes(self, user: str = "bob", *headers: str) -> bool:
        return self.call(user, *headers) == "answered"

    def _answer(self, call_id: str, stopped: threading.Event) -> None:
        self.callee.sock.settimeout(0.02)
        while not stopped.is_set():
            with contextlib.suppress(TimeoutError):
                invite = self.callee.receive("INVITE")
                if f"Call-ID: {call_id}\r\n" in invite:
                    self.callee.reply(invite, self.proxy, "200 OK")
        self.callee.sock.settimeout(5)


@contextlib.contextmanager
def scene(folder: Path, *defines: str) -> Iterator[Scene]:
    """The proxy of kamailio-admission-test.cfg with these defines."""
    if "ASKED" in defines:
        need_evapi()
    net = network()
    proxy, rpc = f"{net}.1:{free_port()}", f"127.0.0.1:{free_port()}"
    evapi = f"127.0.0.1:{free_port()}"
    with Phone(f"{net}.2") as caller, Phone(f"{net}.3") as callee, Phone(f"{net}.4") as fallback:
        strings = {
            "SIPSIDECAR_RPC": f"udp:{rpc}",
            "SIPSIDECAR_EVAPI": evapi,
            "FALLBACK": f"sip:ivr@{fallback.address}",
        }
        command = kamailio_command(
            CONFIG,
            folder,
            {"PROXY_LISTEN": proxy, **dict.fromkeys(defines, 1)},
            strings=strings,
        )
        programs: list[Program] = []

        def start() -> Program:
            if programs:
                programs[-1].stop()
            programs.append(Program("kamailio", command, folder))
            host, _, port = proxy.partition(":")
            until("OPTIONS answer", lambda: answers_options(host, int(port)), 20, programs[-1])
            return programs[-1]

        try:
            program = start()
            yield Scene(proxy, caller, callee, fallback, rpc, evapi, program, start)
        except BaseException:
            print(programs[-1].tail(60))
            raise
        finally:
            programs[-1].stop()


def pushing(at: Scene, **settings: object) -> KamailioPush:
    wanted: dict[str, object] = {"routes": ("ivr", "voicemail"), "lease_seconds": 2}
    return KamailioPush("edge", f"udp:{at.rpc}", **(wanted | settings))  # type: ignore[arg-type]


def is_up(part: KamailioPush | KamailioAsk, beside: Beside) -> None:
    def look() -> bool | None:
        return part.status().up or None

    until(f"{part.name} up", lambda: beside.do(look), 10, every=0.01)


def settle(part: KamailioPush, beside: Beside, pushed: int) -> None:
    """Wait until so many calls were answered."""
    until("answers", lambda: beside.do(part.status).pushed >= pushed or None, 5, every=0.001)


# ------------------------------------------------------------------------------------------ pushed


def test_what_is_pushed_refuses_the_next_invite_and_says_why(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED") as at:
        push = pushing(at)
        with Beside(push) as beside:
            is_up(push, beside)
            assert at.passes()
            before = beside.do(push.status).pushed
            beside.do(lambda: push.show([FULL], []))
            settle(push, beside, before + 3)
            said = at.call()
            assert said.startswith("SIP/2.0 486 Busy Here\r\n")
            assert '\r\nReason: SIP;cause=486;text="cac full: 50 of 50"\r\n' in said
            assert "\r\nX-Admission: full\r\n" in said
            before = beside.do(push.status).pushed
            beside.do(lambda: push.show([], []))
            settle(push, beside, before + 1)
            assert at.passes()
            assert beside.do(push.status).failed == 0


def test_no_emergency_and_no_call_that_has_begun_is_refused(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED") as at:
        push = pushing(at)
        with Beside(push) as beside:
            is_up(push, beside)
            call_id = at.invite("alice")
            invite = at.callee.receive("INVITE")
            at.callee.reply(invite, at.proxy, "200 OK")
            answer = at.final(call_id)
            beside.do(lambda: push.show([FULL], []))
            until("refusal", lambda: None if at.passes() else True, 5)
            for user in ("112", "911"):
                assert at.passes(user)
            # A re-INVITE and a BYE of the call that was there before.
            tag = re.findall(r"^To: .*?(;tag=\S+)", answer, re.MULTILINE)[0]
            route = f"Route: <sip:{at.proxy};lr>"
            for number, method in enumerate(("INVITE", "BYE"), start=2):
                at.caller.send(
                    at.proxy,
                    method,
                    f"sip:alice@{at.callee.address}",
                    call_id,
                    route,
                    to_tag=tag,
                    cseq=number,
                )
                at.callee.reply(at.callee.receive(method), at.proxy, "200 OK")
                at.caller.receive("SIP/2.0 200")


@pytest.mark.parametrize("ruri", ["urn:service:sos", "URN:SERVICE:SOS.fire"])
def test_an_emergency_service_is_never_refused(tmp_path: Path, ruri: str) -> None:
    with scene(tmp_path, "PUSHED") as at:
        push = pushing(at)
        with Beside(push) as beside:
            is_up(push, beside)
            beside.do(lambda: push.show([FULL], []))
            until("refusal", lambda: None if at.passes() else True, 5)
            at.caller.send(at.proxy, "INVITE", ruri, "sos", f"Route: <sip:{at.callee.address};lr>")
            # Where it goes is the proxy's business; this one knows no way, but did not refuse it.
            assert not at.final("sos").startswith("SIP/2.0 486")


def test_calls_pass_again_by_themselves_when_the_sidecar_stops(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED") as at:
        push = pushing(at, lease_seconds=2)
        with Beside(push) as beside:
            is_up(push, beside)
            beside.do(lambda: push.show([FULL], []))
            until("refusal", lambda: None if at.passes() else True, 5)
            time.sleep(2.5)
            assert not at.passes()  # renewed
            beside.stop()
            stopped = time.monotonic()
            until("an open proxy", lambda: at.passes() or None, 6, every=0.05)
            assert time.monotonic() - stopped < 2 + 1 + 0.3


def test_a_restarted_kamailio_is_told_all_of_it_again(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED") as at:
        push = pushing(at)
        with Beside(push) as beside:
            is_up(push, beside)
            beside.do(lambda: push.show([FULL], []))
            until("refusal", lambda: None if at.passes() else True, 5)
            at.restart()
            until(
                "refusal with its reason",
                lambda: True if "cac full: 50 of 50" in at.call() else None,
                6,
                every=0.2,
            )


def test_each_key_closes_its_own_calls_and_nobody_else_s(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED") as at:
        ip = at.caller.address.partition(":")[0]
        push = pushing(at, addresses=lambda _scope, value: [ip] if value == "here" else [])

        def told(*denials: Denial) -> None:
            before = beside.do(push.status).pushed
            beside.do(lambda: push.show(denials, []))
            settle(push, beside, before + 2)

        with Beside(push) as beside:
            is_up(push, beside)
            told(Denial(scope="trunk", scope_value="acme", rule="acme-calls", code=503))
            assert at.passes("bob")
            said = at.call("acme-1")
            assert said.startswith("SIP/2.0 503 Service Unavailable\r\n")
            assert "Retry-After" not in said
            assert '\r\nReason: SIP;cause=503;text="cac acme-calls"\r\n' in said
            told(Denial(scope="tenant", scope_value="here", rule="tenants"))
            assert not at.passes("bob")
            told(Denial(scope="tenant", scope_value="elsewhere", rule="tenants"))
            assert at.passes("bob")
            assert at.passes("acme-1")
            told(Denial(scope="node", scope_value="edge", rule="cpu"))
            assert "\r\nX-Admission: cpu\r\n" in at.call("bob")
            told(Denial(scope="node", scope_value="core", rule="cpu"))
            assert at.passes("bob")


def test_an_overflow_goes_to_the_fallback_with_the_name_of_its_route(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED") as at:
        push = pushing(at)
        with Beside(push) as beside:
            is_up(push, beside)
            before = beside.do(push.status).pushed
            denial = Denial(
                scope="global", verdict=OVERFLOW, route="voicemail", rule="asr", reason="cac asr"
            )
            beside.do(lambda: push.show([denial], []))
            settle(push, beside, before + 3)
            at.invite()
            assert "\r\nX-Overflow: voicemail by asr\r\n" in at.fallback.receive("INVITE")


def test_a_ramp_refuses_its_share_and_the_same_call_again(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED") as at:
        push = pushing(at)
        with Beside(push) as beside:
            is_up(push, beside)
            before = beside.do(push.status).pushed
            beside.do(lambda: push.show([Denial(scope="global", rule="mos", percent=50)], []))
            settle(push, beside, before + 3)
            outcomes = {name: at.call(call_id=name) for name in map(str, range(60))}
            refused = [name for name, said in outcomes.items() if said != "answered"]
            assert 15 <= len(refused) <= 45
            for name in refused[:5]:
                assert at.call(call_id=name) != "answered"


def test_a_rate_lets_so_many_calls_in_a_second(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED") as at:
        ip = at.caller.address.partition(":")[0]
        push = pushing(at, addresses=lambda _scope, _value: [ip])
        limit = RateLimit(scope="trunk", scope_value="acme", limit=5, rule="acme-cps", code=480)
        with Beside(push) as beside:
            is_up(push, beside)
            before = beside.do(push.status).pushed
            beside.do(lambda: push.show([], [limit]))
            settle(push, beside, before + 6)
            began = time.monotonic()
            said = [at.call(user) for user in ("acme-1", "bob") * 15]
            seconds = time.monotonic() - began
            passed = said.count("answered")
            # By name or by address, it is one limit.
            assert 5 <= passed <= 5 * (int(seconds) + 2)
            assert passed < 30
            refused = next(text for text in said if text != "answered")
            assert refused.startswith("SIP/2.0 480 Temporarily Unavailable\r\n")
            assert "\r\nX-Admission: acme-cps\r\n" in refused


def test_alone_kamailio_lets_in_no_more_than_its_own_cap(tmp_path: Path) -> None:
    with scene(tmp_path, "PUSHED", "ALONE_CPS") as at:
        said = [at.call() for _ in range(20)]
        assert 2 <= said.count("answered") < 20
        refused = next(text for text in said if text != "answered")
        assert '\r\nReason: SIP;cause=486;text="cac alone: ' in refused
        assert at.passes("112")
        push = pushing(at)
        with Beside(push) as beside:
            is_up(push, beside)
            assert all(at.passes() for _ in range(20))


@pytest.mark.parametrize("mode", ["PUSHED", "ASKED"])
def test_a_trunk_that_fails_closed_gets_no_call_through_alone(tmp_path: Path, mode: str) -> None:
    with scene(tmp_path, mode, "FAIL_CLOSED") as at:
        assert at.passes("bob")
        assert '\r\nReason: SIP;cause=486;text="cac fail-closed: no sidecar"' in at.call("acme-1")
        part = pushing(at) if mode == "PUSHED" else asking(at, lambda _: Decision(verdict=ADMIT))
        with Beside(part) as beside:
            is_up(part, beside)
            assert at.passes("acme-1")


@pytest.mark.parametrize("way", ["udp", "unix", "http"])
def test_a_push_is_answered_within_milliseconds(
    tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with rpc_server(tmp_path, way) as address:
        push = KamailioPush("edge", address, lease_seconds=3)
        with Beside(push) as beside:
            is_up(push, beside)
            trips: list[float] = []
            for number in range(1000):
                before = beside.do(push.status).pushed
                denial = Denial(scope="global", rule="r", code=400 + number % 200)
                began = time.perf_counter()
                beside.do(lambda denial=denial: push.show([denial], []))  # type: ignore[misc]
                while beside.do(push.status).pushed < before + 1:
                    pass
                trips.append(time.perf_counter() - began)
            beside.do(push._rtts.clear)
            for number in range(200):
                denial = Denial(scope="global", rule="r", code=400 + number)
                beside.do(lambda denial=denial: push.show([denial], []))  # type: ignore[misc]
                time.sleep(0.005)
            own = sorted(beside.do(lambda: list(push._rtts)))
            many = [
                Denial(scope="trunk", scope_value=f"t{number}", rule="r") for number in range(500)
            ]
            began = time.perf_counter()
            beside.do(lambda: push.show(many, []))
            shown = time.perf_counter() - began
            until(
                "500 entries",
                lambda: True if beside.do(push.status).entries >= 500 else None,
                5,
                every=0.001,
            )
            took = time.perf_counter() - began
            state = beside.do(push.status)
        with capsys.disabled():
            print(
                f"\n{way}: push to answer p50 {statistics.median(own) * 1e3:.3f} ms,"
                f" p99 {own[int(len(own) * 0.99)] * 1e3:.3f} ms (with the thread's hand-over"
                f" p50 {statistics.median(trips) * 1e3:.3f}); 500 entries: loop held"
                f" {shown * 1e3:.1f} ms, all taken after {took * 1e3:.1f} ms, failed {state.failed}"
            )
        assert state.up
        assert state.failed == 0
        assert statistics.median(own) < 0.005


@contextlib.contextmanager
def rpc_server(folder: Path, way: str) -> Iterator[str]:
    """A Kamailio that takes JSON-RPC in one of three ways."""
    listen = f"{network()}.1:{free_port()}"
    rpc = f"udp:127.0.0.1:{free_port()}" if way == "udp" else str(folder / "rpc.sock")
    http = way == "http"
    (folder / "rpc.cfg").write_text(f"""
listen=udp:{listen}
listen=tcp:{listen}
children=1
tcp_children=1
auto_aliases=no
tcp_accept_no_cl=yes
loadmodule "pv.so"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "xhttp.so"
loadmodule "jsonrpcs.so"
modparam("jsonrpcs", "transport", {1 if http else 4})
{"" if http else f'modparam("jsonrpcs", "dgram_socket", "{rpc}")'}
include_file "{CONFIG.parents[2]}/kamailio/sipsidecar-admission.cfg"
event_route[xhttp:request] {{ jsonrpc_dispatch(); }}
request_route {{ sl_send_reply("200", "OK"); }}
""")
    command = kamailio_command(folder / "rpc.cfg", folder, {}, strings={})
    with running("kamailio", command, folder) as program:
        host, _, port = listen.partition(":")
        until("OPTIONS answer", lambda: answers_options(host, int(port)), 20, program)
        yield {"udp": rpc, "unix": f"unix:{rpc}", "http": f"http://{listen}/RPC"}[way]


# ------------------------------------------------------------------------------------------- asked


def asking(at: Scene, ask: Callable[[Ask], Decision]) -> KamailioAsk:
    host, _, port = at.evapi.partition(":")
    return KamailioAsk("edge", host, int(port), ask)


class Judge:
    """Says what it was told to say, and keeps what it was asked."""

    def __init__(self) -> None:
        self.decision = Decision(verdict=ADMIT)
        self.asked: list[Ask] = []
        self.seconds = 0.0

    def __call__(self, ask: Ask) -> Decision:
        self.asked.append(ask)
        time.sleep(self.seconds)
        return self.decision


REFUSED = Decision(
    verdict=REFUSE, code=486, rule="acme-calls", reason="cac acme-calls: capacity reached"
)


def test_a_call_is_asked_about_once_and_goes_as_the_answer_says(tmp_path: Path) -> None:
    judge = Judge()
    with scene(tmp_path, "ASKED") as at:
        part = asking(at, judge)
        with Beside(part) as beside:
            is_up(part, beside)
            assert at.passes("acme-1", "X-Account: 7", "Priority: urgent")
            judge.decision = REFUSED
            said = at.call("bob")
            assert said.startswith("SIP/2.0 486 Busy Here\r\n")
            assert '\r\nReason: SIP;cause=486;text="cac acme-calls: capacity reached"\r\n' in said
            assert "\r\nX-Admission: acme-calls\r\n" in said
            judge.decision = Decision(verdict=OVERFLOW, route="ivr", rule="asr", reason="cac asr")
            at.invite()
            assert "\r\nX-Overflow: ivr by asr\r\n" in at.fallback.receive("INVITE")
            state = beside.do(part.status)
            assert (state.asked, state.refused, state.error) == (3, 0, None)
    assert len(judge.asked) == 3
    first = judge.asked[0]
    assert (first.from_tag, first.cseq, first.node, first.way) == ("a", 1, "edge", "evapi")
    assert first.ruri == f"sip:acme-1@{at.callee.address}"
    assert first.priority == "urgent"
    assert first.sighted.src_ip == at.caller.address.partition(":")[0]
    assert first.sighted.src_port == int(at.caller.address.partition(":")[2])
    assert first.sighted.dst_ip == at.proxy.partition(":")[0]
    assert first.sighted.from_user == "alice"
    assert first.sighted.to_user == first.sighted.ruri_user == "acme-1"
    assert first.sighted.headers == {"x-account": "7", "sidecar-trunk": "acme"}
    assert 0 <= first.waited < 0.1


def test_a_call_in_progress_and_an_emergency_are_not_asked_about(tmp_path: Path) -> None:
    judge = Judge()
    judge.decision = REFUSED
    with scene(tmp_path, "ASKED") as at:
        part = asking(at, judge)
        with Beside(part) as beside:
            is_up(part, beside)
            assert at.passes("911")
            assert at.passes("112")
            at.caller.send(
                at.proxy,
                "BYE",
                f"sip:112@{at.callee.address}",
                "old",
                f"Route: <sip:{at.proxy};lr>",
                to_tag=";tag=x",
            )
            at.callee.receive("BYE")
    assert judge.asked == []


def test_bytes_of_a_stranger_do_not_spoil_the_question(tmp_path: Path) -> None:
    judge = Judge()
    judge.decision = REFUSED
    strange = '"}|\x01é\\x,{'
    with scene(tmp_path, "ASKED") as at:
        part = asking(at, judge)
        with Beside(part) as beside:
            is_up(part, beside)
            long = "y" * 5000
            assert at.call("a", f"Priority: {strange}", f"X-Account: {long}").startswith(
                "SIP/2.0 486"
            )
            assert at.call(call_id="c" * 6000).startswith("SIP/2.0 486")
            assert at.call("u" * 3000, "Priority: " + "p" * 3000).startswith("SIP/2.0 486")
            assert at.call(call_id="x\"'}{<>$").startswith("SIP/2.0 486")
            assert beside.do(part.status).refused == 0
    assert judge.asked[0].priority == strange
    assert len(judge.asked[0].sighted.headers["x-account"]) <= 768
    assert judge.asked[1].call_id == "c" * 512
    assert judge.asked[3].call_id == "x\"'}{<>$"


def test_a_cancel_during_the_wait_ends_the_call_before_the_callee_hears_of_it(
    tmp_path: Path,
) -> None:
    judge = Judge()
    judge.seconds = 0.15
    with scene(tmp_path, "ASKED") as at:
        part = asking(at, judge)
        with Beside(part) as beside:
            is_up(part, beside)
            call_id = at.invite()
            at.caller.receive("SIP/2.0 100")
            at.caller.send(at.proxy, "CANCEL", f"sip:bob@{at.callee.address}", call_id)
            # Either of the two may come first.
            said = [at.final(call_id), at.final(call_id)]
            assert sorted(text.split()[1] for text in said) == ["200", "487"]
            time.sleep(0.4)
            at.callee.sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                at.callee.receive("INVITE")
            at.callee.sock.settimeout(5)
            judge.seconds = 0
            assert at.passes()
            assert part.counters["late"] == 1


def test_without_a_sidecar_calls_pass_at_once(tmp_path: Path) -> None:
    with scene(tmp_path, "ASKED") as at:
        began = time.monotonic()
        assert at.passes()
        assert time.monotonic() - began < 0.1
        judge = Judge()
        judge.decision = REFUSED
        part = asking(at, judge)
        with Beside(part) as beside:
            is_up(part, beside)
            assert not at.passes()
        until("an open proxy", lambda: at.passes() or None, 1, every=0.01)
        began = time.monotonic()
        assert at.passes()
        assert time.monotonic() - began < 0.1


def test_behind_a_stuck_sidecar_a_call_passes_after_its_wait_and_then_at_once(
    tmp_path: Path,
) -> None:
    judge = Judge()
    judge.decision = REFUSED
    with scene(tmp_path, "ASKED") as at:
        part = asking(at, judge)
        with Beside(part) as beside:
            is_up(part, beside)
            assert not at.passes()
            began = time.monotonic()
            beside.stand_still(6)
            assert at.passes()
            assert 0.19 < time.monotonic() - began < 0.6
            # The callee's own refusal counts, not the silence of the sidecar.
            call_id = at.invite()
            at.callee.reply(at.callee.receive("INVITE"), at.proxy, "480 Gone")
            assert at.final(call_id).startswith("SIP/2.0 480 Gone")
            at.callee.sock.settimeout(0.5)
            with pytest.raises(TimeoutError):  # it was not called again
                at.callee.receive("INVITE")
            at.callee.sock.settimeout(5)
            until("silence noticed", lambda: fast(at) or None, 5, every=0.1)
            assert time.monotonic() - began < 4.6
            assert all(fast(at) for _ in range(5))
            # It moves again: late answers change nothing, new ones count.
            time.sleep(max(0.0, began + 6 - time.monotonic()))
            until("refusal", lambda: None if at.passes() else True, 5, every=0.1)
            assert part.counters["late"] >= 2
            assert "CRITICAL" not in at.kamailio.log.read_text(errors="replace")


def fast(at: Scene) -> bool:
    began = time.monotonic()
    return at.passes() and time.monotonic() - began < 0.1


def test_a_callee_may_ring_longer_than_the_sidecar_may_think(tmp_path: Path) -> None:
    with scene(tmp_path, "ASKED") as at:
        part = asking(at, Judge())
        with Beside(part) as beside:
            is_up(part, beside)
            call_id = at.invite()
            invite = at.callee.receive("INVITE")
            assert "Record-Route: " in invite
            at.callee.reply(invite, at.proxy, "180 Ringing")
            time.sleep(1)
            at.callee.reply(invite, at.proxy, "486 Busy Here")
            assert at.final(call_id).startswith("SIP/2.0 486")
            at.callee.sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                at.callee.receive("INVITE")


def test_a_second_sidecar_is_asked_when_the_first_is_gone(tmp_path: Path) -> None:
    first, second = Judge(), Judge()
    second.decision = REFUSED
    with scene(tmp_path, "ASKED") as at:
        one, other = asking(at, first), asking(at, second)
        with Beside(one) as beside:
            is_up(one, beside)  # before the other comes: the one that was first is asked
            with Beside(other) as beside_it:
                is_up(other, beside_it)
                assert all(at.passes() for _ in range(5))
                beside.stop()
                until(
                    "the second one's refusal", lambda: None if at.passes() else True, 3, every=0.05
                )
        assert second.asked
    assert len(first.asked) >= 5


def test_somebody_who_only_connects_is_not_asked(tmp_path: Path) -> None:
    with scene(tmp_path, "ASKED") as at:
        host, _, port = at.evapi.partition(":")
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert fast(at)
            judge = Judge()
            judge.decision = REFUSED
            part = asking(at, judge)
            with Beside(part) as beside:
                is_up(part, beside)
                assert not at.passes()
                stranger.close()
                time.sleep(0.1)
                assert not at.passes()


def test_a_restarted_kamailio_is_met_again(tmp_path: Path) -> None:
    judge = Judge()
    judge.decision = REFUSED
    with scene(tmp_path, "ASKED") as at:
        part = asking(at, judge)
        with Beside(part) as beside:
            is_up(part, beside)
            at.restart()
            until("refusal", lambda: None if at.passes() else True, 10, every=0.1)
            assert beside.do(part.status).up
