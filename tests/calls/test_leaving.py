from sim import Line, play, sip_text
from sipsidecar.calls.call import Call
from sipsidecar.calls.events import AttemptRecord, CallRecord, MediaRecord
from sipsidecar.calls.leaving import hashes, interrupted, key_of, marked, marks_of
from sipsidecar.wire import sip

HERE, THERE = (b"\xc0\0\2\1", 5060), (b"\xc6\x33\x64\2", 5060)
FORWARDED = [
    "0.0 A>P INVITE 1/INVITE b1 a -",
    "0.01 P>B INVITE 1/INVITE p1 a -",
]
REFUSED = ["0.2 B>P 486 1/INVITE p1 a x", "0.21 P>A 486 1/INVITE b1 a x"]


def _call(*lines: str) -> Call:
    call = Call("one@example.com", 0.0, 0)
    for text in lines:
        message = sip.parse(sip_text(Line.of(text), "one@example.com"))
        call.see(message, HERE, THERE, "udp", hash(text), 1, 0)
    return call


def test_records_of_one_call_id_are_told_apart_by_tag_and_branch() -> None:
    world = play([*FORWARDED, *REFUSED], parents={"p1": "b1"})
    records: list[CallRecord | AttemptRecord] = [world.call(), *world.attempts()]
    assert [key_of(record) for record in records] == [
        ("a", None, None),
        ("a", "z9hG4bKp1", None),
    ]
    assert len(hashes(records)) == 2
    assert hashes(records) != hashes([marked(record, 1, ()) for record in records])


def test_what_only_a_timer_would_prove_is_not_said_of_an_interrupted_call() -> None:
    world = play(FORWARDED, parents={"p1": "b1"})
    records: list[CallRecord | AttemptRecord] = [world.call(), *world.attempts()]
    for record in records:
        assert (record.final_code, record.inferred) == (408, True)
        cut = interrupted(record)
        assert not isinstance(cut, MediaRecord)
        assert (cut.final_code, cut.inferred, cut.flags) == (None, False, ("interrupted",))


def test_what_was_seen_stays_in_an_interrupted_call() -> None:
    world = play([*FORWARDED, *REFUSED], parents={"p1": "b1"})
    cut = interrupted(world.call())
    assert isinstance(cut, CallRecord)
    assert cut.final_code == 486


def test_media_of_an_interrupted_call_says_so_and_keeps_its_figures() -> None:
    record = MediaRecord(
        call_id="one@example.com",
        from_tag="a",
        stream="caller_to_callee",
        received_at=0,
        direction="caller_to_callee",
        started_at=0,
        ended_at=0,
        packets_lost=3,
    )
    assert key_of(record) == ("a", None, "caller_to_callee")
    cut = interrupted(record)
    assert isinstance(cut, MediaRecord)
    assert (cut.packets_lost, cut.flags) == (3, ("interrupted",))


def test_a_call_met_in_its_middle_while_warming_says_so() -> None:
    for lines in (
        ["1.0 B>A 180 1/INVITE b1 a x"],
        ["9.0 A>B BYE 2/BYE b3 a x"],
        ["0.1 B>A 407 1/INVITE b1 a p", "0.2 A>B INVITE 2/INVITE b2 a -"],
    ):
        call = _call(*lines)
        call.marks = ("warming", "rebuilt")
        assert marks_of(call) == ("warming", "rebuilt")


def test_a_call_whose_invites_were_seen_after_all_missed_nothing() -> None:
    call = _call("1.0 B>A 180 1/INVITE b1 a x", "0.0 A>B INVITE 1/INVITE b1 a -")
    call.marks = ("warming", "rebuilt")
    assert marks_of(call) == ("rebuilt",)


def test_the_callees_reinvite_does_not_make_a_call_one_that_was_met_in_its_middle() -> None:
    call = _call(
        "0.0 A>B INVITE 1/INVITE b1 a -",
        "1.0 B>A 200 1/INVITE b1 a x",
        "2.0 B>A INVITE 7/INVITE b7 x a",
        "2.1 A>B 200 7/INVITE b7 x a",
    )
    call.marks = ("warming",)
    assert marks_of(call) == ()


def test_a_marked_record_has_each_flag_once_and_sorted() -> None:
    record = marked(play(FORWARDED).call(), 3, ("warming", "no_response"))
    assert (record.revision, record.flags) == (3, ("no_response", "warming"))
