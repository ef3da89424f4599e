"""Turns the messages of one call into a text ladder for a terminal.

One column per endpoint, the caller's side first; one arrow per message with its method or status
over it. Endpoints that do not fit are drawn closer together, then as a plain list. What was decided
about the call between two messages stands between them as a line.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from sipsidecar.tables import cells, clip, printable

__all__ = ["LadderMessage", "Remark", "printable", "render"]

_COMFORTABLE = 17  # cells from one lifeline to the next that leave room for an IPv4 address
_NARROW = 10  # ... and for "INVITE" or "200 OK" and its arrow; below that a list reads better
_WIDE = 48  # longer arrows only move the ends apart
_MARGIN = 9  # beside the outer lifelines: half of a heading
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLOURS = {"1": "36", "2": "32", "3": "33", "4": "31", "5": "31", "6": "31"}
_COLOUR_OF_REMARKS = "35"


class LadderMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message as it was captured; every text may be hostile."""

    at: int
    """Microseconds UTC."""
    sequence: int
    """Order of arrival: decides between equal stamps."""
    source: str
    """ip:port"""
    destination: str
    label: str
    """The method and target, or the status code and phrase."""
    notes: tuple[str, ...] = ()


class Remark(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to the call beside its messages, in words that may be hostile."""

    at: int
    """Microseconds UTC, by the clock of the messages."""
    text: str


def render(
    messages: Sequence[LadderMessage],
    *,
    width: int,
    colour: bool = False,
    remarks: Sequence[Remark] = (),
) -> str:
    """Draw the messages of one call by time, in lines of at most `width` cells (40 at least).

    Equal stamps keep the order of `sequence`, a remark comes after messages of its stamp. The first
    line has the absolute time of what is first (UTC), the left column the seconds since then.
    """
    if not messages and not remarks:
        return "no messages"
    width = max(width, 40)
    ordered = sorted(messages, key=lambda message: (message.at, message.sequence))
    steps: list[LadderMessage | Remark] = [*ordered, *remarks]
    steps.sort(key=lambda step: (step.at, isinstance(step, Remark)))
    start = steps[0].at
    times = [_elapsed(step.at - start) for step in steps]
    left = max(_MARGIN - 2, *map(len, times)) + 2
    columns = _columns(ordered, width - left - _MARGIN)
    if columns:
        lines = _ladder(steps, times, columns, left, width, colour)
    else:
        lines = _list(steps, times, width, colour)
    title = f"{_date(start)}, {len(ordered) or 'no'} message{'s' if len(ordered) != 1 else ''}"
    return "\n".join([clip(title, width), "", *map(str.rstrip, lines)])


def _elapsed(micros: int) -> str:
    return f"+{micros // 1_000_000}.{micros % 1_000_000 // 1000:03d}"


def _date(at: int) -> str:
    try:
        moment = _EPOCH + timedelta(microseconds=at)
    except OverflowError:
        return f"{at} us since 1970"
    return f"{moment:%Y-%m-%d %H:%M:%S.%f} UTC"


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0] or endpoint


def _columns(ordered: Sequence[LadderMessage], room: int) -> dict[str, tuple[int, str]]:
    """Give each endpoint its column's index and name; empty when a ladder would not fit."""
    apart = {end: end for message in ordered for end in (message.source, message.destination)}
    # The ports of one host share a column only where they do not talk to each other: a proxy and
    # a switch on one machine stay two, the connections of one client become one.
    between = {(message.source, message.destination) for message in ordered}
    busy = {_host(one) for one, other in between if one != other and _host(one) == _host(other)}
    ports = Counter(map(_host, apart))
    several = {host for host, count in ports.items() if count > 1 and host not in busy}
    merged = {end: f"{_host(end)}:*" if _host(end) in several else end for end in apart}
    for names, pitch in (apart, _COMFORTABLE), (merged, _COMFORTABLE), (merged, _NARROW):
        if 1 < len(set(names.values())) <= room // pitch + 1:
            order = _order(ordered, names)
            return {end: (order.index(name), name) for end, name in names.items()}
    return {}


def _order(ordered: Sequence[LadderMessage], names: dict[str, str]) -> list[str]:
    """Column names by first appearance, as the requests flow: the caller's side first."""
    seen: list[str] = []
    for message in ordered:
        near, far = names[message.source], names[message.destination]
        if message.label[:3].isdecimal():
            near, far = far, near  # a response flows back
        if near not in seen:
            # Stamps may put a relayed INVITE before the INVITE that it came from.
            earlier = seen[:1] == [far] and message.label.startswith("INVITE")
            seen.insert(0 if earlier else len(seen), near)
        if far not in seen:
            seen.append(far)
    return seen


def _ladder(
    steps: Sequence[LadderMessage | Remark],
    times: Sequence[str],
    columns: dict[str, tuple[int, str]],
    left: int,
    width: int,
    colour: bool,
) -> list[str]:
    names = [name for _, name in sorted(set(columns.values()))]
    last = len(names) - 1
    pitch = min((width - left - _MARGIN) // last, _WIDE)
    gap = "|" + " " * (pitch - 1)
    lines = [*_headings(names, left, pitch, width), " " * left + gap * last + "|"]
    for step, time in zip(steps, times, strict=True):
        if isinstance(step, Remark):
            lines.append(time.rjust(left - 2).ljust(left) + _remark(step, width - left, colour))
            continue
        near, far = columns[step.source][0], columns[step.destination][0]
        low, high = min(near, far), max(near, far)
        if near == far:  # to itself: drawn beside its lifeline, where there is room
            low, high = (near, near + 1) if near < last else (near - 1, near)
        inner = (high - low) * pitch - 1
        over, shaft = _arrow(step, inner, rightward=near < far, loop=near == far, at=near - low)
        for lead, middle in (time.rjust(left - 2).ljust(left), over), (" " * left, shaft):
            painted = _painted(middle, step.label, colour)
            lines.append(lead + gap * low + "|" + painted + gap * (last - high) + "|")
    return lines


def _arrow(
    message: LadderMessage, width: int, *, rightward: bool, loop: bool, at: int
) -> tuple[str, str]:
    """Draw the label's line and the arrow's line, `width` cells each, from strangers' text."""
    notes = clip(", ".join(message.notes), width - 5)
    if loop:
        label = clip(message.label, width - 2)
        if at:  # beside the rightmost lifeline
            return _pad(f"{label} ", width, 1.0), _pad(f"{notes} '->", width, 1.0)
        return _pad(f" {label}", width, 0.0), _pad(f"<-' {notes}", width, 0.0)
    label = clip(message.label, width - 2 if width > 12 else width)
    shaft = _pad(f" {notes} " if notes else "", width - 1, 0.5, "-")
    return _pad(label, width, 0.5), shaft + ">" if rightward else "<" + shaft


def _pad(text: str, width: int, share: float, fill: str = " ") -> str:
    before = int((width - cells(text)) * share)
    return fill * before + text + fill * (width - cells(text) - before)


def _painted(text: str, label: str, colour: bool) -> str:
    code = _COLOURS.get(label[:1]) if colour else None
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _headings(names: Sequence[str], left: int, pitch: int, width: int) -> list[str]:
    """Name the columns: in one row, or address over port, or by numbers and a list of them."""
    places = [left + pitch * index for index in range(len(names))]
    whole = [printable(name) for name in names]
    hosts = [_host(name) for name in whole]
    ports = [name[len(host) :] for name, host in zip(whole, hosts, strict=True)]
    for rows in [[whole], [hosts, ports]]:
        drawn = [_place(texts, places, width) for texts in rows]
        if all(drawn):
            return drawn
    marks = [f"[{number}]" for number in range(1, len(names) + 1)]
    legend = [f"{mark} {clip(name, width - 5)}" for mark, name in zip(marks, names, strict=True)]
    return [*legend, "", _place(marks, places, width)]


def _place(texts: Sequence[str], places: Sequence[int], width: int) -> str:
    """Centre each text on its place; nothing when two would touch."""
    line = ""
    for text, place in zip(texts, places, strict=True):
        at = max(0, min(place - cells(text) // 2, width - cells(text)))
        if line and at <= cells(line):
            return ""
        line += " " * (at - cells(line)) + text
    return line


def _remark(remark: Remark, width: int, colour: bool) -> str:
    text = f"-- {clip(remark.text, width - 6)} --"
    return f"\x1b[{_COLOUR_OF_REMARKS}m{text}\x1b[0m" if colour else text


def _list(
    steps: Sequence[LadderMessage | Remark], times: Sequence[str], width: int, colour: bool
) -> list[str]:
    left = max(map(len, times))
    most = max(6, (width - left - 28) // 2)  # of each address; its end tells it from others

    def short(endpoint: str) -> str:
        text = ascii(endpoint)[1:-1]  # an address; whatever else it is becomes escapes
        return text if len(text) <= most else ".." + text[2 - most :]

    messages = [step for step in steps if isinstance(step, LadderMessage)]
    size = max(
        (len(short(end)) for one in messages for end in (one.source, one.destination)), default=0
    )
    lines = []
    for step, time in zip(steps, times, strict=True):
        if isinstance(step, Remark):
            room = width - left - 2
            lines.append(f"{time.rjust(left)}  {_remark(step, room, colour)}")
            continue
        ends = f"{short(step.source).ljust(size)} -> {short(step.destination).ljust(size)}"
        notes = f" ({', '.join(step.notes)})" if step.notes else ""
        room = width - left - len(ends) - 4
        text = _painted(clip(step.label + notes, room), step.label, colour)
        lines.append(f"{time.rjust(left)}  {ends}  {text}")
    return lines
