"""Tells incidents to receivers: each in order, again until it is taken, and none waits for another.

A notice is told once as far as the protocol allows. Where an answer was lost it is told again, with
the same key: PagerDuty and Alertmanager know it by that, a webhook by Idempotency-Key, mail by
Message-ID; Slack alone may show it twice.
"""

import asyncio
import contextlib
import ipaddress
import logging
import random
import smtplib
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from email import policy
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from sipsidecar.posting import Poster, PostError, in_thread, why_of
from sipsidecar.signals.alarms import IncidentRecord, Notice
from sipsidecar.signals.receivers import (
    MOST_BATCH,
    Message,
    Receiver,
    alert_labels,
    alerts_of,
    concerns,
    message_of,
)

RESULTS: Final = ("sent", "resent", "again", "refused", "expired", "dropped", "left", "broken")
"""What becomes of notices: taken; told again to Alertmanager while it lasts; a try failed and another
follows; never to be taken (HTTP 4xx, SMTP 5xx); not taken in time; no room to wait; unsent at the end;
could not be put into words."""
MOST_WAITING: Final = 1000
"""Notices that wait for one receiver; beyond it the oldest is dropped."""
MOST_OPEN: Final = 2000
"""Open incidents that are remembered of one receiver."""
CLOSING: Final = 2.0
"""Seconds that `close` waits for what is not told yet."""

log = logging.getLogger("sipsidecar.alerts")


class Timing(NamedTuple):
    """Seconds."""

    one_try: float = 10.0
    """What one try may take; mail has three times as much, for it has many steps."""
    first_pause: float = 1.0
    longest_pause: float = 60.0
    """Doubled from try to try, and up to half of it left out by chance."""
    longest_asked: float = 900.0
    """The longest Retry-After that is kept to."""
    give_up: float = 3600.0
    """An hour after it was to be told a notice is no news."""
    refresh: float = 60.0
    """How often Alertmanager is told what is still open: its users do so every 30 s to 3 min."""


class Outcome(NamedTuple):
    """What came of one try."""

    result: str
    """sent, refused or again."""
    why: str = ""
    """A word of `posting.WHYS`, HTTP and the status, or SMTP and the code."""
    after: float | None = None
    """Seconds that the receiver asks to wait."""


class Alerter:
    """All receivers; `source` is who says it. `run` must run for anything to be told."""

    def __init__(
        self,
        receivers: Sequence[Receiver] = (),
        secrets: Mapping[str, str] | None = None,
        link: str = "",
        *,
        source: str = "sipsidecar",
        timing: Timing | None = None,
    ) -> None:
        self.counters: Counter[tuple[str, str]] = Counter()
        """By receiver's name and one of `RESULTS`."""
        self._timing = timing or Timing()
        self._source = source
        self._poster = Poster(self._timing.one_try)
        self._desks: dict[str, _Desk] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running = False
        self._closed = asyncio.Event()
        self.reload(receivers, secrets or {}, link)

    def send(self, notices: Iterable[Notice]) -> None:
        """Have notices told, without waiting for it."""
        for notice in notices:
            for desk in self._desks.values():
                desk.put(notice)

    def restore(self, incidents: Iterable[IncidentRecord]) -> None:
        """Take up incidents that an earlier life has told of.

        Receivers hear of their end, and Alertmanager that they last.
        """
        for incident in incidents:
            notice = Notice(what="opened", incident=incident, at=_now())
            for desk in self._desks.values():
                desk.restore(notice)

    def reload(
        self, receivers: Sequence[Receiver], secrets: Mapping[str, str], link: str = ""
    ) -> None:
        """Take other receivers; what waits for one of the same name waits on."""
        desks, self._desks = self._desks, {}
        for receiver in receivers:
            desk = desks.pop(receiver.name, None) or _Desk(
                self._timing, self._poster, self.counters
            )
            desk.receiver, desk.link = receiver, link
            desk.secret, desk.source = secrets.get(receiver.secret, ""), self._source
            self._desks[receiver.name] = desk
            if self._running and receiver.name not in self._tasks:
                self._tasks[receiver.name] = asyncio.create_task(desk.run())
        for name, desk in desks.items():
            self.counters[name, "dropped"] += desk.waiting
            if task := self._tasks.pop(name, None):
                task.cancel()

    async def run(self) -> None:
        """Tell receivers until closed or cancelled."""
        self._running = True
        for name, desk in self._desks.items():
            self._tasks[name] = asyncio.create_task(desk.run())
        try:
            await self._closed.wait()
        finally:
            self._running = False
            await self._stop()

    async def close(self) -> None:
        """Tell what can be told in `CLOSING` seconds; the rest is counted."""
        for desk in self._desks.values():
            desk.end()
        if tasks := list(self._tasks.values()):
            await asyncio.wait(tasks, timeout=CLOSING)
        await self._stop()
        for name, desk in self._desks.items():
            left = desk.give_back()
            if left:
                self.counters[name, "left"] += left
                log.warning("receiver %s: %d notices are not told", name, left)
        self._closed.set()

    def status(self) -> list[dict[str, Any]]:
        """How each receiver is reached, by the order of the configuration."""
        return [desk.status() for desk in self._desks.values()]

    async def _stop(self) -> None:
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._poster.close()


class _Desk:
    """One receiver, and what is to be told to it."""

    receiver: Receiver
    secret: str
    link: str
    source: str

    def __init__(self, timing: Timing, poster: Poster, counters: Counter[tuple[str, str]]) -> None:
        self._timing, self._counters = timing, counters
        self._sender = Sender(poster, timing.one_try)
        self._queue: deque[tuple[Notice, float]] = deque()
        self._telling: Notice | None = None
        self._wake, self._ending = asyncio.Event(), asyncio.Event()
        self._told: dict[str, Notice] = {}
        """Of open incidents, by their names, what this receiver knows."""
        self._refreshed = float("-inf")
        self._up: bool | None = None
        self._error: str | None = None
        self._since: float | None = None

    @property
    def waiting(self) -> int:
        """Notices that are not told yet."""
        return len(self._queue) + (self._telling is not None)

    def put(self, notice: Notice) -> None:
        """Have a notice told when it is of concern."""
        if not self._concerned(notice):
            return
        if len(self._queue) >= MOST_WAITING:
            oldest, _ = self._queue.popleft()
            self._count("dropped")
            self._settle(oldest, "dropped")
        self._queue.append((notice, time.monotonic()))
        self._wake.set()

    def restore(self, notice: Notice) -> None:
        """Take it for told."""
        if self._concerned(notice):
            self._remember(notice)
            self._wake.set()

    def end(self) -> None:
        """Try once what waits, then stop."""
        self._ending.set()
        self._wake.set()

    def give_back(self) -> int:
        """Forget what waits; how many that were."""
        left = self.waiting
        self._queue.clear()
        return left

    def status(self) -> dict[str, Any]:
        """For people: no URL, no secret."""
        name, count = self.receiver.name, self._counters
        failed = sum(count[name, result] for result in ("refused", "expired", "dropped", "broken"))
        return {
            "name": name,
            "kind": self.receiver.kind,
            "up": self._up,
            "error": self._error,
            "since": None if self._since is None else time.monotonic() - self._since,
            "waiting": self.waiting,
            "sent": count[name, "sent"],
            "failed": failed,
        }

    async def run(self) -> None:
        """Tell until ended."""
        while True:
            try:
                await self._wait()
                if self._queue:
                    await self._tell(*self._queue.popleft())
                elif self._ending.is_set():
                    return
                elif self._is_due():
                    await self._refresh()
            except Exception as error:  # noqa: BLE001 - what one notice breaks must not end alerts
                self._count("broken")
                # its text may hold a URL
                log.error("receiver %s: %s", self.receiver.name, type(error).__name__)  # noqa: TRY400
                await asyncio.sleep(0)

    async def _wait(self) -> None:
        while not (self._queue or self._ending.is_set() or self._is_due()):
            self._wake.clear()
            left = None
            if self._lasts:
                left = max(self._refreshed + self._timing.refresh - time.monotonic(), 0.001)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()

    # -- notices

    def _concerned(self, notice: Notice) -> bool:
        if concerns(self.receiver, notice):
            return True
        # What it knows of must end for it, whoever's it is by now.
        return notice.what == "cleared" and self.receiver.resolved and self._knows(notice)

    def _knows(self, notice: Notice) -> bool:
        """Whether it was told of an incident, or is about to be."""
        name = notice.incident.incident
        waiting = [each for each, _ in self._queue]
        if self._telling is not None:
            waiting.append(self._telling)
        return name in self._told or any(each.incident.incident == name for each in waiting)

    def _remember(self, notice: Notice) -> None:
        name = notice.incident.incident
        self._told.pop(name, None)
        if notice.what != "cleared" and self.receiver.resolved:
            while len(self._told) >= MOST_OPEN:
                del self._told[next(iter(self._told))]
            self._told[name] = notice

    async def _tell(self, notice: Notice, since: float) -> None:
        """Try until it is taken, will never be, or is no news any more."""
        self._telling = notice
        try:
            known = self._told.get(notice.incident.incident)
            said = notice
            if known and notice.what == "cleared" and not concerns(self.receiver, notice):
                said = _ended(known, notice)
            result = await self._try(lambda: self._message(said, known), since)
        except asyncio.CancelledError:
            self._queue.appendleft((notice, since))
            raise
        finally:
            self._telling = None
        self._count(result)
        self._settle(notice, result)

    def _settle(self, notice: Notice, result: str) -> None:
        # Alertmanager is told again anyhow: what it missed it learns then.
        if result == "sent" or notice.what == "cleared" or self.receiver.kind == "alertmanager":
            self._remember(notice)

    async def _try(self, make: Callable[[], Message | None], since: float) -> str:
        timing, pause = self._timing, self._timing.first_pause
        while True:
            # made anew each time: Alertmanager counts from the time that it says
            message = make()
            if message is None:  # the configuration has changed
                return "dropped"
            outcome = await self._sender.attempt(self.receiver, self.secret, message)
            self._note(outcome)
            if outcome.result != "again":
                return outcome.result
            if self._ending.is_set():
                return "left"
            asked = min(outcome.after or 0.0, timing.longest_asked)
            wait = max(asked, pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            if time.monotonic() + wait - since > timing.give_up:
                return "expired"
            self._count("again")
            pause = min(pause * 2, timing.longest_pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ending.wait()

    def _message(self, notice: Notice, known: Notice | None) -> Message | None:
        receiver = self.receiver
        if known and notice.what == "cleared":
            # It must end where it began, whatever has been configured since.
            receiver = msgspec.structs.replace(receiver, severity="trend", tenant="")
        if receiver.kind != "alertmanager":
            return message_of(receiver, self.secret, notice, self.link, self.source)
        if not concerns(receiver, notice):
            return None
        now = msgspec.structs.replace(notice, at=_now())
        notices = [now]
        if known and alert_labels(known.incident) != alert_labels(notice.incident):
            # to Alertmanager it is another alert: without this both would be open
            notices.append(_ended(known, now))
        return alerts_of(self.receiver, self.secret, notices, self.link)

    def _note(self, outcome: Outcome) -> None:
        up = outcome.result == "sent"
        if up != self._up:
            self._since = time.monotonic()
            name = self.receiver.name
            if not up:
                log.warning("receiver %s: does not take what it is told: %s", name, outcome.why)
            elif self._up is not None:
                log.info("receiver %s: takes what it is told again", name)
        self._up, self._error = up, None if up else outcome.why

    def _count(self, result: str) -> None:
        self._counters[self.receiver.name, result] += 1

    # -- what lasts

    @property
    def _lasts(self) -> bool:
        return self.receiver.kind == "alertmanager" and bool(self._told)

    def _is_due(self) -> bool:
        return self._lasts and time.monotonic() >= self._refreshed + self._timing.refresh

    async def _refresh(self) -> None:
        """Tell Alertmanager what is still open."""
        self._refreshed = time.monotonic()
        notices = list(self._told.values())
        for begin in range(0, len(notices), MOST_BATCH):
            if self._queue:
                # What is new goes first: it may be the end of one of these.
                await self._tell(*self._queue.popleft())
            now = _now()
            some = [
                msgspec.structs.replace(notice, at=now)
                for notice in notices[begin : begin + MOST_BATCH]
                if self._told.get(notice.incident.incident) is notice
            ]
            if not some:
                continue
            message = alerts_of(self.receiver, self.secret, some, self.link)
            outcome = await self._sender.attempt(self.receiver, self.secret, message)
            self._note(outcome)
            self._count("resent" if outcome.result == "sent" else "again")
            if outcome.result != "sent" or self._ending.is_set():
                return


class Sender:
    """One try at a time to one receiver."""

    def __init__(self, poster: Poster, seconds: float = 10.0) -> None:
        self._poster = poster
        self._seconds = seconds
        self._mailing: tuple[str, asyncio.Future[None]] | None = None

    async def attempt(self, receiver: Receiver, secret: str, message: Message) -> Outcome:
        """Send it once."""
        if receiver.kind == "email":
            return await self._mail(receiver, secret, message)
        try:
            reply = await self._poster.post(message.url, message.headers, message.body)
        except PostError as error:
            return Outcome("again", error.why)
        if 200 <= reply.status < 300:
            return Outcome("sent")
        why = f"HTTP {reply.status}"
        if reply.status in (408, 425, 429) or reply.status >= 500:
            return Outcome("again", why, reply.after)
        return Outcome("refused", why)

    async def _mail(self, receiver: Receiver, secret: str, message: Message) -> Outcome:
        key = message.headers["Message-ID"]
        if self._mailing is None:
            future = in_thread(lambda: _mail(receiver, secret, message, self._seconds), "mail")
            self._mailing = key, future
        known, future = self._mailing
        # A server that takes its time may still take the mail: it is not sent a second time meanwhile.
        await asyncio.wait([future], timeout=3 * self._seconds)
        if not future.done():
            return Outcome("again", "timeout")
        self._mailing = None
        outcome = _mailed(future.exception())
        return outcome if known == key else await self._mail(receiver, secret, message)


_WHOLE = policy.default.clone(max_line_length=900)
"""The library folds within names of messages at 78; RFC 5322 2.1.1 allows 998."""


class _NoTls(Exception):
    """A password would be sent for all to read."""


def _mail(receiver: Receiver, secret: str, message: Message, seconds: float) -> None:
    """Hand a mail to a server (RFC 5321); blocks."""
    parts = urlsplit(message.url)
    host, near = parts.hostname or "", _is_near(parts.hostname or "")
    name = socket.gethostname()
    name = name if "." in name else "[127.0.0.1]"  # what smtplib says, without a look into DNS
    server: smtplib.SMTP
    if parts.scheme == "smtps":
        context = ssl.create_default_context()
        server = smtplib.SMTP_SSL(host, parts.port or 465, name, timeout=seconds, context=context)
    else:
        server = smtplib.SMTP(host, parts.port or 25, name, timeout=seconds)
    try:
        server.ehlo_or_helo_if_needed()
        if parts.scheme == "smtp" and not near:
            if server.has_extn("starttls"):
                server.starttls(context=ssl.create_default_context())
            elif receiver.user:
                raise _NoTls
        if receiver.user:
            server.login(receiver.user, secret)
        refused = server.send_message(_letter(message))
        if refused:
            log.warning("receiver %s: %d addresses are refused", receiver.name, len(refused))
        with contextlib.suppress(smtplib.SMTPException, OSError):  # it has been taken
            server.quit()
    finally:
        server.close()


def _letter(message: Message) -> EmailMessage:
    """A mail; a header with a line break is a ValueError of the library."""
    letter = EmailMessage(_WHOLE)
    for name, value in message.headers.items():
        letter[name] = value
    letter["Date"] = formatdate()
    letter["Subject"] = message.subject
    letter.set_content(message.body.decode(), cte="base64")
    return letter


def _mailed(error: BaseException | None) -> Outcome:
    if error is None:
        return Outcome("sent")
    if isinstance(error, _NoTls):
        return Outcome("refused", "no TLS")
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
        worst = min(codes, default=550)
        return Outcome("refused" if worst >= 500 else "again", f"SMTP {worst}")
    if isinstance(error, smtplib.SMTPResponseException):
        final = error.smtp_code >= 500
        return Outcome("refused" if final else "again", f"SMTP {error.smtp_code}")
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return Outcome("refused", "not supported")
    return Outcome("again", why_of(error))


def _is_near(host: str) -> bool:
    """Whether what is said to a host stays on this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _ended(known: Notice, notice: Notice) -> Notice:
    """The end of what a receiver knows, in the words that it knows."""
    over = notice.incident.cleared_at or notice.at
    incident = msgspec.structs.replace(known.incident, state="cleared", cleared_at=over)
    return Notice(what="cleared", incident=incident, at=notice.at)


def _now() -> int:
    return time.time_ns() // 1000
