"""What is seen of a call to the cohort that it belongs to, by ordered matchers of the configuration.

Each condition of each matcher is put into a table by what it asks for, once. A call is then a few
look-ups, each of which gives the matchers that go on as bits of a number: twenty matchers or a
thousand cost nearly the same, and so do a stranger's texts and an operator's.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final

import msgspec

from sipsidecar.calls.events import OTHER, Cohort, Sighted

MAX_MATCHERS: Final = 10_000
MAX_VALUES: Final = 1000
"""Distinct values of one dimension: they label metrics."""
MAX_HEADERS: Final = 16
"""Distinct header names: every INVITE's are looked for and kept."""
MAX_VALUE: Final = 255
"""Characters of a configured text; a call keeps no more of a header."""
MAX_HOST: Final = 255
"""Characters of a host that is looked at (RFC 1035 2.3.4)."""
CACHED: Final = 4096
"""Addresses and hosts whose matchers are remembered, of each kind."""
MAX_ADDRESSES: Final = 256
"""Of one value, as a switch is told them."""

_DIMENSIONS: Final = ("tenant", "trunk", "direction", "region", "carrier", "agent")
_LABEL: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HEADER: Final = re.compile(r"[A-Za-z0-9.!%*_+`'~-]{2,64}")
_HOST: Final = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Matcher(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One matcher: what all must be true of an INVITE, and what it then says of the call.

    Each of tenant, trunk, direction, region, carrier and agent is said by the first matcher that
    matches and says it.
    One without any condition matches everything.
    """

    tenant: str = ""
    trunk: str = ""
    direction: str = ""
    region: str = ""
    carrier: str = ""
    agent: str = ""
    sources: tuple[str, ...] = ()
    """Networks (CIDR) or addresses that the INVITE came from."""
    destinations: tuple[str, ...] = ()
    """Networks or addresses that it went to."""
    addresses: tuple[str, ...] = ()
    """Either of the two."""
    ports: tuple[int, ...] = ()
    """Ports that it came from or went to."""
    domains: tuple[str, ...] = ()
    """Hosts of the Request-URI, To or From; `*.example.com` for those under it."""
    prefixes: tuple[str, ...] = ()
    """What the called user (Request-URI, else To) begins with."""
    callers: tuple[str, ...] = ()
    """What the calling user (From) begins with."""
    headers: dict[str, str] = {}
    """Header name to the value it must have; a `*` at its end stands for anything."""
    capture_ids: tuple[int, ...] = ()
    gateways: tuple[str, ...] = ()
    """Gateways of FreeSWITCH."""
    switches: tuple[str, ...] = ()
    """Configured names of FreeSWITCHes."""


class MatcherError(ValueError):
    """A matcher that cannot be; the message is one line that says which and why."""


# ---------------------------------------------------------------------------------------- look-ups


def _address(text: str) -> _Address | None:
    """An address as others are compared to it: without its scope, an IPv4-mapped one as IPv4."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0].strip("[]"))
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _network(text: str) -> _Network:
    """A network or one address; ValueError for neither, and for bits right of the prefix."""
    found = ipaddress.ip_network(text.strip("[]"))
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= 96:
        mapped = found.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((int(mapped), found.prefixlen - 96))
    return found


def _host(text: str) -> str:
    """A host as others are compared to it: small letters, no final dot, one spelling of addresses."""
    text = text.lower()
    if ":" in text or text[-1:].isdigit():
        address = _address(text)
        if address is not None:
            return str(address)
    return text.removesuffix(".")


class _Networks:
    """Networks to the matchers that name them."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, int], dict[int, int]] = {}
        """IP version and bits right of the prefix to prefix to matchers."""

    def add(self, text: str, matcher: int) -> None:
        network = _network(text)
        shift = network.max_prefixlen - network.prefixlen
        prefixes = self._sizes.setdefault((network.version, shift), {})
        prefix = int(network.network_address) >> shift
        prefixes[prefix] = prefixes.get(prefix, 0) | 1 << matcher

    def find(self, text: str) -> int:
        address = _address(text) if len(text) <= MAX_HOST else None
        if address is None:
            return 0
        number, found = int(address), 0
        for (version, shift), prefixes in self._sizes.items():
            if version == address.version:
                found |= prefixes.get(number >> shift, 0)
        return found


class _Hosts:
    """Hosts, and domains of which a host may be under, to the matchers that name them."""

    def __init__(self) -> None:
        self._exact: dict[str, int] = {}
        self._under: dict[str, int] = {}

    def add(self, text: str, matcher: int) -> None:
        table, name = (self._under, text[2:]) if text.startswith("*.") else (self._exact, text)
        name = _host(name)
        table[name] = table.get(name, 0) | 1 << matcher

    def find(self, text: str) -> int:
        host = _host(text)
        found = self._exact.get(host, 0)
        if self._under:
            dot = host.find(".")
            while dot >= 0:
                found |= self._under.get(host[dot + 1 :], 0)
                dot = host.find(".", dot + 1)
        return found


class _Texts:
    """Beginnings of a text, and whole texts, to the matchers that name them."""

    def __init__(self) -> None:
        self._whole: dict[str, int] = {}
        self._begins: dict[int, dict[str, int]] = {}

    def add(self, text: str, matcher: int, *, begins: bool) -> None:
        table = self._begins.setdefault(len(text), {}) if begins else self._whole
        table[text] = table.get(text, 0) | 1 << matcher

    def find(self, text: str) -> int:
        found = self._whole.get(text, 0)
        for length, table in self._begins.items():
            found |= table.get(text[:length], 0)
        return found


def _bits(flags: Iterable[object]) -> int:
    """A number with a bit for each flag that is true, the first one lowest."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _remembered(find: Callable[[str], int]) -> Callable[[str | None], int]:
    """The look-up of a text that comes again and again; nothing long is remembered."""
    cached = lru_cache(CACHED)(find)

    def found(text: str | None) -> int:
        return cached(text) if text and len(text) <= MAX_HOST else 0

    return found


# ----------------------------------------------------------------------------------------- cohorts


class Cohorts:
    """The configured matchers, ready to be asked for every call.

    `nodes` are names of capture ids. MatcherError as `check_matchers`.
    """

    def __init__(
        self, matchers: Sequence[Matcher] = (), nodes: Mapping[int, str] | None = None
    ) -> None:
        check_matchers(matchers)
        self._matchers = tuple(matchers)
        self._nodes = dict(nodes or {})
        self._all = (1 << len(self._matchers)) - 1
        self._says = tuple(map(self._having, _DIMENSIONS))
        networks = {name: _Networks() for name in ("sources", "destinations", "addresses")}
        for name, table in networks.items():
            for i, matcher in enumerate(self._matchers):
                for text in getattr(matcher, name):
                    table.add(text, i)
        self._source, self._destination, self._either = (
            _remembered(table.find) for table in networks.values()
        )
        hosts = _Hosts()
        self._ports: dict[int, int] = {}
        self._called, self._calling = _Texts(), _Texts()
        self._ids: dict[int, int] = {}
        self._gateways: dict[str, int] = {}
        self._switches: dict[str, int] = {}
        self._headers: dict[str, _Texts] = {}
        for i, matcher in enumerate(self._matchers):
            for text in matcher.domains:
                hosts.add(text, i)
            for text in matcher.prefixes:
                self._called.add(text, i, begins=True)
            for text in matcher.callers:
                self._calling.add(text, i, begins=True)
            for number in matcher.ports:
                self._ports[number] = self._ports.get(number, 0) | 1 << i
            for number in matcher.capture_ids:
                self._ids[number] = self._ids.get(number, 0) | 1 << i
            for text in matcher.gateways:
                self._gateways[text] = self._gateways.get(text, 0) | 1 << i
            for text in matcher.switches:
                self._switches[text] = self._switches.get(text, 0) | 1 << i
            for name, text in matcher.headers.items():
                values = self._headers.setdefault(name.lower(), _Texts())
                values.add(text.removesuffix("*"), i, begins=text.endswith("*"))
        self._domain = _remembered(hosts.find)
        # Matchers that do not ask for a thing: it decides nothing about them.
        self._free = {
            name: self._all & ~self._having(name)
            for name in Matcher.__struct_fields__[len(_DIMENSIONS) :]
        }
        names = [{name.lower() for name in one.headers} for one in self._matchers]
        self._free_headers = {
            header: _bits(header not in some for some in names) for header in self._headers
        }

    def _having(self, name: str) -> int:
        """The matchers that have this field, as bits."""
        return _bits(getattr(one, name) for one in self._matchers)

    def __bool__(self) -> bool:
        """Whether any matcher is configured."""
        return bool(self._matchers)

    @property
    def headers(self) -> tuple[str, ...]:
        """Names, in small letters, of the headers that matchers ask for."""
        return tuple(self._headers)

    def of(self, sighted: Sighted) -> Cohort:
        """The cohort of what was seen."""
        found = self._matching(sighted)
        said = [OTHER] * len(_DIMENSIONS)
        if found:
            for place, says in enumerate(self._says):
                first = found & says
                if first:
                    matcher = self._matchers[(first & -first).bit_length() - 1]
                    said[place] = getattr(matcher, _DIMENSIONS[place])
        node = next((name for i in sighted.agent_ids if (name := self._nodes.get(i))), OTHER)
        return Cohort(said[0], said[1], said[2], said[3], node, said[4], said[5])

    def why(self, sighted: Sighted) -> dict[str, int | None]:
        """By dimension the index of the matcher that said it; None where none did."""
        found = self._matching(sighted)
        firsts = (found & says for says in self._says)
        return {
            name: (first & -first).bit_length() - 1 if first else None
            for name, first in zip(_DIMENSIONS, firsts, strict=True)
        }

    def values(self, scope: str) -> tuple[str, ...]:
        """Every value that a scope can have: those of the matchers, and `other`."""
        if scope == "node":
            return tuple(dict.fromkeys((*self._nodes.values(), OTHER)))
        if scope not in _DIMENSIONS:
            return ()
        said = (value for one in self._matchers if (value := getattr(one, scope)))
        return tuple(dict.fromkeys((*said, OTHER)))

    def addresses(self, scope: str, value: str) -> tuple[str, ...]:
        """Single source addresses that alone decide this value, at most 256: a switch can use them.

        Whatever else such an INVITE says, its cohort has this value. Networks are spelt out while
        there is room for all of their addresses. `addresses` of a trunk are taken for those of
        peers: what a switch receives does not go to one.
        """
        if scope not in _DIMENSIONS or value == OTHER:
            return ()
        found: dict[str, None] = {}
        for place, matcher in enumerate(self._matchers):
            if getattr(matcher, scope) != value or not _by_source_alone(matcher):
                continue
            # An earlier matcher could say something else, unless it asks for another source.
            others = _bits(getattr(one, scope) not in ("", value) for one in self._matchers[:place])
            elsewhere = self._having("addresses") if scope == "trunk" else 0
            for text in (*matcher.sources, *matcher.addresses):
                network = _network(text)
                if network.num_addresses > MAX_ADDRESSES:
                    continue
                named = (str(each) for each in network)
                new = {
                    each: None
                    for each in named
                    if not others
                    & (self._free["sources"] | self._source(each))
                    & ~(elsewhere & ~self._either(each))
                }
                if len(found | new) <= MAX_ADDRESSES:
                    found |= new
        return tuple(found)

    def _matching(self, sighted: Sighted) -> int:
        """The matchers whose every condition is true, as bits."""
        found, free = self._all, self._free
        if (more := free["sources"]) != found:
            found &= more | self._source(sighted.src_ip)
        if (more := free["destinations"]) != self._all:
            found &= more | self._destination(sighted.dst_ip)
        if (more := free["addresses"]) != self._all:
            found &= more | self._either(sighted.src_ip) | self._either(sighted.dst_ip)
        if (more := free["ports"]) != self._all:
            get = self._ports.get
            found &= more | get(sighted.src_port or 0, 0) | get(sighted.dst_port or 0, 0)
        if (more := free["domains"]) != self._all:
            find = self._domain
            found &= more | (
                find(sighted.ruri_host) | find(sighted.to_host) | find(sighted.from_host)
            )
        if (more := free["prefixes"]) != self._all:
            found &= more | self._called.find(sighted.ruri_user or sighted.to_user or "")
        if (more := free["callers"]) != self._all:
            found &= more | self._calling.find(sighted.from_user or "")
        if (more := free["capture_ids"]) != self._all:
            for number in sighted.agent_ids:
                more |= self._ids.get(number, 0)
            found &= more
        if (more := free["gateways"]) != self._all:
            found &= more | self._gateways.get(sighted.gateway or "", 0)
        if (more := free["switches"]) != self._all:
            found &= more | self._switches.get(sighted.switch or "", 0)
        for name, table in self._headers.items():
            text = sighted.headers.get(name)
            found &= self._free_headers[name] | (table.find(text) if text is not None else 0)
        return found


def _by_source_alone(matcher: Matcher) -> bool:
    """Whether an INVITE's source address can be all that it takes."""
    named = [
        name for name in Matcher.__struct_fields__[len(_DIMENSIONS) :] if getattr(matcher, name)
    ]
    return named in (["sources"], ["addresses"])


# ------------------------------------------------------------------------------------------ checks


def check_matchers(matchers: Iterable[Matcher]) -> None:
    """Find what is wrong with matchers; MatcherError says which, by its place from 1 on."""
    values: dict[str, set[str]] = {name: set() for name in _DIMENSIONS}
    headers: set[str] = set()
    for place, matcher in enumerate(matchers, 1):
        why = "there are too many matchers" if place > MAX_MATCHERS else _what_is_wrong(matcher)
        for name, known in values.items():
            known.update({getattr(matcher, name)} - {""})
            if len(known) > MAX_VALUES:
                why = why or f"{name}: there are more than {MAX_VALUES} values"
        headers |= {name.lower() for name in matcher.headers}
        if len(headers) > MAX_HEADERS:
            why = why or f"headers: there are more than {MAX_HEADERS} names"
        if why is not None:
            raise MatcherError(f"matcher {place}: {why}")


def _what_is_wrong(matcher: Matcher) -> str | None:
    """The first thing that is wrong with one matcher; None when nothing is."""
    return next(
        chain(_wrong_labels(matcher), _wrong_places(matcher), _wrong_texts(matcher)),
        None,
    )


def _wrong_labels(matcher: Matcher) -> Iterator[str]:
    said = [(name, value) for name in _DIMENSIONS if (value := getattr(matcher, name))]
    if not said:
        yield f"says nothing: name one of {', '.join(_DIMENSIONS)}"
    for name, value in said:
        if not _LABEL.fullmatch(value):
            yield f"{name}: expected 1 to 64 letters, digits, dots, _ or -, got {value!r}"
        elif value == OTHER:
            yield f"{name}: {OTHER!r} is the word for what no matcher matched"


def _wrong_places(matcher: Matcher) -> Iterator[str]:
    for name in ("sources", "destinations", "addresses"):
        for text in getattr(matcher, name):
            try:
                _network(text)
            except ValueError as error:
                yield f"{name}: expected addresses or networks such as 192.0.2.0/24: {error}"
    for number in matcher.ports:
        if not 0 < number < 1 << 16:
            yield f"ports: expected numbers from 1 to 65535, got {number}"
    for text in matcher.domains:
        under = text.startswith("*.")
        if len(text) > MAX_HOST or not (
            _HOST.fullmatch(text.lower()) or (not under and _address(text) is not None)
        ):
            yield f"domains: expected a host, or *.example.com for those under it, got {text!r}"


def _wrong_texts(matcher: Matcher) -> Iterator[str]:
    for name in ("prefixes", "callers", "gateways", "switches"):
        for text in getattr(matcher, name):
            if not 0 < len(text) <= MAX_VALUE:
                yield f"{name}: expected texts of 1 to {MAX_VALUE} characters"
    for name, text in matcher.headers.items():
        if not _HEADER.fullmatch(name):
            yield f"headers: expected the whole name of a header, got {name!r}"
        if not 0 < len(text) <= MAX_VALUE:
            yield f"headers: {name}: expected a value of 1 to {MAX_VALUE} characters, or *"
    if len({name.lower() for name in matcher.headers}) < len(matcher.headers):
        yield "headers: one name stands there twice"
    for number in matcher.capture_ids:
        if not 0 <= number < 1 << 32:
            yield f"capture_ids: expected numbers from 0 to {(1 << 32) - 1}, got {number}"
