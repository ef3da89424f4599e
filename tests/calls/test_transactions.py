import pytest

from sim import ADDRESSES, EPOCH, Line, World, packet
from sipsidecar.calls import transactions
from sipsidecar.wire import hep, sip

REGISTER = "0.0 A>P REGISTER 1/REGISTER b1 a -"
CHALLENGE = "0.01 P>A 401 1/REGISTER b1 a p"
AGAIN = "0.05 A>P REGISTER 2/REGISTER b2 a -"
DONE = "0.06 P>A 200 2/REGISTER b2 a p"
PING = "0.0 P>B OPTIONS 1/OPTIONS o1 a -"
PONG = "0.02 B>P 200 1/OPTIONS o1 a x"


def _play(*texts: str, change: tuple[bytes, bytes] | None = None) -> World:
    world = World()
    for text in texts:
        line = Line.of(text)
        data = packet(line, "reg@example.com")
        if change:
            sent = hep.decode(data)
            data = hep.encode(
                source=sent.source,
                destination=sent.destination,
                source_port=5060,
                destination_port=5060,
                captured_at=sent.captured_at,
                agent_id=2001,
                payload=sent.payload.replace(*change),
            )
        world.send(data, line.at)
    world.run_out()
    return world


def test_each_register_transaction_is_a_record_with_its_round_trip() -> None:
    first, second = _play(REGISTER, CHALLENGE, AGAIN, DONE).registrations()
    assert (first.final_code, first.rtt_ms, first.requests, first.aor_user) == (401, 10.0, 1, "bob")
    assert (200, 10.0, ADDRESSES["P"]) == (second.final_code, second.rtt_ms, second.peer_ip)
    assert ADDRESSES["A"] == second.src_ip


def test_credentials_and_expiry_of_a_register_are_read() -> None:
    extra = b"Authorization: Digest x\r\nExpires: 0\r\nMax-Forwards: 70"
    (record,) = _play(AGAIN, DONE, change=(b"Max-Forwards: 70", extra)).registrations()
    assert (record.authorized, record.expires) == (True, 0)


@pytest.mark.parametrize(
    ("contact", "expires"),
    [
        (b"<sip:a@b>;expires=300", 300),
        (b"<sip:a@b>;Expires=99999999999", 0x7FFFFFFF),
        (b"<sip:a@b>;expires=1_0", None),
        (b"<sip:a@b>", None),
    ],
)
def test_the_contacts_own_expiry_wins(contact: bytes, expires: int | None) -> None:
    change = (b"Max-Forwards: 70", b"Contact: " + contact)
    (record,) = _play(AGAIN, DONE, change=change).registrations()
    assert expires == record.expires


def test_a_ping_without_answer_has_no_code_and_counts_its_copies() -> None:
    (ping,) = _play(PING, PING.replace("0.0", "0.5"), PING.replace("0.0", "1.5")).pings()
    assert (
        ping.final_code,
        ping.rtt_ms,
        ping.requests,
        ping.flags,
    ) == (None, None, 3, ("no_response",))
    assert ADDRESSES["B"] == ping.peer_ip


def test_order_and_copies_do_not_change_a_ping() -> None:
    one, other = _play(PING, PONG).pings(), _play(PONG.replace("0.02", "0.02"), PONG, PING).pings()
    assert (one[0].final_code, one[0].rtt_ms, one[0].requests) == (200, 20.0, 1)
    assert one[0].rtt_ms == other[0].rtt_ms
    assert one[0].final_code == other[0].final_code


def test_an_answer_stamped_before_its_request_took_no_time_or_is_unknown() -> None:
    assert _play(PING.replace("0.0", "0.03", 1), PONG).pings()[0].rtt_ms == 0.0
    assert _play(PING.replace("0.0", "1.0", 1), PONG).pings()[0].rtt_ms is None


def test_a_round_trip_is_never_between_two_clocks() -> None:
    world = World()
    world.send(packet(Line.of(PING), "o@example.com", agent_id=1), peer="203.0.113.1")
    world.send(packet(Line.of(PONG), "o@example.com", agent_id=2), peer="203.0.113.2")
    world.run_out()
    (ping,) = world.pings()
    assert (ping.final_code, ping.rtt_ms, ping.agent_ids) == (200, None, (1, 2))


def test_copies_after_the_record_left_are_the_same_transaction_for_32_seconds() -> None:
    world = World()
    for at in (0.0, 3.5, 7.5, 30.0):
        world.send(packet(Line.of(PING), "ping@example.com"), at)
        world.send(packet(Line.of(PONG), "ping@example.com"), at + 0.02)
    assert len(world.pings()) == 1
    world.send(packet(Line.of(PING), "ping@example.com"), 60.0)
    world.run_out()
    assert [p.final_code for p in world.pings()] == [200, None]


def test_an_answer_without_question_is_an_orphan() -> None:
    world = _play(PONG)
    assert (world.pings(), world.pipeline.transactions.orphans) == ([], 1)


def test_a_question_inside_a_dialog_is_no_ping() -> None:
    assert _play("0.0 A>B OPTIONS 7/OPTIONS o1 a x").pings() == []


def test_an_implausible_clock_dates_nothing() -> None:
    world = World()
    world.send(packet(Line.of(PING), "o@example.com", skew_us=-400 * 86_400_000_000))
    world.run_out()
    (ping,) = world.pings()
    assert ping.started_at == EPOCH
    assert (ping.dated_by, ping.flags) == ("receiver", ("no_response",))
    assert world.pipeline.odd("clock-implausible") == 1


def test_transactions_over_the_cap_are_refused_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transactions, "MAX_TRANSACTIONS", 2)
    world = _play(*(PING.replace("o1", f"o{i}") for i in range(5)))
    assert (len(world.pings()), world.pipeline.transactions.refused) == (2, 3)


def test_replies_of_one_transaction_are_capped() -> None:
    table = transactions.TransactionTable(World().pipeline.agents)
    for code in range(200, 260):
        text = (
            f"SIP/2.0 {code} X\r\nVia: SIP/2.0/UDP a;branch=z9hG4bKx\r\nFrom: <sip:a@b>;tag=1\r\n"
            "To: <sip:a@b>;tag=2\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\n\r\n"
        )
        ends = ((b"\0\0\0\1", 1), (b"\0\0\0\2", 2))
        table.receive(sip.parse(text.encode()), *ends, "udp", 1, code, 0.0, 0)
    (found,) = table._open.values()
    assert len(found.replies) == transactions.MAX_REPLIES


def test_a_burst_is_closed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "TURN", 2)
    world = World()
    for i in range(5):
        world.send(packet(Line.of(PING.replace("o1", f"o{i}")), "o@example.com"))
    world.now = 100.0
    world.pipeline.handle_timer(100.0)
    assert len(world.pipeline.transactions) == 3


def test_draining_gives_out_what_waits() -> None:
    world = World()
    world.send(packet(Line.of(PING), "o@example.com"))
    world.pipeline.drain(0.0)
    world._drain()
    assert [(p.final_code, p.flags) for p in world.pings()] == [(None, ("interrupted",))]
    assert len(world.pipeline.transactions) == 0
