"""The alarms that hold at one time to troubles: what is of one cause, and of which cohort."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final

import msgspec

from sipsidecar.signals.alarms import CATEGORIES, SEVERITIES, Alarm, Scope, Share
from sipsidecar.signals.attribution import (
    EXPLAINS,
    ORDER,
    UPSTREAM,
    Attribution,
    Sums,
    add_up,
    attribute,
    divide,
    is_compatible,
    is_inside,
    is_nested,
    lead_of,
    matches,
    order_scope,
    portions,
)

SAME_TIME: Final = 300_000_000
"""Microseconds: what begins within it of each other may be one trouble. Detectors see the same outage
a few minutes apart."""
MAX_ROUNDS: Final = 8
"""So often the excess of one category is divided in one look; what is left then is told apart by the
words of its scopes."""
BELONGS: Final = 0.5
"""An alarm belongs to troubles that have at least so much of its excess, and there to the largest."""
OWN: Final = 0.8
"""An alarm with so much of its excess in one of several troubles proves that this is one."""

_CALLS: Final = frozenset({"asr", "ner", "slo"})
EFFECTS: Final[Mapping[str, frozenset[str]]] = {
    "trunk-down": _CALLS | {"5xx", "4xx", "480", "volume", "pdd", "failover-loop"},
    "5xx": _CALLS | {"pdd", "failover-loop"},
    "4xx": _CALLS | {"pdd"},
    "6xx": _CALLS,
    "404": _CALLS,
    "480": _CALLS,
    "486": _CALLS,
    "487": _CALLS,
    "ner": frozenset({"asr", "slo"}),
    "asr": frozenset({"slo"}),
}
"""What a trouble of one category makes alarms of others of, by itself; causes first. 408 is a 4xx."""
CAUSES: Final[Mapping[str, tuple[str, ...]]] = {
    effect: tuple(cause for cause, effects in EFFECTS.items() if effect in effects)
    for effect in sorted(frozenset().union(*EFFECTS.values()))
}
"""The same, by effect."""
_DIVIDED: Final = frozenset({*CATEGORIES, "asr", "ner", "slo"})
_RANKS: Final = {category: rank for rank, category in enumerate(EFFECTS)}

Key = tuple[str, str, Scope]


class Trouble(msgspec.Struct, kw_only=True):
    """Alarms that say the same thing, the alarms of its effects among them."""

    category: str
    scope: Scope
    alarms: list[Alarm]
    onset: int
    """When the first of its own alarms began, microseconds UTC."""
    known: bool = False
    """Shares say where it is; else only words and counts of its alarms do."""
    explained: float | None = None
    dimension: str = ""
    by_value: Mapping[str, int] = {}
    upstream: bool = False
    excess: float = 0.0
    """Failures more than normal, as shares say; 0: they do not."""


def kind_of(category: str) -> str:
    """Turn a category into what effects and causes go by: each objective is an slo."""
    return "slo" if category.startswith("slo-") else category


def is_divided(category: str) -> bool:
    """Whether a category has failures, which can be divided among cohorts."""
    return kind_of(category) in _DIVIDED


def rank_of(category: str) -> int:
    """Turn a category into how near it is to the cause, nearest 0."""
    return _RANKS.get(kind_of(category), len(_RANKS))


def weight_of(severity: str) -> int:
    """Turn a severity into its weight; an unknown word weighs least."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else 0


def onset_of(alarm: Alarm) -> int:
    """When an alarm began, as far as it says."""
    return alarm.at if alarm.since is None else alarm.since


def explains(cause: str, cause_scope: Scope, effect: str, effect_scope: Scope, later: int) -> bool:
    """Whether a trouble of one category and scope explains one of another.

    The other is inside of it and did not begin before it; or both began together, and a call can be
    of both. `later`: microseconds that the effect began after the cause.
    """
    if kind_of(effect) not in EFFECTS.get(cause, ()) or later < -SAME_TIME:
        return False
    if is_inside(effect_scope, cause_scope):
        return True
    return later <= SAME_TIME and is_compatible(effect_scope, cause_scope)


Divide = Callable[[Alarm], Sequence[Share]]


def find_troubles(alarms: Iterable[Alarm], shares: Divide) -> list[Trouble]:
    """Turn all alarms that hold into troubles, causes first.

    No two of one category have scopes of which one is inside the other. Each key may be there once;
    scopes are in the order of `DIMENSIONS`.
    """
    categories: dict[str, list[Alarm]] = {}
    for alarm in alarms:
        categories.setdefault(alarm.category, []).append(alarm)
    return fold_effects(
        trouble for each in categories.values() for trouble in part_category(each, shares)
    )


def part_category(alarms: Iterable[Alarm], shares: Divide) -> list[Trouble]:
    """Turn the alarms of one category into its troubles; `shares` is asked where it can know."""
    scopes: dict[Scope, list[Alarm]] = {}
    for alarm in sorted(alarms, key=lambda alarm: alarm.key):
        scopes.setdefault(alarm.scope, []).append(alarm)
    left = dict(scopes)
    silent: dict[Scope, list[Alarm]] = {}
    category = next((alarm.category for said in scopes.values() for alarm in said), "")
    groups: list[_Group] = []
    for _ in range(MAX_ROUNDS if is_divided(category) else 0):
        if not left:
            break
        root = min(left, key=lambda scope: (len(scope), -_count(scopes[scope]), scope))
        taken = [group[0].scope for group in groups]
        rows = [
            row
            for row in shares(_loudest(scopes[root]))
            if not any(matches(row, scope) for scope in taken)
        ]
        parts = _share_out(rows, root, [*left, *silent])
        if not parts:
            silent[root] = left.pop(root)
        groups += parts
        for _, members in parts:
            for scope in members:
                (left if scope in left else silent).pop(scope)
    known = {group[0].scope for group in groups}
    left |= silent
    if left:
        groups += _by_words(left)
    return [
        Trouble(
            category=category,
            scope=attribution.scope,
            alarms=[alarm for scope in sorted(members) for alarm in scopes[scope]],
            onset=min(onset_of(alarm) for scope in members for alarm in scopes[scope]),
            known=attribution.scope in known,
            explained=attribution.explained,
            dimension=attribution.dimension,
            by_value=attribution.by_value,
            upstream=attribution.upstream or _has_tenants(attribution.scope, members),
            excess=attribution.excess,
        )
        for attribution, members in _unnest(groups)
    ]


def fold_effects(troubles: Iterable[Trouble]) -> list[Trouble]:
    """Put the alarms of effects to their causes; causes first."""
    kept: list[Trouble] = []
    causes: dict[str, list[Trouble]] = {}
    for trouble in sorted(
        troubles, key=lambda one: (rank_of(one.category), one.category, one.scope)
    ):
        cause = next(
            (
                one
                for category in CAUSES.get(kind_of(trouble.category), ())
                for one in causes.get(category, ())
                if explains(
                    one.category,
                    one.scope,
                    trouble.category,
                    trouble.scope,
                    trouble.onset - one.onset,
                )
            ),
            None,
        )
        if cause is None:
            mine = msgspec.structs.replace(trouble)
            kept.append(mine)
            causes.setdefault(mine.category, []).append(mine)
        else:
            cause.alarms = [*cause.alarms, *trouble.alarms]
    return kept


_Group = tuple[Attribution, list[Scope]]


def _share_out(rows: Sequence[Share], root: Scope, scopes: Sequence[Scope]) -> list[_Group]:
    """Put scopes to the cohorts that their excess comes from; `root` is the broadest of them.

    Nothing when shares say nothing of the root.
    """
    if not add_up([row for row in rows if matches(row, root)]).is_telling:
        return []
    # Some tell only of what is inside the scope of the alarm: there is no outside to compare with.
    within = root if all(matches(row, root) for row in rows) else ()
    parts = divide(rows, within)
    groups = _assign(rows, root, scopes, parts)
    if groups is None and len(parts) > 1:
        parts = [attribute(rows, within)]
        groups = _assign(rows, root, scopes, parts)
    if groups is None:
        groups = _assign(rows, root, scopes, [attribute(rows, root)], always=True)
    assert groups is not None  # it always is
    return groups


def _assign(
    rows: Sequence[Share],
    root: Scope,
    scopes: Sequence[Scope],
    parts: Sequence[Attribution],
    *,
    always: bool = False,
) -> list[_Group] | None:
    """Put scopes to parts; None when the parts are not what the alarms are about.

    That is: all calls where no alarm is of all calls, one that has not much of the root, or several of
    which one has no alarm of its own.
    """
    if not always and any(part.scope == () for part in parts) and root:
        return None
    cohorts = [part.scope for part in parts]
    known = portions(rows, scopes, cohorts)
    members: list[list[Scope]] = [[] for _ in parts]
    proved = [len(parts) == 1] * len(parts)
    for scope in scopes:
        portion, calls = known[scope]
        if portion is None:
            # It holds by what was before.
            near = [
                at
                for at, cohort in enumerate(cohorts)
                if is_nested(scope, cohort) or (calls is not None and calls[at] >= OWN)
            ]
            if near:
                members[near[0]].append(scope)
            continue
        best = max(range(len(parts)), key=lambda at: (portion[at], -at))
        if scope == root:
            if sum(portion) < BELONGS and not always:
                return None
        elif sum(portion) < BELONGS:
            continue
        members[best].append(scope)
        if scope != root and portion[best] >= OWN:
            proved[best] = True
    if not all(proved):
        return None
    return list(zip(parts, members, strict=True))


def _by_words(scopes: Mapping[Scope, list[Alarm]]) -> list[_Group]:
    """Put scopes together of which nobody knows more than their words, and when they began."""
    heads = {scope: scope for scope in scopes}

    def head(scope: Scope) -> Scope:
        while heads[scope] != scope:
            heads[scope] = scope = heads[heads[scope]]
        return scope

    def join(together: Iterable[Scope]) -> None:
        first: Scope | None = None
        for scope in together:
            if first is None:
                first = head(scope)
            else:
                heads[head(scope)] = first

    for scope in sorted(scopes):
        join([scope, *(broad for broad in broader(scope) if broad in scopes)])
    for cluster in _clusters(scopes):
        values: dict[str, set[str]] = {}
        pairs: dict[tuple[str, str], list[Scope]] = {}
        for scope in cluster:
            for name, value in scope:
                values.setdefault(name, set()).add(value)
                if name in UPSTREAM:
                    pairs.setdefault((name, value), []).append(scope)
        shared = [values[name] for name in UPSTREAM if name in values]
        if all(len(several) == 1 for several in shared or values.values()):
            join(cluster)
        else:
            for pair in sorted(pairs):
                join(pairs[pair])
    groups: dict[Scope, list[Scope]] = {}
    for scope in sorted(scopes):
        groups.setdefault(head(scope), []).append(scope)
    return [(_settle(members, scopes), members) for members in groups.values()]


def _clusters(scopes: Mapping[Scope, list[Alarm]]) -> list[list[Scope]]:
    """Scopes by when they began, each within `SAME_TIME` of the first of its cluster."""
    began = sorted((min(map(onset_of, alarms)), scope) for scope, alarms in scopes.items())
    found: list[list[Scope]] = []
    first = 0
    for onset, scope in began:
        if not found or onset - first > SAME_TIME:
            found.append([])
            first = onset
        found[-1].append(scope)
    return found


def _settle(members: Sequence[Scope], alarms: Mapping[Scope, list[Alarm]]) -> Attribution:
    """Turn alarms that are one trouble into its scope.

    The broadest, or a narrower one that explains it by its own counts; where none is the broadest,
    what all of them share.
    """
    common = order_scope(frozenset.intersection(*map(frozenset, members)))
    if common in alarms:
        return _narrow_by_counts(common, members, alarms)
    values: dict[str, set[str]] = {}
    for scope in members:
        for name, value in scope:
            values.setdefault(name, set()).add(value)
    if not common:
        single = [name for name in ORDER if len(values.get(name, ())) == 1]
        name = next((name for name in single if name in UPSTREAM), single[0] if single else "")
        common = tuple((name, value) for value in values.get(name, ()))
    return Attribution(common, None, {})


def _narrow_by_counts(
    broad: Scope, members: Sequence[Scope], alarms: Mapping[Scope, list[Alarm]]
) -> Attribution:
    found: list[tuple[float, Scope, float]] = []
    best: Scope
    for scope in members:
        for alarm in alarms[scope] if scope != broad else ():
            for whole in alarms[broad]:
                if alarm.source != whole.source:
                    continue
                if not (alarm.count and alarm.total and whole.count and whole.total):
                    continue
                explained = alarm.count / whole.count
                lead = lead_of(
                    Sums(alarm.total, alarm.count, 0.0), Sums(whole.total, whole.count, 0.0)
                )
                if EXPLAINS < explained <= 1 and lead is not None:
                    found.append((-round(lead, 9), scope, explained))
    if not found:
        return Attribution(broad, None, {})
    _, best, explained = min(found)
    return Attribution(best, explained, {})


def _unnest(groups: Iterable[_Group]) -> list[_Group]:
    """Put each group to the broadest one that it is inside of."""
    found: dict[Scope, _Group] = {}
    for attribution, members in sorted(
        groups, key=lambda group: (len(group[0].scope), group[0].scope)
    ):
        scope = attribution.scope
        over = next((broad for broad in [*broader(scope), scope] if broad in found), None)
        if over is None:
            found[scope] = (attribution, members)
        else:
            found[over] = (found[over][0], found[over][1] + members)
    return list(found.values())


def broader(scope: Scope) -> Iterator[Scope]:
    """All scopes that a scope is inside of, by its words, the broadest first; without itself."""
    for size in range(len(scope)):
        yield from combinations(scope, size)


def _has_tenants(scope: Scope, members: Iterable[Scope]) -> bool:
    said = dict(scope)
    if "tenant" in said or "agent" in said or said.keys().isdisjoint(UPSTREAM):
        return False
    return len({value for member in members for name, value in member if name == "tenant"}) > 1


def _loudest(alarms: Sequence[Alarm]) -> Alarm:
    return max(alarms, key=lambda one: (weight_of(one.severity), one.count or 0, one.source))


def _count(alarms: Sequence[Alarm]) -> int:
    return max(alarm.count or 0 for alarm in alarms)
