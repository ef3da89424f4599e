"""Tells one call in plain words: what happened, who ended it, codecs, media, decisions, what is near."""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

from sipsidecar.cli.deciding import sentence
from sipsidecar.cli.parsers import Commands
from sipsidecar.cli.reading import Everything, Rows, ask, everything_of, findings_lines
from sipsidecar.cli.words import CliError, config_of, iso, json_line, readable
from sipsidecar.edges import postgres
from sipsidecar.edges.postgres import PostgresSettings
from sipsidecar.tables import printable

ORIGINS = {
    "callee": "by the callee's side",
    "caller": "by the caller's side",
    "proxy": "by a proxy on the way",
    "admission": "by admission control",
    "inferred": "inferred, for nobody saw a final response",
    "esl": "as FreeSWITCH tells it",
}
_COHORT = ("tenant", "trunk", "carrier", "direction", "region", "agent")
_SECONDS = 1000.0


class Around(NamedTuple):
    """All that is stored of a call, and around it."""

    found: Everything
    attempts: Rows
    outcomes: Rows
    related: Rows
    incidents: Rows


def add_command(commands: Commands) -> None:
    """Add `explain`."""
    command = commands.add(
        "explain",
        explain,
        "tell one call in plain words",
        "sipsidecar explain 7b7e3c2a@192.0.2.1",
    )
    command.add_argument("call_id", metavar="CALL-ID", help="or a part of it, or a leg's UUID")
    command.add_argument("--json", action="store_true", help="one JSON object")


def explain(arguments: argparse.Namespace) -> int:
    """Tell what happened to a call, and on which figures that stands."""
    around = ask(config_of(arguments), lambda where: _around(where, arguments.call_id))
    if not (around.found.calls or around.found.legs):
        raise CliError(f"{arguments.call_id}: no such call; `sipsidecar calls` lists calls")
    told = {title: [*lines] for title, lines in story(around)}
    if arguments.json:
        kinds: dict[str, Rows] = {
            "calls": around.found.calls,
            "attempts": around.attempts,
            "media": around.found.media,
            "legs": around.found.legs,
            "admissions": around.found.admissions,
            "outcomes": around.outcomes,
            "related": around.related,
            "incidents": around.incidents,
        }
        rows = {kind: [readable(row) for row in some] for kind, some in kinds.items()}
        print(json_line({"told": told, **rows}))
        return 0
    for title, lines in told.items():
        for number, line in enumerate(lines):
            print(f"{title if not number else '':<12}{printable(line)}")
    return 0


async def _around(where: PostgresSettings, text: str) -> Around:
    found = await everything_of(where, text, joined=True)
    ids = list(dict.fromkeys([*(row["call_id"] for row in found.calls)]))
    attempts = [row for one in ids for row in await postgres.find_attempts(where, one)]
    outcomes = await postgres.find_outcomes(where, ids)
    related = await postgres.find_related(where, found.calls[0]) if found.calls else []
    incidents = await postgres.find_incidents_of(where, found.calls[0]) if found.calls else []
    near = [row for row in related if row["call_id"] not in ids]
    return Around(found, attempts, outcomes, near, incidents)


def story(around: Around) -> Iterator[tuple[str, list[str]]]:
    """Titles, and under each its sentences; texts of strangers are in them as they came."""
    found = around.found
    several = len(found.calls) > 1
    for call in found.calls:
        mine = [row for row in around.attempts if row["call_id"] == call["call_id"]]
        name = f"call {call['call_id']}: " if several else ""
        yield (
            ("Call", [name + line for line in _call(call)])
            if not several
            else (f"Call {found.calls.index(call) + 1}", [name + line for line in _call(call)])
        )
        suffix = f" {found.calls.index(call) + 1}" if several else ""
        yield f"End{suffix}", [*_end(call)]
        if mine:
            yield f"Attempts{suffix}", [*_attempts(mine)]
        codecs = [*_codecs(call, mine)]
        if codecs:
            yield f"Codecs{suffix}", codecs
    media = [*_media(found.media), *findings_lines(found.calls)]
    if media:
        yield "Media", media
    if found.admissions:
        yield (
            "Admission",
            [f"{iso(row['received_at'])}: {sentence(row)}" for row in found.admissions],
        )
    if found.legs:
        yield "FreeSWITCH", [_leg(row) for row in found.legs]
    if around.outcomes:
        yield "Outcome", [_outcome(row) for row in around.outcomes]
    near = [
        *(
            f"incident {row['incident']} ({row['severity']}, {row['scope']}) was open: {row['summary']}"
            for row in around.incidents
        ),
        *(
            f"{iso(row['started_at'])} the same two: {_result(row)} ({row['call_id']})"
            for row in around.related
        ),
    ]
    if near:
        yield "Near it", near


def _call(call: dict[str, Any]) -> Iterator[str]:
    caller = _user(call["from_user"], call["from_host"])
    callee = _user(call["ruri_user"] or call["to_user"], call["ruri_host"] or call["to_host"])
    way = f" over {call['transport'].upper()}" if call["transport"] else ""
    ends = f", from {_end_of(call, 'src')} to {_end_of(call, 'dst')}{way}"
    yield f"{iso(call['started_at'])}: {caller} called {callee}{ends}."
    labels = [f"{name} {call[name]}" for name in _COHORT if call[name] not in (None, "other")]
    if labels:
        yield f"It is of {', '.join(labels)}."
    if call["user_agent"]:
        yield f"The caller's user agent: {call['user_agent']}."
    if call["flags"]:
        yield f"Remarkable: {', '.join(call['flags'])}."


def _end(call: dict[str, Any]) -> Iterator[str]:
    rang = f"; it rang after {_seconds(call['ring_ms'])}" if call["ring_ms"] is not None else ""
    if call["answered"]:
        yield f"Answered after {_seconds(call['setup_ms'])}{rang}, post-dial delay {_seconds(call['pdd_ms'])}."
        talk = _seconds(call["talk_ms"])
        by = {"caller": "the caller hung up", "callee": "the callee hung up"}.get(
            call["released_by"] or ""
        )
        if not call["ended"]:
            yield "It goes on, as far as is known."
        elif by:
            yield f"It lasted {talk}; {by}."
        else:
            source = call["end_source"]
            yield (
                f"It lasted {talk}; no BYE was seen"
                + (f", the end is known by: {source}." if source else ": the end is unknown.")
            )
    elif call["final_code"] is None:
        yield f"How it ended is unknown{rang}."
    else:
        origin = ORIGINS.get(call["final_origin"] or "", "")
        after = f" after {_seconds(call['fail_ms'])}" if call["fail_ms"] is not None else ""
        yield f"Not answered: {_result(call)}{after}{', ' + origin if origin else ''}{rang}."
        if call["released_by"] == "caller":
            yield "The caller gave up (CANCEL)."
    if call["reason"]:
        yield f"Reason given: {call['reason']}."


def _attempts(rows: Rows) -> Iterator[str]:
    for row in sorted(rows, key=lambda one: (one["failover_order"], one["started_at"])):
        trunk = f" (trunk {row['trunk']})" if row["trunk"] not in (None, "other") else ""
        after = row["setup_ms"] if row["answered"] else row["fail_ms"]
        when = f" after {_seconds(after)}" if after is not None else ""
        yield f"{row['failover_order']}. to {_end_of(row, 'peer')}{trunk}: {_result(row)}{when}"


def _codecs(call: dict[str, Any], attempts: Rows) -> Iterator[str]:
    if call["codec_offered"]:
        chosen = call["codec_negotiated"]
        yield f"Offered {call['codec_offered']}; {f'chosen {chosen}' if chosen else 'none was chosen'}."
    answered = [row for row in attempts if row["answered"] and row["codec_negotiated"]]
    for row in answered:
        if call["codec_negotiated"] and row["codec_negotiated"] != call["codec_negotiated"]:
            yield (
                f"Transcoded between: {call['codec_negotiated']} with the caller,"
                f" {row['codec_negotiated']} with {_end_of(row, 'peer')}."
            )


def _media(rows: Rows) -> Iterator[str]:
    for row in rows:
        figures = [
            f"MOS {row['mos']:.2f} ({row['mos_kind']}, {row['mos_scale']})"
            if row["mos"] is not None
            else f"no MOS ({row['unrated'] or 'unknown why'})"
        ]
        for name, text in (
            ("loss_percent", "loss {:.2f} %"),
            ("jitter_ms", "jitter {:.1f} ms"),
            ("rtt_ms", "round trip {:.0f} ms"),
        ):
            if row[name] is not None:
                figures.append(text.format(row[name]))
        codec = f"{row['codec']}, " if row["codec"] else ""
        source = f", by {row['source']}" if row["source"] else ""
        yield f"{row['stream'].replace('_', ' ')}: {codec}{', '.join(figures)}{source}"


def _leg(row: dict[str, Any]) -> str:
    by = f", {row['released_by']} hung up" if row["released_by"] else ""
    gateway = f" by gateway {row['gateway']}" if row["gateway"] else ""
    state = "answered" if row["answered"] else "not answered"
    code = f", SIP {row['sip_code']} ({row['sip_code_source']})" if row["sip_code"] else ""
    cause = f", {row['hangup_cause']}" if row["hangup_cause"] else ""
    return f"{row['direction'] or 'leg'} {row['uuid'][:8]} on {row['switch']}{gateway}: {state}{cause}{code}{by}"


def _outcome(row: dict[str, Any]) -> str:
    said = []
    if row["first_audio_ms"] is not None:
        said.append(f"first audio after {_seconds(row['first_audio_ms'])}")
    said += [
        f"{name.replace('_', ' ')} {row[name]:.2f}"
        for name in ("asr_confidence", "asr_accuracy")
        if row[name] is not None
    ]
    for name, yes, no in (
        ("completed", "task completed", "task not completed"),
        ("transferred", "transferred to a person", "not transferred"),
    ):
        if row[name] is not None:
            said.append(yes if row[name] else no)
    if row["result"]:
        said.append(f"result {row['result']}")
    who = f"agent {row['agent']}: " if row["agent"] else ""
    more = f"; {row['data']}" if row["data"] else ""
    return f"{who}{', '.join(said) or 'nothing of the known fields'}{more}"


def _result(row: dict[str, Any]) -> str:
    if row["final_code"] is None:
        return "no final response was seen"
    phrase = f" {row['final_phrase']}" if row["final_phrase"] else ""
    return f"{row['final_code']}{phrase}"


def _user(user: str | None, host: str | None) -> str:
    if not user and not host:
        return "somebody unknown"
    return f"{user}@{host}" if user and host else user or host or ""


def _end_of(row: dict[str, Any], side: str) -> str:
    ip, port = row[f"{side}_ip"], row[f"{side}_port"]
    shown = f"[{ip}]" if ip and ":" in str(ip) else ip or "?"
    return f"{shown}:{port}" if port else str(shown)


def _seconds(ms: float | None) -> str:
    return "an unknown time" if ms is None else f"{ms / _SECONDS:.3g} s"
