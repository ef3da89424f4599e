"""Lines over two axes to SVG, without a library."""

from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

COLOURS: Final = ("#c0392b", "#1f6feb", "#2a9d4a", "#b7791f", "#7d3cb5", "#56606b")
WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 52


class Line(NamedTuple):
    """One line; a point without a value is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]
    dashed: bool = False


class Panel(NamedTuple):
    """One pair of axes, both from 0 on, and its lines."""

    title: str
    across: str
    up: str
    lines: Sequence[Line]
    marks: Sequence[tuple[float, str]] = ()
    """Places across that a word stands at."""


def steps(most: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to `most` or a little more, about so many."""
    raw = max(most, 1e-9) / count
    power = 10.0 ** (len(f"{int(raw)}") - 1) if raw >= 1 else 1.0
    while power > raw:
        power /= 10
    width = next((power * one for one in (1, 2, 2.5, 5) if power * one >= raw), power * 10)
    found = [0.0]
    while found[-1] < most - 1e-9:
        found.append(round(found[-1] + width, 9))
    return found


def draw(panels: Sequence[Panel]) -> str:
    """Panels beside each other, with one legend below, as one SVG document."""
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    colour = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}
    whole, high = WIDTH * len(panels), HEIGHT + 24
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {high}" width="{whole}"'
            f' height="{high}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{whole}" height="{high}" fill="white"/>',
    ]
    for at, panel in enumerate(panels):
        parts += [f'<g transform="translate({at * WIDTH} 0)">', *_panel(panel, colour), "</g>"]
    dashed = {line.name for panel in panels for line in panel.lines if line.dashed}
    x = float(LEFT)
    for name in names:
        parts.append(_stroke([(x, HEIGHT + 8), (x + 22, HEIGHT + 8)], colour[name], name in dashed))
        parts.append(f'<text x="{x + 27:g}" y="{HEIGHT + 12}">{escape(name)}</text>')
        x += 44 + 6.6 * len(name)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, colour: dict[str, str]) -> list[str]:
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points if y is not None]
    across, up = steps(max(xs, default=1)), steps(max(ys, default=1))

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + x / across[-1] * (WIDTH - LEFT - RIGHT)
        return round(right, 1), round(HEIGHT - BOTTOM - y / up[-1] * (HEIGHT - TOP - BOTTOM), 1)

    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<text x="{middle}" y="22" text-anchor="middle" font-size="14">{escape(panel.title)}</text>'
    ]
    for tick in up:
        x, y = place(0, tick)
        parts.append(_stroke([(x, y), place(across[-1], tick)], "#d8dde3"))
        parts.append(f'<text x="{x - 6:g}" y="{y + 4:g}" text-anchor="end">{tick:g}</text>')
    for tick in across:
        x, y = place(tick, 0)
        parts.append(_stroke([(x, y), (x, y + 4)], "#56606b"))
        parts.append(f'<text x="{x:g}" y="{y + 17:g}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - BOTTOM + 36}" text-anchor="middle">{escape(panel.across)}</text>'
    )
    half = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(16 {half:g}) rotate(-90)" text-anchor="middle">{escape(panel.up)}</text>'
    )
    for at, words in panel.marks:
        x, y = place(at, 0)
        parts.append(_stroke([(x, TOP), (x, y)], "#56606b", dashed=True))
        parts.append(f'<text x="{x + 4:g}" y="{TOP + 10}">{escape(words)}</text>')
    for line in panel.lines:
        run: list[tuple[float, float]] = []
        for x, value in [*line.points, (0.0, None)]:
            if value is not None:
                run.append(place(x, value))
            elif run:
                parts.append(_stroke(run, colour[line.name], line.dashed, 2))
                run = []
    return parts


def _stroke(
    points: Sequence[tuple[float, float]], colour: str, dashed: bool = False, width: float = 1
) -> str:
    where = " ".join(f"{x:g},{y:g}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>'
    )
