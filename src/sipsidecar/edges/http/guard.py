"""Who may ask for what: bearer tokens (RFC 6750), and hosts and origins against browsers.

A browser is the way in where no token is asked: it reaches loopback and private networks for any
page that somebody opens. Two attacks matter. DNS rebinding: a name of the attacker's resolves to
our address, so that his page and ours are one origin; the Host header still shows his name. CSRF:
his page sends us a request whose answer he cannot read; Origin and Sec-Fetch-Site show that.
"""

import enum
import hmac
import re
import secrets
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

Headers = CIMultiDict[str] | CIMultiDictProxy[str]

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"(https?)://(.+)")


class Role(enum.Flag):
    """What somebody may do; who may operate may do all of it."""

    NOBODY = 0
    READ = enum.auto()
    POST = enum.auto()
    """Tell of things that happened: nothing is read or steered by that."""
    OPERATE = enum.auto()
    ALL = READ | POST | OPERATE


_TOKENS = {
    Role.READ: "http.read_tokens or http.operate_tokens",
    Role.POST: "http.post_tokens or http.operate_tokens",
    Role.OPERATE: "http.operate_tokens",
}


class Refusal(msgspec.Struct, frozen=True):
    """Why a request is not answered; `counter` is the number it goes into."""

    status: int
    error: str
    """One line that says what to do."""
    counter: str
    headers: dict[str, str] = {}


class Access:
    """The tokens and host names of one configuration; keeps digests, never the tokens."""

    def __init__(
        self,
        read_tokens: Iterable[str] = (),
        operate_tokens: Iterable[str] = (),
        hosts: Iterable[str] = (),
        post_tokens: Iterable[str] = (),
    ) -> None:
        self._key = secrets.token_bytes(32)
        read, operate, post = tuple(read_tokens), tuple(operate_tokens), tuple(post_tokens)
        self.asked = bool(read or operate or post)
        """Tokens are configured, so every page but the probes needs one."""
        self._possible = Role.ALL
        """What somebody can have the role for."""
        if self.asked and not operate:
            self._possible = Role.READ | Role.POST if post else Role.READ
        # an empty token lets nobody in, but it still is a wish for tokens: it must not open doors
        self._known = [(self._digest(token), Role.READ) for token in read if token]
        self._known += [(self._digest(token), Role.POST) for token in post if token]
        self._known += [(self._digest(token), Role.ALL) for token in operate if token]
        self._hosts = {parsed[0] for parsed in map(_parse_host, hosts) if parsed}

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode("utf-8", "surrogateescape"), "sha256")

    def role_of(self, headers: Headers) -> Role:
        """Whose token came in `Authorization: Bearer TOKEN`."""
        if not self.asked:
            return Role.ALL
        given = headers.getall("Authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = self._digest(token.strip(" \t"))
        found = Role.NOBODY
        # all are compared, and digests: the time taken says nothing about any token
        for known, role in self._known:
            if hmac.compare_digest(known, digest):
                found |= role
        return found if scheme.lower() == "bearer" else Role.NOBODY

    def refuse_role(self, role: Role, needs: Role, headers: Headers) -> Refusal | None:
        """Tell what is missing to somebody with `role` on a page that needs `needs`."""
        if needs in role:
            return None
        tokens = _TOKENS[needs]
        if needs not in self._possible:
            return Refusal(403, f"nobody may do this: set {tokens}", "forbidden")
        if role is Role.NOBODY:
            challenge = 'Bearer realm="sipsidecar"'
            if "Authorization" in headers:
                challenge += ', error="invalid_token"'
            return Refusal(
                401,
                f"send `Authorization: Bearer TOKEN` with a token of {tokens}",
                "unauthorized",
                {"WWW-Authenticate": challenge},
            )
        only = " and ".join(one.name.lower() for one in role if one.name)
        return Refusal(
            403,
            f"this token may only {only}: send one of {tokens}",
            "forbidden",
            {"WWW-Authenticate": 'Bearer realm="sipsidecar", error="insufficient_scope"'},
        )

    def refuse_host(
        self, headers: Headers, *, local: str, wildcard: bool, changing: bool, old: bool
    ) -> Refusal | None:
        """Tell whether the URL named us; `local` is the address that the client connected to.

        Ours are `localhost`, the names of `http.hosts`, and `local` itself. Where a wildcard address
        is bound, any address will do for reading: a probe through NAT or a published container port
        names one that we cannot know, and an address cannot be rebound. Ports are not compared, for
        port forwarding. `old` is HTTP/1.0, which may lack the header: no browser does.
        """
        given = headers.getall("Host", [])
        if not given and old and not changing:
            return None
        parsed = _parse_host(given[0]) if len(given) == 1 else None
        if parsed is None:
            return Refusal(400, "send one Host header, a name or an address", "bad-host")
        name = parsed[0]
        if name == "localhost" or name in self._hosts:
            return None
        address = _address(name)
        if (
            address is not None
            and not address.is_unspecified
            and (address == _address(local) or (wildcard and not changing))
        ):
            return None
        return Refusal(
            421,
            "the URL's host is not known to be ours: add it to http.hosts, or use the address",
            "bad-host",
        )


def refuse_forged(headers: Headers, *, secure: bool) -> Refusal | None:
    """Tell whether a changing request was sent by a page of somebody else (CSRF).

    What sends no such header is no browser. Behind a proxy that ends TLS an origin is https and
    the request is not, so plain HTTP takes both.
    """
    site = headers.getall("Sec-Fetch-Site", [])
    if any(one not in {"same-origin", "none"} for one in site):
        return Refusal(403, "another site's page sent this; send it yourself", "forbidden")
    origins = headers.getall("Origin", [])
    for origin in origins:
        found = _ORIGIN.fullmatch(origin)
        theirs = _parse_host(found[2]) if found else None
        ours = _parse_host(headers.get("Host", ""))
        if found is None or theirs is None or ours is None or (secure and found[1] == "http"):
            break
        usual = 443 if found[1] == "https" else 80
        if (theirs[0], theirs[1] or usual) != (ours[0], ours[1] or usual):
            break
    else:
        return None
    return Refusal(403, "the Origin header names another site; send this yourself", "forbidden")


def _parse_host(text: str) -> tuple[str, int | None] | None:
    """Split `name:port`; the name in lower case, an IPv6 address without its brackets."""
    found = _HOST.fullmatch(text)
    if found is None:
        return None
    name = found[1].strip("[]").lower().removesuffix(".")
    return (name, int(found[2]) if found[2] else None) if name else None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None
