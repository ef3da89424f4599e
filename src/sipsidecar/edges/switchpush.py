"""Tells one FreeSWITCH what to refuse by itself: global variables that its dialplan compares.

A refusal is a deadline that lies in the future for as long as it is renewed, once a second. When
this process dies, hangs or loses the connection, the deadlines pass and calls do again, with nobody
in their way. The dialplan is `freeswitch/dialplan/admission.xml`; KEY is `global`, `profile_NAME`
or `trunk_NAME`.

| variable | what the dialplan does with it |
| --- | --- |
| `sidecar_deny_until_KEY` | while it is later than now (seconds since 1970), calls are refused |
| `sidecar_overflow_until_KEY` | the same, but calls are sent to `sidecar_route_KEY` |
| `sidecar_pass_KEY` | of both: calls of the first so many hundredths of each second pass |
| `sidecar_code_KEY`, `_rule_`, `_reason_` | final code, X-Admission and Reason of the refusal |
| `sidecar_limit_KEY`, `_limit_id_`, `_limit_rule_` | so many calls at once, counted under the id |
| `sidecar_rate_KEY`, `_rate_id_`, `_rate_rule_` | so many calls in a second |
| `sidecar_up_until` | while it is later than now, a sidecar is there |
| `sidecar_down_until_trunk_NAME` | while it is later than now, the trunk does not answer: yours to read |

Limits and rates have no deadline: they hold while no sidecar is there, so that what passes then is
not without bounds.
"""

import asyncio
import contextlib
import logging
import math
import re
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, Protocol

from sipsidecar.calls.events import OTHER, Cohort
from sipsidecar.signals.decisions import OTHER_RULE, OVERFLOW, Denial, PushState, RateLimit
from sipsidecar.tables import printable
from sipsidecar.wire import esl

RENEW: Final = 1.0
"""Seconds between renewals of what has a deadline."""
REFRESH: Final = 10.0
"""Seconds between renewals of all else, for a FreeSWITCH that lost it unseen."""
PATIENCE: Final = 2.0
"""Seconds for each answer."""
WINDOW: Final = 32
"""Commands that wait for their answers at one time, and are written in one turn."""
MOST_KEYS: Final = 1000
"""Of one switch, each with up to ten variables; what is over it is counted in `unheld`."""
LAST: Final = 64
"""Round trips that the median is of."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COUNT: Final = re.compile(r"sidecar_(?:limit|rate)_(?:global$|profile_|trunk_)")
_WORDS: Final = {
    "not-connected": "it is not connected",
    "busy": "too many commands wait for it",
    "timeout": "it does not answer",
    "lost": "the connection broke",
}

log = logging.getLogger("sipsidecar.freeswitch")


class Answer(Protocol):
    """What a command came to; `wire.esl.Reply` is one."""

    @property
    def text(self) -> str:
        """What FreeSWITCH said."""

    @property
    def ok(self) -> bool:
        """Whether it was no error."""


Command = Callable[[str, float], Awaitable[Answer]]
"""Sends one line and gives its answer within seconds, or raises an exception with a `why`."""


class SwitchPush:
    """What one FreeSWITCH is to hold (`show`), and the task that keeps it so (`run`)."""

    def __init__(
        self,
        name: str,
        command: Command,
        *,
        profiles: Mapping[str, str],
        lease_seconds: int,
        labels: Mapping[str, Cohort] | None = None,
        connections: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] | None = None,
    ) -> None:
        """ValueError for a profile or trunk that cannot be part of a variable's name.

        `profiles`: the trunk whose calls a sofia profile takes. `labels`: what every call of a
        trunk is besides; `other` where its calls differ. `connections`: how many there were; after
        each new one all is said again. `clock`: UNIX seconds as the switch has them.
        """
        for one in (*profiles, *profiles.values(), *(labels or {})):
            if not _NAME.fullmatch(one):
                raise ValueError(f"expected letters, digits, dots, _ or -, got {one!r}")
        self.name = name
        self.unheld = 0
        """Denials and limits that this switch cannot apply: nothing there tells whose a call is."""
        self._command = command
        self._lease = lease_seconds
        self._profiles = dict(profiles)
        self._labels = dict(labels or {})
        self._connections = connections
        self._connection = 0
        self._clock = clock
        self._given_now = now
        keys = [*(f"profile_{one}" for one in profiles), *(f"trunk_{t}" for t in profiles.values())]
        self._keys_seen: dict[str, None] = dict.fromkeys(["global", *keys])
        self._wanted: dict[str, str] = {}
        self._deadlines: dict[str, None] = {}
        self._down: dict[str, None] = {}
        self._held: dict[str, str] = {}  # what it is known to hold, without the deadlines
        self._running: dict[str, None] = {}  # deadlines that were set and not taken back
        self._stirred = asyncio.Event()
        self._renewed = self._refreshed = -math.inf
        self._rtts: deque[float] = deque(maxlen=LAST)
        self._pushed = self._failed = 0
        self._error: str | None = "nothing was pushed yet"
        self._changed_at: float | None = None
        self.show([], [])

    def show(
        self,
        denials: Sequence[Denial],
        limits: Sequence[RateLimit],
        caps: Mapping[tuple[str, str], int] | None = None,
        cap_rules: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        """Have the switch hold this from now on: what differs is sent at once, nothing waits here.

        `caps` are calls at once by scope and value, `cap_rules` the rules that say so. What is of a
        `node` is for the switch of that name. Of two for one key the wider denial and the lower
        limit are held.
        """
        self.unheld = 0
        chosen: dict[str, Denial] = {}
        for denial in denials:
            for key in self._keys(denial.scope, denial.scope_value) if denial.percent > 0 else ():
                if key not in chosen or chosen[key].percent < denial.percent:
                    chosen[key] = denial
        wanted: dict[str, str] = {}
        deadlines: dict[str, None] = {}
        for key, denial in chosen.items():
            # empty, which none passes by: a closed rule needs no lots
            passing = 100 - min(denial.percent, 100)
            wanted[f"sidecar_pass_{key}"] = str(passing) if passing else ""
            wanted[f"sidecar_rule_{key}"] = _rule(denial.rule)
            if denial.verdict == OVERFLOW and _NAME.fullmatch(denial.route):
                wanted[f"sidecar_route_{key}"] = denial.route
                deadlines[f"sidecar_overflow_until_{key}"] = None
            else:
                wanted[f"sidecar_code_{key}"] = str(denial.code)
                wanted[f"sidecar_reason_{key}"] = esl.refusal_words(denial.reason)
                deadlines[f"sidecar_deny_until_{key}"] = None
        least: dict[tuple[str, str], tuple[int, str, str]] = {}

        def lower(what: str, scope: str, value: str, count: int, rule: str) -> None:
            for key in self._keys(scope, value):
                # One count for all keys of a scope's value: two profiles of a trunk share it.
                shared = "global" if key == "global" else f"{scope}_{value}"
                new = (count, shared, _rule(rule))
                least[what, key] = min(least.get((what, key), new), new)

        for limit in limits:
            # FreeSWITCH lets one call pass in any second, whatever it is told.
            lower("rate", limit.scope, limit.scope_value, max(limit.limit, 1), limit.rule)
        for (scope, value), cap in (caps or {}).items():
            lower("limit", scope, value, max(cap, 0), (cap_rules or {}).get((scope, value), ""))
        for key in self._keys_seen:
            for what in ("limit", "rate"):
                found = least.get((what, key))
                if found is not None:
                    wanted[f"sidecar_{what}_id_{key}"] = found[1]
                    wanted[f"sidecar_{what}_rule_{key}"] = found[2]
                # empty: FreeSWITCH forgets it
                wanted[f"sidecar_{what}_{key}"] = str(found[0]) if found is not None else ""
        self._wanted, self._deadlines = wanted, deadlines
        self._stirred.set()

    def show_down(self, trunks: Iterable[str]) -> None:
        """Have the switch know which trunks do not answer; its dialplan may read it, nothing else does."""
        named = sorted(trunk for trunk in set(trunks) if _NAME.fullmatch(trunk))
        down = {f"sidecar_down_until_trunk_{trunk}": None for trunk in named[:MOST_KEYS]}
        if down != self._down:
            self._down = down
            self._stirred.set()

    async def run(self) -> None:
        """Push, for ever; ends by being cancelled, and the switch is open within the lease."""
        try:
            while True:
                self._stirred.clear()
                await self._round()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(self._renewed + RENEW - self._now(), 0.0)):
                        await self._stirred.wait()
        finally:
            self._error = "stopped"

    def status(self) -> PushState:
        """How it is with this switch now."""
        kept = sum(
            1
            for name, value in self._held.items()
            if value and name in self._wanted and _count(name)
        )
        return PushState(
            name=self.name,
            kind="freeswitch",
            up=self._error is None,
            error=self._error,
            rtt_ms=statistics.median(self._rtts) * 1000 if self._rtts else None,
            entries=len(self._running) + kept,
            pushed=self._pushed,
            failed=self._failed,
            since=None if self._changed_at is None else self._now() - self._changed_at,
        )

    # -- what is to be held

    def _keys(self, scope: str, value: str) -> list[str]:
        """The keys that calls of a scope's value have here."""
        if scope == "node" and value != self.name:
            return []  # of another
        if scope in ("global", "node"):
            return ["global"]
        trunks = [
            trunk
            for trunk in dict.fromkeys([*self._profiles.values(), *self._labels])
            if getattr(self._labels.get(trunk), scope, OTHER) == value != OTHER
        ]
        if not _NAME.fullmatch(value):
            trunks = []
        elif scope == "trunk":
            trunks = [value]
        keys = [f"trunk_{trunk}" for trunk in trunks]
        keys += [f"profile_{one}" for one, trunk in self._profiles.items() if trunk in trunks]
        # A tenant of only some of a trunk's calls cannot be told there.
        if not keys or len({*self._keys_seen, *keys}) > MOST_KEYS:
            self.unheld += 1
            return []
        self._keys_seen.update(dict.fromkeys(keys))
        return keys

    # -- pushing

    async def _round(self) -> None:
        """Bring the switch to what is wanted; what fails is tried again with the next renewal."""
        now = self._now()
        renew = now - self._renewed >= RENEW
        if self._error is not None and not renew:
            return  # who is away is asked once a second
        connection = self._connections()
        if connection != self._connection:
            self._connection = connection
            self._held.clear()
        settings = [one for one in self._wanted.items() if self._held.get(one[0]) != one[1]]
        first: list[tuple[str, str]] = []
        if renew:
            self._renewed = now
            first = [("sidecar_up_until", self._until())]
            if now - self._refreshed >= REFRESH:
                settings = list(self._wanted.items())
        if not await self._push(first) or not await self._push(settings):
            self._refreshed = -math.inf
            return
        if renew and now - self._refreshed >= REFRESH:
            self._refreshed = now
        # After what they go with: a refusal without its code would be another one.
        deadlines = self._deadlines | self._down
        begun = [one for one in deadlines if renew or one not in self._running]
        over = [one for one in self._running if one not in deadlines]
        until = self._until()
        await self._push([*((one, "0") for one in over), *((one, until) for one in begun)])

    async def _push(self, pairs: Sequence[tuple[str, str]]) -> bool:
        """Set variables, some at a time; False when one was not set, and the rest not tried."""
        todo = iter(pairs)
        while some := list(islice(todo, WINDOW)):
            errors = await asyncio.gather(*(self._set(name, value) for name, value in some))
            error = next((one for one in errors if one is not None), None)
            self._note(error)
            if error is not None:
                return False
        return True

    async def _set(self, name: str, value: str) -> str | None:
        """Set one variable; returns why not."""
        began = time.perf_counter()  # uvloop's own clock stands still within a turn
        self._pushed += 1
        error: str | None
        try:
            answer = await self._command(f"api global_setvar {name}={value}", PATIENCE)
        except Exception as raised:  # noqa: BLE001 -- of the client, which this edge does not know
            error = _WORDS.get(getattr(raised, "why", ""), printable(type(raised).__name__))
        else:
            error = None if answer.ok else _refused(answer.text)
        if error is not None:
            self._failed += 1
            return error
        self._rtts.append(time.perf_counter() - began)
        if not _is_deadline(name):
            self._held[name] = value
        elif value == "0":
            self._running.pop(name, None)
        elif name != "sidecar_up_until":
            self._running[name] = None
        return None

    def _note(self, error: str | None) -> None:
        """Say once when it begins or ceases to be told."""
        if error is not None:
            self._held.clear()  # it may be another process when it is back
        if error == self._error:
            return
        if (error is None) != (self._error is None) or self._changed_at is None:
            self._changed_at = self._now()
        self._error = error
        if error is None:
            log.info("FreeSWITCH %s: admission is pushed", self.name)
        else:
            log.warning("FreeSWITCH %s: admission is not pushed: %s", self.name, error)

    def _until(self) -> str:
        """A deadline: whole seconds, rounded up, for less than the lease would be too short."""
        return str(math.ceil(self._clock()) + self._lease)

    def _now(self) -> float:
        return self._given_now() if self._given_now else asyncio.get_running_loop().time()


def _is_deadline(name: str) -> bool:
    return name.startswith(
        (
            "sidecar_deny_until_",
            "sidecar_overflow_until_",
            "sidecar_down_until_",
            "sidecar_up_until",
        )
    )


def _count(name: str) -> bool:
    """Whether a variable is a limit or a rate itself."""
    return _COUNT.match(name) is not None


def _rule(name: str) -> str:
    return name if _NAME.fullmatch(name) else OTHER_RULE


def _refused(said: str) -> str:
    if "permission" in said:
        return "its user may not run global_setvar (esl-allowed-api)"
    return "it refuses to set a variable"
