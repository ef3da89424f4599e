"""What each page says: figures to JSON, or to what Prometheus reads."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from sipsidecar.edges.http.guard import Role
from sipsidecar.signals.snapshot import Check, Figures, health

MAX_LIVE = 1000
"""Live calls on one page."""

Render = Callable[[str], tuple[bytes, str]]
Reload = Callable[[], dict[str, Any]]
Switches = Callable[[], Sequence[dict[str, Any]]]


class Request(NamedTuple):
    """What a page is made of."""

    http: web.BaseRequest
    role: Role
    """Of who asks."""
    body: bytes = b""
    """At most `connections.MAX_BODY` of it."""


class Page(msgspec.Struct, frozen=True):
    """One page: who may have it, and what makes it.

    In its path a part of `{name}` stands for any text, which may have slashes in it.
    """

    text: str
    make: Callable[[Request], web.Response]
    needs: Role = Role.READ
    methods: tuple[str, ...] = ("GET",)
    body: bool = False
    """A POST of it says something; else its body is empty or {}."""
    probe: bool = False
    """It is cheap, and answered whatever others ask for."""
    question: bool = False
    """It is that of a call which waits for the answer: cheap, and waits for no probe either."""

    @property
    def changes(self) -> bool:
        """Whether it does something, also by GET: a browser must not be made to send it."""
        return self.needs in (Role.OPERATE, Role.POST)


class Pages:
    """The pages, over callables that read the running parts."""

    def __init__(
        self,
        figures: Callable[[], Figures],
        render_metrics: Render,
        live_calls: Callable[[int], Sequence[dict[str, Any]]],
        reload: Reload | None,
        switches: Switches = list,
        more: Mapping[str, Page] | None = None,
    ) -> None:
        self._figures = figures
        self._render = render_metrics
        self._live = live_calls
        self._reload = reload
        self._switches = switches
        nobody = Role.NOBODY
        self.table = {
            "/": Page("this list", self._index),
            "/metrics": Page("Prometheus text or OpenMetrics", self._metrics),
            "/health/live": Page(
                "200 while the process answers", self._health_live, nobody, probe=True
            ),
            "/health/ready": Page(
                "200 while it does its work, else 503; each check with its reading",
                self._health_ready,
                nobody,
                probe=True,
            ),
            "/v1/calls/live": Page("calls that are live now (?limit=100)", self._calls_live),
            "/v1/agents": Page(
                "capture agents, their clock skew and when they were last seen", self._agents
            ),
            "/v1/switches": Page(
                "FreeSWITCHes: connection, version, load, gateways", self._switches_now
            ),
            "/v1/ledger": Page("where every received packet went", self._ledger),
        }
        if reload is not None:
            self.table["/v1/reload"] = Page(
                "read the settings again; what was applied, what needs a restart",
                self._reload_settings,
                Role.OPERATE,
                ("POST",),
            )
        self.table.update(more or {})
        self._patterns = [
            (path[: path.index("{")], path[path.index("}") + 1 :], page)
            for path, page in self.table.items()
            if "{" in path
        ]

    def find(self, path: str) -> Page | None:
        """The page of a path, if there is one."""
        page = self.table.get(path)
        if page is not None:
            return page
        for start, end, page in self._patterns:
            if path.startswith(start) and path.endswith(end) and len(path) > len(start + end):
                return page
        return None

    def _index(self, _: Request) -> web.Response:
        return json_response(
            {
                path
                if page.methods == ("GET",)
                else f"{' or '.join(page.methods)} {path}": page.text
                for path, page in self.table.items()
                if path != "/"
            }
        )

    def _metrics(self, request: Request) -> web.Response:
        body, content_type = self._render(request.http.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _health_live(self, _: Request) -> web.Response:
        uptime = round(self._figures().uptime_seconds, 3)
        return json_response({"status": "live", "uptime_seconds": uptime})

    def _health_ready(self, request: Request) -> web.Response:
        checks = health(self._figures())
        ready = all(check.ok or not check.required for check in checks)
        body: dict[str, object] = {"status": "ready" if ready else "not-ready"}
        if Role.READ in request.role:  # how full the queue is helps an attacker
            body["checks"] = {check.name: _reading(check) for check in checks}
        return json_response(body, status=200 if ready else 503)

    def _calls_live(self, request: Request) -> web.Response:
        asked = request.http.query.get("limit", "100")
        if not re.fullmatch("[0-9]{1,9}", asked):
            return error_response(400, f"limit: expected a number up to {MAX_LIVE}")
        limit = min(int(asked), MAX_LIVE)
        return json_response({"live": self._figures().pipeline.live, "calls": self._live(limit)})

    def _agents(self, _: Request) -> web.Response:
        figures = self._figures()
        names = figures.agent_names
        return json_response(
            [
                {
                    **msgspec.structs.asdict(agent),
                    "name": names.get(agent.agent_id) if agent.agent_id is not None else None,
                }
                for agent in figures.pipeline.agents
            ]
        )

    def _switches_now(self, _: Request) -> web.Response:
        return json_response(self._switches())

    def _ledger(self, _: Request) -> web.Response:
        figures = self._figures()
        storage = figures.storage
        body = {
            **figures.ledger(),
            "refused_by_reason": figures.pipeline.refused,
            "dropped_by_reason": storage.packets_dropped,
            "rows_stored": storage.rows_stored,
            "rows_waiting": storage.rows_waiting,
            "spool": storage.spool,
        }
        return json_response(body)

    def _reload_settings(self, _: Request) -> web.Response:
        assert self._reload is not None
        return json_response(self._reload())


def _reading(check: Check) -> dict[str, object]:
    fields = msgspec.structs.asdict(check)
    del fields["name"]
    return {key: value for key, value in fields.items() if value is not None or key == "reading"}


def json_response(body: object, status: int = 200) -> web.Response:
    """Make the answer that holds a value as JSON."""
    return web.Response(
        body=msgspec.json.encode(body) + b"\n", status=status, content_type="application/json"
    )


def error_response(status: int, error: str) -> web.Response:
    """Make the answer to a request that was not fulfilled; `error` says what to do."""
    return json_response({"error": error}, status)
