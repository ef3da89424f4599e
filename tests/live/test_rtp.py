import asyncio
import random
import statistics

import pytest

from live.rtp import CLOCK_RATE, SAMPLES, Endpoint, Habits, Receiver


def hear(sequences: list[int]) -> Receiver:
    """A receiver that heard these packets."""
    receiver = Receiver(sequences[0] % 65536)
    for number in sequences:
        receiver.see(number % 65536, number * SAMPLES, number * 0.02)
    return receiver


def test_the_first_packet_does_not_count_for_it_may_be_noise() -> None:
    assert not hear([7]).valid
    receiver = hear([7, 8, 9])
    assert (receiver.valid, receiver.expected, receiver.lost) == (True, 2, 0)


def test_what_is_missing_between_is_lost_also_over_the_wrap() -> None:
    sequences = [n for n in range(65000, 66000) if n % 10]
    receiver = hear(sequences)
    assert receiver.expected == 65999 - 65002 + 1
    assert receiver.lost == sum(n % 10 == 0 for n in range(65002, 66000))
    assert receiver.report().highest == 65999


def test_packets_that_overtake_each_other_are_not_lost() -> None:
    receiver = hear([0, 1, 3, 2, 5, 4, 6])
    assert (receiver.expected, receiver.lost) == (6, 0)


def test_duplicates_make_the_loss_negative() -> None:
    receiver = hear([0, 1, 2, 2, 2])
    assert (receiver.expected, receiver.lost, receiver.report().fraction) == (2, -2, 0)


def test_a_report_s_fraction_is_of_its_own_interval() -> None:
    receiver = hear([0, 1, 2, 3, 4])
    assert (receiver.report().fraction, receiver.heard) == (0, False)
    receiver.see(8, 8 * SAMPLES, 0.16)
    assert receiver.heard
    said = receiver.report()
    assert (said.fraction, said.lost, said.expected) == (192, 3, 8)
    assert said.loss_percent == pytest.approx(37.5)


def test_a_source_that_begins_anew_is_counted_anew() -> None:
    receiver = hear([0, 1, 2, 3, 40000, 40001, 40002])
    assert (receiver.expected, receiver.lost) == (2, 0)


def test_jitter_of_uniform_delays_is_a_third_of_their_width() -> None:
    rng, receiver, said = random.Random(1), Receiver(0), []
    for number in range(5000):
        # Less than a packet's time, so that none overtakes another here.
        receiver.see(number, number * SAMPLES, number * 0.02 + rng.uniform(0, 0.018))
        if number % 50 == 49:
            said.append(receiver.report().jitter / CLOCK_RATE * 1e3)
    assert statistics.fmean(said) == pytest.approx(6, abs=0.3)


async def test_two_endpoints_lose_exactly_what_they_are_told_to() -> None:
    a, b = Endpoint(Habits(loss=0.25), 1, 0.1), Endpoint(Habits(), 2, 0.1)
    try:
        for one in (a, b):
            await one.open("127.0.0.1")
        a.start(b.address, 0.4)
        b.start(a.address, 0.4)
        # A busy machine sends later, but it sends.
        for _ in range(1000):
            await asyncio.sleep(0.02)
            if a.arrived == 20 and b.arrived == 15 and b.said and a.round_trips:
                break
    finally:
        a.close()
        b.close()
    assert (a.dropped, b.arrived, a.arrived) == (5, 15, 20)
    assert b.receiver is not None
    assert b.receiver.received <= 14
    assert all(0 <= trip < 1000 for trip in a.round_trips)
