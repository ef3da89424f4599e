import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from answering import AGENT, LEDGER, READY, answering, page, pages
from sipsidecar import __version__
from sipsidecar.cli.checks import sidecar
from sipsidecar.cli.checks.case import Case, Finding
from sipsidecar.config import load

Page = tuple[int, bytes]


def case_of(address: str = "127.0.0.1:1", **flags: object) -> Case:
    values = {key.replace("__", "."): value for key, value in flags.items()}
    return Case(load(None, {}, {"http.listen": address, **values}), None)


def only(check: Callable[[Case], Any], case: Case) -> Finding:
    (finding,) = check(case)
    assert isinstance(finding, Finding)
    return finding


def running(token: str | None = None, **changes: Page) -> Case:
    with answering(pages(**changes), token=token) as (address, _):
        case = case_of(address)
        case.running.ask(case.asked)
        return case


def metrics(**changes: str) -> Page:
    made = {"build_info": f'sipsidecar_build_info{{version="{__version__}"}} 1.0'} | changes
    return 200, "".join(f"{line}\n" for line in made.values()).encode()


def health(**checks: dict[str, object]) -> Page:
    ready = all(check["ok"] or not check.get("required", True) for check in checks.values())
    status = "ready" if ready else "not-ready"
    return page({"status": status, "checks": checks}, 200 if ready else 503)


def test_no_sidecar_is_worth_a_look_and_another_program_a_failure() -> None:
    case = case_of()
    case.running.ask(case.asked)
    found = only(sidecar.sidecar, case)
    assert (found.state, found.reading) == (
        "warn", "none answers at http://127.0.0.1:1 (Connection refused)",
    )  # fmt: skip
    found = only(sidecar.sidecar, running(ready=page({})))
    assert found.state == "fail"
    assert "/health/ready is not a sidecar's" in found.reading


def test_a_healthy_sidecar_is_ok() -> None:
    case = running(metrics=metrics())
    assert only(sidecar.sidecar, case).state == "ok"


@pytest.mark.parametrize(
    ("ready", "state", "advice"),
    [
        (health(queue={"ok": False, "reading": 0.95}), "fail", "queue is 0.95"),
        (
            health(spool={"ok": False, "reading": 1, "required": False, "advice": "do this"}),
            "warn",
            "spool is 1: do this",
        ),
        (health(warming={"ok": False, "reading": 1, "required": False}), "ok", None),
        (page({"status": "not-ready"}, 503), "fail", "see its log"),
        (health(x={"ok": False, "reading": "\x1b[31m" * 99}), "fail", "x is "),
    ],
)
def test_what_a_sidecar_says_of_its_health_is_judged_by_what_is_required(
    ready: Page, state: str, advice: str | None
) -> None:
    found = only(sidecar.sidecar, running(ready=ready, metrics=metrics()))
    assert found.state == state
    assert (found.advice or "")[:20] == (advice or "")[:20] or (found.advice or "").startswith(
        "x is"
    )
    assert "\x1b" not in str(found.advice)
    assert len(found.advice or "") < 200


def test_a_missing_token_and_another_version_are_worth_a_look() -> None:
    found = only(sidecar.sidecar, running(token="t" * 20))
    assert found.state == "warn"
    assert "asks for a token" in found.reading
    found = only(sidecar.sidecar, running())
    assert found.state == "warn"
    assert f"version 9.9.9; installed is {__version__}" in found.reading


# -- ports


@pytest.fixture
def taken() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_free_ports_and_any_port_are_ok() -> None:
    case = case_of("127.0.0.1:0", hep__listen="127.0.0.1:0")
    assert only(sidecar.ports, case).state == "ok"


def test_a_port_that_another_program_has_fails_and_names_it(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("127.0.0.1:0", hep__listen=taken)
    found = only(sidecar.ports, case)
    assert found.state == "fail"
    assert found.reading.startswith(f"HEP {taken} (TCP) is taken by ")
    assert "(pid " in found.reading
    monkeypatch.setattr("sipsidecar.edges.machine.port_owner", lambda *_: None)
    assert only(sidecar.ports, case).reading == f"HEP {taken} (TCP) is taken by another program"
    monkeypatch.setattr("sipsidecar.edges.machine.port_owner", lambda *_: "systemd (pid 1)")
    assert only(sidecar.ports, case).state == "ok"
    monkeypatch.undo()
    assert only(sidecar.ports, case_of("127.0.0.1:0", hep__listen=taken, hep__tcp=False)).state == (
        "ok"
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "may not be used by this user"),
        (errno.EADDRNOTAVAIL, "is no address of this machine"),
        (errno.EPERM, "Operation not permitted"),
    ],
)
def test_every_way_a_port_fails_has_its_words(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipsidecar.edges.machine.bind_error", lambda *_: number)
    tls = {"hep__tls_certificate": "c", "hep__tls_key": "k"}
    found = only(sidecar.ports, case_of(hep__tls_listen="127.0.0.1:2", **tls))
    assert found.reading.count(words) == 4
    assert "HEP over TLS 127.0.0.1:2 (TCP)" in found.reading
    assert found.advice


def test_ports_of_a_running_sidecar_are_taken_by_it(taken: str) -> None:
    case = case_of(taken, hep__listen=taken, hep__tcp=True)
    case.running.silence = None
    found = only(sidecar.ports, case)
    assert found.state == "warn"
    assert found.reading == f"HEP {taken} (UDP) is not in use"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        host, _, port = taken.rpartition(":")
        udp.bind((host, int(port)))
        assert only(sidecar.ports, case).reading == f"HEP {taken}, HTTP {taken}: in use by it"


# -- receive buffer


@pytest.mark.parametrize(("granted", "state"), [(67108864, "ok"), (212992, "warn")])
def test_the_buffer_is_the_running_sidecars_or_measured_here(
    granted: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = running(metrics=metrics(b=f"sipsidecar_receive_buffer_bytes {granted}"))
    found = only(sidecar.receive_buffer, case)
    assert found.state == state
    assert found.reading.startswith("the running sidecar has ")
    assert ("sysctl -w net.core.rmem_max=67108864" in str(found.advice)) is (state == "warn")
    monkeypatch.setattr("sipsidecar.edges.machine.granted_buffer", lambda _: granted)
    found = only(sidecar.receive_buffer, case_of())
    assert found.state == state
    assert found.figures["granted_bytes"] == granted
    monkeypatch.setattr("sipsidecar.edges.machine.granted_buffer", lambda _: None)
    assert only(sidecar.receive_buffer, case_of()).state == "unknown"


# -- ledger


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "ok", ""),
        ({"balance": 3}, "fail", "that is a defect"),
        ({"kernel_drops": 7}, "warn", "a larger receive buffer"),
        (
            {"dropped": 5, "dropped_by_reason": {"queue-full": 4, "x\x1b": 1, "none": 0}},
            "warn",
            "dropped because of queue-full (4), x\\x1b (1)",
        ),
        ({"refused": 2, "refused_by_reason": {"bad-key": 2, "length": 9}}, "warn", "bad-key (2)"),
        ({"refused": 9, "refused_by_reason": {"hep-length": 9, "bad-key": 0}}, "ok", ""),
    ],
)
def test_the_ledger_says_where_packets_were_lost(
    changes: dict[str, object], state: str, words: str
) -> None:
    found = only(sidecar.ledger, running(ledger=page(LEDGER | changes)))
    assert found.state == state
    assert words in (found.advice or "")
    assert bool(found.advice) is (state != "ok")


def test_ledger_and_agents_are_unknown_while_nobody_tells() -> None:
    for check in (sidecar.ledger, sidecar.agents):
        assert only(check, case_of()).state == "unknown"
        assert only(check, running(token="t" * 20)).reading == "the running sidecar did not tell"


# -- agents


def test_without_agents_the_lines_for_kamailio_and_freeswitch_are_given() -> None:
    found = only(sidecar.agents, running(agents=page([])))
    assert found.state == "warn"
    assert '"sip:127.0.0.1:9060"' in str(found.advice)
    assert '"udp:127.0.0.1:9060;hep=3;capture_id=100"' in str(found.advice)
    case = case_of(hep__listen="0.0.0.0:9060", hep__insecure=True)
    case.running.agents = []
    assert "sip:THIS-HOST:9060" in str(only(sidecar.agents, case).advice)
    case = case_of(hep__listen="[::1]:9060")
    case.running.agents = []
    assert "sip:[::1]:9060" in str(only(sidecar.agents, case).advice)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"last_seen_seconds": 60.1}, "silent for over a minute: edge at 192.0.2.1"),
        ({"clock_skew_seconds": -1.1}, "with a clock more than a second off: edge"),
        ({"clock_skew_seconds": None}, "without times (HEP version 1): edge"),
        ({"clock_skew_seconds": 0.9, "last_seen_seconds": 59.0, "agent_id": None}, None),
    ],
)
def test_agents_that_are_silent_skewed_or_old_are_named(
    changes: dict[str, object], words: str | None
) -> None:
    found = only(sidecar.agents, running(agents=page([AGENT | changes])))
    assert found.state == ("ok" if words is None else "warn")
    assert (found.advice or "").startswith(words or "")


def test_of_many_agents_a_few_are_named_and_the_others_counted() -> None:
    many = [AGENT | {"agent_id": n, "name": None, "last_seen_seconds": 100.0} for n in range(30)]
    found = only(sidecar.agents, running(agents=page(many)))
    assert found.reading == "30 seen, 0 of them in the last minute"
    assert "capture id 4 at 192.0.2.1 and 25 more" in str(found.advice)
    assert "capture id 5" not in str(found.advice)


def test_ready_without_checks_is_what_a_stranger_sees() -> None:
    assert only(sidecar.sidecar, running(ready=page({"status": READY["status"]}))).state == "warn"
