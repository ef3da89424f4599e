"""Which values are new to whom, and which addresses DNS does not give any more."""

import pytest

from sipsidecar.signals.newcomers import ARM_CALLS, Directory, Newcomers
from sipsidecar.signals.shares import DAY, HOUR, MINUTE

T0 = 1_795_000_000_000_000


def taught(newcomers: Newcomers, owner: str = "acme", value: str = "192.0.2.1") -> None:
    for _ in range(ARM_CALLS):
        assert not newcomers.receive(owner, value, T0)


def test_what_is_met_while_an_owner_is_new_itself_is_not_new() -> None:
    newcomers = Newcomers()
    for number in range(ARM_CALLS):
        assert newcomers.receive("acme", f"192.0.2.{number % 250}", T0) is False


def test_what_comes_later_is_new_for_a_day() -> None:
    newcomers = Newcomers()
    taught(newcomers)
    assert newcomers.receive("acme", "192.0.2.9", T0, answered=True) is True
    assert newcomers.receive("acme", "192.0.2.1", T0) is False
    assert newcomers.receive("acme", "192.0.2.9", T0 + DAY - 1) is True
    found = newcomers.of("acme", T0 + 1)
    assert list(found) == ["192.0.2.1", "192.0.2.9"]
    assert found["192.0.2.9"]._asdict() == {
        "new": True, "first_at": T0, "idle_days": None, "calls": 2, "answered": 1
    }  # fmt: skip
    assert newcomers.receive("acme", "192.0.2.9", T0 + DAY) is False


def test_what_was_away_for_a_week_is_new_again_and_says_so() -> None:
    newcomers = Newcomers()
    newcomers.receive("acme", "192.0.2.2", T0)
    taught(newcomers)
    back = T0 + 8 * DAY
    assert newcomers.receive("acme", "192.0.2.2", back) is True
    found = newcomers.of("acme", back)
    assert list(found) == ["192.0.2.2"]
    assert (found["192.0.2.2"].idle_days, found["192.0.2.2"].calls) == (8, 1)


def test_what_was_away_for_a_month_is_forgotten() -> None:
    newcomers = Newcomers()
    newcomers.receive("acme", "192.0.2.2", T0)
    taught(newcomers)
    newcomers.receive("acme", "192.0.2.1", T0 + 30 * DAY)
    newcomers.grow_old(T0 + 31 * DAY)
    newcomers.grow_old(T0 + 31 * DAY)
    assert newcomers.receive("acme", "192.0.2.2", T0 + 31 * DAY) is True
    assert newcomers.of("acme", T0 + 31 * DAY)["192.0.2.2"].idle_days is None
    newcomers.grow_old(T0 + 90 * DAY)
    assert newcomers.of("acme", T0 + 90 * DAY) == {}


def test_counts_fade() -> None:
    newcomers = Newcomers()
    newcomers.grow_old(T0)
    taught(newcomers)
    newcomers.grow_old(T0 + DAY)
    assert newcomers.of("acme", T0 + DAY)["192.0.2.1"].calls == round(ARM_CALLS * 6 / 7)


def test_owners_and_values_are_bounded_and_a_value_over_it_stays_new() -> None:
    newcomers = Newcomers(max_owners=1, max_values=2)
    newcomers.receive("acme", "192.0.2.2", T0)
    newcomers.receive("acme", "192.0.2.3", T0)
    assert newcomers.receive("acme", "192.0.2.4", T0) is None
    assert newcomers.receive("other", "192.0.2.4", T0) is None
    taught(newcomers, value="192.0.2.2")
    assert newcomers.receive("acme", "192.0.2.4", T0) is True
    assert newcomers.folded == 3


A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def polled(directory: Directory, answers: list[set[str]], at: int = T0) -> int:
    for answer in answers:
        directory.receive("acme", frozenset(answer), at)
        at += 5 * MINUTE
    return at


def test_of_a_trunk_without_dns_nothing_is_known() -> None:
    directory = Directory()
    directory.receive("acme", frozenset(), T0)
    assert directory.lists("acme", A, T0) is None
    assert directory.left("acme", A) is None


def test_an_address_that_dns_never_gave_is_not_in_it() -> None:
    directory = Directory()
    now = polled(directory, [{A}])
    assert directory.lists("acme", A, now) is True
    assert directory.lists("acme", B, now) is False


def test_an_address_that_left_dns_is_out_of_it_after_an_hour() -> None:
    directory = Directory()
    left = polled(directory, [{A, B}] * 20)
    now = polled(directory, [{A}] * 10, left)
    assert directory.lists("acme", B, now) is True
    now = polled(directory, [{A}] * 4, now)
    assert directory.lists("acme", B, now) is False
    assert directory.left("acme", B) == left - 5 * MINUTE
    polled(directory, [{A, B}], now)
    assert directory.lists("acme", B, now) is True


def test_an_address_that_is_given_now_and_then_stays_in_it_for_three_times_as_long() -> None:
    directory = Directory()
    turn = [{A}] * 11 + [{B}]
    now = polled(directory, turn * 3)
    now = polled(directory, [{A}] * 30, now)
    assert directory.lists("acme", B, now) is True
    now = polled(directory, [{A}] * 10, now)
    assert directory.lists("acme", B, now) is False


def test_when_dns_is_silent_nothing_leaves_it() -> None:
    directory = Directory()
    now = polled(directory, [{A, B}] * 3)
    directory.receive("acme", frozenset(), now)
    assert directory.lists("acme", B, now + 5 * HOUR) is True
    assert directory.lists("acme", C, now + 5 * HOUR) is None


def test_what_dns_says_is_bounded() -> None:
    directory = Directory(max_trunks=1, max_addresses=2)
    now = polled(directory, [{A, B}, {A, B, C}])
    assert directory.lists("acme", C, now) is None
    directory.receive("bell", frozenset({A}), now)
    assert directory.lists("bell", A, now) is None
    assert directory.folded == 2


@pytest.mark.parametrize(("days", "room"), [(20, False), (32, True)])
def test_an_address_that_left_dns_is_remembered_for_a_month(days: int, room: bool) -> None:
    directory = Directory(max_addresses=2)
    polled(directory, [{A, B}])
    polled(directory, [{A}, {A, C}], T0 + days * DAY)
    assert (directory.left("acme", C) is not None) is room
