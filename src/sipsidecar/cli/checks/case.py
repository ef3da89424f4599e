"""What the checks of `sipsidecar doctor` look at, and what each of them says."""

import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from sipsidecar import app
from sipsidecar.cli.asking import Asked, NoAnswerError
from sipsidecar.config import Loaded
from sipsidecar.edges import embedded
from sipsidecar.tables import clip

SHOWN = 5
"""Agents, files and the like that are named; more are only counted."""

State = Literal["ok", "warn", "fail", "unknown"]


class Finding(msgspec.Struct, frozen=True):
    """What one check read, and in plain words what to do."""

    check: str
    state: State
    reading: str
    advice: str | None = None
    figures: Mapping[str, object] = {}
    """The same as numbers."""


class CheckPage(msgspec.Struct):
    """One check of /health/ready."""

    ok: bool
    reading: Any = None
    limit: Any = None
    advice: str | None = None
    required: bool = True


class ReadyPage(msgspec.Struct):
    """/health/ready; without a token it shows no checks."""

    status: Literal["ready", "not-ready"]
    checks: dict[str, CheckPage] = {}


class AgentPage(msgspec.Struct):
    """One agent of /v1/agents."""

    last_seen_seconds: float
    agent_id: int | None = None
    address: str = ""
    name: str | None = None
    clock_skew_seconds: float | None = None

    @property
    def shown(self) -> str:
        """Who it is, for people."""
        at = f"capture id {self.agent_id}" if self.agent_id is not None else "no capture id"
        return f"{clip(self.name or at, 64)} at {clip(self.address, 64)}"


class LedgerPage(msgspec.Struct):
    """/v1/ledger, as far as it is judged here."""

    received: int
    balance: int
    kernel_drops: int = 0
    stored: int = 0
    dropped: int = 0
    refused: int = 0
    dropped_by_reason: dict[str, int] = {}
    refused_by_reason: dict[str, int] = {}


class Running:
    """What the running sidecar says of itself, as far as it says anything."""

    def __init__(self) -> None:
        self.ready: ReadyPage | None = None
        self.agents: list[AgentPage] | None = None
        self.ledger: LedgerPage | None = None
        self.metrics: dict[str, float] = {}
        self.version: str | None = None
        self.refused = False
        """It wants a token that we do not have."""
        self.silence: str | None = "no answer in time"
        """Why nothing answered; None when a sidecar did."""
        self.absent = False
        """Nothing listens there."""

    def ask(self, asked: Asked) -> None:
        """Fill in one page after the other."""
        try:
            self._decode("/health/ready", asked, {200, 503})
            for path in ("/metrics", "/v1/ledger", "/v1/agents"):
                self._decode(path, asked, {200})
        except NoAnswerError as error:
            self.silence = str(error) if self.ready is None else None
            self.absent = str(error) == os.strerror(errno.ECONNREFUSED)

    def _decode(self, path: str, asked: Asked, good: set[int]) -> None:
        status, body = asked.get(path)
        if status in {401, 403} and self.ready is not None:
            self.refused = True
            return
        if status not in good:
            raise NoAnswerError(f"{path} answers {status}")
        try:
            if path == "/metrics":
                self._read_metrics(body.decode("utf-8"))
            elif path == "/health/ready":
                self.ready = msgspec.json.decode(body, type=ReadyPage)
                self.silence = None
            elif path == "/v1/ledger":
                self.ledger = msgspec.json.decode(body, type=LedgerPage)
            else:
                self.agents = msgspec.json.decode(body, type=list[AgentPage])
        except ValueError:
            raise NoAnswerError(f"{path} is not a sidecar's") from None

    def _read_metrics(self, text: str) -> None:
        for name, value in re.findall(r"(?m)^([a-z_]{1,100}) ([0-9.e+]{1,30})$", text):
            self.metrics[name] = float(value)
        found = re.search(r'(?m)^sipsidecar_build_info\{version="([^"\n]{1,40})"\}', text)
        self.version = found[1] if found else None


class Case:
    """All that the checks look at."""

    def __init__(self, loaded: Loaded, file: Path | None) -> None:
        self.loaded = loaded
        self.config = loaded.config
        self.file = file
        self.asked = Asked(loaded.config)
        self.running = Running()

    @property
    def runs(self) -> bool:
        """Whether a sidecar answers."""
        return self.running.silence is None

    @property
    def dsn(self) -> str | None:
        """The database to look at; None while the sidecar's own does not run."""
        return self.config.database.dsn or embedded.dsn_of(app.data_directory(self.config))

    @property
    def spool(self) -> Path:
        """The folder of the spool."""
        return app.spool_directory(self.config)


Check = Callable[[Case], Iterable[Finding]]


def unasked(check: str, case: Case) -> Finding:
    """The finding of a check that needs a page of the running sidecar, and has none."""
    why = "the running sidecar did not tell" if case.runs else "no sidecar runs"
    return Finding(check, "unknown", why)


def size(count: float) -> str:
    """Bytes for people: three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def age_of(seconds: float) -> str:
    """A duration for people: one number and a unit."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
