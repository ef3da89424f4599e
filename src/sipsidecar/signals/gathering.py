"""Rows of one minute to what each cohort counted, and to the series that a cohort is of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from sipsidecar.calls.events import OTHER
from sipsidecar.signals.alarms import CATEGORIES, DIMENSIONS, Scope
from sipsidecar.signals.minutes import DELAY_BOUNDS_MS, CodeMinute, KpiMinute
from sipsidecar.signals.series import FIRST, INEFFECTIVE, TOTAL, UNANSWERED, WIDTH

Cell: TypeAlias = dict[int, float]
"""What a minute of a cohort or series counted: by column of `series`, by final code from 400 on, and
from 1000 on what gauges are read from."""
Key: TypeAlias = tuple[str, ...]
"""A cohort: source, then the values of `DIMENSIONS`."""

SOURCES: Final = frozenset({"call", "trunk"})
PDD_PLACE: Final = 1000
"""Its buckets follow."""
PDD_PLACES: Final = range(PDD_PLACE, PDD_PLACE + len(DELAY_BOUNDS_MS) + 1)
JITTER_SUM, JITTER_COUNT = 1100, 1101
CHALLENGES: Final = (401, 407)

COLUMN: Final = {
    **dict.fromkeys(range(400, 500), FIRST + CATEGORIES.index("4xx")),
    **dict.fromkeys(range(500, 600), FIRST + CATEGORIES.index("5xx")),
    **dict.fromkeys(range(600, 700), FIRST + CATEGORIES.index("6xx")),
    **{int(name): FIRST + place for place, name in enumerate(CATEGORIES) if name.isdigit()},
}
"""Final code to the column that it counts in; unanswered challenges are no seizures, and in none."""
for _code in CHALLENGES:
    del COLUMN[_code]

_SINGLE: Final = {"call": ("tenant", "direction", "region", "agent"), "trunk": ("trunk", "carrier")}
_COMBINED: Final = ("tenant", "trunk", "direction", "region")


def source_of(scope: Scope) -> str:
    """Which rows a scope is counted from: attempts where a trunk or carrier is part of it."""
    return "trunk" if any(name in _SINGLE["trunk"] for name, _ in scope) else "call"


def scopes_of(key: Key) -> list[Scope]:
    """Every scope that a cohort counts in: all, each named value, and the combination of them.

    `other` and empty are no names. A combination of one name is that name. One without a trunk is
    counted from calls that have none; those that have one are in the combination of their attempts.
    """
    source = key[0]
    values = {
        name: value
        for name, value in zip(DIMENSIONS, key[1:], strict=True)
        if value and value != OTHER
    }
    found: list[Scope] = [()]
    found += [((name, values[name]),) for name in _SINGLE[source] if name in values]
    combined = tuple((name, values[name]) for name in _COMBINED if name in values)
    if len(combined) > 1 and (source == "trunk") == ("trunk" in values):
        found.append(combined)
    return found


def gather(cells: dict[Key, Cell], rows: Iterable[KpiMinute]) -> None:
    """Add rows of figures to the cells of their cohorts."""
    for row in rows:
        if row.source not in SOURCES or not (row.seizures or row.pdd_count or row.jitter_count):
            continue
        cell = _cell(cells, row)
        get = cell.get
        if row.seizures:
            cell[TOTAL] = get(TOTAL, 0) + row.seizures
            cell[UNANSWERED] = get(UNANSWERED, 0) + row.seizures - row.answered
            cell[INEFFECTIVE] = get(INEFFECTIVE, 0) + row.seizures - row.effective
        if row.pdd_count:
            for place, count in zip(PDD_PLACES, row.pdd_buckets, strict=False):
                if count:
                    cell[place] = get(place, 0) + count
        if row.jitter_count:
            cell[JITTER_SUM] = get(JITTER_SUM, 0.0) + row.jitter_sum_ms
            cell[JITTER_COUNT] = get(JITTER_COUNT, 0) + row.jitter_count


def gather_codes(cells: dict[Key, Cell], rows: Iterable[CodeMinute]) -> None:
    """Add rows of codes to the cells of their cohorts; our own refusals are in none."""
    for row in rows:
        if row.source in SOURCES and row.code in COLUMN and row.origin != "admission":
            cell = _cell(cells, row)
            for place in (row.code, COLUMN[row.code]):
                cell[place] = cell.get(place, 0) + row.count


def _cell(cells: dict[Key, Cell], row: KpiMinute | CodeMinute) -> Cell:
    key = (
        row.source, row.tenant, row.trunk, row.carrier, row.direction, row.region, row.agent,
        row.codec,
    )  # fmt: skip
    cell = cells.get(key)
    if cell is None:
        cell = cells[key] = {}
    return cell


def add(into: Cell, cell: Cell) -> None:
    """Add what one cell counted to another."""
    get = into.get
    for place, value in cell.items():
        into[place] = get(place, 0) + value


def pairs_of(cell: Mapping[int, float]) -> list[tuple[int, int]]:
    """Columns and counts as a ring takes them.

    Nothing where there is no seizure, and no more of anything than there are of them.
    """
    total = int(cell.get(TOTAL, 0))
    if total <= 0:
        return []
    return [(place, min(int(value), total)) for place, value in cell.items() if place < WIDTH]


def codes_of(cell: Mapping[int, float]) -> tuple[int, ...]:
    """Code, count, code, count ... of those that failed."""
    return tuple(
        each for place, value in cell.items() if 400 <= place < 700 for each in (place, int(value))
    )


def matches(key: Key, scope: Sequence[tuple[str, str]]) -> bool:
    """Whether a cohort is within a scope."""
    return all(key[1 + DIMENSIONS.index(name)] == value for name, value in scope)
