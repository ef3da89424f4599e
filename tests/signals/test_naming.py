import ipaddress

from sipsidecar.signals.alarms import PAGE, TREND, WARN
from sipsidecar.signals.naming import (
    CHANGED_US,
    KNOWN_US,
    MAX_KNOWN,
    MAX_PLACES,
    DnsAnswer,
    Names,
    Place,
    Problem,
)

MINUTE = 60_000_000


def ok(resolver: str, *ips: str, ttl: int | None = 60) -> DnsAnswer:
    places = tuple(Place(ip, 5060) for ip in ips)
    return DnsAnswer(resolver=resolver, outcome="ok", places=places, ttl=ttl)


def gone(resolver: str) -> DnsAnswer:
    return DnsAnswer(resolver=resolver, outcome="nxdomain", ttl=30)


def failed(resolver: str) -> DnsAnswer:
    return DnsAnswer(resolver=resolver, outcome="failed", why="no answer")


def looked(*looks: tuple[DnsAnswer, ...]) -> Names:
    names = Names()
    for number, answers in enumerate(looks):
        names.receive(answers, number * MINUTE)
    return names


def texts(names: Names, at: int) -> list[str]:
    return [problem.text for problem in names.problems(at, PAGE)]


def test_addresses_are_those_of_all_resolvers_each_once_the_first_ones_first() -> None:
    names = looked((ok("a", "192.0.2.2", "192.0.2.1"), ok("b", "192.0.2.1", "192.0.2.3")))
    assert [place.ip for place in names.places] == ["192.0.2.2", "192.0.2.1", "192.0.2.3"]
    assert names.problems(0, PAGE) == []


def test_no_answers_change_nothing() -> None:
    names = looked((ok("a", "192.0.2.1"),))
    assert names.receive([], MINUTE) is None
    assert names.places == (Place("192.0.2.1", 5060),)
    assert len(names.answers) == 1


def test_a_name_that_is_gone_twice_is_as_grave_as_the_peer_and_keeps_its_addresses() -> None:
    names = looked((ok("a", "192.0.2.1"),), (gone("a"), failed("b")))
    assert texts(names, MINUTE) == []
    names.receive([gone("a"), gone("b")], 2 * MINUTE)
    assert names.problems(2 * MINUTE, PAGE) == [
        Problem(PAGE, "no address: 2 of 2 resolvers say so")
    ]
    assert names.places == (Place("192.0.2.1", 5060),)
    names.receive([ok("a", "192.0.2.1")], 3 * MINUTE)
    assert texts(names, 3 * MINUTE) == []


def test_when_no_resolver_can_say_that_is_told_at_the_second_look() -> None:
    names = looked((failed("a"), failed("b")), (failed("a"), failed("b")))
    assert names.problems(0, PAGE) == [Problem(WARN, "none of 2 resolvers can say its address")]
    names.receive([failed("a"), ok("b", "192.0.2.1")], 2 * MINUTE)
    assert texts(names, 2 * MINUTE) == []


def test_resolvers_with_nothing_in_common_disagree_once_no_cache_explains_it() -> None:
    answers = (ok("a", "192.0.2.1", ttl=120), ok("b", "198.51.100.1", ttl=30))
    names = looked(answers, answers, answers)
    assert texts(names, MINUTE) == []
    assert names.problems(2 * MINUTE, PAGE) == [
        Problem(WARN, "2 resolvers disagree: a 192.0.2.1; b 198.51.100.1")
    ]
    names.receive([answers[0], ok("b", "192.0.2.1")], 3 * MINUTE)
    assert texts(names, 3 * MINUTE) == []


def test_a_resolver_that_does_not_know_what_another_one_knows_disagrees() -> None:
    answers = (ok("a", "192.0.2.1", ttl=None), gone("b"), failed("c"))
    names = looked(answers, answers)
    assert texts(names, MINUTE) == ["3 resolvers disagree: a 192.0.2.1; b none"]


def test_resolvers_that_give_parts_of_one_pool_do_not_disagree() -> None:
    answers = (ok("a", "192.0.2.1", "192.0.2.2"), ok("b", "192.0.2.2", "192.0.2.3"))
    assert texts(looked(answers, answers, answers), 10 * MINUTE) == []


def test_a_new_address_is_told_for_a_while() -> None:
    names = looked((ok("a", "192.0.2.1", "192.0.2.2"),))
    assert names.receive([ok("a", "192.0.2.2", "192.0.2.3")], MINUTE) == (
        "192.0.2.1, 192.0.2.2 before, 192.0.2.2, 192.0.2.3 now"
    )
    assert names.problems(MINUTE, PAGE) == [
        Problem(TREND, "addresses changed: 192.0.2.1, 192.0.2.2 before, 192.0.2.2, 192.0.2.3 now")
    ]
    assert texts(names, MINUTE + CHANGED_US) == []


def test_when_no_address_stays_that_is_a_warning() -> None:
    names = looked((ok("a", "192.0.2.1"),), (ok("a", "198.51.100.1"),))
    assert names.problems(MINUTE, PAGE)[0].severity == WARN


def test_addresses_that_come_by_turns_are_nothing_new() -> None:
    names = looked((ok("a", "192.0.2.1", "192.0.2.2"),))
    for turn in range(1, 20):
        ip = f"192.0.2.{1 + turn % 2}"
        assert names.receive([ok("a", ip)], turn * MINUTE) is None


def test_an_address_that_was_away_for_long_is_new_again() -> None:
    names = looked((ok("a", "192.0.2.1", "192.0.2.2"),), (ok("a", "192.0.2.2"),))
    assert names.receive([ok("a", "192.0.2.1")], KNOWN_US) is not None


def test_of_many_addresses_some_are_taken_and_the_others_counted() -> None:
    first = ipaddress.ip_address("198.51.100.0")
    many = [str(first + number) for number in range(MAX_KNOWN + 10)]
    names = looked((ok("a", *many),))
    assert len(names.places) == MAX_PLACES
    assert names.left_out == MAX_KNOWN + 10 - MAX_PLACES
    assert len(names._known) == MAX_KNOWN
    assert names.receive([ok("a", "192.0.2.9")], MINUTE) == (
        "198.51.100.0, 198.51.100.1, 198.51.100.2 and 5 more before, 192.0.2.9 now"
    )
