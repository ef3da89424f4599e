"""Findings of detectors to alarms, with the one line that says what is wrong (standards 5.2)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sipsidecar.signals.alarms import WARN, Alarm, Scope
from sipsidecar.signals.burning import Burning
from sipsidecar.signals.chances import poisson_lower
from sipsidecar.signals.gathering import COLUMN
from sipsidecar.signals.rates import LONGEST, Finding, Held, Normal
from sipsidecar.signals.series import COUNTED, FIRST, INEFFECTIVE, TOTAL, UNANSWERED
from sipsidecar.signals.setups import NUMERATORS, kind_of_code
from sipsidecar.signals.wording import (
    codes_text,
    line,
    minute_text,
    normal_text,
    percent_text,
    probability_text,
    values_text,
    window_text,
)

MINUTE_US: Final = 60_000_000
TOP: Final = 5
LEARNED: Final = 20
"""Failures from which on it is known which codes they usually have."""
_WORD: Final = {"asr": "ASR", "ner": "NER"}
_GAUGES: Final = {"pdd": "PDD p95", "jitter": "jitter"}


class More(NamedTuple):
    """What an alarm says besides its figures."""

    codes: tuple[tuple[int, int], ...]
    """And how many more there are than normal."""
    by_trunk: Mapping[str, int]
    severities: Mapping[str, str]


def figures_of(held: Held) -> int:
    """The minutes that an alarm's figures are of: once it is calm, never the last one alone."""
    return held.window if held.calm == 0 else max(held.window, 5)


def rate_alarm(
    scope: Scope,
    normal: Normal,
    finding: Finding,
    minute: int,
    counted: Sequence[int],
    cusum: float,
    more: More,
) -> Alarm:
    """Turn too many of one category into an alarm; `counted` is of the alarm's window."""
    source, column, held = finding.source, finding.column, finding.held
    size, total, bad = figures_of(held), counted[TOTAL], counted[column]
    category, share = COUNTED[column - FIRST], normal.p[column - FIRST]
    chance = z = None
    if source == "three-sigma":
        share = finding.expected
        usual = (
            "" if share is None else f"mean of its minutes in seven days is {percent_text(share)}"
        )
    else:
        chance, z = normal.chance(column, bad, total), normal.z(column, bad, total)
        known = "unknown" if share is None else percent_text(share)
        usual = normal_text(normal.known, normal.hour, known)
    seen = percent_text(bad / total) if total else "unknown"
    return Alarm(
        source=source,
        category=category,
        scope=scope,
        at=(minute + 1) * MINUTE_US,
        active=finding.active,
        severity=more.severities.get(category, WARN),
        summary=_line(
            f"{category} {seen} ({bad} of {total}) {window_text(size)}",
            usual,
            chance,
            z,
            held,
            more,
        ),
        since=held.since * MINUTE_US,
        value=100 * bad / total if total else None,
        expected=None if share is None else 100 * share,
        count=bad,
        total=total,
        probability=chance,
        z=z,
        codes=more.codes,
        evidence=_evidence(
            minutes=size,
            known=normal.known,
            phi=round(normal.phi[column - FIRST], 2),
            cusum=round(cusum, 1) if source == "drift" else None,
            trunks=dict(more.by_trunk),
        ),
    )


def level_alarm(
    scope: Scope,
    normal: Normal,
    finding: Finding,
    minute: int,
    counted: Sequence[int],
    fixed: float | None,
    more: More,
) -> Alarm:
    """Turn too low an ASR or NER into an alarm; `fixed` is its threshold if it has one."""
    source, column, held = finding.source, finding.column, finding.held
    size, total, bad = figures_of(held), counted[TOTAL], counted[column]
    share = normal.p[column - FIRST]
    chance = z = None
    expected = fixed
    if fixed is not None:  # such a rule is not about chance
        usual = f"least is {percent_text(fixed)}"
    else:
        chance, z = normal.chance(column, bad, total), normal.z(column, bad, total)
        expected = None if share is None else 1 - share
        known = "unknown" if expected is None else percent_text(expected)
        usual = normal_text(normal.known, normal.hour, known)
    seen = percent_text((total - bad) / total) if total else "unknown"
    return Alarm(
        source=source,
        category=source,
        scope=scope,
        at=(minute + 1) * MINUTE_US,
        active=finding.active,
        severity=WARN,
        summary=_line(
            f"{_WORD[source]} {seen} ({total - bad} of {total}) {window_text(size)}",
            usual, chance, z, held, more,
        ),
        since=held.since * MINUTE_US,
        value=100 * (total - bad) / total if total else None,
        expected=None if expected is None else 100 * expected,
        count=total - bad,
        total=total,
        probability=chance,
        z=z,
        codes=more.codes,
        evidence=_evidence(minutes=size, known=normal.known, trunks=dict(more.by_trunk)),
    )  # fmt: skip


def volume_alarm(scope: Scope, normal: Normal, finding: Finding, minute: int) -> Alarm:
    """Turn too few calls into an alarm."""
    held, value, expected = finding.held, finding.value, finding.expected
    assert value is not None
    chance = None if expected is None else poisson_lower(int(value), expected)
    return Alarm(
        source="volume",
        category="volume",
        scope=scope,
        at=(minute + 1) * MINUTE_US,
        active=finding.active,
        severity=WARN,
        summary=line(
            f"{value:.0f} calls {window_text(held.window)}",
            normal_text("own", normal.hour, "unknown" if expected is None else f"{expected:.0f}"),
            "" if chance is None else f"chance of this by luck {probability_text(chance)}",
            f"first seen {minute_text(held.since)}",
        ),
        since=held.since * MINUTE_US,
        value=value,
        expected=expected,
        total=int(value),
        probability=chance,
        evidence=_evidence(minutes=held.window),
    )


def gauge_alarm(
    scope: Scope,
    finding: Finding,
    minute: int,
    limit: float | None,
    slow_calls: tuple[int, int] | None = None,
) -> Alarm:
    """Turn a gauge over its limit into an alarm; `slow_calls`: of how many, where that is known."""
    held, value = finding.held, finding.value
    slow, calls = slow_calls or (0, 0)
    usual = ""
    if finding.expected is not None and limit is not None:
        usual = f"usual is {finding.expected:.0f} ms, at most {limit:.0f} ms"
    return Alarm(
        source=finding.source,
        category=finding.source,
        scope=scope,
        at=(minute + 1) * MINUTE_US,
        active=finding.active,
        severity=WARN,
        summary=line(
            f"{_GAUGES[finding.source]} {value:.0f} ms, smoothed",
            usual,
            f"{slow} of {calls} calls were slow in half an hour" if slow else "",
            f"first seen {minute_text(held.since)}",
        ),
        since=held.since * MINUTE_US,
        value=value,
        expected=finding.expected,
        count=slow or None,
        total=calls or None,
        evidence=_evidence(limit_ms=None if limit is None else round(limit, 1)),
    )


def budget_alarm(
    scope: Scope,
    burning: Burning,
    minute: int,
    counted: tuple[int, int],
    name: str,
    measure: str,
    promised: float,
) -> Alarm:
    """Turn a budget that burns into an alarm; `counted` is calls and bad ones, `promised` percent."""
    finding, pair, burns = burning
    total, bad = counted
    seen = percent_text((total - bad) / total) if total else "unknown"
    return Alarm(
        source="slo",
        category=f"slo-{name}",
        scope=scope,
        at=(minute + 1) * MINUTE_US,
        active=finding.active,
        severity=pair.severity,
        summary=line(
            f"{_WORD[measure]} {seen} ({total - bad} of {total}) {window_text(pair.long)}",
            f"{promised:g} % is promised ({name})",
            f"its budget goes {burns[0]:.1f} times too fast, {burns[1]:.1f} times"
            f" {window_text(pair.short)}",
            f"first seen {minute_text(finding.held.since)}",
        ),
        since=finding.held.since * MINUTE_US,
        value=100 * (total - bad) / total if total else None,
        expected=promised,
        count=total - bad,
        total=total,
        evidence=_evidence(
            minutes=min(pair.long, LONGEST),
            slo=name,
            burn_long=round(burns[0], 2),
            burn_short=round(burns[1], 2),
        ),
    )


def surplus(
    minutes: Iterable[Sequence[int]], mix: Mapping[int, int], column: int, usual: float
) -> tuple[tuple[int, int], ...]:
    """Turn codes of minutes (code, count, code, count ...) into how many more than normal, most first.

    `usual` is how many of the column would be normal; `mix` says how often each code was there while
    nothing was wrong. Until that is known they are taken to be divided as they are now.
    """
    counts: Counter[int] = Counter()
    for one in minutes:
        for code, count in zip(one[::2], one[1::2], strict=True):
            if _counts_in(code, column):
                counts[code] += count
    failed = sum(counts.values())
    known = sum(count for code, count in mix.items() if _counts_in(code, column))
    found = []
    for code, count in counts.items():
        part = mix.get(code, 0) / known if known >= LEARNED else count / failed
        more = round(count - usual * part)
        if more > 0:
            found.append((code, more))
    return tuple(sorted(found, key=lambda one: (-one[1], one[0]))[:TOP])


def _counts_in(code: int, column: int) -> bool:
    if column == INEFFECTIVE:
        return kind_of_code(code) not in NUMERATORS["ner_percent"]
    return column in (UNANSWERED, COLUMN[code])


def _line(
    what: str, usual: str, chance: float | None, z: float | None, held: Held, more: More
) -> str:
    return line(
        what,
        usual,
        "" if chance is None else f"chance of this by luck {probability_text(chance)}",
        "" if z is None else f"z {z:.1f}",
        codes_text(more.codes),
        f"first seen {minute_text(held.since)}",
        values_text("trunks", more.by_trunk),
    )


def _evidence(**figures: object) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if value is not None and value != {}}
