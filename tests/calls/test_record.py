import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import ADDRESSES, Line, World, comparable, packet, play, shuffled
from sipsidecar.calls.events import CallRecord
from sipsidecar.calls.record import IMPLAUSIBLE_US, Timing
from sipsidecar.wire import hep

SCENARIOS = json.loads(
    (Path(__file__).parents[1] / "corpus/vectors/dialog_scenarios.json").read_text()
)
ANSWERED = [
    "0.0 A>B INVITE 1/INVITE b1 a -",
    "0.9 B>A 180 1/INVITE b1 a x",
    "5.0 B>A 200 1/INVITE b1 a x",
    "5.05 A>B ACK 1/ACK b2 a x",
]
CALLER_BYE = ["65.0 A>B BYE 2/BYE b3 a x", "65.02 B>A 200 2/BYE b3 a x"]
PARENTS = {"p1": "b1", "p2": "b2", "p3": "b3", "q1": "b1", "q2": "b2"}

# Flows beyond the shared vectors: name, messages, what the record must say.
FLOWS: list[tuple[str, list[str], dict[str, object]]] = [
    (
        "CANCEL and 200 cross: the 200 wins",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "1.0 B>A 180 1/INVITE b1 a x",
            "4.0 A>B CANCEL 1/CANCEL b1 a -",
            "4.01 B>A 200 1/INVITE b1 a x",
            "4.02 B>A 200 1/CANCEL b1 a x",
            "4.05 A>B ACK 1/ACK b2 a x",
            "4.06 A>B BYE 2/BYE b3 a x",
        ],
        {"final_code": 200, "answered": True, "flags": ("cancel_race",), "released_by": "caller"},
    ),
    (
        "nothing ever answers: 408 inferred after Timer B",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.5 A>B INVITE 1/INVITE b1 a -",
            "1.5 A>B INVITE 1/INVITE b1 a -",
        ],
        {
            "final_code": 408,
            "inferred": True,
            "flags": ("no_response",),
            "final_origin": "inferred",
            "end_source": "timer",
            "retransmissions": 2,
            "pdd_ms": None,
        },
    ),
    (
        "forked by the far side: first 180 counts, one 2xx",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.3 B>A 180 1/INVITE b1 a x",
            "0.4 B>A 180 1/INVITE b1 a y",
            "0.5 B>A 180 1/INVITE b1 a z",
            "2.0 B>A 200 1/INVITE b1 a y",
            "2.1 A>B ACK 1/ACK b2 a y",
            "7.0 B>A BYE 1/BYE c1 y a",
        ],
        {
            "final_code": 200,
            "flags": ("forked",),
            "pdd_ms": 300.0,
            "released_by": "callee",
            "talk_ms": 5000.0,
        },
    ),
    (
        "two 2xx: the branch that was shed at once is not the call",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "2.0 B>A 200 1/INVITE b1 a x",
            "2.1 B>A 200 1/INVITE b1 a y",
            "2.2 A>B ACK 1/ACK b2 a x",
            "2.3 A>B ACK 1/ACK b3 a y",
            "2.4 A>B BYE 2/BYE b4 a y",
            "12.0 B>A BYE 1/BYE c1 x a",
        ],
        {"flags": ("extra_2xx", "forked"), "talk_ms": 10000.0, "released_by": "callee"},
    ),
    (
        "two 2xx of which one goes on: the call has not ended",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "2.0 B>A 200 1/INVITE b1 a x",
            "2.1 B>A 200 1/INVITE b1 a y",
            "2.2 A>B ACK 1/ACK b2 a x",
            "2.4 A>B BYE 2/BYE b4 a y",
        ],
        {"ended": False, "ended_at": None, "talk_ms": None, "released_by": None},
    ),
    (
        "the final response was lost, its ACK has the INVITE's branch: refused, code unknown",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.5 B>A 180 1/INVITE b1 a x",
            "3.0 A>B ACK 1/ACK b1 a x",
        ],
        {"final_code": None, "final_class": None, "answered": False, "flags": ("final_lost",)},
    ),
    (
        "CANCEL and nothing after it: 487 inferred",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.5 B>A 180 1/INVITE b1 a x",
            "3.0 A>B CANCEL 1/CANCEL b1 a -",
        ],
        {"final_code": 487, "inferred": True, "released_by": "caller", "flags": ()},
    ),
    (
        "cancelled because another branch answered",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.5 B>A 180 1/INVITE b1 a x",
            "3.0 A>B CANCEL 1/CANCEL b1 a - reason=SIP;cause=200;text=elsewhere",
            "3.1 B>A 487 1/INVITE b1 a x",
        ],
        {
            "final_code": 487,
            "flags": ("completed_elsewhere",),
            "reason": "SIP;cause=200;text=elsewhere",
            "end_source": "cancel",
        },
    ),
    (
        "wrong password: challenged, and the second challenge stands",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.1 B>A 407 1/INVITE b1 a p",
            "0.2 A>B INVITE 2/INVITE b2 a -",
            "0.3 B>A 407 2/INVITE b2 a p",
        ],
        {"final_code": 407, "flags": ("auth_not_completed", "challenged"), "invites": 2},
    ),
    (
        "a redirect that nobody follows is no seizure",
        ["0.0 A>B INVITE 1/INVITE b1 a -", "0.1 B>A 302 1/INVITE b1 a p"],
        {"final_code": 302, "final_class": "3xx", "seizure": False, "srd_ms": None, "flags": ()},
    ),
    (
        "a redirect to another server is one call",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.1 B>A 302 1/INVITE b1 a p",
            "0.2 A>C INVITE 2/INVITE b2 a -",
            "1.0 C>A 200 2/INVITE b2 a x",
            "1.1 A>C ACK 2/ACK b3 a x",
            "3.0 C>A BYE 1/BYE c1 x a",
        ],
        {"final_code": 200, "flags": ("redirected",), "invites": 2, "talk_ms": 2000.0},
    ),
    (
        "both hang up at once: the earlier BYE released the call",
        [*ANSWERED, "65.0 A>B BYE 2/BYE b3 a x", "65.01 B>A BYE 1/BYE c1 x a"],
        {"released_by": "caller", "talk_ms": 60000.0},
    ),
    (
        "early media is a 183 with SDP, ringing is a 180",
        [
            "0.0 A>B INVITE 1/INVITE b1 a - sdp=0,8,101",
            "0.2 B>A 183 1/INVITE b1 a x",
            "0.6 B>A 183 1/INVITE b1 a x sdp=8",
            "1.0 B>A 180 1/INVITE b1 a x",
            "2.0 B>A 200 1/INVITE b1 a x sdp=8",
            "2.1 A>B ACK 1/ACK b2 a x",
        ],
        {
            "pdd_ms": 200.0,
            "early_media_ms": 600.0,
            "ring_ms": 1000.0,
            "codec_offered": "PCMU,PCMA",
            "codec_negotiated": "PCMA",
        },
    ),
    (
        "an offer in the 200 is answered in the ACK",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "2.0 B>A 200 1/INVITE b1 a x sdp=0,18",
            "2.1 A>B ACK 1/ACK b2 a x sdp=18",
        ],
        {"codec_offered": "PCMU,G729", "codec_negotiated": "G729"},
    ),
    (
        "503 at the first trunk, answered at the second: one call, two attempts",
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.2 B>P 503 1/INVITE p1 a x",
            "0.21 P>B ACK 1/ACK p1 a x",
            "0.3 P>C INVITE 1/INVITE q1 a -",
            "0.8 C>P 180 1/INVITE q1 a y",
            "0.81 P>A 180 1/INVITE b1 a y",
            "1.8 C>P 200 1/INVITE q1 a y",
            "1.81 P>A 200 1/INVITE b1 a y",
            "1.9 A>P ACK 1/ACK b2 a y",
            "1.91 P>C ACK 1/ACK q2 a y",
            "4.81 A>P BYE 2/BYE b3 a y",
            "4.82 P>C BYE 2/BYE p3 a y",
        ],
        {
            "final_code": 200,
            "pdd_ms": 810.0,
            "attempts": 2,
            "flags": ("failover",),
            "talk_ms": 3000.0,
            "invites": 1,
        },
    ),
    (
        "a trunk's 503 that the proxy turned into 500 was made by the proxy",
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.2 B>P 503 1/INVITE p1 a x",
            "0.21 P>A 500 1/INVITE b1 a k",
        ],
        {"final_code": 500, "final_origin": "proxy", "fail_ms": 210.0, "attempts": 1},
    ),
    (
        "a refusal that was relayed was made beyond the proxy",
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.2 B>P 486 1/INVITE p1 a x",
            "0.21 P>A 486 1/INVITE b1 a x",
        ],
        {"final_code": 486, "final_origin": "callee", "srd_ms": 210.0, "pdd_ms": None},
    ),
    (
        "the 200 towards the caller was lost, the trunk's was seen",
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.5 B>P 200 1/INVITE p1 a x",
        ],
        {"final_code": 200, "inferred": True, "setup_ms": None, "attempts": 1},
    ),
    (
        "the caller's INVITE was lost, the proxy's own was seen",
        [
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.5 B>P 486 1/INVITE p1 a x",
            "0.51 P>A 486 1/INVITE b1 a x",
        ],
        {"final_code": 486, "pdd_ms": None, "fail_ms": None, "from_user": "alice", "seizure": True},
    ),
    (
        "only the response and the BYE were seen: a call, but no seizure",
        [
            "2.0 B>A 200 1/INVITE b1 a x",
            "2.1 A>B ACK 1/ACK b2 a x",
            "9.0 A>B BYE 2/BYE b3 a x",
        ],
        {
            "final_code": 200,
            "talk_ms": 7000.0,
            "seizure": False,
            "invites": 0,
            "flags": ("partial_no_invite",),
        },
    ),
    (
        "re-INVITE by the callee whose request was lost is no second call",
        [
            *ANSWERED,
            "8.0 A>B 488 7/INVITE c5 x a",
            *CALLER_BYE,
        ],
        {"final_code": 200, "invites": 1, "released_by": "caller"},
    ),
    (
        "200 and ACK were lost, the BYE was seen: answered, and nothing is said of the ACK",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.5 B>A 180 1/INVITE b1 a x",
            "9.0 B>A BYE 1/BYE c1 x a",
        ],
        {
            "final_code": 200,
            "inferred": True,
            "flags": ("answer_inferred",),
            "released_by": "callee",
            "talk_ms": None,
        },
    ),
    (
        "the caller's re-INVITE was lost, its refusal was seen: no second INVITE of the call",
        [
            *ANSWERED,
            "8.0 B>A 488 2/INVITE b5 a x",
            "8.1 A>B ACK 2/ACK b5 a x",
            "65.0 A>B BYE 3/BYE b3 a x",
        ],
        {"final_code": 200, "invites": 1, "flags": ("reinvite",), "talk_ms": 60000.0},
    ),
    (
        "481 to a refresh ends the dialog, and nobody knows when the talk ended",
        [*ANSWERED, "30.0 A>B INVITE 2/INVITE b5 a x", "30.1 B>A 481 2/INVITE b5 a x"],
        {
            "final_code": 200,
            "ended": True,
            "end_source": "dialog-gone",
            "talk_ms": None,
            "released_by": None,
        },
    ),
    (
        "408 to an UPDATE ends the dialog too",
        [*ANSWERED, "30.0 A>B UPDATE 2/UPDATE b5 a x", "62.0 B>A 408 2/UPDATE b5 a x"],
        {"ended": True, "end_source": "dialog-gone"},
    ),
    (
        "a transfer is noted",
        [*ANSWERED, "8.0 A>B REFER 2/REFER b7 a x", *CALLER_BYE],
        {"flags": ("refer",)},
    ),
    (
        "503 at one server and a lost 200 of the next: answered, not 503",
        [
            "0.0 A>B INVITE 1/INVITE b1 a -",
            "0.1 B>A 503 1/INVITE b1 a k",
            "0.12 A>B ACK 1/ACK b1 a k",
            "0.2 A>C INVITE 1/INVITE b2 a -",
            "1.0 C>A 180 1/INVITE b2 a x",
            "6.05 A>C ACK 1/ACK b3 a x",
            "16.0 A>C BYE 2/BYE b4 a x",
        ],
        {"final_code": 200, "inferred": True, "fail_ms": None, "talk_ms": None},
    ),
    (
        "the first INVITE was lost, its challenge was not: nobody knows when the call began",
        [
            "0.01 B>A 407 1/INVITE b1 a k",
            "0.02 A>B ACK 1/ACK b1 a k",
            "0.05 A>B INVITE 2/INVITE b2 a -",
            "0.6 B>A 180 2/INVITE b2 a x",
            "3.0 B>A 200 2/INVITE b2 a x",
            "3.1 A>B ACK 2/ACK b3 a x",
            "9.0 A>B BYE 3/BYE b4 a x",
        ],
        {"final_code": 200, "pdd_ms": None, "setup_ms": None, "talk_ms": 6000.0},
    ),
    (
        "both branches of a parallel fork are busy: that is no failover",
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.011 P>C INVITE 1/INVITE q1 a -",
            "0.3 B>P 486 1/INVITE p1 a x",
            "0.4 C>P 486 1/INVITE q1 a y",
            "0.41 P>A 486 1/INVITE b1 a y",
        ],
        {"final_code": 486, "attempts": 2, "flags": ()},
    ),
    (
        "a BYE of the caller in an early dialog, the 487 to it lost: refused, not answered",
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.5 B>P 180 1/INVITE p1 a x",
            "0.51 P>A 180 1/INVITE b1 a x",
            "4.0 A>P BYE 2/BYE b3 a x",
            "4.01 P>B BYE 2/BYE p3 a x",
            "4.04 B>P 487 1/INVITE p1 a x",
            "4.06 A>P ACK 1/ACK b1 a x",
        ],
        {"final_code": None, "answered": False, "released_by": "caller", "flags": ("final_lost",)},
    ),
    (
        "the BYE that sheds a late 2xx is not the call's, though its 2xx was lost at the caller",
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.011 P>C INVITE 1/INVITE q1 a -",
            "5.0 C>P 200 1/INVITE q1 a y",
            "5.01 P>A 200 1/INVITE b1 a y",
            "5.02 B>P 200 1/INVITE p1 a x",
            "5.05 A>P ACK 1/ACK b2 a y",
            "5.06 A>P ACK 1/ACK b3 a x",
            "5.07 A>P BYE 2/BYE b4 a x",
            "25.01 P>A BYE 1/BYE p5 y a",
        ],
        {"final_code": 200, "talk_ms": 20000.0, "released_by": "callee"},
    ),
    (
        "the INVITE was lost at the ingress only: its replies still tell the hop",
        [
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.5 B>P 486 1/INVITE p1 a x",
            "0.51 P>A 486 1/INVITE b1 a x",
            "0.6 A>P ACK 1/ACK b1 a x",
        ],
        {"src_ip": ADDRESSES["A"], "dst_ip": ADDRESSES["P"], "flags": ("invite_lost",)},
    ),
    (
        "an attempt's final was lost: nobody knows whether the refusal was the callee's",
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.31 P>B ACK 1/ACK p1 a x",
            "0.32 P>A 486 1/INVITE b1 a x",
        ],
        {"final_code": 486, "final_origin": None},
    ),
]


def _flow(name: str) -> list[str]:
    return next(messages for each, messages, _ in FLOWS if each.startswith(name))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s["name"][:40])
def test_every_shared_flow_gives_its_record(scenario: dict[str, Any]) -> None:
    for parents in ({}, PARENTS):
        record = play(scenario["messages"], parents=parents).call()
        for name, expected in {**scenario["full"], **scenario["expect"]}.items():
            found = getattr(record, name)
            if name == "flags":
                found = list(found)
            if name == "q850" and found is not None:
                found = str(found)
            assert expected == found, name


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s["name"][:40])
def test_no_arrival_order_and_no_duplicate_changes_a_shared_flow(scenario: dict[str, Any]) -> None:
    _assert_order_is_nothing(scenario["messages"], seed=scenario["name"])


@pytest.mark.parametrize(("name", "messages", "expected"), FLOWS, ids=[f[0][:50] for f in FLOWS])
def test_every_further_flow_gives_its_record(
    name: str, messages: list[str], expected: dict[str, object]
) -> None:
    record = play(messages, parents=PARENTS).call()
    for field, value in expected.items():
        assert value == getattr(record, field), field


@pytest.mark.parametrize(("name", "messages", "expected"), FLOWS, ids=[f[0][:50] for f in FLOWS])
def test_no_arrival_order_and_no_duplicate_changes_a_further_flow(
    name: str, messages: list[str], expected: dict[str, object]
) -> None:
    _assert_order_is_nothing(messages, seed=name)


def _assert_order_is_nothing(messages: list[str], seed: str, orders: int = 200) -> None:
    rng = random.Random(seed)
    first = play(messages, parents=PARENTS)
    calls = [comparable(c) for c in first.calls()]
    attempts = [comparable(a) for a in first.attempts()]
    for _ in range(orders):
        world = play(messages, order=shuffled(len(messages), rng), parents=PARENTS)
        assert calls == [comparable(c) for c in world.calls()]
        assert attempts == [comparable(a) for a in world.attempts()]


def test_attempts_of_a_failover_are_in_the_order_they_were_tried() -> None:
    first, second = play(_flow("503 at the first"), parents=PARENTS).attempts()
    assert (first.failover_order, first.final_code, first.peer_ip) == (1, 503, "198.51.100.2")
    assert (second.failover_order, second.final_code, second.peer_ip) == (2, 200, "198.51.100.3")
    assert second.pdd_ms == 500.0
    assert first.trunk is None


def test_the_chain_of_addresses_tells_attempts_when_a_proxy_hides_its_vias() -> None:
    world = play(_flow("503 at the first"), parents={})
    assert [a.final_code for a in world.attempts()] == [503, 200]
    assert world.call().pdd_ms == 810.0


def test_a_dead_trunk_is_an_attempt_without_response() -> None:
    world = play(
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "3.0 P>A 408 1/INVITE b1 a k",
        ],
        parents=PARENTS,
    )
    (attempt,) = world.attempts()
    assert (attempt.final_code, attempt.inferred, attempt.flags) == (408, True, ("no_response",))
    assert (world.call().final_origin, world.call().final_code) == ("proxy", 408)


def test_an_attempt_whose_2xx_was_lost_is_answered_when_its_dialog_was() -> None:
    flow = [
        "0.0 A>P INVITE 1/INVITE b1 a -",
        "0.01 P>B INVITE 1/INVITE p1 a -",
        "0.5 B>P 180 1/INVITE p1 a x",
        "2.01 P>A 200 1/INVITE b1 a x",
        "2.2 A>P ACK 1/ACK b2 a x",
        "2.21 P>B ACK 1/ACK p2 a x",
        "5.0 A>P BYE 2/BYE b3 a x",
    ]
    for lines in (flow, [line for line in flow if " 180 " not in line]):
        (attempt,) = play(lines, parents={**PARENTS, "p2": "b2"}).attempts()
        assert (attempt.final_code, attempt.answered, attempt.inferred) == (200, True, True)
        assert (attempt.setup_ms, attempt.flags) == (None, ("answer_inferred",))


def test_nodes_in_a_row_are_no_failover_and_keep_their_order_when_clocks_differ() -> None:
    flow = [
        ("0.0 A>P INVITE 1/INVITE b1 a -", None, "P", 0),
        ("0.01 P>D INVITE 1/INVITE p1 a -", "b1", "P", 0),
        ("0.02 D>B INVITE 1/INVITE q1 a -", "p1", "D", -5_000_000),
        ("0.5 B>D 486 1/INVITE q1 a x", "p1", "D", -5_000_000),
        ("0.51 D>P 486 1/INVITE p1 a x", "b1", "P", 0),
        ("0.52 P>A 486 1/INVITE b1 a x", None, "P", 0),
    ]
    world = World()
    for text, parent, node, skew_us in flow:
        data = packet(
            _line(text), "row@example.com", agent_id=ord(node), parent=parent, skew_us=skew_us
        )
        world.send(data, peer=ADDRESSES[node])
    world.run_out()
    assert world.call().flags == ()
    assert [a.branch.removeprefix("z9hG4bK") for a in world.attempts()] == ["p1", "q1"]


def test_an_answer_by_another_agent_than_the_first_invites_has_no_delay() -> None:
    world = World()
    for text, node in (
        ("0.0 A>P INVITE 1/INVITE b1 a -", "P"),
        ("32.0 A>D INVITE 1/INVITE b2 a -", "D"),
        ("33.0 D>A 180 1/INVITE b2 a x", "D"),
        ("36.0 D>A 200 1/INVITE b2 a x", "D"),
        ("46.0 A>D BYE 2/BYE b4 a x", "D"),
    ):
        data = packet(_line(text), "dns@example.com", agent_id=ord(node))
        world.send(data, _line(text).at, peer=ADDRESSES[node])
    world.run_out()
    call = world.call()
    assert (call.final_code, call.pdd_ms, call.setup_ms, call.talk_ms) == (200, None, None, 10000.0)


def test_a_second_server_may_ring_longer_than_the_first_ones_refusal_waits() -> None:
    world = World()
    for text in (
        "0.0 A>B INVITE 1/INVITE b1 a -",
        "0.1 B>A 503 1/INVITE b1 a k",
        "0.12 A>B ACK 1/ACK b1 a k",
        "0.2 A>C INVITE 1/INVITE b2 a -",
        "1.0 C>A 180 1/INVITE b2 a x",
        "121.0 C>A 200 1/INVITE b2 a x",
        "121.05 A>C ACK 1/ACK b3 a x",
        "131.0 A>C BYE 2/BYE b4 a x",
    ):
        world.send(packet(_line(text), "long@example.com"), _line(text).at)
    world.run_out()
    call = world.call()
    assert (call.final_code, call.pdd_ms, call.setup_ms) == (200, 1000.0, 121000.0)
    assert (call.revision, call.invites, call.talk_ms) == (0, 2, 10000.0)


def test_a_refusal_stands_when_a_branch_begun_before_it_stays_open() -> None:
    world = play(
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.5 A>P INVITE 1/INVITE b2 a -",
            "2.0 P>A 486 1/INVITE b1 a x",
            "2.1 A>P ACK 1/ACK b1 a x",
        ]
    )
    assert (world.call().final_code, world.call().inferred) == (486, False)


def test_a_cancel_of_one_branch_is_no_race_with_the_answer_of_another() -> None:
    world = play(
        [
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.02 P>C INVITE 1/INVITE q1 a -",
            "2.0 B>P 200 1/INVITE p1 a x",
            "2.02 P>C CANCEL 1/CANCEL q1 a -",
            "2.1 C>P 487 1/INVITE q1 a y",
            "2.21 P>B ACK 1/ACK p2 a x",
            "5.0 P>B BYE 2/BYE p3 a x",
        ]
    )
    assert (world.call().final_code, world.call().flags) == (200, ())


def test_a_challenge_that_was_answered_is_no_unfinished_one_for_the_attempt() -> None:
    first, second = play(
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.1 B>P 407 1/INVITE p1 a x",
            "0.11 P>B INVITE 2/INVITE q1 a -",
            "4.0 B>P 200 2/INVITE q1 a y",
            "4.01 P>A 200 1/INVITE b1 a y",
            "4.1 A>P ACK 1/ACK b2 a y",
            "9.0 A>P BYE 2/BYE b3 a y",
        ],
        parents=PARENTS,
    ).attempts()
    assert (first.final_code, first.flags) == (407, ("challenged",))
    assert (second.final_code, second.flags) == (200, ())


def test_the_branches_of_a_fork_are_attempts_and_the_losers_are_cancelled() -> None:
    world = play(
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.02 P>C INVITE 1/INVITE q1 a -",
            "0.3 B>P 180 1/INVITE p1 a x",
            "0.31 P>A 180 1/INVITE b1 a x",
            "0.4 C>P 180 1/INVITE q1 a y",
            "0.41 P>A 180 1/INVITE b1 a y",
            "2.0 B>P 200 1/INVITE p1 a x",
            "2.01 P>A 200 1/INVITE b1 a x",
            "2.02 P>C CANCEL 1/CANCEL q1 a -",
            "2.1 C>P 487 1/INVITE q1 a y",
            "2.2 A>P ACK 1/ACK b2 a x",
            "2.21 P>B ACK 1/ACK p2 a x",
            "5.0 A>P BYE 2/BYE b3 a x",
        ],
        parents=PARENTS,
    )
    assert [(a.final_code, a.flags) for a in world.attempts()] == [(200, ()), (487, ("cancelled",))]
    assert world.call().flags == ("forked",)


def test_an_invite_that_the_capture_node_sent_is_an_attempt_too() -> None:
    world = World(local=[bytes([203, 0, 113, 5])])
    for text in (
        "0.0 P>B INVITE 1/INVITE p1 a -",
        "0.5 B>P 503 1/INVITE p1 a x",
        "0.6 P>C INVITE 1/INVITE q1 a -",
        "1.0 C>P 486 1/INVITE q1 a y",
    ):
        world.send(packet(_line(text), "egress@example.com", parent="b1"))
    world.run_out()
    assert [a.final_code for a in world.attempts()] == [503, 486]
    assert (world.call().final_code, world.call().invites) == (486, 1)


def _line(text: str) -> Line:
    return Line.of(text)


def test_what_the_node_itself_refuses_is_the_proxys_and_marked_ones_are_our_own() -> None:
    flow = ["0.0 A>P INVITE 1/INVITE b1 a -", "0.001 P>A 486 1/INVITE b1 a k"]
    marked = [flow[0], f"{flow[1]} reason=SIP;cause=486;text=cac:global"]
    assert play(flow).call().final_origin == "proxy"
    assert play(marked).call().final_origin == "admission"


def test_a_stranger_cannot_mark_a_refusal_as_our_own() -> None:
    flow = [
        "0.0 A>B INVITE 1/INVITE b1 a -",
        "0.5 B>A 486 1/INVITE b1 a x reason=SIP;cause=486;text=cac:global",
    ]
    assert play(flow).call().final_origin == "callee"


def test_two_taps_with_different_clocks_give_one_call_and_never_mix_in_a_duration() -> None:
    messages = SCENARIOS[0]["messages"]
    skew_us = 3_600_000_000
    world = play(messages, agents=[(2001, 0), (2002, skew_us)])
    record = world.call()
    assert (record.pdd_ms, record.setup_ms, record.talk_ms) == (900.0, 5000.0, 60000.0)
    assert record.agent_ids == (2001, 2002)
    assert record.retransmissions == 0


def test_a_duration_needs_one_clock_that_saw_both_ends() -> None:
    world = World()
    world.send(packet(_line(ANSWERED[0]), "split@example.com", agent_id=2001), peer="203.0.113.1")
    for text in (*ANSWERED[1:], *CALLER_BYE):
        data = packet(_line(text), "split@example.com", agent_id=2002, skew_us=5_000_000)
        world.send(data, peer="203.0.113.2")
    world.run_out()
    record = world.call()
    assert (record.pdd_ms, record.setup_ms) == (None, None)
    assert (record.final_code, record.talk_ms) == (200, 60000.0)


def test_a_clock_a_year_off_dates_nothing_but_still_measures() -> None:
    year = 365 * 86_400_000_000
    assert year > IMPLAUSIBLE_US
    record = play([*ANSWERED, *CALLER_BYE], agents=[(2001, -year)]).call()
    assert (record.pdd_ms, record.talk_ms) == (900.0, 60000.0)
    assert record.started_at == record.received_at
    assert record.ended_at - record.started_at == 65_000_000  # type: ignore[operator]
    assert (record.dated_by, record.flags) == ("receiver", ())


def test_an_answer_stamped_just_before_its_question_took_no_time() -> None:
    record = play(["0.01 A>B INVITE 1/INVITE b1 a -", "0.009 B>A 180 1/INVITE b1 a x"]).call()
    assert record.pdd_ms == 0.0


def test_an_answer_stamped_long_before_its_question_has_no_delay() -> None:
    record = play(["5.0 A>B INVITE 1/INVITE b1 a -", "0.0 B>A 180 1/INVITE b1 a x"]).call()
    assert record.pdd_ms is None


def test_an_answered_call_without_bye_ends_unknown_when_its_session_expired() -> None:
    flow = [*ANSWERED]
    flow[2] += " se=90"
    world = World(Timing(settle=2.0, longest=14_400.0))
    for text in flow:
        world.send(packet(_line(text), "expired@example.com"))
    world.run_until(121.9)
    assert world.calls() == []
    world.run_until(122.1)
    record = world.call()
    assert (
        record.final_code,
        record.ended,
        record.ended_at,
        record.talk_ms,
    ) == (200, False, None, None)


def test_two_callers_under_one_call_id_are_two_calls() -> None:
    other = [text.replace(" a ", " w ").replace("b1", "w1") for text in FLOWS[15][1]]
    assert {"a", "w"} == {c.from_tag for c in play([*FLOWS[15][1], *other]).calls()}


def test_stray_acks_and_byes_that_nobody_knows_are_no_calls() -> None:
    assert play(["0.0 A>B ACK 1/ACK b1 a x"]).calls() == []
    assert play(["0.0 A>B BYE 1/BYE b1 a x", "0.1 B>A 481 1/BYE b1 a x"]).calls() == []


def test_who_hung_up_is_unknown_when_only_a_later_bye_was_seen() -> None:
    record = play(["0.0 A>B BYE 7/BYE b1 a x"]).call()
    assert (
        record.released_by,
        record.seizure,
        record.flags,
    ) == (None, False, ("partial_no_invite",))


def test_a_retransmission_is_counted_and_a_second_tap_or_copy_is_not() -> None:
    flow = next(s["messages"] for s in SCENARIOS if s["name"].startswith("07"))
    once = play(flow).call()
    taps = play([*flow, *flow], agents=[(2001, 0), (2002, 40)]).call()
    assert (once.retransmissions, taps.retransmissions) == (4, 4)


def test_retransmissions_on_the_trunk_side_belong_to_the_attempt() -> None:
    world = play(
        [
            "0.0 A>P INVITE 1/INVITE b1 a -",
            "0.01 P>B INVITE 1/INVITE p1 a -",
            "0.51 P>B INVITE 1/INVITE p1 a -",
            "0.9 B>P 486 1/INVITE p1 a x",
            "0.91 P>A 486 1/INVITE b1 a x",
        ],
        parents=PARENTS,
    )
    assert (world.call().retransmissions, world.attempts()[0].retransmissions) == (0, 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_lost_or_repeated_every_order_of_it_gives_one_record(
    data: st.DataObject,
) -> None:
    flows = [s["messages"] for s in SCENARIOS] + [messages for _, messages, _ in FLOWS]
    flow = data.draw(st.sampled_from(flows))
    kept = data.draw(st.lists(st.sampled_from(range(len(flow))), min_size=1, max_size=20))
    again = data.draw(st.permutations(kept))

    def said(order: list[int]) -> list[dict[str, object]]:
        world = play(flow, order=order, parents=PARENTS)
        return [*map(comparable, world.calls()), *map(comparable, world.attempts())]

    assert said(kept) == said(again)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_duration_is_ever_negative_and_no_inferred_code_is_unmarked(
    data: st.DataObject,
) -> None:
    flow = data.draw(st.sampled_from([messages for _, messages, _ in FLOWS]))
    kept = data.draw(st.lists(st.sampled_from(range(len(flow))), min_size=1, max_size=20))
    for record in play(flow, order=kept, parents=PARENTS).calls():
        for name in CallRecord.__struct_fields__:
            value = getattr(record, name)
            if name.endswith("_ms") and value is not None:
                assert value >= 0
        assert (record.final_code is None) == (record.final_class is None)
        if record.end_source == "timer":
            assert record.inferred


@pytest.mark.parametrize(
    ("trunk_side", "code", "inferred", "flags"),
    [
        (["0.2 B>P 183 1/INVITE p1 a x"], 408, True, ("stuck_early",)),
        (["0.2 P>B CANCEL 1/CANCEL p1 a -"], 487, True, ("cancelled",)),
        (["0.2 P>B ACK 1/ACK p1 a x"], None, False, ("final_lost",)),
        (["0.2 B>P 407 1/INVITE p1 a x"], 407, False, ("auth_not_completed",)),
        (
            ["0.2 P>B CANCEL 1/CANCEL p1 a -", "0.3 B>P 200 1/INVITE p1 a x"],
            200,
            False,
            ("cancel_race",),
        ),
        (
            ["0.2 B>P 180 1/INVITE p1 a x", "0.3 B>P 180 1/INVITE p1 a y"],
            408,
            True,
            ("forked", "stuck_early"),
        ),
    ],
)
def test_an_attempt_says_what_is_known_of_its_end(
    trunk_side: list[str], code: int | None, inferred: bool, flags: tuple[str, ...]
) -> None:
    flow = ["0.0 A>P INVITE 1/INVITE b1 a -", "0.01 P>B INVITE 1/INVITE p1 a -", *trunk_side]
    (attempt,) = play([*flow, "9.0 P>A 500 1/INVITE b1 a k"], parents=PARENTS).attempts()
    assert (code, inferred, flags) == (attempt.final_code, attempt.inferred, attempt.flags)


def test_an_attempt_whose_invite_was_lost_is_told_from_its_reply() -> None:
    flow = ["0.0 A>P INVITE 1/INVITE b1 a -", "0.2 B>P 486 1/INVITE p1 a x"]
    (attempt,) = play([*flow, "0.3 P>A 486 1/INVITE b1 a x"], parents=PARENTS).attempts()
    assert (
        attempt.peer_ip,
        attempt.final_code,
        attempt.fail_ms,
        attempt.flags,
    ) == ("198.51.100.2", 486, None, ("invite_lost",))


def test_who_refused_is_unknown_where_everybody_has_one_address() -> None:
    flow = ["0.0 P>P INVITE 1/INVITE b1 a -", "0.1 P>P 486 1/INVITE b1 a x"]
    assert play(flow).call().final_origin is None


def test_an_answer_that_only_numbers_its_codec_is_named_by_the_offer() -> None:
    world = World()
    offer = packet(_line("0.0 A>B INVITE 1/INVITE b1 a - sdp=111"), "sdp@example.com")
    named = b"RTP/AVP 111\r\na=rtpmap:111 opus/48000/2\r\n"
    plain = b"RTP/AVP 111\r\n"
    offer = _rewritten(offer, plain, named)
    world.send(offer)
    world.send(packet(_line("1.0 B>A 200 1/INVITE b1 a x sdp=111"), "sdp@example.com"))
    world.send(packet(_line("2.0 B>A BYE 1/BYE c1 x a"), "sdp@example.com"))
    world.run_out()
    assert (world.call().codec_offered, world.call().codec_negotiated) == ("opus", "opus")


def test_a_body_that_is_no_sdp_offers_nothing() -> None:
    world = World()
    data = packet(_line("0.0 A>B INVITE 1/INVITE b1 a - sdp=0"), "sdp@example.com")
    world.send(_rewritten(data, b"v=0\r\no=- 1 1 IN", b"zzzzzzzzzzzzzzzz", b"m=audio", b"zzzzzzz"))
    world.run_out()
    assert world.call().codec_offered is None


def _rewritten(data: bytes, *pairs: bytes) -> bytes:
    sent = hep.decode(data)
    head, _, body = sent.payload.partition(b"\r\n\r\n")
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in body
        body = body.replace(old, new)
    head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
    return hep.encode(
        source=sent.source,
        destination=sent.destination,
        source_port=5060,
        destination_port=5060,
        captured_at=sent.captured_at,
        agent_id=2001,
        payload=head + b"\r\n\r\n" + body,
    )
