"""Draws two SIP messages side by side, line by line, with the lines that differ marked."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from sipsidecar.tables import cells, clip
from sipsidecar.wire import sip

MAX_LINES = 150
"""Lines of each message that are drawn."""
_COLOURS = {"|": "33", "<": "31", ">": "32"}
_VARIES = re.compile(r"[0-9a-fA-F]{4,}|[0-9]+")
"""What is another number in every call."""
LEGEND = "|: differs, <: only on the left, >: only on the right, .: other numbers only"


def side_by_side(
    left: bytes, right: bytes, titles: tuple[str, str], *, width: int, colour: bool = False
) -> str:
    """Two messages in two columns of together at most `width` cells (60 at least).

    Lines of the same header or SDP attribute stand beside each other, in the order they came.
    """
    half = (max(width, 60) - 3) // 2
    rows = [("", *titles), *_aligned(_lines(left), _lines(right))]
    drawn = []
    for mark, one, other in rows:
        first = clip(one, half)
        text = f"{first}{' ' * (half - cells(first))} {mark or ' '} {clip(other, half)}".rstrip()
        code = _COLOURS.get(mark)
        drawn.append(f"\x1b[{code}m{text}\x1b[0m" if colour and code else text)
    return "\n".join(drawn)


def _lines(payload: bytes) -> list[str]:
    raw = payload.split(b"\n", MAX_LINES + 1)
    lines = [sip.text(line.rstrip(b"\r")) for line in raw[:MAX_LINES]]
    while lines and not lines[-1]:
        lines.pop()
    if len(raw) > MAX_LINES:
        lines.append("... and more lines")
    return lines


def _aligned(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Rows of a mark and both texts."""
    matcher = SequenceMatcher(None, [*map(_key, left)], [*map(_key, right)], autojunk=False)
    for _, i, i_end, j, j_end in matcher.get_opcodes():
        pairs = i_end - i if i_end - i == j_end - j and _key(left[i]) == _key(right[j]) else 0
        for n in range(pairs):
            one, other = left[i + n], right[j + n]
            yield _mark(one, other), one, other
        if not pairs:
            yield from (("<", one, "") for one in left[i:i_end])
            yield from ((">", "", other) for other in right[j:j_end])


def _mark(one: str, other: str) -> str:
    if one == other:
        return ""
    return "." if _VARIES.sub("0", one) == _VARIES.sub("0", other) else "|"


def _key(line: str) -> str:
    """What a line is about: a header's name, an SDP attribute."""
    if line[1:2] == "=":
        return re.split(r"[: ]", line, maxsplit=1)[0] if line[0] == "a" else line[:2]
    return line.partition(":")[0].strip().lower() if ":" in line else line[:6]
