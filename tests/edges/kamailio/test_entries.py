import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipsidecar.edges.kamailio import entries
from sipsidecar.edges.kamailio.entries import (
    CHECKSUM,
    CLOSED,
    MOST_ENTRIES,
    MOST_RULES,
    RATES,
    TEXTS,
    UP,
    Encoder,
    Numbers,
)
from sipsidecar.signals.decisions import OVERFLOW, Denial, RateLimit


def nobody(scope: str, value: str) -> tuple[str, ...]:
    return ()


def encoder(**settings: object) -> Encoder:
    wanted: dict[str, object] = {"name": "edge", "routes": ("ivr", "voicemail")}
    wanted |= {"addresses": nobody} | settings
    return Encoder(**wanted)  # type: ignore[arg-type]


def unpack(value: int) -> tuple[int, int, int]:
    """As the script of the include does it."""
    return value // 1_000_000, value // 1000 % 1000, value % 1000


def closed(*denials: Denial, **settings: object) -> dict[str, tuple[int, int, int]]:
    found = encoder(**settings).encode(denials, ()).leased
    return {key: unpack(value) for (table, key), value in found.items() if (table, key) != UP}


def test_nothing_denied_leaves_the_sign_of_life_and_the_names_of_routes() -> None:
    found = encoder().encode((), ())
    assert found.leased == {UP: 1}
    assert {key for _, key in found.texts} == {"route::1", "route::2", "checksum"}
    assert encoder(routes=()).encode((), ()).texts == {}


def test_a_denial_is_an_integer_of_rule_code_and_percentage() -> None:
    said = closed(Denial(scope="trunk", scope_value="acme", rule="full", code=503, percent=40))
    assert said == {"trunk::acme": (Numbers().number("full"), 503, 40)}


@pytest.mark.parametrize("code", [486, 200, 0, 1000])
def test_a_code_that_refuses_nothing_becomes_486(code: int) -> None:
    assert closed(Denial(scope="global", rule="r", code=code))["global"][1] == 486


def test_an_overflow_is_the_number_of_its_route() -> None:
    said = closed(Denial(scope="global", rule="r", verdict=OVERFLOW, route="voicemail"))
    assert said["global"][1] == 2
    said = closed(Denial(scope="global", rule="r", verdict=OVERFLOW, route="nobody's"))
    assert said["global"][1] == 486


def test_a_node_s_denial_is_everybody_s_there_and_nobody_s_elsewhere() -> None:
    assert set(closed(Denial(scope="node", scope_value="edge", rule="r"))) == {"global"}
    assert closed(Denial(scope="node", scope_value="core", rule="r")) == {}


def test_addresses_that_alone_decide_a_value_are_keys_of_their_own() -> None:
    def addresses(scope: str, value: str) -> list[str]:
        return ["192.0.2.1", "2001:db8::1"] if (scope, value) == ("trunk", "acme") else []

    said = closed(
        Denial(scope="trunk", scope_value="acme", rule="r"),
        Denial(scope="tenant", scope_value="acme", rule="r"),
        addresses=addresses,
    )
    assert set(said) == {
        "trunk::acme",
        "tenant::acme",
        "src::192.0.2.1",
        "src::2001:db8::1",
    }


def test_where_two_denials_meet_the_one_about_more_calls_stands() -> None:
    some = Denial(scope="global", rule="some", percent=30)
    most = Denial(scope="node", scope_value="edge", rule="most", percent=80, code=503)
    assert closed(some, most) == closed(most, some)
    assert closed(some, most)["global"][1:] == (503, 80)


def test_a_denial_of_no_calls_is_no_entry() -> None:
    assert closed(Denial(scope="global", rule="r", percent=0)) == {}


def test_a_limit_is_one_for_all_keys_of_a_value() -> None:
    found = encoder(addresses=lambda _scope, _value: ["192.0.2.1", "192.0.2.2"]).encode(
        (),
        [
            RateLimit(
                scope="trunk", scope_value="acme", limit=20, rate=20.5, burst=3, rule="r", code=503
            )
        ],
    )
    number = found.leased[RATES, "trunk::acme"]
    assert found.leased == {
        UP: 1,
        (RATES, "trunk::acme"): number,
        (RATES, "trunk:src::192.0.2.1"): number,
        (RATES, "trunk:src::192.0.2.2"): number,
        (RATES, f"each::{number}"): 48780,
        (RATES, f"full::{number}"): 97560,
        (RATES, f"why::{number}"): entries.pack(Numbers().number("r"), 503, 100),
    }


def test_of_two_limits_of_one_key_the_lower_stands() -> None:
    limits = [RateLimit(scope="global", limit=limit, rule=f"r{limit}") for limit in (7, 5, 9)]
    limits.append(RateLimit(scope="node", scope_value="core", limit=1))
    found = encoder().encode((), limits).leased
    assert found[RATES, f"each::{found[RATES, 'global']}"] == 200_000
    why = unpack(found[RATES, f"why::{found[RATES, 'global']}"])
    assert why[0] == Numbers().number("r5")


def test_no_limit_reads_as_unlimited() -> None:
    found = encoder().encode((), [RateLimit(scope="global", limit=0)]).leased
    assert found[RATES, f"each::{found[RATES, 'global']}"] == 1_000_000


@pytest.mark.parametrize("rate", [0.0001, 0.01, 7.5, 1e6, 1e9])
def test_a_bucket_is_full_before_its_clock_is_half_round(rate: float) -> None:
    limit = RateLimit(scope="global", limit=1, rate=rate, burst=1e6)
    found = encoder().encode((), [limit]).leased
    number = found[RATES, "global"]
    each, full = found[RATES, f"each::{number}"], found[RATES, f"full::{number}"]
    assert 0 < each <= 100_000_000
    assert 0 <= full <= 500_000_000 - each


def test_what_is_too_much_is_left_out_and_counted() -> None:
    denials = [
        Denial(scope="trunk", scope_value=str(n), rule="r") for n in range(MOST_ENTRIES + 10)
    ]
    limit = RateLimit(scope="global", limit=5)
    found = encoder().encode(denials, [limit])
    assert len(found.leased) <= MOST_ENTRIES
    assert found.left_out == len(denials) + 1 - (MOST_ENTRIES - 1)
    assert (CLOSED, "trunk::0") in found.leased


def test_texts_have_a_checksum_that_changes_with_each_of_them() -> None:
    one = encoder().encode([Denial(scope="global", rule="r", reason="cac r: 1")], ()).texts
    two = encoder().encode([Denial(scope="global", rule="r", reason="cac r: 2")], ()).texts
    assert one[TEXTS, str(Numbers().number("r"))] == "r: 1"
    assert one[CHECKSUM] != two[CHECKSUM]
    # The texts are sent in this order: it tells of those that come after it.
    assert next(iter(one)) == CHECKSUM


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("cac full: 50 of 50", "full: 50 of 50"),
        ("cac full", "full"),
        ("", "full"),
        ("fullness", "full: fullness"),
        ("too many", "full: too many"),
        ('a"\r\nX: |b', "full: a___X: _b"),
        ("x" * 500, "full: " + "x" * 144),
    ],
)
def test_a_text_is_the_rule_and_its_words_and_breaks_no_header(reason: str, said: str) -> None:
    assert entries.text("full", reason) == said


@given(st.text(), st.text())
def test_no_text_can_end_a_quoted_string_or_a_line(rule: str, reason: str) -> None:
    said = entries.text(rule, reason)
    assert len(said) <= entries.MOST_TEXT
    assert not set('"\\\r\n|\0') & set(said)
    assert said.isascii()


def test_a_rule_keeps_its_number_whatever_else_there_is() -> None:
    alone, among = Numbers(), Numbers()
    names = [f"rule-{n}" for n in range(200)]
    numbers = {name: among.number(name) for name in names}
    assert len(set(numbers.values())) == len(names)
    assert numbers == {name: among.number(name) for name in reversed(names)}
    assert alone.number("rule-0") == numbers["rule-0"]


def test_numbers_end_where_31_bits_end() -> None:
    numbers = Numbers()
    found = {numbers.number(f"rule-{n}") for n in range(MOST_RULES)}
    assert found == set(range(1, MOST_RULES + 1))
    assert numbers.number("one more") == 0
    assert numbers.number("rule-5") > 0
    assert entries.pack(MOST_RULES, 699, 100) < 2**31
    denial = Denial(scope="global", rule="one more")
    full = encoder()
    full._numbers = numbers
    found_entries = full.encode([denial], ())
    assert unpack(found_entries.leased[CLOSED, "global"]) == (0, 486, 100)
    assert (TEXTS, "0") not in found_entries.texts


@given(
    st.lists(
        st.builds(
            Denial,
            scope=st.sampled_from(["global", "trunk", "tenant", "node"]),
            scope_value=st.sampled_from(["", "a", "edge"]),
            verdict=st.sampled_from(["refuse", "overflow"]),
            code=st.integers(0, 1000),
            reason=st.text(max_size=20),
            rule=st.sampled_from(["r1", "r2"]),
            route=st.sampled_from(["", "ivr", "other"]),
            percent=st.integers(0, 150),
        ),
        max_size=8,
    )
)
def test_every_value_fits_and_says_what_a_script_can_use(denials: list[Denial]) -> None:
    found = encoder().encode(denials, ())
    for (table, key), value in found.leased.items():
        assert 0 < value < 2**31
        if (table, key) != UP:
            number, code, percent = unpack(value)
            assert (TEXTS, str(number)) in found.texts
            assert 400 <= code <= 699 or (TEXTS, f"route::{code}") in found.texts
            assert 1 <= percent <= 100
