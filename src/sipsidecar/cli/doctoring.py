"""`sipsidecar doctor`: what may keep a sidecar from its work here, and what to do about it.

Nothing is changed and no secret is shown. Each check has its own time, so that one disk or server
that hangs hides nothing else; it works whether a sidecar runs or not.
"""

import argparse
import os
import sys
import textwrap
import threading
import time

import msgspec

from sipsidecar.cli.checks import database, resources, settings, sidecar
from sipsidecar.cli.checks.case import Case, Check, Finding, State
from sipsidecar.cli.words import json_line, loaded_of
from sipsidecar.config import ConfigError, find_file
from sipsidecar.tables import printable, table

SECONDS = 3.0
"""Most time of one check."""
_COLOURS: dict[State, str] = {"ok": "32", "warn": "33", "fail": "31", "unknown": "36"}

CHECKS: dict[str, Check] = {
    "configuration": settings.configuration,
    "secrets": settings.secrets,
    "certificates": settings.certificates,
    "sidecar": sidecar.sidecar,
    "ports": sidecar.ports,
    "receive buffer": sidecar.receive_buffer,
    "ledger": sidecar.ledger,
    "agents": sidecar.agents,
    "database": database.database,
    "disk": resources.disks,
    "spool": resources.spool,
    "clock": resources.clock,
    "open files": resources.open_files,
    "memory": resources.memory,
}
"""In the order in which they are shown."""


# -- the command


def doctor(arguments: argparse.Namespace) -> int:
    """Check everything; 0 when nothing fails, 1 when something does."""
    try:
        loaded = loaded_of(arguments)
    except ConfigError as error:
        advice = "put it right; `sipsidecar check-config` shows what is in effect"
        findings = [Finding("configuration", "fail", str(error), advice)]
    else:
        findings = examine_all(Case(loaded, find_file(arguments.config, os.environ)))
    if arguments.json:
        for finding in findings:
            print(json_line(finding))
    else:
        print(_render(findings, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def examine_all(case: Case, seconds: float = SECONDS) -> list[Finding]:
    """Ask the running sidecar, then make all checks at the same time."""
    asking = threading.Thread(target=_ask, args=(case,), daemon=True)
    asking.start()
    asking.join(seconds)
    found: dict[str, list[Finding]] = {}

    def run(name: str, check: Check) -> None:
        try:
            found[name] = list(check(case))
        except Exception as error:  # noqa: BLE001 -- one broken check must not hide the others
            why = f"this check broke: {type(error).__name__}"
            found[name] = [Finding(name, "unknown", why, "that is a defect: report it")]

    # daemons: a thread that hangs in the kernel, as on a dead NFS server, cannot be ended
    threads = [
        threading.Thread(target=run, args=item, daemon=True, name=item[0])
        for item in CHECKS.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    late = f"no answer within {seconds:g} s"
    return [
        finding
        for name in CHECKS
        for finding in found.get(name, [Finding(name, "unknown", late, "try again")])
    ]


def _ask(case: Case) -> None:
    try:
        case.running.ask(case.asked)
    except Exception as error:  # noqa: BLE001 -- whatever answers there
        if not case.runs:
            case.running.silence = f"asking it broke: {type(error).__name__}"


def _render(findings: list[Finding], *, colour: bool) -> str:
    """A table, then what to do, then one line that counts."""

    def shown(state: State, text: str) -> str:
        return f"\x1b[{_COLOURS[state]}m{text}\x1b[0m" if colour else text

    rows = [msgspec.structs.asdict(finding) for finding in findings]
    heading, *lines = table(rows, ("check", "state", "reading")).split("\n")
    start = heading.index("state")
    for finding, line in zip(findings, lines, strict=True):
        end = start + len(finding.state)
        heading += f"\n{line[:start]}{shown(finding.state, line[start:end])}{line[end:]}"
    parts = [heading]
    for state in ("fail", "warn", "unknown"):
        for finding in findings:
            if finding.state == state and finding.advice:
                advice = textwrap.fill(
                    f"{finding.check}: {printable(finding.advice)}",
                    100, initial_indent=f"{state}  ", subsequent_indent=" " * (len(state) + 2),
                    break_long_words=False, break_on_hyphens=False,
                )  # fmt: skip
                parts.append(shown(state, state) + advice.removeprefix(state))
    count = {state: sum(one.state == state for one in findings) for state in _COLOURS}
    parts.append(
        f"{len(findings)} checks: {count['ok']} ok, {count['warn']} to look at,"
        f" {count['fail']} failed, {count['unknown']} unknown"
    )
    return "\n\n".join([parts[0], "\n".join(parts[1:-1]), parts[-1]] if parts[1:-1] else parts)
