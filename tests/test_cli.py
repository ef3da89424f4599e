import asyncio
import http.server
import json
import os
import pty
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from running import CORPUS, ENVIRONMENT, LIMIT, command, recent
from sipsidecar import __version__, cli
from sipsidecar.calls.events import AttemptRecord, CallRecord, PingRecord, RegistrationRecord
from sipsidecar.wire import hep, pcap

COMMANDS = ("run", "demo", "replay", "calls", "ladder", "pcap", "dsn", "check-config")
HOUR, DAY = 3600.0, 86400.0
HOSTILE = 'evil\x1b[31m\u202e"\x07'
"""What a stranger may put into a header to repaint a terminal."""
Row = dict[str, Any]


class Said:
    """What one command printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def rows(self) -> list[Row]:
        """The JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def refusal(self) -> str:
        """The one line of a command that could not."""
        assert (self.code, self.out) == (2, "")
        (line,) = self.err.splitlines()
        assert line.startswith("sipsidecar")
        assert "Traceback" not in line
        return line


Run = Callable[..., Said]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of whoever runs the tests, and no data directory of theirs."""
    for name in os.environ:
        if name.startswith("SIPSIDECAR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SIPSIDECAR_DATABASE__DIRECTORY", str(tmp_path / "no-data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path) -> Said:
        try:
            code = cli.main([str(one) for one in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return run


def hostile_capture(path: Path) -> Path:
    """A call of which every word is a stranger's."""
    at = time.time_ns() // 1000 - int(60 * 1e6)

    def message(start: str, to_tag: str = "") -> bytes:
        return (
            f"{start}\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKh\r\n"
            f'From: "x" <sip:{HOSTILE}@example.com>;tag=h\r\nTo: <sip:{HOSTILE}@x>{to_tag}\r\n'
            f"Call-ID: hostile-{HOSTILE}@x\r\nCSeq: 1 INVITE\r\nUser-Agent: {HOSTILE}\r\n"
            f'Reason: SIP;cause=1;text="{HOSTILE}"\r\n\r\n'
        ).encode()

    phone, proxy = (socket.inet_aton(address) for address in ("192.0.2.1", "192.0.2.2"))
    data = pcap.file_header()
    data += pcap.udp_record(
        at, phone, proxy, 5060, 5060, message(f"INVITE sip:{HOSTILE}@x SIP/2.0")
    )
    data += pcap.udp_record(
        at + 9000, proxy, phone, 5060, 5060, message(f"SIP/2.0 404 {HOSTILE}", ";tag=2")
    )
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def dsn(postgres_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DSN of a database with calls of the last hours and days, that no test changes."""

    async def execute(sql: str) -> None:
        connection = await asyncpg.connect(postgres_dsn)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    folder = tmp_path_factory.mktemp("captures")
    asyncio.run(execute("CREATE DATABASE cli_calls"))
    mine = postgres_dsn.replace("///sipsidecar?", "///cli_calls?")
    files = [
        recent("kamailio/j_failover", folder / "j.pcap", 2 * HOUR),
        recent("kamailio/b_failures", folder / "b.pcap", 0.5 * HOUR),
        recent("kamailio/d_auth", folder / "d.pcap", 600),
        recent("kamailio/c_cancel", folder / "c.pcap", 12 * HOUR),
        recent("kamailio/h_register_options", folder / "h.pcap", 600),
        recent("kamailio/a_answered", folder / "a.pcap", 3 * DAY),
        hostile_capture(folder / "hostile.pcap"),
    ]
    assert cli.main(["replay", "--store", "--dsn", mine, *map(str, files)]) == 0
    yield mine
    asyncio.run(execute("DROP DATABASE cli_calls WITH (FORCE)"))


@pytest.fixture
def calls(run: Run, dsn: str) -> Callable[..., list[Row]]:
    def calls(*arguments: str) -> list[Row]:
        said = run("calls", "--dsn", dsn, "--json", *arguments)
        assert said.err == ""
        assert said.code == (0 if said.rows else 1)
        return said.rows

    return calls


# --------------------------------------------------------------------------------------------- words


def test_without_a_command_there_is_help(run: Run) -> None:
    said = run()
    assert said.code == 2
    assert all(f"\n    {name}" in said.out for name in COMMANDS)


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version").out == f"sipsidecar {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_it_understands(run: Run, name: str) -> None:
    said = run(name, "--help")
    assert said.code == 0
    example = said.out.rpartition("example: ")[2].strip()
    inner = re.search(r"\$\((.*)\)", example)
    words = shlex.split(inner[1] if inner else example)
    assert words[:2] == ["sipsidecar", name]
    assert vars(cli._parser().parse_args(words[1:]))["handle"]


def test_the_commands_are_these(run: Run) -> None:
    found = re.findall(r"^    ([a-z-]+)", run("--help").out, re.MULTILINE)
    assert found == list(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "invalid choice: 'nope'"),
        (["calls", "--nope"], "--nope"),
        (["calls", "--code", "6"], "6: expected a final code or a class, such as 486 or 4xx"),
        (["calls", "--code", "7xx"], "7xx: expected a final code"),
        (["calls", "--since", "yesterday"], "yesterday: expected so long ago (30m, 1d) or a date"),
        (["calls", "--since", "1.2.3h"], "1.2.3h: expected"),
        (["calls", "--until", "2026-13-01"], "2026-13-01: expected"),
        (["calls", "--pdd-above", "x"], "x: expected a duration such as 2, 1.5s, 2000ms"),
        (["calls", "--pdd-above", "-1"], "expected"),
        (["calls", "--limit", "0"], "expected a number from 1 on, got '0'"),
        (["calls", "--limit", "-5"], "expected"),
        (["calls", "--limit", "many"], "expected a number from 1 on, got 'many'"),
        (["calls", "--mos-below", "x"], "invalid float value"),
        (["calls", "--sort", "call_id"], "invalid choice: 'call_id'"),
        (["calls", "--answered", "--failed"], "not allowed with"),
        (["calls", "--config", "absent.toml"], "absent.toml: No such file or directory"),
        (["calls", "--dsn", "nonsense"], "database.dsn: expected postgresql://"),
        (["calls", "--dsn", "postgresql://me:secret@127.0.0.1:1/x"], "127.0.0.1 port 1, database x"),
        (["calls"], "no calls here yet"),
        (["ladder", "x"], "no calls here yet"),
        (["pcap", "x", "-o", "x.pcap"], "no calls here yet"),
        (["dsn"], "no database runs in"),
        (["pcap", "x"], "-o"),
        (["ladder"], "CALL-ID"),
        (["replay"], "FILE"),
        (["replay", "absent.pcap"], "absent.pcap: no such file"),
        (["replay", "."], ".: Is a directory"),
        (["replay", "--json", __file__], "not a pcap or pcapng file"),
        (["calls", "\x1b[31m"], "\\x1b[31m"),
        (["calls", "--live", "--code", "486"], "--live shows all calls that are going on"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_that_says_what_is_wrong(
    run: Run, arguments: list[str], says: str, tmp_path: Path
) -> None:
    line = run(*arguments).refusal
    assert says in line
    assert "secret" not in line
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------- calls

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


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 71),
        (["--since", "1d"], 71),
        (["--since", "1h"], 46),
        (["--since", "20m"], 14),
        (["--since", "7d"], 121),
        (["--since", "1h", "--until", "20m"], 32),
        (["--until", "1d"], 0),
        (["--since", "30d", "--until", "1d"], 50),
        (["--since", "2000-01-01"], 121),
        (["--since", "2000-01-01T00:00+02:00"], 121),
        (["--since", "0001-01-01"], 121),
        (["--since", "999999999d"], 121),
        (["--since", "2000-01-01", "--until", "2001-01-01"], 0),
    ],
)
def test_times_are_so_long_ago_or_dates(
    calls: Callable[..., list[Row]], arguments: list[str], count: int
) -> None:
    assert len(calls(*arguments, "--limit", "1000")) == count


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


def test_a_table_has_a_heading_and_a_line_per_call(run: Run, dsn: str) -> None:
    said = run("calls", "--dsn", dsn, "--flag", "failover")
    heading, *lines = said.out.splitlines()
    assert heading.split() == list(cli.CALL_COLUMNS)
    assert len(lines) == 10
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z  j503-", line)
        assert re.search(r" 200  caller +\d+ +\d+ +\d+ +2  failover$", line)
    assert said.err == ""


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
    asked: list[str] = []  # noqa: RUF012 -- of the class, as the server makes the objects

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[tuple[type[Page], str]]:
    class Mine(Page):
        asked: list[str] = []  # noqa: RUF012

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
def test_no_sidecar_at_all_is_said_with_what_to_do(run: Run, host: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        line = run("calls", "--live", "--http", f"{host}:{port}").refusal
    address = f"127.0.0.1:{port}"
    assert line == (
        f"sipsidecar: no sidecar answers at http://{address} (Connection refused): "
        "start `sipsidecar run`, or name its --http"
    )


# ----------------------------------------------------------------------------------- ladder and pcap


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


# -------------------------------------------------------------------------------------------- replay


def test_a_replay_as_json_is_a_line_per_record_and_a_summary(run: Run) -> None:
    said = run("replay", "--json", CORPUS / "kamailio/j_failover.pcap", CORPUS / "kamailio/h_register_options.pcap")  # fmt: skip
    *rows, summary = said.rows
    assert Counter(row["kind"] for row in rows) == {
        "call": 10, "attempt": 20, "registration": 30, "ping": 10,
    }  # fmt: skip
    fields = {
        "call": CallRecord, "attempt": AttemptRecord, "registration": RegistrationRecord,
        "ping": PingRecord,
    }  # fmt: skip
    for row in rows:
        assert set(row) == {"kind", *fields[row["kind"]].__struct_fields__}
        assert row["started_at"].startswith("2026-11-20T")
    assert summary == {
        "kind": "summary",
        "packets": 240, "calls": 10, "attempts": 20, "registrations": 30, "pings": 10,
        "messages": 240, "quarantined": 0, "refused": 0, "orphans": 0, "not_sip": 0,
        "refused_by_reason": {}, "odd": {}, "cut_packets": 0, "skipped_packets": {},
        "truncated_files": [],
    }  # fmt: skip
    assert said.err == ""


def test_a_replay_for_people_is_a_table_and_a_summary(run: Run) -> None:
    said = run("replay", CORPUS / "kamailio/e_early183.pcap")
    heading, *lines, summary = said.out.splitlines()
    assert heading.split() == list(cli.CALL_COLUMNS)
    assert len(lines) == 8
    assert summary.startswith("136 packets, 8 calls, 8 attempts, 0 registrations")


def test_a_cut_capture_is_replayed_and_said_to_be_cut(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cut.pcap"
    path.write_bytes((CORPUS / "kamailio/e_early183.pcap").read_bytes()[:-10])
    assert run("replay", "--json", path).rows[-1]["truncated_files"] == [str(path)]
    said = run("replay", path)
    assert said.code == 0
    assert f"{path} ends inside a packet" in said.err


def test_a_capture_in_a_pipe_is_replayed_too(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = (CORPUS / "kamailio/e_early183.pcap").read_bytes()
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    assert run("replay", "--json", path).rows[-1]["calls"] == 8
    writer.join()


def test_a_capture_that_is_stored_is_found_as_it_was_replayed(
    run: Run, database: str, tmp_path: Path
) -> None:
    path = recent("kamailio/j_failover", tmp_path / "j.pcap", 60)
    said = run("replay", "--store", "--dsn", database, path)
    assert (said.code, said.err) == (0, "")
    assert said.out == "in the database: 20 attempts, 10 calls, 160 messages\n"
    listed = run("calls", "--dsn", database, "--json").rows
    replayed = [row for row in run("replay", "--json", path).rows if row["kind"] == "call"]
    mine = {row["call_id"]: {k: v for k, v in row.items() if k != "node_id"} for row in listed}
    assert len(listed) == 10
    assert mine == {row["call_id"]: row for row in replayed}


def test_a_capture_that_is_stored_twice_is_there_once(
    run: Run, database: str, tmp_path: Path
) -> None:
    path = recent("kamailio/b_failures", tmp_path / "b.pcap", 60)
    for seed in ("1", "2"):  # whatever order sets have in a process
        said = command("replay", "--store", "--dsn", database, path, PYTHONHASHSEED=seed)
        assert said.stdout == "in the database: 30 attempts, 32 calls, 236 messages\n"
    assert len(run("calls", "--dsn", database, "--json", "--limit", "99").rows) == 32
    assert len(run("ladder", "--dsn", database, "b486-1-9501@127.10.0.9", "--json").rows) == 7


def test_a_large_replay_is_stored_batch_by_batch(
    run: Run, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "REPLAY_ROWS", 50)
    path = recent("kamailio/b_failures", tmp_path / "b.pcap", 60)
    said = run("replay", "--store", "--json", "--dsn", database, path)
    assert said.rows == [{"kind": "stored", "calls": 32, "attempts": 30, "messages": 236}]
    assert len(run("calls", "--dsn", database, "--limit", "100", "--json").rows) == 32


# ---------------------------------------------------------------------------------- dsn, check-config


def test_the_dsn_that_was_given_is_printed(run: Run) -> None:
    dsn = "postgresql://me:secret@db.example.com/calls"
    assert run("dsn", "--dsn", dsn).out == f"{dsn}\n"


def test_the_configuration_is_printed_with_the_source_of_each_value(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "sipsidecar.toml"
    file.write_text("[hep]\ntcp = false\nagents = { edge = 2001 }\n")
    monkeypatch.setenv("SIPSIDECAR_NODE__ID", "7")
    dsn = "postgresql://me:secret@db/x"
    said = run("check-config", "--config", file, "--dsn", dsn)
    assert said.code == 0
    assert re.search(rf"^hep\.tcp +{re.escape('= false')} +# file {file}$", said.out, re.MULTILINE)
    assert re.search(r"^node\.id += 7 +# env SIPSIDECAR_NODE__ID$", said.out, re.MULTILINE)
    assert re.search(r"^http\.listen += \"127.0.0.1:9080\" +# default$", said.out, re.MULTILINE)
    assert re.search(r"^database\.dsn += .*\*\*\*@db/x\" +# flag --dsn$", said.out, re.MULTILINE)
    assert "secret" not in said.out
    as_json = json.loads(run("check-config", "--config", file, "--json").out)
    assert as_json["hep.agents"] == {"value": {"edge": 2001}, "source": f"file {file}"}


# ------------------------------------------------------------------------------- terminals and pipes


def test_a_reader_that_has_enough_is_no_error(dsn: str) -> None:
    for arguments in (
        ["replay", "--json", str(CORPUS / "kamailio/a_answered.pcap")],
        ["calls", "--dsn", dsn, "--since", "30d", "--limit", "1000", "--json"],
    ):
        with subprocess.Popen(
            [sys.executable, "-m", "sipsidecar", *arguments],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["kind"] == "call"
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(LIMIT) == 0


def on_terminal(arguments: list[str], columns: int) -> str:
    """What a command shows on a terminal of so many columns."""
    main, side = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "sipsidecar", *arguments],
        env=ENVIRONMENT | {"COLUMNS": str(columns)}, stdin=side, stdout=side, stderr=side,
    ) as process:  # fmt: skip
        os.close(side)
        shown = b""
        while True:
            try:
                data = os.read(main, 65_536)
            except OSError:  # the other side is gone
                break
            if not data:
                break
            shown += data
        assert process.wait(LIMIT) == 0
    os.close(main)
    return shown.decode().replace("\r\n", "\n")


def test_on_a_terminal_a_table_fits_and_what_is_missing_is_said(dsn: str) -> None:
    shown = on_terminal(["calls", "--dsn", dsn, "--limit", "5"], 100)
    lines = shown.splitlines()
    assert len(lines) == 7
    assert max(map(len, lines[:6])) <= 100
    assert lines[6] == "the first 5 are shown; see --limit"


def test_on_a_terminal_a_replay_shows_its_progress_and_clears_it() -> None:
    shown = on_terminal(["replay", str(CORPUS / "kamailio/a_answered.pcap")], 200)
    assert re.match(r"(\r *\d+ % of 0\.4 MB)+\r +\rstarted_at", shown)
    assert "645 packets, 50 calls" in shown


def test_names_of_any_script_are_printed_on_any_terminal(tmp_path: Path) -> None:
    path = hostile_capture(tmp_path / "hostile.pcap")
    path.write_bytes(path.read_bytes().replace(b"evil", "é漢".encode()[:4]))
    for encoding in ("ascii", "latin-1", "utf-8"):
        said = command("replay", path, PYTHONIOENCODING=encoding)
        assert (said.returncode, said.stderr) == (0, "")
        assert "1 calls" in said.stdout
