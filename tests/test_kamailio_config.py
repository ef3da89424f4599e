"""The configurations that are shipped for Kamailio: what they say, and what Kamailio does with them."""

import contextlib
import re
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import pytest

from live.beside import Beside
from live.evapi import need_evapi
from live.phone import Phone
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
from sipsidecar.edges.kamailio import entries
from sipsidecar.edges.kamailio.evapi import KamailioAsk
from sipsidecar.signals.decisions import ADMIT, Decision
from sipsidecar.wire import hep, quality

INCLUDE = ROOT / "kamailio" / "sipsidecar.cfg"
MEDIA = ROOT / "kamailio" / "sipsidecar-media.cfg"
ADMISSION = ROOT / "kamailio" / "sipsidecar-admission.cfg"
ASKED = ROOT / "kamailio" / "sipsidecar-admission-asked.cfg"
COMMON = ROOT / "kamailio" / "sipsidecar-admission-common.cfg"
ALL = sorted((ROOT / "kamailio").glob("*.cfg"))
MINIMAL = ROOT / "kamailio" / "kamailio-minimal.cfg"
TRUNKS = ROOT / "kamailio" / "dispatcher.list"
RTPENGINE = Path(__file__).parent / "corpus" / "rtpengine"


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


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_define_can_be_set_by_its_user(path: Path) -> None:
    said = lines(path)
    for number, line in enumerate(said):
        if line.startswith("#!define"):
            assert said[number - 1] == f"#!ifndef {line.split()[1]}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_no_configuration_traces_twice_or_needs_what_debian_lacks(path: Path) -> None:
    said = "\n".join(lines(path))
    for unwanted in ("sip_trace(", "setflag", "trace_flag", "http_async", "db_url", "db_postgres"):
        assert unwanted not in said


def test_the_minimal_proxy_includes_the_includes() -> None:
    for include in (INCLUDE, ADMISSION, ASKED):
        assert f'include_file "{include.name}"' in lines(MINIMAL)


def test_no_call_of_emergency_that_the_sidecar_knows_is_refused_by_the_proxy() -> None:
    users = "|".join(Config().admission.emergency)
    assert f'#!define SIPSIDECAR_EMERGENCY "^({users})$"' in lines(COMMON)


def test_what_is_pushed_finds_its_tables_and_they_expire() -> None:
    tables = dict(
        re.findall(
            r'^modparam\("htable", "htable", "(\w+)=>(.*)"\)$',
            "\n".join(lines(COMMON) + lines(ADMISSION) + lines(ASKED)),
            re.MULTILINE,
        )
    )
    own = {"sidecar_asked", "sidecar_bucket"}
    assert set(tables) == {entries.TEXTS, entries.CLOSED, entries.RATES, *own}
    for name, settings in tables.items():
        # Without it nothing that is pushed would ever expire; and no entry reads as 0.
        leased = name not in {entries.TEXTS, "sidecar_bucket"}
        assert ("autoexpire=3;initval=0;" in settings) == leased


def test_every_refusal_has_a_reason_and_none_is_made_elsewhere() -> None:
    for path in (ADMISSION, ASKED):
        assert "_reply(" not in "\n".join(lines(path)).replace("sl_reply_error(", "")
    said = "\n".join(lines(COMMON))
    assert said.count("send_reply(") == 1
    before, _, _ = said.partition("send_reply(")
    assert 'append_to_reply("Reason: SIP;cause=' in before
    assert 'append_to_reply("X-Admission: ' in before


@pytest.mark.parametrize("path", [COMMON, ADMISSION, ASKED], ids=lambda path: path.name)
def test_no_define_has_the_name_of_a_route(path: Path) -> None:
    # It would take the route's place in every configuration that calls it.
    said = "\n".join(lines(path))
    defined = set(re.findall(r"#!(?:define|ifdef|ifndef) (\w+)", said))
    routes = set(re.findall(r"route\[(\w+)\]|route\((\w+)\)", said))
    assert not defined & {name for pair in routes for name in pair}


def test_what_the_media_include_logs_is_a_report_that_the_sidecar_reads() -> None:
    (logged,) = re.findall(r'hlog\("\$ci", "(.*)"\);', MEDIA.read_text())
    values = {"mos": "3.9", "min": "3.6", "loss": "5", "jitter": "24", "rtt": "40378"}
    values["samples"] = "4"
    said = re.sub(r"\$avp\(sipsidecar_b_(\w+)\)", lambda found: values.pop(found[1]), logged)
    assert not values
    said = re.sub(r"\$avp\(sipsidecar_a_\w+\)", "<null>", said).replace('\\"', '"')
    assert quality.parse_log(said.encode()) == (
        quality.SessionQuality(
            "log",
            heard_by="callee",
            loss_percent=5.0,
            jitter_ms=24.0,
            rtt_ms=40.378,
            mos_cq=3.9,
            mos_min=3.6,
            samples=4,
        ),
    )


def test_the_media_include_asks_for_every_value_that_it_logs_of_the_same_side() -> None:
    said = "\n".join(lines(MEDIA))
    asked = dict(re.findall(r'^modparam\("rtpengine", "(\w+)_pv", "(\S+)"\)$', said, re.MULTILINE))
    for side, letter in (("A", "a"), ("B", "b")):
        assert {name: value for name, value in asked.items() if f"_{side}" in name} == {
            f"mos_{side}_label": f"$avp(sipsidecar_{letter})",
            f"mos_average_{side}": f"$avp(sipsidecar_{letter}_mos)",
            f"mos_min_{side}": f"$avp(sipsidecar_{letter}_min)",
            f"mos_average_packetloss_{side}": f"$avp(sipsidecar_{letter}_loss)",
            f"mos_average_jitter_{side}": f"$avp(sipsidecar_{letter}_jitter)",
            f"mos_average_roundtrip_{side}": f"$avp(sipsidecar_{letter}_rtt)",
            f"mos_average_samples_{side}": f"$avp(sipsidecar_{letter}_samples)",
        }
    assert len(asked) == 14


# ------------------------------------------------------------------------ with the real Kamailio


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
def minimal_proxy(
    folder: Path, *trunks: str, defines: Mapping[str, str | int] | None = None
) -> Iterator[Proxy]:
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
        own_defines = {"PROXY_LISTEN": address, **(defines or {})}
        command = kamailio_command(MINIMAL, folder, own_defines, strings=strings)
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


def checked(config: Path, folder: Path, defines: Mapping[str, str | int], **strings: str) -> None:
    """Kamailio finds nothing wrong with a configuration; from the root, as a service."""
    command = kamailio_command(config, folder, defines, strings=strings)
    done = subprocess.run(
        [*command, "-c"], cwd="/", capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("ERROR", "CRITICAL", "WARNING"):
        assert word not in done.stderr


@pytest.mark.live
@pytest.mark.parametrize("trunks", [False, True], ids=["no-trunks", "trunks"])
@pytest.mark.parametrize("modes", [["PUSHED"], ["ASKED"], ["PUSHED", "ASKED"]], ids="+".join)
def test_kamailio_takes_the_minimal_proxy_with_admission(
    tmp_path: Path, modes: list[str], trunks: bool
) -> None:
    if "ASKED" in modes:
        need_evapi()
    defines = {f"ADMISSION_{mode}": 1 for mode in modes}
    checked(MINIMAL, tmp_path, defines, **({"TRUNK_LIST": str(TRUNKS)} if trunks else {}))


@pytest.mark.live
@pytest.mark.parametrize("overflow", ["", "#!define SIPSIDECAR_HAS_OVERFLOW"])
@pytest.mark.parametrize(
    "defines",
    [
        "",
        '#!define SIPSIDECAR_FAIL_CLOSED "^(trunk::acme|src::192[.]0[.]2[.]1)$"',
        '#!define SIPSIDECAR_ALONE_CPS 0\n#!define SIPSIDECAR_EMERGENCY "^112$"',
        (
            '#!define SIPSIDECAR_RPC "/run/kamailio/sidecar.sock"\n'
            '#!define SIPSIDECAR_EVAPI "127.0.0.1:8449"\n#!define SIPSIDECAR_ASK_MS 100'
        ),
        (
            'loadmodule "htable.so"\nloadmodule "textops.so"\nloadmodule "tmx.so"\n'
            'loadmodule "jsonrpcs.so"\nloadmodule "evapi.so"'
        ),
    ],
    ids=["as-shipped", "fail-closed", "limits", "addresses", "loaded"],
)
@pytest.mark.parametrize(
    "includes", [[ADMISSION], [ASKED], [ADMISSION, ASKED]], ids=["pushed", "asked", "both"]
)
def test_kamailio_takes_the_admission_includes(
    tmp_path: Path, includes: list[Path], defines: str, overflow: str
) -> None:
    need_evapi()
    own = tmp_path / "own.cfg"
    named = "\n".join(f'include_file "{include}"' for include in includes)
    calls = "".join(
        f"route({'SIPSIDECAR_ASK' if include == ASKED else 'SIPSIDECAR_ADMISSION'}); "
        for include in includes
    )
    own.write_text(f"""
listen=udp:127.0.0.1:5060
auto_aliases=no
loadmodule "pv.so"
loadmodule "tm.so"
loadmodule "sl.so"
{overflow}
{defines}
{named}
request_route {{ {calls} route(SIPSIDECAR_ADMITTED); }}
route[SIPSIDECAR_ADMITTED] {{ t_relay(); exit; }}
{"route[SIPSIDECAR_OVERFLOW] { t_relay(); exit; }" if overflow else ""}
""")
    checked(own, tmp_path, {})


@pytest.mark.live
def test_a_call_that_was_asked_about_goes_to_the_next_trunk_when_the_first_refuses_it(
    tmp_path: Path,
) -> None:
    need_evapi()
    ip = f"{network()}.2"
    evapi = f"127.0.0.1:{free_port()}"
    host, _, port = evapi.partition(":")
    judge = KamailioAsk("edge", host, int(port), lambda _: Decision(verdict=ADMIT))
    with (
        Phone(ip) as first,
        Phone(ip) as second,
        Phone(ip) as caller,
        minimal_proxy(
            tmp_path,
            first.address,
            second.address,
            defines={"ADMISSION_ASKED": 1, "SIPSIDECAR_EVAPI": f'"{evapi}"'},
        ) as proxy,
        Beside(judge) as beside,
    ):
        until("connection", lambda: beside.do(judge.status).error is None or None, 10)
        until("sign of life", lambda: judge.counters["connected"] or None, 10)
        # In time; then from the failure route, behind a sidecar that stands still.
        for call_id, stuck in (("asked", False), ("stuck", True)):
            if stuck:
                beside.stand_still(4)
            caller.send(proxy.address, "INVITE", f"sip:123@{proxy.address}", call_id)
            invite = first.receive("INVITE")
            assert invite.count("Record-Route: ") == 1
            first.reply(invite, proxy.address, "503 Service Unavailable")
            first.receive("ACK")
            second.reply(second.receive("INVITE"), proxy.address, "200 OK")
            answer = caller.receive("SIP/2.0 200")
            assert f"Call-ID: {call_id}\r\n" in answer
        assert judge.counters["admit"] == 1


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


# ------------------------------------------------------------------------------- with an rtpengine


class Rtpengine:
    """Answers the NG protocol of a media proxy that leaves SDP as it is; keeps what it was asked."""

    def __init__(self, ip: str, statistics: bytes) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((ip, 0))
        self.address = f"{ip}:{self.sock.getsockname()[1]}"
        self.asked: list[tuple[str, str | None]] = []
        """Command and label."""
        self._statistics = statistics
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        host, port = self.address.split(":")
        self.sock.sendto(b"stop", (host, int(port)))
        self._thread.join(10)
        self.sock.close()

    def _answer(self) -> None:
        while True:
            data, address = self.sock.recvfrom(65535)
            if data == b"stop":
                return
            cookie, _, said = data.partition(b" ")
            command = self._string(said, b"7:command")
            answer = b"d6:result4:ponge"
            if command == b"delete":
                answer = self._statistics
            elif command != b"ping":
                sdp = self._string(said, b"3:sdp")
                answer = b"d6:result2:ok3:sdp%d:%se" % (len(sdp), sdp)
            if command != b"ping":
                label = self._string(said, b"5:label").decode() if b"5:label" in said else None
                self.asked.append((command.decode(), label))
            self.sock.sendto(cookie + b" " + answer, address)

    @staticmethod
    def _string(said: bytes, key: bytes) -> bytes:
        length, _, rest = said.partition(key)[2].partition(b":")
        return rest[: int(length)]


def media_config(folder: Path, first: str = "") -> Path:
    """A record-routing proxy that uses the media include as its first lines say."""
    config = folder / "media.cfg"
    config.write_text(f"""
{first}
loadmodule "pv.so"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
include_file "{INCLUDE}"
include_file "{MEDIA}"
children=1
auto_aliases=no
request_route {{
    if ($rm == "OPTIONS") {{
        sl_send_reply("200", "OK");
        exit;
    }}
    if ($tt != $null) {{
        loose_route();
    }} else {{
        record_route();
    }}
    route(SIPSIDECAR_MEDIA);
    if ($rm == "INVITE") {{
        t_on_reply("ANSWER");
    }}
    t_relay();
}}
onreply_route[ANSWER] {{
    route(SIPSIDECAR_MEDIA);
}}
""")
    return config


OWN_RTPENGINE = """
#!define SIPSIDECAR_RTPENGINE_LOADED
loadmodule "rtpengine.so"
modparam("rtpengine", "rtpengine_sock", "udp:127.0.0.1:2223")
"""


@pytest.mark.live
@pytest.mark.parametrize(
    "first",
    [
        "",
        '#!define SIPSIDECAR_RTPENGINE "udp:192.0.2.1:2223"',
        '#!define SIPSIDECAR_MEDIA_FLAGS "replace-origin ICE=remove"',
        OWN_RTPENGINE,
    ],
    ids=["as-shipped", "address", "flags", "loaded"],
)
def test_kamailio_takes_the_media_include(tmp_path: Path, first: str) -> None:
    config = media_config(tmp_path, first + "\nlisten=udp:127.0.0.1:5060")
    command = kamailio_command(config, tmp_path, {}, strings={})
    done = subprocess.run(
        [*command, "-c"], cwd="/", capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr
    assert "CRITICAL" not in done.stderr


@pytest.mark.live
@pytest.mark.parametrize("statistics", ["query_loss5", "query_one_way"])
def test_what_rtpengine_measured_is_logged_at_the_end_of_a_call_by_side(
    tmp_path: Path, statistics: str
) -> None:
    ip = f"{network()}.1"
    listen = f"{ip}:{free_port()}"
    _, _, said = (RTPENGINE / f"{statistics}.bencode").read_bytes().partition(b" ")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector,
        Rtpengine(ip, said) as rtpengine,
        Phone(ip) as caller,
        Phone(ip) as callee,
    ):
        collector.bind((ip, 0))
        collector.settimeout(5)
        proxy = Proxy(listen, collector)
        strings = {
            "SIPSIDECAR_URI": f"sip:{ip}:{collector.getsockname()[1]}",
            "SIPSIDECAR_RTPENGINE": f"udp:{rtpengine.address}",
        }
        config = media_config(tmp_path, f"listen=udp:{listen}")
        command = kamailio_command(config, tmp_path, {}, strings=strings)
        with running("kamailio", command, tmp_path) as program:
            host, _, port = listen.partition(":")
            until("OPTIONS answer", lambda: answers_options(host, int(port)), 20, program)
            uri = f"sip:bob@{callee.address}"
            sdp = "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n"
            sdp += "m=audio 4000 RTP/AVP 8\r\n"
            route, to_tag = f"Route: <sip:{listen};lr>", f";tag={callee.address[-4:]}"
            caller.send(listen, "INVITE", uri, "media", body=sdp)
            callee.reply(callee.receive("INVITE"), listen, "200 OK", sdp)
            caller.receive("SIP/2.0 200")
            caller.send(listen, "ACK", uri, "media", route, to_tag=to_tag)
            callee.receive("ACK")
            caller.send(listen, "INVITE", uri, "media", route, to_tag=to_tag, cseq=2, body=sdp)
            callee.reply(callee.receive("INVITE"), listen, "200 OK", sdp)
            caller.receive("SIP/2.0 200")
            caller.send(listen, "BYE", uri, "media", route, to_tag=to_tag, cseq=3)
            callee.reply(callee.receive("BYE"), listen, "200 OK")
            caller.receive("SIP/2.0 200")
            logged = []
            ended = False
            while not ended:
                packet, start = proxy.mirrored()
                ended = start == "SIP/2.0 200 OK" and b" BYE\r\n" in packet.payload
                if packet.kind is hep.Kind.LOG:
                    logged.append(packet)
    assert rtpengine.asked == [
        ("offer", "caller"),
        ("answer", "callee"),
        ("offer", None),
        ("answer", None),
        ("delete", None),
    ]
    if statistics == "query_one_way":
        assert logged == []  # rtpengine has no MOS without RTCP of both sides
        return
    (packet,) = logged
    assert packet.correlation_id == b"media"
    told = [(a.heard_by, a.mos_cq, a.loss_percent) for a in quality.parse_log(packet.payload)]
    assert told == [("caller", 4.3, 0.0), ("callee", 3.9, 5.0)]
