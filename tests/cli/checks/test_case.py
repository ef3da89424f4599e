from pathlib import Path

import pytest

from answering import AGENT, LEDGER, READY, answering, page, pages
from sipsidecar.cli.checks.case import Case, Running, age_of, size, unasked
from sipsidecar.config import load


def case_of(address: str = "127.0.0.1:1", **flags: object) -> Case:
    values = {key.replace("__", "."): value for key, value in flags.items()}
    return Case(load(None, {}, {"http.listen": address, **values}), None)


def asked(**changes: tuple[int, bytes]) -> Running:
    with answering(pages(**changes)) as (address, _):
        case = case_of(address)
        case.running.ask(case.asked)
        return case.running


def test_a_running_sidecar_is_read_page_by_page() -> None:
    running = asked()
    assert running.silence is None
    assert not running.refused
    assert running.version == "9.9.9"
    assert running.metrics["sipsidecar_receive_buffer_bytes"] == 67108864
    assert running.ready is not None
    assert running.ready.checks["database"].reading == "up"
    assert running.ledger is not None
    assert running.ledger.received == 10
    assert running.agents is not None
    assert running.agents[0].shown == "edge at 192.0.2.1"


def test_one_that_is_not_ready_is_read_all_the_same() -> None:
    running = asked(ready=page(READY | {"status": "not-ready"}, 503))
    assert running.silence is None
    assert running.ledger is not None


def test_one_that_wants_a_token_is_running() -> None:
    with answering(pages(), token="t" * 20) as (address, _):
        case = case_of(address)
        case.running.ask(case.asked)
    assert case.runs
    assert case.running.refused
    assert (case.running.ledger, case.running.agents, case.running.metrics) == (None, None, {})


@pytest.mark.parametrize(
    ("ready", "why"),
    [
        (page({"hello": "world"}), "/health/ready is not a sidecar's"),
        (page([1]), "/health/ready is not a sidecar's"),
        ((200, b"\xff"), "/health/ready is not a sidecar's"),
        ((200, b"["), "/health/ready is not a sidecar's"),
        ((404, b""), "/health/ready answers 404"),
        ((401, b""), "/health/ready answers 401"),
    ],
)
def test_another_program_is_not_taken_for_a_sidecar(ready: tuple[int, bytes], why: str) -> None:
    running = asked(ready=ready)
    assert running.silence == why
    assert not running.absent
    assert running.ready is None


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger": page({})},
        {"ledger": page(LEDGER | {"balance": "0"})},
        {"metrics": (200, b"\xff")},
        {"metrics": (200, b"a 1.1.1\n")},
        {"agents": page({})},
        {"agents": page([AGENT | {"agent_id": "x"}])},
    ],
)
def test_a_page_that_is_odd_leaves_the_others(changes: dict[str, tuple[int, bytes]]) -> None:
    running = asked(**changes)
    assert running.silence is None
    assert running.ready is not None
    assert running.agents is None


def test_nothing_there_is_told_from_what_cannot_be_understood() -> None:
    with answering({}) as (address, _):
        pass
    case = case_of(address)
    case.running.ask(case.asked)
    assert not case.runs
    assert case.running.absent
    assert unasked("x", case).reading == "no sidecar runs"
    case.running.silence = None
    assert unasked("x", case).reading == "the running sidecar did not tell"


def test_a_database_of_its_own_that_does_not_run_has_no_dsn(tmp_path: Path) -> None:
    assert case_of(database__directory=str(tmp_path)).dsn is None
    assert case_of(database__dsn="postgresql://h/d").dsn == "postgresql://h/d"


def test_a_strangers_words_are_cut_and_printable() -> None:
    running = asked(agents=page([AGENT | {"name": "x\x1b[31m" + "y" * 1000}]))
    assert running.agents is not None
    assert "\x1b" not in running.agents[0].shown
    assert len(running.agents[0].shown) < 100


def test_sizes_and_ages_are_short() -> None:
    assert [size(n) for n in (0, 999, 1000, 67_108_864, 2**31, 5e12)] == [
        "0 B", "999 B", "1 kB", "67.1 MB", "2.15 GB", "5 TB",
    ]  # fmt: skip
    assert [age_of(n) for n in (0.2, 119, 120, 7199, 7200, 200_000)] == [
        "0 s", "119 s", "2 min", "120 min", "2 h", "2 days",
    ]  # fmt: skip
