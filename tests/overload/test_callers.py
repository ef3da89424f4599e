import asyncio
import itertools
import random
from typing import Any

import pytest

from live.programs import free_port, network
from overload import callee, callers
from overload.callers import Fate
from overload.goodput import achieved


async def meet(stages: str, *words: str, patience: str = "10") -> tuple[list[Fate], dict[str, Any]]:
    """Callers at a callee, without a proxy between them."""
    net = network()
    one, two = (f"{net}.{number}:{free_port(f'{net}.{number}')}" for number in (1, 2))
    loop = asyncio.get_running_loop()
    host, port = two.split(":")
    wanted = callee.parser().parse_args(["--listen", two, *words])
    wire, served = await loop.create_datagram_endpoint(
        lambda: callee.Callee(wanted), local_addr=(host, int(port))
    )
    flags = ["--listen", one, "--proxy", two, "--callee", two, "--stages", stages]
    flags += ["--patience", patience, "--hold", "0.05"]
    said = await callers.call(callers.parser().parse_args(flags))
    wire.close()
    return said["calls"], served.said()


def test_calls_come_as_often_as_said_and_not_evenly() -> None:
    found = list(callers.arrivals([(100, 20), (50, 100), (10, 0)], random.Random(1)))
    assert found == sorted(found)
    assert sum(at < 100 for at in found) == pytest.approx(2000, rel=0.1)
    assert sum(at >= 100 for at in found) == pytest.approx(5000, rel=0.1)
    assert max(found) < 150
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert max(gaps) > 10 * sum(gaps) / len(gaps)


def test_stages_are_read() -> None:
    assert callers.read_stages("20:100,10:40.5") == [(20, 100), (10, 40.5)]


async def test_a_callee_with_room_answers_everybody_and_each_hangs_up() -> None:
    fates, said = await meet("1:40", "--capacity", "500")
    assert len(fates) > 20
    assert {(fate.outcome, fate.code, fate.copies) for fate in fates} == {("answered", 200, 1)}
    assert sum(second.get("served", 0) for second in said["seconds"].values()) == len(fates)


async def test_callers_who_give_up_are_worked_for_in_vain() -> None:
    fates, said = await meet("2:100", "--capacity", "20", patience="0.7")
    got = achieved(fates, 0.0, float("inf"))
    assert got.copies > 1.3
    outcomes = {fate.outcome for fate in fates}
    assert "answered" in outcomes
    assert outcomes & {"late", "silent"}
    # The worker had no time for more than its capacity.
    assert all(
        second.get("served", 0) + second.get("again", 0) <= 22
        for second in said["seconds"].values()
    )


async def test_a_callee_that_refuses_in_time_serves_the_others_in_time() -> None:
    fates, _ = await meet("2:100", "--capacity", "30", "--guard-ms", "100", patience="1")
    assert {fate.outcome for fate in fates} == {"answered", "refused"}
    assert all(fate.seconds is not None and fate.seconds < 0.3 for fate in fates)
