"""Says what separates failing calls from good ones, with examples and two INVITEs side by side."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from sipsidecar.calls.features import features_of
from sipsidecar.cli.beside import LEGEND, side_by_side
from sipsidecar.cli.causes import alike, has, look_at, title
from sipsidecar.cli.parsers import Commands
from sipsidecar.cli.reading import ask
from sipsidecar.cli.words import (
    CliError,
    clear_progress,
    config_of,
    iso,
    json_line,
    moment_of,
    terminal_width,
)
from sipsidecar.edges.postgres.comparing import (
    EGRESS,
    INGRESS,
    SCOPES,
    Compared,
    Comparison,
    Wanted,
    find_compared,
)
from sipsidecar.signals.diagnose import MAX_CALLS, Case, Diagnosis, Finding, diagnose
from sipsidecar.tables import printable

DEFAULT_LIMIT = 1000
MAX_FOLLOWERS = 5
"""Features that only go along with a finding which people are shown."""
_WIDTH = 160
"""Columns of a file or a pipe."""
Tell = Callable[[int, int], None]


def add_command(commands: Commands) -> None:
    """Add `diagnose`."""
    command = commands.add(
        "diagnose",
        run,
        "say what separates failing calls from good ones",
        "sipsidecar diagnose --code 400 --trunk acme --since 6h",
    )
    command.add_argument(
        "--code", required=True, metavar="CODE", help="final code or class of the failing: 400, 5xx"
    )
    for scope in SCOPES:
        command.add_argument(f"--{scope}", metavar="NAME", help=f"calls of this {scope}")
    command.add_argument(
        "--hop",
        choices=(EGRESS, INGRESS),
        help="compare INVITEs as they went to trunks, or as callers sent them (egress when a trunk or "
        "carrier is named that calls go to)",
    )
    command.add_argument(
        "--since", metavar="TIME", help="30m, 6h or 2026-01-31T10:00, UTC (the last 6 hours)"
    )
    command.add_argument("--until", metavar="TIME", help="the same forms (now)")
    command.add_argument(
        "--limit",
        type=_limit,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"at most so many calls of each side, evenly over time ({DEFAULT_LIMIT})",
    )
    command.add_argument("--json", action="store_true", help="one JSON object per line")


def run(arguments: argparse.Namespace) -> int:
    """Compare failing and good calls; 1 when there are none, or nothing separates them."""
    wanted = _wanted(arguments)
    config = config_of(arguments)
    try:
        found = ask(config, lambda where: find_compared(where, wanted, _progress("reading")))
        cases = _cases(found, _progress("looking"))
        answer = diagnose(cases, found.slots, _progress("comparing"))
    finally:
        clear_progress()
    if arguments.json:
        for line in _json(found, answer):
            print(json_line(line))
    else:
        print(_shown(wanted, found, answer))
    return 0 if answer.findings else 1


def _limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_CALLS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MAX_CALLS}, got {text!r}")
    return int(text)


def _wanted(arguments: argparse.Namespace) -> Wanted:
    code, code_class = None, None
    if re.fullmatch("[3-6][0-9]{2}", arguments.code):
        code = int(arguments.code)
    elif re.fullmatch("[3-6][xX]{2}", arguments.code):
        code_class = arguments.code.lower()
    else:
        raise CliError(
            f"{arguments.code}: expected a code or class of failures, such as 400 or 5xx"
        )
    since = moment_of(arguments.since or "6h")
    until = moment_of(arguments.until) if arguments.until else time.time_ns() // 1000
    if since >= until:
        raise CliError("--since is not before --until")
    return Wanted(
        since_us=since,
        until_us=until,
        final_code=code,
        final_class=code_class,
        hop=arguments.hop,
        limit=arguments.limit,
        **{scope: getattr(arguments, scope) for scope in SCOPES},
    )


def _progress(what: str) -> Tell | None:
    if not sys.stderr.isatty():
        return None

    def show(part: int, whole: int) -> None:
        share = 100 * part // whole if whole else 100
        sys.stderr.write(f"\r{what + ' calls':16} {share:3d} %")
        sys.stderr.flush()

    return show


def _cases(found: Comparison, tell: Tell | None) -> list[Case]:
    cases = []
    for n, one in enumerate(found.calls):
        if tell is not None and not n % 100:
            tell(n, len(found.calls))
        numbers = {} if one.idle_seconds is None else {"idle-seconds": one.idle_seconds}
        shown = features_of(one.payload, one.about, numbers)
        cases.append(Case(call_id=one.call_id, at=one.at, failed=one.failed, shown=shown))
    return cases


# -- for programs


def _json(found: Comparison, answer: Diagnosis) -> list[dict[str, Any]]:
    """Turn the answer into lines: first what it stands on, then each finding."""
    facts = msgspec.structs.asdict(answer)
    del facts["findings"]
    facts |= {
        "hop": found.hop,
        "all_failing": found.failing,
        "all_good": found.good,
        "same_hours": found.same_hours,
        "without_invite": found.without,
    }
    lines = [{"kind": "diagnosis", **facts}]
    for number, one in enumerate(answer.findings, start=1):
        pair = [found.calls[place].call_id for place in one.pair] if one.pair else None
        lines.append(
            {
                "kind": "finding",
                "number": number,
                "text": title(one),
                **_fields(one.separator),
                "follows": None if one.follows is None else one.follows + 1,
                "alike": [{"text": has(other), **_fields(other)} for other in one.alike],
                "more_alike": one.more_alike,
                "call_ids": _examples(found, one),
                "pair": pair,
            }
        )
    return lines


def _fields(one: Any) -> dict[str, Any]:  # noqa: ANN401 -- a separator as a dictionary
    fields: dict[str, Any] = msgspec.structs.asdict(one)
    for name in ("first_seen_at", "since", "until"):
        fields[name] = None if fields[name] is None else iso(fields[name])
    return fields


def _examples(found: Comparison, finding: Finding) -> list[str]:
    return list(dict.fromkeys(found.calls[place].call_id for place in finding.examples))


# -- for people


def _shown(wanted: Wanted, found: Comparison, answer: Diagnosis) -> str:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    parts = [_beginning(wanted, found, answer)]
    if not answer.failing or not answer.good:
        return "\n\n".join(filter(None, [parts[0], _nothing_to_compare(found)]))
    leading = [(n, one) for n, one in enumerate(answer.findings, start=1) if one.follows is None]
    if not leading:
        parts.append(_nothing_separates(answer))
    for n, one in leading:
        parts.append(_finding(n, one, found, colour=colour))
    followers = [one for one in answer.findings if one.follows is not None]
    if followers:
        parts.append(_followers(followers))
    if leading and (pair := leading[0][1].pair) is not None:
        parts.append(_pair(found.calls[pair[0]], found.calls[pair[1]], colour=colour))
    return "\n\n".join(filter(None, parts))


def _beginning(wanted: Wanted, found: Comparison, answer: Diagnosis) -> str:
    code = wanted.final_code or wanted.final_class
    of = ", ".join(
        f"{scope} {getattr(wanted, scope)}" for scope in SCOPES if getattr(wanted, scope)
    )
    span = f"{iso(wanted.since_us)[:19]}Z to {iso(wanted.until_us)[:19]}Z"
    what = "attempts" if found.hop == EGRESS else "calls"
    hours = "of the same hours" if found.same_hours else "of the whole time"
    text = f"{found.failing} {what}{' of ' + of if of else ''} failed with {code}, {span}"
    if answer.failing and answer.good:
        text += f"; {answer.failing} are compared with {answer.good} answered ones {hours}"
        text += f" (of {found.good})" if found.good > answer.good else ""
        text += (
            ", by the INVITE that went out" if found.hop == EGRESS else ", by the caller's INVITE"
        )
    if found.without:
        text += f"; of {found.without} no INVITE is stored"
    if answer.cut:
        text += f"; {answer.cut} features were too many and left out"
    return printable(text)


def _nothing_to_compare(found: Comparison) -> str:
    if not found.failing:
        return "no such calls failed: look at `sipsidecar calls --failed`, or go back with --since"
    if not found.good:
        return "no call was answered meanwhile, so there is nothing to compare them with"
    return "their INVITEs are not stored any more (retention.messages_days)"


def _nothing_separates(answer: Diagnosis) -> str:
    tested = f"nothing separates them: {answer.features} features in {answer.tested} ways"
    if answer.reach is not None:
        return (
            f"{tested}. A cause that {answer.reach} of the {answer.failing} failing calls share and "
            "a tenth of the good ones have would have been seen. What cannot be seen in an INVITE "
            "may be the cause: load, routes, accounts, the far side itself"
        )
    more = (
        f"; about {answer.needed} that share a cause would be enough"
        if answer.needed is not None
        else ""
    )
    return (
        f"{tested}. But {answer.failing} failing and {answer.good} good calls are too few to know: "
        f"even what all failing ones share may be luck{more}"
    )


def _finding(number: int, finding: Finding, found: Comparison, *, colour: bool) -> str:
    one = finding.separator
    head = f"{number}. {title(finding)}"
    lines = [f"\x1b[1m{head}\x1b[0m" if colour else head]
    lines.append(
        f"{one.failing} of {one.of_failing} failing calls, {one.good} of {one.of_good} good ones; "
        f"odds {one.odds:.3g} to 1; by luck {one.q:.1g}"
    )
    if (one.of_failing, one.of_good) == (found.failing, found.good):
        # of a part of the calls the sides are not as large as they are
        lines.append(
            f"with it {100 * one.difference:.0f} percentage points more of the calls fail than "
            f"without it ({100 * one.low:.0f} to {100 * one.high:.0f})"
        )
    if others := alike(finding):
        more = len(finding.alike) + finding.more_alike - len(others)
        told = "; ".join(others) + (f"; and {more} more" if more > 0 else "")
        lines.append(f"not to be told from it: {told}")
    if one.first_seen_at is not None:
        lines.append(f"new: first seen at {iso(one.first_seen_at)[:19]}Z")
    lines.append(f"look at {look_at(one)}")
    lines.append(printable(f"failing calls: {', '.join(_examples(found, finding))}"))
    return "\n   ".join(lines)


def _followers(followers: list[Finding]) -> str:
    told = []
    for one in followers[:MAX_FOLLOWERS]:
        seen = one.separator.first_seen_at
        new = f", new at {iso(seen)[:19]}Z" if seen is not None else ""
        told.append(f"{title(one)} (with {(one.follows or 0) + 1}{new})")
    more = len(followers) - len(told)
    text = "; ".join(told) + (f"; and {more} more" if more else "")
    return f"More often, too, but only as they go along with what is above: {text}"


def _pair(failing: Compared, good: Compared, *, colour: bool) -> str:
    width = terminal_width() or _WIDTH
    titles = (f"failing ({failing.final_code}): {failing.call_id}", f"good: {good.call_id}")
    return f"{side_by_side(failing.payload, good.payload, titles, width=width, colour=colour)}\n\n{LEGEND}"
