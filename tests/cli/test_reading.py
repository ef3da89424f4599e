import http.server
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asking import certificate
from running import CORPUS, ENVIRONMENT, LIMIT
from sipsidecar import cli
from sipsidecar.calls.events import CallRecord
from sipsidecar.wire import hep, pcap
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
