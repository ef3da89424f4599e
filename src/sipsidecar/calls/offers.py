"""The SDP offer of an INVITE to features: names and values to compare calls by (RFC 8866, RFC 3264).

Of lines that differ in every call (o=, ports, SSRCs, candidates, keys) only their form counts.
"""

import ipaddress
import re
from functools import lru_cache
from typing import Final

from sipsidecar.wire import WireError, sdp, sip

MAX_LINES: Final = 200
"""Lines of one body that are read."""
MAX_VALUE: Final = 96
"""Characters kept of any value."""

Feature = tuple[str, str]
"""A name and a value; the value may be a stranger's."""

_ITS_OWN: Final = frozenset({
    "candidate", "cname", "crypto", "extmap", "fingerprint", "ice-pwd", "ice-ufrag", "identity",
    "mid", "msid", "msid-semantic", "remote-candidates", "rtcp", "ssrc", "ssrc-group", "tls-id",
})  # fmt: skip
"""Attributes whose value is of one call alone, or says nothing without the rest."""
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,48}", re.ASCII)


def of_offer(body: bytes, source: str | None = None) -> tuple[list[Feature], dict[str, int]]:
    """Turn the bytes of an SDP body into its features, and into numbers by name.

    `source` is who sent the INVITE, to compare the media's address with. Whatever the bytes are,
    nothing is raised; values are at most `MAX_VALUE` characters.
    """
    raw = body.split(b"\n", MAX_LINES)[:MAX_LINES]
    found: list[Feature] = []
    if b"\n" in body:
        ends = {line.endswith(b"\r") for line in raw[:-1]}
        found.append(
            ("sdp-line-ends", "mixed" if len(ends) > 1 else "CR LF" if ends == {True} else "LF")
        )
        if not body.endswith(b"\n"):
            found.append(("sdp-odd", "no line end after the last line"))
    lines = [sip.text(line.rstrip(b"\r")) for line in raw]
    while lines and not lines[-1]:
        lines.pop()
    media = 0
    letters = ""
    for line in lines:
        letter, equals, value = line[:1], line[1:2], line[2:]
        if equals != "=" or not (letter.isascii() and letter.isalpha()):
            found.append(("sdp-odd", "a line that is no type=value"))
            continue
        if not letters.endswith(letter):
            letters += letter
        if value != value.strip():
            found.append(("sdp-odd", f"space around the value of {letter}="))
        if letter == "m":
            media += 1
            found += _media_line(value.split())
        elif letter == "a":
            found += _attribute(value)
        elif letter == "c":
            found.append(("sdp-connection", "in the media" if media else "in the session"))
            found += _connection(value.split(), source)
        elif letter == "o":
            found += _origin(value.split())
        else:
            found.append(("sdp-line", line[:MAX_VALUE]))
    numbers = {"sdp-size": len(body), "sdp-lines": len(lines), "sdp-media-lines": media}
    found.append(("sdp-sequence", letters[:MAX_VALUE]))
    try:
        found += _codecs(sdp.parse(body), numbers)
    except WireError as error:
        found.append(("sdp", f"not understood: {error.why}"))
    return found, numbers


@lru_cache(maxsize=1024)  # a few hosts stand in nearly every INVITE
def address_form(address: str) -> str:
    """Say what kind of address or host name it is, in one word or two."""
    try:
        ip = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return "host name" if address else "empty"
    if ip.is_unspecified:
        return "0.0.0.0" if ip.version == 4 else "::"  # noqa: S104 -- a word, nothing is bound
    kind = "private" if ip.is_private or ip in _SHARED else "public"
    return f"{kind} IPv{ip.version}"


_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598, which is_private leaves out


def _media_line(fields: list[str]) -> list[Feature]:
    kind, port, protocol, *formats = (*fields, "", "", "")
    formats = [one for one in formats if one]
    found = [
        ("sdp-formats", f"{kind} {' '.join(formats)}"[:MAX_VALUE]),
        ("sdp-protocol", f"{kind} {protocol}"[:MAX_VALUE]),
        ("sdp-media", kind[:MAX_VALUE]),
    ]
    number = port.partition("/")[0]
    if number == "0":
        found.append(("sdp-port", f"0 for {kind}"[:MAX_VALUE]))
    elif number.isascii() and number.isdigit() and len(number) <= 5:
        found.append(("sdp-port", "odd" if int(number) % 2 else "even"))
    else:
        found.append(("sdp-port", "no number"))
    return found


def _attribute(text: str) -> list[Feature]:
    name, colon, value = text.partition(":")
    if not _TOKEN.fullmatch(name):
        return [("sdp-odd", "an attribute whose name is no token")]
    found = [("sdp-attribute", name)]
    first, _, rest = value.strip().partition(" ")
    if name == "crypto":  # a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:...
        found.append(("sdp-line", f"a=crypto {rest.partition(' ')[0]}"[:MAX_VALUE]))
    elif name == "fingerprint":
        found.append(("sdp-line", f"a=fingerprint {first.lower()}"[:MAX_VALUE]))
    elif name not in _ITS_OWN and colon:
        found.append(("sdp-line", f"a={name}:{value}"[:MAX_VALUE]))
    elif name == "rtcp":
        found.append(("sdp-line", f"a=rtcp {'with' if rest else 'without'} an address"))
    return found


def _connection(fields: list[str], source: str | None) -> list[Feature]:
    if len(fields) < 3:
        return [("sdp-address", "not understood")]
    address = fields[2].partition("/")[0]
    found = [("sdp-address", address_form(address))]
    if source is not None:
        same = address.lower() == source.lower()
        found.append(("sdp-address", "the sender's own" if same else "not the sender's"))
    return found


def _origin(fields: list[str]) -> list[Feature]:
    if len(fields) != 6:
        return [("sdp-odd", "o= has not six fields")]
    user, session, version, _, _, address = fields
    found = [("sdp-origin-user", user[:MAX_VALUE]), ("sdp-origin", address_form(address))]
    for what, text in (("session id", session), ("version", version)):
        if not (text.isascii() and text.isdigit()):
            found.append(("sdp-odd", f"the {what} of o= is no number"))
        elif len(text) > 10:
            found.append(("sdp-origin", f"{what} over 10 digits"))
    return found


def _codecs(offer: sdp.SessionDescription, numbers: dict[str, int]) -> list[Feature]:
    found: list[Feature] = []
    names: list[str] = []
    for media in offer.media:
        found.append(("sdp-direction", f"{media.kind} {media.direction}"[:MAX_VALUE]))
        if media.ptime_ms is not None:
            found.append(("ptime", f"{media.ptime_ms} ms"))
        for name, is_there in (
            ("crypto", media.crypto),
            ("fingerprint", media.fingerprint),
            ("ICE candidates", media.candidates),
        ):
            if is_there:
                found.append(("sdp-security" if name != "ICE candidates" else "ice", name))
        for codec in media.codecs:
            name = codec.name or f"payload type {codec.payload_type}"
            spelled = f"{name}/{codec.clock_rate}" if codec.clock_rate else name
            names.append(name)
            found.append(("codec", spelled))
            if codec.fmtp is not None:
                found.append(("fmtp", f"{name} {codec.fmtp}"[:MAX_VALUE]))
        speech = sdp.speech(media)
        if speech and media.kind == "audio":
            found.append(
                ("first-codec", speech[0].name or f"payload type {speech[0].payload_type}")
            )
    numbers["codecs"] = len(names)
    found.append(("codecs", ",".join(names)[:MAX_VALUE]))
    return found
