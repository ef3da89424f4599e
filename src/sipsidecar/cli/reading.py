"""Turns what is in the database, or in a running sidecar, into lists, ladders and pcap files."""

import argparse
import asyncio
import contextlib
import http.client
import os
import re
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from sipsidecar import app
from sipsidecar.calls.ladder import LadderMessage, render
from sipsidecar.cli.words import (
    CliError,
    call_table,
    config_of,
    iso,
    json_line,
    moment_of,
    readable,
    seconds_of,
)
from sipsidecar.config import Config, parse_address
from sipsidecar.edges import embedded, postgres
from sipsidecar.edges.postgres import PostgresSettings
from sipsidecar.tables import printable
from sipsidecar.wire import WireError, hep, pcap, sdp, sip

Rows = list[dict[str, Any]]
MAX_ERROR = 4096
"""Bytes that are read of an answer that says what is wrong."""
FILTERS = (
    "since", "until", "code", "trunk", "from_user", "to_user", "pdd_above", "duration_above",
    "duration_below", "mos_below", "flag", "call_id", "answered", "failed",
)  # fmt: skip


@contextlib.asynccontextmanager
async def reading_dsn(config: Config) -> AsyncIterator[str]:
    """The database to ask: the given one, or the embedded one, running or not."""
    if config.database.dsn:
        yield config.database.dsn
        return
    directory = app.data_directory(config)
    async with embedded.reach(directory, binaries=app.binaries_of(config)) as dsn:
        yield dsn


def _ask(config: Config, question: Callable[[PostgresSettings], Awaitable[Rows]]) -> Rows:
    async def answer() -> Rows:
        async with reading_dsn(config) as dsn:
            return await question(PostgresSettings(dsn=dsn, password=config.database.password))

    return asyncio.run(answer())


def calls(arguments: argparse.Namespace) -> int:
    """List calls of the database, or those that are going on."""
    config = config_of(arguments)
    if arguments.live:
        return _live_calls(arguments, config)
    code, code_class = _code(arguments.code)
    wanted = postgres.CallFilter(
        since_us=moment_of(arguments.since or "1d"),
        until_us=moment_of(arguments.until) if arguments.until else None,
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
    found = _ask(config, lambda where: postgres.find_calls(where, wanted))
    return _print_calls(arguments, [readable(row) for row in found])


def _live_calls(arguments: argparse.Namespace, config: Config) -> int:
    if any(getattr(arguments, name) for name in FILTERS):
        raise CliError("--live shows all calls that are going on: it takes no filter")
    address = _http_address(config)
    try:
        page = msgspec.json.decode(
            _fetch(config, f"{address}/v1/calls/live?limit={arguments.limit}")
        )
        rows = [readable(row) for row in page["calls"]]
    except urllib.error.HTTPError as error:
        with error:
            raise CliError(f"{address} answers {error.code}: {_why_refused(error)}") from None
    except OSError as error:
        why = getattr(error, "reason", None) or error
        if isinstance(why, ssl.SSLCertVerificationError):
            why = f"{why.verify_message}, not {config.http.tls_certificate} as it is now"
        why = getattr(why, "strerror", None) or why
        raise CliError(
            f"no sidecar answers at {address} ({why}): start `sipsidecar run`, or name its --http"
        ) from None
    except (http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError):
        raise CliError(f"{address} is no sidecar; name its --http") from None
    return _print_calls(arguments, rows)


def _http_address(config: Config) -> str:
    """Where the sidecar of this configuration answers: the beginning of its URLs."""
    host, port = parse_address(config.http.listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- asked, not bound
    scheme = "https" if config.http.tls_certificate else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _fetch(config: Config, url: str) -> bytes:
    """Ask the running sidecar, with a token if the configuration has one."""
    asked = urllib.request.Request(url)  # noqa: S310 -- http or https, made above
    token = next(filter(None, (*config.http.read_tokens, *config.http.operate_tokens)), None)
    if token is not None:
        value = f"Bearer {token}".encode().decode("latin-1")  # the bytes as they are
        asked.add_unredirected_header("Authorization", value)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if config.http.tls_certificate:
        handlers.append(urllib.request.HTTPSHandler(context=_pinned(config.http.tls_certificate)))
    with urllib.request.build_opener(*handlers).open(asked, timeout=5) as reply:
        found: bytes = reply.read()
    return found


def _pinned(certificate: str) -> ssl.SSLContext:
    """Trust the sidecar's own certificate and no other, whatever name or address is in it."""
    end = "-----END CERTIFICATE-----"  # the first is the server's, then come those that signed it
    try:
        own = Path(certificate).read_text(encoding="ascii").partition(end)[0] + end
        context = ssl.create_default_context(cadata=own)
    except (ssl.SSLError, ValueError):
        raise CliError(
            f"http.tls_certificate: {certificate}: holds no certificate in PEM form"
        ) from None
    except OSError as error:
        raise CliError(f"http.tls_certificate: {certificate}: {error.strerror}") from None
    context.check_hostname = False
    context.verify_flags = ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _why_refused(error: urllib.error.HTTPError) -> str:
    if error.code == http.HTTPStatus.UNAUTHORIZED:
        return "set http.read_tokens to a token of that sidecar, such as file:PATH"
    try:
        return printable(str(msgspec.json.decode(error.read(MAX_ERROR))["error"]))
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return "is it a sidecar? name its --http"


def _print_calls(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    if arguments.json:
        for row in rows:
            print(json_line({"kind": "call", **row}))
        return 0 if rows else 1
    if not rows:
        print(
            "no such calls" if arguments.since else "no such calls in the last day; see --since",
            file=sys.stderr,
        )
        return 1
    print(call_table(rows))
    if len(rows) == arguments.limit and sys.stdout.isatty():
        print(f"the first {len(rows)} are shown; see --limit", file=sys.stderr)
    return 0


def _code(text: str | None) -> tuple[int | None, str | None]:
    if text is None:
        return None, None
    if re.fullmatch(r"[1-6][0-9]{2}", text):
        return int(text), None
    if re.fullmatch(r"[1-6][xX]{2}", text):
        return None, text.lower()
    raise CliError(f"{text}: expected a final code or a class, such as 486 or 4xx")


def _milliseconds(text: str | None) -> float | None:
    return None if text is None else seconds_of(text) * 1000


async def _messages(where: PostgresSettings, text: str) -> list[dict[str, Any]]:
    """All messages of the call that the text names."""
    found = await postgres.find_call(where, text)
    ids = list(dict.fromkeys(row["call_id"] for row in found)) or [text]
    if len(ids) > 1:
        some = ", ".join(ids[:3])
        raise CliError(f"{text}: {len(ids)} calls have that in their Call-ID, such as {some}")
    messages = await postgres.find_messages(where, ids[0])
    if not messages:
        raise CliError(f"{text}: no messages of such a call; `sipsidecar calls` lists calls")
    return messages


def ladder(arguments: argparse.Namespace) -> int:
    """Draw the messages of a call."""
    messages = _ask(config_of(arguments), lambda where: _messages(where, arguments.call_id))
    rungs = [_rung(message) for message in messages]
    if arguments.json:
        for rung in rungs:
            print(json_line({**msgspec.structs.asdict(rung), "at": iso(rung.at)}))
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


def write_pcap(arguments: argparse.Namespace) -> int:
    """Write a call's messages to a pcap file."""
    messages = _ask(config_of(arguments), lambda where: _messages(where, arguments.call_id))
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


def print_dsn(arguments: argparse.Namespace) -> int:
    """Print the DSN of the database."""
    config = config_of(arguments)
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
