import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakeswitch import FakeSwitch, Setup, User
from listeners import until
from sipsidecar.calls.events import Cohort
from sipsidecar.edges.freeswitch import FreeSwitch, SwitchUnavailable
from sipsidecar.edges.switchpush import MOST_KEYS, REFRESH, WINDOW, SwitchPush
from sipsidecar.signals.decisions import OVERFLOW, Denial, RateLimit
from sipsidecar.wire import esl

NOW = 1_795_168_000.25
OK = esl.Reply("api/response", "+OK")
CLOSED = Denial(scope="global", code=503, reason="cac cpu: too warm", rule="cpu")


class Switch:
    """Keeps variables as FreeSWITCH does, or does not answer."""

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}
        self.lines: list[str] = []
        self.why = ""
        self.said: esl.Reply | None = None
        self.waiting = self.most_waiting = 0

    async def command(self, line: str, timeout: float) -> esl.Reply:  # noqa: ASYNC109
        assert timeout > 0
        self.lines.append(line)
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        if self.why:
            raise SwitchUnavailable(self.why)
        if self.said is not None:
            return self.said
        name, _, value = line.removeprefix("api global_setvar ").partition("=")
        self.variables.pop(name, None)
        self.variables |= {name: value} if value else {}
        return OK

    def sent(self, what: str) -> list[str]:
        return [line for line in self.lines if what in line]


class Times:
    """Hands of both clocks."""

    def __init__(self) -> None:
        self.passed = 0.0

    def pusher(self, switch: Switch, **more: object) -> SwitchPush:
        given: dict[str, object] = {"profiles": {"external": "acme"}, "lease_seconds": 3} | more
        return SwitchPush(
            "fs1",
            switch.command,
            clock=lambda: NOW + self.passed,
            now=lambda: self.passed,
            **given,  # type: ignore[arg-type]
        )


async def turn(push: SwitchPush) -> None:
    """One round of `run`, without its waiting."""
    await push._round()


@pytest.fixture
def switch() -> Switch:
    return Switch()


@pytest.fixture
def times() -> Times:
    return Times()


# -------------------------------------------------------------------------------- what is pushed


async def test_a_denial_is_a_deadline_with_its_code_rule_and_words(
    switch: Switch, times: Times
) -> None:
    push = times.pusher(switch)
    push.show([CLOSED], [])
    await turn(push)
    # rounded up: never shorter than the lease
    assert switch.variables == {
        "sidecar_up_until": "1795168004",
        "sidecar_deny_until_global": "1795168004",
        "sidecar_code_global": "503",
        "sidecar_rule_global": "cpu",
        "sidecar_reason_global": "cac cpu: too warm",
    }
    at = [line.partition("=")[0].split()[-1] for line in switch.lines]
    assert at.index("sidecar_code_global") < at.index("sidecar_deny_until_global")


async def test_a_trunk_is_denied_by_its_own_key_and_those_of_its_profiles(
    switch: Switch, times: Times
) -> None:
    push = times.pusher(switch, profiles={"a": "acme", "b": "acme", "c": "other1"})
    push.show([Denial(scope="trunk", scope_value="acme", rule="r")], [])
    await turn(push)
    assert {name for name in switch.variables if "deny_until" in name} == {
        "sidecar_deny_until_trunk_acme",
        "sidecar_deny_until_profile_a",
        "sidecar_deny_until_profile_b",
    }
    assert push.unheld == 0


async def test_a_tenant_is_denied_where_all_calls_of_a_trunk_are_its_own(
    switch: Switch, times: Times
) -> None:
    labels = {"acme": Cohort(tenant="blue", trunk="acme"), "mix": Cohort(trunk="mix")}
    push = times.pusher(switch, profiles={"a": "acme", "m": "mix"}, labels=labels)
    push.show([Denial(scope="tenant", scope_value="blue", rule="r")], [])
    await turn(push)
    assert {name for name in switch.variables if "deny_until" in name} == {
        "sidecar_deny_until_trunk_acme",
        "sidecar_deny_until_profile_a",
    }


@pytest.mark.parametrize(
    ("scope", "value"),
    [
        ("tenant", "green"),
        ("tenant", "other"),
        ("direction", "in"),
        ("region", "eu"),
        ("trunk", "a b"),
        ("trunk", "a=b\nx"),
    ],
)
async def test_what_this_switch_cannot_tell_is_counted(
    switch: Switch, times: Times, scope: str, value: str
) -> None:
    push = times.pusher(switch)
    push.show([Denial(scope=scope, scope_value=value, rule="r")], [])
    await turn(push)
    assert push.unheld == 1
    assert not [name for name in switch.variables if "deny" in name]


async def test_a_node_is_the_switch_of_that_name(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    push.show([Denial(scope="node", scope_value="fs2", rule="r")], [])
    await turn(push)
    assert "sidecar_deny_until_global" not in switch.variables
    push.show([Denial(scope="node", scope_value="fs1", rule="r")], [])
    await turn(push)
    assert "sidecar_deny_until_global" in switch.variables
    assert push.unheld == 0


async def test_a_ramp_is_the_share_of_each_second_that_passes(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    for percent, passing in ((70, "30"), (1, "99"), (100, None), (130, None)):
        push.show([Denial(scope="global", rule="r", percent=percent)], [])
        await turn(push)
        assert switch.variables.get("sidecar_pass_global") == passing
        assert "sidecar_deny_until_global" in switch.variables
    push.show([Denial(scope="global", rule="r", percent=0)], [])
    await turn(push)
    assert switch.variables["sidecar_deny_until_global"] == "0"


async def test_of_two_denials_the_wider_is_held(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    some = Denial(scope="global", rule="some", percent=20)
    push.show([some, CLOSED, Denial(scope="node", scope_value="fs1", rule="late")], [])
    await turn(push)
    assert switch.variables["sidecar_rule_global"] == "cpu"


async def test_an_overflow_has_its_route_and_takes_the_place_of_a_refusal(
    switch: Switch, times: Times
) -> None:
    push = times.pusher(switch)
    push.show([CLOSED], [])
    await turn(push)
    push.show([Denial(scope="global", verdict=OVERFLOW, route="ivr", rule="r")], [])
    await turn(push)
    assert switch.variables["sidecar_deny_until_global"] == "0"
    assert switch.variables["sidecar_overflow_until_global"] == "1795168004"
    assert switch.variables["sidecar_route_global"] == "ivr"


async def test_a_route_that_is_no_name_refuses_instead(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    push.show([Denial(scope="global", verdict=OVERFLOW, route="a b", rule="r")], [])
    await turn(push)
    assert "sidecar_deny_until_global" in switch.variables
    assert "sidecar_route_global" not in switch.variables


async def test_a_trunk_that_is_down_is_a_deadline_that_is_renewed_beside_all_others(
    switch: Switch, times: Times
) -> None:
    push = times.pusher(switch)
    push.show_down(["acme", "b.2", "no name\n"])
    await turn(push)
    down = {name for name in switch.variables if "_down_" in name}
    assert down == {"sidecar_down_until_trunk_acme", "sidecar_down_until_trunk_b.2"}
    assert switch.variables["sidecar_down_until_trunk_acme"] == "1795168004"
    push.show([CLOSED], [])
    times.passed = 1
    await turn(push)
    assert switch.variables["sidecar_down_until_trunk_acme"] == "1795168005"
    assert push.status().entries == 3
    push.show_down(["acme"])
    await turn(push)
    assert switch.variables["sidecar_down_until_trunk_b.2"] == "0"
    assert switch.variables["sidecar_deny_until_global"] == "1795168005"


async def test_the_same_trunks_again_are_nothing_to_hurry_for(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    push.show_down(["acme"])
    await turn(push)
    push._stirred.clear()
    push.show_down(["acme"])
    assert not push._stirred.is_set()
    push.show_down([])
    assert push._stirred.is_set()


async def test_what_is_open_again_is_set_to_0_at_once(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    push.show([CLOSED], [])
    await turn(push)
    push.show([], [])
    await turn(push)
    assert switch.variables["sidecar_deny_until_global"] == "0"
    times.passed = 1.0
    switch.lines.clear()
    await turn(push)
    assert not switch.sent("deny")


async def test_limits_and_rates_are_numbers_and_are_forgotten_when_they_are_gone(
    switch: Switch, times: Times
) -> None:
    push = times.pusher(switch, profiles={"a": "acme", "b": "acme"})
    rates = [RateLimit(scope="global", limit=10, rule="cps"), RateLimit(scope="global", limit=0)]
    caps = {("trunk", "acme"): 50, ("node", "fs1"): 0, ("node", "fs2"): 1}
    push.show([], rates, caps, {("trunk", "acme"): "cap"})
    await turn(push)
    held = switch.variables
    assert (held["sidecar_rate_global"], held["sidecar_rate_id_global"]) == ("1", "global")
    assert (held["sidecar_limit_global"], held["sidecar_limit_rule_global"]) == ("0", "other")
    for key in ("trunk_acme", "profile_a", "profile_b"):
        assert held[f"sidecar_limit_{key}"] == "50"
        # counted together
        assert held[f"sidecar_limit_id_{key}"] == "trunk_acme"
        assert held[f"sidecar_limit_rule_{key}"] == "cap"
    assert push.status().entries == 5
    push.show([], [])
    await turn(push)
    left = {"sidecar_limit_global", "sidecar_limit_profile_a", "sidecar_limit_trunk_acme"}
    assert not left & held.keys()
    assert "sidecar_rate_global" not in held
    assert push.status().entries == 0


async def test_limits_of_an_earlier_life_are_forgotten_at_the_first_round(
    switch: Switch, times: Times
) -> None:
    switch.variables = {"sidecar_limit_global": "5", "sidecar_rate_profile_external": "1"}
    await turn(times.pusher(switch))
    assert switch.variables == {"sidecar_up_until": "1795168004"}


async def test_no_more_keys_than_the_limit_are_held(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    many = [Denial(scope="trunk", scope_value=f"t{n}", rule="r") for n in range(MOST_KEYS + 10)]
    push.show(many, [])
    assert push.unheld == 13  # global, acme and its profile are keys too
    await turn(push)
    assert push.status().entries == MOST_KEYS - 3


@pytest.mark.parametrize(
    "more", [{"profiles": {"a b": "acme"}}, {"profiles": {"a": "x\n"}}, {"labels": {"$": Cohort()}}]
)
async def test_a_name_that_no_variable_can_have_is_refused(
    switch: Switch, times: Times, more: Mapping[str, object]
) -> None:
    with pytest.raises(ValueError, match="expected letters"):
        times.pusher(switch, **more)


@given(
    st.lists(
        st.builds(
            Denial,
            scope=st.sampled_from(["global", "trunk", "tenant", "node"]),
            scope_value=st.sampled_from(["", "acme", "blue", "fs1"]) | st.text(),
            verdict=st.sampled_from(["refuse", "overflow"]),
            code=st.integers(400, 699),
            reason=st.text(),
            rule=st.text(),
            route=st.text(),
            percent=st.integers(-1, 120),
        ),
        max_size=4,
    )
)
def test_whatever_is_shown_each_command_sets_one_variable_of_ours(denials: list[Denial]) -> None:
    switch, times = Switch(), Times()

    async def once() -> None:
        push = times.pusher(switch)
        push.show(denials, [], {(one.scope, one.scope_value): 5 for one in denials})
        await turn(push)

    asyncio.run(once())
    for line in switch.lines:
        esl.command(line)  # one line
        name, _, value = line.removeprefix("api global_setvar ").partition("=")
        assert name.startswith("sidecar_")
        assert not set(name) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
        )
        assert not set(value) & set('=$%{}"\\;')


# ------------------------------------------------------------------------------------------- time


async def test_deadlines_move_on_every_second_and_nothing_else_is_said(
    switch: Switch, times: Times
) -> None:
    push = times.pusher(switch)
    push.show([CLOSED], [])
    await turn(push)
    for second in (1.0, 2.0, 3.0):
        switch.lines.clear()
        times.passed = second - 0.1
        await turn(push)
        assert switch.lines == []
        times.passed = second
        await turn(push)
        until_then = f"={1795168004 + int(second)}"
        assert switch.lines == [
            f"api global_setvar sidecar_up_until{until_then}",
            f"api global_setvar sidecar_deny_until_global{until_then}",
        ]


async def test_all_is_said_again_now_and_then_for_a_switch_that_lost_it(
    switch: Switch, times: Times
) -> None:
    push = times.pusher(switch)
    push.show([CLOSED], [], {("global", ""): 9})
    await turn(push)
    switch.variables.clear()
    times.passed = REFRESH
    await turn(push)
    assert switch.variables["sidecar_code_global"] == "503"
    assert switch.variables["sidecar_limit_global"] == "9"


async def test_a_switch_that_was_away_is_told_everything(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    push.show([CLOSED], [])
    await turn(push)
    switch.why = "lost"
    times.passed = 1.0
    await turn(push)
    switch.why, switch.variables = "", {}
    times.passed = 2.0
    await turn(push)
    assert switch.variables["sidecar_code_global"] == "503"
    assert switch.variables["sidecar_deny_until_global"] == "1795168006"


async def test_a_switch_that_is_away_is_asked_once_a_second(switch: Switch, times: Times) -> None:
    switch.why = "not-connected"
    push = times.pusher(switch)
    push.show([CLOSED], [])
    for tenth in range(30):
        times.passed = tenth / 10
        push.show([CLOSED], [])
        await turn(push)
    assert len(switch.lines) == 3
    assert push.status().failed == 3


async def test_not_all_commands_wait_for_answers_at_one_time(switch: Switch, times: Times) -> None:
    push = times.pusher(switch)
    push.show([Denial(scope="trunk", scope_value=f"t{n}", rule="r") for n in range(200)], [])
    await turn(push)
    assert switch.most_waiting == WINDOW
    assert len(switch.sent("deny_until")) == 200


# ------------------------------------------------------------------------------------------ state


async def test_the_state_says_how_it_is(
    switch: Switch, times: Times, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sipsidecar.freeswitch")
    push = times.pusher(switch)
    state = push.status()
    assert (state.up, state.since, state.rtt_ms) == (False, None, None)
    assert state.error == "nothing was pushed yet"
    push.show([CLOSED], [])
    await turn(push)
    times.passed = 0.5
    state = push.status()
    assert (state.name, state.kind, state.up, state.error) == ("fs1", "freeswitch", True, None)
    assert (state.entries, state.failed, state.since) == (1, 0, 0.5)
    assert state.pushed == len(switch.lines)
    assert state.rtt_ms is not None
    assert 0 < state.rtt_ms < 1000
    assert [record.message for record in caplog.records] == ["FreeSWITCH fs1: admission is pushed"]


@pytest.mark.parametrize(
    ("why", "said", "error"),
    [
        ("not-connected", None, "it is not connected"),
        ("timeout", None, "it does not answer"),
        ("busy", None, "too many commands wait for it"),
        ("lost", None, "the connection broke"),
        ("new", None, "SwitchUnavailable"),
        (
            "",
            esl.Reply("command/reply", "-ERR permission denied", ok=False),
            "its user may not run global_setvar (esl-allowed-api)",
        ),
        ("", esl.Reply("api/response", "-USAGE", ok=False), "it refuses to set a variable"),
    ],
)
async def test_why_nothing_is_pushed_is_said_once_in_words(
    switch: Switch,
    times: Times,
    caplog: pytest.LogCaptureFixture,
    why: str,
    said: esl.Reply | None,
    error: str,
) -> None:
    switch.why, switch.said = why, said
    push = times.pusher(switch)
    for second in range(3):
        times.passed = float(second)
        await turn(push)
    state = push.status()
    assert (state.up, state.error, state.failed, state.since) == (False, error, 3, 2.0)
    (record,) = caplog.records
    assert record.message == f"FreeSWITCH fs1: admission is not pushed: {error}"


async def test_a_failure_in_the_middle_leaves_the_rest_for_the_next_second(
    switch: Switch, times: Times
) -> None:
    push = times.pusher(switch)
    push.show([CLOSED], [])
    await turn(push)
    push.show([Denial(scope="trunk", scope_value=f"t{n}", rule="r") for n in range(100)], [])
    switch.why = "timeout"
    switch.lines.clear()
    await turn(push)
    assert len(switch.lines) == WINDOW
    assert push.status().error == "it does not answer"


# ------------------------------------------------------------------- against a switch, as a task


@contextlib.asynccontextmanager
async def pushed(setup: Setup, *, user: str = "") -> AsyncIterator[tuple[FakeSwitch, SwitchPush]]:
    async with FakeSwitch(setup) as fake:
        client = FreeSwitch(
            "fs1",
            *fake.address,
            password="secret",  # noqa: S106
            user=user,
            deliver=lambda *_: None,
            pause=lambda _: asyncio.sleep(0.01),
        )
        push = SwitchPush(
            "fs1",
            client.command,
            profiles={"external": "acme"},
            lease_seconds=3,
            connections=lambda: client.counters["connected"],
        )
        tasks = [asyncio.create_task(client.run()), asyncio.create_task(push.run())]
        try:
            yield fake, push
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def held(fake: FakeSwitch, name: str) -> Callable[[], bool]:
    return lambda: fake.core.variables.get(name, "0") != "0"


async def test_a_restricted_user_pushes_what_changes_without_waiting_for_the_second() -> None:
    users = {"sidecar@sipsidecar": User("secret", "HEARTBEAT", "global_setvar show version")}
    async with pushed(Setup(users=users), user="sidecar@sipsidecar") as (fake, push):
        await until(lambda: push.status().up)
        loop = asyncio.get_running_loop()
        began = loop.time()
        push.show([CLOSED], [])
        await until(held(fake, "sidecar_deny_until_global"))
        push.show([], [])
        await until(lambda: fake.core.variables["sidecar_deny_until_global"] == "0")
        assert loop.time() - began < 0.5
        assert fake.core.variables["sidecar_code_global"] == "503"


async def test_a_user_without_the_right_is_named() -> None:
    users = {"sidecar@sipsidecar": User("secret", "HEARTBEAT", "show version")}
    async with pushed(Setup(users=users), user="sidecar@sipsidecar") as (fake, push):
        await until(lambda: "global_setvar" in (push.status().error or ""))
        assert not fake.core.variables


async def test_a_switch_that_restarts_is_told_again() -> None:
    async with pushed(Setup(password="secret")) as (fake, push):  # noqa: S106
        push.show([CLOSED], [], {("global", ""): 7})
        await until(held(fake, "sidecar_deny_until_global"))
        await fake.restart(kill=True)
        assert not fake.core.variables
        # between two renewals, so that none of them failed
        await until(held(fake, "sidecar_deny_until_global"))
        assert fake.core.variables["sidecar_limit_global"] == "7"
        assert fake.core.variables["sidecar_code_global"] == "503"
