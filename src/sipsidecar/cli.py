"""What a person types: run, demo, replay, calls, ladder, pcap, dsn, check-config."""

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import io
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from sipsidecar import __version__, app, demo
from sipsidecar.batch import StoreError, Waiting
from sipsidecar.calls.events import AttemptRecord, CallRecord, PingRecord, RegistrationRecord
from sipsidecar.calls.ladder import LadderMessage, render
from sipsidecar.calls.table import Retraction
from sipsidecar.config import (
    Config,
    ConfigError,
    Loaded,
    find_file,
    load,
    parse_address,
    render_json,
)
from sipsidecar.config import render as render_config
from sipsidecar.edges import embedded, postgres
from sipsidecar.edges.replay import Replay, ReplayError
from sipsidecar.pipeline import Output, Pipeline
from sipsidecar.tables import printable, table
from sipsidecar.wire import WireError, hep, pcap, sdp, sip

CALL_COLUMNS = (
    "started_at",
    "call_id",
    "from_user",
    "to_user",
    "src_ip",
    "final_code",
    "released_by",
    "pdd_ms",
    "setup_ms",
    "talk_ms",
    "attempts",
    "flags",
)
KINDS = {
    CallRecord: "call",
    AttemptRecord: "attempt",
    RegistrationRecord: "registration",
    PingRecord: "ping",
}
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "ms": 0.001}


Rows = list[dict[str, Any]]


FILTERS = (
    "since", "until", "code", "trunk", "from_user", "to_user", "pdd_above", "duration_above",
    "duration_below", "mos_below", "flag", "call_id", "answered", "failed",
)  # fmt: skip
REPLAY_NODE = 0
"""Writes as no sidecar does (their numbers begin with 1), so that one may be running."""
REPLAY_ROWS = 5000
"""Rows in memory at which `replay --store` writes a batch."""


class CliError(Exception):
    """One line for the person at the terminal; the exit code is 2."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 nothing found, 2 it could not."""
    parser = _parser()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of any script on any terminal
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "handle"):
        parser.print_help()
        return 2
    try:
        code: int = arguments.handle(arguments)
        sys.stdout.flush()
    except (
        CliError,
        ConfigError,
        StoreError,
        ReplayError,
        embedded.EmbeddedError,
        OSError,
    ) as error:
        if isinstance(error, BrokenPipeError):
            # `sipsidecar calls | head` is no error; do not let the interpreter complain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        _clear_progress()
        print(f"sipsidecar: {printable(text)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


# ------------------------------------------------------------------------------------------- words


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sipsidecar",
        description="Mirrored SIP in, one true record per call in PostgreSQL, live.",
        epilog="example: sipsidecar run --hep 127.0.0.1:9060",
    )
    parser.add_argument("--version", action="version", version=f"sipsidecar {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(
        name: str, handle: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(handle=handle)
        where = command.add_argument_group("where")
        where.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
        where.add_argument("--data", metavar="DIR", help="folder of the sidecar's own PostgreSQL")
        where.add_argument("--dsn", metavar="DSN", help="use this PostgreSQL: postgresql://...")
        return command

    for name, handle, text in (
        ("run", _run, "receive HEP, follow calls, store them"),
        ("demo", _demo, "run, with sample traffic of its own"),
    ):
        command = add(name, handle, text, f"sipsidecar {name} --hep 127.0.0.1:9060")
        command.add_argument("--hep", metavar="ADDR:PORT", help="listen here for HEP (UDP and TCP)")
        command.add_argument("--http", metavar="ADDR:PORT", help="listen here for HTTP")

    command = add(
        "replay", _replay, "print the records of capture files", "sipsidecar replay --json a.pcap"
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pcap or pcapng")
    command.add_argument("--json", action="store_true", help="one JSON object per line")
    command.add_argument("--store", action="store_true", help="write to PostgreSQL instead")

    command = add("calls", _calls, "list calls", "sipsidecar calls --since 1h --code 5xx")
    command.add_argument(
        "--since", metavar="TIME", help="30m, 1d or 2026-01-31T10:00, UTC (the last day)"
    )
    command.add_argument("--until", metavar="TIME", help="the same forms")
    command.add_argument("--code", metavar="CODE", help="final code or class: 486 or 4xx")
    command.add_argument("--trunk", metavar="NAME", help="calls over this trunk")
    command.add_argument("--from", dest="from_user", metavar="TEXT", help="part of the From user")
    command.add_argument("--to", dest="to_user", metavar="TEXT", help="part of the To user")
    command.add_argument(
        "--pdd-above", metavar="SECONDS", help="post-dial delay above: 2 or 2000ms"
    )
    command.add_argument("--duration-above", metavar="SECONDS", help="talk time above: 60 or 1m")
    command.add_argument("--duration-below", metavar="SECONDS", help="talk time below")
    command.add_argument("--mos-below", type=float, metavar="MOS", help="MOS below (not rated yet)")
    command.add_argument(
        "--flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="has this flag, such as failover; give it again for calls that have both",
    )
    command.add_argument("--call-id", metavar="TEXT", help="part of the Call-ID")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--answered", action="store_true", help="only answered calls")
    which.add_argument("--failed", action="store_true", help="only calls that were not answered")
    command.add_argument(
        "--sort", choices=postgres.ORDERS, default="started_at", help="highest first (started_at)"
    )
    command.add_argument(
        "--limit", type=_count, default=50, metavar="N", help="at most so many (50)"
    )
    command.add_argument(
        "--live", action="store_true", help="calls that are going on now, unfiltered"
    )
    command.add_argument("--http", metavar="ADDR:PORT", help="for --live: the sidecar's HTTP")
    command.add_argument("--json", action="store_true", help="one JSON object per line")

    command = add(
        "ladder", _ladder, "draw the messages of a call", "sipsidecar ladder 3848276298220188511@a"
    )
    command.add_argument(
        "call_id", metavar="CALL-ID", help="or a part of it that only one call has"
    )
    command.add_argument("--width", type=int, metavar="N", help="columns (the terminal's)")
    command.add_argument("--json", action="store_true", help="one JSON object per message")

    command = add(
        "pcap",
        _pcap,
        "write a call's messages to a pcap file",
        "sipsidecar pcap a84b4c76 -o a.pcap",
    )
    command.add_argument(
        "call_id", metavar="CALL-ID", help="or a part of it that only one call has"
    )
    command.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="- for standard output"
    )

    add("dsn", _dsn, "print the DSN of the database", 'psql "$(sipsidecar dsn)"')
    command = add(
        "check-config", _check_config, "print every setting and its source",
        "sipsidecar check-config --config sipsidecar.toml",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="as one JSON object")
    return parser


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _config(arguments: argparse.Namespace) -> Config:
    return _loaded(arguments).config


def _loaded(arguments: argparse.Namespace) -> Loaded:
    flags = {
        "hep.listen": getattr(arguments, "hep", None),
        "http.listen": getattr(arguments, "http", None),
        "database.directory": arguments.data,
        "database.dsn": arguments.dsn,
    }
    return load(find_file(arguments.config, os.environ), os.environ, flags)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|)", text)
    if not found:
        raise CliError(f"{text}: expected a duration such as 2, 1.5s, 2000ms, 10m, 1h or 1d")
    return float(found[1]) * UNITS[found[2]]


def _moment(text: str) -> int:
    """A point in time in microseconds UTC: so long ago, or an ISO 8601 date and time."""
    if re.fullmatch(r"[0-9.]+(ms|s|m|h|d)", text):
        return max(time.time_ns() // 1000 - int(_seconds(text) * 1_000_000), 0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CliError(
            f"{text}: expected so long ago (30m, 1d) or a date (2026-01-31T10:00, UTC)"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(int(moment.timestamp() * 1_000_000), 0)


def _iso(at: int) -> str:
    try:
        moment = datetime.fromtimestamp(at // 1_000_000, UTC)
    except (OverflowError, ValueError, OSError):
        return str(at)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at % 1_000_000:06d}Z"


def _readable(fields: dict[str, Any]) -> dict[str, Any]:
    """Times as ISO 8601 UTC; everything else as it is."""
    return {
        key: _iso(value) if key.endswith("_at") and value is not None else value
        for key, value in fields.items()
    }


def _json_line(fields: object) -> str:
    return msgspec.json.encode(fields).decode()


# -------------------------------------------------------------------------------------------- runs


def _run(arguments: argparse.Namespace) -> int:
    return app.run(_config(arguments))


def _demo(arguments: argparse.Namespace) -> int:
    async def play(sidecar: app.Sidecar) -> None:
        host, port = sidecar.hep_address
        await demo.play(host, port)

    return app.run(_config(arguments), also=play)


def _replay(arguments: argparse.Namespace) -> int:
    for path in arguments.files:
        if not path.exists():
            raise CliError(f"{path}: no such file")
    config = _config(arguments)
    if arguments.store:
        return asyncio.run(_replay_into_store(arguments, config))
    pipeline = app.pipeline_of(config)
    newest: dict[object, dict[str, Any]] = {}
    run = Replay(arguments.files, pipeline, progress=_progress())
    for output in run:
        _remember(newest, output)
    _clear_progress()
    counts = dict.fromkeys(KINDS.values(), 0)
    rows: list[dict[str, Any]] = []
    for fields in newest.values():
        counts[fields["kind"]] += 1
        if arguments.json:
            print(_json_line(fields))
        elif fields["kind"] == "call":
            rows.append(fields)
    summary = _summary(run, pipeline, counts)
    if arguments.json:
        print(_json_line({"kind": "summary", **summary}))
        return 0
    if rows:
        print(_call_table(rows))
    counted = {key.replace("_", " "): n for key, n in summary.items() if isinstance(n, int)}
    print(", ".join(f"{count} {what}" for what, count in counted.items()))
    _say_truncated(run)
    return 0


def _remember(newest: dict[object, dict[str, Any]], output: Output) -> None:
    """Keep the newest revision of each record, in the order of first appearance."""
    if isinstance(output, Retraction):
        kind = "call" if output.branch is None else "attempt"
        gone = (kind, output.call_id, output.from_tag, output.branch, output.received_at)
        newest.pop(gone, None)
        return
    kind = KINDS[type(output)]
    fields = msgspec.structs.asdict(output)
    key = (
        kind,
        output.call_id,
        fields.get("from_tag"),
        fields.get("branch"),
        output.received_at,
        *((fields["cseq"],) if "cseq" in fields else ()),
    )
    newest[key] = {"kind": kind, **_readable(fields)}


def _summary(run: Replay, pipeline: Pipeline, counts: dict[str, int]) -> dict[str, Any]:
    said = pipeline.snapshot(run.now)
    return {
        "packets": said.received,
        "calls": counts["call"],
        "attempts": counts["attempt"],
        "registrations": counts["registration"],
        "pings": counts["ping"],
        "messages": said.stored_out,
        "quarantined": said.quarantined_out,
        "refused": sum(said.refused.values()),
        "orphans": said.orphans,
        "not_sip": run.not_sip,
        "refused_by_reason": said.refused,
        "odd": said.oddities,
        "cut_packets": run.cut,
        "skipped_packets": dict(run.skipped),
        "truncated_files": run.truncated,
    }


async def _replay_into_store(arguments: argparse.Namespace, config: Config) -> int:
    """Through the same rows and the same ledger as live traffic, batch by batch."""
    pipeline = app.pipeline_of(config)
    async with _writing_dsn(config) as dsn:
        store = postgres.Postgres(postgres.PostgresSettings(dsn=dsn, node_id=REPLAY_NODE))
        await store.open()
        waiting = Waiting(max_rows=REPLAY_ROWS, max_age=0.0, max_bytes=1 << 40)
        maker = app.RowMaker(waiting, REPLAY_NODE, messages=config.database.store_messages)

        async def write(least: int) -> None:
            while len(waiting) > least and (batch := waiting.take()) is not None:
                rows = {name: [row.data for row in some] for name, some in batch.tables.items()}
                await store.write(_content(rows), rows, batch.replaced)
                waiting.done()

        try:
            run = Replay(
                arguments.files,
                pipeline,
                keep=lambda stored: maker.keep(stored, 0.0),
                progress=_progress(),
            )
            for outputs in run.turns():
                maker.add(outputs, 0.0)
                if len(waiting) > REPLAY_ROWS:
                    await write(REPLAY_ROWS)
            await write(0)
        finally:
            await store.close()
    _clear_progress()
    stored = dict(waiting.stored)
    if arguments.json:
        print(_json_line({"kind": "stored", **stored}))
    else:
        said = ", ".join(f"{count} {name}" for name, count in sorted(stored.items())) or "nothing"
        print(f"in the database: {said}")
    _say_truncated(run)
    return 0


def _content(tables: dict[str, list[bytes]]) -> int:
    """A number for a batch by what is in it: a capture that is stored again changes nothing."""
    digest = hashlib.blake2b(digest_size=8)
    for name, rows in tables.items():
        digest.update(name.encode())
        for row in rows:
            digest.update(row)
    return int.from_bytes(digest.digest(), "big") >> 1


def _say_truncated(run: Replay) -> None:
    for path in run.truncated:
        print(f"sipsidecar: {path} ends inside a packet; it was read up to there", file=sys.stderr)


def _progress() -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        share = 100 * done // total if total else 100
        sys.stderr.write(f"\r{share:3d} % of {total / 1e6:.1f} MB")
        sys.stderr.flush()

    return show


def _clear_progress() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 30 + "\r")


# ------------------------------------------------------------------------------------------- reads


@contextlib.asynccontextmanager
async def _reading_dsn(config: Config) -> AsyncIterator[str]:
    """The database to ask: the given one, or the embedded one, running or not."""
    if config.database.dsn:
        yield config.database.dsn
        return
    directory = app.data_directory(config)
    async with embedded.reach(directory, binaries=app.binaries_of(config)) as dsn:
        yield dsn


@contextlib.asynccontextmanager
async def _writing_dsn(config: Config) -> AsyncIterator[str]:
    """The same, but an embedded one that was never started is made."""
    directory = app.data_directory(config)
    if config.database.dsn or embedded.cluster_major(directory) is not None:
        async with _reading_dsn(config) as dsn:
            yield dsn
        return
    server = embedded.EmbeddedPostgres(directory, binaries=app.binaries_of(config))
    dsn = await server.start()
    try:
        yield dsn
    finally:
        await server.stop()


def _ask(config: Config, question: Callable[[str], Awaitable[Rows]]) -> Rows:
    async def answer() -> Rows:
        async with _reading_dsn(config) as dsn:
            return await question(dsn)

    return asyncio.run(answer())


def _calls(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if arguments.live:
        return _live_calls(arguments, config)
    code, code_class = _code(arguments.code)
    wanted = postgres.CallFilter(
        since_us=_moment(arguments.since or "1d"),
        until_us=_moment(arguments.until) if arguments.until else None,
        final_code=code,
        final_class=code_class,
        trunk=arguments.trunk,
        from_user=arguments.from_user,
        to_user=arguments.to_user,
        pdd_above_ms=_milliseconds(arguments.pdd_above),
        talk_above_ms=_milliseconds(arguments.duration_above),
        talk_below_ms=_milliseconds(arguments.duration_below),
        mos_below=arguments.mos_below,
        flags=tuple(arguments.flag),
        call_id=arguments.call_id,
        answered=True if arguments.answered else False if arguments.failed else None,
        order=arguments.sort,
        limit=arguments.limit,
    )
    found = _ask(config, lambda dsn: postgres.find_calls(dsn, wanted))
    return _print_calls(arguments, [_readable(row) for row in found])


def _live_calls(arguments: argparse.Namespace, config: Config) -> int:
    if any(getattr(arguments, name) for name in FILTERS):
        raise CliError("--live shows all calls that are going on: it takes no filter")
    host, port = parse_address(config.http.listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- asked, not bound
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(
            f"http://{address}/v1/calls/live?limit={arguments.limit}", timeout=5
        ) as reply:
            page = msgspec.json.decode(reply.read())
        rows = [_readable(row) for row in page["calls"]]
    except OSError as error:
        why = getattr(error, "reason", None) or error
        why = getattr(why, "strerror", None) or why
        raise CliError(
            f"no sidecar answers at http://{address} ({why}): start `sipsidecar run`, or name its --http"
        ) from None
    except (http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError):
        raise CliError(f"http://{address} is no sidecar; name its --http") from None
    return _print_calls(arguments, rows)


def _print_calls(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    if arguments.json:
        for row in rows:
            print(_json_line({"kind": "call", **row}))
        return 0 if rows else 1
    if not rows:
        print(
            "no such calls" if arguments.since else "no such calls in the last day; see --since",
            file=sys.stderr,
        )
        return 1
    print(_call_table(rows))
    if len(rows) == arguments.limit and sys.stdout.isatty():
        print(f"the first {len(rows)} are shown; see --limit", file=sys.stderr)
    return 0


def _call_table(rows: list[dict[str, Any]]) -> str:
    """For people: times to the millisecond, durations in whole ones."""
    columns = [name for name in ("state", *CALL_COLUMNS) if name in rows[0]]
    shown = [
        {
            name: round(value) if name.endswith("_ms") and value is not None else value
            for name, value in row.items()
        }
        | {"started_at": row["started_at"][:23].replace("T", " ") + "Z"}
        for row in rows
    ]
    return table(shown, columns, _width())


def _code(text: str | None) -> tuple[int | None, str | None]:
    if text is None:
        return None, None
    if re.fullmatch(r"[1-6][0-9]{2}", text):
        return int(text), None
    if re.fullmatch(r"[1-6][xX]{2}", text):
        return None, text.lower()
    raise CliError(f"{text}: expected a final code or a class, such as 486 or 4xx")


def _milliseconds(text: str | None) -> float | None:
    return None if text is None else _seconds(text) * 1000


def _width() -> int | None:
    """The terminal's width; None for a file or a pipe, where nothing is clipped."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


async def _messages(dsn: str, text: str) -> list[dict[str, Any]]:
    """All messages of the call that the text names."""
    found = await postgres.find_call(dsn, text)
    ids = list(dict.fromkeys(row["call_id"] for row in found)) or [text]
    if len(ids) > 1:
        some = ", ".join(ids[:3])
        raise CliError(f"{text}: {len(ids)} calls have that in their Call-ID, such as {some}")
    messages = await postgres.find_messages(dsn, ids[0])
    if not messages:
        raise CliError(f"{text}: no messages of such a call; `sipsidecar calls` lists calls")
    return messages


def _ladder(arguments: argparse.Namespace) -> int:
    messages = _ask(_config(arguments), lambda dsn: _messages(dsn, arguments.call_id))
    rungs = [_rung(message) for message in messages]
    if arguments.json:
        for rung in rungs:
            print(_json_line({**msgspec.structs.asdict(rung), "at": _iso(rung.at)}))
        return 0
    width = arguments.width or shutil.get_terminal_size((120, 24)).columns
    print(render(rungs, width=width, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    return 0


def _rung(row: dict[str, Any]) -> LadderMessage:
    notes: list[str] = []
    try:
        message = sip.parse(row["payload"])
    except sip.SipError:
        label = "RTCP" if row["kind"] == 5 else f"HEP type {row['kind']}"
    else:
        if message.status is None:
            label = f"{message.method} {message.ruri}"
        else:
            label = f"{message.status} {message.phrase}"
        notes += _sdp_notes(message)
        if message.truncated:
            notes.append("truncated")
    return LadderMessage(
        at=row["captured_at"] if row["captured_at"] is not None else row["received_at"],
        sequence=row["sequence"],
        source=_endpoint(row["src_ip"], row["src_port"]),
        destination=_endpoint(row["dst_ip"], row["dst_port"]),
        label=label,
        notes=tuple(notes),
    )


def _sdp_notes(message: sip.Message) -> Iterator[str]:
    body = sdp.body_of(message.first("content-type") or "", message.body) if message.body else None
    if body is not None:
        with contextlib.suppress(WireError):
            yield "SDP " + " ".join(sdp.audio_codecs(sdp.parse(body)))


def _endpoint(ip: str | None, port: int | None) -> str:
    host = f"[{ip}]" if ip and ":" in ip else ip or "?"
    return f"{host}:{port}"


def _pcap(arguments: argparse.Namespace) -> int:
    messages = _ask(_config(arguments), lambda dsn: _messages(dsn, arguments.call_id))
    data = [
        pcap.file_header(),
        *(
            pcap.udp_record(
                row["captured_at"] if row["captured_at"] is not None else row["received_at"],
                hep.packed_address(row["src_ip"]),
                hep.packed_address(row["dst_ip"]),
                row["src_port"] or 0,
                row["dst_port"] or 0,
                row["payload"],
            )
            for row in messages
        ),
    ]
    if arguments.output == "-":
        sys.stdout.buffer.write(b"".join(data))
        return 0
    path = Path(arguments.output)
    try:
        path.write_bytes(b"".join(data))
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None
    print(f"{len(messages)} messages to {path}", file=sys.stderr)
    return 0


def _dsn(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if config.database.dsn:
        print(config.database.dsn)
        return 0
    directory = app.data_directory(config)
    dsn = embedded.dsn_of(directory)
    if dsn is None:
        raise CliError(
            f"no database runs in {directory}: start `sipsidecar run`, or name its --data"
        )
    print(dsn)
    return 0


def _check_config(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    print(render_json(loaded) if arguments.json else render_config(loaded))
    return 0
