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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from sipsidecar import app
from sipsidecar.calls.ladder import LadderMessage, Remark, render
from sipsidecar.cli.deciding import Shown, place, sentence
from sipsidecar.cli.words import (
    CliError,
    call_table,
    config_of,
    iso,
    json_line,
    leg_table,
    media_table,
    moment_of,
    readable,
    seconds_of,
)
from sipsidecar.config import Config, parse_address
from sipsidecar.edges import embedded, postgres
from sipsidecar.edges.postgres import PostgresSettings
from sipsidecar.tables import clip, printable
from sipsidecar.wire import WireError, hep, pcap, rtcp, sdp, sip

T = TypeVar("T")
Rows = list[dict[str, Any]]
MAX_ERROR = 4096
"""Bytes that are read of an answer that says what is wrong."""
MAX_NOTES = 4
"""Blocks of one RTCP packet that a ladder has words for."""
KINDS_OF_PAYLOAD = {hep.Kind.RTCP: "RTCP", hep.Kind.NG: "rtpengine NG", hep.Kind.LOG: "log"}
KINDS_OF_TYPE = {5: "RTCP", 32: "QoS report", 34: "QoS report", 35: "VQ report", 99: "QoS report"}
"""HEP protocol types whose payload does not tell by itself."""
FILTERS = (
    "since", "until", "code", "trunk", "tenant", "direction", "region", "from_user", "to_user",
    "pdd_above", "duration_above", "duration_below", "mos_below", "flag", "finding", "call_id",
    "answered", "failed", "refused",
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


def ask(config: Config, question: Callable[[PostgresSettings], Awaitable[T]]) -> T:
    """Ask the configured database one question."""

    async def answer() -> T:
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
        tenant=arguments.tenant,
        direction=arguments.direction,
        region=arguments.region,
        final_origin="admission" if arguments.refused else None,
        from_user=arguments.from_user,
        to_user=arguments.to_user,
        pdd_above_ms=_milliseconds(arguments.pdd_above),
        talk_above_ms=_milliseconds(arguments.duration_above),
        talk_below_ms=_milliseconds(arguments.duration_below),
        mos_below=arguments.mos_below,
        flags=tuple(arguments.flag),
        call_id=arguments.call_id,
        answered=True if arguments.answered else False if arguments.failed else None,
        findings=tuple(arguments.finding),
        order=arguments.sort,
        limit=arguments.limit,
    )
    found = ask(config, lambda where: postgres.find_calls(where, wanted))
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


class Everything(NamedTuple):
    """All that is stored of one call."""

    calls: Rows
    messages: Rows
    media: Rows
    legs: Rows
    conversations: Rows
    admissions: Rows


async def everything_of(where: PostgresSettings, text: str, *, joined: bool = False) -> Everything:
    """All of the call that the text names; its messages may be gone before it.

    With `joined`, all of the calls that a FreeSWITCH joined with it, too. The text may be the UUID of
    a leg as well.
    """
    found = await postgres.find_call(where, text)
    ids = list(dict.fromkeys(row["call_id"] for row in found)) or [text]
    if len(ids) > 1:
        some = ", ".join(ids[:3])
        raise CliError(f"{text}: {len(ids)} calls have that in their Call-ID, such as {some}")
    conversations = await postgres.find_conversation(where, ids[0])
    legs: Rows = []
    for name in dict.fromkeys(row["conversation"] for row in conversations):
        legs += await postgres.find_legs(where, conversation=name)
    named = [row["call_id"] for row in legs if row["uuid"] == text and row["call_id"]]
    if named and not found:
        ids = named[:1]
        found = await postgres.find_call(where, ids[0], exact=True)
    if joined:
        more = [row["call_id"] for row in legs if row["call_id"] not in ("", *ids)]
        for call_id in dict.fromkeys(more):
            found += await postgres.find_call(where, call_id, exact=True)
            ids.append(call_id)
    else:
        legs = [row for row in legs if row["call_id"] == ids[0]]
    messages = [row for name in ids for row in await postgres.find_messages(where, name)]
    media = [row for name in ids for row in await postgres.find_media(where, name)]
    admissions = await postgres.find_admissions(where, ids)
    return Everything(found, messages, media, legs, conversations, admissions)


def _no_messages(text: str) -> CliError:
    return CliError(f"{text}: no messages of such a call; `sipsidecar calls` lists calls")


def ladder(arguments: argparse.Namespace) -> int:
    """Draw the messages of a call, of both its legs, what was decided, and what is known of media."""
    joined = not arguments.one_leg
    found = ask(
        config_of(arguments), lambda where: everything_of(where, arguments.call_id, joined=joined)
    )
    if not (found.messages or found.media or found.legs or found.admissions):
        raise _no_messages(arguments.call_id)
    read = [_Read(row, _sip(row["payload"])) for row in found.messages]
    beside = _beside(read, found.legs)
    rungs: list[tuple[LadderMessage, str]] = []
    for call_id in dict.fromkeys(row["call_id"] for row in found.messages):
        one = [(n, some) for n, some in enumerate(read) if some.row["call_id"] == call_id]
        clock_rate = _clock_rate(some.message for _, some in one if some.message is not None)
        rungs += [(_rung(*some, clock_rate, beside.get(n, [])), call_id) for n, some in one]
    rungs.sort(key=lambda pair: (pair[0].at, pair[0].sequence))
    if arguments.json:
        for rung, call_id in rungs:
            fields = {**msgspec.structs.asdict(rung), "at": iso(rung.at)}
            print(json_line({"call_id": call_id, **fields}))
        for kind, rows in (
            ("admission", found.admissions),
            ("media", found.media),
            ("leg", found.legs),
            ("conversation", found.conversations),
        ):
            for row in rows:
                print(json_line({"kind": kind, **readable(row)}))
        return 0
    width = arguments.width or shutil.get_terminal_size((120, 24)).columns
    drawn = [rung for rung, _ in rungs]
    around = {row["call_id"]: _shown(read, row["call_id"]) for row in found.admissions}
    decided = [
        Remark(at=place(row, around[row["call_id"]]), text=sentence(row))
        for row in found.admissions
    ]
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(render(drawn, width=width, colour=colour, remarks=decided))
    # In a file or a pipe nothing is clipped, unless a width was asked for.
    most = max(width, 40) if arguments.width or sys.stdout.isatty() else None
    lines = findings_lines(found.calls)
    told = [clip(line, most) if most else printable(line) for line in lines]
    if found.media:
        several = len({row["call_id"] for row in found.media}) > 1
        shown = found.media if several else [{**row, "call_id": None} for row in found.media]
        told.insert(0, media_table(shown, most))
    if told:
        print("", *told, sep="\n")
    if found.legs:
        print("", leg_table([readable(row) for row in found.legs], most), sep="\n")
    return 0


class _Read(NamedTuple):
    """A stored message, and what it says if it is SIP."""

    row: dict[str, Any]
    message: sip.Message | None


def _shown(read: Sequence[_Read], call_id: str) -> list[Shown]:
    """What admission must know of the messages of a Call-ID."""
    return [
        Shown(
            _captured(row),
            row["received_at"],
            message is not None and _begins(message),
            message.status if message is not None and message.method == "INVITE" else None,
        )
        for row, message in read
        if row["call_id"] == call_id
    ]


def _beside(read: Sequence[_Read], legs: Rows) -> dict[int, list[str]]:
    """What FreeSWITCH's events say of its legs, beside the messages that show the same.

    By the index of a message. Not by time, for the capture agent and FreeSWITCH have their own clocks.
    """
    notes: dict[int, list[str]] = {}
    for leg in legs:
        own = [
            (n, some.row, some.message)
            for n, some in enumerate(read)
            if some.message is not None and leg["call_id"] and some.row["call_id"] == leg["call_id"]
        ]
        created = f"ESL {leg['direction'] or 'new'} leg {leg['uuid'][:8]}"
        by = f" by {leg['released_by']}" if leg["released_by"] else ""
        ended = f"ESL {leg['hangup_cause'] or 'ended'}{by}"
        for happened, shows, note in (
            (True, _begins, created),
            (leg["answered_at"] is not None, _answers, "ESL answered"),
            (leg["ended_at"] is not None, _ends_call, ended),
        ):
            found = [(n, row, message) for n, row, message in own if shows(message)]
            # Of a message that several hops relayed, the one between FreeSWITCH and its peer.
            near = [one for one in found if _between(leg, one[1], one[2])] or found
            if happened and near:
                notes.setdefault(near[0][0], []).append(note)
    return notes


def _between(leg: dict[str, Any], row: dict[str, Any], message: sip.Message) -> bool:
    """Whether a message went from the peer of a leg to FreeSWITCH, or back, as such a one should."""
    if message.method == "BYE":
        from_peer = leg["released_by"] == "peer"
    else:  # the caller's side sends requests, the other answers
        from_peer = (leg["direction"] == "inbound") == (message.status is None)
    end = "src" if from_peer else "dst"
    peer = (leg["network_ip"], leg["network_port"])
    return peer == (row[f"{end}_ip"], row[f"{end}_port"])


def _begins(message: sip.Message) -> bool:
    return message.status is None and message.method == "INVITE"


def _answers(message: sip.Message) -> bool:
    return message.status is not None and message.status // 100 == 2 and message.method == "INVITE"


def _ends_call(message: sip.Message) -> bool:
    if message.status is None:
        return message.method in ("BYE", "CANCEL")
    refused = message.status >= 300 and message.status not in (401, 407)
    return refused and message.method == "INVITE"


def findings_lines(calls: Rows) -> Iterator[str]:
    """What is wrong with the media of calls, each with its figures."""
    for row in map(readable, calls):
        evidence = row["evidence"] if isinstance(row["evidence"], dict) else {}
        for finding in row["findings"]:
            figures = evidence.get(finding)
            for one in figures if isinstance(figures, list) and figures else [figures]:
                known = (
                    {k: v for k, v in one.items() if v is not None} if isinstance(one, dict) else {}
                )
                direction = known.pop("direction", None)
                what = f"{finding} {direction}" if direction else finding
                said = ", ".join(f"{name} {_figure(value)}" for name, value in known.items())
                yield f"{what}: {said}" if said else what


def _figure(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_figure(one)}" for name, one in value.items()) + ")"
    return ", ".join(map(_figure, value)) if isinstance(value, list) else str(value)


def _sip(payload: bytes) -> sip.Message | None:
    try:
        return sip.parse(payload)
    except sip.SipError:
        return None


def _rung(
    row: dict[str, Any], message: sip.Message | None, clock_rate: int | None, beside: list[str]
) -> LadderMessage:
    if message is None:
        label, notes = _of_media(row["payload"], row["kind"], clock_rate)
    else:
        notes = [*_sdp_notes(message), *_quality_notes(message)]
        if message.truncated:
            notes.append("truncated")
        if message.status is None:
            label = f"{message.method} {message.ruri}"
        else:
            label = f"{message.status} {message.phrase}"
    return LadderMessage(
        at=_captured(row),
        sequence=row["sequence"],
        source=_endpoint(row["src_ip"], row["src_port"]),
        destination=_endpoint(row["dst_ip"], row["dst_port"]),
        label=label,
        notes=(*notes, *beside),
    )


def _of_media(payload: bytes, kind: int, clock_rate: int | None) -> tuple[str, list[str]]:
    """What a payload that is no SIP is, and what it says; `kind` is its HEP protocol type."""
    what = hep.sniff(payload, kind)
    label = KINDS_OF_PAYLOAD.get(what) or KINDS_OF_TYPE.get(kind) or f"HEP type {kind}"
    try:
        if what is hep.Kind.RTCP:
            reports = rtcp.parse(payload)
        elif what is hep.Kind.JSON:
            reports = (rtcp.parse_json(payload),)
        else:
            return label, []
    except rtcp.RtcpError as error:
        return label, [error.why] if label == "RTCP" else []
    notes = [
        *(
            _heard(block, report.clock_rate or clock_rate)
            for report in reports
            for block in report.blocks
        ),
        *(f"XR {_metrics(one)}" for report in reports for one in report.voip),
        *(f"BYE of {ssrc:08x}" for report in reports for ssrc in report.bye),
    ]
    if any(report.sender is not None for report in reports):
        label = "RTCP SR"
    elif any(report.voip for report in reports) and not any(report.blocks for report in reports):
        label = "RTCP XR"
    else:
        label = "RTCP RR" if reports else "RTCP"
    return label, notes[:MAX_NOTES]


def _metrics(said: rtcp.VoipMetrics) -> str:
    """What the reporter's own measuring says of one source since the beginning."""
    figures = {"MOS-LQ": said.mos_lq, "MOS-CQ": said.mos_cq, "R": said.r}
    known = [f"{name} {value}" for name, value in figures.items() if value is not None]
    loss = f"loss {said.loss_percent:.1f} %, discarded {said.discard_percent:.1f} %"
    return ", ".join([loss, *known])


def _heard(block: rtcp.ReportBlock, clock_rate: int | None) -> str:
    """What a reporter says of one source since its last report, and in brackets since the beginning."""
    loss = f"loss {100 * block.fraction_lost / 256:.1f} % ({block.lost})"
    if clock_rate:
        return f"{loss}, jitter {1000 * block.jitter / clock_rate:.1f} ms"
    return f"{loss}, jitter {block.jitter} units"


def _clock_rate(messages: Iterable[sip.Message]) -> int | None:
    """The clock of the media of a call; None when its SDP does not agree on one."""
    rates = {
        codec.clock_rate
        for message in messages
        if (message.status is not None and message.status < 300) or message.method == "ACK"
        for description in _sdp(message)
        if (codec := sdp.negotiated(description)) is not None
    }
    return rates.pop() if len(rates) == 1 else None


def _sdp(message: sip.Message) -> Iterator[sdp.SessionDescription]:
    body = sdp.body_of(message.first("content-type") or "", message.body) if message.body else None
    if body is not None:
        with contextlib.suppress(WireError):
            yield sdp.parse(body)


def _sdp_notes(message: sip.Message) -> Iterator[str]:
    for description in _sdp(message):
        yield "SDP " + " ".join(sdp.audio_codecs(description))


def _quality_notes(message: sip.Message) -> Iterator[str]:
    """Which accounts of media quality a SIP message carries."""
    if message.status is None and (message.first("event") or "").lower().startswith("vq-rtcpxr"):
        yield "VQ report"
    for header in ("X-RTP-Stat", "P-RTP-Stat"):
        if message.first(header.lower()):
            yield header


def _captured(row: dict[str, Any]) -> int:
    """When a message was on the wire: by its agent's clock, or ours when that says nothing."""
    at: int = row["captured_at"] if row["captured_at"] is not None else row["received_at"]
    return at


def _endpoint(ip: str | None, port: int | None) -> str:
    host = f"[{ip}]" if ip and ":" in ip else ip or "?"
    return f"{host}:{port}"


def write_pcap(arguments: argparse.Namespace) -> int:
    """Write a call's messages to a pcap file."""
    messages = ask(
        config_of(arguments), lambda where: everything_of(where, arguments.call_id)
    ).messages
    if not messages:
        raise _no_messages(arguments.call_id)
    data = [
        pcap.file_header(),
        *(
            pcap.udp_record(
                _captured(row),
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
