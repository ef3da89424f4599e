import pytest

from sipsidecar.calls import agents
from sipsidecar.calls.agents import Agents

A, B, C, D = (bytes([192, 0, 2, n]) for n in (1, 2, 3, 4))


def test_capture_id_and_sender_make_an_agent() -> None:
    known = Agents()
    one = known.see(1, "192.0.2.1", 0.0, 0)
    assert one is known.see(1, "192.0.2.1", 1.0, 1)
    assert one is not known.see(1, "192.0.2.2", 1.0, 1)
    assert one is not known.see(2, "192.0.2.1", 1.0, 1)
    assert len(list(known)) == 3
    assert one is not None
    assert (one.packets, one.last_now) == (2, 1.0)


def test_senders_beyond_the_cap_are_counted_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "MAX_AGENTS", 2)
    known = Agents()
    assert [known.see(i, "192.0.2.1", 0.0, 0) is not None for i in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert known.overflow == 2


def test_skew_is_the_least_delay_of_a_window_with_its_sign_turned() -> None:
    agent = Agents().see(1, "192.0.2.1", 0.0, 0)
    assert agent is not None
    assert agent.skew_seconds is None
    for now, delay in ((0.0, 5_000_000), (1.0, 3_000_000), (2.0, 4_000_000)):
        agent.stamp(1_000_000_000, 1_000_000_000 + delay, now)
    assert agent.skew_seconds == -3.0
    agent.stamp(1_000_000_000, 1_000_000_000 - 2_000_000, 61.0)
    assert agent.skew_seconds == -3.0
    agent.stamp(1_000_000_000, 1_000_000_000, 122.0)
    assert agent.skew_seconds == 2.0


def test_a_proxy_that_sends_hep_from_its_own_address_is_known_at_once() -> None:
    known = Agents()
    agent = known.see(1, "192.0.2.2", 0.0, 0)
    assert agent is not None
    agent.learn(A, B)
    assert agent.local == B
    assert frozenset({B}) == known.clocks([agent.clock]).local


def test_the_address_on_every_message_is_the_nodes_own() -> None:
    agent = Agents().see(1, "198.51.100.9", 0.0, 0)
    assert agent is not None
    agent.learn(A, B)
    assert agent.local is None
    agent.learn(B, C)
    assert agent.local == B


def test_two_peers_alone_do_not_tell_which_one_is_the_node() -> None:
    agent = Agents().see(1, "198.51.100.9", 0.0, 0)
    assert agent is not None
    for _ in range(50):
        agent.learn(A, B)
        agent.learn(B, A)
    assert agent.local is None


def test_a_node_with_several_addresses_is_unlearned() -> None:
    agent = Agents().see(1, "198.51.100.9", 0.0, 0)
    assert agent is not None
    agent.learn(A, B)
    agent.learn(B, C)
    agent.learn(C, D)
    assert agent.local is None
    for _ in range(20):
        agent.learn(A, B)
    assert agent.local is None


def test_one_stray_among_many_does_not_unlearn() -> None:
    known = Agents()
    for _ in range(100):
        agent = known.see(1, "198.51.100.9", 0.0, 0)
    assert agent is not None
    agent.learn(A, B)
    agent.learn(B, C)
    agent.learn(C, D)
    assert agent.local == B


def test_configured_addresses_are_believed_instead_of_learned_ones() -> None:
    known = Agents([D])
    agent = known.see(1, "192.0.2.2", 0.0, 0)
    assert agent is not None
    agent.learn(A, B)
    said = known.clocks([agent.clock, 77])
    assert (frozenset({D}), {agent.clock: 1}) == (said.local, said.agent_ids)


def test_a_sender_without_address_is_an_agent_too() -> None:
    agent = Agents().see(None, "", 0.0, 0)
    assert agent is not None
    agent.learn(A, A)
    assert agent.local is None


def test_a_stored_message_finds_the_agent_of_the_live_ones_and_counts_nothing() -> None:
    known = Agents()
    live = known.see(1, "192.0.2.1", 5.0, 7)
    assert live is not None
    assert live is known.recall(1, "192.0.2.1")
    assert (live.packets, live.last_now, live.last_received_at) == (1, 5.0, 7)
    assert live is not known.recall(2, "192.0.2.1")
    assert live is not known.recall(1, "192.0.2.2")
    assert live is not known.recall(1, "")
    assert [live] == list(known)


def test_a_live_packet_finds_the_agent_of_the_stored_messages() -> None:
    known = Agents()
    stored = known.recall(None, "2001:db8::1")
    assert list(known) == []
    assert stored is known.see(None, "2001:db8::1", 0.0, 0)
    assert [stored] == list(known)


def test_one_sender_written_in_two_ways_is_one_agent() -> None:
    known = Agents()
    for written, again in (
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8:0::1"),
        ("fe80::1%eth0", "fe80::1"),
    ):
        assert known.see(1, written, 0.0, 0) is known.recall(1, again)


def test_a_mapped_sender_is_the_address_that_its_sip_has() -> None:
    agent = Agents().see(1, "::ffff:192.0.2.2", 0.0, 0)
    assert agent is not None
    agent.learn(A, B)
    assert agent.local == B


def test_stored_senders_beyond_the_cap_are_not_kept_and_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agents, "MAX_AGENTS", 1)
    known = Agents()
    assert known.recall(1, "192.0.2.1") is not None
    assert known.recall(2, "192.0.2.1") is None
    assert known.overflow == 0
