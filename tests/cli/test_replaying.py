import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from running import CORPUS, command, recent
from sipsidecar.calls.events import (
    AttemptRecord,
    CallRecord,
    ConversationRecord,
    LegRecord,
    MediaRecord,
    PingRecord,
    QualityInterval,
    RegistrationRecord,
)
from sipsidecar.calls.legs import Unjoined
from sipsidecar.calls.table import Retraction
from sipsidecar.cli import replaying
from sipsidecar.cli.words import CALL_COLUMNS
from sipsidecar.edges.replay import Replay
from stored import NOON, call, conversation, interval, leg, media
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
        "packets": 240, "calls": 10, "attempts": 20, "media": 0, "legs": 0, "conversations": 0,
        "registrations": 30, "pings": 10, "messages": 240, "quarantined": 0, "refused": 0,
        "orphans": 0, "not_sip": 0, "events": 0, "events_refused": 0, "refused_by_reason": {},
        "odd": {}, "cut_packets": 0, "skipped_packets": {}, "truncated_files": [],
        "broken_files": [],
    }  # fmt: skip
    assert said.err == ""


def test_a_replay_for_people_is_a_table_and_a_summary(run: Run) -> None:
    said = run("replay", CORPUS / "kamailio/e_early183.pcap")
    heading, *lines, summary = said.out.splitlines()
    assert heading.split() == list(CALL_COLUMNS)
    assert len(lines) == 8
    assert summary.startswith("136 packets, 8 calls, 8 attempts, 0 media, 0 legs, 0 conversations")


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


# --- media -------------------------------------------------------------------------------------


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What leaves the pipeline of every replay, whatever is in its files."""
    mine: list[Any] = []

    class Told(Replay):
        def __iter__(self) -> Iterator[Any]:
            yield from mine

        def turns(self) -> Iterator[list[Any]]:
            yield mine

    monkeypatch.setattr(replaying, "Replay", Told)
    return mine


ANY_FILE = CORPUS / "kamailio/e_early183.pcap"


def test_a_replay_as_json_has_media_and_only_when_asked_its_intervals(
    run: Run, outputs: list[Any]
) -> None:
    outputs += [
        call("a", findings=("low_mos",), evidence='{"low_mos": [{"mos": 2.5}]}', mos=2.5),
        media("a", mos=2.5),
        interval("a", NOON),
        interval("a", NOON + 5_000_000),
    ]
    *rows, summary = run("replay", "--json", ANY_FILE).rows
    assert [row["kind"] for row in rows] == ["call", "media"]
    assert rows[0]["evidence"] == {"low_mos": [{"mos": 2.5}]}
    assert set(rows[1]) == {"kind", *MediaRecord.__struct_fields__}
    assert summary["media"] == 1
    *rows, summary = run("replay", "--json", "--intervals", ANY_FILE).rows
    assert [row["kind"] for row in rows] == ["call", "media", "interval", "interval"]
    assert set(rows[2]) == {"kind", *QualityInterval.__struct_fields__}
    assert rows[3]["at"] == "2026-07-20T12:00:05.000000Z"
    assert rows[3]["source_ssrc"] == 2**31


def test_a_replay_shows_the_newest_of_each_stream_and_not_what_was_taken_back(
    run: Run, outputs: list[Any]
) -> None:
    outputs += [
        call("a"),
        media("a", mos=4.0),
        media("a", "unknown-00000007"),
        media("a", "callee_to_caller", mos=3.0),
        media("a", from_tag="x", mos=1.0),
        media("a", mos=4.1, revision=1),
        Retraction("a", "t", None, NOON, 1, "unknown-00000007"),
    ]
    found = [row for row in run("replay", "--json", ANY_FILE).rows if row["kind"] == "media"]
    assert [(row["from_tag"], row["stream"], row["mos"]) for row in found] == [
        ("t", "caller_to_callee", 4.1),
        ("t", "callee_to_caller", 3.0),
        ("x", "caller_to_callee", 1.0),
    ]
    outputs.append(Retraction("a", "t", None, NOON, 2))
    kinds = [row["kind"] for row in run("replay", "--json", ANY_FILE).rows]
    assert kinds == ["media"] * 3 + ["summary"]


def test_a_replay_for_people_has_the_media_under_the_calls(run: Run, outputs: list[Any]) -> None:
    outputs += [call("a@pbx"), media("a@pbx", mos=4.1234, mos_scale="nb"), interval("a@pbx")]
    said = run("replay", ANY_FILE)
    calls, streams = said.out.split("\n\n")
    assert calls.splitlines()[0].split() == list(CALL_COLUMNS)
    heading, line, summary = streams.splitlines()
    assert heading.split() == ["call_id", "stream", "mos", "mos_scale", "reports"]
    assert line.split() == ["a@pbx", "caller_to_callee", "4.12", "nb", "0"]
    assert "1 calls, 0 attempts, 1 media" in summary


def test_media_without_a_call_is_shown_too(run: Run, outputs: list[Any]) -> None:
    outputs += [media("", "unknown-00000007", from_tag="", loss_percent=0.0)]
    heading, line, summary = run("replay", ANY_FILE).out.splitlines()
    assert heading.split() == ["stream", "loss_percent", "reports"]
    assert line.split() == ["unknown-00000007", "0", "0"]
    assert "0 calls, 0 attempts, 1 media" in summary


def test_media_and_its_intervals_are_stored_unless_the_settings_say_no(
    run: Run, outputs: list[Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs += [call("a"), media("a"), interval("a")]
    stored = run("replay", "--store", "--json", "--dsn", database, ANY_FILE).rows
    assert stored == [{"kind": "stored", "calls": 1, "media": 1, "quality_intervals": 1}]
    monkeypatch.setenv("SIPSIDECAR_QUALITY__STORE_INTERVALS", "false")
    outputs[:] = [call("b"), media("b"), interval("b")]
    stored = run("replay", "--store", "--json", "--dsn", database, ANY_FILE).rows
    assert stored == [{"kind": "stored", "calls": 1, "media": 1}]


# --- FreeSWITCH --------------------------------------------------------------------------------

TRANSCRIPT = CORPUS / "freeswitch/20-bridged-json.esl"


def test_legs_conversations_and_switches_are_lines_of_their_own(run: Run) -> None:
    rows = run("replay", "--json", TRANSCRIPT).rows
    found = {
        kind: [row for row in rows if row["kind"] == kind]
        for kind in Counter(r["kind"] for r in rows)
    }
    legs = {row["direction"]: row for row in found["leg"]}
    assert set(legs["inbound"]) == {"kind", *LegRecord.__struct_fields__}
    assert legs["inbound"]["call_id"] == "20-bridged-json-1-13281@127.0.0.1"
    assert legs["inbound"]["other_leg"] == legs["outbound"]["uuid"]
    assert legs["outbound"]["gateway"] == "trunk-a"
    (joined,) = found["conversation"]
    assert set(joined) == {"kind", *ConversationRecord.__struct_fields__}
    assert set(joined["legs"]) == {row["uuid"] for row in found["leg"]}
    assert set(joined["call_ids"]) == {row["call_id"] for row in found["leg"]}
    (switch,) = found["switch"]
    assert (switch["switch"], switch["version"]) == ("fs-eval-1", "1.11.2-release~64bit")
    assert switch["sessions_seen"] == 2
    assert switch["first_event_at"].startswith("2026-11-20T09:2")
    summary = rows[-1]
    assert (summary["legs"], summary["conversations"]) == (2, 1)
    assert summary["events"] == switch["events"] > 50


def test_hep_and_events_of_one_time_are_replayed_together(run: Run) -> None:
    rows = run("replay", "--json", CORPUS / "freeswitch/hep-v3-paused-503.pcap",
               CORPUS / "freeswitch/23-paused-503.esl").rows  # fmt: skip
    assert [row["final_code"] for row in rows if row["kind"] == "call"] == [503]
    assert [row["sessions"] for row in rows if row["kind"] == "switch"] == [0]
    assert (rows[-1]["legs"], rows[-1]["packets"]) == (0, 7)


def test_a_replay_shows_the_newest_of_each_leg_whatever_it_learned(
    run: Run, outputs: list[Any]
) -> None:
    outputs += [
        leg("u1"),
        leg("u2", "b@x", conversation="u2"),
        conversation("u2", legs=("u2",)),
        leg("u1", "a@x", revision=1),
        leg("u2", "b@x", conversation="u1", revision=1),
        Unjoined("u2", NOON, 1),
        conversation("u1", legs=("u1", "u2")),
        Unjoined("unknown", NOON, 1),
    ]
    *rows, summary = run("replay", "--json", ANY_FILE).rows
    assert [(row["kind"], row.get("uuid"), row["conversation"]) for row in rows] == [
        ("leg", "u1", "u1"), ("leg", "u2", "u1"), ("conversation", None, "u1"),
    ]  # fmt: skip
    assert (summary["legs"], summary["conversations"]) == (2, 1)


def test_a_replay_for_people_has_the_legs_in_a_table(run: Run, outputs: list[Any]) -> None:
    outputs += [leg("u1", "a@x", sip_code=486, hangup_cause="USER_BUSY"), conversation("u1")]
    heading, line, summary = run("replay", ANY_FILE).out.splitlines()
    assert heading.split() == [
        "uuid", "call_id", "created_at", "answered", "sip_code", "hangup_cause",
    ]  # fmt: skip
    assert line.split() == ["u1", "a@x", "2026-07-20", "12:00:00.000Z", "no", "486", "USER_BUSY"]
    assert "1 legs, 1 conversations" in summary


def test_what_a_transcript_says_is_stored_and_once_however_often(run: Run, database: str) -> None:
    for expected in (2, 2):
        (said,) = run("replay", "--store", "--json", "--dsn", database, TRANSCRIPT).rows
        assert (said["legs"], said["conversations"]) == (expected, 1)
    listed = run("ladder", "--dsn", database, "20-bridged-json-1-13281@127.0.0.1", "--json").rows
    assert Counter(row["kind"] for row in listed if row["kind"] != "media") == {
        "leg": 2, "conversation": 1,
    }  # fmt: skip


def test_a_damaged_transcript_is_said_to_be_damaged(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.esl"
    broken.write_bytes(b"Content-Type: auth/request\n\nno esl\n\n")
    assert f"{broken} is damaged" in run("replay", broken).err
    assert run("replay", "--json", broken).rows[-1]["broken_files"] == [str(broken)]


def test_intervals_without_json_are_an_error_that_says_so(run: Run) -> None:
    said = run("replay", "--intervals", ANY_FILE)
    assert said.code == 2
    assert said.err == "sipsidecar: --intervals adds lines of JSON: give --json as well\n"
