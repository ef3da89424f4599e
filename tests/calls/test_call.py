import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from sim import ADDRESSES, Line, sip_text
from sipsidecar.calls import call as facts
from sipsidecar.calls.call import Call, earlier
from sipsidecar.wire import sip


def _endpoint(name: str) -> tuple[bytes, int]:
    return bytes(int(part) for part in ADDRESSES[name].split(".")), 5060


def _see(call: Call, text: str, clock: int = 1, copy: int = 0) -> None:
    line = Line.of(text)
    payload = sip_text(line, call.call_id)
    ends = (_endpoint(line.source), _endpoint(line.destination))
    at = round(line.at * 1_000_000)
    call.see(sip.parse(payload), *ends, "udp", hash((payload, *ends, copy)), clock, at)


def _call() -> Call:
    return Call("one@example.com", 0.0, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1000)), min_size=1, max_size=12))
def test_the_join_of_first_sightings_is_the_least_per_clock_in_any_order(
    sightings: list[tuple[int, int]],
) -> None:
    expected: dict[int, int] = {}
    for clock, at in sightings:
        expected[clock] = min(at, expected.get(clock, at))
    flat = tuple(itertools.chain.from_iterable(sorted(expected.items())))
    for order in (sightings, sightings[::-1], random.Random(1).sample(sightings, len(sightings))):
        times: facts.Times = ()
        for clock, at in order:
            times = earlier(times, clock, at)
        assert flat == times


def test_the_earliest_copy_of_an_invite_describes_it() -> None:
    call = _call()
    _see(call, "0.5 A>B INVITE 1/INVITE b1 a -")
    _see(call, "0.1 A>C INVITE 1/INVITE b1 a -")
    _see(call, "0.9 A>D INVITE 1/INVITE b1 a -")
    (leg,) = call.legs.values()
    assert leg.first is not None
    assert _endpoint("C") == leg.first.destination
    assert leg.invite == (1, 100_000)


def test_a_transaction_known_by_its_replies_alone_knows_its_ends() -> None:
    call = _call()
    _see(call, "0.5 B>A 180 1/INVITE b1 a x")
    (leg,) = call.legs.values()
    assert (_endpoint("A"), _endpoint("B")) == leg.ends()


def test_every_cap_refuses_what_is_over_it_and_counts_it() -> None:
    call = _call()
    for i in range(facts.MAX_LEGS + 3):
        _see(call, f"0.0 A>B INVITE 1/INVITE b{i} a -")
        _see(call, f"0.1 B>A 180 1/INVITE b{i} a x")
        _see(call, f"0.2 A>B CANCEL 1/CANCEL b{i} a -")
    assert len(call.legs) == facts.MAX_LEGS
    assert call.refused >= 9


def test_replies_acks_byes_and_reinvites_are_capped() -> None:
    call = _call()
    for i in range(facts.MAX_DIALOG_FACTS + 2):
        _see(call, f"0.0 B>A 180 1/INVITE b1 a tag{i}")
        _see(call, f"0.0 A>B ACK {i + 1}/ACK b1 a x")
        _see(call, f"0.0 A>B BYE {i + 1}/BYE b1 a x")
        _see(call, f"0.0 A>B INVITE {i + 1}/INVITE b1 a x")
    assert len(call.legs["z9hG4bKb1", 1].replies) == facts.MAX_REPLIES
    assert facts.MAX_DIALOG_FACTS == len(call.acks) == len(call.byes) == len(call.reinvites)
    assert len(call.copies) == facts.MAX_COPIES
    over = facts.MAX_DIALOG_FACTS + 2
    assert call.refused == (over - facts.MAX_REPLIES) + 3 * 2 + (4 * over - facts.MAX_COPIES)


def test_copies_closer_than_a_retransmission_are_one_message() -> None:
    call = _call()
    for at in ("0.0", "0.0", "0.2", "0.5", "0.6", "1.5"):
        _see(call, f"{at} A>B INVITE 1/INVITE b1 a -")
    assert call.retransmissions({"z9hG4bKb1"}) == 2
    assert call.retransmissions({"z9hG4bKother"}) == 0


def test_times_of_one_message_are_capped() -> None:
    call = _call()
    for i in range(3 * facts.MAX_COPY_TIMES):
        _see(call, f"{i}.0 A>B INVITE 1/INVITE b1 a -")
    assert call.retransmissions({"z9hG4bKb1"}) == facts.MAX_COPY_TIMES - 1


def test_the_longest_session_interval_is_believed() -> None:
    call = _call()
    _see(call, "0.0 A>B INVITE 1/INVITE b1 a - se=90")
    _see(call, "1.0 B>A 200 1/INVITE b1 a x se=1800")
    _see(call, "2.0 A>B UPDATE 2/UPDATE b2 a x se=600")
    assert call.session_expires == 1800


def test_an_attempts_refusal_does_not_look_like_the_calls() -> None:
    call = _call()
    _see(call, "0.0 A>P INVITE 1/INVITE b1 a -")
    line = Line.of("0.2 B>P 503 1/INVITE p1 a x")
    payload = sip_text(line, call.call_id, parent="b1")
    call.see(sip.parse(payload), _endpoint("B"), _endpoint("P"), "udp", 1, 1, 200_000)
    assert not call.live & facts.REFUSED
    _see(call, "0.3 P>A 500 1/INVITE b1 a k")
    assert call.live & facts.REFUSED


def test_an_admission_header_is_remembered_as_a_mark() -> None:
    call = _call()
    payload = sip_text(Line.of("0.1 B>A 486 1/INVITE b1 a x"), call.call_id)
    payload = payload.replace(b"Max-Forwards: 70", b"X-Admission: trunk-cap")
    call.see(sip.parse(payload), _endpoint("B"), _endpoint("A"), "udp", 1, 1, 1)
    (reply,) = call.legs["z9hG4bKb1", 1].replies.values()
    assert b"X-Admission" in reply.reasons


def test_bodies_and_reasons_of_one_call_are_bounded() -> None:
    call = _call()
    for i in range(40):
        payload = sip_text(Line.of(f"0.0 B>A 183 1/INVITE b{i} a x"), call.call_id)
        head, _, _ = payload.partition(b"\r\n\r\n")
        head = head.replace(b"Content-Length: 0", b"Content-Length: 4000")
        head += b"\r\nReason: " + b"x" * 5000
        message = sip.parse(head + b"\r\n\r\n" + b"b" * 4000)
        call.see(message, _endpoint("B"), _endpoint("A"), "udp", i, 1, 0)
    replies = [reply for leg in call.legs.values() for reply in leg.replies.values()]
    assert sum(len(reply.body) for reply in replies) <= facts.MAX_BODIES
    assert all(len(value) <= facts.MAX_REASON for reply in replies for value in reply.reasons)
    assert call.refused == 40 - facts.MAX_BODIES // 4000


def test_only_what_changes_a_session_is_kept_of_a_dialog() -> None:
    call = _call()
    for text in (
        "0.0 A>B INVITE 1/INVITE b1 a - sdp=0",
        "1.0 B>A 183 1/INVITE b1 a x sdp=0",
        "1.1 A>B PRACK 2/PRACK b2 a x",
        "1.2 B>A 200 2/PRACK b2 a x",
        "2.0 B>A 200 1/INVITE b1 a x",
        "3.0 A>B INVITE 3/INVITE b3 a x",
        "4.0 A>B UPDATE 4/UPDATE b4 a x",
        "4.1 B>A 200 4/UPDATE b4 a x",
        "5.0 A>B INFO 5/INFO b5 a x sdp=0",
        "5.1 B>A 200 5/INFO b5 a x sdp=0",
        "6.0 B>A 488 6/UPDATE b6 a x sdp=0",
        "9.0 A>B BYE 7/BYE b7 a x sdp=0",
    ):
        _see(call, text)
    assert call.sessions is None


def test_offers_inside_a_dialog_and_their_answers_are_kept_with_the_requests_way() -> None:
    call = _call()
    for text in (
        "1.0 A>B PRACK 2/PRACK b2 a x sdp=0",
        "1.1 B>A 200 2/PRACK b2 a x sdp=8",
        "2.0 B>A UPDATE 1/UPDATE c1 x a sdp=0",
        "2.1 A>B 202 1/UPDATE c1 x a sdp=8",
        "3.0 A>B INVITE 3/INVITE b3 a x sdp=9",
    ):
        _see(call, text)
        _see(call, text, clock=2)
    assert call.sessions is not None
    kept = [(f.method, f.status, f.branch, f.body[-3:-2], f.ends) for f in call.sessions.values()]
    forth, back = (_endpoint("A"), _endpoint("B")), (_endpoint("B"), _endpoint("A"))
    assert kept == [
        ("PRACK", None, "z9hG4bKb2", b"0", forth),
        ("PRACK", 200, "z9hG4bKb2", b"8", forth),
        ("UPDATE", None, "z9hG4bKc1", b"0", back),
        ("UPDATE", 202, "z9hG4bKc1", b"8", back),
        ("INVITE", None, "z9hG4bKb3", b"9", forth),
    ]
    assert all(len(fact.times) == 4 for fact in call.sessions.values())


def test_of_copies_that_differ_the_earliest_is_kept_in_any_order() -> None:
    copies = [
        "3.0 A>B UPDATE 2/UPDATE b2 a x sdp=0",
        "2.0 A>C UPDATE 2/UPDATE b2 a x sdp=8",
        "2.0 A>C UPDATE 2/UPDATE b2 a x sdp=9",
        "2.5 A>D UPDATE 2/UPDATE b2 a x sdp=18",
        "3.5 A>B ACK 1/ACK b3 a x sdp=0",
        "3.0 A>B ACK 1/ACK b3 a x",
        "3.2 A>B ACK 1/ACK b3 a x sdp=8",
    ]
    for order in itertools.permutations(copies):
        call = _call()
        for text in order:
            _see(call, text)
        assert call.sessions is not None
        (update,) = call.sessions.values()
        assert (update.body[-3:-2], update.times) == (b"8", (1, 2_000_000))
        assert update.ends == (_endpoint("A"), _endpoint("C"))
        (ack,) = call.acks.values()
        assert (ack.body[-3:-2], ack.times) == (b"8", (1, 3_000_000))


def test_a_body_that_is_repeated_is_kept_and_counted_once() -> None:
    call = _call()
    _see(call, "1.0 A>B INVITE 2/INVITE b1 a x sdp=0")
    once = call.body_bytes
    for i in range(2, 9):
        _see(call, f"{i}.0 A>B INVITE {i}/INVITE b{i} a x sdp=0")
    _see(call, "9.0 B>A UPDATE 1/UPDATE c1 x a sdp=0")
    assert call.sessions is not None
    assert len(call.sessions) == 9
    assert call.body_bytes < 3 * once
    assert len({id(fact.body) for fact in call.sessions.values()}) == 2


def test_offers_inside_a_dialog_are_capped_and_those_over_it_counted() -> None:
    call = _call()
    for i in range(facts.MAX_DIALOG_FACTS + 3):
        _see(call, f"1.0 A>B UPDATE {i + 1}/UPDATE b{i} a x sdp=0")
    assert call.sessions is not None
    assert len(call.sessions) == facts.MAX_DIALOG_FACTS
    assert call.refused == 3


def test_a_body_that_was_there_and_is_not_known_leaves_its_type() -> None:
    call = _call()
    text = sip_text(Line.of("1.0 A>B INVITE 1/INVITE b1 a - sdp=0"), call.call_id)
    cut = text.partition(b"v=0")[0]
    call.see(sip.parse(cut), _endpoint("A"), _endpoint("B"), "udp", 1, 1, 1)
    call.body_bytes = facts.MAX_BODIES
    _see(call, "2.0 A>B UPDATE 2/UPDATE b2 a x sdp=0")
    _see(call, "2.0 A>B UPDATE 2/UPDATE b2 a x sdp=0")
    (leg,) = call.legs.values()
    assert leg.first is not None
    assert (leg.first.content_type, leg.first.body) == ("application/sdp", b"")
    assert call.sessions is not None
    (update,) = call.sessions.values()
    assert (update.content_type, update.body) == ("application/sdp", b"")
    assert call.refused == 1
