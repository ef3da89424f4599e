"""Golden flows: messages as lines of `sim.Line`, and what the record must say."""

import json
from pathlib import Path

from sim import ADDRESSES

SCENARIOS = json.loads((Path(__file__).parent / "corpus/vectors/dialog_scenarios.json").read_text())
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
        "of an INVITE that was tried again only the ACK was heard: that is no answer",
        [
            "0.2 A>P ACK 1/ACK b1 a x",
            "0.3 A>P INVITE 2/INVITE b2 a -",
            "0.4 P>A 100 2/INVITE b2 a -",
        ],
        {"final_code": 408, "inferred": True, "answered": False, "end_source": "timer"},
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


def flow(name: str) -> list[str]:
    """The messages of the flow whose name begins like this."""
    return next(messages for each, messages, _ in FLOWS if each.startswith(name))
