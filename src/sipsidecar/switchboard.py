"""The configured FreeSWITCHes: a client each, their events to the pipeline, their state to the pages."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from sipsidecar.config import Config, parse_address
from sipsidecar.edges.freeswitch import FreeSwitch, SwitchState
from sipsidecar.pipeline import Pipeline
from sipsidecar.signals.snapshot import SwitchFigures
from sipsidecar.wire import esl

_OWN_FIGURES = frozenset({"events", "bytes", "refused"})
"""Counters of a client that are shown by themselves."""


class Switchboard:
    """Every switch of the configuration, connected or not."""

    def __init__(self, config: Config, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
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

    def tasks(self) -> list[asyncio.Task[None]]:
        """Begin to be connected with all of them."""
        return [
            asyncio.create_task(client.run(), name=f"freeswitch {client.name}")
            for client in self._clients
        ]

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
        return [
            msgspec.structs.asdict(one)
            | (msgspec.structs.asdict(states[one.name]) if one.name in states else {})
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

    def _channels(self, name: str, uuids: list[str]) -> None:
        now = asyncio.get_running_loop().time()
        self._pipeline.bridging.legs.reconcile(name, uuids, now)
        self._pipeline.switches.reconcile(name, uuids)

    def _changed(self, state: SwitchState) -> None:
        if state.connected:
            self._pipeline.switches.reconnected(state.name)

    def _live(self, name: str) -> int:
        return self._pipeline.bridging.legs.live(name)
