import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from answering import answering
from asking import Served
from desks import Desk
from sipsidecar.cli import steering
from sipsidecar.edges.http import Access
from terminal import HOSTILE, Run, Said, on_terminal

READ, OPERATE = "read-read-read-00", "operate-operate-0"
PUSH = {
    "name": "edge", "kind": "kamailio", "up": True, "error": None, "rtt_ms": 0.42, "entries": 7,
    "pushed": 12, "failed": 0, "since": 600.0,
}  # fmt: skip
ASK = {
    "name": "core", "kind": "evapi", "up": False, "error": f"refused {HOSTILE}", "asked": 3,
    "refused": 0, "since": 4.0,
}  # fmt: skip
CHECK = {"name": "asr", "ok": False, "ms": 2000.0, "why": "timeout", "age_seconds": 1.0}


class Sidecar(threading.Thread):
    """A server of pages in a thread of its own, for commands that wait for their answers."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = settings
        self._open = threading.Event()
        self.address = ""

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        served = Served(**self._settings)
        host, port = await served.server.open("127.0.0.1", 0)
        self.address = f"{host}:{port}"
        self._open.set()
        await self._end.wait()
        await served.server.close()

    def __enter__(self) -> Self:
        self.start()
        assert self._open.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self.join()


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def address(desk: Desk) -> Iterator[str]:
    with Sidecar(admission=desk) as sidecar:
        yield sidecar.address


@pytest.fixture
def admission(run: Run, address: str) -> Callable[..., Said]:
    return lambda *arguments: run("admission", *arguments, "--http", address)


def fill(desk: Desk, trunk: str = "acme") -> None:
    desk.held = {(str(number), ""): trunk for number in range(2)}


# -- status


def test_each_rule_is_a_line_with_its_state_value_threshold_and_reason(
    admission: Run, desk: Desk
) -> None:
    fill(desk)
    said = admission("status")
    assert (said.code, said.err) == (0, "")
    heading, acme, beta, *_ = said.out.splitlines()
    assert heading.split() == [
        "rule", "of", "state", "outcome", "measure", "value", "threshold", "since", "reason",
    ]  # fmt: skip
    shown = [" ".join(line.split()) for line in (acme, beta)]
    assert shown == [
        "per-trunk trunk acme limiting refuse calls 2 2 90 s 2 of 2 calls",
        "per-trunk trunk beta open refuse calls 0 2 90 s 0 of 2 calls",
    ]
    assert "leases: 2 held, 1 pending, ended: 3 over" in said.out


def test_what_part_of_the_calls_a_ramp_admits_and_what_is_kept_free_is_shown(
    admission: Run, desk: Desk
) -> None:
    rule = desk.rule_of("acme")
    desk.more = {
        "rules": [
            rule | {"rule": "a", "state": "ramping", "percent_admitted": 40.0},
            rule | {"rule": "b", "percent_admitted": 100.0},
            rule | {"rule": "c", "reserve": 1},
        ]
    }
    heading, *lines = admission("status").out.splitlines()[:4]
    starts = heading.index("admits"), heading.index("reserve")
    cells = [[line[start:].split("  ")[0].strip() for start in starts] for line in lines]
    assert cells == [["40 %", "-"], ["-", "-"], ["-", "1"]]


def test_drains_switches_checks_and_signals_are_shown(admission: Run, desk: Desk) -> None:
    desk.drained = {("trunk", "acme"), ("global", "")}
    desk.more = {
        "pushes": [PUSH], "asks": [ASK], "checks": [CHECK], "signals": {"asr": 0.7, "llm": None},
        "fail": {"acme": "fail-closed", "beta": "fail-open"},
    }  # fmt: skip
    said = admission("status")
    assert said.code == 0
    assert "drained: all calls, for 2 h" in said.out
    assert "drained: trunk acme, for 2 h" in said.out
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert "edge kamailio yes 10 min 0.4 ms 7 12 0 - - -" in lines
    assert any(line.startswith("core evapi no 4 s - - - - 3 0 refused evil") for line in lines)
    assert "asr no 2000 timeout 1 s" in lines
    assert "asr 0.7" in lines
    assert "llm -" in lines
    assert "refused while no sidecar speaks: calls of acme" in lines
    assert "\x1b" not in said.out


def test_status_as_json_is_what_the_sidecar_says(admission: Run, desk: Desk) -> None:
    said = admission("status", "--json")
    assert said.rows == [{"kind": "admission", **desk.status()}]


def test_without_rules_there_is_nothing_to_show(admission: Run, desk: Desk) -> None:
    desk.more = {"rules": []}
    said = admission("status")
    assert (said.code, said.err) == (1, "no rules: configure admission.rules\n")
    as_json = admission("status", "--json")
    assert (as_json.code, as_json.err) == (1, "")


def test_a_closed_rule_is_red_on_a_terminal_and_nowhere_else(desk: Desk, address: str) -> None:
    fill(desk)
    shown = on_terminal(["admission", "status", "--http", address], 200)
    heading, acme, beta, *_ = shown.splitlines()
    assert acme.startswith("\x1b[33mper-trunk")
    assert acme.endswith("\x1b[0m")
    assert "\x1b" not in heading + beta


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"),
     (172_800, "2 d"), (None, None), ("x", None)],
)  # fmt: skip
def test_a_span_has_one_unit(seconds: object, shown: str | None) -> None:
    assert steering._span(seconds) == shown


# -- explain


def test_the_decision_is_explained_with_each_rules_word(admission: Run, desk: Desk) -> None:
    said = admission("explain", "--trunk", "acme")
    assert (said.code, said.out.splitlines()[0]) == (0, "admit")
    fill(desk)
    said = admission("explain", "--trunk", "acme", "--tenant", "t1")
    assert said.out.splitlines()[0] == "refuse 486 by rule per-trunk"
    assert "tenant t1, trunk acme, direction other" in said.out
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[-2][:4] == ["rule", "of", "objects", "state"]
    assert lines[-1][:5] == ["per-trunk", "trunk", "acme", "yes", "limiting"]
    desk.route = "ivr"
    said = admission("explain", "--trunk", "acme")
    assert said.out.splitlines()[0] == "overflow to ivr by rule per-trunk"
    assert len(desk.held) == 2


def test_what_is_seen_of_a_call_is_explained_with_the_matcher_that_told(admission: Run) -> None:
    said = admission("explain", "--seen", "src_ip=192.0.2.4", "--seen", "from_user=+49 30&x=1")
    assert said.code == 0
    assert "tenant other, trunk acme (by matcher 1), direction" in said.out
    said = admission("explain", "--seen", "src_ip=192.0.2.4", "--json")
    assert said.rows[0]["kind"] == "explanation"
    assert said.rows[0]["decision"]["cohort"]["trunk"] == "acme"


def test_shadow_rules_that_would_object_are_named(run: Run) -> None:
    decision = {"verdict": "admit", "shadow": ["a", HOSTILE], "cohort": {}}
    body = {"decision": decision, "rules": []}
    with answering({"/v1/admission/explain?": page_of(body)}) as (address, _):
        said = run("admission", "explain", "--http", address)
    assert said.out.startswith("admit; shadow rules that would object: a, evil\\x1b[31m")


def page_of(body: object) -> tuple[int, bytes]:
    return 200, json.dumps(body).encode()


# -- what is told


def test_a_trunk_is_drained_and_resumed(admission: Run, desk: Desk) -> None:
    said = admission("drain", "--trunk", "acme")
    assert (said.code, said.err) == (0, "")
    assert (
        said.out
        == "new calls of trunk acme are refused until `admission resume` or the next start\n"
    )
    assert desk.drained == {("trunk", "acme")}
    said = admission("resume", "--trunk", "acme")
    assert (said.code, said.out) == (0, "calls of trunk acme are let in again: 1 changed\n")
    said = admission("resume", "--trunk", "acme")
    assert (said.code, said.out) == (1, "")
    assert said.err == "nothing was drained or closed for trunk acme\n"
    as_json = admission("resume", "--trunk", "acme", "--json")
    assert (as_json.code, as_json.rows, as_json.err) == (1, [{"resumed": 0}], "")


def test_without_a_name_a_drain_is_of_all(admission: Run, desk: Desk) -> None:
    said = admission("drain", "--json")
    assert said.rows == [{"draining": {"scope": "global", "scope_value": ""}}]
    assert desk.drained == {("global", "")}
    assert admission("resume").out == "calls of all are let in again: 1 changed\n"


def test_a_limit_is_set_and_a_signal_told(admission: Run, desk: Desk) -> None:
    said = admission("set", "per-trunk", "--limit", "5")
    assert said.out == "per-trunk: limit 5 until the next start or reload\n"
    assert desk.limits == {"per-trunk": 5.0}
    said = admission("signal", "asr", "-0.5", "--ttl", "5m")
    assert said.out == "asr is -0.5 for 5 min\n"
    assert desk.signals == {"asr": (-0.5, 300.0)}
    assert admission("signal", "asr", "1", "--json").rows == [{"taken": True}]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["drain", "--trunk", "nope"], "answers 404: no trunk is named 'nope'"),
        (["drain", "--trunk", ""], "answers 400: trunk: expected a name"),
        (["drain", "--trunk", "a", "--tenant", "b"], "not allowed with"),
        (["drain", "acme"], "unrecognized arguments: acme"),
        (["resume", "--trunk", HOSTILE], "answers 400: trunk: expected a name"),
        (["explain", "--trunk", "nope"], "answers 404: no trunk is named 'nope'"),
        (["explain", "--seen", "x"], "x: expected NAME=VALUE"),
        (["explain", "--seen", "=x"], "expected NAME=VALUE"),
        (["explain", "--seen", "a=1", "--seen", "a=2"], "each name once"),
        (["explain", "--trunk", "acme", "--seen", "src_ip=1.2.3.4"], "not both"),
        (["explain", "--seen", "nope=1"], "unknown field `nope`"),
        (["set", "nope", "--limit", "5"], "answers 404: no rule is named 'nope'"),
        (["set", "per-trunk", "--limit", "-5"], "answers 422: rule 'per-trunk': limit"),
        (["set", "per-trunk"], "--limit"),
        (["set", "per-trunk", "--limit", "nan"], "expected a number such as 50 or 0.7"),
        (["signal", "nobody", "1"], "answers 404: no rule of admission.rules is about a signal"),
        (["signal", "asr", "much"], "expected a number such as 50 or 0.7, got 'much'"),
        (["signal", "asr", "1", "--ttl", "2h"], "answers 400: ttl_seconds"),
        (["signal", "asr", "1", "--ttl", "soon"], "soon: expected a duration"),
        (["dance"], "invalid choice: 'dance'"),
    ],
)
def test_what_cannot_be_is_one_line(
    admission: Run, arguments: list[str], says: str, desk: Desk
) -> None:
    assert says in admission(*arguments).refusal
    assert desk.drained == set()


# -- the sidecar


def test_an_operator_needs_a_token_that_may_operate(
    run: Run, desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "sipsidecar.toml"
    with Sidecar(admission=desk, access=Access([READ], [OPERATE])) as sidecar:

        def said(*tokens: str, what: str = "drain") -> Said:
            lines = [f"{role}_tokens = ['{token}']" for role, token in
                     zip(("read", "operate"), tokens, strict=False) if token]  # fmt: skip
            file.write_text("[http]\n" + "\n".join(lines))
            found: Said = run(
                "admission", what, "--http", sidecar.address, "--config", file, "--json"
            )
            return found

        assert said(READ, OPERATE).code == 0
        assert said("", OPERATE).code == 0
        assert said(READ, what="status").code == 0
        assert "answers 401: set http.read_tokens" in said(what="status").refusal
        assert "answers 401: set http.operate_tokens" in said().refusal
        assert "answers 403: this token may only read: send one of http" in said(READ).refusal


def test_a_sidecar_without_rules_says_what_to_configure(run: Run) -> None:
    with Sidecar() as sidecar:
        for what in ("status", "drain"):
            refusal = run("admission", what, "--http", sidecar.address).refusal
            assert "answers 404: nothing is decided here: configure admission.rules" in refusal


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 100_000, b"\xff", b"1"])
def test_an_answer_of_something_else_is_one_line(run: Run, body: bytes) -> None:
    with answering({"/v1/admission/status": (200, body)}) as (address, _):
        refusal = run("admission", "status", "--http", address).refusal
    assert "is no sidecar; name its --http" in refusal


@pytest.mark.parametrize(
    "body",
    [{}, {"rules": 5, "leases": [], "fail": "x", "pushes": {}}, {"rules": [1, None, "x"]},
     {"leases": {"held": HOSTILE, "ended": 7}, "drains": [{}], "asks": [{}], "checks": [{}]}],
)  # fmt: skip
def test_a_status_of_another_shape_breaks_nothing(run: Run, body: object) -> None:
    with answering({"/v1/admission/status": page_of(body)}) as (address, _):
        said = run("admission", "status", "--http", address)
    assert said.code == 1
    assert "\x1b" not in said.out


def test_no_sidecar_at_all_is_said_with_what_to_do(run: Run) -> None:
    refusal = run("admission", "status", "--http", "127.0.0.1:1").refusal
    assert "no sidecar answers at http://127.0.0.1:1 (Connection refused): start" in refusal
