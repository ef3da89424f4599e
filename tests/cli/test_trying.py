import argparse
import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from receiving import Mail, Web, mail_server, web_server
from sipsidecar.cli.parsers import Commands, Parser
from sipsidecar.cli.trying import _hint, add_command
from sipsidecar.cli.words import CliError


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Servers(threading.Thread):
    """A web server and a mail server in a thread of their own, for a command that waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self._open = threading.Event()
        self.web: Web
        self.mail: Mail

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with AsyncExitStack() as stack:
            self.web = await stack.enter_async_context(web_server())
            self.mail = await stack.enter_async_context(mail_server())
            self._open.set()
            await self._end.wait()

    def __enter__(self) -> Self:
        self.start()
        assert self._open.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self.join()


@pytest.fixture
def servers() -> Iterator[Servers]:
    with Servers() as made:
        yield made


@pytest.fixture
def settings(servers: Servers, tmp_path: Path) -> Path:
    path = tmp_path / "sipsidecar.toml"
    path.write_text(f"""
[alerts]
link = "https://g.example/d"
secrets = {{ key = "routing-key", chat = "{servers.web.url}/very-secret" }}

[[alerts.receivers]]
name = "am"
kind = "alertmanager"
url = "{servers.web.url}"
severity = "page"

[[alerts.receivers]]
name = "pager"
kind = "pagerduty"
url = "{servers.web.url}/enqueue"
secret = "key"
resolved = false

[[alerts.receivers]]
name = "chat"
kind = "slack"
secret = "chat"
tenant = "shop"

[[alerts.receivers]]
name = "mail"
kind = "email"
url = "smtp://127.0.0.1:{servers.mail.port}"
sender = "sipsidecar@example.org"
to = ["noc@example.org"]
""")
    return path


@pytest.fixture
def alerts(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(settings: Path, *arguments: str) -> Done:
        parser = Parser()
        add_command(Commands(parser))
        given = parser.parse_args(["alerts", "test", "--config", str(settings), *arguments])
        code: int = given.handle(given)
        return Done(code, *capsys.readouterr())

    return run


def test_each_receiver_is_told_of_a_test_that_opens_and_ends(
    alerts: Callable[..., Done], settings: Path, servers: Servers
) -> None:
    done = alerts(settings)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["am", "alertmanager", "OK", "-"],
        ["pager", "pagerduty", "OK", "OK"],
        ["chat", "slack", "OK", "OK"],
        ["mail", "email", "OK", "OK"],
    ]
    assert "ends there by itself in 5 min" in lines[1]
    asked = [each.json for each in servers.web.asked if each.path == "/enqueue"]
    assert [each["event_action"] for each in asked] == ["trigger", "resolve"]
    assert all("TEST" in each.body.decode() for each in servers.web.asked)
    (alert,) = [each.json[0] for each in servers.web.asked if each.path == "/api/v2/alerts"]
    assert alert["labels"]["severity"] == "critical"  # what is less grave it is not told
    assert len(servers.mail.letters) == 2


def test_one_receiver_can_be_tried_alone(
    alerts: Callable[..., Done], settings: Path, servers: Servers
) -> None:
    (row,) = alerts(settings, "--receiver", "pager", "--json").rows
    assert row == {
        "kind": "alert_test", "receiver": "pager", "protocol": "pagerduty", "opened": "OK",
        "cleared": "OK", "advice": None, "ok": True,
    }  # fmt: skip
    assert len(servers.web.asked) == 2


def test_what_failed_is_said_with_what_to_do(
    alerts: Callable[..., Done], settings: Path, servers: Servers
) -> None:
    servers.web.answers = [(403, {})]
    servers.mail.says["RCPT"] = "550 no"
    done = alerts(settings)
    assert done.code == 1
    assert done.err == "4 of 4 receivers did not take it\n"
    assert "HTTP 403" in done.out
    assert "check its secret" in done.out
    assert "SMTP 550" in done.out
    assert "very-secret" not in done.out + done.err
    rows = alerts(settings, "--json").rows
    assert [row["ok"] for row in rows] == [False] * 4
    assert all(row["cleared"] is None for row in rows)


def test_an_end_that_is_not_taken_is_a_failure(
    alerts: Callable[..., Done], settings: Path, servers: Servers
) -> None:
    servers.web.answers = [(202, {}), (400, {})]
    done = alerts(settings, "--receiver", "pager", "--json")
    assert done.code == 1
    assert (done.rows[0]["opened"], done.rows[0]["cleared"]) == ("OK", "HTTP 400")
    assert "routing key" in done.rows[0]["advice"]


def test_a_receiver_that_is_not_there_is_named(
    alerts: Callable[..., Done], settings: Path, tmp_path: Path
) -> None:
    with pytest.raises(CliError, match=r"no receiver 'nope'.*there are: am, pager, chat, mail"):
        alerts(settings, "--receiver", "nope")
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    with pytest.raises(CliError, match=r"no receivers: configure"):
        alerts(empty)


def test_alerts_alone_is_no_command() -> None:
    parser = Parser()
    add_command(Commands(parser))
    with pytest.raises(SystemExit):
        parser.parse_args(["alerts"])
    assert isinstance(parser, argparse.ArgumentParser)


@pytest.mark.parametrize(
    ("why", "advice"),
    [
        ("refused", "nobody listens"),
        ("timeout", "firewall"),
        ("tls", "SSL_CERT_FILE"),
        ("dns", "no such host"),
        ("broken", "broke"),
        ("no TLS", "smtps://"),
        ("not supported", "sender"),
        ("HTTP 301", "elsewhere"),
        ("HTTP 404", "that path"),
        ("HTTP 500", "try later"),
        ("HTTP 418", "see its log"),
        ("SMTP 535", "user and password"),
        ("SMTP 550", "sender and to"),
        ("SMTP -1", "see its log"),
    ],
)
def test_each_failure_has_its_advice(why: str, advice: str) -> None:
    assert advice in _hint(why)
