import ipaddress
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipsidecar.calls.events import OTHER, Cohort, Sighted
from sipsidecar.signals import cohort as module
from sipsidecar.signals.cohort import Cohorts, Matcher, MatcherError, check_matchers

DIMENSIONS = ("tenant", "trunk", "direction", "region", "carrier", "agent")


def trunk_of(matcher: Matcher, **seen: Any) -> str:
    return Cohorts([matcher]).of(Sighted(**seen)).trunk


def test_the_first_matcher_that_says_a_dimension_says_it_and_later_ones_say_the_others() -> None:
    cohorts = Cohorts(
        [
            Matcher(sources=("192.0.2.0/24",), tenant="acme"),
            Matcher(sources=("192.0.2.7",), tenant="late", trunk="seven"),
            Matcher(direction="inbound"),
        ]
    )
    seen = Sighted(src_ip="192.0.2.7")
    assert cohorts.of(seen) == Cohort("acme", "seven", "inbound", OTHER, OTHER)
    assert cohorts.why(seen) == {
        "tenant": 0, "trunk": 1, "direction": 2, "region": None, "carrier": None, "agent": None,
    }  # fmt: skip


def test_without_matchers_everything_is_other_and_nothing_is_configured() -> None:
    cohorts = Cohorts()
    assert not cohorts
    assert cohorts.of(Sighted(src_ip="192.0.2.7")) == Cohort()
    assert cohorts.headers == ()
    assert cohorts.why(Sighted()) == dict.fromkeys(DIMENSIONS)


def test_every_condition_of_a_matcher_must_be_true() -> None:
    matcher = Matcher(
        trunk="k",
        sources=("192.0.2.1",),
        destinations=("198.51.100.0/24",),
        addresses=("192.0.2.0/30",),
        domains=("example.com",),
        prefixes=("44",),
        callers=("+1",),
        headers={"X-Trunk": "a"},
        capture_ids=(7,),
        gateways=("g",),
        switches=("fs1",),
    )
    all_of_it: dict[str, Any] = {
        "src_ip": "192.0.2.1",
        "dst_ip": "198.51.100.9",
        "from_host": "example.com",
        "ruri_user": "4420",
        "from_user": "+1212",
        "headers": {"x-trunk": "a"},
        "agent_ids": (7,),
        "gateway": "g",
        "switch": "fs1",
    }
    assert trunk_of(matcher, **all_of_it) == "k"
    lost: dict[str, Any] = dict.fromkeys(all_of_it) | {"headers": {}, "agent_ids": (8,)}
    for name, nothing in lost.items():
        assert trunk_of(matcher, **(all_of_it | {name: nothing})) == OTHER


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ("2001:db8::1", "2001:0DB8:0:0:0:0:0:1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8:ffff::1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.0/120", "192.0.2.9"),
        ("fe80::1", "fe80::1%eth0"),
        ("0.0.0.0/0", "203.0.113.9"),
        ("::/0", "2001:db8::1"),
    ],
)
def test_an_address_matches_in_any_spelling(asked: str, seen: str) -> None:
    assert trunk_of(Matcher(trunk="k", sources=(asked,)), src_ip=seen) == "k"
    assert trunk_of(Matcher(trunk="k", destinations=(asked,)), dst_ip=seen) == "k"
    for side in ("src_ip", "dst_ip"):
        assert trunk_of(Matcher(trunk="k", addresses=(asked,)), **{side: seen}) == "k"


@pytest.mark.parametrize("seen", ["198.51.100.1", "::1", "", None, "nonsense", "9" * 300, "1.2.3"])
def test_what_is_not_in_a_network_is_not_matched_by_it(seen: str | None) -> None:
    assert trunk_of(Matcher(trunk="k", sources=("192.0.2.0/24",)), src_ip=seen) == OTHER


def test_an_ipv4_network_says_nothing_of_ipv6_with_the_same_bits() -> None:
    seen = str(ipaddress.IPv6Address(int(ipaddress.IPv4Address("192.0.2.1"))))
    assert trunk_of(Matcher(trunk="k", sources=("0.0.0.0/0",)), src_ip=seen) == OTHER


@pytest.mark.parametrize("side", ["ruri_host", "to_host", "from_host"])
@pytest.mark.parametrize(
    ("asked", "seen", "matches"),
    [
        ("example.com", "EXAMPLE.com.", True),
        ("Example.COM", "example.com", True),
        ("example.com", "sip.example.com", False),
        ("*.example.com", "sip.example.com", True),
        ("*.example.com", "a.b.EXAMPLE.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("[2001:DB8::1]", "2001:db8:0::1", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("example.com", "example.com" * 100, False),
    ],
)
def test_a_domain_matches_the_host_or_those_under_it(
    side: str, asked: str, seen: str, matches: bool
) -> None:
    found = trunk_of(Matcher(trunk="k", domains=(asked,)), **{side: seen})
    assert found == ("k" if matches else OTHER)


def test_the_called_user_is_that_of_the_request_uri_else_of_to() -> None:
    matcher = Matcher(trunk="k", prefixes=("44", "4930"))
    assert trunk_of(matcher, ruri_user="4420", to_user="1") == "k"
    assert trunk_of(matcher, to_user="49301") == "k"
    assert trunk_of(matcher, ruri_user="1", to_user="4420") == OTHER
    assert trunk_of(matcher, ruri_user="4") == OTHER


def test_a_header_matches_as_a_whole_or_by_its_beginning() -> None:
    whole, begins = (
        Matcher(trunk="k", headers={"X-A": "ab"}),
        Matcher(trunk="k", headers={"x-a": "ab*"}),
    )
    present = Matcher(trunk="k", headers={"x-a": "*"})
    for matcher, text, matches in (
        (whole, "ab", True),
        (whole, "abc", False),
        (whole, "AB", False),
        (begins, "abc", True),
        (begins, "a", False),
        (present, "", True),
        (present, None, False),
    ):
        headers = {} if text is None else {"x-a": text}
        assert trunk_of(matcher, headers=headers) == ("k" if matches else OTHER)


def test_two_headers_must_both_match_and_their_names_are_asked_for_in_small_letters() -> None:
    cohorts = Cohorts([Matcher(trunk="k", headers={"X-A": "1", "X-B": "2"})])
    assert set(cohorts.headers) == {"x-a", "x-b"}
    assert cohorts.of(Sighted(headers={"x-a": "1", "x-b": "2"})).trunk == "k"
    assert cohorts.of(Sighted(headers={"x-a": "1"})).trunk == OTHER


def test_a_node_is_the_first_capture_id_that_has_a_name() -> None:
    cohorts = Cohorts(nodes={7: "edge", 8: "core"})
    assert cohorts.of(Sighted(agent_ids=(1, 8, 7))).node == "core"
    assert cohorts.of(Sighted(agent_ids=(1,))).node == OTHER
    assert cohorts.values("node") == ("edge", "core", OTHER)


def test_values_are_those_of_the_matchers_once_and_other() -> None:
    cohorts = Cohorts(
        [Matcher(trunk="b"), Matcher(trunk="a"), Matcher(trunk="b"), Matcher(tenant="t")]
    )
    assert cohorts.values("trunk") == ("b", "a", OTHER)
    assert cohorts.values("region") == (OTHER,)
    assert cohorts.values("global") == cohorts.values("nonsense") == ()


def test_addresses_are_those_that_alone_decide_a_value() -> None:
    cohorts = Cohorts(
        [
            Matcher(trunk="special", sources=("192.0.2.2",), prefixes=("9",)),
            Matcher(tenant="t", destinations=("198.51.100.1",)),
            Matcher(trunk="k", sources=("192.0.2.0/30", "10.0.0.0/8")),
            Matcher(trunk="k", addresses=("2001:db8::1",)),
            Matcher(trunk="k", sources=("192.0.2.9",), callers=("1",)),
            Matcher(trunk="late", sources=("192.0.2.1", "203.0.113.1")),
        ]
    )
    assert cohorts.addresses("trunk", "k") == (
        "192.0.2.0",
        "192.0.2.1",
        "192.0.2.3",
        "2001:db8::1",
    )
    assert cohorts.addresses("trunk", "late") == ("203.0.113.1",)
    assert cohorts.addresses("trunk", OTHER) == cohorts.addresses("node", "x") == ()


def test_trunks_told_by_either_address_have_each_their_own_but_regions_have_not() -> None:
    """A switch of its own may stand in `addresses` of a region: then calls to it are decided."""
    for name, found in (("trunk", ("192.0.2.2",)), ("region", ())):
        one = Matcher(addresses=("192.0.2.1",), **{name: "a"})  # type: ignore[arg-type]
        other = Matcher(addresses=("192.0.2.1", "192.0.2.2"), **{name: "b"})  # type: ignore[arg-type]
        assert Cohorts([one, other]).addresses(name, "b") == found


def test_an_earlier_matcher_that_does_not_ask_for_the_source_leaves_no_address_alone() -> None:
    cohorts = Cohorts(
        [Matcher(trunk="x", domains=("a.b",)), Matcher(trunk="k", sources=("192.0.2.1",))]
    )
    assert cohorts.addresses("trunk", "k") == ()


def test_no_more_addresses_than_a_switch_takes() -> None:
    cohorts = Cohorts([Matcher(trunk="k", sources=("10.0.0.0/24", "10.0.1.0/24", "10.9.9.9"))])
    assert len(cohorts.addresses("trunk", "k")) == module.MAX_ADDRESSES


ADDRESSES = [f"192.0.2.{i}" for i in range(8)] + ["2001:db8::1", "nonsense", None]
NETWORKS = ["192.0.2.0/29", "192.0.2.0/30", "192.0.2.4/31", "192.0.2.5", "2001:db8::/64"]
_some = st.lists(st.sampled_from(NETWORKS), max_size=2).map(tuple)
_words = st.lists(st.sampled_from(["1", "12", "2", "a"]), max_size=2).map(tuple)
_matchers = st.lists(
    st.builds(
        Matcher,
        tenant=st.sampled_from(["", "t1", "t2"]),
        trunk=st.sampled_from(["k1", "k2"]),
        carrier=st.sampled_from(["", "c1"]),
        agent=st.sampled_from(["", "a1", "a2"]),
        ports=st.lists(st.sampled_from([5060, 5080]), max_size=1).map(tuple),
        sources=_some,
        destinations=_some,
        addresses=_some,
        prefixes=_words,
        callers=_words,
        capture_ids=st.lists(st.sampled_from([1, 2]), max_size=1).map(tuple),
        headers=st.dictionaries(st.just("x-a"), st.sampled_from(["1", "1*", "*"]), max_size=1),
    ),
    max_size=6,
)
_sighted = st.builds(
    Sighted,
    src_ip=st.sampled_from(ADDRESSES),
    dst_ip=st.sampled_from(ADDRESSES),
    src_port=st.sampled_from([None, 5060, 9]),
    dst_port=st.sampled_from([None, 5080, 0]),
    ruri_user=st.sampled_from([None, "1", "123", "2", "b"]),
    to_user=st.sampled_from([None, "a1", "12"]),
    from_user=st.sampled_from([None, "1", "a"]),
    agent_ids=st.sampled_from([(), (1,), (2, 1)]),
    headers=st.sampled_from([{}, {"x-a": "1"}, {"x-a": "12"}]),
)


def _inside(address: str | None, networks: tuple[str, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(one) for one in networks)


def _matches(one: Matcher, seen: Sighted) -> bool:
    """The same said plainly."""
    called, caller = seen.ruri_user or seen.to_user or "", seen.from_user or ""
    return all(
        [
            not one.sources or _inside(seen.src_ip, one.sources),
            not one.destinations or _inside(seen.dst_ip, one.destinations),
            not one.addresses
            or _inside(seen.src_ip, one.addresses)
            or _inside(seen.dst_ip, one.addresses),
            not one.ports or bool({*one.ports} & {seen.src_port, seen.dst_port}),
            not one.prefixes or called.startswith(one.prefixes),
            not one.callers or caller.startswith(one.callers),
            not one.capture_ids or bool({*one.capture_ids} & {*seen.agent_ids}),
            all(
                (text := seen.headers.get(name)) is not None
                and (text.startswith(value[:-1]) if value.endswith("*") else text == value)
                for name, value in one.headers.items()
            ),
        ]
    )


@settings(max_examples=300, deadline=None)
@given(_matchers, _sighted)
def test_the_look_ups_say_what_trying_each_matcher_in_turn_would(
    matchers: list[Matcher], seen: Sighted
) -> None:
    cohorts = Cohorts(matchers)
    matching = [one for one in matchers if _matches(one, seen)]
    said = cohorts.of(seen)
    for name in DIMENSIONS:
        value = next((v for one in matching if (v := getattr(one, name))), OTHER)
        assert getattr(said, name) == value
        place = cohorts.why(seen)[name]
        assert (place is None) == (value == OTHER)
        assert place is None or getattr(matchers[place], name) == value


@settings(max_examples=200, deadline=None)
@given(_matchers, _sighted, st.sampled_from(["k1", "k2"]))
def test_whatever_else_a_call_from_a_deciding_address_says_it_has_that_value(
    matchers: list[Matcher], seen: Sighted, value: str
) -> None:
    cohorts = Cohorts(matchers)
    seen = msgspec.structs.replace(seen, dst_ip="203.0.113.1")
    if seen.src_ip in cohorts.addresses("trunk", value):
        assert cohorts.of(seen).trunk == value


@given(st.text(max_size=400), st.text(max_size=400))
def test_whatever_strangers_write_is_looked_up_without_an_error(host: str, other: str) -> None:
    cohorts = Cohorts([Matcher(trunk="k", domains=("*.example.com",), sources=("::/0",))])
    found = cohorts.of(Sighted(src_ip=other, ruri_host=host, from_host=other))
    assert found.trunk in {"k", OTHER}


def test_what_strangers_write_is_not_remembered_without_end() -> None:
    cohorts = Cohorts([Matcher(trunk="k", domains=("example.com",))])
    for i in range(module.CACHED + 100):
        cohorts.of(Sighted(ruri_host=f"{i}.example.com"))
    cells = getattr(cohorts._domain, "__closure__", ())
    caches = [cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "cache_info")]
    assert [cache.cache_info().currsize for cache in caches] == [module.CACHED]


def test_twenty_matchers_are_asked_in_microseconds() -> None:
    matchers = [Matcher(tenant=f"t{i}", sources=(f"10.{i}.0.0/16",)) for i in range(10)]
    matchers += [Matcher(trunk=f"k{i}", addresses=(f"192.0.2.{i}",)) for i in range(9)]
    cohorts = Cohorts([*matchers, Matcher(direction="in", prefixes=("4",))])
    seen = Sighted(src_ip="10.7.0.1", dst_ip="192.0.2.3", ruri_user="44")
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(1000):
            cohorts.of(seen)
        best = min(best, (time.perf_counter() - began) / 1000)
    assert best < 50e-6


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "says nothing"),
        ({"trunk": "a b"}, "trunk: expected 1 to 64"),
        ({"trunk": "x" * 65}, "trunk: expected 1 to 64"),
        ({"trunk": "\u0661"}, "trunk: expected 1 to 64"),
        ({"trunk": "a\n"}, "trunk: expected 1 to 64"),
        ({"tenant": "other"}, "'other' is the word"),
        ({"trunk": "k", "sources": ("10.0.0.1/8",)}, "has host bits set"),
        ({"trunk": "k", "addresses": ("nonsense",)}, "addresses: expected addresses or networks"),
        ({"trunk": "k", "ports": (0,)}, "ports: expected numbers"),
        ({"trunk": "k", "ports": (65536,)}, "ports: expected numbers"),
        ({"carrier": "a b"}, "carrier: expected 1 to 64"),
        ({"agent": "other"}, "'other' is the word"),
        ({"trunk": "k", "domains": ("a*b",)}, "domains: expected a host"),
        ({"trunk": "k", "domains": ("*.[::1]",)}, "domains: expected a host"),
        ({"trunk": "k", "domains": ("",)}, "domains: expected a host"),
        ({"trunk": "k", "domains": ("a." * 128 + "b",)}, "domains: expected a host"),
        ({"trunk": "k", "prefixes": ("",)}, "prefixes: expected texts"),
        ({"trunk": "k", "callers": ("1" * 256,)}, "callers: expected texts"),
        ({"trunk": "k", "gateways": ("",)}, "gateways: expected texts"),
        ({"trunk": "k", "switches": ("",)}, "switches: expected texts"),
        ({"trunk": "k", "headers": {"f": "a"}}, "the whole name of a header"),
        ({"trunk": "k", "headers": {"x y": "a"}}, "the whole name of a header"),
        ({"trunk": "k", "headers": {"x-a": ""}}, "x-a: expected a value"),
        ({"trunk": "k", "headers": {"x-a": "1", "X-A": "2"}}, "one name stands there twice"),
        ({"trunk": "k", "capture_ids": (-1,)}, "capture_ids: expected numbers"),
        ({"trunk": "k", "capture_ids": (1 << 32,)}, "capture_ids: expected numbers"),
    ],
)
def test_a_matcher_that_cannot_be_is_refused_by_its_place_and_why(
    wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(MatcherError) as error:
        check_matchers([Matcher(trunk="fine"), Matcher(**wrong)])
    assert str(error.value).startswith("matcher 2: ")
    assert says in str(error.value)
    with pytest.raises(MatcherError):
        Cohorts([Matcher(**wrong)])


def test_the_values_of_a_dimension_are_bounded_for_they_label_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_VALUES", 2)
    check_matchers([Matcher(trunk=name) for name in "abab"])
    with pytest.raises(MatcherError, match="matcher 3: trunk: there are more than 2 values"):
        check_matchers([Matcher(trunk=name) for name in "abc"])


def test_the_headers_asked_for_are_bounded_for_every_call_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_HEADERS", 1)
    check_matchers([Matcher(trunk="a", headers={name: "1"}) for name in ("x-a", "X-A")])
    with pytest.raises(MatcherError, match="matcher 2: headers: there are more than 1 names"):
        check_matchers([Matcher(trunk="a", headers={name: "1"}) for name in ("x-a", "x-b")])


def test_matchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MATCHERS", 1)
    with pytest.raises(MatcherError, match="matcher 2: there are too many"):
        check_matchers([Matcher(trunk="a")] * 2)
