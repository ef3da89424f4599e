import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import ADDRESSES, EPOCH, Line, shuffled, sip_text
from sipsidecar.calls import negotiation, record
from sipsidecar.calls.call import MAX_BODIES, Call
from sipsidecar.calls.dialog import Clocks, Dialog
from sipsidecar.calls.negotiation import (
    Agreement,
    MediaSide,
    Negotiation,
    media_addresses,
    read,
    ssrcs_of,
)
from sipsidecar.wire import WireError, hep, pcap, sdp, sip

CORPUS = Path(__file__).parent.parent / "corpus"
PARENTS = {"p": "b", "q": "b"}
"""First letter of a branch: the branch with the same number that it was forwarded from."""

NOWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound to it
Step = str | tuple[str, str]
"""A line of `sim.Line`, and the SDP it carries."""


def audio(
    who: str, port: int, formats: str = "0 8", *lines: str, proto: str = "RTP/AVP", c: str = ""
) -> str:
    address = c or ADDRESSES[who]
    family = "IP6" if ":" in address else "IP4"
    head = f"v=0\r\no=- 1 1 IN IP4 x\r\ns=-\r\nc=IN {family} {address}\r\nt=0 0\r\n"
    return head + "\r\n".join([f"m=audio {port} {proto} {formats}", *lines, ""])


A = audio("A", 4000)
B = audio("B", 5000, "8")
HOLD = audio("A", 4000, "8", "a=sendonly")
HELD = audio("B", 5000, "8", "a=recvonly")


def split(step: Step) -> tuple[Line, str]:
    text, body = step if isinstance(step, tuple) else (step, "")
    return Line.of(text), body


def later(step: Step, by: float) -> Step:
    """The same a moment later: two messages are never sent at the very same microsecond.

    The callee's branches get other names, for it has another tag in some flows: a branch that two
    dialogs share is no transaction.
    """
    text, body = step if isinstance(step, tuple) else (step, "")
    at, rest = text.split(" ", 1)
    return f"{float(at) + by} {rest.replace(' c', ' d')}", body


def payload(line: Line, body: str, call_id: str) -> bytes:
    number = line.branch.lstrip("bpqcd")
    parent = PARENTS.get(line.branch[0])
    text = sip_text(line, call_id, parent and parent + number)
    if body:
        kind = line.extra.get("type", "application/sdp")
        text = text.replace(
            b"Content-Length: 0\r\n\r\n",
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode(),
        )
    return text


def call_of(
    steps: Sequence[Step], order: Iterable[int] | None = None, skews: Sequence[int] = (0,)
) -> Call:
    """A call that saw these messages; clock 1, 2, ... each see all of them."""
    call = Call("one@example.com", 0.0, EPOCH)
    for index in order if order is not None else range(len(steps)):
        line, body = split(steps[index])
        data = payload(line, body, call.call_id)
        names = (line.source, line.destination)
        source, destination = ((bytes(map(int, ADDRESSES[n].split("."))), 5060) for n in names)
        at = EPOCH + round(line.at * 1_000_000)
        for clock, skew in enumerate(skews, 1):
            fingerprint = hash((data, source, destination))
            call.see(sip.parse(data), source, destination, "udp", fingerprint, clock, at + skew)
    return call


def dialog_of(call: Call, tag: str = "a") -> Dialog:
    return Dialog(call, tag, record._groups(call).get(tag, []), Clocks({}, frozenset()))


def negotiated(steps: Sequence[Step], order: Iterable[int] | None = None) -> Negotiation:
    return read(dialog_of(call_of(steps, order)))


def brief(some: Iterable[Agreement]) -> list[tuple[object, ...]]:
    """Seconds, via, offered by, codec, flow, and `early`."""
    return [
        (
            ((one.at or 0) - EPOCH) / 1e6,
            one.via,
            one.offered_by,
            one.codec and one.codec.name,
            one.flow,
            one.early,
        )
        for one in some
    ]


INVITE = ("0.0 A>B INVITE 1/INVITE b1 a -", A)
OK = ("5.0 B>A 200 1/INVITE b1 a x", B)
ACK = "5.1 A>B ACK 1/ACK b2 a x"
ANSWERED: list[Step] = [INVITE, "0.9 B>A 180 1/INVITE b1 a x", OK, ACK]
PCMA = (5.0, "invite", "caller", "PCMA", "both", False)

PROXIED: list[Step] = [
    ("0.0 A>P INVITE 1/INVITE b1 a -", A),
    ("0.01 P>B INVITE 1/INVITE p1 a -", audio("P", 30_000, "0 8")),
    "0.5 B>P 180 1/INVITE p1 a x",
    "0.51 P>A 180 1/INVITE b1 a x",
    ("3.0 B>P 200 1/INVITE p1 a x", B),
    ("3.01 P>A 200 1/INVITE b1 a x", audio("P", 30_100, "0")),
    "3.1 A>P ACK 1/ACK b2 a x",
    "3.11 P>B ACK 1/ACK p2 a x",
]

# name, messages, agreements at ingress and egress, what else is said
FLOWS: list[tuple[str, list[Step], list[object], list[object], dict[str, object]]] = [
    ("an INVITE is answered by its 200", ANSWERED, [PCMA], [], {}),
    (
        "an INVITE without SDP is offered to by the 200, which the ACK answers",
        ["0.0 A>B INVITE 1/INVITE b1 a -", ("5.0 B>A 200 1/INVITE b1 a x", A),
         ("5.1 A>B ACK 1/ACK b2 a x", B)],
        [(5.1, "ack", "callee", "PCMA", "both", False)], [], {"late_offer": True},
    ),
    (
        "a late offer whose ACK says nothing is never answered",
        ["0.0 A>B INVITE 1/INVITE b1 a -", ("5.0 B>A 200 1/INVITE b1 a x", A), ACK],
        [], [], {"late_offer": True, "unanswered_offer": True},
    ),
    (
        "an offer that the 200 accepts without SDP is never answered",
        [INVITE, "5.0 B>A 200 1/INVITE b1 a x", ACK], [], [], {"unanswered_offer": True},
    ),
    (
        "an offer in a reliable 183 is answered by its PRACK",
        ["0.0 A>B INVITE 1/INVITE b1 a -", ("1.0 B>A 183 1/INVITE b1 a x", A),
         ("1.1 A>B PRACK 2/PRACK b2 a x", B), "1.2 B>A 200 2/PRACK b2 a x",
         "5.0 B>A 200 1/INVITE b1 a x", ACK],
        [(1.1, "prack", "callee", "PCMA", "both", False)], [], {"late_offer": True},
    ),
    (
        "a PRACK may bring the next offer, which its 200 answers",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a x", B),
         ("1.1 A>B PRACK 2/PRACK b2 a x", HOLD), ("1.2 B>A 200 2/PRACK b2 a x", HELD),
         "5.0 B>A 200 1/INVITE b1 a x", ACK],
        [(1.0, "invite", "caller", "PCMA", "both", False),
         (1.2, "prack", "caller", "PCMA", "caller_to_callee", False)], [], {},
    ),
    (
        "a preview that the 200 repeats is the answer, and was known since the 183",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a x", B), OK, ACK],
        [(1.0, "invite", "caller", "PCMA", "both", False)], [], {},
    ),
    (
        "a preview is confirmed by a 200 without SDP",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a x", B), "5.0 B>A 200 1/INVITE b1 a x", ACK],
        [(1.0, "invite", "caller", "PCMA", "both", False)], [], {},
    ),
    (
        "a 200 with another answer replaces the preview",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a x", audio("C", 9000, "0")),
         ("1.5 B>A 180 1/INVITE b1 a x", audio("C", 9000, "0")), OK, ACK],
        [(1.0, "invite", "caller", "PCMU", "both", True), PCMA], [], {},
    ),
    (
        "a preview of a call that is refused stays one",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a x", B), "5.0 B>A 486 1/INVITE b1 a x",
         "5.1 A>B ACK 1/ACK b1 a x"],
        [(1.0, "invite", "caller", "PCMA", "both", True)], [], {},
    ),
    (
        "a lost 200 is known by its ACK: the preview stands",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a x", B), ACK],
        [(1.0, "invite", "caller", "PCMA", "both", False)], [], {},
    ),
    (
        "of forked previews the one of the 200's tag counts",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a y", audio("C", 9000, "0")),
         ("1.5 B>A 183 1/INVITE b1 a x", B), OK, ACK],
        [(1.5, "invite", "caller", "PCMA", "both", False)], [], {},
    ),
    (
        "every forked preview of a call that is not answered counts",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a y", audio("C", 9000, "0")),
         ("1.5 B>A 183 1/INVITE b1 a x", B)],
        [(1.0, "invite", "caller", "PCMU", "both", True),
         (1.5, "invite", "caller", "PCMA", "both", True)], [], {},
    ),
    (
        "of two 2xx the dialog that lived on counts",
        [INVITE, OK, ("5.01 B>A 200 1/INVITE b1 a y", audio("C", 9000, "0")), ACK,
         "5.2 A>B ACK 1/ACK b3 a y", "5.3 A>B BYE 2/BYE b4 a x"],
        [(5.01, "invite", "caller", "PCMU", "both", False)], [], {},
    ),
    (
        "hold, resume and another codec by re-INVITE",
        [*ANSWERED,
         ("10.0 A>B INVITE 2/INVITE b3 a x", HOLD), ("10.1 B>A 200 2/INVITE b3 a x", HELD),
         "10.2 A>B ACK 2/ACK b4 a x",
         ("20.0 B>A INVITE 1/INVITE c1 x a", B), ("20.1 A>B 200 1/INVITE c1 x a", A),
         "20.2 B>A ACK 1/ACK c2 x a",
         ("30.0 A>B INVITE 3/INVITE b5 a x", audio("A", 4000, "18")),
         ("30.1 B>A 200 3/INVITE b5 a x", audio("B", 5000, "18"))],
        [PCMA, (10.1, "reinvite", "caller", "PCMA", "caller_to_callee", False),
         (20.1, "reinvite", "callee", "PCMU", "both", False),
         (30.1, "reinvite", "caller", "G729", "both", False)], [], {},
    ),
    (
        "a re-INVITE without SDP is offered to by its 200",
        [*ANSWERED, "10.0 B>A INVITE 1/INVITE c1 x a", ("10.1 A>B 200 1/INVITE c1 x a", HOLD),
         ("10.2 B>A ACK 1/ACK c2 x a", HELD)],
        [PCMA, (10.2, "ack", "caller", "PCMA", "caller_to_callee", False)], [], {},
    ),
    (
        "a re-INVITE may be answered in its 183, or not at all",
        [*ANSWERED,
         ("10.0 A>B INVITE 2/INVITE b3 a x", HOLD), ("10.1 B>A 183 2/INVITE b3 a x", HELD),
         "10.2 B>A 200 2/INVITE b3 a x",
         ("20.0 A>B INVITE 3/INVITE b5 a x", A), "20.1 B>A 200 3/INVITE b5 a x",
         "30.0 A>B INVITE 4/INVITE b7 a x", ("30.1 B>A 200 4/INVITE b7 a x", B)],
        [PCMA, (10.1, "reinvite", "caller", "PCMA", "caller_to_callee", False)], [], {},
    ),
    (
        "a refused re-INVITE keeps the session as it was",
        [*ANSWERED, ("10.0 A>B INVITE 2/INVITE b3 a x", audio("A", 4000, "9")),
         ("10.1 B>A 488 2/INVITE b3 a x", B), "10.2 A>B ACK 2/ACK b3 a x"],
        [PCMA], [], {},
    ),
    (
        "a re-INVITE whose request was lost changes nothing that is known",
        [*ANSWERED, ("10.1 B>A 200 2/INVITE b3 a x", HELD), "10.2 A>B ACK 2/ACK b4 a x"],
        [PCMA], [], {},
    ),
    (
        "UPDATE offers like a re-INVITE, also before the answer",
        [INVITE, ("1.0 B>A 183 1/INVITE b1 a x", B), "1.1 A>B PRACK 2/PRACK b2 a x",
         ("2.0 A>B UPDATE 3/UPDATE b3 a x", HOLD), ("2.1 B>A 200 3/UPDATE b3 a x", HELD),
         OK, "5.1 A>B ACK 1/ACK b4 a x",
         ("9.0 B>A UPDATE 1/UPDATE c1 x a", B), ("9.1 A>B 200 1/UPDATE c1 x a", A)],
        [(1.0, "invite", "caller", "PCMA", "both", False),
         (2.1, "update", "caller", "PCMA", "caller_to_callee", False),
         (9.1, "update", "callee", "PCMU", "both", False)], [], {},
    ),
    (
        "an UPDATE that only refreshes, or is refused, or is another fork's, changes nothing",
        [*ANSWERED, "9.0 A>B UPDATE 2/UPDATE b3 a x", "9.1 B>A 200 2/UPDATE b3 a x",
         ("9.2 A>B UPDATE 3/UPDATE b4 a x", HOLD), "9.3 B>A 491 3/UPDATE b4 a x",
         ("9.4 A>B UPDATE 4/UPDATE b5 a y", HOLD), ("9.5 B>A 200 4/UPDATE b5 a y", HELD),
         ("9.6 C>B UPDATE 4/UPDATE b6 k x", HOLD), ("9.7 B>C 200 4/UPDATE b6 k x", HELD)],
        [PCMA], [], {},
    ),
    (
        "a media proxy's two legs are two agreements",
        [*PROXIED,
         ("9.0 A>P INVITE 2/INVITE b3 a x", HOLD),
         ("9.01 P>B INVITE 2/INVITE p3 a x", audio("P", 30_000, "8", "a=sendonly")),
         ("9.1 B>P 200 2/INVITE p3 a x", HELD),
         ("9.11 P>A 200 2/INVITE b3 a x", audio("P", 30_100, "8", "a=recvonly"))],
        [(3.01, "invite", "caller", "PCMU", "both", False),
         (9.11, "reinvite", "caller", "PCMA", "caller_to_callee", False)],
        [(3.0, "invite", "caller", "PCMA", "both", False),
         (9.1, "reinvite", "caller", "PCMA", "caller_to_callee", False)], {},
    ),
    (
        "the branch that answered is the egress, not the one that failed",
        [("0.0 A>P INVITE 1/INVITE b1 a -", A),
         ("0.01 P>B INVITE 1/INVITE p1 a -", A), ("0.2 B>P 183 1/INVITE p1 a y", B),
         "0.3 B>P 503 1/INVITE p1 a y",
         ("0.4 P>C INVITE 1/INVITE q1 a -", A),
         ("1.0 C>P 200 1/INVITE q1 a x", audio("C", 6000, "0")),
         ("1.01 P>A 200 1/INVITE b1 a x", audio("C", 6000, "0"))],
        [(1.01, "invite", "caller", "PCMU", "both", False)],
        [(1.0, "invite", "caller", "PCMU", "both", False)], {},
    ),
    (
        "when none answered, the egress is the last branch that was tried",
        [("0.0 A>P INVITE 1/INVITE b1 a -", A),
         ("0.01 P>B INVITE 1/INVITE p1 a -", A), ("0.2 B>P 183 1/INVITE p1 a y", B),
         "0.3 B>P 503 1/INVITE p1 a y",
         ("0.4 P>C INVITE 1/INVITE q1 a -", A),
         ("0.6 C>P 183 1/INVITE q1 a x", audio("C", 6000, "0"))],
        [], [(0.6, "invite", "caller", "PCMU", "both", True)], {},
    ),
    (
        "an answer that was lost at the egress leaves its preview, confirmed at the ingress",
        [*PROXIED[:2], ("0.5 B>P 183 1/INVITE p1 a x", B), *PROXIED[5:6]],
        [(3.01, "invite", "caller", "PCMU", "both", False)],
        [(0.5, "invite", "caller", "PCMA", "both", False)], {},
    ),
    (
        "a B2BUA that keeps the caller's tag has a callee's tag per leg",
        [("0.0 A>P INVITE 1/INVITE b1 a -", A),
         ("0.01 P>B INVITE 7/INVITE p1 a -", audio("P", 30_000, "0 8")),
         ("3.0 B>P 200 7/INVITE p1 a y", B),
         ("3.01 P>A 200 1/INVITE b1 a x", audio("P", 30_100, "0")),
         ("9.0 B>P INVITE 1/INVITE c1 y a", B),
         ("9.1 P>B 200 1/INVITE c1 y a", audio("P", 30_000, "8"))],
        [(3.01, "invite", "caller", "PCMU", "both", False)],
        [(3.0, "invite", "caller", "PCMA", "both", False),
         (9.1, "reinvite", "callee", "PCMA", "both", False)], {},
    ),
    (
        "a challenged INVITE counts by its second try",
        [INVITE, "0.1 B>A 407 1/INVITE b1 a k", "0.2 A>B ACK 1/ACK b1 a k",
         ("0.3 A>B INVITE 2/INVITE b2 a -", A), ("5.0 B>A 200 2/INVITE b2 a x", B)],
        [PCMA], [], {},
    ),
    (
        "a rejected audio line is an agreement on no audio",
        [INVITE, ("5.0 B>A 200 1/INVITE b1 a x", audio("B", 0, "8"))],
        [(5.0, "invite", "caller", None, "none", False)], [], {"refused_media": True},
    ),
    (
        "a fax that takes the audio away refused none",
        [*ANSWERED,
         ("9.0 B>A INVITE 1/INVITE c1 x a", B.replace("audio 5000 RTP/AVP 8", "image 5000 udptl t38")),
         ("9.1 A>B 200 1/INVITE c1 x a", A.replace("audio 4000 RTP/AVP 0 8", "image 1 udptl t38"))],
        [PCMA, (9.1, "reinvite", "callee", None, "none", False)], [], {},
    ),
    (
        "a direct UPDATE past the proxy is both legs'",
        [*PROXIED, ("9.0 A>B UPDATE 2/UPDATE b3 a x", HOLD), ("9.1 B>A 200 2/UPDATE b3 a x", HELD)],
        [(3.01, "invite", "caller", "PCMU", "both", False),
         (9.1, "update", "caller", "PCMA", "caller_to_callee", False)],
        [(3.0, "invite", "caller", "PCMA", "both", False),
         (9.1, "update", "caller", "PCMA", "caller_to_callee", False)], {},
    ),
    (
        "an UPDATE between strangers is counted, not guessed",
        [*ANSWERED, ("9.0 C>D UPDATE 2/UPDATE b3 a x", HOLD), ("9.1 D>C 200 2/UPDATE b3 a x", HELD)],
        [PCMA], [], {"unplaced": 1},
    ),
    ("only the end was seen", ["9.0 A>B BYE 2/BYE b9 a x"], [], [], {}),
]  # fmt: skip
STEPS = {name: steps for name, steps, *_ in FLOWS}


@pytest.mark.parametrize(
    ("steps", "ingress", "egress", "more"), [f[1:] for f in FLOWS], ids=[f[0] for f in FLOWS]
)
def test_offers_and_answers_are_paired(
    steps: list[Step], ingress: list[object], egress: list[object], more: dict[str, object]
) -> None:
    got = negotiated(steps)
    assert brief(got.ingress) == ingress
    assert brief(got.egress) == egress
    said = {name: getattr(got, name) for name in got.__struct_fields__[2:]}
    assert {name: value for name, value in said.items() if value} == more
    assert {one.leg for one in got.ingress} <= {"ingress"}
    assert {one.leg for one in got.egress} <= {"egress"}


@pytest.mark.parametrize("steps", STEPS.values(), ids=list(STEPS))
def test_no_order_and_no_duplicate_changes_what_was_agreed(steps: list[Step]) -> None:
    rng = random.Random(repr(steps))
    expected = negotiated(steps)
    for _ in range(25):
        order = shuffled(len(steps), rng)
        assert negotiated(steps, order) == expected, order


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_order_changes_what_is_known_when_messages_were_lost(data: st.DataObject) -> None:
    one, other = (data.draw(st.sampled_from(list(STEPS))) for _ in range(2))
    steps = [*STEPS[one], *(later(step, 0.0003) for step in STEPS[other])]
    kept = data.draw(st.lists(st.sampled_from(range(len(steps))), min_size=1, unique=True))
    again = data.draw(st.lists(st.sampled_from(kept), max_size=5))
    order = data.draw(st.permutations([*kept, *again]))
    calls = call_of(steps, kept), call_of(steps, order)
    for tag in record._groups(calls[0]):
        got = read(dialog_of(calls[0], tag))
        assert got == read(dialog_of(calls[1], tag))
        for each in (*got.ingress, *got.egress):
            assert each.at is not None
            assert (each.flow == "none") >= (each.codec is None)
        assert list(got.ingress) == sorted(got.ingress, key=lambda each: each.at or 0)


def test_each_end_of_each_leg_is_where_its_sdp_says() -> None:
    got = negotiated(STEPS["a media proxy's two legs are two agreements"])
    facing = [(one.caller, one.callee) for one in (got.ingress[0], got.egress[0])]
    where = [(side.host, side.port, side.rtcp_port) for sides in facing for side in sides]
    proxy, caller, callee = ADDRESSES["P"], ADDRESSES["A"], ADDRESSES["B"]
    assert where == [
        (caller, 4000, 4001),
        (proxy, 30_100, 30_101),
        (proxy, 30_000, 30_001),
        (callee, 5000, 5001),
    ]
    assert got.ingress[0].caller.ip == bytes([192, 0, 2, 1]) == got.ingress[0].caller.rtcp_ip


def test_the_same_two_bodies_have_other_sides_when_the_other_party_offers_them() -> None:
    again: list[Step] = [
        ("9.0 B>A INVITE 1/INVITE c1 x a", A),
        ("9.5 A>B 200 1/INVITE c1 x a", B),
        "9.6 B>A ACK 1/ACK c2 x a",
    ]
    first, second = negotiated([*ANSWERED, *again]).ingress
    assert (first.offered_by, second.offered_by) == ("caller", "callee")
    assert (first.caller, first.callee) == (second.callee, second.caller)
    assert first.caller != first.callee


def test_the_ends_keep_their_sides_when_the_callee_offers() -> None:
    got = negotiated(STEPS["a re-INVITE without SDP is offered to by its 200"])
    assert [(one.caller.port, one.callee.port) for one in got.ingress] == [(4000, 5000)] * 2
    assert [one.caller.direction for one in got.ingress] == ["sendrecv", "sendonly"]


def test_a_time_is_told_with_its_clock() -> None:
    call = call_of(ANSWERED, skews=(1_000_000, 0))
    (agreement,) = read(dialog_of(call)).ingress
    assert (agreement.at, agreement.clock) == (EPOCH + 5_000_000, 2)


def test_a_preview_stamped_after_its_answer_does_not_follow_it() -> None:
    preview = ("5.001 B>A 183 1/INVITE b1 a x", audio("C", 9000, "0"))
    got = negotiated([INVITE, OK, preview])
    assert brief(got.ingress) == [(5.0, "invite", "caller", "PCMU", "both", True), PCMA]


def test_a_body_that_was_cut_off_or_over_the_cap_is_no_late_offer() -> None:
    cut = Call("one@example.com", 0.0, EPOCH)
    full = call_of([])
    full.body_bytes = MAX_BODIES
    ends = ((bytes([192, 0, 2, 1]), 5060), (bytes([198, 51, 100, 2]), 5060))
    invite = payload(*split(INVITE), "one@example.com")
    ok = payload(*split(OK), "one@example.com")
    for call, first in ((cut, invite.partition(b"v=0")[0]), (full, invite)):
        call.see(sip.parse(first), *ends, "udp", 1, 1, EPOCH)
        call.body_bytes = 0
        call.see(sip.parse(ok), *ends[::-1], "udp", 2, 1, EPOCH + 1)
        assert read(dialog_of(call)) == Negotiation()


def test_what_is_no_sdp_offers_nothing_and_of_two_answers_the_first_stands() -> None:
    more: list[Step] = [
        ("8.0 A>B UPDATE 2/UPDATE b3 a x type=text/plain", HOLD),
        ("8.1 B>A 200 2/UPDATE b3 a x", HELD),
        ("9.0 A>B UPDATE 3/UPDATE b4 a x", HOLD),
        ("9.2 B>A 202 3/UPDATE b4 a x", B),
        ("9.1 B>A 200 3/UPDATE b4 a x", HELD),
        ("9.3 B>A 204 3/UPDATE b4 a x", B),
    ]
    got = negotiated([*ANSWERED, *more])
    assert brief(got.ingress) == [
        PCMA,
        (9.1, "update", "caller", "PCMA", "caller_to_callee", False),
    ]


def test_one_reinvite_that_took_two_ways_to_one_leg_is_one_agreement() -> None:
    again: list[Step] = [
        ("9.0 A>B INVITE 2/INVITE b3 a x", HOLD),
        ("9.1 B>A 200 2/INVITE b3 a x", HELD),
        ("9.0 C>B INVITE 2/INVITE b4 a x", A),
        ("9.05 B>C 200 2/INVITE b4 a x", B),
    ]
    got = negotiated([*ANSWERED, *again])
    assert brief(got.ingress)[1:] == [
        (9.1, "reinvite", "caller", "PCMA", "caller_to_callee", False)
    ]
    assert got.unplaced == 0


def test_the_ack_of_each_hop_answers_the_late_offer_of_that_hop() -> None:
    steps: list[Step] = [
        "0.0 A>P INVITE 1/INVITE b1 a -",
        "0.01 P>B INVITE 1/INVITE p1 a -",
        ("3.0 B>P 200 1/INVITE p1 a x", B),
        ("3.01 P>A 200 1/INVITE b1 a x", audio("P", 30_100, "8")),
        ("3.1 A>P ACK 1/ACK b2 a x", A),
        ("3.11 P>B ACK 1/ACK p2 a x", audio("P", 30_000, "8")),
    ]
    got = negotiated(steps)
    ports = [
        [(one.caller.port, one.callee.port) for one in leg] for leg in (got.ingress, got.egress)
    ]
    assert ports == [[(4000, 30_100)], [(30_000, 5000)]]
    assert got.late_offer
    assert not got.unanswered_offer
    got = negotiated(steps[:5])
    assert [len(got.ingress), len(got.egress)] == [1, 0]
    assert not got.unanswered_offer  # an answer was seen, if not at every hop


def between(offer: str, answer: str) -> Negotiation:
    return negotiated(
        [("0.0 A>B INVITE 1/INVITE b1 a -", offer), ("5.0 B>A 200 1/INVITE b1 a x", answer)]
    )


def agreed(offer: str, answer: str) -> Agreement:
    (agreement,) = between(offer, answer).ingress
    return agreement


class TestAudio:
    @pytest.mark.parametrize(
        ("offered", "answered", "flow", "illegal"),
        [
            ("sendrecv", "sendrecv", "both", False),
            ("sendrecv", "sendonly", "callee_to_caller", False),
            ("sendrecv", "recvonly", "caller_to_callee", False),
            ("sendrecv", "inactive", "none", False),
            ("sendonly", "recvonly", "caller_to_callee", False),
            ("sendonly", "inactive", "none", False),
            ("sendonly", "sendrecv", "caller_to_callee", True),
            ("sendonly", "sendonly", "none", True),
            ("recvonly", "sendonly", "callee_to_caller", False),
            ("recvonly", "sendrecv", "callee_to_caller", True),
            ("recvonly", "recvonly", "none", True),
            ("inactive", "inactive", "none", False),
            ("inactive", "sendrecv", "none", True),
        ],
    )
    def test_media_flows_where_one_sends_and_the_other_hears(
        self, offered: str, answered: str, flow: str, *, illegal: bool
    ) -> None:
        got = between(audio("A", 4000, "0", f"a={offered}"), audio("B", 5000, "0", f"a={answered}"))
        assert got.ingress[0].flow == flow
        assert got.illegal_answers == ((f"{offered} answered by {answered}",) if illegal else ())

    @pytest.mark.parametrize("address", [NOWHERE, "::", "anonymous.invalid"])
    def test_an_address_of_nowhere_is_hold(self, address: str) -> None:
        got = agreed(audio("A", 4000, "0", c=address), B)
        assert (got.caller.held, got.callee.held) == (True, False)
        assert (got.flow, got.caller.direction) == ("caller_to_callee", "sendrecv")

    @pytest.mark.parametrize(
        ("port", "line"),
        [(9, "a=ice-options:trickle"), (4000, "a=candidate:1 1 UDP 1 192.0.2.1 4000 typ host")],
    )
    def test_an_address_of_nowhere_is_no_hold_with_ice(self, port: int, line: str) -> None:
        got = agreed(audio("A", port, "0", line, c=NOWHERE), B)
        assert (got.caller.held, got.flow) == (False, "both")

    def test_the_answers_first_real_format_is_the_codec_named_by_the_offer_if_need_be(self) -> None:
        offer = audio(
            "A", 4000, "96 101 0", "a=rtpmap:96 opus/48000/2", "a=rtpmap:101 telephone-event/8000"
        )
        got = agreed(offer, audio("B", 5000, "101 96 0", "a=ptime:40"))
        assert got.codec == sdp.Codec(96, "opus", 48000, 2)
        assert got.ptime_ms == 40
        assert (got.caller.codecs, got.callee.codecs) == (("opus", "PCMU"), ("opus", "PCMU"))
        nameless = agreed(audio("A", 4000, "97"), audio("B", 5000, "97"))
        assert nameless.codec == sdp.Codec(97, None)
        assert nameless.caller.codecs == ()

    def test_an_answer_without_ptime_takes_the_offers(self) -> None:
        assert agreed(audio("A", 4000, "8", "a=ptime:30"), B).ptime_ms == 30
        assert agreed(A, B).ptime_ms is None

    def test_the_first_accepted_line_counts_with_the_offers_at_its_place(self) -> None:
        offer = audio("A", 4000, "0", "m=audio 4100 RTP/AVP 9")
        answer = audio("B", 0, "0", "m=audio 5100 RTP/AVP 9")
        got = between(offer, answer)
        (one,) = got.ingress
        assert (one.caller.port, one.callee.port) == (4100, 5100)
        assert one.codec is not None
        assert one.codec.name == "G722"
        assert not got.refused_media
        assert between(offer, audio("B", 0, "0", "m=audio 0 RTP/AVP 9")).refused_media

    def test_an_answer_with_other_lines_than_the_offer_is_read_as_far_as_it_goes(self) -> None:
        offer = "v=0\r\nm=video 6000 RTP/AVP 31\r\n" + A.partition("s=-\r\n")[2]
        assert agreed(offer, B).caller.port == 4000
        one = agreed(A, "v=0\r\nm=video 6000 RTP/AVP 31\r\n" + B.partition("s=-\r\n")[2])
        assert (one.caller.port, one.callee.port, one.flow) == (4000, 5000, "both")
        got = between(A, "v=0\r\nm=video 6000 RTP/AVP 31\r\n")
        assert got.refused_media
        assert got.ingress[0].callee == MediaSide(
            b"", None, 0, b"", 0, (), "inactive", False, False, False
        )

    def test_an_audio_line_that_the_offer_itself_disables_was_not_refused(self) -> None:
        got = between(audio("A", 0, "0"), audio("B", 0, "0"))
        assert not got.refused_media
        assert got.ingress[0].flow == "none"

    @pytest.mark.parametrize(
        ("caller", "callee", "expected"),
        [
            ((), (), ("192.0.2.1", 4001)),
            (("a=rtcp:4555",), (), ("192.0.2.1", 4555)),
            (("a=rtcp:4555 IN IP4 192.0.2.9",), (), ("192.0.2.9", 4555)),
            (("a=rtcp-mux", "a=rtcp:4555"), (), ("192.0.2.1", 4555)),
            (("a=rtcp-mux", "a=rtcp:4555"), ("a=rtcp-mux",), ("192.0.2.1", 4000)),
        ],
    )
    def test_rtcp_is_at_the_next_port_unless_sdp_says_otherwise(
        self, caller: tuple[str, ...], callee: tuple[str, ...], expected: tuple[str, int]
    ) -> None:
        side = agreed(audio("A", 4000, "8", *caller), audio("B", 5000, "8", *callee)).caller
        assert (hep.address_text(side.rtcp_ip), side.rtcp_port) == expected

    def test_after_the_last_port_there_is_no_rtcp_port(self) -> None:
        assert agreed(audio("A", 65_535, "8"), B).caller.rtcp_port == 0

    def test_security_candidates_and_ssrcs_are_told(self) -> None:
        side = agreed(audio("A", 4000, "8", "a=ssrc:7 cname:x", "a=candidate:1"), B).caller
        assert (side.secure, side.candidates, side.ssrcs) == (False, True, (7,))
        for line, proto in (
            ("a=crypto:1", "RTP/AVP"),
            ("a=fingerprint:x", "RTP/AVP"),
            ("", "RTP/SAVPF"),
        ):
            assert agreed(audio("A", 4000, "8", line, proto=proto), B).caller.secure

    @pytest.mark.parametrize(
        ("address", "packed"),
        [
            ("2001:db8::1", bytes.fromhex("20010db8000000000000000000000001")),
            ("::ffff:192.0.2.1", bytes([192, 0, 2, 1])),
            ("media.example.com", b""),
            ("192.0.2.256", b""),
        ],
    )
    def test_an_address_is_packed_and_a_name_is_none(self, address: str, packed: bytes) -> None:
        side = agreed(audio("A", 4000, "8", c=address), B).caller
        assert (side.ip, side.host) == (packed, address)


def test_captured_reinvites_hold_resume_and_change_the_codec_on_both_legs() -> None:
    calls: dict[str, Call] = {}
    with (CORPUS / "kamailio/f_reinvite.pcap").open("rb") as file:
        for captured in pcap.Reader(file):
            packet = hep.decode(captured.payload)
            try:
                message = sip.parse(packet.payload)
            except WireError:
                continue
            source = (packet.source, packet.source_port)
            destination = (packet.destination, packet.destination_port)
            call = calls.setdefault(message.call_id, Call(message.call_id, 0.0, EPOCH))
            fingerprint = hash((packet.payload, source, destination))
            call.see(message, source, destination, "udp", fingerprint, 1, packet.captured_at or 0)
    seen = {"freinv": 0, "f488": 0}
    for call_id, call in calls.items():
        for tag in record._groups(call):
            got = read(dialog_of(call, tag))
            kind = call_id.partition("-")[0]
            seen[kind] += 1
            for leg in (got.ingress, got.egress):
                said = [(one.codec and one.codec.name, one.flow) for one in leg]
                assert said[0] == ("PCMU", "both")
                if kind == "f488":
                    assert len(said) == 1
                else:
                    assert said[1:] == [
                        ("PCMU", "caller_to_callee"), ("PCMU", "both"), ("G729", "both")
                    ]  # fmt: skip
    assert seen == {"freinv": 5, "f488": 3}


class TestGlance:
    def test_the_endpoints_of_audio_lines_are_found_without_parsing(self) -> None:
        body = (
            b"v=0\r\nc=IN IP4 192.0.2.1\r\n"
            b"m=audio 4000 RTP/AVP 0\r\na=rtcp:4555 IN IP4 192.0.2.9\r\n"
            b"m=video 6000 RTP/AVP 31\r\nc=IN IP4 192.0.2.8\r\n"
            b"m=audio 7000/2 RTP/AVP 0\r\nc=IN IP6 2001:db8::1/64\r\na=rtcp-mux\r\n"
        )
        found = [(hep.address_text(ip), port) for ip, port in media_addresses(body)]
        assert found == [("192.0.2.1", 4000), ("192.0.2.9", 4555), ("2001:db8::1", 7000)]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"just text",
            audio("A", 0).encode(),
            audio("A", 4000, c=NOWHERE).encode(),
            audio("A", 4000, c="media.example.com").encode(),
            b"v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 400000 RTP/AVP 0\r\n",
            b"v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 70000 RTP/AVP 0\r\n",
            b"v=0\r\nc=IN IP4 192.0.2.1\r\nm=video 4000 RTP/AVP 31\r\ns=m=audio\r\n",
        ],
    )
    def test_what_has_no_audio_endpoint_has_none(self, body: bytes) -> None:
        assert media_addresses(body) == ()

    def test_endpoints_and_ssrcs_of_one_body_are_capped(self) -> None:
        lines = "".join(f"m=audio {i} RTP/AVP 0\r\na=ssrc:{i} cname:x\r\n" for i in range(1, 90, 2))
        body = f"v=0\r\nc=IN IP4 192.0.2.1\r\n{lines}".encode()
        assert [port for _, port in media_addresses(body)] == list(range(1, 9))
        assert ssrcs_of(body) == (1, 3, 5, 7, 9, 11, 13, 15)

    def test_ssrcs_are_those_of_audio_lines_once_each(self) -> None:
        body = (
            b"v=0\r\na=ssrc:1 x\r\nm=audio 1 RTP/AVP 0\r\na=ssrc:2 cname:x\r\na=ssrc:2 msid:x\r\n"
            b"a=ssrc:4294967296 x\r\na=ssrc:12345678901 x\r\na=ssrc:x\r\na=ssrc:3\r\n"
            b"m=video 2 RTP/AVP 31\r\na=ssrc:4 cname:x\r\n"
        )
        assert ssrcs_of(body) == (2, 3)
        assert ssrcs_of(A.encode()) == ()

    @settings(max_examples=400)
    @given(
        st.lists(
            st.sampled_from(
                [
                    "m=audio 4000 RTP/AVP 0", "m=audio 5000/2 RTP/SAVP 8", "m=video 6000 RTP/AVP 31",
                    "m=audio 0 RTP/AVP 0", "m=audio 65535 RTP/AVP 0", "c=IN IP4 192.0.2.1",
                    "c=IN IP4 192.0.2.2/127", "c=IN IP6 2001:db8::1", "c=IN IP4 0.0.0.0",
                    "c=IN IP4 example.com", "a=rtcp:4555", "a=rtcp:4556 IN IP4 192.0.2.9",
                    "a=rtcp-mux", "a=sendonly", "a=ssrc:7 cname:x", "a=ssrc:8", "s=-", "",
                ]
            ),
            max_size=14,
        )
    )  # fmt: skip
    def test_a_glance_sees_what_the_parser_sees(self, lines: list[str]) -> None:
        body = "\r\n".join(["v=0", *lines, ""]).encode()
        expected: dict[tuple[bytes, int], None] = {}
        ssrcs: dict[int, None] = {}
        for media in sdp.parse(body).media:
            if media.kind != "audio":
                continue
            ssrcs |= dict.fromkeys(media.ssrcs)
            if not media.port:
                continue
            ip = negotiation._packed(media.connection or "")
            expected[ip, media.port] = None
            rtcp_ip = negotiation._packed(media.rtcp_address) if media.rtcp_address else ip
            port = media.rtcp_port or (0 if media.rtcp_mux else media.port + 1)
            if 0 < port < 65_536:
                expected[rtcp_ip, port] = None
        usable = [endpoint for endpoint in expected if any(endpoint[0])]
        assert media_addresses(body) == tuple(usable)[: negotiation.MAX_ADDRESSES]
        assert ssrcs_of(body) == tuple(ssrcs)

    @given(st.binary(max_size=200))
    def test_any_bytes_give_endpoints_that_could_be(self, noise: bytes) -> None:
        body = b"v=0\nc=IN IP4 192.0.2.1\nm=audio 4000 RTP/AVP 0\n" + noise
        for ip, port in media_addresses(body):
            assert len(ip) in (4, 16)
            assert 0 < port < 65_536
        assert all(0 <= ssrc < 1 << 32 for ssrc in ssrcs_of(body))
