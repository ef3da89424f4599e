"""Whose calls an incident of the running watch is of, and which of them it names."""

import random
from typing import Any

import pytest

from sipsidecar.calls.events import AttemptRecord, Setup
from sipsidecar.config import Config, TrunkSettings
from sipsidecar.signals.alarms import CATEGORIES, scope_text
from sipsidecar.signals.baseline import BaselineHour
from sipsidecar.signals.gathering import scopes_of
from sipsidecar.signals.minutes import KpiMinute
from sipsidecar.signals.trunk import Peer
from test_watching import BEGIN, Past, World

HOUR = 3_600_000_000
TRUNKS = ("a", "b")
TENANTS = ("red", "blue")


def past() -> Past:
    """Two days in which both trunks rang after 240 ms, and one call of five met a busy line."""
    chance = random.Random(1)
    found = Past()
    series = {
        f"{source}:{scope_text(scope)}"
        for trunk in TRUNKS
        for tenant in TENANTS
        for source in ("call", "trunk")
        for scope in scopes_of((source, tenant, trunk, "north", "outbound", "", "", ""))
    }
    for name in sorted(series):
        for hour in range(BEGIN // HOUR - 48, BEGIN // HOUR):
            found.hours.append(
                BaselineHour(
                    received_at=BEGIN,
                    hour_at=hour * HOUR,
                    series=name,
                    minutes=60,
                    total=1000,
                    answered=800,
                    effective=1000,
                    counts=tuple(200 if one == "486" else 0 for one in CATEGORIES),
                    pdd_p95_ms=chance.gauss(240, 30),
                )
            )
    return found


class Busy(World):
    """A watch over two trunks with the calls of two tenants."""

    def traffic(self, calls: int = 24, **of_a: Any) -> list[str]:
        """Calls over both trunks in turn; those over a have these values. Returns the latter."""
        made, names = [], []
        for number in range(calls):
            trunk = TRUNKS[number % 2]
            labels: dict[str, Any] = {
                "trunk": trunk,
                "tenant": TENANTS[number // 2 % 2],
                "carrier": "north",
                "direction": "outbound",
            }
            values: dict[str, Any] = {"final_code": 200, "answered": True, "pdd_ms": 50.0}
            changed = values | (of_a if trunk == "a" else {})
            call = self.call(200, **labels, pdd_ms=changed["pdd_ms"])
            attempt = AttemptRecord(
                call_id=call.call_id,
                from_tag="t",
                branch=f"z{call.call_id}",
                received_at=self.at,
                started_at=self.at,
                **labels,
                **changed,
            )
            made.append(Setup(call, (attempt,)))
            if trunk == "a":
                names.append(call.call_id)
        self.rows += self.watching.after_turn([], made)
        return names


@pytest.fixture
async def busy() -> Busy:
    world = Busy(past=past())
    world.watching._baseline.load(await world.watching._history.baseline())
    await world.look()
    return world


async def test_late_ringing_is_put_down_to_the_trunk_that_rings_late_until_it_is_over(
    busy: Busy,
) -> None:
    for _ in range(3):
        busy.traffic()
        await busy.sleep(60)
    assert not busy.watching.incidents(every=True)
    late = []
    for _ in range(3):
        late += busy.traffic(pdd_ms=3000.0)
        await busy.sleep(60)
    (opened,) = busy.watching.incidents(every=False)
    assert (opened["category"], opened["scope"]) == ("pdd", "trunk=a")
    assert opened["call_ids"]
    assert set(opened["call_ids"]) <= set(late)
    assert "36 of 60 calls were slow in half an hour" in opened["summary"]
    for _ in range(40):
        busy.traffic()
        await busy.sleep(60)
        assert {one["trunk"] for one in busy.watching.incidents(every=True)} == {"a"}
    (over,) = busy.watching.incidents(every=True)
    assert over["state"] == "cleared"


async def test_what_an_incident_says_first_is_of_the_fewest_calls_that_hold_it(busy: Busy) -> None:
    for _ in range(3):
        busy.traffic()
        await busy.sleep(60)
    for _ in range(2):
        busy.traffic(final_code=503, answered=False, pdd_ms=None)
        await busy.sleep(60)
    (opened,) = busy.watching.incidents(every=False)
    assert (opened["category"], opened["trunk"]) == ("5xx", "a")
    assert opened["summary"].startswith("trunk=a: 5xx "), "not its carrier, which is half well"


async def test_while_an_incident_fades_it_names_the_calls_of_its_worst_time(busy: Busy) -> None:
    for _ in range(3):
        busy.traffic()
        await busy.sleep(60)
    bad = set()
    for _ in range(3):
        bad |= set(busy.traffic(final_code=503, answered=False, pdd_ms=None))
        await busy.sleep(60)
    seen = set()
    for _ in range(40):
        busy.traffic(calls=20)
        busy.traffic(calls=1, final_code=486, answered=False, pdd_ms=None)
        await busy.sleep(60)
        (one,) = busy.watching.incidents(every=True)
        assert one["call_ids"]
        assert set(one["call_ids"]) <= bad, one
        seen.add(one["state"])
    assert seen == {"open", "cleared"}


async def test_a_silent_trunk_is_told_with_calls_that_failed_since_and_no_others() -> None:
    peer = Peer(name="a", uri="sip:127.0.0.1:9", probe=True)
    world = Busy(Config(trunks=TrunkSettings(peers=(peer,))))
    await world.look()
    old = set(world.traffic(final_code=408, answered=False, pdd_ms=None))
    await world.sleep(30)
    trunks = world.watching._trunks
    for _ in range(3):
        trunks.receive_answer("a", None, None, world.at, "no-answer")
        await world.sleep(10)
    failed = set(world.traffic(final_code=408, answered=False, pdd_ms=None))
    for kind in ("opened", "held"):
        alarms = world.watching._alarms_of_trunks(world.at)
        assert [alarm.category for alarm in alarms] == ["trunk-down"], kind
        assert set(alarms[0].call_ids) <= failed - old
        assert len(alarms[0].call_ids) == 5
        world.traffic(final_code=408, answered=False, pdd_ms=None)


async def test_minutes_are_looked_at_once_and_not_every_second(busy: Busy) -> None:
    looks: list[int] = []
    look = busy.watching._traffic.looks

    def spy(at: int, agents: Any) -> Any:
        looks.append(at)
        return look(at, agents)

    busy.watching._traffic.looks = spy  # type: ignore[method-assign]
    busy.traffic()
    await busy.sleep(600)
    assert 8 <= len(looks) <= 10
    assert busy.of(KpiMinute)
