import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from listeners import until
from sipsidecar.edges.kamailio import dispatching
from sipsidecar.edges.kamailio.dispatching import TABLE, Dispatching, Left

A, B, C = "sip:192.0.2.1:5060", "sip:192.0.2.2:5060", "sip:192.0.2.3:5060"


class Kamailio:
    """A dispatcher and a hash table, as far as they are asked; entries expire by `pass_time`."""

    def __init__(self, **flags: str) -> None:
        self.sets: dict[int, dict[str, str]] = {
            1: {A: flags.get("a", "AX"), B: flags.get("b", "AX")},
            2: {C: flags.get("c", "AX")},
        }
        self.held: dict[str, float] = {}
        self.now = 0.0
        self.calls: list[tuple[str, list[Any]]] = []
        self.silent = False
        self.deaf = False
        self.has_table = True
        self.answers: dict[str, Any] = {}
        """What it says to a method, instead."""
        self.before: dict[str, Callable[[], None]] = {}
        """What happens before a method, once."""
        self.heard: Callable[[bytes], None] = lambda _: None
        self.broke: Callable[[str], None] = lambda _: None
        self.opened = self.closed = 0

    async def open(
        self, heard: Callable[[bytes], None], broke: Callable[[str], None]
    ) -> "Kamailio":
        self.heard, self.broke = heard, broke
        self.opened += 1
        return self

    def close(self) -> None:
        self.closed += 1

    def send(self, call: bytes) -> bool:
        if self.deaf:
            return False
        said = json.loads(call)
        method, params = said["method"], said["params"]
        self.calls.append((method, params))
        self.before.pop(method, lambda: None)()
        if not self.silent:
            result = self.answers[method] if method in self.answers else self.do(method, params)
            key = "error" if isinstance(result, Exception) else "result"
            value = {"code": 500, "message": str(result)} if key == "error" else result
            answer = json.dumps({"jsonrpc": "2.0", key: value, "id": said["id"]}).encode()
            asyncio.get_running_loop().call_soon(self.heard, answer)
        return True

    def do(self, method: str, params: list[Any]) -> Any:
        if method == "dispatcher.list":
            return {
                "NRSETS": len(self.sets),
                "RECORDS": [
                    {
                        "SET": {
                            "ID": number,
                            "TARGETS": [
                                {"DEST": {"URI": uri, "FLAGS": flags, "PRIORITY": 0}}
                                for uri, flags in targets.items()
                            ],
                        }
                    }
                    for number, targets in self.sets.items()
                ],
            }
        if method == "dispatcher.set_state":
            state, number, uri = params
            if uri not in self.sets.get(number, {}):
                return Exception("State Update Failed")
            self.sets[number][uri] = state.upper()
            return "Ok. Dispatcher state updated."
        assert params[0] == TABLE
        if not self.has_table:
            return Exception("No such htable")
        if method == "htable.setxi":
            self.held[params[1]] = self.now + params[3]
            return "Ok."
        if params[1] not in self.held:
            return Exception("Key not found in htable.")
        assert method == "htable.delete"
        del self.held[params[1]]
        return "Ok."

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for key in [key for key, end in self.held.items() if end <= self.now]:
            del self.held[key]
            number, _, uri = key.partition("|")
            self.do("dispatcher.set_state", ["ax", int(number), uri])

    def flags(self, uri: str) -> str:
        return next(targets[uri] for targets in self.sets.values() if uri in targets)

    def count(self, method: str) -> int:
        return sum(called == method for called, _ in self.calls)


def telling(kamailio: Kamailio, **more: Any) -> Dispatching:
    made = Dispatching("edge", "udp:127.0.0.1:8033", **({"lease_seconds": 10} | more))
    made._open = kamailio.open
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "PATIENCE", 0.03)


async def shown(kamailio: Kamailio, *down: tuple[int, str], turns: int = 1) -> Dispatching:
    made = telling(kamailio)
    made.show(down)
    for _ in range(turns):
        await made._turn()
    return made


# ------------------------------------------------------------------------------------- out and back


async def test_what_is_down_is_out_behind_a_lease_and_nothing_else_is() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    assert (kamailio.flags(A), kamailio.flags(B), kamailio.flags(C)) == ("IX", "AX", "AX")
    assert kamailio.held == {f"1|{A}": 10.0}
    # The lease first: at no moment a death would leave it out.
    methods = [method for method, _ in kamailio.calls]
    assert methods.index("htable.setxi") < methods.index("dispatcher.set_state")
    state = made.status()
    assert (state.kind, state.up, state.error, state.entries) == ("dispatcher", True, None, 1)
    assert (made.taken_out, made.out(), made.left()) == (1, [(1, A)], [])


async def test_it_is_renewed_and_not_set_again_while_it_is_out() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    for _ in range(30):
        kamailio.pass_time(1)
        await made._turn()
    assert kamailio.flags(A) == "IX"
    assert kamailio.count("dispatcher.set_state") == 1


async def test_without_us_it_comes_back_after_the_lease() -> None:
    kamailio = Kamailio()
    await shown(kamailio, (1, A))
    kamailio.pass_time(9)
    assert kamailio.flags(A) == "IX"
    kamailio.pass_time(1)
    assert kamailio.flags(A) == "AX"


async def test_what_is_up_again_is_back_and_its_lease_gone_after_that() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    made.show([])
    await made._turn()
    assert (kamailio.flags(A), kamailio.held, made.out()) == ("AX", {}, [])
    last = [method for method, _ in kamailio.calls[-2:]]
    assert last == ["dispatcher.set_state", "htable.delete"]
    assert made.status().entries == 0


async def test_a_uri_is_the_same_in_any_case() -> None:
    kamailio = Kamailio()
    made = telling(kamailio)
    made.show([(1, A.upper())])
    await made._turn()
    assert kamailio.flags(A) == "IX"


async def test_a_uri_that_cannot_be_in_a_key_is_not_sent() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, 'sip:a"b'), (1, "sip:a|b"), (1, "sip:a b"))
    assert kamailio.count("dispatcher.list") == 0
    assert made.status().up


async def test_there_are_no_more_out_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "MOST_OUT", 40)
    kamailio = Kamailio()
    many = {f"sip:192.0.2.{number}": "AX" for number in range(100)}
    kamailio.sets[3] = many
    made = await shown(kamailio, *((3, uri) for uri in many))
    assert (len(made.out()), len(kamailio.held)) == (40, 40)
    assert list(many.values()).count("IX") == 40


async def test_a_reload_of_the_dispatcher_is_followed_by_setting_it_again() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    kamailio.sets[1][A] = "AX"
    await made._turn()
    assert (kamailio.flags(A), made.taken_out, made.overruled) == ("IX", 2, 0)


async def test_a_restart_of_kamailio_is_followed_by_setting_it_again() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    kamailio.sets[1][A] = "AX"
    kamailio.held.clear()
    await made._turn()
    assert kamailio.flags(A) == "IX"
    assert f"1|{A}" in kamailio.held


# ------------------------------------------------------------------------------- what is not ours


async def test_the_last_one_in_use_of_a_set_stays_in() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (2, C), turns=3)
    assert kamailio.flags(C) == "AX"
    assert made.left() == [Left(2, C, "last")]
    assert (made.spared, made.taken_out) == (1, 0)
    assert kamailio.held == {}


async def test_of_two_that_are_down_one_stays_in() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A), (1, B), turns=3)
    assert sorted(kamailio.sets[1].values()) == ["AX", "IX"]
    assert made.spared == 1


async def test_when_all_others_are_gone_ours_comes_back_and_goes_when_one_is_there_again() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    kamailio.sets[1][B] = "IP"
    await made._turn()
    assert (kamailio.flags(A), kamailio.held, made.out()) == ("AX", {}, [])
    # Out and spared, and then left as the last.
    assert made.spared >= 1
    await made._turn()
    assert kamailio.flags(A) == "AX"
    kamailio.sets[1][B] = "AP"
    await made._turn()
    assert kamailio.flags(A) == "IX"


async def test_one_that_is_trying_is_in_use() -> None:
    kamailio = Kamailio(a="TX", b="TX")
    await shown(kamailio, (1, A))
    assert (kamailio.flags(A), kamailio.flags(B)) == ("IX", "TX")


@pytest.mark.parametrize(
    ("flags", "why"),
    [("AP", "pinged"), ("TP", "pinged"), ("IP", "taken"), ("DX", "taken"), ("IX", "taken")],
)
async def test_what_kamailio_pings_or_others_took_out_is_left_to_them(flags: str, why: str) -> None:
    kamailio = Kamailio(a=flags)
    made = await shown(kamailio, (1, A), turns=2)
    assert made.left() == [Left(1, A, why)]
    assert kamailio.count("dispatcher.set_state") == 0
    made.show([])
    await made._turn()
    assert kamailio.flags(A) == flags
    assert made.left() == []


@pytest.mark.parametrize("flags", ["AP", "DX", "IP"])
async def test_one_that_others_changed_while_it_was_out_is_theirs(flags: str) -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    kamailio.sets[1][A] = flags
    for _ in range(3):
        await made._turn()
    assert (kamailio.flags(A), made.overruled, made.out()) == (flags, 1, [])
    assert kamailio.held == {}
    made.show([])
    await made._turn()
    assert kamailio.flags(A) == flags


async def test_one_that_came_back_by_itself_as_the_last_is_not_set_again() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    kamailio.sets[1].update({A: "AX", B: "DX"})
    await made._turn()
    assert (kamailio.flags(A), made.out(), kamailio.held) == ("AX", [], {})


async def test_a_destination_that_is_not_there_is_an_error_in_the_status() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, "sip:nobody"), (7, A), (1, A))
    assert [left.why for left in made.left()] == ["missing", "missing"]
    state = made.status()
    assert (state.up, state.error) == (True, "2 destinations are in none of its sets, or refused")
    assert kamailio.flags(A) == "IX"


async def test_one_that_goes_missing_while_it_is_out_is_forgotten() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    del kamailio.sets[1][A]
    await made._turn()
    assert (made.out(), kamailio.held) == ([], {})


async def test_a_refusal_is_of_one_and_not_of_the_others() -> None:
    kamailio = Kamailio()
    kamailio.sets[1]["sip:d"] = "AX"
    real = kamailio.do

    def refusing(method: str, params: list[Any]) -> Any:
        if method == "dispatcher.set_state" and params[2] == A:
            return Exception("State Update Failed")
        return real(method, params)

    kamailio.do = refusing  # type: ignore[method-assign]
    made = await shown(kamailio, (1, A), (1, B))
    assert made.left() == [Left(1, A, "refused")]
    assert kamailio.flags(B) == "IX"


async def test_no_sets_at_all_are_none() -> None:
    kamailio = Kamailio()
    kamailio.answers["dispatcher.list"] = Exception("No Destination Sets")
    made = await shown(kamailio, (1, A))
    assert made.left() == [Left(1, A, "missing")]


# -------------------------------------------------------------------------------------- how it goes


async def test_nothing_to_do_is_a_look_at_the_table_alone() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio)
    assert kamailio.calls == [("htable.get", [TABLE, "up"])]
    assert made.status().up


@pytest.mark.parametrize("down", [[], [(1, A)]])
async def test_a_kamailio_without_the_table_is_named(
    down: list[tuple[int, str]], caplog: pytest.LogCaptureFixture
) -> None:
    kamailio = Kamailio()
    kamailio.has_table = False
    made = await shown(kamailio, *down, turns=2)
    assert made.status().error == "has no table sidecar_out: is sipsidecar-trunks.cfg included?"
    assert kamailio.flags(A) == "AX"
    # Said once.
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Ok.", "answers what is no list of destinations"),
        ({"RECORDS": [{}]}, "answers what is no list of destinations"),
        (
            {"RECORDS": [{"SET": {"ID": "x", "TARGETS": []}}]},
            "answers what is no list of destinations",
        ),
        (Exception("Method\x1bNot Found"), "refuses: Method\\x1bNot Found"),
    ],
)
async def test_a_kamailio_without_a_dispatcher_is_told_nothing(said: Any, error: str) -> None:
    kamailio = Kamailio()
    kamailio.answers["dispatcher.list"] = said
    made = await shown(kamailio, (1, A))
    assert (made.status().up, made.status().error) == (False, error)
    assert kamailio.held == {}


async def test_a_lease_that_is_refused_leaves_the_destination_in() -> None:
    kamailio = Kamailio()
    kamailio.answers["htable.setxi"] = Exception("Failed to set the item")
    made = await shown(kamailio, (1, A))
    assert (made.status().up, kamailio.flags(A)) == (False, "AX")
    assert made.status().error == "refuses: Failed to set the item"


async def test_silence_is_an_error_and_what_was_out_is_found_out_anew() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    kamailio.silent = True
    await made._turn()
    state = made.status()
    assert (state.up, state.error, state.entries) == (False, "does not answer", 0)
    kamailio.pass_time(20)
    assert kamailio.flags(A) == "AX"
    kamailio.silent = False
    await made._turn()
    assert (kamailio.flags(A), made.status().up) == ("IX", True)


async def test_an_answer_that_was_lost_is_no_state_that_is_lost() -> None:
    kamailio = Kamailio()

    def silence() -> None:
        kamailio.silent = True

    kamailio.before["dispatcher.set_state"] = silence
    made = await shown(kamailio, (1, A))
    assert not made.status().up
    kamailio.silent = False
    await made._turn()
    assert kamailio.flags(A) == "IX"
    made.show([])
    await made._turn()
    assert (kamailio.flags(A), kamailio.held) == ("AX", {})


async def test_a_line_that_takes_nothing_or_breaks_is_opened_again() -> None:
    kamailio = Kamailio()
    made = await shown(kamailio, (1, A))
    kamailio.deaf = True
    await made._turn()
    assert made.status().error == "takes nothing"
    kamailio.deaf = False
    kamailio.before["dispatcher.list"] = lambda: kamailio.broke("closed the connection")
    await made._turn()
    assert made.status().error == "closed the connection"
    await made._turn()
    assert made.status().up
    assert kamailio.opened == 3


async def test_what_is_no_json_ends_the_line() -> None:
    kamailio = Kamailio()
    kamailio.silent = True
    kamailio.before["dispatcher.list"] = lambda: kamailio.heard(b"\xff")
    made = await shown(kamailio, (1, A))
    assert made.status().error == "answers what is no JSON-RPC"


async def test_an_answer_to_nothing_is_passed_over() -> None:
    kamailio = Kamailio()
    kamailio.before["dispatcher.list"] = lambda: kamailio.heard(b'{"id": 77, "result": 1}')
    assert (await shown(kamailio, (1, A))).status().up


async def test_nobody_there_is_said() -> None:
    made = telling(Kamailio())

    async def refuse(*_: object) -> Any:
        raise ConnectionRefusedError

    made._open = refuse
    await made._turn()
    assert made.status().error == "nobody listens there"


@pytest.mark.parametrize("address", ["", "udp:nowhere", "tcp:127.0.0.1:1", "http://"])
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Dispatching("edge", address)


# ------------------------------------------------------------------------------------------- running


@contextlib.asynccontextmanager
async def running(made: Dispatching) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(made.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_is_shown_is_done_without_waiting_for_the_next_turn() -> None:
    kamailio = Kamailio()
    made = telling(kamailio)
    async with running(made):
        await until(lambda: made.status().up)
        made.show([(1, A)])
        await until(lambda: kamailio.flags(A) == "IX")
        made.show([])
        await until(lambda: kamailio.flags(A) == "AX")


async def test_at_the_end_all_is_back_that_is_still_ours() -> None:
    kamailio = Kamailio()
    kamailio.sets[1][C] = "AX"
    made = telling(kamailio)
    async with running(made):
        made.show([(1, A), (1, B)])
        await until(lambda: len(made.out()) == 2)
        kamailio.sets[1][B] = "DX"
    assert (kamailio.flags(A), kamailio.flags(B)) == ("AX", "DX")
    assert kamailio.held == {}
    assert (made.status().up, made.status().error) == (False, "stopped")
    assert kamailio.closed == 1


async def test_an_end_without_an_answer_does_not_take_long() -> None:
    kamailio = Kamailio()
    made = telling(kamailio)
    async with running(made):
        made.show([(1, A)])
        await until(lambda: made.out() == [(1, A)])
        kamailio.silent = True
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 0.5
    kamailio.pass_time(10)
    assert kamailio.flags(A) == "AX"


async def test_who_is_away_is_asked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "EVERY", 0.1)
    kamailio = Kamailio()
    kamailio.deaf = True
    made = telling(kamailio)
    async with running(made):
        for number in range(20):
            made.show([(1, A)] if number % 2 else [])
            await asyncio.sleep(0.02)
        assert 2 <= kamailio.opened <= 6


async def test_it_is_renewed_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "EVERY", 0.02)
    kamailio = Kamailio()
    made = telling(kamailio)
    async with running(made):
        made.show([(1, A)])
        await until(lambda: kamailio.count("htable.setxi") >= 4)
        assert made.status().rtt_ms is not None
        assert made.status().since is not None
