from flows import ANSWERED, CALLER_BYE, SCENARIOS
from sim import ADDRESSES, Line, World, packet, play
from sipsidecar.calls.dialog import IMPLAUSIBLE_US


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
            Line.of(text), "row@example.com", agent_id=ord(node), parent=parent, skew_us=skew_us
        )
        world.send(data, peer=ADDRESSES[node])
    world.run_out()
    assert world.call().flags == ()
    assert [a.branch.removeprefix("z9hG4bK") for a in world.attempts()] == ["p1", "q1"]


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
    world.send(packet(Line.of(ANSWERED[0]), "split@example.com", agent_id=2001), peer="203.0.113.1")
    for text in (*ANSWERED[1:], *CALLER_BYE):
        data = packet(Line.of(text), "split@example.com", agent_id=2002, skew_us=5_000_000)
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
