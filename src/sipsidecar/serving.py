"""Runs a sidecar as a program: its greeting, signals, logs, service manager, and how it ends."""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from sipsidecar import __version__
from sipsidecar.app import Sidecar, data_directory
from sipsidecar.config import Config, ConfigError, redacted
from sipsidecar.edges import systemd
from sipsidecar.edges.embedded import default_directory
from sipsidecar.logs import Logs, set_up
from sipsidecar.tls import TlsError

STATUS_EVERY = 10.0

log = logging.getLogger("sipsidecar")
Beside = Callable[[Sidecar], Coroutine[Any, Any, None]]
"""What may run beside a sidecar, such as sample traffic."""


def _greeting(sidecar: Sidecar) -> str:
    config = sidecar.config
    hep_at = _show(sidecar.hep_address)
    kinds = "UDP and TCP" if config.hep.tcp else "UDP"
    if sidecar.hep_tls_address is not None:
        kinds += f"; TLS on {_show(sidecar.hep_tls_address)}"
    scheme = "https" if config.http.tls_certificate else "http"
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
            f"  HTTP     {scheme}://{_show(sidecar.http_address)} (/metrics /health/ready /v1/calls/live)",
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


class Service:
    """One sidecar under its signals and its service manager."""

    def __init__(
        self,
        config: Config,
        load: Callable[[], Config],
        logs: Logs,
        notifier: systemd.Notifier,
        sockets: list[tuple[str, socket.socket]],
    ) -> None:
        self._load = load
        self._logs = logs
        self._notifier = notifier
        self._stopped = asyncio.Event()
        hep: dict[int, socket.socket] = {}
        for name, sock in sockets:
            if name in {"hep", "unknown"} and sock.type not in hep:
                hep[sock.type] = sock
            else:
                log.warning("a socket of the service manager is not used: HEP has one of each kind")
                sock.close()
        self.sidecar = Sidecar(config, hep, reload=self.reload)

    def stop(self) -> None:
        """End the work; asked twice, give up what is not written yet."""
        if self._stopped.is_set():
            self.sidecar.give_up()
        self._stopped.set()

    def reload(self) -> dict[str, Any]:
        """Read the settings again; says what is in force now, and what needs a restart.

        Raises ConfigError or TlsError, and then nothing has changed.
        """
        self._notifier.reloading()
        try:
            plan = self.sidecar.reload(_named(self._load()))
        finally:
            self._notifier.ready(self._status())
        self._logs.change(self.sidecar.config.log)
        log.info("%s", plan.words)
        return {"reloaded": plan.applied, "needs_restart": plan.needs_restart}

    def hang_up(self) -> None:
        """Reload on SIGHUP: nobody waits for an answer, so trouble is for the log."""
        try:
            self.reload()
        except (ConfigError, TlsError) as error:
            log.warning("nothing was reloaded: %s", error)

    async def run(self, also: Beside | None) -> int:
        """Work until a signal; returns the exit code."""
        loop, sidecar, notifier = asyncio.get_running_loop(), self.sidecar, self._notifier
        loop.set_exception_handler(self._logs.loop_exception)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)
        await sidecar.start()
        print(_greeting(sidecar), flush=True)  # noqa: T201 -- what a person reads first
        if sidecar.advice is not None:
            log.warning("%s", sidecar.advice)
        notifier.ready(self._status())
        report = asyncio.create_task(self._report())
        extra = asyncio.create_task(also(sidecar)) if also is not None else None
        try:
            await sidecar.run_until(self._stopped)
        finally:
            notifier.stopping("writing what was received")
            if extra is not None:
                extra.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await extra
            lost = await sidecar.drain()
            report.cancel()  # not before: the watchdog looks at a drain, too
            ledger = sidecar.figures().ledger()
            log.info(
                "stopped: %d packets received: %d stored, %d on disk for the next start,"
                " %d quarantined, %d refused, %d dropped; %d more lost in the kernel;"
                " %d rows could not be written at the end",
                *(
                    ledger[side]
                    for side in (
                        "received", "stored", "spooled", "quarantined", "refused", "dropped",
                        "kernel_drops",
                    )
                ),
                lost,
            )  # fmt: skip
        return 0 if not lost else 1

    async def _report(self) -> None:
        """Tell the service manager that the loop turns, and how it stands."""
        every = min(self._notifier.watchdog_interval or STATUS_EVERY, STATUS_EVERY)
        while True:
            self._logs.tick()
            self._notifier.ping()
            if not self._stopped.is_set():
                self._notifier.status(self._status())
            await asyncio.sleep(every)

    def _status(self) -> str:
        figures = self.sidecar.figures()
        ledger = figures.ledger()
        return (
            f"{sum(figures.pipeline.live.values())} live calls, {ledger['received']} packets,"
            f" {ledger['waiting']} waiting, {ledger['spooled']} on disk,"
            f" {ledger['dropped'] + ledger['kernel_drops']} lost"
        )


def _named(config: Config) -> Config:
    if config.node.name:
        return config
    node = msgspec.structs.replace(config.node, name=socket.gethostname())
    return msgspec.structs.replace(config, node=node)


async def _serve(
    config: Config, load: Callable[[], Config], logs: Logs, also: Beside | None = None
) -> int:
    notifier = systemd.Notifier.from_environment(os.environ)
    try:
        sockets = systemd.listening(os.environ)
        return await Service(config, load, logs, notifier, sockets).run(also)
    finally:
        notifier.close()


def run(
    config: Config, load: Callable[[], Config] | None = None, also: Beside | None = None
) -> int:
    """Run a sidecar until SIGINT or SIGTERM.

    `load` reads the settings again (SIGHUP, POST /v1/reload); `also` is a coroutine function that
    runs beside it.
    """
    logs = set_up(config.log)
    os.umask(0o077)
    try:
        return uvloop.run(_serve(_named(config), load or (lambda: config), logs, also))
    finally:
        logs.close()
