import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from fakeswitch import FakeSwitch, Setup
from sipsidecar.calls.events import Cohort, LegRecord
from sipsidecar.config import AdmissionSettings, Config, Freeswitch
from sipsidecar.pipeline import Output, Pipeline
from sipsidecar.signals.cohort import Matcher
from sipsidecar.signals.decisions import Denial
from sipsidecar.switchboard import Switchboard, labels_of_trunks

PASSWORD = "a password of tests"  # noqa: S105


class Board:
    """A switchboard of one switch, its pipeline, and what came out."""

    def __init__(
        self,
        switch: FakeSwitch,
        passwords: dict[str, str],
        admission: AdmissionSettings | None = None,
    ) -> None:
        host, port = switch.address
        config = Config(
            freeswitch=Freeswitch(switches={"fs1": f"{host}:{port}"}, passwords=passwords),
            admission=admission or AdmissionSettings(),
        )
        self.switch = switch
        self.pipeline = Pipeline(switches=("fs1",))
        self.board = Switchboard(config, self.pipeline)
        self.tasks = self.board.tasks()
        self.outputs: list[Output] = []

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not true():
                await asyncio.sleep(0.01)
                now = asyncio.get_running_loop().time()
                while (due := self.pipeline.next_timer()) is not None and due <= now + 10:
                    self.pipeline.handle_timer(due)
                    if self.pipeline.next_timer() == due:
                        break
                self.outputs += self.pipeline.records()

    @property
    def connected(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self.board.figures(now)[0].connected_seconds is not None

    def legs(self) -> list[LegRecord]:
        return [one for one in self.outputs if isinstance(one, LegRecord)]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def board(request: pytest.FixtureRequest) -> AsyncIterator[Board]:
    passwords = getattr(request, "param", {"fs1": PASSWORD})
    async with FakeSwitch(Setup(password=PASSWORD)) as switch:
        board = Board(switch, passwords)
        try:
            yield board
        finally:
            await board.stop()


@pytest.mark.parametrize(
    "board", [{"fs1": PASSWORD}, {"*": PASSWORD}], indirect=True, ids=["own", "of all"]
)
async def test_events_of_a_configured_switch_become_legs_under_its_name(board: Board) -> None:
    await board.until(lambda: board.connected)
    board.switch.call("a_bye")
    await board.until(lambda: len(board.legs()) == 2)
    assert {leg.switch for leg in board.legs()} == {"fs1"}
    assert {leg.answered for leg in board.legs()} == {True}
    (page,) = board.board.page()
    assert (page["name"], page["connected"], page["error"]) == ("fs1", True, None)
    assert page["events"] >= 10


async def test_a_heartbeat_is_shown_with_the_state_of_the_connection(board: Board) -> None:
    await board.until(lambda: board.connected)
    board.switch.beat()
    now = asyncio.get_running_loop().time()
    await board.until(lambda: board.board.figures(now)[0].sessions is not None)
    (figures,) = board.board.figures(now)
    assert (figures.sessions, figures.max_sessions, figures.trouble) == (0, 1000, None)


async def test_legs_that_a_restart_ended_leave_and_say_so(board: Board) -> None:
    await board.until(lambda: board.connected)
    board.switch.call("a_bye", ends=False)
    await board.until(lambda: board.pipeline.bridging.legs.live("fs1") == 2)
    await board.switch.restart(kill=True)
    await board.until(lambda: board.board.page()[0]["reconnects"] == 1 and board.connected)
    board.switch.beat()
    await board.until(lambda: len(board.legs()) == 2)
    assert {leg.ended_at for leg in board.legs()} == {None}
    assert all("end_unseen" in leg.flags for leg in board.legs())


@pytest.mark.parametrize("board", [{"fs1": "another"}], indirect=True)
async def test_a_wrong_password_is_told_on_the_page_and_never_shown(board: Board) -> None:
    await board.until(lambda: board.board.page()[0]["error"] is not None)
    (page,) = board.board.page()
    assert not page["connected"]
    assert "another" not in str(page)
    assert page["connection"] == {"login-refused": 1, "errors": 0}


async def test_a_configuration_without_switches_connects_to_none() -> None:
    board = Switchboard(Config(), Pipeline())
    assert (board.tasks(), board.page(), board.figures(0.0)) == ([], [], ())


async def test_what_is_shown_to_the_pushers_is_what_the_switch_holds() -> None:
    admission = AdmissionSettings(freeswitch=True, profiles={"external": "acme"})
    # A clock that is a minute behind ours: its deadlines are told by it.
    async with FakeSwitch(Setup(password=PASSWORD), lambda: time.time() - 60) as switch:
        board = Board(switch, {"fs1": PASSWORD}, admission)
        try:
            await board.until(lambda: board.connected)
            switch.beat()
            await board.until(lambda: board.board.page()[0]["lag_seconds"] is not None)
            (push,) = board.board.pushes
            board.tasks.append(asyncio.create_task(push.run()))
            push.show([Denial(scope="trunk", scope_value="acme", rule="r")], [])
            held = switch.core.variables
            await board.until(lambda: "sidecar_deny_until_profile_external" in held)
            ahead = int(held["sidecar_deny_until_profile_external"]) - switch.clock()
            assert 1.5 < ahead < admission.lease_seconds + 1.5
            (page,) = board.board.page()
            assert (page["push"]["up"], page["push"]["unheld"]) == (True, 0)
            assert page["push"]["entries"] == 2
        finally:
            await board.stop()


async def test_nothing_is_pushed_unless_it_is_configured(board: Board) -> None:
    await board.until(lambda: board.connected)
    assert board.board.pushes == ()
    assert "push" not in board.board.page()[0]
    assert not switch_variables(board)


def switch_variables(board: Board) -> set[str]:
    return {name for name in board.switch.core.variables if name.startswith("sidecar")}


async def test_a_switch_is_known_by_its_core_uuid(board: Board) -> None:
    await board.until(lambda: board.connected)
    board.switch.beat()
    await board.until(lambda: board.board.name_of(board.switch.core.core_uuid) == "fs1")
    assert board.board.name_of("") == ""
    assert board.board.name_of("11111111-2222-3333-4444-555555555555") == ""


def test_what_all_calls_of_a_trunk_are_is_sure_only_where_no_matcher_says_otherwise() -> None:
    def labels(*matchers: Matcher) -> Cohort:
        return labels_of_trunks(matchers)["acme"]

    own = Matcher(trunk="acme", tenant="blue", direction="in")
    assert labels(own) == Cohort(trunk="acme", tenant="blue", direction="in")
    # One before it may have said another; one behind it cannot.
    other = Matcher(tenant="green", headers={"x-tenant": "green"})
    assert labels(other, own).tenant == "other"
    assert labels(own, other).tenant == "blue"
    assert labels(Matcher(tenant="blue"), own).tenant == "blue"
    # Two ways to the trunk, of two tenants, or of one that is not always said.
    assert labels(own, Matcher(trunk="acme", tenant="green")).tenant == "other"
    assert labels(own, Matcher(trunk="acme")).tenant == "other"
    assert labels(Matcher(trunk="acme"), Matcher(tenant="blue")).tenant == "other"
    assert labels_of_trunks([other]) == {}
