import asyncio
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from running import ENVIRONMENT, LIMIT
from sipsidecar.config import Log
from sipsidecar.logs import MAX_KINDS, MAX_MESSAGE, PER_WINDOW, WINDOW, Logs, RateLimit, set_up
from sipsidecar.tables import printable

FORGERY = "x\n2026-01-01T00:00:00.000Z ERROR sipsidecar: stopped\x1b[31m\u202e\r\x85\u2028"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\w+) ([\w.]+): (.*)")


class Unspeakable:
    def __str__(self) -> str:
        raise ZeroDivisionError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Written:
    """The log of this process into memory, for one test."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stream = io.StringIO()
        self.logs: Logs

    def open(self, level: str = "info", form: str = "text", **environ: str) -> logging.Logger:
        settings = Log(level=level, format=form)  # type: ignore[arg-type]
        self.logs = Logs(settings, environ=environ, stream=self.stream, clock=self.clock)
        self.logs.install()
        return logging.getLogger("sipsidecar.test")

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().split("\n")[:-1]

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger as it was; pytest's own handlers are not closed."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    logger.handlers = []
    yield logger
    for handler in logger.handlers[:]:
        handler.close()
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture
def written() -> Written:
    return Written()


def test_a_line_of_text_has_time_level_logger_and_message(written: Written) -> None:
    written.open().warning("%d packets", 3)
    (line,) = written.lines
    found = LINE.fullmatch(line)
    assert found
    assert found.groups() == ("WARNING", "sipsidecar.test", "3 packets")


def test_times_are_utc_to_the_millisecond(written: Written) -> None:
    log = written.open(form="json")
    record = log.makeRecord("n", logging.INFO, "f", 1, "m", (), None)
    record.created = 1767225599.9996
    log.handle(record)
    assert written.objects[0]["at"] == "2025-12-31T23:59:59.999Z"


def test_a_line_of_json_has_the_fields_that_were_given_and_no_other_can_be_replaced(
    written: Written,
) -> None:
    log = written.open(form="json")
    fields = {
        "count": 3, "share": 0.5, "up": True, "none": None, "peer": "a\n\x1b[31m", "path": Path("/x"),
        "level": "forged", "at": "forged", "huge": 2**70, "odd\u202e": ["a\n"],
    }  # fmt: skip
    log.info("m", extra={"fields": fields})
    (found,) = written.objects
    assert list(found)[0] == "at"  # noqa: RUF015
    assert found.pop("at") != "forged"
    assert found == {
        "level": "info", "logger": "sipsidecar.test", "message": "m", "count": 3, "share": 0.5,
        "up": True, "none": None, "peer": r"a\x0a\x1b[31m", "path": "/x", "huge": str(2**70),
        r"odd\u202e": "['a\\n']",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "write",
    [
        lambda log: log.error("refused: %s", FORGERY),
        lambda log: log.error(FORGERY),
        lambda log: log.error("%s", ValueError(FORGERY)),
        lambda log: log.getChild(FORGERY).error("x"),
        lambda log: log.error("%d", FORGERY),
        lambda log: log.error("%s", Unspeakable()),
    ],
)
def test_a_strangers_words_never_make_a_second_line_or_a_colour(
    written: Written, form: str, write: Callable[[logging.Logger], None]
) -> None:
    write(written.open(form=form, NO_COLOR="1"))
    (line,) = written.stream.getvalue().splitlines()
    assert printable(line) == line
    assert "error" in line.lower()


@given(st.text())
def test_any_text_is_one_printable_line(text: str) -> None:
    written = Written()
    written.open(form="json").warning("%s", text)
    logging.getLogger().handlers.clear()
    written.open(form="text").warning("%s", text)
    logging.getLogger().handlers.clear()
    first, second = written.stream.getvalue().splitlines()
    assert json.loads(first)["message"] == printable(text)
    assert second.endswith(f" WARNING sipsidecar.test: {printable(text)}")


def test_a_long_message_is_cut(written: Written) -> None:
    written.open(form="json").info("%s", "y" * 10**6)
    assert written.objects[0]["message"] == "y" * MAX_MESSAGE + ".."


def raised(text: str) -> BaseException:
    def fail() -> None:
        raise ValueError(text)

    try:
        fail()
    except ValueError as error:
        return error
    raise AssertionError


def test_a_traceback_stands_indented_so_that_its_words_are_no_line_of_ours(
    written: Written,
) -> None:
    written.open().error("broke", exc_info=raised(FORGERY))
    first, *rest = written.lines
    assert LINE.fullmatch(first)
    assert len(rest) > 3
    assert all(line.startswith("  ") and printable(line) == line for line in rest)
    assert any("stopped\\x1b[31m" in line for line in rest)


def test_a_traceback_is_one_field_of_json_and_bounded(written: Written) -> None:
    log = written.open(form="json")
    log.error("broke", exc_info=raised("a"))
    log.error("none", exc_info=True)  # noqa: LOG014 -- there is no exception
    log.error("broke", exc_info=raised("b\n" * 1000))
    first, second, third = written.objects
    assert first["exception"].endswith("ValueError: a")
    assert "exception" not in second
    assert len(third["exception"].split("\n")) == 101


def test_under_systemd_a_line_carries_its_priority_and_no_time(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as file:
        at = os.fstat(file.fileno())
        environ = {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"}
        logs = Logs(Log(level="debug"), environ=environ, stream=file)
        logs.install()
        log = logging.getLogger("sipsidecar")
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(log, level)("a")
        log.error("b", exc_info=raised("<0>c\n<0>d"))
        logs.close()
        file.seek(0)
        lines = file.read().splitlines()
    assert lines[:5] == [f"<{number}>sipsidecar: a" for number in (7, 6, 4, 3, 2)]
    assert len(lines) > 8
    assert all(line.startswith(("<3>sipsidecar: b", "<3>  ")) for line in lines[5:])


def test_a_journal_of_somebody_else_is_not_ours(written: Written, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as file:
        logs = Logs(Log(), environ={"JOURNAL_STREAM": "8:1"}, stream=file)
        logs.install()
        logging.getLogger("sipsidecar").info("a")
        file.seek(0)
        assert LINE.fullmatch(file.read().strip())
    written.open(JOURNAL_STREAM="8:1").info("a")  # memory is no file at all
    assert LINE.fullmatch(written.lines[0])


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_only_a_terminal_that_wants_it_gets_colour(environ: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        logs = Logs(Log(), environ=environ, stream=stream)
        logs.install()
        logging.getLogger("sipsidecar").error("a \x1b[31m")
        said = os.read(ours, 4096).decode()
        logs.close()
    os.close(ours)
    assert ("\x1b[31mERROR\x1b[0m sipsidecar: a \\x1b[31m" in said) is coloured
    assert ("\x1b" in said) is coloured


def test_level_and_format_change_while_counters_go_on(written: Written) -> None:
    log = written.open(level="error")
    log.info("unseen")
    for _ in range(PER_WINDOW + 2):
        log.error("seen")
    written.logs.change(Log(level="debug", format="json"))
    log.debug("now")
    assert json.loads(written.lines[-1])["message"] == "now"
    assert len(written.lines) == PER_WINDOW + 1
    assert written.logs.suppressed == {"error": 2}


# -- how many


def test_of_one_kind_of_line_only_the_first_of_a_minute_are_written_errors_too(
    written: Written,
) -> None:
    log = written.open()
    for number in range(1000):
        log.error("from %s", f"peer {number}")
    log.error("another kind")
    assert len(written.lines) == PER_WINDOW + 1
    assert written.logs.suppressed == {"error": 1000 - PER_WINDOW}
    written.clock.now += WINDOW - 0.001
    written.logs.tick()
    assert len(written.lines) == PER_WINDOW + 1
    written.clock.now += 0.001
    written.logs.tick()
    written.logs.tick()
    assert len(written.lines) == PER_WINDOW + 2
    assert written.lines[-1].endswith(
        " ERROR sipsidecar.test: 990 more like this in the last minute: from peer 10"
    )


def test_a_new_minute_begins_anew_after_it_said_what_was_left_out(written: Written) -> None:
    log = written.open()
    for _ in range(PER_WINDOW + 5):
        log.info("a %d", 1)
    written.clock.now += WINDOW
    log.info("a %d", 2)
    assert [line.rpartition(": ")[2] for line in written.lines[PER_WINDOW:]] == ["a 1", "a 2"]
    assert "5 more like this" in written.lines[PER_WINDOW]


def test_few_lines_are_never_summarised(written: Written) -> None:
    log = written.open()
    for _ in range(PER_WINDOW):
        log.info("a")
    written.clock.now += 10 * WINDOW
    log.info("b")
    written.logs.close()
    assert len(written.lines) == PER_WINDOW + 1


def test_the_end_says_what_was_left_out(written: Written) -> None:
    log = written.open()
    for _ in range(PER_WINDOW + 1):
        log.warning("a")
    written.logs.close()
    assert "1 more like this in the last minute: a" in written.lines[-1]
    log.warning("after")
    assert "after" not in written.stream.getvalue()


def test_templates_without_words_are_told_apart_by_their_value(written: Written) -> None:
    log = written.open()
    for word in ("first", "second"):
        for _ in range(PER_WINDOW + 1):
            log.info("%s", word)
    assert len(written.lines) == 2 * PER_WINDOW


def test_kinds_that_strangers_invent_share_one_allowance() -> None:
    limit = RateLimit(Clock())
    passed = 0
    for number in range(10_000):
        name, text = "n", "%s"
        record = logging.LogRecord(name, logging.INFO, "", 0, text, (f"kind {number}",), None)
        passed += limit.filter(record)
    assert passed == MAX_KINDS + PER_WINDOW
    assert limit.suppressed.total() == 10_000 - passed
    assert len(limit.summaries(all_of_them=True)) == 1
    assert len(limit.summaries(all_of_them=True)) == 0


def test_no_line_is_lost_without_a_number_when_threads_log(written: Written) -> None:
    log = written.open()

    def write() -> None:
        for _ in range(500):
            log.info("a")

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(written.lines) == PER_WINDOW
    assert written.logs.suppressed == {"info": 8 * 500 - PER_WINDOW}


# -- the event loop


async def test_what_nobody_caught_in_the_loop_is_one_line_and_its_traceback_at_debug(
    written: Written,
) -> None:
    written.open(level="debug")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(written.logs.loop_exception)

    def fail() -> None:
        raise ValueError(FORGERY)

    loop.call_soon(fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    error, debug, *trace = [line for line in written.lines if "asyncio:" not in line]
    assert written.logs.loop_exceptions == 1
    assert " ERROR sipsidecar: event loop: Exception in callback" in error
    assert "ValueError: x\\x0a2026" in error
    assert " DEBUG sipsidecar: event loop: the traceback" in debug
    assert all(line.startswith("  ") for line in trace)


def test_loop_exceptions_are_limited_by_their_type_and_all_counted(written: Written) -> None:
    written.open()
    for error in (ValueError("a"), OSError("b"), None):
        for _ in range(PER_WINDOW + 7):
            written.logs.loop_exception(None, {"message": "m", "exception": error})  # type: ignore[arg-type]
    written.logs.loop_exception(None, {})  # type: ignore[arg-type]
    assert len(written.lines) == 3 * PER_WINDOW
    assert written.logs.loop_exceptions == 3 * (PER_WINDOW + 7) + 1
    assert not any("Traceback" in line for line in written.lines)


# -- the process


SCRIPT = """
import logging, os
from sipsidecar.config import Log
from sipsidecar.logs import set_up
logging.basicConfig()
logs = set_up(Log(format="json"))
log = logging.getLogger("sipsidecar")
log.info("a \\udcff")
os.close(2)
log.info("nowhere to go")
logs.close()
print("alive")
"""


def test_a_process_whose_standard_error_is_gone_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=ENVIRONMENT, capture_output=True, timeout=LIMIT,
        check=True,
    )  # fmt: skip
    assert done.stdout == b"alive\n"
    (line,) = done.stderr.decode().splitlines()
    assert json.loads(line)["message"] == "a \\udcff"


def test_set_up_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs = set_up(Log(level="warning"))
    logging.getLogger("sipsidecar").info("unseen")
    logging.getLogger("sipsidecar").warning("seen")
    logs.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert LINE.fullmatch(err.strip())
