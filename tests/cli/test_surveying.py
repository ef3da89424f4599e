import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from terminal import HOSTILE, Run

TOKEN = "read-read-read-00"  # noqa: S105 -- of these tests alone
UP = {
    "name": "fs1", "address": "127.0.0.1:8021", "connected": True, "version": "1.11.2",
    "sessions": 7, "max_sessions": 1000, "sessions_per_second": 2, "sessions_per_second_limit": 30,
    "idle_cpu": 0.926, "live_legs": 8, "lag_seconds": 0.0123, "last_event_seconds": 1.4,
    "gateways": {"up": 2, "down": 1}, "error": None,
}  # fmt: skip
AWAY = {
    "name": "fs2",
    "address": "10.0.0.1:8021",
    "connected": False,
    "error": f"refused {HOSTILE}",
}


class Page(http.server.BaseHTTPRequestHandler):
    status = 200
    body = b"[]"
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[tuple[type[Page], str]]:
    class Mine(Page):
        asked: list[tuple[str, str | None]] = []  # noqa: RUF012

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Mine, f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def status(run: Run, address: str, *more: str) -> Any:
    return run("freeswitch", "status", "--http", address, *more)


def test_each_switch_is_a_line_with_its_connection_version_and_load(
    run: Run, page: tuple[type[Page], str]
) -> None:
    served, address = page
    served.body = json.dumps([UP, AWAY]).encode()
    said = status(run, address)
    heading, first, second = said.out.splitlines()
    assert said.code == 0
    assert heading.split() == [
        "name", "address", "connected", "version", "sessions", "per_second", "idle_cpu",
        "live_legs", "lag", "last_event", "gateways_up", "gateways_down", "error",
    ]  # fmt: skip
    assert " ".join(first.split()) == (
        "fs1 127.0.0.1:8021 yes 1.11.2 7/1000 2/30 93 % 8 12 ms 1 s ago 2 1 -"
    )
    assert " ".join(second.split()).startswith(
        "fs2 10.0.0.1:8021 no - - - - - - - - - refused evil\\x1b[31m"
    )
    assert said.out.replace("\n", "").isprintable()
    assert served.asked == [("/v1/switches", None)]


def test_no_errors_need_no_column(run: Run, page: tuple[type[Page], str]) -> None:
    served, address = page
    served.body = json.dumps([UP | {"max_sessions": None, "gateways": None}]).encode()
    heading, line = status(run, address).out.splitlines()
    assert "error" not in heading
    assert " 7 " in line
    assert line.split()[-2:] == ["-", "-"]


def test_as_json_a_switch_is_a_line_as_the_sidecar_said_it(
    run: Run, page: tuple[type[Page], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, address = page
    served.body = json.dumps([UP, AWAY]).encode()
    monkeypatch.setenv("SIPSIDECAR_HTTP__READ_TOKENS", json.dumps([TOKEN]))
    assert status(run, address, "--json").rows == [
        {"kind": "switch", **UP}, {"kind": "switch", **AWAY},
    ]  # fmt: skip
    assert served.asked == [("/v1/switches", f"Bearer {TOKEN}")]


def test_no_switches_is_exit_code_1_and_says_where_to_name_them(
    run: Run, page: tuple[type[Page], str]
) -> None:
    said = status(run, page[1])
    assert (said.code, said.out) == (1, "")
    assert said.err == "no switches: name them in freeswitch.switches\n"
    as_json = status(run, page[1], "--json")
    assert (as_json.code, as_json.out, as_json.err) == (1, "", "")


@pytest.mark.parametrize(
    ("code", "body", "says"),
    [
        (401, b"{}", "answers 401: set http.read_tokens to a token of that sidecar"),
        (404, b'{"error": "there is no such page: / lists them"}', "answers 404: there is no such"),
        (503, b'{"error": "\\u001b[31m"}', r"answers 503: \x1b[31m"),
        (500, b"<html>", "is no sidecar; name its --http"),
        (200, b"<html>", "is no sidecar; name its --http"),
        (200, b"{}", "is no sidecar; name its --http"),
        (200, b"[1]", "is no sidecar; name its --http"),
        (200, b"[" * 100_000, "is no sidecar; name its --http"),
        (200, b"\xff", "is no sidecar; name its --http"),
    ],
)
def test_an_answer_that_is_none_is_one_line(
    run: Run, page: tuple[type[Page], str], code: int, body: bytes, says: str
) -> None:
    served, address = page
    served.status, served.body = code, body
    assert says in status(run, address).refusal


def test_no_sidecar_at_all_is_said_with_what_to_do(run: Run) -> None:
    refusal = status(run, "127.0.0.1:1").refusal
    assert "no sidecar answers at http://127.0.0.1:1 (Connection refused): start" in refusal


def test_the_only_question_about_switches_is_their_status(run: Run) -> None:
    assert "invalid choice: 'dance'" in run("freeswitch", "dance").refusal
