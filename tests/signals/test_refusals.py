from sipsidecar.signals.decisions import OVERFLOW, REFUSE, Ask, Decision
from sipsidecar.signals.refusals import (
    LONGEST_ELSEWHERE,
    MAX_REMEMBERED,
    REMEMBERED,
    Refusals,
)

BUSY = Decision(verdict=REFUSE, code=486, rule="full")
IVR = Decision(verdict=OVERFLOW, route="ivr", rule="full")


def ask(call_id: str = "a", tag: str = "1", cseq: int | None = 1) -> Ask:
    return Ask(call_id=call_id, from_tag=tag, cseq=cseq)


def test_the_same_question_gets_the_same_answer() -> None:
    known = Refusals()
    known.remember(ask(), BUSY, 0.0)
    assert known.answer(ask(), 1.0) is BUSY
    assert known.answer(ask(cseq=None), 1.0) is BUSY
    assert "a" in known


def test_another_call_is_another_question() -> None:
    known = Refusals()
    known.remember(ask(), BUSY, 0.0)
    assert known.answer(ask("b"), 0.0) is None
    assert known.answer(ask(tag="2"), 0.0) is None


def test_a_caller_who_dials_again_under_the_same_call_id_asks_anew() -> None:
    known = Refusals()
    known.remember(ask(cseq=1), BUSY, 0.0)
    assert known.answer(ask(cseq=2), 0.0) is None
    assert known.answer(ask(cseq=1), 0.0) is BUSY


def test_a_refusal_is_forgotten_in_time() -> None:
    known = Refusals()
    known.remember(ask(), BUSY, 0.0)
    assert known.answer(ask(), REMEMBERED - 0.1) is BUSY
    assert known.answer(ask(), REMEMBERED) is None
    assert "a" not in known
    assert len(known) == 0


def test_a_call_that_is_admitted_later_is_no_refused_one() -> None:
    known = Refusals()
    known.remember(ask(cseq=1), BUSY, 0.0)
    known.remember(ask(tag="2"), BUSY, 0.0)
    known.admitted(ask(cseq=2))
    assert known.answer(ask(cseq=1), 0.0) is None
    assert "a" in known  # the other caller's
    known.admitted(ask(tag="2"))
    assert "a" not in known
    known.admitted(ask(tag="2"))
    assert "a" not in known


def test_a_call_at_a_fallback_is_elsewhere_until_it_is_over() -> None:
    known = Refusals()
    known.remember(ask(), IVR, 0.0)
    assert known.is_elsewhere("a")
    known.answer(ask("b"), 10 * REMEMBERED)
    assert known.is_elsewhere("a"), "calls last longer than the memory of an answer"
    known.over("a", 100.0)
    assert known.is_elsewhere("a"), "its record has not left yet"
    known.handle_timer(100.0 + REMEMBERED)
    assert not known.is_elsewhere("a")


def test_a_call_that_is_sent_to_its_fallback_once_more_is_there_until_it_is_over_again() -> None:
    known = Refusals()
    known.remember(ask(cseq=1), IVR, 0.0)
    known.over("a", 10.0)
    known.remember(ask(cseq=2), IVR, 12.0)
    known.handle_timer(10.0 + REMEMBERED)
    assert known.is_elsewhere("a")
    known.over("a", 200.0)
    known.handle_timer(200.0 + REMEMBERED)
    assert not known.is_elsewhere("a")


def test_time_alone_forgets_what_nobody_asks_about_and_what_nobody_saw_the_end_of() -> None:
    known = Refusals()
    known.remember(ask("a"), BUSY, 0.0)
    known.remember(ask("b"), IVR, 1.0)
    known.handle_timer(REMEMBERED + 1.0)
    assert len(known) == 0
    assert known.is_elsewhere("b")
    known.remember(ask("b", cseq=2), IVR, 2.0)
    known.handle_timer(LONGEST_ELSEWHERE + 1.0)
    assert known.is_elsewhere("b")
    known.handle_timer(LONGEST_ELSEWHERE + 2.0)
    assert not known.is_elsewhere("b")


def test_a_refused_call_is_nowhere() -> None:
    known = Refusals()
    known.remember(ask(), BUSY, 0.0)
    assert not known.is_elsewhere("a")


def test_a_flood_of_refusals_is_bounded() -> None:
    known = Refusals()
    for i in range(MAX_REMEMBERED + 10):
        known.remember(ask(str(i)), IVR, 0.0)
    assert len(known) == MAX_REMEMBERED
    assert "0" not in known
    assert not known.is_elsewhere("0")
    assert str(MAX_REMEMBERED + 9) in known


def test_a_refused_call_that_lives_is_none() -> None:
    known = Refusals()
    known.remember(ask(tag="1"), BUSY, 0.0)
    known.remember(ask(tag="2"), BUSY, 0.0)
    assert known.disproved("a")
    assert not known.disproved("a")
    assert "a" not in known
    assert len(known) == 0
    assert known.answer(ask(), 0.0) is None
