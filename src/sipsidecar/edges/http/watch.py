"""Pages of what is watched: timeline, incidents, trunks, figures; and what others post to it.

`POST /v1/markers` and `POST /v1/calls/{call_id}/outcome` need a token of `http.post_tokens` or
`http.operate_tokens`. A Call-ID in a path is percent-encoded; a slash in it may stand as it is.
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from sipsidecar.edges.http.bodies import (
    QuestionError,
    check_name,
    decode,
    identity,
    query,
    refusing,
)
from sipsidecar.edges.http.guard import Role
from sipsidecar.edges.http.pages import Page, Request, json_response
from sipsidecar.signals.alarms import DIMENSIONS
from sipsidecar.wire.sip import MAX_CALL_ID

TIMELINE: Final = "/v1/timeline"
OUTCOME: Final = "/v1/calls/{call_id}/outcome"
MAX_EVENTS: Final = 1000
"""Of the timeline on one page."""
MAX_MINUTES: Final = 15
"""As many as `signals.minutes` keeps: of those before, only the database knows."""
MAX_TEXT: Final = 1000
MAX_DATA: Final = 8192
"""Bytes of a posted JSON object."""
_DURATION: Final = re.compile(r"([0-9]{1,6})(s|m|h|d)", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
KINDS: Final = ("incident", "trunk", "admission", "agent", "switch", "sidecar", "marker")
_WHERE: Final = tuple(name for name in DIMENSIONS if name != "codec")


class Marker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that somebody did or saw, such as a deploy or the launch of a campaign."""

    kind: str
    """A word: deploy, campaign, maintenance."""
    text: str = ""
    at: float | str | None = None
    """When; seconds since 1970 or ISO 8601 in UTC; now if left out."""
    by: str = ""
    tenant: str | None = None
    trunk: str | None = None
    carrier: str | None = None
    direction: str | None = None
    region: str | None = None
    agent: str | None = None
    data: dict[str, Any] | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the voice agent's side says of one call; every other field is kept as it is."""

    first_audio_ms: float | None = None
    asr_confidence: float | None = None
    asr_accuracy: float | None = None
    completed: bool | None = None
    transferred: bool | None = None
    result: str | None = None
    agent: str | None = None


class Watcher(Protocol):
    """What watches, and takes what others saw. Times are microseconds UTC."""

    def timeline(
        self, since: int, until: int, limit: int, kind: str | None, where: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Events, newest first."""
        ...

    def incidents(self, *, every: bool) -> list[dict[str, Any]]:
        """Open incidents, the gravest first; with `every` those that ended lately, too."""
        ...

    def trunks(self) -> list[dict[str, Any]]:
        """Every peer that is looked after."""
        ...

    def receivers(self) -> list[dict[str, Any]]:
        """How each receiver of alerts is reached; nothing secret."""
        ...

    def kpi(self, by: str | None, where: Mapping[str, str], minutes: int) -> list[dict[str, Any]]:
        """Figures of the last minutes of the cohorts of `where`; with `by` one of each value."""
        ...

    def mark(self, marker: Marker, at: int) -> str:
        """Put a marker on the timeline; returns its name."""
        ...

    def take_outcome(self, call_id: str, outcome: Outcome, data: str | None) -> str:
        """Keep what was said of a call; returns the name of it."""
        ...


def watch_pages(watcher: Watcher) -> dict[str, Page]:
    """Make the pages, by path."""
    pages = _Pages(watcher)
    where = ", ".join(_WHERE)
    return {
        TIMELINE: Page(
            "what happened, newest first: ?since=1h (or ISO 8601), until, limit=200,"
            f" kind ({', '.join(KINDS)}), {where}",
            refusing(pages.timeline),
        ),
        "/v1/incidents": Page(
            "open incidents, the gravest first; ?state=all for those that ended lately, too",
            refusing(pages.incidents),
        ),
        "/v1/trunks": Page(
            "trunks that are looked after: state, OPTIONS, certificate, DNS", refusing(pages.trunks)
        ),
        "/v1/receivers": Page(
            "who is told of incidents: reached or not, what waits, was sent, failed",
            refusing(pages.receivers),
        ),
        "/v1/kpi": Page(
            f"figures of the last minutes: ?minutes=5 (at most {MAX_MINUTES}), {where}; ?by=trunk for"
            " one object each",
            refusing(pages.kpi),
        ),
        "/v1/markers": Page(
            'put something on the timeline: {"kind": "deploy", "text": "bot 1.4"}; also at, by,'
            f" {where}, data",
            refusing(pages.mark),
            Role.POST,
            ("POST",),
            body=True,
        ),
        OUTCOME: Page(
            "what became of a call at the voice agent:"
            f" {', '.join(Outcome.__struct_fields__)}, and any others",
            refusing(pages.outcome),
            Role.POST,
            ("POST",),
            body=True,
        ),
    }


class _Pages:
    """The pages, over what watches."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def timeline(self, request: Request) -> web.Response:
        given = query(request)
        now = _now()
        since = _moment("since", given.pop("since", "1d"), now)
        until = _moment("until", given.pop("until", "0s"), now)
        limit = _count("limit", given.pop("limit", "200"), MAX_EVENTS)
        kind = given.pop("kind", None)
        if kind is not None and kind not in KINDS:
            raise QuestionError(f"kind: expected one of {', '.join(KINDS)}")
        where = _where(given)
        return json_response(self._watcher.timeline(since, until, limit, kind, where))

    def incidents(self, request: Request) -> web.Response:
        given = query(request)
        state = given.pop("state", "open")
        if given or state not in {"open", "all"}:
            raise QuestionError("state: expected open or all, and nothing else")
        return json_response(self._watcher.incidents(every=state == "all"))

    def trunks(self, _: Request) -> web.Response:
        return json_response(self._watcher.trunks())

    def receivers(self, _: Request) -> web.Response:
        return json_response(self._watcher.receivers())

    def kpi(self, request: Request) -> web.Response:
        given = query(request)
        minutes = _count("minutes", given.pop("minutes", "5"), MAX_MINUTES)
        by = given.pop("by", None)
        if by is not None and by not in DIMENSIONS:
            raise QuestionError(f"by: expected one of {', '.join(DIMENSIONS)}")
        return json_response(self._watcher.kpi(by, _where(given), minutes))

    def mark(self, request: Request) -> web.Response:
        marker = decode(Marker, request.body)
        check_name("kind", marker.kind)
        for name in _WHERE:
            value = getattr(marker, name)
            if value is not None:
                check_name(name, value)
        for name, text in (("text", marker.text), ("by", marker.by)):
            if len(text) > MAX_TEXT:
                raise QuestionError(f"{name}: send at most {MAX_TEXT} characters")
        _ = _json(marker.data)
        now = _now()
        at = now if marker.at is None else _moment("at", str(marker.at), now)
        return json_response({"event": self._watcher.mark(marker, at)})

    def outcome(self, request: Request) -> web.Response:
        fields = decode(dict[str, Any], request.body)
        if not fields:
            raise QuestionError("send at least one field of an outcome")
        outcome = decode(Outcome, request.body)
        for name, most in (
            ("first_audio_ms", 86_400_000),
            ("asr_confidence", 1),
            ("asr_accuracy", 1),
        ):
            value = getattr(outcome, name)
            if value is not None and not 0 <= value <= most:
                raise QuestionError(f"{name}: expected a number from 0 to {most}")
        for name in ("result", "agent"):
            if len(getattr(outcome, name) or "") > MAX_TEXT:
                raise QuestionError(f"{name}: send at most {MAX_TEXT} characters")
        rest = {k: v for k, v in fields.items() if k not in Outcome.__struct_fields__}
        start, end = OUTCOME.split("{call_id}")
        call_id = identity(request.http.path[len(start) : -len(end)], MAX_CALL_ID)
        name = self._watcher.take_outcome(call_id, outcome, _json(rest or None))
        return json_response({"outcome": name, "call_id": call_id})


def _now() -> int:
    return time.time_ns() // 1000


def _json(data: dict[str, Any] | None) -> str | None:
    """A posted object as text; QuestionError for one that is too large."""
    if data is None:
        return None
    raw = msgspec.json.encode(data)
    if len(raw) > MAX_DATA:
        raise QuestionError(f"send at most {MAX_DATA} bytes of other fields")
    return raw.decode()


def _moment(name: str, text: str, now: int) -> int:
    """Turn 90s, 15m, 6h or 7d ago, ISO 8601 (UTC) or seconds since 1970 into microseconds UTC."""
    ago = _DURATION.fullmatch(text)
    if ago is not None:
        return now - int(ago[1]) * _UNITS[ago[2]] * 1_000_000
    try:
        seconds = float(text) if re.fullmatch(r"[0-9]{9,12}(\.[0-9]{1,9})?", text) else math.nan
        if math.isnan(seconds):
            at = datetime.fromisoformat(text)
            seconds = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise QuestionError(f"{name}: expected 15m, 6h, 7d or 2026-01-31T10:00, UTC") from None
    return int(seconds * 1_000_000)


def _count(name: str, text: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or not 0 < int(text) <= most:
        raise QuestionError(f"{name}: expected a number from 1 to {most}")
    return int(text)


def _where(given: Mapping[str, str]) -> dict[str, str]:
    for name, value in given.items():
        if name not in _WHERE:
            raise QuestionError(f"there is no {name}: send {', '.join(_WHERE)}")
        check_name(name, value)
    return dict(given)
