"""Setups of calls to signs that one goes round: between trunks, or through the same node again."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from sipsidecar.calls.events import OTHER, AttemptRecord, Setup, Traits

WITHIN: Final = 60_000_000
"""Microseconds between two calls of one caller to one callee that are one trouble."""
MAX_PAIRS: Final = 20_000
MAX_TURNS: Final = 8
"""Trunks that are remembered of one pair."""
MAX_FALL: Final = 10
"""Of Max-Forwards from one node to the next ones: there are not that many between."""
MAX_VIAS: Final = 10
LOOP_CODES: Final = frozenset({482, 483})
"""Loop Detected, Too Many Hops."""
NO_CALLER: Final = frozenset(
    {"anonymous", "unavailable", "restricted", "private", "unknown", "withheld"}
)


_Key: TypeAlias = int | tuple[str, str]


def alternates(names: Sequence[str]) -> bool:
    """Tell whether one of these was come back to after another."""
    turns = [name for place, name in enumerate(names) if not place or name != names[place - 1]]
    return len(set(turns)) < len(turns)


class Loops:
    """Signs of loops in single calls, and in calls that follow each other."""

    def __init__(self, max_pairs: int = MAX_PAIRS) -> None:
        self.folded = 0
        """Callers and callees that were forgotten before their time."""
        self._max = max_pairs
        self._pairs: OrderedDict[_Key, tuple[int, tuple[str, ...]]] = OrderedDict()

    def signs(self, setup: Setup, traits: Mapping[str, Traits], at: int) -> list[str]:
        """What one call says, in words of ours and of the configuration, the gravest first.

        Empty: nothing. `at`: microseconds UTC.
        """
        found: list[str] = []
        codes = {setup.call.final_code, *(one.final_code for one in setup.attempts)}
        found += [str(code) for code in sorted(LOOP_CODES.intersection(filter(None, codes)))]
        if any(one.passed_twice for one in traits.values()):
            found.append("passed one node twice")
        if any(one.vias > MAX_VIAS for one in traits.values()):
            found.append(f"more than {MAX_VIAS} Vias")
        if _fell(traits):
            found.append(f"Max-Forwards fell by more than {MAX_FALL}")
        names = [_name(one) for one in setup.attempts]
        if len(names) > 2 and alternates([name for name, _ in names if name]):
            found.append(f"came back to a trunk ({_shown(names)})")
        turns = [name for name, _ in names if name]
        key = _key(setup, traits)
        last = self._pairs.get(key) if key is not None else None
        before = last[1] if last is not None and at - last[0] <= WITHIN else ()
        if before and turns and alternates([*before, *turns]):
            found.append(f"called again over other trunks ({_shown(names)})")
        if key is not None and turns:
            self._remember(key, (*before, *turns)[-MAX_TURNS:], at)
        return found

    def _remember(self, key: _Key, turns: tuple[str, ...], at: int) -> None:
        self._pairs[key] = at, turns
        self._pairs.move_to_end(key)
        while True:
            oldest, (last, _) = next(iter(self._pairs.items()))
            if len(self._pairs) <= self._max and at - last <= WITHIN:
                break
            self.folded += at - last <= WITHIN
            del self._pairs[oldest]


def _key(setup: Setup, traits: Mapping[str, Traits]) -> _Key | None:
    """What makes calls one: their session, else caller and callee; None where nobody knows."""
    session = next((one.session for one in traits.values() if one.session is not None), None)
    if session is not None:
        return session
    call = setup.call
    if not call.from_user or not call.ruri_user or call.from_user.lower() in NO_CALLER:
        return None
    return call.from_user, call.ruri_user


def _name(attempt: AttemptRecord) -> tuple[str, bool]:
    """What an attempt went to, and whether that is a word of the configuration."""
    if attempt.trunk is not None and attempt.trunk != OTHER:
        return attempt.trunk, True
    return attempt.peer_ip or "", False


def _shown(names: Sequence[tuple[str, bool]]) -> str:
    """The trunks by name, in their order; no addresses."""
    known = sorted({name for name, configured in names if configured})[:4]
    return ", ".join(known) or "other"


def _fell(traits: Mapping[str, Traits]) -> bool:
    """Whether Max-Forwards is much less behind us than before us."""
    ingress = traits.get("")
    if ingress is None or ingress.max_forwards is None:
        return False
    left = (one.max_forwards for branch, one in traits.items() if branch)
    return any(one is not None and ingress.max_forwards - one > MAX_FALL for one in left)
