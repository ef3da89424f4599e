"""A FreeSWITCH for tests: speaks ESL on loopback from recordings and from its own state.

Pure parts first: events to bytes and back, a recorded call played anew, what a listener asked for,
the switch's state and its answers. `FakeSwitch` at the end owns the sockets. Nothing here uses the
product's ESL code: two readings of the protocol check each other. Texts: `fakeswitch.toml`.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import re
import socket
import struct
import time
import tomllib
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

Value = str | list[str]
Headers = list[tuple[str, Value]]
"""In order, names may repeat; text holds any octets (surrogateescape)."""
HERE = Path(__file__).parent
RECORDINGS = HERE / "corpus" / "freeswitch"
SAID: dict[str, Any] = tomllib.loads((HERE / "fakeswitch.toml").read_text())
EVENT_NAMES = frozenset(SAID["event_names"].split())
LIMIT = 10.0
"""Seconds after which waiting for clients is given up."""
TICK = 20_000
"""Microseconds: FreeSWITCH's clock moves in such steps."""
GOODBYE = b"Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"
NOTICE = b"Content-Type: text/disconnect-notice\nContent-Length: %d\n\n" % len(GOODBYE) + GOODBYE
GARBAGE = (
    b"\x16\x03\x01\x00\xff no ESL at all \x00\xfe\r\n\r\n",
    b"Content-Type: text/event-json\nContent-Length: banana\n\n",
    b"Content-Type: text/event-plain\nContent-Length: -5\n\nEvent-Name: HEARTBEAT\n\n",
    b"Content-Type: text/event-json\nContent-Length: 99999999999\n\n{",
    b"Content-Type: text/event-json\nContent-Length: 9\n\n[1, 2, 3]",
    b"A" * 100_000,
)

# ---------------------------------------------------------------- events to bytes and back


def octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def letters(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def as_value(text: str) -> Value:
    return text[7:].split("|:") if text.startswith("ARRAY::") else text


_UNSAFE = re.compile(rb"(%(?=[0-9A-F]{2}))|[\x00-\x20\x7f-\xff\"#%&+:;<=>?@\[\\\]^`{|}]")


def url_encode(value: bytes) -> bytes:
    """As FreeSWITCH does: a percent sign before two (capital) hex digits stays as it is."""
    return _UNSAFE.sub(lambda m: m[1] or b"%%%02X" % m[0][0], value)


@dataclass(frozen=True)
class Event:
    headers: Headers
    body: str | None = None

    def get(self, name: str) -> str:
        """Its first header of this name in one piece, empty when there is none."""
        value = next((value for key, value in self.headers if key == name), "")
        return value if isinstance(value, str) else "ARRAY::" + "|:".join(value)

    def encode(self, how: str) -> bytes:
        """The whole frame; `how` is plain or json."""
        text = self._json() if how == "json" else self._plain()
        kind = how.encode()
        return b"Content-Length: %d\nContent-Type: text/event-%s\n\n%s" % (len(text), kind, text)

    def _plain(self) -> bytes:
        parts = []
        for name, value in self.headers:
            flat = value if isinstance(value, str) else "ARRAY::" + "|:".join(value)
            parts.append(b"%s: %s\n" % (octets(name), url_encode(octets(flat)) or b"_undef_"))
        body = octets(self.body or "")
        parts.append(b"Content-Length: %d\n\n%s" % (len(body), body) if body else b"\n")
        return b"".join(parts)

    def _json(self) -> bytes:
        """Compact, names may repeat, octets above 127 as they are: even when they are no UTF-8."""
        pairs = list(self.headers)
        if self.body is not None:
            pairs += [("Content-Length", str(len(octets(self.body)))), ("_body", self.body)]
        dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        return b"{%s}" % octets(",".join(f"{dump(name)}:{dump(value)}" for name, value in pairs))


def frames(data: bytes) -> Iterator[tuple[dict[str, str], bytes]]:
    """Header block and body of each whole frame in recorded bytes; a cut end is left out."""
    at = 0
    while (end := data.find(b"\n\n", at)) >= 0:
        lines = letters(data[at:end]).split("\n")
        head = dict(line.split(": ", 1) for line in lines if ": " in line)
        at = end + 2 + int(head.get("Content-Length", "0"))
        if at <= len(data):
            yield head, data[end + 2 : at]


def read_events(transcript: bytes) -> Iterator[Event]:
    """The events of a recorded transcript, plain and JSON; replies are left out.

    Plain cannot tell a `%0A` that a caller wrote from a newline.
    """
    for head, text in frames(transcript):
        if head.get("Content-Type") == "text/event-json":
            pairs = json.loads(letters(text), object_pairs_hook=list)
            body = next((value for name, value in pairs if name == "_body"), None)
            gone = () if body is None else ("_body", "Content-Length")
            yield Event([pair for pair in pairs if pair[0] not in gone], body)
        elif head.get("Content-Type") == "text/event-plain":
            top, _, rest = text.partition(b"\n\n")
            lines = [line.partition(": ") for line in letters(top).split("\n")]
            if rest:
                lines.pop()  # the length of the body
            pairs = [(name, "" if raw == "_undef_" else raw) for name, _, raw in lines]
            headers = [(k, as_value(unquote(raw, errors="surrogateescape"))) for k, raw in pairs]
            yield Event(headers, letters(rest) or None)


# ---------------------------------------------------------------- a recorded call played anew


@dataclass
class Leg:
    uuid: str
    call_id: str


@dataclass
class Call:
    """Its legs, and what is still to be fired: (microseconds UTC, event name, headers)."""

    a: Leg
    b: Leg | None
    steps: deque[tuple[int, str, Headers]] = field(default_factory=deque)


@functools.cache
def _recorded(file: str) -> list[Event]:
    return [e for e in read_events((RECORDINGS / file).read_bytes()) if e.get("Unique-ID")]


def write_call(
    outcome: str,
    *,
    end: int,
    status: int = 486,
    ring: float | None = None,
    answer: float | None = None,
    talk: float | None = None,
    call_ids: tuple[str, str] | None = None,
    variables: Mapping[str, Value] | None = None,
    set_a: Mapping[str, str] | None = None,
    set_b: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
) -> Call:
    """A call of `SAID["calls"]` with its own uuids, Call-IDs and times; its last event is at `end`.

    `end`: microseconds UTC; `status`: of refused and refused_here; `ring`, `answer`: seconds after
    the start, `talk`: seconds after the answer (None: as recorded); `variables`: more of A's channel
    variables; `set_a`, `set_b`: headers whose value changes where they are; `words`: any text.
    """
    if outcome == "core_503":  # paused or full: FreeSWITCH says nothing
        return Call(Leg(str(uuid.uuid4()), ""), None)
    how = SAID["calls"][outcome]
    events = _recorded(how["file"])
    last = {e.get("Call-Direction"): e for e in events if e.get("Event-Name") == "CHANNEL_DESTROY"}
    olds = [Leg(e.get("Unique-ID"), e.get("variable_sip_call_id")) for e in last.values()]
    old = dict(zip(last, olds, strict=True))
    ids = call_ids or (f"{uuid.uuid4()}@127.0.0.1", str(uuid.uuid4()))
    a, b = (Leg(str(uuid.uuid4()), call_id) for call_id in ids)
    text = {old["inbound"].uuid: a.uuid, old["inbound"].call_id: a.call_id}
    sets = {a.uuid: how.get("set_a", {}) | dict(set_a or {})}
    if "outbound" in old:
        text |= {old["outbound"].uuid: b.uuid, old["outbound"].call_id: b.call_id}
        sets[b.uuid] = how.get("set_b", {}) | dict(set_b or {})
    exact: dict[tuple[str, str], str] = {}
    if outcome in ("refused", "refused_here"):
        cause, q850 = SAID["causes"].get(str(status), ["NORMAL_UNSPECIFIED", "31"])
        text |= {"USER_BUSY": cause, "Busy Here": SAID["phrases"].get(str(status), "Refused")}
        text["sip:486"] = f"sip:{status}"
        exact = {
            (f"variable_sip_{n}_status", "486"): str(status) for n in ("term", "invite_failure")
        }
        exact |= {(f"variable_{n}", "17"): q850 for n in ("hangup_cause_q850", "sip_term_cause")}
    text |= how.get("words", {}) | dict(words or {})
    whole = re.compile("|".join(re.escape(word) for word in text))

    if how.get("b_first"):  # B's end comes before A's
        ends = [
            e for e in events if "HANGUP" in e.get("Event-Name") or "DEST" in e.get("Event-Name")
        ]
        ends.sort(key=lambda e: e.get("Call-Direction") == "inbound")
        events = [e for e in events if e not in ends] + ends
    knots = _knots(last, ring, answer, talk)
    shift = end - _moved(max(int(e.get("Event-Date-Timestamp")) for e in events), knots)
    call = Call(a, b if "outbound" in old else None)
    before = 0
    for event in events:
        name = event.get("Event-Name")
        if event.get("Call-Direction") == "outbound" and name not in how.get("only_b", [name]):
            continue
        pairs: Headers = []
        for key, value in event.headers[13:]:  # after the stamps
            new = value
            if isinstance(value, str) and re.fullmatch(r"1[67]\d{14}", value):
                new = str(_moved(int(value), knots) + shift)
            elif isinstance(value, str):
                new = exact.get((key, value)) or whole.sub(lambda m: text[m[0]], value)
            pairs.append((key, new))
        mine = sets.get(Event(pairs).get("Unique-ID"), {})
        pairs = [(key, mine.get(key, value)) for key, value in pairs if mine.get(key) != ""]
        if Event(pairs).get("variable_sip_call_id") == a.call_id:
            more = {f"variable_{key}": value for key, value in (variables or {}).items()}
            pairs = [pair for pair in pairs if pair[0] not in more] + list(more.items())
        before = max(_moved(int(event.get("Event-Date-Timestamp")), knots) + shift, before)
        call.steps.append((before, name, _with_durations(pairs)))
    return call


def _knots(
    last: Mapping[str, Event], ring: float | None, answer: float | None, talk: float | None
) -> list[tuple[int, int]]:
    """Recorded times and where they go to, in order; between two of them time is stretched."""

    def first(what: str) -> int:
        times = [int(e.get(f"Caller-Channel-{what}-Time")) for e in last.values()]
        return min((at for at in times if at), default=0)

    start, hangup = first("Created"), first("Hangup")
    rung, answered = first("Progress") or first("Progress-Media"), first("Answered")
    knots = [(start, start)]
    if ring is not None and rung > start:
        knots.append((rung, start + int(ring * 1e6)))
    if answer is not None and answered > start:
        knots.append((answered, start + int(answer * 1e6)))
    if talk is not None and answered:
        knots.append((hangup, _moved(answered, knots) + int(talk * 1e6)))
    return knots


def _moved(at: int, knots: list[tuple[int, int]]) -> int:
    for (was, now), (next_was, next_now) in itertools.pairwise(knots):
        if was <= at < next_was:
            return now + (at - was) * (next_now - now) // (next_was - was)
    was, now = knots[-1] if at >= knots[0][0] else knots[0]
    return now + at - was


def _with_durations(pairs: Headers) -> Headers:
    """Durations, epochs and written times as they follow from the (moved) microseconds."""
    known = {key: value for key, value in pairs if isinstance(value, str)}
    at = {
        key[15:-5]: int(value)
        for key, value in known.items()
        if re.match("Caller-Channel.*Time", key)
    }
    if not at.get("Hangup") or "variable_mduration" not in known:
        return pairs
    start, end = at["Created"], at["Hangup"]
    spans = {"bill": (at["Answered"], end), "flow_bill": (start, end)}
    spans |= {"progress": (start, at["Progress"]), "progress_media": (start, at["Progress-Media"])}
    spans |= {"answer": (start, at["Answered"]), "wait": (start, at["Bridged"])}
    new = {}
    for size, unit, whole in ((10**6, "sec", ""), (1000, "msec", "m"), (1, "usec", "u")):
        # FreeSWITCH rounds both ends down before it subtracts.
        new[f"variable_{whole}duration"] = str(end // size - start // size)
        for name, (since, till) in spans.items():
            span = till // size - since // size if since and till else 0
            new[f"variable_{name}{unit}"] = str(span)
    for key, value in known.items():
        if key.endswith("_uepoch") and value != "0":
            new[key.replace("_uepoch", "_epoch")] = value[:-6]
            when = time.gmtime(int(value[:-6]))
            new[key.replace("_uepoch", "_stamp")] = time.strftime("%Y-%m-%d %H:%M:%S", when)
    return [(key, new.get(key, value)) for key, value in pairs]


# ---------------------------------------------------------------- what one client asked for


@dataclass
class Listener:
    """One connection's rights, subscription and queue of events not yet written."""

    queue_limit: int = 100_000
    wake: Callable[[], None] = lambda: None
    kill: Callable[[], None] = lambda: None
    authed: bool = False
    running: bool = True
    how: str = "plain"
    names: set[str] = field(default_factory=set)
    subclasses: set[str] = field(default_factory=set)
    filters: list[tuple[str, str]] = field(default_factory=list)
    allowed_events: list[str] | None = None
    allowed_api: list[str] | None = None
    may_log: bool = True
    queue: deque[Event] = field(default_factory=deque)
    lost: int = 0

    def wants(self, event: Event) -> bool:
        name, subclass = event.get("Event-Name"), event.get("Event-Subclass")
        if "ALL" not in self.names and (
            name not in self.names
            or (name == "CUSTOM" and subclass and subclass not in self.subclasses)
        ):
            return False
        wanted = not self.filters
        for header, value in self.filters:
            if (got := event.get(header)) and got.lower() == value.lstrip("+- ").lower():
                if value.startswith("-"):
                    return False
                wanted = True
        return wanted

    def push(self, event: Event) -> None:
        """Queues it; a client that left `queue_limit` unread loses events, 501 lost ones kill it."""
        if not self.running or not self.wants(event):
            return
        if len(self.queue) < self.queue_limit:
            self.lost = 0
            self.queue.append(event)
            self.wake()
        else:
            self.lost += 1
            if self.lost > 500:
                self.running = False
                self.kill()

    def subscribe(self, words: list[str]) -> str:
        """`event [plain|json] NAME... [CUSTOM subclass...]`: all words after CUSTOM are subclasses."""
        if words and words[0].lower() in ("plain", "json"):
            self.how = words.pop(0).lower()
        names: set[str] = set()
        subclasses: set[str] = set()
        rights = self.allowed_events
        for word in words:
            if "CUSTOM" in names:
                if rights is not None and word not in rights:  # even with ALL among them
                    return "-ERR permission denied"
                subclasses.add(word)
            elif (name := word.upper()) in EVENT_NAMES:
                if rights is not None and name not in rights and "ALL" not in rights:
                    return "-ERR permission denied"
                names.add(name)
        if not names:
            return "-ERR no keywords supplied"
        self.names |= EVENT_NAMES if "ALL" in names else names
        self.subclasses |= subclasses
        return f"+OK event listener enabled {self.how}"

    def unsubscribe(self, words: list[str]) -> str:
        known, custom = 0, False
        for word in words:
            if custom:
                self.subclasses.discard(word)
            elif (name := word.upper()) in EVENT_NAMES:
                known += 1
                custom = name == "CUSTOM"
                self.names -= EVENT_NAMES if name == "ALL" else set() if custom else {name, "ALL"}
        return "+OK events nixed" if known else "-ERR no keywords supplied"

    def filter(self, words: list[str]) -> str:
        if words[0] == "delete" and len(words) > 1:
            header, value = words[1], " ".join(words[2:])
            kept = [one for one in self.filters if one[0] != header or value not in ("", one[1])]
            self.filters = [] if header == "all" else kept
            return f"+OK filter deleted. [{header}][{value}]"
        words = words[1:] if words[0] == "add" else words
        if len(words) < 2:
            return "-ERR invalid syntax"
        self.filters.append((words[0], " ".join(words[1:])))
        return f"+OK filter added. [{words[0]}]=[{' '.join(words[1:])}]"


# ---------------------------------------------------------------- the switch's state and answers


@dataclass(frozen=True)
class User:
    """Who may `userauth user@domain:password`; None allows everything."""

    password: str
    events: str | None = None
    api: str | None = None
    log: bool = True


@dataclass
class Gateway:
    name: str = "trunk-a"
    state: str = "NOREG"
    status: str = "UP"
    ping_time: float = 1.24
    calls_in: int = 0
    calls_out: int = 0
    failed_in: int = 0
    failed_out: int = 0


@dataclass
class Setup:
    """What an operator configures: it outlasts restarts."""

    password: str = "ClueCon"  # noqa: S105
    users: dict[str, User] = field(default_factory=dict)
    gateways: list[Gateway] = field(default_factory=lambda: [Gateway()])
    hostname: str = "fake"
    switchname: str = "fake-1"
    ipv4: str = "192.0.2.2"
    ipv6: str = "fd00::2"
    version: str = "1.11.2-release"
    max_sessions: int = 1000
    sps: int = 200
    heartbeat: float | None = None
    """Seconds between beats; None: only when a test calls `beat()`."""
    queue_limit: int = 100_000


def uptime(microseconds: int) -> str:
    units, rest = [], microseconds // 1000
    for size, name in ((1000, "millisecond"), (60, "second"), (60, "minute"), (24, "hour")):
        rest, count = divmod(rest, size)
        units.append((count, name))
    units += [(rest % 365, "day"), (rest // 365, "year")]
    units.insert(0, (microseconds % 1000, "microsecond"))
    return ", ".join(
        f"{count} {name}{'' if count == 1 else 's'}" for count, name in reversed(units)
    )


def reply(text: str, *more: str) -> bytes:
    return octets("\n".join(["Content-Type: command/reply", f"Reply-Text: {text}", *more, "", ""]))


class Core:
    """One run of the switch, from start to stop: channels, counters, variables, listeners."""

    def __init__(self, setup: Setup, clock: Callable[[], float] = time.time) -> None:
        self.setup, self.clock, self.started = setup, clock, clock()
        self.core_uuid, self.sequence = str(uuid.uuid4()), 0
        self.listeners: list[Listener] = []
        self.channels: dict[str, dict[str, str]] = {}
        """Live channels by uuid, with the headers of their latest events."""
        self.registrations: dict[str, dict[str, str]] = {}
        self.variables: dict[str, str] = {}
        self.hashes: dict[str, str] = {}
        self.paused, self.min_idle_cpu, self.idle_cpu = False, 0.0, 97.5
        self.max_sessions, self.sps = setup.max_sessions, setup.sps
        self.since_startup = self.peak = self.sps_peak = 0
        self.born: deque[float] = deque(maxlen=10_000)
        self.commands: deque[str] = deque(maxlen=10_000)
        """What clients asked, oldest first, without passwords."""
        self.apis: dict[str, Callable[[str], str]] = {
            "status": lambda _: SAID["status"].format(**self.figures()),
            "version": lambda _: f"FreeSWITCH Version {setup.version}~64bit (-release 64bit)\n",
            "show": self._show,
            "fsctl": self._fsctl,
            "sofia": self._sofia,
            "hash": self._hash,
            "global_setvar": self._setvar,
            "global_getvar": lambda name: self.variables.get(name, ""),
            "uuid_exists": lambda uid: "true" if uid in self.channels else "false",
        }
        """Command to what it answers; tests may add their own."""

    def fire(
        self,
        name: str,
        headers: Iterable[tuple[str, Value]] = (),
        body: str | None = None,
        at: int | None = None,
        first: Iterable[tuple[str, Value]] = (),
        calling: str = "other",
    ) -> Event:
        """Stamps an event (`at`: microseconds UTC) and queues it for who wants it.

        A name with `::` is the subclass of a CUSTOM event. `first` comes before the stamps.
        """
        if "::" in name:
            name, first = "CUSTOM", [("Event-Subclass", name), *first]
        at = int(self.clock() * 1e6) // TICK * TICK if at is None else at
        setup, when = self.setup, time.gmtime(at // 1_000_000)
        self.sequence += 1
        source = SAID["calling"].get(name, SAID["calling"][calling])
        stamps: Headers = [
            ("Event-Name", name),
            ("Core-UUID", self.core_uuid),
            ("FreeSWITCH-Hostname", setup.hostname),
            ("FreeSWITCH-Switchname", setup.switchname),
            ("FreeSWITCH-IPv4", setup.ipv4),
            ("FreeSWITCH-IPv6", setup.ipv6),
            ("Event-Date-Local", time.strftime("%Y-%m-%d %H:%M:%S", when)),
            ("Event-Date-GMT", time.strftime("%a, %d %b %Y %H:%M:%S GMT", when)),
            ("Event-Date-Timestamp", str(at)),
            ("Event-Calling-File", source[0]),
            ("Event-Calling-Function", source[1]),
            ("Event-Calling-Line-Number", source[2]),
            ("Event-Sequence", str(self.sequence)),
        ]
        return self.deliver(Event([*first, *stamps, *headers], body))

    def deliver(self, event: Event) -> Event:
        """An event as it is: it changes channels and registrations, and goes to who wants it."""
        name, uid = event.get("Event-Name"), event.get("Unique-ID")
        subclass, who = event.get("Event-Subclass"), event.get("from-user") + event.get("from-host")
        if name == "CHANNEL_CREATE":
            self.channels[uid] = {}
            self.since_startup += 1
            self.born.append(self.clock())
            self.peak = max(self.peak, len(self.channels))
            self.sps_peak = max(self.sps_peak, self.sps_last())
        if name == "CHANNEL_DESTROY":
            self.channels.pop(uid, None)
        elif name.startswith("CHANNEL_") and uid in self.channels:
            self.channels[uid] |= {key: event.get(key) for key, _ in event.headers}
        elif subclass == "sofia::register":
            self.registrations[who] = {key: event.get(key) for key, _ in event.headers}
        elif subclass in ("sofia::unregister", "sofia::expire"):
            self.registrations.pop(who, None)
        for listener in list(self.listeners):
            listener.push(event)
        return event

    def sps_last(self) -> int:
        now = self.clock()
        return sum(1 for _ in itertools.takewhile(lambda at: now - at < 1.0, reversed(self.born)))

    def figures(self) -> dict[str, Any]:
        alive, last = int((self.clock() - self.started) * 1e6), self.sps_last()
        figures = {"uptime": uptime(alive), "uptime_msec": alive // 1000, "sps_last": last}
        figures |= {"sessions": len(self.channels), "sps_left": max(self.sps - last, 0)}
        return vars(self) | figures | {"version": self.setup.version}

    def beat(self) -> Event:
        figures = self.figures()
        pairs = [(name, said.format(**figures)) for name, said in SAID["heartbeat"].items()]
        event = self.fire("HEARTBEAT", pairs)
        due = str(int(self.clock() + (self.setup.heartbeat or 20.0)))
        task = {"Task-ID": "1", "Task-Desc": "heartbeat", "Task-Group": "core", "Task-Runtime": due}
        self.fire("RE_SCHEDULE", list(task.items()))
        return event

    def command(self, listener: Listener, line: str, headers: Headers, body: str | None) -> bytes:
        """The answer to one command; `listener.running` turns False when the connection ends."""
        word, _, rest = line.partition(" ")
        word, words = word.lower(), rest.split()
        self.commands.append(word if word in ("auth", "userauth") else line)
        if word.startswith(("exit", "...")):
            listener.running = False
            return reply("+OK bye")
        if not listener.authed:
            return self._authenticate(listener, word, rest)
        if word in ("api", "bgapi") and words:
            return self._api(listener, word, rest, headers)
        if word == "sendevent":
            return self._sendevent(line, headers, body)
        said = "-ERR command not found"
        if word == "event":
            said = listener.subscribe(words)
        elif word == "nixevent":
            said = listener.unsubscribe(words)
        elif word == "noevents":
            was = "+OK no longer" if listener.names else "-ERR not"
            said = f"{was} listening for events"
            listener.names, listener.subclasses = set(), set()
            listener.queue.clear()
        elif word == "filter" and words:
            said = listener.filter(words)
        elif word == "log":
            said = (
                f"+OK log level {rest} [{rest}]" if listener.may_log else "-ERR permission denied"
            )
        elif word in ("linger", "nolinger"):
            said = "-ERR not controlling a session"  # only outbound sockets do
        elif word == "sendmsg":
            said = f"-ERR invalid session id [{rest}]"
        return reply(said)

    def _authenticate(self, listener: Listener, word: str, rest: str) -> bytes:
        if word not in ("auth", "userauth"):
            return reply("-ERR command not found")
        who, _, password = rest.partition(":")
        user = self.setup.users.get(who)
        if word == "auth" and rest == self.setup.password:
            listener.authed = True
            return reply("+OK accepted")
        if word == "auth" or user is None or user.password != password:
            listener.running = False
            return reply("-ERR invalid")
        listener.authed, listener.may_log = True, user.log
        listener.allowed_events = None if user.events is None else user.events.split()
        listener.allowed_api = None if user.api is None else user.api.split()
        events, api = f"Allowed-Events: {user.events or 'all'}", f"Allowed-API: {user.api or 'all'}"
        return reply("+OK accepted", events, api, f"Allowed-LOG: {str(user.log).lower()}")

    def _api(self, listener: Listener, word: str, line: str, headers: Headers) -> bytes:
        name, _, argument = line.partition(" ")
        if listener.allowed_api is not None and name not in listener.allowed_api:
            return reply("-ERR permission denied")
        api = self.apis.get(name.lower())
        result = api(argument) if api else f"-ERR {name} Command not found!\n"
        tail: Headers = [("API-Command-Argument", argument)] if argument else []
        self.fire("API", [("API-Command", name), *tail])
        if word == "api":
            text = octets(result or "-ERR no reply\n")
            return b"Content-Type: api/response\nContent-Length: %d\n\n%s" % (len(text), text)
        job = next((str(v) for k, v in headers if k.lower() == "job-uuid"), str(uuid.uuid4()))
        tail = [("Job-Command-Arg", argument)] if argument else []
        self.fire("BACKGROUND_JOB", [("Job-UUID", job), ("Job-Command", name), *tail], result)
        return reply(f"+OK Job-UUID: {job}", f"Job-UUID: {job}")

    def _sendevent(self, line: str, headers: Headers, body: str | None) -> bytes:
        uid, name = str(uuid.uuid4()), line.partition(" ")[2].strip().upper()
        given: Headers = [pair for pair in headers if pair[0] == "Event-Subclass"]
        given += [("Command", line)]
        given += [pair for pair in headers if pair[0] not in ("Event-Subclass", "Content-Length")]
        given += [("Event-UUID", uid)]
        self.fire(name or "CLONE", (), body, first=given, calling="sendevent")
        return reply(f"+OK {uid}")

    def _show(self, words: str) -> str:
        table = words.partition(" ")[0]
        if table not in ("channels", "registrations"):
            return "-USAGE: channels|registrations [count] [as json]\n"
        rows = []
        for known in (self.channels if table == "channels" else self.registrations).values():
            row = {column: known.get(header, "") for column, header in SAID[table].items()}
            if "created" in row:
                created = int(known.get("Caller-Channel-Created-Time") or 0) // 1_000_000
                row["created"] = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(created))
                row["created_epoch"] = str(created)
            rows.append(row)
        if not words.endswith("as json"):
            return f"\n{len(rows)} total.\n"
        result: dict[str, Any] = {"row_count": len(rows)} | ({"rows": rows} if rows else {})
        return json.dumps(result, ensure_ascii=False, separators=(",", ":"))

    def _fsctl(self, words: str) -> str:
        word, _, rest = words.partition(" ")
        if word in ("pause", "resume"):
            self.paused = word == "pause"
            return "+OK\n"
        if word == "pause_check":
            return str(self.paused).lower()
        if word == "max_sessions":
            self.max_sessions = int(rest or 0) or self.max_sessions  # 0 only asks
            return f"+OK max sessions: {self.max_sessions}\n"
        if word == "sps":
            self.sps = int(rest or 0) or self.sps
            return f"+OK sessions per second: {self.sps}\n"
        return "-USAGE: [pause|resume|pause_check|max_sessions|sps]\n"

    def _sofia(self, words: str) -> str:
        now, alive = int(self.clock()), int(self.clock() - self.started)
        for gateway in self.setup.gateways:
            if words == f"status gateway {gateway.name}":
                text: str = SAID["gateway"].format(**asdict(gateway), ping=now, uptime=alive)
                return text
        return "Invalid Gateway!\n"

    def _hash(self, words: str) -> str:
        word, _, rest = words.partition("/")
        key, _, value = rest.rpartition("/") if word == "insert" else (rest, "", "")
        if word == "insert":
            self.hashes[key] = value
        elif word == "delete":
            return "+OK\n" if self.hashes.pop(key, None) is not None else "-ERR Not found\n"
        return "+OK\n" if word == "insert" else self.hashes.get(key, "")

    def _setvar(self, words: str) -> str:
        name, _, value = words.partition("=")
        if not name:
            return "-USAGE: <var>=<value>\n"
        self.variables.pop(name, None)
        self.variables |= {name: value} if value else {}
        return "+OK"


# ---------------------------------------------------------------- sockets


class _Peer:
    """One connection: its listener and the tasks that serve it."""

    def __init__(self, writer: asyncio.StreamWriter, queue_limit: int) -> None:
        self.writer = writer
        self.woken = asyncio.Event()
        self.listener = Listener(queue_limit, self.woken.set, self.cut)
        self.tasks: list[asyncio.Task[Any]] = []

    def cut(self, *, reset: bool = False) -> None:
        """Ends at once, with `reset` by RST, whatever is not yet sent."""
        if not self.writer.is_closing():
            if reset:
                linger = struct.pack("ii", 1, 0)
                sock = self.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()


@dataclass
class Asked:
    """What an outbound socket's server did with one call."""

    commands: list[str] = field(default_factory=list)
    """First lines, in order."""
    executed: list[tuple[str, str]] = field(default_factory=list)
    """Applications and their arguments."""
    seconds: float = 0.0
    """Until the dialplan had it back, or it was gone."""
    refused: str = ""
    """Code of `respond`."""
    transferred: str = ""
    goes_on: bool = False
    """Its dialplan goes on behind `socket`."""

    @property
    def variables(self) -> dict[str, str]:
        return {
            data.partition("=")[0]: data.partition("=")[2]
            for app, data in self.executed
            if app == "set"
        }


def channel_data(mode: str = "static", variables: Mapping[str, str | bytes] | None = None) -> bytes:
    """The recorded answer to `connect`; values, by header name, are encoded unless they are bytes."""
    recording = (RECORDINGS / "outbound-5100.esl").read_bytes()
    block = recording.partition(b"\nEvent-Name")[2].partition(b"\n\n")[0]
    lines = (b"Event-Name" + block).split(b"\n")
    for name, value in {"Socket-Mode": mode, **(variables or {})}.items():
        raw = value if isinstance(value, bytes) else url_encode(octets(value))
        new = name.encode() + b": " + raw
        at = [n for n, line in enumerate(lines) if line.startswith(name.encode() + b": ")]
        lines[at[0] if at else len(lines) - 4] = new if at else new + b"\n" + lines[-4]
    return b"\n".join(lines) + b"\n\n"


async def dial(
    host: str,
    port: int,
    *,
    mode: str = "static",
    variables: Mapping[str, str | bytes] | None = None,
    data: bytes | None = None,
    limit: float = LIMIT,
) -> Asked:
    """A call that runs into `socket host:port`, as recorded; `mode` is static or async.

    Where it waits (static), a channel that is refused or sent elsewhere closes the connection by
    itself; beside the dialplan (async) it obeys until `exit`, and goes on only after `resume`. Where
    the port is closed, or the connection ends without an answer, the dialplan goes on.
    """
    asked = Asked()
    began = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        asked.goes_on = True
        return asked
    resumed = mode == "static"
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with asyncio.timeout(limit):
            while not (asked.refused or asked.transferred) or mode == "async":
                lines = letters(await reader.readuntil(b"\n\n")).strip("\n").split("\n")
                asked.commands.append(lines[0])
                head = dict(line.split(": ", 1) for line in lines[1:])
                if lines[0] == "connect":
                    writer.write(channel_data(mode, variables) if data is None else data)
                elif lines[0] == "sendmsg":
                    app, arg = head["execute-app-name"], head["execute-app-arg"]
                    asked.executed.append((app, arg))
                    asked.refused = arg if app == "respond" else asked.refused
                    asked.transferred = arg if app == "transfer" else asked.transferred
                    writer.write(reply("+OK"))
                elif lines[0] == "resume":
                    resumed = True
                    writer.write(reply("+OK"))
                elif lines[0] == "exit":
                    writer.write(reply("+OK bye"))
                    break
    gone = asked.refused or asked.transferred
    asked.goes_on = resumed and not gone
    asked.seconds = time.monotonic() - began
    with contextlib.suppress(OSError, RuntimeError):  # uvloop's, where the connection is over
        writer.write(NOTICE)
        writer.close()
        await writer.wait_closed()
    return asked


class FakeSwitch:
    """The switch on a loopback port. Its state, `core`, is new after every restart.

    What makes things happen (`emit`, `call`, `replay`, `queue`, `beat`, ...) only queues; `await
    drained()` waits until clients were sent everything.
    """

    def __init__(self, setup: Setup | None = None, clock: Callable[[], float] = time.time) -> None:
        self.setup, self.clock = setup or Setup(), clock
        self.core = Core(self.setup, clock)
        self.address = ("127.0.0.1", 0)
        self.accepted = 0
        self._mode = "normal"
        self._going = asyncio.Event()
        self._going.set()
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()
        self._beats: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def connections(self) -> int:
        return len(self._peers)

    async def start(self, port: int = 0) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.address = self._server.sockets[0].getsockname()[:2]
        if self.setup.heartbeat is not None:
            self._beats = asyncio.create_task(self._beat_forever(self.setup.heartbeat))
        return self.address

    async def stop(self) -> None:
        """As on TERM: who listens is told, then all ends."""
        for peer in self._peers:
            peer.writer.write(NOTICE)
            peer.writer.close()
        await self._end()

    async def kill(self, *, reset: bool = False) -> None:
        """As on KILL: connections just end, with `reset` by RST."""
        for peer in self._peers:
            peer.cut(reset=reset)
        await self._end()

    async def restart(self, *, kill: bool = False, down: float = 0.0) -> None:
        """Ends and comes back after `down` seconds: same port, new Core-UUID, channels gone."""
        await (self.kill() if kill else self.stop())
        await asyncio.sleep(down)
        await self.start(self.address[1])

    def hang(self) -> None:
        """From now on it accepts, greets, reads, and answers nothing."""
        self._mode = "hang"
        self._going.clear()

    def silent(self) -> None:
        """From now on, as if stopped by a signal: connections open, nothing is read or sent."""
        self._mode = "silent"
        self._going.clear()

    def resume(self) -> None:
        self._mode = "normal"
        self._going.set()

    def send_raw(self, data: bytes) -> None:
        for peer in self._peers:
            peer.writer.write(data)

    def garbage(self, kind: int = 0) -> None:
        self.send_raw(GARBAGE[kind])

    def emit(
        self,
        name: str,
        headers: Mapping[str, Value] | Iterable[tuple[str, Value]] = (),
        body: str | None = None,
    ) -> Event:
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        return self.core.fire(name, pairs, body)

    def beat(self) -> Event:
        return self.core.beat()

    def gateway(
        self, name: str, *, state: str, status: str, code: int = 0, phrase: str = ""
    ) -> Event:
        """A gateway changes: its `sofia status gateway`, and the event about it."""
        one = next(one for one in self.setup.gateways if one.name == name)
        one.state, one.status = state, status
        about = {"Gateway": name, "State": state, "Ping-Status": status}
        about |= {"Phrase": phrase} if phrase else {}
        return self.emit("sofia::gateway_state", about | ({"Status": str(code)} if code else {}))

    def call(self, outcome: str = "a_bye", *, ends: bool = True, **more: Any) -> Call:
        """Plays a call of `write_call` at once; unless told, its last event is now.

        Without `ends` it stops before the first hang-up; `play(call)` fires the rest.
        """
        more.setdefault("end", int(self.clock() * 1e6) // TICK * TICK)
        call = write_call(outcome, **more)
        self.play(call, until=None if ends else "CHANNEL_HANGUP")
        return call

    def play(self, call: Call, until: str | None = None) -> None:
        while call.steps and (until is None or call.steps[0][1] != until):
            at, name, headers = call.steps.popleft()
            self.core.fire(name, headers, at=at)

    def replay(self, path: Path, *, as_own: bool = False) -> list[Event]:
        """The events of a recording in each client's format, all values as recorded.

        `as_own`: with this switch's Core-UUID and sequence; else a client sees another switch.
        """
        events = list(read_events(path.read_bytes()))
        for number, event in enumerate(events):
            if as_own:
                self.core.sequence += 1
                own = {"Core-UUID": self.core.core_uuid, "Event-Sequence": str(self.core.sequence)}
                pairs = [(name, own.get(name, value)) for name, value in event.headers]
                events[number] = Event(pairs, event.body)
            self.core.deliver(events[number])
        return events

    def queue(self, count: int, name: str = "CHANNEL_STATE", size: int = 700) -> None:
        """Many events at once, of about `size` bytes."""
        filler = "x" * max(size - 500, 0)
        for number in range(count):
            self.core.fire(name, [("Number", str(number)), ("Filler", filler)])

    async def drained(self) -> None:
        """Until the kernel has all that clients are to get; fails after ten seconds."""
        deadline = time.monotonic() + LIMIT
        while any(
            peer.listener.queue or peer.writer.transport.get_write_buffer_size()
            for peer in self._peers
        ):
            assert time.monotonic() < deadline, "a client does not read"
            await asyncio.sleep(0.001)

    async def _beat_forever(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            if self._going.is_set():
                self.core.beat()

    async def _end(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
        if self._server is not None:
            self._server.close()
        tasks = [task for peer in self._peers for task in peer.tasks]
        for peer in list(self._peers):
            try:
                await asyncio.wait_for(peer.writer.wait_closed(), 0.2)
            except TimeoutError:  # who does not read is not waited for
                peer.writer.transport.abort()
            except OSError:
                pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._peers.clear()
        self.core = Core(self.setup, self.clock)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(writer, self.setup.queue_limit)
        me = asyncio.current_task()
        assert me is not None
        peer.tasks = [me, asyncio.create_task(self._send_events(peer))]
        self._peers.add(peer)
        self.accepted += 1
        core = self.core
        core.listeners.append(peer.listener)
        try:
            if self._mode == "silent":
                await self._going.wait()
            writer.write(b"Content-Type: auth/request\n\n")
            await self._answer(core, peer, reader)
            if not peer.listener.running:
                writer.write(NOTICE)
                await asyncio.wait_for(writer.drain(), 1.0)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except ValueError:  # a line or a length that no command has
            peer.cut()
        finally:
            peer.tasks[1].cancel()
            core.listeners.remove(peer.listener)
            self._peers.discard(peer)
            writer.close()

    async def _answer(self, core: Core, peer: _Peer, reader: asyncio.StreamReader) -> None:
        while peer.listener.running:
            lines: list[str] = []
            while not lines or lines[-1]:
                if not (line := await reader.readline()):
                    return
                if lines or line.strip():
                    lines.append(letters(line.rstrip(b"\r\n")))
            pairs = [text.partition(": ") for text in lines[1:-1]]
            headers = [(name, as_value(value)) for name, _, value in pairs]
            size = next((int(value) for name, _, value in pairs if name == "Content-Length"), 0)
            body = letters(await reader.readexactly(size)) or None
            if self._mode == "hang":
                continue
            await self._going.wait()
            peer.writer.write(core.command(peer.listener, lines[0], headers, body))
            await peer.writer.drain()

    async def _send_events(self, peer: _Peer) -> None:
        queue = peer.listener.queue
        with contextlib.suppress(OSError):
            while await peer.woken.wait():
                peer.woken.clear()
                while queue:
                    await self._going.wait()
                    if queue:  # a client may have said `noevents` meanwhile
                        peer.writer.write(queue.popleft().encode(peer.listener.how))
                        await peer.writer.drain()
