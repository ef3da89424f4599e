import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from running import CORPUS, command, recent
from sipsidecar.calls.events import AttemptRecord, CallRecord, PingRecord, RegistrationRecord
from sipsidecar.cli import replaying
from sipsidecar.cli.words import CALL_COLUMNS
from terminal import Run


def test_a_replay_as_json_is_a_line_per_record_and_a_summary(run: Run) -> None:
    said = run("replay", "--json", CORPUS / "kamailio/j_failover.pcap", CORPUS / "kamailio/h_register_options.pcap")  # fmt: skip
    *rows, summary = said.rows
    assert Counter(row["kind"] for row in rows) == {
        "call": 10, "attempt": 20, "registration": 30, "ping": 10,
    }  # fmt: skip
    fields = {
        "call": CallRecord, "attempt": AttemptRecord, "registration": RegistrationRecord,
        "ping": PingRecord,
    }  # fmt: skip
    for row in rows:
        assert set(row) == {"kind", *fields[row["kind"]].__struct_fields__}
        assert row["started_at"].startswith("2026-11-20T")
    assert summary == {
        "kind": "summary",
        "packets": 240, "calls": 10, "attempts": 20, "registrations": 30, "pings": 10,
        "messages": 240, "quarantined": 0, "refused": 0, "orphans": 0, "not_sip": 0,
        "refused_by_reason": {}, "odd": {}, "cut_packets": 0, "skipped_packets": {},
        "truncated_files": [],
    }  # fmt: skip
    assert said.err == ""


def test_a_replay_for_people_is_a_table_and_a_summary(run: Run) -> None:
    said = run("replay", CORPUS / "kamailio/e_early183.pcap")
    heading, *lines, summary = said.out.splitlines()
    assert heading.split() == list(CALL_COLUMNS)
    assert len(lines) == 8
    assert summary.startswith("136 packets, 8 calls, 8 attempts, 0 registrations")


def test_a_cut_capture_is_replayed_and_said_to_be_cut(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cut.pcap"
    path.write_bytes((CORPUS / "kamailio/e_early183.pcap").read_bytes()[:-10])
    assert run("replay", "--json", path).rows[-1]["truncated_files"] == [str(path)]
    said = run("replay", path)
    assert said.code == 0
    assert f"{path} ends inside a packet" in said.err


def test_a_capture_in_a_pipe_is_replayed_too(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = (CORPUS / "kamailio/e_early183.pcap").read_bytes()
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    assert run("replay", "--json", path).rows[-1]["calls"] == 8
    writer.join()


def test_a_capture_that_is_stored_is_found_as_it_was_replayed(
    run: Run, database: str, tmp_path: Path
) -> None:
    path = recent("kamailio/j_failover", tmp_path / "j.pcap", 60)
    said = run("replay", "--store", "--dsn", database, path)
    assert (said.code, said.err) == (0, "")
    assert said.out == "in the database: 20 attempts, 10 calls, 160 messages\n"
    listed = run("calls", "--dsn", database, "--json").rows
    replayed = [row for row in run("replay", "--json", path).rows if row["kind"] == "call"]
    mine = {row["call_id"]: {k: v for k, v in row.items() if k != "node_id"} for row in listed}
    assert len(listed) == 10
    assert mine == {row["call_id"]: row for row in replayed}


def test_a_capture_that_is_stored_twice_is_there_once(
    run: Run, database: str, tmp_path: Path
) -> None:
    path = recent("kamailio/b_failures", tmp_path / "b.pcap", 60)
    for seed in ("1", "2"):  # whatever order sets have in a process
        said = command("replay", "--store", "--dsn", database, path, PYTHONHASHSEED=seed)
        assert said.stdout == "in the database: 30 attempts, 32 calls, 236 messages\n"
    assert len(run("calls", "--dsn", database, "--json", "--limit", "99").rows) == 32
    assert len(run("ladder", "--dsn", database, "b486-1-9501@127.10.0.9", "--json").rows) == 7


def test_a_large_replay_is_stored_batch_by_batch(
    run: Run, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "REPLAY_ROWS", 50)
    path = recent("kamailio/b_failures", tmp_path / "b.pcap", 60)
    said = run("replay", "--store", "--json", "--dsn", database, path)
    assert said.rows == [{"kind": "stored", "calls": 32, "attempts": 30, "messages": 236}]
    assert len(run("calls", "--dsn", database, "--limit", "100", "--json").rows) == 32
