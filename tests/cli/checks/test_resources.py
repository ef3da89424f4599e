import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sipsidecar.cli.checks import resources
from sipsidecar.cli.checks.case import Case, Finding
from sipsidecar.config import load
from sipsidecar.edges import machine

GB = 10**9


def case_of(folder: Path, **flags: object) -> Case:
    values = {key.replace("__", "."): value for key, value in flags.items()}
    return Case(load(None, {}, {"database.directory": str(folder), **values}), None)


def only(check: Callable[[Case], Any], case: Case) -> Finding:
    (finding,) = check(case)
    assert isinstance(finding, Finding)
    return finding


@pytest.mark.parametrize(
    ("free", "files", "states"),
    [
        (9 * GB, 10**6, ("ok", "ok")),
        (9 * GB, None, ("ok", "ok")),
        (2 * GB, 10**6, ("ok", "warn")),
        (GB // 10, 10**6, ("fail", "fail")),
        (9 * GB, 999, ("fail", "fail")),
    ],
)
def test_disks_have_room_for_a_spool_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, files: int | None,
    states: tuple[str, str],
) -> None:  # fmt: skip
    found = machine.Space(free, 10 * GB, files, 10**6)
    monkeypatch.setattr("sipsidecar.edges.machine.space", lambda _: found)
    assert tuple(one.state for one in resources.disks(case_of(tmp_path))) == states


def test_disks_that_are_not_used_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(tmp_path, database__dsn="postgresql://h/d", spool__max_bytes=0)
    assert list(resources.disks(case)) == []
    monkeypatch.setattr("sipsidecar.edges.machine.space", lambda _: None)
    assert [one.state for one in resources.disks(case_of(tmp_path))] == ["unknown", "unknown"]


def test_what_the_spool_already_holds_needs_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine.Space(GB, 10 * GB, None, 0)
    monkeypatch.setattr("sipsidecar.edges.machine.space", lambda _: found)
    waits = machine.Backlog(1, 2 * 10**9, 0.0, 0, complete=True)
    monkeypatch.setattr("sipsidecar.edges.machine.backlog", lambda *_: waits)
    assert [one.state for one in resources.disks(case_of(tmp_path))] == ["ok", "ok"]


def test_an_empty_spool_is_ok_and_none_is_worth_a_look(tmp_path: Path) -> None:
    assert only(resources.spool, case_of(tmp_path)).state == "ok"
    assert only(resources.spool, case_of(tmp_path, spool__max_bytes=0)).state == "warn"
    (tmp_path / "spool").touch()
    assert only(resources.spool, case_of(tmp_path)).state == "unknown"


def test_what_waits_in_the_spool_is_told_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    file = folder / "1-2-calls.pgcopy"
    file.write_bytes(b"x" * 90)
    case = case_of(tmp_path, spool__max_bytes=100)
    case.running.silence = "away"
    found = only(resources.spool, case)
    assert found.reading == "1 files, 90 B of 100 B, the oldest 0 s"
    assert "stored when a sidecar runs here" in str(found.advice)
    assert "nearly full" in str(found.advice)
    case = case_of(tmp_path, spool__max_bytes=1000)
    case.running.silence = None
    assert only(resources.spool, case).state == "ok"
    at = time.time() - 70 * 3600
    os.utime(file, (at, at))
    found = only(resources.spool, case)
    assert "batches wait for the database" in str(found.advice)
    assert "soon given up" in str(found.advice)
    file.rename(folder / "1-2-calls.pgcopy.bad")
    found = only(resources.spool, case)
    assert found.reading.endswith("0 B of 1 kB, 1 damaged")
    assert f"{folder}/*.bad" in str(found.advice)


def test_a_spool_without_end_is_more_than_what_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine.Backlog(7, 7, 0.0, 0, complete=False)
    monkeypatch.setattr("sipsidecar.edges.machine.backlog", lambda *_: found)
    assert only(resources.spool, case_of(tmp_path)).reading.startswith("more than 7 files")


@pytest.mark.parametrize(("kept", "state"), [(True, "ok"), (False, "warn"), (None, "unknown")])
def test_a_clock_is_kept_or_not_or_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool | None, state: str
) -> None:
    monkeypatch.setattr("sipsidecar.edges.machine.clock_is_kept", lambda: kept)
    assert only(resources.clock, case_of(tmp_path)).state == state


@pytest.mark.parametrize(("limit", "state"), [(768, "ok"), (767, "warn"), (-1, "ok")])
def test_descriptors_are_enough_for_all_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, state: str
) -> None:
    monkeypatch.setattr("sipsidecar.edges.machine.open_file_limit", lambda: limit)
    case = case_of(tmp_path)
    found = only(resources.open_files, case)
    assert (found.state, found.figures["used"]) == (state, None)
    case.running.metrics = {"process_max_fds": 1024.0, "process_open_fds": 7.0}
    found = only(resources.open_files, case)
    assert (found.state, found.figures["used"]) == ("ok", 7)
    assert "1024 for the running sidecar" in found.reading
    tls = {"hep__tls_listen": "127.0.0.1:1", "hep__tls_certificate": "c", "hep__tls_key": "k"}
    case = case_of(tmp_path, **tls)
    assert only(resources.open_files, case).figures["needed"] == 1024


def test_memory_must_reach_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(tmp_path, limits__memory_bytes=500_000_000)
    for free, used, state in (
        (500_000_000, 0.0, "ok"), (499_999_999, 0.0, "warn"), (300_000_000, 2e8, "ok"),
    ):  # fmt: skip
        monkeypatch.setattr("sipsidecar.edges.machine.available_memory", lambda free=free: free)
        case.running.metrics = {"process_resident_memory_bytes": used}
        assert only(resources.memory, case).state == state
    monkeypatch.setattr("sipsidecar.edges.machine.available_memory", lambda: None)
    assert only(resources.memory, case).state == "unknown"
