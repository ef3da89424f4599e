import pytest

from flows import PARENTS, flow
from sim import Line, World, packet, play


def test_attempts_of_a_failover_are_in_the_order_they_were_tried() -> None:
    first, second = play(flow("503 at the first"), parents=PARENTS).attempts()
    assert (first.failover_order, first.final_code, first.peer_ip) == (1, 503, "198.51.100.2")
    assert (second.failover_order, second.final_code, second.peer_ip) == (2, 200, "198.51.100.3")
    assert second.pdd_ms == 500.0
    assert first.trunk is None


def test_the_chain_of_addresses_tells_attempts_when_a_proxy_hides_its_vias() -> None:
    world = play(flow("503 at the first"), parents={})
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
        world.send(packet(Line.of(text), "egress@example.com", parent="b1"))
    world.run_out()
    assert [a.final_code for a in world.attempts()] == [503, 486]
    assert (world.call().final_code, world.call().invites) == (486, 1)


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
