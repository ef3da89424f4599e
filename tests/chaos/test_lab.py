import random
import socket
from collections import Counter

import pytest

from chaos import lab
from chaos.results import Unfit


@pytest.mark.parametrize("seed", range(20))
def test_faults_do_not_overlap_and_leave_the_edges_free(seed: int) -> None:
    lengths = [10.0, 0.5, 3.0, 0.5]
    times = lab.spread(random.Random(seed), 60, lengths)
    ends = [at + length for at, length in zip(times, lengths, strict=True)]
    assert times[0] >= 3
    assert ends[-1] <= 54
    assert all(end < begin for end, begin in zip(ends, times[1:], strict=False))


def test_more_faults_than_seconds_are_refused() -> None:
    with pytest.raises(Unfit, match="do not fit"):
        lab.spread(random.Random(1), 10, [5.0, 5.0])


def test_every_event_happens_even_when_the_traffic_ends_before() -> None:
    done: list[str] = []
    events = [
        lab.Event(1000, "repair", lambda: done.append("repair")),
        lab.Event(0, "fault", lambda: done.append("fault")),
    ]
    looks = iter([True, False])
    lab.play(events, lambda: next(looks, False), lambda: None, every=0.0)
    assert done == ["fault", "repair"]


def test_a_machine_without_room_is_told_so() -> None:
    with pytest.raises(Unfit, match="GB free"):
        lab.Lab(disk_gb=10**9)
    with pytest.raises(Unfit, match="memory"):
        lab.Lab(disk_gb=0, memory_gb=10**9)


def test_a_held_socket_is_free_for_tcp_too_and_keeps_datagrams() -> None:
    held = lab.bound_socket()
    other = socket.create_server(held.getsockname())
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with held, other, sender:
        for number in range(100):
            sender.sendto(bytes([number]), held.getsockname())
        got = Counter(held.recv(10) for _ in range(100))
    assert len(got) == 100
