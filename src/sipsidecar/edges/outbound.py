"""Answers the FreeSWITCHes that ask for each call, by their outbound event socket.

The dialplan's application `socket` connects to us and waits: we say `connect`, hear of the channel,
decide, and let it go on, refuse it or send it elsewhere. A FreeSWITCH waits for us without end, so
each connection has two seconds, and whatever is not understood lets the call pass. What cannot be
helped here: a process that is stopped keeps the calls that ask it waiting until it goes on or dies,
and the callers' CANCEL does not free them. Pushing (`switchpush`) has none of this.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

from sipsidecar.calls.events import Sighted
from sipsidecar.signals.decisions import OVERFLOW, REFUSE, Ask, AskState, Decision
from sipsidecar.wire import esl

PATIENCE: Final = 2.0
"""Seconds that a connection may last."""
LINGER: Final = 0.3
"""Seconds after which we say goodbye to a FreeSWITCH that did not close by itself when its call was
refused or sent elsewhere: not at once, for where it works beside us it may not have done it yet."""
MOST_CONNECTIONS: Final = 512
"""At one time; FreeSWITCH lets the calls of further ones pass."""
MOST_BYTES: Final = 1024 * 1024
"""Of one connection. A channel is 6 kB, most of it chosen by the caller."""
BACKLOG: Final = 1024
"""A call whose connection the kernel drops waits for a second and more."""
COMPLAIN_EVERY: Final = 600.0
OVERFLOW_CONTEXT: Final = "sidecar_overflow"
"""Dialplan context of the fallback routes: no caller can dial into it."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")

log = logging.getLogger("sipsidecar.outbound")


class Outbound:
    """The listener; `ask` decides at once and waits for nothing."""

    def __init__(
        self,
        ask: Callable[[Ask], Decision],
        *,
        name_of: Callable[[str], str] = lambda _: "",
        patience: float = PATIENCE,
        linger: float = LINGER,
    ) -> None:
        """`name_of` gives the configured name of the FreeSWITCH with a Core-UUID, or nothing."""
        self._ask = ask
        self._name_of = name_of
        self.patience = patience
        self.linger = linger
        self.counters: Counter[str] = Counter()
        """Answers by verdict, and connections without one: not-inbound (no call that came in),
        not-understood, broke (a bug here), too-many, too-big, timeout, not-asked (it left before it
        said what about); and not-done: commands that it could not do."""
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()
        self._changed_at = time.monotonic()
        self._broke_at: float | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._peers)

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address it got. OSError when it cannot be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Peer(self, self._peers), host, port, backlog=BACKLOG
        )
        self._changed_at = time.monotonic()
        address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return address

    async def close(self) -> None:
        """Stop listening; calls that still wait for an answer pass."""
        if self._server is not None:
            self._server.close()
            peers = list(self._peers)
            for peer in peers:
                peer.abort()
            if peers:
                await asyncio.wait([peer.gone for peer in peers])
            await self._server.wait_closed()
            self._server = None
            self._changed_at = time.monotonic()

    def status(self) -> AskState:
        """How it is with those that ask."""
        counters = self.counters
        return AskState(
            name="outbound",
            kind="outbound",
            up=self._server is not None,
            error=None if self._server is not None else "it does not listen",
            asked=counters["admit"] + counters["refuse"] + counters["overflow"],
            refused=counters["not-understood"] + counters["broke"] + counters["too-big"],
            since=time.monotonic() - self._changed_at,
        )

    def decide(self, block: bytes) -> tuple[Decision | None, bool]:
        """What is answered about a channel, None for what lets it pass; and whether it is async."""
        try:
            channel = esl.parse_channel(block)
        except esl.EslError:
            self.counters["not-understood"] += 1
            return None, False
        is_async = channel.socket_mode == "async"
        if channel.direction != "inbound":
            self.counters["not-inbound"] += 1
            return None, is_async
        if not channel.call_id:
            self.counters["not-understood"] += 1
            return None, is_async
        try:
            decision = self._ask(question(channel, self._name_of(channel.core_uuid or "")))
        except Exception:  # a bug must cost no call
            self.counters["broke"] += 1
            now = time.monotonic()
            if self._broke_at is None or now - self._broke_at > COMPLAIN_EVERY:
                self._broke_at = now
                log.exception("a question of FreeSWITCH's was not answered")
            return None, is_async
        self.counters[decision.verdict] += 1
        return decision, is_async


def question(channel: esl.Channel, node: str) -> Ask:
    """What is asked of a channel of the FreeSWITCH with a configured name, or none."""
    uri = channel.request_uri or ""
    return Ask(
        call_id=channel.call_id or "",
        from_tag=channel.from_tag or "",
        sighted=Sighted(
            src_ip=channel.network_ip,
            src_port=_number(channel.network_port, 65535),
            dst_ip=channel.local_ip,
            from_user=channel.from_user,
            from_host=channel.from_host,
            to_user=channel.to_user,
            to_host=channel.to_host,
            ruri_user=channel.request_user,
            ruri_host=channel.request_host,
            headers=dict(channel.headers),
            switch=node or None,
        ),
        # A call that was answered is not begun, whichever dialplan it is sent through again.
        in_dialog=channel.answer_state == "answered",
        # FreeSWITCH leaves out the scheme.
        ruri=uri if not uri or uri.lower().startswith("urn:") else f"sip:{uri}",
        priority=channel.headers.get("priority", ""),
        resource_priority=channel.headers.get("resource-priority", ""),
        node=node,
        way="freeswitch",
        waited=_waited(channel),
    )


def answer(decision: Decision | None, *, is_async: bool) -> tuple[bytes, bool]:
    """The commands that carry it out; and whether the call does not go on in its dialplan."""
    if decision is not None and decision.verdict == REFUSE:
        code = decision.code if decision.code and 400 <= decision.code <= 699 else 486
        reason = esl.refusal_words(decision.reason)
        rule = decision.rule if _NAME.fullmatch(decision.rule) else "other"
        return (
            esl.execute("set", f'sip_reason=SIP;cause={code};text="{reason}"')
            + esl.execute("set", f"sip_rh_X-Admission={rule}")
            + esl.execute("respond", str(code))
        ), True
    if decision is not None and decision.verdict == OVERFLOW and _NAME.fullmatch(decision.route):
        return (
            esl.execute("set", f"sidecar_route={decision.route}")
            + esl.execute("transfer", f"{decision.route} XML {OVERFLOW_CONTEXT}")
        ), True
    # Beside us, it goes on in its dialplan only when it is told.
    return (esl.command("resume") if is_async else b"") + esl.exit_(), False


def _number(text: str | None, most: int) -> int | None:
    """None for what is no number of FreeSWITCH's: int() also takes signs, spaces, underscores."""
    if text is None or len(text) > 17 or not (text.isascii() and text.isdigit()):
        return None
    return int(text) if int(text) <= most else None


def _waited(channel: esl.Channel) -> float:
    came, now = _number(channel.invite_stamp, 10**17), _number(channel.event_stamp, 10**17)
    return 0.0 if came is None or now is None else max((now - came) / 1e6, 0.0)


class _Peer(asyncio.Protocol):
    """One connection: one call that waits."""

    def __init__(self, outbound: Outbound, peers: "set[_Peer]") -> None:
        self._outbound = outbound
        self._peers = peers
        self._transport: asyncio.Transport | None = None
        self._held = bytearray()
        self._scanned = 0
        self._rest: esl.Connection | None = None  # after the answer
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._goodbye: asyncio.TimerHandle | None = None
        self._why: str | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the socket is closed."""

    def abort(self, why: str | None = None) -> None:
        """End it; FreeSWITCH lets a call pass that had no answer yet."""
        if self._transport is not None and self._why is None:
            self._why = why or "closed"
            if why:
                self._outbound.counters[why] += 1
            self._transport.abort()

    # -- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """FreeSWITCH has a call to ask about."""
        self._transport = cast("asyncio.Transport", transport)  # which uvloop's is not by class
        if len(self._peers) >= MOST_CONNECTIONS:
            self.abort("too-many")
            return
        self._peers.add(self)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._outbound.patience, self.abort, "timeout")
        self._transport.write(b"connect\n\n")

    def data_received(self, data: bytes) -> None:
        """Bytes, in any pieces."""
        self._received += len(data)
        if self._why is not None:
            return
        if self._received > MOST_BYTES:
            self.abort("too-big")
        elif self._rest is not None:
            self._hear(data)
        else:
            self._held += data
            self._look()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's
        """The socket is closed, by whomever."""
        for timer in (self._timer, self._goodbye):
            if timer is not None:
                timer.cancel()
        self._peers.discard(self)
        self.gone.set_result(None)
        if self._rest is None and self._why is None:
            self._outbound.counters["not-asked"] += 1

    # -- own

    def _look(self) -> None:
        """Answer once the channel is known: in the same turn."""
        held = self._held
        if held[:1].isspace():
            held[:] = held.lstrip()
            self._scanned = 0
        blank = _BLANK_LINE.search(held, self._scanned)
        if blank is None:
            self._scanned = max(0, len(held) - 2)
            return
        block, rest = bytes(held[: blank.start()]), bytes(held[blank.end() :])
        held.clear()
        self._rest = esl.Connection()
        decision, is_async = self._outbound.decide(block)
        commands, ends = answer(decision, is_async=is_async)
        assert self._transport is not None
        self._transport.write(commands)
        if ends:
            loop = asyncio.get_running_loop()
            self._goodbye = loop.call_later(self._outbound.linger, self._leave)
        if rest:
            self._hear(rest)

    def _leave(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(esl.exit_())

    def _hear(self, data: bytes) -> None:
        """What became of our commands."""
        assert self._rest is not None
        with contextlib.suppress(esl.EslError):  # the connection is over soon anyway
            for one in self._rest.receive_data(data):
                if (
                    isinstance(one, esl.Reply)
                    and one.content_type == "command/reply"
                    and not one.ok
                ):
                    self._outbound.counters["not-done"] += 1
