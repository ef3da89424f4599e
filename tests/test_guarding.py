import asyncio
import logging

import pytest

from sipsidecar import guarding
from sipsidecar.guarding import Guard

LOG = logging.getLogger("sipsidecar.test")


async def test_a_part_that_fails_begins_again_until_it_is_told_to_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "FIRST_PAUSE", 0.0)
    guard = Guard("the whole", LOG)
    tries: list[int] = []

    async def run() -> None:
        tries.append(1)
        if len(tries) == 4:
            guard.ending = True
        if len(tries) < 3:
            raise ZeroDivisionError

    await asyncio.wait_for(guard.keep("a part", run), 5)
    assert (len(tries), guard.faults) == (4, 2)
    assert caplog.text.count("the whole: a part failed") == 1  # not again for ten minutes


async def test_pauses_grow_until_a_part_has_run_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "LONGEST_PAUSE", 5.0)
    guard = Guard("the whole", LOG)
    slept: list[float] = []
    now = 0.0

    class Loop:
        def time(self) -> float:
            return now

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def run() -> None:
        nonlocal now
        if len(slept) == 4:
            now += 6
        guard.ending = len(slept) == 6

    guard._loop = Loop()  # type: ignore[assignment]
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await guard.keep("a part", run)
    assert slept == [1.0, 2.0, 4.0, 5.0, 1.0, 2.0]


async def test_a_part_that_is_cancelled_is_not_begun_again() -> None:
    guard = Guard("the whole", LOG)
    kept = asyncio.create_task(guard.keep("a part", asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    kept.cancel()
    with pytest.raises(asyncio.CancelledError):
        await kept
    assert guard.faults == 0
