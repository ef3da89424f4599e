"""What the configured FreeSWITCHes say of themselves, to their load: figures of each at any moment.

A HEARTBEAT counts everything, but comes every 20 seconds; CHANNEL_CREATE and CHANNEL_DESTROY
count legs between two, and the next HEARTBEAT puts the count right. Sessions are legs: a bridged
call has two.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final

from sipsidecar.signals.snapshot import SwitchFigures

OTHER: Final = "other"
"""All switches whose name is not configured."""
EVENTS: Final = frozenset({"CHANNEL_CREATE", "CHANNEL_DESTROY", "HEARTBEAT", "CUSTOM"})
"""Names of the events that `Switches.receive` reads; others are nothing to it."""

MAX_LEGS: Final = 100_000
"""Legs of one switch that are known by uuid; more are only counted."""
MAX_GATEWAYS: Final = 256
MAX_USERS: Final = 100_000
"""Registered users of one switch."""
MAX_TEXT: Final = 255
"""Characters of a uuid, a gateway or a user; a uuid may be a caller's Call-ID."""
BEATS: Final = 15
"""HEARTBEATs among which the largest budget of sessions is the limit; at 20 s: five minutes."""
EXPIRES: Final = 3600
"""Seconds of a registration that does not say how long it lasts."""
GRACE: Final = 90.0
"""Seconds that FreeSWITCH keeps a registration beyond its time: 60, and up to 30 to its next look."""
PRUNE_SECONDS: Final = 10.0
"""Time between two looks for registrations that are over."""

_COUNT: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
_PERCENT: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,20})?", re.ASCII)
# Sofia's names. The state is that of our registration there, the ping's that of the gateway: to one
# that is DOWN FreeSWITCH sends no call, and one that registers again is up meanwhile.
_DOWN: Final = frozenset({"FAILED", "FAIL_WAIT", "TIMEOUT", "EXPIRED", "DOWN"})


def count(text: str | None) -> int | None:
    """A header's decimal digits as a number; None for anything else."""
    return int(text) if text is not None and _COUNT.fullmatch(text) else None


def share(text: str | None) -> float | None:
    """A header's percentage, as `88.933333`, as a share from 0 to 1; None for anything else."""
    percent = float(text) if text is not None and _PERCENT.fullmatch(text) else None
    return None if percent is None or percent > 100 else percent / 100


def gateway_state(state: str | None, ping: str | None) -> str:
    """A gateway's State and Ping-Status to `up`, `down` or `unknown`."""
    if ping == "DOWN" or state in _DOWN:
        return "down"
    return "up" if ping == "UP" else "unknown"


class _Switch:
    """One switch; what is not known is None."""

    __slots__ = (
        "approximate_until",
        "beat_at",
        "budgets",
        "core_uuid",
        "drift",
        "gateways",
        "idle_cpu",
        "legs",
        "limits",
        "max_sessions",
        "peak",
        "prune_at",
        "restarts",
        "sessions",
        "sessions_per_second",
        "since_startup",
        "unseen",
        "uptime_ms",
        "users",
    )

    def __init__(self) -> None:
        self.core_uuid: str | None = None
        self.drift = 0
        self.restarts = 0
        self.limits: Counter[str] = Counter()
        self.forget()

    def forget(self) -> None:
        """All that was true of a life of the switch that is over."""
        self.beat_at: float | None = None
        self.sessions: int | None = None
        self.max_sessions: int | None = None
        self.sessions_per_second: int | None = None
        self.budgets: deque[int] = deque(maxlen=BEATS)
        self.idle_cpu: float | None = None
        self.uptime_ms: int | None = None
        self.peak: int | None = None
        self.since_startup: int | None = None
        self.legs: set[str] = set()
        # Legs beside those known by uuid; negative where ends were not heard. None: nobody said.
        self.unseen: int | None = None
        self.gateways: dict[str, str] = {}
        self.users: dict[str, float] = {}  # to when the registration is over
        self.prune_at = 0.0
        self.approximate_until: float | None = None

    @property
    def live(self) -> int | None:
        return None if self.unseen is None else max(0, len(self.legs) + self.unseen)

    def correct(self, legs: int) -> None:
        """The switch says how many legs there are."""
        if (live := self.live) is not None:
            self.drift += abs(legs - live)
        if legs == 0:
            self.legs.clear()
        self.unseen = legs - len(self.legs)

    def prune(self, now: float) -> None:
        if now >= self.prune_at:
            self.prune_at = now + PRUNE_SECONDS
            over = [user for user, until in self.users.items() if until <= now]
            for user in over:
                del self.users[user]

    def figures(self, name: str, now: float, *, configured: bool) -> SwitchFigures:
        self.prune(now)
        states = Counter(self.gateways.values())
        return SwitchFigures(
            name,
            configured=configured,
            heartbeat_age_seconds=None if self.beat_at is None else max(0.0, now - self.beat_at),
            sessions=self.sessions,
            max_sessions=self.max_sessions,
            sessions_per_second=self.sessions_per_second,
            sessions_per_second_limit=max(self.budgets, default=None),
            idle_cpu=self.idle_cpu,
            uptime_seconds=None if self.uptime_ms is None else self.uptime_ms / 1000,
            peak=self.peak,
            since_startup=self.since_startup,
            live_legs=self.live,
            drift=self.drift,
            restarts=self.restarts,
            gateways=dict(states),
            registrations=len(self.users),
            registrations_approximate=self.approximate_until is not None
            and now < self.approximate_until,
            limits=dict(self.limits),
        )


class Switches:
    """Every configured switch, and one for all others; times are seconds of one steady clock."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._switches = {name: _Switch() for name in names}
        self._other: _Switch | None = None

    def receive(self, switch: str, fields: Mapping[str, str | None], now: float) -> None:
        """One event of `EVENTS`: headers' names in small letters with underscores, to their texts."""
        event, get = fields.get("event_name"), fields.get
        if switch in self._switches and (core_uuid := get("core_uuid")):
            self.restarted(switch, core_uuid)
        if event == "CHANNEL_CREATE":
            self.created(switch, get("unique_id"))
        elif event == "CHANNEL_DESTROY":
            self.destroyed(switch, get("unique_id"))
        elif event == "HEARTBEAT":
            self.heartbeat(
                switch,
                now,
                sessions=count(get("session_count")),
                max_sessions=count(get("max_sessions")),
                sessions_per_second=count(get("session_per_sec_last")),
                sps_limit=count(get("session_per_sec")),
                idle_cpu=share(get("idle_cpu")),
                uptime_ms=count(get("uptime_msec")),
                peak=count(get("session_peak_max")),
                since_startup=count(get("session_since_startup")),
            )
        elif event == "CUSTOM":
            self._receive_custom(switch, fields, now)

    def _receive_custom(self, switch: str, fields: Mapping[str, str | None], now: float) -> None:
        subclass, get = fields.get("event_subclass"), fields.get
        user, host = get("from_user"), get("from_host")
        if subclass == "sofia::gateway_state":
            self.gateway(switch, get("gateway"), get("state"), get("ping_status"))
        elif subclass in ("sofia::register", "sofia::unregister") and user and host:
            if subclass == "sofia::register":
                self.registered(switch, f"{user}@{host}", now, expires=count(get("expires")))
            else:
                self.unregistered(switch, f"{user}@{host}")

    def heartbeat(
        self,
        switch: str,
        now: float,
        *,
        sessions: int | None = None,
        max_sessions: int | None = None,
        sessions_per_second: int | None = None,
        sps_limit: int | None = None,
        idle_cpu: float | None = None,
        uptime_ms: int | None = None,
        peak: int | None = None,
        since_startup: int | None = None,
    ) -> None:
        """One HEARTBEAT; what it did not say, or not in digits, is None.

        `sessions_per_second` is Session-Per-Sec-Last. `sps_limit` is Session-Per-Sec: what is left
        of this second's budget, so that the limit is the largest of several.
        """
        one = self._of(switch)
        one.beat_at = now
        one.sessions = sessions
        one.max_sessions = max_sessions
        one.sessions_per_second = sessions_per_second
        # FreeSWITCH writes a budget below zero as a number near 2**32.
        if sps_limit is not None and sps_limit < 2**31:
            one.budgets.append(sps_limit)
        one.idle_cpu = idle_cpu
        one.uptime_ms = uptime_ms
        one.peak = peak
        one.since_startup = since_startup
        if sessions is not None:
            one.correct(sessions)

    def created(self, switch: str, uuid: str | None) -> None:
        """One CHANNEL_CREATE."""
        one = self._of(switch)
        if not uuid or (known := uuid[:MAX_TEXT]) in one.legs:
            return
        if len(one.legs) < MAX_LEGS:
            one.legs.add(known)
            return
        one.limits["legs"] += 1
        if one.unseen is not None:
            one.unseen += 1

    def destroyed(self, switch: str, uuid: str | None) -> None:
        """One CHANNEL_DESTROY: of a known leg, of one that lived before we listened, or of none.

        A call to a gateway that is down makes a CHANNEL_DESTROY without a CHANNEL_CREATE.
        """
        one = self._of(switch)
        if not uuid:
            return
        known = uuid[:MAX_TEXT]
        if known in one.legs:
            one.legs.remove(known)
        elif one.unseen is not None and one.unseen > 0:
            one.unseen -= 1

    def reconcile(self, switch: str, uuids: Iterable[str]) -> None:
        """The legs that there are, as `show channels` lists them."""
        one = self._of(switch)
        legs = {uuid[:MAX_TEXT] for uuid in uuids if uuid}
        before, one.legs = one.live, set(list(legs)[:MAX_LEGS])
        one.unseen = len(legs) - len(one.legs)
        one.limits["legs"] += one.unseen
        if before is not None:
            one.drift += abs(len(legs) - before)

    def gateway(
        self, switch: str, gateway: str | None, state: str | None, ping: str | None
    ) -> None:
        """One sofia::gateway_state: State and Ping-Status; it comes on changes only."""
        one = self._of(switch)
        if not gateway:
            return
        name = gateway[:MAX_TEXT]
        if name in one.gateways or len(one.gateways) < MAX_GATEWAYS:
            one.gateways[name] = gateway_state(state, ping)
        else:
            one.limits["gateways"] += 1

    def registered(self, switch: str, user: str, now: float, *, expires: int | None = None) -> None:
        """A user registered, or again, for `expires` seconds; two telephones of one count once."""
        one = self._of(switch)
        if expires == 0:
            self.unregistered(switch, user)
            return
        user = user[:MAX_TEXT]
        until = now + (EXPIRES if expires is None else expires) + GRACE
        if user not in one.users and len(one.users) >= MAX_USERS:
            one.prune(now)
        if user in one.users or len(one.users) < MAX_USERS:
            one.users[user] = until
        else:
            one.limits["registrations"] += 1
            one.approximate_until = max(until, one.approximate_until or until)

    def unregistered(self, switch: str, user: str) -> None:
        """A user is gone."""
        self._of(switch).users.pop(user[:MAX_TEXT], None)

    def reconnected(self, switch: str) -> None:
        """The same life of a switch was met again: what changed meanwhile was not heard."""
        gateways = self._of(switch).gateways
        gateways.update(dict.fromkeys(gateways, "unknown"))

    def restarted(self, switch: str, core_uuid: str | None = None) -> None:
        """A switch began anew; with a Core-UUID only if it is not the one that was last heard."""
        one = self._of(switch)
        before, one.core_uuid = one.core_uuid, core_uuid and core_uuid[:MAX_TEXT]
        if one.core_uuid is not None and before in (None, one.core_uuid):
            return
        one.restarts += 1
        one.forget()

    def snapshot(self, now: float) -> tuple[SwitchFigures, ...]:
        """Figures of every configured switch in the order of their names, and of others if any."""
        found = [
            one.figures(name, now, configured=True) for name, one in sorted(self._switches.items())
        ]
        if self._other is not None:
            found.append(self._other.figures(OTHER, now, configured=False))
        return tuple(found)

    def _of(self, switch: str) -> _Switch:
        # One that is configured as `other` is one entry with those: a label must not be there twice.
        one = self._switches.get(switch) or self._switches.get(OTHER)
        if one is None:
            one = self._other = self._other or _Switch()
        return one
