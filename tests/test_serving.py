import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from running import LIMIT, Sidecar, datagrams, send_udp, sidecar, until
from sipsidecar import app, serving
from sipsidecar.config import Config, Database, Hep, Http, Spool
from sipsidecar.logs import Logs


def settings(dsn: str, folder: Path) -> Config:
    return msgspec.structs.replace(
        Config(),
        hep=Hep(listen="127.0.0.1:0"),
        http=Http(listen="127.0.0.1:0"),
        database=Database(dsn=dsn, batch_seconds=0.05),
        spool=Spool(directory=str(folder / "spool")),
    )


def test_a_signal_ends_a_run_and_what_runs_beside_it(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    config = settings(database, tmp_path)

    async def beside(one: app.Sidecar) -> None:
        seen.append(one.dsn)
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(LIMIT)
        finally:
            seen.append("ended")

    logs = Logs(config.log)
    assert uvloop.run(serving._serve(config, lambda: config, logs, beside)) == 0
    assert seen == [database, "ended"]
    said = capsys.readouterr().out
    assert said.startswith("sipsidecar ")
    assert " --dsn DSN" in said


@pytest.mark.parametrize(
    ("host", "shown"),
    [("0.0.0.0", "pbx1:9070"), ("::", "pbx1:9070"), ("::1", "[::1]:9070")],  # noqa: S104
)
async def test_agents_are_told_an_address_that_they_can_reach(host: str, shown: str) -> None:
    config = msgspec.structs.replace(
        Config(), node=msgspec.structs.replace(Config().node, name="pbx1")
    )
    one = app.Sidecar(config)
    one.hep_address = (host, 9070)
    assert f'"sip:{shown}"' in serving._greeting(one)


def test_logs_can_be_json_in_a_run(tmp_path: Path, database: str) -> None:
    with sidecar(tmp_path, "--dsn", database, SIPSIDECAR_LOG__FORMAT="json") as running:
        assert running.stop() == 0
    said = [json.loads(line) for line in running.words.splitlines()]
    assert said[-1]["message"].startswith("stopped: 0 packets received")


def test_a_hang_up_reloads_what_it_can_and_says_what_needs_a_restart(
    tmp_path: Path, database: str
) -> None:
    config = tmp_path / "sipsidecar.toml"
    config.write_text("[calls]\nmax_calls = 100\n")
    with sidecar(tmp_path / "one", "--dsn", database, "--config", config) as running:
        config.write_text('[calls]\nmax_calls = 200\n[hep]\nallow = ["192.0.2.0/24"]\n')
        running.process.send_signal(signal.SIGHUP)
        until("a reload", lambda: "reloaded: hep.allow" in running.words)
        assert "needs a restart: calls.max_calls" in running.words
        send_udp(running.hep, datagrams("kamailio/n_hepv2"))
        until("packets", lambda: running.ledger()["refused_by_reason"] == {"not-allowed": 26})
        config.write_text("[hep]\nallow = 5\n")
        running.process.send_signal(signal.SIGHUP)
        until("a complaint", lambda: "nothing was reloaded: hep.allow" in running.words)
        assert running.stop() == 0


class Manager:
    """A service manager as far as a service sees one: a socket to report to, and sockets to keep."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.reports.bind(str(self.path))
        self.reports.settimeout(LIMIT)
        self.hep = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.hep.bind(("127.0.0.1", 0))

    def close(self) -> None:
        self.reports.close()
        self.hep.close()

    def hear(self, what: str) -> str:
        """Wait for a report that has this line."""
        while True:
            said = self.reports.recv(4096).decode()
            if what in said.split("\n"):
                return said


def test_a_service_manager_hears_of_start_work_reload_and_stop(
    tmp_path: Path, database: str
) -> None:
    manager = Manager(tmp_path)
    try:
        notify: dict[str, Any] = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
        with sidecar(tmp_path / "one", "--dsn", database, **notify) as running:
            assert "live calls" in manager.hear("READY=1")
            manager.hear("WATCHDOG=1")
            running.process.send_signal(signal.SIGHUP)
            manager.hear("RELOADING=1")
            manager.hear("READY=1")
            assert running.stop() == 0
            manager.hear("STOPPING=1")
    finally:
        manager.close()


SHIM = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "hep"}
os.execv(sys.executable, [sys.executable, "-m", "sipsidecar", *sys.argv[2:]])
"""


def test_what_comes_while_nobody_runs_waits_in_the_managers_socket(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(tmp_path)
    sent = datagrams("kamailio/n_hepv2")
    try:
        send_udp(manager.hep.getsockname(), sent)
        start = Sidecar.__init__.__globals__["subprocess"].Popen

        def shimmed(words: list[str], **options: Any) -> Any:
            number = manager.hep.fileno()
            shim = [sys.executable, "-c", SHIM, str(number), *words[3:]]
            return start(shim, pass_fds=(number,), **options)

        monkeypatch.setattr("running.subprocess.Popen", shimmed)
        with sidecar(tmp_path / "one", "--dsn", database, SIPSIDECAR_HEP__TCP="false") as running:
            assert running.hep == manager.hep.getsockname()
            running.wait_stored(len(sent))
            assert running.stop() == 0
    finally:
        manager.close()
