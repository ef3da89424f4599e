"""The little SIP that the callers and the callee of the overload rig speak, over UDP."""

from typing import NamedTuple

T1 = 0.5
"""Seconds before a request is sent again (RFC 3261 17.1.1.1); doubled each time."""
T2 = 4.0
"""The longest such time of what is not an INVITE (RFC 3261 17.1.2.1)."""


class Message(NamedTuple):
    """One request or response; nothing of it is checked, for both ends are ours."""

    first: str
    headers: dict[str, list[str]]
    """By name in small letters, in their order."""

    @property
    def code(self) -> int | None:
        """Of a response; None: a request."""
        return int(self.first[8:11]) if self.first.startswith("SIP/2.0 ") else None

    @property
    def method(self) -> str:
        """Of a request, or of the request that a response answers."""
        if self.first.startswith("SIP/2.0 "):
            return self.headers["cseq"][0].split()[1]
        return self.first.split(" ", 1)[0]

    def value(self, name: str) -> str:
        """First value of a header; empty without one."""
        found = self.headers.get(name)
        return found[0] if found else ""

    @property
    def branch(self) -> str:
        """Of the topmost Via."""
        return self.value("via").partition("branch=")[2].partition(";")[0]


def read(datagram: bytes) -> Message | None:
    """A datagram to a message; None for what is none, such as a keep-alive."""
    head = datagram.partition(b"\r\n\r\n")[0].decode("utf-8", "replace")
    first, *lines = head.split("\r\n")
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), []).append(value.strip())
    return Message(first, headers) if "call-id" in headers and "cseq" in headers else None


def text(first: str, *headers: tuple[str, str]) -> bytes:
    """A first line and headers to a message without a body."""
    lines = [first, *(f"{name}: {value}" for name, value in headers), "Content-Length: 0"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(
    request: Message, code: int, phrase: str, tag: str = "", *more: tuple[str, str]
) -> bytes:
    """A response to a request, with what must be copied out of it (RFC 3261 8.2.6.2)."""
    to = request.value("to")
    if tag and ";tag=" not in to:
        to += f";tag={tag}"
    copied = [("Via", via) for via in request.headers["via"]]
    copied += [("Record-Route", route) for route in request.headers.get("record-route", ())]
    copied += [("From", request.value("from")), ("To", to)]
    copied += [(name, request.value(name.lower())) for name in ("Call-ID", "CSeq")]
    return text(f"SIP/2.0 {code} {phrase}", *copied, *more)


def address(uri: str) -> str:
    """A Contact or a Route to the URI in its angle brackets."""
    return uri.partition("<")[2].partition(">")[0] or uri
