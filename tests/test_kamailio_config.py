"""The configurations that are shipped for Kamailio: what they say, and what Kamailio does with them."""

import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from live.programs import (
    ROOT,
    answers_options,
    free_port,
    kamailio_command,
    network,
    running,
    until,
)
from sipsidecar.config import Config
from sipsidecar.wire import hep

INCLUDE = ROOT / "kamailio" / "sipsidecar.cfg"
MINIMAL = ROOT / "kamailio" / "kamailio-minimal.cfg"
TRUNKS = ROOT / "kamailio" / "dispatcher.list"


def lines(path: Path) -> list[str]:
    """What Kamailio reads: no comments."""
    text = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in text if line and (not line.startswith("#") or line.startswith("#!"))]


def test_the_include_sends_to_where_the_sidecar_listens() -> None:
    assert f'#!define SIPSIDECAR_URI "sip:{Config().hep.listen}"' in lines(INCLUDE)


def test_the_include_sets_what_a_true_mirror_needs_and_nothing_else() -> None:
    found = dict(
        re.findall(
            r'^modparam\("siptrace", "(\w+)", (.*)\)$', "\n".join(lines(INCLUDE)), re.MULTILINE
        )
    )
    assert found == {
        "duplicate_uri": "SIPSIDECAR_URI",
        "trace_mode": "1",
        "trace_init_mode": "1",
        "hep_mode_on": "1",
        "hep_version": "3",
        "hep_capture_id": "SIPSIDECAR_CAPTURE_ID",
        "auth_key": "SIPSIDECAR_AUTH_KEY",
        "trace_to_database": "0",
        "trace_on": "1",
    }


@pytest.mark.parametrize("path", [INCLUDE, MINIMAL], ids=lambda path: path.name)
def test_every_define_can_be_set_by_its_user(path: Path) -> None:
    said = lines(path)
    for number, line in enumerate(said):
        if line.startswith("#!define"):
            assert said[number - 1] == f"#!ifndef {line.split()[1]}"


@pytest.mark.parametrize("path", [INCLUDE, MINIMAL], ids=lambda path: path.name)
def test_no_configuration_traces_twice_or_needs_what_debian_lacks(path: Path) -> None:
    said = "\n".join(lines(path))
    for unwanted in ("sip_trace(", "setflag", "trace_flag", "http_async", "db_url", "db_postgres"):
        assert unwanted not in said


def test_the_minimal_proxy_includes_the_include() -> None:
    assert f'include_file "{INCLUDE.name}"' in lines(MINIMAL)


# ------------------------------------------------------------------------ with the real Kamailio


class Phone:
    """A UDP socket that knows enough SIP to be called."""

    def __init__(self, ip: str) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((ip, 0))
        self.sock.settimeout(5)
        self.address = f"{ip}:{self.sock.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(
        self, to: str, method: str, uri: str, call_id: str, *headers: str, to_tag: str = ""
    ) -> None:
        host, _, port = to.partition(":")
        text = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/UDP {self.address};branch=z9hG4bK{call_id}",
            f"From: <sip:alice@{self.address}>;tag=a",
            f"To: <{uri}>{to_tag}",
            f"Call-ID: {call_id}",
            f"CSeq: 1 {method}",
            "Max-Forwards: 70",
            *headers,
            "Content-Length: 0",
        ]
        self.sock.sendto("\r\n".join([*text, "", ""]).encode(), (host, int(port)))

    def receive(self, start: str) -> str:
        """The next message that starts so; others are passed over."""
        while True:
            text = self.sock.recv(65535).decode()
            if text.startswith(start):
                return text

    def reply(self, request: str, to: str, status: str) -> None:
        host, _, port = to.partition(":")
        kept = re.findall(r"^(?:Via|From|Call-ID|CSeq|Record-Route): .*$", request, re.MULTILINE)
        to_line = re.findall(r"^To: .*$", request, re.MULTILINE)[0].strip()
        text = [f"SIP/2.0 {status}", *map(str.strip, kept), f"{to_line};tag={self.address[-4:]}"]
        self.sock.sendto(
            "\r\n".join([*text, "Content-Length: 0", "", ""]).encode(), (host, int(port))
        )


class Proxy:
    """The minimal proxy on addresses of its own, and the socket that it mirrors to."""

    def __init__(self, address: str, collector: socket.socket) -> None:
        self.address = address
        self.ip = address.partition(":")[0]
        self.collector = collector

    def mirrored(self) -> tuple[hep.Packet, str]:
        """The next mirrored message and its start line; not those that asked whether it is up."""
        while True:
            packet = hep.decode(self.collector.recv(65535))
            if b"z9hG4bKready" not in packet.payload:
                return packet, packet.payload.split(b"\r\n", 1)[0].decode()


@contextlib.contextmanager
def minimal_proxy(folder: Path, *trunks: str) -> Iterator[Proxy]:
    """The shipped proxy, started as its first lines say; with `trunks` (ADDR:PORT) as its trunks."""
    address = f"{network()}.1:{free_port()}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(5)
        strings = {"SIPSIDECAR_URI": f"sip:127.0.0.1:{collector.getsockname()[1]}"}
        if trunks:
            own = folder / "dispatcher.list"
            own.write_text("".join(f"1 sip:{t} 0 {9 - n}\n" for n, t in enumerate(trunks)))
            strings["TRUNK_LIST"] = str(own)
        command = kamailio_command(MINIMAL, folder, {"PROXY_LISTEN": address}, strings=strings)
        with running("kamailio", command, folder) as program:
            ip, _, port = address.partition(":")
            until("OPTIONS answer", lambda: answers_options(ip, int(port)), 20, program)
            yield Proxy(address, collector)


@pytest.mark.live
@pytest.mark.parametrize(
    "defines",
    [{}, {"SIPSIDECAR_AUTH_KEY": "a word"}, {"TRUNK_LIST": str(TRUNKS)}],
    ids=["as-shipped", "auth-key", "trunks"],
)
def test_kamailio_takes_the_shipped_configurations(tmp_path: Path, defines: dict[str, str]) -> None:
    own = tmp_path / "own.cfg"
    own.write_text(
        f'listen=udp:127.0.0.1:5060\ninclude_file "{INCLUDE}"\nrequest_route {{ drop; }}\n'
    )
    for config in (MINIMAL, own):
        command = kamailio_command(config, tmp_path, {}, strings=defines)
        # From the root, as a service: the include is found beside the file.
        done = subprocess.run(
            [*command, "-c"], cwd="/", capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "ERROR" not in done.stderr
        assert "CRITICAL" not in done.stderr


@pytest.mark.live
def test_an_options_is_answered_and_both_messages_are_mirrored_as_hep_3(tmp_path: Path) -> None:
    with minimal_proxy(tmp_path) as proxy, Phone(proxy.ip) as phone:
        phone.send(proxy.address, "OPTIONS", f"sip:{proxy.address}", "mirror")
        phone.receive("SIP/2.0 200")
        request, start = proxy.mirrored()
        assert start == f"OPTIONS sip:{proxy.address} SIP/2.0"
        reply, start = proxy.mirrored()
        assert start == "SIP/2.0 200 OK"
        for packet in (request, reply):
            assert (packet.version, packet.kind, packet.agent_id) == (3, hep.Kind.SIP, 2001)
            assert packet.captured_at is not None
        assert request.source == reply.destination == socket.inet_aton(proxy.ip)
        assert f"{proxy.ip}:{request.source_port}" == phone.address
        assert f"{proxy.ip}:{reply.source_port}" == proxy.address


@pytest.mark.live
def test_a_stateless_refusal_and_its_ack_are_mirrored_once_each(tmp_path: Path) -> None:
    with minimal_proxy(tmp_path) as proxy, Phone(proxy.ip) as phone:
        uri = f"sip:nobody@{proxy.address}"
        phone.send(proxy.address, "INVITE", uri, "refused")
        tag = re.findall(r"^To: .*(;tag=\S+)", phone.receive("SIP/2.0 404"), re.MULTILINE)[0]
        phone.send(proxy.address, "ACK", uri, "refused", to_tag=tag)
        seen = [proxy.mirrored()[1] for _ in range(3)]
        proxy.collector.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            seen.append(proxy.mirrored()[1])
        # Two workers may mirror the ACK before the 404 that it answers.
        words = sorted(start.split()[1 if start.startswith("SIP/") else 0] for start in seen)
        assert words == ["404", "ACK", "INVITE"]


@pytest.mark.live
def test_a_call_goes_to_the_next_trunk_when_the_first_refuses_it(tmp_path: Path) -> None:
    ip = f"{network()}.2"
    with (
        Phone(ip) as first,
        Phone(ip) as second,
        Phone(ip) as caller,
        minimal_proxy(tmp_path, first.address, second.address) as proxy,
    ):
        caller.send(proxy.address, "INVITE", f"sip:123@{proxy.address}", "failover")
        invite = first.receive("INVITE")
        assert "Record-Route: " in invite
        first.reply(invite, proxy.address, "503 Service Unavailable")
        first.receive("ACK")
        second.reply(second.receive("INVITE"), proxy.address, "200 OK")
        caller.receive("SIP/2.0 200")


@pytest.mark.live
def test_a_call_to_a_registered_user_rings_all_phones_at_once(tmp_path: Path) -> None:
    ip = f"{network()}.2"
    with (
        minimal_proxy(tmp_path) as proxy,
        Phone(ip) as desk,
        Phone(ip) as mobile,
        Phone(ip) as caller,
    ):
        uri = f"sip:bob@{proxy.address}"
        for phone in (desk, mobile):
            contact = f"Contact: <sip:bob@{phone.address}>"
            phone.send(proxy.address, "REGISTER", uri, phone.address, contact)
            phone.receive("SIP/2.0 200")
        caller.send(proxy.address, "INVITE", uri, "fork")
        for phone in (desk, mobile):
            phone.reply(phone.receive("INVITE"), proxy.address, "180 Ringing")
        caller.receive("SIP/2.0 180")
        caller.receive("SIP/2.0 180")


@pytest.mark.live
def test_a_call_to_another_domain_goes_where_it_says(tmp_path: Path) -> None:
    ip = f"{network()}.2"
    with minimal_proxy(tmp_path) as proxy, Phone(ip) as callee, Phone(ip) as caller:
        caller.send(proxy.address, "INVITE", f"sip:1@{callee.address}", "direct")
        callee.reply(callee.receive("INVITE"), proxy.address, "486 Busy Here")
        caller.receive("SIP/2.0 486")
