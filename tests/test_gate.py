import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sipsidecar import gate
from sipsidecar.gate import MAX_ADMITTED, MAX_KEY, MAX_REFUSED, Gate
from sipsidecar.wire import hep


def packet(agent_id: int | None = 2001, key: bytes | None = None, version: int = 3) -> hep.Packet:
    return hep.decode(
        hep.encode(
            source=bytes(4),
            destination=bytes(4),
            source_port=1,
            destination_port=2,
            payload=b"x",
            version=version,
            agent_id=agent_id,
            auth_key=key,
        )
    )


# ------------------------------------------------------------------------------------- addresses


def test_a_gate_without_networks_admits_every_sender() -> None:
    assert not Gate().has_networks
    assert all(map(Gate().admits, ["192.0.2.1", "::1", "", "no address"]))


@pytest.mark.parametrize(
    ("peer", "admitted"),
    [
        ("192.0.2.1", True),
        ("192.0.2.255", True),
        ("192.0.3.0", False),
        ("192.0.1.255", False),
        ("198.51.100.7", True),
        ("198.51.100.8", False),
        ("2001:db8::1", True),
        ("2001:DB8:0:ffff::", True),
        ("2001:db9::", False),
        ("::ffff:192.0.2.9", True),
        ("::ffff:c000:209", True),
        ("::ffff:192.0.3.9", False),
        ("::192.0.2.9", False),
        ("fe80::1%eth0", True),
        ("fe80::1", True),
        ("fe80::2%eth0", False),
        ("203.0.113.0", True),
        ("203.0.113.255", True),
        ("203.0.112.255", False),
        ("203.0.114.1", False),
        ("", False),
        ("%", False),
        ("192.0.2.1 ", False),
        ("192.0.2.1%eth0", True),
        ("localhost", False),
        ("3221225985", False),
    ],
)
def test_networks_say_who_is_admitted(peer: str, admitted: bool) -> None:
    found = Gate(
        ["192.0.2.0/24", "198.51.100.7", "2001:db8::/32", "fe80::1", "::ffff:203.0.113.0/120"]
    )
    assert [found.admits(peer) for _ in range(3)] == [admitted] * 3


def test_every_ipv6_address_is_not_every_ipv4_address() -> None:
    assert Gate(["::/0"]).admits("2001:db8::1")
    assert not Gate(["::/0"]).admits("::ffff:192.0.2.1")
    assert Gate(["0.0.0.0/0"]).admits("::ffff:192.0.2.1")
    assert not Gate(["0.0.0.0/0"]).admits("2001:db8::1")


addresses = st.ip_addresses()
networks = addresses.flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda length: ipaddress.ip_network((address, length), strict=False)
    )
)


@given(allow=st.lists(networks, min_size=1, max_size=8), peer=addresses)
def test_who_is_admitted_is_in_a_network(
    allow: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
    peer: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    found = Gate([str(network) for network in allow])
    near = [network.broadcast_address for network in allow]
    for address in [peer, *near, *(one + 1 for one in near if int(one) + 1 < 2**32)]:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            continue
        expected = any(address in network for network in allow)
        assert found.admits(str(address)) == found.admits(str(address)) == expected


@given(peer=st.text(max_size=50) | st.text(alphabet="0123456789abcdef.:%/", max_size=50))
@example("1.2.3.4/0")
@example("::%\0")
def test_any_text_is_admitted_or_not_and_raises_nothing(peer: str) -> None:
    assert Gate(["192.0.2.0/24"]).admits(peer) in {False, True}


@pytest.mark.parametrize("network", ["192.0.2.1/24", "proxy", "192.0.2.0/33", "fe80::%eth0/64"])
def test_what_is_no_network_is_refused(network: str) -> None:
    with pytest.raises(ValueError, match=network[:5]):
        Gate([network])


@pytest.mark.parametrize(
    ("first", "most", "memory"),
    [
        ("10.0.0.0", MAX_ADMITTED, lambda found: found._admitted),
        ("11.0.0.0", MAX_REFUSED, lambda found: found._refused),
    ],
)
def test_forged_senders_cannot_make_the_memory_grow(
    first: str, most: int, memory: Callable[[Gate], set[str]]
) -> None:
    found = Gate(["10.0.0.0/8"])
    seen = set()
    for number in range(3 * most):
        admitted = found.admits(str(ipaddress.ip_address(first) + number))
        assert admitted == (first == "10.0.0.0")
        seen.add(len(memory(found)))
    assert max(seen) == most
    assert len(found._admitted) + len(found._refused) <= most


def test_forged_senders_that_are_refused_do_not_push_out_an_agent() -> None:
    found = Gate(["10.0.0.0/8"])
    assert found.admits("10.0.0.1")
    for number in range(MAX_REFUSED + 5):
        assert not found.admits(str(ipaddress.ip_address("11.0.0.0") + number))
    found._look = None  # type: ignore[method-assign,assignment]
    assert found.admits("10.0.0.1")


# ------------------------------------------------------------------------------------------ keys


def test_a_gate_without_keys_knows_every_packet() -> None:
    assert not Gate().has_keys
    assert Gate().knows(packet(key=b"any"))
    assert Gate().knows(packet(agent_id=None, version=1))


KEYS = {"2001": "key of edge", "0": "key of zero", "*": "key of the rest"}


@pytest.mark.parametrize(
    ("agent_id", "key", "known"),
    [
        (2001, b"key of edge", True),
        (2001, b"key of zero", False),
        (2001, b"key of the rest", False),
        (2001, b"key of edge ", False),
        (2001, b"key of edge\0", False),
        (2001, b"key of edg", False),
        (2001, b"", False),
        (2001, None, False),
        (0, b"key of zero", True),
        (0, None, False),
        (7, b"key of the rest", True),
        (7, b"key of edge", False),
        (None, b"key of the rest", True),
        (None, b"key of edge", False),
        (None, None, False),
    ],
)
def test_a_packet_is_known_by_the_key_of_its_capture_id(
    agent_id: int | None, key: bytes | None, known: bool
) -> None:
    assert Gate(keys=KEYS).knows(packet(agent_id, key)) is known


@pytest.mark.parametrize("agent_id", [7, None])
@pytest.mark.parametrize("key", [None, b"", b"k", bytes(32)])
def test_a_capture_id_without_a_key_is_not_known(agent_id: int | None, key: bytes | None) -> None:
    found = Gate(keys={"2001": "k"})
    assert found.knows(packet(2001, b"k"))
    assert not found.knows(packet(agent_id, key))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("keys", [{"2001": "k"}, {"*": "k"}])
def test_versions_of_hep_without_a_key_are_not_known(version: int, keys: dict[str, str]) -> None:
    assert not Gate(keys=keys).knows(packet(2001, None, version))


def test_a_key_is_text_in_utf_8() -> None:
    assert Gate(keys={"*": "Schlüssel"}).knows(packet(key="Schlüssel".encode()))


def test_the_longest_key_is_compared_to_its_end() -> None:
    longest = "k" * MAX_KEY
    found = Gate(keys={"*": longest})
    assert found.knows(packet(key=longest.encode()))
    assert not found.knows(packet(key=longest.encode() + b"k"))
    assert not found.knows(packet(key=longest.encode() * 50))


@pytest.mark.parametrize("key", ["", "hush" * MAX_KEY])
def test_a_key_of_no_use_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="the key of 2001 must have 1 to 1024 bytes") as caught:
        Gate(keys={"2001": key})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("agent_id", [2001, 7, None])
@pytest.mark.parametrize("key", [None, b"k", b"wrong", b"wrong" * 500])
def test_whatever_comes_two_digests_are_compared_once(
    monkeypatch: pytest.MonkeyPatch, agent_id: int | None, key: bytes | None
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(*both: bytes) -> bool:
        compared.append((both[0], both[1]))
        return both[0] == both[1]

    monkeypatch.setattr(gate, "compare_digest", compare)
    assert Gate(keys={"2001": "k"}).knows(packet(agent_id, key)) is (
        agent_id == 2001 and key == b"k"
    )
    ((given, expected),) = compared
    assert len(given) == len(expected) == 32


def test_no_key_is_in_what_a_gate_shows_or_keeps() -> None:
    found = Gate(["192.0.2.0/24", "2001:db8::/32"], {"1": "hush hush", "*": "hush again"})
    assert repr(found) == str(found) == "Gate(2 networks, 2 keys)"
    assert repr(Gate(keys={"1": "hush"})) == "Gate(0 networks, 1 keys)"
    assert "hush" not in str(vars(found))
