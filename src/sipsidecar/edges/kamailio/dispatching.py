"""One Kamailio whose dispatcher is told which destinations are down, for as long as that is renewed.

Beside the state of a destination stands an entry of a hash table that expires; when it does,
Kamailio itself puts the destination back (sipsidecar-trunks.cfg). The entry is there before the state
is set, and goes after it was set back, so that there is no moment at which a death of this process
would leave a trunk out.

What is not ours is left alone: a destination that Kamailio pings by itself (flag P), and one that it
or an operator took out. The last one in use of a set is never taken out; and when all others are gone
later, ours come back. A reload of the dispatcher forgets all states: what is down is set again.
"""

import asyncio
import contextlib
import logging
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from sipsidecar.edges.kamailio.push import _Line, _opener, _words
from sipsidecar.signals.decisions import PushState
from sipsidecar.tables import printable

EVERY: Final = 1.0
"""Seconds between two looks and renewals, while anything is out or shall be."""
IDLE: Final = 5.0
"""Seconds between two looks while nothing is."""
PATIENCE: Final = 0.5
"""Seconds for an answer, and for a connection."""
FAREWELL: Final = 1.0
"""Seconds at the end to put back what is out."""
MOST_ALOFT: Final = 32
"""Calls without an answer."""
MOST_OUT: Final = 500
"""Destinations of one Kamailio."""
COMPLAIN_EVERY: Final = 600.0
TABLE: Final = "sidecar_out"
OUT: Final = "ix"
BACK: Final = "ax"
"""States as `dispatcher.set_state` takes them: inactive and active, neither of them pinged."""

Destination = tuple[int, str]
"""Set and URI."""
Flags = dict[Destination, str]
"""Of each destination, by its URI in lower case, as Kamailio compares them."""

log = logging.getLogger("sipsidecar.trunks")

_URI: Final = re.compile(r"[A-Za-z0-9_.:;=@\[\]+!~*'()-]+")
_encode = msgspec.json.Encoder().encode


class _AwayError(Exception):
    """Kamailio cannot be told anything; the text says why."""


class _RefusedError(Exception):
    """Kamailio did not do one thing; the text is its own."""


class _Said(msgspec.Struct):
    """What an answer holds."""

    id: int
    result: Any = None
    error: Any = None


class _Dest(msgspec.Struct, rename="upper"):
    uri: str
    flags: str


class _Target(msgspec.Struct, rename="upper"):
    dest: _Dest


class _Set(msgspec.Struct, rename="upper"):
    id: int
    targets: list[_Target]


class _Record(msgspec.Struct, rename="upper"):
    set: _Set


class _Listing(msgspec.Struct, rename="upper"):
    """What `dispatcher.list` holds."""

    records: list[_Record]


_decode = msgspec.json.Decoder(_Said).decode


class Left(msgspec.Struct, frozen=True):
    """A destination that is down and was not taken out."""

    group: int
    uri: str
    why: str
    """last (in use, of its set), pinged (by Kamailio), taken (out already, by others), missing (no
    such destination), or refused."""


class Dispatching:
    """One configured Kamailio: `show` says what is down, `run` has it out.

    `address` is `udp:HOST:PORT`, `unix:/PATH` or `http://HOST:PORT/PATH`; ValueError for anything
    else. What is out comes back `lease_seconds` after this process ceased to be, and at its orderly
    end at once. Kamailio's list of destinations has to fit into 64 kB: there are some 300 in it.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        lease_seconds: int = 15,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.address = address
        self.taken_out = 0
        """Times that a destination was taken out."""
        self.spared = 0
        """Times that one was left in, or came back, because no other of its set was in use."""
        self.overruled = 0
        """Times that one that was out had another state by others' doing."""
        self._open = _opener(address)
        self._lease = lease_seconds
        self._now = now
        self._down: frozenset[Destination] = frozenset()
        self._out: dict[Destination, None] = {}
        self._left: dict[Destination, str] = {}
        self._stirred = asyncio.Event()
        self._line: _Line | None = None
        self._aloft: dict[int, asyncio.Future[_Said]] = {}
        self._last_id = 0
        self._up = False
        self._error: str | None = "nothing was said yet"
        self._since: float | None = None
        self._complained: tuple[str, float] | None = None
        self._rtts: deque[float] = deque(maxlen=64)
        self._pushed = 0
        self._failed = 0

    def show(self, down: Iterable[Destination]) -> None:
        """Have this out from now on, and nothing else; returns at once."""
        known = sorted({(group, uri.lower()) for group, uri in down if _URI.fullmatch(uri)})
        wanted = frozenset(known[:MOST_OUT])
        if wanted != self._down:
            self._down = wanted
            self._stirred.set()

    async def run(self) -> None:
        """Keep Kamailio at what was shown, until cancelled; then put back what is out."""
        try:
            while True:
                self._stirred.clear()
                await self._turn()
                await self._rest()
        finally:
            with contextlib.suppress(_AwayError, TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    if self._out:
                        await self._put_back(list(self._out), await self._flags())
            self._hang_up()
            self._up = False
            self._error = "stopped"

    def status(self) -> PushState:
        """How it is with it now."""
        missing = sum(why in ("missing", "refused") for why in self._left.values())
        error = self._error
        if error is None and missing:
            error = f"{missing} destinations are in none of its sets, or refused"
        return PushState(
            name=self.name,
            kind="dispatcher",
            up=self._up,
            error=error,
            rtt_ms=statistics.median(self._rtts) * 1000 if self._rtts else None,
            entries=len(self._out) if self._up else 0,
            pushed=self._pushed,
            failed=self._failed,
            since=None if self._since is None else max(0.0, self._now() - self._since),
        )

    def out(self) -> list[Destination]:
        """What is out now, by our doing."""
        return sorted(self._out)

    def left(self) -> list[Left]:
        """What is down and was not taken out."""
        return [Left(group, uri, why) for (group, uri), why in sorted(self._left.items())]

    # -- one turn

    async def _rest(self) -> None:
        """Wait for the next turn: who is away is asked once a second, whatever is shown."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVERY if self._down or self._out else IDLE):
                if not self._up:
                    await asyncio.sleep(EVERY)
                await self._stirred.wait()

    async def _turn(self) -> None:
        try:
            if self._line is None:
                await self._connect()
            await self._agree()
        except _AwayError as error:
            self._fail(str(error))
        else:
            self._went_up()

    async def _agree(self) -> None:
        """Bring the dispatcher to what was shown."""
        if not (self._down or self._out):
            self._left = {}
            with contextlib.suppress(_RefusedError):  # there is no such key, only the table
                await self._call("htable.get", TABLE, "up")
            return
        flags = await self._flags()
        await self._put_back(self._no_longer(flags), flags)
        left: dict[Destination, str] = {}
        for one in sorted(self._down):
            if one in self._out and flags.get(one) == "IX":
                continue
            why = _why_not(one, flags)
            if why is None:
                why = await self._take_out(one, flags)
            if why is not None:
                left[one] = why
                self._leave(one, why)
        self._left = left
        await self._renew(list(self._out))

    def _no_longer(self, flags: Flags) -> list[Destination]:
        """What is out and shall not be, or is not by our doing any more."""
        back = []
        for one in self._out:
            said = flags.get(one)
            if one not in self._down:
                back.append(one)
            elif said not in ("IX", "AX"):
                self.overruled += 1
                back.append(one)
            elif said == "AX" and _why_not(one, flags) is not None:
                back.append(one)
            elif said == "IX" and not _in_use(one[0], flags):
                self.spared += 1
                self._say_spared(one)
                back.append(one)
        return back

    def _leave(self, one: Destination, why: str) -> None:
        if why == "last" and self._left.get(one) != "last":
            self.spared += 1
            self._say_spared(one)
        self._out.pop(one, None)

    def _say_spared(self, one: Destination) -> None:
        log.warning(
            "Kamailio %s: %s of set %d is down, and stays in use: no other is",
            self.name,
            one[1],
            one[0],
        )

    async def _take_out(self, one: Destination, flags: Flags) -> str | None:
        """Take one out; why not."""
        await self._renew([one])
        self._out[one] = None
        try:
            await self._call("dispatcher.set_state", OUT, *one)
        except _RefusedError:
            return "refused"  # its entry expires
        flags[one] = "IX"
        self.taken_out += 1
        log.warning("Kamailio %s: %s of set %d is taken out", self.name, one[1], one[0])
        return None

    async def _put_back(self, some: Iterable[Destination], flags: Flags) -> None:
        """Put back what is still out by our doing, and end its lease."""
        for one in some:
            with contextlib.suppress(_RefusedError):  # it is there no more, or its entry is not
                if flags.get(one) == "IX":
                    await self._call("dispatcher.set_state", BACK, *one)
                    flags[one] = "AX"
                    log.info("Kamailio %s: %s of set %d is back", self.name, one[1], one[0])
                await self._call("htable.delete", TABLE, _key(one))
            self._out.pop(one, None)

    async def _renew(self, some: list[Destination]) -> None:
        """Renew the leases, some at a time."""
        for start in range(0, len(some), MOST_ALOFT):
            calls = [
                self._call("htable.setxi", TABLE, _key(one), 1, self._lease)
                for one in some[start : start + MOST_ALOFT]
            ]
            for said in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(said, _RefusedError):
                    raise _AwayError(f"refuses: {said}")
                if isinstance(said, BaseException):
                    raise said

    async def _flags(self) -> Flags:
        try:
            return _read(await self._call("dispatcher.list"))
        except _RefusedError as error:
            if str(error) == "No Destination Sets":
                return {}
            raise _AwayError(f"refuses: {error}") from None

    # -- calls

    async def _call(self, method: str, *params: int | str) -> object:
        """One call and its result; _RefusedError, _AwayError."""
        if self._line is None:
            raise _AwayError("is not connected")
        self._last_id = (self._last_id + 1) % 2**31
        call_id, began = self._last_id, self._now()
        call = {"jsonrpc": "2.0", "method": method, "params": params, "id": call_id}
        future: asyncio.Future[_Said] = asyncio.get_running_loop().create_future()
        self._aloft[call_id] = future
        try:
            if not self._line.send(_encode(call)):
                raise _AwayError("takes nothing")
            async with asyncio.timeout(PATIENCE):
                said = await future
        except TimeoutError:
            raise _AwayError("does not answer") from None
        finally:
            self._aloft.pop(call_id, None)
        self._rtts.append(self._now() - began)
        if said.error is None:
            self._pushed += 1
            return said.result
        words = said.error.get("message") if isinstance(said.error, dict) else None
        if words == "No such htable":
            raise _AwayError(f"has no table {TABLE}: is sipsidecar-trunks.cfg included?")
        raise _RefusedError(printable(str(words)[:100]))

    def _heard(self, answer: bytes) -> None:
        """One answer, whatever it is."""
        try:
            said = _decode(answer)
        except (msgspec.DecodeError, RecursionError):
            self._broke("answers what is no JSON-RPC")
            return
        future = self._aloft.get(said.id)
        if future is not None and not future.done():
            future.set_result(said)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                self._line = await self._open(self._heard, self._broke)
        except (OSError, ValueError) as error:  # a name that can be none is a UnicodeError
            raise _AwayError(_words(error)) from None

    def _broke(self, why: str) -> None:
        """The line is of no use any more."""
        self._hang_up()
        for future in self._aloft.values():
            if not future.done():
                future.set_exception(_AwayError(why))
                future.exception()  # the one who waits may be gone

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _fail(self, why: str) -> None:
        now = self._now()
        self._failed += 1
        self._hang_up()
        self._error = why
        if self._up or self._since is None:
            self._since = now
        self._up = False
        said = self._complained
        if said is None or said[0] != why or now - said[1] >= COMPLAIN_EVERY:
            self._complained = why, now
            log.warning(
                "Kamailio %s at %s: %s; its trunks are left to it", self.name, self.address, why
            )

    def _went_up(self) -> None:
        if self._up:
            return
        self._up = True
        self._since = self._now()
        self._error = self._complained = None
        log.info("Kamailio %s at %s: its trunks can be taken out", self.name, self.address)


def _why_not(one: Destination, flags: Mapping[Destination, str]) -> str | None:
    """Why a destination is not taken out; None: it is."""
    said = flags.get(one)
    if said is None:
        return "missing"
    if not _used(said):
        return "taken"
    if said.endswith("P"):
        return "pinged"
    return None if _in_use(one[0], flags) > 1 else "last"


def _in_use(group: int, flags: Mapping[Destination, str]) -> int:
    """How many destinations of a set get calls."""
    return sum(said[0] == group and _used(flag) for said, flag in flags.items())


def _used(flag: str) -> bool:
    return flag.startswith(("A", "T"))


def _key(one: Destination) -> str:
    return f"{one[0]}|{one[1]}"


def _read(said: object) -> Flags:
    """What `dispatcher.list` says; _AwayError for anything else."""
    try:
        listing = msgspec.convert(said, _Listing)
    except msgspec.ValidationError:
        raise _AwayError("answers what is no list of destinations") from None
    return {
        (record.set.id, target.dest.uri.lower()): target.dest.flags
        for record in listing.records
        for target in record.set.targets
    }
