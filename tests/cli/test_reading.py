import asyncio
import http.server
import json
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asking import certificate
from running import CORPUS, ENVIRONMENT, LIMIT
from sipsidecar import cli, rows
from sipsidecar.calls.events import CallRecord, ConversationRecord, LegRecord, MediaRecord
from sipsidecar.signals.decisions import AdmissionRecord
from sipsidecar.wire import hep, pcap
from stored import (
    NOON,
    admission_row,
    call,
    call_row,
    conversation_row,
    leg_row,
    media_row,
    message,
    store,
)
from terminal import HOSTILE, Row, Run

FILTERS: list[tuple[list[str], Callable[[Row], bool]]] = [
    (["--code", "486"], lambda row: row["final_code"] == 486),
    (["--code", "5xx"], lambda row: row["final_class"] == "5xx"),
    (["--code", "4XX"], lambda row: row["final_class"] == "4xx"),
    (["--from", "1202555"], lambda row: "1202555" in row["from_user"]),
    (["--from", "EVIL"], lambda row: "evil" in row["from_user"]),
    (["--to", "disp1"], lambda row: "disp1" in row["to_user"]),
    (["--to", "DISP"], lambda row: "disp" in row["to_user"]),
    (["--pdd-above", "2"], lambda row: (row["pdd_ms"] or 0) > 2000),
    (["--pdd-above", "500ms"], lambda row: (row["pdd_ms"] or 0) > 500),
    (["--duration-above", "2s"], lambda row: (row["talk_ms"] or 0) > 2000),
    (["--duration-below", "0.5"], lambda row: row["talk_ms"] is not None and row["talk_ms"] < 500),
    (["--flag", "failover"], lambda row: "failover" in row["flags"]),
    (
        ["--flag", "challenged", "--flag", "auth_not_completed"],
        lambda row: {"challenged", "auth_not_completed"} <= set(row["flags"]),
    ),
    (["--call-id", "j503-1"], lambda row: "j503-1" in row["call_id"]),
    (["--call-id", "%"], lambda row: "%" in row["call_id"]),
    (["--answered"], lambda row: row["answered"]),
    (["--failed"], lambda row: not row["answered"]),
    (["--trunk", "none"], lambda row: row["trunk"] == "none"),
    (["--tenant", "none"], lambda row: row["tenant"] == "none"),
    (["--refused"], lambda row: row["final_origin"] == "admission"),
    (["--mos-below", "5"], lambda row: row["mos"] is not None),
    (
        ["--code", "200", "--flag", "failover", "--to", "disp1"],
        lambda row: "disp1" in row["to_user"],
    ),
]


@pytest.mark.parametrize(
    ("arguments", "wanted"), FILTERS, ids=lambda one: " ".join(one) if isinstance(one, list) else ""
)
def test_a_filter_gives_those_calls_and_no_others(
    calls: Callable[..., list[Row]], arguments: list[str], wanted: Callable[[Row], bool]
) -> None:
    everything = calls("--since", "30d", "--limit", "1000")
    assert len(everything) == 10 + 32 + 13 + 15 + 50 + 1
    found = calls("--since", "30d", "--limit", "1000", *arguments)
    assert found == [row for row in everything if wanted(row)]


def test_the_newest_come_first_or_the_highest_of_what_is_asked_for(
    calls: Callable[..., list[Row]],
) -> None:
    started = [row["started_at"] for row in calls("--limit", "1000")]
    assert started == sorted(started, reverse=True)
    for column in ("pdd_ms", "talk_ms", "setup_ms", "retransmissions"):
        rows = calls("--since", "30d", "--sort", column, "--limit", "1000")
        known = [row[column] for row in rows if row[column] is not None]
        assert known == sorted(known, reverse=True)
        assert [row[column] for row in rows][: len(known)] == known


def test_at_most_fifty_are_listed_unless_more_or_less_are_asked_for(
    calls: Callable[..., list[Row]],
) -> None:
    assert len(calls()) == 50
    assert len(calls("--limit", "3")) == 3
    assert calls("--limit", "3") == calls()[:3]


def test_a_json_call_has_the_fields_of_a_record_and_times_in_utc(
    calls: Callable[..., list[Row]],
) -> None:
    (row,) = calls("--call-id", "j503-1-")
    assert set(row) == {"kind", *CallRecord.__struct_fields__, "node_id"}
    assert row["kind"] == "call"
    assert row["node_id"] == 0
    assert row["final_code"] == 200
    assert row["attempts"] == 2
    assert row["flags"] == ["failover"]
    for name in ("started_at", "ended_at", "received_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", row[name])


def test_no_calls_is_exit_code_1_and_a_word(run: Run, dsn: str) -> None:
    said = run("calls", "--dsn", dsn, "--code", "699")
    assert (said.code, said.out, said.err) == (
        1,
        "",
        "no such calls in the last day; see --since\n",
    )
    said = run("calls", "--dsn", dsn, "--code", "699", "--since", "30d")
    assert (said.code, said.out, said.err) == (1, "", "no such calls\n")


def test_a_strangers_words_cannot_move_a_terminal(run: Run, dsn: str) -> None:
    listed = run("calls", "--dsn", dsn, "--from", "evil")
    call_id = f"hostile-{HOSTILE}@x"
    drawn = run("ladder", "--dsn", dsn, call_id)
    unknown = run("ladder", "--dsn", dsn, f"none-{HOSTILE}")
    for said in (listed, drawn, unknown):
        text = said.out + said.err
        assert "evil" in text
        assert all(char.isprintable() for char in text.replace("\n", ""))
    as_json = run("calls", "--dsn", dsn, "--from", "evil", "--json")
    assert as_json.rows[0]["call_id"] == call_id
    assert "\x1b" not in as_json.out


class Page(http.server.BaseHTTPRequestHandler):
    """What answers where a sidecar should."""

    body = b""
    status = 200
    asked: list[str] = []  # noqa: RUF012 -- of the class, as the server makes the objects
    tokens: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.tokens.append(self.headers["Authorization"])
        self.send_response(self.status)
        if 300 <= self.status < 400:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[tuple[type[Page], str]]:
    class Mine(Page):
        asked: list[str] = []  # noqa: RUF012
        tokens: list[str | None] = []  # noqa: RUF012

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Mine, f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_live_calls_are_those_of_the_running_sidecar(
    run: Run, page: tuple[type[Page], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, address = page
    row = {"state": "ringing", "call_id": "a@b", "started_at": 1_795_000_000_123_456,
           "from_user": HOSTILE, "to_user": "bob", "src_ip": "192.0.2.1", "dst_ip": "192.0.2.2",
           "pdd_ms": 12.345}  # fmt: skip
    served.body = json.dumps({"live": {}, "calls": [row]}).encode()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not for what runs here
    said = run("calls", "--live", "--http", address, "--limit", "7")
    assert said.code == 0
    heading, line = said.out.splitlines()
    assert heading.split() == [
        "state",
        "started_at",
        "call_id",
        "from_user",
        "to_user",
        "src_ip",
        "pdd_ms",
    ]
    assert line.startswith("ringing  2026-11-18 ")
    assert line.endswith(" 12")
    assert line.isprintable()
    assert served.asked == ["/v1/calls/live?limit=7"]
    assert run("calls", "--live", "--http", address, "--json").rows == [
        {"kind": "call", **row, "started_at": "2026-11-18T11:06:40.123456Z"}
    ]
    served.body = b'{"live": {}, "calls": []}'
    assert run("calls", "--live", "--http", address).code == 1


READ, OPERATE = "read-read-read-00", "operate-operate-0"


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, None),
        ({"READ": READ}, READ),
        ({"OPERATE": OPERATE}, OPERATE),
        ({"READ": READ, "OPERATE": OPERATE}, READ),
        ({"READ": "pässwörter-sind-gut"}, "pässwörter-sind-gut"),
    ],
)
def test_a_token_that_is_set_is_sent_and_never_printed(
    run: Run,
    page: tuple[type[Page], str],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    sent: str | None,
) -> None:
    served, address = page
    for role, token in settings.items():
        monkeypatch.setenv(f"SIPSIDECAR_HTTP__{role}_TOKENS", token)
    served.body = b'{"live": {}, "calls": []}'
    said = run("calls", "--live", "--http", address)
    (given,) = served.tokens
    assert given == (sent and f"Bearer {sent}".encode().decode("latin-1"))
    served.body, served.status = b"no", 401
    refused = run("calls", "--live", "--http", address)
    assert sent is None or sent not in said.out + said.err + refused.err


def test_a_token_does_not_follow_a_redirect(
    run: Run, page: tuple[type[Page], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, address = page
    served.status = 302
    monkeypatch.setenv("SIPSIDECAR_HTTP__READ_TOKENS", READ)
    assert run("calls", "--live", "--http", address).code == 2
    assert served.tokens[0] == f"Bearer {READ}"
    assert set(served.tokens[1:]) <= {None}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error": "x"}', "answers 401: set http.read_tokens to a token of that sidecar"),
        (421, b'{"error": "add it to http.hosts"}', "answers 421: add it to http.hosts"),
        (403, b'{"error": "\\u001b[31m"}', "answers 403: \\x1b[31m"),
        (404, b"<html>", "answers 404: is it a sidecar? name its --http"),
        (500, b"[]", "answers 500: is it a sidecar? name its --http"),
    ],
)
def test_a_sidecar_that_refuses_is_told_apart_from_none(
    run: Run, page: tuple[type[Page], str], status: int, body: bytes, words: str
) -> None:
    served, address = page
    served.body, served.status = body, status
    line = run("calls", "--live", "--http", address).refusal
    assert line.startswith(f"sipsidecar: http://{address} {words}")


@pytest.fixture
def secure_page(
    page: tuple[type[Page], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, tuple[str, str]]]:
    """A sidecar's page over TLS, its address, and the certificate and key it shows."""
    served, _ = page
    served.body = b'{"live": {}, "calls": [{"call_id": "a@b", "started_at": 1795000000123456}]}'
    pair = certificate(tmp_path / "tls", "mon.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    monkeypatch.setenv("SIPSIDECAR_HTTP__TLS_CERTIFICATE", pair[0])
    monkeypatch.setenv("SIPSIDECAR_HTTP__TLS_KEY", pair[1])

    class Server(http.server.ThreadingHTTPServer):
        def get_request(self) -> tuple[socket.socket, object]:
            sock, address = super().get_request()
            return context.wrap_socket(sock, server_side=True), address

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), served) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", pair
        server.shutdown()
        thread.join()


def test_live_calls_come_over_tls_from_who_shows_the_configured_certificate(
    run: Run,
    secure_page: tuple[str, tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, _ = secure_page
    said = run("calls", "--live", "--http", address)
    assert (said.code, said.err) == (0, "")
    other = certificate(tmp_path / "other", "mon.example")
    monkeypatch.setenv("SIPSIDECAR_HTTP__TLS_CERTIFICATE", other[0])
    line = run("calls", "--live", "--http", address).refusal
    assert f"no sidecar answers at https://{address}" in line
    assert f"not {other[0]} as it is now" in line


@pytest.mark.parametrize("text", [None, "", "no PEM", "\N{SNOWMAN}"])
def test_a_certificate_that_cannot_be_read_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    path = tmp_path / "cert.pem"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("SIPSIDECAR_HTTP__TLS_CERTIFICATE", str(path))
    monkeypatch.setenv("SIPSIDECAR_HTTP__TLS_KEY", str(path))
    line = run("calls", "--live", "--http", "127.0.0.1:1").refusal
    why = "No such file or directory" if text is None else "holds no certificate in PEM form"
    assert line == f"sipsidecar: http.tls_certificate: {path}: {why}"


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"calls": 5}', b'{"calls": [5]}', b"\xff", b""]
)
def test_something_else_at_the_sidecars_address_is_said_to_be_no_sidecar(
    run: Run, page: tuple[type[Page], str], body: bytes
) -> None:
    served, address = page
    served.body = body
    line = run("calls", "--live", "--http", address).refusal
    assert f"http://{address} is no sidecar" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 -- asked, not bound
def test_no_sidecar_at_all_is_said_with_what_to_do(
    run: Run, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIPSIDECAR_HTTP__INSECURE", "true")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        line = run("calls", "--live", "--http", f"{host}:{port}").refusal
    address = f"127.0.0.1:{port}"
    assert line == (
        f"sipsidecar: no sidecar answers at http://{address} (Connection refused): "
        "start `sipsidecar run`, or name its --http"
    )


def test_a_ladder_has_every_message_of_every_hop(run: Run, dsn: str) -> None:
    said = run("ladder", "--dsn", dsn, "j503-1-10439@127.10.0.9")
    assert (said.code, said.err) == (0, "")
    for word in ("16 messages", "INVITE sip:disp1@kam.test", "100 trying", "503 Service Unavail",
                 "180 Ringing", "200 OK", "ACK ", "BYE ", "SDP PCMU", "127.10.0.31:5060"):  # fmt: skip
        assert word in said.out
    assert "\x1b" not in said.out


def test_a_part_of_a_call_id_will_do_when_one_call_has_it(run: Run, dsn: str) -> None:
    assert "16 messages" in run("ladder", "--dsn", dsn, "j503-2-").out
    many = run("ladder", "--dsn", dsn, "j503").refusal
    assert "10 calls have that in their Call-ID, such as j503-" in many
    none = run("ladder", "--dsn", dsn, "nobody").refusal
    assert "nobody: no messages of such a call; `sipsidecar calls` lists calls" in none


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_a_ladder_keeps_to_its_width(run: Run, dsn: str, width: int) -> None:
    said = run("ladder", "--dsn", dsn, "j503-1-10439@127.10.0.9", "--width", str(width))
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= width


def test_a_ladder_as_json_is_a_line_per_message(run: Run, dsn: str) -> None:
    rows = run("ladder", "--dsn", dsn, "j503-1-10439@127.10.0.9", "--json").rows
    assert len(rows) == 16
    assert rows[0]["label"] == "INVITE sip:disp1@kam.test"
    assert rows[0]["notes"] == ["SDP PCMU"]
    assert rows[0]["source"] == "127.10.0.9:5060"
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert "503 Service Unavailable" in [row["label"] for row in rows]


def test_registrations_have_ladders_too(run: Run, dsn: str) -> None:
    said = run("ladder", "--dsn", dsn, "hreg-1-11076@127.10.0.9")
    assert "REGISTER sip:kam.test" in said.out
    assert "401 Unauthorized" in said.out


def test_a_pcap_holds_the_messages_as_they_were(run: Run, dsn: str, tmp_path: Path) -> None:
    path = tmp_path / "call.pcap"
    said = run("pcap", "--dsn", dsn, "j503-1-10439@127.10.0.9", "-o", path)
    assert (said.code, said.out) == (0, "")
    assert said.err == f"16 messages to {path}\n"
    with path.open("rb") as file:
        written = [one.payload for one in pcap.Reader(file)]
    with (CORPUS / "kamailio/j_failover.pcap").open("rb") as file:
        heps = [hep.decode(one.payload) for one in pcap.Reader(file)]
    sent = [one.payload for one in heps if b"j503-1-10439@127.10.0.9" in one.payload]
    assert Counter(written) == Counter(sent)


def test_a_pcap_can_be_replayed(run: Run, dsn: str, tmp_path: Path) -> None:
    path = tmp_path / "call.pcap"
    run("pcap", "--dsn", dsn, "j503-1-10439@127.10.0.9", "-o", path)
    call, first, second, summary = run("replay", "--json", path).rows
    assert (call["final_code"], call["released_by"]) == (200, "caller")
    assert [first["final_code"], second["final_code"]] == [503, 200]
    assert summary["messages"] == 16


def test_wireshark_reads_a_pcap(run: Run, dsn: str, tmp_path: Path) -> None:
    tshark = shutil.which("tshark")
    if not tshark:
        pytest.skip("tshark is not installed (Debian: apt-get install tshark)")
    path = tmp_path / "call.pcap"
    run("pcap", "--dsn", dsn, "j503-1-10439@127.10.0.9", "-o", path)
    fields = ["-e", "sip.Method", "-e", "sip.Status-Code", "-e", "_ws.malformed"]
    read = subprocess.run(
        [tshark, "-r", path, "-o", "udp.check_checksum:TRUE", "-T", "fields", *fields],
        capture_output=True, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    found = Counter(read.stdout.split())
    assert found == {"INVITE": 3, "100": 1, "503": 1, "180": 2, "200": 4, "ACK": 3, "BYE": 2}


def test_a_pcap_to_standard_output_is_the_same_file(dsn: str, tmp_path: Path) -> None:
    asked = ("pcap", "--dsn", dsn, "j503-1-10439@127.10.0.9", "-o")
    piped = subprocess.run(
        [sys.executable, "-m", "sipsidecar", *asked, "-"],
        env=ENVIRONMENT, capture_output=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    assert cli.main([*asked, str(tmp_path / "file.pcap")]) == 0
    assert piped.stdout == (tmp_path / "file.pcap").read_bytes()
    assert piped.stderr == b""


def test_a_pcap_that_cannot_be_written_is_one_line(run: Run, dsn: str, tmp_path: Path) -> None:
    path = tmp_path / "absent" / "call.pcap"
    asked = ("pcap", "--dsn", dsn, "j503-1-10439@127.10.0.9", "-o", path)
    assert run(*asked).refusal == f"sipsidecar: {path}: No such file or directory"


def test_the_dsn_that_was_given_is_printed(run: Run) -> None:
    dsn = "postgresql://me:secret@db.example.com/calls"
    assert run("dsn", "--dsn", dsn).out == f"{dsn}\n"


# --- media -------------------------------------------------------------------------------------

HEARD = "heard@pbx"
OFFER = "v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 30000 RTP/AVP 0 96\r\na=rtpmap:96 opus/48000/2\r\n"
ANSWER = "v=0\r\nc=IN IP4 192.0.2.2\r\nm=audio 40000 RTP/AVP {} 101\r\na=rtpmap:101 telephone-event/8000\r\n"


def sip_message(start: str, cseq: str, body: str = "", more: str = "") -> bytes:
    kind = "Content-Type: application/sdp\r\n" if body else ""
    return (
        f"{start}\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK{cseq}\r\n"
        f"From: <sip:a@x>;tag=a\r\nTo: <sip:b@x>\r\nCall-ID: {HEARD}\r\nCSeq: {cseq}\r\n"
        f"{kind}{more}Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def block(fraction: int, lost: int, jitter: int) -> bytes:
    return struct.pack(">IIIIII", 7, fraction << 24 | lost & 0xFFFFFF, 5000, jitter, 0, 0)


def rtcp_packet(kind: int, *blocks: bytes) -> bytes:
    body = struct.pack(">I", 9) + (bytes(20) if kind == 200 else b"") + b"".join(blocks)
    return bytes((0x80 | len(blocks), kind)) + struct.pack(">H", len(body) // 4) + body


VOIP_METRICS = struct.pack(
    ">BBHI BB BB HH HH bbBB BBBB BBHHH",
    7, 0, 8, 7, 26, 13, 0, 0, 0, 0, 40, 10, 0, 0, 0, 16, 80, 127, 41, 39, 0, 0, 40, 60, 200,
)  # fmt: skip
JSON_REPORT = json.dumps(
    {
        "ssrc": 9, "type": 201, "report_count": 1,
        "report_blocks": [{
            "source_ssrc": 7, "fraction_lost": 15, "packets_lost": 12, "highest_seq_no": 5000,
            "ia_jitter": 193, "lsr": 0, "dlsr": 0,
        }],
    }
).encode()  # fmt: skip


def message_rows(answer: str, *reports: tuple[int, bytes]) -> list[bytes]:
    """An answered call with its SDP, and packets of other kinds, a second apart."""
    payloads = [
        (1, sip_message("INVITE sip:b@x SIP/2.0", "1 INVITE", OFFER)),
        (1, sip_message("SIP/2.0 200 OK", "1 INVITE", answer)),
        *reports,
        (1, sip_message("BYE sip:b@x SIP/2.0", "2 BYE", more="X-RTP-Stat: CS=0;PS=1;PR=1\r\n")),
    ]
    return [
        message(HEARD, n, captured_at=NOON + n * 1_000_000, kind=kind, payload=payload)
        for n, (kind, payload) in enumerate(payloads)
    ]


def store_heard(dsn: str, messages: list[bytes], **tables: list[bytes]) -> None:
    async def write() -> None:
        async with store(dsn) as opened:
            await opened.write(opened.first_sequence, {"messages": messages, **tables})

    asyncio.run(write())


def rungs(run: Run, dsn: str) -> list[tuple[str, list[str]]]:
    rows = run("ladder", "--dsn", dsn, HEARD, "--json").rows
    assert all("kind" not in row for row in rows)
    return [(row["label"], row["notes"]) for row in rows]


def test_reports_stand_in_the_ladder_with_their_figures(run: Run, database: str) -> None:
    reports = [
        (5, JSON_REPORT),
        (5, rtcp_packet(200, block(0, -1, 0))),
        (5, rtcp_packet(201, block(128, 400, 80), block(0, 0, 8))),
        (5, rtcp_packet(203)),
        (5, struct.pack(">BBHI", 0x80, 207, 10, 9) + VOIP_METRICS),
        (5, b"{}"),
        (5, b"\x81\xc8garbage"),
        (61, b"abc d7:command4:pinge"),
        (100, b"some log line \x1b[31m"),
        (35, b"NLR=1.0"),
        (99, b'{"mos": 4.2}'),
        (77, b"?"),
    ]
    store_heard(database, message_rows(ANSWER.format(0), *reports))
    invite, ok, *others, bye = rungs(run, database)
    assert invite == ("INVITE sip:b@x", ["SDP PCMU opus"])
    assert ok == ("200 OK", ["SDP PCMU"])
    assert bye == ("BYE sip:b@x", ["X-RTP-Stat"])
    assert others[:3] == [
        ("RTCP RR", ["loss 5.9 % (12), jitter 24.1 ms"]),
        ("RTCP SR", ["loss 0.0 % (-1), jitter 0.0 ms"]),
        ("RTCP RR", ["loss 50.0 % (400), jitter 10.0 ms", "loss 0.0 % (0), jitter 1.0 ms"]),
    ]
    assert others[4] == (
        "RTCP XR",
        ["XR loss 10.2 %, discarded 5.1 %, MOS-LQ 4.1, MOS-CQ 3.9, R 80"],
    )
    labels = [label for label, _ in others]
    assert {labels[3], *labels[5:7]} == {"RTCP"}
    assert others[5][1]  # why it is none
    assert labels[7:] == ["rtpengine NG", "log", "VQ report", "QoS report", "HEP type 77"]
    drawn = run("ladder", "--dsn", database, HEARD, "--width", "150").out
    assert "RTCP RR" in drawn
    assert "loss 5.9 % (12), jitter 24.1 ms" in drawn
    assert "\x1b" not in drawn


def test_jitter_is_in_units_where_sdp_does_not_agree_on_a_clock(run: Run, database: str) -> None:
    messages = message_rows(ANSWER.format(0), (5, JSON_REPORT))
    other = sip_message("SIP/2.0 200 OK", "1 INVITE", OFFER.replace("0 96", "96"))
    messages.append(message(HEARD, 99, captured_at=NOON + 99, payload=other))
    store_heard(database, messages)
    assert ("RTCP RR", ["loss 5.9 % (12), jitter 193 units"]) in rungs(run, database)


def test_the_clock_of_jitter_is_that_of_the_answer_and_not_of_the_offer(
    run: Run, database: str
) -> None:
    opus = ANSWER.format(96) + "a=rtpmap:96 opus/48000/2\r\n"
    store_heard(database, message_rows(opus, (5, JSON_REPORT)))
    assert ("RTCP RR", ["loss 5.9 % (12), jitter 4.0 ms"]) in rungs(run, database)


def test_a_publish_of_voice_quality_is_marked(run: Run, database: str) -> None:
    publish = sip_message("PUBLISH sip:b@x SIP/2.0", "3 PUBLISH", more="Event: vq-rtcpxr\r\n")
    store_heard(database, message_rows(ANSWER.format(0), (1, publish)))
    assert ("PUBLISH sip:b@x", ["VQ report"]) in rungs(run, database)


EVIDENCE = {
    "one_way_audio": [
        {
            "direction": "callee_to_caller",
            "sent": 1500,
            "heard": 0,
            "seconds": None,
            "other_direction": {"sends": True, "packets": 9.0},
        }
    ],
    "low_mos": [
        {"direction": "caller_to_callee", "mos": 2.98765, "hosts": ["a", HOSTILE]},
        {"direction": "callee_to_caller", "mos": 3.0},
    ],
}


@pytest.fixture
def heard(database: str) -> str:
    """The DSN of a database with a call that has media and findings, one that has none of it."""
    now = time.time_ns() // 1000
    record = call(
        HEARD, received_at=now, started_at=now, mos=2.98765, mos_scale="nb",
        mos_direction="caller_to_callee", findings=("low_mos", "no_media", "one_way_audio"),
        evidence=json.dumps(EVIDENCE),
    )  # fmt: skip
    plain = call_row("plain@pbx", received_at=now, started_at=now)
    better = call_row("better@pbx", received_at=now, started_at=now, mos=4.4, mos_scale="wb")
    some = [
        media_row(
            HEARD, mos=2.98765, mos_scale="nb", mos_kind="cq", mos_grade="A", loss_percent=5.456,
            jitter_ms=24.06, rtt_ms=80.4, codec="PCMU", source="rtcp", reports=9,
            findings=("low_mos",),
        ),
        media_row(HEARD, "callee_to_caller", unrated="no_packets", codec=HOSTILE),
    ]  # fmt: skip
    store_heard(
        database,
        message_rows(ANSWER.format(0), (5, JSON_REPORT)),
        calls=[rows.encode_call(record, 1), plain, better],
        media=some,
    )
    return database


def test_under_a_ladder_stands_the_media_of_each_direction_and_what_is_wrong_with_it(
    run: Run, heard: str
) -> None:
    said = run("ladder", "--dsn", heard, HEARD, "--width", "160")
    drawing, told = said.out.split("\n\n")[-2:]
    assert "BYE sip:b@x" in drawing
    heading, first, second, *findings = told.splitlines()
    assert heading.split() == [
        "stream", "codec", "mos", "mos_kind", "mos_scale", "mos_grade", "unrated", "loss_percent",
        "jitter_ms", "rtt_ms", "reports", "source", "findings",
    ]  # fmt: skip
    assert first.split() == [
        "caller_to_callee", "PCMU", "2.99", "cq", "nb", "A", "-", "5.46", "24.1", "80", "9", "rtcp",
        "low_mos",
    ]  # fmt: skip
    assert second.startswith("callee_to_caller  evil\\x1b[31m")
    assert findings[0].startswith("low_mos caller_to_callee: mos 2.988, hosts a, evil\\x1b")
    assert findings[1:] == [
        "low_mos callee_to_caller: mos 3",
        "no_media",
        "one_way_audio callee_to_caller: sent 1500, heard 0, other_direction (sends yes, packets 9)",
    ]
    assert all(char.isprintable() for char in said.out.replace("\n", ""))
    narrow = run("ladder", "--dsn", heard, HEARD, "--width", "60").out
    assert max(map(len, narrow.splitlines())) <= 60
    piped = run("ladder", "--dsn", heard, HEARD).out
    assert piped.split("\n\n")[-1] == told
    assert all(char.isprintable() for char in piped.replace("\n", ""))


def test_media_follows_the_messages_of_a_ladder_as_json(run: Run, heard: str) -> None:
    found = run("ladder", "--dsn", heard, HEARD, "--json").rows
    assert [row.get("kind") for row in found] == [None] * 4 + ["media"] * 2
    assert set(found[-1]) == {"kind", *MediaRecord.__struct_fields__, "node_id"}
    assert (found[4]["stream"], found[4]["mos"]) == ("caller_to_callee", 2.98765)
    assert found[4]["ended_at"].endswith("Z")


def test_media_that_outlives_its_messages_has_a_ladder_without_any(run: Run, database: str) -> None:
    store_heard(database, [], media=[media_row(HEARD, mos=4.2)])
    said = run("ladder", "--dsn", database, HEARD)
    assert said.code == 0
    assert said.out.startswith("no messages\n\nstream")
    assert "no messages of such a call" in run("pcap", "--dsn", database, HEARD, "-o", "x").refusal


def test_calls_are_found_by_what_is_wrong_with_their_media(run: Run, heard: str) -> None:
    def found(*asked: str) -> list[str]:
        said = run("calls", "--dsn", heard, "--json", *asked)
        return [row["call_id"] for row in said.rows]

    assert found("--finding", "one_way_audio") == [HEARD]
    assert found("--finding", "one_way_audio", "--finding", "low_mos") == [HEARD]
    assert found("--finding", "one_way_audio", "--finding", "high_loss") == []
    assert found("--mos-below", "3.5") == [HEARD]
    assert found("--mos-below", "4.5", "--sort", "mos") == [HEARD, "better@pbx"]
    assert found("--sort", "mos")[2] == "plain@pbx"


def test_evidence_is_an_object_in_json(run: Run, heard: str) -> None:
    (row,) = run("calls", "--dsn", heard, "--json", "--finding", "low_mos").rows
    assert row["evidence"] == EVIDENCE
    assert row["findings"] == ["low_mos", "no_media", "one_way_audio"]
    assert (row["mos"], row["mos_scale"]) == (2.98765, "nb")


def test_a_table_of_calls_shows_mos_and_findings_when_there_are_any(run: Run, heard: str) -> None:
    heading, *lines = run("calls", "--dsn", heard, "--sort", "mos").out.splitlines()
    assert heading.split()[-3:] == ["flags", "mos", "findings"]
    assert lines[0].endswith("2.99  low_mos,no_media,one_way_audio")
    assert lines[1].endswith("4.40  -")
    assert lines[2].endswith(" -  -")
    plain = run("calls", "--dsn", heard, "--call-id", "plain").out.splitlines()
    assert plain[0].split()[-1] == "flags"


def test_live_calls_take_no_finding_as_filter(run: Run) -> None:
    assert "takes no filter" in run("calls", "--live", "--finding", "low_mos").refusal


# --- both legs of a FreeSWITCH -----------------------------------------------------------------

CALLER, PROXY, SWITCH, TRUNK = (f"192.0.2.{n}" for n in (1, 2, 3, 4))
A_LEG, B_LEG = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002"


def hop(call_id: str, at: int, way: tuple[str, str], start: str, cseq: str = "1 INVITE") -> bytes:
    """One message of a leg, `at` milliseconds after noon."""
    payload = (
        f"{start}\r\nVia: SIP/2.0/UDP {way[0]};branch=z9hG4bK{cseq[0]}\r\nFrom: <sip:a@x>;tag=a\r\n"
        f"To: <sip:b@x>\r\nCall-ID: {call_id}\r\nCSeq: {cseq}\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    ends = {"src_ip": way[0], "dst_ip": way[1]}
    return message(call_id, at, captured_at=NOON + 1000 * at, payload=payload, **ends)


def back(way: tuple[str, str]) -> tuple[str, str]:
    return way[1], way[0]


IN, NEAR, OUT = (CALLER, PROXY), (PROXY, SWITCH), (SWITCH, TRUNK)
BRIDGED = [
    hop("a@pbx", 0, IN, "INVITE sip:b@x SIP/2.0"),
    hop("a@pbx", 1, NEAR, "INVITE sip:b@x SIP/2.0"),
    hop("b@fs", 2, OUT, "INVITE sip:b@trunk SIP/2.0"),
    hop("b@fs", 3, back(OUT), "SIP/2.0 407 Proxy Authentication Required"),
    hop("b@fs", 4, OUT, "INVITE sip:b@trunk SIP/2.0", "2 INVITE"),
    hop("b@fs", 5, back(OUT), "SIP/2.0 200 OK", "2 INVITE"),
    hop("a@pbx", 6, back(NEAR), "SIP/2.0 200 OK"),
    hop("a@pbx", 7, back(IN), "SIP/2.0 200 OK"),
    hop("a@pbx", 8, IN, "BYE sip:b@x SIP/2.0", "2 BYE"),
    hop("a@pbx", 9, NEAR, "BYE sip:b@x SIP/2.0", "2 BYE"),
    hop("a@pbx", 10, back(NEAR), "SIP/2.0 200 OK", "2 BYE"),
    hop("b@fs", 11, OUT, "BYE sip:b@trunk SIP/2.0", "3 BYE"),
]
TIMES = {"answered": True, "answered_at": NOON + 5000, "ended_at": NOON + 11_000}


@pytest.fixture
def bridged(database: str) -> str:
    """The DSN of a database with a call over a proxy and a FreeSWITCH, and a stranger's call."""
    a_leg = leg_row(
        A_LEG, "a@pbx", conversation=A_LEG, direction="inbound", other_leg=B_LEG, sip_code=200,
        hangup_cause="NORMAL_CLEARING", released_by="peer", network_ip=PROXY, network_port=5060,
        caller=HOSTILE, **TIMES,
    )  # fmt: skip
    b_leg = leg_row(
        B_LEG, "b@fs", conversation=A_LEG, direction="outbound", created_at=NOON + 1,
        gateway="trunk-a", network_ip=TRUNK, network_port=5060, **TIMES,
    )  # fmt: skip
    store_heard(
        database,
        [*BRIDGED, hop("other@pbx", 5, IN, "INVITE sip:c@x SIP/2.0")],
        calls=[call_row("a@pbx"), call_row("other@pbx")],
        legs=[a_leg, b_leg],
        conversations=[conversation_row(A_LEG, legs=(A_LEG, B_LEG), call_ids=("a@pbx", "b@fs"))],
        media=[media_row("a@pbx", mos=4.2), media_row("b@fs", mos=3.1)],
    )
    return database


@pytest.mark.parametrize("name", ["a@pbx", "b@fs", A_LEG, B_LEG])
def test_a_ladder_has_both_legs_whichever_is_named(run: Run, bridged: str, name: str) -> None:
    said = run("ladder", "--dsn", bridged, name, "--width", "160")
    assert (said.code, said.err) == (0, "")
    assert "12 messages" in said.out
    for address in (CALLER, PROXY, SWITCH, TRUNK):
        assert f"{address}:5060" in said.out
    assert "sip:c@x" not in said.out
    assert all(char.isprintable() for char in said.out.replace("\n", ""))
    assert max(map(len, said.out.splitlines())) <= 160


def test_what_freeswitch_says_of_a_leg_stands_beside_the_messages_at_its_side(
    run: Run, bridged: str
) -> None:
    rows = run("ladder", "--dsn", bridged, "a@pbx", "--json").rows
    rungs = [row for row in rows if "kind" not in row]
    assert [row["call_id"] for row in rungs].count("b@fs") == 5
    noted = {(n, note) for n, row in enumerate(rungs) for note in row["notes"]}
    assert noted == {
        (1, "ESL inbound leg aaaaaaaa"), (6, "ESL answered"),
        (9, "ESL NORMAL_CLEARING by peer"),
        (2, "ESL outbound leg bbbbbbbb"), (5, "ESL answered"), (11, "ESL ended"),
    }  # fmt: skip
    said = run("ladder", "--dsn", bridged, "a@pbx", "--width", "160").out
    assert "- ESL NORMAL_CLEARING by peer -" in said


def test_legs_and_conversations_follow_the_messages_and_media_of_a_ladder_as_json(
    run: Run, bridged: str
) -> None:
    rows = run("ladder", "--dsn", bridged, "b@fs", "--json").rows
    kinds = [row.get("kind") for row in rows]
    assert kinds == [None] * 12 + ["media"] * 2 + ["leg"] * 2 + ["conversation"]
    assert set(rows[-2]) == {"kind", *LegRecord.__struct_fields__, "node_id"}
    assert set(rows[-1]) == {"kind", *ConversationRecord.__struct_fields__, "call_id", "node_id"}
    assert [row["uuid"] for row in rows[-3:-1]] == [A_LEG, B_LEG]
    assert rows[-1]["legs"] == [A_LEG, B_LEG]


@pytest.mark.parametrize("name", ["b@fs", B_LEG])
def test_one_leg_can_be_drawn_alone(run: Run, bridged: str, name: str) -> None:
    rows = run("ladder", "--dsn", bridged, name, "--one-leg", "--json").rows
    assert {row["call_id"] for row in rows if "kind" not in row} == {"b@fs"}
    assert [row["uuid"] for row in rows if row.get("kind") == "leg"] == [B_LEG]
    said = run("ladder", "--dsn", bridged, name, "--one-leg", "--width", "120").out
    assert "5 messages" in said
    assert CALLER not in said


def test_under_a_ladder_stand_its_legs_and_the_media_of_each(run: Run, bridged: str) -> None:
    said = run("ladder", "--dsn", bridged, "a@pbx", "--width", "200").out
    media, legs = (part.splitlines() for part in said.split("\n\n")[-2:])
    assert media[0].split()[:2] == ["call_id", "stream"]
    assert [line.split()[0] for line in media[1:]] == ["a@pbx", "b@fs"]
    assert legs[0].split()[:4] == ["uuid", "call_id", "direction", "created_at"]
    assert legs[1].split()[:3] == [A_LEG, "a@pbx", "inbound"]
    assert legs[2].split()[:3] == [B_LEG, "b@fs", "outbound"]


def test_a_refused_leg_ends_with_its_refusal_and_not_with_a_challenge(
    run: Run, database: str
) -> None:
    store_heard(
        database,
        [
            hop("b@fs", 2, OUT, "INVITE sip:b@trunk SIP/2.0"),
            hop("b@fs", 3, back(OUT), "SIP/2.0 401 Unauthorized"),
            hop("b@fs", 5, back(OUT), "SIP/2.0 486 Busy Here", "2 INVITE"),
        ],
        legs=[leg_row(B_LEG, "b@fs", hangup_cause="USER_BUSY", ended_at=NOON + 9)],
        conversations=[conversation_row(B_LEG, legs=(B_LEG,), call_ids=("b@fs",))],
    )
    rows = run("ladder", "--dsn", database, "b@fs", "--json").rows
    assert [row["notes"] for row in rows if "kind" not in row] == [
        ["ESL new leg bbbbbbbb"], [], ["ESL USER_BUSY"],
    ]  # fmt: skip


def test_legs_of_which_no_sip_was_seen_have_a_ladder_without_any(run: Run, database: str) -> None:
    store_heard(
        database,
        [],
        legs=[leg_row(A_LEG, "", caller="44201"), leg_row(B_LEG, "b@fs", conversation=A_LEG)],
        conversations=[conversation_row(A_LEG, legs=(A_LEG, B_LEG))],
    )
    for name in (A_LEG, "b@fs"):
        said = run("ladder", "--dsn", database, name)
        assert said.code == 0
        assert said.out.startswith("no messages\n\nuuid")
        assert "44201" in said.out
    assert "no messages" in run("ladder", "--dsn", database, A_LEG, "--one-leg").refusal
    assert "no messages" in run("ladder", "--dsn", database, "").refusal


def test_a_pcap_is_of_one_call_id(run: Run, bridged: str, tmp_path: Path) -> None:
    said = run("pcap", "--dsn", bridged, "b@fs", "-o", tmp_path / "b.pcap")
    assert said.err.startswith("5 messages to")


# --- what was decided ---------------------------------------------------------------------------


def refusal(call_id: str, at: int, **changes: object) -> bytes:
    """A decision `at` milliseconds after noon, by a clock that is an hour ahead of the agents'."""
    return admission_row(call_id, received_at=NOON + HOUR + 1000 * at, **changes)


HOUR = 3_600_000_000
REFUSED = [
    hop("a@pbx", 0, IN, "INVITE sip:b@x SIP/2.0"),
    hop("a@pbx", 20, back(IN), "SIP/2.0 486 Busy Here"),
    hop("a@pbx", 30, IN, "ACK sip:b@x SIP/2.0", "1 ACK"),
]


def received_later(messages: list[bytes]) -> list[bytes]:
    """The same messages, received by a clock that is an hour ahead."""
    fields = 2 + 4  # how many columns, length of the first: received_at
    stamp = struct.pack(">q", NOON + HOUR - 946_684_800_000_000)
    return [row[:fields] + stamp + row[fields + 8 :] for row in messages]


@pytest.fixture
def decided(database: str) -> str:
    """The DSN of a database with a refused call, one that overflowed, and ones in shadow."""
    shadow = {"verdict": "admit", "code": None, "shadow": ("acme-asr",), "rule": "acme-asr"}
    now = time.time_ns() // 1000
    labels = {"received_at": now, "started_at": now, "trunk": "acme", "direction": "in"}
    store_heard(
        database,
        received_later(REFUSED),
        admissions=[
            refusal("a@pbx", 15),
            refusal("over@pbx", 0, verdict="overflow", route=HOSTILE, code=None),
            refusal("shadow@pbx", 0, measure="asr_percent", value=31.5, **shadow),
            refusal("emergency@pbx", 0, verdict="admit", code=None, exempt="emergency"),
            refusal("", 0),
        ],
        calls=[
            call_row("a@pbx", final_origin="admission", tenant="t1", region="eu", **labels),
            call_row("other@pbx", final_origin="callee", tenant="t2", region="us", **labels),
            call_row("plain@pbx", received_at=now, started_at=now),
        ],
    )
    return database


def test_a_ladder_shows_why_a_call_was_refused_between_its_invite_and_the_refusal(
    run: Run, decided: str
) -> None:
    said = run("ladder", "--dsn", decided, "a@pbx", "--width", "100")
    assert (said.code, said.err) == (0, "")
    lines = [line for line in said.out.splitlines() if line.lstrip().startswith("+")]
    assert [line.split()[0] for line in lines] == ["+0.000", "+0.015", "+0.020", "+0.030"]
    assert lines[1].strip() == (
        "+0.015  -- refused 486 by rule acme-calls: calls 50 of 50 (trunk acme), asked by evapi --"
    )


def test_a_decision_about_a_call_follows_its_messages_as_json(run: Run, decided: str) -> None:
    found = run("ladder", "--dsn", decided, "a@pbx", "--json").rows
    assert [row.get("kind") for row in found] == [None] * 3 + ["admission"]
    assert set(found[-1]) == {"kind", *AdmissionRecord.__struct_fields__, "node_id"}
    assert (found[-1]["rule"], found[-1]["value"], found[-1]["code"]) == ("acme-calls", 50.0, 486)
    assert found[-1]["received_at"] == "2026-07-20T13:00:00.015000Z"


@pytest.mark.parametrize(
    ("call_id", "words"),
    [
        ("over@pbx", "-- sent to evil\\x1b[31m"),
        ("shadow@pbx", "-- would be refused by shadow rule acme-asr: asr_percent 31.5, limit 50 "),
        ("emergency@pbx", "-- let in as emergency in spite of rule acme-calls: calls 50 of 50 "),
    ],
)
def test_a_decision_about_a_call_that_nobody_captured_is_a_ladder_of_its_own(
    run: Run, decided: str, call_id: str, words: str
) -> None:
    said = run("ladder", "--dsn", decided, call_id)
    assert said.code == 0
    title, _, line = said.out.splitlines()
    assert title.endswith(", no messages")
    assert f"+0.000  {words}" in line
    assert line.isprintable()


def test_decisions_of_no_call_belong_to_no_ladder(run: Run, decided: str) -> None:
    assert "no messages" in run("ladder", "--dsn", decided, "").refusal
    assert "no messages" in run("ladder", "--dsn", decided, "nobody@pbx").refusal


def test_decisions_about_each_leg_stand_in_one_ladder(run: Run, bridged: str) -> None:
    async def write() -> None:
        async with store(bridged) as opened:
            some = [
                admission_row("b@fs", received_at=NOON + 3500, way="freeswitch"),
                admission_row("a@pbx", received_at=NOON + 500),
                admission_row("other@pbx", received_at=NOON),
            ]
            await opened.write(opened.first_sequence, {"admissions": some})

    asyncio.run(write())

    def remarks(*asked: str) -> list[str]:
        rows = run("ladder", "--dsn", bridged, "a@pbx", *asked, "--json").rows
        return [row["way"] for row in rows if row.get("kind") == "admission"]

    assert remarks() == ["evapi", "freeswitch"]
    assert remarks("--one-leg") == ["evapi"]
    assert run("ladder", "--dsn", bridged, "a@pbx", "--width", "160").out.count("-- refused") == 2


def test_calls_are_found_by_whose_they_are_and_whether_admission_refused_them(
    run: Run, decided: str
) -> None:
    def found(*asked: str) -> list[str]:
        said = run("calls", "--dsn", decided, "--json", *asked)
        return sorted(row["call_id"] for row in said.rows)

    assert found("--tenant", "t1") == found("--region", "eu") == found("--refused") == ["a@pbx"]
    assert found("--trunk", "acme") == found("--direction", "in") == ["a@pbx", "other@pbx"]
    assert found("--direction", "in", "--tenant", "t2") == ["other@pbx"]
    assert found("--refused", "--tenant", "t2") == []


def test_a_table_of_calls_shows_the_trunk_when_there_is_one(run: Run, decided: str) -> None:
    heading, *lines = run("calls", "--dsn", decided).out.splitlines()
    assert heading.split()[-2:] == ["flags", "trunk"]
    assert sorted(line.split()[-1] for line in lines) == ["-", "acme", "acme"]
    plain = run("calls", "--dsn", decided, "--call-id", "plain").out.splitlines()
    assert plain[0].split()[-1] == "flags"


@pytest.mark.parametrize("asked", [("--refused",), ("--tenant", "t"), ("--region", "r")])
def test_live_calls_take_no_cohort_as_filter(run: Run, asked: tuple[str, ...]) -> None:
    assert "takes no filter" in run("calls", "--live", *asked).refusal
