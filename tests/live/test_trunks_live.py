"""Trunks behind a real Kamailio: who is silent is taken out, and comes back whatever happens."""

import contextlib
import dataclasses
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from live.phone import Phone
from live.programs import (
    ROOT,
    Program,
    answers_options,
    clean_environment,
    free_port,
    kamailio_command,
    network,
    running,
    until,
)

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(120)]

CONFIG = Path(__file__).parent / "kamailio-trunks-test.cfg"
INTERVAL = 1.0
TIMEOUT = 0.5
LEASE = 4


class Trunk:
    """A carrier: answers OPTIONS unless it is silent, refuses calls."""

    def __init__(self, ip: str) -> None:
        self.phone = Phone(ip)
        self.phone.sock.settimeout(0.1)
        self.silent = False
        self.called = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def uri(self) -> str:
        return f"sip:{self.phone.address}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.phone.sock.close()

    def _run(self) -> None:
        sock = self.phone.sock
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                data, (host, port) = sock.recvfrom(65535)
                text = data.decode()
                if self.silent:
                    continue
                if text.startswith("OPTIONS "):
                    self.phone.reply(text, f"{host}:{port}", "200 OK")
                elif text.startswith("INVITE "):
                    self.called += 1
                    self.phone.reply(text, f"{host}:{port}", "486 Busy Here")


@dataclasses.dataclass
class Scene:
    proxy: str
    rpc: str
    caller: Phone
    first: Trunk
    second: Trunk
    folder: Path
    number: int = 0

    def ask(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call."""
        host, _, port = self.rpc.partition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.connect((host, int(port)))
            call = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
            sock.send(json.dumps(call).encode())
            return json.loads(sock.recv(65536))

    def flags(self) -> dict[str, str]:
        """Flags of each destination."""
        sets = self.ask("dispatcher.list")["result"]["RECORDS"]
        return {
            target["DEST"]["URI"]: target["DEST"]["FLAGS"]
            for one in sets
            for target in one["SET"]["TARGETS"]
        }

    def becomes(self, trunk: Trunk, flags: str, seconds: float) -> float:
        """Wait until a destination has these flags; how long that took."""
        began = time.monotonic()
        until(
            f"{flags} at {trunk.uri}",
            lambda: self.flags()[trunk.uri] == flags or None,
            seconds,
            every=0.02,
        )
        return time.monotonic() - began

    def call(self) -> Trunk | None:
        """Which trunk gets the next call."""
        self.number += 1
        before = self.first.called, self.second.called
        self.caller.send(self.proxy, "INVITE", f"sip:bob@{self.proxy}", f"call-{self.number}")
        while True:
            answer = self.caller.receive("SIP/2.0 ")
            if f"Call-ID: call-{self.number}\r\n" in answer and not answer.startswith("SIP/2.0 1"):
                break
        tag = re.findall(r"^To: .*?(;tag=\S+)", answer, re.MULTILINE)[0]
        self.caller.send(
            self.proxy, "ACK", f"sip:bob@{self.proxy}", f"call-{self.number}", to_tag=tag
        )
        if self.first.called > before[0]:
            return self.first
        return self.second if self.second.called > before[1] else None

    @contextlib.contextmanager
    def watched(
        self, *trunks: Trunk, name: str = "watch", destination: str = ""
    ) -> Iterator[Program]:
        """The parts that look after trunks, once all of them that are not silent have answered."""
        peers = [
            {
                "name": f"trunk{number}",
                "uri": trunk.uri,
                "interval_seconds": INTERVAL,
                "timeout_seconds": TIMEOUT,
                "dispatcher_group": 1,
                "dispatcher_uri": destination,
            }
            for number, trunk in enumerate(trunks, start=1)
        ]
        environment = clean_environment()
        environment["PYTHONPATH"] += f":{ROOT / 'tests'}"
        command = [sys.executable, "-m", "live.trunkwatch"]
        command += [f"udp:{self.rpc}", str(LEASE), json.dumps(peers)]
        with running(name, command, self.folder, environment) as program:
            if not any(trunk.silent for trunk in trunks):
                until(
                    "answers", lambda: "all answer" in program.log.read_text() or None, 10, program
                )
            yield program


@contextlib.contextmanager
def scene(folder: Path, *defines: str) -> Iterator[Scene]:
    net = network()
    proxy, rpc = f"{net}.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with Phone(f"{net}.2") as caller, Trunk(f"{net}.3") as first, Trunk(f"{net}.4") as second:
        trunks = folder / "trunks.list"
        trunks.write_text(f"1 {first.uri} 0 10\n1 {second.uri} 0 5\n")
        command = kamailio_command(
            CONFIG,
            folder,
            {"PROXY_LISTEN": proxy, **dict.fromkeys(defines, 1)},
            strings={"TRUNK_LIST": str(trunks), "SIPSIDECAR_RPC": f"udp:{rpc}"},
        )
        with running("kamailio", command, folder) as kamailio:
            host, _, port = proxy.partition(":")
            until("OPTIONS answer", lambda: answers_options(host, int(port)), 20, kamailio)
            yield Scene(proxy, rpc, caller, first, second, folder)


def test_a_silent_trunk_is_out_within_three_intervals_and_back_after_two_answers(
    tmp_path: Path,
) -> None:
    with scene(tmp_path) as at, at.watched(at.first, at.second) as program:
        assert at.call() is at.first
        at.first.silent = True
        took = at.becomes(at.first, "IX", 10)
        # The last good one was up to an interval ago; then three, the last with its patience.
        assert took < 3 * INTERVAL + TIMEOUT + 0.7
        assert at.call() is at.second
        time.sleep(LEASE + 2)
        assert at.flags()[at.first.uri] == "IX"  # it is renewed
        at.first.silent = False
        took = at.becomes(at.first, "AX", 10)
        assert INTERVAL * 0.9 < took < 2 * INTERVAL + 0.7
        assert at.call() is at.first
        said = at.ask("htable.get", "sidecar_out", f"1|{at.first.uri}")
        assert said["error"]["message"] == "Key name doesn't exist in htable."
    words = program.log.read_text()
    assert re.search(r"trunk1 \w+ -> inactive\n.*trunk1 inactive -> active", words, re.DOTALL)
    assert "trunk2" not in words


def test_when_the_sidecar_is_killed_kamailio_puts_the_trunk_back_after_the_lease(
    tmp_path: Path,
) -> None:
    with scene(tmp_path) as at:
        with at.watched(at.first) as program:
            at.first.silent = True
            at.becomes(at.first, "IX", 10)
            program.process.send_signal(signal.SIGKILL)
            program.process.wait(5)
            took = at.becomes(at.first, "AX", LEASE + 5)
            assert LEASE - 1.5 < took < LEASE + 2.5
        # Its next life finds out again.
        with at.watched(at.first, name="again"):
            at.becomes(at.first, "IX", 10)


def test_a_sidecar_that_stops_puts_the_trunk_back_at_once(tmp_path: Path) -> None:
    with scene(tmp_path) as at, at.watched(at.first) as program:
        at.first.silent = True
        at.becomes(at.first, "IX", 10)
        assert program.stop() == 0
        assert at.flags()[at.first.uri] == "AX"


def test_the_last_trunk_in_use_is_never_taken_out(tmp_path: Path) -> None:
    with scene(tmp_path) as at, at.watched(at.first, at.second) as program:
        at.first.silent = at.second.silent = True
        until(
            "both down",
            lambda: program.log.read_text().count("-> inactive") == 2 or None,
            10,
            program,
        )
        time.sleep(2)
        assert sorted(at.flags().values()) == ["AX", "IX"]
        # An operator takes the other one out: ours comes back.
        out, kept = sorted((at.first, at.second), key=lambda one: at.flags()[one.uri] == "AX")
        at.ask("dispatcher.set_state", "dx", 1, kept.uri)
        at.becomes(out, "AX", 5)
        time.sleep(2)
        assert at.flags() == {out.uri: "AX", kept.uri: "DX"}


def test_after_a_reload_of_the_dispatcher_the_trunk_is_out_again(tmp_path: Path) -> None:
    with scene(tmp_path) as at, at.watched(at.first):
        at.first.silent = True
        at.becomes(at.first, "IX", 10)
        assert "result" in at.ask("dispatcher.reload")
        at.becomes(at.first, "IX", 3)


def test_a_destination_that_kamailio_pings_is_left_to_it(tmp_path: Path) -> None:
    with scene(tmp_path, "PINGED") as at:
        at.becomes(at.first, "AP", 5)
        # For the sidecar this trunk is down: it looks at another port.
        wrong = Trunk(at.first.phone.address.partition(":")[0])
        wrong.silent = True
        with wrong, at.watched(wrong, destination=at.first.uri) as program:
            until("down", lambda: "-> inactive" in program.log.read_text() or None, 10, program)
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                assert at.flags()[at.first.uri] == "AP"
                time.sleep(0.05)
