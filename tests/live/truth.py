"""Turns the caller's own log (SIPp's -trace_shortmsg) into what a true record of each call says."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PDD_STOPS = range(180, 184)


@dataclass(frozen=True)
class Line:
    """One message as the caller sent (`S`) or received (`R`) it; `at` is seconds UTC."""

    at: float
    direction: str
    call_id: str
    cseq: int
    method: str
    """Of the CSeq, so that a response has one too."""
    status: int | None
    """None for a request."""


@dataclass
class Call:
    """One call as its caller met it; the names are those of the call record."""

    call_id: str
    started_at: float
    invites: int = 1
    final_code: int | None = None
    pdd_ms: float | None = None
    talk_ms: float | None = None
    released_by: str | None = None
    answered: bool = False
    cancelled: bool = False
    provisionals: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Transaction:
    """One REGISTER or OPTIONS: the final code its sender got, None if there was none."""

    call_id: str
    cseq: int
    method: str
    final_code: int | None


def read(path: Path) -> list[Line]:
    """The log in the order in which the caller sent and received.

    A line is date, time, seconds, direction, Call-ID, CSeq header and start line, with tabs.
    """
    return [_line(text) for text in path.read_text("latin-1").splitlines()]


def _line(text: str) -> Line:
    _, _, at, direction, call_id, cseq, start = text.split("\t", 6)
    number, _, method = cseq.removeprefix("CSeq:").strip().partition(" ")
    status = int(start.split()[1]) if start.startswith("SIP/2.0 ") else None
    return Line(float(at), direction, call_id, int(number), method.strip(), status)


def calls(lines: Iterable[Line]) -> dict[str, Call]:
    """Every call of a log by its Call-ID."""
    by_id: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_id[line.call_id].append(line)
    return {
        call_id: _call(call_id, own)
        for call_id, own in by_id.items()
        if any(line.method == "INVITE" for line in own)
    }


def _call(call_id: str, lines: list[Line]) -> Call:
    call = Call(call_id, started_at=lines[0].at)
    newest = lines[0].cseq
    answered_at: float | None = None
    for line in lines:
        sent = line.direction == "S"
        match line.method, line.status:
            case "INVITE", None if sent and not call.answered and line.cseq > newest:
                newest, call.final_code = line.cseq, None  # the retry after a challenge
                call.invites += 1
            case "INVITE", int(status) if not sent and not call.answered:
                if 100 <= status < 200:
                    call.provisionals.append(status)
                elif status < 300:
                    call.answered, answered_at = True, line.at
                if status >= 200 and line.cseq == newest:
                    call.final_code = status
                if call.pdd_ms is None and (status in PDD_STOPS or call.answered):
                    call.pdd_ms = (line.at - call.started_at) * 1e3
            case "CANCEL", None if sent:
                call.cancelled = True
            case "BYE", None if call.released_by is None:
                call.released_by = "caller" if sent else "callee"
                if answered_at is not None:
                    call.talk_ms = (line.at - answered_at) * 1e3
    if call.cancelled and not call.answered:
        call.released_by = "caller"
    return call


def transactions(lines: Iterable[Line], method: str) -> dict[tuple[str, int], Transaction]:
    """Every transaction of a method (REGISTER, OPTIONS) by its Call-ID and CSeq."""
    codes: dict[tuple[str, int], int | None] = {}
    for line in lines:
        if line.method == method:
            key = line.call_id, line.cseq
            codes.setdefault(key, None)
            if line.status is not None and line.status >= 200 and codes[key] is None:
                codes[key] = line.status
    return {key: Transaction(*key, method, code) for key, code in codes.items()}


def differences(truth: Call, record: Mapping[str, Any]) -> list[str]:
    """Where a call record and the caller disagree, in words; how long it took is for `errors_ms`."""
    wanted = {
        "final_code": truth.final_code,
        "answered": truth.answered,
        "released_by": truth.released_by,
        "invites": truth.invites,
    }
    found = [
        f"{truth.call_id}: {name} is {record[name]!r}, the caller says {value!r}"
        for name, value in wanted.items()
        if record[name] != value
    ]
    found += [
        f"{truth.call_id}: {name} is {record[name]}, the caller says {value}"
        for name, value in (("pdd_ms", truth.pdd_ms), ("talk_ms", truth.talk_ms))
        if (record[name] is None) != (value is None)
    ]
    return found


def errors_ms(pairs: Iterable[tuple[Call, Mapping[str, Any]]], name: str) -> dict[str, float]:
    """Record minus caller of a duration (`pdd_ms`, `talk_ms`) by Call-ID, where both know it."""
    both = {call.call_id: (record[name], getattr(call, name)) for call, record in pairs}
    return {
        call_id: float(ours) - theirs
        for call_id, (ours, theirs) in both.items()
        if ours is not None and theirs is not None
    }
