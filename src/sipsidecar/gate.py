"""Networks and agent keys to who may speak HEP."""

import ipaddress
from collections.abc import Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from sipsidecar.wire import hep

WHYS: Final = frozenset({"not-allowed", "bad-key"})
ANY_ID: Final = "*"
"""Stands for the capture ids that no key names, and for packets without one."""
MAX_ADMITTED: Final = 4096
"""Addresses remembered as admitted; the memory is emptied when full."""
MAX_REFUSED: Final = 1024
"""The same for refused ones: an own memory, so that forged senders cannot push out real agents."""
MAX_KEY: Final = 1024
"""Bytes of a key; of what a stranger sends, not more is hashed."""

_NOBODY: Final = bytes(32)  # no key is known that has this digest
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Gate:
    """Who may speak: by the sender's address, and by the key in each packet."""

    def __init__(self, allow: Sequence[str] = (), keys: Mapping[str, str] | None = None) -> None:
        """Take networks (CIDR) and keys by capture id; ValueError never shows a key.

        IPv4 senders on an IPv6 socket (`::ffff:192.0.2.1`) are IPv4 senders: `::/0` alone does
        not admit them.
        """
        networks = [_network(network) for network in allow]
        # By version and length of the prefix: as many look-ups as lengths, however many networks.
        self._prefixes: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            prefixes = self._prefixes[network.version].setdefault(shift, set())
            prefixes.add(int(network.network_address) >> shift)
        self._digests: dict[int, bytes] = {}
        self._others = _NOBODY
        for capture_id, key in (keys or {}).items():
            if not 0 < len(key.encode()) <= MAX_KEY:
                raise ValueError(f"the key of {capture_id} must have 1 to {MAX_KEY} bytes")
            digest = sha256(key.encode()).digest()
            if capture_id == ANY_ID:
                self._others = digest
            else:
                self._digests[int(capture_id)] = digest
        self._admitted: set[str] = set()
        self._refused: set[str] = set()
        self.has_networks = bool(networks)
        """Whether `admits` is to be asked at all: false costs nothing per packet."""
        self.has_keys = bool(keys)
        """The same for `knows`."""

    def __repr__(self) -> str:
        networks = sum(len(found) for by in self._prefixes.values() for found in by.values())
        keys = len(self._digests) + (self._others is not _NOBODY)
        return f"Gate({networks} networks, {keys} keys)"

    def admits(self, peer: str) -> bool:
        """Tell whether packets from this address are taken; what is no address is refused."""
        if peer in self._admitted:
            return True
        if not self.has_networks:
            return True
        if peer in self._refused:
            return False
        found = self._look(peer)
        known, most = (self._admitted, MAX_ADMITTED) if found else (self._refused, MAX_REFUSED)
        if len(known) >= most:
            known.clear()
        known.add(peer)
        return found

    def knows(self, packet: hep.Packet) -> bool:
        """Tell whether a packet carries the key of its capture id.

        HEP versions 1 and 2 carry none, and are not known. Digests are compared, in constant time:
        neither the length of a key nor whether an id has one can be measured.
        """
        if not self.has_keys:
            return True
        agent_id = packet.agent_id
        expected = self._others
        if agent_id is not None:
            expected = self._digests.get(agent_id, expected)
        given = sha256((packet.auth_key or b"")[: MAX_KEY + 1]).digest()
        return compare_digest(given, expected)

    def _look(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])  # without its scope (RFC 4007)
        except ValueError:
            return False
        address = _plain(address)
        number = int(address)
        prefixes = self._prefixes[address.version]
        return any(number >> shift in found for shift, found in prefixes.items())


def _plain(address: _Address) -> _Address:
    """Return the IPv4 address that an IPv6 socket shows as `::ffff:192.0.2.1`."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address


def _network(text: str) -> _Network:
    if "%" in text:  # ipaddress takes it, and forgets the interface that was meant
        raise ValueError(f"{text!r} names an interface, which a network cannot")
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network
