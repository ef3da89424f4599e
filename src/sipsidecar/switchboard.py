"""The configured FreeSWITCHes: a client each, their events to the pipeline, their state to the pages.

And, where admission is pushed to them, what each is told to refuse.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sipsidecar.calls.events import OTHER, Cohort
from sipsidecar.config import Config, parse_address
from sipsidecar.edges.freeswitch import FreeSwitch, SwitchState
from sipsidecar.edges.switchpush import SwitchPush
from sipsidecar.pipeline import Pipeline
from sipsidecar.signals.cohort import Matcher
from sipsidecar.signals.snapshot import SwitchFigures
from sipsidecar.wire import esl

_OWN_FIGURES = frozenset({"events", "bytes", "refused"})
"""Counters of a client that are shown by themselves."""
_OWN_CLOCK = 0.5
"""Seconds by which a switch's clock must differ before its deadlines are told by it: less is delay."""


class Switchboard:
    """Every switch of the configuration, connected or not."""

    def __init__(self, config: Config, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.tell: Callable[[str, str], None] = lambda _name, _state: None
        """Hears of a switch by name: connected, lost or restarted."""
        said = config.freeswitch
        self._watchdog = said.heartbeat_seconds
        self._clients = [
            FreeSwitch(
                name,
                *parse_address(address),
                password=said.passwords.get(name, said.passwords.get("*", "")),
                user=said.users.get(name, ""),
                deliver=self._deliver,
                restarted=self._restarted,
                channels=self._channels,
                on_state=self._changed,
                live=self._live,
                heartbeat_seconds=said.heartbeat_seconds,
            )
            for name, address in said.switches.items()
        ]
        admission = config.admission
        self.pushes: tuple[SwitchPush, ...] = ()
        """One for each switch where admission is pushed to FreeSWITCH, else none; who decides runs
        them."""
        if admission.freeswitch:
            labels = labels_of_trunks(config.cohorts.match)
            self.pushes = tuple(
                SwitchPush(
                    client.name,
                    client.command,
                    profiles=admission.profiles,
                    lease_seconds=admission.lease_seconds,
                    labels=labels,
                    connections=_connections_of(client),
                    clock=_clock_of(client),
                )
                for client in self._clients
            )

    def tasks(self) -> list[asyncio.Task[None]]:
        """Begin to be connected with all of them."""
        return [
            asyncio.create_task(client.run(), name=f"freeswitch {client.name}")
            for client in self._clients
        ]

    def name_of(self, core_uuid: str) -> str:
        """The configured name of the switch with this Core-UUID; empty for a stranger's."""
        return next(
            (
                one.name
                for one in self._clients
                if core_uuid and one.status().core_uuid == core_uuid
            ),
            "",
        )

    def figures(self, now: float) -> tuple[SwitchFigures, ...]:
        """What metrics and health show: what each said, and how the connection to it is."""
        clients = {client.name: client for client in self._clients}
        return tuple(
            self._with_connection(one, clients[one.name]) if one.name in clients else one
            for one in self._pipeline.switches.snapshot(now)
        )

    def page(self) -> Sequence[dict[str, Any]]:
        """What `/v1/switches` shows of each."""
        now = asyncio.get_running_loop().time()
        states = {client.name: client.status() for client in self._clients}
        pushes = {push.name: push for push in self.pushes}
        return [
            msgspec.structs.asdict(one)
            | (msgspec.structs.asdict(states[one.name]) if one.name in states else {})
            | (_page_of(pushes[one.name]) if one.name in pushes else {})
            for one in self.figures(now)
        ]

    def _with_connection(self, figures: SwitchFigures, client: FreeSwitch) -> SwitchFigures:
        state = client.status()
        connected = state.connected and state.since is not None
        return msgspec.structs.replace(
            figures,
            connected_seconds=max(time.time() - (state.since or 0.0), 0.0) if connected else None,
            watchdog_seconds=self._watchdog,
            events=state.events,
            refused=state.refused,
            reconnects=state.reconnects,
            connection={
                what: count for what, count in client.counters.items() if what not in _OWN_FIGURES
            }
            | {"errors": client.errors},
            lag_seconds=state.lag_seconds,
        )

    def _deliver(self, name: str, event: esl.Event, now: float, received_at: int) -> None:
        self._pipeline.receive_event(name, event, now, received_at)

    def _restarted(self, name: str, core_uuid: str) -> None:
        self._pipeline.bridging.legs.forget_switch(name, core_uuid)
        self._pipeline.switches.restarted(name, core_uuid)
        self.tell(name, "restarted")

    def _channels(self, name: str, uuids: list[str]) -> None:
        now = asyncio.get_running_loop().time()
        self._pipeline.bridging.legs.reconcile(name, uuids, now)
        self._pipeline.switches.reconcile(name, uuids)

    def _changed(self, state: SwitchState) -> None:
        if state.connected:
            self._pipeline.switches.reconnected(state.name)
        self.tell(state.name, "connected" if state.connected else "lost")

    def _live(self, name: str) -> int:
        return self._pipeline.bridging.legs.live(name)


def labels_of_trunks(matchers: Sequence[Matcher]) -> dict[str, Cohort]:
    """What every call of a trunk is besides, by the matchers alone; `other` where calls differ.

    A label is sure where all matchers of the trunk say it, and none before them can have said
    another.
    """
    labels: dict[str, Cohort] = {}
    for trunk in dict.fromkeys(one.trunk for one in matchers if one.trunk):
        own = [at for at, one in enumerate(matchers) if one.trunk == trunk]
        sure = {"trunk": trunk}
        for scope in ("tenant", "direction", "region"):
            said = {getattr(matchers[at], scope) for at in own}
            said |= {getattr(one, scope) for one in matchers[: own[-1]]} - {""}
            if len(said) == 1:
                sure[scope] = said.pop() or OTHER
        labels[trunk] = Cohort(**sure)
    return labels


def _connections_of(client: FreeSwitch) -> Callable[[], int]:
    return lambda: client.counters["connected"]


def _clock_of(client: FreeSwitch) -> Callable[[], float]:
    """UNIX seconds as the switch has them, as far as its events tell."""

    def clock() -> float:
        lag = client.status().lag_seconds
        return time.time() - (lag if lag is not None and abs(lag) > _OWN_CLOCK else 0.0)

    return clock


def _page_of(push: SwitchPush) -> dict[str, Any]:
    return {"push": msgspec.structs.asdict(push.status()) | {"unheld": push.unheld}}
