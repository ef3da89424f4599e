"""Turns what separates calls into words: what they have, and what to look at."""

from collections import defaultdict
from collections.abc import Sequence

from sipsidecar.calls.features import SPELLINGS
from sipsidecar.cli.words import iso
from sipsidecar.signals.diagnose import Finding, Separator
from sipsidecar.tables import printable

_SPELLED = {spelled.lower(): spelled for spelled in SPELLINGS}
_WORDS = {
    "size-over": "an INVITE of more than {} bytes",
    "udp-fragments": "an INVITE that UDP sends in pieces (more than 1472 bytes)",
    "duplicate": "more than one header {header}",
    "folded": "a folded header {header}",
    "compact": "the compact form of {header}",
    "content-length": "a Content-Length that is {}",
    "line-ends": "lines of the head that end in {}",
    "no-colon": "a header line without a colon",
    "odd-header-name": "a header whose name is no token",
    "header": "a header {header}",
    "codec": "{} in its offer",
    "first-codec": "{} as its first codec",
    "codecs": "an offer of {}",
    "fmtp": "the format parameters {}",
    "start": "{}",
    "spelling": "a header spelled {}",
    "non-ascii": "bytes that are not ASCII in {header}",
    "control": "control characters in {header}",
    "empty": "an empty header {header}",
    "space-before-colon": "a space before the colon of {header}",
    "long-header": "a header {header} of more than 256 bytes",
    "first-after-via": "{header} right after Via",
    "last-header": "{header} as its last header",
    "header-list": "its headers in the order {}",
    "attest": "the attestation {} in its Identity",
    "user-agent-product": "the product {} as its sender",
    "source": "the source {}",
    "source-port": "the source port {}",
    "destination": "the destination {}",
    "transport": "the transport {}",
    "retried": "an INVITE before it that was challenged or redirected",
    "attempt": "{} as the number of the attempt",
    "unreadable": "an INVITE that makes no sense: {}",
    "method": "the method {}",
    "option": "the tag {}",
    "param": "the parameter {}",
    "uri-param": "the URI parameter {}",
    "user-param": "the parameter of a user {}",
    "display": "a display name: {}",
    "scheme": "the URI scheme: {}",
    "user-form": "a user of the form: {}",
    "host-form": "a host of the form: {}",
    "host": "the host: {}",
    "callee": "the called user {}",
    "callee-prefix": "a called number that begins with {}",
    "caller-prefix": "a calling number that begins with {}",
    "from-pai": "{} in From and P-Asserted-Identity",
    "to-differs": "a To that differs from the request URI {}",
    "tag": "a tag: {}",
    "rport": "rport in its Via: {}",
    "branch": "a Via branch {}",
    "lr": "{} the parameter lr",
    "call-id-form": "a Call-ID of the form {}",
    "via-transport": "a Via over {}",
    "sdp": "an SDP body: {}",
    "sdp-odd": "odd SDP: {}",
    "sdp-line": "the SDP line {}",
    "sdp-attribute": "an SDP attribute {}",
    "sdp-formats": "the payload types {}",
    "sdp-protocol": "the media protocol {}",
    "sdp-media": "an m-line of {}",
    "sdp-port": "a media port that is {}",
    "sdp-connection": "its c-line {}",
    "sdp-address": "a media address that is {}",
    "sdp-origin": "in its o-line: {}",
    "sdp-origin-user": "the user {} in its o-line",
    "sdp-direction": "the direction {}",
    "sdp-security": "keys for media by {}",
    "sdp-line-ends": "SDP lines that end in {}",
    "sdp-sequence": "SDP lines in the order {}",
    "ice": "{}",
    "ptime": "packets of {}",
    "max-forwards": "Max-Forwards: {}",
    "one-of-a-kind": "a value of `{}` that no other call has",
    "minute-of-hour": "a beginning in the minutes {} of an hour",
    "capture-agent": "the capture agent {}",
}
_OVER = {
    "size": "an INVITE of more than {} bytes",
    "head-size": "a head of more than {} bytes",
    "body-size": "a body of more than {} bytes",
    "sdp-size": "SDP of more than {} bytes",
    "sdp-lines": "more than {} lines of SDP",
    "sdp-media-lines": "more than {} m-lines",
    "headers": "more than {} headers",
    "longest-line": "a header line of more than {} bytes",
    "vias": "more than {} Vias",
    "routes": "more than {} Routes",
    "record-routes": "more than {} Record-Routes",
    "max-forwards": "a Max-Forwards over {}",
    "cseq": "a CSeq over {}",
    "call-id-length": "a Call-ID of more than {} characters",
    "codecs": "more than {} codecs",
    "idle-seconds": "a connection that was silent for more than {} s",
}
_SIZE = (
    "whether it is in pieces on the way: many networks drop IP fragments, and RFC 3261 18.1.1 wants "
    "TCP from 1300 bytes on; use TCP, or leave out headers and codecs"
)
_ORDER = (
    "the parser of the far side: the order of headers means nothing (RFC 3261 7.3.1), so ask its "
    "owner, and write them as good calls do"
)
_HEADER = "who adds or changes it, and leave it out for a test"
_SDP = "how the far side reads the offer, and leave the line out or offer as good calls do"
_PLACE = "that host, its route and what it runs"
_LOOK_AT = {
    "size-over": _SIZE,
    "udp-fragments": _SIZE,
    "size": _SIZE,
    "head-size": _SIZE,
    "body-size": _SIZE,
    "order": _ORDER,
    "next": _ORDER,
    "first-after-via": _ORDER,
    "last-header": _ORDER,
    "header-list": _ORDER,
    "header": _HEADER,
    "option": _HEADER,
    "method": _HEADER,
    "param": _HEADER,
    "uri-param": _HEADER,
    "codec": _SDP,
    "first-codec": _SDP,
    "codecs": _SDP,
    "fmtp": _SDP,
    "source": _PLACE,
    "destination": _PLACE,
    "user-agent-product": "the version and the settings of that sender",
    "transport": "what listens on that transport at the far side",
    "idle-seconds": "timeouts of NAT, firewalls and the far side: keep connections alive (RFC 5626)",
    "time": "what changed then: deployments, routes, the carrier's own news",
    "minute-of-hour": "what runs by the clock: cron jobs, backups, certificate and route reloads",
    "callee": "the number: is it in the carrier's range, and routed?",
}


def spelled(name: str) -> str:
    """A header's name as people write it."""
    return _SPELLED.get(name, "-".join(part.capitalize() for part in name.split("-")))


def has(one: Separator) -> str:
    """What calls have, or lack, in words that fit `calls with ...`; printable."""
    value = one.value
    if one.name == "time":
        return _span(one)
    if one.over:
        text = _OVER.get(one.name, f"{one.name} over {{}}").format(value)
    elif one.name.endswith(":"):
        text = f"the header {spelled(one.name[:-1])}: {value}"
    elif one.name in ("order", "next"):
        first, _, second = value.partition(" < ")
        how = "right before" if one.name == "next" else "before"
        text = f"{spelled(first)} {how} {spelled(second)}"
    elif one.name == "content-length" and value == "none":
        text = "no Content-Length"
    elif one.name == "sdp" and value.startswith("none"):
        text = f"no SDP{value[4:]}"
    else:
        words = _WORDS.get(one.name, f"{one.name} {{}}")
        text = words.replace("{header}", spelled(value)).replace("{}", value)
    return printable(text if one.present else f"without {text}")


def _span(one: Separator) -> str:
    since = iso(one.since)[:19] + "Z" if one.since is not None else None
    until = iso(one.until)[:19] + "Z" if one.until is not None else None
    if since and until:
        return f"a beginning from {since} to {until}"
    return f"a beginning after {since}" if since else f"a beginning before {until}"


def title(finding: Finding) -> str:
    """What a finding is, in words: of an order of headers, the header that moved and all it passed."""
    lead = finding.separator
    if lead.name not in ("order", "next"):
        return has(lead)
    after: defaultdict[str, list[str]] = defaultdict(list)
    before: defaultdict[str, list[str]] = defaultdict(list)
    for one in (lead, *finding.alike):
        if one.name == "order" and one.present:
            first, _, second = one.value.partition(" < ")
            after[first].append(second)
            before[second].append(first)
    first = max(after, key=lambda name: len(after[name]), default="")
    second = max(before, key=lambda name: len(before[name]), default="")
    if not first:
        return has(lead)
    if len(before[second]) > len(after[first]):
        return printable(f"{_all(before[second])} before {spelled(second)}")
    return printable(f"{spelled(first)} before {_all(after[first])}")


def _all(names: Sequence[str]) -> str:
    words = [spelled(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def alike(finding: Finding, most: int = 4) -> list[str]:
    """What else cannot be told from it, without what the title says already."""
    said = {"order", "next"} if finding.separator.name in ("order", "next") else set()
    return [has(one) for one in finding.alike if one.name not in said][:most]


def look_at(one: Separator) -> str:
    """What a person may look at next."""
    if one.name in _LOOK_AT:
        return _LOOK_AT[one.name]
    if one.name.startswith("sdp") or one.name in ("ptime", "ice"):
        return _SDP
    return _HEADER if one.name.endswith(":") else "how the two INVITEs below differ"
