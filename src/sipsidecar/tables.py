"""Turns text of strangers into text fit for a terminal, and rows into an aligned table.

Pure, and imports nothing of the project, so that every room may use it.
"""

import unicodedata
from collections.abc import Mapping, Sequence

_LEAST = 8  # cells that a column of text keeps, however narrow the terminal


def printable(text: str) -> str:
    r"""Turn any text into text that cannot move, colour or reverse a terminal.

    Controls, format characters (bidi among them), surrogates, private and unassigned code points
    and line or paragraph separators become ``\x1b``, ``\u202e`` or ``\U000e0001``.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    category = unicodedata.category(char)
    if category[0] != "C" and category not in {"Zl", "Zp"}:
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cells(text: str) -> int:
    """How many terminal cells printable text takes: East Asian wide is 2, a combining mark 0."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def clip(text: str, width: int) -> str:
    """Make any text printable and at most `width` cells wide; ``..`` stands for what was cut."""
    text = printable(text[: width + 1])  # one more than fits, so that a cut shows as one
    if cells(text) <= width:
        return text
    room = max(width - 2, 0)
    kept = 0
    while (room := room - _cells_of(text[kept])) >= 0:
        kept += 1
    return text[:kept] + ".."[:width]


def table(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str], width: int | None = None
) -> str:
    """Draw one line per row under the column names, each line at most `width` cells.

    Numbers stand right and share their decimals, None is ``-``, a tuple is comma-joined. What is
    too wide takes from the widest columns of text first. Without `width` nothing is clipped.
    """
    values = {name: [row.get(name) for row in rows] for name in columns}
    texts = {name: _texts(values[name]) for name in columns}
    sizes = {name: max(map(cells, [printable(name), *texts[name]])) for name in columns}
    numbers = {
        name
        for name in columns
        if any(_is_number(value) for value in values[name])
        and all(value is None or _is_number(value) for value in values[name])
    }
    shrinkable = [name for name in columns if name not in numbers]
    while width is not None and sum(sizes.values()) + 2 * (len(sizes) - 1) > width:
        widest = max(shrinkable, key=sizes.__getitem__, default=None)
        if widest is None or sizes[widest] <= _LEAST:
            break
        sizes[widest] -= 1

    def line(parts: Mapping[str, str]) -> str:
        drawn = []
        for name in columns:
            text = clip(parts[name], sizes[name])
            space = " " * (sizes[name] - cells(text))
            drawn.append(space + text if name in numbers else text + space)
        whole = "  ".join(drawn).rstrip()
        return whole if width is None else clip(whole, width)

    heading = {name: name for name in columns}
    body = ({name: texts[name][index] for name in columns} for index in range(len(rows)))
    return "\n".join(map(line, (heading, *body)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _texts(values: Sequence[object]) -> list[str]:
    """Turn the values of one column into text; its floats share as many decimals as they need."""
    floats = [f"{value:.3f}".rstrip("0") for value in values if isinstance(value, float)]
    decimals = max((len(text.partition(".")[2]) for text in floats), default=0)
    return [printable(_text(value, decimals)) for value in values]


def _text(value: object, decimals: int) -> str:
    if value is None or value in ("", (), []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value)
