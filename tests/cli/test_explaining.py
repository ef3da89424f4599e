"""One call in plain words."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import msgspec
import pytest

from running import CORPUS
from sipsidecar.cli.explaining import Around, story
from sipsidecar.cli.reading import Everything
from terminal import Row, Run

Calls = Callable[..., list[Row]]


def told(run: Run, dsn: str, call_id: str) -> dict[str, list[str]]:
    said = run("explain", "--dsn", dsn, "--json", call_id)
    assert (said.code, said.err) == (0, "")
    (row,) = said.rows
    lines: dict[str, list[str]] = row["told"]
    return lines


def test_an_answered_call_tells_who_called_whom_how_long_and_who_hung_up(
    run: Run, dsn: str, calls: Calls
) -> None:
    call = calls("--since", "7d", "--answered", "--limit", "1000")[0]
    lines = told(run, dsn, call["call_id"])
    assert f"{call['from_user']}@" in lines["Call"][0]
    assert lines["End"][0].startswith("Answered after ")
    hung_up = {"caller": "the caller hung up", "callee": "the callee hung up"}
    assert hung_up[call["released_by"]] in lines["End"][1]
    text = run("explain", "--dsn", dsn, call["call_id"]).out
    assert all(line in text for some in lines.values() for line in some)


def test_a_failed_call_tells_its_code_and_who_made_it(run: Run, dsn: str, calls: Calls) -> None:
    for call in calls("--since", "7d", "--failed", "--limit", "1000"):
        if call["final_code"] is None:
            continue
        (line, *_) = told(run, dsn, call["call_id"])["End"]
        assert line.startswith(f"Not answered: {call['final_code']}"), call


def test_attempts_are_told_in_their_order(run: Run, dsn: str, calls: Calls) -> None:
    call = next(one for one in calls("--since", "7d", "--limit", "1000") if one["attempts"] == 2)
    first, second = told(run, dsn, call["call_id"])["Attempts"]
    assert first.startswith("1. to ")
    assert second.startswith("2. to ")


def test_who_redials_is_near_the_call(run: Run, dsn: str, calls: Calls) -> None:
    found = calls("--since", "7d", "--limit", "1000")
    near = [one for one in found if "Near it" in told(run, dsn, one["call_id"])]
    assert near
    for call in near[:3]:
        assert all(
            call["call_id"] not in line for line in told(run, dsn, call["call_id"])["Near it"]
        )


def test_a_call_that_is_not_there_is_an_error_that_says_where_to_look(run: Run, dsn: str) -> None:
    said = run("explain", "--dsn", dsn, "nobody@nowhere")
    assert said.code == 2
    assert "`sipsidecar calls` lists calls" in said.err


def test_what_strangers_wrote_cannot_move_a_terminal(run: Run, dsn: str, calls: Calls) -> None:
    for call in calls("--since", "7d", "--limit", "1000"):
        text = run("explain", "--dsn", dsn, call["call_id"]).out
        assert text.replace("\n", "").isprintable()


def test_an_outcome_that_was_posted_is_told(run: Run, dsn: str, calls: Calls) -> None:
    call = calls("--since", "7d", "--answered", "--limit", "1000")[1]

    async def post() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(
                "INSERT INTO outcomes (call_id, received_at, outcome, first_audio_ms, completed,"
                " result, data, node_id) VALUES ($1, now(), 'outcome-1', 420, true, 'booked',"
                """ '{"mood": "calm"}', 1)""",
                call["call_id"],
            )
        finally:
            await connection.close()

    asyncio.run(post())
    (line,) = told(run, dsn, call["call_id"])["Outcome"]
    assert "first audio after 0.42 s, task completed, result booked" in line
    assert "calm" in line


CALL: dict[str, Any] = {
    "call_id": "a", "started_at": 1_700_000_000_000_000, "from_user": "alice", "from_host": "x",
    "to_user": "bob", "to_host": "y", "ruri_user": None, "ruri_host": None, "src_ip": "192.0.2.1",
    "src_port": 5060, "dst_ip": None, "dst_port": None, "transport": None, "user_agent": None,
    "flags": [], "tenant": "acme", "trunk": "other", "carrier": None, "direction": None,
    "region": None, "agent": None, "answered": False, "ended": True, "end_source": None,
    "setup_ms": None, "ring_ms": None, "pdd_ms": None, "talk_ms": None, "fail_ms": 1200.0,
    "final_code": 486, "final_phrase": "Busy Here", "final_origin": "callee", "released_by": None,
    "reason": None, "codec_offered": None, "codec_negotiated": None, "findings": [], "evidence": None,
}  # fmt: skip


def lines_of(attempts: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, list[str]]:
    found = Everything([{**CALL, **changes}], [], [], [], [], [])
    return dict(story(Around(found, attempts or [], [], [], [])))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "Not answered: 486 Busy Here after 1.2 s, by the callee's side."),
        ({"final_origin": "admission"}, "by admission control"),
        ({"final_origin": "inferred", "final_code": 408}, "inferred, for nobody saw"),
        ({"final_code": None}, "How it ended is unknown."),
        ({"final_code": 487, "released_by": "caller"}, "The caller gave up (CANCEL)."),
        ({"answered": True, "setup_ms": 2300.0}, "Answered after 2.3 s"),
        ({"answered": True, "ended": False}, "It goes on, as far as is known."),
        ({"answered": True, "talk_ms": 61_000.0, "released_by": "callee"}, "It lasted 61 s; the callee"),
        ({"answered": True, "end_source": "timer"}, "no BYE was seen, the end is known by: timer."),
        ({"answered": True}, "no BYE was seen: the end is unknown."),
        ({"reason": "Q.850;cause=17"}, "Reason given: Q.850;cause=17."),
    ],
)  # fmt: skip
def test_every_end_has_its_words(changes: dict[str, Any], says: str) -> None:
    assert says in " ".join(lines_of(**changes)["End"])


def test_only_labels_that_say_something_are_told() -> None:
    assert lines_of()["Call"][1] == "It is of tenant acme."
    assert len(lines_of(tenant=None)["Call"]) == 1


def test_two_codecs_of_one_call_are_told_as_transcoding() -> None:
    attempt = {
        "failover_order": 1, "started_at": 1, "trunk": "acme", "answered": True, "setup_ms": 5.0,
        "fail_ms": None, "final_code": 200, "final_phrase": None, "codec_negotiated": "G729",
        "peer_ip": "2001:db8::1", "peer_port": 5060, "call_id": "a",
    }  # fmt: skip
    told = lines_of([attempt], codec_offered="PCMU,PCMA", codec_negotiated="PCMA")
    assert told["Codecs"] == [
        "Offered PCMU,PCMA; chosen PCMA.",
        "Transcoded between: PCMA with the caller, G729 with [2001:db8::1]:5060.",
    ]
    assert told["Attempts"] == ["1. to [2001:db8::1]:5060 (trunk acme): 200 after 0.005 s"]
    assert lines_of(codec_offered="PCMU")["Codecs"] == ["Offered PCMU; none was chosen."]


def test_a_call_of_a_freeswitch_tells_of_both_its_legs(run: Run, database: str) -> None:
    capture = CORPUS / "freeswitch/10-bridged-a-bye-ALL.esl"
    assert run("replay", "--store", "--dsn", database, capture).code == 0
    uuid = run("calls", "--dsn", database, "--since", "3650d", "--json").rows
    for call in uuid:
        said = run("explain", "--dsn", database, "--json", call["call_id"])
        assert said.code == 0
        assert len(msgspec.json.decode(said.out)["told"]["FreeSWITCH"]) >= 1
