import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sipsidecar.calls.events import OTHER, Cohort
from sipsidecar.signals.leases import (
    DOUBT,
    LATE,
    MAX_RETRIES,
    MAX_SAME,
    OVERLAP,
    TURN,
    WHYS,
    Alive,
    Lease,
    Leases,
)
from sipsidecar.signals.rules import SCOPES

ACME = Cohort(tenant="acme", trunk="west", direction="in", region="eu", node="edge")
BETA = Cohort(tenant="beta", trunk="west", direction="out", region="us", node="edge")
ALL = ("global", "")


class World:
    """Leases, and the call table that they ask."""

    def __init__(self, **limits: Any) -> None:
        self.table: dict[str, Alive] = {}
        self.leases = Leases(self.table.get, **limits)
        self.now = 1000.0

    def live(self, call_id: str, *, media: bool = False) -> None:
        """The table knows the call, and had a sign of its life just now."""
        self.table[call_id] = Alive(over=False, last_now=self.now, media=media)

    def ended(self, call_id: str) -> None:
        self.table[call_id] = Alive(over=True, last_now=self.now, media=False)

    def ask(
        self, call_id: str, cseq: int | None = 1, tag: str = "t", cohort: Cohort = ACME
    ) -> Lease | None:
        return self.leases.admit(call_id, tag, cseq, cohort, self.now)

    def see(self, call_id: str, state: str = "trying", cohort: Cohort = ACME) -> None:
        self.leases.see(call_id, state, cohort, self.now)

    def over(self, call_id: str) -> int:
        return self.leases.over(call_id, self.now)

    def run(self, seconds: float) -> None:
        """Let time pass; each deadline is met when it is due."""
        until = self.now + seconds
        while (due := self.leases.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.leases.handle_timer(self.now)
        self.now = until

    @property
    def count(self) -> int:
        return self.leases.active[ALL]

    def check(self) -> None:
        """The counts are those of the leases, one by one."""
        check(self.leases)


def check(leases: Leases) -> None:
    counted: Counter[tuple[str, str]] = Counter()
    for lease in leases:
        counted[ALL] += 1
        counted.update((scope, getattr(lease.cohort, scope)) for scope in SCOPES)
    assert dict(leases.active) == dict(counted)
    assert all(count > 0 for count in leases.active.values())
    assert len(leases) == counted[ALL]
    assert leases.pending == sum(not lease.seen and not lease.doubted for lease in leases)


# --------------------------------------------------------------------------------- begin, seen, over


def test_the_scopes_of_rules_are_the_first_dimensions_of_cohorts() -> None:
    assert [*Cohort._fields] == [*SCOPES, "carrier", "agent"]


def test_an_admission_counts_at_once_under_each_of_its_scopes() -> None:
    world = World()
    world.ask("a")
    assert world.leases.active == {
        ALL: 1,
        ("tenant", "acme"): 1,
        ("trunk", "west"): 1,
        ("direction", "in"): 1,
        ("region", "eu"): 1,
        ("node", "edge"): 1,
    }
    assert (len(world.leases), world.leases.pending) == (1, 1)


def test_what_matches_nothing_counts_as_other() -> None:
    world = World()
    world.ask("a", cohort=Cohort(tenant="acme"))
    assert world.leases.active["trunk", OTHER] == 1


def test_a_call_that_was_asked_about_is_counted_once_when_it_is_seen() -> None:
    world = World()
    world.ask("a")
    for state in ("trying", "ringing", "answered", "answered"):
        world.see("a", state)
        assert world.count == 1
    assert world.leases.pending == 0
    assert world.over("a") == 1
    assert not world.leases.active
    assert world.leases.ended == {"over": 1}


def test_a_call_that_was_not_asked_about_counts_from_when_it_is_seen() -> None:
    world = World()
    world.see("a")
    (lease,) = world.leases
    assert (lease.seen, lease.asked, lease.from_tag, lease.cseq) == (True, False, "", None)
    assert (world.count, world.leases.pending) == (1, 0)


def test_an_end_frees_all_that_a_call_id_holds() -> None:
    world = World()
    for tag in "xyz":
        world.ask("a", tag=tag)
    world.ask("b")
    world.run(OVERLAP)
    assert world.over("a") == 3
    assert world.over("a") == 0
    assert world.count == 1
    world.check()


def test_an_end_is_counted_under_its_reason() -> None:
    world = World()
    world.ask("a")
    world.leases.over("a", world.now, "released")
    assert world.leases.ended == {"released": 1}
    assert set(world.leases.ended) <= set(WHYS)


# ------------------------------------------------------------------------------- the same question?


def test_the_same_question_holds_its_lease_and_is_counted_once() -> None:
    world = World()
    assert not world.leases.holds("a", "t", 1)
    lease = world.ask("a")
    for _ in range(20):
        assert world.leases.holds("a", "t", 1)
        assert world.ask("a") is lease
    assert world.count == 1


def test_another_from_tag_is_another_call() -> None:
    world = World()
    world.ask("a", tag="x")
    assert not world.leases.holds("a", "y", 1)
    world.ask("a", tag="y")
    assert world.count == 2


def test_the_retry_after_a_challenge_holds_the_lease_and_so_does_a_late_copy_of_the_first() -> None:
    world = World()
    world.ask("a", cseq=1)
    assert world.leases.holds("a", "t", 2)
    assert world.leases.holds("a", "t", 1)
    assert world.leases.holds("a", "t", 2)


def test_an_unknown_cseq_is_the_same() -> None:
    world = World()
    world.ask("a", cseq=5)
    assert world.leases.holds("a", "t", None)
    world.ask("b", cseq=None)
    assert world.leases.holds("b", "t", None)
    assert world.leases.holds("b", "t", 7)
    assert not world.leases.holds("b", "t", 6)  # from then on it is known


def test_only_so_many_higher_cseqs_are_retries() -> None:
    world = World()
    world.ask("a", cseq=1)
    held = [world.leases.holds("a", "t", cseq) for cseq in range(2, 20)]
    assert held == [True] * MAX_RETRIES + [False] * (18 - MAX_RETRIES)


def test_a_jump_of_the_cseq_admits_none_of_those_between() -> None:
    """Attack: one admitted call, one retry with a huge CSeq, then calls with all those below it."""
    world = World()
    world.ask("a", cseq=1)
    assert world.leases.holds("a", "t", 2**31 - 1)
    world.see("a", "answered")
    assert not any(world.leases.holds("a", "t", cseq) for cseq in range(2, 100))


def test_a_lower_cseq_that_was_never_asked_about_is_a_new_call() -> None:
    world = World()
    world.ask("a", cseq=5)
    assert not world.leases.holds("a", "t", 4)


def test_another_cseq_after_the_answer_is_a_new_call_and_counts_as_one() -> None:
    """Attack: an answered call's name is used again and again, to be admitted without a count."""
    world = World()
    world.ask("a", cseq=1)
    world.see("a", "answered")
    assert world.leases.holds("a", "t", 1)
    for cseq in range(2, 12):
        assert not world.leases.holds("a", "t", cseq)
        world.ask("a", cseq=cseq)
        world.see("a", "answered")
    assert world.count == 11
    world.check()


def test_an_old_state_that_comes_late_does_not_make_an_answered_call_unanswered() -> None:
    world = World()
    world.ask("a", cseq=1)
    world.see("a", "answered")
    world.see("a", "trying")
    assert not world.leases.holds("a", "t", 2)


def test_a_call_id_holds_so_many_leases_and_no_more() -> None:
    world = World()
    for n in range(MAX_SAME + 10):
        world.ask("a", tag=str(n))
    assert world.count == MAX_SAME
    assert world.leases.refused == 10
    assert world.leases.is_crowded("a")
    assert not world.leases.is_crowded("b")
    world.ask("b")
    assert world.count == MAX_SAME + 1


# ------------------------------------------------------------------------ HEP faster than the question


def test_a_call_that_was_seen_before_its_question_has_its_own_lease_and_keeps_it() -> None:
    world = World()
    world.see("a", "trying", Cohort(trunk="west"))
    assert not world.leases.holds("a", "t", 1)
    own = world.leases.own("a")
    assert own is not None
    assert world.ask("a", cohort=Cohort(tenant="acme")) is own
    assert world.count == 1
    assert own.cohort == Cohort(tenant="acme", trunk="west")
    assert world.leases.holds("a", "t", 1)
    assert world.leases.own("a") is None
    world.check()


def test_an_answered_call_is_the_one_that_a_question_is_about_only_if_it_is_young() -> None:
    """After a stop of this process HEP is read first, and questions of calls that passed come late."""
    world = World()
    world.see("a", "answered")
    world.see("b", "answered")
    assert world.leases.own("a") is not None
    world.ask("a")
    assert world.count == 2
    world.run(5.0)
    assert world.leases.own("b", world.now) is None
    world.ask("b")
    assert world.count == 3


def test_a_refusal_that_comes_too_late_leaves_a_call_that_passed() -> None:
    world = World()
    world.see("a", "ringing")
    own = world.leases.own("a")
    assert own is not None
    assert own.passed
    world.leases.refuse("a", world.now)
    assert world.count == 1
    world.see("a", "answered")
    assert world.count == 1


def test_a_refused_call_that_was_seen_already_holds_nothing() -> None:
    world = World()
    world.see("a")
    world.leases.refuse("a", world.now)
    assert world.count == 0
    assert world.leases.ended == {"refused": 1}


def test_a_refused_call_that_is_seen_afterwards_holds_nothing() -> None:
    world = World()
    world.leases.refuse("a", world.now)
    world.live("a")
    world.see("a")
    world.run(20)
    assert world.count == 0
    world.ended("a")
    world.over("a")
    world.run(2 * LATE)
    assert world.count == 0
    assert world.leases.remembered == 0


def test_a_refused_call_that_goes_on_all_the_same_is_counted() -> None:
    """The switch had waited too long for the answer, and let the call pass."""
    world = World()
    world.leases.refuse("a", world.now)
    world.see("a", "trying")
    assert world.count == 0
    world.see("a", "ringing")
    assert world.count == 1


def test_a_refusal_leaves_what_was_admitted_under_the_same_name() -> None:
    world = World()
    world.ask("a")
    world.leases.refuse("a", world.now)
    world.see("a")
    assert world.count == 1


def test_a_refused_call_may_ask_again() -> None:
    world = World()
    world.leases.refuse("a", world.now)
    world.ask("a", cseq=2)
    world.see("a")
    assert (world.count, world.leases.pending) == (1, 0)


# ------------------------------------------------------------------------------------------- cohorts


def test_what_was_asked_stays_but_for_what_was_other_in_it() -> None:
    world = World()
    world.ask("a", cohort=Cohort(tenant="acme", node="edge"))
    world.see("a", "trying", BETA)
    (lease,) = world.leases
    assert lease.cohort == Cohort("acme", "west", "out", "us", "edge")
    assert world.leases.active["trunk", "west"] == 1
    assert world.leases.active["trunk", OTHER] == 0
    world.see("a", "ringing", ACME)
    assert lease.cohort == Cohort("acme", "west", "out", "us", "edge")
    world.check()


def test_what_was_only_seen_is_what_was_seen_last() -> None:
    """An egress INVITE that is seen first is put right when the ingress is seen."""
    world = World()
    world.see("a", "trying", BETA)
    world.see("a", "trying", ACME)
    assert world.leases.active["tenant", "acme"] == 1
    assert world.leases.active["tenant", "beta"] == 0
    world.check()


# ------------------------------------------------------------------------------------ late and again


@pytest.mark.parametrize("state", ["trying", "ringing", "answered"])
@pytest.mark.parametrize("seconds", [0.0, 0.1, 10.0, 63.9])
def test_a_state_that_comes_late_does_not_bring_a_call_back(state: str, seconds: float) -> None:
    world = World()
    world.ask("a")
    world.live("a")
    world.see("a")
    world.run(OVERLAP)
    world.ended("a")
    world.over("a")
    world.run(seconds)
    world.see("a", state)
    assert world.count == 0
    world.run(2 * LATE)
    assert world.count == 0


def test_an_end_that_overtook_its_beginning_leaves_nothing_behind() -> None:
    world = World()
    assert world.over("a") == 0
    world.ended("a")
    world.see("a", "trying")
    world.see("a", "answered")
    assert world.count == 0
    world.run(LATE)
    assert (world.count, world.leases.remembered, world.leases.next_timer()) == (0, 0, None)


def test_a_new_question_begins_a_new_lease_at_once() -> None:
    world = World()
    world.ask("a")
    world.run(OVERLAP)
    world.over("a")
    assert not world.leases.holds("a", "t", 1)
    world.ask("a", cseq=2)
    assert world.count == 1
    world.see("a")
    assert (world.count, world.leases.pending) == (1, 0)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 63.0])
def test_a_call_that_goes_on_although_it_looked_ended_is_counted_at_once(seconds: float) -> None:
    """A refused caller tries again with the same Call-ID, or it was an attempt that was refused."""
    world = World()
    world.see("a")
    world.over("a")
    world.live("a")
    world.run(seconds)
    world.see("a", "answered", BETA)
    assert world.leases.active["tenant", "beta"] == world.count == world.leases.returned == 1
    (lease,) = world.leases
    assert lease.answered
    assert not lease.asked
    world.run(2 * LATE)
    assert world.count == 1


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_what_others_say_to_be_over_is_not_brought_back_by_a_table_that_knows_it_later(
    seconds: float,
) -> None:
    """The asker gives it back; its BYE is on its way here, or lost, and an old state is heard."""
    world = World()
    world.live("a")
    world.see("a")
    world.run(seconds)
    world.leases.over("a", world.now, "released")
    world.see("a", "answered")
    world.run(2 * LATE)
    assert world.count == 0


def test_a_released_call_that_shows_signs_of_life_is_counted_when_nothing_can_be_late() -> None:
    world = World()
    world.ask("a")
    world.leases.over("a", world.now, "released")
    world.run(1.0)
    world.live("a")
    world.see("a", "answered", BETA)
    assert world.count == 0
    world.run(LATE - 1)
    assert world.count == 1
    assert world.leases.active["tenant", "beta"] == 1


@pytest.mark.parametrize("retried", [False, True])
def test_an_end_that_comes_right_after_the_question_is_doubted(retried: bool) -> None:
    """HEP is slower: of a redirect the 302 comes after the question about the next INVITE; an attempt's
    refusal overtakes the caller's INVITE, and looks like the call's."""
    world = World()
    world.ask("a", cseq=1)
    world.live("a")
    world.see("a")
    if retried:
        world.run(5.0)
        assert world.leases.holds("a", "t", 2, world.now)
    world.run(0.2)
    world.ended("a")
    assert world.over("a") == world.over("a") == 0
    assert (world.count, world.leases.pending) == (1, 0)
    world.see("a")
    world.live("a")
    world.see("a", "ringing")
    world.run(OVERLAP)
    assert world.count == 1
    world.ended("a")
    assert world.over("a") == 1
    assert world.count == 0


def test_a_retry_after_a_doubted_end_waits_to_be_seen_like_any_call() -> None:
    world = World()
    world.ask("a", cseq=1)
    world.ended("a")
    world.over("a")
    world.run(DOUBT - 0.1)
    assert world.leases.holds("a", "t", 2, world.now)
    assert (world.count, world.leases.pending) == (1, 1)
    world.run(4.9)
    assert world.count == 1
    world.run(0.1)
    assert world.leases.ended == {"unseen": 1}


def test_a_doubted_end_that_nothing_proves_wrong_is_one() -> None:
    world = World()
    world.ask("a")
    world.ended("a")
    world.over("a")
    world.run(DOUBT - 0.1)
    assert world.count == 1
    world.run(0.1)
    assert world.count == 0
    assert world.leases.ended == {"over": 1}
    world.see("a")
    assert world.count == 0


def test_a_doubted_end_that_the_table_knows_nothing_of_is_none() -> None:
    world = World()
    world.ask("a")
    world.live("a")
    world.over("a")
    world.run(DOUBT)
    assert (world.count, world.leases.pending) == (1, 0)


def test_who_gives_a_place_back_is_not_doubted() -> None:
    world = World()
    world.ask("a")
    assert world.leases.over("a", world.now, "released") == 1


def test_the_end_of_an_answered_call_is_its_own() -> None:
    world = World()
    world.ask("a", cseq=1)
    world.leases.holds("a", "t", 2, world.now)
    world.see("a", "answered")
    assert world.over("a") == 1


def test_a_second_end_takes_back_what_was_said_since_the_first() -> None:
    world = World()
    world.see("a")
    world.over("a")
    world.run(1.0)
    world.see("a", "answered")
    world.over("a")
    world.live("a")
    world.run(2 * LATE)
    assert world.count == 0


def test_a_call_that_was_asked_about_anew_is_no_ended_one() -> None:
    world = World()
    world.over("a")
    world.ask("a")
    world.run(6)
    assert world.leases.ended == {"unseen": 1}
    world.see("a")
    assert world.count == 1


def test_a_second_end_is_remembered_as_long_as_the_first_was_and_behind_the_others() -> None:
    world = World()
    world.over("a")
    world.run(1)
    world.over("b")
    world.run(9)
    world.over("a")
    assert world.leases.next_timer() == 1001 + LATE
    world.run(LATE - 9)
    assert world.leases.next_timer() == 1010 + LATE


def test_names_of_ended_calls_are_bounded_and_those_forgotten_are_counted() -> None:
    world = World(max_leases=10)
    for n in range(100):
        world.over(str(n))
    assert world.leases.remembered == 10
    assert world.leases.forgotten == 90


# ------------------------------------------------------------------------------- pending and looking


def test_a_call_that_never_comes_gives_its_place_back() -> None:
    world = World(pending=5.0)
    world.ask("a")
    world.run(4.9)
    assert world.count == 1
    world.run(0.2)
    assert world.count == 0
    assert world.leases.ended == {"unseen": 1}


def test_a_pending_call_that_the_table_knows_counts_as_seen() -> None:
    world = World()
    world.ask("a")
    world.live("a")
    world.run(6)
    assert (world.count, world.leases.pending) == (1, 0)


def test_a_pending_call_that_is_over_by_then_gives_its_place_back() -> None:
    world = World()
    world.ask("a")
    world.ended("a")
    world.run(6)
    assert world.leases.ended == {"unseen": 1}


def test_a_call_that_is_seen_after_its_patience_counts_again() -> None:
    world = World()
    world.ask("a")
    world.run(6)
    world.see("a")
    assert world.count == 1


def test_a_call_whose_end_was_not_told_ends_when_it_is_looked_at() -> None:
    world = World(look=10.0)
    world.live("a")
    world.see("a")
    world.run(9)
    world.ended("a")
    assert world.count == 1
    world.run(1.1)
    assert world.count == 0
    assert world.leases.ended == {"over": 1}
    world.see("a", "answered")  # late
    assert world.count == 0


def test_a_call_that_the_table_does_not_know_any_more_ends() -> None:
    world = World()
    world.see("a")
    world.run(10)
    assert world.leases.ended == {"gone": 1}


def test_silence_ends_a_call_whose_media_was_heard_and_no_other() -> None:
    world = World(quiet=120.0, look=10.0)
    world.live("heard", media=True)
    world.live("unheard", media=False)
    world.see("heard", "answered")
    world.see("unheard", "answered")
    world.run(120)
    assert world.count == 2
    world.run(10)
    assert world.leases.ended == {"quiet": 1}
    assert [lease.call_id for lease in world.leases] == ["unheard"]


def test_silence_ends_nothing_where_it_is_not_asked_for() -> None:
    world = World(quiet=0.0)
    world.live("a", media=True)
    world.see("a", "answered")
    world.run(3600)
    assert world.count == 1


def test_a_silent_call_that_is_heard_again_counts_again() -> None:
    """Reports were cut off for minutes and come again: all those calls went on."""
    world = World()
    calls = [str(n) for n in range(20)]
    for call in calls:
        world.ask(call)
        world.live(call, media=True)
        world.see(call, "answered")
    world.run(140)
    assert (world.count, world.leases.remembered) == (0, 20)
    for call in calls[:12]:
        world.live(call, media=True)
    for call in calls[12:]:
        world.ended(call)
    world.run(10)
    assert (world.count, world.leases.returned, world.leases.remembered) == (12, 12, 0)
    assert world.leases.ended == {"quiet": 20}
    assert world.leases.holds("0", "t", 1)
    world.check()


def test_a_live_state_brings_a_silent_call_back_at_once_and_an_end_ends_it() -> None:
    world = World()
    for call in ("a", "b"):
        world.live(call, media=True)
        world.see(call, "answered")
    world.run(140)
    world.live("a", media=True)
    world.see("a", "answered")
    assert world.count == 1
    assert world.over("b") == 0
    world.ended("b")
    world.run(20)
    world.see("b", "answered")
    assert [lease.call_id for lease in world.leases] == ["a"]


def test_silent_calls_are_forgotten_after_the_longest_time_and_bounded() -> None:
    world = World(longest=600.0, max_leases=4)
    for n in range(4):
        world.live(str(n), media=True)
        world.see(str(n), "answered")
    world.run(140)
    assert (world.count, world.leases.remembered) == (0, 4)
    for n in range(4, 6):
        world.live(str(n), media=True)
        world.see(str(n), "answered")
    world.run(140)
    assert (world.leases.remembered, world.leases.forgotten) == (4, 2)
    world.run(700)
    assert (world.leases.remembered, world.leases.next_timer()) == (0, None)


def test_several_leases_of_one_silent_call_come_back_together() -> None:
    world = World()
    for tag in "xy":
        world.ask("a", tag=tag)
    world.live("a", media=True)
    world.see("a", "answered")
    world.run(140)
    assert (world.count, world.leases.remembered) == (0, 1)
    world.live("a", media=True)
    world.run(10)
    assert world.count == 2
    world.check()


def test_the_longest_time_ends_any_call() -> None:
    world = World(longest=3600.0)
    world.see("a", "answered")
    for _ in range(370):
        world.live("a", media=True)
        world.run(10)
    assert world.leases.ended == {"longest": 1}


def test_each_seen_lease_is_looked_at_every_so_often_and_no_more() -> None:
    asked: Counter[str] = Counter()

    def alive(call_id: str) -> Alive:
        asked[call_id] += 1
        return Alive(over=False, last_now=0.0, media=False)

    leases = Leases(alive, look=10.0)
    for n in range(100):
        leases.see(str(n), "answered", ACME, n / 100)
    now = 0.0
    while now < 100.0:
        now += 0.25
        leases.handle_timer(now)
    assert set(asked.values()) <= {9, 10}


# -------------------------------------------------------------------------------------------- bounds


def test_newcomers_over_the_cap_are_not_followed_and_counted() -> None:
    world = World(max_leases=3)
    assert [world.ask(str(n)) is not None for n in range(5)] == [True] * 3 + [False] * 2
    world.see("x")
    assert (world.count, world.leases.refused) == (3, 3)
    world.run(OVERLAP)
    world.over("0")
    assert world.ask("5") is not None
    world.check()


def test_a_turn_is_bounded_and_what_is_left_is_due_at_once() -> None:
    world = World()
    for n in range(3 * TURN):
        world.ask(str(n))
    world.leases.handle_timer(world.now + 10)
    assert world.count == 2 * TURN
    due = world.leases.next_timer()
    assert due is not None
    assert due <= world.now + 10


def test_a_flood_of_pending_calls_does_not_keep_the_others_from_being_looked_at() -> None:
    world = World()
    world.see("a")
    world.run(5.5)
    for n in range(10 * TURN):
        world.ask(str(n))
    world.leases.handle_timer(world.now + 6)
    assert world.leases.ended["gone"] == 1


def test_without_leases_nothing_is_due() -> None:
    assert World().leases.next_timer() is None


def test_time_that_steps_back_stands_still() -> None:
    world = World()
    world.ask("a")
    world.leases.admit("b", "t", 1, ACME, world.now - 500)
    world.leases.see("c", "trying", ACME, world.now - 500)
    assert world.leases.next_timer() == world.now + 5
    world.leases.handle_timer(world.now - 100)
    assert world.count == 3
    world.leases.over("d", world.now - 500)
    world.leases.refuse("e", world.now - 500)
    world.run(1)
    assert world.leases.remembered == 2
    world.run(4.1)
    assert world.count == 1


# ------------------------------------------------------------------------------------------- changed


def test_what_changed_is_told_once() -> None:
    world = World()
    world.ask("a", cohort=Cohort(tenant="acme"))
    assert set(world.leases.changed()) == {ALL, ("tenant", "acme")} | {
        (scope, OTHER) for scope in SCOPES if scope != "tenant"
    }
    assert list(world.leases.changed()) == []
    world.see("a", "trying", Cohort(trunk="west"))
    assert set(world.leases.changed()) == {("trunk", OTHER), ("trunk", "west")}
    world.run(OVERLAP)
    world.over("a")
    world.ask("b", cohort=Cohort(tenant="acme", trunk="west"))
    assert list(world.leases.changed()) == []


# ------------------------------------------------------------------------------- against a naive model

COHORTS = st.sampled_from([ACME, BETA, Cohort(), Cohort(tenant="acme"), Cohort(trunk="west")])
NAMES = st.sampled_from(["a", "b", "c"])
LIVE = st.sampled_from(["trying", "ringing", "answered"])


class Naive:
    """The same by looking at everything each time."""

    def __init__(self, alive: Callable[[str], Alive | None]) -> None:
        self.alive = alive
        self.leases: list[dict[str, Any]] = []
        self.silent: list[dict[str, Any]] = []
        self.past: dict[str, dict[str, Any]] = {}
        self.ended: Counter[str] = Counter()

    def of(self, call: str) -> list[dict[str, Any]]:
        return [one for one in self.leases if one["call"] == call]

    def begin(self, call: str, now: float, cohort: Cohort, state: str = "", **said: Any) -> None:
        seen = bool(state)
        one = {"call": call, "tag": "", "cseqs": [], "cohort": cohort, "since": now, "seen": seen}
        one |= {"answered": state == "answered", "asked": not seen, "doubted": False}
        one |= {"passed": state in ("ringing", "answered")}
        one |= {"asked_at": -math.inf if seen else now}
        one |= {"due": now + (10 if seen else 5)} | said
        self.leases.append(one)

    def own(self, call: str, now: float) -> list[dict[str, Any]]:
        unasked = [one for one in self.of(call) if not one["asked"]]
        return [one for one in unasked if not one["answered"] or now - one["since"] < 5]

    def holds(self, call: str, tag: str, cseq: int | None, now: float) -> bool:
        for one in self.of(call):
            if not one["asked"] or one["tag"] != tag:
                continue
            if cseq is None or cseq in one["cseqs"]:
                return True
            higher = not one["answered"] and cseq > max(one["cseqs"], default=-1)
            if not one["cseqs"] or (higher and len(one["cseqs"]) <= MAX_RETRIES):
                if one["cseqs"]:
                    one["asked_at"] = now
                    if one["doubted"]:
                        one.update(seen=False, doubted=False, due=now + 5)
                one["cseqs"].append(cseq)
                return True
        return False

    def admit(self, call: str, tag: str, cseq: int | None, cohort: Cohort, now: float) -> None:
        if self.holds(call, tag, cseq, now):
            return
        self.past.pop(call, None)
        cseqs = [] if cseq is None else [cseq]
        own = self.own(call, now)
        if own:
            own[0] |= {"asked": True, "tag": tag, "cseqs": cseqs, "asked_at": now}
            own[0]["cohort"] = complete(cohort, own[0]["cohort"])
        else:
            self.begin(call, now, cohort, tag=tag, cseqs=cseqs)

    def refuse(self, call: str, now: float) -> None:
        own = self.own(call, now)
        if own and not own[0]["passed"]:
            self.end(own[0], "refused")
        if not self.of(call):
            self.past[call] = {"at": now, "refused": True, "said": None, "released": False}

    def see(self, call: str, state: str, cohort: Cohort, now: float) -> None:
        if not self.of(call):
            self.bring_back(call, now)
        if not self.of(call):
            past, known = self.past.get(call), self.alive(call)
            dead = known is None or known.over
            if past and (state == "trying" if past["refused"] else past["released"] or dead):
                past["said"] = (state, cohort)
                return
            self.past.pop(call, None)
            self.begin(call, now, cohort, state)
            return
        known = self.alive(call)
        for one in self.of(call):
            if one["doubted"] and (known is None or known.over):
                pass
            elif one["doubted"] or not one["seen"]:
                one |= {"seen": True, "due": now + 10, "doubted": False}
            one["answered"] |= state == "answered"
            one["passed"] |= state != "trying"
            one["cohort"] = complete(one["cohort"], cohort) if one["asked"] else cohort

    def over(self, call: str, now: float, why: str) -> int:
        self.silent = [one for one in self.silent if one["call"] != call]
        held = 0
        for one in self.of(call):
            if why == "over" and not one["answered"] and now - one["asked_at"] < OVERLAP:
                if not one["doubted"]:
                    one.update(doubted=True, due=now + DOUBT)
                continue
            self.end(one, why)
            held += 1
        if not self.of(call):
            self.remember(call, now, released=why == "released")
        return held

    def remember(self, call: str, now: float, *, released: bool) -> None:
        self.past[call] = {"at": now, "refused": False, "said": None, "released": released}

    def end(self, one: dict[str, Any], why: str) -> None:
        self.leases = [other for other in self.leases if other is not one]
        self.ended[why] += 1

    def bring_back(self, call: str, now: float) -> None:
        for one in [one for one in self.silent if one["call"] == call]:
            self.silent = [other for other in self.silent if other is not one]
            self.leases.append(one | {"due": now + 10})

    def tick(self, now: float) -> None:
        """Called whenever anything is due."""
        for one in sorted(self.leases, key=lambda one: (one["due"], one["seen"])):
            if one["due"] > now:
                continue
            known = self.alive(one["call"])
            alive = known is not None and not known.over
            if not one["seen"] or one["doubted"]:
                if alive:
                    one |= {"seen": True, "due": now + 10, "doubted": False}
                elif one["doubted"]:
                    self.end(one, "over")
                    if not self.of(one["call"]):
                        self.remember(one["call"], now, released=False)
                else:
                    self.end(one, "unseen")
                continue
            one["due"] = now + 10
            if known is None:
                self.end(one, "gone")
            elif known.over or now - one["since"] > 600:
                self.end(one, "over" if known.over else "longest")
                if not self.of(one["call"]):
                    self.remember(one["call"], now, released=not known.over)
            elif known.media and now - known.last_now > 120:
                self.end(one, "quiet")
                first = [other for other in self.silent if other["call"] == one["call"]]
                at = first[0]["at"] if first else now
                look = first[0]["look"] if first else now + 10
                self.silent.append(one | {"at": at, "look": look})
        for call, past in list(self.past.items()):
            if past["at"] + LATE > now:
                continue
            del self.past[call]
            known = self.alive(call)
            heard = known and not known.over and known.last_now > past["at"]
            if heard and past["said"] and not self.of(call):
                state, cohort = past["said"]
                self.begin(call, now, cohort, state)
        for call in {one["call"] for one in self.silent if one["look"] <= now}:
            known = self.alive(call)
            silent = [one for one in self.silent if one["call"] == call]
            oldest = min(one["since"] for one in silent)
            if known and not known.over and known.last_now > silent[0]["at"]:
                self.bring_back(call, now)
            elif known is None or known.over or now - oldest > 600:
                self.silent = [one for one in self.silent if one["call"] != call]
            else:
                for one in silent:
                    one["look"] = now + 10


def complete(known: Cohort, told: Cohort) -> Cohort:
    return Cohort(*(b if a == OTHER else a for a, b in zip(known, told, strict=True)))


class LeasesMachine(RuleBasedStateMachine):
    """Whatever is asked, seen, repeated, reordered or lost: the counts are those of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[str, Alive] = {}
        self.now = 0.0
        self.leases = Leases(self.table.get, longest=600.0)
        self.naive = Naive(self.table.get)
        self.told: dict[tuple[str, str], int] = {}
        """Counts by what `changed` says."""

    @rule(call=NAMES, tag=st.sampled_from(["x", "y"]), cseq=st.sampled_from([None, 1, 2, 3, 9]),
          cohort=COHORTS)  # fmt: skip
    def ask(self, call: str, tag: str, cseq: int | None, cohort: Cohort) -> None:
        held = self.leases.holds(call, tag, cseq, self.now)
        assert held is self.naive.holds(call, tag, cseq, self.now)
        if not held and len(self.naive.of(call)) < MAX_SAME:
            self.leases.admit(call, tag, cseq, cohort, self.now)
            self.naive.admit(call, tag, cseq, cohort, self.now)

    @rule(call=NAMES)
    def refuse(self, call: str) -> None:
        self.leases.refuse(call, self.now)
        self.naive.refuse(call, self.now)

    @rule(call=NAMES, state=LIVE, cohort=COHORTS)
    def see(self, call: str, state: str, cohort: Cohort) -> None:
        self.leases.see(call, state, cohort, self.now)
        self.naive.see(call, state, cohort, self.now)

    @rule(call=NAMES, why=st.sampled_from(["over", "over", "released"]))
    def over(self, call: str, why: str) -> None:
        held = self.naive.over(call, self.now, why)
        assert self.leases.over(call, self.now, why) == held

    @rule(call=NAMES, over=st.booleans(), media=st.booleans())
    def know(self, call: str, over: bool, media: bool) -> None:
        self.table[call] = Alive(over=over, last_now=self.now, media=media)

    @rule(call=NAMES)
    @precondition(lambda self: self.table)
    def forget(self, call: str) -> None:
        self.table.pop(call, None)

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 6.0, 11.0, 70.0, 130.0]))
    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.leases.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.leases.handle_timer(self.now)
            self.naive.tick(self.now)
            self.agree()
        self.now = until

    @invariant()
    def agree(self) -> None:
        check(self.leases)
        assert self.leases.ended == self.naive.ended
        mine = sorted((one.call_id, one.cohort, one.seen, one.answered) for one in self.leases)
        theirs = sorted(
            (one["call"], one["cohort"], one["seen"], one["answered"]) for one in self.naive.leases
        )
        assert mine == theirs
        for key in self.leases.changed():
            assert self.leases.active[key] != self.told.get(key, 0)
            self.told[key] = self.leases.active[key]
        assert {key: count for key, count in self.told.items() if count} == self.leases.active

    def teardown(self) -> None:
        """When all calls are over and time passes, nothing is left."""
        for call in self.table:
            self.table[call] = Alive(over=True, last_now=self.now, media=False)
        self.pass_time(200.0)
        assert not self.leases.active
        assert len(self.leases) == self.leases.remembered == 0
        assert self.leases.next_timer() is None


LeasesMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
test_leases_agree_with_a_naive_model = LeasesMachine.TestCase


# ------------------------------------------------------------------------- a lossy world against the truth


class Fate(msgspec.Struct, frozen=True):
    """What becomes of one call, and of what is told of it."""

    begins: float
    lasts: float
    asked: bool
    visible: bool
    """Any of its SIP reaches the table."""
    bye_lost: bool
    media: bool
    lag: float
    """Of the table behind the truth."""
    delays: tuple[float, float, float]
    """Of its Moves on their way; different ones put them out of order."""
    lost: tuple[bool, bool, bool]
    again: float | None
    """Seconds after which its last live Move is repeated."""

    @property
    def ends(self) -> float:
        return self.begins + self.lasts

    @property
    def told(self) -> bool:
        """The leases hear of its life in time: by the question, or by a Move before its end."""
        return self.asked or not (self.lost[0] and self.lost[1])


FATES = st.builds(
    Fate,
    begins=st.floats(0, 300),
    lasts=st.floats(1, 600),
    asked=st.booleans(),
    visible=st.sampled_from([True, True, True, False]),
    bye_lost=st.sampled_from([False, False, False, True]),
    media=st.booleans(),
    lag=st.floats(0, 0.5),
    delays=st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0, 3)),
    lost=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    again=st.one_of(st.none(), st.floats(0, 60)),
)


@settings(max_examples=100)
@given(st.lists(FATES, max_size=12), st.floats(0, 1000))
def test_counts_are_the_truth_soon_after_loss_duplicates_and_reordering(
    fates: list[Fate], looked_at: float
) -> None:
    now = 0.0
    longest = 2000.0

    def alive(call_id: str) -> Alive | None:
        fate = fates[int(call_id)]
        if not fate.visible or now < fate.begins + fate.lag:
            return None
        ended = fate.ends + fate.lag
        if not fate.bye_lost and now >= ended:
            return None if now > ended + 64 else Alive(over=True, last_now=ended, media=fate.media)
        last = min(now, ended) if fate.media else fate.begins + fate.lag
        return Alive(over=False, last_now=last, media=fate.media)

    leases = Leases(alive, longest=longest)
    script: list[tuple[float, int, Callable[[], object]]] = []

    def at(when: float, do: Callable[[], object]) -> None:
        heapq.heappush(script, (when, len(script), do))

    for number, fate in enumerate(fates):
        name = str(number)

        def see(state: str, name: str = name) -> Callable[[], object]:
            return lambda: leases.see(name, state, ACME, now)

        if fate.asked:
            at(fate.begins, lambda name=name: leases.admit(name, "t", 1, ACME, now))  # type: ignore[misc]
        if not fate.visible:
            continue
        seen = fate.begins + fate.lag
        if not fate.lost[0]:
            at(seen + fate.delays[0], see("trying"))
        if not fate.lost[1]:
            at(seen + fate.delays[1], see("answered"))
            if fate.again is not None:
                at(seen + fate.delays[1] + fate.again, see("answered"))
        if not fate.bye_lost and not fate.lost[2]:
            at(fate.ends + fate.lag + fate.delays[2], lambda name=name: leases.over(name, now))  # type: ignore[misc]

    def run(until: float) -> None:
        nonlocal now
        while True:
            due = leases.next_timer()
            event = script[0][0] if script else math.inf
            first = min(event, due if due is not None else math.inf)
            if first > until:
                break
            now = max(now, first)
            if event <= first:
                heapq.heappop(script)[2]()
            else:
                leases.handle_timer(now)
            check(leases)
        now = until

    run(looked_at)
    counted = {int(lease.call_id) for lease in leases}
    # it takes a Move's delay, the patience and a look until what was lost is made up for
    slow = 3.5 + 5 + 10 + 0.1
    for number, fate in enumerate(fates):
        if now < fate.begins or (now < fate.begins + slow and not fate.asked):
            continue
        if now < fate.begins + slow:
            assert number in counted or now >= min(fate.begins + 5, fate.ends)
        elif now < fate.ends:
            assert (number in counted) is (fate.visible and fate.told)
        elif not fate.bye_lost and now > fate.ends + slow:
            # a repeated state of a call that the table forgot is there until it is looked at
            assert number not in counted or fate.again is not None
        elif fate.bye_lost and fate.media and now > fate.ends + slow + 120:
            assert number not in counted
    run(now + 2 * longest)
    assert not leases.active
    assert len(leases) == leases.remembered == 0
    assert leases.next_timer() is None


# ------------------------------------------------------------------------------------------ Erlang B


def erlang_b(offered: float, servers: int) -> float:
    """By its recursion, which is stable."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked


@pytest.mark.parametrize(
    ("offered", "capacity", "blocked"),
    [
        (80, 100, 0.003992),
        (100, 100, 0.075700),
        (120, 100, 0.196270),
        (200, 100, 0.504814),
        (90, 120, 0.000396),
        (10, 20, 0.001869),
    ],
)
def test_the_share_of_calls_that_find_no_room_is_erlangs(
    offered: float, capacity: int, blocked: float
) -> None:
    """Poisson arrivals and exponential holding times, admitted while there are fewer than N leases."""
    assert erlang_b(offered, capacity) == pytest.approx(blocked, abs=5e-7)
    chance = random.Random(f"{offered} in {capacity}")
    hold = 180.0
    leases = Leases(lambda _: Alive(over=False, last_now=0.0, media=False), longest=1e9, look=600.0)
    ends: list[tuple[float, str]] = []
    now, batches, size = 0.0, 30, 800
    shares = []
    for batch in range(-2, batches):
        refused = 0
        for n in range(size):
            now += chance.expovariate(offered / hold)
            while ends and ends[0][0] <= now:
                end, name = heapq.heappop(ends)
                assert leases.over(name, end, "released") == 1
            while (due := leases.next_timer()) is not None and due <= now:
                leases.handle_timer(now)
            if leases.active[ALL] >= capacity:
                refused += 1
                continue
            name = f"{batch}/{n}"
            leases.admit(name, "t", 1, ACME, now)
            if n % 2:
                leases.see(name, "answered", ACME, now)
            heapq.heappush(ends, (now + chance.expovariate(1 / hold), name))
        if batch >= 0:  # the first two fill the empty system
            shares.append(refused / size)
    assert leases.active[ALL] == len(leases) == len(ends) <= capacity
    mean = sum(shares) / batches
    sigma = math.sqrt(sum((one - mean) ** 2 for one in shares) / (batches - 1) / batches)
    sigma = max(sigma, math.sqrt(blocked / (batches * size)))
    assert abs(mean - blocked) < 4 * sigma
    assert sigma < max(0.1 * blocked, 0.001)
