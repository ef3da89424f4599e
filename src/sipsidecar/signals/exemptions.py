"""Requests that are never refused: those of a dialog, emergencies, and configured priority."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from sipsidecar.signals.decisions import Ask

_SOS = re.compile(r"urn:service:sos(\.[a-z0-9.-]+)?", re.IGNORECASE)
_SEPARATORS = str.maketrans("", "", "-.() ")
"""Visual separators of telephone numbers (RFC 3966 5.1.1)."""


class Exemptions:
    """Who is never refused.

    Called users of `emergency`, `callers` (`*` at the end: any that begin so), and priority headers
    that came from `networks` (CIDR).
    """

    def __init__(
        self,
        emergency: Sequence[str] = (),
        callers: Sequence[str] = (),
        networks: Sequence[str] = (),
    ) -> None:
        self._emergency = frozenset(emergency)
        self._callers = frozenset(one for one in callers if not one.endswith("*"))
        self._prefixes = tuple(one[:-1] for one in callers if one.endswith("*"))
        self._networks: tuple[IPv4Network | IPv6Network, ...] = tuple(
            ip_network(network, strict=False) for network in networks
        )

    def of(self, ask: Ask) -> str | None:
        """Why a request is never refused, one of `EXEMPTIONS`; None of an ordinary one."""
        method = ask.method.upper()
        if method != "INVITE" or ask.in_dialog:
            return "cancel" if method == "CANCEL" else "in-dialog"
        seen = ask.sighted
        ruri = ask.ruri.partition(";")[0].strip()
        scheme, _, rest = ruri.partition(":")
        user = rest if scheme.lower() == "tel" else seen.ruri_user or ""
        if _SOS.fullmatch(ruri) or user.translate(_SEPARATORS) in self._emergency:
            return "emergency"
        caller = seen.from_user or ""
        if caller in self._callers or (self._prefixes and caller.startswith(self._prefixes)):
            return "priority"
        # Anybody can write these headers, so only some may be believed (RFC 4412 6, RFC 7090 4).
        if (ask.priority or ask.resource_priority) and self._trusts(seen.src_ip):
            if ask.priority.strip().lower() in {"emergency", "psap-callback"}:
                return "emergency"
            if ask.resource_priority.strip():
                return "priority"
        return None

    def _trusts(self, address: str | None) -> bool:
        if not self._networks or address is None:
            return False
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)
