import ipaddress
import json
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls.events import AttemptRecord, CallRecord, PingRecord, RegistrationRecord
from sipsidecar.calls.table import Retraction
from sipsidecar.edges import replay
from sipsidecar.edges.replay import Replay, ReplayError
from sipsidecar.pipeline import Output, Pipeline, Stored
from sipsidecar.wire import hep, pcap

CORPUS = Path(__file__).parents[1] / "corpus"
KAMAILIO = CORPUS / "kamailio"
FREESWITCH = CORPUS / "freeswitch"
TRUTHS = sorted(path for path in KAMAILIO.glob("*.json") if path.with_suffix(".pcap").exists())
WITH_CALLS = [
    path
    for path in TRUTHS
    if any("answered" in row for row in json.loads(path.read_text())["calls"])
]


class Replayed:
    """What is left when a replay is over: the newest revision of each record."""

    def __init__(self, *paths: Path) -> None:
        self.pipeline = Pipeline()
        self.kept: list[Stored] = []
        self.replay = Replay(paths, self.pipeline, keep=self.kept.extend)
        self.records: dict[tuple[object, ...], Output] = {}
        for record in self.replay:
            if isinstance(record, Retraction):
                kind: type = CallRecord if record.branch is None else AttemptRecord
                self.records.pop((kind, record.call_id, record.from_tag, record.branch), None)
            else:
                key = [getattr(record, name, None) for name in ("from_tag", "branch", "cseq")]
                if isinstance(record, CallRecord | AttemptRecord):
                    key.pop()
                self.records[(type(record), record.call_id, *key)] = record
        self.said = self.pipeline.snapshot(self.replay.now)

    def calls(self) -> list[CallRecord]:
        return [record for record in self.records.values() if isinstance(record, CallRecord)]

    def call(self) -> CallRecord:
        (record,) = self.calls()
        return record

    def attempts(self, call_id: str) -> list[AttemptRecord]:
        found = [
            record
            for record in self.records.values()
            if isinstance(record, AttemptRecord) and record.call_id == call_id
        ]
        return sorted(found, key=lambda record: record.failover_order)

    def pings(self) -> list[PingRecord]:
        return [record for record in self.records.values() if isinstance(record, PingRecord)]

    def registrations(self) -> list[RegistrationRecord]:
        return [r for r in self.records.values() if isinstance(r, RegistrationRecord)]

    @property
    def ledger(self) -> dict[str, int]:
        said = self.said
        return {
            "received": said.received,
            "messages": said.stored_out,
            "quarantined": said.quarantined_out,
            "refused": sum(said.refused.values()),
            "held": said.held,
        }


# ------------------------------------------------------------------------------ Kamailio's captures


@pytest.mark.parametrize("path", WITH_CALLS, ids=lambda path: path.stem)
def test_a_capture_gives_what_the_caller_met(path: Path) -> None:
    truth = json.loads(path.read_text())
    replayed = Replayed(path.with_suffix(".pcap"))
    calls = {record.call_id: record for record in replayed.calls()}
    assert calls.keys() == {row["call_id"] for row in truth["calls"]}
    assert len(replayed.calls()) == len(truth["calls"])
    wrong = []
    for row in truth["calls"]:
        record = calls[row["call_id"]]
        expected = {
            "final_code": row["final_code"],
            "answered": row["answered"],
            "released_by": "caller" if row.get("cancelled") else row["bye_by"],
            "ended": True,
            "inferred": False,
            "final_class": f"{row['final_code'] // 100}xx",
        }
        if "challenges" in row:
            expected["invites"] = 1 + len(row["challenges"])
            expected["final_phrase"] = row["reason"]
        got = {name: getattr(record, name) for name in expected}
        if got != expected:
            wrong.append((row["call_id"], got, expected))
        wrong += [(row["call_id"], *one) for one in wrong_delays(row, record)]
    assert wrong == []


def wrong_delays(row: dict[str, Any], record: CallRecord) -> list[tuple[str, object, object]]:
    tolerance = 3.0
    if record.time_source == "receiver":
        tolerance = 10.0  # HEPv1 has no time: the recorder's stamps, by another process
    pdd = row["pdd_ms"]
    if pdd is None and row["answered"]:
        pdd = record.setup_ms  # the 200 was the first that the caller heard
    pairs = [("pdd_ms", record.pdd_ms, pdd)]
    if "invite_to_final_ms" in row:
        name = "setup_ms" if row["answered"] else "fail_ms"
        pairs.append((name, getattr(record, name), row["invite_to_final_ms"]))
        pairs.append(("talk_ms", record.talk_ms, row["duration_ms"]))
    return [
        one
        for one in pairs
        if (one[1] is None) != (one[2] is None)
        or (one[1] is not None and abs(one[1] - one[2]) > tolerance)
    ]


def test_there_is_a_truth_for_each_of_kamailios_captures_and_enough_calls_in_them() -> None:
    assert {path.stem for path in TRUTHS} == {path.stem for path in KAMAILIO.glob("*.pcap")}
    rows = [row for path in WITH_CALLS for row in json.loads(path.read_text())["calls"]]
    assert len(rows) == 188
    assert len([row for row in rows if row["pdd_ms"] is not None]) == 141


@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)
def test_every_message_of_a_capture_is_accounted_for_and_none_is_refused(path: Path) -> None:
    truth = json.loads(path.read_text())
    replayed = Replayed(path.with_suffix(".pcap"))
    ledger = replayed.ledger
    assert ledger["received"] == truth["hep_messages"]
    assert ledger["received"] == ledger["messages"] + ledger["quarantined"]
    assert sum(one.packets for one in replayed.kept) == truth["hep_messages"]
    assert replayed.replay.not_sip == replayed.replay.cut == 0
    assert replayed.replay.truncated == []
    if path.stem != "l_malformed":
        assert ledger["quarantined"] == 0


def test_a_failover_is_two_attempts_in_order_and_one_call() -> None:
    truth = json.loads((KAMAILIO / "j_failover.json").read_text())
    replayed = Replayed(KAMAILIO / "j_failover.pcap")
    for row in truth["calls"]:
        first, second = replayed.attempts(row["call_id"])
        assert [first.failover_order, second.failover_order] == [1, 2]
        assert [first.final_code, second.final_code] == [503, 200]
        assert [first.answered, second.answered] == [False, True]
        assert [first.peer_ip, second.peer_ip] == ["127.10.0.31", "127.10.0.32"]
        assert first.branch != second.branch
        assert first.started_at < second.started_at
        assert first.pdd_ms is None
        assert second.pdd_ms is not None
    assert {record.attempts for record in replayed.calls()} == {2}


def test_each_ping_knows_its_trunk_its_code_and_how_often_it_was_sent() -> None:
    truth = json.loads((KAMAILIO / "h_dispatcher_ping.json").read_text())
    replayed = Replayed(KAMAILIO / "h_dispatcher_ping.pcap")
    found = {ping.call_id: ping for ping in replayed.pings()}
    rows = truth["pings_derived_from_hep"]
    assert len(rows) == len(found) == 48
    for row in rows:
        ping = found[row["call_id"]]
        assert (ping.peer_ip, ping.final_code) == (row["trunk"], row["code"])
        assert ping.requests == row["requests"]
        assert (ping.rtt_ms is None) == (row["code"] is None)
        assert ping.started_at / 1e6 == pytest.approx(row["t"], abs=0.002)


def test_registrations_and_pings_have_the_codes_that_the_client_saw_in_order() -> None:
    truth = json.loads((KAMAILIO / "h_register_options.json").read_text())
    replayed = Replayed(KAMAILIO / "h_register_options.pcap")
    found: dict[str, list[int | None]] = {}
    by_time = sorted(
        [*replayed.registrations(), *replayed.pings()], key=lambda record: record.started_at
    )
    for record in by_time:
        found.setdefault(record.call_id, []).append(record.final_code)
    assert found == {row["call_id"]: row["codes"] for row in truth["calls"]}
    assert replayed.calls() == []


def test_what_kamailio_could_not_read_is_kept_and_makes_no_call_answered() -> None:
    replayed = Replayed(KAMAILIO / "l_malformed.pcap")
    assert not any(record.answered for record in replayed.calls())
    quarantined = Counter(one.why for one in replayed.kept if one.why is not None)
    assert set(quarantined) <= {"start-line", "call-id", "cseq", "via", "from", "to"}
    assert all(one.payload for one in replayed.kept)


def test_media_reports_are_kept_and_no_calls() -> None:
    replayed = Replayed(KAMAILIO / "r_rtpengine_rtcp.pcap")
    assert replayed.records == {}
    assert {one.kind for one in replayed.kept} == {5}
    truth = json.loads((KAMAILIO / "r_rtpengine_rtcp.json").read_text())
    counts = Counter(one.call_id for one in replayed.kept)
    assert counts == {row["call_id"]: row["hep_messages"] for row in truth["calls"]}


# ---------------------------------------------------------------------------- FreeSWITCH's captures

# The final code on the wire per call, in the order of the calls.
FREESWITCH_CODES = {
    "hep-default": [486],
    "hep-v1": [200, 200, 486],
    "hep-v3-full": [200, 200, 486, 503, 503, 487, 487, 200],
    "hep-v3-new-sofia-tcp-oversize": [200, 200],
    "hep-v3-paused-503": [503],
}


@pytest.mark.parametrize("name", sorted(FREESWITCH_CODES))
def test_freeswitchs_calls_have_the_codes_that_were_on_the_wire(name: str) -> None:
    replayed = Replayed(FREESWITCH / f"{name}.pcap")
    calls = sorted(replayed.calls(), key=lambda record: record.started_at)
    assert [record.final_code for record in calls] == FREESWITCH_CODES[name]
    assert replayed.said.refused == {}
    assert replayed.ledger["quarantined"] == 0


def test_each_of_freeswitchs_captures_is_among_those_with_known_codes() -> None:
    assert {path.stem for path in FREESWITCH.glob("*.pcap")} == set(FREESWITCH_CODES)
