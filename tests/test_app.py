import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from running import (
    CORPUS,
    LIMIT,
    Sidecar,
    alive,
    children,
    command,
    datagrams,
    send_tcp,
    send_udp,
    sidecar,
    until,
)
from sipsidecar import app
from sipsidecar.batch import StoreUnavailable
from sipsidecar.config import Calls, Config, Database, Hep, Http, Limits, Spool
from sipsidecar.edges import host
from sipsidecar.edges.embedded import DirectoryLock
from sipsidecar.signals.snapshot import MemoryFigures
from sipsidecar.wire import hep

SOON = {"SIPSIDECAR_CALLS__SETTLE_SECONDS": "0.5"}
"""Records leave sooner than by default."""
AGENT = "127.10.0.1"
"""Kamailio's address in the captures: an agent sends HEP from its own."""
OUR_CLOCK = {"received_at", "revision", "node_id", "started_at", "ended_at", "dated_by"}
"""Fields that depend on when a packet reached the sidecar, and the agents' clock on that day."""


def by_key(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """JSON lines of calls, without what our own clock puts into them."""
    rows = [json.loads(line) for line in text.splitlines()]
    return {
        (row["call_id"], row["from_tag"]): {
            name: value for name, value in row.items() if name not in OUR_CLOCK
        }
        for row in rows
        if row["kind"] == "call"
    }


def complaints(one: Sidecar) -> list[str]:
    """What it warned of, but for a receive buffer that this machine does not grant."""
    return [
        line
        for line in one.words.splitlines()
        if re.search("WARNING|ERROR", line) and "net.core.rmem_max" not in line
    ]


def one_line(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a command refused to begin."""
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("sipsidecar: ")
    return line


def refused(*arguments: str | Path, **settings: str) -> str:
    """What `run` says when it cannot."""
    free = ("--hep", "127.0.0.1:0", "--http", "127.0.0.1:0")
    return one_line(command("run", *free, *arguments, **settings))


NO_SPOOL = {"SIPSIDECAR_SPOOL__MAX_BYTES": "0"}
"""Without a spool a database that is away at the start is an error."""


# ------------------------------------------------------------------------- the process, all its life


@pytest.mark.parametrize(
    ("send", "stop"), [(send_udp, signal.SIGTERM), (send_tcp, signal.SIGINT)], ids=["udp", "tcp"]
)
def test_a_capture_that_is_sent_live_gives_what_its_replay_gives(
    tmp_path: Path, send: Callable[..., None], stop: int
) -> None:
    names = ("b_failures", "e_early183", "f_reinvite", "j_failover", "h_register_options")
    with sidecar(tmp_path, **SOON) as running:
        family = children(running.process.pid)
        assert len(family) >= 5  # PostgreSQL's
        sent = [packet for name in names for packet in datagrams(f"kamailio/{name}")]
        send(running.hep, sent, AGENT)
        ledger = running.wait_stored(len(sent))
        assert ledger["received"] == ledger["stored"] == len(sent)
        assert ledger["balance"] == 0
        until("records", lambda: running.ledger()["rows_stored"].get("attempts", 0) >= 66)
        asked = running.ask("calls", "--since", "365d", "--limit", "500", "--json")
        replayed = command("replay", "--json", *(CORPUS / f"kamailio/{n}.pcap" for n in names))
        mine, theirs = by_key(asked.stdout), by_key(replayed.stdout)
        assert mine.keys() == theirs.keys()
        differing = {key for key in mine if mine[key] != theirs[key]}
        assert differing == set()

        assert running.stop(stop) == 0
        assert alive(family) == set()
        assert complaints(running) == []
        last = running.words.splitlines()[-1]
        assert f"{len(sent)} packets received: {ledger['stored']} stored" in last
        again = running.ask("calls", "--since", "365d", "--limit", "500", "--json")
        assert by_key(again.stdout) == mine


def test_what_arrived_in_the_last_moment_is_stored_before_the_end(tmp_path: Path) -> None:
    """Calls that go on, and packets that wait in the kernel when the signal comes."""
    sent = [packet for packet in datagrams("kamailio/a_answered") if b"BYE " not in packet][:200]
    with sidecar(tmp_path) as running, socket.create_connection(running.hep) as connection:
        connection.sendall(sent[0])
        running.wait_stored(1)
        running.process.send_signal(signal.SIGSTOP)
        send_udp(running.hep, sent[1:100], AGENT)
        connection.sendall(b"".join(sent[100:]))
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        assert running.process.wait(LIMIT) == 0
    assert "200 packets received: 200 stored, 0 on disk" in running.words
    rows = running.ask("calls", "--since", "365d", "--limit", "500", "--json").stdout
    flags = {key: row["flags"] for key, row in by_key(rows).items()}
    assert len(flags) > 10
    assert any("interrupted" in one for one in flags.values())


def test_after_sigkill_no_server_is_left_and_a_restart_has_all_that_was_stored(
    tmp_path: Path,
) -> None:
    sent = datagrams("kamailio/e_early183")
    with sidecar(tmp_path, **SOON) as running:
        family = children(running.process.pid)
        send_udp(running.hep, sent, AGENT)
        running.wait_stored(len(sent))
        until("records", lambda: running.ledger()["rows_stored"].get("calls", 0) >= 8)
        running.kill()
        until("PostgreSQL to be gone", lambda: not alive(family), 10.0)
    with sidecar(tmp_path) as restarted:
        asked = restarted.ask("calls", "--since", "365d", "--json")
        assert len(by_key(asked.stdout)) == 8
        send_udp(restarted.hep, datagrams("kamailio/n_hepv2"), AGENT)
        restarted.wait_stored(26)
        assert restarted.stop() == 0


def test_commands_find_the_database_whether_it_runs_or_not(tmp_path: Path) -> None:
    sent = datagrams("kamailio/j_failover")
    with sidecar(tmp_path, **SOON) as running:
        send_udp(running.hep, sent, AGENT)
        running.wait_stored(len(sent))
        live = running.ask("calls", "--live", "--http", "{}:{}".format(*running.http), "--json")
        assert live.returncode in (0, 1)
        assert live.stderr == ""
        until("records", lambda: running.ledger()["rows_stored"].get("calls", 0) >= 10)
        dsn = running.ask("dsn")
        assert (dsn.returncode, dsn.stderr) == (0, "")
        assert psql(dsn.stdout.strip(), "SELECT count(*) FROM attempts") in ("20", None)
        second = refused("--data", running.data)
        assert f"{running.data} is in use by sidecar pid {running.process.pid}" in second
        assert running.get("/health/ready")[0] == 200
        assert running.stop() == 0
    listed = running.ask("calls", "--since", "365d", "--flag", "failover", "--limit", "3")
    assert len(listed.stdout.splitlines()) == 4
    ladder = running.ask("ladder", "j503-1-10439@127.10.0.9")
    assert "503 Service Unavailable" in ladder.stdout
    assert "no database runs in" in one_line(running.ask("dsn"))
    left = [path.name for path in running.data.iterdir()]
    assert DirectoryLock(running.data).path.name in left
    with DirectoryLock(running.data):
        pass  # nobody holds it


def psql(dsn: str, sql: str) -> str | None:
    """What psql prints; None where there is no psql."""
    try:
        done = subprocess.run(
            ["psql", dsn, "-XAtc", sql], capture_output=True, text=True, timeout=LIMIT, check=True
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip()


def test_a_demo_has_calls_within_ten_seconds_and_ends_like_a_run(
    tmp_path: Path, database: str
) -> None:
    with sidecar(tmp_path, "--dsn", database, name="demo", **SOON) as running:
        until("calls", lambda: running.ledger()["rows_stored"].get("calls", 0) >= 3, 10.0)
        assert running.ledger()["balance"] == 0
        assert running.stop(signal.SIGINT) == 0
    assert complaints(running) == []
    listed = command("calls", "--dsn", database)
    assert len(listed.stdout.splitlines()) >= 4


def test_the_greeting_says_what_listens_where_and_what_to_type(tmp_path: Path) -> None:
    with sidecar(tmp_path / "a b") as running:
        said = running.out.read_text()
        assert f"127.0.0.1:{running.hep[1]} (UDP and TCP)" in said
        assert f"http://127.0.0.1:{running.http[1]}" in said
        assert f"data     {running.data}" in said
        assert f'SIPSIDECAR_URI "sip:127.0.0.1:{running.hep[1]}"' in said
        assert f"calls --data '{running.data}'" in said


# --------------------------------------------------------------------------- what it cannot start with


def test_a_port_that_is_taken_is_named_in_one_line_and_nothing_is_left_behind(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    with socket.socket() as taken, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        udp.bind(("127.0.0.1", 0))
        at, udp_at = (f"127.0.0.1:{s.getsockname()[1]}" for s in (taken, udp))
        for flag, address, what in (
            ("--hep", udp_at, "HEP UDP"),
            ("--hep", at, "HEP TCP"),
            ("--http", at, "HTTP"),
        ):
            line = refused("--data", data, flag, address)
            assert line == (
                f"sipsidecar: {what} {address} is taken by another program; "
                f"stop it, or give {flag} another ADDR:PORT"
            )
            assert not data.exists()


def test_an_address_of_another_machine_is_refused_in_one_line(tmp_path: Path) -> None:
    for flag in ("--hep", "--http"):
        line = refused(
            "--data",
            tmp_path / "data",
            flag,
            "192.0.2.1:9060",
            SIPSIDECAR_HEP__INSECURE="true",
            SIPSIDECAR_HTTP__INSECURE="true",
        )
        assert f"192.0.2.1:9060 is no address of this machine; give {flag} one that is" in line
    assert not (tmp_path / "data").exists()


def test_a_data_directory_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below", Path("/proc/sipsidecar")):
        line = refused("--data", path)
        assert str(path) in line
        assert line.endswith("; choose another with --data")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("postgresql://me:secret@127.0.0.1:1/none", "PostgreSQL at 127.0.0.1 port 1, database none: "),
        ("postgresql:///x?host=/nonexistent", "PostgreSQL at /nonexistent port 5432, database x: "),
        ("mysql://me:secret@127.0.0.1/none", "database.dsn: expected postgresql://"),
        ("postgresql://me:sec/ret@127.0.0.1/none", "the DSN is not understood"),
    ],
)  # fmt: skip
def test_a_wrong_dsn_is_one_line_without_the_password(tmp_path: Path, dsn: str, says: str) -> None:
    line = refused("--dsn", dsn, **NO_SPOOL)
    assert says in line
    assert "secret" not in line
    assert "sec/ret" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_not_there_or_not_ours_is_one_line(postgres_dsn: str) -> None:
    line = refused("--dsn", postgres_dsn.replace("///sipsidecar?", "///absent?"))
    assert 'database "absent" does not exist' in line
    line = refused("--dsn", postgres_dsn.replace("user=postgres", "user=stranger"))
    assert 'role "stranger" does not exist' in line


def test_a_wrong_configuration_is_one_line_that_names_the_key(tmp_path: Path) -> None:
    config = tmp_path / "sipsidecar.toml"
    for text, says in (
        ("[hep]\nlisten = 5\n", "hep.listen: expected str, got int"),
        ("[hep]\nlissten = 'x'\n", "hep.lissten: no such setting, did you mean hep.listen?"),
        ("[hep\n", f"{config}: "),
        ("[calls]\nmax_calls = 0\n", "calls.max_calls: "),
    ):
        config.write_text(text)
        assert says in refused("--config", config)
    assert "No such file" in refused("--config", tmp_path / "absent.toml")
    assert "SIPSIDECAR_HEP__TCP" in refused(SIPSIDECAR_HEP__TCP="perhaps")
    assert "expected ADDR:PORT" in refused("--hep", "9060")
    assert [one.name for one in tmp_path.iterdir()] == ["sipsidecar.toml"]


# ----------------------------------------------------------------------------- the hall, in this process


@pytest.fixture
def collector() -> Iterator[None]:
    """A sidecar tunes the garbage collector of its process: here others live."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def spool_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sidecars in this process keep their spool in the test's folder."""
    monkeypatch.setattr(app, "default_directory", lambda: tmp_path)


def settings(dsn: str, **changes: Any) -> Config:
    parts = {
        "hep": Hep(listen="127.0.0.1:0", agents={"edge": 2001}),
        "http": Http(listen="127.0.0.1:0"),
        "database": Database(dsn=dsn, batch_seconds=0.05),
    }
    return msgspec.structs.replace(Config(), **(parts | changes))


@contextlib.asynccontextmanager
async def started(config: Config) -> AsyncIterator[app.Sidecar]:
    one = app.Sidecar(config)
    await one.start()
    try:
        yield one
    finally:
        await one.drain()


async def wait(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.005)


async def page(one: app.Sidecar, path: str) -> tuple[int, Any]:
    def fetch() -> tuple[int, Any]:
        host, port = one.http_address
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=LIMIT) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    return await asyncio.to_thread(fetch)


async def rows(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def send_away(dsn: str, database: str) -> None:
    """Make a database refuse connections, and end those it has."""
    await rows(dsn, f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
    await rows(dsn, f"{ended}'{database}'")


def mixed() -> list[bytes]:
    """Good, bad and strange packets, each of which must be found on one side of the ledger."""
    good = datagrams("kamailio/j_failover")
    base: dict[str, Any] = {
        "source": socket.inet_aton("192.0.2.1"),
        "destination": socket.inet_aton("192.0.2.2"),
        "source_port": 5060,
        "destination_port": 5060,
        "captured_at": 1_795_000_000_000_000,
        "agent_id": 2001,
    }
    invite = hep.decode(good[0]).payload
    streamed = [
        hep.encode(**base | {"ip_protocol": 6}, payload=part)
        for part in (invite[:40], invite[40:200], invite[200:] + invite, invite[:99])
    ]
    return [
        *good,
        *datagrams("kamailio/l_malformed"),
        *datagrams("kamailio/r_rtpengine_rtcp"),
        *datagrams("freeswitch/hep-v1"),
        *streamed,
        hep.encode(**base, payload=b""),
        hep.encode(**base, payload=b"\r\n\r\n"),
        hep.encode(**base, payload=b"\0" * 4),
        hep.encode(**base, payload=b"what is this"),
        good[0][:10],
        good[0][:-20],
        good[0] + b"trailing",
        b"",
        b"x",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HEP3\0\x05",
        b"HEP3\xff\xff" + bytes(60),
        invite,
        bytes(65_000),
    ]


@pytest.mark.usefixtures("collector")
async def test_the_ledger_balances_after_good_bad_and_strange_packets(database: str) -> None:
    sent = mixed()
    async with started(settings(database)) as one:
        await asyncio.to_thread(send_udp, one.hep_address, sent)
        await wait("packets", lambda: one.figures().ledger()["received"] == len(sent))
        ledger = one.figures().ledger()
        assert ledger["balance"] == 0
        assert ledger["waiting"] > 0  # a part of a message waits for the rest
        status, said = await page(one, "/v1/ledger")
        assert status == 200
        assert said["balance"] == 0
    ledger = one.figures().ledger()
    assert ledger["balance"] == ledger["waiting"] == ledger["dropped"] == 0
    assert ledger["received"] == len(sent)
    assert ledger["refused"] >= 9
    assert ledger["quarantined"] >= 8
    ((messages, quarantined),) = await rows(
        database, "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM quarantine)"
    )
    # fragments: several packets in one message, or two messages in one packet
    assert messages + quarantined == pytest.approx(ledger["stored"] + ledger["quarantined"], abs=2)
    assert one.figures().pipeline.oddities["trailing-bytes"] == 1


@pytest.mark.usefixtures("collector")
async def test_a_drain_takes_what_waits_in_both_sockets(database: str) -> None:
    sent = datagrams("kamailio/n_hepv2") + datagrams("kamailio/e_early183")
    one = app.Sidecar(settings(database))
    await one.start()
    with await asyncio.to_thread(socket.create_connection, one.hep_address) as connection:
        await wait("the connection", lambda: one.figures().capture.tcp_connections == 1)
        send_udp(one.hep_address, sent[:26])  # the loop does not run meanwhile
        connection.sendall(b"".join(sent[26:60]))
        assert one.figures().pipeline.received == 0
        assert await one.drain() == 0
    ledger = one.figures().ledger()
    assert (ledger["stored"], ledger["waiting"], ledger["balance"]) == (60, 0, 0)
    assert await rows(database, "SELECT count(*) FROM messages") == [(60,)]


@pytest.mark.usefixtures("collector")
async def test_messages_that_are_not_wanted_are_not_stored_and_accounted_for(
    database: str,
) -> None:
    config = settings(
        database, database=Database(dsn=database, batch_seconds=0.05, store_messages=False)
    )
    sent = [*datagrams("kamailio/n_hepv2"), *datagrams("kamailio/l_malformed")]
    async with started(config) as one:
        await asyncio.to_thread(send_udp, one.hep_address, sent)
        await wait("packets", lambda: one.figures().ledger()["received"] == len(sent))
    figures = one.figures()
    assert figures.ledger()["balance"] == 0
    assert figures.storage.packets_dropped == {"not-configured": 26 + 28}
    assert await rows(database, "SELECT count(*) FROM messages") == [(0,)]
    assert await rows(database, "SELECT count(*) FROM quarantine") == [(7,)]
    assert (await rows(database, "SELECT count(*) FROM calls WHERE answered"))[0][0] >= 2


@pytest.mark.usefixtures("collector")
async def test_calls_that_go_on_are_on_the_live_page(database: str) -> None:
    sent = [packet for packet in datagrams("kamailio/e_early183") if b"BYE " not in packet]
    ringing = [packet for packet in sent if b"SIP/2.0 200" not in packet and b"ACK " not in packet]
    async with started(settings(database)) as one:
        await asyncio.to_thread(send_udp, one.hep_address, ringing)
        await wait("packets", lambda: one.figures().pipeline.received == len(ringing))
        status, said = await page(one, "/v1/calls/live?limit=5")
        assert status == 200
        assert said["live"] == {"trying": 0, "ringing": 8, "answered": 0}
        assert len(said["calls"]) == 5
        assert {call["state"] for call in said["calls"]} == {"ringing"}
        assert said["calls"][0]["call_id"].startswith("e183-")
        assert said["calls"][0]["pdd_ms"] > 0


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("spool", [True, False], ids=["spool", "memory"])
async def test_a_database_that_goes_away_loses_nothing(
    database: str, postgres_dsn: str, spool: bool
) -> None:
    name = database.split("///")[1].split("?", maxsplit=1)[0]
    sent = datagrams("kamailio/n_hepv2")
    config = settings(database) if spool else settings(database, spool=Spool(max_bytes=0))
    async with started(config) as one:
        assert (await page(one, "/health/ready"))[0] == 200
        await send_away(postgres_dsn, name)
        await asyncio.to_thread(send_udp, one.hep_address, sent)
        await wait("the outage", lambda: not one.figures().storage.up)
        side = "spooled" if spool else "waiting"
        await wait("its rows", lambda: one.figures().ledger()[side] == 26)
        assert one.figures().ledger()["balance"] == 0
        status, said = await page(one, "/health/ready")
        # With a spool it does its work; without one it is about to lose what it was given.
        assert status == (200 if spool else 503)
        assert not said["checks"]["database"]["ok"]
        await rows(postgres_dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await wait("the end of it", lambda: one.figures().storage.packets_stored == 26)
        assert (await page(one, "/health/ready"))[0] == 200
        assert one.figures().ledger()["balance"] == 0
    assert await rows(database, "SELECT count(*) FROM messages") == [(26,)]


@pytest.mark.usefixtures("collector")
async def test_what_a_drain_leaves_on_disk_the_next_start_stores(
    database: str, postgres_dsn: str
) -> None:
    name = database.split("///")[1].split("?", maxsplit=1)[0]
    async with started(settings(database)) as one:
        await send_away(postgres_dsn, name)
        await asyncio.to_thread(send_udp, one.hep_address, datagrams("kamailio/n_hepv2"))
        await wait("packets", lambda: one.figures().ledger()["received"] == 26)
    ledger = one.figures().ledger()
    assert (ledger["spooled"], ledger["dropped"], ledger["balance"]) == (26, 0, 0)
    # It starts although the database is away still.
    async with started(settings(database)) as one:
        assert one.figures().ledger()["inherited"] == 26
        assert not one.figures().storage.up
        await rows(postgres_dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await wait("the end of it", lambda: one.figures().storage.packets_stored == 26)
        ledger = one.figures().ledger()
        assert (ledger["spooled"], ledger["balance"]) == (0, 0)
    assert await rows(database, "SELECT count(*) FROM messages") == [(26,)]
    ended = "SELECT count(*), count(DISTINCT call_id) FROM calls"
    ((calls, distinct),) = await rows(database, ended)
    assert calls == distinct > 0


@pytest.mark.usefixtures("collector")
async def test_without_a_spool_a_database_that_is_away_at_the_start_is_an_error(
    database: str, postgres_dsn: str
) -> None:
    name = database.split("///")[1].split("?", maxsplit=1)[0]
    await send_away(postgres_dsn, name)
    one = app.Sidecar(settings(database, spool=Spool(max_bytes=0)))
    with pytest.raises(StoreUnavailable):
        await one.start()


@pytest.mark.usefixtures("collector")
async def test_a_drain_that_is_given_up_says_what_was_lost(
    database: str, postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = database.split("///")[1].split("?", maxsplit=1)[0]
    one = app.Sidecar(settings(database, spool=Spool(max_bytes=0)))
    await one.start()
    await send_away(postgres_dsn, name)
    await asyncio.to_thread(send_udp, one.hep_address, datagrams("kamailio/n_hepv2"))
    await wait("the outage", lambda: not one.figures().storage.up)
    draining = asyncio.create_task(one.drain())
    await asyncio.sleep(0.05)
    assert not draining.done()
    one.give_up()
    lost = await asyncio.wait_for(draining, LIMIT)
    assert lost >= 26
    ledger = one.figures().ledger()
    assert (ledger["dropped"], ledger["balance"], ledger["waiting"]) == (26, 0, 0)
    assert any("Ctrl-C gives them up" in message for message in caplog.messages)


@pytest.mark.usefixtures("collector")
async def test_near_the_memory_ceiling_what_waits_and_what_lingers_is_given_up_and_counted(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = 100 << 20
    monkeypatch.setattr(host, "memory_bytes", lambda: used)
    async with started(settings(database, calls=Calls(max_calls=10))) as one:
        for packet in datagrams("kamailio/j_failover"):
            one.pipeline.receive(packet, one._loop.time(), 1, AGENT)
        one._govern(one._loop.time())
        assert one.figures().memory == MemoryFigures(used, 512 << 20, 1.0)
        used = 505 << 20
        one._govern(one._loop.time())
        assert one.pipeline.calls.refuse_new
        other = datagrams("kamailio/n_hepv2")
        for packet in other:
            one.pipeline.receive(packet, 0.0, 1, AGENT)
        assert one.figures().pipeline.limits["memory"] > 0
        used = 100 << 20
        for _ in range(400):
            one._govern(one._loop.time())
        assert not one.pipeline.calls.refuse_new
        memory = one.figures().memory
        assert memory is not None
        assert memory.share == 1.0


@pytest.mark.usefixtures("collector")
async def test_a_reload_puts_in_force_who_may_speak_and_how_long_rows_are_kept(
    database: str,
) -> None:
    old = settings(database)
    new = msgspec.structs.replace(
        old,
        hep=msgspec.structs.replace(old.hep, allow=("192.0.2.0/24",), tcp_connections=3),
        retention=msgspec.structs.replace(old.retention, messages_days=2),
        limits=Limits(memory_bytes=256 << 20),
    )
    async with started(old) as one:
        plan = one.reload(new)
        assert plan.applied == ("hep.allow", "retention.messages_days", "limits.memory_bytes")
        assert plan.needs_restart == ("hep.tcp_connections",)
        assert one.config.hep.tcp_connections == old.hep.tcp_connections
        await asyncio.to_thread(send_udp, one.hep_address, datagrams("kamailio/n_hepv2"))
        await wait("packets", lambda: one.figures().ledger()["received"] == 26)
        assert one.figures().pipeline.refused == {"not-allowed": 26}
        memory = one.figures().memory
        assert memory is not None
        assert memory.ceiling_bytes == 256 << 20
        assert one.store is not None
        assert one.store.settings.retention_days["messages"] == 2


@pytest.mark.usefixtures("collector")
async def test_a_wrong_siptrace_setting_is_told_once(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = [hep.decode(packet).payload for packet in datagrams("kamailio/n_hepv2")]
    old = datagrams("kamailio/n_hepv1")
    async with started(settings(database)) as one:
        await asyncio.to_thread(send_udp, one.hep_address, plain + old)
        await wait("both", lambda: one.figures().pipeline.received == len(plain + old))
        await wait("both hints", lambda: len(caplog.messages) >= 2)
        await asyncio.to_thread(send_udp, one.hep_address, plain + old)
        await wait("again", lambda: one.figures().pipeline.received == 2 * len(plain + old))
    said = [message for message in caplog.messages if "siptrace" in message]
    assert len(said) == 2
    assert any('modparam("siptrace", "hep_mode_on", 1)' in message for message in said)
    assert any('modparam("siptrace", "hep_version", 3)' in message for message in said)


@pytest.mark.usefixtures("collector")
async def test_partitions_are_looked_after_from_the_start(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    def is_done() -> bool:
        return one._tasks[2].get_coro().cr_await is not None  # type: ignore[union-attr]

    async with started(settings(database)) as one:
        await wait("a round of maintenance", is_done)
        await asyncio.sleep(0.1)
    assert caplog.messages == []


@pytest.mark.usefixtures("collector")
async def test_what_breaks_inside_ends_the_run_and_closes_everything(database: str) -> None:
    one = app.Sidecar(settings(database))
    await one.start()
    address = one.hep_address
    one._tasks[1].cancel()  # the tick
    with pytest.raises(asyncio.CancelledError):
        await one.run_until(asyncio.Event())
    one._tasks[0].cancel()  # the writer
    with pytest.raises(asyncio.CancelledError):
        await one.drain()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    assert (
        await rows(database, "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'sips%'")
        == []
    )


@pytest.mark.usefixtures("collector")
async def test_a_start_that_fails_late_closes_what_was_opened(postgres_dsn: str) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    one = app.Sidecar(settings(postgres_dsn.replace("///sipsidecar?", "///absent?")))
    with pytest.raises(Exception, match="absent"):
        await one.start()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= len(before)  # noqa: PTH208


@pytest.mark.usefixtures("collector")
async def test_cycles_of_what_was_set_aside_are_found_in_the_end(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Knot:
        pass

    async with started(settings(database)) as one:
        knot = Knot()
        knot.self = knot  # type: ignore[attr-defined]
        gone = weakref.ref(knot)
        gc.freeze()
        del knot
        one._collect(one._loop.time())
        assert gone() is not None
        one._collect(one._loop.time() + app.WHOLE_EVERY)
        assert gone() is None
