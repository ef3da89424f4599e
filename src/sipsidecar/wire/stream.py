"""Pieces of a SIP byte stream, as they were captured, to whole SIP messages (RFC 3261 18.3)."""

import re
from typing import Final

import msgspec

MAX_HELD: Final = 128 * 1024
"""Bytes held for one stream; an incomplete message that grows over it is given out truncated."""
MAX_START_LINE: Final = 8192
"""Bytes in which a start line must end."""

_TOKEN: Final = rb"[A-Za-z0-9.!%*_+`'~-]{1,32}"
# A start line as it stands at the head of a message: lenient, as spaces in a URI do occur.
_HEAD: Final = re.compile(
    rb"SIP/2\.0 [^\r\n]*\r?\n|" + _TOKEN + rb" [^\r\n]* SIP/2\.0[ \t]*\r?\n", re.IGNORECASE
)
# A start line among other bytes: strict, so that a line of a body is not taken for one.
_START: Final = re.compile(
    rb"(?:SIP/2\.0 [1-6][0-9]{2} [^\r\n]*|(" + _TOKEN + rb") [^ \r\n]+ SIP/2\.0)\r?\n",
    re.IGNORECASE,
)
_START_BELOW: Final = re.compile(rb"(?<=\n)" + _START.pattern, re.IGNORECASE)
_CUT_HEAD: Final = re.compile(
    _TOKEN + rb"(?: [^\r\n]*\r?)?|SIP(?:/(?:2(?:\.(?:0(?: .*)?)?)?)?)?", re.IGNORECASE
)
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_CONTENT_LENGTH: Final = re.compile(
    rb"\n(?:Content-Length|l)[ \t]*:(?:[ \t]|\r?\n[ \t])*([0-9]{1,9})[ \t]*\r?\n", re.IGNORECASE
)
_METHODS: Final = frozenset(
    b"INVITE ACK BYE CANCEL OPTIONS REGISTER PRACK SUBSCRIBE NOTIFY PUBLISH INFO REFER MESSAGE"
    b" UPDATE".split()
)


def _usual(start: re.Match[bytes]) -> bool:
    """Tell whether a start line is a status line or has a method of the RFCs, in capitals."""
    return start[1] is None or start[1] in _METHODS


class StreamMessage(msgspec.Struct, frozen=True, gc=False):
    """One SIP message of a stream, or a piece that is none."""

    payload: bytes
    captured_at: int | None
    """That of the payload which brought its first byte."""
    fragments: int
    """Over how many payloads it was spread."""
    packets: int
    """How many fed payloads it closes; over all outputs this sums up to the payloads fed."""
    truncated: bool = False
    """The rest of it never came, or was more than MAX_HELD."""
    garbage: bool = False
    """It has no start line: the tail of an unseen message, keep-alives alone, an empty payload."""


class SipStream:
    """Reassembles the SIP messages of one direction of one TCP, TLS or WebSocket connection.

    A message without Content-Length is the rest of the payload in which its headers end. CRLF
    between messages is dropped; nothing else is.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._captured_at: int | None = None  # of the first byte held
        self._newest_at: int | None = None
        self._fragments = 0
        self._open = 0  # payloads fed that no output has closed yet
        self._need = 0  # length of the message at the head, once its headers are complete
        self._scanned = 0  # bytes in which no end of headers was found

    @property
    def pending(self) -> int:
        """Bytes of the message that is not complete yet."""
        return len(self._held)

    def feed(self, payload: bytes, captured_at: int | None) -> list[StreamMessage]:
        """Return the messages and pieces that this payload completes, in order."""
        messages: list[StreamMessage] = []
        if self._held and self._starts_anew(payload):
            messages.append(self._give(len(self._held), truncated=True))
        self._open += 1
        self._newest_at = captured_at
        if not self._held:
            self._captured_at = captured_at
        self._fragments += bool(payload)
        self._held += payload
        self._skip_blank()
        while self._held and (length := self._measure()):
            messages.append(self._give(abs(length), garbage=length < 0))
            self._skip_blank()
        if len(self._held) > MAX_HELD:
            messages.append(self._give(len(self._held), truncated=True))
        if self._open and not self._held:
            # Keep-alives alone, or nothing: given out so that every payload is accounted for.
            self._held += payload
            self._fragments = 1
            messages.append(self._give(len(payload), garbage=True))
        return messages

    def flush(self) -> StreamMessage | None:
        """Give out the message that is held, truncated; the stream begins anew."""
        return self._give(len(self._held), truncated=True) if self._held else None

    def _skip_blank(self) -> None:
        held = self._held
        if held and held[0] in b"\r\n":
            del held[: len(held) - len(held.lstrip(b"\r\n"))]
        if not held:
            self._fragments = 0

    def _measure(self) -> int:
        """Return the length of what is complete at the head, negated for garbage; 0 to wait."""
        held = self._held
        if not self._need:
            if held.find(b"\n", 0, MAX_START_LINE) < 0:
                if len(held) < MAX_START_LINE and _CUT_HEAD.fullmatch(held):
                    return 0
                return -self._garbage_length()
            if not _HEAD.match(held):
                return -self._garbage_length()
            blank = _BLANK_LINE.search(held, self._scanned)
            if blank is None:
                self._scanned = max(0, len(held) - 2)
                return 0
            length = _CONTENT_LENGTH.search(held, 0, blank.end())
            self._need = blank.end() + int(length[1]) if length else len(held)
        return self._need if self._need <= len(held) else 0

    def _garbage_length(self) -> int:
        start = _START_BELOW.search(self._held)
        return start.start() if start else len(self._held)

    def _starts_anew(self, payload: bytes) -> bool:
        """Tell whether the message that is held was cut, and another begins with this payload."""
        start = _START.match(payload)
        if start is None:
            return False
        if self._need:
            # A body may hold a start line (message/sipfrag): it does when its length then fits.
            missing = self._need - len(self._held)
            rest = payload[missing:].lstrip(b"\r\n")
            if missing > len(payload) or not rest:
                return missing > len(payload)
            start_of_rest = _START.match(rest)
            return start_of_rest is None or (_usual(start) and not _usual(start_of_rest))
        if b"\n" in self._held:
            return True
        # Cut inside its start line: "PR" and "ACK sip:..." are one line, "INV" and "BYE ..." two.
        joined = _START.fullmatch(bytes(self._held) + start[0])
        return joined is None or (_usual(start) and not _usual(joined))

    def _give(
        self, length: int, *, truncated: bool = False, garbage: bool = False
    ) -> StreamMessage:
        message = StreamMessage(
            bytes(self._held[:length]),
            self._captured_at,
            self._fragments,
            self._open,
            truncated,
            garbage,
        )
        del self._held[:length]
        self._captured_at = self._newest_at
        self._fragments = 1 if self._held else 0
        self._open = self._need = self._scanned = 0
        return message


def is_whole(payload: bytes) -> bool:
    """Tell whether a payload is exactly one complete message, so that no stream is needed."""
    if payload.find(b"\n", 0, MAX_START_LINE) < 0 or not _HEAD.match(payload):
        return False
    blank = _BLANK_LINE.search(payload)
    if blank is None:
        return False
    length = _CONTENT_LENGTH.search(payload, 0, blank.end())
    return length is None or blank.end() + int(length[1]) == len(payload)
