"""The hall: builds the parts of a sidecar, connects them, starts, changes, drains and stops them."""

import asyncio
import functools
import gc
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from socket import SOCK_DGRAM, SOCK_STREAM, socket
from ssl import SSLContext
from typing import Any

import msgspec

from sipsidecar import __version__, reloading, tls
from sipsidecar.admitting import Admitting
from sipsidecar.batch import WORTH, StoreError, StoreUnavailable, Waiting
from sipsidecar.calls.call import Call
from sipsidecar.calls.dialog import Timing
from sipsidecar.calls.record import outcome
from sipsidecar.calls.thresholds import Thresholds
from sipsidecar.config import Config, parse_address
from sipsidecar.edges import host, postgres
from sipsidecar.edges.capture import CaptureError, TcpCapture, UdpCapture
from sipsidecar.edges.capture.udp import HURRIED_SECONDS
from sipsidecar.edges.embedded import (
    Binaries,
    EmbeddedPostgres,
    default_directory,
    find_binaries,
)
from sipsidecar.edges.http import Access, HttpServer, Limits
from sipsidecar.edges.metrics import Metrics
from sipsidecar.edges.postgres import Maintained, Postgres, PostgresSettings
from sipsidecar.edges.rebuild import HOLD_SECONDS, rebuild
from sipsidecar.edges.spool import Report, Spool
from sipsidecar.edges.writer import Writer
from sipsidecar.gate import Gate
from sipsidecar.keeping import RowMaker
from sipsidecar.pipeline import Pipeline
from sipsidecar.privacy import Mask
from sipsidecar.signals.alarms import EventRecord, IncidentRecord
from sipsidecar.signals.baseline import BaselineHour
from sipsidecar.signals.cohort import Cohorts
from sipsidecar.signals.memory import Governor
from sipsidecar.signals.snapshot import (
    NO_SPOOL,
    WRITE_BOUNDS,
    CaptureFigures,
    Figures,
    Histogram,
    MemoryFigures,
    StorageFigures,
)
from sipsidecar.switchboard import Switchboard
from sipsidecar.watching import Watching

TIMER_TICK = 0.05
LAG_WINDOW = 5.0
TIMER_SECONDS = 0.002
"""Time that closing calls takes at once: who waits for HTTP meanwhile waits that long."""
HURRY = 1.0
"""Seconds after a question about a call in which capture and timers take short turns."""
YOUNG = 10_000
"""Objects between young collections: each looks at so many, which takes some milliseconds."""
WHOLE_EVERY, WHOLE_EVERY_BUSY = 300.0, 3600.0
"""Seconds between whole collections: each connection that ended since is some megabytes of cycles,
but to look at tens of thousands of calls takes part of a second."""
FEW_CALLS = 5000
CROWDED = 0.02
"""Fill of the receive buffer from which on what is on disk waits: live packets come first."""
MEMORY_EVERY = 0.25
RELEASE_EVERY = 10.0
DRAIN_SECONDS = 30.0
FREE_PORT_TRIES = 20
COMPLAIN_EVERY = 60.0
PROBE_EVERY = 1.0
LEARNED_US = 28 * 86_400_000_000
"""How far back what is normal is looked for."""
SHOWN_US = 86_400_000_000
"""The same for the timeline in memory."""
LATE_SECONDS = 3.0
"""How much later than the settle time a recorded call may have been heard of to be restored, too:
more would cost a restart under load more than late facts are worth."""
HINTS = {
    "plain-sip": "plain SIP instead of HEP came to the HEP port and is refused; in Kamailio set"
    ' modparam("siptrace", "hep_mode_on", 1) and modparam("siptrace", "trace_mode", 1)',
    "hep-1": "an agent sends HEP version 1, which carries neither time nor capture id; in Kamailio"
    ' set modparam("siptrace", "hep_version", 3)',
}
"""Said once: what an operator can change, by what the traffic shows."""

log = logging.getLogger("sipsidecar")


def data_directory(config: Config) -> Path:
    """Where the embedded PostgreSQL lives."""
    return Path(config.database.directory) if config.database.directory else default_directory()


def binaries_of(config: Config) -> Binaries | None:
    """The PostgreSQL that the configuration names; None to look in the usual places."""
    if not config.database.binaries:
        return None
    return find_binaries(Path(config.database.binaries), directory=data_directory(config))


def spool_directory(config: Config) -> Path:
    """Where batches wait on disk."""
    named = config.spool.directory
    return Path(named) if named else data_directory(config) / "spool"


def cohorts_of(config: Config) -> Cohorts:
    """The matchers that tell whose a call is."""
    names = {number: name for name, number in config.hep.agents.items()}
    return Cohorts(config.cohorts.match, names)


def pipeline_of(config: Config, cohorts: Cohorts | None = None) -> Pipeline:
    """The pipeline as it is configured; whoever may be heard is the caller's business."""
    privacy = config.privacy
    return Pipeline(
        Timing(settle=config.calls.settle_seconds, longest=config.calls.max_seconds),
        max_calls=config.calls.max_calls,
        linger=config.calls.linger_seconds,
        local=[ip_address(a).packed for a in config.hep.local_addresses],
        mask=Mask(
            privacy.key.encode(),
            users=privacy.mask_users,
            names=privacy.mask_names,
            bodies=privacy.mask_bodies,
            keep_dtmf=privacy.keep_dtmf,
            keep_media_keys=privacy.keep_media_keys,
        ),
        thresholds=thresholds_of(config),
        switches=tuple(config.freeswitch.switches),
        cohorts=cohorts if cohorts is not None else cohorts_of(config),
    )


def thresholds_of(config: Config) -> Thresholds:
    """How media is rated and judged."""
    said = config.quality
    names = set(Thresholds.__struct_fields__) - {"network_delay_ms"}
    return Thresholds(
        **{name: getattr(said, name) for name in names},
        network_delay_ms=said.network_delay_ms or None,
    )


def postgres_settings(config: Config, dsn: str) -> PostgresSettings:
    """How to write to the database: tables' ages and sizes, and as which node."""
    retention = config.retention
    days = {table: getattr(retention, f"{table}_days") for table in WORTH}
    # A batch on disk whose row in the ledger was gone would be stored a second time.
    ledger_days = max(*days.values(), int(config.spool.max_age_hours / 24) + 2)
    return PostgresSettings(
        dsn=dsn,
        password=config.database.password,
        node_id=config.node.id,
        retention_days=days,
        ledger_days=ledger_days,
        max_bytes=retention.max_bytes,
    )


def access_of(config: Config) -> Access:
    """Who may ask over HTTP."""
    http = config.http
    return Access(http.read_tokens, http.operate_tokens, http.hosts, http.post_tokens)


def _contexts(certificate: str, key: str, client_ca: str = "") -> Callable[[], SSLContext]:
    return functools.partial(tls.server_context, certificate, key, client_ca)


class Sidecar:
    """One running sidecar.

    `sockets` are listeners that somebody else bound and keeps, by kind of socket: while a sidecar
    is being replaced the kernel receives on.
    """

    def __init__(
        self,
        config: Config,
        sockets: Mapping[int, socket] | None = None,
        *,
        reload: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.config = config
        self._sockets = dict(sockets or {})
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        cohorts = cohorts_of(config)
        self.pipeline = pipeline_of(config, cohorts)
        self.pipeline.gate = Gate(config.hep.allow, config.hep.keys)
        database = config.database
        self.waiting = Waiting(
            max_rows=database.batch_rows,
            max_age=database.batch_seconds,
            max_bytes=database.queue_bytes,
        )
        self._rows = RowMaker(
            self.waiting,
            config.node.id,
            messages=database.store_messages,
            intervals=config.quality.store_intervals,
        )
        self._embedded: EmbeddedPostgres | None = None
        self.store: Postgres | None = None
        self._spool: Spool | None = None
        self._writer: Writer | None = None
        self._udp = UdpCapture(self.pipeline.receive, after_turn=self._after_turn)
        self._tcp = TcpCapture(
            self.pipeline.receive,
            connections=config.hep.tcp_connections,
            idle_seconds=config.hep.tcp_idle_seconds,
            after_turn=self._after_turn,
            admits=self._admits,
        )
        self._switchboard = Switchboard(config, self.pipeline)
        self._admitting: Admitting | None = None
        if config.admission.wanted:
            disks = [str(data_directory(config)), str(spool_directory(config))]
            self._admitting = Admitting(
                config,
                cohorts,
                self.pipeline,
                self._switchboard,
                self.figures,
                asked=self._hurry,
                disks=disks,
            )
        self._watching: Watching | None = None
        if config.kpi.enabled:
            self._watching = Watching(
                config,
                cohorts,
                self.pipeline,
                _Left(self),
                elsewhere=self._admitting.is_elsewhere if self._admitting else lambda _: False,
                switches=self._switchboard.pushes,
            )
            self._switchboard.tell = functools.partial(self._watching.happened, "switch")
        self._watch()
        self._metrics = Metrics(self.figures, heplify_names=config.kpi.heplify_names)
        http = config.http
        self._http = HttpServer(
            self.figures,
            self._metrics.render,
            self._live_calls,
            switches=self._switchboard.page,
            admission=self._admitting,
            watch=self._watching,
            access=access_of(config),
            reload=reload,
            tls=_contexts(http.tls_certificate, http.tls_key) if http.tls_certificate else None,
            limits=Limits(connections=http.connections),
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._lags: list[tuple[float, float]] = []
        self._governor = Governor(config.limits.memory_bytes)
        self._memory_at = self._release_at = self._collected_at = 0.0
        self._draining = False
        self._maintained: Maintained | None = None
        self._rebuilding = bool(config.calls.rebuild_seconds and database.store_messages)
        self._hinted: set[str] = set()
        self._complained: dict[str, int] = {}
        self._complain_at = 0.0
        self.hep_address = self.http_address = ("", 0)
        self.hep_tls_address: tuple[str, int] | None = None
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
        gc.set_threshold(YOUNG, 1_000_000, 1_000_000)
        self._collected_at = self._loop.time()

    async def _open(self) -> None:
        config = self.config
        self.hep_address = await self._listen(*parse_address(config.hep.listen))
        if config.hep.tls_listen:
            files = (config.hep.tls_certificate, config.hep.tls_key, config.hep.tls_client_ca)
            self.hep_tls_address = await self._tcp.open_tls(
                *parse_address(config.hep.tls_listen), _contexts(*files)
            )
        self.http_address = await self._http.open(*parse_address(config.http.listen))
        if config.database.dsn:
            self.dsn = config.database.dsn
        else:
            self._embedded = EmbeddedPostgres(data_directory(config), binaries=binaries_of(config))
            self.dsn = await self._embedded.start()
        self.store = Postgres(postgres_settings(config, self.dsn))
        away = False
        try:
            await self.store.open(floor=time.time_ns() // 1000)
        except StoreUnavailable as error:
            if not config.spool.max_bytes:
                raise
            away = True
            log.warning("%s; what comes waits on disk until it is there", error)
        # Without room it takes nothing, but what an earlier life left there is stored.
        if config.spool.max_bytes or spool_directory(config).is_dir():
            spool = Spool(
                spool_directory(config),
                config.node.id,
                max_bytes=config.spool.max_bytes,
                max_age_seconds=config.spool.max_age_hours * 3600,
            )
            await spool.open()
            self._spool = spool
        self._writer = Writer(
            self.store,
            self.waiting,
            self._spool,
            life=secrets.randbits(63),
            write_ahead=config.spool.write_ahead,
            crowded=self._crowded,
        )
        self._writer.up = not away
        self._writer.begin(self.store.first_sequence)
        began = self._loop.time()
        self.pipeline.calls.warming_until = began + config.calls.warming_seconds
        self.pipeline.calls.hold_partials_until = began + HOLD_SECONDS
        self._tasks = [
            asyncio.create_task(self._writer.run(), name="writer"),
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._maintain(), name="maintain"),
            asyncio.create_task(self._rebuild(), name="rebuild"),
            *self._switchboard.tasks(),
        ]
        if self._admitting is not None:
            await self._admitting.open()
            self._tasks += self._admitting.tasks()
        if self._watching is not None:
            self._tasks += self._watching.tasks()

    async def _listen(self, host: str, port: int) -> tuple[str, int]:
        """UDP and TCP on one port: a free one for UDP may be taken for TCP, then the next will do."""
        config = self.config.hep
        udp, tcp = self._sockets.get(SOCK_DGRAM), self._sockets.get(SOCK_STREAM)
        tries = FREE_PORT_TRIES if not port and udp is None and tcp is None else 1
        while True:
            address = self._udp.open(host, port, config.receive_buffer_bytes, udp)
            if not config.tcp:
                return address
            tries -= 1
            try:
                return await self._tcp.open(host, address[1], tcp)
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

    def reload(self, config: Config) -> reloading.Plan:
        """Put in force what can be changed while calls go on; says what needs a restart.

        Raises TlsError, and then changes nothing.
        """
        plan = reloading.changes(self.config, config)
        if self.hep_tls_address is not None:
            self._tcp.reload_tls()
        self._http.reload_tls()
        self.config = config = reloading.merged(self.config, config, plan)
        self.pipeline.gate = Gate(config.hep.allow, config.hep.keys)
        self._http.access = access_of(config)
        self._governor.ceiling = config.limits.memory_bytes
        self.pipeline.calls.warming_until = self._started + config.calls.warming_seconds
        if self.store is not None:
            self.store.settings = postgres_settings(config, self.dsn)
        if self._admitting is not None:
            self._admitting.reload(config)
        if self._watching is not None:
            self._watching.reload(config)
        self._watch()
        return plan

    async def drain(self) -> int:
        """Stop receiving, keep everything that was received; returns how many rows it could not.

        What cannot be in the database in time waits in the spool for the next start.
        """
        before = sum(self.waiting.dropped.values())
        self._draining = True
        self.waiting.limit(self.config.database.queue_bytes)  # every call that is open leaves now
        try:
            self._udp.drain()
            await self._tcp.drain()
            self.pipeline.drain(self._loop.time())
            self._after_turn()
            if self._watching is not None:
                self._rows.add(self._watching.drain(), self._loop.time())
            if self._writer is not None:
                if not self._writer.up and self._spool is None:
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
        if self._watching is not None:  # who is told of incidents is told of the last ones
            await self._watching.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._admitting is not None:
            await self._admitting.close()
        await self._http.close()
        if self.store is not None:
            await self.store.close()
        if self._spool is not None:
            await self._spool.close()
        if self._embedded is not None:
            await self._embedded.stop()

    # -- between the parts

    def _watch(self) -> None:
        """Have the pipeline tell what somebody here wants to know, and no more: it costs time."""
        admitting = self._admitting
        self.pipeline.watch(
            moves=admitting is not None,
            setups=self._watching is not None
            or (admitting is not None and admitting.judges_setups),
            traits=self._watching is not None and self.config.detect.enabled,
        )

    def _hurry(self) -> None:
        """Somebody asks about calls: an answer must not wait for long turns."""
        self._udp.hurried_until = self._loop.time() + HURRY

    def _admits(self, peer: str) -> bool:
        return self.pipeline.gate.admits(peer)

    def _crowded(self) -> bool:
        """Whether the kernel holds more than a moment's worth of packets for us."""
        return self._udp.kernel()[1] > CROWDED * self._udp.buffer_bytes

    def _after_turn(self) -> None:
        now = self._loop.time()
        stored = self.pipeline.stored()
        if stored:
            self._rows.keep(stored, now)
        outputs = self.pipeline.records()
        if outputs:
            self._rows.add(outputs, now)
        setups = self.pipeline.setups()
        if self._watching is not None:
            noted = self._watching.after_turn(outputs, setups)
            if noted:
                self._rows.add(noted, now)
        if self._admitting is not None:
            decided = self._admitting.after_turn(outputs, setups, now)
            if decided:
                self._rows.add(decided, now)
                if self._watching is not None:
                    self._watching.decided(decided)

    async def _tick(self) -> None:
        """Timers of calls, memory, and how late the loop is."""
        loop = self._loop
        due = loop.time() + TIMER_TICK
        while True:
            await asyncio.sleep(max(due - loop.time(), 0))
            now = loop.time()
            self._lags.append((now, now - due))
            while self._lags[0][0] < now - LAG_WINDOW:
                self._lags.pop(0)
            self._after_turn()  # what came by other ways than HEP
            behind = self._close_due(now)
            if now >= self._memory_at:
                self._memory_at = now + MEMORY_EVERY
                self._govern(now)
                self._collect(now)
            self._hint()
            due = loop.time() + (0.0 if behind else TIMER_TICK)

    def _close_due(self, now: float) -> bool:
        """Close the calls that are due, for a short while; returns whether there are more."""
        hurried = now < self._udp.hurried_until
        pipeline = self.pipeline
        until = time.monotonic() + (HURRIED_SECONDS if hurried else TIMER_SECONDS)
        while (timer := pipeline.next_timer()) is not None and timer <= now:
            if time.monotonic() >= until:
                return True
            pipeline.handle_timer(now)
            self._after_turn()
        return False

    def _collect(self, now: float) -> None:
        """Keep the garbage collector away from what lives long: thousands of calls at a time.

        What is young is collected at each look, and what survives is set aside, so that no young
        collection finds much: they took up to 400 ms when it was left to counts, which objects that
        are freed keep low. A cycle that becomes garbage later waits for the whole collection.
        """
        every = WHOLE_EVERY if len(self.pipeline.calls) < FEW_CALLS else WHOLE_EVERY_BUSY
        if now - self._collected_at >= every:
            self._collected_at = now
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        else:
            gc.collect(1)
            gc.freeze()

    def _govern(self, now: float) -> None:
        """Keep the process under its memory ceiling by lowering what may be held."""
        governor, calls, config = self._governor, self.pipeline.calls, self.config
        was_pressed = governor.pressed
        relief = governor.read(host.memory_bytes())
        if not (governor.pressed or was_pressed) or self._draining:
            return
        self.waiting.limit(int(config.database.queue_bytes * relief.lingering))
        live = len(calls) - calls.lingering
        calls.refuse_new = relief.calls < 1 and live >= relief.calls * config.calls.max_calls
        calls.shrink(relief.lingering, now)
        legs = self.pipeline.bridging.legs
        legs.refuse_new = (
            relief.calls < 1 and len(legs) >= 2 * relief.calls * config.calls.max_calls
        )
        legs.shrink(relief.lingering, now)
        self._after_turn()
        if governor.pressed and now >= self._release_at:
            self._release_at = now + RELEASE_EVERY
            if not self._crowded():  # it takes a while, and in a flood all of it is used anyway
                host.release_memory()
            log.warning(
                "memory: %d of %d MB in use; room for waiting rows is at %d %%, for calls at %d %%",
                governor.used >> 20,
                governor.ceiling >> 20,
                round(relief.lingering * 100),
                round(relief.calls * 100),
            )

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
        """Partitions and retention, whenever it is time."""
        assert self.store is not None
        while True:
            every = self.config.retention.check_seconds
            try:
                done = await self.store.maintain(time.time_ns() // 1000, interval_s=every)
            except StoreError as error:
                log.warning("partitions and retention were not looked after: %s", error)
            else:
                if not done.skipped:
                    self._maintained = done
                strays = sum(done.default_rows.values())
                if strays:
                    log.warning("%d rows were in DEFAULT partitions and are being moved", strays)
            await asyncio.sleep(every)

    async def _rebuild(self) -> None:
        """Take up the calls that an earlier life left open, once all that it left is in the database."""
        config, store, spool = self.config, self.store, self._spool
        assert store is not None
        began_us = time.time_ns() // 1000
        if self._rebuilding:
            while True:
                try:
                    await store.open()
                except StoreError:
                    pass  # the writer says it
                else:
                    if spool is None or not spool.batches:
                        break
                await asyncio.sleep(PROBE_EVERY)
            where, node_id = store.settings, config.node.id
            heard_since_us = began_us - int(config.calls.rebuild_seconds * 1_000_000)
            # A day of slack: a call's record is filed under its beginning.
            since_us = heard_since_us - 86_400 * 1_000_000
            done = await rebuild(
                functools.partial(postgres.find_unfinished, where, node_id),
                lambda ids, limit: postgres.find_sip(
                    where, node_id, ids, since_us=heard_since_us, limit=limit
                ),
                lambda ids: postgres.find_rows(where, node_id, ids, since_us),
                self.pipeline,
                now=self._loop.time,
                at_us=began_us,
                look_back=config.calls.rebuild_seconds,
                linger=min(config.calls.settle_seconds + LATE_SECONDS, config.calls.linger_seconds),
                limit=config.calls.max_calls,
            )
            self._rebuilding = False
            if done.calls or done.left_out:
                log.info(
                    "%d calls of an earlier life are followed again (%d messages, %.1f s);"
                    " not %d calls and %d messages",
                    done.calls,
                    done.messages,
                    done.seconds,
                    done.left_out,
                    done.messages_left_out,
                )
        await asyncio.Event().wait()  # its end is not the sidecar's

    # -- what is shown

    def figures(self) -> Figures:
        """Everything that metrics, health and pages read."""
        now = self._loop.time()
        drops, used = self._udp.kernel()
        return Figures(
            version=__version__,
            pipeline=self.pipeline.snapshot(now),
            storage=self._storage(),
            capture=CaptureFigures(
                kernel_drops=drops,
                buffer_bytes=self._udp.buffer_bytes,
                buffer_used_bytes=used,
                tcp_connections=self._tcp.connections,
                tcp_events=dict(self._tcp.counters),
                errors=self._udp.errors + self._tcp.errors,
            ),
            loop_lag_seconds=max((lag for _, lag in self._lags), default=0.0),
            uptime_seconds=now - self._started,
            agent_names={number: name for name, number in self.config.hep.agents.items()},
            warming=self.pipeline.warming(now),
            rebuilding=self._rebuilding,
            memory=MemoryFigures(
                self._governor.used, self._governor.ceiling, min(self._governor.relief)
            ),
            http_events=dict(self._http.counters),
            switches=self._switchboard.figures(now),
            admission=self._admitting.figures() if self._admitting is not None else None,
            watch=self._watching.figures() if self._watching is not None else None,
        )

    def _storage(self) -> StorageFigures:
        """Where rows and packets are, in memory, on disk and in the database."""
        waiting, writer, done = self.waiting, self._writer, self._maintained
        disk = self._spool.report if self._spool is not None else Report()
        lost: Counter[str] = Counter()
        for dropped in (waiting.packets_dropped, disk.packets_dropped):
            for (_, reason), count in dropped.items():
                lost[reason] += count
        stored = Counter(waiting.packets_stored) + Counter(disk.packets_stored)
        refused = Counter(waiting.packets_refused) + Counter(disk.packets_refused)
        return StorageFigures(
            up=writer is not None and writer.up,
            rows_stored=_sum(waiting.stored, disk.rows_stored),
            rows_waiting={table: waiting.waiting(table) for table in sorted(waiting.added)},
            rows_dropped=_sum(waiting.dropped, disk.rows_dropped),
            packets_stored=stored["messages"],
            packets_quarantined=stored["quarantine"] + sum(refused.values()),
            packets_waiting=sum(waiting.packets_waiting.values()),
            packets_dropped=dict(lost),
            queue_bytes=waiting.total_bytes,
            queue_limit_bytes=self.config.database.queue_bytes,
            write_seconds=writer.seconds if writer else Histogram(WRITE_BOUNDS),
            write_failures=dict(writer.failures) if writer else {},
            server_restarts=self._embedded.restarts if self._embedded else 0,
            spool=self._spool.figures() if self._spool is not None else NO_SPOOL,
            rows_refused=_sum(waiting.refused, disk.rows_refused),
            default_rows=done.default_rows if done is not None else {},
            size_bytes=done.bytes if done is not None else None,
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


class _Left:
    """What an earlier life of this sidecar left in the database, once that is there."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    async def _where(self) -> PostgresSettings:
        while True:
            store = self._sidecar.store
            if store is not None:
                try:
                    await store.open()
                except StoreError:
                    pass  # the writer says it
                else:
                    return store.settings
            await asyncio.sleep(PROBE_EVERY)

    async def baseline(self) -> list[BaselineHour]:
        since_us = time.time_ns() // 1000 - LEARNED_US
        where = await self._where()
        return await postgres.find_baseline(where, where.node_id, since_us)

    async def incidents(self) -> list[IncidentRecord]:
        where = await self._where()
        return await postgres.find_open_incidents(where, where.node_id)

    async def events(self, limit: int) -> list[EventRecord]:
        at_us = time.time_ns() // 1000
        return await postgres.find_timeline(await self._where(), at_us - SHOWN_US, at_us, limit)


def _sum(one: Mapping[Any, int], other: Mapping[Any, int]) -> dict[Any, int]:
    """Add counts that have the same key."""
    return {key: one.get(key, 0) + other.get(key, 0) for key in one.keys() | other.keys()}
