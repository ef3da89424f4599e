"""Admission in a running sidecar: asked over HTTP, fed by HEP, told about in rows, metrics, health."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from running import Sidecar, datagrams, send_udp, sidecar, until
from sipsidecar.admitting import Admitting, policy_of
from sipsidecar.config import AdmissionSettings, Config
from sipsidecar.pipeline import Pipeline
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.rules import GLOBAL, Rule
from sipsidecar.signals.snapshot import Figures
from sipsidecar.switchboard import Switchboard

AGENT = "127.10.0.1"
CONFIG = """
[calls]
settle_seconds = 0.3

[[cohorts.match]]
trunk = "acme"
direction = "inbound"
sources = ["192.0.2.0/24"]

[admission]
routes = ["ivr"]
fail_closed = ["acme"]
pending_seconds = 60
reserve_percent = 0

[[admission.rules]]
name = "acme-calls"
measure = "calls"
trunk = "acme"
limit = 2

[[admission.rules]]
name = "tts"
measure = "signal"
which = "tts-latency"
limit = 1.5
trip_samples = 1
outcome = "overflow"
route = "ivr"
"""


class Running:
    """One sidecar, and what its operators and switches send it."""

    def __init__(self, one: Sidecar, folder: Path) -> None:
        self.one = one
        self.config = folder / "s.toml"
        self.asked: list[str] = []

    def post(self, path: str, **body: object) -> dict[str, Any]:
        host, port = self.one.http
        request = urllib.request.Request(
            f"http://{host}:{port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            said: dict[str, Any] = json.load(reply)
            return said

    def ask(self, call_id: str, source: str = "192.0.2.7") -> dict[str, Any]:
        self.asked.append(call_id)
        return self.post("/v1/admission", call_id=call_id, src_ip=source)

    def rest(self) -> None:
        """Give back what this test's calls hold: the next one counts from nothing."""
        while self.asked:
            self.post("/v1/admission/release", call_id=self.asked.pop())
        until("no lease left", lambda: self.status()["leases"]["held"] == 0)

    def status(self) -> dict[str, Any]:
        said: dict[str, Any] = self.one.get("/v1/admission/status")[1]
        return said

    def states(self) -> set[tuple[str, str]]:
        return {(one["rule"], one["state"]) for one in self.status()["rules"]}

    def metrics(self) -> str:
        host, port = self.one.http
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as reply:
            text: str = reply.read().decode()
            return text


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("admitting")
    (folder / "s.toml").write_text(CONFIG)
    with sidecar(folder, "--config", folder / "s.toml") as one:
        yield Running(one, folder)


@pytest.fixture
def world(running: Running) -> Iterator[Running]:
    yield running
    running.rest()


def test_admission_is_there_only_where_it_is_configured() -> None:
    assert not Config().admission.wanted
    assert AdmissionSettings(evapi={"edge": "127.0.0.1:1"}).wanted
    rule = Rule(name="full", measure="calls", limit=1)
    config = Config(admission=AdmissionSettings(rules=(rule,), waited_ms=100.0))
    assert config.admission.wanted
    assert policy_of(config).rules == (rule,)
    assert policy_of(config).waited == 0.1


def test_a_question_is_answered_stored_counted_and_drawn(world: Running) -> None:
    assert [world.ask(f"q{i}")["verdict"] for i in range(2)] == ["admit", "admit"]
    refused = world.ask("q2")
    assert (refused["verdict"], refused["code"], refused["rule"]) == ("refuse", 486, "acme-calls")
    assert world.ask("other", "198.51.100.7")["verdict"] == "admit"
    assert (
        'sipsidecar_admission_decisions_total{rule="acme-calls",verdict="refuse",way="http"} '
        in world.metrics()
    )
    assert 'sipsidecar_admission_active{scope="trunk",value="acme"} 2.0' in world.metrics()
    until(
        "a row",
        lambda: world.one.get("/v1/ledger")[1]["rows_stored"].get("admissions", 0) >= 1,
    )
    drawn = world.one.ask("ladder", "q2").stdout
    assert "refused 486 by rule acme-calls: calls 2 of 2 (trunk acme), asked by http" in drawn
    for call_id in ("q0", "q1"):
        assert world.post("/v1/admission/release", call_id=call_id)["released"] == 1
    assert world.ask("q3")["verdict"] == "admit"


def test_health_names_each_trunk_and_what_happens_to_it_without_a_sidecar(world: Running) -> None:
    checks = world.one.get("/health/ready")[1]["checks"]
    assert checks["admission_acme"]["policy"] == "fail-closed"
    assert checks["admission_other"]["policy"] == "fail-open"
    assert checks["admission_acme"]["required"] is False
    assert world.status()["fail"] == {"acme": "fail-closed", "other": "fail-open"}


def test_calls_that_hep_shows_hold_capacity_until_they_end(world: Running) -> None:
    before = world.status()["leases"]["ended"].get("over", 0)
    send_udp(world.one.hep, datagrams("kamailio/a_answered"), AGENT)
    ended = until(
        "the calls' ends",
        lambda: (world.status()["leases"]["ended"].get("over", 0) - before) or None,
    )
    assert ended > 0
    until("no lease left", lambda: world.status()["leases"]["held"] == 0)
    until("calls by cohort", lambda: "sipsidecar_cohort_calls_total{" in world.metrics())


def test_a_signal_from_outside_sends_calls_elsewhere_until_it_is_well_again(world: Running) -> None:
    world.post("/v1/signals", name="tts-latency", value=3.0, ttl_seconds=30)
    until("the rule", lambda: ("tts", "closed") in world.states())
    sent = world.ask("s1", "198.51.100.9")
    assert (sent["verdict"], sent["route"], sent["rule"]) == ("overflow", "ivr", "tts")
    world.post("/v1/signals", name="tts-latency", value=0.2, ttl_seconds=30)
    assert world.post("/v1/admission/resume")["resumed"] >= 1
    assert world.ask("s2", "198.51.100.9")["verdict"] == "admit"


def test_an_operator_drains_sets_and_resumes(world: Running) -> None:
    world.post("/v1/admission/drain", trunk="acme")
    assert world.ask("d1")["rule"] == "drain"
    checks = world.one.get("/health/ready")[1]["checks"]
    assert checks["admission_acme"]["reading"] == "closed"
    world.post("/v1/admission/resume", trunk="acme")
    assert world.ask("d2")["verdict"] == "admit"
    assert world.post("/v1/admission/set", rule="acme-calls", limit=1)["limit"] == 1
    assert world.ask("d3")["verdict"] == "refuse"
    world.post("/v1/admission/set", rule="acme-calls", limit=2)
    until(
        "the states' rows",
        lambda: world.one.get("/v1/ledger")[1]["rows_stored"].get("admission_states", 0) >= 4,
    )


def test_a_reload_puts_other_rules_in_force(world: Running) -> None:
    text = world.config.read_text()
    world.config.write_text(text.replace("limit = 2", "limit = 0"))
    try:
        done = world.post("/v1/reload")
        assert "admission.rules" in done["reloaded"]
        assert world.ask("r1")["threshold"] == 0
    finally:
        world.config.write_text(text)
        world.post("/v1/reload")


def test_a_reload_says_which_rules_wait_for_a_restart(world: Running) -> None:
    text = world.config.read_text()
    more = """
[[admission.rules]]
name = "elsewhere"
measure = "signal"
which = "x"
limit = 1
outcome = "overflow"
route = "voicemail"

[[admission.rules]]
name = "pipeline"
measure = "check"
which = "llm"

[[admission.rules]]
name = "newcomer"
measure = "calls"
trunk = "new"
limit = 1

[[admission.rules]]
name = "patient"
measure = "asr_percent"
limit = 10
window_seconds = 3600
"""
    new = text.replace('routes = ["ivr"]', 'routes = ["ivr", "voicemail"]').replace(
        "pending_seconds = 60",
        'pending_seconds = 60\nchecks = [{ name = "llm", url = "tcp://127.0.0.1:1" }]',
    )
    new += more + '\n[[cohorts.match]]\ntrunk = "new"\nsources = ["198.51.100.1"]\n'
    world.config.write_text(new)
    try:
        done = world.post("/v1/reload")
        assert done["reloaded"] == ["admission.rules"]
        said = world.one.err.read_text()
    finally:
        world.config.write_text(text)
        world.post("/v1/reload")
    for words in (
        "rule elsewhere: no switch that is told knows route voicemail before the next start",
        "rule pipeline: nobody looks at check llm before the next start",
        "rule newcomer: no call is of trunk new before the next start",
        "rule patient: looks back no further than 300 s before the next start",
    ):
        assert words in said
    assert "rule acme-calls: " not in said


def test_each_change_of_a_rule_and_its_notify_mark_are_logged(world: Running) -> None:
    world.post("/v1/signals", name="tts-latency", value=3.0, ttl_seconds=30)
    until("the rule", lambda: ("tts", "closed") in world.states())
    line = "rule tts of all calls: open -> closed: signal tts-latency 3: over 1.5"
    until("its line", lambda: line in world.one.err.read_text())
    world.post("/v1/signals", name="tts-latency", value=0.2, ttl_seconds=30)
    world.post("/v1/admission/resume")


def test_a_switch_that_counts_by_itself_is_told_whose_limit_it_is() -> None:
    told: list[tuple[Any, ...]] = []

    class Switch:
        def show(self, *what: Any) -> None:
            told.append(what)

    def unread() -> Figures:
        raise AssertionError

    async def tell() -> None:
        rules = (Rule(name="full", measure="calls", limit=100),)
        config = Config(admission=AdmissionSettings(rules=rules))
        pipeline = Pipeline()
        board = Switchboard(config, pipeline)
        board.pushes = (Switch(),)  # type: ignore[assignment]
        part = Admitting(config, Cohorts(), pipeline, board, unread)
        part.set_limit("full", 50)

    asyncio.run(tell())
    assert told[-1][2:] == ({(GLOBAL, ""): 47}, {(GLOBAL, ""): "full"})
