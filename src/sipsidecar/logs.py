"""Turns log records into lines on standard error that a stranger can neither forge nor flood.

A record is one line of text or of JSON, whatever was in it. Of each kind of line only a few a
minute are written; the others are counted, and one line says how many there were.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import msgspec

from sipsidecar.config import Log
from sipsidecar.tables import printable

PER_WINDOW = 10
WINDOW = 60.0
MAX_KINDS = 100
"""Kinds of line that are told apart; further ones share one allowance, so that a kind with a
stranger's words in it cannot fill memory or disk."""
MAX_MESSAGE = 4000
MAX_TRACE = 100
"""Lines of a traceback."""
_KIND_LENGTH = 200

_PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}  # syslog(3)
_COLOURS = {"CRITICAL": "1;31", "ERROR": "31", "WARNING": "33", "INFO": "32", "DEBUG": "2"}
_Kind = tuple[str, str, str]
_log = logging.getLogger("sipsidecar")


class RateLimit(logging.Filter):
    """Lets through the first lines of each kind in a window and counts the others.

    A kind is the logger and the template, before any value is put in; a record with the attribute
    `kind` adds that. `clock` gives seconds that never go back.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        most: int = PER_WINDOW,
        seconds: float = WINDOW,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._most = most
        self._seconds = seconds
        self._windows: dict[_Kind, _Window] = {}  # in the order in which they began
        self._ended: list[_Window] = []
        self._lock = threading.Lock()  # a handler filters before it takes its own
        self.suppressed: Counter[str] = Counter()
        """Lines that were not written, by level."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is written."""
        kind = _kind(record)
        with self._lock:
            now = self._clock()
            self._end(now - self._seconds)
            if kind not in self._windows and len(self._windows) >= MAX_KINDS:
                kind = ("", "", "")
            window = self._windows.setdefault(kind, _Window(now))
            window.seen += 1
            if window.seen <= self._most:
                return True
            if window.held is None:
                window.held = _Held(record)
            self.suppressed[record.levelname.lower()] += 1
            return False

    def summaries(self, *, all_of_them: bool = False) -> list[logging.LogRecord]:
        """Give, once, a record for each kind of which lines were left out in a window that ended.

        With `all_of_them` the windows that still go on end now.
        """
        with self._lock:
            self._end(float("inf") if all_of_them else self._clock() - self._seconds)
            ended, self._ended = self._ended, []
        return [
            window.held.summary(window.seen - self._most)
            for window in ended
            if window.held is not None
        ]

    def _end(self, before: float) -> None:
        while self._windows:
            kind = next(iter(self._windows))
            if self._windows[kind].began > before:
                break
            window = self._windows.pop(kind)
            if window.held is not None:
                self._ended.append(window)


class _Window:
    __slots__ = ("began", "held", "seen")

    def __init__(self, began: float) -> None:
        self.began = began
        self.seen = 0
        self.held: _Held | None = None


class _Held:
    """What is kept of the first line that was not written; never its values or its traceback."""

    __slots__ = ("level", "logger", "text")

    def __init__(self, record: logging.LogRecord) -> None:
        self.logger = record.name
        self.level = record.levelno
        self.text = _message(record)[:_KIND_LENGTH]

    def summary(self, count: int) -> logging.LogRecord:
        text = "%d more like this in the last minute: %s"
        return logging.LogRecord(self.logger, self.level, "", 0, text, (count, self.text), None)


def _kind(record: logging.LogRecord) -> _Kind:
    template = str(record.msg)
    if template.strip() in {"%s", "%r"}:  # all of its words are in the value
        template = _message(record)
    return record.name, template[:_KIND_LENGTH], str(getattr(record, "kind", ""))[:_KIND_LENGTH]


class Logs:
    """The log of one process: where lines go, in which form, and how many."""

    def __init__(
        self,
        settings: Log,
        *,
        environ: Mapping[str, str] = os.environ,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environ = environ
        self._limit = RateLimit(clock)
        self._handler = _Handler(stream or sys.stderr, self._limit)
        self.loop_exceptions = 0
        """Exceptions that nobody but the event loop caught."""
        self.change(settings)

    @property
    def suppressed(self) -> Counter[str]:
        """Lines that were not written because there were too many of their kind, by level."""
        return self._limit.suppressed

    def install(self) -> None:
        """Become the only place where this process logs to."""
        root = logging.getLogger()
        for handler in root.handlers[:]:
            root.removeHandler(handler)
            handler.close()
        root.addHandler(self._handler)

    def change(self, settings: Log) -> None:
        """Take other settings; the counters go on."""
        stream, environ = self._handler.stream, self._environ
        terminal = stream.isatty() and environ.get("TERM") != "dumb"
        self._handler.setFormatter(
            _Json()
            if settings.format == "json"
            else _Text(
                journal=_to_journal(stream, environ),
                colour=terminal and not environ.get("NO_COLOR"),
            )
        )
        logging.getLogger().setLevel(settings.level.upper())

    def tick(self) -> None:
        """Say of which lines there were more than were written; call it every few seconds."""
        self._handler.summarise()

    def close(self) -> None:
        """Say what is still to be said, and log no more."""
        self._handler.summarise(all_of_them=True)
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()

    def loop_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what an event loop could give to nobody: `loop.set_exception_handler` of it."""
        self.loop_exceptions += 1
        error = context.get("exception")
        name = type(error).__name__ if isinstance(error, BaseException) else "no exception"
        what = context.get("message") or "unhandled exception"
        _log.error("event loop: %s: %s: %s", what, name, error or "", extra={"kind": name})
        if isinstance(error, BaseException):
            _log.debug("event loop: the traceback", exc_info=error, extra={"kind": name})


def set_up(settings: Log) -> Logs:
    """Make standard error the log of this process."""
    logs = Logs(settings)
    logs.install()
    return logs


def _to_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether a stream is the one that systemd connected to its journal."""
    with contextlib.suppress(OSError, ValueError):
        file = os.fstat(stream.fileno())
        return environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"
    return False


class _Handler(logging.StreamHandler[TextIO]):
    def __init__(self, stream: TextIO, limit: RateLimit) -> None:
        super().__init__(stream)
        self._limit = limit
        self.addFilter(limit)

    def emit(self, record: logging.LogRecord) -> None:
        for summary in self._limit.summaries():
            super().emit(summary)
        super().emit(record)

    def summarise(self, *, all_of_them: bool = False) -> None:
        for summary in self._limit.summaries(all_of_them=all_of_them):
            self.acquire()
            try:
                super().emit(summary)
            finally:
                self.release()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- logging's name
        """Standard error is gone: its end is no reason to stop, and nowhere to complain."""


def _message(record: logging.LogRecord) -> str:
    """The text of a record, on one line and of bounded length."""
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 -- of any value's own __str__
        text = f"{record.msg} (with values that do not fit it)"
    if len(text) > MAX_MESSAGE:
        text = text[:MAX_MESSAGE] + ".."
    return printable(text)


def _at(record: logging.LogRecord) -> str:
    seconds, fraction = divmod(int(record.created * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:03d}Z"


def _trace(record: logging.LogRecord) -> list[str]:
    """The lines of the exception; its own words may be a stranger's."""
    if not record.exc_info or record.exc_info[1] is None:
        return []
    lines = logging.Formatter().formatException(record.exc_info).split("\n")
    if len(lines) > MAX_TRACE:
        lines = [*lines[: MAX_TRACE // 2], "..", *lines[-MAX_TRACE // 2 :]]
    return [printable(line[:MAX_MESSAGE]) for line in lines]


class _Text(logging.Formatter):
    """Time, level, logger and message; the journal has the time, and takes the level as <N>."""

    def __init__(self, *, journal: bool, colour: bool) -> None:
        super().__init__()
        self._journal = journal
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level, name = record.levelname, printable(record.name)
        prefix = f"<{_PRIORITIES.get(level, 6)}>" if self._journal else ""
        if self._colour:
            level = f"\x1b[{_COLOURS.get(level, '0')}m{level}\x1b[0m"
        start = "" if self._journal else f"{_at(record)} {level} "
        lines = [f"{start}{name}: {_message(record)}", *(f"  {line}" for line in _trace(record))]
        return "\n".join(prefix + line for line in lines)


class _Json(logging.Formatter):
    """One object per line; `extra={"fields": {...}}` adds to it, and replaces nothing."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "logger": printable(record.name),
            "message": _message(record),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line = {printable(str(key)): _plain(value) for key, value in fields.items()} | line
            line = {"at": line.pop("at"), **line}
        trace = _trace(record)
        if trace:
            line["exception"] = "\n".join(trace)
        return msgspec.json.encode(line).decode()


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    return printable(str(value)[:MAX_MESSAGE])
