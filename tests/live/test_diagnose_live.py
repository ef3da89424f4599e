"""300 SIPp calls through a real Kamailio to a trunk that refuses some: is the planted cause named?

The callers are thirty kinds of phones, each with its own headers, order and codecs. Every seventh has
the cause; the trunk answers 400 to two thirds of those calls, and to two others.
"""

import contextlib
import io
import json
import random
import re
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import diagnosing as bench
from live.programs import (
    answers_options,
    free_port,
    kamailio_command,
    need,
    network,
    running,
    until,
)
from sipsidecar.cli import diagnosing
from sipsidecar.cli.parsers import Commands, Parser
from sipsidecar.signals.diagnose import Finding, Separator

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(240)]

HERE = Path(__file__).parent
KINDS, CALLS_EACH = 30, 10
CALLS = KINDS * CALLS_EACH
WITH_CAUSE = 7
"""Kinds of callers that have the cause."""
REFUSED_WITH, REFUSED_WITHOUT = 45, 2
"""Calls that the trunk refuses: of those with the cause, and of all others."""
SECONDS = 10.0
ADDED = 150
"""Bytes that Kamailio adds to an INVITE, at least."""
SCENARIO = """<?xml version="1.0" encoding="ISO-8859-1" ?>
<!DOCTYPE scenario SYSTEM "sipp.dtd">
<scenario name="diagnosed">
  <send retrans="500"><![CDATA[

{invite}
  ]]></send>
  <recv response="100" optional="true"/>
  <recv response="400" optional="true" next="refused"/>
  <recv response="200" rrs="true"/>
  <send><![CDATA[

ACK [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
[routes]
{addresses}
CSeq: 1 ACK
Max-Forwards: 70
Content-Length: 0

  ]]></send>
  <pause milliseconds="100"/>
  <send retrans="500"><![CDATA[

BYE [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
[routes]
{addresses}
CSeq: 2 BYE
Max-Forwards: 70
Content-Length: 0

  ]]></send>
  <recv response="200" next="over"/>
  <label id="refused"/>
  <send><![CDATA[

ACK sip:[service]@[callee] SIP/2.0
[last_Via:]
{addresses}
CSeq: 1 ACK
Max-Forwards: 70
Content-Length: 0

  ]]></send>
  <label id="over"/>
</scenario>
"""
FROM = "<sip:+1202555[call_number]@example.com>;tag=[pid]c[call_number]"
FIELDS = {
    "Via": "SIP/2.0/[transport] [local_ip]:[local_port];rport;branch=[branch]",
    "From": FROM,
    "To": "<sip:[service]@[callee]>",
    "Call-ID": "[call_id]",
    "CSeq": "1 INVITE",
    "Contact": "<sip:caller@[local_ip]:[local_port]>",
}
"""What SIPp fills in for each call."""
ADDRESSES = f"From: {FROM}\n[last_To:]\nCall-ID: [call_id]"


def scenario(path: Path, invite: bench.Written) -> None:
    """Write one kind of caller as a SIPp scenario."""
    invite.headers = [(name, FIELDS.get(name, value)) for name, value in invite.headers]
    head, _, body = invite.text().decode().replace("\r\n", "\n").partition("\n\n")
    _, *lines = head.split("\n")
    lines = [re.sub(r"^Content-Length: .*", "Content-Length: [len]", line) for line in lines]
    body = re.sub(r"192\.0\.2\.1[0-4]", "[local_ip]", body)
    text = "\n".join(["INVITE sip:[service]@[callee] SIP/2.0", *lines, "", body])
    path.write_text(SCENARIO.format(invite=text, addresses=ADDRESSES))


class Trunk(threading.Thread):
    """A SIP server over UDP that answers 400 to the cause, most of the time."""

    def __init__(self, address: tuple[str, int], cause: str) -> None:
        super().__init__(daemon=True)
        self.cause = cause
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(0.2)
        self.over = threading.Event()
        self.refused: dict[str, bool] = {}
        """By Call-ID: whether it has the cause."""
        self.answered: dict[str, bool] = {}
        self._codes: dict[str, int] = {}
        rng = random.Random(cause)
        self._with = self._shuffled(rng, REFUSED_WITH, WITH_CAUSE * CALLS_EACH)
        self._without = self._shuffled(rng, REFUSED_WITHOUT, CALLS - WITH_CAUSE * CALLS_EACH)
        if cause == bench.NONE:
            self._without = self._shuffled(rng, REFUSED_WITH + REFUSED_WITHOUT, CALLS)

    @staticmethod
    def _shuffled(rng: random.Random, refused: int, calls: int) -> Iterator[bool]:
        order = [True] * refused + [False] * (calls - refused)
        rng.shuffle(order)
        return iter(order)

    def has_cause(self, request: bytes) -> bool:
        if self.cause == "header order":
            return request.index(b"\r\nCSeq:") < request.index(b"\r\nFrom:")
        if self.cause.startswith("over"):
            return len(request) > int(self.cause.split()[1])
        return self.cause == "a codec line" and b"a=fmtp:18 annexb=yes" in request

    def run(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                request, peer = self.socket.recvfrom(65_535)
                reply = self.reply(request)
                if reply is not None:
                    self.socket.sendto(reply, peer)
        self.socket.close()

    def reply(self, request: bytes) -> bytes | None:
        method = request.partition(b" ")[0]
        if method not in {b"INVITE", b"BYE"}:
            return None
        head = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        call_id = next(line.split(": ")[1] for line in head if line.startswith("Call-ID:"))
        code = 200 if method == b"BYE" else self.decided(call_id, request)
        kept = ("Via:", "From:", "Call-ID:", "CSeq:", "Record-Route:")
        lines = [f"SIP/2.0 {code} {'OK' if code == 200 else 'Bad Request'}"]
        lines += [line for line in head if line.startswith(kept)]
        to = next(line for line in head if line.startswith("To:"))
        lines.append(to if ";tag=" in to else f"{to};tag=far")
        host, port = self.socket.getsockname()
        lines += [f"Contact: <sip:far@{host}:{port}>", "Content-Length: 0", "", ""]
        return "\r\n".join(lines).encode()

    def decided(self, call_id: str, request: bytes) -> int:
        """The same code for a retransmission."""
        if call_id not in self._codes:
            has_cause = self.has_cause(request)
            refuse = next(self._with if has_cause else self._without)
            (self.refused if refuse else self.answered)[call_id] = has_cause
            self._codes[call_id] = 400 if refuse else 200
        return self._codes[call_id]


class Live:
    """All that runs, and the trunk that knows the truth."""

    def __init__(self, folder: Path, cause: str) -> None:
        self.folder = folder
        self.cause = cause
        self.data = folder / "data"
        self.net, self.port = network(), free_port()
        self.http = f"127.0.0.1:{free_port()}"
        self.trunk = Trunk((f"{self.net}.2", self.port), cause)

    def run(self) -> None:
        """Make the calls, and wait until all of them are stored."""
        sipp = need("sipp", "sip-tester")
        hep = f"127.0.0.1:{free_port()}"
        config = self.folder / "sidecar.toml"
        config.write_text(
            f'[[cohorts.match]]\ntrunk = "acme"\ndestinations = ["{self.net}.2/32"]\n'
        )
        command = [sys.executable, "-m", "sipsidecar", "run", "--hep", hep, "--http", self.http]
        command += ["--data", str(self.data), "--config", str(config)]
        with contextlib.ExitStack() as stack:
            sidecar = stack.enter_context(running("sidecar", command, self.folder))
            until("readiness", self._ready, 60, sidecar)
            proxy = stack.enter_context(running("kamailio", self._kamailio(hep), self.folder))
            host = f"{self.net}.1"
            until("answer to OPTIONS", lambda: answers_options(host, self.port), 20, proxy)
            self.trunk.start()
            stack.callback(self.trunk.over.set)
            callers = [
                stack.enter_context(running(f"caller{n}", [sipp, *self._caller(n)], self.folder))
                for n in range(KINDS)
            ]
            for caller in callers:
                assert caller.wait(SECONDS + 60) == 0, caller.tail()
            until("all records", self._stored, 60, sidecar, every=1)
            assert sidecar.stop(30) == 0, sidecar.tail()

    def _ready(self) -> bool | None:
        with contextlib.suppress(OSError):
            self._page("/health/ready")
            return True
        return None

    def _page(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=2) as reply:
            return json.load(reply)

    def _stored(self) -> bool | None:
        """Whether no call is live any more, and no row waits."""
        ledger = self._page("/v1/ledger")
        busy = self._page("/v1/calls/live")["calls"] or ledger["waiting"]
        return None if busy else True

    def _kamailio(self, hep: str) -> list[str | Path]:
        trunks = self.folder / "dispatcher.list"
        trunks.write_text(f"1 sip:{self.net}.2:{self.port} 0 10\n")
        nowhere = f"sip:x@{self.net}.9:{self.port}"
        return kamailio_command(
            HERE / "kamailio-test.cfg",
            self.folder,
            {"PROXY_LISTEN": f"{self.net}.1:{self.port}"},
            strings={
                "SIPSIDECAR_URI": f"sip:{hep}", "TRUNK_LIST": str(trunks), "FORK_RINGS": nowhere,
                "FORK_REFUSES": nowhere, "DEAD_TRUNK": nowhere,
            },
        )  # fmt: skip

    def _caller(self, number: int) -> list[str | Path]:
        rng = random.Random(f"{self.cause} {number}")
        invite = bench.written(rng, number)
        has_cause = self.cause != bench.NONE and number % (KINDS // WITH_CAUSE) == 0
        has_cause = has_cause and number // (KINDS // WITH_CAUSE) < WITH_CAUSE
        for decoy in bench.DECOYS:
            if rng.random() < (0.6 if has_cause else 0.2):
                invite.extra.insert(rng.randrange(len(invite.extra) + 1), decoy)
        if has_cause and self.cause.startswith("over"):
            # Over the one limit, some of them over the other, too.
            least = int(self.cause.split()[1])
            bench.pad(invite, least + 20 - ADDED + (250 if number % 8 else 0))
        elif has_cause:
            bench.plant(self.cause, invite)
        elif self.cause == "over 1500 bytes" and number % 5 == 1:
            bench.pad(invite, 1320 - ADDED)
        path = self.folder / f"caller{number}.xml"
        scenario(path, invite)
        host = f"{self.net}.{100 + number}"
        return [
            f"{self.net}.1:{self.port}",
            *("-sf", path, "-s", f"4420794{number}"),
            *("-key", "callee", f"{self.net}.2:{self.port}"),
            *("-i", host, "-bind_local", "-p", str(self.port), "-ci", host, "-nostdin"),
            *("-m", str(CALLS_EACH), "-r", str(CALLS_EACH), "-rp", str(int(SECONDS * 1000))),
            *("-trace_err", "-error_file", self.folder / f"caller{number}.errors"),
            *("-timeout", f"{SECONDS + 45:.0f}s", "-timeout_error"),
        ]

    def diagnosed(self, *more: str) -> tuple[int, str]:
        """What the command says, and its exit code."""
        parser = Parser(prog="sipsidecar")
        diagnosing.add_command(Commands(parser))
        arguments = ["diagnose", "--data", str(self.data), "--code", "400", "--trunk", "acme"]
        given = parser.parse_args([*arguments, "--since", "1h", *more])
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code: int = given.handle(given)
        return code, said.getvalue()


@pytest.mark.parametrize("cause", [*bench.CAUSES, bench.NONE])
def test_the_planted_cause_of_an_intermittent_400_is_named_first_and_luck_is_not(
    cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("kamailio", "kamailio")
    live = Live(tmp_path, cause)
    live.run()
    trunk = live.trunk
    assert len(trunk.refused) + len(trunk.answered) == CALLS
    assert len(trunk.refused) == REFUSED_WITH + REFUSED_WITHOUT
    code, text = live.diagnosed()
    with capsys.disabled():
        print(f"\n{cause}: {sum(trunk.refused.values())} of {len(trunk.refused)} refused calls and")
        print(f"{sum(trunk.answered.values())} of {len(trunk.answered)} others have it\n{text}")
    _, lines = live.diagnosed("--json")
    facts, *findings = [json.loads(line) for line in lines.splitlines()]
    assert (facts["failing"], facts["good"]) == (len(trunk.refused), len(trunk.answered))
    assert facts["without_invite"] == 0
    if cause == bench.NONE:
        assert (code, findings) == (1, [])
        return
    assert code == 0
    names = {field for field in Separator.__struct_fields__ if field in findings[0]}
    first = Finding(separator=Separator(**{name: findings[0][name] for name in names}))
    assert bench.named(cause, first), findings[0]["text"]
    assert set(findings[0]["call_ids"]) <= {one for one, has in trunk.refused.items() if has}
