from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from inspect import signature
from typing import Any

import msgspec
import pytest

from asking import Reply, Served, serving
from sipsidecar.edges.http import Access, watch
from sipsidecar.edges.http.watch import MAX_EVENTS, MAX_MINUTES, Marker, Outcome
from sipsidecar.signals.minutes import Minutes

READ, POST, OPERATE = "read-read-read-00", "post-post-post-00", "operate-operate-0"
NOW = 1_700_000_000_000_000
JSON = "application/json"


class Board:
    """Keeps what it is asked and told."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def timeline(
        self, since: int, until: int, limit: int, kind: str | None, where: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        self.asked.append((since, until, limit, kind, dict(where)))
        return [{"kind": "marker", "text": "\u001b[31m"}]

    def incidents(self, *, every: bool) -> list[dict[str, Any]]:
        self.asked.append(every)
        return []

    def trunks(self) -> list[dict[str, Any]]:
        return [{"name": "acme", "state": "active"}]

    def receivers(self) -> list[dict[str, Any]]:
        return [{"name": "pager", "up": True}]

    def kpi(self, by: str | None, where: Mapping[str, str], minutes: int) -> list[dict[str, Any]]:
        self.asked.append((by, dict(where), minutes))
        return [{"asr_percent": None}]

    def mark(self, marker: Marker, at: int) -> str:
        self.asked.append((marker, at))
        return "marker-1"

    def take_outcome(self, call_id: str, outcome: Outcome, data: str | None) -> str:
        self.asked.append((call_id, outcome, data))
        return "outcome-1"


@asynccontextmanager
async def watched(
    monkeypatch: pytest.MonkeyPatch, access: Access | None = None
) -> AsyncIterator[tuple[Served, Board]]:
    monkeypatch.setattr(watch, "_now", lambda: NOW)
    board = Board()
    async with serving(watch=board, access=access) as served:
        yield served, board


async def post(served: Served, path: str, body: object, token: str = "") -> Reply:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await served.ask(path, "POST", raw, Content_Type=JSON, **headers)


async def test_the_timeline_is_of_the_last_day_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watched(monkeypatch) as (served, board):
        reply = await served.ask("/v1/timeline")
        assert (reply.status, reply.json) == (200, [{"kind": "marker", "text": "\u001b[31m"}])
        assert board.asked.pop() == (NOW - 86_400_000_000, NOW, 200, None, {})
        await served.ask(
            "/v1/timeline?since=90m&until=2023-11-14T22:00:00&limit=5&kind=trunk&trunk=acme&region=eu"
        )
        until = int(datetime(2023, 11, 14, 22, tzinfo=UTC).timestamp()) * 1_000_000
        assert board.asked.pop() == (
            NOW - 5_400_000_000, until, 5, "trunk", {"trunk": "acme", "region": "eu"},
        )  # fmt: skip
        await served.ask("/v1/timeline?since=1700000000.5")
        assert board.asked.pop()[0] == NOW + 500_000


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("since=yesterday", "since: expected 15m"),
        ("until=99999999999999999999", "until: expected 15m"),
        ("limit=0", "limit: expected a number"),
        (f"limit={MAX_EVENTS + 1}", "limit: expected a number"),
        ("limit=%D9%A1", "limit: expected a number"),
        ("kind=gossip", "kind: expected one of"),
        ("trunk=a%20b", "trunk: expected a name"),
        ("codec=PCMU", "there is no codec"),
        ("nonsense=1", "there is no nonsense"),
        ("since=1h&since=2h", "since: send it once"),
    ],
)
async def test_a_timeline_that_cannot_be_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, query: str, says: str
) -> None:
    async with watched(monkeypatch) as (served, board):
        reply = await served.ask(f"/v1/timeline?{query}")
        assert reply.status == 400
        assert reply.json["error"].startswith(says)
        assert not board.asked


async def test_figures_are_of_five_minutes_of_all_calls_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watched(monkeypatch) as (served, board):
        assert (await served.ask("/v1/kpi")).json == [{"asr_percent": None}]
        assert board.asked.pop() == (None, {}, 5)
        assert (await served.ask("/v1/kpi?by=codec&tenant=t&minutes=15")).status == 200
        assert board.asked.pop() == ("codec", {"tenant": "t"}, 15)
        for query in ("by=node", "minutes=16", "trunk="):
            assert (await served.ask(f"/v1/kpi?{query}")).status == 400


async def test_incidents_are_the_open_ones_unless_all_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watched(monkeypatch) as (served, board):
        for query, every in (("", False), ("?state=open", False), ("?state=all", True)):
            assert (await served.ask(f"/v1/incidents{query}")).status == 200
            assert board.asked.pop() is every
        assert (await served.ask("/v1/incidents?state=closed")).status == 400
        assert (await served.ask("/v1/trunks")).json == [{"name": "acme", "state": "active"}]
        assert (await served.ask("/v1/receivers")).json == [{"name": "pager", "up": True}]


async def test_a_marker_is_dated_now_or_as_its_poster_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched(monkeypatch) as (served, board):
        reply = await post(served, "/v1/markers", {"kind": "deploy", "text": "bot 1.4"})
        assert (reply.status, reply.json) == (200, {"event": "marker-1"})
        assert board.asked.pop() == (Marker(kind="deploy", text="bot 1.4"), NOW)
        for at, expected in (
            (1700000001, NOW + 1_000_000),
            (1700000000.1234567, NOW + 123_456),  # what time.time() of a poster has
            ("2023-11-14T22:13:20Z", NOW),
        ):
            await post(served, "/v1/markers", {"kind": "deploy", "at": at, "trunk": "acme"})
            assert board.asked.pop()[1] == expected


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "send the fields"),
        ({"kind": "a b"}, "kind: expected a name"),
        ({"kind": "x", "trunk": "a\n"}, "trunk: expected a name"),
        ({"kind": "x", "text": "x" * 1001}, "text: send at most"),
        ({"kind": "x", "by": "x" * 1001}, "by: send at most"),
        ({"kind": "x", "at": "soon"}, "at: expected"),
        ({"kind": "x", "data": {"a": "x" * 8192}}, "send at most 8192 bytes"),
        ({"kind": "x", "more": 1}, "send the fields"),
    ],
)
async def test_a_marker_that_cannot_be_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, body: object, says: str
) -> None:
    async with watched(monkeypatch) as (served, board):
        reply = await post(served, "/v1/markers", body)
        assert reply.status == 400
        assert reply.json["error"].startswith(says)
        assert not board.asked


@pytest.mark.parametrize(
    ("path", "call_id"),
    [("a%40b", "a@b"), ("a/b%2Fc@d", "a/b/c@d"), ("x%22", 'x"'), ("outcome", "outcome")],
)
async def test_an_outcome_is_of_the_call_that_its_path_names(
    monkeypatch: pytest.MonkeyPatch, path: str, call_id: str
) -> None:
    async with watched(monkeypatch) as (served, board):
        body = {"first_audio_ms": 420, "completed": True, "agent": "bot", "mood": "calm"}
        reply = await post(served, f"/v1/calls/{path}/outcome", body)
        assert (reply.status, reply.json) == (200, {"outcome": "outcome-1", "call_id": call_id})
        said = Outcome(first_audio_ms=420.0, completed=True, agent="bot")
        assert board.asked == [(call_id, said, '{"mood":"calm"}')]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"asr_confidence": 1.1},
        {"asr_accuracy": -0.1},
        {"first_audio_ms": -1},
        {"completed": "yes"},
        {"result": "x" * 1001},
        {"more": "x" * 8192},
    ],
)
async def test_an_outcome_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, body: object
) -> None:
    async with watched(monkeypatch) as (served, board):
        assert (await post(served, "/v1/calls/a/outcome", body)).status == 400
        assert not board.asked


async def test_who_may_post_reads_nothing_and_who_reads_posts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    access = Access([READ], [OPERATE], post_tokens=[POST])
    async with watched(monkeypatch, access) as (served, _):
        outcome = ("/v1/calls/a/outcome", {"completed": True})
        for token, posts, reads in (
            (READ, 403, 200),
            (POST, 200, 403),
            (OPERATE, 200, 200),
            ("", 401, 401),
        ):
            assert (await post(served, *outcome, token)).status == posts
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            assert (await served.ask("/v1/timeline", **headers)).status == reads


async def test_a_page_of_another_site_cannot_post(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched(monkeypatch) as (served, board):
        reply = await served.ask(
            "/v1/markers", "POST", b'{"kind": "x"}', Content_Type=JSON, Origin="http://evil.example"
        )
        assert reply.status == 403
        assert not board.asked


async def test_a_path_without_a_call_id_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched(monkeypatch) as (served, _):
        assert (await post(served, "/v1/calls//outcome", {"completed": True})).status == 404
        assert (await served.ask("/v1/calls/a/outcome")).status == 405


def test_no_more_minutes_can_be_asked_for_than_are_kept() -> None:
    kept = signature(Minutes).parameters["keep"].default
    assert kept >= MAX_MINUTES
