"""Two trunks in trouble behind a real Kamailio: the whole program, SIPp, and callees that can be broken.

To one trunk's calls comes 503: they are sent to another callee until it is well. The other trunk rings
late: its calls are refused. How a trunk fares whose MOS falls is simulated in `bench/gating.py`.
"""

import asyncio
import heapq
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from live.evapi import need_evapi
from live.programs import (
    answers_options,
    clean_environment,
    free_port,
    kamailio_command,
    need,
    network,
    running,
    until,
)
from live.test_capacity import is_connected, rows, status
from live.test_sipp import ready, sidecar_says

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(180)]

HERE = Path(__file__).parent
CONFIG = HERE / "kamailio-gate-test.cfg"
SCENARIO = HERE / "scenarios" / "uac_gated.xml"
PER_SECOND = {"acme": 12, "beta": 5}
WINDOW = 20.0
RULES = """
[[admission.rules]]
name = "errors"
measure = "server_errors_percent"
limit = 30
trunk = "acme"
outcome = "overflow"
route = "ivr"
min_samples = 10
{common}
[[admission.rules]]
name = "slow"
measure = "pdd_p95_ms"
limit = 500
trunk = "beta"
reason = "rings late"
# More than ring when it closes: what they are told of late would keep it closed for a window.
min_samples = 20
{common}
# Were refusals of our own an answer that somebody failed to give, it would close.
[[admission.rules]]
name = "own"
measure = "asr_percent"
limit = 90
trunk = "beta"
outcome = "shadow"
min_samples = 10
{common}
"""
COMMON = f"""
window_seconds = {WINDOW:g}
resume_seconds = 5
in_service_seconds = 2
ramp_seconds = 10
"""


class Callee:
    """Answers calls and takes their BYEs, in a thread; how it answers can be changed meanwhile."""

    def __init__(self, ip: str) -> None:
        self.failing = False
        """Answer 503."""
        self.rings_after = 0.02
        """Seconds from the INVITE to the 180."""
        self.invites: list[tuple[float, str]] = []
        """When, by time.time(), and Call-ID; of each call once."""
        self.marks: set[str] = set()
        """What the X-Admission headers of its INVITEs said."""
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((ip, 0))
        self.address = f"{ip}:{self._sock.getsockname()[1]}"
        self._known: set[str] = set()
        self._due: list[tuple[float, bytes, Any]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(5)
        self._sock.close()

    def between(self, first: float, last: float) -> int:
        """Calls that came in this time."""
        return sum(first <= at < last for at, _ in list(self.invites))

    def _serve(self) -> None:
        while not self._stopped.is_set():
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, reply, peer = heapq.heappop(self._due)
                self._sock.sendto(reply, peer)
            self._sock.settimeout(max(0.001, min(0.1, self._due[0][0] - now if self._due else 0.1)))
            try:
                data, peer = self._sock.recvfrom(65535)
            except TimeoutError:
                continue
            self._take(data.decode("latin-1"), peer)

    def _take(self, request: str, peer: Any) -> None:
        method = request.partition(" ")[0]
        if method == "BYE":
            self._reply(request, "200 OK", peer)
        if method != "INVITE":
            return
        call_id = re.findall(r"^Call-ID: *(\S+)", request, re.MULTILINE)[0]
        if call_id in self._known:
            return  # a copy, which was answered
        self._known.add(call_id)
        self.invites.append((time.time(), call_id))
        self.marks.update(re.findall(r"^X-Admission: *(\S+)", request, re.MULTILINE))
        if self.failing:
            self._reply(request, "503 Service Unavailable", peer)
            return
        self._reply(request, "100 Trying", peer)
        self._reply(request, "180 Ringing", peer, self.rings_after)
        self._reply(request, "200 OK", peer, self.rings_after + 0.02)

    def _reply(self, request: str, said: str, peer: Any, after: float = 0.0) -> None:
        kept = re.findall(r"^(?:Via|From|To|Call-ID|CSeq|Record-Route): .*$", request, re.MULTILINE)
        lines = [f"SIP/2.0 {said}"]
        for line in map(str.strip, kept):
            tagged = line.startswith("To:") and ";tag=" not in line and not said.startswith("100")
            lines.append(f"{line};tag=callee" if tagged else line)
        lines += [f"Contact: <sip:{self.address}>", "Content-Length: 0", "", ""]
        reply = "\r\n".join(lines).encode("latin-1")
        heapq.heappush(self._due, (time.monotonic() + after, reply, peer))


@dataclass
class Story:
    """What happened, by time.time()."""

    broken_at: float
    mended_at: dict[str, float]
    """By rule."""
    over_at: float
    acme: Callee
    beta: Callee
    ivr: Callee
    states: list[dict[str, Any]]
    admissions: list[dict[str, Any]]
    origins: Counter[tuple[int | None, str | None]]
    """Calls by final code and who made it."""
    log: str

    def when(self, rule: str, state: str) -> float:
        """The only time that a rule got into a state."""
        (at,) = [row["received_at"] for row in self.states_of(rule) if row["state"] == state]
        return float(at.timestamp())

    def states_of(self, rule: str) -> list[dict[str, Any]]:
        return [row for row in self.states if row["rule"] == rule]


def play(folder: Path, mode: str) -> Story:
    """Break both trunks under load with Kamailio `PUSHED` or `ASKED`, mend them, and wait."""
    need_evapi()
    sipp = need("sipp", "sip-tester")
    net, port = network(), free_port()
    hep, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    rpc, evapi = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    edge = f'evapi = {{ edge = "{evapi}" }}'
    if mode == "PUSHED":
        edge = f'kamailio = {{ edge = "udp:{rpc}" }}'
    matchers = "".join(
        f'[[cohorts.match]]\ntrunk = "{name}"\ndestinations = ["{net}.{number}"]\n'
        for name, number in (("acme", 2), ("beta", 3))
    )
    (folder / "sidecar.toml").write_text(
        f'{matchers}[admission]\n{edge}\nroutes = ["ivr"]\n{RULES.format(common=COMMON)}'
    )
    run: list[str | Path] = [sys.executable, "-m", "sipsidecar", "run"]
    run += ["--config", folder / "sidecar.toml"]
    run += ["--hep", hep, "--http", http, "--data", folder / "data"]
    with Callee(f"{net}.2") as acme, Callee(f"{net}.3") as beta, Callee(f"{net}.4") as ivr:
        kamailio = kamailio_command(
            CONFIG,
            folder,
            {"PROXY_LISTEN": f"{net}.1:{port}", mode: 1},
            strings={
                "SIPSIDECAR_URI": f"sip:{hep}",
                "SIPSIDECAR_RPC": f"udp:{rpc}",
                "SIPSIDECAR_EVAPI": evapi,
                "FALLBACK": f"sip:ivr@{ivr.address}",
            },
        )

        def caller(trunk: str, callee: Callee, number: int) -> list[str | Path]:
            options: list[str | Path] = [sipp, f"{net}.1:{port}", "-sf", SCENARIO, "-s", trunk]
            options += ["-key", "callee", callee.address, "-i", f"{net}.{number}"]
            options += ["-p", str(port), "-bind_local", "-nostdin", "-m", "100000"]
            return [
                *options,
                "-l",
                "1000",
                "-r",
                str(PER_SECOND[trunk]),
                "-cid_str",
                f"{trunk}.%u.%p@%s",
            ]

        with (
            running("sidecar", run, folder, clean_environment()) as sidecar,
            running("kamailio", kamailio, folder) as proxy,
        ):
            until("readiness", lambda: ready(http), 60, sidecar)
            until("OPTIONS answer", lambda: answers_options(f"{net}.1", port), 20, proxy)
            until("connection", lambda: is_connected(http), 20, sidecar)

            def all_are(state: str) -> Callable[[], bool | None]:
                wanted = {"errors": state, "slow": state, "own": "open"}
                return lambda: (
                    {one["rule"]: one["state"] for one in status(http)["rules"]} == wanted or None
                )

            with (
                running("to-acme", caller("acme", acme, 5), folder),
                running("to-beta", caller("beta", beta, 6), folder),
            ):
                time.sleep(6)
                assert all_are("open")()
                acme.failing, beta.rings_after = True, 1.5
                broken_at = time.time()
                mended_at = mend(http, {"errors": acme, "slow": beta})
                until("opening", all_are("open"), 40, sidecar, every=0.2)
                time.sleep(4)
            over_at = time.time()
            until("the last record", lambda: len(states(folder)) >= 6 or None, 20, sidecar, every=1)
            time.sleep(4)  # the last calls end, and their records leave
            dsn = sidecar_says("dsn", data=folder / "data").strip()
            admissions = asyncio.run(rows(dsn, "SELECT * FROM admissions"))
            finals = asyncio.run(rows(dsn, "SELECT final_code, final_origin FROM calls"))
            said = states(folder)
            sidecar.stop(30)
            log = sidecar.log.read_text(errors="replace")
    origins = Counter((row["final_code"], row["final_origin"]) for row in finals)
    return Story(broken_at, mended_at, over_at, acme, beta, ivr, said, admissions, origins, log)


def mend(http: str, callees: dict[str, Callee]) -> dict[str, float]:
    """Make each callee well two seconds after its rule closed: before it is tried again."""
    closed_at: dict[str, float] = {}
    mended_at: dict[str, float] = {}
    deadline = time.time() + WINDOW + 5
    while mended_at.keys() != callees.keys():
        assert time.time() < deadline, f"closed: {closed_at}; {status(http)['rules']}"
        for one in status(http)["rules"]:
            if one["state"] == "closed":
                closed_at.setdefault(one["rule"], time.time())
        for rule, callee in callees.items():
            if rule not in mended_at and time.time() >= closed_at.get(rule, deadline) + 2:
                callee.failing, callee.rings_after = False, 0.02
                mended_at[rule] = time.time()
        time.sleep(0.1)
    return mended_at


def states(folder: Path) -> list[dict[str, Any]]:
    dsn = sidecar_says("dsn", data=folder / "data").strip()
    return asyncio.run(rows(dsn, "SELECT * FROM admission_states ORDER BY received_at"))


@pytest.mark.parametrize("mode", ["PUSHED", "ASKED"])
def test_a_trunk_in_trouble_is_closed_in_its_window_overflowed_and_let_in_again_by_a_ramp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    story = play(tmp_path, mode)
    acme, beta, ivr = story.acme, story.beta, story.ivr
    seconds = {
        rule: tuple(
            round(story.when(rule, state) - since, 1)
            for state, since in (
                ("closed", story.broken_at),
                ("ramping", story.mended_at[rule]),
                ("open", story.mended_at[rule]),
            )
        )
        for rule in ("errors", "slow")
    }
    with capsys.disabled():
        print(
            f"\n{mode}: after the trouble closed, after its end ramping and open: {seconds} s;"
            f" calls at acme {len(acme.invites)}, beta {len(beta.invites)}, ivr {len(ivr.invites)};"
            f" finals {dict(story.origins)}"
        )
    for rule in ("errors", "slow"):
        # One closing each: none before the trouble, none after its end, none in the ramp.
        told = [(row["previous"], row["state"]) for row in story.states_of(rule)]
        assert told == [("open", "closed"), ("closed", "ramping"), ("ramping", "open")]
        assert 0 < story.when(rule, "closed") - story.broken_at <= WINDOW
    assert story.states_of("own") == [], "our own refusals are in no figure of a trunk"
    closing = story.states_of("errors")[0]
    assert closing["value"] > closing["threshold"] == 30
    assert (closing["scope"], closing["scope_value"], closing["by"]) == ("trunk", "acme", "rule")

    # A push takes effect within a second; an answer at once.
    closed, ramping, opened = (
        story.when("errors", state) for state in ("closed", "ramping", "open")
    )
    assert acme.between(closed + 1, ramping) == 0
    expected = PER_SECOND["acme"] * (ramping - closed - 1)
    assert ivr.between(closed + 1, ramping) == pytest.approx(expected, rel=0.2)
    third = (opened - ramping) / 3
    shares = [
        acme.between(first, first + third)
        / max(1, acme.between(first, first + third) + ivr.between(first, first + third))
        for first in (ramping, ramping + third, ramping + 2 * third)
    ]
    # 24, 55 and 85 % of some 40 calls each; pushed, lots decide.
    assert 0 < shares[0] < 0.55
    assert 0.25 < shares[1] < 0.85
    assert shares[2] > 0.6
    assert ivr.between(opened + 1, story.over_at) == 0
    assert ivr.between(0, closed) == 0
    assert ivr.marks == {"errors"}
    assert not acme.marks

    closed, ramping = (story.when("slow", state) for state in ("closed", "ramping"))
    assert beta.between(closed + 1, ramping) == 0
    refused = story.origins[486, "admission"]
    assert refused >= PER_SECOND["beta"] * (ramping - closed - 2)
    assert story.origins.keys() <= {
        (200, "callee"),
        (500, "proxy"),
        (503, "callee"),
        (486, "admission"),
        # SIPp was stopped in the middle of its last ones.
        (None, None),
    }
    by_rule = Counter((row["rule"], row["verdict"]) for row in story.admissions)
    assert by_rule["slow", "refuse"] == refused
    if mode == "ASKED":
        assert by_rule["errors", "overflow"] == len(ivr.invites)
    assert by_rule.keys() <= {("slow", "refuse"), ("errors", "overflow")}
    assert "Traceback" not in story.log
    assert "ERROR" not in story.log
