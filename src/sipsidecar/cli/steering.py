"""Shows what the running sidecar decides about new calls, and tells it what an operator wants."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from sipsidecar.cli import rehearsing
from sipsidecar.cli.asking import Asked, answered
from sipsidecar.cli.parsers import Commands, number
from sipsidecar.cli.words import (
    CliError,
    config_of,
    json_line,
    seconds_of,
    terminal_width,
)
from sipsidecar.signals.rules import SCOPES
from sipsidecar.tables import printable, table

SECONDS = 5.0
"""How long the sidecar may take."""
PAGE = "/v1/admission"
RULE_COLUMNS = (
    "rule", "of", "objects", "state", "admits", "outcome", "measure", "which", "value", "threshold",
    "reserve", "since", "reason",
)  # fmt: skip
SWITCH_COLUMNS = (
    "name", "kind", "up", "since", "rtt", "entries", "pushed", "failed", "asked", "refused", "error",
)  # fmt: skip
CHECK_COLUMNS = ("check", "ok", "ms", "why", "age")
_COLOURS = {"closed": "31", "limiting": "33", "ramping": "33", "no": "31"}
Row = dict[str, Any]


def add_commands(commands: Commands) -> None:
    """Add `admission` and its commands."""
    group = commands.group(
        "admission", "show and steer which new calls are refused", "sipsidecar admission status"
    )

    def add(
        name: str, handle: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        command = group.add(name, handle, text, f"sipsidecar admission {example}")
        command.add_argument("--http", metavar="ADDR:PORT", help="the sidecar's HTTP")
        command.add_argument("--json", action="store_true", help="as one JSON object")
        return command

    rehearsing.add_command(group)
    add("status", status, "show rules, leases, drains, and the switches that are told", "status")
    command = add(
        "explain",
        explain,
        "show what would be decided about a call now, and why",
        "explain --trunk acme",
    )
    _add_scopes(command, "a call of this {}", exclusive=False)
    command.add_argument(
        "--seen",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="instead: what is seen of the call, such as src_ip=192.0.2.7; give it again for more",
    )
    command = add("drain", drain, "refuse new calls until resumed", "drain --trunk acme")
    _add_scopes(command, "calls of this {} only (all)")
    command = add(
        "resume", resume, "end a drain, and open rules that have closed", "resume --trunk acme"
    )
    _add_scopes(command, "calls of this {} only (all)")
    command = add(
        "set",
        set_limit,
        "give a rule another limit until the next start or reload",
        "set acme-calls --limit 50",
    )
    command.add_argument("rule", metavar="RULE", help="its name")
    command.add_argument("--limit", required=True, type=number, metavar="N", help="the new limit")
    command = add(
        "signal", signal, "tell a figure that rules can be about", "signal asr-latency 0.7"
    )
    command.add_argument("name", metavar="NAME", help="`which` of the rules about it")
    command.add_argument("value", type=number, metavar="VALUE", help="what is measured")
    command.add_argument(
        "--ttl", default="30s", metavar="SECONDS", help="it is unknown again after this: 30 or 5m"
    )


def _add_scopes(command: argparse.ArgumentParser, text: str, *, exclusive: bool = True) -> None:
    which = command.add_mutually_exclusive_group() if exclusive else command
    for scope in SCOPES:
        which.add_argument(f"--{scope}", metavar="NAME", help=text.format(scope))


# -- what is shown


def status(arguments: argparse.Namespace) -> int:
    """Print each rule's state and what it stands on, and how the switches are reached."""
    found = _get(arguments, f"{PAGE}/status")
    rules = _rows(found.get("rules"))
    if arguments.json:
        print(json_line({"kind": "admission", **found}))
        return 0 if rules else 1
    parts = [_rule_table(rules)] if rules else []
    parts.append(_leases(found.get("leases")))
    parts += [
        printable(f"drained: {_whose(one)}, for {_span(one.get('seconds'))}")
        for one in _rows(found.get("drains"))
    ]
    if switches := [_switch(one) for key in ("pushes", "asks") for one in _rows(found.get(key))]:
        parts.append(_painted(switches, SWITCH_COLUMNS, "up"))
    if checks := [_check(one) for one in _rows(found.get("checks"))]:
        parts.append(_painted(checks, CHECK_COLUMNS, "ok"))
    if said := _object(found.get("signals")):
        signals = [{"signal": name, "value": _plain(value)} for name, value in said.items()]
        parts.append(table(signals, ("signal", "value"), terminal_width()))
    closed = [name for name, how in _object(found.get("fail")).items() if how == "fail-closed"]
    if closed:
        shown = ", ".join(sorted(closed))
        parts.append(printable(f"refused while no sidecar speaks: calls of {shown}"))
    print("\n\n".join(filter(None, parts)))
    if not rules:
        print("no rules: configure admission.rules", file=sys.stderr)
    return 0 if rules else 1


def explain(arguments: argparse.Namespace) -> int:
    """Print what would be decided, and each rule's word on it."""
    given = _scopes(arguments)
    for one in arguments.seen:
        name, equals, value = one.partition("=")
        if not equals or not name or name in given:
            raise CliError(f"{one}: expected NAME=VALUE, such as src_ip=192.0.2.7, each name once")
        given[name] = value
    found = _get(arguments, f"{PAGE}/explain?{urlencode(given, quote_via=quote)}")
    if arguments.json:
        print(json_line({"kind": "explanation", **found}))
        return 0
    decision = _object(found.get("decision"))
    parts = [_verdict(decision), _cohort(_object(decision.get("cohort")), found.get("matched"))]
    if rules := _rows(found.get("rules")):
        parts.append(_rule_table(rules))
    print("\n\n".join(filter(None, parts)))
    return 0


def _verdict(decision: Row) -> str:
    verdict = str(decision.get("verdict"))
    what = {"refuse": decision.get("code"), "overflow": f"to {decision.get('route')}"}.get(verdict)
    text = verdict if what is None else f"{verdict} {what}"
    if decision.get("rule"):
        text += f" by rule {decision['rule']}"
    if decision.get("shadow"):
        text += f"; shadow rules that would object: {', '.join(map(str, decision['shadow']))}"
    return printable(text)


def _cohort(cohort: Row, matched: object) -> str:
    """Tell whose the call is, and which of `cohorts.match` said so."""
    places = _object(matched)

    def by(scope: str) -> str:
        place = places.get(scope)
        return f" (by matcher {place + 1})" if isinstance(place, int) else ""

    return printable(", ".join(f"{scope} {value}{by(scope)}" for scope, value in cohort.items()))


def _rule_table(rules: Sequence[Row]) -> str:
    rows = [
        {
            **{name: one.get(name) for name in RULE_COLUMNS},
            "of": _whose(one),
            "value": _plain(one.get("value")),
            "threshold": _plain(one.get("threshold")),
            # of the threshold, for calls that are never refused
            "reserve": _plain(one.get("reserve")),
            "admits": _share(one.get("percent_admitted")),
            "since": _span(one.get("since_seconds")),
        }
        for one in rules
    ]
    return _painted(rows, RULE_COLUMNS, "state")


def _share(percent: object) -> str | None:
    """What part of new calls may pass, where that is not all of them."""
    return None if percent in (None, 100) else f"{_plain(percent)} %"


def _whose(one: Row) -> str:
    value = one.get("scope_value")
    return f"{one.get('scope')} {value}" if value else "all calls"


def _switch(one: Row) -> Row:
    rtt = one.get("rtt_ms")
    return {
        **{name: one.get(name) for name in SWITCH_COLUMNS},
        "up": "yes" if one.get("up") else "no",
        "since": _span(one.get("since")),
        "rtt": f"{rtt:.1f} ms" if isinstance(rtt, int | float) else None,
    }


def _check(one: Row) -> Row:
    ok = one.get("ok")
    return {
        "check": one.get("name"),
        "ok": None if ok is None else "yes" if ok else "no",
        "ms": _plain(one.get("ms")),
        "why": one.get("why"),
        "age": _span(one.get("age_seconds")),
    }


def _leases(found: object) -> str:
    leases = _object(found)
    ended = [f"{_plain(count)} {why}" for why, count in _object(leases.get("ended")).items()]
    said = [f"{_plain(leases[name])} {name}" for name in ("held", "pending") if name in leases]
    said += [f"ended: {', '.join(ended)}"] if ended else []
    return printable(f"leases: {', '.join(said)}") if said else ""


def _painted(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], by: str) -> str:
    """Draw a table; on a terminal with what is not as it should be in colour."""
    unknown: tuple[object, ...] = (None, "")
    columns = [name for name in columns if any(row[name] not in unknown for row in rows)]
    drawn = table(rows, columns, terminal_width())
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return drawn
    heading, *lines = drawn.split("\n")
    return "\n".join([heading, *map(_line, lines, (str(row[by]) for row in rows))])


def _line(line: str, state: str) -> str:
    colour = _COLOURS.get(state)
    return line if colour is None else f"\x1b[{colour}m{line}\x1b[0m"


def _plain(value: object) -> str | None:
    return f"{value:.6g}" if isinstance(value, int | float) else None


def _span(seconds: object) -> str | None:
    """How long something has been so, in one unit."""
    if not isinstance(seconds, int | float):
        return None
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _object(found: object) -> Row:
    return found if isinstance(found, dict) else {}


def _rows(found: object) -> list[Row]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


# -- what is told


def drain(arguments: argparse.Namespace) -> int:
    """Refuse every new call of whom is named, or of all."""
    where = _scopes(arguments)
    found = _post(arguments, f"{PAGE}/drain", where)
    _say(
        arguments,
        found,
        f"new calls of {_named(where)} are refused until `admission resume` or the next start",
    )
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Let calls in again."""
    where = _scopes(arguments)
    found = _post(arguments, f"{PAGE}/resume", where)
    changed = found.get("resumed")
    if not changed and not arguments.json:
        print(f"nothing was drained or closed for {_named(where)}", file=sys.stderr)
        return 1
    _say(arguments, found, f"calls of {_named(where)} are let in again: {changed} changed")
    return 0 if changed else 1


def set_limit(arguments: argparse.Namespace) -> int:
    """Give a rule another limit."""
    body = {"rule": arguments.rule, "limit": arguments.limit}
    found = _post(arguments, f"{PAGE}/set", body)
    limit = _plain(arguments.limit)
    _say(arguments, found, f"{arguments.rule}: limit {limit} until the next start or reload")
    return 0


def signal(arguments: argparse.Namespace) -> int:
    """Say a figure."""
    ttl = seconds_of(arguments.ttl)
    body = {"name": arguments.name, "value": arguments.value, "ttl_seconds": ttl}
    found = _post(arguments, "/v1/signals", body)
    _say(arguments, found, f"{arguments.name} is {_plain(arguments.value)} for {_span(ttl)}")
    return 0


def _say(arguments: argparse.Namespace, found: Row, words: str) -> None:
    print(json_line(found) if arguments.json else printable(words))


def _scopes(arguments: argparse.Namespace) -> dict[str, str]:
    given = ((scope, getattr(arguments, scope)) for scope in SCOPES)
    return {scope: value for scope, value in given if value is not None}


def _named(where: Mapping[str, str]) -> str:
    return " ".join(f"{scope} {value}" for scope, value in where.items()) or "all"


# -- asking


def _get(arguments: argparse.Namespace, path: str) -> Row:
    return _answer(arguments, lambda asked: asked.get(path), "http.read_tokens")


def _post(arguments: argparse.Namespace, path: str, body: Row) -> Row:
    return _answer(arguments, lambda asked: asked.post(path, body), "http.operate_tokens")


def _answer(
    arguments: argparse.Namespace, ask: Callable[[Asked], tuple[int, bytes]], tokens: str
) -> Row:
    return answered(Asked(config_of(arguments), SECONDS), ask, Row, tokens)
