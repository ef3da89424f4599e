"""The hall: the only file that builds the parts, connects them, starts, drains and stops them."""

import asyncio
import contextlib
import gc
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from sipsidecar import __version__, rows
from sipsidecar.batch import Waiting
from sipsidecar.calls.call import Call
from sipsidecar.calls.dialog import Timing
from sipsidecar.calls.events import AttemptRecord, CallRecord, PingRecord, RegistrationRecord
from sipsidecar.calls.record import outcome
from sipsidecar.calls.table import Retraction
from sipsidecar.config import Config, parse_address, redacted
from sipsidecar.edges.capture import CaptureError, TcpCapture, UdpCapture
from sipsidecar.edges.embedded import (
    Binaries,
    EmbeddedPostgres,
    default_directory,
    find_binaries,
)
from sipsidecar.edges.http import HttpServer
from sipsidecar.edges.metrics import Metrics
from sipsidecar.edges.postgres import Postgres, PostgresSettings
from sipsidecar.edges.writer import Writer
from sipsidecar.pipeline import Output, Pipeline, Stored
from sipsidecar.signals.snapshot import (
    WRITE_BOUNDS,
    CaptureFigures,
    Figures,
    Histogram,
    StorageFigures,
)
from sipsidecar.wire import hep

TIMER_TICK = 0.05
LAG_WINDOW = 5.0
MAINTENANCE_EVERY = 300.0
DRAIN_SECONDS = 30.0
FREE_PORT_TRIES = 20
COMPLAIN_EVERY = 60.0
HINTS = {
    "plain-sip": "plain SIP instead of HEP came to the HEP port and is refused; in Kamailio set"
    ' modparam("siptrace", "hep_mode_on", 1) and modparam("siptrace", "trace_mode", 1)',
    "hep-1": "an agent sends HEP version 1, which carries neither time nor capture id; in Kamailio"
    ' set modparam("siptrace", "hep_version", 3)',
}
"""Said once: what an operator can change, by what the traffic shows."""

log = logging.getLogger("sipsidecar")
Beside = Callable[["Sidecar"], Coroutine[Any, Any, None]]
"""What may run beside a sidecar, such as sample traffic."""


def data_directory(config: Config) -> Path:
    """Where the embedded PostgreSQL lives."""
    return Path(config.database.directory) if config.database.directory else default_directory()


def binaries_of(config: Config) -> Binaries | None:
    """The PostgreSQL that the configuration names; None to look in the usual places."""
    if not config.database.binaries:
        return None
    return find_binaries(Path(config.database.binaries), directory=data_directory(config))


def pipeline_of(config: Config) -> Pipeline:
    """The pipeline as it is configured."""
    return Pipeline(
        Timing(settle=config.calls.settle_seconds, longest=config.calls.max_seconds),
        max_calls=config.calls.max_calls,
        linger=config.calls.linger_seconds,
        local=[ip_address(a).packed for a in config.hep.local_addresses],
    )


class RowMaker:
    """What leaves the pipeline to rows that wait for the database."""

    def __init__(self, waiting: Waiting, node_id: int, *, messages: bool) -> None:
        self._waiting = waiting
        self._node_id = node_id
        self._messages = messages
        self._sequence = 0

    def keep(self, stored: Sequence[Stored], now: float) -> None:
        """Messages, and what was not understood."""
        waiting, node_id = self._waiting, self._node_id
        text = hep.address_text
        for m in stored:
            self._sequence += 1
            if m.why is not None:
                row = rows.encode_quarantine(
                    m.received_at,
                    m.captured_at,
                    node_id,
                    m.agent_id,
                    self._sequence,
                    text(m.source),
                    m.source_port,
                    text(m.destination),
                    m.destination_port,
                    m.why,
                    m.payload,
                )
                waiting.add("quarantine", row, now, m.packets)
            elif self._messages:
                row = rows.encode_message(
                    m.received_at,
                    m.captured_at,
                    node_id,
                    m.agent_id,
                    self._sequence,
                    m.kind,
                    text(m.source),
                    m.source_port,
                    text(m.destination),
                    m.destination_port,
                    m.transport,
                    m.call_id,
                    m.payload,
                )
                waiting.add("messages", row, now, m.packets)
            else:
                waiting.packets_dropped["messages", "not-configured"] += m.packets

    def add(self, outputs: Sequence[Output], now: float) -> None:
        """Records, and what they replace."""
        waiting, node_id = self._waiting, self._node_id
        for record in outputs:
            if isinstance(record, CallRecord):
                row, gone = rows.encode_call(record, node_id), rows.replaced(record, node_id)
                waiting.add("calls", row, now, replaces=gone)
            elif isinstance(record, AttemptRecord):
                row, gone = rows.encode_attempt(record, node_id), rows.replaced(record, node_id)
                waiting.add("attempts", row, now, replaces=gone)
            elif isinstance(record, RegistrationRecord):
                waiting.add("registrations", rows.encode_registration(record, node_id), now)
            elif isinstance(record, PingRecord):
                waiting.add("pings", rows.encode_ping(record, node_id), now)
            else:
                waiting.retract(_gone(record, node_id), now)


def _gone(record: Retraction, node_id: int) -> rows.Replaced:
    return rows.Replaced(
        "calls" if record.branch is None else "attempts",
        rows.clean_call_id(record.call_id),
        record.from_tag,
        record.branch or "",
        record.received_at,
        node_id,
        record.revision,
    )


class Sidecar:
    """One running sidecar."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self.pipeline = pipeline_of(config)
        database = config.database
        self.waiting = Waiting(
            max_rows=database.batch_rows,
            max_age=database.batch_seconds,
            max_bytes=database.queue_bytes,
        )
        self._rows = RowMaker(self.waiting, config.node.id, messages=database.store_messages)
        self._embedded: EmbeddedPostgres | None = None
        self._store: Postgres | None = None
        self._writer: Writer | None = None
        self._udp = UdpCapture(self.pipeline.receive, after_turn=self._after_turn)
        self._tcp = TcpCapture(
            self.pipeline.receive,
            connections=config.hep.tcp_connections,
            idle_seconds=config.hep.tcp_idle_seconds,
            after_turn=self._after_turn,
        )
        self._metrics = Metrics(self.figures)
        self._http = HttpServer(self.figures, self._metrics.render, self._live_calls)
        self._tasks: list[asyncio.Task[None]] = []
        self._lags: list[tuple[float, float]] = []
        self._hinted: set[str] = set()
        self._complained: dict[str, int] = {}
        self._complain_at = 0.0
        self.hep_address = self.http_address = ("", 0)
        self.dsn = ""

    async def start(self) -> None:
        """Open everything; whatever fails closes what was opened, and raises its one line."""
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        # What lives from here on dies young or stays: keep the collector away from the rest.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)

    async def _open(self) -> None:
        config = self.config
        self.hep_address = await self._listen(*parse_address(config.hep.listen))
        self.http_address = await self._http.open(*parse_address(config.http.listen))
        if config.database.dsn:
            self.dsn = config.database.dsn
        else:
            self._embedded = EmbeddedPostgres(data_directory(config), binaries=binaries_of(config))
            self.dsn = await self._embedded.start()
        retention = config.retention
        days = {
            table: getattr(retention, f"{table}_days")
            for table in ("calls", "attempts", "registrations", "pings", "messages", "quarantine")
        }
        self._store = Postgres(
            PostgresSettings(
                dsn=self.dsn,
                node_id=config.node.id,
                retention_days=days,
                ledger_days=max(days.values()),
            )
        )
        await self._store.open(floor=time.time_ns() // 1000)
        self._writer = Writer(self._store, self.waiting)
        self._writer.begin(self._store.first_sequence)
        self._tasks = [
            asyncio.create_task(self._writer.run(), name="writer"),
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._maintain(), name="maintain"),
        ]

    async def _listen(self, host: str, port: int) -> tuple[str, int]:
        """UDP and TCP on one port: a free one for UDP may be taken for TCP, then the next will do."""
        tries = 1 if port else FREE_PORT_TRIES
        while True:
            address = self._udp.open(host, port, self.config.hep.receive_buffer_bytes)
            if not self.config.hep.tcp:
                return address
            tries -= 1
            try:
                return await self._tcp.open(host, address[1])
            except CaptureError:
                self._udp.drain()
                if not tries:
                    raise

    @property
    def advice(self) -> str | None:
        """What somebody should change although everything works."""
        return self._udp.advice

    async def run_until(self, stopped: asyncio.Event) -> None:
        """Work until somebody says stop, or a part of the sidecar breaks."""
        waiter = asyncio.create_task(stopped.wait())
        done, _ = await asyncio.wait([waiter, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        for task in done:
            if task is not waiter:
                task.result()

    async def drain(self) -> int:
        """Stop receiving, write everything that was received; returns how many rows it could not."""
        before = sum(self.waiting.dropped.values())
        try:
            self._udp.drain()
            await self._tcp.drain()
            self.pipeline.drain(self._loop.time())
            self._after_turn()
            if self._writer is not None:
                if not self._writer.up:
                    log.warning(
                        "stopping: %d rows wait up to %d s for the database; Ctrl-C gives them up",
                        len(self.waiting),
                        DRAIN_SECONDS,
                    )
                self._writer.drain(DRAIN_SECONDS)
                await self._tasks[0]
        finally:
            await self._close()
        return sum(self.waiting.dropped.values()) - before

    def give_up(self) -> None:
        """Let a drain end now: what is not written yet is lost."""
        if self._writer is not None:
            self._writer.drain(0.0)

    async def _close(self) -> None:
        self._udp.drain()
        await self._tcp.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()
        if self._store is not None:
            await self._store.close()
        if self._embedded is not None:
            await self._embedded.stop()

    # -- between the parts

    def _after_turn(self) -> None:
        now = self._loop.time()
        stored = self.pipeline.stored()
        if stored:
            self._rows.keep(stored, now)
        outputs = self.pipeline.records()
        if outputs:
            self._rows.add(outputs, now)

    async def _tick(self) -> None:
        """Timers of calls, and how late the loop is."""
        loop, pipeline = self._loop, self.pipeline
        due = loop.time() + TIMER_TICK
        while True:
            await asyncio.sleep(max(due - loop.time(), 0))
            now = loop.time()
            self._lags.append((now, now - due))
            while self._lags[0][0] < now - LAG_WINDOW:
                self._lags.pop(0)
            timer = pipeline.next_timer()
            behind = False
            if timer is not None and timer <= now:
                pipeline.handle_timer(now)
                self._after_turn()
                timer = pipeline.next_timer()
                behind = timer is not None and timer <= now
            self._hint()
            due = loop.time() + (0.002 if behind else TIMER_TICK)

    def _hint(self) -> None:
        """Say what an operator can change, and once a minute what was refused: a line per kind."""
        for reason, words in HINTS.items():
            if reason not in self._hinted and self.pipeline.odd(reason):
                self._hinted.add(reason)
                log.warning("%s", words)
        now = self._loop.time()
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_EVERY
            troubles = self.pipeline.troubles()
            for what, count in troubles.items():
                new = count - self._complained.get(what, 0)
                if new:
                    log.warning("HEP: %d packets %s", new, what)
            self._complained = troubles

    async def _maintain(self) -> None:
        assert self._store is not None
        while True:
            try:
                await self._store.maintain(time.time_ns() // 1000)
            except Exception as error:  # noqa: BLE001 -- the database may be away; the next round tries again
                log.warning("partitions and retention were not looked after: %s", error)
            await asyncio.sleep(MAINTENANCE_EVERY)

    # -- what is shown

    def figures(self) -> Figures:
        """Everything that metrics, health and pages read."""
        now = self._loop.time()
        waiting, writer = self.waiting, self._writer
        tables = sorted(waiting.added)
        drops, used = self._udp.kernel()
        lost: dict[str, int] = {}
        for (_, reason), count in waiting.packets_dropped.items():
            lost[reason] = lost.get(reason, 0) + count
        return Figures(
            version=__version__,
            pipeline=self.pipeline.snapshot(now),
            storage=StorageFigures(
                up=writer is not None and writer.up,
                rows_stored=dict(waiting.stored),
                rows_waiting={table: waiting.waiting(table) for table in tables},
                rows_dropped=dict(waiting.dropped),
                packets_stored=waiting.packets_stored["messages"],
                packets_quarantined=waiting.packets_stored["quarantine"],
                packets_waiting=sum(waiting.packets_waiting.values()),
                packets_dropped=lost,
                queue_bytes=waiting.total_bytes,
                queue_limit_bytes=self.config.database.queue_bytes,
                write_seconds=writer.seconds if writer else Histogram(WRITE_BOUNDS),
                write_failures=dict(writer.failures) if writer else {},
                server_restarts=self._embedded.restarts if self._embedded else 0,
            ),
            capture=CaptureFigures(
                kernel_drops=drops,
                buffer_bytes=self._udp.buffer_bytes,
                buffer_used_bytes=used,
                tcp_connections=self._tcp.connections,
                tcp_events=dict(self._tcp.counters),
            ),
            loop_lag_seconds=max((lag for _, lag in self._lags), default=0.0),
            uptime_seconds=now - self._started,
            agent_names={number: name for name, number in self.config.hep.agents.items()},
        )

    def _live_calls(self, limit: int) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = []
        for state, call in self.pipeline.live_calls():
            if len(shown) >= limit:
                break
            shown.append(self._live(state, call))
        return shown

    def _live(self, state: str, call: Call) -> dict[str, Any]:
        said = outcome(call, self.pipeline.agents.clocks(call.clocks), Timing())
        record = said.calls[0]
        names = ("call_id", "started_at", "from_user", "to_user", "src_ip", "dst_ip", "pdd_ms")
        fields = msgspec.structs.asdict(record)
        return {"state": state, **{name: fields[name] for name in names}}


def set_up_logging(config: Config) -> None:
    """Logs go to standard error, as text or one JSON object per line."""
    handler = logging.StreamHandler(sys.stderr)
    if config.log.format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=config.log.level.upper(), handlers=[handler], force=True)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _greeting(sidecar: Sidecar) -> str:
    config = sidecar.config
    hep_at = _show(sidecar.hep_address)
    kinds = "UDP and TCP" if config.hep.tcp else "UDP"
    directory = data_directory(config)
    where, found = str(directory), ""
    if config.database.dsn:
        where, found = redacted(config.database.dsn), " --dsn DSN"
    elif directory != default_directory():
        found = f" --data {shlex.quote(str(directory))}"
    include = Path(__file__).parents[2] / "kamailio" / "sipsidecar.cfg"
    line = f'include_file "{include}"' if include.is_file() else 'include_file "sipsidecar.cfg"'
    if hep_at != "127.0.0.1:9060":
        line = f'#!define SIPSIDECAR_URI "sip:{_reached_at(sidecar)}"   then   {line}'
    program = "sipsidecar" if sys.argv[0].endswith(".py") else os.path.relpath(sys.argv[0])
    return "\n".join(
        [
            f"sipsidecar {__version__}",
            f"  HEP      {hep_at} ({kinds})",
            f"  HTTP     http://{_show(sidecar.http_address)} (/metrics /health/ready /v1/calls/live)",
            f"  data     {where}",
            f"  Kamailio {line}",
            f"  calls    {program} calls{found}",
        ]
    )


def _reached_at(sidecar: Sidecar) -> str:
    host, port = sidecar.hep_address
    everywhere = host in {"0.0.0.0", "::"}  # noqa: S104 -- compared, not listened on
    return _show((sidecar.config.node.name if everywhere else host, port))


def _show(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _serve(config: Config, also: Beside | None) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    sidecar = Sidecar(config)

    def stop() -> None:
        if stopped.is_set():
            sidecar.give_up()
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await sidecar.start()
    print(_greeting(sidecar), flush=True)  # noqa: T201 -- what a person reads first
    if sidecar.advice is not None:
        log.warning("%s", sidecar.advice)
    extra = asyncio.create_task(also(sidecar)) if also else None
    try:
        await sidecar.run_until(stopped)
    finally:
        if extra is not None:
            extra.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await extra
        lost = await sidecar.drain()
        ledger = sidecar.figures().ledger()
        log.info(
            "stopped: %d packets received: %d stored, %d quarantined, %d refused, %d dropped;"
            " %d more lost in the kernel; %d rows could not be written at the end",
            *(ledger[side] for side in ("received", "stored", "quarantined", "refused", "dropped")),
            ledger["kernel_drops"],
            lost,
        )
    return 0 if not lost else 1


def run(config: Config, also: Beside | None = None) -> int:
    """Run a sidecar until SIGINT or SIGTERM; `also` is a coroutine function that runs beside it."""
    set_up_logging(config)
    if not config.node.name:
        config = msgspec.structs.replace(
            config, node=msgspec.structs.replace(config.node, name=socket.gethostname())
        )
    os.umask(0o077)
    return uvloop.run(_serve(config, also))
