"""SIP OPTIONS of our own to every peer, over UDP, TCP and TLS (RFC 3261 11, 17.1.2, 18.1).

All addresses of a peer are asked at once, and one that answers is enough: of which of them is silent
the status tells. A connection is kept for the next one, as a UDP socket is, so that what stands
between sees one flow. What keeps us from asking, or from hearing in time, is no miss of the peer's: no socket,
no way out of this machine, a loop that stood still, a machine that slept.

A certificate that cannot be verified does not hide how the SIP service is: the connection is made
again without verifying, for nothing but OPTIONS goes over it, and both are told.
"""

import asyncio
import errno
import hashlib
import logging
import random
import secrets
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import msgspec

from sipsidecar.signals.naming import Place
from sipsidecar.signals.trunk import Peer, SeenCertificate, Trunks, is_alive, parse_uri
from sipsidecar.wire import WireError, sip, x509
from sipsidecar.wire.stream import SipStream

T1: Final = 0.5
T2: Final = 4.0
"""Timer E of RFC 3261 17.1.2.2: how long until an OPTIONS over UDP is repeated, at first and at most."""
LATE: Final = 0.5
"""Seconds that the end of waiting may come too late; from there on the loop stood still."""
SLEPT: Final = 1.0
"""Seconds between what two clocks say has passed; from there on the machine slept, or was set."""
RENEW: Final = 3600.0
"""Seconds after which a TLS connection is made anew, to see the certificate of today."""
MOST_READ: Final = 16
"""Datagrams that are read at one turn of the loop."""
MOST_HEARD: Final = 1000
"""Messages between two OPTIONS, answers too: whoever sends more is not listened to until then."""
COMPLAIN_EVERY: Final = 600.0

WHYS: Final = ("no-answer", "refused", "unreachable", "tls", "broken", "flood")
"""Why there is no answer: none in time, nobody listens, no way to it, no handshake, a connection lost,
too much else was said."""
SILENCES: Final = ("no-address", "socket", "stalled", "slept")
"""Why we could not ask or hear."""

log = logging.getLogger("sipsidecar.trunks")

_OURS: Final = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EPERM, errno.EACCES,
        errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH,
        errno.ENETDOWN, errno.EINVAL, errno.EMSGSIZE,
    }
)  # fmt: skip
_UNREACHABLE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})
_VERDICTS: Final = {9: "not-yet-valid", 10: "expired", 18: "self-signed", 19: "self-signed"} | (
    dict.fromkeys((2, 20, 21, 27), "untrusted")
)
"""OpenSSL's X509_V_ERR_ numbers."""


class _OursError(Exception):
    """It was not the peer; the text is one of `SILENCES`."""


class _MissError(Exception):
    """There is no answer; the text is one of `WHYS`."""


class Answer(msgspec.Struct, frozen=True):
    """What became of one OPTIONS."""

    code: int | None = None
    rtt_ms: float | None = None
    """From the request to its answer; None where it was repeated, for which one it answers is unknown."""
    why: str = ""
    ours: bool = False
    """`why` is no miss of the peer's."""


class LineState(msgspec.Struct, frozen=True, kw_only=True):
    """How it is with one address of a peer; unknown is None."""

    place: str
    local: str | None
    connected: bool
    """There is a socket, or a connection."""
    opened: int
    """How often there was a new one."""
    code: int | None
    rtt_ms: float | None
    why: str
    tls: str | None
    """Version and cipher."""


class PingerState(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of one peer."""

    name: str
    sent: int
    """OPTIONS, each counted once."""
    repeated: int
    """Repetitions over UDP."""
    strange: int
    """Messages on its sockets that were no answers to ours."""
    lines: tuple[LineState, ...]


class Pingers:
    """All peers that are probed; each result goes to `trunks` as it comes.

    `wall` is UTC in nanoseconds, `steady` seconds that never go back, fine ones: uvloop's own clock
    counts milliseconds and stands still within a turn.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        trunks: Trunks,
        *,
        agent: str = "sipsidecar",
        wall: Callable[[], int] = time.time_ns,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trunks = trunks
        self._wall = wall
        self._steady = steady
        # So that our own are known again when an agent shows them.
        self.call_ids = f"@{secrets.token_hex(8)}.sipsidecar"
        trunks.own_call_ids = self.call_ids
        self._authorities = _Authorities()
        self._pingers = [
            _Pinger(peer, self.call_ids, agent, self._authorities, steady)
            for peer in peers
            if peer.probe
        ]
        self.faults = 0
        """Bugs that cost one probe."""
        self._complained = 0.0

    async def run(self) -> None:
        """Ask until cancelled; what fails begins again."""
        if not self._pingers:
            await asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as group:
                for number, pinger in enumerate(self._pingers):
                    # Spread out, so that a hundred peers are not asked in one moment.
                    turn = pinger.peer.interval_seconds
                    share = (number + random.random()) / len(self._pingers)  # noqa: S311
                    group.create_task(self._follow(pinger, turn * share))
        finally:
            for pinger in self._pingers:
                pinger.close()

    def status(self) -> list[PingerState]:
        """What was asked, in the order of the configuration."""
        return [pinger.status() for pinger in self._pingers]

    async def _follow(self, pinger: "_Pinger", delay: float) -> None:
        turn = pinger.peer.interval_seconds
        due = self._steady() + delay
        while True:
            await asyncio.sleep(max(0.0, due - self._steady()))
            try:
                await self._ask(pinger)
            except Exception as error:  # noqa: BLE001 -- a bug must not make a trunk silent
                self._fault(pinger, error)
            # What took longer than its turn has lost the turns in between.
            due += turn * (1 + max(0.0, (self._steady() - due) // turn))

    async def _ask(self, pinger: "_Pinger") -> None:
        name = pinger.peer.name
        if self._trunks.is_disabled(name):
            pinger.close()
            return
        began, moment = self._steady(), self._wall()
        answer = await pinger.ask(self._trunks.places(name))
        wall = self._wall()
        passed, shown = self._steady() - began, (wall - moment) / 1e9
        if not answer.ours and answer.code is None and abs(shown - passed) > SLEPT:
            answer = Answer(why="slept", ours=True)
        at = wall // 1000
        if answer.ours:
            self._trunks.receive_silence(name, answer.why, at)
        else:
            self._trunks.receive_answer(name, answer.code, answer.rtt_ms, at, answer.why)
        for seen in pinger.certificates():
            self._trunks.receive_certificate(name, seen, at)

    def _fault(self, pinger: "_Pinger", error: Exception) -> None:
        self.faults += 1
        now = self._steady()
        if self.faults == 1 or now - self._complained >= COMPLAIN_EVERY:
            self._complained = now
            log.error("probing of %s failed", pinger.peer.name, exc_info=error)


class _Pinger:
    """One peer: a line to each of its addresses."""

    def __init__(
        self,
        peer: Peer,
        call_ids: str,
        agent: str,
        authorities: "_Authorities",
        steady: Callable[[], float],
    ) -> None:
        self.peer = peer
        self.counts: Counter[str] = Counter()
        self._uri = parse_uri(peer.uri)
        self._call_ids = call_ids
        self._agent = agent
        self._authorities = authorities
        self._steady = steady
        self._lines: dict[Place, _Line] = {}
        self._answers: dict[Place, Answer] = {}

    async def ask(self, places: Sequence[Place]) -> Answer:
        """Ask every address; the best answer."""
        for place in self._lines.keys() - set(places):
            self._lines.pop(place).close()
            self._answers.pop(place, None)
        if not places:
            return Answer(why="no-address", ours=True)
        for place in places:
            if place not in self._lines:
                self._lines[place] = self._line(place)
        answers = await asyncio.gather(*(self._ask(self._lines[place]) for place in places))
        self._answers = dict(zip(places, answers, strict=True))
        return self._best(answers)

    def certificates(self) -> list[SeenCertificate]:
        """Those shown since the last time."""
        found = []
        for line in self._lines.values():
            if isinstance(line, _Connection) and line.seen is not None:
                found.append(line.seen)
                line.seen = None
        return found

    def close(self) -> None:
        """Close all sockets."""
        for line in self._lines.values():
            line.close()

    def status(self) -> PingerState:
        """What was asked of it."""
        nothing = Answer()
        return PingerState(
            name=self.peer.name,
            sent=self.counts["sent"],
            repeated=self.counts["repeated"],
            strange=self.counts["strange"],
            lines=tuple(
                LineState(
                    place=_written(place),
                    local=line.local,
                    connected=line.connected,
                    opened=line.opened,
                    code=self._answers.get(place, nothing).code,
                    rtt_ms=self._answers.get(place, nothing).rtt_ms,
                    why=self._answers.get(place, nothing).why,
                    tls=line.tls,
                )
                for place, line in self._lines.items()
            ),
        )

    def _line(self, place: Place) -> "_Line":
        if self._uri.transport == "udp":
            return _Datagrams(place, self.peer.source, self.counts, self._steady)
        return _Connection(
            place,
            self.peer,
            self._uri.transport == "tls",
            self._authorities,
            self.counts,
            self._steady,
        )

    def _best(self, answers: Sequence[Answer]) -> Answer:
        """Of several addresses one that lives, else an answer, else a miss, else our own trouble."""

        def rank(answer: Answer) -> int:
            if is_alive(self.peer, answer.code):
                return 0
            if answer.code is not None:
                return 1
            return 3 if answer.ours else 2

        return min(answers, key=rank)

    async def _ask(self, line: "_Line") -> Answer:
        deadline = self._steady() + self.peer.timeout_seconds
        try:
            while True:
                fresh = not line.connected
                try:
                    return await self._once(line, deadline)
                except _MissError as miss:
                    line.close()
                    # A kept connection that the peer has closed meanwhile says nothing of the peer.
                    if fresh or str(miss) != "broken":
                        raise
        except _MissError as miss:
            return Answer(why=str(miss))
        except _OursError as error:
            line.close()
            return Answer(why=str(error), ours=True)

    async def _once(self, line: "_Line", deadline: float) -> Answer:
        """One OPTIONS within a time."""
        try:
            async with asyncio.timeout(deadline - self._steady()):
                await line.open()
                request = self._request(line)
                self.counts["sent"] += 1
                return await self._wait(line, request)
        except TimeoutError:
            if self._steady() - deadline > LATE:
                raise _OursError("stalled") from None
            raise _MissError("no-answer") from None

    async def _wait(self, line: "_Line", request: "_Request") -> Answer:
        answered = line.expect(request)
        began = self._steady()
        line.send(request.payload)
        repeated = 0
        pause = T1
        while not line.reliable:
            done, _ = await asyncio.wait({answered}, timeout=pause)
            if done:
                break
            line.send(request.payload)
            repeated += 1
            self.counts["repeated"] += 1
            pause = min(2 * pause, T2)
        code, at = await answered
        return Answer(code, None if repeated else max(0.0, at - began) * 1000)

    def _request(self, line: "_Line") -> "_Request":
        peer, sent_by, transport = self.peer, line.local or "", self._uri.transport
        branch = f"z9hG4bK{secrets.token_hex(12)}"
        call_id = secrets.token_hex(12) + self._call_ids
        host = peer.from_host or line.local_host
        contact = f"sip:sidecar@{sent_by}" + (
            "" if transport == "udp" else f";transport={transport}"
        )
        return _Request(
            branch,
            call_id,
            sip.build_options(
                ruri=peer.uri,
                transport=transport,
                sent_by=sent_by,
                branch=branch,
                call_id=call_id,
                from_uri=f"sip:sidecar@{host}",
                from_tag=secrets.token_hex(6),
                to_uri=peer.uri.partition(";")[0],
                contact=contact,
                user_agent=self._agent,
            ),
        )


class _Request(msgspec.Struct, frozen=True):
    branch: str
    call_id: str
    payload: bytes


class _Line:
    """A way to one address, on which one OPTIONS at a time waits for its answer."""

    reliable = False

    def __init__(self, place: Place, counts: Counter[str], steady: Callable[[], float]) -> None:
        self.place = place
        self.local: str | None = None
        self.local_host = ""
        self.opened = 0
        self.tls: str | None = None
        self._counts = counts
        self._steady = steady
        self._heard_since = 0
        """The last OPTIONS."""
        self._waiting: tuple[_Request, asyncio.Future[tuple[int, float]]] | None = None

    @property
    def connected(self) -> bool:
        """Whether it is open."""
        raise NotImplementedError

    async def open(self) -> None:
        """Open it, if it is not; _MissError, _OursError."""
        raise NotImplementedError

    def send(self, payload: bytes) -> None:
        """Send; _MissError, _OursError."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it; it can be opened again."""
        raise NotImplementedError

    def expect(self, request: _Request) -> asyncio.Future[tuple[int, float]]:
        """The code of the answer to come, and when it came."""
        future: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()
        self._waiting = request, future
        self._heard_since = 0
        return future

    def _heard(self, payload: bytes) -> None:
        """One message, whatever it is."""
        at = self._steady()
        self._heard_since += 1
        if self._heard_since > MOST_HEARD:
            self._counts["strange"] += 1
            self.close()
            self._fail(_MissError("flood"))
            return
        try:
            message = sip.parse(payload)
        except WireError:
            self._counts["strange"] += 1
            return
        waiting = self._waiting
        if (
            waiting is None
            or message.status is None
            or message.method != "OPTIONS"
            or message.branch != waiting[0].branch
            or message.call_id != waiting[0].call_id
        ):
            self._counts["strange"] += 1  # an answer that came too late, too
        elif message.status >= 200 and not waiting[1].done():
            waiting[1].set_result((message.status, at))

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting[1].done():
            self._waiting[1].set_exception(error)
            self._waiting[1].exception()  # the one who waits may be gone

    def _is_at(self, address: tuple[Any, ...]) -> None:
        host = str(address[0]).partition("%")[0]
        self.local_host = f"[{host}]" if ":" in host else host
        self.local = f"{self.local_host}:{address[1]}"


class _Datagrams(_Line):
    """A UDP socket of its own for one address: nobody else's datagrams come to it."""

    def __init__(
        self, place: Place, source: str, counts: Counter[str], steady: Callable[[], float]
    ) -> None:
        super().__init__(place, counts, steady)
        self._source = source
        self._socket: socket.socket | None = None

    @property
    def connected(self) -> bool:
        """Whether it is open."""
        return self._socket is not None

    async def open(self) -> None:
        """Make the socket, if there is none; what was not asked for is read away."""
        if self._socket is not None:
            self._clear(self._socket)
        if self.connected:  # what was read away may have been too much
            return
        family = socket.AF_INET6 if ":" in self.place.ip else socket.AF_INET
        try:
            made = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:
            raise _OursError("socket") from None
        try:
            made.setblocking(False)
            if self._source:
                made.bind((self._source, 0))
            made.connect((self.place.ip, self.place.port))
            self._is_at(made.getsockname())
        except OSError:
            made.close()
            raise _OursError("socket") from None
        self._socket = made
        self.opened += 1
        asyncio.get_running_loop().add_reader(made.fileno(), self._read)

    def send(self, payload: bytes) -> None:
        """Send one datagram."""
        assert self._socket is not None
        try:
            self._socket.send(payload)
        except BlockingIOError:
            raise _OursError("socket") from None
        except OSError as error:
            raise _judged(error) from None

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _clear(self, sock: socket.socket) -> None:
        """Take what ICMP said of earlier datagrams, which is no error of the next one."""
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._read()

    def _read(self) -> None:
        for _ in range(MOST_READ):
            if self._socket is None:
                return
            try:
                payload = self._socket.recv(65_535)
            except BlockingIOError:
                return
            except OSError as error:  # ICMP says that nobody listens, or that there is no way
                unreachable = error.errno in _UNREACHABLE
                self._fail(_MissError("unreachable" if unreachable else _why(error)))
                return
            self._heard(payload)


class _Connection(_Line):
    """A connection to one address, over TCP or TLS, kept until either side ends it."""

    reliable = True

    def __init__(
        self,
        place: Place,
        peer: Peer,
        secure: bool,
        authorities: "_Authorities",
        counts: Counter[str],
        steady: Callable[[], float],
    ) -> None:
        super().__init__(place, counts, steady)
        self.seen: SeenCertificate | None = None
        """Shown at the last handshake, until it was told."""
        self._peer = peer
        self._secure = secure
        self._name = peer.server_name or parse_uri(peer.uri).host
        self._authorities = authorities
        self._open: _Stream | None = None
        self._since = 0.0

    @property
    def connected(self) -> bool:
        """Whether it is open."""
        return self._open is not None and not self._open.lost

    async def open(self) -> None:
        """Connect, if there is no connection, or one that is old."""
        if self.connected and not (self._secure and self._steady() - self._since > RENEW):
            return
        self.close()
        if not self._secure:
            await self._connect(None)
            return
        context = self._authorities.context(self._peer.ca)
        if context is None:
            await self._connect(_trusting())
            self._show(None, "ca")
            return
        try:
            await self._connect(context)
        except ssl.SSLCertVerificationError as error:
            await self._connect(_trusting())
            self._show(False, _VERDICTS.get(error.verify_code, "broken"))
        else:
            self._show(True, "")

    def send(self, payload: bytes) -> None:
        """Send; what was sent before and is not taken is dropped with the connection."""
        if self._open is None or not self._open.write(payload):
            raise _MissError("broken")

    def close(self) -> None:
        """End the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None

    async def _connect(self, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        stream = _Stream(self._heard, lambda: self._fail(_MissError("broken")))
        try:
            await loop.create_connection(
                lambda: stream,
                self.place.ip,
                self.place.port,
                ssl=context,
                server_hostname=self._name if context is not None else None,
                local_addr=(self._peer.source, 0) if self._peer.source else None,
            )
        except ssl.SSLCertVerificationError:
            raise
        except ssl.SSLError:
            raise _MissError("tls") from None
        except TimeoutError:
            raise
        except OSError as error:
            raise _judged(error) from None
        except BaseException:
            stream.close()
            raise
        self._open = stream
        self._since = self._steady()
        self.opened += 1
        assert stream.transport is not None
        self._is_at(stream.transport.get_extra_info("sockname"))

    def _show(self, verified: bool | None, why: str) -> None:
        assert self._open is not None
        assert self._open.transport is not None
        made = self._open.transport.get_extra_info("ssl_object")
        cipher = made.cipher()
        self.tls = f"{made.version()} {cipher[0] if cipher else ''}".rstrip()
        der = made.getpeercert(binary_form=True) or b""
        try:
            said = x509.parse(der)
        except x509.X509Error:
            self.seen = SeenCertificate(
                place=self.place,
                fingerprint=hashlib.sha256(der).hexdigest(),
                verified=False,
                why=why or "broken",
            )
            return
        if not why and not said.is_for(self._name):
            verified, why = False, "name"
        self.seen = SeenCertificate(
            place=self.place,
            not_before=said.not_before * 1_000_000,
            not_after=said.not_after * 1_000_000,
            subject=said.subject,
            issuer=said.issuer,
            fingerprint=hashlib.sha256(der).hexdigest(),
            verified=verified,
            why=why,
        )


class _Stream(asyncio.Protocol):
    """Bytes of one connection to whole messages, as much as one message may hold."""

    def __init__(self, heard: Callable[[bytes], None], broke: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self._heard = heard
        self._broke = broke
        self._messages = SipStream()
        self._full = False

    def write(self, payload: bytes) -> bool:
        """Send; False when the connection is lost, or the peer does not read."""
        if self.transport is None or self.lost or self._full or self.transport.is_closing():
            return False
        self.transport.write(payload)
        return True

    def close(self) -> None:
        """End it at once."""
        self.lost = True
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is made, TLS too."""
        self.transport = cast("asyncio.Transport", transport)  # which uvloop's is not by class
        if self.lost:
            self.transport.abort()

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._full = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._full = False

    def data_received(self, data: bytes) -> None:
        """Bytes, in any pieces."""
        for message in self._messages.feed(data, None):
            if not message.garbage:  # which keep-alives are, too (RFC 5626 3.5.1)
                self._heard(message.payload)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- the same either way
        """It is over."""
        if not self.lost:
            self.lost = True
            self._broke()


class _Authorities:
    """TLS contexts by their file of authorities; the system's are large, and read once."""

    def __init__(self) -> None:
        self._contexts: dict[str, ssl.SSLContext | None] = {}

    def context(self, ca: str) -> ssl.SSLContext | None:
        """One that verifies; None where the file cannot be read."""
        if ca not in self._contexts:
            self._contexts[ca] = None
            try:
                made = ssl.create_default_context(cafile=ca or None)
            except OSError as error:  # of ssl, too
                why = error.strerror or type(error).__name__
                log.warning("trunks.peers: ca %s: %s; it verifies no certificate", ca, why)
            else:
                # Names are looked at here, for certificates of SIP domains have URIs (RFC 5922 7.1).
                made.check_hostname = False
                self._contexts[ca] = made
        return self._contexts[ca]


def _trusting() -> ssl.SSLContext:
    """A context that shows how the service is behind a certificate that was found wrong."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def _judged(error: OSError) -> Exception:
    """Whose fault it is that there is no way to a peer."""
    if error.errno in _OURS:
        return _OursError("socket")
    return _MissError(_why(error))


def _why(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "refused"
    if error.errno in _UNREACHABLE:
        return "unreachable"
    return "no-answer" if error.errno == errno.ETIMEDOUT else "broken"


def _written(place: Place) -> str:
    return f"[{place.ip}]:{place.port}" if ":" in place.ip else f"{place.ip}:{place.port}"
