"""What a running sidecar says of itself over HTTP: metrics, health, live calls, agents, ledger."""

import errno
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from sipsidecar.signals.snapshot import Check, Figures, health

MAX_LIVE = 1000
"""Live calls on one page."""
_ENDPOINTS = {
    "/metrics": "Prometheus text or OpenMetrics",
    "/health/live": "200 while the process answers",
    "/health/ready": "200 while it does its work, else 503; each check with its reading",
    "/v1/calls/live": "calls that are live now (?limit=100)",
    "/v1/agents": "capture agents, their clock skew and when they were last seen",
    "/v1/ledger": "where every received packet went",
}

Handler = Callable[[web.Request], Awaitable[web.Response]]


class HttpError(OSError):
    """A listener that cannot be had; the message is one line that says what to do."""


class HttpServer:
    """The pages, over callables that read the running parts."""

    def __init__(
        self,
        figures: Callable[[], Figures],
        render_metrics: Callable[[str], tuple[bytes, str]],
        live_calls: Callable[[int], Sequence[dict[str, Any]]],
    ) -> None:
        self._figures = figures
        self._render = render_metrics
        self._live = live_calls
        self._runner: web.AppRunner | None = None

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address it got."""
        app = web.Application(client_max_size=64 * 1024)
        for path, handler in (
            ("/", self._index),
            ("/metrics", self._metrics),
            ("/health/live", self._health_live),
            ("/health/ready", self._health_ready),
            ("/v1/calls/live", self._calls_live),
            ("/v1/agents", self._agents),
            ("/v1/ledger", self._ledger),
        ):
            app.router.add_get(path, handler)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            self._runner = None
            raise HttpError(error.errno, f"HTTP {host}:{port} {_explain(error)}") from None
        bound: tuple[str, int] = self._runner.addresses[0][:2]
        return bound

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _index(self, _: web.Request) -> web.Response:
        return _json(_ENDPOINTS)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _health_live(self, _: web.Request) -> web.Response:
        return _json({"status": "live", "uptime_seconds": round(self._figures().uptime_seconds, 3)})

    async def _health_ready(self, _: web.Request) -> web.Response:
        checks = health(self._figures())
        ready = all(check.ok for check in checks)
        body = {
            "status": "ready" if ready else "not-ready",
            "checks": {check.name: _reading(check) for check in checks},
        }
        return _json(body, status=200 if ready else 503)

    async def _calls_live(self, request: web.Request) -> web.Response:
        asked = request.query.get("limit", "100")
        if not re.fullmatch("[0-9]{1,9}", asked):
            error = f"limit: expected a number up to {MAX_LIVE}"
            return _json({"error": error}, status=400)
        limit = min(int(asked), MAX_LIVE)
        return _json({"live": self._figures().pipeline.live, "calls": self._live(limit)})

    async def _agents(self, _: web.Request) -> web.Response:
        figures = self._figures()
        names = figures.agent_names
        return _json(
            [
                {
                    **msgspec.structs.asdict(agent),
                    "name": names.get(agent.agent_id) if agent.agent_id is not None else None,
                }
                for agent in figures.pipeline.agents
            ]
        )

    async def _ledger(self, _: web.Request) -> web.Response:
        figures = self._figures()
        return _json(
            {
                **figures.ledger(),
                "refused_by_reason": figures.pipeline.refused,
                "dropped_by_reason": figures.storage.packets_dropped,
                "rows_stored": figures.storage.rows_stored,
                "rows_waiting": figures.storage.rows_waiting,
            }
        )


def _explain(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "is taken by another program; stop it, or give --http another ADDR:PORT"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return "is no address of this machine; give --http one that is"
    if error.errno == errno.EACCES:
        return "may not be used by this user; give --http a port above 1023"
    return error.strerror or str(error)


def _reading(check: Check) -> dict[str, object]:
    fields = msgspec.structs.asdict(check)
    del fields["name"]
    return {key: value for key, value in fields.items() if value is not None or key == "reading"}


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body) + b"\n", status=status, content_type="application/json"
    )
